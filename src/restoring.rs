//! The failover restore from plan to end, and its way back (`rules.md` R-1, R-2).
//!
//! # Overview
//!
//! [`snapshot::Restore`] changes blocks. Around it stands what makes it a step of a context's life: the plan is settled, the
//! room for its undo is asked for, the row is made durable together with RESTORING, containers are written one by one, and
//! the end is durable together with ROLLED_BACK (or ENABLED, after an undo). The daemon and the tests run this one code;
//! what differs between them is the [`Owner`].
//!
//! # Crash consistency
//!
//! ```text
//! ENABLED ─Begin─► RESTORING ──────────► ROLLED_BACK
//!    ▲              │  ▲ GoOn               │
//!    │    TurnRound ▼  │          TurnRound │
//!    └─────── RESTORING, `undo_from` ◄──────┘
//! ```
//!
//! Each arrow's end is one commit of row and state. Until the first one nothing has changed; between two of them the volumes
//! are at no point, and [`Work::GoOn`] or [`Work::TurnRound`] leads out. The container that was being written when the run
//! ended is written again from the point before anything else (W4): only then may the run be turned round, because undo
//! leads back through whole containers.
//!
//! # What it does not do
//!
//! It asks nobody and refuses no state: which [`Work`] may be done is its caller's to know. The caller also holds the right
//! to overwrite the replica, and sees that what the row names is not freed.

use journal::{Journal, JournalError, RestorePhase, RestoreRow};
use model::{
    ContextState,
    ports::{History, HistoryError},
};
use snapshot::{Checkpoint, Progress, Restore, RestorePlan, Restored, SnapshotError, Volumes, Watch};
use std::{io, ops::ControlFlow};

