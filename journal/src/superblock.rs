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
    codec::{Malformed, Read, Reader, Writer, index},
    error::{JournalError, Position},
};
use model::{GenNo, WriteSeq, ports::Medium};
use std::sync::Arc;

/// Bytes of a slot.
const SLOT_BYTES: u64 = 4096;
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
        let mut newest: Option<(u64, Bounds)> = None;
        for slot in 0..2 {
            let mut block = vec![0; index(SLOT_BYTES)];
            medium
                .read_at(slot * SLOT_BYTES, &mut block)
                .map_err(|e| JournalError::io("superblock", e))?;
            if let Ok(found) = decode(&block) {
                newest = newest
                    .into_iter()
                    .chain([found])
                    .max_by_key(|(counter, _)| *counter);
            }
        }
        let found = if newest.is_some() {
            Found::Bounds
        } else {
            Found::Nothing
        };
        let (counter, bounds) = newest.unwrap_or_default();
        Ok((
            Self {
                medium,
                counter,
                bounds,
            },
            found,
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
        // The older slot first: until it is durable, the other one still holds the bounds before.
        self.medium
            .write_at(counter % 2 * SLOT_BYTES, &block)
            .map_err(io)?;
        self.medium.sync().map_err(io)?;
        self.counter = counter;
        self.bounds = to;
        self.medium
            .write_at((counter + 1) % 2 * SLOT_BYTES, &block)
            .map_err(io)
    }
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

fn decode(block: &[u8]) -> Read<(u64, Bounds)> {
    let mut r = Reader(block);
    let magic: [u8; 8] = r.array()?;
    let counter = r.u64()?;
    let durable = position(&mut r)?;
    let meta_seq = r.u64()?;
    let checkpointed = position(&mut r)?;
    let (body, crc) = block.split_at(block.len() - 4);
    if magic != MAGIC || crc != crc32c::crc32c(body).to_le_bytes() {
        return Err(Malformed("no superblock"));
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
    use testkit::SimPower;

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
}
