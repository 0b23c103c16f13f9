//! `rtmark`: event marks, from flags or from a file.
//!
//! The file has `name = …` and `description = …`, one a line; `#` begins a comment line, quotes around a value are taken
//! off. Anything else in it is refused with its line number.

use super::{Given, Verb, read_text};
use crate::{args::ContextArg, error::CliError};
use clap::Args;
use control::Command;
use model::EventMark;
use std::path::{Path, PathBuf};

/// Most bytes of a mark file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Letters of `rtmark`.
#[derive(Args, Debug, Default)]
pub(crate) struct Mark {
    #[command(flatten)]
    context: ContextArg,
    /// File with "name = ..." and "description = ..."
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "description", "list"])]
    file: Option<PathBuf>,
    /// Name of the mark
    #[arg(long, value_name = "NAME", conflicts_with = "list")]
    name: Option<String>,
    /// Its description
    #[arg(long, value_name = "TEXT", requires = "name")]
    description: Option<String>,
    /// Do not sync the mounted protected filesystems first
    #[arg(long, conflicts_with = "list")]
    no_sync: bool,
    /// Keep its point so long, window or not: 30d, 12h
    #[arg(long, value_name = "AGE", value_parser = age, conflicts_with = "list")]
    keep: Option<u64>,
    /// List marks, newest first
    #[arg(long)]
    list: bool,
}

impl Verb for Mark {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        let context = self.context.required()?;
        if self.list {
            return Ok(Command::Marks { context });
        }
        let (name, description) = match (&self.file, &self.name) {
            (Some(file), _) => read(file)?,
            (None, Some(name)) => (name.clone(), self.description.clone().unwrap_or_default()),
            (None, None) => {
                return Err(CliError::usage(
                    "which mark? FILE, --name NAME or --list is missing",
                ));
            }
        };
        if let Some(fault) = EventMark::name_fault(&name) {
            return Err(CliError::usage(format!("'{name}' cannot name a mark: {fault}")));
        }
        if description.len() > EventMark::DESCRIPTION_BYTES_MAX {
            return Err(CliError::usage(format!(
                "the description has {} bytes, {} is the limit",
                description.len(),
                EventMark::DESCRIPTION_BYTES_MAX
            )));
        }
        Ok(Command::Mark {
            context,
            name,
            description,
            sync: !self.no_sync,
            keep_s: self.keep,
        })
    }
}

/// Seconds of an age.
fn age(text: &str) -> Result<u64, String> {
    model::target::parse_duration(text)
        .map(|ns| ns / model::Timestamp::SECOND_NS)
        .filter(|s| *s > 0)
        .ok_or_else(|| "a number and s, m, h or d".to_owned())
}

fn read(path: &Path) -> Result<(String, String), CliError> {
    parse(&read_text(path, FILE_BYTES_MAX)?)
        .map_err(|why| CliError::usage(format!("{}: {why}", path.display())))
}

fn parse(text: &str) -> Result<(String, String), String> {
    let (mut name, mut description) = (None, None);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| format!("line {number} is not KEY = VALUE"))?;
        let value = value.trim();
        let value = ['"', '\'']
            .into_iter()
            .find_map(|q| value.strip_prefix(q)?.strip_suffix(q))
            .unwrap_or(value);
        let slot = match key.trim() {
            "name" => &mut name,
            "description" => &mut description,
            key => return Err(format!("line {number}: unknown key '{key}' (name, description)")),
        };
        if slot.replace(value.to_owned()).is_some() {
            return Err(format!("line {number}: '{}' stands there twice", key.trim()));
        }
    }
    Ok((
        name.ok_or("no line 'name = ...'")?,
        description.unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_mark_file_is_two_lines() {
        let ok = |text| parse(text).unwrap();
        assert_eq!(ok("name = good\n"), ("good".into(), String::new()));
        assert_eq!(
            ok("# nightly\n\nname=\"end-of-day\"\n description = books = closed \n"),
            ("end-of-day".into(), "books = closed".into())
        );
        for (text, words) in [
            ("", "no line"),
            ("name good", "line 1"),
            ("name = a\nname = b", "line 2"),
            ("name = a\ncolour = b", "unknown key 'colour'"),
        ] {
            assert!(parse(text).unwrap_err().contains(words), "{text}");
        }
    }
}
