//! The changes of role themselves, on a journal and its volumes: taking a line over, and giving one up (rules L1 to L5).
//!
//! # Overview
//!
//! [`Host::take_over`] makes a replica production: everything received is applied (or, at a restored point, nothing), every block of
//! every record past the chosen point is stale in this host's own map, and then role, term and line are one commit.
//! [`Host::give_way`] makes a host that was production a replica of another's line: its volumes hold all of its own line, its part
//! of the set is stale, and then role and line are one commit. The daemon and the tests run this one code; they differ in
//! who asks, who is asked, and what runs meanwhile.
//!
//! # Crash consistency
//!
//! Every step repeats harmlessly, and the commit comes last. Until it the host is what it was: a promotion is announced by
//! FAILING_OVER before this code runs, so that nothing is received meanwhile. Staleness that was marked and is not needed
//! costs a copy.
//!
//! # What it does not do
//!
//! It asks no peer, starts and stops nothing: nobody writes to the volumes or the journal while it runs.

use crate::{
    agent::meeting,
    applying::{Applier, ApplyError, CopyQueue, acting},
    roles::{Standing, row::put_standing},
};
use journal::{ContextRow, Journal, JournalError, LinePart, MapShape, Position};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, ContextState, GenId, Point, Role, VolumeIndex,
    ports::{History, HistoryError},
};
use snapshot::Volumes;

/// Blocks that are asked for at once.
const BLOCKS_AT_ONCE: usize = 4096;

/// Why a role could not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Applying, or writing back.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Undo.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A host that must not lose anything would, or nobody can know: it is not simply behind the line that it is to follow.
    #[error(
        "the line of this host has gone on apart from the other one: what only this host has would be lost"
    )]
    WouldLose,
}

/// A context's journal and volumes on one host, in the hands of whoever changes its role.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Its journal.
    pub journal: &'a Journal,
    /// Its volumes.
    pub volumes: &'a Volumes,
}

/// Where a line is taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// At the newest record that was received.
    Newest,
    /// At the point of the failover restore that the volumes stand at.
    Restored(Point),
}

