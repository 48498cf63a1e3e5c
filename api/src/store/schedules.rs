//! How far schedules have been fired, as rows.
//!
//! Invariants: a row moves forward only, and only by the hand of who holds it; a claim ends by itself.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use kiln_shared::ids::TriggerId;
use sea_query::{Expr, ExprTrait, OnConflict, Query};
use sqlx::error::BoxDynError;

use super::db::{Session, Writing};
use super::sql::SqlStore;
use super::{Claimed, ScheduleStore, StoreError, StoreFuture};

/// `tick_second`, `claimed_by`, `claimed_until`.
type Row = (Option<i64>, String, i64);

impl ScheduleStore for SqlStore {
    fn claim_ticks<'a>(
        &'a self,
        ticks: &'a [(TriggerId, Timestamp)],
        holder: &'a str,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreFuture<'a, Vec<Claimed>> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            let (known, rows) = (session.known_triggers(ticks).await?, session.schedules(ticks).await?);
            let mut answers = Vec::with_capacity(ticks.len());
            for (id, tick) in ticks {
                if !known.contains(id.as_str()) {
                    answers.push(Claimed::Gone);
                    continue;
                }
                let answer = claimed(rows.get(id.as_str()), *tick, holder, now, until)?;
                if let Claimed::Given(_) = answer {
                    session.hold(*id, holder, until).await?;
                }
                answers.push(answer);
            }
            session.commit().await?;
            Ok(answers)
        })
    }

    fn ticks_fired<'a>(
        &'a self,
        ticks: &'a [(TriggerId, Timestamp)],
        holder: &'a str,
    ) -> StoreFuture<'a, ()> {
        self.run(move || async move {
            let mut session = self.db.write(Writing::Catalog).await?;
            for (id, tick) in ticks {
                let column = Expr::col("tick_second");
                let is_before = column.clone().is_null().or(column.lt(tick.as_second()));
                let update = Query::update()
                    .table("schedules")
                    .value("tick_second", tick.as_second())
                    .value("claimed_until", 0_i64)
                    .and_where(Expr::col("trigger_id").eq(id.as_str()))
                    .and_where(Expr::col("claimed_by").eq(holder))
                    .and_where(is_before)
                    .to_owned();
                session.execute(&update).await?;
            }
            session.commit().await
        })
    }
}

/// Who gets the ticks. A claim that is longer than claims are is of a clock that was wrong, and does not count.
fn claimed(
    row: Option<&Row>,
    tick: Timestamp,
    holder: &str,
    now: Timestamp,
    until: Timestamp,
) -> Result<Claimed, StoreError> {
    let Some((fired, claimed_by, claimed_until)) = row else { return Ok(Claimed::Given(None)) };
    let fired = fired.map(Timestamp::from_second).transpose();
    let fired = fired.map_err(|error| sqlx::Error::Decode(BoxDynError::from(error)))?;
    if let Some(fired) = fired.filter(|fired| *fired >= tick) {
        return Ok(Claimed::Fired(fired));
    }
    let is_claimed = (now.as_millisecond() + 1..=until.as_millisecond()).contains(claimed_until);
    if is_claimed && claimed_by != holder { Ok(Claimed::Held) } else { Ok(Claimed::Given(fired)) }
}

impl Session {
    async fn known_triggers(
        &mut self,
        ticks: &[(TriggerId, Timestamp)],
    ) -> Result<HashSet<String>, StoreError> {
        let query =
            Query::select().column("id").from("triggers").and_where(is_one_of("id", ticks)).to_owned();
        let known: Vec<(String,)> = self.all(&query).await?;
        Ok(known.into_iter().map(|(id,)| id).collect())
    }

    async fn schedules(
        &mut self,
        ticks: &[(TriggerId, Timestamp)],
    ) -> Result<HashMap<String, Row>, StoreError> {
        let query = Query::select()
            .columns(["trigger_id", "tick_second", "claimed_by", "claimed_until"])
            .from("schedules")
            .and_where(is_one_of("trigger_id", ticks))
            .to_owned();
        let rows: Vec<(String, Option<i64>, String, i64)> = self.all(&query).await?;
        Ok(rows.into_iter().map(|(id, tick, by, until)| (id, (tick, by, until))).collect())
    }

    async fn hold(&mut self, id: TriggerId, holder: &str, until: Timestamp) -> Result<(), StoreError> {
        let again =
            OnConflict::column("trigger_id").update_columns(["claimed_by", "claimed_until"]).to_owned();
        let claim = Query::insert()
            .into_table("schedules")
            .columns(["trigger_id", "claimed_by", "claimed_until"])
            .values_panic([id.as_str().into(), holder.into(), until.as_millisecond().into()])
            .on_conflict(again)
            .to_owned();
        self.execute(&claim).await.map(drop)
    }
}

fn is_one_of(column: &'static str, ticks: &[(TriggerId, Timestamp)]) -> sea_query::SimpleExpr {
    Expr::col(column).is_in(ticks.iter().map(|(id, _)| id.as_str()))
}
