//! The decision as a table and against a simple model; the floor's move on simulated media, cut at every sync.

use super::{
    Broken, Space, Wanted,
    decide::{Applied, Claim, Decision, Kept, Step, decide},
};
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{
    Journal, JournalError, PinKind, PinRow, Position, RestorePhase, RestoreRow, SealFlags,
    rows::{Consistent, Floors},
    tests::{Lab, at, write},
};
use bytes::Bytes;
use model::{
    BlockNo, GenNo, Level, LfcId, Ordinal, Payload, Point, RedoSpan, Timestamp, VolumeIndex, WriteSeq,
    ports::{Family, History, HistoryError, OrdinalKind},
};
use rand::{Rng, seq::IndexedRandom};
use testkit::{sim::Tear, with_seeds};

const G: GenNo = GenNo(1);
/// Container `n` (from 1): ordinal n, LFC 2n, records 10n-9..=10n, ends in second 10n, 100 bytes.
fn step(n: u64) -> Step {
    Step {
        ordinal: Ordinal(n),
        applied: Some(Applied {
            generation: G,
            lfc: LfcId(2 * n),
            first_seq: WriteSeq(10 * n - 9),
            last_seq: WriteSeq(10 * n),
        }),
        end: at(10 * n),
        bytes: 100,
    }
}

fn kept(steps: u64) -> Kept {
    Kept {
        steps: (1..=steps).map(step).collect(),
        now: at(10 * steps),
        ..Kept::default()
    }
}

/// The point after record `seq`, as the window makes it.
fn point(seq: u64) -> Point {
    let base = seq / 10;
    let redo = RedoSpan {
        generation: G,
        after: WriteSeq(10 * base),
        upto: WriteSeq(seq),
    };
    Point {
        generation: G,
        seq: WriteSeq(seq),
        lfc: LfcId(2 * seq.div_ceil(10)),
        time: at(seq),
        base: Ordinal(base),
        redo: (!seq.is_multiple_of(10)).then_some(redo).into_iter().collect(),
    }
}

fn pin(id: u64, kind: PinKind, seq: u64, expires: Option<u64>) -> PinRow {
    PinRow {
        id,
        kind,
        point: point(seq),
        target: format!("seq:{seq}"),
        owner: "op@rec".into(),
        created: at(1),
        expires: expires.map(at),
    }
}

fn snapshot(id: u64, seq: u64) -> PinRow {
    let kind = PinKind::Snapshot {
        level: Level(10),
        name: None,
    };
    pin(id, kind, seq, None)
}

fn mark_pin(id: u64, seq: u64) -> PinRow {
    let name = "good".into();
    pin(id, PinKind::Mark { name }, seq, Some(10_000))
}

fn seconds(age: u64) -> Wanted {
    Wanted {
        age_ns: Some(age * Timestamp::SECOND_NS),
        bytes: None,
        ..Wanted::default()
    }
}

fn decided(kept: &Kept, wanted: &Wanted, excess: u64) -> Decision {
    decide(kept, &kept.claims(wanted), excess)
}

#[test]
fn k1_what_is_beyond_the_window_goes_and_its_start_stays_reachable() {
    let kept = kept(10);
    // Second 70 is the oldest that is promised: the end of container 7 stays, as the floor's own boundary.
    assert_eq!(decided(&kept, &seconds(30), 0).go, 7);
    assert_eq!(
        decided(&kept, &seconds(31), 0).go,
        6,
        "second 69 is in container 7"
    );
    assert_eq!(decided(&kept, &seconds(100), 0).go, 0);
    assert_eq!(decided(&kept, &seconds(0), 0).go, 10);
    assert_eq!(
        decided(&kept, &Wanted::default(), 0).go,
        0,
        "no window: all is kept"
    );
    let bytes = |bytes| Wanted {
        age_ns: None,
        bytes: Some(bytes),
        ..Wanted::default()
    };
    assert_eq!(decided(&kept, &bytes(300), 0).go, 7);
    assert_eq!(decided(&kept, &bytes(301), 0).go, 6);
    let both = Wanted {
        bytes: Some(500),
        ..seconds(30)
    };
    assert_eq!(decided(&kept, &both, 0).go, 5, "what either promises is kept");
}

