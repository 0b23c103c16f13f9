//! Power cuts and kills at every sync of a history: what was promised is there, what is there was written.

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{Cell, Frame, MapShape, PinKind, PinRow, Position, SealFlags};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, GenNo, LfcId, Ordinal, Payload, Point,
    ports::{History, OrdinalKind},
};
use rand::{Rng, RngCore};
use std::collections::BTreeMap;
use testkit::{sim::Tear, with_seeds};

const V: VolumeIndex = VolumeIndex(0);
const BLOCKS: u64 = 64;

/// What was written and what was promised.
#[derive(Default)]
pub(super) struct Book {
    /// Every frame in order.
    frames: Vec<Bytes>,
    durable: WriteSeq,
    /// Ends of containers whose seal was answered.
    sealed: Vec<(LfcId, WriteSeq, crate::Digest)>,
    /// Undo whose commit was answered.
    undo: BTreeMap<Ordinal, UndoContainer>,
    /// Undo whose commit was not answered: there or not.
    perhaps_undo: Option<UndoContainer>,
    pins: Vec<u64>,
    stale: BTreeMap<u64, WriteSeq>,
    checkpointed: WriteSeq,
    generations: Vec<GenId>,
}

impl Book {
    fn last(&self) -> WriteSeq {
        self.frames
            .last()
            .map_or(WriteSeq(0), |f| Frame::parse(f.clone()).unwrap().last_seq())
    }
}

type Step = Result<(), JournalError>;

pub(super) fn step(j: &Journal, book: &mut Book, what: u32, rng: &mut dyn RngCore) -> Step {
    match what {
        0..=9 => {
            let drafts = (0..rng.random_range(1..4))
                .map(|_| {
                    let at = rng.random_range(0..BLOCKS * BLOCK_SIZE - 3000);
                    write(0, at, vec![rng.random::<u8>(); rng.random_range(1..3000)])
                })
                .collect::<Vec<_>>();
            let bytes = drafts.iter().map(Draft::len).sum();
            if j.wants_seal(bytes, at(1)) {
                seal(j, book)?;
            }
            let frame = j.append(drafts, at(book.last().0))?;
            book.frames.push(frame.bytes().clone());
            Ok(())
        }
        10..=12 => {
            book.durable = j.sync()?;
            Ok(())
        }
        13 => seal(j, book),
        14 => j.ingest_sealed().map(drop),
        15 | 16 => undo(j, book, rng),
        17 => {
            let c = j.cursors();
            j.set_written_back(c.durable);
            j.set_checkpointed(c.durable)?;
            book.checkpointed = c.durable;
            Ok(())
        }
        18 => {
            let id = book.pins.len() as u64;
            let point = Point {
                generation: GenNo(1),
                seq: WriteSeq(1),
                lfc: LfcId(2),
                time: at(1),
                base: Ordinal(0),
                redo: Vec::new(),
            };
            j.put_pin(&PinRow {
                id,
                kind: PinKind::Reader,
                point,
                target: "latest".into(),
                owner: "op@b".into(),
                created: at(1),
                expires: None,
            })?;
            book.pins.push(id);
            Ok(())
        }
        19 => {
            let region = rng.random_range(0..8);
            let seq = j.cursors().appended;
            j.mark_stale(&[(V, ByteRange::at(region << 15, 1))], seq)?;
            book.stale.insert(region, seq);
            Ok(())
        }
        20 => j.raise_bound(),
        _ => {
            let id = GenId(rng.random());
            let before = j.cursors().appended;
            j.create_generation(NewGeneration::own(id, None))?;
            book.durable = before;
            book.generations.push(id);
            Ok(())
        }
    }
}

fn seal(j: &Journal, book: &mut Book) -> Step {
    match j.seal(SealFlags::default()) {
        Ok(row) => {
            book.sealed.push((row.lfc, row.last_seq, row.end_digest));
            book.durable = row.last_seq;
            Ok(())
        }
        Err(JournalError::Empty) => Ok(()),
        Err(e) => Err(e),
    }
}

fn undo(j: &Journal, book: &mut Book, rng: &mut dyn RngCore) -> Step {
    let ordinal = j.published().next();
    let blocks = (0..BLOCKS).filter(|_| rng.random_bool(0.2)).collect::<Vec<_>>();
    let blocks = blocks
        .into_iter()
        .map(|b| {
            let payload = match rng.random_bool(0.3) {
                true => Payload::Zero,
                false => Payload::Data(Bytes::from(vec![rng.random::<u8>(); 4096])),
            };
            (V, BlockNo(b), payload)
        })
        .collect();
    let kind = OrdinalKind::Apply {
        generation: GenNo(1),
        lfc: LfcId(2),
        last_seq: WriteSeq(1),
    };
    let container = UndoContainer {
        ordinal,
        kind,
        blocks,
    };
    book.perhaps_undo = Some(container.clone());
    match j.commit_whole(&container) {
        Ok(()) => {
            book.perhaps_undo = None;
            book.undo.insert(ordinal, container);
            Ok(())
        }
        Err(e) => Err(JournalError::Refused(e.to_string())),
    }
}

