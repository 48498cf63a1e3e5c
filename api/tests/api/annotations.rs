//! Annotations on all three resources (`spec/api-v2.md`, part 2.4).

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::support::{Api, with};

const KEY: &str =
    "Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace";
const KEY_LENGTH: &str = "Invalid annotation key length, annotation keys may not be larger than 128 bytes";
const VALUE: &str =
    "Invalid annotation value, annotation values may only be non-empty strings, numbers, objects, or arrays";
const VALUE_LENGTH: &str = "Invalid annotation value length, annotation values may not be larger than 512 bytes when serialized as JSON";
const TOO_MANY: &str =
    "Invalid annotation change, new key(s) exceed maximum permitted number of annotations keys (100)";

/// The three resources: where they are made, and a body without annotations.
async fn resources(api: &Api) -> Vec<(&'static str, Value)> {
    let app = api.app("base").await;
    let function = api.function(&app, "base").await;
    vec![
        ("/v2/apps", json!({"name": "n"})),
        ("/v2/fns", json!({"name": "n", "app_id": app, "image": "i"})),
        (
            "/v2/triggers",
            json!({"name": "n", "app_id": app, "fn_id": function, "type": "http", "source": "/n"}),
        ),
    ]
}

fn many(count: usize) -> Value {
    (0..count).map(|number| (format!("k{number}"), json!(1))).collect::<Map<_, _>>().into()
}

#[tokio::test]
async fn every_rule_holds_for_every_resource() {
    let api = Api::new().await;
    for (path, base) in resources(&api).await {
        let rules = [
            (json!({"": 1}), KEY),
            (json!({"a b": 1}), KEY),
            (json!({"ä": 1}), KEY),
            (json!({"a\u{7f}": 1}), KEY),
            (json!({"k".repeat(129): 1}), KEY_LENGTH),
            (json!({"k": null}), VALUE),
            (json!({"k": ""}), VALUE),
            (json!({"k": "v".repeat(511)}), VALUE_LENGTH),
            (many(101), TOO_MANY),
        ];
        for (annotations, message) in rules {
            let body = with(&base, &json!({ "annotations": annotations }));
            api.post(path, &body).await.refused(400, message);
        }
        let most =
            json!({"k".repeat(128): "v".repeat(510), "!~": {"b": [1, null], "a": ""}, "n": 0, "f": false});
        let created = api.post(path, &with(&base, &json!({ "annotations": most }))).await.ok();
        let shown = created.json()["annotations"].clone();
        for (key, value) in most.as_object().expect("an object") {
            assert_eq!(shown[key], *value, "{path} {key}");
        }
        assert_eq!(shown["!~"].to_string(), r#"{"b":[1,null],"a":""}"#, "the order of keys is kept");
        let one = format!("{path}/{}", created.text("/id"));
        api.put(&one, &json!({ "annotations": many(97) })).await.refused(400, TOO_MANY);
        api.put(&one, &json!({ "annotations": many(96) })).await.ok();
        api.put(&one, &json!({"annotations": {"k0": null, "another": 1}})).await.ok();
    }
}

#[tokio::test]
async fn computed_annotations_are_not_stored_and_win_over_what_is_sent() {
    let api = Api::new().await;
    let computed = ["fnproject.io/fn/invokeEndpoint", "fnproject.io/trigger/httpEndpoint"];
    for (path, base) in resources(&api).await {
        let sent =
            with(&base, &json!({"annotations": {computed[0]: "http://evil", computed[1]: "", "own": "x"}}));
        let created = api.post(path, &sent).await.ok();
        let one = format!("{path}/{}", created.text("/id"));
        let back = api.put(&one, &created.json()).await.ok();
        assert_eq!(
            back.text("/updated_at"),
            created.text("/created_at"),
            "sending them back changes nothing"
        );
        assert!(!back.body.contains("evil"), "{back:?}");
        assert_eq!(back.json()["annotations"]["own"], "x");
        // They do not count: a hundred own ones fit beside them.
        api.put(&one, &json!({ "annotations": with(&many(99), &json!({computed[0]: "y"})) })).await.ok();
    }
}

#[tokio::test]
async fn endpoints_are_below_the_public_url_or_the_requests_host() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let id = api.function(&app, "f").await;
    let shown = |answer: crate::support::Answer| {
        answer.ok().json()["annotations"]["fnproject.io/fn/invokeEndpoint"].clone()
    };
    assert_eq!(shown(api.get(&format!("/v2/fns/{id}")).await), format!("http://kiln.test:8080/invoke/{id}"));
    let absolute = api.get(&format!("https://edge.test/v2/fns/{id}")).await;
    assert_eq!(shown(absolute), format!("https://edge.test/invoke/{id}"));
    let public = Api::with(kiln_api::ApiState {
        public_url: Some("https://public.test/".to_owned()),
        ..kiln_api::ApiState::new(api.catalog.clone())
    });
    assert_eq!(shown(public.get(&format!("/v2/fns/{id}")).await), format!("https://public.test/invoke/{id}"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is accepted is shown again as it was sent; what is refused breaks a rule.
    #[test]
    fn annotations_round_trip_or_break_a_rule(key in "\\PC{0,4}|[!-~]{1,140}", value in value()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let api = Api::new().await;
            let answer = api.post("/v2/apps", &json!({"name": "a", "annotations": {key.clone(): value.clone()}})).await;
            let key_fits = !key.is_empty() && key.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) && key.len() <= 128;
            let empty = value.is_null() || value == json!("");
            let computed = key.starts_with("fnproject.io/");
            let value_fits = !empty && value.to_string().len() <= 512;
            if key_fits && value_fits && !computed {
                prop_assert_eq!(answer.status, 200, "{:?}", answer);
                let id = answer.text("/id");
                let shown = api.get(&format!("/v2/apps/{id}")).await.json()["annotations"][&key].clone();
                prop_assert_eq!(shown.to_string(), value.to_string());
            } else {
                prop_assert_eq!(answer.status, 400, "{:?}", answer);
            }
            Ok(())
        })?;
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[a-z<>&]{480,520}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z]{1,4}", inner), 0..4)
                .prop_map(|pairs| pairs.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}
