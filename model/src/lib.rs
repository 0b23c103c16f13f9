//! The words of Backstay: pure vocabulary and the ports between layers.
//!
//! Nothing here does I/O, starts a thread or knows a library of storage or network. Every other crate may import
//! this one; this one imports none of ours. See `GLOSSARY.md` for the words in prose.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod checksum;
pub mod geometry;
pub mod id;
pub mod mark;
pub mod point;
pub mod ports;
pub mod range_map;
pub mod record;
pub mod role;
pub mod target;
pub mod time;

pub use checksum::checks;
pub use geometry::{BLOCK_SIZE, BlockNo, ByteRange};
pub use id::{ContextId, GenId, GenNo, Level, LfcId, Ordinal, Term, VolumeIndex, WriteSeq};
pub use mark::EventMark;
pub use point::{Point, RedoSpan};
pub use range_map::{Piece, RangeMap};
pub use record::{Payload, Record, RecordBody, is_zero};
pub use role::{ContextState, Role};
pub use target::Target;
pub use time::Timestamp;
