//! `rules.md`: restores, their undo, and crashes at every step of them.

use crate::world::{State, World, bodies, write, zero};
use model::{
    BlockNo, Ordinal, Point, VolumeIndex,
    ports::{History, HistoryError, OrdinalKind},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use snapshot::{Checkpoint, Progress, RestorePlan, SnapshotError, Watch};
use std::{ops::ControlFlow, sync::Arc};
use testkit::{sim::Op, with_seeds};

/// Some applied containers, some received ones, and two different points.
fn world(rng: &mut StdRng) -> World {
    let mut world = World::new(&[50_000, 4097, 8192]);
    for _ in 0..4 {
        let bodies = bodies(&world.sizes, 5, rng);
        world.receive_and_apply(bodies);
    }
    for _ in 0..2 {
        let bodies = bodies(&world.sizes, 4, rng);
        world.receive(bodies);
    }
    world
}

fn applied_state(world: &World) -> Arc<State> {
    let now = |(p, _): &&(Point, _)| p.base == world.applied && p.redo.is_empty();
    Arc::clone(&world.points.iter().find(now).unwrap().1)
}

#[derive(Default)]
struct Keep {
    last: Option<Checkpoint>,
    count: usize,
    stop_after: Option<usize>,
    last_progress: Option<Progress>,
}

impl Watch for Keep {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        assert!(progress.blocks_done <= progress.blocks_total);
        self.last_progress = Some(*progress);
        match self.stop_after {
            Some(n) if self.count >= n => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), HistoryError> {
        self.count += 1;
        self.last = Some(*checkpoint);
        Ok(())
    }
}

#[test]
fn r_back_and_forth_between_points_bit_exact() {
    with_seeds("r_back_and_forth", 8, |rng| {
        let mut world = world(rng);
        for _ in 0..8 {
            let (point, state) = world.points[rng.random_range(0..world.points.len())].clone();
            let before = applied_state(&world);
            let plan = world.plan(&point);
            let most = plan.count(&*world.history).unwrap();
            let mut keep = Keep::default();
            let restored = world.execute(&plan, None, &mut keep).unwrap();
            assert!(restored.blocks_changed <= most);
            assert_eq!(
                keep.count as u64,
                restored.last.0 - plan.start().0,
                "a checkpoint for each container"
            );
            world.check_volumes(&state);
            world.settle(&restored, &state);
            world.check_all();
            for ordinal in plan.start().0 + 1..=restored.last.0 {
                let kind = world.history.kind(Ordinal(ordinal));
                assert!(
                    matches!(kind, OrdinalKind::Local { restore_from, .. } if restore_from == plan.start())
                );
                assert!(world.history.blocks(Ordinal(ordinal)) <= 3);
            }
            if rng.random() {
                let undo = plan.undo(&*world.history);
                let undone = world.execute(&undo, None, &mut ()).unwrap();
                assert_eq!(
                    undone.blocks_changed, restored.blocks_changed,
                    "undo changes back what was changed, no more"
                );
                world.check_volumes(&before);
                world.settle(&undone, &before);
                world.check_all();
            }
        }
    });
}

/// Each block that differs is written once, whatever the number of containers in between; equal ones are not touched.
#[test]
fn r_each_changed_block_is_written_once() {
    let mut world = World::new(&[100_000]);
    world.receive_and_apply(vec![write(0, 0, b'a', 100_000)]);
    let point = world.points.last().unwrap().0.clone();
    for i in 0..10 {
        world.receive_and_apply(vec![write(0, 4096, i, 8192), write(0, 50_000, i, 1)]);
    }
    // Written and written back: a candidate that does not differ.
    world.receive_and_apply(vec![write(0, 80_000, b'x', 1)]);
    world.receive_and_apply(vec![write(0, 80_000, b'a', 1)]);
    let plan = world.plan(&point);
    assert_eq!(plan.count(&*world.history).unwrap(), 4);
    let undo = |from| {
        let bytes = plan.undo_bytes_from(&*world.history, (VolumeIndex(0), BlockNo(from)));
        bytes.unwrap() / 4096
    };
    assert_eq!((undo(0), undo(2), undo(20)), (4, 3, 0));
    let mut keep = Keep::default();
    let restored = world.execute(&plan, None, &mut keep).unwrap();
    assert_eq!(restored.blocks_changed, 3);
    assert_eq!(restored.bytes_written, 3 * 4096);
    let progress = keep.last_progress.unwrap();
    assert_eq!((progress.blocks_done, progress.blocks_total), (4, 4));
    assert!(progress.rate() > 0.0 && progress.remaining().unwrap().is_zero());
    // Done is done: once more changes nothing.
    let again = world.execute(&plan, None, &mut ()).unwrap();
    assert_eq!(again.last, restored.last);
    assert_eq!(again.blocks_changed, 0);
}

/// Power or process lost at every sync of a restore and of its undo; views are exact in between, then it goes on.
#[test]
fn r_crash_at_every_step_and_go_on() {
    let mut steps = 0;
    for seed in 0..16 {
        for with_checkpoint in [false, true] {
            let mut step = 1;
            while !crash_at(seed, step, with_checkpoint) {
                step += 1;
            }
            steps += step;
        }
    }
    assert!(steps > 100, "only {steps} crashes");
}

/// Whether the restore came to its end without reaching the step.
fn crash_at(seed: u64, step: u64, with_checkpoint: bool) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = world(&mut rng);
    let before = applied_state(&world);
    let (point, state) = world.points[rng.random_range(0..world.points.len())].clone();
    let plan = world.plan(&point);
    let start = plan.start();
    let mut crashes = StdRng::seed_from_u64(seed ^ step << 8);
    let mut keep = Keep::default();
    world.power.freeze_at(step);
    let outcome = world.execute(&plan, None, &mut keep);
    if let Ok(restored) = outcome {
        world.power.never_freeze();
        world.check_volumes(&state);
        world.settle(&restored, &state);
        world.check_all();
        return true;
    }
    world.crash(&mut crashes);
    world.check_all();
    // A second crash while it is gone on with.
    let plan = RestorePlan::resumed(&*world.history, &point, start).unwrap();
    world.power.freeze_at(crashes.random_range(1..4));
    let last = keep.last.filter(|_| with_checkpoint);
    let outcome = world.execute(&plan, last, &mut keep);
    if outcome.is_err() {
        world.crash(&mut crashes);
        world.check_all();
    }
    world.power.never_freeze();
    if crashes.random_range(0..3) == 0 {
        // Not gone on with but undone, from wherever it stands.
        let undo = plan.undo(&*world.history);
        let undone = world.execute(&undo, None, &mut ()).unwrap();
        world.check_volumes(&before);
        world.settle(&undone, &before);
    } else {
        let last = keep.last.filter(|_| with_checkpoint);
        let restored = world.execute(&plan, last, &mut keep).unwrap();
        world.check_volumes(&state);
        world.settle(&restored, &state);
        world.check_all();
        let undo = plan.undo(&*world.history);
        let undone = world.execute(&undo, None, &mut ()).unwrap();
        world.check_volumes(&before);
        world.settle(&undone, &before);
    }
    world.check_all();
    // Life goes on: what was received is applied.
    world.boundary.0 = world.applied;
    while !world.waiting.is_empty() {
        world.apply().unwrap();
    }
    world.check_volumes(&world.head);
    world.check_all();
    false
}

