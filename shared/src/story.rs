//! A call's story: how it came to its node, and where its time went.
//!
//! The balancer tells its part with the call ([`Placement`], `link/call.rs`), the node adds its own, and both are kept with
//! the call's record ([`Story`]). Telling never fails a call: what cannot be read is not told.
//! Invariant: a call that no node refused costs no memory of its own to tell.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call::Refusal;
use crate::http1::push_decimal;
use crate::ids::NodeId;

/// Refusals of one call that are told; of more the last ones are.
pub const REFUSALS_TOLD_MAX: usize = 8;

/// What spoke for a node. Home is the first node of the function's walk, spill any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// An idle slot at home.
    WarmHome,
    /// An idle slot elsewhere.
    WarmSpill,
    /// A container that is being started at home, for which no call waits.
    SoonHome,
    /// A container that is being started elsewhere, for which no call waits.
    SoonSpill,
    /// Room for a container at home.
    RoomHome,
    /// Room for a container elsewhere.
    RoomSpill,
    /// No room; home's containers have few calls waiting.
    QueueHome,
    /// No room; another node's containers have few calls waiting.
    QueueSpill,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::WarmHome,
        Self::WarmSpill,
        Self::SoonHome,
        Self::SoonSpill,
        Self::RoomHome,
        Self::RoomSpill,
        Self::QueueHome,
        Self::QueueSpill,
    ];

    /// The reason in a word, as metrics, records and the link have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmHome => "warm_home",
            Self::WarmSpill => "warm_spill",
            Self::SoonHome => "soon_home",
            Self::SoonSpill => "soon_spill",
            Self::RoomHome => "room_home",
            Self::RoomSpill => "room_spill",
            Self::QueueHome => "queue_home",
            Self::QueueSpill => "queue_spill",
        }
    }

    /// The reason of that word.
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }

    /// True if the node is expected to start a container for the call.
    pub fn starts_container(self) -> bool {
        matches!(self, Self::RoomHome | Self::RoomSpill)
    }

    /// True if the call finds a slot that is free.
    pub fn is_warm(self) -> bool {
        matches!(self, Self::WarmHome | Self::WarmSpill)
    }
}

/// A node that said no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTry {
    /// The node.
    pub node: NodeId,
    /// What spoke for it.
    pub reason: Reason,
    /// Calls that it had when it was chosen.
    pub calls: u32,
    /// Why it refused.
    pub refusal: Refusal,
}

/// What a balancer did with a call until it gave it to a node, or gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The balancer.
    pub balancer: Arc<str>,
    /// What spoke for the node that was chosen last; absent if none ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Nodes that were looked at to choose it.
    pub asked: u32,
    /// Calls that it had then.
    pub calls: u32,
    /// Nodes that the call was tried on, one after the other.
    pub tries: u32,
    /// Those that refused, oldest first, at most [`REFUSALS_TOLD_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedTry>,
    /// How often the call waited at the balancer.
    pub waits: u32,
    /// How long, all waits together.
    #[serde(rename = "waited_micros", with = "micros")]
    pub waited: Duration,
    /// From the call's arrival at the balancer to the moment in which it was given to the node, or given up: waits, and tries
    /// that were refused, included.
    #[serde(rename = "balancer_micros", with = "micros")]
    pub before: Duration,
}

impl Placement {
    /// Appends words for all of it but the balancer's name, which the link proves.
    pub(crate) fn push_words(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.reason.map_or("-", Reason::as_str).as_bytes());
        let numbers = [self.asked, self.calls, self.tries, self.waits].map(u64::from);
        for number in numbers.into_iter().chain([as_micros(self.waited), as_micros(self.before)]) {
            out.push(b' ');
            push_decimal(number, out);
        }
        // Names of nodes come out of certificates (`identity::Peer`); any other could break the line.
        let is_word = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        let tellable = self.refused.iter().filter(|refused| is_word(refused.node.as_str()));
        for refused in tellable.take(REFUSALS_TOLD_MAX) {
            out.push(b' ');
            out.extend_from_slice(refused.node.as_str().as_bytes());
            out.push(b' ');
            out.extend_from_slice(refused.reason.as_str().as_bytes());
            out.push(b' ');
            push_decimal(refused.calls.into(), out);
            out.push(b' ');
            out.extend_from_slice(refused.refusal.as_str().as_bytes());
        }
    }

    /// Reads what [`Self::push_words`] wrote at the balancer of that name. `None` if it is not told, or by a version that tells
    /// it otherwise.
    pub(crate) fn read_words<'a>(
        mut words: impl Iterator<Item = &'a str>,
        balancer: Arc<str>,
    ) -> Option<Self> {
        let reason = match words.next()? {
            "-" => None,
            word => Some(Reason::read(word)?),
        };
        let mut number = || words.next()?.parse::<u64>().ok();
        let mut small = || u32::try_from(number()?).ok();
        let (asked, calls, tries, waits) = (small()?, small()?, small()?, small()?);
        let (waited, before) = (Duration::from_micros(number()?), Duration::from_micros(number()?));
        let mut refused = Vec::new();
        while let Some(node) = words.next()
            && refused.len() < REFUSALS_TOLD_MAX
        {
            refused.push(RefusedTry {
                node: NodeId::new(node),
                reason: Reason::read(words.next()?)?,
                calls: words.next()?.parse().ok()?,
                refusal: Refusal::read(words.next()?.as_bytes())?,
            });
        }
        Some(Self { balancer, reason, asked, calls, tries, refused, waits, waited, before })
    }
}

