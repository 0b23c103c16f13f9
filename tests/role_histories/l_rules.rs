//! Rules L1 to L8 of `rules.md`, each with the counter-example that it exists for.

use super::{
    host::REGION,
    lab::{FAILOVER, RESYNC, V, amid_a_resync, behind_lower_numbers, overflowed, resync, seq, unplanned},
    lines::same,
    operator::{Command, FORCE, Hint, How, Outcome},
    world::{Side, Step, Stream, World},
};
use Side::{A, B};
use backstay::roles::{Next, Standing};
use journal::Draft;
use model::{Record, RecordBody, Target, Timestamp, target::TargetKind};
use rand::RngCore;
use std::io;
use testkit::with_seeds;

/// Both agree to a record that one of them has rolled back: the greatest digest that agrees is not the common position.
#[test]
fn l1_the_common_position_is_on_both_lines() {
    with_seeds("l1", 10, |rng| {
        let mut world = World::synced(rng);
        let point = world.up(B).end().1;
        world.put(A, 3, rng);
        world.calm(rng);
        assert_eq!(world.up(B).journal.cursors().applied, world.up(A).end().1);
        world.run(A, Command::Stop(true), rng);
        world.run(B, Command::Restore(seq(point)), rng);
        world.run(B, FAILOVER, rng);
        assert_eq!(world.up(B).end().1, point);
        world.put(B, 7, rng);
        resync(&mut world, rng);
        // Region 3 is the same on no host's line but was the same in both journals.
        world.look_at_pair(B);
        world.copied_is(&[3]);
        world.recover(rng);
    });
}

/// The old production comes back when the frames of the old line are gone on the other host: the rows say what differs.
#[test]
fn l2_the_set_outlives_the_frames() {
    with_seeds("l2 rows", 10, |rng| {
        let mut world = World::synced(rng);
        world.put(A, 2, rng);
        unplanned(&mut world, rng);
        world.put(B, 7, rng);
        world.steps(&[Step::Seal(B), Step::WriteBack(B), Step::Ingest(B)], rng);
        let journal = &world.up(B).journal;
        let held = journal.held_bytes().unwrap();
        let before = journal.floors().redo;
        world.shrink_window(B, held / 2);
        assert!(journal.floors().redo > before, "nothing was freed");
        resync(&mut world, rng);
        world.look_at_pair(B);
        let copied = world.copied();
        assert!(copied.contains(&(V, 2)), "{copied:?}");
        assert!(copied.len() < 6, "more than the set was copied: {copied:?}");
        world.recover(rng);
    });
}

/// Both windows have moved on, rows and all: everything is copied, nothing is silently clean.
#[test]
fn l2_what_nobody_knows_any_more_is_copied_whole() {
    with_seeds("l2 forgotten", 10, |rng| {
        let mut world = World::synced(rng);
        world.put(A, 2, rng);
        unplanned(&mut world, rng);
        let common = world.up(B).end().1;
        for n in [7, 8, 7] {
            world.put(B, n, rng);
            world.steps(&[Step::Seal(B), Step::WriteBack(B), Step::Ingest(B)], rng);
        }
        world.shrink_window(B, 0);
        let journal = &world.up(B).journal;
        let known = |row: &&std::sync::Arc<journal::LfcRow>| row.last_seq <= common;
        assert!(
            !journal.lfc_rows(..).iter().any(|row| known(&row)),
            "the rows of the old line are there still"
        );
        resync(&mut world, rng);
        world.look_at_pair(B);
        let all: u64 = world.sizes.iter().map(|size| size.div_ceil(REGION)).sum();
        assert_eq!(world.copied().len() as u64, all);
        world.recover(rng);
    });
}

/// A failover closes the open container as its generation's, cut there, and needs no generation for it.
#[test]
fn l3_a_failover_cuts_the_open_container() {
    with_seeds("l3 cut", 5, |rng| {
        let mut world = World::synced(rng);
        world.put(A, 2, rng);
        world.put(A, 3, rng);
        world.stream_all(A, rng);
        let generations = world.up(B).journal.generations().len();
        let (_, end) = world.up(A).end();
        let open = world
            .up(B)
            .journal
            .open_row()
            .expect("frames of an open container")
            .lfc;
        world.run(A, Command::Stop(false), rng);
        world.run(B, FAILOVER, rng);
        let journal = &world.up(B).journal;
        assert_eq!(
            journal.generations().len(),
            generations,
            "no generation before the first record"
        );
        let generation = journal.current_generation().unwrap().no;
        let row = journal.lfc_row(generation, open).expect("sealed");
        assert_eq!((row.last_seq, row.sealed.cut), (end, Some(end)));
        let target = Target::from(TargetKind::Lfc(open));
        let resolved = journal.resolve(&target, Timestamp(u64::MAX)).unwrap();
        assert_eq!(resolved.point.seq, end, "its end is the cut end");
        assert!(matches!(resolved.note, Some(journal::window::Note::CutEnd { lfc }) if lfc == open));
        world.put(B, 4, rng);
        resync(&mut world, rng);
        world.look_at_pair(B);
        world.recover(rng);
    });
}

