//! The owner task of a node's room: starts containers, evicts idle ones for others, freezes and retires.
//!
//! One task decides, so that two starts can never be granted the same memory. Room counts as free only when
//! the container that had it has ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use kiln_shared::call::Failure;
use kiln_shared::contract::environment::environment;
use kiln_shared::function::Format;
use kiln_shared::ids::NodeId;
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::climb::Step;
use super::ledger::{Demand, Ledger, Shortage};
use super::{Message, Pool, Slot, Slots, Waiter};
use crate::container::{Container, ContainerPlan, Driver, Output, OutputSource, Transport};
use crate::logs::{CallLog, Outlets};

/// How often waiting callers are looked at again.
const RECHECK: Duration = Duration::from_millis(20);
/// Reports are made at most this often: many changes become one.
const PUBLISH_PAUSE: Duration = Duration::from_millis(10);
/// How often idle containers are looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// Output is handed to the store after this long without more of it.
const LOG_QUIET: Duration = Duration::from_millis(50);
/// A line that does not go on for so long is shipped as if it had ended.
const LINE_QUIET: Duration = Duration::from_secs(1);
/// Most pieces of a container's standard output that wait for the call, each of at most 32 KiB.
const STDOUT_PIECES_MAX: usize = 8;

struct Start {
    pool: Arc<Pool>,
    /// The one it is for, where a container serves one call.
    waiter: Option<Waiter>,
    began: Instant,
    result: Result<Container, Failure>,
}

pub(super) struct Starter {
    node: NodeId,
    driver: Arc<dyn Driver>,
    slots: Slots,
    inbox: mpsc::Receiver<Message>,
    ledger: Ledger,
    /// Functions whose callers wait, in the order in which they are served.
    wanting: VecDeque<Arc<Pool>>,
    /// Since when the first of them lacks room.
    short_since: Option<Instant>,
    starts: JoinSet<Start>,
    /// One task per container: collects its output and ends with it.
    keepers: JoinSet<Demand>,
    /// Room that evicted containers are about to free, in MiB.
    leaving_mib: u64,
    report: watch::Sender<Arc<NodeReport>>,
}

