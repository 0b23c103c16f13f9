//! The role machine: what may be done in which standing, as one table (`rules.md` L, R-2; `docs/ROLES.md` draws it).
//!
//! A *standing* is what a context is on one host: its role and its durable state. The table says of every standing and every
//! act whether it may be done, is done already, or is refused with the command that leads on and the host to type it on.
//! What depends on more than this host (whether the peer answers, has everything, or is ready) is asked by the command after
//! the table has let it through.

use model::{ContextState, Role};
use std::fmt;

/// What a context is on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Production: captures and ships.
    Producing,
    /// Production since a failover: captures, ships nothing yet.
    FailedOver,
    /// Serves nothing: it gave its role up, or another host has a better right to it.
    Fenced,
    /// Recovery: receives and applies.
    Replica,
    /// Recovery, rolled back by a failover restore: receives, applies nothing.
    RolledBack,
    /// Recovery, in the middle of a failover restore or its undo.
    Restoring,
    /// Recovery, in the middle of a promotion.
    FailingOver,
    /// Recovery whose own line was given up; it waits for the acting production.
    ResyncReady,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Producing,
        Self::FailedOver,
        Self::Fenced,
        Self::Replica,
        Self::RolledBack,
        Self::Restoring,
        Self::FailingOver,
        Self::ResyncReady,
    ];

    /// What role and state mean together. `state` is the one before a stop, where the context is stopped.
    #[must_use]
    pub const fn of(role: Role, state: ContextState) -> Self {
        match (role, state) {
            (_, ContextState::Fenced) => Self::Fenced,
            (Role::Production, ContextState::FailedOver) => Self::FailedOver,
            (Role::Production, _) => Self::Producing,
            (Role::Recovery, ContextState::RolledBack) => Self::RolledBack,
            (Role::Recovery, ContextState::Restoring) => Self::Restoring,
            (Role::Recovery, ContextState::FailingOver) => Self::FailingOver,
            (Role::Recovery, ContextState::ResyncReady) => Self::ResyncReady,
            (Role::Recovery, _) => Self::Replica,
        }
    }

    /// Role and state of this standing.
    #[must_use]
    pub const fn row(self) -> (Role, ContextState) {
        match self {
            Self::Producing => (Role::Production, ContextState::Enabled),
            Self::FailedOver => (Role::Production, ContextState::FailedOver),
            Self::Fenced => (Role::Production, ContextState::Fenced),
            Self::Replica => (Role::Recovery, ContextState::Enabled),
            Self::RolledBack => (Role::Recovery, ContextState::RolledBack),
            Self::Restoring => (Role::Recovery, ContextState::Restoring),
            Self::FailingOver => (Role::Recovery, ContextState::FailingOver),
            Self::ResyncReady => (Role::Recovery, ContextState::ResyncReady),
        }
    }

    /// Whether it serves the volumes, when it is not stopped.
    #[must_use]
    pub const fn serves(self) -> bool {
        matches!(self, Self::Producing | Self::FailedOver)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Producing => "production",
            Self::FailedOver => "production since a failover",
            Self::Fenced => "fenced",
            Self::Replica => "the replica",
            Self::RolledBack => "a replica that is rolled back",
            Self::Restoring => "a replica in the middle of a restore",
            Self::FailingOver => "a replica in the middle of a failover",
            Self::ResyncReady => "ready for resync",
        })
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// `rtdr failover`
    Failover,
    /// `rtdr resync`
    Resync,
    /// `rtdr failback`
    Failback,
    /// `rtstart`
    Start,
    /// The peer asks for the role.
    GiveUp,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Failover,
        Self::Resync,
        Self::Failback,
        Self::Start,
        Self::GiveUp,
    ];
}

/// A command that leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// `rtdr failover`, here.
    Failover,
    /// `rtdr failover`, on the other host.
    FailoverThere,
    /// `rtdr resync`, here.
    Resync,
    /// `rtdr resync`, on the other host.
    ResyncThere,
    /// `rtdr failback`, here.
    Failback,
    /// `rtdr failback`, on the other host.
    FailbackThere,
    /// `rtstop -FS`, here.
    Stop,
    /// `rtstop -FS`, on the other host.
    StopThere,
    /// `rtstart`, here.
    Start,
    /// `scrt_ra --undo`, here.
    Undo,
}

impl Next {
    /// The command line for this context, and whether it is typed on the other host.
    #[must_use]
    pub fn command(self, id: impl fmt::Display) -> (String, bool) {
        match self {
            Self::Failover => (format!("rtdr -C {id} failover"), false),
            Self::FailoverThere => (format!("rtdr -C {id} failover"), true),
            Self::Resync => (format!("rtdr -C {id} resync"), false),
            Self::ResyncThere => (format!("rtdr -C {id} resync"), true),
            Self::Failback => (format!("rtdr -C {id} failback"), false),
            Self::FailbackThere => (format!("rtdr -C {id} failback"), true),
            Self::Stop => (format!("rtstop -FSC {id}"), false),
            Self::StopThere => (format!("rtstop -FSC {id}"), true),
            Self::Start => (format!("rtstart -C {id}"), false),
            Self::Undo => (format!("scrt_ra -C {id} --undo"), false),
        }
    }
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be done, if what else it needs is so.
    Go,
    /// It is so already.
    Already,
    /// It may be done only if the operator insists (`-f`); else this leads on.
    Force(Next),
    /// It may not; this leads on.
    Refuse(Next),
}

