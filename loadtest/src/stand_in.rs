//! A server that answers every request at once with 200 and 12 bytes: what other proxies are measured in front of. Kiln is
//! measured in front of an agent whose functions answer the same ([`crate::agent`]).
//!
//! One thread with epoll, so that on a shared core the proxy's cost stands out. It reads `Content-Length` bodies and
//! chunked ones as far as it must to find the next request.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cost;

/// The body of every answer.
pub const ANSWER_BODY: &[u8; 12] = b"hello world\n";

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nhello world\n";

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const FIRST: u64 = 2;

/// A running stand-in; dropping it ends it.
#[derive(Debug)]
pub struct StandIn {
    port: u16,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Starts it on a free port of 127.0.0.1, on `core` alone if one is given.
    ///
    /// # Errors
    /// If no port is free.
    pub fn start(core: Option<usize>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (stop, stopped) = UnixStream::pair()?;
        let thread = thread::Builder::new().name("stand-in".to_owned()).spawn(move || {
            let result =
                core.map_or(Ok(()), cost::pin_to_core).and_then(|()| Ok(serve(&listener, &stopped)?));
            if let Err(error) = result {
                eprintln!("the stand-in ended: {error:#}");
            }
        })?;
        Ok(Self { port, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // An error means that the thread ended already.
        self.stop.write_all(b"x").unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

fn serve(listener: &TcpListener, stopped: &UnixStream) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(stopped.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
    // Keys count up: a benchmark opens a few hundred connections in all.
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            ready => ready?,
        };
        for event in &events[..ready] {
            match event.data() {
                STOP => return Ok(()),
                LISTENER => {
                    let Ok((stream, _)) = listener.accept() else { continue };
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    epoll.add(
                        stream.as_fd(),
                        EpollEvent::new(EpollFlags::EPOLLIN, FIRST + connections.len() as u64),
                    )?;
                    connections.push(Some(Connection { stream, buffer: Vec::with_capacity(4096) }));
                }
                key => {
                    let slot = &mut connections[(key - FIRST) as usize];
                    if slot.as_mut().is_some_and(|connection| answer(connection).is_err()) {
                        *slot = None;
                    }
                }
            }
        }
    }
}

/// Reads once and answers every request that is complete.
fn answer(connection: &mut Connection) -> io::Result<()> {
    let mut piece = [0; 16 * 1024];
    let read = match connection.stream.read(&mut piece) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
    };
    connection.buffer.extend_from_slice(&piece[..read]);
    while let Some(length) = request_length(&connection.buffer)? {
        connection.buffer.drain(..length);
        connection.stream.write_all(ANSWER)?;
    }
    Ok(())
}

/// Length of the request at the start of `buffer`, head and body; `None` if it is not complete.
fn request_length(buffer: &[u8]) -> io::Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Ok(status) = head.parse(buffer) else { return Err(invalid("a bad head")) };
    let httparse::Status::Complete(head_bytes) = status else { return Ok(None) };
    let find = |name: &str| head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if find("transfer-encoding").is_some() {
        // Bodies here are small and hold no such bytes themselves.
        let end = buffer[head_bytes..].windows(5).position(|window| window == b"0\r\n\r\n");
        return Ok(end.map(|end| head_bytes + end + 5));
    }
    let length = match find("content-length") {
        None => 0,
        Some(header) => std::str::from_utf8(header.value)
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok())
            .ok_or_else(|| invalid("a bad length"))?,
    };
    Ok((buffer.len() >= head_bytes + length).then_some(head_bytes + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Target, request};

    #[test]
    fn every_request_of_a_connection_is_answered() {
        let server = StandIn::start(None).expect("starts");
        let mut connection = Target::loopback(server.port()).connect().expect("listens");
        for body in [&b""[..], b"hello"] {
            let answer = connection.fetch(&request("POST", "/", &[], body)).expect("answers");
            assert_eq!((answer.status, &answer.body[..]), (200, &ANSWER_BODY[..]));
        }
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
        assert_eq!(connection.exchange(chunked).expect("answers"), 200);
    }
}
