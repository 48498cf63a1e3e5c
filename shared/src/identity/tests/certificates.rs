//! The CA, what it signs, and identities on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;
use rcgen::{BasicConstraints, IsCa};

use super::*;
use crate::identity::loaded::IdentityProblem;
use crate::identity::{
    CA_CERTIFICATE_FILE, CA_KEY_FILE, CLOCK_DIFFERENCE_MAX, CaError, CertificateRequest, Fingerprint,
    IDENTITY_FILE, IdentityError, PeerError, SignError, Validity, certificate, pem,
};

fn problem(text: String, role: Role, now: SystemTime) -> IdentityProblem {
    Identity::parse(text, role, now).expect_err("is refused")
}

#[test]
fn a_ca_is_the_same_when_it_is_opened_again() {
    let fleet = Fleet::new();
    let again = CertificateAuthority::open(&fleet.path("ca"), now()).unwrap();
    assert_eq!(again.fingerprint(), fleet.ca.fingerprint());
    assert_eq!(again.bundle(), fleet.ca.bundle());
    let token = fleet.ca.mint_token(Role::Agent, HOUR, now()).unwrap();
    assert!(again.minted(&token));
}

#[test]
fn a_cas_key_is_for_its_owner_alone() {
    let fleet = Fleet::new();
    let mode = |name| fs::metadata(fleet.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca"), mode("ca/ca-key.pem")), (0o700, 0o600));
}

#[test]
fn a_ca_is_never_overwritten() {
    let fleet = Fleet::new();
    let folder = fleet.path("ca");
    for left in [CA_CERTIFICATE_FILE, CA_KEY_FILE] {
        assert!(matches!(CertificateAuthority::init(&folder, now()), Err(CaError::Exists { .. })));
        CertificateAuthority::open(&folder, now()).unwrap();
        let half = tempfile::tempdir().unwrap();
        fs::copy(folder.join(left), half.path().join(left)).unwrap();
        assert!(matches!(CertificateAuthority::init(half.path(), now()), Err(CaError::Exists { .. })));
        assert!(matches!(CertificateAuthority::open(half.path(), now()), Err(CaError::Missing { .. })));
    }
}

#[test]
fn a_ca_with_the_key_of_another_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    fs::copy(theirs.path("ca/ca-key.pem"), ours.path("ca/ca-key.pem")).unwrap();
    assert!(matches!(CertificateAuthority::open(&ours.path("ca"), now()), Err(CaError::Malformed { .. })));
}

#[test]
fn a_ca_trusts_itself_and_what_is_appended() {
    let (old, new) = (Fleet::new(), Fleet::new());
    for both in [old.ca.bundle() + &new.ca.bundle(), new.ca.bundle() + &old.ca.bundle()] {
        fs::write(old.path("ca/ca.pem"), both).unwrap();
        let opened = CertificateAuthority::open(&old.path("ca"), now()).unwrap();
        assert_eq!(opened.fingerprint(), old.ca.fingerprint());
        assert_eq!(opened.trusted().len(), 2);
        let identity = opened.issue(&Peer::new(Role::Agent, "n1").unwrap(), HOUR, now()).unwrap();
        assert_eq!(identity.trusted(), opened.trusted());
        // What is shown to others: the certificate and the CA that signed it.
        let shown: Vec<_> = identity.key.cert.iter().map(|der| Fingerprint::of(der)).collect();
        assert_eq!(shown, [identity.fingerprint(), old.ca.fingerprint()]);
    }
    // Whose key is there signs.
    fs::copy(new.path("ca/ca-key.pem"), old.path("ca/ca-key.pem")).unwrap();
    let opened = CertificateAuthority::open(&old.path("ca"), now()).unwrap();
    assert_eq!(opened.fingerprint(), new.ca.fingerprint());
}

#[test]
fn a_certificate_says_who_and_when() {
    let fleet = Fleet::new();
    let begin = now();
    let identity = fleet.ca.issue(&Peer::new(Role::Agent, "n1").unwrap(), HOUR, begin).unwrap();
    assert_eq!(identity.peer().to_string(), "kiln://agent/n1");
    let validity = identity.validity();
    let seconds = certificate::unix_seconds;
    assert_eq!(seconds(validity.not_after), seconds(begin + HOUR));
    assert_eq!(seconds(validity.not_before), seconds(begin - CLOCK_DIFFERENCE_MAX));
    assert_eq!(validity.remaining(begin + 2 * HOUR), Duration::ZERO);
}

#[test]
fn no_certificate_outlives_its_ca() {
    let fleet = Fleet::new();
    for valid_for in [Duration::MAX, Duration::from_hours(20 * 365 * 24)] {
        let identity = fleet.ca.issue(&Peer::new(Role::Agent, "n1").unwrap(), valid_for, now()).unwrap();
        assert_eq!(identity.validity().not_after, fleet.ca.validity().not_after);
    }
    let after = fleet.ca.validity().not_after + HOUR;
    let request = CertificateRequest::generate().unwrap();
    let peer = Peer::new(Role::Agent, "n1").unwrap();
    let refused = fleet.ca.sign(request.csr_pem(), &peer, HOUR, after);
    assert!(matches!(refused, Err(SignError::Expired { .. })));
    assert!(matches!(CertificateAuthority::open(&fleet.path("ca"), after), Err(CaError::Expired { .. })));
}

