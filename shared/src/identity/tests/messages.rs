//! What is said when something is wrong: which thing, and what to do.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::*;
use crate::identity::loaded::IdentityProblem;
use crate::identity::{
    CaError, CertificateRequest, Fingerprint, IdentityError, JoinRefused, JoinToken, MintError, PeerError,
    SignError, SignedCertificate, TokenError,
};

#[test]
fn every_error_names_the_thing_and_the_remedy() {
    let then: SystemTime = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let (ca, folder) = (Fingerprint::of(b"ca"), PathBuf::from("/etc/kiln/ca"));
    let path = PathBuf::from("/etc/kiln/identity/identity.pem");
    let identity = |problem| IdentityError::Bad { path: path.clone(), problem };
    let peer = Peer::new(Role::Agent, "n1").unwrap();
    let wrong_role = PeerError::Role { peer, expected: Role::Balancer };
    let no_source = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let cases: Vec<(Box<dyn Display>, &str, &str)> = vec![
        (
            Box::new(CaError::Exists { path: folder.join("ca.pem") }),
            "/etc/kiln/ca/ca.pem",
            "choose another folder",
        ),
        (Box::new(CaError::Missing { folder: folder.clone() }), "/etc/kiln/ca", "kiln ca init"),
        (
            Box::new(CaError::Malformed { path: folder.join("ca.pem"), problem: "holds no certificate" }),
            "ca.pem holds no certificate",
            "restore it from a copy",
        ),
        (
            Box::new(CaError::Expired { folder: folder.clone(), ended: then }),
            "2030-03-17 17:46:40 UTC",
            "kiln ca init",
        ),
        (Box::new(SignError::Request), "request for a certificate", "make a new one"),
        (Box::new(SignError::Expired { ended: then }), "ended on 2030-03-17", "kiln ca init"),
        (
            Box::new(IdentityError::Missing { path: path.clone() }),
            "identity.pem",
            "`kiln node join` or `kiln ca issue`",
        ),
        (Box::new(identity(IdentityProblem::NoKey)), "identity.pem holds no private key", "kiln ca issue"),
        (Box::new(identity(IdentityProblem::Broken)), "broken certificate", "kiln ca issue"),
        (Box::new(identity(IdentityProblem::NoTrust)), "no CA to trust", "append the fleet's ca.pem"),
        (Box::new(identity(IdentityProblem::NotACa)), "no CA's", "only the first"),
        (Box::new(identity(IdentityProblem::OtherKey)), "another key", "write it again"),
        (Box::new(identity(IdentityProblem::OtherCa)), "none of its CAs signed", "append the ca.pem"),
        (
            Box::new(identity(IdentityProblem::Expired(then))),
            "ended on 2030-03-17",
            "join again with a new token",
        ),
        (
            Box::new(identity(IdentityProblem::NotYetValid(then))),
            "only from 2030-03-17",
            "check this machine's clock",
        ),
        (Box::new(identity(IdentityProblem::Usage)), "not for TLS", "kiln ca issue"),
        (
            Box::new(identity(IdentityProblem::Peer(wrong_role.clone()))),
            "identity.pem is of no use here: kiln://agent/n1 is no balancer",
            "",
        ),
        (
            Box::new(wrong_role),
            "kiln://agent/n1 is no balancer",
            "check that the address is that of a balancer",
        ),
        (Box::new(PeerError::Anonymous), "no certificate", "kiln node join"),
        (Box::new(PeerError::Unnamed), "names no peer", "kiln ca issue"),
        (Box::new(PeerError::SeveralNames), "several peers", "one name"),
        (Box::new(PeerError::OtherCa { ca }), "not of the fleet whose CA is", "kiln node token"),
        (Box::new(Peer::new(Role::Agent, "a b").unwrap_err()), "\"a b\"", "use 1 to 128 letters"),
        (Box::new("kiln://x/y".parse::<Peer>().unwrap_err()), "\"kiln://x/y\"", "expected kiln://agent/NAME"),
        (Box::new("x".parse::<JoinToken>().unwrap_err()), "not a join token", "from kiln-join-1 on"),
        (Box::new("kiln-join-1.abc".parse::<JoinToken>().unwrap_err()), "cut or damaged", "copy all"),
        (Box::new(MintError::ValidFor(Duration::from_hours(200))), "not 200h", "1 second to 7 days"),
        (Box::new(JoinRefused::from(TokenError::Damaged)), "cut or damaged", "copy all"),
        (
            Box::new(JoinRefused::WrongCa { token: ca, ours: Fingerprint::of(b"ours") }),
            "is of the CA",
            "kiln node token",
        ),
        (Box::new(JoinRefused::Forged), "not made by this fleet's CA", "kiln node token"),
        (
            Box::new(JoinRefused::Expired { ended: then }),
            "ended on 2030-03-17 17:46:40 UTC",
            "kiln node token",
        ),
        (Box::new(JoinRefused::Replayed), "used before", "kiln node token"),
        (Box::new(JoinRefused::Unrecorded), "cannot be recorded now", "try again"),
        (
            Box::new(JoinRefused::ClockOff { off: Duration::from_mins(90), ahead: true }),
            "clock is 1h 30m ahead",
            "set it (at most 10m off is allowed)",
        ),
        (
            Box::new(JoinRefused::ClockOff { off: Duration::from_secs(3601), ahead: false }),
            "clock is 1h 1s behind",
            "join again with the same token",
        ),
    ];
    for (error, thing, remedy) in cases {
        let said = error.to_string();
        assert!(said.contains(thing) && said.contains(remedy), "{said}\n  names {thing:?}? says {remedy:?}?");
        assert!(!said.contains('\n') && !said.ends_with('.'), "{said}");
    }
    // The cause of these says why.
    for error in [
        anyhow::Error::from(CaError::Read { path: folder.clone(), source: no_source() }),
        CaError::Write { path: folder, source: no_source() }.into(),
        IdentityError::Read { path: path.clone(), source: no_source() }.into(),
        IdentityError::Write { path, source: no_source() }.into(),
    ] {
        let said = format!("{error:#}");
        assert!(said.contains("/etc/kiln/") && said.ends_with("permission denied"), "{said}");
    }
}

type Change<'a> = &'a dyn Fn(&mut SignedCertificate);

#[test]
fn a_certificate_that_does_not_fit_its_request_says_so() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let peer = Peer::new(Role::Agent, "n1").unwrap();
    let complete = |change: Change<'_>| {
        let request = CertificateRequest::generate().unwrap();
        let mut signed = fleet.ca.sign(request.csr_pem(), &peer, HOUR, now()).unwrap();
        change(&mut signed);
        request.complete(&signed, Role::Agent, now()).map(|_| ()).map_err(|error| error.to_string())
    };
    let foreign = CertificateRequest::generate().unwrap();
    let foreign = fleet.ca.sign(foreign.csr_pem(), &peer, HOUR, now()).unwrap();
    assert_eq!(complete(&|_| {}), Ok(()));
    let cases: [(Change<'_>, &str); 4] = [
        (&|signed| signed.chain_pem.clear(), "a broken certificate"),
        (&|signed| signed.chain_pem.clone_from(&foreign.chain_pem), "a certificate of another key"),
        (&|signed| signed.bundle_pem = other.ca.bundle(), "a certificate that none of its CAs signed"),
        (&|signed| signed.bundle_pem.clear(), "no CA to trust"),
    ];
    for (change, said) in cases {
        let error = complete(change).unwrap_err();
        assert!(
            error.starts_with("the certificate that came back holds ") && error.contains(said),
            "{error}"
        );
    }
}
