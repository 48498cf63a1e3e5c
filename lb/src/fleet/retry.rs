//! What follows a refusal, or finding no node: the same node, another one, the waiting room, or the end.
//!
//! Pure. Only refusals come here: a call that may have reached a function is never tried again.

use kiln_shared::call::{Failure, FailureKind, Refusal};

use super::node::NodeSerial;
use super::placement::{NoPlace, TRIES_MAX, TriedSet};
use super::seat::Seat;
use super::trail::Trail;

/// Refusals after which a call is given up, however long it might still wait: each costs a way to a node and back.
pub const REFUSALS_MAX: u32 = 32;

/// How often a call is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Nodes that a call is tried on one after the other before it waits, the first included; 1 to 8.
    pub tries_max: usize,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { tries_max: 3 }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send the definition and the call to the same node; the seat is still good.
    SameNode,
    /// Give the seat back and ask for another.
    OtherNode,
    /// Give the seat back and wait for a place; every node may be tried again.
    Wait(WaitReason),
    /// Answer with this.
    GiveUp(Failure),
}

/// Why a call waits at the balancer, or waited in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitReason {
    /// No node is up; one is expected back.
    NoNode,
    /// No node has a slot or room.
    Full,
    /// As many calls of the function run as its limit lets.
    Concurrency,
}

impl WaitReason {
    /// The reason as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoNode => "no_node",
            Self::Full => "full",
            Self::Concurrency => "concurrency",
        }
    }

    /// The failure of a call that waited for as long as it may (503, `Retry-After`).
    pub fn failure(self) -> Failure {
        let reason = match self {
            Self::NoNode => "no node is up",
            Self::Full => "every node is full",
            Self::Concurrency => "the function's concurrency limit is reached",
        };
        unavailable(reason)
    }
}

/// A failure of a call that found no place (503, `Retry-After`): Fn's words, and the reason.
pub fn unavailable(reason: &str) -> Failure {
    let words = Failure::busy().message;
    Failure::new(FailureKind::Busy, 503, format!("{words}: {reason}")).with_detail(reason)
}

/// The tries of one call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempts {
    tried: TriedSet,
    definition_sent_to: Option<NodeSerial>,
    refusals: u32,
    any_busy: bool,
    any_unreachable: bool,
    any_ignorant: bool,
    trail: Trail,
}

impl Attempts {
    /// Before the first try.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes that are not to be tried again.
    pub fn tried(&self) -> &TriedSet {
        &self.tried
    }

    /// What happened so far.
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Notes that a node was chosen.
    pub fn seated(&mut self, seat: &Seat) {
        self.trail.seated(seat);
    }

    /// Notes a wait for a place: what refused before may have room by now.
    pub fn waited(&mut self, time: std::time::Duration) {
        self.tried = TriedSet::new();
        self.trail.waited_for(time);
    }

    /// Notes a refusal and says what follows. A node that does not know the function is sent its definition and
    /// asked once more; every other refusal ends the tries on that node for now.
    pub fn refused(&mut self, node: NodeSerial, reason: Refusal, policy: &RetryPolicy) -> Next {
        if reason == Refusal::UnknownFunction && self.definition_sent_to != Some(node) {
            self.definition_sent_to = Some(node);
            return Next::SameNode;
        }
        match reason {
            Refusal::Busy | Refusal::Draining => self.any_busy = true,
            Refusal::Unreachable => self.any_unreachable = true,
            Refusal::UnknownFunction => self.any_ignorant = true,
        }
        self.trail.refused(reason);
        self.tried.insert(node);
        self.refusals += 1;
        if self.tried.len() < policy.tries_max.clamp(1, TRIES_MAX) {
            Next::OtherNode
        } else if self.may_wait() {
            Next::Wait(WaitReason::Full)
        } else {
            Next::GiveUp(self.failure())
        }
    }

    /// What follows if placement found nothing: of a fleet of `nodes`, `expected_back` says that one which gets no
    /// calls now is expected to. A fleet of one node has its own queue: what it refused is not asked again.
    ///
    /// # Errors
    /// The call is to end with this failure: waiting would not help.
    pub fn no_place(
        &self,
        reason: NoPlace,
        nodes: usize,
        expected_back: bool,
    ) -> Result<WaitReason, Failure> {
        let refused_by_all = !self.tried.is_empty();
        match reason {
            NoPlace::TooLarge => Err(Failure::cannot_fit()),
            NoPlace::Full => Ok(WaitReason::Full),
            NoPlace::NoNode if refused_by_all && nodes > 1 && self.may_wait() => Ok(WaitReason::Full),
            NoPlace::NoNode if refused_by_all => Err(self.failure()),
            NoPlace::NoNode if expected_back => Ok(WaitReason::NoNode),
            NoPlace::NoNode => Err(WaitReason::NoNode.failure()),
        }
    }

    /// Nodes that know no definition will not know it later.
    fn may_wait(&self) -> bool {
        self.refusals < REFUSALS_MAX && (self.any_busy || self.any_unreachable)
    }

