//! The journal on real files and RocksDB.

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{IndexFloors, RocksStore, SealFlags};
use model::{
    BlockNo, ByteRange, GenNo, LfcId, Ordinal, Payload, RedoSpan,
    ports::{Batch, Family, History, OrdinalKind, Store, StoreError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
};

fn options() -> Options {
    Options {
        lfc_size: LFC,
        lfc_max_age_ns: None,
        ..Options::default()
    }
}

#[test]
fn a_journal_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options()).unwrap();
    let (j, opened) = open();
    assert_eq!(opened, Opened::Fresh);
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    for round in 0..6u64 {
        for i in 0..10u64 {
            j.append(
                vec![write(0, i * 4096, vec![round as u8; 4096])],
                at(round * 10 + i),
            )
            .unwrap();
        }
        j.seal(SealFlags::default()).unwrap();
        let kind = OrdinalKind::Apply {
            generation: GenNo(1),
            lfc: LfcId(2 + 2 * round),
            last_seq: WriteSeq(round * 10 + 10),
        };
        let blocks = (0..10)
            .map(|b| {
                let before = if round == 0 {
                    Payload::Zero
                } else {
                    Payload::Data(Bytes::from(vec![round as u8 - 1; 4096]))
                };
                (VolumeIndex(0), BlockNo(b), before)
            })
            .collect();
        j.commit_whole(&UndoContainer {
            ordinal: Ordinal(round + 1),
            kind,
            blocks,
        })
        .unwrap();
        j.set_applied(
            Ordinal(round + 1),
            GenNo(1),
            LfcId(2 + 2 * round),
            WriteSeq(round * 10 + 10),
        )
        .unwrap();
    }
    fill(&j, 3, 100);
    j.sync().unwrap();
    drop(j);

    let (j, opened) = open();
    assert!(
        matches!(
            opened,
            Opened::Recovered {
                frames: 3,
                cut_bytes: 0
            }
        ),
        "{opened:?}"
    );
    assert_eq!(j.cursors().appended, WriteSeq(63));
    assert_eq!(j.published(), Ordinal(6));
    for after in 0..6u64 {
        let got = j
            .first_undo(VolumeIndex(0), BlockNo(0), 12, Ordinal(after), Ordinal(6))
            .unwrap();
        let value = if after == 0 {
            Payload::Zero
        } else {
            Payload::Data(Bytes::from(vec![after as u8 - 1; 4096]))
        };
        assert!(got[..10].iter().all(|v| v.as_ref() == Some(&value)) && got[10..] == [None, None]);
    }
    let span = RedoSpan {
        generation: GenNo(1),
        after: WriteSeq(15),
        upto: WriteSeq(38),
    };
    let pieces = j
        .redo(VolumeIndex(0), ByteRange::at(5 * 4096, 4096), &[span])
        .unwrap();
    assert_eq!(pieces.iter().map(|p| p.seq.0).collect::<Vec<_>>(), [16, 26, 36]);
    j.drop_redo_through(GenNo(1), LfcId(8)).unwrap();
    j.drop_undo_through(Ordinal(4)).unwrap();
    assert!(j.frames_of(GenNo(1), LfcId(8)).is_err());
    assert_eq!(j.frames_of(GenNo(1), LfcId(10)).unwrap().len(), 10);
    assert!(
        j.first_undo(VolumeIndex(0), BlockNo(0), 1, Ordinal(3), Ordinal(6))
            .is_err()
    );
    assert!(
        j.first_undo(VolumeIndex(0), BlockNo(0), 1, Ordinal(4), Ordinal(6))
            .unwrap()[0]
            .is_some()
    );
    assert_eq!(
        j.undone_blocks(Ordinal(4), Ordinal(6), (VolumeIndex(0), BlockNo(4)), 3)
            .unwrap()
            .len(),
        3
    );
    j.raise_bound().unwrap();
    drop(j);
    let (j, opened) = open();
    assert_eq!(opened, Opened::Clean);
    assert_eq!(j.frames_after(WriteSeq(40), u64::MAX).unwrap().len(), 23);
}

