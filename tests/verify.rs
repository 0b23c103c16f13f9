//! `verify` with two real nodes: what differs is found to the block, and nothing else, whoever writes meanwhile; a repair
//! brings it over; a pass survives both daemons and the link.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/load.rs"]
mod load;

use common::{LONG, PROD, Pair, REC, Setup, number};
use load::Load;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
};
use testkit::{
    proc::{Finished, until},
    workload::noise,
};

const VOLUMES: [(&str, u64); 2] = [("data", 8 << 20), ("log", (1 << 20) + 4096)];
const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const TOTAL: u64 = VOLUMES[0].1 + VOLUMES[1].1;

/// Nothing is verified unless a test says so.
fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nverify_after_catch_up = 0\n",
        ..Setup::volumes(&VOLUMES)
    }
}

fn file(pair: &Pair, node: &str, volume: &str) -> File {
    let path = pair.backing(node, volume);
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Ends a writer, also when its test panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Flips a bit of a volume's file behind everybody's back.
fn flip(pair: &Pair, node: &str, volume: &str, at: u64) {
    let file = file(pair, node, volume);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Random bytes everywhere, applied at the replica.
fn filled(pair: &Pair) -> Load {
    let mut load = Load::new(pair, &VOLUMES);
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..6 {
        load.burst(&mut rng, 20);
    }
    applied(pair);
    load
}

/// Waits until everything that production has is on the replica's volumes.
fn applied(pair: &Pair) {
    pair.cli(PROD, &["probe", "-C", "1"]).ok();
}

/// `verify`, and its answer.
fn verify(pair: &Pair, more: &[&str], code: i32) -> Value {
    let mut args = vec!["verify", "-C", "1", "--json"];
    args.extend(more);
    let run: Finished = pair.cli(PROD, &args);
    assert_eq!(run.code, code, "{run:?}");
    let last: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    last["reply"]["verify"].clone()
}

/// Volume, first byte and end of each.
fn ranges(reply: &Value, what: &str) -> Vec<(String, u64, u64)> {
    let ranges = reply[what].as_array().unwrap_or_else(|| panic!("{reply}"));
    let range = |r: &Value| {
        let volume = r["volume"].as_str().unwrap().to_owned();
        (volume, number(&r["first"]), number(&r["end"]))
    };
    ranges.iter().map(range).collect()
}

fn range(volume: &str, first_block: u64, blocks: u64) -> (String, u64, u64) {
    (
        volume.to_owned(),
        first_block * BLOCK,
        (first_block + blocks) * BLOCK,
    )
}

/// Bits that rotted on the replica are found at their blocks, kept as a warning, and repaired from production; what was there
/// can be seen at the point before.
#[test]
fn rot_on_the_replica_is_found_to_the_block_and_repaired() {
    let pair = Pair::new("verify-rot", &setup());
    let load = filled(&pair);
    let clean = verify(&pair, &[], 0);
    assert_eq!(number(&clean["compared_bytes"]), VOLUMES[0].1 + VOLUMES[1].1);
    assert_eq!(number(&clean["differing_bytes"]), 0);

    // Two bits of one block, two blocks beside each other, the very last byte of a volume.
    flip(&pair, REC, "data", 5 * BLOCK + 17);
    flip(&pair, REC, "data", 5 * BLOCK + 4000);
    flip(&pair, REC, "data", 800 * BLOCK);
    flip(&pair, REC, "data", 801 * BLOCK + 1);
    flip(&pair, REC, "log", VOLUMES[1].1 - 1);
    let expected = [range("data", 5, 1), range("data", 800, 2), range("log", 256, 1)];

    // A dry run says what it would do and looks at nothing.
    let plan = pair.cli(PROD, &["verify", "-C", "1", "-n"]).ok();
    assert!(plan.contains("compare all of data, log with rec"), "{plan}");
    assert_eq!(pair.status(PROD)["verified"]["mismatches"], 0);

    let found = verify(&pair, &[], 2);
    assert_eq!(ranges(&found, "differing"), expected);
    assert_eq!(number(&found["differing_bytes"]), 4 * BLOCK);
    let status = pair.status(PROD);
    assert_eq!(status["verified"]["mismatches"], 3, "{status}");
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(warning.contains("16384 bytes that differ on rec"), "{warning}");

    // It is known whatever becomes of the daemons.
    pair.kill9(PROD);
    pair.kill9(REC);
    pair.start(REC);
    pair.start(PROD);
    pair.consistent();
    assert_eq!(pair.status(PROD)["verified"]["differing_bytes"], 4 * BLOCK);

    let repaired = verify(&pair, &["--repair"], 0);
    assert_eq!(number(&repaired["repaired_bytes"]), 4 * BLOCK, "{repaired}");
    assert_eq!(ranges(&repaired, "repaired"), expected);
    assert_eq!(ranges(&repaired, "differing"), []);
    let status = pair.status(PROD);
    assert_eq!(status["warnings"].as_array().unwrap().len(), 0, "{status}");
    assert_eq!(number(&verify(&pair, &[], 0)["differing_bytes"]), 0);
    drop(load);
    pair.drain();
    pair.same_files(&["data", "log"]);
}

/// While clients write, nothing is ever taken for different that is not, and what is different is still found.
#[test]
fn nothing_is_found_under_load_that_is_not_there() {
    let pair = Pair::new("verify-load", &setup());
    let mut load = filled(&pair);
    let passes = std::env::var("BACKSTAY_VERIFY_PASSES").map_or(12, |n| n.parse().unwrap());
    let over = AtomicBool::new(false);
    let head = load.head();
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            let mut rng = StdRng::seed_from_u64(11);
            // As fast as the link carries it: a writer that outruns it would only make every pass wait for its queue.
            while !over.load(Ordering::Relaxed) {
                load.burst(&mut rng, 40);
                pair.received();
            }
        });
        let _over = Over(&over);
        for pass in 0..passes {
            let reply = verify(&pair, &[], 0);
            assert_eq!(ranges(&reply, "differing"), [], "pass {pass}");
            assert!(!writer.is_finished(), "the writer failed");
        }
    });
    assert!(load.head() > head, "nobody wrote");
    eprintln!(
        "{passes} passes while {} records were written",
        load.head().0 - head.0
    );
    applied(&pair);
    flip(&pair, REC, "data", 77 * BLOCK);
    let found = verify(&pair, &[], 2);
    assert_eq!(ranges(&found, "differing"), [range("data", 77, 1)]);
}

