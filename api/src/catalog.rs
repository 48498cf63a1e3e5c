//! The catalog as the rest of Kiln sees it: a store, a clock, and word of every change.

use std::sync::Arc;

use jiff::Timestamp;
use kiln_shared::model::{
    App, AppInput, FunctionInput, FunctionResource, Trigger, TriggerInput, TriggerType,
};
use tokio::sync::watch;

use crate::portable::ImportError;
use crate::store::{
    self, CatalogStore, Changes, Committed, Contents, Existing, Latest, Notices, OpenError, Page, Snapshot,
    StoreError,
};

/// Apps, functions and triggers with their feed of changes. Cheap to clone; all clones are one catalog.
///
/// For a copy that stays current: [`Self::subscribe`], then [`Self::snapshot`], then on every notice
/// [`Self::changes_since`] the revision at hand. In that order no change is missed.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Arc<dyn CatalogStore>,
    notices: Arc<Notices>,
}

impl Catalog {
    /// Opens `sqlite:///path/to/file.db`, `sqlite://:memory:`, `postgres://user:password@host:port/database` or
    /// `mysql://user:password@host:port/database`, making what is missing. A server that cannot be reached within
    /// seconds is no error: everything fails with [`StoreError::Unreachable`] until it is found.
    ///
    /// # Errors
    /// One line that names the file or the server, without secrets, and the remedy.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let notices = Arc::new(Notices::default());
        let store: Arc<dyn CatalogStore> = Arc::new(store::open(url, Arc::clone(&notices)).await?);
        Ok(Self { store, notices })
    }

    /// True if the database is a server, which can be away while this process works.
    pub fn is_remote(&self) -> bool {
        self.store.is_remote()
    }

    /// The newest revision, and notice of each newer one, whichever process made it. Notices may be merged.
    pub fn subscribe(&self) -> watch::Receiver<Latest> {
        self.notices.subscribe()
    }

    /// The whole catalog at its newest revision.
    ///
    /// # Errors
    /// The database failed.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.store.snapshot().await
    }

    /// What changed after `revision`: each resource as it is now, or that it is gone.
    ///
    /// # Errors
    /// [`StoreError::RevisionUnknown`]: too far behind or another database; take a snapshot. Or the database failed.
    pub async fn changes_since(&self, revision: u64) -> Result<Changes, StoreError> {
        self.store.changes_since(revision).await
    }

    /// All that a fleet needs to go on with another database.
    ///
    /// # Errors
    /// The database failed.
    pub async fn contents(&self) -> Result<Contents, StoreError> {
        self.store.contents().await
    }

    /// Takes in what another database had, all or nothing. Ids are kept. Followers take a snapshot. `progress` hears how
    /// many rows more were written.
    ///
    /// # Errors
    /// There are apps already and they are kept, names are not unique, or the database failed.
    pub async fn restore(
        &self,
        contents: &Contents,
        existing: Existing,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<(), ImportError> {
        let restored = self.store.restore(contents, existing, progress).await?;
        self.notices.committed(restored.ok_or(ImportError::NotEmpty)?);
        Ok(())
    }

    /// Finishes what is under way and closes the database. Later uses fail.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// The store, for call records and the fleet.
    pub(crate) fn store(&self) -> &dyn CatalogStore {
        &*self.store
    }

    fn committed<T>(&self, committed: Committed<T>) -> T {
        if let Some(revision) = committed.revision {
            self.notices.committed(revision);
        }
        committed.value
    }

    /// Stores a new app.
    ///
    /// # Errors
    /// A rule is broken, the name is taken, or the database failed.
    pub async fn create_app(&self, input: &AppInput) -> Result<App, StoreError> {
        Ok(self.committed(self.store.create_app(input, now()).await?))
    }

    /// Merges a change into an app.
    ///
    /// # Errors
    /// There is no such app, a rule is broken, or the database failed.
    pub async fn update_app(&self, id: &str, input: &AppInput) -> Result<App, StoreError> {
        Ok(self.committed(self.store.update_app(id, input, now()).await?))
    }

    /// Removes an app and all that belongs to it.
    ///
    /// # Errors
    /// There is no such app, or the database failed.
    pub async fn delete_app(&self, id: &str) -> Result<(), StoreError> {
        let gone = self.store.delete_app(id).await?;
        self.committed(gone);
        Ok(())
    }

    /// The app.
    ///
    /// # Errors
    /// There is no such app, or the database failed.
    pub async fn app(&self, id: &str) -> Result<App, StoreError> {
        self.store.app(id).await
    }

    /// A page of all apps.
    ///
    /// # Errors
    /// The database failed.
    pub async fn apps(&self, page: &Page) -> Result<Vec<App>, StoreError> {
        self.store.apps(page).await
    }

    /// Stores a new function.
    ///
    /// # Errors
    /// A rule is broken, there is no such app, the name is taken, or the database failed.
    pub async fn create_function(&self, input: &FunctionInput) -> Result<FunctionResource, StoreError> {
        Ok(self.committed(self.store.create_function(input, now()).await?))
    }

    /// Merges a change into a function.
    ///
    /// # Errors
    /// There is no such function, a rule is broken, or the database failed.
    pub async fn update_function(
        &self,
        id: &str,
        input: &FunctionInput,
    ) -> Result<FunctionResource, StoreError> {
        Ok(self.committed(self.store.update_function(id, input, now()).await?))
    }

    /// Removes a function, its triggers, calls and logs.
    ///
    /// # Errors
    /// There is no such function, or the database failed.
    pub async fn delete_function(&self, id: &str) -> Result<(), StoreError> {
        let gone = self.store.delete_function(id).await?;
        self.committed(gone);
        Ok(())
    }

    /// The function.
    ///
    /// # Errors
    /// There is no such function, or the database failed.
    pub async fn function(&self, id: &str) -> Result<FunctionResource, StoreError> {
        self.store.function(id).await
    }

    /// A page of an app's functions.
    ///
    /// # Errors
    /// The database failed.
    pub async fn functions(&self, app_id: &str, page: &Page) -> Result<Vec<FunctionResource>, StoreError> {
        self.store.functions(app_id, page).await
    }

    /// Stores a new trigger.
    ///
    /// # Errors
    /// A rule is broken, there is no such app or function, source or name are taken, or the database failed.
    pub async fn create_trigger(&self, input: &TriggerInput) -> Result<Trigger, StoreError> {
        Ok(self.committed(self.store.create_trigger(input, now()).await?))
    }

    /// Merges a change into a trigger.
    ///
    /// # Errors
    /// There is no such trigger, a rule is broken, source or name are taken, or the database failed.
    pub async fn update_trigger(&self, id: &str, input: &TriggerInput) -> Result<Trigger, StoreError> {
        Ok(self.committed(self.store.update_trigger(id, input, now()).await?))
    }

    /// Removes a trigger.
    ///
    /// # Errors
    /// There is no such trigger, or the database failed.
    pub async fn delete_trigger(&self, id: &str) -> Result<(), StoreError> {
        let gone = self.store.delete_trigger(id).await?;
        self.committed(gone);
        Ok(())
    }

    /// The trigger.
    ///
    /// # Errors
    /// There is no such trigger, or the database failed.
    pub async fn trigger(&self, id: &str) -> Result<Trigger, StoreError> {
        self.store.trigger(id).await
    }

    /// A page of an app's triggers, of one function only where that is given.
    ///
    /// # Errors
    /// The database failed.
    pub async fn triggers(
        &self,
        app_id: &str,
        fn_id: Option<&str>,
        page: &Page,
    ) -> Result<Vec<Trigger>, StoreError> {
        self.store.triggers(app_id, fn_id, page).await
    }

    /// The trigger of an app with exactly this source.
    ///
    /// # Errors
    /// There is no such trigger, or the database failed.
    pub async fn trigger_by_source(
        &self,
        app_id: &str,
        kind: TriggerType,
        source: &str,
    ) -> Result<Trigger, StoreError> {
        self.store.trigger_by_source(app_id, kind, source).await
    }
}

/// The time as the API can show it: to the millisecond, so that what is stored is what was answered.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
