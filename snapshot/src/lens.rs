//! The read formula: bytes of a volume as they were at a base ordinal, with redo laid over (`rules.md` V1, V2).
//!
//! # Overview
//!
//! A block at a base is its first before-image after that base, or else the volume. Redo records are then laid over it,
//! byte-exact and in the order of the line.
//!
//! # Invariant, and the race it survives
//!
//! Containers are overwritten while views are read. The applier publishes a container's undo *before* its first overwrite.
//! A reader therefore
//!
//! 1. notes what is published, looks up undo up to there;
//! 2. reads the volume where there is none;
//! 3. notes what is published now. For a block read in 2, undo newer than the lookup of 1 may have come: if it has, that
//!    before-image is the block at the base, whatever 2 saw; if it has not, no container published by 3 touches the block,
//!    and one that is not yet published in 3 had not begun to overwrite when 2 ended.
//!
//! So one second look is enough, however fast the applier runs: reading needs no lock and no endless loop.
//!
//! # What it does not do
//!
//! It does not keep its point reachable; that is a pin's work. When retention has dropped what it needs, history answers
//! an error and so does it: never other bytes.

use crate::{
    BLOCK,
    error::{Result, SnapshotError},
    plan::BlockKey,
    volumes::{Volumes, stretches},
};
use bytes::Bytes;
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, Ordinal, Payload, RedoSpan, VolumeIndex,
    ports::{History, HistoryError},
};
use std::{
    ops::Range,
    sync::atomic::{Ordering, fence},
};

/// Most blocks looked up at once; bounds the before-images in memory to a MiB.
const CHUNK_BLOCKS: u64 = 256;

/// What a view stands on: the part of a point that decides its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lens {
    /// The ordinal whose end is shown,
    pub base: Ordinal,
    /// and what is laid over it.
    pub redo: Vec<RedoSpan>,
}

/// A buffer and the bytes of the volume that belong into it.
struct Part<'a> {
    range: ByteRange,
    buf: &'a mut [u8],
}

/// What a lens looks at.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Where blocks without undo are read.
    pub volumes: &'a Volumes,
    /// Undo and redo.
    pub history: &'a dyn History,
}

impl Lens {
    /// Fills each buffer from the byte beside it; past the backing's end, what is in no undo or redo is zero.
    pub fn read_each(
        &self,
        source: Source<'_>,
        volume: VolumeIndex,
        reads: &mut [(u64, &mut [u8])],
    ) -> Result<()> {
        let (mut parts, mut blocks) = (Vec::new(), 0);
        for (at, buf) in reads {
            let mut rest = &mut **buf;
            for range in chunks(ByteRange::at(*at, rest.len() as u64)) {
                if blocks + block_count(range) > CHUNK_BLOCKS {
                    self.read_parts(source, volume, &mut parts)?;
                    (parts, blocks) = (Vec::new(), 0);
                }
                let buf;
                (buf, rest) = rest.split_at_mut(index(range.len()));
                parts.push(Part { range, buf });
                blocks += block_count(range);
            }
        }
        self.read_parts(source, volume, &mut parts)
    }

