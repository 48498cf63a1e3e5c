//! The Docker engine's API with every operation timed and counted.
//!
//! Owns the connection and the two metrics. Decides nothing: what an error means is the caller's business.

use std::collections::HashMap;
use std::time::Instant;

use bollard::Docker;
use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummary, EventMessage, ImageInspect,
    ImageSummary, NetworkCreateRequest, NetworkInspect,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    EventsOptionsBuilder, InspectContainerOptions, InspectNetworkOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, ListImagesOptions, ListNetworksOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use crate::container::Transport;

/// Where Docker listens when nobody says otherwise.
pub(crate) const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Longest wait for the head of an answer. Pulls and events stream their bodies for longer.
const ANSWER_SECONDS_MAX: u64 = 120;

/// Why the engine could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address is of a kind this driver does not speak.
    #[error("DOCKER_HOST {0:?} is not supported; use unix:///path/to/docker.sock or tcp://host:port")]
    Address(String),
    /// Nobody answers there.
    #[error(
        "cannot reach Docker at {host}: {cause}; install Docker, start it (systemctl start docker) or set DOCKER_HOST"
    )]
    Unreachable {
        /// The address that was tried.
        host: String,
        /// What happened.
        cause: String,
    },
}

/// A handle on the engine; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    docker: Docker,
}

/// What the engine is.
#[derive(Debug, Clone)]
pub(crate) struct EngineVersion {
    /// The engine's version, as it says it.
    pub(crate) version: String,
    /// The machine's architecture in Go's words: `amd64`, `arm64`.
    pub(crate) arch: String,
}

impl Engine {
    /// Connects, and agrees on an API version.
    pub(crate) async fn connect(host: &str) -> Result<(Self, EngineVersion), EngineError> {
        let unreachable = |cause: String| EngineError::Unreachable { host: host.to_owned(), cause };
        let docker = if host.starts_with("unix://") {
            Docker::connect_with_unix(host, ANSWER_SECONDS_MAX, bollard::API_DEFAULT_VERSION)
        } else if host.starts_with("tcp://") || host.starts_with("http://") {
            Docker::connect_with_http(host, ANSWER_SECONDS_MAX, bollard::API_DEFAULT_VERSION)
        } else {
            return Err(EngineError::Address(host.to_owned()));
        };
        let docker = docker.map_err(|error| match error {
            Error::SocketNotFoundError(_) => unreachable("there is no such socket".to_owned()),
            other => unreachable(explain(&other)),
        })?;
        let docker = docker.negotiate_version().await.map_err(|error| unreachable(explain(&error)))?;
        let version = docker.version().await.map_err(|error| unreachable(explain(&error)))?;
        let version = EngineVersion {
            version: version.version.unwrap_or_default(),
            arch: version.arch.unwrap_or_else(|| "amd64".to_owned()),
        };
        Ok((Self { docker }, version))
    }

    pub(crate) async fn create_container(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, Error> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        timed("create", self.docker.create_container(Some(options), body)).await.map(|created| created.id)
    }

    /// Attaches to a created container's outputs, and to its input for [`Transport::Pipes`].
    pub(crate) async fn attach(
        &self,
        name: &str,
        transport: Transport,
    ) -> Result<AttachContainerResults, Error> {
        let options = AttachContainerOptionsBuilder::new()
            .stream(true)
            .stdout(true)
            .stderr(true)
            .stdin(transport == Transport::Pipes)
            .build();
        timed("attach", self.docker.attach_container(name, Some(options))).await
    }

    pub(crate) async fn start_container(&self, name: &str) -> Result<(), Error> {
        timed("start", self.docker.start_container(name, None::<StartContainerOptions>)).await
    }

    pub(crate) async fn inspect_container(&self, name: &str) -> Result<ContainerInspectResponse, Error> {
        timed("inspect", self.docker.inspect_container(name, None::<InspectContainerOptions>)).await
    }

