//! `kiln build`, `push` and `deploy`: with a stand-in for the docker command, and once with everything real.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Api, Home, demo_function, demo_trigger, text};

/// Puts a program into a folder that comes first in PATH.
fn stand_in(home: &Home, name: &str, script: &str) {
    let path = home.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A docker that writes down what it is told, and the Dockerfile it is given.
fn stand_in_docker(home: &Home) {
    let log = home.path().join("docker.log");
    let dockerfile = home.path().join("Dockerfile.seen");
    let script = format!(
        "echo \"$@\" >> {}\ncase \"$1\" in\nbuild) while [ $# -gt 0 ]; do [ \"$1\" = --file ] && cp \"$2\" {}; shift; done; echo Step 1/1 ;;\n\
         image) echo sha256:abc ;;\nesac\n",
        log.display(),
        dockerfile.display()
    );
    stand_in(home, "docker", &script);
}

fn kiln(home: &Home, line: &str) -> assert_cmd::Command {
    let mut command = home.kiln(line);
    let path = format!("{}:{}", home.path().join("bin").display(), std::env::var("PATH").unwrap());
    command.env("PATH", path);
    command
}

fn ok(home: &Home, line: &str) -> String {
    let output = kiln(home, line).output().unwrap();
    assert!(output.status.success(), "kiln {line}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn fails(home: &Home, code: i32, line: &str) -> String {
    let output = kiln(home, line).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "kiln {line}: {}", text(&output.stderr));
    text(&output.stderr)
}

const FUNC_YAML: &str = "\
schema_version: 20180708
name: hello
version: 0.0.1
runtime: python
memory: 256
config:
  A: 1
annotations:
  team: blue
triggers:
- name: greet
  type: http
  source: /greet
";

#[test]
fn build_makes_a_dockerfile_and_leaves_none_behind() {
    let home = Home::new();
    stand_in_docker(&home);
    home.write("f/func.yaml", FUNC_YAML);
    let said = ok(&home, "build --dir f --registry me --no-cache --build-arg A=b");
    assert_eq!(said, "Building image me/hello:0.0.1\nFunction me/hello:0.0.1 built successfully.\n");
    let told = home.read("docker.log");
    assert!(
        told.starts_with("build --tag me/hello:0.0.1 --file ")
            && told.contains(" --no-cache --build-arg A=b f\n"),
        "{told}"
    );
    assert!(home.read("Dockerfile.seen").starts_with("FROM fnproject/python:3.12-dev as build-stage\n"));
    assert_eq!(fs::read_dir(home.path().join("f")).unwrap().count(), 1);
    let made = told.split(' ').nth(4).unwrap();
    assert!(!std::path::Path::new(made).exists(), "{made}");
}

#[test]
fn the_folders_own_dockerfile_is_used() {
    let home = Home::new();
    stand_in_docker(&home);
    home.write("func.yaml", "schema_version: 20180708\nname: hello\nruntime: docker\n");
    assert!(fails(&home, 1, "build").contains("Dockerfile does not exist"));
    home.write("Dockerfile", "FROM scratch\n# mine\n");
    ok(&home, "build");
    assert_eq!(home.read("Dockerfile.seen"), "FROM scratch\n# mine\n");
}

#[test]
fn a_failed_build_shows_what_docker_said() {
    let home = Home::new();
    stand_in(&home, "docker", "echo compiling; echo 'no such module' >&2; exit 3\n");
    home.write("func.yaml", FUNC_YAML);
    let error = fails(&home, 1, "build");
    assert!(
        error.contains("no such module\n") && error.contains("error: docker build failed (exit status: 3)"),
        "{error}"
    );
}

#[test]
fn a_machine_without_docker_is_told_what_to_do() {
    let home = Home::new();
    home.write("func.yaml", FUNC_YAML);
    fs::create_dir(home.path().join("empty")).unwrap();
    let output = home.kiln("build").env("PATH", home.path().join("empty")).output().unwrap();
    let error = text(&output.stderr);
    assert!(error.contains("there is no docker command") && error.contains("--build host"), "{error}");
}

#[test]
fn push_needs_a_registry_in_the_name() {
    let home = Home::new();
    stand_in_docker(&home);
    home.write("func.yaml", FUNC_YAML);
    assert!(fails(&home, 1, "push").contains("names no registry"));
    ok(&home, "push --registry example.com/me/");
    assert_eq!(home.read("docker.log"), "push example.com/me/hello:0.0.1\n");
}

#[test]
fn deploying_a_new_function_makes_app_function_and_trigger() {
    let api = Api::start();
    api.on("GET /v2/apps?name=demo", 200, json!({ "items": [] }));
    api.on("POST /v2/apps", 200, json!({ "id": "A1", "name": "demo" }));
    api.on("GET /v2/fns?app_id=A1&name=hello", 200, json!({ "items": [] }));
    api.on("POST /v2/fns", 200, demo_function(&api.url()));
    api.on("GET /v2/triggers?app_id=A1&fn_id=F1&name=greet", 200, json!({ "items": [] }));
    api.on("POST /v2/triggers", 200, demo_trigger(&api.url()));
    let home = Home::with_api(&api);
    stand_in_docker(&home);
    home.write("func.yaml", FUNC_YAML);
    assert!(fails(&home, 1, "deploy --app demo --local").contains("--create-app"));
    assert!(!home.path().join("docker.log").exists(), "nothing is built for an app that is not there");
    let said = ok(&home, "deploy --app demo --create-app --local");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "Successfully created app:  demo",
            "Deploying hello to app: demo",
            "Bumped to version 0.0.2",
            "Building image hello:0.0.2",
            "Updating function hello using image hello:0.0.2...",
            "Successfully created function: hello with hello:0.0.1",
            "Successfully created trigger: greet",
            &format!("Trigger Endpoint: {}/t/demo/greet", api.url()),
        ]
    );
    let body = |line: &str| -> Value { api.asked().iter().rfind(|asked| asked.line == line).unwrap().json() };
    assert_eq!(body("POST /v2/apps"), json!({ "name": "demo" }));
    assert_eq!(
        body("POST /v2/fns"),
        json!({
            "app_id": "A1", "name": "hello", "image": "hello:0.0.2", "memory": 256, "config": { "A": "1" },
            "annotations": { "team": "blue", "kiln.dev/image-digest": "sha256:abc" },
        })
    );
    assert_eq!(
        body("POST /v2/triggers"),
        json!({ "app_id": "A1", "fn_id": "F1", "name": "greet", "type": "http", "source": "/greet" })
    );
    assert!(!home.read("docker.log").contains("push"));
}

