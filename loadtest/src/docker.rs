//! The Docker engine as a benchmark needs it: images from one static binary, containers that are called directly.
//!
//! Everything made here carries the label [`LABEL`] and is removed when it is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::http::{self, Target};
use crate::process::{self, interrupted};

/// On every container that a benchmark makes.
pub const LABEL: &str = "kiln-bench";

/// A function has this long to make its socket.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// The engine's API.
#[derive(Debug, Clone)]
pub struct Engine {
    api: Target,
}

impl Engine {
    /// Finds the engine where `DOCKER_HOST` says, or at the usual socket.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn connect() -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let path = host
            .strip_prefix("unix://")
            .with_context(|| format!("DOCKER_HOST={host}: need a unix socket"))?;
        let api = Target::Unix(path.into());
        http::json(&api, "GET", "/version", None).with_context(|| {
            format!("Docker does not answer at {path}; start it with scripts/setup.sh bench")
        })?;
        Ok(Self { api })
    }

    /// Makes an image that holds one static binary and runs it.
    ///
    /// # Errors
    /// If the binary cannot be read or the engine refuses.
    pub fn image_of(&self, binary: &Path, name: &str) -> Result<Image> {
        let mut archive = tar::Builder::new(Vec::new());
        archive
            .append_path_with_name(binary, "function")
            .with_context(|| format!("{}: is it built?", binary.display()))?;
        // The runtime mounts here; a scratch image has no folders of its own.
        for folder in ["tmp/", "dev/", "proc/", "sys/", "etc/"] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            archive.append_data(&mut header, folder, std::io::empty())?;
        }
        let archive = archive.into_inner()?;
        let tag = std::process::id();
        let reference = format!("kiln-bench/{name}:{tag}");
        // `changes` is a Dockerfile's line, percent-encoded.
        let path = format!(
            "/images/create?fromSrc=-&repo=kiln-bench/{name}&tag={tag}&changes=ENTRYPOINT%20%5B%22%2Ffunction%22%5D"
        );
        let mut connection = self.api.connect()?;
        connection.set_read_timeout(Duration::from_mins(1))?;
        let answer = connection.fetch(&http::request(
            "POST",
            &path,
            &[("Content-Type", "application/x-tar")],
            &archive,
        ))?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == 200 && !text.contains("\"error\""), "importing {reference}: {text}");
        Ok(Image { engine: self.clone(), reference })
    }

    /// Creates and starts a container of a function, as plain Docker does it, with its socket in `folder`. Returns
    /// at once, before the function is ready.
    ///
    /// # Errors
    /// If the engine refuses.
    pub fn start_function(&self, image: &Image, folder: &Path) -> Result<Container> {
        let config = json!({
            "Image": image.reference,
            "Env": FUNCTION_ENVIRONMENT,
            "Labels": { LABEL: "" },
            "HostConfig": { "Binds": [format!("{}:/tmp/iofs", folder.display())] },
        });
        let created = http::json(&self.api, "POST", "/containers/create", Some(&config))?;
        let name = created["Id"].as_str().context("the engine named no container")?.to_owned();
        let container = Container { engine: self.clone(), name, socket: folder.join("lsnr.sock") };
        http::json(&self.api, "POST", &format!("/containers/{}/start", container.name), None)?;
        Ok(container)
    }

    /// Starts a container with the command `docker run`, in the background. The container is named at once and exists
    /// some time later.
    ///
    /// # Errors
    /// If the command cannot be started.
    pub fn docker_run(&self, image: &Image, folder: &Path) -> Result<(Container, std::process::Child)> {
        let name =
            folder.file_name().and_then(|name| name.to_str()).context("a folder has a name")?.to_owned();
        let mut command = Command::new("docker");
        command.args(["run", "--detach", "--name", &name, "--label", LABEL]);
        for variable in FUNCTION_ENVIRONMENT {
            command.args(["--env", variable]);
        }
        command.arg("--volume").arg(format!("{}:/tmp/iofs", folder.display())).arg(&image.reference);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let child = process::spawn(command, None)?;
        Ok((Container { engine: self.clone(), name, socket: folder.join("lsnr.sock") }, child))
    }

    /// Number of containers of an image that exist, running or not.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn containers_of(&self, image: &Image) -> Result<usize> {
        // {"ancestor":["..."]}, percent-encoded.
        let path =
            format!("/containers/json?all=1&filters=%7B%22ancestor%22%3A%5B%22{}%22%5D%7D", image.reference);
        let list = http::json(&self.api, "GET", &path, None)?;
        Ok(list.as_array().map_or(0, Vec::len))
    }

    fn delete(&self, path: &str) {
        if let Err(error) = http::json(&self.api, "DELETE", path, None) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

const FUNCTION_ENVIRONMENT: [&str; 4] =
    ["FN_LISTENER=unix:/tmp/iofs/lsnr.sock", "FN_FORMAT=http-stream", "FN_MEMORY=128", "FN_TYPE=sync"];

/// An image that goes when it is dropped.
#[derive(Debug)]
pub struct Image {
    engine: Engine,
    /// Its name and tag.
    pub reference: String,
}

impl Drop for Image {
    fn drop(&mut self) {
        self.engine.delete(&format!("/images/{}?force=1", self.reference));
    }
}

/// A container that goes when it is dropped.
#[derive(Debug)]
pub struct Container {
    engine: Engine,
    name: String,
    socket: PathBuf,
}

impl Container {
    /// Where its function listens, once it does.
    pub fn target(&self) -> Target {
        Target::Unix(self.socket.clone())
    }

    /// Waits until its function takes connections. Looks every 100 us.
    ///
    /// # Errors
    /// If that takes more than 20 s.
    pub fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.target().connect().is_err() {
            ensure!(!interrupted(), "interrupted");
            ensure!(Instant::now() < deadline, "{} made no socket", self.name);
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.engine.delete(&format!("/containers/{}?force=1&v=1", self.name));
    }
}

/// A folder in which a function of any user may make its socket.
///
/// # Errors
/// If it cannot be made.
pub fn socket_folder(parent: &Path, name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let folder = parent.join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}
