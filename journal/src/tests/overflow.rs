//! `rules.md` C4 and invariant 6: what gives way is stale before it goes, and only what must be.

use super::{
    tails::{cut_at_every_sync, with_cuts},
    *,
};
use crate::{
    Cell, MapShape, SealFlags,
    tap::{Tap, TapLimits},
};
use model::{ByteRange, GenNo, LfcId};

const V: VolumeIndex = VolumeIndex(0);
const REGION: u64 = 32 << 10;
const FIRST: LfcId = LfcId(2);

/// Two containers of five records each, in the store and on the volumes; the second writes where the first one did and one
/// region further. The map is clean.
fn prepare() -> (Lab, Journal) {
    let lab = Lab::new();
    let j = lab.fresh();
    let shape = MapShape {
        size: 100 * REGION,
        region_size: REGION,
        default: Cell::Clean,
    };
    j.set_map(V, shape).unwrap();
    for n in 0..2 {
        for i in 0..5 {
            let at = if i == 4 { n * REGION } else { i * 4096 };
            let now = Timestamp(j.cursors().appended.0 * 1_000_000_000);
            j.append(vec![write(0, at, vec![7; 600])], now).unwrap();
        }
        j.seal(SealFlags::default()).unwrap();
    }
    while j.ingest_sealed().unwrap().is_some() {}
    let last = j.cursors().appended;
    j.set_written_back(last);
    j.set_checkpointed(last).unwrap();
    (lab, j)
}

fn is_held(j: &Journal) -> bool {
    j.frames_of(GenNo(1), FIRST).is_ok()
}

/// Regions first, the floor second, the frames last: cut anywhere, what is not there is stale.
#[test]
fn c4_regions_are_stale_before_their_records_go() {
    let cuts = with_cuts("c4", |rng| {
        let history = |j: &Journal| j.give_way().map(drop);
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            let cell = j.cell(V, 0).unwrap();
            assert!(is_held(&j) || cell == Cell::Stale(WriteSeq(5)), "{cell:?}");
            assert_eq!(j.cell(V, REGION), Some(Cell::Clean), "only what it touched");
        };
        cut_at_every_sync(rng, prepare, history, check)
    });
    assert!(cuts >= 4, "{cuts} cuts");
}

/// A copy was taken at 6. Overflow drops a container that ends at 10 and touched the region. The acknowledgement of the
/// copy comes: the region is stale still.
#[test]
fn c4_a_copy_clears_no_region_that_lost_more_since() {
    let (_lab, j) = prepare();
    j.give_way().unwrap().unwrap();
    j.give_way().unwrap().unwrap();
    assert_eq!(j.cell(V, 0), Some(Cell::Stale(WriteSeq(10))));
    let region = ByteRange::at(0, REGION);
    j.clear_if_older(&[(V, region, WriteSeq(6))]).unwrap();
    assert_eq!(j.cell(V, 0), Some(Cell::Stale(WriteSeq(10))));
    j.clear_if_older(&[(V, region, WriteSeq(11))]).unwrap();
    assert_eq!(j.cell(V, 0), Some(Cell::Clean));
    assert_eq!(j.cell(V, REGION), Some(Cell::Stale(WriteSeq(10))));
}

/// Staleness stands in for a peer and never for the local volume.
#[test]
fn i6_what_the_volumes_do_not_hold_does_not_give_way() {
    let lab = Lab::new();
    let j = lab.fresh();
    let last = fill(&j, 5, 600);
    j.seal(SealFlags::default()).unwrap();
    while j.ingest_sealed().unwrap().is_some() {}
    j.set_written_back(last);
    j.set_checkpointed(WriteSeq(4)).unwrap();
    assert_eq!(j.give_way().unwrap(), None);
    assert!(is_held(&j));
}

/// What the peer has received goes without a mark.
#[test]
fn i6_what_the_peer_has_leaves_no_region_stale() {
    let (_lab, j) = prepare();
    j.set_peer(WriteSeq(7), WriteSeq(0), false).unwrap();
    let gave = j.give_way().unwrap().unwrap();
    assert!(!gave.stale && gave.row.last_seq == WriteSeq(5));
    assert_eq!(j.stale_bytes(V), 0);
    assert!(
        j.give_way().unwrap().unwrap().stale,
        "the peer has a part of it only"
    );
    assert_eq!(j.stale_bytes(V), 2 * REGION);
    assert_eq!(j.give_way().unwrap(), None, "nothing is left");
    assert!(j.poisoned().is_none());
}

