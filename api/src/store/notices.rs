//! Word of the newest revision, for all who keep a copy of the catalog.
//!
//! Owns one watched value. Invariant: its revision falls only if the database itself went back, as one does that
//! was restored from a backup or is another one now; then, and whenever the database was away, `sight` grows.

use tokio::sync::watch;

/// The newest that is known of the catalog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latest {
    /// Its newest revision; 0 while nothing was ever stored, or the database was not reached yet.
    pub revision: u64,
    /// How often the database came into sight. When this has grown, a copy that was current before may be of
    /// another database or of another history: check it with [`crate::Catalog::changes_since`].
    pub sight: u64,
}

/// The value and who may change it.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    latest: watch::Sender<Latest>,
}

impl Notices {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Latest> {
        self.latest.subscribe()
    }

    /// The revision to hand to [`Self::read`] and [`Self::found`]: take it before reading the database.
    pub(super) fn known(&self) -> u64 {
        self.latest.borrow().revision
    }

    /// A change of this process's own was committed. Commits may report out of order.
    pub(crate) fn committed(&self, revision: u64) {
        self.latest.send_if_modified(|latest| {
            let newer = revision > latest.revision;
            latest.revision = revision.max(latest.revision);
            newer
        });
    }

    /// The database was read while it was in sight. It is at `revision` and should be at `known` at least.
    pub(super) fn read(&self, known: u64, revision: u64) {
        if revision < known { self.found(known, revision) } else { self.committed(revision) }
    }

    /// The database was read for the first time, or again after it was away.
    pub(super) fn found(&self, known: u64, revision: u64) {
        self.latest.send_modify(|latest| {
            // What was committed while the database was read is newer than what was read.
            latest.revision = if revision < known { revision } else { revision.max(latest.revision) };
            latest.sight += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_report_does_not_take_the_revision_back() {
        let notices = Notices::default();
        let mut latest = notices.subscribe();
        notices.committed(3);
        assert!(latest.has_changed().expect("lives"));
        latest.mark_unchanged();
        notices.committed(2);
        let known = notices.known();
        notices.committed(4);
        notices.read(known, 3);
        assert_eq!(*latest.borrow(), Latest { revision: 4, sight: 0 });
        notices.found(known, 3);
        assert_eq!(*latest.borrow(), Latest { revision: 4, sight: 1 });
        latest.mark_unchanged();
        notices.read(4, 4);
        assert!(!latest.has_changed().expect("lives"), "nothing new wakes nobody");
    }

    #[test]
    fn a_database_that_went_back_is_told_as_one_newly_found() {
        let notices = Notices::default();
        notices.found(0, 10);
        notices.read(10, 7);
        assert_eq!(*notices.subscribe().borrow(), Latest { revision: 7, sight: 2 });
        notices.found(7, 2);
        assert_eq!(*notices.subscribe().borrow(), Latest { revision: 2, sight: 3 });
    }
}