/// Opens after a crash and compares with the book, which then forgets what was lost.
pub(super) fn check(lab: &Lab, book: &mut Book) -> Journal {
    let (j, _) = lab.open().unwrap();
    let c = j.cursors();
    assert!(
        c.appended >= book.durable,
        "lost: {} < {}",
        c.appended,
        book.durable
    );
    assert!(c.appended <= book.last() || book.frames.is_empty() || !book.generations.is_empty());
    assert_eq!(c.durable, c.appended);
    assert!(c.checkpointed >= book.checkpointed);
    let mut there = Vec::new();
    for row in j.lfc_rows(..).iter().cloned() {
        there.extend(
            j.frames_of(row.generation, row.lfc)
                .unwrap()
                .into_iter()
                .map(|f| f.bytes().clone()),
        );
    }
    let rest = there
        .last()
        .map_or(WriteSeq(0), |f| Frame::parse(f.clone()).unwrap().last_seq());
    if let Some(open) = j.open_row() {
        assert!(open.first_seq > rest);
        let frames = j.frames_after(WriteSeq(open.first_seq.0 - 1), u64::MAX).unwrap();
        there.extend(frames.into_iter().map(|f| f.bytes().clone()));
    }
    assert!(there.len() <= book.frames.len());
    assert!(there == book.frames[..there.len()], "frames differ");
    for (lfc, last, digest) in &book.sealed {
        assert!(
            j.lfc_rows(..)
                .iter()
                .any(|r| (r.lfc, r.last_seq, r.end_digest) == (*lfc, *last, *digest))
        );
    }
    book.frames.truncate(there.len());
    book.durable = c.durable;
    if let Some(container) = book.perhaps_undo.take()
        && j.published() == container.ordinal
    {
        book.undo.insert(container.ordinal, container);
    }
    assert_eq!(
        j.published(),
        book.undo.keys().next_back().copied().unwrap_or_default()
    );
    check_undo(&j, book);
    let pins: Vec<u64> = j.pins().unwrap().iter().map(|p| p.id).collect();
    assert!(book.pins.iter().all(|id| pins.contains(id)));
    book.pins = pins;
    for (region, seq) in &book.stale {
        let cell = j.cell(V, region << 15);
        assert!(matches!(cell, Some(Cell::Stale(s)) if s >= *seq), "{cell:?}");
    }
    for id in &book.generations {
        assert!(j.generation_by_id(*id).is_some());
    }
    j
}

/// First undo after any ordinal is what the containers say.
fn check_undo(j: &Journal, book: &Book) {
    let upto = j.published();
    for after in 0..=upto.0 {
        let after = Ordinal(after);
        let got = j.first_undo(V, BlockNo(0), BLOCKS, after, upto).unwrap();
        let mut distinct = Vec::new();
        for (b, payload) in got.into_iter().enumerate() {
            let block = BlockNo(b as u64);
            let expected = book.undo.range(after.next()..).find_map(|(_, c)| {
                c.blocks
                    .iter()
                    .find(|(_, at, _)| *at == block)
                    .map(|(_, _, p)| p.clone())
            });
            assert!(payload == expected, "undo of block {b} after {after}");
            if expected.is_some() {
                distinct.push((V, block));
            }
        }
        let undone = j.undone_blocks(after, upto, (V, BlockNo(0)), 1000).unwrap();
        assert_eq!(undone, distinct);
    }
}

pub(super) fn restart(lab: &Lab, rng: &mut dyn RngCore) {
    if rng.random_bool(0.8) {
        lab.power.cut(rng)
    } else {
        lab.power.kill(rng)
    }
}

pub(super) fn start(lab: &Lab) -> Journal {
    let j = lab.fresh();
    let shape = MapShape {
        size: 1 << 20,
        region_size: 32 << 10,
        default: Cell::Clean,
    };
    j.set_map(V, shape).unwrap();
    j
}

/// A fixed history, as steps.
pub(super) const SCRIPT: [u32; 37] = [
    0, 1, 10, 2, 3, 13, 4, 11, 14, 15, 5, 17, 18, 6, 10, 19, 13, 7, 7, 13, 8, 16, 10, 14, 20, 0, 0, 21, 1, 1,
    10, 13, 1, 14, 2, 17, 10,
];

