//! `/v2/fns`: every rule of `spec/api-v2.md`, part 2.2, and merging (part 3).

use serde_json::{Value, json};

use crate::support::{Api, with};

const MEMORY: &str = "memory value is out of range. It should be between 0 and 8192";
const TIMEOUT: &str = "timeout value is out of range, must be between 0 and 300";
const IDLE_TIMEOUT: &str = "idle_timeout value is out of range, must be between 0 and 3600";

#[tokio::test]
async fn a_function_is_created_with_defaults_read_listed_and_deleted() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let body = json!({"app_id": app, "name": "hello", "image": "me/hello:0.0.1"});
    let created = api.post("/v2/fns", &body).await.ok();
    let (id, at) = (created.text("/id"), created.text("/created_at"));
    let expected =
        format!(r#"{{"id":"{id}","name":"hello","app_id":"{app}","image":"me/hello:0.0.1","memory":128,"#)
            + r#""timeout":30,"idle_timeout":30,"config":{},"annotations":{"#
            + &format!(r#""fnproject.io/fn/invokeEndpoint":"http://kiln.test:8080/invoke/{id}"}},"#)
            + &format!(r#""created_at":"{at}","updated_at":"{at}"}}"#);
    assert_eq!(created.body, expected);
    assert_eq!(api.get(&format!("/v2/fns/{id}")).await, created);
    assert_eq!(
        api.get(&format!("/v2/fns?app_id={app}")).await.ok().body,
        format!(r#"{{"items":[{expected}]}}"#)
    );
    assert_eq!(api.delete(&format!("/v2/fns/{id}")).await.status, 204);
    api.get(&format!("/v2/fns/{id}")).await.refused(404, "Fn not found");
    api.put(&format!("/v2/fns/{id}"), &json!({})).await.refused(404, "Fn not found");
    api.delete(&format!("/v2/fns/{id}")).await.refused(404, "Fn not found");
}

#[tokio::test]
async fn given_fields_are_kept_and_the_shape_is_the_apps() {
    let api = Api::new().await;
    let app = api.post("/v2/apps", &json!({"name": "a", "shape": "GENERIC_ARM"})).await.ok().text("/id");
    let body = json!({
        "app_id": app, "name": "f", "image": "i", "memory": 8192, "timeout": 300, "idle_timeout": 3600,
        "config": {"K": "V", "EMPTY": ""}, "annotations": {"a": 1}, "format": "json", "shape": "GENERIC_X86",
        "created_at": "0001-01-01T00:00:00.000Z", "updated_at": "2018-09-30T11:22:33Z", "cpus": "100m",
    });
    let created = api.post("/v2/fns", &body).await.ok().json();
    for field in ["memory", "timeout", "idle_timeout", "config", "format"] {
        assert_eq!(created[field], body[field], "{field}");
    }
    assert_eq!(created["shape"], "GENERIC_ARM");
    assert_eq!(created["annotations"]["a"], 1);
    assert_ne!(created["updated_at"], body["updated_at"]);
}

#[tokio::test]
async fn every_rule_of_create_has_its_words() {
    let api = Api::new().await;
    let app = api.app("a").await;
    api.function(&app, "taken").await;
    let base = json!({"app_id": app, "name": "fresh", "image": "i"});
    let rules: Vec<(Value, u16, &str)> = vec![
        (json!({"id": "01CQ4S2K8JNG8G00GZJ0000001"}), 400, "ID cannot be provided for Fn creation"),
        (json!({"app_id": null}), 400, "Missing AppID on Fn"),
        (json!({"name": null}), 400, "Missing Fn name"),
        (json!({"name": "n".repeat(256)}), 400, "Fn name must be 255 characters or less"),
        (json!({"name": "a b"}), 400, "name must be a valid string"),
        (json!({"name": "a/b"}), 400, "name must be a valid string"),
        (json!({"name": "ä"}), 400, "name must be a valid string"),
        (json!({"name": "a%20"}), 400, "name must be a valid string"),
        (json!({"image": null}), 400, "Missing image on Fn"),
        (json!({"image": ""}), 400, "Missing image on Fn"),
        (json!({"format": "wazzup"}), 400, "Invalid format on Fn"),
        (json!({"timeout": 301}), 400, TIMEOUT),
        (json!({"timeout": -1}), 400, TIMEOUT),
        (json!({"idle_timeout": 3601}), 400, IDLE_TIMEOUT),
        (json!({"idle_timeout": -1}), 400, IDLE_TIMEOUT),
        (json!({"memory": 8193}), 400, MEMORY),
        (json!({"memory": -1}), 400, "Invalid JSON"),
        (json!({"memory": "128"}), 400, "Invalid JSON"),
        (json!({"timeout": 1.5}), 400, "Invalid JSON"),
        (json!({"timeout": 3_000_000_000_u64}), 400, "Invalid JSON"),
        (json!({"app_id": "01CQ4S2K8JNG8G00GZJ0000001"}), 404, "App not found"),
        (json!({"app_id": "no-id"}), 404, "App not found"),
        (json!({"name": "taken"}), 409, "Fn with specified name already exists"),
    ];
    for (change, status, message) in rules {
        api.post("/v2/fns", &with(&base, &change)).await.refused(status, message);
    }
    let names = api.get(&format!("/v2/fns?app_id={app}")).await.ok().names();
    assert_eq!(names, ["taken"], "nothing refused is stored");
}

#[tokio::test]
async fn the_first_broken_rule_speaks() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let mut body = json!({
        "id": "x", "app_id": "", "name": "", "image": "", "format": "odd", "timeout": 301,
        "idle_timeout": 3601, "memory": 8193, "annotations": {"": 1},
    });
    let steps = [
        ("ID cannot be provided for Fn creation", json!({"id": null})),
        ("Missing AppID on Fn", json!({"app_id": "unknown"})),
        ("Missing Fn name", json!({"name": "a b"})),
        ("name must be a valid string", json!({"name": "ab"})),
        ("Missing image on Fn", json!({"image": "i"})),
        ("Invalid format on Fn", json!({"format": null})),
        (TIMEOUT, json!({"timeout": null})),
        (IDLE_TIMEOUT, json!({"idle_timeout": null})),
        (MEMORY, json!({"memory": null})),
        (
            "Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace",
            json!({"annotations": null}),
        ),
    ];
    for (message, mend) in steps {
        api.post("/v2/fns", &body).await.refused(400, message);
        body = with(&body, &mend);
    }
    api.post("/v2/fns", &body).await.refused(404, "App not found");
    api.post("/v2/fns", &with(&body, &json!({ "app_id": app }))).await.ok();
}

#[tokio::test]
async fn names_may_hold_what_stands_in_a_path_segment() {
    let api = Api::new().await;
    let app = api.app("a").await;
    for name in ["a-b_c.d~e$f&g+h:i=j@k9", "0", &"n".repeat(255)] {
        let body = json!({"app_id": app, "name": name, "image": "i"});
        assert_eq!(api.post("/v2/fns", &body).await.ok().text("/name"), name);
    }
}

#[tokio::test]
async fn one_name_may_be_used_in_two_apps() {
    let api = Api::new().await;
    let (a, b) = (api.app("a").await, api.app("b").await);
    api.function(&a, "f").await;
    api.function(&b, "f").await;
}

#[tokio::test]
async fn an_update_merges_and_zero_means_no_change() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let body = json!({
        "app_id": app, "name": "f", "image": "i:1", "memory": 256, "timeout": 10, "idle_timeout": 20,
        "config": {"keep": "1", "drop": "2"}, "annotations": {"keep": 1, "drop": 2},
    });
    let created = api.post("/v2/fns", &body).await.ok();
    let path = format!("/v2/fns/{}", created.text("/id"));
    let nothing = json!({
        "name": "other", "app_id": "other", "shape": "GENERIC_ARM", "image": "", "memory": 0, "timeout": 0,
        "idle_timeout": 0, "config": {}, "annotations": {}, "format": "",
    });
    assert_eq!(api.put(&path, &nothing).await, created);
    assert_eq!(api.put(&path, &created.json()).await, created);

    let change = json!({
        "image": "i:2", "memory": 512, "timeout": 11, "idle_timeout": 21, "format": "http",
        "config": {"drop": "", "add": "3"}, "annotations": {"drop": null, "add": [1, 2]},
    });
    let updated = api.put(&path, &change).await.ok().json();
    for field in ["image", "memory", "timeout", "idle_timeout", "format"] {
        assert_eq!(updated[field], change[field], "{field}");
    }
    assert_eq!(updated["config"], json!({"add": "3", "keep": "1"}));
    assert_eq!(updated["annotations"]["add"], json!([1, 2]));
    assert_eq!(updated["annotations"].get("drop"), None);
    assert_eq!(api.get(&path).await.ok().json(), updated);
    assert_eq!(api.put(&path, &json!({"format": "http-stream"})).await.ok().json().get("format"), None);
}

#[tokio::test]
async fn an_update_is_validated_as_a_whole_and_changes_nothing_if_refused() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let path = format!("/v2/fns/{}", api.function(&app, "f").await);
    let before = api.get(&path).await.ok();
    let rules = [
        (json!({"memory": 8193}), MEMORY),
        (json!({"timeout": 301}), TIMEOUT),
        (json!({"timeout": -5}), TIMEOUT),
        (json!({"idle_timeout": 3601}), IDLE_TIMEOUT),
        (json!({"format": "odd"}), "Invalid format on Fn"),
        (json!({"id": "other"}), "Fn ID in path does not match that in body"),
        (
            json!({"image": "new", "annotations": {"a b": 1}}),
            "Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace",
        ),
    ];
    for (change, message) in rules {
        api.put(&path, &change).await.refused(400, message);
    }
    assert_eq!(api.get(&path).await, before);
}

