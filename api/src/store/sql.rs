//! The store on a SQL database: each method one transaction over the statements of this folder.

use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use kiln_shared::model::{
    ApiError, App, AppInput, FunctionInput, FunctionResource, Trigger, TriggerInput, TriggerType,
};
use sea_query::{Expr, ExprTrait, SelectStatement};

use tokio::sync::OnceCell;
use tokio::time::sleep;

use super::db::{Db, Session, Writing};
use super::open::Background;
use super::records::Counters;
use super::resource::{Resource, documents, paginate, source_column};
use super::{CatalogStore, Changes, Committed, Kept, Page, Snapshot, StoreError, StoreFuture};

/// Tries of an operation that others are in the way of. Each may wait for a lock as long as its server lets it.
const TRIES_MAX: u32 = 3;
/// Pause before the second try; doubles.
const CONFLICT_PAUSE: Duration = Duration::from_millis(10);

/// A [`CatalogStore`] on SQL.
#[derive(Debug)]
pub(crate) struct SqlStore {
    pub(super) db: Db,
    /// How much is kept of ended calls.
    pub(super) counters: OnceCell<Counters>,
    /// What tells of changes.
    background: Background,
}

impl SqlStore {
    pub(super) fn new(db: Db, background: Background) -> Self {
        Self { db, counters: OnceCell::new(), background }
    }

    /// An operation within its bounds; tried again if it was undone for the sake of another one.
    pub(super) fn run<'a, T, F>(&'a self, operation: impl Fn() -> F + Send + 'a) -> StoreFuture<'a, T>
    where
        T: Send + 'a,
        F: Future<Output = Result<T, StoreError>> + Send + 'a,
    {
        Box::pin(self.db.bounded(async move {
            let mut pause = CONFLICT_PAUSE;
            for _ in 1..TRIES_MAX {
                match operation().await {
                    Err(error) if error.is_conflict() => sleep(pause).await,
                    done => return done,
                }
                pause *= 2;
            }
            operation().await
        }))
    }

    async fn list<R: Resource>(&self, query: SelectStatement, page: &Page) -> Result<Vec<R>, StoreError> {
        self.db.read().await?.resources(&paginate(query, page)).await
    }
}

/// Stores a new resource; `exists` is the refusal if another one took its name in between.
async fn add<R: Resource>(
    mut session: Session,
    resource: R,
    exists: ApiError,
) -> Result<Committed<R>, StoreError> {
    session.insert(&resource).await.map_err(|error| or_conflict(error, exists))?;
    let revision = session.announce::<R>(resource.id()).await?;
    session.commit().await?;
    Ok(Committed { value: resource, revision: Some(revision) })
}

/// Stores `new` over `old` if they differ.
async fn change<R: Resource + PartialEq>(
    mut session: Session,
    old: &R,
    new: R,
    exists: ApiError,
) -> Result<Committed<R>, StoreError> {
    if new == *old {
        return Ok(Committed { value: new, revision: None });
    }
    session.replace(&new).await.map_err(|error| or_conflict(error, exists))?;
    let revision = session.announce::<R>(new.id()).await?;
    session.commit().await?;
    Ok(Committed { value: new, revision: Some(revision) })
}

fn or_conflict(error: StoreError, exists: ApiError) -> StoreError {
    match error {
        StoreError::Database(sqlx::Error::Database(cause)) if cause.is_unique_violation() => {
            StoreError::Refused(exists)
        }
        other => other,
    }
}

/// Removes what `column` = `value` selects from triggers, then functions; announces each.
async fn remove_triggers(session: &mut Session, column: &'static str, value: &str) -> Result<(), StoreError> {
    for id in session.remove::<Trigger>(column, value).await? {
        session.announce::<Trigger>(&id).await?;
    }
    Ok(())
}

/// Removes a function and all that belongs to it; the revision, and what was kept of its calls.
async fn remove_function(session: &mut Session, id: &str) -> Result<(u64, Kept), StoreError> {
    remove_triggers(session, "fn_id", id).await?;
    session.remove::<FunctionResource>("id", id).await?;
    let records = session.remove_records_of(id).await?;
    Ok((session.announce::<FunctionResource>(id).await?, records))
}

/// Refuses a trigger whose source or name is taken by another, the source first as Fn does.
async fn check_taken(session: &mut Session, trigger: &Trigger) -> Result<(), StoreError> {
    let others = || {
        let mut query = documents::<Trigger>();
        query.and_where(Expr::col("id").ne(trigger.id.as_str()));
        query
    };
    let same_source = others()
        .and_where(Expr::col("app_id").eq(trigger.app_id.as_str()))
        .and_where(Expr::col("kind").eq(trigger.kind.as_str()))
        .and_where(Expr::col("source").eq(source_column(trigger)))
        .to_owned();
    if session.find::<Trigger>(&same_source).await?.is_some() {
        return Err(ApiError::TriggerSourceExists.into());
    }
    let same_name = others()
        .and_where(Expr::col("fn_id").eq(trigger.fn_id.as_str()))
        .and_where(Expr::col("name").eq(trigger.name.as_str()))
        .to_owned();
    if session.find::<Trigger>(&same_name).await?.is_some() {
        return Err(ApiError::TriggerExists.into());
    }
    Ok(())
}

impl CatalogStore for SqlStore {
    fn create_app<'a>(&'a self, input: &'a AppInput, now: Timestamp) -> StoreFuture<'a, Committed<App>> {
        self.run(move || async move {
            let app = App::create(input, now)?;
            add(self.db.write(Writing::Catalog).await?, app, ApiError::AppExists).await
        })
    }

