//! The in-memory twin of a store of keys and values.

use super::{
    fault::{Faults, Op},
    power::{Counted, SimPower},
};
use bytes::Bytes;
use model::ports::{Batch, Change, Family, Store, StoreError};
use parking_lot::Mutex;
use rand::{Rng, RngCore};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Bound,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
};

type Pairs = BTreeMap<Vec<u8>, Bytes>;

/// What a store holds.
pub(super) type Kept = BTreeMap<Family, Arc<Pairs>>;

/// What changes replaced, in their order.
type Before = Vec<(Family, Vec<u8>, Option<Bytes>)>;

/// How many commits can be taken back with [`SimStore::lose_commits`].
const COMMITS_KEPT: usize = 256;

/// What the store is, whoever has it open.
#[derive(Debug)]
pub(super) struct Shelf {
    name: String,
    inner: Mutex<Inner>,
    faults: Faults,
    lazy_drops: AtomicBool,
    full: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Shared with readers until changed: a scan sees the store as it was when the scan began.
    live: Kept,
    /// What was dropped and may be there again after a power cut.
    ghosts: BTreeMap<Family, Pairs>,
    /// What the sync that the power cut struck would have changed.
    in_doubt: Option<Vec<Change>>,
    /// Before-values of the newest commits, oldest first.
    commits: VecDeque<Before>,
}

impl Inner {
    fn pairs(&self, family: Family) -> Arc<Pairs> {
        self.live.get(&family).cloned().unwrap_or_default()
    }

    fn pairs_mut(&mut self, family: Family) -> &mut Pairs {
        Arc::make_mut(self.live.entry(family).or_default())
    }

    /// Applies changes and answers what they replaced.
    fn apply(&mut self, changes: Vec<Change>) -> Before {
        let mut before = Vec::with_capacity(changes.len());
        for change in changes {
            let (family, key, value) = match change {
                Change::Put(family, key, value) => (family, key, Some(Bytes::from(value))),
                Change::Delete(family, key) => (family, key, None),
            };
            // Whatever is written now is newer than what was dropped.
            self.ghosts.entry(family).or_default().remove(&key);
            let pairs = self.pairs_mut(family);
            let old = match value {
                Some(value) => pairs.insert(key.clone(), value),
                None => pairs.remove(&key),
            };
            before.push((family, key, old));
        }
        before
    }
}

impl Shelf {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            inner: Mutex::default(),
            faults: Faults::default(),
            lazy_drops: AtomicBool::new(false),
            full: AtomicBool::new(false),
        }
    }

    /// What is durable.
    pub(super) fn image(&self) -> Kept {
        self.inner.lock().live.clone()
    }

    pub(super) fn put_back(&self, image: Kept) {
        *self.inner.lock() = Inner {
            live: image,
            ..Inner::default()
        };
    }

    pub(super) fn restart(&self, power_lost: bool, rng: &mut dyn RngCore) {
        let mut inner = self.inner.lock();
        if let Some(changes) = inner.in_doubt.take()
            && rng.random()
        {
            inner.apply(changes);
        }
        if !power_lost {
            return;
        }
        for (family, ghosts) in std::mem::take(&mut inner.ghosts) {
            // Files come back, not keys: neighbours share their fate for a while.
            let (mut back, mut left) = (false, 0);
            for (key, value) in ghosts {
                if left == 0 {
                    (back, left) = (rng.random(), rng.random_range(1..20));
                }
                left -= 1;
                if back {
                    inner.pairs_mut(family).entry(key).or_insert(value);
                }
            }
        }
    }
}

/// In-memory twin of a store of keys and values; made by [`SimPower::store`]. Clones share one open handle.
#[derive(Clone, Debug)]
pub struct SimStore {
    power: SimPower,
    shelf: Arc<Shelf>,
    epoch: u64,
}

fn io(op: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { op, source }
}

impl SimStore {
    pub(super) fn new(power: SimPower, shelf: Arc<Shelf>, epoch: u64) -> Self {
        Self { power, shelf, epoch }
    }

    /// Opens the same store again, as the process that runs now.
    #[must_use]
    pub fn reopen(&self) -> Self {
        self.power.store(&self.shelf.name)
    }

    /// The `n`-th (1-based) operation of this kind from now on fails with EIO, once, and changes nothing.
    pub fn fail(&self, op: Op, n: u64) {
        self.shelf.faults.arm(op, n);
    }

    /// Takes back every armed fault.
    pub fn heal(&self) {
        self.shelf.faults.disarm();
    }

    /// Whether there is no room for what is ingested; batches still fit.
    pub fn set_full(&self, full: bool) {
        self.shelf.full.store(full, Ordering::Relaxed);
    }

    /// Whether [`Store::drop_range`] leaves the keys where they are, as it may; it removes them unless told.
    pub fn set_lazy_drops(&self, lazy: bool) {
        self.shelf.lazy_drops.store(lazy, Ordering::Relaxed);
    }

    /// Takes the newest `n` commits back, as a damaged write-ahead log does without a word (`rules.md` T7). Ingests stay.
    /// To be called between a restart and the next open.
    ///
    /// # Panics
    /// When there were fewer commits, or more than are remembered (256).
    pub fn lose_commits(&self, n: usize) {
        let mut inner = self.shelf.inner.lock();
        for _ in 0..n {
            let before = inner.commits.pop_back().expect("so many commits are remembered");
            for (family, key, old) in before.into_iter().rev() {
                let pairs = inner.pairs_mut(family);
                match old {
                    Some(value) => pairs.insert(key, value),
                    None => pairs.remove(&key),
                };
            }
        }
    }

