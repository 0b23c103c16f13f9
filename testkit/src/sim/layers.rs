//! Live and durable bytes apart: of a medium, or of a file.

use super::{
    pages::Pages,
    tear::{self, Tear, Unsynced},
};
use model::ByteRange;
use rand::RngCore;

#[derive(Debug, Default)]
pub(super) struct Layers {
    /// What reads see.
    pub(super) live: Pages,
    /// What a power cut leaves for certain.
    pub(super) durable: Pages,
    /// `live` is `durable` with these laid over, in order.
    unsynced: Vec<Unsynced>,
    next_id: u64,
}

impl Layers {
    /// Bytes that are durable.
    pub(super) fn of(durable: Pages) -> Self {
        Self {
            live: durable.clone(),
            durable,
            ..Self::default()
        }
    }

    /// Writes bytes, or zeroes.
    pub(super) fn write(&mut self, range: ByteRange, data: Option<&[u8]>) {
        let write = Unsynced {
            id: self.next_id,
            range,
            data: data.map(<[u8]>::to_vec),
        };
        self.next_id += 1;
        write.apply(&mut self.live);
        self.unsynced.push(write);
    }

    /// Writes that no sync has made durable, in their order.
    pub(super) fn unsynced(&self) -> &[Unsynced] {
        &self.unsynced
    }

    /// The number of the next write.
    pub(super) fn end(&self) -> u64 {
        self.next_id
    }

    pub(super) fn become_image(&mut self, image: Pages) {
        self.unsynced.clear();
        self.durable = image.clone();
        self.live = image;
    }

    /// Makes all writes before `end` durable.
    pub(super) fn settle(&mut self, end: u64) {
        let later = self.unsynced.partition_point(|write| write.id < end);
        for write in self.unsynced.drain(..later) {
            write.apply(&mut self.durable);
        }
    }

    /// The device gives up on all writes before `end`: some have reached it, the others never will.
    pub(super) fn give_up(&mut self, end: u64, tear: Tear, rng: &mut dyn RngCore) {
        let later = self.unsynced.partition_point(|write| write.id < end);
        self.durable = tear::after_cut(&self.durable, &self.unsynced[..later], tear, rng);
        self.unsynced.drain(..later);
    }

    /// What a power cut leaves now.
    pub(super) fn after_cut(&self, tear: Tear, rng: &mut dyn RngCore) -> Pages {
        tear::after_cut(&self.durable, &self.unsynced, tear, rng)
    }
}
