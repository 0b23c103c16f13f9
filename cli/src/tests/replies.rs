//! Fixed answers of a daemon.

use super::NOW;
use control::{
    Code, Gap, HeadLine, JobState, Moment, PeerLine, PeerState, PointInfo, Progress, RestoreQuestion, Unit,
    WindowInfo,
    event::HeadContext,
    jobs::{AnswerGiven, JobInfo, JobsReply, LogEntry, LogReply, Unheard},
    offline::{
        CheckReply, DumpLine, DumpReply, FindingInfo, LogWritesReply, LostRange, ReadInfo, SalvageReply,
        SalvagedVolume,
    },
    reply::{
        GrowReply, LfcInfo, LostInfo, MarkInfo, MountInfo, MountReply, PinInfo, PinsReply, PlanReply,
        ProtectReply, ProtectedVolume, ReleaseReply, ReleasedSnapshot, RestoreReply, SnapshotReply,
        SnapshotVolume, WindowsReply,
    },
    status::{
        ContextStatus, Cursors, ResyncStatus, Rpo, SnapshotStatus, StatusReply, Stopped, Verified,
        VolumeStatus, WindowWanted,
    },
};
use model::{ContextState, Role};

/// So many seconds before [`NOW`].
pub(super) fn ago(seconds: u64) -> Moment {
    Moment(NOW.0 - seconds * 1_000_000_000)
}

pub(super) fn point(seq: u64, lfc: u64, seconds: u64) -> PointInfo {
    PointInfo {
        generation: 3,
        seq,
        lfc,
        time: ago(seconds),
        ..PointInfo::default()
    }
}

pub(super) fn head() -> HeadLine {
    HeadLine {
        host: "rec1".into(),
        context: Some(HeadContext {
            id: 1,
            failover_id: Some(2),
            role: Role::Recovery,
            state: ContextState::Enabled,
            term: 3,
            peer: Some(PeerLine {
                name: "prod1".into(),
                state: PeerState::Unreachable,
                since: Some(ago(0)),
            }),
        }),
    }
}

pub(super) fn grow() -> GrowReply {
    GrowReply {
        context: 1,
        volume: "data".into(),
        bytes_before: 1 << 30,
        bytes: 3 << 30,
        seq: Some(812_443),
    }
}

pub(super) fn snapshot(minor: &str) -> SnapshotReply {
    let volume = |name: &str, wj| SnapshotVolume {
        name: name.into(),
        snap_device: format!("/dev/backstay/c1/rsn10/{name}"),
        snap_minor: minor.into(),
        vdev_device: format!("/dev/backstay/c1/sn10/{name}"),
        vdev_minor: minor.into(),
        rj: true,
        wj,
        snap_uri: format!("nbd://127.0.0.1:10809/c1%2F{name}%40level%3A10"),
        vdev_uri: format!("nbd://127.0.0.1:10809/c1%2F{name}%40level%3A10%2Brw"),
    };
    SnapshotReply {
        context: 1,
        level: 10,
        name: None,
        point: point(900, 70250, 600),
        already: false,
        volumes: vec![
            volume("testlv", true),
            volume("a-volume-with-a-longer-name", false),
        ],
    }
}

pub(super) fn restore_question() -> RestoreQuestion {
    RestoreQuestion {
        from: point(1000, 70260, 0),
        to: PointInfo {
            mark: Some("good".into()),
            production_tz: Some("America/New_York".into()),
            note: Some("event mark 'good' taken, 0.4 s after that second".into()),
            ..point(900, 70250, 600)
        },
        writes: 100,
        bytes: 409_600,
        marks: vec!["end-of-day".into(), "noon".into()],
        validated: Some(ago(60)),
        warnings: vec!["production is connected and running".into()],
        ..RestoreQuestion::default()
    }
}

pub(super) fn restore() -> RestoreReply {
    RestoreReply {
        context: 1,
        from: point(1000, 70260, 0),
        to: point(900, 70250, 600),
        writes: 100,
        bytes: 409_600,
        blocks: 80,
        seconds: 1.25,
        ..RestoreReply::default()
    }
}

