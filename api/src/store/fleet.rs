//! Join tokens that were used, balancers that were seen and nodes that were removed, as rows.

use jiff::{SignedDuration, Timestamp};
use sea_query::{Expr, ExprTrait, OnConflict, Order, Query};
use sqlx::error::BoxDynError;

use super::db::Writing;
use super::sql::SqlStore;
use super::{BalancerEntry, FleetStore, StoreError, StoreFuture};

/// How long a used token is remembered after its end. Whoever checks that a token has not expired may have a
/// clock that is late by this much.
const CLAIM_KEPT: SignedDuration = SignedDuration::from_hours(24);

impl FleetStore for SqlStore {
    fn claim_join_token<'a>(
        &'a self,
        id: &'a str,
        used_by: &'a str,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> StoreFuture<'a, bool> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let forgotten = now.saturating_sub(CLAIM_KEPT).unwrap_or(Timestamp::MIN);
            let old = Expr::col("expires_at").lt(forgotten.as_millisecond());
            session.execute(Query::delete().from_table("join_tokens").and_where(old)).await?;
            let claim = Query::insert()
                .into_table("join_tokens")
                .columns(["id", "used_by", "expires_at"])
                .values_panic([id.into(), used_by.into(), expires_at.as_millisecond().into()])
                .to_owned();
            let known = Query::select()
                .column("used_by")
                .from("join_tokens")
                .and_where(Expr::col("id").eq(id))
                .to_owned();
            let claimed = match session.first::<(Option<String>,)>(&known).await? {
                Some((by,)) => by.as_deref() == Some(used_by),
                None => session.execute(&claim).await? == 1,
            };
            session.commit().await?;
            Ok(claimed)
        })
    }

    fn announce_balancer<'a>(&'a self, name: &'a str, link_address: &'a str) -> StoreFuture<'a, ()> {
        self.run(move || async move {
            let latest = OnConflict::column("name").update_columns(["link_address", "seen_at"]).to_owned();
            let insert = Query::insert()
                .into_table("balancers")
                .columns(["name", "link_address", "seen_at"])
                .values_panic([name.into(), link_address.into(), self.db.now()])
                .on_conflict(latest)
                .to_owned();
            let mut session = self.db.write(Writing::Catalog).await?;
            session.execute(&insert).await?;
            session.commit().await
        })
    }

    fn balancers(&self, within: SignedDuration) -> StoreFuture<'_, Vec<BalancerEntry>> {
        self.run(move || async move {
            let since = self.db.now().sub(i64::try_from(within.as_millis()).unwrap_or(i64::MAX));
            let query = Query::select()
                .columns(["name", "link_address", "seen_at"])
                .from("balancers")
                .and_where(Expr::col("seen_at").gte(since))
                .order_by("name", Order::Asc)
                .to_owned();
            let rows: Vec<(String, String, i64)> = self.db.read().await?.all(&query).await?;
            rows.into_iter().map(decode).collect()
        })
    }

    fn forget_balancer<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        self.run(move || async move {
            let this = Expr::col("name").eq(name);
            let mut session = self.db.write(Writing::Catalog).await?;
            session.execute(Query::delete().from_table("balancers").and_where(this)).await?;
            session.commit().await
        })
    }

    fn remove_node<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let this = Expr::col("name").eq(name);
            let known = Query::select().column("name").from("removed_nodes").and_where(this).to_owned();
            let is_new = session.first::<(String,)>(&known).await?.is_none();
            if is_new {
                let insert = Query::insert()
                    .into_table("removed_nodes")
                    .columns(["name", "removed_at"])
                    .values_panic([name.into(), self.db.now()])
                    .to_owned();
                session.execute(&insert).await?;
            }
            session.commit().await?;
            Ok(is_new)
        })
    }

    fn removed_nodes(&self) -> StoreFuture<'_, Vec<String>> {
        self.run(move || async move {
            let query =
                Query::select().column("name").from("removed_nodes").order_by("name", Order::Asc).to_owned();
            let rows: Vec<(String,)> = self.db.read().await?.all(&query).await?;
            Ok(rows.into_iter().map(|(name,)| name).collect())
        })
    }
}

fn decode((name, link_address, seen_at): (String, String, i64)) -> Result<BalancerEntry, StoreError> {
    let seen_at = Timestamp::from_millisecond(seen_at)
        .map_err(|error| sqlx::Error::Decode(BoxDynError::from(error)))?;
    Ok(BalancerEntry { name, link_address, seen_at })
}
