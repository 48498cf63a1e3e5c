//! The languages that functions are written in: their images, their Dockerfiles and the files of a new project.
//!
//! Images and steps are Fn's, so that a project made by either command line is built by both.

use std::path::Path;

use crate::funcfile::FuncFile;

include!(concat!(env!("OUT_DIR"), "/fdk_files.rs"));

/// Version of the Java FDK and its images when `FN_JAVA_FDK_VERSION` names no other.
const JAVA_FDK_VERSION: &str = "1.0.151";
/// The runtime of a function that brings its own Dockerfile.
pub const DOCKER: &str = "docker";

/// A language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// `rust`
    Rust,
    /// `go`
    Go,
    /// `python`
    Python,
    /// `node`
    Node,
    /// `java`
    Java,
    /// `ruby`
    Ruby,
    /// `kotlin`
    Kotlin,
    /// `docker`: whatever the Dockerfile makes.
    Docker,
}

/// A language in one of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The language.
    pub language: Language,
    /// Its version, as in image tags.
    pub version: String,
}

/// The languages by name, with their versions, the usual one first.
const LANGUAGES: [(&str, Language, &[&str]); 8] = [
    ("rust", Language::Rust, &["1"]),
    ("go", Language::Go, &["1.24", "1.23"]),
    ("python", Language::Python, &["3.12", "3.11"]),
    ("node", Language::Node, &["24", "22"]),
    ("java", Language::Java, &["17", "21", "11", "8"]),
    ("ruby", Language::Ruby, &["3.3", "3.1"]),
    ("kotlin", Language::Kotlin, &["17"]),
    (DOCKER, Language::Docker, &[""]),
];

/// Names of all runtimes, for people.
pub fn names() -> String {
    LANGUAGES.map(|(name, ..)| name).join(", ")
}

