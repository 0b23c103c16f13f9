//! Every form of letter that procedures type, and what it asks of the daemon.

use super::{Around, command, usage::refused, words};
use control::{
    Code, Command, JobVerb, MapVerb, Outcome, Reply, WaitFor,
    reply::PlanReply,
    request::{Protect, RestoreTo, VolumeSource, VolumeSpec, Which},
    server::{self, Session},
};
use std::{fs, thread};

/// What a line asks of the daemon.
fn asked(line: &[&str]) -> control::Request {
    let dir = tempfile::Builder::new().prefix("bs").tempdir_in("/tmp").unwrap();
    let toml = format!("name = \"n\"\nstate_dir = \"{}\"\n", dir.path().display());
    fs::write(dir.path().join("n.toml"), toml).unwrap();
    let listener = server::bind(&dir.path().join("control.sock"), 0o600).unwrap();
    let daemon = thread::spawn(move || {
        let (session, request) = Session::accept(listener.accept().unwrap().0).unwrap()?;
        session
            .done(Outcome::ok(Reply::Plan(PlanReply::default())))
            .unwrap();
        Some(request)
    });
    let ran = command(dir.path(), &Around::default(), line, "");
    if ran.code != Code::Done {
        // Nothing was sent: let the daemon go home.
        drop(std::os::unix::net::UnixStream::connect(
            dir.path().join("control.sock"),
        ));
    }
    let request = daemon.join().unwrap();
    assert_eq!(ran.code, Code::Done, "{line:?}: {}", ran.err);
    request.unwrap()
}

fn snapshot(target: &str) -> Command {
    Command::Snapshot {
        context: 1,
        target: target.into(),
        name: None,
    }
}

fn restore(to: RestoreTo) -> Command {
    Command::FailoverRestore {
        context: 1,
        to,
        volume: None,
    }
}

fn listing(windows: bool, marks: bool, lfcs: bool) -> Command {
    Command::Windows {
        context: 1,
        windows,
        marks,
        lfcs,
        from: None,
        to: None,
        limit: None,
    }
}

