//! Containers made by the Docker engine.
//!
//! `engine` speaks its API, `blueprint` decides what is asked for, `start` brings a container up, `exits` tells
//! how containers end, `reaper` removes them.

mod blueprint;
mod config;
mod driver;
pub(crate) mod engine;
mod exits;
mod labels;
mod leftovers;
mod output;
mod reaper;
mod start;

pub use config::{DockerConfig, ImageVolumes};
pub use driver::{ConnectError, DockerDriver};
pub use engine::EngineError;
