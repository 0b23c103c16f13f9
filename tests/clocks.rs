//! Real nodes whose clocks are wrong: they step back and forward while the daemons run, and over the end of daylight saving
//! (R6, L5, K1, K2).
//!
//! libfaketime stands between the daemons and the C library. It gives them the wall clock that a file says, read anew at each look, and
//! leaves the monotonic clock alone, as a step of a real clock does.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/load.rs"]
mod load;
#[path = "faults/world.rs"]
mod world;

use common::{LONG, PROD, Pair, REC, Setup, number};
use model::{Timestamp, WriteSeq};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use std::{fs, path::PathBuf, process::Command};
use testkit::{proc::run, with_seeds};
use world::{VOLUMES, World, look};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// How many times as many views a check takes.
fn factor() -> usize {
    1
}

/// Where Debian has it.
fn library() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten().find_map(|entry| {
        let library = entry.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    found.expect("libfaketime is installed: scripts/setup.sh")
}

/// The clock of one node.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn new(pair: &Pair, node: &str) -> Self {
        let file = pair.scratch.join(format!("clock-{node}"));
        let clock = Self { file };
        clock.set(0);
        clock
    }

    /// It goes so many seconds ahead of the true one from now on.
    fn set(&self, ahead: i64) {
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, format!("{ahead:+}\n")).unwrap();
        fs::rename(&fresh, &self.file).unwrap();
    }

    /// Starts the node's daemon with it.
    fn start(&self, pair: &Pair, node: &str) {
        let (library, file) = (library(), &self.file);
        pair.start_with(
            node,
            &[
                ("LD_PRELOAD", library.to_str().unwrap()),
                ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("NO_FAKE_STAT", "1"),
            ],
        );
    }
}

/// Two nodes with clocks of their own, begun so many seconds ahead.
fn world(name: &str, context: &'static str, ahead: i64) -> (World, [Clock; 2]) {
    let setup = Setup {
        context,
        ..Setup::volumes(&VOLUMES)
    };
    let pair = Pair::stopped(name, &setup);
    let clocks = [PROD, REC].map(|node| Clock::new(&pair, node));
    for (clock, node) in clocks.iter().zip([PROD, REC]) {
        clock.set(ahead);
        clock.start(&pair, node);
    }
    pair.consistent();
    (World::new(pair), clocks)
}

fn now() -> i64 {
    i64::try_from(Timestamp::now().seconds()).unwrap()
}

/// Writes and a mark; its record.
fn write(world: &mut World, rng: &mut StdRng) -> (String, WriteSeq) {
    // A step of the clock is a record of its own: what is written behind it has a later number.
    world.load.disconnect();
    world.load.follow(&world.pair, PROD);
    world.load.burst(rng, 12);
    let name = world.load.set_mark(&world.pair);
    (name, world.load.head())
}

/// What both hosts say may be wrong by what their clocks are, and not by more.
fn says_no_nonsense(world: &World, why: &str) {
    let look = look(&world.pair, PROD, why);
    let status = &look.production;
    assert_eq!(number(&status["rpo"]["writes"]), 0, "{why}: {status}");
    assert_eq!(status["rpo"]["seconds"].as_f64(), Some(0.0), "{why}: {status}");
    for said in [&look.production, &look.replica] {
        assert_eq!(
            said["head"]["context"]["peer"]["state"], "connected",
            "{why}: {said}"
        );
        assert_eq!(said["consistent"], true, "{why}: {said}");
    }
    assert_eq!(status["healthy"], true, "{why}: {status}");
}

/// The marks that the replica lists: name, record and time in nanoseconds.
fn marks(world: &World) -> Vec<(String, u64, u64)> {
    let answer = world.pair.json(REC, &["scrt_ra", "-C", "1", "-e"]);
    let marks = answer["reply"]["windows"]["marks"].as_array().unwrap();
    let of = |mark: &Value| {
        let name = mark["name"].as_str().unwrap().to_owned();
        (name, number(&mark["seq"]), number(&mark["time"]["epoch_ns"]))
    };
    marks.iter().map(of).collect()
}

