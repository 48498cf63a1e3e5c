//! Does what balancers want of the agent.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_shared::function::Function;
use kiln_shared::link::message::Command;
use tokio::sync::mpsc;

use crate::Agent;

/// The file that says that the node is drained, so that it stays so after a restart.
const DRAINED_FILE: &str = "drained";

/// Obeys balancers, one command after the other.
#[derive(Debug)]
pub struct Orders {
    agent: Agent,
    drained_file: PathBuf,
}

impl Orders {
    /// For `agent`, which is drained from the start if it was so in the data folder's earlier life.
    pub fn new(agent: Agent, data_folder: &std::path::Path) -> Self {
        let drained_file = data_folder.join(DRAINED_FILE);
        if drained_file.exists() {
            tracing::warn!("this node was drained and takes no calls; `kiln node undrain` takes it back");
            agent.drain();
        }
        Self { agent, drained_file }
    }

    /// Obeys until nobody commands any more.
    pub async fn run(self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            tracing::info!(command = command.name(), "a balancer's command");
            match command {
                Command::Drain => {
                    self.remember(std::fs::write(&self.drained_file, ""));
                    self.agent.drain();
                }
                Command::Undrain => {
                    let removed = match std::fs::remove_file(&self.drained_file) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                        other => other,
                    };
                    self.remember(removed);
                    self.agent.undrain();
                }
                Command::Prewarm { spec, revision, containers } => {
                    self.agent.prewarm(&Arc::new(Function { spec: *spec, revision }), containers);
                }
                Command::Evict { function, revision } => self.agent.evict(function, revision),
            }
        }
    }

    fn remember(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let file = self.drained_file.display();
            tracing::error!(%file, %error, "cannot keep whether this node is drained; a restart will forget it");
        }
    }
}
