//! History is a file format: the state of two nodes as each released version left it is opened by today's code.
//!
//! `testdata/history/vN` holds what both nodes had in their state directories when they were killed, and what every point of
//! it was. The oracle is the test that made it: it kept the volumes beside the nodes, byte by byte.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup};
use model::ByteRange;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::{
    golden,
    nbd::Client,
    proc::{run, until},
};

const VOLUMES: [(&str, u64); 2] = [("data", 1 << 20), ("log", 256 << 10)];
/// The version whose state the making test writes.
const NOW: u32 = 1;

/// What an export must show: its name without the volume, and a digest of each volume.
type Points = BTreeMap<String, Vec<String>>;

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/history/v{version}"))
}

fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"1h\"\noverlay_limit = \"1M\"\n",
        ..Setup::volumes(&VOLUMES)
    }
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

fn read(pair: &Pair, node: &str, export: &str) -> Vec<String> {
    let whole = |(volume, size): &(&str, u64)| {
        let mut client = pair.open(node, &export.replace('*', volume));
        assert_eq!(client.size(), *size);
        digest(&client.read(0, *size).unwrap())
    };
    VOLUMES.iter().map(whole).collect()
}

/// The volumes as they should be.
struct Oracle {
    rng: StdRng,
    volumes: Vec<Vec<u8>>,
    points: Points,
}

impl Oracle {
    fn digests(&self) -> Vec<String> {
        self.volumes.iter().map(|v| digest(v)).collect()
    }

    /// One write or zero-write somewhere, and its point by number.
    fn change(&mut self, pair: &Pair, clients: &mut [Client]) {
        let volume = self.rng.random_range(0..2_usize);
        let size = VOLUMES[volume].1;
        let at = self.rng.random_range(0..size - 1);
        let len = self.rng.random_range(1..=(size - at).min(9000));
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        if self.rng.random_bool(0.15) {
            clients[volume].write_zeroes(ByteRange::at(at, len)).unwrap();
            self.volumes[volume][range].fill(0);
        } else {
            // Half of it packs well: the archive stays small.
            let byte: u8 = self.rng.random();
            let mut bytes = vec![byte; range.len()];
            self.rng.fill(&mut bytes[..range.len() / 2]);
            clients[volume].write(at, &bytes, true).unwrap();
            self.volumes[volume][range].copy_from_slice(&bytes);
        }
        let seq = pair.cursor(PROD, "appended").0;
        self.points.insert(format!("c1/*@seq:{seq}"), self.digests());
    }

    fn changes(&mut self, pair: &Pair, count: usize) {
        let mut clients: Vec<Client> = VOLUMES
            .iter()
            .map(|(v, _)| pair.open(PROD, &format!("c1/{v}")))
            .collect();
        for _ in 0..count {
            self.change(pair, &mut clients);
        }
        clients.iter_mut().for_each(|c| c.flush().unwrap());
    }

    fn mark(&mut self, pair: &Pair, name: &str) {
        pair.cli(PROD, &["rtmark", "-C", "1", "--name", name]).ok();
        self.points.insert(format!("c1/*@mark:{name}"), self.digests());
    }
}

/// Makes the state of the current version: `BACKSTAY_BLESS=1 cargo test --test history`.
#[test]
fn the_state_of_this_version_is_made_once() {
    // A version's state is made once: written anew by a later build it would prove nothing.
    if folder(NOW).join("state.tar.gz").exists() {
        return;
    }
    let blessing = std::env::var(golden::BLESS_VARIABLE).is_ok_and(|v| v == "1");
    assert!(
        blessing,
        "there is no history of version {NOW}: see testdata/README.md"
    );
    let pair = Pair::new("make-history", &setup());
    let mut oracle = Oracle {
        rng: StdRng::seed_from_u64(1),
        volumes: VOLUMES
            .iter()
            .map(|(_, size)| vec![0; usize::try_from(*size).unwrap()])
            .collect(),
        points: Points::new(),
    };
    for name in ["one", "two", "three", "four"] {
        oracle.changes(&pair, 8);
        oracle.mark(&pair, name);
    }
    pair.waits(PROD, "drained");
    // Snapshots with pins, one of them named and written to.
    pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "two"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "three", "--name", "kept"])
        .ok();
    let three = oracle.points["c1/*@mark:three"].clone();
    oracle.points.insert("c1/rsn11/*".into(), three.clone());
    let mut vdev = pair.open(REC, "c1/sn11/log");
    vdev.write(1000, &[9; 5000], true).unwrap();
    let size = VOLUMES[1].1;
    let written = digest(&vdev.read(0, size).unwrap());
    drop(vdev);
    oracle
        .points
        .insert("c1/sn11/*".into(), vec![three[0].clone(), written]);
    // A restore and its undo, and a restore that stays in force while more comes in.
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "-f", "-F", "--mark", "one"])
        .ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--undo"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "-f", "-F", "--mark", "two"])
        .ok();
    let two = oracle.points["c1/*@mark:two"].clone();
    oracle.points.insert("c1/*@restored".into(), two);
    oracle.changes(&pair, 6);
    oracle.mark(&pair, "five");
    // The open tail of both.
    oracle.changes(&pair, 6);
    pair.received();
    oracle.points.insert("head".into(), oracle.digests());
    pair.kill9(REC);
    pair.kill9(PROD);
    let out = folder(NOW);
    fs::create_dir_all(&out).unwrap();
    fs::write(
        out.join("points.json"),
        serde_json::to_string_pretty(&oracle.points).unwrap() + "\n",
    )
    .unwrap();
    let parts = [PROD, REC]
        .iter()
        .flat_map(|n| ["c1", "contexts", "format"].map(|p| format!("state/{n}/{p}")));
    let packed = run(
        Command::new("tar")
            .args(["-czSf"])
            .arg(out.join("state.tar.gz"))
            .args([
                "--exclude=LOG",
                "--exclude=LOG.old.*",
                "--owner=0",
                "--group=0",
                "--sort=name",
                "-C",
            ])
            .arg(pair.scratch.path())
            .args(parts),
        LONG,
    );
    assert_eq!(packed.code, 0, "{packed:?}");
}

