//! Every program that a mount or an unmount runs fails once, and the daemon is killed before and after every one of them.

use crate::{
    LOOKED_AT, attach_folder,
    common::{LONG, PROD, Pair},
    mounted_at, mounting, nothing_left,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::PoisonError,
    thread,
};
use testkit::proc::{leftovers, need_tool, until};

/// Stands in a tool's place: does as the order says at the n-th call, and is the tool otherwise.
const STAND_IN: &str = r#"#!/bin/sh
here=$(dirname "$0")/..
read -r action tool nth <"$here/order"
if [ "$tool" = NAME ]; then
  echo "$*" >>"$here/calls"
  if [ "$(wc -l <"$here/calls")" = "$nth" ]; then
    case $action in
      fail) echo "NAME: told to fail" >&2; exit 8 ;;
      before) touch "$here/reached"; exec sleep 600 ;;
      after) REAL "$@"; touch "$here/reached"; exec sleep 600 ;;
    esac
  fi
fi
exec REAL "$@"
"#;

struct Tools(PathBuf);

impl Tools {
    /// Makes stand-ins in the pair's folder.
    fn new(pair: &Pair) -> Self {
        let tools = Self(pair.scratch.folder("tools"));
        let bin = pair.scratch.folder("tools/bin");
        for name in ["nbdfuse", "losetup", "e2fsck", "mount", "umount"] {
            let real = need_tool(name).display().to_string();
            let path = bin.join(name);
            fs::write(&path, STAND_IN.replace("NAME", name).replace("REAL", &real)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        tools.order("none");
        tools
    }

    /// Starts production with them in its path.
    fn start(&self, pair: &Pair) {
        let path = format!(
            "{}:{}",
            self.0.join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        pair.start_with(PROD, &[("PATH", &path)]);
    }

    fn order(&self, order: &str) {
        for file in ["calls", "reached"] {
            let _ = fs::remove_file(self.0.join(file));
        }
        fs::write(self.0.join("order"), format!("{order}\n")).unwrap();
    }

    fn was_reached(&self) -> bool {
        self.0.join("reached").exists()
    }
}

/// A production with these ext4 volumes protected and unmounted, and stand-ins for its tools.
fn protected(name: &str, volumes: &[&str]) -> (Pair, Tools, Vec<PathBuf>) {
    let pair = Pair::stopped(name, &mounting());
    let tools = Tools::new(&pair);
    tools.start(&pair);
    pair.start(crate::common::REC);
    let points: Vec<PathBuf> = volumes
        .iter()
        .map(|v| pair.scratch.join("points").join(v))
        .collect();
    let mut words: Vec<String> = ["protect", "-C", "1", "--fs", "ext4"].map(str::to_owned).into();
    for (volume, point) in volumes.iter().zip(&points) {
        words.push(format!("{volume}=32M"));
        words.push("--mount".into());
        words.push(format!("{volume}={}", point.display()));
    }
    pair.cli(PROD, &words.iter().map(String::as_str).collect::<Vec<_>>())
        .ok();
    for point in &points {
        fs::write(point.join("kept"), "kept").unwrap();
    }
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    nothing_left(&pair, PROD);
    (pair, tools, points)
}

#[track_caller]
fn kept(point: &Path) {
    assert_eq!(fs::read_to_string(point.join("kept")).unwrap(), "kept");
}

/// All or none, whatever fails, and the answer names volume, step and program.
#[test]
fn a_failure_at_any_step_rolls_everything_back() {
    if !crate::common::root_for("a_failure_at_any_step_rolls_everything_back") {
        return;
    }
    let (pair, tools, points) = protected("fail", &["data", "log"]);
    for (volume, nth) in [("data", 1), ("log", 2)] {
        for (step, tool) in [
            ("attach", "nbdfuse"),
            ("attach", "losetup"),
            ("check", "e2fsck"),
            ("mount", "mount"),
        ] {
            fs::remove_dir_all(pair.scratch.join("points")).unwrap();
            tools.order(&format!("fail {tool} {nth}"));
            let answer = pair.json(PROD, &["rtmnt", "-C", "1"]);
            assert_eq!(answer["code"], 1, "{tool} {nth}: {answer}");
            let error = answer["error"].as_str().unwrap();
            assert!(
                error.starts_with(&format!("{volume}: {step}: ")),
                "{tool} {nth}: {error}"
            );
            assert!(error.contains(tool), "{tool} {nth}: {error}");
            assert!(
                !pair.scratch.join("points").exists(),
                "{tool} {nth}: mount points are left"
            );
            nothing_left(&pair, PROD);
            fs::create_dir(pair.scratch.join("points")).unwrap();
        }
    }
    tools.order("none");
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    points.iter().for_each(|p| kept(p));
    // What fails while it is undone is gone on with by the same command.
    for (tool, nth) in [("losetup", 1), ("umount", 1)] {
        tools.order(&format!("fail {tool} {nth}"));
        let first = pair.cli(PROD, &["rtumnt", "-C", "1"]);
        assert!([0, 4].contains(&first.code), "{first:?}");
        tools.order("none");
        pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
        nothing_left(&pair, PROD);
        pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    }
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    nothing_left(&pair, PROD);
}

/// Whatever is there then, the next daemon takes over or takes away, and both commands work.
#[test]
fn the_daemon_is_killed_between_any_two_steps() {
    if !crate::common::root_for("the_daemon_is_killed_between_any_two_steps") {
        return;
    }
    let _looked_at = LOOKED_AT.read().unwrap_or_else(PoisonError::into_inner);
    let (pair, tools, points) = protected("cut", &["data"]);
    let mounting = [
        "before nbdfuse 1",
        "before losetup 1",
        "after losetup 1",
        "before e2fsck 1",
        "after e2fsck 1",
        "before mount 1",
        "after mount 1",
    ];
    let unmounting = [
        "before losetup 1",
        "after losetup 1",
        "before umount 1",
        "after umount 1",
    ];
    let steps = mounting
        .map(|s| ("rtmnt", s))
        .into_iter()
        .chain(unmounting.map(|s| ("rtumnt", s)));
    for (command, step) in steps {
        println!("{command}: killed {step}");
        if command == "rtumnt" {
            pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
        }
        tools.order(step);
        thread::scope(|scope| {
            let asking = scope.spawn(|| pair.cli(PROD, &[command, "-C", "1"]));
            until(step, LONG, || tools.was_reached().then_some(()));
            pair.kill9(PROD);
            assert_ne!(asking.join().unwrap().code, 0);
        });
        tools.order("none");
        tools.start(&pair);
        // Whole, or gone.
        let left = leftovers(&attach_folder(&pair, PROD));
        let device = pair.status(PROD)["volumes"][0]["device"].is_string();
        assert_eq!(device, !left.is_empty(), "{step}: {left:?}");
        pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
        kept(&points[0]);
        pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
        assert_eq!(mounted_at(&points[0]), None);
        nothing_left(&pair, PROD);
    }
}

/// Two operators who do not know of each other. Who waits is served; who does not is told that the other is at it.
#[test]
fn ten_times_in_a_row_from_two_terminals() {
    if !crate::common::root_for("ten_times_in_a_row_from_two_terminals") {
        return;
    }
    let (pair, _tools, points) = protected("two", &["data"]);
    let terminal = |words: &[&str], codes: &[i32]| {
        for _ in 0..10 {
            for command in ["rtmnt", "rtumnt"] {
                let done = pair.cli(PROD, &[&[command, "-C", "1"], words].concat());
                assert!(codes.contains(&done.code), "{done:?}");
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| terminal(&["--wait-lock", "60"], &[0]));
        scope.spawn(|| terminal(&[], &[0, 75]));
    });
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    kept(&points[0]);
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    nothing_left(&pair, PROD);
}
