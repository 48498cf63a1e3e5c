//! The listener and its connections.
//!
//! The platform makes one call at a time over one connection, and dials anew after a pause. Whoever waits for a
//! connection also serves it; another thread starts waiting only when all are busy.

use std::convert::Infallible;
use std::env;
use std::fs::{self, Permissions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::http::{Head, Input};
use crate::output::{Output, write_plain};
use crate::{Context, Error, Result, signal};

/// Most connections that are served at a time; others wait.
const CONNECTIONS_MAX: usize = 8;

/// Name of the socket that is listened on. The announced name becomes a link to it when it can be connected to.
const PHONY_NAME: &str = "phonylsnr.sock";

type Function = dyn FnMut(&Context, &mut Input<'_>, &mut Output<'_>) -> Result<()> + Send;

struct Server {
    listener: UnixListener,
    function: Mutex<Box<Function>>,
    /// Threads there are, and those of them that wait for a connection.
    threads: AtomicUsize,
    waiting: AtomicUsize,
}

/// Serves as the environment says. Returns only with the reason why it cannot.
pub(crate) fn run(
    function: impl FnMut(&Context, &mut Input<'_>, &mut Output<'_>) -> Result<()> + Send + 'static,
) -> Result<Infallible> {
    if let Ok(format) = env::var("FN_FORMAT")
        && !format.is_empty()
        && format != "http-stream"
    {
        return Err(format!(
            "this function speaks the format http-stream, not {format:?}; change its format"
        )
        .into());
    }
    let address = env::var("FN_LISTENER").map_err(|_| {
        "FN_LISTENER is not set. This program is a function and waits for calls on a unix socket: deploy it, or set \
         FN_LISTENER=unix:/some/folder/lsnr.sock to try it by hand"
    })?;
    let path = address
        .strip_prefix("unix:")
        .ok_or_else(|| format!("FN_LISTENER is {address:?}; it must be unix: followed by a path"))?;
    signal::exit_on_terminate();
    let listener = listen(Path::new(path)).map_err(|error| format!("cannot listen on {path}: {error}"))?;
    let server = Arc::new(Server {
        listener,
        function: Mutex::new(Box::new(function)),
        threads: AtomicUsize::new(1),
        waiting: AtomicUsize::new(1),
    });
    Err(serve(&server))
}

/// Listens so that `path` appears only once it can be connected to and written to by anybody.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let phony = folder.join(PHONY_NAME);
    for stale in [path, &phony] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&phony)?;
    fs::set_permissions(&phony, Permissions::from_mode(0o666))?;
    symlink(PHONY_NAME, path)?;
    Ok(listener)
}

/// Serves connections for ever; returns only if none can be accepted.
fn serve(server: &Arc<Server>) -> Error {
    loop {
        let stream = match server.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return format!("cannot accept connections: {error}").into(),
        };
        if server.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            add_thread(server);
        }
        if let Err(error) = serve_connection(&stream, &server.function) {
            // The platform went away, or an answer broke off: the closed connection tells it.
            eprintln!("kiln-fdk: connection closed: {error}");
        }
        server.waiting.fetch_add(1, Ordering::AcqRel);
    }
}

fn add_thread(server: &Arc<Server>) {
    if server.threads.fetch_add(1, Ordering::AcqRel) < CONNECTIONS_MAX {
        server.waiting.fetch_add(1, Ordering::AcqRel);
        let next = Arc::clone(server);
        let spawned = thread::Builder::new().spawn(move || {
            let error = serve(&next);
            eprintln!("kiln-fdk: {error}");
            std::process::exit(1);
        });
        if spawned.is_ok() {
            return;
        }
        // No room for a thread: later connections wait for this one.
        server.waiting.fetch_sub(1, Ordering::AcqRel);
    }
    server.threads.fetch_sub(1, Ordering::AcqRel);
}

fn serve_connection(stream: &UnixStream, function: &Mutex<Box<Function>>) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(16 * 1024, stream);
    let mut writer = stream;
    loop {
        let head = match Head::read(&mut reader) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                write_plain(&mut writer, 400, &error.to_string())?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        if let Err((status, text)) = head.check_call() {
            return write_plain(&mut writer, status, text);
        }
        let closes = head.closes();
        let mut input = match Input::new(&mut reader, &head) {
            Ok(input) => input,
            Err(error) => {
                write_plain(&mut writer, 400, &error.to_string())?;
                return Err(error);
            }
        };
        if head.expects_continue() {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        call(&Context::new(head), &mut input, &mut writer, function)?;
        input.drain()?;
        if closes {
            return Ok(());
        }
    }
}

/// Runs the function once.
fn call(
    context: &Context,
    input: &mut Input<'_>,
    writer: &mut dyn Write,
    function: &Mutex<Box<Function>>,
) -> io::Result<()> {
    frame_log(context)?;
    let mut output = Output::new(writer, context.is_http());
    let result = catch_unwind(AssertUnwindSafe(|| {
        // A panic in an earlier call has poisoned nothing that is not the function's own.
        let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
        function(context, input, &mut output)
    }));
    // What the function printed belongs to this call.
    io::stdout().flush()?;
    match result {
        Ok(Ok(())) => output.finish(),
        Ok(Err(error)) => {
            log_error(&error);
            output.fail(&error.to_string())
        }
        // The panic's own text is on stderr already.
        Err(_panic) => output.fail("the function panicked"),
    }
}

fn log_error(error: &Error) {
    let mut text = format!("the call failed: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.extend([": ", &error.to_string()]);
        cause = error.source();
    }
    eprintln!("{text}");
}

/// Marks the beginning of a call in both outputs, where the configuration asks for it.
fn frame_log(context: &Context) -> io::Result<()> {
    let (Some(name), Some(header)) = (context.config("FN_LOGFRAME_NAME"), context.config("FN_LOGFRAME_HDR"))
    else {
        return Ok(());
    };
    if let Some(value) = context.raw_header(&header).filter(|_| !name.is_empty()) {
        writeln!(io::stdout(), "\n{name}={value}")?;
        writeln!(io::stderr(), "\n{name}={value}")?;
    }
    Ok(())
}
