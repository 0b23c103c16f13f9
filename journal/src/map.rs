//! State maps: which regions of a volume differ from the peer without the journal covering it (`rules.md` C4).
//!
//! A cell is clean or stale; a stale cell holds the newest position that was dropped for its region, so that a copy that
//! was taken before that position cannot clear it. A volume has a default cell, and only chunks of cells that differ from
//! it are kept, run-length coded: memory and rows grow with what differs, not with the volume.
//!
//! Marking is durable before it returns, because what it stands in for is dropped next (T7). Clearing may be lost.
//!
//! # Two kinds of stale
//!
//! A region whose records were dropped differs only from a peer that has not received them: a peer that turns out to have
//! them all lacks nothing ([`Journal::forget_covered`]). A *suspect* region may differ whatever the peer has received: an
//! operator said so, another host's map did, a map was loaded, or the map itself was lost. Only a copy makes it clean, and
//! the peer must not take itself for consistent before ([`Journal::is_suspect`]).

pub(crate) mod lost;
pub(crate) mod operator;
pub mod text;

use crate::{
    codec::{Malformed, Read, Reader, len32},
    error::JournalError,
    journal::Journal,
    keys,
};
use model::{
    BLOCK_SIZE, ByteRange, VolumeIndex, WriteSeq,
    ports::{Batch, Change, Family},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
};

/// Cells of one row.
const CHUNK_CELLS: u64 = 1024;
/// Newest version of a map's rows: the first with suspect cells. Rows without them stay of version 1.
const VERSION: u8 = 2;
/// Set in the code of a suspect cell.
const SUSPECT: u64 = 1 << 63;

/// State of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Equal to the peer, or covered by the journal.
    Clean,
    /// Differs, unless the peer has received what was dropped; the newest position dropped for it.
    Stale(WriteSeq),
    /// May differ, whatever the peer has received; a copy at or before this position does not make it clean.
    Suspect(WriteSeq),
}

impl Cell {
    fn code(self) -> u64 {
        let next = |seq: WriteSeq| seq.0.saturating_add(1) & !SUSPECT;
        match self {
            Self::Clean => 0,
            Self::Stale(seq) => next(seq),
            Self::Suspect(seq) => next(seq) | SUSPECT,
        }
    }

    fn of(code: u64, version: u8) -> Read<Self> {
        match (code & !SUSPECT, code & SUSPECT != 0) {
            (0, false) => Ok(Self::Clean),
            (next, false) => Ok(Self::Stale(WriteSeq(next - 1))),
            (next @ 1.., true) if version >= 2 => Ok(Self::Suspect(WriteSeq(next - 1))),
            _ => Err(Malformed::What("a cell is none that its version knows")),
        }
    }

    const fn is_suspect(self) -> bool {
        matches!(self, Self::Suspect(_))
    }

    /// The cell when something was dropped for it up to `seq`.
    fn dropped(self, seq: WriteSeq) -> Self {
        match self {
            Self::Clean => Self::Stale(seq),
            Self::Stale(old) => Self::Stale(old.max(seq)),
            Self::Suspect(old) => Self::Suspect(old.max(seq)),
        }
    }

    /// The cell when it may differ as of `seq`.
    fn doubted(self, seq: WriteSeq) -> Self {
        match self {
            Self::Clean => Self::Suspect(seq),
            Self::Stale(old) | Self::Suspect(old) => Self::Suspect(old.max(seq)),
        }
    }

    /// The cell when a copy that was taken at `copied` is on the peer's volume (`rules.md` C4).
    fn copied(self, copied: WriteSeq) -> Self {
        match self {
            Self::Stale(seq) | Self::Suspect(seq) if seq < copied => Self::Clean,
            cell => cell,
        }
    }

    /// The cell when the peer turns out to have all that was dropped.
    const fn forgotten(self) -> Self {
        match self {
            Self::Stale(_) => Self::Clean,
            cell => cell,
        }
    }
}

/// A run of equal cells: `count` of them.
type Run = (u32, Cell);

/// The map of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeMap {
    pub(crate) size: u64,
    region_size: u64,
    default: Cell,
    chunks: BTreeMap<u64, Vec<Run>>,
}

