//! What identities promise, from one end to the other.

mod certificates;
mod join;
mod messages;
mod quic;
mod reload;
mod tls;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use rcgen::{CertificateParams, KeyPair, SanType};

use super::{CERTIFICATE_VALID_FOR, CertificateAuthority, Credentials, Identity, Peer, Role};

/// Longest that a condition is waited for.
const DEADLINE: Duration = Duration::from_secs(20);

const HOUR: Duration = Duration::from_hours(1);

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

    /// As [`Fleet::issue`], valid for an hour from `begin`, and in use whatever the time is now.
    fn issue_at(&self, peer: &str, begin: SystemTime) -> Credentials {
        let identity = self.ca.issue(&peer.parse().unwrap(), HOUR, begin).unwrap();
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        identity.save(&folder).unwrap();
        Credentials::open(&folder, identity.peer().role(), begin).unwrap()
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

/// One CA for all cases of a property, as making one waits for the disk. Its folder is gone already.
fn shared_ca() -> &'static CertificateAuthority {
    static CA: LazyLock<CertificateAuthority> = LazyLock::new(|| Fleet::new().ca);
    &CA
}

fn now() -> SystemTime {
    SystemTime::now()
}

/// A certificate that a stranger made for itself, and its key as PEM.
fn self_signed(uris: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}
