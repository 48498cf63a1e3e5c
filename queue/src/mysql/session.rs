//! The statements of MySQL and MariaDB. Lists of ids and numbers stand in the text: the optimizers of both know no
//! better way to many rows. They hold letters and digits alone, which need no quoting.

use std::collections::HashMap;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, NewMessage, Purge};
use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{AssertSqlSafe, FromRow, MySql, QueryBuilder, Transaction};

use crate::engine::{Horizon, NewRow, Row};
use crate::fair::{Allotment, LANES_MAX, Lane, Place};
use crate::sql::{Again, Body, Buried, DepthRow, KnownRow, LaneRow, Session, columns, filter, keyed};

type Sql<T> = Result<T, sqlx::Error>;

/// Most messages of one statement.
const ROWS_MAX: usize = 200;
/// A statement ends at the row that passes this, so that it fits in the server's largest packet (16 MiB where nobody
/// set it) with the largest payload.
const STATEMENT_BYTES: usize = 4 << 20;

/// A statement whose text differs each time, so that to keep it prepared is of no use.
fn once<'q>(sql: String) -> Query<'q, MySql, MySqlArguments> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

/// The same, for rows.
fn once_as<'q, T: for<'r> FromRow<'r, MySqlRow>>(sql: String) -> QueryAs<'q, MySql, T, MySqlArguments> {
    sqlx::query_as(AssertSqlSafe(sql)).persistent(false)
}

/// The same, for one column.
fn once_scalar<'q, T>(sql: String) -> QueryScalar<'q, MySql, T, MySqlArguments>
where
    (T,): for<'r> FromRow<'r, MySqlRow>,
{
    sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false)
}

/// Inserts messages; their numbers by id, of those that are new.
async fn insert_messages(
    transaction: &mut Transaction<'_, MySql>,
    new: &[&NewMessage],
    now_millis: i64,
) -> Sql<HashMap<String, i64>> {
    let batch: i64 = rand::random();
    let mut insert: QueryBuilder<MySql> = QueryBuilder::new(
        "INSERT IGNORE INTO queue_messages (id, function_id, app_id, priority, state, due_at, deadline_at, created_at, \
         lease, attempts, attempts_max, pause_min, pause_max, jitter, payload_bytes, idempotency_key, batch) ",
    );
    insert.push_values(new, |mut values, message| {
        let row = NewRow::of(message, now_millis);
        values
            .push_bind(message.id.as_str())
            .push_bind(message.function_id.as_str())
            .push_bind(message.app_id.as_str())
            .push_bind(i64::from(message.priority.get()))
            .push("0")
            .push_bind(row.due_at)
            .push_bind(row.deadline_at)
            .push_bind(now_millis)
            .push("0, 0")
            .push_bind(row.attempts_max)
            .push_bind(row.pause_min)
            .push_bind(row.pause_max)
            .push_bind(row.jitter)
            .push_bind(row.payload_bytes)
            .push_bind(message.idempotency_key.as_deref().map(str::as_bytes))
            .push_bind(batch);
    });
    insert.build().persistent(new.len() == 1).execute(&mut **transaction).await?;
    let ids = quoted(new.iter().map(|message| message.id));
    let stored: Vec<(String, i64)> =
        once_as(format!("SELECT id, seq FROM queue_messages WHERE id IN ({ids}) AND batch = {batch}"))
            .fetch_all(&mut **transaction)
            .await?;
    Ok(stored.into_iter().collect())
}

/// Inserts what messages carry, in statements that are not too large.
async fn insert_bodies(transaction: &mut Transaction<'_, MySql>, new: &[(i64, &NewMessage)]) -> Sql<()> {
    let mut rest = new;
    while !rest.is_empty() {
        let mut bytes = 0;
        let over = rest.iter().position(|(_, message)| {
            bytes += message.payload.len() + message.envelope.get().len();
            bytes > STATEMENT_BYTES
        });
        let (some, others) = rest.split_at(over.unwrap_or(rest.len()).max(1));
        let mut insert: QueryBuilder<MySql> =
            QueryBuilder::new("INSERT INTO queue_bodies (seq, envelope, payload) ");
        insert.push_values(some, |mut values, (seq, message)| {
            values.push_bind(*seq).push_bind(message.envelope.get()).push_bind(&message.payload[..]);
        });
        insert.build().persistent(some.len() == 1).execute(&mut **transaction).await?;
        rest = others;
    }
    Ok(())
}

