//! The role histories: two hosts that may be anything, with their real parts (journal, tap, snapshot engine, stream machines,
//! changes of role) on the fault seam, under every command in any order, crashed at any durable step, and judged by the
//! oracle.
//!
//! | what | where |
//! | --- | --- |
//! | a host: what it is, what runs, what it answers | [`host`] |
//! | the operator's commands, as `src/ops` does them | [`operator`] |
//! | what every line of history holds | [`lines`] |
//! | steps, promises, comparisons | [`world`] |
//! | the way forward from anywhere | [`recover`] |
//! | random histories | [`histories`] |
//! | the rules L by name, the parts of the set | [`l_rules`], [`parts`] |
//! | lines that are given up amid something else | [`given_up`] |
//! | DRBD's cases by name | [`drbd`] |
//!
//! `BACKSTAY_SEED=0x…` plays one seed again, `BACKSTAY_SEEDS=20` tries twenty times as many.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod crashes;
mod drbd;
mod given_up;
mod histories;
mod host;
#[path = "../core_histories/hosts.rs"]
#[allow(dead_code, reason = "hosts of fixed roles are not needed here")]
mod hosts;
mod l_rules;
mod lab;
mod lines;
#[path = "../core_histories/link.rs"]
#[allow(dead_code, reason = "a link is dialled here, never met at once")]
mod link;
mod operator;
mod parts;
mod recover;
mod world;

/// Bytes of a tail: room for a frame more than a container. No frame here is near the largest that there may be, and every open
/// of a host reads all of both tails.
const TAIL: u64 = 2 * hosts::LFC;
