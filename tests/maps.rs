//! State maps under an operator's hands, on two real nodes: dirty, lost, dumped, cleaned, loaded (R8, R15, R25, R26).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number};
use model::ports::{Batch, Family, Store};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use testkit::{proc::until, with_seeds};

const VOLUMES: [(&str, u64); 2] = [("data", 24 << 20), ("log", (4 << 20) + 512)];
const NAMES: [&str; 2] = ["data", "log"];
const ALL: u64 = VOLUMES[0].1 + VOLUMES[1].1;
const REGION: u64 = 32 << 10;

type Image = Vec<Vec<u8>>;

fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nrecovery_journal_limit = \"1G\"\n",
        ..Setup::volumes(&VOLUMES)
    }
}

fn empty() -> Image {
    VOLUMES
        .map(|(_, size)| vec![0; usize::try_from(size).unwrap()])
        .to_vec()
}

/// Answered writes at random places, until told to end; changes `image` as they are.
fn write(pair: &Pair, rng: &mut StdRng, image: &mut Image, mut goes_on: impl FnMut() -> bool) -> u64 {
    let mut clients = NAMES.map(|v| pair.open(PROD, &format!("c1/{v}")));
    let mut written = 0;
    while goes_on() {
        let v = usize::from(rng.random_range(0..5) == 0);
        let len = rng.random_range(1..40_000);
        let at = rng.random_range(0..VOLUMES[v].1 - len);
        let mut data = vec![0; usize::try_from(len).unwrap()];
        rng.fill(&mut data[..]);
        clients[v].write(at, &data, false).unwrap();
        let at = usize::try_from(at).unwrap();
        image[v][at..at + data.len()].copy_from_slice(&data);
        written += len;
    }
    for client in &mut clients {
        client.flush().unwrap();
    }
    written
}

fn write_some(pair: &Pair, rng: &mut StdRng, image: &mut Image, writes: u32) {
    let mut left = writes;
    write(pair, rng, image, || {
        left -= 1;
        left > 0
    });
}

/// Other bytes in many places of the replica, behind everybody's back; the node is down.
fn spoil(pair: &Pair, rng: &mut StdRng, volumes: &[&str]) {
    for volume in volumes {
        let file = std::fs::File::options()
            .write(true)
            .open(pair.backing(REC, volume))
            .unwrap();
        let len = file.metadata().unwrap().len();
        for _ in 0..30 {
            let mut bytes = [0; 9000];
            rng.fill(&mut bytes[..]);
            file.write_all_at(&bytes, rng.random_range(0..len - 9000))
                .unwrap();
        }
    }
}

/// Ends the writer, also when the test fails: a scope waits for its threads.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[track_caller]
fn replica_is(pair: &Pair, image: &Image) {
    pair.drain();
    pair.same_files(&NAMES);
    for (volume, expected) in NAMES.iter().zip(image) {
        assert!(
            &std::fs::read(pair.backing(REC, volume)).unwrap() == expected,
            "{volume}"
        );
    }
    pair.cli(PROD, &["rtstart", "-C", "1"]).ok();
    pair.consistent();
}

#[track_caller]
fn point_is(pair: &Pair, target: &str, image: &Image) {
    for (volume, expected) in NAMES.iter().zip(image) {
        let mut client = pair.open(REC, &format!("c1/{volume}@{target}"));
        let size = client.size();
        let parts = (0..size).step_by(1 << 20);
        let found: Vec<u8> = parts
            .flat_map(|at| client.read(at, (1 << 20).min(size - at)).unwrap())
            .collect();
        assert!(&found == expected, "{volume}@{target}");
    }
}

fn mark(pair: &Pair, name: &str) {
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", name, "--no-sync"])
        .ok();
}

fn dirty(pair: &Pair, args: &[&str]) -> serde_json::Value {
    let mut all = vec!["scconfig", "-C", "1", "-q"];
    all.extend(args);
    let answer = pair.json(PROD, &all);
    assert!(answer["reply"]["dirty"].is_object(), "{answer}");
    answer["reply"]["dirty"].clone()
}

