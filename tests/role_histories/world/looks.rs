//! What must hold, asked of the hosts and of the lines.

use super::{Fallible, Side, World, work::reader};
use crate::{host::Up, lines::same};
use backstay::{
    applying::acting::builds_undo,
    context::sizes_at,
    roles::{Standing, change::At, row::standing_of},
};
use journal::{Journal, Position, RestorePhase};
use model::{
    ByteRange, ContextState, GenId, GenNo, RecordBody, Role, Target, Timestamp, VolumeIndex, WriteSeq,
    ports::History, target::TargetKind,
};
use rand::{Rng, RngCore};
use snapshot::View;
use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

/// A host in one line.
pub fn describe(up: &Up) -> String {
    let journal = &up.journal;
    let (c, floors) = (journal.cursors(), journal.floors());
    let [a, d, w, p] = [c.appended, c.durable, c.checkpointed, c.applied].map(|s| s.0);
    let standing = up.row().map_or("?".into(), |row| {
        let stopped = if row.state == ContextState::Stopped {
            " stopped"
        } else {
            ""
        };
        format!("{:?}{stopped} term {}", standing_of(&row), row.term)
    });
    let parts = journal.line_parts();
    let parts: Vec<String> = parts
        .iter()
        .map(|p| format!("{:03x}:{}-{}", p.id.0 & 0xfff, p.after.0, p.upto.0))
        .collect();
    let spans = journal.consistent();
    let spans: Vec<String> = spans
        .iter()
        .map(|s| {
            format!(
                "g{}:{}-{:?}",
                s.from.generation.0,
                s.from.seq.0,
                s.until.map(|u| u.seq.0)
            )
        })
        .collect();
    let stale: u64 = up.stale().values().flatten().map(|r| r.len()).sum();
    format!(
        "{standing}: {a}/{d}/{w}/{p} peer {}/{} ordinal {}/{} floors undo {} redo {:?} line {}{} spans {} stale {stale}",
        c.received_by_peer,
        c.applied_by_peer,
        c.applied_ordinal,
        c.published,
        floors.undo,
        (floors.redo.0.0, floors.redo.1.0),
        parts.join(" "),
        if journal.promotion().is_some() {
            " promoted"
        } else {
            ""
        },
        spans.join(" "),
    )
}

/// The number that all hosts know a generation by.
pub fn id_of(journal: &Journal, no: GenNo) -> GenId {
    let mut all = journal.generations().into_iter();
    all.find(|g| g.no == no).map_or(GenId(0), |g| g.id)
}

impl World {
    /// After a boot: nothing that was promised is lost, and what runs stands where the line says.
    pub(super) fn look_after_boot(&mut self, side: Side) -> Fallible {
        self.take_promotion(side)?;
        let up = self.hosts[side.index()].up.as_ref().expect("just booted");
        let journal = Arc::clone(&up.journal);
        let (row, c) = (up.row()?, journal.cursors());
        self.lines.meet(&journal);
        let promised = &mut self.promised[side.index()];
        if row.role == Role::Production && journal.promotion().is_none() {
            let generation = journal.current_generation().expect("a production has one");
            let promise = if promised.was_cut {
                &promised.flushed
            } else {
                &promised.answered
            };
            let promise = WriteSeq(promise.load(Ordering::Relaxed));
            assert!(
                c.appended >= promise,
                "{promise} was promised, {} is there",
                c.appended
            );
            if let Some(other) = &self.hosts[side.other().index()].up
                && !self.was_put_back[side.index()]
            {
                let (id, end) = other.end();
                assert!(
                    id != generation.id || end <= c.appended,
                    "the peer holds what production does not"
                );
            }
            promised.restart(c.appended);
            self.lines.cut(generation.id, c.appended);
            self.lines.fill(generation.id, c.appended);
        }
        promised.was_cut = false;
        self.was_put_back[side.index()] = false;
        let (kept, upto) = self.kept[side.index()];
        if row.role == Role::Recovery && journal.current_generation().is_some_and(|g| g.id == kept) {
            assert!(
                c.durable >= upto,
                "{} of {upto} that were acknowledged",
                c.durable
            );
        }
        self.look_at_head(side, None);
        self.look_at_replica(side)
    }

    /// The line that a host is on, and its newest record there.
    pub fn line_of(&self, up: &Up) -> (GenId, WriteSeq) {
        match up.journal.promotion() {
            Some(promotion) => {
                let end = promotion.parent.map_or(WriteSeq(0), |p| p.seq);
                (promotion.id, end)
            }
            None => {
                let id = up.journal.current_generation().map_or(GenId(0), |g| g.id);
                (id, up.journal.cursors().appended)
            }
        }
    }

