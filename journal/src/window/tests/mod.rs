//! Targets, windows, gaps, and the bytes behind every point.

mod taken_over;

use super::*;
use crate::tests::undo::{CommitWhole, UndoContainer};
use crate::{
    ContextRow, Draft, LfcRow, NewGeneration, Parent, Position, RestorePhase, RestoreRow, SealFlags,
    tests::{Lab, at, mark, write},
};
use bytes::Bytes;
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, ContextState, GenId, Ordinal, Payload, RecordBody, RedoSpan, Role,
    Target, Term, VolumeIndex, WriteSeq,
    ports::{History, OrdinalKind},
    target::TargetKind,
};
use rand::{Rng, RngCore};
use std::{collections::BTreeMap, sync::Arc};
use testkit::with_seeds;

const V: VolumeIndex = VolumeIndex(0);
const BLOCKS: u64 = 12;
const SIZE: usize = (BLOCKS * BLOCK_SIZE) as usize;

fn resolve(j: &Journal, target: &str) -> Result<Resolved, ResolveError> {
    j.resolve(&target.parse().unwrap(), at(1_000_000))
}

fn seq(j: &Journal, target: &str) -> u64 {
    resolve(j, target).unwrap().point.seq.0
}

fn position(point: &Point) -> Position {
    Position {
        generation: point.generation,
        seq: point.seq,
    }
}

fn context(role: Role, state: ContextState) -> ContextRow {
    ContextRow {
        role,
        state,
        term: Term(2),
        since: at(1),
        notes: BTreeMap::new(),
    }
}

/// A recovery host with one volume and an oracle of every moment.
struct Host {
    lab: Lab,
    j: Journal,
    volume: Vec<u8>,
    /// The volume at every record of every generation.
    moments: BTreeMap<Position, Vec<u8>>,
    head: Vec<u8>,
    clock: u64,
}

impl Host {
    fn new() -> Self {
        let lab = Lab::new();
        let j = lab.fresh();
        j.set_consistent_from(Position {
            generation: GenNo(1),
            seq: WriteSeq(0),
        })
        .unwrap();
        let (volume, head) = (vec![0; SIZE], vec![0; SIZE]);
        Self {
            lab,
            j,
            volume,
            moments: BTreeMap::new(),
            head,
            clock: 100,
        }
    }

    fn append(&mut self, drafts: Vec<Draft>) {
        let frame = self.j.append(drafts, at(self.clock)).unwrap();
        let generation = self.j.current_generation().unwrap().no;
        for r in frame.records() {
            if let (Some(range), Some(payload)) = (r.changed(), r.payload()) {
                payload.copy_to(0, &mut self.head[range.start as usize..range.end as usize]);
            }
            self.moments.insert(
                Position {
                    generation,
                    seq: r.seq,
                },
                self.head.clone(),
            );
        }
        self.clock += 1;
        self.j.sync().unwrap();
    }

    fn write(&mut self, rng: &mut dyn RngCore) {
        let drafts = (0..rng.random_range(1..4))
            .map(|_| {
                let start = rng.random_range(0..SIZE as u64 - 1);
                let len = rng.random_range(1..=(SIZE as u64 - start).min(6000));
                if rng.random_bool(0.1) {
                    let body = RecordBody::Zero {
                        range: ByteRange::at(start, len),
                        discard: false,
                    };
                    Draft { volume: V, body }
                } else {
                    write(0, start, vec![rng.random::<u8>(); len as usize])
                }
            })
            .collect();
        self.append(drafts);
        if self.j.wants_seal(20_000, at(1)) {
            self.seal();
        }
    }

    fn seal(&mut self) {
        match self.j.seal(SealFlags::default()) {
            Ok(_) | Err(JournalError::Empty) => {}
            Err(e) => panic!("{e}"),
        }
    }

