//! Destinations that are reached over TLS.

use std::fs;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::Listener;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::detached::{call_id, detach};
use super::images::example;
use super::{Node, eventually};

/// Takes TLS connections; those that break off are passed over.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A receiver: where it is, its certificate as PEM, and the bodies that it got.
async fn receiver() -> (String, String, mpsc::Receiver<String>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/secret", listener.local_addr().unwrap().port());
    let (bodies, heard) = mpsc::channel(1);
    let take = move |body: String| {
        bodies.try_send(body).unwrap();
        std::future::ready(StatusCode::NO_CONTENT)
    };
    let router = Router::new().route("/secret", post(take));
    let listener = TlsListener { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, cert.pem(), heard)
}

#[tokio::test]
async fn a_destination_over_tls_is_told_only_if_its_certificate_is_trusted() {
    let (trusted, certificate, mut heard) = receiver().await;
    let (strange, _, mut unheard) = receiver().await;
    let node = Node::with_memory_mib(128);
    let authorities = node.home.write("authorities.pem", &certificate);
    let mut command = node.command();
    command.env("SSL_CERT_FILE", authorities);
    let kiln = node.start_as(command);
    let app = kiln.create_app("tls").await;
    let tells = |url: &str| json!({ "annotations": { "kiln.dev/on-success": url } });
    let good = kiln.create_function(&app, "good", &example("hello"), tells(&trusted)).await;
    let bad = kiln.create_function(&app, "bad", &example("hello"), tells(&strange)).await;
    let good = call_id(&detach(&kiln, &good, "", &[]).await);
    detach(&kiln, &bad, "", &[]).await;

    assert!(heard.recv().await.unwrap().contains(&good));
    eventually("the reason is told", async || {
        let waiting = kiln.cli("queue list --output json");
        waiting.contains("certificate") && !waiting.contains("/secret")
    })
    .await;
    assert!(unheard.try_recv().is_err());
    assert!(!fs::read_to_string(&kiln.process.log).unwrap().contains("/secret"));
    kiln.stop();
}
