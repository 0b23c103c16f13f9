//! Both hosts, the link between them and the oracle; what is done, what was promised, and what must hold after a crash.

mod keep;

use super::{
    hosts::{Fallible, Keeper, Production, Recovery, below, fill, grows, indexes, storage},
    link::Link,
};
use backstay::{
    context::sizes_at,
    restoring::{Replica, Work},
};
use bytes::Bytes;
use journal::{
    Journal, RestorePhase, RestoreRow,
    tap::{Request, VolumeChange},
};
use model::{
    BLOCK_SIZE, ByteRange, ContextState, GenId, Point, Record, RecordBody, Target, Timestamp, VolumeIndex,
    WriteSeq, ports::History, target::TargetKind,
};
use rand::{Rng, RngCore};
use snapshot::View;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use testkit::{
    Oracle, SimPower,
    sim::Tear,
    workload::{Operation, Shape, Workload, noise},
};

/// Blocks of a restore's container: few, so that a restore has many.
const CONTAINER_BLOCKS: usize = 3;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An application or operator works on production.
    Work,
    /// Production syncs its journal; who waited is answered.
    Sync,
    WriteBack,
    Checkpoint,
    Ingest,
    Drop,
    /// Production's journal is at its limit.
    Overflow,
    Bound,
    /// A volume grows on both hosts.
    Grow,
    /// Connects, or moves frames, copies and answers.
    Copy,
    Ship,
    HearB,
    HearA,
    /// The connection breaks.
    Cut,
    /// Recovery syncs its journal and acknowledges.
    Keep,
    Apply,
    View,
    Restore,
    Undo,
    Pin,
    Retain,
}

/// Steps with how often they come, as the clock of a random history.
pub const STEPS: [(Step, u32); 21] = [
    (Step::Work, 34),
    (Step::Sync, 8),
    (Step::WriteBack, 6),
    (Step::Checkpoint, 3),
    (Step::Ingest, 3),
    (Step::Drop, 2),
    (Step::Overflow, 1),
    (Step::Bound, 1),
    (Step::Grow, 1),
    (Step::Copy, 18),
    (Step::Ship, 18),
    (Step::HearB, 18),
    (Step::HearA, 14),
    (Step::Cut, 1),
    (Step::Keep, 6),
    (Step::Apply, 12),
    (Step::View, 4),
    (Step::Restore, 1),
    (Step::Undo, 2),
    (Step::Pin, 2),
    (Step::Retain, 3),
];

/// Draws a step.
pub fn draw(rng: &mut dyn RngCore) -> Step {
    let mut n = rng.random_range(0..STEPS.iter().map(|s| s.1).sum());
    for (step, weight) in STEPS {
        if n < weight {
            return step;
        }
        n -= weight;
    }
    unreachable!("the weights are summed")
}

pub struct World {
    sizes: Vec<u64>,
    pub a_power: SimPower,
    pub b_power: SimPower,
    a: Option<Production>,
    b: Option<Recovery>,
    link: Option<Link>,
    workload: Workload,
    oracle: Oracle,
    /// Newest record whose change was answered: survives a kill.
    answered: Arc<AtomicU64>,
    /// Newest record that a flush or FUA covered: survives a power cut.
    flushed: Arc<AtomicU64>,
    /// Marks that were answered.
    marks: Vec<(String, WriteSeq)>,
    /// What recovery acknowledged or would: its journal never goes back behind this.
    kept: WriteSeq,
    pins: keep::Pins,
    /// Production's power was cut since it was up last: only what was flushed is promised, whatever else happened.
    was_cut: bool,
    crashes: u32,
    counts: Counts,
    /// What was done, for whoever looks for the cause of a failure.
    trace: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.trace.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// What a history has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub crashes: u32,
    pub views: u32,
    pub restores: u32,
    pub applied: u32,
    pub copies: u32,
    pub overflows: u32,
    pub jumps: u32,
    pub retained: u32,
    pub grown: u32,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, o: Self) {
        self.crashes += o.crashes;
        self.views += o.views;
        self.restores += o.restores;
        self.applied += o.applied;
        self.copies += o.copies;
        self.overflows += o.overflows;
        self.jumps += o.jumps;
        self.retained += o.retained;
        self.grown += o.grown;
    }
}

