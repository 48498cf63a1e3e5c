//! The way of a call to its node.
//!
//! Owns the connections to agents: each worker has its own, so that a call never changes its thread. What is said on
//! them is [`kiln_shared::link`]'s; which node it is was decided by [`crate::fleet`].

mod control;
mod pool;
mod remote;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use kiln_shared::call::CallHop;
use kiln_shared::token::Token;

pub use control::{Control, ControlError};
pub use pool::PoolConfig;
use remote::RemoteHop;

use crate::fleet::{Address, Node, NodeSerial, View};

/// Knows the way to every node. Shared by the workers.
pub struct Forwarder {
    local: Option<Arc<dyn CallHop>>,
    token: Option<Token>,
    pools: PoolConfig,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Forwarder").field("pools", &self.pools).finish_non_exhaustive()
    }
}

thread_local! {
    /// This worker's ways to remote nodes, with their connections.
    static HOPS: RefCell<HashMap<NodeSerial, Arc<dyn CallHop>>> = RefCell::default();
}

impl Forwarder {
    /// To the agent of this process alone.
    pub fn local(agent: Arc<dyn CallHop>) -> Self {
        Self { local: Some(agent), token: None, pools: PoolConfig::default() }
    }

    /// To agents elsewhere, which are shown `token`.
    pub fn remote(token: Option<Token>, pools: PoolConfig) -> Self {
        Self { local: None, token, pools }
    }

    /// The way to `node` from this thread, made on first use. `view` tells which others are still of use. `None` if
    /// the node is said to be in this process and there is no agent in it.
    pub fn hop(&self, node: &Node, view: &View) -> Option<Arc<dyn CallHop>> {
        let address = match node.address() {
            Address::Local => return self.local.clone(),
            Address::Remote(address) => address,
        };
        HOPS.with_borrow_mut(|hops| {
            if let Some(hop) = hops.get(&node.serial()) {
                return Some(Arc::clone(hop));
            }
            hops.retain(|serial, _| view.members().iter().any(|member| member.node().serial() == *serial));
            let control = Control::new(Arc::clone(address), self.token.clone(), self.pools.connect_timeout);
            let hop: Arc<dyn CallHop> = Arc::new(RemoteHop::new(control, self.pools));
            hops.insert(node.serial(), Arc::clone(&hop));
            Some(hop)
        })
    }

    /// Forgets this thread's ways; a worker calls it first, since a thread may have served others before.
    pub(crate) fn begin_worker() {
        HOPS.take();
    }
}
