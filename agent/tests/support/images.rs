//! Images that tests make themselves, so that they need no registry.
//!
//! Each is made once per state of what is in it and kept in the engine. Programs are built into
//! `target/test-function/`.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Source of the function that all images run; its head lists what it can do.
const PROGRAM: &str = include_str!("program.rs");

/// The images that [`image`] makes: name and what is added to the program.
const IMAGES: &[(&str, &[&str])] = &[
    ("function", &["ENTRYPOINT [\"/function\"]"]),
    ("volume", &["ENTRYPOINT [\"/function\"]", "VOLUME /data"]),
    ("user", &["ENTRYPOINT [\"/function\"]", "USER 4242:4242"]),
    ("nothing", &["ENTRYPOINT [\"/missing\"]"]),
];

/// A root file system on its way into an image.
pub(crate) type Root = tar::Builder<Vec<u8>>;

/// Makes sure that the image of the test program is in the engine and gives its reference.
pub(crate) fn image(name: &str) -> String {
    let (_, changes) = IMAGES.iter().find(|(known, _)| *known == name).expect("an image of the list");
    let _alone = lock();
    let program = program(&directory());
    made_once(name, PROGRAM.as_bytes(), changes, |root| add_program(root, &program))
}

/// The same for one of the workspace's example functions, built statically.
pub(crate) fn example(name: &str) -> String {
    let _alone = lock();
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output().expect("rustc").stdout;
    let host = String::from_utf8(host).expect("text");
    let target = workspace_target().join("static");
    // With the target named, the flag is not for build scripts and macros, which cannot be static.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "kiln-examples", "--target", host.trim()])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status();
    assert!(built.expect("cargo").success(), "cannot build the example functions");
    let program = target.join(host.trim()).join("debug").join(name);
    let bytes = fs::read(&program).expect("the program");
    made_once(name, &bytes, &["ENTRYPOINT [\"/function\"]"], |root| add_program(root, &program))
}

/// Only one test makes images at a time: they run in processes of their own. Ends when it is dropped.
pub(crate) fn lock() -> File {
    let lock = File::create(directory().join("lock")).expect("a lock file");
    lock.lock().expect("the lock");
    lock
}

/// Makes an image of what `fill` puts into it, unless there is one with the same `content` and `changes`
/// (Dockerfile lines). To be called under [`lock`].
pub(crate) fn made_once(
    name: &str,
    content: &[u8],
    changes: &[&str],
    fill: impl FnOnce(&mut Root),
) -> String {
    let digest = hash(&[content, changes.concat().as_bytes()].concat());
    let reference = format!("kiln-test/{name}:{digest:016x}");
    let known = Command::new("docker").args(["image", "inspect", &reference]).stdout(Stdio::null()).output();
    if !known.expect("docker").status.success() {
        let mut root = empty_root();
        fill(&mut root);
        import(&reference, changes, &root.into_inner().expect("an archive"));
    }
    reference
}

/// The directories that mounts need.
fn empty_root() -> Root {
    let mut root = Root::new(Vec::new());
    for directory in ["tmp/", "data/", "etc/", "proc/", "dev/", "sys/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if directory == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        root.append_data(&mut header, directory, std::io::empty()).expect("a directory");
    }
    root
}

fn add_program(root: &mut Root, program: &Path) {
    let bytes = fs::read(program).expect("the program");
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(bytes.len() as u64);
    root.append_data(&mut header, "function", bytes.as_slice()).expect("the program");
}

/// Makes an image of a root file system.
fn import(reference: &str, changes: &[&str], root: &[u8]) {
    let mut command = Command::new("docker");
    command.arg("import");
    for change in changes {
        command.args(["--change", change]);
    }
    let mut import = command
        .args(["-", reference])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("docker import");
    import.stdin.take().expect("a pipe").write_all(root).expect("docker reads");
    assert!(import.wait().expect("docker import").success(), "cannot import {reference}");
}

/// The built program.
fn program(directory: &Path) -> PathBuf {
    let path = directory.join(format!("function-{:016x}", hash(PROGRAM.as_bytes())));
    if path.exists() {
        return path;
    }
    let source = directory.join("function.rs");
    fs::write(&source, PROGRAM).expect("the source");
    let built = directory.join("function.new");
    let status = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "opt-level=1",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .args([&built, &source])
        .status()
        .expect("rustc");
    assert!(status.success(), "cannot build the test function");
    fs::rename(&built, &path).expect("the program");
    path
}

/// Cargo's target directory.
pub(crate) fn workspace_target() -> PathBuf {
    // This test is target/PROFILE/deps/NAME.
    let test = std::env::current_exe().expect("this program");
    test.ancestors().nth(3).expect("a target directory").to_owned()
}

/// Where test images and their programs are made.
pub(crate) fn directory() -> PathBuf {
    let directory = workspace_target().join("test-function");
    fs::create_dir_all(&directory).expect("a directory for test functions");
    directory
}

fn hash(content: &[u8]) -> u64 {
    // FNV-1a: stable between builds, and nothing depends on its quality.
    content
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Runs `docker` and gives what it printed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}
