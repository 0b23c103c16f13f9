//! A line's containers, cut at boundaries, and what can be reached on them: pure.

use super::GapCause;
use crate::{
    cursors::Cursors,
    error::Position,
    journal::Shared,
    line::LineSpan,
    role::end_where_taken_over,
    rows::{Consistent, RestorePhase, RestoreRow},
};
use model::{EventMark, GenNo, LfcId, Ordinal, RedoSpan, Timestamp, WriteSeq, ports::OrdinalKind};
use std::collections::BTreeMap;

/// A place on a line: generations in the order of the line, then the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Along {
    pub(super) span: usize,
    pub(super) seq: WriteSeq,
}

/// A container as far as it is on the line.
#[derive(Clone, Debug)]
pub(super) struct ChartRow {
    pub(super) span: usize,
    pub(super) lfc: LfcId,
    pub(super) first: WriteSeq,
    pub(super) last: WriteSeq,
    pub(super) first_time: Timestamp,
    pub(super) last_time: Timestamp,
    pub(super) held: bool,
    pub(super) is_sealed: bool,
    /// The container has later records that are not shown: past a cut, or not durable.
    pub(super) is_clipped: bool,
    /// The line left the container before its end, or it ends here before it ends at the sender.
    pub(super) is_cut: bool,
    /// Records are missing between the container before and this one.
    pub(super) after_gap: bool,
    /// Its redo is damaged.
    is_rotten: bool,
}

/// A part of a container, `after < seq <= upto`; its end may be a boundary.
#[derive(Clone, Debug)]
struct Segment {
    span: usize,
    after: WriteSeq,
    upto: WriteSeq,
    held: bool,
    after_gap: bool,
    boundary: Option<Ordinal>,
}

/// How a place is reached: the ordinal it stands on, and the redo over it.
pub(super) type Way = (Ordinal, Vec<RedoSpan>);

/// One line and all that decides what can be reached on it.
pub(super) struct Chart {
    line: Vec<LineSpan>,
    pub(super) rows: Vec<ChartRow>,
    segments: Vec<Segment>,
    /// Whether undo leads back to before the first record.
    from_zero: bool,
    /// States that cannot be stood on, and the damaged undo that is why.
    rotten: Vec<(Position, Ordinal)>,
    /// Whether there is a consistent point on any line.
    is_consistent_anywhere: bool,
    /// The consistent spans as far as they are on the line.
    consistent: Vec<(Along, Option<Along>)>,
    /// Marks on the line.
    pub(super) marks: Vec<EventMark>,
    /// Clock steps on the line: place, clock before, clock after.
    pub(super) steps: Vec<(Along, Timestamp, Timestamp)>,
}

