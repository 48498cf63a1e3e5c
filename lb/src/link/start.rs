//! The link's options, and its start.

#![allow(clippy::doc_markdown, reason = "documentation of options is the help text that people read")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use kiln_api::{Catalog, StoredBatches};
use kiln_shared::address::{host_port, listen_address};
use kiln_shared::identity::{CertificateAuthority, ClientAuth, Credentials, server_config};
use kiln_shared::link::{JOIN_ALPN, LINK_ALPN, quic};
use kiln_shared::program::DataFolder;
use quinn::Endpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::identity::{authority, identity, renew};
use super::peers::Peers;
use super::{Answers, LinkServer, Registrar, RemovedNodes};
use crate::detached::Dispatcher;
use crate::nodes::Nodes;

/// How agents reach this balancer.
#[derive(Debug, Clone, Args)]
pub struct LinkArgs {
    /// UDP address on which agents link up and join
    #[arg(long, env = "KILN_LINK_LISTEN", value_name = "ADDRESS:PORT", value_parser = listen_address, default_value = "127.0.0.1:8082")]
    pub link_listen: SocketAddr,
    /// Where agents reach this balancer, for those who learn of it from another one [default: --link-listen, unless that is
    /// all of the machine's addresses]
    #[arg(long, env = "KILN_LINK_ADVERTISE", value_name = "HOST:PORT", value_parser = host_port)]
    pub link_advertise: Option<String>,
    /// This balancer's name, for its first certificate; each has its own [default: the host's name]
    #[arg(long, env = "KILN_LB_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Folder of this balancer's certificate [default: identity in the data folder]
    #[arg(long, env = "KILN_IDENTITY_DIR", value_name = "FOLDER")]
    pub identity_dir: Option<PathBuf>,
    /// Folder of the fleet's CA (`kiln ca init`). A balancer that has it issues its own certificate, lets machines join
    /// and renews their certificates
    #[arg(long, env = "KILN_CA_DIR", value_name = "FOLDER")]
    pub ca_dir: Option<PathBuf>,
}

/// A link that has its address and its identity, and serves nobody yet.
pub struct PreparedLink {
    endpoint: Endpoint,
    credentials: Credentials,
    authority: Option<Arc<CertificateAuthority>>,
    advertise: Option<String>,
}

impl std::fmt::Debug for PreparedLink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PreparedLink")
            .field("peer", self.credentials.current().peer())
            .finish_non_exhaustive()
    }
}

impl LinkArgs {
    /// Takes the address and loads the identity, making a first one if that is possible.
    ///
    /// # Errors
    /// What is in the way, with the remedy.
    pub fn prepare(&self, folder: &DataFolder) -> Result<PreparedLink> {
        let authority = authority(self.ca_dir.as_ref())?;
        let identity_dir = self.identity_dir.clone().unwrap_or_else(|| folder.path().join("identity"));
        let name = match &self.name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let credentials = identity(&identity_dir, &name, authority.as_deref())?;
        let tls = server_config(&credentials, &[LINK_ALPN, JOIN_ALPN], ClientAuth::Optional);
        let endpoint = quic::listen(self.link_listen, quic::server_config(tls)?).with_context(|| {
            format!("cannot listen for agents on UDP {}; choose another --link-listen", self.link_listen)
        })?;
        let address = endpoint.local_addr()?;
        let advertise = self
            .link_advertise
            .clone()
            .or_else(|| (!address.ip().is_unspecified()).then(|| address.to_string()));
        Ok(PreparedLink { endpoint, credentials, authority, advertise })
    }
}

/// What agents are served with.
#[derive(Debug)]
pub struct LinkParts {
    /// Where news of nodes go.
    pub nodes: Nodes,
    /// Where their records go.
    pub records: StoredBatches,
    /// Nodes that are let in no more.
    pub removed: RemovedNodes,
    /// Where queued work comes from, if there is a queue.
    pub dispatcher: Option<Dispatcher>,
    /// Where join tokens and balancers are kept.
    pub catalog: Catalog,
}

impl PreparedLink {
    /// Where agents reach it.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.endpoint.local_addr()?)
    }

    /// This balancer's name.
    pub fn name(&self) -> String {
        self.credentials.current().peer().name().to_owned()
    }

    /// This balancer's identity.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Serves agents until `stop`. Whether this balancer is the one of all that share the catalog that speaks for the fleet.
    pub fn serve(
        self,
        parts: LinkParts,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> watch::Receiver<bool> {
        let Self { endpoint, credentials, authority, advertise } = self;
        let LinkParts { nodes, records, removed, dispatcher, catalog } = parts;
        tasks.spawn(credentials.clone().watch(stop.clone()));
        if let Some(authority) = &authority {
            let renewing = renew(credentials.clone(), Arc::clone(authority));
            tasks.spawn(stop.clone().run_until_cancelled_owned(renewing));
        }
        let (known, balancers) = watch::channel(Vec::new());
        let (is_first, speaks) = watch::channel(true);
        let peers = Peers {
            catalog: catalog.clone(),
            name: credentials.current().peer().name().to_owned(),
            address: advertise,
            removed: removed.clone(),
            known,
            is_first,
        };
        tasks.spawn(peers.keep(stop.clone()));
        let server = LinkServer {
            balancers,
            dispatcher,
            nodes,
            records,
            answers: Answers::new(authority.clone()),
            registrar: authority.map(|authority| Registrar::new(authority, catalog, removed.clone())),
            removed,
        };
        server.serve(endpoint, tasks, stop);
        speaks
    }
}
