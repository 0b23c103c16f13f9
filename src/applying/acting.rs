//! Write-back of a production that holds earlier points: it is apply (rules W2, T3).
//!
//! # Overview
//!
//! A production that was recovery before can be asked for points of that time, and of its own as long as it builds undo. Its
//! volumes then go from the end of one container to the end of the next, as a replica's do: undo durable, then the blocks,
//! coalesced within the container only. Every other production coalesces freely ([`snapshot::write_back`]).
//!
//! # Invariants
//!
//! - Only sealed containers, in order. The open one, and those that are sealed and not applied yet, live in the tap's
//!   overlay, and nowhere else but in the journal.
//! - `applied`, `written_back` and `checkpointed` move together, when a container is whole on the volumes.
//!
//! # Crash consistency
//!
//! [`catch_up`] runs before the first request is served: a container that was being applied is applied again with the undo
//! that it has (W4), those behind it are applied, and the frames of the open one go to the tap again.
//!
//! # What it does not do
//!
//! It does not decide how long earlier points are kept.

use super::{Applier, ApplyError, CopyQueue};
use journal::{Frame, Journal, JournalError, tap::Tap};
use model::ContextState;
use snapshot::{ChangeSet, Volumes, write_back};
use std::sync::Arc;

/// Whether this host holds a point before the state of its volumes.
#[must_use]
pub fn builds_undo(journal: &Journal) -> bool {
    journal.cursors().published > journal.floors().undo
}

/// Bytes of frames that are written again at once.
const REPLAY_BYTES: u64 = 32 << 20;

/// Brings the volumes of a host without undo to the journal's head: everything after `checkpointed` is written again, in
/// order. Answers how many records that were.
///
/// # Errors
/// When the journal or a volume fails.
pub fn replay(journal: &Journal, volumes: &Volumes) -> Result<u64, ApplyError> {
    // After a stop in this process the journal may hold writes that were answered and not synced.
    journal.sync()?;
    let cursors = journal.cursors();
    let mut from = cursors.checkpointed;
    while from < cursors.durable {
        let frames = journal.frames_after(from, REPLAY_BYTES)?;
        let Some(last) = frames.last() else { break };
        let changes: ChangeSet = frames.iter().flat_map(|f| f.records()).collect();
        write_back(volumes, &changes, &mut |_| {})?;
        from = last.last_seq();
    }
    if from > cursors.checkpointed {
        volumes.sync()?;
        journal.set_written_back(from);
        journal.set_checkpointed(from)?;
    }
    Ok(from.0 - cursors.checkpointed.0)
}

/// Applies the oldest container that waits in the overlay, if it is sealed.
///
/// # Errors
/// When the journal, the engine or a volume fails.
pub fn apply_waiting(tap: &Tap, volumes: &Volumes) -> Result<bool, ApplyError> {
    let frames = tap.take_container();
    let Some(last) = frames.last() else {
        return Ok(false);
    };
    let journal = tap.journal();
    apply_next(journal, volumes)?;
    if journal.cursors().applied != last.last_seq() {
        return Err(JournalError::Internal("another container was applied than waits in the overlay").into());
    }
    tap.written_back(&frames)?;
    Ok(true)
}

/// Applies every container that is sealed, and answers the frames of the open one, which only the overlay may hold.
///
/// # Errors
/// When the journal, the engine or a volume fails.
pub fn catch_up(journal: &Journal, volumes: &Volumes) -> Result<Vec<Arc<Frame>>, ApplyError> {
    // After a stop in this process the journal may hold writes that were answered and not synced.
    journal.sync()?;
    while apply_next(journal, volumes)? {}
    Ok(journal.frames_after(journal.cursors().applied, u64::MAX)?)
}

fn apply_next(journal: &Journal, volumes: &Volumes) -> Result<bool, ApplyError> {
    while journal.ingest_sealed()?.is_some() {}
    // Copies come to a replica only, and only a replica is rolled back.
    let copies = &CopyQueue::default();
    let applier = Applier {
        journal,
        volumes,
        copies,
        state: ContextState::Enabled,
    };
    applier.step(&mut || {})
}