/// Two stopped nodes with the state of a version.
fn unpacked(version: u32) -> Pair {
    let pair = Pair::stopped("history", &setup());
    let unpacked = run(
        Command::new("tar")
            .arg("-xzf")
            .arg(folder(version).join("state.tar.gz"))
            .arg("-C")
            .arg(pair.scratch.path()),
        LONG,
    );
    assert_eq!(unpacked.code, 0, "{unpacked:?}");
    // The first new write makes all that is older than the window go, and the state is as old as its version.
    for node in [PROD, REC] {
        let path = pair.scratch.join(format!("state/{node}/contexts/1.toml"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("rollback_window = \"unlimited\"\n{text}")).unwrap();
    }
    pair
}

/// A version that noted nothing of its volumes' files: one that is gone is not made anew all the same.
#[test]
fn i9_a_volume_that_every_version_had_is_not_made_anew() {
    for version in 1..=NOW {
        let pair = unpacked(version);
        // Production asks its peer first.
        for node in [REC, PROD] {
            let there = pair.backing(node, "data");
            fs::remove_file(&there).unwrap();
            pair.start(node);
            until("the context is not started", LONG, || {
                let status = pair.cli(node, &["status"]);
                status
                    .stdout
                    .contains("is gone, which held volume data")
                    .then_some(())
            });
            assert!(!there.exists());
        }
    }
}

/// Every point of a version's history shows its bytes today, and the history goes on.
#[test]
fn history_of_every_version_is_read_and_goes_on() {
    for version in 1..=NOW {
        let pair = unpacked(version);
        let points: Points =
            serde_json::from_slice(&fs::read(folder(version).join("points.json")).unwrap()).unwrap();
        assert!(points.len() > 40, "{}", points.len());
        pair.start(REC);
        let check = || {
            for (name, expected) in points.iter().filter(|(n, _)| n.starts_with("c1/")) {
                assert_eq!(&read(&pair, REC, name), expected, "version {version}: {name}");
            }
        };
        check();
        assert_eq!(pair.status(REC)["head"]["context"]["state"], "ROLLED_BACK");
        pair.start(PROD);
        pair.waits(PROD, "enabled");
        assert_eq!(read(&pair, PROD, "c1/*"), points["head"], "version {version}");
        // It goes on: writes, a mark, the undo of the restore, and all that was there before.
        let mut client = pair.open(PROD, "c1/log");
        client.write(77, &[5; 100], true).unwrap();
        drop(client);
        pair.cli(PROD, &["rtmark", "-C", "1", "--name", "today"]).ok();
        pair.received();
        check();
        pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--undo"]).ok();
        pair.waits(PROD, "drained");
        assert_eq!(read(&pair, REC, "c1/*@mark:today"), read(&pair, PROD, "c1/*"));
        for (name, expected) in points
            .iter()
            .filter(|(n, _)| n.contains("seq:") || n.contains("mark:"))
        {
            assert_eq!(
                &read(&pair, REC, name),
                expected,
                "version {version}, after its restore was undone: {name}"
            );
        }
        pair.drain();
        pair.same_files(&["data", "log"]);
        println!("version {version}: {} points are what they were", points.len());
    }
}

/// A state directory of a newer build is not touched: refused with both numbers.
#[test]
fn a_newer_state_directory_is_refused_with_both_numbers() {
    let pair = Pair::new("newer", &Setup::volumes(&[("data", 1 << 20)]));
    pair.stop(PROD);
    let state = pair.scratch.join("state/prod");
    for (file, whole_node) in [("c1/format", false), ("format", true)] {
        let path = state.join(file);
        let before = fs::read(&path).unwrap();
        assert_eq!(before, b"1\n");
        fs::write(&path, "9\n").unwrap();
        let text = if whole_node {
            let refused = pair.cli(PROD, &["serve"]);
            assert_ne!(refused.code, 0, "{refused:?}");
            refused.stderr
        } else {
            pair.start(PROD);
            let status = pair.cli(PROD, &["status"]);
            assert_eq!(status.code, 2, "{status:?}");
            pair.stop(PROD);
            status.stderr
        };
        assert!(
            text.contains("format 9 was found, this build reads up to 1"),
            "{text}"
        );
        fs::write(&path, before).unwrap();
    }
    pair.start(PROD);
    pair.waits(PROD, "drained");
}
