//! The operator's commands, step by step as `src/ops` does them: the table first, then the peer, then durable steps.

use super::{
    host::{Runs, Up, maps},
    hosts::{Fallible, Keeper, indexes},
    world::{CONTAINER_BLOCKS, Side, World},
};
use anyhow::bail;
use backstay::{
    context::extent_of,
    restoring::{Replica, Work},
    roles::{
        Act, Next, Standing, Verdict,
        change::{At, ChangeError},
        decide,
        peer::PeerStanding,
        row::{HANDED_BACK, gave_up_before_restore, put_standing, put_stop},
        rules::{Ground, Keeps, Opponent, TakeBack, has_better_right, is_contested, is_outdone},
    },
};
use journal::RestoreRow;
use model::{ByteRange, ContextState, Role, Target, Term, Timestamp, ports::History, target::TargetKind};

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Already,
    /// The other host must do something now.
    Waits,
    /// Refused, with what leads on.
    Refused(Hint),
    /// The peer does not answer.
    NotNow,
}

/// What a refusal says leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A command, here or there.
    Next(Next),
    /// To wait for the copies.
    Wait,
    /// To start the other host, wait, and stop it drained.
    StartThere,
    /// The same, here.
    StartHere,
    /// `--inconsistent`.
    Inconsistent,
}

impl Outcome {
    /// Whether the command has led to what it was typed for.
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Done | Self::Already)
    }
}

/// Letters of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    pub force: bool,
    pub inconsistent: bool,
}

pub const FORCE: How = How {
    force: true,
    inconsistent: false,
};

/// A command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Failover(How),
    Resync(How),
    Failback,
    Start(How),
    /// `rtstop`; whether it drains.
    Stop(bool),
    /// `scrt_ra -F`
    Restore(Target),
    Undo,
    /// `scconfig -M`
    CopyAll,
}

enum Gate {
    Open,
    Forced,
    Already,
}

const fn refused(next: Next) -> Outcome {
    Outcome::Refused(Hint::Next(next))
}

/// Ends a command early.
macro_rules! give {
    ($outcome:expr) => {
        return Ok($outcome)
    };
}

impl World {
    /// Types a command on a host.
    pub fn command(&mut self, side: Side, command: &Command) -> Fallible<Outcome> {
        if self.hosts[side.index()].up.is_none() {
            give!(Outcome::NotNow);
        }
        match command {
            Command::Failover(how) => self.failover(side, *how),
            Command::Resync(how) => self.resync(side, *how),
            Command::Failback => self.failback(side),
            Command::Start(how) => self.start(side, *how),
            Command::Stop(drain) => self.stop(side, *drain),
            Command::Restore(target) => self.restore(side, target),
            Command::Undo => self.undo(side),
            Command::CopyAll => self.copy_all(side),
        }
    }

    /// What the peer says, if it answers.
    fn ask(&self, side: Side) -> Fallible<Option<PeerStanding>> {
        self.reachable(side.other()).map(Up::says).transpose()
    }

    /// What the hosts would find out at their next contact, found out before the table is asked.
    fn meet(&mut self, side: Side) -> Fallible {
        let peer = self.ask(side)?;
        let here = self.up(side);
        let row = here.row()?;
        if row.role == Role::Production
            && here.standing()? != Standing::Fenced
            && let Some(peer) = peer
            && is_outdone(row.term, &peer)
        {
            here.fence_now(Term(peer.term))?;
            self.end_fenced(side)?;
        }
        Ok(())
    }

    fn gate(&mut self, side: Side, act: Act, force: bool) -> Fallible<Result<Gate, Next>> {
        self.meet(side)?;
        let here = self.up(side);
        Ok(
            match decide(here.standing()?, here.is_stopped()?, here.is_home(), act) {
                Verdict::Go => Ok(Gate::Open),
                Verdict::Already => Ok(Gate::Already),
                Verdict::Force(_) if force => Ok(Gate::Forced),
                Verdict::Force(next) | Verdict::Refuse(next) => Err(next),
            },
        )
    }

