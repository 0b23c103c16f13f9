//! Appending, sealing, receiving, reading back.

use super::*;
use crate::{Cell, ContextRow, MapShape, PinKind, PinRow, Position, SealFlags};
use model::{ByteRange, ContextState, GenNo, Level, LfcId, Ordinal, Point, Role, Term};

#[test]
fn frames_come_back_from_memory_tail_and_store() {
    let lab = Lab::new();
    let j = lab.fresh();
    let mut all = Vec::new();
    for round in 0..3 {
        for i in 0..20u64 {
            let frame = j
                .append(vec![write(0, i * 512, vec![round; 700]), write(1, i, [7])], at(i))
                .unwrap();
            all.push(frame.bytes().clone());
        }
        if round < 2 {
            j.seal(SealFlags::default()).unwrap();
        }
    }
    assert!(j.has_sealed());
    let read = || {
        let mut got = Vec::new();
        let mut after = WriteSeq(0);
        loop {
            let more = j.frames_after(after, 5000).unwrap();
            let Some(last) = more.last() else { return got };
            after = last.last_seq();
            got.extend(more.iter().map(|f| f.bytes().clone()));
        }
    };
    assert_eq!(read(), all);
    let sealed_after = |seq| j.sealed_after(WriteSeq(seq), 9);
    let behind = [0, 39, 40, 79, 80].map(sealed_after);
    assert_eq!(behind, [2, 2, 1, 1, 0], "the one that waits to be stored counts");
    j.ingest_sealed().unwrap();
    assert_eq!(read(), all);
    assert_eq!([0, 39, 40, 79, 80].map(sealed_after), behind);
    assert_eq!(j.sealed_after(WriteSeq(0), 1), 1, "no more are counted");
    assert_eq!(j.frames_of(GenNo(1), LfcId(4)).unwrap().len(), 20);
    assert_eq!(
        j.frames_after(WriteSeq(41), 1).unwrap()[0].first_seq(),
        WriteSeq(41)
    );
    assert_eq!(
        j.record_at(Position {
            generation: GenNo(1),
            seq: WriteSeq(77)
        })
        .unwrap()
        .seq,
        WriteSeq(77)
    );
}

