//! The power supply that all simulated media and stores hang on.

use super::{
    files::{Cabinet, SimFiles, TreeImage},
    medium::{Disk, SimMedium},
    pages::Pages,
    store::{Kept, Shelf, SimStore},
    tear::Tear,
};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rand::RngCore;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Weak},
};

/// Everything of one simulated host that a power cut strikes: named media, stores and file systems, one count of syncs over all.
///
/// A cheap handle: clones are the same supply. See the [crate](crate) documentation for how a test uses it.
#[derive(Clone, Debug, Default)]
pub struct SimPower {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Counts restarts of the process. Every operation holds this for reading, so that none straddles a cut.
    epoch: RwLock<u64>,
    meter: Mutex<Meter>,
    media: Mutex<BTreeMap<String, Arc<Disk>>>,
    stores: Mutex<BTreeMap<String, Arc<Shelf>>>,
    files: Mutex<BTreeMap<String, Arc<Cabinet>>>,
}

#[derive(Debug, Default)]
struct Meter {
    syncs: u64,
    freeze_at: Option<u64>,
    off: bool,
    tear: Tear,
}

/// What all media, stores and file systems of a supply held durably at one moment: [`SimPower::image`].
#[derive(Clone, Debug)]
pub struct Image {
    media: BTreeMap<String, Pages>,
    stores: BTreeMap<String, Kept>,
    files: BTreeMap<String, TreeImage>,
}

/// Proof that the process that opened a handle still runs; while it is held, no cut happens.
pub(super) struct Alive<'a> {
    _epoch: RwLockReadGuard<'a, u64>,
}

fn off() -> io::Error {
    io::Error::other("power is off")
}

