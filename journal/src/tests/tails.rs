//! The counter-examples of `rules.md` T that end in a cut: sync, seal, ingest, reuse, rewrite, floors.

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{ContextRow, Damage, MapShape, PinKind, PinRow, SealFlags};
use model::{
    BlockNo, ByteRange, ContextState, GenNo, LfcId, Ordinal, Payload, Point, RedoSpan, Role, Term,
    ports::{Family, History, HistoryError, OrdinalKind},
};
use rand::RngCore;
use testkit::{sim::Tear, with_seeds};

const V: VolumeIndex = VolumeIndex(0);
const FIRST: LfcId = LfcId(2);

/// The numbers of all records there are.
fn numbers(j: &Journal) -> Vec<u64> {
    let frames = j.frames_after(WriteSeq(0), u64::MAX).unwrap();
    frames.iter().map(|f| f.first_seq().0).collect()
}

fn all_redo(upto: WriteSeq) -> RedoSpan {
    RedoSpan {
        generation: GenNo(1),
        after: WriteSeq(0),
        upto,
    }
}

fn undo(ordinal: u64, blocks: std::ops::Range<u64>, fill: u8) -> UndoContainer {
    let kind = OrdinalKind::Apply {
        generation: GenNo(1),
        lfc: FIRST,
        last_seq: WriteSeq(1),
    };
    let image = Payload::Data(Bytes::from(vec![fill; 4096]));
    UndoContainer {
        ordinal: Ordinal(ordinal),
        kind,
        blocks: blocks.map(|b| (V, BlockNo(b), image.clone())).collect(),
    }
}

/// Runs `history` cut at its first durable action, at its second, and so on, until one is not struck; answers how many
/// were. `check` opens what is left and looks at it.
pub(super) fn cut_at_every_sync(
    rng: &mut dyn RngCore,
    prepare: impl Fn() -> (Lab, Journal),
    history: impl Fn(&Journal) -> Result<(), JournalError>,
    check: impl Fn(&Lab),
) -> u64 {
    for n in 1.. {
        let (lab, j) = prepare();
        lab.power.freeze_at(n);
        let ended = history(&j).is_ok();
        drop(j);
        lab.power.cut(rng);
        check(&lab);
        if ended {
            return n - 1;
        }
    }
    unreachable!("a history has an end")
}

/// Frame 3 is unsynced in the first tail when its container is sealed; frame 4 goes into the other tail, and a flush syncs
/// only that one. After the cut 1, 2, 4 must never be all there is.
#[test]
fn t2_a_flush_behind_a_seal_covers_the_container_before() {
    with_seeds("t2", 40, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 2, 500);
        j.sync().unwrap();
        let third = fill(&j, 1, 500);
        j.seal(SealFlags::default()).unwrap();
        assert_eq!(j.cursors().durable, third);
        let fourth = fill(&j, 1, 500);
        assert_eq!(j.sync().unwrap(), fourth);
        drop(j);
        lab.power.cut(rng);
        let (j, _) = lab.open().unwrap();
        assert_eq!(numbers(&j), [1, 2, 3, 4]);
    });
}

/// A container enters the store in several steps that are not one: cut between any two of them, it must be whole, as
/// frames and by its index, and there once. Only the row, which comes last, says that the tail is not needed any more.
#[test]
fn t3_the_row_is_the_commit_of_a_container() {
    let cuts = with_cuts("t3 container", |rng| {
        let prepare = || {
            let lab = Lab::new();
            let j = lab.fresh();
            fill(&j, 6, 500);
            j.seal(SealFlags::default()).unwrap();
            (lab, j)
        };
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            assert_eq!(j.lfc_rows(..).len(), 1);
            assert_eq!(j.frames_of(GenNo(1), FIRST).unwrap().len(), 6);
            let pieces = j.redo(V, ByteRange::at(0, 6 * 4096), &[all_redo(WriteSeq(6))]);
            assert_eq!(pieces.unwrap().len(), 6);
        };
        cut_at_every_sync(rng, prepare, |j| j.ingest_sealed().map(drop), check)
    });
    assert!(cuts >= 3, "frames, index and row: {cuts} cuts");
}

