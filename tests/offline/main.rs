//! The tools for a stopped node: `fsck-journal`, `dump`, `salvage` and the export as a dm-log-writes log (N18, N20), on what real
//! nodes left. Whatever they do, not a byte below the state directory changes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/load.rs"]
mod load;

use common::{LONG, PROD, Pair, REC, Setup, number};
use load::Load;
use model::{ByteRange, VolumeIndex, WriteSeq};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::{
    Oracle, golden,
    proc::{Finished, need_tool, run},
    with_seeds,
};

const VOLUMES: [(&str, u64); 2] = [("data", 1 << 20), ("log", 256 << 10)];

fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"10m\"\noverlay_limit = \"1M\"\n",
        ..Setup::volumes(&VOLUMES)
    }
}

/// Every file below a folder.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                t if t.is_dir() => folders.push(entry.path()),
                t if t.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// Names, bytes and times of all that is below a folder.
fn tree(root: &Path) -> Vec<(PathBuf, String, std::time::SystemTime)> {
    let one = |path: PathBuf| {
        let digest = blake3::hash(&fs::read(&path).unwrap()).to_hex()[..32].to_owned();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        (path, digest, changed)
    };
    files(root).into_iter().map(one).collect()
}

/// Two nodes with the state of version 1.
fn history() -> Pair {
    let pair = Pair::stopped("offline-history", &setup());
    let state = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/history/v1/state.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(state).arg("-C").arg(pair.scratch.path());
    assert_eq!(run(&mut tar, LONG).code, 0);
    pair
}

/// What every point of version 1 shows: digests of both volumes.
fn points() -> BTreeMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/history/v1/points.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn state(pair: &Pair, node: &str) -> PathBuf {
    pair.scratch.join(format!("state/{node}"))
}

/// A tool on a state directory alone: no node's file, no daemon.
fn tool(state: &Path, words: &[&str]) -> Finished {
    let mut command = Command::new(common::program());
    command.args(words).args(["-C", "1", "--state"]).arg(state);
    command.env("TZ", "UTC").env("BACKSTAY_ETC", "/nowhere");
    run(&mut command, LONG)
}

fn object(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"))
}

