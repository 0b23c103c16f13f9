//! The same histories one level down: each journal in real files and the real store, on a file system that loses what was not
//! synced (`testkit::SimFiles`). Every sync counts that RocksDB makes, also those of its own threads.

use super::{
    histories::{SMALL, played, small},
    world::{Counts, World, draw},
};
use rand::{Rng, RngCore};
use testkit::{proc::root_for, with_seeds};

fn world(rng: &mut dyn RngCore) -> World {
    World::new(&SMALL, small(), rng).below()
}

/// The scripted history, either host cut at random syncs: there are too many to visit each.
#[test]
fn cuts_at_syncs_of_the_store_in_a_scripted_history() {
    if !root_for("histories on file systems that lose what was not synced") {
        return;
    }
    const CUTS: usize = 5;
    let (mut all, mut total) = (0, Counts::default());
    let tried = with_seeds("core, below: scripted", 2, |rng| {
        let seed = rng.random();
        for production in [true, false] {
            let syncs = played(world, production, None, seed, &mut Counts::default());
            all += syncs;
            for _ in 0..CUTS {
                let n = rng.random_range(1..=syncs);
                played(world, production, Some(n), seed, &mut total);
            }
        }
    });
    println!("{tried} scripted histories of {all} syncs: {total:?}");
}

/// Anything may follow anything, and either host may crash at any sync, also in the middle of a recovery.
#[test]
fn random_histories_with_crashes_below_the_store() {
    if !root_for("histories on file systems that lose what was not synced") {
        return;
    }
    let mut total = Counts::default();
    let tried = with_seeds("core, below: random", 6, |rng| {
        let mut world = world(rng);
        for _ in 0..8 {
            for power in [&world.a_power, &world.b_power] {
                if rng.random_bool(0.6) {
                    power.freeze_at(rng.random_range(1..150));
                }
            }
            for _ in 0..rng.random_range(10..100) {
                world.step(draw(rng), rng);
            }
        }
        world.settle(rng);
        total += world.counts();
    });
    println!("{tried} random histories: {total:?}");
}