impl Starter {
    pub(super) fn new(
        node: NodeId,
        driver: Arc<dyn Driver>,
        slots: Slots,
        inbox: mpsc::Receiver<Message>,
    ) -> (Self, watch::Sender<Arc<NodeReport>>) {
        let total = slots.total();
        let first = NodeReport {
            node: node.clone(),
            epoch: jiff::Timestamp::now().as_millisecond() as u64,
            sequence: 0,
            scope: ReportScope::Whole,
            draining: false,
            memory_total_mib: total.memory_mib,
            memory_committed_mib: 0,
            memory_idle_mib: 0,
            cpu_total_millis: total.cpu_millis,
            cpu_committed_millis: 0,
            calls: 0,
            functions: Vec::new(),
            gone: Vec::new(),
            images: Some(Arc::default()),
        };
        let report = watch::Sender::new(Arc::new(first));
        let reports = report.clone();
        let starter = Self {
            node,
            driver,
            slots,
            inbox,
            ledger: Ledger::new(total),
            wanting: VecDeque::new(),
            short_since: None,
            starts: JoinSet::new(),
            keepers: JoinSet::new(),
            leaving_mib: 0,
            report,
        };
        (starter, reports)
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut next_housekeeping = tokio::time::Instant::now() + HOUSEKEEPING;
        let mut next_recheck = next_housekeeping;
        // The earliest time for another report, and whether there may be one to make.
        let (mut next_publish, mut unpublished) = (tokio::time::Instant::now(), false);
        loop {
            let mut wake = next_housekeeping;
            if !self.wanting.is_empty() {
                wake = wake.min(next_recheck);
            }
            if unpublished {
                wake = wake.min(next_publish);
            }
            // Every arm is cancel-safe: receiving, joining and sleeping lose nothing when dropped.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(message) = self.inbox.recv() => self.note(message),
                Some(start) = self.starts.join_next() => match start {
                    Ok(start) => self.started(start),
                    Err(error) => tracing::error!(%error, "a container start panicked"),
                },
                Some(gone) = self.keepers.join_next() => match gone {
                    Ok(demand) => {
                        self.ledger.release(demand);
                        self.leaving_mib = self.leaving_mib.saturating_sub(demand.memory_mib);
                    }
                    Err(error) => tracing::error!(%error, "a container's keeper panicked"),
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            let now = tokio::time::Instant::now();
            if now >= next_housekeeping {
                self.housekeeping(Instant::now());
                next_housekeeping = now + HOUSEKEEPING;
            }
            self.serve_wanting(Instant::now());
            next_recheck = now + RECHECK;
            unpublished = now < next_publish;
            if !unpublished {
                self.publish();
                next_publish = now + PUBLISH_PAUSE;
            }
        }
        self.close().await;
    }

    fn note(&mut self, message: Message) {
        match message {
            Message::Wanted(pool) => self.want(pool),
            // It is on the list, or nobody waits any more.
            Message::Look(pool) => pool.nudged.store(false, Ordering::Release),
            Message::Idle => {}
            Message::Prewarm(pool, containers) => self.prewarm(&pool, containers),
            Message::Evict(Some(pool)) => evict_idle(&pool),
            Message::Evict(None) => self.slots.shared.pools.iter().for_each(|pool| evict_idle(&pool)),
        }
    }

    /// Starts containers into room that nobody else has a use for.
    fn prewarm(&mut self, pool: &Arc<Pool>, containers: u32) {
        let there = {
            let queue = pool.queue();
            queue.idle() + queue.busy() + queue.starting()
        };
        for _ in there..containers as usize {
            let has_turn = self.starts.len() < self.slots.shared.config.starts_max;
            if !has_turn || self.ledger.commit(pool.demand).is_err() {
                return;
            }
            self.begin(pool);
        }
    }

    fn want(&mut self, pool: Arc<Pool>) {
        if !self.wanting.iter().any(|other| Arc::ptr_eq(other, &pool)) {
            self.wanting.push_back(pool);
        }
    }

    /// Gives room to those who wait, in order, callers before queued calls; the first who lacks room stops the others, so that a large
    /// function is not starved by small ones.
    fn serve_wanting(&mut self, now: Instant) {
        let mut short = false;
        // Stable, so that each class keeps its order. Cached, because callers come and go meanwhile.
        self.wanting.make_contiguous().sort_by_cached_key(|pool| pool.queue().waiting() == 0);
        for _ in 0..self.wanting.len() {
            let Some(pool) = self.wanting.pop_front() else { break };
            let (needed, step, wanted) = {
                let mut queue = pool.queue();
                queue.forget_waiters(|waiter| waiter.sender.is_closed());
                let needed = if pool.serves_once() {
                    queue.wanted()
                } else {
                    queue.starts_needed(now, self.slots.shared.config.unknown_max())
                };
                let wanted = queue.wanted();
                if wanted == 0 {
                    // Under the lock: the next who waits says so.
                    pool.listed.store(false, Ordering::Release);
                }
                let containers_max = 2 * self.slots.shared.config.unknown_max();
                let is_trial = needed == 0 && !pool.serves_once();
                let step = if is_trial { queue.climb(containers_max, now) } else { Step::Stay };
                if step == Step::Down {
                    queue.surrender_one();
                }
                (needed, step, wanted)
            };
            if wanted == 0 {
                continue;
            }
            // On trial: only into room that nobody else has a use for.
            if step == Step::Up
                && self.starts.len() < self.slots.shared.config.starts_max
                && self.ledger.commit(pool.demand).is_ok()
            {
                self.begin(&pool);
            }
            for _ in 0..needed {
                if self.starts.len() >= self.slots.shared.config.starts_max {
                    break;
                }
                match self.ledger.commit(pool.demand) {
                    Ok(()) => self.begin(&pool),
                    Err(Shortage::Never) => unreachable!("callers who can never be served do not wait"),
                    Err(Shortage::Missing(missing)) => {
                        short = true;
                        self.make_room(&pool, missing, now);
                        break;
                    }
                }
            }
            if short {
                self.wanting.push_front(pool);
                break;
            }
            self.wanting.push_back(pool);
        }
        if !short {
            self.short_since = None;
        }
        self.slots.shared.pressed.store(short, Ordering::Release);
    }

    /// Evicts idle containers of others, the coldest first; if that is not enough for callers for long, one of the
    /// functions with most containers has to give one up.
    fn make_room(&mut self, wanting: &Arc<Pool>, missing: Demand, now: Instant) {
        let since = *self.short_since.get_or_insert(now);
        let mut needed_mib = missing.memory_mib.max(1).saturating_sub(self.leaving_mib);
        while needed_mib > 0 {
            let Some(coldest) = self.coldest_other(wanting) else { break };
            let Some(slot) = coldest.queue().take_coldest() else { continue };
            metrics::counter!("kiln_evictions_total").increment(1);
            self.leaving_mib += coldest.demand.memory_mib;
            needed_mib = needed_mib.saturating_sub(coldest.demand.memory_mib);
            drop(slot);
        }
        // Queued calls wait until there is room.
        let for_callers = wanting.queue().waiting() > 0;
        if needed_mib > 0
            && for_callers
            && now.duration_since(since) >= self.slots.shared.config.fairness_after
        {
            let largest = self
                .slots
                .shared
                .pools
                .iter()
                .filter(|pool| !Arc::ptr_eq(pool, wanting))
                .map(|pool| (pool.queue().busy(), Arc::clone(&pool)))
                .max_by_key(|(busy, _)| *busy);
            if let Some((_, pool)) = largest {
                pool.queue().surrender_one();
                self.short_since = Some(now);
            }
        }
    }

    fn coldest_other(&self, wanting: &Arc<Pool>) -> Option<Arc<Pool>> {
        self.slots
            .shared
            .pools
            .iter()
            .filter(|pool| !Arc::ptr_eq(pool, wanting))
            .filter_map(|pool| pool.queue().coldest().map(|since| (since, Arc::clone(&pool))))
            .min_by_key(|(since, _)| *since)
            .map(|(_, pool)| pool)
    }

    fn begin(&mut self, pool: &Arc<Pool>) {
        let mut waiter = None;
        {
            let mut queue = pool.queue();
            queue.start_begun();
            if pool.serves_once() {
                waiter = queue.take_waiter();
            }
        }
        let own = waiter.as_mut().and_then(|waiter| waiter.environment.take());
        let (pool, driver) = (Arc::clone(pool), Arc::clone(&self.driver));
        let transport = match pool.function.spec.format {
            Format::HttpStream => Transport::Socket,
            Format::Default | Format::Http | Format::Json | Format::Cloudevent => Transport::Pipes,
        };
        self.starts.spawn(async move {
            let began = Instant::now();
            let result = async {
                driver.ensure_image(&pool.function.spec.image).await?;
                let environment = match own {
                    // Only now, so that no wait comes off the deadline that the container is told.
                    Some(own) => own.made_at(Timestamp::now()),
                    None => environment(&pool.function, "/invoke"),
                };
                driver
                    .start(ContainerPlan { function: Arc::clone(&pool.function), environment, transport })
                    .await
            }
            .await;
            Start { pool, waiter, began, result }
        });
    }

    fn started(&mut self, Start { pool, waiter, began, result }: Start) {
        let took = began.elapsed();
        match result {
            Ok(mut container) => {
                let stages = container.stages;
                for (stage, time) in [
                    ("pull", stages.pull),
                    ("create", stages.create),
                    ("start", stages.start),
                    ("init", stages.init),
                ] {
                    metrics::histogram!("kiln_container_start_duration_seconds", "stage" => stage)
                        .record(time.as_secs_f64());
                }
                let spec = &pool.function.spec;
                let shared = &self.slots.shared;
                let Outlets { records, syslog } = &shared.outlets;
                let (records, tap) = (records.clone(), syslog.tap(spec));
                let log = CallLog::new(spec.app_id, spec.id, shared.limits, records, tap);
                let (stdout, stdout_reader) = match spec.format {
                    Format::HttpStream => (None, None),
                    Format::Default | Format::Http | Format::Json | Format::Cloudevent => {
                        let (sender, receiver) = mpsc::channel(STDOUT_PIECES_MAX);
                        (Some(sender), Some(receiver))
                    }
                };
                self.keepers.spawn(keep(
                    Arc::clone(&pool),
                    container.output.take(),
                    stdout,
                    container.exit.clone(),
                    log.clone(),
                ));
                let slot = Box::new(Slot {
                    container,
                    connection: None,
                    stdout: stdout_reader,
                    log,
                    frozen: false,
                    unfreezable: false,
                    unused: true,
                    start: took,
                });
                let now = Instant::now();
                if pool.serves_once() {
                    pool.queue().started_alone(true, now);
                    let unwanted = match waiter {
                        Some(waiter) => pool.deliver(waiter, slot).err(),
                        None => Some(slot),
                    };
                    if let Some(slot) = unwanted {
                        drop(slot);
                        pool.lose();
                    }
                    return;
                }
                let offer = pool.queue().started(slot, took, now, |waiter, slot| pool.deliver(waiter, slot));
                pool.settle(offer);
            }
            Err(failure) => {
                self.ledger.release(pool.demand);
                tracing::warn!(function = %pool.function.spec.id, image = %pool.function.spec.image,
                    error = %failure, detail = failure.detail.as_deref(), "a container could not be started");
                metrics::counter!("kiln_container_start_failures_total").increment(1);
                let waiter = if pool.serves_once() {
                    pool.queue().started_alone(false, Instant::now());
                    waiter
                } else {
                    pool.queue().start_failed()
                };
                let mut losers: Vec<_> = waiter.into_iter().collect();
                if failure.kind == kiln_shared::call::FailureKind::Image {
                    // The next start would fail alike: nobody needs to wait for it.
                    losers.extend(pool.queue().take_waiters());
                }
                for waiter in losers {
                    // A caller who left in the meantime needs no error.
                    drop(waiter.sender.send(Err(failure.clone())));
                }
            }
        }
    }

    /// Freezes, disconnects and retires idle containers, and forgets functions without any.
    fn housekeeping(&mut self, now: Instant) {
        let shared = Arc::clone(&self.slots.shared);
        let config = &shared.config;
        for pool in &shared.pools {
            if pool.queue().wanted() > 0 {
                // Its message may have met a full inbox.
                pool.listed.store(true, Ordering::Release);
                self.want(Arc::clone(&pool));
            }
            // A node that is being emptied keeps nothing warm.
            let idle_timeout =
                if self.report.borrow().draining { Duration::ZERO } else { pool.function.spec.idle_timeout };
            let retired = pool.queue().remove_idle(|idle| {
                let idle_for = now.saturating_duration_since(idle.since);
                if !idle.slot.is_alive() || idle_for >= idle_timeout {
                    return true;
                }
                if idle_for >= config.connection_idle_timeout {
                    idle.slot.connection = None;
                }
                if !config.freeze_after.is_zero()
                    && idle_for >= config.freeze_after
                    && !idle.slot.frozen
                    && !idle.slot.unfreezable
                {
                    match idle.slot.container.control.freeze() {
                        Ok(()) => idle.slot.frozen = true,
                        // Too early to know its freezer; the next round tries again.
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(error) => {
                            idle.slot.unfreezable = true;
                            tracing::debug!(%error, "this container cannot be frozen");
                        }
                    }
                }
                false
            });
            drop(retired);
        }
        shared.pools.retain(|_, pool| {
            let queue = pool.queue();
            let used = queue.idle() + queue.busy() + queue.starting() + queue.wanted() > 0;
            drop(queue);
            used || Arc::strong_count(pool) > 1
        });
    }

    fn publish(&mut self) {
        let mut functions = Vec::new();
        let (mut idle_mib, mut calls) = (0, 0);
        for pool in &self.slots.shared.pools {
            let queue = pool.queue();
            let function = FunctionReport {
                id: pool.function.spec.id,
                revision: pool.function.revision,
                idle: queue.idle() as u32,
                busy: queue.busy() as u32,
                starting: queue.starting() as u32,
                waiting: queue.waiting() as u32,
            };
            drop(queue);
            idle_mib += u64::from(function.idle) * pool.demand.memory_mib;
            calls += function.busy + function.waiting;
            functions.push(function);
        }
        functions.sort_unstable_by_key(|function| (function.id, function.revision));
        let committed = self.ledger.committed();
        self.report.send_if_modified(|report| {
            let same = report.functions == functions
                && report.memory_committed_mib == committed.memory_mib
                && report.calls == calls;
            if same {
                return false;
            }
            let gauges = [
                ("idle", functions.iter().map(|function| function.idle).sum::<u32>()),
                ("busy", functions.iter().map(|function| function.busy).sum()),
                ("starting", functions.iter().map(|function| function.starting).sum()),
            ];
            for (state, count) in gauges {
                metrics::gauge!("kiln_slots", "state" => state).set(f64::from(count));
            }
            metrics::gauge!("kiln_calls_waiting")
                .set(functions.iter().map(|function| f64::from(function.waiting)).sum::<f64>());
            metrics::gauge!("kiln_memory_committed_bytes").set((committed.memory_mib << 20) as f64);
            *report = Arc::new(NodeReport {
                node: self.node.clone(),
                sequence: report.sequence + 1,
                memory_committed_mib: committed.memory_mib,
                memory_idle_mib: idle_mib,
                cpu_committed_millis: committed.cpu_millis,
                calls,
                functions,
                ..(**report).clone()
            });
            true
        });
    }

    /// Removes every container and waits until the driver has done so.
    async fn close(mut self) {
        self.starts.shutdown().await;
        for pool in &self.slots.shared.pools {
            let idle = pool.queue().remove_idle(|_| true);
            drop(idle);
            drop(pool.queue().take_waiters());
        }
        self.slots.shared.pools.clear();
        self.driver.close().await;
    }
}

/// Removes the idle containers of a function.
fn evict_idle(pool: &Pool) {
    let evicted = pool.queue().remove_idle(|_| true);
    metrics::counter!("kiln_evictions_total").increment(evicted.len() as u64);
    drop(evicted);
}

/// Collects a container's output until the container ends. Returns the room it had.
async fn keep(
    pool: Arc<Pool>,
    output: Option<mpsc::Receiver<Output>>,
    stdout: Option<mpsc::Sender<Bytes>>,
    mut exit: watch::Receiver<Option<crate::container::Exit>>,
    log: CallLog,
) -> Demand {
    let collect = async move {
        let Some(mut output) = output else { return };
        let (mut held_back, mut within_line) = (false, false);
        loop {
            // Receiving from a channel is cancel-safe.
            let next = if held_back {
                match tokio::time::timeout(LOG_QUIET, output.recv()).await {
                    Ok(next) => next,
                    Err(_quiet) => {
                        within_line = log.flush();
                        held_back = false;
                        continue;
                    }
                }
            } else if within_line {
                match tokio::time::timeout(LINE_QUIET, output.recv()).await {
                    Ok(next) => next,
                    Err(_quiet) => {
                        log.end_line();
                        within_line = false;
                        continue;
                    }
                }
            } else {
                output.recv().await
            };
            let Some(Output { source, bytes }) = next else { break };
            match &stdout {
                Some(stdout) if source == OutputSource::Stdout => {
                    if let Err(mpsc::error::TrySendError::Full(bytes)) = stdout.try_send(bytes) {
                        // The container waits for its answer's reader; the log need not.
                        within_line = log.flush();
                        held_back = false;
                        // Without its reader the container is about to be removed.
                        drop(stdout.send(bytes).await);
                    }
                }
                _ => held_back = log.write(&bytes),
            }
        }
        log.flush();
        log.end_line();
        // From here on the reader of `stdout` sees its end.
    };
    collect.await;
    // The driver's end going away means the same as an exit: the container is no more.
    if exit.wait_for(Option::is_some).await.is_err() {
        tracing::debug!("a container ended without a word");
    }
    let dead = pool.queue().remove_idle(|idle| !idle.slot.is_alive());
    drop(dead);
    pool.demand
}
