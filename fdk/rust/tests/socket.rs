//! Functions as the platform meets them: a process with an environment, called over its unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use kiln_fdk::{Context, Input, Output, Result};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// The function under test. This is not a test: the tests start it as a process of its own.
#[test]
#[ignore = "the function that the other tests start"]
fn function() {
    let mut calls = 0;
    let code = kiln_fdk::run_streaming(move |context, input, output| {
        calls += 1;
        answer(calls, context, input, output)
    });
    assert_ne!(code, ExitCode::SUCCESS);
    process::exit(7);
}

fn answer(calls: u32, context: &Context, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<()> {
    match context.header("X-Ask").unwrap_or_default() {
        "count" => write!(output, "{calls}")?,
        "echo" => drop(std::io::copy(input, output)?),
        "error" => return Err("no \"luck\"".into()),
        "panic" => panic!("asked to"),
        "late" => {
            output.write_all(b"begun")?;
            output.flush()?;
            return Err("too late".into());
        }
        "status" => {
            output.set_status(418)?;
            output.add_header("X-A", "b")?;
            output.write_all(context.method().as_bytes())?;
        }
        "config" => output.write_all(context.config("GREETING").unwrap_or_default().as_bytes())?,
        other => return Err(format!("unknown: {other}").into()),
    }
    Ok(())
}

/// A running function; killed and its folder removed when dropped.
struct Function {
    process: Child,
    folder: PathBuf,
}

impl Drop for Function {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn command(name: &str) -> (Command, PathBuf) {
    let folder = env::temp_dir().join(format!("kiln-fdk-{}-{name}", process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let mut command = Command::new(env::current_exe().expect("this test"));
    command
        .args(["--ignored", "--exact", "function", "--nocapture"])
        .env_remove("FN_FORMAT")
        .env("FN_LISTENER", format!("unix:{}", folder.join("lsnr.sock").display()))
        .env("GREETING", "servus")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    (command, folder)
}

impl Function {
    fn start(name: &str) -> Self {
        let (mut command, folder) = command(name);
        let mut function = Self { process: command.spawn().expect("started"), folder };
        let patience = Instant::now() + PATIENCE;
        while fs::symlink_metadata(function.socket()).is_err() {
            assert_eq!(function.process.try_wait().expect("a state"), None, "the function ended");
            assert!(Instant::now() < patience, "no socket");
            thread::sleep(Duration::from_millis(2));
        }
        function
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("lsnr.sock")
    }

    fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.socket()).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Connection { reader: BufReader::new(stream) }
    }
}

struct Connection {
    reader: BufReader<UnixStream>,
}

struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).expect("sent");
    }

    fn read_head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.reader.read_line(&mut head).expect("a line"), 0, "closed after {head:?}");
        }
        head
    }

    /// Reads an answer; a chunked body must end properly.
    fn read(&mut self) -> Answer {
        let head = self.read_head();
        let mut body = Vec::new();
        if let Some((_, rest)) = head.split_once("Content-Length: ") {
            let length = rest.lines().next().and_then(|length| length.parse().ok()).expect("a length");
            body.resize(length, 0);
            self.reader.read_exact(&mut body).expect("the body");
        } else {
            loop {
                let mut line = String::new();
                self.reader.read_line(&mut line).expect("a size line");
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk size");
                let start = body.len();
                body.resize(start + size + 2, 0);
                self.reader.read_exact(&mut body[start..]).expect("a chunk");
                assert!(body.ends_with(b"\r\n"));
                body.truncate(start + size);
                if size == 0 {
                    break;
                }
            }
        }
        Answer { head, body }
    }

    fn ask(&mut self, what: &str) -> Answer {
        self.send(
            format!("POST /call HTTP/1.1\r\nHost: localhost\r\nFn-Call-Id: 1\r\nX-Ask: {what}\r\n\r\n")
                .as_bytes(),
        );
        self.read()
    }

    fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("an end") == 0
    }
}

