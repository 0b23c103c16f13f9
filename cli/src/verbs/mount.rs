//! `rtmnt` and `rtumnt`.

use super::{Given, Verb, at_most_one, only_where};
use crate::{args::ContextArg, error::CliError};
use clap::Args;
use control::Command;

/// Letters of `rtmnt`.
#[derive(Args, Debug, Default)]
pub(crate) struct Mnt {
    #[command(flatten)]
    context: ContextArg,
    /// The snapshot of this level (else the one unnamed snapshot)
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Mount under this directory
    #[arg(long, value_name = "DIR")]
    at_dir: Option<String>,
    /// Mount the read-only snap device
    #[arg(long)]
    read_only: bool,
    /// Check the filesystem in full
    #[arg(short = 'f', long)]
    full_check: bool,
    /// Give a btrfs whose UUID another device shows too one of its own
    #[arg(long)]
    new_uuid: bool,
}

impl Verb for Mnt {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        only_where(&[(
            self.new_uuid,
            !self.read_only,
            "--new-uuid writes: not with --read-only",
        )])?;
        let at_dir = self
            .at_dir
            .as_deref()
            .map(|d| absolute("--at-dir", d))
            .transpose()?;
        Ok(Command::Mount {
            context: self.context.required()?,
            level: self.level,
            at_dir,
            read_only: self.read_only,
            full_check: self.full_check,
            new_uuid: self.new_uuid,
        })
    }
}

/// The daemon has another working directory.
pub(crate) fn absolute(what: &str, path: &str) -> Result<String, CliError> {
    std::path::absolute(path)
        .ok()
        .and_then(|p| p.into_os_string().into_string().ok())
        .ok_or_else(|| CliError::usage(format!("{what}: '{path}' is no usable path")))
}

/// Letters of `rtumnt`.
#[derive(Args, Debug, Default)]
pub(crate) struct Umnt {
    #[command(flatten)]
    context: ContextArg,
    /// Production: wait for a running first sync or resync, unmount, drain to the recovery server
    #[arg(short = 'F', long)]
    drain: bool,
    /// Snapshot filesystems, whatever the role
    #[arg(short = 'R', long)]
    replica_side: bool,
    /// End those who have files open, after a question
    #[arg(short, long)]
    force: bool,
}

impl Verb for Umnt {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        at_most_one(
            "kinds of filesystems",
            &[(self.drain, "-F"), (self.replica_side, "-R")],
        )?;
        Ok(Command::Unmount {
            context: self.context.required()?,
            drain: self.drain,
            replica_side: self.replica_side,
            force: self.force,
        })
    }

    fn force(&self) -> bool {
        self.force
    }
}