/// What a volume's map is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes of a region.
    pub region_size: u64,
    /// State of cells that nothing was said about.
    pub default: Cell,
}

pub(crate) struct StateMaps {
    pub(crate) all: Mutex<BTreeMap<VolumeIndex, VolumeMap>>,
    lost: Mutex<lost::Lost>,
    /// Some cell may be suspect. Raised and lowered with `all` locked.
    suspect: AtomicBool,
}

impl StateMaps {
    pub(crate) fn new(loaded: lost::Loaded) -> Self {
        Self {
            suspect: AtomicBool::new(loaded.maps.values().any(VolumeMap::is_suspect)),
            all: Mutex::new(loaded.maps),
            lost: Mutex::new(loaded.lost),
        }
    }
}

impl VolumeMap {
    fn new(shape: MapShape) -> Self {
        Self {
            size: shape.size,
            region_size: shape.region_size,
            default: shape.default,
            chunks: BTreeMap::new(),
        }
    }

    fn cells(&self) -> u64 {
        self.size.div_ceil(self.region_size)
    }

    /// The cell behind the last one of a range.
    fn end_of(&self, range: ByteRange) -> u64 {
        range.end.min(self.size).div_ceil(self.region_size)
    }

    /// Refuses a range that passes the volume's end by more than its last block: it would be in no set.
    fn check_end(&self, range: ByteRange) -> Result<(), JournalError> {
        if range.end > self.size.next_multiple_of(BLOCK_SIZE) {
            return Err(JournalError::Refused(format!(
                "bytes {} to {} pass the end of a state map of {}",
                range.start, range.end, self.size
            )));
        }
        Ok(())
    }

    fn is_suspect(&self) -> bool {
        self.kinds().any(Cell::is_suspect)
    }

    /// What its cells are, run by run. A chunk goes on past the volume's end, with cells that are the default's: they are none of them.
    fn kinds(&self) -> impl Iterator<Item = Cell> {
        let cells = self.cells();
        let of_chunks = self.chunks.iter().flat_map(move |(chunk, runs)| {
            let mut at = chunk * CHUNK_CELLS;
            runs.iter().filter_map(move |(count, cell)| {
                let first = at;
                at += u64::from(*count);
                (first < cells).then_some(*cell)
            })
        });
        self.has_default()
            .then_some(self.default)
            .into_iter()
            .chain(of_chunks)
    }

    /// Makes it cover more of its volume. Both hosts have zeroes there: what is wholly new is clean, whatever the default is.
    pub(crate) fn grow(&mut self, volume: VolumeIndex, size: u64, batch: &mut Batch) {
        if size <= self.size {
            return;
        }
        let before = self.cells();
        self.size = size;
        self.put_row(batch, volume);
        if self.default == Cell::Clean {
            return;
        }
        for chunk in self.change(before, self.cells(), |_| Cell::Clean) {
            self.put_chunk(batch, volume, chunk);
        }
    }

    /// Whether any cell is the default's because nothing was said about its chunk.
    fn has_default(&self) -> bool {
        let chunks = self.cells().div_ceil(CHUNK_CELLS);
        (self.chunks.range(..chunks).count() as u64) < chunks
    }

    /// What every cell becomes, if all become the same.
    fn all_become(&self, to: impl Fn(Cell) -> Cell) -> Option<Cell> {
        let mut all = self.kinds().map(to);
        let cell = all.next()?;
        all.all(|other| other == cell).then_some(cell)
    }

    /// Sets every cell, and the default with them; answers the chunks that are gone.
    fn set_all(&mut self, to: Cell) -> Vec<u64> {
        self.default = to;
        std::mem::take(&mut self.chunks).into_keys().collect()
    }

    /// What was dropped is not stale any more; answers the chunks that changed.
    fn forget_drops(&mut self) -> Vec<u64> {
        if self.is_suspect() {
            self.change(0, self.cells(), Cell::forgotten)
        } else {
            self.set_all(Cell::Clean)
        }
    }