#[test]
fn what_a_request_claims_to_be_is_ignored() {
    let fleet = Fleet::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["balancer.kiln.internal".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("kiln://balancer/lb1".try_into().unwrap()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = fleet.ca.sign(&csr, &Peer::new(Role::Agent, "n1").unwrap(), HOUR, now()).unwrap();
    let identity = Identity::assemble(&key.serialize_pem(), &signed, Role::Agent, now()).unwrap();
    assert_eq!(identity.peer().to_string(), "kiln://agent/n1");
    let own = pem::certificates(&signed.chain_pem).unwrap().remove(0);
    let parsed = certificate::parse(&own).unwrap();
    assert!(!parsed.is_ca());
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
}

#[test]
fn a_request_that_proves_no_key_is_refused() {
    let fleet = Fleet::new();
    let peer = Peer::new(Role::Agent, "n1").unwrap();
    let request = CertificateRequest::generate().unwrap();
    let whole = request.csr_pem();
    // The last characters are of the signature.
    let end = whole.rfind("\n-----END").unwrap();
    let forged = format!("{}{}{}", &whole[..end - 12], "AAAAAAAAAAAA", &whole[end..]);
    for csr in ["", "nonsense", &whole[..80], &forged, &"x".repeat(100_000)] {
        let refused = fleet.ca.sign(csr, &peer, HOUR, now());
        assert!(matches!(refused, Err(SignError::Request)), "{csr:.80}");
    }
    fleet.ca.sign(whole, &peer, HOUR, now()).unwrap();
}

#[test]
fn an_identity_is_read_back_as_it_was_saved() {
    let fleet = Fleet::new();
    let identity = fleet.issue(Role::Agent, "n1");
    let opened = fleet.keep("deep/n1", &identity).current();
    assert!(opened.is_same(&identity));
    assert_eq!(opened.fingerprint(), identity.fingerprint());
    let mode = fs::metadata(fleet.path("deep/n1").join(IDENTITY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(fleet.path("deep/n1")).unwrap().count(), 1);
}

#[test]
fn an_identity_is_checked_when_it_is_read() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let read = |fleet: &Fleet, name: &str| {
        fleet.agent(name);
        fs::read_to_string(fleet.path(name).join(IDENTITY_FILE)).unwrap()
    };
    let (ours, theirs) = (read(&fleet, "n1"), read(&other, "n2"));
    let split = |text: &str| {
        let first = text.find("-----BEGIN CERT").unwrap();
        let second = first + 1 + text[first + 1..].find("-----BEGIN CERT").unwrap();
        [text[..first].to_owned(), text[first..second].to_owned(), text[second..].to_owned()]
    };
    let ([key, own, ca], [other_key, other_own, other_ca]) = (split(&ours), split(&theirs));
    let (stranger, stranger_key) = self_signed(&["kiln://agent/n1"]);
    let cases = [
        (String::new(), IdentityProblem::NoKey),
        (format!("{own}{ca}"), IdentityProblem::NoKey),
        (key.clone(), IdentityProblem::Broken),
        (format!("{key}{}", own.replace('M', "*")), IdentityProblem::Broken),
        (format!("{key}{own}"), IdentityProblem::NoTrust),
        (format!("{key}{own}{ca}{other_own}"), IdentityProblem::NotACa),
        (format!("{other_key}{own}{ca}"), IdentityProblem::OtherKey),
        (format!("{key}{own}{other_ca}"), IdentityProblem::OtherCa),
        (format!("{stranger_key}{stranger}{ca}"), IdentityProblem::OtherCa),
        // A CA is no machine.
        (format!("{key}{ca}{ca}"), IdentityProblem::OtherCa),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text.clone(), Role::Agent, now()), expected, "{text}");
    }
    let is = problem(ours.clone(), Role::Balancer, now());
    assert!(matches!(is, IdentityProblem::Peer(PeerError::Role { expected: Role::Balancer, .. })), "{is:?}");
    let is = problem(ours.clone(), Role::Agent, now() + 2 * CERTIFICATE_VALID_FOR);
    assert!(matches!(is, IdentityProblem::Expired(_)), "{is:?}");
    let is = problem(ours.clone(), Role::Agent, now() - HOUR);
    assert!(matches!(is, IdentityProblem::NotYetValid(_)), "{is:?}");
    // Both CAs may be trusted, in any order, and the one that signed is found.
    for cas in [format!("{ca}{other_ca}"), format!("{other_ca}{ca}")] {
        let identity = Identity::parse(format!("{key}{own}{cas}"), Role::Agent, now()).unwrap();
        assert_eq!(Fingerprint::of(&identity.key.cert[1]), fleet.ca.fingerprint());
    }
}

