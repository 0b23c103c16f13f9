//! Retention on a recovery host: when it runs, how much room there is, and what is told of it (`rules.md` K1, K2).
//!
//! # Overview
//!
//! The apply thread calls [`Retention::pass`] after every container and whenever something was released. What goes is decided
//! and done by [`journal::Journal::retain`]; here the disk is measured and the outcome kept for `status` and the receiver.
//!
//! # When there is no room
//!
//! If nothing more may go, receiving stops ([`Retention::has_room`]): the receiver parks what still arrives, production's
//! window fills and it sends no more, and the link stays alive. A pass every few seconds finds out when there is room again.
//! Nothing is poisoned: everything acknowledged is journaled and everything else is still at production.

use super::{Context, Snapshot, Views, room::Disk};
use crate::config::Size;
use journal::{Broken, Journal, JournalError, PinKind, PinRow, ResolveError, Retained, Space};
use model::{ContextState, GenNo, Target, Timestamp, WriteSeq, target::TargetKind};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Age at which the point of a released snapshot goes (K2).
const RELEASED_FOR: Duration = Duration::from_secs(72 * 3600);
/// Time after which a pass is made although nothing has changed.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// How far production's clock may be ahead of ours before its times count as ours.
const AHEAD_NS: u64 = 3600 * Timestamp::SECOND_NS;
/// Time between two looks while receiving is stopped: room may come from outside.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The outcome of the newest pass.
#[derive(Clone, Debug)]
struct Outcome {
    space: Space,
    retained: Retained,
}

/// What retention knows between its passes.
#[derive(Default)]
pub struct Retention {
    last: Mutex<Option<Outcome>>,
    /// What had changed at the last pass, and when that was.
    looked: Mutex<Option<(u64, Instant)>>,
    /// Marks that cannot be kept: looked for once.
    unpinnable: Mutex<BTreeSet<(GenNo, WriteSeq)>>,
}

/// The window is shorter than it was promised (N25).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Nanoseconds or bytes of it that are kept.
    pub reached: String,
    /// What was promised.
    pub wanted: String,
    /// What binds.
    pub limit: String,
    /// Bytes of redo and undo that the promise needs, at the rate of what is kept.
    pub would_do: Option<u64>,
}

impl Retention {
    /// Frees what may go and what must. The caller holds the right to overwrite the replica, so that nothing is applied or
    /// restored meanwhile; answers whether there was room and is none, or the other way round.
    ///
    /// # Errors
    /// When the journal fails.
    pub(super) fn pass(&self, context: &Context, views: &Views) -> Result<bool, JournalError> {
        // Frames ring as often as containers do; only rows make a difference, and now and then the disk or a reader.
        let changes = context.journal.changes();
        {
            let mut looked = self.looked.lock();
            let is_recent = looked.is_some_and(|(then, at)| then == changes && at.elapsed() < LOOK_ANYWAY);
            if is_recent && self.has_room() {
                return Ok(false);
            }
            *looked = Some((changes, Instant::now()));
        }
        let wanted = context.wanted();
        let space = space_of(context);
        let retained = views.settled(|readers| {
            pin_marks(context, &mut self.unpinnable.lock())?;
            context.journal.retain(&wanted, space, readers)
        })?;
        tell(context, &retained);
        let had_room = self.has_room();
        *self.last.lock() = Some(Outcome { space, retained });
        if had_room != self.has_room() {
            let id = context.id().0;
            match self.no_room(context) {
                Some(why) => tracing::error!(context = id, "receiving stopped: {why}"),
                None => tracing::info!(context = id, "there is room again: receiving goes on"),
            }
        }
        Ok(had_room != self.has_room())
    }

    /// Whether more may be received.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.last.lock().as_ref().is_none_or(|o| !o.retained.stuck)
    }

    /// Why nothing more is received, and the way out; `None` while there is room.
    #[must_use]
    pub fn no_room(&self, context: &Context) -> Option<String> {
        let outcome = self.last.lock().as_ref().filter(|o| o.retained.stuck).cloned()?;
        let held = size(outcome.retained.held);
        let key = context.configured_limit().map_or("journal_limit", |(key, _)| key);
        let (full, more) = match outcome.space {
            Space::Limit(limit) => (
                format!("{held} are held of {key} {}", size(limit)),
                format!("raise {key}"),
            ),
            Space::Disk { free, reserve } => (
                format!(
                    "{} of the disk are free and {} must stay free",
                    size(free),
                    size(reserve)
                ),
                "make room on the disk".to_owned(),
            ),
        };
        let out = match context.state() {
            ContextState::RolledBack | ContextState::Restoring => format!(
                "nothing may go while the replica is rolled back: scrt_ra -C {} --undo on {}, or {more}",
                context.id(),
                context.node_name()
            ),
            _ => {
                format!("what is received is not applied yet and may not go: it goes on by itself, or {more}")
            }
        };
        Some(format!("{full}; {out}"))
    }
}

