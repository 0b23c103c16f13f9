//! The daemon is stopped, killed and started again under load, and whoever uses a volume sees a pause and no error (N10).
//!
//! Through our own devices with file systems on them, through qemu's client with `reconnect-delay` and a FUSE export, and through
//! nbdkit's `retry` filter. In each, what was written is told by its checksums, read back from the device and not from a cache.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "power/disk.rs"]
mod disk;

use common::{LONG, PROD, Pair, REC, Setup, root_for};
use disk::Disk;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};
use testkit::{
    nbd::Client,
    proc::{leftovers, need_tool, run, until},
};

/// Tells a loop to end, also when a test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends the daemon, well or by `kill -9`, and starts it again.
fn restart(pair: &Pair, kill: bool) {
    if kill {
        pair.kill9(PROD);
    } else {
        pair.stop(PROD);
    }
    pair.start(PROD);
}

/// Writes files until told to end: each whole, most of them synced; what every file holds.
fn write_files(
    folder: &Path,
    seed: u64,
    end: &AtomicBool,
    written: &AtomicUsize,
) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut files = BTreeMap::new();
    let mut n = 0;
    while !end.load(Ordering::Relaxed) {
        let path = folder.join(format!("file{}", n % 60));
        let mut bytes = vec![0; rng.random_range(1..200_000)];
        rng.fill_bytes(&mut bytes);
        let fresh = path.with_extension("new");
        let failed = |e: std::io::Error| -> ! { panic!("{}: {e}", path.display()) };
        let mut file = fs::File::create(&fresh).unwrap_or_else(|e| failed(e));
        file.write_all(&bytes).unwrap_or_else(|e| failed(e));
        if n % 4 != 0 {
            file.sync_all().unwrap_or_else(|e| failed(e));
        }
        drop(file);
        fs::rename(&fresh, &path).unwrap_or_else(|e| failed(e));
        files.insert(path, blake3::hash(&bytes));
        n += 1;
        written.fetch_add(1, Ordering::Relaxed);
    }
    files
}

/// Reads everything back.
fn check_files(files: &BTreeMap<PathBuf, blake3::Hash>) {
    for (path, hash) in files {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(
            blake3::hash(&bytes) == *hash,
            "{} is not what was written",
            path.display()
        );
    }
}

/// The block device that is mounted somewhere.
fn device_at(at: &Path) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(1) == at.to_str())?;
    Some(line.split(' ').next()?.into())
}

/// Errors that an ext4 has seen since it was made.
fn ext4_errors(device: &Path) -> String {
    let name = device.file_name().unwrap().to_str().unwrap();
    let count = fs::read_to_string(format!("/sys/fs/ext4/{name}/errors_count")).unwrap();
    count.trim().to_owned()
}

/// Restarts the daemon so many times while `written` goes on; each time something was written before it and behind it.
fn restart_under(pair: &Pair, times: usize, written: &AtomicUsize) {
    for n in 0..times {
        let before = written.load(Ordering::Relaxed);
        until("the load to go on", LONG, || {
            (written.load(Ordering::Relaxed) > before + 5).then_some(())
        });
        restart(pair, n % 2 == 1);
    }
    let before = written.load(Ordering::Relaxed);
    until("the load to go on", LONG, || {
        (written.load(Ordering::Relaxed) > before + 5).then_some(())
    });
}

fn mounting() -> Setup {
    Setup {
        attach: "fuse",
        ..Setup::default()
    }
}

