//! What follows a refusal: the same node, another one, or the end.
//!
//! Pure. Only refusals come here: a call that may have reached a function is never tried again.

use std::borrow::Cow;

use kiln_shared::call::{Failure, Refusal};

use super::node::NodeSerial;
use super::placement::{NoPlace, TRIES_MAX, TriedSet};

/// How often a call is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Nodes that a call is tried on, the first included; 1 to 8.
    pub tries_max: usize,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { tries_max: 3 }
    }
}

/// What to do after a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send the definition and the call to the same node; the seat is still good.
    SameNode,
    /// Give the seat back and ask for another.
    OtherNode,
    /// Answer with this.
    GiveUp(Failure),
}

/// The tries of one call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempts {
    tried: TriedSet,
    definition_sent_to: Option<NodeSerial>,
    any_busy: bool,
    any_unreachable: bool,
    any_ignorant: bool,
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

    /// Notes a refusal and says what follows. A node that does not know the function is sent its definition and
    /// asked once more; every other refusal ends the tries on that node.
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
        self.tried.insert(node);
        if self.tried.len() < policy.tries_max.clamp(1, TRIES_MAX) {
            Next::OtherNode
        } else {
            Next::GiveUp(self.failure("every node that was tried refused"))
        }
    }

    /// The failure of a call that has no node left. Busy (503, `Retry-After`) unless the function fits nowhere
    /// (400) or all nodes that were reached went on not knowing it (500).
    pub fn no_place(&self, reason: NoPlace) -> Failure {
        match reason {
            NoPlace::TooLarge => Failure::cannot_fit(),
            NoPlace::NoNode if self.tried.is_empty() => Failure::busy().with_detail("no node is up"),
            NoPlace::NoNode => self.failure("every node that is up refused"),
        }
    }

    fn failure(&self, detail: &'static str) -> Failure {
        let tries = self.tried.len();
        let detail: Cow<'static, str> = match (self.any_busy, self.any_unreachable, self.any_ignorant) {
            (false, false, true) => {
                return Failure::internal(format!("{tries} nodes did not accept the function's definition"));
            }
            (false, true, _) => format!("no node could be reached in {tries} tries").into(),
            _ => detail.into(),
        };
        Failure::busy().with_detail(detail)
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::call::FailureKind;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy { tries_max: 3 };

    fn node(number: u32) -> NodeSerial {
        NodeSerial(number)
    }

    fn given_up(next: Next) -> Failure {
        match next {
            Next::GiveUp(failure) => failure,
            other => panic!("expected the end, got {other:?}"),
        }
    }

    #[test]
    fn a_busy_node_is_followed_by_others_and_then_by_503() {
        let mut attempts = Attempts::new();
        assert_eq!(attempts.refused(node(1), Refusal::Busy, &POLICY), Next::OtherNode);
        assert_eq!(attempts.refused(node(2), Refusal::Draining, &POLICY), Next::OtherNode);
        assert!(attempts.tried().contains(node(1)) && attempts.tried().contains(node(2)));
        let failure = given_up(attempts.refused(node(3), Refusal::Busy, &POLICY));
        assert_eq!((failure.status, failure.kind), (503, FailureKind::Busy));
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
        assert_eq!(attempts.no_place(NoPlace::NoNode).status, 500);
    }

    #[test]
    fn a_fleet_out_of_reach_is_a_503_that_says_so_to_the_operator() {
        let mut attempts = Attempts::new();
        assert_eq!(attempts.refused(node(1), Refusal::Unreachable, &POLICY), Next::OtherNode);
        let failure = attempts.no_place(NoPlace::NoNode);
        assert_eq!(failure.status, 503);
        assert_eq!(failure.detail.as_deref(), Some("no node could be reached in 1 tries"));
    }

    #[test]
    fn no_node_at_all_is_503_and_a_function_too_large_is_400() {
        assert_eq!(Attempts::new().no_place(NoPlace::NoNode).status, 503);
        assert_eq!(Attempts::new().no_place(NoPlace::TooLarge), Failure::cannot_fit());
    }

    #[test]
    fn tries_are_bounded_even_if_the_policy_is_not() {
        let mut attempts = Attempts::new();
        let policy = RetryPolicy { tries_max: usize::MAX };
        let nexts: Vec<Next> = (1..=8).map(|n| attempts.refused(node(n), Refusal::Busy, &policy)).collect();
        assert!(nexts[..7].iter().all(|next| *next == Next::OtherNode));
        assert_eq!(given_up(nexts[7].clone()).status, 503);
    }
}
