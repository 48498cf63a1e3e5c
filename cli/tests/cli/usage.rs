//! Help, misuse, completion, versions, and a server that is not there.

use kiln_testkit::Port;
use serde_json::json;

use crate::support::{Api, Home, text};

#[test]
fn help_names_every_verb_and_teaches_by_example() {
    let help = Home::new().ok("--help");
    for verb in [
        "start",
        "stop",
        "init",
        "build",
        "bump",
        "push",
        "deploy",
        "invoke",
        "create",
        "list",
        "inspect",
        "update",
        "delete",
        "config",
        "get",
        "unset",
        "use",
        "calls",
        "logs",
        "ca",
        "catalog",
        "node",
        "why",
        "version",
        "completion",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{verb} "))),
            "{verb}\n{help}"
        );
    }
    assert!(help.contains("kiln deploy --app demo --create-app --local"));
}

#[test]
fn misuse_ends_with_2() {
    let home = Home::new();
    for line in
        ["", "nonsense", "list", "create app", "invoke demo", "create app a --config x", "deploy --nonsense"]
    {
        home.fails(2, line);
    }
    home.write("func.yaml", "schema_version: 20180708\nname: a\n");
    assert!(home.fails(2, "deploy").contains("--app"));
}

#[test]
fn fns_short_forms_are_understood() {
    let api = Api::with_demo();
    api.on("GET /v2/apps?per_page=100", 200, json!({ "items": [] }));
    api.on("GET /v2/fns?app_id=A1&per_page=100", 200, json!({ "items": [] }));
    api.on("GET /v2/triggers?app_id=A1&per_page=100", 200, json!({ "items": [] }));
    let home = Home::with_api(&api);
    for line in [
        "ls a",
        "ls apps",
        "list app",
        "ls f demo",
        "ls fns demo",
        "ls t demo",
        "ls trigs demo",
        "i a demo",
        "i f demo hello",
    ] {
        home.ok(line);
    }
}

#[test]
fn a_server_that_is_not_there_is_named_with_the_remedy() {
    let port = Port::take();
    let address = format!("127.0.0.1:{}", port.number());
    let error = Home::new().fails(1, &format!("list apps --api-url http://{address}"));
    assert_eq!(
        error,
        format!(
            "error: cannot reach Kiln at http://{address}: connection refused\n\
             hint: start it with `kiln start`, or set another with --api-url / FN_API_URL\n"
        )
    );
}

#[test]
fn an_address_that_is_none_is_refused() {
    assert!(Home::new().fails(1, "list apps --api-url nonsense").contains("is not the URL of an API"));
}

#[test]
fn another_kind_of_server_is_told() {
    let api = Api::start();
    api.on_raw("GET /v2/apps?per_page=100", 200, &[("content-type", "text/html")], b"<html>".to_vec());
    assert!(
        Home::with_api(&api).fails(1, "list apps").contains("did not answer as a Kiln or Fn server does")
    );
}

#[test]
fn the_token_is_sent_and_never_shown() {
    let api = Api::start();
    api.on("GET /v2/apps?per_page=100", 401, json!({ "message": "Unauthorized" }));
    let home = Home::with_api(&api);
    let output = home.kiln("list apps --verbose").env("FN_TOKEN", "s3cret").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("s3cret") && said.contains("FN_TOKEN"), "{said}");
    assert_eq!(api.last().headers["authorization"], "Bearer s3cret");
}

#[test]
fn version_shows_both_sides_and_lives_without_a_server() {
    let api = Api::start();
    api.on("GET /version", 200, json!({ "version": "0.3.753" }));
    assert!(Home::with_api(&api).ok("version").contains("Server version: 0.3.753"));
    let home = Home::new();
    assert!(home.ok("version --api-url http://127.0.0.1:1").contains("Server version: ?"));
    assert_eq!(home.json("version --api-url http://127.0.0.1:1")["server"], json!(null));
}

#[test]
fn completion_scripts_are_made_for_three_shells() {
    let home = Home::new();
    assert!(home.ok("completion bash").contains("_kiln()"));
    assert!(home.ok("completion zsh").starts_with("#compdef kiln"));
    assert!(home.ok("completion fish").contains("complete -c kiln"));
    home.fails(2, "completion tcsh");
}

#[test]
fn stopping_what_does_not_run_is_no_failure() {
    let home = Home::new();
    assert!(home.ok("stop").contains("No Kiln runs"));
    assert_eq!(home.json("stop")["stopped"], json!(false));
}

