//! One history: each operation done by both sides, and compared.

mod counts;
mod crash;
mod looks;

pub use counts::Counts;

use super::{
    engine::{Engine, OVERLAY_BLOCKS, time_of},
    hosts::Fallible,
    model::{Model, Phase, Restored, Snapshot},
    ops::{Kind, Op},
};
use backstay::restoring::{RestoreError, Work};
use journal::{Cursors, Draft, RestoreRow};
use model::{BLOCK_SIZE, ByteRange, RecordBody, VolumeIndex, WriteSeq, target::TargetKind};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use snapshot::SnapshotError;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};
use testkit::{SimPower, sim::Tear};

/// Operations that a failure shows.
const SHOWN: usize = 40;

/// Most snapshots at once.
const SNAPSHOTS_MAX: usize = 6;

/// Three small volumes, the last block of each a partial one.
pub fn sizes(rng: &mut dyn RngCore) -> Vec<u64> {
    (0..3)
        .map(|_| rng.random_range(8..140) * BLOCK_SIZE + rng.random_range(1..BLOCK_SIZE))
        .collect()
}

/// Both sides of a history.
pub struct Run {
    power: SimPower,
    engine: Option<Engine>,
    model: Model,
    /// The last record that was answered: a kill does not take it back.
    answered: WriteSeq,
    was_cut: bool,
    next_pin: u64,
    counts: Counts,
    trace: VecDeque<(usize, Op, Cursors, bool)>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (n, op, c, failed) in &self.trace {
                let failed = if *failed { " failed" } else { "" };
                eprintln!(
                    "{n}: {:?} {:#x}{failed}: appended {} durable {} applied {} ordinals {}/{}",
                    op.kind, op.seed, c.appended, c.durable, c.applied, c.applied_ordinal, c.published
                );
            }
            let m = &self.model;
            eprintln!("wanted from {}, stands {:?}, {:?}", m.wanted, m.stands, m.restore);
        }
    }
}

/// Does a whole history.
pub fn run(sizes: &[u64], history: &[Op], seed: u64) -> Counts {
    let mut run = Run::new(sizes, &mut StdRng::seed_from_u64(seed));
    for (n, op) in history.iter().enumerate() {
        run.step(n, *op);
    }
    run.end(&mut StdRng::seed_from_u64(seed));
    run.counts
}

impl Run {
    fn new(sizes: &[u64], rng: &mut dyn RngCore) -> Self {
        let power = SimPower::new();
        power.set_tear(if rng.random() { Tear::Byte } else { Tear::Sector });
        let engine = Engine::boot(&power, sizes).unwrap();
        Self {
            power,
            engine: Some(engine),
            model: Model::new(sizes),
            answered: WriteSeq(0),
            was_cut: false,
            next_pin: 1,
            counts: Counts::default(),
            trace: VecDeque::new(),
        }
    }

    fn e(&self) -> &Engine {
        self.engine.as_ref().expect("it is up")
    }

    fn step(&mut self, n: usize, op: Op) {
        self.counts.operations += 1;
        let mut rng = StdRng::seed_from_u64(op.seed);
        if self.trace.len() == SHOWN {
            self.trace.pop_front();
        }
        self.trace.push_back((n, op, self.e().journal.cursors(), false));
        let done = self.act(op.kind, &mut rng);
        if let Err(e) = done {
            assert!(
                self.power.is_off(),
                "{:?} failed with the power on: {e:#}",
                op.kind
            );
            self.trace.back_mut().expect("just pushed").3 = true;
        }
        if self.power.is_off() {
            self.crash(op.kind, &mut rng);
        }
    }

    /// Whatever state a history leaves, it comes to rest: restores are undone, all is applied, and every moment is looked at.
    fn end(&mut self, rng: &mut StdRng) {
        self.power.never_freeze();
        let at = self.counts.operations as usize;
        let mut done = |kind, run: &mut Self| {
            run.step(
                at,
                Op {
                    kind,
                    seed: rng.random(),
                },
            )
        };
        done(Kind::Flush, self);
        while self.model.restore.is_some() {
            done(Kind::Undo, self);
        }
        done(Kind::Seal, self);
        while self.model.next_end().is_some() || !self.e().stands() {
            done(Kind::Apply, self);
        }
        for _ in 0..4 {
            done(Kind::View, self);
        }
        assert_eq!(self.model.applied, self.e().journal.cursors().appended);
        self.compare_replica();
    }

