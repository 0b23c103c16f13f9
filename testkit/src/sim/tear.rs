//! What a power cut leaves of the writes that no sync had made durable.
//!
//! The model is the one that a page cache over a disk with atomic sectors gives: each sector ends as it was durable, or as
//! it was after *any* of the unsynced writes to it, and sectors are chosen independently. So later writes may be there
//! without earlier ones, and a write may be there in parts. [`Tear::Byte`] breaks the atomicity of sectors as well, and
//! [`Tear::Bit`] that of bytes.
//!
//! Choosing every sector by a coin of its own would nearly never show the interesting cases (one write missing among a
//! hundred, all but the first half of the last), so a cut first draws a mood and the mood draws for each write.

use super::pages::{Pages, small};
use model::ByteRange;
use rand::{Rng, RngCore};

/// Where a write may be torn by a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tear {
    /// A write is there wholly or not at all (still in any subset).
    Whole,
    /// At any 512-byte boundary of the medium: what disks promise.
    #[default]
    Sector,
    /// At any byte: worse than any disk; for formats that must not trust sectors.
    Byte,
    /// As [`Tear::Byte`], and parts of a torn write hold old and new bits at random: bytes that nobody ever wrote. Bits that
    /// the write does not change stay.
    Bit,
}

/// One write that no sync has made durable yet.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    pub(super) id: u64,
    pub(super) range: ByteRange,
    /// The bytes; `None` for zeroes.
    pub(super) data: Option<Vec<u8>>,
}

impl Unsynced {
    pub(super) fn apply(&self, pages: &mut Pages) {
        match &self.data {
            Some(data) => pages.write(self.range.start, data),
            None => pages.zero(self.range),
        }
    }
}

const SECTOR: u64 = 512;

/// How a cut treats the writes.
enum Mood {
    LoseAll,
    KeepAll,
    /// Each write by itself: kept with this chance, else lost; some of either torn.
    Each(f64),
    /// Those before this index kept, this one torn, the rest lost: writes in order.
    Prefix(usize),
    /// Those before this index lost, the rest kept: reordered as badly as can be.
    Suffix(usize),
}

/// The bytes after a power cut: `durable` with some of the `writes`, in whole or in parts.
pub(super) fn after_cut(durable: &Pages, writes: &[Unsynced], tear: Tear, rng: &mut dyn RngCore) -> Pages {
    let mood = match rng.random_range(0..10) {
        0 => Mood::LoseAll,
        1 => Mood::KeepAll,
        2 | 3 => Mood::Prefix(rng.random_range(0..=writes.len())),
        4 | 5 => Mood::Suffix(rng.random_range(0..=writes.len())),
        n => Mood::Each(f64::from(n - 5) / 5.0),
    };
    // `current` is what the page cache held after each write; sectors are copied from it, so that a sector never holds a
    // later write to it without an earlier one.
    let (mut current, mut image) = (durable.clone(), durable.clone());
    for (i, write) in writes.iter().enumerate() {
        write.apply(&mut current);
        let torn = match mood {
            Mood::LoseAll => Some(false),
            Mood::KeepAll => Some(true),
            Mood::Each(chance) => rng.random_bool(0.8).then(|| rng.random_bool(chance)),
            Mood::Prefix(at) => (i != at).then_some(i < at),
            Mood::Suffix(at) => Some(i >= at),
        };
        match (torn, tear) {
            (Some(true), _) => image.copy_from(&current, sectors(write.range)),
            (Some(false), _) => {}
            (None, Tear::Whole) => {
                if rng.random() {
                    image.copy_from(&current, sectors(write.range));
                }
            }
            (None, Tear::Sector) => {
                for part in some_of(sectors(write.range), SECTOR, rng) {
                    image.copy_from(&current, part);
                }
            }
            (None, Tear::Byte) => {
                for part in some_of(write.range, 1, rng) {
                    image.copy_from(&current, part);
                }
            }
            (None, Tear::Bit) => {
                for part in some_of(write.range, 1, rng) {
                    if rng.random() {
                        image.copy_from(&current, part);
                    } else {
                        mix(&mut image, &current, part, rng);
                    }
                }
            }
        }
    }
    image
}

/// Each bit of the range as it was or as it is to be.
fn mix(image: &mut Pages, current: &Pages, range: ByteRange, rng: &mut dyn RngCore) {
    let mut old = vec![0; small(range.len())];
    let (mut new, mut mask) = (old.clone(), old.clone());
    image.read(range.start, &mut old);
    current.read(range.start, &mut new);
    rng.fill_bytes(&mut mask);
    for ((old, new), mask) in old.iter_mut().zip(new).zip(mask) {
        *old = *old & mask | new & !mask;
    }
    image.write(range.start, &old);
}

/// The range widened to whole sectors.
fn sectors(range: ByteRange) -> ByteRange {
    ByteRange {
        start: range.start / SECTOR * SECTOR,
        end: range.end.div_ceil(SECTOR) * SECTOR,
    }
}

/// Some parts of a range, cut at multiples of `unit` from its start: few parts, so that long ranges stay cheap.
fn some_of(range: ByteRange, unit: u64, rng: &mut dyn RngCore) -> Vec<ByteRange> {
    let units = range.len() / unit;
    let mut cuts: Vec<u64> = (0..rng.random_range(1..=4))
        .map(|_| range.start + rng.random_range(0..=units) * unit)
        .collect();
    cuts.sort_unstable();
    cuts.insert(0, range.start);
    cuts.push(range.end);
    let mut keep = rng.random::<bool>();
    cuts.windows(2)
        .filter_map(|w| {
            keep = !keep;
            (keep && w[0] < w[1]).then_some(ByteRange {
                start: w[0],
                end: w[1],
            })
        })
        .collect()
}