    /// State of a cell, and the first cell behind it that may have another.
    fn run_at(&self, cell: u64) -> (Cell, u64) {
        let chunk = cell / CHUNK_CELLS;
        let Some(runs) = self.chunks.get(&chunk) else {
            let next = self.chunks.range(chunk..).next();
            return (
                self.default,
                next.map_or(self.cells(), |(chunk, _)| chunk * CHUNK_CELLS),
            );
        };
        let mut end = chunk * CHUNK_CELLS;
        for (count, state) in runs {
            end += u64::from(*count);
            if cell < end {
                return (*state, end);
            }
        }
        (self.default, end)
    }

    fn cell(&self, cell: u64) -> Cell {
        self.run_at(cell).0
    }

    /// The first stretch of stale cells at or after `from`, at most `max` of them.
    fn next_stale(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let (mut at, cells) = (from, self.cells());
        let mut found: Option<(u64, u64)> = None;
        while at < cells && found.is_none_or(|(start, end)| end == at && end - start < max) {
            let (state, end) = self.run_at(at);
            if state != Cell::Clean {
                let start = found.map_or(at, |(start, _)| start);
                found = Some((start, end.min(cells).min(start + max)));
            } else if found.is_some() {
                break;
            }
            at = end;
        }
        found
    }

    /// Changes the cells `first..end`; answers the chunks that changed.
    fn change(&mut self, first: u64, end: u64, to: impl Fn(Cell) -> Cell) -> Vec<u64> {
        // The copy of a hole may be of a whole volume: it is no more to remember than that.
        if first == 0
            && end >= self.cells()
            && let Some(cell) = self.all_become(&to)
        {
            return self.set_all(cell);
        }
        let mut changed = Vec::new();
        let mut at = first;
        while at < end {
            let chunk = at / CHUNK_CELLS;
            let stop = end.min((chunk + 1) * CHUNK_CELLS);
            let whole = vec![(u32::try_from(CHUNK_CELLS).unwrap_or(u32::MAX), self.default)];
            let before = self.chunks.get(&chunk).cloned().unwrap_or(whole);
            let after = change_runs(&before, at % CHUNK_CELLS, at % CHUNK_CELLS + (stop - at), &to);
            if after != before {
                changed.push(chunk);
                if after.iter().all(|(_, cell)| *cell == self.default) {
                    self.chunks.remove(&chunk);
                } else {
                    self.chunks.insert(chunk, after);
                }
            }
            at = stop;
        }
        changed
    }

    /// Runs of equal cells from `from` on, in bytes of the volume.
    fn runs(&self, from: u64) -> Vec<(ByteRange, Cell)> {
        let mut out: Vec<(ByteRange, Cell)> = Vec::new();
        let mut push = |start: u64, cells: u64, cell: Cell| {
            let (start, end) = (
                start * self.region_size,
                ((start + cells) * self.region_size).min(self.size),
            );
            match out.last_mut() {
                _ if start >= end => {}
                Some((range, last)) if *last == cell && range.end == start => range.end = end,
                _ => out.push((ByteRange { start, end }, cell)),
            }
        };
        let mut at = from;
        for (chunk, runs) in self.chunks.range(from / CHUNK_CELLS..) {
            let start = chunk * CHUNK_CELLS;
            push(at, start.saturating_sub(at), self.default);
            let mut cell_at = start;
            for (count, cell) in runs {
                let end = cell_at + u64::from(*count);
                let begin = cell_at.max(at);
                push(begin, end.saturating_sub(begin), *cell);
                cell_at = end;
            }
            at = at.max(cell_at);
        }
        push(at, self.cells().saturating_sub(at), self.default);
        out
    }

    fn encode_row(&self) -> Vec<u8> {
        let mut w = crate::codec::Writer::default();
        w.u8(version_of([self.default]))
            .u64(self.size)
            .u64(self.region_size)
            .u64(self.default.code())
            .done()
    }

    fn decode_row(bytes: &[u8]) -> Read<Self> {
        let mut r = Reader(bytes);
        let version = r.version_upto(VERSION)?;
        let (size, region_size, default) = (r.u64()?, r.u64()?, Cell::of(r.u64()?, version)?);
        r.end()?;
        if region_size == 0 {
            return Err(Malformed::What("its region size is zero"));
        }
        Ok(Self::new(MapShape {
            size,
            region_size,
            default,
        }))
    }

