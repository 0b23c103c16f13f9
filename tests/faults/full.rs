//! Disks that are full: what is below the journal, the volumes, an overlay, everything, of either host.
//!
//! The application is told nothing of it, both hosts say what is wrong, and once there is room all goes on by itself.

use crate::{
    common::{LONG, PROD, Pair, REC, Setup, number, root_for},
    disk::Disk,
    world::{VOLUMES, World, look},
};
use rand::{Rng, rngs::StdRng};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};
use testkit::{
    proc::{Scratch, until},
    with_seeds,
};

/// A pair with a small disk of its own below a folder of one node.
pub fn world(name: &str, folder: &str, bytes: u64) -> (World, Disk) {
    let scratch = Scratch::new(name);
    let disk = Disk::at(&scratch, folder, "ext4", bytes);
    let pair = Pair::stopped_in(scratch, &Setup::volumes(&VOLUMES));
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    (World::new(pair), disk)
}

/// What a full disk looks like from outside: distinct warnings of both hosts while it lasts.
pub type Said = BTreeSet<String>;

pub fn warnings(status: &Value) -> impl Iterator<Item = String> {
    status["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w.as_str().unwrap().to_owned())
}

/// Both hosts are as they should be, by themselves. A window that was cut for room grows back with time.
fn recovers(world: &World, why: &str) {
    until(&format!("{why}: both to be healthy"), LONG, || {
        let is_well = |node: &&str| {
            let status = world.pair.status(node);
            let complains = warnings(&status).any(|w| !w.starts_with("the rollback window is "));
            status["head"]["context"]["peer"]["state"] == "connected"
                && status["node_status"] == 30
                && !complains
        };
        [PROD, REC].iter().all(is_well).then_some(())
    });
}

/// Under load the room goes and comes back; meanwhile both hosts are looked at, and heard.
pub fn fills_for_a_while(world: &mut World, disk: &Disk, why: &str, said: &mut Said, rng: &mut StdRng) {
    let production = world.load.node;
    let lasts = Duration::from_millis(rng.random_range(2500..4000));
    world.under_load(why, rng, |pair, looks| {
        disk.fill();
        let from = Instant::now();
        while from.elapsed() < lasts {
            *looks += 1;
            let look = look(pair, production, why);
            said.extend(warnings(&look.production).chain(warnings(&look.replica)));
            thread::sleep(Duration::from_millis(100));
        }
        disk.free();
    });
}

/// [`fills_for_a_while`], again and again, and both hosts are well each time.
fn fills(name: &str, folder: &str, bytes: u64) -> Said {
    let mut said = Said::new();
    if !root_for("full disks") {
        return said;
    }
    let (mut world, disk) = world(name, folder, bytes);
    with_seeds(name, 1, |rng| {
        for round in 0..crate::factor() {
            let why = format!("{folder}, round {round}");
            fills_for_a_while(&mut world, &disk, &why, &mut said, rng);
            recovers(&world, &why);
            world.settle(&why);
        }
        let views = world.check(rng);
        println!(
            "{folder}: {} looks, {views} views exact, said: {said:#?}",
            world.looks
        );
    });
    said
}

fn says_no_room(said: &Said) {
    assert!(
        said.iter()
            .any(|s| s.contains("no room") || s.contains("receives nothing")),
        "{said:?}"
    );
}

#[test]
fn full_journal_of_production() {
    // Where the peer applies what it receives nothing is stored.
    fills("full-pj", "state/prod/c1/journal", 64 << 20);
}

/// The peer is away, so containers must be stored, and there is no room: they give way to the state map.
#[test]
fn full_journal_of_a_production_alone() {
    if !root_for("full disks") {
        return;
    }
    let (mut world, disk) = world("full-alone", "state/prod/c1/journal", 64 << 20);
    with_seeds("full-alone", 1, |rng| {
        world.load.set_mark(&world.pair);
        world.settle("before");
        world.pair.kill9(REC);
        let why = "the journal is full and the peer away";
        world.under_load(why, rng, |pair, _| {
            disk.fill();
            until("regions to be stale", LONG, || {
                let status = pair.status(PROD);
                (number(&status["stale_bytes"]) > 0 && !status["super_transaction"].is_null()).then_some(())
            });
            thread::sleep(Duration::from_secs(1));
        });
        world.pair.start(REC);
        world.pair.waits(PROD, "resynced");
        disk.free();
        recovers(&world, why);
        // Copies have numbers of their own.
        world.load.follow(&world.pair, PROD);
        let consistent = world.load.head();
        world.under_load(why, rng, |_, _| thread::sleep(Duration::from_millis(500)));
        world.settle(why);
        world.load.disconnect();
        let views = world.views(consistent, 6, rng);
        assert!(views > 0);
        world.pair.drain();
        world.pair.same_files(&VOLUMES.map(|(v, _)| v));
    });
}

#[test]
fn full_volumes_of_production() {
    says_no_room(&fills("full-pv", "state/prod/c1/volumes", 24 << 20));
}

#[test]
fn full_journal_of_the_replica() {
    says_no_room(&fills("full-rj", "state/rec/c1/journal", 256 << 20));
}

#[test]
fn full_volumes_of_the_replica() {
    says_no_room(&fills("full-rv", "state/rec/c1/volumes", 24 << 20));
}

#[test]
fn full_disk_of_production() {
    says_no_room(&fills("full-p", "state/prod", 128 << 20));
}

#[test]
fn full_disk_of_the_replica() {
    says_no_room(&fills("full-r", "state/rec", 256 << 20));
}

/// The disk of the replica is full before the first sync is done: it waits, and goes on.
#[test]
fn full_volumes_of_the_replica_in_a_first_sync() {
    if !root_for("full disks") {
        return;
    }
    let scratch = Scratch::new("full-sync");
    let disk = Disk::at(&scratch, "state/rec/c1/volumes", "ext4", 24 << 20);
    let pair = Pair::stopped_in(scratch, &Setup::volumes(&VOLUMES));
    pair.start(PROD);
    let mut world = World::new(pair);
    with_seeds("full-sync", 1, |rng| {
        world.load.burst(rng, 200);
        world.pair.start(REC);
        disk.fill();
        let why = "a first sync without room";
        until("recovery to say so", LONG, || {
            warnings(&world.pair.status(REC))
                .any(|w| w.contains("no room"))
                .then_some(())
        });
        assert_eq!(world.pair.status(REC)["consistent"], false);
        world.load.burst(rng, 20);
        disk.free();
        world.pair.consistent();
        recovers(&world, why);
        // Copies have numbers of their own.
        world.load.follow(&world.pair, PROD);
        let behind = world.load.head();
        world.load.burst(rng, 50);
        world.settle(why);
        world.load.disconnect();
        world.views(behind, 6, rng);
        world.pair.drain();
        world.pair.same_files(&VOLUMES.map(|(v, _)| v));
    });
}

/// A single container waits for room at the replica's volumes, and a new connection with it: nothing moves behind it that could tell
/// production that it is applied.
#[test]
fn full_disk_under_the_last_container() {
    if !root_for("full disks") {
        return;
    }
    let (mut world, disk) = world("full-last", "state/rec/c1/volumes", 64 << 20);
    with_seeds("full-last", 1, |rng| {
        world.load.burst(rng, 20);
        world.load.set_mark(&world.pair);
        world.settle("before");
        disk.fill();
        world.load.burst(rng, 8);
        world.load.set_mark(&world.pair);
        until("the replica to wait for room", LONG, || {
            let status = world.pair.status(REC);
            warnings(&status).any(|w| w.contains("no room")).then_some(())
        });
        // Whatever looks again by itself has come to rest.
        thread::sleep(Duration::from_secs(3));
        disk.free();
        world.settle("after");
        recovers(&world, "after");
        world.check(rng);
    });
}

/// A restore for which the replica has no room fails part-way and says so; the same command goes on when there is room.
#[test]
fn full_disk_in_a_restore() {
    if !root_for("full disks") {
        return;
    }
    let (mut world, disk) = world("full-restore", "state/rec", 256 << 20);
    with_seeds("full-restore", 1, |rng| {
        world.load.burst(rng, 100);
        let name = world.load.set_mark(&world.pair);
        let there = world.load.head();
        world.load.burst(rng, 500);
        world.load.set_mark(&world.pair);
        world.settle("before");
        let restore = ["scrt_ra", "-qfC", "1", "-F", "--mark", &name];
        let undo = ["scrt_ra", "-qC", "1", "--undo"];
        let mut failed = 0;
        for (command, state) in [(&restore[..], "ROLLED_BACK"), (&undo, "ENABLED")] {
            let (pair, lasts) = (&world.pair, Duration::from_millis(rng.random_range(10..150)));
            let amid = thread::scope(|scope| {
                let running = scope.spawn(|| pair.cli(REC, command));
                thread::sleep(lasts);
                disk.fill();
                running.join().unwrap()
            });
            // Refused at once, stopped part-way, or too late to be of harm; never done and not done.
            let now = world.pair.status(REC)["head"]["context"]["state"].clone();
            println!("{command:?}: {}, {now}", amid.code);
            assert!([0, 1, 3, 4, 75].contains(&amid.code), "{amid:?}");
            assert_eq!(amid.code == 0, now == state, "{amid:?}");
            failed += usize::from(amid.code != 0);
            disk.free();
            let mut last = amid;
            if last.code != 0 {
                until("the same command to be done", LONG, || {
                    last = world.pair.cli(REC, command);
                    [0, 3].contains(&last.code).then_some(())
                });
            }
            if last.code == 3 {
                // For want of room the window gave way, and the point with it, before the restore had begun (K1).
                println!("the point is gone: {}", last.stderr);
                assert_eq!(state, "ROLLED_BACK", "what was begun stays possible: {last:?}");
                break;
            }
            if state == "ROLLED_BACK" {
                world.shows("@restored", there);
            }
        }
        println!("{failed} of 2 were stopped by the full disk");
        recovers(&world, "after a restore");
        world.settle("after a restore");
        world.check(rng);
    });
}

/// Writes to a vdev whose disk is full fail as those to a full disk do; its reads, its snapshot and the replica go on.
#[test]
fn full_disk_of_an_overlay() {
    if !root_for("full disks") {
        return;
    }
    let (mut world, disk) = world("full-overlay", "state/rec/c1/overlay", 16 << 20);
    with_seeds("full-overlay", 1, |rng| {
        world.load.burst(rng, 100);
        let name = world.load.set_mark(&world.pair);
        let there = world.load.head();
        world.settle("before");
        let made = world.pair.json(REC, &["scrt_ra", "-C", "1", "--mark", &name]);
        let level = number(&made["reply"]["snapshot"]["level"]);
        let mut vdev = world.pair.open(REC, &format!("c1/sn{level}/data"));
        vdev.write(0, &[7; 4096], true).unwrap();
        disk.fill();
        let errno = (1..2000u64).find_map(|n| vdev.write(n * 4096, &[8; 4096], true).err());
        let errno = errno.expect("there is no room").errno();
        assert_eq!(errno, Some(28), "ENOSPC");
        assert_eq!(vdev.read(0, 4096).unwrap(), [7; 4096]);
        world.shows(&format!("rsn{level}"), there);
        world.under_load("an overlay without room", rng, |_, _| {
            thread::sleep(Duration::from_millis(500))
        });
        world.settle("an overlay without room");
        disk.free();
        vdev.write(8192, &[9; 4096], true).unwrap();
        assert_eq!(vdev.read(8192, 4096).unwrap(), [9; 4096]);
        drop(vdev);
        world.pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
        world.check(rng);
    });
}
