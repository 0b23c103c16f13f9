//! Damage is told from a torn end (`rules.md` T5, T7).

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{Damage, SealFlags};
use model::{ByteRange, GenNo, LfcId, Ordinal};
use rand::Rng;
use testkit::with_seeds;

fn damage(lab: &Lab) -> Damage {
    match lab.open() {
        Err(JournalError::Damaged(d)) => d,
        Err(e) => panic!("{e}"),
        Ok((j, opened)) => panic!("opened {opened:?} at {}", j.cursors().appended),
    }
}

/// T5: any flipped bit in a frame below the bound is damage, never a torn end.
#[test]
fn t5_a_rotten_frame_below_the_bound_is_damage() {
    with_seeds("t5 bound", 100, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 10, 600);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        let end = j.shared.read().open.as_ref().unwrap().end_at;
        drop(j);
        let at = lab.tail(0).flip_random_bit(ByteRange { start: 4096, end }, rng);
        let found = damage(&lab);
        assert!(
            matches!(found, Damage::EndBelow { .. } | Damage::Hole { .. }),
            "byte {at}: {found}"
        );
    });
}

/// T5: a later frame that knew the bad one to be durable proves damage without any bound.
#[test]
fn t5_a_later_frame_proves_damage() {
    with_seeds("t5 later", 100, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 5, 600);
        j.sync().unwrap();
        let synced_end = j.shared.read().open.as_ref().unwrap().end_at;
        fill(&j, 2, 600);
        j.sync().unwrap();
        drop(j);
        lab.tail(0).flip_random_bit(
            ByteRange {
                start: 4096,
                end: synced_end,
            },
            rng,
        );
        let found = damage(&lab);
        let Damage::Hole {
            at,
            after,
            durable,
            later_at,
            ..
        } = found
        else {
            panic!("{found}")
        };
        assert!(at < later_at && after < durable && durable == WriteSeq(5));
    });
}

/// A torn end is no damage: the last frames were never synced.
#[test]
fn t5_a_torn_end_is_cut_off() {
    let mut torn = 0;
    let tried = with_seeds("torn end", 100, |rng| {
        let lab = Lab::new();
        lab.power.set_tear(testkit::sim::Tear::Bit);
        let j = lab.fresh();
        let durable = fill(&j, 5, 600);
        j.sync().unwrap();
        let appended = fill(&j, 4, 3000);
        drop(j);
        lab.power.cut(rng);
        let (j, opened) = lab.open().unwrap();
        let head = j.cursors().appended;
        assert!(head >= durable && head <= appended);
        torn += u32::from(matches!(opened, Opened::Recovered { cut_bytes: 1.., .. }));
    });
    assert!(tried < 100 || torn > 5, "{torn}");
}

#[test]
fn t5_a_rotten_header_is_damage() {
    with_seeds("header", 60, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 3, 600);
        j.sync().unwrap();
        fill(&j, 3, 600);
        j.sync().unwrap();
        drop(j);
        // The padding counts, too: a flipped bit anywhere in the block fails its checksum.
        lab.tail(0).flip_random_bit(ByteRange::at(0, 4096), rng);
        assert!(matches!(damage(&lab), Damage::Header { tail: 0, .. }));
    });
}

#[test]
fn a_rotten_sealed_container_is_damage() {
    with_seeds("sealed", 60, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 8, 600);
        let end = j.shared.read().open.as_ref().unwrap().end_at;
        j.seal(SealFlags::default()).unwrap();
        drop(j);
        lab.tail(0).flip_random_bit(ByteRange { start: 4096, end }, rng);
        let found = damage(&lab);
        assert!(
            matches!(found, Damage::Discontinuous { .. } | Damage::Hole { .. }),
            "{found}"
        );
    });
}

#[test]
fn both_superblock_slots_gone_is_damage_and_one_is_not() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 3, 600);
    j.sync().unwrap();
    j.raise_bound().unwrap();
    drop(j);
    lab.superblock().flip_bit(20, 3);
    assert!(lab.open().is_ok());
    lab.superblock().flip_bit(21, 3);
    lab.superblock().flip_bit(4096 + 21, 3);
    assert_eq!(damage(&lab), Damage::Superblock);
}

/// T7: the store lost a synced batch without a word.
#[test]
fn t7_lost_metadata_is_found() {
    with_seeds("t7", 30, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 3, 600);
        j.seal(SealFlags::default()).unwrap();
        j.ingest_sealed().unwrap();
        drop(j);
        let store = lab.power.store("db");
        store.lose_commits(rng.random_range(1..=store.commits_kept()));
        assert!(matches!(damage(&lab), Damage::Metadata { .. }));
    });
}

