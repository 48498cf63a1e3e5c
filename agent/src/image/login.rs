//! Logins for registries, in the forms that Docker and Fn keep them (`spec/placement-and-lb.md`, part 4).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;

use super::reference::DOCKER_HUB;

/// A text that holds no logins.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It is not JSON of a known form.
    #[error(
        "{origin} holds no registry logins; expected {{\"host\":{{\"auth\":\"base64 of user:password\"}}}} or \
         {{\"auths\":{{...}}}}"
    )]
    Form {
        /// Where the text came from.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// One entry's `auth` is not the base64 of `user:password`.
    #[error("the login for {host} in {origin} is not the base64 of user:password")]
    Entry {
        /// The registry.
        host: String,
        /// Where the text came from.
        origin: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where names and passwords for registries come from. Never shows a password in its `Debug` form.
#[derive(Debug, Clone)]
pub struct RegistryLogins {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Fixed(Logins),
    /// Read at each pull, so that `docker login` takes effect without a restart. The first that exists counts.
    Files(Vec<PathBuf>),
}

impl Default for RegistryLogins {
    /// What `docker login` wrote for this user: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, else
    /// `~/.dockercfg`.
    fn default() -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let docker = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let files =
            docker.map(|path| path.join("config.json")).into_iter().chain(home.map(|h| h.join(".dockercfg")));
        Self { source: Source::Files(files.collect()) }
    }
}

impl RegistryLogins {
    /// No logins: every registry is asked as anonymous.
    pub fn none() -> Self {
        Self { source: Source::Files(Vec::new()) }
    }

    /// From the JSON text of `FN_DOCKER_AUTH`: hosts at the top, or under `auths` as in Docker's own file.
    ///
    /// # Errors
    /// When the text is neither, or an entry cannot be decoded.
    pub fn from_json(text: &str) -> Result<Self, LoginError> {
        Ok(Self { source: Source::Fixed(Logins::parse(text, "FN_DOCKER_AUTH")?) })
    }

    /// From a file of Docker's form, read at each pull; a file that is missing holds no logins.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self { source: Source::Files(vec![path.into()]) }
    }

    /// What to show to the registry `host`; `None` is anonymous.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub(super) fn for_host(&self, host: &str) -> Result<Option<DockerCredentials>, LoginError> {
        let files = match &self.source {
            Source::Fixed(logins) => return Ok(logins.for_host(host)),
            Source::Files(files) => files,
        };
        for path in files {
            match std::fs::read_to_string(path) {
                Ok(text) => return Ok(Logins::parse(&text, &path.display().to_string())?.for_host(host)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(LoginError::Read { path: path.clone(), source }),
            }
        }
        Ok(None)
    }
}

/// Logins by registry host.
#[derive(Clone, Default)]
struct Logins(BTreeMap<String, DockerCredentials>);

impl fmt::Debug for Logins {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Deserialize)]
struct DockerFile {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, alias = "identitytoken")]
    #[serde(rename = "identityToken")]
    identity_token: Option<String>,
}

impl Logins {
    fn parse(text: &str, origin: &str) -> Result<Self, LoginError> {
        let form = |source| LoginError::Form { origin: origin.to_owned(), source };
        let value: serde_json::Value = serde_json::from_str(text).map_err(form)?;
        let entries = if value.get("auths").is_some() {
            serde_json::from_value::<DockerFile>(value).map_err(form)?.auths
        } else if is_settings_without_logins(&value, Path::new(origin)) {
            BTreeMap::new()
        } else {
            serde_json::from_value::<BTreeMap<String, Entry>>(value).map_err(form)?
        };
        let mut logins = BTreeMap::new();
        for (name, entry) in entries {
            let host = host_of(&name).to_owned();
            match credentials(entry, &host) {
                Ok(Some(credentials)) => drop(logins.insert(host, credentials)),
                // Kept by a credential helper: nothing here to show.
                Ok(None) => {}
                Err(()) => return Err(LoginError::Entry { host, origin: origin.to_owned() }),
            }
        }
        Ok(Self(logins))
    }

    /// The login of the host itself, else of the longest domain above it.
    fn for_host(&self, host: &str) -> Option<DockerCredentials> {
        let host = host_of(host);
        self.0
            .iter()
            .filter(|(entry, _)| {
                host == entry.as_str()
                    || host.strip_suffix(entry.as_str()).is_some_and(|rest| rest.ends_with('.'))
            })
            .max_by_key(|(entry, _)| entry.len())
            .map(|(_, credentials)| credentials.clone())
    }
}

/// Docker's own file holds other settings too, and no `auths` before the first login.
fn is_settings_without_logins(value: &serde_json::Value, origin: &Path) -> bool {
    origin.file_name().is_some_and(|name| name == "config.json") && value.is_object()
}

