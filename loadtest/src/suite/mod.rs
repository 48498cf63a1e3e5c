//! The benchmarks, each a function from a [`Bench`] to rows.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::docker::{Engine, Image};
use crate::kiln::Binaries;
use crate::report::Row;

pub mod cold;
pub mod edge;
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

/// A benchmark: its name, what it measures, and itself.
pub type Entry = (&'static str, &'static str, fn(&Bench) -> Result<Vec<Row>>);

/// All benchmarks in the order in which they run.
pub const ALL: [Entry; 5] = [
    ("edge", "the edge, HAProxy, nginx and Pingora in front of one server that answers at once", edge::run),
    ("warm", "a warm call through `kiln start` and to a container's socket directly", warm::run),
    ("split", "a warm call through kiln-lb and kiln-agent as two processes", split::run),
    ("cold", "a cold start through `kiln start` and with `docker run`", cold::run),
    ("memory", "memory and idle CPU of `kiln start`", memory::run),
];