/// A change of role that did not come to its end has closed a container on one host: hosts compare chains, not containers.
#[test]
fn l3_a_container_that_one_host_has_closed() {
    with_seeds("l3 early", 10, |rng| {
        let mut world = World::synced(rng);
        world.put(A, 2, rng);
        world.stream_all(A, rng);
        if rng.next_u32() % 2 == 0 {
            // There is more of that container to come.
            world.steps(&[Step::Cut], rng);
            world.put(A, 3, rng);
        }
        world.up(B).journal.close_line().unwrap();
        world.steps(&[Step::Crash(B), Step::Mend], rng);
        world.put(A, 4, rng);
        world.calm(rng);
        world.look_at_pair(A);
        world.recover(rng);
    });
}

/// Shipped, never written back, and the power is cut: it is neither unshipped nor on the volume. The old production replays
/// its own journal first.
#[test]
fn l4_what_was_shipped_and_never_written_back() {
    with_seeds("l4", 10, |rng| {
        let mut world = World::synced(rng);
        world.put(A, 3, rng);
        world.stream_all(A, rng);
        assert!(world.up(A).journal.cursors().checkpointed < world.up(A).end().1);
        world.steps(&[Step::Cut, Step::Crash(A)], rng);
        world.run(B, FAILOVER, rng);
        world.put(B, 7, rng);
        let resumed = world.up(A).journal.cursors();
        // It was booted and serves nothing: nothing was replayed by that.
        assert!(world.up(A).held_back || resumed.checkpointed == resumed.appended);
        resync(&mut world, rng);
        world.look_at_pair(B);
        world.copied_is(&[]);
        world.recover(rng);
    });
}

/// A mark whose time is an hour ahead, on production and received; answers that time.
fn mark_ahead(world: &mut World, rng: &mut dyn RngCore) -> Timestamp {
    let ahead = Timestamp(Timestamp::now().0 + 3600 * Timestamp::SECOND_NS);
    let body = RecordBody::Mark {
        name: "ahead".into(),
        description: String::new(),
        keep_ns: None,
    };
    let journal = &world.up(A).journal;
    journal.append(vec![Draft { volume: V, body }], ahead).unwrap();
    journal.sync().unwrap();
    world.stream_all(A, rng);
    ahead
}

/// The records of the new line, once something is written on it.
fn first_records(world: &mut World) -> Vec<Record> {
    let (_, parent) = world.up(B).end();
    world.put_unfed(B, b"the first write");
    let journal = &world.up(B).journal;
    let frames = journal.frames_after(parent, u64::MAX).unwrap();
    frames.iter().flat_map(|f| f.records()).cloned().collect()
}

/// The clock of the old production was ahead: the new line begins with a step, behind its birth, and no instant means two
/// positions without both being told.
#[test]
fn l5_a_line_begins_with_a_clock_step() {
    let rng = &mut rand::rng();
    let mut world = World::synced(rng);
    let ahead = mark_ahead(&mut world, rng);
    unplanned(&mut world, rng);
    let bodies: Vec<_> = first_records(&mut world).into_iter().map(|r| r.body).collect();
    assert!(matches!(bodies[0], RecordBody::Birth { .. }), "{bodies:?}");
    let RecordBody::ClockStep { from, to } = bodies[1] else {
        panic!("{bodies:?}");
    };
    assert!(from >= ahead && to < ahead, "{from:?} to {to:?}");
    assert!(matches!(bodies[2], RecordBody::Write { .. }), "{bodies:?}");
}

/// The record whose clock was ahead was rolled back: it is not on the new line, which is compared with the last one that is.
#[test]
fn l5_a_line_from_a_restored_point_counts_from_that_point() {
    let rng = &mut rand::rng();
    let mut world = World::synced(rng);
    let (_, point) = world.up(B).end();
    let ahead = mark_ahead(&mut world, rng);
    world.run(B, Command::Restore(seq(point)), rng);
    unplanned(&mut world, rng);
    let records = first_records(&mut world);
    let steps = |r: &Record| matches!(r.body, RecordBody::ClockStep { .. });
    assert!(!records.iter().any(steps), "{records:?}");
    assert!(records.iter().all(|r| r.time < ahead), "{records:?}");
}