    /// A production shows the head of its line.
    pub fn look_at_head(&self, side: Side, only: Option<(VolumeIndex, ByteRange)>) {
        let up = self.up(side);
        let Some(production) = up.production() else { return };
        let (id, at) = self.line_of(up);
        let oracle = self.lines.of(id);
        for (volume, v) in up.volumes.iter() {
            let size = up.journal.size_now(volume).unwrap_or(v.size());
            assert_eq!(size, oracle.size(volume, at), "the size of {volume} at the head");
        }
        let mut read = reader(production);
        let Some((volume, range)) = only else {
            return same("production's head", oracle, at, &mut read);
        };
        if let Err(e) = oracle.compare_range(at, volume, range, &mut read) {
            let off = self.hosts[side.index()].power.is_off();
            assert!(off, "what was just written at {at}: {e}");
        }
    }

    /// Where the volumes of a host that is no production stand; `None`: at no point.
    pub fn stands_at(&self, up: &Up) -> Fallible<Option<(GenId, WriteSeq)>> {
        let journal = &up.journal;
        match up.restore()? {
            Some(row) if row.phase == RestorePhase::Done => {
                return Ok(Some((id_of(journal, row.target.generation), row.target.seq)));
            }
            Some(_) => return Ok(None),
            None => {}
        }
        let (row, c) = (up.row()?, journal.cursors());
        let settled = c.applied_ordinal == journal.published();
        if !settled || !up.here(&row).journal.is_consistent() {
            return Ok(None);
        }
        Ok(Some(match journal.promotion() {
            Some(_) => self.line_of(up),
            None => (self.line_of(up).0, c.applied),
        }))
    }

    /// A replica's volumes are exactly what its journal says.
    pub fn look_at_replica(&self, side: Side) -> Fallible {
        let up = self.up(side);
        if up.row()?.role == Role::Production {
            return Ok(());
        }
        if let Some((id, at)) = self.stands_at(up)? {
            let mut read = |v, at, out: &mut [u8]| up.volumes.read(v, at, out).map_err(io::Error::other);
            same("the replica", self.lines.of(id), at, &mut read);
        }
        Ok(())
    }

    /// Any point that can be shown is what its line says.
    pub(super) fn look_back(&mut self, side: Side, rng: &mut dyn RngCore) -> Fallible {
        let up = self.up(side);
        let acting = up.production().is_some() && builds_undo(&up.journal);
        if up.recovery().is_none() && !acting {
            return Ok(());
        }
        let journal = Arc::clone(&up.journal);
        for _ in 0..3 {
            let spans = journal.consistent();
            let Some(span) = spans.get(rng.random_range(0..spans.len().max(1))) else {
                return Ok(());
            };
            let until = span.until.map_or(journal.cursors().durable, |until| until.seq).0;
            let seq = WriteSeq(rng.random_range(span.from.seq.0..=until.max(span.from.seq.0)));
            self.look_at_instant(side, seq, rng.random_range(0..3_000_000));
            // The generations that have a record of this number.
            let generations = journal.generations();
            let of = generations
                .iter()
                .filter(|g| g.first_seq <= seq && seq <= self.lines.of(g.id).head());
            let of: Vec<_> = of.map(|g| g.no).collect();
            let named = of.get(rng.random_range(0..of.len().max(1))).copied();
            let named = named.filter(|_| rng.random_bool(0.7));
            if self.view(side, named, seq)? {
                self.counts.views += 1;
                let current = journal.current_generation();
                self.counts.old_views += u32::from(named.is_some() && current.map(|g| g.no) != named);
            }
        }
        Ok(())
    }

    /// Whatever clocks did: what an instant stands for is a place where the line passes it, or it is refused.
    pub(super) fn look_at_instant(&mut self, side: Side, seq: WriteSeq, jitter_ns: u64) {
        let journal = Arc::clone(&self.up(side).journal);
        // Bare targets: the line that this host is on.
        let point = |kind: TargetKind| {
            let resolved = journal.resolve(&Target::from(kind), Timestamp(u64::MAX));
            resolved.map(|resolved| resolved.point)
        };
        let Ok(near) = point(TargetKind::Seq(seq)) else {
            return;
        };
        // No whole second: a mark would be taken for it.
        let instant = Timestamp((near.time.0 + jitter_ns) | 1);
        let Ok(found) = point(TargetKind::Time(instant)) else {
            return;
        };
        self.counts.instants += 1;
        // A step of the clock stands for the instants behind it; what freed containers held is told by their ends.
        let at = Position {
            generation: found.generation,
            seq: found.seq,
        };
        let time = match journal.record_at(at) {
            Ok(record) => match record.body {
                RecordBody::ClockStep { to, .. } => to,
                _ => record.time,
            },
            Err(_) => found.time,
        };
        assert!(
            time <= instant,
            "{instant:?} stands for {found:?}, which is later"
        );
        if let Ok(next) = point(TargetKind::Seq(found.seq.next())) {
            assert!(
                next.time > instant,
                "{instant:?} stands for {found:?}, and {next:?} is no later"
            );
        }
    }

