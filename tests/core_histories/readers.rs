//! Rule V2 with the real journal: readers on every block of every point while a container is applied, stopped between its
//! published undo and its overwrites, and while it goes on.

use super::{
    histories::{SMALL, small},
    hosts::storage,
    world::{Ends, Step, World},
};
use model::{Point, Target, Timestamp, WriteSeq, target::TargetKind};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};
use testkit::{sim::Op, with_seeds};

/// Every point that recovery can show.
fn points(world: &World) -> Vec<Point> {
    let journal = &world.b().journal;
    let from = world.b().consistent_from().expect("the first sync is complete");
    (from.0..=journal.cursors().durable.0)
        .map(|seq| {
            let target = Target::from(TargetKind::Seq(WriteSeq(seq)));
            journal.resolve(&target, Timestamp(u64::MAX)).unwrap().point
        })
        .collect()
}

#[test]
fn v2_views_are_true_while_a_container_is_applied() {
    let mut held_writes = 0;
    with_seeds("core: readers", 3, |rng| {
        let mut world = World::new(&SMALL, small(), rng);
        for _ in 0..6 {
            world.step(Step::Work, rng);
        }
        world.settle(rng);
        for pass in [0, 1, 3] {
            for _ in 0..12 {
                world.step(Step::Work, rng);
            }
            for _ in 0..12 {
                for step in [Step::Sync, Step::Ship, Step::HearB, Step::Keep, Step::HearA] {
                    world.step(step, rng);
                }
            }
            let points = points(&world);
            let look = |world: &World| points.iter().for_each(|p| world.compare_view(p.clone()).unwrap());
            let holds = (0..).zip(SMALL).map(|(v, size)| {
                let medium = world.b_power.medium(&format!("v{v}"), storage(size));
                medium.hold(Op::Write, pass)
            });
            let holds: Vec<_> = holds.collect();
            let over = AtomicBool::new(false);
            let world = &world;
            thread::scope(|s| {
                let applier = s.spawn(|| {
                    let _over = Ends(&over);
                    while world.b().apply_next().unwrap() {}
                });
                while !over.load(Ordering::Relaxed) && holds.iter().all(|h| h.waiting() == 0) {
                    thread::yield_now();
                }
                held_writes += holds.iter().map(|h| h.waiting()).sum::<usize>();
                // Undo is published, a write stands half done.
                look(world);
                s.spawn(|| look(world));
                drop(holds);
                while !over.load(Ordering::Relaxed) {
                    look(world);
                }
                applier.join().unwrap();
            });
            look(world);
            world.look_at_replica();
        }
        world.settle(rng);
    });
    println!("{held_writes} overwrites were stopped half-way");
    assert!(held_writes > 0);
}
