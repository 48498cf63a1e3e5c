//! An agent on a node with real containers, and requests to it.

use std::sync::Arc;

use bytes::Bytes;
use kiln_agent::container::docker::DockerDriver;
use kiln_agent::slots::SlotsConfig;
use kiln_shared::call::{CallKind, CallRequest};
use kiln_shared::contract::Limits;
use kiln_shared::function::Function;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::TriggerId;

use crate::support::calls::{Caller, request};
use crate::{Node, node};

/// An agent on a node of its own.
pub(crate) struct Agent {
    pub(crate) node: Node,
    pub(crate) caller: Caller,
}

impl Agent {
    pub(crate) async fn start() -> Self {
        Self::with_memory_mib(1024).await
    }

    /// An agent that may commit so much memory.
    pub(crate) async fn with_memory_mib(memory_mib: u64) -> Self {
        Self::with(SlotsConfig::for_node(memory_mib, 2), Limits::default()).await
    }

    pub(crate) async fn with(slots: SlotsConfig, limits: Limits) -> Self {
        let node = node().await;
        Self { caller: Caller::with(Arc::<DockerDriver>::clone(&node.driver), slots, limits), node }
    }

    /// Ends it; nothing of it is left.
    pub(crate) async fn close(self) {
        self.caller.agent.close().await;
        self.node.assert_gone();
    }
}

/// The value of the one header of this name.
pub(crate) fn header(headers: &HeaderBlock, wanted: &str) -> Option<String> {
    let mut found = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
    let value = found.next().map(|(_, value)| String::from_utf8(value.to_vec()).unwrap());
    assert!(found.next().is_none(), "{wanted} comes twice");
    value
}

/// A PUT through a trigger, with headers.
pub(crate) fn trigger_request(function: &Arc<Function>, body: Bytes) -> CallRequest {
    let mut call = request(function, body);
    call.kind = CallKind::Trigger(TriggerId::generate());
    call.method = http::Method::PUT;
    "http://api.example.com/t/tests/hello?x=1".clone_into(&mut call.url);
    call.path = "/hello".into();
    for (name, value) in
        [("content-type", "text/plain"), ("x-two", "one"), ("X-Two", "two"), ("Fn_call_id", "forged")]
    {
        call.headers.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    call
}
