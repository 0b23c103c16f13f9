//! Why the journal refused or failed.

use model::{
    GenId, GenNo, LfcId, VolumeIndex, WriteSeq,
    ports::{HistoryError, StoreError},
};
use std::{fmt, io};

/// A position as this host's keys name it. Ordered by generation first: a later generation is later whatever its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Host-local number of the generation.
    pub generation: GenNo,
    /// The record.
    pub seq: WriteSeq,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}:{}", self.generation, self.seq)
    }
}

/// Why a call on a journal failed. Failures of a medium or of the store, and damage, poison the journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A medium failed.
    #[error("{what}: {source}")]
    Io {
        /// Which medium.
        what: String,
        /// The failure.
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stored bytes do not check, or are fewer than were durable (invariant 9).
    #[error("damaged: {0}")]
    Damaged(#[from] Damage),
    /// Something is of a version that this build does not read.
    #[error("{what}: version {found} was found, this build reads up to {known}")]
    Version {
        /// What.
        what: String,
        /// Its version.
        found: u8,
        /// The newest that is read.
        known: u8,
    },
    /// An earlier failure poisoned the journal; the text is that first failure.
    #[error("poisoned by an earlier failure: {0}")]
    Poisoned(String),
    /// Bytes given to a parser are no frame.
    #[error("not a frame: {0}")]
    Frame(#[from] crate::frame::FrameError),
    /// The open container has no room for the frame; seal it first.
    #[error("container {lfc} has no room for {bytes} more bytes")]
    NeedsSeal {
        /// The open container.
        lfc: LfcId,
        /// What the frame needs.
        bytes: u64,
    },
    /// The frame fits into no container, or its body passes the limit.
    #[error("a frame of {bytes} bytes is larger than {max} bytes")]
    TooLarge {
        /// What the frame needs.
        bytes: u64,
        /// What there is.
        max: u64,
    },
    /// There is nothing to seal.
    #[error("the open container is empty")]
    Empty,
    /// There is no generation to append to: the journal is new, or was opened in spite of damage.
    #[error("no generation is open for records")]
    NoGeneration,
    /// A received frame is here already.
    #[error("record {last} is here already, the journal ends at {appended}")]
    Already {
        /// The frame's last record.
        last: WriteSeq,
        /// The journal's end.
        appended: WriteSeq,
    },
    /// A received frame, or a sealed end, is not what comes next.
    #[error("out of order: {what}: expected {expected}, got {got}")]
    OutOfOrder {
        /// Which field.
        what: &'static str,
        /// What comes next.
        expected: String,
        /// What came.
        got: String,
    },
    /// A received frame continues another chain.
    #[error("the chain breaks at {at}: the frames behind it differ")]
    Chain {
        /// Where.
        at: Position,
    },
    /// A generation that this host has not met.
    #[error("generation {0:?} is not known here")]
    UnknownGeneration(GenId),
    /// A container that the catalog does not know, or whose frames are gone.
    #[error("container g{generation}:{lfc} is not held here")]
    NotHeld {
        /// The generation.
        generation: GenNo,
        /// The container.
        lfc: LfcId,
    },
    /// A volume that is not of this context.
    #[error("volume {0} is not known here")]
    UnknownVolume(VolumeIndex),
    /// A state map is not what the caller has seen and saved of it.
    #[error("the state map of volume {0} has changed since it was saved")]
    MapChanged(VolumeIndex),
    /// A call that this state does not allow.
    #[error("refused: {0}")]
    Refused(String),
    /// Whoever gave the before-images could not give all of them.
    #[error("the before-images ended before the last of them")]
    Ended,
    /// A defect of the program.
    #[error("internal: {0}")]
    Internal(&'static str),
}

impl JournalError {
    /// A failed medium.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    /// Whether there is no room for what is to be stored. Nothing has changed: it may be tried again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store(e) if e.is_full())
    }

    /// Whether the journal can be trusted no more after this.
    #[must_use]
    pub(crate) fn poisons(&self) -> bool {
        match self {
            // Bytes at rest that do not check: what needs them fails, the rest goes on (T10).
            Self::Store(StoreError::Corrupt { .. }) => false,
            // Nothing was changed: the container stays where it is.
            Self::Store(e) if e.is_full() => false,
            Self::Io { .. } | Self::Store(_) | Self::Internal(_) => true,
            _ => false,
        }
    }
}

impl From<JournalError> for HistoryError {
    fn from(e: JournalError) -> Self {
        match e {
            JournalError::Store(e @ StoreError::Corrupt { .. }) => Self::Damaged(e.to_string()),
            JournalError::Store(e) => Self::Store(e),
            JournalError::Io { what, source } => Self::Io { what, source },
            JournalError::Damaged(d) => Self::Damaged(d.to_string()),
            JournalError::Poisoned(text) => Self::Poisoned(text),
            JournalError::Ended => Self::Ended,
            e @ JournalError::NotHeld { .. } => Self::Gone(e.to_string()),
            e => Self::Damaged(e.to_string()),
        }
    }
}

/// What is damaged, where, and how it was told from a torn end (`rules.md` T5, T7).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Both slots of the superblock fail their checksums, but the journal is not new.
    #[error("superblock: neither slot checks")]
    Superblock,
    /// A file of the journal is not there, but others are.
    #[error("{0} is gone: put it back")]
    Gone(String),
    /// The store lost synced metadata.
    #[error("store: metadata batch {found} is the last, {bound} was relied on")]
    Metadata {
        /// Newest batch found.
        found: u64,
        /// The superblock's bound.
        bound: u64,
    },
    /// The journal ends before something that was durable.
    #[error("the journal ends at {end}, but {bound} {why}")]
    EndBelow {
        /// Where it ends.
        end: Position,
        /// Where it must reach.
        bound: Position,
        /// How that is known.
        why: &'static str,
    },
    /// A frame in the middle of a tail does not check.
    #[error(
        "tail {tail}: the entry at byte {at}, after record {after}, does not check ({fault}), but the frame at byte {later_at} \
         says that {durable} was durable when it was written"
    )]
    Hole {
        /// Which tail.
        tail: usize,
        /// Offset of the bad entry.
        at: u64,
        /// Last good record before it.
        after: WriteSeq,
        /// What is wrong with it.
        fault: String,
        /// Offset of the frame that proves it.
        later_at: u64,
        /// What that frame claims.
        durable: WriteSeq,
    },
    /// A tail's header does not check, but its frames were durable.
    #[error("tail {tail}: the header does not check, but the frame at byte {at} holds durable records")]
    Header {
        /// Which tail.
        tail: usize,
        /// Offset of a frame that proves it.
        at: u64,
    },
    /// The tails do not continue the catalog.
    #[error("tail {tail}: {what} is {got}, the catalog expects {expected}")]
    Discontinuous {
        /// Which tail.
        tail: usize,
        /// Which field.
        what: &'static str,
        /// What the catalog or the other tail says.
        expected: String,
        /// What the tail says.
        got: String,
    },
    /// Stored frames of a sealed container do not match its row.
    #[error("container g{generation}:{lfc}: {what}")]
    Container {
        /// The generation.
        generation: GenNo,
        /// The container.
        lfc: LfcId,
        /// What does not match.
        what: String,
    },
    /// A row of the store cannot be read.
    #[error("{family} row {key}: {what}")]
    Row {
        /// Family of the row.
        family: &'static str,
        /// Its key in hexadecimal.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// A before-image does not check.
    #[error("undo {ordinal}, volume {volume}, block {block}: {what}")]
    Undo {
        /// Its container.
        ordinal: u64,
        /// Its volume.
        volume: u16,
        /// Its block.
        block: u64,
        /// What is wrong.
        what: String,
    },
}
