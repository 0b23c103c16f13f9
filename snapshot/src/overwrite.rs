//! The one function that changes a volume.
//!
//! # Overview
//!
//! Write-back, apply and restore all end here: some changes, and whether this host holds an earlier reachable point. If it
//! does, the before-image of every touched block is made durable and published first; only then the first byte changes.
//!
//! # Invariants
//!
//! * A block is overwritten only when its before-image is durable (invariant 4). [`Guard`] asserts it run by run, from
//!   what was committed, not from what was meant to be.
//! * Publishing happens before the first overwrite (`rules.md` V2): the fence between them pairs with the one a view puts
//!   between reading a volume and looking at what is published.
//! * Undo is never rebuilt (W4): a second attempt at an ordinal is [`overwrite_again`], which only writes.
//!
//! # Blocks that cannot be read
//!
//! A bad sector, or a checksum of the file system below that does not fit, is no reason to stop for good: what is to be written
//! is most often what makes the block readable again. But what was there is not known any more, and three things must hold
//! whatever the disk answers later:
//!
//! * No older point shows anything for the block: its before-image is recorded as *unknown*, which history answers as damage.
//! * Bytes that were given up so are never served again: before its image is given away, and so before the undo is committed, the
//!   block is durably *withheld* ([`model::ports::Medium::withhold`]): reads of it fail, also where the disk would give it now.
//! * A change of a part of it does not make it whole: that part is left out, and the block stays withheld until all of it was
//!   written in one write (a record of the whole block, a copy, a restore). Only then, and when that is synced, does it end.
//!
//! A crash behind the first step leaves a block withheld that cannot be read anyway. A repetition finds the mark, and leaves out
//! the same part. A storage that withholds nothing, or takes the failure for that of the whole disk, fails the overwrite as a
//! failed read always did; a write or sync that fails is that of a disk which is not to be trusted, as for any other block.
//!
//! # Crash consistency
//!
//! A crash before the commit leaves nothing; after it, the volume is a mix of both states for exactly the blocks in the
//! container: with its undo it is the state before, with the changes written again the state after.
//!
//! # What it does not do
//!
//! It moves no cursor: the caller does that when [`overwrite()`] has returned, because then the volumes are synced. Behind
//! [`write_back`] they are not: who writes back without undo syncs them now and then, and says so only behind that.

use crate::{
    BLOCK,
    change::{ChangeSet, Run},
    error::{Result, SnapshotError},
    volumes::{Volumes, batches},
};
use bytes::Bytes;
use model::{
    BlockNo, Ordinal, Payload, VolumeIndex,
    ports::{BeforeImage, Ended, History, OrdinalKind},
};
use std::{
    collections::BTreeSet,
    sync::atomic::{Ordering, fence},
};

/// Blocks read at once for before-images. Where the writes were scattered each is a read of its own, and disks want many under way.
/// No more of them are in memory.
const READ_BLOCKS_MAX: usize = 1024;

/// Blocks asked for at once when durable undo is listed.
const LIST_BLOCKS: usize = 8192;

/// Where the before-images of an overwrite go.
pub struct UndoPlan<'a> {
    /// The history that keeps them.
    pub history: &'a dyn History,
    /// The overwrite's place: the published ordinal + 1.
    pub ordinal: Ordinal,
    /// What the overwrite is.
    pub kind: OrdinalKind,
    /// The blocks that change, in order, where the caller has just read them under the right to overwrite them; `None`: they are
    /// read here.
    pub images: Option<Vec<BeforeImage>>,
}

/// What an overwrite did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overwritten {
    /// Bytes written or zeroed.
    pub bytes: u64,
    /// Blocks whose before-image was kept by this call.
    pub undo_blocks: u64,
}

