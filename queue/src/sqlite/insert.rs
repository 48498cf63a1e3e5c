//! Many rows as one statement: one way to the database's thread and back per group, statements prepared once.

use std::sync::LazyLock;

use kiln_shared::queue::NewMessage;
use sqlx::Arguments;
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;

use crate::engine::NewRow;

/// Rows per statement. A batch takes the smallest that holds it and leaves the other rows empty.
const ROWS: [usize; 6] = [1, 4, 16, 64, 160, 512];
/// Most rows of one statement.
pub(super) const ROWS_MAX: usize = ROWS[ROWS.len() - 1];

const MESSAGE_COLUMNS: [&str; 17] = [
    "seq",
    "id",
    "function_id",
    "app_id",
    "priority",
    "state",
    "due_at",
    "deadline_at",
    "created_at",
    "lease",
    "attempts",
    "attempts_max",
    "pause_min",
    "pause_max",
    "jitter",
    "payload_bytes",
    "idempotency_key",
];
const BODY_COLUMNS: [&str; 3] = ["seq", "envelope", "payload"];

static MESSAGES: LazyLock<[String; ROWS.len()]> =
    LazyLock::new(|| ROWS.map(|rows| insert_rows_sql("queue_messages", &MESSAGE_COLUMNS, rows)));
static BODIES: LazyLock<[String; ROWS.len()]> =
    LazyLock::new(|| ROWS.map(|rows| insert_rows_sql("queue_bodies", &BODY_COLUMNS, rows)));

/// A statement with its values. Rows that are there already stay as they are.
pub(super) struct Insert {
    pub(super) sql: &'static str,
    pub(super) values: SqliteArguments,
}

/// The insert of up to [`ROWS_MAX`] messages, numbered from `first_seq` on.
pub(super) fn messages(new: &[&NewMessage], first_seq: i64, now_millis: i64) -> Result<Insert, sqlx::Error> {
    insert(&MESSAGES, MESSAGE_COLUMNS.len(), new.len(), |place, values| {
        let message = new[place];
        let row = NewRow::of(message, now_millis);
        values.add(first_seq + place as i64)?;
        values.add(message.id.as_str())?;
        values.add(message.function_id.as_str())?;
        values.add(message.app_id.as_str())?;
        values.add(i64::from(message.priority.get()))?;
        values.add(crate::engine::stored::WAITING)?;
        values.add(row.due_at)?;
        values.add(row.deadline_at)?;
        values.add(now_millis)?;
        values.add(0_i64)?;
        values.add(0_i64)?;
        values.add(row.attempts_max)?;
        values.add(row.pause_min)?;
        values.add(row.pause_max)?;
        values.add(row.jitter)?;
        values.add(row.payload_bytes)?;
        values.add(message.idempotency_key.as_deref())
    })
}

/// The insert of what up to [`ROWS_MAX`] messages carry.
pub(super) fn bodies(new: &[(i64, &NewMessage)]) -> Result<Insert, sqlx::Error> {
    insert(&BODIES, BODY_COLUMNS.len(), new.len(), |place, values| {
        let (seq, message) = new[place];
        values.add(seq)?;
        values.add(message.envelope.get())?;
        values.add(&message.payload[..])
    })
}

fn insert(
    statements: &'static [String; ROWS.len()],
    columns: usize,
    rows: usize,
    bind: impl Fn(usize, &mut SqliteArguments) -> Result<(), BoxDynError>,
) -> Result<Insert, sqlx::Error> {
    let class = ROWS.iter().position(|class| *class >= rows).unwrap_or(ROWS.len() - 1);
    let mut values = SqliteArguments::default();
    values.reserve(ROWS[class] * columns, 0);
    (0..rows).try_for_each(|place| bind(place, &mut values)).map_err(sqlx::Error::Encode)?;
    for _ in rows * columns..ROWS[class] * columns {
        values.add(None::<i64>).map_err(sqlx::Error::Encode)?;
    }
    Ok(Insert { sql: &statements[class], values })
}

/// Text of a statement that inserts up to `rows` rows; those whose first value is absent are left out.
fn insert_rows_sql(table: &str, columns: &[&str], rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns.len()].join(", "));
    let rows = vec![row; rows].join(", ");
    let columns = columns.join(", ");
    format!(
        "INSERT INTO {table} ({columns}) SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING"
    )
}
