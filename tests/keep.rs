//! What is kept of the past, with real nodes: the window, pins, and what gives way when there is no room (`rules.md` K1, K2).
//!
//! Every write takes the next position and the state after each is remembered, so that any point can be held against what it
//! was. Windows are seconds here: ages count from the newest received write, so only the times of writes matter.
//! `BACKSTAY_DAY_SECONDS` makes the day longer.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Clients, LONG, PROD, Pair, REC, Setup, number};
use model::{BLOCK_SIZE, BlockNo, ByteRange, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use testkit::{
    Oracle,
    block::{self, Header},
    nbd::Client,
    proc::until,
};

const VOLUMES: [(&str, u64); 2] = [("data", 4 << 20), ("log", 1 << 20)];
/// Bytes of a write.
const WRITE: u64 = 64 << 10;
const SECOND: u64 = Timestamp::SECOND_NS;
const EIO: u32 = 5;
const ENOSPC: u32 = 28;

/// A pair with small containers that are applied soon.
fn pair(name: &str, keys: &str) -> Pair {
    let text = format!("lfc_size = \"2M\"\nlfc_max_age = \"1s\"\n{keys}");
    let setup = Setup {
        // Once a test, for the life of the process.
        context: Box::leak(text.into_boxed_str()),
        ..Setup::volumes(&VOLUMES)
    };
    Pair::new(name, &setup)
}

/// A workload that knows every state it has made.
struct History<'a> {
    pair: &'a Pair,
    clients: Vec<Client>,
    oracle: Oracle,
    seq: u64,
    rng: StdRng,
}

impl<'a> History<'a> {
    fn new(pair: &'a Pair) -> Self {
        Self {
            pair,
            clients: VOLUMES.map(|(v, _)| pair.open(PROD, &format!("c1/{v}"))).into(),
            oracle: Oracle::new(&VOLUMES.map(|(_, size)| size)),
            seq: pair.received().0,
            rng: StdRng::seed_from_u64(7),
        }
    }

    /// One write; answers its position.
    fn write(&mut self) -> u64 {
        let volume = usize::from(self.rng.random_bool(0.2));
        let first = self
            .rng
            .random_range(0..=(VOLUMES[volume].1 - WRITE) / BLOCK_SIZE);
        let range = ByteRange::at(first * BLOCK_SIZE, WRITE);
        self.seq += 1;
        let (seq, time) = (WriteSeq(self.seq), Timestamp(self.seq));
        let header = |block| Header {
            volume: VolumeIndex(volume as u16),
            block,
            version: self.seq,
            time,
            seed: 7,
        };
        let data: Vec<u8> = range.blocks().flat_map(|n| block::make(&header(n))).collect();
        let first = header(BlockNo::of(range.start));
        self.oracle.describe(seq, time, &first, WRITE / BLOCK_SIZE);
        self.clients[volume].write(range.start, &data, false).unwrap();
        self.seq
    }

    fn writes(&mut self, n: u64) -> u64 {
        for _ in 0..n {
            self.write();
        }
        self.seq
    }

    fn mark(&mut self, name: &str, more: &[&str]) {
        let mut args = vec!["rtmark", "-C", "1", "--name", name];
        args.extend(more);
        self.pair.cli(PROD, &args).ok();
        self.seq += 1;
        self.oracle.mark(WriteSeq(self.seq), Timestamp(self.seq), name);
    }

    /// Waits until all is applied, and seals what is open by a mark.
    fn applied(&mut self, mark: &str) {
        self.mark(mark, &[]);
        self.pair.received();
        self.pair.waits(REC, &format!("applied={}", self.seq));
    }

    /// Holds what exports show against the state after record `seq`.
    #[track_caller]
    fn shows(&self, seq: u64, name: impl Fn(&str) -> String) {
        let mut clients = Clients::open(self.pair, REC, &VOLUMES, name);
        if let Err(mismatch) = self.oracle.compare(WriteSeq(seq), &mut clients) {
            panic!("after record {seq}: {mismatch}");
        }
    }

    #[track_caller]
    fn shows_point(&self, seq: u64) {
        self.shows(seq, |volume| format!("c1/{volume}@seq:{seq}"));
    }
}

fn status(pair: &Pair) -> Value {
    pair.status(REC)
}

