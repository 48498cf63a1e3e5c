//! What the commands ask of a server: paths, queries and bodies, as the HTTP API defines them.

use serde_json::json;

use crate::support::{Api, Home, demo_app, demo_function, demo_trigger};

#[test]
fn creating_an_app_sends_what_was_given() {
    let api = Api::start();
    api.on("POST /v2/apps", 200, demo_app());
    let home = Home::with_api(&api);
    assert_eq!(home.ok("create app demo"), "Successfully created app:  demo\n");
    assert_eq!(api.last().json(), json!({ "name": "demo" }));
    assert_eq!(api.last().headers["content-type"], "application/json");
    home.ok("create app demo --config A=1 --config B=x=y --annotation team=[1,2] --syslog-url udp://h:514 --shape GENERIC_ARM");
    assert_eq!(
        api.last().json(),
        json!({
            "name": "demo", "config": { "A": "1", "B": "x=y" }, "annotations": { "team": [1, 2] },
            "syslog_url": "udp://h:514", "shape": "GENERIC_ARM",
        })
    );
}

#[test]
fn the_servers_message_is_the_error() {
    let api = Api::start();
    api.on("POST /v2/apps", 409, json!({ "message": "App already exists" }));
    assert_eq!(Home::with_api(&api).fails(1, "create app demo"), "error: App already exists\n");
}

#[test]
fn lists_follow_the_cursor_up_to_the_limit() {
    let api = Api::start();
    let page = |from: usize, to: usize| {
        (from..to).map(|i| json!({ "id": format!("I{i}"), "name": format!("a{i:03}") })).collect::<Vec<_>>()
    };
    api.on("GET /v2/apps?per_page=100", 200, json!({ "next_cursor": "c1", "items": page(0, 100) }));
    api.on("GET /v2/apps?per_page=50&cursor=c1", 200, json!({ "items": page(100, 130) }));
    let home = Home::with_api(&api);
    assert_eq!(home.ok("list apps").lines().count(), 101);
    assert_eq!(api.asked().len(), 1, "a hundred is the default limit");
    assert_eq!(home.json("list apps -n 150").as_array().unwrap().len(), 130);
    api.on("GET /v2/apps?per_page=2&cursor=c9", 200, json!({ "next_cursor": "c10", "items": page(0, 2) }));
    assert_eq!(home.ok("list apps -n 2 --cursor c9"), "NAME  ID\na000  I0\na001  I1\n");
}

#[test]
fn an_empty_list_is_an_empty_array_for_programs() {
    let api = Api::start();
    api.on("GET /v2/apps?per_page=100", 200, json!({ "items": [] }));
    assert_eq!(Home::with_api(&api).json("list apps"), json!([]));
}

#[test]
fn an_app_is_inspected_whole_or_by_property() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    assert_eq!(home.json("inspect app demo"), demo_app());
    assert_eq!(home.ok("inspect app demo config.A"), "\"1\"\n");
    assert!(home.fails(1, "inspect app demo nope").contains("there is no property nope"));
    let error = home.fails(1, "inspect app nope");
    assert!(error.starts_with("error: app nope not found\n") && error.contains("kiln list apps"), "{error}");
}

#[test]
fn updating_an_app_sends_the_read_object_with_the_changes() {
    let api = Api::with_demo();
    api.on("PUT /v2/apps/A1", 200, demo_app());
    let home = Home::with_api(&api);
    assert_eq!(home.ok("update app demo --config B=2 --annotation x=1"), "app demo updated\n");
    assert_eq!(api.asked_lines(), ["GET /v2/apps?name=demo", "PUT /v2/apps/A1"]);
    assert_eq!(
        api.last().json(),
        json!({
            "id": "A1", "name": "demo", "config": { "A": "1", "B": "2" }, "annotations": { "x": 1 },
            "created_at": "2026-01-31T09:00:00.000Z",
        })
    );
    home.ok("update app demo --syslog-url=");
    assert_eq!(api.last().json()["syslog_url"], json!(""));
}

