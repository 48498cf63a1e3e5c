//! How containers start, speak and end.

use std::time::{Duration, Instant};

use kiln_agent::container::{Container, Driver, Exit, OutputSource, Transport};
use kiln_shared::call::FailureKind;
use tokio::io::AsyncWriteExt;

use crate::support::{call, docker, eventually, image, plan, spec};
use crate::{ask, containers_of, node, node_with};

async fn ended(container: &mut Container) -> Exit {
    let exit = tokio::time::timeout(Duration::from_secs(20), container.exit.wait_for(Option::is_some));
    exit.await.expect("it ends").unwrap().unwrap()
}

/// Reads all output of `source` until the container ends.
async fn drain(container: &mut Container, source: OutputSource) -> Vec<u8> {
    let mut all = Vec::new();
    let mut output = container.output.take().unwrap();
    while let Some(piece) = output.recv().await {
        if piece.source == source {
            all.extend_from_slice(&piece.bytes);
        }
    }
    all
}

#[tokio::test]
async fn a_function_answers_whether_it_binds_or_links_its_socket() {
    let node = node().await;
    for behaviour in ["phony", "direct"] {
        let container = node.start(behaviour).await;
        assert_eq!(ask(&container, "hello").await, "hello", "{behaviour}");
        assert_eq!(container.stages.pull, Duration::ZERO);
        assert!(container.stages.create > Duration::ZERO && container.stages.init > Duration::ZERO);
    }
    node.close().await;
}

#[tokio::test]
async fn entries_that_break_the_contract_fail_the_start() {
    let node = node().await;
    for behaviour in ["absolute", "file"] {
        let plan = plan(spec(&image("function"), behaviour), Transport::Socket);
        let failure = node.driver.start(plan).await.unwrap_err();
        assert_eq!((failure.kind, failure.status), (FailureKind::InitFailed, 502), "{behaviour}");
        assert!(failure.detail.as_ref().unwrap().contains("lsnr.sock"), "{failure:?}");
    }
    node.close().await;
}

#[tokio::test]
async fn a_function_that_never_listens_times_out() {
    let node = node_with(|config| config.init_timeout = Duration::from_millis(300)).await;
    let plan = plan(spec(&image("function"), "silent"), Transport::Socket);
    let failure = node.driver.start(plan).await.unwrap_err();
    assert_eq!((failure.kind, failure.status), (FailureKind::InitTimedOut, 504));
    node.close().await;
}

#[tokio::test]
async fn a_function_that_exits_fails_its_start_at_once_and_says_why() {
    let node = node_with(|config| config.init_timeout = Duration::from_mins(1)).await;
    let begun = Instant::now();
    let plan = plan(spec(&image("function"), "exit"), Transport::Socket);
    let failure = node.driver.start(plan).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!((failure.kind, failure.status), (FailureKind::InitFailed, 502));
    let detail = failure.detail.unwrap();
    assert!(detail.contains("exit code 7") && detail.contains("cannot find the answer"), "{detail}");
    node.close().await;
}

#[tokio::test]
async fn a_function_that_prints_much_before_it_listens_starts() {
    let node = node().await;
    let container = node.start("chatty").await;
    assert_eq!(ask(&container, "count").await, "1");
    node.close_with([container]).await;
}

#[tokio::test]
async fn everything_printed_arrives_in_order_and_by_source() {
    let node = node().await;
    let mut container = node.start("phony").await;
    let mut output = container.output.take().unwrap();
    let mut seen = 0;
    let printed = ask(&container, "print 10000000");
    let reading = async {
        while seen < 10_000_000 {
            let piece = output.recv().await.unwrap();
            assert_eq!(piece.source, OutputSource::Stdout);
            assert!(piece.bytes.len() <= 32 << 10, "{}", piece.bytes.len());
            seen += piece.bytes.len();
        }
    };
    let (printed, ()) = tokio::join!(printed, reading);
    assert_eq!(printed, "ok");
    ask(&container, "complain about it").await;
    let mut complaint = Vec::new();
    while complaint.last() != Some(&b'\n') {
        let piece = output.recv().await.unwrap();
        assert_eq!(piece.source, OutputSource::Stderr);
        complaint.extend_from_slice(&piece.bytes);
    }
    assert_eq!(complaint, b"about it\n");
    node.close_with([container]).await;
}

