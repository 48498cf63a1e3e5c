//! The schema, which MySQL and MariaDB do not change in transactions.

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::mysql::MySqlPool;

/// Every statement of them can run again where it ran before: a start that was cut off is taken up again.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/mysql");

/// Brings the schema up to date.
pub(super) async fn run(pool: &MySqlPool) -> Result<(), MigrateError> {
    match MIGRATIONS.run(pool).await {
        Err(MigrateError::Dirty(_)) => {
            forget_unfinished(pool).await?;
            MIGRATIONS.run(pool).await
        }
        done => done,
    }
}

/// Forgets the steps that were begun and not ended, so that they are done again. Under the lock of all who migrate,
/// nobody is at one now.
async fn forget_unfinished(pool: &MySqlPool) -> Result<(), MigrateError> {
    let mut connection = pool.acquire().await?;
    connection.lock().await?;
    let forget = sqlx::query("DELETE FROM _sqlx_migrations WHERE NOT success");
    let forgotten = forget.execute(&mut *connection).await;
    connection.unlock().await?;
    forgotten?;
    Ok(())
}
