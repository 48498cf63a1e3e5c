//! One call on this node: gets a slot, talks to the container, keeps time, and leaves a record.

mod http_stream;
mod pipes;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use kiln_shared::call::{CallError, CallFuture, CallHop, CallRequest, CallResponse, Failure, Refusal};
use kiln_shared::contract::Limits;
use kiln_shared::contract::environment::CallEnvironment;
use kiln_shared::contract::pipe::Framing;
use kiln_shared::function::{Format, Function, Revision};
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::record::RecordSink;
use kiln_shared::report::NodeReport;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::record::Journal;
use crate::container::Driver;
use crate::logs::Outlets;
use crate::slots::queue::Class;
use crate::slots::{Entry, Lease, NoSlot, Slots, SlotsConfig};
use crate::syslog::Shipping;

/// How long the word how a container ended may take after its connection or output did. The engine learns of it by
/// way of the container's shim and tells it in an event, which takes tenths of a second where the machine is busy.
/// Only a function that closes without ending makes its caller wait that long.
const EXIT_WAIT: Duration = Duration::from_secs(2);

/// What an agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// This node.
    pub node: NodeId,
    /// How its room is shared out.
    pub slots: SlotsConfig,
    /// Bounds of a call.
    pub limits: Limits,
}

/// The node's agent. Cheap to clone.
#[derive(Clone)]
pub struct Agent {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Agent").field("slots", &self.shared.slots).finish_non_exhaustive()
    }
}

struct Shared {
    node: NodeId,
    slots: Slots,
    limits: Limits,
    sink: RecordSink,
    syslog: Shipping,
    report: watch::Sender<Arc<NodeReport>>,
    tasks: TaskTracker,
    calls: TaskTracker,
    /// A [`Taking`].
    taking: AtomicU8,
    stop: CancellationToken,
}

/// Whether calls are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Taking {
    /// Yes.
    Calls,
    /// No, until told otherwise.
    Drained,
    /// Never again.
    Finished,
}

impl Agent {
    /// Starts an agent on the current runtime. Its driver has removed what an earlier life left behind.
    pub fn start(config: AgentConfig, driver: Arc<dyn Driver>, sink: RecordSink) -> Self {
        Self::start_shipping(config, driver, sink, Shipping::default())
    }

    /// As [`Self::start`], with logs sent to syslog besides. [`Self::close`] closes that, too.
    pub fn start_shipping(
        config: AgentConfig,
        driver: Arc<dyn Driver>,
        sink: RecordSink,
        syslog: Shipping,
    ) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let images = driver.images();
        let (slots, report) = Slots::start(
            config.node.clone(),
            driver,
            config.slots,
            config.limits,
            Outlets { records: sink.clone(), syslog: syslog.clone() },
            &tasks,
            stop.clone(),
        );
        tasks.spawn(stop.clone().run_until_cancelled_owned(report_images(images, report.clone())));
        let shared = Shared {
            node: config.node,
            slots,
            limits: config.limits,
            sink,
            syslog,
            report,
            tasks,
            calls: TaskTracker::new(),
            taking: AtomicU8::new(Taking::Calls as u8),
            stop,
        };
        Self { shared: Arc::new(shared) }
    }

    /// This node's state, as it changes.
    pub fn reports(&self) -> watch::Receiver<Arc<NodeReport>> {
        self.shared.report.subscribe()
    }

    /// Takes no more calls, lets those that run end, and gives up containers that are idle or become so. Says so in its
    /// reports. [`Self::undrain`] takes it back.
    pub fn drain(&self) {
        self.change(Taking::Calls, Taking::Drained);
        self.shared.slots.evict_all();
    }

    /// Takes calls again, unless the agent finishes.
    pub fn undrain(&self) {
        self.change(Taking::Drained, Taking::Calls);
    }

    /// True if no calls are taken.
    pub fn is_draining(&self) -> bool {
        self.shared.taking.load(Ordering::Acquire) != Taking::Calls as u8
    }

    fn change(&self, from: Taking, to: Taking) {
        let taking = &self.shared.taking;
        if taking.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.report_draining();
        }
    }

    fn report_draining(&self) {
        self.shared.report.send_if_modified(|report| {
            // Under the report's lock: of two changes at once the later one is told last.
            let draining = self.is_draining();
            if report.draining == draining {
                return false;
            }
            let sequence = report.sequence + 1;
            *report = Arc::new(NodeReport { draining, sequence, ..(**report).clone() });
            true
        });
    }

    /// Starts containers of the function until it has as many, idle or busy, as far as there is room that nobody uses.
    pub fn prewarm(&self, function: &Arc<Function>, containers: u32) {
        if !self.is_draining() {
            self.shared.slots.prewarm(function, containers);
        }
    }

    /// Gives up the idle containers of one revision of a function.
    pub fn evict(&self, function: FunctionId, revision: Revision) {
        self.shared.slots.evict(function, revision);
    }

    /// Takes no more calls, for good, and waits until no call runs. The caller bounds the wait: dropping the future and
    /// calling [`Self::close`] cuts what is left.
    pub async fn finish(&self) {
        self.shared.taking.store(Taking::Finished as u8, Ordering::Release);
        self.report_draining();
        self.shared.slots.evict_all();
        self.shared.calls.close();
        self.shared.calls.wait().await;
    }

    /// Removes every container, whether or not a call runs in it, and ships what they wrote, for a few seconds.
    pub async fn close(&self) {
        self.shared.taking.store(Taking::Finished as u8, Ordering::Release);
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.syslog.close().await;
    }

    /// True if this node, were it empty, had room for a container of `function`.
    pub(crate) fn could_ever_fit(&self, function: &Function) -> bool {
        self.shared.slots.could_ever_fit(function)
    }

    /// Takes a call that came out of the queue, which stands in line for a container when this returns.
    ///
    /// # Errors
    /// A refusal, or what is wrong with it.
    pub(crate) fn take_queued(&self, request: Box<CallRequest>) -> Result<QueuedCall, CallError> {
        self.take(request, Class::Queued).map(QueuedCall)
    }

    fn take(&self, mut request: Box<CallRequest>, class: Class) -> Result<Taken, CallError> {
        let running = self.shared.calls.token();
        if self.is_draining() {
            return Err(CallError::Refused { reason: Refusal::Draining, request });
        }
        let journal = Journal::open(&mut request, self.shared.node.clone(), self.shared.sink.clone());
        let environment =
            (request.function.spec.format == Format::Default).then(|| CallEnvironment::new(&request));
        let standing = Standing { request, journal, running, limits: self.shared.limits };
        match self.shared.slots.enter(&standing.request.function, environment, class) {
            Ok(entry) => Ok(Taken { standing, entry }),
            Err(none) => Err(standing.without_slot(none)),
        }
    }
}

