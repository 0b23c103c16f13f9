//! Instants as places: where time runs evenly, where it jumped back, where it has no records (`rules.md` L5, R-4).

use super::chart::{Along, Chart};
use model::{Timestamp, WriteSeq};

/// Why a run of evenly rising times ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The clock was set back, from this instant.
    Step(Timestamp),
    /// Another generation follows.
    Line,
    /// Records are missing.
    Gap,
    /// The journal's end.
    Head,
}

/// Records in a row whose times never fall.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) first: Along,
    pub(super) last: Along,
    pub(super) start: Timestamp,
    pub(super) last_time: Timestamp,
    pub(super) end: End,
}

impl Run {
    /// Whether the instant is in this run: from its first record to where the next one begins.
    pub(super) fn holds(&self, t: Timestamp) -> bool {
        self.start <= t
            && match self.end {
                End::Head => true,
                End::Step(from) => t <= from.max(self.last_time),
                End::Line | End::Gap => t <= self.last_time,
            }
    }
}

/// The runs of a line, in order.
pub(super) fn runs(chart: &Chart) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for row in &chart.rows {
        let first = Along {
            span: row.span,
            seq: row.first,
        };
        let last = Along {
            span: row.span,
            seq: row.last,
        };
        let inside = chart
            .steps
            .iter()
            .filter(|(at, _, _)| first <= *at && *at <= last);
        // A step is the last record of the run before it.
        let mut from = first;
        let mut start = row.first_time;
        for (at, before, after) in inside {
            extend(&mut out, row.after_gap, from, *at, start, *before);
            if let Some(run) = out.last_mut() {
                run.end = End::Step(*before);
            }
            from = Along {
                seq: at.seq.next(),
                ..*at
            };
            start = *after;
        }
        if from <= last {
            extend(&mut out, row.after_gap, from, last, start, row.last_time);
        }
    }
    out
}

fn extend(
    out: &mut Vec<Run>,
    after_gap: bool,
    first: Along,
    last: Along,
    start: Timestamp,
    last_time: Timestamp,
) {
    match out.last_mut() {
        Some(run) if run.end == End::Head && run.last.span == first.span && !after_gap => {
            run.last = last;
            run.last_time = last_time;
            return;
        }
        Some(run) if run.end == End::Head => {
            run.end = if run.last.span == first.span {
                End::Gap
            } else {
                End::Line
            };
        }
        _ => {}
    }
    out.push(Run {
        first,
        last,
        start,
        last_time,
        end: End::Head,
    });
}

/// Where to look for the last record at or before an instant: a container's part of a run.
pub(super) enum Search {
    /// Exactly here.
    At(Along),
    /// The last record with time at or before the instant is in this range; its first record is.
    Within(Along, Along),
}

/// Narrows an instant in a run down to one container.
pub(super) fn search(chart: &Chart, run: &Run, t: Timestamp) -> Search {
    if run.last_time <= t {
        return Search::At(run.last);
    }
    let clip = |seq: WriteSeq, span: usize| Along { span, seq };
    // The newest container of the run that begins at or before the instant.
    let row = chart.rows.iter().rev().find(|r| {
        let (first, last) = (clip(r.first, r.span), clip(r.last, r.span));
        let in_run = first <= run.last && run.first <= last;
        in_run && (first < run.first || r.first_time <= t)
    });
    let Some(row) = row else {
        return Search::At(run.first);
    };
    let first = clip(row.first, row.span).max(run.first);
    let last = clip(row.last, row.span).min(run.last);
    if last.seq == row.last && row.last_time <= t {
        Search::At(last)
    } else {
        Search::Within(first, last)
    }
}
