//! Blocks of this host's volumes whose bytes are not known: they could not be read, and were not written whole since.
//!
//! The list is one row of the metadata, written before anything rests on it (T7). Who reads the volumes asks for it and keeps it
//! ([`Journal::withheld`]), and hands back what it has become ([`Journal::set_withheld`]); nothing here reads a volume.

use crate::{
    codec::{Malformed, Read, len32},
    error::JournalError,
    journal::Journal,
    keys,
    rows::{begin, open},
};
use model::{
    BlockNo, VolumeIndex,
    ports::{Batch, Family},
};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks that are withheld, by volume; a volume without any is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withheld(BTreeMap<VolumeIndex, BTreeSet<BlockNo>>);

impl Withheld {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u32(len32(self.0.len()));
        for (volume, blocks) in &self.0 {
            w.u16(volume.0).u32(len32(blocks.len()));
            for block in blocks {
                w.u64(block.0);
            }
        }
        w.done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let mut all = BTreeMap::new();
        for _ in 0..r.u32()? {
            let volume = VolumeIndex(r.u16()?);
            let count = r.u32()?;
            let blocks = (0..count)
                .map(|_| r.u64().map(BlockNo))
                .collect::<Read<BTreeSet<_>>>()?;
            if blocks.len() != count as usize || blocks.is_empty() || all.insert(volume, blocks).is_some() {
                return Err(Malformed::What("a block or volume is named twice, or none is"));
            }
        }
        r.end()?;
        Ok(Self(all))
    }
}

impl Journal {
    /// The blocks of a volume that are withheld.
    #[must_use]
    pub fn withheld(&self, volume: VolumeIndex) -> BTreeSet<BlockNo> {
        let shared = self.shared.read();
        shared.withheld.0.get(&volume).cloned().unwrap_or_default()
    }

    /// How many blocks are withheld in all.
    #[must_use]
    pub fn withheld_blocks(&self) -> usize {
        self.shared.read().withheld.0.values().map(BTreeSet::len).sum()
    }

    /// These are the blocks of a volume that are withheld. Durable when it returns.
    ///
    /// # Errors
    /// When it could not be made durable; the list is then as it was.
    pub fn set_withheld(&self, volume: VolumeIndex, blocks: &BTreeSet<BlockNo>) -> Result<(), JournalError> {
        self.guarded(|| {
            // From the look at the list to its change: two volumes may change theirs at once.
            let mut meta = self.meta.lock();
            let mut next = self.shared.read().withheld.clone();
            if blocks.is_empty() {
                next.0.remove(&volume);
            } else {
                next.0.insert(volume, blocks.clone());
            }
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::WITHHELD, next.encode());
            self.commit_locked(&mut meta, batch, true)?;
            self.shared.write().withheld = next;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_withheld_is_read_again_and_nothing_else() {
        let mut all = Withheld::default();
        assert_eq!(Withheld::decode(&all.encode()), Ok(all.clone()));
        all.0
            .insert(VolumeIndex(3), [BlockNo(1), BlockNo(1 << 40)].into());
        all.0.insert(VolumeIndex(0), [BlockNo(0)].into());
        let bytes = all.encode();
        assert_eq!(Withheld::decode(&bytes), Ok(all));
        for cut in 0..bytes.len() {
            assert!(Withheld::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Withheld::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}