/// Two file systems, one mounted in the other, under load over stops and kills of the daemon.
#[test]
fn mounted_volumes_survive_restarts() {
    if !root_for("mounted_volumes_survive_restarts") {
        return;
    }
    let pair = Pair::new("survive", &mounting());
    let data = pair.scratch.join("data");
    let log = data.join("log");
    let at = |name: &str, path: &Path| format!("{name}={}", path.display());
    let (data_at, log_at) = (at("data", &data), at("log", &log));
    pair.cli(
        PROD,
        &[
            "protect",
            "-C",
            "1",
            "data=128M",
            "log=300M",
            "--fs",
            "data=ext4",
            "--fs",
            "log=xfs",
            "--mount",
            &data_at,
            "--mount",
            &log_at,
        ],
    )
    .ok();
    let devices = [&data, &log].map(|at| device_at(at).unwrap());
    let (end, written) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let files = thread::scope(|scope| {
        let ending = Ending(&end);
        let writers: Vec<_> = [(&data, 0), (&log, 1)]
            .into_iter()
            .map(|(at, n)| {
                let (end, written) = (&end, &written[n]);
                scope.spawn(move || write_files(at, n as u64, end, written))
            })
            .collect();
        restart_under(&pair, 6, &written[0]);
        drop(ending);
        writers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(
        [&data, &log].map(|at| device_at(at).unwrap()),
        devices,
        "mounted anew"
    );
    assert_eq!(ext4_errors(&devices[0]), "0");
    assert_eq!(pair.status(PROD)["volumes"][0]["mounted"], true);
    println!(
        "{} and {} files written over 3 stops and 3 kills",
        written[0].load(Ordering::Relaxed),
        written[1].load(Ordering::Relaxed)
    );
    // Not from a cache.
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    assert!(device_at(&data).is_none() && device_at(&log).is_none());
    let mounted = pair.cli(PROD, &["rtmnt", "-C", "1", "-f"]).ok();
    assert!(
        mounted.contains("e2fsck") && mounted.contains("xfs_repair"),
        "{mounted}"
    );
    files.iter().for_each(check_files);
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    pair.waits(PROD, "drained");
    pair.drain();
    pair.same_files(&["data", "log"]);
    for node in [PROD, REC] {
        assert_eq!(leftovers(&attach_folder(&pair, node)), Vec::<String>::new());
    }
}

/// qemu's client waits for the server as long as it was told to; an error that the server answers it takes for final.
#[test]
fn qemus_client_sees_a_pause() {
    if !root_for("qemus_client_sees_a_pause") {
        return;
    }
    let pair = Pair::new("qemu", &Setup::volumes(&[("data", 128 << 20)]));
    let disk = pair.scratch.image("disk", 0);
    let blockdev = format!(
        "driver=nbd,node-name=data,server.type=unix,server.path={},export=c1/data,reconnect-delay=300",
        pair.socket(PROD).display()
    );
    let export = format!(
        "type=fuse,id=data,node-name=data,mountpoint={},writable=on,allow-other=off",
        disk.display()
    );
    let qemu = pair.scratch.start(
        "qemu",
        Command::new(need_tool("qemu-storage-daemon"))
            .args(["--blockdev", &blockdev])
            .args(["--export", &export]),
    );
    until("the exported file", LONG, || {
        assert_eq!(qemu.ended(), None, "{}", qemu.log());
        (fs::metadata(&disk).is_ok_and(|m| m.len() == 128 << 20)).then_some(())
    });
    let device = run(
        Command::new("losetup").args(["--find", "--show"]).arg(&disk),
        LONG,
    )
    .ok();
    let device = PathBuf::from(device.trim());
    run(
        Command::new(need_tool("mkfs.ext4"))
            .args(["-q", "-F"])
            .arg(&device),
        LONG,
    )
    .ok();
    let at = pair.scratch.folder("at");
    run(Command::new("mount").arg(&device).arg(&at), LONG).ok();
    let (end, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let files = thread::scope(|scope| {
        let ending = Ending(&end);
        let writer = scope.spawn(|| write_files(&at, 3, &end, &written));
        restart_under(&pair, 6, &written);
        drop(ending);
        writer.join().unwrap()
    });
    assert_eq!(ext4_errors(&device), "0");
    println!(
        "{} files written over 3 stops and 3 kills",
        written.load(Ordering::Relaxed)
    );
    let mount = |action: &str| run(Command::new(action).arg(&at), LONG).ok();
    mount("umount");
    run(Command::new(need_tool("e2fsck")).args(["-fn"]).arg(&device), LONG).ok();
    run(Command::new("losetup").arg("--detach").arg(&device), LONG).ok();
    qemu.stop(LONG);
    // Read back by somebody else.
    let image = pair.scratch.join("image");
    run(
        Command::new(need_tool("nbdcopy"))
            .arg(pair.uri(PROD, "c1/data"))
            .arg(&image),
        LONG,
    )
    .ok();
    run(
        Command::new("mount").args(["-o", "loop,ro"]).arg(&image).arg(&at),
        LONG,
    )
    .ok();
    check_files(&files);
    mount("umount");
    pair.waits(PROD, "drained");
    pair.drain();
    pair.same_files(&["data"]);
}

/// nbdkit's `retry` filter connects anew when a request fails, for whatever reason.
#[test]
fn nbdkits_retry_filter_sees_a_pause() {
    const SIZE: u64 = 64 << 20;
    const SLOT: u64 = 64 << 10;
    let pair = Pair::new("retry", &Setup::volumes(&[("data", SIZE)]));
    let socket = pair.scratch.join("retry.sock");
    let nbdkit = pair.scratch.start(
        "nbdkit",
        Command::new(need_tool("nbdkit"))
            .args(["--foreground", "--unix"])
            .arg(&socket)
            .args(["--filter=retry", "nbd", "export=c1/data"])
            .arg(format!("socket={}", pair.socket(PROD).display()))
            .args(["retries=300", "retry-delay=1", "retry-exponential=no"]),
    );
    nbdkit.wait_for_socket(&socket, LONG);
    let (end, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let slots = thread::scope(|scope| {
        let ending = Ending(&end);
        let writer = scope.spawn(|| {
            let mut client = Client::connect(&socket, "").unwrap();
            let mut rng = StdRng::seed_from_u64(4);
            let mut slots = BTreeMap::new();
            while !end.load(Ordering::Relaxed) {
                let slot = rng.random_range(0..SIZE / SLOT);
                let mut bytes = vec![0; usize::try_from(SLOT).unwrap()];
                rng.fill_bytes(&mut bytes);
                client
                    .write(slot * SLOT, &bytes, rng.random_range(0..4) == 0)
                    .unwrap();
                slots.insert(slot, blake3::hash(&bytes));
                if rng.random_range(0..8) == 0 {
                    client.flush().unwrap();
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
            slots
        });
        restart_under(&pair, 6, &written);
        drop(ending);
        writer.join().unwrap()
    });
    println!(
        "{} writes over 3 stops and 3 kills",
        written.load(Ordering::Relaxed)
    );
    let mut client = pair.open(PROD, "c1/data");
    for (slot, hash) in slots {
        let bytes = client.read(slot * SLOT, SLOT).unwrap();
        assert!(blake3::hash(&bytes) == hash, "slot {slot}");
    }
    drop((client, nbdkit));
}

/// Where a node keeps what it knows of its devices.
fn attach_folder(pair: &Pair, node: &str) -> PathBuf {
    pair.scratch.join(format!("state/{node}/attach"))
}

/// The name under which an attached device opens its export.
fn attached_name(pair: &Pair, node: &str, export: &str) -> String {
    let record = attach_folder(pair, node).join(format!("{}.json", export.replace('/', ".")));
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    format!("{export}#{}", record["identity"].as_str().unwrap())
}

/// Production was given up while its file system was mounted: a later daemon takes the mount away, and nobody ever sees through
/// it what the volume becomes.
#[test]
fn a_volume_that_changed_hands_is_not_served_to_an_old_mount() {
    if !root_for("a_volume_that_changed_hands_is_not_served_to_an_old_mount") {
        return;
    }
    let pair = Pair::new("hands", &mounting());
    let data = pair.protect_mounted();
    fs::write(data.join("kept"), "kept").unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "kept"]).ok();
    let name = attached_name(&pair, PROD, "c1/data");
    drop(pair.open(PROD, &name));
    let refused = Client::connect(&pair.socket(PROD), "c1/data#t0-0").err().unwrap();
    assert!(refused.to_string().contains("not any more"), "{refused}");
    let sitting = pair.scratch.start(
        "sitting",
        Command::new("sh")
            .args(["-c", "echo sits; exec sleep 600"])
            .current_dir(&data),
    );
    sitting.wait_for_line("sits", LONG);
    pair.cli(REC, &["rtdr", "-C", "1", "failover", "-f", "-q", "--no-mount"])
        .ok();
    until("production to be fenced", LONG, || {
        Client::connect(&pair.socket(PROD), "c1/data")
            .is_err()
            .then_some(())
    });
    pair.kill9(PROD);
    pair.start(PROD);
    assert_eq!(device_at(&data), None, "{}", pair.log(PROD));
    assert!(Client::connect(&pair.socket(PROD), &name).is_err());
    sitting.end();
    until("nothing to be left", LONG, || {
        leftovers(&attach_folder(&pair, PROD)).is_empty().then_some(())
    });
    // It comes back, and stands for something else.
    pair.cli(PROD, &["rtdr", "-C", "1", "resync", "--both", "-q"])
        .ok();
    pair.waits(REC, "resynced");
    pair.cli(REC, &["rtstop", "-FSC", "1"]).ok();
    for node in [PROD, REC] {
        pair.cli(node, &["rtdr", "-C", "1", "failback", "-q"]).ok();
    }
    assert_eq!(fs::read_to_string(data.join("kept")).unwrap(), "kept");
    assert!(Client::connect(&pair.socket(PROD), &name).is_err());
    assert_ne!(attached_name(&pair, PROD, "c1/data"), name);
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
}

/// What failed to be written may be missing when the next daemon looks: who was answered before sees errors, and never an older
/// state as if nothing had been.
#[test]
fn a_volume_that_failed_is_not_served_to_an_old_mount() {
    if !root_for("a_volume_that_failed_is_not_served_to_an_old_mount") {
        return;
    }
    let pair = Pair::new("failed", &mounting());
    let small = Disk::at(&pair.scratch, "small", "xfs", 512 << 20);
    let image = small.path().join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mut mkfs = Command::new(need_tool("mkfs.ext4"));
    run(mkfs.arg("-q").arg(&image), LONG).ok();
    let data = pair.scratch.join("data");
    let (adopted, at) = (format!("data={}", image.display()), data.to_str().unwrap());
    pair.cli(
        PROD,
        &["protect", "-C", "1", &adopted, "--fs", "ext4", "--mount", at],
    )
    .ok();
    let has_identity = || {
        let record = fs::read(attach_folder(&pair, PROD).join("c1.data.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["identity"].is_string()
    };
    assert!(has_identity());
    let mut bytes = vec![0; 40 << 20];
    StdRng::seed_from_u64(5).fill_bytes(&mut bytes);
    // It is told of the failure, or is not: that is a race.
    let mut large = fs::File::create(data.join("large")).unwrap();
    small.cut();
    let _ = large.write_all(&bytes).and_then(|()| large.sync_all());
    drop(large);
    until("the device to end with the daemon", LONG, || {
        (!has_identity()).then_some(())
    });
    pair.kill9(PROD);
    small.back();
    pair.start(PROD);
    assert_eq!(device_at(&data), None, "{}", pair.log(PROD));
    until("nothing to be left", LONG, || {
        leftovers(&attach_folder(&pair, PROD)).is_empty().then_some(())
    });
    // Everything that was answered is in the journal.
    pair.cli(PROD, &["rtmnt", "-C", "1", "-f"]).ok();
    assert!(device_at(&data).is_some());
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
}

/// A vdev's writes are durable when they were flushed, and a file system may have been told otherwise: it goes with the daemon.
#[test]
fn a_snapshot_without_writes_survives_and_a_vdev_does_not() {
    if !root_for("a_snapshot_without_writes_survives_and_a_vdev_does_not") {
        return;
    }
    let pair = Pair::new("views-restart", &mounting());
    let data = pair.protect_mounted();
    for n in 0..40 {
        fs::create_dir(data.join(format!("d{n}"))).unwrap();
        fs::write(data.join(format!("d{n}/file")), format!("{n}")).unwrap();
    }
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "good"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "good"]).ok();
    let read_only = pair.scratch.join("read-only");
    let below = |root: &Path| root.join(data.strip_prefix("/").unwrap());
    let (past, vdev) = (below(&read_only), below(&pair.scratch.join("mnt")));
    pair.cli(REC, &["rtmnt", "-C", "1"]).ok();
    pair.cli(
        REC,
        &[
            "rtmnt",
            "-C",
            "1",
            "--read-only",
            "--at-dir",
            read_only.to_str().unwrap(),
        ],
    )
    .ok();
    let check = |n: usize| {
        let text = fs::read_to_string(past.join(format!("d{n}/file"))).unwrap();
        assert_eq!(text, n.to_string());
    };
    check(0);
    let device = device_at(&past);
    for (n, kill) in [(1, true), (20, false)] {
        assert!(device_at(&vdev).is_some());
        if kill {
            pair.kill9(REC);
        } else {
            pair.stop(REC);
            assert_eq!(device_at(&vdev), None, "a stop unmounts it well");
        }
        pair.start(REC);
        assert_eq!((device_at(&past), device_at(&vdev)), (device.clone(), None));
        (n..n + 19).for_each(check);
        pair.cli(REC, &["rtmnt", "-C", "1"]).ok();
        assert_eq!(fs::read_to_string(vdev.join("d7/file")).unwrap(), "7");
    }
    pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
    assert_eq!(leftovers(&attach_folder(&pair, REC)), Vec::<String>::new());
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
}

/// A daemon that stays away: whoever uses the device is told after a while, and all comes back in order.
#[test]
fn patience_ends() {
    if !root_for("patience_ends") {
        return;
    }
    let pair = Pair::stopped("patience", &mounting());
    let config = pair.scratch.join("etc/prod.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("[attach]\n", "[attach]\npatience = \"1s\"\n"),
    )
    .unwrap();
    pair.start(PROD);
    pair.start(REC);
    let data = pair.protect_mounted();
    fs::write(data.join("kept"), "kept").unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "kept"]).ok();
    pair.kill9(PROD);
    let lost = fs::File::create(data.join("lost")).and_then(|mut file| {
        file.write_all(b"lost")?;
        file.sync_all()
    });
    assert!(lost.is_err());
    pair.start(PROD);
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    assert_eq!(fs::read_to_string(data.join("kept")).unwrap(), "kept");
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    assert_eq!(leftovers(&attach_folder(&pair, PROD)), Vec::<String>::new());
}
