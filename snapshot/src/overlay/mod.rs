//! The private writes of one read-write user: bounded, and kept across restarts.
//!
//! # Overview
//!
//! Blocks that were written live in 4 KiB slots of a *data* medium; a [`SlotMap`] in memory says which block is in which
//! slot and which blocks are zero; everything else is read from below. The map is kept in an append-only *index log*
//! (byte table: `docs/formats/overlay.md`). Both media are given with their largest length; sparse files are meant.
//!
//! # Invariants
//!
//! * An entry is logged only after the data it points to is durable: [`Overlay::flush`] syncs the data, then writes and
//!   syncs the entries. So a flushed write survives power loss, and no entry ever points to bytes of another time.
//! * A slot is given to another block only when the entry that took it from the first one is durable.
//! * A block that has a slot is written in place: what an unflushed write leaves there after power loss is some mix of the
//!   old and the new bytes *of that write*, as on any disk.
//!
//! # Crash consistency
//!
//! Reopening reads the log up to the first entry that does not check and then begins a new generation of it in the other
//! half, so that what lies behind a torn end can never become valid again. Torn is told from damaged: an entry carries
//! how many before it were durable, and the header how many it was begun with.
//!
//! # What it does not do
//!
//! An unflushed write does not survive a restart of the process, as with a disk's volatile cache. Rot in the entries of
//! the very last flush is taken for a torn end; rot in slots is not detected. It knows no sizes; [`crate::Vdev`] does.

mod log;
mod map;

use crate::{
    BLOCK,
    error::{Result, SnapshotError},
};
use log::{BLOCKS_MAX, Entry, Log};
use map::{Mapped, Place, SlotMap, Slots};
use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex, ports::Medium};
use parking_lot::{Mutex, RwLock};
use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Most bytes of a volume.
const BYTES_MAX: u64 = BLOCKS_MAX * BLOCK_SIZE;
/// Entries that may wait for a flush; bounds memory.
const PENDING_MAX: usize = 1 << 16;
/// Separate zeroed ranges that a log made with [`Overlay::log_len`] has room for.
const ZERO_RUNS: u64 = 1 << 16;

/// Reads the bytes below the overlay.
pub(crate) type Below<'a> = &'a dyn Fn(VolumeIndex, u64, &mut [u8]) -> Result<()>;

/// Private writes over something that does not change.
pub struct Overlay {
    data: Arc<dyn Medium>,
    /// Taken first, and for the whole of a flush: one at a time.
    log: Mutex<Log>,
    /// Entries that a half of the log has room for.
    log_entries: u64,
    state: RwLock<State>,
    poisoned: AtomicBool,
}

struct State {
    map: SlotMap,
    slots: Slots,
    /// Changes of the map that are in no log entry yet.
    pending: Vec<Entry>,
}

/// How full an overlay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayUsage {
    /// Blocks in use.
    pub blocks_used: u64,
    /// Blocks there are.
    pub blocks: u64,
}

impl Overlay {
    /// The length that the log medium needs for a data medium of `data_len` bytes.
    #[must_use]
    pub const fn log_len(data_len: u64) -> u64 {
        let entries = 3 * (data_len / BLOCK_SIZE) + ZERO_RUNS;
        2 * Log::half_len(entries)
    }

    /// Makes a new overlay; whatever the media held is void. `id` ties the log to its owner: give a random one, and keep it.
    ///
    /// # Errors
    /// When the log is too short for the data ([`Overlay::log_len`] is enough) or storage fails.
    pub fn create(data: Arc<dyn Medium>, log: Arc<dyn Medium>, id: u64) -> Result<Self> {
        let slots = data.len() / BLOCK_SIZE;
        let log = Log::create(log, id, slots)?;
        Ok(Self::with(data, log, SlotMap::default()))
    }

    /// Opens an overlay that was made with the same `id` and data length.
    ///
    /// # Errors
    /// When the log is another's, is damaged, or storage fails.
    pub fn open(data: Arc<dyn Medium>, log: Arc<dyn Medium>, id: u64) -> Result<Self> {
        let slots = data.len() / BLOCK_SIZE;
        let (mut log, entries) = Log::open(log, id, slots)?;
        let mut map = SlotMap::default();
        for entry in entries {
            map.set(entry.volume, entry.block, entry.count, entry.place);
        }
        map.check_distinct_slots()?;
        log.restart(&map.entries())?;
        Ok(Self::with(data, log, map))
    }

