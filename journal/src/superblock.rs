//! The superblock: lower bounds of what was durable, outside the store (invariant 9).
//!
//! # Overview
//!
//! Two slots of one 4 KiB block each. A raise writes the slot that is not the newest, syncs, and then copies the same bytes
//! over the other slot without a sync. So one whole slot is durable at every moment, and soon after a raise both slots hold
//! the same bounds: a bit that rots in one of them costs nothing.
//!
//! # What it does not do
//!
//! The bounds are lower bounds: the journal may be ahead of them, never behind.

use crate::{
    codec::{Malformed, Read, Reader, Writer, index, other_magic},
    error::{JournalError, Position},
};
use model::{GenNo, WriteSeq, checks, is_zero, ports::Medium};
use std::sync::Arc;

/// Bytes of a slot.
pub(crate) const SLOT_BYTES: u64 = 4096;
/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: u64 = 2 * SLOT_BYTES;
const MAGIC: [u8; 8] = *b"BSSUPER\x01";

/// What is certain to be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Records up to here.
    pub durable: Position,
    /// Metadata batches up to here.
    pub meta_seq: u64,
    /// The volumes hold all up to here.
    pub checkpointed: Position,
}

/// The superblock of one context.
pub(crate) struct Superblock {
    medium: Arc<dyn Medium>,
    counter: u64,
    /// Where the newest bounds are durable.
    slot: u64,
    bounds: Bounds,
}

/// What was found on open.
pub(crate) enum Found {
    /// No slot was ever written whole.
    Nothing,
    /// At least one whole slot.
    Bounds,
}

impl Superblock {
    /// Reads both slots; [`Found::Nothing`] is a new journal or, if the store is not new, damage.
    pub(crate) fn open(medium: Arc<dyn Medium>) -> Result<(Self, Found), JournalError> {
        let io = |e| JournalError::io("superblock", e);
        let mut newest: Option<(u64, u64, Bounds, Vec<u8>)> = None;
        for slot in 0..2 {
            let mut block = vec![0; index(SLOT_BYTES)];
            medium.read_at(slot * SLOT_BYTES, &mut block).map_err(io)?;
            match decode(&block) {
                Ok((counter, bounds)) if newest.as_ref().is_none_or(|(have, ..)| counter > *have) => {
                    newest = Some((counter, slot, bounds, block));
                }
                Err(Malformed::Version { found, known }) => {
                    return Err(JournalError::Version {
                        what: "superblock".into(),
                        found,
                        known,
                    });
                }
                _ => {}
            }
        }
        let Some((counter, slot, bounds, block)) = newest else {
            let none = Self {
                medium,
                counter: 0,
                slot: 0,
                bounds: Bounds::default(),
            };
            return Ok((none, Found::Nothing));
        };
        // What was read may be in memory only (the process was killed), and the other slot, which is overwritten next, may
        // be all that a power cut would leave: so this one is made durable first.
        medium.write_at(slot * SLOT_BYTES, &block).map_err(io)?;
        medium.sync().map_err(io)?;
        Ok((
            Self {
                medium,
                counter,
                slot,
                bounds,
            },
            Found::Bounds,
        ))
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Makes higher bounds durable. Nothing is written when they are not higher.
    pub(crate) fn raise(&mut self, to: Bounds) -> Result<(), JournalError> {
        let to = Bounds {
            durable: to.durable.max(self.bounds.durable),
            meta_seq: to.meta_seq.max(self.bounds.meta_seq),
            checkpointed: to.checkpointed.max(self.bounds.checkpointed),
        };
        if to == self.bounds && self.counter > 0 {
            return Ok(());
        }
        let io = |e| JournalError::io("superblock", e);
        let counter = self.counter + 1;
        let block = encode(counter, &to);
        // The other slot first: until it is durable, this one still holds the bounds before.
        let slot = 1 - self.slot;
        self.medium.write_at(slot * SLOT_BYTES, &block).map_err(io)?;
        self.medium.sync().map_err(io)?;
        self.counter = counter;
        self.slot = slot;
        self.bounds = to;
        self.medium.write_at((1 - slot) * SLOT_BYTES, &block).map_err(io)
    }
}

/// What stands in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nothing was ever written.
    Blank,
    /// Bounds that check.
    Whole,
    /// Bytes that do not.
    Bad,
}

