//! Text form of certificates and keys (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// RFC 7468, section 2: lines of 64 characters.
const LINE_BYTES: usize = 64;

/// One certificate as text.
pub(super) fn of_certificate(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / LINE_BYTES + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(LINE_BYTES.min(rest.len()));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Several certificates as text, in their order.
pub(super) fn of_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| of_certificate(der)).collect()
}

/// The certificates in a text, in their order; what is none is passed over. `None`: a section is broken.
pub(super) fn certificates(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()
}
