//! Images: pulled from a registry of the test, with and without a login; refused when they declare a volume.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_agent::container::docker::ImageVolumes;
use kiln_agent::container::{Driver, Transport};
use kiln_agent::image::RegistryLogins;
use kiln_shared::call::FailureKind;
use kiln_shared::function::Function;
use kiln_shared::ids::Id;

use crate::agent::Agent;
use crate::support::{docker, eventually, image, plan, spec};
use crate::{ask, node, node_with};

/// `ann:secret`, as htpasswd keeps it (bcrypt) and as Docker's configuration does (base64).
const HTPASSWD: &str = "ann:$2b$04$6xs4mfMJuHMu0uXIIUZDYu9a2r7dpvB5Q/gkSNjhQUL6rFy1IA322\n";
const LOGIN: &str = "YW5uOnNlY3JldA==";

/// A registry on the loopback; ends with the value.
struct Registry {
    process: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
    directory: tempfile::TempDir,
}

#[derive(Clone, Copy)]
enum Access {
    Open,
    Login,
}

impl Registry {
    fn start(access: Access) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        let auth = match access {
            Access::Open => String::new(),
            Access::Login => format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd")),
        };
        let settings = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:0}}\n{auth}",
            path("data")
        );
        std::fs::write(path("registry.yml"), settings).unwrap();
        let mut process = Command::new("docker-registry")
            .args(["serve", &path("registry.yml")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        for output in outputs {
            let (log, tell) = (Arc::clone(&log), tell.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                        let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                        tell.send(port).unwrap();
                    }
                    log.lock().unwrap().push(line);
                }
            });
        }
        let port = told.recv_timeout(Duration::from_secs(20)).expect("the registry listens");
        Self { process, address: format!("127.0.0.1:{port}"), log, directory }
    }

    /// Puts the test function into the registry and takes its name away from the engine.
    fn push(&self, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        docker(&["tag", &image("function"), &reference]);
        docker(&[
            "--config",
            self.login_file().parent().unwrap().to_str().unwrap(),
            "push",
            "-q",
            &reference,
        ]);
        docker(&["rmi", &reference]);
        reference
    }

    /// A configuration of Docker's that holds the login.
    fn login_file(&self) -> PathBuf {
        let directory = self.directory.path().join("docker");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("config.json");
        std::fs::write(&path, format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{LOGIN}\"}}}}}}", self.address))
            .unwrap();
        path
    }

    /// How often the manifest of `name` was asked for.
    fn manifest_requests(&self, name: &str) -> usize {
        let wanted = format!("/v2/{name}/manifests/");
        self.log.lock().unwrap().iter().filter(|line| line.contains("] \"") && line.contains(&wanted)).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Takes an image of the test away from the engine again.
struct Untag(String);

impl Drop for Untag {
    fn drop(&mut self) {
        drop(Command::new("docker").args(["rmi", &self.0]).output());
    }
}

fn unique(name: &str) -> String {
    format!("{name}-{}", Id::generate().as_str().to_ascii_lowercase())
}

#[tokio::test]
async fn a_missing_image_is_pulled_by_the_start_that_needs_it() {
    let registry = Registry::start(Access::Open);
    let reference = registry.push("team/hello:1");
    let _untag = Untag(reference.clone());
    let node = node().await;
    let cold = node.driver.start(plan(spec(&reference, "phony"), Transport::Socket)).await.unwrap();
    assert_eq!(ask(&cold, "hello").await, "hello");
    assert!(cold.stages.pull > Duration::ZERO);
    let warm = node.driver.start(plan(spec(&reference, "phony"), Transport::Socket)).await.unwrap();
    assert_eq!(warm.stages.pull, Duration::ZERO);
    node.close_with([cold, warm]).await;
}

#[tokio::test]
async fn many_who_need_one_image_share_one_pull() {
    let registry = Registry::start(Access::Open);
    let (alone, shared) = (registry.push("alone"), registry.push("shared"));
    let _untag = (Untag(alone.clone()), Untag(shared.clone()));
    let node = node().await;
    let before = ["alone", "shared"].map(|name| registry.manifest_requests(name));
    node.driver.ensure_image(&alone).await.unwrap();
    let asked = (0..8).map(|_| node.driver.ensure_image(&shared));
    for result in futures_util::future::join_all(asked).await {
        result.unwrap();
    }
    let after = ["alone", "shared"].map(|name| registry.manifest_requests(name));
    assert!(after[0] > before[0], "{:?}", registry.log.lock().unwrap());
    assert_eq!(after[1] - before[1], after[0] - before[0]);
    node.close().await;
}

#[tokio::test]
async fn a_private_registry_is_asked_with_the_login_of_its_host() {
    let registry = Registry::start(Access::Login);
    let reference = registry.push("private");
    let _untag = Untag(reference.clone());
    let anonymous = node_with(|config| config.registry_logins = RegistryLogins::none()).await;
    let failure = anonymous.driver.ensure_image(&reference).await.unwrap_err();
    assert_eq!((failure.kind, failure.status), (FailureKind::Image, 401), "{failure:?}");
    let text = failure.message.to_string();
    assert!(text.starts_with(&format!("Failed to pull image '{reference}': ")), "{text}");
    anonymous.close().await;

    let inline = format!("{{\"{}\":{{\"auth\":\"{LOGIN}\"}}}}", registry.address);
    let logins =
        [RegistryLogins::from_json(&inline).unwrap(), RegistryLogins::from_file(registry.login_file())];
    for logins in logins {
        let node = node_with(|config| config.registry_logins = logins).await;
        node.driver.ensure_image(&reference).await.unwrap();
        docker(&["rmi", &reference]);
        node.close().await;
    }
}

#[tokio::test]
async fn the_registrys_words_reach_every_caller() {
    let registry = Registry::start(Access::Open);
    let node = node().await;
    let reference = format!("{}/{}", registry.address, unique("missing"));
    let (one, other) =
        tokio::join!(node.driver.ensure_image(&reference), node.driver.ensure_image(&reference));
    for failure in [one.unwrap_err(), other.unwrap_err()] {
        assert_eq!((failure.kind, failure.status), (FailureKind::Image, 404), "{failure:?}");
        let words = failure.message.strip_prefix(&format!("Failed to pull image '{reference}': "));
        assert!(
            words.is_some_and(|words| words.contains("manifest unknown") || words.contains("not found")),
            "{failure:?}"
        );
    }
    assert_eq!(node.containers(), Vec::<String>::new());
    node.close().await;
}

#[tokio::test]
async fn an_unreachable_registry_is_a_502_and_a_silent_one_a_504() {
    let node = node_with(|config| config.pull_timeout = Duration::from_millis(300)).await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let failure = node.driver.ensure_image(&format!("{address}/x")).await.unwrap_err();
    assert_eq!((failure.status, failure.message.as_ref()), (504, "Image pull timed out"));
    drop(silent);
    let node_patient = crate::node().await;
    let failure = node_patient.driver.ensure_image(&format!("{address}/y")).await.unwrap_err();
    assert_eq!((failure.kind, failure.status), (FailureKind::Image, 502), "{failure:?}");
    node_patient.close().await;
    node.close().await;
}

#[tokio::test]
async fn an_image_with_a_volume_is_refused_unless_allowed() {
    let image = image("volume");
    let node = node().await;
    let failure = node.driver.ensure_image(&image).await.unwrap_err();
    assert_eq!((failure.status, failure.message.as_ref()), (400, "image has Volume definition"));
    assert!(node.driver.start(plan(spec(&image, "phony"), Transport::Socket)).await.is_err());
    node.close().await;
    let allowing = node_with(|config| config.image_volumes = ImageVolumes::Allowed).await;
    let container = allowing.driver.start(plan(spec(&image, "phony"), Transport::Socket)).await.unwrap();
    assert_eq!(ask(&container, "hello").await, "hello");
    allowing.close_with([container]).await;
}

#[tokio::test]
async fn an_image_removed_behind_the_drivers_back_is_pulled_again() {
    let registry = Registry::start(Access::Open);
    let reference = registry.push("vanishing");
    let _untag = Untag(reference.clone());
    let node = node().await;
    node.driver.ensure_image(&reference).await.unwrap();
    docker(&["rmi", &reference]);
    let container = node.driver.start(plan(spec(&reference, "phony"), Transport::Socket)).await.unwrap();
    assert_eq!(ask(&container, "hello").await, "hello");
    node.close_with([container]).await;
}

#[tokio::test]
async fn reports_list_the_images_that_are_present_as_they_were_asked_for() {
    let registry = Registry::start(Access::Open);
    let tag = unique("listed");
    let reference = registry.push(&tag);
    let untag = Untag(reference.clone());
    let agent = Agent::start().await;
    let reports = agent.caller.agent.reports();
    let reported = |reference: &str| {
        let images = reports.borrow().images.clone().unwrap_or_default();
        images.iter().any(|image| image.as_ref() == reference)
    };
    eventually("images that were there before are listed", async || reported(&image("function"))).await;
    assert!(!reported(&reference), "it is in the registry alone");

    // Pulled for a call: without a tag, as deployed.
    let function = Arc::new(Function::new(spec(&reference, "phony")));
    assert_eq!(agent.caller.text(&function, "hello").await, "hello");
    eventually("what was pulled is listed", async || {
        reported(&reference) && reported(&format!("{reference}:latest"))
    })
    .await;

    // By other hands: a new name, and by digest as the engine has it.
    let named = format!("{tag}:named");
    docker(&["tag", &reference, &named]);
    let renamed = Untag(named.clone());
    eventually("another name is listed", async || reported(&named)).await;
    let digest = docker(&["inspect", "--format", "{{index .RepoDigests 0}}", &reference]);
    assert!(reported(digest.trim()), "{digest}");
    let pinned = format!("{reference}:1{}", &digest.trim()[digest.find('@').unwrap()..]);
    agent.node.driver.ensure_image(&pinned).await.unwrap();
    eventually("a tag with a digest is listed as it was asked for", async || reported(&pinned)).await;

    drop(renamed);
    eventually("a name that is gone is not listed", async || !reported(&named)).await;
    agent.caller.agent.evict(function.spec.id, function.revision);
    eventually("its container is gone", async || agent.node.containers().is_empty()).await;
    drop(untag);
    eventually("what was removed is not listed", async || {
        !reported(&reference) && !reported(&pinned) && !reported(digest.trim())
    })
    .await;
    agent.close().await;
}

#[tokio::test]
async fn texts_that_are_no_image_references_never_reach_the_engine() {
    let node = node().await;
    for text in ["", "a/../../containers", "UPPER", "a b", "a?force=1"] {
        let failure = node.driver.ensure_image(text).await.unwrap_err();
        assert_eq!((failure.kind, failure.status), (FailureKind::Image, 400), "{text}");
    }
    node.close().await;
}

#[tokio::test]
async fn an_image_whose_program_is_missing_fails_its_start() {
    let node = node().await;
    let failure =
        node.driver.start(plan(spec(&image("nothing"), "phony"), Transport::Socket)).await.unwrap_err();
    assert_eq!((failure.kind, failure.status), (FailureKind::InitFailed, 502), "{failure:?}");
    assert!(failure.detail.is_some());
    node.close().await;
}
