//! Room on a real disk: what retention frees is really given back, and what is left of it is never read.

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{IndexFloors, RocksStore, SealFlags, Space, Wanted, keys::index_parts};
use model::{
    BlockNo, ByteRange, GenNo, Ordinal, Payload, RedoSpan,
    ports::{Family, History, HistoryError, OrdinalKind, Store},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::{os::unix::fs::MetadataExt, path::Path};

const SIZE: u64 = 1 << 20;
const BLOCKS: u64 = 64;
const CONTAINERS: u64 = 40;

/// Bytes that the store's tables take; its log and manifest are of a fixed size.
fn disk_use(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let tables = entries.filter(|e| e.path().extension().is_some_and(|x| x == "sst"));
    tables.map(|e| e.metadata().unwrap().blocks() * 512).sum()
}

/// Bytes of a block after container `n`: no compression helps against them.
fn image(n: u64, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    StdRng::seed_from_u64(n * 1000 + block).fill_bytes(&mut bytes);
    bytes
}

/// A container that writes every block once, applied.
fn container(j: &Journal, n: u64) {
    for b in 0..BLOCKS {
        j.append(vec![write(0, b * 4096, image(n, b))], at(n)).unwrap();
    }
    let row = j.seal(SealFlags::default()).unwrap();
    j.ingest_sealed().unwrap();
    let before = |b| match n {
        1 => Payload::Zero,
        n => Payload::Data(Bytes::from(image(n - 1, b))),
    };
    let kind = OrdinalKind::Apply {
        generation: row.generation,
        lfc: row.lfc,
        last_seq: row.last_seq,
    };
    let undo = UndoContainer {
        ordinal: Ordinal(n),
        kind,
        blocks: (0..BLOCKS)
            .map(|b| (VolumeIndex(0), BlockNo(b), before(b)))
            .collect(),
    };
    j.commit_whole(&undo).unwrap();
    j.set_applied(Ordinal(n), row.generation, row.lfc, row.last_seq)
        .unwrap();
}

/// What the indexes hold: the lowest redo record and the lowest ordinal that they name.
fn lowest(store: &dyn Store) -> (u64, u64) {
    let lowest = |family, skip: usize| {
        let mut lowest = u64::MAX;
        store
            .scan(family, &[], &[0xff; 30], &mut |key, _| {
                let (_, _, rest) = index_parts(key).unwrap();
                let number = u64::from_be_bytes(rest.0[skip..].try_into().unwrap());
                lowest = lowest.min(number);
                true
            })
            .unwrap();
        lowest
    };
    (lowest(Family::RedoIndex, 4), lowest(Family::UndoIndex, 0))
}

/// Every boundary from the floor on shows its bytes, those below are gone; redo the same.
fn check(j: &Journal, floor: u64) {
    for n in 0..CONTAINERS {
        let undo = j.first_undo(
            VolumeIndex(0),
            BlockNo(0),
            BLOCKS,
            Ordinal(n),
            Ordinal(CONTAINERS),
        );
        let span = RedoSpan {
            generation: GenNo(1),
            after: WriteSeq(n * BLOCKS),
            upto: WriteSeq((n + 1) * BLOCKS),
        };
        let redo = j.redo(VolumeIndex(0), ByteRange::at(0, BLOCKS * 4096), &[span]);
        if n < floor {
            assert!(
                matches!(undo, Err(HistoryError::Gone(_))),
                "undo after {n}: {undo:?}"
            );
            assert!(matches!(redo, Err(HistoryError::Gone(_))), "redo after {n}");
            continue;
        }
        let undo = undo.unwrap();
        for b in 0..BLOCKS {
            let expected = match n {
                0 => Payload::Zero,
                n => Payload::Data(Bytes::from(image(n, b))),
            };
            assert_eq!(undo[b as usize].as_ref(), Some(&expected), "block {b} after {n}");
        }
        let redo = redo.unwrap();
        assert_eq!(redo.len() as u64, BLOCKS);
        assert_eq!(redo[3].payload, Payload::Data(Bytes::from(image(n + 1, 3))));
    }
}

#[test]
fn k1_the_disk_really_gets_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options {
        lfc_size: SIZE,
        lfc_max_age_ns: None,
        recent_bytes: 0,
        ..Options::default()
    };
    // The store beside the journal: what is compacted, and what is really in it.
    let open = || {
        let parts = Parts::open_dir(dir.path(), SIZE).unwrap();
        drop(parts.store);
        let floors = Arc::<IndexFloors>::default();
        let store = Arc::new(RocksStore::open(&dir.path().join("db"), Arc::clone(&floors)).unwrap());
        let parts = Parts {
            store: Arc::clone(&store) as Arc<dyn Store>,
            superblock: parts.superblock,
            tails: parts.tails,
            index_floors: floors,
        };
        (Journal::open(parts, options()).unwrap().0, store)
    };
    let (j, store) = open();
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    (1..=CONTAINERS).for_each(|n| container(&j, n));
    check(&j, 0);
    let db = dir.path().join("db");
    let full = disk_use(&db);
    let data = CONTAINERS * BLOCKS * 4096;
    assert!(full > 2 * data, "{full} of {data} bytes twice");

    let keep = Wanted {
        age_ns: Some(4 * Timestamp::SECOND_NS),
        bytes: None,
        ..Wanted::default()
    };
    let done = j.retain(&keep, Space::Limit(u64::MAX), Vec::new()).unwrap();
    assert_eq!(j.floors().undo, Ordinal(CONTAINERS - 4));
    // Frames and undo are whole files: they go at once.
    let freed = disk_use(&db);
    assert!(
        freed + done.freed * 9 / 10 < full,
        "{full} bytes, then {freed}; {done:?}"
    );
    assert!(freed < full / 5, "{full} bytes, then {freed}");
    // Nothing below the floor is read, whether its index entries are there or not.
    check(&j, CONTAINERS - 4);
    store.compact_indexes().unwrap();
    let floor = (CONTAINERS - 4) * BLOCKS;
    assert_eq!(lowest(&*store), (floor + 1, CONTAINERS - 3));
    check(&j, CONTAINERS - 4);
    let compacted = disk_use(&db);
    println!("{full} bytes, {freed} after retention, {compacted} with indexes compacted");
    drop((j, store));
    let (j, store) = open();
    check(&j, CONTAINERS - 4);
    store.compact_indexes().unwrap();
    assert_eq!(lowest(&*store), (floor + 1, CONTAINERS - 3));
}

