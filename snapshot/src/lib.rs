//! The engine of points in time: overwrites volumes so that what was there stays readable, shows volumes as they were at
//! any record, keeps the private writes of read-write views, and plans and executes restores.
//!
//! # Overview
//!
//! * [`Volumes`] are the volumes of one context; [`ChangeSet`] is what some records do to them, newest wins.
//! * [`overwrite()`] is the one function that changes a volume: before-images durable first, then the blocks. [`apply()`]
//!   (a sealed container) and [`Restore`] are thin callers of it; [`write_back`] is its second half alone.
//! * [`View`] is the volumes at a [`model::Point`]; [`Overlay`] holds the writes of one read-write user; [`Vdev`] is both.
//! * [`RestorePlan`] says what a restore may change; [`Restore`] does it, and goes on after a crash at any step.
//!
//! History is read through [`model::ports::History`], storage through [`model::ports::Medium`]: this crate knows neither
//! RocksDB nor files, starts no thread and keeps no clock but the one in [`Progress`].
//!
//! # Invariants
//!
//! * A block is overwritten only when its before-image is durable and published (`rules.md` T3, V2); asserted in
//!   [`overwrite()`].
//! * Undo, once durable, is never rebuilt (W4): whatever was under way is repeated from the durable undo and the redo.
//! * A view's bytes depend on its point alone, never on what is being overwritten while it is read (V1, V2).
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod apply;
mod change;
mod copies;
mod error;
mod lens;
mod overlay;
mod overwrite;
mod plan;
mod progress;
mod restore;
mod vdev;
mod view;
mod volumes;

pub use apply::{Applied, Lfc, Step, apply, apply_first_sync};
pub use change::{ChangeSet, Run};
pub use copies::{RegionCopy, RegionOffer, lacking, piece_digest, write_copies};
pub use error::{Result, SnapshotError};
pub use overlay::{Overlay, OverlayUsage};
pub use overwrite::{Overwritten, UndoPlan, overwrite, overwrite_again, write_back};
pub use plan::{BlockKey, Candidates, RestorePlan};
pub use progress::Progress;
pub use restore::{Checkpoint, Restore, Restored, Watch};
pub use vdev::Vdev;
pub use view::{Extent, View};
pub use volumes::{Volume, Volumes};

/// Bytes of a block, for buffers.
const BLOCK: usize = model::BLOCK_SIZE as usize;
