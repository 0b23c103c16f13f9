//! A volume that grows on both hosts while it is written (R33), and whose size belongs to the point (rule K3).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{
    Clients, LONG, PROD, Pair, REC, Setup, number, root_for,
    tails::{open_tail, rot},
};
use std::process::Command;
use testkit::{
    nbd::Client,
    proc::{run, until},
};

const KIB: u64 = 1 << 10;
const SMALL: u64 = 8 << 20;
const LARGE: u64 = 24 << 20;
const OTHER: u64 = 1 << 20;

/// What the volumes held at a mark: the volume that grows, and one beside it.
struct Moment {
    mark: String,
    data: Vec<u8>,
    other: Vec<u8>,
}

/// Two nodes, and what their volumes must hold.
struct World {
    pair: Pair,
    data: Vec<u8>,
    other: Vec<u8>,
    moments: Vec<Moment>,
}

impl World {
    fn new(name: &str, context: &'static str) -> Self {
        let setup = Setup {
            context,
            ..Setup::volumes(&[("data", SMALL), ("other", OTHER)])
        };
        Self {
            pair: Pair::new(name, &setup),
            data: vec![0; usize::try_from(SMALL).unwrap()],
            other: vec![0; usize::try_from(OTHER).unwrap()],
            moments: Vec::new(),
        }
    }

    fn write(&mut self, node: &str, at: u64, len: u64, pattern: u8) {
        let mut client = self.pair.open(node, "c1/data");
        assert_eq!(client.size(), self.data.len() as u64);
        let bytes = vec![pattern; usize::try_from(len).unwrap()];
        client.write(at, &bytes, true).unwrap();
        let from = usize::try_from(at).unwrap();
        self.data[from..from + bytes.len()].copy_from_slice(&bytes);
        let mut client = self.pair.open(node, "c1/other");
        client
            .write(at % OTHER / 4096 * 4096, &[pattern; 4096], true)
            .unwrap();
        let from = usize::try_from(at % OTHER / 4096 * 4096).unwrap();
        self.other[from..from + 4096].fill(pattern);
    }

    fn mark(&mut self, node: &str, name: &str) {
        self.pair
            .cli(node, &["rtmark", "-C", "1", "--name", name, "--no-sync"])
            .ok();
        self.moments.push(Moment {
            mark: name.to_owned(),
            data: self.data.clone(),
            other: self.other.clone(),
        });
    }

    fn grow(&mut self, node: &str, size: u64) {
        let text = format!("{}K", size / KIB);
        let args = ["grow", "-C", "1", "-L", "data", "--size", &text];
        let said = self.pair.json(node, &args);
        let reply = &said["reply"]["grow"];
        assert_eq!(number(&reply["bytes"]), size, "{said}");
        assert_eq!(number(&reply["bytes_before"]), self.data.len() as u64, "{said}");
        self.data.resize(usize::try_from(size).unwrap(), 0);
    }

    fn refused(&self, node: &str, line: &str, code: i32, words: &str) {
        let args: Vec<&str> = line.split(' ').collect();
        let finished = self.pair.cli(node, &args);
        assert_eq!(finished.code, code, "{finished:?}");
        assert!(finished.stderr.contains(words), "{finished:?}");
    }

    /// Both hosts have the same bytes, says the acting production.
    fn are_equal(&self, acting: &str) {
        let verified = self.pair.json(acting, &["verify", "-C", "1"]);
        let differing = number(&verified["reply"]["verify"]["differing_bytes"]);
        assert_eq!(differing, 0, "{verified}");
    }

    /// The old production is a replica of the acting one, with all copies.
    fn follows(&self) {
        until("the old production to follow", LONG, || {
            let a = self.pair.status(PROD);
            (a["head"]["context"]["state"] == "ENABLED" && a["consistent"] == true).then_some(())
        });
        self.pair.waits(REC, "resynced");
        self.pair.waits(REC, "drained");
    }

    /// Every moment, on the host that is the replica: its bytes, and its size.
    fn shows(&self, replica: &str) {
        for moment in &self.moments {
            let volumes = [
                ("data", moment.data.len() as u64),
                ("other", moment.other.len() as u64),
            ];
            let mut clients = Clients::open(&self.pair, replica, &volumes, |v| {
                format!("c1/{v}@mark:{}", moment.mark)
            });
            for (client, bytes) in clients.0.iter_mut().zip([&moment.data, &moment.other]) {
                holds(client, bytes, &format!("{} on {replica}", moment.mark));
            }
        }
    }

