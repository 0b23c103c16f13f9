//! Role changes and state maps, as the operator sees them: whole conversations, each a file of both streams.

use super::{
    Ran,
    daemon::Node,
    golden::{check, view},
    replies::{ago, head, mounts, point},
    words,
};
use crate::show;
use control::{
    Code, Event, FailoverQuestion, Failure, FixedQuestion, MissingInfo, Outcome, Question, Reply, Request,
    Step,
    reply::{CellRun, DirtyReply, LfcInfo, MapReply, ResyncSet, RoleReply, RoleVerb, VolumeMapInfo},
    server::Session,
};
use std::os::unix::net::UnixStream;

/// What a daemon does of its own in a conversation.
enum Say {
    Step(Step),
    Ask(Question),
}

/// Plays `part`; a question that is answered with no ends it.
fn play(line: &str, input: &str, part: Vec<Say>, end: Outcome) -> Ran {
    let (ran, _) = Node::new().play(&words(line), input, move |s: Session<UnixStream>, _: &Request| {
        let mut session = s;
        session.send(&Event::Head(head())).unwrap();
        for say in part {
            match say {
                Say::Step(step) => session.send(&Event::Step(step)).unwrap(),
                Say::Ask(question) => {
                    if !session.ask(question) {
                        let no = Failure::new(Code::Refused, "not confirmed");
                        return session.done(Outcome::failed(no)).unwrap();
                    }
                }
            }
        }
        session.done(end).unwrap();
    });
    ran
}

fn streams(ran: &Ran) -> String {
    format!("stderr:\n{}stdout:\n{}", ran.err, ran.out)
}

const MISSING: MissingInfo = MissingInfo {
    writes: 12,
    bytes: 49_152,
};

fn failover_question() -> FailoverQuestion {
    FailoverQuestion {
        point: point(900, 70250, 600),
        age_s: Some(600.4),
        missing: None,
        peer: "prod1".into(),
        peer_heard: Some(ago(597)),
        warnings: vec![],
    }
}

fn role(verb: RoleVerb) -> RoleReply {
    RoleReply {
        context: 1,
        failover_id: 2,
        verb,
        host: "rec1".into(),
        term: 4,
        seconds: 4.52,
        ..RoleReply::default()
    }
}

fn ok(reply: RoleReply) -> Outcome {
    Outcome::ok(Reply::Role(reply))
}

fn failover() -> (Vec<Say>, Outcome) {
    let part = vec![
        Say::Ask(Question::Failover(Box::new(failover_question()))),
        Say::Step(Step::DeterminingMounts),
        Say::Step(Step::Mounting { path: "/data".into() }),
        Say::Step(Step::FailoverDone {
            failover_id: 2,
            host: "rec1".into(),
        }),
    ];
    let reply = RoleReply {
        point: Some(point(900, 70250, 600)),
        volumes: mounts().volumes,
        ..role(RoleVerb::Failover)
    };
    (part, ok(reply).with_next("rtdr -C 1 resync", "prod1"))
}

#[test]
fn a_failover_is_put_to_the_operator_and_told() {
    let (part, end) = failover();
    let ran = play("rtdr -C 1 failover", "y\n", part, end);
    assert_eq!(ran.code, Code::Done);
    check("failover.txt", &streams(&ran));
    let (part, end) = failover();
    let ran = play("rtdr -qC 1 failover", "", part, end);
    assert_eq!(ran.code, Code::Done);
    assert!(
        ran.err.contains("Do you wish to continue? [y|n] y (-q)\n"),
        "{}",
        ran.err
    );
    for no in ["n\n", "", "yeah\n"] {
        let (part, end) = failover();
        let ran = play("rtdr -C 1 failover", no, part, end);
        assert_eq!((ran.code, ran.out.as_str()), (Code::Refused, ""));
        assert!(ran.err.ends_with("Nothing changed.\n"), "{}", ran.err);
    }
}