/// Production is the truth, whichever side rotted; a sample is of so many regions, and one of all there is is everything.
#[test]
fn what_rotted_on_production_is_found_too() {
    let pair = Pair::new("verify-truth", &setup());
    drop(filled(&pair));
    let sampled = verify(&pair, &["--sample", "3"], 0);
    assert_eq!(sampled["sample"], 3);
    // The last region of the second volume is a short one.
    let compared = number(&sampled["compared_bytes"]);
    assert!([2 * MIB + BLOCK, 3 * MIB].contains(&compared), "{sampled}");
    let all = verify(&pair, &["--sample", "10"], 0);
    assert_eq!(
        (&all["sample"], &all["compared_bytes"]),
        (&Value::Null, &TOTAL.into())
    );

    // Behind the back of a production that runs: its volume's file, not its clients' bytes.
    flip(&pair, PROD, "data", 300 * BLOCK + 9);
    let found = verify(&pair, &[], 2);
    assert_eq!(ranges(&found, "differing"), [range("data", 300, 1)]);
    // A sample that does not meet it does not forget it.
    let sampled = verify(&pair, &["--sample", "1"], 2);
    assert_eq!(ranges(&sampled, "differing"), [range("data", 300, 1)]);
    verify(&pair, &["--repair"], 0);
    pair.drain();
    pair.same_files(&["data", "log"]);
}

/// A pass that somebody began goes on where it was after kills of both daemons, and waits while the peer is away; the same
/// command joins it, another one is refused, and it can be cancelled.
#[test]
fn a_pass_goes_on_after_kills_of_either_daemon() {
    let slow = Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nverify_after_catch_up = 0\nverify_rate = \"2M\"\n",
        ..setup()
    };
    let pair = Pair::new("verify-kill", &slow);
    drop(filled(&pair));
    flip(&pair, REC, "data", 10 * BLOCK);
    flip(&pair, REC, "log", 0);
    let begun = pair.cli(PROD, &["verify", "-C", "1", "--timeout", "0"]);
    assert_eq!(begun.code, 75, "{begun:?}");
    let done = |at_least: u64| {
        until("the pass to get on", LONG, || {
            let now = pair.status(PROD)["verifying"].clone();
            now["done_bytes"].as_u64().filter(|done| *done >= at_least)?;
            Some(now)
        })
    };
    let before = done(4 * MIB);
    let other = pair.cli(PROD, &["verify", "-C", "1", "--sample", "2"]);
    assert_eq!(other.code, 75, "{other:?}");
    assert!(other.stderr.contains("another verify is under way"), "{other:?}");

    pair.kill9(PROD);
    pair.start(PROD);
    let after = done(4 * MIB);
    assert_eq!(after["since"], before["since"], "the same pass");
    pair.kill9(REC);
    let waits = until("the pass to wait", LONG, || {
        let now = pair.status(PROD)["verifying"].clone();
        now["waits"].as_str().map(str::to_owned)
    });
    assert!(waits.contains("rec"), "{waits}");
    pair.start(REC);
    pair.consistent();
    // The same command joins it.
    let end = verify(&pair, &[], 2);
    assert_eq!(number(&end["compared_bytes"]), TOTAL);
    assert_eq!(
        ranges(&end, "differing"),
        [range("data", 10, 1), range("log", 0, 1)]
    );
    let status = pair.status(PROD);
    assert_eq!(status["verifying"], Value::Null);
    assert_eq!(status["verified"]["mismatches"], 2);

    // Cancelled: what is known stays known.
    let begun = pair.cli(PROD, &["verify", "-C", "1", "--timeout", "0"]);
    assert_eq!(begun.code, 75, "{begun:?}");
    let jobs = pair.json(PROD, &["jobs"]);
    let job = jobs["reply"]["jobs"]["jobs"].as_array().unwrap();
    let job = job.iter().map(|j| number(&j["id"])).max().unwrap().to_string();
    pair.cli(PROD, &["jobs", "cancel", &job]).ok();
    let status = pair.status(PROD);
    assert_eq!(status["verifying"], Value::Null, "{status}");
    assert_eq!(status["verified"]["differing_bytes"], 2 * BLOCK);
}