#[test]
fn letters_of_scrt_ra() {
    let to = |t: &str| restore(RestoreTo::Target(t.into()));
    for (line, command) in [
        ("scrt_ra -C 1 -X", snapshot("latest")),
        ("scrt_ra -C1 -X", snapshot("latest")),
        ("scrt_ra -XC1", snapshot("latest")),
        ("backstay ra -C 1 -X", snapshot("latest")),
        ("backstay scrt_ra --context 1 --snapshot", snapshot("latest")),
        ("/usr/scrt/bin/scrt_ra -C 1 -X", snapshot("latest")),
        ("scrt_ra -C 1 -t 70250", snapshot("lfc:70250")),
        ("scrt_ra -C 1 -t70251", snapshot("lfc:70251")),
        ("scrt_ra -C 1 --lfc 70250", snapshot("lfc:70250")),
        ("scrt_ra -C 1 -S 1169584788", snapshot("epoch:1169584788")),
        ("scrt_ra -C 1 -S 1169584788.25", snapshot("epoch:1169584788.25")),
        ("scrt_ra -C 1 --epoch=1169584788", snapshot("epoch:1169584788")),
        ("scrt_ra -C 1 --mark good", snapshot("mark:good")),
        ("scrt_ra -C 1 --seq 17", snapshot("seq:17")),
        ("scrt_ra -C 1 --latest", snapshot("latest")),
        ("scrt_ra -C 1 --ago 10m", snapshot("-600s")),
        ("scrt_ra -C 1 --at -10m", snapshot("-600s")),
        ("scrt_ra -C 1 --at g3:lfc:70250", snapshot("g3:lfc:70250")),
        ("scrt_ra -C 1 --at restored", snapshot("restored")),
        (
            "scrt_ra -C 1 --at 2009-05-15T09:33:40Z",
            snapshot("epoch:1242380020"),
        ),
        (
            "scrt_ra -C 1 -D 2009-05-15T09:33:40",
            snapshot("epoch:1242372820"),
        ),
        (
            "scrt_ra -C 1 -D 2009-05-15T09:33:40 --tz UTC",
            snapshot("epoch:1242380020"),
        ),
        (
            "scrt_ra -C 1 -X --name audit",
            Command::Snapshot {
                context: 1,
                target: "latest".into(),
                name: Some("audit".into()),
            },
        ),
        ("scrt_ra -C 1 -F -t 70250", to("lfc:70250")),
        ("scrt_ra -FC1 -t70250", to("lfc:70250")),
        ("scrt_ra -C 1 -F -S 1169584788", to("epoch:1169584788")),
        ("scrt_ra -C 1 -F --latest", to("latest")),
        ("scrt_ra -C 1 -F --level 10", restore(RestoreTo::Level(10))),
        (
            "scrt_ra -C 1 -F --last-snapshot",
            restore(RestoreTo::LastSnapshot),
        ),
        (
            "scrt_ra -C 1 -F --mark good -L data",
            Command::FailoverRestore {
                context: 1,
                to: RestoreTo::Target("mark:good".into()),
                volume: Some("data".into()),
            },
        ),
        ("scrt_ra -C 1 --undo", Command::UndoRestore { context: 1 }),
        (
            "scrt_ra -C 1 -W",
            Command::Release {
                context: 1,
                which: Which::AllUnnamed,
            },
        ),
        (
            "scrt_ra -WC1 --level 11",
            Command::Release {
                context: 1,
                which: Which::Level(11),
            },
        ),
        (
            "scrt_ra -C 1 -W --all",
            Command::Release {
                context: 1,
                which: Which::All,
            },
        ),
        ("scrt_ra -C1 -vpe", listing(true, true, true)),
        ("scrt_ra -vpeC1", listing(true, true, true)),
        ("scrt_ra -C 1 -p", listing(true, false, false)),
        ("scrt_ra -C 1 -e", listing(false, true, false)),
        ("scrt_ra -C 1 -v", listing(false, false, true)),
        (
            "scrt_ra -C 1 -p --from -2h --to mark:good --limit 5",
            Command::Windows {
                context: 1,
                windows: true,
                marks: false,
                lfcs: false,
                from: Some("-7200s".into()),
                to: Some("mark:good".into()),
                limit: Some(5),
            },
        ),
    ] {
        assert_eq!(asked(&words(line)).command, command, "{line}");
    }
    // As in the procedures, with a blank inside.
    assert_eq!(
        asked(&["scrt_ra", "-C", "1", "-F", "-D", "05/15/09 09:33:40"]).command,
        to("epoch:1242372820")
    );
    assert_eq!(
        asked(&[
            "scrt_ra",
            "-C1",
            "-e",
            "--from",
            "05/15/09 09:33:40",
            "--tz",
            "UTC"
        ])
        .command,
        Command::Windows {
            context: 1,
            windows: false,
            marks: true,
            lfcs: false,
            from: Some("epoch:1242380020".into()),
            to: None,
            limit: None,
        }
    );
}