    fn read_parts(&self, source: Source<'_>, volume: VolumeIndex, parts: &mut [Part<'_>]) -> Result<()> {
        let blocks = parts.iter().flat_map(|part| part.range.blocks());
        let mut keys: Vec<_> = blocks.map(|block| (volume, block)).collect();
        if parts.len() > 1 {
            keys.sort_unstable();
            keys.dedup();
        }
        // The blocks of one part stand side by side among the keys.
        let first = |part: &Part<'_>| {
            let block = BlockNo::of(part.range.start);
            keys.partition_point(|key| key.1 < block)
        };
        let first: Vec<_> = parts.iter().map(first).collect();
        let images = self.base(source, &keys, |images| {
            let mut absent = Vec::new();
            for (part, first) in parts.iter_mut().zip(&first) {
                let (mut rest, mut at) = (&mut *part.buf, part.range.start);
                for range in missing(part.range, &images[*first..]) {
                    let (buf, behind) = rest[index(range.start - at)..].split_at_mut(index(range.len()));
                    absent.push((range.start, buf));
                    (rest, at) = (behind, range.end);
                }
            }
            source.volumes.read_each(volume, &mut absent)
        })?;
        for (part, first) in parts.iter_mut().zip(first) {
            for (block, image) in part.range.blocks().zip(&images[first..]) {
                if let (Some(image), Some(piece)) = (image, block_range(block).intersect(part.range)) {
                    image.copy_to(
                        piece.start - block.start(),
                        &mut part.buf[within(part.range, piece)],
                    );
                }
            }
            self.each_redo(source, volume, part.range, |piece, payload| {
                payload.copy_to(0, &mut part.buf[within(part.range, piece)]);
            })?;
        }
        Ok(())
    }

    /// Some blocks of one volume, in order, side by side: what the volume holds, but for those that cannot be read, and what the
    /// lens sees. The volume is read once for both.
    pub fn read_both(
        &self,
        source: Source<'_>,
        volume: VolumeIndex,
        keys: &[BlockKey],
    ) -> Result<(Bytes, Vec<BlockNo>, Vec<Payload>)> {
        let history = source.history;
        let looked = history.published();
        let mut images = first_undo_of(history, keys, self.base, looked)?;
        let mut held = vec![0; keys.len() * BLOCK];
        let unreadable = source.volumes.read_blocks(keys, &mut held)?;
        self.look_again(history, keys, looked, &mut images)?;
        for ((_, block), image) in keys.iter().zip(&images) {
            // It is what the lens would see: reading it for that fails as it does for anybody.
            if image.is_none() && unreadable.binary_search(block).is_ok() {
                let mut buf = [0; BLOCK];
                source.volumes.read(volume, block.start(), &mut buf)?;
                return Err(SnapshotError::Unsteady {
                    volume,
                    block: *block,
                });
            }
        }
        let held = Bytes::from(held);
        let of = |i: usize| held.slice(i * BLOCK..(i + 1) * BLOCK);
        let mut seen: Vec<_> = images
            .into_iter()
            .enumerate()
            .map(|(i, image)| image.unwrap_or_else(|| Payload::Data(of(i))))
            .collect();
        if !self.redo.is_empty() {
            let mut first = 0;
            for stretch in stretches(keys) {
                let range = ByteRange::at(stretch[0].1.start(), (stretch.len() * BLOCK) as u64);
                let seen = &mut seen[first..first + stretch.len()];
                first += stretch.len();
                let mut whole = vec![0; stretch.len() * BLOCK];
                for (block, buf) in seen.iter().zip(whole.chunks_mut(BLOCK)) {
                    block.copy_to(0, buf);
                }
                self.each_redo(source, volume, range, |part, payload| {
                    payload.copy_to(0, &mut whole[within(range, part)]);
                })?;
                let whole = Bytes::from(whole);
                for (i, block) in seen.iter_mut().enumerate() {
                    *block = Payload::Data(whole.slice(i * BLOCK..(i + 1) * BLOCK));
                }
            }
        }
        Ok((held, unreadable, seen))
    }

    /// For each block of `range` whether it holds nothing but zeroes *for certain*; a cheap look, not a scan of bytes.
    pub fn known_zero(&self, source: Source<'_>, volume: VolumeIndex, range: ByteRange) -> Result<Vec<bool>> {
        let mut all = Vec::new();
        for chunk in chunks(range) {
            let first = BlockNo::of(chunk.start).0;
            let mut zero = vec![false; index(block_count(chunk))];
            let keys: Vec<_> = chunk.blocks().map(|block| (volume, block)).collect();
            let images = self.base(source, &keys, |images| {
                for part in missing(chunk, images) {
                    holes(source.volumes, volume, part, |block| {
                        zero[index(block.0 - first)] = true;
                    })?;
                }
                Ok(())
            })?;
            for (zero, image) in zero.iter_mut().zip(&images) {
                if let Some(image) = image {
                    *zero = *image == Payload::Zero;
                }
            }
            self.each_redo(source, volume, chunk.block_aligned(), |part, payload| {
                for block in part.blocks() {
                    let zero = &mut zero[index(block.0 - first)];
                    match payload {
                        Payload::Data(_) => *zero = false,
                        Payload::Zero => {
                            *zero |= part.intersect(block_range(block)) == Some(block_range(block))
                        }
                    }
                }
            })?;
            all.extend(zero);
        }
        Ok(all)
    }

    /// The before-images of blocks, which come in order, at the base; `None` where `from_volume`, called once with those that
    /// are known so far, saw the block at the base on the volume itself.
    fn base(
        &self,
        source: Source<'_>,
        keys: &[BlockKey],
        from_volume: impl FnOnce(&[Option<Payload>]) -> Result<()>,
    ) -> Result<Vec<Option<Payload>>> {
        let history = source.history;
        let looked = history.published();
        let mut images = first_undo_of(history, keys, self.base, looked)?;
        if images.iter().all(Option::is_some) {
            return Ok(images);
        }
        from_volume(&images)?;
        self.look_again(history, keys, looked, &mut images)?;
        Ok(images)
    }

    /// Step 3 of the protocol above: for blocks that were read on the volume, undo that was published since `looked`.
    fn look_again(
        &self,
        history: &dyn History,
        keys: &[BlockKey],
        looked: Ordinal,
        images: &mut [Option<Payload>],
    ) -> Result<()> {
        // The volume's bytes are read before the next line looks, on any processor.
        fence(Ordering::SeqCst);
        let now = history.published();
        if now > looked {
            let newer = first_undo_of(history, keys, looked.max(self.base), now)?;
            for (image, newer) in images.iter_mut().zip(newer) {
                if image.is_none() {
                    *image = newer;
                }
            }
        }
        Ok(())
    }

    fn each_redo(
        &self,
        source: Source<'_>,
        volume: VolumeIndex,
        range: ByteRange,
        mut lay: impl FnMut(ByteRange, &Payload),
    ) -> Result<()> {
        if self.redo.is_empty() {
            return Ok(());
        }
        for piece in source.history.redo(volume, range, &self.redo)? {
            let fits = match &piece.payload {
                Payload::Zero => true,
                Payload::Data(data) => data.len() as u64 == piece.range.len(),
            };
            if !fits || piece.range.intersect(range) != Some(piece.range) {
                return Err(damaged(format!(
                    "redo of record {} does not fit volume {volume}, bytes {}..{}",
                    piece.seq, range.start, range.end
                )));
            }
            lay(piece.range, &piece.payload);
        }
        Ok(())
    }
}

