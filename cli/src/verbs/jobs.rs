//! `jobs`, `log`.

use super::{Given, Verb};
use crate::{args::ContextArg, error::CliError};
use clap::{Args, ValueEnum};
use control::{Command, JobVerb};

/// Letters of `jobs`.
#[derive(Args, Debug, Default)]
pub(crate) struct Jobs {
    /// What to do with one job; without it all are listed
    #[arg(value_name = "VERB")]
    verb: Option<OneJob>,
    /// Number of the job
    #[arg(value_name = "N", requires = "verb")]
    job: Option<u64>,
    #[command(flatten)]
    context: ContextArg,
}

/// The verbs of `jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OneJob {
    Show,
    Attach,
    Cancel,
}

impl Verb for Jobs {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        let Some(verb) = self.verb else {
            return Ok(Command::Jobs {
                context: self.context.id,
            });
        };
        let verb = match verb {
            OneJob::Show => JobVerb::Show,
            OneJob::Attach => JobVerb::Attach,
            OneJob::Cancel => JobVerb::Cancel,
        };
        if self.context.id.is_some() {
            return Err(CliError::usage(
                "-C goes with the list: a job is named by its number",
            ));
        }
        let job = self
            .job
            .ok_or_else(|| CliError::usage("which job? its number is missing (backstay jobs lists them)"))?;
        Ok(Command::Job { job, verb })
    }
}

/// Letters of `log`.
#[derive(Args, Debug, Default)]
pub(crate) struct Log {
    #[command(flatten)]
    context: ContextArg,
    /// At most so many entries, the newest (default: 100)
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

impl Verb for Log {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        Ok(Command::Log {
            context: self.context.id,
            limit: self.limit,
        })
    }
}