/// A floor that moves while views are read: every answer is the right bytes or "gone", nothing is taken for damage, and nothing
/// is poisoned.
#[test]
fn k1_reads_while_the_floor_passes_are_right_or_gone() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        lfc_size: SIZE,
        lfc_max_age_ns: None,
        recent_bytes: 0,
        ..Options::default()
    };
    let (j, _) = Journal::open(Parts::open_dir(dir.path(), SIZE).unwrap(), options).unwrap();
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    (1..=CONTAINERS).for_each(|n| container(&j, n));
    let (mut right, mut gone) = (0, 0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3_u64)
            .map(|reader| {
                let j = &j;
                scope.spawn(move || {
                    let (mut right, mut gone) = (0, 0);
                    for n in (reader..CONTAINERS - 1).step_by(3) {
                        // Until the floor has passed it.
                        loop {
                            let undo =
                                j.first_undo(VolumeIndex(0), BlockNo(0), 8, Ordinal(n), Ordinal(CONTAINERS));
                            let span = RedoSpan {
                                generation: GenNo(1),
                                after: WriteSeq(n * BLOCKS),
                                upto: WriteSeq((n + 1) * BLOCKS),
                            };
                            let redo = j.redo(VolumeIndex(0), ByteRange::at(0, 8 * 4096), &[span]);
                            match (undo, redo) {
                                (Ok(undo), redo) => {
                                    for (b, got) in undo.into_iter().enumerate() {
                                        let expected = match n {
                                            0 => Payload::Zero,
                                            n => Payload::Data(Bytes::from(image(n, b as u64))),
                                        };
                                        assert_eq!(got, Some(expected), "block {b} after {n}");
                                    }
                                    assert!(redo.is_ok() || matches!(redo, Err(HistoryError::Gone(_))));
                                    right += 1;
                                }
                                (Err(HistoryError::Gone(_)), redo) => {
                                    assert!(matches!(redo, Err(HistoryError::Gone(_))), "{redo:?}");
                                    gone += 1;
                                    break;
                                }
                                (Err(e), _) => panic!("undo after {n}: {e}"),
                            }
                        }
                    }
                    (right, gone)
                })
            })
            .collect();
        for keep in (1..CONTAINERS).rev() {
            let wanted = Wanted {
                age_ns: Some((keep - 1) * Timestamp::SECOND_NS),
                bytes: None,
                ..Wanted::default()
            };
            j.retain(&wanted, Space::Limit(u64::MAX), Vec::new()).unwrap();
        }
        for reader in readers {
            let (r, g) = reader.join().unwrap();
            right += r;
            gone += g;
        }
    });
    println!("{right} reads were right, {gone} points went");
    assert_eq!(gone, CONTAINERS - 1);
    assert!(right > 0 && j.poisoned().is_none());
}
