//! A body that a test feeds.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError};
use tokio::sync::mpsc;

/// A body that the test feeds piece by piece, of which `pieces_max` wait for the reader; it ends when the sender is
/// dropped.
pub(crate) fn fed(length: Option<u64>, pieces_max: usize) -> (mpsc::Sender<Result<Bytes, BodyError>>, Body) {
    let (sender, receiver) = mpsc::channel(pieces_max);
    (sender, Body::Stream { stream: Box::pin(Fed(receiver)), length })
}

struct Fed(mpsc::Receiver<Result<Bytes, BodyError>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
