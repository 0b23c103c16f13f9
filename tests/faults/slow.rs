//! Slow peers and slow disks: the application is held up by its own disk alone, and memory is bounded by what is configured.
//!
//! Figures are printed; no time is asserted.

use crate::{
    common::{LONG, PROD, Pair, REC, Setup, number, root_for},
    io::Backing,
    world::memory,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::time::{Duration, Instant};
use testkit::{
    proc::{Scratch, until},
    proxy::{BOTH, Weather},
};

const SIZE: u64 = 64 << 20;
/// Bytes that one phase writes: more than all the bounds together.
const WRITTEN: u64 = 256 << 20;
/// What a daemon may grow by: 32 MiB of newest frames, `write_back_limit` (8 MiB) twice, because it is looked at before a request,
/// the queue of a connection (8 MiB) and its window, and as much again for the allocator and the store's caches.
const GROWTH_MAX: u64 = 192 << 20;

fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"4M\"\nlfc_max_age = \"2s\"\nwrite_back_limit = \"8M\"\njournal_limit = \"48M\"\n\
                  recovery_journal_limit = \"2G\"\n",
        ..Setup::volumes(&[("data", SIZE)])
    }
}

/// Small writes, one after the other, each answered well; then how long they took.
fn latencies(pair: &Pair, count: usize, what: &str) {
    let mut rng = StdRng::seed_from_u64(3);
    let mut client = pair.open(PROD, "c1/data");
    let mut took: Vec<Duration> = (0..count)
        .map(|_| {
            let at = rng.random_range(0..SIZE / 4096) * 4096;
            let from = Instant::now();
            client.write(at, &[rng.random(); 4096], false).unwrap();
            from.elapsed()
        })
        .collect();
    client.flush().unwrap();
    took.sort_unstable();
    let of = |part: usize| took[(took.len() - 1) * part / 1000];
    println!(
        "{what}: p50 {:?}, p99 {:?}, worst {:?}",
        of(500),
        of(990),
        of(1000)
    );
}

/// Noise in large writes: `WRITTEN` bytes, each answered well.
fn pour(pair: &Pair, bytes: u64) {
    let mut rng = StdRng::seed_from_u64(4);
    let mut client = pair.open(PROD, "c1/data");
    let mut data = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        rng.fill(&mut data[..]);
        let at = rng.random_range(0..SIZE >> 20) << 20;
        client.write(at, &data, false).unwrap();
    }
    client.flush().unwrap();
}

/// A link that passes 100 kB a second, and one that passes nothing: writes take what they took before, and the journal is kept
/// within its limit by the state map.
#[test]
fn slow_peers_hold_nobody_up() {
    let pair = Pair::stopped("slow-peer", &setup());
    let link = pair.proxied(REC, 1).remove(0);
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    latencies(&pair, 2000, "the peer follows");
    let before = memory(&pair, PROD).0;
    for (what, weather) in [
        (
            "100 kB/s",
            Weather {
                rate: 100_000,
                ..Weather::default()
            },
        ),
        (
            "nothing",
            Weather {
                stalled: true,
                ..Weather::default()
            },
        ),
    ] {
        link.set(&BOTH, weather);
        latencies(&pair, 2000, &format!("the link passes {what}"));
        pour(&pair, WRITTEN);
        let status = until("the journal to be within its limit", LONG, || {
            let status = pair.status(PROD);
            (number(&status["journal_bytes"]) <= (48 + 8) << 20).then_some(status)
        });
        assert!(number(&status["stale_bytes"]) > 0, "{status}");
    }
    let grown = memory(&pair, PROD).1.saturating_sub(before);
    println!(
        "production grew by {} MiB at most, {} MiB were written",
        grown >> 20,
        (2 * WRITTEN) >> 20
    );
    assert!(grown <= GROWTH_MAX, "{} MiB", grown >> 20);
    link.calm();
    pair.waits(PROD, "resynced");
    pair.drain();
    pair.same_files(&["data"]);
}

/// The disk below production's volume takes 3 ms for every write: writers wait when too much waits for it, none fails, and
/// memory stays as it was.
#[test]
fn slow_disks_hold_writers_up() {
    if !root_for("slow disks") {
        return;
    }
    let scratch = Scratch::new("slow-disk");
    let slow = Backing::new(
        &scratch,
        "slow",
        SIZE,
        &["--filter=delay"],
        &["wdelay=3ms".to_owned()],
    );
    let pair = Pair::stopped_in(scratch, &setup());
    slow.put_below(&pair, PROD, "data");
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    let before = memory(&pair, PROD).0;
    latencies(&pair, 500, "a slow disk");
    pour(&pair, WRITTEN / 4);
    latencies(&pair, 100, "a slow disk that is behind");
    let grown = memory(&pair, PROD).1.saturating_sub(before);
    println!(
        "production grew by {} MiB at most, {} MiB were written",
        grown >> 20,
        (WRITTEN / 4) >> 20
    );
    assert!(grown <= GROWTH_MAX, "{} MiB", grown >> 20);
    pair.waits(PROD, "resynced");
    pair.drain();
    let [a, b] = [slow.path.clone(), pair.backing(REC, "data")].map(|path| std::fs::read(path).unwrap());
    assert!(a == b, "the replica differs");
}