    /// Asks the peer to give its role up; what it is after that, or why it keeps it.
    fn ask_to_give_up(
        &mut self,
        side: Side,
        term: Term,
        force: bool,
    ) -> Fallible<Result<PeerStanding, Outcome>> {
        let there = side.other();
        let Some(peer) = self.reachable(there) else {
            return Ok(Err(Outcome::NotNow));
        };
        let row = peer.row()?;
        match peer.here(&row).gives_up(peer.is_home(), term, force) {
            Err(Keeps::HigherTerm) => return Ok(Err(Outcome::NotNow)),
            Err(Keeps::Refused(_)) => return Ok(Err(refused(Next::StopThere))),
            Ok(false) => {
                if term > row.term {
                    peer.change_row(|row| row.term = row.term.max(term))?;
                }
            }
            Ok(true) => {
                if let Some(production) = peer.production() {
                    production.tap.close();
                    production.tap.sync_once()?;
                    production.tap.seal_now()?;
                    // The link drains as far as it goes by itself.
                    self.drain(there, 40, false)?;
                }
                self.halt(there)?;
                self.up(there)
                    .change_row(|row| put_standing(row, Standing::Fenced, term, Some("gave its role up")))?;
            }
        }
        if self.is_off(side) {
            bail!("nobody is there to hear the answer");
        }
        Ok(Ok(self.up(there).says()?))
    }

    fn failover(&mut self, side: Side, how: How) -> Fallible<Outcome> {
        let goes_back = how.force && !how.inconsistent && self.goes_back(side)?;
        let gate = match self.gate(side, Act::Failover, how.force)? {
            Ok(gate) => gate,
            Err(_) if goes_back => Gate::Open,
            Err(next) => give!(refused(next)),
        };
        if matches!(gate, Gate::Already) {
            give!(Outcome::Already);
        }
        let peer = self.ask(side)?;
        let here = self.up(side);
        let row = here.row()?;
        if let Some(peer) = &peer {
            let side = here.here(&row);
            match side.opponent(peer) {
                Opponent::Higher => give!(refused(side.instead_of_failover(peer))),
                Opponent::Runs if !how.force => give!(refused(Next::StopThere)),
                _ => {}
            }
        }
        let ground = here.here(&row).ground(here.restore()?.as_ref());
        match ground {
            Ground::Split => give!(refused(Next::Undo)),
            Ground::Firm => {}
            _ if how.inconsistent => {}
            Ground::Never => give!(Outcome::Refused(Hint::Inconsistent)),
            Ground::Resyncing if !how.force => give!(Outcome::Refused(Hint::Wait)),
            Ground::Resyncing => {}
        }
        // Before anybody gives a role up.
        if ground == Ground::Resyncing && !how.inconsistent {
            let journal = &here.journal;
            if !goes_back && journal.cursors().applied_ordinal != journal.published() {
                // What a crash has interrupted is finished first.
                give!(Outcome::NotNow);
            }
            self.restore_to_last_consistent(side)?;
        }
        let here = self.up(side);
        let term = here.here(&here.row()?).next_term(peer.as_ref());
        if let Some(peer) = &peer
            && peer.standing().serves()
            && let Err(outcome) = self.ask_to_give_up(side, term, how.force)?
        {
            give!(outcome);
        }
        self.halt(side)?;
        let up = self.up(side);
        let found = up.here(&up.row()?).ground(up.restore()?.as_ref());
        if found != Ground::Firm && !how.inconsistent {
            self.up_mut(side).start()?;
            give!(refused(Next::Failover));
        }
        if self.is_mixed(side) {
            self.take_as_they_are(side);
        }
        if found != Ground::Firm {
            let up = self.up(side);
            for (volume, shape) in maps(&up.journal, &self.sizes) {
                up.journal.set_map(volume, shape)?;
            }
            up.journal.all_stale()?;
            self.take_as_they_are(side);
        }
        let up = self.up(side);
        let announced = up.row_as(Standing::FailingOver, term)?;
        up.changed().announce(&announced)?;
        let row = up.row()?;
        let place = up.here(&row).place(up.restore()?.as_ref());
        let Some(at) = place else {
            bail!("a restore is not complete");
        };
        let expected = self.place_expected(side, &at)?;
        let up = self.up(side);
        let row = up.row_as(Standing::FailedOver, term)?;
        up.changed()
            .take_over(&at, &maps(&up.journal, &self.sizes), &row)?;
        self.took_over(side, expected)?;
        self.up_mut(side).start()?;
        Ok(Outcome::Done)
    }

    /// Whether the same command was interrupted on its way back to the last consistent point.
    fn goes_back(&self, side: Side) -> Fallible<bool> {
        let up = self.up(side);
        Ok(!up.is_stopped()? && up.here(&up.row()?).goes_back(up.restore()?.as_ref()))
    }

