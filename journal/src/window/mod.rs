//! The rollback window and the one resolver of targets (`commands.md`, "Targets"; `rules.md` V1, C5, L3, L5, R-4).
//!
//! # Overview
//!
//! [`Journal::window`] says which points can be reached, [`Journal::resolve`] turns a target into exactly one of them or
//! says why not. Both stand on one *chart*: the line's containers cut at every boundary (a moment that some apply ordinal
//! made, so that undo leads back to it). A point is reached from the newest applied boundary at or before it, over held
//! redo. A point is never moved: a miss is refused with the nearest points.
//!
//! # What it does not do
//!
//! It pins nothing. Whoever resolves and pins does both under the owner's lock (V3).

mod chart;
mod resolve;
#[cfg(test)]
mod tests;
mod timeline;

use crate::{
    error::{JournalError, Position},
    journal::Journal,
};
use chart::{Along, Chart};
use model::{EventMark, GenNo, LfcId, Ordinal, Point, Timestamp};
use std::fmt;

/// A point by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The last record in it.
    pub at: Position,
    /// Container of that record.
    pub lfc: LfcId,
    /// Time of that record.
    pub time: Timestamp,
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "g{}:seq:{} ({}, lfc:{})",
            self.at.generation, self.at.seq, self.time, self.lfc
        )
    }
}

/// Points between two reachable ones that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Last reachable point before it.
    pub from: Reached,
    /// First reachable point after it.
    pub to: Reached,
    /// Why.
    pub cause: GapCause,
}

/// Why points cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapCause {
    /// The history between is not here.
    Missing,
    /// The redo of a container is damaged (T10).
    Redo {
        /// The container.
        lfc: LfcId,
    },
    /// The undo of an apply ordinal is damaged (T10).
    Undo {
        /// The ordinal.
        ordinal: Ordinal,
    },
}

impl fmt::Display for GapCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("history is missing"),
            Self::Redo { lfc } => write!(f, "redo of container {lfc} is damaged"),
            Self::Undo { ordinal } => write!(f, "undo {ordinal} is damaged"),
        }
    }
}

/// What can be reached on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The line's newest generation.
    pub line: GenNo,
    /// Oldest reachable point.
    pub oldest: Reached,
    /// Newest reachable point.
    pub newest: Reached,
    /// What cannot be reached between, oldest first.
    pub gaps: Vec<Gap>,
    /// Reachable event marks, oldest first.
    pub marks: Vec<EventMark>,
}

/// What a target means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The point, ready to be read.
    pub point: Point,
    /// What the operator should be told: which mark was taken, that a container was cut.
    pub note: Option<Note>,
}

/// What an operator should know about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The second asked for carries an event mark: that was taken.
    MarkTaken {
        /// Its name.
        name: String,
        /// Nanoseconds from the instant asked for to the mark.
        after_ns: u64,
    },
    /// The container ends earlier on this line than elsewhere, by a failover or a gap in the stream: that end is meant (L3).
    CutEnd {
        /// The container.
        lfc: LfcId,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MarkTaken { name, after_ns } => {
                let tenths = after_ns / 100_000_000;
                write!(
                    f,
                    "event mark '{name}' taken, {}.{} s after that second",
                    tenths / 10,
                    tenths % 10
                )
            }
            Self::CutEnd { lfc } => write!(f, "container {lfc} was cut short: its end on this line is meant"),
        }
    }
}

