//! Clients that never stop calling, and their book of what they were answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Client, StatusCode};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Clients that call at the same time.
const CLIENTS: u64 = 6;
/// Longest pause between two calls of a client.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long most calls take at most, and how long a few do, in milliseconds.
const TAKES_MAX_MILLIS: u64 = 200;
const TAKES_LONG_MILLIS: u64 = 4000;
/// The share of the few.
const LONG_SHARE: f64 = 0.02;
/// A call without an answer for so long is not accepted.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What clients were answered.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Ids of calls that were answered 202.
    pub(crate) accepted: Vec<String>,
    /// Calls that were answered 503.
    pub(crate) refused: usize,
    /// Calls whose connection broke, or that nobody took: accepted or not.
    pub(crate) unanswered: usize,
}

/// Clients under way.
pub(crate) struct Clients {
    book: Arc<Mutex<Book>>,
    calling: JoinSet<()>,
    stop: CancellationToken,
}

impl Clients {
    /// Calls these URLs from now on, as drawn from a seed.
    pub(crate) fn start(seed: u64, urls: &[String]) -> Self {
        let (book, stop, mut calling) = (Arc::default(), CancellationToken::new(), JoinSet::new());
        for number in 0..CLIENTS {
            let draws = StdRng::seed_from_u64(seed * CLIENTS + number);
            let calls = call(draws, urls.to_vec(), Arc::clone(&book));
            let stopped = stop.clone().run_until_cancelled_owned(calls);
            calling.spawn(async move { stopped.await.unwrap_or_default() });
        }
        Self { book, calling, stop }
    }

    /// Lets them stop. A call under way is unanswered.
    pub(crate) async fn stop(mut self) -> Book {
        self.stop.cancel();
        while self.calling.join_next().await.is_some() {}
        std::mem::take(&mut *self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn call(mut draws: StdRng, urls: Vec<String>, book: Arc<Mutex<Book>>) {
    let client = Client::builder().no_proxy().timeout(ANSWER_WITHIN).build().expect("a client");
    loop {
        let url = &urls[draws.random_range(0..urls.len())];
        let longest = if draws.random_bool(LONG_SHARE) { TAKES_LONG_MILLIS } else { TAKES_MAX_MILLIS };
        let body = format!("sleep {}", draws.random_range(0..longest));
        let request = client.post(url).header("Fn-Invoke-Type", "detached").body(body);
        let answer = request.send().await;
        {
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            match answer.map(|answer| (answer.status(), answer.headers().get("Fn-Call-Id").cloned())) {
                Ok((StatusCode::ACCEPTED, id)) => {
                    let id = id.expect("an id").to_str().expect("text").to_owned();
                    book.accepted.push(id);
                }
                Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => book.refused += 1,
                Ok((status, _)) => panic!("a detached call is answered {status}"),
                Err(_) => book.unanswered += 1,
            }
        }
        tokio::time::sleep(PAUSE_MAX.mul_f64(draws.random())).await;
    }
}