#[test]
fn a_larger_container_size_keeps_what_the_tails_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (j, _) = Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options()).unwrap();
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    let last = fill(&j, 5, 1000);
    j.sync().unwrap();
    j.raise_bound().unwrap();
    drop(j);
    let larger = Options {
        lfc_size: 4 * LFC,
        ..options()
    };
    let (j, opened) = Journal::open(Parts::open_dir(dir.path(), 4 * LFC).unwrap(), larger).unwrap();
    assert_eq!(opened, Opened::Clean);
    assert_eq!(j.cursors().durable, last);
}

#[test]
fn the_store_keeps_its_contract() {
    let dir = tempfile::tempdir().unwrap();
    let floors = Arc::<IndexFloors>::default();
    let open = || RocksStore::open(dir.path(), Arc::clone(&floors)).unwrap();
    let store = open();
    let key = |n: u32| n.to_be_bytes().to_vec();
    let pairs = |from: u32, to: u32| (from..to).map(move |n| (key(n), Bytes::from(vec![n as u8; 100])));
    for family in Family::ALL {
        store.ingest(family, &mut pairs(10, 20)).unwrap();
        store.ingest(family, &mut pairs(10, 20)).unwrap();
        store.ingest(family, &mut std::iter::empty()).unwrap();
        let mut batch = Batch::default();
        batch.put(family, key(30), vec![1]);
        batch.delete(family, key(15));
        store.commit(batch).unwrap();
    }
    drop(store);
    let store = open();
    for family in Family::ALL {
        assert_eq!(
            store.get(family, &key(12)).unwrap(),
            Some(Bytes::from(vec![12; 100]))
        );
        assert_eq!(store.get(family, &key(15)).unwrap(), None);
        let mut seen = Vec::new();
        store
            .scan(family, &key(13), &key(31), &mut |k, _| {
                seen.push(u32::from_be_bytes(k.try_into().unwrap()));
                seen.len() < 5
            })
            .unwrap();
        assert_eq!(seen, [13, 14, 16, 17, 18]);
        let ranges = [
            (key(0), key(11)),
            (key(15), key(16)),
            (key(18), key(40)),
            (key(25), key(40)),
        ];
        let firsts = store.first_of_each(family, &ranges).unwrap();
        let firsts: Vec<_> = firsts.into_iter().map(|f| f.map(|(k, _)| k)).collect();
        assert_eq!(firsts, [Some(key(10)), None, Some(key(18)), Some(key(30))]);
        assert_eq!(store.last(family, &key(0), &key(30)).unwrap().unwrap().0, key(19));
        assert_eq!(store.last(family, &key(0), &key(5)).unwrap(), None);
        store.drop_range(family, &key(0), &key(18)).unwrap();
        assert_eq!(
            store.first_of_each(family, &[(key(0), key(99))]).unwrap()[0]
                .as_ref()
                .unwrap()
                .0,
            key(18)
        );
    }
}

/// The indexes have filters of blocks, which a lookup of one block or of scattered ones asks and all else must not: files that lie
/// over one another, blocks with entries and without, near and far, over a compaction and in a store that is read alone.
#[test]
fn v1_lookups_by_block_find_what_a_scan_finds() {
    lookups_by_block(Family::UndoIndex, |volume, block, n| {
        crate::keys::undo_index(volume, block, Ordinal(n))
    });
    lookups_by_block(Family::RedoIndex, |volume, block, n| {
        crate::keys::redo_index(volume, block, GenNo(1), WriteSeq(n))
    });
}

