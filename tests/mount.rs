//! File systems on protected volumes and on snapshots of them, and volumes that held data before they were protected.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, root_for};
use model::{BLOCK_SIZE, BlockNo, VolumeIndex};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use testkit::{
    block::{self, Header},
    nbd::{Client, Promise, Session, Step},
    proc::{Process, run, until},
};

fn mounting() -> Setup {
    Setup {
        attach: "auto",
        ..Setup::default()
    }
}

/// Where recovery mounts what production mounts at `path`.
fn past(pair: &Pair, path: &Path) -> PathBuf {
    pair.scratch.join("mnt").join(path.strip_prefix("/").unwrap())
}

fn is_mounted(path: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    text.lines().any(|l| l.split(' ').nth(1) == path.to_str())
}

/// A process that sits in a folder.
fn sit(pair: &Pair, name: &str, folder: &Path) -> Process {
    let process = pair.scratch.start(
        name,
        Command::new("sh")
            .args(["-c", "echo sits; exec sleep 600"])
            .current_dir(folder),
    );
    process.wait_for_line("sits", LONG);
    process
}

#[test]
fn files_come_back_as_they_were_at_the_mark() {
    if !root_for("files_come_back_as_they_were_at_the_mark") {
        return;
    }
    let pair = Pair::new("mount", &mounting());
    let (data, log) = (pair.scratch.join("data"), pair.scratch.join("log"));
    let protected = pair.cli(
        PROD,
        &[
            "protect",
            "-C",
            "1",
            "data=96M",
            "log=32M",
            "--fs",
            "ext4",
            "--mount",
            &format!("data={}", data.display()),
            "--mount",
            &format!("log={}", log.display()),
        ],
    );
    protected.ok();
    assert!(is_mounted(&data) && is_mounted(&log));
    let mut rng = StdRng::seed_from_u64(1);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 0..40 {
        let mut bytes = vec![0; rng.random_range(1..300_000)];
        rng.fill(&mut bytes[..]);
        fs::write(data.join(format!("file{n}")), &bytes).unwrap();
        files.push((format!("file{n}"), bytes));
    }
    fs::write(log.join("journal"), "40 files\n").unwrap();
    // Nothing was synced by the application: the mark does it.
    pair.cli(
        PROD,
        &["rtmark", "-C", "1", "--name", "good", "--description", "40 files"],
    )
    .ok();
    for (name, _) in &files {
        fs::write(data.join(name), "ruined").unwrap();
    }
    fs::remove_file(log.join("journal")).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "ruined"]).ok();

    let snapshot = pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "good"]).ok();
    assert!(
        snapshot.contains("rsn10/data") && snapshot.contains("sn10/log"),
        "{snapshot}"
    );
    let mounted = pair.cli(REC, &["rtmnt", "-C", "1"]).ok();
    for words in ["Determining Filesystems to mount...", "e2fsck", "Mounting "] {
        assert!(mounted.contains(words), "'{words}' is not in {mounted}");
    }
    let (past_data, past_log) = (past(&pair, &data), past(&pair, &log));
    assert!(is_mounted(&past_data) && is_mounted(&past_log));
    for (name, bytes) in &files {
        assert!(
            fs::read(past_data.join(name)).unwrap() == *bytes,
            "{name} at the mark"
        );
    }
    assert_eq!(
        fs::read_to_string(past_log.join("journal")).unwrap(),
        "40 files\n"
    );
    // It is a copy of one's own: what is written there is nowhere else.
    fs::write(past_data.join("file0"), "mine").unwrap();
    assert_eq!(fs::read_to_string(data.join("file0")).unwrap(), "ruined");
    // Already so.
    pair.cli(REC, &["rtmnt", "-C", "1"]).ok();

    // In use: neither unmounted nor released, and nothing changed.
    let sitting = sit(&pair, "sitting", &past_log);
    let busy = pair.json(REC, &["rtumnt", "-C", "1"]);
    assert_eq!(busy["code"], 1, "{busy}");
    let holders = busy["holders"].to_string();
    assert!(holders.contains(&sitting.id().to_string()), "{busy}");
    assert!(is_mounted(&past_data) && is_mounted(&past_log), "all or none");
    let busy = pair.json(REC, &["scrt_ra", "-C", "1", "-W"]);
    assert_eq!(busy["code"], 1, "{busy}");
    assert!(busy["holders"].to_string().contains("mounted at"), "{busy}");
    sitting.end();
    let unmounted = pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
    for words in ["Determining Filesystems to unmount...", "Unmounting "] {
        assert!(unmounted.contains(words), "'{words}' is not in {unmounted}");
    }
    assert!(!is_mounted(&past_data) && !is_mounted(&past_log));
    let again = pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
    assert!(again.contains("No mounted filesystems"), "{again}");
    let released = pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
    assert!(released.contains("10"), "{released}");

    // The same on production, and -f ends who sits there.
    let sitting = sit(&pair, "sitting-there", &data);
    assert_eq!(pair.cli(PROD, &["rtumnt", "-C", "1"]).code, 1);
    assert_eq!(pair.cli(PROD, &["rtstop", "-C", "1"]).code, 1, "volumes are open");
    assert!(is_mounted(&data));
    pair.cli(PROD, &["rtumnt", "-C", "1", "-f", "-q"]).ok();
    assert!(sitting.ended().is_some() && !is_mounted(&data) && !is_mounted(&log));
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    assert_eq!(fs::read_to_string(data.join("file7")).unwrap(), "ruined");

    // Back to the mark for good.
    let stopped = pair.cli(PROD, &["rtstop", "-FSC", "1"]).ok();
    assert!(stopped.contains("Stopping scrt_lca"), "{stopped}");
    assert!(!is_mounted(&data));
    pair.cli(REC, &["scrt_ra", "-C", "1", "-F", "--mark", "good", "-q"])
        .ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "--at", "restored"]).ok();
    pair.cli(
        REC,
        &[
            "rtmnt",
            "-C",
            "1",
            "-f",
            "--at-dir",
            pair.scratch.join("else").to_str().unwrap(),
        ],
    )
    .ok();
    let restored = pair.scratch.join("else").join(data.strip_prefix("/").unwrap());
    for (name, bytes) in &files {
        assert!(
            fs::read(restored.join(name)).unwrap() == *bytes,
            "{name} restored"
        );
    }
    pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
    assert_eq!(
        fs::read_dir(pair.scratch.join("dev/rec")).map_or(0, Iterator::count),
        0
    );
}

