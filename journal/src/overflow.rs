//! A journal at its limit: the oldest container gives way to the state map (invariant 6, `rules.md` C4, T8).
//!
//! # Overview
//!
//! Production keeps redo until the peer has applied it. When that grows past what the operator allows, the oldest container
//! goes: first what the peer has received anyway, then what it has not. For the latter its regions are stale from then on,
//! at the container's last position, and are copied when the peer is there again; the application never waits for a peer.
//!
//! # Crash consistency
//!
//! The stale regions are durable, and the superblock knows it, before the floor moves; the floor is durable before a frame
//! goes. A crash between leaves regions stale that the journal still covers: they are copied once more than they had to be.
//!
//! # What it does not do
//!
//! Staleness stands in for a peer, never for the local volume: what is not checkpointed stays. When to call it is the
//! owner's business.

use crate::{error::JournalError, journal::Journal, rows::LfcRow};
use std::{ops::Bound, sync::Arc};

/// A container that gave way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GaveWay {
    /// Its row, which stays.
    pub row: Arc<LfcRow>,
    /// Whether its regions are stale now; else the peer has it.
    pub stale: bool,
}

impl Journal {
    /// Bytes of redo that are kept: sealed containers above the floor, and the open one.
    #[must_use]
    pub fn redo_bytes(&self) -> u64 {
        let shared = self.shared.read();
        let sealed = shared.sealed_rows().rev().take_while(|row| shared.is_held(row));
        let open = shared.open.as_ref().map_or(0, |o| o.end_at);
        sealed.map(|row| row.bytes).sum::<u64>() + open
    }

    /// Drops the oldest container that is kept, its regions stale if the peer has not received it. `None`: there is none
    /// whose records the local volumes hold durably.
    ///
    /// # Errors
    /// When the store fails.
    pub fn give_way(&self) -> Result<Option<GaveWay>, JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            let behind = (Bound::Excluded(self.floors().redo), Bound::Unbounded);
            let oldest = self.shared.read().rows.range(behind).next().cloned();
            let cursors = self.cursors();
            let current = self.current_generation().map(|g| g.no);
            // What is of an earlier generation is on the volumes, whatever its numbers.
            let is_on_volumes =
                |row: &LfcRow| current > Some(row.generation) || row.last_seq <= cursors.checkpointed;
            let Some(row) = oldest.filter(|row| is_on_volumes(row)) else {
                return Ok(None);
            };
            // What was there before this host took the line over is no matter of what the peer received since: where the two
            // differ in it is known from the rows (rules L1, L2).
            let of_line = self.promotion().is_none()
                && self.current_generation().is_some_and(|g| g.no == row.generation);
            let stale = of_line && row.last_seq > cursors.received_by_peer;
            if stale {
                self.mark_stale(&self.touched(row.generation, row.lfc)?, row.last_seq)?;
            } else {
                // A lower cursor after a crash would ask for what is gone.
                self.set_peer(cursors.received_by_peer, cursors.applied_by_peer, true)?;
            }
            self.move_floors(self.redo_floor(&row))?;
            Ok(Some(GaveWay { row, stale }))
        })
    }

    /// The peer is consistent as far as it has received. If that is all that was dropped, it lacks nothing: regions that
    /// became stale because its word came late, or because a crash came between the mark and the drop, are clean. Suspect
    /// regions stay what they are. Answers whether nothing is stale then.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_covered(&self) -> Result<bool, JournalError> {
        self.guarded(|| {
            // Nothing gives way meanwhile: its mark would be forgotten, and its drop would not.
            let _ingesting = self.ingesting.lock();
            if self.cursors().received_by_peer < self.floors().redo_seq.seq {
                return Ok(false);
            }
            let mut lacks_nothing = true;
            for volume in self.mapped_volumes() {
                if self.next_stale(volume, 0, 1).is_some() {
                    self.forget_drops(volume)?;
                    lacks_nothing &= self.next_stale(volume, 0, 1).is_none();
                }
            }
            Ok(lacks_nothing)
        })
    }
}
