//! Copies of regions that keep their place in the write order (rule C1).
//!
//! A copy at position `s` must hold the region exactly as of `s`. So the region is *watched* (`watch.rs`): it is read without
//! the owner's lock, then, under the lock, the stub gets its position if no record touched the region since before the read
//! began; else the region is read again. After a few lost races the read is done under the lock, so that a busy region cannot
//! keep a copy from ending.

use super::Tap;
use crate::{Draft, JournalError, SealFlags};
use model::{ByteRange, Payload, RecordBody, VolumeIndex, WriteSeq};

/// A copy with its place in the order.
#[derive(Clone, Debug)]
pub struct CopyTaken {
    /// Position of the stub.
    pub seq: WriteSeq,
    /// The region.
    pub range: ByteRange,
    /// Its bytes exactly as of `seq`.
    pub payload: Payload,
}

/// Reads lost to writers before the copier reads under the lock.
const RACES_MAX: u32 = 3;

impl Tap {
    /// Reads a region and journals the stub of its copy; `seal` makes the stub the last record of its container. One
    /// copier at a time.
    ///
    /// # Errors
    /// When the volume or the journal fails.
    pub fn copy(&self, volume: VolumeIndex, range: ByteRange, seal: bool) -> Result<CopyTaken, JournalError> {
        for _ in 0..RACES_MAX {
            let watch = self.as_owner(|owner| owner.watches.begin(volume, range, range.len().max(1)));
            let payload = self.read_region(volume, range);
            let taken = self.as_owner(|owner| {
                let touched = !owner.watches.end(watch).is_empty();
                let payload = payload?;
                if touched {
                    Ok(None)
                } else {
                    self.take(owner, volume, range, payload, seal).map(Some)
                }
            })?;
            if let Some(taken) = taken {
                return Ok(taken);
            }
        }
        self.as_owner(|owner| {
            let payload = self.read_region(volume, range)?;
            self.take(owner, volume, range, payload, seal)
        })
    }

    fn take(
        &self,
        owner: &mut super::Owner,
        volume: VolumeIndex,
        range: ByteRange,
        payload: Payload,
        seal: bool,
    ) -> Result<CopyTaken, JournalError> {
        let body = RecordBody::Copy {
            range,
            digest: digest(range, &payload),
        };
        let frame = self.append_one(owner, Draft { volume, body })?;
        if seal {
            self.seal_locked(SealFlags::default())?;
        }
        Ok(CopyTaken {
            seq: frame.last_seq(),
            range,
            payload,
        })
    }
}

/// blake3 of a region's bytes; a zero region is digested as its bytes would be.
#[must_use]
pub fn digest(range: ByteRange, payload: &Payload) -> [u8; 32] {
    match payload {
        Payload::Data(data) => blake3::hash(data).into(),
        Payload::Zero => {
            let mut hasher = blake3::Hasher::new();
            let zeroes = [0u8; 4096];
            let mut left = range.len();
            while left > 0 {
                let n = left.min(zeroes.len() as u64);
                hasher.update(&zeroes[..usize::try_from(n).unwrap_or(zeroes.len())]);
                left -= n;
            }
            hasher.finalize().into()
        }
    }
}