/// The recovery host's disk was replaced or written by somebody else, which no journal knows. Dirty maps bring all of it back
/// while the application writes, whoever is killed meanwhile; the last point before stays exact, none amid is shown.
#[test]
fn r15_dirty_maps_bring_everything_back_while_the_application_writes() {
    let pair = Pair::new("dirty", &setup());
    with_seeds("dirty", 1, |rng| {
        let mut image = empty();
        write_some(&pair, rng, &mut image, 300);
        mark(&pair, "before");
        let before = image.clone();
        pair.waits(PROD, "drained");
        // What was received may be applied a good deal later, and before the first sync is there is no point at all.
        pair.waits(REC, "consistent");

        // First with a good replica: everything is copied all the same, and no point is lost.
        let answer = dirty(&pair, &["-B", "-G"]);
        assert_eq!(number(&answer["bytes"]), ALL);
        assert_eq!(answer["whole"], true);
        let mut amid = 0;
        let ended = AtomicBool::new(false);
        let written = thread::scope(|scope| {
            let (pair, image, ended) = (&pair, &mut image, &ended);
            let end = End(ended);
            let mut own = StdRng::seed_from_u64(rng.random());
            let writer = scope.spawn(move || write(pair, &mut own, image, || !ended.load(Ordering::Acquire)));
            until("the peer knows that it waits for copies", LONG, || {
                (!pair.status(REC)["consistent"].as_bool().unwrap()).then_some(())
            });
            mark(pair, "amid");
            for _ in 0..2 {
                point_is(pair, "mark:before", &before);
                amid += usize::from(!pair.status(REC)["consistent"].as_bool().unwrap());
                pair.kill9(REC);
                thread::sleep(Duration::from_millis(rng.random_range(0..300)));
                pair.start(REC);
                thread::sleep(Duration::from_millis(rng.random_range(0..300)));
            }
            pair.waits(PROD, "resynced");
            drop(end);
            writer.join().unwrap()
        });
        println!(
            "{} KiB written meanwhile, looked at {amid} times amid it",
            written >> 10
        );
        pair.waits(PROD, "drained");
        pair.consistent();
        mark(&pair, "after");
        pair.waits(PROD, "drained");
        pair.waits(REC, "mark=after");
        pair.waits(REC, "consistent");
        point_is(&pair, "mark:before", &before);
        point_is(&pair, "mark:after", &image);
        let refused = pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "amid"]);
        assert_eq!(refused.code, 3, "{refused:?}");
        let status = pair.status(PROD);
        assert!(status["healthy"].as_bool().unwrap(), "{status}");

        // Then with a bad one; the answer is not trusted, the bytes are looked at. Production is killed, too.
        pair.stop(REC);
        spoil(&pair, rng, &NAMES);
        pair.start(REC);
        pair.consistent();
        dirty(&pair, &["-M"]);
        thread::sleep(Duration::from_millis(rng.random_range(0..200)));
        pair.kill9(PROD);
        pair.start(PROD);
        write_some(&pair, rng, &mut image, 50);
        pair.waits(PROD, "resynced");
        replica_is(&pair, &image);
    });
}

/// One volume is dirty: only its regions are stale, and only they are copied. A stopped context takes the command, too, and so
/// does `rtstart`.
#[test]
fn r8_one_dirty_volume_is_copied_and_only_that() {
    let pair = Pair::new("dirty-one", &setup());
    with_seeds("dirty one", 1, |rng| {
        let mut image = empty();
        write_some(&pair, rng, &mut image, 100);
        pair.waits(PROD, "drained");
        pair.stop(REC);
        spoil(&pair, rng, &["log"]);
        let answer = dirty(&pair, &["-M", "-L", "log"]);
        assert_eq!(number(&answer["bytes"]), VOLUMES[1].1);
        assert_eq!(answer["whole"], false);
        let status = pair.status(PROD);
        assert_eq!(number(&status["stale_bytes"]), VOLUMES[1].1, "{status}");
        let warnings = status["warnings"].to_string();
        assert!(warnings.contains("5 MiB may differ on rec"), "{warnings}");
        write_some(&pair, rng, &mut image, 100);
        pair.start(REC);
        pair.waits(PROD, "resynced");
        replica_is(&pair, &image);

        // Stopped, then started by itself; and by a start that says so.
        for with_start in [false, true] {
            pair.drain();
            pair.stop(REC);
            spoil(&pair, rng, &NAMES);
            pair.start(REC);
            if with_start {
                pair.cli(PROD, &["rtstart", "-C", "1", "-M", "-q"]).ok();
            } else {
                let answer = dirty(&pair, &["-M"]);
                assert_eq!(number(&answer["bytes"]), ALL);
                pair.cli(PROD, &["rtstart", "-C", "1"]).ok();
            }
            pair.waits(PROD, "resynced");
            replica_is(&pair, &image);
        }
    });
}