fn lookups_by_block(family: Family, key: impl Fn(VolumeIndex, BlockNo, u64) -> Vec<u8>) {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let dir = tempfile::tempdir().unwrap();
    let floors = Arc::<IndexFloors>::default();
    let store = RocksStore::open(dir.path(), Arc::clone(&floors)).unwrap();
    let mut rng = StdRng::seed_from_u64(21);
    let mut all = BTreeMap::new();
    for ordinal in 1..=30 {
        let near = rng.random_range(0..3000);
        let blocks: BTreeSet<_> = (0..300)
            .map(|n| match n % 3 {
                0 => near + n,
                _ => rng.random_range(0..3000) * 1_000_003,
            })
            .collect();
        let of = |block: &u64| key(VolumeIndex((block % 2) as u16), BlockNo(*block), ordinal);
        let keys: BTreeSet<_> = blocks.iter().map(of).collect();
        let mut pairs = keys.iter().map(|key| (key.clone(), Bytes::from_static(&[1])));
        store.ingest(family, &mut pairs).unwrap();
        all.extend(keys.into_iter().map(|key| (key, ())));
    }
    let mut check = |store: RocksStore| {
        let mut seen = Vec::new();
        let mut visit = |key: &[u8], _: &[u8]| {
            seen.push(key.to_vec());
            true
        };
        store.scan(family, &[], &[0xff; 19], &mut visit).unwrap();
        assert!(seen.iter().eq(all.keys()));
        let (last, _) = store.last(family, &[], &[0xff; 19]).unwrap().unwrap();
        assert_eq!(Some(&last), all.keys().next_back());
        for round in 0..200 {
            let volume = VolumeIndex(rng.random_range(0..2));
            let step = [1, 5, 1_000_003][round % 3];
            let asked: BTreeSet<_> = (0..rng.random_range(1..40))
                .map(|_| BlockNo(rng.random_range(0..3000) * step))
                .collect();
            let (after, upto) = (rng.random_range(0..30), rng.random_range(1..=30));
            let range = |block: &BlockNo| {
                let of = |n| key(volume, *block, n);
                (of(after + 1), of(upto + 1))
            };
            let ranges: Vec<_> = asked.iter().map(range).collect();
            let expected = ranges.iter().map(|(from, to)| {
                let mut inside = all.range(from.clone()..).take_while(|(key, ())| *key < to);
                inside.next().map(|(key, ())| key.clone())
            });
            let found = store.first_of_each(family, &ranges).unwrap();
            let found = found.into_iter().map(|f| f.map(|(key, _)| key));
            assert!(found.eq(expected), "round {round}");
            for (from, to) in ranges.iter().filter(|(from, to)| from < to) {
                let mut seen = Vec::new();
                let mut visit = |key: &[u8], _: &[u8]| {
                    seen.push(key.to_vec());
                    true
                };
                store.scan(family, from, to, &mut visit).unwrap();
                let inside = all.range(from.clone()..to.clone());
                assert!(seen.iter().eq(inside.map(|(key, ())| key)), "round {round}");
            }
        }
    };
    check(store);
    check(RocksStore::open(dir.path(), floors).unwrap());
    check(RocksStore::open_read_only(dir.path()).unwrap());
}

/// A second process cannot open what the first one holds, and is told which file.
#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = Parts::open_dir(dir.path(), LFC).unwrap();
    let Err(e) = Parts::open_dir(dir.path(), LFC) else {
        panic!("opened twice")
    };
    assert!(e.to_string().contains("in use"), "{e}");
    drop(first);
    Parts::open_dir(dir.path(), LFC).unwrap();
}

/// A power cut in the first start can leave a store without its CURRENT: nothing was begun, and it is made anew. Once anything was
/// begun that is a loss.
#[test]
fn a_store_that_a_first_start_did_not_finish_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    drop(Parts::open_dir(dir.path(), 2 << 20).unwrap());
    std::fs::remove_file(dir.path().join("db/CURRENT")).unwrap();
    let (journal, opened) = Journal::open(Parts::open_dir(dir.path(), 2 << 20).unwrap(), options()).unwrap();
    assert_eq!(opened, Opened::Fresh);
    drop(journal);
    std::fs::remove_file(dir.path().join("db/CURRENT")).unwrap();
    let lost = Parts::open_dir(dir.path(), 2 << 20).err().unwrap().to_string();
    assert!(lost.contains("CURRENT is gone"), "{lost}");
}