/// The clocks of both hosts jump back and forward, by seconds and by days, under one history: every mark is found, in its place in
/// the order; a time means the records up to it, or is refused with both that it may mean.
#[test]
fn r6_clocks_that_jump_leave_order_points_and_history_as_they_are() {
    let context = "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nrollback_window = \"2h\"\n";
    let (mut world, [prod, rec]) = world("clocks", context, 0);
    with_seeds("clocks", 1, |rng| {
        let mut points: Vec<(String, WriteSeq)> = vec![write(&mut world, rng)];
        let mut steps = vec![-5, -HOUR, 0, 2 * DAY, 0, 40, -30 * DAY, 0, 2];
        for _ in 0..3 {
            steps.push(rng.random_range(-3 * DAY..3 * DAY));
        }
        steps.push(0);
        for (n, ahead) in steps.iter().enumerate() {
            let why = format!("step {n}, {ahead} s ahead");
            // Either host's alone, or both.
            let which = rng.random_range(0..3);
            prod.set(if which == 1 { 0 } else { *ahead });
            rec.set(if which == 0 { 0 } else { *ahead });
            points.push(write(&mut world, rng));
            world.settle(&why);
            says_no_nonsense(&world, &why);
            let (name, seq) = points.choose(rng).unwrap();
            world.shows(&format!("@mark:{name}"), *seq);
        }
        // The daemons start with clocks that were set meanwhile, too.
        for (clock, node, ahead) in [(&prod, PROD, -2 * HOUR), (&rec, REC, DAY)] {
            world.load.disconnect();
            world.pair.kill9(node);
            clock.set(ahead);
            clock.start(&world.pair, node);
            if node == PROD {
                let head = world.pair.cursor(PROD, "appended");
                world.load.settle_killed(head, "started");
            }
            points.push(write(&mut world, rng));
        }
        prod.set(0);
        rec.set(0);
        points.push(write(&mut world, rng));
        world.settle("at the end");
        says_no_nonsense(&world, "at the end");
        // Nothing was thrown away: less than two hours of time have passed, whatever clocks said.
        world.load.disconnect();
        for (name, seq) in &points {
            world.shows(&format!("@mark:{name}"), *seq);
        }
        let listed = marks(&world);
        let (mut met, mut twice, mut future) = (0, 0, 0);
        for (name, seq) in &points {
            let found = listed.iter().find(|(n, ..)| n == name);
            let (_, at, ns) = found.unwrap_or_else(|| panic!("{name} is not listed: {listed:?}"));
            assert_eq!(*at, seq.0, "{name}");
            let target = format!("epoch:{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
            let said = world
                .pair
                .cli(REC, &["scrt_ra", "-nC", "1", "--at", &target, "--json"]);
            let answer: Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
            match said.code {
                0 => {
                    let point = number(&answer["reply"]["plan"]["point"]["seq"]);
                    // The mark, or a later record of the same moment.
                    assert!(point >= seq.0, "{target} is {point}, {name} is {seq}");
                    if world.load.oracle.positions().any(|p| p.0 == point) {
                        world.shows(&format!("@{target}"), WriteSeq(point));
                        met += 1;
                    }
                }
                64 => future += 1,
                _ => {
                    assert_eq!(said.code, 3, "{said:?}");
                    twice += 1;
                }
            }
        }
        assert!(
            twice > 0,
            "{met} times met, none refused over all these steps back"
        );
        println!(
            "{} marks over {} steps of clocks, {met} times met, {twice} refused for two meanings, {future} for the future",
            points.len(),
            steps.len() + 3
        );
        world.check(rng);
    });
}

/// One wrong time server sets the clocks of both hosts forward by a month. The replica's host says so, nothing of a window of two
/// hours goes, also over a restart of its daemon, and once the clocks are right again nothing is left of it.
#[test]
fn k2_both_clocks_set_forward_make_no_point_older() {
    let context = "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nrollback_window = \"2h\"\n";
    let (mut world, [prod, rec]) = world("forward", context, 0);
    let warned = |world: &World| {
        let status = world.pair.status(REC);
        let warnings = status["warnings"].as_array().unwrap().clone();
        warnings
            .iter()
            .any(|w| w.as_str().unwrap().contains("clock was set forward"))
    };
    with_seeds("forward", 1, |rng| {
        let mut points: Vec<(String, WriteSeq)> = vec![write(&mut world, rng)];
        world.settle("before");
        assert!(!warned(&world));
        for clock in [&prod, &rec] {
            clock.set(30 * DAY);
        }
        points.push(write(&mut world, rng));
        world.settle("a month ahead");
        assert!(warned(&world), "{}", world.pair.status(REC));
        world.load.disconnect();
        world.pair.kill9(REC);
        rec.start(&world.pair, REC);
        points.push(write(&mut world, rng));
        world.settle("a month ahead, started again");
        assert!(warned(&world), "{}", world.pair.status(REC));
        for clock in [&prod, &rec] {
            clock.set(0);
        }
        points.push(write(&mut world, rng));
        world.settle("right again");
        assert!(!warned(&world), "{}", world.pair.status(REC));
        world.load.disconnect();
        for (name, seq) in &points {
            world.shows(&format!("@mark:{name}"), *seq);
        }
        world.check(rng);
    });
}

/// Clocks go back from 01:59:59 to 01:00:00 while production writes: a reading of that hour means two moments and is refused with
/// both, an instant is what it says.
#[test]
fn r6_dates_over_the_end_of_daylight_saving() {
    /// 2025-11-02 06:00:00 UTC: New York goes from 02:00 EDT back to 01:00 EST.
    const OVER: i64 = 1_762_063_200;
    let context = "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nrollback_window = \"unlimited\"\n";
    let start = OVER - 40 * 60 - now();
    let (mut world, clocks) = world("daylight", context, start);
    with_seeds("daylight", 1, |rng| {
        let mut at = |when: i64, world: &mut World| {
            for clock in &clocks {
                clock.set(when - now());
            }
            let written = write(world, rng);
            world.settle("over daylight saving");
            says_no_nonsense(world, "over daylight saving");
            written
        };
        // The same reading, 01:30, an hour apart; and one that there was once.
        let first = at(OVER - 30 * 60, &mut world);
        let second = at(OVER + 30 * 60, &mut world);
        let once = at(OVER + 90 * 60, &mut world);
        world.load.disconnect();
        // What is still to come is refused.
        clocks.iter().for_each(|clock| clock.set(OVER + 3 * HOUR - now()));
        let answer = |target: &[&str]| {
            let line = [&["scrt_ra", "-nC", "1", "--tz", "America/New_York"], target].concat();
            world.pair.cli(REC, &line)
        };
        let refused = answer(&["-D", "11/02/25 01:45:00"]);
        assert_eq!(refused.code, 64, "{refused:?}");
        for meant in ["2025-11-02T01:45:00-04:00", "2025-11-02T01:45:00-05:00"] {
            assert!(refused.stderr.contains(meant), "{refused:?}");
        }
        for (target, (name, seq)) in [
            ("2025-11-02T01:45:00-04:00", &first),
            ("2025-11-02T01:45:00-05:00", &second),
            ("11/02/25 02:45:00", &once),
        ] {
            let json = answer(&["-D", target, "--json"]);
            assert_eq!(json.code, 0, "{json:?}");
            let point: Value = serde_json::from_str(json.stdout.lines().last().unwrap()).unwrap();
            let point = number(&point["reply"]["plan"]["point"]["seq"]);
            assert_eq!(point, seq.0, "{target} is {name}");
        }
        for (name, seq) in [&first, &second, &once] {
            world.shows(&format!("@mark:{name}"), *seq);
        }
    });
}

/// What makes the clock wrong works, and leaves the monotonic one alone.
#[test]
fn the_false_clock_is_the_wall_clock_alone() {
    let pair = Pair::stopped("clock", &Setup::volumes(&VOLUMES));
    let clock = Clock::new(&pair, PROD);
    let read = || {
        let mut python = Command::new("python3");
        python
            .args(["-c", "import time;print(int(time.time()),int(time.monotonic()))"])
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &clock.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let said = run(&mut python, LONG).ok();
        let mut numbers = said.split_whitespace().map(|n| n.parse::<i64>().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    };
    let (wall, monotonic) = read();
    clock.set(-DAY);
    let (back, later) = read();
    assert!(back < wall - DAY + HOUR && later >= monotonic && later < monotonic + HOUR);
}
