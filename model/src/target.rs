//! Restore targets: the one grammar that commands, letters and export names share (`commands.md`, "Targets").
//!
//! ```text
//! [gN:] latest | restored | lfc:ID | epoch:SECONDS[.FRACTION] | RFC 3339 date | mark:NAME | seq:N | -DURATION
//! ```
//! A duration is a number with one of the units `s m h d` (`-10m`).

use crate::{EventMark, GenNo, LfcId, Timestamp, WriteSeq};
use std::{fmt, str::FromStr};

/// What was asked for; says nothing yet about whether it can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `g3:`: another line than the one that leads to today's production.
    pub generation: Option<GenNo>,
    /// The rest.
    pub kind: TargetKind,
}

/// The kinds of target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// The newest journaled point.
    Latest,
    /// The replica as it stands after a failover restore.
    Restored,
    /// The end of a redo container.
    Lfc(LfcId),
    /// An instant: all writes with time `<=` it.
    Time(Timestamp),
    /// An event mark by name.
    Mark(String),
    /// A record.
    Seq(WriteSeq),
    /// So many nanoseconds before now.
    Ago(u64),
}

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a restore target: {why} (latest, lfc:N, epoch:N, an RFC 3339 date, mark:NAME, seq:N or -10m)"
)]
pub struct TargetError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl From<TargetKind> for Target {
    fn from(kind: TargetKind) -> Self {
        Self {
            generation: None,
            kind,
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let err = |why| TargetError {
            text: text.to_owned(),
            why,
        };
        let (generation, rest) = match text.strip_prefix('g').and_then(|t| t.split_once(':')) {
            Some((n, rest)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => (
                Some(GenNo(n.parse().map_err(|_| err("the generation is too large"))?)),
                rest,
            ),
            _ => (None, text),
        };
        let number = |s: &str| {
            if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
                return Err(err("a whole number is missing"));
            }
            s.parse::<u64>().map_err(|_| err("the number is too large"))
        };
        let kind = if rest == "latest" {
            TargetKind::Latest
        } else if rest == "restored" {
            TargetKind::Restored
        } else if let Some(n) = rest.strip_prefix("lfc:") {
            TargetKind::Lfc(LfcId(number(n)?))
        } else if let Some(n) = rest.strip_prefix("seq:") {
            TargetKind::Seq(WriteSeq(number(n)?))
        } else if let Some(name) = rest.strip_prefix("mark:") {
            if EventMark::name_fault(name).is_some() {
                return Err(err("that cannot be the name of a mark"));
            }
            TargetKind::Mark(name.to_owned())
        } else if let Some(n) = rest.strip_prefix("epoch:") {
            TargetKind::Time(
                parse_epoch(n).ok_or_else(|| err("the epoch time is not SECONDS or SECONDS.FRACTION"))?,
            )
        } else if let Some(d) = rest.strip_prefix('-') {
            TargetKind::Ago(parse_duration(d).ok_or_else(|| err("a duration is a number and s, m, h or d"))?)
        } else {
            let date = chrono::DateTime::parse_from_rfc3339(rest)
                .map_err(|_| err("it has none of the known forms"))?;
            let nanos = date.timestamp_nanos_opt().and_then(|n| u64::try_from(n).ok());
            TargetKind::Time(Timestamp(
                nanos.ok_or_else(|| err("the date is before 1970 or after 2261"))?,
            ))
        };
        Ok(Self { generation, kind })
    }
}

/// Parses `1169584788` or `1169584788.25`.
#[must_use]
pub fn parse_epoch(text: &str) -> Option<Timestamp> {
    let (secs, frac) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(secs) || !digits(frac) || frac.len() > 9 {
        return None;
    }
    let nanos = format!("{frac:0<9}").parse::<u64>().ok()?;
    Some(Timestamp(
        secs.parse::<u64>()
            .ok()?
            .checked_mul(Timestamp::SECOND_NS)?
            .checked_add(nanos)?,
    ))
}

/// Parses `10m`, `90s`, `2h`, `1d` to nanoseconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(seconds)?
        .checked_mul(Timestamp::SECOND_NS)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(g) = self.generation {
            write!(f, "g{g}:")?;
        }
        match &self.kind {
            TargetKind::Latest => f.write_str("latest"),
            TargetKind::Restored => f.write_str("restored"),
            TargetKind::Lfc(l) => write!(f, "lfc:{l}"),
            TargetKind::Time(t) if t.0 % Timestamp::SECOND_NS == 0 => write!(f, "epoch:{}", t.seconds()),
            TargetKind::Time(t) => {
                let frac = format!("{:09}", t.0 % Timestamp::SECOND_NS);
                write!(f, "epoch:{}.{}", t.seconds(), frac.trim_end_matches('0'))
            }
            TargetKind::Mark(m) => write!(f, "mark:{m}"),
            TargetKind::Seq(s) => write!(f, "seq:{s}"),
            TargetKind::Ago(ns) => write!(f, "-{}s", ns / Timestamp::SECOND_NS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_round_trips() {
        for text in [
            "latest",
            "restored",
            "lfc:70250",
            "epoch:1169584788",
            "epoch:1169584788.25",
            "mark:end-of-day",
            "seq:17",
            "-600s",
            "g3:lfc:70250",
            "g3:mark:g4",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!(
            "-10m".parse::<Target>().unwrap().kind,
            TargetKind::Ago(600_000_000_000)
        );
        assert_eq!(
            "2009-05-15T09:33:40Z".parse::<Target>().unwrap().kind,
            TargetKind::Time(Timestamp(1_242_380_020_000_000_000))
        );
        assert_eq!(
            "mark:g3".parse::<Target>().unwrap().kind,
            TargetKind::Mark("g3".into())
        );
    }

    #[test]
    fn refuses_what_is_no_target() {
        for text in [
            "",
            "lfc:",
            "lfc:x",
            "lfc:-1",
            "epoch:1.",
            "epoch:.5",
            "epoch:1.1234567891",
            "mark:",
            "mark:a b",
            "seq:99999999999999999999",
            "-",
            "-10",
            "-m",
            "-10x",
            "g:latest",
            "05/15/09 09:33:40",
            "gé:latest",
            "-1é",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
