//! The rules that keep the code base small in the head: which layer may import which, how long a file may be, that nothing
//! is left undone, and that every dependency has its reason.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::proc::root;

/// What each crate may import of ours. The root package (`src/`) sees all and has no line.
const MAY_IMPORT: [(&str, &[&str]); 10] = [
    ("model", &[]),
    ("media", &["model"]),
    ("control", &["model"]),
    ("testkit", &["model"]),
    ("wire", &["model"]),
    ("nbd", &[]),
    ("journal", &["model", "media"]),
    ("snapshot", &["model", "media"]),
    ("cli", &["control", "model"]),
    (
        "fuzz",
        &["cli", "control", "journal", "model", "nbd", "snapshot", "wire"],
    ),
];

/// What the tests of any crate may import of ours beside.
const TESTS_MAY_IMPORT: [&str; 2] = ["testkit", "media"];

/// Lines of a source file, and of one that holds nothing but tests.
const LINES_MAX: usize = 800;
const TEST_LINES_MAX: usize = 1500;

fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root());
    let answer = testkit::proc::run(&mut cargo, std::time::Duration::from_secs(60)).ok();
    let metadata: Value = serde_json::from_str(&answer).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// `backstay-model` → `model`; `None` for what is not ours.
fn ours(name: &Value) -> Option<&str> {
    name.as_str().unwrap().strip_prefix("backstay-")
}

#[test]
fn layers_import_only_what_they_may() {
    let may: BTreeMap<&str, &[&str]> = MAY_IMPORT.into_iter().collect();
    let mut seen = BTreeSet::new();
    for package in packages() {
        let Some(name) = ours(&package["name"]) else {
            assert_eq!(package["name"], "backstay", "a crate without the common prefix");
            continue;
        };
        let may = may
            .get(name)
            .unwrap_or_else(|| panic!("{name} has no line in MAY_IMPORT"));
        seen.insert(name.to_owned());
        for dependency in package["dependencies"].as_array().unwrap() {
            let Some(imported) = ours(&dependency["name"]) else {
                continue;
            };
            let for_tests = dependency["kind"] == "dev" && TESTS_MAY_IMPORT.contains(&imported);
            assert!(
                may.contains(&imported) || for_tests,
                "{name} must not import {imported}"
            );
        }
    }
    assert_eq!(
        seen.len(),
        MAY_IMPORT.len(),
        "MAY_IMPORT names a crate that is gone"
    );
}

/// Every Rust file of ours.
fn sources() -> Vec<PathBuf> {
    let mut folders = vec![root().to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "build"].contains(&&*name) {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    assert!(
        files.len() > 20,
        "the walk through {} found {} files",
        root().display(),
        files.len()
    );
    files.sort();
    files
}

fn holds_tests_only(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name == "tests.rs" || name.ends_with("_tests.rs") || path.components().any(|c| c.as_os_str() == "tests")
}

#[test]
fn files_stay_small() {
    let long: Vec<String> = sources()
        .iter()
        .filter_map(|path| {
            let lines = fs::read_to_string(path).unwrap().lines().count();
            let most = if holds_tests_only(path) {
                TEST_LINES_MAX
            } else {
                LINES_MAX
            };
            (lines > most).then(|| format!("{}: {lines} lines, at most {most}", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "these hold two things:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_undone() {
    // Put together here, so that this file does not hold them.
    let macros = ["todo", "unimplemented"].map(|name| format!("{name}!"));
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in text.lines().enumerate() {
            let found = macros.iter().find(|name| line.contains(name.as_str()));
            assert!(found.is_none(), "{}:{}: {line}", path.display(), i + 1);
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let declared: BTreeSet<&str> = manifest["workspace"]["dependencies"]
        .as_table()
        .unwrap()
        .iter()
        .filter(|(_, what)| what.get("path").is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let page = fs::read_to_string(root().join("docs/DEPENDENCIES.md")).unwrap();
    let mut explained = BTreeSet::new();
    for line in page.lines() {
        if let Some((name, reason)) = line.strip_prefix("| `").and_then(|rest| rest.split_once("` |")) {
            let cells: Vec<&str> = reason.trim_end_matches('|').split('|').map(str::trim).collect();
            assert!(
                cells.len() == 2 && cells.iter().all(|c| !c.is_empty()),
                "{name}: what for, and why this one"
            );
            assert!(explained.insert(name), "{name} has two lines");
        }
    }
    let missing: Vec<_> = declared.difference(&explained).collect();
    assert!(
        missing.is_empty(),
        "without a line in docs/DEPENDENCIES.md: {missing:?}"
    );
    let stale: Vec<_> = explained.difference(&declared).collect();
    assert!(
        stale.is_empty(),
        "in docs/DEPENDENCIES.md, but not in [workspace.dependencies]: {stale:?}"
    );
    // A dependency declared past the list would have no reason either.
    for package in packages() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let known = name == "backstay" || ours(&dependency["name"]).is_some() || declared.contains(name);
            assert!(
                known,
                "{} depends on {name}, which is not in [workspace.dependencies]",
                package["name"]
            );
        }
    }
}
