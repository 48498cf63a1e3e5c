//! The call that every way carries, and the agent that gives its body back.

use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use kiln_shared::body::Body;
use kiln_shared::call::{CallKind, CallRequest, CallResponse, Stages};
use kiln_shared::function::{Function, FunctionSpec};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::buffer::WriteFraming;
use kiln_shared::http1::client::SendBody;
use kiln_shared::http1::head::{HeadLimits, ResponseHead};
use kiln_shared::http1::server::{Request, Response, Service, plain};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::link::call::{IncomingCall, Verdict, answer, read_answer, request_head};
use kiln_shared::story::{Placement, Reason};

/// Bounds of heads; both ends use them.
pub fn head_limits() -> HeadLimits {
    HeadLimits::default()
}

/// A call as a browser's proxy would send it.
#[derive(Debug)]
pub struct Call {
    request: CallRequest,
    body: Bytes,
}

impl Call {
    /// With a body of so many bytes.
    pub fn new(body_bytes: usize) -> Self {
        let spec = FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "example/f:1");
        let mut headers = HeaderBlock::new();
        for (name, value) in [
            ("User-Agent", "curl/8.9.1"),
            ("Accept", "*/*"),
            ("Content-Type", "application/octet-stream"),
            ("X-Request-Id", "6f2b1c0e-8a3d-4f5e-9b7a-1d2c3e4f5a6b"),
        ] {
            headers.push_valid(name.as_bytes(), value.as_bytes());
        }
        let request = CallRequest {
            id: CallId::generate(),
            function: Arc::new(Function::new(spec)),
            kind: CallKind::Invoke,
            method: Method::POST,
            url: "http://kiln.example.com/invoke/01CQ4S2K8JNG8G00GZJ0000002".to_owned(),
            path: "/invoke".into(),
            headers,
            body: Body::Empty,
            received: Instant::now(),
            placement: Some(Placement {
                balancer: Arc::clone(&BALANCER),
                reason: Some(Reason::WarmHome),
                asked: 1,
                calls: 32,
                tries: 1,
                refused: Vec::new(),
                waits: 0,
                waited: Duration::ZERO,
                before: Duration::from_micros(12),
            }),
        };
        Self { request, body: Bytes::from(vec![b'x'; body_bytes]) }
    }

    /// The head of the next call.
    ///
    /// # Errors
    /// None with these constants.
    pub fn head(&self) -> Result<Vec<u8>> {
        let framing = WriteFraming::Fixed(self.body.len() as u64);
        Ok(request_head(&self.request, "127.0.0.1:8081", framing, SendBody::AtOnce)?)
    }

    /// Its body.
    pub fn body(&self) -> Body {
        Body::from(self.body.clone())
    }

    /// The same as bytes.
    pub fn body_bytes(&self) -> Bytes {
        self.body.clone()
    }

    /// Checks an answer.
    ///
    /// # Errors
    /// It is not what the agent must say.
    pub fn check(&self, mut head: ResponseHead, bytes: usize) -> Result<()> {
        let verdict = read_answer(&mut head).context("the answer's head")?;
        ensure!(matches!(verdict, Verdict::Answer(..)) && head.status == 200, "a refusal: {verdict:?}");
        ensure!(bytes == self.body.len(), "{bytes} bytes for {}", self.body.len());
        Ok(())
    }
}

/// The balancer that calls are from.
static BALANCER: LazyLock<Arc<str>> = LazyLock::new(|| "balancer".into());

/// Answers with the call's body.
#[derive(Debug)]
pub struct Echo;

impl Service for Echo {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send {
        std::future::ready(match IncomingCall::read(request.head, &BALANCER) {
            Err(error) => plain(400, &error.to_string()),
            Ok(call) => {
                std::hint::black_box(&call);
                let mut headers = HeaderBlock::new();
                headers.push_valid(b"Content-Type", b"application/octet-stream");
                answer(CallResponse { status: 200, headers, body: request.body, stages: Stages::default() })
            }
        })
    }

    fn sends_date(&self) -> bool {
        false
    }
}
