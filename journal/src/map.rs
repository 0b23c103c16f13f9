//! State maps: which regions of a volume differ from the peer without the journal covering it (`rules.md` C4).
//!
//! A cell is clean or stale; a stale cell holds the newest position that was dropped for its region, so that a copy that
//! was taken before that position cannot clear it. A volume has a default cell, and only chunks of cells that differ from
//! it are kept, run-length coded: memory and rows grow with what differs, not with the volume.
//!
//! Marking is durable before it returns, because what it stands in for is dropped next (T7). Clearing may be lost.

use crate::{
    codec::{Malformed, Read, Reader, len32},
    error::JournalError,
    journal::Journal,
    keys::{self, Parts},
    rows::{bad_key, checked},
};
use model::{
    ByteRange, VolumeIndex, WriteSeq,
    ports::{Batch, Family, Store},
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};

/// Cells of one row.
const CHUNK_CELLS: u64 = 1024;

/// State of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Equal to the peer, or covered by the journal.
    Clean,
    /// Differs; the newest position dropped for it.
    Stale(WriteSeq),
}

impl Cell {
    fn code(self) -> u64 {
        match self {
            Self::Clean => 0,
            Self::Stale(seq) => seq.0.saturating_add(1),
        }
    }

    fn of(code: u64) -> Self {
        if code == 0 {
            Self::Clean
        } else {
            Self::Stale(WriteSeq(code - 1))
        }
    }
}

/// A run of equal cells: `count` of them.
type Run = (u32, Cell);

/// The map of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeMap {
    size: u64,
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

pub(crate) struct StateMaps(Mutex<BTreeMap<VolumeIndex, VolumeMap>>);

impl StateMaps {
    pub(crate) fn new(maps: BTreeMap<VolumeIndex, VolumeMap>) -> Self {
        Self(Mutex::new(maps))
    }
}

impl VolumeMap {
    fn cells(&self) -> u64 {
        self.size.div_ceil(self.region_size)
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
        w.u8(1)
            .u64(self.size)
            .u64(self.region_size)
            .u64(self.default.code())
            .done()
    }

