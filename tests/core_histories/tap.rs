//! The tap alone: flushes and syncs that race (T1), write-back behind a newer write (W1), the copier against a writer
//! (C1), many threads, and failures that must reach everyone who waits.

use super::{
    hosts::{Production, storage, volumes},
    world::Ends,
};
use bytes::Bytes;
use journal::{
    JournalError,
    tap::{Request, Tap, VolumeChange},
};
use model::{ByteRange, Payload, RecordBody, VolumeIndex, WriteSeq, ports::Family};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use testkit::{Oracle, SimMedium, SimPower, sim::Op, with_seeds};

const V: VolumeIndex = VolumeIndex(0);
pub const SIZE: u64 = 64 << 10;
/// Longer than any of this takes; a test that waits so long hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

type Answer = Result<(), Arc<JournalError>>;

/// Ends a tap's sync thread when it goes, also by a panic: a scope that waits for the thread would hang.
pub struct Stops<'a>(pub &'a Tap);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.flushes().stop();
    }
}

/// One production host.
pub struct Lab {
    pub power: SimPower,
    pub host: Production,
}

pub fn lab() -> Lab {
    let power = SimPower::new();
    let host = Production::boot(&power, &[SIZE]).unwrap();
    Lab { power, host }
}

impl Lab {
    /// The tail that takes frames now.
    fn tail(&self) -> SimMedium {
        let tails = [0, 1].map(|n| {
            self.power
                .medium(&format!("tail.{n}"), journal::tail_bytes(super::hosts::LFC))
        });
        let [a, b] = tails;
        if self.host.journal.has_sealed() { b } else { a }
    }

    pub fn volume(&self) -> SimMedium {
        self.power.medium("v0", storage(SIZE))
    }

    pub fn ask(&self, change: Option<VolumeChange>, durable: bool) -> mpsc::Receiver<Answer> {
        let (tell, told) = mpsc::channel();
        self.host.tap.submit(vec![Request {
            change,
            durable,
            done: Box::new(move |answer| tell.send(answer).unwrap()),
        }]);
        told
    }

    pub fn write(&self, offset: u64, fill: u8, len: usize) {
        let told = self.ask(Some(write(offset, fill, len)), false);
        // Whoever leads answers, and that may be another thread.
        told.recv_timeout(Duration::from_secs(60))
            .expect("answered")
            .unwrap();
    }

    pub fn read(&self, range: ByteRange) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(range.len()).unwrap()];
        self.host.tap.read(V, range.start, &mut out).unwrap();
        out
    }

    /// As [`Lab::read`], where nobody writes meanwhile: in pieces at once it is the same.
    pub fn read_at_rest(&self, range: ByteRange) -> Vec<u8> {
        let out = self.read(range);
        let third = range.len() / 3;
        let places = [(0, 2 * third), (third, range.len() - third), (0, range.len())];
        let mut pieces =
            places.map(|(at, len)| (range.start + at, vec![0xee; usize::try_from(len).unwrap()]));
        let mut reads = pieces.each_mut().map(|(at, buf)| (*at, &mut buf[..]));
        self.host.tap.read_each(V, &mut reads).unwrap();
        for ((at, len), (_, seen)) in places.iter().zip(&pieces) {
            let at = usize::try_from(*at).unwrap();
            assert!(*seen == out[at..at + usize::try_from(*len).unwrap()]);
        }
        out
    }
}

pub fn write(offset: u64, fill: u8, len: usize) -> VolumeChange {
    VolumeChange::Write {
        volume: V,
        offset,
        data: Bytes::from(vec![fill; len]),
    }
}

