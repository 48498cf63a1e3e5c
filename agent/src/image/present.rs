//! Which images are on this node, for the balancers: a call goes where its image need not be pulled.
//!
//! Owns the list. Asks the engine for all its images once, and again only when an event says that some came or went.
//! Balancers compare references as they were deployed, and the engine tells them in one spelling each: a reference that
//! was found good here is listed as it was asked for, while its image stays.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::models::ImageSummary;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{Notify, watch};

use super::reference::{DOCKER_HUB, parse};
use crate::container::docker::engine::{Engine, explain};

/// References that a node tells of; further ones, in the order of their text, are not told.
const REFERENCES_MAX: usize = 2000;
/// References that are remembered as they were asked for.
const ASKED_FOR_MAX: usize = 1000;
/// Events come in numbers, as when an image of many tags is removed: the engine is asked once for all of this time.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// First and longest wait before the event stream is taken up again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// References of images, sorted.
pub(crate) type References = Arc<[Arc<str>]>;

/// The images that are here.
#[derive(Debug)]
pub(crate) struct PresentImages {
    present: watch::Sender<References>,
    asked_for: Mutex<BTreeSet<String>>,
    news: Notify,
}

impl PresentImages {
    /// None that is known of yet.
    pub(crate) fn new() -> Self {
        Self { present: watch::Sender::new(Arc::default()), asked_for: Mutex::default(), news: Notify::new() }
    }

    /// The list, as it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<References> {
        self.present.subscribe()
    }

    /// Notes that the image of this reference is here.
    pub(crate) fn found(&self, reference: &str) {
        let is_listed =
            self.present.borrow().binary_search_by(|listed| listed.as_ref().cmp(reference)).is_ok();
        if is_listed {
            return;
        }
        let mut asked_for = self.asked_for();
        if asked_for.len() < ASKED_FOR_MAX && asked_for.insert(reference.to_owned()) {
            self.news.notify_one();
        }
    }

    /// Keeps the list current for as long as it is polled.
    pub(crate) async fn watch(self: Arc<Self>, engine: Engine) {
        let mut retry = RETRY_MIN;
        loop {
            // From before the list is taken: what changes meanwhile is told again.
            let mut events = std::pin::pin!(engine.image_changes(unix_seconds()));
            let broken = loop {
                match self.look(&engine).await {
                    Ok(()) => retry = RETRY_MIN,
                    Err(error) => break Some(error),
                }
                // Both are cancel-safe: the stream and the notice keep what they have not given.
                let event = tokio::select! {
                    event = events.next() => event,
                    () = self.news.notified() => Some(Ok(())),
                };
                tokio::time::sleep(LOOK_PAUSE).await;
                let further = std::iter::from_fn(|| events.next().now_or_never());
                let mut all = std::iter::once(event).chain(further);
                if let Some(end) = all.find(|event| !matches!(event, Some(Ok(())))) {
                    break end.and_then(Result::err);
                }
            };
            let error = broken.as_ref().map(explain);
            tracing::debug!(error, "the engine's stream of image events broke");
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn look(&self, engine: &Engine) -> Result<(), Error> {
        // What is asked for from here on asks for another look.
        let asked_for = self.asked_for().clone();
        let images = engine.list_images().await?;
        let there: HashSet<&str> = images.iter().flat_map(names).collect();
        let is_there = |reference: &String| is_among(&there, reference);
        let (kept, gone): (BTreeSet<String>, BTreeSet<String>) = asked_for.into_iter().partition(is_there);
        self.asked_for().retain(|reference| !gone.contains(reference));
        let references = references(&there, &kept);
        self.present.send_if_modified(|present| {
            let is_news = **present != *references;
            *present = references;
            is_news
        });
        Ok(())
    }

    fn asked_for(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.asked_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's own spellings: tags, and digests. An image without a name has `<none>` for both.
fn names(image: &ImageSummary) -> impl Iterator<Item = &str> {
    image.repo_tags.iter().chain(&image.repo_digests).map(String::as_str).filter(|name| !name.contains('<'))
}

/// What is told: the engine's spellings, those of the tag `latest` without it too, and those that were asked for.
fn references(there: &HashSet<&str>, asked_for: &BTreeSet<String>) -> References {
    let untagged = there.iter().filter_map(|name| name.strip_suffix(":latest"));
    let all = there.iter().copied().chain(untagged).chain(asked_for.iter().map(String::as_str));
    let sorted: BTreeSet<&str> = all.collect();
    if sorted.len() > REFERENCES_MAX {
        tracing::warn!(
            references = sorted.len(),
            told = REFERENCES_MAX,
            "balancers are not told of all images; remove some with `docker image prune`"
        );
    }
    sorted.into_iter().take(REFERENCES_MAX).map(Arc::from).collect()
}

/// True if one of the engine's spellings means the same image: its digest counts before its tag, the Docker Hub needs no
/// name, and neither does its folder `library`.
fn is_among(there: &HashSet<&str>, reference: &str) -> bool {
    let Some(parts) = parse(reference) else { return false };
    let mut name = parts.repository;
    if parts.host == DOCKER_HUB {
        name = name.strip_prefix("docker.io/").unwrap_or(name);
        name = name.strip_prefix("library/").unwrap_or(name);
    }
    let separator = if parts.version.contains(':') { '@' } else { ':' };
    there.contains(format!("{name}{separator}{}", parts.version).as_str())
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_as_deployed_are_found_among_the_engines_spellings() {
        let by_digest = format!("team/f@{DIGEST}");
        let there = HashSet::from(["alpine:latest", "reg.io:5000/team/f:1", by_digest.as_str()]);
        for (reference, is_there) in [
            ("alpine", true),
            ("docker.io/library/alpine:latest", true),
            ("library/alpine", true),
            ("alpine:3", false),
            ("reg.io:5000/team/f:1", true),
            ("reg.io:5000/team/f", false),
            ("team/f:1", false),
            (by_digest.as_str(), true),
            (&format!("docker.io/team/f:2@{DIGEST}"), true),
            ("NOT A REFERENCE", false),
        ] {
            assert_eq!(is_among(&there, reference), is_there, "{reference}");
        }
    }

    #[test]
    fn what_is_told_is_sorted_and_bounded() {
        let there = HashSet::from(["b:latest", "a:1"]);
        let asked_for = BTreeSet::from(["docker.io/library/b".to_owned()]);
        let told = references(&there, &asked_for);
        assert_eq!(
            told.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            ["a:1", "b", "b:latest", "docker.io/library/b"]
        );
        let many: Vec<String> = (0..2 * REFERENCES_MAX).map(|number| format!("image:{number}")).collect();
        let many = many.iter().map(String::as_str).collect();
        assert_eq!(references(&many, &BTreeSet::new()).len(), REFERENCES_MAX);
    }

    #[test]
    fn images_without_a_name_are_not_told() {
        let image = ImageSummary {
            repo_tags: vec!["<none>:<none>".to_owned(), "a:1".to_owned()],
            repo_digests: vec!["<none>@<none>".to_owned()],
            ..ImageSummary::default()
        };
        assert_eq!(names(&image).collect::<Vec<_>>(), ["a:1"]);
    }
}