#[test]
fn a_port_in_use_is_told_before_anything_starts() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Home::new().fails(1, &format!("start -d --port {}", taken.local_addr().unwrap().port()));
    assert!(error.contains("cannot listen on 127.0.0.1") && error.contains("--port"), "{error}");
}

#[test]
fn an_env_file_with_nonsense_names_the_line() {
    let home = Home::new();
    home.write("env", "A=1\nnonsense\n");
    assert!(home.fails(1, "start --env-file env").contains("env:2: not a NAME=VALUE line"));
}

#[test]
fn a_kiln_that_cannot_start_says_why_and_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let home = Home::new();
    // A file where a folder should be, and folders where files should be: no user may write there, not even root.
    home.write("file", "");
    for folder in ["a/kiln.db", "b/kiln.pid", "c"] {
        std::fs::create_dir_all(home.path().join(folder)).unwrap();
    }
    home.write("c/kiln.db", &"this is no database ".repeat(100));
    let cases = [
        (1, format!("--port {port}"), "in use", "choose another port"),
        (1, "--docker-host unix:///nowhere/docker.sock".to_owned(), "/nowhere/docker.sock", "start it"),
        (1, "--docker-host tcp://127.0.0.1:1".to_owned(), "cannot reach Docker", "start it"),
        (1, "--docker-host nonsense".to_owned(), "nonsense", "use unix://"),
        (1, "--data-dir file/d".to_owned(), "file/d", "--data-dir"),
        (1, "--data-dir a".to_owned(), "a/kiln.db", "choose another path"),
        (1, "--data-dir b".to_owned(), "b/kiln.pid", "--data-dir"),
        (1, "--data-dir c".to_owned(), "c/kiln.db", "choose another path"),
        (1, "--env-file nowhere".to_owned(), "nowhere", "--env-file"),
        (1, "--log-level a=b=c".to_owned(), "a=b=c", "use error, warn"),
        (2, "--memory-mib lots".to_owned(), "lots", "--help"),
        (2, "--listen nowhere".to_owned(), "nowhere", "--help"),
        (2, "--nonsense".to_owned(), "--nonsense", "--help"),
    ];
    for (code, options, problem, remedy) in cases {
        // What a case does not set is such that Kiln would start.
        let defaults = if options.contains("--port") { "" } else { "--port 0 " };
        let data = if options.contains("--data-dir") { "" } else { "--data-dir d " };
        let mut command = home.kiln(&format!("start {defaults}{data}{options}"));
        let ended = command.timeout(std::time::Duration::from_mins(1)).output().unwrap();
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{options}: {said}");
        let first = said.lines().next().unwrap();
        assert!(first.starts_with("error: ") && first.contains(problem), "{options}: {said}");
        assert!(said.contains(remedy), "{options}: {said}");
        let lines = said.lines().filter(|line| !line.is_empty()).count();
        assert!(lines <= if code == 1 { 2 } else { 3 }, "{options}: {said}");
        assert_eq!(text(&ended.stdout), "", "{options}");
    }
}

/// Nothing is left running however the test ends.
struct StopOnDrop<'a>(&'a Home);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.kiln("stop --data-dir kept").output().ok();
    }
}

#[test]
fn kiln_in_the_background_answers_until_it_is_stopped() {
    let home = Home::new();
    let port = Port::take();
    home.write("env", &format!("# where\nFN_PORT={}\nKILN_DATA_DIR=kept\n", port.number()));
    let _stop = StopOnDrop(&home);
    let started = home.json("start --detach --env-file env --memory-mib 256");
    let url = started["url"].as_str().unwrap();
    assert!(home.json(&format!("version --api-url {url}"))["server"].is_string());
    assert!(home.path().join("kept/kiln.pid").exists());
    let again = home.fails(1, "start --data-dir kept");
    assert!(
        again.contains(&format!("runs already with the data folder {}/kept", home.path().display())),
        "{again}"
    );
    let stopped = home.json("stop --data-dir kept");
    assert_eq!(stopped, json!({ "stopped": true, "pid": started["pid"] }));
    assert_eq!(home.json(&format!("version --api-url {url}"))["server"], json!(null));
    assert_eq!(home.json("stop --data-dir kept")["stopped"], json!(false));
}

#[test]
fn a_start_in_the_background_that_fails_says_why() {
    let home = Home::new();
    // A folder where the database should be.
    std::fs::create_dir_all(home.path().join("d/kiln.db")).unwrap();
    let port = Port::take();
    let error = home.fails(1, &format!("start -d --data-dir d --port {}", port.number()));
    assert!(error.contains("Kiln ended while it started") && error.contains("kiln.log"), "{error}");
}
