//! The OpenAPI document tells what is served.

use crate::support::Api;

#[tokio::test]
async fn every_path_and_method_of_the_specification_is_documented_and_served() {
    let api = Api::new().await;
    let document = api.get("/v2/openapi.json").await.ok().json();
    let paths = document["paths"].as_object().expect("paths");
    let mut served: Vec<String> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").keys();
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    served.sort();
    let expected = [
        "DELETE /v2/apps/{app_id}",
        "DELETE /v2/fns/{fn_id}",
        "DELETE /v2/triggers/{trigger_id}",
        "GET /",
        "GET /v2/apps",
        "GET /v2/apps/{app_id}",
        "GET /v2/fns",
        "GET /v2/fns/{fn_id}",
        "GET /v2/fns/{fn_id}/calls",
        "GET /v2/fns/{fn_id}/calls/{call_id}",
        "GET /v2/fns/{fn_id}/calls/{call_id}/log",
        "GET /v2/openapi.json",
        "GET /v2/runner/apps/{app_id}/triggerBySource/{type}/",
        "GET /v2/runner/apps/{app_id}/triggerBySource/{type}/{source}",
        "GET /v2/triggers",
        "GET /v2/triggers/{trigger_id}",
        "GET /version",
        "POST /v2/apps",
        "POST /v2/fns",
        "POST /v2/triggers",
        "PUT /v2/apps/{app_id}",
        "PUT /v2/fns/{fn_id}",
        "PUT /v2/triggers/{trigger_id}",
    ];
    assert_eq!(served, expected);
    for line in served {
        let (method, path) = line.split_once(' ').expect("two words");
        let answer = api.request(method, &path.replace(['{', '}'], ""), "").await;
        assert!(!answer.body.contains("Path not found") && answer.status != 405, "{line}: {answer:?}");
    }
}

#[tokio::test]
async fn every_reference_of_the_document_leads_to_a_schema_with_properties() {
    let api = Api::new().await;
    let answer = api.get("/v2/openapi.json").await.ok();
    let document = answer.json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{document}");
    let mut references = 0;
    for part in answer.body.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().expect("a pointer");
        assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
        references += 1;
    }
    assert!(references > 20, "{references} references");
    for (schema, field) in
        [("App", "syslog_url"), ("Fn", "idle_timeout"), ("Trigger", "source"), ("Call", "status")]
    {
        let pointer = format!("/components/schemas/{schema}/properties/{field}");
        assert!(document.pointer(&pointer).is_some(), "{pointer} is missing");
    }
}