impl World {
    /// Two machines with volumes of these sizes; production's hold something already.
    pub fn new(sizes: &[u64], shape: Shape, rng: &mut dyn RngCore) -> Self {
        let (a_power, b_power) = (SimPower::new(), SimPower::new());
        for power in [&a_power, &b_power] {
            power.set_tear([Tear::Sector, Tear::Byte, Tear::Bit][rng.random_range(0..3)]);
        }
        let mut oracle = Oracle::new(sizes);
        for (volume, size) in indexes(sizes) {
            let at = rng.random_range(0..size / 2);
            let data = noise(rng.random_range(1..size / 2), rng);
            oracle.write(WriteSeq(0), Timestamp(0), volume, at, &data);
            fill(&a_power, sizes, |v| (v == volume).then(|| (at, data.clone())));
        }
        fill(&b_power, sizes, |_| None);
        Self {
            sizes: sizes.to_vec(),
            a_power,
            b_power,
            a: None,
            b: None,
            link: None,
            workload: Workload::new(sizes, shape),
            oracle,
            answered: Arc::default(),
            flushed: Arc::default(),
            marks: Vec::new(),
            pins: keep::Pins::default(),
            kept: WriteSeq(0),
            was_cut: false,
            crashes: 0,
            counts: Counts::default(),
            trace: Vec::new(),
        }
    }

    /// The same with both journals in real files and the real store, on file systems that lose what was not synced.
    #[must_use]
    pub fn below(self) -> Self {
        for power in [&self.a_power, &self.b_power] {
            below(power);
        }
        self
    }

    pub fn counts(&self) -> Counts {
        Counts {
            crashes: self.crashes,
            ..self.counts
        }
    }

    /// Does a step; a host whose power went away in it is booted again and looked at.
    pub fn step(&mut self, step: Step, rng: &mut dyn RngCore) {
        let done = self.boot_both(rng).and_then(|()| self.act(step, rng));
        self.note(step, done.is_err());
        if let Err(e) = done {
            assert!(
                self.a_power.is_off() || self.b_power.is_off(),
                "{step:?} failed with the power on: {e:#}"
            );
        }
        self.mourn(rng);
    }

    fn note(&mut self, step: Step, failed: bool) {
        let cursors = |journal: Option<&Arc<Journal>>| {
            journal.map_or("down".to_owned(), |j| {
                let c = j.cursors();
                let [a, d, w, p] = [c.appended, c.durable, c.checkpointed, c.applied].map(|s| s.0);
                format!("{a}/{d}/{w}/{p} ordinal {}/{}", c.applied_ordinal, c.published)
            })
        };
        let a = cursors(self.a.as_ref().map(|a| &a.journal));
        let b = cursors(self.b.as_ref().map(|b| &b.journal));
        let from = self.b.as_ref().and_then(Recovery::consistent_from);
        let failed = if failed { " failed" } else { "" };
        self.trace.push(format!(
            "{step:?}{failed}: production {a}, recovery {b}, consistent from {from:?}"
        ));
    }

    /// Restarts whoever lost power.
    fn mourn(&mut self, rng: &mut dyn RngCore) {
        if self.a_power.is_off() {
            self.crash(true, rng);
        }
        if self.b_power.is_off() {
            self.crash(false, rng);
        }
    }

    /// Cuts the power of a host, or kills its process.
    pub fn crash(&mut self, production: bool, rng: &mut dyn RngCore) {
        self.crashes += 1;
        self.link = None;
        let killed = rng.random_bool(0.25);
        self.trace.push(format!(
            "{} of {}",
            if killed { "kill" } else { "power cut" },
            if production { "production" } else { "recovery" }
        ));
        let power = if production { &self.a_power } else { &self.b_power };
        match killed {
            true => power.kill(rng),
            false => power.cut(rng),
        }
        if production {
            self.was_cut |= !killed;
            self.a = None;
        } else {
            self.b = None;
        }
    }

    fn boot_both(&mut self, rng: &mut dyn RngCore) -> Fallible {
        if self.a.is_none() {
            let a = Production::boot(&self.a_power, &self.sizes)?;
            self.look_at_production(&a)?;
            self.a = Some(a);
        }
        if self.b.is_none() {
            let b = Recovery::boot(&self.b_power, &self.sizes)?;
            let c = b.journal.cursors();
            assert!(
                c.durable >= self.kept,
                "recovery lost {} of {}",
                c.durable,
                self.kept
            );
            assert!(c.applied <= c.durable);
            self.b = Some(b);
            self.pins_after_boot()?;
            self.go_on_restoring(rng)?;
        }
        Ok(())
    }

