//! `rules.md` V2: readers while containers are overwritten.

use crate::world::{World, bodies, check, write, zero};
use model::{ByteRange, Ordinal, Point, VolumeIndex, ports::History, ports::Medium};
use rand::{Rng, SeedableRng, rngs::StdRng};
use snapshot::{View, Volumes};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use testkit::{SimMedium, SimPower, sim::Op};

fn views(world: &World) -> Vec<(View, Arc<crate::world::State>)> {
    world
        .points
        .iter()
        .map(|(p, s)| (world.view(p), Arc::clone(s)))
        .collect()
}

/// Applies the waiting container on another thread, and while it stands at `held` lets several readers read all.
fn read_while_paused(world: &mut World, held: testkit::sim::Held) {
    let views = views(world);
    thread::scope(|scope| {
        let applier = scope.spawn(|| world.apply().unwrap());
        assert!(held.wait_for(1));
        thread::scope(|readers| {
            for _ in 0..3 {
                readers.spawn(|| views.iter().for_each(|(v, s)| check(v, s)));
            }
        });
        drop(held);
        applier.join().unwrap();
    });
    views.iter().for_each(|(v, s)| check(v, s));
    world.check_all();
}

fn two_containers() -> World {
    let mut world = World::new(&[30_000, 5000]);
    world.receive_and_apply(vec![write(0, 0, b'a', 30_000), write(1, 77, b'b', 4900)]);
    world.receive(vec![
        write(0, 100, b'c', 9000),
        zero(0, 12_000, 9000),
        write(1, 4000, b'd', 1000),
    ]);
    world
}

#[test]
fn v2_paused_between_publish_and_overwrite() {
    let mut world = two_containers();
    let held = world.history.gate.hold(Op::Sync, 0);
    read_while_paused(&mut world, held);
}

#[test]
fn v2_paused_in_mid_overwrite() {
    for pass in 0..2 {
        let mut world = two_containers();
        let held = world.media[0].hold(Op::Write, pass);
        read_while_paused(&mut world, held);
        let mut world = two_containers();
        let held = world.media[1].hold(Op::Write, 0);
        read_while_paused(&mut world, held);
    }
}

/// A medium whose reads stop at a gate *before* they read.
struct SlowReads {
    medium: SimMedium,
    gate: SimMedium,
}

impl Medium for SlowReads {
    fn len(&self) -> u64 {
        self.medium.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.gate.sync()?;
        self.medium.read_at(at, buf)
    }
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.medium.write_at(at, data)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.medium.write_zeroes(at, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.medium.sync()
    }
    fn next_data(&self, at: u64) -> io::Result<Option<ByteRange>> {
        self.gate.sync()?;
        self.medium.next_data(at)
    }
}

/// The world's volumes, read through the gate.
fn slow(world: &World, gate: &SimMedium) -> Volumes {
    let mut slow = Volumes::new();
    for (i, medium) in world.media.iter().enumerate() {
        let medium = SlowReads {
            medium: medium.clone(),
            gate: gate.clone(),
        };
        slow.insert(VolumeIndex(i as u16), "slow", Arc::new(medium), world.sizes[i])
            .unwrap();
    }
    slow
}

fn slow_view(world: &World, slow: &Volumes, point: Point) -> View {
    let history = Arc::clone(&world.history) as Arc<dyn History>;
    View::new(point, slow.sizes(), slow.clone(), history).unwrap()
}

/// The reader looked up undo and found none; before it reads the volume, whole containers are applied.
#[test]
fn v2_applied_between_lookup_and_volume() {
    let mut world = two_containers();
    let (point, state) = world.points[1..]
        .iter()
        .find(|(p, _)| p.base == Ordinal(1) && p.redo.is_empty())
        .unwrap()
        .clone();
    let gate = SimPower::new().medium("gate", 1);
    let slow = slow(&world, &gate);
    let first = slow_view(&world, &slow, point);
    let held = gate.hold(Op::Sync, 0);
    thread::scope(|scope| {
        scope.spawn(|| check(&first, &state));
        assert!(held.wait_for(1));
        world.apply().unwrap();
        world.receive_and_apply(vec![write(0, 0, b'z', 30_000)]);
        drop(held);
    });
    // The same for what is said to be zero.
    let last = world.points.last().unwrap().0.clone();
    let second = slow_view(&world, &slow, last);
    let held = gate.hold(Op::Sync, 0);
    thread::scope(|scope| {
        let extents = scope.spawn(|| second.extents(VolumeIndex(1), ByteRange::at(0, 5000)).unwrap());
        assert!(held.wait_for(1));
        world.receive_and_apply(vec![zero(1, 0, 5000)]);
        drop(held);
        assert!(extents.join().unwrap().iter().all(|e| !e.zero));
    });
}

/// The reader found the first block in undo and goes to the volume for the others; before it reads them, all are overwritten
/// once more. The first block stays what the lookup found: the newer undo has it as of a later moment.
#[test]
fn v2_the_second_look_takes_nothing_from_the_first() {
    let mut world = World::new(&[30_000]);
    world.receive_and_apply(vec![write(0, 0, b'a', 30_000)]);
    let (point, state) = world.points.last().unwrap().clone();
    assert!(point.base == Ordinal(1) && point.redo.is_empty());
    world.receive_and_apply(vec![write(0, 0, b'b', 4096)]);
    let gate = SimPower::new().medium("gate", 1);
    let slow = slow(&world, &gate);
    let view = slow_view(&world, &slow, point);
    let held = gate.hold(Op::Sync, 0);
    thread::scope(|scope| {
        scope.spawn(|| check(&view, &state));
        assert!(held.wait_for(1));
        world.receive_and_apply(vec![write(0, 0, b'c', 30_000)]);
        drop(held);
    });
}

/// Many readers of many views, while the applier runs freely.
#[test]
fn v2_many_views_read_while_containers_are_applied() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut world = World::new(&[60_000, 9001]);
    for _ in 0..3 {
        let bodies = bodies(&world.sizes, 5, &mut rng);
        world.receive_and_apply(bodies);
    }
    for _ in 0..40 {
        let bodies = bodies(&world.sizes, 3, &mut rng);
        world.receive(bodies);
    }
    let views: Vec<_> = views(&world);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..3 {
            let (views, done) = (&views, &done);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                while !done.load(Ordering::Acquire) {
                    let (view, state) = &views[rng.random_range(0..views.len())];
                    check(view, state);
                }
            });
        }
        while !world.waiting.is_empty() {
            world.apply().unwrap();
            thread::yield_now();
        }
        done.store(true, Ordering::Release);
    });
    views.iter().for_each(|(v, s)| check(v, s));
}

/// A view stays true while the volumes are restored and the restore is undone.
#[test]
fn v2_views_stay_true_through_a_restore() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut world = World::new(&[60_000, 9001]);
    for _ in 0..6 {
        let bodies = bodies(&world.sizes, 6, &mut rng);
        world.receive_and_apply(bodies);
    }
    let views: Vec<_> = views(&world);
    let points: Vec<Point> = world.points.iter().map(|(p, _)| p.clone()).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..2 {
            let (views, done) = (&views, &done);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                while !done.load(Ordering::Acquire) {
                    let (view, state) = &views[rng.random_range(0..views.len())];
                    check(view, state);
                }
            });
        }
        for _ in 0..10 {
            let plan = world.plan(&points[rng.random_range(0..points.len())]);
            world.applied = world.execute(&plan, None, &mut ()).unwrap().last;
        }
        done.store(true, Ordering::Release);
    });
    views.iter().for_each(|(v, s)| check(v, s));
}
