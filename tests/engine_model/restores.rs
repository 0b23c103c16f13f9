//! `rules.md` by their counter-examples, with the real journal.

use super::{
    engine::Engine,
    hosts::Keeper,
    lab::{Lab, SIZES},
};
use backstay::restoring::{Replica, RestoreError, Work, plan_of};
use journal::{NewGeneration, Parent, ResolveError, RestorePhase, RestoreRow};
use model::{ContextState, GenId, GenNo, RecordBody, WriteSeq, ports::OrdinalKind};
use rand::{Rng, SeedableRng, rngs::StdRng};
use snapshot::SnapshotError;
use testkit::with_seeds;

/// Six containers, the last two received and not applied; a mark in the middle.
fn lab() -> Lab {
    let mut lab = Lab::new(&SIZES);
    for n in 0..6u8 {
        for k in 0..3u8 {
            let at = 4096 * u64::from((n + k) % 5) + u64::from(n) * 100;
            lab.write(0, at, b'a' + 3 * n + k, 3000);
        }
        lab.write(1, 500 * u64::from(n), b'A' + n, 4000);
        if n == 2 {
            lab.mark("good");
        }
        lab.seal();
        if n < 4 {
            lab.apply();
        }
    }
    lab
}

fn applied(lab: &Lab) -> WriteSeq {
    lab.e().journal.cursors().applied
}

/// B applied to one place, received more, and restores to an earlier one while A lives: nothing of it is in the line. The
/// next frame of A continues the chain, with the next number.
#[test]
fn r1_a_restore_takes_no_number_of_the_line() {
    let mut lab = lab();
    let (head, held) = (lab.e().journal.head().unwrap(), lab.e().journal.cursors());
    let ordinals = lab.e().history().published();
    let restored = lab.restore(WriteSeq(5));
    let c = lab.e().journal.cursors();
    assert_eq!(
        lab.e().journal.head().unwrap(),
        head,
        "position and digest of the end"
    );
    assert_eq!(
        (c.appended, c.applied, c.applied_lfc),
        (held.appended, held.applied, held.applied_lfc)
    );
    assert_eq!(lab.e().journal.generations().len(), 1);
    // As many containers as it needs, two blocks each here; all of this host alone.
    let rows = lab.e().journal.ordinal_rows(ordinals.next()..=restored.last);
    assert!(rows.len() > 2 && rows.iter().all(|r| r.blocks <= 2));
    let local =
        |k: &OrdinalKind| matches!(k, OrdinalKind::Local { restore_from, .. } if *restore_from == ordinals);
    assert!(rows.iter().all(|r| local(&r.kind)));
    let next = lab.write(0, 0, b'z', 100);
    assert_eq!(next, head.0.seq.next());
    let frame = &lab.e().journal.frames_after(head.0.seq, u64::MAX).unwrap()[0];
    assert_eq!(frame.header().prev_digest, head.1);
    lab.undo();
    lab.seal_and_apply();
    lab.check_all_volumes(next);
    lab.check_all();
}

/// Without room for its undo a restore is refused with both numbers, and so is its undo; nothing has changed.
#[test]
fn r1_starts_only_with_room_for_its_undo() {
    let lab = lab();
    let run = |work: Work, room| {
        let journal = &lab.e().journal;
        let replica = Replica {
            journal,
            volumes: &lab.e().volumes,
            container_blocks: 2,
        };
        replica.run(work, &mut Keeper { journal, room })
    };
    let refused = |work: &Work, needed: u64| {
        let before = (lab.row(), lab.state(), lab.e().history().published());
        let syncs = lab.power.syncs();
        let error = run(work.clone(), needed - 1).unwrap_err();
        let RestoreError::NoRoom { needed: n, free } = error else {
            panic!("{error}")
        };
        assert_eq!((n, free), (needed, needed - 1));
        assert!(
            error
                .to_string()
                .contains(&format!("{n} bytes may be needed, {free} are free"))
        );
        assert_eq!((lab.row(), lab.state(), lab.e().history().published()), before);
        assert_eq!(lab.power.syncs(), syncs, "nothing was made durable");
    };
    let needed = |row: &RestoreRow| {
        let plan = plan_of(lab.e().history(), row).unwrap();
        assert!(plan.count(lab.e().history()).unwrap() >= 6);
        plan.undo_bytes_from(lab.e().history(), row.cursor).unwrap()
    };
    let row = lab.begun(WriteSeq(5), None);
    let bytes = needed(&row);
    refused(&Work::Begin(row.clone()), bytes);
    lab.check_all_volumes(applied(&lab));
    run(Work::Begin(row), bytes).unwrap();
    let row = lab.row().unwrap();
    let bytes = needed(&row.clone().turned_round(lab.e().history().published()));
    let turn = Work::TurnRound(row);
    refused(&turn, bytes);
    lab.check_all_volumes(WriteSeq(5));
    run(turn, bytes).unwrap();
    lab.check_all_volumes(applied(&lab));
}

