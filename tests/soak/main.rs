//! A long random mixture of everything that may happen to two hosts, with a writer at work and the oracle beside it.
//!
//! One history after the other, each with a seed of its own that is printed: bad links, either daemon killed, also while it starts
//! and in the middle of a command, power cuts of the file systems below them, snapshots and vdevs at random records, restores and
//! their undo, planned failovers and failbacks, forced ones with the old production alive, journals that overflow, one bad
//! endpoint of two. Between the steps the two are asked how they are, and what they say is checked;
//! after every history all is held against the oracle: random records and marks, what production serves, and the replica.
//!
//! `BACKSTAY_SOAK_SECONDS` says for how long: `make soak` takes an hour, `make test` 40 s. `BACKSTAY_SEED=0x…` plays one history
//! again; its faults come at the same places, and threads and the kernel are as they are.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../power/disk.rs"]
mod disk;
#[path = "../common/load.rs"]
mod load;
mod mixture;
#[path = "../faults/world.rs"]
mod world;

use mixture::Mixture;
use rand::rngs::StdRng;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use testkit::with_seeds;

/// How many times as many views a check takes.
fn factor() -> usize {
    1
}

/// Kills at one kind of place, again and again: `BACKSTAY_KILLS=20` for hundreds of them.
fn kills(name: &str, count: usize, place: impl Fn(&mut Mixture, &str, &mut StdRng)) {
    let factor: usize = std::env::var("BACKSTAY_KILLS").map_or(1, |v| v.parse().unwrap());
    with_seeds(name, 1, |rng| {
        let mut mixture = Mixture::new(rng);
        mixture.kills = 1.0;
        for n in 0..count * factor {
            let why = format!("{name} {n}");
            mixture.write(&why, rng);
            place(&mut mixture, &why, rng);
            mixture.settled(&why, rng);
        }
        println!("{name}: {:?}", mixture.end(rng));
    });
}

/// Either daemon, or both, under load; and up to twice more while it starts.
#[test]
fn kills_amid_starts() {
    kills("kills amid starts", 8, Mixture::killed);
}

/// The replica amid a restore and amid its undo, twice each: the same command goes on.
#[test]
fn kills_amid_restores() {
    kills("kills amid restores", 3, Mixture::restored);
}

/// Either daemon amid every command of a failover, a resync and a failback.
#[test]
fn kills_amid_changes_of_roles() {
    kills("kills amid changes of roles", 4, Mixture::roles_change);
}

/// Either daemon amid every growth of a volume.
#[test]
fn kills_amid_growths() {
    kills("kills amid growths", 5, Mixture::grown);
}

#[test]
fn soak() {
    let seconds = std::env::var("BACKSTAY_SOAK_SECONDS").map_or(40, |v| v.parse().unwrap());
    let (from, lasts) = (Instant::now(), Duration::from_secs(seconds));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut histories = 0;
    while histories == 0 || from.elapsed() < lasts {
        with_seeds(&format!("soak {histories}"), 1, |rng| {
            // A history is no longer than a person has patience to play again.
            let until = lasts.min(from.elapsed() + Duration::from_secs(180));
            let mut mixture = Mixture::new(rng);
            while from.elapsed() < until {
                mixture.step(rng);
            }
            for (what, n) in mixture.end(rng) {
                *counts.entry(what).or_default() += n;
            }
        });
        histories += 1;
        println!(
            "{} s, {histories} histories: {counts:?}",
            from.elapsed().as_secs()
        );
    }
}
