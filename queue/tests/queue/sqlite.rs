//! The queue in a file.

use tempfile::TempDir;

use crate::conformance::for_each_fact;

/// The URL of a file in `home` that is not there yet.
fn url(home: &TempDir) -> String {
    format!("sqlite://{}", home.path().join("new/folder/queue.db").display())
}

macro_rules! tests {
    ($($theme:ident { $($fact:ident)* })*) => {
        $(mod $theme {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let home = tempfile::tempdir().expect("a folder");
                let name = concat!(stringify!($theme), "::", stringify!($fact));
                crate::conformance::run_one(name, crate::conformance::Bench::new(super::url(&home))).await;
            })*
        })*
    };
}
for_each_fact!(tests);
