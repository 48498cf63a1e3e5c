//! The statements of Postgres. Lists travel as arrays, so that each statement is prepared once.

use std::collections::{HashMap, HashSet};

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, NewMessage, Purge};
use sqlx::{AssertSqlSafe, Postgres, Transaction};

use crate::engine::{Horizon, NewRow, Row};
use crate::fair::{Allotment, LANES_MAX, Lane, Place};
use crate::sql::{Again, Body, Buried, DepthRow, KnownRow, LaneRow, Session, columns, filter, keyed};

type Sql<T> = Result<T, sqlx::Error>;

/// Messages with what they carry. The numbers follow the order of the arrays: the rows are sorted before they get
/// theirs. Both inserts run, though only one is asked for its rows:
/// <https://www.postgresql.org/docs/15/queries-with.html#QUERIES-WITH-MODIFYING>.
const INSERT: &str = "WITH given AS (\
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], \
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::bytea[]) WITH ORDINALITY \
    AS g (id, function_id, app_id, priority, due_at, deadline_at, attempts_max, pause_min, pause_max, jitter, \
    payload_bytes, idempotency_key, envelope, payload, place)), \
    stored AS (INSERT INTO queue_messages (id, function_id, app_id, priority, state, due_at, deadline_at, created_at, \
    lease, attempts, attempts_max, pause_min, pause_max, jitter, payload_bytes, idempotency_key) \
    SELECT id, function_id, app_id, priority, 0, due_at, deadline_at, $15, 0, 0, attempts_max, pause_min, pause_max, \
    jitter, payload_bytes, idempotency_key FROM given ORDER BY place ON CONFLICT DO NOTHING RETURNING seq, id), \
    carried AS (INSERT INTO queue_bodies (seq, envelope, payload) \
    SELECT s.seq, g.envelope, g.payload FROM stored s JOIN given g USING (id)) \
    SELECT id FROM stored";

