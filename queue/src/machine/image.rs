//! A machine as bytes, and back: a head, then a piece for each message.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Machine;
use super::store::Message;
use crate::engine::{Broken, Row, parse, priority};
use crate::fair::Turns;

/// All but the messages.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    latest_millis: i64,
    last_seq: i64,
    turns: Turns,
}

/// A message without the bytes of what it carries.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    row: Row,
    key: Option<String>,
}

/// A machine as it was at one moment. What messages carry is shared with the machine, not copied.
#[derive(Debug)]
pub(crate) struct Image {
    head: Head,
    messages: Vec<Message>,
}

impl Image {
    /// The head, and of each message its piece, envelope and payload.
    pub(crate) fn apart(self) -> (Head, impl Iterator<Item = (Piece, String, Bytes)>) {
        let messages = self
            .messages
            .into_iter()
            .map(|message| (Piece { row: message.row, key: message.key }, message.envelope, message.payload));
        (self.head, messages)
    }
}

impl Machine {
    /// How it is now.
    pub(crate) fn image(&self) -> Image {
        let head = Head {
            latest_millis: self.latest_millis,
            last_seq: self.store.last_seq(),
            turns: self.turns.clone(),
        };
        Image { head, messages: self.store.after(i64::MIN).cloned().collect() }
    }

    /// Begins as the head says, without messages.
    pub(crate) fn from_head(head: Head) -> Self {
        let mut machine = Self { latest_millis: head.latest_millis, turns: head.turns, ..Self::default() };
        machine.store.number_after(head.last_seq);
        machine
    }

    /// Adds a message of an image.
    ///
    /// # Errors
    /// It cannot be what a machine wrote.
    pub(crate) fn restore(&mut self, piece: Piece, envelope: String, payload: Bytes) -> Result<(), Broken> {
        let Piece { row, key } = piece;
        let message = Message {
            id: parse(&row.id)?,
            function_id: parse(&row.function_id)?,
            priority: priority(row.priority)?,
            row,
            key,
            envelope,
            payload,
        };
        self.store.insert(message);
        Ok(())
    }
}
