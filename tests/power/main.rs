//! Power cuts of real file systems: what was flushed is there, and each volume is what invariant 2 says.
//!
//! Each node's state directory, with its journal and its volumes, is a small xfs or ext4 of its own on a loop device. Under
//! load the file system is shut down without its log being flushed, the daemon is killed, the file system is mounted again
//! and recovers, and before the daemon starts again a copy of what is there is looked at without it.
//!
//! # What a cut here loses
//!
//! Every page that the node wrote and neither synced nor had written back: a file system that is shut down fails all
//! further I/O and drops its dirty pages when it is unmounted. And every change of the file system itself that was in its
//! log in memory: new files, renames, lengths, allocations. The page cache of the *image* survives, but it holds only
//! what the file system had sent to its device.
//!
//! # What it does not lose
//!
//! What the file system sent to its device and did not flush there: a device with a volatile cache may drop it, and may
//! tear or reorder writes. Those cases are tried on simulated media at every sync (`journal`, `tests/core_histories`). It
//! does not drop writes at random, either: unsynced pages are lost all together, as they mostly are when a machine dies.
//!
//! # And worse
//!
//! The same with both state directories on a file system that loses what was not synced in every way that it may, names and
//! lengths too, and tears what was being written (`testkit::SimFiles`).
//!
//! `BACKSTAY_CUTS=10` cuts ten times as often.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod disk;
#[path = "../common/load.rs"]
mod load;
mod stopped;

use common::{Clients, PROD, Pair, REC, Setup, program, root_for};
use disk::{Disk, WORST};
use load::{Load, Orders};
use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex, WriteSeq};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use stopped::{Stopped, reader};
use testkit::{
    nbd::{Client, Promise, Session, Step},
    proc::Scratch,
    with_seeds,
};

const VOLUMES: [(&str, u64); 2] = [("data", 12 << 20), ("log", 4 << 20)];

/// The file systems of production and recovery.
const KINDS: [[&str; 2]; 2] = [["xfs", "ext4"], ["ext4", "xfs"]];

/// One for each that loses more than these do.
const WORSE: [[&str; 2]; 1] = [[WORST, WORST]];

/// Whether file systems can be made and shut down here; says loudly what is left out otherwise.
fn can_cut() -> bool {
    let loops = Path::new("/dev/loop-control").exists();
    let tools = ["xfs_io", "mkfs.xfs", "mkfs.ext4"];
    let have = |tool: &&str| {
        let found = Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        found.is_ok()
    };
    let missing: Vec<&&str> = tools.iter().filter(|tool| !have(tool)).collect();
    let can = root_for("power cuts of xfs and ext4") && loops && missing.is_empty();
    if !can {
        eprintln!(
            "\n*** SKIPPED, power cuts need root, loop devices, and {tools:?}; missing: {missing:?} ***\n"
        );
        assert!(std::env::var_os("CI").is_none(), "nothing is skipped in CI");
    }
    can
}

/// How many times as many cuts are made.
fn factor() -> usize {
    std::env::var("BACKSTAY_CUTS").map_or(1, |v| v.parse().unwrap())
}

/// A pair whose nodes live on disks of their own.
struct Bench {
    // The daemons end before their disks go with the folder.
    pair: Pair,
    disks: [Disk; 2],
    cuts: usize,
    /// What the replica was found in the middle of.
    found: BTreeMap<&'static str, usize>,
}