/// Every file below a folder: name, bytes, when it was changed.
fn tree(
    dir: &std::path::Path,
) -> std::collections::BTreeMap<std::path::PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut all = std::collections::BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let changed = std::fs::metadata(&folder).unwrap().modified().unwrap();
        all.insert(folder.clone(), (Vec::new(), changed));
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let changed = entry.metadata().unwrap().modified().unwrap();
                all.insert(entry.path(), (std::fs::read(entry.path()).unwrap(), changed));
            }
        }
    }
    all
}

/// What a tool does to a shadow reaches no file, and a start afterwards finds what it would have found.
#[test]
fn a_shadow_is_recovered_and_the_folder_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (last, digest) = {
        let (j, _) = Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options()).unwrap();
        j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
        fill(&j, 20, 1000);
        j.seal(SealFlags::default()).unwrap();
        j.ingest_sealed().unwrap();
        fill(&j, 10, 1000);
        // It waits to be ingested.
        j.seal(SealFlags::default()).unwrap();
        fill(&j, 5, 1000);
        (j.cursors().appended, j.head().unwrap().1)
    };
    // What a crash may leave.
    std::fs::write(dir.path().join("db/ingest/redo-9.sst"), b"half").unwrap();
    let before = tree(dir.path());
    for _ in 0..2 {
        let (j, opened) = Journal::open(Parts::open_shadow(dir.path(), LFC).unwrap(), options()).unwrap();
        assert!(
            matches!(opened, Opened::Recovered { frames: 5, .. }),
            "{opened:?}"
        );
        assert_eq!(
            j.head().unwrap(),
            (
                crate::Position {
                    generation: GenNo(1),
                    seq: last
                },
                digest
            )
        );
        let frames = j.frames_after(WriteSeq(0), u64::MAX).unwrap();
        assert_eq!(frames.last().unwrap().last_seq(), last);
        // Work, too, reaches nothing.
        fill(&j, 30, 1000);
        j.sync().unwrap();
        j.seal(SealFlags::default()).unwrap();
        j.ingest_sealed().unwrap();
        j.drop_undo_through(Ordinal(0)).unwrap();
        drop(j);
        assert!(tree(dir.path()) == before, "the folder has changed");
    }
    let (j, _) = Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options()).unwrap();
    assert_eq!(j.head().unwrap().1, digest);
    // Who has the files to write keeps tools out.
    let refused = Parts::open_shadow(dir.path(), LFC).err().unwrap().to_string();
    assert!(refused.contains("in use by another process"), "{refused}");
}

#[test]
fn a_shadow_of_a_folder_that_was_never_begun_is_a_new_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (_, opened) = Journal::open(Parts::open_shadow(dir.path(), LFC).unwrap(), options()).unwrap();
    assert_eq!(opened, Opened::Fresh);
    assert_eq!(tree(dir.path()).len(), 1);
}

/// A store that has no room for the files of one family, so many times.
struct NoRoomFor {
    inner: Arc<dyn Store>,
    family: Family,
    times: AtomicU32,
}

