//! Snapshots, vdevs and named readers of a recovery host.
//!
//! A snapshot is a pinned [`View`] with a level, and for each volume a [`Vdev`] over it whose writes go to a private overlay.
//! Its pin is durable before its level is known to anyone (rule V3), so after a restart [`Views::open`] finds it again,
//! overlays included. The overlay is made when a vdev is opened for the first time. One whose overlay is gone or damaged keeps
//! its pin, its level and its point; it only has no vdev until it is released. A named reader (`c1/data@mark:good`) is the same
//! without a level; it lives as long as its connection.

use super::{ContextError, overlays::OverlayFolder, sizes_at};
use journal::{Journal, JournalError, PinKind, PinRow, ResolveError};
use model::{Level, Point, Target, Timestamp, ports::History};
use parking_lot::Mutex;
use snapshot::{Vdev, View, Volumes};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The target is not reachable.
    #[error(transparent)]
    Target(#[from] ResolveError),
    /// Something below failed.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The name is taken.
    #[error("snapshot name '{name}' is taken by level {level}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        level: Level,
    },
    /// The replica cannot be used yet.
    #[error("the replica is not consistent: the first sync is not complete")]
    NotConsistent,
}

impl From<JournalError> for SnapshotError {
    fn from(e: JournalError) -> Self {
        Self::Context(e.into())
    }
}

impl From<snapshot::SnapshotError> for SnapshotError {
    fn from(e: snapshot::SnapshotError) -> Self {
        Self::Context(e.into())
    }
}

/// One operator snapshot.
pub struct Snapshot {
    /// Its level.
    pub level: Level,
    /// Its name, if the operator gave one.
    pub name: Option<String>,
    /// What was asked for.
    pub target: String,
    /// When it was taken.
    pub created: Timestamp,
    /// Its pin.
    pub pin: u64,
    /// What it shows.
    pub view: Arc<View>,
    overlay: OverlayFolder,
    /// `None`: nobody has needed one; or what is wrong with its overlay.
    made: Mutex<Result<Option<Arc<Vdev>>, String>>,
}

impl Snapshot {
    /// Its read-write devices, one for each volume, over one overlay. The first call makes the overlay.
    ///
    /// # Errors
    /// What is wrong with the overlay, or why there cannot be one now.
    pub fn vdev(&self) -> Result<Arc<Vdev>, String> {
        let mut made = self.made.lock();
        if let Some(vdev) = made.as_ref().map_err(Clone::clone)? {
            return Ok(Arc::clone(vdev));
        }
        let overlay = self.overlay.make().map_err(|e| e.to_string())?;
        let vdev = Arc::new(Vdev::new(Arc::clone(&self.view), overlay));
        *made = Ok(Some(Arc::clone(&vdev)));
        Ok(vdev)
    }

    /// Its read-write devices, if anybody has needed them.
    ///
    /// # Errors
    /// What is wrong with the overlay.
    pub fn made_vdev(&self) -> Result<Option<Arc<Vdev>>, String> {
        self.made.lock().clone()
    }

    /// Its point.
    #[must_use]
    pub fn point(&self) -> &Point {
        self.view.point()
    }
}

/// A named reader as `pins` shows it.
#[derive(Clone, Debug)]
pub struct ReaderInfo {
    /// What it reads.
    pub point: Point,
    /// What it asked for.
    pub target: String,
    /// Since when.
    pub since: Timestamp,
}