impl Session for Transaction<'_, Postgres> {
    async fn insert(&mut self, new: &[&NewMessage], now_millis: i64) -> Sql<Vec<bool>> {
        let rows: Vec<NewRow> = new.iter().map(|message| NewRow::of(message, now_millis)).collect();
        let stored: Vec<String> = sqlx::query_scalar(INSERT)
            .bind(column(new, |message| message.id.as_str()))
            .bind(column(new, |message| message.function_id.as_str()))
            .bind(column(new, |message| message.app_id.as_str()))
            .bind(column(new, |message| i64::from(message.priority.get())))
            .bind(column(&rows, |row| row.due_at))
            .bind(column(&rows, |row| row.deadline_at))
            .bind(column(&rows, |row| row.attempts_max))
            .bind(column(&rows, |row| row.pause_min))
            .bind(column(&rows, |row| row.pause_max))
            .bind(column(&rows, |row| row.jitter))
            .bind(column(&rows, |row| row.payload_bytes))
            .bind(column(new, |message| message.idempotency_key.as_deref()))
            .bind(column(new, |message| message.envelope.get()))
            .bind(column(new, |message| &message.payload[..]))
            .bind(now_millis)
            .fetch_all(&mut **self)
            .await?;
        let stored: HashSet<&str> = stored.iter().map(String::as_str).collect();
        Ok(column(new, |message| stored.contains(message.id.as_str())))
    }

    async fn known(&mut self, new: &[&NewMessage]) -> Sql<Vec<KnownRow>> {
        let keyed: Vec<(&str, &str)> = keyed(new).collect();
        sqlx::query_as(
            "SELECT id, function_id, idempotency_key FROM queue_messages WHERE id = ANY($1) \
             UNION ALL SELECT m.id, m.function_id, m.idempotency_key FROM unnest($2::text[], $3::text[]) \
             AS k (function_id, idempotency_key) JOIN queue_messages m ON m.function_id = k.function_id COLLATE \"C\" \
             AND m.idempotency_key = k.idempotency_key COLLATE \"C\"",
        )
        .bind(column(new, |message| message.id.as_str()))
        .bind(column(&keyed, |(function, _)| *function))
        .bind(column(&keyed, |(_, key)| *key))
        .fetch_all(&mut **self)
        .await
    }

    async fn unfinished(&mut self) -> Sql<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM queue_messages WHERE state = 0) \
             + (SELECT count(*) FROM queue_messages WHERE state = 1)",
        )
        .fetch_one(&mut **self)
        .await?;
        Ok(count.unsigned_abs())
    }

    async fn lanes(&mut self, from: &[Place], now_millis: i64) -> Sql<Vec<Lane>> {
        // From the first message of one lane to that of the next, each a step in the index.
        let lanes: Vec<LaneRow> = sqlx::query_as(
            "WITH RECURSIVE lane (priority, function_id, due_at, found) AS (\
             SELECT priority, function_id COLLATE \"C\", NULL::bigint, 0::bigint \
             FROM unnest($1::bigint[], $2::text[]) AS f (priority, function_id) \
             UNION ALL \
             SELECT n.priority, n.function_id, n.due_at, l.found + (n.due_at <= $3)::int FROM lane l CROSS JOIN LATERAL (\
             SELECT priority, function_id, due_at FROM queue_messages \
             WHERE state = 0 AND priority = l.priority AND function_id > l.function_id \
             ORDER BY function_id, due_at LIMIT 1) n WHERE l.found < $4) \
             SELECT priority, function_id, due_at FROM lane WHERE due_at <= $3",
        )
        .bind(column(from, |place| i64::from(place.priority.get())))
        .bind(column(from, Place::after))
        .bind(now_millis)
        .bind(LANES_MAX as i64)
        .fetch_all(&mut **self)
        .await?;
        lanes.iter().map(LaneRow::lane).collect()
    }

    async fn pick(&mut self, allotments: &[Allotment], now_millis: i64) -> Sql<Vec<Vec<Row>>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT m.* FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS a (priority, function_id, messages_max) \
             CROSS JOIN LATERAL (SELECT * FROM queue_messages m WHERE m.state = 0 AND m.priority = a.priority \
             AND m.function_id = a.function_id COLLATE \"C\" AND m.due_at <= $4 \
             AND (m.deadline_at IS NULL OR m.deadline_at > $4) \
             ORDER BY m.due_at, m.seq LIMIT a.messages_max FOR UPDATE SKIP LOCKED) m ORDER BY m.due_at, m.seq",
        )
        .bind(column(allotments, |allotment| i64::from(allotment.priority.get())))
        .bind(column(allotments, |allotment| allotment.function_id.as_str()))
        .bind(column(allotments, |allotment| allotment.messages_max as i64))
        .bind(now_millis)
        .fetch_all(&mut **self)
        .await?;
        Ok(by_lane(allotments, rows))
    }

    async fn lease(
        &mut self,
        seqs: &[i64],
        worker: &str,
        now_millis: i64,
        until_millis: i64,
    ) -> Sql<HashMap<i64, Body>> {
        let bodies: Vec<Body> = sqlx::query_as(
            "WITH leased AS (UPDATE queue_messages SET state = 1, lease = lease + 1, attempts = attempts + 1, \
             worker = $2, started_at = $3, leased_until = $4 WHERE seq = ANY($1)) \
             SELECT seq, envelope, payload FROM queue_bodies WHERE seq = ANY($1)",
        )
        .bind(seqs)
        .bind(worker)
        .bind(now_millis)
        .bind(until_millis)
        .fetch_all(&mut **self)
        .await?;
        Ok(bodies.into_iter().map(|body| (body.seq, body)).collect())
    }

    async fn locked(&mut self, ids: &[CallId]) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            // In one order everywhere: two who lock the same wait for each other once.
            " FROM queue_messages m WHERE m.id = ANY($1) ORDER BY m.id FOR UPDATE"
        ))
        .bind(column(ids, CallId::as_str))
        .fetch_all(&mut **self)
        .await
    }

    async fn abandoned(&mut self, now_millis: i64, rows_max: i64) -> Sql<Vec<Row>> {
        sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM queue_messages m WHERE m.state = 1 AND m.leased_until <= $1 ORDER BY m.leased_until LIMIT $2 \
             FOR UPDATE SKIP LOCKED"
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
            " FROM queue_messages m WHERE m.state = 0 AND m.deadline_at IS NOT NULL AND m.deadline_at <= $1 \
             ORDER BY m.deadline_at LIMIT $2 FOR UPDATE SKIP LOCKED"
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
            " FROM queue_messages m WHERE m.state = 3 AND m.function_id = $1 ORDER BY m.seq LIMIT $2 FOR UPDATE"
        ))
        .bind(function.as_str())
        .bind(rows_max)
        .fetch_all(&mut **self)
        .await
    }

    async fn hold(&mut self, seqs: &[i64], until_millis: i64) -> Sql<()> {
        sqlx::query("UPDATE queue_messages SET leased_until = $2 WHERE seq = ANY($1)")
            .bind(seqs)
            .bind(until_millis)
            .execute(&mut **self)
            .await?;
        Ok(())
    }

    async fn end(&mut self, seqs: &[i64], state: i64, now_millis: i64) -> Sql<()> {
        sqlx::query(
            "WITH dropped AS (DELETE FROM queue_bodies WHERE seq = ANY($1)) \
             UPDATE queue_messages SET state = $2, ended_at = $3 WHERE seq = ANY($1)",
        )
        .bind(seqs)
        .bind(state)
        .bind(now_millis)
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn put_back(&mut self, again: &[Again]) -> Sql<()> {
        sqlx::query(
            "UPDATE queue_messages m SET state = 0, due_at = a.due_at, attempts = a.attempts, \
             last_error = coalesce(a.last_error, m.last_error) \
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[]) AS a (seq, due_at, attempts, last_error) \
             WHERE m.seq = a.seq",
        )
        .bind(column(again, |again| again.seq))
        .bind(column(again, |again| again.due_at))
        .bind(column(again, |again| again.attempts))
        .bind(column(again, |again| again.last_error.as_deref()))
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn bury(&mut self, buried: &[Buried], now_millis: i64) -> Sql<()> {
        sqlx::query(
            "UPDATE queue_messages m SET state = 3, ended_at = $3, last_error = b.last_error \
             FROM unnest($1::bigint[], $2::text[]) AS b (seq, last_error) WHERE m.seq = b.seq",
        )
        .bind(column(buried, |buried| buried.seq))
        .bind(column(buried, |buried| buried.last_error.as_str()))
        .bind(now_millis)
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn revive(&mut self, seqs: &[i64], now_millis: i64) -> Sql<()> {
        sqlx::query(
            "UPDATE queue_messages SET state = 0, due_at = $2, attempts = 0, deadline_at = NULL, ended_at = NULL \
             WHERE seq = ANY($1)",
        )
        .bind(seqs)
        .bind(now_millis)
        .execute(&mut **self)
        .await?;
        Ok(())
    }

    async fn purge(&mut self, purge: Purge, now_millis: i64, rows_max: i64) -> Sql<u64> {
        let (states, ended_before) = filter::purged(purge, now_millis);
        let purged: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "WITH purged AS (DELETE FROM queue_messages WHERE seq IN (SELECT seq FROM queue_messages \
             WHERE state >= 2 AND state IN ({states}) AND ended_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING seq), \
             dropped AS (DELETE FROM queue_bodies b USING purged p WHERE b.seq = p.seq) \
             SELECT count(*) FROM purged"
        )))
        .bind(ended_before)
        .bind(rows_max)
        .fetch_one(&mut **self)
        .await?;
        Ok(purged.unsigned_abs())
    }

    async fn row(&mut self, id: CallId) -> Sql<Option<Row>> {
        sqlx::query_as(concat!("SELECT ", columns!(), " FROM queue_messages m WHERE m.id = $1"))
            .bind(id.as_str())
            .fetch_optional(&mut **self)
            .await
    }

    async fn rows(&mut self, list: &List, after_seq: i64, now_millis: i64) -> Sql<Vec<Row>> {
        let filter = filter::listed(list, now_millis);
        let columns = columns!();
        sqlx::query_as(AssertSqlSafe(format!(
            "SELECT {columns} FROM queue_messages m WHERE m.seq > $1 {filter} ORDER BY m.seq LIMIT $2"
        )))
        // Its text differs each time.
        .persistent(false)
        .bind(after_seq)
        .bind(list.messages_max as i64)
        .fetch_all(&mut **self)
        .await
    }

    async fn depth(&mut self, now_millis: i64) -> Sql<Vec<Depth>> {
        // A part for each index: none of the messages that were done long ago is looked at.
        let rows: Vec<DepthRow> = sqlx::query_as(
            "SELECT function_id, sum(queued)::bigint AS queued, (sum(waiting) - sum(queued))::bigint AS delayed, \
             sum(running)::bigint AS running, sum(dead)::bigint AS dead, min(oldest) AS oldest_due_at FROM (\
             SELECT function_id, count(*) AS waiting, count(*) FILTER (WHERE due_at <= $1) AS queued, 0::bigint AS running, \
             0::bigint AS dead, min(due_at) FILTER (WHERE due_at <= $1) AS oldest \
             FROM queue_messages WHERE state = 0 GROUP BY 1 \
             UNION ALL SELECT function_id, 0, 0, count(*), 0, NULL FROM queue_messages WHERE state = 1 GROUP BY 1 \
             UNION ALL SELECT function_id, 0, 0, 0, count(*), NULL FROM queue_messages WHERE state = 3 GROUP BY 1) p \
             GROUP BY 1 ORDER BY 1",
        )
        .bind(now_millis)
        .fetch_all(&mut **self)
        .await?;
        rows.iter().map(DepthRow::depth).collect()
    }

    async fn horizon(&mut self, now_millis: i64) -> Sql<Horizon> {
        sqlx::query_as(
            "SELECT (SELECT min(due_at) FROM queue_messages WHERE state = 0) AS due_at, \
             (SELECT min(due_at) FROM queue_messages WHERE state = 0 AND due_at > $1) AS next_due_at, \
             (SELECT min(leased_until) FROM queue_messages WHERE state = 1) AS lease_ends_at, \
             (SELECT min(deadline_at) FROM queue_messages WHERE state = 0 AND deadline_at IS NOT NULL) AS deadline_at",
        )
        .bind(now_millis)
        .fetch_one(&mut **self)
        .await
    }
}

/// Sorts rows by the lanes that they are of; their order within one stays.
fn by_lane(allotments: &[Allotment], rows: Vec<Row>) -> Vec<Vec<Row>> {
    let place = |row: &Row| {
        allotments.iter().position(|allotment| {
            allotment.function_id.as_str() == row.function_id
                && i64::from(allotment.priority.get()) == row.priority
        })
    };
    let mut lanes: Vec<Vec<Row>> = allotments.iter().map(|_| Vec::new()).collect();
    for row in rows {
        if let Some(place) = place(&row) {
            lanes[place].push(row);
        }
    }
    lanes
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
