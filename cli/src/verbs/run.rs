//! `rtstart` and `rtstop`.

use super::{Given, Verb};
use crate::{args::ContextArg, error::CliError};
use clap::Args;
use control::Command;

/// Letters of `rtstart`.
#[derive(Args, Debug, Default)]
pub(crate) struct Start {
    #[command(flatten)]
    context: ContextArg,
    /// Serve although the peer does not answer and may have taken over
    #[arg(short, long)]
    force: bool,
    /// Make all regions stale first: everything is copied anew
    #[arg(short = 'M', long)]
    dirty: bool,
}

impl Verb for Start {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        Ok(Command::Start {
            context: self.context.required()?,
            dirty: self.dirty,
        })
    }

    fn force(&self) -> bool {
        self.force
    }
}

/// Letters of `rtstop`.
#[derive(Args, Debug, Default)]
pub(crate) struct Stop {
    #[command(flatten)]
    context: ContextArg,
    /// Unmount the protected filesystems first
    #[arg(short = 'F', long)]
    unmount: bool,
    /// Drain to the recovery server first
    #[arg(short = 'S', long)]
    drain: bool,
    /// Override a refusal, after a question
    #[arg(short, long)]
    force: bool,
}

impl Verb for Stop {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        Ok(Command::Stop {
            context: self.context.required()?,
            unmount: self.unmount,
            drain: self.drain,
        })
    }

    fn force(&self) -> bool {
        self.force
    }
}
