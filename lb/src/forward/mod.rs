//! The way of a call to its node.
//!
//! Owns the connections to agents: each worker has its own, so that a call never changes its thread. What is said on
//! them is [`kiln_shared::link`]'s; which node it is was decided by [`crate::fleet`].

mod control;
mod multiplexed;
mod pool;
mod remote;
mod reply;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_shared::call::CallHop;
use kiln_shared::identity::Credentials;

pub use control::{AgentTls, Control, ControlError};
pub use pool::PoolConfig;
use remote::RemoteHop;

use crate::fleet::{Address, Node, NodeSerial, View};

/// Knows the way to every node. Shared by the workers.
pub struct Forwarder {
    serial: ForwarderSerial,
    local: Option<Arc<dyn CallHop>>,
    tls: Option<AgentTls>,
    pools: PoolConfig,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Forwarder").field("pools", &self.pools).finish_non_exhaustive()
    }
}

thread_local! {
    /// This worker's ways to remote nodes, with their connections.
    static HOPS: RefCell<HashMap<(ForwarderSerial, NodeSerial), Arc<dyn CallHop>>> = RefCell::default();
}

/// Names a forwarder within this process: nodes' serials are a fleet's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ForwarderSerial(u32);

impl ForwarderSerial {
    fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Forwarder {
    /// To the agent of this process alone.
    pub fn local(agent: Arc<dyn CallHop>) -> Self {
        Self { serial: ForwarderSerial::next(), local: Some(agent), tls: None, pools: PoolConfig::default() }
    }

    /// To agents elsewhere, which are shown this balancer's certificate.
    pub fn remote(credentials: &Credentials, pools: PoolConfig) -> Self {
        let tls = Some(AgentTls::new(credentials));
        Self { serial: ForwarderSerial::next(), local: None, tls, pools }
    }

    /// The way to `node` from this thread, made on first use. `view` tells which others are still of use. `None` if
    /// there is none: no agent is in this process, or it has no certificate to show elsewhere.
    pub fn hop(&self, node: &Node, view: &View) -> Option<Arc<dyn CallHop>> {
        let address = match node.address() {
            Address::Local => return self.local.clone(),
            Address::Remote(address) => address,
        };
        HOPS.with_borrow_mut(|hops| {
            let key = (self.serial, node.serial());
            if let Some(hop) = hops.get(&key) {
                return Some(Arc::clone(hop));
            }
            let is_member = |serial| view.index_of(serial).is_some();
            hops.retain(|&(forwarder, serial), _| forwarder == self.serial && is_member(serial));
            let (id, tls) = (node.id().clone(), self.tls.clone()?);
            let control = Control::new(id, Arc::clone(address), tls, self.pools.connect_timeout);
            let hop: Arc<dyn CallHop> = Arc::new(RemoteHop::new(control, self.pools));
            hops.insert(key, Arc::clone(&hop));
            Some(hop)
        })
    }
}