/// Undo enters in several steps, too. Without its row nothing was overwritten for it, so it never was: what is left of it
/// must not be taken for undo of the next container with that ordinal.
#[test]
fn t3_the_row_is_the_commit_of_undo() {
    let cuts = with_cuts("t3 undo", |rng| {
        let prepare = || {
            let lab = Lab::new();
            let j = lab.fresh();
            fill(&j, 1, 500);
            (lab, j)
        };
        let commit = |j: &Journal| {
            let done = j.commit_whole(&undo(1, 0..9, 1));
            done.map_err(|e| JournalError::Refused(e.to_string()))
        };
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            let mut blocks = 0..9;
            let mut image = 1;
            if j.published() == Ordinal(0) {
                (blocks, image) = (5..12, 2);
                j.commit_whole(&undo(1, blocks.clone(), image)).unwrap();
            }
            let found = j.first_undo(V, BlockNo(0), 12, Ordinal(0), Ordinal(1)).unwrap();
            for (block, found) in (0..).zip(found) {
                let expected = Payload::Data(Bytes::from(vec![image; 4096]));
                assert_eq!(
                    found,
                    blocks.contains(&block).then_some(expected),
                    "block {block}"
                );
            }
        };
        cut_at_every_sync(rng, prepare, commit, check)
    });
    assert!(cuts >= 3, "undo, index and row: {cuts} cuts");
}

/// Several seeds of [`cut_at_every_sync`]; answers the fewest cuts of one.
pub(super) fn with_cuts(name: &str, mut test: impl FnMut(&mut dyn RngCore) -> u64) -> u64 {
    let mut least = u64::MAX;
    with_seeds(name, 12, |rng| least = least.min(test(rng)));
    least
}

/// The other tail still holds a container that waits for the store when the next one is sealed: it must be taken in before
/// its tail is reused, and a store that fails then must cost nothing.
#[test]
fn t4_a_tail_is_reused_only_after_its_row() {
    with_seeds("t4 row", 20, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        for _ in 0..3 {
            fill(&j, 5, 900);
            j.seal(SealFlags::default()).unwrap();
        }
        assert_eq!(numbers(&j).len(), 15);
        fill(&j, 5, 900);
        lab.power.store("db").fail(testkit::sim::Op::Sync, 1);
        assert!(j.seal(SealFlags::default()).is_err());
        drop(j);
        lab.power.cut(rng);
        let (j, _) = lab.open().unwrap();
        assert!(numbers(&j).len() >= 15);
    });
}

/// Frames 5 and 6 were never synced; a cut leaves 6 and takes 5. The journal goes on with another frame 5 of the same
/// length. The old 6 behind it names the right generation, container and number: only its chain says that it follows another 5.
#[test]
fn t4_a_frame_of_a_future_that_was_lost_does_not_continue_the_chain() {
    let mut seen = 0;
    let tried = with_seeds("t4 chain", 200, |rng| {
        let lab = Lab::new();
        lab.power.set_tear(Tear::Whole);
        let j = lab.fresh();
        fill(&j, 4, 500);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        fill(&j, 1, 500);
        let end = |j: &Journal| j.shared.read().open.as_ref().unwrap().end_at;
        let start = end(&j);
        fill(&j, 1, 500);
        let sixth = ByteRange { start, end: end(&j) };
        let old = lab.tail(0).live(sixth);
        drop(j);
        lab.power.cut(rng);
        let (j, _) = lab.open().unwrap();
        if j.cursors().appended != WriteSeq(4) || lab.tail(0).durable(sixth) != old {
            return;
        }
        seen += 1;
        j.append(vec![write(0, 0, vec![0xEE; 500])], at(9)).unwrap();
        j.sync().unwrap();
        assert_eq!(end(&j), start, "as long as the frame that was lost");
        drop(j);
        lab.power.cut(rng);
        let (j, _) = lab.open().unwrap();
        assert_eq!(numbers(&j), [1, 2, 3, 4, 5]);
    });
    assert!(tried < 200 || seen > 10, "{seen}");
}

/// A sync fails, and the system forgets that the bytes before it are not on the disk: reads show them, and every later sync
/// succeeds. What was re-read after the restart must stand elsewhere before it counts.
#[test]
fn t6_a_later_sync_is_not_trusted_with_what_an_earlier_one_lost() {
    with_seeds("t6 lost", 60, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 5, 700);
        lab.tail(0).lose_at_sync(1, rng);
        assert!(j.sync().is_err());
        drop(j);
        lab.power.kill(rng);
        let (j, _) = lab.open().unwrap();
        let known = j.cursors().durable;
        assert_eq!(
            known,
            WriteSeq(5),
            "what can be read counts, once it was rewritten"
        );
        drop(j);
        lab.power.cut(rng);
        let (j, _) = lab.open().unwrap();
        assert_eq!(j.cursors().durable, known);
    });
}

/// A flush was answered, the process was killed, and the power goes away in the middle of the recovery that rewrites the
/// tail: whichever tail counts then, all that was flushed is in it.
#[test]
fn t6_a_cut_in_the_rewrite_loses_nothing() {
    let cuts = with_cuts("t6 rewrite", |rng| {
        for n in 1.. {
            let lab = Lab::new();
            lab.power.set_tear(Tear::Bit);
            let j = lab.fresh();
            // Each frame knows more to be durable than the one before: written again, none has the same bytes.
            for _ in 0..6 {
                fill(&j, 1, 700);
                j.sync().unwrap();
            }
            fill(&j, 3, 700);
            drop(j);
            lab.power.kill(rng);
            lab.power.freeze_at(n);
            let ended = lab.open().is_ok();
            lab.power.cut(rng);
            let (j, _) = lab.open().unwrap();
            let there = numbers(&j);
            assert!(there.len() >= 6, "cut {n}: {there:?}");
            if ended {
                return n - 1;
            }
        }
        unreachable!("a recovery has an end")
    });
    assert!(cuts >= 4, "{cuts} cuts");
}

