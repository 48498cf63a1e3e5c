//! A fleet's CA, and what its agents say.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kiln_lb::fleet::{Demand, View};
use kiln_shared::function::{Function, FunctionSpec, Revision};
use kiln_shared::identity::{CertificateAuthority, Credentials, Peer, Role};
use kiln_shared::ids::{AppId, CallId, FunctionId, NodeId};
use kiln_shared::link::message::{CallsAt, Hello, PROTOCOL};
use kiln_shared::record::{LogChunk, Record};
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};
use tempfile::TempDir;

/// The CA of a fleet and the folder of everything.
pub(crate) struct Authority {
    pub(crate) folder: TempDir,
    pub(crate) ca: CertificateAuthority,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = CertificateAuthority::init(&folder.path().join("ca"), SystemTime::now()).expect("a CA");
        Self { folder, ca }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn credentials(&self, role: Role, name: &str) -> Credentials {
        let folder = self.path(&format!("{}-{name}", role.as_str()));
        let peer = Peer::new(role, name).expect("a name");
        let identity = self.ca.issue(&peer, Duration::from_hours(1), SystemTime::now()).expect("is issued");
        identity.save(&folder).expect("is kept");
        Credentials::open(&folder, role, SystemTime::now()).expect("is good")
    }
}

pub(crate) fn hello(node: &str, epoch: u64) -> Hello {
    Hello {
        protocol: PROTOCOL,
        node: NodeId::new(node),
        epoch,
        version: "0.0.0".to_owned(),
        calls_at: CallsAt::Port(1),
        zone: None,
        weight: None,
        clock: Timestamp::now(),
    }
}

pub(crate) fn report(node: &str, epoch: u64, sequence: u64) -> NodeReport {
    NodeReport {
        node: NodeId::new(node),
        epoch,
        sequence,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: 8192,
        memory_committed_mib: 0,
        memory_idle_mib: 0,
        cpu_total_millis: 4000,
        cpu_committed_millis: 0,
        calls: 0,
        functions: Vec::new(),
        gone: Vec::new(),
        images: Some(Arc::default()),
    }
}

pub(crate) fn warm(number: u64, idle: u32) -> FunctionReport {
    FunctionReport {
        id: function(number),
        revision: Revision(number),
        idle,
        busy: 0,
        starting: 0,
        waiting: 0,
    }
}

pub(crate) fn function(number: u64) -> FunctionId {
    format!("{number:026}").parse().expect("an id")
}

pub(crate) fn record(text: &str) -> Record {
    Record::Log(LogChunk {
        call_id: CallId::generate(),
        app_id: AppId::generate(),
        function_id: FunctionId::generate(),
        part: 0,
        text: text.to_owned(),
    })
}

/// What a call of a function asks of a node.
pub(crate) fn demand(number: u64) -> Demand {
    let spec = FunctionSpec {
        memory_mib: 0,
        ..FunctionSpec::with_defaults(function(number), AppId::generate(), "i")
    };
    Demand::of(&Function { spec, revision: warm(number, 0).revision })
}

/// The idle slots of a function on a node, if the view knows of any containers of it there.
pub(crate) fn idle(view: &View, node: &str, number: u64) -> Option<u32> {
    let index = view.find(&NodeId::new(node))?;
    view.slots(index, &demand(number)).map(|slots| slots.idle())
}