    /// The head, on the host that is production.
    fn serves(&self, node: &str) {
        let mut client = self.pair.open(node, "c1/data");
        assert_eq!(client.size(), self.data.len() as u64);
        holds(&mut client, &self.data, node);
        let status = self.pair.status(node);
        let of = |v: usize| number(&status["volumes"][v]["bytes"]);
        assert_eq!((of(0), of(1)), (self.data.len() as u64, OTHER), "{status}");
    }
}

/// Whether an export has these bytes, where they first differ.
#[track_caller]
fn holds(client: &mut Client, bytes: &[u8], what: &str) {
    for (part, at) in bytes.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
        let found = client.read(at, part.len() as u64).unwrap();
        let differs = (0..part.len()).find(|i| found[*i] != part[*i]);
        assert_eq!(differs.map(|i| at + i as u64), None, "{what}");
    }
}

/// The whole of it: a client that is connected goes on, the next one has the new size, what is new is zero, nothing is copied but what
/// is written, and each point has its own size, behind kills of both hosts and on the way over and back.
#[test]
fn r33_a_volume_grows_while_it_is_written() {
    let mut world = World::new("grow", "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\n");
    world.write(PROD, 0, 256 << 10, 1);
    world.write(PROD, SMALL - 4096, 4096, 2);
    world.mark(PROD, "small");
    let mut before = world.pair.open(PROD, "c1/data");
    let plan = world
        .pair
        .cli(PROD, &["grow", "-n", "-C", "1", "-L", "data", "--size", "24M"]);
    assert!(plan.stdout.contains("ready for 25165824 bytes"), "{plan:?}");
    assert_eq!(world.pair.open(PROD, "c1/data").size(), SMALL);
    let received = number(&world.pair.status(PROD)["cursors"]["received"]);
    world.grow(PROD, LARGE);
    // Nothing in it is new to the peer but a record.
    world.pair.received();
    assert!(number(&world.pair.status(PROD)["cursors"]["received"]) <= received + 8);
    assert_eq!(number(&world.pair.status(PROD)["stale_bytes"]), 0);
    // NBD tells a client the size when it connects: this one is kept to what it was told.
    before.write(0, &[3; 4096], true).unwrap();
    world.data[..4096].fill(3);
    assert!(before.write(SMALL, &[3; 4096], true).is_err());
    drop(before);
    world.serves(PROD);
    world.mark(PROD, "grown");
    world.write(PROD, SMALL - 4096, 8192, 4);
    world.write(PROD, LARGE - (64 << 10), 64 << 10, 5);
    world.mark(PROD, "large");
    world.pair.waits(PROD, "drained");
    world.shows(REC);
    for node in [PROD, REC] {
        world.pair.kill9(node);
        world.pair.start(node);
    }
    world.serves(PROD);
    world.pair.waits(PROD, "consistent");
    world.shows(REC);
    // The same again changes nothing.
    let again = world.pair.cli(
        PROD,
        &["extend_replica_lv", "-C", "1", "-L", "data", "--size", "24M"],
    );
    assert!(again.code == 0 && again.stdout.contains("already"), "{again:?}");
    let verified = world.pair.json(PROD, &["verify", "-C", "1"]);
    let compared = number(&verified["reply"]["verify"]["compared_bytes"]);
    assert_eq!(compared, LARGE + OTHER, "{verified}");
    // Over, and larger still: the other host grows with it.
    world.pair.cli(PROD, &["rtstop", "-FSC", "1"]).ok();
    world.pair.cli(REC, &["rtdr", "-qC", "1", "failover"]).ok();
    world.serves(REC);
    world.write(REC, LARGE - 4096, 4096, 6);
    world.refused(REC, "grow -C 1 -L data --size 32M", 1, "does not run on prod");
    world.pair.cli(PROD, &["rtdr", "-qC", "1", "resync"]).ok();
    world.pair.cli(REC, &["rtdr", "-qC", "1", "resync"]).ok();
    world.follows();
    world.grow(REC, 2 * LARGE);
    world.write(REC, 2 * LARGE - 8192, 8192, 7);
    world.mark(REC, "over");
    world.pair.waits(REC, "drained");
    world.pair.cli(REC, &["rtstop", "-FSC", "2"]).ok();
    world.pair.cli(PROD, &["rtdr", "-C", "1", "failback"]).ok();
    world.pair.cli(REC, &["rtdr", "-C", "2", "failback"]).ok();
    world.write(PROD, LARGE, 4096, 8);
    world.mark(PROD, "home");
    world.pair.waits(PROD, "drained");
    world.serves(PROD);
    world.shows(REC);
    world.pair.drain();
    world.pair.same_files(&["data", "other"]);
}