/// W is answered while a sync runs; a flush behind it must not be answered by that sync.
#[test]
fn t1_a_flush_joins_only_a_sync_that_starts_after_its_frame() {
    let lab = lab();
    lab.write(0, 1, 100);
    let held = lab.tail().hold(Op::Sync, 0);
    thread::scope(|s| {
        let first = s.spawn(|| lab.host.tap.sync_once());
        assert!(held.wait_for(1), "the first sync stands at the disk");
        lab.write(200, 2, 100);
        let flush = lab.ask(None, true);
        drop(held);
        let durable = first.join().unwrap().unwrap();
        assert_eq!(durable, WriteSeq(2), "the birth and the first write");
        assert!(
            flush.try_recv().is_err(),
            "answered by a sync that began before its frame"
        );
        assert_eq!(lab.host.tap.sync_once().unwrap(), WriteSeq(3));
        flush.recv_timeout(PATIENCE).unwrap().unwrap();
    });
    let power = lab.power.clone();
    drop(lab);
    power.cut(&mut StdRng::seed_from_u64(1));
    let host = Production::boot(&power, &[SIZE]).unwrap();
    let mut there = [0; 300];
    host.tap.read(V, 0, &mut there).unwrap();
    assert_eq!((there[99], there[299]), (1, 2), "what was flushed is there");
}

/// W1 is durable, W2 on the same block is not: write-back writes W1, and reads go on to see W2.
#[test]
fn w1_write_back_takes_durable_frames_and_keeps_what_newer_records_own() {
    let lab = lab();
    lab.write(1000, 1, 3000);
    lab.host.tap.sync_once().unwrap();
    lab.write(2000, 2, 500);
    lab.host.write_back(u64::MAX).unwrap();
    assert_eq!(lab.volume().live(ByteRange::at(1000, 3000)), vec![1; 3000]);
    let mut expected = vec![1; 3000];
    expected[1000..1500].fill(2);
    assert_eq!(lab.read_at_rest(ByteRange::at(1000, 3000)), expected);
    assert_eq!(lab.host.journal.cursors().written_back, WriteSeq(2));
    // After a cut now the volume holds nothing that the journal does not.
    lab.host.tap.sync_once().unwrap();
    lab.host.write_back(u64::MAX).unwrap();
    assert_eq!(lab.volume().live(ByteRange::at(1000, 3000)), expected);
    assert_eq!(lab.host.tap.pinned_bytes(), 0);
}

/// The copier has read R; then W gets its position, then the copy its own: the copy must hold W.
#[test]
fn c1_a_region_that_is_written_while_it_is_read_is_read_again() {
    let lab = lab();
    let range = ByteRange::at(4096, 8192);
    lab.write(4096, 1, 8192);
    lab.host.tap.sync_once().unwrap();
    lab.host.write_back(u64::MAX).unwrap();
    let held = lab.volume().hold(Op::Read, 0);
    let copy = thread::scope(|s| {
        let copier = s.spawn(|| lab.host.tap.copy(V, range, false).unwrap());
        while held.waiting() == 0 {
            thread::yield_now();
        }
        lab.write(5000, 2, 100);
        drop(held);
        copier.join().unwrap()
    });
    let Payload::Data(data) = &copy.payload else {
        panic!("{copy:?}");
    };
    assert_eq!(copy.seq, lab.host.journal.cursors().appended);
    assert_eq!((data[903], data[904], data[1003], data[1004]), (1, 2, 2, 1));
}

