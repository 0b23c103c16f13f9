//! Retention: what of the past is kept, and what goes when it may or must (`rules.md` K1, K2, T9).
//!
//! # Overview
//!
//! There is one floor. It stands at the end of an apply ordinal, and everything at or below it is freed: the undo of every
//! ordinal up to it together with the redo that those ordinals applied. [`decide`] says how far it may move, from the rows
//! alone; [`Journal::retain`] moves it. What is received and not applied is not in question.
//!
//! What wants history kept is a *claim*: the window wanted, each pin, each reader, the last consistent point of a running
//! resync, a failover restore. What no claim holds goes at once. When space is short the floor moves on by as little as
//! will do and breaks the claims that stand there: with one floor the lowest claim is the one in the way, and breaking a
//! cheaper one above it would free nothing. A failover restore's is never broken: then [`Retained::stuck`] says that
//! receiving must stop.
//!
//! # Invariants
//!
//! - Age is counted from the newest received write. A replica that receives nothing loses nothing, however long.
//! - Nothing is freed that an unbroken claim needs; what is broken is named in the answer.
//! - A view below the floor answers an error (`history` checks the floor before and after it reads), never other bytes.
//!
//! # Crash consistency
//!
//! The floor is durable before anything below it is freed, and freeing is repeated on open (`ingest`). Pins go after the
//! floor has passed them, so a cut in between leaves a pin without a point and never a point that is gone while its floor
//! is not there. A consistent span that lies below the floor goes after it: when the last one of a running resync has gone,
//! the resync goes on as a first sync, without undo. Rows are forgotten last, when they are four windows old (T9).
//!
//! # What it does not do
//!
//! It measures no disk and knows no clock. A container whose undo is made but which is not wholly applied is above the floor.

mod decide;
#[cfg(test)]
mod tests;

use crate::{
    error::{JournalError, Position},
    journal::{Journal, Shared},
    rows::{Floors, LfcRow, PinKind, PinRow},
};
use decide::{Applied, Kept, Step, decide};
use model::{GenNo, LfcId, Ordinal, Point, Timestamp, ports::OrdinalKind};

/// How many windows a row of the catalog outlives its frames (`rules.md` T9).
const ROWS_OUTLIVE: u64 = 4;

/// The rollback window that is promised. Both: what either promises is kept. Neither: all that there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Nanoseconds back from the newest received write.
    pub age_ns: Option<u64>,
    /// Bytes of redo and undo.
    pub bytes: Option<u64>,
    /// The latest time that is believed: a record that claims a later one makes nothing older than this does, or one wrong
    /// clock on production would age the whole window at once.
    pub believed: Option<Timestamp>,
    /// On a production that holds earlier points: how far its peer has applied. Redo past it goes to the peer first.
    pub applied_by_peer: Option<Position>,
}

impl Wanted {
    /// A record's time, as far as it is believed.
    #[must_use]
    pub fn believe(&self, time: Timestamp) -> Timestamp {
        self.believed.map_or(time, |latest| time.min(latest))
    }

    /// Whether nothing ever becomes too old.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.age_ns.is_none() && self.bytes.is_none()
    }
}

/// How much may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// So many bytes of redo and undo.
    Limit(u64),
    /// All that leaves `reserve` bytes of the disk free.
    Disk {
        /// Bytes that are free now.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
}

impl Space {
    /// Bytes that must go when so many are held.
    #[must_use]
    pub const fn excess(&self, held: u64) -> u64 {
        match self {
            Self::Limit(limit) => held.saturating_sub(*limit),
            Self::Disk { free, reserve } => reserve.saturating_sub(*free),
        }
    }
}

/// A claim that was broken for want of space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The pin with this number: its point cannot be reached any more.
    Pin(u64),
    /// Somebody who was reading a point by name.
    Reader,
    /// The rollback window is shorter than it was promised.
    Window,
    /// The last consistent point of a running resync.
    Resync,
}

/// What a step of retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Bytes that were freed.
    pub freed: u64,
    /// Bytes that are held now.
    pub held: u64,
    /// Pins that expired and were removed.
    pub expired: Vec<PinRow>,
    /// Claims that were broken.
    pub broken: Vec<Broken>,
    /// Space is short and nothing more may go: receiving must stop.
    pub stuck: bool,
}

/// A pin and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinUse {
    /// The pin.
    pub row: PinRow,
    /// Bytes that would go if it went; what others hold too is not counted.
    pub holds_bytes: u64,
    /// Whether its point can still be reached.
    pub is_kept: bool,
}

