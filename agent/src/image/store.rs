//! Having an image on this node: looked up, pulled when missing, refused when it declares a volume.
//!
//! Owns one flight per image however many ask, and a short memory of images that were found good, so that a
//! start does not ask the engine for what it knew a moment ago.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::errors::Error;
use kiln_shared::call::{Failure, FailureKind};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::login::RegistryLogins;
use super::present::{PresentImages, References};
use super::reference::{self, Reference};
use crate::container::docker::ImageVolumes;
use crate::container::docker::engine::{Engine, explain, status};

/// How long an image that was found good is taken as such without asking.
const GOOD_FOR: Duration = Duration::from_secs(10);

/// Whether a caller had to wait for a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageWait {
    /// The image was there.
    Present,
    /// It had to come from its registry.
    Pulled,
}

/// Settings of the store.
#[derive(Debug)]
pub(crate) struct ImageStoreConfig {
    pub(crate) pull_timeout: Duration,
    pub(crate) volumes: ImageVolumes,
    pub(crate) logins: RegistryLogins,
}

type Outcome = Result<ImageWait, Failure>;
type Flight = watch::Receiver<Option<Outcome>>;

/// The images of this node.
#[derive(Debug)]
pub(crate) struct ImageStore {
    engine: Engine,
    config: ImageStoreConfig,
    runtime: Handle,
    tasks: TaskTracker,
    known: Mutex<Known>,
    present: Arc<PresentImages>,
}

#[derive(Debug, Default)]
struct Known {
    /// Found good at that time.
    good: HashMap<String, Instant>,
    /// Being looked up or pulled.
    flights: HashMap<String, Flight>,
}

impl ImageStore {
    /// On the current runtime.
    pub(crate) fn new(engine: Engine, config: ImageStoreConfig) -> Self {
        let (runtime, tasks) = (Handle::current(), TaskTracker::new());
        let present = Arc::new(PresentImages::new());
        Self { engine, config, runtime, tasks, known: Mutex::default(), present }
    }

    /// References of the images that are here, as they change while [`Self::watch`] runs.
    pub(crate) fn present(&self) -> watch::Receiver<References> {
        self.present.subscribe()
    }

    /// Follows what comes and goes, for as long as it is polled.
    pub(crate) fn watch(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.present).watch(self.engine.clone())
    }

    /// Makes sure that `image` is here and may run. A pull goes on for the others when one caller leaves.
    pub(crate) async fn ensure(self: &Arc<Self>, image: &str) -> Outcome {
        let mut flight = {
            let mut known = self.lock();
            if known.good.get(image).is_some_and(|at| at.elapsed() < GOOD_FOR) {
                return Ok(ImageWait::Present);
            }
            match known.flights.get(image) {
                Some(flight) => flight.clone(),
                None => self.take_off(&mut known, image),
            }
        };
        if let Ok(outcome) = flight.wait_for(Option::is_some).await {
            return outcome.clone().expect("waited for");
        }
        self.lock().flights.remove(image);
        Err(Failure::internal("the image look-up was cut off"))
    }

    /// Forgets that `image` was found good.
    pub(crate) fn doubt(&self, image: &str) {
        self.lock().good.remove(image);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_off(self: &Arc<Self>, known: &mut Known, image: &str) -> Flight {
        let (landed, flight) = watch::channel(None);
        known.flights.insert(image.to_owned(), flight.clone());
        let (store, image) = (Arc::clone(self), image.to_owned());
        self.tasks.spawn_on(
            async move {
                let outcome = store.look_up(&image).await;
                let mut known = store.lock();
                known.flights.remove(&image);
                known.good.retain(|_, at| at.elapsed() < GOOD_FOR);
                if outcome.is_ok() {
                    store.present.found(&image);
                    known.good.insert(image, Instant::now());
                }
                landed.send_replace(Some(outcome));
            },
            &self.runtime,
        );
        flight
    }

    async fn look_up(&self, image: &str) -> Outcome {
        let Some(reference) = reference::parse(image) else {
            let words = format!("invalid image reference '{image}'");
            return Err(Failure::new(FailureKind::Image, 400, words));
        };
        let (found, wait) = match self.engine.inspect_image(image).await {
            Err(error) if status(&error) == Some(404) => {
                self.pull(image, &reference).await?;
                (self.engine.inspect_image(image).await, ImageWait::Pulled)
            }
            found => (found, ImageWait::Present),
        };
        let found =
            found.map_err(|error| Failure::internal(format!("inspect {image}: {}", explain(&error))))?;
        let volumes =
            found.config.and_then(|config| config.volumes).is_some_and(|volumes| !volumes.is_empty());
        if volumes && self.config.volumes == ImageVolumes::Refused {
            return Err(Failure::image_has_volume());
        }
        Ok(wait)
    }

    async fn pull(&self, image: &str, reference: &Reference<'_>) -> Result<(), Failure> {
        let credentials = self
            .config
            .logins
            .for_host(reference.host)
            .map_err(|error| Failure::image_pull(image, 502, &error.to_string()))?;
        tracing::info!(image, "pulling an image");
        let begun = Instant::now();
        let pull = self.engine.pull_image(reference.repository, reference.version, credentials);
        match tokio::time::timeout(self.config.pull_timeout, pull).await {
            Ok(Ok(())) => {
                tracing::info!(image, seconds = begun.elapsed().as_secs_f64(), "pulled an image");
                Ok(())
            }
            Ok(Err(error)) => {
                let message = explain(&error);
                tracing::warn!(image, error = message, "cannot pull an image");
                Err(Failure::image_pull(image, pull_status(&error, &message), &message))
            }
            Err(_elapsed) => Err(Failure::image_pull_timed_out()),
        }
    }
}

/// The registry's 4xx, else 502. The engine passes some of the registry's answers on as its own 500 or inside
/// a stream that began well; then the registry's error code (OCI distribution spec, "error codes"), which
/// opens or follows the message, says what it was.
fn pull_status(error: &Error, message: &str) -> u16 {
    if let Some(status @ 400..=499) = status(error) {
        return status;
    }
    let says = |words: &str| message.contains(words);
    if says("unauthorized: ") || says("no basic auth credentials") {
        401
    } else if says("denied: ") {
        403
    } else if says("manifest unknown") || says("name unknown") || says("not found: ") {
        404
    } else if says("toomanyrequests: ") {
        429
    } else {
        502
    }
}
