//! Who is who in a fleet: its own certificate authority, the certificates of balancers and agents, join tokens, and
//! the TLS settings made of them.
//!
//! Owns what a peer must show to be believed. Opens no socket; reads and writes only the files that it is given.
//! Invariants: a peer is believed only if a CA of the fleet signed its certificate, the certificate is valid now, and
//! it names a role; private keys and tokens are never printed; a resumed session never stands in for that check, as
//! there is no resumption.
//!
//! A machine's identity is one file, [`IDENTITY_FILE`]: its private key, its certificate and the CAs that it trusts.
//! One file, replaced in one step, so that key, certificate and trust always belong together.
//!
//! To replace the CA itself, trust the new one before it signs and the old one until its last certificate has ended:
//! append the new `ca.pem` to the old CA's and let all renew; put the new key in place and let all renew; then take the
//! old certificate out. A program reads the CA when it starts, and each renewal brings the trusted CAs along.
//!
//! There is no list of revoked certificates: what is signed is believed until it ends, so lives are short.

mod ca;
mod certificate;
mod credentials;
mod exchange;
mod files;
mod loaded;
mod name;
mod pem;
mod request;
mod tls;
mod token;

#[cfg(test)]
mod tests;

pub use ca::{CA_CERTIFICATE_FILE, CA_KEY_FILE, CA_VALID_FOR, CaError, CertificateAuthority, SignError};
pub use certificate::{Fingerprint, Validity};
pub use credentials::{Credentials, Reload, WATCH_INTERVAL};
pub use exchange::{Claim, JoinAnswer, JoinRefused, JoinRequest, Redeemed};
pub use loaded::{IDENTITY_FILE, Identity, IdentityError};
pub use name::{NameError, Peer, PeerError, Role, certificate_ended, peer_of, peer_of_connection};
pub use request::{CertificateRequest, RequestError, SignedCertificate};
pub use tls::{ClientAuth, client_config, joining_client_config, server_config};
pub use token::{JoinToken, MintError, TOKEN_VALID_FOR_MAX, TokenError, TokenId};

use std::time::Duration;

/// Life of a certificate unless told otherwise. It is renewed after two thirds of it.
pub const CERTIFICATE_VALID_FOR: Duration = Duration::from_hours(30 * 24);

/// Clocks of the fleet may differ by this much: certificates start as long before they are made, and who joins with a
/// clock further off is told so.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_mins(10);
