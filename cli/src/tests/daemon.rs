//! A daemon that plays events, and what the operator sees of it.

use super::{Around, Ran, command, replies};
use control::{
    Code, Command, Event, Failure, NearPoint, Outcome, Progress, Question, Reply, Request, Side, Step,
    reply::{StartReply, UnmountReply},
    server::{self, Session},
};
use std::{fs, os::unix::net::UnixStream, path::PathBuf, thread};

/// A node with a daemon that answers one request.
pub(super) struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub(super) fn new() -> Self {
        // Not under the target directory: a socket's path may have 108 bytes.
        let dir = tempfile::Builder::new().prefix("bs").tempdir_in("/tmp").unwrap();
        fs::write(
            dir.path().join("rec1.toml"),
            format!("name = \"rec1\"\nstate_dir = \"{}\"\n", dir.path().display()),
        )
        .unwrap();
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Runs a command against a daemon that plays `part`; answers what was asked of the daemon, too.
    pub(super) fn play(
        &self,
        words: &[&str],
        input: &str,
        part: impl FnOnce(Session<UnixStream>, &Request) + Send + 'static,
    ) -> (Ran, Request) {
        let listener = server::bind(&self.socket(), 0o600).unwrap();
        let daemon = thread::spawn(move || {
            let (session, request) = Session::accept(listener.accept().unwrap().0).unwrap().unwrap();
            part(session, &request);
            request
        });
        let ran = command(self.dir.path(), &Around::default(), words, input);
        (ran, daemon.join().unwrap())
    }

    fn answer(&self, words: &[&str], outcome: Outcome) -> (Ran, Request) {
        self.play(words, "", move |s, _| s.done(outcome).unwrap())
    }
}

fn asks(mut s: Session<UnixStream>, _: &Request) {
    s.send(&Event::Head(replies::head())).unwrap();
    s.send(&Event::Resolved {
        level: None,
        point: replies::point(900, 70250, 600),
    })
    .unwrap();
    let outcome = if s.ask(Question::Restore(Box::new(replies::restore_question()))) {
        Outcome::ok(Reply::Restore(replies::restore())).with_next("rtdr -C 1 failover", "rec1")
    } else {
        Outcome::failed(Failure::new(Code::Refused, "not confirmed"))
    };
    s.done(outcome).unwrap();
}

const RESTORE: [&str; 5] = ["scrt_ra", "-C1", "-F", "-t", "70250"];

#[test]
fn a_question_is_answered_by_one_line_of_input() {
    let node = Node::new();
    for yes in ["y\n", "yes\n", "YES\n", " y \n"] {
        let (ran, request) = node.play(&RESTORE, yes, asks);
        assert_eq!(ran.code, Code::Done, "{yes:?} {}", ran.err);
        assert_eq!(request.options.operator, "me@here");
        assert_eq!(request.options.command_line, "scrt_ra -C1 -F -t 70250");
        assert!(
            ran.out.starts_with("Replica restored: context 1\n"),
            "{}",
            ran.out
        );
        let lines: Vec<_> = ran.err.lines().collect();
        assert!(
            lines[0].starts_with("rec1 · context 1 (failover 2) · REPLICA · term 3"),
            "{}",
            ran.err
        );
        assert!(
            lines[1].starts_with("Point g3:seq:900 (lfc 70250) · 11/20/26 03:01:52 CET"),
            "{}",
            ran.err
        );
        assert_eq!(*lines.last().unwrap(), "Next: rtdr -C 1 failover   on rec1");
        assert!(ran.err.contains("Do you wish to continue? [y|n]"), "{}", ran.err);
        assert!(!ran.err.contains("Nothing changed."));
    }
}

#[test]
fn anything_but_yes_changes_nothing() {
    let node = Node::new();
    for no in ["n\n", "\n", "yep\n", "", "yesterday\n", "n\ny\n"] {
        let (ran, _) = node.play(&RESTORE, no, asks);
        assert_eq!(ran.code, Code::Refused, "{no:?}");
        assert!(ran.err.ends_with("Nothing changed.\n"), "{}", ran.err);
        assert!(!ran.err.contains("Error:"), "{}", ran.err);
        assert_eq!(ran.out, "");
    }
}

