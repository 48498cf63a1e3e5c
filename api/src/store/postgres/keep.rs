//! Keeps the database in sight: finds it, brings its schema up to date, listens to it, and finds it again.
//!
//! Owns what [`Connections`] sees of it. One task a process, and one connection on which it listens and asks,
//! a few times a second, whether the database still answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    BEGIN_MAX, CATALOG_CONNECTIONS_MAX, CHANNEL_PREFIX, Connections, IDLE_MAX, OPERATION_MAX, Pools,
    RECORDS_CONNECTIONS_MAX, Sight, url,
};
use crate::store::db::Engine;
use crate::store::notices::Notices;
use crate::store::open::{Background, OpenError};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How often the database is asked for its revision: this finds a lost connection, and what no notice told.
const POLL: Duration = Duration::from_millis(500);
/// A database that does not answer in this time is lost.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Pause before the database is looked for again; doubles up to the largest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A way to the database at `url`. Whether that is there shows within seconds; if it is not, it is looked for
/// in the background from then on.
pub(in crate::store) async fn open(
    url: &str,
    notices: Arc<Notices>,
    background: &Background,
) -> Result<Engine, OpenError> {
    let options = url::options(url).map_err(OpenError::PostgresUrl)?;
    let lost = Sight { number: 0, pools: Err(Arc::new(sqlx::Error::PoolTimedOut)) };
    let (sight, reader) = watch::channel(lost);
    let (first, tried) = oneshot::channel();
    let keeper = Keeper { address: url::address(&options), options, notices, sight };
    background.spawn(|stop| keeper.run(first, stop));
    // The keeper's own bounds are longer only where a schema is brought up to date.
    if let Ok(Ok(Err(error))) = timeout(BEGIN_MAX, tried).await {
        return Err(error);
    }
    Ok(Engine::Postgres(Connections { sight: reader }))
}

struct Keeper {
    address: String,
    options: PgConnectOptions,
    notices: Arc<Notices>,
    sight: watch::Sender<Sight>,
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
    #[error("the connection ended")]
    Ended,
}

impl Keeper {
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
        let (pools, mut listener) = match self.find().await {
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
        match self.listen(&mut listener).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn find(&self) -> Result<(Pools, PgListener), Lost> {
        let pool = |connections_max| {
            PgPoolOptions::new()
                .max_connections(connections_max)
                .acquire_timeout(BEGIN_MAX)
                .idle_timeout(IDLE_MAX)
        };
        let relaxed = self.options.clone().options([("synchronous_commit", "off")]);
        let pools = Pools {
            catalog: pool(CATALOG_CONNECTIONS_MAX).connect_lazy_with(self.options.clone()),
            records: pool(RECORDS_CONNECTIONS_MAX).connect_lazy_with(relaxed),
        };
        // A connection that is none of a pool's, which would try for seconds where nobody listens.
        let answers = timeout(BEGIN_MAX, self.options.connect());
        // The database notices that it is gone.
        drop(answers.await.map_err(|_| Lost::Silent)??);
        let listener =
            timeout(OPERATION_MAX, self.prepare(&pools.catalog)).await.map_err(|_| Lost::Silent)??;
        Ok((pools, listener))
    }

    /// Brings the schema up to date, begins to listen and tells the revision.
    async fn prepare(&self, pool: &PgPool) -> Result<PgListener, Lost> {
        let known = self.notices.known();
        MIGRATIONS.run(pool).await?;
        let id: String = sqlx::query_scalar("SELECT database_id FROM feed").fetch_one(pool).await?;
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen(&format!("{CHANNEL_PREFIX}{id}")).await?;
        self.notices.found(known, revision(&mut listener).await?);
        Ok(listener)
    }

    /// Tells what changes, until the database is lost.
    async fn listen(&self, listener: &mut PgListener) -> Result<std::convert::Infallible, Lost> {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Cancel-safe: a notice stays buffered until it has arrived whole.
                notice = listener.try_recv() => if notice?.is_none() { return Err(Lost::Ended) },
                // Cancel-safe: a tick that is not waited for comes with the next call.
                _ = ticks.tick() => {}
            }
            let known = self.notices.known();
            self.notices.read(known, revision(listener).await?);
        }
    }

    fn look(&self, pools: Result<Pools, Arc<sqlx::Error>>) {
        metrics::gauge!("kiln_catalog_database_up").set(if pools.is_ok() { 1.0 } else { 0.0 });
        self.sight.send_modify(|sight| *sight = Sight { number: sight.number + 1, pools });
    }

    /// An error if the database is there, but does not let us in or is not ours: that is for a person to solve.
    fn hopeless(&self, lost: &Lost) -> Result<(), OpenError> {
        let database = self.address.clone();
        match lost {
            Lost::Schema(source @ (MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_))) => {
                Err(OpenError::PostgresSchema { database, reason: source.to_string() })
            }
            Lost::Failed(error)
            | Lost::Schema(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if is_refusal(error) =>
            {
                Err(OpenError::Postgres { database, reason: error.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// The database's newest revision, or that it does not answer.
async fn revision(listener: &mut PgListener) -> Result<u64, Lost> {
    let query = sqlx::query_scalar("SELECT revision FROM feed").fetch_one(listener);
    let revision: i64 = timeout(ANSWER_MAX, query).await.map_err(|_| Lost::Silent)??;
    Ok(revision.unsigned_abs())
}

/// True if user, password, database, rights or TLS settings are wrong. Codes:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(cause) => {
            cause.code().is_some_and(|code| ["28", "3D", "42"].iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        // A certificate that is not believed.
        sqlx::Error::Io(cause) => cause.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}