    fn act(&mut self, kind: Kind, rng: &mut StdRng) -> Fallible {
        match kind {
            Kind::Write | Kind::Zero | Kind::Discard => self.write(kind, rng),
            Kind::Flush => {
                self.e().journal.sync()?;
                self.model.durable = self.model.oracle.head();
                Ok(())
            }
            Kind::Mark => {
                let name = format!("mark-{}", self.model.oracle.head().next());
                let description = String::new();
                let body = RecordBody::Mark {
                    name,
                    description,
                    keep_ns: None,
                };
                self.append(vec![Draft {
                    volume: VolumeIndex(0),
                    body,
                }])?;
                self.seal()
            }
            Kind::Seal => self.seal(),
            Kind::Ingest => {
                self.e().journal.ingest_sealed()?;
                Ok(())
            }
            Kind::Bound => Ok(self.e().journal.raise_bound()?),
            Kind::Apply => self.apply(),
            Kind::Look => self.look(rng),
            Kind::View => self.whole(rng),
            Kind::Replica => self.replica(rng),
            Kind::Window => self.window(),
            Kind::Snapshot => self.snapshot(rng),
            Kind::Release => self.release(rng),
            Kind::VdevWrite | Kind::VdevRead | Kind::VdevFlush => self.vdev(kind, rng),
            Kind::Restore => self.restore(rng),
            Kind::Undo => self.undo(rng),
            Kind::Prune => self.prune(rng),
            Kind::Restart => {
                self.power.freeze_now();
                Ok(())
            }
            Kind::Cut => {
                self.power.freeze_at(rng.random_range(1..60));
                Ok(())
            }
        }
    }

    /// A volume and some bytes of it, most of them where others are.
    fn range(&self, len_max: u64, rng: &mut dyn RngCore) -> (VolumeIndex, ByteRange) {
        let volume = rng.random_range(0..self.model.sizes.len());
        let size = self.model.sizes[volume];
        let len = match rng.random_range(0..6) {
            0 => 1,
            1 => rng.random_range(1..512),
            2 | 3 => 4096,
            _ => rng.random_range(1..=len_max),
        };
        let len = len.min(len_max).min(size);
        let most = size - len;
        let start = match rng.random_range(0..4) {
            0 => most,
            1 => rng.random_range(0..=most),
            _ => rng.random_range(0..=most.min(24 * BLOCK_SIZE)),
        };
        let start = if rng.random_range(0..3) == 0 {
            start / BLOCK_SIZE * BLOCK_SIZE
        } else {
            start
        };
        (
            VolumeIndex(u16::try_from(volume).unwrap()),
            ByteRange::at(start, len),
        )
    }

    fn write(&mut self, kind: Kind, rng: &mut StdRng) -> Fallible {
        let count = if rng.random_range(0..4) == 0 { 3 } else { 1 };
        let drafts = (0..count).map(|_| {
            if kind == Kind::Write {
                let (volume, range) = self.range(12_000, rng);
                let mut data = vec![0; usize::try_from(range.len()).unwrap()];
                match rng.random_range(0..8) {
                    0 => {}
                    1 => data.fill(rng.random()),
                    _ => rng.fill_bytes(&mut data),
                }
                let (offset, data) = (range.start, data.into());
                let body = RecordBody::Write { offset, data };
                return Draft { volume, body };
            }
            let (volume, range) = self.range(40_000, rng);
            let discard = kind == Kind::Discard;
            let body = RecordBody::Zero { range, discard };
            Draft { volume, body }
        });
        let drafts = drafts.collect();
        self.append(drafts)
    }