#[test]
fn k2_age_counts_from_the_newest_received_write() {
    let mut kept = kept(10);
    // Whatever the clock says: only a newer write makes anything older.
    assert_eq!(decided(&kept, &seconds(100), 0).go, 0);
    kept.now = at(150);
    assert_eq!(decided(&kept, &seconds(100), 0).go, 5);
    kept.pins = vec![pin(1, PinKind::Released, 20, Some(151))];
    assert_eq!(
        decided(&kept, &seconds(100), 0).go,
        2,
        "it does not expire before second 151"
    );
    kept.now = at(151);
    assert_eq!(decided(&kept, &seconds(100), 0).go, 5);
}

#[test]
fn k1_a_clock_set_back_makes_nothing_look_older() {
    let mut kept = kept(10);
    // Containers 6 to 10 were written again in seconds 10 to 50.
    for (i, step) in kept.steps.iter_mut().enumerate().skip(5) {
        step.end = at(10 * (i as u64 - 4));
    }
    kept.now = at(50);
    assert_eq!(
        decided(&kept, &seconds(20), 0).go,
        3,
        "container 4 ends after second 30"
    );
}

#[test]
fn k1_containers_before_the_first_consistent_point_are_nobodys() {
    let mut kept = kept(10);
    let from = |seq| Consistent {
        from: Position {
            generation: G,
            seq: WriteSeq(seq),
        },
        until: None,
    };
    kept.consistent = vec![from(30)];
    assert_eq!(decided(&kept, &seconds(1000), 0).go, 3);
    kept.consistent = vec![from(31)];
    assert_eq!(
        decided(&kept, &seconds(1000), 0).go,
        3,
        "record 31 is in container 4"
    );
}

#[test]
fn k1_pins_hold_what_their_points_stand_on() {
    let go = |pin| {
        let mut kept = kept(10);
        kept.pins = vec![pin];
        decided(&kept, &seconds(10), 0).go
    };
    assert_eq!(go(snapshot(1, 40)), 4, "a boundary needs the undo after it");
    assert_eq!(go(snapshot(1, 43)), 4, "a point inside needs its redo too");
    assert_eq!(go(snapshot(1, 100)), 9, "a point in the window costs nothing");
    // After a restore the same record stands on a later base, and still on the redo of the old container.
    let mut late = snapshot(1, 43);
    late.point.base = Ordinal(8);
    assert_eq!(go(late), 4);
}

/// A history of ten containers with a claim of every class on it, the dearest on the oldest.
fn crowded() -> Kept {
    let mut kept = kept(10);
    kept.pins = vec![
        mark_pin(3, 20),
        snapshot(2, 60),
        pin(1, PinKind::Released, 80, Some(10_000)),
        pin(9, PinKind::Released, 10, Some(100)),
    ];
    kept.consistent = vec![Consistent {
        from: Position {
            generation: G,
            seq: WriteSeq(1),
        },
        until: Some(Position {
            generation: G,
            seq: WriteSeq(95),
        }),
    }];
    kept
}

#[test]
fn k1_the_order_of_sacrifice() {
    let kept = crowded();
    let wanted = seconds(60);
    let pin = Broken::Pin;
    // Beyond the window and what only the expired pin holds: two containers, held by nobody.
    let calm = decided(&kept, &wanted, 0);
    assert_eq!((calm.go, calm.broken.clone(), calm.stuck), (2, vec![], false));
    assert_eq!(decided(&kept, &wanted, 200), calm);
    // Then what stands at the floor, and never more than is needed: the mark, the window, the view, the release pin, and last of
    // all the resync's point.
    let rows = [
        (201, 3, vec![pin(3)]),
        (400, 4, vec![pin(3)]),
        (401, 5, vec![Broken::Window, pin(3)]),
        (600, 6, vec![Broken::Window, pin(3)]),
        (601, 7, vec![Broken::Window, pin(3), pin(2)]),
        (801, 9, vec![Broken::Window, pin(3), pin(2), pin(1)]),
        (
            901,
            10,
            vec![Broken::Window, pin(3), pin(2), pin(1), Broken::Resync],
        ),
    ];
    for (excess, go, broken) in rows {
        let decision = decided(&kept, &wanted, excess);
        assert_eq!(
            (decision.go, decision.broken, decision.stuck),
            (go, broken, false),
            "{excess}"
        );
    }
    assert!(decided(&kept, &wanted, 1001).stuck);
}

