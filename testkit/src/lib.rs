//! Test kit of Backstay: simulated disks that lose power, an oracle, and helpers for end-to-end tests.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod block;
pub mod golden;
pub mod oracle;
pub mod seeds;
pub mod sim;
pub mod workload;

pub use oracle::Oracle;
pub use seeds::with_seeds;
pub use sim::{SimMedium, SimPower, SimStore};