    /// The model has the records before the engine is asked: after a crash they are there or not.
    fn append(&mut self, drafts: Vec<Draft>) -> Fallible {
        // One frame, one time.
        let time = time_of(self.model.oracle.head().next());
        for draft in &drafts {
            let seq = self.model.oracle.head().next();
            self.model.oracle.record(&model::Record {
                seq,
                time,
                volume: draft.volume,
                body: draft.body.clone(),
            });
        }
        self.counts.records += drafts.len() as u64;
        let done = self.e().append(drafts);
        self.see_sealed();
        done?;
        self.answered = self.model.oracle.head();
        assert_eq!(self.e().journal.cursors().appended, self.answered);
        Ok(())
    }

    fn seal(&mut self) -> Fallible {
        let done = self.e().seal();
        self.see_sealed();
        done
    }

    /// What the engine has sealed is durable and a boundary; it seals by itself, too.
    fn see_sealed(&mut self) {
        for row in self.e().journal.lfc_rows(..).iter().rev() {
            match self.model.oracle.lfc_end(row.lfc) {
                Some(end) => {
                    assert_eq!(row.last_seq, end, "container {} has another end now", row.lfc);
                    break;
                }
                None => self.model.oracle.seal(row.lfc, row.last_seq),
            }
            self.model.durable = self.model.durable.max(row.last_seq);
        }
    }

    fn apply(&mut self) -> Fallible {
        let free = self.model.restore.is_none();
        let next = self.model.next_end().filter(|_| free);
        let was = self.e().journal.cursors().applied;
        let applied = self.e().apply_next()?;
        let now = self.e().journal.cursors().applied;
        assert_eq!(applied.then_some(now), next, "a container was applied, or none");
        assert!(
            applied || now == was,
            "nothing is applied while a restore is in force"
        );
        if applied {
            self.model.apply(now);
            self.counts.applied += 1;
        }
        Ok(())
    }

    fn snapshot(&mut self, rng: &mut StdRng) -> Fallible {
        if self.model.snapshots.len() == SNAPSHOTS_MAX {
            return Ok(());
        }
        let Some((at, target)) = self.moment(rng) else {
            return Ok(());
        };
        let id = self.next_pin;
        self.next_pin += 1;
        let snapshot = Snapshot {
            at,
            written: BTreeMap::new(),
            unflushed: BTreeSet::new(),
        };
        self.model.snapshots.insert(id, snapshot);
        self.counts.snapshots += 1;
        self.engine.as_mut().expect("it is up").snapshot(id, &target)
    }

    fn drawn_snapshot(&self, rng: &mut dyn RngCore) -> Option<u64> {
        let count = self.model.snapshots.len();
        let n = rng.random_range(0..count.max(1));
        self.model.snapshots.keys().nth(n).copied()
    }

    fn release(&mut self, rng: &mut StdRng) -> Fallible {
        let Some(id) = self.drawn_snapshot(rng) else {
            return Ok(());
        };
        self.engine.as_mut().expect("it is up").release(id)?;
        self.model.snapshots.remove(&id);
        Ok(())
    }

    fn vdev(&mut self, kind: Kind, rng: &mut StdRng) -> Fallible {
        let Some(id) = self.drawn_snapshot(rng) else {
            return Ok(());
        };
        let (volume, range) = self.range(12_000, rng);
        let vdev = &self.engine.as_ref().expect("it is up").snapshots[&id];
        let oracle = &self.model.oracle;
        let snapshot = self.model.snapshots.get_mut(&id).expect("both have it");
        match kind {
            Kind::VdevWrite => {
                let mut data = vec![0; usize::try_from(range.len()).unwrap()];
                let zero = rng.random_range(0..5) == 0;
                if !zero {
                    rng.fill_bytes(&mut data);
                }
                // Found after a crash or not, whatever is answered now.
                let touched = || range.blocks().map(|block| (volume, block));
                let before = snapshot.clone();
                snapshot.write(oracle, volume, range.start, &data);
                let done = if zero {
                    vdev.zero(volume, range.start, range.len())
                } else {
                    vdev.write(volume, range.start, &data)
                };
                match done {
                    Err(e) if e.is_full() => {
                        *snapshot = before;
                        let held = snapshot.written.keys().copied().chain(touched());
                        let held = held.collect::<BTreeSet<_>>().len() as u64;
                        assert!(held > OVERLAY_BLOCKS, "{e} with {held} blocks ever written");
                    }
                    done => done?,
                }
            }
            Kind::VdevRead => {
                let mut found = vec![0xEE; usize::try_from(range.len()).unwrap()];
                vdev.read(volume, range.start, &mut found)?;
                let expected = snapshot.bytes(oracle, volume, range);
                let at = snapshot.at;
                same(
                    &found,
                    &expected,
                    &format_args!("vdev {id} {volume:?} {range:?} at {at}"),
                );
            }
            _ => {
                vdev.flush()?;
                snapshot.unflushed.clear();
            }
        }
        Ok(())
    }

