//! Bits that flip at rest, one at a time, in every file that a host keeps: found, or harmless.
//!
//! Two real nodes make a history with sealed and open containers, undo, marks, a pin and restarts, and are stopped. Then, for
//! each flip, one bit of one file of a copy is turned round, the folder is checked as `fsck-journal` does, which must find what is
//! found then and change nothing, the journal is opened as a daemon opens it, and everything is read:
//! all rows, all frames, every block of views of the past. What is read must be what it was, or an error must say what cannot
//! be read. A panic, another byte, or a piece of history that is gone without a word fails the test.
//!
//! # What the journal cannot find
//!
//! The volumes themselves have no checksums: a flipped bit in the replica is shown by every view that takes the block from
//! the volume. `a_flipped_bit_of_a_volume_stays_where_it_is` says how far it reaches.
//!
//! `BACKSTAY_FLIPS=10` flips ten times as many.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod host;
#[path = "../common/load.rs"]
mod load;

use common::{PROD, Pair, REC, Setup};
use host::{Host, Verdict};
use load::Load;
use model::{BLOCK_SIZE, ByteRange, VolumeIndex};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, LazyLock},
};
use testkit::{Oracle, with_seeds};

const VOLUMES: [(&str, u64); 2] = [("data", 1 << 20), ("log", 256 << 10)];

/// How many times as many bits are flipped.
fn factor() -> u64 {
    std::env::var("BACKSTAY_FLIPS").map_or(1, |v| v.parse().unwrap())
}

struct World {
    production: Host,
    recovery: Host,
    oracle: Oracle,
}

/// One history for all tests.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut world = None;
    with_seeds("rot", 1, |rng| world = Some(make(rng)));
    world.unwrap()
});

fn make(rng: &mut StdRng) -> World {
    let setup = Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"10m\"\n",
        ..Setup::volumes(&VOLUMES)
    };
    let pair = Pair::new("rot", &setup);
    let mut load = Load::new(&pair, &VOLUMES);
    let mut points = vec![load.head()];
    for part in 0..4 {
        for _ in 0..3 {
            load.burst(rng, 4);
            points.push(load.head());
            load.burst(rng, 4);
            load.set_mark(&pair);
            points.push(load.head());
        }
        // Rows go from the store's log into its files when it is opened again.
        if part < 3 {
            load.disconnect();
            pair.waits(PROD, "drained");
            for node in [PROD, REC] {
                pair.stop(node);
                pair.start(node);
            }
            load.connect(&pair);
        }
    }
    pair.waits(PROD, "drained");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--mark", &load.marks[5].0])
        .ok();
    // The open containers; the recovery host has no redo of the last records.
    load.burst(rng, 6);
    pair.received();
    points.push(load.head());
    pair.stop(REC);
    load.burst(rng, 3);
    load.set_mark(&pair);
    load.burst(rng, 6);
    load.disconnect();
    pair.stop(PROD);
    World {
        production: Host::of(&pair, PROD, &VOLUMES, Vec::new(), &load.oracle),
        recovery: Host::of(&pair, REC, &VOLUMES, points, &load.oracle),
        oracle: load.oracle,
    }
}

/// What a file of a journal's folder is.
fn class(path: &Path) -> &'static str {
    let name = path.file_name().unwrap().to_str().unwrap();
    match name {
        "super" => "superblock",
        _ if name.starts_with("tail.") => "tail",
        "CURRENT" => "CURRENT",
        _ if name.starts_with("MANIFEST") => "MANIFEST",
        _ if name.ends_with(".log") => "write-ahead log",
        _ if name.ends_with(".sst") => "SST",
        // Its own log, its lock, its identity, a copy of its options: nothing of it is read.
        _ => "other",
    }
}

/// Whether an error names a file, a family of the store, a tail, a container or a block of undo.
fn says_where(why: &str) -> bool {
    let families = ["redo", "undo", "catalog", "meta", "map"].map(|f| format!(": {f}"));
    let places = [
        "/db",
        "tail ",
        "container ",
        "superblock",
        "metadata batch",
        "the journal ends at",
    ];
    places.iter().any(|p| why.contains(p)) || families.iter().any(|f| why.contains(f))
}

