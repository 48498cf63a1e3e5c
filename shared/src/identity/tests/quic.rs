//! The same over QUIC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use tokio::time::timeout;

use super::tls::ALPN;
use super::*;
use crate::identity::{
    ClientAuth, Fingerprint, PeerError, client_config, joining_client_config, peer_of_connection,
    server_config,
};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server's endpoint and a client's, as a running program keeps them.
struct Pair {
    server: Endpoint,
    client: Endpoint,
}

impl Pair {
    fn new(client: Arc<rustls::ClientConfig>, server: Arc<rustls::ServerConfig>) -> Self {
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
        let server = Endpoint::server(config, ANY_PORT).unwrap();
        let mut pair = Self { server, client: Endpoint::client(ANY_PORT).unwrap() };
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
        pair.client.set_default_client_config(config);
        pair
    }

    /// Both ends of a new connection, once a stream went over it. An error is whichever side said more than that
    /// the other closed.
    async fn connect(&self) -> Result<(Connection, Connection), String> {
        let address = self.server.local_addr().unwrap();
        let dial = async {
            let connection = self.client.connect(address, Role::Balancer.dns_name()).unwrap().await?;
            round_trip(&connection).await?;
            Ok::<_, anyhow::Error>(connection)
        };
        let answer = async {
            let connection = self.server.accept().await.unwrap().await?;
            echo(&connection).await?;
            Ok::<_, anyhow::Error>(connection)
        };
        match timeout(DEADLINE, async { tokio::join!(dial, answer) }).await.unwrap() {
            (Ok(dialled), Ok(answered)) => Ok((dialled, answered)),
            (dialled, answered) => Err(format!("client: {:?}, server: {:?}", dialled.err(), answered.err())),
        }
    }
}

async fn round_trip(connection: &Connection) -> anyhow::Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(b"x").await?;
    send.finish()?;
    anyhow::ensure!(receive.read_to_end(8).await? == b"x");
    Ok(())
}

async fn echo(connection: &Connection) -> anyhow::Result<()> {
    let (mut send, mut receive) = connection.accept_bi().await?;
    send.write_all(&receive.read_to_end(8).await?).await?;
    Ok(send.finish()?)
}

fn shown(connection: &Connection) -> Fingerprint {
    let shown = connection.peer_identity().unwrap();
    Fingerprint::of(&shown.downcast_ref::<Vec<rustls::pki_types::CertificateDer<'_>>>().unwrap()[0])
}

#[tokio::test]
async fn a_renewed_identity_holds_from_the_next_connection_and_open_ones_stay() {
    let fleet = Fleet::new();
    let (agent, balancer) = (fleet.agent("n1"), fleet.balancer("lb1"));
    let pair = Pair::new(
        client_config(&agent, Role::Balancer, ALPN),
        server_config(&balancer, &[ALPN], ClientAuth::Required),
    );
    let (dialled, answered) = pair.connect().await.unwrap();
    assert_eq!(peer_of_connection(&dialled).unwrap().to_string(), "kiln://balancer/lb1");
    assert_eq!(peer_of_connection(&answered).unwrap().to_string(), "kiln://agent/n1");

    agent.install(fleet.issue(Role::Agent, "n1")).unwrap();
    balancer.install(fleet.issue(Role::Balancer, "lb1")).unwrap();
    let (again, heard) = pair.connect().await.unwrap();
    assert_eq!(shown(&again), balancer.current().fingerprint());
    assert_eq!(shown(&heard), agent.current().fingerprint());

    assert_ne!(shown(&dialled), shown(&again));
    assert_ne!(shown(&answered), shown(&heard));
    let (sent, echoed) =
        timeout(DEADLINE, async { tokio::join!(round_trip(&dialled), echo(&answered)) }).await.unwrap();
    sent.unwrap();
    echoed.unwrap();
}

#[tokio::test]
async fn strangers_are_refused_over_quic_too() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let server = server_config(&fleet.balancer("lb1"), &[ALPN], ClientAuth::Required);
    for (client, reason) in [
        (client_config(&other.agent("n1"), Role::Balancer, ALPN), "UnknownIssuer"),
        (client_config(&fleet.agent("n1"), Role::Agent, ALPN), "kiln://balancer/lb1 is no agent"),
        (joining_client_config(fleet.ca.fingerprint(), ALPN), "no certificates"),
        (joining_client_config(other.ca.fingerprint(), ALPN), "not of the fleet"),
    ] {
        let said = Pair::new(client, Arc::clone(&server)).connect().await.unwrap_err();
        assert!(said.contains(reason), "{said}");
    }
}

#[tokio::test]
async fn a_joining_machine_is_nobody_over_quic_until_it_joined() {
    let fleet = Fleet::new();
    let pair = Pair::new(
        joining_client_config(fleet.ca.fingerprint(), ALPN),
        server_config(&fleet.balancer("lb1"), &[ALPN], ClientAuth::Optional),
    );
    let (dialled, answered) = pair.connect().await.unwrap();
    assert_eq!(peer_of_connection(&dialled).unwrap().role(), Role::Balancer);
    assert_eq!(peer_of_connection(&answered), Err(PeerError::Anonymous));
}
