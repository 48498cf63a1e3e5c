//! A Redis server for one benchmark, as one would run it for a queue that must not lose anything.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::http::Target;
use crate::process::{Server, free_port};

/// How it writes its log; part of what a figure says.
pub const SETTING: &str = "appendfsync always";

/// A running server; dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    port: u16,
    _data: TempDir,
}

impl Redis {
    /// Starts it with its log of changes in a folder of its own in `disk`, and what it says in `folder`.
    ///
    /// # Errors
    /// If it is not installed or does not start.
    pub fn start(disk: &Path, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(disk).with_context(|| disk.display().to_string())?;
        let data =
            tempfile::Builder::new().prefix("redis-").tempdir_in(disk).context("no folder for Redis")?;
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "yes"]).arg("--dir").arg(data.path());
        let (name, value) = SETTING.split_once(' ').expect("a name and a value");
        command.args([&format!("--{name}"), value]);
        let mut server = Server::start("redis-server", command, None, folder)?;
        server.wait_until_ready(&Target::loopback(port))?;
        Ok(Self { server, port, _data: data })
    }

    /// The URL of a queue in it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}