    fn decode_row(bytes: &[u8]) -> Read<Self> {
        let mut r = Reader(bytes);
        r.version(1)?;
        let (size, region_size, default) = (r.u64()?, r.u64()?, Cell::of(r.u64()?));
        r.end()?;
        if region_size == 0 {
            return Err(Malformed::What("its region size is zero"));
        }
        Ok(Self {
            size,
            region_size,
            default,
            chunks: BTreeMap::new(),
        })
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

fn encode_runs(runs: &[Run]) -> Vec<u8> {
    let mut w = crate::codec::Writer::default();
    w.u8(1).u16(u16::try_from(len32(runs.len())).unwrap_or(u16::MAX));
    for (count, cell) in runs {
        w.u32(*count).u64(cell.code());
    }
    w.done()
}

fn decode_runs(bytes: &[u8]) -> Read<Vec<Run>> {
    let mut r = Reader(bytes);
    r.version(1)?;
    let n = r.u16()?;
    let runs = (0..n)
        .map(|_| Ok((r.u32()?, Cell::of(r.u64()?))))
        .collect::<Read<Vec<Run>>>()?;
    r.end()?;
    if runs.iter().map(|(n, _)| u64::from(*n)).sum::<u64>() != CHUNK_CELLS {
        return Err(Malformed::What("its runs are not one chunk"));
    }
    Ok(runs)
}

pub(crate) fn load_maps(store: &dyn Store) -> Result<BTreeMap<VolumeIndex, VolumeMap>, JournalError> {
    let mut maps: BTreeMap<VolumeIndex, VolumeMap> = BTreeMap::new();
    let mut fault = None;
    store.scan(Family::Map, &[], &[0xff; 11], &mut |key, value| {
        let mut p = Parts(key);
        let volume = p.u16().map(VolumeIndex);
        let result = match (volume, p.u64()) {
            (Some(volume), None) if key.len() == 2 => {
                checked("map", key, VolumeMap::decode_row(value)).map(|map| drop(maps.insert(volume, map)))
            }
            (Some(volume), Some(chunk)) => checked("map", key, decode_runs(value)).and_then(|runs| {
                let map = maps.get_mut(&volume).ok_or_else(|| bad_key("map", key))?;
                map.chunks.insert(chunk, runs);
                Ok(())
            }),
            _ => Err(bad_key("map", key)),
        };
        fault = result.err();
        fault.is_none()
    })?;
    fault.map_or(Ok(maps), Err)
}

impl Journal {
    /// The volumes that have a map.
    #[must_use]
    pub fn mapped_volumes(&self) -> Vec<VolumeIndex> {
        self.maps.0.lock().keys().copied().collect()
    }

    /// The shape of a volume's map.
    #[must_use]
    pub fn map_shape(&self, volume: VolumeIndex) -> Option<MapShape> {
        let maps = self.maps.0.lock();
        maps.get(&volume).map(|m| MapShape {
            size: m.size,
            region_size: m.region_size,
            default: m.default,
        })
    }

    /// Gives a volume a map (a new volume is `Stale(0)` by default), or changes its size; the cells that there are stay,
    /// new ones have the default that the map has.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when the region size of a map would change, or a failure.
    pub fn set_map(&self, volume: VolumeIndex, shape: MapShape) -> Result<(), JournalError> {
        self.change_map(volume, Some(shape), |map| {
            if map.region_size != shape.region_size {
                return Err(JournalError::Refused("a map's region size never changes".into()));
            }
            map.size = shape.size;
            Ok(Vec::new())
        })
    }

    /// Sets every cell of a volume, and the default with it (`map clean`, a forced full resync).
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure.
    pub fn reset_map(&self, volume: VolumeIndex, to: Cell) -> Result<(), JournalError> {
        self.change_map(volume, None, |map| {
            map.default = to;
            let gone = map.chunks.keys().copied().collect();
            map.chunks.clear();
            Ok(gone)
        })
    }

    /// The regions of these ranges differ from the peer: `seq` is the newest position dropped for them. Durable when it
    /// returns.
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure.
    pub fn mark_stale(&self, ranges: &[(VolumeIndex, ByteRange)], seq: WriteSeq) -> Result<(), JournalError> {
        let mark = |map: &mut VolumeMap, range: ByteRange| {
            let end = range.end.min(map.size).div_ceil(map.region_size);
            map.change(range.start / map.region_size, end, |cell| match cell {
                Cell::Stale(old) if old >= seq => cell,
                _ => Cell::Stale(seq),
            })
        };
        // What it stands in for is dropped next.
        self.change_cells(true, ranges.iter().map(|(volume, range)| (*volume, *range, mark)))
    }

    /// Copies are acknowledged, each taken at its position: their whole regions become clean where nothing at or past that
    /// was dropped (`rules.md` C4). After a crash they may be stale again: then they are copied again.
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure.
    pub fn clear_if_older(&self, copies: &[(VolumeIndex, ByteRange, WriteSeq)]) -> Result<(), JournalError> {
        let clear = |copied: WriteSeq| {
            move |map: &mut VolumeMap, range: ByteRange| {
                let first = range.start.div_ceil(map.region_size);
                // The last region may be cut short by the volume's end.
                let end = if range.end >= map.size {
                    map.cells()
                } else {
                    range.end / map.region_size
                };
                map.change(first, end, |cell| match cell {
                    Cell::Stale(seq) if seq < copied => Cell::Clean,
                    _ => cell,
                })
            }
        };
        let copies = copies
            .iter()
            .map(|(volume, range, copied)| (*volume, *range, clear(*copied)));
        self.change_cells(false, copies)
    }

    /// Changes cells of any volumes in one batch.
    fn change_cells<F: Fn(&mut VolumeMap, ByteRange) -> Vec<u64>>(
        &self,
        relied: bool,
        changes: impl Iterator<Item = (VolumeIndex, ByteRange, F)>,
    ) -> Result<(), JournalError> {
        self.guarded(|| {
            // Changed under the lock, before the commit: if that fails the journal is poisoned and nobody acts on it.
            let mut maps = self.maps.0.lock();
            let mut chunks = BTreeSet::new();
            for (volume, range, change) in changes {
                let map = maps.get_mut(&volume).ok_or(JournalError::UnknownVolume(volume))?;
                chunks.extend(change(map, range).into_iter().map(|chunk| (volume, chunk)));
            }
            let mut batch = Batch::default();
            for (volume, chunk) in chunks {
                if let Some(map) = maps.get(&volume) {
                    map.put_chunk(&mut batch, volume, chunk);
                }
            }
            if batch.0.is_empty() {
                Ok(())
            } else {
                self.commit(batch, relied)
            }
        })
    }

    fn change_map(
        &self,
        volume: VolumeIndex,
        new: Option<MapShape>,
        change: impl FnOnce(&mut VolumeMap) -> Result<Vec<u64>, JournalError>,
    ) -> Result<(), JournalError> {
        self.guarded(|| {
            // As in `change_cells`.
            let mut maps = self.maps.0.lock();
            let is_new = !maps.contains_key(&volume);
            let map = match new {
                Some(s) if s.region_size > 0 => maps.entry(volume).or_insert(VolumeMap {
                    size: s.size,
                    region_size: s.region_size,
                    default: s.default,
                    chunks: BTreeMap::new(),
                }),
                _ => maps.get_mut(&volume).ok_or(JournalError::UnknownVolume(volume))?,
            };
            let row = map.encode_row();
            let changed = change(map)?;
            let mut batch = Batch::default();
            if is_new || map.encode_row() != row {
                batch.put(Family::Map, keys::map_volume(volume), map.encode_row());
            }
            for chunk in changed {
                map.put_chunk(&mut batch, volume, chunk);
            }
            if batch.0.is_empty() {
                Ok(())
            } else {
                self.commit(batch, true)
            }
        })
    }

    /// Bytes of stale regions.
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
            .0
            .lock()
            .get(&volume)
            .map(|m| m.runs(0))
            .unwrap_or_default()
    }

    /// The first stretch of stale regions at or after byte `from`, whole regions, at most `bytes_max` of them (at least one
    /// region).
    #[must_use]
    pub fn next_stale(&self, volume: VolumeIndex, from: u64, bytes_max: u64) -> Option<ByteRange> {
        let maps = self.maps.0.lock();
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
            .0
            .lock()
            .get(&volume)
            .map(|m| m.cell(at / m.region_size))
    }
}
