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
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::driver::Shared;
use super::engine::{explain, status};
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
        // It ended between the look and the start: on without one.
        Err(StartError::SandboxLost) => attempt(&shared, &plan, None, &caller, stages).await,
        result => result,
    }
    .map_err(|error| match error {
        StartError::Failed(failure) => failure,
        StartError::SandboxLost => {
            Failure::internal("the engine says that a network sandbox is gone; there was none")
        }
    })
}

/// Why one attempt did not succeed.
enum StartError {
    /// Its network sandbox is gone.
    SandboxLost,
    Failed(Failure),
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
    if matches!(&created, Err(error) if status(error) == Some(404) && !names_lost_sandbox(error)) {
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
    shared.engine.start_container(&control.name).await.map_err(|error| start_failure("start", &error))?;
    find_freezer(shared, &control, id);
    stages.start = begun.elapsed();

    let begun = Instant::now();
    let socket = match directory {
        Some(directory) => {
            let mut said = StartOutput::default();
            let ready = wait_ready(&directory, exit.clone(), shared.config.init_timeout);
            let ready = while_reading(ready, &mut output, &mut said).await;
            tracing::debug!(target: "kiln_agent::function_output", name = control.name, output = %said.text(), "start");
            let socket = ready.map_err(|failure| with_output(failure, &mut said))?;
            let path = socket.path();
            // Set here alone.
            drop(control.socket.set(socket));
            stages.init = begun.elapsed();
            Some(path)
        }
        None => None,
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

/// The socket, or how the start failed (A2). A container that ends first is not waited for.
async fn wait_ready(
    directory: &SocketWatch,
    mut exit: watch::Receiver<Option<Exit>>,
    limit: Duration,
) -> Result<PinnedSocket, Failure> {
    tokio::select! {
        // Cancel-safe, all three: a look, a watch, a timer.
        ready = directory.ready() => ready.map_err(|error| match error {
            SocketError::Refused(_) => Failure::init_failed().with_detail(chain(&error)),
            SocketError::Watch { .. } => Failure::internal(chain(&error)),
        }),
        ended = exit.wait_for(Option::is_some) => {
            let ended = ended.ok().and_then(|exit| *exit);
            Err(Failure::init_failed().with_detail(match ended {
                Some(Exit::Code(code)) => format!("container exit code {code}"),
                Some(Exit::OutOfMemory) => "container out of memory".to_owned(),
                Some(Exit::Unknown) | None => "the container is gone".to_owned(),
            }))
        }
        () = tokio::time::sleep(limit) => Err(Failure::init_timed_out()),
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

/// Adds what the container said last: nearly always the reason.
fn with_output(failure: Failure, said: &mut StartOutput) -> Failure {
    let text = said.text();
    let text = text.trim();
    if text.is_empty() {
        return failure;
    }
    let detail = failure.detail.clone().map_or_else(String::new, |detail| format!("{detail}; "));
    failure.with_detail(format!("{detail}its last output: {text}"))
}

/// Looks up the freezer beside the wait for the socket: it is needed only once the container is idle.
fn find_freezer(shared: &Arc<Shared>, control: &DockerControl, id: String) {
    let (engine, name, slot) = (shared.engine.clone(), control.name.clone(), Arc::clone(&control.freezer));
    shared.tasks.spawn(async move {
        let Ok(inspected) = engine.inspect_container(&name).await else { return };
        let pid = inspected.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
        let Some(pid) = pid.filter(|pid| *pid > 0) else { return };
        match Freezer::of_process(pid, &id) {
            Ok(freezer) => drop(slot.set(freezer)),
            Err(error) => tracing::debug!(name, %error, "this container cannot be frozen"),
        }
    });
}

/// Whether the engine refuses because the sandbox to be joined is not there or not running.
fn names_lost_sandbox(error: &Error) -> bool {
    let words = explain(error);
    words.contains("No such container") || words.contains("cannot join network of")
}

/// What an engine's refusal means: the image or the function's settings are at fault when the engine says so,
/// else the node is.
fn start_failure(step: &str, error: &Error) -> StartError {
    if names_lost_sandbox(error) {
        return StartError::SandboxLost;
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
    /// Empty until it is found, for ever where it cannot be written.
    freezer: Arc<OnceLock<Freezer>>,
    frozen: AtomicBool,
    /// Keeps the path that callers connect to valid.
    socket: OnceLock<PinnedSocket>,
    estate: Option<Estate>,
}

impl ContainerControl for DockerControl {
    fn freeze(&self) -> io::Result<()> {
        let freezer = self.freezer.get().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        self.frozen.store(true, Ordering::Relaxed);
        freezer.freeze()
    }

    fn thaw(&self) -> io::Result<()> {
        let Some(freezer) = self.freezer.get() else { return Ok(()) };
        freezer.thaw()?;
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
