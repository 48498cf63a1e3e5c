//! Brings one container up: image, create, attach, start, socket.
//!
//! Owns the order of these steps and what each failure means to the caller. From the moment the engine is asked
//! to create, a [`DockerControl`] stands for the container; dropping it at any step leaves nothing behind.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bollard::errors::Error;
use kiln_shared::call::Failure;
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::driver::Shared;
use super::engine::{Engine, explain, status};
use super::output::{Input, PIECES_MAX, StartOutput, Unread, pump};
use super::reaper::{Estate, Reaper};
use super::sandbox::Sandbox;
use super::{blueprint, labels};
use crate::container::freezer::Freezer;
use crate::container::iofs::{PinnedSocket, SocketDirectory, SocketError, SocketWatch};
use crate::container::{Container, ContainerControl, ContainerPlan, Exit, Output, StartStages, Transport};
use crate::image::ImageWait;

/// Starts a container for `plan`; gives up between steps when `caller` is cancelled.
pub(super) async fn start(
    shared: Arc<Shared>,
    plan: ContainerPlan,
    caller: CancellationToken,
) -> Result<Container, Failure> {
    let mut stages = StartStages::default();
    let begun = Instant::now();
    let image = &plan.function.spec.image;
    let Some(wait) = caller.run_until_cancelled(shared.images.ensure(image)).await else {
        return Err(Failure::cancelled());
    };
    if wait? == ImageWait::Pulled {
        stages.pull = begun.elapsed();
    }
    let _under_way = shared.sandboxes.start_begins();
    let sandbox = shared.sandboxes.take();
    let kind = if sandbox.is_some() { "ready" } else { "none" };
    metrics::counter!("kiln_docker_starts_total", "sandbox" => kind).increment(1);
    match attempt(&shared, &plan, sandbox, &caller, stages).await {
        // It ended between the look and the start, or somebody pruned the network: on without a sandbox.
        Err(StartError::NetworkLost) => {
            let repaired = shared.network.repair(&shared.engine, &shared.config, &shared.identity).await;
            repaired.map_err(|error| Failure::internal(format!("docker network: {}", explain(&error))))?;
            attempt(&shared, &plan, None, &caller, stages).await
        }
        result => result,
    }
    .map_err(|error| match error {
        StartError::Failed(failure) => failure,
        StartError::NetworkLost => Failure::internal(
            "the engine says that the functions' network is gone; it was there a moment ago",
        ),
    })
}

/// Why one attempt did not succeed.
enum StartError {
    /// Its network, or its network sandbox, is gone.
    NetworkLost,
    Failed(Failure),
}