#[test]
fn a_full_container_wants_to_be_sealed_and_refuses_more() {
    let lab = Lab::new();
    let j = lab.fresh();
    assert!(j.open_is_empty());
    assert!(!j.wants_seal(1, at(1)));
    let mut frames = 0;
    while !j.wants_seal(4000, at(1)) {
        j.append(vec![write(0, 0, vec![1; 4000])], at(1)).unwrap();
        frames += 1;
    }
    assert_eq!(frames, 15);
    let error = loop {
        match j.append(vec![write(0, 0, vec![1; 4000])], at(1)) {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(
        matches!(error, JournalError::NeedsSeal { lfc: LfcId(2), .. }),
        "{error}"
    );
    j.seal(SealFlags::default()).unwrap();
    j.append(vec![write(0, 0, vec![1; 4000])], at(1)).unwrap();
    assert!(j.poisoned().is_none());
}

/// W5: zeroes of little size in the journal can make much undo.
#[test]
fn w5_worst_case_undo_seals() {
    let lab = Lab::new();
    let j = lab.fresh();
    let zero = |at: u64| {
        let range = ByteRange::at(at, 64 << 10);
        Draft {
            volume: VolumeIndex(0),
            body: RecordBody::Zero { range, discard: true },
        }
    };
    let mut zeroed = 0;
    while !j.wants_seal(0, at(1)) {
        j.append(vec![zero(zeroed)], at(1)).unwrap();
        zeroed += 64 << 10;
    }
    assert!(zeroed > 4 * LFC && zeroed <= 4 * LFC + (128 << 10), "{zeroed}");
}

/// L5: a container gets old also where nobody writes any more and the clock was set back, which is a record only at the next
/// write.
#[test]
fn l5_a_container_gets_old_behind_a_clock_that_was_set_back() {
    let mut lab = Lab::new();
    lab.options.lfc_max_age_ns = Some(30 * Timestamp::SECOND_NS);
    let j = lab.fresh();
    j.append(vec![write(0, 0, [1])], at(7200)).unwrap();
    assert!(!j.wants_seal(0, at(7229)) && j.wants_seal(0, at(7230)));
    assert!(!j.wants_seal(0, at(7171)) && j.wants_seal(0, at(7170)) && j.wants_seal(0, at(0)));
}

/// W5: so does what touches the same blocks again and again, which makes little undo and a large index.
#[test]
fn w5_repeated_zeroes_seal() {
    let lab = Lab::new();
    let j = lab.fresh();
    let range = ByteRange::at(100, 16 * 4096);
    let zero = Draft {
        volume: VolumeIndex(0),
        body: RecordBody::Zero { range, discard: true },
    };
    let mut touches = 0;
    while !j.wants_seal(0, at(1)) {
        j.append(vec![zero.clone()], at(1)).unwrap();
        touches += 17;
    }
    assert!(
        touches > LFC / 16 && touches <= LFC / 16 + 17,
        "{touches} touches of 17 blocks"
    );
}

/// W5: what an honest production puts into one container at most is taken, and not one record more of what none does.
#[test]
fn w5_a_hostile_stream_makes_no_container_without_bounds() {
    let zero = |at: u64, len: u64| Draft {
        volume: VolumeIndex(0),
        body: RecordBody::Zero {
            range: ByteRange::at(at, len),
            discard: true,
        },
    };
    // Other blocks each time, or the same again and again: to the limit of who looks before every frame, then beyond it, in frames of
    // all that one may have, or in small ones, which only one of the two limits ends.
    let large = [(64 << 10, 1, 16 << 20, 10), (0, 1, 16 << 20, 10)];
    let small = [(64 << 10, 1, 64 << 10, 300), (0, 32, 64 << 10, 300)];
    for (step, records, beyond, more) in large.into_iter().chain(small) {
        let (a, b) = (Lab::new(), Lab::new());
        let (a, b) = (a.fresh(), b.fresh());
        let (mut honest, mut refused, mut place) = (0, None, 0);
        for n in 0..10_000 {
            // The last honest frame has as much as a frame may have.
            let is_honest = !a.wants_seal(0, at(1));
            let len = if is_honest { 64 << 10 } else { beyond };
            if is_honest {
                honest = n + 1;
            }
            let frame = a.append(vec![zero(place, len); records], at(1)).unwrap();
            place += step.min(len) / (64 << 10) * len;
            match b.append_received(frame.bytes().clone()) {
                Ok(_) => {}
                Err(error) => {
                    refused = Some((n, error));
                    break;
                }
            }
        }
        let (n, error) = refused.expect("it ends");
        assert!(matches!(error, JournalError::Refused(_)), "{error}");
        assert!(
            honest > 0 && n > honest,
            "frame {n} of {honest} honest ones: {error}"
        );
        assert!(n < honest + more, "{n} frames were taken, {honest} are honest");
        // It is no failure of this journal, and nothing of the frame is in it.
        assert!(b.poisoned().is_none());
        assert_eq!(b.cursors().appended.0, n * records as u64);
    }
    // In a single frame.
    let (a, b) = (Lab::new(), Lab::new());
    let (a, b) = (a.fresh(), b.fresh());
    let frame = a.append(vec![zero(0, 16 << 20); 2000], at(1)).unwrap();
    let error = b.append_received(frame.bytes().clone()).unwrap_err();
    assert!(matches!(error, JournalError::Refused(_)), "{error}");
}

#[test]
fn times_never_fall_but_at_a_clock_step() {
    let lab = Lab::new();
    let j = lab.fresh();
    let time = |f: Arc<crate::Frame>| f.records().last().unwrap().time;
    assert_eq!(time(j.append(vec![write(0, 0, [1])], at(100)).unwrap()), at(100));
    assert_eq!(time(j.append(vec![write(0, 0, [1])], at(90)).unwrap()), at(100));
    let step = RecordBody::ClockStep {
        from: at(100),
        to: at(50),
    };
    j.append(
        vec![Draft {
            volume: VolumeIndex(0),
            body: step,
        }],
        at(50),
    )
    .unwrap();
    assert_eq!(time(j.append(vec![write(0, 0, [1])], at(51)).unwrap()), at(51));
}

#[test]
fn a_received_stream_is_checked_and_sealed_as_it_was() {
    let (a, b) = (Lab::new(), Lab::new());
    let (a, b) = (a.fresh(), b.fresh());
    let mut frames = Vec::new();
    for i in 0..10u64 {
        frames.push(a.append(vec![write(0, i * 4096, vec![1; 100])], at(i)).unwrap());
    }
    let row = a.seal(SealFlags::default()).unwrap();
    for f in &frames[..5] {
        assert_eq!(b.append_received(f.bytes().clone()).unwrap().bytes(), f.bytes());
    }
    assert!(matches!(
        b.append_received(frames[3].bytes().clone()),
        Err(JournalError::Already { .. })
    ));
    assert!(matches!(
        b.append_received(frames[6].bytes().clone()),
        Err(JournalError::OutOfOrder { .. })
    ));
    let mut bad = frames[5].bytes().to_vec();
    bad[100] ^= 1;
    assert!(matches!(
        b.append_received(Bytes::from(bad)),
        Err(JournalError::Frame(_))
    ));
    let other = crate::Frame::build(
        GenId(0xA1),
        LfcId(2),
        WriteSeq(6),
        [9; 32],
        &[(write(0, 0, [1]), at(9))],
    );
    assert!(matches!(
        b.append_received(other),
        Err(JournalError::Chain { .. })
    ));
    assert!(
        b.seal_received(row.lfc, row.last_seq, &row.end_digest, SealFlags::default())
            .is_err()
    );
    for f in &frames[5..] {
        b.append_received(f.bytes().clone()).unwrap();
    }
    assert!(
        b.seal_received(row.lfc, row.last_seq, &[0; 32], SealFlags::default())
            .is_err()
    );
    let sealed = b
        .seal_received(row.lfc, row.last_seq, &row.end_digest, SealFlags::default())
        .unwrap();
    assert_eq!(*sealed, *row);
    let again = b
        .seal_received(row.lfc, row.last_seq, &row.end_digest, SealFlags::default())
        .unwrap();
    assert_eq!(*again, *row);
}

/// T1: a frame that was appended while a sync runs is not durable when that sync ends.
#[test]
fn t1_a_sync_covers_what_was_appended_before_it() {
    let lab = Lab::new();
    let j = Arc::new(lab.fresh());
    let first = fill(&j, 1, 500);
    let held = lab.tail(0).hold(testkit::sim::Op::Sync, 0);
    let syncing = std::thread::spawn({
        let j = Arc::clone(&j);
        move || j.sync().unwrap()
    });
    assert!(held.wait_for(1));
    let second = fill(&j, 1, 500);
    drop(held);
    assert_eq!(syncing.join().unwrap(), first);
    assert_eq!(j.cursors().durable, first);
    assert_eq!(j.sync().unwrap(), second);
}

#[test]
fn a_failed_sync_poisons_and_is_named_ever_after() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 1, 500);
    lab.tail(0).fail(testkit::sim::Op::Sync, 1);
    assert!(matches!(j.sync(), Err(JournalError::Io { .. })));
    let text = j.poisoned().unwrap().to_string();
    assert!(text.contains("tail 0"), "{text}");
    assert!(matches!(
        j.append(vec![write(0, 0, [1])], at(1)),
        Err(JournalError::Poisoned(_))
    ));
    assert!(matches!(j.raise_bound(), Err(JournalError::Poisoned(_))));
    assert_eq!(j.cursors().durable, WriteSeq(0));
}

