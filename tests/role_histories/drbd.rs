//! DRBD's published test cases that apply to two hosts of this kind, by their names there (drbd9-tests). What each means here,
//! and which do not apply: docs/RELIABILITY.md.

use super::{
    host::REGION,
    lab::{FAILOVER, RESYNC, V, amid_a_resync, overflowed, resync, seq, unplanned},
    operator::{Command, FORCE, Outcome},
    world::{Side, Step, World},
};
use Side::{A, B};
use backstay::roles::Standing;
use model::{ByteRange, Timestamp};
use rand::{Rng, RngCore};
use testkit::with_seeds;

/// Numbers of the regions of a range.
fn regions(range: ByteRange) -> std::ops::Range<u64> {
    range.start / REGION..range.end.div_ceil(REGION)
}

/// Neither serves, or one.
fn at_most_one_serves(world: &World) {
    let serves = |side| world.up(side).serving().unwrap().is_some();
    assert!(!(serves(A) && serves(B)), "both serve");
}

/// The link cannot keep up: production goes ahead, what the peer lacks becomes a set, and exactly that crosses when it can.
#[test]
fn drbd_ahead_behind() {
    with_seeds("drbd ahead-behind", 10, |rng| {
        let mut world = World::synced(rng);
        for _ in 0..3 {
            overflowed(&mut world, rng);
            world.put(A, 7, rng);
            let stale = world.up(A).stale();
            let set: Vec<u64> = stale[&V].iter().flat_map(|range| regions(*range)).collect();
            assert!(!set.is_empty());
            world.count_what_crosses();
            world.steps(&[Step::Mend], rng);
            world.calm(rng);
            world.look_at_pair(A);
            world.copied_is(&set);
        }
        world.recover(rng);
    });
}

/// An application that writes what is being copied, all the while.
#[test]
fn drbd_busy_resync() {
    with_seeds("drbd busy-resync", 10, |rng| {
        let mut world = amid_a_resync(rng);
        for n in 0..60 {
            world.put(A, [2, 3, 4, 9][n % 4], rng);
            world.steps(&[Step::Round(A)], rng);
            if rng.random_bool(0.3) {
                world.steps(&[Step::WriteBack(A), Step::View(B)], rng);
            }
        }
        world.calm(rng);
        world.look_at_pair(A);
        world.recover(rng);
    });
}

/// A resync is interrupted after so many steps, by the link, by the end of either host, or by a disk without room, again and
/// again; the last consistent point stays what it is.
#[test]
fn drbd_interrupted_resync() {
    with_seeds("drbd interrupted resync", 4, |rng| {
        for rounds in 0..12 {
            let mut world = amid_a_resync(rng);
            let until = world.up(B).journal.last_consistent().expect("amid a resync");
            for interruption in [Step::Cut, Step::Crash(A), Step::Crash(B), Step::Full(B)] {
                for _ in 0..rounds {
                    world.steps(&[Step::Round(A)], rng);
                }
                world.steps(&[interruption, Step::Late(A), Step::Room(B), Step::Mend], rng);
                if world.up(B).journal.last_consistent() == Some(until) {
                    assert!(world.view(B, Some(until.generation), until.seq).unwrap());
                }
            }
            world.calm(rng);
            world.look_at_pair(A);
            world.recover(rng);
        }
    });
}

/// Production ends under load and comes back: what the peer lacks is in the journal, and no region is copied.
#[test]
fn drbd_resync_after_primary_crash() {
    with_seeds("drbd resync-after-primary-crash", 20, |rng| {
        let mut world = World::synced(rng);
        world.count_what_crosses();
        for _ in 0..4 {
            for n in [2, 3, 4] {
                world.put(A, n, rng);
                if rng.random() {
                    world.steps(&[Step::Round(A)], rng);
                }
            }
            world.steps(&[Step::Work(A), Step::Crash(A), Step::Late(A), Step::Settle], rng);
        }
        world.calm(rng);
        world.look_at_pair(A);
        world.copied_is(&[]);
        world.recover(rng);
    });
}

