//! `func.yaml` (or `.yml`, `.json`): what a function is, how it is built and what calls it. And `app.yaml`.
//!
//! Owns the file's form (Fn's schema 20180708), its checks, and changing its version in place: comments and order of
//! the rest stay as they are. Every complaint names file and line.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::resources::{Annotations, Config};
use crate::yaml;

/// The only form of the file that is read.
pub const SCHEMA_VERSION: u64 = 20_180_708;
/// Version of a function that has none.
pub const INITIAL_VERSION: &str = "0.0.1";

const FILE_NAMES: [&str; 3] = ["func.yaml", "func.yml", "func.json"];
const APP_FILE_NAMES: [&str; 3] = ["app.yaml", "app.yml", "app.json"];

/// Largest values that a server takes (`memory` in MB, the others in seconds).
const MEMORY_MAX: u64 = 8192;
const TIMEOUT_MAX: u32 = 300;
const IDLE_TIMEOUT_MAX: u32 = 3600;

/// Fields of Fn's file that say nothing to Kiln, and so are passed over in silence.
const SILENT_FIELDS: [&str; 9] =
    ["deploy", "signing_details", "expects", "tests", "type", "path", "format", "cpus", "headers"];

/// What the file says.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct FuncSpec {
    /// See [`SCHEMA_VERSION`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<u64>,
    /// Name of the function and of its image; the folder's name if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Three numbers joined by dots; the image's tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Language, optionally with its version; `docker` for one with its own Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Image to build in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_image: Option<String>,
    /// Image to run on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_image: Option<String>,
    /// Program and arguments of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// Arguments of the entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Content type that `kiln invoke` sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Megabytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Seconds a call may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// Seconds a container is kept without calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u32>,
    /// Given to the function.
    #[serde(default, skip_serializing_if = "Config::is_empty")]
    pub config: Config,
    /// See [`Annotations`].
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Commands to run in the folder before the build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub build: Vec<String>,
    /// What calls it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<TriggerSpec>,
    /// The rest.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A trigger in the file.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct TriggerSpec {
    /// Unique in the function.
    pub name: String,
    /// `http`.
    #[serde(rename = "type", default = "http")]
    pub kind: String,
    /// Path below `/t/APP`.
    pub source: String,
}

fn http() -> String {
    "http".to_owned()
}

/// The file of one function.
#[derive(Debug, Clone)]
pub struct FuncFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub spec: FuncSpec,
    text: String,
}

/// Which number of a version to raise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bump {
    /// `1.2.3` to `2.0.0`
    Major,
    /// `1.2.3` to `1.3.0`
    Minor,
    /// `1.2.3` to `1.2.4`
    Patch,
}