#[test]
fn what_a_failover_may_miss_is_said_in_each_case() {
    let nothing = MissingInfo::default();
    for (missing, heard, words) in [
        (Some(MISSING), Some(ago(3)), "missing       12 writes, 48.0 KiB"),
        (Some(nothing), Some(ago(3)), "missing       nothing"),
        (
            None,
            Some(ago(0)),
            "unknown: link down since 11/20/26 03:11:52 CET",
        ),
        (None, None, "unknown: prod1 was never heard"),
    ] {
        let question = FailoverQuestion {
            missing,
            peer_heard: heard,
            ..failover_question()
        };
        let (lines, _) = show::question(&Question::Failover(Box::new(question)), &view());
        assert!(lines.iter().any(|l| l.ends_with(words)), "{words}: {lines:#?}");
    }
    for (missing, known, words) in [
        (Some(MISSING), true, "  missing     12 writes, 48.0 KiB\n"),
        (Some(nothing), true, "  missing     nothing\n"),
        (None, true, "  missing     nothing\n"),
        (None, false, "  missing     unknown: the link was down\n"),
        (
            Some(MISSING),
            false,
            "  missing     12 writes, 48.0 KiB, perhaps more: the link was down\n",
        ),
    ] {
        let reply = RoleReply {
            missing,
            missing_known: known,
            ..role(RoleVerb::Failover)
        };
        let text = show::reply(&Reply::Role(reply), &view());
        assert!(text.contains(words), "{words}: {text}");
    }
    let question = FailoverQuestion {
        age_s: None,
        missing: Some(MISSING),
        warnings: vec!["prod1 answers and runs: it is stopped first, and must confirm".into()],
        ..failover_question()
    };
    let (lines, asked) = show::question(&Question::Failover(Box::new(question)), &view());
    check(
        "failover-question.txt",
        &format!("{}\n{asked}\n", lines.join("\n")),
    );
}

fn resync_here() -> (Vec<Say>, Outcome) {
    let part = vec![
        Say::Ask(Question::Fixed(FixedQuestion::FailoverProcessing)),
        Say::Ask(Question::Fixed(FixedQuestion::LcaReset)),
        Say::Step(Step::ReadyForResync { failover_id: 2 }),
    ];
    let lfc = |id, generation, note: &str| LfcInfo {
        id,
        generation,
        first: ago(660),
        last: ago(600),
        writes: 12,
        bytes: 49_152,
        note: note.into(),
    };
    let reply = RoleReply {
        point: Some(point(900, 70250, 600)),
        set: Some(ResyncSet {
            own_bytes: 49_152,
            peer_bytes: 12 << 20,
            stale_bytes: 0,
            whole: false,
        }),
        dropped_lfcs: vec![lfc(70_254, 3, "open"), lfc(70_252, 3, "")],
        ..role(RoleVerb::Resync)
    };
    (part, ok(reply).with_next("rtdr -C 1 resync", "rec1"))
}

#[test]
fn the_old_production_gives_way_after_the_two_questions_of_the_procedures() {
    let (part, end) = resync_here();
    let ran = play("rtdr -C 1 resync", "y\ny\n", part, end);
    assert_eq!(ran.code, Code::Done);
    check("resync-old-production.txt", &streams(&ran));
    let (part, end) = resync_here();
    let ran = play("rtdr -qC 1 resync", "", part, end);
    assert_eq!(ran.code, Code::Done);
    // As `yes |` answers, and as nobody does.
    let (part, end) = resync_here();
    assert_eq!(
        play("rtdr -C 1 resync", &"y\n".repeat(100), part, end).code,
        Code::Done
    );
    for (input, asked) in [("n\n", 1), ("y\nn\n", 2), ("y\n", 2), ("", 1)] {
        let (part, end) = resync_here();
        let ran = play("rtdr -C 1 resync", input, part, end);
        assert_eq!((ran.code, ran.out.as_str()), (Code::Refused, ""), "{input:?}");
        assert_eq!(ran.err.matches("[y|n]").count(), asked, "{input:?}: {}", ran.err);
        assert!(ran.err.ends_with("Nothing changed.\n"), "{}", ran.err);
    }
}

