//! `kiln init` and `kiln bump`: the files of a project.

use crate::support::Home;

#[test]
fn every_runtime_makes_its_project() {
    let projects: [(&str, &[&str], &str); 8] = [
        (
            "rust",
            &["Cargo.toml", "src/main.rs", "kiln-fdk/Cargo.toml", "kiln-fdk/src/lib.rs", ".dockerignore"],
            "entrypoint: /function/func",
        ),
        ("go", &["func.go", "go.mod"], "entrypoint: ./func"),
        ("python", &["func.py", "requirements.txt"], "memory: 256"),
        ("node", &["func.js", "package.json"], "entrypoint: node func.js"),
        (
            "java",
            &["pom.xml", "src/main/java/com/example/fn/HelloFunction.java"],
            "cmd: com.example.fn.HelloFunction::handleRequest",
        ),
        (
            "kotlin",
            &["pom.xml", "src/main/kotlin/HelloFunction.kt"],
            "cmd: com.example.fn.HelloFunctionKt::hello",
        ),
        ("ruby", &["func.rb", "Gemfile"], "entrypoint: ruby func.rb"),
        ("docker", &["Dockerfile", "func.py"], "runtime: docker"),
    ];
    let home = Home::new();
    for (runtime, files, line) in projects {
        let said = home.ok(&format!("init --runtime {runtime} --trigger http my-{runtime}"));
        assert!(said.ends_with("func.yaml created.\n"), "{said}");
        for file in files {
            let text = home.read(&format!("my-{runtime}/{file}"));
            assert!(!text.contains("{{"), "{runtime}/{file} has a gap:\n{text}");
        }
        let func_yaml = home.read(&format!("my-{runtime}/func.yaml"));
        assert!(func_yaml.starts_with("schema_version: 20180708\n"), "{func_yaml}");
        for wanted in [
            line,
            &format!("name: my-{runtime}"),
            &format!("runtime: {runtime}"),
            &format!("source: /my-{runtime}"),
        ] {
            assert!(func_yaml.lines().any(|have| have.trim_start() == wanted), "{wanted}\n{func_yaml}");
        }
        // What was written is understood.
        assert_eq!(home.ok(&format!("bump --dir my-{runtime}")), "Bumped to version 0.0.2\n");
    }
}

#[test]
fn options_go_into_the_file_and_a_version_into_the_images() {
    let home = Home::new();
    let made = home.json("init --runtime python3.11 --name Greeter --memory 512 --timeout 5 --config A=1 --annotation t={\"a\":1} greet");
    assert_eq!(made["name"], "greeter");
    let file = home.read("greet/func.yaml");
    for line in [
        "name: greeter",
        "runtime: python3.11",
        "build_image: fnproject/python:3.11-dev",
        "memory: 512",
        "timeout: 5",
    ] {
        assert!(file.lines().any(|have| have == line), "{line}\n{file}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let home = Home::new();
    home.ok("init --runtime go a");
    assert!(home.fails(1, "init --runtime go a").contains("exists already"));
    home.write("b/func.go", "mine");
    let error = home.fails(1, "init --runtime go -w b");
    assert!(error.contains("func.go exists already"), "{error}");
    home.ok("init --runtime go --force -w b");
    assert_eq!(home.read("b/func.go"), "mine");
    assert!(home.read("b/func.yaml").contains("name: b"));
}

#[test]
fn code_that_is_there_gets_its_file() {
    let home = Home::new();
    home.write("a/Dockerfile", "FROM scratch\n");
    home.ok("init -w a");
    assert!(home.read("a/func.yaml").contains("runtime: docker"));
    home.write("b/func.js", "");
    home.ok("init -w b");
    assert!(home.read("b/func.yaml").contains("runtime: node\n"));
    home.write("c/readme", "");
    assert!(home.fails(2, "init -w c").contains("--runtime"));
}

#[test]
fn bad_names_and_runtimes_are_refused_before_anything_is_written() {
    let home = Home::new();
    assert!(home.fails(2, "init --runtime cobol a").contains("there is no runtime \"cobol\""));
    home.fails(2, "init --runtime go --name a:b a");
    assert!(!home.path().join("a").exists());
}

#[test]
fn bump_raises_the_number_it_is_told() {
    let home = Home::new();
    home.write("func.yaml", "schema_version: 20180708\nname: a # mine\nversion: 1.2.3\n");
    assert_eq!(home.ok("bump"), "Bumped to version 1.2.4\n");
    assert_eq!(home.ok("bump --minor"), "Bumped to version 1.3.0\n");
    assert_eq!(home.json("bump --major")["version"], "2.0.0");
    assert_eq!(home.read("func.yaml"), "schema_version: 20180708\nname: a # mine\nversion: 2.0.0\n");
    home.fails(2, "bump --major --minor");
    assert!(home.fails(1, "bump --dir nowhere").contains("there is no func.yaml"));
}

#[test]
fn a_mistake_in_the_file_names_file_and_line() {
    let home = Home::new();
    home.write("func.yaml", "schema_version: 20180708\nname: a\nmemory: lots\n");
    let error = home.fails(1, "bump");
    assert!(error.starts_with("error: ./func.yaml:3:") && error.contains("hint:"), "{error}");
}
