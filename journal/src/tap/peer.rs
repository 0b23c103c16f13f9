//! Answers that wait for the peer: modes `mwc` and `sync`, and the high-water mark of `async` (`requirements.md` R2, R3, R17).
//!
//! # Overview
//!
//! In mode `async` an answer follows the append of its record, or its sync here if that was asked for. In the other two it follows the
//! peer's word that the record is durable there. Only durable records are sent, so that word says that it is durable here as well.
//!
//! | the peer is | that is | `mwc`, `sync` | `async` |
//! | --- | --- | --- | --- |
//! | alone | nobody is expected, as after a failover | answered here | answered here |
//! | away | not connected, or it receives nothing for want of room | [`OnLinkLoss`] | answered here |
//! | behind | connected, and receives what it lacks from before | [`OnLinkLoss`] | answered here |
//! | in step | it lacked little once since it was connected | waits for it | answered here, or waits while too much is on its way |
//!
//! Too much is more than the high-water mark; from then on all wait, until nothing is on its way or the peer is lost.
//!
//! # Invariants
//!
//! - While the peer is in step no change is answered with success in `mwc` and `sync` before the peer has it durably (R2).
//! - What was answered in `async` and the peer in step has not received is at most the high-water mark (R3).
//! - Who waits is answered: by the peer's word, by the loss of the peer as [`OnLinkLoss`] says, or with an error by the end of the tap.
//!
//! # What it does not do
//!
//! `mwc` does not write here and there at the same time: a record leaves when it is durable here, so that a production that lost its
//! power never stands behind its own replica, and starts without asking it. So `mwc` and `sync` answer at the same moment.

use super::{Done, Tap};
use crate::JournalError;
use model::WriteSeq;
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};

/// What may be on its way to a peer that is in step for the first time: others wait for no more than this then.
const STEP_BYTES: u64 = 1 << 20;
/// Bytes of changes that are counted as one.
const CHUNK_BYTES: u64 = 64 << 10;

/// What becomes of changes that should wait for a peer that is not in step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLinkLoss {
    /// They are answered as in mode `async`.
    #[default]
    Continue,
    /// They wait until it is.
    Block,
    /// They are answered with an error.
    Fail,
}

/// When changes are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerRule {
    /// Every change waits for the peer: modes `mwc` and `sync`.
    pub always: bool,
    /// Answered bytes that may be on their way in mode `async`.
    pub high_water_mark: Option<u64>,
    /// For changes that wait always.
    pub on_link_loss: OnLinkLoss,
}

/// How the peer stands to what is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerStep {
    /// Nobody is expected.
    #[default]
    Alone,
    /// It is not connected, or receives nothing.
    Away,
    /// It receives what it lacks from before.
    Behind,
    /// What is answered now it has, or will have soon.
    InStep,
}

/// What becomes of a change that was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// By what is known here.
    Here,
    /// Once the peer has it.
    Waits,
    /// With an error.
    Fails,
}

/// The table of the module's documentation; `above`: too much is on its way.
const fn answer(rule: PeerRule, step: PeerStep, above: bool) -> Answer {
    match (step, rule.always, rule.on_link_loss) {
        (PeerStep::Alone, ..) => Answer::Here,
        (PeerStep::InStep, always, _) if always || above => Answer::Waits,
        (PeerStep::Away | PeerStep::Behind, true, OnLinkLoss::Block) => Answer::Waits,
        (PeerStep::Away | PeerStep::Behind, true, OnLinkLoss::Fail) => Answer::Fails,
        _ => Answer::Here,
    }
}

/// A change that waits to be answered.
pub(super) struct Held {
    upto: WriteSeq,
    durable: bool,
    done: Done,
}

/// Who is answered now, and how.
#[derive(Default)]
struct Released {
    /// The peer has theirs durably.
    received: Vec<Held>,
    /// By what is known here.
    here: Vec<Held>,
    failed: Vec<Held>,
}

