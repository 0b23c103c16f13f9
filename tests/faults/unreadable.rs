//! Blocks of a replica's volume that cannot be read: a file system with checksums below it, one bit of whose disk flipped, and
//! disks that fail more widely than rot does.
//!
//! A verify names each such block and goes on; the application is not held up; a repair writes them anew from production. What was
//! there is not known any more, and no point shows anything else in its place.

use crate::{
    common::{LONG, PROD, Pair, REC, Setup, number, root_for},
    disk::Disk,
    io::Backing,
};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};
use testkit::{
    nbd::Client,
    proc::{Scratch, until},
    workload::noise,
};

const BLOCK: u64 = 4096;
/// The last block is a short one.
const SIZE: u64 = (8 << 20) + 1024;
const LAST: u64 = SIZE / BLOCK;

fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nverify_after_catch_up = 0\n",
        ..Setup::volumes(&[("data", SIZE)])
    }
}

/// Starts both nodes, and fills the volume with bytes that are nowhere twice.
fn filled(pair: &Pair) -> Vec<u8> {
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    let bytes = noise(SIZE, &mut StdRng::seed_from_u64(7)).to_vec();
    let mut client = pair.open(PROD, "c1/data");
    for (n, part) in bytes.chunks(256 << 10).enumerate() {
        client.write((n << 18) as u64, part, false).unwrap();
    }
    client.flush().unwrap();
    mark(pair, "before");
    bytes
}

/// Marks the end, which is on the replica's volume when this returns.
fn mark(pair: &Pair, name: &str) {
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", name]).ok();
    applied(pair);
}

fn applied(pair: &Pair) {
    let head = pair.cursor(PROD, "appended").0;
    pair.waits(REC, &format!("applied={head}"));
}

fn part(bytes: &[u8], block: u64) -> &[u8] {
    &bytes[(block * BLOCK) as usize..((block + 1) * BLOCK).min(SIZE) as usize]
}