/// All copies are here, and what came with them is not applied: no point behind the resync can be shown, so the one before it stays.
#[test]
fn k1_the_point_before_a_resync_stays_until_there_is_another() {
    let mut kept = crowded();
    kept.pins.clear();
    let newest = Consistent {
        from: Position {
            generation: G,
            seq: WriteSeq(120),
        },
        until: None,
    };
    kept.consistent.push(newest);
    let nothing = Wanted {
        bytes: Some(0),
        ..Wanted::default()
    };
    assert_eq!(
        decided(&kept, &nothing, 0).go,
        10,
        "shown, and the window wants none before"
    );
    kept.awaits_newest = true;
    assert_eq!(decided(&kept, &nothing, 0).go, 9);
    assert_eq!(decided(&kept, &nothing, 901).broken, [Broken::Resync]);
}

#[test]
fn k1_a_failover_restore_is_never_broken() {
    let mut kept = kept(10);
    let row = RestoreRow {
        target: point(43),
        text: "seq:43".into(),
        from: Ordinal(8),
        cursor: (VolumeIndex(0), BlockNo(0)),
        phase: RestorePhase::Done,
        undo_from: None,
        only: None,
    };
    kept.restore = Some(row.clone());
    let decision = decided(&kept, &seconds(0), 10_000);
    assert_eq!((decision.go, decision.stuck), (4, true));
    // The point before it, where the undo goes back to, is kept as well.
    kept.restore = Some(RestoreRow {
        target: Point {
            base: Ordinal(9),
            ..point(90)
        },
        ..row
    });
    assert_eq!(decided(&kept, &seconds(0), 10_000).go, 8);
    kept.restore = None;
    kept.pins = vec![pin(1, PinKind::Restore, 40, Some(10_000))];
    assert_eq!(decided(&kept, &seconds(0), 10_000).go, 4);
}

/// Every choice there is, the smallest that will do first: what [`decide`] must find without trying them all.
fn simple(kept: &Kept, claims: &[Claim], excess: u64) -> (usize, bool) {
    let breaks = |go: usize| claims.iter().filter(move |c| c.keeps < go);
    let freed = |go: usize| kept.steps[..go].iter().map(|s| s.bytes).sum::<u64>();
    let all = 0..=kept.steps.len();
    let calm = all.clone().filter(|go| breaks(*go).count() == 0).max().unwrap();
    let may: Vec<usize> = all.filter(|go| breaks(*go).all(|c| c.name.is_some())).collect();
    match may.iter().find(|go| freed(**go) >= excess) {
        Some(go) => (calm.max(*go), false),
        None => (*may.last().unwrap(), true),
    }
}

#[test]
fn k1_random_histories_against_every_choice() {
    let mut broken = 0;
    let tried = with_seeds("retention: random decisions", 4000, |rng| {
        let mut kept = kept(rng.random_range(0..12));
        for step in &mut kept.steps {
            step.bytes = *[0, 1, 7, 100, 5000].choose(rng).unwrap();
        }
        let claims: Vec<Claim> = (0..rng.random_range(0..7))
            .map(|id| Claim {
                name: rng.random_bool(0.8).then_some(Broken::Pin(id)),
                keeps: rng.random_range(0..=kept.steps.len()),
            })
            .collect();
        let excess = *[0, 0, 1, 50, 300, 5200, 20_000].choose(rng).unwrap();
        let decision = decide(&kept, &claims, excess);
        assert_eq!((decision.go, decision.stuck), simple(&kept, &claims, excess));
        for claim in &claims {
            let told = claim
                .name
                .as_ref()
                .is_some_and(|name| decision.broken.contains(name));
            assert_eq!(told, claim.keeps < decision.go, "{claim:?} in {decision:?}");
        }
        broken += decision.broken.len();
    });
    println!("{tried} decisions, {broken} claims broken");
    assert!(tried < 4000 || broken > 500);
}

#[test]
fn k1_space_is_a_limit_or_the_disk() {
    assert_eq!(Space::Limit(100).excess(130), 30);
    assert_eq!(Space::Limit(100).excess(100), 0);
    let disk = |free| Space::Disk { free, reserve: 50 };
    assert_eq!((disk(20).excess(1000), disk(50).excess(1000)), (30, 0));
}

const BLOCKS: u64 = 6;