#[derive(Default)]
struct State {
    step: PeerStep,
    /// What it must have to be in step.
    goal: WriteSeq,
    received: WriteSeq,
    /// Changes that it has not received, since it was connected: the last record and the bytes of each.
    sent: VecDeque<(WriteSeq, u64)>,
    sent_bytes: u64,
    above: bool,
    waiting: VecDeque<Held>,
    ended: Option<Arc<JournalError>>,
}

impl State {
    fn count(&mut self, upto: WriteSeq, bytes: u64) {
        if matches!(self.step, PeerStep::Alone | PeerStep::Away) || upto <= self.received {
            return;
        }
        self.sent_bytes += bytes;
        match self.sent.back_mut() {
            Some((last, of)) if *of + bytes <= CHUNK_BYTES => (*last, *of) = (upto, *of + bytes),
            _ => self.sent.push_back((upto, bytes)),
        }
    }

    fn forget_sent(&mut self) {
        self.sent.clear();
        (self.sent_bytes, self.above) = (0, false);
    }

    /// Takes the peer's word for `upto`.
    fn received(&mut self, upto: WriteSeq) {
        self.received = self.received.max(upto);
        while self.sent.front().is_some_and(|(last, _)| *last <= self.received) {
            let (_, bytes) = self.sent.pop_front().unwrap_or_default();
            self.sent_bytes -= bytes;
        }
        if self.step == PeerStep::Behind && self.received >= self.goal {
            if self.sent_bytes <= STEP_BYTES {
                self.step = PeerStep::InStep;
            } else {
                self.goal = self.sent.back().map_or(self.goal, |(last, _)| *last);
            }
        }
        self.above &= !self.sent.is_empty();
    }
}

/// Holds answers back.
#[derive(Default)]
pub(super) struct Gate {
    rule: PeerRule,
    state: Mutex<State>,
}

impl Gate {
    pub(super) fn new(rule: PeerRule) -> Self {
        Self {
            rule,
            state: Mutex::default(),
        }
    }

    /// Nobody ever waits here.
    pub(super) const fn is_open(&self) -> bool {
        !self.rule.always && self.rule.high_water_mark.is_none()
    }

    /// Takes the answers of what was appended up to `upto`, so many bytes.
    fn take(&self, upto: WriteSeq, bytes: u64, answers: Vec<(bool, Done)>) -> Released {
        let mut released = Released::default();
        let held = answers
            .into_iter()
            .map(|(durable, done)| Held { upto, durable, done });
        let mut state = self.state.lock();
        state.count(upto, bytes);
        if state.step == PeerStep::InStep
            && self
                .rule
                .high_water_mark
                .is_some_and(|most| state.sent_bytes > most)
        {
            state.above = true;
        }
        match answer(self.rule, state.step, state.above) {
            _ if state.ended.is_some() => released.failed.extend(held),
            Answer::Here => released.here.extend(held),
            Answer::Waits if upto <= state.received => released.received.extend(held),
            Answer::Waits => state.waiting.extend(held),
            Answer::Fails => released.failed.extend(held),
        }
        released
    }

    /// The peer is connected and has everything up to `received` of what was appended up to `appended`.
    fn met(&self, received: WriteSeq, appended: WriteSeq) -> Released {
        let mut state = self.state.lock();
        state.forget_sent();
        (state.step, state.goal, state.received) = (PeerStep::Behind, appended, WriteSeq(0));
        state.received(received);
        Self::take_received(&mut state)
    }

    fn received(&self, upto: WriteSeq) -> Released {
        let mut state = self.state.lock();
        if matches!(state.step, PeerStep::Alone | PeerStep::Away) {
            return Released::default();
        }
        state.received(upto);
        Self::take_received(&mut state)
    }

    fn take_received(state: &mut State) -> Released {
        let mut released = Released::default();
        while let Some(held) = state.waiting.pop_front_if(|held| held.upto <= state.received) {
            released.received.push(held);
        }
        released
    }

