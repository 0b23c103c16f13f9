//! `rules.md` V1, V2 and V3 by their counter-examples, with the real journal.

use super::{
    engine::Engine,
    hosts::{Recovery, indexes, volumes},
    lab::{Lab, SIZES},
};
use backstay::{applying::CopyQueue, context::Views};
use model::{ByteRange, Level, RecordBody, Target, VolumeIndex, WriteSeq, ports::Medium, target::TargetKind};
use rand::{Rng, SeedableRng, rngs::StdRng};
use snapshot::Volumes;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use testkit::{SimMedium, SimPower, proc::Scratch, sim::Op, with_seeds};

/// The block at the boundary; half of it written at P, the other half at P + 1: the view at P has one half, byte for byte.
#[test]
fn v1_half_a_block_at_p_the_other_half_after() {
    let mut lab = Lab::new(&SIZES);
    lab.write(0, 0, b'a', 8192);
    lab.seal_and_apply();
    let p = lab.write(0, 4096, b'p', 2048);
    lab.write(0, 4096 + 2048, b'q', 2048);
    let ahead = lab.view(p);
    let shows_p = |view: &snapshot::View| {
        let mut seen = [0; 4098];
        view.read(VolumeIndex(0), 4095, &mut seen).unwrap();
        assert_eq!((seen[0], seen[1], seen[2048]), (b'a', b'p', b'p'));
        assert_eq!((seen[2049], seen[4096], seen[4097]), (b'a', b'a', 0));
    };
    shows_p(&ahead);
    // The same once both halves are on the volume: in the old view, and in one made now.
    lab.seal_and_apply();
    shows_p(&ahead);
    shows_p(&lab.view(p));
    lab.check_all();
}

/// P is ahead of what is applied: redo of several containers, sealed, stored and open, over the applied boundary.
#[test]
fn v1_a_point_ahead_of_what_is_applied() {
    let mut lab = Lab::new(&SIZES);
    lab.write(0, 100, b'a', 9000);
    lab.seal_and_apply();
    let mut views = Vec::new();
    for n in 0..5u8 {
        for k in 0..4u8 {
            lab.write(u16::from(k % 2), 1000 * u64::from(n), b'b' + n, 5000);
        }
        let range = ByteRange::at(4000 * u64::from(n % 3), 300);
        lab.record(
            0,
            RecordBody::Zero {
                range,
                discard: n % 2 == 0,
            },
        );
        if n < 4 {
            lab.seal();
        }
        if n < 3 {
            lab.e().journal.ingest_sealed().unwrap();
        }
        views.push((lab.view(lab.oracle.head()), lab.oracle.head()));
    }
    lab.check_all();
    // Each view stays what it was while what it was ahead of is applied beneath it.
    while lab.e().apply_next().unwrap() {
        views.iter().for_each(|(view, at)| lab.check(view, *at));
        lab.check_all();
    }
    assert!(views[0].0.reads_undo());
}

/// A volume whose writes wait at a gate before they change anything.
struct BeforeWrites {
    medium: SimMedium,
    gate: SimMedium,
}

impl Medium for BeforeWrites {
    fn len(&self) -> u64 {
        self.medium.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(at, buf)
    }
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.gate.sync()?;
        self.medium.write_at(at, data)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.gate.sync()?;
        self.medium.write_zeroes(at, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.medium.sync()
    }
    fn next_data(&self, at: u64) -> io::Result<Option<ByteRange>> {
        self.medium.next_data(at)
    }
}

/// Two containers, the second one sealed and not applied; every moment of both.
fn two_containers() -> Lab {
    let mut lab = Lab::new(&SIZES);
    lab.write(0, 0, b'a', 20_000);
    lab.write(1, 77, b'b', 9000);
    lab.seal_and_apply();
    lab.write(0, 100, b'c', 9000);
    lab.record(
        0,
        RecordBody::Zero {
            range: ByteRange::at(12_000, 7000),
            discard: false,
        },
    );
    lab.write(1, 4000, b'd', 1000);
    lab.seal();
    lab
}

/// Undo is published and nothing is overwritten yet: then stopped again before every further write. Readers look at every
/// block of every moment each time.
#[test]
fn v2_apply_paused_between_publish_and_every_overwrite() {
    for pass in 0..3 {
        let lab = two_containers();
        let gate = SimPower::new().medium("gate", 1);
        let mut gated = Volumes::new();
        for (index, size) in indexes(&SIZES) {
            let medium = lab.power.medium(&format!("v{}", index.0), size);
            let gate = gate.clone();
            let medium = Arc::new(BeforeWrites { medium, gate });
            gated.insert(index, "gated", medium, size).unwrap();
        }
        let applier = Recovery {
            journal: Arc::clone(&lab.e().journal),
            volumes: gated,
            copies: CopyQueue::default(),
        };
        let published = lab.e().journal.cursors().published;
        let held = gate.hold(Op::Sync, pass);
        thread::scope(|s| {
            let applier = s.spawn(|| while applier.apply_next().unwrap() {});
            assert!(held.wait_for(1), "write {pass} stands at the gate");
            assert_eq!(lab.e().journal.cursors().published, published.next());
            lab.check_all();
            drop(held);
            applier.join().unwrap();
        });
        lab.check_all();
        lab.check_all_volumes(lab.oracle.head());
    }
}