impl Shared {
    fn steps(&self, upto: Ordinal) -> Vec<Step> {
        let mut end = self.floor_time();
        let above = self.ordinals.range(self.floors.undo.next()..);
        above
            .take_while(|(ordinal, _)| **ordinal <= upto)
            .map(|(ordinal, row)| {
                let mut step = Step {
                    ordinal: *ordinal,
                    applied: None,
                    end,
                    bytes: row.bytes,
                };
                if let OrdinalKind::Apply { generation, lfc, .. } = &row.kind
                    && let Some(lfc) = self.rows.get(&(*generation, *lfc))
                {
                    end = lfc.last_time;
                    step.end = end;
                    step.bytes += if self.is_held(lfc) { lfc.bytes } else { 0 };
                    step.applied = Some(Applied {
                        generation: lfc.generation,
                        lfc: lfc.lfc,
                        first_seq: lfc.first_seq,
                        last_seq: lfc.last_seq,
                    });
                }
                step
            })
            .collect()
    }

    /// Time of the last record at the floor: what stands on it without a time of its own is as old as that.
    fn floor_time(&self) -> Timestamp {
        let below = self.ordinals.range(..=self.floors.undo).rev();
        let mut applied = below.filter_map(|(_, row)| match &row.kind {
            OrdinalKind::Apply { generation, lfc, .. } => self.rows.get(&(*generation, *lfc)),
            _ => None,
        });
        let at_floor = applied.next().or_else(|| self.rows.get(&self.floors.redo));
        at_floor.map_or(Timestamp(0), |row| row.last_time)
    }

    /// Time of the newest record that is here.
    fn newest_time(&self) -> Timestamp {
        let open = self.open.as_ref().filter(|o| !o.is_empty());
        let open = open.map(|o| o.row(crate::SealFlags::default()).last_time);
        open.or_else(|| self.sealed_rows().next_back().map(|r| r.last_time))
            .unwrap_or_default()
    }
}

impl Journal {
    fn kept(&self, wanted: &Wanted, readers: Vec<Point>) -> Result<Kept, JournalError> {
        let (pins, restore, cursors) = (self.pins()?, self.restore()?, self.cursors());
        let shared = self.shared.read();
        let steps = shared.steps(cursors.applied_ordinal);
        let behind = |r: &&std::sync::Arc<LfcRow>| (r.generation, r.lfc) > cursors.applied_lfc;
        let unapplied: u64 = shared.sealed_rows().filter(behind).map(|r| r.bytes).sum();
        let open = shared
            .open
            .as_ref()
            .map_or(0, crate::container::Container::entry_bytes);
        Ok(Kept {
            steps,
            unapplied_bytes: unapplied + open,
            now: wanted.believe(shared.newest_time()),
            floors: shared.floors,
            pins,
            readers,
            restore,
            awaits_newest: shared
                .consistent
                .last()
                .is_some_and(|span| !cursors.has_applied(span.from)),
            consistent: shared.consistent.clone(),
            applied_by_peer: wanted.applied_by_peer,
        })
    }

    /// Time of the newest received write: what every age is counted from.
    #[must_use]
    pub fn newest_time(&self) -> Timestamp {
        self.shared.read().newest_time()
    }

    /// Bytes of redo and undo that are held; indexes and the two tails come on top.
    ///
    /// # Errors
    /// When the store fails.
    pub fn held_bytes(&self) -> Result<u64, JournalError> {
        Ok(self.kept(&Wanted::default(), Vec::new())?.bytes())
    }

    /// Whether a point can still be reached: no floor has passed it.
    #[must_use]
    pub fn is_kept(&self, point: &Point) -> bool {
        let kept = Kept {
            floors: self.floors(),
            ..Kept::default()
        };
        kept.keeps(point).is_some()
    }

    /// All pins, what each holds and whether it still does.
    ///
    /// # Errors
    /// When the store fails.
    pub fn pin_uses(&self, wanted: &Wanted, readers: Vec<Point>) -> Result<Vec<PinUse>, JournalError> {
        let kept = self.kept(wanted, readers)?;
        let claims = kept.claims(wanted);
        let go = |claims: &[_]| decide(&kept, claims, 0).go;
        let with = go(&claims);
        let uses = kept.pins.iter().map(|pin| {
            let others: Vec<_> = claims
                .iter()
                .filter(|c| c.name != Some(Broken::Pin(pin.id)))
                .cloned()
                .collect();
            PinUse {
                holds_bytes: kept.steps[with..go(&others)].iter().map(|s| s.bytes).sum(),
                is_kept: kept.keeps(&pin.point).is_some(),
                row: pin.clone(),
            }
        });
        Ok(uses.collect())
    }

