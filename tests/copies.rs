//! What copies cost, with real nodes: holes are neither sent nor written, and what the replica holds already is not sent again
//! (C2-C4). Counted by records and by a proxy, never by time.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::{os::unix::fs::MetadataExt, path::Path};
use testkit::proc::until;

const MIB: u64 = 1 << 20;

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Bytes that a file takes on its disk.
fn takes(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// A volume of 2 GiB with some bytes here and there: its first sync takes as many copies as it has bytes and long holes, and its
/// replica is as sparse.
#[test]
fn c2_a_hole_is_one_copy_and_stays_a_hole() {
    const SIZE: u64 = 2 << 30;
    let pair = Pair::stopped("copies-holes", &Setup::volumes(&[("data", SIZE)]));
    pair.start(PROD);
    let pieces = [0, 5 * MIB + 4096, 700 * MIB, 1500 * MIB + 12_345, SIZE - MIB];
    let mut client = pair.open(PROD, "c1/data");
    for (n, at) in pieces.into_iter().enumerate() {
        client.write(at, &noise(n as u64, 300_000), false).unwrap();
    }
    client.flush().unwrap();
    // On the volume, so that its holes are known.
    until("a checkpoint", LONG, || {
        let head = pair.cursor(PROD, "appended");
        (pair.cursor(PROD, "checkpointed") >= head).then_some(())
    });
    let before = pair.cursor(PROD, "appended").0;
    pair.start(REC);
    pair.consistent();
    let records = pair.cursor(PROD, "appended").0 - before;
    // 32 holes of 64 MiB, cut some times more around each piece.
    assert!(records < 64, "{records} records for a sparse volume");
    drop(client);
    pair.drain();
    let backing = pair.backing(REC, "data");
    assert!(
        takes(&backing) < 16 * MIB,
        "the replica takes {}",
        takes(&backing)
    );
    pair.same_files(&["data"]);
}

/// Most of what the journal gave up is what the replica holds: it is named by its digests, and the rest is sent.
#[test]
fn c4_what_the_replica_holds_is_not_sent_again() {
    const SIZE: u64 = 64 * MIB;
    const REGION: u64 = 32 << 10;
    let setup = Setup {
        context: "lfc_size = \"2M\"\njournal_limit = \"8M\"\nrollback_window = \"4M\"\n",
        ..Setup::volumes(&[("data", SIZE)])
    };
    let pair = Pair::stopped("copies-equal", &setup);
    let proxy = pair.proxied(REC, 1).remove(0);
    pair.start(REC);
    pair.start(PROD);
    pair.consistent();
    let mut client = pair.open(PROD, "c1/data");
    let write = |client: &mut testkit::nbd::Client, n: u64, version: u64| {
        client
            .write(n * REGION, &noise(n << 8 | version, REGION), false)
            .unwrap();
    };
    let regions = SIZE / REGION;
    (0..regions).for_each(|n| write(&mut client, n, 0));
    pair.received();
    proxy.refuse(true);
    proxy.cut();
    // One of sixteen differs; the last ones come last, so that what the journal still holds is among those that are equal.
    (0..regions).for_each(|n| write(&mut client, n, u64::from(n % 16 == 5)));
    let stale = until("a journal that gave way", LONG, || {
        Some(number(&pair.status(PROD)["stale_bytes"])).filter(|stale| *stale > SIZE / 2)
    });
    let _ = proxy.take();
    proxy.refuse(false);
    pair.received();
    pair.consistent();
    let sent = proxy.take();
    let journaled = SIZE - stale;
    // Redo as it is, a sixteenth of the rest as copies; without offers it was all of it.
    assert!(
        sent < journaled + stale / 4,
        "{sent} bytes for {stale} stale and {journaled} journaled ones"
    );
    drop(client);
    pair.drain();
    pair.same_files(&["data"]);
}
