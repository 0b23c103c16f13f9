//! `rules.md` W2, W3, W4, W6, and invariant 4.

use crate::world::{World, bodies, full, quiet, write, zero};
use model::{ByteRange, LfcId, Ordinal, Payload, VolumeIndex, WriteSeq, ports::History};
use rand::{SeedableRng, rngs::StdRng};
use snapshot::{
    ChangeSet, Lfc, SnapshotError, Step, UndoPlan, apply, overwrite, overwrite_again, write_back,
};
use testkit::sim::Op;

/// Cut at every durable action of an apply: whatever the volume holds then, every earlier point is what it was.
#[test]
fn t3_undo_is_durable_before_the_first_overwrite() {
    let mut cuts = 0;
    for seed in 0..10 {
        for n in 1.. {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut world = World::new(&[9000]);
            world.receive_and_apply(vec![write(0, 100, 1, 5000)]);
            world.receive(vec![write(0, 4000, 2, 3000), zero(0, 0, 200)]);
            world.power.freeze_at(n);
            let ended = world.apply().is_ok();
            world.crash(&mut rng);
            world.check_all();
            if ended {
                break;
            }
            cuts += 1;
        }
    }
    assert!(cuts >= 20, "{cuts}");
}

/// LFC 10 writes b, LFC 12 writes c; the view at the end of 10 must not show c.
#[test]
fn w2_containers_are_applied_one_by_one() {
    let mut world = World::new(&[4096]);
    world.receive(vec![write(0, 0, b'b', 100)]);
    world.receive(vec![write(0, 50, b'c', 100)]);
    world.apply().unwrap();
    world.apply().unwrap();
    let end_of_first = world
        .points
        .iter()
        .find(|(p, _)| p.base == Ordinal(1) && p.redo.is_empty())
        .unwrap()
        .0
        .clone();
    let mut seen = [9; 160];
    world
        .view(&end_of_first)
        .read(VolumeIndex(0), 0, &mut seen)
        .unwrap();
    assert_eq!(seen[..100], [b'b'; 100]);
    assert_eq!(seen[100..], [0; 60]);
    world.check_all();
}

/// `-F`, `--undo`, then eight more LFCs: every view of every earlier point, bit-exact.
#[test]
fn w3_restore_undo_and_eight_more_containers() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut world = World::new(&[40_000, 4097]);
    for _ in 0..5 {
        let bodies = bodies(&world.sizes, 6, &mut rng);
        world.receive_and_apply(bodies);
    }
    let head = std::sync::Arc::new(world.head.clone());
    let (target, state) = world.points[12].clone();
    let plan = world.plan(&target);
    let restored = world.execute(&plan, None, &mut ()).unwrap();
    world.check_volumes(&state);
    world.settle(&restored, &state);
    let undo = plan.undo(&*world.history);
    let undone = world.execute(&undo, None, &mut ()).unwrap();
    world.check_volumes(&head);
    world.settle(&undone, &head);
    // The line goes on from where it was; it may stand on the old ordinal or on the one after the undo.
    world.boundary.0 = undone.last;
    for _ in 0..8 {
        let bodies = bodies(&world.sizes, 6, &mut rng);
        world.receive_and_apply(bodies);
        world.check_all();
    }
    world.check_volumes(&world.head);
}

/// Crash at every sync of an apply: it is repeated from durable undo and redo, and the undo is never rebuilt.
#[test]
fn w4_apply_is_repeated_from_durable_undo() {
    let mut interrupted = 0;
    for seed in 0..20 {
        for step in 1..=4 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut world = World::new(&[30_000, 5001]);
            let first = bodies(&world.sizes, 5, &mut rng);
            world.receive_and_apply(first);
            let second = bodies(&world.sizes, 8, &mut rng);
            world.receive(second);
            if step < 4 {
                world.power.freeze_at(step);
            } else {
                world.media[0].fail(Op::Write, 1);
            }
            let outcome = world.apply();
            let containers = world.history.containers();
            if outcome.is_err() {
                world.crash(&mut rng);
                world.check_all();
                let begun = world.history.containers() as u64;
                let again = world.apply().unwrap();
                assert_eq!(
                    again.repeated,
                    begun == 2,
                    "MemHistory panics when undo is rebuilt"
                );
                assert_eq!(again.ordinal, Ordinal(2));
                interrupted += usize::from(again.repeated);
            } else {
                assert_eq!(containers, 2);
            }
            world.check_volumes(&world.head);
            world.check_all();
            let more = bodies(&world.sizes, 3, &mut rng);
            world.receive_and_apply(more);
            world.check_all();
        }
    }
    assert!(interrupted > 20);
}

#[test]
fn w4_step_after_a_crash() {
    let mut world = World::new(&[4096]);
    world.receive_and_apply(vec![write(0, 0, 1, 1)]);
    world.receive_and_apply(vec![write(0, 0, 2, 1)]);
    let step = |applied| Step::after(Ordinal(applied), &*world.history);
    assert_eq!(step(2).unwrap(), Step::Fresh(Ordinal(3)));
    assert_eq!(step(1).unwrap(), Step::Repeat(Ordinal(2)));
    assert_eq!(step(0).unwrap(), Step::Repeat(Ordinal(1)));
    assert!(matches!(step(3), Err(SnapshotError::AppliedPastUndo { .. })));
}