    /// After a boot: nothing that was promised is lost, and volume and replay are the journal's head.
    fn look_at_production(&mut self, a: &Production) -> Fallible {
        let c = a.journal.cursors();
        let promised = if self.was_cut {
            &self.flushed
        } else {
            &self.answered
        };
        let promised = WriteSeq(promised.load(Ordering::Relaxed));
        self.was_cut = false;
        assert!(
            c.appended >= promised,
            "{promised} was promised, {} is there",
            c.appended
        );
        assert_eq!((c.durable, c.checkpointed), (c.appended, c.appended));
        if self.oracle.head() == WriteSeq(0) {
            let birth = RecordBody::Birth {
                parent: None,
                parent_digest: [0; 32],
            };
            self.record(WriteSeq(1), birth);
        }
        assert!(c.appended <= self.oracle.head(), "records that nobody wrote");
        self.oracle.truncate(c.appended);
        self.answered.store(c.appended.0, Ordering::Relaxed);
        self.flushed.store(c.appended.0, Ordering::Relaxed);
        self.marks.retain(|m| m.1 <= c.appended);
        for (name, seq) in &self.marks {
            let there = a.journal.marks().iter().any(|m| m.name == *name && m.seq == *seq);
            assert!(there, "mark {name} at {seq} is gone");
        }
        for (index, v) in a.volumes.iter() {
            let size = self.oracle.size(index, c.appended);
            assert_eq!(a.journal.size_now(index).unwrap_or(v.size()), size);
            self.workload.resize(index, size);
            let mut read = |_, at, out: &mut [u8]| v.medium().read_at(at, out);
            let whole = ByteRange::at(0, size);
            let same = self.oracle.compare_range(c.appended, index, whole, &mut read);
            same.unwrap_or_else(|e| panic!("volume and replay: {e}"));
        }
        assert!(self.kept <= c.durable, "the peer holds what production does not");
        Ok(())
    }

    fn record(&mut self, seq: WriteSeq, body: RecordBody) {
        let time = Timestamp(seq.0);
        let volume = VolumeIndex(0);
        self.oracle.record(&Record {
            seq,
            time,
            volume,
            body,
        });
    }

    fn act(&mut self, step: Step, rng: &mut dyn RngCore) -> Fallible {
        match step {
            Step::Work => self.work(rng),
            Step::Sync => self.a().tap.sync_once().map(drop).map_err(Into::into),
            Step::WriteBack => self.a().write_back(rng.random_range(1..100_000)),
            Step::Checkpoint => self.a().checkpoint(),
            Step::Ingest => self.a().journal.ingest_sealed().map(drop).map_err(Into::into),
            Step::Drop => self.a().drop_applied(),
            Step::Overflow => {
                let before = self.a().journal.floors().redo_seq;
                let done = self.a().give_way(rng.random_range(1..4));
                self.counts.overflows += u32::from(self.a().journal.floors().redo_seq != before);
                done
            }
            Step::Bound => {
                self.a().journal.raise_bound()?;
                Ok(self.b().journal.raise_bound()?)
            }
            Step::Grow => self.grow(rng),
            Step::Cut => {
                self.link = None;
                Ok(())
            }
            Step::Copy | Step::Ship | Step::HearA | Step::HearB => self.stream(step, rng.random_range(1..6)),
            Step::Keep => self.keep(),
            Step::Apply => self.apply(),
            Step::View => self.look_back(rng),
            Step::Restore => self.restore(rng),
            Step::Undo => self.undo(),
            Step::Pin => self.pin(rng),
            Step::Retain => self.retain(rng),
        }
    }

    fn a(&self) -> &Production {
        self.a.as_ref().expect("production is up")
    }

    pub fn b(&self) -> &Recovery {
        self.b.as_ref().expect("recovery is up")
    }

