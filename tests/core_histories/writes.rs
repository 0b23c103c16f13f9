//! What a request becomes on its way to the volume: write-back (W1), discards and zeroes (W5), bytes (W6).

use super::{
    hosts::{LFC, Production, storage, volumes},
    tap::{Lab, lab, write},
};
use journal::tap::VolumeChange;
use model::{ByteRange, Record, RecordBody, VolumeIndex, WriteSeq};
use rand::{Rng, RngCore};
use testkit::{Oracle, SimPower, sim::Op, with_seeds};

const V: VolumeIndex = VolumeIndex(0);

fn zero(start: u64, len: u64, discard: bool) -> VolumeChange {
    VolumeChange::Zero {
        volume: V,
        range: ByteRange::at(start, len),
        discard,
    }
}

fn lab_of(size: u64) -> Lab {
    let power = SimPower::new();
    let host = Production::boot(&power, &[size]).unwrap();
    Lab { power, host }
}

/// Every record of the journal, in order.
fn records(lab: &Lab) -> Vec<Record> {
    let frames = lab.host.journal.frames_after(WriteSeq(0), u64::MAX).unwrap();
    frames.iter().flat_map(|f| f.records().to_vec()).collect()
}

/// W1 is synced, W2 is not, both on the same block. Write-back, then a power cut that takes W2 from the journal: if
/// write-back had taken the bytes from the overlay, W2 would be on the volume, ahead of the journal.
#[test]
fn w1_the_volume_is_never_ahead_of_the_journal() {
    let mut lost = 0;
    let tried = with_seeds("w1 cut", 60, |rng| {
        let lab = lab();
        lab.write(1000, 1, 3000);
        lab.host.tap.sync_once().unwrap();
        lab.write(2000, 2, 500);
        lab.host.write_back(u64::MAX).unwrap();
        lab.host.checkpoint().unwrap();
        let power = lab.power.clone();
        drop(lab);
        power.cut(rng);
        let whole = ByteRange::at(1000, 3000);
        let before = power.medium("v0", storage(super::tap::SIZE)).live(whole);
        assert_eq!(before, vec![1; 3000], "W1 and nothing of W2");
        let host = Production::boot(&power, &[super::tap::SIZE]).unwrap();
        let mut there = vec![0; 3000];
        host.tap.read(V, whole.start, &mut there).unwrap();
        let mut expected = vec![1; 3000];
        match host.journal.cursors().appended {
            WriteSeq(2) => lost += 1,
            WriteSeq(3) => expected[1000..1500].fill(2),
            other => panic!("{other}"),
        }
        assert_eq!(there, expected);
    });
    assert!(tried < 60 || lost > 5, "{lost}");
}

/// A reader has looked at the volume when write-back passes it and gives the overlay up: it must have looked at the overlay
/// before, or it sees neither.
#[test]
fn w1_reads_look_in_the_overlay_first() {
    let lab = lab();
    lab.write(0, 1, 1000);
    lab.host.tap.sync_once().unwrap();
    let held = lab.volume().hold(Op::Read, 0);
    let seen = std::thread::scope(|s| {
        // Wider than what was written, so that the volume is read as well.
        let reader = s.spawn(|| lab.read(ByteRange::at(0, 2000)));
        assert!(held.wait_for(1), "the reader has the volume's bytes");
        lab.host.write_back(u64::MAX).unwrap();
        assert_eq!(lab.host.tap.pinned_bytes(), 0, "nothing is in the overlay");
        drop(held);
        reader.join().unwrap()
    });
    assert_eq!(seen[..1000], [1; 1000]);
    assert_eq!(seen[1000..], [0; 1000]);
}

