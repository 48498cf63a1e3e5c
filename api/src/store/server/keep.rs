//! Keeps the database in sight: finds it, brings its schema up to date, listens to it, and finds it again.
//!
//! Owns what [`Connections`] sees of it. One task a process, and one connection on which it listens and asks,
//! a few times a second, whether the database still answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{BEGIN_MAX, Connections, OPERATION_MAX, Pools, Server, Sight};
use crate::store::notices::Notices;
use crate::store::open::{Background, OpenError};
use crate::store::refusal::is_refusal;

/// A database that does not answer in this time is lost.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Pause before the database is looked for again; doubles up to the largest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A way to the database of `server`. Whether that is there shows within seconds; if it is not, it is looked for
/// in the background from then on.
pub(in crate::store) async fn open<S: Server>(
    server: S,
    notices: Arc<Notices>,
    background: &Background,
) -> Result<Connections<S::Database>, OpenError> {
    let lost = Sight { number: 0, pools: Err(Arc::new(sqlx::Error::PoolTimedOut)) };
    let (sight, reader) = watch::channel(lost);
    let (first, tried) = oneshot::channel();
    let keeper = Keeper { address: server.address(), server, notices, sight };
    background.spawn(|stop| keeper.run(first, stop));
    // The keeper's own bounds are longer only where a schema is brought up to date.
    if let Ok(Ok(Err(error))) = timeout(BEGIN_MAX, tried).await {
        return Err(error);
    }
    Ok(Connections { sight: reader })
}

struct Keeper<S: Server> {
    address: String,
    server: S,
    notices: Arc<Notices>,
    sight: watch::Sender<Sight<S::Database>>,
}

/// Why the database is not in sight.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Failed(#[from] sqlx::Error),
    #[error(transparent)]
    Schema(#[from] MigrateError),
    #[error("it did not answer in time")]
    Silent,
}

impl<S: Server> Keeper<S> {
    /// Works until `stop`. `first` hears how the first try ended: an error if no later one can end better.
    async fn run(self, first: oneshot::Sender<Result<(), OpenError>>, stop: CancellationToken) {
        let mut first = Some(first);
        let (mut pause, mut told) = (PAUSE_MIN, false);
        loop {
            let lost = tokio::select! {
                () = stop.cancelled() => return,
                // Dropped at the end, with its connections.
                lost = self.one_sight(&mut first, &mut told) => lost,
            };
            if self.sight.borrow().pools.is_ok() {
                (pause, told) = (PAUSE_MIN, false);
            }
            if !told {
                told = true;
                tracing::warn!(
                    database = self.address,
                    error = &lost as &dyn std::error::Error,
                    "the catalog's database cannot be reached; calls of known functions go on"
                );
            }
            if let Some(first) = first.take() {
                // Nobody waits any more if this took long.
                drop(first.send(self.hopeless(&lost)));
            }
            self.look(Err(Arc::new(match lost {
                Lost::Failed(error) => error,
                other => sqlx::Error::Protocol(other.to_string()),
            })));
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    /// Finds the database and stays with it until it is lost.
    async fn one_sight(
        &self,
        first: &mut Option<oneshot::Sender<Result<(), OpenError>>>,
        told: &mut bool,
    ) -> Lost {
        let (pools, mut watch) = match self.find().await {
            Ok(found) => found,
            Err(lost) => return lost,
        };
        self.look(Ok(pools));
        if let Some(first) = first.take() {
            drop(first.send(Ok(())));
        }
        if std::mem::take(told) {
            tracing::info!(database = self.address, "the catalog's database is reached again");
        }
        match self.follow(&mut watch).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn find(&self) -> Result<(Pools<S::Database>, S::Watch), Lost> {
        // A connection that is none of a pool's, which would try for seconds where nobody listens.
        timeout(BEGIN_MAX, self.server.connect()).await.map_err(|_| Lost::Silent)??;
        let pools = self.server.pools();
        let watch = timeout(OPERATION_MAX, self.prepare(&pools)).await.map_err(|_| Lost::Silent)??;
        Ok((pools, watch))
    }

    /// Brings the schema up to date, begins to listen and tells the revision.
    async fn prepare(&self, pools: &Pools<S::Database>) -> Result<S::Watch, Lost> {
        let known = self.notices.known();
        self.server.migrate(&pools.catalog).await?;
        let mut watch = self.server.watch(&pools.catalog).await?;
        self.notices.found(known, revision::<S>(&mut watch).await?);
        Ok(watch)
    }

    /// Tells what changes, until the database is lost.
    async fn follow(&self, watch: &mut S::Watch) -> Result<Infallible, Lost> {
        let mut ticks = interval(S::POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                word = S::word(watch) => word?,
                // Cancel-safe: a tick that is not waited for comes with the next call.
                _ = ticks.tick() => {}
            }
            let known = self.notices.known();
            self.notices.read(known, revision::<S>(watch).await?);
        }
    }

    fn look(&self, pools: Result<Pools<S::Database>, Arc<sqlx::Error>>) {
        metrics::gauge!("kiln_catalog_database_up").set(if pools.is_ok() { 1.0 } else { 0.0 });
        self.sight.send_modify(|sight| *sight = Sight { number: sight.number + 1, pools });
    }

    /// An error if the database is there, but does not let us in or is not ours: that is for a person to solve.
    fn hopeless(&self, lost: &Lost) -> Result<(), OpenError> {
        let database = || self.address.clone();
        match lost {
            Lost::Schema(MigrateError::Execute(error)) if is_refusal(error) => {
                Err(refused(database(), error))
            }
            Lost::Schema(MigrateError::ExecuteMigration(error, step)) if is_refusal(error) => {
                Err(OpenError::NotUpgraded { database: database(), step: *step, reason: words(error) })
            }
            Lost::Schema(error) => OpenError::schema(database(), error, S::migrations()),
            Lost::Failed(error) if is_refusal(error) => Err(refused(database(), error)),
            _ => Ok(()),
        }
    }
}

fn refused(database: String, error: &sqlx::Error) -> OpenError {
    OpenError::Refused { database, reason: error.to_string() }
}

fn words(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |refusal| refusal.message().to_owned())
}

/// The database's newest revision, or that it does not answer.
async fn revision<S: Server>(watch: &mut S::Watch) -> Result<u64, Lost> {
    let revision = timeout(ANSWER_MAX, S::revision(watch)).await.map_err(|_| Lost::Silent)??;
    Ok(revision.unsigned_abs())
}