    /// Hands one change or flush in. What is answered counts as promised.
    fn submit(&mut self, change: Option<VolumeChange>, durable: bool) -> Fallible {
        let before = self.a().journal.cursors().appended;
        let seq = if change.is_some() { before.next() } else { before };
        let is_change = change.is_some();
        let (answered, flushed) = (Arc::clone(&self.answered), Arc::clone(&self.flushed));
        let failed = Arc::new(AtomicU64::new(0));
        let fault = Arc::clone(&failed);
        let done = Box::new(move |result: Result<(), _>| match result {
            Ok(()) => {
                answered.fetch_max(seq.0, Ordering::Relaxed);
                if durable {
                    flushed.fetch_max(seq.0, Ordering::Relaxed);
                }
            }
            Err(_) => fault.store(1, Ordering::Relaxed),
        });
        self.a().tap.submit(vec![Request {
            change: change.clone(),
            durable,
            done,
        }]);
        let after = self.a().journal.cursors().appended;
        assert!(after == before || (is_change && after == seq));
        // What was appended may be found after a crash, answered or not.
        if after > before
            && let Some(change) = change
        {
            let time = Timestamp(seq.0);
            match change {
                VolumeChange::Write { volume, offset, data } => {
                    self.oracle.write(seq, time, volume, offset, &data);
                }
                VolumeChange::Zero { volume, range, .. } => self.oracle.zero(seq, time, volume, range),
            }
        }
        if failed.load(Ordering::Relaxed) == 1 {
            anyhow::bail!("a request was answered with an error");
        }
        Ok(())
    }