/// T8: a container that nobody needs keeps its row only.
#[test]
fn t8_drop_instead_of_ingest() {
    let lab = Lab::new();
    let j = lab.fresh();
    let last = fill(&j, 5, 500);
    let row = j.seal(SealFlags::default()).unwrap();
    assert!(matches!(j.drop_sealed(), Err(JournalError::Refused(_))));
    j.set_written_back(last);
    j.set_checkpointed(last).unwrap();
    j.set_peer(last, last, true).unwrap();
    let dropped = j.drop_sealed().unwrap().unwrap();
    assert!(dropped.dropped && dropped.end_digest == row.end_digest);
    assert_eq!(j.floors().redo, (GenNo(1), LfcId(2)));
    assert!(lab.power.store("db").dump(model::ports::Family::Redo).is_empty());
    fill(&j, 5, 500);
    j.seal(SealFlags::default()).unwrap();
    drop(j);
    let (j, opened) = lab.open().unwrap();
    assert_eq!(opened, Opened::Clean);
    assert!(matches!(
        j.frames_after(WriteSeq(0), 1),
        Err(JournalError::NotHeld { .. })
    ));
    assert_eq!(j.frames_after(last, u64::MAX).unwrap().len(), 5);
}

/// Frames go below the floor; the rows with positions, digests and touched regions stay until they are forgotten themselves,
/// and never the newest.
#[test]
fn t9_floors_free_redo_and_rows_outlive_it() {
    let lab = Lab::new();
    lab.power.store("db").set_lazy_drops(true);
    let j = lab.fresh();
    for _ in 0..4 {
        fill(&j, 5, 500);
        j.seal(SealFlags::default()).unwrap();
    }
    j.ingest_sealed().unwrap();
    assert!(matches!(
        j.drop_redo_through(GenNo(1), LfcId(4)),
        Err(JournalError::Refused(_))
    ));
    j.set_written_back(WriteSeq(20));
    j.set_checkpointed(WriteSeq(20)).unwrap();
    assert!(matches!(
        j.forget_rows_through(GenNo(1), LfcId(2)),
        Err(JournalError::Refused(_))
    ));
    j.drop_redo_through(GenNo(1), LfcId(4)).unwrap();
    assert!(matches!(
        j.frames_of(GenNo(1), LfcId(4)),
        Err(JournalError::NotHeld { .. })
    ));
    assert_eq!(j.frames_of(GenNo(1), LfcId(6)).unwrap().len(), 5);
    assert_eq!(
        j.touched(GenNo(1), LfcId(4)).unwrap(),
        [(VolumeIndex(0), ByteRange::at(0, 20480))]
    );
    assert_eq!(j.lfc_rows(..).len(), 4);
    j.forget_rows_through(GenNo(1), LfcId(2)).unwrap();
    assert_eq!(j.lfc_rows(..).len(), 3);
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!(j.lfc_rows(..).len(), 3);
    assert!(!j.is_held(&j.lfc_rows(..)[0]) && j.is_held(&j.lfc_rows(..)[1]));
}

