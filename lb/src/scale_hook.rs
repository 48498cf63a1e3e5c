//! Tells whoever adds and removes machines how many nodes there should be: one POST when that changes.
//!
//! Owns the way there. When what is told is decided in [`crate::fleet::scale_news`]. One request at a time; one that
//! fails is not kept: the next try says what is so by then. Every balancer knows the whole fleet, so only one speaks
//! (`speaks`), and a number is the number there should be, not a difference: told twice, it does no harm.

use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use jiff::Timestamp;
use kiln_shared::ids::{Id, NodeId};
use kiln_shared::link::message::Command;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;
use tokio::sync::watch;

use crate::fleet::scale::{ScaleSignal, is_empty};
use crate::fleet::scale_news::{News, NewsPolicy, ScaleNews, Step};
use crate::nodes::{Look, Nodes};

/// How often the signal is looked at; it is worked out as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest wait after a request that failed.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);
/// HMAC-SHA256 of the body under the shared secret, as `sha256=` and hexadecimal digits.
pub const SIGNATURE_HEADER: &str = "Kiln-Signature";

/// Where the news go.
#[derive(Debug, Clone)]
pub struct HookConfig {
    /// Gets the POST; any answer of 200 to 299 says that it was heard.
    pub url: Url,
    /// What both sides know; `None` signs nothing.
    pub secret: Option<hmac::Key>,
    /// When there are news.
    pub news: NewsPolicy,
}

/// What is said, as JSON.
#[derive(Debug, Serialize)]
struct Message {
    /// Names this event: the same in a further try to tell it.
    id: String,
    /// What happened.
    pub event: Event,
    /// The balancer that says so.
    pub balancer: String,
    /// When.
    pub time: Timestamp,
    /// Nodes that there should be.
    pub desired_nodes: usize,
    /// Nodes that take calls.
    pub nodes: usize,
    /// What speaks for the number, as in the metrics.
    pub reason: String,
    /// The share of the fleet's room that is in use, 0 to 1.
    pub utilization: f64,
    /// What is used more with each minute, in nodes of the mean size.
    pub trend_nodes_per_minute: f64,
    /// Memory that containers could still have, in MiB.
    pub memory_free_mib: u64,
    /// Calls that wait for a place at the balancer.
    pub waiting_calls: usize,
    /// The node to remove: of an event `empty` the one that is empty, else the one that is to be drained first.
    pub remove: Option<NodeId>,
    /// All nodes that are drained and empty, whoever drained them.
    pub empty_nodes: Vec<NodeId>,
}

/// What happened.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Event {
    /// Another number of nodes is wanted.
    Scale,
    /// The node that was to go is empty.
    Empty,
}

