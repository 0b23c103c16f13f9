//! Which containers go: pure, so that it can be held against every case (`rules.md` K1, K2).

use super::{Broken, Wanted};
use crate::{
    error::Position,
    rows::{Consistent, Floors, PinKind, PinRow, RestoreRow},
};
use model::{GenNo, LfcId, Ordinal, Point, Timestamp, WriteSeq};

/// A container that an ordinal applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) generation: GenNo,
    pub(super) lfc: LfcId,
    pub(super) first_seq: WriteSeq,
    pub(super) last_seq: WriteSeq,
}

/// What the floor passes in one go: the undo of one ordinal and, unless it is a local pair, the redo that it applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) ordinal: Ordinal,
    pub(super) applied: Option<Applied>,
    /// Time of the last record at its end.
    pub(super) end: Timestamp,
    /// Bytes of its undo and of its redo, as far as they are held.
    pub(super) bytes: u64,
}

/// Everything that decides.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// What is wholly applied and above the floor, in order of ordinals.
    pub(super) steps: Vec<Step>,
    /// Bytes of what is received and not applied: never in question.
    pub(super) unapplied_bytes: u64,
    /// Time of the newest received write.
    pub(super) now: Timestamp,
    pub(super) floors: Floors,
    pub(super) pins: Vec<PinRow>,
    /// Points that are being read by name; they have no pin.
    pub(super) readers: Vec<Point>,
    pub(super) restore: Option<RestoreRow>,
    pub(super) consistent: Vec<Consistent>,
    /// The newest of them begins behind what is applied: no point of it can be shown yet.
    pub(super) awaits_newest: bool,
    /// How far a peer that this host ships to has applied.
    pub(super) applied_by_peer: Option<Position>,
}

/// Something that wants history kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it is called when it is broken; `None`: it never is, receiving stops instead.
    pub(super) name: Option<Broken>,
    /// How many steps may go without breaking it.
    pub(super) keeps: usize,
}

/// What goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// So many steps.
    pub(super) go: usize,
    /// What they break.
    pub(super) broken: Vec<Broken>,
    /// Space is short and nothing more may go.
    pub(super) stuck: bool,
}

impl Kept {
    /// Bytes of redo and undo.
    pub(super) fn bytes(&self) -> u64 {
        self.unapplied_bytes + self.steps.iter().map(|s| s.bytes).sum::<u64>()
    }

    pub(super) fn is_expired(&self, pin: &PinRow) -> bool {
        pin.expires.is_some_and(|at| at <= self.now)
    }

    /// How many steps may go and `point` is still reached; `None` when it is not reached any more.
    pub(super) fn keeps(&self, point: &Point) -> Option<usize> {
        let freed = |after: WriteSeq, generation: GenNo| {
            let floor = self.floors.redo_seq;
            generation < floor.generation || (generation == floor.generation && after < floor.seq)
        };
        if point.base < self.floors.undo || point.redo.iter().any(|s| freed(s.after, s.generation)) {
            return None;
        }
        let of_base = self.steps.partition_point(|s| s.ordinal <= point.base);
        let of_redo = self.steps.iter().position(|step| {
            let overlaps = |c: &Applied| {
                let over = |s: &model::RedoSpan| {
                    s.generation == c.generation && c.last_seq > s.after && c.first_seq <= s.upto
                };
                point.redo.iter().any(over)
            };
            step.applied.as_ref().is_some_and(overlaps)
        });
        Some(of_base.min(of_redo.unwrap_or(of_base)))
    }

    /// Steps at whose end the volumes are not past the first consistent point: nothing can be asked for before.
    fn before_consistent(&self) -> usize {
        let Some(first) = self.consistent.first().map(|c| c.from) else {
            return 0;
        };
        self.through(first)
    }

    /// The last consistent point from before a resync, until one behind it can be shown.
    fn resync_point(&self) -> Option<Position> {
        let mut newest = self.consistent.iter().rev();
        let last = match newest.next() {
            Some(span) if span.until.is_none() && self.awaits_newest => newest.next(),
            last => last,
        };
        last.and_then(|span| span.until)
    }

