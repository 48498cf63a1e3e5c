//! Sinks that go away under load and come back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_agent::syslog::SyslogConfig;
use kiln_shared::function::Function;
use kiln_testkit::rsyslog::Server;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::{Instant, sleep};

use crate::node::{Node, config, function, metric};
use crate::verdict::{Written, all_arrive};

/// How long sinks stay away: a few seconds, or as many as `KILN_TEST_SYSLOG_OUTAGE_SECONDS` says.
fn outage() -> Duration {
    let given = std::env::var("KILN_TEST_SYSLOG_OUTAGE_SECONDS");
    Duration::from_secs(given.map_or(3, |seconds| seconds.parse().expect("a number of seconds")))
}

/// A certificate for 127.0.0.1, its key, and the authority that proves it.
pub(crate) fn authority() -> (String, String, String) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("no names");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("is signed");
    let key = KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).expect("names");
    let certificate = certificate.signed_by(&key, &Issuer::new(ca, ca_key)).expect("is signed");
    (certificate.pem(), key.serialize_pem(), ca_certificate.pem())
}

/// Starts a node that believes an authority.
fn node_believing(ca: &str, folder: &Path) -> Node {
    let ca_file = folder.join("ca.pem");
    std::fs::write(&ca_file, ca).expect("written");
    Node::start(SyslogConfig { ca_file: Some(ca_file), ..config(&folder.join("syslog")) })
}

/// Calls that each write some lines, one after the other, for so long.
pub(crate) async fn load(node: &Node, function: &Arc<Function>, time: Duration, written: &mut Written) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        written.push((node.call(function, 50).await, 50));
        sleep(Duration::from_millis(15)).await;
    }
}

/// How a server goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Stopped,
    Killed,
    Frozen,
}

async fn a_server_goes_away(away: Away) {
    let (certificate, key, ca) = authority();
    let mut server = Server::start_with_tls(&certificate, &key, &ca).await;
    let folder = tempfile::tempdir().expect("a folder");
    let node = node_believing(&ca, folder.path());
    let sinks = [server.tcp(), server.tls()];
    let function = function(Some(&sinks.join(" ")));
    let mut written = Written::new();
    let moment = Duration::from_millis(700);
    load(&node, &function, moment, &mut written).await;
    match away {
        Away::Stopped => server.stop(),
        Away::Killed => server.kill(),
        Away::Frozen => server.freeze(),
    }
    load(&node, &function, outage(), &mut written).await;
    match away {
        Away::Stopped | Away::Killed => server.begin().await,
        Away::Frozen => server.thaw(),
    }
    load(&node, &function, moment, &mut written).await;
    let lines: u64 = written.iter().map(|(_, lines)| lines).sum();
    for (input, sink) in ["imptcp", "imtcp"].into_iter().zip(&sinks) {
        let arrived = all_arrive(&server, input, &written).await;
        println!("{away:?} {input}: {lines} lines written, {} duplicates", arrived.duplicates);
        let resent = metric("kiln_syslog_resent_total", sink);
        assert!(arrived.duplicates <= resent, "{} of {resent}", arrived.duplicates);
        assert_eq!(metric("kiln_syslog_sent_total", sink), lines + resent);
        assert_eq!(metric("kiln_syslog_dropped_total", sink), 0);
        let reconnects = metric("kiln_syslog_reconnects_total", sink);
        assert_eq!(reconnects > 0, away != Away::Frozen, "{reconnects}");
        // One that is frozen takes some before it takes no more.
        assert!(metric("kiln_syslog_spooled_total", sink) > 0 || away == Away::Frozen);
    }
    node.close().await;
}

#[tokio::test]
async fn a_server_that_was_stopped_lacks_no_line() {
    a_server_goes_away(Away::Stopped).await;
}

#[tokio::test]
async fn a_server_that_was_killed_lacks_no_line() {
    a_server_goes_away(Away::Killed).await;
}

#[tokio::test]
async fn a_server_that_was_frozen_lacks_no_line() {
    a_server_goes_away(Away::Frozen).await;
}

#[tokio::test]
async fn what_a_node_could_not_send_is_sent_in_its_next_life() {
    let mut server = Server::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let function = function(Some(&server.tcp()));
    let mut written = Written::new();
    let node = Node::start(config(folder.path()));
    load(&node, &function, Duration::from_millis(300), &mut written).await;
    server.stop();
    load(&node, &function, Duration::from_millis(300), &mut written).await;
    node.close().await;
    server.begin().await;
    let node = Node::start(config(folder.path()));
    all_arrive(&server, "imptcp", &written).await;
    node.close().await;
    let messages = server.messages().len();
    let node = Node::start(config(folder.path()));
    node.close().await;
    assert_eq!(server.messages().len(), messages, "nothing was left to send");
}

#[tokio::test]
async fn datagrams_to_a_server_that_is_away_wait_for_it() {
    let mut server = Server::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    server.stop();
    let node = Node::start(config(folder.path()));
    let function = function(Some(&format!("{},{}", server.udp(), server.unixgram())));
    // As many as fit into the buffer of a socket, however late they are read: datagrams may be lost.
    let mut written = Written::new();
    for _ in 0..3 {
        written.push((node.call(&function, 20).await, 20));
        sleep(Duration::from_millis(100)).await;
    }
    server.begin().await;
    for input in ["imudp", "imuxsock"] {
        all_arrive(&server, input, &written).await;
    }
    node.close().await;
}