#[test]
fn config_changes_send_only_the_name_they_change() {
    let api = Api::with_demo();
    api.on("PUT /v2/apps/A1", 200, demo_app());
    api.on("PUT /v2/fns/F1", 200, demo_function(&api.url()));
    let home = Home::with_api(&api);
    assert_eq!(home.ok("config app demo K v"), "demo updated K with v\n");
    assert_eq!(api.last().json(), json!({ "config": { "K": "v" } }));
    assert_eq!(home.ok("unset config app demo A"), "Removed key 'A' from app 'demo'\n");
    assert_eq!(api.last().json(), json!({ "config": { "A": "" } }));
    assert_eq!(home.ok("config function demo hello K v"), "demo hello updated K with v\n");
    assert_eq!(
        (api.last().line.as_str(), api.last().json()),
        ("PUT /v2/fns/F1", json!({ "config": { "K": "v" } }))
    );
    assert_eq!(home.ok("delete config f demo hello G"), "Removed key 'G' from the function 'hello'\n");
    assert_eq!(api.last().json(), json!({ "config": { "G": "" } }));
    let asked = api.asked().len();
    assert_eq!(home.ok("unset config app demo NOPE"), "Config key 'NOPE' does not exist. Nothing to do.\n");
    assert_eq!(api.asked_lines()[asked..], ["GET /v2/apps?name=demo"]);
}

#[test]
fn config_is_shown_whole_or_by_name() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    assert_eq!(home.ok("get config app demo A"), "1\n");
    assert_eq!(home.ok("get config function demo hello G"), "Hi\n");
    assert_eq!(home.ok("list config function demo hello"), "KEY  VALUE\nG    Hi\n");
    assert_eq!(home.json("list config app demo"), json!({ "A": "1" }));
    assert!(home.fails(1, "get config app demo NOPE").contains("config key NOPE does not exist"));
}

#[test]
fn deleting_an_app_leaves_the_cascade_to_the_server() {
    let api = Api::with_demo();
    api.on_raw("DELETE /v2/apps/A1", 204, &[], Vec::new());
    assert_eq!(Home::with_api(&api).ok("delete app demo"), "App demo deleted\n");
    assert_eq!(api.asked_lines(), ["GET /v2/apps?name=demo", "DELETE /v2/apps/A1"]);
}

#[test]
fn deleting_an_app_recursively_removes_triggers_then_functions_after_asking() {
    let api = Api::with_demo();
    api.on("GET /v2/fns?app_id=A1&per_page=100", 200, json!({ "items": [demo_function(&api.url())] }));
    api.on("GET /v2/triggers?app_id=A1&per_page=100", 200, json!({ "items": [demo_trigger(&api.url())] }));
    for line in ["DELETE /v2/apps/A1", "DELETE /v2/fns/F1", "DELETE /v2/triggers/T1"] {
        api.on_raw(line, 204, &[], Vec::new());
    }
    let home = Home::with_api(&api);
    let deletes = |api: &Api| {
        api.asked_lines().into_iter().filter(|line| line.starts_with("DELETE")).collect::<Vec<_>>()
    };
    home.kiln("delete app demo -r").write_stdin("n\n").assert().success();
    assert!(home.fails(2, "delete app demo -r").contains("--force"));
    assert!(deletes(&api).is_empty());
    home.kiln("delete app demo -r").write_stdin("Y\n").assert().success();
    assert_eq!(deletes(&api), ["DELETE /v2/triggers/T1", "DELETE /v2/fns/F1", "DELETE /v2/apps/A1"]);
    home.ok("delete app demo -r -f");
    assert_eq!(deletes(&api).len(), 6);
}

#[test]
fn creating_a_function_sends_what_was_given() {
    let api = Api::with_demo();
    api.on("POST /v2/fns", 200, demo_function(&api.url()));
    let home = Home::with_api(&api);
    let said = home.ok("create function demo hello hello:0.0.1 --memory 256 --timeout 5 --idle-timeout 60 --config A=1 --annotation a=true");
    assert_eq!(said, "Successfully created function: hello with hello:0.0.1\n");
    assert_eq!(
        api.last().json(),
        json!({
            "app_id": "A1", "name": "hello", "image": "hello:0.0.1", "memory": 256, "timeout": 5, "idle_timeout": 60,
            "config": { "A": "1" }, "annotations": { "a": true },
        })
    );
    home.fails(2, "create function demo hello");
}

