//! The table of mutants does not rot: every place that is to be broken is there exactly once, every test that is to fail
//! exists, and docs/RELIABILITY.md knows both.
//!
//! `make mutants` (`run.rs`) does the breaking. It builds once for every mutant, so it is not part of `make test`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod table;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use table::Test;
use testkit::proc::root;

/// Every Rust file below a folder.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Whether one of these files defines a test of that name.
fn defines(files: &[PathBuf], name: &str) -> bool {
    let line = format!("fn {name}(");
    files
        .iter()
        .any(|f| fs::read_to_string(f).unwrap().contains(&line))
}

/// Where the sources of a test target are.
fn files_of(test: &table::Test) -> Vec<PathBuf> {
    let package = match test.package.strip_prefix("backstay-") {
        Some(member) => root().join(member),
        None => root().to_owned(),
    };
    let mut files = Vec::new();
    match test.target.as_str() {
        "lib" => sources(&package.join("src"), &mut files),
        target => {
            let folder = package.join("tests").join(target);
            if folder.is_dir() {
                sources(&folder, &mut files);
            } else {
                files.push(folder.with_extension("rs"));
            }
        }
    }
    files
}

#[test]
fn every_mutant_has_its_place_and_its_test() {
    let mutants = table::load(root()).unwrap();
    let mut seen = BTreeSet::new();
    for m in &mutants {
        let broken = m.apply(root()).unwrap_or_else(|e| panic!("{e:#}"));
        assert!(
            seen.insert((m.file.clone(), broken)),
            "{}: twice: {}",
            m.rule,
            m.find
        );
        let Test {
            package,
            target,
            name,
        } = &m.test;
        assert!(
            defines(&files_of(&m.test), name),
            "{}: no test {name} in {package}, target {target}",
            m.rule
        );
        assert!(!m.why.is_empty(), "{}: {name}: without a reason", m.rule);
    }
}

/// The page says of every mutant which test kills it, and names no test that is gone.
#[test]
fn the_page_knows_every_mutant_and_names_no_test_that_is_gone() {
    let page = fs::read_to_string(root().join("docs/RELIABILITY.md")).unwrap();
    for m in table::load(root()).unwrap() {
        let row = page
            .lines()
            .any(|l| l.starts_with(&format!("| {} |", m.rule)) && l.contains(&format!("`{}`", m.test.name)));
        assert!(
            row,
            "docs/RELIABILITY.md: no row of {} names `{}`",
            m.rule, m.test.name
        );
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let folder = entry.unwrap().path();
        for part in ["src", "tests"].map(|part| folder.join(part)) {
            if part.is_dir() {
                sources(&part, &mut files);
            }
        }
    }
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    // A name in the page with three words or more is a test's; shorter ones are functions and fields.
    let named = page.split('`').skip(1).step_by(2);
    let is_test = |n: &&str| n.matches('_').count() > 2 && n.chars().all(|c| c.is_alphanumeric() || c == '_');
    for name in named.filter(is_test) {
        assert!(
            defines(&files, name),
            "docs/RELIABILITY.md names {name}, which is gone"
        );
    }
}
