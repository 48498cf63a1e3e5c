//! Passive outlier ejection: a node that loses the calls it is given gets none for a while, although it reports.
//!
//! Pure. Evidence is what the network and the node did: calls lost after they were given to it, and connections that
//! failed. What a function did (its errors, its time) is none. Invariant: at least one of two nodes is never ejected.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// When a node is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EjectionPolicy {
    /// So many calls lost one after the other eject a node; 0: never for that.
    pub consecutive_lost_max: u32,
    /// Span over which the share of lost calls is taken.
    pub window: Duration,
    /// Fewer calls than this in a window say nothing of their share.
    pub window_calls_min: u32,
    /// A larger share of calls lost in a window ejects a node; 1: never for that.
    pub lost_share_max: f64,
    /// How long the first ejection lasts; the second twice as long, the third three times.
    pub base: Duration,
    /// The longest ejection.
    pub longest: Duration,
    /// Largest share of the fleet that may be ejected at a time; one node may always be, if there are others.
    pub fleet_share_max: f64,
}

impl Default for EjectionPolicy {
    fn default() -> Self {
        Self {
            consecutive_lost_max: 5,
            window: Duration::from_secs(10),
            window_calls_min: 20,
            lost_share_max: 0.5,
            base: Duration::from_secs(5),
            longest: Duration::from_mins(5),
            fleet_share_max: 0.3,
        }
    }
}

impl EjectionPolicy {
    /// Nodes of `nodes` that may be ejected at a time.
    pub fn ejected_max(&self, nodes: usize) -> usize {
        match nodes {
            0 | 1 => 0,
            _ => ((nodes as f64 * self.fleet_share_max) as usize).clamp(1, nodes - 1),
        }
    }
}

/// What speaks against a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EjectionCause {
    /// So many calls were lost one after the other.
    ConsecutiveLost {
        /// How many.
        calls: u32,
    },
    /// Too many of a window's calls were lost.
    LostShare {
        /// Lost ones.
        lost: u32,
        /// All.
        calls: u32,
    },
}

impl std::fmt::Display for EjectionCause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConsecutiveLost { calls } => write!(formatter, "{calls} calls in a row were lost"),
            Self::LostShare { lost, calls } => write!(formatter, "{lost} of {calls} calls were lost"),
        }
    }
}

/// What became of a node's calls; written by whoever had one there.
#[derive(Debug, Default)]
pub(crate) struct Health {
    lost_in_a_row: AtomicU32,
    lost: AtomicU32,
    answered: AtomicU32,
}

impl Health {
    /// The node answered, whatever its function said.
    pub(crate) fn answered(&self) {
        if self.lost_in_a_row.load(Relaxed) != 0 {
            self.lost_in_a_row.store(0, Relaxed);
        }
        self.answered.fetch_add(1, Relaxed);
    }

    /// The node could not be reached, or was lost with the call.
    pub(crate) fn lost(&self) {
        self.lost_in_a_row.fetch_add(1, Relaxed);
        self.lost.fetch_add(1, Relaxed);
    }

    fn forget(&self) {
        self.lost_in_a_row.store(0, Relaxed);
        self.lost.store(0, Relaxed);
        self.answered.store(0, Relaxed);
    }
}

/// An ejection under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ejected {
    /// When it ends.
    pub until: Instant,
    /// Why.
    pub cause: EjectionCause,
}

/// One node's ejections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ejection {
    now: Option<Ejected>,
    /// Ejections that count towards the length of the next.
    count: u32,
    /// When one of them is forgotten.
    forgiven_at: Instant,
    window_ends: Instant,
    /// It would be ejected if the cap let it.
    spared: bool,
}

/// What a look at a node came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Judgement {
    /// Nothing changes.
    AsBefore,
    /// It would be ejected, but too many are; said once.
    Spared(EjectionCause),
    /// It gets no calls from now on.
    Ejected(EjectionCause),
    /// It gets calls again.
    Returned,
}

impl Ejection {
    pub(crate) fn new(now: Instant) -> Self {
        Self { now: None, count: 0, forgiven_at: now, window_ends: now, spared: false }
    }

    /// The ejection under way.
    pub(crate) fn current(&self) -> Option<Ejected> {
        self.now
    }

    /// Looks at what became of the node's calls. Call it about once per beat; `may_eject` is the cap's word.
    pub(crate) fn judge(
        &mut self,
        health: &Health,
        policy: &EjectionPolicy,
        may_eject: bool,
        now: Instant,
    ) -> Judgement {
        if let Some(ejected) = self.now {
            if now < ejected.until {
                return Judgement::AsBefore;
            }
            self.now = None;
            self.forgiven_at = now + self.length(policy);
            health.forget();
            return Judgement::Returned;
        }
        if self.count > 0 && now >= self.forgiven_at {
            self.count -= 1;
            self.forgiven_at = now + self.length(policy);
        }
        let Some(cause) = self.evidence(health, policy, now) else {
            self.spared = false;
            return Judgement::AsBefore;
        };
        if !may_eject {
            let was_spared = std::mem::replace(&mut self.spared, true);
            return if was_spared { Judgement::AsBefore } else { Judgement::Spared(cause) };
        }
        self.spared = false;
        self.count += 1;
        self.now = Some(Ejected { until: now + self.length(policy), cause });
        Judgement::Ejected(cause)
    }