#[test]
fn generations_start_above_all_and_a_rewind_takes_the_cursors_back() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 7, 500);
    let g2 = j
        .create_generation(NewGeneration::own(GenId(0xA2), None))
        .unwrap();
    assert_eq!((g2.no, g2.first_seq), (GenNo(2), WriteSeq(8)));
    assert!(g2.first_lfc > LfcId(2));
    assert_eq!(
        j.create_generation(NewGeneration::own(GenId(0xA2), None))
            .unwrap(),
        g2
    );
    assert!(matches!(
        j.create_generation(NewGeneration::own(GenId(0xA1), None)),
        Err(JournalError::Refused(_))
    ));
    fill(&j, 2, 500);
    let back = NewGeneration {
        id: GenId(0xA3),
        parent: Some(crate::Parent {
            id: GenId(0xA1),
            seq: WriteSeq(4),
            digest: [1; 32],
        }),
        first_seq: Some(WriteSeq(5)),
        first_lfc: Some(LfcId(4)),
    };
    // What waits to be applied would never be, and would move the new line's cursors.
    let refused = j.create_generation(back);
    assert!(matches!(refused, Err(JournalError::Refused(_))), "{refused:?}");
    let row = j.lfc_rows(..).pop().unwrap();
    j.set_applied(Ordinal(0), row.generation, row.lfc, row.last_seq)
        .unwrap();
    let g3 = j.create_generation(back).unwrap();
    assert_eq!(j.cursors().durable, WriteSeq(4));
    assert_eq!(fill(&j, 2, 500), WriteSeq(6));
    j.sync().unwrap();
    let line = j.line(None);
    assert_eq!(
        line.iter().map(|s| (s.generation, s.upto)).collect::<Vec<_>>()[0],
        (GenNo(1), WriteSeq(4))
    );
    drop(j);
    let (j, opened) = lab.open().unwrap();
    assert!(
        matches!(opened, Opened::Recovered { frames: 2, .. }),
        "{opened:?}"
    );
    assert_eq!(j.current_generation(), Some(g3));
    assert_eq!(j.cursors().appended, WriteSeq(6));
    assert_eq!(j.generations().len(), 3);
    let next = j
        .create_generation(NewGeneration::own(GenId(0xA4), None))
        .unwrap();
    assert_eq!(next.first_seq, WriteSeq(10), "above what another line had");
}

