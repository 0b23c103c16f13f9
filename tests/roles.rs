//! Failover, resync and failback between two real nodes: the rules L of the design, each by its counter-example, and the parts
//! of the set of a resync, each alone and all together. Every unit of the volume has a pattern; what it must be at the end is
//! written beside each step.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup};
use testkit::proc::until;

/// Bytes that one step writes: two regions of the state map.
const UNIT: usize = 64 << 10;
/// Units of the volume.
const UNITS: usize = 128;

/// Two nodes, and what the volume must hold.
struct World {
    pair: Pair,
    expected: Vec<u8>,
}

impl World {
    fn new(name: &str) -> Self {
        // Nodes that were down for long ask each other; most of these steps are about nodes that were not.
        Self::with(name, "lfc_size = \"2M\"\non_start_alone = \"serve\"\n")
    }

    fn with(name: &str, context: &'static str) -> Self {
        let setup = Setup {
            volumes: vec![("data", (UNIT * UNITS) as u64)],
            context,
            ..Setup::default()
        };
        let pair = Pair::new(name, &setup);
        pair.consistent();
        Self {
            pair,
            expected: vec![0; UNITS],
        }
    }

    fn ok(&self, node: &str, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let finished = self.pair.cli(node, &args);
        assert_eq!(finished.code, 0, "{finished:?}");
        finished.stdout + &finished.stderr
    }

    fn refused(&self, node: &str, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let finished = self.pair.cli(node, &args);
        assert_eq!(finished.code, 1, "{finished:?}");
        finished.stderr
    }

    /// Writes a unit on a node, flushed; it is to stay.
    fn write(&mut self, node: &str, unit: usize, pattern: u8) {
        self.stray(node, unit, pattern);
        self.expected[unit] = pattern;
    }

    /// Writes a unit on a node, flushed; it is not to stay.
    fn stray(&self, node: &str, unit: usize, pattern: u8) {
        let mut client = self.pair.open(node, "c1/data");
        client
            .write((unit * UNIT) as u64, &[pattern; UNIT], true)
            .unwrap();
    }

    fn holds(&self, node: &str, export: &str, expected: &[u8]) {
        let mut client = self.pair.open(node, export);
        let bytes = client.read(0, (UNIT * UNITS) as u64).unwrap();
        for (unit, pattern) in expected.iter().enumerate() {
            let found = &bytes[unit * UNIT..(unit + 1) * UNIT];
            assert!(
                found.iter().all(|b| b == pattern),
                "{export} on {node}, unit {unit}: {pattern} expected, {} found",
                found[0]
            );
        }
    }

    fn loses_power(&self, node: &str) {
        self.pair.kill9(node);
    }

    /// The peer has everything, durably and applied.
    fn drained(&self) {
        self.pair.waits(PROD, "drained");
    }

    /// Both halves of a resync; answers what production said of the set.
    fn resync(&self) -> String {
        self.ok(PROD, "rtdr -qC 1 resync");
        let said = self.ok(REC, "rtdr -qC 1 resync");
        until("the old production to follow", LONG, || {
            let a = self.pair.status(PROD);
            (a["head"]["context"]["state"] == "ENABLED" && a["consistent"] == true).then_some(())
        });
        self.pair.waits(REC, "drained");
        said
    }

    /// Home again, and both files the same.
    fn home(&mut self) {
        self.ok(REC, "rtumnt -FC2");
        self.ok(REC, "rtstop -FSC2");
        self.ok(PROD, "rtdr -C 1 failback");
        self.ok(REC, "rtdr -C 2 failback");
        self.write(PROD, UNITS - 1, 0xfe);
        self.drained();
        self.has_nothing_to_resync();
        self.holds(PROD, "c1/data", &self.expected);
        self.holds(REC, "c1/data@latest", &self.expected);
        self.pair.drain();
        self.pair.same_files(&["data"]);
    }

    /// A resync that is typed once more, as by a script that was interrupted, is no way to a failover.
    fn has_nothing_to_resync(&self) {
        for node in [PROD, REC] {
            let why = self.refused(node, "rtdr -qC 1 resync");
            assert!(why.contains("there is nothing to resync"), "{why}");
            assert!(why.contains("Hint: backstay status -C 1"), "{why}");
            assert!(!why.contains("rtdr -C 1 failover"), "{why}");
        }
    }