/// One flipped bit in the store's log, and the newest batch is gone without a word: whatever acts on such a batch must have
/// raised the bound outside the store first, or the old role, the old pins or the old map would be believed.
#[test]
fn t7_nothing_relies_on_a_batch_that_could_be_lost_in_silence() {
    type Act = fn(&Journal);
    let acts: [(&str, Act); 12] = [
        ("role and term", |j| {
            let row = ContextRow {
                role: Role::Production,
                state: ContextState::Enabled,
                term: Term(8),
                since: at(5),
                notes: Default::default(),
            };
            j.put_context(&row).unwrap();
        }),
        ("a pin", |j| {
            let point = Point {
                generation: GenNo(1),
                seq: WriteSeq(3),
                lfc: FIRST,
                time: at(3),
                base: Ordinal(0),
                redo: Vec::new(),
            };
            j.put_pin(&PinRow {
                id: 1,
                kind: PinKind::Reader,
                point,
                target: "latest".into(),
                owner: String::new(),
                created: at(9),
                expires: None,
            })
            .unwrap();
        }),
        ("a restore", |j| j.put_restore(None, None).unwrap()),
        ("a stale region", |j| {
            j.mark_stale(&[(V, ByteRange::at(0, 1))], WriteSeq(1)).unwrap();
        }),
        ("a dirty map", |j| {
            j.all_stale().unwrap();
        }),
        ("a region taken over", |j| {
            j.take_over(&[(V, ByteRange::at(0, 1))]).unwrap();
        }),
        ("a lost map made anew", |j| {
            j.require_map(VolumeIndex(1), 1 << 20, 32 << 10).unwrap().unwrap();
        }),
        ("the first consistent point", |j| {
            j.set_consistent_from(j.head().unwrap().0).unwrap();
        }),
        ("a container's row", |j| drop(j.ingest_sealed().unwrap().unwrap())),
        ("a row without frames", |j| {
            drop(j.drop_sealed().unwrap().unwrap())
        }),
        ("undo", |j| j.commit_whole(&undo(1, 0..3, 1)).unwrap()),
        ("a generation", |j| {
            j.create_generation(NewGeneration::own(GenId(0xA2), None))
                .unwrap();
        }),
    ];
    for (what, act) in acts {
        let lab = Lab::new();
        let j = lab.fresh();
        let shape = MapShape {
            size: 1 << 20,
            region_size: 32 << 10,
            default: crate::Cell::Clean,
        };
        j.set_map(V, shape).unwrap();
        let last = fill(&j, 3, 600);
        j.seal(SealFlags::default()).unwrap();
        j.set_written_back(last);
        j.set_checkpointed(last).unwrap();
        j.set_peer(last, last, true).unwrap();
        act(&j);
        drop(j);
        lab.power.store("db").lose_commits(1);
        match lab.open() {
            Err(JournalError::Damaged(Damage::Metadata { .. })) => {}
            Err(e) => panic!("{what}: {e}"),
            Ok(_) => panic!("{what} is gone, and nobody noticed"),
        }
    }
}

/// Below its limit production keeps redo until the peer has *applied* it, not only received it; and what is not on its own
/// volumes is needed by itself.
#[test]
fn t8_redo_stays_until_it_is_checkpointed_here_and_applied_there() {
    let lab = Lab::new();
    let j = lab.fresh();
    let last = fill(&j, 5, 500);
    j.seal(SealFlags::default()).unwrap();
    j.set_written_back(last);
    j.set_peer(last, WriteSeq(4), true).unwrap();
    j.set_checkpointed(last).unwrap();
    assert!(matches!(j.drop_sealed(), Err(JournalError::Refused(_))));
    let lab = Lab::new();
    let j = lab.fresh();
    let last = fill(&j, 5, 500);
    j.seal(SealFlags::default()).unwrap();
    j.set_written_back(last);
    j.set_peer(last, last, true).unwrap();
    j.set_checkpointed(WriteSeq(4)).unwrap();
    assert!(matches!(j.drop_sealed(), Err(JournalError::Refused(_))));
    j.set_checkpointed(last).unwrap();
    assert!(j.drop_sealed().unwrap().is_some());
    assert!(j.poisoned().is_none());
}

