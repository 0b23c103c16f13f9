//! Keys of the store: big-endian, so that their order is the order of what they name.

use model::{BlockNo, GenNo, LfcId, Ordinal, VolumeIndex, WriteSeq, ports::Family};

/// The name of a family, as files of the store and texts have it.
pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::Redo => "redo",
        Family::RedoIndex => "redo-index",
        Family::Undo => "undo",
        Family::UndoIndex => "undo-index",
        Family::Catalog => "catalog",
        Family::Meta => "meta",
        Family::Map => "map",
    }
}

/// Rows of the catalog, by first byte.
pub(crate) const GENERATION: u8 = 1;
pub(crate) const LFC: u8 = 2;
pub(crate) const ORDINAL: u8 = 3;
pub(crate) const MARK: u8 = 4;
pub(crate) const CLOCK_STEP: u8 = 5;
pub(crate) const TOUCHED: u8 = 6;
pub(crate) const SIZE: u8 = 7;

/// Rows of the metadata, by first byte.
pub(crate) const META_SEQ: &[u8] = &[1];
pub(crate) const CURSORS: &[u8] = &[2];
pub(crate) const CONTEXT: &[u8] = &[3];
pub(crate) const PIN: u8 = 4;
pub(crate) const RESTORE: &[u8] = &[5];
pub(crate) const FLOORS: &[u8] = &[6];
pub(crate) const START: &[u8] = &[7];
pub(crate) const CONSISTENT: &[u8] = &[8];
pub(crate) const PROMOTION: &[u8] = &[9];
pub(crate) const WITHHELD: &[u8] = &[10];
pub(crate) const EXTENTS: &[u8] = &[11];

/// A key under construction.
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(32))
    }

    pub(crate) fn row(kind: u8) -> Self {
        Self(vec![kind])
    }

    pub(crate) fn u16(mut self, v: u16) -> Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }

    pub(crate) fn u32(mut self, v: u32) -> Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, v: u64) -> Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) fn redo(generation: GenNo, lfc: LfcId, frame: u32) -> Vec<u8> {
    Key::new().u32(generation.0).u64(lfc.0).u32(frame).done()
}

pub(crate) fn redo_index(volume: VolumeIndex, block: BlockNo, generation: GenNo, seq: WriteSeq) -> Vec<u8> {
    Key::new()
        .u16(volume.0)
        .u64(block.0)
        .u32(generation.0)
        .u64(seq.0)
        .done()
}

pub(crate) fn undo(ordinal: Ordinal, volume: VolumeIndex, block: BlockNo) -> Vec<u8> {
    Key::new().u64(ordinal.0).u16(volume.0).u64(block.0).done()
}

pub(crate) fn undo_index(volume: VolumeIndex, block: BlockNo, ordinal: Ordinal) -> Vec<u8> {
    Key::new().u16(volume.0).u64(block.0).u64(ordinal.0).done()
}

pub(crate) fn generation(no: GenNo) -> Vec<u8> {
    Key::row(GENERATION).u32(no.0).done()
}

pub(crate) fn lfc(generation: GenNo, lfc: LfcId) -> Vec<u8> {
    Key::row(LFC).u32(generation.0).u64(lfc.0).done()
}

pub(crate) fn touched(generation: GenNo, lfc: LfcId) -> Vec<u8> {
    Key::row(TOUCHED).u32(generation.0).u64(lfc.0).done()
}

pub(crate) fn ordinal(ordinal: Ordinal) -> Vec<u8> {
    Key::row(ORDINAL).u64(ordinal.0).done()
}

pub(crate) fn event(kind: u8, generation: GenNo, seq: WriteSeq) -> Vec<u8> {
    Key::row(kind).u32(generation.0).u64(seq.0).done()
}

pub(crate) fn pin(id: u64) -> Vec<u8> {
    Key::row(PIN).u64(id).done()
}

/// Row of a volume in the map, and the prefix of its chunks.
pub(crate) fn map_volume(volume: VolumeIndex) -> Vec<u8> {
    Key::new().u16(volume.0).done()
}

pub(crate) fn map_chunk(volume: VolumeIndex, chunk: u64) -> Vec<u8> {
    Key::new().u16(volume.0).u64(chunk).done()
}

/// Splits a key of big-endian numbers.
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|b| b[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

/// Volume, block and the rest of an index key.
pub(crate) fn index_parts(key: &[u8]) -> Option<(VolumeIndex, BlockNo, Parts<'_>)> {
    let mut p = Parts(key);
    let volume = VolumeIndex(p.u16()?);
    let block = BlockNo(p.u64()?);
    Some((volume, block, p))
}
