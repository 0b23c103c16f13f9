use super::*;
use crate::{
    Oracle,
    seeds::with_seeds,
    workload::{Operation, Shape, Workload, noise},
};
use bytes::Bytes;
use model::{
    ByteRange, Timestamp, VolumeIndex, WriteSeq,
    ports::{Batch, Family, Medium, Store, StoreError},
};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

fn all(medium: &SimMedium) -> Vec<u8> {
    let mut out = vec![0; medium.len() as usize];
    medium.read_at(0, &mut out).unwrap();
    out
}

/// Writes with odd sizes; after a cut every sector is as durable, or as after one of the unsynced writes to it.
#[test]
fn a_cut_leaves_each_sector_at_one_of_its_versions() {
    let (mut lost, mut kept, mut mixed) = (0, 0, 0);
    let runs = with_seeds("cut", 400, |rng| {
        let len = 20_000;
        let power = SimPower::new();
        let medium = power.medium("m", len);
        let mut workload = Workload::new(
            &[len],
            Shape {
                len_max: 5000,
                ..Shape::default()
            },
        );
        // What each sector may be after a cut.
        let mut versions = vec![all(&medium)];
        for _ in 0..rng.random_range(0..30) {
            match workload.next(rng) {
                Operation::Write { offset, len, .. } => medium.write_at(offset, &noise(len, rng)).unwrap(),
                Operation::Zero { range, .. } | Operation::Discard { range, .. } => {
                    medium.write_zeroes(range.start, range.len()).unwrap();
                }
                Operation::Flush => {
                    medium.sync().unwrap();
                    versions.clear();
                }
                _ => {}
            }
            versions.push(all(&medium));
        }
        power.cut(rng);
        assert!(medium.read_at(0, &mut [0]).is_err(), "old handles are dead");
        let medium = medium.reopen();
        let after = all(&medium);
        for at in (0..after.len()).step_by(512) {
            let sector = at..(at + 512).min(after.len());
            assert!(
                versions
                    .iter()
                    .any(|v| v[sector.clone()] == after[sector.clone()]),
                "sector at {at}"
            );
        }
        match (after == versions[0], after == *versions.last().unwrap()) {
            (true, false) => lost += 1,
            (false, true) => kept += 1,
            (false, false) => mixed += 1,
            _ => {}
        }
        assert_eq!(medium.durable(ByteRange::at(0, len)), after);
        power.cut(rng);
        assert_eq!(all(&medium.reopen()), after, "a second cut changes nothing");
    });
    assert!(
        runs < 400 || lost > 20 && kept > 20 && mixed > 80,
        "{lost} {kept} {mixed}"
    );
}

#[test]
fn later_writes_may_survive_without_earlier_ones() {
    let mut seen = [false; 4];
    let runs = with_seeds("reordered", 100, |rng| {
        let power = SimPower::new();
        let medium = power.medium("m", 8192);
        medium.write_at(0, &[1; 512]).unwrap();
        medium.write_at(4096, &[2; 512]).unwrap();
        power.cut(rng);
        let bytes = all(&medium.reopen());
        seen[usize::from(bytes[0]) + usize::from(bytes[4096])] = true;
    });
    assert!(runs < 100 || seen == [true; 4]);
}

#[test]
fn tearing_is_as_told() {
    let torn_within = |tear, unit: usize| {
        let mut torn = 0;
        let runs = with_seeds("tear", 300, |rng| {
            let power = SimPower::new();
            power.set_tear(tear);
            let medium = power.medium("m", 4096);
            medium.write_at(0, &[7; 4096]).unwrap();
            power.cut(rng);
            let bytes = all(&medium.reopen());
            torn += u32::from(bytes.chunks(unit).any(|c| c.iter().any(|b| *b != c[0])));
        });
        (torn, runs >= 300)
    };
    assert_eq!(torn_within(Tear::Whole, 4096).0, 0);
    assert_eq!(torn_within(Tear::Sector, 512).0, 0);
    for (torn, enough) in [torn_within(Tear::Sector, 4096), torn_within(Tear::Byte, 512)] {
        assert!(!enough || torn > 10);
    }
}

