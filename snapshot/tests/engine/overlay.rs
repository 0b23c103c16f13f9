//! Overlays: private, bounded, and what a flush promises.

use crate::world::{State, World, bodies, write};
use model::{ByteRange, VolumeIndex, ports::Medium};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use snapshot::{Overlay, SnapshotError, Vdev};
use std::{collections::HashMap, sync::Arc};
use testkit::{
    SimMedium, SimPower,
    sim::{Op, Tear},
    with_seeds,
};

const ID: u64 = 0xB5;
const V: VolumeIndex = VolumeIndex(0);

struct Bench {
    power: SimPower,
    world: World,
    state: State,
    data_len: u64,
    log_len: u64,
}

impl Bench {
    fn new(sizes: &[u64], slots: u64, rng: &mut StdRng) -> Self {
        let mut world = World::new(sizes);
        let first = bodies(sizes, 20, rng);
        world.receive_and_apply(first);
        let state = world.head.clone();
        let later = bodies(sizes, 20, rng);
        world.receive_and_apply(later);
        Self {
            power: SimPower::new(),
            world,
            state,
            data_len: slots * 4096,
            log_len: Overlay::log_len(slots * 4096),
        }
    }

    fn media(&self) -> (Arc<SimMedium>, Arc<SimMedium>) {
        (
            Arc::new(self.power.medium("data", self.data_len)),
            Arc::new(self.power.medium("log", self.log_len)),
        )
    }

    fn vdev(&self, overlay: Overlay) -> Vdev {
        let at = self
            .world
            .points
            .iter()
            .find(|(p, _)| p.base.0 == 1 && p.redo.is_empty());
        Vdev::new(Arc::new(self.world.view(&at.unwrap().0)), overlay)
    }

    fn create(&self) -> Vdev {
        let (data, log) = self.media();
        self.vdev(Overlay::create(data, log, ID).unwrap())
    }

    /// As after a restart.
    fn open(&self) -> Vdev {
        let (data, log) = self.media();
        self.vdev(Overlay::open(data, log, ID).unwrap())
    }
}

fn read_all(vdev: &Vdev, volume: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    vdev.read(VolumeIndex(volume as u16), 0, &mut bytes).unwrap();
    bytes
}

/// Random writes, zeroes and flushes; power or process lost at random. A flushed write is there; an unflushed byte is
/// what it was or one of the values written since.
#[test]
fn flushed_writes_survive_and_nothing_else_appears() {
    with_seeds("overlay_crash", 40, |rng| {
        let sizes = [70_000, 4097, 12_288];
        let mut bench = Bench::new(&sizes, rng.random_range(4..30), rng);
        if rng.random() {
            // So short that it is rewritten often.
            let slots = bench.data_len / 4096;
            bench.log_len = 2 * (4096 + (32 * (2 * slots + 8)).next_multiple_of(4096));
        }
        let mut model = bench.state.clone();
        let mut maybe: HashMap<(usize, usize), Vec<u8>> = HashMap::new();
        let mut vdev = bench.create();
        for _ in 0..rng.random_range(20..120) {
            match rng.random_range(0..20) {
                0..12 => change(&vdev, &mut model, &mut maybe, rng),
                12..15 => {
                    if vdev.flush().is_ok() {
                        maybe.clear();
                    } else {
                        crash(&bench, &mut vdev, &mut model, &mut maybe, rng);
                    }
                }
                15 => bench.power.freeze_at(rng.random_range(1..4)),
                16 => crash(&bench, &mut vdev, &mut model, &mut maybe, rng),
                _ => {
                    for (volume, bytes) in model.iter().enumerate() {
                        if !bench.power.is_off() {
                            assert!(read_all(&vdev, volume, bytes.len()) == *bytes);
                        }
                    }
                }
            }
        }
        crash(&bench, &mut vdev, &mut model, &mut maybe, rng);
        let used = vdev.overlay().usage();
        assert!(used.blocks_used <= used.blocks);
        // Nobody else saw any of it.
        bench.world.check_all();
    });
}

fn change(vdev: &Vdev, model: &mut State, maybe: &mut HashMap<(usize, usize), Vec<u8>>, rng: &mut StdRng) {
    let volume = rng.random_range(0..model.len());
    let size = model[volume].len();
    let len = rng.random_range(1..=size.min(9000));
    let mut at = rng.random_range(0..=size - len);
    if rng.random() {
        at = at / 4096 * 4096;
    }
    let index = VolumeIndex(volume as u16);
    let mut bytes = vec![0; len];
    let done = if rng.random_range(0..3) == 0 {
        vdev.zero(index, at as u64, len as u64)
    } else {
        rng.fill_bytes(&mut bytes);
        vdev.write(index, at as u64, &bytes)
    };
    match done {
        Err(e) if e.is_full() && bytes.iter().any(|b| *b != 0) => {}
        // A write that failed may be there in part, as may zeroes of which only the edges found no room.
        result => {
            for (i, byte) in bytes.iter().enumerate() {
                let old = model[volume][at + i];
                let values = maybe.entry((volume, at + i)).or_insert_with(|| vec![old]);
                values.push(*byte);
            }
            if result.is_ok() {
                model[volume][at..at + len].copy_from_slice(&bytes);
            } else if let Ok(()) = vdev.read(index, at as u64, &mut bytes) {
                model[volume][at..at + len].copy_from_slice(&bytes);
            }
        }
    }
}

