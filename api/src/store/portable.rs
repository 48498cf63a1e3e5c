//! The whole catalog out of one database and into another, as rows.

use std::collections::HashSet;
use std::time::Duration;

use kiln_shared::model::{App, FunctionResource, Trigger};
use sea_query::{Expr, ExprTrait, Func, InsertStatement, Order, Query, SimpleExpr};
use tokio::time::timeout;

use super::db::{Session, Writing};
use super::resource::Resource;
use super::sql::SqlStore;
use super::{
    Contents, Existing, FiredTick, PortableStore, Progress, RemovedNode, StoreError, StoreFuture, UsedToken,
};

/// Longest time for a whole catalog, out or in.
const WHOLE_MAX: Duration = Duration::from_mins(10);
/// Rows of one statement.
const ROWS_MAX: usize = 200;
/// A statement ends at the row that passes this, so that it fits in the largest packet of a server.
const STATEMENT_BYTES: usize = 2 << 20;

/// A row with its size in bytes, about.
type SizedRow = (Vec<SimpleExpr>, usize);

impl PortableStore for SqlStore {
    fn contents(&self) -> StoreFuture<'_, Contents> {
        Box::pin(in_time(async move { self.db.read().await?.all_contents().await }))
    }

    fn restore<'a>(
        &'a self,
        contents: &'a Contents,
        existing: Existing,
        progress: Progress<'a>,
    ) -> StoreFuture<'a, Option<u64>> {
        Box::pin(in_time(async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            if existing == Existing::Refused && session.apps_len().await? > 0 {
                return Ok(None);
            }
            session.clear_catalog().await?;
            session.insert_all(contents, progress).await?;
            let revision = session.begin_anew().await?;
            session.commit().await?;
            Ok(Some(revision))
        }))
    }
}

async fn in_time<T>(whole: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(WHOLE_MAX, whole).await.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
}

impl Session {
    async fn all_contents(&mut self) -> Result<Contents, StoreError> {
        let catalog = self.snapshot().await?;
        let schedules = Query::select()
            .columns(["trigger_id", "tick_second"])
            .from("schedules")
            .and_where(Expr::col("tick_second").is_not_null())
            .order_by("trigger_id", Order::Asc)
            .to_owned();
        let schedules: Vec<(String, i64)> = self.all(&schedules).await?;
        let removed = Query::select()
            .columns(["name", "removed_at"])
            .from("removed_nodes")
            .order_by("name", Order::Asc)
            .to_owned();
        let removed: Vec<(String, i64)> = self.all(&removed).await?;
        let tokens = Query::select()
            .columns(["id", "used_by", "expires_at"])
            .from("join_tokens")
            .order_by("id", Order::Asc)
            .to_owned();
        let tokens: Vec<(String, Option<String>, i64)> = self.all(&tokens).await?;
        Ok(Contents {
            catalog,
            fired_ticks: schedules
                .into_iter()
                .map(|(trigger_id, tick_second)| FiredTick { trigger_id, tick_second })
                .collect(),
            removed_nodes: removed
                .into_iter()
                .map(|(name, removed_at)| RemovedNode { name, removed_at })
                .collect(),
            used_tokens: tokens
                .into_iter()
                .map(|(id, used_by, expires_at)| UsedToken { id, used_by, expires_at })
                .collect(),
        })
    }

    async fn apps_len(&mut self) -> Result<i64, StoreError> {
        let count = Query::select().expr(Func::count(Expr::val(1))).from(App::TABLE).to_owned();
        Ok(self.first::<(i64,)>(&count).await?.map_or(0, |(count,)| count))
    }

    /// Removes what an import replaces. What protects a fleet stays: the nodes that were removed and the tokens that were
    /// used. So do the records of calls, until they are too old.
    async fn clear_catalog(&mut self) -> Result<(), StoreError> {
        for table in ["schedules", Trigger::TABLE, FunctionResource::TABLE, App::TABLE] {
            self.execute(Query::delete().from_table(table)).await?;
        }
        Ok(())
    }

