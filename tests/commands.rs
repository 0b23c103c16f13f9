//! Every built command against real nodes: first line, `Next:`, exit codes, JSON, refusals and their hints.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number, program};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};
use testkit::proc::{Finished, run, until};

const VOLUMES: [(&str, u64); 2] = [("data", 8 << 20), ("log", (2 << 20) + 512)];

/// A pair with a little history: three marks with writes between them.
fn with_history(name: &str) -> Pair {
    let pair = Pair::new(name, &Setup::volumes(&VOLUMES));
    let mut client = pair.open(PROD, "c1/data");
    for n in 0..3_u8 {
        client.write(u64::from(n) * 4096, &[n + 1; 4096], false).unwrap();
        pair.cli(PROD, &["rtmark", "-C", "1", "--name", &format!("m{n}")])
            .ok();
    }
    client.disconnect().unwrap();
    let head = pair.received();
    pair.waits(PROD, &format!("applied={head}"));
    until("the client to be gone", LONG, || {
        (pair.status(PROD)["volumes"][0]["open"] == false).then_some(())
    });
    pair
}

/// The first line: node, context, role.
fn head(node: &str) -> String {
    let role = if node == PROD { "PRODUCTION" } else { "REPLICA" };
    format!("{node} · context 1 (failover 2) · {role}")
}

/// Asserts what holds for every command, typed once for people and once with `--json`.
#[track_caller]
fn conforms(pair: &Pair, node: &str, args: &[&str], code: i32) -> (Finished, Value) {
    let person = pair.cli(node, args);
    assert_eq!(person.code, code, "{person:?}");
    let (out, err) = (&person.stdout, &person.stderr);
    let heard = format!("{err}{out}");
    let known = !args.contains(&"5") && !args.contains(&"7");
    if args[0] != "pins" && known && ![64, 69].contains(&code) {
        let first = if args[0] == "status" { out } else { err };
        let first = first.lines().next().unwrap_or_default();
        assert!(first.contains(&head(node)), "the first line of {person:?}");
    }
    let next = |l: &&str| l.starts_with("Next: ") && l.contains("   on ");
    if let Some(line) = heard.lines().find(|l| l.starts_with("Next: ")) {
        assert!(next(&line), "{line}");
        let last = [err, out].map(|t| t.lines().last().unwrap_or_default());
        assert!(last.iter().any(next), "Next: stands last: {person:?}");
    }
    if code != 0 && code != 2 {
        assert!(err.contains("Error: "), "{person:?}");
    }

    let mut with_json = args.to_vec();
    with_json.push("--json");
    let machine = pair.cli(node, &with_json);
    assert_eq!(machine.code, code, "{machine:?}");
    let objects: Vec<&str> = machine.stdout.lines().filter(|l| l.starts_with('{')).collect();
    assert_eq!(objects.len(), 1, "one object: {machine:?}");
    assert_eq!(machine.stdout.lines().last(), Some(objects[0]), "{machine:?}");
    let object: Value = serde_json::from_str(objects[0]).unwrap();
    assert_eq!(object["schema"], 1, "{object}");
    assert_eq!(object["code"], code, "{object}");
    if code == 0 || code == 2 {
        assert!(
            object["reply"].is_object() && object.get("error").is_none(),
            "{object}"
        );
    } else {
        assert!(object["error"].is_string(), "{object}");
        for member in ["hint_command", "hint_host"] {
            assert!(object.get(member).is_some(), "{member}: {object}");
        }
    }
    (person, object)
}

/// What a command may change: everything durable that commands show.
fn state(pair: &Pair) -> Vec<Value> {
    let of = |node| {
        let s = pair.status(node);
        let members = ["head", "snapshots", "restored", "stopped"];
        let mut parts: Vec<Value> = members.iter().map(|m| s[*m].clone()).collect();
        // Not those that move by themselves, as checkpoints do.
        parts.extend(["appended", "received", "applied"].map(|c| s["cursors"][c].clone()));
        parts.push(pair.json(node, &["rtmark", "-C", "1", "--list"])["reply"].clone());
        parts.push(pair.json(node, &["pins", "-C", "1"])["reply"].clone());
        parts
    };
    [PROD, REC].into_iter().flat_map(of).collect()
}