    fn put_row(&self, batch: &mut Batch, volume: VolumeIndex) {
        batch.put(Family::Map, keys::map_volume(volume), self.encode_row());
    }

    fn put_chunk(&self, batch: &mut Batch, volume: VolumeIndex, chunk: u64) {
        let key = keys::map_chunk(volume, chunk);
        match self.chunks.get(&chunk) {
            Some(runs) => batch.put(Family::Map, key, encode_runs(runs)),
            None => batch.delete(Family::Map, key),
        }
    }
}

fn change_runs(runs: &[Run], from: u64, to: u64, change: impl Fn(Cell) -> Cell) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    let mut push = |cells: u64, cell: Cell| {
        let count = u32::try_from(cells).unwrap_or(u32::MAX);
        match out.last_mut() {
            _ if count == 0 => {}
            Some((n, last)) if *last == cell => *n += count,
            _ => out.push((count, cell)),
        }
    };
    let mut at = 0;
    for (count, cell) in runs {
        let end = at + u64::from(*count);
        let (a, b) = (from.clamp(at, end), to.clamp(at, end));
        push(a - at, *cell);
        push(b - a, change(*cell));
        push(end - b, *cell);
        at = end;
    }
    out
}

fn version_of(cells: impl IntoIterator<Item = Cell>) -> u8 {
    if cells.into_iter().any(Cell::is_suspect) {
        VERSION
    } else {
        1
    }
}

fn encode_runs(runs: &[Run]) -> Vec<u8> {
    let mut w = crate::codec::Writer::default();
    w.u8(version_of(runs.iter().map(|(_, cell)| *cell)))
        .u16(u16::try_from(len32(runs.len())).unwrap_or(u16::MAX));
    for (count, cell) in runs {
        w.u32(*count).u64(cell.code());
    }
    w.done()
}

/// Both kinds of rows, for the fuzzers.
#[cfg(fuzzing)]
pub(crate) fn rows(bytes: &[u8]) {
    drop(VolumeMap::decode_row(bytes));
    drop(decode_runs(bytes));
}

/// A row of the family as text.
pub(crate) fn shown(key: &[u8], value: &[u8]) -> String {
    let mut parts = keys::Parts(key);
    let (volume, chunk) = (parts.u16(), parts.u64());
    let text = match (volume, chunk) {
        (Some(volume), None) => VolumeMap::decode_row(value).map(|map| {
            format!(
                "volume {volume}: shape size={} region={} default={:?}",
                map.size, map.region_size, map.default
            )
        }),
        (Some(volume), Some(chunk)) => decode_runs(value).map(|runs| {
            let runs = runs.iter().map(|(n, cell)| format!("{n}x{cell:?}"));
            format!(
                "volume {volume}: chunk {chunk} {}",
                runs.collect::<Vec<_>>().join(" ")
            )
        }),
        _ => Err(Malformed::What("the key has another form")),
    };
    text.unwrap_or_else(|e| format!("does not check: {e}"))
}

fn decode_runs(bytes: &[u8]) -> Read<Vec<Run>> {
    let mut r = Reader(bytes);
    let version = r.version_upto(VERSION)?;
    let n = r.u16()?;
    let runs = (0..n)
        .map(|_| Ok((r.u32()?, Cell::of(r.u64()?, version)?)))
        .collect::<Read<Vec<Run>>>()?;
    r.end()?;
    if runs.iter().map(|(n, _)| u64::from(*n)).sum::<u64>() != CHUNK_CELLS {
        return Err(Malformed::What("its runs are not one chunk"));
    }
    Ok(runs)
}

impl Journal {
    /// The volumes that have a map.
    #[must_use]
    pub fn mapped_volumes(&self) -> Vec<VolumeIndex> {
        self.maps.all.lock().keys().copied().collect()
    }

    /// The shape of a volume's map.
    #[must_use]
    pub fn map_shape(&self, volume: VolumeIndex) -> Option<MapShape> {
        let maps = self.maps.all.lock();
        maps.get(&volume).map(|m| MapShape {
            size: m.size,
            region_size: m.region_size,
            default: m.default,
        })
    }

