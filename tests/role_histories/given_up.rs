//! Lines that are given up by hosts in the middle of something, and points that had to go: where the volumes stand then, and
//! what may be promised of it. Each of these was found by a random history.

use super::{
    lab::{
        FAILOVER, RESYNC, amid_a_resync, behind_lower_numbers, rounds_until_copying, seq, taken_back,
        unplanned,
    },
    operator::{Command, FORCE, Hint, How, Outcome},
    world::{Side, Step, Stream, World},
};
use Side::{A, B};
use backstay::roles::{Next, Standing};
use journal::{Broken, LfcRow, Space, Wanted};
use model::{WriteSeq, ports::OrdinalKind};
use rand::{Rng, RngCore};
use testkit::with_seeds;

/// The replica is rolled back behind so many containers that it has applied, and holds more that it has not. Answers the point.
fn rolled_back(world: &mut World, applied: u64, rng: &mut dyn RngCore) -> WriteSeq {
    let (_, point) = world.up(B).end();
    for n in 0..applied {
        world.put(A, 2 + n, rng);
        world.steps(&[Step::Seal(A)], rng);
    }
    world.calm(rng);
    world.run(B, Command::Restore(seq(point)), rng);
    for n in [5, 6] {
        world.put(A, n, rng);
    }
    world.stream_all(A, rng);
    point
}

/// Whether the generation of a line that a host took over is opened, and lost its first record.
fn is_unborn(world: &World, side: Side) -> bool {
    let journal = &world.up(side).journal;
    journal.awaits_birth() && journal.promotion().is_none()
}

/// Whatever can be shown of a host is true.
fn look_at_all(world: &World, side: Side) {
    let end = world.up(side).journal.cursors().appended;
    for n in 1..=end.0 {
        world.view(side, None, WriteSeq(n)).unwrap();
    }
}

/// A line that was taken over at a restored point, and given up without a write, ends at that point; it did, even when no
/// undo was left of which that could be read, as if it had all that was held.
#[test]
fn l1_a_line_that_was_not_added_to_ends_where_it_was_taken_over() {
    // Nothing is written; or the power goes at every step of the first write.
    with_seeds("l1 not added to", 20, |rng| {
        let mut world = World::synced(rng);
        let point = rolled_back(&mut world, 0, rng);
        world.shrink_window(B, 0);
        unplanned(&mut world, rng);
        assert_eq!(world.up(B).end().1, point);
        if rng.random() {
            let nth = rng.random_range(1..5);
            world.steps_with_a_cut(B, nth, &[Step::Work(B), Step::Work(B)], rng);
        }
        world.steps(&[Step::Mend], rng);
        world.calm(rng);
        taken_back(&mut world, rng);
        look_at_all(&world, B);
        world.run(A, RESYNC, rng);
        rounds_until_copying(&mut world, rng);
        look_at_all(&world, B);
        world.calm(rng);
        world.look_at_pair(A);
        world.recover(rng);
    });
}

/// A failover from a restored point is cut at every durable step, and the other host takes over instead: what was held is
/// applied to nothing but what it was written upon.
#[test]
fn l1_a_failover_from_a_restored_point_that_is_overtaken_applies_nothing() {
    let mut overtaken = 0;
    let tried = with_seeds("l1 overtaken", 2, |rng| {
        for n in 1..40 {
            let mut world = World::synced(rng);
            rolled_back(&mut world, 3, rng);
            world.steps_with_a_cut(B, n, &[Step::Command(B, Command::Failover(FORCE))], rng);
            if world.up(B).standing().unwrap() == Standing::FailingOver
                && world.up(A).standing().unwrap() == Standing::Fenced
            {
                overtaken += 1;
                taken_back(&mut world, rng);
                assert!(world.up(B).restore().unwrap().is_none(), "the restore is over");
                look_at_all(&world, B);
                world.run(A, RESYNC, rng);
                world.calm(rng);
                world.look_at_pair(A);
            }
            world.recover(rng);
        }
    });
    println!("{overtaken} failovers were overtaken");
    assert!(tried < 2 || overtaken > 2, "{overtaken}");
}