pub(super) fn release() -> ReleaseReply {
    let snapshot = |level, name: Option<&str>| ReleasedSnapshot {
        level,
        name: name.map(Into::into),
        point: point(900, 70250, 600),
        devices: vec![format!("/dev/backstay/c1/rsn{level}/testlv")],
        pinned_until: Some(Moment(NOW.0 + 72 * 3600 * 1_000_000_000)),
    };
    ReleaseReply {
        context: 1,
        released: vec![snapshot(10, None), snapshot(11, Some("audit"))],
    }
}

pub(super) fn window(generation: u32, current: bool, gaps: Vec<Gap>) -> WindowInfo {
    WindowInfo {
        generation,
        current,
        oldest: point(10, 2, 86_510),
        newest: point(1000, 70260, 0),
        gaps,
    }
}

pub(super) fn windows() -> WindowsReply {
    let mut summer = window(1, false, vec![]);
    // 2026-10-24, before clocks were set back.
    summer.oldest.time = ago(27 * 86_400);
    let gap = Gap {
        from: ago(7200),
        to: ago(3600),
        why: "LFC 70100 is damaged".into(),
    };
    let lfc = |id, generation, seconds, note: &str| LfcInfo {
        id,
        generation,
        first: ago(seconds + 60),
        last: ago(seconds),
        writes: 12,
        bytes: 49_152,
        note: note.into(),
    };
    WindowsReply {
        context: 1,
        windows: Some(vec![window(3, true, vec![]), window(2, false, vec![gap]), summer]),
        marks: Some(marks()),
        lfcs: Some(vec![
            lfc(70_260, 3, 0, "open"),
            lfc(70_250, 3, 600, "mark good"),
            lfc(8, 1, 86_000, "cut at 8000"),
            lfc(6, 1, 86_100, ""),
        ]),
        omitted: 3,
    }
}

pub(super) fn marks() -> Vec<MarkInfo> {
    let mark = |name: &str, description: &str, lfc, seconds| MarkInfo {
        name: name.into(),
        description: description.into(),
        generation: 3,
        lfc,
        seq: lfc * 10,
        time: ago(seconds),
    };
    vec![
        mark("good", "", 70_250, 600),
        mark("end-of-day", "books\nclosed", 9_998, 7200),
    ]
}

pub(super) fn mounts() -> MountReply {
    let volume = |volume: &str, path: Option<&str>, already| MountInfo {
        volume: volume.into(),
        device: format!("/dev/backstay/c1/sn10/{volume}"),
        filesystem: path.map(|_| "ext4".into()),
        path: path.map(Into::into),
        already,
    };
    MountReply {
        context: 1,
        level: Some(10),
        point: Some(point(900, 70250, 600)),
        volumes: vec![
            volume("data", Some("/data"), false),
            volume("home", Some("/home"), true),
            volume("log", None, false),
        ],
    }
}

pub(super) fn protect() -> ProtectReply {
    let volume = |name: &str, mount: Option<&str>, mounted| ProtectedVolume {
        name: name.into(),
        bytes: 1 << 30,
        device: format!("/dev/backstay/c1/{name}"),
        backing: format!("/var/lib/backstay/prod/c1/{name}.img"),
        recovery_backing: format!("/var/lib/backstay/rec/c1/{name}.img"),
        created: true,
        filesystem: mount.map(|_| "ext4".into()),
        mount: mount.map(Into::into),
        mounted,
    };
    ProtectReply {
        context: 1,
        failover_id: 1001,
        production: "prod".into(),
        recovery: "rec".into(),
        volumes: vec![volume("data", Some("/data"), true), volume("log", None, false)],
        initial_sync: Some(Progress {
            what: "initial sync".into(),
            done: 12 << 20,
            total: Some(1 << 30),
            rate: Some(8_598_323.0),
            eta_s: Some(123),
            ..Progress::default()
        }),
        files: vec!["/etc/backstay/prod.d/1.toml".into()],
    }
}