/// Of one write over other bytes a cut leaves nothing, all, a beginning, an end, a middle, and bytes that nobody wrote.
#[test]
fn every_kind_of_torn_write_is_drawn() {
    let (mut none, mut whole, mut head, mut end, mut middle, mut bits) = (0, 0, 0, 0, 0, 0);
    let runs = with_seeds("kinds of tearing", 600, |rng| {
        let power = SimPower::new();
        power.set_tear(Tear::Bit);
        let medium = power.medium("m", 4096);
        medium.write_at(0, &[0x0F; 4096]).unwrap();
        medium.sync().unwrap();
        medium.write_at(0, &[0x5A; 4096]).unwrap();
        power.cut(rng);
        let bytes = all(&medium.reopen());
        assert!(
            bytes.iter().all(|b| b & 0x0A == 0x0A && b & 0xA0 == 0),
            "bits that stay"
        );
        let is_new = |b: &u8| *b == 0x5A;
        if bytes.iter().any(|b| *b != 0x0F && !is_new(b)) {
            bits += 1;
            return;
        }
        let ends = (is_new(&bytes[0]), is_new(&bytes[4095]));
        match (ends, bytes.iter().any(is_new), bytes.iter().all(is_new)) {
            (_, false, _) => none += 1,
            (_, _, true) => whole += 1,
            ((true, false), ..) => head += 1,
            ((false, true), ..) => end += 1,
            _ => middle += 1,
        }
    });
    let kinds = [none, whole, head, end, middle, bits];
    assert!(runs < 600 || kinds.iter().all(|n| *n > 3), "{kinds:?}");
}

/// One script frozen at each of its four syncs and not at all: what completed before is there after the cut.
#[test]
fn a_freeze_strikes_the_nth_sync_of_all() {
    for n in 1..=5 {
        with_seeds("freeze", 20, |rng| {
            let power = SimPower::new();
            let (a, b, store) = (power.medium("a", 4096), power.medium("b", 4096), power.store("s"));
            power.freeze_at(n);
            let mut done = 0;
            let mut step = |ok: bool| done += u64::from(ok);
            step(a.write_at(0, &[1]).and_then(|()| a.sync()).is_ok());
            let mut batch = Batch::default();
            batch.put(Family::Meta, b"k", b"v");
            step(store.commit(batch).is_ok());
            step(b.write_at(0, &[2]).and_then(|()| b.sync()).is_ok());
            let mut pairs = [(b"r".to_vec(), Bytes::from_static(b"v"))].into_iter();
            step(store.ingest(Family::Redo, &mut pairs).is_ok());
            assert_eq!(done, n - 1);
            assert_eq!((power.is_off(), power.syncs()), (n < 5, n.min(4)));
            if n < 5 {
                assert!(a.write_at(0, &[9]).is_err() && b.sync().is_err() && a.read_at(0, &mut [0]).is_ok());
            }
            assert_eq!(power.syncs(), n.min(4), "what follows the freeze is not counted");
            power.cut(rng);
            let (a, b, store) = (a.reopen(), b.reopen(), store.reopen());
            assert!(n <= 1 || all(&a)[0] == 1);
            assert!(n <= 2 || store.get(Family::Meta, b"k").unwrap().is_some());
            assert!(n <= 3 || all(&b)[0] == 2);
            assert!(n <= 4 || store.get(Family::Redo, b"r").unwrap().is_some());
        });
    }
}

#[test]
fn a_killed_process_leaves_its_writes_in_the_page_cache() {
    let mut lost = 0u64;
    let runs = with_seeds("kill", 50, |rng| {
        let power = SimPower::new();
        let medium = power.medium("m", 4096);
        medium.write_at(0, b"page cache").unwrap();
        power.kill(rng);
        let medium = medium.reopen();
        assert_eq!(&all(&medium)[..10], b"page cache");
        assert_eq!(medium.durable(ByteRange::at(0, 1)), [0]);
        power.cut(rng);
        lost += u64::from(all(&medium.reopen())[0] == 0);
    });
    assert!(runs < 50 || (5..runs).contains(&lost));
}

/// `rules.md` T1: a waiter that joins a sync that is running is not covered by it.
#[test]
fn a_running_sync_covers_no_later_write() {
    let mut gone = 0;
    let runs = with_seeds("running sync", 40, |rng| {
        let power = SimPower::new();
        let medium = power.medium("m", 8192);
        medium.write_at(0, &[1; 512]).unwrap();
        let held = medium.hold(Op::Sync, 0);
        thread::scope(|scope| {
            let sync = scope.spawn(|| medium.sync());
            assert!(held.wait_for(1));
            medium.write_at(4096, &[2; 512]).unwrap();
            drop(held);
            sync.join().unwrap().unwrap();
        });
        power.cut(rng);
        let bytes = all(&medium.reopen());
        assert_eq!(bytes[0], 1);
        gone += u32::from(bytes[4096] == 0);
    });
    assert!(runs < 40 || gone > 5);
}