    /// Goes back to the last consistent point of a resync (L7), or goes on with that.
    fn restore_to_last_consistent(&mut self, side: Side) -> Fallible {
        let up = self.up(side);
        if let Some(row) = up.restore()? {
            return self.run_restore(side, Work::GoOn(row));
        }
        let until = up.journal.last_consistent();
        let until = until.expect("a resync has a last consistent point");
        let target = Target {
            generation: Some(until.generation),
            kind: TargetKind::Seq(until.seq),
        };
        let point = up.journal.resolve(&target, Timestamp(u64::MAX))?.point;
        let published = History::published(&*up.journal);
        let row = RestoreRow::begun(point, target.to_string(), None, published);
        self.run_restore(side, Work::Begin(row))
    }

    fn resync(&mut self, side: Side, how: How) -> Fallible<Outcome> {
        let up = self.up(side);
        let parted = up.standing()? == Standing::Replica && up.diverged.get() && !up.is_stopped()?;
        let gate = match parted {
            // Its line was refused: the table knows nothing of that.
            true => Gate::Open,
            false => match self.gate(side, Act::Resync, how.force)? {
                Ok(gate) => gate,
                // Half way back, the other host has given way to this one: this is its second half.
                Err(_) if self.is_waited_for(side)? && self.up(side).is_stopped()? => {
                    give!(refused(Next::Start))
                }
                Err(_) if self.is_waited_for(side)? => Gate::Already,
                Err(next) => give!(refused(next)),
            },
        };
        let already = matches!(gate, Gate::Already);
        match self.up(side).standing()? {
            Standing::Producing | Standing::FailedOver => self.activate(side, already),
            _ => self.make_ready(side, already),
        }
    }

    fn make_ready(&mut self, side: Side, already: bool) -> Fallible<Outcome> {
        if !already {
            let Some(peer) = self.ask(side)? else {
                give!(Outcome::NotNow);
            };
            if !peer.standing().serves() {
                give!(refused(match self.up(side).standing()? {
                    Standing::FailingOver => Next::Failover,
                    _ => Next::FailoverThere,
                }));
            }
            let up = self.up(side);
            let row = up.row_as(Standing::ResyncReady, Term(peer.term).max(up.row()?.term))?;
            let was = up.row()?.role;
            self.halt(side)?;
            let up = self.up(side);
            up.changed()
                .give_way(&peer.line(), true, &maps(&up.journal, &self.sizes), &row)?;
            self.gave_way(side, was)?;
        }
        self.up_mut(side).start()?;
        Ok(if already { Outcome::Already } else { Outcome::Done })
    }

    /// Whether the other host is ready for resync, and this one ships.
    fn is_waited_for(&self, side: Side) -> Fallible<bool> {
        let ready = self
            .ask(side)?
            .is_some_and(|peer| peer.standing() == Standing::ResyncReady);
        Ok(ready && self.up(side).standing()? == Standing::Producing)
    }

    fn activate(&mut self, side: Side, already: bool) -> Fallible<Outcome> {
        if already {
            give!(Outcome::Already);
        }
        let Some(peer) = self.ask(side)? else {
            give!(Outcome::NotNow);
        };
        if !matches!(
            peer.standing(),
            Standing::ResyncReady | Standing::Replica | Standing::RolledBack
        ) {
            give!(refused(Next::ResyncThere));
        }
        self.ship(side)?;
        Ok(Outcome::Done)
    }

    /// From now on the acting production ships.
    fn ship(&mut self, side: Side) -> Fallible {
        let up = self.up(side);
        if up.standing()? == Standing::FailedOver {
            up.set_standing(Standing::Producing, up.row()?.term)?;
            self.unlink(side);
        }
        Ok(())
    }

    fn failback(&mut self, side: Side) -> Fallible<Outcome> {
        let gate = match self.gate(side, Act::Failback, false)? {
            Ok(gate) => gate,
            Err(next) => give!(refused(next)),
        };
        if self.up(side).is_home() && self.up(side).standing()? == Standing::FailedOver {
            self.ship(side)?;
            give!(Outcome::Done);
        }
        if matches!(gate, Gate::Already) {
            give!(Outcome::Already);
        }
        let Some(peer) = self.ask(side)? else {
            give!(Outcome::NotNow);
        };
        if self.up(side).is_home() {
            self.take_back(side, &peer)
        } else {
            self.give_back(side, &peer)
        }
    }