/// Stopped with half of a write visible, at every write of the container.
#[test]
fn v2_apply_paused_in_mid_overwrite() {
    for (volume, pass) in [(0, 0), (0, 1), (1, 0)] {
        let lab = two_containers();
        let medium = lab.power.medium(&format!("v{volume}"), SIZES[volume]);
        let held = medium.hold(Op::Write, pass);
        thread::scope(|s| {
            let applier = s.spawn(|| lab.apply());
            assert!(held.wait_for(1), "write {pass} of volume {volume} is half done");
            lab.check_all();
            drop(held);
            applier.join().unwrap();
        });
        lab.check_all();
    }
}

/// Hundreds of snapshots are held open and read while containers are applied at full speed; each shows its moment.
#[test]
fn v2_hundreds_of_views_while_applying_at_full_speed() {
    const SNAPSHOTS: u64 = 240;
    const CONTAINERS: u64 = 160;
    let mut rng = StdRng::seed_from_u64(5);
    let mut lab = Lab::new(&[40 * 4096 + 5, 11 * 4096 + 99]);
    for n in 0..CONTAINERS {
        for _ in 0..4 {
            let (volume, blocks) = if rng.random_bool(0.7) { (0, 40) } else { (1, 11) };
            let at = rng.random_range(0..blocks * 4096 - 9000);
            let len = rng.random_range(1..9000);
            lab.write(volume, at, rng.random(), len);
        }
        lab.seal();
        // A third is applied before the snapshots are taken, two thirds while they are read.
        if n < CONTAINERS / 3 {
            lab.apply();
        }
    }
    let head = lab.oracle.head().0;
    let mut moments = Vec::new();
    for id in 1..=SNAPSHOTS {
        let seq = WriteSeq(rng.random_range(1..=head));
        lab.e_mut().snapshot(id, &TargetKind::Seq(seq).into()).unwrap();
        moments.push((id, seq));
    }
    let (done, lab) = (AtomicBool::new(false), &lab);
    let look = |(id, at): &(u64, WriteSeq)| lab.check(lab.e().snapshots[id].view(), *at);
    let read: usize = thread::scope(|s| {
        let readers: Vec<_> = (0..2)
            .map(|seed| {
                let (moments, done) = (&moments, &done);
                s.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed);
                    let mut read = 0;
                    while !done.load(Ordering::Acquire) {
                        look(&moments[rng.random_range(0..moments.len())]);
                        read += 1;
                    }
                    read
                })
            })
            .collect();
        lab.apply();
        done.store(true, Ordering::Release);
        readers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    println!("{read} whole views read while containers were applied");
    assert_eq!(lab.e().journal.cursors().applied, WriteSeq(head));
    moments.iter().for_each(look);
    lab.check_all_volumes(WriteSeq(head));
}

/// The power goes away at every sync of taking a snapshot: one whose level was told is there afterwards, at its moment; of
/// one that was not told, all is there or nothing.
#[test]
fn v3_a_pin_is_durable_before_its_name_is_told() {
    with_seeds("v3 pin", 3, |rng| {
        let (mut struck, mut n) = (true, 0);
        while struck {
            n += 1;
            let mut lab = Lab::new(&SIZES);
            lab.write(0, 0, b'a', 5000);
            lab.seal_and_apply();
            let at = lab.write(0, 1000, b'b', 5000);
            lab.write(1, 0, b'c', 10);
            let folder = Scratch::new("v3-pin");
            let overlays = folder.path().join("overlays");
            let open = |engine: &Engine| {
                let volumes = Arc::new(volumes(&lab.power, &SIZES));
                Views::open(&engine.journal, &volumes, overlays.clone(), 64 << 10).unwrap()
            };
            let views = open(lab.e());
            lab.power.freeze_at(n);
            let made = views.create(&Target::from(TargetKind::Seq(at)), Some("mine"), "op@rec");
            struck = lab.power.is_off();
            assert!(struck == made.is_err(), "{n}: told, and not durable");
            drop((made, views));
            lab.power.never_freeze();
            lab.power.cut(rng);
            let engine = Engine::boot_without_snapshots(&lab.power, &SIZES).unwrap();
            let views = open(&engine);
            match views.get(Level::FIRST) {
                Some(there) => {
                    assert_eq!((there.name.as_deref(), there.point().seq), (Some("mine"), at));
                    lab.check(&there.view, at);
                    let mut seen = [0; 2];
                    there
                        .vdev()
                        .unwrap()
                        .read(VolumeIndex(0), 999, &mut seen)
                        .unwrap();
                    assert_eq!(&seen, b"ab");
                }
                None => assert!(struck, "{n}: what was told is gone"),
            }
        }
        assert!(n > 1);
    });
}