    /// The failure of a call that is given up after refusals.
    pub fn failure(&self) -> Failure {
        let tries = self.tried.len();
        match (self.any_busy, self.any_unreachable, self.any_ignorant) {
            (false, false, true) => {
                Failure::internal(format!("{tries} nodes did not accept the function's definition"))
            }
            (false, true, _) => unavailable("no node could be reached"),
            _ => unavailable("every node that was tried refused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy { tries_max: 3 };

    fn node(number: u32) -> NodeSerial {
        NodeSerial(number)
    }

    #[test]
    fn a_busy_node_is_followed_by_others_and_then_by_the_waiting_room() {
        let mut attempts = Attempts::new();
        assert_eq!(attempts.refused(node(1), Refusal::Busy, &POLICY), Next::OtherNode);
        assert_eq!(attempts.refused(node(2), Refusal::Draining, &POLICY), Next::OtherNode);
        assert!(attempts.tried().contains(node(1)) && attempts.tried().contains(node(2)));
        assert_eq!(attempts.refused(node(3), Refusal::Busy, &POLICY), Next::Wait(WaitReason::Full));
        attempts.waited(std::time::Duration::from_millis(3));
        assert!(attempts.tried().is_empty());
        assert_eq!((attempts.trail().waits(), attempts.trail().waited().as_millis()), (1, 3));
    }

    #[test]
    fn nodes_that_are_all_lost_at_once_do_not_end_a_call_that_none_of_them_got() {
        let mut attempts = Attempts::new();
        for number in 1..3 {
            assert_eq!(attempts.refused(node(number), Refusal::Unreachable, &POLICY), Next::OtherNode);
        }
        assert_eq!(attempts.refused(node(3), Refusal::Unreachable, &POLICY), Next::Wait(WaitReason::Full));
    }

    #[test]
    fn a_node_without_the_definition_is_tried_twice() {
        let mut attempts = Attempts::new();
        assert_eq!(attempts.refused(node(1), Refusal::UnknownFunction, &POLICY), Next::SameNode);
        assert!(attempts.tried().is_empty());
        assert_eq!(attempts.refused(node(1), Refusal::UnknownFunction, &POLICY), Next::OtherNode);
        assert!(attempts.tried().contains(node(1)));
        assert_eq!(attempts.refused(node(2), Refusal::UnknownFunction, &POLICY), Next::SameNode);
        assert_eq!(attempts.refused(node(2), Refusal::Busy, &POLICY), Next::OtherNode);
    }

    #[test]
    fn nodes_that_never_learn_the_function_are_kilns_fault() {
        let mut attempts = Attempts::new();
        for number in 1..=2 {
            assert_eq!(attempts.refused(node(number), Refusal::UnknownFunction, &POLICY), Next::SameNode);
            assert_eq!(attempts.refused(node(number), Refusal::UnknownFunction, &POLICY), Next::OtherNode);
        }
        assert_eq!(attempts.no_place(NoPlace::NoNode, 2, false).unwrap_err().status, 500);
    }

    #[test]
    fn what_the_only_node_refused_is_not_asked_again() {
        let mut attempts = Attempts::new();
        assert_eq!(attempts.refused(node(1), Refusal::Unreachable, &POLICY), Next::OtherNode);
        let failure = attempts.no_place(NoPlace::NoNode, 1, true).unwrap_err();
        assert_eq!((failure.status, failure.detail.as_deref()), (503, Some("no node could be reached")));
        assert_eq!(attempts.no_place(NoPlace::NoNode, 2, true), Ok(WaitReason::Full));
    }

    #[test]
    fn without_a_node_a_call_waits_only_if_one_is_expected_back() {
        let attempts = Attempts::new();
        assert_eq!(attempts.no_place(NoPlace::NoNode, 3, true), Ok(WaitReason::NoNode));
        let failure = attempts.no_place(NoPlace::NoNode, 3, false).unwrap_err();
        assert_eq!((failure.status, failure.kind), (503, FailureKind::Busy));
        assert!(failure.message.ends_with("no node is up"), "{}", failure.message);
        assert_eq!(attempts.no_place(NoPlace::TooLarge, 3, true), Err(Failure::cannot_fit()));
    }

    #[test]
    fn refusals_are_bounded_even_if_the_policy_is_not() {
        let mut attempts = Attempts::new();
        let policy = RetryPolicy { tries_max: usize::MAX };
        for round in 0.. {
            let nexts: Vec<Next> =
                (1..=8).map(|n| attempts.refused(node(n), Refusal::Busy, &policy)).collect();
            assert!(nexts[..7].iter().all(|next| *next == Next::OtherNode));
            if let Next::GiveUp(failure) = &nexts[7] {
                assert_eq!((failure.status, (round + 1) * 8), (503, REFUSALS_MAX));
                break;
            }
            attempts.waited(std::time::Duration::ZERO);
        }
        assert_eq!(attempts.trail().tries().count(), 0, "no seat was noted");
    }
}
