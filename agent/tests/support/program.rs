//! The function that tests run: a static program with the standard library alone.
//!
//! `BEHAVIOUR` chooses how it starts:
//!
//! | value | what it does |
//! |---|---|
//! | `phony` (default) | listens as the FDKs do: on another name, then links `lsnr.sock` to it |
//! | `direct` | binds `lsnr.sock` itself |
//! | `absolute` | links `lsnr.sock` by an absolute path, which the contract forbids |
//! | `file` | makes a plain file `lsnr.sock` |
//! | `silent` | never listens |
//! | `exit` | prints a line to stderr and ends with code 7 |
//! | `chatty` | writes 1 MiB to stdout, then listens as `phony` |
//! | `hungry` | takes memory until it is killed |
//! | `cat` | copies stdin to stdout until its end, then ends |
//! | `traced` | as `phony`, once there is a file `trace` beside the socket, in which it writes of its calls |
//! | `lines` | answers each line of stdin as a command, or with the same line in capitals |
//! | `pipes` | serves calls over stdin and stdout in the format that `FN_FORMAT` names |
//!
//! When it listens, it serves HTTP/1.1 with keep-alive. The first word of a request's body is a command, the
//! rest its argument; anything else is answered as it came:
//!
//! | command | answer |
//! |---|---|
//! | `identity` | `uid=.. gid=.. host=..` |
//! | `environment` | one `name=value` a line |
//! | `write PATH` | `ok`, or the error |
//! | `read PATH` | the file, or the error |
//! | `list PATH` | names in a directory, sorted |
//! | `threads N` | how many of N threads could be made |
//! | `files N` | how many of N files could be opened |
//! | `connect HOST:PORT` | `connected`, or the error |
//! | `listen PORT` | `ok`: listens on TCP and greets whoever connects |
//! | `addresses` | its IPv4 addresses |
//! | `processes` | names of all processes it can see |
//! | `print N` | N bytes written to stdout |
//! | `complain TEXT` | writes TEXT to stderr |
//! | `count` | how many calls it has served |
//! | `sleep MILLIS` | answers later |
//! | `eat` | takes memory until it is killed |
//! | `exit N` | ends with that code, without an answer |
//! | `relink PATH` | makes `lsnr.sock` a link to PATH |
//! | `alone MILLIS` | answers later, with `alone` or, if another call came meanwhile, `together` |
//!
//! And for calls alone:
//!
//! | command | what it does |
//! |---|---|
//! | `request` | answers the request as it came, frame and all |
//! | `slowly TEXT` | answers TEXT, each byte of the answer written alone |
//! | `chunked TEXT` | answers TEXT as an HTTP/1.1 message in chunks |
//! | `garbage` | answers what is no answer in any format but `default` |
//! | `twice TEXT` | answers TEXT, and once more |
//! | `cut N` | writes the beginning of an answer and ends with code N |
//! | `stall` | writes the beginning of an answer and never ends it |
//! | `hang` | never answers |
//! | `status N` | answers with that status (not over pipes) |
//! | `bloat BYTES` | answers with a header of that length (not over pipes) |

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

const DIRECTORY: &str = "/tmp/iofs";
const SOCKET: &str = "/tmp/iofs/lsnr.sock";

static CALLS: AtomicU64 = AtomicU64::new(0);
/// Where `traced` writes a line `begin ID NANOS` when a call begins and `end ID NANOS` before it is answered, with the
/// time since 1970.
static TRACE: OnceLock<File> = OnceLock::new();
/// Calls of the command `alone` under way.
static ALONE: AtomicU64 = AtomicU64::new(0);