#[test]
fn deploying_again_changes_what_is_there() {
    let api = Api::with_demo();
    api.on("PUT /v2/fns/F1", 200, demo_function(&api.url())).on(
        "PUT /v2/triggers/T1",
        200,
        demo_trigger(&api.url()),
    );
    let home = Home::with_api(&api);
    stand_in_docker(&home);
    home.write("f/func.yaml", FUNC_YAML);
    let done: Value =
        serde_json::from_str(&ok(&home, "deploy --app demo --no-bump --registry me f --output json"))
            .unwrap();
    let asked = api.asked();
    let body = |line: &str| -> Value { asked.iter().find(|asked| asked.line == line).unwrap().json() };
    assert_eq!(
        body("PUT /v2/fns/F1"),
        json!({
            "id": "F1", "image": "me/hello:0.0.1", "memory": 256, "config": { "A": "1" },
            "annotations": { "team": "blue", "kiln.dev/image-digest": "sha256:abc" },
        })
    );
    assert_eq!(
        body("PUT /v2/triggers/T1"),
        json!({ "id": "T1", "app_id": "A1", "fn_id": "F1", "name": "greet", "type": "http", "source": "/greet" })
    );
    assert!(home.read("docker.log").contains("push me/hello:0.0.1\n"));
    assert!(home.read("f/func.yaml").contains("version: 0.0.1"));
    assert_eq!(done["functions"][0]["image_id"], "sha256:abc");
    assert_eq!(done["functions"][0]["invoke_endpoint"], format!("{}/invoke/F1", api.url()));
}

#[test]
fn an_image_without_a_registry_is_not_built_to_be_pushed() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    stand_in_docker(&home);
    home.write("func.yaml", FUNC_YAML);
    assert!(fails(&home, 2, "deploy --app demo").contains("--local"));
    assert!(!home.path().join("docker.log").exists());
    assert!(home.read("func.yaml").contains("version: 0.0.1"), "nothing was done, so nothing is bumped");
}

