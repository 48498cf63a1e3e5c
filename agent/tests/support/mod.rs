//! What this crate's integration tests share: function images that need no registry, and a caller for them.

#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

pub(crate) mod calls;
mod images;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_agent::container::{ContainerPlan, Transport};
use kiln_shared::function::{Format, Function, FunctionSpec};
use kiln_shared::ids::{AppId, FunctionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) use self::images::{docker, image};

/// A function's spec with an image of [`image`], 64 MiB, and `BEHAVIOUR` set.
pub(crate) fn spec(image: &str, behaviour: &str) -> FunctionSpec {
    FunctionSpec {
        name: "test".to_owned(),
        app_name: "tests".to_owned(),
        memory_mib: 64,
        config: BTreeMap::from([("BEHAVIOUR".to_owned(), behaviour.to_owned())]),
        ..FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), image)
    }
}

/// A plan for `spec` whose environment is the spec's config.
pub(crate) fn plan(spec: FunctionSpec, transport: Transport) -> ContainerPlan {
    let environment = spec.config.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    ContainerPlan { function: Arc::new(Function::new(spec)), environment, transport }
}

/// Calls a function once on its own connection and gives its answer.
pub(crate) async fn call(socket: &Path, body: &str) -> std::io::Result<String> {
    // A function that binds `lsnr.sock` itself is noticed a moment before it listens.
    let mut stream = loop {
        match tokio::net::UnixStream::connect(socket).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                tokio::task::yield_now().await;
            }
            connected => break connected?,
        }
    };
    let head = format!("POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .and_then(|value| value.parse().ok())
            .expect("a length");
        if body.len() >= length {
            return Ok(body.to_owned());
        }
    }
}

/// Waits until `condition` holds, at most 20 s.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Reads a child's pipe until it says `words`.
pub(crate) fn read_until(pipe: &mut impl Read, words: &str) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.contains(words) && pipe.read(&mut byte).expect("a pipe") == 1 {
        text.push(char::from(byte[0]));
    }
    text
}
