//! Calls that the queue itself let die, since a lease of the last attempt ran out or the deadline passed: nobody settles
//! them, so their on-failure destinations are told from here.
//!
//! Dead calls of functions with such a destination are read page by page, a bounded number of pages a look. A notice has a
//! key, so that those that were told, by whoever settled them or by another balancer, are not told again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, Queue, QueueError, State};

use super::Dispatcher;

/// Calls on a page.
const PAGE_CALLS: usize = 200;
/// Most pages of one look.
const PAGES_MAX: usize = 10;
/// A function whose number of dead calls stays the same is read again after this time: one may have gone as another came.
const READ_EVERY: Duration = Duration::from_mins(5);
/// Calls that died longer than this before a reading began are old news, unless the reading before took longer still: well
/// within the shortest time for which keys are kept, an hour.
const NEWS_FOR: SignedDuration = SignedDuration::from_mins(30);
/// Most calls that are remembered as told.
const TOLD_MAX: usize = 100_000;

/// What has been read and told.
#[derive(Debug)]
pub(super) struct Buried {
    dispatcher: Dispatcher,
    functions: HashMap<FunctionId, Reading>,
    told: HashMap<CallId, Timestamp>,
}

/// How far a function's dead calls have been read.
#[derive(Debug)]
struct Reading {
    /// Dead calls when it began.
    dead: u64,
    begun: Instant,
    /// Calls that died before this are old news: the reading before has come to them.
    since: Timestamp,
    /// Where it goes on; absent when it is through.
    next: Option<String>,
    is_through: bool,
}

impl Reading {
    fn begin(dead: u64, now: Instant, since: Timestamp) -> Self {
        Self { dead, begun: now, since, next: None, is_through: false }
    }

    /// The next one. It goes back to before this one began, however long that took.
    fn again(&self, dead: u64, now: Instant, since: Timestamp) -> Self {
        let took = SignedDuration::try_from(now.duration_since(self.begun)).unwrap_or(SignedDuration::MAX);
        Self::begin(dead, now, since.saturating_sub(took).unwrap_or(Timestamp::MIN))
    }

    /// True if there may be calls that have not been read.
    fn is_due(&self, dead: u64, now: Instant) -> bool {
        !self.is_through || dead != self.dead || now.duration_since(self.begun) >= READ_EVERY
    }
}

impl Buried {
    /// Tells by `dispatcher`.
    pub(super) fn new(dispatcher: Dispatcher) -> Self {
        Self { dispatcher, functions: HashMap::new(), told: HashMap::new() }
    }

    /// Reads a bounded part of the dead calls and tells of those that died lately.
    ///
    /// # Errors
    /// The queue is away; the next look goes on.
    pub(super) async fn look(&mut self, queue: &dyn Queue, depths: &[Depth]) -> Result<(), QueueError> {
        let (now, since) = (Instant::now(), Timestamp::now() - NEWS_FOR);
        self.told.retain(|_, ended_at| *ended_at >= since);
        let mut due = self.due(depths, now, since);
        let mut pages = 0;
        while pages < PAGES_MAX
            && let Some(function_id) = due.pop()
        {
            pages += 1;
            if self.read_page(queue, function_id).await? {
                due.push(function_id);
            }
        }
        Ok(())
    }