/// A failover to before the growth serves the smaller volume, and what was behind its end is not there when it grows once more.
#[test]
fn k3_a_restore_to_before_the_growth_brings_the_size_back() {
    let mut world = World::new("grow-back", "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\n");
    world.write(PROD, 0, 64 << 10, 1);
    world.mark(PROD, "small");
    world.grow(PROD, LARGE);
    world.write(PROD, SMALL, LARGE - SMALL, 0xee);
    world.mark(PROD, "large");
    world.pair.waits(PROD, "drained");
    world
        .pair
        .cli(REC, &["scrt_ra", "-qfC", "1", "-F", "--mark", "small"])
        .ok();
    world.shows(REC);
    world.pair.cli(REC, &["rtdr", "-qfC", "1", "failover"]).ok();
    let Moment { data, other, .. } = &world.moments[0];
    (world.data, world.other) = (data.clone(), other.clone());
    world.serves(REC);
    world.write(REC, SMALL - 4096, 4096, 2);
    world.pair.cli(PROD, &["rtdr", "-qC", "1", "resync"]).ok();
    world.pair.cli(REC, &["rtdr", "-qC", "1", "resync"]).ok();
    world.follows();
    world.moments.truncate(1);
    world.mark(REC, "again-small");
    world.grow(REC, LARGE - (1 << 20));
    world.mark(REC, "again-large");
    world.write(REC, SMALL + 4096, 4096, 3);
    world.mark(REC, "written");
    world.pair.waits(REC, "drained");
    world.serves(REC);
    world.moments.remove(0);
    world.shows(PROD);
    world.are_equal(REC);
}

/// A peer that has lost all it had, and one whose journal overflowed, know the sizes again when their copies are there.
#[test]
fn k3_sizes_are_told_again_with_the_copies() {
    let context =
        "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\njournal_limit = \"8M\"\nrecovery_journal_limit = \"1G\"\n";
    let mut world = World::new("grow-told", context);
    world.write(PROD, 0, 64 << 10, 1);
    world.grow(PROD, LARGE);
    world.write(PROD, LARGE - 4096, 4096, 2);
    world.pair.waits(PROD, "drained");
    world.pair.kill9(REC);
    std::fs::remove_dir_all(world.pair.scratch.join("state/rec/c1")).unwrap();
    // More than the journal holds: the record that said the size is gone when the peer is there again.
    for n in 0..24 {
        world.write(PROD, n * (1 << 20), 1 << 20, 3 + u8::try_from(n).unwrap());
    }
    world.pair.start(REC);
    world.pair.waits(PROD, "resynced");
    world.mark(PROD, "anew");
    world.pair.waits(PROD, "drained");
    world.pair.waits(REC, "consistent");
    world.shows(REC);
    world.pair.kill9(REC);
    world.pair.start(REC);
    world.pair.waits(PROD, "consistent");
    world.shows(REC);
    world.serves(PROD);
    world.pair.drain();
    world.pair.same_files(&["data", "other"]);
}