impl Chart {
    pub(super) fn new(
        shared: &Shared,
        line: Vec<LineSpan>,
        cursors: &Cursors,
        restore: Option<&RestoreRow>,
    ) -> Self {
        let mut rows: Vec<ChartRow> = Vec::new();
        for (i, span) in line.iter().enumerate() {
            let stored = shared
                .rows
                .overlapping(span.generation, span.after, span.upto)
                .map(|r| ((**r).clone(), true));
            let sealed = shared.sealed.iter().map(|s| ((*s.row).clone(), true));
            let open = shared
                .open
                .iter()
                .filter(|o| !o.is_empty())
                .map(|o| (o.row(crate::SealFlags::default()), false));
            for (row, is_sealed) in stored.chain(sealed).chain(open) {
                // Nothing is shown that a power cut would take back.
                let upto = if is_sealed {
                    span.upto
                } else {
                    span.upto.min(cursors.durable)
                };
                if row.generation != span.generation || row.first_seq > upto || row.last_seq <= span.after {
                    continue;
                }
                let follows = rows.last().is_none_or(|r| {
                    if r.span == i {
                        r.last.next() == row.first_seq
                    } else {
                        row.first_seq == span.after.next()
                    }
                });
                rows.push(ChartRow {
                    span: i,
                    lfc: row.lfc,
                    first: row.first_seq,
                    last: row.last_seq.min(upto),
                    first_time: row.first_time,
                    // That of a record in the middle of a container is in its frame alone.
                    last_time: if row.first_seq == upto {
                        row.first_time
                    } else {
                        row.last_time
                    },
                    held: shared.is_held(&row) && !shared.rotten.redo(row.generation, row.lfc),
                    is_rotten: shared.rotten.redo(row.generation, row.lfc),
                    is_sealed,
                    is_clipped: row.last_seq > upto,
                    is_cut: row.last_seq > span.upto || row.sealed.cut.is_some(),
                    after_gap: row.after_gap || !follows,
                });
            }
        }
        // Where write-back ran ahead of undo, this host builds none, and nothing behind the volume can be reached.
        let builds_undo = cursors.written_back <= cursors.applied;
        let mut boundaries = if builds_undo {
            boundaries(shared, cursors, restore)
        } else {
            BTreeMap::new()
        };
        // Rule T10: a state behind damaged undo is no base.
        let rotten: Vec<(Position, Ordinal)> = boundaries
            .iter()
            .filter_map(|(at, ordinal)| Some((*at, shared.rotten.undo(*ordinal)?)))
            .collect();
        for (at, _) in &rotten {
            boundaries.remove(at);
        }
        let starts_whole = rows
            .first()
            .zip(line.first())
            .is_some_and(|(r, s)| r.first == s.after.next());
        let on_line = |p: &Position| line.iter().position(|span| span.has(*p));
        let spans = consistent(shared, cursors);
        Self {
            segments: segments(&line, &rows, &boundaries),
            from_zero: builds_undo
                && shared.floors.undo == Ordinal(0)
                && starts_whole
                && shared.rotten.undo(Ordinal(0)).is_none(),
            rotten,
            is_consistent_anywhere: !spans.is_empty(),
            consistent: spans
                .iter()
                .filter_map(|span| on_this(shared, &line, span))
                .collect(),
            marks: shared
                .marks
                .iter()
                .filter(|(p, _)| on_line(p).is_some())
                .map(|(_, m)| m.clone())
                .collect(),
            steps: shared
                .steps
                .iter()
                .filter_map(|(p, (from, to))| {
                    Some((
                        Along {
                            span: on_line(p)?,
                            seq: p.seq,
                        },
                        *from,
                        *to,
                    ))
                })
                .collect(),
            rows,
            line,
        }
    }

    pub(super) fn head(&self) -> GenNo {
        self.line.last().map(|s| s.generation).unwrap_or_default()
    }

    pub(super) fn position(&self, at: Along) -> Position {
        let generation = self.line.get(at.span).map(|s| s.generation).unwrap_or_default();
        Position {
            generation,
            seq: at.seq,
        }
    }

    pub(super) fn along(&self, p: Position) -> Option<Along> {
        let span = self.line.iter().position(|s| s.generation == p.generation)?;
        Some(Along { span, seq: p.seq })
    }

    /// The place of a record by its number alone.
    pub(super) fn along_seq(&self, seq: WriteSeq) -> Option<Along> {
        // The newest generation wins where numbers were used again.
        let span = self.line.iter().rposition(|s| s.after < seq && seq <= s.upto)?;
        Some(Along { span, seq })
    }

    pub(super) fn row_of(&self, at: Along) -> Option<&ChartRow> {
        let i = self
            .rows
            .partition_point(|r| (r.span, r.last) < (at.span, at.seq));
        self.rows
            .get(i)
            .filter(|r| r.span == at.span && r.first <= at.seq)
    }

    /// Ends of containers that are not their own ends.
    pub(super) fn clipped_ends(&self) -> Vec<Along> {
        self.rows
            .iter()
            .filter(|r| r.is_clipped)
            .map(|r| Along {
                span: r.span,
                seq: r.last,
            })
            .collect()
    }

    /// Why what lies between two places cannot be reached.
    pub(super) fn cause(&self, from: Along, to: Along) -> GapCause {
        let within = |at: &Along| from < *at && *at <= to;
        let end = |r: &&ChartRow| {
            within(&Along {
                span: r.span,
                seq: r.last,
            })
        };
        if let Some(row) = self.rows.iter().filter(end).find(|r| r.is_rotten) {
            return GapCause::Redo { lfc: row.lfc };
        }
        let undo = self
            .rotten
            .iter()
            .find(|(p, _)| self.along(*p).is_some_and(|at| within(&at)));
        undo.map_or(GapCause::Missing, |(_, ordinal)| GapCause::Undo {
            ordinal: *ordinal,
        })
    }

    pub(super) fn set_last_time(&mut self, at: Along, time: Timestamp) {
        for r in self
            .rows
            .iter_mut()
            .filter(|r| r.span == at.span && r.last == at.seq)
        {
            r.last_time = time;
        }
    }

    pub(super) fn is_consistent_anywhere(&self) -> bool {
        self.is_consistent_anywhere
    }

