//! What balancers keep in common beside the catalog: used join tokens, and each other's addresses.

use jiff::{SignedDuration, Timestamp};
use kiln_api::BalancerEntry;
use tokio::task::JoinSet;

use crate::support::Api;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn entry(name: &str, link_address: &str, second: i64) -> BalancerEntry {
    BalancerEntry { name: name.to_owned(), link_address: link_address.to_owned(), seen_at: at(second) }
}

#[tokio::test]
async fn a_join_token_is_claimed_once_however_many_ask() {
    let api = Api::new().await;
    let soon = Timestamp::now() + SignedDuration::from_mins(5);
    let mut claims = JoinSet::new();
    for number in 0..12 {
        let catalog = api.catalog.clone();
        let id = if number % 2 == 0 { "one" } else { "other" };
        claims.spawn(async move { (id, catalog.claim_join_token(id, soon).await.expect("a claim")) });
    }
    let mut first: Vec<&str> =
        claims.join_all().await.into_iter().filter_map(|(id, first)| first.then_some(id)).collect();
    first.sort_unstable();
    assert_eq!(first, ["one", "other"]);
}

#[tokio::test]
async fn a_used_token_is_remembered_for_a_day_after_its_end() {
    let api = Api::new().await;
    let now = Timestamp::now();
    for (id, ended, again) in [("just", 1, false), ("hours", 23, false), ("days", 25, true)] {
        let expires_at = now - SignedDuration::from_hours(ended);
        assert!(api.catalog.claim_join_token(id, expires_at).await.expect("a claim"), "{id}");
        assert_eq!(api.catalog.claim_join_token(id, expires_at).await.expect("a claim"), again, "{id}");
    }
}

#[tokio::test]
async fn balancers_are_known_from_their_last_word_until_they_are_forgotten() {
    let api = Api::new().await;
    let catalog = &api.catalog;
    catalog.announce_balancer("two", "10.0.0.2:8082", at(100)).await.expect("announced");
    catalog.announce_balancer("one", "10.0.0.1:8082", at(101)).await.expect("announced");
    let seen = catalog.balancers(at(100)).await.expect("a list");
    assert_eq!(seen, [entry("one", "10.0.0.1:8082", 101), entry("two", "10.0.0.2:8082", 100)]);
    catalog.announce_balancer("two", "[fd00::2]:8082", at(110)).await.expect("announced");
    let seen = catalog.balancers(at(102)).await.expect("a list");
    assert_eq!(seen, [entry("two", "[fd00::2]:8082", 110)]);
    for _ in 0..2 {
        catalog.forget_balancer("two").await.expect("forgotten");
    }
    let seen = catalog.balancers(Timestamp::UNIX_EPOCH).await.expect("a list");
    assert_eq!(seen, [entry("one", "10.0.0.1:8082", 101)]);
    assert_eq!(catalog.subscribe().borrow().revision, 0, "none of it is in the feed");
}
