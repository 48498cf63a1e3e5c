//! A machine's identity as its connections use it: shared, and replaced while they run.
//!
//! Owns the current [`Identity`]. TLS settings made of it read it at each handshake, so that a renewed certificate or
//! another trusted CA holds from the next handshake on; connections that are open stay.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::certificate::unix_seconds;
use super::{Identity, IdentityError, Role};

/// How often the identity's file is looked at.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// What looking at the file brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// It holds the identity in use.
    Same,
    /// It holds another one, which is in use now.
    Changed,
}

/// A shared handle on a machine's identity. Cheap to clone; all clones change together.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    role: Role,
    current: ArcSwap<Identity>,
}

impl Credentials {
    /// Takes the identity in `folder` into use.
    ///
    /// # Errors
    /// There is none, or it is not fit to be used now as `role`.
    pub fn open(folder: &Path, role: Role, now: SystemTime) -> Result<Self, IdentityError> {
        let identity = Identity::load(folder, role, now)?;
        let credentials = Self(Arc::new(Shared {
            folder: folder.to_owned(),
            role,
            current: ArcSwap::from_pointee(identity),
        }));
        credentials.publish();
        Ok(credentials)
    }

    /// The identity in use.
    pub fn current(&self) -> Arc<Identity> {
        self.0.current.load_full()
    }

    /// Time until the certificate in use ends; zero once it has.
    pub fn expires_in(&self, now: SystemTime) -> Duration {
        self.0.current.load().validity().remaining(now)
    }

    /// Keeps a renewed identity in the folder and takes it into use. Waits for the disk.
    ///
    /// # Errors
    /// It is of another role or cannot be written; the old one stays in use.
    pub fn install(&self, identity: Identity) -> Result<(), IdentityError> {
        identity.expect_role(self.0.role, &self.0.folder)?;
        identity.save(&self.0.folder)?;
        self.take(identity);
        Ok(())
    }

    /// Looks at the file and takes what it holds into use. Waits for the disk.
    ///
    /// # Errors
    /// The file is gone or not fit to be used; the old identity stays in use.
    pub fn reload(&self, now: SystemTime) -> Result<Reload, IdentityError> {
        let identity = Identity::load(&self.0.folder, self.0.role, now)?;
        if identity.is_same(&self.0.current.load()) {
            return Ok(Reload::Same);
        }
        self.take(identity);
        Ok(Reload::Changed)
    }

    /// Takes changes of the file into use as they are noticed, until `stop`. A file that is not fit to be used is
    /// logged once and changes nothing.
    pub async fn watch(self, stop: CancellationToken) {
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: Option<String> = None;
        loop {
            // Both are cancel-safe.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let credentials = self.clone();
            // Reading races with `install`; should the older text win, the next look finds the newer one.
            let looked = spawn_blocking(move || credentials.reload(SystemTime::now())).await;
            let Ok(looked) = looked else { return }; // the runtime is shutting down
            let problem = looked.err().map(anyhow::Error::from).map(|error| format!("{error:#}"));
            if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(*problem)) {
                tracing::warn!("the identity in use stays, as a new one was refused: {problem}");
            }
            told = problem;
            self.publish();
        }
    }

    fn take(&self, identity: Identity) {
        tracing::info!(
            peer = %identity.peer(),
            expires_in_seconds = identity.validity().remaining(SystemTime::now()).as_secs(),
            "a new identity is in use",
        );
        self.0.current.store(Arc::new(identity));
        self.publish();
    }

    /// Tells the metrics when the certificate in use ends.
    fn publish(&self) {
        let ends = unix_seconds(self.0.current.load().validity().not_after);
        metrics::gauge!("kiln_identity_expiry_timestamp_seconds", "role" => self.0.role.as_str())
            .set(ends as f64);
    }
}