impl Store for NoRoomFor {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.scan(family, from, to, visit)
    }

    fn first_of_each(
        &self,
        family: Family,
        ranges: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Vec<Option<(Vec<u8>, Bytes)>>, StoreError> {
        self.inner.first_of_each(family, ranges)
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        self.inner.last(family, from, to)
    }

    fn ingest(
        &self,
        family: Family,
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<(), StoreError> {
        let less = |n: u32| n.checked_sub(1);
        let full = family == self.family
            && self
                .times
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok();
        if full {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(StoreError::Io { op: "ingest", source });
        }
        self.inner.ingest(family, pairs)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.inner.commit(batch)
    }

    fn drop_range(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        self.inner.drop_range(family, from, to)
    }
}

/// Bytes of the files that hold containers and undo.
fn stored(dir: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(dir.join("db")).unwrap().map(Result::unwrap);
    let files = files.filter(|f| f.path().extension().is_some_and(|e| e == "sst"));
    files.map(|f| f.metadata().unwrap().len()).sum()
}

/// The frames of a container are stored and its index finds no room, again and again: the room that it takes is that of one.
#[test]
fn t3_attempts_without_room_for_an_index_take_no_room() {
    const CONTAINER: u64 = 10 * 4096;
    let dir = tempfile::tempdir().unwrap();
    let with_room_but = |family, times| {
        let parts = Parts::open_dir(dir.path(), LFC).unwrap();
        let store = NoRoomFor {
            inner: Arc::clone(&parts.store),
            family,
            times: AtomicU32::new(times),
        };
        let parts = Parts {
            store: Arc::new(store),
            ..parts
        };
        Journal::open(parts, options()).unwrap().0
    };
    let j = with_room_but(Family::RedoIndex, 5);
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    for i in 0..10u8 {
        let data: Vec<u8> = (0..4096u32).map(|n| (n * n / 7) as u8 ^ i).collect();
        j.append(vec![write(0, u64::from(i) * 4096, data)], at(1))
            .unwrap();
    }
    j.seal(SealFlags::default()).unwrap();
    for _ in 0..4 {
        assert!(j.ingest_sealed().unwrap_err().is_full());
        assert!(stored(dir.path()) < 2 * CONTAINER, "{}", stored(dir.path()));
    }
    // And a process that ends amid them.
    assert!(j.ingest_sealed().unwrap_err().is_full());
    drop(j);
    let j = with_room_but(Family::UndoIndex, 5);
    while j.ingest_sealed().unwrap().is_some() {}
    assert!(stored(dir.path()) < 2 * CONTAINER, "{}", stored(dir.path()));
    let data = |b: u64| {
        Payload::Data(Bytes::from(
            (0..4096u64).map(|n| (n * n / 5 + b) as u8).collect::<Vec<_>>(),
        ))
    };
    let undo = UndoContainer {
        ordinal: Ordinal(1),
        kind: OrdinalKind::Apply {
            generation: GenNo(1),
            lfc: LfcId(2),
            last_seq: WriteSeq(10),
        },
        blocks: (0..10).map(|b| (VolumeIndex(0), BlockNo(b), data(b))).collect(),
    };
    for _ in 0..5 {
        j.commit_whole(&undo).unwrap_err();
        assert!(stored(dir.path()) < 3 * CONTAINER, "{}", stored(dir.path()));
    }
    j.commit_whole(&undo).unwrap();
    let got = j.first_undo(VolumeIndex(0), BlockNo(3), 1, Ordinal(0), Ordinal(1));
    assert_eq!(got.unwrap(), [Some(data(3))]);
    j.set_applied(Ordinal(1), GenNo(1), LfcId(2), WriteSeq(10))
        .unwrap();
    j.drop_redo_through(GenNo(1), LfcId(2)).unwrap();
    j.drop_undo_through(Ordinal(1)).unwrap();
    assert!(stored(dir.path()) < CONTAINER / 2, "{}", stored(dir.path()));
}

/// Containers of which each touched the first block alone: what is freed ends before the first key of what is kept.
#[test]
fn t9_undo_of_the_first_block_alone_stays_above_the_floor() {
    let dir = tempfile::tempdir().unwrap();
    let j = Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options())
        .unwrap()
        .0;
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    let image = |n: u64| Payload::Data(Bytes::from(vec![n as u8; 4096]));
    for n in 1..=5 {
        let undo = UndoContainer {
            ordinal: Ordinal(n),
            kind: OrdinalKind::Copies,
            blocks: vec![(VolumeIndex(0), BlockNo(0), image(n))],
        };
        j.commit_whole(&undo).unwrap();
        j.set_applied_local(Ordinal(n)).unwrap();
    }
    let check = |j: &Journal, floor: u64| {
        for after in floor..5 {
            let found = j.first_undo(VolumeIndex(0), BlockNo(0), 1, Ordinal(after), Ordinal(5));
            assert_eq!(
                found.unwrap(),
                [Some(image(after + 1))],
                "after {after}, floor {floor}"
            );
        }
    };
    for floor in 1..4 {
        j.drop_undo_through(Ordinal(floor)).unwrap();
        check(&j, floor);
    }
    drop(j);
    // What is below the floor is freed again at each start.
    let j = Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options())
        .unwrap()
        .0;
    check(&j, 3);
}
