//! A production that holds earlier points, because it was recovery before: its write-back is apply (rule W2).

use super::{
    hosts::{Fallible, LFC, context_row, open_journal, storage, volumes},
    tap::{PATIENCE, Stops, write},
};
use backstay::applying::acting::{apply_waiting, builds_undo, catch_up};
use journal::{
    Draft, Journal, NewGeneration, SealFlags,
    tap::{Request, Tap, TapLimits, VolumeChange},
};
use model::{
    ByteRange, GenId, Role, Target, Timestamp, VolumeIndex, WriteSeq, ports::History, target::TargetKind,
};
use rand::{Rng, RngCore};
use snapshot::{View, Volumes};
use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};
use testkit::{Oracle, SimPower, proc::until, sim::Tear, with_seeds};

const V: VolumeIndex = VolumeIndex(0);
const SIZES: [u64; 2] = [130 * 1024 + 77, 4099];

struct Acting {
    journal: Arc<Journal>,
    tap: Tap,
    volumes: Volumes,
}

impl Acting {
    /// Boots it. The first time it gets what a former recovery has: a consistent volume at the end of an applied container.
    fn boot(power: &SimPower) -> Fallible<Self> {
        let journal = open_journal(power, true)?;
        let volumes = volumes(power, &SIZES);
        if journal.context()?.is_none() {
            if journal.current_generation().is_none() {
                journal.create_generation(NewGeneration::own(GenId(7), None))?;
            }
            let generation = journal.current_generation().expect("created above");
            if journal.cursors().appended == WriteSeq(0) {
                let body = generation.birth();
                journal.append(vec![Draft { volume: V, body }], Timestamp(1))?;
            }
            if !journal.open_is_empty() {
                journal.seal(SealFlags::default())?;
            }
            journal.set_consistent_from(journal.head().expect("a generation").0)?;
            catch_up(&journal, &volumes)?;
            journal.put_context(&context_row(Role::Production))?;
        }
        assert!(builds_undo(&journal));
        let open = catch_up(&journal, &volumes)?;
        let media = volumes.iter().map(|(i, v)| (i, Arc::clone(v.medium())));
        let limits = TapLimits {
            pinned_bytes_max: 1,
            frame_bytes_max: 8 << 10,
            whole_containers: true,
            ..TapLimits::default()
        };
        let tap = Tap::new(Arc::clone(&journal), media.collect::<Vec<_>>(), limits);
        tap.resume(&open)?;
        Ok(Self {
            journal,
            tap,
            volumes,
        })
    }

    fn ask(&self, change: Option<VolumeChange>) -> mpsc::Receiver<bool> {
        let (tell, told) = mpsc::channel();
        self.tap.submit(vec![Request {
            durable: change.is_none(),
            change,
            done: Box::new(move |answer| tell.send(answer.is_ok()).unwrap()),
        }]);
        told
    }

    /// Every record that the journal holds.
    fn oracle(&self) -> Fallible<Oracle> {
        let mut oracle = Oracle::new(&SIZES);
        let frames = self.journal.frames_after(WriteSeq(0), u64::MAX)?;
        frames
            .iter()
            .flat_map(|f| f.records())
            .for_each(|r| oracle.record(r));
        Ok(oracle)
    }

    /// The head through the tap, and every point there is through a view, are what the journal says.
    fn check(&self) -> Fallible {
        let oracle = self.oracle()?;
        let mut read = |v, at, out: &mut [u8]| self.tap.read(v, at, out).map_err(io::Error::other);
        oracle.compare(oracle.head(), &mut read)?;
        let history: Arc<dyn History> = Arc::clone(&self.journal) as _;
        for seq in 1..=self.journal.cursors().durable.0 {
            let target = Target::from(TargetKind::Seq(WriteSeq(seq)));
            let point = self.journal.resolve(&target, Timestamp(u64::MAX))?.point;
            let view = View::new(
                point,
                self.volumes.sizes(),
                self.volumes.clone(),
                Arc::clone(&history),
            )?;
            let mut read = |v, at, out: &mut [u8]| view.read(v, at, out).map_err(io::Error::other);
            oracle.compare(WriteSeq(seq), &mut read)?;
        }
        Ok(())
    }

    fn step(&self, rng: &mut dyn RngCore, flushed: &mut WriteSeq) -> Fallible {
        match rng.random_range(0..12) {
            0..6 => {
                let volume = VolumeIndex(rng.random_range(0..2));
                let size = SIZES[usize::from(volume.0)];
                let len = rng.random_range(1..=3000.min(size));
                let offset = rng.random_range(0..=size - len);
                let change = match rng.random_bool(0.2) {
                    true => VolumeChange::Zero {
                        volume,
                        range: ByteRange::at(offset, len),
                        discard: rng.random(),
                    },
                    false => VolumeChange::Write {
                        volume,
                        offset,
                        data: testkit::workload::noise(len, rng),
                    },
                };
                anyhow::ensure!(self.ask(Some(change)).recv()?, "a write failed");
            }
            6 | 7 => {
                let told = self.ask(None);
                let upto = self.journal.cursors().appended;
                self.tap.sync_once()?;
                anyhow::ensure!(told.recv()?, "a flush failed");
                *flushed = upto;
            }
            8 | 9 => drop(self.tap.seal_now()?),
            _ => drop(apply_waiting(&self.tap, &self.volumes)?),
        }
        Ok(())
    }
}

