//! Destinations that are URLs: balancers POST to them themselves, from the queue, until they answer 2xx.

use std::time::Duration;

use kiln_shared::queue::{Outcome, Reserved, Retry, Settlement, StoredCall};
use reqwest::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Dispatcher;

/// Most POSTs at a time.
const DELIVERIES_MAX: usize = 32;
/// Longest time of one POST, its answer included.
const POST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a delivery is this balancer's; longer than a POST may take, so that no lease needs renewal.
const LEASE: Duration = Duration::from_mins(1);
/// Longest wait for deliveries in one question.
const WAIT: Duration = Duration::from_secs(20);
/// Pause after the queue was away.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);
/// What is kept of an answer that is no success, in bytes.
const ANSWER_BYTES_MAX: usize = 512;

/// POSTs what is to be delivered.
#[derive(Debug, Clone)]
pub(super) struct Deliverer {
    dispatcher: Dispatcher,
    worker: String,
    http: Client,
}

impl Deliverer {
    /// Delivers what `dispatcher`'s queue holds, as `worker`.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(super) fn new(dispatcher: Dispatcher, worker: String) -> reqwest::Result<Self> {
        let http = Client::builder()
            .timeout(POST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { dispatcher, worker, http })
    }

    /// Delivers until `stop`; what is under way then comes back when its lease ends.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut posting = JoinSet::new();
        while !stop.is_cancelled() {
            if posting.len() >= DELIVERIES_MAX {
                stop.run_until_cancelled(posting.join_next()).await;
                continue;
            }
            let room = DELIVERIES_MAX - posting.len();
            let enough = stop.child_token();
            let mut taking =
                std::pin::pin!(self.dispatcher.take_deliveries(&self.worker, room, LEASE, WAIT, &enough));
            let taken = loop {
                // What is taken must not be dropped, so the wait is ended from within.
                tokio::select! {
                    taken = &mut taking => break taken,
                    // Its place is free again.
                    Some(_) = posting.join_next() => enough.cancel(),
                }
            };
            match taken {
                Ok(messages) => {
                    for message in messages {
                        let deliverer = self.clone();
                        posting.spawn(async move { deliverer.deliver(message).await });
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot take deliveries from the queue");
                    stop.run_until_cancelled(tokio::time::sleep(TROUBLE_PAUSE)).await;
                }
            }
        }
    }

    async fn deliver(&self, message: Reserved) {
        let outcome = match self.post(&message).await {
            Ok(()) => Outcome::Done,
            Err((error, retry)) => Outcome::Failed { error, retry },
        };
        let word = if outcome == Outcome::Done { "delivered" } else { "failed" };
        metrics::counter!("kiln_deliveries_total", "outcome" => word).increment(1);
        let settlement = Settlement { receipt: message.receipt, outcome };
        if let Err(error) = self.dispatcher.settle_plainly(vec![settlement]).await {
            tracing::warn!(call = %message.receipt.id, %error, "a delivery may be made twice");
        }
    }

    async fn post(&self, message: &Reserved) -> Result<(), (String, Retry)> {
        let stored =
            StoredCall::read(&message.envelope).map_err(|error| (error.to_string(), Retry::Never))?;
        let mut request = self.http.post(&stored.url).body(message.payload.clone());
        for (name, value) in &stored.headers {
            request = request.header(name, value);
        }
        let request = request.header("Kiln-Delivery", message.receipt.id.as_str());
        let mut answer = request.send().await.map_err(|error| {
            // Its URL may hold a secret. What went wrong is in the errors below it.
            let error = anyhow::Error::from(error.without_url());
            (format!("{error:#}"), Retry::ByPolicy)
        })?;
        if answer.status().is_success() {
            return Ok(());
        }
        let mut text = Vec::new();
        while text.len() < ANSWER_BYTES_MAX
            && let Ok(Some(chunk)) = answer.chunk().await
        {
            text.extend_from_slice(&chunk);
        }
        text.truncate(ANSWER_BYTES_MAX);
        Err((format!("{}: {}", answer.status(), String::from_utf8_lossy(&text)), Retry::ByPolicy))
    }
}
