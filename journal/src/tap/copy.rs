//! Copies of regions that keep their place in the write order (rule C1).
//!
//! A copy at position `s` must hold the region exactly as of `s`. So the region is *watched* (`watch.rs`): it is read, and its
//! digest computed, without the owner's lock ([`Tap::read_copy`]); then, under the lock, the stub gets its position if no record
//! touched the region since before the read began ([`Tap::place_copy`]); else the region is read again. After a few lost races
//! the read is done under the lock ([`Tap::copy_held`]), so that a busy region cannot keep a copy from ending.
//!
//! What a volume knows to be a hole is not read. A hole costs a stub whatever its length, so one copy may be a hole of
//! [`ZERO_COPY_BYTES`]; one of bytes is at most [`COPY_BYTES`]. A hole that turns out to have been written is cut down to that.

use super::Tap;
use crate::{Digest, Draft, JournalError, SealFlags};
use model::{ByteRange, Payload, RecordBody, VolumeIndex, WriteSeq};
use parking_lot::Mutex;

/// Most bytes of a copy that has any.
pub const COPY_BYTES: u64 = 1 << 20;
/// Longest copy of a hole.
pub const ZERO_COPY_BYTES: u64 = 64 << 20;

/// A copy with its place in the order.
#[derive(Clone, Debug)]
pub struct CopyTaken {
    /// Position of the stub.
    pub seq: WriteSeq,
    /// The region.
    pub range: ByteRange,
    /// Its bytes exactly as of `seq`.
    pub payload: Payload,
    /// [`digest`] of them; the stub has it.
    pub digest: Digest,
}

/// A region that was read and is watched; [`Tap::place_copy`] gives it its place.
#[derive(Debug)]
pub struct CopyRead {
    watch: u64,
    volume: VolumeIndex,
    range: ByteRange,
    payload: Payload,
    digest: Digest,
}

impl CopyRead {
    /// What was read of the range: all of it, or its beginning where it is no hole any more.
    #[must_use]
    pub const fn range(&self) -> ByteRange {
        self.range
    }

    /// Its bytes.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }
}

/// Reads lost to writers before the copier reads under the lock.
pub const RACES_MAX: u32 = 3;

impl Tap {
    /// How much of a stale range one copy takes from its beginning: all that is known to be a hole without a look, in whole
    /// regions, if that is much, else at most [`COPY_BYTES`].
    ///
    /// # Errors
    /// When the volume fails, or has no map.
    pub fn copy_stretch(&self, volume: VolumeIndex, stale: ByteRange) -> Result<ByteRange, JournalError> {
        let shape = self.journal.map_shape(volume);
        let region = shape.ok_or(JournalError::UnknownVolume(volume))?.region_size;
        let extents = self.extents(volume, stale)?;
        let hole = extents.iter().take_while(|(_, zero)| *zero).last();
        let end = match hole.map(|(range, _)| range.end) {
            Some(end) if end == stale.end => end,
            Some(end) if end - stale.start > COPY_BYTES => end / region * region,
            _ => stale.end.min(stale.start + COPY_BYTES),
        };
        Ok(ByteRange {
            start: stale.start,
            end,
        })
    }

    /// Reads a region and journals the stub of its copy; `seal` makes the stub the last record of its container. One
    /// copier at a time.
    ///
    /// # Errors
    /// When the volume or the journal fails.
    pub fn copy(&self, volume: VolumeIndex, range: ByteRange, seal: bool) -> Result<CopyTaken, JournalError> {
        for _ in 0..RACES_MAX {
            let read = self.read_copy(volume, range)?;
            if let Some(taken) = self.place_copy(read, seal)? {
                return Ok(taken);
            }
        }
        self.copy_held(volume, range, seal)
    }