impl StartError {
    /// Adds what the container said last: nearly always the reason.
    fn with_output(self, said: &mut StartOutput) -> Self {
        let text = said.text();
        match self {
            Self::Failed(failure) if !text.trim().is_empty() => {
                let detail = failure.detail.clone().map_or_else(String::new, |detail| format!("{detail}; "));
                Self::Failed(failure.with_detail(format!("{detail}its last output: {}", text.trim())))
            }
            other => other,
        }
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    plan: &ContainerPlan,
    sandbox: Option<Sandbox>,
    caller: &CancellationToken,
    mut stages: StartStages,
) -> Result<Container, StartError> {
    let begun = Instant::now();
    // Not cut short: an answer that nobody waits for would leave a container that nobody knows.
    let made = create(shared, plan, sandbox).await?;
    stages.create = begun.elapsed();
    match caller.run_until_cancelled(bring_up(shared, plan, made, stages)).await {
        Some(result) => result,
        None => Err(StartError::Failed(Failure::cancelled())),
    }
}

/// A container that was created and has not been started.
struct Made {
    control: DockerControl,
    id: String,
    directory: Option<SocketWatch>,
}

async fn create(
    shared: &Arc<Shared>,
    plan: &ContainerPlan,
    sandbox: Option<Sandbox>,
) -> Result<Made, StartError> {
    let name = labels::unique_name("fn");
    let directory = match plan.transport {
        Transport::Socket => Some(socket_directory(shared, &name)?),
        Transport::Pipes => None,
    };
    let watch = directory.as_ref().map(SocketDirectory::watch).transpose().map_err(|error| {
        // The node's fault, not the function's (A2: "watch error on the node").
        Failure::internal(chain(&error))
    })?;
    let mounted = directory.as_ref().map(|directory| engine_path(shared, directory));
    let network = sandbox.as_ref().map_or_else(|| shared.network.mode().to_owned(), Sandbox::mode);
    let body = blueprint::function(&shared.config, &shared.identity, plan, mounted.as_deref(), &network);
    let control = DockerControl {
        name: name.clone(),
        reaper: Arc::clone(&shared.reaper),
        freezer: Arc::new(OnceLock::new()),
        frozen: AtomicBool::new(false),
        socket: OnceLock::new(),
        estate: Some(Box::new((directory, sandbox))),
    };
    let image = &plan.function.spec.image;
    let mut created = shared.engine.create_container(&name, body.clone()).await;
    if matches!(&created, Err(error) if status(error) == Some(404) && !names_lost_network(error)) {
        // The image was there a moment ago: somebody removed it.
        shared.images.doubt(image);
        shared.images.ensure(image).await?;
        created = shared.engine.create_container(&name, body).await;
    }
    let id = created.map_err(|error| start_failure("create", &error))?;
    Ok(Made { control, id, directory: watch })
}

fn socket_directory(shared: &Shared, name: &str) -> Result<SocketDirectory, Failure> {
    // The random end of the name alone: the path must be short.
    let short = &name[name.len() - 10..];
    SocketDirectory::create(&shared.config.iofs_path, short, shared.backing)
        .map_err(|error| Failure::internal(format!("cannot make a socket directory: {error}")))
}

/// The directory as the engine sees it.
fn engine_path(shared: &Shared, directory: &SocketDirectory) -> PathBuf {
    match (&shared.config.iofs_engine_path, directory.path().file_name()) {
        (Some(root), Some(name)) => root.join(name),
        _ => directory.path().to_owned(),
    }
}

async fn bring_up(
    shared: &Arc<Shared>,
    plan: &ContainerPlan,
    made: Made,
    mut stages: StartStages,
) -> Result<Container, StartError> {
    let Made { control, id, directory } = made;
    let begun = Instant::now();
    let exit = shared.exits.register(&control.name);
    // Before the start, so that no output is lost.
    let attached = shared
        .engine
        .attach(&control.name, plan.transport)
        .await
        .map_err(|error| start_failure("attach", &error))?;
    let (sender, mut output) = mpsc::channel(PIECES_MAX);
    let (stdin, unread) = match plan.transport {
        Transport::Pipes => (Some(Box::pin(Input::new(attached.input)) as Pin<Box<_>>), Unread::Discard),
        Transport::Socket => (None, Unread::Close),
    };
    shared.tasks.spawn(pump(attached.output, sender, unread));
    let launched = launch(shared, &control, id);
    let socket = if let Some(directory) = directory {
        let mut said = StartOutput::default();
        let ready = wait_ready(&directory, launched, exit.clone(), shared.config.init_timeout);
        let ready = while_reading(ready, &mut output, &mut said).await;
        tracing::debug!(target: "kiln_agent::function_output", name = control.name, output = %said.text(), "start");
        let ready = ready.map_err(|error| error.with_output(&mut said))?;
        stages.start = ready.launched_at.duration_since(begun);
        stages.init = ready.launched_at.elapsed();
        let path = ready.socket.path();
        // Set here alone.
        drop(control.socket.set(ready.socket));
        Some(path)
    } else {
        launched.await?;
        stages.start = begun.elapsed();
        None
    };
    Ok(Container {
        name: control.name.clone(),
        socket,
        stdin: stdin.map(|stdin| stdin as Pin<Box<dyn AsyncWrite + Send + Sync>>),
        output: Some(output),
        exit,
        control: Box::new(control),
        stages,
    })
}

/// A function's socket, and when the engine said that the container runs: now, if it has not said so yet.
struct Ready {
    socket: PinnedSocket,
    launched_at: Instant,
}

/// The socket, or how the start failed (A2). A container that ends first is not waited for, and neither is an
/// engine that is slower to say that it started a function than the function is to listen.
async fn wait_ready(
    directory: &SocketWatch,
    launched: impl Future<Output = Result<(), StartError>>,
    mut exit: watch::Receiver<Option<Exit>>,
    limit: Duration,
) -> Result<Ready, StartError> {
    let checked = |ready: Result<PinnedSocket, SocketError>| {
        ready.map_err(|error| match error {
            SocketError::Refused(_) => Failure::init_failed().with_detail(chain(&error)),
            SocketError::Watch { .. } => Failure::internal(chain(&error)),
        })
    };
    // Cancel-safe, in both selects: a look, a oneshot, a watch, a timer.
    tokio::select! {
        ready = directory.ready() => return Ok(Ready { socket: checked(ready)?, launched_at: Instant::now() }),
        launched = launched => launched?,
    }
    let launched_at = Instant::now();
    tokio::select! {
        ready = directory.ready() => Ok(Ready { socket: checked(ready)?, launched_at }),
        ended = exit.wait_for(Option::is_some) => {
            let ended = ended.ok().and_then(|exit| *exit);
            Err(StartError::Failed(Failure::init_failed().with_detail(match ended {
                Some(Exit::Code(code)) => format!("container exit code {code}"),
                Some(Exit::OutOfMemory) => "container out of memory".to_owned(),
                Some(Exit::Unknown) | None => "the container is gone".to_owned(),
            })))
        }
        () = tokio::time::sleep(limit) => Err(StartError::Failed(Failure::init_timed_out())),
    }
}

/// Runs `ready` to its end and takes up what the container writes meanwhile.
async fn while_reading<T>(
    ready: impl Future<Output = T>,
    output: &mut mpsc::Receiver<Output>,
    said: &mut StartOutput,
) -> T {
    let mut ready = std::pin::pin!(ready);
    loop {
        tokio::select! {
            result = &mut ready => {
                // What is there already belongs to the start too.
                while let Ok(piece) = output.try_recv() {
                    said.push(&piece.bytes);
                }
                return result;
            }
            // Cancel-safe: a channel's receive.
            () = said.read(output) => {}
        }
    }
}

/// Starts the container, then looks up its freezer, which is needed only once it is idle. Resolves when the
/// engine has answered; sees the start through even if nobody waits.
fn launch(
    shared: &Arc<Shared>,
    control: &DockerControl,
    id: String,
) -> impl Future<Output = Result<(), StartError>> + use<> {
    let (engine, name, slot) = (shared.engine.clone(), control.name.clone(), Arc::clone(&control.freezer));
    let (answer, answered) = oneshot::channel();
    shared.tasks.spawn(async move {
        let result = engine.start_container(&name).await;
        let started = result.is_ok();
        // Nobody waits when the start was given up or the socket came first.
        drop(answer.send(result));
        if started {
            // Set here alone.
            drop(slot.set(find_freezer(&engine, &name, &id).await));
        }
    });
    async {
        let result = answered.await.map_err(|_| Failure::internal("a container's start broke"))?;
        result.map_err(|error| start_failure("start", &error))
    }
}

async fn find_freezer(engine: &Engine, name: &str, id: &str) -> Option<Freezer> {
    let inspected = engine.inspect_container(name).await.ok()?;
    let pid = u32::try_from(inspected.state?.pid?).ok().filter(|pid| *pid > 0)?;
    Freezer::of_process(pid, id)
        .inspect_err(|error| tracing::debug!(name, %error, "this container cannot be frozen"))
        .ok()
}

/// Whether the engine refuses because the sandbox to be joined is not there or not running, or because the
/// network is not there.
fn names_lost_network(error: &Error) -> bool {
    let words = explain(error);
    words.contains("No such container")
        || words.contains("cannot join network of")
        || (words.contains("network kiln-") && words.contains("not found"))
}

/// What an engine's refusal means: the image or the function's settings are at fault when the engine says so,
/// else the node is.
fn start_failure(step: &str, error: &Error) -> StartError {
    if names_lost_network(error) {
        return StartError::NetworkLost;
    }
    let detail = format!("docker {step}: {}", explain(error));
    let functions_fault = match status(error) {
        Some(400..=499) => true,
        Some(_) => detail.contains("OCI runtime create failed") || detail.contains("failed to create task"),
        None => false,
    };
    StartError::Failed(if functions_fault {
        Failure::init_failed().with_detail(detail)
    } else {
        Failure::internal(detail)
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Power over one container; see [`ContainerControl`].
#[derive(Debug)]
struct DockerControl {
    name: String,
    reaper: Arc<Reaper>,
    /// Empty until it was looked for, `None` where it cannot be written.
    freezer: Arc<OnceLock<Option<Freezer>>>,
    frozen: AtomicBool,
    /// Keeps the path that callers connect to valid.
    socket: OnceLock<PinnedSocket>,
    estate: Option<Estate>,
}

impl ContainerControl for DockerControl {
    fn freeze(&self) -> io::Result<()> {
        let freezer = self.freezer.get().ok_or(io::ErrorKind::WouldBlock)?;
        let freezer = freezer.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        self.frozen.store(true, Ordering::Relaxed);
        freezer.freeze()
    }

    fn thaw(&self) -> io::Result<()> {
        if let Some(Some(freezer)) = self.freezer.get() {
            freezer.thaw()?;
        }
        self.frozen.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for DockerControl {
    fn drop(&mut self) {
        // A frozen process does not die; when thawing fails, it is because it is dead.
        if self.frozen.load(Ordering::Relaxed)
            && let Err(error) = self.thaw()
        {
            tracing::debug!(name = self.name, %error, "cannot thaw a container that is to be removed");
        }
        if let Some(estate) = self.estate.take() {
            self.reaper.reap(std::mem::take(&mut self.name), estate);
        }
    }
}
