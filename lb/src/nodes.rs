//! News of the nodes: who has come, how they are, who is gone. Keeps the [`Fleet`] current.
//!
//! Owns the fleet once calls are served, and which link speaks for which node. One task does it all, so that news are
//! taken in the order in which they came. Invariant: of two links with one name, one speaks.

mod gauges;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_shared::ids::NodeId;
use kiln_shared::link::BEAT;
use kiln_shared::link::message::{BalancerMessage, CallsAt, Command, Hello, Refused};
use kiln_shared::report::NodeReport;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::gauges::Sight;
use crate::fleet::scale::{ScaleSignal, Scaler};
use crate::fleet::{Address, Fleet, Heard, NodeConfig, NodeDetail, Weight};

/// News that may wait to be applied.
const NEWS_WAITING_MAX: usize = 1024;
/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(50);
/// How often it is worked out how many nodes there should be.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Messages that may wait for an agent; one that does not take them is told nothing more.
const WANTED_WAITING_MAX: usize = 64;
/// A link that was silent for this long makes room for another one of the same name.
const SILENT: Duration = BEAT.saturating_mul(3);

/// What one link has to say.
#[derive(Debug)]
pub(crate) enum News {
    /// How the node is.
    Report(Box<NodeReport>),
    /// It has stopped, on its own word.
    Left,
    /// The link broke.
    Lost,
}

/// Why a node cannot be told something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// There is no node of this name.
    #[error("there is no node called {0}; `kiln nodes` lists them")]
    Unknown(NodeId),
    /// There is no link to it, or it does not read.
    #[error("{0} is not connected to this balancer; try again when `kiln nodes` shows it up")]
    Away(NodeId),
}

enum Request {
    Local(Arc<NodeReport>),
    Join { hello: Box<Hello>, remote: SocketAddr, answer: oneshot::Sender<Result<Joined, Refused>> },
    News { node: NodeId, link: u64, news: News },
    Tell { node: NodeId, command: Command, answer: oneshot::Sender<Result<(), TellError>> },
    Look { answer: oneshot::Sender<Look> },
}

/// The fleet at one moment.
#[derive(Debug, Clone)]
pub struct Look {
    /// All nodes, in the order of their names.
    pub details: Vec<NodeDetail>,
    /// Calls that wait at this balancer.
    pub waiting_calls: u32,
    /// How many nodes there should be, as of the last look at that.
    pub scale: Option<ScaleSignal>,
}

/// The way of news to the fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nodes {
    requests: mpsc::Sender<Request>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Request")
    }
}

/// When a link was last heard. Beats are most of what agents say: noting one wakes nobody, and the owner looks at
/// every tick.
#[derive(Debug)]
struct LastHeard {
    born: Instant,
    micros: AtomicU64,
}

impl LastHeard {
    fn new(now: Instant) -> Self {
        Self { born: now, micros: AtomicU64::new(0) }
    }

    fn note(&self, now: Instant) {
        let micros = now.saturating_duration_since(self.born).as_micros() as u64;
        // The moment alone is passed on and nothing that was written before it, so any order will do.
        self.micros.store(micros, Ordering::Relaxed);
    }

