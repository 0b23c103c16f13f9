//! The table of mutants, `tests/mutants.toml`: what is in it, and the tests it names.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};

/// One rule broken in one place.
pub struct Mutant {
    /// The rule, as the design names it.
    pub rule: String,
    /// The file, from the root of the tree.
    pub file: String,
    /// Text that occurs exactly once in the file.
    pub find: String,
    /// What breaks the rule when it stands there instead.
    pub replace: String,
    /// The test that must fail then.
    pub test: Test,
    /// What goes wrong with it.
    pub why: String,
}

/// A test: `package/target/name`, where the target is `lib` or the name of an integration test.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    pub package: String,
    pub target: String,
    pub name: String,
}

impl Mutant {
    /// The text of its file with the rule broken.
    ///
    /// # Errors
    /// When the file is gone, or `find` does not occur in it exactly once.
    pub fn apply(&self, root: &Path) -> Result<String> {
        let text = fs::read_to_string(root.join(&self.file)).with_context(|| self.file.clone())?;
        let count = text.matches(&self.find).count();
        ensure!(
            count == 1,
            "{}: {}: `find` occurs {count} times, and must occur once:\n{}",
            self.rule,
            self.file,
            self.find
        );
        Ok(text.replacen(&self.find, &self.replace, 1))
    }
}

/// Reads the table of the tree at `root`.
///
/// # Errors
/// When it is missing or malformed; unknown and missing keys are named.
pub fn load(root: &Path) -> Result<Vec<Mutant>> {
    let table: toml::Table = fs::read_to_string(root.join("tests/mutants.toml"))?.parse()?;
    ensure!(
        table.keys().eq(["mutant"]),
        "tests/mutants.toml holds [[mutant]] and nothing else"
    );
    let mutants = table["mutant"].as_array().context("[[mutant]]")?;
    mutants.iter().map(mutant).collect()
}

fn mutant(entry: &toml::Value) -> Result<Mutant> {
    const KEYS: [&str; 6] = ["file", "find", "replace", "rule", "test", "why"];
    let table = entry.as_table().context("[[mutant]] is a table")?;
    let mut keys: Vec<&str> = table.keys().map(String::as_str).collect();
    keys.sort_unstable();
    ensure!(
        keys == KEYS,
        "a [[mutant]] has the keys {keys:?} instead of {KEYS:?}"
    );
    let text =
        |key: &str| Ok::<_, anyhow::Error>(table[key].as_str().context("every value is text")?.to_owned());
    let words = text("test")?;
    let parts: Vec<&str> = words.split('/').collect();
    let [package, target, name] = parts[..] else {
        anyhow::bail!("`{words}` is not `package/target/name`");
    };
    Ok(Mutant {
        rule: text("rule")?,
        file: text("file")?,
        find: text("find")?,
        replace: text("replace")?,
        test: Test {
            package: package.to_owned(),
            target: target.to_owned(),
            name: name.to_owned(),
        },
        why: text("why")?,
    })
}
