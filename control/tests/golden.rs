//! One conversation, byte for byte as `docs/formats/control.md` describes it. `BACKSTAY_BLESS=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use control::{
    Answer, Code, Command, Event, FailoverQuestion, Failure, FixedQuestion, HeadContext, HeadLine, JobState,
    JobVerb, MapVerb, MissingInfo, Moment, NearPoint, Options, Outcome, PeerLine, PeerState, PointInfo,
    Progress, Question, Reply, Request, RestoreQuestion, Side, Step, WindowInfo, codec,
    jobs::{AnswerGiven, JobInfo, JobsReply, LogEntry, LogReply, Unheard},
    reply::{
        CellRun, DirtyReply, LfcInfo, MapReply, MountInfo, PlanReply, ResyncSet, RoleReply, RoleVerb,
        SnapshotReply, SnapshotVolume, VolumeMapInfo,
    },
    request::{Protect, RestoreTo, VolumeSource, VolumeSpec, Which},
};
use model::{ContextState, LfcId, Role, Timestamp, WriteSeq};
use std::{fs, path::Path};

fn point() -> PointInfo {
    PointInfo::new(
        3,
        WriteSeq(900),
        LfcId(70250),
        Timestamp(1_795_140_712_000_000_000),
    )
}

fn head() -> HeadLine {
    HeadLine {
        host: "rec1".into(),
        context: Some(HeadContext {
            id: 1,
            failover_id: Some(2),
            role: Role::Recovery,
            state: ContextState::RolledBack,
            term: 3,
            peer: Some(PeerLine {
                name: "prod1".into(),
                state: PeerState::Connected,
                since: None,
            }),
        }),
    }
}

/// What is asked about commands under way and done.
fn job_commands() -> Vec<Command> {
    let job = |verb| Command::Job { job: 7, verb };
    vec![
        Command::Jobs { context: None },
        job(JobVerb::Show),
        job(JobVerb::Attach),
        job(JobVerb::Cancel),
        Command::Log {
            context: Some(1),
            limit: Some(20),
        },
        Command::Wait {
            context: 1,
            until: control::WaitFor::Resynced,
        },
    ]
}

/// What the daemon says of them.
fn job_events() -> Vec<Event> {
    let job = JobInfo {
        id: 7,
        host: "rec1".into(),
        context: Some(1),
        command: "rtdr -C 1 failover".into(),
        operator: "me@rec1".into(),
        since: Moment(5),
        state: JobState::Asking,
        question: Some("failover at g3:seq:900, production now is prod1".into()),
        ..JobInfo::default()
    };
    let ended = JobInfo {
        state: JobState::Ended,
        question: None,
        keeps_on: Some("it has ended already".into()),
        ended: Some(Moment(9)),
        code: Some(Code::Refused),
        error: Some("not confirmed".into()),
        ..job.clone()
    };
    let entry = LogEntry {
        host: "rec1".into(),
        job: Some(7),
        context: Some(1),
        operator: "me@rec1".into(),
        command: "rtdr -C 1 failover".into(),
        begun: Moment(5),
        ended: Some(Moment(9)),
        code: Some(Code::Done),
        result: "done".into(),
        answers: vec![AnswerGiven {
            question: "failover at g3:seq:900, production now is prod1".into(),
            yes: true,
            quiet: true,
        }],
    };
    let log = LogReply {
        context: Some(1),
        entries: vec![entry],
        omitted: false,
        unheard: vec![Unheard {
            host: "prod1".into(),
            why: "prod1 is not reachable".into(),
        }],
    };
    let done = |reply| Event::Done(Box::new(Outcome::ok(reply)));
    vec![
        Event::Begun { job: 7 },
        Event::Asked {
            operator: "me@rec1".into(),
            question: Question::Fixed(FixedQuestion::LcaReset),
        },
        done(Reply::Jobs(JobsReply {
            jobs: vec![job.clone()],
        })),
        done(Reply::Job(Box::new(job))),
        done(Reply::Cancelled(Box::new(ended))),
        done(Reply::Log(log)),
    ]
}