/// Bits flipped in each class on each host.
const FLIPS: [(&str, u64); 7] = [
    ("tail", 60),
    ("write-ahead log", 50),
    ("SST", 90),
    ("MANIFEST", 70),
    ("CURRENT", 12),
    ("superblock", 16),
    ("other", 6),
];

#[derive(Default)]
struct Row {
    open: u64,
    read: u64,
    harmless: u64,
    /// In which a check finds damage.
    checked: u64,
}

#[test]
fn a_check_of_what_is_whole_finds_nothing() {
    for (node, host) in [(PROD, &WORLD.production), (REC, &WORLD.recovery)] {
        let found = host.check(host.lay(None).path()).unwrap();
        assert_eq!(found.all, [], "{node}");
    }
}

#[test]
fn every_flipped_bit_of_a_journal_is_found_or_harmless() {
    let world = &*WORLD;
    let mut table: BTreeMap<(&str, &str), Row> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut words: BTreeSet<String> = BTreeSet::new();
    with_seeds("flips", 1, |rng| {
        for (node, host) in [(PROD, &world.production), (REC, &world.recovery)] {
            for (kind, count) in FLIPS {
                let files: Vec<usize> = (0..host.files.len())
                    .filter(|i| class(&host.files[*i].0) == kind && !host.files[*i].1.is_empty())
                    .collect();
                let row = table.entry((kind, node)).or_default();
                for _ in 0..count * factor() {
                    let Some(file) = files.choose(rng) else { break };
                    let flip = host.random_bit(*file, rng);
                    let (path, bytes) = &host.files[flip.file];
                    let whole = || format!("{node}: {} ({} bytes), {flip:?}", path.display(), bytes.len());
                    let (checked, verdict) = host.examine(&flip, &world.oracle);
                    match (checked, &verdict) {
                        (Err(why), _) => wrong.push(format!("{}: {why}", whole())),
                        (Ok(found), Ok(Verdict::FoundOnOpen(why) | Verdict::FoundOnRead(why)))
                            if !found.is_damaged() =>
                        {
                            wrong.push(format!(
                                "{}: a check finds nothing ({:?}), and {why}",
                                whole(),
                                found.all
                            ));
                        }
                        (Ok(found), _) => {
                            row.checked += u64::from(found.is_damaged());
                            for f in found.all.iter().filter(|f| f.place.to_string().is_empty()) {
                                wrong.push(format!("{}: a finding without a place: {f:?}", whole()));
                            }
                            words.extend(
                                found
                                    .all
                                    .iter()
                                    .map(|f| format!("{kind}, check: {:?}: {}: {}", f.kind, f.place, f.what)),
                            );
                        }
                    }
                    match verdict {
                        Ok(Verdict::FoundOnOpen(why) | Verdict::FoundOnRead(why)) if !says_where(&why) => {
                            wrong.push(format!("{}: does not say where: {why}", whole()));
                        }
                        Ok(Verdict::FoundOnOpen(why)) => {
                            row.open += 1;
                            words.insert(format!("{kind}, open: {why}"));
                        }
                        Ok(Verdict::FoundOnRead(why)) => {
                            row.read += 1;
                            words.insert(format!("{kind}, read: {why}"));
                        }
                        Ok(Verdict::Harmless) => row.harmless += 1,
                        Err(why) => wrong.push(format!("{}: {why}", whole())),
                    }
                }
            }
        }
    });
    if std::env::var_os("BACKSTAY_WORDS").is_some() {
        words.iter().for_each(|w| println!("{w}"));
    }
    println!(
        "{:16} {:5} {:>6} {:>14} {:>14} {:>9} {:>15}",
        "class", "host", "flips", "found on open", "found on read", "harmless", "found by check"
    );
    let mut all = 0;
    for ((kind, node), row) in &table {
        let flips = row.open + row.read + row.harmless;
        all += flips;
        println!(
            "{kind:16} {node:5} {flips:6} {:14} {:14} {:9} {:15}",
            row.open, row.read, row.harmless, row.checked
        );
    }
    println!("{all} bits flipped");
    assert!(
        wrong.is_empty(),
        "{} flips were neither found nor harmless:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Bits flipped in the volumes of each host.
const VOLUME_FLIPS: u64 = 60;

/// The bytes of a volume at which what is read differs from the oracle's.
fn differing(expected: &[u8], found: &[u8], at: u64) -> Vec<u64> {
    let pairs = expected.iter().zip(found).zip(at..);
    pairs.filter(|((a, b), _)| a != b).map(|(_, at)| at).collect()
}

/// The journal cannot know of it: a volume has no checksums. But nothing else changes, views that take the block from undo or
/// redo are right, and a replay that reaches the block heals it.
#[test]
fn a_flipped_bit_of_a_volume_stays_where_it_is() {
    let world = &*WORLD;
    let (mut shown, mut around, mut healed, mut left) = (0, 0, 0, 0);
    with_seeds("volume flips", factor(), |rng| {
        let random = |host: &Host, rng: &mut StdRng| {
            let index = rng.random_range(0..VOLUMES.len());
            let at = rng.random_range(0..VOLUMES[index].1);
            let bit = rng.random_range(0..8u8);
            host.media[index].flip_bit(at, bit);
            (VolumeIndex(u16::try_from(index).unwrap()), at, bit)
        };

        let host = &world.recovery;
        let dir = host.lay(None);
        let journal = Arc::new(host.open(dir.path()).unwrap());
        for _ in 0..VOLUME_FLIPS {
            let (volume, at, bit) = random(host, rng);
            for point in host.points(&journal).unwrap() {
                let seq = point.seq;
                let view = host.view(&journal, point).unwrap();
                let mut right = true;
                for (v, size) in host.volumes.sizes() {
                    let mut found = vec![0; usize::try_from(size).unwrap()];
                    view.read(v, 0, &mut found).unwrap();
                    let expected = world.oracle.bytes(v, ByteRange::at(0, size), seq);
                    let wrong = differing(&expected, &found, 0);
                    right &= wrong.is_empty();
                    assert!(
                        wrong.is_empty() || (v == volume && wrong == [at]),
                        "a bit of volume {volume} byte {at} (block {}) shows at {wrong:?} of volume {v} as of {seq}",
                        at / BLOCK_SIZE
                    );
                }
                if right {
                    around += 1;
                } else {
                    shown += 1;
                }
            }
            host.media[usize::from(volume.0)].flip_bit(at, bit);
        }

        // Production after a power cut: everything behind `checkpointed`, here as far back as it keeps redo, is written again.
        let host = &world.production;
        let dir = host.lay(None);
        let journal = host.open(dir.path()).unwrap();
        let (mut from, head) = (journal.floors().redo_seq.seq, journal.cursors().appended);
        let mut records = Vec::new();
        while from < head {
            let frames = journal.frames_after(from, 1 << 20).unwrap();
            from = frames.last().unwrap().last_seq();
            records.extend(frames.iter().flat_map(|f| f.records().to_vec()));
        }
        for _ in 0..VOLUME_FLIPS {
            let (volume, at, bit) = random(host, rng);
            let covered = records
                .iter()
                .any(|r| r.volume == volume && r.changed().is_some_and(|c| c.start <= at && at < c.end));
            for (v, size) in host.volumes.sizes() {
                let mut found = vec![0; usize::try_from(size).unwrap()];
                host.volumes
                    .get(v)
                    .unwrap()
                    .medium()
                    .read_at(0, &mut found)
                    .unwrap();
                for record in records.iter().filter(|r| r.volume == v) {
                    if let (Some(range), Some(payload)) = (record.changed(), record.payload()) {
                        let bytes =
                            usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                        payload.copy_to(0, &mut found[bytes]);
                    }
                }
                let expected = world.oracle.bytes(v, ByteRange::at(0, size), head);
                let wrong = differing(&expected, &found, 0);
                let stays = v == volume && !covered;
                assert_eq!(
                    wrong,
                    if stays { vec![at] } else { vec![] },
                    "volume {v} of production"
                );
            }
            if covered {
                healed += 1
            } else {
                left += 1
            }
            host.media[usize::from(volume.0)].flip_bit(at, bit);
        }
    });
    let replicas = VOLUME_FLIPS * factor();
    println!(
        "{replicas} bits flipped in a replica: {shown} views show one, and nothing finds it; {around} views read around it\n\
         {} bits flipped in production's volumes: {healed} are healed by a replay, {left} stay and nothing finds them",
        healed + left
    );
    assert!(shown > 0 && around > 0 && healed > 0 && left > 0);
}
