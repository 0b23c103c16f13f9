//! Power cuts and kills at every sync of either host, and random histories with many of them.

use super::world::{Counts, Step, World, draw};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use testkit::{with_seeds, workload::Shape};

/// Small volumes of odd sizes, and one that can grow.
pub const SMALL: [u64; 3] = [90 * 1024 + 777, 37_001, 20 << 10];

pub fn small() -> Shape {
    Shape {
        len_max: 24 << 10,
        zero_len_max: 48 << 10,
        ..Shape::default()
    }
}

/// A history that has everything in it: a first sync under writes, marks, seals, an overflow and its resync, restores and
/// their undo, and a volume that grows before and amid all that.
fn script(rng: &mut dyn RngCore) -> Vec<Step> {
    let mut steps = Vec::new();
    let work = |steps: &mut Vec<Step>, n| (0..n).for_each(|_| steps.push(Step::Work));
    let stream = |steps: &mut Vec<Step>, n| {
        for _ in 0..n {
            steps.extend([
                Step::Sync,
                Step::Copy,
                Step::Ship,
                Step::HearB,
                Step::Keep,
                Step::HearA,
            ]);
        }
    };
    work(&mut steps, 6);
    stream(&mut steps, 6);
    work(&mut steps, 4);
    steps.extend([Step::WriteBack, Step::Checkpoint]);
    stream(&mut steps, 6);
    steps.extend([Step::Apply; 4]);
    stream(&mut steps, 6);
    for _ in 0..4 {
        steps.push(Step::Grow);
        work(&mut steps, 5);
        stream(&mut steps, 2);
        steps.extend([
            Step::Apply,
            Step::WriteBack,
            Step::View,
            Step::Drop,
            Step::Pin,
            Step::Retain,
        ]);
    }
    // The link breaks and the journal gives way; the replica is restored to its last point amid the resync.
    steps.push(Step::Cut);
    for _ in 0..3 {
        steps.push(Step::Grow);
        work(&mut steps, 5);
        steps.extend([Step::Sync, Step::WriteBack, Step::WriteBack]);
    }
    steps.extend([
        Step::Checkpoint,
        Step::Ingest,
        Step::Overflow,
        Step::Overflow,
        Step::View,
    ]);
    stream(&mut steps, 2);
    steps.extend([Step::Apply, Step::View, Step::Restore, Step::View]);
    stream(&mut steps, 1);
    steps.extend([Step::Undo, Step::Apply, Step::Apply]);
    stream(&mut steps, 6);
    steps.extend([Step::Apply; 4]);
    stream(&mut steps, 6);
    steps.extend([
        Step::Checkpoint,
        Step::Drop,
        Step::Restore,
        Step::View,
        Step::Retain,
        Step::View,
    ]);
    work(&mut steps, 3);
    stream(&mut steps, 2);
    steps.extend([Step::Apply, Step::Undo, Step::Apply, Step::Apply, Step::View]);
    steps.extend([Step::Retain, Step::View, Step::Apply, Step::Retain, Step::View]);
    // A few of the steps come elsewhere, so that every seed is another history.
    for _ in 0..4 {
        let at = rng.random_range(0..steps.len());
        steps.insert(at, draw(rng));
    }
    steps
}

/// Plays the script of a seed, with one host cut at its n-th sync, or not at all. Answers how many syncs that host made.
pub fn played(
    world: fn(&mut dyn RngCore) -> World,
    production: bool,
    n: Option<u64>,
    seed: u64,
    total: &mut Counts,
) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = world(&mut rng);
    let power = if production {
        &world.a_power
    } else {
        &world.b_power
    };
    if let Some(n) = n {
        power.freeze_at(n);
    }
    for step in script(&mut rng) {
        world.step(step, &mut rng);
    }
    let power = if production {
        &world.a_power
    } else {
        &world.b_power
    };
    let syncs = power.syncs();
    world.settle(&mut rng);
    *total += world.counts();
    syncs
}

/// Cuts one host at its n-th sync, for every n that the history has; answers how many there were.
fn every_sync_of(production: bool, rng: &mut dyn RngCore, total: &mut Counts) -> u64 {
    let seed = rng.random::<u64>();
    let world = |rng: &mut dyn RngCore| World::new(&SMALL, small(), rng);
    for n in 1.. {
        let crashes = total.crashes;
        played(world, production, Some(n), seed, total);
        if total.crashes == crashes {
            return n - 1;
        }
    }
    unreachable!("a history has an end")
}

#[test]
fn a_cut_at_every_sync_of_production() {
    let (mut cuts, mut total) = (0, Counts::default());
    let tried = with_seeds("core: every sync of production", 8, |rng| {
        cuts += every_sync_of(true, rng, &mut total);
    });
    println!("{cuts} cuts at syncs of production in {tried} histories: {total:?}");
    let all = total.views > 0 && total.restores > 0 && total.copies > 0;
    assert!(tried < 8 || (cuts > 50 * tried && all));
}

#[test]
fn a_cut_at_every_sync_of_recovery() {
    let (mut cuts, mut total) = (0, Counts::default());
    let tried = with_seeds("core: every sync of recovery", 4, |rng| {
        cuts += every_sync_of(false, rng, &mut total);
    });
    println!("{cuts} cuts at syncs of recovery in {tried} histories: {total:?}");
    let all = total.views > 0 && total.restores > 0 && total.applied > 0 && total.retained > 0;
    assert!(tried < 4 || (cuts > 50 * tried && all));
}

/// Anything may follow anything, and either host may crash at any sync, also in the middle of a recovery.
#[test]
fn random_histories_with_crashes_of_both_hosts() {
    let mut total = Counts::default();
    let tried = with_seeds("core: random histories", 150, |rng| {
        let mut world = World::new(&SMALL, small(), rng);
        for _ in 0..10 {
            for power in [&world.a_power, &world.b_power] {
                if rng.random_bool(0.6) {
                    power.freeze_at(rng.random_range(1..60));
                }
            }
            for _ in 0..rng.random_range(10..120) {
                world.step(draw(rng), rng);
            }
        }
        world.settle(rng);
        total += world.counts();
    });
    println!("{tried} random histories: {total:?}");
    let all = total.crashes > 100 && total.views > 0 && total.restores > 0 && total.retained > 50;
    assert!(tried < 100 || all);
}

/// Writes up to a megabyte, far larger than a container, on volumes of more than one.
#[test]
fn random_histories_with_large_writes() {
    let mut total = Counts::default();
    let tried = with_seeds("core: large writes", 8, |rng| {
        let mut world = World::new(&[(5 << 20) / 4 + 513, 1 << 20], Shape::default(), rng);
        for _ in 0..6 {
            world.a_power.freeze_at(rng.random_range(1..80));
            world.b_power.freeze_at(rng.random_range(1..80));
            for _ in 0..rng.random_range(10..80) {
                world.step(draw(rng), rng);
            }
        }
        world.settle(rng);
        total += world.counts();
    });
    println!("{tried} histories of large writes: {total:?}");
}
