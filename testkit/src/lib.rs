//! Test kit of Backstay: simulated disks that lose power, an oracle, and helpers for end-to-end tests.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod sim;

pub use sim::{SimMedium, SimPower, SimStore};
