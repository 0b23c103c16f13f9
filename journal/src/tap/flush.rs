//! Flushes that wait for a sync (rule T1).

use super::{Done, stopping};
use crate::JournalError;
use model::WriteSeq;
use parking_lot::{Condvar, Mutex};
use std::{sync::Arc, time::Duration};

/// The waiters of a context and the bell of its sync thread.
///
/// A waiter carries the newest record appended before it asked. `Flushes::synced` is told what was appended *before* the
/// sync call began, so a waiter is answered only by a sync that started after its frame was appended.
#[derive(Default)]
pub struct Flushes {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<(WriteSeq, Done)>,
    unsynced: bool,
    stopping: bool,
    /// Why nobody is answered with success any more: whoever comes too late for [`Flushes::failed`] or [`Flushes::stop`]
    /// would wait for a sync that never comes.
    ended: Option<Arc<JournalError>>,
}

impl Flushes {
    /// Adds waiters, each for a record, or answers them at once where that is durable already.
    pub(super) fn wait(&self, mut waiters: Vec<(WriteSeq, Done)>, durable: WriteSeq) {
        for (_, done) in waiters.extract_if(.., |(upto, _)| *upto <= durable) {
            done(Ok(()));
        }
        if waiters.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if let Some(error) = state.ended.clone() {
            drop(state);
            let done = waiters.into_iter().map(|(_, done)| done);
            done.for_each(|done| done(Err(Arc::clone(&error))));
            return;
        }
        state.waiting.extend(waiters);
        state.unsynced = true;
        self.bell.notify_all();
    }

    /// Something was appended: unsynced data starts a sync even if nobody waits, so that lag does not wait for a flush.
    pub(super) fn appended(&self) {
        let mut state = self.state.lock();
        if !state.unsynced {
            state.unsynced = true;
            self.bell.notify_all();
        }
    }

    /// All up to `durable` is durable.
    pub(super) fn synced(&self, durable: WriteSeq) {
        let answered: Vec<Done> = {
            let mut state = self.state.lock();
            let (answered, waiting) = std::mem::take(&mut state.waiting)
                .into_iter()
                .partition(|(upto, _)| *upto <= durable);
            state.waiting = waiting;
            let answered: Vec<(WriteSeq, Done)> = answered;
            answered.into_iter().map(|(_, done)| done).collect()
        };
        answered.into_iter().for_each(|done| done(Ok(())));
    }

    /// The context is poisoned: everyone is told, now and later.
    pub(super) fn failed(&self, error: &Arc<JournalError>) {
        let waiting = {
            let mut state = self.state.lock();
            state.ended.get_or_insert_with(|| Arc::clone(error));
            std::mem::take(&mut state.waiting)
        };
        waiting
            .into_iter()
            .for_each(|(_, done)| done(Err(Arc::clone(error))));
    }

    /// Whether nothing is synced any more.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    /// Sleeps until something is unsynced (`true`), the time is over (`false`) or [`Flushes::stop`] was called (`None`).
    #[must_use]
    pub fn wait_for_work(&self, at_most: Duration) -> Option<bool> {
        let mut state = self.state.lock();
        if !state.unsynced && !state.stopping {
            self.bell.wait_for(&mut state, at_most);
        }
        if state.stopping {
            return None;
        }
        Some(std::mem::take(&mut state.unsynced))
    }

    /// Ends the sync thread; who still waits, or asks from now on for what is not durable, is answered with an error.
    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.bell.notify_all();
        self.failed(&stopping());
    }
}
