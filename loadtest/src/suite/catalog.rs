//! A large catalog: how long a balancer takes to have its routes, and how late it sees a change, on each database.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kiln_api::{Catalog, Contents, Existing};
use kiln_lb::route::{Followed, disk, follow, follow_with_copy};
use kiln_shared::model::{App, AppInput, Config, FunctionInput, FunctionResource, Trigger, TriggerInput};
use kiln_testkit::{mariadb, postgres};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Bench;
use crate::cost::CpuMeter;
use crate::process::interrupted;
use crate::report::{Goal, Row};

/// Functions of one app.
const APP_FUNCTIONS: usize = 100;
/// Changes that are waited for.
const CHANGES: usize = 300;
/// Pause between two of them, so that none is noticed together with the one before; no multiple of any poll's.
const CHANGE_PAUSE: Duration = Duration::from_millis(37);
/// Longest wait for one.
const SEEN_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether one is there.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// Balancers that follow a database, beside the one that changes it.
const FOLLOWERS: usize = 2;
/// How long a database is watched while nothing changes.
const IDLE: Duration = Duration::from_secs(5);
/// A database that nobody listens at.
const AWAY: &str = "postgres://kiln@127.0.0.1:1/kiln";

/// Runs it.
///
/// # Errors
/// If a database cannot be started, or does not do what it is asked.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let runtime = Runtime::new().context("no threads")?;
    runtime.block_on(async {
        let contents = contents(bench.functions)?;
        let mut rows = Vec::new();
        let sqlite = bench.folder.join("kiln.db");
        let postgres = postgres::Server::start_durable().await;
        let mariadb = mariadb::Server::start_durable().await;
        for (name, url) in [
            ("SQLite", format!("sqlite://{}", sqlite.display())),
            ("Postgres", postgres.address.url("postgres")),
            ("MariaDB", mariadb.database().await),
        ] {
            let place = Place { name, url, contents: &contents, folder: &bench.folder, rounds: bench.rounds };
            rows.extend(place.measure().await.with_context(|| name.to_owned())?);
        }
        rows.push(idle(&mariadb).await?);
        Ok(rows)
    })
}

/// One database.
struct Place<'a> {
    name: &'static str,
    url: String,
    contents: &'a Contents,
    folder: &'a Path,
    rounds: usize,
}