/// Row and floor first, then the tail is reused: cut anywhere, the dropped container is whole or gone by the floor, and all
/// behind it is there.
#[test]
fn t8_a_cut_in_a_drop_leaves_the_container_or_its_row() {
    let cuts = with_cuts("t8", |rng| {
        let prepare = || {
            let lab = Lab::new();
            let j = lab.fresh();
            let last = fill(&j, 5, 500);
            j.seal(SealFlags::default()).unwrap();
            j.set_written_back(last);
            j.set_checkpointed(last).unwrap();
            j.set_peer(last, last, true).unwrap();
            (lab, j)
        };
        let history = |j: &Journal| {
            j.drop_sealed()?;
            for n in 6..9 {
                j.append(vec![write(0, 0, vec![n; 500])], at(9))?;
            }
            j.sync()?;
            j.seal(SealFlags::default()).map(drop)
        };
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            let row = j.lfc_row(GenNo(1), FIRST).expect("a row outlives its frames");
            assert_eq!(row.last_seq, WriteSeq(5));
            match j.frames_of(GenNo(1), FIRST) {
                Ok(frames) => assert!(frames.len() == 5 && !row.dropped),
                Err(JournalError::NotHeld { .. }) => {
                    assert!(row.dropped && j.floors().redo == (GenNo(1), FIRST));
                }
                Err(e) => panic!("{e}"),
            }
            let behind = j.frames_after(WriteSeq(5), u64::MAX).unwrap();
            assert_eq!(behind.len() as u64, j.cursors().appended.0 - 5);
        };
        cut_at_every_sync(rng, prepare, history, check)
    });
    assert!(cuts >= 5, "{cuts} cuts");
}

/// The floor is durable before anything below it is deleted: cut in between, either all is held or nothing is asked for.
#[test]
fn t9_the_floor_is_durable_before_anything_below_it_goes() {
    let cuts = with_cuts("t9 floor", |rng| {
        let history = |j: &Journal| {
            j.drop_undo_through(Ordinal(1))?;
            j.drop_redo_through(GenNo(1), FIRST)
        };
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            match j.floors().redo == (GenNo(1), FIRST) {
                true => assert!(j.frames_of(GenNo(1), FIRST).is_err()),
                false => assert_eq!(j.frames_of(GenNo(1), FIRST).unwrap().len(), 5),
            }
            let undo = j.first_undo(V, BlockNo(0), 3, Ordinal(0), Ordinal(2));
            match j.floors().undo == Ordinal(1) {
                true => assert!(undo.is_err()),
                false => assert!(undo.unwrap().iter().all(Option::is_some)),
            }
        };
        cut_at_every_sync(rng, two_containers, history, check)
    });
    assert!(cuts >= 2, "{cuts} cuts");
}

/// Two ingested containers and their undo.
fn two_containers() -> (Lab, Journal) {
    let lab = Lab::new();
    let j = lab.fresh();
    for n in 1..3 {
        let last = fill(&j, 5, 500);
        j.seal(SealFlags::default()).unwrap();
        j.ingest_sealed().unwrap();
        j.commit_whole(&undo(n, 0..3, 1)).unwrap();
        j.set_applied(Ordinal(n), GenNo(1), LfcId(2 * n), last).unwrap();
    }
    (lab, j)
}

/// Deleted files may be back after a cut, as long as the directory was not synced. What is below the floor is deleted
/// again, and never served: its neighbours may be gone.
#[test]
fn t9_what_comes_back_below_the_floor_is_deleted_again_and_never_read() {
    let mut back = 0;
    let tried = with_seeds("t9 ghosts", 60, |rng| {
        let (lab, j) = two_containers();
        j.drop_redo_through(GenNo(1), FIRST).unwrap();
        j.drop_undo_through(Ordinal(1)).unwrap();
        drop(j);
        lab.power.cut(rng);
        let store = lab.power.store("db");
        let below = |family, to: Vec<u8>| store.dump(family).iter().filter(|(key, _)| *key < to).count();
        let left = || {
            below(Family::Redo, crate::keys::redo(GenNo(1), LfcId(4), 0))
                + below(Family::Undo, crate::keys::undo(Ordinal(2), V, BlockNo(0)))
        };
        back += left();
        let (j, _) = lab.open().unwrap();
        assert_eq!(left(), 0);
        assert!(matches!(
            j.frames_of(GenNo(1), FIRST),
            Err(JournalError::NotHeld { .. })
        ));
        let redo = j.redo(V, ByteRange::at(0, 4096), &[all_redo(WriteSeq(10))]);
        assert!(matches!(redo, Err(HistoryError::Gone(_))), "{redo:?}");
        assert!(j.first_undo(V, BlockNo(0), 1, Ordinal(0), Ordinal(2)).is_err());
        assert_eq!(j.frames_of(GenNo(1), LfcId(4)).unwrap().len(), 5);
    });
    assert!(tried < 60 || back > 0, "nothing ever came back");
}
