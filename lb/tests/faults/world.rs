//! A fleet on a simulated network, and what must hold there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_lb::fleet::NodeState;
use turmoil::{Builder, Sim};

use crate::fleet::{Authority, demand, idle, record};
use crate::network::{Network, Weather};
use crate::nodes::{self, AgentLife, BalancerLife, POISON};

/// More than a fleet that can speak needs to know all: the longest pause between two tries, a connection's end, a whole
/// report, and some.
pub(crate) const CONVERGED_WITHIN: Duration = Duration::from_secs(15);
/// Seeds that each scenario is run with.
const SEEDS: std::ops::Range<u64> = 1..4;
/// How finely hosts and network take turns.
const TICK: Duration = Duration::from_millis(5);
const NEVER: Duration = Duration::from_hours(10);

/// What hosts and tests know of each other.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) balancers: BTreeMap<String, BalancerLife>,
    pub(crate) agents: BTreeMap<String, AgentLife>,
    lives: BTreeMap<String, u32>,
    /// Agents that start from now on know each balancer by two addresses.
    pub(crate) two_addresses: bool,
    /// Balancers that store nothing.
    pub(crate) broken_stores: BTreeSet<String>,
    /// Texts of records that a balancer has stored.
    pub(crate) stored: BTreeSet<String>,
    violated: Option<String>,
}

impl Book {
    /// Counts the lives of an agent, from 1.
    pub(crate) fn next_life(&mut self, agent: &str) -> u32 {
        let life = self.lives.entry(agent.to_owned()).or_default();
        *life += 1;
        *life
    }
}

pub(crate) struct Shared {
    pub(crate) authority: Authority,
    pub(crate) network: Network,
    /// All balancers' names.
    pub(crate) balancers: Vec<String>,
    book: Mutex<Book>,
}

impl Shared {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something does not hold that must always; the first such thing ends the test.
    pub(crate) fn violated(&self, what: String) {
        self.book().violated.get_or_insert(what);
    }
}

/// Balancers `lb1`, `lb2`... and agents `a0`, `a1`...
pub(crate) struct World {
    pub(crate) sim: Sim<'static>,
    pub(crate) shared: Arc<Shared>,
    agents: Vec<String>,
    /// Hosts that do not run.
    down: BTreeSet<String>,
    seed: u64,
}