    fn with(data: Arc<dyn Medium>, log: Log, map: SlotMap) -> Self {
        let slots = Slots::around(data.len() / BLOCK_SIZE, &map);
        Self {
            data,
            log_entries: log.capacity(),
            log: Mutex::new(log),
            state: RwLock::new(State {
                map,
                slots,
                pending: Vec::new(),
            }),
            poisoned: AtomicBool::new(false),
        }
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> OverlayUsage {
        let state = self.state.read();
        OverlayUsage {
            blocks_used: state.slots.total() - state.slots.free(),
            blocks: state.slots.total(),
        }
    }

    /// Fills what the overlay has of `buf`, which is the volume from byte `at` on; answers the parts that it has not.
    pub(crate) fn read<'a>(
        &self,
        volume: VolumeIndex,
        at: u64,
        buf: &'a mut [u8],
    ) -> Result<Vec<(u64, &'a mut [u8])>> {
        self.check_poison()?;
        let range = ByteRange::at(at, buf.len() as u64);
        let (mut rest, mut below) = (buf, Vec::new());
        let state = self.state.read();
        for piece in state.map.lookup_bytes(volume, range) {
            let Some(part) = piece.range().intersect(range) else {
                continue;
            };
            let out;
            (out, rest) = rest.split_at_mut(index(part.len()));
            match piece.place {
                Some(Place::Slot(slot)) => {
                    let from = slot * BLOCK_SIZE + (part.start - piece.range().start);
                    self.data
                        .read_at(from, out)
                        .map_err(|e| failed("read", from, e))?;
                }
                Some(Place::Zero) => out.fill(0),
                None => below.push((part.start, out)),
            }
        }
        Ok(below)
    }

    /// Writes `bytes` at byte `at`. `below` fills up the blocks that are written in part for the first time.
    pub(crate) fn write(&self, volume: VolumeIndex, at: u64, bytes: &[u8], below: Below<'_>) -> Result<()> {
        let range = ByteRange::at(at, bytes.len() as u64);
        check_end(volume, range)?;
        if range.is_empty() {
            return self.check_poison();
        }
        let mut flushed = false;
        loop {
            self.check_poison()?;
            let mut guard = self.state.write();
            let state = &mut *guard;
            let pieces = state.map.lookup_bytes(volume, range);
            let needed: u64 = pieces
                .iter()
                .filter(|p| !matches!(p.place, Some(Place::Slot(_))))
                .map(|p| p.count)
                .sum();
            let no_room = needed > state.slots.available();
            if needed > state.slots.free() {
                return Err(SnapshotError::OverlayFull {
                    used: state.slots.total() - state.slots.free(),
                    slots: state.slots.total(),
                    needed,
                });
            }
            if no_room || (!flushed && state.pending.len() >= PENDING_MAX) {
                // Slots that were freed can be used again once that is durable.
                drop(guard);
                self.flush()?;
                flushed = true;
                continue;
            }
            for piece in pieces {
                self.write_piece(state, volume, piece, range, bytes, below)?;
            }
            return Ok(());
        }
    }

    fn write_piece(
        &self,
        state: &mut State,
        volume: VolumeIndex,
        piece: Mapped,
        range: ByteRange,
        bytes: &[u8],
        below: Below<'_>,
    ) -> Result<()> {
        if let Some(Place::Slot(slot)) = piece.place {
            if let Some(part) = piece.range().intersect(range) {
                let to = slot * BLOCK_SIZE + (part.start - piece.range().start);
                let part = &bytes[within(range, part)];
                self.data.write_at(to, part).map_err(|e| failed("write", to, e))?;
            }
            return Ok(());
        }
        let mut left = piece;
        while left.count > 0 {
            let Some((slot, count)) = state.slots.take(left.count) else {
                return Err(SnapshotError::OverlayFull {
                    used: state.slots.total(),
                    slots: state.slots.total(),
                    needed: left.count,
                });
            };
            let now = Mapped { count, ..left };
            if let Err(e) = self.fill_slots(volume, now, slot, range, bytes, below) {
                state.slots.give_back(slot, count);
                return Err(e);
            }
            state.change(volume, now.block, count, Place::Slot(slot));
            left.block.0 += count;
            left.count -= count;
        }
        Ok(())
    }

    /// Writes whole blocks to fresh slots: the new bytes, and around them what was there before.
    fn fill_slots(
        &self,
        volume: VolumeIndex,
        piece: Mapped,
        slot: u64,
        range: ByteRange,
        bytes: &[u8],
        below: Below<'_>,
    ) -> Result<()> {
        let to = slot * BLOCK_SIZE;
        let whole = piece.range();
        let Some(part) = whole.intersect(range) else {
            return Ok(());
        };
        let bytes = &bytes[within(range, part)];
        if part == whole {
            return self.data.write_at(to, bytes).map_err(|e| failed("write", to, e));
        }
        let mut buf = vec![0; index(whole.len())];
        if piece.place.is_none() {
            // Only the first and the last block can be written in part.
            if part.start > whole.start {
                below(volume, whole.start, &mut buf[..BLOCK])?;
            }
            if part.end < whole.end && (whole.len() > BLOCK_SIZE || part.start == whole.start) {
                let last = buf.len() - BLOCK;
                below(volume, whole.end - BLOCK_SIZE, &mut buf[last..])?;
            }
        }
        buf[within(whole, part)].copy_from_slice(bytes);
        self.data.write_at(to, &buf).map_err(|e| failed("write", to, e))
    }

