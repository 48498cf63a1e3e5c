//! The queue as people and the tender see it.

use std::collections::BTreeMap;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, MessageView, Page, QueueError};

use super::Machine;
use super::store::Message;
use crate::engine::{Horizon, page_begin, time};

impl Machine {
    pub(super) fn inspect(&self, id: CallId, now: i64) -> Result<Option<MessageView>, QueueError> {
        let message = self.store.by_id(id);
        message.map(|message| message.row.view(now)).transpose().map_err(Self::broken)
    }

    pub(super) fn list(&self, list: &List, now: i64) -> Result<Page, QueueError> {
        let of_function = |message: &&Message| list.function_id.is_none_or(|id| message.function_id == id);
        let mut page = Page::default();
        for message in self.store.after(page_begin(list)?).filter(of_function) {
            let view = message.row.view(now).map_err(Self::broken)?;
            if list.state.is_none_or(|state| view.state == state) {
                page.messages.push(view);
                if page.messages.len() == list.messages_max {
                    page.next = Some(message.row.seq.to_string());
                    break;
                }
            }
        }
        Ok(page)
    }

    pub(super) fn depth(&self, now: i64) -> Result<Vec<Depth>, QueueError> {
        let mut depths: BTreeMap<FunctionId, Depth> = BTreeMap::new();
        let mut of = |function_id, add: &dyn Fn(&mut Depth)| {
            let none = Depth { function_id, queued: 0, delayed: 0, running: 0, dead: 0, oldest_due_at: None };
            add(depths.entry(function_id).or_insert(none));
        };
        for (function, queued, delayed, oldest) in self.store.depths(now) {
            let oldest = oldest.map(time).transpose().map_err(Self::broken)?;
            of(function, &|depth| {
                depth.queued += queued;
                depth.delayed += delayed;
                depth.oldest_due_at = depth.oldest_due_at.into_iter().chain(oldest).min();
            });
        }
        for (_, message) in self.store.running() {
            of(message.function_id, &|depth| depth.running += 1);
        }
        for function in self.store.dead_functions() {
            of(function, &|depth| depth.dead += 1);
        }
        Ok(depths.into_values().collect())
    }

    /// What happens next by itself.
    pub(crate) fn horizon(&self, now: i64) -> Horizon {
        Horizon {
            due_at: self.store.first_due(),
            next_due_at: self.store.next_due(now),
            lease_ends_at: self.store.first_lease_end(),
            deadline_at: self.store.first_deadline(),
        }
    }
}
