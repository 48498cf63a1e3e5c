//! The fleet's CA, identities and join tokens on the command line.

use std::time::SystemTime;

use kiln_shared::identity::{CertificateAuthority, Credentials, JoinToken, Role};
use serde_json::json;

use crate::support::Home;

#[test]
fn a_ca_is_made_once_and_shown() {
    let home = Home::new();
    let made = home.json("ca init --dir ca");
    let shown = home.json("ca show --dir ca");
    assert_eq!(shown["fingerprint"], made["fingerprint"]);
    assert_eq!(shown["expires_at"], made["expires_at"]);
    assert_eq!(shown["trusted"], json!([made["fingerprint"]]));
    let text = home.ok("ca show --dir ca");
    assert!(text.contains(made["fingerprint"].as_str().unwrap()) && text.contains("Valid until:"), "{text}");
    let key = home.read("ca/ca-key.pem");
    let error = home.fails(1, "ca init --dir ca");
    assert!(
        error.contains("ca/ca.pem is there already") && error.contains("choose another folder"),
        "{error}"
    );
    assert_eq!(home.read("ca/ca-key.pem"), key);
}

#[test]
fn an_issued_identity_can_be_used_and_renewed_in_place() {
    let home = Home::new();
    assert!(home.ok("ca init --dir ca").starts_with("Made the fleet's CA "));
    let issued = home.json("ca issue --ca-dir ca --role balancer --name lb1 --out id");
    assert_eq!((&issued["identity"], &issued["name"]), (&json!("id/identity.pem"), &json!("lb1")));
    let used = Credentials::open(&home.path().join("id"), Role::Balancer, SystemTime::now()).unwrap();
    assert_eq!(used.current().peer().to_string(), "kiln://balancer/lb1");
    assert_eq!(issued["fingerprint"], used.current().fingerprint().to_string());
    let said = home.ok("ca issue --ca-dir ca --role balancer --name lb1 --out id --valid-for 12h");
    assert!(said.starts_with("Issued kiln://balancer/lb1 to id/identity.pem, valid until "), "{said}");
    used.reload(SystemTime::now()).unwrap();
    assert_ne!(issued["fingerprint"], used.current().fingerprint().to_string());
    assert!(used.expires_in(SystemTime::now()).as_secs() <= 12 * 3600);
    assert!(!said.contains("PRIVATE"));
}

#[test]
fn a_token_is_all_that_is_printed() {
    let home = Home::new();
    home.ok("ca init --dir ca");
    let printed = home.ok("node token --ca-dir ca");
    let token: JoinToken = printed.parse().unwrap();
    assert_eq!(printed, format!("{}\n", token.expose()));
    assert_eq!(token.role(), Role::Agent);
    let ca = CertificateAuthority::open(&home.path().join("ca"), SystemTime::now()).unwrap();
    assert_eq!(token.ca(), ca.fingerprint());
    let left = token.expires_at().duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((3500..=3600).contains(&left), "{left}");

    let answer = home.json("node token --ca-dir ca --role balancer --valid-for 2d");
    let token: JoinToken = answer["token"].as_str().unwrap().parse().unwrap();
    assert_eq!((token.role(), &answer["role"]), (Role::Balancer, &json!("balancer")));
    assert_eq!(answer["id"], token.id().to_string());
    assert_eq!(answer["ca"], ca.fingerprint().to_string());
    let last: jiff::Timestamp = answer["expires_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(SystemTime::from(last), token.expires_at());
}

#[test]
fn mistakes_are_told_with_the_remedy() {
    let home = Home::new();
    home.ok("ca init --dir ca");
    home.write("file", "");
    home.write("half/ca.pem", &home.read("ca/ca.pem"));
    home.write("open/ca.pem", &home.read("ca/ca.pem"));
    // As an editor or a copy without -p leaves it.
    home.write("open/ca-key.pem", &home.read("ca/ca-key.pem"));
    std::fs::set_permissions(
        home.path().join("open/ca-key.pem"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let cases = [
        (1, "ca show --dir nowhere", "there is no CA in nowhere", "kiln ca init"),
        (1, "node token --ca-dir nowhere", "there is no CA in nowhere", "kiln ca init"),
        (1, "ca show --dir half", "there is no CA in half", "kiln ca init"),
        (1, "ca show --dir open", "open/ca-key.pem", "chmod 600"),
        (1, "ca init --dir file/ca", "file/ca", "choose another folder"),
        (1, "ca issue --dir ca --role agent --name n1 --out file/id", "file/id", "choose another folder"),
        (2, "ca issue --dir ca --role agent --name a/b --out id", "\"a/b\"", "choose another --name"),
        (2, "ca issue --dir ca --role router --name a --out id", "router", "agent"),
        (2, "ca issue --dir ca --role agent --name n1 --out id --valid-for 1", "'1'", "such as"),
        (2, "node token --ca-dir ca --valid-for 8d", "not 192h", "choose another --valid-for"),
        (2, "node token --ca-dir ca --valid-for never", "never", "such as"),
        (2, "node", "token", ""),
        (2, "ca", "init", ""),
    ];
    for (code, line, problem, remedy) in cases {
        let said = home.fails(code, line);
        assert!(said.contains(problem) && said.contains(remedy), "{line}: {said}");
    }
    assert!(!home.path().join("id").exists());
}

#[test]
fn help_teaches_by_example() {
    let home = Home::new();
    for (line, example) in [
        ("ca init --help", "kiln ca issue --role balancer --name lb1"),
        ("ca issue --help", "kiln ca issue --role agent --name node7 --valid-for 90d"),
        ("ca show --help", "jq -r .fingerprint"),
        ("node token --help", "kiln node token --valid-for 10m --role balancer"),
    ] {
        let help = home.ok(line);
        assert!(help.contains(example) && help.contains("/etc/kiln/ca"), "{line}: {help}");
    }
}
