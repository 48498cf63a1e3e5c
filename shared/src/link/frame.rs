//! Messages on a stream: four bytes of length, then JSON.
//!
//! JSON, because messages must be read by versions that do not know every field, and because they are rare beside
//! calls. Lengths are bounded by whoever reads.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const LENGTH_BYTES: usize = 4;

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream broke.
    #[error("the stream broke")]
    Io(#[from] io::Error),
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Cut,
    /// The message is longer than allowed.
    #[error("a message of {bytes} bytes; at most {bytes_max} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// It is not what was expected.
    #[error("a message that cannot be read")]
    Malformed(#[from] serde_json::Error),
}

/// Reads messages from one stream.
#[derive(Debug)]
pub struct MessageReader<R> {
    stream: R,
    buffer: BytesMut,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads messages of at most `bytes_max` bytes.
    pub fn new(stream: R, bytes_max: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), bytes_max }
    }

    /// Allows messages of at most `bytes_max` bytes from now on.
    #[must_use]
    pub fn with_bytes_max(self, bytes_max: usize) -> Self {
        Self { bytes_max, ..self }
    }

    /// The next message; `None` at the end of the stream. Cancel-safe: what was read stays.
    ///
    /// # Errors
    /// See [`ReadError`]; the stream is of no use then.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ReadError> {
        loop {
            if let Some(length) = self.length()? {
                let message = serde_json::from_slice(&self.buffer[LENGTH_BYTES..LENGTH_BYTES + length])?;
                self.buffer.advance(LENGTH_BYTES + length);
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Cut) };
            }
        }
    }

    /// The next bytes, as they are: what a message said that would follow it. Cancel-safe: what was read stays.
    ///
    /// # Errors
    /// There are more than `bytes_max`, or fewer than `bytes`.
    pub async fn bytes(&mut self, bytes: usize, bytes_max: usize) -> Result<Bytes, ReadError> {
        if bytes > bytes_max {
            return Err(ReadError::TooLong { bytes, bytes_max });
        }
        self.buffer.reserve(bytes.saturating_sub(self.buffer.len()));
        while self.buffer.len() < bytes {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadError::Cut);
            }
        }
        Ok(self.buffer.split_to(bytes).freeze())
    }

    /// Waits until the peer has ended the stream; whatever it still says is passed over. Cancel-safe.
    pub async fn ended(&mut self) {
        self.buffer.clear();
        while let Ok(1..) = self.stream.read_buf(&mut self.buffer).await {
            self.buffer.clear();
        }
    }

    /// The length of the message at the front, if all of it is there.
    fn length(&mut self) -> Result<Option<usize>, ReadError> {
        let Some(&length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(length) as usize;
        if bytes > self.bytes_max {
            return Err(ReadError::TooLong { bytes, bytes_max: self.bytes_max });
        }
        if self.buffer.len() < LENGTH_BYTES + bytes {
            self.buffer.reserve(LENGTH_BYTES + bytes - self.buffer.len());
            return Ok(None);
        }
        Ok(Some(bytes))
    }
}

/// Writes one message. Not cancel-safe: a message that was begun must be ended.
///
/// # Errors
/// The stream broke.
pub async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - LENGTH_BYTES).map_err(io::Error::other)?;
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let (mut one, other) = tokio::io::duplex(3);
        let sent = ["", "a", "a longer one"];
        let write = async {
            for text in sent {
                write_message(&mut one, &text).await.expect("writes");
            }
            drop(one);
        };
        let read = async {
            let mut reader = MessageReader::new(other, 64);
            let mut messages = Vec::new();
            while let Some(message) = reader.next::<String>().await.expect("reads") {
                messages.push(message);
            }
            messages
        };
        assert_eq!(tokio::join!(write, read).1, sent);
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_not_read() {
        let bytes: &[u8] = &[0, 0, 1, 0, b'"'];
        let error = MessageReader::new(bytes, 255).next::<String>().await.expect_err("too long");
        assert!(matches!(error, ReadError::TooLong { bytes: 256, bytes_max: 255 }), "{error}");
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_message_is_cut() {
        for bytes in [&[0, 0][..], &[0, 0, 0, 3, b'"']] {
            let error = MessageReader::new(bytes, 255).next::<String>().await.expect_err("cut");
            assert!(matches!(error, ReadError::Cut), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_malformed() {
        let bytes: &[u8] = &[0, 0, 0, 1, b'{'];
        let error = MessageReader::new(bytes, 255).next::<String>().await.expect_err("malformed");
        assert!(matches!(error, ReadError::Malformed(_)), "{error}");
    }
}
