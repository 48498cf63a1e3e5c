//! The benchmarks, each a function from a [`Bench`] to rows.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::docker::{Engine, Image};
use crate::kiln::Binaries;
use crate::report::Row;

pub mod catalog;
pub mod cold;
pub mod detached;
pub mod edge;
pub mod fleet;
pub mod memory;
pub mod split;
pub mod warm;

/// What a benchmark is run with.
#[derive(Debug)]
pub struct Bench {
    /// Kiln's binaries.
    pub binaries: Binaries,
    /// The example function `echo`, linked statically.
    pub function: PathBuf,
    /// The proxy made with Pingora (`loadtest/peers/pingora`).
    pub pingora: PathBuf,
    /// For logs, configurations and data; removed afterwards.
    pub folder: PathBuf,
    /// Rounds; each measures Kiln and its peers one after the other.
    pub rounds: usize,
    /// How long one load of a round lasts.
    pub duration: Duration,
    /// Messages of a burst of detached calls.
    pub messages: usize,
    /// Functions of a large catalog.
    pub functions: usize,
    /// Where results go; on a disk.
    pub results: PathBuf,
}

impl Bench {
    /// The engine and an image of the example function in it.
    ///
    /// # Errors
    /// If Docker does not answer or the function was not built.
    pub fn image(&self) -> Result<(Engine, Image)> {
        let engine = Engine::connect()?;
        let image = engine.image_of(&self.function, "echo")?;
        Ok((engine, image))
    }
}

/// A benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name on the command line and of its results.
    pub name: &'static str,
    /// What it measures.
    pub what: &'static str,
    /// Kiln's binaries that it starts.
    pub needs: &'static [&'static str],
    /// Runs it.
    pub run: fn(&Bench) -> Result<Vec<Row>>,
}

/// All benchmarks in the order in which they run.
pub const ALL: [Entry; 8] = [
    Entry {
        name: "edge",
        what: "the edge, HAProxy, nginx and Pingora in front of one server that answers at once",
        needs: &["kiln-lb"],
        run: edge::run,
    },
    Entry {
        name: "warm",
        what: "a warm call through `kiln start` and to a container's socket directly",
        needs: &["kiln"],
        run: warm::run,
    },
    Entry {
        name: "split",
        what: "a warm call through kiln-lb and kiln-agent as two processes",
        needs: &["kiln-lb", "kiln-agent"],
        run: split::run,
    },
    Entry {
        name: "cold",
        what: "a cold start through `kiln start` and with `docker run`",
        needs: &["kiln"],
        run: cold::run,
    },
    Entry {
        name: "fleet",
        what: "the link of one balancer with 1,000 agents without containers",
        needs: &["fleet-peer"],
        run: fleet::run,
    },
    Entry {
        name: "async",
        what: "detached calls on Redis: a burst, what it does to others, an idle node; and enqueuing on SQLite",
        needs: &["kiln-lb", "kiln-agent", "fleet-peer"],
        run: detached::run,
    },
    Entry {
        name: "catalog",
        what: "a large catalog on SQLite, Postgres and MariaDB: boot, and how late a change is seen",
        needs: &[],
        run: catalog::run,
    },
    Entry { name: "memory", what: "memory and idle CPU of `kiln start`", needs: &["kiln"], run: memory::run },
];