fn crash(
    bench: &Bench,
    vdev: &mut Vdev,
    model: &mut State,
    maybe: &mut HashMap<(usize, usize), Vec<u8>>,
    rng: &mut StdRng,
) {
    bench
        .power
        .set_tear([Tear::Whole, Tear::Sector, Tear::Byte][rng.random_range(0..3)]);
    let mut lose = || {
        let cut: bool = rng.random();
        if cut {
            bench.power.cut(rng);
        } else {
            bench.power.kill(rng);
        }
        // Reopening is struck too, now and then.
        (cut, (rng.random_range(0..3) == 0).then(|| rng.random_range(1..4)))
    };
    let (mut cut, mut again) = lose();
    loop {
        if let Some(step) = again {
            bench.power.freeze_at(step);
        }
        let (data, log) = bench.media();
        match Overlay::open(data, log, ID) {
            Ok(overlay) => {
                bench.power.never_freeze();
                *vdev = bench.vdev(overlay);
                break;
            }
            Err(e) => assert!(matches!(e, SnapshotError::OverlayIo { .. }), "{e}"),
        }
        let next = lose();
        (cut, again) = (cut || next.0, next.1);
    }
    for (volume, bytes) in model.iter_mut().enumerate() {
        let seen = read_all(vdev, volume, bytes.len());
        for (at, (seen, expected)) in seen.iter().zip(bytes.iter()).enumerate() {
            let allowed = match maybe.get(&(volume, at)) {
                Some(values) => values.contains(seen),
                None => seen == expected,
            };
            assert!(allowed, "volume {volume} byte {at}: {seen} instead of {expected}");
        }
        *bytes = seen;
    }
    if cut {
        maybe.clear();
    }
}

#[test]
fn a_full_overlay_says_so_and_gives_room_back() {
    let mut rng = StdRng::seed_from_u64(1);
    let bench = Bench::new(&[200_000], 4, &mut rng);
    let vdev = bench.create();
    vdev.write(V, 0, &[1; 3 * 4096]).unwrap();
    let full = vdev.write(V, 40_000, &[2; 8192]).unwrap_err();
    assert!(full.is_full(), "{full}");
    assert!(matches!(
        full,
        SnapshotError::OverlayFull {
            used: 3,
            slots: 4,
            ..
        }
    ));
    // Refused as a whole; what has a slot can be written for ever; zeroed blocks give theirs back.
    assert!(read_all(&vdev, 0, 200_000)[12_288..] == bench.state[0][12_288..]);
    vdev.write(V, 100, &[3; 12_000]).unwrap();
    vdev.zero(V, 0, 8192).unwrap();
    vdev.write(V, 40_960, &[2; 8192]).unwrap();
    assert_eq!(vdev.overlay().usage().blocks_used, 3);
    vdev.flush().unwrap();
    let seen = read_all(&bench.open(), 0, 200_000);
    assert_eq!(seen[..8192], [0; 8192]);
    assert_eq!(seen[8192..12_100], [3; 12_100 - 8192]);
    assert_eq!(seen[40_960..49_152], [2; 8192]);
}

/// Zeroing a whole device is one entry, and changes no byte of any slot.
#[test]
fn zeroes_need_no_slots_and_extents_know_them() {
    let mut rng = StdRng::seed_from_u64(2);
    let bench = Bench::new(&[150_001], 2, &mut rng);
    let vdev = bench.create();
    vdev.zero(V, 0, 150_001).unwrap();
    assert_eq!(vdev.overlay().usage().blocks_used, 0);
    let all = ByteRange::at(0, 150_001);
    let extents = vdev.extents(V, all).unwrap();
    assert_eq!(extents.len(), 1);
    assert!(extents[0].zero && extents[0].range == all);
    vdev.write(V, 5000, b"x").unwrap();
    let extents = vdev.extents(V, all).unwrap();
    assert_eq!(
        extents.iter().map(|e| e.zero).collect::<Vec<_>>(),
        [true, false, true]
    );
    vdev.flush().unwrap();
    let seen = read_all(&bench.open(), 0, 150_001);
    assert!(
        seen.iter()
            .enumerate()
            .all(|(i, b)| *b == if i == 5000 { b'x' } else { 0 })
    );
}

