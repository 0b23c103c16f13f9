//! What a folder holds: names, live and durable apart.

use super::Order;
use rand::{Rng, RngCore};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

/// Names with the numbers of what they name.
pub(super) type Entries = BTreeMap<OsString, u64>;

/// Names that change together: a new one, one that goes, or both of a renaming.
type Change = Vec<(OsString, Option<u64>)>;

#[derive(Debug, Default)]
pub(super) struct Names {
    live: Entries,
    durable: Entries,
    /// `live` is `durable` after these, in order.
    unsynced: Vec<Change>,
}

fn apply(change: &Change, entries: &mut Entries) {
    for (name, node) in change {
        match node {
            Some(node) => entries.insert(name.clone(), *node),
            None => entries.remove(name),
        };
    }
}

impl Names {
    pub(super) fn of(durable: Entries) -> Self {
        Self {
            live: durable.clone(),
            durable,
            unsynced: Vec::new(),
        }
    }

    pub(super) fn get(&self, name: &OsStr) -> Option<u64> {
        self.live.get(name).copied()
    }

    pub(super) fn live(&self) -> &Entries {
        &self.live
    }

    /// What a power cut leaves for certain.
    pub(super) fn durable(&self) -> &Entries {
        &self.durable
    }

    pub(super) fn change(&mut self, change: Change) {
        apply(&change, &mut self.live);
        self.unsynced.push(change);
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
        self.durable = self.live.clone();
    }

    /// Everything that is named here now, or may be after a power cut.
    pub(super) fn named(&self) -> impl Iterator<Item = u64> {
        let changed = self.unsynced.iter().flatten().filter_map(|(_, node)| *node);
        let both = self.live.values().chain(self.durable.values()).copied();
        both.chain(changed)
    }

    /// What a power cut leaves now: of the changes that no sync has made durable those up to one, or, where no order is kept,
    /// any, but none without those before it of the same names. A renaming is there wholly or not at all.
    pub(super) fn after_cut(&self, order: Order, rng: &mut dyn RngCore) -> Entries {
        let n = self.unsynced.len();
        let (first, one, chance) = (
            rng.random_range(0..=n),
            rng.random_range(0..n.max(1)),
            f64::from(rng.random_range(1..10)) / 10.0,
        );
        let mood = match order {
            Order::Any => rng.random_range(0..10),
            Order::Kept => rng.random_range(0..4),
        };
        let mut entries = self.durable.clone();
        let mut lost = BTreeSet::new();
        for (i, change) in self.unsynced.iter().enumerate() {
            let kept = match mood {
                0 => false,
                1 => true,
                2 | 3 => i < first,
                4 | 5 => i != one,
                6 => i == one,
                _ => rng.random_bool(chance),
            };
            if kept && change.iter().all(|(name, _)| !lost.contains(name)) {
                apply(change, &mut entries);
            } else {
                lost.extend(change.iter().map(|(name, _)| name));
            }
        }
        entries
    }
}