    fn work(&mut self, rng: &mut dyn RngCore) -> Fallible {
        match self.workload.next(rng) {
            Operation::Write {
                volume,
                offset,
                len,
                fua,
            } => {
                let data: Bytes = noise(len, rng);
                self.submit(Some(VolumeChange::Write { volume, offset, data }), fua)?;
                let range = ByteRange::at(offset, len);
                let head = self.oracle.head();
                let tap = &self.a().tap;
                let mut read = |v, at, out: &mut [u8]| tap.read(v, at, out).map_err(io::Error::other);
                if let Err(e) = self.oracle.compare_range(head, volume, range, &mut read) {
                    assert!(self.a_power.is_off(), "what was just written: {e}");
                }
                Ok(())
            }
            Operation::Zero { volume, range } => {
                let discard = false;
                self.submit(
                    Some(VolumeChange::Zero {
                        volume,
                        range,
                        discard,
                    }),
                    false,
                )
            }
            Operation::Discard { volume, range } => {
                let discard = true;
                self.submit(
                    Some(VolumeChange::Zero {
                        volume,
                        range,
                        discard,
                    }),
                    false,
                )
            }
            Operation::Flush => self.submit(None, true),
            Operation::Seal => self.a().tap.seal_now().map(drop).map_err(Into::into),
            Operation::Mark(name) => {
                let seq = self.a().journal.cursors().appended.next();
                let done = self.a().tap.mark(name.clone(), String::new());
                if self.a().journal.cursors().appended == seq {
                    self.oracle.mark(seq, Timestamp(seq.0), &name);
                }
                let (record, row) = done?;
                assert_eq!(
                    (record.seq, row.last_seq),
                    (seq, seq),
                    "a mark ends its container"
                );
                self.marks.push((name, seq));
                self.flushed.fetch_max(seq.0, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// As the operator's command does.
    fn grow(&mut self, rng: &mut dyn RngCore) -> Fallible {
        let head = self.oracle.head();
        let room = |(index, size): &(VolumeIndex, u64)| self.oracle.size(*index, head) < storage(*size);
        let Some((index, size)) = indexes(&self.sizes).find(room) else {
            return Ok(());
        };
        let now = self.oracle.size(index, head);
        let blocks = rng.random_range(1..=3);
        let wanted = (now + blocks * BLOCK_SIZE).min(storage(size));
        grows(&self.b().journal, &self.b().volumes, index, wanted)?;
        grows(&self.a().journal, &self.a().volumes, index, wanted)?;
        let before = self.a().journal.cursors().appended;
        let done = self.a().tap.resize(index, wanted);
        if self.a().journal.cursors().appended > before {
            let seq = before.next();
            self.oracle.resize(seq, Timestamp(seq.0), index, wanted);
            self.workload.resize(index, wanted);
        }
        let seq = done?;
        self.flushed.fetch_max(seq.0, Ordering::Relaxed);
        self.counts.grown += 1;
        Ok(())
    }

    fn stream(&mut self, step: Step, times: u32) -> Fallible {
        let before = self.a().journal.cursors().appended;
        let done = self.stream_some(step, times);
        // The stub of a copy takes a position, whatever became of the copy; so do sizes that are told again.
        for seq in before.0 + 1..=self.a().journal.cursors().appended.0 {
            let body = RecordBody::Copy {
                range: ByteRange::at(0, 0),
                digest: [0; 32],
            };
            self.record(WriteSeq(seq), body);
        }
        done
    }

    fn stream_some(&mut self, step: Step, times: u32) -> Fallible {
        let (a, b) = (self.a.as_ref().expect("up"), self.b.as_ref().expect("up"));
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(Link::connect(a, b)?),
        };
        let (jumps, copied) = (std::mem::take(&mut link.jumps), link.copied.len());
        self.counts.jumps += jumps;
        for _ in 0..times {
            match step {
                Step::Copy => link.copy(a)?,
                Step::Ship => drop(link.pump(a)?),
                Step::HearA => drop(link.hear_a(a)?),
                _ => drop(link.hear_b(b)?),
            }
        }
        self.counts.copies += u32::try_from(link.copied.len() - copied)?;
        Ok(())
    }

    fn keep(&mut self) -> Fallible {
        let b = self.b.as_ref().expect("up");
        let durable = b.journal.sync()?;
        self.kept = self.kept.max(durable);
        match &mut self.link {
            Some(link) => link.moved(b),
            None => Ok(()),
        }
    }

    fn apply(&mut self) -> Fallible {
        if self.b().apply_next()? {
            self.counts.applied += 1;
        }
        self.kept = self.kept.max(self.b().journal.cursors().durable);
        self.look_at_replica();
        Ok(())
    }

    /// Recovery's volumes are a prefix of production's order: exactly the one that its cursors name, or a restore.
    pub fn look_at_replica(&self) {
        let b = self.b();
        let applied = b.journal.cursors().applied;
        let (target, only) = match b.journal.restore().unwrap() {
            Some(row) if row.phase == RestorePhase::Done => (row.target.seq, row.only),
            Some(_) => return,
            None => (applied, None),
        };
        if !b.is_settled() {
            return;
        }
        let restored = b.journal.restore().unwrap().is_some();
        for (index, _) in indexes(&self.sizes) {
            let at = match only {
                Some(only) if only != index => None,
                _ if restored => Some(target),
                _ => None,
            };
            // Between a gap and the last copy the volumes are no point of the line.
            let Some(at) = at.or(b.stands().then_some(applied)) else {
                continue;
            };
            let mut read = |v, at, out: &mut [u8]| b.volumes.read(v, at, out).map_err(io::Error::other);
            let whole = ByteRange::at(0, self.oracle.size(index, at));
            let same = self.oracle.compare_range(at, index, whole, &mut read);
            same.unwrap_or_else(|e| panic!("the replica at {at}: {e}"));
        }
    }

    /// A point of the window, drawn.
    fn point(&self, rng: &mut dyn RngCore) -> Option<Point> {
        let b = self.b();
        let c = b.journal.cursors();
        let spans = b.spans();
        let (from, until) = *spans.get(rng.random_range(0..spans.len().max(1)))?;
        let newest = spans.last().map(|s| s.1)?;
        let oldest = self.oldest()?;
        let kind = match rng.random_range(0..4) {
            0 => TargetKind::Latest,
            1 => {
                let shown = |m: &&(String, WriteSeq)| from.max(oldest) <= m.1 && m.1 <= until;
                let marks: Vec<_> = self.marks.iter().filter(shown).collect();
                let (name, _) = marks.get(rng.random_range(0..marks.len().max(1)))?;
                TargetKind::Mark(name.clone())
            }
            _ => TargetKind::Seq(WriteSeq(rng.random_range(from.0..=until.0))),
        };
        let seq = match &kind {
            TargetKind::Seq(seq) => *seq,
            TargetKind::Mark(name) => self.oracle.mark_at(name)?,
            _ => newest,
        };
        if seq < oldest {
            self.refuses(seq);
            return None;
        }
        let target = Target::from(kind);
        let resolved = b.journal.resolve(&target, Timestamp(u64::MAX));
        let point = resolved
            .unwrap_or_else(|e| panic!("{target} of {spans:?} from {oldest} up to {}: {e}", c.durable))
            .point;
        assert_eq!(point.seq, seq, "{target}");
        Some(point)
    }

    fn look_back(&mut self, rng: &mut dyn RngCore) -> Fallible {
        for _ in 0..3 {
            let Some(point) = self.point(rng) else {
                return Ok(());
            };
            self.compare_view(point)?;
            self.counts.views += 1;
        }
        Ok(())
    }

    /// The view at a point is the prefix of production's order that ends there.
    pub fn compare_view(&self, point: Point) -> Fallible {
        let b = self.b();
        let at = point.seq;
        let history: Arc<dyn History> = Arc::clone(&b.journal) as Arc<dyn History>;
        let sizes = sizes_at(&b.journal, &b.volumes, &point);
        for (index, size) in &sizes {
            assert_eq!(*size, self.oracle.size(*index, at), "the size at {at}");
        }
        let view = View::new(point, sizes, b.volumes.clone(), history)?;
        let mut read = |v, at, out: &mut [u8]| view.read(v, at, out).map_err(io::Error::other);
        let same = self.oracle.compare(at, &mut read);
        same.unwrap_or_else(|e| panic!("the view at {at}: {e}"));
        Ok(())
    }

    fn restore(&mut self, rng: &mut dyn RngCore) -> Fallible {
        let b = self.b();
        let applied = b.journal.cursors().applied_ordinal;
        if b.state()? != ContextState::Enabled || applied != b.journal.published() {
            return Ok(());
        }
        let Some(target) = self.point(rng) else {
            return Ok(());
        };
        let only = rng.random_bool(0.3).then_some(VolumeIndex(0));
        let row = RestoreRow::begun(target, "drawn".into(), only, applied);
        self.execute(Work::Begin(row))
    }

    /// After a boot: a restore that was under way goes on, or is turned round.
    fn go_on_restoring(&mut self, rng: &mut dyn RngCore) -> Fallible {
        match self.b().journal.restore()? {
            Some(row) if row.phase == RestorePhase::Running => {
                if row.undo_from.is_none() && rng.random_bool(0.4) {
                    return self.execute(Work::TurnRound(row));
                }
                self.execute(Work::GoOn(row))
            }
            _ => Ok(()),
        }
    }

    fn undo(&mut self) -> Fallible {
        match self.b().journal.restore()? {
            Some(row) => self.execute(Work::TurnRound(row)),
            None => Ok(()),
        }
    }

    fn execute(&mut self, work: Work) -> Fallible {
        let b = self.b();
        let replica = Replica {
            journal: &b.journal,
            volumes: &b.volumes,
            container_blocks: CONTAINER_BLOCKS,
        };
        let mut keeper = Keeper {
            journal: &b.journal,
            room: u64::MAX,
        };
        replica.run(work, &mut keeper)?;
        self.counts.restores += 1;
        self.look_at_replica();
        Ok(())
    }

    /// Whether the replica was consistent and waits for copies.
    pub fn is_amid_copies(&self) -> bool {
        let spans = self.b.as_ref().map_or(Vec::new(), |b| b.journal.consistent());
        spans.last().is_some_and(|s| s.until.is_some())
    }

    /// Everything comes to its end: all is written back, shipped and applied; both volumes are the head.
    pub fn settle(&mut self, rng: &mut dyn RngCore) {
        self.a_power.never_freeze();
        self.b_power.never_freeze();
        self.mourn(rng);
        for step in [Step::Undo, Step::Sync, Step::Copy] {
            self.step(step, rng);
        }
        for round in 0.. {
            assert!(round < 10_000, "the stream does not come to its end");
            for step in [
                Step::Copy,
                Step::Sync,
                Step::Ship,
                Step::HearB,
                Step::Keep,
                Step::Apply,
                Step::HearA,
            ] {
                self.step(step, rng);
            }
            let (a, b) = (self.a().journal.cursors(), self.b().journal.cursors());
            if self.link.as_ref().is_some_and(Link::rests) && b.durable == a.appended {
                break;
            }
        }
        self.a().tap.seal_now().unwrap();
        for round in 0.. {
            assert!(round < 1_000, "applying does not come to its end");
            for step in [Step::Ship, Step::HearB, Step::Keep, Step::Apply, Step::HearA] {
                self.step(step, rng);
            }
            if self.b().journal.cursors().applied == self.a().journal.cursors().appended {
                break;
            }
        }
        assert!(self.b().stands(), "the first sync is complete");
        self.look_at_replica();
        self.step(Step::View, rng);
        let head = self.oracle.head();
        self.a().write_back(u64::MAX).unwrap();
        self.a().checkpoint().unwrap();
        let volumes = &self.a().volumes;
        let mut read = |v, at, out: &mut [u8]| volumes.read(v, at, out).map_err(io::Error::other);
        let same = self.oracle.compare(head, &mut read);
        same.unwrap_or_else(|e| panic!("production's volumes: {e}"));
        assert_eq!(self.a().journal.current_generation().unwrap().id, GenId(7));
    }
}

/// Tells others to end when it goes, also by a panic: a scope that waits for them would hang.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
