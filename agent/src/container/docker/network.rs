//! The network of function containers: one bridge per node, closed between functions and towards the host.
//!
//! Owns that network and its firewall rules. Functions reach the outside through it, and nothing else: not each
//! other, not the host's own ports, not the cloud's metadata service.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::models::NetworkCreateRequest;
use xxhash_rust::xxh3::xxh3_64;

use super::config::DockerConfig;
use super::engine::{Engine, explain, status};
use super::firewall::Firewall;
use super::labels::{Identity, NETWORK_ROLE, ROOT};

/// The engine's own network: what is left when ours cannot be made.
const DEFAULT: &str = "bridge";

/// Option of a bridge network: name of its interface.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Where function containers are connected.
#[derive(Debug)]
pub(super) struct Network {
    name: String,
    /// Its interface on the host.
    bridge: String,
    firewall: Firewall,
}

impl Network {
    /// Makes this node's network, or takes up the one that an earlier life left. A node on which that is
    /// impossible runs its functions on the engine's default network, and says so once.
    pub(super) async fn ensure(engine: &Engine, config: &DockerConfig, identity: &Identity) -> Self {
        let mut network = Self::of_node(config.node.as_str());
        if let Err(error) = network.repair(engine, config, identity).await {
            let error = explain(&error);
            tracing::warn!(error, "functions share Docker's default network: no own one can be made");
            DEFAULT.clone_into(&mut network.name);
        } else if !config.engine_is_local() {
            tracing::warn!(
                "the engine is elsewhere: no firewall rules keep functions from its machine's ports"
            );
        } else if let Err(error) = network.firewall.close().await {
            tracing::warn!(%error, "functions can reach this machine's own ports: no firewall rules");
        }
        network
    }

    /// The network that `node` makes, whether it is there or not.
    pub(super) fn of_node(node: &str) -> Self {
        // Eight digits: names of interfaces have 15 bytes at most.
        let tag = format!("{:08x}", xxh3_64(node.as_bytes()) >> 32);
        let bridge = format!("kiln{tag}");
        Self { name: format!("kiln-{tag}"), firewall: Firewall::new(&tag, &bridge), bridge }
    }

    /// Makes the network if it is not there: somebody may have pruned it while no function ran.
    pub(super) async fn repair(
        &self,
        engine: &Engine,
        config: &DockerConfig,
        identity: &Identity,
    ) -> Result<(), Error> {
        if self.name == DEFAULT {
            return Ok(());
        }
        match engine.inspect_network(&self.name).await {
            Err(error) if status(&error) == Some(404) => {}
            found => return found.map(drop),
        }
        let mut labels = identity.of_role(NETWORK_ROLE);
        labels.insert(ROOT.to_owned(), config.iofs_path.display().to_string());
        let request = NetworkCreateRequest {
            name: self.name.clone(),
            driver: Some("bridge".to_owned()),
            options: Some(HashMap::from([
                (BRIDGE_NAME.to_owned(), self.bridge.clone()),
                ("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned()),
            ])),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        match engine.create_network(request).await {
            // Made by another start meanwhile.
            Err(error) if status(&error) == Some(409) => Ok(()),
            made => made,
        }
    }

    /// The engine's network mode for a container on it.
    pub(super) fn mode(&self) -> &str {
        &self.name
    }

    /// Removes network and rules, unless somebody else has containers there.
    pub(super) async fn remove(&self, engine: &Engine) {
        if self.name == DEFAULT {
            return;
        }
        match engine.remove_network(&self.name).await {
            Err(error) if status(&error) != Some(404) => {
                tracing::warn!(network = self.name, error = explain(&error), "the network stays");
            }
            _ => self.firewall.open().await,
        }
    }
}