/// Copies of a region that a writer never leaves alone are each the region exactly as of their stub.
#[test]
fn c1_a_copy_is_the_region_exactly_at_its_position() {
    let lab = lab();
    let range = ByteRange::at(4096, 8192);
    let stop = AtomicBool::new(false);
    let copies = thread::scope(|s| {
        s.spawn(|| {
            let mut rng = StdRng::seed_from_u64(1);
            while !stop.load(Ordering::Relaxed) {
                lab.write(
                    rng.random_range(4000..12_000),
                    rng.random(),
                    rng.random_range(1..2000),
                );
                if rng.random_bool(0.2) {
                    lab.host.tap.sync_once().unwrap();
                    lab.host.write_back(u64::MAX).unwrap();
                }
            }
        });
        let _ends = Ends(&stop);
        (0..60)
            .map(|i| lab.host.tap.copy(V, range, i % 7 == 0).unwrap())
            .collect::<Vec<_>>()
    });
    // The journal says what every byte was at every position.
    let mut oracle = Oracle::new(&[SIZE]);
    let frames = lab.host.journal.frames_after(WriteSeq(0), u64::MAX).unwrap();
    let mut records = frames.iter().flat_map(|f| f.records()).peekable();
    for copy in &copies {
        while let Some(record) = records.next_if(|r| r.seq <= copy.seq) {
            oracle.record(record);
            if record.seq == copy.seq {
                let RecordBody::Copy { range: at, digest: d } = &record.body else {
                    panic!("{record:?} is no stub");
                };
                let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
                copy.payload.copy_to(0, &mut bytes);
                assert_eq!((*at, *d), (range, *blake3::hash(&bytes).as_bytes()));
            }
        }
        let expected = oracle.bytes(V, range, copy.seq);
        match &copy.payload {
            Payload::Data(data) => assert!(*data == expected, "the copy at {}", copy.seq),
            Payload::Zero => assert!(expected.iter().all(|b| *b == 0), "the copy at {}", copy.seq),
        }
    }
}

/// A hole is one copy, however long; written while it is on its way it is read again, and is as long as other copies are.
#[test]
fn c1_a_hole_is_one_copy_until_it_is_written() {
    const MIB: u64 = 1 << 20;
    let power = SimPower::new();
    let host = Production::boot(&power, &[8 * MIB]).unwrap();
    let lab = Lab { power, host };
    let tap = &lab.host.tap;
    let whole = ByteRange::at(0, 8 * MIB);
    assert_eq!(tap.copy_stretch(V, whole).unwrap(), whole);
    let copy = tap.copy(V, whole, false).unwrap();
    assert_eq!((copy.range, copy.payload), (whole, Payload::Zero));
    assert_eq!(copy.digest, *blake3::hash(&vec![0; 8 << 20]).as_bytes());
    let read = tap.read_copy(V, whole).unwrap();
    assert_eq!((read.range(), read.payload()), (whole, &Payload::Zero));
    lab.write(5 * MIB + 20_000, 1, 100);
    assert!(
        tap.place_copy(read, false).unwrap().is_none(),
        "it was written since"
    );
    let first = ByteRange::at(0, 5 * MIB + (16 << 10));
    assert_eq!(
        tap.copy_stretch(V, whole).unwrap(),
        first,
        "whole regions of the hole"
    );
    let rest = ByteRange {
        start: first.end,
        end: whole.end,
    };
    assert_eq!(tap.copy_stretch(V, rest).unwrap(), ByteRange::at(rest.start, MIB));
    for copy in [
        tap.copy(V, whole, false).unwrap(),
        tap.copy_held(V, whole, false).unwrap(),
    ] {
        assert_eq!((copy.range, copy.payload), (ByteRange::at(0, MIB), Payload::Zero));
    }
    let Payload::Data(data) = tap.copy(V, rest, false).unwrap().payload else {
        panic!("a hole");
    };
    let at = 20_000 - (16 << 10);
    assert_eq!(
        (data.len() as u64, data[at - 1], data[at], data[at + 100]),
        (MIB, 0, 1, 0)
    );
}

/// What a verify compares: the pieces that nobody wrote meanwhile are exactly as of the look's position; a write between is
/// told, so that what was read of its piece is not taken for anything.
#[test]
fn a_look_tells_what_was_written_while_it_was_read() {
    let lab = lab();
    let range = ByteRange::at(0, 16384);
    lab.write(0, 1, 16384);
    lab.host.tap.sync_once().unwrap();
    lab.host.write_back(u64::MAX).unwrap();
    let held = lab.volume().hold(Op::Read, 0);
    let look = thread::scope(|s| {
        let look = s.spawn(|| lab.host.tap.look(V, &[range], 4096).unwrap());
        while held.waiting() == 0 {
            thread::yield_now();
        }
        lab.write(8190, 2, 4);
        drop(held);
        look.join().unwrap()
    });
    assert_eq!(look.seq, lab.host.journal.cursors().appended);
    assert_eq!(
        look.touched.into_iter().collect::<Vec<_>>(),
        [1, 2],
        "the write lies on both sides of a piece's end"
    );
}

