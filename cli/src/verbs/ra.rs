//! `scrt_ra`: snapshots, restores, rollback windows.

use super::{Given, Verb, at_most_one, only_where};
use crate::{args::ContextArg, date, error::CliError};
use clap::Args;
use control::{
    Command,
    request::{RestoreTo, Which},
};
use model::{
    LfcId, Target, Timestamp, WriteSeq,
    target::{TargetKind, parse_epoch},
};

/// Letters of `scrt_ra`.
#[derive(Args, Debug, Default)]
pub(crate) struct Ra {
    #[command(flatten)]
    context: ContextArg,
    /// Override a refusal, after a question
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    act: Act,
    #[command(flatten)]
    target: Targets,
    #[command(flatten)]
    list: List,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "What to do (a target alone: a snapshot there)")]
struct Act {
    /// Snapshot of the newest journaled point
    #[arg(short = 'X', long)]
    snapshot: bool,
    /// Restore the replica itself to the target
    #[arg(short = 'F', long)]
    failover_restore: bool,
    /// Release snapshots: all unnamed ones, --level N, or --all
    #[arg(short = 'W', long)]
    release: bool,
    /// Take the failover restore back
    #[arg(long)]
    undo: bool,
    /// List rollback windows
    #[arg(short = 'p', long)]
    windows: bool,
    /// List event marks (with -v every LFC)
    #[arg(short = 'e', long)]
    events: bool,
    /// With -F: only this volume, which breaks the group's consistency
    #[arg(short = 'L', long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Name the snapshot
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// With -W: that snapshot; with -F: its point
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// With -W: named snapshots too
    #[arg(long)]
    all: bool,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Targets (one)")]
struct Targets {
    /// The end of a redo LFC
    #[arg(short = 't', long, value_name = "LFC")]
    lfc: Option<u64>,
    /// Seconds since 1970
    #[arg(short = 'S', long, value_name = "EPOCH")]
    epoch: Option<String>,
    /// "MM/DD/YY HH:MM:SS" or ISO, in this host's zone or --tz
    #[arg(short = 'D', long, value_name = "DATE")]
    date: Option<String>,
    /// An event mark
    #[arg(long, value_name = "NAME")]
    mark: Option<String>,
    /// A write
    #[arg(long, value_name = "N")]
    seq: Option<u64>,
    /// The newest journaled point
    #[arg(long)]
    latest: bool,
    /// So long ago: 90s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME")]
    ago: Option<String>,
    /// Any target in one word: g3:lfc:70250, mark:NAME, -10m, ...
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    at: Option<String>,
    /// With -F: the point of the newest operator snapshot
    #[arg(long)]
    last_snapshot: bool,
    /// Zone of dates, typed and printed (Europe/Berlin)
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "With -p, -e, -v")]
struct List {
    /// Nothing older (a date or a target)
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    from: Option<String>,
    /// Nothing newer (a date or a target)
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    to: Option<String>,
    /// At most so many rows, newest first
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

impl Verb for Ra {
    fn command(&self, given: &Given<'_>) -> Result<Command, CliError> {
        let (act, verbose) = (&self.act, given.common.verbose);
        let context = self.context.required()?;
        let target = self.target.resolve(given)?;
        let target_given = target.is_some();
        let listing = act.windows || act.events;
        at_most_one(
            "things to do",
            &[
                (act.snapshot, "-X"),
                (act.failover_restore, "-F"),
                (act.release, "-W"),
                (act.undo, "--undo"),
                (act.windows, "-p"),
                (act.events && !act.windows, "-e"),
            ],
        )?;
        self.only_with(
            target_given,
            listing || (verbose && !act.names_an_action() && !target_given),
        )?;
        Ok(if act.snapshot {
            self.snapshot(context, "latest".to_owned())?
        } else if act.failover_restore {
            let to = match (act.level, target) {
                (Some(level), None) => RestoreTo::Level(level),
                (Some(_), Some(_)) => {
                    return Err(CliError::usage("two targets at once: --level and another"));
                }
                (None, None) if self.target.last_snapshot => RestoreTo::LastSnapshot,
                (None, Some(t)) => RestoreTo::Target(t.to_string()),
                (None, None) => {
                    return Err(CliError::usage(
                        "-F needs a target: -t, -S, -D, --mark, --level, ...",
                    ));
                }
            };
            Command::FailoverRestore {
                context,
                to,
                volume: act.volume.clone(),
            }
        } else if act.release {
            at_most_one("choices", &[(act.level.is_some(), "--level"), (act.all, "--all")])?;
            Command::Release {
                context,
                which: match act.level {
                    Some(level) => Which::Level(level),
                    None if act.all => Which::All,
                    None => Which::AllUnnamed,
                },
            }
        } else if act.undo {
            Command::UndoRestore { context }
        } else if let Some(target) = target {
            self.snapshot(context, target.to_string())?
        } else if listing || verbose {
            let bound = |text: &Option<String>| text.as_deref().map(|t| bound(t, given)).transpose();
            Command::Windows {
                context,
                windows: act.windows,
                marks: act.events,
                lfcs: verbose,
                from: bound(&self.list.from)?,
                to: bound(&self.list.to)?,
                limit: self.list.limit,
            }
        } else {
            return Err(CliError::usage(
                "nothing to do: -X, a target, -F, -W, --undo, -p, -e or -v is missing",
            ));
        })
    }

