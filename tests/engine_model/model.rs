//! The model: every byte as of every record (the [`Oracle`]), and which record each thing stands at. No container, undo,
//! ordinal or cursor is known here.

use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex, WriteSeq};
use std::collections::{BTreeMap, BTreeSet};
use testkit::{Oracle, oracle::Block};

/// A block of a volume.
pub type Key = (VolumeIndex, BlockNo);

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    Done,
    Undoing,
}

/// A restore.
#[derive(Clone, Debug)]
pub struct Restored {
    pub target: WriteSeq,
    pub only: Option<VolumeIndex>,
    /// Where the volumes stood before it, and stand after its undo.
    pub before: Vec<WriteSeq>,
    pub phase: Phase,
}

/// An operator's snapshot, with what was written to its vdev.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: WriteSeq,
    pub written: BTreeMap<Key, Block>,
    /// Of these, what no flush has covered: lost or not after a crash.
    pub unflushed: BTreeSet<Key>,
}

/// What must be.
pub struct Model {
    pub sizes: Vec<u64>,
    pub oracle: Oracle,
    /// Everything up to here was flushed.
    pub durable: WriteSeq,
    /// The end of the last container applied.
    pub applied: WriteSeq,
    /// The moment that each volume of the replica shows.
    pub stands: Vec<WriteSeq>,
    pub restore: Option<Restored>,
    /// Every moment from here on can be had.
    pub wanted: WriteSeq,
    pub snapshots: BTreeMap<u64, Snapshot>,
}

impl Model {
    pub fn new(sizes: &[u64]) -> Self {
        Self {
            sizes: sizes.to_vec(),
            oracle: Oracle::new(sizes),
            durable: WriteSeq(0),
            applied: WriteSeq(0),
            stands: vec![WriteSeq(0); sizes.len()],
            restore: None,
            wanted: WriteSeq(1),
            snapshots: BTreeMap::new(),
        }
    }

    pub fn phase(&self) -> Option<Phase> {
        self.restore.as_ref().map(|r| r.phase)
    }

    /// A container was applied up to `seq`.
    pub fn apply(&mut self, seq: WriteSeq) {
        self.applied = seq;
        self.stands.fill(seq);
    }

    /// The restore came to its end.
    pub fn restored(&mut self) {
        let restore = self.restore.as_mut().expect("one was begun");
        restore.phase = Phase::Done;
        for (i, at) in self.stands.iter_mut().enumerate() {
            if restore.only.is_none_or(|v| usize::from(v.0) == i) {
                *at = restore.target;
            }
        }
    }

    /// Its undo came to its end.
    pub fn undone(&mut self) {
        self.stands = self.restore.take().expect("one was begun").before;
    }

    /// The end of the first container that is sealed and not applied.
    pub fn next_end(&self) -> Option<WriteSeq> {
        let ends = self.oracle.lfcs().values();
        ends.copied().find(|end| *end > self.applied)
    }
}

impl Snapshot {
    /// A block of the vdev.
    pub fn block(&self, oracle: &Oracle, (volume, block): Key) -> Block {
        self.written
            .get(&(volume, block))
            .copied()
            .unwrap_or_else(|| oracle.block(volume, block, self.at))
    }

    /// Any bytes of the vdev.
    pub fn bytes(&self, oracle: &Oracle, volume: VolumeIndex, range: ByteRange) -> Vec<u8> {
        let mut out = Vec::with_capacity(usize::try_from(range.len()).unwrap());
        for (number, part) in parts(range) {
            out.extend_from_slice(&self.block(oracle, (volume, number))[part]);
        }
        out
    }

    /// Writes to the vdev.
    pub fn write(&mut self, oracle: &Oracle, volume: VolumeIndex, at: u64, data: &[u8]) {
        let mut data = data;
        for (number, part) in parts(ByteRange::at(at, data.len() as u64)) {
            let key = (volume, number);
            let mut block = self.block(oracle, key);
            let (now, rest) = data.split_at(part.len());
            block[part].copy_from_slice(now);
            data = rest;
            self.written.insert(key, block);
            self.unflushed.insert(key);
        }
    }
}

/// The blocks of a range, each with the bytes of it that are meant.
fn parts(range: ByteRange) -> impl Iterator<Item = (BlockNo, std::ops::Range<usize>)> {
    range.blocks().map(move |number| {
        let part = ByteRange::at(number.start(), BLOCK_SIZE).intersect(range);
        let part = part.expect("a range meets its blocks");
        let within = |at: u64| usize::try_from(at - number.start()).unwrap();
        (number, within(part.start)..within(part.end))
    })
}
