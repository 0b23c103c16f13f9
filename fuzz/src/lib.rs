//! What the fuzzers stand on: bytes as a medium, and a small volume behind an NBD server.
//!
//! # How they are built
//!
//! `make fuzz` builds the workspace's own crates, and only these, with the compiler's coverage counters and `--cfg fuzzing`
//! (`scripts/fuzz.sh`): RocksDB and the other crates are those of every build. Under that flag stored checksums always fit
//! ([`model::checks`]), and `journal` shows its private parsers. A plain build makes the same programs without counters.

mod export;
mod medium;

pub use export::{greeting, serve};
pub use medium::InMemory;
