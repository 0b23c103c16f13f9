//! `kill -9` of either node at any moment: what was acknowledged is there, and the replica follows again.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Clients, LONG, PROD, Pair, REC, Setup};
use journal::{Journal, JournalError, Options, Parts};
use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use testkit::{
    nbd::{Client, Promise, Session, Step},
    proc::{need_tool, until},
    with_seeds,
};

const VOLUMES: [(&str, u64); 2] = [("data", 24 << 20), ("log", 8 << 20)];

/// A run of steps that never ends by itself.
fn steps(mut rng: StdRng, size: u64, end: &AtomicBool) -> impl Iterator<Item = Step> + '_ {
    std::iter::from_fn(move || {
        if end.load(Ordering::Relaxed) {
            return None;
        }
        let blocks = size / BLOCK_SIZE;
        let most = if rng.random_range(0..8) == 0 { 64 } else { 4 };
        let count = rng.random_range(1..=most);
        let first = BlockNo(rng.random_range(0..=blocks - count));
        Some(match rng.random_range(0..100) {
            0..4 => Step::Flush,
            4..10 => Step::Zero(ByteRange::at(first.start(), count * BLOCK_SIZE)),
            n => Step::Blocks {
                first,
                count,
                fua: n < 15,
            },
        })
    })
}

/// Writes until told to stop, or until the server is gone.
fn work(session: &mut Session, size: u64, seed: u64, end: &AtomicBool) {
    let _ = session.run(8, steps(StdRng::seed_from_u64(seed), size, end));
}

#[test]
fn nothing_acknowledged_is_lost() {
    let pair = Pair::new("kill", &Setup::volumes(&VOLUMES));
    let rounds = 10;
    with_seeds("kill", 1, |rng| {
        let socket = pair.socket(PROD);
        let session = |(index, (volume, _)): (usize, &(&str, u64))| {
            let index = VolumeIndex(u16::try_from(index).unwrap());
            Session::new(&socket, &format!("c1/{volume}"), index, 11)
        };
        let mut sessions: Vec<Session> = VOLUMES.iter().enumerate().map(session).collect();
        for round in 0..rounds {
            for session in &mut sessions {
                session.connect().unwrap();
            }
            let end = AtomicBool::new(false);
            // Production, recovery, or both in either order.
            let victims: &[&str] = match round % 4 {
                0 => &[PROD],
                1 => &[REC],
                2 => &[PROD, REC],
                _ => &[REC, PROD],
            };
            let waits: Vec<u64> = (0..4).map(|_| rng.random_range(5..250)).collect();
            let seeds: Vec<u64> = sessions.iter().map(|_| rng.random()).collect();
            thread::scope(|scope| {
                for ((session, (_, size)), seed) in sessions.iter_mut().zip(VOLUMES).zip(&seeds) {
                    let end = &end;
                    scope.spawn(move || work(session, size, *seed, end));
                }
                for (victim, wait) in victims.iter().zip(&waits) {
                    thread::sleep(Duration::from_millis(*wait * 2));
                    pair.kill9(victim);
                }
                end.store(!victims.contains(&PROD), Ordering::Relaxed);
            });
            for (victim, wait) in victims.iter().rev().zip(&waits[2..]) {
                thread::sleep(Duration::from_millis(*wait));
                pair.start(victim);
            }
            let mut heads = Clients::open(&pair, PROD, &VOLUMES, |v| format!("c1/{v}"));
            for session in &sessions {
                let kept = session.ledger().check(Promise::Acknowledged, &mut heads);
                kept.unwrap_or_else(|e| panic!("round {round}, {victims:?}: {e}"));
            }
            // Every second time recovery goes on from where it is while the next round runs.
            if round % 2 == 0 {
                pair.waits(PROD, "drained");
            }
        }
        let written: usize = sessions.iter().map(|s| s.ledger().entries().len()).sum();
        println!("{rounds} rounds of kills, {written} writes: none lost that was acknowledged");
        for session in &mut sessions {
            session.drop_connection();
        }
        pair.waits(PROD, "consistent");
        let mut latest = {
            pair.received();
            Clients::open(&pair, REC, &VOLUMES, |v| format!("c1/{v}@latest"))
        };
        for session in &sessions {
            session
                .ledger()
                .check(Promise::Acknowledged, &mut latest)
                .unwrap();
        }
        drop(latest);
        pair.drain();
        pair.same_files(&VOLUMES.map(|(v, _)| v));
    });
}