impl Runtime {
    /// Understands `python` and `python3.11`. A version that is not known is taken at its word: images may exist.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, language, versions) = LANGUAGES.iter().find(|(name, ..)| text.starts_with(name))?;
        let version = match &text[name.len()..] {
            "" => versions[0],
            version if version.chars().all(|c| c.is_ascii_digit() || c == '.') => version,
            _ => return None,
        };
        Some(Self { language: *language, version: version.to_owned() })
    }

    /// The language's name, without a version.
    pub fn name(&self) -> String {
        let found = LANGUAGES.iter().find(|(_, language, _)| *language == self.language);
        found.map_or_else(String::new, |(name, ..)| (*name).to_owned())
    }

    /// Guesses the runtime from the files in a folder.
    pub fn detect(folder: &Path) -> Option<Self> {
        const MARKS: [(&str, &str); 11] = [
            ("Dockerfile", DOCKER),
            ("Cargo.toml", "rust"),
            ("go.mod", "go"),
            ("func.go", "go"),
            ("requirements.txt", "python"),
            ("func.py", "python"),
            ("package.json", "node"),
            ("func.js", "node"),
            ("Gemfile", "ruby"),
            ("src/main/kotlin", "kotlin"),
            ("pom.xml", "java"),
        ];
        let (_, name) = MARKS.iter().find(|(mark, _)| folder.join(mark).exists())?;
        Self::parse(name)
    }

    /// The image to build in.
    pub fn build_image(&self) -> Option<String> {
        let version = &self.version;
        Some(match self.language {
            Language::Rust => format!("rust:{version}-slim"),
            Language::Go => format!("fnproject/go:{version}-dev"),
            Language::Python => format!("fnproject/python:{version}-dev"),
            Language::Node => format!("fnproject/node:{version}-dev"),
            Language::Ruby => format!("fnproject/ruby:{version}-dev"),
            Language::Java | Language::Kotlin => {
                let fdk = java_fdk_version();
                if version == "8" {
                    format!("fnproject/fn-java-fdk-build:{fdk}")
                } else {
                    format!("fnproject/fn-java-fdk-build:jdk{version}-{fdk}")
                }
            }
            Language::Docker => return None,
        })
    }

    /// The image to run on.
    pub fn run_image(&self) -> Option<String> {
        let version = &self.version;
        Some(match self.language {
            Language::Rust => "scratch".to_owned(),
            Language::Go => format!("fnproject/go:{version}"),
            Language::Python => format!("fnproject/python:{version}"),
            Language::Node => format!("fnproject/node:{version}"),
            Language::Ruby => format!("fnproject/ruby:{version}"),
            Language::Java | Language::Kotlin => {
                let fdk = java_fdk_version();
                if version == "8" {
                    format!("fnproject/fn-java-fdk:{fdk}")
                } else {
                    format!("fnproject/fn-java-fdk:jre{version}-{fdk}")
                }
            }
            Language::Docker => return None,
        })
    }

    /// Program and arguments that func.yaml gets.
    pub fn entrypoint(&self) -> Option<&'static str> {
        match self.language {
            Language::Rust => Some("/function/func"),
            Language::Go => Some("./func"),
            Language::Python => Some("/python/bin/fdk /function/func.py handler"),
            Language::Node => Some("node func.js"),
            Language::Ruby => Some("ruby func.rb"),
            Language::Java | Language::Kotlin | Language::Docker => None,
        }
    }

    /// Arguments of the image's own entry point that func.yaml gets.
    pub fn cmd(&self) -> Option<&'static str> {
        match self.language {
            Language::Java => Some("com.example.fn.HelloFunction::handleRequest"),
            Language::Kotlin => Some("com.example.fn.HelloFunctionKt::hello"),
            _ => None,
        }
    }

    /// Megabytes that func.yaml gets, where the server's default is too small.
    pub fn memory(&self) -> Option<u64> {
        (self.language == Language::Python).then_some(256)
    }

    /// The files of a new project: path and text.
    pub fn project(&self, function_name: &str) -> Vec<(String, String)> {
        macro_rules! files {
            ($($path:literal from $template:literal),+ $(,)?) => {
                vec![$(($path, include_str!(concat!("../templates/", $template)))),+]
            };
        }
        let templates = match self.language {
            Language::Rust => files!["src/main.rs" from "rust/main.rs", "Cargo.toml" from "rust/Cargo.toml",
                ".gitignore" from "rust/gitignore", ".dockerignore" from "rust/dockerignore"],
            Language::Go => files!["func.go" from "go/func.go", "go.mod" from "go/go.mod",
                ".gitignore" from "go/gitignore"],
            Language::Python => {
                files!["func.py" from "python/func.py", "requirements.txt" from "python/requirements.txt"]
            }
            Language::Node => files!["func.js" from "node/func.js", "package.json" from "node/package.json",
                ".gitignore" from "node/gitignore"],
            Language::Ruby => files!["func.rb" from "ruby/func.rb", "Gemfile" from "ruby/Gemfile"],
            Language::Java => files!["pom.xml" from "java/pom.xml", ".gitignore" from "java/gitignore",
                "src/main/java/com/example/fn/HelloFunction.java" from "java/HelloFunction.java",
                "src/test/java/com/example/fn/HelloFunctionTest.java" from "java/HelloFunctionTest.java"],
            Language::Kotlin => files!["pom.xml" from "kotlin/pom.xml", ".gitignore" from "java/gitignore",
                "src/main/kotlin/HelloFunction.kt" from "kotlin/HelloFunction.kt",
                "src/test/kotlin/HelloFunctionTest.kt" from "kotlin/HelloFunctionTest.kt"],
            Language::Docker => {
                files!["Dockerfile" from "docker/Dockerfile", "func.py" from "docker/func.py"]
            }
        };
        let fill = |text: &str| {
            text.replace("{{name}}", function_name)
                .replace("{{crate}}", &package_name(function_name))
                .replace("{{language_version}}", if self.version == "8" { "1.8" } else { &self.version })
                .replace("{{fdk_version}}", &java_fdk_version())
        };
        let mut files: Vec<_> =
            templates.into_iter().map(|(path, text)| (path.to_owned(), fill(text))).collect();
        if self.language == Language::Rust {
            files.extend(
                FDK_FILES.iter().map(|(path, text)| (format!("kiln-fdk/{path}"), (*text).to_owned())),
            );
        }
        files
    }

    /// The Dockerfile that builds the function in `file`'s folder: a stage that builds, a stage that runs.
    pub fn dockerfile(&self, file: &FuncFile) -> String {
        let folder = file.folder();
        let build_image = file.spec.build_image.clone().or_else(|| self.build_image()).unwrap_or_default();
        let run_image = file.spec.run_image.clone().or_else(|| self.run_image()).unwrap_or_default();
        let mut lines = vec![format!("FROM {build_image} as build-stage"), "WORKDIR /function".to_owned()];
        lines.extend(self.build_steps(folder));
        lines.push(format!("FROM {run_image}"));
        lines.push("WORKDIR /function".to_owned());
        lines.extend(self.run_steps(folder));
        let entrypoint = file.spec.entrypoint.as_deref().or_else(|| self.entrypoint());
        let cmd = file.spec.cmd.as_deref().or_else(|| self.cmd());
        lines.extend(entrypoint.map(|text| format!("ENTRYPOINT {}", exec_form(text))));
        lines.extend(cmd.map(|text| format!("CMD {}", exec_form(text))));
        lines.join("\n") + "\n"
    }

    fn build_steps(&self, folder: &Path) -> Vec<String> {
        let has = |name: &str| folder.join(name).exists();
        let mut steps: Vec<&str> = Vec::new();
        match self.language {
            Language::Rust => {
                steps.push("COPY . .");
                // More than one binary in the project: the last one found wins.
                steps.push(
                    "RUN target=$(rustc -vV | sed -n 's/^host: //p') \
                     && RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target \"$target\" \
                     && find \"target/$target/release\" -maxdepth 1 -type f -perm -100 ! -name '*.so' \
                     -exec cp {} /func ';'",
                );
            }
            Language::Go => {
                if has("vendor") {
                    steps.push("ENV GOFLAGS=\"-mod=vendor\"");
                }
                steps.extend(["WORKDIR /go/src/func/", "ENV GO111MODULE=on", "COPY . ."]);
                if !has("vendor") {
                    steps.push("RUN go mod tidy");
                }
                steps.push("RUN go build -o func -v");
            }
            Language::Python => {
                if has("requirements.txt") {
                    steps.push("ADD requirements.txt /function/");
                    steps.push("RUN pip3 install --target /python/ --no-cache-dir -r requirements.txt && chmod -R o+r /python");
                }
                steps.push("ADD . /function/");
                if has("setup.py") {
                    steps.push("RUN pip3 install --target /python/ --no-cache-dir .");
                }
            }
            Language::Node => {
                if has("package.json") && !has("node_modules") {
                    if has("package-lock.json") {
                        steps.push("ADD package-lock.json /function/");
                    }
                    steps.extend(["ADD package.json /function/", "RUN npm install --omit=dev"]);
                }
            }
            Language::Ruby => {
                if has("Gemfile") {
                    steps.extend(["ADD Gemfile* /function/", "RUN bundle install"]);
                }
            }
            Language::Java | Language::Kotlin => steps.extend([
                // Where the build image keeps what it fetched ahead.
                "ENV MAVEN_OPTS -Dmaven.repo.local=/usr/share/maven/ref/repository",
                "ADD . /function/",
                "RUN mvn -B package dependency:copy-dependencies -DincludeScope=runtime \
                 -Dmdep.prependGroupId=true -DoutputDirectory=target",
            ]),
            Language::Docker => {}
        }
        steps.into_iter().map(str::to_owned).collect()
    }

    fn run_steps(&self, folder: &Path) -> Vec<String> {
        let has = |name: &str| folder.join(name).exists();
        let mut steps: Vec<&str> = Vec::new();
        match self.language {
            Language::Rust => steps.push("COPY --from=build-stage /func /function/func"),
            Language::Go => steps.push("COPY --from=build-stage /go/src/func/func /function/"),
            Language::Python => steps.extend([
                "COPY --from=build-stage /python /python",
                "COPY --from=build-stage /function /function",
                "RUN chmod -R o+r /function",
                "ENV PYTHONPATH=/function:/python",
            ]),
            Language::Node => {
                steps.push("ADD . /function/");
                if has("package.json") && !has("node_modules") {
                    steps.push("COPY --from=build-stage /function/node_modules/ /function/node_modules/");
                }
                steps.push("RUN chmod -R o+r /function");
            }
            Language::Ruby => {
                if has("Gemfile") {
                    steps.push("COPY --from=build-stage /usr/lib/ruby/gems/ /usr/lib/ruby/gems/");
                }
                steps.extend(["COPY . /function/", "RUN chmod -R o+r /function"]);
            }
            Language::Java | Language::Kotlin => {
                steps.push("COPY --from=build-stage /function/target/*.jar /function/app/");
            }
            Language::Docker => {}
        }
        steps.into_iter().map(str::to_owned).collect()
    }
}

