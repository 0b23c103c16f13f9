//! A version that this build does not know is refused with both numbers, whatever it stands on.

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{
    Cell, Consistent, ContextRow, Frame, FrameError, FrameHeader, MapShape, PinKind, PinRow, Position,
    RestorePhase, RestoreRow, SealFlags,
};
use model::{
    BlockNo, ContextState, GenNo, Level, LfcId, Ordinal, Payload, Point, Role, Term,
    ports::{Batch, Family, Medium, OrdinalKind, Store},
};

/// A journal with a row of every kind.
fn with_all_rows(lab: &Lab) -> Journal {
    let j = lab.fresh();
    let start = Position {
        generation: GenNo(1),
        seq: WriteSeq(0),
    };
    j.set_consistent_from(start).unwrap();
    fill(&j, 3, 600);
    j.append(vec![mark("m")], at(9)).unwrap();
    let step = RecordBody::ClockStep {
        from: at(9),
        to: at(3),
    };
    j.append(
        vec![Draft {
            volume: VolumeIndex(0),
            body: step,
        }],
        at(9),
    )
    .unwrap();
    let row = j.seal(SealFlags::default()).unwrap();
    j.ingest_sealed().unwrap();
    let kind = OrdinalKind::Apply {
        generation: GenNo(1),
        lfc: row.lfc,
        last_seq: row.last_seq,
    };
    let blocks = vec![(VolumeIndex(0), BlockNo(1), Payload::Zero)];
    j.commit_whole(&UndoContainer {
        ordinal: Ordinal(1),
        kind,
        blocks,
    })
    .unwrap();
    j.set_applied(Ordinal(1), GenNo(1), row.lfc, row.last_seq)
        .unwrap();
    let shape = MapShape {
        size: 1 << 30,
        region_size: 32 << 10,
        default: Cell::Clean,
    };
    j.set_map(VolumeIndex(0), shape).unwrap();
    j.mark_stale(&[(VolumeIndex(0), model::ByteRange::at(0, 1 << 20))], WriteSeq(2))
        .unwrap();
    j.put_context(&ContextRow {
        role: Role::Production,
        state: ContextState::Enabled,
        term: Term(1),
        since: at(1),
        notes: [("instance".to_owned(), "1".to_owned())].into(),
    })
    .unwrap();
    let point = Point {
        generation: GenNo(1),
        seq: row.last_seq,
        lfc: row.lfc,
        time: at(9),
        base: Ordinal(1),
        redo: Vec::new(),
    };
    j.put_pin(&PinRow {
        id: 1,
        kind: PinKind::Snapshot {
            level: Level(10),
            name: None,
        },
        target: "mark:m".into(),
        owner: String::new(),
        created: at(1),
        expires: None,
        point: point.clone(),
    })
    .unwrap();
    let restore = RestoreRow {
        target: point,
        text: "mark:m".into(),
        from: Ordinal(1),
        cursor: (VolumeIndex(0), BlockNo(0)),
        phase: RestorePhase::Done,
        undo_from: None,
        only: None,
    };
    j.put_restore(Some(&restore), None).unwrap();
    j.drop_redo_through(GenNo(1), row.lfc).unwrap();
    let _: Vec<Consistent> = j.consistent();
    j
}

fn refused(e: &JournalError, what: &str) {
    refused_above(1, e, what);
}

fn refused_above(newest: u8, e: &JournalError, what: &str) {
    let text = e.to_string();
    assert!(
        matches!(e, JournalError::Version { found: 9, known, .. } if *known == newest),
        "{what}: {e:?}"
    );
    assert!(
        text.contains(&format!("version 9 was found, this build reads up to {newest}")),
        "{what}: {text}"
    );
}

#[test]
fn every_row_of_another_version_is_refused_with_both_numbers() {
    let mut lab = Lab::new();
    drop(with_all_rows(&lab));
    let pairs: Vec<(Family, Vec<u8>, Bytes)> = [Family::Catalog, Family::Meta, Family::Map]
        .into_iter()
        .flat_map(|family| {
            let dump = lab.power.store("db").dump(family);
            dump.into_iter().map(move |(k, v)| (family, k.to_vec(), v))
        })
        .filter(|(family, key, _)| *family != Family::Meta || key != crate::keys::META_SEQ)
        .collect();
    // One of each kind that `docs/formats/journal.md` lists.
    let mut kinds: Vec<(&str, u8)> = pairs
        .iter()
        .map(|(family, key, _)| match family {
            Family::Catalog => ("catalog", key[0]),
            Family::Meta => ("meta", key[0]),
            _ => ("map", u8::from(key.len() > 2)),
        })
        .collect();
    kinds.dedup();
    assert_eq!(kinds.len(), 6 + 7 + 2, "{kinds:?}");
    lab.options.accept_damage = true;
    for (family, key, value) in pairs {
        let what = format!("{family:?} {key:02x?}");
        let store = lab.power.store("db");
        let put = |first: u8| {
            let mut changed = value.to_vec();
            changed[0] = first;
            let mut batch = Batch::default();
            batch.put(family, key.clone(), changed);
            store.commit(batch).unwrap();
        };
        assert_eq!(value[0], 1, "{what}");
        put(9);
        let read = || -> Result<(), JournalError> {
            let (j, _) = lab.open()?;
            j.context()?;
            j.pins()?;
            j.restore()?;
            j.touched(GenNo(1), LfcId(2)).map(drop)
        };
        // Not even somebody who accepts damage goes on: nothing is damaged.
        let newest = if family == Family::Map { 2 } else { 1 };
        refused_above(newest, &read().expect_err(&what), &what);
        put(1);
        read().unwrap();
    }
}

#[test]
fn frames_tails_and_superblocks_of_another_version_are_refused() {
    // Frame: another version with a good checksum, and the same byte rotten.
    let good = Frame::build(GenId(1), LfcId(2), WriteSeq(1), [0; 32], &[(mark("m"), at(1))]);
    let mut other = good.to_vec();
    other[3] = 9;
    assert_eq!(FrameHeader::parse(&other).unwrap_err(), FrameError::Magic);
    let crc = crc32c::crc32c(&other[..76]);
    other[76..80].copy_from_slice(&crc.to_le_bytes());
    let e = FrameHeader::parse(&other).unwrap_err();
    assert_eq!(e, FrameError::Version { found: 9, known: 1 });
    assert!(e.to_string().contains("version is 9, this build reads up to 1"));
    // Blocks of 4096 bytes with a checksum at their end: tail header, superblock slots.
    for (what, at_byte, blocks) in [("tail", 7, 1), ("superblock", 7, 2)] {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 2, 100);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        drop(j);
        let medium = if what == "tail" {
            lab.tail(0)
        } else {
            lab.superblock()
        };
        for n in 0..blocks {
            let mut block = vec![0; 4096];
            medium.read_at(n * 4096, &mut block).unwrap();
            block[at_byte] = 9;
            let crc = crc32c::crc32c(&block[..4092]);
            block[4092..].copy_from_slice(&crc.to_le_bytes());
            medium.write_at(n * 4096, &block).unwrap();
        }
        medium.sync().unwrap();
        refused(&lab.open().err().unwrap(), what);
        refused(&crate::mend::missing(&lab.parts()).unwrap_err(), what);
    }
}
