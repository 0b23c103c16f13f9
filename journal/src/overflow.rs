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
//! # A full disk
//!
//! A container that is sealed enters the store when its tail is needed. If the store has no room for it then, it gives way, behind
//! all that are older ([`Journal::empty_other_tail`]): metadata of some kilobytes is all that this needs, and the store leaves
//! room for that.
//!
//! # What it does not do
//!
//! Staleness stands in for a peer, never for the local volume: what is not checkpointed stays. When to call it is the
//! owner's business.

use crate::{error::JournalError, journal::Journal, rows::LfcRow};
use std::{
    ops::Bound,
    sync::{Arc, atomic::Ordering},
};

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

    /// Production: from now on containers give way where there is no room for them, or do not. A host that builds undo owes
    /// its past to more than a peer: it never does.
    pub fn set_gives_way(&self, gives_way: bool) {
        self.gives_way.store(gives_way, Ordering::Release);
    }

    /// What gave way for want of room since the last call.
    #[must_use]
    pub fn take_gave_way(&self) -> Vec<GaveWay> {
        std::mem::take(&mut *self.gave_way.lock())
    }

    /// Frees the tail that the next container needs. Where the store has no room for the one that waits there, the oldest give
    /// way until it has, or that one itself; a writer must not fail because a disk is full.
    pub(crate) fn empty_other_tail(&self) -> Result<(), JournalError> {
        loop {
            let full = match self.ingest_inner() {
                Err(e) if e.is_full() && self.gives_way.load(Ordering::Acquire) => e,
                done => return done.map(drop),
            };
            let gave = match self.give_way()? {
                Some(gave) => gave,
                None => self.give_way_in_tail()?.ok_or(full)?,
            };
            tracing::warn!(
                lfc = gave.row.lfc.0,
                stale = gave.stale,
                "no room: a container gives way"
            );
            self.gave_way.lock().push(gave);
        }
    }

    /// As [`Journal::give_way`], for the sealed container that waits in its tail: it never enters the store.
    fn give_way_in_tail(&self) -> Result<Option<GaveWay>, JournalError> {
        let _ingesting = self.ingesting.lock();
        let (sealed, is_oldest) = {
            let shared = self.shared.read();
            let behind = (Bound::Excluded(shared.floors.redo), Bound::Unbounded);
            (shared.sealed.clone(), shared.rows.range(behind).next().is_none())
        };
        // The floor passes all that is older, and a checkpoint may have let an older one go since that was looked at: first that
        // one, with its regions.
        let Some(sealed) = sealed.filter(|_| is_oldest) else {
            return Ok(None);
        };
        let cursors = self.cursors();
        let is_current = self
            .current_generation()
            .is_some_and(|g| g.no == sealed.row.generation);
        if !is_current || sealed.row.last_seq > cursors.checkpointed {
            return Ok(None);
        }
        let stale = sealed.row.last_seq > cursors.received_by_peer;
        if stale {
            self.mark_stale(&sealed.container.touched(), sealed.row.last_seq)?;
        } else {
            self.set_peer(cursors.received_by_peer, cursors.applied_by_peer, true)?;
        }
        let row = self.drop_waiting(&sealed)?;
        Ok(Some(GaveWay { row, stale }))
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
