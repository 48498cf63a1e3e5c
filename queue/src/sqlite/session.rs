//! The statements of SQLite. Lists of ids and numbers travel as JSON, so that each statement is prepared once.

use std::collections::{HashMap, HashSet};

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, NewMessage, Purge, State};
use serde_json::json;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::insert::{self, Insert, ROWS_MAX};
use crate::engine::{Horizon, Row};
use crate::fair::{Allotment, LANES_MAX, Lane, Place};
use crate::sql::{Again, Body, Buried, DepthRow, KnownRow, LaneRow, Session, columns, filter, keyed};

type Sql<T> = Result<T, sqlx::Error>;

/// What each function has: a part for each index, so that none of the messages that were done long ago is looked at.
const DEPTH: &str = "SELECT function_id, sum(queued) AS queued, sum(waiting) - sum(queued) AS delayed, \
             sum(running) AS running, sum(dead) AS dead, min(oldest) AS oldest_due_at FROM (\
             SELECT function_id, count(*) AS waiting, sum(due_at <= ?1) AS queued, 0 AS running, 0 AS dead, \
             min(CASE WHEN due_at <= ?1 THEN due_at END) AS oldest FROM queue_messages INDEXED BY queue_messages_waiting WHERE state = 0 GROUP BY 1 \
             UNION ALL SELECT function_id, 0, 0, count(*), 0, NULL FROM queue_messages INDEXED BY queue_messages_leased WHERE state = 1 GROUP BY 1 \
             UNION ALL SELECT function_id, 0, 0, 0, count(*), NULL FROM queue_messages INDEXED BY queue_messages_dead WHERE state = 3 GROUP BY 1) \
             GROUP BY 1 ORDER BY 1";

/// A transaction.
pub(super) struct SqliteSession<'a> {
    connection: &'a mut SqliteConnection,
}

impl<'a> SqliteSession<'a> {
    pub(super) fn new(connection: &'a mut SqliteConnection) -> Self {
        Self { connection }
    }

    /// Inserts up to [`ROWS_MAX`] messages.
    async fn insert_some(&mut self, new: &[&NewMessage], now_millis: i64) -> Sql<Vec<bool>> {
        // Nobody else inserts meanwhile: the transaction is the only one that writes.
        let last: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM queue_messages")
            .fetch_one(&mut *self.connection)
            .await?;
        let Insert { sql, values } = insert::messages(new, last + 1, now_millis)?;
        let stored = sqlx::query_with(sql, values).execute(&mut *self.connection).await?.rows_affected();
        let is_new = if stored == new.len() as u64 {
            vec![true; new.len()]
        } else {
            let seqs: HashSet<i64> = sqlx::query_scalar("SELECT seq FROM queue_messages WHERE seq > ?")
                .bind(last)
                .fetch_all(&mut *self.connection)
                .await?
                .into_iter()
                .collect();
            (0..new.len()).map(|place| seqs.contains(&(last + 1 + place as i64))).collect()
        };
        let bodies: Vec<(i64, &NewMessage)> = new
            .iter()
            .enumerate()
            .filter(|(place, _)| is_new[*place])
            .map(|(place, message)| (last + 1 + place as i64, *message))
            .collect();
        if !bodies.is_empty() {
            let Insert { sql, values } = insert::bodies(&bodies)?;
            sqlx::query_with(sql, values).execute(&mut *self.connection).await?;
        }
        Ok(is_new)
    }
}