/// A lower term stops before its next acknowledgement.
#[test]
fn l6_a_lower_term_stops_before_its_next_acknowledgement() {
    with_seeds("l6 lower", 5, |rng| {
        let mut world = World::synced(rng);
        unplanned(&mut world, rng);
        // Both serve, and cannot know of each other.
        world.put(A, 2, rng);
        world.put(B, 3, rng);
        world.steps(&[Step::Mend], rng);
        // The first greeting is enough; `end_fenced` has seen that nothing is acknowledged behind it.
        world.steps(&[Step::Link(A, Stream::Ship)], rng);
        world.steps(
            &[Step::Link(A, Stream::HearFollow), Step::Link(A, Stream::HearShip)],
            rng,
        );
        assert_eq!(world.up(A).standing().unwrap(), Standing::Fenced);
        assert_eq!(world.counts.fences, 1);
        world.put(B, 4, rng);
        world.recover(rng);
    });
}

/// Two failovers, forced on both sides, at one term: both stop, until an operator chooses.
#[test]
fn l6_at_equal_terms_both_stop_until_an_operator_chooses() {
    with_seeds("l6 equal", 5, |rng| {
        let mut world = equal_terms(rng);
        world.steps(&[Step::Mend], rng);
        for _ in 0..4 {
            world.steps(&[Step::Settle], rng);
        }
        for side in Side::ALL {
            assert_eq!(world.up(side).standing().unwrap(), Standing::Fenced, "{side:?}");
        }
        let terms = Side::ALL.map(|side| world.up(side).row().unwrap().term);
        assert_eq!(terms[0], terms[1]);
        // Neither goes on without being told, and an operator who insists chooses.
        let refused = world.step(&Step::Command(B, FAILOVER), rng);
        assert_eq!(refused, Some(Outcome::Refused(Hint::Next(Next::Resync))));
        world.run(B, Command::Failover(FORCE), rng);
        assert!(world.up(B).row().unwrap().term > terms[0]);
        world.put(B, 6, rng);
        world.run(A, RESYNC, rng);
        world.run(B, RESYNC, rng);
        world.calm(rng);
        world.look_at_pair(B);
        world.recover(rng);
    });
}

/// Generations that two hosts open at once, behind the same record and with the same numbers, are two lines.
#[test]
fn l6_generations_that_are_opened_at_once_are_two() {
    with_seeds("l6 generations", 5, |rng| {
        let mut world = equal_terms(rng);
        let ends = Side::ALL.map(|side| world.up(side).end());
        assert_eq!(ends[0].1, ends[1].1, "the same number");
        assert_ne!(ends[0].0, ends[1].0, "another generation");
        world.recover(rng);
    });
}

/// Both hosts have failed over at one term, and have written one record each.
fn equal_terms(rng: &mut dyn RngCore) -> World {
    let mut world = World::synced(rng);
    world.run(A, Command::Stop(true), rng);
    world.run(B, FAILOVER, rng);
    world.run(A, RESYNC, rng);
    world.run(B, RESYNC, rng);
    world.calm(rng);
    world.run(B, Command::Stop(true), rng);
    // It hands its role back, and the other one takes it with another command, which cannot ask.
    let outcome = world.step(&Step::Command(B, Command::Failback), rng);
    assert_eq!(outcome, Some(Outcome::Waits));
    world.steps(&[Step::Cut], rng);
    world.run(A, FAILOVER, rng);
    world.run(B, Command::Failover(FORCE), rng);
    let terms = Side::ALL.map(|side| world.up(side).row().unwrap().term);
    assert_eq!(terms[0], terms[1]);
    world.put(A, 2, rng);
    world.put(B, 3, rng);
    world
}

/// The replica amid a resync is at no point: a forced failover goes back to the last consistent one first.
#[test]
fn l7_a_forced_failover_amid_a_resync_goes_back_first() {
    with_seeds("l7 back", 10, |rng| {
        let mut world = amid_a_resync(rng);
        let until = world.up(B).journal.consistent().pop().unwrap().until.unwrap();
        world.steps(&[Step::Cut], rng);
        let refused = world.step(&Step::Command(B, FAILOVER), rng);
        assert_eq!(refused, Some(Outcome::Refused(Hint::Wait)));
        world.run(B, Command::Failover(FORCE), rng);
        assert_eq!(world.up(B).end().1, until.seq);
        world.put(B, 8, rng);
        resync(&mut world, rng);
        world.look_at_pair(B);
        world.recover(rng);
    });
}