    pub(super) fn is_consistent(&self, at: Along) -> bool {
        let has =
            |(from, until): &(Along, Option<Along>)| *from <= at && until.is_none_or(|until| at <= until);
        self.consistent.iter().any(has)
    }

    /// Whether every consistent point is after `at`.
    pub(super) fn is_before_consistent(&self, at: Along) -> bool {
        self.consistent.iter().all(|(from, _)| at < *from)
    }

    /// What can be reached: stretches of places, both ends included, oldest first.
    pub(super) fn stretches(&self) -> Vec<(Along, Along)> {
        let mut out: Vec<(Along, Along)> = Vec::new();
        let mut base = self.from_zero;
        // Whether the place before the segment is the end of the last stretch.
        let mut joined = false;
        for s in &self.segments {
            base &= !s.after_gap;
            joined &= !s.after_gap;
            let end = Along {
                span: s.span,
                seq: s.upto,
            };
            if base && s.held {
                let start = Along {
                    span: s.span,
                    seq: s.after.next(),
                };
                match out.last_mut().filter(|_| joined) {
                    Some(last) => last.1 = end,
                    None => out.push((start, end)),
                }
                joined = true;
            } else {
                base = false;
                joined = s.boundary.is_some();
                if joined {
                    out.push((end, end));
                }
            }
            base |= s.boundary.is_some();
        }
        let mut clipped = Vec::new();
        for (from, to) in out {
            for &(first, until) in &self.consistent {
                let (a, b) = (from.max(first), until.map_or(to, |until| to.min(until)));
                if a <= b && self.row_of(a).is_some() && self.row_of(b).is_some() {
                    clipped.push((a, b));
                }
            }
        }
        // Spans meet and overlap where a line was taken over.
        clipped.sort_unstable();
        clipped.dedup_by(|next, last| {
            let joins = next.0 <= last.1 || next.0 == self.next(last.1);
            if joins {
                last.1 = last.1.max(next.1);
            }
            joins
        });
        clipped
    }

    /// The place behind another: where a generation was left, the first of the next one.
    fn next(&self, at: Along) -> Along {
        match (self.line.get(at.span), self.line.get(at.span + 1)) {
            (Some(span), Some(next)) if span.upto == at.seq => Along {
                span: at.span + 1,
                seq: next.after.next(),
            },
            _ => Along {
                seq: at.seq.next(),
                ..at
            },
        }
    }

    /// How a place is reached (`rules.md` V1); says nothing about consistency.
    pub(super) fn way(&self, at: Along) -> Option<Way> {
        let mut i = self
            .segments
            .partition_point(|s| (s.span, s.upto) < (at.span, at.seq));
        let last = self
            .segments
            .get(i)
            .filter(|s| s.span == at.span && s.after < at.seq)?;
        if let Some(ordinal) = last.boundary.filter(|_| last.upto == at.seq) {
            return Some((ordinal, Vec::new()));
        }
        let mut redo: Vec<RedoSpan> = Vec::new();
        let mut upto = at.seq;
        loop {
            let s = self.segments.get(i)?;
            if !s.held {
                return None;
            }
            let generation = self
                .position(Along {
                    span: s.span,
                    seq: upto,
                })
                .generation;
            match redo.last_mut() {
                Some(span) if span.generation == generation && span.after == upto => span.after = s.after,
                _ => redo.push(RedoSpan {
                    generation,
                    after: s.after,
                    upto,
                }),
            }
            let base = match i.checked_sub(1) {
                _ if s.after_gap => return None,
                None => self.from_zero.then_some(Ordinal(0)).map(Some)?,
                Some(before) => self.segments[before].boundary,
            };
            if let Some(ordinal) = base {
                redo.reverse();
                return Some((ordinal, redo));
            }
            i -= 1;
            upto = self.segments[i].upto;
        }
    }

    /// The nearest reachable places around `at`, older first; `at` itself never.
    pub(super) fn nearest(&self, at: Along) -> Vec<Along> {
        let stretches = self.stretches();
        let before = stretches
            .iter()
            .rev()
            .find(|(a, _)| *a < at)
            .map(|(_, b)| *b.min(&previous(at)));
        let after = stretches.iter().find(|(_, b)| *b > at).map(|(a, _)| {
            *a.max(&Along {
                seq: at.seq.next(),
                ..at
            })
        });
        before
            .into_iter()
            .chain(after)
            .filter(|a| self.row_of(*a).is_some())
            .collect()
    }
}