#[test]
fn updating_a_function_leaves_out_what_the_server_computes() {
    let api = Api::with_demo();
    api.on("PUT /v2/fns/F1", 200, demo_function(&api.url()));
    let home = Home::with_api(&api);
    assert_eq!(home.ok("update function demo hello hello:2 --memory 64"), "demo hello updated\n");
    assert_eq!(
        api.last().json(),
        json!({
            "id": "F1", "name": "hello", "app_id": "A1", "image": "hello:2", "memory": 64, "config": { "G": "Hi" },
            "annotations": { "team": "blue" },
        })
    );
}

#[test]
fn a_functions_endpoint_is_shown_alone() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    assert_eq!(home.ok("inspect function demo hello --endpoint"), format!("{}/invoke/F1\n", api.url()));
    assert_eq!(home.ok("inspect fn demo hello memory"), "128\n");
    api.on("GET /v2/fns?app_id=A1&name=hello", 200, json!({ "items": [{ "id": "F1", "name": "hello" }] }));
    assert!(home.fails(1, "inspect function demo hello --endpoint").contains("endpoint"));
}

#[test]
fn functions_are_listed_and_deleted() {
    let api = Api::with_demo();
    api.on("GET /v2/fns?app_id=A1&per_page=100", 200, json!({ "items": [demo_function(&api.url())] }));
    api.on(
        "GET /v2/triggers?app_id=A1&fn_id=F1&per_page=100",
        200,
        json!({ "items": [demo_trigger(&api.url())] }),
    );
    api.on_raw("DELETE /v2/fns/F1", 204, &[], Vec::new()).on_raw(
        "DELETE /v2/triggers/T1",
        204,
        &[],
        Vec::new(),
    );
    let home = Home::with_api(&api);
    assert_eq!(home.ok("list functions demo"), "NAME   IMAGE        ID\nhello  hello:0.0.1  F1\n");
    assert!(home.ok("delete function demo hello -r -f").ends_with("Function hello deleted\n"));
    assert_eq!(api.asked_lines()[api.asked().len() - 2..], ["DELETE /v2/triggers/T1", "DELETE /v2/fns/F1"]);
}

#[test]
fn creating_a_trigger_adds_the_slash_and_shows_the_endpoint() {
    let api = Api::with_demo();
    api.on("POST /v2/triggers", 200, demo_trigger(&api.url()));
    let said = Home::with_api(&api)
        .ok("create trigger demo hello greet --type http --source greet --annotation a=1");
    assert_eq!(
        said,
        format!("Successfully created trigger: greet\nTrigger Endpoint: {}/t/demo/greet\n", api.url())
    );
    assert_eq!(
        api.last().json(),
        json!({
            "app_id": "A1", "fn_id": "F1", "name": "greet", "type": "http", "source": "/greet", "annotations": { "a": 1 },
        })
    );
}

#[test]
fn creating_a_schedule_sends_the_cron_line_and_shows_the_next_tick() {
    let api = Api::with_demo();
    let next = json!({ "kiln.dev/next-tick": "2026-11-24T03:00:00Z", "kiln.dev/time-zone": "Europe/Vienna" });
    let made = json!({
        "id": "T2", "name": "nightly", "app_id": "A1", "fn_id": "F1", "type": "schedule", "source": "@daily",
        "annotations": next,
    });
    api.on("POST /v2/triggers", 200, made.clone());
    api.on("GET /v2/triggers?app_id=A1&fn_id=F1&per_page=100", 200, json!({ "items": [made] }));
    let home = Home::with_api(&api);
    let said = home.ok("create trigger demo hello nightly --type schedule --source @daily \
                        --time-zone Europe/Vienna --jitter-seconds 30 --misfire all --payload x");
    assert_eq!(said, "Successfully created trigger: nightly\nNext Tick: 2026-11-24T03:00:00Z\n");
    let sent = api.last().json();
    assert_eq!((&sent["type"], &sent["source"]), (&json!("schedule"), &json!("@daily")));
    assert_eq!(
        sent["annotations"],
        json!({
            "kiln.dev/time-zone": "Europe/Vienna", "kiln.dev/jitter-seconds": 30, "kiln.dev/misfire": "all",
            "kiln.dev/payload": "x",
        })
    );
    assert!(home.ok("list triggers demo hello").contains("2026-11-24T03:00:00Z"));
}

