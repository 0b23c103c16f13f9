//! `rules.md` C2: copies into a replica that was consistent keep what they replace, so its last point stays exact (N19).

use crate::world::{State, World, bodies};
use bytes::Bytes;
use model::{ByteRange, Ordinal, Payload, VolumeIndex, WriteSeq, ports::History};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use snapshot::{RegionCopy, RegionOffer, lacking, piece_digest, write_copies};
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

/// What a killed process had written and not synced reads as equal, and is not there after a cut: a copy is acknowledged only
/// when its volume was synced, whether or not anything had to change.
#[test]
fn c3_a_copy_that_changes_nothing_is_durable_too() {
    // A cut may keep what was not synced: one of many does not.
    for (keeps, seed) in (0..16).flat_map(|seed| [(true, seed), (false, seed)]) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(&SIZES);
        if keeps {
            let first = bodies(&world.sizes, 8, &mut rng);
            world.receive_and_apply(first);
        }
        let copies: Vec<_> = copies(&world.head, &mut rng).split_off(6);
        let wanted = after(&world.head, &copies);
        for copy in &copies {
            let mut data = vec![0; copy.range.len() as usize];
            copy.payload.copy_to(0, &mut data);
            let volume = world.volumes.get(copy.volume).unwrap();
            volume.medium().write_at(copy.range.start, &data).unwrap();
        }
        let history = keeps.then_some(&*world.history as &dyn History);
        assert_eq!(write_copies(&world.volumes, &copies, history).unwrap(), None);
        world.power.cut(&mut rng);
        world.check_volumes(&wanted);
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    // Of this test alone: who uses the engine brings its own.
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    let mut out = [0; 32];
    out[..8].copy_from_slice(&hash.to_le_bytes());
    out
}

/// An offer is equal only if all of its bytes are; else what looks different lacks, or all where nothing does.
#[test]
fn c4_what_lacks_of_an_offer_is_every_piece_that_differs() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut world = World::new(&SIZES);
    let first = bodies(&world.sizes, 20, &mut rng);
    world.receive_and_apply(first);
    for n in 0..300_usize {
        let (piece, range) = (
            4096,
            ByteRange {
                start: 8192,
                end: 8192 + rng.random_range(1..30_000),
            },
        );
        let mut theirs = world.head[0][range.start as usize..range.end as usize].to_vec();
        let mut differ = std::collections::BTreeSet::new();
        for _ in 0..n % 4 {
            let at = rng.random_range(0..theirs.len());
            differ.insert(at / piece);
            theirs[at] ^= 0x40;
        }
        let differ: Vec<_> = theirs
            .chunks(piece)
            .enumerate()
            .filter(|(i, bytes)| {
                let at = range.start as usize + i * piece;
                differ.contains(i) && world.head[0][at..at + bytes.len()] != **bytes
            })
            .map(|(i, _)| i)
            .collect();
        let mut offer = RegionOffer {
            seq: WriteSeq(1),
            volume: VolumeIndex(0),
            range,
            digest: digest(&theirs),
            piece: piece as u64,
            pieces: theirs
                .chunks(piece)
                .map(|bytes| piece_digest(&digest(bytes)))
                .collect(),
        };
        let found = lacking(&world.volumes, &offer, &digest).unwrap();
        let pieces: Vec<_> = found
            .iter()
            .flat_map(|r| {
                (r.start - range.start) as usize / piece..((r.end - range.start) as usize).div_ceil(piece)
            })
            .collect();
        assert_eq!(pieces, differ, "{n}");
        assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
        // Hints that lie cost bytes, never a difference that is not seen.
        offer.pieces = world.head[0][range.start as usize..range.end as usize]
            .chunks(piece)
            .map(|bytes| piece_digest(&digest(bytes)))
            .collect();
        let found = lacking(&world.volumes, &offer, &digest).unwrap();
        assert_eq!(found, if differ.is_empty() { vec![] } else { vec![range] });
    }
}

/// Zeroes amid other bytes leave holes where there were holes, and are written where there was something.
#[test]
fn c2_a_first_sync_leaves_a_replica_as_sparse_as_what_it_follows() {
    const HOLE: usize = 64 << 10;
    let size = 16 * HOLE as u64;
    let world = World::new(&[size]);
    let medium = world.volumes.get(VolumeIndex(0)).unwrap().medium().clone();
    medium.write_at(9 * HOLE as u64, &[7; HOLE]).unwrap();
    let mut data = vec![0; 12 * HOLE];
    for (at, len) in [(0, 10), (3 * HOLE + 5, 1), (11 * HOLE, HOLE)] {
        data[at..at + len].fill(1);
    }
    let copy = RegionCopy {
        seq: WriteSeq(1),
        volume: VolumeIndex(0),
        range: ByteRange::at(0, data.len() as u64),
        payload: Payload::Data(Bytes::from(data.clone())),
    };
    write_copies(&world.volumes, &[copy], None).unwrap();
    data.resize(size as usize, 0);
    world.check_volumes(&vec![data]);
    let mut held = Vec::new();
    let mut at = 0;
    while let Some(range) = medium.next_data(at).unwrap() {
        held.extend(range.start / HOLE as u64..range.end.div_ceil(HOLE as u64));
        at = range.end;
    }
    assert!([0, 3, 11].iter().all(|n| held.contains(n)), "{held:?}");
    assert!([1, 2, 4, 5, 10, 12].iter().all(|n| !held.contains(n)), "{held:?}");
}