/// A fixed history, cut at every sync it makes.
#[test]
fn a_cut_at_every_sync_of_a_history() {
    let mut total = 0;
    for n in 1.. {
        let mut ended = false;
        with_seeds("cut at every sync", 3, |rng| {
            let lab = Lab::new();
            lab.power.set_tear(Tear::Bit);
            let mut book = Book::default();
            {
                let j = start(&lab);
                lab.power.freeze_at(n);
                ended = SCRIPT.iter().all(|what| step(&j, &mut book, *what, rng).is_ok());
            }
            restart(&lab, rng);
            let j = check(&lab, &mut book);
            for what in [0, 10, 13, 0, 14, 15, 10] {
                step(&j, &mut book, what, rng).unwrap();
            }
            drop(j);
            lab.power.cut(rng);
            check(&lab, &mut book);
        });
        total = n;
        if ended {
            break;
        }
    }
    assert!(total > 40, "only {total} syncs");
}

/// A random history with crashes in it, also in the middle of recovery; answers how many there were. `syncs`: how many there
/// may be between two crashes.
pub(super) fn random_history(lab: &Lab, syncs: u64, rng: &mut dyn RngCore) -> u64 {
    let mut book = Book::default();
    let mut j = start(lab);
    let mut crashes = 0;
    for _ in 0..6 {
        lab.power.freeze_at(rng.random_range(1..syncs));
        for _ in 0..rng.random_range(1..150) {
            let kinds = if rng.random_bool(0.02) { 22 } else { 21 };
            let what = rng.random_range(0..kinds);
            if step(&j, &mut book, what, rng).is_err() {
                break;
            }
        }
        drop(j);
        restart(lab, rng);
        crashes += 1;
        // Recovery itself is cut a few times.
        for _ in 0..rng.random_range(0..3) {
            lab.power.freeze_at(rng.random_range(1..syncs / 10));
            let _ = lab.open();
            restart(lab, rng);
            crashes += 1;
        }
        j = check(lab, &mut book);
    }
    crashes
}

#[test]
fn random_histories_with_crashes() {
    with_seeds("random histories", 150, |rng| {
        random_history(&Lab::new(), 60, rng);
    });
}

/// T6: re-read, shipped and written back, then a power cut: what was re-read must have been made durable again.
#[test]
fn t6_what_was_re_read_is_made_durable_before_it_counts() {
    with_seeds("t6", 60, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        let last = fill(&j, 9, 700);
        drop(j);
        lab.power.kill(rng);
        let (j, opened) = lab.open().unwrap();
        assert!(
            matches!(opened, Opened::Recovered { frames: 9, .. }),
            "{opened:?}"
        );
        assert_eq!(j.cursors().durable, last);
        drop(j);
        lab.power.cut(rng);
        let (j, opened) = lab.open().unwrap();
        assert_eq!(j.cursors().durable, last);
        assert_eq!(opened, Opened::Clean);
    });
}

/// T4: frames of an earlier container in a reused tail do not count, whatever a cut leaves of the new header.
#[test]
fn t4_old_frames_in_a_reused_tail_do_not_count() {
    with_seeds("t4", 60, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        for _ in 0..2 {
            fill(&j, 12, 900);
            j.seal(SealFlags::default()).unwrap();
            j.ingest_sealed().unwrap();
        }
        let durable = j.cursors().durable;
        // Tail 0 holds 12 old frames; fewer new ones lie over them.
        let appended = fill(&j, 3, 900);
        drop(j);
        lab.power.cut(rng);
        let (j, _) = lab.open().unwrap();
        let head = j.cursors().appended;
        assert!(head >= durable && head <= appended);
        let frames = j.frames_after(WriteSeq(0), u64::MAX).unwrap();
        assert_eq!(frames.len() as u64, head.0);
        let end = j.head().unwrap();
        assert_eq!(
            end.0,
            Position {
                generation: GenNo(1),
                seq: head
            }
        );
    });
}

/// W4: undo that was committed is never rebuilt, and only the next ordinal can be committed.
#[test]
fn w4_undo_is_never_rebuilt() {
    let lab = Lab::new();
    let j = lab.fresh();
    let container = |ordinal, fill| UndoContainer {
        ordinal: Ordinal(ordinal),
        kind: OrdinalKind::Apply {
            generation: GenNo(1),
            lfc: LfcId(2),
            last_seq: WriteSeq(1),
        },
        blocks: vec![(V, BlockNo(5), Payload::Data(Bytes::from(vec![fill; 4096])))],
    };
    assert!(j.commit_whole(&container(2, 1)).is_err());
    j.commit_whole(&container(1, 1)).unwrap();
    j.commit_whole(&container(1, 9)).unwrap();
    let local = OrdinalKind::Local {
        restore_from: Ordinal(0),
        base: Ordinal(0),
        redo: Vec::new(),
    };
    assert!(
        j.commit_whole(&UndoContainer {
            kind: local,
            ..container(1, 7)
        })
        .is_err()
    );
    let got = j.first_undo(V, BlockNo(5), 1, Ordinal(0), Ordinal(9)).unwrap();
    assert_eq!(got, [Some(Payload::Data(Bytes::from(vec![1; 4096])))]);
    assert!(j.poisoned().is_none());
}
