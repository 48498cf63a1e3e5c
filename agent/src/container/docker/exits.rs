//! Who has ended, and how: one event stream of the engine for all containers of this driver.
//!
//! Owns the `exit` watches that containers carry. Costs nothing while nothing ends. When the stream breaks (the
//! engine restarted), it is taken up again, and what ended meanwhile is found by asking for all of them once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::EventMessage;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, explain};
use super::labels::Identity;
use crate::container::Exit;

/// Exit code of a process that was killed by SIGKILL: the kernel for memory, the driver, or somebody by hand.
const KILLED: i64 = 137;

/// How long the engine may take to say `oom` after it said `die`: the two come from different threads.
const OOM_GRACE: Duration = Duration::from_millis(20);

/// First and longest wait before the event stream is taken up again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Every container that has not been removed, by name.
#[derive(Debug, Default)]
pub(super) struct Exits {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    sender: watch::Sender<Option<Exit>>,
    /// The kernel killed a process in it for its memory.
    out_of_memory: bool,
}

impl Exits {
    /// Begins to tell how `name` ends: after it was made, before it starts.
    pub(super) fn register(&self, name: &str) -> watch::Receiver<Option<Exit>> {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(name.to_owned(), Entry { sender, out_of_memory: false });
        receiver
    }

    /// Ends the watch of a container that is removed; whoever still looks sees how it ended.
    pub(super) fn forget(&self, name: &str) {
        if let Some(entry) = self.lock().remove(name) {
            settle(&entry, Exit::Code(KILLED));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark_out_of_memory(&self, name: &str) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.out_of_memory = true;
        }
    }

    /// Settles `name`, unless its code leaves open whether it was for memory: then returns true.
    fn ended(&self, name: &str, code: i64) -> bool {
        let entries = self.lock();
        let Some(entry) = entries.get(name) else { return false };
        if entry.out_of_memory && code != 0 {
            settle(entry, Exit::OutOfMemory);
        } else if code == KILLED {
            return true;
        } else {
            settle(entry, Exit::Code(code));
        }
        false
    }

    /// Settles `name` by what the engine says now.
    async fn settle_by_inspection(&self, engine: &Engine, name: &str) {
        let exit = match engine.inspect_container(name).await {
            Ok(answer) => {
                let state = answer.state.unwrap_or_default();
                if state.oom_killed == Some(true) {
                    Exit::OutOfMemory
                } else {
                    state.exit_code.map_or(Exit::Unknown, Exit::Code)
                }
            }
            Err(_) => Exit::Unknown,
        };
        if let Some(entry) = self.lock().get(name) {
            settle(entry, if entry.out_of_memory { Exit::OutOfMemory } else { exit });
        }
    }

    /// Finds what ended while nobody listened.
    async fn reconcile(&self, engine: &Engine, identity: &Identity) -> Result<(), bollard::errors::Error> {
        // Known names first: one that is made after the list was taken must not look gone.
        let running: Vec<String> = {
            let entries = self.lock();
            entries
                .iter()
                .filter(|(_, entry)| entry.sender.borrow().is_none())
                .map(|(name, _)| name.clone())
                .collect()
        };
        if running.is_empty() {
            return Ok(());
        }
        let listed = engine.list_containers(&identity.instance_filter()).await?;
        let alive: HashSet<&str> = listed
            .iter()
            .filter(|container| {
                use bollard::models::ContainerSummaryStateEnum as State;
                matches!(
                    container.state,
                    Some(State::CREATED | State::RUNNING | State::PAUSED | State::RESTARTING)
                )
            })
            .filter_map(|container| {
                container.names.as_ref()?.first().map(|name| name.trim_start_matches('/'))
            })
            .collect();
        for name in running.iter().filter(|name| !alive.contains(name.as_str())) {
            self.settle_by_inspection(engine, name).await;
        }
        Ok(())
    }
}

/// The first word on how a container ended stands.
fn settle(entry: &Entry, exit: Exit) {
    entry.sender.send_if_modified(|current| {
        let first = current.is_none();
        if first {
            *current = Some(exit);
        }
        first
    });
}

/// Listens to the engine until `stop`.
pub(super) async fn watch_exits(
    exits: Arc<Exits>,
    engine: Engine,
    identity: Identity,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let label = identity.instance_filter();
    let mut since = unix_seconds();
    let mut retry = RETRY_MIN;
    loop {
        let mut events = std::pin::pin!(engine.deaths(&label, since));
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                // Cancel-safe: the stream keeps what it has not given.
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    retry = RETRY_MIN;
                    since = event.time.map_or(since, i64::unsigned_abs);
                    handle(&exits, &engine, &tasks, event);
                }
                Some(Err(error)) => {
                    tracing::debug!(error = explain(&error), "the engine's event stream broke");
                    break;
                }
                None => break,
            }
        }
        // What happens from here on is replayed by the next stream; what happened before, the list shows.
        let resume = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(RETRY_MAX);
            let resume = unix_seconds();
            match exits.reconcile(&engine, &identity).await {
                Ok(()) => break resume,
                Err(error) => tracing::debug!(error = explain(&error), "the engine does not answer"),
            }
        };
        since = resume;
    }
}

fn handle(exits: &Arc<Exits>, engine: &Engine, tasks: &TaskTracker, event: EventMessage) {
    let Some(attributes) = event.actor.and_then(|actor| actor.attributes) else { return };
    let Some(name) = attributes.get("name") else { return };
    match event.action.as_deref() {
        Some("oom") => exits.mark_out_of_memory(name),
        Some("die") => {
            let code = attributes.get("exitCode").and_then(|code| code.parse().ok()).unwrap_or(KILLED);
            if exits.ended(name, code) {
                let (exits, engine, name) = (Arc::clone(exits), engine.clone(), name.clone());
                tasks.spawn(async move {
                    tokio::time::sleep(OOM_GRACE).await;
                    exits.settle_by_inspection(&engine, &name).await;
                });
            }
        }
        _ => {}
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_kill_is_told_apart_from_an_exit_code() {
        let exits = Exits::default();
        let plain = exits.register("plain");
        let memory = exits.register("memory");
        assert!(!exits.ended("plain", 7));
        exits.mark_out_of_memory("memory");
        assert!(!exits.ended("memory", KILLED));
        assert_eq!(*plain.borrow(), Some(Exit::Code(7)));
        assert_eq!(*memory.borrow(), Some(Exit::OutOfMemory));
    }

    #[test]
    fn a_survived_memory_kill_does_not_spoil_a_clean_end() {
        let exits = Exits::default();
        let watch = exits.register("one");
        exits.mark_out_of_memory("one");
        assert!(!exits.ended("one", 0));
        assert_eq!(*watch.borrow(), Some(Exit::Code(0)));
    }

    #[test]
    fn a_kill_without_a_reason_is_left_open() {
        let exits = Exits::default();
        let watch = exits.register("one");
        assert!(exits.ended("one", KILLED));
        assert_eq!(*watch.borrow(), None);
    }

    #[test]
    fn a_removed_container_has_ended_for_whoever_still_looks() {
        let exits = Exits::default();
        let watch = exits.register("one");
        exits.forget("one");
        assert_eq!(*watch.borrow(), Some(Exit::Code(KILLED)));
    }

    #[test]
    fn the_first_word_on_an_end_stands() {
        let exits = Exits::default();
        let watch = exits.register("one");
        assert!(!exits.ended("one", 3));
        exits.forget("one");
        assert_eq!(*watch.borrow(), Some(Exit::Code(3)));
    }
}
