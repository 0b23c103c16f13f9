//! Records of the context's own: event marks, and sizes of volumes.

use super::Tap;
use crate::{Draft, JournalError, SealFlags, rows::LfcRow};
use model::{Record, RecordBody, VolumeIndex, WriteSeq};
use std::sync::{Arc, atomic::Ordering};

impl Tap {
    /// Sets an event mark: everything answered before the call is in it, and durable when it returns. The mark ends its
    /// container.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn mark(&self, name: String, description: String) -> Result<(Record, Arc<LfcRow>), JournalError> {
        self.mark_kept(name, description, None)
    }

    /// As [`Tap::mark`]; the recovery host pins its point for so many nanoseconds.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn mark_kept(
        &self,
        name: String,
        description: String,
        keep_ns: Option<u64>,
    ) -> Result<(Record, Arc<LfcRow>), JournalError> {
        self.as_owner(|owner| {
            let body = RecordBody::Mark {
                name,
                description,
                keep_ns,
            };
            let frame = self.append_one(
                owner,
                Draft {
                    volume: VolumeIndex(0),
                    body,
                },
            )?;
            let row = self.seal_locked(SealFlags {
                mark: true,
                ..SealFlags::default()
            })?;
            let record = frame.records().last().cloned();
            Ok((
                record.ok_or(JournalError::Internal("a frame without a record"))?,
                row,
            ))
        })
    }

    /// A volume has this size from here on (`rules.md` K3). Both hosts' storage is ready for it already; durable when it returns.
    ///
    /// # Errors
    /// When the journal fails, or the storage here is not known to be ready.
    pub fn resize(&self, volume: VolumeIndex, size: u64) -> Result<WriteSeq, JournalError> {
        if self.journal.extent(volume).is_none_or(|extent| extent < size) {
            return Err(JournalError::Refused(format!(
                "the storage of volume {volume} is not ready for {size} bytes here"
            )));
        }
        let seq = self.as_owner(|owner| {
            let body = RecordBody::Size { size };
            let frame = self.append_one(owner, Draft { volume, body })?;
            Ok::<_, JournalError>(frame.last_seq())
        })?;
        self.sync_once()?;
        Ok(seq)
    }

    /// Says again how large the volumes are that have another size than at first, for a peer that may not know: `behind_gap`, because the
    /// stream goes on behind records that it lacks; else once, because who knows what was said before this process. What is said behind a
    /// gap reaches the peer, or gives way, and then there is another gap. Durable when it returns; answers the last record, if there is
    /// one to say. One that is closed says nothing: no copy is taken from it either.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn tell_sizes(&self, behind_gap: bool) -> Result<Option<WriteSeq>, JournalError> {
        if self.told_sizes.load(Ordering::Acquire) && !behind_gap {
            return Ok(None);
        }
        let last = self.as_owner(|owner| {
            let mut last = None;
            if self.check_open().is_err() {
                return Ok(None);
            }
            // As they are at this place in the order: a volume may be growing.
            for (volume, size) in self.journal.sizes_now() {
                let body = RecordBody::Size { size };
                last = Some(self.append_one(owner, Draft { volume, body })?.last_seq());
            }
            Ok::<_, JournalError>(last)
        })?;
        if last.is_some() {
            self.sync_once()?;
            self.told_sizes.store(true, Ordering::Release);
        }
        Ok(last)
    }
}