pub(super) fn pins() -> PinsReply {
    PinsReply {
        pins: vec![
            PinInfo {
                id: 4,
                context: 1,
                holder: "released snapshot 10".into(),
                owner: "me@here".into(),
                point: point(900, 70250, 600),
                created: ago(60),
                expires: Some(Moment(NOW.0 + 3600 * 1_000_000_000)),
                holds_bytes: 80 << 20,
                broken: false,
            },
            PinInfo {
                id: 11,
                context: 1,
                holder: "snapshot 11".into(),
                owner: "you@there".into(),
                point: point(950, 70_252, 300),
                created: ago(30),
                expires: None,
                holds_bytes: 0,
                broken: true,
            },
        ],
    }
}

pub(super) fn plan() -> PlanReply {
    PlanReply {
        point: Some(point(900, 70250, 600)),
        steps: vec!["stop applying".into(), "restore 80 blocks".into()],
        questions: vec!["Do you wish to continue?".into()],
        lost: vec![LostInfo {
            volume: "testlv".into(),
            bytes: 69_632,
            region_size: 32_768,
            runs: vec![(0, 1), (700, 700)],
            more: 0,
        }],
    }
}

pub(super) fn status() -> StatusReply {
    StatusReply {
        host: "rec1".into(),
        taken: NOW,
        old: false,
        contexts: vec![ContextStatus {
            head: head(),
            healthy: true,
            verdict: "prod1 is unreachable; the replica holds all it ever sent".into(),
            node_status: 60,
            warnings: vec![
                "window reaches 24h01m of 72h00m wanted: journal_limit binds, 30 GiB would do".into(),
            ],
            mode: "async".into(),
            mode_now: None,
            last_ack: Some(ago(3)),
            rpo: Rpo {
                writes: Some(12),
                bytes: Some(49_152),
                seconds: Some(0.42),
            },
            backlog_bytes: 3 << 20,
            stale_bytes: 0,
            super_transaction: None,
            resync: None,
            acting: false,
            fenced_by: None,
            fenced_reason: None,
            consistent: true,
            window: Some(window(3, true, vec![])),
            window_wanted: WindowWanted {
                seconds: Some(72 * 3600),
                bytes: None,
            },
            restored: None,
            cursors: Cursors {
                received: 1_812_300,
                durable: 1_812_300,
                applied: 1_812_280,
                lfc: 70_260,
                ..Cursors::default()
            },
            volumes: vec![VolumeStatus {
                name: "data".into(),
                bytes: 1 << 30,
                filesystem: Some("ext4".into()),
                mount: Some("/data".into()),
                ..VolumeStatus::default()
            }],
            snapshots: vec![SnapshotStatus {
                level: 10,
                point: point(900, 70250, 600),
                overlay_bytes: 5 << 20,
                overlay_limit_bytes: Some(10 << 30),
                mounts: vec!["/data".into()],
                ..SnapshotStatus::default()
            }],
            journal_bytes: 3 << 30,
            journal_limit_bytes: Some(10 << 30),
            pins: 2,
            proven_good: Some(point(900, 70250, 600)),
            verified: Some(Verified {
                at: ago(4000),
                lfc: 70_000,
                mismatches: 0,
                compared_bytes: 1 << 30,
                differing_bytes: 0,
            }),
            verifying: None,
            stopped: None,
        }],
    }
}

/// As much as one context can have to say, all at once.
pub(super) fn crowded_status() -> StatusReply {
    let mut status = status();
    let c = &mut status.contexts[0];
    c.healthy = false;
    c.head.context.as_mut().unwrap().state = ContextState::RolledBack;
    c.restored = Some(point(900, 70250, 600));
    c.stopped = Some(Stopped {
        by: "me@here".into(),
        at: ago(90),
    });
    c.resync = Some(ResyncStatus {
        bytes_left: 3 << 30,
        bytes_total: 4 << 30,
        rate: Some(1e7),
        eta_s: Some(300),
        direction: "prod1 -> rec1".into(),
    });
    c.mode_now = Some("mwc above the high-water mark".into());
    c.warnings = (0..9).map(|n| format!("warning number {n}")).collect();
    c.volumes = (0..40)
        .map(|n| VolumeStatus {
            name: format!("volume{n:02}"),
            bytes: 1 << 30,
            ..VolumeStatus::default()
        })
        .collect();
    c.snapshots = (10..40)
        .map(|level| SnapshotStatus {
            level,
            point: point(900, 70250, 600),
            ..SnapshotStatus::default()
        })
        .collect();
    status
}

