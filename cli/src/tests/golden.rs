//! Every shape of answer, byte for byte. `BACKSTAY_BLESS=1` writes the files anew.

use super::{NOW, berlin, replies};
use crate::{
    show::{self, View},
    verbs::Shape,
};
use control::{Question, Reply, reply::MarksReply, reply::ReleaseReply};
use std::{fs, path::Path};

pub(super) fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testdata/cli")
        .join(name);
    if std::env::var("BACKSTAY_BLESS").is_ok_and(|v| v == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(golden, text, "{name}");
}

pub(super) fn view() -> View {
    View::plain(berlin(), NOW)
}

#[test]
fn answers_are_written_as_agreed() {
    let snapshot = Reply::Snapshot(replies::snapshot("43.2"));
    let mut again = replies::snapshot("-.-");
    again.already = true;
    for (name, reply) in [
        ("snapshot.txt", snapshot),
        (
            "snapshot-not-attached.txt",
            Reply::Snapshot(replies::snapshot("-.-")),
        ),
        ("snapshot-again.txt", Reply::Snapshot(again)),
        ("restore.txt", Reply::Restore(replies::restore())),
        ("release.txt", Reply::Release(replies::release())),
        ("release-none.txt", Reply::Release(ReleaseReply::default())),
        ("windows.txt", Reply::Windows(replies::windows())),
        (
            "marks.txt",
            Reply::Marks(MarksReply {
                context: 1,
                marks: replies::marks(),
            }),
        ),
        ("mark.txt", Reply::Mark(replies::marks().remove(0))),
        ("grow.txt", Reply::Grow(replies::grow())),
        ("mount.txt", Reply::Mount(replies::mounts())),
        ("protect.txt", Reply::Protect(replies::protect())),
        ("pins.txt", Reply::Pins(replies::pins())),
        ("plan.txt", Reply::Plan(replies::plan())),
        ("verify.txt", Reply::Verify(replies::verify())),
        ("verify-equal.txt", Reply::Verify(replies::verified())),
        ("jobs.txt", Reply::Jobs(replies::jobs())),
        ("jobs-none.txt", Reply::Jobs(control::jobs::JobsReply::default())),
        ("job.txt", Reply::Job(Box::new(replies::jobs().jobs.remove(0)))),
        ("log.txt", Reply::Log(replies::log())),
        ("fsck-journal.txt", Reply::Check(Box::new(replies::check()))),
        ("fsck-journal-clean.txt", Reply::Check(Box::default())),
        ("dump.txt", Reply::Dump(replies::dump())),
        ("salvage.txt", Reply::Salvage(Box::new(replies::salvage()))),
        (
            "log-writes.txt",
            Reply::LogWrites(Box::new(replies::log_writes())),
        ),
        ("status.txt", Reply::Status(replies::status())),
        ("status-crowded.txt", Reply::Status(replies::crowded_status())),
        ("status-acting.txt", Reply::Status(replies::acting_status())),
        ("status-fenced.txt", Reply::Status(replies::fenced_status())),
    ] {
        check(name, &show::reply(&reply, &view()));
    }
    let monitor = View {
        shape: Shape::Monitor,
        ..view()
    };
    check(
        "status-monitor.txt",
        &show::reply(&Reply::Status(replies::crowded_status()), &monitor),
    );
}

#[test]
fn what_scripts_look_for_is_as_in_the_command_reference() {
    let mut snapshot = replies::snapshot("43.2");
    snapshot.volumes.truncate(1);
    assert_eq!(
        show::reply(&Reply::Snapshot(snapshot), &view()),
        "Making SNAP /dev/backstay/c1/rsn10/testlv, 43.2\n\
         Snap Devs (read only, raw)        Minor rj wj Snap level Vdev level Vdevs (read/write, block)\n\
         /dev/backstay/c1/rsn10/testlv     2     ON ON 10         10         /dev/backstay/c1/sn10/testlv\n"
    );
    let text = show::reply(&Reply::Windows(replies::windows()), &view());
    assert!(
        text.starts_with(
            "Rollback window  g3  11/19/26 03:10:02 .. 11/20/26 03:11:52 CET  (24h01m, no gaps)\n"
        )
    );
    for heads in [
        "LFC  FIRST-EPOCH  LAST-EPOCH  LAST (MM/DD/YY HH:MM:SS)  WRITES  BYTES  NOTE",
        "EPOCH  DATE  LFC  SEQ  NAME  DESCRIPTION",
    ] {
        let words = |l: &str| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(text.lines().any(|l| words(l) == words(heads)), "{heads}");
    }
}

