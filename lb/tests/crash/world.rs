//! What hosts know of each other, and the book of what happened.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kiln_api::Snapshot;
use kiln_lb::detached::{Dispatcher, Enqueuer};
use kiln_lb::route::RouteTable;
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::model::{App, AppInput, FunctionInput, FunctionResource};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;

use crate::model::{Model, now};

/// How long a call takes at most: longer than a lease, now and then.
const TAKES_MAX: Duration = Duration::from_millis(300);
const TAKES_LONG: Duration = Duration::from_secs(5);

/// A balancer that runs.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) enqueuer: Enqueuer,
    /// Cancelled when it is killed.
    pub(crate) dead: CancellationToken,
}

/// One run of a call's function.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) node: String,
    pub(crate) begun: Duration,
    pub(crate) fails: bool,
    pub(crate) ended: Option<Duration>,
}

/// Something that went wrong.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) what: &'static str,
    /// The only node that it concerns.
    pub(crate) node: Option<String>,
    /// The only calls that it concerns.
    pub(crate) calls: Option<Vec<CallId>>,
}

pub(crate) struct Book {
    pub(crate) balancers: BTreeMap<String, Life>,
    /// How agents are asked to stop in order.
    pub(crate) stops: BTreeMap<String, CancellationToken>,
    /// Links that are cut.
    pub(crate) cut: BTreeSet<(String, String)>,
    pub(crate) accepted: Vec<CallId>,
    pub(crate) runs: HashMap<CallId, Vec<Run>>,
    pub(crate) faults: Vec<Fault>,
    /// Functions fail and answers get lost, too.
    pub(crate) is_rough: bool,
    pub(crate) is_calm: bool,
    pub(crate) draws: StdRng,
}

impl Book {
    /// A call's function runs: which of its runs this is, how long it takes, and whether its container ends then instead
    /// of answering.
    pub(crate) fn begun(&mut self, id: CallId, node: &str) -> (usize, Duration, bool) {
        let fails = self.happens(0.05);
        let longest = if self.draws.random_bool(0.03) { TAKES_LONG } else { TAKES_MAX };
        let takes = longest.mul_f64(self.draws.random());
        let run = Run { node: node.to_owned(), begun: now(), fails, ended: None };
        let runs = self.runs.entry(id).or_default();
        runs.push(run);
        (runs.len() - 1, takes, fails)
    }

    pub(crate) fn ended(&mut self, id: CallId, number: usize) {
        let run = self.runs.get_mut(&id).and_then(|runs| runs.get_mut(number)).expect("it has begun");
        run.ended = Some(now());
    }

    /// Draws whether something goes wrong.
    pub(crate) fn happens(&mut self, share: f64) -> bool {
        let happens = self.draws.random_bool(share);
        happens && self.is_rough && !self.is_calm
    }
}

pub(crate) struct Shared {
    pub(crate) queue: Arc<Model>,
    pub(crate) routes: Mutex<RouteTable>,
    pub(crate) app: AppId,
    pub(crate) functions: Vec<FunctionId>,
    pub(crate) balancers: Vec<String>,
    book: Mutex<Book>,
}

impl Shared {
    pub(crate) fn new(seed: u64, balancers: &[&str], functions: usize, is_rough: bool) -> Arc<Self> {
        let input = AppInput { name: "demo".into(), ..AppInput::default() };
        let app = App::create(&input, Timestamp::UNIX_EPOCH).expect("an app");
        let function = |number: usize| {
            let input = FunctionInput {
                name: format!("f{number}"),
                app_id: app.id.as_str().into(),
                image: "me/f:1".into(),
                format: "json".into(),
                ..FunctionInput::default()
            };
            FunctionResource::create(&input, &app, Timestamp::UNIX_EPOCH).expect("a function")
        };
        let functions: Vec<_> = (0..functions).map(function).collect();
        let ids = functions.iter().map(|function| function.id).collect();
        let mut routes = RouteTable::new();
        routes.reset(Snapshot { revision: 1, apps: vec![app.clone()], functions, ..Snapshot::default() });
        let book = Book {
            balancers: BTreeMap::new(),
            stops: BTreeMap::new(),
            cut: BTreeSet::new(),
            accepted: Vec::new(),
            runs: HashMap::new(),
            faults: Vec::new(),
            is_rough,
            is_calm: false,
            draws: StdRng::seed_from_u64(seed ^ 0x5eed),
        };
        Arc::new(Self {
            queue: Arc::new(Model::new(seed)),
            routes: Mutex::new(routes),
            app: app.id,
            functions: ids,
            balancers: balancers.iter().map(ToString::to_string).collect(),
            book: Mutex::new(book),
        })
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