/// Under a writer that never rests every piece that a look calls untouched is what the journal says of its position.
#[test]
fn untouched_pieces_of_a_look_are_exactly_as_of_its_position() {
    const PIECE: u64 = 4096;
    let lab = lab();
    let ranges = [ByteRange::at(0, 16384), ByteRange::at(24576, 8192)];
    let stop = AtomicBool::new(false);
    let looks = thread::scope(|s| {
        s.spawn(|| {
            let mut rng = StdRng::seed_from_u64(7);
            while !stop.load(Ordering::Relaxed) {
                lab.write(
                    rng.random_range(0..33_000),
                    rng.random(),
                    rng.random_range(1..3000),
                );
                if rng.random_bool(0.2) {
                    lab.host.tap.sync_once().unwrap();
                    lab.host.write_back(u64::MAX).unwrap();
                }
            }
        });
        let _ends = Ends(&stop);
        let (mut looks, mut lost) = (Vec::new(), 0);
        for _ in 0..500_000 {
            if lost == 40 {
                break;
            }
            let look = lab.host.tap.look(V, &ranges, PIECE).unwrap();
            lost += usize::from(!look.touched.is_empty());
            if !look.touched.is_empty() || looks.len() < 400 {
                looks.push(look);
            }
        }
        looks
    });
    let mut oracle = Oracle::new(&[SIZE]);
    let frames = lab.host.journal.frames_after(WriteSeq(0), u64::MAX).unwrap();
    let mut records = frames.iter().flat_map(|f| f.records()).peekable();
    let (mut compared, mut touched) = (0, 0);
    for look in &looks {
        while let Some(record) = records.next_if(|r| r.seq <= look.seq) {
            oracle.record(record);
        }
        touched += look.touched.len();
        for (range, payload) in &look.parts {
            let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
            payload.copy_to(0, &mut bytes);
            for at in (range.start..range.end).step_by(4096) {
                if look.touched.contains(&(at / PIECE)) {
                    continue;
                }
                compared += 1;
                let inside = usize::try_from(at - range.start).unwrap();
                let expected = oracle.bytes(V, ByteRange::at(at, PIECE), look.seq);
                assert!(
                    bytes[inside..inside + 4096] == expected,
                    "byte {at} as of {}",
                    look.seq
                );
            }
        }
    }
    assert!(
        compared > 0 && touched > 0,
        "{compared} pieces compared, {touched} touched"
    );
}

