//! Handshakes over TCP.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::identity::tls::provider;
use crate::identity::{
    CertificateRequest, ClientAuth, Fingerprint, PeerError, client_config, joining_client_config, peer_of,
    pem, server_config,
};

pub(super) const ALPN: &[u8] = b"kiln-test";

pub(super) type Ends =
    (Result<client::TlsStream<TcpStream>, String>, Result<server::TlsStream<TcpStream>, String>);

/// What client and server make of each other, once both have heard from the other after the handshake or failed.
pub(super) async fn shake_hands(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dial = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        let mut stream = TlsConnector::from(Arc::clone(client)).connect(name, stream).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok::<_, std::io::Error>(stream)
    };
    let answer = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::clone(server)).accept(stream).await?;
        stream.read_u8().await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok::<_, std::io::Error>(stream)
    };
    let (dialled, answered) = timeout(DEADLINE, async { tokio::join!(dial, answer) }).await.unwrap();
    (dialled.map_err(|error| error.to_string()), answered.map_err(|error| error.to_string()))
}

#[tokio::test]
async fn an_agent_and_a_balancer_of_one_fleet_know_each_other() {
    let fleet = Fleet::new();
    let client = client_config(&fleet.agent("n1"), Role::Balancer, ALPN);
    let server = server_config(&fleet.balancer("lb1"), &[b"other", ALPN], ClientAuth::Required);
    let (dialled, answered) = shake_hands(&client, &server).await;
    let (dialled, answered) = (dialled.unwrap(), answered.unwrap());
    let seen = peer_of(dialled.get_ref().1.peer_certificates()).unwrap();
    assert_eq!(seen.to_string(), "kiln://balancer/lb1");
    let seen = peer_of(answered.get_ref().1.peer_certificates()).unwrap();
    assert_eq!(seen.to_string(), "kiln://agent/n1");
    assert_eq!(answered.get_ref().1.alpn_protocol(), Some(ALPN));
}

