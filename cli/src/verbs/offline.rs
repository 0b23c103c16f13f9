//! The tools for a stopped node: `fsck-journal`, `dump`, `salvage`. No daemon is asked; the program around us does them.

use super::{at_most_one, only_where};
use crate::{
    args::{Common, ContextArg},
    env::Env,
    error::CliError,
    node,
};
use clap::Args;
use model::Target;
use std::path::PathBuf;

/// Where the state directory is said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlace {
    /// In this node's file.
    Config(PathBuf),
    /// Here: a node's state directory, or a copy of one.
    Folder(PathBuf),
}

/// What is to be done with a stopped node's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offline {
    /// The context, by either id.
    pub context: u32,
    /// The node.
    pub place: StatePlace,
    /// Whether to write nothing at all, and say what would be written (`-n`).
    pub dry_run: bool,
    /// Whether the answer will be one object, so that nothing may be written as it comes.
    pub collect: bool,
    /// The tool.
    pub tool: OfflineTool,
}

/// The tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfflineTool {
    /// `fsck-journal`.
    Check,
    /// `dump`.
    Dump {
        /// What to show, as typed.
        what: Vec<String>,
        /// With their bytes.
        hex: bool,
    },
    /// `dump --log-writes`.
    LogWrites {
        /// The log to write.
        file: PathBuf,
        /// The volume; none: the only one.
        volume: Option<String>,
        /// Behind this point.
        from: Option<Target>,
        /// Up to this one.
        to: Target,
        /// Replace a file that is there.
        force: bool,
    },
    /// `salvage`.
    Salvage {
        /// The point.
        at: Target,
        /// The volume; none: all.
        volume: Option<String>,
        /// The file, or with all volumes the folder.
        out: PathBuf,
        /// Write what can be read.
        best_effort: bool,
        /// Replace files that are there.
        force: bool,
    },
}

/// A command of these.
pub(crate) trait OfflineVerb: clap::Args {
    /// Which context, which folder, which tool.
    fn tool(&self) -> Result<(&Place, OfflineTool), CliError>;
}

/// What all of them take.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Place {
    #[command(flatten)]
    context: ContextArg,
    /// The node's state directory, or a copy of it (default: that of --node)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["node", "config"])]
    state: Option<PathBuf>,
}

/// The whole order.
pub(crate) fn order<V: OfflineVerb>(verb: &V, common: &Common, env: &Env) -> Result<Offline, CliError> {
    let (place, tool) = verb.tool()?;
    let context = place.context.required()?;
    let state = match &place.state {
        Some(folder) => StatePlace::Folder(folder.clone()),
        None => {
            let config = node::config_file(common, env)?;
            node::read(&config)?;
            StatePlace::Config(config)
        }
    };
    Ok(Offline {
        context,
        place: state,
        dry_run: common.dry_run,
        collect: common.json,
        tool,
    })
}

/// Letters of `fsck-journal`.
#[derive(Args, Debug, Default)]
pub(crate) struct Check {
    #[command(flatten)]
    place: Place,
}

impl OfflineVerb for Check {
    fn tool(&self) -> Result<(&Place, OfflineTool), CliError> {
        Ok((&self.place, OfflineTool::Check))
    }
}

/// Letters of `dump`.
#[derive(Args, Debug, Default)]
pub(crate) struct Dump {
    #[command(flatten)]
    place: Place,
    /// superblock, tails, rows (default: these three), lfc gN:ID, seq N, undo [ORDINAL], index
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// With the bytes of each
    #[arg(long)]
    hex: bool,
    /// Write the records of a volume as a dm-log-writes log instead
    #[arg(long, value_name = "FILE")]
    log_writes: Option<PathBuf>,
    /// With --log-writes: this volume (default: the only one)
    #[arg(short = 'L', long, value_name = "NAME")]
    volume: Option<String>,
    /// With --log-writes: records behind this point (default: the oldest one)
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    from: Option<String>,
    /// With --log-writes: records up to this point (default: latest)
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    to: Option<String>,
    /// With --log-writes: replace a file that is there
    #[arg(short, long)]
    force: bool,
}

impl OfflineVerb for Dump {
    fn tool(&self) -> Result<(&Place, OfflineTool), CliError> {
        let log = self.log_writes.is_some();
        only_where(&[
            (self.volume.is_some(), log, "-L goes with --log-writes"),
            (self.from.is_some(), log, "--from goes with --log-writes"),
            (self.to.is_some(), log, "--to goes with --log-writes"),
            (self.force, log, "-f goes with --log-writes"),
            (self.hex, !log, "--hex does not go with --log-writes"),
            (
                !self.what.is_empty(),
                !log,
                "--log-writes shows nothing: it takes no WHAT",
            ),
        ])?;
        let tool = match &self.log_writes {
            None => OfflineTool::Dump {
                what: self.what.clone(),
                hex: self.hex,
            },
            Some(file) => OfflineTool::LogWrites {
                file: file.clone(),
                volume: self.volume.clone(),
                from: self.from.as_deref().map(str::parse).transpose()?,
                to: self.to.as_deref().unwrap_or("latest").parse()?,
                force: self.force,
            },
        };
        Ok((&self.place, tool))
    }
}

/// Letters of `salvage`.
#[derive(Args, Debug, Default)]
pub(crate) struct Salvage {
    #[command(flatten)]
    place: Place,
    /// The point: latest, lfc:70250, mark:NAME, seq:N, -10m, ... (default: latest)
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    at: Option<String>,
    /// The volume
    #[arg(short = 'L', long, value_name = "NAME")]
    volume: Option<String>,
    /// All volumes, each into a file of its name in the folder FILE
    #[arg(long)]
    all: bool,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write what can be read, list what cannot be trusted, and exit 2
    #[arg(long)]
    best_effort: bool,
    /// Replace a file that is there
    #[arg(short, long)]
    force: bool,
}

impl OfflineVerb for Salvage {
    fn tool(&self) -> Result<(&Place, OfflineTool), CliError> {
        // The context comes first, as with all other commands.
        self.place.context.required()?;
        at_most_one(
            "choices",
            &[(self.volume.is_some(), "--volume"), (self.all, "--all")],
        )?;
        if self.volume.is_none() && !self.all {
            return Err(CliError::usage("which volume? --volume NAME or --all is missing"));
        }
        let out = self.output.clone();
        let tool = OfflineTool::Salvage {
            at: self.at.as_deref().unwrap_or("latest").parse()?,
            volume: self.volume.clone(),
            out: out.ok_or_else(|| CliError::usage("write where? -o FILE is missing"))?,
            best_effort: self.best_effort,
            force: self.force,
        };
        Ok((&self.place, tool))
    }
}
