//! What every command keeps, whatever it does: a row for each, checked against the list of names.

use super::{Around, Ran, command};
use crate::names;
use control::Code;
use serde_json::Value;
use std::{fs, path::Path};

/// Where a command is done.
#[derive(Clone, Copy, PartialEq)]
enum Done {
    /// By the daemon, for one context.
    OfContext,
    /// By the daemon.
    ByDaemon,
    /// Here.
    Here,
    /// Here, for one context of a stopped node.
    Offline,
}

/// A line that can be sent, for each command of this version.
const ROWS: &[(&str, &str, Done)] = &[
    ("init", "init", Done::Here),
    ("protect", "protect -C 1 data=1M", Done::OfContext),
    ("links", "links DIR", Done::Here),
    ("serve", "serve", Done::Here),
    (
        "attach-helper",
        "attach-helper --user 7 --socket s --exports e --state-dir d --mount-root /m",
        Done::Here,
    ),
    ("nbd", "nbd --stdio c1/data", Done::Here),
    ("status", "status -C 1", Done::ByDaemon),
    ("pins", "pins -C 1", Done::ByDaemon),
    ("pins", "pins -C 1 --release 3", Done::OfContext),
    ("wait", "wait -C 1 --until enabled", Done::OfContext),
    ("probe", "probe -C 1", Done::OfContext),
    ("log", "log -C 1", Done::ByDaemon),
    ("jobs", "jobs", Done::ByDaemon),
    ("jobs", "jobs attach 1", Done::ByDaemon),
    ("ra", "scrt_ra -C 1 -X", Done::OfContext),
    ("mnt", "rtmnt -C 1", Done::OfContext),
    ("umnt", "rtumnt -C 1", Done::OfContext),
    ("start", "rtstart -C 1", Done::OfContext),
    ("stop", "rtstop -C 1", Done::OfContext),
    ("mark", "rtmark -C 1 --name x", Done::OfContext),
    ("dr", "rtdr -C 1 failover", Done::OfContext),
    ("config", "scconfig -C 1 -M", Done::OfContext),
    ("map", "map view -C 1", Done::OfContext),
    ("grow", "grow -C 1 -L data --size 2G", Done::OfContext),
    ("verify", "verify -C 1", Done::OfContext),
    ("fsck-journal", "fsck-journal -C 1", Done::Offline),
    ("dump", "dump -C 1", Done::Offline),
    (
        "dump",
        "dump -C 1 --log-writes log --from mark:good",
        Done::Offline,
    ),
    ("salvage", "salvage -C 1 --volume data -o image", Done::Offline),
];

/// A line's words with these behind them; without `-C 1` when that is to be missing.
fn words(line: &str, without_context: bool, more: &[&str]) -> Vec<String> {
    let line = if without_context {
        line.replace(" -C 1", "")
    } else {
        line.to_owned()
    };
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    words.extend(more.iter().map(|w| (*w).to_owned()));
    if names::by_link(&words[0]).is_none() {
        words.insert(0, "backstay".into());
    }
    words
}

fn run(dir: &Path, words: &[String]) -> Ran {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    command(dir, &Around::default(), &words, "")
}

/// A folder with one node whose daemon is dead.
fn node() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("name = \"rec1\"\nstate_dir = \"{}\"\n", dir.path().display());
    fs::write(dir.path().join("rec1.toml"), text).unwrap();
    dir
}

/// A failure says so on stderr alone, and with `--json` on stdout alone, in one object with the same members always.
fn fails(dir: &Path, line: &[String], code: Code) -> Value {
    let ran = run(dir, line);
    assert_eq!(ran.code, code, "{line:?}: {ran:?}");
    assert_eq!(ran.out, "", "{line:?}");
    assert!(ran.err.starts_with("Error: "), "{line:?}: {}", ran.err);
    plain(&ran, line);
    let mut line = line.to_vec();
    line.push("--json".into());
    let ran = run(dir, &line);
    assert_eq!(ran.code, code, "{line:?}: {ran:?}");
    assert_eq!(ran.err, "", "{line:?}");
    assert_eq!(ran.out.lines().count(), 1, "{line:?}: {}", ran.out);
    let object: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(object["schema"], 1);
    assert_eq!(object["code"], code.number(), "{object}");
    for member in [
        "command",
        "head",
        "error",
        "caused_by",
        "hint",
        "hint_command",
        "hint_host",
        "nearest",
        "window",
        "holders",
        "next",
    ] {
        assert!(object.get(member).is_some(), "{member} of {line:?}: {object}");
    }
    assert!(object["error"].as_str().is_some_and(|e| !e.is_empty()));
    object
}