#[test]
fn every_command_keeps_the_rules() {
    let pair = with_history("rules");
    for (node, args) in [
        (PROD, &["status", "-C", "1"] as &[&str]),
        (REC, &["status"]),
        (PROD, &["rtmark", "-C1", "--list"]),
        (REC, &["rtmark", "-C", "2", "--list"]),
        (PROD, &["probe", "-C", "1"]),
        (PROD, &["wait", "-C", "1", "--until", "drained"]),
        (REC, &["wait", "-C", "1", "--until", "mark=m1"]),
        (PROD, &["wait", "-C", "1", "--until", "resynced"]),
        (REC, &["scrt_ra", "-C", "1", "-vpe"]),
        (REC, &["scrt_ra", "-C", "1", "-p"]),
        (REC, &["scrt_ra", "-C", "1", "-e", "--limit", "1"]),
        (PROD, &["scrt_ra", "-C", "1", "-vpe"]),
        (REC, &["scrt_ra", "-C1", "-X"]),
        (REC, &["scrt_ra", "-C", "2", "--mark", "m1"]),
        (REC, &["pins", "-C", "1"]),
        (REC, &["scrt_ra", "-C", "1", "-W"]),
        (PROD, &["rtumnt", "-C", "1"]),
        (REC, &["rtumnt", "-C", "1"]),
        (PROD, &["rtstop", "-FSC1"]),
        (REC, &["scrt_ra", "-C", "1", "-F", "--mark", "m1", "-q"]),
        (REC, &["scrt_ra", "-C", "1", "--at", "restored"]),
        (PROD, &["rtstart", "-C", "1"]),
        (REC, &["rtstop", "-C", "1"]),
        (REC, &["rtstart", "-C", "1"]),
    ] {
        conforms(&pair, node, args, 0);
        // Back at once: the peer reconnects in its own time.
        if args[0] == "rtstart" {
            until("the peer", LONG, || {
                (pair.status(PROD)["head"]["context"]["peer"]["state"] == "connected").then_some(())
            });
        }
    }
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W", "--all"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "--undo", "-q"]).ok();
    // Nothing to take back any more.
    conforms(&pair, REC, &["scrt_ra", "-C", "1", "--undo", "-q"], 1);
    conforms(&pair, PROD, &["rtmark", "-C", "1", "--name", "once"], 0);
}

