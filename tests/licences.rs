//! Every crate that is built into Backstay carries a licence that its own Apache-2.0 allows; none is GPL. Advisories need a
//! database from outside, so they are not checked here.

use serde_json::Value;
use std::process::Command;

/// Licences that may stand alone or be chosen from an expression.
const ALLOWED: [&str; 13] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether an SPDX expression can be met: each AND part has one allowed OR alternative.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    expression.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|licence| ALLOWED.contains(&licence.trim()))
    })
}

#[test]
fn expressions_are_read_as_they_are_meant() {
    assert!(
        allowed("MIT OR Apache-2.0")
            && allowed("MIT/Apache-2.0")
            && allowed("(MIT OR Apache-2.0) AND Unicode-3.0")
    );
    assert!(allowed("GPL-2.0 OR MIT") && !allowed("GPL-2.0") && !allowed("MIT AND GPL-3.0-only"));
}

#[test]
fn every_dependency_has_a_licence_that_we_may_use() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        // Only what is built here is on this machine, and only that reaches a user.
        .arg(format!(
            "--filter-platform={}-unknown-linux-gnu",
            std::env::consts::ARCH
        ))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(
        packages.len() > 50,
        "only {} packages: the list is not what it should be",
        packages.len()
    );
    let refused: Vec<String> = packages
        .iter()
        .filter(|p| !p["license"].as_str().is_some_and(allowed))
        .map(|p| format!("{} {}: {}", p["name"], p["version"], p["license"]))
        .collect();
    assert!(refused.is_empty(), "licences to look at:\n{}", refused.join("\n"));
}