#[test]
fn the_other_halves_of_the_procedure() {
    let set = ResyncSet {
        whole: true,
        ..ResyncSet::default()
    };
    let resync = RoleReply {
        set: Some(set),
        seconds: 0.21,
        ..role(RoleVerb::Resync)
    };
    let home = RoleReply {
        host: "prod1".into(),
        term: 5,
        volumes: mounts().volumes,
        ..role(RoleVerb::Failback)
    };
    let given_up = RoleReply {
        host: "rec1".into(),
        waiting_for: Some("prod1".into()),
        seconds: 0.1,
        ..role(RoleVerb::Failback)
    };
    let failback = |production: bool, agent: &str| {
        vec![
            Say::Step(Step::DriversLoaded {
                production,
                context: 1,
            }),
            Say::Step(Step::Starting { agent: agent.into() }),
            Say::Step(Step::PrimaryEnabled { context: 1 }),
        ]
    };
    let waiting = Step::WaitingFor {
        host: "prod1".into(),
        command: "rtdr -C 1 failback".into(),
    };
    let set_up = RoleReply {
        already: true,
        ..role(RoleVerb::SetUp)
    };
    for (file, words, part, end) in [
        ("setup.txt", "rtdr -C 1 -F 2 setup", vec![], ok(set_up)),
        (
            "resync.txt",
            "rtdr -C 1 resync",
            vec![Say::Step(Step::ResyncActivated)],
            ok(resync).with_next("backstay wait -C 1 --until resynced", "rec1"),
        ),
        (
            "failback.txt",
            "rtdr -C 1 failback",
            failback(true, "scrt_lca"),
            ok(home.clone()).with_next("rtdr -C 1 failback", "rec1"),
        ),
        (
            "failback-recovery.txt",
            "rtdr -C 2 failback",
            failback(false, "scrt_aba"),
            ok(RoleReply {
                volumes: vec![],
                ..home
            }),
        ),
        (
            "failback-waiting.txt",
            "rtdr -C 1 failback",
            vec![Say::Step(waiting)],
            ok(given_up).with_next("rtdr -C 1 failback", "prod1"),
        ),
    ] {
        let ran = play(words, "", part, end);
        assert_eq!(ran.code, Code::Done, "{file}");
        check(file, &streams(&ran));
    }
}

#[test]
fn the_words_of_steps_are_those_of_the_procedures() {
    for (step, words) in [
        (
            Step::FailoverDone {
                failover_id: 2,
                host: "rec1".into(),
            },
            "--- Failover Context ID <2> is production on rec1. ---",
        ),
        (
            Step::ReadyForResync { failover_id: 2 },
            "-- Failover Context ID <2> is enabled and ready for re-sync. ---",
        ),
        (Step::ResyncActivated, "--- System re-sync is activated. ---"),
        (
            Step::PrimaryEnabled { context: 1 },
            "--- Primary Context ID <1> is enabled. ---",
        ),
        (
            Step::WaitingFor {
                host: "prod1".into(),
                command: "rtdr -C 1 failback".into(),
            },
            "Waiting for prod1: run rtdr -C 1 failback there",
        ),
        (
            Step::DriversLoaded {
                production: true,
                context: 1,
            },
            "... Production Server Drivers are already loaded for Context ID 1.",
        ),
        (
            Step::DriversLoaded {
                production: false,
                context: 1,
            },
            "... Recovery Server Drivers are already loaded for Context ID 1.",
        ),
        (Step::UnloadingDrivers, "Unloading Production Server Drivers"),
    ] {
        assert_eq!(show::step(&step), words);
    }
}

