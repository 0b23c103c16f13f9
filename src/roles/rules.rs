//! What a change of role needs beyond the table: asked of this host's journal and row, and of what the peer says of itself.
//! Nothing here asks anybody or changes anything; the commands and the model of the two hosts share it.

use super::{Act, Next, Standing, Verdict, change::At, decide, peer::PeerStanding, row::standing_of};
use journal::{ContextRow, Journal, RestorePhase, RestoreRow};
use model::{ContextState, Role, Term};

/// Terms that another host names are below this: a promotion takes one above all that was seen. No honest host comes near.
pub const TERMS_BELOW: u64 = 1 << 62;

/// A context on this host.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    /// Its durable row.
    pub row: &'a ContextRow,
    /// Its journal.
    pub journal: &'a Journal,
}

/// What the peer means for a failover of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opponent {
    /// It serves at a higher term.
    Higher,
    /// It serves: it must give its role up first.
    Runs,
    /// It serves nothing.
    Rests,
}

/// How far the volumes here can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// They are consistent, or stand at a restored point.
    Firm,
    /// One volume is restored and the others are not.
    Split,
    /// A resync is under way: only the last consistent point is firm (L7).
    Resyncing,
    /// They never were consistent.
    Never,
}

/// What keeps a configured production from taking its role back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeBack {
    /// Nothing.
    Ready,
    /// The peer has not begun the resync.
    NotShipping,
    /// The resync is not complete.
    Copying,
    /// The peer still serves.
    Runs,
    /// The peer is no production that could give its role up.
    NoProduction,
    /// Not everything of the peer is here and applied.
    Behind,
}

