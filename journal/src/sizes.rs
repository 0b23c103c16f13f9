//! How large volumes are (`rules.md` K3): the size that belongs to a point, and how far the storage is made ready.
//!
//! # Overview
//!
//! A volume begins with the size in its configuration. From then on its size is a matter of the line: a record
//! ([`model::RecordBody::Size`]) changes it from that record on, so every point has its own, a restore to before the record brings
//! the smaller one back, and a line that was left takes its sizes with it. The catalog has a row for each record that says another size
//! than its line did before; they are few, and are kept when their containers' rows are forgotten, because what came before every point
//! that is kept decides its size.
//!
//! Beside it each volume has an *extent*: how far its storage on this host was ever made ready. It never shrinks.
//!
//! # Invariants
//!
//! - Before a size record takes its position, both hosts' storage is as long as it says, what is new of it is zero, and both know that
//!   durably ([`Journal::extend`]). So what lies between a volume's size and its extent is zero at every consistent point, on every
//!   line: the undo of what was written there leads back to zeroes, and a restore or a copy may treat it as any other part of the volume
//!   without asking for a size.
//! - Hosts that meet have the same extents before anything is sent: what one alone had would be in no set and no map of the other.
//! - A host's extent is never less than a size on a line that it holds: a receiver refuses such a record.
//! - New regions of a state map are clean, because both hosts have the same zeroes.
//!
//! # Crash consistency
//!
//! The extent and the map's new shape are one batch, committed behind the sync of the zeroes. Cut before it, the storage is longer
//! than anybody knows, and is zeroed again. The row of a size record is committed with its container's; until then the record is read
//! from the tail, as marks are.
//!
//! # What it does not do
//!
//! Volumes do not shrink but by a restore, and storage never does.

use crate::{
    codec::{Malformed, Read, len32},
    container::Container,
    error::{JournalError, Position},
    journal::{Journal, Shared},
    keys,
    line::LineSpan,
    rows::{begin, open},
};
use model::{
    VolumeIndex, WriteSeq,
    ports::{Batch, Family},
};
use std::collections::BTreeMap;

/// A volume's size from a record on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeChange {
    /// The volume.
    pub volume: VolumeIndex,
    /// Its size in bytes.
    pub size: u64,
}

impl SizeChange {
    pub(crate) fn encode(self) -> Vec<u8> {
        begin().u16(self.volume.0).u64(self.size).done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let (volume, size) = (VolumeIndex(r.u16()?), r.u64()?);
        r.end()?;
        Ok(Self { volume, size })
    }
}

/// The extents of volumes that have grown on this host, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(BTreeMap<VolumeIndex, u64>);

impl Extents {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u32(len32(self.0.len()));
        for (volume, bytes) in &self.0 {
            w.u16(volume.0).u64(*bytes);
        }
        w.done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let mut all = BTreeMap::new();
        for _ in 0..r.u32()? {
            if all.insert(VolumeIndex(r.u16()?), r.u64()?).is_some() {
                return Err(Malformed::What("a volume is named twice"));
            }
        }
        r.end()?;
        Ok(Self(all))
    }
}

impl Shared {
    /// Takes in what a record says, unless its line says the same just before it: sizes are told again and again.
    pub(crate) fn note_size(&mut self, at: Position, change: SizeChange) {
        let before = Position {
            seq: WriteSeq(at.seq.0 - 1),
            ..at
        };
        if self.sizes_on(&self.line_to(before)).get(&change.volume) != Some(&change.size) {
            self.sizes.insert(at, change);
        }
    }

    /// The last sizes that a line says, by volume.
    fn sizes_on(&self, line: &[LineSpan]) -> BTreeMap<VolumeIndex, u64> {
        let mut sizes = BTreeMap::new();
        for span in line {
            let at = |seq| Position {
                generation: span.generation,
                seq,
            };
            let of_span = at(span.after.next())..=at(span.upto);
            if !of_span.is_empty() {
                let changes = self.sizes.range(of_span).map(|(_, change)| change);
                sizes.extend(changes.map(|change| (change.volume, change.size)));
            }
        }
        sizes
    }
}

impl Journal {
    /// The sizes that volumes have at a position, as far as records of its line say; the others are as at first.
    #[must_use]
    pub fn sizes_at(&self, at: Position) -> BTreeMap<VolumeIndex, u64> {
        let shared = self.shared.read();
        shared.sizes_on(&shared.line_to(at))
    }

    /// The same at the end of the line that this host is on.
    #[must_use]
    pub fn sizes_now(&self) -> BTreeMap<VolumeIndex, u64> {
        let shared = self.shared.read();
        shared.sizes_on(&shared.current_line())
    }

    /// [`Journal::sizes_at`] of one volume.
    #[must_use]
    pub fn size_at(&self, volume: VolumeIndex, at: Position) -> Option<u64> {
        self.sizes_at(at).remove(&volume)
    }

    /// [`Journal::sizes_now`] of one volume.
    #[must_use]
    pub fn size_now(&self, volume: VolumeIndex) -> Option<u64> {
        self.sizes_now().remove(&volume)
    }

    /// What of a container's size records says anything new.
    pub(crate) fn sizes_of(&self, container: &Container) -> Vec<(WriteSeq, SizeChange)> {
        let shared = self.shared.read();
        let is_new = |(seq, _): &&(WriteSeq, SizeChange)| {
            let at = Position {
                generation: container.generation,
                seq: *seq,
            };
            shared.sizes.contains_key(&at)
        };
        container.events.sizes.iter().filter(is_new).copied().collect()
    }

    /// How far the storage of a volume is made ready here, if it was ever made longer than at first.
    #[must_use]
    pub fn extent(&self, volume: VolumeIndex) -> Option<u64> {
        self.shared.read().extents.0.get(&volume).copied()
    }

    /// The storage of a volume is so long here, and zero behind its extent until now, durably: from now on its size may be as large. Its
    /// state map, if it has one, grows with it. Less than its extent changes nothing. Durable when it returns.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn extend(&self, volume: VolumeIndex, bytes: u64) -> Result<(), JournalError> {
        self.guarded(|| {
            // Who changes extents holds the maps.
            let mut maps = self.maps.all.lock();
            let mut next = self.shared.read().extents.clone();
            let extent = next.0.get(&volume).copied().unwrap_or(0);
            if extent >= bytes && maps.get(&volume).is_none_or(|map| map.size >= bytes) {
                return Ok(());
            }
            next.0.insert(volume, extent.max(bytes));
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::EXTENTS, next.encode());
            if let Some(map) = maps.get_mut(&volume) {
                map.grow(volume, bytes, &mut batch);
            }
            self.commit_maps(batch, true)?;
            self.shared.write().extents = next;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_sizes_are_read_again_and_nothing_else() {
        let change = SizeChange {
            volume: VolumeIndex(3),
            size: 1 << 40,
        };
        let bytes = change.encode();
        assert_eq!(SizeChange::decode(&bytes), Ok(change));
        let all = Extents([(VolumeIndex(0), 1 << 30), (VolumeIndex(7), 4096)].into());
        let row = all.encode();
        assert_eq!(Extents::decode(&row), Ok(all));
        for cut in 0..row.len() {
            assert!(Extents::decode(&row[..cut]).is_err(), "{cut}");
        }
        assert!((0..bytes.len()).all(|cut| SizeChange::decode(&bytes[..cut]).is_err()));
        assert!(Extents::decode(&[&row[..], &[0]].concat()).is_err());
        assert!(SizeChange::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}
