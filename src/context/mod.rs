//! One context on this host: its journal, and what runs on it in its role.
//!
//! The journal is open as long as the context is known, so that even a stopped one answers about its term and cursors. The
//! volumes are open only while it runs: [`Running`] holds them and the threads that work on them, and is dropped by a stop.

mod alone;
mod backing;
mod command_lock;
mod lease;
mod overflow;
mod overlays;
mod pair;
mod production;
mod recovery;
mod retention;
mod room;
mod sizes;
mod standing;
mod views;

pub use command_lock::{CommandGuard, CommandLock, Scope};
pub use lease::Lease;
pub use overflow::SuperTransaction;
pub(crate) use overlays::OverlayFolder;
pub use production::Production;
pub use recovery::Recovery;
pub use retention::{Retention, owed_to_peer};
pub use sizes::{MAKING_READY, extent_of, make_ready, size_fault, sizes_at, zero_rest};
pub use views::{Lifeline, Reader, Snapshot, SnapshotError, Views};

use crate::{
    agent::{DEFECT, LinkHandle},
    applying::acting::builds_undo,
    bell::Bell,
    clock::HostClock,
    config::{ConfigError, ContextConfig},
    format::{self, FormatError},
    node::Node,
    roles::{Standing, row},
    verify::Desk,
};
use control::Holder;
use journal::{
    Cell, ContextRow, Draft, Journal, JournalError, MapShape, NewGeneration, Opened, Options, Parts,
    RestoreRow,
};
use model::{ContextId, ContextState, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Why a context cannot be opened, started or worked with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The snapshot engine.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// Applying.
    #[error(transparent)]
    Apply(#[from] crate::applying::ApplyError),
    /// The format of its folder.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its folder says that there was a journal, and there is none.
    #[error("{} is gone: put it back, or remove {} to begin anew with a full sync", journal.display(), marker.display())]
    JournalGone {
        /// Where it was.
        journal: PathBuf,
        /// What says so.
        marker: PathBuf,
    },
    /// What a volume stood on is not there any more.
    #[error("{} is gone, which held volume {volume}: put it back, or declare it lost (rtdr -C {context} resync, scconfig -C {context} -M -L {volume})", path.display())]
    VolumeGone {
        /// The context.
        context: u32,
        /// The volume.
        volume: String,
        /// Its file or device.
        path: PathBuf,
    },
    /// A file.
    #[error("{what}: {source}")]
    Io {
        /// The file.
        what: String,
        /// The failure.
        source: std::io::Error,
    },
    /// This node is neither its production nor its recovery.
    #[error("context {id} names {production} and {recovery}, not this node {node}")]
    NotOurs {
        /// The context.
        id: u32,
        /// Its production.
        production: String,
        /// Its recovery.
        recovery: String,
        /// This node.
        node: String,
    },
}

impl ContextError {
    /// Whether there was no room; the same may be done again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Journal(e) => e.is_full(),
            Self::Apply(e) => e.is_full(),
            Self::Snapshot(e) => e.waits_for_room(),
            _ => false,
        }
    }
}

/// The peer as seen from here.
#[derive(Clone, Debug, Default)]
pub struct PeerView {
    /// Whether the link is up.
    pub connected: bool,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// When it last acknowledged anything.
    pub last_ack: Option<Timestamp>,
    /// Whether its replica waits for copies, or for the word that all are there.
    pub copying: bool,
    /// When the copies that are under way began, and the bytes that were stale then. A clock that is set changes no rate.
    pub copying_since: Option<(Instant, u64)>,
    /// On recovery: how far production says the copies are: when it said so, bytes left, bytes in all.
    pub copies: Option<(Timestamp, u64, u64)>,
    /// Where its copies ended, once they did on this connection.
    pub synced_at: Option<WriteSeq>,
    /// Whether its replica is rolled back: it receives and applies nothing.
    pub rolled_back: bool,
    /// Why it receives nothing and what would help, while that is so.
    pub no_room: Option<String>,
    /// Why it refused to work with us, if it did.
    pub refused: Option<String>,
    /// Whether that was because its line and ours have parted.
    pub diverged: bool,
    /// Why its context failed, so that nothing is taken there before somebody has looked after it.
    pub failed: Option<String>,
}

/// What rings when something moved.
#[derive(Clone, Default)]
pub struct Bells {
    /// More is durable in the journal.
    pub durable: Bell,
    /// A container was sealed.
    pub sealed: Bell,
    /// The peer acknowledged, or the link changed.
    pub acknowledged: Bell,
    /// More is applied, or the state changed.
    pub applied: Bell,
}