/// Killed in mid-overwrite: undo of the last container durable, some of its blocks written.
#[test]
fn r_crash_between_undo_and_the_last_overwrite() {
    for nth in 1..6 {
        let mut rng = StdRng::seed_from_u64(nth);
        let mut world = world(&mut rng);
        let (point, state) = world.points[0].clone();
        let plan = world.plan(&point);
        world.media[0].fail(Op::Write, nth);
        if world.execute(&plan, None, &mut ()).is_ok() {
            assert!(nth > 1, "nothing was written");
            break;
        }
        world.crash(&mut rng);
        world.check_all();
        let containers = world.history.containers();
        let restored = world.execute(&plan, None, &mut ()).unwrap();
        assert!(world.history.containers() >= containers);
        world.check_volumes(&state);
        world.settle(&restored, &state);
        world.check_all();
    }
}

#[test]
fn r_stops_between_containers_and_goes_on() {
    let mut rng = StdRng::seed_from_u64(9);
    let world = world(&mut rng);
    let (point, state) = world.points[0].clone();
    let plan = world.plan(&point);
    let mut keep = Keep {
        stop_after: Some(2),
        ..Keep::default()
    };
    let stopped = world.execute(&plan, None, &mut keep).unwrap_err();
    assert!(matches!(stopped, SnapshotError::Stopped(o) if o.0 == plan.start().0 + 2));
    world.check_all();
    keep.stop_after = None;
    world.execute(&plan, keep.last, &mut keep).unwrap();
    world.check_volumes(&state);
}