/// Lets the kernel forget what it has of the replica's volume, so that it is read from the disk.
fn forget(file: &File) {
    file.sync_all().unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// The disk of a replica whose file system has checksums.
struct Checked {
    disk: Disk,
    image: PathBuf,
    volume: PathBuf,
}

impl Checked {
    fn new(scratch: &Scratch) -> Self {
        let disk = Disk::at(scratch, "state/rec/c1/volumes", "btrfs", 512 << 20);
        Self {
            disk,
            image: scratch.join("state-rec-c1-volumes.btrfs"),
            volume: scratch.join("state/rec/c1/volumes/data"),
        }
    }

    /// Flips a bit of a block on the disk, or flips it back: wherever there is this content.
    fn flip(&self, content: &[u8]) {
        self.disk.sync();
        let image = File::options().read(true).write(true).open(&self.image).unwrap();
        let (mut buf, mut at, mut found) = (vec![0; 1 << 20], 0, 0);
        while image.read_exact_at(&mut buf, at).is_ok() {
            for (n, block) in buf.chunks(BLOCK as usize).enumerate() {
                if block.starts_with(content) {
                    let byte = at + n as u64 * BLOCK + 100;
                    image.write_all_at(&[content[100] ^ 8], byte).unwrap();
                    found += 1;
                }
            }
            at += buf.len() as u64;
        }
        assert!(found > 0, "the block is nowhere on the disk");
        forget(&File::open(&self.volume).unwrap());
    }

    fn is_readable(&self, block: u64) -> bool {
        let file = File::open(&self.volume).unwrap();
        let mut buf = [0; 512];
        file.read_exact_at(&mut buf, block * BLOCK).is_ok()
    }

    fn rot(&self, bytes: &[u8], block: u64) {
        self.flip(part(bytes, block));
        assert!(!self.is_readable(block), "block {block} is read as ever");
    }
}

/// `verify`, and its answer.
fn verify(pair: &Pair, more: &[&str], code: i32) -> Value {
    let mut args = vec!["verify", "-C", "1"];
    args.extend(more);
    let reply = pair.json(PROD, &args);
    assert_eq!(reply["code"], code, "{reply}");
    reply["reply"]["verify"].clone()
}

/// The blocks of a list of ranges.
fn blocks(reply: &Value, what: &str) -> Vec<u64> {
    let Some(ranges) = reply[what].as_array() else {
        return Vec::new();
    };
    let blocks = |r: &Value| number(&r["first"]) / BLOCK..number(&r["end"]).div_ceil(BLOCK);
    ranges.iter().flat_map(blocks).collect()
}

/// Reads block after block. What can be read must be these bytes; the blocks that cannot.
#[track_caller]
fn unread(client: &mut Client, bytes: &[u8], why: &str) -> Vec<u64> {
    let mut unread = Vec::new();
    for block in 0..=LAST {
        let expected = part(bytes, block);
        match client.read(block * BLOCK, expected.len() as u64) {
            Ok(read) => assert!(read == expected, "{why}: other bytes in block {block}"),
            Err(e) => {
                assert_eq!(e.errno(), Some(5), "{why}: block {block}: {e}");
                unread.push(block);
            }
        }
    }
    unread
}

/// Bits that rot below a file system with checksums: found to the block, none of them holds up the rest, repaired by writing
/// them anew; and whatever the disk says later, bytes that were given up are never shown.
#[test]
fn unreadable_blocks_of_the_replica_are_found_and_repaired() {
    if !root_for("file systems with checksums") {
        return;
    }
    let scratch = Scratch::new("unread");
    let below = Checked::new(&scratch);
    let pair = Pair::stopped_in(scratch, &setup());
    let before = filled(&pair);
    pair.cli(PROD, &["protect", "-C", "7", "side=4M"]).ok();
    let rotten = [5, 300, 800, 801, 1200, LAST];
    rotten.iter().for_each(|block| below.rot(&before, *block));

    let found = verify(&pair, &[], 2);
    assert_eq!(blocks(&found, "differing"), rotten, "{found}");
    assert_eq!(blocks(&found, "unreadable"), rotten, "{found}");
    for range in found["unreadable"].as_array().unwrap() {
        let error = range["error"].as_str().unwrap();
        let place = format!("volume data: read at {}: ", range["first"]);
        assert!(error.contains(&place), "{error}");
        assert!(error.contains("Input/output error"), "{error}");
    }
    let mut latest = pair.open(REC, "c1/data@latest");
    assert_eq!(unread(&mut latest, &before, "as found"), rotten);
    drop(latest);

    // The application writes all of one, zeroes another, and writes a part of a third.
    let mut after = before.clone();
    let mut client = pair.open(PROD, "c1/data");
    let mut write = |at: u64, bytes: &[u8]| {
        client.write(at, bytes, true).unwrap();
        after[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    write(10 * BLOCK, &[1; BLOCK as usize]);
    write(800 * BLOCK, &[2; BLOCK as usize]);
    write(801 * BLOCK, &[0; BLOCK as usize]);
    write(300 * BLOCK + 1024, &[3; 512]);
    drop(client);
    mark(&pair, "after");
    let status = pair.status(REC);
    assert!(
        !status["verdict"]
            .as_str()
            .unwrap()
            .contains("stopped acknowledging"),
        "{status}"
    );
    let warned = |pair: &Pair| {
        let status = pair.status(REC);
        let warnings = status["warnings"].as_array().unwrap();
        warnings
            .iter()
            .any(|w| w.as_str().unwrap().contains("4096 bytes of this host's volumes"))
    };
    assert!(warned(&pair), "{}", pair.status(REC));
    let look = |pair: &Pair, at: &str, bytes: &[u8]| {
        let mut view = pair.open(REC, &format!("c1/data@{at}"));
        unread(&mut view, bytes, at)
    };
    // Redo leads there from an older point; where it does not, nothing is shown for what nobody knows.
    let past = |pair: &Pair| {
        let unread = look(pair, "mark:before", &before);
        assert!(unread.iter().all(|block| rotten.contains(block)), "{unread:?}");
    };
    assert_eq!(look(&pair, "mark:after", &after), [5, 300, 1200, LAST]);
    past(&pair);
    // The other context goes on.
    let mut side = pair.open(PROD, "c7/side");
    side.write(0, &[9; 4096], true).unwrap();
    pair.cli(
        PROD,
        &["wait", "-C", "7", "--until", "drained", "--timeout", "60"],
    )
    .ok();

    // The disk gives the block again that was written in part; as it was before that.
    below.flip(&{
        let mut flipped = part(&before, 300).to_vec();
        flipped[100] ^= 8;
        flipped
    });
    assert!(below.is_readable(300));
    assert_eq!(look(&pair, "mark:after", &after), [5, 300, 1200, LAST]);
    pair.kill9(REC);
    pair.start(REC);
    pair.consistent();
    assert_eq!(look(&pair, "mark:after", &after), [5, 300, 1200, LAST]);
    let found = verify(&pair, &[], 2);
    assert_eq!(blocks(&found, "unreadable"), [5, 300, 1200, LAST], "{found}");

    let repaired = verify(&pair, &["--repair"], 0);
    assert_eq!(blocks(&repaired, "unreadable"), [0; 0], "{repaired}");
    assert_eq!(blocks(&repaired, "repaired"), [5, 300, 1200, LAST], "{repaired}");
    assert!(rotten.iter().all(|block| below.is_readable(*block)));
    assert!(!warned(&pair), "{}", pair.status(REC));
    assert_eq!(look(&pair, "latest", &after), [0; 0]);
    past(&pair);

    pair.kill9(REC);
    pair.start(REC);
    pair.consistent();
    past(&pair);
    forget(&File::open(&below.volume).unwrap());
    assert_eq!(number(&verify(&pair, &[], 0)["differing_bytes"]), 0);
    assert!(!warned(&pair));
    pair.drain();
    pair.same_files(&["data"]);
}

/// A restore reaches over blocks that cannot be read, where the point has them in undo.
#[test]
fn unreadable_blocks_do_not_keep_the_replica_from_a_restore() {
    if !root_for("file systems with checksums") {
        return;
    }
    let scratch = Scratch::new("unread-restore");
    let below = Checked::new(&scratch);
    let pair = Pair::stopped_in(scratch, &setup());
    let before = filled(&pair);
    let mut after = before.clone();
    let new = noise(100 * BLOCK, &mut StdRng::seed_from_u64(8));
    after[..new.len()].copy_from_slice(&new);
    let mut client = pair.open(PROD, "c1/data");
    client.write(0, &new, true).unwrap();
    drop(client);
    mark(&pair, "after");
    [3, 50].iter().for_each(|block| below.rot(&after, *block));
    let restore = ["scrt_ra", "-qfC", "1", "-F", "--mark", "before"];
    pair.cli(REC, &restore).ok();
    let mut restored = pair.open(REC, "c1/data@restored");
    assert_eq!(unread(&mut restored, &before, "restored"), [0; 0]);
    drop(restored);
    // What was there before it is not known.
    let undone = pair.cli(REC, &["scrt_ra", "-qC", "1", "--undo"]);
    assert_ne!(undone.code, 0, "{undone:?}");
}

/// A volume on a device that fails in so many of its reads and writes while a file is there.
struct Failing {
    bad: Backing,
    trigger: PathBuf,
}

impl Failing {
    fn below(scratch: &Scratch, rates: &[(&str, &str)]) -> Self {
        let trigger = scratch.join("fails");
        let mut parameters = Vec::new();
        for (operation, rate) in rates {
            parameters.push(format!("error-{operation}=EIO"));
            parameters.push(format!("error-{operation}-rate={rate}"));
            parameters.push(format!("error-{operation}-file={}", trigger.display()));
        }
        let bad = Backing::new(scratch, "bad", SIZE, &["--filter=error"], &parameters);
        Self { bad, trigger }
    }

    fn fail(&self, fails: bool) {
        match fails {
            true => fs::write(&self.trigger, "").unwrap(),
            false => fs::remove_file(&self.trigger).unwrap(),
        }
        forget(&File::options().write(true).open(&self.bad.path).unwrap());
    }
}

/// The replica's context has failed, with these words; a repair says so and claims nothing.
fn is_not_repaired(pair: &Pair, words: &str) {
    let repair = pair.cli(PROD, &["verify", "-C", "1", "--repair"]);
    assert!(![0, 2].contains(&repair.code), "{repair:?}");
    let verdict = until("the replica to say it", LONG, || {
        let status = pair.status(REC);
        let verdict = status["verdict"].as_str().unwrap().to_owned();
        verdict.contains("stopped acknowledging").then_some(verdict)
    });
    assert!(verdict.contains(words), "{verdict}");
    // However long it had waited for it before.
    let repair = pair.cli(PROD, &["verify", "-C", "1", "--repair"]);
    assert!(![0, 2].contains(&repair.code), "{repair:?}");
    until("production to say it", LONG, || {
        let repair = pair.cli(PROD, &["verify", "-C", "1", "--repair"]);
        assert!(![0, 2].contains(&repair.code), "{repair:?}");
        (repair.stderr.contains("stopped acknowledging") && repair.stderr.contains(words)).then_some(())
    });
}

/// A device that takes no write either: the repair fails with the place, and is done when the device is another.
#[test]
fn unreadable_blocks_that_cannot_be_written_are_not_called_repaired() {
    if !root_for("devices that fail") {
        return;
    }
    let scratch = Scratch::new("unread-write");
    let bad = Failing::below(&scratch, &[("pread", "60%"), ("pwrite", "100%")]);
    let pair = Pair::stopped_in(scratch, &setup());
    bad.bad.put_below(&pair, REC, "data");
    let before = filled(&pair);
    // What the kernel has read once it gives again, and then nothing has to be written for it. For this one it has.
    let file = File::options().write(true).open(&bad.bad.path).unwrap();
    file.write_all_at(&[0; BLOCK as usize], 77 * BLOCK).unwrap();
    drop(file);
    bad.fail(true);
    let found = verify(&pair, &[], 2);
    assert!(!blocks(&found, "unreadable").is_empty(), "{found}");
    is_not_repaired(&pair, "volume data: ");
    bad.fail(false);
    pair.kill9(REC);
    pair.start(REC);
    pair.consistent();
    verify(&pair, &["--repair"], 0);
    assert_eq!(number(&verify(&pair, &[], 0)["differing_bytes"]), 0);
    let mut latest = pair.open(REC, "c1/data@latest");
    assert_eq!(unread(&mut latest, &before, "afterwards"), [0; 0]);
}

/// A disk that gives nothing at all is no rot: nothing of the history is given up for it, and all is there when it is back.
#[test]
fn a_disk_that_gives_nothing_is_not_taken_for_unreadable_blocks() {
    if !root_for("devices that fail") {
        return;
    }
    let scratch = Scratch::new("unread-all");
    let bad = Failing::below(&scratch, &[("pread", "100%")]);
    let pair = Pair::stopped_in(scratch, &setup());
    bad.bad.put_below(&pair, REC, "data");
    let before = filled(&pair);
    bad.fail(true);
    let mut client = pair.open(PROD, "c1/data");
    client.write(20 * BLOCK, &[4; 8192], true).unwrap();
    drop(client);
    is_not_repaired(&pair, "volume data: read at ");
    bad.fail(false);
    pair.kill9(REC);
    pair.start(REC);
    pair.consistent();
    mark(&pair, "after");
    let mut view = pair.open(REC, "c1/data@mark:before");
    assert_eq!(unread(&mut view, &before, "before"), [0; 0]);
    drop(view);
    assert_eq!(number(&verify(&pair, &["--repair"], 0)["differing_bytes"]), 0);
}