#[test]
fn a_restore_is_put_to_the_operator_with_all_that_matters() {
    let (lines, asked) = show::question(&Question::Restore(Box::new(replies::restore_question())), &view());
    check(
        "restore-question.txt",
        &format!("{}\n{asked}\n", lines.join("\n")),
    );
}

#[test]
fn status_fits_a_screen_of_80_by_24() {
    let terminal = |columns| View {
        columns: Some(columns),
        ..view()
    };
    let mut many = replies::status();
    many.contexts = vec![many.contexts.remove(0); 60];
    for status in [
        replies::status(),
        replies::crowded_status(),
        replies::acting_status(),
        replies::fenced_status(),
        many,
    ] {
        for columns in [80, 40, 1] {
            let text = show::reply(&Reply::Status(status.clone()), &terminal(columns));
            assert!(text.lines().all(|l| l.chars().count() <= columns), "{text}");
            assert!(
                text.lines().count() <= 23,
                "{} lines:\n{text}",
                text.lines().count()
            );
            let first = text.lines().next().unwrap();
            assert!(columns < 40 || first.contains("HEALTHY"), "{text}");
        }
        // Nothing is cut when a program reads.
        let piped = show::reply(&Reply::Status(status), &view());
        assert!(!piped.lines().any(|l| l.ends_with('…')), "{piped}");
    }
}

#[test]
fn head_lines_name_host_context_role_term_and_peer() {
    assert_eq!(
        show::head(&replies::head(), &view()),
        "rec1 · context 1 (failover 2) · REPLICA · term 3 · peer prod1 unreachable since 03:11:52"
    );
}

#[test]
fn json_has_the_members_that_are_documented() {
    let mut text = String::new();
    for (command, reply) in [
        ("status", Reply::Status(replies::status())),
        ("pins", Reply::Pins(replies::pins())),
        ("jobs", Reply::Jobs(replies::jobs())),
        ("jobs", Reply::Job(Box::new(replies::jobs().jobs.remove(1)))),
        ("log", Reply::Log(replies::log())),
        ("scrt_ra", Reply::Snapshot(replies::snapshot("43.2"))),
        ("scrt_ra", Reply::Restore(replies::restore())),
        ("scrt_ra", Reply::Release(replies::release())),
        ("scrt_ra", Reply::Windows(replies::windows())),
        ("rtmark", Reply::Mark(replies::marks().remove(0))),
        ("rtmnt", Reply::Mount(replies::mounts())),
        ("rtumnt", Reply::Unmount(control::reply::UnmountReply::default())),
        ("rtstart", Reply::Start(control::reply::StartReply::default())),
        ("rtstop", Reply::Stop(control::reply::StopReply::default())),
        ("rtdr", Reply::Role(control::reply::RoleReply::default())),
        ("scconfig", Reply::Dirty(control::reply::DirtyReply::default())),
        ("extend_replica_lv", Reply::Grow(replies::grow())),
        ("map", Reply::Map(control::reply::MapReply::default())),
        ("protect", Reply::Protect(replies::protect())),
        ("verify", Reply::Verify(replies::verify())),
        ("rtstop", Reply::Plan(replies::plan())),
        ("fsck-journal", Reply::Check(Box::new(replies::check()))),
        ("dump", Reply::Dump(replies::dump())),
        ("salvage", Reply::Salvage(Box::new(replies::salvage()))),
        ("dump", Reply::LogWrites(Box::new(replies::log_writes()))),
    ] {
        let outcome = control::Outcome::ok(reply)
            .with_head(replies::head())
            .with_next("backstay status", "rec1");
        text.push_str(&show::json(command, &outcome, None));
    }
    let failure = control::Failure::new(control::Code::NotNow, "another command works on context 1")
        .with_hint("--wait-lock SECONDS waits for it")
        .with_hint_command("backstay jobs show 7", "prod1");
    text.push_str(&show::json("rtmark", &control::Outcome::failed(failure), None));
    check("json.jsonl", &text);
}
