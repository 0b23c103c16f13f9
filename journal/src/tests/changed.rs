//! What changed between two points: exact while the records are held, never too little after that.

use super::*;
use crate::{Cell, MapShape, Position, SealFlags};
use model::{BLOCK_SIZE, ByteRange, GenNo, Record};
use rand::Rng;
use std::collections::BTreeSet;
use testkit::with_seeds;

const V: VolumeIndex = VolumeIndex(0);
const BLOCKS: u64 = 32;

fn at(seq: u64) -> Position {
    Position {
        generation: GenNo(1),
        seq: WriteSeq(seq),
    }
}

fn blocks(ranges: &[ByteRange]) -> BTreeSet<u64> {
    ranges.iter().flat_map(|r| r.blocks()).map(|b| b.0).collect()
}

/// What the records say.
fn expected(records: &[Record], after: u64, upto: u64) -> BTreeSet<u64> {
    let of = records
        .iter()
        .filter(|r| r.volume == V && r.seq.0 > after && r.seq.0 <= upto);
    of.filter_map(Record::changed)
        .flat_map(|range| range.blocks())
        .map(|b| b.0)
        .collect()
}

#[test]
fn what_changed_between_two_points_is_what_the_records_say() {
    with_seeds("changed", 60, |rng| {
        let lab = Lab::new();
        let mut j = lab.fresh();
        let mut records: Vec<Record> = Vec::new();
        for _ in 0..rng.random_range(1..60) {
            if rng.random_bool(0.15) {
                let _ = j.seal(SealFlags::default());
            }
            if rng.random_bool(0.1) {
                j.ingest_sealed().unwrap();
            }
            let len = rng.random_range(1..3 * BLOCK_SIZE);
            let offset = rng.random_range(0..BLOCKS * BLOCK_SIZE - len);
            let now = Timestamp(records.len() as u64 * 1_000_000_000);
            let volume = rng.random_range(0..2);
            if j.wants_seal(30_000, now) {
                j.seal(SealFlags::default()).unwrap();
            }
            let frame = j
                .append(vec![write(volume, offset, vec![7; len as usize])], now)
                .unwrap();
            records.extend(frame.records().iter().cloned());
            if rng.random_bool(0.05) {
                j.sync().unwrap();
                drop(j);
                j = lab.open().unwrap().0;
            }
        }
        let head = j.cursors().appended.0;
        for _ in 0..20 {
            let from = rng.random_range(0..=head);
            let to = rng.random_range(from..=head);
            let found = j.changed_between(V, at(from), at(to)).unwrap();
            let found = blocks(&found.expect("nothing is forgotten"));
            assert_eq!(found, expected(&records, from, to), "behind {from} up to {to}");
        }
    });
}

/// Records that are gone count with their whole container; a point that the catalog does not reach back to, or that is on no
/// line to the other one, is not known.
#[test]
fn what_is_not_known_is_not_called_clean() {
    let lab = Lab::new();
    let j = lab.fresh();
    let shape = MapShape {
        size: 8 * BLOCK_SIZE,
        region_size: BLOCK_SIZE,
        default: Cell::Clean,
    };
    j.set_map(V, shape).unwrap();
    let mut ends = vec![j.cursors().appended.0];
    for n in 0..3 {
        for i in 0..2 {
            let now = Timestamp(j.cursors().appended.0 * 1_000_000_000);
            j.append(vec![write(0, (2 * n + i) * BLOCK_SIZE, vec![7; 600])], now)
                .unwrap();
        }
        j.seal(SealFlags::default()).unwrap();
        ends.push(j.cursors().appended.0);
        while j.ingest_sealed().unwrap().is_some() {}
    }
    let changed = |from, to| {
        let found = j.changed_between(V, at(from), at(to)).unwrap();
        found.map(|ranges| blocks(&ranges).into_iter().collect::<Vec<_>>())
    };
    assert_eq!(changed(ends[1] + 1, ends[2]), Some(vec![3]));
    let last = j.cursors().appended;
    j.set_written_back(last);
    j.set_checkpointed(last).unwrap();
    j.give_way().unwrap();
    j.give_way().unwrap();
    assert!(
        j.frames_of(GenNo(1), model::LfcId(4)).is_err(),
        "it is held still"
    );
    assert_eq!(
        changed(ends[1] + 1, ends[2]),
        Some(vec![2, 3]),
        "the container is all that is known"
    );
    assert_eq!(changed(ends[2], ends[3]), Some(vec![4, 5]));
    assert_eq!(changed(ends[1], ends[1]), Some(vec![]));
    let other = Position {
        generation: GenNo(2),
        seq: WriteSeq(1),
    };
    assert_eq!(j.changed_between(V, other, at(last.0)).unwrap(), None);
    assert_eq!(
        j.changed_between(V, at(last.0), at(last.0 - 1)).unwrap(),
        None,
        "backwards"
    );
}
