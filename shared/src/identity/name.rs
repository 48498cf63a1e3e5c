//! Who a certificate speaks for.
//!
//! A certificate carries its peer as a URI, `kiln://agent/<node id>` or `kiln://balancer/<name>`. Balancers and agents
//! are dialled by address, so host names prove nothing here; the DNS name in a certificate names its role only.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::GeneralName;

use super::{Fingerprint, Validity, certificate};

/// How often a certificate's end is looked for at least.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Longest name of a peer.
const NAME_BYTES_MAX: usize = 128;
const SCHEME: &str = "kiln://";

/// What a peer does in the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs functions on its node.
    Agent,
    /// Gives calls to agents.
    Balancer,
}

impl Role {
    /// As written in certificates, metrics and options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Balancer => "balancer",
        }
    }

    /// The server name to dial peers of this role by; it stands in their certificates.
    pub fn dns_name(self) -> &'static str {
        match self {
            Self::Agent => "agent.kiln.internal",
            Self::Balancer => "balancer.kiln.internal",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Why a text names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name itself.
    #[error(
        "{name:?} cannot name a node or balancer; use 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', \
         beginning with a letter or digit"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// The URI around it.
    #[error("{uri:?} names no peer; expected kiln://agent/NAME or kiln://balancer/NAME")]
    Uri {
        /// As given.
        uri: String,
    },
}

/// A role and a name: whom a certificate speaks for. The name is valid by construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    role: Role,
    name: String,
}

impl Peer {
    /// Takes a name of 1 to 128 ASCII letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
    ///
    /// # Errors
    /// Any other name.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let goes_on_well = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if begins_well && goes_on_well && name.len() <= NAME_BYTES_MAX {
            Ok(Self { role, name })
        } else {
            Err(NameError::Name { name: name.chars().take(NAME_BYTES_MAX).collect() })
        }
    }

    /// What it does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The node's id, or the balancer's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the one URI of a certificate. Proves nothing about who signed it.
    ///
    /// # Errors
    /// The certificate cannot be read, holds no URI or several, or one that names no peer.
    pub fn of_certificate(der: &[u8]) -> Result<Self, PeerError> {
        let certificate = certificate::parse(der).map_err(|_| PeerError::Malformed)?;
        let names = certificate.subject_alternative_name().map_err(|_| PeerError::Malformed)?;
        let mut uris =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Ok(uri.parse()?),
            (None, _) => Err(PeerError::Unnamed),
            (Some(_), Some(_)) => Err(PeerError::SeveralNames),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}/{}", self.role, self.name)
    }
}

impl FromStr for Peer {
    type Err = NameError;

    fn from_str(uri: &str) -> Result<Self, NameError> {
        let no_peer = || NameError::Uri { uri: uri.chars().take(2 * NAME_BYTES_MAX).collect() };
        let path = uri.strip_prefix(SCHEME).ok_or_else(no_peer)?;
        match path.split_once('/') {
            Some(("agent", name)) => Self::new(Role::Agent, name),
            Some(("balancer", name)) => Self::new(Role::Balancer, name),
            _ => Err(no_peer()),
        }
    }
}

/// Why a peer is not believed to be who it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No certificate was shown.
    #[error("the peer showed no certificate; join it to the fleet with `kiln node join`")]
    Anonymous,
    /// Not a certificate.
    #[error("the peer's certificate cannot be read")]
    Malformed,
    /// A certificate of something else.
    #[error("the certificate names no peer of a Kiln fleet; issue one with `kiln ca issue`")]
    Unnamed,
    /// More than one URI.
    #[error("the certificate names several peers; a peer has one name")]
    SeveralNames,
    /// A URI that names no peer.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not of the fleet that was to be joined.
    #[error(
        "the server is not of the fleet whose CA is {ca}; check the address, or get a new token with `kiln node token` \
         if the fleet's CA was replaced"
    )]
    OtherCa {
        /// The CA that was expected.
        ca: Fingerprint,
    },
    /// Signed by the fleet, but for something else.
    #[error("{peer} is no {expected}; check that the address is that of a {expected}")]
    Role {
        /// Who it is.
        peer: Peer,
        /// What it should be.
        expected: Role,
    },
}

/// The peer at the other end of a connection whose handshake is over, from the certificates that it showed.
///
/// # Errors
/// It showed none, or one that names no peer.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<Peer, PeerError> {
    let own = certificates.and_then(<[_]>::first).ok_or(PeerError::Anonymous)?;
    Peer::of_certificate(own)
}

/// As [`peer_of`], of a QUIC connection.
///
/// # Errors
/// See [`peer_of`].
pub fn peer_of_connection(connection: &quinn::Connection) -> Result<Peer, PeerError> {
    let shown = connection.peer_identity();
    let certificates =
        shown.as_deref().and_then(|shown| shown.downcast_ref::<Vec<CertificateDer<'static>>>());
    peer_of(certificates.map(Vec::as_slice))
}

/// Waits until the certificate has ended that the peer of a QUIC connection showed. At once if it showed none. Cancel-safe.
pub async fn certificate_ended(connection: &quinn::Connection) {
    let Some(validity) = shown_validity(connection) else { return };
    loop {
        let left = validity.remaining(SystemTime::now());
        if left.is_zero() {
            return;
        }
        // The clock may be set meanwhile.
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

fn shown_validity(connection: &quinn::Connection) -> Option<Validity> {
    let shown = connection.peer_identity()?;
    let own = shown.downcast_ref::<Vec<CertificateDer<'static>>>()?.first()?;
    Some(Validity::of(&certificate::parse(own).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_peer_round_trips_through_its_uri(agent: bool, name in "[A-Za-z0-9][A-Za-z0-9._-]{0,127}") {
            let role = if agent { Role::Agent } else { Role::Balancer };
            let peer = Peer::new(role, name).expect("a name");
            prop_assert_eq!(peer.to_string().parse::<Peer>(), Ok(peer));
        }

        #[test]
        fn whatever_is_read_as_a_peer_is_written_the_same(uri in "(kiln://)?(agent|balancer|Agent)?/{0,2}\\PC{0,12}") {
            if let Ok(peer) = uri.parse::<Peer>() {
                prop_assert_eq!(peer.to_string(), uri);
            }
        }

        #[test]
        fn any_bytes_are_refused_as_a_certificate(der: Vec<u8>) {
            prop_assert_eq!(Peer::of_certificate(&der), Err(PeerError::Malformed));
        }
    }

    #[test]
    fn other_texts_name_no_peer() {
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "-a", ".", "a b", "a/b", "a%2fb", "a?b", "a#b", "ä", "a\n", "a@b", "a:1", &long] {
            assert!(Peer::new(Role::Agent, name).is_err(), "{name:?}");
            assert!(format!("kiln://agent/{name}").parse::<Peer>().is_err(), "{name:?}");
        }
        for uri in [
            "",
            "kiln://",
            "kiln://agent",
            "kiln://router/a",
            "http://agent/a",
            "KILN://agent/a",
            "kiln:///a",
        ] {
            assert!(matches!(uri.parse::<Peer>(), Err(NameError::Uri { .. })), "{uri:?}");
        }
    }
}
