//! A context's durable row as a standing: what a row means, and how one is made to say something else.

use super::Standing;
use journal::ContextRow;
use model::{ContextState, Role, Term, Timestamp};

/// Name of the note of a host that gave its role back and goes on by itself when the other has taken it.
pub const HANDED_BACK: &str = "handed_back";
/// Name of the note that says why a context is fenced.
const FENCED_WHY: &str = "fenced_why";
/// Name of the note that keeps the state to which a start leads back.
const BEFORE_STOP: &str = "state_before_stop";

/// Name of the note of a production whose journal gave way to the state map: what its replica lacks.
pub const SUPER_TRANSACTION: &str = "super_transaction";
/// Name of the note of a host whose restore began when it had given its line up: the undo of that restore leads back there.
const GAVE_UP: &str = "gave_up_before_restore";

/// What a row means, stopped or not.
#[must_use]
pub fn standing_of(row: &ContextRow) -> Standing {
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

/// Why a row is fenced.
#[must_use]
pub fn fenced_why(row: &ContextRow) -> Option<String> {
    row.notes.get(FENCED_WHY).cloned()
}

/// Makes a row say another standing. A stop stays, but for a host that has nothing to stop any more.
pub fn put_standing(row: &mut ContextRow, standing: Standing, term: Term, why: Option<&str>) {
    let (role, state) = standing.row();
    row.role = role;
    row.term = term;
    row.since = Timestamp::now();
    row.notes.remove(HANDED_BACK);
    row.notes.remove(GAVE_UP);
    if role == Role::Recovery {
        row.notes.remove(SUPER_TRANSACTION);
    }
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

/// Makes a state that a restore, or the end of its undo, leads to part of a row.
pub fn put_restore(row: &mut ContextRow, state: ContextState) {
    if state == ContextState::Restoring && row.state == ContextState::ResyncReady {
        row.notes.insert(GAVE_UP.into(), String::new());
    }
    let is_undone = state == ContextState::Enabled;
    row.state = match is_undone.then(|| row.notes.remove(GAVE_UP)).flatten() {
        Some(_) => ContextState::ResyncReady,
        None => state,
    };
    row.since = Timestamp::now();
}

/// Whether a restore, under way or done, began when this host had given its line up.
#[must_use]
pub fn gave_up_before_restore(row: &ContextRow) -> bool {
    row.notes.contains_key(GAVE_UP)
}

/// Makes "stopped by an operator", or its end, part of a row.
pub fn put_stop(row: &mut ContextRow, by: Option<&str>) {
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

/// Fences a row: another host has a better right to the role. `false`: it claims none; the term is remembered all the same.
pub fn put_fence(row: &mut ContextRow, term: Term, why: &str) -> bool {
    if row.role != Role::Production || standing_of(row) == Standing::Fenced {
        row.term = row.term.max(term);
        return false;
    }
    put_standing(row, Standing::Fenced, term.max(row.term), Some(why));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_its_role_up_has_no_replica_that_lacks_anything() {
        let mut row = ContextRow {
            role: Role::Production,
            state: ContextState::Enabled,
            term: Term(1),
            since: Timestamp::default(),
            notes: [(SUPER_TRANSACTION.to_owned(), "1 2 3".to_owned())].into(),
        };
        for (standing, kept) in [
            (Standing::Producing, true),
            (Standing::Fenced, true),
            (Standing::ResyncReady, false),
        ] {
            put_standing(&mut row, standing, Term(2), None);
            assert_eq!(row.notes.contains_key(SUPER_TRANSACTION), kept, "{standing:?}");
        }
    }
}
