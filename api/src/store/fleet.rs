//! Join tokens that were used and balancers that were seen, as rows.

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
        expires_at: Timestamp,
        now: Timestamp,
    ) -> StoreFuture<'a, bool> {
        self.run(async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let forgotten = now.saturating_sub(CLAIM_KEPT).unwrap_or(Timestamp::MIN);
            let old = Expr::col("expires_at").lt(forgotten.as_millisecond());
            session.execute(Query::delete().from_table("join_tokens").and_where(old)).await?;
            let claim = Query::insert()
                .into_table("join_tokens")
                .columns(["id", "expires_at"])
                .values_panic([id.into(), expires_at.as_millisecond().into()])
                .on_conflict(OnConflict::column("id").do_nothing().to_owned())
                .to_owned();
            let claimed = session.execute(&claim).await? == 1;
            session.commit().await?;
            Ok(claimed)
        })
    }

    fn announce_balancer<'a>(
        &'a self,
        name: &'a str,
        link_address: &'a str,
        now: Timestamp,
    ) -> StoreFuture<'a, ()> {
        self.run(async move {
            let latest = OnConflict::column("name").update_columns(["link_address", "seen_at"]).to_owned();
            let insert = Query::insert()
                .into_table("balancers")
                .columns(["name", "link_address", "seen_at"])
                .values_panic([name.into(), link_address.into(), now.as_millisecond().into()])
                .on_conflict(latest)
                .to_owned();
            let mut session = self.db.write(Writing::Catalog).await?;
            session.execute(&insert).await?;
            session.commit().await
        })
    }

    fn balancers(&self, seen_since: Timestamp) -> StoreFuture<'_, Vec<BalancerEntry>> {
        self.run(async move {
            let query = Query::select()
                .columns(["name", "link_address", "seen_at"])
                .from("balancers")
                .and_where(Expr::col("seen_at").gte(seen_since.as_millisecond()))
                .order_by("name", Order::Asc)
                .to_owned();
            let rows: Vec<(String, String, i64)> = self.db.read().await?.all(&query).await?;
            rows.into_iter().map(decode).collect()
        })
    }

    fn forget_balancer<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        self.run(async move {
            let this = Expr::col("name").eq(name);
            let mut session = self.db.write(Writing::Catalog).await?;
            session.execute(Query::delete().from_table("balancers").and_where(this)).await?;
            session.commit().await
        })
    }
}

fn decode((name, link_address, seen_at): (String, String, i64)) -> Result<BalancerEntry, StoreError> {
    let seen_at = Timestamp::from_millisecond(seen_at)
        .map_err(|error| sqlx::Error::Decode(BoxDynError::from(error)))?;
    Ok(BalancerEntry { name, link_address, seen_at })
}