/// Files that a daemon had mounted when it was killed: the next one takes the broken mounts away, and nothing is lost.
#[test]
fn a_killed_daemon_leaves_no_broken_mounts() {
    if !root_for("a_killed_daemon_leaves_no_broken_mounts") {
        return;
    }
    let pair = Pair::new("left", &mounting());
    let data = pair.protect_mounted();
    fs::write(data.join("kept"), "kept").unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "kept"]).ok();
    pair.kill9(PROD);
    pair.start(PROD);
    pair.cli(PROD, &["rtumnt", "-C", "1", "-f", "-q"]);
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    assert_eq!(fs::read_to_string(data.join("kept")).unwrap(), "kept");
    pair.cli(PROD, &["rtumnt", "-FC", "1"]).ok();
}

/// Production is fenced while its file system is mounted: whoever uses it gets errors, however many, and never waits for ever.
#[test]
fn a_fenced_device_fails_and_does_not_hang() {
    if !root_for("a_fenced_device_fails_and_does_not_hang") {
        return;
    }
    let pair = Pair::new("fenced", &mounting());
    let data = pair.protect_mounted();
    fs::write(data.join("kept"), "kept").unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "kept"]).ok();
    pair.cli(REC, &["rtdr", "-C", "1", "failover", "-f", "-q", "--no-mount"])
        .ok();
    // What a cache has is read all the same.
    let disk = pair.scratch.join("state/prod/attach/c1.data.fuse/disk");
    let dd = |flags: &str| {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", disk.display()));
        dd.args(["of=/dev/null", "bs=4096", "conv=noerror"])
            .args(flags.split(' '));
        run(&mut dd, LONG).stderr
    };
    dd("iflag=nocache count=0");
    let errors = dd("count=5000").matches("error reading").count();
    assert!(
        errors > 4000,
        "{errors} of 5000 blocks of a fenced device could not be read"
    );
    pair.cli(PROD, &["rtumnt", "-C", "1", "-f", "-q"]).ok();
    assert!(!is_mounted(&data));
}