#[test]
fn refusals_name_the_way_out() {
    let pair = with_history("refusals");
    let wrong_host = |node, args: &[&str], command: &str| {
        let (person, object) = conforms(&pair, node, args, 1);
        let other = if node == PROD { REC } else { PROD };
        assert_eq!(object["hint_host"], other, "{object}");
        assert_eq!(object["hint_command"], command, "{object}");
        assert!(
            person.stderr.contains(&format!("{command}   on {other}")),
            "{person:?}"
        );
    };
    wrong_host(PROD, &["scrt_ra", "-C", "1", "-X"], "scrt_ra -C 1 -X");
    // The same command there means the same: its target goes along.
    wrong_host(
        PROD,
        &["scrt_ra", "-C", "1", "--mark", "m1", "--name", "n"],
        "scrt_ra -C 1 --at mark:m1 --name n",
    );
    wrong_host(
        PROD,
        &["scrt_ra", "-C", "1", "-F", "-t", "4", "-L", "data", "-q"],
        "scrt_ra -C 1 -F --at lfc:4 -L data",
    );
    wrong_host(PROD, &["scrt_ra", "-C", "1", "-W"], "scrt_ra -C 1 -W");
    wrong_host(
        PROD,
        &["scrt_ra", "-C", "1", "--undo", "-q"],
        "scrt_ra -C 1 --undo",
    );
    wrong_host(REC, &["rtmark", "-C", "1", "--name", "x"], "rtmark -C 1 --name x");
    wrong_host(REC, &["probe", "-C", "1"], "backstay probe -C 1");

    // The undo container between two redo containers.
    let list = pair.json(REC, &["scrt_ra", "-C", "1", "-v"]);
    let newest = number(&list["reply"]["windows"]["lfcs"][0]["id"]);
    let odd = (newest - 1).to_string();
    for act in [&["-t", &odd] as &[&str], &["-F", "-q", "-t", &odd]] {
        let args: Vec<&str> = ["scrt_ra", "-C", "1"]
            .into_iter()
            .chain(act.iter().copied())
            .collect();
        let (_, object) = conforms(&pair, REC, &args, 3);
        let error = object["error"].as_str().unwrap();
        assert!(
            error.contains(&(newest - 2).to_string()) && error.contains(&newest.to_string()),
            "{error}"
        );
    }
    // Outside the window: the nearest points and the window.
    let head = pair.cursor(PROD, "appended").0;
    let beyond = format!("seq:{}", head + 100);
    for target in [
        &["--at", &beyond] as &[&str],
        &["--seq", "1"],
        &["-S", "1000000"],
        &["--ago", "300d"],
    ] {
        let args: Vec<&str> = ["scrt_ra", "-C", "1"]
            .into_iter()
            .chain(target.iter().copied())
            .collect();
        let (person, object) = conforms(&pair, REC, &args, 3);
        let near = &object["nearest"][0];
        assert!(
            number(&near["point"]["seq"]) > 0 && object["window"].is_object(),
            "{object}"
        );
        assert!(person.stderr.contains("Rollback window"), "{person:?}");
        // The nearest point is one that can be had.
        pair.cli(
            REC,
            &[
                "scrt_ra",
                "-C",
                "1",
                "-n",
                "--at",
                near["target"].as_str().unwrap(),
            ],
        )
        .ok();
    }
    let (_, object) = conforms(&pair, REC, &["scrt_ra", "-C", "1", "--mark", "none"], 3);
    assert!(
        object["hint"].as_str().unwrap_or_default().contains("m1"),
        "{object}"
    );
    // Production runs: not restored under its feet.
    let (_, object) = conforms(&pair, REC, &["scrt_ra", "-C", "1", "-F", "--mark", "m1", "-q"], 1);
    assert_eq!(
        (&object["hint_command"], &object["hint_host"]),
        (&"rtstop -FSC 1".into(), &PROD.into())
    );
    conforms(&pair, REC, &["scrt_ra", "-C", "1", "-X", "--expect-term", "9"], 1);
    conforms(&pair, REC, &["scrt_ra", "-C", "7", "-X"], 1);
    conforms(&pair, REC, &["scrt_ra", "-C", "1", "-W", "--level", "77"], 1);
    conforms(&pair, REC, &["rtmnt", "-C", "1"], 1);
    conforms(&pair, PROD, &["protect", "-C", "1", "more=1M"], 1);
    // Open volumes and snapshots: the holders are named, nothing happens.
    let open = pair.open(PROD, "c1/data");
    let (_, object) = conforms(&pair, PROD, &["rtstop", "-C", "1"], 1);
    assert!(object["holders"][0].as_str().unwrap().contains("NBD"), "{object}");
    drop(open);
    let made = pair.json(REC, &["scrt_ra", "-C", "1", "-X"]);
    let level = number(&made["reply"]["snapshot"]["level"]);
    let open = pair.open(REC, &format!("c1/sn{level}/data"));
    let (_, object) = conforms(&pair, REC, &["scrt_ra", "-C", "1", "-W"], 1);
    assert!(
        object["holders"][0]
            .as_str()
            .unwrap()
            .contains(&level.to_string()),
        "{object}"
    );
    drop(open);
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
}

#[test]
fn usage_is_64_and_changes_nothing() {
    let pair = with_history("usage");
    let before = state(&pair);
    for (node, args) in [
        (REC, &["scrt_ra", "-X"] as &[&str]),
        (REC, &["scrt_ra", "-C", "1", "-X", "-W"]),
        (REC, &["scrt_ra", "-C", "1", "--mark", "m1", "--seq", "5"]),
        (REC, &["scrt_ra", "-C", "1", "-F"]),
        (REC, &["scrt_ra", "-C", "1", "-D", "01/01/99 00:00:00 nonsense"]),
        (REC, &["scrt_ra", "-C", "1", "-D", "2068-01-01T00:00:00Z"]),
        (REC, &["scrt_ra", "-C", "1", "-S", "3000000000"]),
        (REC, &["scrt_ra", "-C", "1", "--at", "someday"]),
        (REC, &["scrt_ra", "-C", "1", "--no-such-letter"]),
        (REC, &["scrt_ra", "-C", "1", "-X", "--tz", "Mars/Olympus"]),
        (PROD, &["rtmark", "-C", "1"]),
        (PROD, &["rtmark", "-C", "1", "--name", ""]),
        (PROD, &["protect", "-C", "5"]),
        (PROD, &["protect", "-C", "5", "data=1M", "--fs", "vfat"]),
        (PROD, &["wait", "-C", "1", "--until", "doomsday"]),
        (REC, &["rtumnt", "-F", "-C", "1"]),
    ] {
        conforms(&pair, node, args, 64);
    }
    assert_eq!(state(&pair), before);
}

