//! A base image for functions with the official Python FDK: this machine's Python, its standard library and shared
//! libraries, and the package from `PyPI`, laid out as `fnproject/python` is.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::images::{Root, directory, lock, made_once};

/// What is installed; the rest is what these ask for.
const REQUIREMENTS: [&str; 2] = ["fdk==0.1.128", "httptools==0.9.0"];
/// Parts of the standard library that no function needs.
const LEFT_OUT: [&str; 9] = [
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
];
/// Prints the version, the interpreter's file and the standard library's folders.
const WHERE: &str = "import os, sys, sysconfig; paths = sysconfig.get_paths(); \
    print(sys.version.split()[0], os.path.realpath(sys._base_executable), paths['stdlib'], paths['platstdlib'], sep='\\n')";

/// A base image for Python functions.
pub(super) struct PythonImage {
    /// Its name.
    pub(super) reference: String,
    /// Its interpreter.
    pub(super) python: PathBuf,
}

/// Makes sure that the image is in the engine.
pub(super) fn python_image() -> PythonImage {
    let _alone = lock();
    let asked = Command::new("python3").args(["-c", WHERE]).output().expect("this test needs python3");
    let said = String::from_utf8(asked.stdout).unwrap();
    let mut lines = said.lines();
    let mut next = || lines.next().expect("python3 says where it is").to_owned();
    let (version, python, library, platform_library) = (next(), PathBuf::from(next()), next(), next());
    let packages = packages(&version);
    let content = format!("{said}{}", include_str!("python_image.rs"));
    let reference =
        made_once("python-fdk", content.as_bytes(), &["ENV PYTHONPATH=/function:/python"], |root| {
            let mut files = BTreeSet::from([python.clone()]);
            for library in BTreeSet::from([library, platform_library]) {
                collect(Path::new(&library), &mut files);
            }
            let in_image = |file: &Path| match file.strip_prefix(&packages) {
                Ok(rest) => Path::new("python").join(rest),
                Err(_) => file.strip_prefix("/").unwrap().to_owned(),
            };
            collect(&packages, &mut files);
            files.append(&mut shared_libraries(&files));
            for file in &files {
                add(root, file, &in_image(file));
            }
        });
    PythonImage { reference, python }
}

/// A folder with the FDK and what it needs, from `PyPI` the first time.
fn packages(version: &str) -> PathBuf {
    let folder = directory().join(format!("python-{version}-{}", REQUIREMENTS.join("-")));
    if folder.exists() {
        return folder;
    }
    let made = directory().join("python.new");
    fs::remove_dir_all(&made).ok();
    let installed = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"])
        .arg("--target")
        .arg(&made)
        .args(REQUIREMENTS)
        .output()
        .expect("python3 with pip");
    assert!(
        installed.status.success(),
        "cannot install {REQUIREMENTS:?} from PyPI, which this test needs once; does this machine reach it?\n{}",
        String::from_utf8_lossy(&installed.stderr)
    );
    fs::rename(&made, &folder).unwrap();
    folder
}

/// All files below `folder` but those of [`LEFT_OUT`].
fn collect(folder: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if LEFT_OUT.iter().any(|name| path.file_name() == Some(OsStr::new(name))) {
            continue;
        }
        // A link to nothing is of no use to a function either.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => collect(&path, files),
            Ok(metadata) if metadata.is_file() => drop(files.insert(path)),
            _ => {}
        }
    }
}

/// What the loader would load for those of `files` that are programs or libraries, and the loader.
fn shared_libraries(files: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let is_library = |path: &Path| path.extension() == Some(OsStr::new("so"));
    let is_program = |path: &Path| path.parent().and_then(Path::file_name) == Some(OsStr::new("bin"));
    let loaded =
        Command::new("ldd").args(files.iter().filter(|file| is_library(file) || is_program(file))).output();
    // ldd fails when one of them is a script.
    let said = String::from_utf8(loaded.expect("ldd").stdout).unwrap();
    let found = said.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let found: BTreeSet<_> = found.map(PathBuf::from).collect();
    assert!(!found.is_empty(), "ldd names no library:\n{said}");
    found
}

/// Adds a file, readable by every user. It keeps its time, by which Python knows its compiled files.
fn add(root: &mut Root, file: &Path, name: &Path) {
    let content = fs::File::open(file).unwrap();
    let metadata = content.metadata().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o755);
    root.append_data(&mut header, name, content).unwrap();
}
