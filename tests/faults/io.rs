//! I/O errors of real parts: a disk that dies under a journal or the volumes of either host, and one that fails now and then.
//!
//! A failed sync or write poisons its context and no other: nothing is acknowledged after it, nothing wrong is served, the failure
//! names its place; and a restart with the fault gone finds all that was flushed.

use crate::{
    common::{LONG, PROD, Pair, REC, Setup, number, other, root_for},
    disk::Disk,
    world::{VOLUMES, World},
};
use rand::Rng;
use std::{fs, path::PathBuf, process::Command, thread, time::Duration};
use testkit::{
    nbd::Client,
    proc::{Scratch, need_tool, until},
    with_seeds,
};

/// The disk below a folder of one node dies under load; `kind` is its file system.
fn dies(name: &str, node: &'static str, folder: &str, kind: &'static str) {
    if !root_for("disks that die") {
        return;
    }
    let scratch = Scratch::new(name);
    let disk = Disk::at(&scratch, &format!("state/{node}/c1/{folder}"), kind, 512 << 20);
    let pair = Pair::stopped_in(scratch, &Setup::volumes(&VOLUMES));
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    // Another context of the same two nodes, on another disk.
    pair.cli(PROD, &["protect", "-C", "7", "side=4M"]).ok();
    pair.cli(
        PROD,
        &["wait", "-C", "7", "--until", "consistent", "--timeout", "60"],
    )
    .ok();
    disk.sync();
    let mut world = World::new(pair);
    with_seeds(name, 1, |rng| {
        for round in 0..crate::factor() {
            let why = format!("{folder} of {node}, round {round}");
            world.load.connect(&world.pair);
            let wait = Duration::from_millis(rng.random_range(50..800));
            let (_, wrote) = world.while_writing(rng, |pair, _| {
                thread::sleep(wait);
                disk.cut();
                until(&format!("{why}: it to be said"), LONG, || {
                    let status = pair.status(node);
                    let verdict = status["verdict"].as_str().unwrap().to_owned();
                    verdict
                        .contains("stopped acknowledging")
                        .then(|| assert_eq!(status["healthy"], false))
                });
                thread::sleep(Duration::from_millis(300));
            });
            assert!(
                node == PROD || wrote.is_ok(),
                "{why}: the application was told of it: {wrote:?}"
            );
            let verdict = world.pair.status(node)["verdict"].as_str().unwrap().to_owned();
            println!("{why}: {verdict}");
            let names_place = [" at ", "tail", "/db", "super"]
                .iter()
                .any(|p| verdict.contains(p));
            assert!(names_place, "{why}: {verdict}");
            if node == PROD {
                // From now on nobody is told that anything is done.
                let mut client = world.pair.open(PROD, "c1/data");
                assert!(
                    client.write(0, &[1; 4096], false).is_err() && client.flush().is_err(),
                    "{why}"
                );
            }
            // The other context goes on, through to the other host.
            let mut side = world.pair.open(PROD, "c7/side");
            side.write(0, &[round as u8 + 1; 4096], true).unwrap();
            world
                .pair
                .cli(
                    PROD,
                    &["wait", "-C", "7", "--until", "drained", "--timeout", "60"],
                )
                .ok();
            drop(side);
            world.load.disconnect();
            world.pair.kill9(node);
            disk.back();
            world.pair.start(node);
            if node == PROD {
                world.load.settle(world.pair.cursor(PROD, "appended"), &why);
                world.serves(&why);
            }
            world.load.connect(&world.pair);
            world.settle(&why);
        }
        world.check(rng);
    });
}

#[test]
fn io_the_journal_of_production_dies() {
    dies("io-pj", PROD, "journal", "xfs");
}

#[test]
fn io_the_volumes_of_production_die() {
    dies("io-pv", PROD, "volumes", "ext4");
}

#[test]
fn io_the_journal_of_the_replica_dies() {
    dies("io-rj", REC, "journal", "ext4");
}

#[test]
fn io_the_volumes_of_the_replica_die() {
    dies("io-rv", REC, "volumes", "xfs");
}

/// A file that is served by nbdkit through filters of its own, for a node to put a volume on.
pub struct Backing {
    pub path: PathBuf,
}

impl Backing {
    /// A file of so many bytes.
    pub fn new(scratch: &Scratch, name: &str, bytes: u64, filters: &[&str], parameters: &[String]) -> Self {
        let image = scratch.image(&format!("{name}.img"), bytes);
        let path = scratch.image(&format!("{name}.file"), 0);
        let socket = scratch.join(format!("{name}.sock"));
        let mut nbdkit = Command::new(need_tool("nbdkit"));
        nbdkit.arg("-f").args(filters).arg("-U").arg(&socket);
        nbdkit.arg("file").arg(&image).args(parameters);
        let served = scratch.start(&format!("{name}-nbdkit"), &mut nbdkit);
        served.wait_for_socket(&socket, LONG);
        let mut fuse = Command::new(need_tool("nbdfuse"));
        fuse.arg(&path)
            .arg(format!("nbd+unix:///?socket={}", socket.display()));
        let _ = scratch.start(&format!("{name}-nbdfuse"), &mut fuse);
        until("nbdfuse to serve", LONG, || {
            (fs::metadata(&path).ok()?.len() == bytes).then_some(())
        });
        Self { path }
    }