/// Speaks for a fleet.
#[derive(Debug)]
pub struct ScaleHook {
    config: HookConfig,
    http: reqwest::Client,
    balancer: String,
    nodes: Nodes,
    speaks: watch::Receiver<bool>,
    news: ScaleNews,
    /// What was not heard yet, and its name.
    unheard: Option<(News, Id)>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl ScaleHook {
    /// For the balancer of this name, which tells only while it `speaks`.
    ///
    /// # Errors
    /// The certificates of public authorities cannot be loaded.
    pub fn new(
        config: HookConfig,
        balancer: String,
        nodes: Nodes,
        speaks: watch::Receiver<bool>,
    ) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("kiln-lb/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let news = ScaleNews::new(config.news);
        Ok(Self { config, http, balancer, nodes, speaks, news, unheard: None, failures: 0, retry_at: None })
    }

    /// Tells news for as long as it is polled, or until the balancer stops.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !*self.speaks.borrow_and_update() {
                // Whoever speaks next begins with what it sees itself.
                self.news = ScaleNews::new(self.config.news);
                continue;
            }
            let Some(look) = self.nodes.look().await else { return };
            let Some(signal) = look.scale.clone() else { continue };
            match self.news.look(&signal, &look.details, now()) {
                Some(Step::Tell(news)) => self.tell(news, &signal, &look).await,
                Some(Step::Drain(node)) => self.drain(&node).await,
                Some(Step::Undrain(node)) => self.take_back(&node).await,
                None => {}
            }
        }
    }

    async fn drain(&mut self, node: &NodeId) {
        if self.command(node, Command::Drain).await {
            self.news.drains();
        }
    }

    async fn take_back(&mut self, node: &NodeId) {
        if self.command(node, Command::Undrain).await {
            self.news.took_back();
        }
    }

    async fn command(&self, node: &NodeId, command: Command) -> bool {
        let name = command.name();
        match self.nodes.tell(node, command).await {
            Ok(()) => {
                tracing::info!(%node, command = name, "the fleet is scaled");
                true
            }
            Err(error) => {
                tracing::debug!(%node, command = name, %error, "a node cannot be told");
                false
            }
        }
    }

    async fn tell(&mut self, news: News, signal: &ScaleSignal, look: &Look) {
        if self.retry_at.is_some_and(|at| now() < at) {
            return;
        }
        let id = match self.unheard.take() {
            Some((unheard, id)) if unheard == news => id,
            _ => Id::generate(),
        };
        let message = self.message(id, &news, signal, look);
        let outcome = match self.post(&message).await {
            Ok(()) => {
                tracing::info!(event = ?message.event, nodes = message.nodes, desired = message.desired_nodes,
                    reason = message.reason, remove = ?message.remove, "told the scale webhook");
                self.news.told(&news, now());
                (self.failures, self.retry_at) = (0, None);
                "heard"
            }
            Err(error) => {
                let wait = (RETRY_MIN * 2_u32.saturating_pow(self.failures)).min(RETRY_MAX);
                self.failures = (self.failures + 1).min(16);
                self.retry_at = Some(now() + wait);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    retry_seconds = wait.as_secs(),
                    "the scale webhook did not hear"
                );
                self.unheard = Some((news, id));
                "failed"
            }
        };
        metrics::counter!("kiln_scale_webhooks_total", "outcome" => outcome).increment(1);
    }

    fn message(&self, id: Id, news: &News, signal: &ScaleSignal, look: &Look) -> Message {
        let (event, desired_nodes, remove) = match news {
            News::Wanted { nodes, remove } => (Event::Scale, *nodes, remove.clone()),
            News::Empty(node) => (Event::Empty, signal.nodes_wanted, Some(node.clone())),
        };
        let empty = look.details.iter().filter(|detail| is_empty(detail));
        Message {
            id: id.as_str().to_owned(),
            event,
            balancer: self.balancer.clone(),
            time: Timestamp::now(),
            desired_nodes,
            nodes: signal.nodes,
            reason: signal.reason.as_str().to_owned(),
            utilization: signal.utilisation,
            trend_nodes_per_minute: signal.trend * 60.0,
            memory_free_mib: signal.memory_free_mib,
            waiting_calls: signal.waiting,
            remove,
            empty_nodes: empty.map(|detail| detail.id.clone()).collect(),
        }
    }

    async fn post(&self, message: &Message) -> reqwest::Result<()> {
        let body = serde_json::to_vec(message).expect("a message always serializes");
        let mut request = self.http.post(self.config.url.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(secret) = &self.config.secret {
            request = request.header(SIGNATURE_HEADER, signature(secret, &body));
        }
        let answered = request.body(body).send().await.and_then(reqwest::Response::error_for_status);
        // Its URL may hold a secret.
        answered.map(drop).map_err(reqwest::Error::without_url)
    }
}

/// What [`SIGNATURE_HEADER`] says of a body.
pub fn signature(secret: &hmac::Key, body: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256=".to_owned();
    for byte in hmac::sign(secret, body).as_ref() {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

/// The clock of this task. Tests may stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_what_others_compute() {
        // RFC 4231, test case 2.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        assert_eq!(
            signature(&key, b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
