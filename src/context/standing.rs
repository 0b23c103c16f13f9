//! What a context is on this host, durably: role, state and term, and what becomes of them when it is fenced (invariant 8).

use super::{Context, PeerView, Running};
use crate::roles::Standing;
use journal::{ContextRow, JournalError};
use model::{ContextState, Role, Term, Timestamp};
use std::sync::Arc;

/// Name of the note of a host that gave its role back and goes on by itself when the other has taken it.
pub(crate) const HANDED_BACK: &str = "handed_back";
/// Name of the note that says why a context is fenced.
const FENCED_WHY: &str = "fenced_why";
/// Name of the note that keeps the state to which a start leads back.
const BEFORE_STOP: &str = "state_before_stop";

/// What a row means, stopped or not.
pub(crate) fn standing_of(row: &ContextRow) -> Standing {
    let state = match row.state {
        ContextState::Stopped => {
            let before = row.notes.get(BEFORE_STOP);
            before
                .and_then(|name| ContextState::named(name))
                .unwrap_or(ContextState::Enabled)
        }
        state => state,
    };
    Standing::of(row.role, state)
}

/// Makes a row say another standing. A stop stays, but for a host that has nothing to stop any more.
pub(crate) fn put_standing(row: &mut ContextRow, standing: Standing, term: Term, why: Option<&str>) {
    let (role, state) = standing.row();
    row.role = role;
    row.term = term;
    row.since = Timestamp::now();
    row.notes.remove(HANDED_BACK);
    if row.state == ContextState::Stopped && standing != Standing::Fenced {
        row.notes.insert(BEFORE_STOP.into(), state.to_string());
    } else {
        row.notes.remove(BEFORE_STOP);
        row.notes.remove("stopped_by");
        row.state = state;
    }
    match why {
        Some(why) => drop(row.notes.insert(FENCED_WHY.into(), why.to_owned())),
        None => drop(row.notes.remove(FENCED_WHY)),
    }
}

/// Makes "stopped by an operator", or its end, part of a row.
pub(crate) fn put_stop(row: &mut ContextRow, by: Option<&str>) {
    match by {
        Some(by) if row.state != ContextState::Stopped => {
            // A rolled-back context that is stopped is rolled back still when it starts again.
            row.notes.insert(BEFORE_STOP.into(), row.state.to_string());
            row.notes.insert("stopped_by".into(), by.to_owned());
            row.state = ContextState::Stopped;
            row.since = Timestamp::now();
        }
        None if row.state == ContextState::Stopped => {
            row.state = standing_of(row).row().1;
            row.notes.remove(BEFORE_STOP);
            row.notes.remove("stopped_by");
            row.since = Timestamp::now();
        }
        _ => {}
    }
}

impl Context {
    /// What this host is for it.
    #[must_use]
    pub fn role(&self) -> Role {
        self.row.lock().role
    }

    /// Its durable state.
    #[must_use]
    pub fn state(&self) -> ContextState {
        self.row.lock().state
    }

    /// Whether an operator stopped it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state() == ContextState::Stopped
    }

    /// What it is here, stopped or not.
    #[must_use]
    pub fn standing(&self) -> Standing {
        standing_of(&self.row.lock())
    }

    /// Puts the context into another standing and term, durably; a stop stays.
    ///
    /// # Errors
    /// When it could not be made durable; nothing has changed then.
    pub fn set_standing(
        &self,
        standing: Standing,
        term: Term,
        why: Option<&str>,
    ) -> Result<(), JournalError> {
        self.change_row(|row| put_standing(row, standing, term, why))
    }

    /// Puts the context from one standing into another, durably; `false`: it was not in that one.
    ///
    /// # Errors
    /// As [`Context::set_standing`].
    pub fn change_standing(&self, from: Standing, to: Standing) -> Result<bool, JournalError> {
        let mut changed = false;
        self.change_row(|row| {
            if standing_of(row) == from {
                let term = row.term;
                put_standing(row, to, term, None);
                changed = true;
            }
        })?;
        Ok(changed)
    }

    /// Another host has a better right to the role: this one stops before its next acknowledgement (invariant 8).
    pub(crate) fn fence(self: &Arc<Self>, term: Term, why: &str) {
        if self.role() != Role::Production || self.standing() == Standing::Fenced {
            return;
        }
        tracing::error!(context = self.id().0, term = term.0, "fenced: {why}");
        // Nothing is acknowledged any more, whatever becomes of the rest.
        if let Some(running) = self.running()
            && let Running::Production(production) = &*running
        {
            production.tap.close();
            production.tap.flushes().stop();
        }
        let term = term.max(self.term());
        if let Err(e) = self.set_standing(Standing::Fenced, term, Some(why)) {
            return self.poison("fencing", &e);
        }
        // The caller may be the link, which cannot wait for its own end.
        let context = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("c{}-fence", self.id()))
            .spawn(move || {
                context.halt();
                context.bells.applied.ring();
            })
            .expect("a thread can be started");
    }

    /// A change of role has made this row durable: it is what this host is now, and an earlier restore is over.
    pub(crate) fn took_over(&self, row: ContextRow) {
        let seen = {
            let mut current = self.row.lock();
            let seen = current.term.max(row.term);
            *current = row;
            seen
        };
        // A higher term that was met while the change ran is never forgotten.
        if seen > self.term()
            && let Err(e) = self.change_row(|row| row.term = seen)
        {
            self.poison("term", &e);
        }
        *self.restore.lock() = None;
        *self.peer.lock() = PeerView::default();
        self.bells.applied.ring();
    }

    /// Why it is fenced.
    #[must_use]
    pub fn fenced_why(&self) -> Option<String> {
        self.row().notes.get(FENCED_WHY).cloned()
    }

    /// Ends the link to the peer and begins another: what is to be sent has changed from the ground up.
    pub(crate) fn relink(self: &Arc<Self>) {
        if let Some(running) = self.running()
            && let Running::Production(production) = &*running
        {
            production.relink(self);
        }
    }
}