/// Why a client's handshake with a server fails, as each side says it; at least one must.
async fn refusal(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> String {
    match shake_hands(client, server).await {
        (Ok(_), Ok(_)) => panic!("the handshake succeeded"),
        (dialled, answered) => {
            format!("client: {:?}, server: {:?}", dialled.err(), answered.err())
        }
    }
}

fn to_balancer(credentials: &Credentials) -> Arc<ClientConfig> {
    client_config(credentials, Role::Balancer, ALPN)
}

fn serving(credentials: &Credentials) -> Arc<ServerConfig> {
    server_config(credentials, &[ALPN], ClientAuth::Required)
}

/// Shows `shown` whatever it is, and believes balancers of the fleet.
fn showing(fleet: &Fleet, shown: CertifiedKey) -> Arc<ClientConfig> {
    let mut client = (*joining_client_config(fleet.ca.fingerprint(), ALPN)).clone();
    client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
    Arc::new(client)
}

#[tokio::test]
async fn peers_of_another_fleet_are_refused_by_both_sides() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let said = refusal(&to_balancer(&ours.agent("n1")), &serving(&theirs.balancer("lb1"))).await;
    assert!(said.contains("client: Some(\"invalid peer certificate: UnknownIssuer"), "{said}");
    // A client that believes the server still has to be believed.
    let foreign = (*theirs.agent("n1").current().key).clone();
    let said = refusal(&showing(&ours, foreign), &serving(&ours.balancer("lb1"))).await;
    assert!(said.contains("server: Some(\"invalid peer certificate: UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn a_server_of_the_wrong_role_is_refused() {
    let fleet = Fleet::new();
    let said = refusal(&to_balancer(&fleet.agent("n1")), &serving(&fleet.agent("n2"))).await;
    assert!(said.contains("kiln://agent/n2 is no balancer"), "{said}");
    let client = client_config(&fleet.balancer("lb1"), Role::Agent, ALPN);
    let said = refusal(&client, &serving(&fleet.balancer("lb2"))).await;
    assert!(said.contains("kiln://balancer/lb2 is no agent"), "{said}");
    let (dialled, answered) = shake_hands(&client, &serving(&fleet.agent("n2"))).await;
    assert!(dialled.is_ok() && answered.is_ok());
}

#[tokio::test]
async fn certificates_out_of_their_time_are_refused_by_both_sides() {
    let fleet = Fleet::new();
    for (begin, word) in [(now() - 2 * HOUR, "expired"), (now() + 2 * HOUR, "not valid yet")] {
        let server = fleet.issue_at("kiln://balancer/old", begin);
        let said = refusal(&to_balancer(&fleet.agent("n1")), &serving(&server)).await;
        assert!(said.contains("client: Some(\"invalid peer certificate") && said.contains(word), "{said}");
        let client = fleet.issue_at("kiln://agent/old", begin);
        let said = refusal(&to_balancer(&client), &serving(&fleet.balancer("lb1"))).await;
        assert!(said.contains("server: Some(\"invalid peer certificate") && said.contains(word), "{said}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused_by_both_sides() {
    let fleet = Fleet::new();
    let certified = |uri| {
        let (certificate, key) = self_signed(&[uri]);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        CertifiedKey::from_der(pem::certificates(&certificate).unwrap(), key, provider()).unwrap()
    };
    let said =
        refusal(&showing(&fleet, certified("kiln://agent/n1")), &serving(&fleet.balancer("lb1"))).await;
    assert!(said.contains("server: Some(\"invalid peer certificate: UnknownIssuer"), "{said}");
    let mut server = (*serving(&fleet.balancer("lb1"))).clone();
    server.cert_resolver = Arc::new(SingleCertAndKey::from(certified("kiln://balancer/lb1")));
    let said = refusal(&to_balancer(&fleet.agent("n1")), &Arc::new(server)).await;
    assert!(said.contains("client: Some(\"invalid peer certificate: UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn a_certificate_of_the_ca_that_names_no_peer_is_refused() {
    let fleet = Fleet::new();
    // As only a mistaken use of the CA's key by other software would make it.
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(fleet.path("ca/ca-key.pem")).unwrap()).unwrap();
    let ca = pem::certificates(&fleet.ca.bundle()).unwrap().remove(0);
    let issuer = rcgen::Issuer::from_ca_cert_der(&ca, ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["agent.kiln.internal".to_owned()]).unwrap();
    let own = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let shown = CertifiedKey::from_der(vec![own], key, provider()).unwrap();
    let said = refusal(&showing(&fleet, shown), &serving(&fleet.balancer("lb1"))).await;
    assert!(said.contains("names no peer of a Kiln fleet"), "{said}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_only_to_join() {
    let fleet = Fleet::new();
    let client = joining_client_config(fleet.ca.fingerprint(), ALPN);
    let said = refusal(&client, &serving(&fleet.balancer("lb1"))).await;
    assert!(said.contains("server: Some(\"peer sent no certificates\")"), "{said}");
    let (_, answered) =
        shake_hands(&client, &server_config(&fleet.balancer("lb1"), &[ALPN], ClientAuth::Optional)).await;
    let answered = answered.unwrap();
    assert_eq!(peer_of(answered.get_ref().1.peer_certificates()), Err(PeerError::Anonymous));
    // Showing none is allowed there, showing a wrong one is not.
    let foreign = (*Fleet::new().agent("n1").current().key).clone();
    let server = server_config(&fleet.balancer("lb1"), &[ALPN], ClientAuth::Optional);
    let said = refusal(&showing(&fleet, foreign), &server).await;
    assert!(said.contains("UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn other_protocols_and_older_tls_are_refused() {
    let fleet = Fleet::new();
    let (agent, server) = (fleet.agent("n1"), serving(&fleet.balancer("lb1")));
    let said = refusal(&client_config(&agent, Role::Balancer, b"kiln-other"), &server).await;
    assert!(said.contains("any known protocol"), "{said}");
    let roots = Arc::clone(&agent.current().roots);
    let mut old = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    old.alpn_protocols = vec![ALPN.to_vec()];
    let said = refusal(&Arc::new(old), &server).await;
    assert!(said.contains("server: Some(\"peer is incompatible"), "{said}");
}

#[tokio::test]
async fn no_session_is_resumed() {
    let fleet = Fleet::new();
    let (client, server) = (to_balancer(&fleet.agent("n1")), serving(&fleet.balancer("lb1")));
    for _ in 0..3 {
        let (dialled, answered) = shake_hands(&client, &server).await;
        assert_eq!(dialled.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(answered.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_renewed_identity_holds_from_the_next_handshake_and_open_connections_stay() {
    let fleet = Fleet::new();
    let (agent, balancer) = (fleet.agent("n1"), fleet.balancer("lb1"));
    // Made once, as of a running program.
    let (client, server) = (to_balancer(&agent), serving(&balancer));
    let (dialled, answered) = shake_hands(&client, &server).await;
    let (mut dialled, mut answered) = (dialled.unwrap(), answered.unwrap());
    let first = (agent.current().fingerprint(), balancer.current().fingerprint());

    agent.install(fleet.issue(Role::Agent, "n1")).unwrap();
    balancer.install(fleet.issue(Role::Balancer, "lb1")).unwrap();
    let second = (agent.current().fingerprint(), balancer.current().fingerprint());
    assert!(first.0 != second.0 && first.1 != second.1);

    let (again, heard) = shake_hands(&client, &server).await;
    assert_eq!(shown(again.unwrap().get_ref().1), second.1);
    assert_eq!(shown(heard.unwrap().get_ref().1), second.0);
    // The old connection still carries bytes.
    dialled.write_all(b"x").await.unwrap();
    dialled.flush().await.unwrap();
    assert_eq!(answered.read_u8().await.unwrap(), b'x');
    assert_eq!(shown(dialled.get_ref().1), first.1);
    // And what was installed is what a restart finds.
    let kept = Credentials::open(&fleet.path("n1"), Role::Agent, now()).unwrap();
    assert_eq!(kept.current().fingerprint(), second.0);
}

/// The certificate that the other side showed.
fn shown(connection: &rustls::CommonState) -> Fingerprint {
    Fingerprint::of(&connection.peer_certificates().unwrap()[0])
}

#[tokio::test]
async fn the_ca_itself_is_replaced_without_a_refused_handshake() {
    let (old, new) = (Fleet::new(), Fleet::new());
    let (agent, balancer) = (old.agent("n1"), old.balancer("lb1"));
    let (client, server) = (to_balancer(&agent), serving(&balancer));
    let both = old.ca.bundle() + &new.ca.bundle();
    // 1: the old CA signs, both are trusted. 2: the new one signs. 3: the new one alone.
    for (signer, bundle) in [(&old, &both), (&new, &both), (&new, &new.ca.bundle())] {
        for (credentials, peer) in [(&agent, "kiln://agent/n1"), (&balancer, "kiln://balancer/lb1")] {
            let request = CertificateRequest::generate().unwrap();
            let peer: Peer = peer.parse().unwrap();
            let mut signed = signer.ca.sign(request.csr_pem(), &peer, HOUR, now()).unwrap();
            signed.bundle_pem.clone_from(bundle);
            credentials.install(request.complete(&signed, peer.role(), now()).unwrap()).unwrap();
            let (dialled, answered) = shake_hands(&client, &server).await;
            assert!(dialled.is_ok() && answered.is_ok(), "{dialled:?} {answered:?}");
        }
    }
    // Nobody of the old CA gets in any more.
    let late = (*old.agent("n2").current().key).clone();
    let said = refusal(&showing(&new, late), &server).await;
    assert!(said.contains("UnknownIssuer"), "{said}");
}
