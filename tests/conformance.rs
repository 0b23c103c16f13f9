//! What every command keeps, with two real nodes: a walk of lines, each first as a dry run, then as it is.
//!
//! The letters, the dead daemon and the missing context are in `cli/src/tests/conformance.rs`; wrong commands at every state of
//! the roles in `wrong_order`; what each command does in its own test.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup};
use serde_json::Value;
use std::collections::BTreeSet;
use testkit::proc::{Finished, Pty, until};

const VOLUMES: [(&str, u64); 2] = [("data", 1 << 20), ("log", 256 << 10)];

/// A line on a node and its exit code, in an order in which they can be typed. A code that is not 0 changes nothing.
const WALK: &[(&str, &str, i32)] = &[
    (PROD, "rtmark -C 1 --name a", 0),
    (PROD, "rtmark -C 1 --name b --keep 30d --no-sync", 0),
    (PROD, "rtmark -C 1 --list", 0),
    (REC, "rtmark -C 1 --name x", 1),
    (PROD, "probe -C 1", 0),
    (REC, "probe -C 1", 1),
    (PROD, "verify -C 1", 0),
    (PROD, "verify -C 2 --repair --sample 1", 0),
    (PROD, "verify -C 1 --sample 0", 64),
    (REC, "verify -C 1", 1),
    (PROD, "wait -C 1 --until drained", 0),
    (REC, "wait -C 1 --until drained", 1),
    (REC, "wait -C 1 --until mark=a", 0),
    (PROD, "wait -C 1 --until mark=never --timeout 0", 75),
    (REC, "scrt_ra -C 1 -X", 0),
    (REC, "scrt_ra -C 1 --mark a --name eod", 0),
    (REC, "scrt_ra -C 1 --mark none", 3),
    (REC, "scrt_ra -C 1 --mark a --name sp@ce", 64),
    (REC, "scrt_ra -C 1 -vpe", 0),
    (REC, "pins -C 1", 0),
    (REC, "pins -C 1 --release 99", 1),
    (REC, "rtmnt -C 1 --level 99", 1),
    (REC, "rtumnt -C 1", 0),
    (REC, "rtumnt -C 1 -F", 64),
    (PROD, "scrt_ra -C 1 -X", 1),
    (REC, "scrt_ra -C 1 -W --level 99", 1),
    (REC, "scrt_ra -C 1 -W", 0),
    (REC, "scrt_ra -C 1 -W --all", 0),
    (PROD, "map view -C 1", 0),
    (PROD, "map dump -C 1", 0),
    (PROD, "map clean -C 1 -q", 1),
    (PROD, "map unify -C 1 --master prod -q", 1),
    (REC, "scconfig -C 1 -M -q", 1),
    (PROD, "scconfig -C 1 -M -L data -q --wait", 0),
    (PROD, "scconfig -C 1 -B -q", 64),
    (PROD, "protect -C 1 more=1M", 1),
    (PROD, "protect -C 5 more=1M --fs vfat", 64),
    (PROD, "protect -C 5 more=1M", 0),
    (REC, "rtdr -C 1 -F 2 setup", 0),
    (PROD, "rtdr -C 1 -F 9 -s elsewhere setup", 64),
    (PROD, "rtdr -C 1 failover", 1),
    (REC, "rtdr -C 1 failback", 0),
    (REC, "rtdr -C 1 failover -q", 1),
    (REC, "rtdr -C 1 failover -q -f --expect-term 9", 1),
    (REC, "jobs", 0),
    (REC, "jobs show 99", 1),
    (REC, "jobs cancel 99", 1),
    (REC, "log -C 1", 0),
    (REC, "log -C 1 --limit 9999", 64),
    (REC, "scrt_ra -C 1 -F --mark a -q", 1),
    (REC, "grow -C 1 -L data --size 64M", 1),
    (PROD, "grow -C 1 -L data --size 512K", 1),
    (PROD, "grow -C 1 -L none --size 64M", 64),
    (PROD, "grow -C 1 -L data --size 12M -q --wait", 0),
    (PROD, "extend_replica_lv -C 1 -L data --size 12M", 0),
    (PROD, "rtstop -C 1 -S", 0),
    (PROD, "rtstop -C 1 -S", 0),
    (PROD, "rtmark -C 1 --name x", 1),
    (REC, "scrt_ra -C 1 -F --mark a -q", 0),
    (REC, "scrt_ra -C 1 -F --latest -q", 1),
    (REC, "scrt_ra -C 1 --undo -q", 0),
    (REC, "scrt_ra -C 1 --undo -q", 1),
    (PROD, "rtstart -C 1", 0),
    (REC, "rtstop -C 1", 0),
    (REC, "rtstart -C 1 --wait", 0),
    (REC, "rtdr -C 1 failover -q -f", 0),
    (REC, "rtdr -C 1 failover -q", 0),
    (REC, "rtdr -C 1 failback -q", 1),
    (PROD, "rtdr -C 1 resync -q", 0),
    (REC, "rtdr -C 1 resync -q --wait", 0),
    (PROD, "status -C 1", 0),
    (REC, "rtstop -C 1 -S", 0),
    (PROD, "rtdr -C 1 failback", 0),
    (REC, "rtdr -C 1 failback", 0),
];