/// Taking the volumes as they are is a word of its own, and everything is copied to the other host afterwards.
#[test]
fn l7_taking_volumes_as_they_are_is_another_word() {
    with_seeds("l7 as they are", 10, |rng| {
        let mut world = amid_a_resync(rng);
        world.steps(&[Step::Cut], rng);
        let how = How {
            force: true,
            inconsistent: true,
        };
        world.run(B, Command::Failover(how), rng);
        world.put(B, 8, rng);
        world.copied.clear();
        resync(&mut world, rng);
        world.look_at_pair(B);
        let all: u64 = world.sizes.iter().map(|size| size.div_ceil(REGION)).sum();
        assert_eq!(world.copied().len() as u64, all);
        world.recover(rng);
    });
}

/// The last consistent point is this host's own end, on a line with higher numbers than the one that it follows by then: what
/// it writes there begins behind that, with nothing left to apply, whatever was freed.
#[test]
fn l7_the_line_that_is_gone_back_to_has_higher_numbers() {
    with_seeds("l7 higher", 5, |rng| {
        let (mut world, own_end) = behind_lower_numbers(rng);
        world.steps(&[Step::Cut], rng);
        world.run(B, Command::Failover(FORCE), rng);
        assert_eq!(world.up(B).end().1, own_end);
        let journal = &world.up(B).journal;
        assert!(journal.cursors().appended < own_end, "the numbers are not higher");
        world.shrink_window(B, 0);
        world.put(B, 5, rng);
        let cursors = world.up(B).journal.cursors();
        assert!(cursors.applied >= own_end, "{cursors:?}");
        world.steps(&[Step::Crash(B)], rng);
        world.run(B, Command::Start(FORCE), rng);
        world.put(B, 8, rng);
        world.recover(rng);
    });
}

/// The same, and redo of that line is held behind the number at which the other one stood: all of it is on the volumes.
#[test]
fn l7_a_line_that_is_gone_back_to_has_nothing_to_apply() {
    with_seeds("l7 applied", 5, |rng| {
        let (mut world, _) = behind_lower_numbers(rng);
        world.steps(&[Step::Cut], rng);
        world.run(B, Command::Failover(FORCE), rng);
        world.put(B, 5, rng);
        world.steps(&[Step::Seal(B), Step::WriteBack(B)], rng);
        world.run(B, Command::Stop(true), rng);
        world.recover(rng);
    });
}

/// The replica was consistent when the failover began; while production gave its role up the link brought the beginning of a
/// resync. What the failover stands on is looked at when nothing more can come.
#[test]
fn l7_what_a_failover_stands_on_may_change_while_the_other_host_gives_up() {
    with_seeds("l7 look again", 10, |rng| {
        let mut world = World::synced(rng);
        let consistent = world.up(B).end().1;
        overflowed(&mut world, rng);
        world.steps(&[Step::Mend], rng);
        assert!(world.links.iter().all(Option::is_none), "they have not met");
        let refused = world.step(&Step::Command(B, Command::Failover(FORCE)), rng);
        assert_eq!(refused, Some(Outcome::Refused(Hint::Next(Next::Failover))));
        assert_eq!(world.up(A).standing().unwrap(), Standing::Fenced);
        world.run(B, Command::Failover(FORCE), rng);
        assert_eq!(world.up(B).end().1, consistent);
        world.recover(rng);
    });
}

/// At a failback production drops earlier points that its peer holds too, and pays for no undo.
#[test]
fn l8_a_failback_drops_what_the_peer_holds_too() {
    with_seeds("l8", 5, |rng| {
        let mut world = World::synced(rng);
        world.run(A, Command::Stop(true), rng);
        world.run(B, FAILOVER, rng);
        let mut points = Vec::new();
        for n in [2, 3, 4] {
            world.put(B, n, rng);
            world.steps(&[Step::Seal(B)], rng);
            points.push(world.up(B).end().1);
        }
        world.run(A, RESYNC, rng);
        world.run(B, RESYNC, rng);
        world.calm(rng);
        assert!(backstay::applying::acting::builds_undo(&world.up(A).journal));
        world.run(B, Command::Stop(true), rng);
        world.run(A, Command::Failback, rng);
        assert!(!backstay::applying::acting::builds_undo(&world.up(A).journal));
        world.run(B, Command::Failback, rng);
        world.put(A, 6, rng);
        world.calm(rng);
        world.look_at_pair(A);
        for at in points {
            assert!(
                world.view(B, None, at).unwrap(),
                "{at} is not shown on the replica"
            );
        }
        let volumes = &world.up(A).volumes;
        let (id, at) = world.line_of(world.up(A));
        let mut read = |v, at, out: &mut [u8]| volumes.read(v, at, out).map_err(io::Error::other);
        while world.up(A).write_back(u64::MAX).unwrap() {}
        same("production's own volumes", world.lines.of(id), at, &mut read);
    });
}