fn warned(status: &Value, words: &str) -> bool {
    let warnings = status["warnings"].as_array().unwrap();
    warnings.iter().any(|w| w.as_str().unwrap().contains(words))
}

fn pins(pair: &Pair) -> Vec<Value> {
    let all = pair.json(REC, &["pins", "-C", "1"]);
    all["reply"]["pins"]["pins"].as_array().unwrap().clone()
}

/// Bytes that the files of a folder take.
fn disk_use(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_use(&entry.path()),
        Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
        // It went meanwhile, which is the point.
        Err(_) => 0,
    });
    sizes.sum()
}

/// A day of history in a few seconds: the window that is promised is the window that is kept, every point of it is what it was,
/// marks and snapshots come and go, and neither the journal nor the disk grows.
#[test]
fn k1_the_window_promised_is_the_window_kept() {
    const WINDOW: u64 = 3;
    let seconds = std::env::var("BACKSTAY_DAY_SECONDS").map_or(20, |s| s.parse().unwrap());
    let pair = pair(
        "window",
        "rollback_window = \"3s\"\njournal_limit = \"256M\"\noverlay_limit = \"4M\"\n",
    );
    let folder = pair.scratch.join("state/rec/c1/journal");
    let mut history = History::new(&pair);
    let first = history.write();
    let (started, mut looks, mut views, mut level) = (Instant::now(), 0, 0, None::<(u64, u64)>);
    let mut first_time = None;
    let mut uses: Vec<(u64, u64)> = Vec::new();
    while started.elapsed() < Duration::from_secs(seconds) {
        history.writes(20);
        if looks % 3 == 0 {
            history.mark(&format!("m{looks}"), &[]);
        }
        let status = status(&pair);
        assert!(status["warnings"].as_array().unwrap().is_empty(), "{status}");
        let Some(window) = status["window"].as_object() else {
            continue;
        };
        let time = |end: &str| number(&window[end]["time"]["epoch_ns"]);
        let (oldest, newest) = (time("oldest"), time("newest"));
        let first_time = *first_time.get_or_insert(oldest);
        if newest >= first_time + WINDOW * SECOND {
            assert!(oldest + WINDOW * SECOND <= newest, "{window:?}");
        } else {
            assert_eq!(oldest, first_time, "nothing goes before its time");
        }
        let of = |end: &str| number(&window[end]["seq"]);
        if looks % 4 == 0 && of("newest") > first {
            let seq = history.rng.random_range(of("oldest").max(first)..=of("newest"));
            // It may leave the window between the look and the command; then it is refused, and never something else.
            let taken = pair.cli(REC, &["scrt_ra", "-C", "1", "--at", &format!("seq:{seq}")]);
            assert!([0, 3].contains(&taken.code), "{taken:?}");
            if taken.code == 0 {
                let all = pair.status(REC)["snapshots"].clone();
                let newest = all.as_array().unwrap().last().unwrap().clone();
                level = Some((number(&newest["level"]), seq));
            }
        }
        if looks % 4 == 3
            && let Some((level, seq)) = level.take()
        {
            // Two seconds later, when it may be beyond the window: its pin has kept it.
            history.shows(seq, |volume| format!("c1/rsn{level}/{volume}"));
            views += 1;
            pair.cli(REC, &["scrt_ra", "-C", "1", "-W", "--level", &level.to_string()])
                .ok();
            let left = pins(&pair);
            assert_eq!(left.len(), 1, "{left:?}");
            assert_eq!(left[0]["holder"], "released snapshot");
            let id = left[0]["id"].to_string();
            pair.cli(REC, &["pins", "-C", "1", "--release", &id]).ok();
        }
        uses.push((number(&status["journal_bytes"]), disk_use(&folder)));
        looks += 1;
    }
    history.applied("end");
    let window = status(&pair)["window"].clone();
    for _ in 0..5 {
        let seq = history
            .rng
            .random_range(number(&window["oldest"]["seq"]).max(first)..=history.seq);
        history.shows_point(seq);
    }
    let peak = |uses: &[(u64, u64)]| {
        let journal = uses.iter().map(|u| u.0).max().unwrap();
        (journal, uses.iter().map(|u| u.1).max().unwrap())
    };
    let (before, after) = uses.split_at(uses.len() / 2);
    let (before, after) = (peak(before), peak(after));
    println!(
        "{looks} looks, {views} views, {} records; journal and disk at most {before:?}, then {after:?}",
        history.seq
    );
    assert!(views > 0 && looks > 10);
    // The first half had to fill the window; the second half holds no more than it, whatever was written since.
    assert!(
        after.0 <= before.0 * 2,
        "the journal grows: {before:?}, {after:?}"
    );
    assert!(after.1 <= before.1 * 2, "the disk fills: {before:?}, {after:?}");
    let rows = pair.json(REC, &["scrt_ra", "-C", "1", "-v"]);
    let lfcs = rows["reply"]["windows"]["lfcs"].as_array().unwrap().clone();
    let ends: Vec<u64> = lfcs.iter().map(|l| number(&l["last"]["epoch_ns"])).collect();
    let kept = ends.iter().max().unwrap() - ends.iter().min().unwrap();
    assert!(
        kept > 4 * WINDOW * SECOND - SECOND * 3 || seconds < 16,
        "rows are {kept} ns old at most"
    );
}