impl FuncFile {
    /// Finds and reads the file of the function in `folder`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = find(folder, &FILE_NAMES).ok_or_else(|| {
            Failure::new(format!("there is no func.yaml in {}", folder.display()))
                .hint("make one with `kiln init`, or go to the function's folder")
        })?;
        Self::read(&path)
    }

    /// True if the folder has a function's file.
    pub fn exists(folder: &Path) -> bool {
        find(folder, &FILE_NAMES).is_some()
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let spec: FuncSpec = parse(path, &text)?;
        let file = Self { path: path.to_owned(), spec, text };
        file.check()?;
        Ok(file)
    }

    /// The folder of the function.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// The function's name: the file's, else the folder's in lower case.
    pub fn name(&self) -> Result<String> {
        if let Some(name) = &self.spec.name {
            return Ok(name.clone());
        }
        let folder = fs::canonicalize(self.folder())?;
        let name = folder.file_name().and_then(|name| name.to_str()).map(str::to_lowercase);
        name.ok_or_else(|| Failure::new(format!("{}: the function has no name", self.path.display())).into())
    }

    /// The function's version, [`INITIAL_VERSION`] if it has none.
    pub fn version(&self) -> &str {
        self.spec.version.as_deref().unwrap_or(INITIAL_VERSION)
    }

    /// The image's name: registry, function and version. A function whose name has a slash brings its own registry.
    pub fn image(&self, registry: Option<&str>) -> Result<String> {
        let name = self.name()?;
        let version = self.version();
        Ok(match registry.map(|registry| registry.trim_end_matches('/')) {
            Some(registry) if !registry.is_empty() && !name.contains('/') => {
                format!("{registry}/{name}:{version}")
            }
            _ => format!("{name}:{version}"),
        })
    }

    /// Raises the version, in memory and in the file. Returns the new one.
    pub fn bump(&mut self, bump: Bump) -> Result<String> {
        let version = match &self.spec.version {
            None => INITIAL_VERSION.to_owned(),
            Some(version) => bumped(version, bump).ok_or_else(|| self.complaint("version", NOT_A_VERSION))?,
        };
        self.text = if is_json(&self.path) {
            let mut object: Map<String, Value> = serde_json::from_str(&self.text)?;
            object.insert("version".to_owned(), Value::String(version.clone()));
            serde_json::to_string_pretty(&object)? + "\n"
        } else {
            with_version(&self.text, &version)
        };
        fs::write(&self.path, &self.text).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.spec.version = Some(version.clone());
        Ok(version)
    }

    /// Fields that nobody reads: most likely misspelt.
    pub fn unknown_fields(&self) -> Vec<String> {
        let unknown = self.spec.other.keys().filter(|name| !SILENT_FIELDS.contains(&name.as_str()));
        unknown.map(|name| format!("{}: unknown field {name:?} is ignored", self.place(name))).collect()
    }

    fn check(&self) -> Result<()> {
        let spec = &self.spec;
        if spec.schema_version != Some(SCHEMA_VERSION) {
            return Err(Failure::new(format!(
                "{}: only schema_version {SCHEMA_VERSION} is read",
                self.place("schema_version")
            ))
            .hint(format!(
                "put `schema_version: {SCHEMA_VERSION}` at the top; routes became `triggers` in that form"
            ))
            .into());
        }
        if spec.version.as_deref().is_some_and(|version| parse_version(version).is_none()) {
            return Err(self.complaint("version", NOT_A_VERSION));
        }
        if let Some(name) = &spec.name {
            check_name(name).map_err(|text| self.complaint("name", text))?;
        }
        if spec.memory.is_some_and(|memory| memory > MEMORY_MAX) {
            return Err(self.complaint("memory", "memory is at most 8192 (MB)"));
        }
        if spec.timeout.is_some_and(|timeout| timeout > TIMEOUT_MAX) {
            return Err(self.complaint("timeout", "timeout is at most 300 (seconds)"));
        }
        if spec.idle_timeout.is_some_and(|timeout| timeout > IDLE_TIMEOUT_MAX) {
            return Err(self.complaint("idle_timeout", "idle_timeout is at most 3600 (seconds)"));
        }
        if spec.triggers.iter().any(|trigger| trigger.kind != "http") {
            return Err(self.complaint("triggers", "a trigger's type is http"));
        }
        Ok(())
    }

    fn complaint(&self, field: &str, text: &str) -> anyhow::Error {
        Failure::new(format!("{}: {text}", self.place(field))).hint("mend that line and try again").into()
    }

    /// `FILE:LINE` of a top-level field, or the file alone if it is not there.
    fn place(&self, field: &str) -> String {
        let quoted = format!("\"{field}\"");
        let line = self.text.lines().position(|line| {
            let line = if is_json(&self.path) { line.trim_start() } else { line };
            let rest = line.strip_prefix(quoted.as_str()).or_else(|| line.strip_prefix(field));
            rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
        });
        match line {
            Some(index) => format!("{}:{}", self.path.display(), index + 1),
            None => self.path.display().to_string(),
        }
    }
}

const NOT_A_VERSION: &str = "a version is three numbers joined by dots, such as 0.0.1";

/// Function names are also image names: lower case, no colon.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(c);
    if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed)
    {
        return Err(
            "a function's name has lower-case letters, digits, '-', '_' and '.', and starts with one of the first two",
        );
    }
    Ok(())
}

fn parse_version(version: &str) -> Option<[u64; 3]> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    let parsed = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(parsed)
}

fn bumped(version: &str, bump: Bump) -> Option<String> {
    let [major, minor, patch] = parse_version(version)?;
    Some(match bump {
        Bump::Major => format!("{}.0.0", major + 1),
        Bump::Minor => format!("{major}.{}.0", minor + 1),
        Bump::Patch => format!("{major}.{minor}.{}", patch + 1),
    })
}

/// The YAML text with another version: in its line, with its quotes and comment, or in a new line below the name.
fn with_version(text: &str, version: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(line) = lines.iter_mut().find(|line| line.starts_with("version:")) {
        let value = line["version:".len()..].trim_start();
        let quote =
            value.chars().next().filter(|c| matches!(c, '"' | '\'')).map_or(String::new(), String::from);
        let comment = value.find(" #").map_or("", |at| &value[at..]);
        *line = format!("version: {quote}{version}{quote}{comment}");
    } else {
        let after = |line: &String| line.starts_with("name:") || line.starts_with("schema_version:");
        let index = lines.iter().rposition(after).map_or(0, |index| index + 1);
        lines.insert(index, format!("version: {version}"));
    }
    lines.join("\n") + "\n"
}

/// What `app.yaml` says.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct AppSpec {
    /// Name of the app.
    pub name: Option<String>,
    /// Given to all functions of the app.
    #[serde(default)]
    pub config: Config,
    /// See [`Annotations`].
    #[serde(default)]
    pub annotations: Annotations,
    /// Where the functions' logs go.
    pub syslog_url: Option<String>,
    /// Processor architectures.
    #[serde(default)]
    pub shape: String,
}

