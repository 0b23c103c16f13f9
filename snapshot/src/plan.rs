//! What a restore may change: computed, not done.

use crate::{
    error::{Result, SnapshotError},
    lens::Lens,
};
use model::{
    BLOCK_SIZE, BlockNo, Ordinal, Point, VolumeIndex,
    ports::{History, HistoryError, OrdinalKind},
};
use std::{cmp, collections::VecDeque};

/// A block of a context, in the order in which plans and containers hold them.
pub type BlockKey = (VolumeIndex, BlockNo);

/// Blocks asked of history at once.
const PAGE_BLOCKS: usize = 4096;

/// Bytes that a before-image may take beside its block: key, checksum, its entry in the index, their share of tables.
const UNDO_EXTRA_BYTES: u64 = 128;

/// What a restore brings back and from where: a few numbers, whatever its size. Its blocks are listed on demand.
///
/// The blocks that may differ between the volumes and the point are those with undo after the point's base, and those
/// that redo laid over the base touches. Which of them do differ is found when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    pub(crate) lens: Lens,
    start: Ordinal,
    only: Option<VolumeIndex>,
}

impl RestorePlan {
    /// Plans to make the volumes what they were at `point`. `applied` is the durable applied cursor.
    ///
    /// # Errors
    /// When a container is begun and not wholly applied (finish it first: undoing the restore must lead back to a state
    /// that was), or the point stands on an ordinal that is not reached.
    pub fn new(history: &dyn History, point: &Point, applied: Ordinal) -> Result<Self> {
        let published = history.published();
        match applied.cmp(&published) {
            cmp::Ordering::Less => Err(SnapshotError::Unsettled { applied, published }),
            cmp::Ordering::Greater => Err(SnapshotError::AppliedPastUndo { applied, published }),
            cmp::Ordering::Equal => Self::resumed(history, point, applied),
        }
    }

    /// The plan of a restore that was begun at ordinal `start` (the one before its first container), after a crash or stop.
    ///
    /// # Errors
    /// When point or `start` is not reached.
    pub fn resumed(history: &dyn History, point: &Point, start: Ordinal) -> Result<Self> {
        let published = history.published();
        if point.base > start || start > published {
            return Err(SnapshotError::BadPoint {
                base: point.base.max(start),
                published,
            });
        }
        Ok(Self {
            lens: Lens {
                base: point.base,
                redo: point.redo.clone(),
            },
            start,
            only: None,
        })
    }

    /// Plans to undo this restore, whether it came to its end or not: another restore, to the state before its first
    /// container.
    #[must_use]
    pub fn undo(&self, history: &dyn History) -> Self {
        self.undo_resumed(history.published())
    }

    /// The plan of an undo of this restore that was begun at ordinal `start`.
    #[must_use]
    pub fn undo_resumed(&self, start: Ordinal) -> Self {
        Self {
            lens: Lens {
                base: self.start,
                redo: Vec::new(),
            },
            start,
            only: self.only,
        }
    }

    /// The same, of one volume only; it breaks the consistency of the group.
    #[must_use]
    pub fn only(mut self, volume: VolumeIndex) -> Self {
        self.only = Some(volume);
        self
    }

    /// The ordinal before the restore's first container: its name (`rules.md` R-1).
    #[must_use]
    pub const fn start(&self) -> Ordinal {
        self.start
    }

    /// The ordinal that the restored state stands on.
    #[must_use]
    pub const fn base(&self) -> Ordinal {
        self.lens.base
    }

    /// What the restore's containers say of themselves.
    pub(crate) fn kind(&self) -> OrdinalKind {
        OrdinalKind::Local {
            restore_from: self.start,
            base: self.lens.base,
            redo: self.lens.redo.clone(),
        }
    }

    /// The distinct blocks that may differ, in order, from `from` on; a page at a time is in memory.
    #[must_use]
    pub fn candidates<'a>(&'a self, history: &'a dyn History, from: BlockKey) -> Candidates<'a> {
        let first = self.only.map_or(from, |volume| from.max((volume, BlockNo(0))));
        Candidates {
            plan: self,
            history,
            undone: Pages::at(first),
            redone: Pages::at(first),
        }
    }

    /// Number of blocks that may differ. The journal needs room for the undo of them all, at most
    /// [`RestorePlan::undo_bytes_from`], before the restore starts.
    ///
    /// # Errors
    /// When history cannot be read.
    pub fn count(&self, history: &dyn History) -> Result<u64> {
        self.count_before(history, None)
    }

    /// Bytes that the undo of the restore may take at most (`rules.md` R-1), from the block `from` on.
    ///
    /// Counted without reading the volumes: what does not differ, and blocks of zeroes, take none in the end.
    ///
    /// # Errors
    /// When history cannot be read.
    pub fn undo_bytes_from(&self, history: &dyn History, from: BlockKey) -> Result<u64> {
        let mut candidates = self.candidates(history, from);
        let mut bytes = 0;
        while candidates.next()?.is_some() {
            bytes += BLOCK_SIZE + UNDO_EXTRA_BYTES;
        }
        Ok(bytes)
    }

    pub(crate) fn count_before(&self, history: &dyn History, end: Option<BlockKey>) -> Result<u64> {
        let mut candidates = self.candidates(history, BlockKey::default());
        let mut count = 0;
        while let Some(key) = candidates.next()? {
            if end.is_some_and(|end| key >= end) {
                break;
            }
            count += 1;
        }
        Ok(count)
    }
}

/// A walk over the blocks that may differ.
pub struct Candidates<'a> {
    plan: &'a RestorePlan,
    history: &'a dyn History,
    undone: Pages,
    redone: Pages,
}

impl Candidates<'_> {
    /// The next block.
    ///
    /// # Errors
    /// When history cannot be read.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator of results would be easy to misread as infallible"
    )]
    pub fn next(&mut self) -> Result<Option<BlockKey>> {
        let (plan, history) = (self.plan, self.history);
        let undone = self
            .undone
            .peek(|from, limit| history.undone_blocks(plan.lens.base, plan.start, from, limit))?;
        let redone = self.redone.peek(|from, limit| {
            if plan.lens.redo.is_empty() {
                return Ok(Vec::new());
            }
            history.redone_blocks(&plan.lens.redo, from, limit)
        })?;
        let next = match (undone, redone) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) => a,
            (None, Some(b)) => b,
            (None, None) => return Ok(None),
        };
        if plan.only.is_some_and(|volume| next.0 != volume) {
            return Ok(None);
        }
        self.undone.pass(next);
        self.redone.pass(next);
        Ok(Some(next))
    }
}

/// One sorted listing, fetched page by page.
struct Pages {
    page: VecDeque<BlockKey>,
    from: Option<BlockKey>,
}

impl Pages {
    fn at(from: BlockKey) -> Self {
        Self {
            page: VecDeque::new(),
            from: Some(from),
        }
    }

    fn peek(
        &mut self,
        fetch: impl FnOnce(BlockKey, usize) -> std::result::Result<Vec<BlockKey>, HistoryError>,
    ) -> Result<Option<BlockKey>> {
        if let (true, Some(from)) = (self.page.is_empty(), self.from) {
            let page = fetch(from, PAGE_BLOCKS)?;
            self.from = (page.len() >= PAGE_BLOCKS)
                .then(|| page.last().map(|(volume, block)| (*volume, BlockNo(block.0 + 1))))
                .flatten();
            self.page = page.into();
        }
        Ok(self.page.front().copied())
    }

    fn pass(&mut self, key: BlockKey) {
        if self.page.front() == Some(&key) {
            self.page.pop_front();
        }
    }
}