/// A line is left in the middle of a long container, and the one that follows it is short: its numbers are those that the long one
/// goes on with. It is taken over where the long one is held, and that has no part in it.
#[test]
fn l1_a_short_line_beside_a_long_container_that_was_left() {
    with_seeds("l1 short", 10, |rng| {
        for crash in [false, true] {
            let mut world = World::synced(rng);
            world.put(A, 2, rng);
            world.calm(rng);
            world.steps(&[Step::Cut], rng);
            for region in 0..24 {
                world.put(A, region % 7, rng);
            }
            world.run(B, Command::Failover(FORCE), rng);
            world.steps(&[Step::Mend], rng);
            world.run(A, RESYNC, rng);
            world.run(B, RESYNC, rng);
            world.put(B, 3, rng);
            world.calm(rng);
            let (_, end) = world.up(B).end();
            let rows = world.up(A).journal.lfc_rows(..);
            let spans = |row: &LfcRow| row.first_seq <= end && end < row.last_seq;
            assert!(
                rows.iter().any(|row| spans(row)),
                "numbers come twice, up to {end}"
            );
            world.run(B, Command::Stop(true), rng);
            world.run(A, FAILOVER, rng);
            if crash {
                world.steps(&[Step::Crash(A), Step::Settle], rng);
            }
            world.look_at_pair(A);
            world.run(B, RESYNC, rng);
            world.run(A, RESYNC, rng);
            world.put(A, 5, rng);
            world.calm(rng);
            world.look_at_pair(A);
            // What waits in the overlay reaches the volumes.
            world.run(A, Command::Stop(true), rng);
            world.recover(rng);
        }
    });
}

/// A host that has given its line up loses power when the other one's stream begins, is to take over after all, and loses power on
/// its way back to its last consistent point. When that is undone it has given its line up still.
#[test]
fn l7_the_undo_of_a_way_back_leads_to_a_line_that_was_given_up() {
    let mut undone = 0;
    let tried = with_seeds("l7 undone", 2, |rng| {
        for case in 0..5 * 8 * 4 {
            let (way, n, rounds) = (1 + case % 5, 1 + case / 5 % 8, 1 + case / 40);
            let mut world = World::synced(rng);
            unplanned(&mut world, rng);
            world.put(A, 2, rng);
            world.put(B, 3, rng);
            world.steps(&[Step::Mend], rng);
            world.run(A, RESYNC, rng);
            world.run(B, RESYNC, rng);
            let stream: Vec<Step> = (0..rounds).map(|_| Step::Round(B)).collect();
            world.steps_with_a_cut(A, n, &stream, rng);
            let standing = |world: &World| world.up(A).standing().unwrap();
            let last = world.up(A).journal.consistent().pop();
            if standing(&world) != Standing::ResyncReady || last.is_none_or(|span| span.until.is_none()) {
                continue;
            }
            world.steps(&[Step::Cut], rng);
            world.steps_with_a_cut(A, way, &[Step::Command(A, Command::Failover(FORCE))], rng);
            if standing(&world) != Standing::Restoring {
                continue;
            }
            undone += 1;
            if n % 2 == 0 {
                // The other host is there again before: it is not to meet a replica that gave nothing up.
                world.steps(&[Step::Mend], rng);
                world.calm(rng);
            }
            world.run(A, Command::Undo, rng);
            assert_eq!(standing(&world), Standing::ResyncReady);
            world.steps(&[Step::Mend], rng);
            world.calm(rng);
            world.look_at_pair(B);
            world.recover(rng);
        }
    });
    println!("{undone} ways back were undone");
    assert!(tried < 2 || undone > 0, "{undone}");
}

