//! One history: each operation done by both sides, and compared.

use super::{
    engine::{Engine, NOW, OVERLAY_BLOCKS, time_of},
    hosts::Fallible,
    model::{Model, Phase, Restored, Snapshot},
    ops::{Kind, Op},
};
use backstay::restoring::{RestoreError, Work};
use journal::{Cursors, Draft, ResolveError, RestorePhase, RestoreRow};
use model::{
    BLOCK_SIZE, ByteRange, LfcId, RecordBody, Target, Timestamp, VolumeIndex, WriteSeq, target::TargetKind,
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use snapshot::{SnapshotError, View};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
};
use testkit::{SimPower, sim::Tear};

/// Operations that a failure shows.
const SHOWN: usize = 40;

/// Most snapshots at once.
const SNAPSHOTS_MAX: usize = 6;

/// What histories have shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub operations: u64,
    pub records: u64,
    pub applied: u64,
    pub looks: u64,
    pub views: u64,
    pub snapshots: u64,
    pub restores: u64,
    pub stopped: u64,
    pub undone: u64,
    pub pruned: u64,
    pub gone: u64,
    pub crashes: u64,
}

impl Counts {
    /// Whether every part was tried often enough to say anything.
    pub fn is_rich(&self) -> bool {
        let often = [
            self.crashes,
            self.restores,
            self.undone,
            self.stopped,
            self.pruned,
            self.gone,
        ];
        self.operations >= 1_000_000 && self.looks >= 100_000 && often.iter().all(|n| *n >= 300)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, o: Self) {
        self.operations += o.operations;
        self.records += o.records;
        self.applied += o.applied;
        self.looks += o.looks;
        self.views += o.views;
        self.snapshots += o.snapshots;
        self.restores += o.restores;
        self.stopped += o.stopped;
        self.undone += o.undone;
        self.pruned += o.pruned;
        self.gone += o.gone;
        self.crashes += o.crashes;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations: {} records, {} containers applied, {} reads of moments, {} whole moments, {} snapshots, \
             {} restores, {} of them stopped, {} undone, {} prunes, {} moments refused because pruned, {} crashes",
            self.operations,
            self.records,
            self.applied,
            self.looks,
            self.views,
            self.snapshots,
            self.restores,
            self.stopped,
            self.undone,
            self.pruned,
            self.gone,
            self.crashes
        )
    }
}

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

    /// A moment that can be had, and some name of it.
    fn moment(&self, rng: &mut dyn RngCore) -> Option<(WriteSeq, Target)> {
        let m = &self.model;
        let (from, to) = (m.wanted.0, m.durable.0);
        if from > to {
            return None;
        }
        let seq = match rng.random_range(0..5) {
            0 => rng.random_range(from..=to),
            1 => from + rng.random_range(0..=(to - from).min(20)),
            2 => (m.applied.0 + rng.random_range(0..4)).clamp(from, to),
            _ => to - rng.random_range(0..=(to - from).min(60)),
        };
        let seq = WriteSeq(seq);
        let nearest = |ends: &mut dyn Iterator<Item = (TargetKind, WriteSeq)>| {
            ends.filter(|(_, s)| (from..=to).contains(&s.0))
                .min_by_key(|(_, s)| s.0.abs_diff(seq.0))
        };
        let named = match rng.random_range(0..8) {
            0 => Some((TargetKind::Latest, WriteSeq(to))),
            1 => {
                let lfcs = m.oracle.lfcs().iter();
                nearest(&mut lfcs.map(|(lfc, end)| (TargetKind::Lfc(*lfc), *end)))
            }
            2 => {
                let marks = m.oracle.marks().iter();
                nearest(&mut marks.map(|(name, at)| (TargetKind::Mark(name.clone()), *at)))
            }
            3 => {
                let within = rng.random_range(0..20_000_000);
                let time = Timestamp(m.oracle.time_of(seq)?.0 + within);
                let at = m.oracle.at_time(time).min(m.durable);
                // The name of a whole second may mean a mark in it.
                (!time.0.is_multiple_of(Timestamp::SECOND_NS)).then_some((TargetKind::Time(time), at))
            }
            _ => Some((TargetKind::Seq(seq), seq)),
        };
        named.map(|(kind, seq)| (seq, Target::from(kind)))
    }

    fn resolve(&self, seq: WriteSeq, target: &Target) -> Fallible<View> {
        let point = match self.e().journal.resolve(target, NOW) {
            Ok(resolved) => resolved.point,
            Err(e @ ResolveError::Journal(_)) => return Err(e.into()),
            Err(e) => panic!("{target}, which is {seq} and wanted: {e}"),
        };
        assert_eq!(point.seq, seq, "{target}");
        self.e().view(point)
    }

    fn look(&mut self, rng: &mut StdRng) -> Fallible {
        if rng.random_range(0..12) == 0 {
            return self.look_behind(rng);
        }
        let Some((seq, target)) = self.moment(rng) else {
            return Ok(());
        };
        let view = self.resolve(seq, &target)?;
        self.compare(&view, seq, rng)
    }

    /// A moment that nobody wants any more is refused, or exact.
    fn look_behind(&mut self, rng: &mut StdRng) -> Fallible {
        let seq = WriteSeq(rng.random_range(1..=self.model.wanted.0));
        if seq > self.model.durable {
            return Ok(());
        }
        match self.e().journal.resolve(&TargetKind::Seq(seq).into(), NOW) {
            Ok(resolved) => {
                let view = self.e().view(resolved.point)?;
                self.compare(&view, seq, rng)
            }
            Err(e @ ResolveError::Journal(_)) => Err(e.into()),
            Err(_) => {
                assert!(seq < self.model.wanted, "{seq} is wanted");
                self.counts.gone += 1;
                Ok(())
            }
        }
    }

    /// Some bytes of a view, and what it says of zeroes.
    fn compare(&mut self, view: &View, seq: WriteSeq, rng: &mut StdRng) -> Fallible {
        self.counts.looks += 1;
        let (volume, range) = self.range(9_000, rng);
        let expected = self.model.oracle.bytes(volume, range, seq);
        let mut found = vec![0xEE; expected.len()];
        view.read(volume, range.start, &mut found)?;
        same(
            &found,
            &expected,
            &format_args!("{volume:?} {range:?} as of {seq}"),
        );
        if rng.random_range(0..4) == 0 {
            let mut at = range.start;
            for extent in view.extents(volume, range)? {
                assert_eq!(extent.range.start, at, "extents follow each other");
                at = extent.range.end;
                let part = self.model.oracle.bytes(volume, extent.range, seq);
                assert!(
                    !extent.zero || part.iter().all(|b| *b == 0),
                    "{extent:?} as of {seq} is not zero"
                );
            }
            assert_eq!(at, range.end, "extents cover what was asked for");
        }
        Ok(())
    }

    fn whole(&mut self, rng: &mut StdRng) -> Fallible {
        let Some((seq, target)) = self.moment(rng) else {
            return Ok(());
        };
        self.counts.views += 1;
        let view = self.resolve(seq, &target)?;
        let mut failed = None;
        let mut read = |v, at, out: &mut [u8]| {
            view.read(v, at, out).map_err(|e| {
                failed = Some(e.to_string());
                io::Error::other("the view")
            })
        };
        let compared = self.model.oracle.compare(seq, &mut read);
        if let Some(e) = failed {
            anyhow::bail!(e);
        }
        compared.unwrap_or_else(|e| panic!("the view at {seq}: {e}"));
        Ok(())
    }

    /// The replica itself, and `restored`, which names it.
    fn replica(&mut self, rng: &mut StdRng) -> Fallible {
        let restored = self.e().journal.resolve(&TargetKind::Restored.into(), NOW);
        let (volume, range) = self.range(9_000, rng);
        let expected = |at| self.model.oracle.bytes(volume, range, at);
        let at = self.model.stands[usize::from(volume.0)];
        match restored {
            Ok(resolved) => {
                assert_eq!(self.model.phase(), Some(Phase::Done));
                let mut found = vec![0xEE; usize::try_from(range.len()).unwrap()];
                self.e()
                    .view(resolved.point)?
                    .read(volume, range.start, &mut found)?;
                same(
                    &found,
                    &expected(at),
                    &format_args!("restored {volume:?} {range:?} at {at}"),
                );
            }
            Err(ResolveError::NotRestored) => assert_ne!(self.model.phase(), Some(Phase::Done)),
            Err(e) => return Err(e.into()),
        }
        let between = matches!(self.model.phase(), Some(Phase::Running | Phase::Undoing));
        if !between && self.e().stands() {
            let found = self.e().replica(volume, range)?;
            same(
                &found,
                &expected(at),
                &format_args!("replica {volume:?} {range:?} at {at}"),
            );
        }
        Ok(())
    }

    fn compare_replica(&self) {
        let volumes = &self.e().volumes;
        for ((volume, v), at) in volumes.iter().zip(&self.model.stands) {
            let mut read = |_, at, out: &mut [u8]| v.medium().read_at(at, out);
            let whole = ByteRange::at(0, self.model.sizes[usize::from(volume.0)]);
            let same = self.model.oracle.compare_range(*at, volume, whole, &mut read);
            same.unwrap_or_else(|e| panic!("the replica at {at}: {e}"));
        }
    }

    fn window(&self) -> Fallible {
        let m = &self.model;
        if m.durable < m.wanted {
            return Ok(());
        }
        let window = match self.e().journal.window(None) {
            Ok(window) => window,
            Err(e @ ResolveError::Journal(_)) => return Err(e.into()),
            Err(e) => panic!("no window, but {}..={} is wanted: {e}", m.wanted, m.durable),
        };
        assert_eq!(window.newest.at.seq, m.durable, "{window:?}");
        assert!(window.oldest.at.seq <= m.wanted, "{window:?}");
        let gaps = |g: &journal::Gap| g.to.at.seq <= m.wanted;
        assert!(
            window.gaps.iter().all(gaps),
            "{window:?} with {} wanted",
            m.wanted
        );
        let marks: BTreeSet<&str> = window.marks.iter().map(|m| m.name.as_str()).collect();
        for (name, at) in m.oracle.marks() {
            let there = marks.contains(name.as_str());
            assert!(
                there || *at < m.wanted || *at > m.durable,
                "{name} is not in {window:?}"
            );
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

    /// The power went away, or the process was killed; it starts again, and what was promised is there.
    fn crash(&mut self, during: Kind, rng: &mut StdRng) {
        self.counts.crashes += 1;
        self.engine = None;
        loop {
            let killed = during == Kind::Restart || rng.random_range(0..4) == 0;
            self.was_cut |= !killed;
            match killed {
                true => self.power.kill(rng),
                false => self.power.cut(rng),
            }
            if rng.random_range(0..8) == 0 {
                self.power.freeze_at(rng.random_range(1..12));
            }
            match Engine::boot(&self.power, &self.model.sizes) {
                Ok(engine) => {
                    self.engine = Some(engine);
                    break;
                }
                Err(e) => assert!(self.power.is_off(), "it does not start: {e:#}"),
            }
        }
        self.power.never_freeze();
        self.adopt_journal(during);
        self.adopt_restore(during);
        self.adopt_snapshots(during);
        self.was_cut = false;
        // Before anything that was interrupted goes on, every moment is what it was.
        for _ in 0..3 {
            self.look(rng).unwrap();
        }
        self.window().unwrap();
    }

    fn adopt_journal(&mut self, during: Kind) {
        let c = self.e().journal.cursors();
        let m = &mut self.model;
        let promised = if self.was_cut { m.durable } else { self.answered };
        assert!(
            c.appended >= promised,
            "{} is there, {promised} was promised",
            c.appended
        );
        assert!(c.appended <= m.oracle.head(), "records that nobody wrote");
        assert_eq!(c.durable, c.appended, "what was read again is durable");
        m.oracle.truncate(c.appended);
        m.durable = c.appended;
        self.answered = c.appended;
        let rows: BTreeMap<LfcId, WriteSeq> = {
            let rows = self.engine.as_ref().expect("it is up").journal.lfc_rows(..);
            rows.iter().map(|row| (row.lfc, row.last_seq)).collect()
        };
        for (lfc, end) in m.oracle.lfcs() {
            let there = rows.get(lfc).copied();
            assert!(
                there == Some(*end) || *end < m.wanted,
                "container {lfc} to {end}: {there:?}"
            );
        }
        for (lfc, end) in rows {
            m.oracle.seal(lfc, end);
        }
        if c.applied != m.applied {
            assert_eq!((during, Some(c.applied)), (Kind::Apply, m.next_end()));
            m.apply(c.applied);
            self.counts.applied += 1;
        }
    }

    fn adopt_restore(&mut self, during: Kind) {
        let row = self.e().journal.restore().unwrap();
        let found = row.map(|row| match (row.phase, row.undo_from) {
            (RestorePhase::Done, _) => Phase::Done,
            (RestorePhase::Running, None) => Phase::Running,
            (RestorePhase::Running, Some(_)) => Phase::Undoing,
        });
        let in_doubt = matches!(during, Kind::Restore | Kind::Undo);
        let was = self.model.phase();
        match (was, found) {
            (was, found) if was == found => {}
            (was, found) if !in_doubt => panic!("the restore was {was:?} and is {found:?}"),
            (Some(Phase::Running), None) => self.model.restore = None,
            (Some(Phase::Running), Some(Phase::Done)) => self.model.restored(),
            (Some(Phase::Undoing), None) => self.model.undone(),
            // The turn was not durable.
            (Some(Phase::Undoing), Some(phase)) => {
                self.model.restore.as_mut().expect("it is undoing").phase = phase;
            }
            (was, found) => panic!("the restore was {was:?} and is {found:?}"),
        }
    }

    fn adopt_snapshots(&mut self, during: Kind) {
        let engine = self.engine.as_ref().expect("it is up");
        let kept: BTreeSet<u64> = engine.snapshots.keys().copied().collect();
        let known: BTreeSet<u64> = self.model.snapshots.keys().copied().collect();
        let doubtful: Vec<u64> = known.symmetric_difference(&kept).copied().collect();
        let in_doubt = matches!(during, Kind::Snapshot | Kind::Release);
        assert!(
            doubtful.is_empty() || (in_doubt && doubtful.len() == 1 && kept.is_subset(&known)),
            "pins {doubtful:?} came or went"
        );
        doubtful
            .iter()
            .for_each(|id| drop(self.model.snapshots.remove(id)));
        for (id, snapshot) in &mut self.model.snapshots {
            let vdev = &engine.snapshots[id];
            // What was not flushed is there or not, as on any disk; only a flush says that it stays so.
            for key in snapshot.unflushed.clone() {
                let mut block = [0; BLOCK_SIZE as usize];
                let size = self.model.sizes[usize::from(key.0.0)];
                let len = (size - key.1.start()).min(BLOCK_SIZE);
                let block_part = &mut block[..usize::try_from(len).unwrap()];
                vdev.read(key.0, key.1.start(), block_part).unwrap();
                snapshot.written.insert(key, block);
            }
        }
    }
}

fn same(found: &[u8], expected: &[u8], what: &dyn fmt::Display) {
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {:#x}, not {:#x}", found[at], expected[at]);
    }
    assert_eq!(found.len(), expected.len());
}