    /// The peer is not connected any more, or receives nothing.
    fn lost(&self) -> Released {
        let mut released = Released::default();
        let mut state = self.state.lock();
        state.forget_sent();
        (state.step, state.received) = (PeerStep::Away, WriteSeq(0));
        match answer(self.rule, state.step, false) {
            Answer::Here => released.here.extend(state.waiting.drain(..)),
            Answer::Waits => {}
            Answer::Fails => released.failed.extend(state.waiting.drain(..)),
        }
        released
    }

    /// Nobody is answered with success any more.
    pub(super) fn end(&self, error: &Arc<JournalError>) {
        let waiting = {
            let mut state = self.state.lock();
            state.ended.get_or_insert_with(|| Arc::clone(error));
            std::mem::take(&mut state.waiting)
        };
        for held in waiting {
            (held.done)(Err(Arc::clone(error)));
        }
    }

    fn error(&self) -> Arc<JournalError> {
        self.state.lock().ended.clone().unwrap_or_else(|| {
            Arc::new(JournalError::Refused(
                "the peer is not in step, and on_link_loss is fail".into(),
            ))
        })
    }
}

impl Tap {
    /// Answers for what was appended up to `upto`, so many bytes, or has it wait for the peer.
    pub(super) fn answer_appended(&self, upto: WriteSeq, bytes: u64, answers: Vec<(bool, Done)>) {
        if self.gate.is_open() {
            let here = answers
                .into_iter()
                .map(|(durable, done)| Held { upto, durable, done });
            return self.answer_here(here);
        }
        self.release(self.gate.take(upto, bytes, answers));
    }

    /// Whether a change would fail for want of a peer: it is not appended then.
    pub(super) fn refuses_changes(&self) -> Option<Arc<JournalError>> {
        let fails = !self.gate.is_open() && {
            let state = self.gate.state.lock();
            answer(self.gate.rule, state.step, state.above) == Answer::Fails
        };
        fails.then(|| self.gate.error())
    }

    fn release(&self, released: Released) {
        let Released {
            received,
            here,
            failed,
        } = released;
        for held in received {
            (held.done)(Ok(()));
        }
        self.answer_here(here);
        if !failed.is_empty() {
            let error = self.gate.error();
            for held in failed {
                (held.done)(Err(Arc::clone(&error)));
            }
        }
    }

    fn answer_here(&self, held: impl IntoIterator<Item = Held>) {
        let mut waiting: Vec<(WriteSeq, Done)> = Vec::new();
        for Held { upto, durable, done } in held {
            if durable {
                waiting.push((upto, done));
            } else {
                done(Ok(()));
            }
        }
        self.flushes.wait(waiting, self.journal.cursors().durable);
    }

    /// How the peer stands to what is answered, and whether more than the high-water mark is on its way.
    #[must_use]
    pub fn peer_step(&self) -> (PeerStep, bool) {
        let state = self.gate.state.lock();
        (state.step, state.above)
    }

    /// A link is begun: from now on a peer is expected.
    pub fn expect_peer(&self) {
        self.release(self.gate.lost());
    }

    /// The peer is connected and has everything up to `received`.
    pub fn peer_met(&self, received: WriteSeq) {
        let appended = self.journal.cursors().appended;
        self.release(self.gate.met(received, appended));
    }

    /// The peer has everything up to `upto` durably.
    pub fn peer_received(&self, upto: WriteSeq) {
        self.release(self.gate.received(upto));
    }

    /// The peer is not connected any more, or receives nothing. Who waits is answered as [`OnLinkLoss`] says; by a journal that is
    /// poisoned nobody with success.
    pub fn peer_lost(&self) {
        if let Some(error) = self.journal.poisoned() {
            self.gate.end(&Arc::new(error));
        }
        self.release(self.gate.lost());
    }
}

#[cfg(test)]
mod tests;
