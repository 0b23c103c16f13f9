//! Undo containers: the before-images of one overwrite, which become durable together.
//!
//! # Overview
//!
//! Images are taken one by one and go into a file of the store as they come, so a container costs the memory of its keys. Then
//! come the index, and the row, which is the commit (`rules.md` T3). Nobody reads an ordinal before its row is there.
//!
//! # Invariants
//!
//! * Undo that is durable is never replaced (W4).
//! * Ordinals have no holes: only the one behind the published is committed.
//! * One container at a time (`undoing`), and not under the lock of redo: whoever receives or seals does not wait while images
//!   are read.
//!
//! # Crash consistency
//!
//! A crash before the row leaves images, and perhaps index entries, of an ordinal that is not published. Whoever commits that
//! ordinal next removes the images first: they would be taken for its own. Images that [end](Ended) early are removed at once.

use crate::{
    codec::{Malformed, Read, Reader, Writer},
    error::{Damage, JournalError},
    journal::Journal,
    keys,
    rows::OrdinalRow,
};
use bytes::Bytes;
use model::{
    BLOCK_SIZE, BlockNo, Ordinal, Payload, VolumeIndex, checks,
    ports::{Batch, BeforeImage, Ended, Family, History as _, OrdinalKind},
};
use std::sync::atomic::Ordering;

/// Flags of stored images and of their index entries.
pub(crate) const ZERO: u8 = 0;
const DATA: u8 = 1;
/// The block could not be read when it was overwritten.
const UNKNOWN: u8 = 2;
const UNKNOWN_TEXT: &str = "the block could not be read when it was overwritten";

/// A before-image; `None`: it is not known.
fn encode_undo(payload: Option<&Payload>) -> Bytes {
    let Some(payload) = payload else {
        return Bytes::from_static(&[UNKNOWN]);
    };
    match payload {
        Payload::Zero => Bytes::from_static(&[ZERO]),
        Payload::Data(data) => {
            let mut w = Writer(Vec::with_capacity(data.len() + 5));
            w.u8(DATA).u32(crc32c::crc32c(data)).bytes(data);
            Bytes::from(w.done())
        }
    }
}

pub(crate) fn decode_undo(value: &Bytes) -> Read<Payload> {
    let mut r = Reader(value);
    match r.u8()? {
        ZERO => r.end().map(|()| Payload::Zero),
        DATA => {
            let crc = r.u32()?;
            if r.0.len() as u64 != BLOCK_SIZE {
                return Err(Malformed::What("it has not one block"));
            }
            if !checks(&crc32c::crc32c(r.0), &crc) {
                return Err(Malformed::What("its checksum is wrong"));
            }
            Ok(Payload::Data(value.slice(5..)))
        }
        UNKNOWN => r.end().and(Err(Malformed::What(UNKNOWN_TEXT))),
        _ => Err(Malformed::What("its flag is not known")),
    }
}

/// What was taken of the images of a container.
struct Taken {
    ordinal: Ordinal,
    /// Each block, and what its index entry says of it.
    blocks: Vec<(VolumeIndex, BlockNo, &'static [u8; 1])>,
    fault: Option<JournalError>,
}

impl Taken {
    /// The pair for the store; `None` behind the last, and at the first fault.
    fn take(&mut self, image: Result<BeforeImage, Ended>) -> Option<(Vec<u8>, Bytes)> {
        let taken = self.pair(image);
        taken.map_err(|fault| self.fault = Some(fault)).ok()
    }

    fn pair(&mut self, image: Result<BeforeImage, Ended>) -> Result<(Vec<u8>, Bytes), JournalError> {
        let BeforeImage { volume, block, image } = image.map_err(|Ended| JournalError::Ended)?;
        if self
            .blocks
            .last()
            .is_some_and(|(v, b, _)| (*v, *b) >= (volume, block))
        {
            return Err(JournalError::Internal("undo blocks are not in order"));
        }
        let flag = match &image {
            Some(Payload::Data(data)) if data.len() as u64 != BLOCK_SIZE => {
                return Err(JournalError::Internal("an undo block has not one block"));
            }
            Some(Payload::Data(_)) => &[DATA],
            Some(Payload::Zero) => &[ZERO],
            None => &[UNKNOWN],
        };
        self.blocks.push((volume, block, flag));
        Ok((
            keys::undo(self.ordinal, volume, block),
            encode_undo(image.as_ref()),
        ))
    }
}

impl Journal {
    pub(crate) fn commit_undo_inner(
        &self,
        ordinal: Ordinal,
        kind: &OrdinalKind,
        images: &mut dyn Iterator<Item = Result<BeforeImage, Ended>>,
    ) -> Result<Vec<(VolumeIndex, BlockNo)>, JournalError> {
        let _undoing = self.undoing.lock();
        let published = self.published();
        if ordinal <= published {
            // Rule W4: undo that is durable is never rebuilt; applying is repeated from it.
            let known = self
                .shared
                .read()
                .ordinals
                .get(&ordinal)
                .map(|row| row.kind == *kind);
            return match known {
                Some(true) => Ok(Vec::new()),
                _ => Err(JournalError::Refused(format!(
                    "ordinal {ordinal} is published already, for something else"
                ))),
            };
        }
        if ordinal != published.next() {
            return Err(JournalError::Refused(format!(
                "ordinal {ordinal} does not follow {published}"
            )));
        }
        let mut taken = Taken {
            ordinal,
            blocks: Vec::new(),
            fault: None,
        };
        let first = |ordinal| keys::undo(ordinal, VolumeIndex(0), BlockNo(0));
        let range = (&*first(ordinal), &*first(ordinal.next()));
        self.ingest_whole(
            Family::Undo,
            range,
            &mut images.map_while(|image| taken.take(image)),
        )?;
        let Taken { blocks, fault, .. } = taken;
        if let Some(fault) = fault {
            self.store.drop_range(Family::Undo, range.0, range.1)?;
            return Err(fault);
        }
        let mut index = blocks
            .iter()
            .map(|(v, b, flag)| (keys::undo_index(*v, *b, ordinal), Bytes::from_static(*flag)));
        self.store.ingest(Family::UndoIndex, &mut index)?;
        let data = blocks.iter().filter(|(_, _, flag)| **flag == [DATA]).count() as u64;
        let row = OrdinalRow {
            ordinal,
            kind: kind.clone(),
            blocks: blocks.len() as u64,
            bytes: data * BLOCK_SIZE,
        };
        let mut batch = Batch::default();
        batch.put(Family::Catalog, keys::ordinal(ordinal), row.encode());
        let mut meta = self.meta.lock();
        if self.published() != published {
            return Err(JournalError::Internal(
                "an ordinal was taken while its images were read",
            ));
        }
        self.commit_locked(&mut meta, batch, true)?;
        self.shared.write().ordinals.insert(ordinal, row);
        self.move_cursors(|c| c.published = ordinal);
        self.published.store(ordinal.0, Ordering::Release);
        drop(meta);
        // What needs them is a gap from now on, and not only when somebody has tried to read it.
        for (volume, block, _) in blocks.iter().filter(|(_, _, flag)| **flag == [UNKNOWN]) {
            self.note_damage(&JournalError::Damaged(Damage::Undo {
                ordinal: ordinal.0,
                volume: volume.0,
                block: block.0,
                what: UNKNOWN_TEXT.into(),
            }));
        }
        Ok(blocks.into_iter().map(|(v, b, _)| (v, b)).collect())
    }
}
