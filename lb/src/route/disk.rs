//! The catalog's copy on disk, from which a balancer starts whose database is away.
//!
//! Owns the form of the file. A line that says what it is, a line with revision and counts, one line of JSON per
//! app, function and trigger, and a line with the checksum of all before it. It is replaced whole, so that a
//! power cut leaves the old or the new one; what is damaged all the same is told, and never used in part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use kiln_api::{DatabaseId, Snapshot};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::table::Contents;

/// The file's name in the balancer's data folder.
pub const FILE_NAME: &str = "catalog.copy";
/// What the file begins with. Another form gets another number.
const MAGIC: &str = "kiln catalog 1\n";
/// Largest file that is read or written: some millions of functions.
const BYTES_MAX: u64 = 4 << 30;
/// Bytes of the last line: 16 hexadecimal digits and a line feed.
const CHECKSUM_BYTES: usize = 17;
/// Threads that read one file.
const READERS_MAX: usize = 4;

/// Why there is no catalog in the file.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file is not there, or cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no copy of a catalog, of another version, or damaged.
    #[error("{} cannot be used: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    database: DatabaseId,
    revision: u64,
    apps: usize,
    functions: usize,
    triggers: usize,
}

/// Reads the copy. Blocks; some 3 us per function on one core.
///
/// # Errors
/// See [`CopyError`].
pub fn read(path: &Path) -> Result<Snapshot, CopyError> {
    let failed = |source| CopyError::File { path: path.to_owned(), source };
    let damaged = |reason| CopyError::Damaged { path: path.to_owned(), reason };
    if fs::metadata(path).map_err(failed)?.len() > BYTES_MAX {
        return Err(damaged("it is too large".to_owned()));
    }
    parse(&fs::read(path).map_err(failed)?).map_err(damaged)
}

/// Replaces the copy, with access for its owner only: config often holds secrets. Blocks; some 2 us per
/// function, and the disk's time.
///
/// # Errors
/// The folder or the disk does not take it; the copy before is still there.
pub(super) fn write(path: &Path, database: &DatabaseId, contents: &Contents) -> Result<(), CopyError> {
    let failed = |source| CopyError::File { path: path.to_owned(), source };
    let next = path.with_extension("copy.new");
    write_to(&next, database, contents).map_err(failed)?;
    fs::rename(&next, path).map_err(failed)?;
    // The name is in the folder only once the folder is on disk.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn write_to(path: &Path, database: &DatabaseId, contents: &Contents) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out =
        Hashing { out: BufWriter::with_capacity(1 << 16, file), hash: Xxh3Default::new(), bytes: 0 };
    out.write_all(MAGIC.as_bytes())?;
    let Contents { revision, apps, functions, triggers } = contents;
    let (database, revision) = (database.clone(), *revision);
    let head =
        Head { database, revision, apps: apps.len(), functions: functions.len(), triggers: triggers.len() };
    write_lines(&mut out, &[Arc::new(head)])?;
    write_lines(&mut out, apps)?;
    write_lines(&mut out, functions)?;
    write_lines(&mut out, triggers)?;
    let Hashing { mut out, hash, .. } = out;
    writeln!(out, "{:016x}", hash.digest())?;
    out.into_inner()?.sync_all()
}

fn write_lines<T: Serialize>(out: &mut impl Write, resources: &[Arc<T>]) -> io::Result<()> {
    for resource in resources {
        serde_json::to_writer(&mut *out, &**resource)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// A file with the checksum of what it holds so far.
struct Hashing {
    out: BufWriter<File>,
    hash: Xxh3Default,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        if self.bytes > BYTES_MAX {
            return Err(io::Error::other("the catalog is too large for a copy on disk"));
        }
        self.hash.update(bytes);
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The catalog in a file's bytes, or what is wrong with them.
fn parse(bytes: &[u8]) -> Result<Snapshot, String> {
    let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or("it is of another version, or no catalog")?;
    let (_, checksum) = rest.split_last_chunk::<CHECKSUM_BYTES>().ok_or("it is cut off")?;
    let covered = &bytes[..bytes.len() - CHECKSUM_BYTES];
    if format!("{:016x}\n", xxh3_64(covered)).as_bytes() != checksum {
        return Err("its checksum is wrong".to_owned());
    }
    let text = str::from_utf8(&covered[MAGIC.len()..]).map_err(|error| error.to_string())?;
    // JSON has no line feed within.
    let mut lines = text.lines();
    let head: Head = from_line(lines.next().unwrap_or_default())?;
    let lines: Vec<&str> = lines.collect();
    if Some(lines.len())
        != [head.functions, head.triggers].iter().try_fold(head.apps, |sum, n| sum.checked_add(*n))
    {
        return Err("it does not hold what it says".to_owned());
    }
    let (apps, lines) = lines.split_at(head.apps);
    let (functions, triggers) = lines.split_at(head.functions);
    Ok(Snapshot {
        database: head.database,
        revision: head.revision,
        apps: from_lines(apps)?,
        functions: from_lines(functions)?,
        triggers: from_lines(triggers)?,
    })
}

/// Parses lines on a few threads, in their order.
fn from_lines<T: DeserializeOwned + Send>(lines: &[&str]) -> Result<Vec<T>, String> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX);
    let share = lines.len().div_ceil(threads).max(1);
    let parts: Vec<Result<Vec<T>, String>> = thread::scope(|scope| {
        let parts: Vec<_> = lines
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(|line| from_line(line)).collect()))
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().unwrap_or_else(|_| Err("it cannot be parsed".to_owned())))
            .collect()
    });
    let mut all = Vec::with_capacity(lines.len());
    for part in parts {
        all.append(&mut part?);
    }
    Ok(all)
}

