//! What a receiver makes of the messages.

use kiln_testkit::rsyslog::Server;

use crate::node::{Node, config, function, metric};
use crate::outage::authority;
use crate::verdict::{all_arrive, parameter};

#[tokio::test]
async fn rsyslog_understands_messages_over_every_transport() {
    let (certificate, key, ca) = authority();
    let server = Server::start_with_tls(&certificate, &key, &ca).await;
    let folder = tempfile::tempdir().expect("a folder");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, ca).expect("written");
    let spools = folder.path().join("syslog");
    let node = Node::start(kiln_agent::syslog::SyslogConfig { ca_file: Some(ca_file), ..config(&spools) });
    let sinks = [server.udp(), server.tcp(), server.tls(), server.unixgram()];
    let function = function(Some(&sinks.join(",")));
    let written = vec![(node.call(&function, 40).await, 40), (node.call(&function, 3).await, 3)];
    for (input, sink) in ["imudp", "imptcp", "imtcp", "imuxsock"].into_iter().zip(&sinks) {
        let arrived = all_arrive(&server, input, &written).await;
        assert_eq!(arrived.duplicates, 0, "{input}");
        kiln_testkit::until("the sink counts as up", async || {
            (metric("kiln_syslog_up", sink) == 1).then_some(())
        })
        .await;
        assert_eq!(metric("kiln_syslog_sent_total", sink), 43);
        assert_eq!(metric("kiln_syslog_dropped_total", sink), 0);
    }
    let host = nix::unistd::gethostname().expect("a name").to_string_lossy().into_owned();
    let messages = server.messages();
    assert_eq!(messages.len(), 4 * 43);
    for message in &messages {
        // Facility user, severity info.
        assert_eq!((&message["priority"], &message["version"]), (&"14".into(), &"1".into()));
        assert_eq!(message["host"], *host);
        assert_eq!((&message["app"], &message["kind"]), (&"app".into(), &"function".into()));
        assert!(written.iter().any(|(call, _)| message["process"] == **call));
        assert_eq!(parameter(message, "call"), message["process"]);
        assert_eq!((parameter(message, "app"), parameter(message, "function")), ("app", "function"));
        assert_eq!(parameter(message, "app_id"), function.spec.app_id.to_string());
        assert_eq!(parameter(message, "fn_id"), function.spec.id.to_string());
        assert_eq!(parameter(message, "node"), "node-1");
    }
    node.close().await;
}

#[tokio::test]
async fn apps_without_sinks_of_their_own_use_those_of_all() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let targets = kiln_shared::syslog::targets(&server.tcp()).expect("a sink");
    let node = Node::start(kiln_agent::syslog::SyslogConfig { targets, ..config(folder.path()) });
    let written = vec![(node.call(&function(None), 5).await, 5)];
    all_arrive(&server, "imptcp", &written).await;
    let own = vec![(node.call(&function(Some(&server.udp())), 5).await, 5)];
    all_arrive(&server, "imudp", &own).await;
    assert_eq!(server.messages().len(), 10);
    node.close().await;
}
