//! The formats as bytes.

use super::*;
use crate::{LfcRow, SealFlags, frame::Frame};
use model::{ByteRange, GenNo, LfcId};
use testkit::golden;

fn file(name: &str) -> String {
    format!("{}/../testdata/journal/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn drafts() -> Vec<(Draft, Timestamp)> {
    let context = |body| Draft {
        volume: VolumeIndex(0),
        body,
    };
    let bodies = [
        context(RecordBody::Birth {
            parent: Some((GenId(0xA0), WriteSeq(16))),
            parent_digest: [3; 32],
        }),
        write(1, 4095, b"bytes".to_vec()),
        Draft {
            volume: VolumeIndex(2),
            body: RecordBody::Zero {
                range: ByteRange::at(8192, 4096),
                discard: true,
            },
        },
        Draft {
            volume: VolumeIndex(2),
            body: RecordBody::Copy {
                range: ByteRange::at(0, 32768),
                digest: [5; 32],
            },
        },
        Draft {
            volume: VolumeIndex(1),
            body: RecordBody::Size { size: 1 << 30 },
        },
        context(RecordBody::ClockStep {
            from: at(20),
            to: at(10),
        }),
        mark("end-of-day"),
    ];
    bodies
        .into_iter()
        .enumerate()
        .map(|(i, d)| (d, at(i as u64)))
        .collect()
}

#[test]
fn frame() {
    let bytes = Frame::build(GenId(0xA1), LfcId(2), WriteSeq(17), [1; 32], &drafts());
    golden::check(&file("frame.bin"), &bytes);
    let frame = Frame::parse(bytes).unwrap();
    for (i, (record, (draft, time))) in frame.records().iter().zip(drafts()).enumerate() {
        assert_eq!(record.seq, WriteSeq(17 + i as u64));
        assert_eq!(
            (record.volume, record.time, &record.body),
            (draft.volume, time, &draft.body)
        );
    }
}

#[test]
fn tail_superblock_and_rows() {
    let lab = Lab::new();
    let j = lab.fresh();
    j.append(vec![write(0, 0, [1, 2, 3])], at(1)).unwrap();
    j.append(vec![mark("m")], at(2)).unwrap();
    j.sync().unwrap();
    let mut tail = lab.tail(0).live(ByteRange {
        start: 0,
        end: 4096 + 512,
    });
    // The header's padding is zero up to its checksum.
    tail.drain(128..4092);
    golden::check(&file("tail.bin"), &tail);
    j.raise_bound().unwrap();
    let mut slot = lab.superblock().durable(ByteRange { start: 0, end: 4096 });
    slot.drain(64..4092);
    golden::check(&file("superblock.bin"), &slot);
    j.seal(SealFlags {
        mark: true,
        cut: None,
    })
    .unwrap();
    let row = j.ingest_sealed().unwrap().unwrap();
    golden::check(&file("lfc-row.bin"), &row.encode());
    assert_eq!(LfcRow::decode(GenNo(1), LfcId(2), &row.encode()).unwrap(), *row);
    let mut dump = String::new();
    for family in model::ports::Family::ALL {
        for (key, value) in lab.power.store("db").dump(family) {
            let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
            dump.push_str(&format!("{family:?} {} {}\n", hex(&key), hex(&value)));
        }
    }
    golden::check_text(&file("store.txt"), &dump);
}

/// Any flipped bit of a frame is found, and no bytes make the parser panic.
#[test]
fn every_flipped_bit_of_a_frame_is_found() {
    let good = Frame::build(GenId(0xA1), LfcId(2), WriteSeq(17), [1; 32], &drafts());
    for i in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[i / 8] ^= 1 << (i % 8);
        assert!(Frame::parse(Bytes::from(bad)).is_err(), "bit {i}");
    }
    for n in 0..good.len() {
        assert!(Frame::parse(good.slice(..n)).is_err());
    }
}