/// What a pin was made for, who made it and what it holds is shown; a released snapshot leaves one for 72 h of writes, which goes
/// only by hand, and the others only with what they belong to. All of it survives `kill -9`.
#[test]
fn k2_a_released_snapshot_leaves_its_point_for_72_hours() {
    let pair = pair("released", "rollback_window = \"1s\"\n");
    let mut history = History::new(&pair);
    let seq = history.writes(40);
    history.applied("m");
    history.writes(5);
    pair.cli(REC, &["scrt_ra", "-C", "1", "--seq", &seq.to_string()])
        .ok();
    let snapshot = &pins(&pair)[0];
    assert_eq!(snapshot["holder"], "snapshot 10");
    assert!(snapshot["owner"].as_str().unwrap().contains('@'), "{snapshot}");
    assert!(
        snapshot["expires"].is_null() && snapshot["broken"] == false,
        "{snapshot}"
    );
    let id = snapshot["id"].to_string();
    let refused = pair.cli(REC, &["pins", "-C", "1", "--release", &id]);
    assert!(
        refused.code == 1 && refused.stderr.contains("-W --level 10"),
        "{refused:?}"
    );

    let released = pair.json(REC, &["scrt_ra", "-C", "1", "-W"]);
    let until_ns = number(&released["reply"]["release"]["released"][0]["pinned_until"]["epoch_ns"]);
    pair.kill9(REC);
    pair.start(REC);
    let left = &pins(&pair)[0];
    assert_eq!(left["holder"], "released snapshot");
    assert_eq!(number(&left["expires"]["epoch_ns"]), until_ns);
    // 72 hours behind a write that was there, and not behind the clock.
    let newest = number(&status(&pair)["window"]["newest"]["time"]["epoch_ns"]);
    assert!(until_ns <= newest + 72 * 3600 * SECOND, "{until_ns} {newest}");
    assert!(
        until_ns + 60 * SECOND > newest + 72 * 3600 * SECOND,
        "{until_ns} {newest}"
    );

    // Two windows later the point is there, because of the pin, and it holds what was written since.
    let begun = newest;
    until("two windows of writes", LONG, || {
        history.writes(3);
        let window = status(&pair)["window"].clone();
        (number(&window["newest"]["time"]["epoch_ns"]) > begun + 3 * SECOND).then_some(())
    });
    history.applied("n");
    history.shows_point(seq);
    let left = pins(&pair)[0].clone();
    assert!(number(&left["holds_bytes"]) > WRITE, "{left}");
    let planned = pair.cli(REC, &["pins", "-C", "1", "--release", &id, "-n"]).ok();
    assert!(planned.contains("release pin"), "{planned}");
    pair.cli(REC, &["pins", "-C", "1", "--release", &id]).ok();
    assert!(pins(&pair).is_empty());
    until("the point to go", LONG, || {
        let at = format!("seq:{seq}");
        let code = pair.cli(REC, &["scrt_ra", "-C", "1", "--at", &at, "-n"]).code;
        (code == 3).then_some(())
    });
    let gone = pair.cli(REC, &["pins", "-C", "1", "--release", &id]);
    assert!(gone.code == 1 && gone.stderr.contains("no pin"), "{gone:?}");
}

