//! `/v2/apps`: every rule of `spec/api-v2.md`, part 2.1, and merging (part 3).

use kiln_testkit::until;
use serde_json::{Value, json};

use crate::support::{Api, with};

#[tokio::test]
async fn an_app_is_created_read_listed_and_deleted() {
    let api = Api::new().await;
    let created = api.post("/v2/apps", &json!({"name": "a1", "config": {"K": "V"}})).await.ok();
    let (id, at) = (created.text("/id"), created.text("/created_at"));
    let expected = format!(
        r#"{{"id":"{id}","name":"a1","config":{{"K":"V"}},"created_at":"{at}","updated_at":"{at}"}}"#
    );
    assert_eq!(created.body, expected);
    assert_eq!(api.get(&format!("/v2/apps/{id}")).await, created);
    assert_eq!(api.get("/v2/apps").await.ok().body, format!(r#"{{"items":[{expected}]}}"#));

    let gone = api.delete(&format!("/v2/apps/{id}")).await;
    assert_eq!(
        (gone.status, gone.content_type.as_str(), gone.body.as_str()),
        (204, crate::support::TEXT, "")
    );
    api.get(&format!("/v2/apps/{id}")).await.refused(404, "App not found");
    api.delete(&format!("/v2/apps/{id}")).await.refused(404, "App not found");
    api.put(&format!("/v2/apps/{id}"), &json!({})).await.refused(404, "App not found");
    assert_eq!(api.get("/v2/apps").await.ok().body, r#"{"items":[]}"#);
}

#[tokio::test]
async fn all_fields_are_shown_in_fns_order_and_empty_ones_are_not() {
    let api = Api::new().await;
    let body = json!({
        "shape": "GENERIC_X86_ARM", "syslog_url": "tcp+tls://logs.example.com:1234",
        "annotations": {"x/y": "z"}, "config": {"B": "2", "A": "1"}, "name": "full",
        "created_at": "0001-01-01T00:00:00.000Z", "updated_at": "0001-01-01T00:00:00.000Z",
    });
    let created = api.post("/v2/apps", &body).await.ok();
    let (id, at) = (created.text("/id"), created.text("/created_at"));
    assert_eq!(
        created.body,
        format!(r#"{{"id":"{id}","name":"full","config":{{"A":"1","B":"2"}},"annotations":{{"x/y":"z"}},"#)
            + r#""syslog_url":"tcp+tls://logs.example.com:1234","shape":"GENERIC_X86_ARM","#
            + &format!(r#""created_at":"{at}","updated_at":"{at}"}}"#)
    );
    let empty = json!({"name": "empty", "config": {}, "annotations": {}, "syslog_url": "", "shape": ""});
    let created = api.post("/v2/apps", &empty).await.ok().json();
    let keys: Vec<&String> = created.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["id", "name", "created_at", "updated_at"]);
}

#[tokio::test]
async fn times_have_three_fraction_digits_and_ids_26_characters() {
    let api = Api::new().await;
    let created = api.post("/v2/apps", &json!({"name": "a"})).await.ok();
    let at = created.text("/created_at");
    assert!(at.len() == 24 && at.as_bytes()[19] == b'.' && at.ends_with('Z'), "{at}");
    let id = created.text("/id");
    assert!(
        id.len() == 26 && id.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()),
        "{id}"
    );
}

#[tokio::test]
async fn every_rule_of_create_has_its_words() {
    let api = Api::new().await;
    api.app("taken").await;
    let name_missing = json!({"name": null});
    let rules: Vec<(Value, u16, String)> = vec![
        (json!({"id": "01CQ4S2K8JNG8G00GZJ0000001"}), 400, "App ID cannot be supplied on create".into()),
        (name_missing, 400, "Missing Name".into()),
        (json!({"name": ""}), 400, "Missing Name".into()),
        (json!({"name": "n".repeat(256)}), 400, "App name must be 255 characters or less".into()),
        (json!({"name": "ä".repeat(128)}), 400, "App name must be 255 characters or less".into()),
        (json!({"name": "a b"}), 400, "Invalid app name".into()),
        (json!({"name": "a/b"}), 400, "Invalid app name".into()),
        (json!({"name": "a.b"}), 400, "Invalid app name".into()),
        (json!({"shape": "GENERIC_Z80"}), 400, "Invalid app shape".into()),
        (json!({"name": "taken"}), 409, "App already exists".into()),
        (json!({"config": {"": "v"}}), 400, config_invalid()),
        (json!({"config": {"a=b": "v"}}), 400, config_invalid()),
        (json!({"config": {"a": "\u{0}"}}), 400, config_invalid()),
    ];
    for (change, status, message) in rules {
        let body = with(&json!({"name": "fresh"}), &change);
        api.post("/v2/apps", &body).await.refused(status, &message);
    }
    for url in ["http://logs", "logs:514x", "syslog://x", "nothing", "TCPX://x"] {
        let message = format!(
            "invalid syslog url: \"{url}\" invalid scheme, only [tcp, udp, unix, unixgram, tcp+tls] are supported"
        );
        api.post("/v2/apps", &json!({"name": "fresh", "syslog_url": url})).await.refused(400, &message);
    }
    assert_eq!(api.get("/v2/apps").await.ok().names(), ["taken"], "nothing refused is stored");
}

fn config_invalid() -> String {
    "Invalid config, keys must be non-empty without '=', and neither keys nor values may contain NUL"
        .to_owned()
}

#[tokio::test]
async fn the_first_broken_rule_speaks() {
    let api = Api::new().await;
    // Each step mends what the step before was refused for.
    let mut body = json!({
        "id": "x", "name": "", "annotations": {"a b": 1}, "syslog_url": "http://x", "shape": "square",
    });
    let steps = [
        ("App ID cannot be supplied on create", json!({"id": null})),
        ("Missing Name", json!({"name": "a b"})),
        ("Invalid app name", json!({"name": "ab"})),
        (
            "Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace",
            json!({"annotations": null}),
        ),
        (
            "invalid syslog url: \"http://x\" invalid scheme, only [tcp, udp, unix, unixgram, tcp+tls] are supported",
            json!({"syslog_url": null}),
        ),
        ("Invalid app shape", json!({"shape": null})),
    ];
    for (message, mend) in steps {
        api.post("/v2/apps", &body).await.refused(400, message);
        body = with(&body, &mend);
    }
    api.post("/v2/apps", &body).await.ok();
}

#[tokio::test]
async fn names_of_any_script_and_syslog_urls_of_every_scheme_are_taken() {
    let api = Api::new().await;
    for name in ["a", "A-b_9", "äpp", "приложение", "应用", &"n".repeat(255)] {
        assert_eq!(api.post("/v2/apps", &json!({ "name": name })).await.ok().text("/name"), name);
    }
    let urls =
        ["tcp://h:514", "udp://h", "unix:///run/s", "unixgram:///dev/log", "tcp+tls://h", "TCP://[::1]:1"];
    for (number, url) in urls.iter().enumerate() {
        let body = json!({"name": format!("s{number}"), "syslog_url": url});
        assert_eq!(api.post("/v2/apps", &body).await.ok().text("/syslog_url"), *url);
    }
    let all = urls.join(", ");
    let body = json!({"name": "all", "syslog_url": all});
    assert_eq!(api.post("/v2/apps", &body).await.ok().text("/syslog_url"), all);
}

#[tokio::test]
async fn a_malformed_syslog_url_is_refused_with_the_reason_on_create_and_update() {
    let api = Api::new().await;
    let id = api.post("/v2/apps", &json!({"name": "a"})).await.ok().text("/id");
    for (list, url, reason) in [
        ("tcp://h:99999", "tcp://h:99999", "has a port that is no number from 1 to 65535"),
        ("tcp://h udp://u:p@h", "udp://u:p@h", "names a user, whom syslog does not know"),
        ("unix://dev/log", "unix://dev/log", "has no absolute path, as in unix:///dev/log"),
        (" , ", " , ", "names no sink"),
    ] {
        let message = format!("invalid syslog url: {url:?} {reason}");
        api.post("/v2/apps", &json!({"name": "b", "syslog_url": list})).await.refused(400, &message);
        api.put(&format!("/v2/apps/{id}"), &json!({"syslog_url": list})).await.refused(400, &message);
    }
    assert_eq!(api.get("/v2/apps").await.ok().names(), ["a"], "nothing refused is stored");
}

#[tokio::test]
async fn unreadable_json_is_refused_as_fn_does() {
    let api = Api::new().await;
    let id = api.app("a").await;
    let bodies = [
        "",
        "{",
        "[]",
        "7",
        "\"x\"",
        r#"{"name":1}"#,
        r#"{"name":"b"} x"#,
        r#"{"config":{"a":1}}"#,
        r#"{"config":[]}"#,
        r#"{"annotations":[]}"#,
        r#"{"created_at":"yesterday"}"#,
        r#"{"syslog_url":1}"#,
        "{\"name\":\"\u{0}\"}",
    ];
    for body in bodies {
        api.request("POST", "/v2/apps", body).await.refused(400, "Invalid JSON");
        api.request("PUT", &format!("/v2/apps/{id}"), body).await.refused(400, "Invalid JSON");
    }
}

#[tokio::test]
async fn unknown_fields_are_ignored_nulls_are_absent_and_the_last_of_two_holds() {
    let api = Api::new().await;
    api.request("POST", "/v2/apps", "null").await.refused(400, "Missing Name");
    let body = r#"{"name":"x","colour":"red","config":null,"annotations":null,"syslog_url":null,"shape":null,
        "id":null,"created_at":null,"name":"y"}"#;
    assert_eq!(api.request("POST", "/v2/apps", body).await.ok().text("/name"), "y");
    let body = r#"{"name":"z","config":{"A":null,"B":"b"}}"#;
    let created = api.request("POST", "/v2/apps", body).await.ok().json();
    assert_eq!(created["config"], json!({"A": "", "B": "b"}));
}

#[tokio::test]
async fn an_update_merges() {
    let api = Api::new().await;
    let body = json!({
        "name": "a", "config": {"keep": "1", "change": "2", "drop": "3"}, "syslog_url": "udp://h:1",
        "annotations": {"keep": 1, "change": [1], "drop": true, "null": 1}, "shape": "GENERIC_ARM",
    });
    let created = api.post("/v2/apps", &body).await.ok();
    let path = format!("/v2/apps/{}", created.text("/id"));
    let change = json!({
        "config": {"change": "new", "drop": "", "add": "4", "never": ""}, "shape": "GENERIC_X86",
        "annotations": {"change": {"b": 1, "a": 2}, "drop": "", "null": null, "add": 0},
    });
    let updated = api.put(&path, &change).await.ok().json();
    assert_eq!(updated["config"], json!({"add": "4", "change": "new", "keep": "1"}));
    assert_eq!(updated["annotations"], json!({"add": 0, "change": {"b": 1, "a": 2}, "keep": 1}));
    assert_eq!(updated["annotations"]["change"].to_string(), r#"{"b":1,"a":2}"#);
    assert_eq!(updated["syslog_url"], "udp://h:1");
    assert_eq!(updated["shape"], "GENERIC_ARM");
    assert_eq!(updated["created_at"], created.json()["created_at"]);

    assert_eq!(api.put(&path, &json!({"syslog_url": "tcp://h"})).await.ok().json()["syslog_url"], "tcp://h");
    assert_eq!(api.put(&path, &json!({"syslog_url": ""})).await.ok().json().get("syslog_url"), None);
    api.put(&path, &json!({"syslog_url": "ftp://h"})).await.refused(
        400,
        "invalid syslog url: \"ftp://h\" invalid scheme, only [tcp, udp, unix, unixgram, tcp+tls] are supported",
    );
}

#[tokio::test]
async fn an_update_may_send_back_what_was_read() {
    let api = Api::new().await;
    let created = api.post("/v2/apps", &json!({"name": "a", "config": {"K": "V"}})).await.ok();
    let path = format!("/v2/apps/{}", created.text("/id"));
    assert_eq!(api.put(&path, &created.json()).await, created, "no change leaves updated_at");
    let changed = until("the clock ticks and updated_at differs", async || {
        let count = format!("{:?}", std::time::Instant::now());
        let answer = api.put(&path, &with(&created.json(), &json!({"config": {"K": count}}))).await.ok();
        (answer.text("/updated_at") > created.text("/updated_at")).then_some(answer)
    })
    .await;
    assert_eq!(changed.text("/created_at"), created.text("/created_at"));
}

#[tokio::test]
async fn ids_and_names_do_not_change() {
    let api = Api::new().await;
    let id = api.app("a").await;
    let path = format!("/v2/apps/{id}");
    api.put(&path, &json!({"id": "other"})).await.refused(400, "App ID in path does not match ID in body");
    api.put("/v2/apps/none", &json!({"id": "other"}))
        .await
        .refused(400, "App ID in path does not match ID in body");
    api.put(&path, &json!({"name": "b"})).await.refused(409, "Could not update - name is immutable");
    api.put(&path, &json!({"id": id, "name": "a"})).await.ok();
}

#[tokio::test]
async fn of_many_creates_of_one_name_exactly_one_succeeds() {
    let api = Api::new().await;
    let creates: Vec<_> = (0..32)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move { api.post("/v2/apps", &json!({"name": "one"})).await })
        })
        .collect();
    let mut succeeded = 0;
    for create in creates {
        let answer = create.await.expect("no panic");
        if answer.status == 200 {
            succeeded += 1;
        } else {
            answer.refused(409, "App already exists");
        }
    }
    assert_eq!(succeeded, 1);
    assert_eq!(api.get("/v2/apps").await.ok().names(), ["one"]);
}

#[tokio::test]
async fn deleting_an_app_removes_all_that_belongs_to_it() {
    let api = Api::new().await;
    let (app, other) = (api.app("a").await, api.app("b").await);
    let (function, kept) = (api.function(&app, "f").await, api.function(&other, "f").await);
    let trigger = api.trigger(&app, &function, "t", "/t").await;
    let kept_trigger = api.trigger(&other, &kept, "t", "/t").await;
    assert_eq!(api.delete(&format!("/v2/apps/{app}")).await.status, 204);
    api.get(&format!("/v2/fns/{function}")).await.refused(404, "Fn not found");
    api.get(&format!("/v2/triggers/{trigger}")).await.refused(404, "Trigger not found");
    api.get(&format!("/v2/fns/{kept}")).await.ok();
    api.get(&format!("/v2/triggers/{kept_trigger}")).await.ok();
    api.app("a").await;
}
