//! Joining: tokens, the exchange, and whom the joining machine believes.

use std::collections::HashSet;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::tls::{ALPN, shake_hands};
use super::*;
use crate::identity::{
    CLOCK_DIFFERENCE_MAX, CertificateRequest, Claim, ClientAuth, JoinAnswer, JoinRefused, JoinRequest,
    JoinToken, MintError, Redeemed, SignError, TOKEN_VALID_FOR_MAX, TokenError, TokenId,
    joining_client_config, server_config,
};

/// What those who hold the CA remember together.
#[derive(Default)]
struct Catalog(HashSet<TokenId>);

impl Catalog {
    async fn redeem(
        &mut self,
        fleet: &Fleet,
        request: &JoinRequest,
        now: SystemTime,
    ) -> Result<Redeemed, JoinRefused> {
        let claim = async |id, _until| if self.0.insert(id) { Claim::First } else { Claim::Again };
        fleet.ca.redeem(request, CERTIFICATE_VALID_FOR, now, claim).await
    }
}

fn token(fleet: &Fleet) -> JoinToken {
    fleet.ca.mint_token(Role::Agent, HOUR, now()).unwrap()
}

fn ask(token: &JoinToken) -> (CertificateRequest, JoinRequest) {
    let request = CertificateRequest::generate().unwrap();
    let ask = JoinRequest::new(token, "n1", &request, now());
    (request, ask)
}

#[tokio::test]
async fn who_has_a_token_becomes_a_peer_of_the_fleet() {
    let fleet = Fleet::new();
    for role in [Role::Agent, Role::Balancer] {
        let token = fleet.ca.mint_token(role, HOUR, now()).unwrap();
        // As it arrives by hand and over the wire.
        let token: JoinToken = format!(" {}\n", token.expose()).parse().unwrap();
        let (request, ask) = ask(&token);
        let ask = serde_json::from_slice(&serde_json::to_vec(&ask).unwrap()).unwrap();
        let redeemed = Catalog::default().redeem(&fleet, &ask, now()).await;
        let answer = serde_json::to_vec(&JoinAnswer::from(&redeemed)).unwrap();
        let JoinAnswer::Joined(signed) = serde_json::from_slice(&answer).unwrap() else {
            panic!("{redeemed:?}")
        };
        let identity = request.complete(&signed, role, now()).unwrap();
        assert_eq!(*identity.peer(), Peer::new(role, "n1").unwrap());
        assert_eq!(identity.trusted(), [fleet.ca.fingerprint()]);
    }
}

#[tokio::test]
async fn a_token_joins_one_machine() {
    let (fleet, mut catalog) = (Fleet::new(), Catalog::default());
    let token = token(&fleet);
    catalog.redeem(&fleet, &ask(&token).1, now()).await.unwrap();
    for _ in 0..2 {
        let refused = catalog.redeem(&fleet, &ask(&token).1, now()).await;
        assert!(matches!(refused, Err(JoinRefused::Replayed)), "{refused:?}");
    }
    let answer = JoinAnswer::from(&catalog.redeem(&fleet, &ask(&token).1, now()).await);
    assert!(matches!(answer, JoinAnswer::Refused { reason, .. } if reason == "replayed_token"));
}

