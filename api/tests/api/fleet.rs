//! What balancers keep in common beside the catalog: used join tokens, and each other's addresses.

use jiff::{SignedDuration, Timestamp};
use kiln_testkit::until;
use tokio::task::JoinSet;

use crate::support::Api;

#[tokio::test]
async fn a_join_token_is_claimed_once_however_many_ask() {
    let api = Api::new().await;
    let soon = Timestamp::now() + SignedDuration::from_mins(5);
    let mut claims = JoinSet::new();
    for number in 0..12 {
        let catalog = api.catalog.clone();
        let id = if number % 2 == 0 { "one" } else { "other" };
        claims.spawn(async move {
            (id, catalog.claim_join_token(id, &number.to_string(), soon).await.expect("a claim"))
        });
    }
    let mut first: Vec<&str> =
        claims.join_all().await.into_iter().filter_map(|(id, first)| first.then_some(id)).collect();
    first.sort_unstable();
    assert_eq!(first, ["one", "other"]);
}

#[tokio::test]
async fn who_has_used_a_token_may_ask_again() {
    let api = Api::new().await;
    let soon = Timestamp::now() + SignedDuration::from_mins(5);
    for (used_by, claimed) in [("a", true), ("b", false), ("a", true), ("b", false)] {
        assert_eq!(
            api.catalog.claim_join_token("one", used_by, soon).await.expect("a claim"),
            claimed,
            "{used_by}"
        );
    }
}

#[tokio::test]
async fn a_used_token_is_remembered_for_a_day_after_its_end() {
    let api = Api::new().await;
    let now = Timestamp::now();
    for (id, ended, again) in [("just", 1, false), ("hours", 23, false), ("days", 25, true)] {
        let expires_at = now - SignedDuration::from_hours(ended);
        assert!(api.catalog.claim_join_token(id, "a", expires_at).await.expect("a claim"), "{id}");
        assert_eq!(api.catalog.claim_join_token(id, "b", expires_at).await.expect("a claim"), again, "{id}");
    }
}

#[tokio::test]
async fn balancers_are_known_from_their_last_word_until_they_are_forgotten() {
    let api = Api::new().await;
    let catalog = &api.catalog;
    let seen = async |within| {
        let seen = catalog.balancers(within).await.expect("a list");
        seen.into_iter().map(|entry| (entry.name, entry.link_address)).collect::<Vec<_>>()
    };
    let entry = |name: &str, address: &str| (name.to_owned(), address.to_owned());
    let minute = SignedDuration::from_mins(1);
    catalog.announce_balancer("two", "10.0.0.2:8082").await.expect("announced");
    catalog.announce_balancer("one", "10.0.0.1:8082").await.expect("announced");
    assert_eq!(seen(minute).await, [entry("one", "10.0.0.1:8082"), entry("two", "10.0.0.2:8082")]);
    until("their word is old", async || seen(SignedDuration::ZERO).await.is_empty().then_some(())).await;
    catalog.announce_balancer("two", "[fd00::2]:8082").await.expect("announced");
    assert_eq!(seen(minute).await, [entry("one", "10.0.0.1:8082"), entry("two", "[fd00::2]:8082")]);
    for _ in 0..2 {
        catalog.forget_balancer("two").await.expect("forgotten");
    }
    assert_eq!(seen(minute).await, [entry("one", "10.0.0.1:8082")]);
    assert_eq!(catalog.subscribe().borrow().revision, 0, "none of it is in the feed");
}

#[tokio::test]
async fn a_node_is_removed_once_and_for_good() {
    let api = Api::new().await;
    for (name, is_new) in [("b", true), ("a", true), ("b", false)] {
        assert_eq!(api.catalog.remove_node(name).await.expect("removed"), is_new, "{name}");
    }
    assert_eq!(api.catalog.removed_nodes().await.expect("a list"), ["a", "b"]);
}