impl Bench {
    fn stopped(name: &str, kinds: [&'static str; 2]) -> Self {
        let scratch = Scratch::new(name);
        let disks = [
            Disk::new(&scratch, PROD, kinds[0]),
            Disk::new(&scratch, REC, kinds[1]),
        ];
        let setup = Setup {
            // What is compared after a catch-up must be shipped, and is synced for that: the cuts would have less to take.
            context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nverify_after_catch_up = 0\n",
            ..Setup::volumes(&VOLUMES)
        };
        let pair = Pair::stopped_in(scratch, &setup);
        disks.iter().for_each(Disk::sync);
        Self {
            pair,
            disks,
            cuts: 0,
            found: BTreeMap::new(),
        }
    }

    fn start(name: &str, kinds: [&'static str; 2]) -> Self {
        let bench = Self::stopped(name, kinds);
        bench.pair.start(PROD);
        bench.pair.start(REC);
        bench.pair.consistent();
        bench
    }

    fn disk(&self, node: &str) -> &Disk {
        &self.disks[usize::from(node == REC)]
    }

    fn cut(&mut self, node: &str) {
        self.disk(node).cut();
        self.pair.kill9(node);
        self.cuts += 1;
    }

    /// The power comes back; what is there, before the daemon sees it.
    fn look(&self, node: &str) -> Stopped {
        self.disk(node).back();
        let copy = self.pair.scratch.join(format!("copy-{node}"));
        Stopped::open(self.disk(node).path(), &copy, &VOLUMES, node == REC)
    }

    /// Brings production back and holds its journal and volumes against what was promised.
    fn production_back(&mut self, load: &mut Load, why: &str) {
        load.disconnect();
        let (head, volumes) = self.look(PROD).replayed();
        load.settle(head, why);
        let same = load.oracle.compare(head, &mut reader(&volumes));
        same.unwrap_or_else(|e| panic!("{why}: volume + replay from checkpointed: {e}"));
        self.pair.start(PROD);
        assert_eq!(
            self.pair.cursor(PROD, "appended"),
            head,
            "{why}: the daemon's head"
        );
        let mut exports = Clients::open(&self.pair, PROD, &VOLUMES, |v| format!("c1/{v}"));
        let same = load.oracle.compare(head, &mut exports);
        same.unwrap_or_else(|e| panic!("{why}: production serves: {e}"));
    }

    /// Brings recovery back and holds its replica against the oracle.
    fn recovery_back(&mut self, load: &Load, why: &str) {
        let what = self.look(REC).check_replica(&load.oracle, why);
        *self.found.entry(what).or_default() += 1;
        self.pair.start(REC);
    }

    /// Compares the view at a target with the oracle.
    fn check_view(&self, load: &Load, target: &str, seq: WriteSeq, why: &str) {
        let mut view = Clients::open(&self.pair, REC, &VOLUMES, |v| format!("c1/{v}@{target}"));
        let same = load.oracle.compare(seq, &mut view);
        same.unwrap_or_else(|e| panic!("{why}: the view {target}: {e}"));
    }

    fn state(&self) -> String {
        let status = self.pair.status(REC);
        status["head"]["context"]["state"].as_str().unwrap().to_owned()
    }
}

/// A cut while the writer writes: at a random moment, or right after a seal (which the other host hears of, ingests and
/// applies meanwhile).
fn cut_under_load(bench: &mut Bench, load: &mut Load, victims: &[&str], after_seal: bool, rng: &mut StdRng) {
    let kinds = bench.disks.each_ref().map(Disk::kind);
    let why = format!(
        "cut {} of {victims:?} on {kinds:?}, after a seal: {after_seal}",
        bench.cuts
    );
    load.connect(&bench.pair);
    let orders = Orders::default();
    let seed = rng.random();
    let milliseconds = |rng: &mut StdRng, range| Duration::from_millis(rng.random_range(range));
    thread::scope(|scope| {
        // Cloned for the writer: commands go through it while the daemon is killed from here.
        let (pair, load, orders) = (&bench.pair, &mut *load, &orders);
        let writer = scope.spawn(move || load.run(pair, seed, orders));
        let mut wait = milliseconds(rng, 5..200);
        if after_seal {
            thread::sleep(milliseconds(rng, 5..60));
            assert!(
                orders.mark(|| writer.is_finished()),
                "{why}: the writer ended early"
            );
            wait = milliseconds(rng, 0..40);
        }
        for victim in victims {
            thread::sleep(wait);
            bench.disks[usize::from(*victim == REC)].cut();
            pair.kill9(victim);
            wait = milliseconds(rng, 0..60);
        }
        orders.end();
    });
    bench.cuts += victims.len();
    // In any order: either host may be the first to hear of the other again.
    let mut back = victims.to_vec();
    if rng.random() {
        back.reverse();
    }
    for victim in back {
        if victim == PROD {
            bench.production_back(load, &why);
        } else {
            bench.recovery_back(load, &why);
        }
    }
}

/// A restore of the replica, and its undo, cut again and again: the same command goes on, and the end is exact.
fn cut_restores(bench: &mut Bench, load: &mut Load, rng: &mut StdRng) {
    load.connect(&bench.pair);
    load.burst(rng, 40);
    let name = load.set_mark(&bench.pair);
    let there = load.head();
    load.burst(rng, 300);
    load.set_mark(&bench.pair);
    let head = load.head();
    load.disconnect();
    // A restore waits until production writes no more.
    bench.pair.drain();
    for (way, end, seq) in [
        (&["-F", "--mark", &name] as &[&str], "ROLLED_BACK", there),
        (&["--undo"], "ENABLED", head),
    ] {
        let command: Vec<&str> = ["scrt_ra", "-C", "1", "-q"].iter().chain(way).copied().collect();
        for n in 0..3 {
            let why = format!("cut {n} of {way:?} on {}", bench.disk(REC).kind());
            let mut line = bench.pair.command(REC, &command);
            let mut running = line.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_millis(rng.random_range(15..160)));
            bench.cut(REC);
            running.wait().unwrap();
            bench.recovery_back(load, &why);
            bench.check_view(load, "latest", head, &why);
            bench.check_view(load, &format!("mark:{name}"), there, &why);
            if bench.state() == end {
                break;
            }
        }
        if bench.state() != end {
            bench.pair.cli(REC, &command).ok();
        }
        let raw: Vec<Vec<u8>> = VOLUMES
            .iter()
            .map(|(v, _)| fs::read(bench.pair.backing(REC, v)).unwrap())
            .collect();
        let same = load.oracle.compare(seq, &mut reader(&raw));
        same.unwrap_or_else(|e| panic!("the replica after {way:?}: {e}"));
    }
}

/// Marks and random records of the whole history, each held against the oracle.
fn check_history(bench: &Bench, load: &Load, rng: &mut StdRng) -> usize {
    let positions: Vec<WriteSeq> = load.oracle.positions().collect();
    let random = positions
        .choose_multiple(rng, 12)
        .map(|seq| (format!("seq:{}", seq.0), *seq));
    let marks = load.marks.choose_multiple(rng, 6);
    let marks = marks.map(|(name, seq)| (format!("mark:{name}"), *seq));
    let targets: Vec<_> = random.chain(marks).collect();
    for (target, seq) in &targets {
        bench.check_view(load, target, *seq, "at the end");
    }
    targets.len()
}

#[test]
fn what_was_flushed_survives_power_cuts_on_either_host() {
    if !can_cut() {
        return;
    }
    let (mut cuts, mut lost, mut views) = (0, 0, 0);
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for kinds in KINDS.into_iter().chain(WORSE) {
        with_seeds(&format!("power {kinds:?}"), 1, |rng| {
            let mut bench = Bench::start("power", kinds);
            let mut load = Load::new(&bench.pair, &VOLUMES);
            // More would add little: these cuts are drawn, not waited for.
            let rounds = if WORSE.contains(&kinds) { 8 } else { 16 };
            for round in 0..rounds * factor() {
                let victims: &[&str] = match round % 4 {
                    0 | 3 => &[PROD],
                    1 => &[REC],
                    _ if rng.random() => &[PROD, REC],
                    _ => &[REC, PROD],
                };
                cut_under_load(&mut bench, &mut load, victims, round / 4 % 2 == 1, rng);
                // Now and then the hosts catch up; else recovery is cut while it still works off what came before.
                if round % 4 == 3 {
                    bench.pair.waits(PROD, "drained");
                }
            }
            bench.pair.waits(PROD, "drained");
            cut_restores(&mut bench, &mut load, rng);
            views += check_history(&bench, &load, rng);
            bench.pair.same_files(&VOLUMES.map(|(v, _)| v));
            cuts += bench.cuts;
            lost += load.lost;
            for (what, n) in bench.found {
                *found.entry(what).or_default() += n;
            }
        });
    }
    println!(
        "{cuts} power cuts: nothing flushed was lost ({lost} writes answered and not flushed were); replicas were found {found:?}; {views} views of the past are exact"
    );
    assert!(lost > 0, "no cut lost anything: they do not bite");
}

/// `CAN_MULTI_CONN` is a promise: what was answered on any connection before a flush on another one is durable after it.
#[test]
fn a_flush_on_one_connection_covers_the_writes_on_others() {
    if !can_cut() {
        return;
    }
    const CONNECTIONS: u64 = 4;
    const SECTOR: u64 = 512;
    /// Where those behind the flush begin, and how many a connection can write.
    const BEHIND: u64 = 4 << 20;
    const SECTORS: u64 = (8 << 20) / SECTOR / CONNECTIONS;
    let mut lost = 0;
    for kinds in KINDS {
        let mut bench = Bench::start("connections", kinds);
        for round in 0..6 * factor() as u64 {
            let why = format!("cut {round} on {kinds:?}");
            // Before the flush a block of its own for each round and connection; behind it, amid the cut, sectors in turn.
            let before = |connection: u64| (round * CONNECTIONS + connection) * BLOCK_SIZE;
            let behind = |connection: u64, k: u64| BEHIND + (k * CONNECTIONS + connection) * SECTOR;
            let written = [round as u8 + 1; BLOCK_SIZE as usize];
            let sector = &written[..SECTOR as usize];
            let open = |_| bench.pair.open(PROD, "c1/data");
            let mut clients: Vec<_> = (0..CONNECTIONS).map(open).collect();
            for (n, client) in (0..).zip(&mut clients) {
                client.write(before(n), &written, false).unwrap();
            }
            clients[usize::try_from(round % CONNECTIONS).unwrap()]
                .flush()
                .unwrap();
            let answered: Vec<u64> = thread::scope(|scope| {
                let writing = (0..).zip(clients).map(|(n, mut client)| {
                    scope.spawn(move || {
                        let fails = |k: &u64| client.write(behind(n, *k), sector, false).is_err();
                        (0..SECTORS).find(fails).unwrap_or(SECTORS)
                    })
                });
                let writing: Vec<_> = writing.collect();
                thread::sleep(Duration::from_millis(10));
                bench.cut(PROD);
                writing.into_iter().map(|w| w.join().unwrap()).collect()
            });
            bench.disk(PROD).back();
            bench.pair.start(PROD);
            let mut client = bench.pair.open(PROD, "c1/data");
            for (n, answered) in (0..).zip(answered) {
                let found = client.read(before(n), BLOCK_SIZE).unwrap();
                assert!(
                    found == written,
                    "{why}: connection {n} wrote it before the flush"
                );
                // Of what a connection wrote behind it a beginning is there, and of what it did not write nothing.
                let is_there = |k: u64, client: &mut Client| {
                    let found = client.read(behind(n, k), SECTOR).unwrap();
                    let bytes = found.iter().filter(|byte| **byte == written[0]).count();
                    assert!(
                        bytes == 0 || bytes == sector.len(),
                        "{why}: half of write {k} of connection {n}"
                    );
                    bytes > 0
                };
                let kept = (0..SECTORS)
                    .find(|k| !is_there(*k, &mut client))
                    .unwrap_or(SECTORS);
                // The one that was under way when the power went may be there or not.
                assert!(
                    kept <= answered + 1,
                    "{why}: connection {n}: {kept} of {answered}"
                );
                let stray = (kept..SECTORS.min(answered + 2)).find(|k| is_there(*k, &mut client));
                assert_eq!(
                    stray, None,
                    "{why}: connection {n} lost write {kept}, and not this one"
                );
                lost += answered.saturating_sub(kept);
            }
        }
    }
    println!("nothing flushed was lost; {lost} writes behind the flushes were");
    assert!(lost > 0, "no cut lost anything: they do not bite");
}

/// Writes into the first half of the first volume until told to stop or until the server is gone.
fn write_first_half(session: &mut Session, seed: u64, end: &AtomicBool) {
    let mut rng = StdRng::seed_from_u64(seed);
    let steps = std::iter::from_fn(|| {
        if end.load(Ordering::Relaxed) {
            return None;
        }
        let count = rng.random_range(1..=8);
        let first = BlockNo(rng.random_range(0..VOLUMES[0].1 / BLOCK_SIZE / 2 - count));
        Some(match rng.random_range(0..20) {
            0 => Step::Flush,
            1 => Step::Zero(ByteRange::at(first.start(), count * BLOCK_SIZE)),
            n => Step::Blocks {
                first,
                count,
                fua: n == 2,
            },
        })
    });
    let _ = session.run(8, steps);
}

#[test]
fn a_first_sync_survives_power_cuts_on_either_host() {
    if !can_cut() {
        return;
    }
    let (mut cuts, mut unfinished) = (0, 0);
    for kinds in KINDS {
        with_seeds(&format!("first sync {kinds:?}"), factor() as u64, |rng| {
            let mut bench = Bench::stopped("sync", kinds);
            // The volumes were in use before they were protected.
            for (volume, size) in VOLUMES {
                let path = bench.pair.backing(PROD, volume);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let mut bytes = vec![0; usize::try_from(size).unwrap()];
                let half = bytes.len() / 2;
                rng.fill(&mut bytes[half..]);
                fs::write(path, bytes).unwrap();
            }
            bench.disk(PROD).sync();
            bench.pair.start(PROD);
            let mut session = Session::new(&bench.pair.socket(PROD), "c1/data", VolumeIndex(0), 3);
            session.connect().unwrap();
            bench.pair.start(REC);
            for n in 0..6 {
                let victims: &[&str] = [&[REC] as &[&str], &[PROD], &[REC, PROD]][n % 3];
                let why = format!("cut {} of {victims:?} on {kinds:?} in a first sync", bench.cuts);
                let end = AtomicBool::new(false);
                let seed = rng.random();
                thread::scope(|scope| {
                    let (session, end) = (&mut session, &end);
                    scope.spawn(move || write_first_half(session, seed, end));
                    for victim in victims {
                        thread::sleep(Duration::from_millis(rng.random_range(0..60)));
                        bench.cut(victim);
                    }
                    end.store(true, Ordering::Relaxed);
                });
                for victim in victims {
                    let stopped = bench.look(victim);
                    if *victim == REC {
                        unfinished += usize::from(stopped.is_in_first_sync());
                        drop(stopped);
                        bench.pair.start(REC);
                        continue;
                    }
                    let (head, volumes) = stopped.replayed();
                    session.power_lost();
                    let kept = session.ledger().check(Promise::Flushed, &mut reader(&volumes));
                    kept.unwrap_or_else(|e| panic!("{why}: {e}"));
                    bench.pair.start(PROD);
                    assert!(
                        bench.pair.cursor(PROD, "appended") >= head,
                        "{why}: the daemon's head"
                    );
                    let mut exports = Clients::open(&bench.pair, PROD, &VOLUMES, |v| format!("c1/{v}"));
                    for (export, bytes) in exports.0.iter_mut().zip(&volumes) {
                        let served = export.read(0, bytes.len() as u64).unwrap();
                        assert!(served == *bytes, "{why}: production serves something else");
                    }
                    session.connect().unwrap();
                }
            }
            session.drop_connection();
            bench.pair.consistent();
            bench.pair.drain();
            bench.pair.same_files(&VOLUMES.map(|(v, _)| v));
            cuts += bench.cuts;
        });
    }
    println!(
        "{cuts} power cuts around first syncs, {unfinished} of them within: nothing flushed was lost, and each replica came to equal production"
    );
    assert!(unfinished > 0, "no first sync was cut");
}

/// A node that never ran is cut while it makes its journal, again and again: what a cut leaves half made is made anew.
#[test]
fn a_first_start_survives_power_cuts() {
    if !can_cut() {
        return;
    }
    let mut cuts = 0;
    for kinds in KINDS.into_iter().chain(WORSE) {
        with_seeds(&format!("first start {kinds:?}"), factor() as u64, |rng| {
            let mut bench = Bench::stopped("start", kinds);
            for n in 0..8 {
                let node = [PROD, REC][n % 2];
                let _ = fs::remove_dir_all(bench.disk(node).path().join("c1"));
                bench.disk(node).sync();
                let mut serve = Command::new(program());
                let config = bench.pair.scratch.join(format!("etc/{node}.toml"));
                let process = bench
                    .pair
                    .scratch
                    .start(node, serve.args(["serve", "--config"]).arg(config));
                thread::sleep(Duration::from_millis(rng.random_range(5..150)));
                bench.disk(node).cut();
                process.kill9();
                bench.cuts += 1;
                bench.disk(node).back();
                bench.pair.start(node);
                let status = bench.pair.status(node);
                assert_eq!(
                    status["head"]["context"]["state"], "ENABLED",
                    "cut {n} of {node}: {status}"
                );
                bench.pair.stop(node);
            }
            bench.pair.start(PROD);
            bench.pair.start(REC);
            bench.pair.consistent();
            let mut load = Load::new(&bench.pair, &VOLUMES);
            load.burst(rng, 20);
            load.disconnect();
            bench.pair.drain();
            bench.pair.same_files(&VOLUMES.map(|(v, _)| v));
            cuts += bench.cuts;
        });
    }
    println!("{cuts} power cuts within first starts: each node starts again and works");
}
