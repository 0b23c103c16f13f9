//! The volumes of one context and the storage that holds them.

use crate::{
    BLOCK,
    error::{Result, SnapshotError},
};
use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex, ports::Medium};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

/// How often a block is read before it is taken for one that cannot be.
const READ_TRIES: u32 = 3;

/// One volume: its name, what holds it, and how large it was at first.
#[derive(Clone)]
pub struct Volume {
    name: String,
    medium: Arc<dyn Medium>,
    size: u64,
}

impl Volume {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What holds it.
    #[must_use]
    pub fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }

    /// Bytes that it had at first; each point has its own size (`rules.md` V3, K3).
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the backing, at least [`Volume::size`]: the volume may have grown, or the backing be longer than it.
    #[must_use]
    pub fn backing(&self) -> u64 {
        self.medium.len()
    }

    pub(crate) fn failed(&self, op: &'static str, at: u64, source: io::Error) -> SnapshotError {
        SnapshotError::Volume {
            name: self.name.clone(),
            op,
            at,
            source,
        }
    }
}

/// The volumes of one context, by index. Cloning shares the storage.
#[derive(Clone, Default)]
pub struct Volumes {
    volumes: BTreeMap<VolumeIndex, Volume>,
}

impl Volumes {
    /// No volumes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a volume.
    ///
    /// # Errors
    /// When `size` is larger than the medium.
    pub fn insert(
        &mut self,
        index: VolumeIndex,
        name: impl Into<String>,
        medium: Arc<dyn Medium>,
        size: u64,
    ) -> Result<()> {
        let name = name.into();
        if size > medium.len() {
            return Err(SnapshotError::SizePastBacking {
                name,
                size,
                backing: medium.len(),
            });
        }
        self.volumes.insert(index, Volume { name, medium, size });
        Ok(())
    }

    /// A volume.
    ///
    /// # Errors
    /// When there is none of that index.
    pub fn get(&self, index: VolumeIndex) -> Result<&Volume> {
        self.volumes.get(&index).ok_or(SnapshotError::NoSuchVolume(index))
    }

    /// All volumes, by index.
    pub fn iter(&self) -> impl Iterator<Item = (VolumeIndex, &Volume)> {
        self.volumes.iter().map(|(index, volume)| (*index, volume))
    }