#[test]
fn the_announced_socket_is_a_relative_link_that_anybody_can_write_to() {
    let function = Function::start("link");
    let target = fs::read_link(function.socket()).expect("a link");
    assert_eq!(target, PathBuf::from("phonylsnr.sock"));
    let metadata = fs::metadata(function.socket()).expect("a socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o666);
}

#[test]
fn one_connection_carries_many_calls_and_state_stays() {
    let function = Function::start("many");
    let mut connection = function.connect();
    for call in 1..=3 {
        let answer = connection.ask("count");
        assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", answer.head);
        assert_eq!(answer.body, call.to_string().as_bytes());
    }
    assert_eq!(connection.ask("config").body, b"servus");
}

#[test]
fn a_new_connection_is_served_while_old_ones_stay_open() {
    let function = Function::start("parallel");
    let mut open = Vec::new();
    for call in 1..=5 {
        let mut connection = function.connect();
        assert_eq!(connection.ask("count").body, call.to_string().as_bytes());
        open.push(connection);
    }
    assert_eq!(open[0].ask("count").body, b"6");
}

#[test]
fn bodies_of_any_size_and_framing_come_back() {
    let function = Function::start("echo");
    let mut connection = function.connect();
    for size in [0, 1, 16 * 1024, 16 * 1024 + 1, 3_000_000] {
        let body: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        let head = format!("POST /call HTTP/1.1\r\nX-Ask: echo\r\nContent-Length: {size}\r\n\r\n");
        let writer = connection.reader.get_ref().try_clone().expect("a handle");
        thread::scope(|scope| {
            scope.spawn(|| {
                (&writer).write_all(head.as_bytes()).expect("sent");
                (&writer).write_all(&body).expect("sent");
            });
            assert!(connection.read().body == body, "{size} bytes");
        });
    }
    connection.send(b"POST /call HTTP/1.1\r\nX-Ask: echo\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(connection.read().body, b"abcde");
}

#[test]
fn an_answer_streams_before_the_request_has_ended() {
    let function = Function::start("stream");
    let mut connection = function.connect();
    let large = "y".repeat(20_000);
    connection.send(b"POST /call HTTP/1.1\r\nX-Ask: echo\r\nTransfer-Encoding: chunked\r\n\r\n");
    connection.send(format!("{:x}\r\n{large}\r\n", large.len()).as_bytes());
    assert!(connection.read_head().contains("Transfer-Encoding: chunked"));
    connection.send(b"0\r\n\r\n");
    let mut rest = vec![0; 5];
    while !rest.ends_with(b"\r\n0\r\n\r\n") {
        let mut byte = [0];
        connection.reader.read_exact(&mut byte).expect("more");
        rest.push(byte[0]);
    }
    assert_eq!(connection.ask("count").body, b"2");
}

#[test]
fn an_unread_body_does_not_disturb_the_next_call() {
    let function = Function::start("unread");
    let mut connection = function.connect();
    connection.send(b"POST /call HTTP/1.1\r\nX-Ask: count\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(connection.read().body, b"1");
    assert_eq!(connection.ask("count").body, b"2");
}

#[test]
fn errors_and_panics_fail_the_call_and_keep_the_function() {
    let function = Function::start("errors");
    let mut connection = function.connect();
    let answer = connection.ask("error");
    assert!(answer.head.starts_with("HTTP/1.1 502 "), "{}", answer.head);
    assert_eq!(answer.body, b"{\"message\":\"no \\\"luck\\\"\"}\n");
    let answer = connection.ask("panic");
    assert!(answer.head.starts_with("HTTP/1.1 502 "), "{}", answer.head);
    assert_eq!(connection.ask("count").body, b"3");
}

#[test]
fn an_answer_that_breaks_off_closes_the_connection() {
    let function = Function::start("late");
    let mut connection = function.connect();
    connection.send(b"POST /call HTTP/1.1\r\nX-Ask: late\r\n\r\n");
    connection.read_head();
    let mut rest = String::new();
    connection.reader.read_to_string(&mut rest).expect("an end");
    assert_eq!(rest, "5\r\nbegun\r\n");
    assert_eq!(function.connect().ask("count").body, b"2");
}

#[test]
fn a_trigger_gets_status_and_prefixed_headers() {
    let function = Function::start("trigger");
    let mut connection = function.connect();
    connection.send(
        b"POST /call HTTP/1.1\r\nFn-Intent: httprequest\r\nFn-Http-Method: PUT\r\nFn-Http-H-X-Ask: status\r\n\r\n",
    );
    let answer = connection.read();
    assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", answer.head);
    assert!(answer.head.contains("\r\nFn-Http-H-X-A: b\r\n"), "{}", answer.head);
    assert!(answer.head.contains("\r\nFn-Http-Status: 418\r\n"), "{}", answer.head);
    assert_eq!(answer.body, b"PUT");
}

#[test]
fn the_peers_wish_to_close_is_kept() {
    let function = Function::start("close");
    let mut connection = function.connect();
    connection.send(b"POST /call HTTP/1.1\r\nX-Ask: count\r\nConnection: close\r\n\r\n");
    assert_eq!(connection.read().body, b"1");
    assert!(connection.is_closed());
}

#[test]
fn what_is_not_a_call_is_refused() {
    let function = Function::start("refused");
    for (head, status) in [
        ("GET /call HTTP/1.1\r\n\r\n", "405"),
        ("POST /other HTTP/1.1\r\n\r\n", "404"),
        ("POST /call HTTP/1.0\r\n\r\n", "505"),
        ("nonsense\r\n\r\n", "400"),
        ("POST /call HTTP/1.1\r\nContent-Length: x\r\n\r\n", "400"),
        ("POST /call HTTP/1.1\n\n", "400"),
    ] {
        let mut connection = function.connect();
        connection.send(head.as_bytes());
        assert!(connection.read().head.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}");
        assert!(connection.is_closed(), "{head:?}");
    }
}

#[test]
fn sigterm_ends_the_process_cleanly() {
    let mut function = Function::start("term");
    let sent =
        Command::new("kill").args(["-TERM", &function.process.id().to_string()]).status().expect("kill ran");
    assert!(sent.success());
    let patience = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = function.process.try_wait().expect("a state") {
            break status;
        }
        assert!(Instant::now() < patience, "still running");
        thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_wrong_environment_is_explained() {
    for (name, value, expected) in [
        ("FN_FORMAT", "json", "http-stream"),
        ("FN_LISTENER", "tcp:80", "unix:"),
        ("FN_LISTENER", "unix:/nowhere/at/all/lsnr.sock", "cannot listen on /nowhere/at/all/lsnr.sock"),
    ] {
        let (mut command, folder) = command("wrong");
        let output = command.env(name, value).stderr(Stdio::piped()).output().expect("ran");
        assert_eq!(output.status.code(), Some(7));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{text}");
        drop(fs::remove_dir_all(folder));
    }
}