    /// Frees what nobody claims, and what must go where space is short. The caller sees to it that no point is resolved and
    /// pinned meanwhile, and that nothing is applied.
    ///
    /// # Errors
    /// When the floor could not be made durable, or freeing failed; freeing is repeated on open.
    pub fn retain(
        &self,
        wanted: &Wanted,
        space: Space,
        readers: Vec<Point>,
    ) -> Result<Retained, JournalError> {
        let kept = self.kept(wanted, readers)?;
        let held = kept.bytes();
        let decision = decide(&kept, &kept.claims(wanted), space.excess(held));
        let gone = &kept.steps[..decision.go];
        if let Some(last) = gone.last() {
            let applied = gone.iter().rev().find_map(|s| s.applied);
            self.raise_floor(last.ordinal, applied)?;
        }
        // As long as any point is held undo must go on: without a span none is made.
        let points = kept.pins.iter().map(|pin| &pin.point).chain(&kept.readers);
        if kept.restore.is_none() && !points.into_iter().any(|point| self.is_kept(point)) {
            self.forget_spans_below(self.floors().redo_seq)?;
            self.forget_lost_span()?;
        }
        let expired: Vec<PinRow> = kept
            .pins
            .iter()
            .filter(|p| kept.is_expired(p) && !matches!(p.kind, PinKind::Snapshot { .. }))
            .cloned()
            .collect();
        for pin in &kept.pins {
            let is_broken = decision.broken.contains(&Broken::Pin(pin.id));
            if expired.contains(pin) || (is_broken && pin.kind == PinKind::Released) {
                self.delete_pin(pin.id, None)?;
            }
        }
        let freed = gone.iter().map(|s| s.bytes).sum();
        self.forget_old_rows(wanted)?;
        Ok(Retained {
            freed,
            held: held - freed,
            expired,
            broken: decision.broken,
            stuck: decision.stuck,
        })
    }

    /// Moves the floor to the end of an ordinal: its undo and the redo of all that was applied up to it go together.
    fn raise_floor(&self, ordinal: Ordinal, applied: Option<Applied>) -> Result<(), JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            // Another thread may have decided more meanwhile: a floor never falls, what is below it is freed.
            let before = self.floors();
            let mut floors = Floors {
                undo: ordinal.max(before.undo),
                ..before
            };
            if let Some(c) = applied.filter(|c| (c.generation, c.lfc) > floors.redo) {
                floors.redo = (c.generation, c.lfc);
                floors.redo_seq = Position {
                    generation: c.generation,
                    seq: c.last_seq,
                };
            }
            self.move_floors(floors)
        })
    }

    /// Forgets the rows of containers that are freed and four windows old (`rules.md` T9).
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_old_rows(&self, wanted: &Wanted) -> Result<(), JournalError> {
        let restored = self.restore()?.map(|row| (row.target.generation, row.target.lfc));
        match self.last_old_row(wanted, restored) {
            Some((generation, lfc)) => self.forget_rows_through(generation, lfc),
            None => Ok(()),
        }
    }

    fn last_old_row(&self, wanted: &Wanted, restored: Option<(GenNo, LfcId)>) -> Option<(GenNo, LfcId)> {
        if wanted.is_unlimited() {
            return None;
        }
        let shared = self.shared.read();
        let oldest = wanted.age_ns.map(|age| {
            let age = age.saturating_mul(ROWS_OUTLIVE);
            Timestamp(wanted.believe(shared.newest_time()).0.saturating_sub(age))
        });
        let bytes = wanted.bytes.map(|b| b.saturating_mul(ROWS_OUTLIVE));
        let mut behind: u64 = shared.rows.values().map(|r| r.bytes).sum();
        let newest = shared.rows.last().map(|r| (r.generation, r.lfc))?;
        let old = |r: &&std::sync::Arc<LfcRow>| {
            behind -= r.bytes;
            let key = (r.generation, r.lfc);
            // The floor's own row names the oldest point, however old a pin has made it.
            key < shared.floors.redo
                && key < newest
                // A failover takes the line over at a restored point, and names its digest.
                && restored.is_none_or(|restored| key < restored)
                && oldest.is_none_or(|oldest| r.last_time < oldest)
                && bytes.is_none_or(|bytes| behind >= bytes)
        };
        let last = shared.rows.values().take_while(old).last()?;
        Some((last.generation, last.lfc))
    }
}
