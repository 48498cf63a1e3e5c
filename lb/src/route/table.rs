//! The catalog's changes in, snapshots for the data path out.
//!
//! Owns the full resources and who belongs to whom, and resolves app and function into what nodes run. Runs off
//! the data path. Invariant: after a batch, readers see all of it or nothing; a function whose resolved form did
//! not change keeps its value, so that nothing downstream is made anew.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use kiln_api::{Change, Changes, Snapshot};
use kiln_shared::function::Function;
use kiln_shared::ids::{AppId, FunctionId, TriggerId};
use kiln_shared::model::{App, FunctionResource, Trigger, TriggerType, resolve};

use super::snapshot::{RouteReader, Routes, ScheduleRoute, TriggerRoute};

#[derive(Debug)]
struct AppEntry {
    app: Arc<App>,
    name: Arc<str>,
    functions: BTreeSet<FunctionId>,
}

#[derive(Debug)]
struct FunctionEntry {
    resource: Arc<FunctionResource>,
    resolved: Arc<Function>,
    triggers: BTreeSet<TriggerId>,
}

#[derive(Debug)]
struct TriggerEntry {
    resource: Arc<Trigger>,
    app_name: Arc<str>,
    source: Arc<str>,
}

/// All that the table holds, at one revision. Cheap to take: it shares what the table has.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    pub(super) revision: u64,
    pub(super) apps: Vec<Arc<App>>,
    pub(super) functions: Vec<Arc<FunctionResource>>,
    pub(super) triggers: Vec<Arc<Trigger>>,
}

/// The routes' owner. Give it to one task.
#[derive(Debug)]
pub struct RouteTable {
    apps: HashMap<AppId, AppEntry>,
    functions: HashMap<FunctionId, FunctionEntry>,
    triggers: HashMap<TriggerId, TriggerEntry>,
    next: Routes,
    current: Arc<ArcSwap<Routes>>,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self::new()
    }
}

impl RouteTable {
    /// A table of an empty catalog at revision 0.
    pub fn new() -> Self {
        let next = Routes::empty();
        Self {
            apps: HashMap::new(),
            functions: HashMap::new(),
            triggers: HashMap::new(),
            current: Arc::new(ArcSwap::from_pointee(next.clone())),
            next,
        }
    }

    /// A reader for one worker.
    pub fn reader(&self) -> RouteReader {
        RouteReader::new(Arc::clone(&self.current))
    }

    /// The catalog's revision that readers see.
    pub fn revision(&self) -> u64 {
        self.next.revision()
    }

    /// What the table is made of. O(catalog), some 10 ns per resource.
    pub(super) fn contents(&self) -> Contents {
        Contents {
            revision: self.revision(),
            apps: self.apps.values().map(|entry| Arc::clone(&entry.app)).collect(),
            functions: self.functions.values().map(|entry| Arc::clone(&entry.resource)).collect(),
            triggers: self.triggers.values().map(|entry| Arc::clone(&entry.resource)).collect(),
        }
    }

    /// Replaces everything and publishes once. O(catalog), a few microseconds per function.
    pub fn reset(&mut self, snapshot: Snapshot) {
        self.apps.clear();
        self.functions.clear();
        self.triggers.clear();
        self.next = Routes::empty();
        let Snapshot { database: _, revision, apps, functions, triggers } = snapshot;
        for app in apps {
            self.put_app(app);
        }
        for function in functions {
            self.put_function(Arc::new(function));
        }
        for trigger in triggers {
            self.put_trigger(trigger);
        }
        self.publish(revision);
    }

    /// Applies a batch and publishes once. O(changes), where a changed app counts with all its functions, plus a
    /// copy of 1/256 of the catalog's pointers per change at most.
    pub fn apply(&mut self, changes: Changes) {
        for change in changes.changes {
            match change {
                Change::App(app) => self.put_app(app),
                Change::Function(function) => self.put_function(Arc::new(function)),
                Change::Trigger(trigger) => self.put_trigger(trigger),
                Change::AppGone(id) => self.remove_app(id),
                Change::FunctionGone(id) => self.remove_function(id),
                Change::TriggerGone(id) => self.remove_trigger(id),
            }
        }
        self.publish(changes.revision);
    }

