//! `status`, `pins`, `wait`, `probe`, `verify`, `grow`, and the local commands.

use super::{Given, Shape, Verb, at_most_one, only_where};
use crate::{
    args::{Common, ContextArg},
    error::CliError,
    size,
};
use clap::Args;
use control::{Command, WaitFor};
use std::path::PathBuf;

/// Letters of `status`.
#[derive(Args, Debug, Default)]
pub(crate) struct Status {
    #[command(flatten)]
    context: ContextArg,
    /// One line a context, for monitoring: 0 healthy, 2 not
    #[arg(long)]
    monitor: bool,
    /// Again every SECONDS, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", require_equals = true)]
    watch: Option<u64>,
}

impl Verb for Status {
    fn command(&self, given: &Given<'_>) -> Result<Command, CliError> {
        at_most_one(
            "shapes",
            &[
                (self.monitor, "--monitor"),
                (self.watch.is_some(), "--watch"),
                (given.common.json && self.watch.is_some(), "--json"),
            ],
        )?;
        Ok(Command::Status {
            context: self.context.id,
        })
    }

    fn shape(&self) -> Shape {
        match self.watch {
            Some(seconds) => Shape::Watch(seconds.max(1)),
            None if self.monitor => Shape::Monitor,
            None => Shape::Plain,
        }
    }
}

/// Letters of `pins`.
#[derive(Args, Debug, Default)]
pub(crate) struct Pins {
    #[command(flatten)]
    context: ContextArg,
    /// Release the pin that a released snapshot left, before its time
    #[arg(long, value_name = "ID")]
    release: Option<u64>,
}

impl Verb for Pins {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        Ok(match self.release {
            Some(pin) => Command::ReleasePin {
                context: self.context.required()?,
                pin,
            },
            None => Command::Pins {
                context: self.context.id,
            },
        })
    }
}

/// Letters of `wait`.
#[derive(Args, Debug, Default)]
pub(crate) struct Wait {
    #[command(flatten)]
    context: ContextArg,
    /// enabled, resynced, drained, consistent, mark=NAME or applied=SEQ
    #[arg(long, value_name = "WHAT")]
    until: Option<WaitFor>,
}

impl Verb for Wait {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        Ok(Command::Wait {
            context: self.context.required()?,
            until: self
                .until
                .clone()
                .ok_or_else(|| CliError::usage("wait for what? --until WHAT is missing"))?,
        })
    }
}

/// Letters of `probe`.
#[derive(Args, Debug, Default)]
pub(crate) struct Probe {
    #[command(flatten)]
    context: ContextArg,
}

impl Verb for Probe {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        Ok(Command::Probe {
            context: self.context.required()?,
        })
    }
}

/// Letters of `verify`.
#[derive(Args, Debug, Default)]
pub(crate) struct Verify {
    #[command(flatten)]
    context: ContextArg,
    /// Copy again what differs, from production to the replica, and compare it once more
    #[arg(long)]
    repair: bool,
    /// Only so many regions of 1 MiB, chosen at random
    #[arg(long, value_name = "N")]
    sample: Option<u64>,
}

impl Verb for Verify {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        only_where(&[(
            self.sample == Some(0),
            false,
            "--sample 0: nothing would be compared",
        )])?;
        Ok(Command::Verify {
            context: self.context.required()?,
            repair: self.repair,
            sample: self.sample,
        })
    }
}

/// Letters of `grow`.
#[derive(Args, Debug, Default)]
pub(crate) struct Grow {
    #[command(flatten)]
    context: ContextArg,
    /// The volume
    #[arg(short = 'L', long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Its new size: 2T (default: that of the device or file it stands on)
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    size: Option<u64>,
}

impl Verb for Grow {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        let volume = self.volume.clone();
        Ok(Command::Grow {
            context: self.context.required()?,
            volume: volume.ok_or_else(|| CliError::usage("which volume? -L VOLUME is missing"))?,
            bytes: self.size,
        })
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text).ok_or_else(|| "a number, or one with K, M, G, T or P".to_owned())
}

/// Letters of `links`; done here, without a daemon.
#[derive(Args, Debug, Default)]
pub(crate) struct Links {
    /// Where to make them
    #[arg(value_name = "DIR", default_value = "/usr/scrt/bin")]
    pub dir: PathBuf,
}

/// Letters of `nbd`; done here, with a connection to the daemon for each client.
#[derive(Args, Debug, Default)]
pub(crate) struct Nbd {
    /// The client is at stdin and stdout, or connects to the socket that was handed over ($LISTEN_FDS)
    #[arg(long)]
    stdio: bool,
    /// What the client gets that names no export: c1/data, c1/rsn10/data, c1/data@TARGET, c1/data@TARGET+rw
    #[arg(value_name = "EXPORT")]
    export: Option<String>,
}

impl Nbd {
    /// The export, if the letters make sense.
    pub(crate) fn export(self, common: &Common) -> Result<String, CliError> {
        only_where(&[
            (true, self.stdio, "where is the client? --stdio is missing"),
            (common.json, false, "--json: stdout is the client's"),
        ])?;
        self.export
            .ok_or_else(|| CliError::usage("which export? backstay nbd --stdio EXPORT"))
    }
}

/// Letters of `serve`; done by the program around us.
#[derive(Args, Debug, Default)]
pub(crate) struct Serve {}
