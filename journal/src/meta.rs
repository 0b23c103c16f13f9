//! Metadata batches, the superblock, and the cursors that are kept in them (`rules.md` T7).

use crate::{
    codec::Writer,
    error::{JournalError, Position},
    journal::Journal,
    keys,
    superblock::{Bounds, Superblock},
};
use model::{
    GenNo, LfcId, Ordinal, WriteSeq,
    ports::{Batch, Family},
};

/// Who commits metadata holds this.
pub(crate) struct Meta {
    /// Number of the last committed batch.
    pub(crate) seq: u64,
    pub(crate) superblock: Superblock,
}

impl Journal {
    /// Commits metadata. `relied`: something that cannot be taken back will rest on it, so the superblock is raised too,
    /// and a store that loses the batch is found out on open.
    ///
    /// # Errors
    /// When the store or the superblock fails.
    pub fn meta_commit(&self, batch: Batch, relied: bool) -> Result<(), JournalError> {
        self.guarded(|| self.commit(batch, relied))
    }

    pub(crate) fn commit(&self, batch: Batch, relied: bool) -> Result<(), JournalError> {
        self.commit_locked(&mut self.meta.lock(), batch, relied)
    }

    pub(crate) fn commit_locked(
        &self,
        meta: &mut Meta,
        mut batch: Batch,
        relied: bool,
    ) -> Result<(), JournalError> {
        let seq = meta.seq + 1;
        batch.put(Family::Meta, keys::META_SEQ, Writer::default().u64(seq).done());
        self.store.commit(batch)?;
        meta.seq = seq;
        if relied { self.raise_locked(meta) } else { Ok(()) }
    }