#[test]
fn only_an_identity_whose_time_is_over_has_ended() {
    let fleet = Fleet::new();
    fleet.agent("n1");
    let has_ended = |role, at| Identity::load(&fleet.path("n1"), role, at).unwrap_err().has_ended();
    assert!(has_ended(Role::Agent, now() + CERTIFICATE_VALID_FOR + HOUR));
    assert!(!has_ended(Role::Agent, now() - HOUR));
    assert!(!has_ended(Role::Balancer, now()));
    assert!(!Identity::load(&fleet.path("n2"), Role::Agent, now()).unwrap_err().has_ended());
}

#[test]
fn an_identity_of_another_role_is_not_installed() {
    let fleet = Fleet::new();
    let credentials = fleet.agent("n1");
    let before = credentials.current();
    let refused = credentials.install(fleet.issue(Role::Balancer, "lb1"));
    assert!(matches!(refused, Err(IdentityError::Bad { .. })));
    assert!(credentials.current().is_same(&before));
    credentials.reload(now()).unwrap();
    assert!(credentials.current().is_same(&before));
}

#[test]
fn certificates_that_name_no_peer_or_several_are_of_none() {
    let of = |uris: &[&str]| {
        let (certificate, _) = self_signed(uris);
        Peer::of_certificate(&pem::certificates(&certificate).unwrap()[0])
    };
    assert_eq!(of(&["kiln://agent/n1"]).unwrap().name(), "n1");
    assert_eq!(of(&[]), Err(PeerError::Unnamed));
    assert_eq!(of(&["kiln://agent/n1", "kiln://agent/n2"]), Err(PeerError::SeveralNames));
    assert_eq!(of(&["kiln://agent/n1", "https://example.com"]), Err(PeerError::SeveralNames));
    assert!(matches!(of(&["kiln://agent/../n1"]), Err(PeerError::Name(_))));
    assert!(matches!(of(&["spiffe://agent/n1"]), Err(PeerError::Name(_))));
}

#[test]
fn machines_that_joined_together_renew_around_two_thirds_of_their_certificates_life() {
    let fleet = Fleet::new();
    let at: Vec<_> = (0..20)
        .map(|_| {
            let identity = fleet.issue(Role::Agent, "n1");
            assert_eq!(identity.renew_at(), identity.renew_at());
            let Validity { not_before, not_after } = identity.validity();
            let life = not_after.duration_since(not_before).unwrap().as_secs_f64();
            identity.renew_at().duration_since(not_before).unwrap().as_secs_f64() / life
        })
        .collect();
    assert!(at.iter().all(|share| (0.63..=0.70).contains(share)), "{at:?}");
    let (first, last) =
        at.iter().fold((1.0_f64, 0.0_f64), |(low, high), &share| (low.min(share), high.max(share)));
    assert!(last - first > 0.005, "{at:?}");
}

#[test]
fn no_secret_is_printed() {
    let fleet = Fleet::new();
    let credentials = fleet.agent("n1");
    let request = CertificateRequest::generate().unwrap();
    let token = fleet.ca.mint_token(Role::Agent, HOUR, now()).unwrap();
    let ask = crate::identity::JoinRequest::new(&token, "n2", &request, now());
    let printed = format!("{:?} {credentials:?} {request:?} {token:?} {ask:?}", fleet.ca);
    let secret = token.expose();
    assert!(!printed.contains("PRIVATE") && !printed.contains("BEGIN"), "{printed}");
    assert!(!printed.contains(&secret[secret.len() - 40..]), "{printed}");
    let key = fs::read_to_string(fleet.path("n1").join(IDENTITY_FILE)).unwrap();
    let line = key.lines().nth(1).unwrap();
    assert!(!printed.contains(line), "{printed}");
}

proptest! {
    #[test]
    fn a_certificate_is_read_whole_or_not_at_all(
        cut in 0_usize..300,
        more in proptest::collection::vec(any::<u8>(), 1..9),
    ) {
        let ca = shared_ca();
        let whole = ca.issue(&Peer::new(Role::Agent, "n1").unwrap(), HOUR, now()).unwrap().key.cert[0].clone();
        prop_assert_eq!(Peer::of_certificate(&whole).unwrap().to_string(), "kiln://agent/n1");
        prop_assert_eq!(Peer::of_certificate(&whole[..cut]), Err(PeerError::Malformed));
        let longer = [&*whole, &more].concat();
        prop_assert_eq!(Peer::of_certificate(&longer), Err(PeerError::Malformed));
    }

    #[test]
    fn a_certificate_altered_anywhere_is_no_identity(at in 0_usize..300, to: u8) {
        let ca = shared_ca();
        let request = CertificateRequest::generate().unwrap();
        let peer = Peer::new(Role::Agent, "n1").unwrap();
        let mut signed = ca.sign(request.csr_pem(), &peer, HOUR, now()).unwrap();
        let mut own = pem::certificates(&signed.chain_pem).unwrap()[0].to_vec();
        prop_assume!(own[at] != to);
        own[at] = to;
        signed.chain_pem = pem::of_certificate(&own);
        prop_assert!(request.complete(&signed, Role::Agent, now()).is_err());
    }
}
