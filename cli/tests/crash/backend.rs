//! The queue's server, with settings under which what it acknowledges is on disk.

use kiln_testkit::{kafka, mariadb, postgres, redis};

/// What holds the queue.
#[derive(Debug)]
pub(crate) enum Backend {
    /// A file in the balancer's folder: the balancer is the server.
    Sqlite,
    Postgres(postgres::Server, String),
    Mariadb(mariadb::Server, String),
    Redis(redis::Server),
    /// A broker whose records an object store keeps.
    Kafka(kafka::Server),
}

impl Backend {
    pub(crate) async fn postgres() -> Self {
        let server = postgres::Server::start_durable().await;
        let url = server.address.database().await;
        Self::Postgres(server, url)
    }

    pub(crate) async fn mariadb() -> Self {
        let server = mariadb::Server::start_durable().await;
        let url = server.database().await;
        Self::Mariadb(server, url)
    }

    pub(crate) async fn redis() -> Self {
        // Every write to the append-only file is synced.
        Self::Redis(redis::Server::start().await)
    }

    pub(crate) async fn kafka() -> Self {
        Self::Kafka(kafka::Server::start_durable().await)
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres(..) => "postgres",
            Self::Mariadb(..) => "mariadb",
            Self::Redis(_) => "redis",
            Self::Kafka(_) => "kafka",
        }
    }

    /// The queue's URL, if it is not the usual one.
    pub(crate) fn url(&self) -> Option<String> {
        match self {
            Self::Sqlite => None,
            Self::Postgres(_, url) | Self::Mariadb(_, url) => Some(url.clone()),
            Self::Redis(server) => Some(server.url()),
            Self::Kafka(server) => Some(server.url("crash")),
        }
    }

    /// Kills the server at once. False if it has none of its own.
    pub(crate) fn kill(&mut self) -> bool {
        match self {
            Self::Sqlite => return false,
            Self::Postgres(server, _) => server.kill(),
            Self::Mariadb(server, _) => server.stop(),
            Self::Redis(server) => server.kill(),
            Self::Kafka(server) => server.kill(),
        }
        true
    }

    /// Starts it again after [`Self::kill`], with the files that it left.
    pub(crate) async fn begin(&mut self) {
        match self {
            Self::Sqlite => {}
            Self::Postgres(server, _) => server.begin().await,
            Self::Mariadb(server, _) => server.begin().await,
            Self::Redis(server) => server.begin().await,
            Self::Kafka(server) => server.begin().await,
        }
    }
}