/// Nothing that only a terminal understands.
fn plain(ran: &Ran, line: &[String]) {
    for text in [&ran.out, &ran.err] {
        let odd = text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(odd, None, "{line:?}: {text:?}");
    }
}

#[test]
fn every_command_has_a_row() {
    for name in names::ALL.iter().filter(|n| n.built) {
        assert!(
            ROWS.iter().any(|(short, ..)| *short == name.short),
            "{}",
            name.short
        );
    }
    for (short, line, _) in ROWS {
        let first = words(line, false, &[]);
        let typed = if first[0] == "backstay" {
            &first[1]
        } else {
            &first[0]
        };
        assert_eq!(names::find(typed).unwrap().short, *short);
    }
}

#[test]
fn an_unknown_letter_is_64_and_named() {
    let dir = node();
    for (_, line, _) in ROWS {
        for letter in ["--no-such-letter", "-Z"] {
            let object = fails(dir.path(), &words(line, false, &[letter]), Code::Usage);
            let error = object["error"].as_str().unwrap();
            assert!(error.contains(letter), "{line}: {error}");
            // Nothing is said of the program's own making.
            assert!(!error.contains("error:"), "{error}");
        }
    }
}

#[test]
fn a_missing_or_senseless_context_is_64() {
    let dir = node();
    for (_, line, done) in ROWS {
        if matches!(done, Done::OfContext | Done::Offline) {
            let object = fails(dir.path(), &words(line, true, &[]), Code::Usage);
            let error = object["error"].as_str().unwrap();
            assert!(error.contains("-C ID is missing"), "{line}: {error}");
        }
        if line.contains("-C 1") {
            for senseless in ["-C one", "-C -1", "-C 99999999999"] {
                let line = line.replace("-C 1", senseless);
                fails(dir.path(), &words(&line, false, &[]), Code::Usage);
            }
        }
    }
}

#[test]
fn a_dead_daemon_is_69_and_no_node_is_64() {
    let dir = node();
    let empty = tempfile::tempdir().unwrap();
    for (_, line, _) in ROWS
        .iter()
        .filter(|(_, _, done)| matches!(done, Done::OfContext | Done::ByDaemon))
    {
        let object = fails(dir.path(), &words(line, false, &[]), Code::Unreachable);
        assert_eq!(object["hint_host"], "rec1", "{line}");
        let command = object["hint_command"].as_str().unwrap();
        assert!(
            command.starts_with("backstay serve --config "),
            "{line}: {command}"
        );
        // As a dry run too: nobody can say what would be done.
        fails(dir.path(), &words(line, false, &["-n"]), Code::Unreachable);
        let object = fails(empty.path(), &words(line, false, &[]), Code::Usage);
        assert!(
            object["error"].as_str().unwrap().starts_with("which node?"),
            "{object}"
        );
        for (letters, says) in [
            (&["--node", "nobody"] as &[&str], "nobody.toml"),
            (&["--node", "../x"], "no name of a node"),
            (&["--config", "/nowhere/x.toml"], "/nowhere/x.toml"),
        ] {
            let object = fails(dir.path(), &words(line, false, letters), Code::Usage);
            assert!(
                object["error"].as_str().unwrap().contains(says),
                "{line}: {object}"
            );
        }
    }
}

#[test]
fn help_and_manual_fit_and_have_nothing_that_only_terminals_understand() {
    let dir = node();
    for name in names::ALL.iter().filter(|n| n.built) {
        for letter in ["-h", "-m"] {
            let line: Vec<String> = ["backstay", name.short, letter].map(str::to_owned).into();
            let ran = run(dir.path(), &line);
            assert_eq!(ran.code, Code::Done);
            assert_eq!(ran.err, "", "{line:?}");
            plain(&ran, &line);
            assert!(ran.out.lines().all(|l| l.trim_end() == l), "{}", ran.out);
            let widest = ran.out.lines().map(|l| l.chars().count()).max().unwrap();
            assert!(widest <= WIDEST, "{line:?}: {widest} columns");
        }
    }
}

/// Columns of the widest line of a page.
const WIDEST: usize = 130;
