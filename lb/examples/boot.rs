//! How long a balancer takes to have its routes from the catalog's copy on disk, its database being away.
//!
//! `cargo run --release -p kiln-lb --example boot [functions] [rounds]`

use std::time::{Duration, Instant};

use kiln_api::Catalog;
use kiln_lb::route::{disk, follow_with_copy};
use kiln_shared::model::{AppInput, Config, FunctionInput, TriggerInput};
use tokio_util::sync::CancellationToken;

/// Functions of one app.
const APP_FUNCTIONS: usize = 100;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let functions = numbers.next().transpose()?.unwrap_or(100_000);
    let rounds = numbers.next().transpose()?.unwrap_or(5).max(1);
    let home = tempfile::tempdir()?;
    let copy = home.path().join(disk::FILE_NAME);
    let catalog = Catalog::open("sqlite://:memory:").await?;
    deploy(&catalog, functions).await?;

    let (_, task) = follow_with_copy(catalog, copy.clone()).await?;
    let stop = CancellationToken::new();
    stop.cancel();
    let begin = Instant::now();
    task.run(stop).await;
    let written = begin.elapsed();

    let (mut read, mut boot) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begin = Instant::now();
        drop(disk::read(&copy)?);
        read.push(begin.elapsed());
        let begin = Instant::now();
        // Nobody listens there.
        let away = Catalog::open("postgres://kiln@127.0.0.1:1/kiln").await?;
        let (mut followed, _) = follow_with_copy(away, copy.clone()).await?;
        boot.push(begin.elapsed());
        assert_eq!(followed.routes.routes().functions_len(), functions);
    }
    let mebibytes = std::fs::metadata(&copy)?.len() as f64 / f64::from(1 << 20);
    println!("{functions} functions, as many triggers: {mebibytes:.1} MiB, written in {written:?}");
    println!("read in {}", range(read));
    println!("from the start to routes in {}", range(boot));
    Ok(())
}

async fn deploy(catalog: &Catalog, functions: usize) -> Result<(), kiln_api::StoreError> {
    let mut app = None;
    for number in 0..functions {
        if number % APP_FUNCTIONS == 0 {
            let config = Config::from([("DATABASE".to_owned(), "db.internal:5432".to_owned())]);
            let name = format!("app-{number}");
            app = Some(catalog.create_app(&AppInput { name, config, ..AppInput::default() }).await?);
        }
        let app_id = app.as_ref().map(|app| app.id.to_string()).unwrap_or_default();
        let function = FunctionInput {
            name: format!("function-{number}"),
            app_id: app_id.clone(),
            image: format!("registry.internal:5000/team/function-{number}:1.0.0"),
            config: Config::from([("LEVEL".to_owned(), "info".to_owned())]),
            ..FunctionInput::default()
        };
        let function = catalog.create_function(&function).await?;
        let trigger = TriggerInput {
            name: format!("trigger-{number}"),
            app_id,
            fn_id: function.id.to_string(),
            kind: "http".to_owned(),
            source: format!("/orders/{number}"),
            ..TriggerInput::default()
        };
        catalog.create_trigger(&trigger).await?;
    }
    Ok(())
}

/// Median and range.
fn range(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{:?} [{:?}-{:?}]", times[times.len() / 2], times[0], times[times.len() - 1])
}