#[tokio::test]
async fn of_many_creates_of_one_name_exactly_one_succeeds() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let creates: Vec<_> = (0..32)
        .map(|_| {
            let (api, app) = (api.clone(), app.clone());
            tokio::spawn(async move {
                api.post("/v2/fns", &json!({"app_id": app, "name": "one", "image": "i"})).await
            })
        })
        .collect();
    let mut statuses = Vec::new();
    for create in creates {
        statuses.push(create.await.expect("no panic").status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1);
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 31);
}

#[tokio::test]
async fn parallel_merges_of_one_function_lose_nothing() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let path = format!("/v2/fns/{}", api.function(&app, "f").await);
    let puts: Vec<_> = (0..16)
        .map(|number| {
            let (api, path) = (api.clone(), path.clone());
            let change = json!({"config": {format!("K{number}"): "v"}});
            tokio::spawn(async move { api.put(&path, &change).await.status })
        })
        .collect();
    for put in puts {
        assert_eq!(put.await.expect("no panic"), 200);
    }
    let config = api.get(&path).await.ok().json()["config"].clone();
    assert_eq!(config.as_object().map(serde_json::Map::len), Some(16));
}

#[tokio::test]
async fn deleting_a_function_removes_its_triggers() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let (gone, kept) = (api.function(&app, "gone").await, api.function(&app, "kept").await);
    api.trigger(&app, &gone, "t", "/gone").await;
    api.trigger(&app, &kept, "t", "/kept").await;
    assert_eq!(api.delete(&format!("/v2/fns/{gone}")).await.status, 204);
    let triggers = api.get(&format!("/v2/triggers?app_id={app}")).await.ok().json();
    assert_eq!(triggers["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(triggers["items"][0]["source"], "/kept");
    api.trigger(&app, &kept, "again", "/gone").await;
}

#[tokio::test]
async fn a_list_needs_an_app() {
    let api = Api::new().await;
    api.get("/v2/fns").await.refused(400, "Missing AppID on Fn");
    api.get("/v2/fns?app_id=&name=x").await.refused(400, "Missing AppID on Fn");
    assert_eq!(api.get("/v2/fns?app_id=unknown").await.ok().body, r#"{"items":[]}"#);
}
