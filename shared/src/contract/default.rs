//! `default`: one container per call, body on STDIN, answer on STDOUT (`spec/container-contract.md`, B2).
//!
//! The request needs no frame. Status 200 is out with the first byte of output; a container that fails without
//! output gets its caller 502, a later failure cuts the answer off.

use bytes::BytesMut;

use crate::http1::HeaderBlock;

use super::ContainerExit;
use super::answer::DEFAULT_CONTENT_TYPE;
use super::pipe::Event;

#[derive(Debug, Default)]
pub(super) struct AnswerDecoder {
    begun: bool,
}

impl AnswerDecoder {
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Option<Event> {
        if input.is_empty() {
            return None;
        }
        Some(if self.begun { Event::Body(input.split().freeze()) } else { self.begin() })
    }

    /// `None`: the container failed.
    pub(super) fn finish(&mut self, exit: ContainerExit) -> Option<Event> {
        if exit != ContainerExit::Code(0) {
            return None;
        }
        Some(if self.begun { Event::End } else { self.begin() })
    }

    fn begin(&mut self) -> Event {
        self.begun = true;
        let mut headers = HeaderBlock::new();
        headers.push_valid(b"Content-Type", DEFAULT_CONTENT_TYPE);
        Event::Head { status: 200, headers }
    }
}
