//! An agent on some driver, and calls to it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kiln_agent::container::Driver;
use kiln_agent::slots::SlotsConfig;
use kiln_agent::{Agent, AgentConfig};
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, CallHop, CallKind, CallRequest, CallResponse, Failure};
use kiln_shared::contract::Limits;
use kiln_shared::function::Function;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::{CallId, NodeId};
use kiln_shared::record::{CallRecord, Record, RecordSink};
use tokio::sync::mpsc;

/// A caller of an agent, who sees the records too.
pub(crate) struct Caller {
    pub(crate) agent: Agent,
    records: mpsc::Receiver<Record>,
}

impl Caller {
    /// Starts an agent that may commit so much memory.
    pub(crate) fn of(driver: Arc<dyn Driver>, memory_mib: u64) -> Self {
        Self::with(driver, SlotsConfig::for_node(memory_mib, 2), Limits::default())
    }

    /// Starts an agent.
    pub(crate) fn with(driver: Arc<dyn Driver>, slots: SlotsConfig, limits: Limits) -> Self {
        let (sink, records) = RecordSink::bounded(1000);
        let config = AgentConfig { node: NodeId::new("test"), slots, limits };
        Self { agent: Agent::start(config, driver, sink), records }
    }

    /// Makes a call.
    pub(crate) async fn send(&self, request: CallRequest) -> Result<CallResponse, Failure> {
        self.agent.call(Box::new(request)).await.map_err(|error| match error {
            CallError::Failed(failure) => failure,
            CallError::Refused { reason, .. } => panic!("refused: {reason}"),
        })
    }

    /// Calls a function.
    pub(crate) async fn call(
        &self,
        function: &Arc<Function>,
        body: impl Into<Bytes>,
    ) -> Result<CallResponse, Failure> {
        self.send(request(function, body.into())).await
    }

    /// Calls a function, which must answer with 200 and a text.
    pub(crate) async fn text(&self, function: &Arc<Function>, body: impl Into<Bytes>) -> String {
        let response = self.call(function, body).await.expect("an answer");
        assert_eq!(response.status, 200);
        text_of(response).await
    }

    /// Records of the next `calls` calls that end.
    pub(crate) async fn records(&mut self, calls: usize) -> Vec<CallRecord> {
        let mut records = Vec::new();
        while records.len() < calls {
            if let Record::Call(record) = self.records.recv().await.expect("the agent lives") {
                records.push(record);
            }
        }
        records
    }

    /// The records of all calls that ended and were not looked at yet.
    pub(crate) fn records_left(&mut self) -> Vec<CallRecord> {
        let left = std::iter::from_fn(|| self.records.try_recv().ok());
        left.filter_map(|record| if let Record::Call(record) = record { Some(record) } else { None })
            .collect()
    }

    /// Waits until the log has `text`.
    pub(crate) async fn logged(&mut self, text: &str) {
        let mut log = String::new();
        while !log.contains(text) {
            if let Record::Log(piece) = self.records.recv().await.expect("the agent lives") {
                log.push_str(&piece.text);
            }
        }
    }
}

/// A POST to `/invoke`.
pub(crate) fn request(function: &Arc<Function>, body: Bytes) -> CallRequest {
    CallRequest {
        id: CallId::generate(),
        function: Arc::clone(function),
        kind: CallKind::Invoke,
        method: http::Method::POST,
        url: "http://localhost/invoke/x".to_owned(),
        path: "/invoke".into(),
        headers: HeaderBlock::new(),
        body: Body::from(body),
        received: Instant::now(),
        placement: None,
    }
}

/// The whole body of an answer, which must be text.
pub(crate) async fn text_of(response: CallResponse) -> String {
    let body = response.body.collect(1 << 24).await.expect("a whole answer");
    String::from_utf8(body.to_vec()).expect("text")
}
