//! TLS settings of the connections between Kiln's programs: TLS 1.3 alone, both sides known, nothing resumed.
//!
//! A peer is dialled by address, so its certificate is checked for who signed it, when, and its role; never for a host
//! name. Settings hold a [`Credentials`] and read it at each handshake.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::{Credentials, Fingerprint, Peer, PeerError, Role};

/// What a server asks of those who dial it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate of the fleet.
    Required,
    /// A certificate of the fleet, or none: for those who come to join.
    Optional,
}

/// The crypto of all of them.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    &PROVIDER
}

/// Settings of a server that speaks one of `alpns`, best first. Who dialled it is read with
/// [`peer_of`](super::peer_of) after the handshake.
pub fn server_config(
    credentials: &Credentials,
    alpns: &[&[u8]],
    client_auth: ClientAuth,
) -> Arc<ServerConfig> {
    let own = Arc::new(Own(credentials.clone()));
    let clients = Arc::new(Clients { credentials: credentials.clone(), client_auth });
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(clients)
        .with_cert_resolver(own);
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    // A resumed session would bring back a peer whose certificate or CA is no longer good.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// Settings of a client that dials peers of the role `expected` and speaks `alpn`.
pub fn client_config(credentials: &Credentials, expected: Role, alpn: &[u8]) -> Arc<ClientConfig> {
    let servers = Servers::Fleet { credentials: credentials.clone(), expected };
    let mut config = client_builder(servers).with_client_cert_resolver(Arc::new(Own(credentials.clone())));
    finish_client(&mut config, alpn);
    Arc::new(config)
}

/// Settings of a client that is not yet in the fleet: it knows the fingerprint of the CA from its token, shows no
/// certificate, and believes balancers of that CA alone.
pub fn joining_client_config(fingerprint: Fingerprint, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut config = client_builder(Servers::Unknown { ca: fingerprint }).with_no_client_auth();
    finish_client(&mut config, alpn);
    Arc::new(config)
}

fn client_builder(servers: Servers) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(servers))
}

fn finish_client(config: &mut ClientConfig, alpn: &[u8]) {
    config.alpn_protocols = vec![alpn.to_vec()];
    // As of the server.
    config.resumption = Resumption::disabled();
}

/// Shows our certificate.
#[derive(Debug)]
struct Own(Credentials);

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().key))
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Believes peers of the fleet that dial us, whatever their role.
#[derive(Debug)]
struct Clients {
    credentials: Credentials,
    client_auth: ClientAuth,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A peer has one certificate: there is nothing to choose from.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified =
            self.credentials.current().clients.verify_client_cert(end_entity, intermediates, now)?;
        Peer::of_certificate(end_entity).map_err(unfit)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Believes the peers that we dial.
#[derive(Debug)]
enum Servers {
    /// A machine of the fleet dials a peer of a certain role.
    Fleet { credentials: Credentials, expected: Role },
    /// A machine that is not yet in the fleet dials a balancer of the CA with this fingerprint.
    Unknown { ca: Fingerprint },
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (roots, expected) = match self {
            Self::Fleet { credentials, expected } => (Arc::clone(&credentials.current().roots), *expected),
            Self::Unknown { ca } => (root_among(intermediates, *ca)?, Role::Balancer),
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, intermediates, now, algorithms)?;
        let peer = Peer::of_certificate(end_entity).map_err(unfit)?;
        if peer.role() == expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(unfit(PeerError::Role { peer, expected }))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate with this fingerprint as the only one to trust.
fn root_among(shown: &[CertificateDer<'_>], ca: Fingerprint) -> Result<Arc<RootCertStore>, rustls::Error> {
    let root = shown
        .iter()
        .find(|der| Fingerprint::of(der) == ca)
        .ok_or_else(|| unfit(PeerError::OtherCa { ca }))?;
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned())?;
    Ok(Arc::new(roots))
}

fn tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)
}

fn unfit(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(Unfit(error)))).into()
}

/// Says its sentence also where rustls prints the debug form of a cause, in the text of its own errors.
#[derive(thiserror::Error)]
#[error(transparent)]
struct Unfit(PeerError);

impl fmt::Debug for Unfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}