    /// Gives a volume a map (a new volume is `Stale(0)` by default), or changes its size; the cells that there are stay,
    /// new ones have the default that the map has. A map that was lost is wholly suspect, whatever the default.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when the region size of a map would change, or a failure.
    pub fn set_map(&self, volume: VolumeIndex, shape: MapShape) -> Result<(), JournalError> {
        if self.lost_map(volume).is_some() {
            return self.require_map(volume, shape.size, shape.region_size).map(drop);
        }
        self.change_map(volume, Some(shape), |map| {
            if map.region_size != shape.region_size {
                return Err(JournalError::Refused("a map's region size never changes".into()));
            }
            // A map never gets shorter than what it was, nor than the storage: what lies behind its end is in no set.
            map.size = map.size.max(shape.size).max(self.extent(volume).unwrap_or(0));
            Ok(Vec::new())
        })
    }

    /// Sets every cell of a volume, and the default with it (`map clean`, a forced full resync).
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure.
    pub fn reset_map(&self, volume: VolumeIndex, to: Cell) -> Result<(), JournalError> {
        self.change_map(volume, None, |map| Ok(map.set_all(to)))
    }

    /// The regions of these ranges differ from the peer: `seq` is the newest position dropped for them. Durable when it
    /// returns.
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure.
    pub fn mark_stale(&self, ranges: &[(VolumeIndex, ByteRange)], seq: WriteSeq) -> Result<(), JournalError> {
        let mark = |map: &mut VolumeMap, range: ByteRange, _| {
            map.change(range.start / map.region_size, map.end_of(range), |cell| {
                cell.dropped(seq)
            })
        };
        // What it stands in for is dropped next.
        let ranges = ranges.iter().map(|(volume, range)| (*volume, *range, mark));
        self.change_cells(true, ranges).map(drop)
    }

    /// Copies are acknowledged, each taken at its position: their whole regions become clean where nothing at or past that
    /// was dropped (`rules.md` C4). After a crash they may be stale again: then they are copied again.
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure.
    pub fn clear_if_older(&self, copies: &[(VolumeIndex, ByteRange, WriteSeq)]) -> Result<(), JournalError> {
        let clear = |copied: WriteSeq| {
            move |map: &mut VolumeMap, range: ByteRange, _| {
                let first = range.start.div_ceil(map.region_size);
                // The last region may be cut short by the volume's end.
                let end = if range.end >= map.size {
                    map.cells()
                } else {
                    range.end / map.region_size
                };
                map.change(first, end, |cell| cell.copied(copied))
            }
        };
        let copies = copies
            .iter()
            .map(|(volume, range, copied)| (*volume, *range, clear(*copied)));
        self.change_cells(false, copies).map(drop)
    }

    /// Changes cells of any volumes in one batch, as of this host's position; answers that.
    fn change_cells<F: Fn(&mut VolumeMap, ByteRange, WriteSeq) -> Vec<u64>>(
        &self,
        relied: bool,
        changes: impl Iterator<Item = (VolumeIndex, ByteRange, F)>,
    ) -> Result<WriteSeq, JournalError> {
        let changes: Vec<_> = changes.collect();
        self.guarded(|| {
            // Changed under the lock, before the commit: if that fails the journal is poisoned and nobody acts on it.
            let mut maps = self.maps.all.lock();
            let at = self.cursors().appended;
            // All of them first: what is refused half way would be changed here and not in the store.
            for (volume, range, _) in &changes {
                let map = maps.get(volume).ok_or(JournalError::UnknownVolume(*volume))?;
                if relied {
                    map.check_end(*range)?;
                }
            }
            let (mut chunks, mut rows) = (BTreeSet::new(), BTreeMap::new());
            for (volume, range, change) in changes {
                let map = maps.get_mut(&volume).ok_or(JournalError::UnknownVolume(volume))?;
                rows.entry(volume).or_insert_with(|| map.encode_row());
                chunks.extend(change(map, range, at).into_iter().map(|chunk| (volume, chunk)));
            }
            let mut batch = Batch::default();
            for (volume, before) in rows {
                if let Some(map) = maps.get(&volume).filter(|map| map.encode_row() != before) {
                    map.put_row(&mut batch, volume);
                }
            }
            for (volume, chunk) in chunks {
                if let Some(map) = maps.get(&volume) {
                    map.put_chunk(&mut batch, volume, chunk);
                }
            }
            self.commit_maps(batch, relied)?;
            Ok(at)
        })
    }

