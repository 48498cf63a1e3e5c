//! A queue and a catalog for the tests of those who use them.

use std::sync::Arc;

use jiff::Timestamp;
use kiln_api::Snapshot;
use kiln_queue::Options;
use kiln_shared::ids::FunctionId;
use kiln_shared::model::{App, AppInput, FunctionInput, FunctionResource};
use kiln_shared::queue::Queue;
use serde_json::Value;
use tempfile::TempDir;

use crate::route::RouteTable;

/// An empty queue in a file.
pub(crate) async fn queue_in(folder: &TempDir) -> Arc<dyn Queue> {
    let url = format!("sqlite://{}", folder.path().join("queue.db").display());
    kiln_queue::open(&url, Options::default()).await.expect("a file can be made")
}

/// A catalog with the function `demo/hello`, which has these annotations.
pub(crate) fn demo(annotations: &Value) -> (RouteTable, FunctionId) {
    let app = AppInput { name: "demo".into(), ..AppInput::default() };
    let app = App::create(&app, Timestamp::UNIX_EPOCH).expect("an app");
    let input = FunctionInput {
        name: "hello".into(),
        app_id: app.id.as_str().into(),
        image: "me/hello:1".into(),
        annotations: serde_json::from_value(annotations.clone()).expect("annotations"),
        ..FunctionInput::default()
    };
    let function = FunctionResource::create(&input, &app, Timestamp::UNIX_EPOCH).expect("a function");
    let id = function.id;
    let mut table = RouteTable::new();
    table.reset(Snapshot { revision: 1, apps: vec![app], functions: vec![function], ..Snapshot::default() });
    (table, id)
}
