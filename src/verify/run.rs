//! The thread that verifies, and what is asked of it.

use super::{
    compare::{Comparer, Found, cut, hindrance},
    state::{Cause, Differs, Ended, Kept, LISTED_MAX, Live, NOTE, Pass, Sample, Unread, join, without},
    stretch::{Pace, STRETCH, Stretches, smaller},
};
use crate::{
    bell::{Bell, Ear},
    context::Context,
};
use journal::tap::Tap;
use model::{ByteRange, Timestamp, VolumeIndex};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

/// Stretches that were looked at and wait for the peer to receive what they are about.
const OPEN_MAX: usize = 64;
/// How often a pass that finds nothing is kept.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// Passes that have ended and can still be asked for.
const ENDED_KEPT: usize = 16;
/// Longest sleep of the thread.
const NAP: Duration = Duration::from_secs(3600);

/// Why a pass does not go on.
#[derive(Clone, Debug)]
pub(super) enum Halt {
    /// The context stops: it goes on when it is started again.
    Stops,
    /// Somebody does not want it any more.
    Cancelled,
    /// It cannot.
    Failed(String),
}

impl Halt {
    pub fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Where passes are begun and looked at.
#[derive(Default)]
pub struct Desk {
    bell: Bell,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Read from the context's row, once.
    kept: Option<Kept>,
    ended: VecDeque<Ended>,
    /// Bytes that the pass under way compares in all.
    total: u64,
    /// When it was begun or gone on with, and how much was compared then.
    from: Option<(Instant, u64)>,
    waits: Option<String>,
    /// The pass with this number is not wanted any more.
    cancelled: u64,
    caught_up: bool,
}

impl Desk {
    /// Rings whenever something has changed.
    #[must_use]
    pub fn ear(&self) -> Ear {
        self.bell.ear()
    }

    /// The bell: it wakes the thread, which looks whether it is to stop.
    #[must_use]
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// All copies of a first sync or resync have ended.
    pub(crate) fn caught_up(&self) {
        self.inner.lock().caught_up = true;
        self.bell.ring();
    }

    /// Begins a pass, in the place of one that nobody asked for. One with the same wishes that is under way is gone on with.
    ///
    /// # Errors
    /// The pass that is under way, if it is another operator's.
    pub fn begin(
        &self,
        context: &Context,
        by: &str,
        repair: bool,
        sample: Option<u64>,
    ) -> Result<u64, Box<Pass>> {
        let sample = smaller(context, sample);
        let mut inner = self.inner.lock();
        let kept = kept(&mut inner, context);
        if let Some(pass) = kept.pass.as_ref().filter(|p| p.cause == Cause::Operator) {
            let same = pass.repair == repair && pass.sample.map(|s| s.count) == sample;
            return if same {
                Ok(pass.number)
            } else {
                Err(Box::new(pass.clone()))
            };
        }
        let before = kept.pass.as_ref().map(|p| p.number);
        let number = new_pass(kept, context, Cause::Operator, by, repair, sample);
        inner.cancelled = before.unwrap_or(inner.cancelled);
        drop(inner);
        self.bell.ring();
        Ok(number)
    }

    /// The pass with this number is not wanted any more.
    pub fn cancel(&self, number: u64) {
        self.inner.lock().cancelled = number;
        self.bell.ring();
    }

    /// How a pass ended, once it has.
    #[must_use]
    pub fn ended(&self, number: u64) -> Option<Ended> {
        self.inner
            .lock()
            .ended
            .iter()
            .find(|e| e.number == number)
            .cloned()
    }

    /// What is to be seen.
    #[must_use]
    pub fn live(&self, context: &Context) -> Live {
        let mut inner = self.inner.lock();
        let kept = kept(&mut inner, context).clone();
        let compared = kept.pass.as_ref().map_or(0, |p| p.compared);
        let rate = inner.from.and_then(|(since, then)| {
            let rate = compared.saturating_sub(then) as f64 / since.elapsed().as_secs_f64().max(0.001);
            (rate > 0.0).then_some(rate)
        });
        Live {
            total: kept.pass.as_ref().map_or(0, |_| inner.total.max(compared)),
            rate: rate.filter(|_| kept.pass.is_some()),
            waits: inner.waits.clone().filter(|_| kept.pass.is_some()),
            pass: kept.pass,
            last: kept.last,
            known: kept.known,
            unread: kept.unread,
            unlisted: kept.unlisted,
        }
    }