impl Session for Transaction<'_, MySql> {
    async fn insert(&mut self, new: &[&NewMessage], now_millis: i64) -> Sql<Vec<bool>> {
        let mut is_new = Vec::with_capacity(new.len());
        for some in new.chunks(ROWS_MAX) {
            let stored = insert_messages(self, some, now_millis).await?;
            let seq = |message: &NewMessage| stored.get(message.id.as_str()).copied();
            let bodies: Vec<(i64, &NewMessage)> =
                some.iter().filter_map(|message| Some((seq(message)?, *message))).collect();
            insert_bodies(self, &bodies).await?;
            is_new.extend(some.iter().map(|message| seq(message).is_some()));
        }
        Ok(is_new)
    }

    async fn known(&mut self, new: &[&NewMessage]) -> Sql<Vec<KnownRow>> {
        let ids = quoted(new.iter().map(|message| message.id));
        let columns = "id, function_id, CONVERT(idempotency_key USING utf8mb4) AS idempotency_key";
        let mut known: Vec<KnownRow> =
            once_as(format!("SELECT {columns} FROM queue_messages WHERE id IN ({ids})"))
                .fetch_all(&mut **self)
                .await?;
        let keyed: Vec<(&str, &str)> = keyed(new).collect();
        for some in keyed.chunks(ROWS_MAX) {
            // Each is a place in the index, which of pairs in a list not every version knows.
            let any = vec!["(function_id = ? AND idempotency_key = ?)"; some.len()].join(" OR ");
            let mut query = once_as(format!(
                "SELECT {columns} FROM queue_messages FORCE INDEX (queue_messages_key) WHERE {any}"
            ));
            for (function, key) in some {
                query = query.bind(function.to_string()).bind(key.as_bytes().to_vec());
            }
            known.extend(query.fetch_all(&mut **self).await?);
        }
        Ok(known)
    }

    async fn unfinished(&mut self) -> Sql<u64> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM queue_messages WHERE state IN (0, 1)")
            .fetch_one(&mut **self)
            .await?;
        Ok(count.unsigned_abs())
    }

    async fn lanes(&mut self, from: &[Place], now_millis: i64) -> Sql<Vec<Lane>> {
        // From lane to lane in the index: https://mariadb.com/kb/en/group-by-optimization (loose index scan).
        let lanes_of_one = "(SELECT priority, function_id, min(due_at) AS due_at FROM queue_messages \
             WHERE state = 0 AND priority = ? AND function_id > ? GROUP BY state, priority, function_id \
             HAVING due_at <= ? ORDER BY function_id LIMIT ?)";
        let mut query = sqlx::query_as(AssertSqlSafe(vec![lanes_of_one; from.len()].join(" UNION ALL ")));
        for place in from {
            query = query
                .bind(i64::from(place.priority.get()))
                .bind(place.after())
                .bind(now_millis)
                .bind(LANES_MAX as i64);
        }
        let lanes: Vec<LaneRow> = query.fetch_all(&mut **self).await?;
        lanes.iter().map(LaneRow::lane).collect()
    }

    async fn pick(&mut self, allotments: &[Allotment], now_millis: i64) -> Sql<Vec<Vec<Row>>> {
        let mut picked = Vec::with_capacity(allotments.len());
        for allotment in allotments {
            let rows = sqlx::query_as(concat!(
                "SELECT ",
                columns!(),
                " FROM queue_messages m FORCE INDEX (queue_messages_waiting) WHERE m.state = 0 AND m.priority = ? \
                 AND m.function_id = ? AND m.due_at <= ? AND (m.deadline_at IS NULL OR m.deadline_at > ?) \
                 ORDER BY m.due_at, m.seq LIMIT ? FOR UPDATE SKIP LOCKED"
            ))
            .bind(i64::from(allotment.priority.get()))
            .bind(allotment.function_id.as_str())
            .bind(now_millis)
            .bind(now_millis)
            .bind(allotment.messages_max as i64)
            .fetch_all(&mut **self)
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
        once(format!(
            "UPDATE queue_messages SET state = 1, lease = lease + 1, attempts = attempts + 1, worker = ?, \
             started_at = ?, leased_until = ? WHERE seq IN ({list})"
        ))
        .bind(worker)
        .bind(now_millis)
        .bind(until_millis)
        .execute(&mut **self)
        .await?;
        let bodies: Vec<Body> =
            once_as(format!("SELECT seq, envelope, payload FROM queue_bodies WHERE seq IN ({list})"))
                .fetch_all(&mut **self)
                .await?;
        Ok(bodies.into_iter().map(|body| (body.seq, body)).collect())
    }

    async fn locked(&mut self, ids: &[CallId]) -> Sql<Vec<Row>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let (columns, list) = (columns!(), quoted(ids.iter().copied()));
        // In one order everywhere: two who lock the same wait for each other once.
        once_as(format!(
            "SELECT {columns} FROM queue_messages m WHERE m.id IN ({list}) ORDER BY m.id FOR UPDATE"
        ))
        .fetch_all(&mut **self)
        .await
    }

    async fn abandoned(&mut self, now_millis: i64, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m FORCE INDEX (queue_messages_leased) WHERE m.state = 1 AND m.leased_until <= ? \
             ORDER BY m.leased_until LIMIT ? FOR UPDATE SKIP LOCKED"
        ))
        .bind(now_millis)
        .bind(rows_max)
        .fetch_all(&mut **self)
        .await
    }

    async fn late(&mut self, now_millis: i64, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m FORCE INDEX (queue_messages_deadline) WHERE m.state = 0 AND m.deadline_at <= ? \
             ORDER BY m.deadline_at LIMIT ? FOR UPDATE SKIP LOCKED"
        ))
        .bind(now_millis)
        .bind(rows_max)
        .fetch_all(&mut **self)
        .await
    }

    async fn dead(&mut self, function: FunctionId, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m FORCE INDEX (queue_messages_function) WHERE m.state = 3 AND m.function_id = ? \
             ORDER BY m.seq LIMIT ? FOR UPDATE"
        ))
        .bind(function.as_str())
        .bind(rows_max)
        .fetch_all(&mut **self)
        .await
    }

    async fn hold(&mut self, seqs: &[i64], until_millis: i64) -> Sql<()> {
        if !seqs.is_empty() {
            let list = numbers(seqs);
            once(format!("UPDATE queue_messages SET leased_until = ? WHERE seq IN ({list})"))
                .bind(until_millis)
                .execute(&mut **self)
                .await?;
        }
        Ok(())
    }

    async fn end(&mut self, seqs: &[i64], state: i64, now_millis: i64) -> Sql<()> {
        let list = numbers(seqs);
        once(format!("UPDATE queue_messages SET state = ?, ended_at = ? WHERE seq IN ({list})"))
            .bind(state)
            .bind(now_millis)
            .execute(&mut **self)
            .await?;
        once(format!("DELETE FROM queue_bodies WHERE seq IN ({list})")).execute(&mut **self).await?;
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
            .execute(&mut **self)
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
                .execute(&mut **self)
                .await?;
        }
        Ok(())
    }

    async fn revive(&mut self, seqs: &[i64], now_millis: i64) -> Sql<()> {
        let list = numbers(seqs);
        once(format!(
            "UPDATE queue_messages SET state = 0, due_at = ?, attempts = 0, deadline_at = NULL, ended_at = NULL \
             WHERE seq IN ({list})"
        ))
        .bind(now_millis)
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn purge(&mut self, purge: Purge, now_millis: i64, rows_max: i64) -> Sql<u64> {
        let (states, ended_before) = filter::purged(purge, now_millis);
        let seqs: Vec<i64> = once_scalar(format!(
            "SELECT seq FROM queue_messages WHERE state IN ({states}) AND ended_at <= ? LIMIT ? FOR UPDATE SKIP LOCKED"
        ))
        .bind(ended_before)
        .bind(rows_max)
        .fetch_all(&mut **self)
        .await?;
        if !seqs.is_empty() {
            let list = numbers(&seqs);
            for table in ["queue_messages", "queue_bodies"] {
                once(format!("DELETE FROM {table} WHERE seq IN ({list})")).execute(&mut **self).await?;
            }
        }
        Ok(seqs.len() as u64)
    }

    async fn row(&mut self, id: CallId) -> Sql<Option<Row>> {
        sqlx::query_as(concat!("SELECT ", columns!(), " FROM queue_messages m WHERE m.id = ?"))
            .bind(id.as_str())
            .fetch_optional(&mut **self)
            .await
    }

    async fn rows(&mut self, list: &List, after_seq: i64, now_millis: i64) -> Sql<Vec<Row>> {
        let filter = filter::listed(list, now_millis);
        let columns = columns!();
        // Left to itself the server sorts all messages of the function.
        let index = match (list.function_id, list.state) {
            (None, _) => "",
            (Some(_), None) => "FORCE INDEX (queue_messages_listed)",
            (Some(_), Some(_)) => "FORCE INDEX (queue_messages_function)",
        };
        once_as(format!(
            "SELECT {columns} FROM queue_messages m {index} WHERE m.seq > ? {filter} ORDER BY m.seq LIMIT ?"
        ))
        .bind(after_seq)
        .bind(list.messages_max as i64)
        .fetch_all(&mut **self)
        .await
    }

    async fn depth(&mut self, now_millis: i64) -> Sql<Vec<Depth>> {
        // A part for each state: none of the messages that were done long ago is looked at.
        let rows: Vec<DepthRow> = sqlx::query_as(
            "SELECT function_id, CAST(sum(queued) AS SIGNED) AS queued, \
             CAST(sum(waiting) - sum(queued) AS SIGNED) AS `delayed`, CAST(sum(running) AS SIGNED) AS running, \
             CAST(sum(dead) AS SIGNED) AS dead, min(oldest) AS oldest_due_at FROM (\
             SELECT function_id, count(*) AS waiting, sum(due_at <= ?) AS queued, 0 AS running, 0 AS dead, \
             min(CASE WHEN due_at <= ? THEN due_at END) AS oldest FROM queue_messages WHERE state = 0 GROUP BY 1 \
             UNION ALL SELECT function_id, 0, 0, count(*), 0, NULL FROM queue_messages WHERE state = 1 GROUP BY 1 \
             UNION ALL SELECT function_id, 0, 0, 0, count(*), NULL FROM queue_messages WHERE state = 3 GROUP BY 1) p \
             GROUP BY 1 ORDER BY 1",
        )
        .bind(now_millis)
        .bind(now_millis)
        .fetch_all(&mut **self)
        .await?;
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
        .fetch_one(&mut **self)
        .await
    }
}

/// Numbers as they stand in a list.
fn numbers(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

/// Ids as they stand in a list.
fn quoted(ids: impl IntoIterator<Item = CallId>) -> String {
    ids.into_iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ")
}