/// A line leaves a generation in the middle of a container, and takes the numbers behind that again.
#[test]
fn l1_frames_after_a_record_are_of_the_line_alone() {
    for (ingested, reopened) in [(false, false), (true, false), (true, true)] {
        let lab = Lab::new();
        let j = lab.fresh();
        // Frames of two records, 1 to 40, in one container. It is left at 11, in a frame.
        for n in 0..20 {
            j.append(vec![write(0, n * 4096, [1]), write(0, n * 4096, [2])], at(n))
                .unwrap();
        }
        j.seal(SealFlags::default()).unwrap();
        let row = j.lfc_rows(..).pop().unwrap();
        j.set_applied(Ordinal(0), row.generation, row.lfc, row.last_seq)
            .unwrap();
        let line = |seq, first_seq, first_lfc| NewGeneration {
            id: GenId(first_lfc),
            parent: Some(crate::Parent {
                id: j.current_generation().unwrap().id,
                seq: WriteSeq(seq),
                digest: [1; 32],
            }),
            first_seq: Some(WriteSeq(first_seq)),
            first_lfc: Some(LfcId(first_lfc)),
        };
        j.create_generation(line(11, 12, 4)).unwrap();
        for n in 0..4 {
            j.append(vec![write(0, n * 4096, [3])], at(30 + n)).unwrap();
        }
        // From 15 on it is taken over, with numbers above all that this host has seen.
        if ingested {
            j.seal(SealFlags::default()).unwrap();
            j.ingest_sealed().unwrap();
        }
        j.create_generation(line(15, 41, 8)).unwrap();
        let none_yet = j.frames_after(WriteSeq(15), u64::MAX).unwrap();
        assert!(none_yet.is_empty(), "{ingested}: {:?}", places(&none_yet));
        j.append(vec![write(0, 0, [4])], at(40)).unwrap();
        j.append(vec![write(0, 0, [5])], at(41)).unwrap();
        j.sync().unwrap();
        let j = if reopened {
            drop(j);
            lab.open().unwrap().0
        } else {
            j
        };
        let of = |seq| places(&j.frames_after(WriteSeq(seq), u64::MAX).unwrap());
        let first: Vec<_> = (0..6).map(|n| (1, 1 + 2 * n)).collect();
        let behind = [(2, 12), (2, 13), (2, 14), (2, 15), (3, 41), (3, 42)];
        assert_eq!(of(0), [&first[..], &behind].concat());
        assert_eq!(
            of(10),
            [&first[5..], &behind].concat(),
            "the frame in which it was left"
        );
        assert_eq!(of(11), behind);
        assert_eq!(of(13), behind[2..]);
        assert_eq!(of(15), behind[4..], "and not what the first one had behind 15");
        assert_eq!(of(41), behind[5..]);
        assert_eq!(of(42), []);
        // One after the other, as they are sent.
        let (mut at, mut all) = (WriteSeq(11), Vec::new());
        while let Some(frame) = j.frames_after(at, 1).unwrap().first() {
            at = frame.last_seq();
            all.extend(places(std::slice::from_ref(frame)));
        }
        assert_eq!(all, behind);
    }
}

/// Generation (in the order of their containers' numbers) and first record of each frame.
fn places(frames: &[std::sync::Arc<crate::Frame>]) -> Vec<(u64, u64)> {
    frames
        .iter()
        .map(|f| match f.generation().0 {
            8 => (3, f.first_seq().0),
            4 => (2, f.first_seq().0),
            _ => (1, f.first_seq().0),
        })
        .collect()
}

