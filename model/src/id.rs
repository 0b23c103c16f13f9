//! Identifiers as newtypes, so that a write sequence number is never taken for a container id.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Number of a replication group as the operator types it (`-C 1`).
    ContextId(u32)
}
number! {
    /// Place of a volume in its context's list; never reused while the context lives.
    VolumeIndex(u16)
}
number! {
    /// Place of a record in the one write order of its context. The first record is 1; 0 means "before all".
    WriteSeq(u64)
}
number! {
    /// Log file container. Redo ids are even, the undo of container `n` is `n + 1`.
    LfcId(u64)
}
number! {
    /// Host-local number of a generation, in the order in which this host met them; used in keys, never sent.
    GenNo(u32)
}
number! {
    /// Order in which *this host* overwrites its volumes; host-local, never sent. 0 means "nothing applied yet".
    Ordinal(u64)
}
number! {
    /// Fencing counter, raised durably by every role change; whoever holds a lower one is refused.
    Term(u64)
}
number! {
    /// Level of a snapshot, counted up from [`Level::FIRST`].
    Level(u32)
}

/// Random identity of a generation, the same on every host.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenId(pub u64);

impl fmt::Debug for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenId({:016x})", self.0)
    }
}

impl WriteSeq {
    /// The next sequence number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Ordinal {
    /// The next ordinal.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl LfcId {
    /// The first redo container of a context.
    pub const FIRST: Self = Self(2);

    /// Whether this names a redo container.
    #[must_use]
    pub const fn is_redo(self) -> bool {
        self.0.is_multiple_of(2)
    }

    /// The redo container after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 2)
    }

    /// The undo container that belongs to this redo container.
    #[must_use]
    pub const fn undo(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Level {
    /// The level of the first snapshot, as the AIX product counts.
    pub const FIRST: Self = Self(10);
}