    fn at(&self) -> Instant {
        self.born + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// A link that speaks for a node.
#[derive(Debug)]
pub(crate) struct Joined {
    node: NodeId,
    link: u64,
    heard: Arc<LastHeard>,
    requests: mpsc::Sender<Request>,
    /// What the agent is to be told. Ends when another link takes this one's place.
    pub(crate) wanted: mpsc::Receiver<BalancerMessage>,
}

impl Joined {
    /// Notes that the agent is there and has nothing new.
    pub(crate) fn heard(&self) {
        self.heard.note(now());
    }

    /// Passes on what the agent said.
    ///
    /// # Errors
    /// It makes no sense; the agent is to be turned away.
    pub(crate) async fn tell(&self, news: News) -> Result<(), Refused> {
        if let News::Report(report) = &news
            && report.node != self.node
        {
            return Err(Refused::Absurd { what: format!("a report of {}", report.node) });
        }
        self.send(news).await;
        Ok(())
    }

    /// Passes on how the link ended.
    pub(crate) async fn end(self, how: News) {
        self.send(how).await;
    }

    async fn send(&self, news: News) {
        let request = Request::News { node: self.node.clone(), link: self.link, news };
        if self.requests.send(request).await.is_err() {
            tracing::trace!("news of a node come too late: the balancer stops");
        }
    }
}

impl Nodes {
    /// Keeps `fleet` from now on, until `stop`.
    pub fn keep(fleet: Fleet, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (requests, waiting) = mpsc::channel(NEWS_WAITING_MAX);
        let scaler = Scaler::new(fleet.config().scale);
        let keeper = Keeper {
            fleet,
            links: HashMap::new(),
            next_link: 0,
            coming: Coming::default(),
            requests: requests.downgrade(),
            scaler,
            scale: None,
        };
        tasks.spawn(keeper.run(waiting, stop.clone()));
        Self { requests, tasks: tasks.clone(), stop: stop.clone() }
    }

    /// Follows the agent of this process.
    pub fn follow_local(&self, mut reports: watch::Receiver<Arc<NodeReport>>) {
        reports.mark_changed();
        let (requests, stop) = (self.requests.clone(), self.stop.clone());
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            while reports.changed().await.is_ok() {
                let report = Arc::clone(&reports.borrow_and_update());
                if requests.send(Request::Local(report)).await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Lets a link speak for the node of this hello.
    ///
    /// # Errors
    /// Another one does.
    pub(crate) async fn join(&self, hello: Hello, remote: SocketAddr) -> Result<Joined, Refused> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Join { hello: Box::new(hello), remote, answer };
        let stopping = || Refused::Absurd { what: "this balancer stops".to_owned() };
        self.requests.send(request).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    /// The fleet as it is now; `None` if the balancer stops.
    pub async fn look(&self) -> Option<Look> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Look { answer }).await.ok()?;
        answered.await.ok()
    }

    /// Has a node do something. It is on its way then, not done: the node's reports show what came of it.
    ///
    /// # Errors
    /// The node is not known, or not linked.
    pub async fn tell(&self, node: &NodeId, command: Command) -> Result<(), TellError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Tell { node: node.clone(), command, answer };
        let away = || TellError::Away(node.clone());
        self.requests.send(request).await.map_err(|_| away())?;
        answered.await.map_err(|_| away())?
    }
}

/// The link that speaks for a node.
#[derive(Debug)]
struct Link {
    number: u64,
    epoch: u64,
    remote: SocketAddr,
    heard: Arc<LastHeard>,
    /// What of that the fleet knows.
    known_at: Instant,
    /// Beats count from the first report on: before, what is known is of an earlier life.
    has_reported: bool,
    wanted: mpsc::Sender<BalancerMessage>,
}

impl Link {
    fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard.at().max(self.known_at)) >= SILENT
    }

    /// Says something that the agent will be told again if it does not take it now.
    fn say(&self, message: BalancerMessage) {
        if self.wanted.try_send(message).is_err() {
            tracing::debug!(remote = %self.remote, "an agent does not read what it is told");
        }
    }
}

/// News that are applied together, so that a view is published once for all of them: a thousand agents that come at
/// once would cost a thousand rings.
#[derive(Debug, Default)]
struct Coming {
    members: Vec<NodeConfig>,
    /// Of these nothing is known that is so.
    new_lives: Vec<NodeId>,
    reports: Vec<NodeReport>,
}

#[derive(Debug)]
struct Keeper {
    fleet: Fleet,
    links: HashMap<NodeId, Link>,
    next_link: u64,
    coming: Coming,
    requests: mpsc::WeakSender<Request>,
    scaler: Scaler,
    scale: Option<ScaleSignal>,
}