#[test]
fn a_gap_is_skipped_and_remembered() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 3, 500);
    j.skip_to(LfcId(10), WriteSeq(40), [7; 32]).unwrap();
    drop(j);
    let (j, _) = lab.open().unwrap();
    let frame = crate::Frame::build(
        GenId(0xA1),
        LfcId(10),
        WriteSeq(40),
        [7; 32],
        &[(write(0, 0, [1]), at(99))],
    );
    j.append_received(frame).unwrap();
    let row = j.seal(SealFlags::default()).unwrap();
    assert!(row.after_gap);
    assert!(j.skip_to(LfcId(6), WriteSeq(90), [7; 32]).is_err());
}

#[test]
fn rows_of_state_survive() {
    let lab = Lab::new();
    let j = lab.fresh();
    let context = ContextRow {
        role: Role::Recovery,
        state: ContextState::RolledBack,
        term: Term(7),
        since: at(5),
        notes: [("boot".to_owned(), "b1".to_owned())].into(),
    };
    j.put_context(&context).unwrap();
    let point = Point {
        generation: GenNo(1),
        seq: WriteSeq(3),
        lfc: LfcId(2),
        time: at(3),
        base: Ordinal(1),
        redo: vec![model::RedoSpan {
            generation: GenNo(1),
            after: WriteSeq(1),
            upto: WriteSeq(3),
        }],
    };
    let pin = |id, kind| PinRow {
        id,
        kind,
        point: point.clone(),
        target: "latest".into(),
        owner: "op@b".into(),
        created: at(9),
        expires: Some(at(99)),
    };
    let pins = [
        pin(
            1,
            PinKind::Snapshot {
                level: Level(10),
                name: None,
            },
        ),
        pin(
            2,
            PinKind::Snapshot {
                level: Level(11),
                name: Some("n".into()),
            },
        ),
        pin(3, PinKind::Reader),
    ];
    for p in &pins {
        j.put_pin(p).unwrap();
    }
    j.delete_pin(2, Some(&pin(4, PinKind::Released))).unwrap();
    let restore = crate::RestoreRow {
        target: point.clone(),
        text: "lfc:2".into(),
        from: Ordinal(4),
        cursor: (VolumeIndex(1), model::BlockNo(9)),
        phase: crate::RestorePhase::Running,
        undo_from: Some(Ordinal(6)),
        only: Some(VolumeIndex(2)),
    };
    j.put_restore(Some(&restore), None).unwrap();
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!(j.context().unwrap(), Some(context));
    assert_eq!(
        j.pins().unwrap(),
        [pins[0].clone(), pins[2].clone(), pin(4, PinKind::Released)]
    );
    assert_eq!(j.pin(1).unwrap(), Some(pins[0].clone()));
    assert_eq!(j.restore().unwrap(), Some(restore));
    j.put_restore(None, None).unwrap();
    assert_eq!(j.restore().unwrap(), None);
}

