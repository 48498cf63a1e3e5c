//! Where balancers are: a list that is given, what its names resolve to, and what balancers say of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How often names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// How long an address is kept that nothing names any more: some resolvers answer with a few of many addresses, each time
/// with others, and a balancer that is away for a moment is not told of.
const KEPT: Duration = Duration::from_mins(1);
/// Most balancers that one agent has links with.
const BALANCERS_MAX: usize = 64;

/// What a link has heard of where balancers are.
#[derive(Debug)]
pub(super) enum Told {
    /// This balancer says that balancers are there.
    List {
        /// The balancer's name.
        balancer: String,
        /// The places, as `host:port`.
        places: Vec<String>,
    },
    /// The link to the balancer of this name has ended.
    Ended(String),
}

/// The places at which there may be balancers.
#[derive(Debug)]
pub(super) struct Balancers {
    given: Vec<String>,
    /// What each linked balancer said last. While none is linked, what the last one said.
    told: BTreeMap<String, Vec<String>>,
    /// What each name resolved to last, so that a resolver that fails takes no balancer away.
    known: Vec<(String, BTreeSet<SocketAddr>)>,
    /// When each address was named last.
    named_at: BTreeMap<SocketAddr, Instant>,
    resolve_at: Instant,
}

impl Balancers {
    pub(super) fn new(given: Vec<String>) -> Self {
        Self {
            given,
            told: BTreeMap::new(),
            known: Vec::new(),
            named_at: BTreeMap::new(),
            resolve_at: Instant::now(),
        }
    }

    /// The addresses of all, at most 64.
    pub(super) async fn resolve(&mut self) -> BTreeSet<SocketAddr> {
        self.resolve_at = Instant::now() + RESOLVE_EVERY;
        let mut known = Vec::new();
        for place in self.given.iter().chain(self.told.values().flatten()) {
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
        self.addresses(Instant::now())
    }

    /// What is named now, and what was so of late.
    fn addresses(&mut self, now: Instant) -> BTreeSet<SocketAddr> {
        let named: BTreeSet<SocketAddr> =
            self.known.iter().flat_map(|(_, addresses)| addresses).copied().take(BALANCERS_MAX).collect();
        self.named_at.extend(named.iter().map(|&address| (address, now)));
        self.named_at.retain(|_, at| now.duration_since(*at) < KEPT);
        let kept = self.named_at.keys().filter(|address| !named.contains(address));
        let room = BALANCERS_MAX - named.len();
        kept.take(room).chain(&named).copied().collect()
    }

    /// Waits until there may be something new: a balancer has said where the others are, or time has passed.
    pub(super) async fn changed(&mut self, told: &mut mpsc::Receiver<Told>) {
        loop {
            // Both are cancel-safe.
            tokio::select! {
                Some(told) = told.recv() => if self.hear(told) { return },
                () = sleep_until(self.resolve_at) => return,
            }
        }
    }

    /// True if that is news.
    fn hear(&mut self, told: Told) -> bool {
        match told {
            Told::List { balancer, places } => {
                let before = self.told.insert(balancer, places.clone());
                before.as_ref() != Some(&places)
            }
            // What the last one said is all there is to go by until another one speaks.
            Told::Ended(balancer) => self.told.len() > 1 && self.told.remove(&balancer).is_some(),
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
        let list = || Told::List { balancer: "lb1".to_owned(), places: told.clone() };
        sender.send(list()).await.expect("is read");
        balancers.changed(&mut lists).await;
        let addresses = balancers.resolve().await;
        let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [1, 2, 3]);
        // The same list is no news: the next change is that time has passed.
        sender.send(list()).await.expect("is read");
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

    fn list(balancer: &str, ports: &[u16]) -> Told {
        let places = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Told::List { balancer: balancer.to_owned(), places }
    }

    async fn ports(balancers: &mut Balancers) -> Vec<u16> {
        balancers.resolve().await.iter().map(SocketAddr::port).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn no_balancer_takes_away_what_another_one_tells_of() {
        let mut balancers = Balancers::new(vec!["127.0.0.1:1".to_owned()]);
        assert!(balancers.hear(list("a", &[1, 2])));
        assert!(balancers.hear(list("b", &[1])));
        tokio::time::advance(2 * KEPT).await;
        assert_eq!(ports(&mut balancers).await, [1, 2]);
        // The word of one whose link has ended counts no more, but for the last.
        assert!(balancers.hear(Told::Ended("a".to_owned())));
        assert!(balancers.hear(list("b", &[1, 3])));
        assert!(!balancers.hear(Told::Ended("b".to_owned())));
        tokio::time::advance(2 * KEPT).await;
        assert_eq!(ports(&mut balancers).await, [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_stays_for_a_while_when_nothing_names_it_any_more() {
        let mut balancers = Balancers::new(Vec::new());
        balancers.hear(list("a", &[1, 2]));
        assert_eq!(ports(&mut balancers).await, [1, 2]);
        balancers.hear(list("a", &[2, 3]));
        tokio::time::advance(KEPT / 2).await;
        assert_eq!(ports(&mut balancers).await, [1, 2, 3]);
        tokio::time::advance(KEPT).await;
        assert_eq!(ports(&mut balancers).await, [2, 3]);
    }
}