fn main() {
    match std::env::var("BEHAVIOUR").as_deref().unwrap_or("phony") {
        "phony" => serve(phony("phonylsnr.sock")),
        "traced" => {
            TRACE.set(until_traced()).unwrap();
            serve(phony("phonylsnr.sock"));
        }
        "direct" => serve(bind(SOCKET)),
        "absolute" => {
            let listener = bind("/tmp/iofs/phonylsnr.sock");
            symlink("/tmp/iofs/phonylsnr.sock", SOCKET).unwrap();
            serve(listener);
        }
        "file" => {
            File::create(SOCKET).unwrap();
            park();
        }
        "silent" => park(),
        "exit" => {
            eprintln!("cannot find the answer");
            exit(7);
        }
        "chatty" => {
            print(1 << 20);
            serve(phony("phonylsnr.sock"));
        }
        "hungry" => eat(),
        "cat" => drop(io::copy(&mut io::stdin(), &mut io::stdout()).unwrap()),
        "lines" => {
            for line in io::stdin().lines() {
                let line = line.unwrap();
                let (command, argument) = line.split_once(' ').unwrap_or((line.as_str(), ""));
                let capitals = || line.to_uppercase().into_bytes();
                let answer = answer(command, argument).unwrap_or_else(capitals);
                println!("{}", String::from_utf8_lossy(&answer));
            }
        }
        "pipes" => converse_over_pipes(&std::env::var("FN_FORMAT").unwrap()).unwrap(),
        other => panic!("unknown BEHAVIOUR {other}"),
    }
}

/// The file that somebody makes for this function, once it may be written.
fn until_traced() -> File {
    loop {
        match File::options().append(true).open(format!("{DIRECTORY}/trace")) {
            Ok(file) => return file,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Writes a word of a call into the trace, if there is one.
fn trace(word: &str, request: &[u8]) {
    let Some(mut file) = TRACE.get() else { return };
    let request = String::from_utf8_lossy(request);
    let call = request.lines().find_map(|line| line.strip_prefix("Fn-Call-Id: ")).unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    // In one write, so that lines of several calls do not mix.
    file.write_all(format!("{word} {call} {now}\n").as_bytes()).unwrap();
}

fn bind(path: &str) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    listener
}

fn phony(name: &str) -> UnixListener {
    let listener = bind(&format!("{DIRECTORY}/{name}"));
    symlink(name, SOCKET).unwrap();
    listener
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

fn serve(listener: UnixListener) {
    for connection in listener.incoming() {
        let connection = connection.unwrap();
        thread::spawn(move || drop(converse(connection)));
    }
}

fn converse(mut connection: UnixStream) -> io::Result<()> {
    let mut reader = Recorder { inner: BufReader::new(connection.try_clone()?), seen: Vec::new() };
    while let Some(body) = read_request(&mut reader)? {
        let request = std::mem::take(&mut reader.seen);
        CALLS.fetch_add(1, Ordering::Relaxed);
        trace("begin", &request);
        let text = String::from_utf8_lossy(&body).into_owned();
        let (command, argument) = text.split_once(' ').unwrap_or((text.as_str(), ""));
        let message = |status: u16, header: &str, body: &[u8]| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Whatever\r\n{header}\r\nContent-Length: {length}\r\n\r\n");
            [head.as_bytes(), body].concat()
        };
        let plain = |body: &[u8]| message(200, "Content-Type: text/plain", body);
        match command {
            "status" => connection.write_all(&message(argument.parse().unwrap(), "X-Failed: yes", b"why"))?,
            "bloat" => {
                let header = format!("X-Large: {}", "x".repeat(argument.parse().unwrap()));
                connection.write_all(&message(200, &header, b""))?;
            }
            "request" => connection.write_all(&plain(&request))?,
            _ if misbehave(command, argument, &plain, &mut connection)? => {}
            _ => {
                let answer = answer(command, argument).unwrap_or(body);
                trace("end", &request);
                connection.write_all(&plain(&answer))?;
            }
        }
    }
    Ok(())
}

/// Answers the commands that are about how an answer is written. `frame` makes an answer of its body. False if
/// `command` is none of them.
fn misbehave(
    command: &str,
    argument: &str,
    frame: &dyn Fn(&[u8]) -> Vec<u8>,
    out: &mut dyn Write,
) -> io::Result<bool> {
    let begin = |out: &mut dyn Write| {
        let whole = frame(b"0123456789");
        out.write_all(&whole[..whole.len() - 5])?;
        out.flush()
    };
    match command {
        "slowly" => {
            for byte in frame(argument.as_bytes()) {
                out.write_all(&[byte])?;
                out.flush()?;
            }
        }
        "chunked" => {
            write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for letter in argument.chars() {
                write!(out, "{:x}\r\n{letter}\r\n", letter.len_utf8())?;
                out.flush()?;
            }
            write!(out, "0\r\n\r\n")?;
        }
        "garbage" => writeln!(out, "this is no answer")?,
        "twice" => out.write_all(&[frame(argument.as_bytes()), frame(argument.as_bytes())].concat())?,
        "cut" => {
            begin(out)?;
            exit(argument.parse().unwrap());
        }
        "stall" => {
            begin(out)?;
            park();
        }
        "hang" => park(),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Serves calls over stdin and stdout until stdin ends.
fn converse_over_pipes(format: &str) -> io::Result<()> {
    let mut input = Recorder { inner: io::stdin().lock(), seen: Vec::new() };
    while let Some(body) = read_frame(format, &mut input)? {
        let request = String::from_utf8_lossy(&std::mem::take(&mut input.seen)).into_owned();
        CALLS.fetch_add(1, Ordering::Relaxed);
        let (command, argument) = body.split_once(' ').unwrap_or((body.as_str(), ""));
        let framed = |body: &[u8]| frame(format, std::str::from_utf8(body).unwrap());
        let mut out = io::stdout();
        match command {
            "request" => out.write_all(&framed(request.as_bytes()))?,
            _ if misbehave(command, argument, &framed, &mut out)? => {}
            _ => {
                let answer = answer(command, argument).unwrap_or_else(|| body.clone().into_bytes());
                out.write_all(&framed(&answer))?;
            }
        }
        out.flush()?;
        if format == "default" {
            break;
        }
    }
    Ok(())
}

/// Keeps what is read through it.
struct Recorder<R> {
    inner: R,
    seen: Vec<u8>,
}

impl<R: BufRead> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..bytes]);
        Ok(bytes)
    }
}

