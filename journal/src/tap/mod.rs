//! The tap: where the writes of all volumes of a context become one ordered, journaled stream.
//!
//! # Overview
//!
//! Connections hand in batches of [`Request`]s. Whoever finds the owner free becomes the leader: it drains the queue,
//! gives everything queued one frame (or a few), appends it to the journal's tail, puts the bytes into the overlay, and
//! answers. A connection that finds the owner busy goes on at once; the leader answers for it. So a write costs no
//! thread hand-off when the system is quiet, and group commit grows by itself when it is not.
//!
//! Reads look in the overlay first, then in the volume. A write-back agent takes frames that are *durable* (never bytes
//! from the overlay), overwrites the volume, and tells [`Tap::written_back`], which releases only what those frames own.
//!
//! # Invariants
//!
//! - Invariant 1: an answer to a write follows its append; an answer to a flush or FUA follows a sync that started
//!   after the append ([`Flushes`]).
//! - Invariant 2, rule W1: [`Tap::take_durable`] hands out frames `<= durable` only, and a range leaves the overlay only
//!   through the record that owns it.
//! - Sequence and time are given in one place, `Tap::lead`, under the owner's lock.
//! - The bytes pinned by frames that wait for write-back are bounded; at the bound writers wait (the local disk that
//!   cannot keep up is the one thing that may block an application).
//!
//! # Crash consistency
//!
//! The tap holds no durable state. After a crash the journal re-reads its tail and the owner of the volumes replays from
//! `checkpointed`, before the first request is served.
//!
//! # What it does not do
//!
//! It does not write volumes, ship frames or ingest containers; threads of the daemon do, through the methods here.

mod copy;
mod events;
mod flush;
mod peer;
mod watch;

pub use copy::{COPY_BYTES, CopyRead, CopyTaken, RACES_MAX, ZERO_COPY_BYTES, digest};
pub use flush::Flushes;
pub use peer::{OnLinkLoss, PeerRule, PeerStep};
pub use watch::Look;

use crate::{Draft, Frame, Journal, JournalError, LfcRow, SealFlags};
use bytes::Bytes;
use model::{
    ByteRange, Payload, RangeMap, Record, RecordBody, Timestamp, VolumeIndex, WriteSeq, ports::Medium,
};
use parking_lot::{Condvar, Mutex, RwLock};
use peer::Gate;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use watch::Watches;

/// What a connection asks for. `done` is called exactly once, perhaps from another thread.
pub struct Request {
    /// The change; `None` is a flush.
    pub change: Option<VolumeChange>,
    /// Answer only when durable. A flush is durable by nature.
    pub durable: bool,
    /// Takes the answer.
    pub done: Done,
}

/// Takes the answer to a [`Request`].
pub type Done = Box<dyn FnOnce(Result<(), Arc<JournalError>>) + Send>;