    /// The sizes at first, by volume.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<VolumeIndex, u64> {
        self.iter().map(|(index, volume)| (index, volume.size)).collect()
    }

    /// Makes everything written to any of the volumes before this call durable.
    ///
    /// # Errors
    /// When a volume fails.
    pub fn sync(&self) -> Result<()> {
        self.sync_of(self.volumes.keys().copied())
    }

    /// As [`Volumes::sync`], of these volumes.
    ///
    /// # Errors
    /// When one of them fails, or is not there.
    pub fn sync_of(&self, indices: impl Iterator<Item = VolumeIndex>) -> Result<()> {
        let distinct: BTreeSet<_> = indices.collect();
        for index in distinct {
            let volume = self.get(index)?;
            volume.medium().sync().map_err(|e| volume.failed("sync", 0, e))?;
        }
        Ok(())
    }

    /// Fills `buf` with the backing's bytes from `at`; past its end all is zero (`rules.md` W6).
    ///
    /// # Errors
    /// When the storage fails or there is no such volume.
    pub fn read(&self, index: VolumeIndex, at: u64, buf: &mut [u8]) -> Result<()> {
        let volume = self.get(index)?;
        let there = volume.backing().saturating_sub(at).min(buf.len() as u64);
        let (inside, past) = buf.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX));
        past.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        volume
            .medium
            .read_at(at, inside)
            .map_err(|e| volume.failed("read", at, e))
    }

    /// As [`Volumes::read`], each buffer from the offset beside it; the storage is asked for all at once.
    ///
    /// # Errors
    /// As [`Volumes::read`]; of many, the place that is named is that of the first, whichever failed.
    pub(crate) fn read_each(&self, index: VolumeIndex, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        let volume = self.get(index)?;
        let end = volume.backing();
        let is_inside = |(at, buf): &(u64, &mut [u8])| at.saturating_add(buf.len() as u64) <= end;
        match reads.first() {
            Some(&(first, _)) if reads.len() > 1 && reads.iter().all(is_inside) => volume
                .medium
                .read_each(reads)
                .map_err(|e| volume.failed("read", first, e)),
            _ => reads
                .iter_mut()
                .try_for_each(|(at, buf)| self.read(index, *at, buf)),
        }
    }

    /// As [`Volumes::read`], block by block where the storage cannot give some of it. Answers the blocks that cannot be read;
    /// their part of `buf` is zero.
    ///
    /// # Errors
    /// When anything else fails.
    pub(crate) fn read_readable(&self, index: VolumeIndex, at: u64, buf: &mut [u8]) -> Result<Vec<BlockNo>> {
        match self.read(index, at, buf) {
            Err(e) if e.is_unreadable() => {}
            done => return done.map(|()| Vec::new()),
        }
        let mut unreadable = Vec::new();
        for block in ByteRange::at(at, buf.len() as u64).blocks() {
            let from = block.start().max(at);
            let first = usize::try_from(from - at).unwrap_or(usize::MAX);
            let end = usize::try_from(block.start() + BLOCK_SIZE - at).unwrap_or(usize::MAX);
            let end = end.min(buf.len());
            let part = &mut buf[first..end];
            let mut tries = 1;
            loop {
                match self.read(index, from, part) {
                    Ok(()) => break,
                    Err(e) if e.is_unreadable() && tries < READ_TRIES => tries += 1,
                    Err(e) if e.is_unreadable() => {
                        part.fill(0);
                        unreadable.push(block);
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(unreadable)
    }

    /// Blocks of one volume, in order, side by side in `buf`; zero where the backing ends. Answers as
    /// [`Volumes::read_readable`].
    ///
    /// # Errors
    /// When anything else fails.
    pub(crate) fn read_blocks(
        &self,
        blocks: &[(VolumeIndex, BlockNo)],
        buf: &mut [u8],
    ) -> Result<Vec<BlockNo>> {
        let Some(&(index, _)) = blocks.first() else {
            return Ok(Vec::new());
        };
        let (mut reads, mut rest) = (Vec::new(), &mut *buf);
        for stretch in stretches(blocks) {
            let part;
            (part, rest) = rest.split_at_mut(stretch.len() * BLOCK);
            reads.push((stretch[0].1.start(), part));
        }
        match self.read_each(index, &mut reads) {
            Err(e) if e.is_unreadable() => {}
            done => return done.map(|()| Vec::new()),
        }
        let mut unreadable = Vec::new();
        for (at, part) in reads {
            unreadable.extend(self.read_readable(index, at, part)?);
        }
        Ok(unreadable)
    }

    /// Withholds blocks that could not be read, which come in order: nobody is served them before they were written whole.
    ///
    /// # Errors
    /// When the storage withholds nothing, or does not take them for some that rotted.
    pub(crate) fn withhold(&self, blocks: &[(VolumeIndex, BlockNo)]) -> Result<()> {
        for of_volume in blocks.chunk_by(|a, b| a.0 == b.0) {
            let index = of_volume[0].0;
            let ranges: Vec<_> = stretches(of_volume)
                .map(|s| ByteRange::at(s[0].1.start(), s.len() as u64 * BLOCK_SIZE))
                .collect();
            let volume = self.get(index)?;
            if let Err(e) = volume.medium.withhold(&ranges) {
                // The failed read says more of what is wrong.
                let at = ranges[0].start;
                self.read(index, at, &mut [0; BLOCK])?;
                return Err(volume.failed("withhold", at, e));
            }
        }
        Ok(())
    }

    /// The part of a block that the backing has; empty when the block lies past its end.
    ///
    /// # Errors
    /// When there is no such volume.
    pub fn block_range(&self, index: VolumeIndex, block: BlockNo) -> Result<ByteRange> {
        let end = self.get(index)?.backing();
        let start = block.start().min(end);
        Ok(ByteRange {
            start,
            end: end.min(start.saturating_add(model::BLOCK_SIZE)),
        })
    }

    /// Refuses a range that the backing does not hold.
    pub(crate) fn check(&self, index: VolumeIndex, range: ByteRange) -> Result<&Volume> {
        let volume = self.get(index)?;
        if range.end > volume.backing() {
            return Err(SnapshotError::PastEnd {
                volume: index,
                at: range.start,
                len: range.len(),
                size: volume.backing(),
            });
        }
        Ok(volume)
    }
}

/// Blocks of one volume, which come in order, as stretches that lie side by side.
pub(crate) fn stretches(
    blocks: &[(VolumeIndex, BlockNo)],
) -> impl Iterator<Item = &[(VolumeIndex, BlockNo)]> {
    blocks.chunk_by(|a, b| a.1.0 + 1 == b.1.0)
}

/// Blocks, which come in order, by volume and not more than so many at once.
pub(crate) fn batches(
    blocks: &[(VolumeIndex, BlockNo)],
    most: usize,
) -> impl Iterator<Item = &[(VolumeIndex, BlockNo)]> {
    blocks
        .chunk_by(|a, b| a.0 == b.0)
        .flat_map(move |of_volume| of_volume.chunks(most))
}