#[test]
fn dry_runs_change_nothing_and_exit_as_the_command_would() {
    let pair = with_history("dry");
    let level = pair.json(REC, &["scrt_ra", "-C", "1", "--mark", "m0"]);
    assert_eq!(number(&level["reply"]["snapshot"]["level"]), 10);
    let before = state(&pair);
    for (node, args, code) in [
        (REC, &["scrt_ra", "-C", "1", "-X", "-n"] as &[&str], 0),
        (REC, &["scrt_ra", "-C", "1", "-W", "-n"], 0),
        (REC, &["scrt_ra", "-C", "1", "-F", "--mark", "m1", "-n"], 1),
        (REC, &["scrt_ra", "-C", "1", "-F", "--mark", "m1", "-n", "-f"], 0),
        (REC, &["scrt_ra", "-C", "1", "-F", "--seq", "1", "-n"], 3),
        (REC, &["scrt_ra", "-C", "1", "--undo", "-n"], 1),
        (REC, &["rtmnt", "-C", "1", "-n"], 0),
        (REC, &["rtumnt", "-C", "1", "-n"], 0),
        (REC, &["rtstop", "-C", "1", "-n"], 0),
        (PROD, &["rtstop", "-FSC", "1", "-n"], 0),
        (PROD, &["rtstart", "-C", "1", "-n"], 0),
        (PROD, &["rtmark", "-C", "1", "--name", "dry", "-n"], 0),
        (PROD, &["protect", "-C", "5", "data=1M", "-n"], 0),
    ] {
        let (person, object) = conforms(&pair, node, args, code);
        if code == 0 && args != ["rtstart", "-C", "1", "-n"] && args[0] != "rtumnt" {
            assert!(person.stdout.contains("1."), "a numbered plan: {person:?}");
            assert!(object["reply"]["plan"]["steps"][0].is_string(), "{object}");
        }
        assert_eq!(state(&pair), before, "{args:?}");
    }
}

#[test]
fn stopping_and_starting_twice_is_already_so() {
    let pair = with_history("twice");
    for node in [PROD, REC] {
        for (verb, reply, wanted) in [
            ("rtstart", "start", true),
            ("rtstop", "stop", false),
            ("rtstop", "stop", true),
            ("rtstart", "start", false),
            ("rtstart", "start", true),
        ] {
            let object = pair.json(node, &[verb, "-C", "1"]);
            assert_eq!(object["code"], 0, "{object}");
            assert_eq!(object["reply"][reply]["already"], wanted, "{node}: {object}");
        }
    }
    // Stopped is durable, over a restart of the daemon too, and it stops what it says.
    pair.cli(PROD, &["rtstop", "-C", "1"]).ok();
    pair.stop(PROD);
    pair.start(PROD);
    let status = pair.status(PROD);
    assert_eq!(status["head"]["context"]["state"], "STOPPED", "{status}");
    assert!(status["stopped"]["by"].is_string(), "{status}");
    assert_eq!(pair.cli(PROD, &["rtmark", "-C", "1", "--name", "x"]).code, 1);
    pair.cli(PROD, &["rtstart", "-C", "1"]).ok();
    pair.consistent();
    // The very same point again: already so, the same level.
    let level = |target| {
        let made = pair.json(REC, &["scrt_ra", "-C", "1", "--mark", target]);
        let snapshot = &made["reply"]["snapshot"];
        (number(&snapshot["level"]), snapshot["already"].as_bool().unwrap())
    };
    assert_eq!(
        (level("m1"), level("m1"), level("m2")),
        ((10, false), (10, true), (11, false))
    );
    let several = pair.json(REC, &["rtmnt", "-C", "1"]);
    assert_eq!(several["code"], 1);
    let error = several["error"].as_str().unwrap();
    assert!(error.contains("10") && error.contains("11"), "{error}");
}