    /// The node is another one now, or its agent began a new life.
    pub(crate) fn forget(&mut self, health: &Health, now: Instant) {
        health.forget();
        *self = Self::new(now);
    }

    fn length(&self, policy: &EjectionPolicy) -> Duration {
        policy.base.saturating_mul(self.count.max(1)).min(policy.longest)
    }

    fn evidence(&mut self, health: &Health, policy: &EjectionPolicy, now: Instant) -> Option<EjectionCause> {
        let calls = health.lost_in_a_row.load(Relaxed);
        if policy.consecutive_lost_max != 0 && calls >= policy.consecutive_lost_max {
            return Some(EjectionCause::ConsecutiveLost { calls });
        }
        let (lost, answered) = (health.lost.load(Relaxed), health.answered.load(Relaxed));
        let calls = lost.saturating_add(answered);
        let share_is_too_large = f64::from(lost) > policy.lost_share_max * f64::from(calls);
        if calls >= policy.window_calls_min && share_is_too_large {
            return Some(EjectionCause::LostShare { lost, calls });
        }
        if now >= self.window_ends {
            self.window_ends = now + policy.window;
            health.lost.store(0, Relaxed);
            health.answered.store(0, Relaxed);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: EjectionPolicy = EjectionPolicy {
        consecutive_lost_max: 3,
        window: Duration::from_secs(10),
        window_calls_min: 10,
        lost_share_max: 0.5,
        base: Duration::from_secs(5),
        longest: Duration::from_secs(12),
        fleet_share_max: 0.3,
    };

    fn lose(health: &Health, calls: u32) {
        (0..calls).for_each(|_| health.lost());
    }

    #[test]
    fn calls_lost_in_a_row_eject_and_an_answer_between_them_does_not() {
        let (health, now) = (Health::default(), Instant::now());
        let mut ejection = Ejection::new(now);
        lose(&health, 2);
        health.answered();
        lose(&health, 2);
        assert_eq!(ejection.judge(&health, &POLICY, true, now), Judgement::AsBefore);
        lose(&health, 1);
        let cause = EjectionCause::ConsecutiveLost { calls: 3 };
        assert_eq!(ejection.judge(&health, &POLICY, true, now), Judgement::Ejected(cause));
    }

    #[test]
    fn a_share_of_lost_calls_ejects_only_if_there_were_enough_calls_in_the_window() {
        let (health, mut now) = (Health::default(), Instant::now());
        let mut ejection = Ejection::new(now);
        let policy = EjectionPolicy { consecutive_lost_max: 0, ..POLICY };
        assert_eq!(ejection.judge(&health, &policy, true, now), Judgement::AsBefore);
        lose(&health, 6);
        (0..3).for_each(|_| health.answered());
        assert_eq!(ejection.judge(&health, &policy, true, now), Judgement::AsBefore);
        now += Duration::from_secs(10);
        assert_eq!(ejection.judge(&health, &policy, true, now), Judgement::AsBefore);
        health.answered();
        assert_eq!(ejection.judge(&health, &policy, true, now), Judgement::AsBefore, "a new window");
        lose(&health, 6);
        (0..3).for_each(|_| health.answered());
        let cause = EjectionCause::LostShare { lost: 6, calls: 10 };
        assert_eq!(ejection.judge(&health, &policy, true, now), Judgement::Ejected(cause));
    }

    #[test]
    fn each_further_ejection_is_longer_up_to_the_longest_and_quiet_shortens_it_again() {
        let (health, mut now) = (Health::default(), Instant::now());
        let mut ejection = Ejection::new(now);
        let mut lengths = Vec::new();
        let mut eject = |ejection: &mut Ejection, now: &mut Instant| {
            lose(&health, 3);
            assert!(matches!(ejection.judge(&health, &POLICY, true, *now), Judgement::Ejected(_)));
            let until = ejection.current().unwrap().until;
            lengths.push((until - *now).as_secs());
            *now = until;
            assert_eq!(ejection.judge(&health, &POLICY, true, *now), Judgement::Returned);
        };
        (0..3).for_each(|_| eject(&mut ejection, &mut now));
        for _ in 0..3 {
            now += Duration::from_secs(12);
            assert_eq!(ejection.judge(&health, &POLICY, true, now), Judgement::AsBefore);
        }
        eject(&mut ejection, &mut now);
        assert_eq!(lengths, [5, 10, 12, 5]);
    }

    #[test]
    fn the_cap_spares_a_node_and_says_so_once() {
        let (health, now) = (Health::default(), Instant::now());
        let mut ejection = Ejection::new(now);
        lose(&health, 3);
        assert!(matches!(ejection.judge(&health, &POLICY, false, now), Judgement::Spared(_)));
        assert_eq!(ejection.judge(&health, &POLICY, false, now), Judgement::AsBefore);
        assert!(matches!(ejection.judge(&health, &POLICY, true, now), Judgement::Ejected(_)));
    }

    #[test]
    fn one_of_two_nodes_may_be_ejected_and_the_only_one_never() {
        let caps: Vec<usize> = [0, 1, 2, 3, 4, 10, 1000].map(|nodes| POLICY.ejected_max(nodes)).into();
        assert_eq!(caps, [0, 0, 1, 1, 1, 3, 300]);
        let reckless = EjectionPolicy { fleet_share_max: 1.0, ..POLICY };
        assert_eq!(reckless.ejected_max(5), 4);
    }
}
