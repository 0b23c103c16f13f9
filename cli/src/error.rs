//! Why a command line was not sent, or got no answer.

use crate::{date::DateError, names};
use control::{Code, Failure, client::ClientError};
use model::target::TargetError;
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Date(#[from] DateError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{0}: not part of this version")]
    NotBuilt(String),
    #[error("'{typed}' is no command of backstay")]
    UnknownCommand { typed: String },
    #[error("{} cannot be used", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {why}", path.display())]
    Config { path: PathBuf, why: String },
    #[error("which node? {}", why)]
    NoNode { why: String },
    #[error(transparent)]
    Client(#[from] ClientError),
    /// In the daemon's own words.
    #[error("{}", .0.error)]
    Failed(Box<Failure>),
}

impl From<Box<Failure>> for CliError {
    fn from(failure: Box<Failure>) -> Self {
        Self::Failed(failure)
    }
}

impl CliError {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// The same as the daemon would have said it.
    pub(crate) fn into_failure(self) -> Failure {
        let failure = Failure::from_error(self.code(), &self);
        match self {
            Self::Failed(failure) => *failure,
            Self::UnknownCommand { typed } => match names::nearest(&typed) {
                Some(name) => {
                    failure.with_hint(format!("did you mean '{name}'? All commands: backstay --help"))
                }
                None => failure.with_hint("all commands: backstay --help"),
            },
            Self::NotBuilt(_) => failure.with_hint("all commands: backstay --help"),
            Self::NoNode { .. } => {
                failure.with_hint("--node NAME, --config FILE or $BACKSTAY_CONFIG; 'backstay init' makes one")
            }
            Self::Client(ClientError::Lost { .. }) => failure.with_hint("run the same command again"),
            _ => failure,
        }
    }

    const fn code(&self) -> Code {
        match self {
            Self::Usage(_)
            | Self::Date(_)
            | Self::Target(_)
            | Self::NotBuilt(_)
            | Self::UnknownCommand { .. }
            | Self::Config { .. }
            | Self::NoNode { .. } => Code::Usage,
            Self::File { .. } => Code::Refused,
            Self::Client(ClientError::Unreachable { .. }) => Code::Unreachable,
            Self::Client(ClientError::Lost { .. }) => Code::PartWay,
            _ => Code::Bug,
        }
    }
}
