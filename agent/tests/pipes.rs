//! Calls over standard input and output, with shell scripts for functions.

#[path = "support/mod.rs"]
mod support;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use kiln_agent::container::{
    Container, ContainerControl, ContainerPlan, Driver, DriverFuture, Exit, Output, OutputSource,
    StartStages, Transport,
};
use kiln_agent::slots::SlotsConfig;
use kiln_shared::body::BodyError;
use kiln_shared::call::{CallError, CallHop as _, Failure, Refusal};
use kiln_shared::contract::Limits;
use kiln_shared::function::{Format, Function, FunctionSpec};
use kiln_shared::record::CallStatus;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::process::{ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};

use support::calls::{Caller, request};
use support::{eventually, spec};

/// Containers are processes of this machine that run the function's image as a shell script.
#[derive(Default)]
struct Processes {
    started: AtomicUsize,
}

/// Kills its process when it is dropped.
struct Control(#[expect(dead_code, reason = "its drop is the signal")] oneshot::Sender<()>);

impl ContainerControl for Control {
    fn freeze(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn thaw(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A process's standard input, which ends when it is shut down.
struct Input(Option<ChildStdin>);

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().map_or(Poll::Ready(Ok(())), |stdin| Pin::new(stdin).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

async fn pump(mut pipe: impl AsyncRead + Unpin, source: OutputSource, sender: mpsc::Sender<Output>) {
    let mut piece = vec![0; 32 * 1024];
    while let Ok(bytes @ 1..) = pipe.read(&mut piece).await {
        let bytes = Bytes::copy_from_slice(&piece[..bytes]);
        if sender.send(Output { source, bytes }).await.is_err() {
            break;
        }
    }
}

impl Driver for Processes {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start(&self, plan: ContainerPlan) -> DriverFuture<'_, Container> {
        Box::pin(async move {
            assert_eq!(plan.transport, Transport::Pipes);
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            let mut child = Command::new("sh")
                .args(["-c", &plan.function.spec.image])
                .envs(plan.environment)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .map_err(|error| Failure::internal(error.to_string()))?;
            let (sender, output) = mpsc::channel(8);
            let (stdout, stderr) = (
                child.stdout.take().expect("the script's side works"),
                child.stderr.take().expect("the script's side works"),
            );
            tokio::spawn(pump(stdout, OutputSource::Stdout, sender.clone()));
            tokio::spawn(pump(stderr, OutputSource::Stderr, sender));
            let stdin = child.stdin.take().expect("the script's side works");
            let (exited, exit) = watch::channel(None);
            let (control, dropped) = oneshot::channel();
            tokio::spawn(async move {
                let status = tokio::select! {
                    status = child.wait() => status.expect("the script's side works"),
                    _ = dropped => {
                        child.kill().await.expect("the script's side works");
                        child.wait().await.expect("the script's side works")
                    }
                };
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                exited.send_replace(Some(Exit::Code(i64::from(code))));
            });
            Ok(Container {
                name: format!("process-{number}"),
                socket: None,
                stdin: Some(Box::pin(Input(Some(stdin)))),
                output: Some(output),
                exit,
                control: Box::new(Control(control)),
                stages: StartStages::default(),
            })
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

struct Node {
    driver: Arc<Processes>,
    caller: Caller,
}

fn node() -> Node {
    let driver = Arc::new(Processes::default());
    Node { caller: Caller::of(Arc::<Processes>::clone(&driver), 1024), driver }
}

fn function(format: Format, timeout: Duration, script: &str) -> Arc<Function> {
    Arc::new(Function::new(FunctionSpec { format, timeout, ..spec(script, "") }))
}

impl Node {
    fn started(&self) -> usize {
        self.driver.started.load(Ordering::Relaxed)
    }

    async fn statuses(&mut self, calls: usize) -> Vec<CallStatus> {
        self.caller.records(calls).await.iter().map(|record| record.status).collect()
    }
}

const SOON: Duration = Duration::from_secs(20);

/// Answers each request with the number of it and its body.
const HTTP: &str = r#"
    calls=0
    while read -r line; do
        length=0
        while read -r line; do
            line=${line%?}
            [ -z "$line" ] && break
            case "$line" in [Cc]ontent-[Ll]ength:*) length=${line#*: } ;; esac
        done
        body=$(head -c "$length")
        calls=$((calls + 1))
        echo "call $calls" >&2
        answer="$calls $body"
        printf 'HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n%s' "${#answer}" "$answer"
    done"#;

#[tokio::test]
async fn a_hot_http_container_serves_many_calls() {
    let mut node = node();
    let function = function(Format::Http, SOON, HTTP);
    assert_eq!(node.caller.text(&function, "one").await, "1 one");
    assert_eq!(node.caller.text(&function, "").await, "2 ");
    assert_eq!(node.caller.text(&function, "three").await, "3 three");
    assert_eq!(node.started(), 1);
    assert_eq!(node.statuses(3).await, [CallStatus::Success; 3]);
}

#[tokio::test]
async fn hot_containers_of_objects_serve_many_calls() {
    let node = node();
    let json = r#"while read -r line; do [ -n "$line" ] && echo '{"body":"hi","protocol":{"status_code":200}}'; done"#;
    let function = function(Format::Json, SOON, json);
    for _ in 0..3 {
        assert_eq!(node.caller.text(&function, "x").await, "hi");
    }
    assert_eq!(node.started(), 1);
}

#[tokio::test]
async fn a_container_that_exits_fails_its_call_and_says_how() {
    let mut node = node();
    let function = function(Format::Json, SOON, "read -r line; exit 7");
    let failure = node.caller.call(&function, "x").await.unwrap_err();
    assert_eq!((failure.status, failure.message.as_ref()), (502, "container exit code 7"));
    assert_eq!(node.statuses(1).await, [CallStatus::Error]);
}

#[tokio::test]
async fn a_call_without_an_answer_times_out_and_its_container_serves_no_other() {
    let mut node = node();
    let function = function(Format::Http, Duration::from_millis(200), "cat >/dev/null");
    for _ in 0..2 {
        assert_eq!(node.caller.call(&function, "x").await.unwrap_err().status, 504);
    }
    assert_eq!(node.started(), 2);
    assert_eq!(node.statuses(2).await, [CallStatus::Timeout; 2]);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_ends_in_an_error() {
    let node = node();
    let script = r"printf 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf'; read -r line; sleep 0.3";
    let response =
        node.caller.call(&function(Format::Http, SOON, script), "x").await.expect("the script's side works");
    let cut = response.body.collect(100).await;
    assert!(matches!(cut, Err(BodyError::Interrupted(_))), "{cut:?}");
}

#[tokio::test]
async fn a_container_whose_answer_nobody_wants_is_killed() {
    let mut node = node();
    let script = r"printf 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf'; cat >/dev/null";
    let function = function(Format::Http, SOON, script);
    for _ in 0..2 {
        drop(node.caller.call(&function, "x").await.expect("the script's side works"));
    }
    assert_eq!(node.started(), 2);
    assert_eq!(node.statuses(2).await, [CallStatus::Error; 2]);
}

#[tokio::test]
async fn a_default_container_serves_one_call_and_knows_it() {
    let mut node = node();
    let function = function(Format::Default, SOON, r#"echo "$FN_METHOD ${#FN_CALL_ID} $FN_FORMAT $(cat)""#);
    assert_eq!(node.caller.text(&function, "one").await, "POST 26 default one\n");
    let (second, third) =
        tokio::join!(node.caller.text(&function, "two"), node.caller.text(&function, "three"));
    assert_eq!((second.as_str(), third.as_str()), ("POST 26 default two\n", "POST 26 default three\n"));
    assert_eq!(node.started(), 3);
    assert_eq!(node.statuses(3).await, [CallStatus::Success; 3]);
}

#[tokio::test]
async fn a_default_container_that_fails_without_output_gets_its_caller_502() {
    let node = node();
    let failure = node.caller.call(&function(Format::Default, SOON, "exit 3"), "x").await.unwrap_err();
    assert_eq!((failure.status, failure.message.as_ref()), (502, "container exit code 3"));
}

#[tokio::test]
async fn a_call_that_waits_for_too_long_or_finds_the_queue_full_is_refused_whole_and_leaves_no_record() {
    let driver = Arc::new(Processes::default());
    // Room for one container, and for one who waits for it.
    let slots = SlotsConfig {
        waiting_calls_max: 1,
        wait_timeout: Duration::from_millis(300),
        ..SlotsConfig::for_node(64, 2)
    };
    let mut caller = Caller::with(Arc::<Processes>::clone(&driver), slots, Limits::default());
    let function = function(Format::Http, SOON, "cat >/dev/null");
    let agent = caller.agent.clone();
    let running = tokio::spawn({
        let request = request(&function, "one".into());
        async move { agent.call(Box::new(request)).await }
    });
    eventually("the container is busy", async || {
        caller.agent.reports().borrow().functions.iter().any(|function| function.busy == 1)
    })
    .await;
    let refused = async |text: &'static str| {
        let answer = caller.agent.call(Box::new(request(&function, text.into()))).await;
        let Err(CallError::Refused { reason, request }) = answer else { panic!("{answer:?}") };
        (reason, request.body.collect(100).await.expect("the body"))
    };
    // The first waits in vain, the second finds it waiting.
    let (waited, turned_away) = tokio::join!(biased; refused("two"), refused("three"));
    assert_eq!(waited, (Refusal::Busy, Bytes::from("two")));
    assert_eq!(turned_away, (Refusal::Busy, Bytes::from("three")));
    running.abort();
    assert!(running.await.is_err_and(|error| error.is_cancelled()));
    // A record is sent before its call is over, and only the call that ran had one.
    caller.agent.close().await;
    assert_eq!(driver.started.load(Ordering::Relaxed), 1);
    assert_eq!(caller.records_left().len(), 1);
}

#[tokio::test]
async fn a_node_that_finishes_takes_no_calls_whatever_it_is_told() {
    let node = node();
    let agent = &node.caller.agent;
    agent.drain();
    agent.undrain();
    assert!(!agent.is_draining());
    agent.finish().await;
    agent.undrain();
    assert!(agent.is_draining() && agent.reports().borrow().draining);
}
