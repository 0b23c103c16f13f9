//! The way forward: an operator who types the command that should bring everything home, and does what refusals say.

use super::{
    hosts::Fallible,
    lines::same,
    operator::{Command, FORCE, Hint, How, Outcome},
    world::{Side, Step, World, reader},
};
use backstay::roles::{Next, Standing};
use rand::RngCore;
use std::{collections::BTreeSet, io};

/// Commands after which an operator has lost patience.
const COMMANDS_MAX: u32 = 60;

/// A command to type on a host.
type Typed = (Side, Command);

impl World {
    /// Whether both hosts are what they are configured to be, enabled and equal.
    pub fn is_whole(&self) -> Fallible<bool> {
        let (a, b) = (self.up(Side::A), self.up(Side::B));
        let runs = a.production().is_some() && b.recovery().is_some();
        let at_home = a.standing()? == Standing::Producing && b.standing()? == Standing::Replica;
        if !runs || !at_home || a.is_stale() || a.is_stopped()? || b.is_stopped()? {
            return Ok(false);
        }
        let promoted = b.journal.awaits_birth();
        let at = self.stands_at(b)?;
        let at = if promoted { at.map(|_| b.end()) } else { at };
        Ok(at == Some(a.end()))
    }

    /// Lets everything happen that happens by itself, until nothing does.
    pub fn calm(&mut self, rng: &mut dyn RngCore) {
        // A greeting and its answer change nothing that can be seen, and take less than this.
        const ROUNDS: u32 = 6;
        let mut before = String::new();
        for round in 0.. {
            assert!(round < 1_000, "the hosts do not come to rest");
            for _ in 0..ROUNDS {
                self.step(&Step::Settle, rng);
                for side in Side::ALL {
                    self.step(&Step::Round(side), rng);
                    self.step(&Step::WriteBack(side), rng);
                }
            }
            for side in Side::ALL {
                self.step(&Step::Seal(side), rng);
                self.step(&Step::Checkpoint(side), rng);
            }
            let after = self.picture();
            if before == after {
                return;
            }
            before = after;
        }
    }

    /// From wherever the hosts are: both are what they are configured to be, and equal.
    ///
    /// # Panics
    /// When the commands do not lead there.
    pub fn recover(&mut self, rng: &mut dyn RngCore) {
        for host in &self.hosts {
            host.power.never_freeze();
        }
        for side in Side::ALL {
            self.step(&Step::Room(side), rng);
        }
        self.step(&Step::Mend, rng);
        let mut tried = BTreeSet::new();
        let mut next: Option<Typed> = None;
        for typed in 0.. {
            assert!(typed < COMMANDS_MAX, "{COMMANDS_MAX} commands lead nowhere");
            self.calm(rng);
            if self.is_whole().unwrap() {
                self.counts.way_forward = self.counts.way_forward.max(typed);
                break;
            }
            let (side, command) = match next.take() {
                Some(typed) => typed,
                None => self.homewards(),
            };
            let seen = !tried.insert(format!("{side:?} {command:?} {}", self.standings()));
            let command = if seen { insist(command) } else { command };
            let outcome = self.step(&Step::Command(side, command), rng);
            next = match outcome {
                Some(Outcome::Refused(hint)) => self.hinted(side, hint, rng),
                _ => None,
            };
        }
        self.look_at_both();
    }

    /// The command that should bring everything home.
    fn homewards(&self) -> Typed {
        for side in Side::ALL {
            if self.up(side).is_stopped().unwrap() && !self.up(side.other()).is_stopped().unwrap() {
                let standing = self.up(side).standing().unwrap();
                if matches!(
                    standing,
                    Standing::Replica | Standing::RolledBack | Standing::Restoring
                ) {
                    return (side, Command::Start(How::default()));
                }
            }
        }
        let a = self.up(Side::A);
        if a.standing().unwrap() != Standing::Producing {
            return (Side::A, Command::Failback);
        }
        if a.is_stopped().unwrap() {
            return (Side::A, Command::Start(How::default()));
        }
        let b = self.up(Side::B).standing().unwrap();
        if matches!(b, Standing::Restoring | Standing::RolledBack) {
            return (Side::B, Command::Undo);
        }
        if b != Standing::Replica {
            return (Side::B, Command::Failback);
        }
        let stopped = Side::ALL.into_iter().find(|s| self.up(*s).is_stopped().unwrap());
        match stopped {
            Some(side) => (side, Command::Start(How::default())),
            // As `status` says where the link is refused.
            None if self.up(Side::B).diverged.get() => (Side::B, Command::Resync(How::default())),
            None => (Side::B, Command::Failback),
        }
    }

    /// What a refusal leads to.
    pub fn hinted(&mut self, side: Side, hint: Hint, rng: &mut dyn RngCore) -> Option<Typed> {
        let there = side.other();
        let mut drained = |host: Side| {
            self.step(&Step::Command(host, Command::Start(How::default())), rng);
            self.calm(rng);
            Some((host, Command::Stop(true)))
        };
        let inconsistent = How {
            force: false,
            inconsistent: true,
        };
        match hint {
            Hint::Wait => None,
            Hint::StartThere => drained(there),
            Hint::StartHere => drained(side),
            Hint::Inconsistent => Some((side, Command::Failover(inconsistent))),
            Hint::Next(next) => Some(match next {
                Next::Failover => (side, Command::Failover(How::default())),
                Next::FailoverThere => (there, Command::Failover(How::default())),
                Next::Resync => (side, Command::Resync(How::default())),
                Next::ResyncThere => (there, Command::Resync(How::default())),
                Next::Failback => (side, Command::Failback),
                Next::FailbackThere => (there, Command::Failback),
                Next::Stop => (side, Command::Stop(true)),
                Next::StopThere => (there, Command::Stop(true)),
                Next::Start => (side, Command::Start(How::default())),
                Next::Undo => (side, Command::Undo),
            }),
        }
    }

    fn standings(&self) -> String {
        let of = |side| {
            let up = self.up(side);
            let row = up.row().unwrap();
            format!("{:?} {:?} {}", up.standing().unwrap(), row.state, row.term)
        };
        format!("{} {}", of(Side::A), of(Side::B))
    }

    /// Both hosts' volumes are the end of the surviving line, byte for byte.
    pub fn look_at_both(&self) {
        let (a, b) = (self.up(Side::A), self.up(Side::B));
        let (id, at) = self.line_of(a);
        let oracle = self.lines.of(id);
        same(
            "production",
            oracle,
            at,
            &mut reader(a.production().expect("it is whole")),
        );
        let mut read = |v, at, out: &mut [u8]| b.volumes.read(v, at, out).map_err(io::Error::other);
        same("the replica", oracle, at, &mut read);
    }
}

fn insist(command: Command) -> Command {
    match command {
        Command::Failover(how) => Command::Failover(How { force: true, ..how }),
        Command::Resync(_) => Command::Resync(FORCE),
        Command::Start(_) => Command::Start(FORCE),
        other => other,
    }
}