/// What runs while a context is started.
pub enum Running {
    /// Captures and ships.
    Production(Production),
    /// Receives and applies.
    Recovery(Recovery),
}

/// What a context needs once: its row, and on production its first generation and a state map that knows nothing of the
/// peer. The row comes last: without it all is done again.
fn first_start(journal: &Journal, role: Role, config: &ContextConfig) -> Result<ContextRow, JournalError> {
    if role == Role::Production {
        for (index, volume) in config.indexed() {
            let shape = MapShape {
                size: volume.size.0,
                region_size: config.region_size.0,
                default: Cell::Stale(WriteSeq(0)),
            };
            journal.set_map(index, shape)?;
        }
        if journal.current_generation().is_none() {
            journal.create_generation(NewGeneration::own(model::GenId(rand::random()), None))?;
        }
        if let Some(generation) = journal.current_generation().filter(|_| journal.open_is_empty()) {
            journal.append(
                vec![Draft {
                    volume: VolumeIndex(0),
                    body: generation.birth(),
                }],
                Timestamp::now(),
            )?;
        }
    }
    let notes = [("instance".to_owned(), format!("{:016x}", rand::random::<u64>()))].into();
    let row = ContextRow {
        role,
        state: ContextState::Enabled,
        term: Term(1),
        since: Timestamp::now(),
        notes,
    };
    journal.put_context(&row)?;
    Ok(row)
}

/// Where a context is on this host, and in which role.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) config: ContextConfig,
    role: Role,
    folder: PathBuf,
    pub(crate) parts: Parts,
}

impl Place {
    /// Opens the files of a context, created where they are missing; its journal is not opened yet.
    pub(crate) fn open(config: ContextConfig, node: &Node) -> Result<Self, ContextError> {
        let node_config = node.config();
        let role = if config.production == node_config.name {
            Role::Production
        } else if config.recovery_node() == node_config.name {
            Role::Recovery
        } else {
            return Err(ContextError::NotOurs {
                id: config.id,
                production: config.production.clone(),
                recovery: config.recovery_node().to_owned(),
                node: node_config.name,
            });
        };
        let folder = node_config.state_dir.join(format!("c{}", config.id));
        let journal_dir = folder.join("journal");
        if format::check(&folder)? && !journal_dir.join("super").exists() && !journal_dir.join("db").exists()
        {
            return Err(ContextError::JournalGone {
                journal: journal_dir,
                marker: format::file(&folder),
            });
        }
        media::make_folders(&node_config.state_dir, &journal_dir).map_err(|source| ContextError::Io {
            what: journal_dir.display().to_string(),
            source,
        })?;
        let parts = Parts::open_dir(&journal_dir, config.lfc_size.0)?;
        Ok(Self {
            config,
            role,
            folder,
            parts,
        })
    }

    /// The other host's name.
    pub(crate) fn peer(&self) -> &str {
        match self.role {
            Role::Production => self.config.recovery_node(),
            Role::Recovery => &self.config.production,
        }
    }
}

/// One context on this host.
pub struct Context {
    /// Its file.
    pub config: ContextConfig,
    /// Its journal.
    pub journal: Arc<Journal>,
    /// What rings.
    pub bells: Bells,
    /// What is kept of the past.
    pub retention: Retention,
    /// Where verifies are begun and looked at.
    pub verify: Desk,
    clock: Arc<HostClock>,
    node: Weak<Node>,
    node_name: String,
    folder: PathBuf,
    peer: Mutex<PeerView>,
    commands: CommandLock,
    leases: lease::Leases,
    link: Mutex<Option<LinkHandle>>,
    receiving: Mutex<u64>,
    row: Mutex<ContextRow>,
    restore: Mutex<Option<RestoreRow>>,
    running: RwLock<Option<Arc<Running>>>,
    held_back: Mutex<Option<String>>,
    /// What waits for room on a disk, with the disk's words.
    no_room: Mutex<Option<String>>,
    /// Held while the context starts or stops: whoever stops it knows that it has stopped.
    changing: Mutex<()>,
    extending: sizes::Extending,
    pair: Mutex<pair::Pair>,
}

