//! Handshakes over TCP.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::identity::{ClientAuth, client_config, peer_of, server_config};

const ALPN: &[u8] = b"kiln-test";

type Ends = (Result<client::TlsStream<TcpStream>, String>, Result<server::TlsStream<TcpStream>, String>);

/// What client and server make of each other, once both have heard from the other after the handshake or failed.
async fn shake_hands(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Ends {
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