/// Frozen at every sync of a random history, cut or killed, and started again, in the middle of which it may be cut, too:
/// what was flushed is there, the head is right through overlay and volume, and every earlier point is what it was.
#[test]
fn w2_a_production_with_earlier_points_keeps_every_one_of_them() {
    let mut cuts = 0;
    let tried = with_seeds("w2 acting", 4, |rng| {
        let seed = rng.random();
        for n in 1.. {
            let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
            let power = SimPower::new();
            power.set_tear(Tear::Bit);
            let mut flushed = WriteSeq(0);
            let host = Acting::boot(&power).unwrap();
            power.freeze_at(n);
            let ended = (0..60).all(|_| host.step(&mut rng, &mut flushed).is_ok());
            drop(host);
            for second in [true, false] {
                match rng.random_bool(0.7) {
                    true => power.cut(&mut rng),
                    false => power.kill(&mut rng),
                }
                if second {
                    power.freeze_at(rng.random_range(1..8));
                    drop(Acting::boot(&power));
                }
            }
            let host = Acting::boot(&power).unwrap();
            assert!(host.journal.cursors().appended >= flushed);
            host.check().unwrap();
            for _ in 0..10 {
                host.step(&mut rng, &mut flushed).unwrap();
            }
            host.tap.sync_once().unwrap();
            host.check().unwrap();
            if ended {
                return;
            }
            cuts += 1;
        }
    });
    println!("{cuts} cuts of a production that builds undo, in {tried} histories");
    assert!(tried < 4 || cuts > 100, "{cuts}");
}

/// LFC 10 writes b, LFC 12 writes c: the volume passes through the end of 10, and what is not sealed is not on it.
#[test]
fn w2_whole_sealed_containers_in_order_and_the_open_one_in_the_overlay() {
    let power = SimPower::new();
    let host = Acting::boot(&power).unwrap();
    let volume = power.medium("v0", storage(SIZES[0]));
    let put = |offset, byte| {
        let told = host.ask(Some(write(offset, byte, 10)));
        assert!(told.try_recv().unwrap());
    };
    put(0, b'b');
    host.tap.sync_once().unwrap();
    assert!(!apply_waiting(&host.tap, &host.volumes).unwrap());
    assert_eq!(volume.live(ByteRange::at(0, 1)), [0], "open, though durable");
    host.tap.seal_now().unwrap();
    put(0, b'c');
    put(5, b'd');
    host.tap.seal_now().unwrap();
    put(9, b'e');
    assert!(apply_waiting(&host.tap, &host.volumes).unwrap());
    assert_eq!(volume.live(ByteRange::at(0, 10)), b"bbbbbbbbbb");
    assert!(apply_waiting(&host.tap, &host.volumes).unwrap());
    assert_eq!(volume.live(ByteRange::at(0, 10)), b"cccccddddd");
    assert!(!apply_waiting(&host.tap, &host.volumes).unwrap());
    let mut seen = [0; 10];
    host.tap.read(V, 0, &mut seen).unwrap();
    assert_eq!(&seen, b"cccccdddde");
    host.tap.sync_once().unwrap();
    host.check().unwrap();
}

/// One request that is larger than the room for two containers: nothing that waits is sealed, so nothing could ever leave;
/// the next writer seals it instead of waiting for ever.
#[test]
fn w2_a_full_overlay_seals_early() {
    let power = SimPower::new();
    let host = Acting::boot(&power).unwrap();
    // One record, one frame: a container ends behind the frame that fills it.
    let told = host.ask(Some(write(0, 1, 120 << 10)));
    assert!(told.try_recv().unwrap());
    assert!(host.tap.pinned_bytes() > 2 * LFC);
    assert!(host.tap.take_container().is_empty(), "nothing is sealed");
    thread::scope(|s| {
        // Ends the wait also when this test fails.
        let _stops = Stops(&host.tap);
        let waits = s.spawn(|| host.ask(Some(write(0, 2, 1))).recv_timeout(PATIENCE));
        until("the overlay gives room", PATIENCE, || {
            apply_waiting(&host.tap, &host.volumes).unwrap();
            waits.is_finished().then_some(())
        });
        assert!(waits.join().unwrap().unwrap());
    });
    host.tap.sync_once().unwrap();
    host.check().unwrap();
}