    /// Overwrites the volume with `to` under an ordinal of its own.
    fn overwrite(&mut self, to: Vec<u8>, kind: OrdinalKind) -> Ordinal {
        let ordinal = self.j.published().next();
        let block =
            |bytes: &[u8], b: u64| bytes[(b * BLOCK_SIZE) as usize..((b + 1) * BLOCK_SIZE) as usize].to_vec();
        let blocks = (0..BLOCKS)
            .filter(|b| block(&self.volume, *b) != block(&to, *b))
            .map(|b| {
                let before = block(&self.volume, b);
                let zero = before.iter().all(|x| *x == 0);
                (
                    V,
                    BlockNo(b),
                    if zero {
                        Payload::Zero
                    } else {
                        Payload::Data(Bytes::from(before))
                    },
                )
            })
            .collect();
        self.j
            .commit_whole(&UndoContainer {
                ordinal,
                kind,
                blocks,
            })
            .unwrap();
        self.volume = to;
        ordinal
    }

    /// The sealed containers of the current line that are not applied yet.
    fn next_to_apply(&self) -> Option<Arc<LfcRow>> {
        let generation = self.j.current_generation().unwrap().no;
        let applied = self.j.cursors().applied_lfc;
        self.j
            .lfc_rows(..)
            .into_iter()
            .find(|r| r.generation == generation && (r.generation, r.lfc) > applied)
    }

    fn apply(&mut self) {
        let Some(row) = self.next_to_apply() else { return };
        let kind = OrdinalKind::Apply {
            generation: row.generation,
            lfc: row.lfc,
            last_seq: row.last_seq,
        };
        let to = self.moments[&Position {
            generation: row.generation,
            seq: row.last_seq,
        }]
            .clone();
        let ordinal = self.overwrite(to, kind);
        self.j
            .set_applied(ordinal, row.generation, row.lfc, row.last_seq)
            .unwrap();
    }

    /// What a view of the point shows (V1).
    fn view(&self, point: &Point) -> Vec<u8> {
        let mut out = self.volume.clone();
        let undo = self
            .j
            .first_undo(V, BlockNo(0), BLOCKS, point.base, self.j.published())
            .unwrap();
        for (b, payload) in undo.into_iter().enumerate() {
            if let Some(payload) = payload {
                let start = b * BLOCK_SIZE as usize;
                payload.copy_to(0, &mut out[start..start + BLOCK_SIZE as usize]);
            }
        }
        for piece in self
            .j
            .redo(V, ByteRange::at(0, SIZE as u64), &point.redo)
            .unwrap()
        {
            piece
                .payload
                .copy_to(0, &mut out[piece.range.start as usize..piece.range.end as usize]);
        }
        out
    }

    /// Restores the volume to a point as a local pair; answers what it stood at.
    fn restore(&mut self, point: &Point) -> (Ordinal, Vec<u8>) {
        let (from, before) = (self.j.published(), self.volume.clone());
        let to = self.view(point);
        let kind = OrdinalKind::Local {
            restore_from: from,
            base: point.base,
            redo: point.redo.clone(),
        };
        let ordinal = self.overwrite(to, kind);
        let row = RestoreRow {
            target: point.clone(),
            text: "test".into(),
            from,
            cursor: (V, BlockNo(0)),
            phase: RestorePhase::Done,
            undo_from: None,
            only: None,
        };
        self.j.put_restore(Some(&row), None).unwrap();
        self.j.set_applied_local(ordinal).unwrap();
        (from, before)
    }

    /// Takes the line over at a restored point.
    fn promote(&mut self, point: &Point) {
        self.seal();
        self.j.ingest_sealed().unwrap();
        let at = position(point);
        let row = context(Role::Production, ContextState::FailedOver);
        self.j.promote(GenId(77), at, point.time, &row).unwrap();
        self.head = self.moments[&at].clone();
    }

    /// Every record of every line: resolves exactly if the window says so, and then shows its bytes. Answers how many did.
    fn check(&self) -> (usize, usize) {
        let (mut reached, mut refused) = (0, 0);
        for g in self.j.generations() {
            let window = self.j.window(Some(g.no));
            let chart = self.j.chart(Some(g.no)).unwrap();
            for (position, moment) in &self.moments {
                let kind = TargetKind::Seq(position.seq);
                let target = Target {
                    generation: Some(g.no),
                    kind,
                };
                let on_line = chart.along_seq(position.seq).map(|a| chart.position(a)) == Some(*position);
                if !on_line {
                    continue;
                }
                let along = chart.along(*position).unwrap();
                let inside = chart.stretches().iter().any(|(a, b)| *a <= along && along <= *b);
                match self.j.resolve(&target, at(1_000_000)) {
                    Ok(r) => {
                        assert!(inside, "{target} resolves, but is not in {window:?}");
                        assert_eq!(
                            (r.point.generation, r.point.seq),
                            (position.generation, position.seq)
                        );
                        assert!(
                            self.view(&r.point) == *moment,
                            "bytes at {target} as {position}: {:?}",
                            r.point
                        );
                        reached += 1;
                    }
                    Err(ResolveError::Journal(e)) => panic!("{e}"),
                    Err(e) => {
                        assert!(!inside, "{target} is in the window: {e}");
                        refused += 1;
                    }
                }
            }
        }
        (reached, refused)
    }
}

