//! `rules.md` C2: copies into a replica that was consistent keep what they replace, so its last point stays exact (N19).

use crate::world::{State, World, bodies};
use bytes::Bytes;
use model::{ByteRange, Ordinal, Payload, VolumeIndex, WriteSeq, ports::History};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use snapshot::{RegionCopy, write_copies};
use testkit::sim::Op;

const SIZES: [u64; 2] = [60_000, 9001];
const REGION: u64 = 8192;

/// Regions of another state, some of them as they are already, some twice.
fn copies(held: &State, rng: &mut StdRng) -> Vec<RegionCopy> {
    let mut copies = Vec::new();
    for n in 0..12 {
        let v = rng.random_range(0..SIZES.len());
        let start = rng.random_range(0..SIZES[v].div_ceil(REGION)) * REGION;
        let range = ByteRange {
            start,
            end: (start + REGION).min(SIZES[v]),
        };
        let mut data = held[v][range.start as usize..range.end as usize].to_vec();
        let payload = match rng.random_range(0..4) {
            0 => Payload::Data(Bytes::from(data)),
            1 => Payload::Zero,
            _ => {
                let at = rng.random_range(0..data.len());
                rng.fill_bytes(&mut data[at..]);
                Payload::Data(Bytes::from(data))
            }
        };
        copies.push(RegionCopy {
            seq: WriteSeq(1000 + n),
            volume: VolumeIndex(v as u16),
            range,
            payload,
        });
    }
    copies
}

fn after(held: &State, copies: &[RegionCopy]) -> State {
    let mut state = held.clone();
    for copy in copies {
        let bytes = &mut state[usize::from(copy.volume.0)];
        copy.payload
            .copy_to(0, &mut bytes[copy.range.start as usize..copy.range.end as usize]);
    }
    state
}

/// Every point before the copies is exact after them, and after the containers behind them.
#[test]
fn c2_the_last_consistent_point_outlives_the_copies() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(&SIZES);
        for _ in 0..3 {
            let bodies = bodies(&world.sizes, 5, &mut rng);
            world.receive_and_apply(bodies);
        }
        for _ in 0..3 {
            let copies = copies(&world.head, &mut rng);
            let wanted = after(&world.head, &copies);
            let written = write_copies(&world.volumes, &copies, Some(&*world.history)).unwrap();
            assert_eq!(
                written.is_some(),
                wanted != world.head,
                "undo only of what changes"
            );
            world.applied = written.unwrap_or(world.applied);
            world.check_volumes(&wanted);
            world.check_all();
            // Containers behind the copies change the same blocks again. What they lead to is no point of this oracle.
            world.head = wanted;
            let points = world.points.len();
            world.boundary.0 = world.applied;
            let bodies = bodies(&world.sizes, 5, &mut rng);
            world.receive_and_apply(bodies);
            world.points.truncate(points);
            world.check_all();
            world.check_volumes(&world.head);
        }
    }
}

/// A crash at every sync: the copies may be there in part, the points before them are exact, and a new copy mends the rest.
#[test]
fn c2_interrupted_copies_cost_no_point() {
    let mut interrupted = 0;
    for seed in 0..40 {
        for step in 1..=6 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut world = World::new(&SIZES);
            let first = bodies(&world.sizes, 8, &mut rng);
            world.receive_and_apply(first);
            let copies = copies(&world.head, &mut rng);
            let wanted = after(&world.head, &copies);
            if step < 6 {
                world.power.freeze_at(step);
            } else {
                world.media[0].fail(Op::Write, 1);
            }
            let outcome = write_copies(&world.volumes, &copies, Some(&*world.history));
            if outcome.is_err() {
                world.crash(&mut rng);
                world.check_all();
                let published = world.history.published();
                interrupted += usize::from(published > world.applied);
                world.applied = published;
                let again = write_copies(&world.volumes, &copies, Some(&*world.history)).unwrap();
                assert!(again.is_none_or(|o| o == published.next()));
            }
            world.check_volumes(&wanted);
            world.check_all();
        }
    }
    assert!(interrupted > 20, "{interrupted}");
}

/// Without history nothing is kept, and a hole is not written to.
#[test]
fn c2_a_first_sync_keeps_nothing() {
    let mut rng = StdRng::seed_from_u64(1);
    let world = World::new(&SIZES);
    let copies = copies(&world.head, &mut rng);
    let wanted = after(&world.head, &copies);
    assert_eq!(write_copies(&world.volumes, &copies, None).unwrap(), None);
    world.check_volumes(&wanted);
    assert_eq!(world.history.published(), Ordinal(0));
}