    /// Works until the context stops.
    pub(crate) fn run(&self, context: &Arc<Context>, tap: &Tap, stopping: &dyn Fn() -> bool) {
        let mut ear = self.bell.ear();
        while !stopping() {
            let Some(pass) = self.next(context) else {
                ear.wait(self.until_due(context));
                continue;
            };
            let number = pass.number;
            let end = Work {
                desk: self,
                context,
                tap,
                number,
                stopping,
            }
            .pass();
            self.inner.lock().waits = None;
            match end {
                Err(Halt::Stops) => return,
                Ok(()) => self.end(context, number, |_| {}),
                Err(Halt::Cancelled) => self.end(context, number, |e| e.cancelled = true),
                Err(Halt::Failed(why)) => {
                    tracing::warn!(context = context.id().0, "verify ended: {why}");
                    self.end(context, number, |e| e.failure = Some(why));
                }
            }
            if context.journal.poisoned().is_some() {
                return;
            }
        }
    }

    /// The pass to work on: one that is under way, or one that is due.
    fn next(&self, context: &Context) -> Option<Pass> {
        let mut inner = self.inner.lock();
        let caught_up = std::mem::take(&mut inner.caught_up);
        let config = &context.config;
        let kept = kept(&mut inner, context);
        if kept.pass.as_ref().is_some_and(|p| p.term != context.term().0) {
            tracing::info!(
                context = context.id().0,
                "a verify of an earlier term is given up"
            );
            kept.pass = None;
        }
        if kept.pass.is_none() {
            let full_due = due(kept, context).is_some_and(|at| at <= Timestamp::now());
            if full_due {
                new_pass(kept, context, Cause::Schedule, "schedule", false, None);
            } else if caught_up && config.verify_after_catch_up > 0 {
                let sample = Some(config.verify_after_catch_up);
                new_pass(kept, context, Cause::CatchUp, "catch-up", false, sample);
            }
        }
        let pass = kept.pass.clone()?;
        inner.from = Some((Instant::now(), pass.compared));
        drop(inner);
        self.keep(context);
        Some(pass)
    }

    fn until_due(&self, context: &Context) -> Duration {
        let mut inner = self.inner.lock();
        let due = due(kept(&mut inner, context), context);
        due.map_or(NAP, |at| {
            NAP.min(Duration::from_nanos(at.0.saturating_sub(Timestamp::now().0)))
        })
    }

    /// Makes what is known durable; a context that cannot is poisoned, and the pass ends with it.
    fn keep(&self, context: &Context) {
        let text = {
            let mut inner = self.inner.lock();
            serde_json::to_string(kept(&mut inner, context)).expect("plain numbers and texts")
        };
        if let Err(e) = context.change_row(|row| drop(row.notes.insert(NOTE.to_owned(), text))) {
            tracing::warn!(context = context.id().0, "verify: {e}");
        }
        self.bell.ring();
    }

    fn end(&self, context: &Context, number: u64, change: impl FnOnce(&mut Ended)) {
        let mut inner = self.inner.lock();
        let kept = kept(&mut inner, context);
        let Some(pass) = kept.pass.take_if(|p| p.number == number) else {
            return;
        };
        let mut ended = Ended {
            number,
            since: pass.since,
            at: Timestamp::now().0,
            compared: pass.compared,
            sample: pass.sample.map(|s| s.count),
            lfc: context.journal.open_row().map_or(0, |row| row.lfc.0),
            found: pass.found,
            repaired: pass.repaired,
            failure: None,
            cancelled: false,
        };
        change(&mut ended);
        if pass.sample.is_none() {
            kept.full_at = ended.at;
        }
        if ended.failure.is_none() && !ended.cancelled {
            kept.unlisted = match pass.sample {
                None => pass.unlisted,
                Some(_) => kept.unlisted + pass.unlisted,
            };
            kept.last = Some(ended.clone());
            if kept.known.is_empty() && kept.unlisted == 0 {
                tracing::info!(
                    context = context.id().0,
                    bytes = ended.compared,
                    "verified: equal"
                );
            }
        }
        inner.ended.push_back(ended);
        if inner.ended.len() > ENDED_KEPT {
            inner.ended.pop_front();
        }
        drop(inner);
        self.keep(context);
    }
}

/// What is kept, read at first use. What cannot be read is none: it would only be compared again.
fn kept<'a>(inner: &'a mut Inner, context: &Context) -> &'a mut Kept {
    inner.kept.get_or_insert_with(|| {
        let row = context.row();
        let note = row.notes.get(NOTE);
        note.and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    })
}

