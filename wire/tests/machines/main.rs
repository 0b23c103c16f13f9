//! The rules of each stream machine, one by one. Schedules of both together are in `stream.rs`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod greeting;
mod lab;
mod receiver;
mod sender;