/// Commands of this version that have no line in the walk, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("init", "no daemon: tests/commands.rs"),
    ("links", "no daemon: tests/commands.rs"),
    ("serve", "the daemon itself"),
    ("attach-helper", "beside the daemon: tests/helper.rs"),
    ("fsck-journal", "of a stopped node: tests/offline"),
    ("dump", "of a stopped node: tests/offline"),
    ("salvage", "of a stopped node: tests/offline"),
    ("nbd", "a client's own server, which relays: tests/activation.rs"),
];

fn typed(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// What a command may change: everything durable that commands show, on both hosts.
fn state(pair: &Pair) -> Vec<Value> {
    let of = |node| {
        let s = pair.status(node);
        let mut parts: Vec<Value> = ["snapshots", "restored", "stopped"]
            .iter()
            .map(|m| s[*m].clone())
            .collect();
        let head = &s["head"]["context"];
        parts.extend(["role", "state", "term", "failover_id"].map(|m| head[m].clone()));
        parts.extend(["appended", "received", "applied"].map(|c| s["cursors"][c].clone()));
        for look in [
            &["rtmark", "-C", "1", "--list"] as &[&str],
            &["pins", "-C", "1"],
            &["map", "dump", "-C", "1"],
        ] {
            parts.push(pair.json(node, look)["reply"].clone());
        }
        parts
    };
    [PROD, REC].into_iter().flat_map(of).collect()
}

/// Lines of the log of both hosts.
fn logged(pair: &Pair) -> usize {
    let log = pair.json(PROD, &["log", "-C", "1"]);
    log["reply"]["log"]["entries"].as_array().unwrap().len()
}

/// What has begun is complete, so that nothing moves by itself.
fn at_rest(pair: &Pair) -> Vec<Value> {
    let mut before = state(pair);
    until("everything to be at rest", LONG, || {
        let now = state(pair);
        let same = now == before;
        before = now;
        same.then(|| before.clone())
    })
}

/// Nothing that only a terminal understands, and nothing wrapped or half written.
#[track_caller]
fn is_plain(f: &Finished) {
    for text in [&f.stdout, &f.stderr] {
        let odd = text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(odd, None, "{f:?}");
        assert!(text.is_empty() || text.ends_with('\n'), "{f:?}");
    }
}

/// One object, whatever came of it.
#[track_caller]
fn object(f: &Finished) -> Value {
    assert_eq!(f.stdout.lines().count(), 1, "{f:?}");
    let object: Value = serde_json::from_str(&f.stdout).unwrap_or_else(|e| panic!("{f:?}: {e}"));
    assert_eq!(
        (&object["schema"], &object["code"]),
        (&1.into(), &f.code.into()),
        "{f:?}"
    );
    let failed = ![0, 2].contains(&f.code);
    assert_eq!(object["error"].is_string(), failed, "{f:?}");
    assert_eq!(object["reply"].is_object(), !failed, "{f:?}");
    for member in ["command", "head", "next"] {
        assert!(object.get(member).is_some(), "{member}: {f:?}");
    }
    object
}

#[test]
fn every_line_is_the_same_as_a_dry_run_for_people_and_for_programs() {
    let pair = Pair::new("conforms", &Setup::volumes(&VOLUMES));
    let mut seen = BTreeSet::new();
    // As the line before has left it, where that changed nothing.
    let mut known = None;
    for (node, line, code) in WALK {
        let args = typed(line);
        let name = cli::names::find(args[0]).unwrap();
        seen.insert(name.short);
        let before = known.take().unwrap_or_else(|| at_rest(&pair));
        let lines = logged(&pair);
        // The dry run: as the command would exit, nothing changed, nothing logged.
        let dry = pair.cli(node, &[&args[..], &["-n"]].concat());
        assert_eq!(dry.code, *code, "{line} -n: {dry:?}");
        is_plain(&dry);
        let dry = pair.cli(node, &[&args[..], &["-n", "--json"]].concat());
        assert_eq!(dry.code, *code, "{line} -n --json: {dry:?}");
        object(&dry);
        assert_eq!(
            (state(&pair), logged(&pair)),
            (before.clone(), lines),
            "{line} -n"
        );
        // The command itself, for a program where it can be typed twice.
        if *code != 0 {
            let failed = pair.cli(node, &args);
            assert_eq!(failed.code, *code, "{line}: {failed:?}");
            is_plain(&failed);
            assert!(failed.stderr.contains("Error: "), "{failed:?}");
            // A failure changes nothing but the log.
            assert_eq!(state(&pair), before, "{line}");
            let machine = pair.cli(node, &[&args[..], &["--json"]].concat());
            assert_eq!(machine.code, *code, "{line}: {machine:?}");
            let object = object(&machine);
            assert!(
                machine.stderr.lines().all(|l| !l.starts_with("Error: ")),
                "{machine:?}"
            );
            for member in [
                "caused_by",
                "hint",
                "hint_command",
                "hint_host",
                "nearest",
                "window",
                "holders",
            ] {
                assert!(object.get(member).is_some(), "{member}: {object}");
            }
            known = Some(before);
        } else {
            let done = pair.cli(node, &args);
            assert_eq!(done.code, *code, "{line}: {done:?}");
            is_plain(&done);
            assert!(!done.stderr.contains("Error: "), "{done:?}");
        }
        if line.starts_with("rtstart") || line.contains("failback") {
            until("the hosts to meet", LONG, || {
                let connected = |n| pair.status(n)["head"]["context"]["peer"]["state"] == "connected";
                let stopped = |n| pair.status(n)["head"]["context"]["state"] != "ENABLED";
                ([PROD, REC].into_iter().any(stopped) || [PROD, REC].into_iter().all(connected)).then_some(())
            });
        }
    }
    for name in cli::names::ALL.iter().filter(|n| n.built) {
        let elsewhere = ELSEWHERE.iter().any(|(short, _)| *short == name.short);
        assert_ne!(seen.contains(name.short), elsewhere, "{}", name.short);
    }
}

#[test]
fn an_unknown_context_is_refused_with_those_there_are() {
    let pair = Pair::new("unknown", &Setup::volumes(&[("data", 1 << 20)]));
    let lines: BTreeSet<_> = WALK
        .iter()
        .filter(|(_, _, code)| *code != 64)
        .map(|(_, line, _)| *line)
        .collect();
    for line in lines {
        if !line.contains("-C 1") || line.starts_with("protect") {
            continue;
        }
        let line = line.replace("-C 1", "-C 7");
        for node in [PROD, REC] {
            let refused = pair.cli(node, &typed(&line));
            assert_eq!(refused.code, 1, "{line}: {refused:?}");
            let says = "context 7 is not on this node; it has 1";
            assert!(refused.stderr.contains(says), "{line}: {refused:?}");
            assert_eq!(refused.stdout, "", "{refused:?}");
        }
    }
}

#[test]
fn without_a_terminal_and_without_an_answer_nothing_is_done() {
    let pair = Pair::new("no-answer", &Setup::volumes(&VOLUMES));
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "a"]).ok();
    pair.waits(REC, "mark=a");
    let asks = |node: &str, line: &str| {
        let before = at_rest(&pair);
        let refused = pair.cli(node, &typed(line));
        assert_eq!(refused.code, 1, "{line}: {refused:?}");
        assert!(
            refused.stderr.contains("[y|n]") && refused.stderr.ends_with("Nothing changed.\n"),
            "{refused:?}"
        );
        assert_eq!(refused.stdout, "", "{refused:?}");
        assert_eq!(at_rest(&pair), before, "{line}");
    };
    asks(PROD, "scconfig -C 1 -M");
    asks(PROD, "scconfig -C 1 -B -G");
    asks(REC, "rtdr -C 1 failover -f");
    asks(REC, "scrt_ra -C 1 -F --mark a -f");
    pair.cli(REC, &["rtdr", "-C", "1", "failover", "-q", "-f"]).ok();
    asks(PROD, "rtdr -C 1 resync");
}