#[test]
fn a_held_write_is_seen_in_its_middle() {
    let medium = SimPower::new().medium("m", 8192);
    let held = medium.hold(Op::Write, 1);
    medium.write_at(0, &[1; 4]).unwrap();
    thread::scope(|scope| {
        let write = scope.spawn(|| medium.write_at(0, &[2; 8192]));
        assert!(held.wait_for(1));
        let bytes = all(&medium);
        assert_eq!((bytes[4095], bytes[4096]), (2, 0));
        drop(held);
        write.join().unwrap().unwrap();
    });
    assert_eq!(all(&medium), [2; 8192]);
}

#[test]
fn faults_strike_once_and_where_told() {
    let power = SimPower::new();
    let medium = power.medium("m", 1024);
    medium.fail(Op::Write, 2);
    medium.fail(Op::Read, 1);
    medium.write_at(0, &[1]).unwrap();
    assert_eq!(medium.write_at(0, &[2]).unwrap_err().raw_os_error(), Some(5));
    medium.write_at(1, &[3]).unwrap();
    assert!(medium.read_at(0, &mut [0]).is_err());
    assert_eq!(&all(&medium)[..2], [1, 3], "a failed write changes nothing here");
    medium.fail(Op::Sync, 1);
    assert!(medium.sync().is_err());
    medium.sync().unwrap();
    assert_eq!(medium.durable(ByteRange::at(0, 2)), [1, 3]);
    assert!(medium.write_at(1024, &[1]).is_err() && medium.read_at(u64::MAX, &mut [0]).is_err());
    medium.flip_bit(1, 0);
    assert_eq!((all(&medium)[1], medium.durable(ByteRange::at(1, 1))[0]), (2, 2));
}

/// After a failed sync the next one succeeds and yet the bytes before it may never reach the disk.
#[test]
fn a_failed_sync_may_lose_what_it_was_to_make_durable() {
    let (mut lost, mut kept) = (0, 0);
    let runs = with_seeds("lost at sync", 60, |rng| {
        let power = SimPower::new();
        let medium = power.medium("m", 4096);
        for _ in 0..rng.random_range(1..20) {
            medium.write_at(512, &[3; 512]).unwrap();
        }
        medium.lose_at_sync(1, rng);
        assert!(medium.sync().is_err());
        medium.write_at(1024, &[4; 512]).unwrap();
        medium.sync().unwrap();
        assert_eq!(all(&medium)[512], 3, "reads go on showing it");
        power.cut(rng);
        let bytes = all(&medium.reopen());
        assert_eq!(bytes[1024], 4);
        *(if bytes[512] == 3 { &mut kept } else { &mut lost }) += 1;
    });
    assert!(runs < 60 || lost > 5 && kept > 5, "{lost} {kept}");
}

