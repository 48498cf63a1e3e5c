//! The queue in a topic of a broker that speaks Kafka's protocol.

use kiln_testkit::kafka::Server;

use crate::conformance::for_each_fact;

macro_rules! tests {
    ($($theme:ident { $($fact:ident)* })*) => {
        $(mod $theme {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let server = super::Server::start().await;
                let name = concat!(stringify!($theme), "::", stringify!($fact));
                crate::conformance::run_one(name, crate::conformance::Bench::new(server.url("kiln"))).await;
            })*
        })*
    };
}
for_each_fact!(tests);
