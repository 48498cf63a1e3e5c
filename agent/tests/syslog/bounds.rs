//! Memory and disk that are full: what is dropped is counted, and calls go on.

use std::fs;
use std::path::Path;
use std::process::Command;

use kiln_agent::syslog::SyslogConfig;
use kiln_testkit::rsyslog::Server;
use kiln_testkit::until;

use crate::node::{Node, config, function, metric};

const LINES: u64 = 2000;
const CALLS: u64 = 30;

/// Calls while the sink is away, more than there is room for; then the sink comes. Whatever arrives is whole, and what
/// does not was counted.
async fn more_than_there_is_room_for(config: SyslogConfig) {
    let mut server = Server::start().await;
    server.stop();
    let node = Node::start(config);
    let sink = server.tcp();
    let function = function(Some(&sink));
    for _ in 0..CALLS {
        node.call(&function, LINES).await;
    }
    let dropped = || metric("kiln_syslog_dropped_total", &sink);
    until("messages are dropped", async || (dropped() > 0).then_some(())).await;
    server.begin().await;
    until("every line arrived or was counted as dropped", async || {
        let arrived = server.messages().len() as u64;
        (arrived + dropped() == CALLS * LINES && metric("kiln_syslog_sent_total", &sink) == arrived)
            .then_some(())
    })
    .await;
    // There is room again.
    let (before, call) = (server.messages().len(), node.call(&function, 5).await);
    until("new lines arrive", async || {
        let messages = server.messages();
        let own = messages.iter().filter(|message| message["process"] == *call).count();
        (own == 5 && messages.len() == before + 5).then_some(())
    })
    .await;
    node.close().await;
}

#[tokio::test]
async fn without_a_spool_what_memory_cannot_hold_is_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = SyslogConfig { spool_bytes_max: 0, memory_bytes_max: 1 << 20, ..config(folder.path()) };
    more_than_there_is_room_for(config).await;
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
}

#[tokio::test]
async fn what_a_full_spool_and_memory_cannot_hold_is_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        SyslogConfig { spool_bytes_max: 4 << 20, memory_bytes_max: 1 << 20, ..config(folder.path()) };
    more_than_there_is_room_for(config).await;
}

/// A file system of so many MiB; needs root, as the tests with containers do.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(at: &'a Path, mib: u32) -> Self {
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        assert!(mounted.expect("there is mount").success(), "cannot mount a tmpfs");
        Self(at)
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0).status());
    }
}

#[tokio::test]
async fn a_full_disk_drops_and_counts_and_fails_no_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = Tiny::mount(folder.path(), 2);
    more_than_there_is_room_for(SyslogConfig { memory_bytes_max: 1 << 20, ..config(folder.path()) }).await;
    drop(tiny);
}
