//! Several balancers on one database: each sees what the others change, soon and in order.

use std::time::{Duration, Instant};

use kiln_api::{Catalog, Change};
use kiln_shared::model::AppInput;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Api, Shared};

/// The promise.
const SEEN_WITHIN: Duration = Duration::from_millis(300);

fn app(name: &str) -> AppInput {
    AppInput { name: name.to_owned(), ..AppInput::default() }
}

#[tokio::test]
async fn a_change_is_seen_by_every_balancer_in_time() {
    let database = Shared::new().await;
    let writer = Catalog::open(&database.url).await.expect("opens");
    let others = [Api::open(&database.url).await, Api::open(&database.url).await];
    let mut times = Vec::new();
    for number in 1..=9 {
        let mut notices = others.each_ref().map(|other| other.catalog.subscribe());
        let begin = Instant::now();
        writer.create_app(&app(&format!("a{number}"))).await.expect("created");
        for notice in &mut notices {
            let seen = notice.wait_for(|latest| latest.revision == number);
            timeout(Duration::from_secs(20), seen).await.expect("seen at last").expect("lives");
        }
        times.push(begin.elapsed());
    }
    times.sort();
    // The median: one slow moment of the machine is not the catalog's.
    assert!(times[4] <= SEEN_WITHIN, "{times:?}");
    for other in others {
        assert_eq!(other.get("/v2/apps").await.ok().names().len(), 9);
    }
}

/// Writers of several processes at once, and a reader that follows: no revision is missing, none comes late.
#[tokio::test]
async fn the_feed_has_no_gaps_whoever_writes() {
    const WRITERS: usize = 3;
    const APPS_EACH: usize = 25;
    let database = Shared::new().await;
    let reader = Catalog::open(&database.url).await.expect("opens");
    let mut writing = JoinSet::new();
    for writer in 0..WRITERS {
        let catalog = Catalog::open(&database.url).await.expect("opens");
        writing.spawn(async move {
            for number in 0..APPS_EACH {
                catalog.create_app(&app(&format!("w{writer}-{number}"))).await.expect("created");
            }
            // Every other writer's names are taken.
            catalog.create_app(&app("w0-0")).await.expect_err("the name is taken");
        });
    }
    let (mut notices, mut revision, mut seen) = (reader.subscribe(), 0, Vec::new());
    while seen.len() < WRITERS * APPS_EACH {
        let newer = notices.wait_for(|latest| latest.revision > revision);
        timeout(Duration::from_secs(20), newer).await.expect("more comes").expect("lives");
        let news = reader.changes_since(revision).await.expect("known changes");
        // Each creation is one revision: what is not told now would never be.
        assert_eq!(news.changes.len() as u64, news.revision - revision);
        revision = news.revision;
        seen.extend(news.changes.into_iter().map(|change| match change {
            Change::App(app) => app.name,
            other => panic!("{other:?}"),
        }));
    }
    writing.join_all().await;
    assert_eq!(revision, (WRITERS * APPS_EACH) as u64);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), WRITERS * APPS_EACH);
}

#[tokio::test]
async fn one_of_many_who_want_a_name_gets_it() {
    let database = Shared::new().await;
    let mut writing = JoinSet::new();
    for _ in 0..4 {
        let catalog = Catalog::open(&database.url).await.expect("opens");
        writing.spawn(
            async move { catalog.create_app(&app("wanted")).await.map_err(|error| error.to_string()) },
        );
    }
    let results = writing.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    for refused in results.into_iter().filter_map(Result::err) {
        assert_eq!(refused, "App already exists");
    }
}

#[tokio::test]
async fn all_who_share_a_database_know_it_by_one_id() {
    let (one, other) = (Shared::new().await, Shared::new().await);
    let id = async |url: &str| {
        let catalog = Catalog::open(url).await.expect("opens");
        let changes = catalog.changes_since(0).await.expect("changes").database;
        assert_eq!(catalog.snapshot().await.expect("a snapshot").database, changes);
        changes
    };
    assert_eq!(id(&one.url).await, id(&one.url).await);
    assert_ne!(id(&one.url).await, id(&other.url).await);
}
