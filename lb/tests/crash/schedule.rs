//! A schedule: who is killed and started when, and what must hold at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::ids::CallId;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use turmoil::{Builder, Sim};

use crate::hosts::{self, GRACE, LEASE};
use crate::model::State;
use crate::world::{Book, Fault, Run, Shared};

const BALANCERS: [&str; 2] = ["lb1", "lb2"];
const AGENTS: [&str; 3] = ["a1", "a2", "a3"];
const FUNCTIONS: usize = 3;
/// How long things are broken.
const ROUGH: Duration = Duration::from_secs(8);
/// In which all that was accepted must have run, once everything works.
const SETTLED_WITHIN: Duration = Duration::from_mins(1);
/// Longest pause between two events.
const PAUSE_MAX: Duration = Duration::from_millis(800);
const TICK: Duration = Duration::from_millis(25);

/// What happens in a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything is killed, functions fail, answers get lost.
    Everything,
    /// Agents stop in order and start again.
    Restarts,
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) accepted: usize,
    pub(crate) runs: usize,
    pub(crate) faults: usize,
    /// Runs after the first one of a call, by the reason.
    pub(crate) again: BTreeMap<&'static str, usize>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.runs += other.runs;
        self.faults += other.faults;
        for (reason, count) in &other.again {
            *self.again.entry(reason).or_default() += count;
        }
    }
}

struct World {
    sim: Sim<'static>,
    shared: Arc<Shared>,
    down: BTreeSet<&'static str>,
}

/// Runs the schedule of a seed.
pub(crate) fn play(seed: u64, kind: Kind) -> Tally {
    let mut world = World::new(seed, kind);
    let mut draws = StdRng::seed_from_u64(seed);
    while world.sim.elapsed() < ROUGH {
        let pause = PAUSE_MAX.mul_f64(draws.random());
        world.run(pause);
        match kind {
            Kind::Everything => world.break_something(&mut draws),
            Kind::Restarts => world.restart_an_agent(&mut draws),
        }
    }
    world.calm();
    world.settle();
    tally(&world.shared.book())
}

impl World {
    fn new(seed: u64, kind: Kind) -> Self {
        let mut sim = Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(TICK)
            .simulation_duration(Duration::from_hours(1))
            .build();
        let shared = Shared::new(seed, &BALANCERS, FUNCTIONS, kind == Kind::Everything);
        for name in BALANCERS {
            let shared = Arc::clone(&shared);
            sim.host(name, move || hosts::balancer(Arc::clone(&shared), name.to_owned()));
        }
        for name in AGENTS {
            let shared = Arc::clone(&shared);
            sim.host(name, move || hosts::agent(Arc::clone(&shared), name.to_owned()));
        }
        let client = Arc::clone(&shared);
        sim.host("client", move || hosts::client(Arc::clone(&client)));
        Self { sim, shared, down: BTreeSet::new() }
    }