impl Keeper {
    async fn run(mut self, mut waiting: mpsc::Receiver<Request>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            // All arms are cancel-safe: nothing is taken from the channel unless it completes.
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => self.look(now()),
                _ = tick.tick() => self.tick(now()),
                count = waiting.recv_many(&mut batch, NEWS_WAITING_MAX) => {
                    if count == 0 {
                        return;
                    }
                    let now = now();
                    for request in batch.drain(..) {
                        self.take(request, now);
                    }
                    // While agents come in numbers, the next tick makes one ring for all of them.
                    if self.coming.members.is_empty() || self.coming.reports.len() >= NEWS_WAITING_MAX {
                        self.apply(now);
                    }
                }
            }
        }
    }

    /// Works out how many nodes there should be, and tells the metrics how the fleet is.
    fn look(&mut self, now: Instant) {
        let details = self.fleet.details(now);
        let signal = self.scaler.look(&details, self.fleet.room().waiting() as usize, now);
        let (ejections, waiting) = (self.fleet.ejections(), self.fleet.room().counts());
        Sight { details: &details, signal: &signal, ejections, waiting }.show();
        self.scale = Some(signal);
    }

    /// Tells the fleet who was heard, then looks who is silent.
    fn tick(&mut self, now: Instant) {
        self.apply(now);
        for (node, link) in &mut self.links {
            let heard_at = link.heard.at();
            if link.has_reported && heard_at > link.known_at {
                link.known_at = heard_at;
                if self.fleet.heard(node, heard_at) == Heard::NeedsWhole {
                    link.say(BalancerMessage::SendWhole);
                }
            }
        }
        self.fleet.tick(now);
    }

    /// Applies what has come so far.
    fn apply(&mut self, now: Instant) {
        let Coming { members, new_lives, reports } = &mut self.coming;
        if !members.is_empty() {
            self.fleet.join_all(members.drain(..), now);
        }
        for node in new_lives.drain(..) {
            // It takes calls from its first report on, and if it falls silent before that, never.
            self.fleet.lost(&node, now);
        }
        if !reports.is_empty() {
            let applied = self.fleet.apply(reports.iter(), now);
            gauges::count(&applied);
            reports.clear();
            for node in applied.gaps {
                self.say(&node, BalancerMessage::SendWhole);
            }
            for (node, absurd) in applied.refused {
                self.say(&node, BalancerMessage::Refused(Refused::Absurd { what: absurd.to_string() }));
            }
        }
    }

    fn say(&self, node: &NodeId, message: BalancerMessage) {
        if let Some(link) = self.links.get(node) {
            link.say(message);
        }
    }

    fn take(&mut self, request: Request, now: Instant) {
        match request {
            Request::Local(report) => {
                gauges::count(&self.fleet.apply([&*report], now));
            }
            Request::Join { hello, remote, answer } => {
                // One that does not wait for the answer any more has broken off.
                if let Err(Ok(joined)) = answer.send(self.join(*hello, remote, now)) {
                    self.news(&joined.node, joined.link, News::Lost, now);
                }
            }
            Request::News { node, link, news } => self.news(&node, link, news, now),
            Request::Look { answer } => {
                self.apply(now);
                let look = Look {
                    details: self.fleet.details(now),
                    waiting_calls: self.fleet.room().waiting(),
                    scale: self.scale.clone(),
                };
                // One that does not wait for the answer any more needs none.
                drop(answer.send(look));
            }
            Request::Tell { node, command, answer } => {
                self.apply(now);
                drop(answer.send(self.tell(&node, command)));
            }
        }
    }

    fn join(&mut self, hello: Hello, remote: SocketAddr, now: Instant) -> Result<Joined, Refused> {
        let Hello { node, epoch, calls_at, zone, weight, version, .. } = hello;
        let other = self.links.get(&node);
        let is_new_life = other.is_none_or(|other| other.epoch != epoch);
        if let Some(other) = other {
            if is_new_life && !other.is_silent(now) {
                return Err(Refused::SameName { node, address: other.remote.to_string() });
            }
            // What its life before has reported comes first.
            self.apply(now);
        }
        let address = match calls_at {
            CallsAt::Port(port) => SocketAddr::new(remote.ip().to_canonical(), port).to_string(),
            CallsAt::Address(address) => address,
        };
        tracing::info!(%node, address, version, "a node has come");
        let config = NodeConfig {
            id: node.clone(),
            address: Address::Remote(address.into()),
            weight: weight.map(Weight::new),
            zone: zone.map(Into::into),
        };
        self.coming.members.push(config);
        if is_new_life {
            self.coming.new_lives.push(node.clone());
        }
        let (wanted, receiver) = mpsc::channel(WANTED_WAITING_MAX);
        let number = self.next_link;
        self.next_link += 1;
        let heard = Arc::new(LastHeard::new(now));
        let link = Link {
            number,
            epoch,
            remote,
            heard: Arc::clone(&heard),
            known_at: now,
            has_reported: false,
            wanted,
        };
        self.links.insert(node.clone(), link);
        let requests =
            self.requests.upgrade().ok_or(Refused::Absurd { what: "this balancer stops".to_owned() })?;
        Ok(Joined { node, link: number, heard, requests, wanted: receiver })
    }

    fn news(&mut self, node: &NodeId, link: u64, news: News, now: Instant) {
        let Some(current) = self.links.get_mut(node).filter(|current| current.number == link) else { return };
        current.known_at = now;
        match news {
            News::Report(report) => {
                current.has_reported = true;
                self.coming.reports.push(*report);
            }
            News::Left => {
                self.links.remove(node);
                self.apply(now);
                self.fleet.leave(node, now);
            }
            News::Lost => {
                self.links.remove(node);
                self.apply(now);
                self.fleet.lost(node, now);
            }
        }
    }

    fn tell(&self, node: &NodeId, command: Command) -> Result<(), TellError> {
        let is_member = || self.fleet.view().members().iter().any(|member| member.node().id() == node);
        match self.links.get(node) {
            Some(link) => {
                let sent = link.wanted.try_send(BalancerMessage::Command(command));
                sent.map_err(|_| TellError::Away(node.clone()))
            }
            None if is_member() => Err(TellError::Away(node.clone())),
            None => Err(TellError::Unknown(node.clone())),
        }
    }
}

/// The clock of this task. Tests may stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
