//! The oracle: what every byte of a context must be at every position.
//!
//! A test feeds it each acknowledged record in order and asks it for the bytes of any range as of any position; whatever the
//! program under test answers is compared with that. It knows nothing of frames, containers or undo: it keeps, for each
//! 4 KiB block, the list of what the block became and when. Two ways to say what a block became:
//!
//! - *raw*: the bytes ([`Oracle::write`], [`Oracle::record`]); any offset and length; costs a block a change;
//! - *self-describing* ([`Oracle::describe`]): whole blocks made by [`crate::block`]; costs 40 bytes a block and change, so
//!   that a history of 2 GiB takes some 20 MB.
//!
//! Both may be mixed. Positions are [`WriteSeq`]s, but nothing ties them to the program's: a test that does not know the
//! sequence numbers counts its writes. A history that forks is a clone, [truncated](Oracle::truncate) and fed on.
//!
//! [`compare`](Oracle::compare) checks a readable thing against a known position; [`prefixes`](Oracle::prefixes) finds the
//! positions at which a thing recovered from a crash can stand, which must be some, across all volumes.

mod compare;

pub use compare::{Mismatch, NoPrefix, Read};

use crate::block::{self, Header};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, LfcId, Payload, Record, RecordBody, Timestamp, VolumeIndex, WriteSeq,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The bytes of one block.
pub type Block = [u8; BLOCK_SIZE as usize];

/// The full history of a context, block by block.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    volumes: Vec<Volume>,
    /// Every position with its time, rising.
    times: Vec<(WriteSeq, Timestamp)>,
    marks: BTreeMap<String, WriteSeq>,
    lfcs: BTreeMap<LfcId, WriteSeq>,
}

#[derive(Clone, Debug, Default)]
struct Volume {
    /// Size from a position on.
    sizes: Vec<(WriteSeq, u64)>,
    blocks: BTreeMap<BlockNo, Vec<(WriteSeq, Content)>>,
    /// Every zeroing: it is also in `blocks`, but only for blocks that held something.
    zeroed: Vec<(WriteSeq, ByteRange)>,
}

/// What a block became.
#[derive(Clone, Debug)]
enum Content {
    Zero,
    Raw(Arc<Block>),
    Described {
        version: u64,
        time: Timestamp,
        seed: u64,
    },
}

fn small(n: u64) -> usize {
    usize::try_from(n).expect("offsets in a block fit")
}

impl Volume {
    /// The last change of a block at or before a position.
    fn at(&self, block: BlockNo, seq: WriteSeq) -> Option<&(WriteSeq, Content)> {
        let versions = self.blocks.get(&block)?;
        versions[..versions.partition_point(|(s, _)| *s <= seq)].last()
    }

    fn size(&self, seq: WriteSeq) -> u64 {
        self.sizes[..self.sizes.partition_point(|(s, _)| *s <= seq)]
            .last()
            .map_or(0, |(_, size)| *size)
    }

    fn push(&mut self, block: BlockNo, seq: WriteSeq, content: Content) {
        let versions = self.blocks.entry(block).or_default();
        // One record may touch a block twice only through its own pieces; the last one stands.
        match versions.last_mut() {
            Some((last, old)) if *last == seq => *old = content,
            _ => versions.push((seq, content)),
        }
    }
}

fn bytes_of(volume: VolumeIndex, number: BlockNo, content: &Content) -> Block {
    match *content {
        Content::Zero => [0; BLOCK_SIZE as usize],
        Content::Raw(ref bytes) => **bytes,
        Content::Described { version, time, seed } => block::make(&Header {
            volume,
            block: number,
            version,
            time,
            seed,
        }),
    }
}

impl Oracle {
    /// An oracle of zeroed volumes of these sizes.
    #[must_use]
    pub fn new(sizes: &[u64]) -> Self {
        let volume = |size: &u64| Volume {
            sizes: vec![(WriteSeq(0), *size)],
            ..Volume::default()
        };
        Self {
            volumes: sizes.iter().map(volume).collect(),
            ..Self::default()
        }
    }

    fn volume(&self, volume: VolumeIndex) -> &Volume {
        &self.volumes[usize::from(volume.0)]
    }