    async fn insert_all(&mut self, contents: &Contents, progress: Progress<'_>) -> Result<(), StoreError> {
        self.insert_resources(&contents.catalog.apps, progress).await?;
        self.insert_resources(&contents.catalog.functions, progress).await?;
        self.insert_resources(&contents.catalog.triggers, progress).await?;
        let columns = ["trigger_id", "tick_second", "claimed_by", "claimed_until"];
        self.insert_rows("schedules", &columns, &contents.fired_ticks, schedule_row, progress).await?;

        let known = self.known("removed_nodes", "name").await?;
        let mut nodes = contents.removed_nodes.clone();
        nodes.retain(|node| !known.contains(&node.name));
        self.insert_rows("removed_nodes", &["name", "removed_at"], &nodes, node_row, progress).await?;

        let known = self.known("join_tokens", "id").await?;
        let mut tokens = contents.used_tokens.clone();
        tokens.retain(|token| !known.contains(&token.id));
        self.insert_rows("join_tokens", &["id", "used_by", "expires_at"], &tokens, token_row, progress).await
    }

    async fn known(
        &mut self,
        table: &'static str,
        column: &'static str,
    ) -> Result<HashSet<String>, StoreError> {
        let known: Vec<(String,)> = self.all(&Query::select().column(column).from(table).to_owned()).await?;
        Ok(known.into_iter().map(|(text,)| text).collect())
    }

    async fn insert_resources<R: Resource + Sync>(
        &mut self,
        resources: &[R],
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let columns: Vec<&str> = R::COLUMNS.iter().copied().chain(["document"]).collect();
        self.insert_rows(R::TABLE, &columns, resources, resource_row, progress).await
    }

    async fn insert_rows<T: Sync>(
        &mut self,
        table: &'static str,
        columns: &[&'static str],
        items: &[T],
        row: fn(&T) -> SizedRow,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let mut rest = items;
        while !rest.is_empty() {
            let (insert, taken) = insert_first(table, columns, rest, row);
            self.execute(&insert).await?;
            progress(taken);
            rest = &rest[taken..];
        }
        Ok(())
    }
}

/// A statement with as many items as it takes; how many those are.
fn insert_first<T>(
    table: &'static str,
    columns: &[&'static str],
    items: &[T],
    row: fn(&T) -> SizedRow,
) -> (InsertStatement, usize) {
    let mut insert = Query::insert().into_table(table).columns(columns.iter().copied()).to_owned();
    let (mut taken, mut bytes) = (0, 0);
    for item in items.iter().take(ROWS_MAX) {
        let (values, bytes_of_row) = row(item);
        insert.values_panic(values);
        (taken, bytes) = (taken + 1, bytes + bytes_of_row);
        if bytes > STATEMENT_BYTES {
            break;
        }
    }
    (insert, taken)
}

fn resource_row<R: Resource>(resource: &R) -> SizedRow {
    let document = resource.document();
    let bytes = document.len();
    let mut values = resource.values();
    values.push(document.into());
    (values, bytes)
}

fn schedule_row(FiredTick { trigger_id, tick_second }: &FiredTick) -> SizedRow {
    // Nobody holds it.
    (vec![trigger_id.as_str().into(), (*tick_second).into(), "".into(), 0_i64.into()], trigger_id.len())
}

fn node_row(RemovedNode { name, removed_at }: &RemovedNode) -> SizedRow {
    (vec![name.as_str().into(), (*removed_at).into()], name.len())
}

fn token_row(UsedToken { id, used_by, expires_at }: &UsedToken) -> SizedRow {
    let bytes = id.len() + used_by.as_ref().map_or(0, String::len);
    (vec![id.as_str().into(), used_by.clone().into(), (*expires_at).into()], bytes)
}
