//! Regions that production sends again: a first sync, or a resync after its journal dropped what the replica lacks.
//!
//! # Overview
//!
//! A copy holds a region exactly as of its position. It is overwritten like anything else: on a replica that holds an
//! earlier consistent point the before-images are durable first, in an undo container of their own
//! ([`model::ports::OrdinalKind::Copies`]); so that point stays readable, mountable and restorable while the copies arrive
//! (`requirements.md` N19). Blocks that are equal already are left alone. Without history, what is zero where the volume has a
//! hole is left alone too, also amid other bytes: a replica is as sparse as what it follows.
//!
//! A region may be *offered* first, by its digest: [`lacking`] tells what the replica does not hold of it.
//!
//! What cannot be read differs, whatever it would have been: that is how a block that rotted below a volume is repaired.
//!
//! # Why a copy needs no place in the redo
//!
//! Records between the copy's position and the container that is applied next may be written over the copy although it
//! holds them already: the last of them wins, which is what the copy held. Records *behind* the copy must come after it, so
//! the caller writes a copy before it applies the container with its stub (`rules.md` C3).
//!
//! # Crash consistency
//!
//! A copy is durable when [`write_copies`] returns, also where nothing had to change: what was read as equal may have been
//! written by a process that was killed before it synced, so the volumes of all copies are synced, not only those that changed. So
//! are those of offers ([`Volumes::sync_of`]) before anything is said to be there.
//!
//! The bytes are nowhere else on this host. A crash in mid-overwrite leaves a mix, for whose blocks undo is durable; the
//! copy was not acknowledged, so production sends the region again. The interrupted ordinal is taken as it is: no point
//! stands on it.

use crate::{
    change::{ChangeSet, Run},
    error::Result,
    overwrite::{UndoPlan, overwrite},
    volumes::{Volume, Volumes},
};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, Ordinal, Payload, VolumeIndex, WriteSeq, is_zero,
    ports::{History, OrdinalKind},
};
use std::collections::BTreeSet;

/// Zeroes shorter than this are written like other bytes: a hole for each would cost more than it saves.
const HOLE_BYTES: u64 = 64 << 10;

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
    let mut ordinal = None;
    if !changes.is_empty() {
        let undo = history.map(|history| UndoPlan {
            history,
            ordinal: history.published().next(),
            kind: OrdinalKind::Copies,
            images: None,
        });
        ordinal = undo.as_ref().map(|u| u.ordinal);
        overwrite(volumes, &changes, undo, &mut |_| {})?;
        // Who fills a replica must not push everything else out of the machine's memory; and the pages that are given back
        // are the ones that the next batch takes.
        for run in changes.runs() {
            volumes
                .get(run.volume)?
                .medium()
                .forget(run.range.start, run.range.len());
        }
    }
    let synced: BTreeSet<_> = changes.volumes().collect();
    volumes.sync_of(copies.iter().map(|c| c.volume).filter(|v| !synced.contains(v)))?;
    Ok(ordinal)
}

/// A region that production offers: its digest, and those of its pieces as a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionOffer {
    /// The record: the copy's stub.
    pub seq: WriteSeq,
    /// The volume.
    pub volume: VolumeIndex,
    /// The region.
    pub range: ByteRange,
    /// Digest of its bytes, as the stub has it.
    pub digest: [u8; 32],
    /// Bytes of a piece; 0: it is not cut into any.
    pub piece: u64,
    /// The beginning of each piece's digest.
    pub pieces: Vec<u64>,
}

/// What the volumes do not hold of an offered region: nothing, if its digest is that of the bytes here; else the pieces that
/// look different, or all of it. `digest` is the one of its maker.
///
/// # Errors
/// When the volume fails, or does not hold the region.
pub fn lacking(
    volumes: &Volumes,
    offer: &RegionOffer,
    digest: &dyn Fn(&[u8]) -> [u8; 32],
) -> Result<Vec<ByteRange>> {
    let whole = offer.range;
    volumes.check(offer.volume, whole)?;
    let mut held = vec![0; usize::try_from(whole.len()).unwrap_or(usize::MAX)];
    let unreadable = volumes.read_readable(offer.volume, whole.start, &mut held)?;
    if unreadable.is_empty() && digest(&held) == offer.digest {
        return Ok(Vec::new());
    }
    let is_readable = |range: ByteRange| range.blocks().all(|b| unreadable.binary_search(&b).is_err());
    let mut lacking: Vec<ByteRange> = Vec::new();
    let piece = usize::try_from(offer.piece).unwrap_or(usize::MAX);
    if piece > 0 {
        let mut at = whole.start;
        for (bytes, theirs) in held.chunks(piece).zip(&offer.pieces) {
            let range = ByteRange::at(at, bytes.len() as u64);
            at = range.end;
            if is_readable(range) && piece_digest(&digest(bytes)) == *theirs {
                continue;
            }
            match lacking.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => lacking.push(range),
            }
        }
    }
    // Nothing looks different, and all together is: whatever the reason, all of it comes.
    if lacking.is_empty() {
        lacking.push(whole);
    }
    Ok(lacking)
}