/// V1, W3, T10, L3: random histories of applying, restoring, taking back, failing over and freeing; every point of every
/// line shows exactly the bytes of its moment, or is refused.
#[test]
fn every_point_shows_its_moment_or_is_refused() {
    let (mut reached, mut refused) = (0, 0);
    let tried = with_seeds("every point", 300, |rng| {
        let mut h = Host::new();
        let mut restored: Option<(Ordinal, Vec<u8>, Point)> = None;
        for _ in 0..rng.random_range(10..60) {
            match rng.random_range(0..20) {
                0..=9 => h.write(rng),
                10 | 11 => h.seal(),
                12..=14 if restored.is_none() => h.apply(),
                15 => drop(h.j.ingest_sealed().unwrap()),
                16 => {
                    let moments: Vec<_> = h.moments.keys().copied().collect();
                    let Some(p) = moments.get(rng.random_range(0..moments.len().max(1))) else {
                        continue;
                    };
                    let Ok(r) = resolve(&h.j, &format!("seq:{}", p.seq)) else {
                        continue;
                    };
                    if restored.is_none() {
                        let (from, before) = h.restore(&r.point);
                        restored = Some((from, before, r.point));
                        let shown = resolve(&h.j, "restored").unwrap().point;
                        assert!(h.view(&shown) == h.volume);
                    }
                }
                17 => {
                    let Some((from, before, point)) = restored.take() else {
                        continue;
                    };
                    if rng.random() {
                        // Taken back.
                        let last = h.j.published();
                        let base = h.j.ordinal_rows(..=from).last().map_or(Ordinal(0), |r| r.ordinal);
                        let kind = OrdinalKind::Local {
                            restore_from: last,
                            base,
                            redo: Vec::new(),
                        };
                        let ordinal = h.overwrite(before, kind);
                        h.j.set_applied_local(ordinal).unwrap();
                    } else {
                        // A failover from there: the line is cut, a generation begins.
                        let (_, digest) = h.j.digest_at(point.generation, point.seq).unwrap();
                        let id =
                            h.j.generations()
                                .iter()
                                .find(|g| g.no == point.generation)
                                .unwrap()
                                .id;
                        let parent = Parent {
                            id,
                            seq: point.seq,
                            digest,
                        };
                        h.j.create_generation(NewGeneration::own(GenId(rng.random()), Some(parent)))
                            .unwrap();
                        h.head = h.volume.clone();
                    }
                    h.j.put_restore(None, None).unwrap();
                }
                18 => {
                    // Frees redo and undo of an applied container together, but not below a restore in force.
                    let rows = h.j.ordinal_rows(..);
                    if let (Some(row), None) = (rows.first(), &restored)
                        && rng.random_bool(0.5)
                        && let OrdinalKind::Apply { generation, lfc, .. } = row.kind
                        && h.j.cursors().applied_ordinal >= row.ordinal
                    {
                        h.j.ingest_sealed().unwrap();
                        h.j.drop_redo_through(generation, lfc).unwrap();
                        h.j.drop_undo_through(row.ordinal).unwrap();
                    }
                }
                _ => {
                    h.j.raise_bound().unwrap();
                    let parts = h.lab.parts();
                    h.j = Journal::open(parts, h.lab.options.clone()).unwrap().0;
                }
            }
        }
        let (yes, no) = h.check();
        reached += yes;
        refused += no;
    });
    assert!(
        tried < 300 || reached > 5000 && refused > 200,
        "{reached} reached, {refused} refused"
    );
}

