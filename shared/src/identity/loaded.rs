//! One identity as loaded and checked: a private key, its certificate and the CAs that it trusts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use super::certificate::{self, date};
use super::{Fingerprint, Peer, PeerError, Role, SignedCertificate, Validity, files, pem, tls};

/// The file of an identity in its folder: private key, own certificate, trusted CAs, in this order, as PEM.
pub const IDENTITY_FILE: &str = "identity.pem";

/// What is wrong with an identity; reads on after the name of its file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityProblem {
    /// No key.
    #[error(
        "holds no private key; it must hold a key, its certificate and the trusted CAs, as `kiln ca issue` \
         writes them"
    )]
    NoKey,
    /// A section cannot be read.
    #[error("holds a broken certificate; write it again with `kiln ca issue` or `kiln node join`")]
    Broken,
    /// A certificate, but none of a CA, or none at all.
    #[error("holds no CA to trust; append the fleet's ca.pem")]
    NoTrust,
    /// Something in the CAs' place is none.
    #[error("holds a second certificate that is no CA's; only the first may be the machine's own")]
    NotACa,
    /// Key and certificate differ.
    #[error("holds a certificate of another key; write it again with `kiln ca issue` or `kiln node join`")]
    OtherKey,
    /// No CA in the bundle signed it.
    #[error("holds a certificate that none of its CAs signed; append the ca.pem of the CA that did")]
    OtherCa,
    /// It has ended.
    #[error("ended on {}; join again with a new token, or issue a new one with `kiln ca issue`", date(*.0))]
    Expired(SystemTime),
    /// It has not begun.
    #[error("is valid only from {}; check this machine's clock", date(*.0))]
    NotYetValid(SystemTime),
    /// Not fit for TLS on both sides.
    #[error("holds a certificate that is not for TLS clients and servers; issue one with `kiln ca issue`")]
    Usage,
    /// It names nobody, or somebody else.
    #[error("is of no use here: {0}")]
    Peer(#[from] PeerError),
}

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No file.
    #[error(
        "there is no identity at {}; get one with `kiln node join` or `kiln ca issue`", path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the identity {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error(
        "cannot write the identity {}; choose another folder or run as a user that may write there",
        path.display()
    )]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} {problem}", path.display())]
    Bad {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: IdentityProblem,
    },
}

impl IdentityError {
    /// True if the identity was good once and its time is over: a new one may take its place.
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Bad { problem: IdentityProblem::Expired(_), .. })
    }
}

/// A machine's identity, checked and ready for TLS.
#[derive(Clone)]
pub struct Identity {
    /// The file's text, with the key.
    text: Box<str>,
    peer: Peer,
    validity: Validity,
    fingerprint: Fingerprint,
    trusted: Vec<Fingerprint>,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) clients: Arc<dyn ClientCertVerifier>,
}