/// One container of a block write a second, sealed and applied: block b becomes the container's number.
fn container(j: &Journal, n: u64) -> Result<(), JournalError> {
    for b in 0..BLOCKS {
        j.append(vec![write(0, b * 4096, vec![n as u8; 4096])], at(10 * n + b))?;
    }
    let row = j.seal(SealFlags::default())?;
    j.ingest_sealed()?;
    let ordinal = j.cursors().applied_ordinal.next();
    if j.published() < ordinal {
        let image = match n {
            1 => Payload::Zero,
            n => Payload::Data(Bytes::from(vec![n as u8 - 1; 4096])),
        };
        let blocks = (0..BLOCKS).map(|b| (VolumeIndex(0), BlockNo(b), image.clone()));
        let kind = OrdinalKind::Apply {
            generation: row.generation,
            lfc: row.lfc,
            last_seq: row.last_seq,
        };
        let undo = UndoContainer {
            ordinal,
            kind,
            blocks: blocks.collect(),
        };
        j.commit_whole(&undo)
            .map_err(|e| JournalError::Refused(e.to_string()))?;
    }
    j.set_applied(ordinal, row.generation, row.lfc, row.last_seq)
}

/// What the journal shows of block 0 after every container: a value, or that it is gone.
fn shown(j: &Journal, containers: u64) -> Vec<Option<u8>> {
    let mut all = Vec::new();
    for n in 0..=containers {
        let upto = j.published();
        let got = match Ordinal(n) < upto {
            false => Ok(Some(containers as u8)),
            true => j
                .first_undo(VolumeIndex(0), BlockNo(0), 1, Ordinal(n), upto)
                .map(|found| match &found[0] {
                    Some(Payload::Data(d)) => Some(d[0]),
                    Some(Payload::Zero) => Some(0),
                    None => None,
                }),
        };
        match got {
            Ok(value) => all.push(value),
            Err(HistoryError::Gone(_)) => all.push(None),
            Err(e) => panic!("{e}"),
        }
    }
    all
}

#[test]
fn k1_redo_and_undo_of_a_container_go_together() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    let held = j.held_bytes().unwrap();
    let done = j
        .retain(&seconds(29), Space::Limit(u64::MAX), Vec::new())
        .unwrap();
    // The newest write is of second 85: container 5, which ends in second 55, goes, 6 does not.
    assert_eq!(
        (done.freed + done.held, j.held_bytes().unwrap()),
        (held, done.held)
    );
    assert_eq!(j.floors().undo, Ordinal(5));
    assert_eq!(j.floors().redo, (G, LfcId(10)));
    for row in j.lfc_rows(..) {
        assert_eq!(j.is_held(&row), row.lfc > LfcId(10), "{}", row.lfc);
        assert_eq!(j.frames_of(G, row.lfc).is_ok(), row.lfc > LfcId(10));
    }
    let gone = |n| (n >= 5).then_some(n as u8);
    assert_eq!(shown(&j, 8), (0..=8).map(gone).collect::<Vec<_>>());
    for seq in [1, 29, 30, 31, 48] {
        let base = seq / BLOCKS;
        let redo = RedoSpan {
            generation: G,
            after: WriteSeq(base * BLOCKS),
            upto: WriteSeq(seq),
        };
        let point = Point {
            base: Ordinal(base),
            redo: (!seq.is_multiple_of(BLOCKS))
                .then_some(redo)
                .into_iter()
                .collect(),
            ..point(seq)
        };
        assert_eq!(j.is_kept(&point), seq >= 30, "record {seq}");
    }
}

/// Two passes at once, of which the one that decided less comes last: what is below the floor is freed, and stays below.
#[test]
fn k1_a_floor_never_falls() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    j.raise_floor(Ordinal(5), None).unwrap();
    j.raise_floor(Ordinal(3), None).unwrap();
    assert_eq!(j.floors().undo, Ordinal(5));
}

/// A restore to a record of container 3 that stands on the newest ordinal.
fn restored_in_container_3(seq: WriteSeq) -> RestoreRow {
    let target = Point {
        base: Ordinal(8),
        redo: Vec::new(),
        seq,
        lfc: LfcId(6),
        ..point(1)
    };
    RestoreRow {
        phase: RestorePhase::Done,
        ..RestoreRow::begun(target, "seq".into(), None, Ordinal(8))
    }
}