    /// Commits rows of maps, which the caller has locked.
    pub(crate) fn commit_maps(&self, batch: Batch, relied: bool) -> Result<(), JournalError> {
        if batch.0.is_empty() {
            return Ok(());
        }
        let is_suspect =
            |change: &Change| matches!(change, Change::Put(_, _, row) if row.first() == Some(&VERSION));
        if batch.0.iter().any(is_suspect) {
            self.maps.suspect.store(true, Ordering::Release);
        }
        self.commit(batch, relied)
    }

    fn change_map(
        &self,
        volume: VolumeIndex,
        new: Option<MapShape>,
        change: impl FnOnce(&mut VolumeMap) -> Result<Vec<u64>, JournalError>,
    ) -> Result<(), JournalError> {
        self.guarded(|| {
            // As in `change_cells`.
            let mut maps = self.maps.all.lock();
            let is_new = !maps.contains_key(&volume);
            let map = match new {
                Some(s) if s.region_size > 0 => maps.entry(volume).or_insert(VolumeMap::new(s)),
                _ => maps.get_mut(&volume).ok_or(JournalError::UnknownVolume(volume))?,
            };
            let row = map.encode_row();
            let changed = change(map)?;
            let mut batch = Batch::default();
            if is_new || map.encode_row() != row {
                map.put_row(&mut batch, volume);
            }
            for chunk in changed {
                map.put_chunk(&mut batch, volume, chunk);
            }
            self.commit_maps(batch, true)
        })
    }

    /// The peer has all that was dropped: what is stale for that alone is clean.
    pub(crate) fn forget_drops(&self, volume: VolumeIndex) -> Result<(), JournalError> {
        self.change_map(volume, None, |map| Ok(map.forget_drops()))
    }

    /// Whether any region is suspect: a peer that takes itself for consistent must be told that it may not be.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        // Asked for every frame that is sent, and almost always without a suspect cell.
        if !self.maps.suspect.load(Ordering::Acquire) {
            return false;
        }
        let maps = self.maps.all.lock();
        let any = maps.values().any(VolumeMap::is_suspect);
        self.maps.suspect.store(any, Ordering::Release);
        any
    }

    /// Bytes of stale regions, suspect ones among them.
    #[must_use]
    pub fn stale_bytes(&self, volume: VolumeIndex) -> u64 {
        self.map_runs(volume)
            .iter()
            .filter(|(_, c)| *c != Cell::Clean)
            .map(|(r, _)| r.len())
            .sum()
    }

    /// The whole map as runs of equal cells.
    #[must_use]
    pub fn map_runs(&self, volume: VolumeIndex) -> Vec<(ByteRange, Cell)> {
        self.maps
            .all
            .lock()
            .get(&volume)
            .map(|m| m.runs(0))
            .unwrap_or_default()
    }

    /// The first stretch of stale regions at or after byte `from`, whole regions, at most `bytes_max` of them (at least one
    /// region).
    #[must_use]
    pub fn next_stale(&self, volume: VolumeIndex, from: u64, bytes_max: u64) -> Option<ByteRange> {
        let maps = self.maps.all.lock();
        let map = maps.get(&volume)?;
        let max = (bytes_max / map.region_size).max(1);
        let (start, end) = map.next_stale(from.div_ceil(map.region_size), max)?;
        Some(ByteRange {
            start: start * map.region_size,
            end: (end * map.region_size).min(map.size),
        })
    }

    /// State of the region that holds byte `at`.
    #[must_use]
    pub fn cell(&self, volume: VolumeIndex, at: u64) -> Option<Cell> {
        self.maps
            .all
            .lock()
            .get(&volume)
            .map(|m| m.cell(at / m.region_size))
    }
}