/// Requests of one byte, and a volume whose last block is partial: undo is whole blocks, zero-padded.
#[test]
fn w6_one_byte_requests_and_a_partial_last_block() {
    let mut world = World::new(&[4099]);
    for at in [0, 4095, 4096, 4098, 1] {
        world.receive_and_apply(vec![write(0, at, at as u8 | 1, 1)]);
    }
    world.receive_and_apply(vec![zero(0, 4097, 2)]);
    world.check_all();
    let undo = |block, after| {
        let images = world.history.first_undo(
            VolumeIndex(0),
            model::BlockNo(block),
            1,
            Ordinal(after),
            Ordinal(6),
        );
        images.unwrap().remove(0)
    };
    assert_eq!(undo(0, 0), Some(Payload::Zero));
    let Some(Payload::Data(image)) = undo(1, 5) else {
        panic!("no data")
    };
    assert_eq!(image.len(), 4096);
    assert_eq!(image[..3], [1, 0, 3]);
    assert_eq!(image[3..], [0; 4093], "past the end of the volume");
    assert_eq!(full(&world.media[0])[4096..], [1, 0, 0]);
}

/// Zeroes are flags in undo and holes on the volume.
#[test]
fn w5_zeroes_deallocate_and_zero_images_are_flags() {
    let mut world = World::new(&[64 << 10]);
    world.receive_and_apply(vec![write(0, 0, 7, 64 << 10)]);
    world.receive_and_apply(vec![zero(0, 0, 64 << 10)]);
    assert_eq!(model::ports::Medium::next_data(&world.media[0], 0).unwrap(), None);
    world.receive_and_apply(vec![write(0, 5, 1, 1)]);
    let images = world
        .history
        .first_undo(VolumeIndex(0), model::BlockNo(0), 1, Ordinal(2), Ordinal(3));
    assert_eq!(images.unwrap(), [Some(Payload::Zero)]);
    world.check_all();
}

#[test]
fn invariant_4_order_and_ranges_are_checked_before_anything_happens() {
    let world = World::new(&[5000]);
    let before = full(&world.media[0]);
    let mut changes = ChangeSet::new();
    changes.put(VolumeIndex(0), ByteRange::at(0, 10), WriteSeq(1), Payload::Zero);
    let lfc = Lfc {
        generation: world.generation,
        lfc: LfcId(2),
        last_seq: WriteSeq(1),
    };
    let history = &*world.history;
    let kind = model::ports::OrdinalKind::Apply {
        generation: lfc.generation,
        lfc: lfc.lfc,
        last_seq: lfc.last_seq,
    };
    let late = UndoPlan {
        history,
        ordinal: Ordinal(2),
        kind,
        images: None,
    };
    let refused = overwrite(&world.volumes, &changes, Some(late), &mut quiet);
    assert!(matches!(refused, Err(SnapshotError::OutOfOrder { .. })));
    let refused = overwrite_again(&world.volumes, &changes, history, Ordinal(1), &mut quiet);
    assert!(matches!(refused, Err(SnapshotError::OutOfOrder { .. })));
    changes.put(VolumeIndex(0), ByteRange::at(4999, 2), WriteSeq(1), Payload::Zero);
    let refused = apply(&world.volumes, history, lfc, Ordinal(0), &changes, &mut quiet);
    assert!(matches!(refused, Err(SnapshotError::PastEnd { .. })));
    assert_eq!(history.containers(), 0);
    assert_eq!(full(&world.media[0]), before);
}

/// Repeating with redo that touches more than the durable undo holds is refused, not done.
#[test]
fn invariant_4_a_repeat_never_overwrites_what_has_no_undo() {
    let mut world = World::new(&[9000]);
    world.receive_and_apply(vec![write(0, 0, 1, 10)]);
    let mut changes = ChangeSet::new();
    changes.put(
        VolumeIndex(0),
        ByteRange::at(4090, 10),
        WriteSeq(1),
        Payload::Zero,
    );
    let refused = overwrite_again(&world.volumes, &changes, &*world.history, Ordinal(1), &mut quiet);
    assert!(matches!(refused, Err(SnapshotError::UndoMissing { .. })));
}

#[test]
fn write_back_needs_no_undo_and_repeats_harmlessly() {
    let world = World::new(&[5000]);
    let mut changes = ChangeSet::new();
    let data = Payload::Data(bytes::Bytes::from_static(b"hello"));
    changes.put(VolumeIndex(0), ByteRange::at(4995, 5), WriteSeq(1), data);
    for _ in 0..2 {
        write_back(&world.volumes, &changes).unwrap();
    }
    let durable = || world.media[0].durable(ByteRange::at(4994, 6));
    assert_eq!(durable(), [0; 6], "who calls it syncs");
    world.volumes.sync().unwrap();
    assert_eq!(durable(), b"\0hello");
    assert_eq!(world.history.published(), Ordinal(0));
}