/// Who promotes and who demotes at once, in any order, with and without a link between: one serves at most once they have met,
/// and the way back is there.
#[test]
fn drbd_concurrent_promote_demote() {
    let commands = |rng: &mut dyn RngCore| {
        let mut all = vec![
            (A, Command::Stop(true)),
            (B, FAILOVER),
            (B, Command::Failover(FORCE)),
            (A, Command::Failover(FORCE)),
            (A, RESYNC),
            (B, RESYNC),
            (A, Command::Failback),
            (B, Command::Failback),
        ];
        for i in (1..all.len()).rev() {
            all.swap(i, rng.random_range(0..=i));
        }
        all
    };
    with_seeds("drbd concurrent-promote-demote", 60, |rng| {
        let mut world = World::synced(rng);
        for (side, command) in commands(rng) {
            world.step(&Step::Work(side.other()), rng);
            world.step(&Step::Command(side, command), rng);
            let link = [Step::Cut, Step::Mend, Step::Settle][rng.random_range(0..3)].clone();
            world.step(&link, rng);
        }
        world.steps(&[Step::Mend, Step::Settle, Step::Settle], rng);
        world.calm(rng);
        at_most_one_serves(&world);
        world.recover(rng);
    });
}

/// A replica that is behind is taken over; the host that was ahead comes back, and is the outdated one.
#[test]
fn drbd_outdated_peer() {
    with_seeds("drbd outdated peer", 20, |rng| {
        let mut world = World::synced(rng);
        world.steps(&[Step::Cut], rng);
        world.put(A, 6, rng);
        world.steps(&[Step::Crash(A)], rng);
        world.run(B, FAILOVER, rng);
        world.put(B, 8, rng);
        world.steps(&[Step::Mend], rng);
        world.calm(rng);
        at_most_one_serves(&world);
        assert_eq!(world.up(A).standing().unwrap(), Standing::Fenced);
        let (refused, before) = (
            world.step(&Step::Command(A, Command::Failback), rng),
            world.picture(),
        );
        assert!(matches!(refused, Some(Outcome::Refused(_))), "{refused:?}");
        assert_eq!(world.picture(), before);
        resync(&mut world, rng);
        world.look_at_pair(B);
        world.recover(rng);
    });
}

/// Both wrote while they could not see each other. Nothing is overwritten until an operator chooses; either choice works, and
/// what the loser had written stays readable there.
#[test]
fn drbd_split_brain() {
    for winner in Side::ALL {
        with_seeds("drbd split brain", 10, |rng| {
            let mut world = World::synced(rng);
            unplanned(&mut world, rng);
            for n in [2, 3] {
                world.put(A, n, rng);
                world.put(B, n + 1, rng);
            }
            let loser = winner.other();
            let (_, lost) = world.up(loser).end();
            let named = world.up(loser).journal.current_generation().unwrap().no;
            world.steps(&[Step::Mend], rng);
            world.calm(rng);
            at_most_one_serves(&world);
            if winner == A {
                world.run(A, Command::Failover(FORCE), rng);
            }
            world.put(winner, 9, rng);
            world.run(loser, RESYNC, rng);
            assert!(
                world.view(loser, Some(named), lost).unwrap(),
                "what the loser had written"
            );
            world.run(winner, RESYNC, rng);
            world.calm(rng);
            world.look_at_pair(winner);
            world.recover(rng);
        });
    }
}

/// A peer that was never this one's: its store is new, so everything is copied, and it shows nothing before that.
#[test]
fn drbd_day0_uuid() {
    with_seeds("drbd day0-uuid", 10, |rng| {
        let mut world = World::new(rng);
        let empty = world.hosts[B.index()].power.image();
        for n in [1, 5, 9] {
            world.put(A, n, rng);
        }
        world.calm(rng);
        world.put_back(B, &empty);
        world.count_what_crosses();
        world.put(A, 2, rng);
        let (_, end) = world.up(A).end();
        let resolved = world.up(B).journal.resolve(&seq(end), Timestamp(u64::MAX));
        assert!(resolved.is_err(), "{resolved:?}");
        world.calm(rng);
        world.look_at_pair(A);
        let copied = world.copied();
        assert!(copied.contains(&(V, 5)), "{copied:?}");
        world.recover(rng);
    });
}
