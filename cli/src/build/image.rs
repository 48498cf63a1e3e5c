//! Images made of a single static binary, without a base and without a builder: an archive that the engine loads.
//!
//! The archive depends on nothing but the binary and func.yaml. The same function gives the same image id, so that
//! deploying it again without a change is none.

use std::io;

use anyhow::{Context as _, Result};
use bollard::Docker;
use bollard::query_parameters::ImportImageOptionsBuilder;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::funcfile::FuncFile;
use crate::runtimes;

/// Where the binary is in the image.
const BINARY_PATH: &str = "function/func";
/// All times in the image, so that it is the same whenever it is made.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Gives the image to the engine under the name `image`; returns its id (`sha256:...`).
pub(super) async fn load(image: &str, binary: &[u8], file: &FuncFile) -> Result<String> {
    let entrypoint = file.spec.entrypoint.as_deref().map(runtimes::words).unwrap_or_default();
    let arguments = entrypoint
        .into_iter()
        .skip(1)
        .chain(file.spec.cmd.as_deref().map(runtimes::words).unwrap_or_default());
    let command: Vec<String> = std::iter::once(format!("/{BINARY_PATH}")).chain(arguments).collect();
    let archive = archive(image, binary, &command)?;
    let engine = connect().await?;
    let mut answers = engine.import_image(
        ImportImageOptionsBuilder::default().quiet(true).build(),
        bollard::body_full(archive.bytes),
        None,
    );
    while let Some(answer) = answers.next().await {
        let answer = answer.context("the engine did not load the image")?;
        if let Some(message) = answer.error_detail.and_then(|detail| detail.message) {
            return Err(Failure::new(format!("the engine did not load the image: {message}")).into());
        }
    }
    let found = engine
        .inspect_image(image)
        .await
        .context("the engine does not know the image that it just loaded")?;
    Ok(found.id.unwrap_or(archive.id))
}

/// Connects to the engine that `DOCKER_HOST` names, else to this machine's.
async fn connect() -> Result<Docker> {
    let no_engine = |error: bollard::errors::Error| {
        Failure::new(format!("cannot reach the Docker engine: {error}"))
            .hint("start Docker, or check DOCKER_HOST and that this user may use it (group docker)")
    };
    let engine = Docker::connect_with_defaults().map_err(no_engine)?;
    Ok(engine.negotiate_version().await.map_err(no_engine)?)
}

struct Archive {
    bytes: Bytes,
    /// What an engine that names images by their configuration calls it.
    id: String,
}

/// The archive that `docker load` takes: a layer, the image's configuration, and a list of both.
fn archive(image: &str, binary: &[u8], command: &[String]) -> Result<Archive> {
    let layer = layer(binary)?;
    let layer_digest = digest(&layer);
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": CREATED,
        "config": {
            "Entrypoint": command,
            "WorkingDir": "/function",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        "history": [{ "created": CREATED, "created_by": "kiln build --build host" }],
    });
    let config = serde_json::to_vec(&config)?;
    let config_digest = digest(&config);
    let (layer_path, config_path) = (format!("{layer_digest}/layer.tar"), format!("{config_digest}.json"));
    let manifest: Value = json!([{ "Config": config_path, "RepoTags": [image], "Layers": [layer_path] }]);
    let mut tar = tar::Builder::new(Vec::with_capacity(layer.len() + config.len() + 16 * 1024));
    add_file(&mut tar, &layer_path, 0o644, &layer)?;
    add_file(&mut tar, &config_path, 0o644, &config)?;
    add_file(&mut tar, "manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
    Ok(Archive { bytes: tar.into_inner()?.into(), id: format!("sha256:{config_digest}") })
}

fn layer(binary: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::with_capacity(binary.len() + 8 * 1024));
    add_folder(&mut tar, "function/", 0o755)?;
    add_file(&mut tar, BINARY_PATH, 0o755, binary)?;
    add_folder(&mut tar, "tmp/", 0o1777)?;
    tar.into_inner()
}

fn add_folder(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32) -> io::Result<()> {
    let mut header = header(mode, 0);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, path, io::empty())
}

fn add_file(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(mode, content.len()), path, content)
}

fn header(mode: u32, bytes: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes as u64);
    header
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a text cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// The machine's architecture in the words of image configurations.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_binary_gives_the_same_image() {
        let command = ["/function/func".to_owned()];
        let (first, second) =
            (archive("a:1", b"x", &command).unwrap(), archive("a:2", b"x", &command).unwrap());
        assert_eq!(first.id, second.id);
        assert_ne!(first.id, archive("a:1", b"y", &command).unwrap().id);
        assert_ne!(first.id, archive("a:1", b"x", &["/other".to_owned()]).unwrap().id);
    }

    #[test]
    fn the_archive_lists_what_it_holds() {
        let archive = archive("me/a:1", b"binary", &["/function/func".to_owned()]).unwrap();
        let mut names = Vec::new();
        let mut manifest = Value::Null;
        for entry in tar::Archive::new(archive.bytes.as_ref()).entries().unwrap() {
            let entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.last().unwrap() == "manifest.json" {
                manifest = serde_json::from_reader(entry).unwrap();
            }
        }
        assert_eq!(manifest[0]["RepoTags"][0], "me/a:1");
        assert!(names.contains(&manifest[0]["Config"].as_str().unwrap().to_owned()));
        assert!(names.contains(&manifest[0]["Layers"][0].as_str().unwrap().to_owned()));
    }

    #[test]
    fn digests_are_sha_256() {
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
