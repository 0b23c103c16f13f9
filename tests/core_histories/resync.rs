//! Rules C2 and C3 with both hosts: histories in which one rule decides the end.

use super::{
    histories::{SMALL, small},
    world::{Step, World},
};
use journal::{Broken, Space, Wanted};
use rand::RngCore;
use testkit::with_seeds;

fn steps(world: &mut World, steps: &[Step], times: usize, rng: &mut dyn RngCore) {
    for _ in 0..times {
        for step in steps {
            world.step(*step, rng);
        }
    }
}

const STREAM: [Step; 5] = [Step::Sync, Step::Ship, Step::HearB, Step::Keep, Step::HearA];

/// Production writes without its peer until the journal gives way.
fn overflow(world: &mut World, rng: &mut dyn RngCore) {
    world.step(Step::Cut, rng);
    let write = [Step::Work, Step::Sync, Step::WriteBack, Step::WriteBack];
    steps(world, &write, 14, rng);
    let give_way = [Step::Checkpoint, Step::Ingest, Step::Overflow, Step::Overflow];
    steps(world, &give_way, 1, rng);
}

fn synced(rng: &mut dyn RngCore) -> World {
    let mut world = World::new(&SMALL, small(), rng);
    steps(&mut world, &[Step::Work], 6, rng);
    world.settle(rng);
    steps(&mut world, &[Step::Work], 8, rng);
    steps(&mut world, &STREAM, 6, rng);
    world
}

/// Copies arrive, containers behind them are applied, and every point before the gap is what it was.
#[test]
fn c2_points_before_the_gap_stay_while_copies_arrive() {
    let mut looked = 0;
    with_seeds("c2", 12, |rng| {
        let mut world = synced(rng);
        steps(&mut world, &[Step::Apply], 4, rng);
        overflow(&mut world, rng);
        for _ in 0..12 {
            steps(&mut world, &[Step::Copy, Step::Work], 1, rng);
            steps(&mut world, &STREAM, 1, rng);
            steps(&mut world, &[Step::Apply, Step::View], 1, rng);
            looked += usize::from(world.is_amid_copies());
        }
        world.settle(rng);
        steps(&mut world, &[Step::View], 5, rng);
    });
    println!("{looked} looks amid copies");
    assert!(looked > 30, "{looked}");
}

/// The region is written again behind its copy, in the same container: the copy must come first.
#[test]
fn c3_a_copy_comes_before_the_records_behind_it() {
    with_seeds("c3 behind", 25, |rng| {
        let mut world = synced(rng);
        overflow(&mut world, rng);
        // Copies and writes take turns, and nothing is applied before all of them are there.
        steps(
            &mut world,
            &[Step::Sync, Step::Ship, Step::HearB, Step::HearA],
            2,
            rng,
        );
        steps(&mut world, &[Step::Copy, Step::Work], 10, rng);
        steps(&mut world, &STREAM, 12, rng);
        world.settle(rng);
    });
}

/// Records before the gap were received and not applied; one that was dropped came after them: the copy must come last.
#[test]
fn c3_a_copy_comes_after_what_was_received_before_the_gap() {
    with_seeds("c3 before", 25, |rng| {
        let mut world = synced(rng);
        steps(&mut world, &[Step::Work], 12, rng);
        steps(&mut world, &STREAM, 8, rng);
        overflow(&mut world, rng);
        steps(&mut world, &[Step::Copy], 3, rng);
        steps(&mut world, &STREAM, 8, rng);
        world.settle(rng);
    });
}

/// Room runs out amid a resync: the last consistent point goes, and the resync goes on as a first sync, without undo.
#[test]
fn k1_a_resync_that_lost_its_point_goes_on_as_a_first_sync() {
    let mut broken = 0;
    let tried = with_seeds("k1 resync", 12, |rng| {
        let mut world = synced(rng);
        steps(&mut world, &[Step::Apply], 4, rng);
        overflow(&mut world, rng);
        for _ in 0..6 {
            steps(&mut world, &[Step::Copy, Step::Work], 1, rng);
            steps(&mut world, &STREAM, 1, rng);
            steps(&mut world, &[Step::Apply], 2, rng);
        }
        if world.is_amid_copies() {
            let journal = &world.b().journal;
            let retained = journal.retain(&Wanted::default(), Space::Limit(0), Vec::new());
            if retained.unwrap().broken.contains(&Broken::Resync) {
                assert!(journal.consistent().is_empty());
                broken += 1;
            }
        }
        world.settle(rng);
    });
    println!("{broken} resyncs lost their point");
    assert!(tried < 12 || broken > 3, "{broken}");
}

/// Each resync leaves a span of consistent points behind; one that nothing leads back to is forgotten, and no undo is kept for it.
#[test]
fn k1_spans_that_nothing_can_reach_are_forgotten() {
    let mut forgotten = 0;
    let tried = with_seeds("k1 spans", 12, |rng| {
        let mut world = synced(rng);
        for _ in 0..2 {
            overflow(&mut world, rng);
            world.settle(rng);
        }
        let journal = &world.b().journal;
        let before = journal.consistent();
        journal
            .retain(&Wanted::default(), Space::Limit(0), Vec::new())
            .unwrap();
        let (after, floor) = (journal.consistent(), journal.floors().redo_seq);
        assert!(
            after
                .iter()
                .all(|span| span.until.is_none_or(|until| until >= floor)),
            "{after:?} below {floor:?}"
        );
        assert_eq!(after.last(), before.last());
        forgotten += before.len() - after.len();
    });
    println!("{forgotten} spans forgotten");
    assert!(tried < 12 || forgotten > 3, "{forgotten}");
}
