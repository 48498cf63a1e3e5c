//! The catalog as calls see it: immutable once published.
//!
//! Owns the lookups of the data path. Function ids are made by the catalog, so they are hashed quickly; app
//! names and sources are chosen by people, so their hash is keyed.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use kiln_shared::function::Function;
use kiln_shared::ids::{AppId, FunctionId, TriggerId};
use kiln_shared::model::Trigger;
use xxhash_rust::xxh3::xxh3_64;

use super::RouteError;
use super::path::Target;
use crate::cow::CowTable;

/// A trigger and the function it leads to.
#[derive(Debug)]
pub struct TriggerRoute {
    /// The trigger.
    pub id: TriggerId,
    /// The name of its app.
    pub app_name: Arc<str>,
    /// Its source, with the leading slash.
    pub source: Arc<str>,
    /// What runs.
    pub function: Arc<Function>,
}

/// A trigger of the type `schedule` and the function that it calls.
#[derive(Debug)]
pub struct ScheduleRoute {
    /// The trigger.
    pub trigger: Arc<Trigger>,
    /// What runs.
    pub function: Arc<Function>,
}

/// Where a call path leads.
#[derive(Debug, Clone, Copy)]
pub enum Route<'a> {
    /// To a function by its id.
    Function(&'a Arc<Function>),
    /// To a function by a trigger.
    Trigger(&'a Arc<TriggerRoute>),
    /// To no call.
    Other,
}

/// One state of the catalog.
#[derive(Debug, Clone)]
pub struct Routes {
    revision: u64,
    functions: CowTable<Arc<Function>>,
    triggers: CowTable<Arc<TriggerRoute>>,
    schedules: CowTable<Arc<ScheduleRoute>>,
    apps: CowTable<(Arc<str>, AppId)>,
    names_hasher: RandomState,
}

impl Routes {
    pub(super) fn empty() -> Self {
        Self {
            revision: 0,
            functions: CowTable::new(),
            triggers: CowTable::new(),
            schedules: CowTable::new(),
            apps: CowTable::new(),
            names_hasher: RandomState::new(),
        }
    }

    /// The catalog's revision that this is.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Number of functions.
    pub fn functions_len(&self) -> usize {
        self.functions.len()
    }

    /// Number of triggers that are paths.
    pub fn triggers_len(&self) -> usize {
        self.triggers.len()
    }

    /// Finds what a path leads to. O(1).
    ///
    /// # Errors
    /// Nothing has this name; which part of it is unknown, is told apart.
    pub fn resolve(&self, target: Target<'_>) -> Result<Route<'_>, RouteError> {
        match target {
            Target::Invoke { function } => {
                let id = str::from_utf8(function).ok().and_then(|text| text.parse().ok());
                self.function(&id.ok_or(RouteError::FunctionNotFound)?).map(Route::Function)
            }
            Target::Trigger { app, source } => self.trigger(app, source).map(Route::Trigger),
            Target::Other => Ok(Route::Other),
        }
    }

    /// Finds a function by its id. O(1).
    ///
    /// # Errors
    /// [`RouteError::FunctionNotFound`].
    pub fn function(&self, id: &FunctionId) -> Result<&Arc<Function>, RouteError> {
        self.functions
            .get(function_hash(id), |function| function.spec.id == *id)
            .ok_or(RouteError::FunctionNotFound)
    }

    /// All functions, in no order.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.iter()
    }

    /// Finds a trigger by its app's name and its exact source, both decoded. O(1).
    ///
    /// # Errors
    /// [`RouteError::AppNotFound`] or [`RouteError::TriggerNotFound`].
    pub fn trigger(&self, app_name: &[u8], source: &[u8]) -> Result<&Arc<TriggerRoute>, RouteError> {
        self.triggers.get(self.trigger_hash(app_name, source), is_trigger(app_name, source)).ok_or_else(
            || {
                let app = self.apps.get(self.name_hash(app_name), |(name, _)| name.as_bytes() == app_name);
                if app.is_some() { RouteError::TriggerNotFound } else { RouteError::AppNotFound }
            },
        )
    }

    /// All schedules, in no order.
    pub fn schedules(&self) -> impl Iterator<Item = &Arc<ScheduleRoute>> {
        self.schedules.iter()
    }

    pub(super) fn set_revision(&mut self, revision: u64) {
        self.revision = revision;
    }

    pub(super) fn insert_app(&mut self, name: &Arc<str>, id: AppId) {
        let hash = self.name_hash(name.as_bytes());
        self.apps.insert(hash, (Arc::clone(name), id), |(other, _)| other == name);
    }

    /// Removes the app, unless the name belongs to another one by now.
    pub(super) fn remove_app(&mut self, name: &str, id: AppId) {
        self.apps.remove(self.name_hash(name.as_bytes()), |(_, other)| *other == id);
    }

    pub(super) fn insert_function(&mut self, function: Arc<Function>) {
        let id = function.spec.id;
        self.functions.insert(function_hash(&id), function, |other| other.spec.id == id);
    }

    pub(super) fn remove_function(&mut self, id: &FunctionId) {
        self.functions.remove(function_hash(id), |other| other.spec.id == *id);
    }

    pub(super) fn insert_trigger(&mut self, trigger: Arc<TriggerRoute>) {
        let (app_name, source) = (Arc::clone(&trigger.app_name), Arc::clone(&trigger.source));
        let hash = self.trigger_hash(app_name.as_bytes(), source.as_bytes());
        self.triggers.insert(hash, trigger, is_trigger(app_name.as_bytes(), source.as_bytes()));
    }

    /// Removes the trigger from this place, unless the place belongs to another one by now.
    pub(super) fn remove_trigger(&mut self, id: TriggerId, app_name: &str, source: &str) {
        let hash = self.trigger_hash(app_name.as_bytes(), source.as_bytes());
        self.triggers.remove(hash, |trigger| trigger.id == id);
    }

    pub(super) fn insert_schedule(&mut self, schedule: ScheduleRoute) {
        let id = schedule.trigger.id;
        self.schedules.insert(xxh3_64(id.as_bytes()), Arc::new(schedule), |other| other.trigger.id == id);
    }

    pub(super) fn remove_schedule(&mut self, id: TriggerId) {
        self.schedules.remove(xxh3_64(id.as_bytes()), |other| other.trigger.id == id);
    }

    fn name_hash(&self, name: &[u8]) -> u64 {
        let mut hasher = self.names_hasher.build_hasher();
        hasher.write(name);
        hasher.finish()
    }

    fn trigger_hash(&self, app_name: &[u8], source: &[u8]) -> u64 {
        let mut hasher = self.names_hasher.build_hasher();
        hasher.write(app_name);
        // A source begins with a slash, which no app's name has: the two cannot run into each other.
        hasher.write(source);
        hasher.finish()
    }
}

fn function_hash(id: &FunctionId) -> u64 {
    xxh3_64(id.as_bytes())
}

fn is_trigger(app_name: &[u8], source: &[u8]) -> impl Fn(&Arc<TriggerRoute>) -> bool {
    move |trigger| trigger.source.as_bytes() == source && trigger.app_name.as_bytes() == app_name
}

/// A worker's way to the newest routes. Reading costs one atomic load while they stay the same.
#[derive(Debug, Clone)]
pub struct RouteReader {
    cache: Cache<Arc<ArcSwap<Routes>>, Arc<Routes>>,
}

impl RouteReader {
    pub(super) fn new(current: Arc<ArcSwap<Routes>>) -> Self {
        Self { cache: Cache::new(current) }
    }

    /// The newest routes.
    pub fn routes(&mut self) -> &Routes {
        self.cache.load()
    }
}