/// The bound of `durable` in a superblock: the higher of its slots (docs/formats/journal.md).
fn bound(journal: &Path) -> u64 {
    let bytes = fs::read(journal.join("super")).unwrap();
    let slot = |at: usize| u64::from_le_bytes(bytes[at + 20..at + 28].try_into().unwrap());
    slot(0).max(slot(4096))
}

/// A flush was answered, and nothing follows. At rest the bound is raised up to it: when a bit rots in the last frame and
/// the peer is away, that is damage, not a torn end whose number is given to other bytes.
#[test]
fn t5_an_idle_journal_raises_its_bound() {
    let setup = Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"1h\"\n",
        ..Setup::volumes(&VOLUMES)
    };
    let pair = Pair::new("idle", &setup);
    pair.kill9(REC);
    let mut client = pair.open(PROD, "c1/data");
    let block: Vec<u8> = (0..4096u32).map(|n| (n * n % 251) as u8).collect();
    client.write(8192, &block, false).unwrap();
    client.flush().unwrap();
    let head = pair.cursor(PROD, "appended").0;
    let journal = pair.scratch.join("state/prod/c1/journal");
    until("the bound at the head", LONG, || {
        (bound(&journal) >= head).then_some(())
    });
    pair.kill9(PROD);
    let at = |tail: &[u8]| tail.windows(block.len()).position(|w| w == block);
    let tails = ["tail.0", "tail.1"].map(|name| journal.join(name));
    let mut found = tails
        .iter()
        .filter_map(|path| Some((path, at(&fs::read(path).unwrap())?)));
    let (path, at) = found.next().expect("the frame is in a tail");
    let mut bytes = fs::read(path).unwrap();
    bytes[at + 100] ^= 4;
    fs::write(path, bytes).unwrap();
    let options = Options {
        lfc_size: 2 << 20,
        ..Options::default()
    };
    match Journal::open(Parts::open_dir(&journal, 2 << 20).unwrap(), options) {
        Err(JournalError::Damaged(found)) => println!("{found}"),
        Err(e) => panic!("{e}"),
        Ok((journal, opened)) => panic!("{opened:?} at {}", journal.cursors().appended),
    }
}

/// All bytes of all volumes behind an export name.
fn read(pair: &Pair, target: &str) -> Vec<Vec<u8>> {
    let clients = Clients::open(pair, REC, &VOLUMES, |v| format!("c1/{v}@{target}"));
    let whole = |mut client: Client| {
        let parts = (0..client.size()).step_by(1 << 20);
        parts.flat_map(|at| client.read(at, 1 << 20).unwrap()).collect()
    };
    clients.0.into_iter().map(whole).collect()
}

/// A restore, and its undo, that are killed again and again: the same command goes on, and the end is exact.
#[test]
fn a_restore_goes_on_where_it_was_killed() {
    let pair = Pair::new("restore", &Setup::volumes(&VOLUMES));
    with_seeds("restore", 1, |rng| {
        let socket = pair.socket(PROD);
        let write = |rng: &mut StdRng, count: usize| {
            for (index, (volume, size)) in VOLUMES.iter().enumerate() {
                let index = VolumeIndex(u16::try_from(index).unwrap());
                let mut session = Session::new(&socket, &format!("c1/{volume}"), index, rng.random());
                session.connect().unwrap();
                let end = AtomicBool::new(false);
                let seed = rng.random();
                let steps = steps(StdRng::seed_from_u64(seed), *size, &end).take(count);
                session.run(8, steps).unwrap();
            }
        };
        write(rng, 400);
        pair.cli(PROD, &["rtmark", "-C", "1", "--name", "there"]).ok();
        write(rng, 1600);
        pair.drain();
        let (there, head) = (read(&pair, "mark:there"), read(&pair, "latest"));
        let mut interrupted = [0; 2];
        for round in 0..2 {
            for (n, way) in [&["-F", "--mark", "there"] as &[&str], &["--undo"]]
                .iter()
                .enumerate()
            {
                let command: Vec<&str> = ["scrt_ra", "-C", "1", "-q"].iter().chain(*way).copied().collect();
                for _ in 0..3 {
                    let mut command_line = pair.command(REC, &command);
                    let command_line = command_line.stdout(Stdio::null()).stderr(Stdio::null());
                    let mut running = command_line.spawn().unwrap();
                    thread::sleep(Duration::from_millis(rng.random_range(15..200)));
                    pair.kill9(REC);
                    running.wait().unwrap();
                    pair.start(REC);
                    let status = pair.status(REC);
                    let state = status["head"]["context"]["state"].as_str().unwrap().to_owned();
                    interrupted[n] += usize::from(state == "RESTORING");
                    // Whatever the replica is like just now, production's line can be seen in full.
                    assert!(read(&pair, "latest") == head, "latest, {state}");
                    assert!(read(&pair, "mark:there") == there, "the mark, {state}");
                    if state == (if n == 0 { "ROLLED_BACK" } else { "ENABLED" }) {
                        break;
                    }
                }
                let state = pair.status(REC)["head"]["context"]["state"].clone();
                if !(n == 1 && state == "ENABLED") {
                    pair.cli(REC, &command).ok();
                }
                let files: Vec<Vec<u8>> = VOLUMES
                    .iter()
                    .map(|(v, _)| std::fs::read(pair.backing(REC, v)).unwrap())
                    .collect();
                assert!(
                    files == if n == 0 { &there } else { &head }[..],
                    "round {round}: {way:?}"
                );
                if n == 0 {
                    assert!(read(&pair, "restored") == there);
                }
            }
        }
        println!(
            "killed within a restore {} times, within an undo {} times",
            interrupted[0], interrupted[1]
        );
        pair.same_files(&VOLUMES.map(|(v, _)| v));
    });
}

