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
//! | `lines` | answers each line of stdin as a command, or with the same line in capitals |
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
//! | `status N` | answers with that status |

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const DIRECTORY: &str = "/tmp/iofs";
const SOCKET: &str = "/tmp/iofs/lsnr.sock";

static CALLS: AtomicU64 = AtomicU64::new(0);

fn main() {
    match std::env::var("BEHAVIOUR").as_deref().unwrap_or("phony") {
        "phony" => serve(phony("phonylsnr.sock")),
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
        other => panic!("unknown BEHAVIOUR {other}"),
    }
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
    let mut reader = BufReader::new(connection.try_clone()?);
    while let Some(body) = read_request(&mut reader)? {
        CALLS.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&body).into_owned();
        let (command, argument) = text.split_once(' ').unwrap_or((text.as_str(), ""));
        let mut status = 200;
        let answer = match command {
            "status" => {
                status = argument.parse().unwrap();
                Vec::new()
            }
            _ => answer(command, argument).unwrap_or(body),
        };
        write!(
            connection,
            "HTTP/1.1 {status} Whatever\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        )?;
        connection.write_all(&answer)?;
    }
    Ok(())
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
