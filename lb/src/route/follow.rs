//! Keeps the routes current with the catalog, and the catalog's copy on disk current with the routes.
//!
//! Owns the [`RouteTable`] once calls are served. Invariants: a revision that it announces is one that readers
//! see; whatever becomes of the database, calls go on with what is known.

use std::path::PathBuf;
use std::time::Duration;

use kiln_api::{Catalog, DatabaseId, Latest, Snapshot, StoreError};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::copier::Copier;
use super::disk::{self, CopyError};
use super::{RouteReader, RouteTable};

/// Pause after the catalog could not be read.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a change of one's own to reach the routes.
const SEEN_WAIT: Duration = Duration::from_secs(2);

/// Why there is nothing to route by.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The catalog cannot be read, and there is no copy on disk to begin with.
    #[error(transparent)]
    Catalog(#[from] StoreError),
    /// Neither the catalog nor its copy can be read.
    #[error(
        "the catalog's database cannot be reached, and there is no copy of the catalog to start from ({copy}); start the database"
    )]
    NoCopy {
        /// What is wrong with the copy.
        copy: CopyError,
        /// Why the database cannot be reached.
        #[source]
        database: StoreError,
    },
}

/// The routes of a catalog, kept current by [`Follower::run`].
#[derive(Debug, Clone)]
pub struct Followed {
    /// For the data path.
    pub routes: RouteReader,
    latest: watch::Receiver<Latest>,
    seen: watch::Receiver<u64>,
}

impl Followed {
    /// Waits until calls see every change that the catalog has at this moment, at most two seconds: whoever was
    /// told that a function exists can call it. Costs nothing when they do already.
    pub async fn caught_up(&self) {
        let latest = self.latest.borrow().revision;
        let mut seen = self.seen.clone();
        if tokio::time::timeout(SEEN_WAIT, seen.wait_for(|seen| *seen >= latest)).await.is_err() {
            tracing::warn!(latest, "the catalog's changes are slow to reach the routes");
        }
    }
}

/// The task's side of [`Followed`].
#[derive(Debug)]
pub struct Follower {
    table: RouteTable,
    /// The database that the table's revision is of.
    database: DatabaseId,
    /// The sight of the database in which the table was compared with it.
    compared: Option<u64>,
    catalog: Catalog,
    latest: watch::Receiver<Latest>,
    seen: watch::Sender<u64>,
    copier: Option<Copier>,
}

/// Reads the catalog once and gives the two sides.
///
/// # Errors
/// The catalog's database failed or cannot be reached.
pub async fn follow(catalog: Catalog) -> Result<(Followed, Follower), FollowError> {
    start(catalog, None).await
}

/// The same with a copy on disk, which is kept current, and stands in for a database that cannot be reached now.
///
/// # Errors
/// The catalog's database failed, or it cannot be reached and there is no copy.
pub async fn follow_with_copy(catalog: Catalog, copy: PathBuf) -> Result<(Followed, Follower), FollowError> {
    start(catalog, Some(copy)).await
}

async fn start(catalog: Catalog, copy: Option<PathBuf>) -> Result<(Followed, Follower), FollowError> {
    // In this order no change is missed.
    let latest = catalog.subscribe();
    let sight = latest.borrow().sight;
    let mut copier = copy.clone().map(Copier::new);
    let (snapshot, compared) = match (catalog.snapshot().await, copy) {
        (Ok(snapshot), _) => {
            copier.iter_mut().for_each(Copier::changed);
            (snapshot, Some(sight))
        }
        (Err(database @ StoreError::Unreachable(_)), Some(copy)) => {
            (read_copy(copy).await.map_err(|copy| FollowError::NoCopy { copy, database })?, None)
        }
        (Err(error), _) => return Err(error.into()),
    };
    let (mut table, database) = (RouteTable::new(), snapshot.database.clone());
    table.reset(snapshot);
    let (seen, seen_reader) = watch::channel(table.revision());
    let followed = Followed { routes: table.reader(), latest: latest.clone(), seen: seen_reader };
    Ok((followed, Follower { table, database, compared, catalog, latest, seen, copier }))
}