/// What cannot be is refused with its reason, and changes nothing.
#[test]
fn r33_what_cannot_grow_is_refused() {
    let mut world = World::new("grow-refused", "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\n");
    world.write(PROD, 0, 4096, 1);
    world.refused(PROD, "grow -C 1 -L data --size 4M", 1, "volumes only grow");
    world.refused(PROD, "grow -C 1 -L data --size 9000000", 1, "whole blocks");
    world.refused(PROD, "grow -C 1 -L data --size much", 64, "--size");
    world.refused(PROD, "grow -C 1 -L nothing --size 9M", 64, "data, other");
    world.refused(PROD, "grow -C 1", 64, "-L VOLUME is missing");
    world.refused(REC, "grow -C 1 -L data --size 9M", 1, "is a replica here");
    world.pair.cli(REC, &["rtstop", "-C", "1"]).ok();
    world.refused(PROD, "grow -C 1 -L data --size 9M", 1, "does not run on rec");
    world.pair.kill9(REC);
    world.refused(PROD, "grow -C 1 -L data --size 9M", 75, "rec");
    world.serves(PROD);
    // This host's file may be longer: nobody is served that.
    assert_eq!(world.pair.open(PROD, "c1/data").size(), SMALL);
    world.pair.start(REC);
    world.pair.cli(REC, &["rtstart", "-C", "1"]).ok();
    world.pair.waits(PROD, "consistent");
    // What the operator has made longer is what it grows to.
    let longer = run(
        Command::new("truncate")
            .arg("-s12M")
            .arg(world.pair.backing(PROD, "data")),
        LONG,
    );
    assert_eq!(longer.code, 0, "{longer:?}");
    let said = world.pair.cli(PROD, &["grow", "-C", "1", "-L", "data", "--wait"]);
    assert!(
        said.code == 0 && said.stdout.contains("8.0 MiB -> 12.0 MiB on both hosts"),
        "{said:?}"
    );
    world.data.resize(12 << 20, 0);
    world.serves(PROD);
    world.pair.drain();
    world.pair.same_files(&["data", "other"]);
}

/// The replica's machine is put back to before the growth and takes over; the old production, whose tail holds what it wrote, follows. What
/// only it is ready for is in the set of both: nothing of it is left when the volume grows once more.
#[test]
fn k3_what_one_host_alone_is_ready_for_is_in_the_set() {
    let mut world = World::new("grow-back-rec", "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\n");
    world.write(PROD, 0, 64 << 10, 1);
    world.pair.waits(PROD, "drained");
    world.pair.kill9(REC);
    let state = world.pair.scratch.join("state/rec");
    let kept = world.pair.scratch.join("kept");
    let copied = run(Command::new("cp").arg("-a").args([&state, &kept]), LONG);
    assert_eq!(copied.code, 0, "{copied:?}");
    world.pair.start(REC);
    world.pair.waits(PROD, "consistent");
    let (data, other) = (world.data.clone(), world.other.clone());
    world.grow(PROD, LARGE);
    world.write(PROD, SMALL, LARGE - SMALL, 0xee);
    world.pair.waits(PROD, "drained");
    world.pair.kill9(PROD);
    world.pair.kill9(REC);
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&kept, &state).unwrap();
    world.pair.start(REC);
    world.pair.cli(REC, &["rtdr", "-qfC", "1", "failover"]).ok();
    (world.data, world.other) = (data, other);
    world.serves(REC);
    world.write(REC, 4096, 4096, 2);
    world.pair.start(PROD);
    world.pair.cli(PROD, &["rtdr", "-qC", "1", "resync"]).ok();
    world.pair.cli(REC, &["rtdr", "-qC", "1", "resync"]).ok();
    world.follows();
    world.serves(REC);
    world.grow(REC, LARGE);
    world.mark(REC, "grown");
    world.write(REC, SMALL + 4096, 4096, 3);
    world.mark(REC, "written");
    world.pair.waits(REC, "drained");
    world.shows(PROD);
    world.serves(REC);
    world.are_equal(REC);
}

/// What cannot be taken back is asked first: much more than there was, and bytes behind the volume's end that are zeroed.
#[test]
fn r33_what_cannot_be_taken_back_is_asked() {
    use std::os::unix::fs::FileExt;
    let mut world = World::new("grow-asked", "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\n");
    world.refused(PROD, "grow -C 1 -L data --size 24G", 1, "Nothing changed");
    let backing = world.pair.backing(PROD, "data");
    let file = std::fs::File::options().write(true).open(&backing).unwrap();
    file.set_len(LARGE).unwrap();
    file.write_all_at(b"somebody else's", LARGE - 4096).unwrap();
    let args = ["grow", "-C", "1", "-L", "data"];
    let asked = world.pair.cli_with(PROD, &args, "no\n");
    assert_eq!(asked.code, 1, "{asked:?}");
    let said = asked.stdout + &asked.stderr;
    assert!(said.contains("cannot be made smaller again"), "{said}");
    assert!(
        said.contains("they are zeroed here, as they are on rec"),
        "{said}"
    );
    world.serves(PROD);
    world.pair.cli_with(PROD, &args, "yes\n").ok();
    world.data.resize(usize::try_from(LARGE).unwrap(), 0);
    world.serves(PROD);
}

