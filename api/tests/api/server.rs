//! What the API answers around its resources, as recorded from Fn's server (`spec/observed-fn.txt`).

use axum::body::{Body, to_bytes};
use axum::http::Request;
use kiln_api::{ApiState, FN_API_VERSION};
use serde_json::json;
use tower::ServiceExt;

use crate::support::{Answer, Api, DATABASE_AWAY, JSON};

#[tokio::test]
async fn greeting_and_version_are_fns() {
    let api = Api::new().await;
    assert_eq!(
        api.get("/").await.ok().body,
        r#"{"goto":"https://github.com/fnproject/fn","hello":"world!"}"#
    );
    assert_eq!(api.get("/version").await.ok().body, format!(r#"{{"version":"{FN_API_VERSION}"}}"#));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_named() {
    let api = Api::new().await;
    for (method, path, shown) in [
        ("GET", "/healthz", "/healthz"),
        ("GET", "/nope", "/nope"),
        ("POST", "/v2", "/v2"),
        ("GET", "/v1/apps?x=1", "/v1/apps"),
        ("GET", "/a%20b/%C3%A4", "/a b/ä"),
        ("GET", "/a%zz%", "/a%zz%"),
        ("DELETE", "/v2/apps/a/b", "/v2/apps/a/b"),
        ("PATCH", "/v2/apps/", "/v2/apps/"),
        ("GET", "/v2/apps//", "/v2/apps//"),
        ("GET", "/v2//apps", "/v2//apps"),
        ("GET", "/v2/../v2/apps", "/v2/../v2/apps"),
    ] {
        api.request(method, path, "").await.refused(404, &format!("Path not found: {method} {shown}"));
    }
    for (method, path) in [
        ("PATCH", "/v2/apps/x"),
        ("POST", "/v2/apps/x"),
        ("DELETE", "/v2/apps"),
        ("PUT", "/v2/fns"),
        ("POST", "/version"),
        ("PUT", "/"),
        ("DELETE", "/v2/fns/x/calls"),
        ("POST", "/v2/openapi.json"),
    ] {
        api.request(method, path, "").await.refused(405, &format!("Method not allowed: {method} {path}"));
    }
}

#[tokio::test]
async fn a_slash_too_many_or_too_few_leads_to_the_right_path() {
    let api = Api::new().await;
    for (path, location) in [
        ("/v2/apps/", "/v2/apps"),
        ("/v2/apps/a/", "/v2/apps/a"),
        ("/v2/fns/?app_id=x&name=y", "/v2/fns?app_id=x&name=y"),
        ("/v2/fns/x/calls/y/log/", "/v2/fns/x/calls/y/log"),
        ("/version/", "/version"),
        ("/v2/apps/%22x/", "/v2/apps/%22x"),
        ("/v2/runner/apps/x/triggerBySource/http", "/v2/runner/apps/x/triggerBySource/http/"),
    ] {
        let (status, at, answer) = redirected(&api, "GET", path).await;
        assert_eq!((status, at.as_str()), (301, location), "{path}");
        let shown = location.replace('&', "&amp;");
        assert_eq!(answer, format!("<a href=\"{shown}\">Moved Permanently</a>.\n\n"));
    }
    for (method, path, location) in [
        ("POST", "/v2/apps/", "/v2/apps"),
        ("PUT", "/v2/fns/x/?a=b", "/v2/fns/x?a=b"),
        ("DELETE", "/v2/triggers/x/", "/v2/triggers/x"),
    ] {
        let (status, at, answer) = redirected(&api, method, path).await;
        assert_eq!((status, at.as_str(), answer.as_str()), (307, location, ""), "{method} {path}");
    }
}

/// Status, `Location` and body.
async fn redirected(api: &Api, method: &str, path: &str) -> (u16, String, String) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
    let response = kiln_api::router(ApiState::new(api.catalog.clone())).oneshot(request).await;
    let (parts, body) = response.expect("the router always answers").into_parts();
    let location = parts.headers.get("location").map_or("", |value| value.to_str().expect("text"));
    let body = to_bytes(body, 1 << 20).await.expect("a whole body");
    (parts.status.as_u16(), location.to_owned(), String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn errors_escape_as_gos_json_does() {
    let api = Api::new().await;
    let answer = api.get("/%3Ca%3E&%E2%80%A8").await;
    assert_eq!(answer.body, "{\"message\":\"Path not found: GET /\\u003ca\\u003e\\u0026\\u2028\"}\n");
    let created = api.post("/v2/apps", &json!({"name": "a", "config": {"Q": "a<b>&c"}})).await.ok();
    assert!(created.body.contains(r#""Q":"a\u003cb\u003e\u0026c""#), "{created:?}");
    assert_eq!(created.json()["config"]["Q"], "a<b>&c");
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_before_anything_else() {
    let api = Api::new().await;
    let small = Api::with(ApiState { body_bytes_max: 64, ..ApiState::new(api.catalog) });
    let body = json!({"name": "a", "config": {"K": "v".repeat(64)}}).to_string();
    let declared = Request::post("/v2/apps").header("content-length", body.len());
    let answer = small.send(declared.body(Body::from(body.clone())).expect("a request")).await;
    let expected = format!(
        "{{\"message\":\"Content-Length too large for this server, {} \\u003e max 64\"}}\n",
        body.len()
    );
    assert_eq!(answer, Answer { status: 413, content_type: JSON.to_owned(), body: expected });

    let pieces = body.as_bytes().chunks(10).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let chunked = Body::from_stream(futures_util::stream::iter(pieces.collect::<Vec<_>>()));
    let answer = small.send(Request::post("/v2/apps").body(chunked).expect("a request")).await;
    answer.refused(413, "Request content too large");
    assert_eq!(small.get("/v2/apps").await.ok().body, r#"{"items":[]}"#);

    let fits = json!({"name": "a".repeat(64 - r#"{"name":""}"#.len())}).to_string();
    assert_eq!(fits.len(), 64);
    small.request("POST", "/v2/apps", fits).await.ok();
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_used() {
    let api = Api::new().await;
    let pieces = [Ok(br#"{"name":"a"}"#.to_vec()), Err(std::io::Error::other("gone"))];
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    api.send(Request::post("/v2/apps").body(body).expect("a request")).await.refused(400, "Invalid JSON");
    assert_eq!(api.get("/v2/apps").await.ok().body, r#"{"items":[]}"#);
}

#[tokio::test]
async fn a_database_that_is_away_is_a_503_with_the_reason() {
    let api = Api::new().await;
    api.catalog.close().await;
    for path in ["/v2/apps", "/v2/apps/x", "/v2/fns?app_id=x", "/v2/triggers/x", "/v2/fns/x/calls"] {
        api.get(path).await.refused(503, DATABASE_AWAY);
    }
    api.post("/v2/apps", &json!({"name": "a"})).await.refused(503, DATABASE_AWAY);
    let request = Request::get("/v2/apps").body(Body::empty()).expect("a request");
    let response = kiln_api::router(ApiState::new(api.catalog)).oneshot(request).await;
    assert_eq!(response.expect("the router always answers").headers()["retry-after"], "1");
}
