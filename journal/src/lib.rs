//! The journal of one context on one host: the one write order, kept so that any moment of it can be shown again.
//!
//! # Overview
//!
//! Records are grouped into [`Frame`]s, frames into containers (LFCs). The open container is a *tail* file that is
//! overwritten in place ([`Journal::append`], [`Journal::sync`]). When it is full or old it is sealed ([`Journal::seal`])
//! and moved into a [`model::ports::Store`] ([`Journal::ingest_sealed`]), where undo joins it
//! ([`model::ports::History::commit_undo`]). Catalog, cursors, pins, roles and state maps are rows of the same store.
//!
//! # Invariants
//!
//! - `durable` is what was appended before a sync that has ended (T1, T2); only [`Journal::sync`], a seal and recovery move it.
//! - A container's catalog row is its commit (T3); a tail is overwritten only after it (T4).
//! - Recovery never takes damage for a torn end (T5), and what it re-reads is durable again before it counts (T6).
//! - A failure of a medium or of the store poisons the journal: every later call names that first failure.
//!
//! # Crash consistency
//!
//! See `recovery` for the table of everything that can be found on open, `ingest` for the order of commits, `superblock`
//! for the bounds outside the store.
//!
//! # What it does not do
//!
//! It starts no thread, opens no socket, writes no volume and decides no policy: whoever owns the context calls it.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod cache;
mod changed;
pub mod check;
mod codec;
mod container;
mod cursors;
pub mod dump;
mod error;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod history;
mod ingest;
mod journal;
mod keys;
mod line;
mod load;
mod map;
pub mod mend;
mod meta;
mod overflow;
mod parts;
mod read;
mod record;
mod recovery;
mod retention;
mod rocks;
mod role;
mod rotten;
mod row_table;
mod rows;
mod shadow;
mod sizes;
mod superblock;
mod tables;
mod tail;
pub mod tap;
#[cfg(test)]
mod tests;
mod undo;
pub mod window;
mod withheld;

pub use cursors::Cursors;
pub use error::{Damage, JournalError, Position};
pub use frame::{
    Digest, FRAME_BODY_BYTES_MAX, FRAME_BYTES_MAX, FRAME_EXTRA_BYTES, Frame, FrameError, FrameHeader,
};
pub use journal::{Journal, Opened, Options};
pub use line::{LineSpan, NewGeneration};
pub use map::{Cell, MapShape, operator::SavedMaps, text as map_text};
pub use map_text::{MapText, MapTextError};
pub use overflow::GaveWay;
pub use parts::{IndexFloors, Parts};
pub use record::Draft;
pub use retention::{Broken, PinUse, Retained, Space, Wanted};
pub use rocks::RocksStore;
pub use role::{LinePart, parent_of};
pub use rows::{
    Consistent, ContextRow, Floors, Generation, LfcRow, OrdinalRow, Parent, PinKind, PinRow, Promotion,
    RestorePhase, RestoreRow,
};
pub use shadow::{ShadowMedium, ShadowStore};
pub use sizes::SizeChange;
pub use superblock::{Bounds, SUPERBLOCK_BYTES};
pub use tail::{SealFlags, tail_bytes};
pub use window::{Gap, GapCause, Reached, ResolveError, Resolved, Window};
