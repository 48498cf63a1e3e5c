//! What the contract's tests share.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::body::Body;
use crate::call::{CallKind, CallRequest};
use crate::function::{Format, Function, FunctionSpec};
use crate::http1::HeaderBlock;
use crate::ids::{AppId, CallId, FunctionId};

pub(crate) fn function(format: Format) -> Function {
    Function::new(FunctionSpec {
        name: "hello".to_owned(),
        app_name: "demo".to_owned(),
        format,
        ..FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "demo/hello:0.0.1")
    })
}

pub(crate) fn block(lines: &[(&str, &str)]) -> HeaderBlock {
    let mut block = HeaderBlock::new();
    for (name, value) in lines {
        block.push(name.as_bytes(), value.as_bytes()).expect("a valid line");
    }
    block
}

/// A POST to a function through `/invoke`.
pub(crate) fn call(format: Format, headers: &[(&str, &str)], body: &'static str) -> CallRequest {
    CallRequest {
        id: CallId::generate(),
        function: Arc::new(function(format)),
        kind: CallKind::Invoke,
        method: http::Method::POST,
        url: "http://localhost:8080/t/demo/hello?x=1".to_owned(),
        path: "/hello".into(),
        headers: block(headers),
        body: Body::from(Bytes::from_static(body.as_bytes())),
        received: Instant::now(),
        placement: None,
    }
}
