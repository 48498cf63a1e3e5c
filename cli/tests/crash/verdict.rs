//! Whether all went well, and why calls ran more than once. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::witness::Run;

/// How long a node has a message without saying that it still has it (the agent's default).
const LEASE: Duration = Duration::from_secs(30);

/// Something that was killed, from then until it was up again; since 1970.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    pub(crate) what: What,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// By its number.
    Agent(usize),
    Balancer,
    Queue,
}

/// Why `run` was not the call's last one: another began at `again`.
pub(crate) fn reason(run: &Run, again: Duration, outages: &[Outage]) -> Option<&'static str> {
    let between = |outage: &&Outage| outage.from <= again && outage.until >= run.begun;
    let mut killed = outages.iter().filter(between);
    if killed.any(|outage| outage.what == What::Agent(run.node)) {
        return Some("its node was killed");
    }
    let away: Duration = outages
        .iter()
        .filter(between)
        .filter(|outage| matches!(outage.what, What::Balancer | What::Queue))
        .map(|outage| outage.until.min(again).saturating_sub(outage.from.max(run.begun)))
        .sum();
    // Leases are renewed every third of their length: the last one may have been that long ago.
    (away >= LEASE * 2 / 3).then_some("its lease could not be renewed")
}

/// How often calls ran again, by reason.
///
/// # Errors
/// Calls that ran again without one.
pub(crate) fn again(
    runs: &BTreeMap<String, Vec<Run>>,
    outages: &[Outage],
) -> Result<BTreeMap<&'static str, usize>, String> {
    let (mut again, mut unexplained) = (BTreeMap::new(), Vec::new());
    for (call, runs) in runs {
        for pair in runs.windows(2) {
            match reason(&pair[0], pair[1].begun, outages) {
                Some(reason) => *again.entry(reason).or_default() += 1,
                None => unexplained.push(format!("{call} ran again without a reason: {pair:#?}")),
            }
        }
    }
    if unexplained.is_empty() { Ok(again) } else { Err(unexplained.join("\n")) }
}

/// Accepted calls that never ran to their end.
pub(crate) fn lost<'a>(accepted: &'a [String], runs: &BTreeMap<String, Vec<Run>>) -> Vec<&'a String> {
    let ran = |call: &&String| runs.get(*call).is_some_and(|runs| runs.iter().any(|run| run.ended.is_some()));
    accepted.iter().filter(|call| !ran(call)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(begun: u64) -> Run {
        Run { node: 1, begun: Duration::from_secs(begun), ended: None }
    }

    fn outage(what: What, from: u64, until: u64) -> Outage {
        Outage { what, from: Duration::from_secs(from), until: Duration::from_secs(until) }
    }

    #[test]
    fn only_the_death_of_its_own_node_or_a_long_absence_excuses_another_run() {
        let why =
            |what, from, until| reason(&run(100), Duration::from_secs(150), &[outage(what, from, until)]);
        assert_eq!(why(What::Agent(1), 101, 102), Some("its node was killed"));
        assert_eq!(why(What::Agent(2), 101, 102), None, "another node");
        assert_eq!(why(What::Agent(1), 90, 99), None, "before");
        assert_eq!(why(What::Agent(1), 151, 152), None, "after");
        assert_eq!(why(What::Queue, 101, 103), None, "not for long");
        assert_eq!(why(What::Balancer, 101, 125), Some("its lease could not be renewed"));
    }

    #[test]
    fn a_call_that_was_broken_off_and_never_ran_again_is_lost() {
        let accepted = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let ended = Run { ended: Some(Duration::from_secs(9)), ..run(8) };
        let runs = BTreeMap::from([("a".to_owned(), vec![run(1), ended]), ("b".to_owned(), vec![run(1)])]);
        assert_eq!(lost(&accepted, &runs), ["b", "c"]);
        assert!(again(&runs, &[]).is_err_and(|text| text.contains("a ran again without a reason")));
    }
}