    fn publish(&mut self, revision: u64) {
        self.next.set_revision(revision);
        self.current.store(Arc::new(self.next.clone()));
    }

    fn put_app(&mut self, app: App) {
        let id = app.id;
        let name: Arc<str> = app.name.as_str().into();
        self.next.insert_app(&name, id);
        let functions = self.apps.remove(&id).map_or_else(BTreeSet::new, |old| old.functions);
        let members: Vec<FunctionId> = functions.iter().copied().collect();
        self.apps.insert(id, AppEntry { app: Arc::new(app), name, functions });
        for member in members {
            let resource = Arc::clone(&self.functions[&member].resource);
            self.put_function(resource);
        }
    }

    fn remove_app(&mut self, id: AppId) {
        let Some(entry) = self.apps.remove(&id) else { return };
        self.next.remove_app(&entry.name, id);
        entry.functions.into_iter().for_each(|function| self.remove_function(function));
    }

    /// The feed gives a function's app before the function; one without an app would be of no use.
    fn put_function(&mut self, resource: Arc<FunctionResource>) {
        let Some(app) = self.apps.get_mut(&resource.app_id) else { return };
        let (id, spec) = (resource.id, resolve(&app.app, &resource));
        app.functions.insert(id);
        let known = self.functions.get_mut(&id);
        if let Some(entry) = known {
            entry.resource = resource;
            if entry.resolved.spec == spec {
                return;
            }
            entry.resolved = Arc::new(Function::new(spec));
            self.next.insert_function(Arc::clone(&entry.resolved));
            for &trigger in &entry.triggers {
                self.triggers[&trigger].insert(&mut self.next, &entry.resolved);
            }
        } else {
            let resolved = Arc::new(Function::new(spec));
            self.next.insert_function(Arc::clone(&resolved));
            self.functions.insert(id, FunctionEntry { resource, resolved, triggers: BTreeSet::new() });
        }
    }

    fn remove_function(&mut self, id: FunctionId) {
        let Some(entry) = self.functions.remove(&id) else { return };
        if let Some(app) = self.apps.get_mut(&entry.resource.app_id) {
            app.functions.remove(&id);
        }
        self.next.remove_function(&id);
        entry.triggers.into_iter().for_each(|trigger| self.remove_trigger(trigger));
    }

    /// The feed gives a trigger's function before the trigger; one without a function leads nowhere.
    fn put_trigger(&mut self, trigger: Trigger) {
        let id = trigger.id;
        self.remove_trigger(id);
        let Some(function) = self.functions.get_mut(&trigger.fn_id) else { return };
        let Some(app) = self.apps.get(&function.resource.app_id) else { return };
        function.triggers.insert(id);
        let entry = TriggerEntry {
            app_name: Arc::clone(&app.name),
            source: trigger.source.as_str().into(),
            resource: Arc::new(trigger),
        };
        entry.insert(&mut self.next, &function.resolved);
        self.triggers.insert(id, entry);
    }

    fn remove_trigger(&mut self, id: TriggerId) {
        let Some(entry) = self.triggers.remove(&id) else { return };
        if let Some(function) = self.functions.get_mut(&entry.resource.fn_id) {
            function.triggers.remove(&id);
        }
        match entry.resource.kind {
            TriggerType::Http => self.next.remove_trigger(id, &entry.app_name, &entry.source),
            TriggerType::Schedule => self.next.remove_schedule(id),
        }
    }
}

