//! `kiln start` as a process: its env file, its pid file, and its life in the background.
//!
//! The pid file `kiln.pid` in the data folder is locked for as long as its process lives, so a file left behind by a
//! crash, or a pid that was given to another program since, never counts as a running Kiln.
//!
//! Neither detaching nor the env file changes this process's environment: it starts itself again with what is needed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;

use crate::client::Client;
use crate::contexts::{DEFAULT_CONTEXT, Settings};
use crate::failure::Failure;
use crate::output::Output;
use crate::start::{self, StartArgs};

/// Set for the process in the background.
const DETACHED_MARK: &str = "KILN_DETACHED";
/// Set once the env file is in the environment.
const ENV_FILE_MARK: &str = "KILN_ENV_FILE_READ";
/// How long a Kiln in the background may take until it takes calls.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How often to ask whether it does.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Starts Kiln as the options say: in this process, or in the background.
pub fn start(args: &StartArgs, output: Output) -> Result<()> {
    if let Some(path) = &args.env_file
        && std::env::var_os(ENV_FILE_MARK).is_none()
    {
        return exec_with_env_file(path);
    }
    let folder = args.data_folder()?;
    fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(format!("cannot make the data folder {}: {error}", folder.display()))
            .hint("choose another with --data-dir")
    })?;
    if args.detach && std::env::var_os(DETACHED_MARK).is_none() {
        return launch(args, &folder, output);
    }
    if std::env::var_os(DETACHED_MARK).is_some() {
        // Fails only if we lead a session already, which is all that is wanted.
        nix::unistd::setsid().ok();
    }
    let _claimed = PidFile::claim(&folder)?;
    start::run(args)
}

/// Starts this program again with the file's variables in its environment. Returns only if that fails.
fn exec_with_env_file(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", path.display()))
            .hint("name a file that this user may read with --env-file")
    })?;
    let variables = parse_env_file(&text)
        .map_err(|line| Failure::new(format!("{}:{line}: not a NAME=VALUE line", path.display())))?;
    let error = this_program()?.envs(variables).env(ENV_FILE_MARK, "1").exec();
    Err(error).context("cannot start kiln again")
}

fn this_program() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's file")?);
    command.args(std::env::args_os().skip(1));
    Ok(command)
}

/// Lines of `NAME=VALUE`; empty lines and those that start with `#` are skipped, quotes around a value removed. Fails
/// with the number of the line that is none of these.
fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(index + 1)?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(index + 1);
        }
        let unquoted =
            ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
        variables.push((name.to_owned(), unquoted.unwrap_or(value).to_owned()));
    }
    Ok(variables)
}

/// Starts Kiln in the background and waits until it takes calls.
fn launch(args: &StartArgs, folder: &Path, output: Output) -> Result<()> {
    if args.port == 0 {
        return Err(Failure::misuse("in the background Kiln needs a port of its own, not 0")
            .hint("add --port 8080")
            .into());
    }
    if let Some(pid) = running(folder)? {
        return Err(already_running(pid, folder).into());
    }
    if let Err(error) = TcpListener::bind(args.address()) {
        return Err(Failure::new(format!("cannot listen on {}: {error}", args.address()))
            .hint("choose another with --port or --listen")
            .into());
    }
    let log_path = folder.join("kiln.log");
    let log = OpenOptions::new().create(true).append(true).open(&log_path);
    let mut log = log.with_context(|| format!("cannot write {}", log_path.display()))?;
    let log_start = log.seek(io::SeekFrom::End(0))?;
    let mut child = this_program()?
        .env(DETACHED_MARK, "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start kiln again")?;
    wait_until_ready(&mut child, args, &log_path, log_start)?;
    let url = args.url();
    let stop = match &args.data_dir {
        Some(_) => format!("kiln stop --data-dir {}", folder.display()),
        None => "kiln stop".to_owned(),
    };
    if output.is_json() {
        return output.json(&serde_json::json!({
            "url": url, "pid": child.id(), "log": log_path, "data_dir": folder, "stop": stop,
        }));
    }
    output.say(format_args!("Kiln is ready at {url} (pid {})", child.id()))?;
    output.say(format_args!("  its log   {}", log_path.display()))?;
    output.say(format_args!("  stop it   {stop}"))
}

