//! What the apply thread of a recovery host does, step by step, without the thread: containers in order, copies in their
//! place (rules W2, C2, C3). The daemon runs it on its thread, the core histories at every sync of a simulated host.

pub mod acting;
mod copies;

pub use copies::{Arrived, CopyBatch, CopyQueue};

use journal::{Journal, JournalError, LfcRow, Position};
use model::{
    ByteRange, ContextState, WriteSeq,
    ports::{History, OrdinalKind},
};
use snapshot::{
    ChangeSet, Lfc, RegionOffer, SnapshotError, Volumes, apply, apply_first_sync, lacking, write_copies,
};
use std::ops::Bound;

/// Why nothing can be applied any more; the context is poisoned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The engine or a volume failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl ApplyError {
    /// Whether there was no room; the same step may be done again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Journal(e) => e.is_full(),
            Self::Snapshot(e) => e.waits_for_room(),
        }
    }
}

/// A replica and what is to be applied to it. Whoever steps has the right to overwrite it.
pub struct Applier<'a> {
    /// Containers, undo, cursors.
    pub journal: &'a Journal,
    /// The replica.
    pub volumes: &'a Volumes,
    /// Copies that wait.
    pub copies: &'a CopyQueue,
    /// The context's state, read under that right: a restore that begins meanwhile waits for the step.
    pub state: ContextState,
}

impl Applier<'_> {
    /// Writes the copies that wait, then applies the next container; `false` when there was nothing to do, or nothing may be
    /// done in this state. `wrote` is called after each batch of copies, which may then be acknowledged.
    ///
    /// # Errors
    /// When the journal, the engine or a volume fails.
    pub fn step(&self, wrote: &mut dyn FnMut()) -> Result<bool, ApplyError> {
        // Rule R-2: a rolled-back context receives and applies nothing.
        if self.state != ContextState::Enabled {
            return Ok(false);
        }
        let cursors = self.journal.cursors();
        let behind = (Bound::Excluded(cursors.applied_lfc), Bound::Unbounded);
        let next = self.journal.lfc_rows(behind).into_iter().next();
        // Rule C3: a copy before the container with its stub.
        let any = match self.interrupted() {
            Some(OrdinalKind::Copies) => {
                // Their bytes are gone; they were not acknowledged, and no point stands on them.
                self.journal.set_applied_local(cursors.applied_ordinal.next())?;
                true
            }
            Some(_) => false,
            None => self.write_copies(next.is_none(), wrote)?,
        };
        match next {
            Some(row) => self.apply(&row).map(|()| true),
            None => Ok(any),
        }
    }

    /// What the overwrite was that a crash interrupted, if one did.
    fn interrupted(&self) -> Option<OrdinalKind> {
        let applied = self.journal.cursors().applied_ordinal;
        let mut rows = self.journal.ordinal_rows(applied.next()..).into_iter();
        rows.next().map(|row| row.kind)
    }

    /// Writes copies that wait: all that must come before the next container, or `some`, if there is none; `false`: there
    /// were none.
    fn write_copies(&self, some: bool, wrote: &mut dyn FnMut()) -> Result<bool, ApplyError> {
        let mut any = false;
        while let Some(batch) = self.copies.take(self.journal.cursors().applied) {
            // Rule C2: on a first sync there is no earlier point, and nothing to keep.
            let was_consistent = !self.journal.consistent().is_empty();
            let history: Option<&dyn History> = was_consistent.then_some(self.journal);
            if let Some(ordinal) = write_copies(self.volumes, &batch.copies, history)? {
                self.journal.set_applied_local(ordinal)?;
            }
            let lacks = self.compare(&batch.offers)?;
            self.copies.written(&batch, lacks);
            wrote();
            any = true;
            if some {
                break;
            }
        }
        Ok(any)
    }

    /// What the replica lacks of what is offered; what it holds of it is durable.
    fn compare(&self, offers: &[RegionOffer]) -> Result<Vec<(WriteSeq, Vec<ByteRange>)>, ApplyError> {
        let digest = |bytes: &[u8]| blake3::hash(bytes).into();
        let mut lacks = Vec::new();
        for offer in offers {
            let ranges = lacking(self.volumes, offer, &digest)?;
            if !ranges.is_empty() {
                lacks.push((offer.seq, ranges));
            }
        }
        // Behind the reads: what was read may have been in memory only.
        self.volumes.sync_of(offers.iter().map(|o| o.volume))?;
        Ok(lacks)
    }

    fn apply(&self, row: &LfcRow) -> Result<(), ApplyError> {
        let journal = self.journal;
        let applied = journal.cursors().applied_ordinal;
        let frames = journal.frames_of(row.generation, row.lfc)?;
        let changes: ChangeSet = frames.iter().flat_map(|f| f.records()).collect();
        let lfc = Lfc {
            generation: row.generation,
            lfc: row.lfc,
            last_seq: row.last_seq,
        };
        let end = Position {
            generation: row.generation,
            seq: row.last_seq,
        };
        let ordinal = if self.needs_undo(end) {
            apply(self.volumes, journal, lfc, applied, &changes, &mut |_| {})?.ordinal
        } else {
            // First sync: no earlier point can be asked for, so there is nothing to keep (rule C2).
            apply_first_sync(self.volumes, journal, lfc, applied, &changes)?
        };
        Ok(journal.set_applied(ordinal, row.generation, row.lfc, row.last_seq)?)
    }

    /// Whether an earlier point than this container's end can be asked for.
    fn needs_undo(&self, end: Position) -> bool {
        let spans = self.journal.consistent();
        spans.first().is_some_and(|span| end > span.from)
    }
}