#[test]
fn damage_is_told_from_a_torn_end() {
    let mut rng = StdRng::seed_from_u64(3);
    let bench = Bench::new(&[200_000], 20, &mut rng);
    let vdev = bench.create();
    for i in [1u8, 5, 9] {
        vdev.write(V, u64::from(i) * 4096, &[i; 4096]).unwrap();
        vdev.flush().unwrap();
    }
    let (data, log) = bench.media();
    let open = || {
        Overlay::open(
            Arc::clone(&data) as Arc<dyn Medium>,
            Arc::clone(&log) as Arc<dyn Medium>,
            ID,
        )
    };
    // The first entry rots: the third says that it was durable.
    let first = 4096;
    log.flip_bit(first + 20, 3);
    assert!(matches!(open().err(), Some(SnapshotError::OverlayDamaged(_))));
    log.flip_bit(first + 20, 3);
    // Another owner, another size.
    let other = Overlay::open(data.clone(), log.clone(), ID + 1).err().unwrap();
    assert!(other.to_string().contains("not of"), "{other}");
    // After a reopening all entries were there when the half was begun: none may be missing.
    drop(open().unwrap());
    let half = log.len() / 2;
    log.flip_bit(half + 4096 + 2 * 32, 0);
    assert!(matches!(open().err(), Some(SnapshotError::OverlayDamaged(_))));
    log.flip_bit(half + 4096 + 2 * 32, 0);
    // A rotten header does not bring the older half back.
    log.flip_bit(half + 9, 0);
    assert!(matches!(open().err(), Some(SnapshotError::OverlayDamaged(_))));
    log.flip_bit(half + 9, 0);
    drop(open().unwrap());
}

/// Whatever a log holds, opening it answers; it never panics or takes memory without bound.
#[test]
fn opening_garbage_is_an_answer() {
    with_seeds("overlay_garbage", 300, |rng| {
        let power = SimPower::new();
        let data = Arc::new(power.medium("data", 8 * 4096));
        let log = Arc::new(power.medium("log", Overlay::log_len(8 * 4096)));
        drop(Overlay::create(data.clone(), log.clone(), ID).unwrap());
        for _ in 0..rng.random_range(1..6) {
            let mut junk = vec![0; rng.random_range(1..200)];
            rng.fill_bytes(&mut junk);
            let half = rng.random_range(0..2) * (log.len() / 2);
            let at = half
                + if rng.random() {
                    rng.random_range(0..64)
                } else {
                    4096 + rng.random_range(0..256)
                };
            log.write_at(at, &junk).unwrap();
        }
        let _ = Overlay::open(data, log, ID);
    });
    let power = SimPower::new();
    let short = Arc::new(power.medium("log", 64));
    let data = Arc::new(power.medium("data", 8 * 4096));
    assert!(Overlay::create(data, short, ID).is_err());
}

#[test]
fn a_failed_sync_poisons() {
    let mut rng = StdRng::seed_from_u64(4);
    let bench = Bench::new(&[50_000], 4, &mut rng);
    let (data, log) = bench.media();
    let vdev = bench.vdev(Overlay::create(data.clone(), log, ID).unwrap());
    vdev.write(V, 0, b"a").unwrap();
    data.fail(Op::Sync, 1);
    assert!(matches!(vdev.flush(), Err(SnapshotError::OverlayIo { .. })));
    assert!(matches!(vdev.flush(), Err(SnapshotError::OverlayPoisoned)));
    assert!(matches!(
        vdev.write(V, 0, b"b"),
        Err(SnapshotError::OverlayPoisoned)
    ));
    assert!(matches!(
        vdev.read(V, 0, &mut [0]),
        Err(SnapshotError::OverlayPoisoned)
    ));
}

/// Writers to halves of the same blocks, a flusher and a reader, all at once.
#[test]
fn threads_share_a_vdev() {
    let mut world = World::new(&[64 * 4096]);
    world.receive_and_apply(vec![write(0, 0, b'.', 64 * 4096)]);
    let power = SimPower::new();
    let data = power.medium("data", 64 * 4096);
    let log = power.medium("log", Overlay::log_len(64 * 4096));
    let overlay = Overlay::create(Arc::new(data), Arc::new(log), ID).unwrap();
    let vdev = Vdev::new(Arc::new(world.view(&world.points.last().unwrap().0)), overlay);
    std::thread::scope(|scope| {
        for part in 0..4u64 {
            let vdev = &vdev;
            scope.spawn(move || {
                for block in 0..64 {
                    let at = block * 4096 + part * 1024;
                    vdev.write(V, at, &[b'0' + part as u8; 1000]).unwrap();
                    if block % 16 == part {
                        vdev.flush().unwrap();
                    }
                }
            });
        }
    });
    let seen = read_all(&vdev, 0, 64 * 4096);
    for (i, byte) in seen.iter().enumerate() {
        let in_part = i % 1024;
        let expected = if in_part < 1000 {
            b'0' + (i / 1024 % 4) as u8
        } else {
            b'.'
        };
        assert_eq!(*byte, expected, "byte {i}");
    }
}