fn from_line<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::Timestamp;
    use kiln_shared::model::{App, AppInput, Config, FunctionInput, FunctionResource, Trigger, TriggerInput};
    use proptest::prelude::*;

    use super::*;

    /// A catalog with texts that need escapes.
    fn contents() -> Contents {
        let now = "2026-11-23T12:00:00.123Z".parse::<Timestamp>().unwrap();
        let config = Config::from([("KEY".to_owned(), "line\nfeed, \"quote\", \u{2028}, é".to_owned())]);
        let app = App::create(&AppInput { name: "demo".into(), config, ..AppInput::default() }, now).unwrap();
        let input = FunctionInput {
            name: "hello".into(),
            app_id: app.id.as_str().into(),
            image: "me/hello:1".into(),
            ..FunctionInput::default()
        };
        let function = FunctionResource::create(&input, &app, now).unwrap();
        let input = TriggerInput {
            name: "t".into(),
            app_id: app.id.as_str().into(),
            fn_id: function.id.as_str().into(),
            kind: "http".into(),
            source: "/a b\n\u{0}".into(),
            ..TriggerInput::default()
        };
        let trigger = Trigger::create(&input, app.id, &function, now).unwrap();
        Contents {
            revision: 7,
            apps: vec![Arc::new(app)],
            functions: vec![Arc::new(function)],
            triggers: vec![Arc::new(trigger)],
        }
    }

    fn written(path: &Path) -> (Contents, Vec<u8>) {
        let contents = contents();
        write(path, &DatabaseId::default(), &contents).unwrap();
        (contents, fs::read(path).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        for _ in 0..2 {
            let (contents, _) = written(&path);
            let expected = Snapshot {
                database: DatabaseId::default(),
                revision: 7,
                apps: contents.apps.iter().map(|app| (**app).clone()).collect(),
                functions: contents.functions.iter().map(|function| (**function).clone()).collect(),
                triggers: contents.triggers.iter().map(|trigger| (**trigger).clone()).collect(),
            };
            assert_eq!(read(&path).unwrap(), expected);
        }
        let names: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE_NAME], "nothing else is left");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_empty_catalog_has_a_copy_too() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        let empty = Contents { revision: 0, apps: vec![], functions: vec![], triggers: vec![] };
        write(&path, &DatabaseId::default(), &empty).unwrap();
        assert_eq!(read(&path).unwrap(), Snapshot::default());
    }

    #[test]
    fn a_write_that_fails_leaves_the_copy_before() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        written(&path);
        // Where the next file would be is something else.
        fs::create_dir(path.with_extension("copy.new")).unwrap();
        write(&path, &DatabaseId::default(), &contents()).unwrap_err();
        assert_eq!(read(&path).unwrap().revision, 7);
    }

    #[test]
    fn a_file_whose_counts_are_wrong_is_damaged_though_its_checksum_is_right() {
        for (head, rest) in [
            (r#"{"database":"","revision":1,"apps":1,"functions":0,"triggers":0}"#, ""),
            (r#"{"database":"","revision":1,"apps":18446744073709551615,"functions":1,"triggers":0}"#, ""),
            (r#"{"database":"","revision":1,"apps":1,"functions":0,"triggers":0}"#, "{}\n"),
            (r#"{"revision":1}"#, ""),
            ("", ""),
        ] {
            let mut file = format!("{MAGIC}{head}\n{rest}").into_bytes();
            let checksum = xxh3_64(&file);
            writeln!(file, "{checksum:016x}").unwrap();
            parse(&file).expect_err(head);
        }
    }

    proptest! {
        /// Wherever a byte is changed, or the file ends, it is told; nothing panics.
        #[test]
        fn damage_is_noticed(at: prop::sample::Index, change in 1_u8.., cut: bool) {
            let home = tempfile::tempdir().unwrap();
            let (_, mut bytes) = written(&home.path().join(FILE_NAME));
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= change;
            }
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn nonsense_is_no_catalog(bytes in prop::collection::vec(any::<u8>(), 0..200), begun: bool) {
            let bytes = if begun { [MAGIC.as_bytes(), &bytes].concat() } else { bytes };
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
