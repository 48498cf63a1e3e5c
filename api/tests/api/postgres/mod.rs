//! The catalog on a real Postgres server: the same suite as on SQLite, and what only a server does.

mod outage;
mod tls;
mod urls;

use std::process::Command;
use std::sync::OnceLock;

use kiln_testkit::postgres::{Address, Server};

/// Where the server is that the suite shall run on; absent, it runs on SQLite.
const GIVEN: &str = "KILN_TEST_POSTGRES";

/// The server that this process's tests run on, if they run on one.
pub(crate) fn given() -> Option<&'static Address> {
    static ADDRESS: OnceLock<Option<Address>> = OnceLock::new();
    ADDRESS.get_or_init(|| std::env::var_os(GIVEN).map(|folder| Address(folder.into()))).as_ref()
}

/// Not run here: what is no matter of the database, or takes thousands of changes and was shown on SQLite.
const SKIPPED: [&str; 6] =
    ["postgres::", "sqlite::", "openapi::", "annotations::", "every_rule_of_create", "who_is_too_far_behind"];

/// Runs this very program once more, in one process on one server: to make a server for each test takes longer
/// than all of them.
#[tokio::test]
async fn the_suite_passes() {
    let server = Server::start().await;
    let program = std::env::current_exe().expect("a test has a program");
    let run = Command::new(program)
        .args(SKIPPED.iter().flat_map(|name| ["--skip", name]))
        .args(["--test-threads", "4"])
        .env(GIVEN, &server.address.0)
        .output()
        .expect("it runs");
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}{}", String::from_utf8_lossy(&run.stderr));
    let passed = output.split("test result: ok. ").nth(1).and_then(|rest| rest.split(' ').next());
    let passed: usize = passed.and_then(|count| count.parse().ok()).expect("a count");
    assert!(passed > 60, "only {passed} tests ran");
}