    fn take_back(&mut self, side: Side, peer: &PeerStanding) -> Fallible<Outcome> {
        let up = self.up(side);
        let row = up.row()?;
        match up.here(&row).take_back(peer) {
            TakeBack::Ready => {}
            TakeBack::NotShipping => give!(refused(Next::ResyncThere)),
            TakeBack::Copying => give!(Outcome::Refused(Hint::Wait)),
            TakeBack::Runs => give!(refused(Next::StopThere)),
            TakeBack::NoProduction => give!(refused(Next::Failover)),
            TakeBack::Behind => give!(match up.here(&row).instead_of_waiting(peer) {
                Some(next) => refused(next),
                None => Outcome::Refused(Hint::StartThere),
            }),
        }
        let term = up.here(&row).next_term(Some(peer));
        let gave = match self.ask_to_give_up(side, term, false)? {
            Ok(gave) => gave,
            Err(outcome) => give!(outcome),
        };
        let up = self.up(side);
        if !up.here(&up.row()?).has_all_of(&gave) {
            give!(Outcome::Refused(Hint::StartThere));
        }
        let theirs = self.up(side.other()).end();
        self.up(side).set_standing(Standing::FailingOver, term)?;
        self.halt(side)?;
        let up = self.up(side);
        let row = up.row_as(Standing::Producing, term)?;
        let expected = self.place_expected(side, &At::Newest)?;
        assert_eq!(expected, theirs, "a failback that would lose something");
        let up = self.up(side);
        up.changed()
            .take_over(&At::Newest, &maps(&up.journal, &self.sizes), &row)?;
        self.took_over(side, expected)?;
        // `history_on_production = drop`
        self.up(side).journal.drop_history()?;
        self.up_mut(side).start()?;
        Ok(Outcome::Done)
    }

    fn give_back(&mut self, side: Side, peer: &PeerStanding) -> Fallible<Outcome> {
        let up = self.up(side);
        let fenced = up.standing()? == Standing::Fenced;
        if fenced && peer.standing().serves() {
            give!(self.follow(side, peer)?);
        }
        if !fenced && !up.here(&up.row()?).is_all_at(peer) {
            give!(Outcome::Refused(Hint::StartHere));
        }
        up.change_row(|row| {
            put_standing(row, Standing::Fenced, row.term, Some("it gave its role back"));
            row.notes.insert(HANDED_BACK.into(), "operator".into());
        })?;
        Ok(Outcome::Waits)
    }

    /// Becomes the replica of a production that lacks nothing of this host's line.
    fn follow(&mut self, side: Side, peer: &PeerStanding) -> Fallible<Outcome> {
        let up = self.up(side);
        let row = up.row_as(Standing::Replica, Term(peer.term).max(up.row()?.term))?;
        self.halt(side)?;
        let up = self.up(side);
        let (id, end) = up.end();
        let maps = maps(&up.journal, &self.sizes);
        match up.changed().give_way(&peer.line(), false, &maps, &row) {
            Ok(()) => {
                let has = |part: &journal::LinePart| part.id == id && end <= part.upto;
                assert!(
                    peer.line().iter().any(has),
                    "{id:?}:{end} is not on the line that is followed"
                );
            }
            Err(ChangeError::WouldLose) => give!(refused(Next::Resync)),
            Err(e) => return Err(e.into()),
        }
        self.gave_way(side, Role::Production)?;
        self.counts.follows += 1;
        self.up_mut(side).start()?;
        Ok(Outcome::Done)
    }

    /// A production has greeted a host that is fenced: one that gave its role back goes on by itself.
    pub(super) fn follow_again(&mut self, side: Side) -> Fallible {
        let up = self.up(side);
        let handed_back = up.row()?.notes.contains_key(HANDED_BACK);
        if !up.greeted.take() || !handed_back || up.standing()? != Standing::Fenced {
            return Ok(());
        }
        match self.ask(side)? {
            Some(peer) if peer.standing().serves() => self.follow(side, &peer).map(drop),
            _ => Ok(()),
        }
    }

    fn start(&mut self, side: Side, how: How) -> Fallible<Outcome> {
        if let Err(next) = self.gate(side, Act::Start, how.force)? {
            give!(refused(next));
        }
        let up = self.up(side);
        if up.held_back && up.standing()?.serves() && !how.force && !self.hear_peer(side)? {
            give!(Outcome::NotNow);
        }
        if let Err(next) = self.gate(side, Act::Start, how.force)? {
            give!(refused(next));
        }
        let up = self.up_mut(side);
        up.change_row(|row| put_stop(row, None))?;
        up.start()?;
        Ok(Outcome::Done)
    }