    /// Makes a range zero; whole blocks give their slots back.
    pub(crate) fn zero(&self, volume: VolumeIndex, range: ByteRange, below: Below<'_>) -> Result<()> {
        self.check_poison()?;
        check_end(volume, range)?;
        let inner = ByteRange {
            start: range.start.next_multiple_of(BLOCK_SIZE),
            end: range.end / BLOCK_SIZE * BLOCK_SIZE,
        };
        if inner.is_empty() {
            let blocks = index(range.len());
            return self.write(volume, range.start, &vec![0; blocks], below);
        }
        for edge in [
            ByteRange {
                start: range.start,
                end: inner.start,
            },
            ByteRange {
                start: inner.end,
                end: range.end,
            },
        ] {
            self.write(volume, edge.start, &vec![0; index(edge.len())], below)?;
        }
        let entries = self.log_entries;
        let mut state = self.state.write();
        // Data can split zeroed ranges once a slot at most: with this bound a rewritten log always fits.
        if state.map.zero_runs() + 2 * state.slots.total() >= entries {
            return Err(SnapshotError::OverlayLogFull { entries });
        }
        let flush = state.pending.len() >= PENDING_MAX;
        state.change(
            volume,
            BlockNo::of(inner.start),
            inner.len() / BLOCK_SIZE,
            Place::Zero,
        );
        drop(state);
        if flush { self.flush() } else { Ok(()) }
    }

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// When storage fails; the overlay is then poisoned, because nobody knows what is durable.
    pub fn flush(&self) -> Result<()> {
        let mut log = self.log.lock();
        self.check_poison()?;
        let mut state = self.state.write();
        let pending = std::mem::take(&mut state.pending);
        let freed = state.slots.take_freed();
        let rewrite = (!log.has_room(pending.len())).then(|| state.map.entries());
        drop(state);
        let logged = self
            .data
            .sync()
            .map_err(|e| failed("sync data", 0, e))
            .and_then(|()| match &rewrite {
                Some(all) => log.restart(all),
                None => log.append(&pending),
            });
        if let Err(e) = logged {
            self.poisoned.store(true, Ordering::Release);
            return Err(e);
        }
        self.state.write().slots.freed_now(freed);
        Ok(())
    }

    /// Which blocks of a range the overlay holds, and whether they are zero; `None` where it holds nothing.
    pub(crate) fn held(&self, volume: VolumeIndex, range: ByteRange) -> Vec<(ByteRange, Option<bool>)> {
        let state = self.state.read();
        let pieces = state.map.lookup_bytes(volume, range);
        drop(state);
        pieces
            .iter()
            .filter_map(|p| {
                Some((
                    p.range().intersect(range)?,
                    p.place.map(|place| place == Place::Zero),
                ))
            })
            .collect()
    }

    fn check_poison(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(SnapshotError::OverlayPoisoned);
        }
        Ok(())
    }
}

impl State {
    fn change(&mut self, volume: VolumeIndex, block: BlockNo, count: u64, place: Place) {
        for (slot, count) in self.map.set(volume, block, count, place) {
            self.slots.freed_later(slot, count);
        }
        let entry = Entry {
            volume,
            block,
            count,
            place,
        };
        match self.pending.last_mut() {
            Some(last) if last.continued_by(&entry) => last.count += count,
            _ => self.pending.push(entry),
        }
    }
}

/// Refuses what an entry of the log has no bits for.
fn check_end(volume: VolumeIndex, range: ByteRange) -> Result<()> {
    if range.end > BYTES_MAX {
        return Err(SnapshotError::PastEnd {
            volume,
            at: range.start,
            len: range.len(),
            size: BYTES_MAX,
        });
    }
    Ok(())
}

fn failed(op: &'static str, at: u64, source: io::Error) -> SnapshotError {
    SnapshotError::OverlayIo { op, at, source }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("lengths here are bounded by a buffer in memory")
}

fn within(whole: ByteRange, part: ByteRange) -> Range<usize> {
    index(part.start - whole.start)..index(part.end - whole.start)
}