/// A file that held data before is copied while it is written; until then the replica is not consistent and says so.
/// Tells a loop to end, also when a test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_first_sync_copies_what_was_there_under_writes() {
    const SIZE: u64 = 160 << 20;
    let pair = Pair::new("adopt", &Setup::default());
    let adopted = pair.scratch.join("adopted");
    let old = |n| Header {
        block: BlockNo(n),
        seed: 99,
        version: 1,
        ..Header::default()
    };
    let bytes: Vec<u8> = (0..SIZE / BLOCK_SIZE)
        .flat_map(|n| block::make(&old(n)))
        .collect();
    fs::write(&adopted, &bytes).unwrap();
    let socket = pair.socket(PROD);
    let mut session = Session::new(&socket, "c1/data", VolumeIndex(0), 5);
    let end = AtomicBool::new(false);
    let mut refusals = 0;
    thread::scope(|scope| {
        let protect = scope.spawn(|| {
            let source = format!("data={}", adopted.display());
            pair.cli(PROD, &["protect", "-C", "1", &source]).ok()
        });
        until("the export", LONG, || session.connect().is_ok().then_some(()));
        // The writer ends with the scope even if an assertion below fails.
        let _ending = Ending(&end);
        let (session, end) = (&mut session, &end);
        let writer = scope.spawn(move || {
            let mut rng = StdRng::seed_from_u64(3);
            let steps = std::iter::from_fn(|| {
                thread::sleep(Duration::from_millis(2));
                let first = BlockNo(rng.random_range(0..SIZE / BLOCK_SIZE - 8));
                let count = rng.random_range(1..8);
                (!end.load(Ordering::Relaxed)).then_some(Step::Blocks {
                    first,
                    count,
                    fua: false,
                })
            });
            session.run(4, steps).unwrap();
        });
        while !protect.is_finished() {
            let answer = pair.json(REC, &["scrt_ra", "-C", "1", "-X", "-n"]);
            let error = answer["error"].as_str().unwrap_or_default();
            if error.contains("consistent") {
                assert_eq!(answer["code"], 1, "{answer}");
                if Client::connect(&pair.socket(REC), "c1/data@latest").is_ok() {
                    // The sync may have ended between the two looks.
                    let after = pair.json(REC, &["scrt_ra", "-C", "1", "-X", "-n"]);
                    assert_eq!(
                        after["error"],
                        serde_json::Value::Null,
                        "served while refused: {after}"
                    );
                }
                refusals += 1;
            }
        }
        protect.join().unwrap();
        end.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    assert!(refusals > 0, "the first sync was never seen under way");
    pair.consistent();
    pair.received();
    let writes = session.ledger().entries().len();
    assert!(writes > 20, "{writes} writes under the first sync");
    session.drop_connection();
    let mut latest = pair.open(REC, "c1/data@latest");
    let mut read = |_: VolumeIndex, at: u64, out: &mut [u8]| {
        let bytes = latest.read(at, out.len() as u64).map_err(std::io::Error::other)?;
        out.copy_from_slice(&bytes);
        Ok(())
    };
    session.ledger().check(Promise::Acknowledged, &mut read).unwrap();
    drop(latest);
    pair.drain();
    let compared = run(
        Command::new("cmp").args([&adopted, &pair.backing(REC, "data")]),
        LONG,
    );
    assert_eq!(compared.code, 0, "{compared:?}");
    // What nobody overwrote is still what was there before.
    let now = fs::read(&adopted).unwrap();
    let kept = (0..SIZE / BLOCK_SIZE).filter(|n| {
        let at = usize::try_from(n * BLOCK_SIZE).unwrap();
        let range = at..at + usize::try_from(BLOCK_SIZE).unwrap();
        now[range.clone()] == bytes[range]
    });
    println!(
        "{writes} writes and {refusals} refused looks under the first sync; {} blocks as before",
        kept.count()
    );
}

/// The kernel tells of files and mounts by paths without links.
#[test]
fn folders_behind_links_are_mounted_in_as_any_other() {
    if !root_for("folders_behind_links_are_mounted_in_as_any_other") {
        return;
    }
    let pair = Pair::stopped("links", &mounting());
    for (name, real) in [("state", "real-state"), ("points", "real-points")] {
        let (name, real) = (pair.scratch.join(name), pair.scratch.join(real));
        if !name.exists() {
            fs::create_dir(&name).unwrap();
        }
        fs::rename(&name, &real).unwrap();
        std::os::unix::fs::symlink(&real, &name).unwrap();
    }
    for node in [PROD, REC] {
        pair.start(node);
    }
    let (point, real) = (
        pair.scratch.join("points/data"),
        pair.scratch.join("real-points/data"),
    );
    let mount = format!("data={}", point.display());
    let args = [
        "protect", "-C", "1", "data=32M", "--fs", "ext4", "--mount", &mount,
    ];
    pair.cli(PROD, &args).ok();
    assert!(is_mounted(&real));
    fs::write(point.join("file"), "kept").unwrap();
    for _ in 0..2 {
        pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
        assert!(!is_mounted(&real));
        pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
        assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "kept");
    }
    assert_eq!(pair.status(PROD)["volumes"][0]["mounted"], true);
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    let left: Vec<_> = fs::read_dir(pair.scratch.join("state/prod/attach"))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