/// fio writes and verifies at depth 32 through a client that reconnects, while both nodes are killed again and again.
///
/// `BACKSTAY_KILL_SECONDS=60` runs the minute with ten kills of each node that the project promises to have shown.
#[test]
fn fio_verifies_through_kills() {
    let seconds: u64 = std::env::var("BACKSTAY_KILL_SECONDS").map_or(12, |v| v.parse().unwrap());
    let kills = (seconds / 6).max(2);
    let pair = Pair::new("fio", &Setup::volumes(&[("data", 64 << 20)]));
    let front = pair.scratch.join("front.sock");
    let nbdkit = pair.scratch.start(
        "nbdkit",
        Command::new(need_tool("nbdkit"))
            .args(["-f", "--exit-with-parent", "--filter=retry", "-U"])
            .arg(&front)
            .arg("nbd")
            .arg(format!("uri={}", pair.uri(PROD, "c1/data")))
            .args(["retries=100", "retry-delay=1", "retry-exponential=no"]),
    );
    nbdkit.wait_for_socket(&front, LONG);
    let fio = pair.scratch.start(
        "fio",
        Command::new(need_tool("fio"))
            .current_dir(pair.scratch.path())
            .args([
                "--name=kill",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bs=16k",
                "--serialize_overlap=1",
            ])
            .args([
                "--iodepth=32",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_backlog=4096",
            ])
            .args([
                "--fsync=128",
                "--size=64m",
                "--time_based",
                "--rate=40m",
                "--output-format=terse",
            ])
            .arg(format!("--runtime={seconds}"))
            .arg(format!("--uri=nbd+unix:///?socket={}", front.display())),
    );
    with_seeds("fio", 1, |rng| {
        let from = Instant::now();
        for kill in 0..kills {
            let due =
                Duration::from_secs(seconds) * u32::try_from(kill).unwrap() / u32::try_from(kills).unwrap();
            let jitter = Duration::from_millis(rng.random_range(200..1500));
            thread::sleep((due + jitter).saturating_sub(from.elapsed()));
            for node in if rng.random() { [PROD, REC] } else { [REC, PROD] } {
                assert_eq!(fio.ended(), None, "fio ended: {}", fio.log());
                pair.kill9(node);
                thread::sleep(Duration::from_millis(rng.random_range(0..400)));
                pair.start(node);
                thread::sleep(Duration::from_millis(rng.random_range(0..800)));
            }
        }
    });
    let code = fio.wait(Duration::from_secs(seconds + 120));
    assert_eq!(code, 0, "{}", fio.log());
    nbdkit.stop(LONG);
    until("the export to be closed", LONG, || {
        let open = pair.status(PROD)["volumes"][0]["open"].as_bool();
        (open == Some(false)).then_some(())
    });
    pair.consistent();
    pair.drain();
    pair.same_files(&["data"]);
    println!(
        "fio verified for {seconds} s at depth 32 through {kills} kills of each node; the replica equals production"
    );
}
