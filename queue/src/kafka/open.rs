//! From a URL to an open queue in a topic.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::follower::Follower;
use super::load::{LoadError, load};
use super::log::{Log, LogError, prepare};
use super::place::Place;
use super::writer::Writer;
use super::{Kafka, Limits};
use crate::engine::{Core, EngineQueue};
use crate::{OpenError, Options};

/// Writes that wait for the one under way; more callers wait for room.
const WRITES_MAX: usize = 1024;

/// Opens `kafka://...`: makes the topic if it is not there, and reads what the queue holds.
pub(crate) async fn open(url: &str, options: Options) -> Result<EngineQueue<Kafka>, OpenError> {
    let place = Place::parse(url)?;
    let limits = Limits { memory_bytes: place.memory_bytes, image_bytes: place.image_bytes };
    prepare(&place).await.map_err(|error| refused(&place.name, error))?;
    let log = Arc::new(Log::new(Arc::new(place)));
    let origin = rand::random();
    let replica = load(&log, origin).await.map_err(|error| unread(log.name(), error))?;
    let core = Arc::new(Core::new(options));
    let follower = Arc::new(Follower::new(Arc::clone(&core), origin, replica));
    let (asked, writes) = mpsc::channel(WRITES_MAX);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let writing =
        Writer { log: Arc::clone(&log), follower: Arc::clone(&follower), core: Arc::clone(&core), origin };
    tasks.spawn(writing.run(writes, stop.clone()));
    let kafka = Kafka {
        log,
        follower,
        core: Arc::clone(&core),
        writes: asked,
        limits,
        is_imaging: Arc::new(AtomicBool::new(false)),
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    tasks.spawn(kafka.clone().follow());
    Ok(EngineQueue::new(kafka, core, tasks, stop))
}

fn refused(queue: &str, error: LogError) -> OpenError {
    let queue = queue.to_owned();
    match error {
        // A topic that was made a moment ago is not known to all servers at once.
        error @ (LogError::Away(_) | LogError::NoTopic(_)) => {
            OpenError::Unreachable { queue, reason: error.to_string() }
        }
        error => OpenError::Refused { queue, reason: error.to_string() },
    }
}

fn unread(queue: &str, error: LoadError) -> OpenError {
    match error {
        LoadError::Log(error) => refused(queue, error),
        LoadError::Broken(broken) => {
            OpenError::Schema { queue: queue.to_owned(), reason: broken.to_string() }
        }
        LoadError::Incomplete { .. } => {
            OpenError::Incomplete { queue: queue.to_owned(), reason: error.to_string() }
        }
    }
}