impl<R: BufRead> BufRead for Recorder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        let taken = self.inner.fill_buf().unwrap()[..bytes].to_vec();
        self.seen.extend(taken);
        self.inner.consume(bytes);
    }
}

/// The body of the next request in this format; `None` at the end of the input.
fn read_frame(format: &str, input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    let (begin, end) = match format {
        "default" => {
            input.read_to_string(&mut text)?;
            return Ok(Some(text));
        }
        "http" => {
            let body = read_request(input)?;
            return Ok(body.map(|body| String::from_utf8(body).unwrap()));
        }
        // An object ends with a blank line, an event with its line.
        "json" => ("\"body\":\"", "\n\n"),
        "cloudevent" => ("\"data\":\"", "\n"),
        other => panic!("unknown FN_FORMAT {other}"),
    };
    while !text.ends_with(end) {
        if input.read_line(&mut text)? == 0 {
            return Ok(None);
        }
    }
    let inside = text.split_once(begin).map_or("", |(_, rest)| rest);
    Ok(Some(unescaped(inside)))
}

/// The text of a JSON string up to its closing quote; of the escapes those that tests use.
fn unescaped(inside: &str) -> String {
    let (mut text, mut letters) = (String::new(), inside.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => match letters.next().unwrap() {
                'n' => text.push('\n'),
                letter @ ('"' | '\\' | '/') => text.push(letter),
                other => panic!("the escape {other} is not for tests"),
            },
            letter => text.push(letter),
        }
    }
    text
}

/// A whole answer with this body, and where the format has them with status 201 and the header `X-Count`.
fn frame(format: &str, body: &str) -> Vec<u8> {
    let count = CALLS.load(Ordering::Relaxed);
    let quoted: String = body
        .chars()
        .map(|letter| match letter {
            '"' | '\\' => format!("\\{letter}"),
            letter if letter < ' ' => format!("\\u{:04x}", letter as u32),
            letter => letter.to_string(),
        })
        .collect();
    let protocol = format!("\"protocol\":{{\"status_code\":201,\"headers\":{{\"X-Count\":[\"{count}\"]}}}}");
    let text = match format {
        "default" => body.to_owned(),
        "http" => format!(
            "HTTP/1.1 201 Whatever\r\nContent-Type: text/plain\r\nX-Count: {count}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        "json" => format!("{{\"body\":\"{quoted}\",\"content_type\":\"text/plain\",{protocol}}}\n"),
        "cloudevent" => format!(
            "{{\"cloudEventsVersion\":\"0.1\",\"contentType\":\"text/plain\",\"extensions\":{{{protocol}}},\"data\":\"{quoted}\"}}\n"
        ),
        other => panic!("unknown FN_FORMAT {other}"),
    };
    text.into_bytes()
}

/// The next request's body; `None` at the end of the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let (mut length, mut chunked, mut line) = (0, false, String::new());
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        } else if let Some(value) = header.strip_prefix("transfer-encoding:") {
            chunked = value.trim() == "chunked";
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            reader.take(size as u64).read_to_end(&mut body)?;
            line.clear();
            reader.read_line(&mut line)?;
            if size == 0 {
                break;
            }
        }
    } else {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    }
    Ok(Some(body))
}