/// A map whose rows are gone, or are not rows any more, is wholly stale at the next start, with a warning, and never clean.
#[test]
fn r15_a_lost_map_is_a_full_sync_of_its_volume() {
    let pair = Pair::new("lost-map", &setup());
    with_seeds("lost map", 1, |rng| {
        let mut image = empty();
        write_some(&pair, rng, &mut image, 100);
        for what in ["gone", "corrupt"] {
            pair.waits(PROD, "drained");
            for node in [PROD, REC] {
                pair.stop(node);
            }
            spoil(&pair, rng, &["data"]);
            {
                let db = pair.scratch.join("state/prod/c1/journal/db");
                let store = journal::RocksStore::open(&db, Default::default()).unwrap();
                let row = vec![0, 0];
                let mut batch = Batch::default();
                match what {
                    "gone" => batch.delete(Family::Map, row),
                    _ => {
                        let mut value = store.get(Family::Map, &row).unwrap().unwrap().to_vec();
                        value.truncate(5);
                        batch.put(Family::Map, row, value);
                    }
                }
                store.commit(batch).unwrap();
            }
            pair.start(PROD);
            let status = pair.status(PROD);
            assert_eq!(number(&status["stale_bytes"]), VOLUMES[0].1, "{what}: {status}");
            assert_eq!(
                number(&status["volumes"][0]["suspect_bytes"]),
                VOLUMES[0].1,
                "{status}"
            );
            let screen = pair.cli(PROD, &["status", "-C", "1"]).stdout;
            assert_eq!(screen.matches("needs-full-sync").count(), 1, "{screen}");
            let log = pair.log(PROD);
            assert!(log.contains("needs a full sync"), "{what}: {log}");
            assert!(
                status["warnings"]
                    .to_string()
                    .contains("24 MiB may differ on rec"),
                "{status}"
            );
            // Durably so.
            pair.kill9(PROD);
            pair.start(PROD);
            assert_eq!(number(&pair.status(PROD)["stale_bytes"]), VOLUMES[0].1);
            write_some(&pair, rng, &mut image, 20);
            pair.start(REC);
            pair.waits(PROD, "resynced");
            replica_is(&pair, &image);
        }
    });
}

fn saved(pair: &Pair) -> Vec<String> {
    let folder = pair.scratch.join("state/prod/c1/maps");
    let Ok(files) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = files.map(|f| f.unwrap().path().display().to_string()).collect();
    files.sort();
    files
}

