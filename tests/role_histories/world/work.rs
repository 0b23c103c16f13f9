//! What applications do, and what journals do by themselves.

use super::{Fallible, GROWING, Side, World};
use crate::{
    host::Up,
    hosts::{Production, grows, storage},
};
use backstay::{
    applying::acting::builds_undo,
    context::{extent_of, owed_to_peer, zero_rest},
    roles::Standing,
};
use bytes::Bytes;
use journal::{
    Space, Wanted,
    tap::{Request, VolumeChange},
};
use model::{BLOCK_SIZE, ByteRange, Role, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, RngCore};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};
use testkit::workload::{Operation, noise};

/// What a production answers to a small write: an acknowledgement, an error, or nothing yet.
pub fn answer(production: &Production, volume: VolumeIndex) -> Option<bool> {
    let (tell, told) = mpsc::channel();
    production.tap.submit(vec![Request {
        change: Some(VolumeChange::Write {
            volume,
            offset: 0,
            data: Bytes::from_static(b"nobody must acknowledge this"),
        }),
        durable: false,
        done: Box::new(move |answer| {
            let _ = tell.send(answer.is_ok());
        }),
    }]);
    told.try_recv().ok()
}

/// A read of a tap, for the oracle.
pub fn reader(production: &Production) -> impl FnMut(VolumeIndex, u64, &mut [u8]) -> io::Result<()> + '_ {
    move |volume, at, out| production.tap.read(volume, at, out).map_err(io::Error::other)
}

impl World {
    /// Learns of what a host has opened and written by itself.
    pub fn observe(&mut self, side: Side) {
        let Some(up) = &self.hosts[side.index()].up else {
            return;
        };
        let journal = Arc::clone(&up.journal);
        let is_production = up.production().is_some();
        let row = up.row();
        let stands = row.is_ok_and(|row| row.role == Role::Recovery && up.here(&row).journal.is_consistent());
        self.mixed[side.index()] &= !stands && (journal.awaits_birth() || !is_production);
        self.lines.meet(&journal);
        if is_production && journal.promotion().is_none() {
            let generation = journal.current_generation().expect("a production has one");
            self.lines.fill(generation.id, journal.cursors().appended);
        }
    }

    /// Records that the journal puts before a change by itself: the birth of a line, a step of the clock (rule L5).
    pub(super) fn own_records(&self, side: Side, is_change: bool) -> u64 {
        if !is_change {
            return 0;
        }
        let journal = &self.up(side).journal;
        let now = self.hosts[side.index()].clock();
        let born = journal.promotion();
        let steps = match &born {
            Some(promotion) => promotion.clock.0 > now.0 + Timestamp::SECOND_NS,
            None => journal.clock_ahead_of(now).is_some(),
        };
        u64::from(journal.awaits_birth()) + u64::from(steps)
    }

    /// Hands one change or flush in, and feeds the line with it. What is answered counts as promised.
    fn submit(&mut self, side: Side, change: Option<VolumeChange>, durable: bool) -> Fallible {
        let production = self.up(side).production().expect("asked before");
        let journal = Arc::clone(&production.journal);
        let before = journal.cursors().appended;
        let own = self.own_records(side, change.is_some());
        let promised = &self.promised[side.index()];
        let (answered, flushed) = (Arc::clone(&promised.answered), Arc::clone(&promised.flushed));
        // Who is answered while the request is handed in is answered for the newest record.
        let place = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(AtomicBool::new(false));
        let (at, fault, newest) = (Arc::clone(&place), Arc::clone(&failed), Arc::clone(&journal));
        production.tap.submit(vec![Request {
            change: change.clone(),
            durable,
            done: Box::new(move |result: Result<(), _>| {
                if result.is_err() {
                    return fault.store(true, Ordering::Relaxed);
                }
                let seq = match at.load(Ordering::Relaxed) {
                    0 => newest.cursors().appended.0,
                    seq => seq,
                };
                answered.fetch_max(seq, Ordering::Relaxed);
                if durable {
                    flushed.fetch_max(seq, Ordering::Relaxed);
                }
            }),
        }]);
        let after = journal.cursors().appended;
        place.store(after.0, Ordering::Relaxed);
        self.lines.meet(&journal);
        let generation = journal
            .current_generation()
            .filter(|_| journal.promotion().is_none());
        if let (Some(generation), Some(change)) = (generation, change) {
            let base = before.max(WriteSeq(generation.first_seq.0 - 1));
            let new = after.0 - base.0;
            assert!(new <= own + 1, "{new} records for one change");
            if new == own + 1 {
                self.lines.fill(generation.id, WriteSeq(after.0 - 1));
                let (line, time) = (self.lines.of_mut(generation.id), Timestamp(after.0));
                match change {
                    VolumeChange::Write { volume, offset, data } => {
                        line.write(after, time, volume, offset, &data);
                    }
                    VolumeChange::Zero { volume, range, .. } => line.zero(after, time, volume, range),
                }
            }
        }
        self.observe(side);
        if failed.load(Ordering::Relaxed) {
            anyhow::bail!("a request was answered with an error");
        }
        Ok(())
    }