#[test]
fn questions_take_one_line_and_hold_the_lock() {
    let pair = with_history("questions");
    pair.drain();
    let before = state(&pair);
    let restore = ["scrt_ra", "-C", "1", "-F", "--mark", "m1"];
    for input in ["", "n\n", "maybe\n", "Y es\n"] {
        let declined = pair.cli_with(REC, &restore, input);
        assert_eq!(declined.code, 1, "{declined:?}");
        assert!(declined.stderr.contains("Nothing changed."), "{declined:?}");
    }
    // One volume alone is asked for with its warning; a dry run says what the way there needs.
    let alone = pair.cli_with(REC, &[&restore[..], &["-L", "data"]].concat(), "n\n");
    assert!(
        alone
            .stderr
            .contains("one volume alone breaks the consistency of the group"),
        "{alone:?}"
    );
    let planned = pair.cli(REC, &[&restore[..], &["-n"]].concat());
    assert!(planned.stdout.contains("bytes of undo"), "{planned:?}");
    assert_eq!(state(&pair), before);

    // While the question stands, another command that changes something is told who works there.
    let mut asking = pair
        .command(REC, &restore)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(asking.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("Point ") {
        let mut line = String::new();
        assert!(heard.read_line(&mut line).unwrap() > 0, "{text}");
        text += &line;
    }
    until("the lock", LONG, || {
        (pair.cli(REC, &["rtstop", "-C", "1", "--expect-term", "99"]).code == 1).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    let (person, _) = conforms(
        &pair,
        REC,
        &["scrt_ra", "-C", "1", "-F", "--mark", "m2", "-q"],
        75,
    );
    assert!(person.stderr.contains("scrt_ra -C 1 -F --mark m1"), "{person:?}");
    conforms(&pair, REC, &["rtstop", "-C", "1"], 75);
    // What changes nothing of the context never waits.
    conforms(&pair, REC, &["status", "-C", "1"], 2);
    conforms(&pair, REC, &["scrt_ra", "-C", "1", "-p"], 0);
    conforms(&pair, REC, &["scrt_ra", "-C", "1", "--mark", "m0"], 0);
    assert_eq!(pair.open(REC, "c1/data@mark:m0").read(0, 1).unwrap(), [1]);
    asking.stdin.take().unwrap().write_all(b"yes\n").unwrap();
    assert_eq!(asking.wait().unwrap().code(), Some(0));
    assert_eq!(pair.status(REC)["head"]["context"]["state"], "ROLLED_BACK");
    // Again: already so, and asked nothing.
    assert_eq!(pair.cli(REC, &restore).code, 0);
    assert_eq!(
        pair.cli(REC, &["scrt_ra", "-C", "1", "-F", "--mark", "m2", "-q"])
            .code,
        1
    );
}

#[test]
fn codes_of_what_is_not_there() {
    let pair = with_history("absent");
    // The peer is gone: the answer is not healthy, and what needs it can not be done now.
    pair.kill9(REC);
    until("the loss to be noticed", LONG, || {
        (pair.cli(PROD, &["status", "-C", "1"]).code == 2).then_some(())
    });
    conforms(&pair, PROD, &["status", "-C", "1"], 2);
    assert_eq!(pair.cli(PROD, &["status", "-C", "1", "--monitor"]).code, 2);
    conforms(&pair, PROD, &["probe", "-C", "1"], 75);
    conforms(&pair, PROD, &["rtstop", "-SC", "1"], 75);
    conforms(
        &pair,
        PROD,
        &["wait", "-C", "1", "--until", "consistent", "--timeout", "1"],
        75,
    );
    // The daemon itself is gone.
    conforms(&pair, REC, &["scrt_ra", "-C", "1", "-X"], 69);
    let old = pair.cli(REC, &["status", "-C", "1"]);
    assert_eq!(old.code, 69, "{old:?}");
    pair.start(REC);
    pair.consistent();
    assert_eq!(pair.cli(PROD, &["status", "-C", "1"]).code, 0);
    // Commands that this version does not have.
    for verb in ["scrt_rc", "rtattr", "doctor", "no-such-verb"] {
        assert_eq!(pair.cli(PROD, &[verb, "-C", "1"]).code, 64, "{verb}");
    }
}

#[test]
fn links_letters_and_help() {
    let pair = with_history("links");
    let bin = pair.scratch.folder("bin");
    fs::write(bin.join("rtdr"), "somebody else's").unwrap();
    let links = run(Command::new(program()).arg("links").arg(&bin), LONG);
    assert_eq!(links.code, 1, "{links:?}");
    assert_eq!(fs::read_to_string(bin.join("rtdr")).unwrap(), "somebody else's");
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 1, "all or none");
    fs::remove_file(bin.join("rtdr")).unwrap();
    for _ in 0..2 {
        run(Command::new(program()).arg("links").arg(&bin), LONG).ok();
    }
    let through = |link: &str, node: &str, args: &[&str]| {
        let mut command = Command::new(bin.join(link));
        command
            .args(args)
            .args(["--node", node])
            .env("BACKSTAY_ETC", pair.scratch.join("etc"));
        run(&mut command, LONG)
    };
    let windows = through("scrt_ra", REC, &["-C1", "-vpe"]).ok();
    assert!(
        windows.contains("Rollback window") && windows.contains("m1"),
        "{windows}"
    );
    let snapshot = through("scrt_ra", REC, &["-XC2"]).ok();
    for words in [
        "Making SNAP",
        "rsn10/data, -.-",
        "Snap Devs",
        "Minor rj wj Snap level Vdev level",
    ] {
        assert!(snapshot.contains(words), "'{words}' is not in {snapshot}");
    }
    through("scrt_ra", REC, &["-WC1"]).ok();
    let file = pair.scratch.join("mark");
    fs::write(
        &file,
        "# a mark\nname = end-of-day\ndescription = \"books closed\"\n",
    )
    .unwrap();
    through("rtmark", PROD, &["-C1", file.to_str().unwrap()]).ok();
    let list = through("rtmark", PROD, &["-C1", "--list"]).ok();
    assert!(
        list.contains("end-of-day") && list.contains("books closed"),
        "{list}"
    );
    let stopped = through("rtstop", PROD, &["-FSC1"]).ok();
    assert!(stopped.contains("Stopping scrt_lca"), "{stopped}");
    let started = through("rtstart", PROD, &["-C1"]).ok();
    assert!(
        started.contains("scrt_lca") || started.contains("enabled"),
        "{started}"
    );
    for verb in [
        "init", "protect", "links", "serve", "status", "pins", "wait", "probe", "nbd", "scrt_ra", "rtmnt",
        "rtumnt", "rtstart", "rtstop", "rtmark",
    ] {
        for help in ["-h", "-m"] {
            let text = run(Command::new(program()).args([verb, help]), LONG).ok();
            assert!(text.lines().count() > 3, "{verb} {help}: {text}");
        }
    }
    // Human targets: what was typed is echoed as one exact point before anything is done.
    let mark = pair.json(REC, &["scrt_ra", "-C", "1", "-e"])["reply"]["windows"]["marks"][0].clone();
    let utc = mark["time"]["utc"].as_str().unwrap();
    let resolved = pair.json(REC, &["scrt_ra", "-C", "1", "-n", "-D", utc]);
    assert_eq!(
        resolved["reply"]["plan"]["point"]["seq"], mark["seq"],
        "{resolved}"
    );
    let said = pair.cli(
        REC,
        &[
            "scrt_ra",
            "-C",
            "1",
            "-n",
            "--at",
            "mark:end-of-day",
            "--tz",
            "Europe/Berlin",
        ],
    );
    assert!(
        said.stderr.contains("CET") || said.stderr.contains("CEST"),
        "{said:?}"
    );
}

#[test]
fn pairing_strings_work_once() {
    let pair = Pair::stopped("pairing", &Setup::default());
    for node in [PROD, REC] {
        let path = pair.scratch.join(format!("etc/{node}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        let alone = text.split("[[host]]").next().unwrap();
        fs::write(&path, alone).unwrap();
        pair.start(node);
    }
    let refused = pair.cli(PROD, &["protect", "-C", "1", "data=1M"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let opened = pair.cli(REC, &["init"]).ok();
    let string = opened
        .lines()
        .find_map(|l| l.split_once("10 minutes: "))
        .unwrap_or_else(|| panic!("{opened}"))
        .1
        .trim()
        .to_owned();
    let mut wrong = string.clone();
    let last = if wrong.pop() == Some('0') { '1' } else { '0' };
    wrong.push(last);
    assert!(pair.cli(PROD, &["init", "--peer", &wrong]).code != 0);
    let again = pair.cli(REC, &["init"]).ok();
    let string = again
        .lines()
        .find_map(|l| l.split_once("10 minutes: "))
        .unwrap()
        .1
        .trim()
        .to_owned();
    let joined = pair.cli(PROD, &["init", "--peer", &string]).ok();
    assert!(joined.contains("paired with rec"), "{joined}");
    assert!(
        pair.cli(PROD, &["init", "--peer", &string]).code != 0,
        "a string is for one use"
    );
    pair.cli(PROD, &["protect", "-C", "1", "data=1M"]).ok();
    pair.consistent();
}