    /// Generations that this host knows.
    fn generations(&self, node: &str) -> usize {
        let all = self.pair.json(node, &["scrt_ra", "-C", "1", "-v"]);
        let lfcs = all["reply"]["windows"]["lfcs"].as_array().unwrap();
        let mut seen: Vec<_> = lfcs.iter().map(|l| l["generation"].as_u64()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len()
    }
}

/// Every part of the set at once: written since the failover, written and never shipped, rolled back, held and never applied, and
/// stale before.
#[test]
fn l1_the_set_has_all_its_parts() {
    let mut world = World::new("l1");
    world.write(PROD, 0, 1);
    world.ok(PROD, "rtmark -C 1 --name good");
    world.drained();
    // Applied, and to be rolled back.
    world.stray(PROD, 1, 2);
    world.drained();
    world
        .pair
        .cli(REC, &["scrt_ra", "-qfC", "1", "-F", "--mark", "good"])
        .ok();
    // Received while rolled back, and never applied.
    world.stray(PROD, 2, 3);
    let head = world.pair.cursor(PROD, "appended");
    until("it to be received", LONG, || {
        (world.pair.cursor(REC, "received") >= head).then_some(())
    });
    world.pair.kill9(REC);
    // Written, and never shipped.
    world.stray(PROD, 3, 4);
    world.loses_power(PROD);
    world.pair.start(REC);
    world.ok(REC, "rtdr -qC 1 failover");
    world.holds(REC, "c1/data", &world.expected);
    // Written since.
    world.write(REC, 4, 5);
    // Declared to differ.
    world.pair.start(PROD);
    world.resync();
    world.write(REC, 5, 6);
    world.pair.waits(REC, "drained");
    world.holds(PROD, "c1/data@latest", &world.expected);
    world.home();
}

/// Nothing was written over there, and everything was there before: nothing is copied, and no generation is left behind.
#[test]
fn l1_over_and_back_without_a_write_leaves_no_trace() {
    let mut world = World::new("l1-idle");
    world.write(PROD, 0, 1);
    world.drained();
    world.ok(PROD, "rtstop -FSC 1");
    world.ok(REC, "rtdr -qC 1 failover");
    world.ok(PROD, "rtdr -qC 1 resync");
    world.ok(REC, "rtdr -qC 1 resync");
    until("the old production to follow", LONG, || {
        let b = world.pair.status(REC);
        (b["head"]["context"]["peer"]["state"] == "connected").then_some(())
    });
    world.ok(REC, "rtstop -SC2");
    world.ok(PROD, "rtdr -C 1 failback");
    world.ok(REC, "rtdr -C 2 failback");
    assert_eq!(world.generations(PROD), 1);
    assert_eq!(world.generations(REC), 1);
    world.write(PROD, 1, 2);
    world.ok(PROD, "rtmark -C 1 --name home");
    world.drained();
    assert_eq!(world.generations(REC), 2, "the first write opens one");
    world.holds(REC, "c1/data@latest", &world.expected);
    world.pair.drain();
    world.pair.same_files(&["data"]);
}

/// The old production returns when the new one's journal of the old line is long gone: the map knows what differs.
#[test]
fn l2_the_old_line_is_needed_no_more_once_the_failover_is_done() {
    let mut world = World::new("l2");
    world.write(PROD, 0, 1);
    world.ok(PROD, "rtmark -C 1 --name good");
    world.drained();
    world.stray(PROD, 1, 2);
    world.drained();
    world.loses_power(PROD);
    world.ok(REC, "scrt_ra -qC 1 -F --mark good");
    world.ok(REC, "rtdr -qC 1 failover");
    let stale = world.pair.status(REC)["stale_bytes"].as_u64().unwrap();
    assert!(stale >= UNIT as u64, "{stale}: what was rolled back is stale");
    // Of the first write, behind which nothing of the old line is asked for.
    world.write(REC, 2, 3);
    world.pair.start(PROD);
    world.resync();
    world.holds(PROD, "c1/data@latest", &world.expected);
    world.home();
}

/// The open container ends where the failover cut it, on this line; that end is what its number means here.
#[test]
fn l3_the_open_container_is_cut() {
    let mut world = World::new("l3");
    world.drained();
    world.write(PROD, 0, 1);
    let head = world.pair.cursor(PROD, "appended");
    until("it to be received", LONG, || {
        (world.pair.cursor(REC, "received") >= head).then_some(())
    });
    world.loses_power(PROD);
    world.ok(REC, "rtdr -qC 1 failover");
    world.write(REC, 1, 2);
    let all = world.pair.json(REC, &["scrt_ra", "-C", "1", "-v"]);
    let cut: Vec<_> = all["reply"]["windows"]["lfcs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|l| l["note"].as_str().unwrap().contains("cut"))
        .map(|l| l["id"].as_u64().unwrap())
        .collect();
    assert_eq!(cut.len(), 1, "{all}");
    world.pair.start(PROD);
    world.resync();
    world.home();
    let point = world.ok(REC, &format!("scrt_ra -nC 1 -t {}", cut[0]));
    assert!(point.contains("was cut short"), "{point}");
}

/// What was shipped and never written back is on the old production's volume before the set is computed.
#[test]
fn l4_the_old_production_plays_its_journal_first() {
    let mut world = World::with("l4", "lfc_size = \"2M\"\non_start_alone = \"refuse\"\n");
    world.write(PROD, 0, 1);
    world.drained();
    for unit in 10..40 {
        world.write(PROD, unit, 7);
    }
    world.drained();
    world.write(PROD, 40, 8);
    let head = world.pair.cursor(PROD, "appended");
    until("it to be received", LONG, || {
        (world.pair.cursor(REC, "received") >= head).then_some(())
    });
    world.loses_power(PROD);
    world.ok(REC, "rtdr -qC 1 failover");
    world.write(REC, 1, 2);
    // Booted, it hears of the other before it starts: nothing has played its journal yet.
    world
        .pair
        .start_with(PROD, &[("BACKSTAY_BOOT_ID", "another-boot")]);
    until("the old production to be fenced", LONG, || {
        (world.pair.status(PROD)["head"]["context"]["state"] == "FENCED").then_some(())
    });
    world.resync();
    world.holds(PROD, "c1/data@latest", &world.expected);
    world.home();
}

/// An old production that comes back serves nothing as soon as it has heard of the new one, and says why and what leads on.
#[test]
fn l6_the_lower_term_is_fenced_at_first_contact() {
    let mut world = World::new("l6");
    world.write(PROD, 0, 1);
    world.drained();
    world.loses_power(PROD);
    world.ok(REC, "rtdr -qC 1 failover");
    // Nobody types the command that fences it; a cluster manager still hears of it.
    let told = world.pair.scratch.join("told");
    let hooks = world.pair.scratch.join("etc/hooks/prod");
    std::fs::create_dir_all(&hooks).unwrap();
    let hook = hooks.join("state-changed");
    let script = format!(
        "#!/bin/sh\necho $BACKSTAY_ROLE $BACKSTAY_STATE $BACKSTAY_TERM >> {}\n",
        told.display()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    world.pair.start(PROD);
    until("the old production to be fenced", LONG, || {
        (world.pair.status(PROD)["head"]["context"]["state"] == "FENCED").then_some(())
    });
    until("the hook to be done", LONG, || {
        (std::fs::read_to_string(&told).unwrap_or_default() == "PRODUCTION FENCED 2\n").then_some(())
    });
    assert!(testkit::nbd::Client::connect(&world.pair.socket(PROD), "c1/data").is_err());
    let why = world.refused(PROD, "rtstart -C 1");
    assert!(why.contains("rtdr -C 1 resync"), "{why}");
    world.write(REC, 1, 2);
    world.resync();
    world.home();
}

/// A connection that is open when its production is fenced is served nothing any more, not even zeroes where nothing was ever
/// written: the host that serves now may have written there.
#[test]
fn l6_an_open_connection_to_a_fenced_production_reads_nothing() {
    let world = World::new("l6-open");
    let mut client = world.pair.open(PROD, "c1/data");
    let hole = (UNIT * (UNITS - 1)) as u64;
    assert_eq!(client.read(hole, UNIT as u64).unwrap(), vec![0; UNIT]);
    world.ok(REC, "rtdr -qfC 1 failover");
    for (what, at, len) in [("a hole", hole, UNIT as u64), ("a block", hole, 4096)] {
        let read = client.read(at, len);
        assert!(read.is_err(), "{what} of a fenced production was read");
    }
    assert!(
        client.write(0, &[1; 4096], true).is_err(),
        "a fenced production was written"
    );
}

/// Equal terms: both stop, and an operator chooses; the loser's data is still there to be looked at.
#[test]
fn l6_at_equal_terms_both_stop_until_an_operator_chooses() {
    let mut world = World::new("l6-equal");
    world.write(PROD, 0, 1);
    world.drained();
    // Two that were forced apart: recovery took over, and production, fenced, was taken back while they could not meet.
    world.loses_power(PROD);
    world.ok(REC, "rtdr -qC 1 failover");
    world.pair.kill9(REC);
    world.pair.start(PROD);
    let row = world.pair.status(PROD);
    assert_eq!(
        row["head"]["context"]["state"], "ENABLED",
        "it serves alone, as it was told to"
    );
    world.write(PROD, 1, 9);
    world.pair.start(REC);
    until("the lower term to be fenced", LONG, || {
        (world.pair.status(PROD)["head"]["context"]["state"] == "FENCED").then_some(())
    });
    // The operator wants what was written at home.
    world.ok(PROD, "rtdr -qfC 1 failover");
    until("the other to be fenced", LONG, || {
        (world.pair.status(REC)["head"]["context"]["state"] == "FENCED").then_some(())
    });
    world.holds(PROD, "c1/data", &world.expected);
    world.ok(REC, "rtdr -qC 1 resync");
    world.ok(PROD, "rtdr -qC 1 resync");
    world.pair.waits(PROD, "drained");
    world.holds(REC, "c1/data@latest", &world.expected);
    world.pair.drain();
    world.pair.same_files(&["data"]);
}

/// A production that has taken its role back holds no earlier points; its peer does.
#[test]
fn l8_a_production_drops_the_points_that_its_peer_holds_too() {
    let mut world = World::new("l8");
    world.write(PROD, 0, 1);
    world.ok(PROD, "rtmark -C 1 --name before");
    let before = world.expected.clone();
    world.drained();
    world.ok(PROD, "rtstop -FSC 1");
    world.ok(REC, "rtdr -qC 1 failover");
    world.write(REC, 1, 2);
    world.resync();
    world.ok(REC, "rtmark -C 1 --name over-there");
    let there = world.expected.clone();
    world.home();
    world.ok(PROD, "rtstart -C 1");
    let windows = world.pair.json(PROD, &["scrt_ra", "-C", "1", "-p"]);
    assert_eq!(
        windows["reply"]["windows"]["windows"].as_array().map(Vec::len),
        Some(0),
        "{windows}"
    );
    world.holds(REC, "c1/data@mark:before", &before);
    world.holds(REC, "c1/data@mark:over-there", &there);
}

/// What the old production had and nobody else is replaced by the resync, and stays readable there as a line of its own.
#[test]
fn what_gave_way_can_still_be_looked_at() {
    let mut world = World::new("gave-way");
    world.write(PROD, 0, 1);
    world.drained();
    world.pair.kill9(REC);
    let mut lost = world.expected.clone();
    world.stray(PROD, 1, 9);
    lost[1] = 9;
    world.loses_power(PROD);
    world.pair.start(REC);
    world.ok(REC, "rtdr -qC 1 failover");
    world.write(REC, 2, 3);
    world.pair.start(PROD);
    world.resync();
    world.holds(PROD, "c1/data@latest", &world.expected);
    world.holds(PROD, "c1/data@g1:latest", &lost);
    world.home();
}

/// Both hosts were written. What the loser alone has is listed before anybody says yes, region by region, and is there
/// afterwards; nothing is overwritten while nobody has chosen.
#[test]
fn unify_says_what_is_lost_and_keeps_it() {
    let mut world = World::new("unify");
    world.write(PROD, 0, 1);
    world.drained();
    world.pair.kill9(REC);
    let mut lost = world.expected.clone();
    for unit in [1, 2, 9] {
        world.stray(PROD, unit, 9);
        lost[unit] = 9;
    }
    world.loses_power(PROD);
    world.pair.start(REC);
    world.ok(REC, "rtdr -qC 1 failover");
    world.write(REC, 2, 3);
    world.pair.start(PROD);
    until("the old production to be fenced", LONG, || {
        (world.pair.status(PROD)["head"]["context"]["state"] == "FENCED").then_some(())
    });
    const UNIFY: &str = "map unify -C 1 --master rec";
    // On the host that is to win nothing can be lost, and nothing is known of what would be.
    let there = world.refused(REC, UNIFY);
    assert!(there.contains(&format!("backstay {UNIFY}")), "{there}");
    let plan = world
        .pair
        .json(PROD, &["map", "unify", "-nC", "1", "--master", "rec"]);
    let plan = &plan["reply"]["plan"]["lost"];
    assert_eq!(plan[0]["bytes"], 3 * UNIT, "{plan}");
    assert_eq!(plan[0]["runs"], serde_json::json!([[2, 5], [18, 19]]), "{plan}");
    assert_eq!(
        *plan,
        world.pair.json(PROD, &["rtdr", "-nC", "1", "resync"])["reply"]["plan"]["lost"],
        "a resync gives up the same"
    );
    let no = world
        .pair
        .cli_with(PROD, &["map", "unify", "-C", "1", "--master", "rec"], "n\n");
    assert!(no.code == 1 && no.stderr.contains("Nothing changed."), "{no:?}");
    assert!(no.stderr.contains("196608 bytes in 2 runs of regions"), "{no:?}");
    assert_eq!(world.pair.status(PROD)["head"]["context"]["state"], "FENCED");
    let done = world.ok(PROD, "map unify -qC 1 --master rec");
    assert!(done.contains("The maps as they were: "), "{done}");
    world.pair.waits(REC, "drained");
    world.holds(PROD, "c1/data@latest", &world.expected);
    world.holds(PROD, "c1/data@g1:latest", &lost);
    world.ok(PROD, "map unify -qC 1 --master rec");
    world.home();
}