    /// How often rows of this journal have changed: the same number, the same containers, pins and cursors.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.meta.lock().seq
    }

    /// Raises the superblock's bounds to what is durable now. Called at every seal; call it when the journal goes idle and
    /// before a clean end.
    ///
    /// # Errors
    /// When the superblock fails.
    pub fn raise_bound(&self) -> Result<(), JournalError> {
        self.guarded(|| self.raise())
    }

    pub(crate) fn raise(&self) -> Result<(), JournalError> {
        self.raise_locked(&mut self.meta.lock())
    }

    fn raise_locked(&self, meta: &mut Meta) -> Result<(), JournalError> {
        // Both under one lock: a line starts under it, and its numbers mean nothing under another generation.
        let (cursors, generation) = {
            let shared = self.shared.read();
            (self.cursors(), shared.open.as_ref().map(|o| o.generation))
        };
        let before = meta.superblock.bounds();
        // Without an open generation (new, or damaged) the journal's end bounds nothing.
        let at = |seq, before| generation.map_or(before, |generation| Position { generation, seq });
        let bounds = Bounds {
            durable: at(cursors.durable, before.durable),
            meta_seq: meta.seq,
            checkpointed: at(cursors.checkpointed, before.checkpointed),
        };
        meta.superblock.raise(bounds)
    }

    /// Moves cursors that are kept in the store: committed first, then seen.
    ///
    /// From the look at the cursors to their move under one lock: all are kept in one value, and another thread's commit in
    /// between would be taken back by ours (`checkpointed` below the floor: nothing to replay from).
    fn move_kept(&self, relied: bool, change: impl Fn(&mut crate::Cursors)) -> Result<(), JournalError> {
        self.guarded(|| {
            let mut meta = self.meta.lock();
            let mut next = self.cursors();
            change(&mut next);
            next.check();
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::CURSORS, next.encode());
            self.commit_locked(&mut meta, batch, relied)?;
            self.move_cursors(|c| change(c));
            Ok(())
        })
    }

    /// The volumes hold all up to `seq`, not yet durably. Not kept: after a crash replay starts at `checkpointed`.
    pub fn set_written_back(&self, seq: WriteSeq) {
        self.move_cursors(|c| c.written_back = c.written_back.max(seq));
    }

    /// The volumes were synced after they held all up to `seq`.
    ///
    /// # Errors
    /// When it could not be made durable; the cursor has then not moved.
    pub fn set_checkpointed(&self, seq: WriteSeq) -> Result<(), JournalError> {
        self.move_kept(false, |c| c.checkpointed = c.checkpointed.max(seq))
    }

    /// A container is wholly applied and the volumes were synced after it (`rules.md` W2).
    ///
    /// # Errors
    /// When it could not be made durable; the cursor has then not moved.
    pub fn set_applied(
        &self,
        ordinal: Ordinal,
        generation: GenNo,
        lfc: LfcId,
        last_seq: WriteSeq,
    ) -> Result<(), JournalError> {
        self.move_kept(false, |c| {
            c.applied_ordinal = c.applied_ordinal.max(ordinal);
            c.applied = c.applied.max(last_seq);
            c.applied_lfc = c.applied_lfc.max((generation, lfc));
            c.written_back = c.written_back.max(last_seq);
            c.checkpointed = c.checkpointed.max(last_seq);
        })
    }

    /// A local pair's container is wholly applied and the volumes were synced after it: only the ordinal moves.
    ///
    /// # Errors
    /// When it could not be made durable; the cursor has then not moved.
    pub fn set_applied_local(&self, ordinal: Ordinal) -> Result<(), JournalError> {
        self.move_kept(false, |c| c.applied_ordinal = c.applied_ordinal.max(ordinal))
    }

    /// What the peer acknowledged. `keep` writes it to the store; a lower value after a crash is safe, so callers do that
    /// now and then, and always before redo is dropped because of it.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when the peer has more than is here (`rules.md` T5: this journal lost it);
    /// [`JournalError::Refused`] when it claims to have applied what it has not received; or a failure.
    pub fn set_peer(&self, received: WriteSeq, applied: WriteSeq, keep: bool) -> Result<(), JournalError> {
        if applied > received {
            return Err(JournalError::Refused(format!(
                "the peer applied {applied} but received {received}"
            )));
        }
        self.check_reaches(received, "was acknowledged by the peer")?;
        let change = |c: &mut crate::Cursors| {
            c.received_by_peer = c.received_by_peer.max(received);
            c.applied_by_peer = c.applied_by_peer.max(applied);
        };
        if keep {
            return self.move_kept(false, change);
        }
        self.move_cursors(change);
        Ok(())
    }

    /// What the peer has acknowledged by now is durable. Whatever is dropped because of it comes after this, and under the lock under
    /// which it is looked at (`ingesting`): a lower cursor after a crash would ask for what is gone.
    pub(crate) fn keep_peer(&self) -> Result<(), JournalError> {
        self.move_kept(false, |_| {})
    }

    /// Takes what the peer says at a connect as it is, even if it is less than before (the peer lost its journal and says
    /// so). Kept.
    ///
    /// # Errors
    /// As [`Journal::set_peer`].
    pub fn reset_peer(&self, received: WriteSeq, applied: WriteSeq) -> Result<(), JournalError> {
        // Who lets containers go because the peer has them, holds this from the look at what it has until they are gone.
        let _ingesting = self.ingesting.lock();
        if applied > received {
            return Err(JournalError::Refused(format!(
                "the peer applied {applied} but received {received}"
            )));
        }
        self.check_reaches(received, "was acknowledged by the peer")?;
        self.move_kept(false, |c| {
            c.received_by_peer = received;
            c.applied_by_peer = applied;
        })
    }

    /// Whether the journal reaches `seq` of its current line; if not, it lost what somebody else saw (`rules.md` T5).
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when it does not.
    pub fn check_reaches(&self, seq: WriteSeq, why: &'static str) -> Result<(), JournalError> {
        let shared = self.shared.read();
        match shared.open.as_ref().map(crate::container::Container::end) {
            Some(end) if seq > end.seq => {
                let bound = Position { seq, ..end };
                Err(crate::Damage::EndBelow { end, bound, why }.into())
            }
            _ => Ok(()),
        }
    }

    /// Recovery: production says that it is durable up to `seq`; nothing past it may be applied. Not kept by itself.
    pub fn set_peer_durable(&self, seq: WriteSeq) {
        self.move_cursors(|c| c.peer_durable = c.peer_durable.max(seq));
    }
}