fn wait_until_ready(child: &mut Child, args: &StartArgs, log_path: &Path, log_start: u64) -> Result<()> {
    let settings = Settings {
        api_url: args.url(),
        registry: None,
        token: std::env::var("FN_TOKEN").ok(),
        context: DEFAULT_CONTEXT.to_owned(),
    };
    let client = Client::new(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            let said = last_line(log_path, log_start).unwrap_or_default();
            return Err(Failure::new(format!("Kiln ended while it started ({status}): {said}"))
                .hint(format!("its log is {}", log_path.display()))
                .into());
        }
        let answered = runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(2), client.server_version()).await });
        if matches!(answered, Ok(Ok(_))) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "Kiln takes no calls at {} after {READY_TIMEOUT:?}",
                args.url()
            ))
            .hint(format!("it still runs as pid {}; its log is {}", child.id(), log_path.display()))
            .into());
        }
        std::thread::sleep(READY_POLL_INTERVAL);
    }
}

/// The last line that was written after `start`, preferring one that begins with `error:`.
fn last_line(path: &Path, start: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    file.seek(io::SeekFrom::Start(start)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next()?;
    Some(lines.find_map(|line| line.strip_prefix("error: ")).unwrap_or(last).to_owned())
}

fn already_running(pid: Pid, folder: &Path) -> Failure {
    Failure::new(format!("Kiln runs already with the data folder {} (pid {pid})", folder.display()))
        .hint("stop it with `kiln stop`, or give this one another folder with --data-dir")
}

/// Where the pid of the Kiln with this data folder is.
fn pid_path(folder: &Path) -> PathBuf {
    folder.join("kiln.pid")
}

/// The claim of this process on a data folder; given up when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _locked: Flock<File>,
}

impl PidFile {
    /// Claims the folder for this process. Fails if another process has it.
    pub fn claim(folder: &Path) -> Result<Self> {
        let path = pid_path(folder);
        let cannot_write = |error: io::Error| {
            Failure::new(format!("cannot write {}: {error}", path.display()))
                .hint("give this user write access to its folder, or choose another with --data-dir")
        };
        loop {
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(&path)
                .map_err(cannot_write)?;
            let mut locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => locked,
                Err((file, Errno::EWOULDBLOCK)) => {
                    return Err(already_running(read_pid(file)?, folder).into());
                }
                Err((_, errno)) => return Err(cannot_write(errno.into()).into()),
            };
            // The one before us removes its file when it ends: a lock on a removed file claims nothing.
            let is_same = fs::metadata(&path).is_ok_and(|now| {
                locked.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (now.dev(), now.ino()))
            });
            if !is_same {
                continue;
            }
            locked
                .set_len(0)
                .and_then(|()| writeln!(locked, "{}", std::process::id()))
                .map_err(cannot_write)?;
            return Ok(Self { path, _locked: locked });
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file that stays behind unlocked does no harm.
        fs::remove_file(&self.path).ok();
    }
}

/// The process that has claimed the folder, if one lives.
pub fn running(folder: &Path) -> Result<Option<Pid>> {
    let path = pid_path(folder);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_nobody_holds_it) => Ok(None),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Some(read_pid(file)?)),
        Err((_, errno)) => {
            Err(io::Error::from(errno)).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn read_pid(mut file: File) -> Result<Pid> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let pid: i32 =
        text.trim().parse().map_err(|_| Failure::new("kiln.pid holds no pid").hint("try again"))?;
    Ok(Pid::from_raw(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(running(folder.path()).unwrap(), None);
        let claim = PidFile::claim(folder.path()).unwrap();
        assert_eq!(running(folder.path()).unwrap(), Some(Pid::this()));
        let refused = PidFile::claim(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("runs already"), "{refused}");
        drop(claim);
        assert_eq!(running(folder.path()).unwrap(), None);
        PidFile::claim(folder.path()).unwrap();
    }

    #[test]
    fn a_pid_file_that_a_crash_left_behind_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(pid_path(folder.path()), "1\n").unwrap();
        assert_eq!(running(folder.path()).unwrap(), None);
        PidFile::claim(folder.path()).unwrap();
    }

    #[test]
    fn env_files_hold_comments_quotes_and_exports() {
        let variables = parse_env_file("# note\n\nA=1\nexport B=\"x y\"\nC='='\n D = d \n").unwrap();
        let pairs: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "x y"), ("C", "="), ("D", "d")]);
        assert_eq!(parse_env_file("A=1\nnonsense\n"), Err(2));
    }
}
