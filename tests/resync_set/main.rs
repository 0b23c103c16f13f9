//! What a resync sends, counted on the wire between two real nodes: the set, and hardly more (rule L1, R7, R8).
//!
//! Everything that is written is noise, so that nothing is saved by compression and the figure means something both ways.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

use common::{
    LONG, PROD, Pair, REC, Setup,
    tails::{open_tail, rot},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::{
    proc::{run, until},
    proxy::Proxy,
};

/// Bytes that one write writes: two regions of the state map.
const UNIT: usize = 64 << 10;
const UNITS: usize = 160;
/// The first bytes of the volume, which a jump has copied at any rate (rule C2).
const JUMP_BYTES: u64 = 32 << 10;

/// Two nodes behind a proxy each, which counts the bytes as they are on the wire, and what the volume must hold.
struct World {
    pair: Pair,
    proxies: [Proxy; 2],
    rng: StdRng,
    expected: Vec<u8>,
}

impl World {
    /// Every byte of the volume is written, and on both hosts.
    fn new(name: &str) -> Self {
        let setup = Setup {
            volumes: vec![("data", (UNIT * UNITS) as u64)],
            context: "lfc_size = \"2M\"\nlfc_max_age = \"1h\"\non_start_alone = \"serve\"\n",
            ..Setup::default()
        };
        let pair = Pair::stopped(name, &setup);
        let proxies = [PROD, REC].map(|node| pair.proxied(node, 1).remove(0));
        pair.start(PROD);
        pair.start(REC);
        pair.consistent();
        let mut world = Self {
            pair,
            proxies,
            rng: StdRng::seed_from_u64(7),
            expected: vec![0; UNIT * UNITS],
        };
        world.write(PROD, 0..UNITS);
        world
    }

    fn ok(&self, node: &str, line: &str) {
        let args: Vec<&str> = line.split(' ').collect();
        self.pair.cli(node, &args).ok();
    }

    /// Writes units with noise, flushed.
    fn write(&mut self, node: &str, units: std::ops::Range<usize>) {
        let mut bytes = self.stray(node, units.clone());
        self.expected[units.start * UNIT..units.end * UNIT].swap_with_slice(&mut bytes);
    }

    /// The same, and it is not to stay.
    fn stray(&mut self, node: &str, units: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; units.len() * UNIT];
        self.rng.fill_bytes(&mut bytes);
        let mut client = self.pair.open(node, "c1/data");
        for (unit, data) in units.zip(bytes.chunks(UNIT)) {
            client.write((unit * UNIT) as u64, data, true).unwrap();
        }
        bytes
    }

    fn holds(&self, node: &str, export: &str) {
        let mut client = self.pair.open(node, export);
        for (unit, expected) in self.expected.chunks(UNIT).enumerate() {
            let found = client.read((unit * UNIT) as u64, UNIT as u64).unwrap();
            assert!(found == expected, "{export} on {node}: unit {unit} is another");
        }
    }

    /// The old production has come back, and follows.
    fn resync(&self) {
        until("the old production to be fenced", LONG, || {
            let status = self.pair.cli(PROD, &["status", "-C", "1", "--json"]);
            status.stdout.contains("\"FENCED\"").then_some(())
        });
        self.ok(PROD, "rtdr -qC 1 resync");
        self.ok(REC, "rtdr -qC 1 resync");
        self.pair.waits(REC, "resynced");
        let peer = &self.pair.status(REC)["head"]["context"]["peer"];
        assert_eq!(peer["state"], "connected", "resynced with nobody");
        self.pair.waits(PROD, "consistent");
        self.pair.waits(REC, "drained");
    }

    fn sent(&self) -> u64 {
        self.proxies.iter().map(Proxy::take).sum()
    }

    fn kept(&self) -> [PathBuf; 2] {
        ["state/prod/c1", "older"].map(|name| self.pair.scratch.join(name))
    }

    /// Keeps what production has on its disks now.
    fn keep_production(&self) {
        let [now, older] = self.kept();
        run(Command::new("cp").arg("-a").args([&now, &older]), LONG).ok();
    }

    /// Production's disks had lied: they hold what they held then. The volume is the same file, or it would be taken for another.
    fn put_production_back(&self) {
        let [now, older] = self.kept();
        let volume = Path::new("volumes/data");
        fs::copy(older.join(volume), now.join(volume)).unwrap();
        fs::remove_dir_all(now.join("journal")).unwrap();
        let journal = [older.join("journal"), now.join("journal")];
        run(Command::new("cp").arg("-a").args(&journal), LONG).ok();
    }
}

/// All parts at once: written since the failover, written and never shipped, rolled back, held, and lost by the old production.
#[test]
fn l1_no_more_than_the_set_is_sent() {
    let mut world = World::new("set");
    world.ok(PROD, "rtmark -C 1 --name good");
    world.pair.waits(PROD, "drained");
    // Rolled back.
    world.stray(PROD, 10..20);
    world.pair.waits(PROD, "drained");
    world.ok(REC, "scrt_ra -qfC 1 -F --mark good");
    // Held; and more of it, which the disks of production forget.
    world.stray(PROD, 30..40);
    world.pair.received();
    world.pair.kill9(PROD);
    world.keep_production();
    world.pair.start(PROD);
    world.stray(PROD, 50..60);
    let lost = world.pair.received();
    world.pair.kill9(PROD);
    world.pair.kill9(REC);
    world.put_production_back();
    // Never shipped.
    world.pair.start(PROD);
    assert!(world.pair.cursor(PROD, "appended") < lost, "nothing was lost");
    world.stray(PROD, 70..80);
    world.pair.kill9(PROD);
    world.pair.start(REC);
    world.ok(REC, "rtdr -qC 1 failover");
    world.holds(REC, "c1/data");
    // Written since.
    world.write(REC, 90..100);
    world.pair.start(PROD);
    world.sent();
    world.resync();
    let sent = world.sent();
    let set = (5 * 10 * UNIT) as u64 + JUMP_BYTES;
    // What production's disks forgot was held at recovery, on no volume: it is in the set, and equal, so it is offered only.
    let differs = (4 * 10 * UNIT) as u64;
    println!("{set} bytes of the set, {differs} of them differ, {sent} bytes on the wire");
    assert!(
        sent >= differs,
        "less than what differs was sent: {sent} of {differs}"
    );
    assert!(sent <= set + set / 20, "{sent} bytes for a set of {set}");
    world.holds(PROD, "c1/data@latest");
    world.holds(REC, "c1/data");
}

/// Records that the other host has are lost from the old production's tail, and behind them are some that nobody else has: the
/// host that took over mends the tail, though it has gone on by itself since, and what it lacks gives way as ever.
#[test]
fn t5_a_tail_is_mended_by_the_host_that_took_over() {
    let mut world = World::new("set-mended");
    world.ok(PROD, "rtmark -C 1 --name begin");
    world.write(PROD, 10..14);
    world.pair.received();
    world.pair.kill9(REC);
    world.stray(PROD, 20..24);
    world.pair.kill9(PROD);
    let (tail, frames) = open_tail(&world.pair, PROD);
    // Behind a mark a container begins.
    rot(&tail, frames[1] + 100);
    world.pair.start(REC);
    world.ok(REC, "rtdr -qC 1 failover");
    world.write(REC, 30..34);
    world.pair.start(PROD);
    world.resync();
    let log = world.pair.log(PROD);
    assert!(log.contains("a damaged tail is whole again"), "{log}");
    world.holds(PROD, "c1/data@latest");
    world.holds(REC, "c1/data");
}