#[test]
fn quiet_answers_yes_and_still_shows_what_is_done() {
    let node = Node::new();
    let (ran, request) = node.play(&["scrt_ra", "-qC1", "-Ft70250"], "", asks);
    assert_eq!(ran.code, Code::Done);
    assert!(request.options.quiet);
    assert!(
        ran.err.contains("[y|n] y (-q)") && ran.err.contains("validated"),
        "{}",
        ran.err
    );
}

#[test]
fn steps_and_lines_come_in_order_on_stdout_and_progress_on_stderr() {
    let node = Node::new();
    let part = |mut s: Session<UnixStream>, _: &Request| {
        for event in [
            Event::Step(Step::DeterminingUnmounts),
            Event::Line {
                text: "e2fsck 1.47".into(),
            },
            Event::Progress(Progress {
                what: "drain".into(),
                done: 1 << 20,
                total: Some(1 << 21),
                rate: Some(1024.0),
                eta_s: Some(70),
                ..Progress::default()
            }),
            Event::Step(Step::Unmounting {
                device: "/dev/backstay/c1/data".into(),
                path: "/data".into(),
            }),
            Event::Step(Step::SyncCurrent),
            Event::Step(Step::SyncWaiting),
            Event::Step(Step::SyncDone),
        ] {
            s.send(&event).unwrap();
        }
        s.done(Outcome::ok(Reply::Unmount(UnmountReply::default())))
            .unwrap();
    };
    let results = "Determining Filesystems to unmount...\ne2fsck 1.47\n\
                   Unmounting /dev/backstay/c1/data from /data...\n\
                   Sync: transferring current LFC to Recovery Server\n\
                   Waiting for synchronization of data to complete.\n\
                   All data has been synchronized to the Recovery Server.\n";
    let (ran, request) = node.play(&["rtumnt", "-FC1"], "", part);
    assert_eq!(ran.out, results);
    assert_eq!(
        ran.err,
        "drain: 1.0 MiB of 2.0 MiB (50 %), 1.0 KiB/s, 1m10s left\n"
    );
    assert_eq!(
        request.command,
        Command::Unmount {
            context: 1,
            drain: true,
            replica_side: false,
            force: false
        }
    );
    // With --json stdout has the object alone.
    let (ran, _) = node.play(&["rtumnt", "-FC1", "--json"], "", part);
    assert_eq!(ran.out.lines().count(), 1);
    assert!(ran.err.contains("Unmounting"));
}

#[test]
fn a_miss_is_refused_with_the_nearest_points() {
    let node = Node::new();
    let mut failure = Failure::new(Code::OutsideWindow, "LFC 70251 is an undo container")
        .with_hint("redo containers are even")
        .with_hint_command("scrt_ra -C 1 -t 70250", "rec1");
    failure.caused_by = vec!["odd id".into()];
    failure.holders = vec!["psql (pid 311)".into()];
    failure.window = Some(replies::window(3, true, vec![]));
    failure.nearest = vec![
        NearPoint {
            side: Side::Before,
            target: "lfc:70250".into(),
            point: replies::point(900, 70250, 600),
        },
        NearPoint {
            side: Side::After,
            target: "lfc:70252".into(),
            point: replies::point(950, 70252, 300),
        },
    ];
    let outcome = Outcome::failed(failure)
        .with_head(replies::head())
        .with_next("scrt_ra -C 1 -p", "rec1");
    let (ran, _) = node.answer(&["scrt_ra", "-C", "1", "-t", "70251"], outcome.clone());
    assert_eq!(ran.code.number(), 3);
    assert_eq!(ran.out, "");
    super::golden::check("failure.txt", &ran.err);
    let (ran, _) = node.answer(&["scrt_ra", "-C", "1", "-t", "70251", "--json"], outcome);
    assert_eq!(ran.code.number(), 3);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["command"], "scrt_ra");
    assert_eq!(json["code"], 3);
    assert_eq!(json["error"], "LFC 70251 is an undo container");
    assert_eq!(json["hint_command"], "scrt_ra -C 1 -t 70250");
    assert_eq!(json["hint_host"], "rec1");
    assert_eq!(json["nearest"][1]["point"]["time"]["utc"], "2026-11-20T02:06:52Z");
    assert_eq!(json["next"]["host"], "rec1");
    assert_eq!(json["head"]["context"]["role"], "REPLICA");
    assert!(ran.err.is_empty() || !ran.err.contains("Error:"), "{}", ran.err);
}

