//! Slots: the decision alone, and a warm call through the whole agent with a function that costs nothing.

use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiln_agent::container::{
    Container, ContainerControl, ContainerPlan, Driver, DriverFuture, Exit, StartStages,
};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::slots::queue::{Class, Offer, Place, SlotQueue};
use kiln_agent::{Agent, AgentConfig};
use kiln_benches::{CpuTime, call, function, node_id, short};
use kiln_shared::call::{CallHop, CallKind};
use kiln_shared::contract::Limits;
use kiln_shared::function::Format;
use kiln_shared::record::RecordSink;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

const SERVED: Duration = Duration::from_millis(1);
const PLACE: Place = Place(1);

fn queue(criterion: &mut Criterion<CpuTime>) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("queue");
    for idle in [1, 100] {
        let mut queue: SlotQueue<u64, u64> = SlotQueue::new(now);
        for slot in 0..idle {
            queue.start_begun();
            queue.started(slot, SERVED, now, |_, slot| Err(slot));
        }
        group.bench_function(format!("taken and freed, {idle} idle"), |bench| {
            bench.iter(|| {
                let slot = queue.take_idle(black_box(now)).expect("one is idle");
                queue.freed(slot, PLACE, SERVED, now, |_, slot| Err(slot))
            });
        });
    }
    for waiting in [1, 10_000] {
        let mut queue: SlotQueue<u64, u64> = SlotQueue::new(now);
        queue.start_begun();
        queue.started(0, SERVED, now, |_, slot| Err(slot));
        let slot = queue.take_idle(now).expect("one is idle");
        (0..waiting).for_each(|waiter| queue.wait(waiter, Class::Caller, PLACE, now));
        group.bench_function(format!("handed to the oldest of {waiting} waiting"), |bench| {
            bench.iter(|| {
                queue.wait(black_box(0), Class::Caller, PLACE, now);
                let offer = queue.freed(slot, PLACE, SERVED, now, |_, _| Ok(()));
                assert_eq!(offer, Offer::Handed);
            });
        });
        group.bench_function(format!("containers that {waiting} waiting call for"), |bench| {
            bench.iter(|| queue.starts_needed(black_box(now), 4));
        });
    }
    group.finish();
}

/// Makes containers whose function is a task on the thread that makes the calls.
struct HereDriver {
    folder: TempDir,
    started: AtomicUsize,
    functions: TaskTracker,
}

/// Keeps the container's end untold until it is dropped.
struct Control {
    _ended: watch::Sender<Option<Exit>>,
}

impl ContainerControl for Control {
    fn freeze(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn thaw(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Driver for HereDriver {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start(&self, plan: ContainerPlan) -> DriverFuture<'_, Container> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&path).expect("the folder is ours");
        self.functions.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                answer_all(stream).await;
            }
        });
        let (ended, exit) = watch::channel(None);
        Box::pin(std::future::ready(Ok(Container {
            name: plan.function.spec.name.clone(),
            socket: Some(path),
            stdin: None,
            output: None,
            exit,
            control: Box::new(Control { _ended: ended }),
            stages: StartStages::default(),
        })))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// A function that answers every call with the same bytes.
async fn answer_all(mut stream: UnixStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";
    let mut request = vec![0; 4096];
    while let Ok(1..) = stream.read(&mut request).await {
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}

fn agent(criterion: &mut Criterion<CpuTime>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (sink, mut records) = RecordSink::bounded(1 << 16);
    let agent = runtime.block_on(async {
        let driver = HereDriver {
            folder: tempfile::tempdir().expect("a folder"),
            started: AtomicUsize::new(0),
            functions: TaskTracker::new(),
        };
        let config = AgentConfig {
            node: node_id(1),
            slots: SlotsConfig::for_node(8192, 4),
            limits: Limits::default(),
        };
        Agent::start(config, Arc::new(driver), sink)
    });
    let function = function(Format::HttpStream);
    let mut group = criterion.benchmark_group("agent");
    for calls in [1, 16] {
        group.throughput(Throughput::Elements(calls));
        group.bench_function(format!("{calls} warm calls at once, the function's part included"), |bench| {
            bench.iter(|| {
                runtime.block_on(async {
                    let mut running = JoinSet::new();
                    for _ in 0..calls {
                        let (agent, call) = (agent.clone(), call(&function, CallKind::Invoke, 0));
                        running.spawn(async move {
                            let response = agent.call(Box::new(call)).await.expect("an answer");
                            response.body.collect(64).await.expect("a whole body")
                        });
                    }
                    while running.join_next().await.is_some() {}
                });
                while records.try_recv().is_ok() {}
            });
        });
    }
    group.finish();
    runtime.block_on(agent.close());
}

criterion_group! { name = benches; config = short(); targets = queue, agent }
criterion_main!(benches);