/// A failover is cut in its middle and the old production takes its own line over again. Containers of which the replica lacks records
/// give way before anything is added: no map has them, and they are copied all the same.
#[test]
fn l1_what_gives_way_before_a_line_is_added_to_is_copied() {
    let mut taken = 0;
    let tried = with_seeds("l1 gave way", 2, |rng| {
        for n in 1..16 {
            let mut world = World::synced(rng);
            world.put(A, 2, rng);
            world.stream_all(A, rng);
            // The rest of this container the replica gets from a production that is told to stop, or not.
            world.put(A, 3, rng);
            world.put(A, 4, rng);
            world.steps(&[Step::Seal(A)], rng);
            world.put(A, 5, rng);
            world.steps_with_a_cut(B, n, &[Step::Command(B, Command::Failover(FORCE))], rng);
            let standing = |world: &World, side| world.up(side).standing().unwrap();
            if (standing(&world, A), standing(&world, B)) != (Standing::Fenced, Standing::Replica) {
                continue;
            }
            world.steps(&[Step::Cut], rng);
            world.run(A, Command::Failover(FORCE), rng);
            let (_, theirs) = world.up(B).end();
            let give_way = |world: &mut World, rng: &mut dyn RngCore| {
                while world.up(A).journal.floors().redo_seq.seq <= theirs {
                    world.steps(&[Step::Overflow(A)], rng);
                }
            };
            taken += 1;
            // Before the two meet, or when they have.
            let met = n % 2 == 0;
            if !met {
                give_way(&mut world, rng);
            }
            world.run(A, Command::Failback, rng);
            world.steps(&[Step::Mend], rng);
            if met {
                while !world.links[A.index()]
                    .as_ref()
                    .is_some_and(|link| link.is_greeted())
                {
                    world.steps(
                        &[Step::Link(A, Stream::HearShip), Step::Link(A, Stream::HearFollow)],
                        rng,
                    );
                }
                give_way(&mut world, rng);
            }
            world.calm(rng);
            world.look_at_pair(A);
            world.recover(rng);
        }
    });
    println!("{taken} lines were taken over again");
    assert!(tried < 2 || taken > 2, "{taken}");
}

/// A line is taken over, and the power goes between the opening of its generation and its first record. The host is to follow again:
/// the other line's next record has no place there, so the two are brought together, and no stream fails for ever.
#[test]
fn l1_a_line_that_was_opened_and_not_added_to_does_not_go_on_as_another() {
    let mut opened = 0;
    let tried = with_seeds("l1 opened", 2, |rng| {
        for n in 1..12 {
            let mut world = World::synced(rng);
            world.put(A, 2, rng);
            // Both lines have a container's end there: the stream could simply go on.
            world.steps(&[Step::Seal(A)], rng);
            world.stream_all(A, rng);
            world.put(A, 3, rng);
            unplanned(&mut world, rng);
            world.steps_with_a_cut(B, n, &[Step::Work(B), Step::Sync(B)], rng);
            opened += u32::from(is_unborn(&world, B));
            world.steps(&[Step::Mend], rng);
            world.run(A, Command::Failover(FORCE), rng);
            world.run(A, Command::Failback, rng);
            // Refused, if the two must be brought together first.
            let hint = Outcome::Refused(Hint::Next(Next::Resync));
            if world.step(&Step::Command(B, Command::Failback), rng) == Some(hint) {
                world.run(B, RESYNC, rng);
            }
            // Before the other host writes: what comes is the rest of the line that both were on.
            world.calm(rng);
            world.put(A, 7, rng);
            world.calm(rng);
            world.look_at_pair(A);
            world.recover(rng);
        }
    });
    println!("{opened} generations were opened and had no record");
    assert!(tried < 2 || opened > 1, "{opened}");
}

/// A line is taken over twice by one host. Its journal gives way, and the power goes between the opening of the second generation and
/// its first record. The other host, which stands where the first one begins, is sent what is not held any more as copies.
#[test]
fn l1_a_line_that_was_opened_and_not_added_to_is_held_no_better_than_its_records() {
    let mut opened = 0;
    let tried = with_seeds("l1 opened and given way", 8, |rng| {
        for n in 1..16 {
            let mut world = World::synced(rng);
            world.run(A, Command::Stop(true), rng);
            world.run(B, FAILOVER, rng);
            world.put(B, 2, rng);
            world.put(B, 3, rng);
            world.run(A, Command::Failover(FORCE), rng);
            world.run(B, Command::Failover(FORCE), rng);
            let last = world.up(B).end().1;
            world.steps_with_a_cut(B, n, &[Step::Work(B), Step::Overflow(B), Step::Sync(B)], rng);
            let is_given_way = world.up(B).journal.floors().redo_seq.seq == last;
            opened += u32::from(is_unborn(&world, B) && is_given_way);
            world.steps(&[Step::Mend], rng);
            world.calm(rng);
            world.run(A, RESYNC, rng);
            world.run(B, RESYNC, rng);
            // Before anything is written, which would give the second generation its first record.
            world.calm(rng);
            world.look_at_pair(B);
            world.recover(rng);
        }
    });
    println!("{opened} generations were opened, had no record, and what was before them was not held");
    assert!(tried < 8 || opened > 0, "{opened}");
}