/// What the operator asks of roles and maps.
fn role_commands() -> Vec<Command> {
    vec![
        Command::Start {
            context: 1,
            dirty: true,
        },
        Command::SetUpFailover {
            context: 1,
            failover_id: 2,
            host: Some("rec1".into()),
        },
        Command::Failover {
            context: 1,
            mount: true,
            inconsistent: false,
        },
        Command::Resync {
            context: 2,
            both: false,
        },
        Command::Failback {
            context: 1,
            mount: true,
            stay: false,
        },
        Command::Dirty {
            context: 1,
            volumes: vec!["data".into()],
            full: false,
        },
        Command::Map {
            context: 1,
            verb: MapVerb::View { volume: None },
        },
        Command::Map {
            context: 1,
            verb: MapVerb::Unify {
                master: "prod1".into(),
            },
        },
    ]
}

fn role_steps() -> Vec<Step> {
    vec![
        Step::DriversLoaded {
            production: true,
            context: 1,
        },
        Step::UnloadingDrivers,
        Step::FailoverDone {
            failover_id: 2,
            host: "rec1".into(),
        },
        Step::ReadyForResync { failover_id: 2 },
        Step::ResyncActivated,
        Step::PrimaryEnabled { context: 1 },
        Step::WaitingFor {
            host: "prod1".into(),
            command: "rtdr -C 1 failback".into(),
        },
    ]
}

/// What the daemon says while and after roles change.
fn role_events() -> Vec<Event> {
    let missing = MissingInfo {
        writes: 12,
        bytes: 49_152,
    };
    let failover = Question::Failover(Box::new(FailoverQuestion {
        point: point(),
        age_s: Some(4.5),
        missing: Some(missing),
        peer: "prod1".into(),
        peer_heard: Some(Moment(7)),
        warnings: vec!["prod1 answers and runs: it is stopped first".into()],
    }));
    let role = RoleReply {
        context: 1,
        failover_id: 2,
        verb: RoleVerb::Resync,
        host: "rec1".into(),
        term: 4,
        point: Some(point()),
        missing: Some(missing),
        missing_known: true,
        set: Some(ResyncSet {
            own_bytes: 1,
            peer_bytes: 2,
            stale_bytes: 3,
            whole: false,
        }),
        dropped_lfcs: vec![LfcInfo::default()],
        volumes: vec![MountInfo::default()],
        waiting_for: Some("prod1".into()),
        seconds: 1.5,
        ..RoleReply::default()
    };
    let map = MapReply {
        context: 1,
        volumes: vec![VolumeMapInfo {
            name: "data".into(),
            region_size: 32_768,
            cells: 32,
            stale_bytes: 65_536,
            runs: vec![
                CellRun {
                    first: 0,
                    end: 2,
                    cell: 15,
                },
                CellRun {
                    first: 2,
                    end: 32,
                    cell: 0,
                },
            ],
        }],
        text: None,
    };
    let dirty = DirtyReply {
        context: 1,
        bytes: 1 << 30,
        whole: true,
        eta_s: Some(9),
    };
    let ask = |question| Event::Ask { question };
    let done = |reply| Event::Done(Box::new(Outcome::ok(reply)));
    let mut events: Vec<_> = role_steps().into_iter().map(Event::Step).collect();
    events.extend([
        ask(failover),
        ask(Question::Fixed(FixedQuestion::FailoverProcessing)),
        ask(Question::Fixed(FixedQuestion::LcaReset)),
        done(Reply::Role(role)),
        done(Reply::Dirty(dirty)),
        done(Reply::Map(map)),
    ]);
    events
}

#[test]
fn only_a_map_that_shows_a_stale_cell_is_unhealthy() {
    let run = |cell| CellRun {
        first: 0,
        end: 1,
        cell,
    };
    for (runs, code) in [
        (vec![], Code::Done),
        (vec![run(0)], Code::Done),
        (vec![run(0), run(15)], Code::Unhealthy),
    ] {
        let volume = VolumeMapInfo {
            stale_bytes: 4096,
            runs,
            ..VolumeMapInfo::default()
        };
        let map = MapReply {
            volumes: vec![volume],
            ..MapReply::default()
        };
        assert_eq!(Reply::Map(map).code(), code);
    }
}