/// A restore below the floor's container: the replica stood at that moment once more before (an earlier restore), so nothing of what was
/// applied in between is needed. What names the restored point stays, for a failover there continues it by its digest.
#[test]
fn t9_the_row_of_a_restored_point_is_never_forgotten() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    let (place, digest) = (WriteSeq(3 * BLOCKS), j.lfc_rows(..)[2].end_digest);
    j.put_restore(Some(&restored_in_container_3(place)), None)
        .unwrap();
    j.retain(&seconds(5), Space::Limit(u64::MAX), Vec::new()).unwrap();
    assert!(j.floors().redo > (G, LfcId(6)), "{:?}", j.floors());
    assert_eq!(j.lfc_rows(..)[0].lfc, LfcId(6), "what is older went");
    assert_eq!(j.digest_at(G, place).unwrap(), (place, digest));
    j.put_restore(None, None).unwrap();
    j.retain(&seconds(5), Space::Limit(u64::MAX), Vec::new()).unwrap();
    assert!(j.lfc_rows(..)[0].lfc > LfcId(6));
}

/// The same in the middle of a container: its frames stay, for the digest there is in no row.
#[test]
fn t9_the_frames_of_a_restored_point_stay() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    let place = WriteSeq(3 * BLOCKS - 1);
    let digest = j.digest_at(G, place).unwrap();
    j.put_restore(Some(&restored_in_container_3(place)), None)
        .unwrap();
    j.retain(&seconds(5), Space::Limit(1), Vec::new()).unwrap();
    assert_eq!(j.floors().redo, (G, LfcId(4)));
    assert_eq!(j.digest_at(G, place).unwrap(), digest);
}

/// Where the frames went before the restore, nothing knows the digest inside a container any more: no line can begin there, which is
/// to be known before a failover. At its end one can.
#[test]
fn l1_a_line_begins_only_where_the_digest_is_known() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    let inside = Position {
        generation: G,
        seq: WriteSeq(3 * BLOCKS - 1),
    };
    let end = Position {
        seq: WriteSeq(3 * BLOCKS),
        ..inside
    };
    let before = [inside, end].map(|at| j.parent_at(at).unwrap().unwrap());
    assert_eq!(before.map(|p| p.seq), [inside.seq, end.seq]);
    j.drop_redo_through(G, LfcId(8)).unwrap();
    drop(j);
    // Without frames in memory.
    let (j, _) = lab.open().unwrap();
    let e = j.parent_at(inside).unwrap_err();
    assert!(matches!(e, JournalError::NotHeld { .. }), "{e}");
    assert_eq!(j.parent_at(end).unwrap(), Some(before[1]));
}

#[test]
fn t9_rows_outlive_their_frames_by_four_windows() {
    let lab = Lab::new();
    let j = lab.fresh();
    for n in 1..=60 {
        container(&j, n).unwrap();
        j.retain(&seconds(50), Space::Limit(u64::MAX), Vec::new())
            .unwrap();
        let rows = j.lfc_rows(..);
        let now = j.newest_time();
        let window = 50 * Timestamp::SECOND_NS;
        // All rows of the last four windows are there, and hardly more.
        assert!(n < 22 || rows[0].last_time.0 + 4 * window >= now.0);
        assert!(n < 22 || rows[0].first_time.0 + 4 * window <= now.0 + 10 * Timestamp::SECOND_NS);
        assert_eq!(n < 22, rows[0].lfc == LfcId(2), "after container {n}");
        assert!(rows.windows(2).all(|w| w[1].prev_digest == w[0].end_digest));
        let held = rows.iter().filter(|r| j.is_held(r)).count();
        assert!(held <= 6, "{held} containers are held");
    }
    assert!(
        j.store
            .get(Family::Catalog, &crate::keys::lfc(G, LfcId(2)))
            .unwrap()
            .is_none()
    );
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!(j.lfc_rows(..).last().unwrap().lfc, LfcId(120));
}