    /// Functions that are to be read, the one that waits longest last.
    fn due(&mut self, depths: &[Depth], now: Instant, since: Timestamp) -> Vec<FunctionId> {
        let tells = |depth: &&Depth| depth.dead > 0 && self.dispatcher.tells_failures(depth.function_id);
        let dead: HashMap<FunctionId, u64> =
            depths.iter().filter(tells).map(|depth| (depth.function_id, depth.dead)).collect();
        self.functions.retain(|id, _| dead.contains_key(id));
        let mut due = Vec::new();
        for (id, dead) in dead {
            let reading = self.functions.entry(id).or_insert_with(|| Reading::begin(dead, now, since));
            if reading.is_due(dead, now) {
                if reading.is_through {
                    *reading = reading.again(dead, now, since);
                }
                due.push((reading.begun, id));
            }
        }
        due.sort_unstable_by_key(|(begun, _)| std::cmp::Reverse(*begun));
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// True if there are more pages.
    async fn read_page(&mut self, queue: &dyn Queue, function_id: FunctionId) -> Result<bool, QueueError> {
        let Some(reading) = self.functions.get_mut(&function_id) else { return Ok(false) };
        let list = List {
            function_id: Some(function_id),
            state: Some(State::Dead),
            after: reading.next.clone(),
            messages_max: PAGE_CALLS,
        };
        let page = queue.list(list).await?;
        let (told, since) = (&self.told, reading.since);
        let is_news = |ended_at: Timestamp, id: CallId| ended_at >= since && !told.contains_key(&id);
        let news: Vec<_> = page
            .messages
            .into_iter()
            .filter(|message| message.ended_at.is_some_and(|ended_at| is_news(ended_at, message.id)))
            .collect();
        self.dispatcher.tell_dead(&news).await?;
        if self.told.len() + news.len() > TOLD_MAX {
            // Their keys keep them from being told twice.
            self.told.clear();
        }
        self.told.extend(news.iter().filter_map(|message| Some((message.id, message.ended_at?))));
        reading.is_through = page.next.is_none();
        reading.next = page.next;
        Ok(!reading.is_through)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kiln_shared::ids::AppId;
    use kiln_shared::queue::NewMessage;
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::detached::Known;
    use crate::detached::notice::DELIVERIES;
    use crate::detached::testing::{demo, queue_in};

    #[test]
    fn a_function_is_read_again_when_its_dead_change_or_have_stayed_for_long() {
        let now = Instant::now();
        let reading = Reading { is_through: true, ..Reading::begin(3, now, Timestamp::now()) };
        assert!(!reading.is_due(3, now));
        assert!(reading.is_due(4, now) && reading.is_due(2, now) && reading.is_due(3, now + READ_EVERY));
        assert!(Reading::begin(3, now, Timestamp::now()).is_due(3, now), "not through");
    }

    #[test]
    fn what_died_while_a_long_reading_went_on_is_news_to_the_next() {
        let (begun, since) = (Instant::now(), Timestamp::now());
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let next = Reading::begin(9, begun, since).again(9, begun + hours(3), since + hours(3));
        assert_eq!((next.begun, next.since), (begun + hours(3), since));
    }

    /// Stores calls that are dead a moment later, and waits for that.
    async fn late_calls(queue: &dyn Queue, function: FunctionId, count: u64) -> Vec<Depth> {
        let message = || NewMessage {
            delay: Duration::from_mins(1),
            deadline: Some(Duration::from_millis(1)),
            ..NewMessage::new(CallId::generate(), function, AppId::generate(), "x")
        };
        queue.enqueue((0..count).map(|_| message()).collect()).await.expect("stored");
        let dead = async {
            loop {
                let depths = queue.depth().await.expect("depths");
                if depths.iter().any(|depth| depth.function_id == function && depth.dead >= count) {
                    return depths;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), dead).await.expect("they die")
    }

    async fn deliveries(queue: &dyn Queue) -> usize {
        let list = List { function_id: Some(*DELIVERIES), messages_max: 500, ..List::default() };
        queue.list(list).await.expect("a page").messages.len()
    }

    #[tokio::test]
    async fn destinations_hear_once_of_calls_that_died_by_themselves() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = queue_in(&folder).await;
        let (table, function) = demo(&json!({ "kiln.dev/on-failure": "http://localhost:9/failed" }));
        let dispatcher = Dispatcher::new(Arc::clone(&queue), Known::of(table.reader()));
        let depths = late_calls(&*queue, function, 3).await;
        let mut buried = Buried::new(dispatcher.clone());
        for _ in 0..3 {
            buried.look(&*queue, &depths).await.expect("a look");
            assert_eq!(deliveries(&*queue).await, 3);
        }
        let mut other = Buried::new(dispatcher);
        other.look(&*queue, &depths).await.expect("a look");
        assert_eq!(deliveries(&*queue).await, 3, "another balancer tells nothing twice");
        let depths = late_calls(&*queue, function, 4).await;
        buried.look(&*queue, &depths).await.expect("a look");
        assert!(deliveries(&*queue).await >= 4);
    }

    #[tokio::test]
    async fn functions_without_a_destination_are_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = queue_in(&folder).await;
        let (table, function) = demo(&json!({}));
        let dispatcher = Dispatcher::new(Arc::clone(&queue), Known::of(table.reader()));
        let depths = late_calls(&*queue, function, 1).await;
        let mut buried = Buried::new(dispatcher);
        buried.look(&*queue, &depths).await.expect("a look");
        assert!(buried.functions.is_empty());
        assert_eq!(deliveries(&*queue).await, 0);
    }
}
