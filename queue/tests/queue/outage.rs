//! A server that goes away and comes back: what is said meanwhile, and that nothing acknowledged is lost.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_queue::{Options, open};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{NewMessage, Outcome, Queue, QueueError, Receipt, Reserve, Settled, Settlement};
use kiln_testkit::until;
use sqlx::{Connection, Executor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// A server that can be killed and started again.
pub(crate) trait Killable {
    async fn begin(&mut self);
    fn kill(&mut self);
}

/// Kills the server under load, several times; each message that was acknowledged is given out, and who waits for
/// messages needs no help to go on.
pub(crate) async fn nothing_acknowledged_is_lost(server: &mut impl Killable, url: &str) {
    let queue = open(url, Options::default()).await.expect("the queue opens");
    let stop = CancellationToken::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let caller = || tokio::spawn(call(Arc::clone(&queue), Arc::clone(&taken), stop.clone()));
    let callers: Vec<JoinHandle<Vec<CallId>>> = (0..4).map(|_| caller()).collect();
    let worker = tokio::spawn(work(Arc::clone(&queue), stop.clone()));
    for _ in 0..3 {
        let before = taken.load(Ordering::Relaxed);
        until("calls are taken", async || (taken.load(Ordering::Relaxed) > before + 50).then_some(())).await;
        server.kill();
        let refused = queue.enqueue(vec![message(FunctionId::generate())]).await;
        assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
        server.begin().await;
    }
    let before = taken.load(Ordering::Relaxed);
    until("calls are taken again", async || (taken.load(Ordering::Relaxed) > before).then_some(())).await;
    stop.cancel();
    let mut acknowledged = HashSet::new();
    for caller in callers {
        acknowledged.extend(caller.await.expect("a caller"));
    }
    let mut done = worker.await.expect("the worker");
    // What the worker held as the server died comes back when its lease ends.
    until("all were given out", async || {
        take(&queue, &mut done).await;
        acknowledged.iter().all(|id| done.contains(id)).then_some(())
    })
    .await;
    assert!(!acknowledged.is_empty());
    queue.close().await;
}

fn message(function: FunctionId) -> NewMessage {
    let app: AppId = "01M2APP0000000000000000000".parse().expect("an id");
    NewMessage::new(CallId::generate(), function, app, "hello")
}

/// Enqueues until `stop`; what was acknowledged. A message of which that is not known is enqueued again.
async fn call(queue: Arc<dyn Queue>, taken: Arc<AtomicUsize>, stop: CancellationToken) -> Vec<CallId> {
    let function = FunctionId::generate();
    let mut acknowledged = Vec::new();
    while !stop.is_cancelled() {
        let message = message(function);
        let id = message.id;
        if queue.enqueue(vec![message.clone()]).await.is_ok() || queue.enqueue(vec![message]).await.is_ok() {
            acknowledged.push(id);
            taken.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    acknowledged
}

/// Works as agents do: asks, and waits to be woken. What was done.
async fn work(queue: Arc<dyn Queue>, stop: CancellationToken) -> HashSet<CallId> {
    let mut done = HashSet::new();
    let mut wakeups = queue.subscribe();
    while !stop.is_cancelled() {
        if take(&queue, &mut done).await == 0 {
            tokio::select! {
                () = stop.cancelled() => {}
                woken = wakeups.next() => woken.expect("the queue is open"),
            }
        }
    }
    done
}

/// Reserves and settles some; how many.
async fn take(queue: &Arc<dyn Queue>, done: &mut HashSet<CallId>) -> usize {
    let Ok(taken) = queue.reserve(Reserve::new("worker", 50, Duration::from_secs(2))).await else { return 0 };
    let settlements: Vec<Settlement> = taken
        .iter()
        .map(|reserved| Settlement { receipt: reserved.receipt, outcome: Outcome::Done })
        .collect();
    // A server that dies before it answers may have done it: say it again, or nobody knows.
    let settled = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match queue.settle(settlements.clone()).await {
                Ok(settled) => return settled,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let settled = settled.await.expect("the queue answers again");
    let settled = taken.iter().zip(settled).filter(|(_, settled)| *settled == Settled::Done);
    done.extend(settled.map(|(reserved, _)| reserved.receipt.id));
    taken.len()
}

/// Between a queue and its server: carries what both say until the queue leases messages, then nothing until told.
/// Connections stay, as when a machine loses its network or its power.
pub(crate) struct Line {
    /// True: cut.
    cut: Arc<watch::Sender<bool>>,
    _carrying: AbortOnDropHandle<()>,
}

/// What a queue says when it has locked messages and is about to lease them.
const LEASING: &[u8] = b"SET state = 1, lease";

impl Line {
    /// Carries what is said at the socket `here` to that `there`.
    pub(crate) fn new(here: PathBuf, there: PathBuf) -> Self {
        let cut = Arc::new(watch::Sender::new(false));
        let cutting = Arc::clone(&cut);
        let listener = UnixListener::bind(here).expect("a socket");
        let carrying = tokio::spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((queue, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&there).await else { continue };
                let (said, say) = queue.into_split();
                let (answered, answer) = server.into_split();
                lines.spawn(carry(said, answer, Arc::clone(&cutting), LEASING));
                lines.spawn(carry(answered, say, Arc::clone(&cutting), b""));
            }
        });
        Self { cut, _carrying: AbortOnDropHandle::new(carrying) }
    }

    async fn until_cut(&self) {
        let mut cut = self.cut.subscribe();
        let cut = timeout(Duration::from_secs(20), cut.wait_for(|cut| *cut)).await;
        drop(cut.expect("the queue leases messages"));
    }

    fn mend(&self) {
        self.cut.send_replace(false);
    }
}

/// Carries from one end to the other; cuts all lines at a `word`, which does not arrive before they are mended.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, cut: Arc<watch::Sender<bool>>, word: &[u8]) {
    let mut mended = cut.subscribe();
    let (mut part, mut is_first) = (vec![0; 65_536], true);
    while let Ok(bytes @ 1..) = from.read(&mut part).await {
        let part = &part[..bytes];
        if is_first && !word.is_empty() && part.windows(word.len()).any(|said| said == word) {
            is_first = false;
            cut.send_replace(true);
        }
        if mended.wait_for(|cut| !*cut).await.is_err() || to.write_all(part).await.is_err() {
            return;
        }
    }
}

/// Has a process be cut off when it has locked a message: another one gets it, and when the first is back it is not told
/// that the queue failed. `url` goes over the line.
pub(crate) async fn a_process_that_is_cut_off_holds_up_nobody(line: Line, url: &str, direct: &str) {
    let here = open(url, Options::default()).await.expect("the queue opens");
    let there = open(direct, Options::default()).await.expect("the queue opens");
    // By the clock of the first, which may be behind the other's by some milliseconds, it is due.
    here.enqueue(vec![message(FunctionId::generate())]).await.expect("it is stored");
    let reserve = || Reserve::new("worker", 1, Duration::from_mins(5));
    let first = tokio::spawn(async move { here.reserve(reserve()).await });
    line.until_cut().await;
    assert_eq!(there.reserve(reserve()).await.map(|taken| taken.len()), Ok(0), "it is locked");
    until("the message is free", async || there.reserve(reserve()).await.ok()?.pop()).await;
    line.mend();
    let told = first.await.expect("it ends");
    assert!(!matches!(told, Err(QueueError::Failed(_))), "{told:?}");
}

/// A message that runs, and is locked by a connection of its own.
pub(crate) async fn locked<C: Connection>(
    queue: &Arc<dyn Queue>,
    connection: impl Future<Output = Result<C, sqlx::Error>>,
) -> (C, Receipt)
where
    for<'c> &'c mut C: Executor<'c, Database = C::Database>,
{
    queue.enqueue(vec![message(FunctionId::generate())]).await.expect("it is stored");
    let taken = queue.reserve(Reserve::new("worker", 1, Duration::from_mins(5))).await.expect("it answers");
    let mut connection = connection.await.expect("the server answers");
    connection.execute("BEGIN").await.expect("a transaction");
    connection.execute("SELECT seq FROM queue_messages FOR UPDATE").await.expect("locks");
    (connection, taken[0].receipt)
}

/// Settles a message as done.
pub(crate) async fn done(queue: Arc<dyn Queue>, receipt: Receipt) -> Result<Vec<Settled>, QueueError> {
    queue.settle(vec![Settlement { receipt, outcome: Outcome::Done }]).await
}