    /// A write that no line is fed with: only the journal is looked at.
    pub fn put_unfed(&mut self, side: Side, data: &'static [u8]) {
        let production = self.up(side).production().expect("it serves");
        production.tap.submit(vec![Request {
            change: Some(VolumeChange::Write {
                volume: VolumeIndex(0),
                offset: 0,
                data: Bytes::from_static(data),
            }),
            durable: false,
            done: Box::new(|answer| answer.expect("a production acknowledges")),
        }]);
    }

    /// An application works, if the host serves.
    pub fn work(&mut self, side: Side, rng: &mut dyn RngCore) -> Fallible {
        if self.up(side).serving()?.is_none() {
            return Ok(());
        }
        let (id, head) = self.line_of(self.up(side));
        let size = self.lines.of(id).size(GROWING, head);
        self.workload.resize(GROWING, size);
        let operation = self.workload.next(rng);
        self.operate(side, operation, rng)
    }

    /// As the operator's command does.
    pub fn grow(&mut self, side: Side, rng: &mut dyn RngCore) -> Fallible {
        let up = self.up(side);
        let Some(production) = up.serving()? else {
            return Ok(());
        };
        let runs = |there: &&Up| there.recovery().is_some() || there.production().is_some();
        let Some(there) = self.reachable(side.other()).filter(runs) else {
            return Ok(());
        };
        let journal = Arc::clone(&up.journal);
        let first = self.sizes[usize::from(GROWING.0)];
        let now = journal.size_now(GROWING).unwrap_or(first);
        let wanted = (now + rng.random_range(1..=3) * BLOCK_SIZE).min(storage(first));
        if wanted == now {
            return Ok(());
        }
        let rest = ByteRange {
            start: now,
            end: extent_of(&journal, GROWING, first).clamp(now, wanted),
        };
        grows(&there.journal, &there.volumes, GROWING, wanted)?;
        grows(&journal, &up.volumes, GROWING, wanted)?;
        let tap = &production.tap;
        let done = zero_rest(tap, GROWING, rest).and_then(|()| tap.resize(GROWING, wanted));
        self.lines.meet(&journal);
        let opened = journal.promotion().is_none();
        if let Some(generation) = journal.current_generation().filter(|_| opened) {
            let last = journal.cursors().appended;
            if journal.size_now(GROWING) == Some(wanted) {
                self.lines.fill(generation.id, WriteSeq(last.0 - 1));
                let line = self.lines.of_mut(generation.id);
                line.resize(last, Timestamp(last.0), GROWING, wanted);
                self.counts.grown += 1;
            }
        }
        self.observe(side);
        let promised = &self.promised[side.index()];
        promised.flushed.fetch_max(done?.0, Ordering::Relaxed);
        self.look_at_head(side, None);
        Ok(())
    }

