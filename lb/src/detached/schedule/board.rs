//! What a balancer knows of the schedules: how far each was dealt with, and when its next tick is due.
//!
//! Pure: the time is passed in. Invariant: how far a schedule was dealt with moves forward only, and begins with its
//! last change.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use kiln_shared::ids::TriggerId;
use kiln_shared::model::ScheduledCall;
use kiln_shared::schedule::Due;

use crate::route::ScheduleRoute;

#[derive(Debug)]
struct Entry {
    route: Arc<ScheduleRoute>,
    call: ScheduledCall,
    /// All ticks until here are dealt with.
    last: Timestamp,
    next_due: Option<Timestamp>,
}

/// All schedules.
#[derive(Debug, Default)]
pub(super) struct Board {
    entries: HashMap<TriggerId, Entry>,
}

impl Board {
    /// Takes over what the catalog has now. O(schedules), some 10 ns for each that did not change.
    pub(super) fn follow<'a>(&mut self, routes: impl Iterator<Item = &'a Arc<ScheduleRoute>>) {
        let mut old = std::mem::take(&mut self.entries);
        for route in routes {
            let id = route.trigger.id;
            let entry = match old.remove(&id) {
                Some(entry) if Arc::ptr_eq(&entry.route, route) => Some(entry),
                known => Entry::new(route, known.map(|known| known.last)),
            };
            self.entries.extend(entry.map(|entry| (id, entry)));
        }
    }

    /// Schedules of which something is due, at most `count_max`; the rest is due afterwards.
    pub(super) fn due(&self, now: Timestamp, count_max: usize) -> Vec<(TriggerId, Due)> {
        let ready = self.entries.iter().filter(|(_, entry)| entry.next_due.is_some_and(|due| due <= now));
        ready.filter_map(|(id, entry)| Some((*id, entry.due(now)?))).take(count_max).collect()
    }

    /// All ticks of a schedule until this one are dealt with.
    pub(super) fn dealt_with(&mut self, id: TriggerId, tick: Timestamp) {
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.last < tick) {
            entry.last = tick;
            entry.next_due = entry.call.schedule.next_due(id, tick);
        }
    }

    /// What is due of one schedule, as far as is known now.
    pub(super) fn due_of(&self, id: TriggerId, now: Timestamp) -> Option<Due> {
        self.entries.get(&id)?.due(now)
    }

    /// What a schedule calls.
    pub(super) fn call(&self, id: TriggerId) -> Option<(&ScheduleRoute, &ScheduledCall)> {
        self.entries.get(&id).map(|entry| (&*entry.route, &entry.call))
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.entries.values().filter_map(|entry| entry.next_due).min()
    }
}

impl Entry {
    /// None for what cannot be read, which only another version of Kiln can have stored.
    fn new(route: &Arc<ScheduleRoute>, last: Option<Timestamp>) -> Option<Self> {
        let trigger = &route.trigger;
        let call = match trigger.scheduled() {
            Ok(call) => call?,
            Err(error) => {
                tracing::warn!(trigger = %trigger.id, %error, "this schedule cannot be read; it is not fired");
                return None;
            }
        };
        // A change begins anew: what an old cron line missed, or a new one would have, is not made up for.
        let last = last.map_or(trigger.updated_at, |last| last.max(trigger.updated_at));
        let next_due = call.schedule.next_due(trigger.id, last);
        Some(Self { route: Arc::clone(route), call, last, next_due })
    }

    fn due(&self, now: Timestamp) -> Option<Due> {
        self.call.schedule.due(self.route.trigger.id, self.last, now)
    }
}
