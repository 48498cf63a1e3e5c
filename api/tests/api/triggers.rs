//! `/v2/triggers`: every rule of `spec/api-v2.md`, part 2.3, and the look-up by source.

use serde_json::{Value, json};

use crate::support::{Api, with};

const ZERO: &str = "0001-01-01T00:00:00.000Z";

#[tokio::test]
async fn a_trigger_is_created_read_listed_and_deleted() {
    let api = Api::new().await;
    let app = api.app("myapp").await;
    let function = api.function(&app, "f").await;
    let body = json!({
        "app_id": app, "fn_id": function, "name": "t1", "type": "http", "source": "/hello",
        "created_at": ZERO, "updated_at": ZERO,
    });
    let created = api.post("/v2/triggers", &body).await.ok();
    let (id, at) = (created.text("/id"), created.text("/created_at"));
    let expected = format!(
        r#"{{"id":"{id}","name":"t1","app_id":"{app}","fn_id":"{function}","type":"http","#
    ) + r#""source":"/hello","annotations":{"fnproject.io/trigger/httpEndpoint":"http://kiln.test:8080/t/myapp/hello"},"#
        + &format!(r#""created_at":"{at}","updated_at":"{at}"}}"#);
    assert_eq!(created.body, expected);
    assert_eq!(api.get(&format!("/v2/triggers/{id}")).await, created);
    let list = api.get(&format!("/v2/triggers?app_id={app}")).await.ok();
    assert_eq!(list.body, format!(r#"{{"items":[{expected}]}}"#));
    assert_eq!(api.delete(&format!("/v2/triggers/{id}")).await.status, 204);
    api.get(&format!("/v2/triggers/{id}")).await.refused(404, "Trigger not found");
    api.put(&format!("/v2/triggers/{id}"), &json!({})).await.refused(404, "Trigger not found");
    api.delete(&format!("/v2/triggers/{id}")).await.refused(404, "Trigger not found");
}

#[tokio::test]
async fn every_rule_of_create_has_its_words() {
    let api = Api::new().await;
    let (app, other) = (api.app("a").await, api.app("b").await);
    let (function, foreign) = (api.function(&app, "f").await, api.function(&other, "f").await);
    api.trigger(&app, &function, "taken", "/taken").await;
    let base = json!({"app_id": app, "fn_id": function, "name": "t", "type": "http", "source": "/s"});
    let unknown = "01CQ4S2K8JNG8G00GZJ0000001";
    let source_exists = "Trigger with the same type and source exists on this app";
    let rules: Vec<(Value, u16, &str)> = vec![
        (json!({"id": unknown}), 400, "ID cannot be provided for Trigger creation"),
        (json!({"created_at": "2018-09-30T11:22:33.444Z"}), 400, "Trigger Created At Provided for Create"),
        (json!({"updated_at": "2018-09-30T11:22:33.444Z"}), 400, "Trigger ID Provided for Create"),
        (json!({"app_id": null}), 400, "Missing App ID on Trigger"),
        (json!({"name": null}), 400, "Missing name on Trigger"),
        (json!({"name": "n".repeat(256)}), 400, "Trigger name must be 255 characters or less"),
        (json!({"name": "a b"}), 400, "Invalid name for Trigger"),
        (json!({"name": "a.b"}), 400, "Invalid name for Trigger"),
        (json!({"fn_id": null}), 400, "Missing Fn ID on Trigger"),
        (json!({"type": null}), 400, "Trigger Type Not Supported"),
        (json!({"type": "kafka"}), 400, "Trigger Type Not Supported"),
        (json!({"source": null}), 400, "Missing Trigger Source"),
        (json!({"source": "s"}), 400, "Missing Trigger Source Prefix '/'"),
        (json!({"app_id": unknown}), 404, "App not found"),
        (json!({"fn_id": unknown}), 404, "Fn not found"),
        (json!({"fn_id": foreign}), 400, "Invalid Fn ID - not owned by specified app"),
        (json!({"source": "/taken"}), 409, source_exists),
        (json!({"source": "/taken", "name": "taken"}), 409, source_exists),
        (json!({"name": "taken"}), 409, "Trigger already exists"),
        (json!({"source": 1}), 400, "Invalid JSON"),
    ];
    for (change, status, message) in rules {
        api.post("/v2/triggers", &with(&base, &change)).await.refused(status, message);
    }
    let names = api.get(&format!("/v2/triggers?app_id={app}")).await.ok().names();
    assert_eq!(names, ["taken"], "nothing refused is stored");
}

#[tokio::test]
async fn the_first_broken_rule_speaks() {
    let api = Api::new().await;
    let (app, other) = (api.app("a").await, api.app("b").await);
    let (function, foreign) = (api.function(&app, "f").await, api.function(&other, "f").await);
    let given = "2018-09-30T11:22:33Z";
    let mut body = json!({
        "id": "x", "created_at": given, "updated_at": given, "app_id": "", "name": "", "fn_id": "",
        "type": "", "source": "", "annotations": {"": 1},
    });
    let steps = [
        (400, "ID cannot be provided for Trigger creation", json!({"id": null})),
        (400, "Trigger Created At Provided for Create", json!({"created_at": ZERO})),
        (400, "Trigger ID Provided for Create", json!({"updated_at": ""})),
        (400, "Missing App ID on Trigger", json!({"app_id": "unknown"})),
        (400, "Missing name on Trigger", json!({"name": "a b"})),
        (400, "Invalid name for Trigger", json!({"name": "ab"})),
        (400, "Missing Fn ID on Trigger", json!({"fn_id": "unknown"})),
        (400, "Trigger Type Not Supported", json!({"type": "http"})),
        (400, "Missing Trigger Source", json!({"source": "x"})),
        (400, "Missing Trigger Source Prefix '/'", json!({"source": "/x"})),
        (
            400,
            "Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace",
            json!({"annotations": null}),
        ),
        (404, "App not found", json!({"app_id": app})),
        (404, "Fn not found", json!({"fn_id": foreign})),
        (400, "Invalid Fn ID - not owned by specified app", json!({"fn_id": function})),
    ];
    for (status, message, mend) in steps {
        api.post("/v2/triggers", &body).await.refused(status, message);
        body = with(&body, &mend);
    }
    api.post("/v2/triggers", &body).await.ok();
}

#[tokio::test]
async fn an_update_sets_name_function_and_source() {
    let api = Api::new().await;
    let (app, other) = (api.app("a").await, api.app("b").await);
    let (f, g) = (api.function(&app, "f").await, api.function(&app, "g").await);
    let foreign = api.function(&other, "h").await;
    let id = api.trigger(&app, &f, "t", "/s").await;
    api.trigger(&app, &f, "u", "/u").await;
    let path = format!("/v2/triggers/{id}");
    let before = api.get(&path).await.ok();
    assert_eq!(api.put(&path, &before.json()).await, before);
    assert_eq!(api.put(&path, &json!({"app_id": other, "type": "kafka"})).await, before);

    let change = json!({"name": "new", "fn_id": g, "source": "/new", "annotations": {"a": 1}});
    let updated = api.put(&path, &change).await.ok().json();
    for field in ["name", "fn_id", "source"] {
        assert_eq!(updated[field], change[field], "{field}");
    }
    assert_eq!(updated["annotations"]["fnproject.io/trigger/httpEndpoint"], "http://kiln.test:8080/t/a/new");
    assert_eq!(updated["annotations"]["a"], 1);

    let mismatch = "ID in path does not match ID in body";
    api.put(&path, &json!({"id": "x"})).await.refused(400, mismatch);
    api.put(&path, &json!({"source": "new"})).await.refused(400, "Missing Trigger Source Prefix '/'");
    api.put(&path, &json!({"name": "a b"})).await.refused(400, "Invalid name for Trigger");
    api.put(&path, &json!({"fn_id": "unknown"})).await.refused(404, "Fn not found");
    api.put(&path, &json!({"fn_id": foreign}))
        .await
        .refused(400, "Invalid Fn ID - not owned by specified app");
    let source_exists = "Trigger with the same type and source exists on this app";
    api.put(&path, &json!({"source": "/u"})).await.refused(409, source_exists);
    api.put(&path, &json!({"name": "u", "fn_id": f})).await.refused(409, "Trigger already exists");
    assert_eq!(api.get(&path).await.ok().json(), updated);
}

#[tokio::test]
async fn names_are_unique_per_function_and_sources_per_app() {
    let api = Api::new().await;
    let (app, other) = (api.app("a").await, api.app("b").await);
    let (first, second) = (api.function(&app, "f").await, api.function(&app, "g").await);
    let foreign = api.function(&other, "h").await;
    api.trigger(&app, &first, "same", "/f").await;
    api.trigger(&app, &second, "same", "/g").await;
    api.trigger(&other, &foreign, "same", "/f").await;
    let list = async |query: String| api.get(&format!("/v2/triggers?{query}")).await.ok().names().len();
    assert_eq!(list(format!("app_id={app}")).await, 2);
    assert_eq!(list(format!("app_id={app}&fn_id={first}")).await, 1);
    assert_eq!(list(format!("app_id={app}&fn_id={foreign}")).await, 0);
    assert_eq!(list(format!("app_id={app}&name=same")).await, 2);
    assert_eq!(list(format!("app_id={app}&name=sam")).await, 0);
    assert_eq!(list(format!("app_id={app}&fn_id={first}&name=same")).await, 1);
}

#[tokio::test]
async fn a_list_needs_an_app_and_says_so_once() {
    let api = Api::new().await;
    api.get("/v2/triggers").await.refused(400, "Missing App ID on Trigger");
    assert_eq!(api.get("/v2/triggers?app_id=unknown").await.ok().body, r#"{"items":[]}"#);
}

#[tokio::test]
async fn runners_find_a_trigger_by_its_exact_source() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let function = api.function(&app, "f").await;
    let base = format!("/v2/runner/apps/{app}/triggerBySource");
    for (name, source) in [("t1", "/hello"), ("t2", "/"), ("t3", "/a/b c"), ("t4", "/hello/")] {
        api.trigger(&app, &function, name, source).await;
    }
    for (path, name) in [
        ("http/hello", "t1"),
        ("http//hello", "t1"),
        ("http/", "t2"),
        ("http/a/b%20c", "t3"),
        ("http/hello/", "t4"),
    ] {
        assert_eq!(api.get(&format!("{base}/{path}")).await.ok().text("/name"), name, "{path}");
    }
    for path in ["http/none", "http/hell", "kafka/hello"] {
        api.get(&format!("{base}/{path}")).await.refused(404, "Trigger not found");
    }
    api.get("/v2/runner/apps/unknown/triggerBySource/http/hello").await.refused(404, "Trigger not found");
}
