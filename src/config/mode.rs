//! When production answers: the mode of a context, its high-water mark, and what a lost peer does to it.

use journal::tap;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// When a change is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Once it is in the journal here.
    #[default]
    Async,
    /// Once it is durable in the journals of both hosts.
    Mwc,
    /// As `mwc`.
    Sync,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Async, Self::Mwc, Self::Sync];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Mwc => "mwc",
            Self::Sync => "sync",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == text);
        mode.ok_or_else(|| format!("'{text}' is no mode: async, mwc or sync"))
    }
}

/// What becomes of changes in `mwc` and `sync` while the peer is away, or catches up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLinkLoss {
    /// They are answered as in `async`.
    #[default]
    Continue,
    /// They wait for it.
    Block,
    /// They are answered with an error.
    Fail,
}

impl From<OnLinkLoss> for tap::OnLinkLoss {
    fn from(policy: OnLinkLoss) -> Self {
        match policy {
            OnLinkLoss::Continue => Self::Continue,
            OnLinkLoss::Block => Self::Block,
            OnLinkLoss::Fail => Self::Fail,
        }
    }
}
