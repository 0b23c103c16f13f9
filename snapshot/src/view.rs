//! Volumes as they were at a point.

use crate::{
    error::{Result, SnapshotError},
    lens::{Lens, Source},
    volumes::Volumes,
};
use model::{BLOCK_SIZE, ByteRange, Point, VolumeIndex, ports::History};
use std::{collections::BTreeMap, sync::Arc};

/// Most blocks that one call of [`View::extents`] describes.
const EXTENT_BLOCKS_MAX: u64 = 16_384;

/// A stretch of bytes and whether all of it is known to be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bytes.
    pub range: ByteRange,
    /// Whether they read as zero; when false they may or may not.
    pub zero: bool,
}

/// The volumes of a context at a point: read-only, byte-exact, and true for as long as the point is pinned.
///
/// Creating one copies nothing; any number may be read from any number of threads while containers are applied and
/// restores are made.
pub struct View {
    point: Point,
    lens: Lens,
    sizes: BTreeMap<VolumeIndex, u64>,
    volumes: Volumes,
    history: Arc<dyn History>,
}

impl View {
    /// The view at `point`, with the volumes' sizes as of it (`rules.md` V3). The caller has pinned the point.
    ///
    /// # Errors
    /// When the point stands on an ordinal that is not reached, or a size names a volume that is not there.
    pub fn new(
        point: Point,
        sizes: BTreeMap<VolumeIndex, u64>,
        volumes: Volumes,
        history: Arc<dyn History>,
    ) -> Result<Self> {
        let published = history.published();
        if point.base > published {
            return Err(SnapshotError::BadPoint {
                base: point.base,
                published,
            });
        }
        for index in sizes.keys() {
            volumes.get(*index)?;
        }
        let lens = Lens {
            base: point.base,
            redo: point.redo.clone(),
        };
        Ok(Self {
            point,
            lens,
            sizes,
            volumes,
            history,
        })
    }

    /// Its point.
    #[must_use]
    pub const fn point(&self) -> &Point {
        &self.point
    }

    /// The volumes it shows.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeIndex> {
        self.sizes.keys().copied()
    }

    /// A volume's size as of the point.
    ///
    /// # Errors
    /// When the view has no such volume.
    pub fn size(&self, volume: VolumeIndex) -> Result<u64> {
        self.sizes
            .get(&volume)
            .copied()
            .ok_or(SnapshotError::NoSuchVolume(volume))
    }

    /// Whether anything was overwritten since the view's base, so that reading it needs undo.
    #[must_use]
    pub fn reads_undo(&self) -> bool {
        self.history.published() > self.point.base
    }

    /// Fills `buf` with the volume's bytes from `at`.
    ///
    /// # Errors
    /// When the range passes the size as of the point, or history or storage fails; never other bytes.
    pub fn read(&self, volume: VolumeIndex, at: u64, buf: &mut [u8]) -> Result<()> {
        self.read_each(volume, &mut [(at, buf)])
    }

    /// As [`View::read`], each buffer from the offset beside it; undo of all is looked up together.
    ///
    /// # Errors
    /// As [`View::read`]; what the buffers hold is then not to be used.
    pub fn read_each(&self, volume: VolumeIndex, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        for (at, buf) in &*reads {
            self.check(volume, *at, buf.len() as u64)?;
        }
        self.lens.read_each(self.source(), volume, reads)
    }

    /// What is known to be zero, from `range.start` on: adjacent extents of changing kind that cover the range, or a
    /// first part of it when it is long (at least one block; at most 64 MiB).
    ///
    /// # Errors
    /// As [`View::read`].
    pub fn extents(&self, volume: VolumeIndex, range: ByteRange) -> Result<Vec<Extent>> {
        self.check(volume, range.start, range.end.saturating_sub(range.start))?;
        let most = range.start / BLOCK_SIZE * BLOCK_SIZE + EXTENT_BLOCKS_MAX * BLOCK_SIZE;
        let range = ByteRange {
            start: range.start,
            end: range.end.min(most),
        };
        let zero = self.lens.known_zero(self.source(), volume, range)?;
        let mut extents = Vec::new();
        for (block, zero) in range.blocks().zip(zero) {
            let whole = ByteRange::at(block.start(), BLOCK_SIZE);
            if let Some(range) = whole.intersect(range) {
                push(&mut extents, Extent { range, zero });
            }
        }
        Ok(extents)
    }

    pub(crate) fn check(&self, volume: VolumeIndex, at: u64, len: u64) -> Result<u64> {
        let size = self.size(volume)?;
        match at.checked_add(len) {
            Some(end) if end <= size => Ok(size),
            _ => Err(SnapshotError::PastEnd {
                volume,
                at,
                len,
                size,
            }),
        }
    }

    fn source(&self) -> Source<'_> {
        Source {
            volumes: &self.volumes,
            history: &*self.history,
        }
    }
}

/// Adds an extent, joined to the last one where both are the same.
pub(crate) fn push(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        Some(last) if last.zero == next.zero && last.range.end == next.range.start => {
            last.range.end = next.range.end;
        }
        _ => extents.push(next),
    }
}