    /// Puts a volume of a node on it; both are stopped.
    pub fn put_below(&self, pair: &Pair, node: &str, volume: &str) {
        let name = format!("name = \"{volume}\"\n");
        let backing = format!("{name}backing = {{ {node} = \"{}\" }}\n", self.path.display());
        for at in [PROD, REC] {
            let file = pair.scratch.join(format!("state/{at}/contexts/1.toml"));
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, text.replace(&name, &backing)).unwrap();
        }
    }
}

/// A pair whose volume `data` fails on one node in one operation of three, while a file is there.
struct Failing {
    bad: Backing,
    trigger: PathBuf,
}

impl Failing {
    fn fail(&self, fails: bool) {
        match fails {
            true => fs::write(&self.trigger, "").unwrap(),
            false => fs::remove_file(&self.trigger).unwrap(),
        }
    }
}

fn failing(name: &str, node: &str, operation: &str) -> (World, Failing) {
    let scratch = Scratch::new(name);
    let trigger = scratch.join("fails");
    let parameters = [
        format!("error-{operation}=EIO"),
        format!("error-{operation}-rate=33%"),
        format!("error-{operation}-file={}", trigger.display()),
    ];
    let bad = Backing::new(&scratch, "bad", VOLUMES[0].1, &["--filter=error"], &parameters);
    let pair = Pair::stopped_in(scratch, &Setup::volumes(&VOLUMES));
    bad.put_below(&pair, node, "data");
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    (World::new(pair), Failing { bad, trigger })
}

/// Reads fail now and then: with an error, never with other bytes; what can be read is right, and the context lives.
fn reads_fail(name: &str, node: &'static str) {
    if !root_for("reads that fail") {
        return;
    }
    let (mut world, bad) = failing(name, node, "pread");
    with_seeds(name, 1, |rng| {
        world.load.burst(rng, 100);
        world.load.set_mark(&world.pair);
        world.settle("before");
        let export = if node == PROD { "c1/data" } else { "c1/data@latest" };
        // All of it is on the volume by now, and not in memory.
        world
            .pair
            .cli(
                node,
                &[
                    "wait",
                    "-C",
                    "1",
                    "--until",
                    &format!("applied={}", world.load.head().0),
                    "--timeout",
                    "60",
                ],
            )
            .ok();
        let (mut failed, mut read) = (0, 0);
        let whole = world.pair.open(node, export).read(0, VOLUMES[0].1).unwrap();
        bad.fail(true);
        let mut client: Client = world.pair.open(node, export);
        let file = fs::File::open(&bad.bad.path).unwrap();
        for _ in 0..300 {
            // From the file, and not from the kernel's memory of it.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let at = rng.random_range(0..VOLUMES[0].1 / 4096) * 4096;
            match client.read(at, 4096) {
                Ok(bytes) => {
                    read += 1;
                    assert!(
                        bytes == whole[at as usize..at as usize + 4096],
                        "other bytes at {at}"
                    );
                }
                Err(e) => {
                    failed += 1;
                    assert_eq!(e.errno(), Some(5), "{e}");
                }
            }
        }
        bad.fail(false);
        println!("{read} reads, {failed} failed");
        assert!(read > 0 && failed > 0, "{read} reads, {failed} failed");
        assert!(client.read(0, VOLUMES[0].1).unwrap() == whole);
        drop(client);
        world.under_load("afterwards", rng, |_, _| {
            thread::sleep(Duration::from_millis(300))
        });
        world.settle("afterwards");
        world.load.disconnect();
        world.views(model::WriteSeq(0), 4, rng);
    });
}

#[test]
fn io_reads_of_production_fail_now_and_then() {
    reads_fail("io-pread", PROD);
}

#[test]
fn io_reads_of_the_replica_fail_now_and_then() {
    reads_fail("io-rread", REC);
}

/// Writes of a volume fail now and then: its context is poisoned with the place, and a restart goes on.
fn writes_fail(name: &str, node: &'static str) {
    if !root_for("writes that fail") {
        return;
    }
    let (mut world, bad) = failing(name, node, "pwrite");
    with_seeds(name, 1, |rng| {
        let why = format!("writes of {node} fail");
        let (verdict, wrote) = world.while_writing(rng, |pair, _| {
            thread::sleep(Duration::from_millis(200));
            bad.fail(true);
            until("it to be said", LONG, || {
                let status = pair.status(node);
                let verdict = status["verdict"].as_str().unwrap().to_owned();
                verdict.contains("stopped acknowledging").then_some(verdict)
            })
        });
        println!("{verdict}");
        assert!(verdict.contains("volume data: write at "), "{verdict}");
        assert_eq!(wrote.is_err(), node == PROD, "{wrote:?}");
        assert_eq!(number(&world.pair.status(other(node))["stale_bytes"]), 0);
        bad.fail(false);
        world.load.disconnect();
        world.pair.kill9(node);
        world.pair.start(node);
        if node == PROD {
            world
                .load
                .settle_killed(world.pair.cursor(PROD, "appended"), &why);
            world.serves(&why);
        }
        world.load.connect(&world.pair);
        world.settle(&why);
        world.load.disconnect();
        world.views(model::WriteSeq(0), 6, rng);
    });
}

#[test]
fn io_writes_of_production_fail_now_and_then() {
    writes_fail("io-pwrite", PROD);
}

#[test]
fn io_writes_of_the_replica_fail_now_and_then() {
    writes_fail("io-rwrite", REC);
}