/// Many threads write, flush and read while a sync thread and a write-back thread work: every request is answered once,
/// what was flushed is durable, and the bytes are those of the order that the journal has.
#[test]
fn many_threads_get_one_order_and_one_answer_each() {
    const THREADS: u64 = 6;
    const REQUESTS: u64 = 120;
    with_seeds("core: many threads", 3, |rng| {
        let seed: u64 = rng.random();
        let lab = lab();
        let answers = Arc::new(AtomicUsize::new(0));
        let tap = &lab.host.tap;
        thread::scope(|s| {
            let sync = s.spawn(|| {
                while let Some(work) = tap.flushes().wait_for_work(PATIENCE) {
                    if work {
                        tap.sync_once().unwrap();
                        lab.host.write_back(16 << 10).unwrap();
                    }
                }
            });
            let writers: Vec<_> = (0..THREADS)
                .map(|t| {
                    let (answers, lab) = (Arc::clone(&answers), &lab);
                    s.spawn(move || {
                        let mut rng = StdRng::seed_from_u64(seed ^ t);
                        let mut told = Vec::new();
                        for _ in 0..REQUESTS {
                            let (tell, hear) = mpsc::channel();
                            let answers = Arc::clone(&answers);
                            let change = rng.random_bool(0.8).then(|| {
                                let len = rng.random_range(1..6000);
                                write(rng.random_range(0..SIZE - 6000), rng.random(), len)
                            });
                            tap.submit(vec![Request {
                                durable: change.is_none() || rng.random_bool(0.1),
                                change,
                                done: Box::new(move |answer| {
                                    answers.fetch_add(1, Ordering::Relaxed);
                                    tell.send(answer).unwrap();
                                }),
                            }]);
                            told.push(hear);
                            if rng.random_bool(0.1) {
                                lab.read(ByteRange::at(0, 9000));
                            }
                            if rng.random_bool(0.02) {
                                tap.seal_now().unwrap();
                            }
                        }
                        for hear in told {
                            hear.recv_timeout(PATIENCE)
                                .expect("no request is forgotten")
                                .unwrap();
                        }
                    })
                })
                .collect();
            let ended: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
            tap.flushes().stop();
            sync.join().unwrap();
            ended.into_iter().for_each(|e| e.unwrap());
        });
        assert_eq!(answers.load(Ordering::Relaxed) as u64, THREADS * REQUESTS);
        let mut oracle = Oracle::new(&[SIZE]);
        let frames = lab.host.journal.frames_after(WriteSeq(0), u64::MAX).unwrap();
        let records = frames.iter().flat_map(|f| f.records());
        for (record, seq) in records.zip(1..) {
            assert_eq!(record.seq, WriteSeq(seq), "no number is missing or given twice");
            oracle.record(record);
        }
        let whole = ByteRange::at(0, SIZE);
        let head = oracle.head();
        assert_eq!(head, lab.host.journal.cursors().appended);
        assert!(lab.read_at_rest(whole) == oracle.bytes(V, whole, head));
    });
}

/// A failed sync answers everyone who waits with an error, and nothing is acknowledged afterwards.
#[test]
fn a_failed_sync_is_told_to_everyone_and_nothing_is_acknowledged_after_it() {
    let lab = lab();
    lab.write(0, 1, 10);
    let waiting: Vec<_> = (0..3).map(|_| lab.ask(None, true)).collect();
    let fua = lab.ask(Some(write(0, 2, 10)), true);
    lab.tail().fail(Op::Sync, 1);
    lab.host.tap.sync_once().unwrap_err();
    for told in waiting.iter().chain([&fua]) {
        let error = told.try_recv().expect("told at once").unwrap_err();
        assert!(matches!(*error, JournalError::Poisoned(_)), "{error}");
    }
    for (change, durable) in [
        (None, true),
        (Some(write(0, 3, 10)), false),
        (Some(write(0, 4, 10)), true),
    ] {
        let told = lab.ask(change, durable);
        told.recv_timeout(PATIENCE).expect("answered").unwrap_err();
    }
    assert!(lab.host.tap.mark("late".into(), String::new()).is_err());
    assert!(lab.host.tap.seal_now().is_err());
    assert!(lab.host.tap.sync_once().is_err());
}

/// As the above, with the failure between a flush's look at the journal and its place among those who wait.
#[test]
fn a_flush_that_races_a_failing_sync_is_answered() {
    for round in 0..300 {
        let lab = lab();
        lab.write(0, 1, 10);
        lab.tail().fail(Op::Sync, 1);
        thread::scope(|s| {
            s.spawn(|| {
                // As the sync thread: the first failure is its end.
                for _ in 0..round % 50 {
                    std::hint::spin_loop();
                }
                lab.host.tap.sync_once().unwrap_err();
            });
            for _ in 0..20 {
                let told = lab.ask(None, true);
                let _ = told.recv_timeout(PATIENCE).expect("a poisoned tap answers too");
            }
        });
    }
}