impl Here<'_> {
    fn standing(&self) -> Standing {
        standing_of(self.row)
    }

    /// Bytes that the peer does not have and no journal covers.
    #[must_use]
    pub fn stale_bytes(&self) -> u64 {
        let volumes = self.journal.mapped_volumes().into_iter();
        volumes.map(|volume| self.journal.stale_bytes(volume)).sum()
    }

    /// What the peer means for a failover.
    #[must_use]
    pub fn opponent(&self, peer: &PeerStanding) -> Opponent {
        if peer.term > self.row.term.0 && peer.standing().serves() {
            Opponent::Higher
        } else if peer.serves() {
            Opponent::Runs
        } else {
            Opponent::Rests
        }
    }

    /// What leads on where the peer serves at a higher term: this host is to follow it.
    #[must_use]
    pub fn instead_of_failover(&self, peer: &PeerStanding) -> Next {
        match (self.standing(), peer.standing()) {
            // It is a replica already: the other one is to ship.
            (Standing::Replica | Standing::RolledBack, Standing::FailedOver) => Next::ResyncThere,
            (Standing::RolledBack | Standing::Restoring, _) => Next::Undo,
            _ => Next::Resync,
        }
    }

    /// What a failover stands on.
    #[must_use]
    pub fn ground(&self, restore: Option<&RestoreRow>) -> Ground {
        if restore.is_some_and(|r| r.only.is_some()) {
            Ground::Split
        // A host that never was a replica is consistent by itself; a restored point is, too; and a failover that goes on has
        // seen to it.
        } else if self.row.role == Role::Production
            || matches!(self.standing(), Standing::RolledBack | Standing::FailingOver)
            || self.journal.consistent_from().is_some()
        {
            Ground::Firm
        } else if self.journal.last_consistent().is_none() {
            Ground::Never
        } else {
            Ground::Resyncing
        }
    }

    /// Whether a failover amid a resync was interrupted while it went back to the last consistent point (L7): it goes on there. A
    /// restore that an operator began is his to go on with.
    #[must_use]
    pub fn goes_back(&self, restore: Option<&RestoreRow>) -> bool {
        let until = self.journal.last_consistent();
        let until = until.map(|until| (until.generation, until.seq));
        self.standing() == Standing::Restoring
            && self.ground(restore) == Ground::Resyncing
            && restore.is_some_and(|row| {
                row.undo_from.is_none() && Some((row.target.generation, row.target.seq)) == until
            })
    }

    /// The term of a promotion: above all that either host has seen, but for one that goes on.
    #[must_use]
    pub fn next_term(&self, peer: Option<&PeerStanding>) -> Term {
        let seen = peer.map_or(self.row.term, |p| Term(p.term).max(self.row.term));
        let goes_on = self.standing() == Standing::FailingOver && seen == self.row.term;
        if goes_on { seen } else { Term(seen.0 + 1) }
    }

    /// Where a promotion takes the line over; `None`: a restore is not complete.
    #[must_use]
    pub fn place(&self, restore: Option<&RestoreRow>) -> Option<At> {
        match restore {
            None => Some(At::Newest),
            Some(row) if row.phase == RestorePhase::Done => Some(At::Restored(row.target.clone())),
            Some(_) => None,
        }
    }

    /// Whether the configured production may take its role back.
    #[must_use]
    pub fn take_back(&self, peer: &PeerStanding) -> TakeBack {
        if peer.standing() == Standing::FailedOver {
            TakeBack::NotShipping
        } else if peer.serves() {
            if peer.stale_bytes > 0 || !self.journal.is_consistent() {
                TakeBack::Copying
            } else {
                TakeBack::Runs
            }
        } else if !matches!(peer.standing(), Standing::Producing | Standing::Fenced) {
            TakeBack::NoProduction
        } else if !self.has_all_of(peer) {
            TakeBack::Behind
        } else {
            TakeBack::Ready
        }
    }

    /// What leads on where not everything of the peer is here; `None`: it is started again, until it is.
    #[must_use]
    pub fn instead_of_waiting(&self, peer: &PeerStanding) -> Option<Next> {
        match (self.standing(), peer.standing()) {
            // It is taking over its own line, whatever the peer has.
            (Standing::FailingOver, _) => Some(Next::Failover),
            // It cannot be started.
            (_, Standing::Fenced) => Some(Next::FailoverThere),
            _ => None,
        }
    }

    /// Whether everything of the peer's line is here and applied, and nothing is to be copied.
    #[must_use]
    pub fn has_all_of(&self, peer: &PeerStanding) -> bool {
        let goes_on = self.standing() == Standing::FailingOver;
        let whole = goes_on || (self.journal.is_consistent() && peer.stale_bytes == 0);
        let ours = self.journal.line_parts();
        let same = match (ours.last(), peer.line().last()) {
            (Some(our), Some(their)) => (our.id, our.upto) == (their.id, their.upto),
            (our, their) => our.is_none() && their.is_none(),
        };
        whole && same && self.journal.cursors().applied >= self.journal.line_cursors().1
    }

    /// Whether the peer holds everything of this production, which then may give its role back.
    #[must_use]
    pub fn is_all_at(&self, peer: &PeerStanding) -> bool {
        let end = self.journal.line_cursors().1.0;
        let whole = peer.standing() == Standing::Replica && self.stale_bytes() == 0;
        whole && peer.applied >= end && peer.end == end
    }

    /// Whether this host gives its role up to a peer at `term`: `Ok(false)`, it has none to give up.
    ///
    /// # Errors
    /// Why not.
    pub fn gives_up(&self, home: bool, term: Term, force: bool) -> Result<bool, Keeps> {
        if term < self.row.term {
            return Err(Keeps::HigherTerm);
        }
        let stopped = self.row.state == ContextState::Stopped;
        match decide(self.standing(), stopped, home, Act::GiveUp) {
            Verdict::Already => Ok(false),
            Verdict::Go => Ok(true),
            Verdict::Force(_) if force => Ok(true),
            Verdict::Force(next) | Verdict::Refuse(next) => Err(Keeps::Refused(next)),
        }
    }
}

/// Whether a production at this term that starts alone gives way to what its peer says of itself.
#[must_use]
pub fn has_better_right(term: Term, peer: &PeerStanding) -> bool {
    peer.term > term.0 || (peer.standing().serves() && peer.term == term.0)
}

/// Whether a production at this term learns from its peer that it is production no more.
#[must_use]
pub fn is_outdone(term: Term, peer: &PeerStanding) -> bool {
    peer.term > term.0 && peer.standing().serves()
}

/// Whether a production that ships nothing, and so meets nobody, must end because of what its peer says: at the same term
/// both do.
#[must_use]
pub fn is_contested(term: Term, peer: &PeerStanding) -> bool {
    peer.term >= term.0 && peer.standing().serves()
}

/// Why a host keeps its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// It has seen a higher term.
    HigherTerm,
    /// The table refuses, with what leads on.
    Refused(Next),
}
