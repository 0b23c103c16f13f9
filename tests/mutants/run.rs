//! `make mutants [RULES="T1 W5"]`: breaks one rule at a time and demands that its test fails.
//!
//! The tree is copied to a temporary folder; there, one mutant of `tests/mutants.toml` after the other is put in, its test is
//! built and run, and the file is put back. A mutant that does not compile proves nothing and is told apart from a test that
//! fails; before the first mutant all tests must pass on the copy as it is, or their failing would prove nothing either.
//!
//! Dependencies (RocksDB above all) are taken from the target folder that this program was built in. Our own crates get
//! another version in the copy: cargo keeps what it builds of them apart, so a broken crate is never taken for the whole one.

mod table;

use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};
use table::{Mutant, Test};
use testkit::proc::{Finished, root, run};

/// Longer than a build of all our crates, or any one test, takes.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What became of a mutant.
enum Fate {
    /// Its test failed, as it must.
    Killed,
    /// Its test passed: it proves nothing about the rule.
    Survived,
    /// The mutant does not compile: it proves nothing about the test.
    DoesNotBuild(String),
}

/// The copy in which rules are broken.
struct Copy {
    root: tempfile::TempDir,
    /// Where intermediate results of the whole tree are.
    build: PathBuf,
}

impl Copy {
    fn new() -> Result<Self> {
        let temp = tempfile::Builder::new().prefix("backstay-mutants-").tempdir()?;
        copy(root(), temp.path())?;
        rename_crates(temp.path())?;
        let this = env::current_exe()?;
        // TARGET/debug/examples/mutants
        let build = this.ancestors().nth(3).context("built by cargo")?.to_owned();
        Ok(Self { root: temp, build })
    }

    /// Runs cargo in the copy. Final results go into the copy, so that no program of the whole tree is replaced.
    fn cargo(&self, package: &str, target: &str, then: &[&str]) -> Finished {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(self.root.path())
            .env("CARGO_BUILD_BUILD_DIR", &self.build)
            .env("CARGO_TARGET_DIR", self.root.path().join("target"))
            .args(["test", "--quiet", "--locked", "--package", package]);
        // What cargo tells this program about itself would make build scripts of dependencies run again.
        for (name, _) in env::vars_os() {
            let told = [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_CRATE_",
                "CARGO_BIN_",
                "CARGO_PRIMARY_",
            ];
            if told.iter().any(|t| name.to_string_lossy().starts_with(t)) {
                cargo.env_remove(name);
            }
        }
        match target {
            "lib" => cargo.arg("--lib"),
            name => cargo.args(["--test", name]),
        };
        run(cargo.args(then), PATIENCE)
    }

    /// All tests pass as long as nothing is broken, and there are as many as are named.
    fn check_whole(&self, mutants: &[&Mutant]) -> Result<()> {
        let mut targets: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for Mutant { test, .. } in mutants {
            let names = targets.entry((&test.package, &test.target)).or_default();
            names.insert(&test.name);
        }
        for ((package, target), names) in targets {
            println!("the whole tree: {package}, {target}: {} tests", names.len());
            let then: Vec<&str> = ["--"].into_iter().chain(names.iter().copied()).collect();
            let done = self.cargo(package, target, &then);
            ensure!(
                done.code == 0,
                "without any mutant:\n{}{}",
                done.stdout,
                done.stderr
            );
            let passed = passed(&done.stdout);
            ensure!(
                passed >= names.len(),
                "{passed} tests ran where {} are named: {names:?}",
                names.len()
            );
        }
        Ok(())
    }

    fn try_mutant(&self, mutant: &Mutant) -> Result<Fate> {
        let path = self.root.path().join(&mutant.file);
        let whole = fs::read(&path)?;
        fs::write(&path, mutant.apply(self.root.path())?)?;
        let Test {
            package,
            target,
            name,
        } = &mutant.test;
        let built = self.cargo(package, target, &["--no-run"]);
        let fate = if built.code == 0 {
            let done = self.cargo(package, target, &["--", name]);
            match done.code {
                0 => Fate::Survived,
                _ => Fate::Killed,
            }
        } else {
            Fate::DoesNotBuild(built.stderr)
        };
        fs::write(&path, whole)?;
        Ok(fate)
    }
}

/// The number of tests that passed, by what a test program prints at its end.
fn passed(stdout: &str) -> usize {
    let ended = stdout.lines().filter_map(|l| l.strip_prefix("test result: ok. "));
    ended
        .filter_map(|l| l.split_once(' ')?.0.parse::<usize>().ok())
        .sum()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') || ["target", "build"].iter().any(|n| name == *n) {
            continue;
        }
        let (path, to) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            fs::create_dir(&to)?;
            copy(&path, &to)?;
        } else {
            // Read and written, not copied: the copy is newer than whatever an earlier run built.
            fs::write(&to, fs::read(&path)?)?;
        }
    }
    Ok(())
}

/// Gives our crates another version, in the manifest and in the lock file.
fn rename_crates(tree: &Path) -> Result<()> {
    let manifest = tree.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)?;
    let table: toml::Table = text.parse()?;
    let version = table["workspace"]["package"]["version"].as_str();
    let version = version.context("the workspace has a version")?;
    let (old, new) = (
        format!("version = \"{version}\""),
        format!("version = \"{version}-mutant\""),
    );
    fs::write(&manifest, text.replacen(&old, &new, 1))?;
    let lock = tree.join("Cargo.lock");
    let mut ours = false;
    let text: String = fs::read_to_string(&lock)?
        .lines()
        .map(|line| {
            let line = if ours && line == old { &new } else { line };
            ours = line.starts_with("name = \"backstay");
            format!("{line}\n")
        })
        .collect();
    Ok(fs::write(&lock, text)?)
}

fn all(wanted: &[String]) -> Result<bool> {
    let mutants = table::load(root())?;
    let is_wanted = |m: &&Mutant| wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(&m.rule));
    let chosen: Vec<&Mutant> = mutants.iter().filter(is_wanted).collect();
    for w in wanted {
        if !chosen.iter().any(|m| w.eq_ignore_ascii_case(&m.rule)) {
            bail!("no mutant of a rule {w}");
        }
    }
    let tree = Copy::new()?;
    tree.check_whole(&chosen)?;
    println!("{:<12} {:<9} {:>7}  {:<70} mutant", "rule", "", "seconds", "test");
    let mut killed = 0;
    for mutant in &chosen {
        let start = Instant::now();
        let fate = tree.try_mutant(mutant)?;
        let word = match &fate {
            Fate::Killed => "killed",
            Fate::Survived => "SURVIVED",
            Fate::DoesNotBuild(_) => "NO BUILD",
        };
        killed += usize::from(matches!(fate, Fate::Killed));
        let seconds = start.elapsed().as_secs();
        let Mutant { rule, test, why, .. } = mutant;
        println!("{rule:<12} {word:<9} {seconds:>7}  {:<70} {why}", test.name);
        if let Fate::DoesNotBuild(text) = fate {
            println!("{text}");
        }
    }
    println!("{killed} of {} mutants killed", chosen.len());
    Ok(killed == chosen.len())
}

fn main() -> ExitCode {
    match all(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
