//! A model against the real engine: journal, snapshot engine and restores as the daemon puts them together, on the fault
//! seam, under millions of random operations; a model that is as simple as can be says what each of them must answer.
//!
//! | what | where |
//! | --- | --- |
//! | what there is to do, drawn and written down | [`ops`] |
//! | the model: every byte as of every record, and what stands where | [`model`] |
//! | the engine: a host with its snapshots, opened again after every crash | [`engine`] |
//! | both do the same, and are compared | [`run`] |
//! | a failing history is made short | [`shrink`] |
//! | rules V and R by name, each with its counter-example | [`views`], [`restores`] |
//!
//! A history is a list of operations that each carry their own seed, so that any part of it is a history too: a failure is
//! made short by leaving operations out. `BACKSTAY_SEED=0x…` plays one history again (and makes it short again);
//! `BACKSTAY_SEEDS=20` tries twenty times as many.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod engine;
#[path = "../core_histories/hosts.rs"]
#[allow(dead_code, reason = "the other host is not needed here")]
mod hosts;
mod lab;
mod model;
mod ops;
mod restores;
mod run;
mod shrink;
mod views;

use rand::Rng;
use run::Counts;
use testkit::with_seeds;

/// Histories in the gate, and operations of each.
const HISTORIES: u64 = 255;
const OPERATIONS: usize = 4_000;

#[test]
fn a_model_and_the_engine_agree_on_a_million_operations() {
    let mut total = Counts::default();
    let tried = with_seeds("engine model", HISTORIES, |rng| {
        let sizes = run::sizes(rng);
        let history = ops::history(OPERATIONS, rng);
        total += shrink::run(&sizes, &history, rng.random());
    });
    println!("{tried} histories: {total}");
    assert!(tried < HISTORIES || total.is_rich(), "{total}");
}

/// Bytes of a tail, as a journal in files has them.
const TAIL: u64 = journal::tail_bytes(hosts::LFC);