impl Session for SqliteSession<'_> {
    async fn insert(&mut self, new: &[&NewMessage], now_millis: i64) -> Sql<Vec<bool>> {
        let mut is_new = Vec::with_capacity(new.len());
        for some in new.chunks(ROWS_MAX) {
            is_new.extend(self.insert_some(some, now_millis).await?);
        }
        Ok(is_new)
    }

    async fn known(&mut self, new: &[&NewMessage]) -> Sql<Vec<KnownRow>> {
        let ids: Vec<CallId> = new.iter().map(|message| message.id).collect();
        sqlx::query_as(
            "SELECT id, function_id, idempotency_key FROM queue_messages WHERE id IN (SELECT value FROM json_each(?)) \
             UNION ALL SELECT m.id, m.function_id, m.idempotency_key FROM json_each(?) k CROSS JOIN queue_messages m \
             ON m.function_id = k.value ->> 0 AND m.idempotency_key = k.value ->> 1",
        )
        .bind(json!(ids).to_string())
        .bind(json!(keyed(new).collect::<Vec<_>>()).to_string())
        .fetch_all(&mut *self.connection)
        .await
    }

    async fn unfinished(&mut self) -> Sql<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM queue_messages WHERE state = 0) \
             + (SELECT count(*) FROM queue_messages WHERE state = 1)",
        )
        .fetch_one(&mut *self.connection)
        .await?;
        Ok(count.unsigned_abs())
    }

    async fn lanes(&mut self, from: &[Place], now_millis: i64) -> Sql<Vec<Lane>> {
        let from: Vec<(u8, &str)> = from.iter().map(|place| (place.priority.get(), place.after())).collect();
        // From the first message of one lane to that of the next, each a step in the index.
        let lanes: Vec<LaneRow> = sqlx::query_as(
            "WITH RECURSIVE lane (priority, function_id, due_at, found) AS (\
             SELECT value ->> 0, value ->> 1, NULL, 0 FROM json_each(?1) \
             UNION ALL \
             SELECT m.priority, m.function_id, m.due_at, lane.found + (m.due_at <= ?2) \
             FROM lane JOIN queue_messages m ON m.seq = (\
             SELECT n.seq FROM queue_messages n \
             WHERE n.state = 0 AND n.priority = lane.priority AND n.function_id > lane.function_id \
             ORDER BY n.function_id, n.due_at LIMIT 1) WHERE lane.found < ?3) \
             SELECT priority, function_id, due_at FROM lane WHERE due_at <= ?2",
        )
        .bind(json!(from).to_string())
        .bind(now_millis)
        .bind(LANES_MAX as i64)
        .fetch_all(&mut *self.connection)
        .await?;
        lanes.iter().map(LaneRow::lane).collect()
    }

    async fn pick(&mut self, allotments: &[Allotment], now_millis: i64) -> Sql<Vec<Vec<Row>>> {
        let mut picked = Vec::with_capacity(allotments.len());
        for allotment in allotments {
            let rows = sqlx::query_as(concat!(
                "SELECT ",
                columns!(),
                " FROM queue_messages m WHERE m.state = 0 AND m.priority = ?1 AND m.function_id = ?2 AND m.due_at <= ?3 \
                 AND (m.deadline_at IS NULL OR m.deadline_at > ?3) ORDER BY m.due_at, m.seq LIMIT ?4"
            ))
            .bind(i64::from(allotment.priority.get()))
            .bind(allotment.function_id.as_str())
            .bind(now_millis)
            .bind(allotment.messages_max as i64)
            .fetch_all(&mut *self.connection)
            .await?;
            picked.push(rows);
        }
        Ok(picked)
    }

    async fn lease(
        &mut self,
        seqs: &[i64],
        worker: &str,
        now_millis: i64,
        until_millis: i64,
    ) -> Sql<HashMap<i64, Body>> {
        let list = numbers(seqs);
        sqlx::query(
            "UPDATE queue_messages SET state = 1, lease = lease + 1, attempts = attempts + 1, worker = ?, \
             started_at = ?, leased_until = ? WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(worker)
        .bind(now_millis)
        .bind(until_millis)
        .bind(&list)
        .execute(&mut *self.connection)
        .await?;
        let bodies: Vec<Body> = sqlx::query_as(
            "SELECT seq, envelope, payload FROM queue_bodies WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(&list)
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(bodies.into_iter().map(|body| (body.seq, body)).collect())
    }

    async fn locked(&mut self, ids: &[CallId]) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m WHERE m.id IN (SELECT value FROM json_each(?))"
        ))
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.connection)
        .await
    }

    async fn abandoned(&mut self, now_millis: i64, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m WHERE m.state = 1 AND m.leased_until <= ? ORDER BY m.leased_until LIMIT ?"
        ))
        .bind(now_millis)
        .bind(rows_max)
        .fetch_all(&mut *self.connection)
        .await
    }

    async fn late(&mut self, now_millis: i64, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m WHERE m.state = 0 AND m.deadline_at IS NOT NULL AND m.deadline_at <= ? \
             ORDER BY m.deadline_at LIMIT ?"
        ))
        .bind(now_millis)
        .bind(rows_max)
        .fetch_all(&mut *self.connection)
        .await
    }

    async fn dead(&mut self, function: FunctionId, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m INDEXED BY queue_messages_dead WHERE m.state = 3 AND m.function_id = ? \
             ORDER BY m.seq LIMIT ?"
        ))
        .bind(function.as_str())
        .bind(rows_max)
        .fetch_all(&mut *self.connection)
        .await
    }

    async fn hold(&mut self, seqs: &[i64], until_millis: i64) -> Sql<()> {
        sqlx::query(
            "UPDATE queue_messages SET leased_until = ? WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(until_millis)
        .bind(numbers(seqs))
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn end(&mut self, seqs: &[i64], state: i64, now_millis: i64) -> Sql<()> {
        let list = numbers(seqs);
        sqlx::query(
            "UPDATE queue_messages SET state = ?, ended_at = ? WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(state)
        .bind(now_millis)
        .bind(&list)
        .execute(&mut *self.connection)
        .await?;
        sqlx::query("DELETE FROM queue_bodies WHERE seq IN (SELECT value FROM json_each(?))")
            .bind(&list)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    async fn put_back(&mut self, again: &[Again]) -> Sql<()> {
        for Again { seq, due_at, attempts, last_error } in again {
            sqlx::query(
                "UPDATE queue_messages SET state = 0, due_at = ?, attempts = ?, last_error = coalesce(?, last_error) \
                 WHERE seq = ?",
            )
            .bind(due_at)
            .bind(attempts)
            .bind(last_error)
            .bind(seq)
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }

    async fn bury(&mut self, buried: &[Buried], now_millis: i64) -> Sql<()> {
        for Buried { seq, last_error } in buried {
            sqlx::query("UPDATE queue_messages SET state = 3, ended_at = ?, last_error = ? WHERE seq = ?")
                .bind(now_millis)
                .bind(last_error)
                .bind(seq)
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    async fn revive(&mut self, seqs: &[i64], now_millis: i64) -> Sql<()> {
        sqlx::query(
            "UPDATE queue_messages SET state = 0, due_at = ?, attempts = 0, deadline_at = NULL, ended_at = NULL \
             WHERE seq IN (SELECT value FROM json_each(?))",
        )
        .bind(now_millis)
        .bind(numbers(seqs))
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn purge(&mut self, purge: Purge, now_millis: i64, rows_max: i64) -> Sql<u64> {
        let (states, ended_before) = filter::purged(purge, now_millis);
        let seqs: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT seq FROM queue_messages WHERE state >= 2 AND state IN ({states}) AND ended_at <= ? LIMIT ?"
        )))
        .bind(ended_before)
        .bind(rows_max)
        .fetch_all(&mut *self.connection)
        .await?;
        let list = numbers(&seqs);
        for table in ["queue_messages", "queue_bodies"] {
            let sql = format!("DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))");
            sqlx::query(AssertSqlSafe(sql)).bind(&list).execute(&mut *self.connection).await?;
        }
        Ok(seqs.len() as u64)
    }

    async fn row(&mut self, id: CallId) -> Sql<Option<Row>> {
        Ok(self.locked(&[id]).await?.pop())
    }

    async fn rows(&mut self, list: &List, after_seq: i64, now_millis: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(AssertSqlSafe(listed(list, now_millis)))
            .bind(after_seq)
            .bind(list.messages_max as i64)
            .fetch_all(&mut *self.connection)
            .await
    }

    async fn depth(&mut self, now_millis: i64) -> Sql<Vec<Depth>> {
        let rows: Vec<DepthRow> =
            sqlx::query_as(DEPTH).bind(now_millis).fetch_all(&mut *self.connection).await?;
        rows.iter().map(DepthRow::depth).collect()
    }

    async fn horizon(&mut self, now_millis: i64) -> Sql<Horizon> {
        sqlx::query_as(
            "SELECT (SELECT min(due_at) FROM queue_messages WHERE state = 0) AS due_at, \
             (SELECT min(due_at) FROM queue_messages WHERE state = 0 AND due_at > ?) AS next_due_at, \
             (SELECT min(leased_until) FROM queue_messages WHERE state = 1) AS lease_ends_at, \
             (SELECT min(deadline_at) FROM queue_messages WHERE state = 0 AND deadline_at IS NOT NULL) AS deadline_at",
        )
        .bind(now_millis)
        .fetch_one(&mut *self.connection)
        .await
    }
}

/// The statement of a list. Its parameters are the sequence number before and the most rows.
fn listed(list: &List, now_millis: i64) -> String {
    let (columns, filter) = (columns!(), filter::listed(list, now_millis));
    let index = match (list.function_id, list.state) {
        (None, _) => "",
        (Some(_), Some(State::Dead)) => "INDEXED BY queue_messages_dead",
        (Some(_), _) => "INDEXED BY queue_messages_function",
    };
    format!("SELECT {columns} FROM queue_messages m {index} WHERE m.seq > ? {filter} ORDER BY m.seq LIMIT ?")
}

/// Whole numbers as a JSON array.
fn numbers(seqs: &[i64]) -> String {
    serde_json::to_string(seqs).expect("numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::open::MIGRATIONS;
    use sqlx::Connection;

    /// How the database goes about a statement, step by step.
    async fn plan(sql: &str) -> Vec<String> {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("it opens");
        MIGRATIONS.run(&mut connection).await.expect("tables");
        let steps: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")))
                .fetch_all(&mut connection)
                .await
                .expect("it is a statement");
        steps.into_iter().map(|(_, _, _, step)| step).collect()
    }

    #[tokio::test]
    async fn a_list_of_a_function_passes_none_of_the_others_by() {
        for state in [None, Some(State::Queued), Some(State::Running), Some(State::Done), Some(State::Dead)] {
            let function_id = Some(FunctionId::generate());
            let list = List { function_id, state, after: None, messages_max: 10 };
            let steps = plan(&listed(&list, 0)).await;
            assert_eq!(steps.len(), 1, "{steps:?}");
            assert!(
                steps[0].starts_with("SEARCH m USING INDEX") && steps[0].contains("function_id=?"),
                "{steps:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_done_does_not_make_the_depth_slow() {
        let steps = plan(DEPTH).await;
        let tables: Vec<&String> = steps.iter().filter(|step| step.contains("queue_messages")).collect();
        assert_eq!(tables.len(), 3, "{steps:?}");
        for index in ["queue_messages_waiting", "queue_messages_leased", "queue_messages_dead"] {
            assert!(tables.iter().any(|step| step.contains(index)), "{steps:?}");
        }
    }
}
