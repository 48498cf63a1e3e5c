//! The feed of changes: one numbered row per changed resource, written in the transaction of the change.

use std::collections::BTreeSet;

use kiln_shared::model::{App, FunctionResource, Trigger};
use sea_query::{Expr, ExprTrait, Func, Order, Query};

use super::db::Session;
use super::resource::{Resource, documents};
use super::{Change, Changes, DatabaseId, Snapshot, StoreError};

/// Changes that are kept. Who is further behind takes a snapshot.
const CHANGES_KEPT: u64 = 4_096;
/// How many more may pile up before old ones are removed.
const CHANGES_SLACK: u64 = 512;

impl Session {
    /// Adds a change of a `R` to the feed; its revision.
    pub(super) async fn announce<R: Resource>(&mut self, id: &str) -> Result<u64, StoreError> {
        let revision = from_sql(self.next_revision().await?);
        let insert = Query::insert()
            .into_table("changes")
            .columns(["revision", "kind", "id"])
            .values_panic([to_sql(revision).into(), R::KIND.into(), id.into()])
            .to_owned();
        self.execute(&insert).await?;
        if revision.is_multiple_of(CHANGES_SLACK) && revision > CHANGES_KEPT {
            let old = Expr::col("revision").lte(to_sql(revision - CHANGES_KEPT));
            self.execute(Query::delete().from_table("changes").and_where(old)).await?;
        }
        self.notify().await?;
        Ok(revision)
    }

    /// Ends the history that the feed tells: whoever follows it takes a snapshot. The new revision.
    pub(super) async fn begin_anew(&mut self) -> Result<u64, StoreError> {
        self.execute(Query::delete().from_table("changes")).await?;
        // Two revisions on, so that nobody can be just before the oldest change that is known.
        self.next_revision().await?;
        self.announce::<App>("").await
    }

    /// Which database this is, and the newest revision; 0 if there never was a change.
    async fn position(&mut self) -> Result<(DatabaseId, u64), StoreError> {
        let query = Query::select().columns(["database_id", "revision"]).from("feed").to_owned();
        let feed: Option<(String, i64)> = self.first(&query).await?;
        let (database, revision) = feed.ok_or(sqlx::Error::RowNotFound)?;
        Ok((DatabaseId(database), from_sql(revision)))
    }

    async fn oldest_change(&mut self) -> Result<Option<u64>, StoreError> {
        let query = Query::select().expr(Func::min(Expr::col("revision"))).from("changes").to_owned();
        let oldest: Option<(Option<i64>,)> = self.first(&query).await?;
        Ok(oldest.and_then(|(revision,)| revision).map(from_sql))
    }

    /// The whole catalog.
    pub(super) async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        let (database, revision) = self.position().await?;
        Ok(Snapshot {
            database,
            revision,
            apps: self.everything().await?,
            functions: self.everything().await?,
            triggers: self.everything().await?,
        })
    }

    async fn everything<R: Resource>(&mut self) -> Result<Vec<R>, StoreError> {
        self.resources(documents::<R>().order_by("id", Order::Asc)).await
    }

    /// What changed after `since`.
    pub(super) async fn changes_since(&mut self, since: u64) -> Result<Changes, StoreError> {
        let query = Query::select()
            .columns(["revision", "kind", "id"])
            .from("changes")
            .and_where(Expr::col("revision").gt(to_sql(since)))
            .order_by("revision", Order::Asc)
            .to_owned();
        let rows: Vec<(i64, String, String)> = self.all(&query).await?;
        let oldest = self.oldest_change().await?;
        let (database, revision) = self.position().await?;
        if since > revision || oldest.is_some_and(|oldest| since + 1 < oldest) {
            return Err(StoreError::RevisionUnknown(since));
        }
        let ids = |kind: &str| -> BTreeSet<&str> {
            rows.iter().filter(|(_, of, _)| of == kind).map(|(.., id)| id.as_str()).collect()
        };
        let mut changes = Vec::new();
        self.collect(&ids(App::KIND), &mut changes, Change::App, Change::AppGone).await?;
        self.collect(&ids(FunctionResource::KIND), &mut changes, Change::Function, Change::FunctionGone)
            .await?;
        self.collect(&ids(Trigger::KIND), &mut changes, Change::Trigger, Change::TriggerGone).await?;
        Ok(Changes { database, revision, changes })
    }

    async fn collect<R: Resource, I: std::str::FromStr>(
        &mut self,
        ids: &BTreeSet<&str>,
        changes: &mut Vec<Change>,
        present: impl Fn(R) -> Change,
        gone: impl Fn(I) -> Change,
    ) -> Result<(), StoreError> {
        for id in ids {
            match self.get::<R>(id).await {
                Ok(resource) => changes.push(present(resource)),
                Err(StoreError::Refused(_)) => changes.extend(id.parse().ok().map(&gone)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn to_sql(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn from_sql(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}