/// A change of one volume, any size down to one byte, inside the volume.
#[derive(Clone, Debug)]
pub enum VolumeChange {
    /// Bytes at an offset.
    Write {
        /// The volume.
        volume: VolumeIndex,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// A range becomes zero.
    Zero {
        /// The volume.
        volume: VolumeIndex,
        /// The range.
        range: ByteRange,
        /// Whether the client asked for a discard.
        discard: bool,
    },
}

impl VolumeChange {
    /// Splits the change into records that respect the limits of [`Record`].
    fn drafts(self, out: &mut Vec<Draft>) {
        match self {
            Self::Write { volume, offset, data } => {
                let step = usize::try_from(Record::WRITE_BYTES_MAX).unwrap_or(usize::MAX);
                for (i, part) in (0..data.len()).step_by(step).enumerate() {
                    let data = data.slice(part..data.len().min(part + step));
                    let offset = offset + i as u64 * Record::WRITE_BYTES_MAX;
                    out.push(Draft {
                        volume,
                        body: RecordBody::Write { offset, data },
                    });
                }
            }
            Self::Zero {
                volume,
                range,
                discard,
            } => {
                let mut start = range.start;
                while start < range.end {
                    let end = range.end.min(start + Record::ZERO_BYTES_MAX);
                    let range = ByteRange { start, end };
                    out.push(Draft {
                        volume,
                        body: RecordBody::Zero { range, discard },
                    });
                    start = end;
                }
            }
        }
    }
}

/// Limits of a tap.
#[derive(Clone, Copy, Debug)]
pub struct TapLimits {
    /// Bytes of frames that may wait for write-back before writers wait.
    pub pinned_bytes_max: u64,
    /// Bytes of records that go into one frame.
    pub frame_bytes_max: u64,
    /// Frames leave by whole sealed containers ([`Tap::take_container`]), because this host builds undo (rule W2). Then
    /// at least two containers may wait, and a container that fills the room alone is sealed early.
    pub whole_containers: bool,
    /// Whether answers wait for the peer.
    pub peer: PeerRule,
}

impl Default for TapLimits {
    fn default() -> Self {
        Self {
            pinned_bytes_max: 256 << 20,
            frame_bytes_max: 2 << 20,
            whole_containers: false,
            peer: PeerRule::default(),
        }
    }
}

struct TapVolume {
    medium: Arc<dyn Medium>,
    overlay: RwLock<RangeMap>,
}

#[derive(Default)]
struct Pending {
    frames: VecDeque<Arc<Frame>>,
    bytes: u64,
}

#[derive(Default)]
struct Owner {
    watches: Watches,
}

/// The production owner of one context.
pub struct Tap {
    journal: Arc<Journal>,
    /// The sizes of the volumes were said since this was made.
    told_sizes: AtomicBool,
    volumes: BTreeMap<VolumeIndex, TapVolume>,
    limits: TapLimits,
    queue: Mutex<VecDeque<Request>>,
    owner: Mutex<Owner>,
    pending: Mutex<Pending>,
    room: Condvar,
    flushes: Flushes,
    gate: Gate,
    /// Whether it is being closed: nobody waits for room any more.
    closing: AtomicBool,
    closed: AtomicBool,
    /// What a writer waits for that seals where there is no room.
    no_room: Mutex<Option<String>>,
    /// What time it is.
    clock: fn() -> Timestamp,
}

/// What everybody is told who waits for something that will not come any more.
fn stopping() -> Arc<JournalError> {
    Arc::new(JournalError::Refused("the context is stopping".into()))
}

/// How often a writer that waits for room looks again.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(50);

impl Tap {
    /// A tap over volumes that already stand at the journal's head.
    #[must_use]
    pub fn new(
        journal: Arc<Journal>,
        volumes: impl IntoIterator<Item = (VolumeIndex, Arc<dyn Medium>)>,
        mut limits: TapLimits,
    ) -> Self {
        if limits.whole_containers {
            limits.pinned_bytes_max = limits.pinned_bytes_max.max(2 * journal.options.lfc_size);
        }
        let volumes = volumes
            .into_iter()
            .map(|(index, medium)| {
                (
                    index,
                    TapVolume {
                        medium,
                        overlay: RwLock::default(),
                    },
                )
            })
            .collect();
        Self {
            journal,
            volumes,
            limits,
            queue: Mutex::default(),
            owner: Mutex::default(),
            pending: Mutex::default(),
            room: Condvar::new(),
            flushes: Flushes::default(),
            gate: Gate::new(limits.peer),
            told_sizes: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            no_room: Mutex::default(),
            clock: Timestamp::now,
        }
    }

    /// As this one, with another clock than the system's: for tests in which clocks jump.
    #[must_use]
    pub const fn with_clock(mut self, clock: fn() -> Timestamp) -> Self {
        self.clock = clock;
        self
    }

    /// From now on nobody waits for room on a disk, nor for the peer: who does is told that there is none. Who ends others that may
    /// wait for the owner, as a copier does, calls this first: the owner may be who waits.
    pub fn let_go(&self) {
        self.closing.store(true, Ordering::Release);
        // Before the link is ended: what waits for the peer must not be answered with success because that is gone, on a host
        // that is being fenced.
        self.gate.end(&stopping());
    }

    /// From now on nothing gets a place in the order any more: whoever still holds this tap is refused. What was answered
    /// before stands.
    pub fn close(&self) {
        self.let_go();
        self.as_owner(|_| self.closed.store(true, Ordering::Release));
    }

