//! Making the volumes what they were at a point.
//!
//! # Overview
//!
//! A restore is a write of this host alone (`rules.md` R-1). It walks the blocks that may differ in (volume, block) order,
//! compares each with the point, and overwrites those that differ, through [`overwrite()`]: a bounded number of blocks at
//! a time, each such part an undo container of kind [`Local`](model::ports::OrdinalKind::Local) with the next ordinal.
//! Undoing a restore is another one, to the ordinal before its first container; views of all points stay true throughout.
//!
//! While one part is overwritten, a thread finds the next: it only reads, and only blocks behind those that are being
//! overwritten, so neither sees anything of the other. What it read of the volume to compare are the before-images.
//!
//! # Crash consistency
//!
//! Nothing but the plan (durable before the first block changes: R-2) is needed to go on. The containers after the plan's
//! start are the restore's own; all but the last are wholly overwritten and synced, because a container is only committed
//! after the one before it was. So the last one's blocks are written again from the point, its undo is not rebuilt (W4),
//! and the walk goes on behind its last block. Reading the point in that state is exact: whatever the restore overwrote
//! has undo after the point's base. The checkpoint given to the caller is progress to show and a shortcut, not a need.
//!
//! # What it does not do
//!
//! It does not check for room, make the plan durable, pin, nor set sizes: the owner of the context does, before and after.
//! Between its first and its last container the volumes are at no point.

use crate::{
    BLOCK,
    change::ChangeSet,
    error::{Result, SnapshotError},
    lens::Source,
    overwrite::{UndoPlan, blocks_of, overwrite, overwrite_again},
    plan::{BlockKey, Candidates, RestorePlan},
    progress::Progress,
    volumes::{Volumes, batches},
};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, Ordinal, Payload, WriteSeq, is_zero,
    ports::{BeforeImage, History},
};
use std::{ops::ControlFlow, sync::mpsc, thread};

/// Blocks compared at once.
const BATCH_BLOCKS: usize = 1024;

/// A part ends when so many times the blocks of a container were looked at, that is, now and then also where little differs:
/// whoever watches is told between parts.
const LOOKS_PER_PART: usize = 4;

/// How far a restore has durably come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last ordinal whose blocks are overwritten and synced.
    pub done: Ordinal,
    /// Every block before this one is as at the point.
    pub next: BlockKey,
}

/// What a restore did in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The ordinal on which the restored state stands: `Point { base: last, redo: [] }` is the volumes as they are now.
    pub last: Ordinal,
    /// Blocks overwritten.
    pub blocks_changed: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

/// A restore to be executed.
pub struct Restore<'a> {
    /// What it changes,
    pub volumes: &'a Volumes,
    /// the history that it reads and writes,
    pub history: &'a dyn History,
    /// and the plan, durable by now.
    pub plan: &'a RestorePlan,
    /// Most blocks of one undo container; bounds memory to about five times as many blocks.
    pub container_blocks: usize,
}

/// Callbacks of a restore.
pub trait Watch {
    /// Told after every part of the walk; answers whether to go on. A stop takes effect between containers.
    fn progress(&mut self, _progress: &Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Told after each container: the applied cursor may be moved to `checkpoint.done`. An error ends the run.
    ///
    /// # Errors
    /// When the checkpoint could not be made durable.
    fn checkpoint(
        &mut self,
        _checkpoint: &Checkpoint,
    ) -> std::result::Result<(), model::ports::HistoryError> {
        Ok(())
    }
}

impl Watch for () {}

impl Restore<'_> {
    /// [`Restore::container_blocks`] unless there is a reason for another number: 32 MiB.
    pub const CONTAINER_BLOCKS: usize = 8192;

    /// Does the restore, or goes on with it: with the last checkpoint if the caller kept it, else from history alone.
    /// Executing one that is complete changes nothing.
    ///
    /// # Errors
    /// [`SnapshotError::Stopped`] when the watcher asked for it; otherwise when history, a volume or a checkpoint fails.
    /// In each case the same call goes on from there.
    pub fn execute(&self, checkpoint: Option<Checkpoint>, watch: &mut dyn Watch) -> Result<Restored> {
        let mut at = checkpoint.unwrap_or(Checkpoint {
            done: self.plan.start(),
            next: BlockKey::default(),
        });
        let published = self.history.published();
        if at.done > published || at.done < self.plan.start() {
            return Err(SnapshotError::AppliedPastUndo {
                applied: at.done,
                published,
            });
        }
        if at.done < published {
            let last = blocks_of(self.history, published)?;
            if let Some((volume, block)) = last.last() {
                at.next = (*volume, BlockNo(block.0 + 1));
            }
            at.done = published;
            self.repeat(published, &last)?;
            watch.checkpoint(&at)?;
        }
        // A rendezvous: besides the part that is overwritten, one is in memory.
        let (found, parts) = mpsc::sync_channel(0);
        thread::scope(|scope| {
            let from = at.next;
            thread::Builder::new()
                .name("restore-ahead".into())
                .spawn_scoped(scope, move || self.find(from, &found))
                .map_err(SnapshotError::Thread)?;
            self.overwrite_parts(at, parts, watch)
            // It has dropped the receiver: where it ended early, nobody takes parts any more, and the thread ends.
        })
    }