#[test]
fn all_functions_below_an_app_are_deployed() {
    let api = Api::with_demo();
    api.on("PUT /v2/apps/A1", 200, json!({ "id": "A1", "name": "demo" }));
    for name in ["demo-root", "one", "sub-two"] {
        api.on(&format!("GET /v2/fns?app_id=A1&name={name}"), 200, json!({ "items": [] }));
    }
    api.on("POST /v2/fns", 200, demo_function(&api.url()));
    let home = Home::with_api(&api);
    stand_in_docker(&home);
    assert!(fails(&home, 1, "deploy --all --local --app demo").contains("app.yaml"));
    home.write("app.yaml", "name: demo\nconfig:\n  B: 2\nsyslog_url: udp://h:514\n");
    assert!(fails(&home, 1, "deploy --all --local").contains("No functions found"));
    let func = |name: &str| format!("schema_version: 20180708\n{name}version: 0.0.1\nruntime: python\n");
    home.write("func.yaml", &func("name: demo-root\n"));
    home.write("one/func.yaml", &func("name: one\n"));
    home.write("sub/two/func.yaml", &func(""));
    home.write("node_modules/x/func.yaml", &func("name: not-ours\n"));
    ok(&home, "deploy --all --local --no-bump");
    let asked = api.asked();
    let app = asked.iter().find(|asked| asked.line == "PUT /v2/apps/A1").unwrap().json();
    assert_eq!(app, json!({ "config": { "B": "2" }, "syslog_url": "udp://h:514" }));
    let names: Vec<Value> = asked
        .iter()
        .filter(|asked| asked.line == "POST /v2/fns")
        .map(|asked| asked.json()["name"].clone())
        .collect();
    assert_eq!(names, ["demo-root", "one", "sub-two"]);
}

#[test]
fn only_compiled_languages_are_built_by_this_machine() {
    let home = Home::new();
    home.write("func.yaml", FUNC_YAML);
    let error = home.fails(1, "build --build host");
    assert!(error.contains("cannot build python functions") && error.contains("rust and go"), "{error}");
}

#[test]
fn a_binary_that_needs_shared_libraries_is_refused() {
    let home = Home::new();
    home.write("func.yaml", "schema_version: 20180708\nname: hello\nruntime: go\n");
    stand_in(&home, "go", "while [ $# -gt 0 ]; do [ \"$1\" = -o ] && cp /bin/sh \"$2\"; shift; done\n");
    assert!(fails(&home, 1, "build --build host").contains("linked to shared libraries"));
    stand_in(&home, "go", "echo 'undefined: x' >&2; exit 1\n");
    let error = fails(&home, 1, "build --build host");
    assert!(error.contains("undefined: x\n") && error.contains("go build failed"), "{error}");
}

/// The image is removed again however the test ends.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        Command::new("docker").args(["image", "rm", "-f", &self.0]).stdout(Stdio::null()).status().ok();
    }
}

#[test]
fn a_new_rust_function_is_built_without_a_network_into_the_same_image_each_time() {
    let home = Home::new();
    let name = format!("kiln-cli-test-{}", std::process::id());
    home.ok(&format!("init --runtime rust {name}"));
    let build = || -> Value {
        let mut command = home.kiln(&format!("build --build host --dir {name} --output json"));
        let output = command.env("CARGO_NET_OFFLINE", "true").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let image = Image(format!("{name}:0.0.1"));
    let first = build();
    assert_eq!(first["image"], image.0);
    let inspect = [
        "image",
        "inspect",
        "--format",
        "{{.Id}} {{json .Config.Entrypoint}} {{len .RootFS.Layers}}",
        &image.0,
    ];
    let known = Command::new("docker").args(inspect).output().unwrap();
    assert_eq!(
        text(&known.stdout).trim(),
        format!("{} [\"/function/func\"] 1", first["image_id"].as_str().unwrap())
    );
    // Without FN_LISTENER the function cannot serve, and says so: it runs, and it needs nothing in its image.
    let ran = Command::new("docker").args(["run", "--rm", "--network", "none", &image.0]).output().unwrap();
    assert!(text(&ran.stderr).contains("FN_LISTENER"), "{}", text(&ran.stderr));
    assert_eq!(build()["image_id"], first["image_id"]);
}
