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
        })
    }
}
