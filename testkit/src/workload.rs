//! Seeded workloads: what applications do to volumes, with the odd cases that programs forget.
//!
//! Writes cluster: most go to a few hot regions, some continue where the last one of their volume ended, the rest go
//! anywhere. Lengths run from one byte to a megabyte, with sectors and pages the most common and odd numbers never rare.
//! Everything that is drawn comes from the generator handed in.

use bytes::Bytes;
use model::{BLOCK_SIZE, ByteRange, Record, RecordBody, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, RngCore};

/// One thing that an application or operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes bytes.
    Write {
        /// Where.
        volume: VolumeIndex,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether it is to be durable when answered.
        fua: bool,
    },
    /// Writes zeroes.
    Zero {
        /// Where.
        volume: VolumeIndex,
        /// Which bytes.
        range: ByteRange,
    },
    /// Gives a range up.
    Discard {
        /// Where.
        volume: VolumeIndex,
        /// Which bytes.
        range: ByteRange,
    },
    /// Makes all answered writes durable.
    Flush,
    /// Sets an event mark.
    Mark(String),
    /// Ends the open container.
    Seal,
}

/// What a workload is like. Chances are in a thousand operations; what they leave are writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Every offset and length is a multiple of this.
    pub unit: u64,
    /// Longest write.
    pub len_max: u64,
    /// Longest zeroing or discard.
    pub zero_len_max: u64,
    /// Chance of zeroing.
    pub zeroes: u32,
    /// Chance of a discard.
    pub discards: u32,
    /// Chance of a flush.
    pub flushes: u32,
    /// Chance of a mark.
    pub marks: u32,
    /// Chance of a seal.
    pub seals: u32,
    /// Writes in a thousand that are to be durable when answered.
    pub fua: u32,
}

impl Default for Shape {
    /// Byte-exact, everything happens.
    fn default() -> Self {
        Self {
            unit: 1,
            len_max: Record::WRITE_BYTES_MAX,
            zero_len_max: Record::WRITE_BYTES_MAX,
            zeroes: 40,
            discards: 30,
            flushes: 60,
            marks: 15,
            seals: 25,
            fua: 20,
        }
    }
}

impl Shape {
    /// Whole 4 KiB blocks and nothing but writes and flushes: for self-describing blocks.
    #[must_use]
    pub fn blocks() -> Self {
        Self {
            unit: BLOCK_SIZE,
            len_max: 16 * BLOCK_SIZE,
            zeroes: 0,
            discards: 0,
            marks: 0,
            seals: 0,
            ..Self::default()
        }
    }
}

/// Draws operations on some volumes.
#[derive(Clone, Debug)]
pub struct Workload {
    sizes: Vec<u64>,
    shape: Shape,
    /// Where the last write of each volume ended.
    ends: Vec<u64>,
    marks: u64,
}

/// `count` volume sizes that are seldom round, from 1 byte to `max`.
pub fn odd_sizes(count: usize, max: u64, rng: &mut dyn RngCore) -> Vec<u64> {
    let size = |rng: &mut dyn RngCore| {
        let near = [1, 511, 4095, 4097, 65_536, 1 << 20];
        let size = match rng.random_range(0..4) {
            0 => near[rng.random_range(0..near.len())],
            1 => rng.random_range(1..=max) / 512 * 512,
            2 => rng.random_range(1..=max) / 4096 * 4096 + 1,
            _ => rng.random_range(1..=max),
        };
        size.clamp(1, max)
    };
    (0..count).map(|_| size(rng)).collect()
}

impl Workload {
    /// A workload on volumes of these sizes.
    ///
    /// # Panics
    /// When there is no volume, or one has no room for a unit.
    #[must_use]
    pub fn new(sizes: &[u64], shape: Shape) -> Self {
        assert!(
            !sizes.is_empty() && sizes.iter().all(|s| *s >= shape.unit),
            "every volume has room for a write"
        );
        Self {
            sizes: sizes.to_vec(),
            shape,
            ends: vec![0; sizes.len()],
            marks: 0,
        }
    }

    /// A volume has another size from now on.
    pub fn resize(&mut self, volume: VolumeIndex, size: u64) {
        let index = usize::from(volume.0);
        self.sizes[index] = size;
        self.ends[index] = self.ends[index].min(size);
    }

    /// The next operation.
    pub fn next(&mut self, rng: &mut dyn RngCore) -> Operation {
        let shape = self.shape.clone();
        let mut draw = rng.random_range(0..1000);
        let mut is = |chance: u32| {
            let hit = draw < chance;
            draw = if hit { u32::MAX } else { draw - chance };
            hit
        };
        if is(shape.zeroes) {
            let (volume, range) = self.place(shape.zero_len_max, rng);
            Operation::Zero { volume, range }
        } else if is(shape.discards) {
            let (volume, range) = self.place(shape.zero_len_max, rng);
            Operation::Discard { volume, range }
        } else if is(shape.flushes) {
            Operation::Flush
        } else if is(shape.marks) {
            self.marks += 1;
            Operation::Mark(format!("mark-{}", self.marks))
        } else if is(shape.seals) {
            Operation::Seal
        } else {
            let (volume, range) = self.place(shape.len_max, rng);
            self.ends[usize::from(volume.0)] = range.end;
            Operation::Write {
                volume,
                offset: range.start,
                len: range.len(),
                fua: rng.random_range(0..1000) < shape.fua,
            }
        }
    }