/// What can leave the hosts different is refused while they talk, asks, saves what was, and can be taken back from that.
#[test]
fn r26_clean_and_load_are_guarded_and_can_be_taken_back() {
    let pair = Pair::new("map-clean", &setup());
    with_seeds("map clean", 1, |rng| {
        let mut image = empty();
        write_some(&pair, rng, &mut image, 100);
        pair.waits(PROD, "drained");
        let view = pair.cli(PROD, &["map", "view", "-C", "1"]);
        assert_eq!(view.code, 0, "{view:?}");
        let clean_dump = pair.cli(PROD, &["map", "dump", "-C", "1"]).ok();
        let file = pair.scratch.join("clean.map");
        std::fs::write(&file, &clean_dump).unwrap();
        let file = file.to_str().unwrap();

        // The peer is here.
        for args in [
            &["map", "clean", "-C", "1", "-q"][..],
            &["map", "load", file, "-C", "1", "-q"],
        ] {
            let refused = pair.cli(PROD, args);
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(refused.stderr.contains("rec is connected"), "{refused:?}");
            assert!(refused.stderr.contains("rtstop -C 1"), "{refused:?}");
        }
        // The wrong host.
        for args in [&["map", "clean"][..], &["scconfig", "-M"], &["map", "view"]] {
            let refused = pair.cli(REC, &[args, &["-C", "1", "-q"]].concat());
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(refused.stderr.contains("on prod"), "{refused:?}");
        }
        assert!(saved(&pair).is_empty());

        pair.stop(REC);
        until("the peer is away", LONG, || {
            let peer = pair.status(PROD)["head"]["context"]["peer"]["state"].clone();
            (peer != "connected").then_some(())
        });
        dirty(&pair, &["-M", "-L", "log"]);
        assert_eq!(saved(&pair).len(), 1);
        let view = pair.json(PROD, &["map", "view", "-C", "1"]);
        let log = view["reply"]["map"]["volumes"][1].clone();
        let cells = VOLUMES[1].1.div_ceil(REGION);
        assert_eq!(
            log["runs"].to_string(),
            format!("[{{\"cell\":15,\"end\":{cells},\"first\":0}}]")
        );
        assert_eq!(pair.cli(PROD, &["map", "view", "-C", "1"]).code, 2);
        assert_eq!(pair.cli(PROD, &["map", "view", "-C", "1", "-L", "data"]).code, 0);

        // A no changes nothing; a yes does, and what was is kept.
        let no = pair.cli_with(PROD, &["map", "clean", "-C", "1"], "n\n");
        assert_eq!(no.code, 1, "{no:?}");
        assert!(no.stderr.contains("5 MiB that may differ on rec"), "{no:?}");
        assert_eq!(saved(&pair).len(), 1);
        let dry = pair.cli(PROD, &["map", "clean", "-C", "1", "-n"]);
        assert_eq!((dry.code, saved(&pair).len()), (0, 1), "{dry:?}");
        assert_eq!(number(&pair.status(PROD)["stale_bytes"]), VOLUMES[1].1);
        let yes = pair.cli_with(PROD, &["map", "clean", "-C", "1"], "y\n");
        assert_eq!(yes.code, 0, "{yes:?}");
        assert_eq!(number(&pair.status(PROD)["stale_bytes"]), 0);
        assert_eq!(pair.cli(PROD, &["map", "dump", "-C", "1"]).ok(), clean_dump);
        let kept = saved(&pair);
        assert!(yes.stdout.contains(&kept[1]), "{yes:?}");

        // Back from what was kept; a file that was cut off, and one of another context, are told.
        let text = std::fs::read_to_string(&kept[1]).unwrap();
        for (bad, code, words) in [
            (
                text.replace("context 1", "context 7"),
                1,
                "volume 0 (data) of context 7",
            ),
            (text[..text.len() - 9].to_owned(), 64, "line "),
            (text.replace("size 4194816", "size 4194817"), 1, "4194817"),
        ] {
            let path = pair.scratch.join("bad.map");
            std::fs::write(&path, bad).unwrap();
            let refused = pair.cli(PROD, &["map", "load", path.to_str().unwrap(), "-C", "1", "-q"]);
            assert_eq!(refused.code, code, "{refused:?}");
            assert!(refused.stderr.contains(words), "{refused:?}");
        }
        pair.cli(PROD, &["map", "load", &kept[1], "-C", "1", "-q"]).ok();
        assert_eq!(number(&pair.status(PROD)["stale_bytes"]), VOLUMES[1].1);
        assert_eq!(pair.cli(PROD, &["map", "dump", "-C", "1"]).ok(), text);
        let unify = pair.cli(PROD, &["map", "unify", "-C", "1", "--master", "prod", "-q"]);
        assert_eq!(unify.code, 1, "{unify:?}");
        assert!(
            unify.stderr.contains("on the host whose data gives way, rec"),
            "{unify:?}"
        );

        // What was loaded is copied.
        spoil(&pair, rng, &["log"]);
        pair.start(REC);
        pair.waits(PROD, "resynced");
        replica_is(&pair, &image);
    });
}