/// Ten writes a container, one a second from 100 s on; the third container's end is a mark.
fn host() -> Host {
    let mut h = Host::new();
    for lfc in 0..4u8 {
        for i in 0..10u8 {
            if lfc == 2 && i == 9 {
                h.append(vec![mark("end-of-day")]);
            } else {
                h.append(vec![write(0, u64::from(i) * 4096, [lfc + 1; 100])]);
            }
        }
        h.seal();
        h.apply();
    }
    h.append(vec![write(0, 0, [9; 5])]);
    h
}

#[test]
fn the_kinds_of_target() {
    let h = host();
    let j = &h.j;
    assert_eq!(seq(j, "latest"), 41);
    assert_eq!(seq(j, "lfc:4"), 20);
    assert_eq!(resolve(j, "lfc:4").unwrap().point.redo, []);
    assert_eq!(resolve(j, "lfc:4").unwrap().point.base, Ordinal(2));
    assert_eq!(seq(j, "seq:17"), 17);
    let span = RedoSpan {
        generation: GenNo(1),
        after: WriteSeq(10),
        upto: WriteSeq(17),
    };
    assert_eq!(resolve(j, "seq:17").unwrap().point.redo, [span]);
    assert_eq!(seq(j, "mark:end-of-day"), 30);
    assert_eq!(seq(j, "epoch:104"), 5);
    assert_eq!(seq(j, "epoch:104.9"), 5);
    assert_eq!(seq(j, "epoch:100"), 1);
    assert_eq!(seq(j, "epoch:999999"), 41);
    assert_eq!(
        j.resolve(&"-10s".parse().unwrap(), at(120)).unwrap().point.seq,
        WriteSeq(11)
    );
    assert_eq!(resolve(j, "g1:lfc:8").unwrap().point.seq, WriteSeq(40));
    let w = j.window(None).unwrap();
    assert_eq!(
        (w.oldest.at.seq, w.newest.at.seq, w.gaps.len(), w.marks.len()),
        (WriteSeq(1), WriteSeq(41), 0, 1)
    );
}

#[test]
fn misses_are_refused_with_what_is_near() {
    let h = host();
    let j = &h.j;
    assert!(matches!(
        resolve(j, "lfc:5"),
        Err(ResolveError::OddLfc {
            before: LfcId(4),
            after: LfcId(6),
            ..
        })
    ));
    // The open container has not ended.
    assert!(matches!(resolve(j, "lfc:10"), Err(ResolveError::Outside(_))));
    assert!(matches!(resolve(j, "lfc:70250"), Err(ResolveError::Outside(_))));
    assert!(matches!(resolve(j, "seq:42"), Err(ResolveError::Outside(_))));
    assert!(matches!(resolve(j, "epoch:99"), Err(ResolveError::Outside(_))));
    assert!(matches!(
        resolve(j, "epoch:2000000"),
        Err(ResolveError::Future { .. })
    ));
    assert!(matches!(
        resolve(j, "g7:latest"),
        Err(ResolveError::UnknownGeneration(GenNo(7)))
    ));
    assert!(matches!(resolve(j, "restored"), Err(ResolveError::NotRestored)));
    let Err(ResolveError::UnknownMark { known, .. }) = resolve(j, "mark:nope") else {
        panic!()
    };
    assert_eq!(known, ["end-of-day"]);
    j.ingest_sealed().unwrap();
    j.drop_redo_through(GenNo(1), LfcId(4)).unwrap();
    j.drop_undo_through(Ordinal(2)).unwrap();
    let Err(ResolveError::Outside(miss)) = resolve(j, "seq:15") else {
        panic!()
    };
    assert_eq!(miss.nearest.iter().map(|n| n.at.seq.0).collect::<Vec<_>>(), [20]);
    assert_eq!(miss.window.oldest.at.seq, WriteSeq(20));
    assert_eq!(seq(j, "lfc:4"), 20);
    assert_eq!(seq(j, "seq:21"), 21);
    // Redo alone freed: the boundaries stay, what is between is a gap.
    j.drop_redo_through(GenNo(1), LfcId(6)).unwrap();
    let Err(ResolveError::InGap(miss)) = resolve(j, "seq:25") else {
        panic!()
    };
    assert_eq!(
        miss.nearest.iter().map(|n| n.at.seq.0).collect::<Vec<_>>(),
        [20, 30]
    );
    assert!(matches!(resolve(j, "epoch:123"), Err(ResolveError::InGap(_))));
    assert_eq!(seq(j, "lfc:6"), 30);
    let w = j.window(None).unwrap();
    assert_eq!(
        w.gaps
            .iter()
            .map(|g| (g.from.at.seq.0, g.to.at.seq.0))
            .collect::<Vec<_>>(),
        [(20, 30)]
    );
}

