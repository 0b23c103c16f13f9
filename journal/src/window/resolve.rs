//! From a target to a point.

use super::{
    Miss, Note, Reached, ResolveError, Resolved,
    chart::{Along, Chart},
    timeline::{End, Search, runs, search},
};
use crate::{
    error::{JournalError, Position},
    journal::Journal,
    rows::RestorePhase,
};
use model::{EventMark, LfcId, Point, Target, Timestamp, WriteSeq, target::TargetKind};

/// Most marks that an error lists.
const MARKS_LISTED: usize = 8;

impl Journal {
    /// The point that a target means. Nothing is ever moved: what cannot be had is refused with what can.
    ///
    /// # Errors
    /// Why the target means no reachable point, or a failure of the journal.
    pub fn resolve(&self, target: &Target, now: Timestamp) -> Result<Resolved, ResolveError> {
        if target.kind == TargetKind::Restored {
            return self.restored();
        }
        let chart = self.chart(target.generation)?;
        let asked = Asked {
            journal: self,
            chart: &chart,
            target,
        };
        let (at, note) = asked.place(now)?;
        asked.point(at).map(|point| Resolved { point, note })
    }

    fn restored(&self) -> Result<Resolved, ResolveError> {
        let row = self
            .restore()?
            .filter(|r| r.phase == RestorePhase::Done)
            .ok_or(ResolveError::NotRestored)?;
        let base = self.cursors().applied_ordinal;
        Ok(Resolved {
            point: Point {
                base,
                redo: Vec::new(),
                ..row.target
            },
            note: None,
        })
    }
}

struct Asked<'a> {
    journal: &'a Journal,
    chart: &'a Chart,
    target: &'a Target,
}

type Placed = (Along, Option<Note>);

