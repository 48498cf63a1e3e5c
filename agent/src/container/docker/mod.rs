//! Containers made by the Docker engine.
//!
//! `engine` speaks its API, `blueprint` decides what is asked for, `start` brings a container up, `exits` tells
//! how containers end, `reaper` removes them. `network` and `firewall` close functions off, `sandbox` and `pause`
//! prepare their network namespaces, `leftovers` clears up after an earlier life.

mod blueprint;
mod config;
mod driver;
pub(crate) mod engine;
mod exits;
mod firewall;
mod labels;
mod leftovers;
mod network;
mod output;
mod pause;
mod reaper;
mod sandbox;
mod start;

pub use config::{DockerConfig, ImageVolumes};
pub use driver::{ConnectError, DockerDriver};
pub use engine::EngineError;