#[test]
fn roles_in_json_are_one_line_with_every_part() {
    let (part, end) = resync_here();
    let ran = play("rtdr -qC1 resync --json", "", part, end);
    assert_eq!((ran.code, ran.out.lines().count()), (Code::Done, 1));
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["command"], "rtdr");
    let role = &json["reply"]["role"];
    assert_eq!(role["verb"], "resync");
    assert_eq!(role["set"]["peer_bytes"], 12 << 20);
    assert_eq!(role["dropped_lfcs"][0]["id"], 70_254);
    assert_eq!(json["next"]["host"], "rec1");
    assert!(ran.err.contains("ready for re-sync"), "{}", ran.err);
}

#[test]
fn a_refusal_names_the_next_legal_command_and_its_host() {
    let failure = Failure::new(Code::Refused, "prod1 is production: nothing to resync")
        .with_hint_command("rtdr -C 1 failover", "rec1");
    let ran = play("rtdr -C 1 resync", "", vec![], Outcome::failed(failure));
    assert_eq!((ran.code, ran.out.as_str()), (Code::Refused, ""));
    assert!(
        ran.err
            .ends_with("Error: prod1 is production: nothing to resync\nHint: rtdr -C 1 failover   on rec1\n"),
        "{}",
        ran.err
    );
}

fn maps(runs: &[(u64, u64, u8)]) -> MapReply {
    let runs: Vec<_> = runs
        .iter()
        .map(|&(first, end, cell)| CellRun { first, end, cell })
        .collect();
    let volume = |name: &str, cells, stale_bytes, runs| VolumeMapInfo {
        name: name.into(),
        region_size: 32_768,
        cells,
        stale_bytes,
        runs,
    };
    let clean = CellRun {
        first: 0,
        end: 8,
        cell: 0,
    };
    let stale = runs.iter().filter(|r| r.cell != 0);
    let stale = stale.map(|r| (r.end - r.first) * 32_768).sum();
    MapReply {
        context: 1,
        volumes: vec![
            volume("data", 32_768, stale, runs),
            volume("log", 8, 0, vec![clean]),
        ],
        text: None,
    }
}

#[test]
fn maps_are_shown_in_runs_and_dirty_ones_exit_with_2() {
    let dirty = Reply::Map(maps(&[(0, 2, 15), (2, 32_000, 0), (32_000, 32_768, 15)]));
    check("map-view.txt", &show::reply(&dirty, &view()));
    let clean = Reply::Map(maps(&[(0, 32_768, 0)]));
    for (reply, code) in [(dirty, Code::Unhealthy), (clean, Code::Done)] {
        let ran = play("backstay map view -C 1", "", vec![], Outcome::ok(reply));
        assert_eq!(ran.code, code);
    }
}

#[test]
fn a_dump_is_written_as_it_is() {
    let text = "data 32768\n0 f\n2 0\n";
    let reply = Reply::Map(MapReply {
        context: 1,
        volumes: vec![],
        text: Some(text.into()),
    });
    let ran = play("backstay map dump -C 1", "", vec![], Outcome::ok(reply));
    assert_eq!((ran.code, ran.out.as_str()), (Code::Done, text));
}

#[test]
fn changes_of_maps_say_what_is_stale_now() {
    let mut changed = maps(&[(0, 2, 15)]);
    for volume in &mut changed.volumes {
        volume.runs.clear();
    }
    changed.text = Some("/var/lib/backstay/prod1/c1/maps/3".into());
    let changed = Reply::Map(changed);
    check("map-changed.txt", &show::reply(&changed, &view()));
    let ran = play(
        "backstay map clean -qC 1 -L log",
        "",
        vec![],
        Outcome::ok(changed),
    );
    assert_eq!(ran.code, Code::Done);
    let dirty = |whole, eta_s| {
        let reply = DirtyReply {
            context: 1,
            bytes: 1 << 30,
            whole,
            eta_s,
        };
        show::reply(&Reply::Dirty(reply), &view())
    };
    let text = dirty(true, Some(123)) + &dirty(false, None);
    check("dirty.txt", &text);
}
