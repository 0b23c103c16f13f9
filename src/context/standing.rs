//! What a context is on this host, durably: role, state and term, and what becomes of them when it is fenced (invariant 8).

use super::{Context, PeerView, Running};
use crate::{
    hooks::Facts,
    roles::{
        Standing,
        row::{self, standing_of},
    },
};
use journal::{ContextRow, JournalError};
use model::{ContextState, Role, Term};
use parking_lot::MutexGuard;
use std::sync::Arc;

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
        self.change_row(|row| row::put_standing(row, standing, term, why))
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
                row::put_standing(row, to, term, None);
                changed = true;
            }
        })?;
        Ok(changed)
    }

    /// Another host has a better right to the role: this one stops before its next acknowledgement (invariant 8).
    pub(crate) fn fence(self: &Arc<Self>, term: Term, why: &str) {
        if self.role() != Role::Production || self.standing() == Standing::Fenced {
            // It claims nothing, and still must know: a forced failover takes a term above all that was seen.
            if term > self.term()
                && let Err(e) = self.change_row(|row| row.term = row.term.max(term))
            {
                self.poison("term", &e);
            }
            return;
        }
        tracing::error!(context = self.id().0, term = term.0, "fenced: {why}");
        // Nothing is acknowledged any more, whatever becomes of the rest.
        if let Some(running) = self.running()
            && let Running::Production(production) = &*running
        {
            production.tap.close();
            production.tap.end_syncs();
        }
        let fenced = self.change_row(|row| {
            row::put_fence(row, term, why);
        });
        if let Err(e) = fenced {
            return self.poison("fencing", &e);
        }
        // The caller may be the link, which cannot wait for its own end.
        let context = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("c{}-fence", self.id()))
            .spawn(move || {
                // A resync may have been quicker: what runs is the replica then.
                context.halt_if(|| context.standing() == Standing::Fenced);
                context.bells.applied.ring();
            })
            .expect("a thread can be started");
    }

    /// A change of role has made this row durable: it is what this host is now, and an earlier restore is over.
    pub(crate) fn took_over(&self, row: ContextRow) {
        let seen = {
            let current = self.row.lock();
            let seen = current.term.max(row.term);
            self.replace_row(current, row);
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

    /// Takes a row that is durable for what this host is now, and tells the hooks if its role or state is another one.
    pub(super) fn replace_row(&self, mut current: MutexGuard<'_, ContextRow>, row: ContextRow) {
        let now = (row.role, row.state, row.term);
        let changes = (current.role, current.state) != (row.role, row.state);
        *current = row;
        drop(current);
        // A node that ends runs no hooks any more.
        let Some(node) = self.node.upgrade().filter(|_| changes) else {
            return;
        };
        let mut facts = Facts::of(self);
        (facts.role, facts.state, facts.term) = now;
        node.tell_state_changed(facts);
    }

    /// Why it is fenced.
    #[must_use]
    pub fn fenced_why(&self) -> Option<String> {
        row::fenced_why(&self.row())
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