/// Forward too: to a point past what is applied, without applying.
#[test]
fn r_restores_to_a_point_ahead_of_what_is_applied() {
    let mut rng = StdRng::seed_from_u64(10);
    let world = world(&mut rng);
    assert_eq!(world.waiting.len(), 2);
    let (point, state) = world.points.last().unwrap().clone();
    assert!(!point.redo.is_empty());
    let plan = world.plan(&point);
    world.execute(&plan, None, &mut ()).unwrap();
    world.check_volumes(&state);
    world.check_all();
}

/// The volume's bytes past the size as of the point come back as well: the backing keeps its length.
#[test]
fn r_one_volume_only() {
    let mut rng = StdRng::seed_from_u64(11);
    let world = world(&mut rng);
    let (point, state) = world.points[0].clone();
    let now = applied_state(&world);
    let plan = world.plan(&point).only(VolumeIndex(1));
    let mut all = plan.candidates(&*world.history, (VolumeIndex(0), BlockNo(0)));
    while let Some((volume, _)) = all.next().unwrap() {
        assert_eq!(volume, VolumeIndex(1));
    }
    world.execute(&plan, None, &mut ()).unwrap();
    let mixed = vec![now[0].clone(), state[1].clone(), now[2].clone()];
    world.check_volumes(&mixed);
    world.execute(&plan.undo(&*world.history), None, &mut ()).unwrap();
    world.check_volumes(&now);
    world.check_all();
}

#[test]
fn r_refuses_what_is_not_settled() {
    let mut rng = StdRng::seed_from_u64(12);
    let world = world(&mut rng);
    let point = &world.points[0].0;
    let behind = RestorePlan::new(&*world.history, point, Ordinal(world.applied.0 - 1));
    assert!(matches!(behind, Err(SnapshotError::Unsettled { .. })));
    let ahead = RestorePlan::new(&*world.history, point, world.applied.next());
    assert!(matches!(ahead, Err(SnapshotError::AppliedPastUndo { .. })));
    let bad = Point {
        base: world.applied.next(),
        ..point.clone()
    };
    let unreached = RestorePlan::new(&*world.history, &bad, world.applied);
    assert!(matches!(unreached, Err(SnapshotError::BadPoint { .. })));
    assert_eq!(world.history.published(), world.applied);
}

/// More blocks than history is asked for at once, in a plan and in one container that is repeated.
#[test]
fn r_lists_of_blocks_are_fetched_page_by_page() {
    const BLOCKS: u64 = 8500;
    let mut world = World::new(&[BLOCKS * 4096]);
    world.receive_and_apply(vec![write(0, 0, b'a', 5000)]);
    world.receive(vec![zero(0, 0, BLOCKS * 4096)]);
    world.media[0].fail(Op::Sync, 1);
    assert!(world.apply().is_err());
    assert!(world.apply().unwrap().repeated);
    let (point, state) = world.point(1);
    let plan = world.plan(&point);
    let mut all = plan.candidates(&*world.history, (VolumeIndex(0), BlockNo(0)));
    for block in 0..BLOCKS {
        assert_eq!(all.next().unwrap(), Some((VolumeIndex(0), BlockNo(block))));
    }
    assert_eq!(all.next().unwrap(), None);
    let restored = world.execute(&plan, None, &mut ()).unwrap();
    assert_eq!(restored.blocks_changed, 2);
    world.check_volumes(&state);
}
