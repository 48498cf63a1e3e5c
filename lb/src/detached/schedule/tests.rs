//! Balancers that share a catalog and a queue, at times that the test says.

use jiff::SignedDuration;
use kiln_api::{Change, Changes};
use kiln_shared::model::{AppInput, FunctionInput, Trigger, TriggerInput};
use kiln_shared::queue::Reserve;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::route::RouteTable;

struct World {
    home: TempDir,
    catalog: Catalog,
    queue: Arc<dyn Queue>,
    table: RouteTable,
    trigger: Trigger,
}

async fn open(home: &TempDir, name: &str) -> Arc<dyn Queue> {
    let url = format!("sqlite://{}", home.path().join(name).display());
    kiln_queue::open(&url, kiln_queue::Options::default()).await.expect("a queue")
}

impl World {
    /// A function that is called by this cron line, with missed ticks treated so.
    async fn new(source: &str, misfire: &str) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", home.path().join("kiln.db").display());
        let catalog = Catalog::open(&url).await.expect("a catalog");
        let app = AppInput { name: "a".into(), ..AppInput::default() };
        let app = catalog.create_app(&app).await.expect("an app");
        let function = FunctionInput {
            name: "f".into(),
            app_id: app.id.as_str().into(),
            image: "i".into(),
            ..FunctionInput::default()
        };
        let function = catalog.create_function(&function).await.expect("a function");
        let annotations = [("kiln.dev/misfire", json!(misfire)), ("kiln.dev/payload", json!("wake up"))];
        let trigger = TriggerInput {
            name: "s".into(),
            app_id: app.id.as_str().into(),
            fn_id: function.id.as_str().into(),
            kind: "schedule".into(),
            source: source.into(),
            annotations: annotations.into_iter().collect(),
            ..TriggerInput::default()
        };
        let trigger = catalog.create_trigger(&trigger).await.expect("a trigger");
        let mut table = RouteTable::new();
        table.reset(catalog.snapshot().await.expect("a snapshot"));
        let queue = open(&home, "queue.db").await;
        Self { home, catalog, queue, table, trigger }
    }

    fn balancer(&self, name: &str) -> Scheduler {
        Scheduler::new(self.catalog.clone(), Arc::clone(&self.queue), self.table.reader(), name)
    }

    /// Half a second after the tick that comes so long after the second in which the schedule was made.
    fn after(&self, seconds: i64) -> Timestamp {
        let tick = Timestamp::from_second(self.trigger.updated_at.as_second() + seconds).expect("a time");
        tick + SignedDuration::from_millis(500)
    }

    /// The seconds after the schedule was made whose ticks are in the queue, in order; each call as it must be.
    async fn called(&self) -> Vec<i64> {
        let reserve = Reserve::new("test", BATCH_MAX, Duration::from_mins(5));
        let mut ticks = Vec::new();
        for message in self.queue.reserve(reserve).await.expect("messages") {
            let call = StoredCall::read(&message.envelope).expect("a call");
            assert_eq!(call.kind, CallKind::Trigger(self.trigger.id));
            assert_eq!(call.headers.get("Kiln-Schedule"), Some(&b"s"[..]));
            assert_eq!(message.payload, "wake up");
            let tick = call.headers.get("Kiln-Tick").expect("a tick");
            let tick: Timestamp = str::from_utf8(tick).expect("text").parse().expect("a time");
            ticks.push(tick.as_second() - self.trigger.updated_at.as_second());
        }
        ticks.sort_unstable();
        ticks
    }
}

