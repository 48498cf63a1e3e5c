//! What runs on the simulation's hosts: balancers, agents, and a client that never stops calling.

use std::sync::Arc;
use std::time::Duration;

use kiln_agent::drain::{Drain, DrainConfig};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::{Agent, AgentConfig};
use kiln_lb::detached::{Dispatcher, Enqueuer, Known};
use kiln_shared::call::CallKind;
use kiln_shared::contract::Limits;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::{CallId, NodeId};
use kiln_shared::queue::{NewMessage, Queue, RetryPolicy, StoredCall};
use kiln_shared::record::RecordSink;
use rand::RngExt as _;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::containers::Containers;
use crate::wire::Wire;
use crate::world::{Life, Shared};

/// How long a node has a message.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// How long calls under way may take to end when an agent stops in order: longer than any takes.
pub(crate) const GRACE: Duration = Duration::from_secs(8);
/// How often agents look for balancers, and notice that they are gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Memory of a node, in MiB: room for a few containers.
const NODE_MIB: u64 = 1024;
/// Longest pause between two calls of the client.
const CALL_PAUSE: Duration = Duration::from_millis(200);

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) async fn balancer(shared: Arc<Shared>, name: String) -> Outcome {
    let queue: Arc<dyn Queue> = shared.queue.clone();
    let (enqueuer, storing) = Enqueuer::new(Arc::clone(&queue));
    let routes = shared.routes.lock().expect("no panic").reader();
    let (dispatcher, never) = (Dispatcher::new(queue, Known::of(routes)), CancellationToken::new());
    tokio::spawn(storing.run(never.clone()));
    tokio::spawn(dispatcher.clone().run(never));
    let life = Life { dispatcher, enqueuer, dead: CancellationToken::new() };
    shared.book().balancers.insert(name, life);
    loop {
        shared.queue.look();
        sleep(Duration::from_millis(250)).await;
    }
}

pub(crate) async fn agent(shared: Arc<Shared>, name: String) -> Outcome {
    let stop = CancellationToken::new();
    shared.book().stops.insert(name.clone(), stop.clone());
    let config = AgentConfig {
        node: NodeId::new(name.as_str()),
        slots: SlotsConfig::for_node(NODE_MIB, 2),
        limits: Limits::default(),
    };
    let driver = Arc::new(Containers { shared: Arc::clone(&shared), node: name.clone() });
    let (sink, _records) = RecordSink::bounded(8);
    let agent = Agent::start(config, driver, sink);
    let drain =
        Drain::new(agent.clone(), name.as_str(), DrainConfig { lease: LEASE, ..DrainConfig::default() });
    for balancer in &shared.balancers {
        tokio::spawn(tap(Arc::clone(&shared), drain.clone(), name.clone(), balancer.clone()));
    }
    stop.cancelled().await;
    let finishing = async { tokio::join!(agent.finish(), drain.finish()) };
    timeout(GRACE, finishing).await.map_err(|_| format!("{name} does not stop"))?;
    agent.close().await;
    Ok(())
}

/// Takes work from a balancer whenever there is a link to it.
async fn tap(shared: Arc<Shared>, drain: Drain, node: String, balancer: String) {
    loop {
        let life = {
            let book = shared.book();
            let is_cut = book.cut.contains(&(node.clone(), balancer.clone()));
            book.balancers.get(&balancer).filter(|_| !is_cut).cloned()
        };
        if let Some(life) = life {
            let wire = Wire { shared: Arc::clone(&shared), life: life.clone(), node: node.clone() };
            tokio::select! {
                () = drain.tap(&balancer, &wire) => return,
                () = life.dead.cancelled() => {}
                () = cut(&shared, &node, &balancer) => {}
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn cut(shared: &Shared, node: &str, balancer: &str) {
    let link = (node.to_owned(), balancer.to_owned());
    while !shared.book().cut.contains(&link) {
        sleep(LOOK_EVERY).await;
    }
}

/// Calls functions by way of any balancer that runs, until all is calm.
pub(crate) async fn client(shared: Arc<Shared>) -> Outcome {
    loop {
        let (message, life, pause) = {
            let mut book = shared.book();
            if book.is_calm {
                return Ok(());
            }
            let function = shared.functions[book.draws.random_range(0..shared.functions.len())];
            let lives: Vec<_> = book.balancers.values().cloned().collect();
            let life = (!lives.is_empty()).then(|| lives[book.draws.random_range(0..lives.len())].clone());
            let pause = CALL_PAUSE.mul_f64(book.draws.random());
            let stored = StoredCall {
                kind: CallKind::Invoke,
                method: http::Method::POST,
                url: "http://kiln/invoke".to_owned(),
                path: "/invoke".to_owned(),
                headers: HeaderBlock::new(),
            };
            let retry = RetryPolicy {
                attempts_max: 1000,
                pause_min: Duration::from_millis(100),
                pause_max: Duration::from_secs(1),
                jitter_percent: 20,
            };
            let new = NewMessage::new(CallId::generate(), function, shared.app, "in");
            let envelope = stored.to_envelope()?;
            (NewMessage { retry, envelope, ..new }, life, pause)
        };
        if let Some(life) = life {
            let id = message.id;
            let stored = tokio::select! {
                stored = life.enqueuer.enqueue(message) => stored.is_ok(),
                () = life.dead.cancelled() => false,
            };
            if stored {
                shared.book().accepted.push(id);
            }
        }
        sleep(pause).await;
    }
}