/// A line that was taken over at a point and not added to is taken over again when the containers behind that point are forgotten:
/// what was taken over still knows the digest there.
#[test]
fn l1_a_line_is_taken_over_again_where_nothing_before_is_known_any_more() {
    with_seeds("l1 again", 4, |rng| {
        let mut world = World::synced(rng);
        let point = rolled_back(&mut world, 3, rng);
        unplanned(&mut world, rng);
        world.steps(&[Step::Mend], rng);
        world.calm(rng);
        taken_back(&mut world, rng);
        world.shrink_window(B, 0);
        world.steps(&[Step::Cut], rng);
        world.run(B, Command::Failover(FORCE), rng);
        assert_eq!(world.up(B).end().1, point);
        world.put(B, 8, rng);
        world.recover(rng);
    });
}

/// The last consistent point of a resync had to go for room: nothing goes back to it, and whoever insists is told what is left.
#[test]
fn l7_a_last_consistent_point_that_had_to_go_is_not_promised() {
    let mut lost = 0;
    let tried = with_seeds("l7 had to go", 10, |rng| {
        let mut world = amid_a_resync(rng);
        // Until a copy is on the replica, and undo of it is what leads back.
        let copied = |world: &World| {
            let rows = world.up(B).journal.ordinal_rows(..);
            rows.iter().any(|row| row.kind == OrdinalKind::Copies)
        };
        for _ in 0..40 {
            if copied(&world) {
                break;
            }
            world.steps(&[Step::Round(A)], rng);
        }
        // Room shrinks byte by byte, as it were: what goes first is undo of copies, and no container goes with it.
        let journal = &world.up(B).journal;
        let held = journal.held_bytes().unwrap();
        let mut limits = (0..held).rev().step_by(256).map(Space::Limit);
        let retained = limits.find_map(|limit| {
            let retained = journal.retain(&Wanted::default(), limit, Vec::new()).unwrap();
            (!retained.broken.is_empty()).then_some(retained)
        });
        let retained = retained.expect("something gives way before all is gone");
        if retained.broken.contains(&Broken::Resync) {
            lost += 1;
            assert_eq!(journal.last_consistent(), None);
            assert!(journal.consistent().is_empty(), "{:?}", journal.consistent());
            world.steps(&[Step::Cut], rng);
            let refused = world.step(&Step::Command(B, Command::Failover(FORCE)), rng);
            assert_eq!(refused, Some(Outcome::Refused(Hint::Inconsistent)));
            let how = How {
                inconsistent: true,
                ..FORCE
            };
            world.run(B, Command::Failover(how), rng);
        }
        world.recover(rng);
    });
    println!("{lost} points had to go");
    assert!(tried < 10 || lost > 3, "{lost}");
}

/// A replica stands behind a gap, on a line of lower numbers than the one that it left, before its first container there:
/// everything of the line before is applied, and it may give way again.
#[test]
fn l1_a_replica_behind_a_gap_of_lower_numbers_gives_way_again() {
    with_seeds("l1 lower numbers", 10, |rng| {
        let (mut world, _) = behind_lower_numbers(rng);
        let cursors = world.up(B).journal.cursors();
        assert_eq!(
            cursors.applied_lfc.1.0, 0,
            "no container of the new line: {cursors:?}"
        );
        world.run(B, Command::Resync(FORCE), rng);
        look_at_all(&world, B);
        world.recover(rng);
    });
}
