//! Commands that are done here, without a daemon: help, a node that is stopped, and what is the program's own around all this.

use super::{Around, command, words};
use crate::{Offline, OfflineTool, StatePlace, names};
use control::Code;
use model::Target;
use std::fs;

#[test]
fn every_command_has_help_and_a_manual_page_and_a_long_name_for_each_letter() {
    let dir = tempfile::tempdir().unwrap();
    let run = |line: &[&str]| command(dir.path(), &Around::default(), line, "");
    for name in names::ALL.iter().filter(|n| n.built) {
        for flag in ["-h", "--help"] {
            let ran = run(&["backstay", name.short, flag]);
            assert_eq!(ran.code, Code::Done, "{}", name.short);
            assert!(
                ran.out.contains(name.about) && ran.out.contains("Usage: "),
                "{}",
                ran.out
            );
            for option in ran.out.lines().filter(|l| l.starts_with("  -")) {
                assert!(option.contains("--"), "{}: {option}", name.short);
            }
        }
        let man = run(&[name.display(), "-m"]);
        let man = if name.link.is_some() {
            man
        } else {
            run(&["backstay", name.short, "-m"])
        };
        assert_eq!(man.code, Code::Done, "{}", name.short);
        for section in [
            "NAME\n",
            "SYNOPSIS\n",
            "DESCRIPTION\n    ",
            "OPTIONS\n",
            "EXAMPLES\n    ",
            "EXIT STATUS\n",
        ] {
            assert!(man.out.contains(section), "{} {section}: {}", name.short, man.out);
        }
    }
    let all = run(&["backstay", "--help"]);
    assert_eq!(all.code, Code::Done);
    assert!(all.out.contains("ra, scrt_ra") && all.out.contains("Not part of this version: "));
    assert_eq!(run(&["backstay"]).code, Code::Usage);
    assert!(run(&["backstay", "--version"]).out.starts_with("backstay "));
}

#[test]
fn local_commands_reach_the_program_around() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rec.toml");
    fs::write(&file, "name = 'rec'\nstate_dir = '/s'\n").unwrap();
    let around = Around::default();
    let ran = command(dir.path(), &around, &["backstay", "serve", "--node", "rec"], "");
    assert_eq!(ran.code, Code::Done, "{}", ran.err);
    assert_eq!(*around.served.borrow(), [file.display().to_string()]);
    let ran = command(
        dir.path(),
        &around,
        &["backstay", "init", "-n", "--local", "prod", "rec"],
        "",
    );
    assert_eq!((ran.code, ran.out.as_str()), (Code::Done, "rec1:7400#4T9K\n"));
    let init = around.init.borrow().clone().unwrap();
    assert_eq!(init.local, ["prod", "rec"]);
    assert!(init.dry_run && !init.quiet && init.config.is_none());
    command(dir.path(), &around, &["backstay", "init", "--node", "new"], "");
    let init = around.init.borrow().clone().unwrap();
    assert_eq!(init.config.unwrap(), init.config_dir.join("new.toml"));
    let bin = dir.path().join("bin");
    let ran = command(
        dir.path(),
        &around,
        &["backstay", "links", bin.to_str().unwrap()],
        "",
    );
    assert_eq!(ran.code, Code::Done, "{}", ran.err);
    let ours = std::env::current_exe().unwrap();
    for name in names::ALL.iter().filter_map(|n| n.link) {
        assert_eq!(fs::read_link(bin.join(name)).unwrap(), ours, "{name}");
    }
}

#[test]
fn letters_of_the_tools_for_a_stopped_node() {
    let dir = tempfile::tempdir().unwrap();
    let asked = |line: &str| {
        let around = Around::default();
        let ran = command(dir.path(), &around, &words(line), "");
        assert_eq!(ran.code, Code::Done, "{line}: {ran:?}");
        assert!(
            ran.out.contains("a line\n") != line.contains("--json"),
            "{line}: {ran:?}"
        );
        around.offline.take().unwrap()
    };
    let order = |context, tool| Offline {
        context,
        place: StatePlace::Folder("/state/rec1".into()),
        dry_run: false,
        collect: false,
        tool,
    };
    let target = |text: &str| text.parse::<Target>().unwrap();
    for (line, expected) in [
        (
            "backstay fsck-journal -C 1 --state /state/rec1",
            order(1, OfflineTool::Check),
        ),
        (
            "backstay dump -C2 --state /state/rec1 lfc g1:8 undo --hex",
            order(
                2,
                OfflineTool::Dump {
                    what: ["lfc", "g1:8", "undo"].map(str::to_owned).into(),
                    hex: true,
                },
            ),
        ),
        (
            "backstay dump -C 1 --state /state/rec1 --log-writes log -L data --from mark:a --to -10m -f",
            order(
                1,
                OfflineTool::LogWrites {
                    file: "log".into(),
                    volume: Some("data".into()),
                    from: Some(target("mark:a")),
                    to: target("-10m"),
                    force: true,
                },
            ),
        ),
        (
            "backstay salvage -C 1 --state /state/rec1 --at g3:lfc:70250 --volume data -o image --best-effort",
            order(
                1,
                OfflineTool::Salvage {
                    at: target("g3:lfc:70250"),
                    volume: Some("data".into()),
                    out: "image".into(),
                    best_effort: true,
                    force: false,
                },
            ),
        ),
        (
            "backstay salvage -fC1 --state /state/rec1 --all --output images",
            order(
                1,
                OfflineTool::Salvage {
                    at: target("latest"),
                    volume: None,
                    out: "images".into(),
                    best_effort: false,
                    force: true,
                },
            ),
        ),
    ] {
        assert_eq!(asked(line), expected, "{line}");
        let flagged = asked(&format!("{line} -n --json"));
        assert!(flagged.dry_run && flagged.collect, "{line}");
    }
    for (line, says) in [
        ("backstay salvage -C 1 --state /s -o x", "which volume?"),
        ("backstay salvage -C 1 --state /s --all", "write where?"),
        (
            "backstay salvage -C 1 --state /s --all -L data -o x",
            "two choices at once",
        ),
        (
            "backstay salvage -C 1 --state /s --all -o x --at nonsense",
            "nonsense",
        ),
        (
            "backstay dump -C 1 --state /s --from latest",
            "--from goes with --log-writes",
        ),
        (
            "backstay dump -C 1 --state /s rows --log-writes x",
            "it takes no WHAT",
        ),
        ("backstay fsck-journal -C 1 --state /s --node x", "--node"),
        ("backstay fsck-journal -C 1", "which node?"),
    ] {
        let ran = command(dir.path(), &Around::default(), &words(line), "");
        assert_eq!(ran.code, Code::Usage, "{line}: {ran:?}");
        assert!(ran.err.contains(says), "{line}: {}", ran.err);
    }
}
