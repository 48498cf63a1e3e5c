//! How a machine that has only a join token gets its first certificate.
//!
//! It dials a balancer's link under another protocol name, believes it for the CA's fingerprint in the token, asks on one
//! stream and is answered there.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use quinn::{ConnectError, ConnectionError, Endpoint};
use tokio::time::timeout;

use super::frame::{MessageReader, ReadError, write_message};
use super::quic::{CODE_DONE, NoCipherSuite, client_config};
use super::{JOIN_ALPN, MESSAGE_BYTES_MAX, SERVER_NAME};
use crate::identity::{
    CertificateRequest, Identity, JoinAnswer, JoinRequest, JoinToken, RequestError, joining_client_config,
};

/// Longest time for a balancer to answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a machine did not get a certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The address cannot be dialled.
    #[error("cannot dial the balancer")]
    Dial(#[from] ConnectError),
    /// Nobody there, or not one who can be believed.
    #[error(
        "no answer from a balancer of this fleet at that address; check the address and that UDP gets there, and that the token is of this fleet"
    )]
    Connection(#[from] ConnectionError),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The answer cannot be read.
    #[error("the balancer's answer cannot be read; is it of this version of Kiln?")]
    Read(#[from] ReadError),
    /// No answer.
    #[error(
        "the balancer did not answer in time; try again, and with a new token if this one is then said to be used"
    )]
    Silent,
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// The request cannot be made, or the answer does not fit it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No TLS settings.
    #[error(transparent)]
    Tls(#[from] NoCipherSuite),
}

/// Redeems `token` at the balancer at `address`, for a certificate of `name` and the key of `request`.
///
/// # Errors
/// See [`JoinError`]. With the same request the token is still good, at every balancer, unless one has refused it; with
/// another one it may have been used up by an answer that was lost.
pub async fn join(
    dialer: &Endpoint,
    address: SocketAddr,
    token: &JoinToken,
    name: &str,
    request: &CertificateRequest,
) -> Result<Identity, JoinError> {
    let asked = ask(dialer, address, token, name, request);
    match timeout(JOIN_TIMEOUT, asked).await.map_err(|_elapsed| JoinError::Silent)?? {
        JoinAnswer::Joined(signed) => Ok(request.complete(&signed, token.role(), SystemTime::now())?),
        JoinAnswer::Refused { message, .. } => Err(JoinError::Refused(message)),
    }
}

async fn ask(
    dialer: &Endpoint,
    address: SocketAddr,
    token: &JoinToken,
    name: &str,
    request: &CertificateRequest,
) -> Result<JoinAnswer, JoinError> {
    let tls = client_config(joining_client_config(token.ca(), JOIN_ALPN))?;
    let connection = dialer.connect_with(tls, address, SERVER_NAME)?.await?;
    let (mut writer, reader) = connection.open_bi().await?;
    write_message(&mut writer, &JoinRequest::new(token, name, request, SystemTime::now())).await?;
    let answer = MessageReader::new(reader, MESSAGE_BYTES_MAX).next().await?.ok_or(JoinError::Silent)?;
    connection.close(CODE_DONE, b"");
    Ok(answer)
}
