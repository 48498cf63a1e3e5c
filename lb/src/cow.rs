//! A hash table whose copies share what did not change.
//!
//! Owns nothing but the sharing: 256 tables behind reference counts. Copying takes a count for each; the first
//! change to a table that a copy still holds copies that one table, so that a batch of changes to a large
//! catalog costs time in proportion to the batch.

use std::sync::Arc;

use hashbrown::HashTable;

const SHARDS: usize = 256;

#[derive(Debug, Clone)]
struct Hashed<T> {
    hash: u64,
    value: T,
}

/// A table of `T`, found by a hash and an equality that the caller gives.
#[derive(Debug, Clone)]
pub(crate) struct CowTable<T> {
    shards: Box<[Arc<HashTable<Hashed<T>>>]>,
}

impl<T: Clone> CowTable<T> {
    pub(crate) fn new() -> Self {
        let empty = Arc::new(HashTable::new());
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect() }
    }

    /// O(1).
    pub(crate) fn get(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<&T> {
        let shard = &self.shards[shard_of(hash)];
        shard.find(hash, |entry| entry.hash == hash && is_it(&entry.value)).map(|entry| &entry.value)
    }

    /// Puts `value` in the place of the one that `is_it`, or adds it.
    pub(crate) fn insert(&mut self, hash: u64, value: T, is_it: impl Fn(&T) -> bool) {
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        match shard.find_mut(hash, |entry| entry.hash == hash && is_it(&entry.value)) {
            Some(entry) => entry.value = value,
            None => drop(shard.insert_unique(hash, Hashed { hash, value }, |entry| entry.hash)),
        }
    }

    /// Removes the one that `is_it`, if there is one.
    pub(crate) fn remove(&mut self, hash: u64, is_it: impl Fn(&T) -> bool) {
        if self.get(hash, &is_it).is_none() {
            return;
        }
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        if let Ok(entry) = shard.find_entry(hash, |entry| entry.hash == hash && is_it(&entry.value)) {
            entry.remove();
        }
    }

    /// All values, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|entry| &entry.value)
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }
}

/// Bits that the tables themselves do not look at: they use the lowest and the highest.
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn hash(key: u8) -> u64 {
        // Some keys share a hash, as keys that an attacker chose would.
        xxh3_64(&[key / 3])
    }

    fn contents(table: &CowTable<(u8, u16)>) -> HashMap<u8, u16> {
        (0..=u8::MAX).filter_map(|key| table.get(hash(key), |entry| entry.0 == key).copied()).collect()
    }

    proptest! {
        #[test]
        fn it_does_what_a_map_does_and_copies_keep_what_they_had(
            changes in prop::collection::vec((any::<u8>(), prop::option::of(any::<u16>())), 0..300),
            copy_at: prop::sample::Index,
        ) {
            let mut table = CowTable::new();
            let mut model = HashMap::new();
            let copy_at = copy_at.index(changes.len().max(1));
            let mut copy = None;
            for (at, &(key, value)) in changes.iter().enumerate() {
                if at == copy_at {
                    copy = Some((table.clone(), model.clone()));
                }
                if let Some(value) = value {
                    table.insert(hash(key), (key, value), |entry| entry.0 == key);
                    model.insert(key, value);
                } else {
                    table.remove(hash(key), |entry| entry.0 == key);
                    model.remove(&key);
                }
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(contents(&table), model);
            if let Some((table, model)) = copy {
                prop_assert_eq!(contents(&table), model);
            }
        }
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut table = CowTable::new();
        for key in 0..=u8::MAX {
            table.insert(hash(key), (key, 0_u16), |entry| entry.0 == key);
        }
        let before = table.clone();
        table.insert(hash(9), (9, 1), |entry| entry.0 == 9);
        let copied =
            before.shards.iter().zip(&table.shards).filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert_eq!(copied, 1);
    }
}
