//! Where balancers are: a list that is given, what its names resolve to, and what balancers say of each other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How often names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// Most balancers that one agent has links with.
const BALANCERS_MAX: usize = 64;

/// The places at which there may be balancers.
#[derive(Debug)]
pub(super) struct Balancers {
    given: Vec<String>,
    /// What a balancer said last.
    told: Vec<String>,
    /// What each name resolved to last, so that a resolver that fails takes no balancer away.
    known: Vec<(String, BTreeSet<SocketAddr>)>,
    resolve_at: Instant,
}

impl Balancers {
    pub(super) fn new(given: Vec<String>) -> Self {
        Self { given, told: Vec::new(), known: Vec::new(), resolve_at: Instant::now() }
    }

    /// The addresses of all, at most 64.
    pub(super) async fn resolve(&mut self) -> BTreeSet<SocketAddr> {
        self.resolve_at = Instant::now() + RESOLVE_EVERY;
        let mut known = Vec::new();
        for place in self.given.iter().chain(&self.told) {
            if known.iter().any(|(other, _)| other == place) {
                continue;
            }
            let before = self.known.iter().find(|(other, _)| other == place).map(|(_, addresses)| addresses);
            let addresses = match tokio::net::lookup_host(place).await {
                Ok(addresses) => addresses.collect(),
                Err(error) => {
                    if before.is_none() {
                        tracing::warn!(balancer = place, %error, "cannot resolve a balancer's address; trying again");
                    }
                    before.cloned().unwrap_or_default()
                }
            };
            known.push((place.clone(), addresses));
        }
        self.known = known;
        self.known.iter().flat_map(|(_, addresses)| addresses).copied().take(BALANCERS_MAX).collect()
    }

    /// Waits until there may be something new: a balancer has said where the others are, or time has passed.
    pub(super) async fn changed(&mut self, lists: &mut mpsc::Receiver<Vec<String>>) {
        loop {
            // Both are cancel-safe.
            tokio::select! {
                Some(list) = lists.recv() => {
                    if list != self.told {
                        self.told = list;
                        return;
                    }
                }
                () = sleep_until(self.resolve_at) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn balancers_are_those_given_and_those_told_of() {
        let mut balancers = Balancers::new(vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()]);
        assert_eq!(balancers.resolve().await.len(), 2);
        let (sender, mut lists) = mpsc::channel(4);
        let told = ["127.0.0.1:2", "127.0.0.1:3"].map(str::to_owned).to_vec();
        sender.send(told.clone()).await.expect("is read");
        balancers.changed(&mut lists).await;
        let addresses = balancers.resolve().await;
        let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [1, 2, 3]);
        // The same list is no news: the next change is that time has passed.
        sender.send(told).await.expect("is read");
        let before = Instant::now();
        balancers.changed(&mut lists).await;
        assert_eq!(before.elapsed(), RESOLVE_EVERY);
    }

    #[tokio::test]
    async fn a_name_that_is_not_resolved_takes_no_known_balancer_away() {
        let place = "does-not-exist.invalid:1".to_owned();
        let mut balancers = Balancers::new(vec![place.clone()]);
        balancers.known = vec![(place, BTreeSet::from(["127.0.0.1:1".parse().expect("an address")]))];
        assert_eq!(balancers.resolve().await.len(), 1);
    }
}
