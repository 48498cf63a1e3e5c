//! Builds with this machine's tool chain: one static binary that needs nothing else in its image.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::process::Command;

use super::tool;
use crate::failure::Failure;
use crate::funcfile::FuncFile;
use crate::output::{Output, Step};
use crate::runtimes::{Language, Runtime};

const STATIC_FLAGS: &str = "-C target-feature=+crt-static";

/// Compiles the function; returns the bytes of its binary, which is static.
pub(super) async fn compile(
    output: Output,
    step: &Step,
    file: &FuncFile,
    runtime: &Runtime,
) -> Result<Vec<u8>> {
    let path = match runtime.language {
        Language::Rust => cargo(output, step, file).await?,
        Language::Go => go(output, step, file).await?,
        _ => {
            return Err(Failure::new(format!("--build host cannot build {} functions", runtime.name()))
                .hint("it builds rust and go; use --build docker for the others")
                .into());
        }
    };
    let binary = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    check_static(&binary).map_err(|text| {
        Failure::new(format!("{} is {text}, so it cannot run in an image of its own", path.display()))
            .hint("leave out crates and packages that link shared C libraries, or use --build docker")
    })?;
    Ok(binary)
}

/// A message of `cargo build --message-format json`.
#[derive(Debug, Deserialize)]
struct CargoMessage {
    target: Option<CargoTarget>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct CargoTarget {
    name: String,
}

async fn cargo(output: Output, step: &Step, file: &FuncFile) -> Result<PathBuf> {
    let folder = file.folder();
    let host = host_triple(folder).await?;
    let mut command = Command::new("cargo");
    command.current_dir(folder).args(["build", "--release", "--target", &host]);
    command.args(["--message-format", "json-render-diagnostics"]);
    // Cargo takes the flags from one place only: from the variable if it is set, else from its configuration.
    match std::env::var("RUSTFLAGS").ok().filter(|flags| !flags.is_empty()) {
        Some(flags) => command.env("RUSTFLAGS", format!("{flags} {STATIC_FLAGS}")),
        None => command.args(["--config", &format!("target.{host}.rustflags='{STATIC_FLAGS}'")]),
    };
    let messages =
        tool::capture(output, step, "cargo build", command).await.map_err(|e| explain(e, "cargo", "Rust"))?;
    let binaries: Vec<(String, PathBuf)> = messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<CargoMessage>(line).ok())
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .collect();
    let name = file.name()?;
    let named = binaries.iter().find(|(binary, _)| *binary == name);
    match (named, binaries.as_slice()) {
        (Some((_, path)), _) | (None, [(_, path)]) => Ok(path.clone()),
        (None, []) => Err(Failure::new("cargo built no binary")
            .hint("a function is a program: give it a src/main.rs")
            .into()),
        (None, _) => {
            let found: Vec<&str> = binaries.iter().map(|(binary, _)| binary.as_str()).collect();
            Err(Failure::new(format!("cargo built {} binaries ({})", found.len(), found.join(", ")))
                .hint(format!("call the one to use {name}, as the function"))
                .into())
        }
    }
}

/// What rustc builds for here, such as `x86_64-unknown-linux-gnu`.
async fn host_triple(folder: &Path) -> Result<String> {
    let answer = Command::new("rustc").arg("-vV").current_dir(folder).kill_on_drop(true).output().await;
    let answer = answer.context("cannot run rustc").map_err(|error| explain(error, "rustc", "Rust"))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned);
    host.ok_or_else(|| {
        Failure::new(format!("rustc -vV names no host: {}", String::from_utf8_lossy(&answer.stderr).trim()))
            .hint("check the tool chain with `rustc -vV`")
            .into()
    })
}

async fn go(output: Output, step: &Step, file: &FuncFile) -> Result<PathBuf> {
    let folder = fs::canonicalize(file.folder())?;
    // Beside the code rather than in a temporary folder, as `cargo` does: `go build` also leaves it to the user.
    let binary = folder.join("func");
    let mut command = Command::new("go");
    command.current_dir(&folder).env("CGO_ENABLED", "0").env("GOOS", "linux");
    command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&binary).arg(".");
    tool::run(output, step, "go build", command).await.map_err(|error| explain(error, "go", "Go"))?;
    Ok(binary)
}

fn explain(error: anyhow::Error, program: &str, language: &str) -> anyhow::Error {
    let is_missing = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    if !error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_missing)) {
        return error;
    }
    Failure::new(format!("there is no {program} on this machine"))
        .hint(format!("install {language}, or use --build docker"))
        .into()
}

/// Makes sure that a file is a Linux program without a dynamic loader. ELF-64, little endian: the specification's
/// figures 1-3 (header) and 2-1 (program header).
fn check_static(binary: &[u8]) -> Result<(), &'static str> {
    const PT_INTERP: u32 = 3;
    const NOT_ELF: &str = "not a 64-bit Linux program";
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(binary.get(at..at + bytes)?);
        Some(u64::from_le_bytes(value))
    };
    if !binary.starts_with(b"\x7fELF\x02\x01") {
        return Err(NOT_ELF);
    }
    let table = number(32, 8).ok_or(NOT_ELF)? as usize;
    let entry_bytes = number(54, 2).ok_or(NOT_ELF)? as usize;
    let entries = number(56, 2).ok_or(NOT_ELF)? as usize;
    for index in 0..entries {
        let kind = table.checked_add(index * entry_bytes).and_then(|at| number(at, 4)).ok_or(NOT_ELF)?;
        if kind as u32 == PT_INTERP {
            return Err("linked to shared libraries");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_a_loader_are_told_from_static_ones() {
        let shell = fs::read("/bin/sh").unwrap();
        assert_eq!(check_static(&shell), Err("linked to shared libraries"));
        assert!(check_static(b"#!/bin/sh\n").is_err());
        assert!(check_static(b"\x7fELF\x02\x01").is_err());
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(check_static(&header), Ok(()));
    }
}
