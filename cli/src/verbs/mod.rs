//! From letters to [`Command`]s, one module for each family of commands.

pub(crate) mod jobs;
pub(crate) mod map;
pub(crate) mod mark;
pub(crate) mod mount;
pub(crate) mod offline;
pub(crate) mod other;
pub(crate) mod protect;
pub(crate) mod ra;
pub(crate) mod role;
pub(crate) mod run;

use crate::{args::Common, error::CliError, zone::Zone};
use control::{Command, Moment};
use std::{fs::File, io::Read as _, path::Path};

/// What a verb may look at besides its own letters.
pub(crate) struct Given<'a> {
    pub common: &'a Common,
    pub zone: Zone,
    pub now: Moment,
}

/// A command that the daemon does.
pub(crate) trait Verb: clap::Args {
    /// What to ask for.
    fn command(&self, given: &Given<'_>) -> Result<Command, CliError>;

    /// `-f`, where it overrides refusals.
    fn force(&self) -> bool {
        false
    }

    /// `--tz`, where there is one.
    fn zone(&self) -> Option<&str> {
        None
    }

    /// How to write the answer, where there is more than one way.
    fn shape(&self) -> Shape {
        Shape::Plain
    }
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As usual.
    Plain,
    /// `status --monitor`: one line a context.
    Monitor,
    /// `status --watch`: again and again, so many seconds apart.
    Watch(u64),
}

/// Refuses all but at most one of these; names the two that were typed.
pub(crate) fn at_most_one(what: &str, typed: &[(bool, &str)]) -> Result<(), CliError> {
    let mut given = typed.iter().filter(|(is, _)| *is).map(|(_, name)| *name);
    match (given.next(), given.next()) {
        (Some(a), Some(b)) => Err(CliError::usage(format!("two {what} at once: {a} and {b}"))),
        _ => Ok(()),
    }
}

/// Refuses letters that would be ignored, for what is typed is meant: each as (typed, allowed, what to say).
pub(crate) fn only_where(rules: &[(bool, bool, &str)]) -> Result<(), CliError> {
    rules
        .iter()
        .find(|(typed, allowed, _)| *typed && !*allowed)
        .map_or(Ok(()), |(_, _, text)| Err(CliError::usage(*text)))
}

/// A file's text, of at most so many bytes.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<String, CliError> {
    let mut text = String::new();
    let read = File::open(path)
        .and_then(|f| f.take(bytes_max + 1).read_to_string(&mut text))
        .map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })?;
    if read as u64 > bytes_max {
        return Err(CliError::usage(format!(
            "{}: longer than {bytes_max} bytes",
            path.display()
        )));
    }
    Ok(text)
}