#[test]
fn every_exit_code_arrives() {
    let node = Node::new();
    for code in Code::ALL.into_iter().filter(|c| *c != Code::Done) {
        let (ran, _) = node.answer(&["rtstart", "-C1"], Outcome::failed(Failure::new(code, "no")));
        assert_eq!(ran.code, code);
        assert!(ran.err.contains("Error: no"));
    }
    let mut sick = replies::status();
    sick.contexts[0].healthy = false;
    for words in [
        &["backstay", "status"][..],
        &["backstay", "status", "--monitor"],
        &["backstay", "status", "--json"],
    ] {
        let (ran, _) = node.answer(words, Outcome::ok(Reply::Status(sick.clone())));
        assert_eq!(ran.code.number(), 2, "{words:?}");
    }
    let (ran, _) = node.answer(
        &["rtstart", "-C1"],
        Outcome::ok(Reply::Start(StartReply::default())),
    );
    assert_eq!(ran.code.number(), 0);
}

#[test]
fn a_result_in_json_is_one_line_with_the_point_and_both_forms_of_time() {
    let node = Node::new();
    let part = |mut s: Session<UnixStream>, _: &Request| {
        s.send(&Event::Resolved {
            level: None,
            point: replies::point(900, 70250, 600),
        })
        .unwrap();
        s.done(Outcome::ok(Reply::Snapshot(replies::snapshot("43.2"))).with_head(replies::head()))
            .unwrap();
    };
    let (ran, _) = node.play(&["backstay", "ra", "-XC1", "--json"], "", part);
    assert_eq!(ran.out.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["code"], 0);
    assert_eq!(json["point"]["seq"], 900);
    assert_eq!(json["reply"]["snapshot"]["level"], 10);
    assert_eq!(json["reply"]["snapshot"]["volumes"][0]["snap_minor"], "43.2");
    assert_eq!(
        json["reply"]["snapshot"]["point"]["time"]["epoch_ns"],
        1_795_140_112_000_000_000_u64
    );
    assert_eq!(
        json["reply"]["snapshot"]["point"]["time"]["utc"],
        "2026-11-20T02:01:52Z"
    );
    assert!(json["next"].is_null() && json.get("error").is_none());
}

#[test]
fn a_dead_daemon_is_69_with_the_socket_and_the_command_that_starts_it() {
    let node = Node::new();
    let around = Around {
        old: Some(replies::status()),
        ..Around::default()
    };
    let ran = command(node.dir.path(), &around, &["rtmnt", "-C1"], "");
    assert_eq!(ran.code.number(), 69);
    assert!(
        ran.err.contains(&node.socket().display().to_string()),
        "{}",
        ran.err
    );
    let start = format!(
        "Hint: backstay serve --config {}/rec1.toml   on rec1",
        node.dir.path().display()
    );
    assert!(ran.err.contains(&start), "{}", ran.err);
    // status shows what the disk says, and that it is old.
    let ran = command(node.dir.path(), &around, &["backstay", "status"], "");
    assert_eq!(ran.code.number(), 69);
    assert!(ran.out.starts_with("OLD: "), "{}", ran.out);
    assert!(ran.out.contains("NOT HEALTHY · rec1"), "{}", ran.out);
    let ran = command(node.dir.path(), &around, &["backstay", "status", "--json"], "");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["code"], 69);
    assert_eq!(json["reply"]["status"]["old"], true);
}

#[test]
fn a_daemon_that_goes_away_is_no_success() {
    let node = Node::new();
    let (ran, _) = node.play(&["rtstart", "-C1"], "", |s, _| drop(s));
    assert_eq!(ran.code, Code::PartWay);
    assert!(
        ran.err.contains("Hint: run the same command again"),
        "{}",
        ran.err
    );
    let (ran, _) = node.play(&["backstay", "pins"], "", |s, _| drop(s));
    assert_eq!(ran.code, Code::Unreachable);
}
