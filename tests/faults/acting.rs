//! A host that took over by a failover and holds the points from before (rule W2), on a disk that is full.
//!
//! Its volumes cannot be overwritten without undo, and undo needs room. The application waits or goes on, and hears of nothing;
//! what there is of the past is exact or refused; once there is room all goes on by itself.

use crate::{
    common::{LONG, PROD, Pair, REC, number, root_for},
    disk::Disk,
    full::{self, Said, fills_for_a_while, warnings},
    world::{VOLUMES, World},
};
use model::WriteSeq;
use rand::{rngs::StdRng, seq::IndexedRandom};
use testkit::{proc::until, with_seeds};

/// A command that may have to wait for what else goes on, to its end.
fn does(pair: &Pair, node: &str, line: &[&str]) {
    until(&format!("{line:?}"), LONG, || {
        let done = pair.cli(node, line);
        assert!([0, 75].contains(&done.code), "{done:?}");
        (done.code == 0).then_some(())
    });
}

/// Recovery is production, on a disk of its own; production is stopped and waits, or follows.
fn world(name: &str, folder: &str, bytes: u64, followed: bool, rng: &mut StdRng) -> (World, Disk) {
    let (mut world, disk) = full::world(name, folder, bytes);
    for _ in 0..4 {
        world.load.burst(rng, 60);
        world.load.set_mark(&world.pair);
    }
    world.settle("before");
    world.load.disconnect();
    does(&world.pair, PROD, &["rtstop", "-FSC", "1"]);
    does(&world.pair, REC, &["rtdr", "-qC", "1", "failover"]);
    if followed {
        does(&world.pair, PROD, &["rtdr", "-qC", "1", "resync"]);
        does(&world.pair, REC, &["rtdr", "-qC", "1", "resync"]);
        world.pair.waits(REC, "resynced");
    }
    world.load.follow(&world.pair, REC);
    (world, disk)
}

/// The oldest record that recovery can show, or could if it were not production; `None`: it holds none but its newest.
fn oldest(world: &World) -> Option<WriteSeq> {
    let window = world.pair.json(REC, &["scrt_ra", "-C", "1", "-p"]);
    let lines = window["reply"]["windows"]["windows"].as_array().unwrap();
    lines
        .iter()
        .map(|line| WriteSeq(number(&line["oldest"]["seq"])))
        .min()
}

/// Random records behind the oldest that recovery shows: each is exact, or refused as what is gone. How many of those before it
/// took over and behind are exact, and how many are refused.
fn past(world: &World, over: WriteSeq, rng: &mut StdRng) -> (usize, usize, usize) {
    let behind = world.oldest();
    let held: Vec<WriteSeq> = world
        .load
        .oracle
        .positions()
        .filter(|seq| *seq > behind)
        .collect();
    let (mut earlier, mut later, mut refused) = (0, 0, 0);
    let (before, after): (Vec<WriteSeq>, Vec<WriteSeq>) = held.into_iter().partition(|seq| *seq < over);
    for seq in before
        .choose_multiple(rng, 8)
        .chain(after.choose_multiple(rng, 8))
    {
        let at = format!("seq:{}", seq.0);
        let answer = world.pair.cli(REC, &["scrt_ra", "-nC", "1", "--at", &at]);
        match answer.code {
            0 => {
                world.shows(&format!("@{at}"), *seq);
                *(if *seq < over { &mut earlier } else { &mut later }) += 1;
            }
            3 => refused += 1,
            _ => panic!("{answer:?}"),
        }
    }
    (earlier, later, refused)
}

/// Under load the room goes and comes back; in between the daemon is killed once, and starts where there is room again. `keeps`:
/// the journal has a disk of its own, so nothing of the past has to go.
fn fills(name: &str, folder: &str, bytes: u64, followed: bool, keeps: bool) {
    if !root_for("full disks") {
        return;
    }
    with_seeds(name, 1, |rng| {
        let (mut world, disk) = world(name, folder, bytes, followed, rng);
        let mut said = Said::new();
        let over = world.load.head();
        assert!(oldest(&world) < Some(over), "nothing is held from before");
        for round in 0..2 * crate::factor() {
            let why = format!("{folder}, followed: {followed}, round {round}");
            fills_for_a_while(&mut world, &disk, &why, &mut said, rng);
            until(&format!("{why}: it to be well"), LONG, || {
                let status = world.pair.status(REC);
                let complains = warnings(&status)
                    .any(|w| w.contains("no room") || w.contains("poisoned") || w.contains("stopped"));
                (!complains && (!followed || status["node_status"] == 30)).then_some(())
            });
            // Copies, where something gave way, have numbers of their own.
            if followed {
                world.pair.waits(REC, "resynced");
            }
            world.load.disconnect();
            world.load.follow(&world.pair, REC);
            world.serves(&why);
            world.load.burst(rng, 20);
            if round % 2 == 0 {
                world.load.disconnect();
                world.pair.kill9(REC);
                world.pair.start(REC);
                let head = world.pair.cursor(REC, "appended");
                world.load.settle_killed(head, &why);
                world.load.connect(&world.pair);
                world.serves(&why);
            }
        }
        if !followed {
            world.pair.cli(PROD, &["rtdr", "-qC", "1", "resync"]).ok();
            world.pair.cli(REC, &["rtdr", "-qC", "1", "resync"]).ok();
        }
        world.pair.waits(REC, "resynced");
        world.load.disconnect();
        world.load.follow(&world.pair, REC);
        world.serves("at the end");
        world.settle("at the end");
        world.load.disconnect();
        // The past is shown by a replica: home again, and what recovery has of it is held against the oracle.
        let oldest = oldest(&world);
        does(&world.pair, REC, &["rtstop", "-FSC", "2"]);
        does(&world.pair, PROD, &["rtdr", "-qC", "1", "failback"]);
        does(&world.pair, REC, &["rtdr", "-qC", "2", "failback"]);
        world.load.follow(&world.pair, PROD);
        world.settle("home");
        let (earlier, later, refused) = past(&world, over, rng);
        assert!(
            !keeps || (earlier > 0 && refused == 0),
            "there was room for the past: {refused} points are refused"
        );
        world.load.disconnect();
        world.pair.drain();
        world.pair.same_files(&VOLUMES.map(|(v, _)| v));
        println!(
            "{folder}, followed: {followed}: {} looks, over at {over}, held from {oldest:?}, views exact: {earlier} \
             before it, {later} behind, refused: {refused}, said: {:#?}",
            world.looks,
            said.iter().take(3).collect::<Vec<_>>()
        );
    });
}

#[test]
fn full_disk_of_an_acting_production_alone() {
    fills("full-acting", "state/rec", 192 << 20, false, false);
}

#[test]
fn full_disk_of_an_acting_production_that_is_followed() {
    fills("full-acting-f", "state/rec", 192 << 20, true, false);
}

#[test]
fn full_volumes_of_an_acting_production() {
    fills("full-acting-v", "state/rec/c1/volumes", 24 << 20, false, true);
}
