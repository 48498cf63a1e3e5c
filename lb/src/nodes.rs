//! News of the nodes: asks remote agents how they are, fetches their call records, and keeps the [`Fleet`] current.
//!
//! Owns the fleet once calls are served. One task a node and kind of news; a node that does not answer is asked again
//! with a growing pause, and its silence is what takes it out of placement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kiln_shared::ids::NodeId;
use kiln_shared::link::{BEAT, RECORDS_PATH, REPORT_PATH, RecordBatch};
use kiln_shared::record::RecordSink;
use kiln_shared::report::NodeReport;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fleet::Fleet;
use crate::forward::{Control, ControlError};

/// News that may wait to be applied.
const NEWS_WAITING_MAX: usize = 1024;
/// How often silence is looked for.
const TICK: Duration = Duration::from_secs(1);
/// An agent that has not answered by now has missed its beat.
const ANSWER_TIMEOUT: Duration = BEAT.saturating_mul(2);
/// Pause after a question without an answer; doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Longest report: some 100,000 functions on a node.
const REPORT_BYTES_MAX: usize = 16 << 20;
/// Longest batch of records, logs included.
const RECORDS_BYTES_MAX: usize = 64 << 20;

/// What is learned of a node.
#[derive(Debug)]
enum News {
    Report(Arc<NodeReport>),
    /// It is there and nothing changed.
    Heard(NodeId),
}

/// Keeps a fleet current. Dropping it changes nothing: its tasks end with their token.
#[derive(Debug)]
pub struct Nodes {
    news: mpsc::Sender<News>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Nodes {
    /// Takes the fleet over. Everything that runs for it is counted by `tasks` and ends with `stop`.
    pub fn keep(fleet: Fleet, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (news, receiver) = mpsc::channel(NEWS_WAITING_MAX);
        tasks.spawn(keep(fleet, receiver, stop.clone()));
        Self { news, tasks: tasks.clone(), stop: stop.clone() }
    }

    /// Follows the agent of this process.
    pub fn follow_local(&self, mut reports: watch::Receiver<Arc<NodeReport>>) {
        reports.mark_changed();
        let (news, stop) = (self.news.clone(), self.stop.clone());
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            while reports.changed().await.is_ok() {
                let report = Arc::clone(&reports.borrow_and_update());
                if news.send(News::Report(report)).await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Follows the agent that `control` reaches, under the name by which the fleet knows it, and hands its call
    /// records to `records`.
    pub fn follow_remote(&self, node: &NodeId, control: &Control, records: RecordSink) {
        let report = follow_report(node.clone(), control.clone(), self.news.clone());
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(report));
        let fetch = fetch_records(control.clone(), records);
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(fetch));
    }
}

async fn keep(mut fleet: Fleet, mut news: mpsc::Receiver<News>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    let mut batch = Vec::new();
    loop {
        // All arms are cancel-safe: nothing is taken from the channel unless it completes.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => fleet.tick(Instant::now()),
            count = news.recv_many(&mut batch, NEWS_WAITING_MAX) => {
                if count == 0 {
                    return;
                }
                let now = Instant::now();
                fleet.apply(batch.iter().filter_map(News::report), now);
                for heard in batch.drain(..) {
                    if let News::Heard(node) = heard {
                        fleet.heard(&node, now);
                    }
                }
            }
        }
    }
}

impl News {
    fn report(&self) -> Option<&NodeReport> {
        match self {
            Self::Report(report) => Some(report),
            Self::Heard(_) => None,
        }
    }
}

/// Pauses that grow while a node does not answer; says so once.
struct Patience {
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { pause: RETRY_PAUSE }
    }

    fn answered(&mut self, node: &NodeId) {
        if self.pause > RETRY_PAUSE {
            tracing::info!(%node, "a node answers again");
        }
        self.pause = RETRY_PAUSE;
    }

    async fn silent(&mut self, node: &NodeId, error: &ControlError) {
        if self.pause == RETRY_PAUSE {
            tracing::warn!(%node, error = error as &dyn std::error::Error, "a node does not answer");
        }
        self.pause().await;
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
    }
}

async fn follow_report(node: NodeId, mut control: Control, news: mpsc::Sender<News>) {
    let mut patience = Patience::new();
    let mut target = REPORT_PATH.to_owned();
    loop {
        let learned = match next_report(&mut control, &target).await {
            Ok(Some(report)) => {
                target = format!("{REPORT_PATH}?after={}.{}", report.epoch, report.sequence);
                // The fleet's list says what this node is called here.
                News::Report(Arc::new(NodeReport { node: node.clone(), ..report }))
            }
            Ok(None) => News::Heard(node.clone()),
            Err(error) => {
                patience.silent(&node, &error).await;
                continue;
            }
        };
        patience.answered(&node);
        if news.send(learned).await.is_err() {
            return;
        }
    }
}

async fn next_report(control: &mut Control, target: &str) -> Result<Option<NodeReport>, ControlError> {
    let (status, body) = control.ask("GET", target, Bytes::new(), ANSWER_TIMEOUT, REPORT_BYTES_MAX).await?;
    if status == 204 { Ok(None) } else { Ok(Some(serde_json::from_slice(&body)?)) }
}

async fn fetch_records(mut control: Control, records: RecordSink) {
    let mut patience = Patience::new();
    let mut taken = 0;
    loop {
        let target = format!("{RECORDS_PATH}?taken={taken}");
        match next_batch(&mut control, &target).await {
            Ok(batch) => {
                patience = Patience::new();
                let Some(batch) = batch else { continue };
                taken = batch.number;
                for record in batch.records {
                    // A store that is slow slows this node's records, not its calls.
                    if !records.deliver(record).await {
                        return;
                    }
                }
            }
            // That it does not answer is said where its reports are asked for.
            Err(_) => patience.pause().await,
        }
    }
}

async fn next_batch(control: &mut Control, target: &str) -> Result<Option<RecordBatch>, ControlError> {
    let (status, body) = control.ask("POST", target, Bytes::new(), ANSWER_TIMEOUT, RECORDS_BYTES_MAX).await?;
    if status == 204 { Ok(None) } else { Ok(Some(serde_json::from_slice(&body)?)) }
}