/// Rounds until nothing is held by another.
async fn rounds(scheduler: &mut Scheduler, now: Timestamp) {
    while scheduler.round(now).await.expect("a round") == Round::Held {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn two_balancers_of_one_queue_fire_each_tick_once() {
    let world = World::new("* * * * * *", "all").await;
    let (mut one, mut other) = (world.balancer("one"), world.balancer("other"));
    for second in 1..=40 {
        // The other's clock is late.
        let (now, late) = (world.after(second), world.after(second - 2));
        tokio::join!(rounds(&mut one, now), rounds(&mut other, late));
    }
    assert_eq!(world.called().await, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn two_balancers_with_queues_of_their_own_fire_each_tick_once_together() {
    let world = World::new("* * * * * *", "all").await;
    let queue = open(&world.home, "other.db").await;
    let (mut one, mut other) = (world.balancer("one"), world.balancer("other"));
    other.queue = Arc::clone(&queue);
    for second in 1..=20 {
        let now = world.after(second);
        tokio::join!(rounds(&mut one, now), rounds(&mut other, now));
    }
    let mut called = world.called().await;
    called.extend(World { queue, ..world }.called().await);
    called.sort_unstable();
    assert_eq!(called, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_balancer_enqueued_before_it_died_is_not_called_again() {
    let world = World::new("* * * * * *", "all").await;
    let mut dead = world.balancer("dead");
    dead.board.follow(dead.routes.routes().schedules());
    let now = world.after(3);
    let claim = [(world.trigger.id, now)];
    world.catalog.claim_ticks(&claim, &dead.holder, now).await.expect("a claim");
    let (route, call) = dead.board.call(world.trigger.id).expect("a schedule");
    let due = dead.board.due_of(world.trigger.id, now).expect("due");
    let messages = due.ticks[..2].iter().map(|tick| message(route, call, *tick).expect("a call")).collect();
    dead.enqueue(messages).await.expect("enqueued");

    let mut next = world.balancer("next");
    assert_eq!(next.round(world.after(10)).await.expect("a round"), Round::Held);
    rounds(&mut next, world.after(20)).await;
    assert_eq!(world.called().await, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn after_an_outage_one_call_stands_for_all_that_were_missed() {
    let world = World::new("* * * * * *", "once").await;
    rounds(&mut world.balancer("first"), world.after(2)).await;
    rounds(&mut world.balancer("second"), world.after(3600)).await;
    let mut expected = vec![1, 2];
    expected.extend(3570..=3600);
    // The last thirty are on time; the one before stands for all others.
    assert_eq!(world.called().await, expected);
}

#[tokio::test]
async fn what_was_missed_and_is_skipped_is_not_looked_at_again() {
    let world = World::new("@yearly", "skip").await;
    let mut one = world.balancer("one");
    let year = 366 * 24 * 3600 + 7200;
    let (now, before) = (world.after(year), world.after(year - 31 * 24 * 3600));
    one.board.follow(one.routes.routes().schedules());
    assert!(one.board.next_due().is_some_and(|due| due < now));
    rounds(&mut one, now).await;
    assert!(one.board.next_due().is_some_and(|due| due > before));
    assert!(world.called().await.is_empty());
}

#[tokio::test]
async fn a_clock_that_jumps_fires_nothing_twice() {
    let world = World::new("* * * * * *", "all").await;
    let mut one = world.balancer("one");
    for second in [3, 1, -3600, 5, 4, 5, 6] {
        rounds(&mut one, world.after(second)).await;
    }
    assert_eq!(world.called().await, (1..=6).collect::<Vec<_>>());
}

#[tokio::test]
async fn ticks_wait_for_a_queue_that_is_away() {
    let mut world = World::new("* * * * * *", "all").await;
    let mut one = world.balancer("one");
    rounds(&mut one, world.after(1)).await;
    assert_eq!(world.called().await, [1]);
    world.queue.close().await;
    assert!(one.round(world.after(2)).await.is_err());
    world.queue = open(&world.home, "queue.db").await;
    one.queue = Arc::clone(&world.queue);
    rounds(&mut one, world.after(3)).await;
    assert_eq!(world.called().await, [2, 3]);
}

#[tokio::test]
async fn a_changed_schedule_begins_anew_and_one_that_is_gone_ends() {
    let mut world = World::new("* * * * * *", "all").await;
    let mut one = world.balancer("one");
    rounds(&mut one, world.after(2)).await;
    let moved = Trigger { updated_at: world.after(60), ..world.trigger.clone() };
    let revision = world.table.revision() + 1;
    let changes = vec![Change::Trigger(moved)];
    world.table.apply(Changes { revision, changes, ..Changes::default() });
    rounds(&mut one, world.after(62)).await;
    let changes = vec![Change::TriggerGone(world.trigger.id)];
    world.table.apply(Changes { revision: revision + 1, changes, ..Changes::default() });
    rounds(&mut one, world.after(70)).await;
    assert_eq!(one.until_due(world.after(70)), LOOK);
    assert_eq!(world.called().await, [1, 2, 61, 62]);
}
