//! `rtdr`: roles.

use super::{Given, Verb, only_where};
use crate::{args::ContextArg, error::CliError};
use clap::{Args, ValueEnum};
use control::Command;

/// Letters of `rtdr`.
#[derive(Args, Debug, Default)]
pub(crate) struct Role {
    #[command(flatten)]
    context: ContextArg,
    /// What to do
    #[arg(value_name = "VERB")]
    verb: Option<RoleVerb>,
    /// With setup: id that the context has after a failover
    #[arg(short = 'F', long, value_name = "ID")]
    failover_id: Option<u32>,
    /// With setup: the host to fail over to (default: the first hop)
    #[arg(short = 's', long, value_name = "HOST")]
    host: Option<String>,
    /// Override a refusal, after a question
    #[arg(short, long)]
    force: bool,
    /// With failover and failback: neither check nor mount filesystems
    #[arg(long)]
    no_mount: bool,
    /// With failover during a resync: the newest received state, not the last consistent point
    #[arg(long)]
    inconsistent: bool,
    /// With resync: both halves, from whichever host this is
    #[arg(long)]
    both: bool,
    /// With failback: keep the present roles for good instead
    #[arg(long)]
    stay: bool,
}

/// The verbs of `rtdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleVerb {
    Setup,
    Failover,
    Resync,
    Failback,
}

impl Verb for Role {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        let verb = self
            .verb
            .ok_or_else(|| CliError::usage("what to do? setup, failover, resync or failback is missing"))?;
        let context = self.context.required()?;
        self.only_with(verb)?;
        let mount = !self.no_mount;
        Ok(match verb {
            RoleVerb::Setup => self.set_up(context)?,
            RoleVerb::Failover => Command::Failover {
                context,
                mount,
                inconsistent: self.inconsistent,
            },
            RoleVerb::Resync => Command::Resync {
                context,
                both: self.both,
            },
            RoleVerb::Failback => Command::Failback {
                context,
                mount: mount && !self.stay,
                stay: self.stay,
            },
        })
    }

    fn force(&self) -> bool {
        self.force
    }
}

impl Role {
    fn set_up(&self, context: u32) -> Result<Command, CliError> {
        let failover_id = self
            .failover_id
            .ok_or_else(|| CliError::usage("setup of which failover context? -F ID is missing"))?;
        if failover_id == context {
            return Err(CliError::usage(format!(
                "both ids are {context}: the failover id must differ from the primary one"
            )));
        }
        Ok(Command::SetUpFailover {
            context,
            failover_id,
            host: self.host.clone(),
        })
    }

    fn only_with(&self, verb: RoleVerb) -> Result<(), CliError> {
        let set_up = verb == RoleVerb::Setup;
        let failover = verb == RoleVerb::Failover;
        let resync = verb == RoleVerb::Resync;
        let failback = verb == RoleVerb::Failback;
        only_where(&[
            (self.failover_id.is_some(), set_up, "-F goes with setup"),
            (self.host.is_some(), set_up, "-s goes with setup"),
            (
                self.no_mount,
                failover || failback && !self.stay,
                "--no-mount goes with failover, and with failback without --stay",
            ),
            (self.inconsistent, failover, "--inconsistent goes with failover"),
            (self.both, resync, "--both goes with resync"),
            (self.stay, failback, "--stay goes with failback"),
        ])
    }
}