/// What a crash at a sync of a restore, or of its undo, may leave; then it is gone on with or turned round.
fn crash_at(n: u64, undo: bool, only: Option<u16>, to: WriteSeq, rng: &mut StdRng) -> bool {
    let mut lab = lab();
    let before = applied(&lab);
    let there = match only {
        Some(v) => (0..2).map(|i| if i == v { to } else { before }).collect(),
        None => vec![to; 2],
    };
    let back = vec![before; 2];
    let begin = Work::Begin(lab.begun(to, only));
    let work = if undo {
        lab.work(begin).unwrap();
        Work::TurnRound(lab.row().unwrap())
    } else {
        begin
    };
    lab.power.freeze_at(n);
    let done = lab.work(work);
    lab.power.never_freeze();
    if done.is_ok() {
        lab.check_replica(if undo { &back } else { &there });
        return false;
    }
    lab.crash(rng).unwrap();
    // Durable before the first block changes: without it nothing has.
    match (lab.row(), lab.state()) {
        (None, ContextState::Enabled) => lab.check_replica(&back),
        (Some(row), ContextState::RolledBack) => {
            assert_eq!(row.phase, RestorePhase::Done);
            lab.check_replica(&there);
        }
        (Some(row), ContextState::Restoring) => assert_eq!(row.phase, RestorePhase::Running),
        (row, state) => panic!("{state:?} with {row:?}"),
    }
    lab.check_all();
    assert!(
        !undo
            || lab
                .row()
                .is_none_or(|r| r.undo_from.is_some() || r.phase == RestorePhase::Done)
    );
    // More arrives meanwhile; it is kept, and not applied.
    let late = lab.write(0, 9, b'!', 2000);
    lab.seal();
    let restoring = lab.state() != ContextState::Enabled;
    assert!(
        !lab.e().apply_next().unwrap() || !restoring,
        "applied while {:?}",
        lab.state()
    );
    if restoring {
        // Hit again while it goes on.
        lab.power.freeze_at(rng.random_range(1..8));
        let row = lab.row().unwrap();
        let turned = row.undo_from.is_some();
        let work = match row.phase {
            RestorePhase::Running if rng.random() || turned => Work::GoOn(row),
            _ => Work::TurnRound(row),
        };
        let done = lab.work(work);
        lab.power.never_freeze();
        if done.is_err() {
            lab.crash(rng).unwrap();
            lab.check_all();
        }
        if let Some(row) = lab.row().filter(|r| r.phase == RestorePhase::Running) {
            lab.work(Work::GoOn(row)).unwrap();
        }
        if lab.row().is_some() {
            assert_eq!(lab.state(), ContextState::RolledBack);
            lab.check_replica(&there);
            lab.undo();
        }
        lab.check_replica(&back);
        assert_eq!((lab.row(), lab.state()), (None, ContextState::Enabled));
    }
    lab.apply();
    lab.check_all_volumes(late);
    lab.check_all();
    true
}

/// Power or process lost at every sync of every step: plan durable, undo committed, blocks overwritten, row finished.
#[test]
fn r2_crashes_at_every_sync_of_a_restore_and_of_its_undo() {
    let mut crashes = 0;
    with_seeds("r2 crashes", 4, |rng| {
        for undo in [false, true] {
            for only in [None, Some(0)] {
                let (to, seed) = (WriteSeq(rng.random_range(1..=24)), rng.random::<u64>());
                let struck = |n| crash_at(n, undo, only, to, &mut StdRng::seed_from_u64(seed ^ n));
                crashes += (1..).take_while(|n| struck(*n)).count();
            }
        }
    });
    println!("{crashes} crashes at syncs of restores and of their undo");
    assert!(crashes > 100);
}

/// RESTORING and ROLLED_BACK are durable before the first block changes, looked at sync by sync.
#[test]
fn r2_the_plan_is_durable_before_the_first_block_changes() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut changed_at = None;
    for n in 1..40 {
        let mut lab = lab();
        let before = applied(&lab);
        lab.power.freeze_at(n);
        if lab.work(Work::Begin(lab.begun(WriteSeq(3), None))).is_ok() {
            break;
        }
        lab.power.cut(&mut rng);
        let engine = Engine::boot(&lab.power, &SIZES).unwrap();
        let row = engine.journal.restore().unwrap();
        let same = lab.oracle.volumes().all(|v| {
            let range = model::ByteRange::at(0, SIZES[usize::from(v.0)]);
            engine.replica(v, range).unwrap() == lab.oracle.bytes(v, range, before)
        });
        assert!(
            row.is_some() || same,
            "sync {n}: a block changed without a durable plan"
        );
        if !same {
            changed_at.get_or_insert(n);
        }
        drop(engine);
        lab.crash(&mut rng).unwrap();
    }
    assert!(changed_at.is_some_and(|n| n > 1), "{changed_at:?}");
}