/// Records in the open container, and a sealed one that waits in its tail, on the volumes; the store has no room.
fn without_room() -> (Lab, Journal) {
    let (lab, j) = prepare();
    fill(&j, 3, 600);
    j.seal(SealFlags::default()).unwrap();
    let last = fill(&j, 3, 600);
    j.sync().unwrap();
    j.set_written_back(last);
    j.set_checkpointed(last).unwrap();
    lab.store().set_full(true);
    j.set_gives_way(true);
    (lab, j)
}

/// The next container needs the tail, and the store has no room for what is in it: the oldest give way, and then that one.
#[test]
fn i6_without_room_containers_give_way_and_no_writer_fails() {
    let (lab, j) = without_room();
    j.seal(SealFlags::default()).unwrap();
    let gave: Vec<_> = j
        .take_gave_way()
        .iter()
        .map(|g| (g.row.last_seq.0, g.stale))
        .collect();
    assert_eq!(gave, [(5, true), (10, true), (13, true)]);
    assert_eq!(j.cell(V, 0), Some(Cell::Stale(WriteSeq(13))));
    assert!(j.take_gave_way().is_empty() && j.poisoned().is_none());
    fill(&j, 3, 600);
    // There is room again: what waits now is stored.
    lab.store().set_full(false);
    j.seal(SealFlags::default()).unwrap();
    assert!(j.take_gave_way().is_empty());
    while j.ingest_sealed().unwrap().is_some() {}
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!(j.cell(V, 0), Some(Cell::Stale(WriteSeq(13))));
    assert_eq!(j.frames_after(WriteSeq(13), u64::MAX).unwrap().len(), 6);
}

/// A cut anywhere while they give way: what is not there is stale.
#[test]
fn i6_a_cut_while_there_is_no_room_loses_no_region() {
    let cuts = with_cuts("full", |rng| {
        let history = |j: &Journal| j.seal(SealFlags::default()).map(drop);
        let check = |lab: &Lab| {
            lab.store().set_full(false);
            let (j, _) = lab.open().unwrap();
            let cell = j.cell(V, 0).unwrap();
            let held = |lfc| j.frames_of(GenNo(1), LfcId(lfc)).is_ok();
            for (lfc, last) in [(2, 5), (4, 10), (6, 13)] {
                let stale = matches!(cell, Cell::Stale(seq) if seq.0 >= last);
                assert!(held(lfc) || stale, "container {lfc}: {cell:?}");
            }
        };
        cut_at_every_sync(rng, without_room, history, check)
    });
    assert!(cuts >= 6, "{cuts} cuts");
}

/// Without room nothing gives way that the volumes do not hold, nor on a host that was not told to: the caller waits, and
/// nothing is poisoned.
#[test]
fn i6_without_room_what_is_needed_here_waits() {
    let (lab, j) = without_room();
    j.set_gives_way(false);
    let full = j.seal(SealFlags::default()).unwrap_err();
    assert!(full.is_full() && j.poisoned().is_none(), "{full}");
    let full = j.ingest_sealed().unwrap_err();
    assert!(full.is_full() && is_held(&j), "{full}");
    lab.store().set_full(false);
    j.seal(SealFlags::default()).unwrap();
    fill(&j, 3, 600);
    j.seal(SealFlags::default()).unwrap();
    let last = fill(&j, 3, 600);
    lab.store().set_full(true);
    j.set_gives_way(true);
    // What waits in the tail is not on the volumes.
    let full = j.seal(SealFlags::default()).unwrap_err();
    assert!(full.is_full() && j.poisoned().is_none(), "{full}");
    assert_eq!(j.cursors().appended, last);
}

/// The acknowledgement came after the container had given way: a peer that has all of it lacks nothing.
#[test]
fn c4_a_late_word_of_the_peer_clears_what_it_has() {
    let (_lab, j) = prepare();
    assert!(j.give_way().unwrap().unwrap().stale);
    assert!(!j.forget_covered().unwrap());
    j.set_peer(WriteSeq(4), WriteSeq(0), false).unwrap();
    assert!(!j.forget_covered().unwrap(), "record 5 is dropped and not there");
    assert_eq!(j.stale_bytes(V), REGION);
    j.set_peer(WriteSeq(5), WriteSeq(0), false).unwrap();
    assert!(j.forget_covered().unwrap());
    assert_eq!(j.stale_bytes(V), 0);
}

/// The receiver ends the span at a gap while retention forgets an older one: neither takes the other's change back.
#[test]
fn c5_the_end_of_a_span_is_not_lost_to_retention() {
    let (_lab, j) = prepare();
    let at = |seq| crate::Position {
        generation: GenNo(1),
        seq: WriteSeq(seq),
    };
    for n in (10..10_000).step_by(10) {
        j.set_consistent_until(at(n - 1)).unwrap();
        j.forget_spans_below(at(n)).unwrap();
        j.set_consistent_from(at(n)).unwrap();
        j.set_consistent_until(at(n + 1)).unwrap();
        j.set_consistent_from(at(n + 2)).unwrap();
        let gate = std::sync::Barrier::new(2);
        std::thread::scope(|s| {
            s.spawn(|| {
                gate.wait();
                j.forget_spans_below(at(n + 2)).unwrap();
            });
            s.spawn(|| {
                gate.wait();
                j.set_consistent_until(at(n + 5)).unwrap();
            });
        });
        let last = j.consistent().pop().unwrap();
        assert_eq!(last.until, Some(at(n + 5)));
    }
}