#[test]
fn a_mark_that_carries_the_second_is_taken() {
    let mut h = Host::new();
    h.append(vec![write(0, 0, [1])]);
    let half = Timestamp(101 * Timestamp::SECOND_NS + 400_000_000);
    h.j.append(vec![mark("first")], half).unwrap();
    h.j.append(vec![mark("second")], Timestamp(half.0 + 500_000_000))
        .unwrap();
    h.j.append(vec![write(0, 0, [2])], at(103)).unwrap();
    h.j.sync().unwrap();
    let r = resolve(&h.j, "epoch:101").unwrap();
    assert_eq!(r.point.seq, WriteSeq(3));
    assert_eq!(
        r.note.unwrap().to_string(),
        "event mark 'second' taken, 0.9 s after that second"
    );
    // Not a whole second: the plain rule.
    assert_eq!(seq(&h.j, "epoch:101.5"), 2);
    assert_eq!(seq(&h.j, "epoch:101.1"), 1);
    assert_eq!(seq(&h.j, "epoch:102"), 3);
    assert!(resolve(&h.j, "epoch:102").unwrap().note.is_none());
}

/// L5: an instant that happened twice is refused with both readings.
#[test]
fn l5_an_instant_with_two_positions_is_refused() {
    let mut h = Host::new();
    for _ in 0..10 {
        h.append(vec![write(0, 0, [1])]);
    }
    let body = RecordBody::ClockStep {
        from: at(110),
        to: at(105),
    };
    h.append(vec![Draft { volume: V, body }]);
    h.clock = 106;
    for _ in 0..10 {
        h.append(vec![write(0, 0, [2])]);
    }
    let Err(ResolveError::Ambiguous { readings, .. }) = resolve(&h.j, "epoch:108") else {
        panic!()
    };
    assert_eq!(readings.iter().map(|r| r.at.seq.0).collect::<Vec<_>>(), [9, 14]);
    assert_eq!(seq(&h.j, "epoch:102"), 3);
    assert_eq!(seq(&h.j, "epoch:113"), 19);
    h.seal();
    h.j.ingest_sealed().unwrap();
    assert!(matches!(
        resolve(&h.j, "epoch:108"),
        Err(ResolveError::Ambiguous { .. })
    ));
}

/// L5: between a step back and the next record, which may come long after, the step itself is what was last. It ends its container,
/// unless the host was killed between the two.
#[test]
fn l5_an_instant_behind_a_step_is_before_the_record_that_follows() {
    for is_killed in [false, true] {
        let mut h = Host::new();
        for _ in 0..4 {
            h.append(vec![write(0, 0, [1])]);
        }
        let body = RecordBody::ClockStep {
            from: at(104),
            to: at(50),
        };
        h.append(vec![Draft { volume: V, body }]);
        let step = h.j.cursors().appended.0;
        if !is_killed {
            h.seal();
        }
        h.clock = 200;
        h.append(vec![write(0, 0, [2])]);
        h.append(vec![write(0, 0, [3])]);
        for sealed in [false, true] {
            assert_eq!(seq(&h.j, "epoch:50"), step);
            assert_eq!(seq(&h.j, "epoch:60"), step);
            assert_eq!(seq(&h.j, "epoch:150"), step);
            assert_eq!(seq(&h.j, "epoch:200"), step + 1);
            assert_eq!(seq(&h.j, "epoch:201"), step + 2);
            assert!(matches!(
                resolve(&h.j, "epoch:102"),
                Err(ResolveError::Ambiguous { .. })
            ));
            if !sealed {
                h.seal();
            }
        }
    }
}