fn damaged(what: String) -> SnapshotError {
    HistoryError::Damaged(what).into()
}

fn first_undo_of(
    history: &dyn History,
    keys: &[BlockKey],
    after: Ordinal,
    upto: Ordinal,
) -> Result<Vec<Option<Payload>>> {
    if after >= upto || keys.is_empty() {
        return Ok(vec![None; keys.len()]);
    }
    let images = history.first_undo_of(keys, after, upto)?;
    let whole = |image: &Option<Payload>| !matches!(image, Some(Payload::Data(d)) if d.len() != BLOCK);
    if images.len() != keys.len() || !images.iter().all(whole) {
        return Err(damaged(format!(
            "undo of volume {} from block {} on is not {} whole blocks",
            keys[0].0,
            keys[0].1.0,
            keys.len()
        )));
    }
    Ok(images)
}

/// The parts of `range` whose blocks have no image, as few as possible.
fn missing(range: ByteRange, images: &[Option<Payload>]) -> Vec<ByteRange> {
    let mut parts: Vec<ByteRange> = Vec::new();
    for (block, _) in range.blocks().zip(images).filter(|(_, image)| image.is_none()) {
        let Some(part) = block_range(block).intersect(range) else {
            continue;
        };
        match parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => parts.push(part),
        }
    }
    parts
}

/// Calls `hole` for each block of `range` that the volume's storage knows to be zero.
fn holes(
    volumes: &Volumes,
    index: VolumeIndex,
    range: ByteRange,
    mut hole: impl FnMut(BlockNo),
) -> Result<()> {
    let volume = volumes.get(index)?;
    let range = range.block_aligned();
    let mut at = range.start;
    while at < range.end {
        let data = if at < volume.backing() {
            volume
                .medium()
                .next_data(at)
                .map_err(|e| volume.failed("seek data", at, e))?
        } else {
            None
        };
        let data = data
            .filter(|d| !d.is_empty() && d.end > at)
            .map(ByteRange::block_aligned);
        let next = data.map_or(range.end, |d| d.start.clamp(at, range.end));
        let known = ByteRange { start: at, end: next };
        if !known.is_empty() {
            known.blocks().for_each(&mut hole);
        }
        at = data.map_or(range.end, |d| d.end.max(next));
    }
    Ok(())
}

fn block_range(block: BlockNo) -> ByteRange {
    ByteRange::at(block.start(), BLOCK_SIZE)
}

fn block_count(range: ByteRange) -> u64 {
    range.block_aligned().len() / BLOCK_SIZE
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("lengths here are bounded by a buffer in memory")
}

fn within(whole: ByteRange, part: ByteRange) -> Range<usize> {
    index(part.start - whole.start)..index(part.end - whole.start)
}

/// Cuts a range at multiples of [`CHUNK_BLOCKS`].
fn chunks(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let step = CHUNK_BLOCKS * BLOCK_SIZE;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((at / step + 1) * step);
        let chunk = (at < end).then_some(ByteRange { start: at, end })?;
        at = end;
        Some(chunk)
    })
}