/// The recovery host after a failover, with a resync under way and much to show besides.
pub(super) fn acting_status() -> StatusReply {
    let mut status = crowded_status();
    let c = &mut status.contexts[0];
    let head = c.head.context.as_mut().unwrap();
    (head.role, head.state, head.term) = (Role::Production, ContextState::Enabled, 4);
    head.peer.as_mut().unwrap().state = PeerState::Connected;
    c.verdict = "resync: prod1 stands at its last consistent point".into();
    (c.acting, c.restored, c.stopped) = (true, None, None);
    c.snapshots.clear();
    c.resync.as_mut().unwrap().direction = "rec1 -> prod1".into();
    c.volumes[0].suspect_bytes = c.volumes[0].bytes;
    status
}

/// The old production after it came back.
pub(super) fn fenced_status() -> StatusReply {
    let mut status = status();
    status.host = "prod1".into();
    let c = &mut status.contexts[0];
    c.head.host = "prod1".into();
    let head = c.head.context.as_mut().unwrap();
    head.role = Role::Production;
    let peer = head.peer.as_mut().unwrap();
    (peer.name, peer.state) = ("rec1".into(), PeerState::Connected);
    c.healthy = false;
    c.verdict = "rec1 is production now: this host serves nothing".into();
    c.node_status = 100;
    c.fenced_by = Some("rec1".into());
    c.fenced_reason = Some("it is production at term 4, this host was at term 3".into());
    c.snapshots.clear();
    status
}

pub(super) fn jobs() -> JobsReply {
    let drain = JobInfo {
        id: 7,
        host: "prod1".into(),
        context: Some(1),
        command: "rtstop -FSC 1".into(),
        operator: "me@prod1".into(),
        since: ago(70),
        state: JobState::Running,
        progress: Some(Progress {
            what: "drain".into(),
            done: 10,
            total: Some(40),
            unit: Unit::Writes,
            job: Some(7),
            ..Progress::default()
        }),
        ..JobInfo::default()
    };
    let asks = JobInfo {
        id: 8,
        command: "scrt_ra -C 1 -F --mark good".into(),
        state: JobState::Asking,
        question: Some("restore from g3:seq:900 to g3:seq:800".into()),
        ..drain.clone()
    };
    let waits = JobInfo {
        id: 9,
        command: "rtmark -C 1 --name x --wait-lock 60".into(),
        state: JobState::WaitingForLock,
        progress: None,
        ..drain.clone()
    };
    let ended = JobInfo {
        id: 6,
        context: None,
        command: "backstay init".into(),
        state: JobState::Ended,
        progress: None,
        ended: Some(ago(60)),
        code: Some(Code::PartWay),
        error: Some("it broke".into()),
        ..drain.clone()
    };
    JobsReply {
        jobs: vec![drain, asks, waits, ended],
    }
}

pub(super) fn log() -> LogReply {
    let yes = |quiet| AnswerGiven {
        question: "failover processing".into(),
        yes: true,
        quiet,
    };
    let first = LogEntry {
        host: "prod1".into(),
        job: Some(4),
        context: Some(1),
        operator: "me@prod1".into(),
        command: "rtdr -C 1 resync".into(),
        begun: ago(600),
        ended: Some(ago(590)),
        code: Some(Code::Done),
        result: "done".into(),
        answers: vec![yes(false), yes(true)],
    };
    let refused = LogEntry {
        job: Some(5),
        command: "rtmark -C 1 --name x".into(),
        code: Some(Code::NotNow),
        result: "another command works on context 1".into(),
        ended: Some(ago(600)),
        answers: vec![],
        ..first.clone()
    };
    let noted = LogEntry {
        host: "rec1".into(),
        job: None,
        command: "rtdr -C 1 resync: rec1 ships what is to be resynced".into(),
        answers: vec![],
        ..first.clone()
    };
    let cut = LogEntry {
        job: Some(6),
        command: "rtstop -C 1 -S".into(),
        ended: None,
        code: None,
        result: "interrupted: the daemon ended".into(),
        answers: vec![],
        ..first.clone()
    };
    LogReply {
        context: Some(1),
        entries: vec![first, refused, noted, cut],
        omitted: true,
        unheard: vec![Unheard {
            host: "rec1".into(),
            why: "rec1 is not reachable".into(),
        }],
    }
}