impl Asked<'_> {
    fn text(&self) -> String {
        self.target.to_string()
    }

    /// The place that the target means, reachable or not.
    fn place(&self, now: Timestamp) -> Result<Placed, ResolveError> {
        let last = self.chart.rows.last().map(|r| Along {
            span: r.span,
            seq: r.last,
        });
        let last = last.ok_or(ResolveError::NoHistory)?;
        match &self.target.kind {
            // While copies arrive the newest points cannot be shown; the newest that can is the one that is meant.
            TargetKind::Latest if !self.chart.is_consistent(last) => {
                let stretches = self.chart.stretches();
                Ok((stretches.last().map_or(last, |(_, end)| *end), None))
            }
            TargetKind::Latest | TargetKind::Restored => Ok((last, None)),
            TargetKind::Lfc(lfc) => self.lfc(*lfc),
            TargetKind::Seq(seq) => self.seq(*seq, last),
            TargetKind::Mark(name) => self.mark(name),
            TargetKind::Time(t) if *t > now => Err(ResolveError::Future { target: self.text() }),
            TargetKind::Time(t) => match self.mark_in_second(*t) {
                Some(placed) => Ok(placed),
                None => self.instant(*t).map(|at| (at, None)),
            },
            TargetKind::Ago(ns) => self
                .instant(Timestamp(now.0.saturating_sub(*ns)))
                .map(|at| (at, None)),
        }
    }

    fn lfc(&self, lfc: LfcId) -> Result<Placed, ResolveError> {
        if !lfc.is_redo() {
            return Err(ResolveError::OddLfc {
                lfc,
                before: LfcId(lfc.0 - 1),
                after: LfcId(lfc.0.saturating_add(1)),
            });
        }
        // The newest generation wins where ids were used again.
        if let Some(row) = self.chart.rows.iter().rev().find(|r| r.lfc == lfc) {
            let at = Along {
                span: row.span,
                seq: row.last,
            };
            // The end of the open container is not there yet.
            return if row.is_sealed || row.is_cut {
                Ok((at, row.is_cut.then_some(Note::CutEnd { lfc })))
            } else {
                Err(self.outside(at)?)
            };
        }
        let elsewhere: Vec<String> = self
            .journal
            .lfc_rows(..)
            .iter()
            .filter(|r| r.lfc == lfc && self.target.generation != Some(r.generation))
            .map(|r| format!("g{}:lfc:{lfc}", r.generation))
            .collect();
        if !elsewhere.is_empty() {
            return Err(ResolveError::OtherLine {
                target: self.text(),
                names: elsewhere,
            });
        }
        let before = self
            .chart
            .rows
            .iter()
            .rev()
            .find(|r| r.lfc < lfc)
            .map(|r| (r.span, r.last));
        let (span, seq) = before.unwrap_or((0, WriteSeq(0)));
        Err(self.outside(Along { span, seq })?)
    }

    fn seq(&self, seq: WriteSeq, last: Along) -> Result<Placed, ResolveError> {
        match self.chart.along_seq(seq).filter(|at| *at <= last) {
            Some(at) => Ok((at, None)),
            None => {
                let at = if seq > last.seq {
                    last
                } else {
                    Along { span: 0, seq }
                };
                Err(self.outside(at)?)
            }
        }
    }

    fn mark(&self, name: &str) -> Result<Placed, ResolveError> {
        // The last of several marks with one name.
        if let Some(m) = self.chart.marks.iter().rev().find(|m| m.name == name)
            && let Some(at) = self.of_mark(m)
        {
            return Ok((at, None));
        }
        let marks = self.journal.marks();
        let names: Vec<String> = marks
            .iter()
            .filter(|m| m.name == name)
            .map(|m| format!("g{}:mark:{name}", m.generation))
            .collect();
        if !names.is_empty() {
            return Err(ResolveError::OtherLine {
                target: self.text(),
                names,
            });
        }
        let known = marks
            .iter()
            .rev()
            .take(MARKS_LISTED)
            .map(|m| m.name.clone())
            .collect();
        Err(ResolveError::UnknownMark {
            name: name.to_owned(),
            known,
        })
    }

    fn of_mark(&self, m: &EventMark) -> Option<Along> {
        // A mark that is not durable yet is not there yet.
        let at = self.chart.along(Position {
            generation: m.generation,
            seq: m.seq,
        })?;
        self.chart.row_of(at).map(|_| at)
    }

    /// Where an event mark carries exactly the whole second that was asked for: the last such mark.
    fn mark_in_second(&self, t: Timestamp) -> Option<Placed> {
        if !t.0.is_multiple_of(Timestamp::SECOND_NS) {
            return None;
        }
        let m = self
            .chart
            .marks
            .iter()
            .rev()
            .find(|m| m.time.seconds() == t.seconds() && self.of_mark(m).is_some())?;
        let note = Note::MarkTaken {
            name: m.name.clone(),
            after_ns: m.time.0 - t.0,
        };
        self.of_mark(m).map(|at| (at, Some(note)))
    }

    /// The place of an instant: after all records with time at or before it.
    fn instant(&self, t: Timestamp) -> Result<Along, ResolveError> {
        let runs = runs(self.chart);
        let mut found = Vec::new();
        for run in runs.iter().filter(|r| r.holds(t)) {
            found.push(match search(self.chart, run, t) {
                Search::At(at) => at,
                Search::Within(first, last) => self.last_at_or_before(t, first, last)?,
            });
        }
        match found.as_slice() {
            [at] => Ok(*at),
            [] => Err(self.no_instant(t, &runs)?),
            several => {
                let readings = several
                    .iter()
                    .map(|at| self.journal.reached(self.chart, *at))
                    .collect::<Result<_, _>>()?;
                Err(ResolveError::Ambiguous {
                    target: self.text(),
                    readings,
                })
            }
        }
    }

    /// The last record of `first..=last` with time at or before `t`; `first`, which is not looked at, if there is no later one.
    fn last_at_or_before(&self, t: Timestamp, first: Along, last: Along) -> Result<Along, ResolveError> {
        let (mut low, mut high) = (first.seq.0, last.seq.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let at = Along {
                seq: WriteSeq(middle),
                ..first
            };
            match self.journal.record_at(self.chart.position(at)) {
                Ok(record) if record.time <= t => low = middle,
                Ok(_) => high = middle - 1,
                // Without its redo only the container's ends are points.
                Err(JournalError::NotHeld { .. } | JournalError::Damaged(_)) => return Err(self.in_gap(at)?),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Along {
            seq: WriteSeq(low),
            ..first
        })
    }

    fn no_instant(&self, t: Timestamp, runs: &[super::timeline::Run]) -> Result<ResolveError, ResolveError> {
        let before = runs.iter().rev().find(|r| r.last_time < t);
        let Some(before) = before else {
            return self.outside(Along {
                span: 0,
                seq: WriteSeq(0),
            });
        };
        let after = runs.iter().find(|r| r.first > before.last);
        match (before.end, after) {
            (End::Line, Some(after)) => {
                let name = |at| {
                    self.journal
                        .reached(self.chart, at)
                        .map(|r| format!("g{}:seq:{}", r.at.generation, r.at.seq))
                };
                let names = vec![name(before.last)?, name(after.first)?];
                Ok(ResolveError::BetweenLines {
                    target: self.text(),
                    names,
                })
            }
            _ => self.in_gap(Along {
                seq: before.last.seq.next(),
                ..before.last
            }),
        }
    }

    /// The point at a place, if it can be reached and is consistent.
    fn point(&self, at: Along) -> Result<Point, ResolveError> {
        if self.chart.row_of(at).is_none() {
            return Err(self.missed(at)?);
        }
        if !self.chart.is_consistent(at) {
            if !self.chart.is_consistent_anywhere() {
                return Err(ResolveError::NotConsistent);
            }
            let miss = self.miss(at)?;
            return Err(if self.chart.is_before_consistent(at) {
                ResolveError::BeforeFirstConsistent(miss)
            } else {
                ResolveError::InGap(miss)
            });
        }
        let Some((base, redo)) = self.chart.way(at) else {
            return Err(self.missed(at)?);
        };
        let Reached {
            at: position,
            lfc,
            time,
        } = self.journal.reached(self.chart, at)?;
        Ok(Point {
            generation: position.generation,
            seq: position.seq,
            lfc,
            time,
            base,
            redo,
        })
    }

    fn miss(&self, at: Along) -> Result<Box<Miss>, ResolveError> {
        let window = self.journal.window_of(self.chart)?;
        let near = self.chart.nearest(at);
        let nearest = near
            .into_iter()
            .map(|at| self.journal.reached(self.chart, at))
            .collect::<Result<_, _>>()?;
        Ok(Box::new(Miss {
            target: self.text(),
            nearest,
            window,
        }))
    }

    /// A place that cannot be reached: in a gap, or older than the window (its row may be forgotten by then).
    fn missed(&self, at: Along) -> Result<ResolveError, ResolveError> {
        let stretches = self.chart.stretches();
        if stretches.first().is_some_and(|(first, _)| *first < at) {
            self.in_gap(at)
        } else {
            self.outside(at)
        }
    }

    fn outside(&self, at: Along) -> Result<ResolveError, ResolveError> {
        self.miss(at).map(ResolveError::Outside)
    }

    fn in_gap(&self, at: Along) -> Result<ResolveError, ResolveError> {
        self.miss(at).map(ResolveError::InGap)
    }
}
