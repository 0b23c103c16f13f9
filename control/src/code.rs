//! Exit codes: the few kinds of ending that a script can tell apart.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a command ended. Only [`Code::Done`] is zero: nothing returns success on failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum Code {
    /// Done, or already so.
    Done = 0,
    /// Refused; nothing changed.
    Refused = 1,
    /// Done, and the answer is "dirty" or "not healthy".
    Unhealthy = 2,
    /// The target lies outside the window or in a gap.
    OutsideWindow = 3,
    /// Failed part-way: the same command goes on from there.
    PartWay = 4,
    /// The command line makes no sense.
    Usage = 64,
    /// The daemon does not answer.
    Unreachable = 69,
    /// A defect of the program.
    Bug = 70,
    /// Not now: timed out, peer unreachable, or locked by another operator.
    NotNow = 75,
    /// Detached by Ctrl-C; the job goes on.
    Detached = 130,
}

impl Code {
    /// All codes, in rising order.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Refused,
        Self::Unhealthy,
        Self::OutsideWindow,
        Self::PartWay,
        Self::Usage,
        Self::Unreachable,
        Self::Bug,
        Self::NotNow,
        Self::Detached,
    ];

    /// What the process exits with.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind in a few words, for help pages.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done, or already so",
            Self::Refused => "refused, nothing changed",
            Self::Unhealthy => "done, and the answer is dirty or not healthy",
            Self::OutsideWindow => "target outside the window or in a gap",
            Self::PartWay => "failed part-way: run the same command again to go on",
            Self::Usage => "usage",
            Self::Unreachable => "daemon not reachable",
            Self::Bug => "a defect of the program",
            Self::NotNow => "not now: timed out, peer unreachable, or locked by another operator",
            Self::Detached => "detached by Ctrl-C, the job goes on",
        }
    }
}

impl From<Code> for u8 {
    fn from(code: Code) -> Self {
        code.number()
    }
}

impl TryFrom<u8> for Code {
    type Error = UnknownCode;

    fn try_from(number: u8) -> Result<Self, UnknownCode> {
        Self::ALL
            .into_iter()
            .find(|c| c.number() == number)
            .ok_or(UnknownCode(number))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.meaning())
    }
}

/// A number that is no exit code of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an exit code of backstay")]
pub struct UnknownCode(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbers_on_the_socket() {
        for code in Code::ALL {
            let text = serde_json::to_string(&code).unwrap();
            assert_eq!(text, code.number().to_string());
            assert_eq!(serde_json::from_str::<Code>(&text).unwrap(), code);
        }
        assert!(serde_json::from_str::<Code>("5").is_err());
    }
}
