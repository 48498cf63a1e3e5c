//! What the scale webhook hears, over HTTP, and what becomes of a node that is to go.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use kiln_lb::fleet::scale_news::{NewsPolicy, ScaleIn};
use kiln_lb::fleet::{FleetConfig, ScalePolicy};
use kiln_lb::scale_hook::{HookConfig, SIGNATURE_HEADER, ScaleHook, signature};
use kiln_shared::link::message::Command;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Agent, Authority, Balancer, LONG, warm};

/// A receiver of webhooks that does not hear the first.
struct Receiver {
    url: String,
    heard: mpsc::Receiver<(HeaderMap, Bytes)>,
    _serving: AbortOnDropHandle<()>,
}

impl Receiver {
    async fn start() -> Self {
        let (sender, heard) = mpsc::channel(8);
        let is_first = Arc::new(AtomicBool::new(true));
        let answer = async move |headers: HeaderMap, body: Bytes| {
            sender.send((headers, body)).await.expect("the test reads");
            if is_first.swap(false, Ordering::Relaxed) {
                StatusCode::BAD_GATEWAY
            } else {
                StatusCode::NO_CONTENT
            }
        };
        let router = Router::new().route("/scale", post(answer));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("http://{}/scale", listener.local_addr().expect("is bound"));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { url, heard, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The next message, which is signed.
    async fn next(&mut self, secret: &hmac::Key) -> Value {
        let heard = tokio::time::timeout(LONG, self.heard.recv()).await;
        let (headers, body) = heard.expect("in time").expect("the receiver lives");
        assert_eq!(headers[SIGNATURE_HEADER], signature(secret, &body));
        assert_eq!(headers["content-type"], "application/json");
        serde_json::from_slice(&body).expect("JSON")
    }
}

#[tokio::test]
async fn the_webhook_hears_of_more_nodes_then_of_fewer_then_of_the_one_that_is_empty() {
    let authority = Authority::new();
    let scale =
        ScalePolicy { down_after: Duration::ZERO, look_ahead: Duration::ZERO, ..ScalePolicy::default() };
    let fleet = FleetConfig { scale, ..FleetConfig::default() };
    let balancer = Balancer::start_watching(&authority, "lb1", fleet).await;
    let a = Agent::start(&authority, "a", &[balancer.address]);
    let mut b = Agent::start(&authority, "b", &[balancer.address]);
    for agent in [&a, &b] {
        agent.report(|report| report.memory_committed_mib = report.memory_total_mib);
    }
    let signal = async || balancer.nodes.look().await.and_then(|look| look.scale);
    let wants_three = async {
        while signal().await.is_none_or(|signal| (signal.nodes, signal.nodes_wanted) != (2, 3)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, wants_three).await.expect("both nodes are up and full");

    let mut receiver = Receiver::start().await;
    let secret = hmac::Key::new(hmac::HMAC_SHA256, b"a secret of some bytes");
    let news = NewsPolicy {
        up_after: Duration::ZERO,
        down_after: Duration::ZERO,
        repeat_after: LONG,
        scale_in: ScaleIn::Drain,
    };
    let config = HookConfig { url: receiver.url.parse().expect("a URL"), secret: Some(secret.clone()), news };
    let hook = ScaleHook::new(config, "lb1".to_owned(), balancer.nodes.clone(), balancer.speaks.clone());
    let _telling = AbortOnDropHandle::new(tokio::spawn(hook.expect("a client").run()));

    let first = receiver.next(&secret).await;
    let again = receiver.next(&secret).await;
    assert_eq!(first["id"], again["id"], "what was not heard is told again under its name");
    let part = |message: &Value| {
        json!([message["event"], message["nodes"], message["desired_nodes"], message["remove"]])
    };
    assert_eq!(part(&again), json!(["scale", 2, 3, null]), "{again}");
    assert_eq!((&again["reason"], &again["balancer"]), (&json!("busy"), &json!("lb1")));

    a.report(|report| {
        report.functions = vec![warm(1, 3)];
        report.memory_idle_mib = report.memory_total_mib;
    });
    b.report(|report| report.memory_committed_mib = 0);
    let fewer = loop {
        // For a look one of them may still be full.
        let message = receiver.next(&secret).await;
        if message["desired_nodes"] == 1 {
            break message;
        }
    };
    assert_eq!(part(&fewer), json!(["scale", 2, 1, "b"]), "the one without warm slots: {fewer}");
    let command = tokio::time::timeout(LONG, b.commands.recv()).await.expect("in time");
    assert_eq!(command, Some(Command::Drain));
    b.report(|report| report.draining = true);
    let empty = receiver.next(&secret).await;
    assert_eq!(part(&empty), json!(["empty", 1, 1, "b"]), "{empty}");
    assert_eq!(empty["empty_nodes"], json!(["b"]));
    assert_ne!(empty["id"], fewer["id"]);
}

#[tokio::test]
async fn one_of_several_balancers_speaks_for_the_fleet_and_when_it_goes_another_does() {
    let authority = Authority::new();
    let first = Balancer::start_sharing(&authority, "lb1", "shared").await;
    let mut second = Balancer::start_sharing(&authority, "lb2", "shared").await;
    let speaks = async |speaks: &mut tokio::sync::watch::Receiver<bool>, wanted: bool| {
        let waiting = speaks.wait_for(|speaks| *speaks == wanted);
        tokio::time::timeout(LONG, waiting).await.expect("in time").expect("the balancer lives");
    };
    speaks(&mut second.speaks, false).await;
    assert!(*first.speaks.borrow());
    first.stop().await;
    speaks(&mut second.speaks, true).await;
}