/// `blkdiscard` of a whole volume in one request: records of at most 16 MiB, in containers whose worst-case undo stays near
/// four times their size, although all of them together take a few hundred bytes of the journal.
#[test]
fn w5_one_huge_discard_is_many_records_in_many_containers() {
    let size = (300 << 20) + 777;
    let lab = lab_of(size);
    lab.write(5000, 7, 10_000);
    let told = lab.ask(Some(zero(0, size, true)), true);
    lab.host.tap.sync_once().unwrap();
    told.try_recv().expect("the sync answers").unwrap();
    let mut at = 0;
    for record in records(&lab).iter().filter(|r| r.seq > WriteSeq(2)) {
        let RecordBody::Zero { range, discard: true } = &record.body else {
            panic!("{record:?}");
        };
        assert!(
            range.start == at && range.len() <= Record::ZERO_BYTES_MAX,
            "{range:?}"
        );
        at = range.end;
    }
    assert_eq!(at, size, "the whole range, once");
    lab.host.tap.seal_now().unwrap();
    let rows = lab.host.journal.lfc_rows(..);
    assert!(rows.len() >= 18, "{} containers", rows.len());
    for row in rows {
        let touched = lab.host.journal.touched(row.generation, row.lfc).unwrap();
        let undo: u64 = touched.iter().map(|(_, range)| range.len()).sum();
        assert!(
            undo <= 4 * LFC + Record::ZERO_BYTES_MAX,
            "container {}: {undo} bytes of undo at worst",
            row.lfc
        );
    }
    lab.host.write_back(u64::MAX).unwrap();
    assert_eq!(lab.read(ByteRange::at(5000, 10_000)), vec![0; 10_000]);
    let volume = lab.power.medium("v0", storage(size));
    assert_eq!(volume.live(ByteRange::at(5000, 10_000)), vec![0; 10_000]);
}

/// A discard is no hint: it reads as zeroes from its place in the order on, before and after write-back and a cut, and a
/// write behind it stays.
#[test]
fn w5_a_discard_is_zeroes_in_order() {
    with_seeds("w5 discard", 20, |rng| {
        let lab = lab();
        lab.write(0, 1, 9000);
        let told = lab.ask(Some(zero(100, 8000, true)), false);
        told.try_recv().expect("answered by who asked").unwrap();
        lab.write(4000, 2, 10);
        let mut expected = vec![1; 9000];
        expected[100..8100].fill(0);
        expected[4000..4010].fill(2);
        let whole = ByteRange::at(0, 9000);
        assert_eq!(lab.read_at_rest(whole), expected);
        lab.host.tap.sync_once().unwrap();
        lab.host.write_back(u64::MAX).unwrap();
        assert_eq!(lab.read_at_rest(whole), expected);
        let power = lab.power.clone();
        drop(lab);
        power.cut(rng);
        let host = Production::boot(&power, &[super::tap::SIZE]).unwrap();
        let mut there = vec![0; 9000];
        host.tap.read(V, 0, &mut there).unwrap();
        assert_eq!(there, expected);
    });
}

/// Requests of any size down to one byte, anywhere, up to the last byte of a volume that ends within a block: what is read,
/// and what is on the volume, is byte for byte the order of the requests.
#[test]
fn w6_requests_are_byte_exact_down_to_one_byte() {
    const SIZE: u64 = 3 * 4096 + 1;
    with_seeds("w6", 20, |rng| {
        let lab = lab_of(SIZE);
        let mut oracle = Oracle::new(&[SIZE]);
        for _ in 0..60 {
            let change = small(SIZE, rng);
            let told = lab.ask(Some(change), false);
            told.try_recv().expect("answered by who asked").unwrap();
            if rng.random_bool(0.2) {
                lab.host.tap.sync_once().unwrap();
                lab.host.write_back(rng.random_range(1..2000)).unwrap();
            }
        }
        records(&lab).iter().for_each(|r| oracle.record(r));
        let whole = ByteRange::at(0, SIZE);
        let expected = oracle.bytes(V, whole, oracle.head());
        assert!(lab.read_at_rest(whole) == expected);
        lab.host.tap.sync_once().unwrap();
        lab.host.write_back(u64::MAX).unwrap();
        let mut there = vec![0; expected.len()];
        volumes(&lab.power, &[SIZE]).read(V, 0, &mut there).unwrap();
        assert!(there == expected);
    });
}

/// A write or zero of a few bytes, often at the very end.
fn small(size: u64, rng: &mut dyn RngCore) -> VolumeChange {
    let len = match rng.random_range(0..3) {
        0 => 1,
        1 => rng.random_range(1..20),
        _ => rng.random_range(1..5000),
    };
    let start = if rng.random_bool(0.2) {
        size - len
    } else {
        rng.random_range(0..=size - len)
    };
    match rng.random_bool(0.3) {
        true => zero(start, len, rng.random()),
        false => write(start, rng.random(), usize::try_from(len).unwrap()),
    }
}
