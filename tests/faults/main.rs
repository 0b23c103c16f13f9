//! Faults of real parts under two real nodes: the link, disks that are full or fail, hosts that are slow.
//!
//! A writer that knows the position of everything it writes works all the while. It must never see an error that the design does
//! not promise; and in the end random records of the history, marks and the replica are held against the oracle.
//!
//! `BACKSTAY_FAULTS=10` tries ten times as many.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod acting;
#[path = "../common/mod.rs"]
mod common;
#[path = "../power/disk.rs"]
mod disk;
mod full;
mod io;
mod link;
#[path = "../common/load.rs"]
mod load;
mod slow;
mod unreadable;
mod world;

/// How many times as many faults are tried.
fn factor() -> usize {
    std::env::var("BACKSTAY_FAULTS").map_or(1, |v| v.parse().unwrap())
}
