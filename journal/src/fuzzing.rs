//! Parsers that are private, for `make fuzz`; in no other build. What they answer does not matter: they must answer.

use crate::{Cursors, line, map, rows, sizes, superblock::Superblock, tail};
use model::{GenNo, LfcId, Ordinal, WriteSeq, ports::Medium};
use std::sync::Arc;

/// A tail, read as at a start.
pub fn tail(medium: &dyn Medium) {
    let Ok(scan) = tail::scan(medium, "tail") else {
        return;
    };
    assert!(scan.end_at <= medium.len());
    for (loc, _) in &scan.frames {
        tail::read_frame(medium, loc, "tail").expect("what was read once can be read again");
    }
}

/// A superblock, read as at a start.
pub fn superblock(medium: Arc<dyn Medium>) {
    let _ = Superblock::open(medium);
}

/// Every kind of row of the store, from the same bytes.
pub fn rows(bytes: &[u8]) {
    let _ = rows::ContextRow::decode(bytes);
    let _ = rows::PinRow::decode(1, bytes);
    let _ = rows::RestoreRow::decode(bytes);
    let _ = rows::Promotion::decode(bytes);
    let _ = rows::Floors::decode(bytes);
    let _ = rows::Consistent::decode_all(bytes);
    let _ = rows::Generation::decode(GenNo(1), bytes);
    let _ = rows::LfcRow::decode(GenNo(1), LfcId(1), bytes);
    let _ = rows::OrdinalRow::decode(Ordinal(1), bytes);
    let _ = rows::decode_mark(GenNo(1), WriteSeq(1), bytes);
    let _ = rows::decode_step(bytes);
    let _ = rows::decode_touched(bytes);
    let _ = sizes::SizeChange::decode(bytes);
    let _ = sizes::Extents::decode(bytes);
    let _ = Cursors::decode(bytes);
    let _ = line::decode_start(bytes);
    map::rows(bytes);
}
