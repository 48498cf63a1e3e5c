//! Contexts: named servers and registries, in Fn's own files (`contexts/NAME.yaml` and `config.yaml`).
//!
//! Owns `~/.kiln/contexts` and `~/.kiln/config.yaml`. As long as there are none, those of `~/.fn` are read; the first
//! change copies them to `~/.kiln` and never touches `~/.fn`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::args::GlobalArgs;
use crate::failure::Failure;

/// Where a server is looked for when nothing says otherwise.
pub const DEFAULT_API_URL: &str = "http://localhost:8080";
/// The context that exists without a file.
pub const DEFAULT_CONTEXT: &str = "default";
/// Keys of a context file.
pub const API_URL: &str = "api-url";
/// Key of the registry in a context file.
pub const REGISTRY: &str = "registry";
/// Key of the provider in a context file; only `default` is spoken here.
pub const PROVIDER: &str = "provider";

const CURRENT_CONTEXT: &str = "current-context";
const CLI_VERSION: &str = "cli-version";

/// The keys and values of a context file.
pub type ContextFile = BTreeMap<String, String>;

/// What the flags, the environment and the context together say. Flags win over the environment, it over the context.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the API, without `/v2`.
    pub api_url: String,
    /// Put before image names: a user, or a host and path.
    pub registry: Option<String>,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// Name of the context in use.
    pub context: String,
}

impl Settings {
    /// Reads the context in use and puts flags and environment over it.
    pub fn resolve(global: &GlobalArgs, store: &ContextStore) -> Result<Self> {
        let chosen = non_empty(global.context.as_deref());
        let context = match chosen {
            Some(name) => name.to_owned(),
            None => store.current()?.unwrap_or_else(|| DEFAULT_CONTEXT.to_owned()),
        };
        let file = match store.read(&context)? {
            Some(file) => file,
            None if context == DEFAULT_CONTEXT => ContextFile::new(),
            None => return Err(no_such_context(&context)),
        };
        let given = |flag: &Option<String>, key: &str| {
            non_empty(flag.as_deref())
                .or_else(|| non_empty(file.get(key).map(String::as_str)))
                .map(str::to_owned)
        };
        if let Some(provider) = file.get(PROVIDER).filter(|name| !name.is_empty() && *name != DEFAULT_CONTEXT)
        {
            return Err(Failure::new(format!(
                "context {context} uses the provider {provider:?}, which kiln does not speak"
            ))
            .hint("switch with `kiln use context NAME`, or set FN_CONTEXT")
            .into());
        }
        Ok(Self {
            api_url: given(&global.api_url, API_URL).unwrap_or_else(|| DEFAULT_API_URL.to_owned()),
            registry: given(&global.registry, REGISTRY),
            token: std::env::var("FN_TOKEN").ok().filter(|token| !token.is_empty()),
            context,
        })
    }
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Error for a context without a file.
pub fn no_such_context(name: &str) -> anyhow::Error {
    Failure::new(format!("there is no context {name}"))
        .hint("`kiln list contexts` shows what there is; make one with `kiln create context`")
        .into()
}

/// The directory for what belongs to this user: `~/.kiln`.
pub fn kiln_home() -> Result<PathBuf> {
    Ok(home()?.join(".kiln"))
}

fn home() -> Result<PathBuf> {
    etcetera::home_dir().map_err(|_| Failure::new("this user has no home directory").hint("set HOME").into())
}

/// The files.
#[derive(Debug)]
pub struct ContextStore {
    /// `~/.kiln`
    own: PathBuf,
    /// `~/.fn`
    fn_home: PathBuf,
}

impl ContextStore {
    /// The files below this user's home directory.
    pub fn of_user() -> Result<Self> {
        Ok(Self { own: kiln_home()?, fn_home: home()?.join(".fn") })
    }

    /// Files below another directory, for tests.
    pub fn below(home: &Path) -> Self {
        Self { own: home.join(".kiln"), fn_home: home.join(".fn") }
    }

    /// The name of the context in use; none if none was chosen.
    pub fn current(&self) -> Result<Option<String>> {
        let config = read_map(&self.read_root().join("config.yaml"))?.unwrap_or_default();
        Ok(config.get(CURRENT_CONTEXT).filter(|name| !name.is_empty()).cloned())
    }

    /// The contexts by name. The default one is always there.
    pub fn list(&self) -> Result<BTreeMap<String, ContextFile>> {
        let mut contexts = BTreeMap::from([(DEFAULT_CONTEXT.to_owned(), default_context())]);
        let directory = self.read_root().join("contexts");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(contexts),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            if let (Some(name), Some("yaml")) =
                (name, path.extension().and_then(|extension| extension.to_str()))
            {
                contexts.insert(name.to_owned(), read_map(&path)?.unwrap_or_default());
            }
        }
        Ok(contexts)
    }

    /// The context of that name, if it has a file.
    pub fn read(&self, name: &str) -> Result<Option<ContextFile>> {
        check_name(name)?;
        read_map(&context_path(&self.read_root(), name))
    }