/// What may be done. `home`: this host is the configured production; `stopped`: an operator stopped the context here.
#[must_use]
pub const fn decide(standing: Standing, stopped: bool, home: bool, act: Act) -> Verdict {
    use Standing as S;
    use Verdict::{Already, Force, Go, Refuse};
    match (act, standing) {
        // Nothing but its own command leads out of the middle of a step.
        (Act::Failover, S::FailingOver) => Go,
        (Act::Failback, S::FailingOver) if home => Go,
        // Where the other host took over meanwhile.
        (Act::Resync, S::FailingOver) => Go,
        (_, S::FailingOver) => Refuse(Next::Failover),
        (Act::Failover | Act::Resync | Act::Failback, S::Restoring) => Refuse(Next::Undo),

        (Act::Failover, S::Replica | S::RolledBack) if stopped => Refuse(Next::Start),
        (Act::Failover, S::Replica | S::RolledBack) => Go,
        (Act::Failover, S::FailedOver) => Already,
        (Act::Failover, S::Producing) if home => Refuse(Next::FailoverThere),
        (Act::Failover, S::Producing) => Already,
        // Its own data against the other's: only an operator who insists takes it back.
        (Act::Failover, S::Fenced) => Force(Next::Resync),
        (Act::Failover, S::ResyncReady) => Force(Next::ResyncThere),

        (Act::Resync, S::Fenced) => Go,
        (Act::Resync, S::ResyncReady) if stopped => Refuse(Next::Start),
        (Act::Resync, S::ResyncReady) => Already,
        (Act::Resync, S::FailedOver) if stopped => Refuse(Next::Start),
        (Act::Resync, S::FailedOver) => Go,
        (Act::Resync, S::Producing) if home => Refuse(Next::FailoverThere),
        (Act::Resync, S::Producing) if stopped => Refuse(Next::Start),
        (Act::Resync, S::Producing) => Already,
        (Act::Resync, S::Replica) if home => Already,
        // Its whole store or its volumes are lost: everything is copied again.
        (Act::Resync, S::Replica) => Force(Next::Failover),
        (Act::Resync, S::RolledBack) => Refuse(Next::Failover),

        (Act::Failback, S::Producing) if home => Already,
        (Act::Failback, S::Producing) if stopped => Go,
        (Act::Failback, S::Producing) => Refuse(Next::Stop),
        // Its own role for good: the other host follows.
        (Act::Failback, S::FailedOver) if home && stopped => Refuse(Next::Start),
        (Act::Failback, S::FailedOver) if home => Go,
        (Act::Failback, S::FailedOver) => Refuse(Next::ResyncThere),
        (Act::Failback, S::Fenced) if home => Refuse(Next::Resync),
        (Act::Failback, S::Fenced) => Go,
        (Act::Failback, S::ResyncReady) if stopped => Refuse(Next::Start),
        (Act::Failback, S::ResyncReady) if home => Refuse(Next::ResyncThere),
        (Act::Failback, S::ResyncReady) => Already,
        (Act::Failback, S::Replica) if home => {
            if stopped {
                Refuse(Next::Start)
            } else {
                Go
            }
        }
        (Act::Failback, S::Replica) => Already,
        (Act::Failback, S::RolledBack) => Refuse(Next::Failover),

        (Act::Start, S::Fenced) if home => Refuse(Next::Resync),
        (Act::Start, S::Fenced) => Refuse(Next::Failback),
        (Act::Start, _) if stopped => Go,
        (Act::Start, _) => Already,

        (Act::GiveUp, S::Producing | S::FailedOver) if stopped => Go,
        (Act::GiveUp, S::Producing | S::FailedOver) => Force(Next::StopThere),
        // Nothing to give up.
        (Act::GiveUp, _) => Already,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = (Standing, bool, bool, Act)> {
        let standings = Standing::ALL.into_iter();
        standings.flat_map(|s| {
            Act::ALL.into_iter().flat_map(move |act| {
                [false, true].into_iter().flat_map(move |stopped| {
                    [false, true].into_iter().map(move |home| (s, stopped, home, act))
                })
            })
        })
    }

    #[test]
    fn standings_are_their_rows() {
        for standing in Standing::ALL {
            let (role, state) = standing.row();
            assert_eq!(Standing::of(role, state), standing);
        }
    }

    #[test]
    fn the_whole_table_as_documented() {
        let mut text = String::from("act standing stopped home verdict\n");
        for (standing, stopped, home, act) in all() {
            let verdict = decide(standing, stopped, home, act);
            text += &format!("{act:?} {standing:?} {stopped} {home} {verdict:?}\n");
        }
        testkit::golden::check("roles/table.txt", text.as_bytes());
    }

    #[test]
    fn what_leads_on_here_may_be_done_here() {
        for (standing, stopped, home, act) in all() {
            let (Verdict::Refuse(next) | Verdict::Force(next)) = decide(standing, stopped, home, act) else {
                continue;
            };
            let then = match next {
                Next::Failover => Act::Failover,
                Next::Resync => Act::Resync,
                Next::Failback => Act::Failback,
                Next::Start => Act::Start,
                _ => continue,
            };
            let verdict = decide(standing, stopped, home, then);
            assert!(
                matches!(verdict, Verdict::Go) || matches!(verdict, Verdict::Refuse(Next::Start)) && stopped,
                "{act:?} in {standing:?} (stopped {stopped}, home {home}) leads to {next:?}, which is {verdict:?}"
            );
        }
    }

    #[test]
    fn invariant_8_no_act_makes_a_production_of_one_that_was_fenced_without_force() {
        for (stopped, home) in [(false, false), (false, true), (true, false), (true, true)] {
            for standing in [Standing::Fenced, Standing::ResyncReady] {
                assert!(!matches!(
                    decide(standing, stopped, home, Act::Failover),
                    Verdict::Go
                ));
                assert!(
                    !matches!(decide(standing, stopped, home, Act::Start), Verdict::Go)
                        || standing != Standing::Fenced
                );
            }
        }
    }
}