impl Host<'_> {
    /// Closes the line and applies all of it.
    ///
    /// # Errors
    /// When the journal, the engine or a volume fails.
    pub fn settle(&self) -> Result<(), ChangeError> {
        if self.journal.restore()?.is_some() {
            // Rule R-2.
            return Err(JournalError::Internal("a rolled-back replica applies nothing").into());
        }
        self.journal.close_line()?;
        let copies = &CopyQueue::default();
        let applier = Applier {
            journal: self.journal,
            volumes: self.volumes,
            copies,
            state: ContextState::Enabled,
        };
        while applier.step(&mut || {})? {}
        Ok(())
    }

    /// Announces that this host takes a line over: `row` says FAILING_OVER, durable when this returns. One that was production
    /// takes over its own line; it gives that up first, so that its volumes stand at the end, as a replica's do.
    ///
    /// # Errors
    /// When the journal, the engine or a volume fails; run again it goes on.
    pub fn announce(&self, row: &ContextRow) -> Result<(), ChangeError> {
        let journal = self.journal;
        let was_production = journal.context()?.is_some_and(|row| row.role == Role::Production);
        if was_production {
            self.finish_line()?;
            return Ok(journal.give_up(row)?);
        }
        Ok(journal.put_context(row)?)
    }

    /// Takes the line over; `row` is what this host is from then on.
    ///
    /// # Errors
    /// When the journal, the engine or a volume fails; run again it goes on.
    pub fn take_over(
        &self,
        at: &At,
        maps: &[(VolumeIndex, MapShape)],
        row: &ContextRow,
    ) -> Result<Position, ChangeError> {
        let journal = self.journal;
        let place = match at {
            At::Newest => {
                self.finish_line()?;
                self.line_end()
            }
            At::Restored(point) => {
                journal.close_line()?;
                Position {
                    generation: point.generation,
                    seq: point.seq,
                }
            }
        };
        for (volume, shape) in maps {
            journal.set_map(*volume, *shape)?;
        }
        let mut set = journal.touched_past(place)?;
        if let (At::Restored(point), Some(set)) = (at, &mut set) {
            // What was applied past the point and taken back, copies among it.
            self.undone(point, set)?;
        }
        match set {
            Some(set) if set.is_empty() => {}
            Some(set) => journal.mark_stale(&set, journal.cursors().appended)?,
            None => {
                journal.all_stale()?;
            }
        }
        let clock = match at {
            At::Newest => journal.newest_clock(),
            At::Restored(point) => point.time,
        };
        journal.promote(GenId(rand::random()), place, clock, row)?;
        Ok(place)
    }

    /// Where the line ends; one that was taken over and not added to ends where it was taken over.
    fn line_end(&self) -> Position {
        let parts = self.journal.line_parts();
        let end = parts
            .last()
            .and_then(|last| self.journal.position_of(last.id, last.upto));
        end.unwrap_or_default()
    }

    /// Every block that was overwritten since the base of a point.
    fn undone(&self, point: &Point, set: &mut Vec<(VolumeIndex, ByteRange)>) -> Result<(), ChangeError> {
        let upto = History::published(self.journal);
        let mut from = (VolumeIndex(0), BlockNo(0));
        loop {
            let blocks = self
                .journal
                .undone_blocks(point.base, upto, from, BLOCKS_AT_ONCE)?;
            for (volume, block) in &blocks {
                let range = ByteRange::at(block.start(), BLOCK_SIZE);
                match set.last_mut() {
                    Some((v, last)) if v == volume && last.end == range.start => last.end = range.end,
                    _ => set.push((*volume, range)),
                }
            }
            match blocks.last() {
                Some((volume, block)) if blocks.len() == BLOCKS_AT_ONCE => {
                    from = (*volume, BlockNo(block.0 + 1));
                }
                _ => return Ok(()),
            }
        }
    }

    /// Brings the volumes to the end of this host's own line (L4) and closes it.
    ///
    /// # Errors
    /// When the journal, the engine or a volume fails.
    pub fn finish_line(&self) -> Result<(), ChangeError> {
        let journal = self.journal;
        let is_production = journal.context()?.is_some_and(|row| row.role == Role::Production);
        // A replica that was left no earlier point stands at one still: what it applies must lead back there.
        if !is_production || acting::builds_undo(journal) {
            return self.settle();
        }
        acting::replay(journal, self.volumes)?;
        Ok(journal.close_line()?)
    }

    /// Gives this host's line up for one that has the parts `theirs`; `row` is what this host is from then on. `may_lose`:
    /// whether what only this host holds may give way. `maps` are those of a host that takes a line over, for one that another
    /// overtook in the middle of that.
    ///
    /// # Errors
    /// [`ChangeError::WouldLose`], with nothing changed; or when the journal, the engine or a volume fails.
    pub fn give_way(
        &self,
        theirs: &[LinePart],
        may_lose: bool,
        maps: &[(VolumeIndex, MapShape)],
        row: &ContextRow,
    ) -> Result<(), ChangeError> {
        let journal = self.journal;
        if let Some(restore) = journal.restore()? {
            if !may_lose {
                return Err(ChangeError::WouldLose);
            }
            // A failover from a restored point that another host overtook: the line ends at that point. To apply what is held would
            // lay it over volumes from which all that lies between was taken back.
            let mut fenced = row.clone();
            put_standing(&mut fenced, Standing::Fenced, row.term, None);
            self.take_over(&At::Restored(restore.target), maps, &fenced)?;
        }
        self.finish_line()?;
        let own = meeting::own_part(journal, theirs)?;
        let stale = journal.mapped_volumes().into_iter();
        let is_stale = stale.into_iter().any(|v| journal.next_stale(v, 0, 1).is_some());
        // A record that changes no byte is none of the other line's either: the stream would find that the two have parted. It
        // finds no place for the other line's next record where a generation was opened, or more is held than was taken over,
        // unless that record begins a generation itself.
        let end = Some(self.line_end());
        let ends_here = theirs.last().and_then(|t| journal.position_of(t.id, t.upto)) == end;
        let parted = journal.common(theirs)? != end || !(journal.may_go_on() || ends_here);
        if !may_lose && (is_stale || parted || own.as_ref().is_none_or(|own| !own.is_empty())) {
            return Err(ChangeError::WouldLose);
        }
        match own {
            Some(own) if own.is_empty() => {}
            Some(own) => journal.mark_stale(&own, journal.cursors().appended)?,
            None => {
                journal.all_stale()?;
            }
        }
        Ok(journal.give_up(row)?)
    }
}