/// While rolled back, frames go on arriving and are acknowledged; nothing is applied, whatever is sealed or restarted.
#[test]
fn r2_receives_and_applies_nothing_while_rolled_back() {
    let mut lab = lab();
    let was = applied(&lab);
    lab.restore(WriteSeq(6));
    let mut rng = StdRng::seed_from_u64(4);
    for n in 0..8 {
        let seq = lab.write(0, 700 * n, b'r', 5000);
        lab.seal();
        assert_eq!(lab.e().journal.cursors().durable, seq, "received and durable");
        assert!(!lab.e().apply_next().unwrap());
        if n == 4 {
            lab.crash(&mut rng).unwrap();
            assert_eq!(lab.state(), ContextState::RolledBack);
        }
        assert_eq!(applied(&lab), was);
        lab.check_all_volumes(WriteSeq(6));
    }
    lab.check_all();
    lab.undo();
    lab.check_all_volumes(was);
    lab.apply();
    lab.check_all_volumes(lab.oracle.head());
}

/// Back and forth between two points, many times, bit-exact; each way changes only what differs.
#[test]
fn r2_back_and_forth_many_times() {
    let mut lab = lab();
    lab.seal_and_apply();
    let (a, b) = (WriteSeq(4), WriteSeq(15));
    let mut blocks = None;
    for round in 0..30u8 {
        for to in [a, b] {
            let before = applied(&lab);
            let there = lab.restore(to).blocks_changed;
            lab.check_all_volumes(to);
            assert_eq!(lab.undo().blocks_changed, there, "undo changes what was changed");
            lab.check_all_volumes(before);
            if to == a && round % 10 == 0 {
                blocks = None;
            }
            if to == a {
                assert_eq!(*blocks.get_or_insert(there), there);
            }
        }
        if round % 10 == 9 {
            lab.check_all();
            lab.write(1, 100, round, 50);
            lab.seal_and_apply();
        }
    }
    lab.check_all();
}

/// A restore was taken back; then all below the applied boundary is freed. The moment that its undo leads to stays one, and
/// with it every later one.
#[test]
fn r2_a_restore_taken_back_leaves_no_gap_when_what_is_below_is_freed() {
    let mut lab = lab();
    let was = applied(&lab);
    lab.restore(WriteSeq(5));
    lab.undo();
    let later = lab.write(0, 0, b'l', 3000);
    let wanted = lab.point(was);
    lab.e().prune(&wanted).unwrap();
    assert!(lab.e().journal.floors().undo.0 > 0);
    for seq in was.0..=later.0 {
        lab.check(&lab.view(WriteSeq(seq)), WriteSeq(seq));
    }
    let oldest = lab.e().journal.window(None).unwrap().oldest.at.seq;
    assert_eq!(oldest, was);
    let mut rng = StdRng::seed_from_u64(6);
    lab.crash(&mut rng).unwrap();
    lab.check(&lab.view(was), was);
}

/// RESTORING is left by going on or turning round only: another restore would stand on a mix.
#[test]
fn r2_nothing_else_begins_on_a_mix() {
    let lab = lab();
    lab.e()
        .restore(Work::Begin(lab.begun(WriteSeq(3), None)), 1, 3)
        .unwrap_err();
    let row = lab.row().unwrap();
    assert_eq!(
        (row.phase, lab.state()),
        (RestorePhase::Running, ContextState::Restoring)
    );
    assert!(!lab.e().apply_next().unwrap());
    assert!(matches!(lab.resolve("restored"), Err(ResolveError::NotRestored)));
    lab.check_all();
    lab.undo();
    lab.check_all_volumes(applied(&lab));
    // A container that is not wholly applied comes first.
    let row = lab.begun(WriteSeq(3), None);
    lab.power.medium("v0", SIZES[0]).fail(testkit::sim::Op::Write, 1);
    lab.e().apply_next().unwrap_err();
    let error = lab.work(Work::Begin(row)).unwrap_err();
    assert!(
        matches!(error, RestoreError::Snapshot(SnapshotError::Unsettled { .. })),
        "{error}"
    );
    lab.apply();
    lab.check_all_volumes(lab.oracle.head());
}