/// All volumes at a point, and the answer.
fn salvaged(pair: &Pair, state: &Path, at: &str, more: &[&str]) -> (Finished, Vec<Vec<u8>>) {
    let out = pair.scratch.join("images");
    let _ = fs::remove_dir_all(&out);
    let mut words = vec![
        "salvage",
        "--at",
        at,
        "--all",
        "--json",
        "-o",
        out.to_str().unwrap(),
    ];
    words.extend(more);
    let done = tool(state, &words);
    let read = |(name, _): &(&str, u64)| fs::read(out.join(name)).unwrap_or_default();
    (done, VOLUMES.iter().map(read).collect())
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

/// Every point that version 1 kept is salvaged from the recovery host's folder alone, and the head from production's alone.
#[test]
fn every_point_of_a_released_history_is_salvaged_from_one_folder() {
    let (pair, points) = (history(), points());
    let (rec, prod) = (state(&pair, REC), state(&pair, PROD));
    let kept = pair.scratch.join("kept");
    fs::rename(&prod, &kept).unwrap();
    let before = tree(&rec);
    let mut count = 0;
    for (name, expected) in points.iter() {
        let Some(target) = name.strip_prefix("c1/*@") else {
            continue;
        };
        let (done, volumes) = salvaged(&pair, &rec, target, &[]);
        assert_eq!(done.code, 0, "{name}: {done:?}");
        let found: Vec<_> = volumes.iter().map(|v| digest(v)).collect();
        assert_eq!(&found, expected, "{name}");
        count += 1;
    }
    assert!(count > 40, "{count}");
    assert!(tree(&rec) == before, "the folder has changed");
    fs::rename(&kept, &prod).unwrap();
    fs::remove_dir_all(&rec).unwrap();
    let before = tree(&prod);
    let (done, volumes) = salvaged(&pair, &prod, "latest", &[]);
    assert_eq!(done.code, 0, "{done:?}");
    let found: Vec<_> = volumes.iter().map(|v| digest(v)).collect();
    assert_eq!(found, points["head"]);
    // It holds no earlier points and says so.
    let (done, _) = salvaged(&pair, &prod, "mark:one", &[]);
    assert_eq!(done.code, 3, "{done:?}");
    assert!(
        object(&done)["error"]
            .as_str()
            .unwrap()
            .contains("keeps no earlier points")
    );
    assert!(tree(&prod) == before, "the folder has changed");
}

#[test]
fn a_released_journal_is_clean_and_dumped_as_agreed() {
    let pair = history();
    for node in [PROD, REC] {
        let folder = state(&pair, node);
        let before = tree(&folder);
        let done = tool(&folder, &["fsck-journal", "--json"]);
        assert_eq!(done.code, 0, "{node}: {done:?}");
        let reply = object(&done)["reply"]["check"].clone();
        assert_eq!(reply["findings"], Value::Array(Vec::new()), "{node}");
        assert!(number(&reply["read"]["records"]) >= 13, "{reply}");
        let people = tool(&folder, &["fsck-journal"]);
        assert!(people.stdout.contains("CLEAN: context 1"), "{people:?}");
        let all = tool(&folder, &["dump"]).ok();
        let mut lfcs = Vec::new();
        for line in all
            .lines()
            .filter(|l| l.contains(": LfcRow ") && !l.contains(" dropped"))
        {
            let id = line.split(": ").nth(1).unwrap();
            lfcs.push(id.to_owned());
        }
        let mut text = all;
        for id in &lfcs {
            text += &tool(&folder, &["dump", "lfc", id]).ok();
        }
        text += &tool(&folder, &["dump", "undo", "index"]).ok();
        golden::check_text(&format!("dump/v1-{node}.txt"), &text);
        // As one object, with bytes: as many lines.
        let done = tool(&folder, &["dump", "--json", "--hex", "rows"]);
        let lines = object(&done)["reply"]["dump"]["lines"].as_array().unwrap().len();
        let rows = text
            .lines()
            .filter(|l| l.starts_with("row") && !l.contains("dump"))
            .count();
        assert!(lines > 10 && lines <= rows, "{lines} {rows}");
        assert_eq!(tool(&folder, &["dump", "seq", "999999"]).code, 1);
        assert_eq!(tool(&folder, &["dump", "everything"]).code, 64);
        assert!(tree(&folder) == before, "the folder of {node} has changed");
    }
}

/// A history made under load, with both hosts killed in the middle of it.
struct World {
    pair: Pair,
    load: Load,
    /// Points that were written.
    at: Vec<WriteSeq>,
}

fn make(rng: &mut StdRng, name: &str) -> World {
    let pair = Pair::new(name, &setup());
    let mut load = Load::new(&pair, &VOLUMES);
    let mut at = Vec::new();
    for part in 0..3 {
        for _ in 0..3 {
            load.burst(rng, 4);
            at.push(load.head());
            load.set_mark(&pair);
            at.push(load.head());
        }
        if part < 2 {
            load.disconnect();
            pair.waits(PROD, "drained");
            pair.stop(REC);
            pair.start(REC);
            load.connect(&pair);
        }
    }
    pair.waits(PROD, "drained");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--mark", &load.marks[3].0])
        .ok();
    load.burst(rng, 6);
    pair.received();
    at.push(load.head());
    pair.kill9(REC);
    load.burst(rng, 4);
    pair.kill9(PROD);
    World { pair, load, at }
}

fn same(oracle: &Oracle, volumes: &[Vec<u8>], seq: WriteSeq, why: &str) {
    for (index, bytes) in volumes.iter().enumerate() {
        let volume = VolumeIndex(u16::try_from(index).unwrap());
        let expected = oracle.bytes(volume, ByteRange::at(0, VOLUMES[index].1), seq);
        assert!(*bytes == expected, "{why}: volume {volume} as of {seq}");
    }
}

#[test]
fn random_histories_are_salvaged_after_both_hosts_were_killed() {
    with_seeds("salvage", 1, |rng| {
        let mut world = make(rng, "offline-salvage");
        let (rec, prod) = (state(&world.pair, REC), state(&world.pair, PROD));
        let before = [tree(&rec), tree(&prod)];
        // Production's head: all that was flushed is in it, and it is a prefix of what was sent.
        let (done, volumes) = salvaged(&world.pair, &prod, "latest", &[]);
        assert_eq!(done.code, 0, "{done:?}");
        let head = WriteSeq(number(&object(&done)["point"]["seq"]));
        world.load.settle(head, "salvage of production");
        same(&world.load.oracle, &volumes, head, "production");
        // Recovery: ends of bursts, marks, and records anywhere between.
        let newest = *world.at.last().unwrap();
        let first = world.load.marks[0].1;
        let mut targets: Vec<(String, WriteSeq)> =
            world.at.iter().map(|at| (format!("seq:{at}"), *at)).collect();
        targets.extend(
            world
                .load
                .marks
                .iter()
                .filter(|(_, at)| *at <= newest)
                .map(|(name, at)| (format!("mark:{name}"), *at)),
        );
        targets.extend((0..12).map(|_| {
            let at = WriteSeq(rng.random_range(first.0..=newest.0));
            (format!("seq:{at}"), at)
        }));
        targets.push(("latest".into(), newest));
        for (target, at) in targets {
            let (done, volumes) = salvaged(&world.pair, &rec, &target, &[]);
            assert_eq!(done.code, 0, "{target}: {done:?}");
            assert_eq!(object(&done)["point"]["seq"], at.0, "{target}");
            same(&world.load.oracle, &volumes, at, &target);
        }
        // Outside: the nearest points.
        let (done, _) = salvaged(&world.pair, &rec, &format!("seq:{}", newest.0 + 1000), &[]);
        assert_eq!(done.code, 3, "{done:?}");
        for (node, folder) in [(REC, &rec), (PROD, &prod)] {
            let done = tool(folder, &["fsck-journal"]);
            assert_eq!(done.code, 0, "{node}: {done:?}");
        }
        assert!([tree(&rec), tree(&prod)] == before, "a folder has changed");
        replayed(&world, &rec);
        damaged(&world, &rec, rng);
        damaged_tail(&world, &rec);
        // The nodes go on as if nobody had looked.
        for node in [PROD, REC] {
            world.pair.start(node);
        }
        world.pair.waits(PROD, "drained");
        world.pair.drain();
        world.pair.same_files(&["data", "log"]);
    });
}

/// N18: a replayer that knows the kernel's format and nothing of us rebuilds each volume at every mark.
fn replayed(world: &World, rec: &Path) {
    let scratch = &world.pair.scratch;
    let (from, from_seq) = &world.load.marks[0];
    let before = tree(rec);
    for (index, (volume, size)) in (0..).zip(VOLUMES) {
        let (log, base) = (
            scratch.join(format!("{volume}.log")),
            scratch.join(format!("{volume}.base")),
        );
        let (log_name, base_name) = (log.to_str().unwrap(), base.to_str().unwrap());
        let from = format!("mark:{from}");
        tool(
            rec,
            &["salvage", "--at", &from, "--volume", volume, "-o", base_name],
        )
        .ok();
        let done = tool(
            rec,
            &[
                "dump",
                "--log-writes",
                log_name,
                "-L",
                volume,
                "--from",
                &from,
                "--json",
            ],
        );
        assert_eq!(done.code, 0, "{done:?}");
        let reply = object(&done)["reply"]["log_writes"].clone();
        let out = scratch.folder(&format!("{volume}.marks"));
        let mut python = Command::new(need_tool("python3"));
        python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/offline/replay.py"));
        let said = run(python.args([&log, &base, &out]), LONG).ok();
        let (mut marks, mut ends) = (0, 0);
        for line in said.lines().filter(|l| !l.starts_with("flushes")) {
            let (n, text) = line.split_once(' ').unwrap();
            let named = world.load.marks.iter().find(|(name, _)| name == text);
            let at = match (text.strip_prefix("seq:"), named) {
                (Some(seq), _) => WriteSeq(seq.parse().unwrap()),
                (None, Some((_, at))) => *at,
                // The end of a container, which a mark has sealed or not: salvage names its record.
                (None, None) => {
                    ends += 1;
                    let name = scratch.join("end");
                    let name = name.to_str().unwrap();
                    let done = tool(
                        rec,
                        &["salvage", "--at", text, "--volume", volume, "-fo", name, "--json"],
                    );
                    assert_eq!(done.code, 0, "{text}: {done:?}");
                    WriteSeq(number(&object(&done)["point"]["seq"]))
                }
            };
            assert!(at >= *from_seq);
            let expected = world
                .load
                .oracle
                .bytes(VolumeIndex(index), ByteRange::at(0, size), at);
            assert!(
                fs::read(out.join(n)).unwrap() == expected,
                "{volume} at {text} ({at})"
            );
            marks += 1;
        }
        assert_eq!(marks, number(&reply["marks"]));
        assert!(ends > 3, "{said}");
        let flushes: u64 = said
            .lines()
            .last()
            .unwrap()
            .strip_prefix("flushes ")
            .unwrap()
            .parse()
            .unwrap();
        assert!(flushes > ends, "{said}");
    }
    assert!(tree(rec) == before, "the folder has changed");
}

/// A frame in a tail that does not check: what is before it, and that it is so.
fn damaged_tail(world: &World, rec: &Path) {
    let tails = tool(rec, &["dump", "tails"]).ok();
    let records = tails.lines().filter(|l| l.starts_with("record"));
    let number_of = |l: &str| {
        l.split_whitespace()
            .nth(1)?
            .trim_end_matches(':')
            .parse::<u64>()
            .ok()
    };
    let newest = records.filter_map(number_of).max().unwrap();
    let (mut refused, mut cut) = (0, 0);
    for line in tails.lines().filter(|l| l.starts_with("frame")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at: u64 = words[3].trim_end_matches(':').parse::<u64>().unwrap() + 100;
        let file = rec.join("c1/journal").join(words[1]);
        let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let (done, volumes) = salvaged(&world.pair, rec, "latest", &[]);
        let (done, volumes) = match done.code {
            0 => {
                cut += 1;
                (done, volumes)
            }
            1 => {
                refused += 1;
                assert_eq!(tool(rec, &["fsck-journal"]).code, 2, "{line}");
                let (best, volumes) = salvaged(&world.pair, rec, "latest", &["--best-effort"]);
                assert_eq!(best.code, 2, "{line}: {best:?}");
                assert!(best.stdout.contains("the journal is damaged: "), "{best:?}");
                (best, volumes)
            }
            _ => panic!("{line}: {done:?}"),
        };
        let point = WriteSeq(number(&object(&done)["point"]["seq"]));
        assert!(point.0 <= newest, "{point} of {newest}");
        same(&world.load.oracle, &volumes, point, "a damaged tail");
        file.write_all_at(&byte, at).unwrap();
    }
    println!("frames of tails flipped: {refused} refused, {cut} a torn end or not used any more");
    assert!(refused > 0);
}

/// A flipped bit of a stored file: refused with the blocks, or written with every range that cannot be trusted named, and all
/// others as they were.
fn damaged(world: &World, rec: &Path, rng: &mut StdRng) {
    let ssts: Vec<PathBuf> = files(rec)
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "sst"))
        .collect();
    let (mut refused, mut in_part) = (0, 0);
    for _ in 0..40 {
        let path = ssts.choose(rng).unwrap();
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = rng.random_range(0..file.metadata().unwrap().len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let point = *world.at[..world.at.len() - 1].choose(rng).unwrap();
        let target = format!("seq:{point}");
        let (done, volumes) = salvaged(&world.pair, rec, &target, &[]);
        let what = || format!("{} byte {at}, {target}: {done:?}", path.display());
        match done.code {
            0 => same(&world.load.oracle, &volumes, point, "flipped"),
            1 | 3 => {
                refused += 1;
                let fsck = tool(rec, &["fsck-journal"]);
                assert_eq!(fsck.code, 2, "{}: {fsck:?}", what());
                assert!(fsck.stdout.contains("damaged: db"), "{fsck:?}");
                // A file that could not be written whole is not there.
                assert!(volumes.iter().any(Vec::is_empty), "{}", what());
                let (best, volumes) = salvaged(&world.pair, rec, &target, &["--best-effort"]);
                if best.code == 2 {
                    in_part += 1;
                    in_part_right(&world.load.oracle, &object(&best), &volumes, point);
                } else {
                    assert!([1, 3].contains(&best.code), "{}: {best:?}", what());
                }
            }
            _ => panic!("{}", what()),
        }
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(refused > 0, "no flip reached anything");
    println!("40 bits flipped: {refused} points refused, of these {in_part} written in part");
}

fn in_part_right(oracle: &Oracle, answer: &Value, volumes: &[Vec<u8>], at: WriteSeq) {
    let mut lost = 0;
    for (index, bytes) in volumes.iter().enumerate() {
        let volume = VolumeIndex(u16::try_from(index).unwrap());
        let mut expected = oracle.bytes(volume, ByteRange::at(0, VOLUMES[index].1), at);
        for range in answer["reply"]["salvage"]["volumes"][index]["lost"]
            .as_array()
            .unwrap()
        {
            let (offset, len) = (number(&range["offset"]), number(&range["bytes"]));
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            expected[range].fill(0);
            lost += len;
        }
        assert!(*bytes == expected, "volume {volume} in part");
    }
    assert!(lost > 0, "{answer}");
}

/// Roles that changed, with what each host wrote while it was production: clean on both hosts, and the heads are what was served.
#[test]
fn a_history_of_changed_roles_is_clean_and_salvaged() {
    let pair = Pair::new("offline-roles", &setup());
    pair.cli(REC, &["rtdr", "-C", "1", "-F", "2", "setup"]).ok();
    let write = |node: &str, seed: u8| {
        for (volume, size) in VOLUMES {
            let mut client = pair.open(node, &format!("c1/{volume}"));
            for i in 0..40u64 {
                let at = (u64::from(seed) * 7919 + i * 4099 * 3) % (size - 5000);
                client
                    .write(at, &vec![seed; 1000 + (i * 97 % 3000) as usize], i % 7 == 0)
                    .unwrap();
            }
            client.flush().unwrap();
        }
    };
    let served = |node: &str| -> Vec<Vec<u8>> {
        let read =
            |(volume, size): &(&str, u64)| pair.open(node, &format!("c1/{volume}")).read(0, *size).unwrap();
        VOLUMES.iter().map(read).collect()
    };
    let clean = |node: &str, when: &str| {
        let folder = state(&pair, node);
        let before = tree(&folder);
        let done = tool(&folder, &["fsck-journal"]);
        assert_eq!(done.code, 0, "{node}, {when}: {done:?}");
        assert!(tree(&folder) == before, "the folder of {node} has changed");
    };
    write(PROD, 1);
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "before"]).ok();
    pair.waits(PROD, "drained");
    write(PROD, 2);
    pair.kill9(PROD);
    clean(PROD, "killed");
    pair.cli(REC, &["rtdr", "-C", "1", "failover", "-q", "-f"]).ok();
    write(REC, 3);
    pair.cli(REC, &["rtmark", "-C", "1", "--name", "taken-over"]).ok();
    write(REC, 4);
    let head = served(REC);
    pair.kill9(REC);
    clean(REC, "acting production");
    // It holds earlier points: its head is the last of them.
    let (done, volumes) = salvaged(&pair, &state(&pair, REC), "latest", &[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(volumes == head, "the acting production's head");
    for target in ["mark:before", "mark:taken-over"] {
        let (done, volumes) = salvaged(&pair, &state(&pair, REC), target, &[]);
        assert_eq!(done.code, 0, "{target}: {done:?}");
        assert!(volumes != head, "{target}");
    }
    for node in [REC, PROD] {
        pair.start(node);
    }
    pair.cli(PROD, &["rtdr", "-C", "1", "resync", "-q"]).ok();
    pair.cli(REC, &["rtdr", "-C", "1", "resync", "-q", "--wait"]).ok();
    write(REC, 5);
    pair.waits(REC, "drained");
    let head = served(REC);
    for node in [PROD, REC] {
        pair.stop(node);
        clean(node, "after the resync");
        let (done, volumes) = salvaged(&pair, &state(&pair, node), "latest", &[]);
        assert_eq!(done.code, 0, "{node}: {done:?}");
        assert!(volumes == head, "{node} after the resync");
    }
}

/// A daemon that runs keeps the tools out, and they keep one from starting; what is there is not replaced.
#[test]
fn a_running_daemon_and_files_that_are_there_are_refused() {
    let pair = Pair::new("offline-refused", &setup());
    for words in [
        &["fsck-journal"] as &[&str],
        &["dump"],
        &["salvage", "--all", "-o", "/nowhere"],
    ] {
        let done = tool(&state(&pair, REC), words);
        assert_eq!(done.code, 75, "{words:?}: {done:?}");
        assert!(
            done.stderr.contains("a daemon runs on") && done.stderr.contains("pid "),
            "{done:?}"
        );
    }
    pair.stop(REC);
    // By the node's name as well.
    let image = pair.scratch.join("image");
    let name = image.to_str().unwrap();
    let line = ["salvage", "-C", "1", "--volume", "data", "-o", name];
    pair.cli(REC, &line).ok();
    let done = pair.cli(REC, &line);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("is there already"), "{done:?}");
    pair.cli(REC, &[&line[..], &["-f"]].concat()).ok();
    assert_eq!(fs::metadata(&image).unwrap().len(), VOLUMES[0].1);
    // Sparse: nothing was ever written.
    assert_eq!(
        std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&image).unwrap()),
        0
    );
    let inside = state(&pair, REC).join("image");
    let done = pair.cli(
        REC,
        &[
            "salvage",
            "-C",
            "1",
            "--volume",
            "data",
            "-o",
            inside.to_str().unwrap(),
        ],
    );
    assert_eq!(done.code, 64, "{done:?}");
    let done = pair.cli(
        REC,
        &["salvage", "-C", "1", "--all", "-o", inside.to_str().unwrap()],
    );
    assert_eq!(done.code, 64, "{done:?}");
    assert!(!inside.exists());
    let done = pair.cli(
        REC,
        &["salvage", "-C", "1", "--volume", "nothing", "-o", name, "-f"],
    );
    assert_eq!(done.code, 1, "{done:?}");
    // A dry run writes nothing.
    let never = pair.scratch.join("never");
    let planned = pair
        .cli(
            REC,
            &["salvage", "-C", "1", "--all", "-n", "-o", never.to_str().unwrap()],
        )
        .ok();
    assert!(
        planned.contains("write volume data to") && planned.contains("Nothing changed (-n)."),
        "{planned}"
    );
    assert!(!never.exists());
    assert_eq!(tool(&state(&pair, REC), &["fsck-journal", "-n"]).code, 0);
    let mut other = Command::new(common::program());
    other
        .args(["fsck-journal", "-C", "7", "--state"])
        .arg(state(&pair, REC));
    assert_eq!(run(&mut other, LONG).code, 1);
}