/// The spans as they are now.
fn consistent(shared: &Shared, cursors: &Cursors) -> Vec<Consistent> {
    let mut spans = shared.consistent.clone();
    end_where_taken_over(shared, &mut spans, None);
    // Copies are on the volumes and in no redo: no point of a span can be shown before its first one is applied.
    spans.retain(|c| cursors.has_applied(c.from));
    spans
}

/// A span as far as it is on a line: one that ends on another line is on this one up to where the two part.
fn on_this(shared: &Shared, line: &[LineSpan], span: &Consistent) -> Option<(Along, Option<Along>)> {
    let place = |generation| line.iter().position(|s| s.generation == generation);
    let from = Along {
        span: place(span.from.generation)?,
        seq: span.from.seq,
    };
    let Some(until) = span.until else {
        return Some((from, None));
    };
    let other = shared.line_to(until);
    let common = |theirs: &LineSpan| {
        let span = place(theirs.generation)?;
        let seq = theirs.upto.min(line[span].upto);
        Some(Along { span, seq })
    };
    let until = other.iter().filter_map(common).max()?;
    (from <= until).then_some((from, Some(until)))
}

fn previous(at: Along) -> Along {
    Along {
        seq: WriteSeq(at.seq.0.saturating_sub(1)),
        ..at
    }
}

/// Moments that undo leads back to, and the newest ordinal that made each.
fn boundaries(
    shared: &Shared,
    cursors: &Cursors,
    restore: Option<&RestoreRow>,
) -> BTreeMap<Position, Ordinal> {
    let mut out = BTreeMap::new();
    let mut of_ordinal: BTreeMap<Ordinal, Position> = BTreeMap::new();
    // Rows below the floor are there for those above it that go back to them.
    for (ordinal, row) in shared.ordinals.range(..=cursors.applied_ordinal) {
        let position = match &row.kind {
            OrdinalKind::Apply {
                generation, last_seq, ..
            } => Some(Position {
                generation: *generation,
                seq: *last_seq,
            }),
            OrdinalKind::Local {
                restore_from,
                base,
                redo,
            } => {
                // Only the end of a restore is a point, and only when it is done.
                let same = |k: &OrdinalKind| matches!(k, OrdinalKind::Local { restore_from: f, .. } if f == restore_from);
                // One that was taken back may never have come to its end; what it led to is reached without it.
                let takes_back = |k: &OrdinalKind| matches!(k, OrdinalKind::Local { base, redo, .. } if base == restore_from && redo.is_empty());
                let is_last = match shared.ordinals.get(&ordinal.next()) {
                    Some(next) => !same(&next.kind) && !takes_back(&next.kind),
                    // A restore of one volume leaves the others where they were.
                    None => restore.is_none_or(|r| {
                        r.phase == RestorePhase::Done && (r.only.is_none() || r.undo_from.is_some())
                    }),
                };
                let to = match redo.last() {
                    Some(span) => Some(Position {
                        generation: span.generation,
                        seq: span.upto,
                    }),
                    None => of_ordinal.get(base).copied(),
                };
                to.filter(|_| is_last)
            }
            // Copies lie between points: the volumes are not consistent while they arrive.
            OrdinalKind::Copies => None,
        };
        if let Some(position) = position {
            of_ordinal.insert(*ordinal, position);
            if *ordinal >= shared.floors.undo {
                out.insert(position, *ordinal);
            }
        }
    }
    out
}

fn segments(line: &[LineSpan], rows: &[ChartRow], boundaries: &BTreeMap<Position, Ordinal>) -> Vec<Segment> {
    let mut out = Vec::new();
    for row in rows {
        let generation = line.get(row.span).map(|s| s.generation).unwrap_or_default();
        let at = |seq| Position { generation, seq };
        let inside = boundaries
            .range(at(row.first)..=at(row.last))
            .map(|(p, ordinal)| (p.seq, Some(*ordinal)));
        let mut ends: Vec<_> = inside.collect();
        if ends.last().is_none_or(|(seq, _)| *seq < row.last) {
            ends.push((row.last, None));
        }
        let mut after = WriteSeq(row.first.0 - 1);
        for (upto, boundary) in ends {
            let after_gap = row.after_gap && after.next() == row.first;
            out.push(Segment {
                span: row.span,
                after,
                upto,
                held: row.held,
                after_gap,
                boundary,
            });
            after = upto;
        }
    }
    out
}