/// Where a call's time went on its node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTimes {
    /// Waited for a slot, the start of a container not included.
    #[serde(rename = "queue_micros", with = "micros")]
    pub queue: Duration,
    /// Waited for the container that was started for it; zero if none was.
    #[serde(rename = "start_micros", with = "micros")]
    pub start: Duration,
    /// From the moment the container was given the call to the head of its answer, or to the end of a call without one. Zero
    /// if it never was.
    #[serde(rename = "run_micros", with = "micros")]
    pub run: Duration,
    /// From the call's arrival at the node to its end, that of the answer's body included.
    #[serde(rename = "node_micros", with = "micros")]
    pub whole: Duration,
}

/// How a call came to its node, and where its time went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The node that took it; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// What the balancer did; absent if it did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Times on the node; absent if it never had the call, or was lost with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<NodeTimes>,
    /// The nodes at the moment in which the balancer gave up; only for calls that no node took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
}

impl Story {
    /// True if nothing is told.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A node as a call sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its place in the function's walk; 0 is home.
    pub rank: u32,
    /// `up`, `draining`, `suspect` or `down`.
    pub state: Cow<'static, str>,
    /// Calls that it has.
    pub calls: u32,
    /// Calls that the bound on loads lets it have.
    pub calls_max: u32,
    /// Free warm slots of the function.
    pub idle: u32,
    /// Containers of it that are being started.
    pub starting: u32,
    /// Calls of it beyond its containers.
    pub queued: u32,
    /// Memory that another container could have, in MiB; below 0 if overcommitted.
    pub memory_free_mib: i64,
    /// The image is present.
    pub has_image: bool,
    /// It is in the balancer's own zone, or the balancer has none.
    pub is_near: bool,
    /// What it offers; absent if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Reason>,
    /// What speaks against it, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub against: Vec<Cow<'static, str>>,
    /// The call goes there.
    pub is_chosen: bool,
}

pub(crate) fn as_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Durations as whole microseconds.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(super::as_micros(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused() -> impl Strategy<Value = RefusedTry> {
        let refusals = [Refusal::Busy, Refusal::Draining, Refusal::UnknownFunction, Refusal::Unreachable];
        let parts = ("[a-z0-9][a-z0-9._-]{0,20}", 0..8_usize, any::<u32>(), 0..4_usize);
        parts.prop_map(move |(node, reason, calls, refusal)| RefusedTry {
            node: NodeId::new(node),
            reason: Reason::ALL[reason],
            calls,
            refusal: refusals[refusal],
        })
    }

    fn placement() -> impl Strategy<Value = Placement> {
        let numbers = prop::array::uniform4(any::<u32>());
        let times = prop::array::uniform2(0..=u64::MAX / 2);
        let refused = prop::collection::vec(refused(), 0..=REFUSALS_TOLD_MAX);
        let parts = (prop::option::of(0..8_usize), numbers, times, refused);
        parts.prop_map(|(reason, [asked, calls, tries, waits], times, refused)| {
            let [waited, before] = times.map(Duration::from_micros);
            let reason = reason.map(|reason| Reason::ALL[reason]);
            Placement { balancer: "lb1".into(), reason, asked, calls, tries, refused, waits, waited, before }
        })
    }

    fn words(placement: &Placement) -> String {
        let mut line = Vec::new();
        placement.push_words(&mut line);
        String::from_utf8(line).expect("words are text")
    }

    #[test]
    fn a_name_that_is_no_word_is_left_out() {
        let reason = Some(Reason::RoomSpill);
        let try_of = |node: &str| RefusedTry {
            node: NodeId::new(node),
            reason: Reason::WarmHome,
            calls: 1,
            refusal: Refusal::Busy,
        };
        let mut placement = Placement {
            balancer: "lb1".into(),
            reason,
            asked: 1,
            calls: 0,
            tries: 4,
            refused: vec![try_of("a b"), try_of("c\r\nd"), try_of(""), try_of("e")],
            waits: 0,
            waited: Duration::ZERO,
            before: Duration::ZERO,
        };
        let read = Placement::read_words(words(&placement).split(' '), "lb1".into());
        placement.refused.drain(..3);
        assert_eq!(read, Some(placement));
    }

    #[test]
    fn a_story_that_tells_nothing_is_empty_json() {
        assert_eq!(serde_json::to_string(&Story::default()).expect("JSON"), "{}");
        let times = Some(NodeTimes { run: Duration::from_micros(7), ..NodeTimes::default() });
        let story = Story { node: Some(NodeId::new("n1")), times, ..Story::default() };
        assert!(!story.is_empty());
        assert_eq!(
            serde_json::to_string(&story).expect("JSON"),
            r#"{"node":"n1","times":{"queue_micros":0,"start_micros":0,"run_micros":7,"node_micros":0}}"#
        );
    }

    proptest! {
        #[test]
        fn what_a_balancer_tells_arrives(placement in placement()) {
            let read = Placement::read_words(words(&placement).split(' '), "lb1".into());
            prop_assert_eq!(read.as_ref(), Some(&placement));
            let json = serde_json::to_string(&placement).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Placement>(&json).expect("a placement"), placement);
        }

        #[test]
        fn whatever_is_told_instead_is_read_or_left(line in "[ -~]{0,80}") {
            if let Some(read) = Placement::read_words(line.split(' '), "lb1".into()) {
                prop_assert!(read.refused.len() <= REFUSALS_TOLD_MAX);
            }
        }
    }
}