#[test]
fn on_a_terminal_nothing_is_coloured_and_status_fits_it() {
    let pair = Pair::new("terminal", &Setup::volumes(&VOLUMES));
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "a"]).ok();
    for no_color in [false, true] {
        for columns in [80, 40] {
            for (node, line) in [
                (PROD, "status -C 1"),
                (REC, "status"),
                (REC, "jobs"),
                (REC, "scrt_ra -C 1 -vpe"),
                (PROD, "wait -C 1 --until mark=never --timeout 1"),
                (REC, "rtmnt -C 7"),
            ] {
                let mut command = pair.command(node, &typed(line));
                if no_color {
                    command.env("NO_COLOR", "1");
                }
                let (shown, _) = Pty::sized(&command, columns).converse("[y|n]", "n", LONG);
                let text = &shown.stdout;
                for colour in ["\x1b[3", "\x1b[1m", "\x1b[9", "\x1b[38"] {
                    assert!(!text.contains(colour), "{line}: {text:?}");
                }
                if line.starts_with("status") {
                    assert!(
                        text.lines().all(|l| l.chars().count() <= usize::from(columns)),
                        "{text}"
                    );
                    assert!(text.lines().count() <= 24, "{text}");
                    assert!(
                        text.starts_with("HEALTHY") || text.starts_with("NOT HEALTHY"),
                        "{text}"
                    );
                }
            }
        }
    }
}