impl SimPower {
    /// A supply that is on, with nothing attached.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the medium `name`, as the process that runs now; it is made (all zero) when there is none.
    ///
    /// # Panics
    /// When it exists with another length.
    #[must_use]
    pub fn medium(&self, name: &str, len: u64) -> SimMedium {
        let epoch = self.shared.epoch.read();
        let mut media = self.shared.media.lock();
        let disk = media
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Disk::new(name, len)));
        assert_eq!(disk.len(), len, "length of medium {name}");
        SimMedium::new(self.clone(), Arc::clone(disk), *epoch)
    }

    /// Opens the store `name`, as the process that runs now; it is made (empty) when there is none.
    #[must_use]
    pub fn store(&self, name: &str) -> SimStore {
        let epoch = self.shared.epoch.read();
        let mut stores = self.shared.stores.lock();
        let shelf = stores
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Shelf::new(name)));
        SimStore::new(self.clone(), Arc::clone(shelf), *epoch)
    }

    /// The file system `name`; it is made (empty) when there is none.
    #[must_use]
    pub fn files(&self, name: &str) -> SimFiles {
        let mut files = self.shared.files.lock();
        let cabinet = files
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Cabinet::new()));
        SimFiles::new(self.clone(), Arc::clone(cabinet))
    }

    /// Whether a medium of this name was ever opened.
    #[must_use]
    pub fn has_medium(&self, name: &str) -> bool {
        self.shared.media.lock().contains_key(name)
    }

    /// Where unsynced writes may be torn by later cuts; [`Tear::Sector`] unless told.
    pub fn set_tear(&self, tear: Tear) {
        self.shared.meter.lock().tear = tear;
    }

    /// Whether a file system of this name was ever asked for.
    #[must_use]
    pub fn has_files(&self, name: &str) -> bool {
        self.shared.files.lock().contains_key(name)
    }

    /// Syncs, commits and ingests so far, those that did not complete included.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.meter.lock().syncs
    }

    /// The `n`-th sync, commit or ingest from now on (1-based) does not complete: it and every write and sync after it
    /// fails with "power is off", until [`SimPower::cut`] or [`SimPower::kill`]. Reads go on.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn freeze_at(&self, n: u64) {
        assert!(n > 0, "syncs are counted from 1");
        let mut meter = self.shared.meter.lock();
        meter.freeze_at = Some(meter.syncs + n);
    }

    /// Takes back [`SimPower::freeze_at`], if it has not struck yet.
    pub fn never_freeze(&self) {
        self.shared.meter.lock().freeze_at = None;
    }

    /// Freezes at once, between two syncs.
    pub fn freeze_now(&self) {
        self.shared.meter.lock().off = true;
    }

    /// Whether the supply is frozen.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.shared.meter.lock().off
    }

    /// A power cut and the next boot: each medium keeps what was durable and, by chance, parts of what was not; old
    /// handles are dead; the supply is on again and no freeze is armed.
    pub fn cut(&self, rng: &mut dyn RngCore) {
        self.restart(rng, true);
    }

    /// `kill -9` of the process and its next start: what was written is still there to be read, but counts as not durable,
    /// so that a later [`SimPower::cut`] can lose it; old handles are dead; the supply is on again and no freeze is armed.
    /// A commit or ingest that was under way is there or not by chance.
    pub fn kill(&self, rng: &mut dyn RngCore) {
        self.restart(rng, false);
    }

    /// What a power cut now would leave for certain.
    #[must_use]
    pub fn image(&self) -> Image {
        let (media, stores) = (self.shared.media.lock(), self.shared.stores.lock());
        let files = self.shared.files.lock();
        Image {
            media: media.iter().map(|(name, d)| (name.clone(), d.image())).collect(),
            stores: stores.iter().map(|(name, s)| (name.clone(), s.image())).collect(),
            files: files.iter().map(|(name, c)| (name.clone(), c.image())).collect(),
        }
    }

    /// The next boot of a machine that was put back to an older state of itself: a power cut of disks that had lied about
    /// every sync since, or a backup of the machine. Nothing that is left can tell.
    pub fn put_back(&self, image: &Image) {
        let mut epoch = self.shared.epoch.write();
        *epoch += 1;
        self.switch_on();
        for (name, disk) in self.shared.media.lock().iter() {
            disk.put_back(image.media.get(name).cloned().unwrap_or_default());
        }
        for (name, shelf) in self.shared.stores.lock().iter() {
            shelf.put_back(image.stores.get(name).cloned().unwrap_or_default());
        }
        for (name, cabinet) in self.shared.files.lock().iter() {
            cabinet.put_back(image.files.get(name).cloned().unwrap_or_default());
        }
    }

    /// No freeze is armed; answers where writes may be torn.
    fn switch_on(&self) -> Tear {
        let mut meter = self.shared.meter.lock();
        meter.off = false;
        meter.freeze_at = None;
        meter.tear
    }

    fn restart(&self, rng: &mut dyn RngCore, power_lost: bool) {
        let mut epoch = self.shared.epoch.write();
        *epoch += 1;
        let tear = self.switch_on();
        for disk in self.shared.media.lock().values() {
            if power_lost {
                disk.cut(tear, rng);
            }
        }
        for shelf in self.shared.stores.lock().values() {
            shelf.restart(power_lost, rng);
        }
        for cabinet in self.shared.files.lock().values() {
            cabinet.restart(power_lost, tear, rng);
        }
    }

    /// Counts restarts of the process.
    pub(super) fn epoch(&self) -> u64 {
        *self.shared.epoch.read()
    }

    /// For what serves a process of `epoch` and must not keep the supply alive.
    pub(super) fn weak(&self, epoch: u64) -> WeakPower {
        WeakPower {
            shared: Arc::downgrade(&self.shared),
            epoch,
        }
    }

    /// Admits a read by a handle opened in `epoch`.
    pub(super) fn alive(&self, epoch: u64) -> io::Result<Alive<'_>> {
        let now = self.shared.epoch.read();
        if *now == epoch {
            Ok(Alive { _epoch: now })
        } else {
            Err(io::Error::other("the process that opened this is gone"))
        }
    }

    /// Admits a write.
    pub(super) fn writable(&self, epoch: u64) -> io::Result<Alive<'_>> {
        let alive = self.alive(epoch)?;
        if self.shared.meter.lock().off {
            Err(off())
        } else {
            Ok(alive)
        }
    }

    /// Counts a sync and says whether it completes. The caller holds what it makes durable locked.
    pub(super) fn count_sync(&self) -> Counted {
        let mut meter = self.shared.meter.lock();
        if meter.off {
            return Counted::Off;
        }
        meter.syncs += 1;
        if meter.freeze_at == Some(meter.syncs) {
            meter.off = true;
            return Counted::Frozen;
        }
        Counted::Completes
    }

    pub(super) fn off_error() -> io::Error {
        off()
    }
}

/// The supply, for one life of the process, as long as somebody else has it.
pub(super) struct WeakPower {
    shared: Weak<Shared>,
    epoch: u64,
}

impl WeakPower {
    fn power(&self) -> Option<SimPower> {
        let shared = self.shared.upgrade()?;
        Some(SimPower { shared })
    }

    /// Does something that a process may do without power; `None`: the process is gone.
    pub(super) fn reading<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let power = self.power()?;
        let _alive = power.alive(self.epoch).ok()?;
        Some(act())
    }

    /// Changes something; `None`: there is no power, or the process is gone.
    pub(super) fn writing<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let power = self.power()?;
        let _alive = power.writable(self.epoch).ok()?;
        Some(act())
    }

    /// Counts a sync, and does it if it completes.
    pub(super) fn syncing<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let power = self.power()?;
        let _alive = power.writable(self.epoch).ok()?;
        (power.count_sync() == Counted::Completes).then(act)
    }
}

/// What became of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// It completes.
    Completes,
    /// The power went away in its middle.
    Frozen,
    /// The power was away before it began.
    Off,
}