    pub(crate) async fn kill_container(&self, name: &str) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        timed("kill", self.docker.kill_container(name, Some(options))).await
    }

    /// Removes a container, running or not, with its anonymous volumes.
    pub(crate) async fn remove_container(&self, name: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        timed("remove", self.docker.remove_container(name, Some(options))).await
    }

    /// All containers, running or not, that carry `label` (`name=value`).
    pub(crate) async fn list_containers(&self, label: &str) -> Result<Vec<ContainerSummary>, Error> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        timed("list", self.docker.list_containers(Some(options))).await
    }

    /// Deaths and memory kills of containers that carry `label`, from `since` (seconds of the Unix epoch) on.
    pub(crate) fn deaths(
        &self,
        label: &str,
        since: u64,
    ) -> impl Stream<Item = Result<EventMessage, Error>> + Send + use<> {
        let filters = HashMap::from([
            ("label", vec![label]),
            ("type", vec!["container"]),
            ("event", vec!["die", "oom"]),
        ]);
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters).build();
        self.docker.events(Some(options))
    }

    pub(crate) async fn inspect_image(&self, image: &str) -> Result<ImageInspect, Error> {
        timed("image_inspect", self.docker.inspect_image(image)).await
    }

    /// All images that have a name, or are no part of another.
    pub(crate) async fn list_images(&self) -> Result<Vec<ImageSummary>, Error> {
        timed("image_list", self.docker.list_images(None::<ListImagesOptions>)).await
    }

    /// Tells each time that an image came, went or got another name, from `since` (seconds of the Unix epoch) on.
    pub(crate) fn image_changes(&self, since: u64) -> impl Stream<Item = Result<(), Error>> + Send + use<> {
        let filters = HashMap::from([
            ("type", vec!["image"]),
            ("event", vec!["pull", "tag", "untag", "delete", "import", "load"]),
        ]);
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters).build();
        self.docker.events(Some(options)).map(|event| event.map(drop))
    }

    /// Pulls `repository` at `tag` (a tag or `sha256:...`) to the end.
    pub(crate) async fn pull_image(
        &self,
        repository: &str,
        tag: &str,
        credentials: Option<bollard::auth::DockerCredentials>,
    ) -> Result<(), Error> {
        let options = CreateImageOptionsBuilder::new().from_image(repository).tag(tag).build();
        timed("pull", exhaust(self.docker.create_image(Some(options), None, credentials))).await
    }

    /// Makes an image out of a root file system in a tar archive.
    pub(crate) async fn import_image(
        &self,
        repository: &str,
        tag: &str,
        changes: Vec<String>,
        root: Bytes,
    ) -> Result<(), Error> {
        let options =
            CreateImageOptionsBuilder::new().from_src("-").repo(repository).tag(tag).changes(changes).build();
        timed(
            "import",
            exhaust(self.docker.create_image(Some(options), Some(bollard::body_full(root)), None)),
        )
        .await
    }

    pub(crate) async fn inspect_network(&self, name: &str) -> Result<NetworkInspect, Error> {
        timed("network_inspect", self.docker.inspect_network(name, None::<InspectNetworkOptions>)).await
    }

    /// All networks that carry `label` (`name=value`).
    pub(crate) async fn list_networks(&self, label: &str) -> Result<Vec<bollard::models::Network>, Error> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        timed("network_list", self.docker.list_networks(Some(options))).await
    }

    pub(crate) async fn create_network(&self, request: NetworkCreateRequest) -> Result<(), Error> {
        timed("network_create", self.docker.create_network(request)).await.map(drop)
    }

    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), Error> {
        timed("network_remove", self.docker.remove_network(name)).await
    }
}

/// The status the engine answered with, when it answered.
pub(crate) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// The engine's own words, or the whole chain of what kept it from answering.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(source) = cause {
                let words = source.to_string();
                if !text.contains(&words) {
                    text = format!("{text}: {words}");
                }
                cause = source.source();
            }
            text
        }
    }
}

/// Runs one operation; its time goes to the histogram, and its error to the counter unless it is an answer that
/// callers expect (gone already, not changed, under way).
async fn timed<T>(operation: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let begun = Instant::now();
    let result = work.await;
    metrics::histogram!("kiln_docker_api_duration_seconds", "operation" => operation)
        .record(begun.elapsed().as_secs_f64());
    if let Err(error) = &result
        && !matches!(status(error), Some(304 | 404 | 409))
    {
        metrics::counter!("kiln_docker_api_errors_total", "operation" => operation).increment(1);
    }
    result
}

/// Reads a stream of progress to its end, or to its first error.
async fn exhaust<T>(stream: impl Stream<Item = Result<T, Error>>) -> Result<(), Error> {
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.next().await {
        item?;
    }
    Ok(())
}

/// Tells the metrics recorder what this module records.
pub(crate) fn describe_metrics() {
    metrics::describe_histogram!(
        "kiln_docker_api_duration_seconds",
        metrics::Unit::Seconds,
        "Time of one operation of the Docker engine's API"
    );
    metrics::describe_counter!(
        "kiln_docker_api_errors_total",
        "Failed operations of the Docker engine's API"
    );
}