/// When everything is to be verified by itself.
fn due(kept: &Kept, context: &Context) -> Option<Timestamp> {
    let every = context.config.verify_every?.0;
    let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
    Some(Timestamp(kept.full_at.saturating_add(every)))
}

fn new_pass(
    kept: &mut Kept,
    context: &Context,
    cause: Cause,
    by: &str,
    repair: bool,
    sample: Option<u64>,
) -> u64 {
    kept.number += 1;
    let sample = smaller(context, sample);
    kept.pass = Some(Pass {
        number: kept.number,
        cause,
        by: by.to_owned(),
        repair,
        sample: sample.map(|count| Sample {
            count,
            seed: rand::random(),
        }),
        term: context.term().0,
        since: Timestamp::now().0,
        next: 0,
        compared: 0,
        bytes: 0,
        found: 0,
        unlisted: 0,
        repaired: Vec::new(),
    });
    kept.number
}

/// One pass.
struct Work<'a> {
    desk: &'a Desk,
    context: &'a Arc<Context>,
    tap: &'a Tap,
    number: u64,
    stopping: &'a dyn Fn() -> bool,
}

impl Work<'_> {
    fn halt(&self) -> Option<Halt> {
        if (self.stopping)() {
            return Some(Halt::Stops);
        }
        (self.desk.inner.lock().cancelled == self.number).then_some(Halt::Cancelled)
    }

    /// Looks at the pass, and changes it. One that was replaced is cancelled.
    fn with<T>(&self, work: impl FnOnce(&mut Kept, &mut Pass) -> T) -> Result<T, Halt> {
        let mut inner = self.desk.inner.lock();
        let kept = kept(&mut inner, self.context);
        let mut pass = kept
            .pass
            .take_if(|p| p.number == self.number)
            .ok_or(Halt::Cancelled)?;
        let done = work(kept, &mut pass);
        kept.pass = Some(pass);
        Ok(done)
    }

    fn pass(&self) -> Result<(), Halt> {
        let halt = || self.halt();
        let waits = |why| self.desk.inner.lock().waits = why;
        let mut comparer = Comparer::new(self.context, self.tap, &halt, &waits);
        let (sample, repair) = self.with(|_, p| (p.sample, p.repair))?;
        let all = Stretches::of(self.context, sample);
        self.desk.inner.lock().total = all.bytes();
        // A volume that has grown meanwhile, or is smaller: it begins anew.
        let mut next = self.with(|_, p| {
            if p.bytes != all.volumes_bytes() {
                p.bytes = all.volumes_bytes();
                (p.next, p.compared, p.found, p.unlisted) = (0, 0, 0, 0);
            }
            p.next
        })?;
        let mut kept_at = Instant::now();
        let mut pace = Pace::new(self.context.config.verify_rate.0);
        let mut open = VecDeque::new();
        let mut left = (next..).map_while(|n| all.get(n));
        loop {
            // What the link has yet to carry keeps nobody from looking on.
            let oldest = open
                .front()
                .is_some_and(|(_, _, looked)| comparer.is_received(looked));
            if open.len() < OPEN_MAX
                && !oldest
                && let Some((volume, range)) = left.next()
            {
                open.push_back((volume, range, comparer.look(volume, range)?));
                self.rest(pace.spent(range.len()))?;
                continue;
            }
            let Some((volume, range, looked)) = open.pop_front() else {
                break;
            };
            let found = comparer.finish(looked)?;
            next += 1;
            let full = self.found(volume, &found, |pass| {
                pass.next = next;
                pass.compared += range.len();
            })?;
            if !found.differ.is_empty() || kept_at.elapsed() >= KEEP_EVERY {
                self.desk.keep(self.context);
                kept_at = Instant::now();
            }
            if repair && full {
                self.settle(&mut comparer, true)?;
            }
        }
        self.settle(&mut comparer, repair)
    }

    /// Notes what differs and how far the pass is; whether the list is full.
    fn found(
        &self,
        volume: VolumeIndex,
        found: &Found,
        change: impl FnOnce(&mut Pass),
    ) -> Result<bool, Halt> {
        self.with(|kept, pass| {
            change(pass);
            pass.found += found.differ.len() as u64;
            for (range, why) in &found.unreadable {
                let (id, first, bytes) = (self.context.id().0, range.start, range.len());
                tracing::warn!(context = id, volume = volume.0, first, bytes, "verify: {why}");
                if kept.unread.len() < LISTED_MAX {
                    kept.unread.push(unread(volume, *range, why));
                }
            }
            for range in &found.differ {
                if kept.known.len() < LISTED_MAX {
                    kept.known.push(Differs::new(volume, *range));
                    let (id, first, bytes) = (self.context.id().0, range.start, range.len());
                    tracing::warn!(context = id, volume = volume.0, first, bytes, "verify: differs");
                } else {
                    pass.unlisted += range.len();
                }
            }
            join(&mut kept.known);
            once(&mut kept.unread);
            kept.known.len() >= LISTED_MAX
        })
    }

    /// Compares again what is known to differ, after it was copied again if it is to be.
    fn settle(&self, comparer: &mut Comparer<'_>, repair: bool) -> Result<(), Halt> {
        // A restore may have brought a smaller size back: what lies behind it is shown to nobody.
        let inside = |differs: &Differs| {
            let (volume, range) = differs.place();
            let end = range.end.min(self.context.volume_size(volume));
            (range.start < end).then(|| Differs::new(volume, ByteRange { end, ..range }))
        };
        let known = self.with(|kept, _| {
            kept.known = kept.known.iter().filter_map(inside).collect();
            kept.unread.retain(|unread| inside(&unread.place).is_some());
            kept.known.clone()
        })?;
        if known.is_empty() {
            return Ok(());
        }
        comparer.ready()?;
        if repair {
            let ranges: Vec<_> = known.iter().map(|d| d.place()).collect();
            self.context.journal.take_over(&ranges).map_err(Halt::failed)?;
            // The peer, which takes itself for consistent, is told at the next greeting that it may not be.
            self.context.relink();
            tracing::info!(
                context = self.context.id().0,
                ranges = ranges.len(),
                "verify: what differs is copied again"
            );
        }
        let (mut still, mut still_unread) = (Vec::new(), Vec::new());
        let mut pace = Pace::new(self.context.config.verify_rate.0);
        for differs in &known {
            let (volume, whole) = differs.place();
            for range in cut(whole, STRETCH) {
                let found = comparer.blocks(volume, range)?;
                still.extend(found.differ.iter().map(|range| Differs::new(volume, *range)));
                let each = found.unreadable.iter();
                still_unread.extend(each.map(|(range, why)| unread(volume, *range, why)));
                self.rest(pace.spent(range.len()))?;
            }
        }
        join(&mut still);
        self.with(|kept, pass| {
            if repair {
                pass.repaired
                    .extend(known.iter().flat_map(|d| without(*d, &still)));
                join(&mut pass.repaired);
                pass.repaired.truncate(LISTED_MAX);
            }
            kept.known = still;
            once(&mut still_unread);
            still_unread.truncate(LISTED_MAX);
            kept.unread = still_unread;
        })?;
        self.desk.keep(self.context);
        Ok(())
    }

    /// Sleeps so long, or until the pass is to halt.
    fn rest(&self, long: Duration) -> Result<(), Halt> {
        let until = Instant::now() + long;
        let mut ear = self.desk.bell.ear();
        loop {
            if let Some(halt) = self.halt() {
                return Err(halt);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            ear.wait(left);
        }
    }
}

fn unread(volume: VolumeIndex, range: ByteRange, why: &str) -> Unread {
    Unread {
        place: Differs::new(volume, range),
        why: why.to_owned(),
    }
}

/// In order, and what was found before is not there twice.
fn once(unread: &mut Vec<Unread>) {
    unread.sort_by_key(|u| u.place);
    unread.dedup_by(|next, last| next.place == last.place);
}

impl Context {
    /// Why a verify could not compare anything now, if so.
    #[must_use]
    pub fn verify_hindrance(&self) -> Option<String> {
        match hindrance(self) {
            Ok(why) => why,
            Err(Halt::Failed(why)) => Some(why),
            Err(_) => None,
        }
    }
}