impl AppSpec {
    /// Reads the app's file in `folder`, if there is one.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let Some(path) = find(folder, &APP_FILE_NAMES) else { return Ok(None) };
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        parse(&path, &text).map(Some)
    }
}

fn parse<T: serde::de::DeserializeOwned + Default>(path: &Path, text: &str) -> Result<T> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    let parsed = if is_json(path) { yaml::parse_json(text) } else { yaml::parse(text) };
    parsed.map_err(|error| Failure::new(error.at(path)).hint("mend that line and try again").into())
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

fn find(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// Folders below `root` (itself included) that have a function's file, in order of their paths. Hidden folders and those
/// where tools put what they fetch or build are passed over.
pub fn function_folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    const SKIPPED: [&str; 4] = ["target", "node_modules", "vendor", "__pycache__"];
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        if FuncFile::exists(&folder) {
            found.push(folder.clone());
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // The type of the entry itself: links are not followed, so there are no loops.
            if entry.file_type()?.is_dir() && !name.starts_with('.') && !SKIPPED.contains(&name.as_ref()) {
                waiting.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, Result<FuncFile>) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        let file = FuncFile::load(folder.path());
        (folder, file)
    }

    #[test]
    fn a_bump_keeps_comments_quotes_and_order() {
        let (_folder, file) = file(
            "func.yaml",
            "# mine\nschema_version: 20180708\nname: hello\nversion: \"0.0.9\" # raised by deploy\nruntime: rust\n",
        );
        let mut file = file.unwrap();
        assert_eq!(file.bump(Bump::Patch).unwrap(), "0.0.10");
        assert_eq!(
            fs::read_to_string(&file.path).unwrap(),
            "# mine\nschema_version: 20180708\nname: hello\nversion: \"0.0.10\" # raised by deploy\nruntime: rust\n"
        );
        assert_eq!(file.bump(Bump::Minor).unwrap(), "0.1.0");
        assert_eq!(file.bump(Bump::Major).unwrap(), "1.0.0");
        assert_eq!(FuncFile::read(&file.path).unwrap().version(), "1.0.0");
    }

    #[test]
    fn a_function_without_version_gets_the_first_one() {
        let (_folder, file) = file("func.yaml", "schema_version: 20180708\nname: hello\n");
        let mut file = file.unwrap();
        assert_eq!(file.bump(Bump::Patch).unwrap(), INITIAL_VERSION);
        assert_eq!(FuncFile::read(&file.path).unwrap().spec.version.as_deref(), Some(INITIAL_VERSION));
    }

    #[test]
    fn a_json_file_is_bumped_too() {
        let (_folder, file) =
            file("func.json", "{\"schema_version\": 20180708, \"name\": \"a\", \"version\": \"1.2.3\"}");
        let mut file = file.unwrap();
        file.bump(Bump::Patch).unwrap();
        assert_eq!(FuncFile::read(&file.path).unwrap().version(), "1.2.4");
    }

    #[test]
    fn complaints_name_the_line() {
        for (text, line) in [
            ("schema_version: 20180708\nname: a\nversion: one\n", 3),
            ("schema_version: 20180708\nname: A b\n", 2),
            ("schema_version: 20180708\nname: a\nmemory: lots\n", 3),
            ("schema_version: 20180708\nname: a\nmemory: 9000\n", 3),
            ("schema_version: 1\n", 1),
            ("schema_version: 20180708\ntriggers:\n- name: t\n", 3),
        ] {
            let (_folder, file) = file("func.yaml", text);
            let error = file.unwrap_err().to_string();
            assert!(error.contains(&format!("func.yaml:{line}")), "{text}\n{error}");
        }
    }

    #[test]
    fn the_whole_file_is_read() {
        let (_folder, file) = file(
            "func.yaml",
            "schema_version: 20180708\nname: hello\nversion: 0.0.1\nruntime: go\nentrypoint: ./func\nmemory: 256\n\
             timeout: 10\nconfig:\n  A: 1\n  B: yes\nannotations:\n  team: {a: [1, 2]}\ntriggers:\n- name: t\n  type: http\n  \
             source: /hello\nmemry: 3\nexpects: {}\n",
        );
        let file = file.unwrap();
        assert_eq!(file.spec.config["A"], "1");
        assert_eq!(file.spec.annotations["team"], serde_json::json!({"a": [1, 2]}));
        assert_eq!(file.spec.triggers[0].source, "/hello");
        assert_eq!(file.unknown_fields().len(), 1);
        assert!(
            file.unknown_fields()[0].contains("func.yaml:17: unknown field \"memry\""),
            "{:?}",
            file.unknown_fields()
        );
        assert_eq!(file.image(Some("me/")).unwrap(), "me/hello:0.0.1");
        assert_eq!(file.image(None).unwrap(), "hello:0.0.1");
    }
}