/// The store against a plain map, through commits, ingests, drops, cuts and kills.
#[test]
fn a_store_behaves_as_a_map() {
    with_seeds("store", 60, |rng| {
        let power = SimPower::new();
        let mut store = power.store("s");
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        // Keys below the floor were dropped: nobody reads there.
        let mut floor = vec![0u8];
        let family = Family::Undo;
        for step in 0..120u32 {
            let key = |rng: &mut StdRng| vec![rng.random_range(0..200u8), rng.random_range(0..3)];
            match rng.random_range(0..12) {
                0..4 => {
                    let mut batch = Batch::default();
                    for _ in 0..rng.random_range(1..6) {
                        let key = key(rng);
                        if key < floor {
                            continue;
                        }
                        if rng.random_range(0..3) == 0 {
                            model.remove(&key);
                            batch.delete(family, key);
                        } else {
                            model.insert(key.clone(), step.to_be_bytes().to_vec());
                            batch.put(family, key, step.to_be_bytes());
                        }
                    }
                    store.commit(batch).unwrap();
                }
                4..6 => {
                    let mut keys: Vec<_> = (0..9).map(|_| key(rng)).filter(|k| *k >= floor).collect();
                    keys.sort();
                    keys.dedup();
                    for key in &keys {
                        model.insert(key.clone(), vec![1, 2]);
                    }
                    let mut pairs = keys.into_iter().map(|k| (k, Bytes::from_static(&[1, 2])));
                    store.ingest(family, &mut pairs).unwrap();
                }
                6 if rng.random_range(0..4) == 0 => {
                    store.set_lazy_drops(rng.random());
                    let to = vec![floor[0].saturating_add(rng.random_range(0..20))];
                    store.drop_range(family, &floor, &to).unwrap();
                    floor = to;
                    model.retain(|key, _| *key >= floor);
                }
                7 if rng.random_range(0..4) == 0 => {
                    if rng.random() {
                        power.cut(rng)
                    } else {
                        power.kill(rng)
                    }
                    assert!(store.get(family, b"k").is_err());
                    store = store.reopen();
                }
                _ => {
                    let (mut from, mut to) = (key(rng).max(floor.clone()), key(rng).max(floor.clone()));
                    if from > to {
                        std::mem::swap(&mut from, &mut to);
                    }
                    let mut seen = Vec::new();
                    let mut visit = |k: &[u8], v: &[u8]| {
                        seen.push((k.to_vec(), v.to_vec()));
                        seen.len() < 10
                    };
                    store.scan(family, &from, &to, &mut visit).unwrap();
                    let expected: Vec<_> = model
                        .range(from.clone()..to.clone())
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect();
                    assert_eq!(seen, expected[..expected.len().min(10)]);
                    let plain = |p: Option<(Vec<u8>, Bytes)>| p.map(|(k, v)| (k, v.to_vec()));
                    assert_eq!(
                        plain(store.last(family, &from, &to).unwrap()),
                        expected.last().cloned()
                    );
                    let ranges = [(from.clone(), to.clone()), (to.clone(), vec![255])];
                    let firsts = store.first_of_each(family, &ranges).unwrap();
                    assert_eq!(plain(firsts[0].clone()), expected.first().cloned());
                    let behind = model.range(to.clone()..vec![255]).next();
                    assert_eq!(
                        plain(firsts[1].clone()),
                        behind.map(|(k, v)| (k.clone(), v.clone()))
                    );
                    assert_eq!(
                        store.get(family, &from).unwrap().map(|v| v.to_vec()),
                        model.get(&from).cloned()
                    );
                }
            }
        }
        assert!(store.dump(Family::Redo).is_empty());
    });
}

#[test]
fn a_commit_struck_by_the_freeze_is_all_or_nothing() {
    let mut there = [0; 2];
    let runs = with_seeds("struck commit", 60, |rng| {
        let power = SimPower::new();
        let store = power.store("s");
        let mut batch = Batch::default();
        for key in 0..10u8 {
            batch.put(Family::Catalog, [key], [key]);
        }
        power.freeze_at(1);
        assert!(matches!(store.commit(batch), Err(StoreError::Io { .. })));
        assert!(
            store.dump(Family::Catalog).is_empty(),
            "not visible before it is durable"
        );
        if rng.random() {
            power.cut(rng)
        } else {
            power.kill(rng)
        }
        let found = store.dump(Family::Catalog).len();
        assert!(found == 0 || found == 10);
        there[found / 10] += 1;
    });
    assert!(runs < 60 || there[0] > 10 && there[1] > 10);
}

/// `rules.md` T9: deletes are not synced, so dropped keys may be there again; newer values are never undone by that.
#[test]
fn dropped_keys_may_come_back_at_a_cut() {
    let (mut back, mut gone) = (0, 0);
    let runs = with_seeds("drops", 40, |rng| {
        let power = SimPower::new();
        let store = power.store("s");
        let mut pairs = (0..100u8).map(|k| (vec![k], Bytes::from_static(b"old")));
        store.ingest(Family::Undo, &mut pairs).unwrap();
        store.drop_range(Family::Undo, &[0], &[50]).unwrap();
        assert_eq!(store.dump(Family::Undo).len(), 50);
        let mut batch = Batch::default();
        batch.put(Family::Undo, [1], *b"new");
        batch.delete(Family::Undo, [2]);
        store.commit(batch).unwrap();
        power.kill(rng);
        let store = store.reopen();
        assert_eq!(store.dump(Family::Undo).len(), 51);
        power.cut(rng);
        let store = store.reopen();
        back += store.dump(Family::Undo).len() - 51;
        gone += 99 - store.dump(Family::Undo).len();
        assert_eq!(store.get(Family::Undo, &[1]).unwrap().unwrap(), "new");
        assert_eq!(store.get(Family::Undo, &[2]).unwrap(), None);
    });
    assert!(runs < 40 || back > 100 && gone > 100);
}