/// Looks at both slots and uses none.
pub(crate) fn slots(medium: &dyn Medium) -> Result<[Slot; 2], JournalError> {
    let mut found = [Slot::Blank; 2];
    for (slot, found) in (0..).zip(&mut found) {
        let mut block = vec![0; index(SLOT_BYTES)];
        let read = medium.read_at(slot * SLOT_BYTES, &mut block);
        read.map_err(|e| JournalError::io("superblock", e))?;
        *found = match decode(&block) {
            Ok(_) => Slot::Whole,
            Err(_) if is_zero(&block) => Slot::Blank,
            Err(_) => Slot::Bad,
        };
    }
    Ok(found)
}

fn encode(counter: u64, b: &Bounds) -> Vec<u8> {
    let mut w = Writer::default();
    w.bytes(&MAGIC).u64(counter);
    w.u32(b.durable.generation.0).u64(b.durable.seq.0);
    w.u64(b.meta_seq);
    w.u32(b.checkpointed.generation.0).u64(b.checkpointed.seq.0);
    w.0.resize(index(SLOT_BYTES) - 4, 0);
    let crc = crc32c::crc32c(&w.0);
    w.u32(crc).done()
}

fn position(r: &mut Reader<'_>) -> Read<Position> {
    Ok(Position {
        generation: GenNo(r.u32()?),
        seq: WriteSeq(r.u64()?),
    })
}

pub(crate) fn decode(block: &[u8]) -> Read<(u64, Bounds)> {
    let mut r = Reader(block);
    let magic: [u8; 8] = r.array()?;
    let counter = r.u64()?;
    let durable = position(&mut r)?;
    let meta_seq = r.u64()?;
    let checkpointed = position(&mut r)?;
    let (body, crc) = block.split_at(block.len() - 4);
    if !checks(&crc32c::crc32c(body).to_le_bytes()[..], crc) {
        return Err(Malformed::What("no superblock"));
    }
    if magic != MAGIC {
        return Err(other_magic(block, &MAGIC, "no superblock"));
    }
    Ok((
        counter,
        Bounds {
            durable,
            meta_seq,
            checkpointed,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ByteRange;
    use rand::Rng;
    use testkit::{SimPower, with_seeds};

    fn bounds(n: u64) -> Bounds {
        let at = Position {
            generation: GenNo(1),
            seq: WriteSeq(n),
        };
        Bounds {
            durable: at,
            meta_seq: n,
            checkpointed: at,
        }
    }

    fn open(power: &SimPower) -> (Superblock, Found) {
        Superblock::open(Arc::new(power.medium("super", SUPERBLOCK_BYTES))).unwrap()
    }

    #[test]
    fn a_cut_leaves_the_last_raise_or_the_one_that_was_cut() {
        with_seeds("superblock", 300, |rng| {
            let power = SimPower::new();
            let mut raised = 0;
            for _ in 1..8 {
                let (mut s, found) = open(&power);
                assert!(raised == 0 || matches!(found, Found::Bounds));
                let now = s.bounds().meta_seq;
                assert!(now == raised || now == raised + 1, "{now} {raised}");
                raised = now;
                power.freeze_at(rng.random_range(1..4));
                while s.raise(bounds(raised + 1)).is_ok() {
                    raised += 1;
                }
                if rng.random_bool(0.7) {
                    power.cut(rng);
                } else {
                    power.kill(rng);
                }
            }
        });
    }

    #[test]
    fn a_flipped_bit_in_either_slot_costs_nothing() {
        with_seeds("superblock flips", 50, |rng| {
            let power = SimPower::new();
            let (mut s, _) = open(&power);
            for n in 1..4 {
                s.raise(bounds(n)).unwrap();
            }
            let medium = power.medium("super", SUPERBLOCK_BYTES);
            let first = medium.flip_random_bit(ByteRange::at(0, SUPERBLOCK_BYTES), rng);
            let (s, _) = open(&power);
            assert_eq!(s.bounds(), bounds(3));
            let other = if first < SLOT_BYTES { SLOT_BYTES } else { 0 };
            medium.flip_random_bit(ByteRange::at(other, SLOT_BYTES), rng);
            assert!(matches!(open(&power).1, Found::Nothing));
        });
    }
}
