//! The fleet's own certificate authority: one key on disk that says who belongs to the fleet.
//!
//! Owns the CA's key and what is signed with it. The names in a request for a certificate are ignored: who asks is
//! known from a token or from the certificate in use, and the caller says it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use super::certificate::{self, date, unix_seconds};
use super::request::REQUEST_BYTES_MAX;
use super::{
    CLOCK_DIFFERENCE_MAX, CertificateRequest, Fingerprint, Identity, Peer, RequestError, SignedCertificate,
    Validity, files, pem,
};

/// The CA's certificate in its folder, followed by others that are to be trusted.
pub const CA_CERTIFICATE_FILE: &str = "ca.pem";
/// The CA's private key in its folder.
pub const CA_KEY_FILE: &str = "ca-key.pem";
/// Life of a CA. Its certificates end no later than it does.
pub const CA_VALID_FOR: Duration = Duration::from_hours(10 * 365 * 24);

/// What the key of join tokens is derived with, so that a token's code is never a signature for anything else.
const TOKEN_KEY_LABEL: &[u8] = b"kiln join token 1";

/// Why there is no CA to work with.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A CA is there already.
    #[error(
        "{} is there already; a fleet keeps its CA, so choose another folder or move it away",
        path.display()
    )]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no CA in {}; make one with `kiln ca init` or name its folder", folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}; choose another folder or run as a user that may write there", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} {problem}; restore it from a copy", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It has ended.
    #[error("the CA in {} ended on {}; make a new one with `kiln ca init`", folder.display(), date(*ended))]
    Expired {
        /// Its folder.
        folder: PathBuf,
        /// When.
        ended: SystemTime,
    },
    /// The key or certificate cannot be made.
    #[error("cannot make the CA's key and certificate")]
    Make(#[source] rcgen::Error),
}

/// Why a certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a request, or one that does not prove that its sender has the key.
    #[error("the request for a certificate cannot be read or is not signed by its own key; make a new one")]
    Request,
    /// The CA has ended.
    #[error("the fleet's CA ended on {}; make a new one with `kiln ca init`", date(*ended))]
    Expired {
        /// When.
        ended: SystemTime,
    },
    /// The signature failed.
    #[error("the CA cannot sign the certificate")]
    Sign(#[source] rcgen::Error),
    /// The requester's own key or the answer to it.
    #[error(transparent)]
    Issue(#[from] RequestError),
}

/// The CA of a fleet. Whoever has it decides who belongs to the fleet.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    certificate: CertificateDer<'static>,
    validity: Validity,
    /// All trusted CAs, its own among them.
    bundle: Vec<CertificateDer<'static>>,
    token_key: hmac::Key,
}

