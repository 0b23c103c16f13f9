//! Random histories: every view at every record against the oracle.

use crate::world::{World, bodies, check_pieces};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use testkit::{with_seeds, workload::odd_sizes};

#[test]
fn every_view_at_every_record_of_random_histories() {
    with_seeds("every_view_at_every_record", 25, |rng| {
        let count = rng.random_range(1..=3);
        let sizes = odd_sizes(count, 90_000, rng);
        let mut world = World::new(&sizes);
        for _ in 0..rng.random_range(5..20) {
            step(&mut world, rng);
            assert!(world.history.containers() as u64 >= world.applied.0);
        }
        world.check_all();
        for (point, state) in &world.points {
            check_pieces(&world.view(point), state, rng);
        }
    });
}

fn step(world: &mut World, rng: &mut StdRng) {
    match rng.random_range(0..10) {
        0..4 => {
            let count = rng.random_range(0..8);
            let bodies = bodies(&world.sizes, count, rng);
            world.receive(bodies);
        }
        4..8 if !world.waiting.is_empty() => {
            if rng.random_range(0..4) == 0 {
                world.power.freeze_at(rng.random_range(1..4));
            }
            if world.apply().is_err() {
                world.crash(rng);
                world.check_all();
                world.apply().unwrap();
            }
            world.power.never_freeze();
        }
        8 => restore(world, rng),
        _ => world.check_all(),
    }
}

/// A restore, then its undo or a new line from there.
fn restore(world: &mut World, rng: &mut StdRng) {
    let now = world
        .points
        .iter()
        .rev()
        .find(|(p, _)| p.base == world.applied && p.redo.is_empty());
    let before = Arc::clone(&now.unwrap().1);
    let (point, state) = world.points[rng.random_range(0..world.points.len())].clone();
    let plan = world.plan(&point);
    let restored = world.execute(&plan, None, &mut ()).unwrap();
    world.check_volumes(&state);
    if rng.random() {
        world.settle(&restored, &state);
        world.new_line(restored.last, &point, &state);
    } else {
        let undo = plan.undo(&*world.history);
        let undone = world.execute(&undo, None, &mut ()).unwrap();
        world.check_volumes(&before);
        world.settle(&undone, &before);
        if rng.random() {
            world.boundary.0 = undone.last;
        }
    }
    // Draws must not depend on how many seeds were tried.
    let _ = StdRng::seed_from_u64(rng.next_u64());
}
