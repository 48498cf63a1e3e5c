//! A call's place on a node: found at once, or waited for, and handed on when the call ends.
//!
//! Owns the wait and its deadline; which node it is and whose turn it is are [`crate::fleet`]'s.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError, BodyStream};
use kiln_shared::call::{CallResponse, Failure, FailureKind, Refusal};

use super::Edge;
use crate::fleet::concurrency::enter;
use crate::fleet::{Attempts, Demand, Limit, Node, RoomFull, Seat, WaitReason, WaitingRoom, unavailable};
use crate::guard::Admitted;

/// How long a call waits for a node to come back if none is up: longer than it takes to notice that a link broke and to
/// make another, and not so long that callers of a fleet that is gone pile up. A fleet of which no node is expected
/// back is said to be so at once.
const OUTAGE_WAIT_MAX: Duration = Duration::from_secs(2);

impl Edge {
    /// A place for a call that arrived at `received`. `wait` sends it to the waiting room without a look around: what
    /// could be asked has refused. Calls whose function others wait for already go behind them.
    ///
    /// # Errors
    /// There is none within the time that calls may wait, or waiting would not help.
    pub(super) async fn seat(
        &self,
        demand: &Demand,
        limit: Option<&Limit>,
        attempts: &mut Attempts,
        wait: Option<WaitReason>,
        received: Instant,
    ) -> Result<Held, Failure> {
        let found = match wait {
            Some(reason) => Err(reason),
            None => self.look(demand, limit, attempts)?,
        };
        let seat = match found {
            Ok(seat) => seat,
            Err(reason) => self.wait(demand, limit, attempts, reason, received).await?,
        };
        attempts.seated(&seat);
        self.counters.placed(seat.reason());
        let room = self.with_readers(|_, fleet| Arc::clone(fleet.room()));
        Ok(Held { seat: Some(seat), room })
    }

    /// A place that is there now, or why to wait.
    fn look(
        &self,
        demand: &Demand,
        limit: Option<&Limit>,
        attempts: &Attempts,
    ) -> Result<Result<Seat, WaitReason>, Failure> {
        self.with_readers(|_, fleet| {
            if fleet.room().is_waited_for(&demand.function) {
                return Ok(Err(WaitReason::Full));
            }
            let Ok(running) = enter(limit, || fleet.view().calls_of(demand)) else {
                return Ok(Err(WaitReason::Concurrency));
            };
            match fleet.seat(demand, attempts.tried(), Instant::now()) {
                Ok(seat) => Ok(Ok(seat.with_running(running))),
                Err(reason) => {
                    let view = fleet.view();
                    let expected = view.expects_a_node_back() || self.is_young();
                    attempts.no_place(reason, view.members().len(), expected).map(Err)
                }
            }
        })
    }

    /// True if a call that arrived at `received` may not wait any longer, here or on a node.
    pub(super) fn is_late(&self, received: Instant) -> bool {
        let wait_max = self.config.wait_max;
        !wait_max.is_zero() && received.elapsed() >= wait_max
    }

    /// True while nodes may still be on their way to a balancer that has just started: those of its earlier life have
    /// to notice first that it is gone.
    fn is_young(&self) -> bool {
        self.born.elapsed() < self.config.nodes_within
    }

    async fn wait(
        &self,
        demand: &Demand,
        limit: Option<&Limit>,
        attempts: &mut Attempts,
        reason: WaitReason,
        received: Instant,
    ) -> Result<Seat, Failure> {
        let room = self.with_readers(|_, fleet| Arc::clone(fleet.room()));
        let now = Instant::now();
        let deadline = match reason {
            WaitReason::NoNode => {
                let outage_max = if self.is_young() { self.config.nodes_within } else { OUTAGE_WAIT_MAX };
                (received + self.config.wait_max).min(now + outage_max)
            }
            WaitReason::Full | WaitReason::Concurrency => received + self.config.wait_max,
        };
        let waiting =
            room.enter(*demand, limit.cloned(), now).map_err(|full| no_room_to_wait(full, reason))?;
        let seat = tokio::time::timeout_at(deadline.into(), waiting).await;
        let waited = now.elapsed();
        attempts.waited(waited);
        self.counters.waited(waited);
        seat.map_err(|_elapsed| reason.failure())
    }
}

fn no_room_to_wait(full: RoomFull, reason: WaitReason) -> Failure {
    let mut failure = unavailable(&full.to_string());
    failure.detail = Some(format!("{full}; it was to wait because of: {}", reason.as_str()));
    failure
}

/// A seat that is handed on to who waits when its call ends.
#[derive(Debug)]
pub(super) struct Held {
    /// Taken when it is dropped.
    seat: Option<Seat>,
    room: Arc<WaitingRoom>,
}

impl Held {
    fn seat(&self) -> &Seat {
        self.seat.as_ref().expect("it is taken only when it is dropped")
    }

    pub(super) fn node(&self) -> &Node {
        self.seat().node()
    }

    pub(super) fn answered(&self) {
        self.seat().answered();
    }

    /// What a failed call says of its node: that it was lost with it, that it is there, or nothing.
    pub(super) fn failed(&self, kind: FailureKind) {
        match kind {
            FailureKind::NodeLost => self.seat().lost(),
            FailureKind::Cancelled
            | FailureKind::BadRequest
            | FailureKind::RequestTooLarge
            | FailureKind::Unreadable => {}
            _ => self.seat().answered(),
        }
    }

    pub(super) fn refused(&self, reason: Refusal) {
        self.seat().refuse(reason, Instant::now());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.room.give_back(seat, Instant::now());
        }
    }
}

/// Keeps the call's place on its node and under the limit until the answer's last byte is sent.
pub(super) fn hold_place(response: CallResponse, held: Held, admitted: Admitted) -> CallResponse {
    let CallResponse { status, headers, body, stages } = response;
    let body = match body {
        Body::Stream { stream, length } => {
            Body::Stream { stream: Box::pin(Seated { stream, _held: held, _admitted: admitted }), length }
        }
        whole => whole,
    };
    CallResponse { status, headers, body, stages }
}

struct Seated {
    stream: BodyStream,
    _held: Held,
    _admitted: Admitted,
}

impl http_body::Body for Seated {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.stream.as_mut().poll_frame(context)
    }
}
