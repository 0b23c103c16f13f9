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
    /// What its earliest instants stand for: its first record, or the step of the clock before that, which the first record may
    /// follow long after.
    pub(super) from: Along,
    pub(super) first: Along,
    pub(super) last: Along,
    pub(super) start: Timestamp,
    pub(super) last_time: Timestamp,
    pub(super) end: End,
}

impl Run {
    /// Whether the instant is in this run: from where it begins to where the next one does.
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
    // The step that ended the run before, and the clock behind it.
    let mut step: Option<(Along, Timestamp)> = None;
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
        let mut begins = Begins {
            from: first,
            first,
            time: row.first_time,
            after_gap: row.after_gap,
        };
        // Most often a step ends its container; a crash may have come before the seal.
        if let Some((at, after)) = step.take()
            && at.span == row.span
            && !row.after_gap
        {
            begins.from = at;
            begins.time = after;
        }
        // A step is the last record of the run before it.
        for (at, before, after) in inside {
            extend(&mut out, begins, *at, *before);
            if let Some(run) = out.last_mut() {
                run.end = End::Step(*before);
            }
            step = Some((*at, *after));
            begins.from = *at;
            begins.first.seq = at.seq.next();
            begins.time = *after;
        }
        if begins.first <= last {
            step = None;
            extend(&mut out, begins, last, row.last_time);
        }
    }
    out
}

/// Where a part of a run begins.
#[derive(Clone, Copy)]
struct Begins {
    from: Along,
    first: Along,
    time: Timestamp,
    after_gap: bool,
}

fn extend(out: &mut Vec<Run>, begins: Begins, last: Along, last_time: Timestamp) {
    let Begins { from, first, .. } = begins;
    match out.last_mut() {
        Some(run) if run.end == End::Head && run.last.span == first.span && !begins.after_gap => {
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
        from,
        first,
        last,
        start: begins.time,
        last_time,
        end: End::Head,
    });
}

/// Where to look for the last record at or before an instant: a container's part of a run.
pub(super) enum Search {
    /// Exactly here.
    At(Along),
    /// The last record with time at or before the instant is in this range; its first one is, or is the step before the run.
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
        return Search::At(run.from);
    };
    let begins = clip(row.first, row.span);
    let first = if begins < run.first { run.from } else { begins };
    let last = clip(row.last, row.span).min(run.last);
    if last.seq == row.last && row.last_time <= t {
        Search::At(last)
    } else {
        Search::Within(first, last)
    }
}