/// A flush that comes when the sync thread was told to end is answered, not forgotten.
#[test]
fn a_flush_after_the_stop_is_answered() {
    let lab = lab();
    lab.write(0, 1, 10);
    lab.host.tap.flushes().stop();
    assert!(lab.host.tap.flushes().wait_for_work(PATIENCE).is_none());
    let told = lab.ask(None, true);
    told.recv_timeout(PATIENCE).expect("answered").unwrap_err();
}

/// What was answered survives a kill, what was flushed a cut: with many threads, at a random sync.
#[test]
fn concurrent_promises_survive() {
    with_seeds("core: concurrent promises", 40, |rng| {
        let power = SimPower::new();
        let lab = Lab {
            host: Production::boot(&power, &[SIZE]).unwrap(),
            power: power.clone(),
        };
        power.freeze_at(rng.random_range(1..12));
        // Every thread writes its own byte, counting up: the last value that was promised must be there.
        let promised: Vec<(u8, u8)> = thread::scope(|s| {
            let lab = &lab;
            let _stops = Stops(&lab.host.tap);
            s.spawn(move || {
                // As the sync thread does: its first failure is its end.
                while let Some(work) = lab.host.tap.flushes().wait_for_work(PATIENCE) {
                    if work && lab.host.tap.sync_once().is_err() {
                        return;
                    }
                }
            });
            let threads: Vec<_> = (0..4u64)
                .map(|t| {
                    s.spawn(move || {
                        let (mut answered, mut flushed) = (0, 0);
                        for n in 1..=40 {
                            let told = lab.ask(Some(write(t, n, 1)), n % 5 == 0);
                            if told.recv_timeout(PATIENCE).expect("answered").is_err() {
                                break;
                            }
                            answered = n;
                            if n % 5 == 0 {
                                flushed = n;
                            }
                        }
                        (answered, flushed)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let killed = rng.random_bool(0.5);
        match killed {
            true => power.kill(rng),
            false => power.cut(rng),
        }
        drop(lab);
        Production::boot(&power, &[SIZE]).unwrap();
        for ((answered, flushed), t) in promised.into_iter().zip(0..) {
            let mut out = [0];
            volumes(&power, &[SIZE]).read(V, t, &mut out).unwrap();
            let least = if killed { answered } else { flushed };
            assert!(
                out[0] >= least,
                "thread {t}: {} is there, {least} was promised",
                out[0]
            );
        }
    });
}

/// Cursors are kept together: threads that move different ones at once must not take back what another one has committed.
#[test]
fn kept_cursors_do_not_fall_when_threads_move_them_at_once() {
    let lab = lab();
    let journal = &lab.host.journal;
    lab.write(0, 1, 1);
    let head = lab.host.tap.sync_once().unwrap();
    lab.host.write_back(u64::MAX).unwrap();
    let context = journal.context().unwrap().expect("made at boot");
    let superblock = lab.power.medium("super", journal::SUPERBLOCK_BYTES);
    let held = superblock.hold(Op::Sync, 0);
    thread::scope(|s| {
        // One commit stands at the disk, and behind it the two that move cursors.
        s.spawn(|| journal.put_context(&context).unwrap());
        assert!(held.wait_for(1));
        s.spawn(|| journal.set_peer(head, head, true).unwrap());
        s.spawn(|| journal.set_checkpointed(head).unwrap());
        thread::sleep(Duration::from_millis(50));
        drop(held);
    });
    let rows = lab.power.store("db").dump(Family::Meta);
    let (_, row) = rows
        .into_iter()
        .find(|(key, _)| key == &[2])
        .expect("the row of the cursors");
    let kept = |at: usize| WriteSeq(u64::from_le_bytes(row[at..at + 8].try_into().unwrap()));
    assert_eq!(
        (kept(1), kept(17)),
        (head, head),
        "checkpointed and applied by the peer"
    );
}
