//! Which paths and methods are calls, and what the others get (`spec/api-v2.md`, parts 1, 4 and 5).

use bytes::Bytes;
use kiln_lb::edge::EdgeConfig;
use kiln_shared::body::Body;
use kiln_shared::token::Token;

use crate::support::{TestEdge, answer};

async fn edge() -> TestEdge {
    TestEdge::start(|_| answer(200, &[], Body::from(Bytes::from_static(b"called")))).await
}

#[tokio::test]
async fn a_trigger_takes_any_method_and_an_invocation_only_post() {
    let edge = edge().await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        let reply = edge.request(method, "/t/demo/hello?x=1").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "called"), "{method}");
    }
    let called = edge.node.calls();
    let path = &edge.invoke_path;
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        edge.request(method, path).await.refused(405, &format!("Method not allowed: {method} {path}"));
    }
    edge.request("GET", "/invoke/%61b?x=1").await.refused(405, "Method not allowed: GET /invoke/ab");
    edge.request("POST", "/metrics").await.refused(405, "Method not allowed: POST /metrics");
    edge.request("DELETE", "/v2/apps").await.refused(405, "Method not allowed: DELETE /v2/apps");
    assert_eq!(edge.node.calls(), called);
    assert_eq!(edge.request("POST", path).await.body, "called");
}

#[tokio::test]
async fn a_source_is_matched_as_it_is_and_never_mended() {
    let edge = edge().await;
    for path in ["/t/demo", "/t/demo/", "/t/demo/hello", "/t/demo/%68ello", "/t%2Fdemo/hello"] {
        assert_eq!(edge.request("GET", path).await.body, "called", "{path}");
    }
    let called = edge.node.calls();
    for path in ["/t/demo/hello/", "/t/demo//hello", "/t/demo/./hello", "/t/demo/x/../hello", "/t/demo/Hello"]
    {
        edge.request("GET", path).await.refused(404, "Trigger not found");
    }
    edge.request("GET", "/t/nobody/hello").await.refused(404, "App not found");
    edge.request("GET", "/t/").await.refused(404, "Path not found: GET /t/");
    edge.request("GET", "//t/demo/hello").await.refused(404, "Path not found: GET //t/demo/hello");
    edge.request("POST", "/invoke/").await.refused(404, "Path not found: POST /invoke/");
    edge.request("POST", "/invoke/nothing").await.refused(404, "Fn not found");
    edge.request("GET", "/t/demo/%zz").await.refused(400, "Invalid path: bad percent escape");
    assert_eq!(edge.node.calls(), called);
}

#[tokio::test]
async fn a_slash_too_many_is_redirected_where_fn_redirects_it() {
    let edge = edge().await;
    let path = edge.invoke_path.clone();
    let reply = edge.request("POST", &format!("{path}/?x=1")).await;
    let location = format!("{path}?x=1");
    assert_eq!((reply.status, reply.header("Location")), (307, Some(location.as_str())));
    assert_eq!((reply.body.as_str(), reply.header("Content-Length")), ("", Some("0")));
    edge.request("GET", &format!("{path}/")).await.refused(404, &format!("Path not found: GET {path}/"));
    let reply = edge.request("GET", "/v2/apps/").await;
    assert_eq!((reply.status, reply.header("Location")), (301, Some("/v2/apps")));
    assert_eq!(edge.node.calls(), 0);
}

#[tokio::test]
async fn words_of_the_edge_are_escaped_as_gos_json_does() {
    let edge = TestEdge::start_with(EdgeConfig { body_bytes_max: 4, ..EdgeConfig::default() }, |_| {
        answer(200, &[], Body::Empty)
    })
    .await;
    let reply = edge.exchange("POST /t/demo/hello HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n").await;
    let words = "{\"message\":\"Content-Length too large for this server, 5 \\u003e max 4\"}\n";
    assert!(reply.starts_with("HTTP/1.1 413 ") && reply.ends_with(words), "{reply}");
    assert_eq!(edge.node.calls(), 0);
}

#[tokio::test]
async fn a_caller_without_the_token_is_told_the_scheme() {
    let config = EdgeConfig { token: Some(Token::new("s3cret").expect("a token")), ..EdgeConfig::default() };
    let edge = TestEdge::start_with(config, |_| answer(200, &[], Body::Empty)).await;
    let reply = edge.request("GET", "/t/demo/hello").await;
    reply.refused(401, "Unauthorized");
    assert_eq!(reply.header("WWW-Authenticate"), Some("Bearer"));
    assert_eq!(edge.node.calls(), 0);
}