#[test]
fn letters_of_the_other_commands() {
    let mount = |level, at_dir: Option<&str>, read_only, full_check| Command::Mount {
        context: 1,
        level,
        at_dir: at_dir.map(Into::into),
        read_only,
        full_check,
        new_uuid: false,
    };
    let unmount = |drain, replica_side, force| Command::Unmount {
        context: 1,
        drain,
        replica_side,
        force,
    };
    let start = |dirty| Command::Start { context: 1, dirty };
    let stop = |unmount, drain| Command::Stop {
        context: 1,
        unmount,
        drain,
    };
    let grow = |bytes| Command::Grow {
        context: 1,
        volume: "data".into(),
        bytes,
    };
    let mark = |name: &str, description: &str, sync| Command::Mark {
        context: 1,
        name: name.into(),
        description: description.into(),
        sync,
        keep_s: None,
    };
    let job = |job, verb| Command::Job { job, verb };
    let wait = |until| Command::Wait { context: 1, until };
    for (line, command) in [
        ("rtmnt -C 1", mount(None, None, false, false)),
        (
            "rtmnt -fC1 --level 10 --at-dir /mnt --read-only",
            mount(Some(10), Some("/mnt"), true, true),
        ),
        ("backstay mnt -C1", mount(None, None, false, false)),
        ("rtumnt -C 1", unmount(false, false, false)),
        ("rtumnt -FC1", unmount(true, false, false)),
        ("rtumnt -F -C 1", unmount(true, false, false)),
        ("rtumnt -C1 -R", unmount(false, true, false)),
        ("rtumnt -qfC1", unmount(false, false, true)),
        ("rtstart -C 1", start(false)),
        ("rtstart -MC1", start(true)),
        ("rtstart -C 1 -M", start(true)),
        ("rtstop -C 1", stop(false, false)),
        ("rtstop -FSC1", stop(true, true)),
        ("rtstop -C 1 -F", stop(true, false)),
        ("rtmark -C 1 --name good", mark("good", "", true)),
        (
            "rtmark -C 1 --name good --description ok --no-sync",
            mark("good", "ok", false),
        ),
        ("rtmark -C 1 --list", Command::Marks { context: 1 }),
        ("backstay status", Command::Status { context: None }),
        ("backstay status -C 2", Command::Status { context: Some(2) }),
        ("backstay pins", Command::Pins { context: None }),
        (
            "backstay pins -C 1 --release 7",
            Command::ReleasePin { context: 1, pin: 7 },
        ),
        (
            "rtmark -C 1 --name good --keep 30d",
            Command::Mark {
                context: 1,
                name: "good".into(),
                description: String::new(),
                sync: true,
                keep_s: Some(30 * 86_400),
            },
        ),
        ("backstay wait -C 1 --until consistent", wait(WaitFor::Consistent)),
        (
            "backstay wait -C1 --until mark=good --timeout 9",
            wait(WaitFor::Mark("good".into())),
        ),
        ("backstay probe -C 1", Command::Probe { context: 1 }),
        ("extend_replica_lv -C1 -L data", grow(None)),
        ("backstay grow -C 1 -L data --size 2G", grow(Some(2 << 30))),
        (
            "backstay verify -C 1",
            Command::Verify {
                context: 1,
                repair: false,
                sample: None,
            },
        ),
        (
            "backstay verify -C 1 --repair --sample 20",
            Command::Verify {
                context: 1,
                repair: true,
                sample: Some(20),
            },
        ),
        ("backstay jobs", Command::Jobs { context: None }),
        ("backstay jobs -C 2", Command::Jobs { context: Some(2) }),
        ("backstay jobs show 7", job(7, JobVerb::Show)),
        ("backstay jobs attach 7", job(7, JobVerb::Attach)),
        ("backstay jobs cancel 7", job(7, JobVerb::Cancel)),
        (
            "backstay log -C 1",
            Command::Log {
                context: Some(1),
                limit: None,
            },
        ),
        (
            "backstay log --limit 5",
            Command::Log {
                context: None,
                limit: Some(5),
            },
        ),
    ] {
        assert_eq!(asked(&words(line)).command, command, "{line}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mark.conf");
    fs::write(&file, "name = eod\ndescription = books closed\n").unwrap();
    assert_eq!(
        asked(&["rtmark", "-C", "1", file.to_str().unwrap()]).command,
        mark("eod", "books closed", true)
    );
}

#[test]
fn letters_of_roles() {
    let set_up = |host: Option<&str>| Command::SetUpFailover {
        context: 1,
        failover_id: 2,
        host: host.map(Into::into),
    };
    let failover = |mount, inconsistent| Command::Failover {
        context: 1,
        mount,
        inconsistent,
    };
    let resync = |context, both| Command::Resync { context, both };
    let failback = |context, mount, stay| Command::Failback { context, mount, stay };
    for (line, command) in [
        ("rtdr -C 1 -F 2 setup", set_up(None)),
        ("rtdr -C 1 -F 2 -s rec1 setup", set_up(Some("rec1"))),
        ("rtdr -qvC1 -F2 -srec1 setup", set_up(Some("rec1"))),
        ("backstay dr setup --context 1 --failover-id 2", set_up(None)),
        ("rtdr -C 1 failover", failover(true, false)),
        ("/usr/scrt/bin/rtdr -C 1 failover", failover(true, false)),
        ("rtdr -q -C 1 failover", failover(true, false)),
        ("rtdr -C 1 -fq failover", failover(true, false)),
        (
            "rtdr -C1 failover --no-mount --inconsistent",
            failover(false, true),
        ),
        ("rtdr -C 1 resync", resync(1, false)),
        ("rtdr -qC 1 resync", resync(1, false)),
        ("rtdr -q -C 2 resync", resync(2, false)),
        ("rtdr -C 1 --both resync", resync(1, true)),
        ("rtdr -C 1 failback", failback(1, true, false)),
        ("rtdr -C 2 failback", failback(2, true, false)),
        ("rtdr failback -C 1 --no-mount", failback(1, false, false)),
        ("rtdr -C 1 failback --stay", failback(1, false, true)),
    ] {
        assert_eq!(asked(&words(line)).command, command, "{line}");
    }
    let options = asked(&words("rtdr -fnqvC 1 failover")).options;
    assert!(options.force && options.dry_run && options.quiet && options.verbose);
    let options = asked(&words("rtdr -C 1 failover --expect-term 3")).options;
    assert_eq!((options.expect_term, options.force), (Some(3), false));
}

/// The commands of the unplanned procedure, steps 1 to 24, with its ids filled in.
#[test]
fn the_procedure_is_understood_as_it_is_typed() {
    for line in [
        "/usr/scrt/bin/rtumnt -C 1",
        "/usr/scrt/bin/scrt_ra -C 1 -W",
        "/usr/scrt/bin/scrt_ra -C 1 -X",
        "/usr/scrt/bin/rtmnt -C 1",
        "/usr/scrt/bin/scrt_ra -C1 -vpe",
        "scrt_ra -C 1 -F -t 70250",
        "scrt_ra -C 1 -F -S 1169584788",
        "rtdr -C 1 failover",
        "/usr/scrt/bin/rtdr -C 1 resync",
        "/usr/scrt/bin/scconfig -B -G -C 2",
        "/usr/scrt/bin/rtumnt -FC2",
        "/usr/scrt/bin/rtstop -FSC2",
        "/usr/scrt/bin/rtdr -C 1 failback",
        "/usr/scrt/bin/rtdr -C 2 failback",
        "rtstop -C 1 -F",
        "scconfig -C 1 -M",
        "rtstart -C 1",
    ] {
        let context = line.replace(' ', "").split_once('C').unwrap().1.as_bytes()[0] - b'0';
        assert_eq!(
            asked(&words(line)).command.context(),
            Some(context.into()),
            "{line}"
        );
    }
}

#[test]
fn letters_of_state_maps() {
    let dirty = |context, volumes: &[&str], full| Command::Dirty {
        context,
        volumes: volumes.iter().map(|v| (*v).to_owned()).collect(),
        full,
    };
    let map = |verb| Command::Map { context: 1, verb };
    let data = || Some("data".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("maps");
    fs::write(&file, "data 32768\n0 f\n").unwrap();
    let file = file.to_str().unwrap();
    let load = format!("backstay map load {file} -C 1");
    let master = || MapVerb::Unify {
        master: "prod1".into(),
    };
    for (line, command) in [
        ("scconfig -C 1 -M", dirty(1, &[], false)),
        ("scconfig -MC1", dirty(1, &[], false)),
        ("scconfig -C 1 -M -L data", dirty(1, &["data"], false)),
        ("scconfig -MC1 -Ldata -L log", dirty(1, &["data", "log"], false)),
        ("scconfig -B -G -C 2", dirty(2, &[], true)),
        ("scconfig -BGC2", dirty(2, &[], true)),
        ("backstay config -q -C 1 -M", dirty(1, &[], false)),
        ("backstay map view -C 1", map(MapVerb::View { volume: None })),
        (
            "backstay map -C1 view -Ldata",
            map(MapVerb::View { volume: data() }),
        ),
        ("backstay map dump -C 1", map(MapVerb::Dump { volume: None })),
        (
            "backstay map clean -C 1 -L data",
            map(MapVerb::Clean { volume: data() }),
        ),
        ("backstay map unify -nC 1 --master prod1", map(master())),
        (
            &load,
            map(MapVerb::Load {
                text: "data 32768\n0 f\n".into(),
            }),
        ),
    ] {
        assert_eq!(asked(&words(line)).command, command, "{line}");
    }
    // A file that cannot be read is no usage error, and nothing is sent.
    let missing = ["backstay", "map", "load", "/nonexistent/maps", "-C", "1"];
    let ran = command(dir.path(), &Around::default(), &missing, "");
    assert_eq!(ran.code, Code::Refused, "{}", ran.err);
    assert!(ran.err.contains("/nonexistent/maps"), "{}", ran.err);
    fs::write(file, "x".repeat((6 << 20) + 1)).unwrap();
    let error = refused(&words(&load));
    assert!(error.contains("longer than 6291456 bytes"), "{error}");
}

#[test]
fn letters_of_all_commands_travel_as_options() {
    let options = asked(&words(
        "rtstart -fqnvC1 --wait-lock 5 --expect-term 3 --timeout 9 --wait",
    ))
    .options;
    assert!(options.force && options.quiet && options.dry_run && options.verbose);
    assert_eq!((options.wait_lock_s, options.expect_term), (Some(5), Some(3)));
    assert_eq!((options.timeout_s, options.wait), (Some(9), true));
    // -f of rtmnt is a full check and overrides nothing.
    assert!(!asked(&words("rtmnt -fC1")).options.force);
}

#[test]
fn volumes_of_protect() {
    let volume = |name: &str, source, filesystem: Option<&str>, mount: Option<&str>| VolumeSpec {
        name: name.into(),
        source,
        recovery_path: None,
        filesystem: filesystem.map(Into::into),
        mount: mount.map(Into::into),
    };
    let create = |bytes| VolumeSource::Create { bytes };
    let adopt = |path: &str| VolumeSource::Adopt { path: path.into() };
    let (gib, mib) = (1_u64 << 30, 1_u64 << 20);
    let mut far = volume("data", adopt("/dev/vg0/data"), None, Some("/data"));
    far.recovery_path = Some("/dev/vg1/data".into());
    for (line, volumes) in [
        (
            "data=1G --fs ext4 --mount /data",
            vec![volume("data", create(gib), Some("ext4"), Some("/data"))],
        ),
        (
            "data=1G log=512M --fs ext4 --mount /data",
            vec![
                volume("data", create(gib), Some("ext4"), Some("/data")),
                volume("log", create(512 * mib), Some("ext4"), None),
            ],
        ),
        (
            "data=1G log=512M --fs log=xfs --fs ext4 --mount data=/srv --mount log=/srv/log",
            vec![
                volume("data", create(gib), Some("ext4"), Some("/srv")),
                volume("log", create(512 * mib), Some("xfs"), Some("/srv/log")),
            ],
        ),
        (
            "data=/dev/vg0/data --mount /data --replica /dev/vg1/data",
            vec![far],
        ),
        (
            "raw=/img/raw.bin",
            vec![volume("raw", adopt("/img/raw.bin"), None, None)],
        ),
    ] {
        let line = format!("backstay protect -C 1 {line}");
        let expected = Command::Protect(Protect {
            context: 1,
            failover_id: None,
            recovery: None,
            volumes,
            mode: None,
            mount: true,
        });
        assert_eq!(asked(&words(&line)).command, expected, "{line}");
    }
    for (line, why) in [
        ("", "which volumes"),
        ("data", "NAME=SIZE"),
        ("data=big", "neither a size"),
        ("data=0", "neither a size"),
        ("../x=1G", "cannot name"),
        ("a=1G a=2G", "two volumes"),
        ("a=1G b=1G --mount /data", "for which volume? --mount NAME=/data"),
        ("a=1G --mount c=/data", "no volume 'c'"),
        ("a=1G --mount data", "no volume 'data'"),
        ("a=1G --mount a=data", "no absolute path"),
        ("a=1G --mount /x --mount /y", "two for volume 'a'"),
        ("a=1G b=1G --mount a=/x --mount b=/x", "mounted at /x"),
        ("a=1G --fs ext4 --fs xfs", "two filesystems"),
        ("a=1G --fs EXT4", "no type"),
        ("a=1G --mode fast", "fast"),
        ("a=1G --failover-id 1", "must differ"),
    ] {
        let line = format!("backstay protect -C 1 {line}");
        let error = refused(&words(line.trim_end()));
        assert!(error.contains(why), "{line}: {error}");
    }
}