    /// Reads a region and watches it from before on. What is read must be placed, or the watch stays.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn read_copy(&self, volume: VolumeIndex, range: ByteRange) -> Result<CopyRead, JournalError> {
        let watch = self.as_owner(|owner| owner.watches.begin(volume, range, range.len().max(1)));
        match self.read_digested(volume, range) {
            Ok((range, payload, digest)) => Ok(CopyRead {
                watch,
                volume,
                range,
                payload,
                digest,
            }),
            Err(e) => {
                self.as_owner(|owner| owner.watches.end(watch));
                Err(e)
            }
        }
    }

    /// Journals the stub of a copy that was read; `None`: a record touched the region meanwhile, it must be read again.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn place_copy(&self, read: CopyRead, seal: bool) -> Result<Option<CopyTaken>, JournalError> {
        let CopyRead {
            watch,
            volume,
            range,
            payload,
            digest,
        } = read;
        self.as_owner(|owner| {
            let touched = !owner.watches.end(watch).is_empty();
            if touched {
                return Ok(None);
            }
            self.take(owner, volume, (range, payload, digest), seal).map(Some)
        })
    }

    /// As [`Tap::copy`], with all writers held up meanwhile.
    ///
    /// # Errors
    /// When the volume or the journal fails.
    pub fn copy_held(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
        seal: bool,
    ) -> Result<CopyTaken, JournalError> {
        self.as_owner(|owner| {
            let read = self.read_digested(volume, range)?;
            self.take(owner, volume, read, seal)
        })
    }

    /// Bytes of a region, of its first [`COPY_BYTES`] if it is longer and no hole.
    fn read_digested(
        &self,
        volume: VolumeIndex,
        mut range: ByteRange,
    ) -> Result<(ByteRange, Payload, Digest), JournalError> {
        if range.len() > COPY_BYTES && self.extents(volume, range)?.iter().any(|(_, zero)| !zero) {
            range.end = range.start + COPY_BYTES;
        }
        let payload = self.read_region(volume, range)?;
        let digest = digest(range, &payload);
        Ok((range, payload, digest))
    }

    fn take(
        &self,
        owner: &mut super::Owner,
        volume: VolumeIndex,
        (range, payload, digest): (ByteRange, Payload, Digest),
        seal: bool,
    ) -> Result<CopyTaken, JournalError> {
        let body = RecordBody::Copy { range, digest };
        let frame = self.append_one(owner, Draft { volume, body })?;
        if seal {
            self.seal_locked(SealFlags::default())?;
        }
        Ok(CopyTaken {
            seq: frame.last_seq(),
            range,
            payload,
            digest,
        })
    }
}

/// Lengths of holes whose digests are kept: most are of one length, the longest.
const ZERO_DIGESTS: usize = 16;
static ZEROES: Mutex<Vec<(u64, Digest)>> = Mutex::new(Vec::new());

/// blake3 of a region's bytes; a zero region is digested as its bytes would be.
#[must_use]
pub fn digest(range: ByteRange, payload: &Payload) -> Digest {
    match payload {
        Payload::Data(data) => blake3::hash(data).into(),
        Payload::Zero => {
            let len = range.len();
            let known = ZEROES.lock().iter().find(|(l, _)| *l == len).copied();
            if let Some((_, digest)) = known {
                return digest;
            }
            let digest = digest_of_zeroes(len);
            let mut all = ZEROES.lock();
            all.truncate(ZERO_DIGESTS - 1);
            all.insert(0, (len, digest));
            digest
        }
    }
}

fn digest_of_zeroes(len: u64) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let zeroes = [0u8; 64 << 10];
    let mut left = len;
    while left > 0 {
        let n = left.min(zeroes.len() as u64);
        hasher.update(&zeroes[..usize::try_from(n).unwrap_or(zeroes.len())]);
        left -= n;
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_digested_as_its_bytes_would_be() {
        for len in (0..40).map(|n| n * 777).chain([70_000, 777]) {
            let range = ByteRange::at(5, len);
            let bytes = vec![0; usize::try_from(len).unwrap()];
            assert_eq!(digest(range, &Payload::Zero), *blake3::hash(&bytes).as_bytes());
        }
        assert!(ZEROES.lock().len() <= ZERO_DIGESTS);
    }
}