/// Why a restore did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The journal has no room for the undo: nothing was changed (R-1).
    #[error(
        "the journal has no room for the undo of this restore: {needed} bytes may be needed, {free} are free"
    )]
    NoRoom {
        /// Bytes of undo that the restore may write.
        needed: u64,
        /// Bytes that are free where the journal is.
        free: u64,
    },
    /// The point left the window between the question and the answer: nothing was changed.
    #[error("record {0} has left the window meanwhile")]
    PointGone(model::WriteSeq),
    /// It is not known how much room there is.
    #[error("the room for the journal is not known: {0}")]
    Room(#[source] io::Error),
    /// The snapshot engine.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What a restore needs of whoever owns the context.
pub trait Owner {
    /// Bytes that are free where the journal keeps undo.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn room(&self) -> io::Result<u64>;

    /// Makes row and state durable together.
    ///
    /// # Errors
    /// When they could not be made durable; the run ends.
    fn set_restore(&self, row: Option<&RestoreRow>, state: ContextState) -> Result<(), JournalError>;

    /// Makes durable how far the restore has come.
    ///
    /// # Errors
    /// As [`Owner::set_restore`].
    fn keep_restore(&self, row: &RestoreRow) -> Result<(), JournalError>;

    /// Told after every batch of blocks; answers whether to go on. A stop takes effect between containers.
    fn progress(&mut self, _row: &RestoreRow, _progress: &Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// What a run of a restore starts from.
#[derive(Clone, Debug)]
pub enum Work {
    /// Nothing: the plan is settled, and made durable, by the run.
    Begin(RestoreRow),
    /// A durable row whose execution was interrupted.
    GoOn(RestoreRow),
    /// A restore, complete or not, that is to be taken back.
    TurnRound(RestoreRow),
}

/// The plan that a row describes.
///
/// # Errors
/// When what it stands on is not reached.
pub fn plan_of(history: &dyn History, row: &RestoreRow) -> Result<RestorePlan, SnapshotError> {
    let mut plan = RestorePlan::resumed(history, &row.target, row.from)?;
    if let Some(only) = row.only {
        plan = plan.only(only);
    }
    Ok(match row.undo_from {
        Some(start) => plan.undo_resumed(start),
        None => plan,
    })
}

/// The replica of a context, in the hands of whoever may overwrite it.
pub struct Replica<'a> {
    /// Its history.
    pub journal: &'a Journal,
    /// Its volumes.
    pub volumes: &'a Volumes,
    /// Most blocks of one undo container: [`Restore::CONTAINER_BLOCKS`], or less in tests.
    pub container_blocks: usize,
}

impl Replica<'_> {
    /// Does the work to its end: ROLLED_BACK, or ENABLED after an undo.
    ///
    /// # Errors
    /// [`RestoreError::NoRoom`], and [`SnapshotError::Unsettled`] when a container is not wholly applied: nothing has changed
    /// then. Else the run ended part-way, and [`Work::GoOn`] or [`Work::TurnRound`] with the durable row goes on.
    pub fn run(&self, work: Work, owner: &mut dyn Owner) -> Result<Restored, RestoreError> {
        let history: &dyn History = self.journal;
        let (mut row, plan) = self.settle(work)?;
        let needed = plan.undo_bytes_from(history, row.cursor)?;
        let free = owner.room().map_err(RestoreError::Room)?;
        if needed > free {
            return Err(RestoreError::NoRoom { needed, free });
        }
        owner.set_restore(Some(&row), ContextState::Restoring)?;
        let done = self.journal.cursors().applied_ordinal;
        let settled = done == history.published() && done > plan.start();
        let checkpoint = settled.then_some(Checkpoint {
            done,
            next: row.cursor,
        });
        let restored = self.restore(&plan).execute(
            checkpoint,
            &mut Watcher {
                journal: self.journal,
                owner,
                row: &mut row,
            },
        )?;
        self.journal.set_applied_local(restored.last)?;
        row.phase = RestorePhase::Done;
        if row.undo_from.is_some() {
            owner.set_restore(None, ContextState::Enabled)?;
        } else {
            owner.set_restore(Some(&row), ContextState::RolledBack)?;
        }
        Ok(restored)
    }

    fn restore<'a>(&'a self, plan: &'a RestorePlan) -> Restore<'a> {
        Restore {
            volumes: self.volumes,
            history: self.journal,
            plan,
            container_blocks: self.container_blocks,
        }
    }

    /// The row and its plan, with nothing left open behind them.
    fn settle(&self, work: Work) -> Result<(RestoreRow, RestorePlan), RestoreError> {
        let history: &dyn History = self.journal;
        let row = match work {
            Work::Begin(mut row) => {
                // It was resolved before the replica was ours.
                if !self.journal.is_kept(&row.target) {
                    return Err(RestoreError::PointGone(row.target.seq));
                }
                let applied = self.journal.cursors().applied_ordinal;
                row.from = RestorePlan::new(history, &row.target, applied)?.start();
                row
            }
            Work::GoOn(row) => row,
            Work::TurnRound(row) => {
                self.finish_container(&row)?;
                row.turned_round(history.published())
            }
        };
        let plan = plan_of(history, &row)?;
        Ok((row, plan))
    }

    /// Overwrites again what the last container of an interrupted restore holds undo for.
    fn finish_container(&self, row: &RestoreRow) -> Result<(), RestoreError> {
        struct StopAtOnce<'a>(&'a Journal);
        impl Watch for StopAtOnce<'_> {
            fn progress(&mut self, _: &Progress) -> ControlFlow<()> {
                ControlFlow::Break(())
            }
            fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), HistoryError> {
                Ok(self.0.set_applied_local(checkpoint.done)?)
            }
        }
        let history: &dyn History = self.journal;
        if self.journal.cursors().applied_ordinal >= history.published() {
            return Ok(());
        }
        let plan = plan_of(history, row)?;
        match self.restore(&plan).execute(None, &mut StopAtOnce(self.journal)) {
            Ok(_) | Err(SnapshotError::Stopped(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

struct Watcher<'a> {
    journal: &'a Journal,
    owner: &'a mut dyn Owner,
    row: &'a mut RestoreRow,
}

impl Watch for Watcher<'_> {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.owner.progress(self.row, progress)
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), HistoryError> {
        self.journal.set_applied_local(checkpoint.done)?;
        self.row.cursor = checkpoint.next;
        Ok(self.owner.keep_restore(self.row)?)
    }
}
