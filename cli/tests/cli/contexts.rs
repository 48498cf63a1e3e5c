//! Contexts: their files, their order of precedence, Fn's own contexts.

use serde_json::json;

use crate::support::{Api, Home};

#[test]
fn contexts_are_made_used_changed_and_removed() {
    let home = Home::new();
    assert_eq!(
        home.ok("create context prod --api-url https://kiln.example.com --registry me"),
        "Successfully created context: prod\n"
    );
    let file = home.read(".kiln/contexts/prod.yaml");
    for line in ["api-url: https://kiln.example.com", "provider: default", "registry: me"] {
        assert!(file.lines().any(|have| have == line), "{file}");
    }
    assert_eq!(home.ok("use context prod"), "Now using context: prod\n");
    assert!(home.read(".kiln/config.yaml").contains("current-context: prod"));
    let list = home.ok("list contexts");
    assert!(list.lines().any(|line| line.starts_with("*        prod")), "{list}");
    assert!(list.contains("default"));
    home.ok("update context registry you");
    assert!(home.ok("inspect context").contains("registry: you"));
    home.ok("update context registry --delete");
    assert!(!home.ok("inspect context prod").contains("registry"));
    assert!(home.fails(1, "delete context prod").contains("current context"));
    home.ok("unset context");
    home.ok("delete context prod");
    assert!(home.fails(1, "use context prod").contains("there is no context prod"));
}

#[test]
fn bad_names_and_addresses_are_refused() {
    let home = Home::new();
    home.fails(2, "create context ../x");
    home.fails(2, "create context x --api-url nonsense");
    home.fails(2, "update context colour red");
    home.fails(1, "delete context default");
    home.ok("create context a");
    assert!(home.fails(1, "create context a").contains("already exists"));
}

#[test]
fn the_context_in_use_names_the_server_and_flags_and_environment_win_over_it() {
    let (from_context, from_environment, from_flag) = (Api::start(), Api::start(), Api::start());
    for api in [&from_context, &from_environment, &from_flag] {
        api.on("GET /v2/apps?per_page=100", 200, json!({ "items": [] }));
    }
    let home = Home::new();
    home.ok(&format!("create context c --api-url {}", from_context.url()));
    home.ok("use context c");
    home.ok("list apps");
    assert_eq!(from_context.asked().len(), 1);
    home.kiln("list apps").env("FN_API_URL", from_environment.url()).assert().success();
    assert_eq!(from_environment.asked().len(), 1);
    home.kiln(&format!("list apps --api-url {}", from_flag.url()))
        .env("FN_API_URL", from_environment.url())
        .assert()
        .success();
    assert_eq!(
        (from_context.asked().len(), from_environment.asked().len(), from_flag.asked().len()),
        (1, 1, 1)
    );
    home.ok("unset context");
    home.kiln("list apps").env("FN_CONTEXT", "c").assert().success();
    assert_eq!(from_context.asked().len(), 2);
    assert!(home.fails(1, "list apps --context nope").contains("there is no context nope"));
}

#[test]
fn fns_contexts_are_used_when_there_are_no_own() {
    let api = Api::start();
    api.on("GET /v2/apps?per_page=100", 200, json!({ "items": [] }));
    let home = Home::new();
    home.write(
        ".fn/config.yaml",
        "cli-version: 0.6.63\ncurrent-context: prod\ncontainer-enginetype: docker\n",
    );
    home.write(
        ".fn/contexts/prod.yaml",
        &format!("api-url: {}\nprovider: default\nregistry: me\n", api.url()),
    );
    home.ok("list apps");
    assert_eq!(api.asked().len(), 1);
    assert!(!home.path().join(".kiln").exists());
}

#[test]
fn a_provider_that_kiln_does_not_speak_is_told() {
    let home = Home::new();
    home.write(".fn/config.yaml", "current-context: cloud\n");
    home.write(".fn/contexts/cloud.yaml", "api-url: https://example.com\nprovider: oracle\n");
    assert!(home.fails(1, "list apps").contains("provider \"oracle\""));
}

#[test]
fn a_broken_context_file_names_its_line() {
    let home = Home::new();
    let path = home.write(".kiln/contexts/default.yaml", "api-url: http://a\nregistry: [\n");
    assert!(home.fails(1, "list apps").contains(&format!("{}:", path.display())));
}