    /// Overwrites part after part, until the walk has ended.
    fn overwrite_parts(
        &self,
        mut at: Checkpoint,
        parts: mpsc::Receiver<Result<Part>>,
        watch: &mut dyn Watch,
    ) -> Result<Restored> {
        let total = self.plan.count(self.history)?;
        let already = match at.next == BlockKey::default() {
            true => 0,
            false => self.plan.count_before(self.history, Some(at.next))?,
        };
        let mut progress = Progress::start(total, already);
        loop {
            if watch.progress(&progress).is_break() {
                return Err(SnapshotError::Stopped(at.done));
            }
            // Whoever finds them goes only behind the last part or an error.
            let part = parts.recv().unwrap_or(Err(SnapshotError::Stopped(at.done)))?;
            let (ended, changed) = (part.ended, part.images.len());
            if changed > 0 {
                let undo = UndoPlan {
                    history: self.history,
                    ordinal: at.done.next(),
                    kind: self.plan.kind(),
                    images: Some(part.images),
                };
                let mut written = |n| progress.bytes_written += n;
                overwrite(self.volumes, &part.changes, Some(undo), &mut written)?;
                progress.blocks_changed += changed as u64;
                at.done = at.done.next();
            }
            progress.blocks_done += part.looked;
            if let Some(next) = part.next {
                at.next = next;
            }
            if changed > 0 {
                watch.checkpoint(&at)?;
            }
            if ended {
                let _ = watch.progress(&progress);
                return Ok(Restored {
                    last: at.done,
                    blocks_changed: progress.blocks_changed,
                    bytes_written: progress.bytes_written,
                });
            }
        }
    }

    /// Writes the blocks of a container, whose undo is durable, again from the point.
    fn repeat(&self, ordinal: Ordinal, keys: &[BlockKey]) -> Result<()> {
        let mut part = Part::default();
        for batch in batches(keys, BATCH_BLOCKS) {
            self.compare(batch, &mut part, true)?;
        }
        overwrite_again(self.volumes, &part.changes, self.history, ordinal, &mut |_| {})?;
        Ok(())
    }

    /// Finds part after part, until the walk ends or nobody takes them.
    fn find(&self, from: BlockKey, found: &mpsc::SyncSender<Result<Part>>) {
        let mut candidates = self.plan.candidates(self.history, from);
        loop {
            let part = self.differing(&mut candidates);
            let goes_on = part.as_ref().is_ok_and(|part| !part.ended);
            if found.send(part).is_err() || !goes_on {
                return;
            }
        }
    }

    /// Collects blocks that differ, until a container is full, or enough was looked at, or the walk ends.
    fn differing(&self, candidates: &mut Candidates<'_>) -> Result<Part> {
        let mut part = Part::default();
        let most = self.container_blocks.max(1);
        while part.images.len() < most && part.looked < (LOOKS_PER_PART * most) as u64 && !part.ended {
            let mut batch = Vec::new();
            while batch.len() < BATCH_BLOCKS.min(most - part.images.len()) {
                match candidates.next()? {
                    Some(key) => batch.push(key),
                    None => {
                        part.ended = true;
                        break;
                    }
                }
            }
            for of_volume in batches(&batch, BATCH_BLOCKS) {
                self.compare(of_volume, &mut part, false)?;
            }
            if let Some((volume, block)) = batch.last() {
                part.next = Some((*volume, BlockNo(block.0 + 1)));
            }
            part.looked += batch.len() as u64;
        }
        Ok(part)
    }

    /// Adds to `part` those of some blocks of a volume that are not as at the point; with `all`, every one.
    fn compare(&self, keys: &[BlockKey], part: &mut Part, all: bool) -> Result<()> {
        let Some(&(volume, _)) = keys.first() else {
            return Ok(());
        };
        let source = Source {
            volumes: self.volumes,
            history: self.history,
        };
        let (held, unreadable, wanted) = self.plan.lens.read_both(source, volume, keys)?;
        for (i, (key, wanted)) in keys.iter().zip(wanted).enumerate() {
            let range = self.volumes.block_range(volume, key.1)?;
            let held = held.slice(i * BLOCK..(i + 1) * BLOCK);
            let is_known = unreadable.binary_search(&key.1).is_err();
            if range.is_empty() || (!all && is_known && equal(&held, &wanted, range)) {
                continue;
            }
            let wanted = match wanted {
                Payload::Data(data) => Payload::of(data.slice(..length(range))),
                Payload::Zero => Payload::Zero,
            };
            part.changes.put(volume, range, WriteSeq(0), wanted);
            part.images.push(BeforeImage {
                volume,
                block: key.1,
                image: is_known.then(|| Payload::of(held)),
            });
        }
        Ok(())
    }
}

/// Whether a block is as wanted, as far as the volume has it.
fn equal(held: &[u8], wanted: &Payload, range: ByteRange) -> bool {
    let held = &held[..length(range)];
    match wanted {
        Payload::Data(data) => data[..held.len()] == *held,
        Payload::Zero => is_zero(held),
    }
}

/// Bytes of a part of a block.
fn length(range: ByteRange) -> usize {
    usize::try_from(range.len().min(BLOCK_SIZE)).unwrap_or(BLOCK)
}

/// What one container will hold.
#[derive(Default)]
struct Part {
    changes: ChangeSet,
    images: Vec<BeforeImage>,
    /// Candidates that were looked at.
    looked: u64,
    /// Every candidate before this one was looked at.
    next: Option<BlockKey>,
    ended: bool,
}
