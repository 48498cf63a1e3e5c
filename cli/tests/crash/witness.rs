//! What functions write down of their calls, in a file of their own in each container's socket directory: it does not pass
//! through Kiln, and says on which node a call ran.
//!
//! The files are held open, so that they can be read after their containers are gone.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often new containers are looked for; their functions wait for the file.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A call's run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Number of the agent.
    pub(crate) node: usize,
    /// Since 1970.
    pub(crate) begun: Duration,
    /// Since 1970; absent if it was broken off.
    pub(crate) ended: Option<Duration>,
}

/// Gives containers their files.
pub(crate) struct Witness {
    files: Arc<Mutex<Vec<(usize, File)>>>,
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Witness {
    /// Looks into the data folders of agents from now on.
    pub(crate) fn start(agents: Vec<PathBuf>) -> Self {
        let (files, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (found, over) = (Arc::clone(&files), Arc::clone(&stop));
        let looking = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for (agent, data) in agents.iter().enumerate() {
                    let new = new_files(&data.join("iofs")).into_iter().map(|file| (agent, file));
                    found.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        Self { files, stop, looking: Some(looking) }
    }

    /// All runs so far by the ids of their calls, each call's in the order in which they began.
    pub(crate) fn runs(&self) -> BTreeMap<String, Vec<Run>> {
        let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
        for (node, file) in &mut *self.files.lock().unwrap_or_else(PoisonError::into_inner) {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("a trace");
            for (call, run) in read(*node, &text) {
                runs.entry(call).or_default().push(run);
            }
        }
        for runs in runs.values_mut() {
            runs.sort_by_key(|run| run.begun);
        }
        runs
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            drop(looking.join());
        }
    }
}

/// Makes files in the socket directories under `root` that have none.
fn new_files(root: &Path) -> Vec<File> {
    let Ok(own) = fs::metadata(root) else { return Vec::new() };
    let mut new = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        // Each has a file system of its own; before that is mounted the function would not see the file.
        let is_mounted = entry.metadata().is_ok_and(|its| its.is_dir() && its.dev() != own.dev());
        if !is_mounted {
            continue;
        }
        let options =
            File::options().read(true).write(true).create_new(true).open(entry.path().join("trace"));
        // There already, or the container is being removed.
        let Ok(file) = options else { continue };
        if file.set_permissions(Permissions::from_mode(0o666)).is_ok() {
            new.push(file);
        }
    }
    new
}

/// The runs of one container's trace: lines `begin CALL NANOS` and `end CALL NANOS`.
fn read(node: usize, text: &str) -> Vec<(String, Run)> {
    let mut runs: Vec<(String, Run)> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (word, call) = (words.next(), words.next().expect("a call"));
        let at = Duration::from_nanos(words.next().and_then(|nanos| nanos.parse().ok()).expect("a time"));
        match word {
            Some("begin") => {
                open.insert(call, runs.len());
                runs.push((call.to_owned(), Run { node, begun: at, ended: None }));
            }
            _ => runs[open.remove(call).expect("it has begun")].1.ended = Some(at),
        }
    }
    runs
}

#[test]
fn a_trace_tells_of_runs_that_ended_and_of_one_that_was_broken_off() {
    let runs = read(1, "begin a 5\nbegin b 6\nend a 7\n");
    let run = |begun, ended: Option<u64>| Run {
        node: 1,
        begun: Duration::from_nanos(begun),
        ended: ended.map(Duration::from_nanos),
    };
    assert_eq!(runs, [("a".to_owned(), run(5, Some(7))), ("b".to_owned(), run(6, None))]);
}
