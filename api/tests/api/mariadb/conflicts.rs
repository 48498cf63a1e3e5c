//! Others in the way: what is undone for their sake is done again.

use std::time::Duration;

use kiln_api::Catalog;
use kiln_shared::model::{AppInput, FunctionInput};
use kiln_testkit::mariadb::Server;
use kiln_testkit::until;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};
use tokio::time::timeout;

/// A number that the server counts.
async fn counted(admin: &mut MySqlConnection, name: &str) -> i64 {
    let query =
        "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status WHERE variable_name = ?";
    sqlx::query_scalar(query).bind(name).fetch_one(admin).await.expect("the server answers")
}

async fn a_function(catalog: &Catalog) -> String {
    let app = AppInput { name: "a".to_owned(), ..AppInput::default() };
    let app = catalog.create_app(&app).await.expect("created");
    let function = FunctionInput {
        name: "f".to_owned(),
        app_id: app.id.to_string(),
        image: "me/image:1".to_owned(),
        ..FunctionInput::default()
    };
    catalog.create_function(&function).await.expect("created").id.to_string()
}

fn memory(memory_mib: u64) -> FunctionInput {
    FunctionInput { memory_mib, ..FunctionInput::default() }
}

#[tokio::test]
async fn a_lock_held_too_long_is_waited_for_again() {
    let server = Server::start().await;
    let url = server.database().await;
    let catalog = Catalog::open(&url).await.expect("opens");
    let function = a_function(&catalog).await;
    let mut admin = server.connect("mysql").await.expect("the server answers");
    let mut other = MySqlConnection::connect(&url).await.expect("the server answers");
    other.execute("START TRANSACTION; SELECT 1 FROM feed FOR UPDATE").await.expect("the lock");
    let before = counted(&mut admin, "innodb_row_lock_waits").await;
    let changing = {
        let catalog = catalog.clone();
        tokio::spawn(async move { catalog.update_function(&function, &memory(200)).await })
    };
    until("it waits a second time", async || {
        (counted(&mut admin, "innodb_row_lock_waits").await > before + 1).then_some(())
    })
    .await;
    other.execute("ROLLBACK").await.expect("it is let go");
    let changed = changing.await.expect("no panic").expect("changed after all");
    assert_eq!(changed.memory_mib, 200);
    assert_eq!(catalog.subscribe().borrow().revision, 3);
}

#[tokio::test]
async fn a_change_that_was_ended_for_a_deadlock_is_made_again() {
    let server = Server::start().await;
    let url = server.database().await;
    let catalog = Catalog::open(&url).await.expect("opens");
    let function = a_function(&catalog).await;
    let mut admin = server.connect("mysql").await.expect("the server answers");
    let mut other = MySqlConnection::connect(&url).await.expect("the server answers");
    // Of two that wait for each other the one ends that has changed less.
    let much = (0..200).map(|number| format!("('{number}')")).collect::<Vec<_>>().join(", ");
    for sql in [
        "SET SESSION innodb_lock_wait_timeout = 30".to_owned(),
        "START TRANSACTION".to_owned(),
        format!("INSERT INTO locks (name) VALUES {much}"),
        "SELECT id FROM fns FOR UPDATE".to_owned(),
    ] {
        other.execute(AssertSqlSafe(sql)).await.expect("it runs");
    }
    let before = counted(&mut admin, "innodb_deadlocks").await;
    let changing = {
        let catalog = catalog.clone();
        tokio::spawn(async move { catalog.update_function(&function, &memory(200)).await })
    };
    until("it has the feed and waits for the function", async || {
        (counted(&mut admin, "innodb_row_lock_current_waits").await > 0).then_some(())
    })
    .await;
    other.execute("SELECT 1 FROM feed FOR UPDATE").await.expect("the other one gives way");
    assert!(counted(&mut admin, "innodb_deadlocks").await > before);
    other.execute("ROLLBACK").await.expect("it ends");
    let changed = timeout(Duration::from_secs(20), changing).await.expect("in time").expect("no panic");
    assert_eq!(changed.expect("changed after all").memory_mib, 200);
    assert_eq!(catalog.subscribe().borrow().revision, 3, "no revision was lost");
}
