//! Which block is where, and which slots are free.

use super::log::Entry;
use crate::error::{Result, SnapshotError};
use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex};
use std::collections::BTreeMap;

/// Where the overlay has a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In this slot of the data medium.
    Slot(u64),
    /// Nowhere: it is zero.
    Zero,
}

impl Place {
    /// The place of the block `n` after one that is here.
    const fn after(self, n: u64) -> Self {
        match self {
            Self::Slot(slot) => Self::Slot(slot + n),
            Self::Zero => Self::Zero,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Run {
    count: u64,
    place: Place,
}

/// Blocks and their place, in runs of neighbours; `place: None` when the overlay has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub block: BlockNo,
    pub count: u64,
    pub place: Option<Place>,
}

impl Mapped {
    pub(super) const fn range(&self) -> ByteRange {
        ByteRange::at(self.block.start(), self.count * BLOCK_SIZE)
    }
}

/// The map of all volumes.
#[derive(Debug, Default)]
pub(super) struct SlotMap {
    runs: BTreeMap<(VolumeIndex, u64), Run>,
    zero_runs: u64,
}

impl SlotMap {
    /// Number of separate zeroed ranges.
    pub(super) const fn zero_runs(&self) -> u64 {
        self.zero_runs
    }

    /// The whole map, as the fewest log entries that make it.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.runs
            .iter()
            .map(|((volume, block), run)| Entry {
                volume: *volume,
                block: BlockNo(*block),
                count: run.count,
                place: run.place,
            })
            .collect()
    }

    /// Sets blocks to a place; answers the slots that they had before.
    pub(super) fn set(
        &mut self,
        volume: VolumeIndex,
        block: BlockNo,
        count: u64,
        place: Place,
    ) -> Vec<(u64, u64)> {
        let (start, end) = (block.0, block.0 + count);
        let mut displaced = Vec::new();
        for at in self.overlapping(volume, start, end) {
            let Some(run) = self.remove(volume, at) else {
                continue;
            };
            let run_end = at + run.count;
            if at < start {
                self.put(volume, at, start - at, run.place);
            }
            if run_end > end {
                self.put(volume, end, run_end - end, run.place.after(end - at));
            }
            if let Place::Slot(_) = run.place {
                let (from, to) = (at.max(start), run_end.min(end));
                if let Place::Slot(slot) = run.place.after(from - at) {
                    displaced.push((slot, to - from));
                }
            }
        }
        let (mut start, mut count, mut place) = (start, count, place);
        if let Some((at, run)) = self.before(volume, start)
            && at + run.count == start
            && run.place.after(run.count) == place
        {
            self.remove(volume, at);
            (start, count, place) = (at, count + run.count, run.place);
        }
        if let Some(next) = self.runs.get(&(volume, start + count)).copied()
            && place.after(count) == next.place
        {
            self.remove(volume, start + count);
            count += next.count;
        }
        self.put(volume, start, count, place);
        displaced
    }

    fn put(&mut self, volume: VolumeIndex, block: u64, count: u64, place: Place) {
        self.zero_runs += u64::from(place == Place::Zero);
        self.runs.insert((volume, block), Run { count, place });
    }

    fn remove(&mut self, volume: VolumeIndex, block: u64) -> Option<Run> {
        let run = self.runs.remove(&(volume, block))?;
        self.zero_runs -= u64::from(run.place == Place::Zero);
        Some(run)
    }

    /// The last run that starts before `block`.
    fn before(&self, volume: VolumeIndex, block: u64) -> Option<(u64, Run)> {
        self.runs
            .range((volume, 0)..(volume, block))
            .next_back()
            .map(|((_, at), run)| (*at, *run))
    }

    fn first_at(&self, volume: VolumeIndex, block: u64) -> u64 {
        self.before(volume, block)
            .filter(|(at, run)| at + run.count > block)
            .map_or(block, |(at, _)| at)
    }

    fn overlapping(&self, volume: VolumeIndex, start: u64, end: u64) -> Vec<u64> {
        self.runs
            .range((volume, self.first_at(volume, start))..(volume, end))
            .map(|((_, at), _)| *at)
            .collect()
    }

    /// Every block that a byte range touches, in order and without gaps.
    pub(super) fn lookup_bytes(&self, volume: VolumeIndex, range: ByteRange) -> Vec<Mapped> {
        let range = range.block_aligned();
        let (mut at, end) = (range.start / BLOCK_SIZE, range.end / BLOCK_SIZE);
        let mut found = Vec::new();
        let mut add = |from: u64, to: u64, place| {
            if from < to {
                found.push(Mapped {
                    block: BlockNo(from),
                    count: to - from,
                    place,
                });
            }
        };
        for ((_, block), run) in self
            .runs
            .range((volume, self.first_at(volume, at))..(volume, end.max(at)))
        {
            add(at, *block, None);
            let from = at.max(*block);
            let to = end.min(block + run.count);
            add(from, to, Some(run.place.after(from - block)));
            at = to;
        }
        add(at, end, None);
        found
    }

    /// The runs of slots in use, in rising order.
    fn used(&self) -> Vec<(u64, u64)> {
        let mut used: Vec<_> = self
            .runs
            .values()
            .filter_map(|run| match run.place {
                Place::Slot(slot) => Some((slot, run.count)),
                Place::Zero => None,
            })
            .collect();
        used.sort_unstable();
        used
    }

    /// Refuses a map in which two blocks share a slot.
    pub(super) fn check_distinct_slots(&self) -> Result<()> {
        for pair in self.used().windows(2) {
            if let [(a, count), (b, _)] = pair
                && a + count > *b
            {
                return Err(SnapshotError::OverlayDamaged(format!(
                    "slot {b} holds two blocks"
                )));
            }
        }
        Ok(())
    }
}

/// The slots that hold nothing.
#[derive(Debug)]
pub(super) struct Slots {
    total: u64,
    available: u64,
    runs: Vec<(u64, u64)>,
    freed: Vec<(u64, u64)>,
    freed_count: u64,
}

impl Slots {
    /// All slots that a map does not use.
    pub(super) fn around(total: u64, map: &SlotMap) -> Self {
        let mut slots = Self {
            total,
            available: 0,
            runs: Vec::new(),
            freed: Vec::new(),
            freed_count: 0,
        };
        let mut gaps = Vec::new();
        let mut at = 0;
        for (slot, count) in map.used() {
            gaps.push((at, slot - at));
            at = slot + count;
        }
        gaps.push((at, total - at));
        // Taken from the end: low slots first, which keeps a sparse data file short.
        for (slot, count) in gaps.into_iter().rev() {
            slots.give_back(slot, count);
        }
        slots
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// Slots that can be taken now.
    pub(super) const fn available(&self) -> u64 {
        self.available
    }

    /// These, and those that can be taken after a flush.
    pub(super) const fn free(&self) -> u64 {
        self.available + self.freed_count
    }

    /// Takes up to `most` neighbouring slots.
    pub(super) fn take(&mut self, most: u64) -> Option<(u64, u64)> {
        let (slot, left) = self.runs.last_mut()?;
        let taken = (*slot, most.min(*left));
        *slot += taken.1;
        *left -= taken.1;
        if *left == 0 {
            self.runs.pop();
        }
        self.available -= taken.1;
        Some(taken)
    }

    /// Puts slots back that no durable entry points to.
    pub(super) fn give_back(&mut self, slot: u64, count: u64) {
        if count > 0 {
            self.available += count;
            self.runs.push((slot, count));
        }
    }

    /// Slots that are free once the next flush is done.
    pub(super) fn freed_later(&mut self, slot: u64, count: u64) {
        self.freed_count += count;
        self.freed.push((slot, count));
    }

    /// For a flush: the slots that its entries free. They still count as free until [`Slots::freed_now`].
    pub(super) fn take_freed(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.freed)
    }

    /// The flush is done.
    pub(super) fn freed_now(&mut self, freed: Vec<(u64, u64)>) {
        for (slot, count) in freed {
            self.freed_count -= count;
            self.give_back(slot, count);
        }
    }
}
