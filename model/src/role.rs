//! Roles and states of a context on one host.

use std::fmt;

/// What this host is for the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Accepts writes and journals them.
    Production,
    /// Receives, keeps the replica.
    Recovery,
}

/// The durable state of a context on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContextState {
    /// Stopped by the operator: serves no volume, moves no data, still answers its peer.
    Stopped,
    /// Works in its role.
    Enabled,
    /// A failover restore or its undo is under way (`rules.md` R-2): only the same command goes on from here.
    Restoring,
    /// The replica stands at a restored point: receives, applies nothing.
    RolledBack,
    /// A promotion is under way: its term is raised already, and only `rtdr failover` goes on from here.
    FailingOver,
    /// Production since a failover: captures and journals, ships nothing before `rtdr resync`.
    FailedOver,
    /// Gave up its role, or met a host with a better right to it: serves nothing, until an operator makes it follow.
    Fenced,
    /// Its own line is given up; it waits for the acting production's `rtdr resync`.
    ResyncReady,
}

impl ContextState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Stopped,
        Self::Enabled,
        Self::Restoring,
        Self::RolledBack,
        Self::FailingOver,
        Self::FailedOver,
        Self::Fenced,
        Self::ResyncReady,
    ];

    /// The state with this name, as it is displayed.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.to_string() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Production => "PRODUCTION",
            Self::Recovery => "REPLICA",
        })
    }
}

impl fmt::Display for ContextState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "STOPPED",
            Self::Enabled => "ENABLED",
            Self::Restoring => "RESTORING",
            Self::RolledBack => "ROLLED_BACK",
            Self::FailingOver => "FAILING_OVER",
            Self::FailedOver => "FAILED_OVER",
            Self::Fenced => "FENCED",
            Self::ResyncReady => "RESYNC_READY",
        })
    }
}