#[test]
fn k1_pins_expire_are_broken_or_stop_receiving() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    let boundary = |n: u64| Point {
        base: Ordinal(n),
        redo: Vec::new(),
        seq: WriteSeq(n * BLOCKS),
        ..point(1)
    };
    let at_boundary = |id, kind, n, expires| PinRow {
        point: boundary(n),
        ..pin(id, kind, 1, expires)
    };
    let level = PinKind::Snapshot {
        level: Level(10),
        name: None,
    };
    j.put_pin(&at_boundary(1, PinKind::Released, 1, Some(85)))
        .unwrap();
    j.put_pin(&at_boundary(2, PinKind::Released, 2, Some(86)))
        .unwrap();
    j.put_pin(&at_boundary(3, level, 3, None)).unwrap();
    let calm = j
        .retain(&seconds(20), Space::Limit(u64::MAX), Vec::new())
        .unwrap();
    assert_eq!(calm.expired.iter().map(|p| p.id).collect::<Vec<_>>(), [1]);
    assert_eq!((j.floors().undo, j.pins().unwrap().len()), (Ordinal(2), 2));
    let uses = j.pin_uses(&seconds(20), Vec::new()).unwrap();
    let one = j.ordinal_rows(..)[1].bytes + j.lfc_rows(..)[0].bytes;
    assert_eq!(
        uses.iter()
            .map(|u| (u.row.id, u.holds_bytes, u.is_kept))
            .collect::<Vec<_>>(),
        [(2, one, true), (3, 0, true)],
        "what the snapshot holds, the released pin holds too"
    );
    // One byte too many: the release pin goes, and with it a container.
    let held = j.held_bytes().unwrap();
    let short = j
        .retain(&seconds(20), Space::Limit(held - 1), Vec::new())
        .unwrap();
    assert_eq!(
        (short.broken, j.floors().undo),
        (vec![Broken::Pin(2)], Ordinal(3))
    );
    // The snapshot is broken next; its pin stays, so that it is listed.
    let held = j.held_bytes().unwrap();
    let short = j
        .retain(&seconds(20), Space::Limit(held - 1), Vec::new())
        .unwrap();
    assert_eq!(
        (short.broken, j.floors().undo),
        (vec![Broken::Pin(3)], Ordinal(4))
    );
    let uses = j.pin_uses(&seconds(20), Vec::new()).unwrap();
    assert_eq!(
        uses.iter().map(|u| (u.row.id, u.is_kept)).collect::<Vec<_>>(),
        [(3, false)]
    );
    // Two containers of redo that is not applied are more than the limit: nothing can be done about that.
    let all = j.retain(&seconds(20), Space::Limit(0), Vec::new()).unwrap();
    assert_eq!((all.broken, all.stuck), (vec![Broken::Window], false));
    j.append(vec![write(0, 0, vec![1; 4096])], at(90)).unwrap();
    assert!(j.retain(&seconds(20), Space::Limit(0), Vec::new()).unwrap().stuck);
    assert!(j.poisoned().is_none());
}

/// A power cut or a kill at every sync of a history with retention in it: what is above the floor is whole, what is below
/// it is refused, deletes are repeated.
#[test]
fn k1_a_cut_at_every_sync_of_retention() {
    let mut cuts = 0;
    let tried = with_seeds("retention: a cut at every sync", 3, |rng| {
        for n in 1.. {
            let lab = Lab::new();
            lab.power.set_tear(Tear::Byte);
            let j = lab.fresh();
            (1..=4).for_each(|i| container(&j, i).unwrap());
            lab.power.freeze_at(n);
            let mut floor = Ordinal(0);
            let mut done = || -> Result<(), JournalError> {
                for i in 5..=30 {
                    container(&j, i)?;
                    j.put_pin(&pin(i, PinKind::Released, 1, Some(10 * i)))?;
                    j.retain(&seconds(25), Space::Limit(u64::MAX), Vec::new())?;
                    floor = j.floors().undo;
                }
                Ok(())
            };
            let struck = done().is_err();
            drop(j);
            if rng.random() {
                lab.power.cut(rng);
            } else {
                lab.power.kill(rng);
            }
            let (j, _) = lab.open().unwrap();
            let cursors = j.cursors();
            assert!(j.floors().undo >= floor, "the floor went back");
            let upto = j.published();
            let boundary = j.floors().undo;
            assert!(boundary <= cursors.applied_ordinal);
            let expected: Vec<_> = (0..=upto.0)
                .map(|n| (n >= boundary.0).then_some(n as u8))
                .collect();
            assert_eq!(shown(&j, upto.0), expected);
            for row in j.lfc_rows(..) {
                let frames = j.frames_of(row.generation, row.lfc);
                assert_eq!(frames.is_ok(), j.is_held(&row), "{}", row.lfc);
                assert_eq!(j.is_held(&row), row.lfc.0 > 2 * boundary.0);
            }
            // What the cut left undone was repeated on open: no key at or below the floor is there.
            let store = lab.power.store("db");
            let ordinals = store
                .dump(Family::Undo)
                .into_iter()
                .map(|(key, _)| u64::from_be_bytes(key[..8].try_into().unwrap()));
            assert!(ordinals.into_iter().all(|o| o > boundary.0));
            assert!(
                store
                    .dump(Family::Redo)
                    .iter()
                    .all(|(key, _)| { u64::from_be_bytes(key[4..12].try_into().unwrap()) > 2 * boundary.0 })
            );
            cuts += 1;
            if !struck {
                break;
            }
        }
    });
    println!("{cuts} cuts in {tried} histories of retention");
    assert!(tried < 3 || cuts > 100);
}