#[tokio::test]
async fn pipes_carry_input_and_its_end() {
    let node = node().await;
    let mut container = node.start_pipes(&image("function"), "cat").await;
    assert!(container.socket.is_none());
    let mut stdin = container.stdin.take().unwrap();
    let sent = vec![b'k'; 300_000];
    let sending = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let ((), received) = tokio::join!(sending, drain(&mut container, OutputSource::Stdout));
    assert_eq!(received, sent);
    assert_eq!(ended(&mut container).await, Exit::Code(0));
    node.close_with([container]).await;
}

#[tokio::test]
async fn pipes_stay_open_between_calls() {
    let node = node().await;
    let mut container = node.start_pipes(&image("function"), "lines").await;
    let mut output = container.output.take().unwrap();
    let mut stdin = container.stdin.take().unwrap();
    for (line, answer) in [("one\n", "ONE\n"), ("two\n", "TWO\n")] {
        stdin.write_all(line.as_bytes()).await.unwrap();
        assert_eq!(&output.recv().await.unwrap().bytes[..], answer.as_bytes());
    }
    node.close_with([container]).await;
}

#[tokio::test]
async fn an_exit_code_and_a_memory_kill_are_told_apart() {
    let node = node().await;
    let mut plain = node.start("phony").await;
    assert!(call(plain.socket.as_ref().unwrap(), "exit 3").await.is_err());
    assert_eq!(ended(&mut plain).await, Exit::Code(3));
    let mut hungry = node.start("phony").await;
    assert!(call(hungry.socket.as_ref().unwrap(), "eat").await.is_err());
    assert_eq!(ended(&mut hungry).await, Exit::OutOfMemory);
    drop(plain);
    node.close_with([hungry]).await;
}

#[tokio::test]
async fn a_container_that_is_killed_by_hand_is_noticed() {
    let node = node().await;
    let mut container = node.start("phony").await;
    docker(&["kill", &container.name]);
    assert_eq!(ended(&mut container).await, Exit::Code(137));
    let mut removed = node.start("phony").await;
    docker(&["rm", "-f", &removed.name]);
    assert!(matches!(ended(&mut removed).await, Exit::Code(137) | Exit::Unknown));
    drop(removed);
    node.close_with([container]).await;
}

#[tokio::test]
async fn a_dropped_container_is_removed_with_its_directory() {
    let node = node().await;
    let container = node.start("phony").await;
    assert_eq!(node.containers(), [container.name.as_str()]);
    assert_eq!(node.socket_directories(), 1);
    drop(container);
    eventually("the container is gone", async || node.containers().is_empty()).await;
    eventually("its directory is gone", async || node.socket_directories() == 0).await;
    node.close().await;
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let node = node().await;
    let image = image("function");
    for millis in [0, 5, 20, 60, 150] {
        let start = node.driver.start(plan(spec(&image, "silent"), Transport::Socket));
        assert!(tokio::time::timeout(Duration::from_millis(millis), start).await.is_err());
    }
    node.close().await;
}

#[tokio::test]
async fn a_start_may_be_asked_from_any_runtime() {
    let node = node().await;
    let driver = std::sync::Arc::new(node.driver);
    let there = std::sync::Arc::clone(&driver);
    let image = image("function");
    let container = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The runtime that asked ends before the container does.
        runtime.block_on(there.start(plan(spec(&image, "phony"), Transport::Socket))).unwrap()
    });
    let container = container.await.unwrap();
    assert_eq!(ask(&container, "hello").await, "hello");
    drop(container);
    driver.close().await;
    assert_eq!(containers_of(&node.id), Vec::<String>::new());
}