/// A verify that found something, and repaired some of it.
pub(super) fn verify() -> control::reply::VerifyReply {
    let range = |volume: &str, first, end| control::reply::DifferingRange {
        volume: volume.into(),
        first,
        end,
    };
    control::reply::VerifyReply {
        repair: true,
        repaired_bytes: 8192,
        differing_bytes: 12_288 + (1 << 20),
        differing: vec![range("data", 4096, 8192), range("log", 40_960, 49_152)],
        unreadable: vec![control::reply::UnreadableRange {
            volume: "log".into(),
            first: 45_056,
            end: 49_152,
            error: "rec1: volume log: read at 45056: Input/output error (os error 5)".into(),
        }],
        unlisted_bytes: 1 << 20,
        repaired: vec![range("data", 1 << 30, (1 << 30) + 8192)],
        ..verified()
    }
}

/// A sample that found nothing.
pub(super) fn verified() -> control::reply::VerifyReply {
    control::reply::VerifyReply {
        context: 1,
        peer: "rec1".into(),
        compared_bytes: 20 << 20,
        total_bytes: 10 << 30,
        sample: Some(20),
        seconds: 12.34,
        ..control::reply::VerifyReply::default()
    }
}

pub(super) fn check() -> CheckReply {
    CheckReply {
        context: 1,
        folder: "/var/lib/backstay/rec1/c1/journal".into(),
        findings: vec![FindingInfo {
            kind: "redo".into(),
            place: "db, redo, container g1:70250, frame 3, record 9120".into(),
            file: Some("db".into()),
            family: Some("redo".into()),
            container: Some("g1:70250".into()),
            record: Some(9120),
            what: "the body's checksum is wrong".into(),
            means: "points inside this container cannot be shown".into(),
            remedy: "nothing where it is applied".into(),
            ..FindingInfo::default()
        }],
        notes: vec![FindingInfo {
            kind: "torn_end".into(),
            place: "tail.0, record 9300, byte 81920".into(),
            file: Some("tail.0".into()),
            record: Some(9300),
            byte: Some(81920),
            what: "a frame that was being written when the node ended".into(),
            means: "nothing is lost".into(),
            remedy: "nothing: a start cuts it off".into(),
            ..FindingInfo::default()
        }],
        more: 2,
        read: ReadInfo {
            rows: 61,
            generations: 1,
            containers: 7,
            frames: 1234,
            records: 5678,
            bytes: 90 << 20,
            undo_blocks: 3000,
            index_entries: 9000,
            overlays: 1,
        },
    }
}

pub(super) fn dump() -> DumpReply {
    DumpReply {
        context: 1,
        folder: "/var/lib/backstay/rec1/c1/journal".into(),
        lines: vec![
            DumpLine {
                kind: "slot".into(),
                at: "super byte 0".into(),
                text: "counter=3 durable=g1:17 metadata=9 checkpointed=g1:12".into(),
                hex: None,
            },
            DumpLine {
                kind: "record".into(),
                at: "17".into(),
                text: "volume=0 time=2026-11-20T02:11:52Z write offset=4095 bytes=2".into(),
                hex: Some("c0de".into()),
            },
        ],
    }
}

pub(super) fn salvage() -> SalvageReply {
    SalvageReply {
        context: 1,
        folder: "/var/lib/backstay/rec1".into(),
        point: point(8000, 70250, 60),
        volumes: vec![SalvagedVolume {
            name: "testlv".into(),
            file: "image".into(),
            bytes: 1 << 30,
            data_bytes: 300 << 20,
            lost: vec![LostRange {
                offset: 8192,
                bytes: 4096,
                why: "container g1:70250: frame 3: the body's checksum is wrong".into(),
            }],
        }],
        warnings: vec!["the journal is damaged".into()],
    }
}

pub(super) fn log_writes() -> LogWritesReply {
    LogWritesReply {
        context: 1,
        volume: "testlv".into(),
        file: "log".into(),
        from: point(7000, 70240, 120),
        to: point(8000, 70250, 60),
        entries: 400,
        marks: 9,
        bytes: 7 << 20,
    }
}
