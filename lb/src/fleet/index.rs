//! Where something is: for each key the nodes that have it, in a table whose copies share what did not change.
//!
//! Owned and written by the fleet's owner; views hold copies. Reading takes no lock, and a change costs time in
//! proportion to the nodes that have the key. Invariant: places are in the order of their nodes' serials.

use std::sync::Arc;

use super::node::NodeSerial;
use super::slots::Slots;
use crate::cow::CowTable;

/// What a node has of one key.
#[derive(Debug, Clone)]
pub(crate) struct Place<V> {
    /// The node.
    pub(crate) node: NodeSerial,
    /// What it has.
    pub(crate) value: V,
}

/// The containers of one revision of a function, by node.
pub(crate) type SlotPlace = Place<Arc<Slots>>;

/// The places of one key. Most keys have one, which then stands in the table itself: one wait for memory less.
#[derive(Debug, Clone)]
enum Places<V> {
    One(Place<V>),
    Many(Arc<[Place<V>]>),
}

impl<V: Clone> Places<V> {
    fn as_slice(&self) -> &[Place<V>] {
        match self {
            Self::One(place) => std::slice::from_ref(place),
            Self::Many(places) => places,
        }
    }

    /// `None` if there are none.
    fn of(mut places: Vec<Place<V>>) -> Option<Self> {
        match places.len() {
            0 => None,
            1 => places.pop().map(Self::One),
            _ => Some(Self::Many(places.into())),
        }
    }
}

/// Places by key.
#[derive(Debug, Clone)]
pub(crate) struct Index<K, V> {
    table: CowTable<(K, Places<V>)>,
}

impl<K: Copy + Eq, V: Clone> Index<K, V> {
    pub(crate) fn new() -> Self {
        Self { table: CowTable::new() }
    }

    /// The nodes that have `key`. O(1).
    pub(crate) fn get(&self, key: K, hash: u64) -> &[Place<V>] {
        self.table.get(hash, |entry| entry.0 == key).map_or(&[], |entry| entry.1.as_slice())
    }

    /// Notes that `node` has `key`.
    pub(crate) fn insert(&mut self, key: K, hash: u64, node: NodeSerial, value: V) {
        let mut places = self.get(key, hash).to_vec();
        match places.binary_search_by_key(&node, |place| place.node) {
            Ok(at) => places[at].value = value,
            Err(at) => places.insert(at, Place { node, value }),
        }
        self.put(key, hash, places);
    }

    /// Notes that `node` has no `key` any more.
    pub(crate) fn remove(&mut self, key: K, hash: u64, node: NodeSerial) {
        let places = self.get(key, hash);
        let Ok(at) = places.binary_search_by_key(&node, |place| place.node) else { return };
        let mut places = places.to_vec();
        places.remove(at);
        self.put(key, hash, places);
    }

    fn put(&mut self, key: K, hash: u64, places: Vec<Place<V>>) {
        match Places::of(places) {
            Some(places) => self.table.insert(hash, (key, places), |entry| entry.0 == key),
            None => self.table.remove(hash, |entry| entry.0 == key),
        }
    }
}

/// What `node` has, if anything. Most functions are on a few nodes, hot ones on many.
pub(crate) fn on<V>(places: &[Place<V>], node: NodeSerial) -> Option<&V> {
    const LOOKED_THROUGH_MAX: usize = 8;
    if places.len() <= LOOKED_THROUGH_MAX {
        return places.iter().find(|place| place.node == node).map(|place| &place.value);
    }
    places.binary_search_by_key(&node, |place| place.node).ok().map(|at| &places[at].value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_index_has_what_was_put_in_and_not_taken_out(
            steps in prop::collection::vec((0_u64..4, 0_u32..20, any::<Option<u8>>()), 0..200),
        ) {
            let mut index = Index::new();
            let mut model = BTreeMap::new();
            for (key, node, value) in steps {
                if let Some(value) = value {
                    index.insert(key, key, NodeSerial(node), value);
                    model.insert((key, node), value);
                } else {
                    index.remove(key, key, NodeSerial(node));
                    model.remove(&(key, node));
                }
            }
            for key in 0..4 {
                let places = index.get(key, key);
                prop_assert!(places.is_sorted_by_key(|place| place.node));
                for node in 0..20 {
                    prop_assert_eq!(on(places, NodeSerial(node)), model.get(&(key, node)));
                }
            }
        }
    }
}
