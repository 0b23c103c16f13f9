//! `rules.md` V1 and V3.

use crate::world::{World, check, check_pieces, write, zero};
use model::{ByteRange, Ordinal, Point, RedoSpan, VolumeIndex, ports::History};
use rand::{SeedableRng, rngs::StdRng};
use snapshot::{SnapshotError, View};
use std::{collections::BTreeMap, sync::Arc};

/// The block as it was at the boundary, half of it written at P, the other half at P + 1.
#[test]
fn v1_half_a_block_at_p_the_other_half_after() {
    let mut world = World::new(&[8192]);
    world.receive_and_apply(vec![write(0, 0, b'a', 8192)]);
    world.receive(vec![write(0, 0, b'p', 2048), write(0, 2048, b'q', 2048)]);
    let ahead = world.points.clone();
    world.check_all();
    world.apply().unwrap();
    // Points made before and after applying, of the same moments.
    assert!(world.points.len() > ahead.len());
    world.check_all();
    let (point, _) = world.point(2);
    let mut seen = [0; 3];
    world.view(&point).read(VolumeIndex(0), 2047, &mut seen).unwrap();
    assert_eq!(&seen, b"paa");
}

#[test]
fn v1_point_ahead_of_what_is_applied() {
    let mut world = World::new(&[5000, 100]);
    world.receive_and_apply(vec![write(0, 10, b'a', 20), write(1, 0, b'b', 100)]);
    for i in 0..4u8 {
        world.receive(vec![
            write(0, 4000 + u64::from(i), i, 700),
            zero(1, u64::from(i), 9),
            write(1, 5, i, 90),
        ]);
    }
    let views: Vec<_> = world
        .points
        .iter()
        .map(|(p, s)| (world.view(p), Arc::clone(s)))
        .collect();
    // All stay true while what they were ahead of is applied.
    while !world.waiting.is_empty() {
        views.iter().for_each(|(v, s)| check(v, s));
        world.apply().unwrap();
    }
    views.iter().for_each(|(v, s)| check(v, s));
    world.check_all();
}

/// A point on a line of two generations: redo of both, in the order of the line.
#[test]
fn v1_redo_of_the_whole_line_in_order() {
    let mut world = World::new(&[4096]);
    world.receive_and_apply(vec![write(0, 0, b'a', 4096)]);
    world.receive(vec![write(0, 0, b'b', 10), write(0, 0, b'x', 100)]);
    let (parent, state) = world.point(2);
    world.new_line(parent.base, &parent, &state);
    let after = world.seq;
    world.receive(vec![write(0, 5, b'c', 10)]);
    let (mut point, state) = world.points.last().unwrap().clone();
    point.base = parent.base;
    point.redo = parent.redo.clone();
    point.redo.push(RedoSpan {
        generation: world.generation,
        after,
        upto: world.seq,
    });
    world.check(&point, &state);
    let mut seen = [0; 17];
    world.view(&point).read(VolumeIndex(0), 0, &mut seen).unwrap();
    assert_eq!(&seen, b"bbbbbccccccccccaa");
}

/// Growing and restoring: each view has the size as of its point, on a backing of any length.
#[test]
fn v3_a_view_has_the_size_as_of_its_point() {
    let mut world = World::new(&[6000, 9000]);
    world.receive_and_apply(vec![write(1, 0, b'a', 9000)]);
    let point = world.points.last().unwrap().0.clone();
    let history = Arc::clone(&world.history) as Arc<dyn History>;
    let view = |size| {
        let sizes = BTreeMap::from([(VolumeIndex(1), size)]);
        View::new(point.clone(), sizes, world.volumes.clone(), Arc::clone(&history)).unwrap()
    };
    let (small, large) = (view(5000), view(14_500));
    assert_eq!(small.size(VolumeIndex(1)).unwrap(), 5000);
    let mut one = [0];
    small.read(VolumeIndex(1), 4999, &mut one).unwrap();
    assert_eq!(one, *b"a");
    for (at, len) in [(5000, 1), (4999, 2), (u64::MAX, 1)] {
        let e = small.read(VolumeIndex(1), at, &mut vec![0; len]).unwrap_err();
        assert!(matches!(e, SnapshotError::PastEnd { size: 5000, .. }), "{e}");
    }
    assert!(small.extents(VolumeIndex(1), ByteRange::at(4096, 905)).is_err());
    // Past the backing (14000 here) all is zero.
    let mut tail = [9; 600];
    large.read(VolumeIndex(1), 13_900, &mut tail).unwrap();
    assert_eq!(tail, [0; 600]);
    let e = small.read(VolumeIndex(0), 0, &mut one).unwrap_err();
    assert!(matches!(e, SnapshotError::NoSuchVolume(VolumeIndex(0))));
}

#[test]
fn extents_tell_holes_from_data_and_follow_undo_and_redo() {
    const MIB: u64 = 1 << 20;
    let mut world = World::new(&[3 * MIB + 100]);
    let all = ByteRange::at(0, 3 * MIB + 100);
    let zeroes = |view: &View| {
        let extents = view.extents(VolumeIndex(0), all).unwrap();
        extents
            .iter()
            .map(|e| (e.range.start / 4096, e.zero))
            .collect::<Vec<_>>()
    };
    let empty = world.view(&world.points[0].0);
    assert_eq!(zeroes(&empty), [(0, true)]);
    world.receive_and_apply(vec![write(0, MIB, b'a', 8192)]);
    let one = world.view(&world.points.last().unwrap().0);
    assert_eq!(zeroes(&empty), [(0, true)]);
    assert_eq!(zeroes(&one), [(0, true), (256, false), (258, true)]);
    world.receive(vec![
        write(0, 3 * MIB, b'b', 1),
        zero(0, MIB, 5000),
        write(0, 0, 1, 1),
        zero(0, 0, 4096),
    ]);
    let ahead = world.view(&world.points.last().unwrap().0);
    let expected = [(0, true), (257, false), (258, true), (768, false)];
    assert_eq!(zeroes(&ahead), expected);
    world.apply().unwrap();
    assert_eq!(zeroes(&ahead), expected);
    assert_eq!(zeroes(&one), [(0, true), (256, false), (258, true)]);
    assert!(one.reads_undo() && empty.reads_undo());
    let mut rng = StdRng::seed_from_u64(1);
    for (point, state) in &world.points {
        check_pieces(&world.view(point), state, &mut rng);
    }
}

#[test]
fn a_point_that_is_not_reached_is_refused() {
    let world = World::new(&[1]);
    let point = Point {
        base: Ordinal(1),
        ..world.points[0].0.clone()
    };
    let history = Arc::clone(&world.history) as Arc<dyn History>;
    let refused = View::new(point, world.volumes.sizes(), world.volumes.clone(), history);
    assert!(matches!(refused, Err(SnapshotError::BadPoint { .. })));
}