/// A mark that is to be kept stays reachable beyond the window, for as long as it was asked for.
#[test]
fn k2_a_kept_mark_outlives_the_window_and_expires() {
    let pair = pair("kept-mark", "rollback_window = \"1s\"\n");
    let mut history = History::new(&pair);
    history.writes(10);
    history.mark("plain", &[]);
    let plain = history.seq;
    history.writes(10);
    history.mark("good", &["--keep", "12s"]);
    let good = history.seq;
    history.applied("after");
    let pinned = pins(&pair);
    assert_eq!(pinned.len(), 1, "{pinned:?}");
    assert_eq!(pinned[0]["holder"], "mark 'good'");
    let expires = number(&pinned[0]["expires"]["epoch_ns"]);
    let reach = |mark: &str| pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", mark, "-n"]).code;
    let mut was_alone = false;
    until("the mark to expire", LONG, || {
        history.writes(3);
        let newest = number(&status(&pair)["window"]["newest"]["time"]["epoch_ns"]);
        // Once, and seconds before it may go.
        if !was_alone && newest + 4 * SECOND < expires && reach("plain") == 3 {
            was_alone = true;
            history.shows(good, |volume| format!("c1/{volume}@mark:good"));
        }
        (reach("good") == 3).then_some(())
    });
    assert!(was_alone && plain < good);
    // The floor is durable first, the pin goes after it.
    until("its pin to go", LONG, || pins(&pair).is_empty().then_some(()));
    assert!(number(&status(&pair)["window"]["newest"]["time"]["epoch_ns"]) >= expires);
}

/// Short of room a snapshot's reads fail, and never answer other bytes; it is listed as broken and can be released. The window
/// is cut next, and status says what binds and what would do.
#[test]
fn k1_short_of_room_views_break_and_the_window_is_cut() {
    let pair = pair("short", "rollback_window = \"1h\"\njournal_limit = \"16M\"\n");
    let mut history = History::new(&pair);
    let seq = history.writes(30);
    history.applied("m");
    pair.cli(REC, &["scrt_ra", "-C", "1", "--seq", &seq.to_string()])
        .ok();
    let mut reader = pair.open(REC, "c1/rsn10/data");
    history.shows(seq, |volume| format!("c1/rsn10/{volume}"));
    let mut reads = 0;
    let failed = until("the snapshot to break", LONG, || {
        history.writes(10);
        let got = reader.read(0, 1 << 20);
        reads += 1;
        match got {
            Ok(bytes) => {
                let range = ByteRange::at(0, 1 << 20);
                let expected = history.oracle.bytes(VolumeIndex(0), range, WriteSeq(seq));
                assert!(bytes == expected, "other bytes after {reads} reads");
                None
            }
            Err(e) => Some(e),
        }
    });
    assert_eq!(failed.errno(), Some(EIO), "{failed}");
    history.applied("n");
    let now = status(&pair);
    assert_eq!(now["snapshots"][0]["broken"], true, "{now}");
    assert!(
        warned(&now, "snapshot 10 is broken") && warned(&now, "-W --level 10"),
        "{now}"
    );
    assert!(
        warned(&now, "of 1h wanted") && warned(&now, "journal_limit 16M") && warned(&now, "would do"),
        "{now}"
    );
    assert_eq!(now["healthy"], false);
    assert!(number(&now["journal_bytes"]) <= 16 << 20, "{now}");
    assert_eq!(pins(&pair)[0]["broken"], true);
    // What is above the floor is whole, across a restart as well.
    drop(reader);
    pair.kill9(REC);
    pair.start(REC);
    let oldest = number(&status(&pair)["window"]["oldest"]["seq"]);
    history.shows_point(oldest.max(seq));
    history.shows_point(history.seq);
    let mut reader = pair.open(REC, "c1/rsn10/data");
    assert_eq!(reader.read(0, 4096).unwrap_err().errno(), Some(EIO));
    drop(reader);
    until("the reader to be gone", LONG, || {
        let released = pair.json(REC, &["scrt_ra", "-C", "1", "-W"]);
        (released["code"] == 0).then_some(())
    });
    assert!(pins(&pair).is_empty(), "a broken snapshot leaves no pin");
}