/// what lies between two lines, or only on another one, is refused with the full names. L3: the cut end is meant.
#[test]
fn r4_other_lines_are_named_in_full() {
    let mut h = host();
    let point = resolve(&h.j, "seq:34").unwrap().point;
    h.restore(&point);
    let (_, digest) = h.j.digest_at(GenNo(1), WriteSeq(34)).unwrap();
    let parent = Parent {
        id: GenId(0xA1),
        seq: WriteSeq(34),
        digest,
    };
    h.j.create_generation(NewGeneration::own(GenId(0xB2), Some(parent)))
        .unwrap();
    h.j.put_restore(None, None).unwrap();
    h.head = h.volume.clone();
    h.clock = 200;
    h.append(vec![write(0, 0, [7])]);
    assert_eq!(seq(&h.j, "latest"), 42);
    let Err(ResolveError::BetweenLines { names, .. }) = resolve(&h.j, "epoch:150") else {
        panic!()
    };
    assert_eq!(names, ["g1:seq:34", "g2:seq:42"]);
    let r = resolve(&h.j, "lfc:8").unwrap();
    assert_eq!(
        (r.point.seq, r.note),
        (WriteSeq(34), Some(Note::CutEnd { lfc: LfcId(8) }))
    );
    assert_eq!(resolve(&h.j, "g1:lfc:8").unwrap().point.seq, WriteSeq(40));
    let Err(ResolveError::OtherLine { names, .. }) = resolve(&h.j, "lfc:10") else {
        panic!()
    };
    assert_eq!(names, ["g1:lfc:10"]);
    assert!(matches!(
        resolve(&h.j, "seq:38"),
        Err(ResolveError::Outside(_) | ResolveError::InGap(_))
    ));
    assert_eq!(seq(&h.j, "g1:seq:38"), 38);
    let (reached, _) = h.check();
    assert!(reached > 70, "{reached}");
}

/// C5: below the first consistent point nothing is shown, and the last consistent point of a resync stays.
#[test]
fn c5_inconsistent_points_are_refused() {
    let lab = Lab::new();
    let j = lab.fresh();
    crate::tests::fill(&j, 10, 100);
    j.sync().unwrap();
    assert!(matches!(resolve(&j, "latest"), Err(ResolveError::NotConsistent)));
    let p = |seq| Position {
        generation: GenNo(1),
        seq: WriteSeq(seq),
    };
    j.set_consistent_from(p(4)).unwrap();
    // Copies are in no redo: before they are under the applied state no view can have them.
    assert!(matches!(resolve(&j, "seq:4"), Err(ResolveError::NotConsistent)));
    j.set_applied(Ordinal(0), GenNo(1), LfcId(0), WriteSeq(10))
        .unwrap();
    assert!(matches!(
        resolve(&j, "seq:3"),
        Err(ResolveError::BeforeFirstConsistent(_))
    ));
    assert_eq!(seq(&j, "seq:4"), 4);
    j.set_consistent_until(p(6)).unwrap();
    assert_eq!(seq(&j, "seq:6"), 6);
    assert_eq!(seq(&j, "latest"), 6, "the newest that can be shown");
    j.set_consistent_from(p(9)).unwrap();
    let Err(ResolveError::InGap(miss)) = resolve(&j, "seq:7") else {
        panic!()
    };
    assert_eq!(
        miss.nearest.iter().map(|n| n.at.seq.0).collect::<Vec<_>>(),
        [6, 9]
    );
    assert_eq!(seq(&j, "latest"), 10);
    drop(j);
    let (j, _) = lab.open().unwrap();
    let w = j.window(None).unwrap();
    assert_eq!(
        (w.oldest.at.seq, w.newest.at.seq, w.gaps.len()),
        (WriteSeq(4), WriteSeq(10), 1)
    );
}

/// Nothing that a power cut would take back is shown.
#[test]
fn latest_is_durable() {
    let lab = Lab::new();
    let j = lab.fresh();
    j.set_consistent_from(Position {
        generation: GenNo(1),
        seq: WriteSeq(0),
    })
    .unwrap();
    crate::tests::fill(&j, 3, 100);
    j.sync().unwrap();
    crate::tests::fill(&j, 3, 100);
    assert_eq!(seq(&j, "latest"), 3);
    assert!(matches!(resolve(&j, "seq:4"), Err(ResolveError::Outside(_))));
}