/// What an offer carries of a piece's digest.
#[must_use]
pub const fn piece_digest(digest: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Bytes that are read at once to be compared.
const READ_BYTES: u64 = 1 << 20;

/// Adds the blocks of a run that the volume does not hold already, or cannot give.
fn differing(volumes: &Volumes, run: &Run, changes: &mut ChangeSet) -> Result<()> {
    let volume = volumes.check(run.volume, run.range)?;
    if run.payload == Payload::Zero && is_hole(volume, run.range)? {
        return Ok(());
    }
    let mut buf = vec![0; usize::try_from(run.range.len().min(READ_BYTES)).unwrap_or(0)];
    let (mut at, mut read) = (run.range.start, ByteRange::at(run.range.start, 0));
    let mut unreadable = Vec::new();
    while at < run.range.end {
        if at == read.end {
            read = ByteRange {
                start: at,
                end: (at / BLOCK_SIZE * BLOCK_SIZE + READ_BYTES).min(run.range.end),
            };
            unreadable = volumes.read_readable(run.volume, at, part_of(&mut buf, read, read))?;
        }
        let end = ((at / BLOCK_SIZE + 1) * BLOCK_SIZE).min(read.end);
        let range = ByteRange { start: at, end };
        let offset = |at: u64| usize::try_from(at - run.range.start).unwrap_or(usize::MAX);
        let held = part_of(&mut buf, read, range);
        let payload = match &run.payload {
            Payload::Data(data) => Payload::Data(data.slice(offset(at)..offset(end))),
            Payload::Zero => Payload::Zero,
        };
        let equal = match &payload {
            Payload::Data(data) => *held == data[..],
            Payload::Zero => is_zero(held),
        };
        if !equal || unreadable.binary_search(&BlockNo::of(at)).is_ok() {
            changes.put(run.volume, range, WriteSeq(0), payload);
        }
        at = end;
    }
    Ok(())
}

/// The part of a buffer that holds `part`, where it holds `read` from its beginning.
fn part_of(buf: &mut [u8], read: ByteRange, part: ByteRange) -> &mut [u8] {
    let index = |at: u64| usize::try_from(at - read.start).unwrap_or(usize::MAX);
    &mut buf[index(part.start)..index(part.end)]
}

/// Adds a run, unless it is zero where the volume has a hole: writing that would only take space.
fn unless_hole(volumes: &Volumes, run: &Run, changes: &mut ChangeSet) -> Result<()> {
    let Payload::Data(data) = &run.payload else {
        return unless_zero_hole(volumes, run, changes);
    };
    for (range, zero) in stretches(run.range.start, data) {
        let offset = |at: u64| usize::try_from(at - run.range.start).unwrap_or(usize::MAX);
        let payload = if zero {
            Payload::Zero
        } else {
            Payload::Data(data.slice(offset(range.start)..offset(range.end)))
        };
        let part = Run {
            volume: run.volume,
            range,
            payload,
        };
        unless_zero_hole(volumes, &part, changes)?;
    }
    Ok(())
}

/// Bytes that stand at `start`, cut where whole aligned stretches of [`HOLE_BYTES`] are zero and where they are not.
fn stretches(start: u64, data: &[u8]) -> Vec<(ByteRange, bool)> {
    let mut out: Vec<(ByteRange, bool)> = Vec::new();
    let end = start + data.len() as u64;
    let mut at = start;
    while at < end {
        let stop = ((at / HOLE_BYTES + 1) * HOLE_BYTES).min(end);
        let offset = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
        let zero = stop - at == HOLE_BYTES && is_zero(&data[offset(at)..offset(stop)]);
        match out.last_mut() {
            Some((range, was)) if *was == zero => range.end = stop,
            _ => out.push((ByteRange { start: at, end: stop }, zero)),
        }
        at = stop;
    }
    out
}

fn unless_zero_hole(volumes: &Volumes, run: &Run, changes: &mut ChangeSet) -> Result<()> {
    let volume = volumes.check(run.volume, run.range)?;
    if run.payload != Payload::Zero || !is_hole(volume, run.range)? {
        changes.put(run.volume, run.range, WriteSeq(0), run.payload.clone());
    }
    Ok(())
}

fn is_hole(volume: &Volume, range: ByteRange) -> Result<bool> {
    let data = volume
        .medium()
        .next_data(range.start)
        .map_err(|e| volume.failed("look for data in", range.start, e))?;
    Ok(data.is_none_or(|data| data.start >= range.end))
}
