use super::*;
use crate::{
    seeds::with_seeds,
    workload::{Shape, Workload},
};
use rand::Rng;
use std::io;

/// Whole images, one a position: the plainest oracle there is.
struct Images {
    at: Vec<Vec<Vec<u8>>>,
}

impl Images {
    fn new(sizes: &[u64]) -> Self {
        Self {
            at: vec![sizes.iter().map(|s| vec![0; small(*s)]).collect()],
        }
    }

    fn record(&mut self, record: &Record) {
        let mut image = self.at.last().unwrap().clone();
        if let (Some(range), Some(payload)) = (record.changed(), record.payload()) {
            let bytes = &mut image[usize::from(record.volume.0)];
            payload.copy_to(0, &mut bytes[small(range.start)..small(range.end)]);
        }
        self.at.push(image);
    }
}

fn reader(image: &[Vec<u8>]) -> impl FnMut(VolumeIndex, u64, &mut [u8]) -> io::Result<()> + '_ {
    |volume, at, out| {
        let from = small(at);
        out.copy_from_slice(&image[usize::from(volume.0)][from..from + out.len()]);
        Ok(())
    }
}

#[test]
fn knows_every_byte_at_every_position() {
    with_seeds("oracle", 12, |rng| {
        let sizes = [70_001, 4096, 513];
        let (mut oracle, mut images) = (Oracle::new(&sizes), Images::new(&sizes));
        let mut workload = Workload::new(
            &sizes,
            Shape {
                len_max: 9000,
                ..Shape::default()
            },
        );
        let mut marks = 0;
        while images.at.len() < 60 {
            let seq = oracle.head().next();
            let time = Timestamp(seq.0 / 3 * 10);
            let operation = workload.next(rng);
            if let Some(record) = operation.record(seq, time, rng) {
                marks += u64::from(matches!(record.body, RecordBody::Mark { .. }));
                oracle.record(&record);
                images.record(&record);
            }
        }
        assert_eq!(oracle.marks().len() as u64, marks);
        for (seq, image) in images.at.iter().enumerate() {
            let seq = WriteSeq(seq as u64);
            oracle.compare(seq, &mut reader(image)).unwrap();
            oracle.compare_held(seq, &mut reader(image)).unwrap();
            let spans = oracle.prefixes(&mut reader(image)).unwrap();
            for other in 0..images.at.len() as u64 {
                let same = images.at[other as usize] == *image;
                assert_eq!(
                    spans.iter().any(|(a, b)| a.0 <= other && other <= b.0),
                    same,
                    "{spans:?} {other}"
                );
            }
        }
        // A changed byte in a block that history knows is found, wherever it is.
        let mut image = images.at[40].clone();
        let volume = rng.random_range(0..sizes.len());
        let at = rng.random_range(0..image[volume].len());
        image[volume][at] ^= 0x40;
        let found = oracle.compare(WriteSeq(40), &mut reader(&image)).unwrap_err();
        assert_eq!((usize::from(found.volume.0), found.offset), (volume, at as u64));
        // Another line.
        let mut fork = oracle.clone();
        fork.truncate(WriteSeq(20));
        assert_eq!(fork.head(), WriteSeq(20));
        fork.compare(WriteSeq(59), &mut reader(&images.at[20])).unwrap();
        let touched = oracle.touched(VolumeIndex(0), WriteSeq(20), WriteSeq(40));
        for block in 0..18 {
            let range = block * 4096..((block + 1) * 4096).min(70_001);
            let differs = images.at[20][0][range.clone()] != images.at[40][0][range];
            assert!(!differs || touched.contains(&BlockNo(block as u64)));
        }
    });
}

#[test]
fn times_marks_and_containers() {
    let mut oracle = Oracle::new(&[8192]);
    let volume = VolumeIndex(0);
    for (seq, time) in [(1, 10), (2, 10), (3, 30)] {
        oracle.write(WriteSeq(seq), Timestamp(time), volume, seq, &[seq as u8]);
    }
    oracle.mark(WriteSeq(4), Timestamp(40), "m");
    oracle.seal(LfcId(2), WriteSeq(4));
    assert_eq!(
        [9, 10, 29, 30, 99].map(|t| oracle.at_time(Timestamp(t)).0),
        [0, 2, 2, 3, 4]
    );
    assert_eq!(oracle.mark_at("m"), Some(WriteSeq(4)));
    assert_eq!(oracle.lfc_end(LfcId(2)), Some(WriteSeq(4)));
    assert_eq!(oracle.time_of(WriteSeq(3)), Some(Timestamp(30)));
    assert_eq!(
        oracle.bytes(volume, ByteRange::at(0, 5), WriteSeq(2)),
        [0, 1, 2, 0, 0]
    );
}

#[test]
fn a_view_has_the_size_of_its_point() {
    let mut oracle = Oracle::new(&[4096]);
    let volume = VolumeIndex(0);
    oracle.write(WriteSeq(1), Timestamp(1), volume, 0, &[1; 4096]);
    oracle.resize(WriteSeq(2), Timestamp(2), volume, 10_000);
    oracle.write(WriteSeq(3), Timestamp(3), volume, 9_999, &[3]);
    oracle.resize(WriteSeq(4), Timestamp(4), volume, 100);
    assert_eq!(
        [1, 2, 3, 4].map(|s| oracle.size(volume, WriteSeq(s))),
        [4096, 10_000, 10_000, 100]
    );
    assert_eq!(oracle.bytes(volume, ByteRange::at(9_998, 2), WriteSeq(3)), [0, 3]);
    assert_eq!(oracle.bytes(volume, ByteRange::at(99, 2), WriteSeq(4)), [1, 0]);
}

#[test]
fn a_large_history_describes_itself() {
    let mut oracle = Oracle::new(&[1 << 40]);
    let header = |n: u64| Header {
        block: BlockNo(n % 1000),
        version: n,
        seed: 9,
        ..Header::default()
    };
    for n in 1..=50_000 {
        oracle.describe(WriteSeq(n), Timestamp(n), &header(n), 1);
    }
    for n in [1, 999, 1000, 49_999] {
        assert_eq!(
            block::check(&oracle.block(VolumeIndex(0), BlockNo(n % 1000), WriteSeq(n))),
            Ok(Some(header(n)))
        );
    }
    // Two blocks swapped in time are no prefix.
    let mut torn = |volume, at, out: &mut [u8]| {
        let number = BlockNo::of(at);
        out.copy_from_slice(&oracle.block(volume, number, WriteSeq(if number.0 == 7 { 4500 } else { 6500 })));
        Ok(())
    };
    let fault = oracle.prefixes(&mut torn).unwrap_err();
    assert_eq!(
        (fault.block, &fault.fits[..]),
        (BlockNo(7), &[(WriteSeq(4007), WriteSeq(5006))][..])
    );
}
