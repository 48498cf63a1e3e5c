//! Containers that follow a script: each call takes a while, and now and then a container ends in the middle of one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_agent::container::{
    Container, ContainerControl, ContainerPlan, Driver, DriverFuture, Exit, Output, OutputSource, StartStages,
};
use kiln_shared::ids::CallId;
use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::world::Shared;

/// Room of a container's pipe, in bytes.
const PIPE_BYTES: usize = 64 << 10;

pub(crate) struct Containers {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: String,
}

struct Control;

impl ContainerControl for Control {
    fn freeze(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn thaw(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers calls until its input ends, or until it fails in one of them.
async fn serve(shared: Arc<Shared>, node: String, input: DuplexStream, output: mpsc::Sender<Output>) -> Exit {
    let mut lines = BufReader::new(input).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.is_empty() {
            continue;
        }
        let call: serde_json::Value = serde_json::from_str(&line).expect("a call");
        let id: CallId = call["call_id"].as_str().and_then(|id| id.parse().ok()).expect("its id");
        let (number, takes, fails) = shared.book().begun(id, &node);
        sleep(takes).await;
        if fails {
            return Exit::Code(1);
        }
        shared.book().ended(id, number);
        let bytes = Bytes::from_static(br#"{"body":"ok","protocol":{"status_code":200}}"#);
        if output.send(Output { source: OutputSource::Stdout, bytes }).await.is_err() {
            break;
        }
    }
    Exit::Code(0)
}

impl Driver for Containers {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start(&self, _plan: ContainerPlan) -> DriverFuture<'_, Container> {
        Box::pin(async move {
            sleep(Duration::from_millis(200)).await;
            let (stdin, input) = tokio::io::duplex(PIPE_BYTES);
            let (sender, output) = mpsc::channel(8);
            let (exited, exit) = watch::channel(None);
            let (shared, node) = (Arc::clone(&self.shared), self.node.clone());
            tokio::spawn(async move {
                let ended = serve(shared, node, input, sender).await;
                exited.send_replace(Some(ended));
            });
            Ok(Container {
                name: "scripted".to_owned(),
                socket: None,
                stdin: Some(Box::pin(stdin)),
                output: Some(output),
                exit,
                control: Box::new(Control),
                stages: StartStages::default(),
            })
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}
