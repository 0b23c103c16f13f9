//! Regions that somebody reads while writers go on.
//!
//! Reading under the owner's lock would stop every writer for the length of a disk read. So a region is *watched* from before
//! the read begins until it has ended: every record that gets its place meanwhile says, under the owner's lock, which pieces of
//! the region it changes. What no record touched is exactly as of every position in between.

use super::Tap;
use crate::JournalError;
use bytes::Bytes;
use model::{ByteRange, GenId, Payload, VolumeIndex, WriteSeq};
use std::collections::BTreeSet;

/// A region that is being read.
struct Watch {
    /// Several read at once: a copier, one of an older link that still ends, a verify.
    id: u64,
    volume: VolumeIndex,
    range: ByteRange,
    /// Bytes of a piece; pieces are counted from the volume's beginning.
    piece: u64,
    touched: BTreeSet<u64>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Watches {
    begun: u64,
    open: Vec<Watch>,
}

impl Watches {
    /// From now on every record that changes `range` is noted.
    pub(super) fn begin(&mut self, volume: VolumeIndex, range: ByteRange, piece: u64) -> u64 {
        self.begun += 1;
        self.open.push(Watch {
            id: self.begun,
            volume,
            range,
            piece,
            touched: BTreeSet::new(),
        });
        self.begun
    }

    /// A record changes `range`.
    pub(super) fn see(&mut self, volume: VolumeIndex, range: ByteRange) {
        for watch in self.open.iter_mut().filter(|w| w.volume == volume) {
            if let Some(part) = watch.range.intersect(range).filter(|part| !part.is_empty()) {
                watch
                    .touched
                    .extend(part.start / watch.piece..part.end.div_ceil(watch.piece));
            }
        }
    }

    /// The pieces that were touched since the watch began.
    pub(super) fn end(&mut self, id: u64) -> BTreeSet<u64> {
        let at = self.open.iter().position(|w| w.id == id);
        at.map(|at| self.open.swap_remove(at).touched).unwrap_or_default()
    }
}

/// What a look saw.
#[derive(Clone, Debug)]
pub struct Look {
    /// Generation of `seq`; `None`: there is no record yet.
    pub generation: Option<GenId>,
    /// The position at which the pieces that were not touched have these bytes.
    pub seq: WriteSeq,
    /// Bytes of each range that was asked for.
    pub parts: Vec<(ByteRange, Payload)>,
    /// Pieces that were written meanwhile, counted from the volume's beginning: what `parts` has of them may be of no moment.
    pub touched: BTreeSet<u64>,
}

impl Tap {
    /// Reads ranges of a volume as of one position, without a lock: all pieces of `piece` bytes but those that a record
    /// touches meanwhile. The ranges rise, and begin at a piece.
    ///
    /// # Errors
    /// When the volume or the journal fails.
    pub fn look(&self, volume: VolumeIndex, ranges: &[ByteRange], piece: u64) -> Result<Look, JournalError> {
        let whole = ByteRange {
            start: ranges.first().map_or(0, |r| r.start),
            end: ranges.last().map_or(0, |r| r.end),
        };
        let watch = self.as_owner(|owner| owner.watches.begin(volume, whole, piece));
        let read = |range: &ByteRange| self.read_region(volume, *range).map(|payload| (*range, payload));
        let parts: Result<Vec<_>, _> = ranges.iter().map(read).collect();
        self.as_owner(|owner| {
            let touched = owner.watches.end(watch);
            let head = self.journal.line_head();
            Ok(Look {
                generation: head.map(|(generation, _)| generation),
                seq: head.map_or(WriteSeq(0), |(_, seq)| seq),
                parts: parts?,
                touched,
            })
        })
    }

    /// Bytes of a region, from overlay and volume, without a lock.
    pub(super) fn read_region(&self, volume: VolumeIndex, range: ByteRange) -> Result<Payload, JournalError> {
        if self.extents(volume, range)?.iter().all(|(_, zero)| *zero) {
            return Ok(Payload::Zero);
        }
        let mut buf = vec![0; usize::try_from(range.len()).expect("a region fits in memory")];
        self.read(volume, range.start, &mut buf)?;
        Ok(Payload::of(Bytes::from(buf)))
    }
}