/// Pins the marks that are to be kept, once their containers are applied and before any floor can pass them. A mark whose
/// point cannot be reached never can be: it lies before the first consistent point or in a gap.
fn pin_marks(context: &Context, lost: &mut BTreeSet<(GenNo, WriteSeq)>) -> Result<(), JournalError> {
    let journal = &context.journal;
    let cursors = journal.cursors();
    let now = context.wanted().believe(journal.newest_time());
    for mark in journal.marks() {
        let Some(until) = mark.keep_ns.map(|ns| Timestamp(mark.time.0.saturating_add(ns))) else {
            continue;
        };
        let place = (mark.generation, mark.seq);
        let at = journal::Position {
            generation: mark.generation,
            seq: mark.seq,
        };
        if until <= now || !cursors.has_applied(at) || lost.contains(&place) {
            continue;
        }
        // The mark's own time is the pin's number, or the next free one: it is made once.
        let target = format!("mark:{}", mark.name);
        let (mut id, mut is_pinned) = (Some(mark.time.0), false);
        while !is_pinned
            && let Some(taken) = id
            && let Some(pin) = journal.pin(taken)?
        {
            is_pinned = (pin.point.generation, pin.point.seq) == place && pin.target == target;
            id = taken.checked_add(1);
        }
        if is_pinned {
            continue;
        }
        let Some(id) = id else {
            // Production's clock stood at the end of time.
            lost.insert(place);
            continue;
        };
        let exactly = Target {
            generation: Some(mark.generation),
            kind: TargetKind::Seq(mark.seq),
        };
        match journal.resolve(&exactly, Timestamp(u64::MAX)) {
            Ok(resolved) => journal.put_pin(&PinRow {
                id,
                kind: PinKind::Mark {
                    name: mark.name.clone(),
                },
                point: resolved.point,
                target,
                owner: "production".into(),
                created: mark.time,
                expires: Some(until),
            })?,
            Err(ResolveError::Journal(e)) => return Err(e),
            Err(e) => {
                tracing::warn!(
                    context = context.id().0,
                    "mark '{}' cannot be kept: {e}",
                    mark.name
                );
                lost.insert(place);
            }
        }
    }
    Ok(())
}

fn size(bytes: u64) -> Size {
    // Whole MiB read better, and this is for people.
    Size(if bytes >= 10 << 20 {
        bytes.next_multiple_of(1 << 20)
    } else {
        bytes
    })
}

/// Up to where a production that builds undo owes its peer nothing, which has applied so much.
#[must_use]
pub fn owed_to_peer(journal: &Journal, applied_by_peer: WriteSeq) -> journal::Position {
    // Before the first record of the line that was taken over nothing is owed to the peer.
    let generation = match journal.promotion() {
        Some(_) => GenNo(u32::MAX),
        None => journal.current_generation().map_or(GenNo(0), |g| g.no),
    };
    journal::Position {
        generation,
        seq: applied_by_peer,
    }
}

impl Context {
    /// Retention on a production that holds earlier points (K2): they give way to the journal's limit before anything that the
    /// peer still lacks does, and never the application.
    pub(super) fn keep_history(&self, applied_by_peer: WriteSeq) -> Result<(), JournalError> {
        let wanted = journal::Wanted {
            applied_by_peer: Some(owed_to_peer(&self.journal, applied_by_peer)),
            ..self.wanted()
        };
        let retained = self.journal.retain(&wanted, space_of(self), Vec::new())?;
        tell(self, &retained);
        Ok(())
    }
}

fn space_of(context: &Context) -> Space {
    if let Some((_, limit)) = context.configured_limit()
        && context.short_disk().is_none()
    {
        return Space::Limit(limit);
    }
    match context.disk() {
        Ok(Disk { free, reserve }) => Space::Disk { free, reserve },
        Err(e) => {
            tracing::warn!("the room on the journal's disk is not known: {e}");
            Space::Limit(u64::MAX)
        }
    }
}

fn tell(context: &Context, retained: &Retained) {
    let id = context.id().0;
    for pin in &retained.expired {
        tracing::info!(context = id, pin = pin.id, "pin of {} expired", pin.target);
    }
    for broken in &retained.broken {
        match broken {
            Broken::Pin(pin) => tracing::warn!(context = id, pin, "space is short: a pin is broken"),
            Broken::Reader => tracing::warn!(context = id, "space is short: a reader's point is gone"),
            Broken::Window => tracing::warn!(context = id, "space is short: the window is cut"),
            Broken::Resync => {
                tracing::error!(
                    context = id,
                    "space is short: the last consistent point of the resync is gone"
                );
            }
        }
    }
}