/// T10: redo that does not check is found by whoever reads it first. Then its points are a gap that says why, its boundaries
/// stay, and every other point is exact.
#[test]
fn t10_rotten_redo_is_a_gap_and_its_boundaries_stay() {
    with_seeds("t10 redo", 40, |rng| {
        let mut host = Host::new();
        for _ in 0..rng.random_range(12..30) {
            host.write(rng);
            if rng.random_bool(0.3) {
                host.seal();
                host.j.ingest_sealed().unwrap();
                host.apply();
            }
        }
        host.seal();
        host.j.ingest_sealed().unwrap();
        while host.next_to_apply().is_some() {
            host.apply();
        }
        let rows = host.j.lfc_rows(..);
        let row = Arc::clone(&rows[rng.random_range(0..rows.len())]);
        let frame = rng.random_range(0..row.frames);
        let key = crate::keys::redo(row.generation, row.lfc, frame);
        let byte = rng.random_range(0..80);
        assert!(
            host.lab
                .power
                .store("db")
                .flip_bit(model::ports::Family::Redo, &key, byte, rng.random())
        );
        host.j = host.lab.open().unwrap().0;
        assert!(matches!(
            host.j.frames_of(row.generation, row.lfc),
            Err(JournalError::Damaged(_))
        ));
        // `check` compares every point that resolves with the oracle, and the window with what resolves.
        host.check();
        for other in &rows {
            assert!(
                resolve(&host.j, &format!("lfc:{}", other.lfc)).is_ok(),
                "boundary of {}",
                other.lfc
            );
        }
        for n in row.first_seq.0..row.last_seq.0 {
            let inside = resolve(&host.j, &format!("seq:{n}"));
            assert!(inside.is_err(), "{n} needs redo that is damaged");
        }
        let window = host.j.window(None).unwrap();
        let cause = GapCause::Redo { lfc: row.lfc };
        let first = row.first_seq == WriteSeq(1);
        let gap = window.gaps.iter().find(|g| g.cause == cause);
        assert!(
            gap.is_some() || first || row.first_seq == row.last_seq,
            "{window:?}"
        );
        assert!(host.j.poisoned().is_none());
    });
}

/// T10: undo of a block that does not check takes the states that need it, and no others; no read answers other bytes.
#[test]
fn t10_rotten_undo_takes_only_the_states_that_need_it() {
    let (mut taken, mut kept) = (0, 0);
    with_seeds("t10 undo", 60, |rng| {
        let mut host = Host::new();
        let containers = rng.random_range(4..9);
        for _ in 0..containers {
            for _ in 0..2 {
                host.write(rng);
            }
            host.seal();
            host.j.ingest_sealed().unwrap();
            while host.next_to_apply().is_some() {
                host.apply();
            }
        }
        // Without redo the states behind undo are all there is.
        let rows = host.j.lfc_rows(..);
        let newest = rows.last().unwrap();
        host.j.set_checkpointed(newest.last_seq).unwrap();
        host.j.drop_redo_through(newest.generation, newest.lfc).unwrap();
        let store = host.lab.power.store("db");
        let ordinal = Ordinal(rng.random_range(1..=host.j.published().0));
        let rotten = (0..BLOCKS).map(BlockNo).find(|b| {
            let key = crate::keys::undo(ordinal, V, *b);
            store.flip_bit(model::ports::Family::Undo, &key, 100, 3)
        });
        let Some(block) = rotten else { return };
        let before = host
            .j
            .first_undo(V, block, 1, Ordinal(ordinal.0 - 1), host.j.published());
        assert!(before.is_err(), "damaged undo was served");
        let (reached, refused) = host.check();
        kept += reached;
        taken += refused;
        let state = Ordinal(ordinal.0 - 1);
        for row in host.j.ordinal_rows(..) {
            let OrdinalKind::Apply { lfc, .. } = row.kind else {
                continue;
            };
            let resolved = resolve(&host.j, &format!("lfc:{lfc}"));
            if row.ordinal >= ordinal {
                assert!(resolved.is_ok(), "{lfc} does not need ordinal {ordinal}");
            } else if row.ordinal == state {
                assert!(resolved.is_err(), "{lfc} needs ordinal {ordinal}");
            }
        }
        assert!(host.j.poisoned().is_none());
    });
    assert!(taken > 0 && kept > 0, "{taken} {kept}");
}