/// `https://index.docker.io/v1/` and `index.docker.io` are both the Docker Hub.
fn host_of(name: &str) -> &str {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    match name.split('/').next().unwrap_or(name) {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn credentials(entry: Entry, host: &str) -> Result<Option<DockerCredentials>, ()> {
    let (username, password) = if entry.auth.is_empty() {
        (entry.username, entry.password)
    } else {
        let text = STANDARD.decode(entry.auth.trim()).map_err(drop)?;
        let text = String::from_utf8(text).map_err(drop)?;
        let (username, password) = text.split_once(':').ok_or(())?;
        (username.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    if username.is_empty() && entry.identity_token.is_none() {
        return Ok(None);
    }
    let server = if host == DOCKER_HUB { "https://index.docker.io/v1/" } else { host };
    Ok(Some(DockerCredentials {
        username: Some(username),
        password: Some(password),
        identitytoken: entry.identity_token,
        serveraddress: Some(server.to_owned()),
        ..DockerCredentials::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(logins: &RegistryLogins, host: &str) -> Option<String> {
        logins.for_host(host).unwrap().and_then(|credentials| credentials.username)
    }

    fn entry(text: &str) -> String {
        format!("{{\"auth\":\"{}\"}}", STANDARD.encode(text))
    }

    #[test]
    fn both_forms_of_the_variable_are_read() {
        let short = format!("{{\"reg.example.com:5000\":{}}}", entry("ann:se:cret"));
        let long = format!(
            "{{\"auths\":{{\"reg.example.com:5000\":{}}},\"credsStore\":\"x\"}}",
            entry("ann:se:cret")
        );
        for text in [short, long] {
            let found =
                RegistryLogins::from_json(&text).unwrap().for_host("reg.example.com:5000").unwrap().unwrap();
            assert_eq!(found.username.as_deref(), Some("ann"));
            assert_eq!(found.password.as_deref(), Some("se:cret"));
        }
    }

    #[test]
    fn a_login_holds_for_its_host_and_below_and_the_nearest_wins() {
        let text = format!("{{\"gcr.io\":{},\"eu.gcr.io\":{}}}", entry("all:x"), entry("eu:x"));
        let logins = RegistryLogins::from_json(&text).unwrap();
        assert_eq!(user(&logins, "gcr.io").as_deref(), Some("all"));
        assert_eq!(user(&logins, "us.gcr.io").as_deref(), Some("all"));
        assert_eq!(user(&logins, "eu.gcr.io").as_deref(), Some("eu"));
        assert_eq!(user(&logins, "evilgcr.io"), None);
        assert_eq!(user(&logins, "docker.io"), None);
    }

    #[test]
    fn the_docker_hub_is_known_by_all_its_names() {
        for name in ["https://index.docker.io/v1/", "index.docker.io", "docker.io"] {
            let logins = RegistryLogins::from_json(&format!("{{\"{name}\":{}}}", entry("hub:x"))).unwrap();
            assert_eq!(user(&logins, DOCKER_HUB).as_deref(), Some("hub"), "{name}");
        }
    }

    #[test]
    fn a_docker_file_without_logins_is_anonymous_and_a_missing_one_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let logins = RegistryLogins::from_file(&path);
        assert_eq!(user(&logins, "docker.io"), None);
        std::fs::write(&path, "{\"psFormat\":\"table\",\"proxies\":{}}").unwrap();
        assert_eq!(user(&logins, "docker.io"), None);
        std::fs::write(&path, "{\"auths\":{\"reg.io\":{}}}").unwrap();
        assert_eq!(user(&logins, "reg.io"), None);
        std::fs::write(&path, format!("{{\"auths\":{{\"reg.io\":{}}}}}", entry("later:x"))).unwrap();
        assert_eq!(user(&logins, "reg.io").as_deref(), Some("later"));
    }

    #[test]
    fn a_broken_text_is_an_error_that_names_it() {
        let error = RegistryLogins::from_json("nonsense").unwrap_err();
        assert!(error.to_string().starts_with("FN_DOCKER_AUTH holds no registry logins"), "{error}");
        let error = RegistryLogins::from_json("{\"r.io\":{\"auth\":\"%%%\"}}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the login for r.io in FN_DOCKER_AUTH is not the base64 of user:password"
        );
    }

    #[test]
    fn passwords_are_not_shown() {
        let logins = RegistryLogins::from_json(&format!("{{\"r.io\":{}}}", entry("ann:secret"))).unwrap();
        let shown = format!("{logins:?}");
        assert!(shown.contains("r.io") && !shown.contains("secret"), "{shown}");
    }
}
