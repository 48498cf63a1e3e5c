//! This process's copy of the queue, kept up with the topic, and those who wait for answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kiln_shared::queue::QueueError;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};

use super::log::{Log, LogError, Read, Wait};
use super::replica::{Answer, Replica};
use crate::engine::{Broken, Core, Effect};

/// Where an answer goes. An error: it is not known whether the record counts.
pub(super) type Asker = oneshot::Sender<Result<Answer, QueueError>>;

/// Follows the topic.
pub(super) struct Follower {
    core: Arc<Core>,
    own: u64,
    state: Mutex<State>,
    /// Who reads what others wrote does it for all.
    catching_up: AsyncMutex<()>,
    /// Told when the topic has lost records and is to be read anew.
    pub(super) doubted: Notify,
}

struct State {
    replica: Replica,
    /// By the numbers of their writes.
    askers: HashMap<u64, Asker>,
    /// The topic has lost records: what comes from it does not follow on what is here.
    is_doubted: bool,
}

impl Follower {
    pub(super) fn new(core: Arc<Core>, own: u64, replica: Replica) -> Self {
        core.time.learn(replica.machine.latest_millis().max(core.time.now_millis()), Instant::now());
        let state = State { replica, askers: HashMap::new(), is_doubted: false };
        Self {
            core,
            own,
            state: Mutex::new(state),
            catching_up: AsyncMutex::default(),
            doubted: Notify::new(),
        }
    }

    /// Looks at the queue as it is here.
    pub(super) fn with<T>(&self, look: impl FnOnce(&Replica) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner).replica)
    }

    /// The answer to this process's write of that number goes there.
    pub(super) fn expect(&self, number: u64, asker: Asker) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).askers.insert(number, asker);
    }

    /// Nobody knows whether these writes count; how many had no answer.
    pub(super) fn give_up(&self, numbers: impl Iterator<Item = u64>, why: &QueueError) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let askers: Vec<Asker> = numbers.filter_map(|number| state.askers.remove(&number)).collect();
        let count = askers.len();
        for asker in askers {
            answer(asker, Err(why.clone()));
        }
        count
    }

    /// These writes are in the topic and all of it was read: who has no answer now asked another topic, which has
    /// lost records.
    pub(super) fn settle_accounts(&self, numbers: impl Iterator<Item = u64>) {
        let why = QueueError::Unavailable("its topic has lost records; it is read anew".to_owned());
        if self.give_up(numbers, &why) > 0 {
            self.doubt();
        }
    }

    /// Applies nothing more until the topic was read anew.
    fn doubt(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_doubted = true;
        self.doubted.notify_one();
    }

    /// Reads records from the topic, with doubt if it has lost what comes next.
    pub(super) async fn read(&self, log: &Log, wait: Wait) -> Result<Read, LogError> {
        let read = log.read(self.with(Replica::position), wait).await;
        if matches!(read, Err(LogError::OutOfRange(_))) {
            self.doubt();
        }
        read
    }

    /// Takes over a queue that was read anew. What was asked of the old one has no answer.
    pub(super) fn replace(&self, replica: Replica) {
        let latest = replica.machine.latest_millis();
        let old = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.replica = replica;
            state.is_doubted = false;
            std::mem::take(&mut state.askers)
        };
        let why = QueueError::Unavailable("its topic was read anew".to_owned());
        for asker in old.into_values() {
            answer(asker, Err(why.clone()));
        }
        self.keep_time(latest);
        self.core.wake.wake();
    }

    /// Applies records in their order; those that were applied before are passed over.
    ///
    /// # Errors
    /// One cannot be understood; those before it are applied.
    pub(super) fn follow<'a>(&self, records: impl Iterator<Item = (i64, &'a [u8])>) -> Result<(), Broken> {
        let mut effect = Effect::Nothing;
        let (followed, latest) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.is_doubted {
                return Ok(());
            }
            let followed = records.into_iter().try_for_each(|(offset, record)| {
                effect = effect.and(state.apply(self.own, offset, record)?);
                Ok(())
            });
            (followed, state.replica.machine.latest_millis())
        };
        self.keep_time(latest);
        self.core.tell(effect);
        followed
    }

    /// Applies the records that this process wrote itself, if nobody else's are before them. True if they were.
    pub(super) fn follow_own(&self, first: i64, records: &[Vec<u8>]) -> Result<bool, Broken> {
        if self.with(Replica::position) != first {
            return Ok(false);
        }
        self.follow((first..).zip(records.iter().map(Vec::as_slice)))?;
        Ok(true)
    }

    /// Reads on until all is known that was written before this was called.
    pub(super) async fn catch_up(&self, log: &Log) -> Result<(), CatchUpError> {
        // Whoever waits here reads again: what was read meanwhile may be older than its question.
        let _only_one = self.catching_up.lock().await;
        loop {
            let read = self.read(log, Wait::No).await?;
            let is_all = read.records.last().is_none_or(|(offset, _)| offset + 1 >= read.end);
            self.follow(read.records.iter().map(|(offset, record)| (*offset, record.as_slice())))?;
            if self.state.lock().unwrap_or_else(PoisonError::into_inner).is_doubted {
                return Err(LogError::Away("its topic has lost records; it is read anew".to_owned()).into());
            }
            if is_all {
                return Ok(());
            }
        }
    }

    /// The queue's time is that of the process whose clock is the furthest.
    fn keep_time(&self, latest_millis: i64) {
        if latest_millis > self.core.time.now_millis() {
            self.core.time.learn(latest_millis, Instant::now());
        }
    }
}

impl State {
    /// Applies one record, and answers if it is this process's.
    fn apply(&mut self, own: u64, offset: i64, record: &[u8]) -> Result<Effect, Broken> {
        if offset < self.replica.position() {
            return Ok(Effect::Nothing);
        }
        let given_up = self.replica.machine.abandoned();
        let Some(applied) = self.replica.apply(offset, record)? else { return Ok(Effect::Nothing) };
        let effect = match &applied.answer {
            Answer::Operation(Ok((_, effect))) => *effect,
            _ => Effect::Nothing,
        };
        if applied.origin == own {
            let given_up = self.replica.machine.abandoned() - given_up;
            metrics::counter!("kiln_queue_leases_abandoned_total").increment(given_up);
            if let Some(asker) = self.askers.remove(&applied.number) {
                answer(asker, Ok(applied.answer));
            }
        }
        Ok(effect)
    }
}

fn answer(asker: Asker, answer: Result<Answer, QueueError>) {
    if asker.send(answer).is_err() {
        tracing::trace!("who asked has gone");
    }
}

/// Why what others wrote is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum CatchUpError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl From<CatchUpError> for QueueError {
    fn from(error: CatchUpError) -> Self {
        match error {
            CatchUpError::Log(error) => error.into(),
            CatchUpError::Broken(broken) => broken.into(),
        }
    }
}

impl From<LogError> for QueueError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::TooLarge { .. } => Self::Failed(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}
