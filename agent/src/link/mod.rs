//! The agent's side of the link: one QUIC connection to every balancer (`kiln_shared::link`).
//!
//! Balancers come from a list, by name resolution, and from balancers themselves, who know each other from the catalog.
//! Each has a task of its own here, so that none that is slow, away or wrong disturbs the others.

mod backoff;
mod balancers;
mod commands;
mod outbox;
mod renew;
mod session;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_shared::identity::{certificate_ended, peer_of_connection};
use kiln_shared::link::SERVER_NAME;
use kiln_shared::link::message::{Answer, Ask, Command, Hello};
use kiln_shared::link::quic::CODE_DONE;
use kiln_shared::report::NodeReport;
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::backoff::Backoff;
use self::balancers::{Balancers, Told};
pub use self::commands::Orders;
pub use self::outbox::Outbox;
pub use self::renew::renew;
pub use self::session::LinkError;
use self::session::{Ends, ask, hand_records, open};
use self::work::LinkedQueue;
use crate::drain::Drain;

/// Pause before a balancer is dialled again at an address at which it is another's double.
const DOUBLE_PAUSE: Duration = Duration::from_secs(10);
/// News of where balancers are that may wait to be looked at.
const TOLD_WAITING_MAX: usize = 16;

/// Longest time for one balancer to answer a question.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no link.
    #[error("no balancer is linked")]
    NoBalancer,
    /// None of them can say.
    #[error("{0}")]
    Cannot(String),
    /// The link broke.
    #[error(transparent)]
    Link(LinkError),
    /// None in time.
    #[error("a balancer did not answer in time")]
    Silent,
}

/// What the link needs to know.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Who this agent is; the clock is set when it is said.
    pub hello: Hello,
    /// Balancers to begin with, as `host:port`. A host of several addresses is several balancers.
    pub balancers: Vec<String>,
    /// TLS settings with this agent's certificate.
    pub tls: ClientConfig,
    /// Who takes queued work from balancers, if anybody does.
    pub drain: Option<Drain>,
}

/// The balancers that this agent is linked with.
#[derive(Debug, Clone, Default)]
pub struct Linked {
    /// By the balancer's name; without a connection while the balancer is asked whether the agent is welcome.
    balancers: Arc<Mutex<BTreeMap<String, Option<Connection>>>>,
}

impl Linked {
    /// How many there are.
    pub fn count(&self) -> usize {
        count(&self.balancers())
    }

    /// Asks one balancer after the other until one has an answer.
    ///
    /// # Errors
    /// None has; why the last one has none.
    pub async fn ask(&self, question: &Ask) -> Result<Answer, AskError> {
        let connections: Vec<Connection> = self.balancers().values().flatten().cloned().collect();
        let mut last = AskError::NoBalancer;
        for connection in connections {
            match timeout(ASK_TIMEOUT, ask(&connection, question)).await {
                Ok(Ok(Answer::Cannot(why))) => last = AskError::Cannot(why),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = AskError::Link(error),
                Err(_elapsed) => last = AskError::Silent,
            }
        }
        Err(last)
    }

    fn balancers(&self) -> MutexGuard<'_, BTreeMap<String, Option<Connection>>> {
        self.balancers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of the link to a balancer for as long as the returned value lives; `None` if it is taken.
    fn enter(&self, balancer: &str) -> Option<Entered<'_>> {
        let mut balancers = self.balancers();
        if balancers.contains_key(balancer) {
            return None;
        }
        balancers.insert(balancer.to_owned(), None);
        Some(Entered { linked: self, balancer: balancer.to_owned() })
    }
}

fn count(balancers: &BTreeMap<String, Option<Connection>>) -> usize {
    balancers.values().flatten().count()
}

struct Entered<'a> {
    linked: &'a Linked,
    balancer: String,
}

impl Entered<'_> {
    /// The agent is welcome: the balancer may be asked from now on.
    fn welcome(&self, connection: &Connection) {
        let mut balancers = self.linked.balancers();
        balancers.insert(self.balancer.clone(), Some(connection.clone()));
        metrics::gauge!("kiln_links").set(count(&balancers) as f64);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut balancers = self.linked.balancers();
        balancers.remove(&self.balancer);
        metrics::gauge!("kiln_links").set(count(&balancers) as f64);
    }
}