    /// Writes a context.
    pub fn write(&self, name: &str, context: &ContextFile) -> Result<()> {
        check_name(name)?;
        self.adopt()?;
        write_map(&context_path(&self.own, name), context)
    }

    /// Removes a context.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.adopt()?;
        let path = context_path(&self.own, name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Makes `name` the context in use, or none.
    pub fn set_current(&self, name: Option<&str>) -> Result<()> {
        self.adopt()?;
        let path = self.own.join("config.yaml");
        let mut config = read_map(&path)?.unwrap_or_default();
        config.insert(CURRENT_CONTEXT.to_owned(), name.unwrap_or_default().to_owned());
        config.entry(CLI_VERSION.to_owned()).or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
        write_map(&path, &config)
    }

    /// Where to read: our own directory once it has contexts, else Fn's.
    fn read_root(&self) -> PathBuf {
        if !self.is_adopted() && self.fn_home.join("contexts").is_dir() {
            self.fn_home.clone()
        } else {
            self.own.clone()
        }
    }

    fn is_adopted(&self) -> bool {
        self.own.join("contexts").is_dir() || self.own.join("config.yaml").exists()
    }

    /// Before the first write: makes our own directory, with what Fn's has.
    fn adopt(&self) -> Result<()> {
        if self.is_adopted() {
            return Ok(());
        }
        let contexts = self.list()?;
        let current = self.current()?;
        let directory = self.own.join("contexts");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        for (name, context) in &contexts {
            write_map(&context_path(&self.own, name), context)?;
        }
        let config = BTreeMap::from([
            (CURRENT_CONTEXT.to_owned(), current.unwrap_or_else(|| DEFAULT_CONTEXT.to_owned())),
            (CLI_VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        write_map(&self.own.join("config.yaml"), &config)
    }
}

fn default_context() -> ContextFile {
    BTreeMap::from([
        (API_URL.to_owned(), DEFAULT_API_URL.to_owned()),
        (PROVIDER.to_owned(), DEFAULT_CONTEXT.to_owned()),
        (REGISTRY.to_owned(), String::new()),
    ])
}

/// A context's name is a file's name: letters, digits, `_` and `-`, as in Fn.
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Failure::misuse(format!("{name:?} cannot name a context"))
        .hint("use only letters, digits, _ and -")
        .into())
}

/// An API URL holds a scheme.
pub fn check_api_url(url: &str) -> Result<()> {
    if url.starts_with("http://") || url.starts_with("https://") {
        return Ok(());
    }
    Err(Failure::misuse(format!("{url:?} is not the URL of an API"))
        .hint("give one such as http://localhost:8080")
        .into())
}

fn context_path(root: &Path, name: &str) -> PathBuf {
    root.join("contexts").join(format!("{name}.yaml"))
}

fn read_map(path: &Path) -> Result<Option<ContextFile>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(Some(ContextFile::new()));
    }
    let map: BTreeMap<String, Option<String>> = crate::yaml::parse(&text)
        .map_err(|error| Failure::new(error.at(path)).hint("mend or remove that file"))?;
    Ok(Some(map.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()))
}

/// Writes the whole file or nothing.
fn write_map(path: &Path, map: &ContextFile) -> Result<()> {
    let text = serde_saphyr::to_string(map)?;
    let partial = path.with_extension("yaml.partial");
    fs::write(&partial, text)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home_with_fn_context() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join(".fn/contexts")).unwrap();
        fs::write(
            home.path().join(".fn/contexts/prod.yaml"),
            "api-url: https://fn.example.com\nprovider: default\nregistry: \"\"\n",
        )
        .unwrap();
        fs::write(home.path().join(".fn/config.yaml"), "cli-version: 0.6.0\ncurrent-context: prod\n")
            .unwrap();
        home
    }

    #[test]
    fn contexts_of_fn_are_read_as_long_as_there_are_no_own() {
        let home = home_with_fn_context();
        let store = ContextStore::below(home.path());
        assert_eq!(store.current().unwrap().as_deref(), Some("prod"));
        assert_eq!(store.read("prod").unwrap().unwrap()[API_URL], "https://fn.example.com");
        assert!(!home.path().join(".kiln").exists());
    }

    #[test]
    fn the_first_change_copies_fns_contexts_and_leaves_them_alone() {
        let home = home_with_fn_context();
        let store = ContextStore::below(home.path());
        store.set_current(Some("default")).unwrap();
        assert_eq!(store.current().unwrap().as_deref(), Some("default"));
        assert!(store.read("prod").unwrap().is_some());
        let fn_config = fs::read_to_string(home.path().join(".fn/config.yaml")).unwrap();
        assert!(fn_config.contains("current-context: prod"));
    }

    #[test]
    fn a_data_directory_alone_does_not_hide_fns_contexts() {
        let home = home_with_fn_context();
        fs::create_dir_all(home.path().join(".kiln/data")).unwrap();
        assert_eq!(ContextStore::below(home.path()).current().unwrap().as_deref(), Some("prod"));
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let home = tempfile::tempdir().unwrap();
        assert!(ContextStore::below(home.path()).read("../x").is_err());
    }
}