#[test]
fn triggers_of_an_app_are_listed_with_their_functions() {
    let api = Api::with_demo();
    let items = json!({ "items": [demo_trigger(&api.url()), demo_trigger(&api.url())] });
    api.on("GET /v2/triggers?app_id=A1&per_page=100", 200, items.clone());
    api.on("GET /v2/triggers?app_id=A1&fn_id=F1&per_page=100", 200, items);
    api.on("GET /v2/fns/F1", 200, demo_function(&api.url()));
    let home = Home::with_api(&api);
    let list = home.ok("list triggers demo");
    assert!(list.starts_with("FUNCTION") && list.lines().nth(1).unwrap().starts_with("hello "), "{list}");
    assert_eq!(
        api.asked_lines().iter().filter(|line| *line == "GET /v2/fns/F1").count(),
        1,
        "each function once"
    );
    assert!(home.ok("list triggers demo hello").starts_with("NAME"));
}

#[test]
fn a_trigger_is_inspected_updated_and_deleted() {
    let api = Api::with_demo();
    api.on("PUT /v2/triggers/T1", 200, demo_trigger(&api.url())).on_raw(
        "DELETE /v2/triggers/T1",
        204,
        &[],
        Vec::new(),
    );
    let home = Home::with_api(&api);
    assert_eq!(
        home.ok("inspect trigger demo hello greet --endpoint"),
        format!("{}/t/demo/greet\n", api.url())
    );
    assert_eq!(home.ok("update trigger demo hello greet --annotation a=1"), "demo hello greet updated\n");
    assert_eq!(
        api.last().json(),
        json!({
            "id": "T1", "name": "greet", "app_id": "A1", "fn_id": "F1", "type": "http", "source": "/greet",
            "annotations": { "a": 1 },
        })
    );
    assert_eq!(home.ok("delete trigger demo hello greet"), "demo hello greet deleted\n");
}

#[test]
fn calls_are_listed_in_a_range_of_time_and_shown() {
    let api = Api::with_demo();
    let call = json!({
        "id": "C1", "status": "error", "error": "function failed", "app_id": "A1", "fn_id": "F1",
        "created_at": "2026-01-31T09:00:00.000Z", "started_at": "2026-01-31T09:00:00.100Z",
        "completed_at": "2026-01-31T09:00:00.350Z",
    });
    api.on(
        "GET /v2/fns/F1/calls?from_time=1769850000&to_time=1769853600&per_page=5",
        200,
        json!({ "items": [call] }),
    );
    api.on("GET /v2/fns/F1/calls/C1", 200, call.clone());
    let home = Home::with_api(&api);
    let list =
        home.ok("list calls demo hello -n 5 --from-time 2026-01-31T09:00:00Z --to-time 2026-01-31T10:00:00Z");
    assert!(list.lines().nth(1).unwrap().contains("C1  error"), "{list}");
    assert!(list.contains("250 ms") && list.contains("function failed"));
    assert!(home.ok("get call demo hello C1").contains("Error reason: function failed"));
    assert_eq!(home.json("calls get demo hello C1"), call);
    home.fails(2, "calls list demo hello --from-time yesterday");
}

#[test]
fn the_log_of_a_call_or_of_the_last_one_is_shown_as_it_is() {
    let api = Api::with_demo();
    api.on("GET /v2/fns/F1/calls?per_page=1", 200, json!({ "next_cursor": "x", "items": [{ "id": "C9" }] }));
    api.on(
        "GET /v2/fns/F1/calls/C9/log",
        200,
        json!({ "message": "m", "log": { "call_id": "C9", "log": "one\ntwo" } }),
    );
    let home = Home::with_api(&api);
    for line in
        ["logs demo hello", "logs get demo hello last", "get logs demo hello C9", "logs demo hello C9"]
    {
        assert_eq!(home.ok(line), "one\ntwo", "{line}");
    }
    assert_eq!(home.json("logs demo hello"), json!({ "call_id": "C9", "log": "one\ntwo" }));
    home.fails(2, "logs demo");
    api.on("GET /v2/fns/F1/calls?per_page=1", 200, json!({ "items": [] }));
    assert!(home.fails(1, "logs demo hello").contains("no previous calls found"));
    api.on_raw("GET /v2/fns/F1/calls?per_page=1", 410, &[], Vec::new());
    assert!(home.fails(1, "logs demo hello").contains("keeps no calls"));
}