/// Links an agent with its balancers on the current runtime, until `stop`. What balancers want of the agent comes out of
/// the returned channel; it must be read.
pub fn start(
    config: LinkConfig,
    dialer: Endpoint,
    reports: watch::Receiver<Arc<NodeReport>>,
    outbox: Outbox,
    commands: mpsc::Sender<Command>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Linked {
    let (told, waiting) = mpsc::channel(TOLD_WAITING_MAX);
    let ends = Ends { reports, outbox, commands, told, stop: stop.clone() };
    let linked = Linked::default();
    let keeper =
        Keeper { config: Arc::new(config), dialer, ends, linked: linked.clone(), tasks: tasks.clone() };
    tasks.spawn(stop.clone().run_until_cancelled_owned(keeper.run(waiting)));
    linked
}

/// Has one task for every balancer that there is.
struct Keeper {
    config: Arc<LinkConfig>,
    dialer: Endpoint,
    ends: Ends,
    linked: Linked,
    tasks: TaskTracker,
}

impl Keeper {
    async fn run(self, mut told: mpsc::Receiver<Told>) {
        let mut balancers = Balancers::new(self.config.balancers.clone());
        let mut links: HashMap<SocketAddr, CancellationToken> = HashMap::new();
        loop {
            let addresses = balancers.resolve().await;
            links.retain(|address, end| {
                let stays = addresses.contains(address);
                if !stays {
                    tracing::info!(%address, "a balancer is not listed any more");
                    end.cancel();
                }
                stays
            });
            for address in addresses {
                links.entry(address).or_insert_with(|| self.link(address));
            }
            balancers.changed(&mut told).await;
        }
    }

    /// Starts the task of one balancer; cancelling the token ends it.
    fn link(&self, address: SocketAddr) -> CancellationToken {
        let end = self.ends.stop.child_token();
        let link = Link {
            address,
            config: Arc::clone(&self.config),
            dialer: self.dialer.clone(),
            ends: Ends { stop: end.clone(), ..self.ends.clone() },
            linked: self.linked.clone(),
        };
        self.tasks.spawn(link.keep());
        end
    }
}

/// Takes queued work from a balancer for as long as it is linked.
async fn drain(drain: Option<&Drain>, balancer: &str, connection: &Connection) -> Infallible {
    if let Some(drain) = drain {
        drain.tap(balancer, &LinkedQueue(connection)).await;
    }
    pending().await
}

/// The link to one address.
struct Link {
    address: SocketAddr,
    config: Arc<LinkConfig>,
    dialer: Endpoint,
    ends: Ends,
    linked: Linked,
}

impl Link {
    async fn keep(self) {
        let mut backoff = Backoff::new();
        let mut said = String::new();
        while !self.ends.stop.is_cancelled() {
            let mut welcome = None;
            let error = match self.once(&mut welcome).await {
                Ok(()) => return,
                Err(error) => error,
            };
            if let Some(since) = welcome {
                backoff.held(Instant::now().duration_since(since));
                said.clear();
            }
            let pause = match &error {
                LinkError::Twice { .. } => DOUBLE_PAUSE,
                _ => backoff.pause(),
            };
            // Once for each kind of trouble, not once for each try.
            let text = error.to_string();
            if text != said {
                let balancer = self.address;
                match &error {
                    LinkError::Twice { .. } => tracing::debug!(%balancer, "{error}"),
                    LinkError::Refused(_) => tracing::error!(%balancer, "{error}"),
                    _ => tracing::warn!(
                        %balancer,
                        error = &error as &dyn std::error::Error,
                        "no link to a balancer; trying again, containers are kept"
                    ),
                }
                said = text;
            }
            let reason = if let LinkError::Refused(_) = &error { "refused" } else { "broken" };
            metrics::counter!("kiln_link_failures_total", "reason" => reason).increment(1);
            self.ends.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// Connects once and stays until the link breaks or is no longer wanted. Notes since when the agent is welcome.
    async fn once(&self, welcome: &mut Option<Instant>) -> Result<(), LinkError> {
        let connecting = self.dialer.connect_with(self.config.tls.clone(), self.address, SERVER_NAME)?;
        // Cancel-safe: a handshake that nobody waits for is given up.
        let Some(connection) = self.ends.stop.run_until_cancelled(connecting).await else { return Ok(()) };
        let connection = connection?;
        let balancer = peer_of_connection(&connection)?.name().to_owned();
        // Before the hello: a second link would take the first one's place at the balancer.
        let Some(entered) = self.linked.enter(&balancer) else {
            connection.close(CODE_DONE, b"linked already");
            return Err(LinkError::Twice { balancer });
        };
        let (writer, reader) = connection.open_bi().await?;
        let mut session = open(&self.config.hello, &balancer, reader, writer).await?;
        entered.welcome(&connection);
        *welcome = Some(Instant::now());
        tracing::info!(balancer, address = %self.address, "linked");
        let ended = tokio::select! {
            ended = session.run(&self.ends) => ended,
            ended = hand_records(&connection, &self.ends.outbox) => ended,
            never = drain(self.config.drain.as_ref(), &balancer, &connection) => match never {},
            () = certificate_ended(&connection) => Err(LinkError::CertificateEnded),
        };
        // At the agent's end nobody listens any more.
        drop(self.ends.told.send(Told::Ended(balancer)).await);
        if ended.is_ok() {
            // The goodbye has to arrive before the connection is closed.
            drop(timeout(Duration::from_secs(1), session.end()).await);
        }
        connection.close(CODE_DONE, b"");
        ended
    }
}
