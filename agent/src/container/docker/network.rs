//! The network of function containers: one bridge per node, closed between functions and towards the host.
//!
//! Owns that network and its firewall rules. Functions reach the outside through it, and nothing else: not each
//! other, not the host's own ports, not the cloud's metadata service.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::models::NetworkCreateRequest;
use xxhash_rust::xxh3::xxh3_64;

use super::engine::{Engine, explain, status};
use super::firewall::Firewall;
use super::labels::Identity;

/// The engine's own network: what is left when ours cannot be made.
const DEFAULT: &str = "bridge";

/// Option of a bridge network: name of its interface.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Where function containers are connected.
#[derive(Debug)]
pub(super) struct Network {
    name: String,
    firewall: Option<Firewall>,
}

impl Network {
    /// Makes this node's network, or takes up the one that an earlier life left. A node on which that is
    /// impossible runs its functions on the engine's default network, and says so once.
    pub(super) async fn ensure(engine: &Engine, identity: &Identity) -> Self {
        let name = format!("kiln-{}", tag(identity));
        match ensure_bridge(engine, identity, &name).await {
            Ok(bridge) => {
                let firewall = Firewall::close(&tag(identity), &bridge).await;
                let firewall = firewall.inspect_err(|error| {
                    tracing::warn!(%error, "functions can reach this machine's own ports: no firewall rules");
                });
                Self { name, firewall: firewall.ok() }
            }
            Err(error) => {
                tracing::warn!(
                    error = explain(&error),
                    "functions share Docker's default network: no own one"
                );
                Self { name: DEFAULT.to_owned(), firewall: None }
            }
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
            _ => {
                if let Some(firewall) = &self.firewall {
                    firewall.open().await;
                }
            }
        }
    }
}

/// Eight hexadecimal digits for this node: names of interfaces have 15 bytes at most.
fn tag(identity: &Identity) -> String {
    format!("{:08x}", xxh3_64(identity.node.as_str().as_bytes()) >> 32)
}

/// Gives the name of the bridge interface.
async fn ensure_bridge(engine: &Engine, identity: &Identity, name: &str) -> Result<String, Error> {
    let bridge = format!("kiln{}", tag(identity));
    match engine.inspect_network(name).await {
        Ok(found) => {
            let known = found.options.and_then(|options| options.get(BRIDGE_NAME).cloned());
            return Ok(known.unwrap_or(bridge));
        }
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(error),
    }
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        options: Some(HashMap::from([
            (BRIDGE_NAME.to_owned(), bridge.clone()),
            ("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned()),
        ])),
        labels: Some(identity.of_role("network")),
        ..NetworkCreateRequest::default()
    };
    engine.create_network(request).await?;
    Ok(bridge)
}