    fn update_app<'a>(
        &'a self,
        id: &'a str,
        input: &'a AppInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<App>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let old: App = session.get(id).await?;
            let new = old.update(input, now)?;
            change(session, &old, new, ApiError::AppExists).await
        })
    }

    fn delete_app<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Committed<()>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            session.get::<App>(id).await?;
            let of_app = documents::<FunctionResource>().and_where(Expr::col("app_id").eq(id)).to_owned();
            let mut removed = Kept::default();
            for function in session.resources::<FunctionResource>(&of_app).await? {
                let (_, records) = remove_function(&mut session, function.id.as_str()).await?;
                removed.calls += records.calls;
                removed.log_bytes += records.log_bytes;
            }
            session.remove::<App>("id", id).await?;
            let revision = session.announce::<App>(id).await?;
            session.commit().await?;
            self.removed(removed);
            Ok(Committed { value: (), revision: Some(revision) })
        })
    }

    fn app<'a>(&'a self, id: &'a str) -> StoreFuture<'a, App> {
        self.run(move || async move { self.db.read().await?.get(id).await })
    }

    fn apps<'a>(&'a self, page: &'a Page) -> StoreFuture<'a, Vec<App>> {
        self.run(move || self.list(documents::<App>(), page))
    }

    fn create_function<'a>(
        &'a self,
        input: &'a FunctionInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<FunctionResource>> {
        self.run(move || async move {
            FunctionResource::check_create(input)?;
            let mut session = self.db.write(Writing::Catalog).await?;
            let app = session.get(&input.app_id).await?;
            let function = FunctionResource::create(input, &app, now)?;
            add(session, function, ApiError::FnExists).await
        })
    }

    fn update_function<'a>(
        &'a self,
        id: &'a str,
        input: &'a FunctionInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<FunctionResource>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let old: FunctionResource = session.get(id).await?;
            let new = old.update(input, now)?;
            change(session, &old, new, ApiError::FnExists).await
        })
    }

    fn delete_function<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Committed<()>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            session.get::<FunctionResource>(id).await?;
            let (revision, records) = remove_function(&mut session, id).await?;
            session.commit().await?;
            self.removed(records);
            Ok(Committed { value: (), revision: Some(revision) })
        })
    }

    fn function<'a>(&'a self, id: &'a str) -> StoreFuture<'a, FunctionResource> {
        self.run(move || async move { self.db.read().await?.get(id).await })
    }

    fn functions<'a>(&'a self, app_id: &'a str, page: &'a Page) -> StoreFuture<'a, Vec<FunctionResource>> {
        let mut query = documents::<FunctionResource>();
        query.and_where(Expr::col("app_id").eq(app_id));
        self.run(move || self.list(query.clone(), page))
    }

    fn create_trigger<'a>(
        &'a self,
        input: &'a TriggerInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<Trigger>> {
        self.run(move || async move {
            Trigger::check_create(input)?;
            let mut session = self.db.write(Writing::Catalog).await?;
            let app: App = session.get(&input.app_id).await?;
            let function = session.get(&input.fn_id).await?;
            let trigger = Trigger::create(input, app.id, &function, now)?;
            check_taken(&mut session, &trigger).await?;
            add(session, trigger, ApiError::TriggerExists).await
        })
    }

    fn update_trigger<'a>(
        &'a self,
        id: &'a str,
        input: &'a TriggerInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<Trigger>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let old: Trigger = session.get(id).await?;
            let fn_id = if input.fn_id.is_empty() { old.fn_id.as_str() } else { &input.fn_id };
            let function = session.get(fn_id).await?;
            let new = old.update(input, &function, now)?;
            check_taken(&mut session, &new).await?;
            change(session, &old, new, ApiError::TriggerExists).await
        })
    }

    fn delete_trigger<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Committed<()>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            session.get::<Trigger>(id).await?;
            session.remove::<Trigger>("id", id).await?;
            let revision = session.announce::<Trigger>(id).await?;
            session.commit().await?;
            Ok(Committed { value: (), revision: Some(revision) })
        })
    }

    fn trigger<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Trigger> {
        self.run(move || async move { self.db.read().await?.get(id).await })
    }

    fn triggers<'a>(
        &'a self,
        app_id: &'a str,
        fn_id: Option<&'a str>,
        page: &'a Page,
    ) -> StoreFuture<'a, Vec<Trigger>> {
        let mut query = documents::<Trigger>();
        query.and_where(Expr::col("app_id").eq(app_id));
        if let Some(fn_id) = fn_id {
            query.and_where(Expr::col("fn_id").eq(fn_id));
        }
        self.run(move || self.list(query.clone(), page))
    }

    fn trigger_by_source<'a>(
        &'a self,
        app_id: &'a str,
        kind: TriggerType,
        source: &'a str,
    ) -> StoreFuture<'a, Trigger> {
        self.run(move || async move {
            let query = documents::<Trigger>()
                .and_where(Expr::col("app_id").eq(app_id))
                .and_where(Expr::col("kind").eq(kind.as_str()))
                .and_where(Expr::col("source").eq(source))
                .to_owned();
            self.db.read().await?.find(&query).await?.ok_or(ApiError::TriggerNotFound.into())
        })
    }

    fn is_remote(&self) -> bool {
        self.db.is_remote()
    }

    fn snapshot(&self) -> StoreFuture<'_, Snapshot> {
        self.run(move || async move { self.db.read().await?.snapshot().await })
    }

    fn changes_since(&self, revision: u64) -> StoreFuture<'_, Changes> {
        self.run(move || async move { self.db.read().await?.changes_since(revision).await })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.background.end().await;
            self.db.close().await;
        })
    }
}