/// `rules.md` T7: a damaged write-ahead log takes the newest commits back without a word.
#[test]
fn commits_can_be_lost_silently() {
    let power = SimPower::new();
    let store = power.store("s");
    for n in 0..5u8 {
        let mut batch = Batch::default();
        batch.put(Family::Meta, *b"role", [n]);
        store.commit(batch).unwrap();
    }
    store.lose_commits(2);
    assert_eq!(store.get(Family::Meta, b"role").unwrap().unwrap(), &[2][..]);
    assert!(store.flip_bit(Family::Meta, b"role", 0, 0));
    assert_eq!(store.get(Family::Meta, b"role").unwrap().unwrap(), &[3][..]);
}

/// A machine is what it was: media and stores together, whatever was synced since; what was only made since holds nothing.
#[test]
fn a_machine_can_be_put_back() {
    let power = SimPower::new();
    let (medium, store) = (power.medium("m", 4096), power.store("s"));
    let put = |store: &SimStore, byte: u8| {
        let mut batch = Batch::default();
        batch.put(Family::Meta, *b"k", [byte]);
        store.commit(batch).unwrap();
    };
    medium.write_at(0, &[1; 8]).unwrap();
    medium.sync().unwrap();
    medium.write_at(0, &[2; 8]).unwrap();
    put(&store, 1);
    let image = power.image();
    medium.sync().unwrap();
    put(&store, 2);
    let later = power.medium("later", 512);
    later.write_at(0, &[3; 512]).unwrap();
    later.sync().unwrap();
    power.freeze_now();
    power.put_back(&image);
    assert!(!power.is_off());
    assert!(medium.write_at(0, &[4; 8]).is_err(), "its process is gone");
    let range = ByteRange::at(0, 8);
    assert_eq!(medium.reopen().durable(range), [1; 8]);
    assert_eq!(medium.reopen().live(range), [1; 8]);
    assert_eq!(later.reopen().live(range), [0; 8]);
    let store = store.reopen();
    assert_eq!(store.get(Family::Meta, b"k").unwrap().unwrap(), &[1][..]);
    put(&store, 5);
    power.put_back(&image);
    assert_eq!(store.reopen().get(Family::Meta, b"k").unwrap().unwrap(), &[1][..]);
}

#[test]
fn bad_calls_are_refused() {
    let store = SimPower::new().store("s");
    let pair = |k: &[u8]| (k.to_vec(), Bytes::new());
    for pairs in [[pair(b"b"), pair(b"a")], [pair(b"a"), pair(b"a")]] {
        assert!(store.ingest(Family::Redo, &mut pairs.into_iter()).is_err());
    }
    assert!(
        store
            .first_of_each(Family::Redo, &[(vec![2], vec![3]), (vec![1], vec![2])])
            .is_err()
    );
}

/// The kit as a whole: a toy journal (append, sync, acknowledge) frozen at every sync, cut, reopened, and asked about.
#[test]
fn a_toy_journal_keeps_what_it_acknowledged() {
    const VOLUME: VolumeIndex = VolumeIndex(0);
    const LEN: u64 = 64 * 512;
    let frozen = AtomicU64::new(0);
    let runs = with_seeds("toy journal", 150, |rng| {
        let power = SimPower::new();
        let mut oracle = Oracle::new(&[LEN]);
        let mut flushed = WriteSeq(0);
        power.freeze_at(rng.random_range(1..20));
        let medium = power.medium("m", LEN);
        for n in 1..=LEN / 512 {
            // Appends only: each sector is written once, so a prefix is what the syncs promise and no more.
            let ok = medium
                .write_at((n - 1) * 512, &[n as u8; 512])
                .and_then(|()| medium.sync());
            oracle.write(WriteSeq(n), Timestamp(n), VOLUME, (n - 1) * 512, &[n as u8; 512]);
            if ok.is_err() {
                frozen.fetch_add(1, Ordering::Relaxed);
                break;
            }
            flushed = WriteSeq(n);
        }
        power.cut(rng);
        let medium = medium.reopen();
        let spans = oracle
            .prefixes(&mut |_, at, out: &mut [u8]| medium.read_at(at, out))
            .unwrap();
        assert!(spans.last().unwrap().1 >= flushed, "{spans:?} {flushed}");
    });
    assert_eq!(frozen.into_inner(), runs);
}