/// After a failover the other host is production, and the truth.
#[test]
fn the_acting_production_verifies() {
    let pair = Pair::new("verify-roles", &setup());
    drop(filled(&pair));
    let there = pair.cli(REC, &["verify", "-C", "1"]);
    assert_eq!(there.code, 1, "{there:?}");
    assert!(
        there.stderr.contains("backstay verify -C 1   on prod"),
        "{there:?}"
    );
    pair.cli(REC, &["rtdr", "-C", "1", "failover", "-q", "-f"]).ok();
    // Nothing is shipped yet.
    let alone = pair.cli(REC, &["verify", "-C", "2"]);
    assert_eq!(alone.code, 75, "{alone:?}");
    pair.cli(PROD, &["rtdr", "-C", "1", "resync", "-q"]).ok();
    pair.cli(REC, &["rtdr", "-C", "1", "resync", "-q", "--wait"]).ok();
    flip(&pair, PROD, "log", 3 * BLOCK);
    let found = pair.json(REC, &["verify", "-C", "2"]);
    assert_eq!(
        ranges(&found["reply"]["verify"], "differing"),
        [range("log", 3, 1)]
    );
    pair.cli(REC, &["verify", "-C", "1", "--repair"]).ok();
    let found = pair.json(REC, &["verify", "-C", "1"]);
    assert_eq!(found["code"], 0, "{found}");
}

/// By itself: after the first sync, and whenever it is time.
#[test]
fn it_runs_by_itself() {
    let setup = Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nverify_after_catch_up = 3\n",
        ..setup()
    };
    let pair = Pair::new("verify-catch-up", &setup);
    let verified = until("a sample after the first sync", LONG, || {
        pair.status(PROD)["verified"]["compared_bytes"].as_u64()
    });
    assert!(verified <= 3 * MIB, "{verified}");
    drop(pair);

    let setup = Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nverify_after_catch_up = 0\nverify_every = \"1s\"\n",
        ..setup
    };
    let pair = Pair::new("verify-schedule", &setup);
    drop(filled(&pair));
    until("everything to be verified", LONG, || {
        (pair.status(PROD)["verified"]["compared_bytes"] == TOTAL).then_some(())
    });
    flip(&pair, REC, "data", 2000 * BLOCK);
    let warning = until("the schedule to find it", LONG, || {
        pair.status(PROD)["warnings"][0].as_str().map(str::to_owned)
    });
    assert!(warning.contains("4096 bytes that differ"), "{warning}");
    verify(&pair, &["--repair"], 0);
    until("the warning to go", LONG, || {
        pair.status(PROD)["warnings"].as_array()?.is_empty().then_some(())
    });
}

/// A replica of quite other bytes: one range, larger than what is compared at once, and all of it is brought over.
#[test]
fn a_replica_of_other_bytes_is_repaired_whole() {
    let pair = Pair::new("verify-noise", &setup());
    drop(filled(&pair));
    let mut rng = StdRng::seed_from_u64(3);
    let other = noise(VOLUMES[0].1, &mut rng);
    file(&pair, REC, "data").write_all_at(&other, 0).unwrap();
    let found = verify(&pair, &[], 2);
    assert_eq!(ranges(&found, "differing"), [("data".into(), 0, VOLUMES[0].1)]);
    let repaired = verify(&pair, &["--repair"], 0);
    assert_eq!(number(&repaired["repaired_bytes"]), VOLUMES[0].1);
    pair.drain();
    pair.same_files(&["data", "log"]);
}