impl TriggerEntry {
    fn insert(&self, routes: &mut Routes, function: &Arc<Function>) {
        let function = Arc::clone(function);
        match self.resource.kind {
            TriggerType::Http => {
                let (app_name, source) = (Arc::clone(&self.app_name), Arc::clone(&self.source));
                let route = TriggerRoute { id: self.resource.id, app_name, source, function };
                routes.insert_trigger(Arc::new(route));
            }
            TriggerType::Schedule => {
                routes.insert_schedule(ScheduleRoute { trigger: Arc::clone(&self.resource), function });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kiln_shared::model::{AppInput, Config, FunctionInput, TriggerInput};
    use proptest::prelude::*;

    use super::*;
    use crate::route::RouteError;
    use crate::route::path::{classify, decode};
    use crate::route::snapshot::Route;

    fn config(value: &str) -> Config {
        Config::from([("KEY".to_owned(), value.to_owned())])
    }

    fn app(name: &str) -> App {
        App::create(&AppInput { name: name.into(), ..AppInput::default() }, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn function(app: &App, name: &str) -> FunctionResource {
        let input = FunctionInput {
            name: name.into(),
            app_id: app.id.as_str().into(),
            image: "me/hello:1".into(),
            ..FunctionInput::default()
        };
        FunctionResource::create(&input, app, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn trigger(function: &FunctionResource, name: &str, source: &str) -> Trigger {
        let input = TriggerInput {
            name: name.into(),
            app_id: function.app_id.as_str().into(),
            fn_id: function.id.as_str().into(),
            kind: "http".into(),
            source: source.into(),
            ..TriggerInput::default()
        };
        Trigger::create(&input, function.app_id, function, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn apply(table: &mut RouteTable, changes: impl IntoIterator<Item = Change>) {
        let revision = table.revision() + 1;
        table.apply(Changes { revision, changes: changes.into_iter().collect(), ..Changes::default() });
    }

    /// What a path leads to: the function's id.
    fn call(table: &RouteTable, path: &str) -> Result<Arc<Function>, RouteError> {
        let decoded = decode(path.as_bytes())?;
        match table.reader().routes().resolve(classify(&decoded))? {
            Route::Function(function) => Ok(Arc::clone(function)),
            Route::Trigger(trigger) => Ok(Arc::clone(&trigger.function)),
            Route::Other => panic!("{path} is no call"),
        }
    }

    struct Catalog {
        table: RouteTable,
        app: App,
        function: FunctionResource,
        trigger: Trigger,
    }

    fn catalog() -> Catalog {
        let app = app("demo");
        let function = function(&app, "hello");
        let trigger = trigger(&function, "t", "/hello");
        let mut table = RouteTable::new();
        let snapshot = Snapshot {
            revision: 3,
            apps: vec![app.clone()],
            functions: vec![function.clone()],
            triggers: vec![trigger.clone()],
            ..Snapshot::default()
        };
        table.reset(snapshot);
        Catalog { table, app, function, trigger }
    }

    #[test]
    fn functions_and_triggers_are_found_and_unknown_ones_told_apart() {
        let Catalog { table, function, .. } = catalog();
        let id = function.id;
        for path in [format!("/invoke/{id}"), "/t/demo/hello".into(), "/t/de%6do/%68ello".into()] {
            assert_eq!(call(&table, &path).unwrap().spec.id, id, "{path}");
        }
        for (path, error) in [
            ("/invoke/01CQ4S2K8JNG8G00GZJ0000001", RouteError::FunctionNotFound),
            ("/invoke/no-id", RouteError::FunctionNotFound),
            ("/invoke/%ff", RouteError::FunctionNotFound),
            ("/t/demo", RouteError::TriggerNotFound),
            ("/t/demo/hello/", RouteError::TriggerNotFound),
            ("/t/demo/Hello", RouteError::TriggerNotFound),
            ("/t/demo/hel", RouteError::TriggerNotFound),
            ("/t/demo/%ff", RouteError::TriggerNotFound),
            ("/t/other/hello", RouteError::AppNotFound),
            ("/t/Demo/hello", RouteError::AppNotFound),
            ("/t/demo/%zz", RouteError::BadEscape),
        ] {
            assert_eq!(call(&table, path).unwrap_err(), error, "{path}");
        }
        assert_eq!(table.revision(), 3);
    }

    #[test]
    fn a_trigger_without_rest_is_found_at_the_bare_app() {
        let Catalog { mut table, function, .. } = catalog();
        apply(&mut table, [Change::Trigger(trigger(&function, "root", "/"))]);
        for path in ["/t/demo", "/t/demo/"] {
            assert_eq!(call(&table, path).unwrap().spec.id, function.id, "{path}");
        }
    }

    #[test]
    fn a_change_of_the_apps_config_makes_new_revisions_everywhere() {
        let Catalog { mut table, app, function, .. } = catalog();
        let before = call(&table, "/t/demo/hello").unwrap();
        apply(&mut table, [Change::App(App { config: config("new"), ..app })]);
        for path in ["/t/demo/hello".to_owned(), format!("/invoke/{}", function.id)] {
            let after = call(&table, &path).unwrap();
            assert_ne!(after.revision, before.revision);
            assert_eq!(after.spec.config["KEY"], "new");
        }
    }

    #[test]
    fn a_schedule_is_no_path_and_follows_its_function() {
        let Catalog { mut table, app, function, trigger } = catalog();
        let kind = TriggerType::Schedule;
        let made = Trigger { id: TriggerId::generate(), kind, source: "@hourly".into(), ..trigger };
        let known = |table: &RouteTable| {
            let mut reader = table.reader();
            let schedules = reader.routes().schedules();
            schedules.map(|route| (route.trigger.id, route.function.revision)).collect::<Vec<_>>()
        };
        apply(&mut table, [Change::Trigger(made.clone())]);
        let before = known(&table);
        assert_eq!(before[0].0, made.id);
        assert_eq!(call(&table, "/t/demo/@hourly").unwrap_err(), RouteError::TriggerNotFound);
        apply(&mut table, [Change::App(App { config: config("new"), ..app })]);
        assert_ne!(known(&table), before);
        apply(&mut table, [Change::FunctionGone(function.id)]);
        assert_eq!(known(&table), []);
    }

    #[test]
    fn a_change_that_nodes_do_not_see_keeps_the_function() {
        let Catalog { mut table, app, function, trigger } = catalog();
        let before = call(&table, "/t/demo/hello").unwrap();
        let updated_at = "2026-11-23T00:00:00Z".parse().unwrap();
        apply(
            &mut table,
            [
                Change::App(App { updated_at, ..app }),
                Change::Function(FunctionResource { updated_at, ..function }),
                Change::Trigger(Trigger { updated_at, ..trigger }),
            ],
        );
        assert!(Arc::ptr_eq(&before, &call(&table, "/t/demo/hello").unwrap()));
    }

    #[test]
    fn a_moved_trigger_leaves_its_old_source() {
        let Catalog { mut table, trigger, function, .. } = catalog();
        apply(&mut table, [Change::Trigger(Trigger { source: "/new".into(), ..trigger })]);
        assert_eq!(call(&table, "/t/demo/hello").unwrap_err(), RouteError::TriggerNotFound);
        assert_eq!(call(&table, "/t/demo/new").unwrap().spec.id, function.id);
    }

    #[test]
    fn triggers_that_swap_their_sources_in_one_batch_both_stay() {
        let Catalog { mut table, app, trigger: one, .. } = catalog();
        let second = function(&app, "second");
        let two = trigger(&second, "t2", "/two");
        apply(&mut table, [Change::Function(second.clone()), Change::Trigger(two.clone())]);
        apply(
            &mut table,
            [
                Change::Trigger(Trigger { source: "/two".into(), ..one.clone() }),
                Change::Trigger(Trigger { source: "/hello".into(), ..two }),
            ],
        );
        assert_eq!(call(&table, "/t/demo/two").unwrap().spec.id, one.fn_id);
        assert_eq!(call(&table, "/t/demo/hello").unwrap().spec.id, second.id);
    }

    #[test]
    fn an_app_made_anew_under_its_old_name_is_found_whichever_change_comes_first() {
        for new_first in [true, false] {
            let Catalog { mut table, app: old, .. } = catalog();
            let new = app("demo");
            let hello = function(&new, "hello");
            let mut changes = vec![Change::AppGone(old.id), Change::App(new.clone())];
            if new_first {
                changes.reverse();
            }
            changes
                .extend([Change::Function(hello.clone()), Change::Trigger(trigger(&hello, "t", "/hello"))]);
            apply(&mut table, changes);
            assert_eq!(call(&table, "/t/demo/hello").unwrap().spec.id, hello.id, "{new_first}");
            assert_eq!(call(&table, "/t/demo/x").unwrap_err(), RouteError::TriggerNotFound);
        }
    }

    #[test]
    fn what_belonged_to_something_gone_is_gone() {
        let Catalog { mut table, app, function, .. } = catalog();
        apply(&mut table, [Change::FunctionGone(function.id)]);
        assert_eq!(call(&table, "/t/demo/hello").unwrap_err(), RouteError::TriggerNotFound);
        let Catalog { mut table, app: other, function, .. } = catalog();
        apply(&mut table, [Change::AppGone(app.id), Change::AppGone(other.id)]);
        assert_eq!(call(&table, "/t/demo/hello").unwrap_err(), RouteError::AppNotFound);
        let path = format!("/invoke/{}", function.id);
        assert_eq!(call(&table, &path).unwrap_err(), RouteError::FunctionNotFound);
        let mut reader = table.reader();
        assert_eq!((reader.routes().functions_len(), reader.routes().triggers_len()), (0, 0));
    }

    #[test]
    fn a_snapshot_at_hand_is_not_changed() {
        let Catalog { mut table, function, .. } = catalog();
        let mut reader = table.reader();
        let before = reader.routes().clone();
        apply(&mut table, [Change::FunctionGone(function.id)]);
        assert!(before.function(&function.id).is_ok() && before.trigger(b"demo", b"/hello").is_ok());
        assert!(reader.routes().function(&function.id).is_err());
    }

    proptest! {
        /// Whatever the history, the routes are those of the catalog at its end.
        #[test]
        fn changes_lead_where_a_reset_leads(steps in prop::collection::vec((0_u8..9, 0_usize..6, 0_usize..6), 0..60)) {
            let mut state = Snapshot::default();
            let mut table = RouteTable::new();
            for (kind, one, other) in steps {
                let change = step(&mut state, kind, one, other);
                apply(&mut table, change);
            }
            let mut fresh = RouteTable::new();
            fresh.reset(state.clone());
            let (mut reader, mut fresh_reader) = (table.reader(), fresh.reader());
            let (routes, expected) = (reader.routes(), fresh_reader.routes());
            prop_assert_eq!(routes.functions_len(), state.functions.len());
            prop_assert_eq!(routes.triggers_len(), state.triggers.len());
            for function in &state.functions {
                prop_assert_eq!(routes.function(&function.id).unwrap(), expected.function(&function.id).unwrap());
            }
            for name in 0..6 {
                for source in 0..6 {
                    let (app, source) = (format!("app{name}"), format!("/{source}"));
                    let found = |routes: &Routes| {
                        let route = routes.trigger(app.as_bytes(), source.as_bytes())?;
                        Ok::<_, RouteError>((route.id, Arc::clone(&route.function)))
                    };
                    prop_assert_eq!(found(routes), found(expected));
                }
            }
        }
    }

    /// Makes one valid change to the catalog and says how the feed tells it.
    fn step(state: &mut Snapshot, kind: u8, one: usize, other: usize) -> Vec<Change> {
        match kind {
            0 | 1 if state.apps.iter().all(|app| app.name != format!("app{one}")) => {
                let app = app(&format!("app{one}"));
                state.apps.push(app.clone());
                vec![Change::App(app)]
            }
            2 if one < state.apps.len() => {
                let app = &mut state.apps[one];
                app.config = config(&other.to_string());
                vec![Change::App(app.clone())]
            }
            3 | 4 if one < state.apps.len() => {
                let function = function(&state.apps[one], &format!("f{other}"));
                state.functions.push(function.clone());
                vec![Change::Function(function)]
            }
            5 if one < state.functions.len() => {
                let made = trigger(&state.functions[one], "t", &format!("/{other}"));
                let is_taken = |t: &Trigger| t.app_id == made.app_id && t.source == made.source;
                if state.triggers.iter().any(is_taken) {
                    return Vec::new();
                }
                state.triggers.push(made.clone());
                vec![Change::Trigger(made)]
            }
            6 if one < state.triggers.len() => {
                vec![Change::TriggerGone(state.triggers.remove(one).id)]
            }
            7 if one < state.functions.len() => {
                let gone = state.functions.remove(one);
                state.triggers.retain(|trigger| trigger.fn_id != gone.id);
                vec![Change::FunctionGone(gone.id)]
            }
            8 if one < state.apps.len() && other == 0 => {
                let gone = state.apps.remove(one);
                state.functions.retain(|function| function.app_id != gone.id);
                state.triggers.retain(|trigger| trigger.app_id != gone.id);
                vec![Change::AppGone(gone.id)]
            }
            _ => Vec::new(),
        }
    }
}