/// A writer waits for room while the volumes catch up: whatever moment a checkpoint comes at, the containers that are older than the
/// one in the tail give way before it, with their regions.
#[test]
fn i6_a_checkpoint_amid_the_look_for_room_skips_no_container() {
    for _ in 0..300 {
        let (lab, j) = prepare();
        // Two containers of which nothing is on the volumes, at regions that nothing else touches; the second waits in its tail.
        for region in [20, 30] {
            j.append(vec![write(0, region * REGION, vec![7; 600])], Timestamp(9))
                .unwrap();
            while j.ingest_sealed().unwrap().is_some() {}
            j.seal(SealFlags::default()).unwrap();
        }
        j.append(vec![write(0, 40 * REGION, vec![7; 600])], Timestamp(9))
            .unwrap();
        let last = j.sync().unwrap();
        while j.give_way().unwrap().is_some() {}
        lab.store().set_full(true);
        j.set_gives_way(true);
        std::thread::scope(|s| {
            s.spawn(|| {
                j.set_written_back(last);
                j.set_checkpointed(last).unwrap();
            });
            while let Err(e) = j.seal(SealFlags::default()) {
                assert!(e.is_full(), "{e}");
            }
        });
        for (region, lfc) in [(20, 6), (30, 8)] {
            let cell = j.cell(V, region * REGION).unwrap();
            let held = j.frames_of(GenNo(1), LfcId(lfc)).is_ok();
            assert!(
                held || cell != Cell::Clean,
                "container {lfc} went, and its region is clean"
            );
        }
    }
}

/// Who waits for room holds the owner, and others wait for that: they come to an end when they are to.
#[test]
fn who_waits_for_room_is_let_go() {
    let (lab, j) = without_room();
    j.set_gives_way(false);
    let medium: Arc<dyn model::ports::Medium> = Arc::new(lab.power.medium("volume", 100 * REGION));
    let tap = Tap::new(Arc::new(j), [(V, medium)], TapLimits::default());
    std::thread::scope(|s| {
        let waits = s.spawn(|| tap.seal_now());
        while tap.no_room().is_none() {
            std::thread::yield_now();
        }
        let behind = s.spawn(|| tap.mark("behind".into(), String::new()));
        tap.let_go();
        assert!(waits.join().unwrap().unwrap_err().is_full());
        assert!(behind.join().unwrap().unwrap_err().is_full());
    });
    lab.store().set_full(false);
    tap.seal_now().unwrap().unwrap();
    assert_eq!(tap.no_room(), None);
}

/// A peer that was put back to an older state says so while what it had acknowledged gives way: what it says now stands, and what gives
/// way from then on is stale.
#[test]
fn c4_a_peer_that_goes_back_is_not_overheard() {
    for _ in 0..300 {
        let (_lab, j) = prepare();
        j.set_peer(WriteSeq(10), WriteSeq(0), false).unwrap();
        let gate = std::sync::Barrier::new(2);
        std::thread::scope(|s| {
            s.spawn(|| {
                gate.wait();
                j.reset_peer(WriteSeq(5), WriteSeq(0)).unwrap();
            });
            gate.wait();
            while j.give_way().unwrap().is_some() {}
        });
        assert_eq!(j.cursors().received_by_peer, WriteSeq(5));
    }
}

/// The same where redo is dropped because the peer has applied it.
#[test]
fn t8_what_a_peer_that_goes_back_lacks_is_not_dropped() {
    for _ in 0..300 {
        let (_lab, j) = prepare();
        while j.ingest_sealed().unwrap().is_some() {}
        j.set_peer(WriteSeq(10), WriteSeq(10), false).unwrap();
        let gate = std::sync::Barrier::new(2);
        let floor = std::thread::scope(|s| {
            let back = s.spawn(|| {
                gate.wait();
                j.reset_peer(WriteSeq(3), WriteSeq(3)).unwrap();
                j.floors().redo_seq.seq
            });
            gate.wait();
            j.drop_applied(WriteSeq(10)).unwrap();
            back.join().unwrap()
        });
        assert_eq!(j.cursors().received_by_peer, WriteSeq(3));
        assert_eq!(j.floors().redo_seq.seq, floor, "dropped after it had said so");
    }
}
