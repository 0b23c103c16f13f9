//! A container that is not in the store yet: the open one, or the sealed one that waits to be ingested.

use crate::{
    codec::index,
    error::Position,
    frame::{Digest, Frame},
    rows::LfcRow,
    sizes::SizeChange,
    tail::{FrameLoc, HEADER_BYTES, SealFlags, TailHeader},
};
use model::{BLOCK_SIZE, BlockNo, ByteRange, EventMark, GenNo, RecordBody, Timestamp, VolumeIndex, WriteSeq};
use std::{collections::BTreeMap, sync::Arc};

/// Where a record that touches a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) seq: WriteSeq,
    pub(crate) frame: u32,
    pub(crate) record: u32,
}

/// What happened in a frame that the catalog lists by itself.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) marks: Vec<EventMark>,
    /// Position, clock before, clock after.
    pub(crate) steps: Vec<(WriteSeq, Timestamp, Timestamp)>,
    pub(crate) sizes: Vec<(WriteSeq, SizeChange)>,
}

impl Events {
    /// How many there are of each kind.
    pub(crate) fn lens(&self) -> [usize; 3] {
        [self.marks.len(), self.steps.len(), self.sizes.len()]
    }

    /// What came behind so many.
    pub(crate) fn since(&self, [marks, steps, sizes]: [usize; 3]) -> Self {
        Self {
            marks: self.marks[marks..].to_vec(),
            steps: self.steps[steps..].to_vec(),
            sizes: self.sizes[sizes..].to_vec(),
        }
    }
}

/// The frames of one container in a tail, and what is known of them.
pub(crate) struct Container {
    pub(crate) tail: usize,
    pub(crate) header: TailHeader,
    pub(crate) generation: GenNo,
    pub(crate) frames: Vec<FrameLoc>,
    /// Where the next entry goes.
    pub(crate) end_at: u64,
    pub(crate) end_digest: Digest,
    /// Which records touch a block, in order.
    pub(crate) index: BTreeMap<(VolumeIndex, BlockNo), Vec<Hit>>,
    pub(crate) events: Events,
    /// The newest time, or where the last clock step went.
    pub(crate) clock: Timestamp,
    touches: u64,
    writes: u64,
    bytes: u64,
    first_time: Timestamp,
    last_time: Timestamp,
}

/// A container that takes no more frames.
pub(crate) struct Sealed {
    pub(crate) container: Container,
    pub(crate) row: Arc<LfcRow>,
}

/// Most ranges that a container's `touched` row holds; past it neighbours are joined over the smallest gaps.
const TOUCHED_RANGES_MAX: usize = 4096;

/// Bytes of a container in which at most one block is touched: a record of two bytes at the edge of two blocks takes more than
/// twice as many, so no data reaches it. Zeroes do, which touch thousands of blocks each.
const BYTES_PER_TOUCH: u64 = 16;

/// How often records of a container of so many bytes may touch a block before it is sealed.
pub(crate) const fn touches_max(lfc_size: u64) -> u64 {
    lfc_size / BYTES_PER_TOUCH
}

/// Blocks that a range touches.
fn blocks_of(range: ByteRange) -> u64 {
    range.block_aligned().len() / BLOCK_SIZE
}

/// How often the records of a frame touch a block: the most of undo that they can make, in blocks.
pub(crate) fn touches_of(frame: &Frame) -> u64 {
    let changed = frame.records().iter().filter_map(model::Record::changed);
    changed.map(blocks_of).sum()
}