/// A replica that stands at a restored point gives nothing up: receiving stops, both hosts say so with the way out, production goes
/// on, the link stays up, and after the undo all goes on by itself.
#[test]
fn k1_receiving_stops_for_a_restored_replica_and_goes_on() {
    let pair = pair("stopped", "rollback_window = \"1h\"\njournal_limit = \"8M\"\n");
    let mut history = History::new(&pair);
    let seq = history.writes(20);
    history.applied("m");
    pair.cli(REC, &["scrt_ra", "-qfC", "1", "-F", "--seq", &seq.to_string()])
        .ok();
    until("receiving to stop", LONG, || {
        history.writes(10);
        warned(&status(&pair), "receiving stopped").then_some(())
    });
    let b = status(&pair);
    assert!(
        warned(&b, "scrt_ra -C 1 --undo on rec") && warned(&b, "raise journal_limit"),
        "{b}"
    );
    until("production to be told", LONG, || {
        warned(&pair.status(PROD), "rec receives nothing").then_some(())
    });
    // The application is not stopped, and what it writes is not acknowledged by the replica.
    let before = pair.cursor(REC, "received");
    history.writes(100);
    let a = pair.status(PROD);
    assert_eq!(a["head"]["context"]["peer"]["state"], "connected", "{a}");
    assert!(warned(&a, "--undo"), "{a}");
    assert!(pair.cursor(REC, "received") <= before.max(b_received(&pair)));
    assert!(number(&b["journal_bytes"]) < 16 << 20, "{b}");
    // A restart changes nothing of it.
    pair.kill9(REC);
    pair.start(REC);
    until("receiving to be stopped again", LONG, || {
        warned(&status(&pair), "receiving stopped").then_some(())
    });
    history.shows(seq, |volume| format!("c1/{volume}@restored"));
    pair.cli(REC, &["scrt_ra", "-qC", "1", "--undo"]).ok();
    history.applied("n");
    until("production to hear of room", LONG, || {
        let a = pair.status(PROD);
        (!warned(&a, "receives nothing") && !warned(&status(&pair), "receiving stopped")).then_some(())
    });
    history.shows_point(history.seq);
    drop(history);
    pair.drain();
    pair.same_files(&["data", "log"]);
}

fn b_received(pair: &Pair) -> WriteSeq {
    pair.cursor(REC, "received")
}

/// A vdev whose overlay is full refuses writes with "no space", and everything else goes on; status says so with the way out. A
/// larger limit counts for the next snapshot and harms no older one.
#[test]
fn k1_a_full_overlay_refuses_writes_and_nothing_else() {
    let pair = pair("overlay", "overlay_limit = \"1M\"\n");
    let mut history = History::new(&pair);
    let seq = history.writes(20);
    history.applied("m");
    pair.cli(REC, &["scrt_ra", "-C", "1", "--seq", &seq.to_string()])
        .ok();
    let mut vdev = pair.open(REC, "c1/sn10/data");
    let ours = vec![7; 64 << 10];
    let refused = (0..40).find_map(|n| vdev.write(n * (64 << 10), &ours, false).err());
    assert_eq!(refused.unwrap().errno(), Some(ENOSPC));
    assert_eq!(
        vdev.read(0, 64 << 10).unwrap(),
        ours,
        "what was written before is there"
    );
    history.shows(seq, |volume| format!("c1/rsn10/{volume}"));
    let now = status(&pair);
    assert!(
        warned(&now, "overlay of vdev 10 is full") && warned(&now, "-W --level 10"),
        "{now}"
    );
    vdev.flush().unwrap();
    drop(vdev);
    for node in [PROD, REC] {
        pair.stop(node);
        let file = pair.scratch.join(format!("state/{node}/contexts/1.toml"));
        let text = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            text.replace("overlay_limit = \"1M\"", "overlay_limit = \"4M\""),
        )
        .unwrap();
        pair.start(node);
    }
    let mut vdev = pair.open(REC, "c1/sn10/data");
    assert_eq!(vdev.read(0, 64 << 10).unwrap(), ours);
    assert_eq!(
        vdev.write(2 << 20, &ours, false).unwrap_err().errno(),
        Some(ENOSPC)
    );
    pair.cli(REC, &["scrt_ra", "-C", "1", "-X", "--name", "larger"])
        .ok();
    let mut larger = pair.open(REC, "c1/sn11/data");
    (0..40).for_each(|n| larger.write(n * (64 << 10), &ours, false).unwrap());
}