/// While rolled back a bare target means production's line, held frames included; `restored` is the replica as it stands.
#[test]
fn r3_bare_targets_mean_productions_line_while_rolled_back() {
    let mut lab = lab();
    let good = lab.oracle.mark_at("good").unwrap();
    lab.restore(WriteSeq(6));
    let held = lab.write(0, 0, b'h', 9000);
    lab.check_target("latest", held);
    lab.check_target(&format!("seq:{held}"), held);
    lab.check_target("mark:good", good);
    lab.check_target("lfc:2", lab.e().journal.lfc_rows(..)[0].last_seq);
    lab.check_target("restored", WriteSeq(6));
    lab.check_all();
    // As a snapshot of what is newest (`-X`), it stays so when the restore is taken back.
    lab.e_mut().snapshot(1, &"latest".parse().unwrap()).unwrap();
    lab.e_mut().snapshot(2, &"restored".parse().unwrap()).unwrap();
    lab.undo();
    lab.seal_and_apply();
    lab.check(lab.e().snapshots[&1].view(), held);
    lab.check(lab.e().snapshots[&2].view(), WriteSeq(6));
    assert!(matches!(lab.resolve("restored"), Err(ResolveError::NotRestored)));
}

/// One volume: the others stay where they are; `restored` shows the mix, no target moves, and its undo takes it back.
#[test]
fn r3_one_volume_alone() {
    let lab = lab();
    let was = applied(&lab);
    let to = WriteSeq(5);
    lab.work(Work::Begin(lab.begun(to, Some(1)))).unwrap();
    lab.check_replica(&[was, to]);
    lab.check_all();
    let restored = lab.e().view(lab.resolve("restored").unwrap()).unwrap();
    for (volume, at) in lab.oracle.volumes().zip([was, to]) {
        let range = model::ByteRange::at(0, SIZES[usize::from(volume.0)]);
        let mut seen = vec![0; usize::try_from(range.len()).unwrap()];
        restored.read(volume, 0, &mut seen).unwrap();
        assert!(
            seen == lab.oracle.bytes(volume, range, at),
            "{volume:?} as of {at}"
        );
    }
    lab.undo();
    lab.check_all_volumes(was);
    lab.apply();
    lab.check_all_volumes(lab.oracle.head());
}

/// Restored to one moment, failed over later: an instant between is neither, and a mark or container of the other line is not
/// of this one. Each is refused with the full names, which do work.
#[test]
fn r4_what_another_line_has_is_refused_with_full_names() {
    let mut lab = lab();
    lab.mark("after");
    lab.seal();
    lab.apply();
    let to = WriteSeq(8);
    let (left, left_lfc) = (
        lab.oracle.head(),
        lab.e().journal.lfc_rows(..).last().unwrap().lfc,
    );
    lab.restore(to);
    let (_, digest) = lab.e().journal.digest_at(GenNo(1), to).unwrap();
    let parent = Parent {
        id: GenId(7),
        seq: to,
        digest,
    };
    let journal = &lab.e().journal;
    journal
        .create_generation(NewGeneration::own(GenId(8), Some(parent)))
        .unwrap();
    let context = journal::ContextRow {
        state: ContextState::Enabled,
        ..journal.context().unwrap().unwrap()
    };
    journal.put_restore(None, Some(&context)).unwrap();
    let data = vec![b'n'; 10].into();
    let body = RecordBody::Write { offset: 0, data };
    let volume = model::VolumeIndex(0);
    lab.e().append(vec![journal::Draft { volume, body }]).unwrap();
    lab.e().journal.sync().unwrap();
    let first = lab.e().journal.cursors().appended;
    let between = |target: String| match lab.resolve(&target) {
        Err(ResolveError::BetweenLines { names, .. }) => names,
        other => panic!("{target}: {other:?}"),
    };
    let parent_time = lab.oracle.time_of(to).unwrap();
    let time = super::engine::time_of(WriteSeq(left.0)).0 - 1;
    assert!(time > parent_time.0);
    let epoch = format!("epoch:{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
    assert_eq!(
        between(epoch),
        [format!("g1:seq:{to}"), format!("g2:seq:{first}")]
    );
    for (target, name) in [
        ("mark:after".to_owned(), "g1:mark:after".to_owned()),
        (format!("lfc:{left_lfc}"), format!("g1:lfc:{left_lfc}")),
    ] {
        let Err(ResolveError::OtherLine { names, .. }) = lab.resolve(&target) else {
            panic!("{target} is on this line")
        };
        assert_eq!(names, [name.as_str()]);
        lab.check_target(&name, left);
    }
    // What both lines have is meant without a name.
    lab.check_target(&format!("seq:{to}"), to);
    lab.check_target("seq:3", WriteSeq(3));
}