/// Runs a scenario for each seed, from a fleet in which all know each other. At its end all faults are ended too, and
/// all must know each other again.
pub(crate) fn scenario(balancers: usize, agents: usize, play: impl Fn(&mut World)) {
    let one = std::env::var("KILN_FAULTS_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    let seeds: Vec<u64> = one.map_or_else(|| SEEDS.collect(), |seed| vec![seed]);
    for seed in seeds {
        println!("KILN_FAULTS_SEED={seed}");
        let mut world = World::new(seed, balancers, agents);
        world.converge();
        play(&mut world);
        world.calm();
        world.converge();
        world.all_is_stored();
    }
}

impl World {
    fn new(seed: u64, balancers: usize, agents: usize) -> Self {
        let mut sim = Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(TICK)
            .simulation_duration(NEVER)
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(Duration::from_millis(5))
            .udp_capacity(4096)
            .build();
        let balancers: Vec<String> = (1..=balancers).map(|number| format!("lb{number}")).collect();
        let agents: Vec<String> = (0..agents).map(|number| format!("a{number}")).collect();
        let (authority, network) = (Authority::new(), Network::new(seed));
        let shared =
            Arc::new(Shared { authority, network, balancers: balancers.clone(), book: Mutex::default() });
        for name in balancers {
            let (host, shared) = (name.clone(), Arc::clone(&shared));
            sim.host(host, move || nodes::balancer(Arc::clone(&shared), name.clone()));
        }
        for (number, name) in agents.iter().enumerate() {
            let (name, shared) = (name.clone(), Arc::clone(&shared));
            sim.host(name.clone(), move || nodes::agent(Arc::clone(&shared), name.clone(), number));
        }
        Self { sim, shared, agents, down: BTreeSet::new(), seed }
    }

    pub(crate) fn agents(&self) -> Vec<String> {
        self.agents.clone()
    }

    pub(crate) fn balancers(&self) -> Vec<String> {
        self.shared.balancers.clone()
    }

    /// Lets time pass while `holds` must hold at every moment.
    pub(crate) fn run_while(&mut self, time: Duration, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
            assert!(holds(self), "{}: it does not hold that {what}", self.moment());
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        self.run_while(time, "time passes", |_| true);
    }

    /// Lets time pass until `holds`, and says how long it took.
    pub(crate) fn until(&mut self, what: &str, within: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let begun = self.sim.elapsed();
        while !holds(self) {
            self.step();
            let taken = self.since(begun);
            assert!(taken <= within, "{}: not within {within:?}: {what}\n{}", self.moment(), self.known());
        }
        self.since(begun)
    }

    fn since(&self, begun: Duration) -> Duration {
        self.sim.elapsed().saturating_sub(begun)
    }

    fn step(&mut self) {
        self.shared.network.set_now(self.sim.elapsed());
        if let Err(error) = self.sim.step() {
            panic!("{}: a host failed: {error}", self.moment());
        }
        if let Some(violated) = &self.shared.book().violated {
            panic!("{}: {violated}", self.moment());
        }
    }

    fn moment(&self) -> String {
        format!("seed {}, {:?}", self.seed, self.sim.elapsed())
    }

    /// Every balancer knows the present state of every agent, and that those that do not run do not.
    pub(crate) fn converge(&mut self) -> Duration {
        self.until("everybody knows everybody", CONVERGED_WITHIN, |world| {
            let mut balancers =
                world.shared.balancers.iter().filter(|balancer| !world.down.contains(*balancer));
            balancers.all(|balancer| world.agents.iter().all(|agent| world.knows(balancer, agent)))
        })
    }

    /// True if the balancer believes of the agent what is so.
    pub(crate) fn knows(&self, balancer: &str, agent: &str) -> bool {
        if self.down.contains(agent) {
            return !self.is_up(balancer, agent);
        }
        let book = self.shared.book();
        let (Some(life), Some(believed)) = (book.agents.get(agent), book.balancers.get(balancer)) else {
            return false;
        };
        let report = life.reports.borrow();
        let mut fleet = believed.fleet.clone();
        let view = fleet.view();
        let members = view.members();
        let Some(member) = members.iter().find(|member| member.node().id().as_str() == agent) else {
            return false;
        };
        let idle = |number| idle(view, agent, number);
        let reported = |number| {
            let mut functions = report.functions.iter();
            functions.find(|function| function.id == demand(number).function).map(|function| function.idle)
        };
        member.node().state() == NodeState::Up
            && member.node().load() == report.calls
            && (0..self.agents.len() as u64).all(|number| idle(number) == reported(number))
    }

    pub(crate) fn state(&self, balancer: &str, agent: &str) -> Option<NodeState> {
        let mut fleet = self.shared.book().balancers.get(balancer)?.fleet.clone();
        let view = fleet.view();
        let members = view.members();
        members.iter().find(|member| member.node().id().as_str() == agent).map(|member| member.node().state())
    }

    pub(crate) fn is_up(&self, balancer: &str, agent: &str) -> bool {
        self.state(balancer, agent) == Some(NodeState::Up)
    }

    fn known(&self) -> String {
        let book = self.shared.book();
        let mut lines = Vec::new();
        for (name, balancer) in &book.balancers {
            for member in balancer.fleet.clone().view().members() {
                let node = member.node();
                lines.push(format!("{name}: {} {:?} calls {}", node.id(), node.state(), node.load()));
            }
        }
        for (name, agent) in &book.agents {
            let (calls, linked) = (agent.reports.borrow().calls, agent.linked.count());
            lines.push(format!("{name}: calls {calls}, links {linked}"));
        }
        lines.join("\n")
    }

    /// All agents' states change.
    pub(crate) fn work(&self) {
        let book = self.shared.book();
        for (number, name) in self.agents.iter().enumerate() {
            if let Some(agent) = book.agents.get(name) {
                agent.work(number);
            }
        }
    }

    /// Lets time pass with changes of all agents every so often.
    pub(crate) fn work_for(&mut self, time: Duration, every: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.work();
            self.run(every);
        }
    }

    /// The agent hands over a record.
    pub(crate) fn write(&self, agent: &str) {
        let mut book = self.shared.book();
        let life = book.agents.get_mut(agent).expect("runs");
        let text = format!("{agent} {}", life.written.len());
        life.records.send(record(&text));
        life.written.push(text);
    }

    /// Has an agent write what no store takes.
    pub(crate) fn poison(&self, agent: &str) {
        self.shared.book().agents[agent].records.send(record(POISON));
    }

    /// Ends all faults of the network.
    pub(crate) fn calm(&mut self) {
        self.shared.network.set_weather(Weather::default());
        self.set_delay(Duration::from_millis(5));
        for balancer in self.balancers() {
            for agent in self.agents() {
                self.sim.repair(balancer.as_str(), agent.as_str());
            }
        }
        self.shared.book().broken_stores.clear();
    }

    /// The longest time of a packet on its way; shorter ones are more frequent, so that packets overtake each other.
    pub(crate) fn set_delay(&self, longest: Duration) {
        self.sim.set_max_message_latency(longest);
    }

    fn all_is_stored(&mut self) {
        self.until("all records are stored", Duration::from_secs(40), |world| {
            let book = world.shared.book();
            let mut written = book.agents.values().flat_map(|agent| &agent.written);
            written.all(|text| book.stored.contains(text))
        });
    }

    /// Cut off without a word.
    pub(crate) fn crash(&mut self, host: &str) {
        self.sim.crash(host);
        self.down.insert(host.to_owned());
        let mut book = self.shared.book();
        book.balancers.remove(host);
        book.agents.remove(host);
    }

    pub(crate) fn start(&mut self, host: &str) {
        self.down.remove(host);
        self.sim.bounce(host);
    }

    /// Asked to stop, and waited for.
    pub(crate) fn stop(&mut self, host: &str) {
        let control = {
            let mut book = self.shared.book();
            let balancer = book.balancers.remove(host).map(|life| life.control);
            balancer.or_else(|| book.agents.remove(host).map(|life| life.control)).expect("runs")
        };
        self.down.insert(host.to_owned());
        control.stop.cancel();
        let begun = self.sim.elapsed();
        while self.sim.is_host_running(host) {
            self.step();
            assert!(self.since(begun) < Duration::from_secs(10), "{host} does not stop");
        }
    }

    /// The host's monotonic clock goes ahead of the others'.
    pub(crate) fn jump(&mut self, host: &str, by: Duration) {
        let book = self.shared.book();
        let balancer = book.balancers.get(host).map(|life| &life.control);
        let control = balancer.or_else(|| book.agents.get(host).map(|life| &life.control)).expect("runs");
        control.jumps.try_send(by).expect("has room");
    }
}