impl Identity {
    /// Reads the identity in `folder`.
    ///
    /// # Errors
    /// There is none, or it is not fit to be used now as `role`.
    pub fn load(folder: &Path, role: Role, now: SystemTime) -> Result<Self, IdentityError> {
        let path = folder.join(IDENTITY_FILE);
        let text = files::read_secret(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::Missing { path: path.clone() },
            _ => IdentityError::Read { path: path.clone(), source },
        })?;
        Self::parse(text, role, now).map_err(|problem| IdentityError::Bad { path, problem })
    }

    /// Keeps the identity in `folder`, which is made if it is missing; an older one is replaced in one step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let path = folder.join(IDENTITY_FILE);
        files::make_folder(folder)
            .and_then(|()| files::replace(&path, &self.text))
            .map_err(|source| IdentityError::Write { path, source })
    }

    /// Puts a key together with what a CA gave for it.
    pub(super) fn assemble(
        key_pem: &str,
        signed: &SignedCertificate,
        role: Role,
        now: SystemTime,
    ) -> Result<Self, IdentityProblem> {
        let chain = pem::certificates(&signed.chain_pem).ok_or(IdentityProblem::Broken)?;
        let own = chain.first().ok_or(IdentityProblem::Broken)?;
        let text = format!("{}{}{}", key_pem, pem::of_certificate(own), signed.bundle_pem);
        Self::parse(text, role, now)
    }

    /// Reads a key, its certificate and the trusted CAs, and checks that they belong together.
    pub(super) fn parse(
        text: impl Into<Box<str>>,
        role: Role,
        now: SystemTime,
    ) -> Result<Self, IdentityProblem> {
        let text = text.into();
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| IdentityProblem::NoKey)?;
        let mut certificates = pem::certificates(&text).ok_or(IdentityProblem::Broken)?.into_iter();
        let own = certificates.next().ok_or(IdentityProblem::Broken)?;
        let bundle: Vec<_> = certificates.collect();
        if bundle.is_empty() {
            return Err(IdentityProblem::NoTrust);
        }
        let validity = certificate::parse(&own)
            .map(|certificate| Validity::of(&certificate))
            .map_err(|_| IdentityProblem::Broken)?;
        let roots = Arc::new(roots(&bundle)?);
        if now > validity.not_after {
            return Err(IdentityProblem::Expired(validity.not_after));
        }
        if now < validity.not_before {
            return Err(IdentityProblem::NotYetValid(validity.not_before));
        }
        let issuer = issuer(&own, &bundle, now)?;
        let peer = Peer::of_certificate(&own)?;
        if peer.role() != role {
            return Err(PeerError::Role { peer, expected: role }.into());
        }
        let clients = client_verifier(&own, &roots, now)?;
        let fingerprint = Fingerprint::of(&own);
        // The CA goes along: who joins knows only its fingerprint.
        let key = CertifiedKey::from_der(vec![own, issuer], key, tls::provider())
            .map_err(|_| IdentityProblem::OtherKey)?;
        let trusted = bundle.iter().map(|der| Fingerprint::of(der)).collect();
        Ok(Self { text, peer, validity, fingerprint, trusted, key: Arc::new(key), roots, clients })
    }

    /// Whom it speaks for.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When it begins and ends.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Names its certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The CAs that it trusts.
    pub fn trusted(&self) -> &[Fingerprint] {
        &self.trusted
    }

    /// When to ask for the next one: after two thirds of its life, give or take a thirtieth, so that machines that
    /// joined together do not renew together. The same time whenever it is asked.
    pub fn renew_at(&self) -> SystemTime {
        let Validity { not_before, not_after } = self.validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        // As random as the certificate, and as constant.
        let [low, high, ..] = *self.fingerprint.as_bytes();
        let share = f64::from(u16::from_le_bytes([low, high])) / f64::from(u16::MAX);
        not_before + life.mul_f64((19.0 + 2.0 * share) / 30.0)
    }

    /// Checks that it can stand in for an identity of `role` in `folder`.
    pub(super) fn expect_role(&self, role: Role, folder: &Path) -> Result<(), IdentityError> {
        if self.peer.role() == role {
            return Ok(());
        }
        let problem = PeerError::Role { peer: self.peer.clone(), expected: role }.into();
        Err(IdentityError::Bad { path: folder.join(IDENTITY_FILE), problem })
    }

    /// True if `other` was read from the same text.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("peer", &self.peer)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn roots(bundle: &[CertificateDer<'static>]) -> Result<RootCertStore, IdentityProblem> {
    let mut roots = RootCertStore::empty();
    for der in bundle {
        let is_ca = certificate::parse(der).map_err(|_| IdentityProblem::Broken)?.is_ca();
        if !is_ca {
            return Err(IdentityProblem::NotACa);
        }
        roots.add(der.clone()).map_err(|_| IdentityProblem::Broken)?;
    }
    Ok(roots)
}

/// The CA of the bundle that signed the certificate.
fn issuer(
    own: &CertificateDer<'static>,
    bundle: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<CertificateDer<'static>, IdentityProblem> {
    let parsed = ParsedCertificate::try_from(own).map_err(|_| IdentityProblem::Broken)?;
    let algorithms = tls::provider().signature_verification_algorithms.all;
    let signed = |ca: &&CertificateDer<'static>| {
        let Ok(root) = roots(std::slice::from_ref(*ca)) else { return false };
        verify_server_cert_signed_by_trust_anchor(&parsed, &root, &[], unix_time(now), algorithms).is_ok()
    };
    bundle.iter().find(signed).cloned().ok_or(IdentityProblem::OtherCa)
}

/// What believes the peers that dial us; it must believe ourselves.
fn client_verifier(
    own: &CertificateDer<'static>,
    roots: &Arc<RootCertStore>,
    now: SystemTime,
) -> Result<Arc<dyn ClientCertVerifier>, IdentityProblem> {
    let provider = Arc::clone(tls::provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider)
        .build()
        .map_err(|_| IdentityProblem::NoTrust)?;
    verifier.verify_client_cert(own, &[], unix_time(now)).map_err(|_| IdentityProblem::Usage)?;
    Ok(verifier)
}

fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}