/// What the peer acknowledged, and what is on the volumes, are bounds, too.
#[test]
fn t5_the_peer_and_the_volumes_are_bounds() {
    for peer in [true, false] {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 3, 600);
        j.sync().unwrap();
        let at = j.shared.read().open.as_ref().unwrap().frames[2].at;
        if peer {
            j.set_peer(WriteSeq(3), WriteSeq(0), true).unwrap();
        } else {
            j.set_written_back(WriteSeq(3));
            j.set_checkpointed(WriteSeq(3)).unwrap();
        }
        drop(j);
        lab.tail(0).flip_bit(at + 100, 1);
        let found = damage(&lab);
        let why = if peer {
            "was acknowledged by the peer"
        } else {
            "was on the volumes"
        };
        assert!(
            matches!(found, Damage::EndBelow { why: w, .. } if w == why),
            "{found}"
        );
    }
}

/// Damage can be accepted: what is whole stays readable, and nothing is appended before a new generation.
#[test]
fn accepted_damage_ends_the_generation() {
    let mut lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 10, 600);
    j.sync().unwrap();
    j.raise_bound().unwrap();
    let at = j.shared.read().open.as_ref().unwrap().frames[6].at;
    drop(j);
    lab.tail(0).flip_bit(at + 100, 1);
    damage(&lab);
    lab.options.accept_damage = true;
    for _ in 0..2 {
        let (j, opened) = lab.open().unwrap();
        assert!(matches!(opened, Opened::Damaged(_)), "{opened:?}");
        assert!(matches!(
            j.append(vec![write(0, 0, [1])], at_(1)),
            Err(JournalError::NoGeneration)
        ));
        assert_eq!(j.frames_of(GenNo(1), LfcId(2)).unwrap().len(), 6);
    }
    let (j, _) = lab.open().unwrap();
    let g2 = j
        .create_generation(NewGeneration::own(GenId(0xA2), None))
        .unwrap();
    assert_eq!(
        g2.first_seq,
        WriteSeq(11),
        "above what was durable, not above what is left"
    );
    fill(&j, 2, 600);
    j.sync().unwrap();
    drop(j);
    lab.options.accept_damage = false;
    let (j, opened) = lab.open().unwrap();
    assert!(matches!(opened, Opened::Recovered { .. }), "{opened:?}");
    assert_eq!(j.cursors().appended, WriteSeq(12));
}

fn at_(s: u64) -> Timestamp {
    at(s)
}

/// Values in the store are checked before they are served.
#[test]
fn rotten_values_in_the_store_are_never_served() {
    use model::{BlockNo, Payload, ports::*};
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 3, 600);
    j.seal(SealFlags::default()).unwrap();
    j.ingest_sealed().unwrap();
    let kind = OrdinalKind::Apply {
        generation: GenNo(1),
        lfc: LfcId(2),
        last_seq: WriteSeq(3),
    };
    let blocks = vec![(
        VolumeIndex(0),
        BlockNo(1),
        Payload::Data(Bytes::from(vec![7; 4096])),
    )];
    j.commit_whole(&UndoContainer {
        ordinal: Ordinal(1),
        kind,
        blocks,
    })
    .unwrap();
    let store = lab.power.store("db");
    assert!(store.flip_bit(
        Family::Undo,
        &crate::keys::undo(Ordinal(1), VolumeIndex(0), BlockNo(1)),
        500,
        3
    ));
    let got = j.first_undo(VolumeIndex(0), BlockNo(0), 4, Ordinal(0), Ordinal(1));
    assert!(matches!(got, Err(HistoryError::Damaged(_))), "{got:?}");
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert!(store.flip_bit(Family::Redo, &crate::keys::redo(GenNo(1), LfcId(2), 1), 200, 3));
    assert!(matches!(
        j.frames_of(GenNo(1), LfcId(2)),
        Err(JournalError::Damaged(_))
    ));
    let span = model::RedoSpan {
        generation: GenNo(1),
        after: WriteSeq(0),
        upto: WriteSeq(3),
    };
    let got = j.redo(VolumeIndex(0), ByteRange::at(4096, 10), &[span]);
    assert!(matches!(got, Err(HistoryError::Damaged(_))), "{got:?}");
    assert!(
        j.poisoned().is_none(),
        "one bad container does not end the others"
    );
}
