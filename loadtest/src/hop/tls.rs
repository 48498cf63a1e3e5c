//! Certificates for one run.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in the certificate.
pub const NAME: &str = "agent.kiln";

/// What an agent shows, and its certificate in DER.
///
/// # Errors
/// If no key can be made.
pub fn server() -> Result<(ServerConfig, Vec<u8>)> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).context("making a certificate")?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let certificate = made.cert.der().clone();
    let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    Ok((config, certificate.to_vec()))
}

/// What a balancer believes: this certificate alone.
///
/// # Errors
/// If it is none.
pub fn client(certificate: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec())).context("the agent's certificate")?;
    let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// The agents' name.
pub fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("is a name")
}