async fn read_copy(path: PathBuf) -> Result<Snapshot, CopyError> {
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || disk::read(&path)).await;
    let snapshot = read.unwrap_or_else(|panic| {
        Err(CopyError::Damaged { path: shown.clone().into(), reason: panic.to_string() })
    })?;
    tracing::warn!(
        copy = shown,
        revision = snapshot.revision,
        functions = snapshot.functions.len(),
        "the catalog's database cannot be reached; serving from the copy on disk"
    );
    Ok(snapshot)
}

impl Follower {
    /// Applies changes as they come, until `stop` or until the catalog is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let (seen, compared) = (*self.seen.borrow(), self.compared);
            let news = |latest: &Latest| latest.revision > seen || compared != Some(latest.sight);
            // All arms are cancel-safe: a watch remembers what it saw.
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.latest.wait_for(news) => if changed.is_err() { break },
                () = due(&mut self.copier) => {
                    if let Some(copier) = &mut self.copier {
                        copier.write(self.database.clone(), self.table.contents());
                    }
                    continue;
                }
            }
            match self.catch_up().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot read the catalog's changes; calls go on with what is known");
                    }
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = sleep(RETRY_PAUSE) => {}
                    }
                }
            }
        }
        let (database, table) = (self.database, self.table);
        if let Some(copier) = &mut self.copier {
            copier.finish(|| (database, table.contents())).await;
        }
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let sight = self.latest.borrow().sight;
        match self.catalog.changes_since(self.table.revision()).await {
            Ok(changes) if changes.database == self.database => {
                if changes.revision != self.table.revision() {
                    self.copier.iter_mut().for_each(Copier::changed);
                }
                self.table.apply(changes);
            }
            Ok(_) | Err(StoreError::RevisionUnknown(_)) => {
                let snapshot = self.catalog.snapshot().await?;
                self.database = snapshot.database.clone();
                self.table.reset(snapshot);
                self.copier.iter_mut().for_each(Copier::changed);
            }
            Err(error) => return Err(error),
        }
        self.compared = Some(sight);
        self.seen.send_replace(self.table.revision());
        Ok(())
    }
}