fn java_fdk_version() -> String {
    let chosen = std::env::var("FN_JAVA_FDK_VERSION").ok().filter(|version| !version.is_empty());
    chosen.unwrap_or_else(|| JAVA_FDK_VERSION.to_owned())
}

/// A name that Cargo, npm and Maven take: letters, digits, `-` and `_`, starting with a letter.
fn package_name(function_name: &str) -> String {
    let last = function_name.rsplit('/').next().unwrap_or_default();
    let name: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    // Names of Cargo's own would not build.
    let is_taken = matches!(
        name.as_str(),
        "test" | "core" | "std" | "alloc" | "kiln-fdk" | "proc-macro" | "self" | "crate"
    );
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && !is_taken { name } else { format!("fn-{name}") }
}

/// `a b` as `["a", "b"]`; a text that is a JSON list already stays.
pub fn exec_form(text: &str) -> String {
    serde_json::to_string(&words(text)).unwrap_or_default()
}

/// The words of an entry point: those of a JSON list, or those between spaces.
pub fn words(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| text.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn runtimes_may_name_a_version() {
        assert_eq!(Runtime::parse("python").unwrap().version, "3.12");
        assert_eq!(Runtime::parse("python3.11").unwrap().version, "3.11");
        assert_eq!(Runtime::parse("docker").unwrap().language, Language::Docker);
        assert_eq!(Runtime::parse("cobol"), None);
        assert_eq!(Runtime::parse("gopher"), None);
    }

    #[test]
    fn the_dockerfile_builds_in_one_image_and_runs_on_another() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("func.yaml"),
            "schema_version: 20180708\nname: a\nruntime: python3.11\nrun_image: mine:1\n",
        )
        .unwrap();
        fs::write(folder.path().join("requirements.txt"), "fdk\n").unwrap();
        let file = FuncFile::load(folder.path()).unwrap();
        let text = Runtime::parse("python3.11").unwrap().dockerfile(&file);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "FROM fnproject/python:3.11-dev as build-stage");
        assert!(lines.contains(&"FROM mine:1"));
        assert_eq!(*lines.last().unwrap(), r#"ENTRYPOINT ["/python/bin/fdk","/function/func.py","handler"]"#);
    }

    #[test]
    fn a_rust_project_brings_its_fdk() {
        let files = Runtime::parse("rust").unwrap().project("hello");
        assert!(
            files.iter().any(|(path, text)| path == "kiln-fdk/src/lib.rs" && text.contains("pub fn run"))
        );
        assert!(files.iter().all(|(_, text)| !text.contains("{{")));
    }

    #[test]
    fn names_of_functions_become_names_of_packages() {
        assert_eq!(package_name("hello"), "hello");
        assert_eq!(package_name("me/my.fn"), "my-fn");
        assert_eq!(package_name("2fast"), "fn-2fast");
        assert_eq!(package_name("test"), "fn-test");
    }
}
