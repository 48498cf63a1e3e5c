//! What identities promise, from one end to the other.

mod tls;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::{CERTIFICATE_VALID_FOR, CertificateAuthority, Credentials, Identity, Peer, Role};

/// Longest that a condition is waited for.
const DEADLINE: Duration = Duration::from_secs(20);

/// A CA and the machines of its fleet, in a folder of their own.
struct Fleet {
    folder: TempDir,
    ca: CertificateAuthority,
}

impl Fleet {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::init(&folder.path().join("ca"), now()).unwrap();
        Self { folder, ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, role: Role, name: &str) -> Identity {
        self.ca.issue(&Peer::new(role, name).unwrap(), CERTIFICATE_VALID_FOR, now()).unwrap()
    }

    /// Keeps an identity in the folder `name` and opens it there.
    fn keep(&self, name: &str, identity: &Identity) -> Credentials {
        identity.save(&self.path(name)).unwrap();
        Credentials::open(&self.path(name), identity.peer().role(), now()).unwrap()
    }

    fn agent(&self, name: &str) -> Credentials {
        self.keep(name, &self.issue(Role::Agent, name))
    }

    fn balancer(&self, name: &str) -> Credentials {
        self.keep(name, &self.issue(Role::Balancer, name))
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}