impl Context {
    /// Opens a context and starts it, unless an operator stopped it, or it must hear its peer first. `is_new`: it was made a
    /// moment ago, by a command.
    pub(crate) fn open(place: &Place, node: &Arc<Node>, is_new: bool) -> Result<Arc<Self>, ContextError> {
        let Place {
            config,
            role,
            folder,
            parts,
        } = place.clone();
        let options = Options {
            lfc_size: config.lfc_size.0,
            lfc_max_age_ns: u64::try_from(config.lfc_max_age.0.as_nanos()).ok(),
            ..Options::default()
        };
        let (journal, opened) = Journal::open(parts, options)?;
        match opened {
            Opened::Recovered { frames, cut_bytes } => {
                tracing::info!(
                    context = config.id,
                    frames,
                    cut_bytes,
                    "journal recovered after an unclean end"
                );
            }
            opened => tracing::info!(context = config.id, ?opened, "journal opened"),
        }
        let row = match journal.context()? {
            Some(row) => row,
            None => first_start(&journal, role, &config)?,
        };
        if row.role == Role::Production {
            crate::maps::require(&journal, &config)?;
        }
        if !format::check(&folder)? {
            format::mark(&folder)?;
        }
        let restore = journal.restore()?;
        let context = Arc::new(Self {
            clock: node.clock(),
            node: Arc::downgrade(node),
            node_name: node.name(),
            journal: Arc::new(journal),
            bells: Bells::default(),
            retention: Retention::default(),
            no_room: Mutex::default(),
            folder,
            peer: Mutex::default(),
            commands: CommandLock::default(),
            leases: lease::Leases::default(),
            link: Mutex::default(),
            receiving: Mutex::default(),
            row: Mutex::new(row),
            restore: Mutex::new(restore),
            running: RwLock::default(),
            held_back: Mutex::default(),
            changing: Mutex::default(),
            extending: sizes::Extending::default(),
            pair: Mutex::new(pair::Pair::of(&config, &node.name())),
            verify: Desk::default(),
            config,
        });
        context.start_by_itself(node.last_alive(), is_new)?;
        Ok(context)
    }

    /// Opens the volumes and starts what the role does; already so, or fenced, or in the middle of a failover: nothing.
    ///
    /// # Errors
    /// When a volume cannot be opened or the journal fails.
    pub fn start(self: &Arc<Self>) -> Result<(), ContextError> {
        let _changing = self.changing.lock();
        let mut running = self.running.write();
        let standing = self.standing();
        let stays = self.is_stopped() || matches!(standing, Standing::Fenced | Standing::FailingOver);
        if running.is_some() || stays {
            return Ok(());
        }
        let volumes = self.open_volumes()?;
        let role = self.role();
        self.journal
            .set_indexed(role == Role::Recovery || builds_undo(&self.journal));
        let started = match role {
            Role::Production => Running::Production(Production::start(self, volumes)?),
            Role::Recovery => Running::Recovery(Recovery::start(self, volumes)?),
        };
        *running = Some(Arc::new(started));
        drop(running);
        self.hold_back(None);
        self.note_boot()?;
        if standing == Standing::FailedOver {
            self.watch_peer();
        }
        self.bells.applied.ring();
        Ok(())
    }

    /// Ends what runs and closes the volumes; the journal stays open.
    pub fn halt(&self) {
        self.halt_if(|| true);
    }

    /// As [`Context::halt`], if that is due once nothing else starts or ends what runs.
    pub(crate) fn halt_if(&self, is_due: impl FnOnce() -> bool) {
        let _changing = self.changing.lock();
        if !is_due() {
            return;
        }
        // Let go of the lock first: a peer that connects meanwhile waits for it on a worker that the link may need to end.
        let link = self.link.lock().take();
        if let Some(link) = link {
            link.stop();
        }
        let running = self.running.write().take();
        if let Some(running) = running {
            match &*running {
                Running::Production(p) => p.stop(),
                Running::Recovery(r) => r.stop(),
            }
        }
    }

    /// Ends everything, as the daemon does.
    pub fn shut_down(&self) {
        self.halt();
        let _ = self.journal.raise_bound();
    }

    /// A failure below poisons this context and no other.
    pub(crate) fn poison(&self, what: &str, error: &dyn std::fmt::Display) {
        self.journal.set_poisoned(&format!("{what}: {error}"));
        tracing::error!(
            context = self.id().0,
            "{what}: {error}: the context stops acknowledging"
        );
    }

    /// Work that panicked may have left something half done: the context ends with it.
    pub(crate) fn broken(&self, what: &str) {
        self.poison(what, &DEFECT);
        self.tell_poisoned();
    }

    fn tell_poisoned(&self) {
        self.bells.durable.ring();
        if let Some(node) = self.node.upgrade() {
            node.disown();
        }
    }

