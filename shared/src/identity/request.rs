//! Asking for a certificate: a new key, the request that proves it, and the answer put together with the key.

use std::fmt;
use std::time::SystemTime;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};

use super::loaded::IdentityProblem;
use super::{Identity, Role};

/// Largest request for a certificate, in bytes of PEM. One of ours has about 400.
pub(super) const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Why there is no request, or no identity made of it.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The key cannot be made.
    #[error("cannot make a private key and a request for its certificate")]
    Make(#[source] rcgen::Error),
    /// The answer is not what was asked for.
    #[error("the certificate that came back {0}")]
    Answer(IdentityProblem),
}

/// What a CA gives for a request. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCertificate {
    /// The certificate, then that of the CA which signed it.
    pub chain_pem: String,
    /// The certificates of all CAs to trust.
    pub bundle_pem: String,
}

/// A new private key, never shown, and the request for its certificate.
pub struct CertificateRequest {
    key: KeyPair,
    csr_pem: String,
}

impl CertificateRequest {
    /// Makes a P-256 key. Each certificate has a key of its own.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, RequestError> {
        let key = KeyPair::generate().map_err(RequestError::Make)?;
        // Nameless: the CA decides whom the certificate speaks for.
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr_pem = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(RequestError::Make)?;
        Ok(Self { key, csr_pem })
    }

    /// The request as PEM (PKCS #10, RFC 2986), for [`CertificateAuthority::sign`](super::CertificateAuthority::sign).
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// Puts the answer together with the key.
    ///
    /// # Errors
    /// The certificate is for another key or role, not valid now, or not signed by a CA of its bundle.
    pub fn complete(
        &self,
        signed: &SignedCertificate,
        role: Role,
        now: SystemTime,
    ) -> Result<Identity, RequestError> {
        Identity::assemble(&self.key.serialize_pem(), signed, role, now).map_err(RequestError::Answer)
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("CertificateRequest(..)")
    }
}