    fn run(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.sim.step().expect("no host fails");
        }
    }

    fn fault(&self, what: &'static str, node: Option<&str>) {
        let (at, node) = (self.sim.elapsed(), node.map(str::to_owned));
        self.shared.book().faults.push(Fault { at, what, node, calls: None });
    }

    fn break_something(&mut self, draws: &mut StdRng) {
        let agent = AGENTS[draws.random_range(0..AGENTS.len())];
        let balancer = BALANCERS[draws.random_range(0..BALANCERS.len())];
        match draws.random_range(0..10) {
            0..3 if self.down.contains(agent) => self.start(agent),
            0..3 => {
                self.fault("its node was killed", Some(agent));
                self.kill(agent);
            }
            3 | 4 if self.down.contains(balancer) => self.start(balancer),
            3 | 4 => {
                self.fault("a balancer was killed", None);
                let life = self.shared.book().balancers.remove(balancer);
                if let Some(life) = life {
                    life.dead.cancel();
                }
                self.kill(balancer);
            }
            5 | 6 => {
                self.fault("the queue was killed or came back", None);
                let queue = &self.shared.queue;
                if queue.is_down() { queue.start() } else { queue.kill() }
            }
            7 | 8 => {
                self.fault("a link was cut or mended", Some(agent));
                let link = (agent.to_owned(), balancer.to_owned());
                let mut book = self.shared.book();
                if !book.cut.remove(&link) {
                    book.cut.insert(link);
                }
            }
            _ => self.restart(agent),
        }
    }

    fn restart_an_agent(&mut self, draws: &mut StdRng) {
        self.restart(AGENTS[draws.random_range(0..AGENTS.len())]);
    }

    /// Stops an agent in order. One that cannot, because nobody takes the ends of its calls, is killed.
    fn restart(&mut self, agent: &'static str) {
        let stop = self.shared.book().stops.remove(agent);
        let Some(stop) = stop.filter(|_| !self.down.contains(agent)) else { return };
        stop.cancel();
        let deadline = self.sim.elapsed() + GRACE.mul_f64(0.98);
        while self.sim.is_host_running(agent) && self.sim.elapsed() < deadline {
            self.sim.step().expect("no host fails");
        }
        if self.sim.is_host_running(agent) {
            assert!(self.shared.book().is_rough, "{agent} does not stop although everything works");
            self.fault("its node was killed", Some(agent));
            self.kill(agent);
        }
        self.start(agent);
    }

    fn kill(&mut self, host: &'static str) {
        self.sim.crash(host);
        self.down.insert(host);
        self.shared.book().stops.remove(host);
    }

    fn start(&mut self, host: &'static str) {
        self.down.remove(host);
        self.sim.bounce(host);
    }

    /// Everything works again, and nobody calls any more.
    fn calm(&mut self) {
        self.fault("the queue was killed or came back", None);
        self.shared.queue.start();
        for agent in AGENTS {
            self.fault("a link was cut or mended", Some(agent));
        }
        {
            let mut book = self.shared.book();
            book.is_calm = true;
            book.cut.clear();
        }
        for host in std::mem::take(&mut self.down) {
            self.start(host);
        }
    }

    fn settle(&mut self) {
        let end = self.sim.elapsed() + SETTLED_WITHIN;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(self.sim.elapsed() < end, "{} accepted calls did not end: {left:#?}", left.len());
            self.run(Duration::from_millis(100));
        }
    }

    /// Accepted calls that are not done.
    fn left(&self) -> Vec<(CallId, Option<State>)> {
        let accepted = self.shared.book().accepted.clone();
        let states = accepted.into_iter().map(|id| (id, self.shared.queue.state(id)));
        states.filter(|(_, state)| !matches!(state, Some(State::Done { .. }))).collect()
    }
}

/// Every accepted call ran; each that ran again had a reason.
fn tally(book: &Book) -> Tally {
    let mut tally = Tally { accepted: book.accepted.len(), faults: book.faults.len(), ..Tally::default() };
    for id in &book.accepted {
        let whole = book.runs.get(id).is_some_and(|runs| runs.iter().any(|run| run.ended.is_some()));
        assert!(whole, "{id} was accepted and never ran to its end");
    }
    for (id, runs) in &book.runs {
        tally.runs += runs.len();
        for pair in runs.windows(2) {
            let reason = reason(*id, &pair[0], pair[1].begun, &book.faults);
            let reason = reason.unwrap_or_else(|| panic!("{id} ran again without a reason: {runs:#?}"));
            *tally.again.entry(reason).or_default() += 1;
        }
    }
    tally
}

/// Why a call ran again at `again`.
fn reason(id: CallId, run: &Run, again: Duration, faults: &[Fault]) -> Option<&'static str> {
    if run.fails && run.ended.is_none() {
        return Some("its function failed");
    }
    let concerns = |fault: &&Fault| {
        // What was taken may wait for a container until after its lease.
        fault.at + 2 * LEASE >= run.begun
            && fault.at <= again
            && fault.node.as_ref().is_none_or(|node| *node == run.node)
            && fault.calls.as_ref().is_none_or(|calls| calls.contains(&id))
    };
    faults.iter().find(concerns).map(|fault| fault.what)
}