    /// A production that has started alone asks its peer; `true` when that has decided.
    pub(super) fn hear_peer(&mut self, side: Side) -> Fallible<bool> {
        let Some(peer) = self.ask(side)? else {
            return Ok(false);
        };
        let up = self.up_mut(side);
        if has_better_right(up.row()?.term, &peer) {
            up.fence_now(Term(peer.term))?;
            self.end_fenced(side)?;
        } else if !up.is_stopped()? {
            up.start()?;
        }
        self.up_mut(side).held_back = false;
        Ok(true)
    }

    /// A production since a failover ships nothing, so it asks now and then.
    pub(super) fn watch_peer(&mut self, side: Side) -> Fallible {
        let up = self.up(side);
        if up.standing()? != Standing::FailedOver || up.production().is_none() {
            return Ok(());
        }
        if let Some(peer) = self.ask(side)?
            && is_contested(up.row()?.term, &peer)
        {
            let term = up.row()?.term;
            if peer.term == term.0 {
                // What it answers changes nothing here.
                let _ = self.ask_to_give_up(side, term, true)?;
            }
            let up = self.up(side);
            up.fence_now(Term(peer.term))?;
            self.end_fenced(side)?;
        }
        Ok(())
    }

    fn stop(&mut self, side: Side, drain: bool) -> Fallible<Outcome> {
        if matches!(self.up(side).runs, Runs::Nothing) {
            give!(Outcome::Already);
        }
        if drain {
            if let Some(production) = self.up(side).production() {
                production.tap.sync_once()?;
                production.tap.seal_now()?;
            }
            self.drain(side, 400, true)?;
        }
        self.up(side).change_row(|row| put_stop(row, Some("operator")))?;
        self.halt(side)?;
        Ok(Outcome::Done)
    }

    fn restore(&mut self, side: Side, target: &Target) -> Fallible<Outcome> {
        let up = self.up(side);
        if up.recovery().is_some()
            && up.row()?.state == ContextState::Restoring
            && let Some(row) = up.restore()?.filter(|row| row.undo_from.is_none())
        {
            self.run_restore(side, Work::GoOn(row))?;
            give!(Outcome::Done);
        }
        let applied = up.journal.cursors().applied_ordinal;
        let idle = up.recovery().is_some()
            && matches!(up.row()?.state, ContextState::Enabled | ContextState::ResyncReady);
        if !idle || applied != up.journal.published() {
            give!(refused(Next::Undo));
        }
        let Ok(resolved) = up.journal.resolve(target, Timestamp(u64::MAX)) else {
            give!(Outcome::Refused(Hint::Wait));
        };
        let row = RestoreRow::begun(resolved.point, target.to_string(), None, applied);
        let done = self.run_restore(side, Work::Begin(row));
        if gave_up_before_restore(&self.up(side).row()?) {
            self.part(side);
        }
        done?;
        Ok(Outcome::Done)
    }

    fn undo(&mut self, side: Side) -> Fallible<Outcome> {
        let up = self.up(side);
        let state = up.row()?.state;
        let Some(row) = up.restore()? else {
            give!(Outcome::Already);
        };
        if up.recovery().is_none() || !matches!(state, ContextState::Restoring | ContextState::RolledBack) {
            give!(refused(Next::Start));
        }
        let work = match row.undo_from {
            Some(_) => Work::GoOn(row),
            None => Work::TurnRound(row),
        };
        self.run_restore(side, work)?;
        Ok(Outcome::Done)
    }

    fn run_restore(&mut self, side: Side, work: Work) -> Fallible {
        let up = self.up(side);
        let replica = Replica {
            journal: &up.journal,
            volumes: &up.volumes,
            container_blocks: CONTAINER_BLOCKS,
        };
        let mut keeper = Keeper {
            journal: &up.journal,
            room: u64::MAX,
        };
        replica.run(work, &mut keeper)?;
        self.look_at_replica(side)
    }

    fn copy_all(&mut self, side: Side) -> Fallible<Outcome> {
        let up = self.up(side);
        if up.serving()?.is_none() {
            give!(Outcome::Refused(Hint::StartThere));
        }
        for (volume, size) in indexes(&self.sizes) {
            let size = extent_of(&up.journal, volume, size);
            up.journal.take_over(&[(volume, ByteRange::at(0, size))])?;
        }
        self.unlink(side);
        Ok(Outcome::Done)
    }
}
