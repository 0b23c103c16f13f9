//! `map` and `scconfig`: state maps, and what makes regions stale.

use super::{Given, Verb, at_most_one, only_where, read_text};
use crate::{args::ContextArg, error::CliError};
use clap::{Args, ValueEnum};
use control::{Code, Command, Failure, MapVerb};
use std::path::PathBuf;

/// Most bytes of a dump: with every line end written as two characters it still fits into one line of the socket.
const DUMP_BYTES_MAX: u64 = 6 << 20;

/// Letters of `map`.
#[derive(Args, Debug, Default)]
pub(crate) struct Map {
    #[command(flatten)]
    context: ContextArg,
    /// What to do
    #[arg(value_name = "VERB")]
    verb: Option<MapWord>,
    /// With load: what dump wrote
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// With view, dump and clean: only this volume
    #[arg(short = 'L', long, value_name = "VOLUME")]
    volume: Option<String>,
    /// With unify: the host whose data stays
    #[arg(long, value_name = "HOST")]
    master: Option<String>,
}

/// The verbs of `map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MapWord {
    View,
    Dump,
    Load,
    Clean,
    Unify,
}

impl Verb for Map {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        let word = self
            .verb
            .ok_or_else(|| CliError::usage("what to do? view, dump, load, clean or unify is missing"))?;
        let context = self.context.required()?;
        let (load, unify) = (word == MapWord::Load, word == MapWord::Unify);
        only_where(&[
            (self.file.is_some(), load, "FILE goes with load"),
            (
                self.volume.is_some(),
                !load && !unify,
                "-L goes with view, dump and clean",
            ),
            (self.master.is_some(), unify, "--master goes with unify"),
        ])?;
        let volume = self.volume.clone();
        let verb = match word {
            MapWord::View => MapVerb::View { volume },
            MapWord::Dump => MapVerb::Dump { volume },
            MapWord::Clean => MapVerb::Clean { volume },
            MapWord::Load => MapVerb::Load { text: self.dump()? },
            MapWord::Unify => MapVerb::Unify {
                master: self
                    .master
                    .clone()
                    .ok_or_else(|| CliError::usage("whose data stays? --master HOST is missing"))?,
            },
        };
        Ok(Command::Map { context, verb })
    }
}

impl Map {
    fn dump(&self) -> Result<String, CliError> {
        let file = self
            .file
            .as_ref()
            .ok_or_else(|| CliError::usage("load what? FILE is missing"))?;
        read_text(file, DUMP_BYTES_MAX)
    }
}

/// Letters of `scconfig`.
#[derive(Args, Debug, Default)]
pub(crate) struct Config {
    #[command(flatten)]
    context: ContextArg,
    /// Make the state maps dirty: their regions are copied anew
    #[arg(short = 'M', long)]
    dirty: bool,
    /// With -M: only this volume; may be repeated
    #[arg(short = 'L', long, value_name = "VOLUME")]
    volume: Vec<String>,
    /// With -G: make all volumes dirty
    #[arg(short = 'B', long)]
    all_volumes: bool,
    /// With -B: and begin the full resync now
    #[arg(short = 'G', long)]
    resync_now: bool,
    /// Not part of this version: how often to look for partial LFCs
    #[arg(short = 'a', long, value_name = "SECONDS")]
    partial_interval: Option<String>,
    /// Not part of this version: how full a partial LFC must be
    #[arg(short = 'b', long, value_name = "PERCENT")]
    partial_fill: Option<String>,
}

impl Verb for Config {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        self.no_partial_policy()?;
        let context = self.context.required()?;
        let full = self.all_volumes && self.resync_now;
        if self.all_volumes != self.resync_now {
            return Err(CliError::usage(
                "-B and -G go together: all volumes, and the full resync now",
            ));
        }
        at_most_one("things to do", &[(self.dirty, "-M"), (full, "-B -G")])?;
        only_where(&[(
            !self.volume.is_empty(),
            self.dirty,
            "-L goes with -M; -B -G is about all volumes",
        )])?;
        if !self.dirty && !full {
            return Err(CliError::usage("nothing to do: -M or -B -G is missing"));
        }
        Ok(Command::Dirty {
            context,
            volumes: self.volume.clone(),
            full,
        })
    }
}

impl Config {
    fn no_partial_policy(&self) -> Result<(), CliError> {
        if self.partial_interval.is_none() && self.partial_fill.is_none() {
            return Ok(());
        }
        let failure = Failure::new(
            Code::Usage,
            "scconfig -a and -b (when to send partial LFCs): not part of this version",
        );
        Err(CliError::Failed(Box::new(failure.with_hint(
            "records are sent at once, whatever their LFC; lfc_max_age in the context's file seals it",
        ))))
    }
}
