//! Regions that production sends again: a first sync, or a resync after its journal dropped what the replica lacks.
//!
//! # Overview
//!
//! A copy holds a region exactly as of its position. It is overwritten like anything else: on a replica that holds an
//! earlier consistent point the before-images are durable first, in an undo container of their own
//! ([`model::ports::OrdinalKind::Copies`]); so that point stays readable, mountable and restorable while the copies arrive
//! (`requirements.md` N19). Blocks that are equal already are left alone.
//!
//! # Why a copy needs no place in the redo
//!
//! Records between the copy's position and the container that is applied next may be written over the copy although it
//! holds them already: the last of them wins, which is what the copy held. Records *behind* the copy must come after it, so
//! the caller writes a copy before it applies the container with its stub (`rules.md` C3).
//!
//! # Crash consistency
//!
//! The bytes are nowhere else on this host. A crash in mid-overwrite leaves a mix, for whose blocks undo is durable; the
//! copy was not acknowledged, so production sends the region again. The interrupted ordinal is taken as it is: no point
//! stands on it.

use crate::{
    change::{ChangeSet, Run},
    error::Result,
    overwrite::{UndoPlan, overwrite},
    volumes::Volumes,
};
use model::{
    BLOCK_SIZE, ByteRange, Ordinal, Payload, VolumeIndex, WriteSeq,
    ports::{History, OrdinalKind},
};

/// A region's bytes exactly as of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionCopy {
    /// The record: the copy's stub.
    pub seq: WriteSeq,
    /// The volume.
    pub volume: VolumeIndex,
    /// The region.
    pub range: ByteRange,
    /// Its bytes; data has exactly `range.len()` of them.
    pub payload: Payload,
}

impl RegionCopy {
    /// Bytes that it carries.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.payload {
            Payload::Data(data) => data.len() as u64,
            Payload::Zero => 0,
        }
    }

    /// Whether it carries none: the region is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Writes copies, in their order, and syncs the volumes. With `history` before-images are kept first, and the answer is the
/// ordinal they have; `None`: nothing had to change, or nothing is kept.
///
/// # Errors
/// As [`overwrite()`].
pub fn write_copies(
    volumes: &Volumes,
    copies: &[RegionCopy],
    history: Option<&dyn History>,
) -> Result<Option<Ordinal>> {
    let mut all = ChangeSet::new();
    for copy in copies {
        all.put(copy.volume, copy.range, copy.seq, copy.payload.clone());
    }
    let mut changes = ChangeSet::new();
    for run in all.runs() {
        match history {
            Some(_) => differing(volumes, &run, &mut changes)?,
            None => unless_hole(volumes, &run, &mut changes)?,
        }
    }
    let undo = history.map(|history| UndoPlan {
        history,
        ordinal: history.published().next(),
        kind: OrdinalKind::Copies,
        images: None,
    });
    if changes.is_empty() {
        return Ok(None);
    }
    let ordinal = undo.as_ref().map(|u| u.ordinal);
    overwrite(volumes, &changes, undo, &mut |_| {})?;
    Ok(ordinal)
}

/// Adds the blocks of a run that the volume does not hold already.
fn differing(volumes: &Volumes, run: &Run, changes: &mut ChangeSet) -> Result<()> {
    let volume = volumes.check(run.volume, run.range)?;
    let mut at = run.range.start;
    let mut buf = [0; BLOCK_SIZE as usize];
    while at < run.range.end {
        let end = ((at / BLOCK_SIZE + 1) * BLOCK_SIZE).min(run.range.end);
        let range = ByteRange { start: at, end };
        let offset = |at: u64| usize::try_from(at - run.range.start).unwrap_or(usize::MAX);
        let held = &mut buf[..usize::try_from(range.len()).unwrap_or(0)];
        let medium = volume.medium();
        medium
            .read_at(at, held)
            .map_err(|e| volume.failed("read", at, e))?;
        let payload = match &run.payload {
            Payload::Data(data) => Payload::Data(data.slice(offset(at)..offset(end))),
            Payload::Zero => Payload::Zero,
        };
        let equal = match &payload {
            Payload::Data(data) => held == &data[..],
            Payload::Zero => held.iter().all(|b| *b == 0),
        };
        if !equal {
            changes.put(run.volume, range, WriteSeq(0), payload);
        }
        at = end;
    }
    Ok(())
}

/// Adds a run, unless it is zero where the volume has a hole: writing that would only take space.
fn unless_hole(volumes: &Volumes, run: &Run, changes: &mut ChangeSet) -> Result<()> {
    let volume = volumes.check(run.volume, run.range)?;
    let is_hole = run.payload == Payload::Zero
        && volume
            .medium()
            .next_data(run.range.start)
            .map_err(|e| volume.failed("look for data in", run.range.start, e))?
            .is_none_or(|data| data.start >= run.range.end);
    if !is_hole {
        changes.put(run.volume, run.range, WriteSeq(0), run.payload.clone());
    }
    Ok(())
}
