//! Sinks that reset, stall, talk nonsense or are somebody else.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_agent::syslog::SyslogConfig;
use kiln_testkit::rsyslog::Server;
use kiln_testkit::{Port, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::{Node, config, function, metric, text_of};
use crate::outage::{authority, load};
use crate::verdict::Written;

/// What a sink does with a connection.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Reads so many bytes, then resets the connection.
    Reset(usize),
    /// Reads nothing for a while, then everything.
    Stall(Duration),
    /// Says nonsense all the time, and reads.
    Talk,
    /// Reads.
    Behave,
}

/// A sink that keeps, for each connection, what it read from it.
struct Hostile {
    url: String,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _stop: tokio_util::sync::DropGuard,
}

/// Starts one that treats its connections so, one after the other, and behaves from then on.
async fn hostile(manners: &[Manner]) -> Hostile {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("tcp://{}", listener.local_addr().expect("an address"));
    let (heard, stop, tasks) =
        (Arc::<Mutex<Vec<Vec<u8>>>>::default(), CancellationToken::new(), TaskTracker::new());
    let (mut manners, all) = (VecDeque::from(manners.to_vec()), Arc::clone(&heard));
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        while let Ok((stream, _)) = listener.accept().await {
            all.lock().expect("unpoisoned").push(Vec::new());
            // A broken connection is what these tests are about.
            drop(treat(stream, manners.pop_front().unwrap_or(Manner::Behave), &all).await);
        }
    }));
    Hostile { url, heard, _stop: stop.drop_guard() }
}

async fn treat(mut stream: TcpStream, manner: Manner, heard: &Mutex<Vec<Vec<u8>>>) -> io::Result<()> {
    if let Manner::Stall(time) = manner {
        sleep(time).await;
    }
    let mut buffer = vec![0; 64 << 10];
    let mut read_bytes = 0;
    loop {
        if let Manner::Talk = manner {
            stream.write_all(b"\0\xff<34>1 nonsense\n").await?;
        }
        let count = match timeout(Duration::from_millis(20), stream.read(&mut buffer)).await {
            Ok(count) => count?,
            Err(_silence) => continue,
        };
        if count == 0 {
            return Ok(());
        }
        heard.lock().expect("unpoisoned").last_mut().expect("this one's").extend_from_slice(&buffer[..count]);
        read_bytes += count;
        if let Manner::Reset(bytes) = manner
            && read_bytes >= bytes
        {
            // Closing with what is unread resets; half a buffer surely is.
            stream.set_zero_linger()?;
            return Ok(());
        }
    }
}

impl Hostile {
    /// The texts of whole messages, connection after connection.
    fn texts(&self) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for heard in &*self.heard.lock().expect("unpoisoned") {
            let mut rest = &heard[..];
            while let Some(space) = rest.iter().position(|&byte| byte == b' ') {
                let length: usize =
                    std::str::from_utf8(&rest[..space]).expect("a length").parse().expect("a length");
                let Some(message) = rest.get(space + 1..space + 1 + length) else { break };
                rest = &rest[space + 1 + length..];
                let message = std::str::from_utf8(message).expect("UTF-8");
                let (_, rest_of_call) = message.split_once(" call=\"").expect("a call");
                let (head, text) = message.split_once("\"] ").expect("an end");
                assert!(head.starts_with("<14>1 "), "{head}");
                texts.push((rest_of_call[..26].to_owned(), text.to_owned()));
            }
        }
        texts
    }

    /// Waits until all was heard, each line of a call first after the one before it.
    async fn hears(&self, written: &Written) {
        until("the sink heard everything", async || {
            let mut texts = self.texts();
            let mut seen = std::collections::HashSet::new();
            texts.retain(|text| seen.insert(text.clone()));
            written
                .iter()
                .all(|(call, lines)| {
                    let came: Vec<_> =
                        texts.iter().filter(|(of, _)| of == call).map(|(_, text)| text.clone()).collect();
                    let expected: Vec<_> = (1..=*lines).map(text_of).collect();
                    assert!(expected.starts_with(&came), "call {call}: {came:?}");
                    came.len() == expected.len()
                })
                .then_some(())
        })
        .await;
    }
}

async fn lacks_nothing(manners: &[Manner]) {
    let sink = hostile(manners).await;
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::start(config(folder.path()));
    let function = function(Some(&sink.url));
    let mut written = Written::new();
    load(&node, &function, Duration::from_secs(1), &mut written).await;
    sink.hears(&written).await;
    assert_eq!(metric("kiln_syslog_dropped_total", &sink.url), 0);
    node.close().await;
}

#[tokio::test]
async fn a_sink_that_resets_connections_lacks_no_line() {
    lacks_nothing(&[Manner::Reset(1), Manner::Reset(5000), Manner::Reset(100_000)]).await;
}

#[tokio::test]
async fn a_sink_that_stalls_lacks_no_line() {
    lacks_nothing(&[Manner::Stall(Duration::from_secs(2))]).await;
}

#[tokio::test]
async fn a_sink_that_talks_nonsense_lacks_no_line() {
    lacks_nothing(&[Manner::Talk]).await;
}

#[tokio::test]
async fn a_sink_with_a_wrong_certificate_gets_nothing_and_calls_go_on() {
    let (certificate, key, ca) = authority();
    let (_, _, other_ca) = authority();
    let server = Server::start_with_tls(&certificate, &key, &ca).await;
    let folder = tempfile::tempdir().expect("a folder");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, other_ca).expect("written");
    let spools = folder.path().join("syslog");
    let node = Node::start(SyslogConfig { ca_file: Some(ca_file.clone()), ..config(&spools) });
    let sink = server.tls();
    let function = function(Some(&sink));
    let mut written = Written::new();
    load(&node, &function, Duration::from_millis(500), &mut written).await;
    let lines: u64 = written.iter().map(|(_, lines)| lines).sum();
    until("everything is in the spool", async || {
        (metric("kiln_syslog_spooled_total", &sink) == lines).then_some(())
    })
    .await;
    assert_eq!((metric("kiln_syslog_up", &sink), metric("kiln_syslog_sent_total", &sink)), (0, 0));
    node.close().await;
    assert!(server.messages().is_empty());
    std::fs::write(&ca_file, ca).expect("written");
    let node = Node::start(SyslogConfig { ca_file: Some(ca_file), ..config(&spools) });
    crate::verdict::all_arrive(&server, "imtcp", &written).await;
    node.close().await;
}

#[tokio::test]
async fn a_sink_that_nobody_listens_at_costs_calls_nothing() {
    let port = Port::take();
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::start(config(folder.path()));
    let sink = format!("tcp://127.0.0.1:{}", port.number());
    let function = function(Some(&sink));
    let mut written = Written::new();
    load(&node, &function, Duration::from_millis(500), &mut written).await;
    assert!(written.len() > 5, "{}", written.len());
    assert_eq!(metric("kiln_syslog_dropped_total", &sink), 0);
    node.close().await;
}