/// Failing over and back without a write leaves no trace in history.
#[test]
fn over_and_back_without_a_write_is_no_generation() {
    with_seeds("no-op", 5, |rng| {
        let mut world = World::synced(rng);
        let before = Side::ALL.map(|side| world.up(side).journal.generations());
        let end = world.up(A).end();
        world.run(A, Command::Stop(true), rng);
        world.run(B, FAILOVER, rng);
        world.run(A, RESYNC, rng);
        world.run(B, RESYNC, rng);
        world.calm(rng);
        world.run(B, Command::Stop(true), rng);
        world.run(A, Command::Failback, rng);
        world.run(B, Command::Failback, rng);
        world.calm(rng);
        assert!(world.is_whole().unwrap());
        world.copied_is(&[]);
        assert_eq!(Side::ALL.map(|side| world.up(side).journal.generations()), before);
        assert_eq!(world.up(A).end(), end);
        world.put(A, 2, rng);
        world.calm(rng);
        assert_eq!(
            world.up(B).journal.generations().len(),
            2,
            "the first record opens one"
        );
        world.look_at_pair(A);
    });
}

/// Where the data of a host gives way, its own end stays to be looked at, until retention frees it.
#[test]
fn the_end_of_the_line_that_gave_way_stays_readable() {
    with_seeds("own end", 10, |rng| {
        let mut world = World::synced(rng);
        unplanned(&mut world, rng);
        world.put(A, 2, rng);
        world.put(A, 3, rng);
        let generation = world.up(A).journal.current_generation().unwrap().no;
        let (_, end) = world.up(A).end();
        world.put(B, 3, rng);
        world.put(B, 7, rng);
        resync(&mut world, rng);
        world.look_at_pair(B);
        assert!(
            world.view(A, Some(generation), end).unwrap(),
            "g{}:seq:{end}",
            generation.0
        );
        assert!(!world.view(A, None, end).unwrap() || world.up(A).end().1 >= end);
        world.put(B, 9, rng);
        world.calm(rng);
        assert!(
            world.view(A, Some(generation), end).unwrap(),
            "behind more containers"
        );
        world.shrink_window(A, 0);
        assert!(
            !world.view(A, Some(generation), end).unwrap(),
            "it is freed and shown still"
        );
        world.recover(rng);
    });
}

/// The acting production was fenced and took its role back by force, while the other host was rolled back: every refusal there
/// leads on, and none back to the command before it.
#[test]
fn a_replica_that_is_rolled_back_finds_its_way_to_a_higher_term() {
    with_seeds("rolled back, higher", 5, |rng| {
        let mut world = World::synced(rng);
        let (_, point) = world.up(A).end();
        world.run(A, Command::Stop(true), rng);
        world.run(B, FAILOVER, rng);
        world.put(B, 3, rng);
        world.run(A, RESYNC, rng);
        world.run(B, RESYNC, rng);
        world.calm(rng);
        world.run(B, Command::Stop(true), rng);
        let handed = world.step(&Step::Command(B, Command::Failback), rng);
        assert_eq!(handed, Some(Outcome::Waits));
        world.run(A, Command::Restore(seq(point)), rng);
        world.run(B, Command::Failover(FORCE), rng);
        let terms = Side::ALL.map(|side| world.up(side).row().unwrap().term);
        assert!(terms[0] < terms[1], "{terms:?}");
        for (command, next) in [(Command::Failback, Next::Failover), (FAILOVER, Next::ResyncThere)] {
            let outcome = world.step(&Step::Command(A, command.clone()), rng);
            assert_eq!(outcome, Some(Outcome::Refused(Hint::Next(next))), "{command:?}");
        }
        world.run(B, RESYNC, rng);
        world.recover(rng);
    });
}