    /// Starts one of the context's threads. One that panics takes its context with it, or whoever waits for its work would
    /// wait for ever; `ended` runs when the thread ends and the context is poisoned.
    fn spawn(
        self: &Arc<Self>,
        what: &'static str,
        run: impl FnOnce() + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> JoinHandle<()> {
        let context = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("c{}-{what}", self.id()))
            .spawn(move || {
                if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                    context.poison(what, &DEFECT);
                }
                if context.journal.poisoned().is_some() {
                    ended();
                    context.tell_poisoned();
                }
            })
            .expect("a thread can be started")
    }

    /// What runs now.
    #[must_use]
    pub fn running(&self) -> Option<Arc<Running>> {
        self.running.read().clone()
    }

    /// Whether it is started.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.read().is_some()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ContextId {
        self.config.context()
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.row.lock().term
    }

    /// Its durable row.
    #[must_use]
    pub fn row(&self) -> ContextRow {
        self.row.lock().clone()
    }

    /// Changes the durable row; the change is durable when this returns.
    ///
    /// # Errors
    /// When it could not be made durable; nothing has changed then.
    pub fn change_row(&self, change: impl FnOnce(&mut ContextRow)) -> Result<(), JournalError> {
        let row = self.row.lock();
        let mut changed = row.clone();
        change(&mut changed);
        self.journal.put_context(&changed)?;
        self.replace_row(row, changed);
        Ok(())
    }

    /// The failover restore that the replica stands at, or that is under way.
    #[must_use]
    pub fn restore(&self) -> Option<RestoreRow> {
        self.restore.lock().clone()
    }

    /// Makes a restore's row and the context's state durable together.
    ///
    /// # Errors
    /// When they could not be made durable; nothing has changed then.
    pub fn set_restore(&self, restore: Option<RestoreRow>, state: ContextState) -> Result<(), JournalError> {
        let row = self.row.lock();
        let mut changed = row.clone();
        row::put_restore(&mut changed, state);
        self.journal.put_restore(restore.as_ref(), Some(&changed))?;
        *self.restore.lock() = restore;
        let gave_up = row::gave_up_before_restore(&changed);
        self.replace_row(row, changed);
        if gave_up {
            // Whoever met it as a host that gave its line up meets it again, behind the restore.
            self.end_link();
        }
        Ok(())
    }

    /// Keeps how far a restore has come.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn keep_restore(&self, restore: RestoreRow) -> Result<(), JournalError> {
        self.journal.put_restore(Some(&restore), None)?;
        *self.restore.lock() = Some(restore);
        Ok(())
    }

    /// Random id of this host's store of the context.
    #[must_use]
    pub fn instance(&self) -> u64 {
        let row = self.row.lock();
        row.notes
            .get("instance")
            .and_then(|i| u64::from_str_radix(i, 16).ok())
            .unwrap_or(0)
    }

    /// The first position of the span in which the replica is consistent and goes on to be, once production has said so.
    #[must_use]
    pub fn consistent_from(&self) -> Option<journal::Position> {
        self.journal.consistent_from()
    }

    /// Whether the volumes of this replica are consistent now.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.journal.is_consistent()
    }

    /// Whether the replica has ever been consistent, so that an earlier point may be asked for.
    #[must_use]
    pub fn was_consistent(&self) -> bool {
        !self.journal.consistent().is_empty()
    }

    /// Whether any region is stale.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        let mut volumes = self.journal.mapped_volumes().into_iter();
        volumes.any(|volume| self.journal.next_stale(volume, 0, 1).is_some())
    }

    /// Bytes that the peer does not have and no journal covers.
    #[must_use]
    pub fn stale_bytes(&self) -> u64 {
        self.config
            .indexed()
            .map(|(index, _)| self.journal.stale_bytes(index))
            .sum()
    }

    /// The node it lives on.
    pub(crate) fn node(&self) -> Arc<Node> {
        self.node.upgrade().expect("contexts do not outlive their node")
    }

    /// The node's name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The folder of its journal.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.folder.join("journal")
    }

    /// The folder of its overlays.
    #[must_use]
    pub fn overlay_dir(&self) -> PathBuf {
        self.folder.join("overlay")
    }

    /// The peer as seen from here.
    #[must_use]
    pub fn peer(&self) -> PeerView {
        self.peer.lock().clone()
    }

    /// The link went up or down, or the peer refused us.
    pub fn set_peer(&self, connected: bool, refused: Option<String>) {
        let mut peer = self.peer.lock();
        if peer.connected != connected || peer.since.is_none() {
            peer.since = Some(Timestamp::now());
        }
        peer.connected = connected;
        peer.refused = refused;
        peer.diverged &= !connected;
        if connected {
            peer.failed = None;
        }
        // A new connection says it again.
        peer.no_room = None;
        drop(peer);
        self.bells.acknowledged.ring();
    }

    /// The peer's context has failed, or has not.
    pub(crate) fn set_peer_failed(&self, why: Option<String>) {
        self.peer.lock().failed = why;
        self.bells.acknowledged.ring();
    }

    /// The peer's line and ours have parted: an operator chooses.
    pub fn set_diverged(&self) {
        self.peer.lock().diverged = true;
    }

    /// The peer has no room for what we send, or has room again.
    pub fn set_peer_no_room(&self, why: Option<String>) {
        self.peer.lock().no_room = why;
        self.bells.acknowledged.ring();
    }

    /// A stream begins: whether the peer's replica waits for copies. It says again whether it is rolled back.
    pub fn set_peer_copying(&self, copying: bool) {
        let mut peer = self.peer.lock();
        peer.copying = copying;
        peer.synced_at = None;
        peer.rolled_back = false;
        drop(peer);
        self.bells.acknowledged.ring();
    }

    /// The peer's replica is rolled back, or goes on.
    pub fn set_peer_rolled_back(&self, rolled_back: bool) {
        self.peer.lock().rolled_back = rolled_back;
        self.bells.acknowledged.ring();
    }

    /// Production says how far the copies are.
    pub(crate) fn set_copies(&self, left: u64, total: u64) {
        let mut peer = self.peer.lock();
        let now = Timestamp::now();
        if peer.copying_since.is_none() {
            peer.copying_since = Some((Instant::now(), left));
        }
        peer.copies = Some((now, left, total));
    }

    /// Copies begin on this connection.
    pub fn copying_began(&self) {
        let stale = self.stale_bytes();
        self.peer.lock().copying_since = Some((Instant::now(), stale));
    }

    /// All copies ended here, and the peer was told; it is consistent when it says so.
    pub fn set_peer_synced(&self, at: WriteSeq) {
        let mut peer = self.peer.lock();
        peer.copying_since = None;
        peer.synced_at = Some(at);
        drop(peer);
        self.bells.acknowledged.ring();
    }

    /// The peer is consistent from here on, and keeps that. What it says of copies that have begun again since is old.
    pub(crate) fn set_peer_consistent(&self, at: WriteSeq) {
        let mut peer = self.peer.lock();
        if peer.synced_at == Some(at) {
            peer.copying = false;
        }
        drop(peer);
        self.bells.acknowledged.ring();
    }

    /// On production: whether the peer is there, nothing is left to be copied to it, and it knows that.
    #[must_use]
    pub fn peer_has_copies(&self) -> bool {
        let peer = self.peer();
        peer.connected && !peer.copying && self.stale_bytes() == 0
    }

    /// The same, and it has applied what came with the copies, so that its newest point can be looked at.
    #[must_use]
    pub fn peer_is_consistent(&self) -> bool {
        let applied = self.journal.cursors().applied_by_peer;
        self.peer_has_copies() && self.peer().synced_at.is_none_or(|at| applied >= at)
    }

    /// The peer acknowledged something.
    pub fn peer_acknowledged(&self) {
        self.peer.lock().last_ack = Some(Timestamp::now());
        self.bells.acknowledged.ring();
    }

    /// A peer has connected: its link takes the place of an older one, which may be half-open.
    pub(crate) fn set_link(&self, link: LinkHandle) {
        if let Some(old) = self.link.lock().replace(link) {
            old.ask_to_stop();
        }
    }

    /// Ends the link that is there, if one is: the peer makes another one.
    pub(crate) fn end_link(&self) {
        if let Some(link) = self.link.lock().take() {
            link.ask_to_stop();
        }
    }

    /// The turn of a connection's receiving thread: from now on the threads of older connections do nothing more.
    pub(crate) fn next_receiver(&self) -> u64 {
        let mut newest = self.receiving.lock();
        *newest += 1;
        *newest
    }

    /// The right of the newest connection's thread to work on what it received; `None` for older ones. A copy that an older
    /// thread still held would otherwise land over a newer one.
    pub(crate) fn receiver_turn(&self, turn: u64) -> Option<MutexGuard<'_, u64>> {
        Some(self.receiving.lock()).filter(|newest| **newest == turn)
    }

    /// Takes these scopes of the context's command lock on this host; else answers who holds one of them.
    ///
    /// # Errors
    /// With the holder, when it is still held after `wait`.
    pub fn lock_commands(
        &self,
        scopes: &[Scope],
        holder: &Holder,
        wait: Duration,
    ) -> Result<CommandGuard, Holder> {
        self.commands.lock(scopes, holder, wait)
    }
}