impl Place<'_> {
    async fn measure(&self) -> Result<Vec<Row>> {
        let (name, functions) = (self.name, self.contents.catalog.functions.len());
        let writer = Catalog::open(&self.url).await?;
        let begin = Instant::now();
        writer.restore(self.contents, Existing::Refused, &|_| {}).await?;
        let imported = begin.elapsed();
        let (mut boots, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            ensure!(!interrupted(), "interrupted");
            let begin = Instant::now();
            let catalog = Catalog::open(&self.url).await?;
            let (followed, _) = follow(catalog.clone()).await?;
            boots.push(begin.elapsed());
            self.check(followed)?;
            catalog.close().await;
        }
        let copy = self.write_copy(&writer).await?;
        for _ in 0..self.rounds {
            ensure!(!interrupted(), "interrupted");
            let begin = Instant::now();
            let away = Catalog::open(AWAY).await?;
            let (followed, _) = follow_with_copy(away, copy.clone()).await?;
            copies.push(begin.elapsed());
            self.check(followed)?;
        }
        let seen = self.changes(&writer).await?;
        writer.close().await;
        let millis = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        Ok(vec![
            Row::of(format!("catalog, {name}: import of {functions} functions (s)"), imported.as_secs_f64()),
            Row::of(format!("catalog, {name}: boot to routes (s)"), median(&mut boots).as_secs_f64())
                .goal(Goal::ValueMax(5.0)),
            Row::of(
                format!("catalog, {name}: boot from the copy on disk (s)"),
                median(&mut copies).as_secs_f64(),
            )
            .goal(Goal::ValueMax(1.0)),
            Row::of(format!("catalog, {name}: change seen by {FOLLOWERS} others, p50 (ms)"), {
                millis(seen[seen.len() / 2])
            }),
            Row::of(
                format!("catalog, {name}: change seen by {FOLLOWERS} others, p99 (ms)"),
                millis(seen[seen.len() * 99 / 100]),
            )
            .goal(Goal::ValueMax(300.0)),
        ])
    }

    fn check(&self, mut followed: Followed) -> Result<()> {
        let known = followed.routes.routes().functions_len();
        ensure!(known == self.contents.catalog.functions.len(), "only {known} functions are known");
        Ok(())
    }

    async fn write_copy(&self, catalog: &Catalog) -> Result<PathBuf> {
        let copy = self.folder.join(format!("{}.{}", self.name, disk::FILE_NAME));
        let (_, task) = follow_with_copy(catalog.clone(), copy.clone()).await?;
        let stop = CancellationToken::new();
        stop.cancel();
        task.run(stop).await;
        Ok(copy)
    }

    /// How long each change took from its request to the routes of all others, sorted.
    async fn changes(&self, writer: &Catalog) -> Result<Vec<Duration>> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut followers = Vec::new();
        let mut catalogs = Vec::new();
        for _ in 0..FOLLOWERS {
            let catalog = Catalog::open(&self.url).await?;
            let (followed, task) = follow(catalog.clone()).await?;
            tasks.spawn(task.run(stop.clone()));
            followers.push(followed);
            catalogs.push(catalog);
        }
        let function = self.contents.catalog.functions[0].id.to_string();
        let mut seen = Vec::with_capacity(CHANGES);
        for number in 0..CHANGES {
            ensure!(!interrupted(), "interrupted");
            tokio::time::sleep(CHANGE_PAUSE).await;
            let change = FunctionInput { memory_mib: 64 + number as u64 % 64, ..FunctionInput::default() };
            let begin = Instant::now();
            writer.update_function(&function, &change).await?;
            let revision = writer.subscribe().borrow().revision;
            while followers.iter_mut().any(|followed| followed.routes.routes().revision() < revision) {
                ensure!(begin.elapsed() < SEEN_MAX, "change {number} was never seen");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            seen.push(begin.elapsed());
        }
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        for catalog in catalogs {
            catalog.close().await;
        }
        seen.sort();
        Ok(seen)
    }
}

/// What balancers that wait for changes cost a server that cannot tell of them.
async fn idle(server: &mariadb::Server) -> Result<Row> {
    let url = server.database().await;
    let mut catalogs = Vec::new();
    for _ in 0..FOLLOWERS {
        catalogs.push(Catalog::open(&url).await?);
    }
    let meter = CpuMeter::start(&[server.pid()]);
    let begin = Instant::now();
    tokio::time::sleep(IDLE).await;
    let millis = meter.used().as_secs_f64() * 1_000.0 / begin.elapsed().as_secs_f64();
    for catalog in catalogs {
        catalog.close().await;
    }
    Ok(Row::of("catalog, MariaDB: CPU for an idle balancer (ms per s)", millis / FOLLOWERS as f64))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A catalog of so many functions, each with a trigger.
fn contents(functions: usize) -> Result<Contents> {
    let (mut contents, now) = (Contents::default(), Timestamp::from_second(1_800_000_000)?);
    let catalog = &mut contents.catalog;
    for number in 0..functions {
        if number % APP_FUNCTIONS == 0 {
            let config = Config::from([("DATABASE".to_owned(), "db.internal:5432".to_owned())]);
            let input = AppInput { name: format!("app-{number}"), config, ..AppInput::default() };
            catalog.apps.push(App::create(&input, now)?);
        }
        let app = catalog.apps.last().expect("the first one came before");
        let input = FunctionInput {
            name: format!("function-{number}"),
            app_id: app.id.to_string(),
            image: format!("registry.internal:5000/team/function-{number}:1.0.0"),
            config: Config::from([("LEVEL".to_owned(), "info".to_owned())]),
            ..FunctionInput::default()
        };
        let function = FunctionResource::create(&input, app, now)?;
        let input = TriggerInput {
            name: format!("trigger-{number}"),
            app_id: app.id.to_string(),
            fn_id: function.id.to_string(),
            kind: "http".to_owned(),
            source: format!("/orders/{number}"),
            ..TriggerInput::default()
        };
        catalog.triggers.push(Trigger::create(&input, app.id, &function, now)?);
        catalog.functions.push(function);
    }
    Ok(contents)
}