/// A named reader: its view, and its overlay when it was asked for with `+rw`.
pub struct Reader {
    /// What it shows.
    pub view: Arc<View>,
    /// Its private writes; gone with the reader.
    pub vdev: Option<Vdev>,
    scratch: Option<PathBuf>,
    number: u64,
    open: Arc<Mutex<BTreeMap<u64, ReaderInfo>>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
        if let Some(folder) = &self.scratch {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// The snapshots of a context.
pub struct Views {
    journal: Arc<Journal>,
    volumes: Arc<Volumes>,
    overlays: PathBuf,
    overlay_bytes: u64,
    state: Mutex<State>,
    readers: Arc<Mutex<BTreeMap<u64, ReaderInfo>>>,
    open: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    snapshots: BTreeMap<Level, Arc<Snapshot>>,
    readers: u64,
}

/// Whether the views of one time as a replica may still be read.
#[derive(Clone)]
pub struct Lifeline(Arc<AtomicBool>);

impl Lifeline {
    /// Whether they may.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Views {
    /// Opens every snapshot that is pinned, and removes overlays that belong to none.
    ///
    /// # Errors
    /// When the pins cannot be read. An overlay that cannot be opened costs its snapshot the vdev and nobody else anything.
    pub fn open(
        journal: &Arc<Journal>,
        volumes: &Arc<Volumes>,
        overlays: PathBuf,
        overlay_bytes: u64,
    ) -> Result<Self, ContextError> {
        let views = Self {
            journal: Arc::clone(journal),
            volumes: Arc::clone(volumes),
            overlays,
            overlay_bytes,
            state: Mutex::default(),
            readers: Arc::default(),
            open: Arc::new(AtomicBool::new(true)),
        };
        let mut snapshots = BTreeMap::new();
        for pin in journal.pins()? {
            if let PinKind::Snapshot { level, .. } = &pin.kind {
                let level = *level;
                snapshots.insert(level, Arc::new(views.pinned(pin)?));
            }
        }
        if let Ok(folder) = std::fs::read_dir(&views.overlays) {
            let kept: Vec<PathBuf> = snapshots.keys().map(|l| views.overlay_dir(*l)).collect();
            for entry in folder.flatten().map(|e| e.path()).filter(|p| !kept.contains(p)) {
                let _ = std::fs::remove_dir_all(entry);
            }
        }
        views.state.lock().snapshots = snapshots;
        Ok(views)
    }

    fn overlay_dir(&self, level: Level) -> PathBuf {
        self.overlays.join(format!("sn{level}"))
    }

    fn view(&self, point: Point) -> Result<Arc<View>, ContextError> {
        let history: Arc<dyn History> = Arc::clone(&self.journal) as Arc<dyn History>;
        let volumes = Volumes::clone(&self.volumes);
        let sizes = sizes_at(&self.journal, &volumes, &point);
        Ok(Arc::new(View::new(point, sizes, volumes, history)?))
    }

    /// The folder of an overlay. The pin will be durable, so the way to it is, too.
    fn overlay(&self, folder: PathBuf, id: u64) -> OverlayFolder {
        let context = self.overlays.parent().unwrap_or(&self.overlays);
        OverlayFolder::new(context.to_owned(), folder, self.overlay_bytes, id)
    }

    /// The snapshot that a pin keeps.
    fn pinned(&self, pin: PinRow) -> Result<Snapshot, ContextError> {
        let PinKind::Snapshot { level, name } = pin.kind else {
            return Err(JournalError::Internal("a snapshot of a pin that is none").into());
        };
        let view = self.view(pin.point)?;
        let overlay = self.overlay(self.overlay_dir(level), pin.created.0);
        let found = overlay.open().map_err(|e| {
            tracing::error!("the overlay of snapshot {level} cannot be used: {e}");
            e.to_string()
        });
        let vdev = |overlay| Arc::new(Vdev::new(Arc::clone(&view), overlay));
        Ok(Snapshot {
            level,
            name,
            target: pin.target,
            created: pin.created,
            pin: pin.id,
            overlay,
            made: Mutex::new(found.map(|overlay| overlay.map(vdev))),
            view,
        })
    }

    /// Takes a snapshot, or answers the unnamed one that stands at the very same point (`true`: already so).
    ///
    /// # Errors
    /// When the target is not reachable, the name is taken or something below fails.
    pub fn create(
        &self,
        target: &Target,
        name: Option<&str>,
        owner: &str,
    ) -> Result<(Arc<Snapshot>, bool), SnapshotError> {
        // Resolve and pin are one action of the owner: nothing can be dropped in between.
        let mut state = self.state.lock();
        let point = self.resolve(target)?;
        if let Some(name) = name
            && let Some(taken) = state.snapshots.values().find(|s| s.name.as_deref() == Some(name))
        {
            return Err(SnapshotError::NameTaken {
                name: name.to_owned(),
                level: taken.level,
            });
        }
        let same = |s: &&Arc<Snapshot>| {
            let p = s.point();
            s.name.is_none() && (p.generation, p.seq, p.base) == (point.generation, point.seq, point.base)
        };
        if name.is_none()
            && let Some(there) = state.snapshots.values().find(same)
        {
            return Ok((Arc::clone(there), true));
        }
        let level = state
            .snapshots
            .keys()
            .next_back()
            .map_or(Level::FIRST, |l| Level(l.0 + 1));
        let created = Timestamp::now();
        // The overlay's folder comes before the pin: a snapshot that is found after a crash is whole.
        self.overlay(self.overlay_dir(level), created.0).begin()?;
        let pin = PinRow {
            id: created.0,
            kind: PinKind::Snapshot {
                level,
                name: name.map(str::to_owned),
            },
            point,
            target: target.to_string(),
            owner: owner.to_owned(),
            created,
            expires: None,
        };
        self.journal.put_pin(&pin)?;
        let id = pin.id;
        match self.pinned(pin) {
            Ok(snapshot) => {
                let snapshot = Arc::new(snapshot);
                state.snapshots.insert(level, Arc::clone(&snapshot));
                Ok((snapshot, false))
            }
            Err(e) => {
                self.journal.delete_pin(id, None)?;
                Err(e.into())
            }
        }
    }

    /// Ends all views, those that somebody still reads too: the volumes below them change hands.
    pub fn close(&self) {
        self.open.store(false, Ordering::Release);
    }

    /// Says whether views may still be read; to be asked after every read.
    #[must_use]
    pub fn lifeline(&self) -> Lifeline {
        Lifeline(Arc::clone(&self.open))
    }

    /// Resolves a target now; nothing keeps the point.
    ///
    /// # Errors
    /// When the target is not reachable or the replica is not consistent.
    pub fn resolve(&self, target: &Target) -> Result<Point, SnapshotError> {
        let cursors = self.journal.cursors();
        if !self
            .journal
            .consistent()
            .iter()
            .any(|c| cursors.has_applied(c.from))
        {
            return Err(SnapshotError::NotConsistent);
        }
        Ok(self.journal.resolve(target, Timestamp::now())?.point)
    }

    /// A view at a target that nothing keeps: reading it fails once retention has passed its point.
    ///
    /// # Errors
    /// When the target is not reachable or the replica is not consistent.
    pub fn at(&self, target: &Target) -> Result<Arc<View>, SnapshotError> {
        let point = self.resolve(target)?;
        Ok(self.view(point)?)
    }

    /// A view at a target for one connection.
    ///
    /// # Errors
    /// As [`Views::create`].
    pub fn reader(&self, target: &Target, writable: bool) -> Result<Reader, SnapshotError> {
        let mut state = self.state.lock();
        let point = self.resolve(target)?;
        let view = self.view(point.clone())?;
        state.readers += 1;
        let number = state.readers;
        let info = ReaderInfo {
            point,
            target: target.to_string(),
            since: Timestamp::now(),
        };
        self.readers.lock().insert(number, info);
        let open = Arc::clone(&self.readers);
        let mut reader = Reader {
            view,
            vdev: None,
            scratch: None,
            number,
            open,
        };
        if writable {
            let scratch = self.overlays.join(format!("reader{number}"));
            let overlay = self.overlay(scratch.clone(), number);
            reader.scratch = Some(scratch);
            overlay.begin()?;
            reader.vdev = Some(Vdev::new(Arc::clone(&reader.view), overlay.make()?));
        }
        Ok(reader)
    }

    /// Does something while no point is resolved and no pin is made; it is told which points are read by name.
    pub(super) fn settled<T>(&self, work: impl FnOnce(Vec<Point>) -> T) -> T {
        let _state = self.state.lock();
        let readers = self.readers.lock().values().map(|r| r.point.clone()).collect();
        work(readers)
    }

    /// Named readers that are open now.
    #[must_use]
    pub fn readers(&self) -> Vec<ReaderInfo> {
        self.readers.lock().values().cloned().collect()
    }

    /// All snapshots, by level.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Snapshot>> {
        self.state.lock().snapshots.values().cloned().collect()
    }

    /// One snapshot.
    #[must_use]
    pub fn get(&self, level: Level) -> Option<Arc<Snapshot>> {
        self.state.lock().snapshots.get(&level).cloned()
    }

    /// Releases snapshots: pins first, then their overlays. The caller has seen that nobody has them open. Each leaves a pin of
    /// its point until `until` (K2), unless the point is gone already.
    ///
    /// # Errors
    /// When the journal fails; those that are left are still there.
    pub fn release(&self, levels: &[Level], owner: &str, until: Timestamp) -> Result<(), ContextError> {
        let mut state = self.state.lock();
        for level in levels {
            let Some(snapshot) = state.snapshots.get(level) else {
                continue;
            };
            // The same number: the pin goes on, in other hands.
            let left = PinRow {
                id: snapshot.pin,
                kind: PinKind::Released,
                point: snapshot.point().clone(),
                target: snapshot.target.clone(),
                owner: owner.to_owned(),
                created: Timestamp::now(),
                expires: Some(until),
            };
            let left = Some(&left).filter(|pin| self.journal.is_kept(&pin.point));
            self.journal.delete_pin(snapshot.pin, left)?;
            // Whoever has it still makes nothing in a folder that may be another one's by then.
            *snapshot.made.lock() = Err("the snapshot was released".to_owned());
            state.snapshots.remove(level);
            let _ = std::fs::remove_dir_all(self.overlay_dir(*level));
        }
        Ok(())
    }
}