/// Overwrites volumes with `changes` and syncs what it touched; with `undo`, keeps the before-images first.
///
/// `progress` is called with the bytes of each write as it is done; it may sleep to hold a rate.
///
/// # Errors
/// When a change lies outside its volume or the ordinal is not the next (nothing has happened then), or when history or a
/// volume fails (the caller then treats the context as poisoned; after a restart the same is done again).
pub fn overwrite(
    volumes: &Volumes,
    changes: &ChangeSet,
    undo: Option<UndoPlan<'_>>,
    progress: &mut dyn FnMut(u64),
) -> Result<Overwritten> {
    check(volumes, changes)?;
    let Some(UndoPlan {
        history,
        ordinal,
        kind,
        images,
    }) = undo
    else {
        let bytes = write(volumes, changes, None, progress)?;
        volumes.sync_of(changes.volumes())?;
        return Ok(Overwritten {
            bytes,
            undo_blocks: 0,
        });
    };
    let published = history.published();
    if ordinal != published.next() {
        return Err(SnapshotError::OutOfOrder { ordinal, published });
    }
    let (given, unread) = match images {
        Some(given) => (given, Vec::new()),
        None => (Vec::new(), changes.blocks().collect()),
    };
    let mut images = Images {
        volumes,
        batch: Vec::new().into_iter(),
        unread: &unread,
        withheld: BTreeSet::new(),
        fault: None,
    };
    images.batch = images.withhold(given)?.into_iter();
    let committed = history.commit_undo(ordinal, &kind, &mut images);
    // It says more than that they ended.
    images.fault.map_or(Ok(()), Err)?;
    let guard = Guard { blocks: committed? };
    assert!(
        history.published() >= ordinal,
        "ordinal {ordinal} was committed but is not published"
    );
    fence(Ordering::SeqCst);
    let bytes = write(volumes, changes, Some(&guard), progress)?;
    volumes.sync_of(changes.volumes())?;
    Ok(Overwritten {
        bytes,
        undo_blocks: guard.blocks.len() as u64,
    })
}

/// Writes back on a host that holds no earlier reachable point: no undo; and no sync, which is the caller's before it says that
/// anything is there. Repeating it is harmless.
///
/// # Errors
/// As [`overwrite()`].
pub fn write_back(volumes: &Volumes, changes: &ChangeSet) -> Result<()> {
    check(volumes, changes)?;
    write(volumes, changes, None, &mut |_| {}).map(drop)
}

/// Repeats an overwrite whose undo is already durable: writes and syncs only.
///
/// # Errors
/// As [`overwrite()`]; and when the durable undo lacks a block that `changes` touch.
pub fn overwrite_again(
    volumes: &Volumes,
    changes: &ChangeSet,
    history: &dyn History,
    ordinal: Ordinal,
    progress: &mut dyn FnMut(u64),
) -> Result<Overwritten> {
    check(volumes, changes)?;
    let published = history.published();
    if ordinal > published || ordinal == Ordinal(0) {
        return Err(SnapshotError::OutOfOrder { ordinal, published });
    }
    let guard = Guard {
        blocks: blocks_of(history, ordinal)?,
    };
    for key in changes.blocks() {
        if guard.blocks.binary_search(&key).is_err() {
            return Err(SnapshotError::UndoMissing {
                ordinal,
                volume: key.0,
                block: key.1,
            });
        }
    }
    fence(Ordering::SeqCst);
    let bytes = write(volumes, changes, Some(&guard), progress)?;
    volumes.sync_of(changes.volumes())?;
    Ok(Overwritten {
        bytes,
        undo_blocks: 0,
    })
}

/// Every block with undo in one container.
pub(crate) fn blocks_of(history: &dyn History, ordinal: Ordinal) -> Result<Vec<(VolumeIndex, BlockNo)>> {
    let before = Ordinal(ordinal.0 - 1);
    let mut all = Vec::new();
    let mut from = (VolumeIndex(0), BlockNo(0));
    loop {
        let page = history.undone_blocks(before, ordinal, from, LIST_BLOCKS)?;
        let (whole, last) = (page.len() >= LIST_BLOCKS, page.last().copied());
        all.extend(page);
        match last {
            Some((volume, block)) if whole => from = (volume, BlockNo(block.0 + 1)),
            _ => return Ok(all),
        }
    }
}

/// Refuses what lies past a volume's end. By pieces: putting neighbours together copies them.
fn check(volumes: &Volumes, changes: &ChangeSet) -> Result<()> {
    for (volume, piece) in changes.pieces() {
        volumes.check(volume, piece.range)?;
    }
    Ok(())
}

