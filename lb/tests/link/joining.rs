//! First certificates, and the next ones.

use std::time::{Duration, SystemTime};

use kiln_agent::link::AskError;
use kiln_lb::fleet::NodeState;
use kiln_shared::identity::{CertificateRequest, Credentials, JoinToken, Role};
use kiln_shared::link::join::{JoinError, join};
use kiln_shared::link::message::{Answer, Ask};
use kiln_shared::link::quic;

use crate::support::{Agent, Authority, Balancer, eventually, hello};

fn token(authority: &Authority, role: Role) -> JoinToken {
    authority.ca.mint_token(role, Duration::from_mins(1), SystemTime::now()).expect("a token")
}

fn key() -> CertificateRequest {
    CertificateRequest::generate().expect("a key")
}

fn dialer() -> quinn::Endpoint {
    quic::dialer("127.0.0.1:0".parse().expect("an address")).expect("a socket")
}

#[tokio::test]
async fn a_machine_joins_with_a_token_and_is_a_node_then() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let token = token(&authority, Role::Agent);
    let identity = join(&dialer(), balancer.address, &token, "new", &key()).await.expect("joins");
    assert_eq!((identity.peer().role(), identity.peer().name()), (Role::Agent, "new"));
    let folder = authority.path("joined");
    identity.save(&folder).expect("is kept");
    let credentials = Credentials::open(&folder, Role::Agent, SystemTime::now()).expect("is good");
    let _agent = Agent::start_as(&credentials, hello("new", 1), &[balancer.address]);
    eventually("the node is up", || balancer.state("new") == Some(NodeState::Up)).await;
}

#[tokio::test]
async fn a_token_joins_one_machine_whichever_balancer_is_asked() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let token = token(&authority, Role::Agent);
    join(&dialer(), balancer.address, &token, "one", &key()).await.expect("joins");
    let error = join(&dialer(), balancer.address, &token, "two", &key()).await.expect_err("is used up");
    assert!(matches!(&error, JoinError::Refused(why) if why.contains("was used before")), "{error}");
}

#[tokio::test]
async fn a_machine_whose_answer_was_lost_asks_again_at_any_balancer() {
    let authority = Authority::new();
    let one = Balancer::start_sharing(&authority, "lb1", "shared").await;
    let two = Balancer::start_sharing(&authority, "lb2", "shared").await;
    let (token, key) = (token(&authority, Role::Agent), key());
    for balancer in [&one, &two, &one] {
        let identity = join(&dialer(), balancer.address, &token, "n", &key).await.expect("joins");
        assert_eq!(identity.peer().name(), "n");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_read() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let token = token(&authority, Role::Agent);
    let error = join(&dialer(), balancer.address, &token, &"x".repeat(40_000), &key()).await.expect_err("no");
    assert!(!matches!(error, JoinError::Refused(_)), "{error}");
    join(&dialer(), balancer.address, &token, "x", &key()).await.expect("the token is good still");
}

#[tokio::test]
async fn a_machine_believes_no_balancer_of_another_fleet() {
    let (authority, other) = (Authority::new(), Authority::new());
    let balancer = Balancer::start(&authority, "lb1").await;
    let error =
        join(&dialer(), balancer.address, &token(&other, Role::Agent), "x", &key()).await.expect_err("no");
    assert!(matches!(error, JoinError::Connection(_)), "{error}");
}

#[tokio::test]
async fn an_agent_gets_its_next_certificate_for_its_own_name() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let agent = Agent::start(&authority, "a", &[balancer.address]);
    eventually("the agent is linked", || agent.linked.count() == 1).await;
    let request = CertificateRequest::generate().expect("a key");
    let question = Ask::Renew { request_pem: request.csr_pem().to_owned() };
    let Answer::Certificate(signed) = agent.linked.ask(&question).await.expect("an answer") else {
        panic!("no certificate")
    };
    let identity = request.complete(&signed, Role::Agent, SystemTime::now()).expect("fits");
    assert_eq!(identity.peer().name(), "a");
    let nonsense = Ask::Renew { request_pem: "nonsense".to_owned() };
    let error = agent.linked.ask(&nonsense).await.expect_err("is not signed");
    assert!(matches!(error, AskError::Cannot(_)), "{error}");
}
