//! A fleet under a test's control.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::function::Revision;
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};
use xxhash_rust::xxh3::xxh3_64;

use super::demand::{Demand, ImageKey};
use super::liveness::LivenessPolicy;
use super::membership::{Fleet, NodeConfig};
use super::node::{Address, Node};
use super::placement::{Ask, Decision, NoPlace, PlacementPolicy, TriedSet, place};
use super::ring::{RingKey, Weight};
use super::room::WaitingRoom;
use super::seat::Seat;

pub(super) const IMAGE: &str = "image:1";
pub(super) const MEMORY_MIB: u64 = 8192;

pub(super) fn node_id(number: usize) -> NodeId {
    NodeId::new(format!("node-{number:03}"))
}

pub(super) fn remote(number: usize) -> NodeConfig {
    NodeConfig {
        id: node_id(number),
        address: Address::Remote(format!("10.0.0.{number}:8081").into()),
        weight: None,
        zone: None,
    }
}

pub(super) fn demand(number: u64) -> Demand {
    let function: FunctionId = format!("{number:026}").parse().unwrap();
    let revision = Revision(xxh3_64(function.as_bytes()));
    let (key, image) = (RingKey::of(&function), ImageKey::of(IMAGE));
    Demand { function, revision, key, image, memory_mib: 128, cpu_millis: 0 }
}

/// A report of an empty node with 4 cores.
pub(super) fn report(number: usize) -> NodeReport {
    NodeReport {
        node: node_id(number),
        epoch: 1,
        sequence: 1,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: MEMORY_MIB,
        memory_committed_mib: 0,
        memory_idle_mib: 0,
        cpu_total_millis: 4000,
        cpu_committed_millis: 0,
        calls: 0,
        functions: Vec::new(),
        gone: Vec::new(),
        images: Some(Arc::default()),
    }
}

pub(super) fn containers(demand: &Demand, idle: u32, busy: u32) -> FunctionReport {
    FunctionReport { id: demand.function, revision: demand.revision, idle, busy, starting: 0, waiting: 0 }
}

/// A fleet with its own time.
pub(super) struct TestFleet {
    pub(super) fleet: Fleet,
    pub(super) now: Instant,
    pub(super) policy: PlacementPolicy,
    sequence: u64,
}

impl TestFleet {
    /// Nodes of equal weight that have not reported yet.
    pub(super) fn silent(nodes: usize) -> Self {
        let now = Instant::now();
        let mut fleet = Fleet::new(LivenessPolicy::default(), now);
        let standard = |number| NodeConfig { weight: Some(Weight::STANDARD), ..remote(number) };
        fleet.set_members((0..nodes).map(standard), now);
        Self { fleet, now, policy: PlacementPolicy::default(), sequence: 0 }
    }

    /// Nodes of equal weight that are empty.
    pub(super) fn empty(nodes: usize) -> Self {
        let mut this = Self::silent(nodes);
        for number in 0..nodes {
            this.report(report(number));
        }
        this
    }

    /// Applies a report as the newest of all.
    pub(super) fn report(&mut self, mut report: NodeReport) {
        self.sequence += 1;
        report.sequence = self.sequence;
        assert_eq!(self.fleet.apply([&report], self.now).news, 1);
    }

    /// Lets so much time pass that the mean load is worked out anew.
    pub(super) fn pass(&mut self) {
        self.now += Duration::from_millis(5);
    }

    pub(super) fn node(&self, number: usize) -> Arc<Node> {
        Arc::clone(self.fleet.view().members()[number].node())
    }

    /// Numbers of the nodes in the order of the function's walk.
    pub(super) fn walk(&self, demand: &Demand) -> Vec<usize> {
        let view = self.fleet.view();
        view.ring().walk(demand.key).map(super::ring::NodeIndex::get).collect()
    }

    pub(super) fn place(&self, demand: &Demand, tried: &TriedSet) -> Result<Decision, NoPlace> {
        place(&self.fleet.view(), &Ask { demand, tried, draw: 7, now: self.now }, &self.policy)
    }

    pub(super) fn room(&self) -> Arc<WaitingRoom> {
        Arc::clone(self.fleet.room())
    }

    pub(super) fn seat(&mut self, demand: &Demand) -> Seat {
        self.fleet.reader().seat(demand, &TriedSet::new(), self.now).unwrap()
    }
}
