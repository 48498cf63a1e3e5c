//! What this crate's integration tests share: function images that need no registry, and a caller for them.
//!
//! Images are made once per state of their source and kept in the engine; the program is built by `rustc` into
//! `target/test-function/`.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kiln_agent::container::{ContainerPlan, Transport};
use kiln_shared::function::{Format, Function, FunctionSpec};
use kiln_shared::ids::{AppId, FunctionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Source of the function that all images run; its head lists what it can do.
const PROGRAM: &str = include_str!("program.rs");

/// The images that [`image`] makes: name and what is added to the program.
const IMAGES: &[(&str, &[&str])] = &[
    ("function", &["ENTRYPOINT [\"/function\"]"]),
    ("volume", &["ENTRYPOINT [\"/function\"]", "VOLUME /data"]),
    ("user", &["ENTRYPOINT [\"/function\"]", "USER 4242:4242"]),
    ("nothing", &["ENTRYPOINT [\"/missing\"]"]),
];

/// Makes sure that the image is in the engine and gives its reference.
pub(crate) fn image(name: &str) -> String {
    let (_, changes) = IMAGES.iter().find(|(known, _)| *known == name).expect("an image of the list");
    let directory = workspace_target().join("test-function");
    fs::create_dir_all(&directory).expect("a directory for test functions");
    // Tests run in processes of their own: one builds, the others wait.
    let lock = File::create(directory.join("lock")).expect("a lock file");
    lock.lock().expect("the lock");
    let program = program(&directory);
    let reference = format!("kiln-test/{name}:{:016x}", hash(&format!("{PROGRAM}{changes:?}")));
    let known = Command::new("docker").args(["image", "inspect", &reference]).stdout(Stdio::null()).output();
    if !known.expect("docker").status.success() {
        import(&reference, changes, &root_file_system(&program));
    }
    reference
}

/// A tar archive with the program and the directories that mounts need.
pub(crate) fn root_file_system(program: &Path) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for directory in ["tmp/", "data/", "etc/", "proc/", "dev/", "sys/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if directory == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        archive.append_data(&mut header, directory, std::io::empty()).expect("a directory");
    }
    let bytes = fs::read(program).expect("the program");
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, "function", bytes.as_slice()).expect("the program");
    archive.into_inner().expect("an archive")
}

/// Makes an image of a root file system.
pub(crate) fn import(reference: &str, changes: &[&str], root: &[u8]) {
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
pub(crate) fn program(directory: &Path) -> PathBuf {
    let path = directory.join(format!("function-{:016x}", hash(PROGRAM)));
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

fn hash(text: &str) -> u64 {
    // FNV-1a: stable between builds, and nothing depends on its quality.
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A function's spec with an image of [`image`], 64 MiB, and `BEHAVIOUR` set.
pub(crate) fn spec(image: &str, behaviour: &str) -> FunctionSpec {
    FunctionSpec {
        id: FunctionId::generate(),
        name: "test".to_owned(),
        app_id: AppId::generate(),
        app_name: "tests".to_owned(),
        image: image.to_owned(),
        image_digest: None,
        format: Format::HttpStream,
        memory_mib: 64,
        cpu_millis: None,
        tmpfs_mib: None,
        timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(30),
        config: BTreeMap::from([("BEHAVIOUR".to_owned(), behaviour.to_owned())]),
        syslog_url: None,
    }
}

/// A plan for `spec` whose environment is the spec's config.
pub(crate) fn plan(spec: FunctionSpec, transport: Transport) -> ContainerPlan {
    let environment = spec.config.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    ContainerPlan { function: Arc::new(Function::new(spec)), environment, transport }
}

/// Calls a function once on its own connection and gives its answer.
pub(crate) async fn call(socket: &Path, body: &str) -> std::io::Result<String> {
    // A function that binds `lsnr.sock` itself is noticed a moment before it listens.
    let mut stream = loop {
        match tokio::net::UnixStream::connect(socket).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                tokio::task::yield_now().await;
            }
            connected => break connected?,
        }
    };
    let head = format!("POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .and_then(|value| value.parse().ok())
            .expect("a length");
        if body.len() >= length {
            return Ok(body.to_owned());
        }
    }
}

/// Runs `docker` and gives what it printed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Waits until `condition` holds, at most 20 s.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Reads a child's pipe until it says `words`.
pub(crate) fn read_until(pipe: &mut impl Read, words: &str) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.contains(words) && pipe.read(&mut byte).expect("a pipe") == 1 {
        text.push(char::from(byte[0]));
    }
    text
}
