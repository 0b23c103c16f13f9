//! Which blocks changed between two points of one line: what an incremental backup reads.
//!
//! Never too little: of a container that only partly lies between them, and whose records are not held any more, all blocks
//! count. What the catalog cannot say is not known, and then everything may have changed.

use crate::{
    container::joined,
    error::{JournalError, Position},
    journal::Journal,
    line::LineSpan,
    rows::LfcRow,
};
use model::{ByteRange, VolumeIndex, WriteSeq};
use std::collections::BTreeSet;

/// A container with records between two points, and which of its records those are.
struct Part {
    row: LfcRow,
    /// `None`: all of them.
    only: Option<(WriteSeq, WriteSeq)>,
}

impl Journal {
    /// The ranges of a volume, in whole blocks, sorted and joined, that records behind `from` up to `to` changed. `None`: not
    /// known, because `from` is not on the line that leads to `to`, or the catalog has a gap between them.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn changed_between(
        &self,
        volume: VolumeIndex,
        from: Position,
        to: Position,
    ) -> Result<Option<Vec<ByteRange>>, JournalError> {
        let Some(parts) = self.parts_between(from, to) else {
            return Ok(None);
        };
        let mut blocks = BTreeSet::new();
        for part in parts {
            let (generation, lfc) = (part.row.generation, part.row.lfc);
            let touched = match part.only {
                Some((after, upto)) => self.touched_in(generation, lfc, after, upto),
                None => self.touched(generation, lfc),
            };
            match touched {
                Ok(ranges) => {
                    let of = ranges.into_iter().filter(|(v, _)| *v == volume);
                    blocks.extend(of.flat_map(|(v, range)| range.blocks().map(move |block| (v, block))));
                }
                // Forgotten meanwhile.
                Err(JournalError::NotHeld { .. }) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let ranges = joined(blocks).into_iter().map(|(_, range)| range);
        Ok(Some(ranges.collect()))
    }

    fn parts_between(&self, from: Position, to: Position) -> Option<Vec<Part>> {
        let line = self.shared.read().line_to(to);
        let begins = line.iter().position(|span| holds(span, from))?;
        let mut rows: Vec<LfcRow> = self.lfc_rows(..).iter().map(|row| LfcRow::clone(row)).collect();
        rows.extend(self.open_row());
        let mut parts = Vec::new();
        for span in &line[begins..] {
            let after = if span.generation == from.generation {
                from.seq
            } else {
                span.after
            };
            // Up to where the containers of this span are known without a gap.
            let mut known = after;
            let of = rows.iter().filter(|row| row.generation == span.generation);
            for row in of.filter(|row| row.last_seq > after && row.first_seq <= span.upto) {
                if row.first_seq > known.next() {
                    return None;
                }
                known = row.last_seq;
                let whole = row.first_seq > after && row.last_seq <= span.upto;
                parts.push(Part {
                    row: row.clone(),
                    only: (!whole).then_some((after, span.upto)),
                });
            }
            if known < span.upto {
                return None;
            }
        }
        Some(parts)
    }
}

/// Whether a position is on this part of a line; where the part begins is the end of the one before it.
fn holds(span: &LineSpan, at: Position) -> bool {
    span.generation == at.generation && span.after <= at.seq && at.seq <= span.upto
}