    pub fn operate(&mut self, side: Side, operation: Operation, rng: &mut dyn RngCore) -> Fallible {
        let zero = |volume, range, discard| VolumeChange::Zero {
            volume,
            range,
            discard,
        };
        match operation {
            Operation::Write {
                volume,
                offset,
                len,
                fua,
            } => {
                let data: Bytes = noise(len, rng);
                self.submit(side, Some(VolumeChange::Write { volume, offset, data }), fua)?;
                self.look_at_head(side, Some((volume, ByteRange::at(offset, len))));
                Ok(())
            }
            Operation::Zero { volume, range } => self.submit(side, Some(zero(volume, range, false)), false),
            Operation::Discard { volume, range } => self.submit(side, Some(zero(volume, range, true)), false),
            Operation::Flush => self.submit(side, None, true),
            Operation::Seal => {
                let production = self.up(side).production().expect("asked before");
                production.tap.seal_now()?;
                Ok(())
            }
            Operation::Mark(name) => {
                let production = self.up(side).production().expect("asked before");
                let done = production.tap.mark(name, String::new());
                self.observe(side);
                let (record, _) = done?;
                let promised = &self.promised[side.index()];
                promised.flushed.fetch_max(record.seq.0, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// The open container of a production is sealed.
    pub fn seal(&mut self, side: Side) -> Fallible {
        if let Some(production) = self.up(side).production() {
            production.tap.seal_now()?;
        }
        Ok(())
    }

    /// A journal is synced; who waits is answered.
    pub fn sync(&mut self, side: Side) -> Fallible {
        let up = self.up(side);
        match up.production() {
            Some(production) => drop(production.tap.sync_once()?),
            None => drop(up.journal.sync()?),
        }
        Ok(())
    }

    /// Copies and the next container of a replica are applied.
    pub fn apply(&mut self, side: Side) -> Fallible<bool> {
        let Some(recovery) = self.up(side).recovery() else {
            return Ok(false);
        };
        let any = recovery.apply_next()?;
        if any {
            self.look_at_replica(side)?;
        }
        Ok(any)
    }

    /// What was acknowledged stays.
    pub(super) fn keep(&mut self, side: Side) {
        let journal = &self.up(side).journal;
        if let Some(generation) = journal.current_generation() {
            self.kept[side.index()] = (generation.id, journal.cursors().durable);
        }
    }

    /// Time has passed: what nobody claims goes.
    pub fn forget(&mut self, side: Side, rng: &mut dyn RngCore) -> Fallible {
        let up = self.up(side);
        let journal = &up.journal;
        let held = journal.held_bytes()?;
        let wanted = Wanted {
            bytes: Some(rng.random_range(0..=held)),
            ..Wanted::default()
        };
        match up.production() {
            Some(_) if builds_undo(journal) => {
                while journal.ingest_sealed()?.is_some() {}
                let c = journal.cursors();
                let wanted = Wanted {
                    applied_by_peer: Some(owed_to_peer(journal, c.applied_by_peer.min(c.checkpointed))),
                    ..wanted
                };
                journal.retain(&wanted, Space::Limit(u64::MAX), Vec::new())?;
            }
            Some(production) => {
                production.drop_applied()?;
                journal.forget_old_rows(&wanted)?;
            }
            None if up.recovery().is_some() => {
                let limit = match rng.random_bool(0.2) {
                    true => rng.random_range(0..=held),
                    false => u64::MAX,
                };
                journal.retain(&wanted, Space::Limit(limit), Vec::new())?;
            }
            None => {}
        }
        Ok(())
    }

    /// The journal of a production is at its limit.
    pub fn overflow(&mut self, side: Side, containers: usize) -> Fallible {
        let up = self.up(side);
        if let Some(production) = up.production() {
            let before = up.journal.floors().redo_seq;
            production.give_way(containers)?;
            self.counts.overflows += u32::from(self.up(side).journal.floors().redo_seq != before);
        }
        Ok(())
    }

    /// Both serve: only while they have not met.
    pub(super) fn at_most_one_serves(&self) -> Fallible {
        let serves = |side| -> Fallible<bool> { Ok(self.up(side).serving()?.is_some()) };
        assert!(
            !(serves(Side::A)? && serves(Side::B)?),
            "both hosts serve after they have met: {:?} and {:?}",
            self.up(Side::A).standing()?,
            self.up(Side::B).standing()?
        );
        let fenced = |side| -> Fallible<bool> {
            Ok(self.up(side).standing()? == Standing::Fenced && self.up(side).production().is_some())
        };
        assert!(!fenced(Side::A)? && !fenced(Side::B)?, "a fenced host runs");
        Ok(())
    }
}
