//! Command lines that are refused before anything is sent, and what is said of each.

use super::{Around, command, words};
use crate::names;
use control::Code;

/// What is said of a line that makes no sense.
pub(super) fn refused(line: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let ran = command(dir.path(), &Around::default(), line, "");
    assert_eq!(ran.code, Code::Usage, "{line:?}: {} {}", ran.out, ran.err);
    assert_eq!(ran.out, "");
    assert!(ran.err.starts_with("Error: "), "{}", ran.err);
    ran.err
}

#[test]
fn what_makes_no_sense_is_64_and_says_why() {
    for (line, why) in [
        ("scrt_ra -C 1 -t 2 -S 3", "two targets at once: -t and -S"),
        (
            "scrt_ra -C 1 -t 2 --latest",
            "two targets at once: -t and --latest",
        ),
        ("scrt_ra -C 1 -F --level 10 -t 2", "two targets at once"),
        ("scrt_ra -C 1 -F", "needs a target"),
        ("scrt_ra -C 1 -X -W", "two things to do at once: -X and -W"),
        ("scrt_ra -C 1 -X -p", "two things to do"),
        ("scrt_ra -C 1 -X -t 2", "a target goes alone or with -F"),
        ("scrt_ra -C 1 -W -t 2", "a target goes alone or with -F"),
        ("scrt_ra -C 1 -p -t 2", "a target goes alone or with -F"),
        ("scrt_ra -C 1 -t 2 -L data", "-L goes with -F"),
        ("scrt_ra -C 1 -X --all", "--all goes with -W"),
        ("scrt_ra -C 1 -X --limit 3", "--limit go with"),
        ("scrt_ra -C 1 -W --all --level 10", "two choices"),
        ("scrt_ra -C 1 -W --name x", "--name goes with"),
        ("scrt_ra -C 1", "nothing to do"),
        ("scrt_ra -X", "-C ID is missing"),
        ("scrt_ra -C x -X", "'x'"),
        ("scrt_ra -C 1 -t abc", "'abc'"),
        ("scrt_ra -C 1 -S yesterday", "yesterday"),
        ("scrt_ra -C 1 --ago 10", "a number and s, m, h or d"),
        ("scrt_ra -C 1 --at lfc:", "not a restore target"),
        ("scrt_ra -C 1 --mark a@b", "names no mark"),
        (
            "scrt_ra -C 1 -D 2009-05-15T09:33:40 --tz Mars/North",
            "no zone 'Mars/North'",
        ),
        ("scrt_ra -C 1 -D 2026-10-25T02:30:00", "2026-10-25T02:30:00+01:00"),
        ("scrt_ra -C 1 -D 2026-03-29T02:30:00", "never shown"),
        ("scrt_ra -C 1 -D 2026-11-21T00:00:00", "in the future"),
        ("scrt_ra -C 1 -Z", "'-Z'"),
        ("rtmnt -C 1 --levle 3", "--level"),
        ("rtumnt -C 1 -F -R", "-F and -R"),
        ("rtdr -C 1", "failback is missing"),
        ("rtdr failover", "-C ID is missing"),
        ("rtdr -C 1 failoever", "'failoever'"),
        ("rtdr -C 1 failover resync", "'resync'"),
        ("rtdr -C 1 setup", "-F ID is missing"),
        ("rtdr -C 1 -F 1 setup", "must differ"),
        ("rtdr -C 1 -F x setup", "'x'"),
        ("rtdr -C 1 -F 2 failover", "-F goes with setup"),
        ("rtdr -C 1 -s rec1 failover", "-s goes with setup"),
        ("rtdr -C 1 resync --no-mount", "--no-mount goes with failover"),
        ("rtdr -C 1 failback --stay --no-mount", "failback without --stay"),
        (
            "rtdr -C 1 failback --inconsistent",
            "--inconsistent goes with failover",
        ),
        ("rtdr -C 1 failover --both", "--both goes with resync"),
        ("rtdr -C 1 resync --stay", "--stay goes with failback"),
        ("scconfig -C 1", "nothing to do"),
        ("scconfig -M", "-C ID is missing"),
        ("scconfig -C 1 -B", "-B and -G go together"),
        ("scconfig -C 1 -G", "-B and -G go together"),
        ("scconfig -C 1 -M -G", "-B and -G go together"),
        ("scconfig -C 1 -M -B -G", "two things to do at once: -M and -B -G"),
        ("scconfig -C 1 -B -G -L data", "-L goes with -M"),
        ("scconfig -C 1 -L data", "-L goes with -M"),
        ("scconfig -C 1 -a 60 -b 10", "not part of this version"),
        ("scconfig -C 1 -a 60", "lfc_max_age"),
        ("scconfig -C 1 -M -b 0", "not part of this version"),
        ("backstay map -C 1", "unify is missing"),
        ("backstay map view", "-C ID is missing"),
        ("backstay map show -C 1", "'show'"),
        ("backstay map view -C 1 --master a", "--master goes with unify"),
        ("backstay map view file -C 1", "FILE goes with load"),
        ("backstay map load -C 1", "FILE is missing"),
        (
            "backstay map load f -C 1 -L data",
            "-L goes with view, dump and clean",
        ),
        ("backstay map unify -C 1", "--master HOST is missing"),
        ("backstay map unify -C 1 --master a -L data", "-L goes with"),
        ("rtmark -C 1", "which mark?"),
        ("rtmark -C 1 --name a/b", "cannot name a mark"),
        ("rtmark -C 1 --list --name x", "cannot be used with"),
        ("backstay wait -C 1 --until mounted", "nothing to wait for"),
        ("backstay wait -C 1", "--until WHAT is missing"),
        ("backstay jobs attach", "its number is missing"),
        ("backstay jobs cancel 7 -C 1", "-C goes with the list"),
        ("backstay jobs stop 7", "invalid value 'stop'"),
        ("backstay jobs 7", "invalid value '7'"),
        ("backstay log --limit few", "invalid value 'few'"),
        ("backstay status --watch --monitor", "two shapes"),
        ("backstay staus", "did you mean 'status'?"),
        ("backstay status --node a --config b", "cannot be used with"),
        ("backstay init --local prod", "--local"),
    ] {
        let error = refused(&words(line));
        assert!(error.contains(why), "{line}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let ran = command(dir.path(), &Around::default(), &["scrt_ra", "-Z", "--json"], "");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["code"], 64);
    assert!(json["error"].as_str().unwrap().contains("-Z"));
}

#[test]
fn commands_of_later_versions_say_so() {
    let dir = tempfile::tempdir().unwrap();
    for name in names::ALL.iter().filter(|n| !n.built) {
        for line in [
            vec!["backstay", name.short, "-C", "1"],
            vec!["backstay", name.short, "-h"],
            vec![name.link.unwrap_or("scsetup"), "-C", "1", "--all"],
        ] {
            let ran = command(dir.path(), &Around::default(), &line, "");
            assert_eq!(ran.code, Code::Usage);
            assert!(
                ran.err.contains(": not part of this version"),
                "{line:?} {}",
                ran.err
            );
        }
    }
    assert!(refused(&["scrt_rc", "-C", "1"]).starts_with("Error: scrt_rc: not part of this version\n"));
}