    /// Steps whose containers end at or before a position of the same or an older generation.
    fn through(&self, at: Position) -> usize {
        let ends = |c: &Applied| (c.generation, c.last_seq) <= (at.generation, at.seq);
        let last = self
            .steps
            .iter()
            .rposition(|s| s.applied.as_ref().is_some_and(ends));
        last.map_or(0, |i| i + 1)
    }

    /// How many steps are beyond the window wanted, by the newest received write and never by the clock.
    fn beyond(&self, wanted: &Wanted) -> usize {
        let oldest = wanted.age_ns.map(|age| Timestamp(self.now.0.saturating_sub(age)));
        let mut rest = self.bytes();
        let out = |step: &&Step| {
            rest = rest.saturating_sub(step.bytes);
            let by_age = oldest.is_none_or(|oldest| step.end <= oldest);
            let by_bytes = wanted.bytes.is_none_or(|bytes| rest >= bytes);
            by_age && by_bytes
        };
        if wanted.is_unlimited() {
            return 0;
        }
        // The first that stays keeps all behind it, also what a clock that was set back makes look older.
        self.steps.iter().take_while(out).count()
    }

    /// Everything that wants history kept and has not expired.
    pub(super) fn claims(&self, wanted: &Wanted) -> Vec<Claim> {
        let claim = |name, keeps| Claim { name, keeps };
        let window = self.beyond(wanted).max(self.before_consistent());
        let mut claims = vec![claim(Some(Broken::Window), window)];
        for pin in self.pins.iter().filter(|p| !self.is_expired(p)) {
            let name = Some(Broken::Pin(pin.id)).filter(|_| pin.kind != PinKind::Restore);
            claims.extend(self.keeps(&pin.point).map(|keeps| claim(name, keeps)));
        }
        let readers = self.readers.iter().filter_map(|p| self.keeps(p));
        claims.extend(readers.map(|keeps| claim(Some(Broken::Reader), keeps)));
        if let Some(until) = self.resync_point() {
            let floor = self.floors.redo_seq;
            let is_kept = (floor.generation, floor.seq) <= (until.generation, until.seq);
            let keeps = is_kept.then(|| self.through(until));
            claims.extend(keeps.map(|keeps| claim(Some(Broken::Resync), keeps)));
        }
        if let Some(at) = self.applied_by_peer {
            claims.push(claim(None, self.through(at)));
        }
        if let Some(restore) = &self.restore {
            // The point before it is what `--undo` goes back to.
            let before = self.steps.partition_point(|s| s.ordinal <= restore.from);
            let target = self.keeps(&restore.target).unwrap_or(before);
            // In mid-container the point's digest is in its frames: a failover there names it.
            let place = (restore.target.generation, restore.target.seq);
            let within =
                |c: &Applied| (c.generation, c.first_seq) <= place && place < (c.generation, c.last_seq);
            let of_frames = self
                .steps
                .iter()
                .position(|s| s.applied.as_ref().is_some_and(within));
            claims.push(claim(None, before.min(target).min(of_frames.unwrap_or(before))));
        }
        claims
    }
}

/// What goes when at least `excess` bytes must: what nobody claims at any rate, and beyond that as little as will do.
///
/// There is one floor, so the lowest claim is the one in the way: breaking any other first would free nothing. What breaks
/// together is therefore given by where claims stand, and only whether a claim may be broken at all is a matter of its kind.
pub(super) fn decide(kept: &Kept, claims: &[Claim], excess: u64) -> Decision {
    let lowest = |claims: &mut dyn Iterator<Item = &Claim>| claims.map(|c| c.keeps).min();
    let unclaimed = lowest(&mut claims.iter()).unwrap_or(kept.steps.len());
    let most = lowest(&mut claims.iter().filter(|c| c.name.is_none())).unwrap_or(kept.steps.len());
    let (mut needed, mut freed) = (0, 0);
    while freed < excess && needed < most {
        freed += kept.steps[needed].bytes;
        needed += 1;
    }
    let go = unclaimed.max(needed);
    let broken = claims.iter().filter(|c| c.keeps < go);
    Decision {
        go,
        broken: broken.filter_map(|c| c.name.clone()).collect(),
        stuck: freed < excess,
    }
}
