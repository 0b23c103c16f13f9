//! Reading the past by block: redo from memory, from the index and from unindexed containers is the same.

use super::*;
use crate::SealFlags;
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, GenNo, Payload, Record, RedoSpan,
    ports::{History, HistoryError, RedoPiece},
};
use rand::Rng;
use std::collections::BTreeSet;
use testkit::with_seeds;

const BLOCKS: u64 = 32;

fn span(after: u64, upto: u64) -> RedoSpan {
    RedoSpan {
        generation: GenNo(1),
        after: WriteSeq(after),
        upto: WriteSeq(upto),
    }
}

/// What the records say, read one after the other.
fn expected(records: &[Record], volume: VolumeIndex, range: ByteRange, span: &RedoSpan) -> Vec<RedoPiece> {
    let mut out = Vec::new();
    for r in records
        .iter()
        .filter(|r| r.volume == volume && r.seq > span.after && r.seq <= span.upto)
    {
        let Some(part) = r.changed().and_then(|c| c.intersect(range)) else {
            continue;
        };
        let skip = part.start - r.changed().unwrap().start;
        let payload = match r.payload().unwrap() {
            Payload::Zero => Payload::Zero,
            Payload::Data(d) => Payload::Data(d.slice(skip as usize..(skip + part.len()) as usize)),
        };
        out.push(RedoPiece {
            seq: r.seq,
            range: part,
            payload,
        });
    }
    out
}

#[test]
fn redo_by_block_is_what_the_records_say() {
    with_seeds("redo by block", 40, |rng| {
        let mut lab = Lab::new();
        lab.options.recent_bytes = 2000;
        let mut j = lab.fresh();
        let mut records = Vec::new();
        for _ in 0..rng.random_range(1..80) {
            if rng.random_bool(0.1) {
                let _ = j.seal(SealFlags::default());
            }
            if rng.random_bool(0.1) {
                j.ingest_sealed().unwrap();
            }
            if rng.random_bool(0.05) {
                // Some containers are stored without an index: a host that was production before.
                j.sync().unwrap();
                drop(j);
                lab.options.indexed = rng.random();
                j = lab.open().unwrap().0;
            }
            let drafts = (0..rng.random_range(1..4))
                .map(|_| {
                    let at = rng.random_range(0..BLOCKS * BLOCK_SIZE - 9000);
                    let len = rng.random_range(1..9000);
                    let volume = rng.random_range(0..2);
                    if rng.random_bool(0.2) {
                        let body = RecordBody::Zero {
                            range: ByteRange::at(at, len),
                            discard: false,
                        };
                        Draft {
                            volume: VolumeIndex(volume),
                            body,
                        }
                    } else {
                        write(volume, at, vec![rng.random::<u8>(); len as usize])
                    }
                })
                .collect::<Vec<_>>();
            if j.wants_seal(30_000, at(1)) {
                j.seal(SealFlags::default()).unwrap();
            }
            records.extend(j.append(drafts, at(1)).unwrap().records().iter().cloned());
        }
        let last = records.len() as u64;
        for _ in 0..20 {
            let start = rng.random_range(0..BLOCKS * BLOCK_SIZE - 1);
            let range = ByteRange {
                start,
                end: rng.random_range(start..BLOCKS * BLOCK_SIZE),
            };
            let after = rng.random_range(0..last);
            let span = span(after, rng.random_range(after..=last));
            let volume = VolumeIndex(rng.random_range(0..2));
            let got = j.redo(volume, range, &[span]).unwrap();
            assert!(
                got == expected(&records, volume, range, &span),
                "{volume} {range:?} {span:?}"
            );
            let all: BTreeSet<_> = records
                .iter()
                .filter(|r| r.seq > span.after && r.seq <= span.upto)
                .flat_map(|r| r.changed().unwrap().blocks().map(|b| (r.volume, b)))
                .collect();
            let from = (
                VolumeIndex(rng.random_range(0..2)),
                BlockNo(rng.random_range(0..BLOCKS)),
            );
            let limit = rng.random_range(1..20);
            let blocks = j.redone_blocks(&[span], from, limit).unwrap();
            assert_eq!(blocks, all.range(from..).take(limit).copied().collect::<Vec<_>>());
        }
        let beyond = j.redo(VolumeIndex(0), ByteRange::at(0, 1), &[span(0, last + 1)]);
        assert!(matches!(beyond, Err(HistoryError::Gone(_))), "{beyond:?}");
    });
}

/// A reader is never confused by a container that moves from its tail to the store, or by the tail's next container.
#[test]
fn readers_while_containers_move() {
    let mut lab = Lab::new();
    lab.options.recent_bytes = 1;
    let j = Arc::new(lab.fresh());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (j, stop) = (Arc::clone(&j), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut reads = 0;
                while reads == 0 || !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let upto = j.cursors().appended;
                    let pieces = j
                        .redo(VolumeIndex(0), ByteRange::at(0, 4096), &[span(0, upto.0)])
                        .unwrap();
                    assert_eq!(pieces.len() as u64, upto.0);
                    assert!(
                        pieces
                            .iter()
                            .all(|p| p.payload == Payload::Data(Bytes::from(vec![p.seq.0 as u8; 300])))
                    );
                    let frames = j.frames_after(WriteSeq(upto.0 / 2), 1 << 20).unwrap();
                    assert!(frames.is_empty() || frames[0].first_seq() == WriteSeq(upto.0 / 2 + 1));
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for i in 1..=300u64 {
        j.append(vec![write(0, 7, vec![i as u8; 300])], at(i)).unwrap();
        std::thread::yield_now();
        if i % 10 == 0 {
            j.seal(SealFlags::default()).unwrap();
        }
        if i % 20 == 5 {
            j.ingest_sealed().unwrap();
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for r in readers {
        assert!(r.join().unwrap() > 0);
    }
}