    /// Every volume's index.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeIndex> + use<> {
        (0..u16::try_from(self.volumes.len()).expect("volumes are counted in 16 bits")).map(VolumeIndex)
    }

    /// The newest position; 0 before the first.
    #[must_use]
    pub fn head(&self) -> WriteSeq {
        self.times.last().map_or(WriteSeq(0), |(seq, _)| *seq)
    }

    fn advance(&mut self, seq: WriteSeq, time: Timestamp) {
        if let Some((last, _)) = self.times.last() {
            assert!(*last <= seq, "the oracle is fed in order: {seq} after {last}");
            if *last == seq {
                return;
            }
        }
        self.times.push((seq, time));
    }

    fn change(
        &mut self,
        seq: WriteSeq,
        time: Timestamp,
        volume: VolumeIndex,
        range: ByteRange,
    ) -> &mut Volume {
        self.advance(seq, time);
        let volume = &mut self.volumes[usize::from(volume.0)];
        let size = volume.size(seq);
        assert!(range.end <= size, "{range:?} passes the volume's end at {size}");
        volume
    }

    /// Raw bytes were written.
    ///
    /// # Panics
    /// When positions fall or the range passes the volume's end.
    pub fn write(&mut self, seq: WriteSeq, time: Timestamp, volume: VolumeIndex, offset: u64, data: &[u8]) {
        let range = ByteRange::at(offset, data.len() as u64);
        self.change(seq, time, volume, range);
        for number in range.blocks() {
            let whole = ByteRange::at(number.start(), BLOCK_SIZE);
            let part = whole.intersect(range).expect("a range meets its blocks");
            let mut bytes = self.block(volume, number, seq);
            bytes[small(part.start - whole.start)..small(part.end - whole.start)]
                .copy_from_slice(&data[small(part.start - offset)..small(part.end - offset)]);
            self.volumes[usize::from(volume.0)].push(number, seq, Content::Raw(Arc::new(bytes)));
        }
    }

    /// A range became zero.
    ///
    /// # Panics
    /// When positions fall or the range passes the volume's end.
    pub fn zero(&mut self, seq: WriteSeq, time: Timestamp, volume: VolumeIndex, range: ByteRange) {
        let history = self.change(seq, time, volume, range);
        history.zeroed.push((seq, range));
        let aligned = BlockNo::of(range.start)..BlockNo(range.end.div_ceil(BLOCK_SIZE));
        let held: Vec<BlockNo> = history.blocks.range(aligned).map(|(number, _)| *number).collect();
        for number in held {
            let whole = ByteRange::at(number.start(), BLOCK_SIZE);
            let part = whole.intersect(range).expect("a range meets its blocks");
            let content = if part == whole {
                Content::Zero
            } else {
                let mut bytes = self.block(volume, number, seq);
                bytes[small(part.start - whole.start)..small(part.end - whole.start)].fill(0);
                Content::Raw(Arc::new(bytes))
            };
            self.volumes[usize::from(volume.0)].push(number, seq, content);
        }
    }

    /// Self-describing blocks were written: `count` from the header's block on, each with its own number.
    ///
    /// # Panics
    /// When positions fall or the blocks pass the volume's end.
    pub fn describe(&mut self, seq: WriteSeq, time: Timestamp, first: &Header, count: u64) {
        let range = ByteRange::at(first.block.start(), count * BLOCK_SIZE);
        let volume = self.change(seq, time, first.volume, range);
        for number in range.blocks() {
            let content = Content::Described {
                version: first.version,
                time: first.time,
                seed: first.seed,
            };
            volume.push(number, seq, content);
        }
    }

    /// Any record; what changes no byte only takes its position, marks and sizes are remembered.
    ///
    /// # Panics
    /// When positions fall or a range passes the volume's end.
    pub fn record(&mut self, record: &Record) {
        let (seq, time, volume) = (record.seq, record.time, record.volume);
        match (&record.body, record.changed(), record.payload()) {
            (_, Some(range), Some(Payload::Data(data))) => self.write(seq, time, volume, range.start, &data),
            (_, Some(range), Some(Payload::Zero)) => self.zero(seq, time, volume, range),
            (RecordBody::Mark { name, .. }, ..) => self.mark(seq, time, name),
            (RecordBody::Size { size }, ..) => self.resize(seq, time, volume, *size),
            _ => self.advance(seq, time),
        }
    }

    /// An event mark was set.
    pub fn mark(&mut self, seq: WriteSeq, time: Timestamp, name: &str) {
        self.advance(seq, time);
        self.marks.insert(name.to_owned(), seq);
    }

    /// A volume has another size from here on; what it grows by is zero, what it loses is forgotten.
    pub fn resize(&mut self, seq: WriteSeq, time: Timestamp, volume: VolumeIndex, size: u64) {
        self.advance(seq, time);
        let old = self.volume(volume).size(seq);
        if size < old {
            self.zero(
                seq,
                time,
                volume,
                ByteRange {
                    start: size,
                    end: old,
                },
            );
        }
        self.volumes[usize::from(volume.0)].sizes.push((seq, size));
    }

    /// The container `lfc` ended with the record `last`.
    pub fn seal(&mut self, lfc: LfcId, last: WriteSeq) {
        self.lfcs.insert(lfc, last);
    }

    /// Forgets everything after `seq`: another line begins there.
    pub fn truncate(&mut self, seq: WriteSeq) {
        self.times.retain(|(s, _)| *s <= seq);
        self.marks.retain(|_, s| *s <= seq);
        self.lfcs.retain(|_, s| *s <= seq);
        for volume in &mut self.volumes {
            volume.sizes.retain(|(s, _)| *s <= seq);
            volume.zeroed.retain(|(s, _)| *s <= seq);
            for versions in volume.blocks.values_mut() {
                versions.truncate(versions.partition_point(|(s, _)| *s <= seq));
            }
            volume.blocks.retain(|_, versions| !versions.is_empty());
        }
    }

    /// Size of a volume as of a position.
    #[must_use]
    pub fn size(&self, volume: VolumeIndex, seq: WriteSeq) -> u64 {
        self.volume(volume).size(seq)
    }

    /// A block as of a position, zero-padded at the volume's end.
    #[must_use]
    pub fn block(&self, volume: VolumeIndex, number: BlockNo, seq: WriteSeq) -> Block {
        let version = self.volume(volume).at(number, seq);
        version.map_or([0; BLOCK_SIZE as usize], |(_, content)| {
            bytes_of(volume, number, content)
        })
    }

    /// Any bytes as of a position.
    #[must_use]
    pub fn bytes(&self, volume: VolumeIndex, range: ByteRange, seq: WriteSeq) -> Vec<u8> {
        let mut out = vec![0; small(range.len())];
        for number in range.blocks() {
            if self.volume(volume).at(number, seq).is_none() {
                continue;
            }
            let whole = ByteRange::at(number.start(), BLOCK_SIZE);
            let part = whole.intersect(range).expect("a range meets its blocks");
            out[small(part.start - range.start)..small(part.end - range.start)].copy_from_slice(
                &self.block(volume, number, seq)
                    [small(part.start - whole.start)..small(part.end - whole.start)],
            );
        }
        out
    }

    /// The newest position with a time at or before `time`; 0 when all are later.
    #[must_use]
    pub fn at_time(&self, time: Timestamp) -> WriteSeq {
        let found = self.times.iter().rev().find(|(_, t)| *t <= time);
        found.map_or(WriteSeq(0), |(seq, _)| *seq)
    }

    /// The time of a position.
    #[must_use]
    pub fn time_of(&self, seq: WriteSeq) -> Option<Timestamp> {
        let i = self.times.binary_search_by_key(&seq, |(s, _)| *s).ok()?;
        Some(self.times[i].1)
    }

    /// Every position, rising.
    pub fn positions(&self) -> impl Iterator<Item = WriteSeq> {
        self.times.iter().map(|(seq, _)| *seq)
    }

    /// The position of a mark.
    #[must_use]
    pub fn mark_at(&self, name: &str) -> Option<WriteSeq> {
        self.marks.get(name).copied()
    }

    /// The last record of a container.
    #[must_use]
    pub fn lfc_end(&self, lfc: LfcId) -> Option<WriteSeq> {
        self.lfcs.get(&lfc).copied()
    }

    /// Every sealed container with its last record, by id.
    #[must_use]
    pub fn lfcs(&self) -> &BTreeMap<LfcId, WriteSeq> {
        &self.lfcs
    }

    /// Every mark with its position, by name.
    #[must_use]
    pub fn marks(&self) -> &BTreeMap<String, WriteSeq> {
        &self.marks
    }

    /// Every block of a volume that a record in `after < seq <= upto` touched.
    #[must_use]
    pub fn touched(&self, volume: VolumeIndex, after: WriteSeq, upto: WriteSeq) -> BTreeSet<BlockNo> {
        let within = |seq: WriteSeq| after < seq && seq <= upto;
        let volume = self.volume(volume);
        let written = volume
            .blocks
            .iter()
            .filter(|(_, v)| v.iter().any(|(s, _)| within(*s)))
            .map(|(b, _)| *b);
        let zeroed = volume
            .zeroed
            .iter()
            .filter(|(s, _)| within(*s))
            .flat_map(|(_, range)| range.blocks());
        written.chain(zeroed).collect()
    }

    /// Every block of a volume that ever held something: all others are zero at every position.
    pub fn held(&self, volume: VolumeIndex) -> impl Iterator<Item = BlockNo> {
        self.volume(volume).blocks.keys().copied()
    }
}

#[cfg(test)]
mod tests;