impl CertificateAuthority {
    /// Makes a CA that is valid for [`CA_VALID_FOR`] and keeps it in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// A CA is there already, or the folder cannot be written.
    pub fn init(folder: &Path, now: SystemTime) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::Make)?;
        let name = Fingerprint::of(key.public_key_raw()).to_string();
        let mut params = params(&format!("Kiln CA {}", &name[..8]), now, now + CA_VALID_FOR);
        // Nobody below it may be a CA.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CaError::Make)?;

        let (certificate_path, key_path) = (folder.join(CA_CERTIFICATE_FILE), folder.join(CA_KEY_FILE));
        files::make_folder(folder).map_err(|source| CaError::Write { path: folder.to_owned(), source })?;
        for path in [&certificate_path, &key_path] {
            if path.exists() {
                return Err(CaError::Exists { path: path.clone() });
            }
        }
        create(&key_path, &key.serialize_pem())?;
        create(&certificate_path, &pem::of_certificate(certificate.der()))?;
        Self::open(folder, now)
    }

    /// Opens the CA in `folder`.
    ///
    /// # Errors
    /// There is none, its files are broken or do not belong together, or it has ended.
    pub fn open(folder: &Path, now: SystemTime) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (folder.join(CA_CERTIFICATE_FILE), folder.join(CA_KEY_FILE));
        let missing_or = |path: &Path, source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => CaError::Missing { folder: folder.to_owned() },
            _ => CaError::Read { path: path.to_owned(), source },
        };
        let key_text = files::read_secret(&key_path).map_err(|source| missing_or(&key_path, source))?;
        let text = files::read(&certificate_path).map_err(|source| missing_or(&certificate_path, source))?;

        let malformed = |path: &Path, problem| CaError::Malformed { path: path.to_owned(), problem };
        let key = KeyPair::from_pem(&key_text).map_err(|_| malformed(&key_path, "holds no private key"))?;
        let bundle = pem::certificates(&text)
            .filter(|bundle| !bundle.is_empty())
            .ok_or_else(|| malformed(&certificate_path, "holds no certificate"))?;
        let mut own = None;
        for der in &bundle {
            let parsed = certificate::parse(der)
                .ok()
                .filter(|parsed| parsed.is_ca())
                .ok_or_else(|| malformed(&certificate_path, "holds something that is no CA's certificate"))?;
            if own.is_none() && *parsed.public_key().subject_public_key.data == *key.public_key_raw() {
                own = Some((der.clone(), Validity::of(&parsed)));
            }
        }
        let (certificate, validity) =
            own.ok_or_else(|| malformed(&certificate_path, "holds no certificate of the key beside it"))?;
        if validity.remaining(now).is_zero() {
            return Err(CaError::Expired { folder: folder.to_owned(), ended: validity.not_after });
        }
        let token_key = token_key(&key);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| malformed(&certificate_path, "holds a CA's certificate of an unknown kind"))?;
        Ok(Self { issuer, certificate, validity, bundle, token_key })
    }

    /// Names this CA.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// When it begins and ends.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The certificates of all CAs to be trusted, its own among them, as PEM.
    pub fn bundle(&self) -> String {
        pem::of_certificates(&self.bundle)
    }

    /// Fingerprints of all CAs to be trusted, its own among them.
    pub fn trusted(&self) -> Vec<Fingerprint> {
        self.bundle.iter().map(|der| Fingerprint::of(der)).collect()
    }

    /// Signs a certificate for `peer` and the key that made the request. Whatever else the request says is ignored.
    ///
    /// The certificate ends after `valid_for`, or with the CA if that is sooner.
    ///
    /// # Errors
    /// The request is none, or the CA has ended.
    pub fn sign(
        &self,
        csr_pem: &str,
        peer: &Peer,
        valid_for: Duration,
        now: SystemTime,
    ) -> Result<SignedCertificate, SignError> {
        if self.validity.remaining(now).is_zero() {
            return Err(SignError::Expired { ended: self.validity.not_after });
        }
        let request = read_request(csr_pem)?;
        let ends = now
            .checked_add(valid_for)
            .map_or(self.validity.not_after, |end| end.min(self.validity.not_after));
        let mut params = params(&format!("Kiln {}", peer.role()), now, ends);
        params.subject_alt_names = vec![
            SanType::URI(peer.to_string().try_into().map_err(SignError::Sign)?),
            SanType::DnsName(peer.role().dns_name().try_into().map_err(SignError::Sign)?),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Agents and balancers dial each other.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&request.public_key, &self.issuer).map_err(SignError::Sign)?;
        Ok(SignedCertificate {
            chain_pem: pem::of_certificates(&[signed.der().clone(), self.certificate.clone()]),
            bundle_pem: self.bundle(),
        })
    }

    /// A new key with its certificate, for a machine that does not ask for itself.
    ///
    /// # Errors
    /// See [`CertificateAuthority::sign`].
    pub fn issue(&self, peer: &Peer, valid_for: Duration, now: SystemTime) -> Result<Identity, SignError> {
        let request = CertificateRequest::generate()?;
        let signed = self.sign(request.csr_pem(), peer, valid_for, now)?;
        Ok(request.complete(&signed, peer.role(), now)?)
    }

    /// The key that join tokens are authenticated with.
    pub(super) fn token_key(&self) -> &hmac::Key {
        &self.token_key
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CertificateAuthority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// Reads a request and proves that whoever made it has its key.
pub(super) fn read_request(csr_pem: &str) -> Result<CertificateSigningRequestParams, SignError> {
    if csr_pem.len() > REQUEST_BYTES_MAX {
        return Err(SignError::Request);
    }
    CertificateSigningRequestParams::from_pem(csr_pem).map_err(|_| SignError::Request)
}

fn create(path: &Path, text: &str) -> Result<(), CaError> {
    files::create(path, text).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => CaError::Exists { path: path.to_owned() },
        _ => CaError::Write { path: path.to_owned(), source },
    })
}

/// What all certificates have in common: a name for people, a random number, times.
fn params(common_name: &str, now: SystemTime, ends: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let mut serial: [u8; 16] = rand::random();
    // RFC 5280, section 4.1.2.2: positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let begins = unix_seconds(now).saturating_sub(CLOCK_DIFFERENCE_MAX.as_secs());
    params.not_before = epoch + Duration::from_secs(begins);
    params.not_after = epoch + Duration::from_secs(unix_seconds(ends));
    params
}

/// HMAC of a label under the CA's private key: whoever has the CA can check a token, and a token tells nothing of the
/// key.
fn token_key(key: &KeyPair) -> hmac::Key {
    let root = hmac::Key::new(hmac::HMAC_SHA256, key.serialized_der());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, TOKEN_KEY_LABEL).as_ref())
}