    /// What writers wait for while the disk of the journal is full; `None`: they do not.
    #[must_use]
    pub fn no_room(&self) -> Option<String> {
        self.no_room.lock().clone()
    }

    /// The journal below.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// The flushes that wait for a sync.
    #[must_use]
    pub fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    /// Nothing is synced any more: who waits for a sync or for the peer, and who asks for one from now on, is answered with an
    /// error.
    pub fn end_syncs(&self) {
        self.flushes.stop();
        self.gate.end(&stopping());
    }

    fn volume(&self, volume: VolumeIndex) -> Result<&TapVolume, JournalError> {
        self.volumes
            .get(&volume)
            .ok_or(JournalError::UnknownVolume(volume))
    }

    /// A tap that is closed answers nobody with success: what it would say may not be so on the host that serves now.
    fn check_open(&self) -> Result<(), JournalError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(JournalError::Refused("the context is stopped here".into()));
        }
        Ok(())
    }

    /// Hands in requests, which are ordered as given. Returns when they are queued and, if nobody else leads, committed;
    /// waits first while too many bytes wait for write-back.
    pub fn submit(&self, batch: Vec<Request>) {
        self.wait_for_room();
        self.queue.lock().extend(batch);
        self.drain();
    }

    /// Leads until the queue is empty, unless another thread does.
    ///
    /// Between a leader's last look at the queue and its unlock a request may arrive whose thread finds the lock taken and
    /// goes away; so **whoever unlocks the owner calls this**.
    fn drain(&self) {
        while !self.queue.lock().is_empty() {
            let Some(mut owner) = self.owner.try_lock() else {
                return;
            };
            self.lead(&mut owner);
        }
    }

    /// Runs `act` as the owner, behind everything that is queued now.
    fn as_owner<T>(&self, act: impl FnOnce(&mut Owner) -> T) -> T {
        let result = {
            let mut owner = self.owner.lock();
            self.lead(&mut owner);
            act(&mut owner)
        };
        self.drain();
        result
    }

    fn wait_for_room(&self) {
        let mut pending = self.pending.lock();
        while pending.bytes > self.limits.pinned_bytes_max
            && self.journal.poisoned().is_none()
            && !self.flushes.has_ended()
        {
            if self.limits.whole_containers && self.sealed_frames(&pending) == 0 {
                // Nothing that waits could ever leave. A seal that fails has poisoned the journal.
                drop(pending);
                let _ = self.seal_now();
                pending = self.pending.lock();
                continue;
            }
            self.room
                .wait_for(&mut pending, std::time::Duration::from_millis(100));
        }
    }

    /// Commits everything that is queued: the one place where writes get their order.
    fn lead(&self, owner: &mut Owner) {
        loop {
            let batch: Vec<Request> = self.queue.lock().drain(..).collect();
            if batch.is_empty() {
                return;
            }
            if let Some(error) = self.refuses_changes() {
                for request in batch {
                    (request.done)(Err(Arc::clone(&error)));
                }
                continue;
            }
            let mut drafts = Vec::new();
            let mut bytes = 0;
            let mut answers: Vec<(bool, Done)> = Vec::new();
            for request in batch {
                if let Some(change) = request.change {
                    let first = drafts.len();
                    change.drafts(&mut drafts);
                    for draft in &drafts[first..] {
                        bytes += draft.len();
                    }
                }
                answers.push((request.durable, request.done));
                if bytes >= self.limits.frame_bytes_max {
                    let result = self.commit(owner, std::mem::take(&mut drafts));
                    self.answer(std::mem::take(&mut answers), result, bytes);
                    bytes = 0;
                }
            }
            let result = self.commit(owner, drafts);
            self.answer(answers, result, bytes);
        }
    }

    fn answer(&self, answers: Vec<(bool, Done)>, result: Result<WriteSeq, JournalError>, bytes: u64) {
        match result {
            Ok(upto) => self.answer_appended(upto, bytes, answers),
            Err(error) => {
                let error = Arc::new(error);
                for (_, done) in answers {
                    done(Err(Arc::clone(&error)));
                }
            }
        }
    }

    /// Appends drafts as one or more frames, sealing where they do not fit; answers the last record appended so far.
    fn commit(&self, owner: &mut Owner, mut drafts: Vec<Draft>) -> Result<WriteSeq, JournalError> {
        self.check_open()?;
        // A container is sealed between frames only: a frame of many small zeroes must not carry the undo of many containers
        // (rule W5).
        let undo_max = self.journal.options.lfc_size;
        while !drafts.is_empty() {
            let (mut bytes, mut undo) = (0, 0);
            let fits = drafts.iter().take_while(|d| {
                let first = bytes == 0;
                bytes += d.len();
                undo += d.undo_bytes_max();
                first || (bytes <= 2 * self.limits.frame_bytes_max && undo <= undo_max)
            });
            let rest = drafts.split_off(fits.count());
            self.append(owner, std::mem::replace(&mut drafts, rest))?;
        }
        if let Some(error) = self.journal.poisoned() {
            return Err(error);
        }
        Ok(self.journal.cursors().appended)
    }

    /// Makes an appended frame visible to reads and to the agents.
    fn absorb(&self, owner: &mut Owner, frame: &Arc<Frame>) -> Result<(), JournalError> {
        for record in frame.records() {
            if let (Some(range), Some(payload)) = (record.changed(), record.payload()) {
                owner.watches.see(record.volume, range);
                self.volume(record.volume)?
                    .overlay
                    .write()
                    .insert(range, record.seq, payload);
            }
        }
        let mut pending = self.pending.lock();
        pending.bytes += frame.len() as u64;
        pending.frames.push_back(Arc::clone(frame));
        drop(pending);
        self.flushes.appended();
        Ok(())
    }

    fn seal_locked(&self, flags: SealFlags) -> Result<Arc<LfcRow>, JournalError> {
        // A disk that is full holds writers up and fails none. What they wait for needs no owner: the volumes are written and
        // synced, and then containers give way.
        let row = loop {
            match self.journal.seal(flags) {
                Err(e) if e.is_full() && !self.closing.load(Ordering::Acquire) => {
                    *self.no_room.lock() = Some(e.to_string());
                    std::thread::sleep(LOOK_EVERY);
                }
                done => break done,
            }
        };
        *self.no_room.lock() = None;
        let row = row?;
        self.flushes.synced(self.journal.cursors().durable);
        // Who waits for whole containers hears of them through the sync thread.
        self.flushes.appended();
        Ok(row)
    }

    /// Seals the open container if it has records and is old or full enough; for the timer.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn seal_if_due(&self, now: Timestamp) -> Result<Option<Arc<LfcRow>>, JournalError> {
        if !self.journal.wants_seal(0, now) {
            return Ok(None);
        }
        self.as_owner(|_| {
            if self.journal.wants_seal(0, now) {
                self.seal_locked(SealFlags::default()).map(Some)
            } else {
                Ok(None)
            }
        })
    }

    /// Opens the generation that a promotion has announced, if one has, without waiting for a write.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn begin_generation(&self) -> Result<(), JournalError> {
        self.as_owner(|owner| {
            if !self.journal.awaits_birth() {
                return Ok(());
            }
            let birth = self.journal.begin_generation()?;
            let frame = self.journal.append(vec![birth], (self.clock)())?;
            self.absorb(owner, &frame)
        })
    }

    /// Seals the open container now, if it has records.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn seal_now(&self) -> Result<Option<Arc<LfcRow>>, JournalError> {
        self.as_owner(|_| {
            if self.journal.open_is_empty() {
                return Ok(None);
            }
            self.seal_locked(SealFlags::default()).map(Some)
        })
    }

    /// Appends one record of the context's own in a frame of its own.
    fn append_one(&self, owner: &mut Owner, draft: Draft) -> Result<Arc<Frame>, JournalError> {
        self.append(owner, vec![draft])
    }

    /// Appends drafts as one frame, in a new container where they do not fit.
    fn append(&self, owner: &mut Owner, drafts: Vec<Draft>) -> Result<Arc<Frame>, JournalError> {
        self.check_open()?;
        let now = (self.clock)();
        if self.journal.awaits_birth() {
            let birth = self.journal.begin_generation()?;
            let frame = self.journal.append(vec![birth], now)?;
            self.absorb(owner, &frame)?;
        }
        if let Some(from) = self.journal.clock_ahead_of(now) {
            // Rule L5. The step ends its container, so that ages and times of the next one count from the new clock.
            let body = RecordBody::ClockStep { from, to: now };
            let frame = self.journal.append(
                vec![Draft {
                    volume: VolumeIndex(0),
                    body,
                }],
                now,
            )?;
            self.absorb(owner, &frame)?;
            self.seal_locked(SealFlags::default())?;
        }
        if self.journal.wants_seal(drafts.iter().map(Draft::len).sum(), now) {
            self.seal_locked(SealFlags::default())?;
        }
        let frame = self.journal.append(drafts, now)?;
        self.absorb(owner, &frame)?;
        Ok(frame)
    }

    /// Fills `buf` from the head of the volume: the overlay, then the volume below.
    ///
    /// # Errors
    /// When the volume is unknown or fails.
    pub fn read(&self, volume: VolumeIndex, offset: u64, buf: &mut [u8]) -> Result<(), JournalError> {
        self.read_each(volume, &mut [(offset, buf)])
    }

    /// As [`Tap::read`], each buffer from the offset beside it. The volume is asked for all of them before any is waited for.
    ///
    /// # Errors
    /// As [`Tap::read`].
    pub fn read_each(&self, volume: VolumeIndex, reads: &mut [(u64, &mut [u8])]) -> Result<(), JournalError> {
        self.check_open()?;
        let v = self.volume(volume)?;
        let look = |(offset, buf): &(u64, &mut [u8])| {
            let range = ByteRange::at(*offset, buf.len() as u64);
            v.overlay.read().lookup(range)
        };
        let looked: Vec<_> = reads.iter().map(look).collect();
        let is_below = |buf: &[u8], pieces: &[model::Piece]| {
            pieces.iter().map(|p| p.range.len()).sum::<u64>() < buf.len() as u64
        };
        let mut below: Vec<_> = reads
            .iter_mut()
            .zip(&looked)
            .filter(|((_, buf), pieces)| is_below(buf, pieces))
            .map(|((offset, buf), _)| (*offset, &mut **buf))
            .collect();
        v.medium
            .read_each(&mut below)
            .map_err(|e| JournalError::io("volume", e))?;
        for ((offset, buf), pieces) in reads.iter_mut().zip(looked) {
            for piece in pieces {
                let index = |at: u64| usize::try_from(at - *offset).expect("inside the buffer");
                piece
                    .payload
                    .copy_to(0, &mut buf[index(piece.range.start)..index(piece.range.end)]);
            }
        }
        // The volumes may have changed hands meanwhile.
        self.check_open()
    }

    /// The ranges at or after `range.start` that read as zero without being looked at: `(range, is_zero)` pieces that
    /// cover `range`.
    ///
    /// # Errors
    /// When the volume is unknown or fails.
    pub fn extents(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
    ) -> Result<Vec<(ByteRange, bool)>, JournalError> {
        // What is known to be zero is answered without a read.
        self.check_open()?;
        let v = self.volume(volume)?;
        let pieces = v.overlay.read().lookup(range);
        let mut out = Vec::new();
        let mut at = range.start;
        for piece in pieces {
            below(
                &*v.medium,
                ByteRange {
                    start: at,
                    end: piece.range.start,
                },
                &mut out,
            )?;
            out.push((piece.range, matches!(piece.payload, Payload::Zero)));
            at = piece.range.end;
        }
        below(
            &*v.medium,
            ByteRange {
                start: at,
                end: range.end,
            },
            &mut out,
        )?;
        self.check_open()?;
        Ok(out)
    }

    /// Frames that are durable and not yet written back, oldest first, about `bytes_max` bytes of them (rule W1). They
    /// stay pinned until [`Tap::written_back`].
    #[must_use]
    pub fn take_durable(&self, bytes_max: u64) -> Vec<Arc<Frame>> {
        let durable = self.journal.cursors().durable;
        let pending = self.pending.lock();
        let mut bytes = 0;
        pending
            .frames
            .iter()
            .take_while(|f| {
                bytes += f.len() as u64;
                f.last_seq() <= durable && (bytes <= bytes_max || bytes == f.len() as u64)
            })
            .cloned()
            .collect()
    }

    /// All frames of the oldest container that is sealed and not written back; none while it is open (rule W2). They stay
    /// pinned until [`Tap::written_back`].
    #[must_use]
    pub fn take_container(&self) -> Vec<Arc<Frame>> {
        let pending = self.pending.lock();
        let frames = pending.frames.iter().take(self.sealed_frames(&pending));
        let first = pending.frames.front().map(|f| f.lfc());
        frames.take_while(|f| Some(f.lfc()) == first).cloned().collect()
    }

    /// How many of the frames that wait are in sealed containers; a seal comes behind all frames of its container.
    fn sealed_frames(&self, pending: &Pending) -> usize {
        let open = self.journal.open_lfc();
        pending.frames.partition_point(|f| Some(f.lfc()) < open)
    }

    /// After a start of a host that builds undo: takes the frames of the open container, which are in the journal but on no
    /// volume. Before the first request.
    ///
    /// # Errors
    /// When a volume is unknown.
    pub fn resume(&self, frames: &[Arc<Frame>]) -> Result<(), JournalError> {
        let mut owner = self.owner.lock();
        frames.iter().try_for_each(|frame| self.absorb(&mut owner, frame))
    }

    /// The volumes now hold every record of `frames`, which came from [`Tap::take_durable`] or [`Tap::take_container`]:
    /// releases what those records own, and moves the cursor.
    ///
    /// # Errors
    /// When a volume is unknown.
    ///
    /// # Panics
    /// When a frame is past `durable` (invariant 2).
    pub fn written_back(&self, frames: &[Arc<Frame>]) -> Result<(), JournalError> {
        let Some(last) = frames.last() else { return Ok(()) };
        let durable = self.journal.cursors().durable;
        assert!(
            last.last_seq() <= durable,
            "invariant 2: written back {} > durable {durable}",
            last.last_seq()
        );
        for frame in frames {
            for record in frame.records() {
                if let Some(range) = record.changed() {
                    self.volume(record.volume)?
                        .overlay
                        .write()
                        .release(range, last.last_seq());
                }
            }
        }
        let mut pending = self.pending.lock();
        while pending
            .frames
            .front()
            .is_some_and(|f| f.last_seq() <= last.last_seq())
        {
            if let Some(frame) = pending.frames.pop_front() {
                pending.bytes -= frame.len() as u64;
            }
        }
        drop(pending);
        self.room.notify_all();
        self.journal.set_written_back(last.last_seq());
        Ok(())
    }

    /// Bytes of frames that wait for write-back.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.pending.lock().bytes
    }

    /// Syncs the journal once, if anything waits for it, and answers the flushes it covers. Called in a loop by the sync
    /// thread, which sleeps in [`Flushes::wait_for_work`].
    ///
    /// # Errors
    /// When the sync fails; the context is then poisoned and every waiting flush has been told.
    pub fn sync_once(&self) -> Result<WriteSeq, JournalError> {
        match self.journal.sync() {
            Ok(durable) => {
                self.flushes.synced(durable);
                Ok(durable)
            }
            Err(error) => {
                let poisoned = self.journal.poisoned();
                let why = poisoned.unwrap_or(JournalError::Internal("a sync failed without poisoning"));
                let why = Arc::new(why);
                self.flushes.failed(&why);
                self.gate.end(&why);
                Err(error)
            }
        }
    }
}

/// Adds the pieces of `range` as the volume itself knows them.
fn below(
    medium: &dyn Medium,
    range: ByteRange,
    out: &mut Vec<(ByteRange, bool)>,
) -> Result<(), JournalError> {
    let mut at = range.start;
    while at < range.end {
        let data = medium.next_data(at).map_err(|e| JournalError::io("volume", e))?;
        let start = data.map_or(range.end, |d| d.start.clamp(at, range.end));
        if start > at {
            out.push((
                ByteRange {
                    start: at,
                    end: start,
                },
                true,
            ));
        }
        let end = data.map_or(range.end, |d| d.end.clamp(start, range.end));
        if end > start {
            out.push((ByteRange { start, end }, false));
        }
        at = end.max(start);
    }
    Ok(())
}