    /// Compares the view at a record, if there is one, with the line that it is on.
    pub fn view(&self, side: Side, generation: Option<GenNo>, seq: WriteSeq) -> Fallible<bool> {
        let up = self.up(side);
        let target = Target {
            generation,
            kind: TargetKind::Seq(seq),
        };
        let Ok(resolved) = up.journal.resolve(&target, Timestamp(u64::MAX)) else {
            return Ok(false);
        };
        let point = resolved.point;
        let id = id_of(&up.journal, point.generation);
        assert_eq!(point.seq, seq, "{target}");
        let history: Arc<dyn History> = Arc::clone(&up.journal) as Arc<dyn History>;
        let sizes = sizes_at(&up.journal, &up.volumes, &point);
        for (volume, size) in &sizes {
            let expected = self.lines.of(id).size(*volume, seq);
            assert_eq!(*size, expected, "the size of {volume} at {target}");
        }
        let view = View::new(point, sizes, up.volumes.clone(), history)?;
        let mut read = |v, at, out: &mut [u8]| view.read(v, at, out).map_err(io::Error::other);
        let what = format!("the view {target} of {}", self.hosts[side.index()].name);
        same(&what, self.lines.of(id), seq, &mut read);
        Ok(true)
    }

    /// Where a host that is about to take over must find itself.
    pub fn place_expected(&self, side: Side, at: &At) -> Fallible<(GenId, WriteSeq)> {
        let up = self.up(side);
        match at {
            At::Newest => {
                let (kept, upto) = self.kept[side.index()];
                let (id, _) = self.line_of(up);
                let durable = up.journal.cursors().durable;
                let promoted = up.journal.promotion().is_some();
                assert!(
                    promoted || id != kept || durable >= upto,
                    "{durable} of {upto} is here"
                );
                // All that was received, synced or not.
                up.journal.sync()?;
                Ok(up.end())
            }
            At::Restored(point) => Ok((id_of(&up.journal, point.generation), point.seq)),
        }
    }

    /// The volumes of this host are taken as they are.
    pub const fn take_as_they_are(&mut self, side: Side) {
        self.as_they_are[side.index()] = true;
    }

    /// Whether the volumes of this host were taken as they were, and nothing says yet which line that is.
    pub const fn is_mixed(&self, side: Side) -> bool {
        self.mixed[side.index()]
    }

    /// A promotion that is durable begins a line.
    pub(super) fn take_promotion(&mut self, side: Side) -> Fallible {
        let up = self.up(side);
        let Some(promotion) = up.journal.promotion() else {
            return Ok(());
        };
        let (volumes, row, journal) = (up.volumes.clone(), up.row()?, Arc::clone(&up.journal));
        let as_they_are = std::mem::take(&mut self.as_they_are[side.index()]);
        if self.lines.begin(&promotion) {
            let at = promotion.parent.as_ref().map_or(WriteSeq(0), |p| p.seq);
            // A failover that was overtaken ends its line and gives it up in one command, and the power may go behind both.
            let gave_way = matches!(standing_of(&row), Standing::ResyncReady | Standing::Replica);
            assert!(
                row.role == Role::Production || gave_way,
                "a promotion and its role are one: {:?}",
                row.role
            );
            if as_they_are {
                self.lines.take(promotion.id, at, &journal, &volumes)?;
            }
            self.mixed[side.index()] = as_they_are;
            self.promised[side.index()].restart(at);
        }
        Ok(())
    }

    /// A host has taken a line over, at this place.
    pub fn took_over(&mut self, side: Side, expected: (GenId, WriteSeq)) -> Fallible {
        self.take_promotion(side)?;
        let up = self.up(side);
        assert_eq!(up.end(), expected, "taken over elsewhere");
        let (id, at) = self.line_of(up);
        let mut read = |v, at, out: &mut [u8]| up.volumes.read(v, at, out).map_err(io::Error::other);
        same(
            "the volumes that were taken over",
            self.lines.of(id),
            at,
            &mut read,
        );
        Ok(())
    }

    /// A host has given its line up: if it was production its volumes hold all of it; and it has promised nothing any more.
    pub fn gave_way(&mut self, side: Side, was: Role) -> Fallible {
        let up = self.hosts[side.index()].up.as_ref().expect("it is up");
        if let Some(promotion) = up.journal.promotion() {
            // A failover that was overtaken ends its line before it gives it up.
            self.lines.begin(&promotion);
        }
        if was == Role::Production && !self.is_mixed(side) {
            let (id, at) = self.line_of(up);
            let mut read = |v, at, out: &mut [u8]| up.volumes.read(v, at, out).map_err(io::Error::other);
            same("the volumes that gave way", self.lines.of(id), at, &mut read);
        }
        assert!(matches!(
            up.standing()?,
            Standing::ResyncReady | Standing::Replica
        ));
        self.promised[side.index()].restart(WriteSeq(0));
        Ok(())
    }
}
