//! What can go wrong here, naming the thing and the number.

use model::{
    BlockNo, Ordinal, VolumeIndex,
    ports::{HistoryError, is_unreadable},
};
use std::io;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, SnapshotError>;

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// History could not be read or written.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A volume's storage failed.
    #[error("volume {name}: {op} at {at}: {source}")]
    Volume {
        /// The volume.
        name: String,
        /// What was being done.
        op: &'static str,
        /// At which byte.
        at: u64,
        /// The failure.
        source: io::Error,
    },
    /// A record, block or request names a volume that is not there.
    #[error("volume {0} is not part of this context")]
    NoSuchVolume(VolumeIndex),
    /// Bytes past the end of a volume.
    #[error("volume {volume}: {len} bytes at {at} pass the end at {size}")]
    PastEnd {
        /// The volume.
        volume: VolumeIndex,
        /// First byte.
        at: u64,
        /// Number of bytes.
        len: u64,
        /// The end.
        size: u64,
    },
    /// A volume's size is larger than what holds it.
    #[error("volume {name}: size {size} is larger than its backing of {backing} bytes")]
    SizePastBacking {
        /// The volume.
        name: String,
        /// Its size.
        size: u64,
        /// Bytes of its backing.
        backing: u64,
    },
    /// An overwrite came at the wrong place in this host's order of overwrites.
    #[error("ordinal {ordinal} does not fit: published is {published}")]
    OutOfOrder {
        /// The ordinal of the overwrite.
        ordinal: Ordinal,
        /// The newest ordinal with durable undo.
        published: Ordinal,
    },
    /// The cursor claims more than history holds.
    #[error("applied ordinal {applied} is past the newest durable undo {published}")]
    AppliedPastUndo {
        /// What the cursor says.
        applied: Ordinal,
        /// The newest ordinal with durable undo.
        published: Ordinal,
    },
    /// An overwrite that was begun must be finished first.
    #[error("ordinal {published} is begun but only {applied} is wholly applied")]
    Unsettled {
        /// The last whole one.
        applied: Ordinal,
        /// The one begun.
        published: Ordinal,
    },
    /// Redo and the durable undo of the same container disagree.
    #[error("undo of ordinal {ordinal} lacks block {} of volume {volume}", block.0)]
    UndoMissing {
        /// The container.
        ordinal: Ordinal,
        /// The volume.
        volume: VolumeIndex,
        /// The block that redo changes.
        block: BlockNo,
    },
    /// A block could not be read, again and again, and then could.
    #[error("block {} of volume {volume} can be read now and then only", block.0)]
    Unsteady {
        /// The volume.
        volume: VolumeIndex,
        /// The block.
        block: BlockNo,
    },
    /// A point stands on an ordinal that this host has not reached.
    #[error("point stands on ordinal {base}, but the newest is {published}")]
    BadPoint {
        /// The point's base.
        base: Ordinal,
        /// The newest ordinal with durable undo.
        published: Ordinal,
    },
    /// The caller asked a restore to stop; it can be gone on with.
    #[error("stopped as asked after ordinal {0}")]
    Stopped(Ordinal),
    /// A thread could not be had.
    #[error("start a thread: {0}")]
    Thread(#[source] io::Error),
    /// An overlay has no room for a write; to its user this is "no space left on device".
    #[error("overlay is full: {used} of {slots} blocks used, {needed} more needed")]
    OverlayFull {
        /// Blocks in use.
        used: u64,
        /// Blocks there are.
        slots: u64,
        /// Blocks the write needs.
        needed: u64,
    },
    /// An overlay's index log has no room for more separate zeroed ranges.
    #[error("overlay is full: its index log holds {entries} entries and no more")]
    OverlayLogFull {
        /// Entries there is room for.
        entries: u64,
    },
    /// An overlay's storage failed.
    #[error("overlay: {op} at {at}: {source}")]
    OverlayIo {
        /// What was being done.
        op: &'static str,
        /// At which byte.
        at: u64,
        /// The failure.
        source: io::Error,
    },
    /// An overlay's index log does not check; never served.
    #[error("overlay damaged: {0}")]
    OverlayDamaged(String),
    /// An earlier failed sync left it unknown what of the overlay is durable.
    #[error("overlay poisoned by an earlier failed sync")]
    OverlayPoisoned,
}

impl SnapshotError {
    /// Whether there was no room for what was to be written. What was written before that is as it would be after a crash: the
    /// same may be done again. A sync that fails is never this: it may have lost what was written before.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        match self {
            Self::Volume { op, source, .. } => *op != "sync" && source.kind() == io::ErrorKind::StorageFull,
            Self::History(HistoryError::Store(e)) => e.is_full(),
            _ => false,
        }
    }

    /// Whether a volume's storage cannot give bytes that were to be read, and nothing else is wrong.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Volume { op: "read", source, .. } if is_unreadable(source))
    }

    /// Whether this is an overlay without room (`ENOSPC` to its user).
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::OverlayFull { .. } | Self::OverlayLogFull { .. } => true,
            // The disk below is full: overlays take their room as they are written.
            Self::OverlayIo { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}
