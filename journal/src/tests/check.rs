//! The check of a whole journal: nothing where nothing is wrong, and each thing that may be wrong behind right checksums.

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{
    LfcRow, SealFlags,
    check::{Checked, FindingKind, check_parts},
    keys,
};
use model::{
    BlockNo, GenNo, LfcId, Ordinal, Payload,
    ports::{Batch, Change, Family, OrdinalKind, Store},
};

const FIRST: (GenNo, LfcId) = (GenNo(1), LfcId(2));

/// A journal with three sealed containers, undo of two, a mark, a clock step, and an open container.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.options.indexed = true;
    let j = lab.fresh();
    for round in 0..3u64 {
        fill(&j, 6, 3000);
        let now = at(100 + round);
        j.append(vec![mark(&format!("m{round}"))], now).unwrap();
        let body = RecordBody::ClockStep {
            from: now,
            to: at(50),
        };
        let volume = VolumeIndex(0);
        j.append(vec![Draft { volume, body }], now).unwrap();
        let body = RecordBody::Size { size: 1 << 20 };
        j.append(vec![Draft { volume, body }], at(50)).unwrap();
        let row = j.seal(SealFlags::default()).unwrap();
        j.ingest_sealed().unwrap();
        if round < 2 {
            let blocks = (0..4).map(|b| {
                let data = Payload::Data(Bytes::from(vec![b as u8; 4096]));
                (
                    VolumeIndex(0),
                    BlockNo(b),
                    if b == 0 { Payload::Zero } else { data },
                )
            });
            j.commit_whole(&UndoContainer {
                ordinal: Ordinal(round + 1),
                kind: OrdinalKind::Apply {
                    generation: row.generation,
                    lfc: row.lfc,
                    last_seq: row.last_seq,
                },
                blocks: blocks.collect(),
            })
            .unwrap();
            j.set_applied(Ordinal(round + 1), row.generation, row.lfc, row.last_seq)
                .unwrap();
        }
    }
    fill(&j, 2, 100);
    j.sync().unwrap();
    j.raise_bound().unwrap();
    lab
}

fn checked(lab: &Lab) -> Checked {
    let mut checked = Checked::default();
    check_parts(lab.parts(), &lab.options, &mut checked, &mut |_, _, _| {}).unwrap();
    checked
}

fn row(store: &dyn Store) -> LfcRow {
    let value = store
        .get(Family::Catalog, &keys::lfc(FIRST.0, FIRST.1))
        .unwrap()
        .unwrap();
    LfcRow::decode(FIRST.0, FIRST.1, &value).unwrap()
}

#[test]
fn what_is_whole_is_read_to_its_end_and_nothing_is_found() {
    let checked = checked(&lab());
    assert_eq!(checked.findings.all, []);
    let c = checked.counts;
    assert_eq!((c.generations, c.containers, c.frames, c.records), (1, 4, 29, 29));
    assert_eq!((c.undo_blocks, c.index_entries), (8, 3 * 6 + 8));
    assert!(c.rows > 12 && c.bytes > 3 * 6 * 3000);
    assert!(checked.journal.is_some());
}