fn answer(command: &str, argument: &str) -> Option<Vec<u8>> {
    let number = || argument.parse::<usize>().unwrap();
    let text = match command {
        "identity" => {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let id = |name: &str| -> String {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_whitespace().nth(1).unwrap().to_owned()
            };
            let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
            let capabilities = status.lines().find(|line| line.starts_with("CapEff")).unwrap();
            let privileges = status.lines().find(|line| line.starts_with("NoNewPrivs")).unwrap();
            let seccomp = status.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
            format!(
                "uid={} gid={} host={} {capabilities} {privileges} {seccomp}",
                id("Uid:"),
                id("Gid:"),
                host.trim()
            )
        }
        "environment" => std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect(),
        "write" => result(fs::write(argument, "x").map(|()| "ok".to_owned())),
        "read" => result(fs::read_to_string(argument)),
        "list" => result(fs::read_dir(argument).map(|entries| {
            let mut names: Vec<_> =
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.join(" ")
        })),
        "threads" => {
            // All at once: none ends before the last was tried.
            let open = Arc::new(Mutex::new(()));
            let held = open.lock().unwrap();
            let made: Vec<_> = (0..number())
                .map_while(|_| {
                    let open = Arc::clone(&open);
                    thread::Builder::new().stack_size(64 << 10).spawn(move || drop(open.lock())).ok()
                })
                .collect();
            drop(held);
            let made = made.into_iter().map(|thread| thread.join().unwrap()).count();
            made.to_string()
        }
        "files" => {
            let files: Vec<_> = (0..number()).map_while(|_| File::open("/proc/self/status").ok()).collect();
            files.len().to_string()
        }
        "connect" => result(connect(argument).map(|()| "connected".to_owned())),
        "listen" => {
            let listener = TcpListener::bind(("0.0.0.0", number() as u16)).unwrap();
            thread::spawn(move || {
                for connection in listener.incoming() {
                    drop(connection.unwrap().write_all(b"hello"));
                }
            });
            "ok".to_owned()
        }
        "addresses" => addresses(),
        "processes" => {
            let names: Vec<String> = fs::read_dir("/proc")
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
                .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
                .map(|name| name.trim().to_owned())
                .collect();
            names.join(" ")
        }
        "print" => {
            print(number());
            "ok".to_owned()
        }
        "complain" => {
            eprintln!("{argument}");
            "ok".to_owned()
        }
        "count" => CALLS.load(Ordering::Relaxed).to_string(),
        "sleep" => {
            thread::sleep(Duration::from_millis(number() as u64));
            "ok".to_owned()
        }
        "alone" => {
            let came = ALONE.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(number() as u64));
            let left = ALONE.fetch_sub(1, Ordering::SeqCst);
            if (came, left) == (0, 1) { "alone" } else { "together" }.to_owned()
        }
        "eat" => eat(),
        "exit" => exit(number() as i32),
        "relink" => {
            fs::remove_file(SOCKET).unwrap();
            result(symlink(argument, SOCKET).map(|()| "ok".to_owned()))
        }
        _ => return None,
    };
    Some(text.into_bytes())
}

fn result(result: io::Result<String>) -> String {
    result.unwrap_or_else(|error| format!("error: {error}"))
}

fn connect(address: &str) -> io::Result<()> {
    let address = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(drop)
}

/// Local addresses out of the kernel's routing trie.
fn addresses() -> String {
    let trie = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let lines: Vec<&str> = trie.lines().collect();
    let mut found: Vec<&str> = lines
        .windows(2)
        .filter(|pair| pair[1].contains("/32 host LOCAL"))
        .filter_map(|pair| pair[0].rsplit(' ').next())
        .filter(|address| !address.starts_with("127."))
        .collect();
    found.sort_unstable();
    found.dedup();
    found.join(" ")
}

fn print(bytes: usize) {
    let line = [b'x'; 1024];
    let mut out = io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        let now = left.min(line.len());
        out.write_all(&line[..now]).unwrap();
        left -= now;
    }
    out.flush().unwrap();
}

fn eat() -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}
