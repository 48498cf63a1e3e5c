//! An agent whose functions answer at once: what a balancer is measured in front of.
//!
//! Its endpoint and its link are the agent's own; only the containers are missing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use bytes::Bytes;
use kiln_agent::link::{self, LinkConfig, Outbox};
use kiln_agent::serve::Endpoint;
use kiln_shared::body::Body;
use kiln_shared::call::{CallFuture, CallHop, CallRequest, CallResponse, Stages};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::identity::{CertificateAuthority, Credentials, Peer, Role, client_config};
use kiln_shared::ids::NodeId;
use kiln_shared::link::message::{CallsAt, Hello, PROTOCOL};
use kiln_shared::link::{LINK_ALPN, quic};
use kiln_shared::listen::bind;
use kiln_shared::record::RecordSink;
use kiln_shared::report::{NodeReport, ReportScope};
use kiln_shared::telemetry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cost;
use crate::stand_in::ANSWER_BODY;

/// Its certificate outlives every benchmark.
const VALID_FOR: Duration = Duration::from_hours(24);
const NAME: &str = "bench";

/// A running agent; dropping it ends it.
#[derive(Debug)]
pub struct InstantAgent {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// Answers every call at once.
struct Instantly;

impl CallHop for Instantly {
    fn call(&self, _request: Box<CallRequest>) -> CallFuture<'_> {
        let mut headers = HeaderBlock::new();
        headers.push_valid(b"Content-Type", b"text/plain");
        let body = Body::from(Bytes::from_static(ANSWER_BODY));
        let stages = Stages::default();
        Box::pin(std::future::ready(Ok(CallResponse { status: 200, headers, body, stages })))
    }
}

impl InstantAgent {
    /// Starts it with a certificate of the CA in `ca_folder`, linked to the balancer at `link`, on `core` alone if one
    /// is given.
    ///
    /// # Errors
    /// If the CA cannot be read or no port is free.
    pub fn start(ca_folder: &Path, folder: &Path, link: SocketAddr, core: Option<usize>) -> Result<Self> {
        let now = SystemTime::now();
        let authority = CertificateAuthority::open(ca_folder, now)?;
        let folder = folder.join("instant-agent");
        authority.issue(&Peer::new(Role::Agent, NAME)?, VALID_FOR, now)?.save(&folder)?;
        let credentials = Credentials::open(&folder, Role::Agent, now)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("instant-agent".to_owned()).spawn(move || {
            let ended = core.map_or(Ok(()), cost::pin_to_core).and_then(|()| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(serve(&credentials, link, stopped))
            });
            if let Err(error) = ended {
                eprintln!("the agent that answers at once has ended: {error:#}");
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for InstantAgent {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

async fn serve(credentials: &Credentials, balancer: SocketAddr, stop: CancellationToken) -> Result<()> {
    let tasks = TaskTracker::new();
    let listeners = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1)?;
    let hello = Hello {
        protocol: PROTOCOL,
        node: NodeId::new(NAME),
        epoch: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        calls_at: CallsAt::Port(listeners.address().port()),
        zone: None,
        weight: None,
        clock: SystemTime::now().try_into()?,
    };
    let tls = quic::client_config(client_config(credentials, Role::Balancer, LINK_ALPN))?;
    let config = LinkConfig { hello, balancers: vec![balancer.to_string()], tls, drain: None };
    let (_records, waiting) = RecordSink::bounded(1);
    let outbox = Outbox::start(waiting, &tasks, &stop);
    let (commands, _none) = mpsc::channel(1);
    let reports = watch::Sender::new(Arc::new(report()));
    let dialer = quic::dialer(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let linked = link::start(config, dialer, reports.subscribe(), outbox, commands, &tasks, &stop);
    let endpoint = Endpoint::new(Arc::new(Instantly), credentials, linked, telemetry::start_metrics()?);
    let workers = Arc::new(endpoint).serve(listeners, &stop, Duration::ZERO)?;
    stop.cancelled().await;
    tasks.close();
    tasks.wait().await;
    tokio::task::spawn_blocking(move || workers.join()).await.context("the endpoint panicked")?;
    Ok(())
}

/// A node with more room than any benchmark asks for.
fn report() -> NodeReport {
    NodeReport {
        node: NodeId::new(NAME),
        epoch: 1,
        sequence: 1,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: 1 << 20,
        memory_committed_mib: 0,
        memory_idle_mib: 0,
        cpu_total_millis: 64_000,
        cpu_committed_millis: 0,
        calls: 0,
        functions: Vec::new(),
        gone: Vec::new(),
        images: Some(Arc::default()),
    }
}