#[tokio::test]
async fn a_refusal_other_than_a_replay_leaves_the_token_good() {
    let (fleet, other, mut catalog) = (Fleet::new(), Fleet::new(), Catalog::default());
    let token = token(&fleet);
    let (_, good) = ask(&token);
    let altered = |at: usize| {
        let mut text = token.expose().into_bytes();
        text[at] = if text[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(text).unwrap()
    };
    // In the fingerprint, and in the id.
    let (other_ca, other_id) = (altered(40), altered(70));
    let old = now() - 2 * HOUR;
    let expired = fleet.ca.mint_token(Role::Agent, HOUR, old).unwrap().expose();
    let foreign = self::token(&other).expose();
    let (early, late) = (good.clock_seconds - 3600, good.clock_seconds + 3600);
    let cases = [
        (JoinRequest { token: String::new(), ..good.clone() }, "malformed_token"),
        (JoinRequest { token: foreign, ..good.clone() }, "wrong_ca"),
        (JoinRequest { token: other_ca, ..good.clone() }, "wrong_ca"),
        (JoinRequest { token: other_id, ..good.clone() }, "forged_token"),
        (JoinRequest { token: expired, ..good.clone() }, "expired_token"),
        (JoinRequest { clock_seconds: early, ..good.clone() }, "clock_off"),
        (JoinRequest { clock_seconds: late, ..good.clone() }, "clock_off"),
        (JoinRequest { name: "no/name".into(), ..good.clone() }, "bad_name"),
        (JoinRequest { csr_pem: "none".into(), ..good.clone() }, "not_signed"),
    ];
    for (request, reason) in cases {
        let refused = catalog.redeem(&fleet, &request, now()).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{refused}");
    }
    let unrecorded = fleet.ca.redeem(&good, HOUR, now(), async |_, _| Claim::Unavailable).await;
    assert!(matches!(unrecorded, Err(JoinRefused::Unrecorded)));
    catalog.redeem(&fleet, &good, now()).await.unwrap();
}

#[tokio::test]
async fn the_name_and_last_second_of_a_token_are_what_is_recorded() {
    let fleet = Fleet::new();
    let token = token(&fleet);
    let mut recorded = None;
    let claim = async |id, until| {
        recorded = Some((id, until));
        Claim::First
    };
    fleet.ca.redeem(&ask(&token).1, HOUR, now(), claim).await.unwrap();
    assert_eq!(recorded, Some((token.id(), token.expires_at())));
}

#[tokio::test]
async fn a_token_is_good_until_its_last_second_and_a_clock_until_its_last_minute() {
    let fleet = Fleet::new();
    let begin = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let token = fleet.ca.mint_token(Role::Agent, HOUR, begin).unwrap();
    let request = CertificateRequest::generate().unwrap();
    let at = |server: SystemTime, client: SystemTime| {
        let ask = JoinRequest::new(&token, "n1", &request, client);
        let fleet = &fleet;
        async move { Catalog::default().redeem(fleet, &ask, server).await.err().map(|refused| refused.reason()) }
    };
    let second = Duration::from_secs(1);
    assert_eq!(at(begin, begin).await, None);
    assert_eq!(at(begin + HOUR, begin + HOUR).await, None);
    assert_eq!(at(begin + HOUR + second, begin + HOUR).await, Some("expired_token"));
    assert_eq!(at(begin, begin + CLOCK_DIFFERENCE_MAX).await, None);
    assert_eq!(at(begin, begin + CLOCK_DIFFERENCE_MAX + second).await, Some("clock_off"));
    assert_eq!(at(begin, begin - CLOCK_DIFFERENCE_MAX).await, None);
    assert_eq!(at(begin, begin - CLOCK_DIFFERENCE_MAX - second).await, Some("clock_off"));
}

#[test]
fn a_token_lives_for_a_second_to_a_week() {
    let fleet = Fleet::new();
    let mint = |valid_for| fleet.ca.mint_token(Role::Agent, valid_for, now());
    for valid_for in [Duration::from_secs(1), TOKEN_VALID_FOR_MAX] {
        mint(valid_for).unwrap();
    }
    for valid_for in [Duration::ZERO, TOKEN_VALID_FOR_MAX + Duration::from_secs(1), Duration::MAX] {
        assert_eq!(mint(valid_for), Err(MintError::ValidFor(valid_for)));
    }
}

#[tokio::test]
async fn the_ca_itself_must_still_be_good_to_let_anybody_join() {
    let fleet = Fleet::new();
    let late = fleet.ca.validity().not_after + HOUR;
    let token = fleet.ca.mint_token(Role::Agent, HOUR, late).unwrap();
    let request = CertificateRequest::generate().unwrap();
    let ask = JoinRequest::new(&token, "n1", &request, late);
    let refused = Catalog::default().redeem(&fleet, &ask, late).await;
    assert!(matches!(refused, Err(JoinRefused::Sign(SignError::Expired { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_joining_machine_believes_a_balancer_of_its_tokens_ca_and_shows_no_certificate() {
    let fleet = Fleet::new();
    let client = joining_client_config(fleet.ca.fingerprint(), ALPN);
    let balancer = fleet.balancer("lb1");
    let (dialled, answered) =
        shake_hands(&client, &server_config(&balancer, &[ALPN], ClientAuth::Optional)).await;
    dialled.unwrap();
    assert!(answered.unwrap().get_ref().1.peer_certificates().is_none());
    let (_, answered) = shake_hands(&client, &server_config(&balancer, &[ALPN], ClientAuth::Required)).await;
    assert!(answered.unwrap_err().contains("no certificates"));
}

#[tokio::test]
async fn a_joining_machine_believes_nobody_else() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let client = joining_client_config(fleet.ca.fingerprint(), ALPN);
    let server = |credentials: &Credentials| server_config(credentials, &[ALPN], ClientAuth::Optional);
    let (dialled, _) = shake_hands(&client, &server(&other.balancer("lb1"))).await;
    let said = dialled.unwrap_err();
    assert!(said.contains("not of the fleet whose CA is") && said.contains("kiln node token"), "{said}");
    let (dialled, _) = shake_hands(&client, &server(&fleet.agent("n1"))).await;
    let said = dialled.unwrap_err();
    assert!(said.contains("kiln://agent/n1 is no balancer"), "{said}");
    let (dialled, _) =
        shake_hands(&client, &server(&fleet.issue_at("kiln://balancer/lb2", now() - 2 * HOUR))).await;
    assert!(dialled.unwrap_err().contains("expired"));
}

#[tokio::test]
async fn showing_the_right_ca_beside_a_certificate_of_another_convinces_nobody() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let client = joining_client_config(fleet.ca.fingerprint(), ALPN);
    let theirs = other.balancer("lb1");
    let chain = vec![
        theirs.current().key.cert[0].clone(),
        theirs.current().key.cert[1].clone(),
        fleet.balancer("lb1").current().key.cert[1].clone(),
    ];
    let mut server = (*server_config(&theirs, &[ALPN], ClientAuth::Optional)).clone();
    let shown = rustls::sign::CertifiedKey::new(chain, theirs.current().key.key.clone());
    server.cert_resolver = std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(shown));
    let (dialled, _) = shake_hands(&client, &std::sync::Arc::new(server)).await;
    let said = dialled.unwrap_err();
    assert!(said.contains("UnknownIssuer"), "{said}");
}

fn token_text() -> impl Strategy<Value = String> {
    let body = proptest::collection::vec(any::<u8>(), 89);
    body.prop_map(|mut bytes| {
        use base64::Engine as _;
        bytes[56] &= 1;
        format!("kiln-join-1.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
    })
}

proptest! {
    #[test]
    fn a_token_is_written_as_it_was_read(text in token_text()) {
        let token: JoinToken = text.parse().expect("a token");
        prop_assert_eq!(token.expose(), text);
        let printed = format!("{token:?}");
        prop_assert!(!printed.contains("kiln-join"));
    }

    #[test]
    fn any_other_text_is_refused(text in "(kiln-join-1\\.)?\\PC{0,200}") {
        prop_assert!(text.parse::<JoinToken>().is_err());
    }

    #[test]
    fn a_token_altered_anywhere_is_refused(
        valid_for in 1_u64..600_000,
        agent: bool,
        at in 0_usize..119,
        to in "[A-Za-z0-9_-]",
    ) {
        let ca = shared_ca();
        let role = if agent { Role::Agent } else { Role::Balancer };
        let token = ca.mint_token(role, Duration::from_secs(valid_for), now()).unwrap();
        prop_assert!(ca.minted(&token));
        let mut text = token.expose();
        text.replace_range(12 + at..13 + at, &to);
        match text.parse::<JoinToken>() {
            Ok(read) => prop_assert_eq!(ca.minted(&read), read == token),
            Err(error) => prop_assert_eq!(error, TokenError::Damaged),
        }
    }
}