    /// Commits that [`SimStore::lose_commits`] can take back.
    #[must_use]
    pub fn commits_kept(&self) -> usize {
        self.shelf.inner.lock().commits.len()
    }

    /// Flips one bit of a value: damage at rest. `false` when there is no such key or byte.
    pub fn flip_bit(&self, family: Family, key: &[u8], byte: usize, bit: u8) -> bool {
        let mut inner = self.shelf.inner.lock();
        let Some(value) = inner.pairs_mut(family).get_mut(key) else {
            return false;
        };
        let mut changed = value.to_vec();
        let Some(b) = changed.get_mut(byte) else {
            return false;
        };
        *b ^= 1 << (bit % 8);
        *value = Bytes::from(changed);
        true
    }

    /// Every pair of a family, whatever the state of the power: for tests that look inside.
    #[must_use]
    pub fn dump(&self, family: Family) -> Vec<(Vec<u8>, Bytes)> {
        let pairs = self.shelf.inner.lock().pairs(family);
        pairs.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn read(&self, family: Family, op: &'static str) -> Result<Arc<Pairs>, StoreError> {
        let _alive = self.power.alive(self.epoch).map_err(io(op))?;
        self.shelf.faults.strike(Op::Read).map_err(io(op))?;
        Ok(self.shelf.inner.lock().pairs(family))
    }

    /// Applies changes as one durable step, or not at all; a power cut in its middle leaves it to chance.
    fn change(&self, op: &'static str, changes: Vec<Change>, is_commit: bool) -> Result<(), StoreError> {
        let _alive = self.power.writable(self.epoch).map_err(io(op))?;
        let mut inner = self.shelf.inner.lock();
        match self.power.count_sync() {
            Counted::Completes => {}
            Counted::Frozen => {
                inner.in_doubt = Some(changes);
                return Err(io(op)(SimPower::off_error()));
            }
            Counted::Off => return Err(io(op)(SimPower::off_error())),
        }
        self.shelf.faults.strike(Op::Sync).map_err(io(op))?;
        let before = inner.apply(changes);
        if is_commit {
            if inner.commits.len() == COMMITS_KEPT {
                inner.commits.pop_front();
            }
            inner.commits.push_back(before);
        }
        Ok(())
    }
}

/// The pairs of a map with `from <= key < to`; none when the range is turned around.
fn between<'a>(
    pairs: &'a Pairs,
    from: &[u8],
    to: &[u8],
) -> std::collections::btree_map::Range<'a, Vec<u8>, Bytes> {
    pairs.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to.max(from))))
}

impl Store for SimStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read(family, "get")?.get(key).cloned())
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let pairs = self.read(family, "scan")?;
        if from < to {
            for (key, value) in between(&pairs, from, to) {
                if !visit(key, value) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn first_of_each(
        &self,
        family: Family,
        ranges: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Vec<Option<(Vec<u8>, Bytes)>>, StoreError> {
        if !ranges.is_sorted() {
            return Err(StoreError::Library {
                op: "first_of_each",
                text: "the ranges do not rise".to_owned(),
            });
        }
        let pairs = self.read(family, "first_of_each")?;
        Ok(ranges
            .iter()
            .map(|(from, to)| {
                let mut found = (from < to).then(|| between(&pairs, from, to))?;
                found.next().map(|(k, v)| (k.clone(), v.clone()))
            })
            .collect())
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        let pairs = self.read(family, "last")?;
        if from >= to {
            return Ok(None);
        }
        Ok(between(&pairs, from, to)
            .next_back()
            .map(|(k, v)| (k.clone(), v.clone())))
    }

    fn ingest(
        &self,
        family: Family,
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<(), StoreError> {
        if self.shelf.full.load(Ordering::Relaxed) {
            return Err(io("ingest")(io::ErrorKind::StorageFull.into()));
        }
        let mut changes: Vec<Change> = Vec::new();
        for (key, value) in pairs {
            if let Some(Change::Put(_, last, _)) = changes.last()
                && *last >= key
            {
                return Err(StoreError::Library {
                    op: "ingest",
                    text: "keys do not rise".to_owned(),
                });
            }
            changes.push(Change::Put(family, key, value.to_vec()));
        }
        self.change("ingest", changes, false)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.change("commit", batch.0, true)
    }

    fn drop_range(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        let _alive = self.power.writable(self.epoch).map_err(io("drop_range"))?;
        self.shelf.faults.strike(Op::Write).map_err(io("drop_range"))?;
        if self.shelf.lazy_drops.load(Ordering::Relaxed) || from >= to {
            return Ok(());
        }
        let mut inner = self.shelf.inner.lock();
        let dropped: Pairs = between(&inner.pairs(family), from, to)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        for key in dropped.keys() {
            inner.pairs_mut(family).remove(key);
        }
        let ghosts = inner.ghosts.entry(family).or_default();
        for (key, value) in dropped {
            ghosts.insert(key, value);
        }
        Ok(())
    }
}