/// A call that this node has taken and that has not begun.
struct Standing {
    request: Box<CallRequest>,
    journal: Journal,
    running: TaskTrackerToken,
    limits: Limits,
}

/// One that stands in line for a container.
struct Taken {
    standing: Standing,
    entry: Entry,
}

/// A call out of the queue that stands in line for a container. Dropped, it gives up its place.
pub(crate) struct QueuedCall(Taken);

impl QueuedCall {
    /// Runs it. `give_up` ends its wait for a container with a refusal, but not its run; `begins` is called between the
    /// two, and says whether it may run after all.
    ///
    /// # Errors
    /// A refusal if it has not begun, else what went wrong.
    pub(crate) async fn run(
        self,
        give_up: &CancellationToken,
        begins: impl FnOnce() -> bool + Send,
    ) -> Result<CallResponse, CallError> {
        let Taken { mut standing, entry } = self.0;
        let granted = give_up.run_until_cancelled(entry.granted()).await;
        match granted.unwrap_or(Err(NoSlot::Refused(Refusal::Draining))) {
            Ok(lease) => {
                standing.journal.seated(lease.start());
                if begins() {
                    Ok(standing.run_in(lease).await?)
                } else {
                    Err(standing.without_slot(NoSlot::Refused(Refusal::Busy)))
                }
            }
            Err(none) => Err(standing.without_slot(none)),
        }
    }
}

impl Taken {
    async fn run(self) -> Result<CallResponse, CallError> {
        let Self { mut standing, entry } = self;
        match entry.granted().await {
            Ok(lease) => {
                standing.journal.seated(lease.start());
                Ok(standing.run_in(lease).await?)
            }
            Err(none) => Err(standing.without_slot(none)),
        }
    }
}

impl Standing {
    /// The call does not begin.
    fn without_slot(self, none: NoSlot) -> CallError {
        let Self { request, mut journal, .. } = self;
        match none {
            NoSlot::Refused(reason) => {
                journal.refused();
                CallError::Refused { reason, request }
            }
            NoSlot::Failed(failure) => {
                journal.seated(None);
                journal.failed(failure).into()
            }
        }
    }

    /// Runs the call in its container, as its function's format says.
    async fn run_in(self, lease: Lease) -> Result<CallResponse, Failure> {
        let Self { request, journal, running, limits } = self;
        match Framing::of(&request) {
            None => http_stream::run(request, lease, journal, limits, running).await,
            // Boxed, so that calls of the common format do not carry its size.
            Some(framing) => Box::pin(pipes::run(framing, request, lease, journal, limits, running)).await,
        }
    }
}

/// Puts the images that are present into the node's reports.
async fn report_images(mut images: watch::Receiver<Arc<[Arc<str>]>>, report: watch::Sender<Arc<NodeReport>>) {
    while images.changed().await.is_ok() {
        let images = Some(Arc::clone(&images.borrow_and_update()));
        report.send_if_modified(|report| {
            if report.images == images {
                return false;
            }
            let sequence = report.sequence + 1;
            *report = Arc::new(NodeReport { images, sequence, ..(**report).clone() });
            true
        });
    }
}

impl CallHop for Agent {
    fn call(&self, request: Box<CallRequest>) -> CallFuture<'_> {
        Box::pin(async move { self.take(request, Class::Caller)?.run().await })
    }
}
