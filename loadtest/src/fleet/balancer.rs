//! The balancer's process: link, nodes and view.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kiln_api::StoredBatches;
use kiln_lb::fleet::{Fleet, FleetReader, LivenessPolicy, NodeState};
use kiln_lb::link::{Answers, LinkServer, RemovedNodes};
use kiln_lb::nodes::Nodes;
use kiln_shared::identity::{ClientAuth, Role, server_config};
use kiln_shared::link::{JOIN_ALPN, LINK_ALPN, quic};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{answer, credentials, lines, moment, since};

/// How often the view is looked at for changes.
const SAMPLE_EVERY: Duration = Duration::from_millis(1);

/// Serves agents, on a port that it says first, until standard input ends. Then:
///
/// - `up`: how many nodes are up.
/// - `sample SECONDS`: looks for changes in the view for so long; how many it saw, and the median, the 99th percentile
///   and the maximum of their age then, in milliseconds.
///
/// # Errors
/// The socket or the folder cannot be used, or a line is none of these.
pub async fn run(folder: &Path) -> Result<()> {
    let credentials = credentials(folder, Role::Balancer, "balancer")?;
    let tls = server_config(&credentials, &[LINK_ALPN, JOIN_ALPN], ClientAuth::Optional);
    let endpoint = quic::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), quic::server_config(tls)?)?;
    let address = endpoint.local_addr()?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let fleet = Fleet::new(LivenessPolicy::default(), Instant::now());
    let mut reader = fleet.reader();
    let nodes = Nodes::keep(fleet, &tasks, &stop);
    let (records, _no_store) = StoredBatches::bounded();
    let (_known, balancers) = watch::channel(Vec::new());
    let (answers, removed) = (Answers::default(), RemovedNodes::default());
    LinkServer { nodes, records, answers, dispatcher: None, removed, balancers, registrar: None }
        .serve(endpoint, &tasks, &stop);
    answer(&address.to_string())?;
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        match line.split_once(' ') {
            None if line == "up" => {
                let members = reader.view().members().iter();
                let up = members.filter(|member| member.node().state() == NodeState::Up).count();
                answer(&up.to_string())?;
            }
            Some(("sample", seconds)) => {
                let time = Duration::from_secs_f64(seconds.parse().context("a number of seconds")?);
                answer(&sample(&mut reader, time).await?)?;
            }
            _ => bail!("what is '{line}'?"),
        }
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn sample(reader: &mut FleetReader, time: Duration) -> Result<String> {
    let mut seen = HashMap::new();
    let mut ages = Vec::new();
    let mut interval = tokio::time::interval(SAMPLE_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let end = Instant::now() + time;
    while Instant::now() < end {
        interval.tick().await;
        for member in reader.view().members() {
            let (serial, made) = (member.node().serial(), member.node().load());
            // The first sight of a node says nothing of when its report came.
            if seen.insert(serial, made).is_some_and(|before| before != made) {
                ages.push(since(made, moment()?));
            }
        }
    }
    ages.sort_unstable();
    let at = |share: f64| ages.get(((ages.len() as f64 * share) as usize).min(ages.len().saturating_sub(1)));
    let millis = |share: f64| at(share).map_or(f64::NAN, |age| age.as_secs_f64() * 1000.0);
    Ok(format!("{} {} {} {}", ages.len(), millis(0.5), millis(0.99), millis(1.0)))
}
