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
use model::{ContextState, WriteSeq};
use snapshot::{ChangeSet, SnapshotError, Volumes, write_back};
use std::{
    sync::{Arc, mpsc},
    thread,
};

/// Whether this host holds a point before the state of its volumes.
#[must_use]
pub fn builds_undo(journal: &Journal) -> bool {
    journal.cursors().published > journal.floors().undo
}

/// Bytes of frames that are written again at once; as many again are read meanwhile.
const REPLAY_BYTES: u64 = 32 << 20;

/// Brings the volumes of a host without undo to the journal's head: everything after `checkpointed` is written again, in
/// order. Answers how many records that were.
///
/// While some of it is written, a thread reads and checks what follows. Nothing is said of any of it before the one sync at the
/// end; a crash before that begins at the same place again.
///
/// # Errors
/// When the journal or a volume fails.
pub fn replay(journal: &Journal, volumes: &Volumes) -> Result<u64, ApplyError> {
    replay_by(journal, volumes, REPLAY_BYTES)
}

/// [`replay`] with fewer bytes at once, for tests.
///
/// # Errors
/// As [`replay`].
pub fn replay_by(journal: &Journal, volumes: &Volumes, bytes: u64) -> Result<u64, ApplyError> {
    // After a stop in this process the journal may hold writes that were answered and not synced.
    journal.sync()?;
    let cursors = journal.cursors();
    let (read, windows) = mpsc::sync_channel(0);
    let mut done = cursors.checkpointed;
    thread::scope(|scope| {
        thread::Builder::new()
            .name("replay-ahead".into())
            .spawn_scoped(scope, move || {
                let mut from = cursors.checkpointed;
                while from < cursors.durable {
                    let window = window_after(journal, from, bytes).transpose();
                    let Some(window) = window else { return };
                    from = window.as_ref().map_or(cursors.durable, |(last, _)| *last);
                    if read.send(window).is_err() {
                        return;
                    }
                }
            })
            .map_err(SnapshotError::Thread)?;
        for window in windows {
            let (last, changes) = window?;
            write_back(volumes, &changes)?;
            done = last;
        }
        Ok::<_, ApplyError>(())
    })?;
    if done > cursors.checkpointed {
        volumes.sync()?;
        journal.set_written_back(done);
        journal.set_checkpointed(done)?;
    }
    Ok(done.0 - cursors.checkpointed.0)
}

/// What the next frames behind a record leave, newest wins, and their end; `None`: there are none.
fn window_after(
    journal: &Journal,
    from: WriteSeq,
    bytes: u64,
) -> Result<Option<(WriteSeq, ChangeSet)>, JournalError> {
    let frames = journal.frames_after(from, bytes)?;
    let last = frames.last().map(|frame| frame.last_seq());
    Ok(last.map(|last| (last, frames.iter().flat_map(|f| f.records()).collect())))
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
    if journal.promotion().is_some() {
        // All of a line that was taken over is on the volumes, and the cursors are numbers of the line before it.
        return Ok(Vec::new());
    }
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
