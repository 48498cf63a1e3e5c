//! What operators see, and forgetting what they need no longer see.

use std::collections::BTreeMap;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, MessageView, Page, Purge, QueueError, State};

use super::reply::{Fields, rows};
use super::reserve::lane;
use super::{Redis, script};
use crate::engine::{PURGED_MAX, Row, millis, page_begin, parse, stored, time};

/// Messages that one step of a list looks at; meanwhile the server does nothing else.
const LOOKED_AT_MAX: usize = 1_000;

/// What `lua/depth.lua` answers: lanes with their messages, due ones and first time; running and dead by function.
type Answer = (Vec<(String, u64, u64, i64)>, Vec<(String, u64)>, Vec<(String, u64)>);

impl Redis {
    pub(super) async fn inspect(&self, id: CallId) -> Result<Option<MessageView>, QueueError> {
        let row = self.rows(&[id]).await?.pop();
        Ok(row.map(|row| row.view(self.core.time.now_millis())).transpose()?)
    }

    pub(super) async fn list(&self, list: &List) -> Result<Page, QueueError> {
        let now = self.core.time.now_millis();
        let rows = self.scan(list, page_begin(list)?, now).await?;
        let next = rows.get(list.messages_max.saturating_sub(1)).map(|last| last.seq.to_string());
        let messages = rows.iter().map(|row| row.view(now)).collect::<Result<_, _>>()?;
        Ok(Page { messages, next })
    }

    /// Messages after a sequence number, step by step: it takes about a millisecond of the server for each thousand
    /// messages of the listed states that it passes.
    pub(super) async fn scan(&self, list: &List, after_seq: i64, now: i64) -> Result<Vec<Row>, QueueError> {
        let (states, when): (&[i64], &str) = match list.state {
            None => (&[stored::WAITING, stored::RUNNING, stored::DONE, stored::DEAD, stored::CANCELLED], ""),
            Some(State::Queued) => (&[stored::WAITING], "due"),
            Some(State::Delayed) => (&[stored::WAITING], "later"),
            Some(State::Running) => (&[stored::RUNNING], ""),
            Some(State::Done) => (&[stored::DONE], ""),
            Some(State::Dead) => (&[stored::DEAD], ""),
            Some(State::Cancelled) => (&[stored::CANCELLED], ""),
        };
        let function = list.function_id.as_ref().map_or("", FunctionId::as_str);
        let mut after = after_seq.to_string();
        let mut found: Vec<Row> = Vec::new();
        while found.len() < list.messages_max {
            let wanted = list.messages_max - found.len();
            let (next, some): (String, Vec<Fields>) = self
                .server
                .run(&script::SCAN, |command| {
                    command
                        .arg(now)
                        .arg(&after)
                        .arg(LOOKED_AT_MAX)
                        .arg(wanted)
                        .arg(function)
                        .arg(when)
                        .arg(states);
                })
                .await?;
            found.extend(rows(some)?);
            if next.is_empty() {
                break;
            }
            after = next;
        }
        Ok(found)
    }

    pub(super) async fn depth(&self) -> Result<Vec<Depth>, QueueError> {
        let now = self.core.time.now_millis();
        let (lanes, running, dead): Answer =
            self.server.run(&script::DEPTH, |command| _ = command.arg(now)).await?;
        let mut depths = BTreeMap::new();
        for (name, messages, due, first_due_at) in lanes {
            let depth = of(&mut depths, lane(&name)?.1);
            depth.queued += due;
            depth.delayed += messages - due;
            if due > 0 {
                let first = time(first_due_at)?;
                depth.oldest_due_at = Some(depth.oldest_due_at.map_or(first, |oldest| oldest.min(first)));
            }
        }
        for (function, messages) in running {
            of(&mut depths, parse(&function)?).running = messages;
        }
        for (function, messages) in dead {
            of(&mut depths, parse(&function)?).dead = messages;
        }
        Ok(depths.into_values().collect())
    }

    pub(super) async fn purge(&self, purge: Purge) -> Result<u64, QueueError> {
        let now = self.core.time.now_millis();
        let (age, states): (_, &[i64]) = match purge {
            Purge::Finished(age) => (age, &[stored::DONE, stored::CANCELLED]),
            Purge::Dead(age) => (age, &[stored::DEAD]),
        };
        let write = |command: &mut redis::Cmd| _ = command.arg(now - millis(age)).arg(PURGED_MAX).arg(states);
        self.server.run(&script::PURGE, write).await
    }
}

/// What is known of a function.
fn of(depths: &mut BTreeMap<FunctionId, Depth>, function_id: FunctionId) -> &mut Depth {
    depths.entry(function_id).or_insert(Depth {
        function_id,
        queued: 0,
        delayed: 0,
        running: 0,
        dead: 0,
        oldest_due_at: None,
    })
}
