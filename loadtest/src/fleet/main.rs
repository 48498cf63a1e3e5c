//! `fleet-peer`: the processes of the benchmark `fleet`, which starts them.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use kiln_loadtest::fleet::agents::Queued;
use kiln_loadtest::fleet::{agents, balancer};

/// One side of the link between agents and a balancer
#[derive(Debug, Parser)]
enum Side {
    /// The balancer
    Balancer {
        /// Folder of the CA and of its certificate
        folder: PathBuf,
    },
    /// All agents
    Agents {
        /// Folder of the CA and of their certificates
        folder: PathBuf,
        /// Where the balancer is
        balancer: SocketAddr,
        /// How many there are
        count: usize,
        /// What they do with the balancer's queue
        #[arg(long, value_enum, default_value_t = Queued::Leave)]
        queue: Queued,
    },
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match Side::parse() {
            Side::Balancer { folder } => balancer::run(&folder).await,
            Side::Agents { folder, balancer, count, queue } => {
                agents::run(&folder, balancer, count, queue).await
            }
        }
    })
}