/// A stopped node's volumes have their size too: checked, and rebuilt, also by what is left of a damaged journal.
#[test]
fn k3_a_grown_volume_is_salvaged_whole() {
    let mut world = World::new("grow-salvage", "lfc_size = \"2M\"\nlfc_max_age = \"1h\"\n");
    world.write(PROD, 0, 64 << 10, 1);
    world.mark(PROD, "small");
    world.grow(PROD, LARGE);
    world.write(PROD, LARGE - 8192, 8192, 2);
    world.mark(PROD, "large");
    world.pair.waits(PROD, "drained");
    // Into the open container.
    world.write(PROD, LARGE - 16_384, 4096, 3);
    until("what is written to be on the volume", LONG, || {
        let status = world.pair.status(PROD);
        (status["cursors"]["checkpointed"] == status["cursors"]["appended"]).then_some(())
    });
    // The bound is raised at rest.
    std::thread::sleep(std::time::Duration::from_secs(3));
    for node in [PROD, REC] {
        world.pair.kill9(node);
        world.pair.cli(node, &["fsck-journal", "-C", "1"]).ok();
    }
    let image = world.pair.scratch.join("image");
    let file = image.to_str().unwrap();
    let holds = |node: &str, more: &[&str], bytes: &[u8]| {
        let all = [&["salvage", "-fC", "1", "--volume", "data", "-o", file], more].concat();
        let said = world.pair.cli(node, &all);
        assert_eq!(
            said.code,
            if more == ["--best-effort"] { 2 } else { 0 },
            "{said:?}"
        );
        assert!(
            std::fs::read(&image).unwrap() == bytes,
            "{node} {more:?}: {said:?}"
        );
    };
    holds(PROD, &[], &world.data);
    for moment in &world.moments {
        holds(REC, &["--at", &format!("mark:{}", moment.mark)], &moment.data);
    }
    // A bit in a frame that the superblock knows to be durable: the journal is damaged, and nothing of it is open.
    let (tail, entries) = open_tail(&world.pair, PROD);
    rot(&tail, entries[0] + 100);
    holds(PROD, &["--best-effort"], &world.data);
}

/// A file system takes the larger volume; what it was before is mounted as it was, with its old size.
#[test]
fn r33_a_mounted_file_system_takes_the_new_size() {
    if !root_for("r33_a_mounted_file_system_takes_the_new_size") {
        return;
    }
    let setup = Setup {
        attach: "auto",
        ..Setup::default()
    };
    let pair = Pair::new("grow-xfs", &setup);
    let data = pair.scratch.join("data");
    let at = data.to_str().unwrap();
    let past = pair.scratch.join("mnt").join(data.strip_prefix("/").unwrap());
    let protect = ["protect", "-C", "1", "data=320M", "--fs", "xfs", "--mount", at];
    pair.cli(PROD, &protect).ok();
    let random = |byte: u8, len: usize| vec![byte; len];
    std::fs::write(data.join("before"), random(1, 9 << 20)).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "small"]).ok();
    pair.cli(PROD, &["grow", "-C", "1", "-L", "data", "--size", "1G"])
        .ok();
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    let grown = run(Command::new("xfs_growfs").arg(&data), LONG);
    assert_eq!(grown.code, 0, "{grown:?}");
    // More than the file system had before.
    std::fs::write(data.join("behind"), random(2, 400 << 20)).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "large"]).ok();
    pair.waits(PROD, "drained");
    let blocks = |path: &std::path::Path| {
        let shown = run(Command::new("stat").args(["-f", "-c", "%b %S"]).arg(path), LONG);
        let parts: Vec<u64> = shown
            .stdout
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        parts[0] * parts[1]
    };
    for (mark, files) in [("small", 1), ("large", 2)] {
        pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", mark]).ok();
        pair.cli(REC, &["rtmnt", "-C", "1"]).ok();
        let is_small = blocks(&past) < 320 << 20;
        assert_eq!(is_small, mark == "small", "{} bytes at {mark}", blocks(&past));
        assert!(std::fs::read(past.join("before")).unwrap() == random(1, 9 << 20));
        let found = std::fs::read_dir(&past).unwrap().count();
        assert_eq!(found, files, "at {mark}");
        if files == 2 {
            assert!(std::fs::read(past.join("behind")).unwrap() == random(2, 400 << 20));
        }
        pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
        pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
    }
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
}
