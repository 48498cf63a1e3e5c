//! Memory for the bodies of calls that are being taken in: from their first byte until they are stored.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What memory is counted in, in bytes.
const PAGE_BYTES: u64 = 1024;

/// Memory that bodies share. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct BodyMemory {
    pages: Arc<Semaphore>,
}

/// Memory of one body, free again when it is dropped.
#[derive(Debug)]
pub(super) struct BodyRoom(OwnedSemaphorePermit);

impl BodyMemory {
    pub(super) fn of_bytes(bytes: u64) -> Self {
        let pages = usize::try_from(bytes / PAGE_BYTES).unwrap_or(usize::MAX);
        Self { pages: Arc::new(Semaphore::new(pages.min(Semaphore::MAX_PERMITS))) }
    }

    /// Room for a body of at most so many bytes, if there is that much left.
    pub(super) fn take(&self, bytes: u64) -> Option<BodyRoom> {
        let pages = u32::try_from(pages(bytes)).ok()?;
        Arc::clone(&self.pages).try_acquire_many_owned(pages).ok().map(BodyRoom)
    }
}

impl BodyRoom {
    /// Gives back what the body did not need.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let needed = usize::try_from(pages(bytes)).unwrap_or(usize::MAX);
        drop(self.0.split(self.0.num_permits().saturating_sub(needed)));
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_no_more_than_there_is_and_give_back_what_they_do_not_need() {
        let memory = BodyMemory::of_bytes(3 * PAGE_BYTES);
        let mut large = memory.take(3 * PAGE_BYTES).expect("all of it");
        assert!(memory.take(1).is_none());
        assert!(memory.take(0).is_some(), "an empty body needs nothing");
        large.shrink_to(PAGE_BYTES + 1);
        let small = memory.take(PAGE_BYTES).expect("what was given back");
        assert!(memory.take(1).is_none());
        drop((large, small));
        assert!(memory.take(3 * PAGE_BYTES).is_some());
        assert!(memory.take(3 * PAGE_BYTES + 1).is_none());
    }
}