/// Reads some blocks of one volume, whole and zero-padded (`rules.md` W6), all at once.
fn read_images(volumes: &Volumes, keys: &[(VolumeIndex, BlockNo)]) -> Result<Vec<BeforeImage>> {
    let mut buf = vec![0; keys.len() * BLOCK];
    let unreadable = volumes.read_blocks(keys, &mut buf)?;
    let each = keys.iter().zip(blocks(Bytes::from(buf)));
    let images = each.map(|(&(volume, block), image)| BeforeImage {
        volume,
        block,
        image: unreadable.binary_search(&block).is_err().then_some(image),
    });
    Ok(images.collect())
}

/// Cuts whole blocks out of a buffer.
fn blocks(buf: Bytes) -> impl Iterator<Item = Payload> {
    (0..buf.len() / BLOCK).map(move |i| Payload::of(buf.slice(i * BLOCK..(i + 1) * BLOCK)))
}

/// Before-images as history takes them.
struct Images<'a> {
    volumes: &'a Volumes,
    /// Those that were read and not given yet.
    batch: std::vec::IntoIter<BeforeImage>,
    /// What is to be read behind them, in order.
    unread: &'a [(VolumeIndex, BlockNo)],
    withheld: BTreeSet<(VolumeIndex, BlockNo)>,
    /// Why they ended.
    fault: Option<SnapshotError>,
}

impl Images<'_> {
    fn next_image(&mut self) -> Result<Option<BeforeImage>> {
        if self.batch.len() == 0
            && let Some(keys) = batches(self.unread, READ_BLOCKS_MAX).next()
        {
            self.unread = &self.unread[keys.len()..];
            self.batch = self.withhold(read_images(self.volumes, keys)?)?.into_iter();
        }
        Ok(self.batch.next())
    }

    /// Withholds the blocks of a batch that are not known, before any of it is given. With the first of them go those of all that is
    /// read later, which is looked at once more for it: how many there are decides whether they are taken for rot.
    fn withhold(&mut self, batch: Vec<BeforeImage>) -> Result<Vec<BeforeImage>> {
        let of = |batch: &[BeforeImage]| {
            let unknown = batch.iter().filter(|b| b.image.is_none());
            unknown.map(|b| (b.volume, b.block)).collect::<Vec<_>>()
        };
        let mut unknown = of(&batch);
        if unknown.iter().all(|key| self.withheld.contains(key)) {
            return Ok(batch);
        }
        for keys in batches(self.unread, READ_BLOCKS_MAX) {
            unknown.extend(of(&read_images(self.volumes, keys)?));
        }
        self.volumes.withhold(&unknown)?;
        self.withheld.extend(unknown);
        Ok(batch)
    }
}

impl Iterator for Images<'_> {
    type Item = std::result::Result<BeforeImage, Ended>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_image().map_err(|e| {
            self.fault = Some(e);
            Ended
        });
        next.transpose()
    }
}

/// The blocks whose before-images are known to be durable; invariant 4's one assertion.
struct Guard {
    blocks: Vec<(VolumeIndex, BlockNo)>,
}

impl Guard {
    fn holds(&self, run: &Run) -> bool {
        let mut blocks = run.range.blocks();
        let Some(first) = blocks.next() else { return true };
        let last = blocks.last().unwrap_or(first);
        // The keys are sorted and distinct: with both ends in place, all between them are there.
        self.blocks.binary_search(&(run.volume, first)).is_ok_and(|at| {
            usize::try_from(last.0 - first.0)
                .ok()
                .and_then(|n| self.blocks.get(at.checked_add(n)?))
                == Some(&(run.volume, last))
        })
    }
}

fn write(
    volumes: &Volumes,
    changes: &ChangeSet,
    guard: Option<&Guard>,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let mut bytes = 0;
    for run in changes.runs() {
        assert!(
            guard.is_none_or(|g| g.holds(&run)),
            "bytes {:?} of volume {} would be overwritten without durable undo",
            run.range,
            run.volume
        );
        let volume = volumes.check(run.volume, run.range)?;
        let at = run.range.start;
        match &run.payload {
            Payload::Zero => volume.medium().write_zeroes(at, run.range.len()),
            Payload::Data(data) => volume.medium().write_at(at, data),
        }
        .map_err(|e| volume.failed("write", at, e))?;
        bytes += run.range.len();
        progress(run.range.len());
    }
    Ok(bytes)
}