/// Waits until the copy shall be written; for ever if there is none.
async fn due(copier: &mut Option<Copier>) {
    match copier {
        Some(copier) => copier.due().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kiln_shared::model::AppInput;
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::route::RouteError;

    /// Nobody listens there.
    const AWAY: &str = "postgres://kiln@127.0.0.1:1/kiln";

    async fn catalog(home: &TempDir, name: &str) -> Catalog {
        Catalog::open(&format!("sqlite://{}", home.path().join(name).display())).await.expect("opens")
    }

    async fn create_app(catalog: &Catalog, name: &str) {
        let input = AppInput { name: name.to_owned(), ..AppInput::default() };
        catalog.create_app(&input).await.expect("is created");
    }

    fn knows(followed: &mut Followed, app: &str) -> bool {
        let missed = followed.routes.routes().trigger(app.as_bytes(), b"/").expect_err("no trigger");
        missed == RouteError::TriggerNotFound
    }

    async fn copy_at(path: &Path, revision: u64) -> Snapshot {
        let found = async {
            loop {
                match disk::read(path) {
                    Ok(snapshot) if snapshot.revision == revision => return snapshot,
                    _ => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(Duration::from_secs(20), found).await.expect("the copy is written")
    }

    #[tokio::test]
    async fn a_change_is_routed_to_once_it_has_caught_up() {
        let home = tempfile::tempdir().expect("a folder");
        let catalog = catalog(&home, "kiln.db").await;
        let (mut followed, task) = follow(catalog.clone()).await.expect("reads");
        let stop = CancellationToken::new();
        let running = tokio::spawn(task.run(stop.clone()));
        for number in 0..50 {
            let name = format!("app-{number}");
            create_app(&catalog, &name).await;
            followed.caught_up().await;
            assert!(knows(&mut followed, &name), "app {number} is not known");
        }
        stop.cancel();
        running.await.expect("ends");
    }

    #[tokio::test]
    async fn the_copy_follows_the_catalog_and_has_all_of_it_at_the_end() {
        let home = tempfile::tempdir().expect("a folder");
        let (catalog, copy) = (catalog(&home, "kiln.db").await, home.path().join(disk::FILE_NAME));
        create_app(&catalog, "a").await;
        let (followed, task) = follow_with_copy(catalog.clone(), copy.clone()).await.expect("reads");
        let stop = CancellationToken::new();
        let running = tokio::spawn(task.run(stop.clone()));
        assert_eq!(copy_at(&copy, 1).await, catalog.snapshot().await.expect("a snapshot"));
        create_app(&catalog, "b").await;
        copy_at(&copy, 2).await;
        // Within the pause between two writes.
        create_app(&catalog, "c").await;
        followed.caught_up().await;
        stop.cancel();
        running.await.expect("ends");
        let mut last = disk::read(&copy).expect("a copy");
        last.apps.sort_by_key(|app| app.id);
        assert_eq!(last, catalog.snapshot().await.expect("a snapshot"));
    }

    #[tokio::test]
    async fn with_the_database_away_the_copy_is_served_and_without_one_nothing_starts() {
        let home = tempfile::tempdir().expect("a folder");
        let (known, copy) = (catalog(&home, "kiln.db").await, home.path().join(disk::FILE_NAME));
        create_app(&known, "a").await;
        let (_, task) = follow_with_copy(known.clone(), copy.clone()).await.expect("reads");
        let stop = CancellationToken::new();
        stop.cancel();
        task.run(stop).await;

        let away = Catalog::open(AWAY).await.expect("it may come");
        let (mut followed, task) = follow_with_copy(away.clone(), copy.clone()).await.expect("has a copy");
        assert!(knows(&mut followed, "a") && !knows(&mut followed, "b"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(task.run(stop.clone()));
        stop.cancel();
        timeout(Duration::from_secs(20), running).await.expect("ends in time").expect("ends");

        std::fs::write(&copy, "kiln catalog 1\nnonsense").expect("a damaged copy");
        let error = follow_with_copy(away.clone(), copy).await.expect_err("nothing to serve");
        assert!(error.to_string().contains("catalog.copy cannot be used"), "{error}");
        let error = follow_with_copy(away.clone(), home.path().join("none")).await.expect_err("no copy");
        assert!(matches!(error, FollowError::NoCopy { copy: CopyError::File { .. }, .. }), "{error:?}");
        follow(away).await.expect_err("no copy is looked for");
    }

    /// The database comes back: as it was, with news, or as another one.
    #[tokio::test]
    async fn what_was_started_from_a_copy_becomes_current_when_the_database_comes() {
        let home = tempfile::tempdir().expect("a folder");
        let copy = home.path().join(disk::FILE_NAME);
        let (same, other) = (catalog(&home, "same.db").await, catalog(&home, "other.db").await);
        create_app(&same, "a").await;
        create_app(&same, "b").await;
        let (_, task) = follow_with_copy(same.clone(), copy.clone()).await.expect("reads");
        let stop = CancellationToken::new();
        stop.cancel();
        task.run(stop).await;
        create_app(&same, "c").await;
        for name in ["x", "y", "z"] {
            create_app(&other, name).await;
        }
        for (found, known, unknown) in [(same, ["a", "c"], "z"), (other, ["x", "z"], "a")] {
            let away = Catalog::open(AWAY).await.expect("it may come");
            let (mut followed, mut task) = follow_with_copy(away, copy.clone()).await.expect("has a copy");
            task.copier = None;
            task.latest = found.subscribe();
            task.catalog = found;
            let stop = CancellationToken::new();
            let running = tokio::spawn(task.run(stop.clone()));
            let current = followed.seen.wait_for(|revision| *revision == 3);
            timeout(Duration::from_secs(20), current).await.expect("it catches up").expect("lives");
            assert!(known.iter().all(|app| knows(&mut followed, app)) && !knows(&mut followed, unknown));
            stop.cancel();
            running.await.expect("ends");
        }
    }
}
