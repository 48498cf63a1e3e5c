//! What a call asks of the fleet: memory and CPU of a container, an image, and a place in the order of the nodes.

use std::hash::{Hash, Hasher};

use kiln_shared::function::{Function, Revision};
use kiln_shared::ids::FunctionId;
use kiln_shared::report::FunctionReport;
use xxhash_rust::xxh3::xxh3_64;

use super::ring::RingKey;

/// Longest locality key of a request in bytes; a longer one is ignored, as if there were none.
pub const AFFINITY_BYTES_MAX: usize = 256;

/// Names an image by the hash of its reference. Two images with one hash cost a preference, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey(u64);

impl ImageKey {
    /// The key of a reference, as deployed.
    pub fn of(reference: &str) -> Self {
        Self(xxh3_64(reference.as_bytes()))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

/// What a function asks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The function.
    pub function: FunctionId,
    /// Its revision.
    pub revision: Revision,
    /// Where its walk over the nodes begins.
    pub key: RingKey,
    /// What its containers are made of.
    pub image: ImageKey,
    /// Memory of one container in MiB, `/tmp` included.
    pub memory_mib: u64,
    /// CPU of one container in thousandths of a core; 0 commits none.
    pub cpu_millis: u32,
}

impl Demand {
    /// The demand of one more container of `function`.
    pub fn of(function: &Function) -> Self {
        let spec = &function.spec;
        Self {
            function: spec.id,
            revision: function.revision,
            key: RingKey::of(&spec.id),
            image: ImageKey::of(&spec.image),
            memory_mib: spec.memory_mib + u64::from(spec.tmpfs_mib.unwrap_or(0)),
            cpu_millis: spec.cpu_millis.unwrap_or(0),
        }
    }

    /// The same demand with a walk of its own: calls that show one `affinity` share a home, whatever the function's
    /// home is. An empty text, or one of more than [`AFFINITY_BYTES_MAX`] bytes, changes nothing.
    #[must_use]
    pub fn with_affinity(mut self, affinity: &[u8]) -> Self {
        if (1..=AFFINITY_BYTES_MAX).contains(&affinity.len()) {
            self.key = RingKey::with_affinity(&self.function, affinity);
        }
        self
    }

    pub(crate) fn slot_key(&self) -> SlotKey {
        SlotKey { function: self.function, revision: self.revision }
    }
}

/// Names the containers of one revision of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotKey {
    /// The function.
    pub function: FunctionId,
    /// Its revision.
    pub revision: Revision,
}

impl SlotKey {
    /// Its own hash: a revision is one already, and of the function's id too.
    pub(crate) fn hash(&self) -> u64 {
        self.revision.0
    }
}

impl From<&FunctionReport> for SlotKey {
    fn from(report: &FunctionReport) -> Self {
        Self { function: report.id, revision: report.revision }
    }
}

impl From<(FunctionId, Revision)> for SlotKey {
    fn from((function, revision): (FunctionId, Revision)) -> Self {
        Self { function, revision }
    }
}

impl Hash for SlotKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.revision.0);
    }
}

/// Passes a revision on as its own hash.
#[derive(Debug, Clone, Copy, Default)]
pub struct RevisionHasher(u64);

impl Hasher for RevisionHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only revisions are hashed");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