    /// So many operations.
    pub fn take(&mut self, count: usize, rng: &mut dyn RngCore) -> Vec<Operation> {
        (0..count).map(|_| self.next(rng)).collect()
    }

    /// Where an operation goes.
    fn place(&self, len_max: u64, rng: &mut dyn RngCore) -> (VolumeIndex, ByteRange) {
        // The first volumes are busier: the smaller of two draws.
        let volume = rng
            .random_range(0..self.sizes.len())
            .min(rng.random_range(0..self.sizes.len()));
        let unit = self.shape.unit;
        let units = self.sizes[volume] / unit;
        let len = match rng.random_range(0..20) {
            0 => 1,
            1 => rng.random_range(1..512),
            2..5 => 512,
            5..12 => 4096,
            12..15 => 4096 * rng.random_range(1..=16),
            15..18 => rng.random_range(1..=65_536),
            18 => rng.random_range(1..=len_max),
            _ => len_max,
        };
        let len = (len.min(len_max) / unit).clamp(1, units);
        let start = match rng.random_range(0..10) {
            // Eight hot places, each a hundredth of the volume.
            0..6 => {
                let (hot, width) = (rng.random_range(0..8u64), (units / 100).max(1));
                crate::block::mix(hot ^ units) % units + rng.random_range(0..width)
            }
            6 | 7 => self.ends[volume] / unit,
            _ => rng.random_range(0..units),
        };
        // Pages are mostly written where pages are.
        let per_page = (4096 / unit).max(1);
        let start = if len.is_multiple_of(per_page) && rng.random_range(0..5) > 0 {
            start / per_page * per_page
        } else {
            start
        };
        let start = start.min(units - len);
        let volume = VolumeIndex(u16::try_from(volume).expect("volumes are counted in 16 bits"));
        (volume, ByteRange::at(start * unit, len * unit))
    }
}

/// Random bytes: sometimes none but zeroes, sometimes one byte over and over, mostly noise.
pub fn noise(len: u64, rng: &mut dyn RngCore) -> Bytes {
    let mut bytes = vec![0; usize::try_from(len).expect("a write fits in memory")];
    match rng.random_range(0..12) {
        0 => {}
        1 => bytes.fill(rng.random()),
        _ => rng.fill_bytes(&mut bytes),
    }
    Bytes::from(bytes)
}

impl Operation {
    /// The record that the operation becomes, with random bytes; `None` for flushes and seals.
    pub fn record(&self, seq: WriteSeq, time: Timestamp, rng: &mut dyn RngCore) -> Option<Record> {
        let (volume, body) = match *self {
            Self::Write {
                volume, offset, len, ..
            } => (
                volume,
                RecordBody::Write {
                    offset,
                    data: noise(len, rng),
                },
            ),
            Self::Zero { volume, range } => (
                volume,
                RecordBody::Zero {
                    range,
                    discard: false,
                },
            ),
            Self::Discard { volume, range } => (volume, RecordBody::Zero { range, discard: true }),
            Self::Mark(ref name) => {
                let body = RecordBody::Mark {
                    name: name.clone(),
                    description: String::new(),
                    keep_ns: None,
                };
                (VolumeIndex(0), body)
            }
            Self::Flush | Self::Seal => return None,
        };
        Some(Record {
            seq,
            time,
            volume,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds::with_seeds;

    #[test]
    fn stays_inside_and_does_everything() {
        with_seeds("workload", 20, |rng| {
            let sizes = odd_sizes(3, 3 << 20, rng);
            let operations = Workload::new(&sizes, Shape::default()).take(3000, rng);
            let (mut bytes, mut odd, mut kinds) = ([0u64; 3], 0, [false; 6]);
            for operation in &operations {
                let (volume, range) = match operation {
                    Operation::Write {
                        volume, offset, len, ..
                    } => (*volume, ByteRange::at(*offset, *len)),
                    Operation::Zero { volume, range } | Operation::Discard { volume, range } => {
                        (*volume, *range)
                    }
                    _ => (VolumeIndex(0), ByteRange::at(0, 1)),
                };
                kinds[match operation {
                    Operation::Write { .. } => 0,
                    Operation::Zero { .. } => 1,
                    Operation::Discard { .. } => 2,
                    Operation::Flush => 3,
                    Operation::Mark(_) => 4,
                    Operation::Seal => 5,
                }] = true;
                let volume = usize::from(volume.0);
                assert!(!range.is_empty() && range.end <= sizes[volume] && range.len() <= 1 << 20);
                bytes[volume] += range.len();
                odd += u64::from(!range.start.is_multiple_of(512) || !range.len().is_multiple_of(512));
            }
            assert!(kinds.iter().all(|k| *k) && bytes.iter().all(|b| *b > 0) && odd > 100);
        });
    }

    #[test]
    fn blocks_are_whole() {
        with_seeds("workload of blocks", 5, |rng| {
            for operation in Workload::new(&[1 << 24, 12_345], Shape::blocks()).take(1000, rng) {
                match operation {
                    Operation::Write {
                        offset, len, volume, ..
                    } => {
                        assert!(offset % 4096 == 0 && len % 4096 == 0 && len > 0);
                        assert!(volume.0 == 0 || offset + len <= 12_288);
                    }
                    Operation::Flush => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}