impl Context {
    /// The window that is promised. Times that are well ahead of this host's clock are not believed, nor is that clock where it
    /// was set ([`crate::clock`]).
    #[must_use]
    pub fn wanted(&self) -> journal::Wanted {
        let clock = self.clock.believed(self.doubts_within());
        journal::Wanted {
            believed: Some(Timestamp(clock.0.saturating_add(AHEAD_NS))),
            ..self.config.rollback_window.wanted()
        }
    }

    /// For how long a clock that was set makes nothing older: what was there before has then outlived what is promised.
    fn doubts_within(&self) -> Duration {
        let age = self.config.rollback_window.age;
        age.map_or(RELEASED_FOR, |age| age.0.max(RELEASED_FOR))
    }

    /// How far the newest received write claims to be ahead of this host's clock, if that is not believed.
    #[must_use]
    pub fn clock_ahead(&self) -> Option<Duration> {
        let ahead = self.journal.newest_time().0.saturating_sub(Timestamp::now().0);
        (ahead > AHEAD_NS).then(|| Duration::from_nanos(ahead))
    }

    /// By how much this host's clock was set forward, and for how long that makes nothing older, if it matters.
    #[must_use]
    pub fn clock_set(&self) -> Option<(Duration, Duration)> {
        let within = self.doubts_within();
        let by = u64::try_from(self.clock.doubted_ns(within)).ok()?;
        (by > AHEAD_NS).then_some((Duration::from_nanos(by), within))
    }

    /// Until when a snapshot that is released now keeps its point (K2): by the newest received write, not by the clock. What
    /// the clock was set forward by counts besides, for one day it is believed.
    #[must_use]
    pub fn release_until(&self) -> Timestamp {
        let for_ns = u64::try_from(RELEASED_FOR.as_nanos()).unwrap_or(u64::MAX);
        let newest = self.wanted().believe(self.journal.newest_time());
        let doubted = u64::try_from(self.clock.doubted_ns(self.doubts_within())).unwrap_or(0);
        Timestamp(newest.0.saturating_add(for_ns).saturating_add(doubted))
    }

    /// Whether a snapshot's point is gone: its reads fail.
    #[must_use]
    pub fn is_broken(&self, snapshot: &Snapshot) -> bool {
        !self.journal.is_kept(snapshot.point())
    }

    /// The window as it is against the window as it was promised; `None` while the promise is kept, or nothing that belongs
    /// to it was ever freed.
    #[must_use]
    pub fn shortfall(&self) -> Option<Shortfall> {
        let journal = &self.journal;
        let (floors, wanted) = (journal.floors(), self.config.rollback_window);
        let first = journal.consistent().first().map(|c| c.from)?;
        let floor = floors.redo_seq;
        if (floor.generation, floor.seq) <= (first.generation, first.seq) {
            return None;
        }
        let window = journal.window(None).ok()?;
        let held = journal.held_bytes().ok()?;
        let (limit, most) = match self.configured_limit() {
            Some((key, limit)) => (format!("{key} {}", Size(limit)), Some(limit)),
            None => ("the room on the disk".to_owned(), None),
        };
        let newest = self.wanted().believe(journal.newest_time());
        let reached = newest.0.saturating_sub(window.oldest.time.0);
        if let Some(age) = wanted.age
            && u128::from(reached) < age.0.as_nanos()
        {
            let needed = u128::from(held) * age.0.as_nanos() / u128::from(reached.max(1));
            let would_do = u64::try_from(needed).unwrap_or(u64::MAX);
            return Some(Shortfall {
                reached: format!("{}s", reached / Timestamp::SECOND_NS),
                wanted: age.to_string(),
                limit: if most.is_some_and(|most| would_do <= most) {
                    "time: it grows back".into()
                } else {
                    limit
                },
                would_do: (reached > 0).then_some(would_do),
            });
        }
        let bytes = wanted.bytes.filter(|b| held < b.0)?;
        Some(Shortfall {
            reached: size(held).to_string(),
            wanted: bytes.to_string(),
            limit,
            would_do: Some(bytes.0),
        })
    }
}

impl std::fmt::Display for Shortfall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the rollback window is {} of {} wanted; what binds is {}",
            self.reached, self.wanted, self.limit
        )?;
        match self.would_do {
            Some(bytes) => write!(f, "; {} would do", size(bytes)),
            None => Ok(()),
        }
    }
}
