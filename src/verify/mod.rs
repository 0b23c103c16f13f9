//! Verify: both hosts' volumes are compared while the application writes.
//!
//! # Overview
//!
//! The recovery host can show its volumes as of any record that it has (a view); production has only its newest state. So
//! production says what a piece of a volume is *as of a record*: it reads the piece without a lock, as clients see it, while
//! the tap notes every record that changes it meanwhile ([`journal::tap::Tap::look`]). What no record touched is exactly as of
//! the last record when the reading had ended; what was touched is read again, in smaller pieces, until nothing of the stretch
//! is left (`compare.rs`). The digests of the pieces go to the recovery host, with their position, as soon as it has
//! acknowledged that (`question.rs`); it looks through a view at the same position and says which pieces differ
//! (`answer.rs`). Meanwhile production looks on, so that a long queue on the link delays a pass once and not at every
//! stretch. Nothing stops, and no lock is held while anything is read.
//!
//! A production has one thread for this (`Desk::run`, `run.rs`). What it works on is a *pass*: begun by an operator, by the
//! schedule (`verify_every`) or by itself after a catch-up (`verify_after_catch_up`). A pass and what is known to differ are
//! kept durably (`state.rs`), in the context's row; the command `verify` begins a pass and looks on.
//!
//! # Invariants
//!
//! - A piece is reported only when its bytes differ in blocks of 4 KiB, seen twice: a larger piece that differs is only a
//!   reason to look at its blocks.
//! - Only what the replica must have is compared: nothing is stale, no copy is under way, the replica is consistent and not
//!   rolled back. Otherwise the pass waits, and says what for.
//! - What differs is known durably before the pass goes on, and stays known until it was compared again and found equal.
//! - A repair changes nothing by itself: what differs becomes suspect in the state map, durably, and is copied as in every
//!   resync (`rules.md` C1 to C5), with undo: points before it show what was there.
//!
//! # What cannot be read
//!
//! A block that the replica's storage cannot give (`EIO`: a bad sector, or a checksum of the file system below that does not
//! fit) is not equal, whatever it may hold. It is told apart in the answer, with the failure, and the pass goes on: a larger
//! piece is only a reason to ask for its blocks. The repair is the same: its region is copied again, and a copy writes what it
//! cannot read without comparing, which makes a drive remap the sector and a file system take a new block. What was there is not
//! known any more: `snapshot/src/overwrite.rs` says what that means for points before, and `crate::withheld` who is kept from it.
//! Where the block cannot be written either, the replica's context is poisoned, as by every failed write. It then refuses the link with its
//! failure, and a pass that has to wait for such a peer ends with that: nothing is ever called repaired that was not compared and
//! found equal behind the repair.
//!
//! # Crash consistency
//!
//! A pass goes on behind the last stretch that was kept, at most two seconds of work before. A pass of another term is given
//! up: the roles have changed since.
//!
//! # What it does not do
//!
//! A block of *production's* volume that cannot be read ends the pass with its place: there is nothing to compare with.
//!
//! It cannot tell which side rotted: production is the truth. It sees what the page cache of either host shows; a block that
//! rotted below a cached page is found when the page is gone. Earlier points than the compared ones, their undo and the
//! journals are not looked at.

mod answer;
mod compare;
mod question;
mod run;
mod state;
mod stretch;

pub(crate) use answer::answer;
pub use run::Desk;
pub use state::{Cause, Differs, Ended, Live, Pass, Unread};

/// Request kind: which of these pieces differ? (`docs/formats/wire.md`)
pub const COMPARE: u16 = 28;