/// Rows, frames and entries that are gone or changed, each with right checksums of its own.
#[test]
fn everything_that_contradicts_something_else_is_found_and_named() {
    use Change::{Delete, Put};
    type Case = (&'static str, fn(&dyn Store) -> Change, FindingKind, &'static str);
    let cases: [Case; 16] = [
        (
            "a frame is gone",
            |_| Delete(Family::Redo, keys::redo(FIRST.0, FIRST.1, 3)),
            FindingKind::Redo,
            "container g1:2, frame 3",
        ),
        (
            "a frame is another one's",
            |s| {
                let other = s
                    .get(Family::Redo, &keys::redo(FIRST.0, FIRST.1, 1))
                    .unwrap()
                    .unwrap();
                Put(Family::Redo, keys::redo(FIRST.0, FIRST.1, 2), other.to_vec())
            },
            FindingKind::Redo,
            "container g1:2, frame 2",
        ),
        (
            "the last frame is gone",
            |s| Delete(Family::Redo, keys::redo(FIRST.0, FIRST.1, row(s).frames - 1)),
            FindingKind::Redo,
            "container g1:2",
        ),
        (
            "an index entry is gone",
            |_| {
                Delete(
                    Family::RedoIndex,
                    keys::redo_index(VolumeIndex(0), BlockNo(2), FIRST.0, WriteSeq(3)),
                )
            },
            FindingKind::RedoIndex,
            "record 3",
        ),
        (
            "an index entry leads elsewhere",
            |_| {
                Put(
                    Family::RedoIndex,
                    keys::redo_index(VolumeIndex(0), BlockNo(2), FIRST.0, WriteSeq(3)),
                    vec![2; 16],
                )
            },
            FindingKind::RedoIndex,
            "record 3",
        ),
        (
            "an index entry too many",
            |s| {
                let value = s
                    .get(
                        Family::RedoIndex,
                        &keys::redo_index(VolumeIndex(0), BlockNo(2), FIRST.0, WriteSeq(3)),
                    )
                    .unwrap()
                    .unwrap();
                Put(
                    Family::RedoIndex,
                    keys::redo_index(VolumeIndex(0), BlockNo(90), FIRST.0, WriteSeq(3)),
                    value.to_vec(),
                )
            },
            FindingKind::RedoIndex,
            "container g1:2",
        ),
        (
            "a before-image is gone",
            |_| Delete(Family::Undo, keys::undo(Ordinal(1), VolumeIndex(0), BlockNo(3))),
            FindingKind::Undo,
            "ordinal 1",
        ),
        (
            "a before-image has another byte",
            |_| {
                Put(
                    Family::Undo,
                    keys::undo(Ordinal(1), VolumeIndex(0), BlockNo(3)),
                    [&[1; 5][..], &[3; 4096]].concat(),
                )
            },
            FindingKind::Undo,
            "ordinal 1, volume 0 block 3",
        ),
        (
            "an entry of the undo index is gone",
            |_| {
                Delete(
                    Family::UndoIndex,
                    keys::undo_index(VolumeIndex(0), BlockNo(3), Ordinal(2)),
                )
            },
            FindingKind::UndoIndex,
            "ordinal 2, volume 0 block 3",
        ),
        (
            "an entry of the undo index too many",
            |_| {
                Put(
                    Family::UndoIndex,
                    keys::undo_index(VolumeIndex(0), BlockNo(77), Ordinal(2)),
                    vec![1],
                )
            },
            FindingKind::UndoIndex,
            "ordinal 2",
        ),
        (
            "an ordinal's row is gone",
            |_| Delete(Family::Catalog, keys::ordinal(Ordinal(1))),
            FindingKind::Metadata,
            "ordinal 1",
        ),
        (
            "a mark's row is gone",
            |_| Delete(Family::Catalog, keys::event(keys::MARK, FIRST.0, WriteSeq(7))),
            FindingKind::Metadata,
            "record 7",
        ),
        (
            "a clock step's row is gone",
            |_| {
                Delete(
                    Family::Catalog,
                    keys::event(keys::CLOCK_STEP, FIRST.0, WriteSeq(8)),
                )
            },
            FindingKind::Metadata,
            "record 8",
        ),
        (
            "a size's row is gone",
            |_| Delete(Family::Catalog, keys::event(keys::SIZE, FIRST.0, WriteSeq(9))),
            FindingKind::Metadata,
            "record 9",
        ),
        (
            "what it touched is gone",
            |_| Delete(Family::Catalog, keys::touched(FIRST.0, FIRST.1)),
            FindingKind::Metadata,
            "container g1:2",
        ),
        (
            "a row has another digest",
            |s| {
                let row = LfcRow {
                    end_digest: [7; 32],
                    ..row(s)
                };
                Put(Family::Catalog, keys::lfc(FIRST.0, FIRST.1), row.encode())
            },
            FindingKind::Chain,
            "container g1:4",
        ),
    ];
    for (what, change, kind, place) in cases {
        let lab = lab();
        let store = lab.power.store("db");
        let change = change(&store);
        store.commit(Batch(vec![change])).unwrap();
        let checked = checked(&lab);
        let found = &checked.findings.all;
        assert!(
            found
                .iter()
                .any(|f| f.kind == kind && f.place.to_string().contains(place)),
            "{what}: {found:#?}"
        );
        assert!(checked.findings.is_damaged());
    }
}

#[test]
fn a_row_that_does_not_check_hides_no_other() {
    let lab = lab();
    let store = lab.power.store("db");
    let mut batch = Batch::default();
    batch.put(Family::Catalog, keys::lfc(FIRST.0, FIRST.1), [1, 2, 3]);
    batch.put(Family::Meta, keys::CURSORS, [1, 2]);
    batch.put(Family::Meta, [77], [1]);
    batch.delete(Family::Undo, keys::undo(Ordinal(2), VolumeIndex(0), BlockNo(1)));
    store.commit(batch).unwrap();
    let checked = checked(&lab);
    assert!(checked.journal.is_none());
    let said: Vec<_> = checked
        .findings
        .all
        .iter()
        .map(|f| format!("{}: {}", f.place, f.what))
        .collect();
    for needed in [
        "key 02000000010000000000000002",
        "key 02:",
        "key 4d",
        "undo, ordinal 2",
    ] {
        assert!(said.iter().any(|s| s.contains(needed)), "{needed}: {said:#?}");
    }
}

#[test]
fn a_torn_end_and_a_spare_slot_are_notes() {
    let lab = lab();
    let j = lab.open().unwrap().0;
    let open = j.cursors().appended;
    j.append(vec![write(0, 0, vec![9; 900])], at(900)).unwrap();
    drop(j);
    // The frame that was being written.
    let tails = [lab.tail(0), lab.tail(1)];
    let newest = tails
        .iter()
        .map(|t| (tail::scan(t, "tail").unwrap(), t))
        .max_by_key(|(scan, _)| scan.header.map(|h| h.counter))
        .unwrap();
    let (loc, _) = newest.0.frames.last().unwrap();
    assert_eq!(loc.first_seq, open.next());
    newest.1.flip_bit(loc.at + 200, 3);
    lab.superblock().flip_bit(9, 1);
    let checked = checked(&lab);
    let kinds: Vec<_> = checked.findings.all.iter().map(|f| f.kind).collect();
    assert_eq!(
        kinds,
        [FindingKind::SpareSlot, FindingKind::TornEnd],
        "{:?}",
        checked.findings.all
    );
    assert!(!checked.findings.is_damaged());
    let place = checked.findings.all[1].place.to_string();
    assert!(
        place.starts_with("tail.") && place.contains(&format!("record {}", open.next())),
        "{place}"
    );
}
