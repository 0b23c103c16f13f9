//! Sizes of volumes: along lines, over opens, and what is durable of them when.

use super::{
    Lab, fill,
    tails::{cut_at_every_sync, with_cuts},
};
use crate::{Cell, ContextRow, Draft, Journal, MapShape, NewGeneration, Parent, Position, SealFlags};
use model::{
    ByteRange, ContextState, GenId, GenNo, LfcId, RecordBody, Role, Term, Timestamp, VolumeIndex, WriteSeq,
};
use std::collections::BTreeMap;

const V: VolumeIndex = VolumeIndex(0);
const W: VolumeIndex = VolumeIndex(1);
const REGION: u64 = 16 << 10;
const SIZE: u64 = 10 * REGION;

/// A size record in a frame of its own.
fn resize(j: &Journal, volume: VolumeIndex, size: u64) -> Position {
    let body = RecordBody::Size { size };
    let frame = j.append(vec![Draft { volume, body }], Timestamp(1)).unwrap();
    Position {
        generation: j.current_generation().unwrap().no,
        seq: frame.last_seq(),
    }
}

fn before(at: Position) -> Position {
    Position {
        seq: WriteSeq(at.seq.0 - 1),
        ..at
    }
}

fn seal(j: &Journal) {
    j.seal(SealFlags::default()).unwrap();
    while j.ingest_sealed().unwrap().is_some() {}
}

/// Each position has the last size that its own line says, whether its container is open, sealed, in the store or forgotten; a line
/// that leaves another before the size has the one of there.
#[test]
fn k3_a_size_belongs_to_the_positions_behind_it_on_its_line() {
    let lab = Lab::new();
    let mut j = lab.fresh();
    fill(&j, 3, 300);
    let first = resize(&j, V, 100);
    fill(&j, 2, 300);
    let other = resize(&j, W, 50);
    let says = |j: &Journal| {
        assert_eq!(j.size_at(V, before(first)), None);
        assert_eq!(j.size_at(V, first), Some(100));
        assert_eq!(j.size_at(V, other), Some(100));
        assert_eq!(j.size_at(W, before(other)), None);
        assert_eq!(j.size_at(W, other), Some(50));
        assert_eq!((j.size_now(V), j.size_now(W)), (Some(100), Some(50)));
    };
    says(&j);
    j.sync().unwrap();
    j = reopened(&lab, j);
    says(&j);
    j.seal(SealFlags::default()).unwrap();
    says(&j);
    j = reopened(&lab, j);
    says(&j);
    while j.ingest_sealed().unwrap().is_some() {}
    j = reopened(&lab, j);
    says(&j);
    fill(&j, 5, 300);
    let second = resize(&j, V, 200);
    fill(&j, 2, 300);
    seal(&j);
    // Rows are forgotten, sizes are not: all that is kept stands behind them.
    let last = j.cursors().appended;
    j.set_written_back(last);
    j.set_checkpointed(last).unwrap();
    j.drop_redo_through(GenNo(1), LfcId(2)).unwrap();
    j.forget_rows_through(GenNo(1), LfcId(2)).unwrap();
    j = reopened(&lab, j);
    assert_eq!(j.size_at(V, before(second)), Some(100));
    assert_eq!(j.size_at(V, second), Some(200));
    // Another line leaves this one right before the second size.
    let row = ContextRow {
        role: Role::Production,
        state: ContextState::FailedOver,
        term: Term(2),
        since: Timestamp(1),
        notes: BTreeMap::new(),
    };
    j.promote(GenId(77), before(second), Timestamp(9), &row).unwrap();
    for _ in 0..2 {
        assert_eq!(j.size_now(V), Some(100), "taken over, not added to");
        assert_eq!(j.size_at(V, second), Some(200), "what was left has its own");
        j = reopened(&lab, j);
    }
    let birth = j.begin_generation().unwrap();
    j.append(vec![birth], Timestamp(9)).unwrap();
    assert_eq!(j.size_now(V), Some(100));
    let third = resize(&j, V, 150);
    assert_eq!((j.size_now(V), j.size_now(W)), (Some(150), Some(50)));
    assert_eq!(j.size_at(V, before(third)), Some(100));
    j.sync().unwrap();
    j = reopened(&lab, j);
    assert_eq!((j.size_now(V), j.size_at(V, second)), (Some(150), Some(200)));
}

/// A line whose beginning is not known here has no size but what is said on it.
#[test]
fn k3_a_line_from_elsewhere_has_the_sizes_that_it_says() {
    let lab = Lab::new();
    let j = lab.fresh();
    resize(&j, V, 100);
    let parent = Parent {
        id: GenId(0xBEEF),
        seq: WriteSeq(40),
        digest: [1; 32],
    };
    j.create_generation(NewGeneration::own(GenId(0xA2), Some(parent)))
        .unwrap();
    fill(&j, 2, 300);
    assert_eq!(j.size_now(V), None);
    resize(&j, V, 300);
    assert_eq!(j.size_now(V), Some(300));
}

fn reopened(lab: &Lab, journal: Journal) -> Journal {
    drop(journal);
    lab.open().unwrap().0
}

/// A map whose regions are stale by default, as of a production that was never in step, and the extent of none.
fn prepare() -> (Lab, Journal) {
    let lab = Lab::new();
    let j = lab.fresh();
    let shape = MapShape {
        size: SIZE - 4096,
        region_size: REGION,
        default: Cell::Stale(WriteSeq(0)),
    };
    j.set_map(V, shape).unwrap();
    fill(&j, 2, 300);
    (lab, j)
}

/// What is new of a map is clean, whatever its default; the last region of before, which gets longer, stays what it was. Extents and
/// maps only ever grow, and both of them at once.
#[test]
fn k3_an_extent_and_its_map_grow_together() {
    let cuts = with_cuts("k3 extent", |rng| {
        let grown = |j: &Journal| {
            let tail = ByteRange {
                start: SIZE,
                end: 3 * SIZE,
            };
            let stale = ByteRange { start: 0, end: SIZE };
            assert_eq!(j.map_shape(V).unwrap().size, 3 * SIZE);
            assert_eq!(
                j.map_runs(V),
                [(stale, Cell::Stale(WriteSeq(0))), (tail, Cell::Clean)]
            );
        };
        let ended = std::cell::Cell::new(false);
        let history = |j: &Journal| {
            ended.set(false);
            j.extend(V, 3 * SIZE)?;
            ended.set(true);
            j.extend(V, SIZE)?;
            j.extend(W, 4096)
        };
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            match j.extent(V) {
                Some(bytes) => {
                    assert_eq!(bytes, 3 * SIZE);
                    grown(&j);
                }
                None => {
                    assert!(!ended.get(), "an extent is durable when it is told");
                    assert_eq!(j.map_shape(V).unwrap().size, SIZE - 4096);
                    assert_eq!(j.stale_bytes(V), SIZE - 4096);
                }
            }
        };
        cut_at_every_sync(rng, prepare, history, check)
    });
    assert!(cuts >= 4, "{cuts} cuts");
    let clean = Lab::new();
    let j = clean.fresh();
    let shape = MapShape {
        size: SIZE,
        region_size: REGION,
        default: Cell::Clean,
    };
    j.set_map(V, shape).unwrap();
    j.extend(V, 1 << 40).unwrap();
    assert_eq!(j.stale_bytes(V), 0);
    j.all_stale().unwrap();
    assert_eq!(j.stale_bytes(V), 1 << 40);
}