/// The clock says 2026 and the newest write 1970: whatever time passes without writes, nothing becomes older.
#[test]
fn k2_a_replica_that_receives_nothing_loses_nothing() {
    let lab = Lab::new();
    let j = lab.fresh();
    (1..=8).for_each(|n| container(&j, n).unwrap());
    j.put_pin(&pin(1, PinKind::Released, 6, Some(86))).unwrap();
    for j in [j, lab.open().unwrap().0] {
        let done = j
            .retain(&seconds(75), Space::Limit(u64::MAX), Vec::new())
            .unwrap();
        assert_eq!(
            (done.freed, done.expired, j.floors().undo),
            (0, vec![], Ordinal(0))
        );
        assert_eq!(j.newest_time(), at(85));
    }
}

/// A restore to the end of container 3 that was taken back led to the end of container 5. When the floor has passed all of that,
/// the points behind it still stand on the moment that it led to.
#[test]
fn k1_an_undone_restore_below_the_floor_keeps_its_boundary() {
    let lab = Lab::new();
    let j = lab.fresh();
    let from = Position {
        generation: G,
        seq: WriteSeq(0),
    };
    j.set_consistent_from(from).unwrap();
    (1..=5).for_each(|n| container(&j, n).unwrap());
    for (ordinal, base, image) in [(6, 3, 5), (7, 5, 3)] {
        let image = Payload::Data(Bytes::from(vec![image; 4096]));
        let blocks = (0..BLOCKS).map(|b| (VolumeIndex(0), BlockNo(b), image.clone()));
        let kind = OrdinalKind::Local {
            restore_from: Ordinal(ordinal - 1),
            base: Ordinal(base),
            redo: Vec::new(),
        };
        let undo = UndoContainer {
            ordinal: Ordinal(ordinal),
            kind,
            blocks: blocks.collect(),
        };
        j.commit_whole(&undo).unwrap();
        j.set_applied_local(Ordinal(ordinal)).unwrap();
    }
    (6..=7).for_each(|n| container(&j, n).unwrap());
    let base_of = |j: &Journal, seq: u64| {
        let target: model::Target = format!("seq:{seq}").parse().unwrap();
        let resolved = j.resolve(&target, Timestamp(u64::MAX));
        resolved.map(|r| r.point.base)
    };
    j.retain(&seconds(15), Space::Limit(u64::MAX), Vec::new())
        .unwrap();
    assert_eq!(j.floors().undo, Ordinal(7));
    drop(j);
    let (j, _) = lab.open().unwrap();
    let end = 5 * BLOCKS;
    for seq in [end, end + 2] {
        assert_eq!(base_of(&j, seq).unwrap(), Ordinal(7), "record {seq}");
    }
    assert!(base_of(&j, end - 1).is_err());
    // Once nothing stands on it, its row goes like any other.
    j.retain(&seconds(9), Space::Limit(u64::MAX), Vec::new()).unwrap();
    assert_eq!(j.floors().undo, Ordinal(8));
    assert!(j.ordinal_rows(..Ordinal(8)).is_empty());
}

#[test]
fn a_claim_on_nothing_is_no_claim() {
    let mut kept = kept(5);
    kept.floors = Floors {
        undo: Ordinal(2),
        redo: (G, LfcId(4)),
        redo_seq: Position {
            generation: G,
            seq: WriteSeq(20),
        },
    };
    kept.steps.drain(..2);
    assert_eq!(kept.keeps(&point(15)), None);
    assert_eq!(kept.keeps(&point(20)), Some(0));
    assert_eq!(kept.keeps(&point(25)), Some(0));
    assert_eq!(kept.keeps(&point(30)), Some(1));
    kept.pins = vec![snapshot(1, 15)];
    assert_eq!(
        decided(&kept, &seconds(0), 0).go,
        3,
        "a broken view holds nothing"
    );
}