    fn force(&self) -> bool {
        self.force
    }

    fn zone(&self) -> Option<&str> {
        self.target.tz.as_deref()
    }
}

impl Act {
    const fn names_an_action(&self) -> bool {
        self.snapshot || self.failover_restore || self.release || self.undo
    }
}

impl Ra {
    fn snapshot(&self, context: u32, target: String) -> Result<Command, CliError> {
        let name = self.act.name.clone();
        if let Some(fault) = name.as_deref().and_then(model::EventMark::name_fault) {
            return Err(CliError::usage(format!("--name cannot be so: {fault}")));
        }
        Ok(Command::Snapshot {
            context,
            target,
            name,
        })
    }

    /// Refuses letters that would be ignored: what is typed is meant.
    fn only_with(&self, target: bool, listing: bool) -> Result<(), CliError> {
        let act = &self.act;
        let snapshot = act.snapshot || (target && !act.names_an_action() && !listing);
        let bounds = self.list.from.is_some() || self.list.to.is_some() || self.list.limit.is_some();
        only_where(&[
            (
                target,
                snapshot && !act.snapshot || act.failover_restore,
                "a target goes alone or with -F",
            ),
            (
                self.target.last_snapshot,
                act.failover_restore,
                "--last-snapshot goes with -F",
            ),
            (act.volume.is_some(), act.failover_restore, "-L goes with -F"),
            (act.name.is_some(), snapshot, "--name goes with -X or a target"),
            (
                act.level.is_some(),
                act.failover_restore || act.release,
                "--level goes with -W or -F",
            ),
            (act.all, act.release, "--all goes with -W"),
            (bounds, listing, "--from, --to and --limit go with -p, -e or -v"),
        ])
    }
}

impl Targets {
    fn resolve(&self, given: &Given<'_>) -> Result<Option<Target>, CliError> {
        at_most_one(
            "targets",
            &[
                (self.lfc.is_some(), "-t"),
                (self.epoch.is_some(), "-S"),
                (self.date.is_some(), "-D"),
                (self.mark.is_some(), "--mark"),
                (self.seq.is_some(), "--seq"),
                (self.latest, "--latest"),
                (self.ago.is_some(), "--ago"),
                (self.at.is_some(), "--at"),
                (self.last_snapshot, "--last-snapshot"),
            ],
        )?;
        let kind = if let Some(lfc) = self.lfc {
            TargetKind::Lfc(LfcId(lfc))
        } else if let Some(epoch) = &self.epoch {
            TargetKind::Time(parse_epoch(epoch).ok_or_else(|| {
                CliError::usage(format!(
                    "-S: '{epoch}' is not SECONDS or SECONDS.FRACTION since 1970"
                ))
            })?)
        } else if let Some(text) = &self.date {
            TargetKind::Time(Timestamp(date::parse(text, given.zone, given.now)?.0))
        } else if let Some(name) = &self.mark {
            if let Some(fault) = model::EventMark::name_fault(name) {
                return Err(CliError::usage(format!(
                    "--mark: '{name}' names no mark: {fault}"
                )));
            }
            TargetKind::Mark(name.clone())
        } else if let Some(seq) = self.seq {
            TargetKind::Seq(WriteSeq(seq))
        } else if self.latest {
            TargetKind::Latest
        } else if let Some(ago) = &self.ago {
            return Ok(Some(format!("-{ago}").parse()?));
        } else if let Some(text) = &self.at {
            return Ok(Some(text.parse()?));
        } else {
            return Ok(None);
        };
        Ok(Some(kind.into()))
    }
}

/// A bound of a listing: a target, or a date as for `-D`.
fn bound(text: &str, given: &Given<'_>) -> Result<String, CliError> {
    match text.parse::<Target>() {
        Ok(target) => Ok(target.to_string()),
        Err(_) => {
            let at = date::parse(text, given.zone, given.now)?;
            Ok(Target::from(TargetKind::Time(at.timestamp())).to_string())
        }
    }
}
