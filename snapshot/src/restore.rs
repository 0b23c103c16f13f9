//! Making the volumes what they were at a point.
//!
//! # Overview
//!
//! A restore is a write of this host alone (`rules.md` R-1). It walks the blocks that may differ in (volume, block) order,
//! compares each with the point, and overwrites those that differ, through [`overwrite()`]: a bounded number of blocks at
//! a time, each such part an undo container of kind [`Local`](model::ports::OrdinalKind::Local) with the next ordinal.
//! Undoing a restore is another one, to the ordinal before its first container; views of all points stay true throughout.
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
    change::ChangeSet,
    error::{Result, SnapshotError},
    lens::Source,
    overwrite::{UndoPlan, as_payload, blocks_of, overwrite, overwrite_again},
    plan::{BlockKey, Candidates, RestorePlan},
    progress::Progress,
    volumes::Volumes,
};
use bytes::Bytes;
use model::{BLOCK_SIZE, BlockNo, Ordinal, WriteSeq, ports::History};
use std::ops::ControlFlow;

/// Blocks compared at once.
const BATCH_BLOCKS: usize = 256;

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
    /// Most blocks of one undo container; bounds memory to about three times as many blocks.
    pub container_blocks: usize,
}

/// Callbacks of a restore.
pub trait Watch {
    /// Told after every batch of blocks; answers whether to go on. A stop takes effect between containers.
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
        let total = self.plan.count(self.history)?;
        if at.done < published {
            let last = blocks_of(self.history, published)?;
            if let Some((volume, block)) = last.last() {
                at.next = (*volume, BlockNo(block.0 + 1));
            }
            at.done = published;
            self.repeat(published, &last)?;
            watch.checkpoint(&at)?;
        }
        let already = self.plan.count_before(self.history, Some(at.next))?;
        let mut progress = Progress::start(total, already);
        let mut candidates = self.plan.candidates(self.history, at.next);
        loop {
            if watch.progress(&progress).is_break() {
                return Err(SnapshotError::Stopped(at.done));
            }
            let part = self.differing(&mut candidates, &mut progress, watch)?;
            if part.count > 0 {
                let undo = UndoPlan {
                    history: self.history,
                    ordinal: at.done.next(),
                    kind: self.plan.kind(),
                };
                let mut written = |n| progress.bytes_written += n;
                overwrite(self.volumes, &part.changes, Some(undo), &mut written)?;
                progress.blocks_changed += part.count as u64;
                at.done = at.done.next();
            }
            if let Some(next) = part.next {
                at.next = next;
            }
            if part.count > 0 {
                watch.checkpoint(&at)?;
            }
            if part.ended {
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
        for stretch in stretches(keys) {
            self.compare(stretch, &mut part, true)?;
        }
        overwrite_again(self.volumes, &part.changes, self.history, ordinal, &mut |_| {})?;
        Ok(())
    }

    /// Collects blocks that differ, until a container is full or the walk ends.
    fn differing(
        &self,
        candidates: &mut Candidates<'_>,
        progress: &mut Progress,
        watch: &mut dyn Watch,
    ) -> Result<Part> {
        let mut part = Part::default();
        let most = self.container_blocks.max(1);
        while part.count < most && !part.ended {
            let mut batch = Vec::new();
            while batch.len() < BATCH_BLOCKS.min(most - part.count) {
                match candidates.next()? {
                    Some(key) => batch.push(key),
                    None => {
                        part.ended = true;
                        break;
                    }
                }
            }
            for stretch in stretches(&batch) {
                self.compare(stretch, &mut part, false)?;
            }
            if let Some((volume, block)) = batch.last() {
                part.next = Some((*volume, BlockNo(block.0 + 1)));
            }
            progress.blocks_done += batch.len() as u64;
            // What was collected is written before a stop: the answer counts when the container is done.
            let _ = watch.progress(progress);
        }
        Ok(part)
    }

    /// Adds to `part` those blocks of a stretch that are not as at the point; with `all`, every one.
    fn compare(&self, stretch: &[BlockKey], part: &mut Part, all: bool) -> Result<()> {
        let Some(&(volume, first)) = stretch.first() else {
            return Ok(());
        };
        let source = Source {
            volumes: self.volumes,
            history: self.history,
        };
        let mut target = vec![0; stretch.len() * BLOCK_SIZE as usize];
        self.plan.lens.read(source, volume, first.start(), &mut target)?;
        let mut current = vec![0; target.len()];
        if !all {
            self.volumes.read(volume, first.start(), &mut current)?;
        }
        let target = Bytes::from(target);
        for ((key, wanted), current) in stretch
            .iter()
            .zip(target.chunks(BLOCK_SIZE as usize))
            .zip(current.chunks(BLOCK_SIZE as usize))
        {
            let range = self.volumes.block_range(volume, key.1)?;
            let len = usize::try_from(range.len()).unwrap_or(BLOCK_SIZE as usize);
            if range.is_empty() || (!all && wanted[..len] == current[..len]) {
                continue;
            }
            let payload = as_payload(target.slice_ref(&wanted[..len]));
            part.changes.put(volume, range, WriteSeq(0), payload);
            part.count += 1;
        }
        Ok(())
    }
}

/// What one container will hold.
#[derive(Default)]
struct Part {
    changes: ChangeSet,
    count: usize,
    /// Every candidate before this one was looked at.
    next: Option<BlockKey>,
    ended: bool,
}

/// Neighbouring blocks of one volume, not too many at once.
fn stretches(keys: &[BlockKey]) -> impl Iterator<Item = &[BlockKey]> {
    keys.chunk_by(|a, b| a.0 == b.0 && a.1.0 + 1 == b.1.0)
        .flat_map(|stretch| stretch.chunks(BATCH_BLOCKS))
}