impl Container {
    pub(crate) fn new(tail: usize, header: TailHeader, generation: GenNo, clock: Timestamp) -> Self {
        Self {
            tail,
            header,
            generation,
            frames: Vec::new(),
            end_at: HEADER_BYTES,
            end_digest: header.start.prev_digest,
            index: BTreeMap::new(),
            events: Events::default(),
            clock,
            touches: 0,
            writes: 0,
            bytes: 0,
            first_time: clock,
            last_time: clock,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Its last record; the one before its first while it is empty.
    pub(crate) fn last_seq(&self) -> WriteSeq {
        self.frames
            .last()
            .map_or(WriteSeq(self.header.start.first_seq.0 - 1), FrameLoc::last_seq)
    }

    pub(crate) fn end(&self) -> Position {
        Position {
            generation: self.generation,
            seq: self.last_seq(),
        }
    }

    pub(crate) fn first_time(&self) -> Timestamp {
        self.first_time
    }

    /// Bytes of its entries.
    pub(crate) fn entry_bytes(&self) -> u64 {
        self.end_at - HEADER_BYTES
    }

    /// Most bytes that its undo can have (`rules.md` W5).
    pub(crate) fn worst_undo_bytes(&self) -> u64 {
        self.index.len() as u64 * BLOCK_SIZE
    }

    /// How often its records touch a block: what its index holds in memory (`rules.md` W5).
    pub(crate) fn touches(&self) -> u64 {
        self.touches
    }

    /// Takes in a frame that has been written to the tail.
    pub(crate) fn absorb(&mut self, loc: FrameLoc, frame: &Frame) {
        let frame_no = crate::codec::len32(self.frames.len());
        if self.frames.is_empty() {
            self.first_time = frame.records().first().map(|r| r.time).unwrap_or_default();
        }
        for (record_no, record) in frame.records().iter().enumerate() {
            if let Some(range) = record.changed() {
                self.writes += 1;
                self.touches += blocks_of(range);
                let hit = Hit {
                    seq: record.seq,
                    frame: frame_no,
                    record: crate::codec::len32(record_no),
                };
                for block in range.blocks() {
                    self.index.entry((record.volume, block)).or_default().push(hit);
                }
            }
            match &record.body {
                RecordBody::Mark {
                    name,
                    description,
                    keep_ns,
                } => self.events.marks.push(EventMark {
                    name: name.clone(),
                    description: description.clone(),
                    generation: self.generation,
                    seq: record.seq,
                    lfc: self.header.start.lfc,
                    time: record.time,
                    keep_ns: *keep_ns,
                }),
                RecordBody::ClockStep { from, to } => self.events.steps.push((record.seq, *from, *to)),
                RecordBody::Size { size } => {
                    let (volume, size) = (record.volume, *size);
                    self.events.sizes.push((record.seq, SizeChange { volume, size }));
                }
                _ => {}
            }
        }
        self.last_time = frame.last_time();
        self.clock = frame.clock();
        self.bytes += frame.len() as u64;
        self.end_at = loc.at + u64::from(loc.len);
        self.end_digest = frame.digest();
        self.frames.push(loc);
    }

    /// The frame whose records hold `seq`.
    pub(crate) fn frame_of(&self, seq: WriteSeq) -> Option<u32> {
        let i = self.frames.partition_point(|f| f.last_seq() < seq);
        self.frames
            .get(i)
            .filter(|f| f.first_seq <= seq)
            .map(|_| crate::codec::len32(i))
    }

    /// The row that the catalog will hold.
    pub(crate) fn row(&self, sealed: SealFlags) -> LfcRow {
        let start = &self.header.start;
        LfcRow {
            generation: self.generation,
            lfc: start.lfc,
            first_seq: start.first_seq,
            last_seq: self.last_seq(),
            first_time: self.first_time,
            last_time: self.last_time,
            frames: crate::codec::len32(self.frames.len()),
            records: self.last_seq().0 + 1 - start.first_seq.0,
            writes: self.writes,
            bytes: self.bytes,
            prev_digest: start.prev_digest,
            end_digest: self.end_digest,
            sealed,
            dropped: false,
            indexed: false,
            after_gap: start.after_gap,
        }
    }

    /// The ranges that its records changed, in whole blocks, sorted and joined.
    pub(crate) fn touched(&self) -> Vec<(VolumeIndex, ByteRange)> {
        coarsen(joined(self.index.keys().copied()), TOUCHED_RANGES_MAX)
    }

    /// The same, of its records past `after` and up to `upto` alone.
    pub(crate) fn touched_in(&self, after: WriteSeq, upto: WriteSeq) -> Vec<(VolumeIndex, ByteRange)> {
        let is_wanted = |hit: &Hit| after < hit.seq && hit.seq <= upto;
        let blocks = self.index.iter();
        let wanted = blocks.filter(|(_, hits)| hits.iter().any(is_wanted));
        joined(wanted.map(|(block, _)| *block))
    }
}

/// Ranges of blocks that come sorted, neighbours joined.
pub(crate) fn joined(
    blocks: impl IntoIterator<Item = (VolumeIndex, BlockNo)>,
) -> Vec<(VolumeIndex, ByteRange)> {
    let mut out: Vec<(VolumeIndex, ByteRange)> = Vec::new();
    for (volume, block) in blocks {
        let range = ByteRange::at(block.start(), BLOCK_SIZE);
        match out.last_mut() {
            Some((v, last)) if *v == volume && last.end == range.start => last.end = range.end,
            _ => out.push((volume, range)),
        }
    }
    out
}

/// Joins neighbours over the smallest gaps until at most about `max` ranges are left; never loses a byte.
fn coarsen(ranges: Vec<(VolumeIndex, ByteRange)>, max: usize) -> Vec<(VolumeIndex, ByteRange)> {
    if ranges.len() <= max {
        return ranges;
    }
    let gap = |a: &(VolumeIndex, ByteRange), b: &(VolumeIndex, ByteRange)| {
        if a.0 == b.0 { b.1.start - a.1.end } else { u64::MAX }
    };
    let mut gaps: Vec<u64> = ranges.windows(2).map(|w| gap(&w[0], &w[1])).collect();
    gaps.sort_unstable();
    let limit = gaps
        .get(ranges.len() - max)
        .copied()
        .unwrap_or(u64::MAX - 1)
        .min(u64::MAX - 1);
    let mut out: Vec<(VolumeIndex, ByteRange)> = Vec::with_capacity(max);
    for next in ranges {
        match out.last_mut() {
            Some(last) if gap(last, &next) <= limit => last.1.end = next.1.end,
            _ => out.push(next),
        }
    }
    out
}

/// The newest frames of the newest generation, bounded in bytes: their numbers rise.
#[derive(Default)]
pub(crate) struct Ring {
    frames: std::collections::VecDeque<Arc<Frame>>,
    bytes: usize,
}

impl Ring {
    pub(crate) fn push(&mut self, frame: Arc<Frame>, bytes_max: u64) {
        if self
            .frames
            .back()
            .is_some_and(|newest| newest.generation() != frame.generation())
        {
            self.clear();
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.bytes > index(bytes_max) && self.frames.len() > 1 {
            if let Some(old) = self.frames.pop_front() {
                self.bytes -= old.len();
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The frame with exactly this place, if it is still here.
    pub(crate) fn get(&self, first_seq: WriteSeq) -> Option<&Arc<Frame>> {
        let i = self.frames.partition_point(|f| f.first_seq() < first_seq);
        self.frames.get(i).filter(|f| f.first_seq() == first_seq)
    }

    /// The frames with records past `seq`, if the ring reaches back so far.
    pub(crate) fn after(&self, seq: WriteSeq) -> Option<impl Iterator<Item = &Arc<Frame>>> {
        let front = self.frames.front()?;
        let i = self.frames.partition_point(|f| f.last_seq() <= seq);
        (front.first_seq() <= seq.next()).then(|| self.frames.range(i..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_ranges_cover_the_fine_ones() {
        let fine: Vec<_> = (0..100u64)
            .map(|i| (VolumeIndex((i / 50) as u16), ByteRange::at(i * i * 4096, 4096)))
            .collect();
        let coarse = coarsen(fine.clone(), 10);
        assert!(coarse.len() <= 12, "{}", coarse.len());
        for (v, f) in fine {
            assert!(
                coarse
                    .iter()
                    .any(|(w, c)| *w == v && c.start <= f.start && f.end <= c.end)
            );
        }
    }
}