    fn restore(&mut self, rng: &mut StdRng) -> Fallible {
        let row = self.e().journal.restore()?;
        let work = match (self.model.phase(), row) {
            (None, None) => {
                let Some((seq, target)) = self.moment(rng) else {
                    return Ok(());
                };
                let point = self.resolve(seq, &target)?.point().clone();
                let volume = rng.random_range(0..self.model.sizes.len());
                let only = (rng.random_range(0..4) == 0).then(|| VolumeIndex(u16::try_from(volume).unwrap()));
                let from = self.e().journal.cursors().applied_ordinal;
                let row = RestoreRow::begun(point, target.to_string(), only, from);
                if !self.e().stands() {
                    // A container that a crash interrupted is applied first; nothing has changed.
                    let refused = self.e().restore(Work::Begin(row), 8, usize::MAX);
                    let unsettled = RestoreError::Snapshot(SnapshotError::Unsettled {
                        applied: from,
                        published: self.e().history().published(),
                    });
                    assert_eq!(refused.unwrap_err().to_string(), unsettled.to_string());
                    return Ok(());
                }
                self.model.restore = Some(Restored {
                    target: seq,
                    only,
                    before: self.model.stands.clone(),
                    phase: Phase::Running,
                });
                Work::Begin(row)
            }
            (Some(Phase::Done), Some(_)) => return Ok(()),
            (Some(_), Some(row)) => Work::GoOn(row),
            (phase, row) => panic!("the model says {phase:?}, the journal {row:?}"),
        };
        self.work(work, rng)
    }

    fn undo(&mut self, rng: &mut StdRng) -> Fallible {
        let row = self.e().journal.restore()?;
        match (&mut self.model.restore, row) {
            (None, None) => Ok(()),
            (Some(restore), Some(row)) => {
                let turned = restore.phase == Phase::Undoing;
                restore.phase = Phase::Undoing;
                let work = if turned {
                    Work::GoOn(row)
                } else {
                    Work::TurnRound(row)
                };
                self.work(work, rng)
            }
            (restore, row) => panic!("the model says {restore:?}, the journal {row:?}"),
        }
    }

    /// A run of a restore, which may lose patience.
    fn work(&mut self, work: Work, rng: &mut StdRng) -> Fallible {
        let container = [1, 3, 16, 64][rng.random_range(0..4)];
        let batches = if rng.random_range(0..4) == 0 {
            rng.random_range(0..6)
        } else {
            usize::MAX
        };
        match self.e().restore(work, container, batches) {
            Ok(_) if self.model.phase() == Some(Phase::Undoing) => {
                self.model.undone();
                self.counts.undone += 1;
            }
            Ok(_) => {
                self.model.restored();
                self.counts.restores += 1;
            }
            Err(RestoreError::Snapshot(SnapshotError::Stopped(_))) => {
                self.counts.stopped += 1;
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        }
        self.compare_replica();
        Ok(())
    }

    fn prune(&mut self, rng: &mut StdRng) -> Fallible {
        let m = &self.model;
        let to = match rng.random_range(0..3) {
            0 => m.applied,
            _ => m.durable,
        };
        if to <= m.wanted {
            return Ok(());
        }
        let seq = WriteSeq(rng.random_range(m.wanted.0..=to.0));
        let point = self.resolve(seq, &TargetKind::Seq(seq).into())?.point().clone();
        self.model.wanted = seq;
        self.counts.pruned += 1;
        self.e().prune(&point)
    }
}

fn same(found: &[u8], expected: &[u8], what: &dyn fmt::Display) {
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {:#x}, not {:#x}", found[at], expected[at]);
    }
    assert_eq!(found.len(), expected.len());
}