/// C4: a copy that was taken before a drop cannot clear what the drop made stale.
#[test]
fn c4_cells_hold_the_newest_dropped_position() {
    let lab = Lab::new();
    let j = lab.fresh();
    let v = VolumeIndex(0);
    let region = 32 << 10;
    let shape = MapShape {
        size: 100 * (1 << 20) + 5,
        region_size: region,
        default: Cell::Clean,
    };
    j.set_map(v, shape).unwrap();
    j.set_map(
        VolumeIndex(1),
        MapShape {
            default: Cell::Stale(WriteSeq(0)),
            ..shape
        },
    )
    .unwrap();
    assert_eq!(j.stale_bytes(VolumeIndex(1)), shape.size);
    j.mark_stale(&[(v, ByteRange::at(region * 3 + 1, 10))], WriteSeq(18))
        .unwrap();
    j.mark_stale(&[(v, ByteRange::at(region * 3, region * 2))], WriteSeq(25))
        .unwrap();
    j.clear_if_older(&[(v, ByteRange::at(region * 3, region), WriteSeq(20))])
        .unwrap();
    assert_eq!(
        j.next_stale(v, 0, 1 << 20),
        Some(ByteRange::at(region * 3, region * 2))
    );
    j.clear_if_older(&[(v, ByteRange::at(region * 3, region + 1), WriteSeq(26))])
        .unwrap();
    assert_eq!(
        j.next_stale(v, 0, 1 << 20),
        Some(ByteRange::at(region * 4, region))
    );
    let past = ByteRange {
        start: 0,
        end: shape.size + 8192,
    };
    let refused = j.mark_stale(&[(v, past)], WriteSeq(30));
    assert!(
        matches!(refused, Err(JournalError::Refused(_))),
        "it would be in no set"
    );
    j.mark_stale(&[(v, ByteRange::at(0, shape.size))], WriteSeq(30))
        .unwrap();
    assert_eq!(j.stale_bytes(v), shape.size);
    assert_eq!(
        j.next_stale(v, region + 1, region),
        Some(ByteRange::at(2 * region, region))
    );
    let end = ByteRange {
        start: shape.size - 5,
        end: shape.size,
    };
    assert_eq!(j.next_stale(v, shape.size - 4, 1), None);
    assert_eq!(
        j.next_stale(v, (shape.size / region) * region, 1 << 20),
        Some(end)
    );
    j.clear_if_older(&[(v, end, WriteSeq(31))]).unwrap();
    let dump = j.map_runs(v);
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!(j.map_runs(v), dump);
    assert_eq!(j.cell(v, shape.size - 1), Some(Cell::Clean));
    assert_eq!(j.cell(v, 0), Some(Cell::Stale(WriteSeq(30))));
    j.clear_if_older(&[(VolumeIndex(1), ByteRange::at(region, region), WriteSeq(1))])
        .unwrap();
    assert_eq!(j.stale_bytes(VolumeIndex(1)), shape.size - region);
    j.reset_map(v, Cell::Clean).unwrap();
    assert_eq!(j.stale_bytes(v), 0);
    assert!(matches!(
        j.mark_stale(&[(VolumeIndex(9), ByteRange::at(0, 1))], WriteSeq(1)),
        Err(JournalError::UnknownVolume(_))
    ));
}

/// What the peer has received was here once: a journal that does not reach it has lost it.
#[test]
fn t5_a_peer_that_has_more_proves_a_loss() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 3, 500);
    j.set_peer(WriteSeq(3), WriteSeq(1), true).unwrap();
    assert!(matches!(
        j.set_peer(WriteSeq(4), WriteSeq(1), true),
        Err(JournalError::Damaged(_))
    ));
    assert!(matches!(
        j.set_peer(WriteSeq(3), WriteSeq(9), true),
        Err(JournalError::Refused(_))
    ));
    j.reset_peer(WriteSeq(1), WriteSeq(1)).unwrap();
    assert_eq!(j.cursors().received_by_peer, WriteSeq(1));
}

/// Regression: an appender makes its frame visible before it moves `appended`, and a sync in between claimed a `durable`
/// past it: the assertion of invariant 7 ended the sync thread, and every flush after it waited for ever.
#[test]
fn a_sync_beside_an_appender_never_passes_it() {
    let lab = Lab::new();
    let j = std::sync::Arc::new(lab.fresh());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let durable = j.sync().unwrap();
                    assert!(durable <= j.cursors().appended);
                }
            });
        }
        for i in 0..20_000u64 {
            if j.wants_seal(600, at(i)) {
                j.seal(SealFlags::default()).unwrap();
            }
            j.append(vec![write(0, i % 64 * 512, vec![7; 16])], at(i))
                .unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(j.sync().unwrap(), j.cursors().appended);
}

#[test]
fn l5_a_step_back_of_more_than_a_second_is_told() {
    let lab = Lab::new();
    let j = lab.fresh();
    let second = |s: u64| Timestamp(s * Timestamp::SECOND_NS);
    j.append(vec![write(0, 0, [1])], second(100)).unwrap();
    assert_eq!(j.clock_ahead_of(second(200)), None);
    assert_eq!(j.clock_ahead_of(second(99)), None, "slewed");
    assert_eq!(j.clock_ahead_of(second(98)), Some(second(100)));
    let step = RecordBody::ClockStep {
        from: second(100),
        to: second(98),
    };
    let draft = Draft {
        volume: VolumeIndex(0),
        body: step,
    };
    j.append(vec![draft], second(98)).unwrap();
    assert_eq!(j.clock_ahead_of(second(98)), None, "the step was followed");
    j.seal(SealFlags::default()).unwrap();
    let frame = j.append(vec![write(0, 0, [2])], second(98)).unwrap();
    assert_eq!(frame.last_time(), second(98));
}