/// Why a target means no reachable point. Never moved to another one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is no history yet.
    #[error("there is no history yet")]
    NoHistory,
    /// The volumes have never been consistent.
    #[error("the volumes are not consistent yet")]
    NotConsistent,
    /// A generation that this host has not met.
    #[error("generation g{0} is not known here")]
    UnknownGeneration(GenNo),
    /// Odd ids are undo.
    #[error("container {lfc} is undo: the end of redo container {before} or {after} can be meant")]
    OddLfc {
        /// What was asked for.
        lfc: LfcId,
        /// The redo container before it.
        before: LfcId,
        /// The redo container after it.
        after: LfcId,
    },
    /// Older or newer than the window, or the open container.
    #[error("'{}' is outside the window", .0.target)]
    Outside(Box<Miss>),
    /// Inside the window, but not reachable.
    #[error("'{}' is in a gap of the window", .0.target)]
    InGap(Box<Miss>),
    /// Older than the first consistent point (C5).
    #[error("'{}' is before the first consistent point", .0.target)]
    BeforeFirstConsistent(Box<Miss>),
    /// No line has such a mark.
    #[error("there is no event mark '{name}'")]
    UnknownMark {
        /// Its name.
        name: String,
        /// The marks that there are, newest first, a few.
        known: Vec<String>,
    },
    /// Only another line has it; these are the full names.
    #[error("'{target}' is not on this line: {} can be meant", names.join(" or "))]
    OtherLine {
        /// What was asked for.
        target: String,
        /// What can be meant.
        names: Vec<String>,
    },
    /// The instant has no position: it is between a parent point and the line's first record.
    #[error("'{target}' is between two lines: {} can be meant", names.join(" or "))]
    BetweenLines {
        /// What was asked for.
        target: String,
        /// The points around it.
        names: Vec<String>,
    },
    /// The clock was set back: the instant has more than one position (L5).
    #[error("'{target}' happened more than once")]
    Ambiguous {
        /// What was asked for.
        target: String,
        /// All that can be meant.
        readings: Vec<Reached>,
    },
    /// The instant is in the future.
    #[error("'{target}' is in the future")]
    Future {
        /// What was asked for.
        target: String,
    },
    /// There is no failover restore in force.
    #[error("the replica stands at no restored point")]
    NotRestored,
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What was missed, and what is near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// What was asked for.
    pub target: String,
    /// The nearest points, older first.
    pub nearest: Vec<Reached>,
    /// The whole window.
    pub window: Window,
}

impl Journal {
    /// What can be reached on the line that leads to today's production, or on the one that ends in `line`.
    ///
    /// # Errors
    /// [`ResolveError::NoHistory`], [`ResolveError::NotConsistent`], [`ResolveError::UnknownGeneration`], or a failure.
    pub fn window(&self, line: Option<GenNo>) -> Result<Window, ResolveError> {
        self.window_of(&self.chart(line)?)
    }

    fn window_of(&self, chart: &Chart) -> Result<Window, ResolveError> {
        let stretches = chart.stretches();
        let (Some(first), Some(last)) = (stretches.first(), stretches.last()) else {
            return Err(if chart.is_consistent_anywhere() {
                ResolveError::NoHistory
            } else {
                ResolveError::NotConsistent
            });
        };
        let (oldest, newest) = (self.reached(chart, first.0)?, self.reached(chart, last.1)?);
        let gaps = stretches
            .windows(2)
            .map(|w| {
                Ok(Gap {
                    from: self.reached(chart, w[0].1)?,
                    to: self.reached(chart, w[1].0)?,
                    cause: chart.cause(w[0].1, w[1].0),
                })
            })
            .collect::<Result<_, JournalError>>()?;
        let reachable = |m: &&EventMark| {
            let at = chart.along(Position {
                generation: m.generation,
                seq: m.seq,
            });
            at.is_some_and(|at| stretches.iter().any(|(a, b)| *a <= at && at <= *b))
        };
        let marks = chart.marks.iter().filter(reachable).cloned().collect();
        Ok(Window {
            line: chart.head(),
            oldest,
            newest,
            gaps,
            marks,
        })
    }

    /// Names a place on a chart.
    fn reached(&self, chart: &Chart, at: Along) -> Result<Reached, JournalError> {
        let position = chart.position(at);
        let row = chart
            .row_of(at)
            .ok_or(JournalError::Internal("a place without a container"))?;
        let time = match row {
            r if at.seq == r.last => r.last_time,
            r if at.seq == r.first => r.first_time,
            // A restore or a cut can end inside a container whose frames are freed: then its end bounds the time.
            r => match self.record_at(position) {
                Ok(record) => record.time,
                Err(JournalError::NotHeld { .. } | JournalError::Damaged(_)) => r.last_time,
                Err(e) => return Err(e),
            },
        };
        Ok(Reached {
            at: position,
            lfc: row.lfc,
            time,
        })
    }

    fn chart(&self, line: Option<GenNo>) -> Result<Chart, ResolveError> {
        let restored = self.restore()?;
        let cursors = self.cursors();
        let mut chart = {
            let shared = self.shared.read();
            let line = match line {
                Some(head) if !shared.generations.contains_key(&head) => {
                    return Err(ResolveError::UnknownGeneration(head));
                }
                Some(head) => shared.line(head),
                // A line that was taken over and not added to ends where it was taken over, whatever is held behind that.
                None => shared.current_line(),
            };
            if line.is_empty() {
                return Err(ResolveError::NoHistory);
            }
            Chart::new(&shared, line, &cursors, restored.as_ref())
        };
        for at in chart.clipped_ends() {
            // The row's own last time is that of a later record. Without the frame it is an upper bound.
            if let Ok(record) = self.record_at(chart.position(at)) {
                chart.set_last_time(at, record.time);
            }
        }
        Ok(chart)
    }
}