/// Requests of every shape, then events of every kind.
fn lines() -> (Vec<Request>, Answer, Vec<Event>) {
    let options = Options {
        quiet: true,
        expect_term: Some(3),
        operator: "me@rec1".into(),
        command_line: "scrt_ra -qC1 -F -t 70250".into(),
        ..Options::default()
    };
    let restore = Command::FailoverRestore {
        context: 1,
        to: RestoreTo::Target("lfc:70250".into()),
        volume: None,
    };
    let protect = Command::Protect(Protect {
        context: 1,
        volumes: vec![VolumeSpec {
            name: "data".into(),
            source: VolumeSource::Create { bytes: 1 << 30 },
            recovery_path: None,
            filesystem: Some("ext4".into()),
            mount: Some("/data".into()),
        }],
        mount: true,
        ..Protect::default()
    });
    let release = Command::Release {
        context: 1,
        which: Which::Level(10),
    };
    let mut failure = Failure::new(Code::OutsideWindow, "LFC 70251 is an undo container")
        .with_hint_command("scrt_ra -C 1 -t 70250", "rec1")
        .with_holders(vec!["psql (pid 311)".into()]);
    failure.nearest = vec![NearPoint {
        side: Side::Before,
        target: "lfc:70250".into(),
        point: point(),
    }];
    failure.window = Some(WindowInfo {
        generation: 3,
        current: true,
        oldest: point(),
        newest: point(),
        gaps: vec![],
    });
    let snapshot = SnapshotReply {
        context: 1,
        level: 10,
        point: point(),
        volumes: vec![SnapshotVolume::default()],
        ..SnapshotReply::default()
    };
    let mut events = vec![
        Event::Head(head()),
        Event::Resolved {
            level: None,
            point: point(),
        },
        Event::Step(Step::DeterminingMounts),
        Event::Step(Step::Mounting { path: "/data".into() }),
        Event::Line {
            text: "clean\t\n".into(),
        },
        Event::Progress(Progress {
            what: "resync".into(),
            done: 1,
            total: Some(2),
            rate: Some(0.5),
            ..Progress::default()
        }),
        Event::Ask {
            question: Question::Restore(Box::new(RestoreQuestion {
                from: point(),
                to: point(),
                validated: Some(Moment(7)),
                ..RestoreQuestion::default()
            })),
        },
        Event::Ask {
            question: Question::Text {
                lines: vec!["!!! RESET WARNING !!!".into()],
                question: "Do you wish to do this?".into(),
            },
        },
        Event::Done(Box::new(
            Outcome::ok(Reply::Snapshot(snapshot))
                .with_head(head())
                .with_next("rtmnt -C 1", "rec1"),
        )),
        Event::Done(Box::new(Outcome::ok(Reply::Plan(PlanReply::default())))),
        Event::Done(Box::new(Outcome::failed(failure))),
    ];
    events.extend(role_events());
    events.extend(job_events());
    let requests = [Command::NodeInfo, restore, protect, release];
    let requests = requests.into_iter().chain(role_commands());
    let mut requests: Vec<_> = requests.map(|c| Request::new(c, options.clone())).collect();
    let patient = Options {
        timeout_s: Some(60),
        wait: true,
        ..Options::default()
    };
    requests.extend(
        job_commands()
            .into_iter()
            .map(|c| Request::new(c, patient.clone())),
    );
    (requests, Answer { yes: true }, events)
}

#[test]
fn the_conversation_is_as_documented() {
    let (requests, answer, events) = lines();
    let mut text = Vec::new();
    for request in &requests {
        text.extend(codec::encode(request).unwrap());
    }
    text.extend(codec::encode(&answer).unwrap());
    for event in &events {
        text.extend(codec::encode(event).unwrap());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/control/conversation.jsonl");
    if std::env::var("BACKSTAY_BLESS").is_ok_and(|v| v == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read(&path).unwrap();
    assert_eq!(String::from_utf8_lossy(&golden), String::from_utf8_lossy(&text));
    let mut from = golden.as_slice();
    for request in requests {
        let line = codec::read_line(&mut from).unwrap().unwrap();
        assert_eq!(codec::decode_request(&line).unwrap(), request);
    }
    let line = codec::read_line(&mut from).unwrap().unwrap();
    assert_eq!(codec::decode::<Answer>(&line).unwrap(), answer);
    for event in events {
        let line = codec::read_line(&mut from).unwrap().unwrap();
        assert_eq!(codec::decode::<Event>(&line).unwrap(), event);
    }
    assert!(codec::read_line(&mut from).unwrap().is_none());
}
