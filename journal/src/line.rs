//! Generations, the line they form, and where new containers start.
//!
//! A *line* is a generation and, through its parents, all behind it, each up to the record at which the next one left it.
//! Where a container does not simply follow the one before (a new generation, a gap), its start is committed to the store
//! before its tail header is written, so that recovery knows it even if the header is torn.

use crate::{
    codec::{Read, Reader, Writer},
    container::Container,
    cursors::Cursors,
    error::{JournalError, Position},
    frame::Digest,
    journal::{Journal, Shared, WriterState},
    keys,
    role::end_where_taken_over,
    rows::{Consistent, Generation, Parent},
    tail::{SealFlags, Start},
};
use model::{
    GenId, GenNo, LfcId, RecordBody, WriteSeq,
    ports::{Batch, Family},
};
use std::sync::atomic::Ordering;

/// Numbers that another host names are below this: behind them this host numbers on, when it seals, marks what is stale, and takes the
/// line over. No honest host comes near.
const TOLD_BELOW: u64 = 1 << 62;

/// Refuses a place from which there would soon be no number left.
fn check_told(lfc: LfcId, first_seq: WriteSeq) -> Result<(), JournalError> {
    if lfc.0 < TOLD_BELOW && first_seq.0 < TOLD_BELOW {
        return Ok(());
    }
    Err(JournalError::Refused(format!(
        "container {lfc} from record {first_seq} leaves no numbers for what comes behind it"
    )))
}

/// The part of a generation that is on a line: `after < seq <= upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineSpan {
    /// The generation.
    pub generation: GenNo,
    /// Exclusive lower end.
    pub after: WriteSeq,
    /// Inclusive upper end; the greatest number for the newest generation.
    pub upto: WriteSeq,
}

impl LineSpan {
    /// Whether a record is in it.
    #[must_use]
    pub fn has(&self, at: Position) -> bool {
        at.generation == self.generation && self.after < at.seq && at.seq <= self.upto
    }
}

/// A generation to open.
#[derive(Clone, Copy, Debug)]
pub struct NewGeneration {
    /// Its identity, drawn at random by whoever opens it.
    pub id: GenId,
    /// What it continues.
    pub parent: Option<Parent>,
    /// Its first record; `None`: above everything this host has seen. A number at or below what is here starts another
    /// line: all cursors go back to just before it.
    pub first_seq: Option<WriteSeq>,
    /// Its first container; `None`: above everything this host has seen.
    pub first_lfc: Option<LfcId>,
}

impl NewGeneration {
    /// A generation that this host opens itself.
    #[must_use]
    pub fn own(id: GenId, parent: Option<Parent>) -> Self {
        Self {
            id,
            parent,
            first_seq: None,
            first_lfc: None,
        }
    }
}

impl Generation {
    /// The generation's birth record, which production appends first.
    #[must_use]
    pub fn birth(&self) -> RecordBody {
        RecordBody::Birth {
            parent: self.parent.map(|p| (p.id, p.seq)),
            parent_digest: self.parent.map_or([0; 32], |p| p.digest),
        }
    }
}

impl Shared {
    /// The line that ends in `head`, oldest span first.
    pub(crate) fn line(&self, head: GenNo) -> Vec<LineSpan> {
        let mut spans = Vec::new();
        let mut at = self.generations.get(&head);
        let mut upto = WriteSeq(u64::MAX);
        // A damaged catalog could make parents go round in a circle.
        while let Some(g) = at.filter(|_| spans.len() < self.generations.len()) {
            spans.push(LineSpan {
                generation: g.no,
                after: WriteSeq(g.first_seq.0 - 1),
                upto,
            });
            let Some(parent) = g.parent else { break };
            upto = parent.seq;
            at = self.generation_by_id(parent.id);
        }
        spans.reverse();
        spans
    }

    /// The line that ends at a position.
    pub(crate) fn line_to(&self, at: Position) -> Vec<LineSpan> {
        let mut line = self.line(at.generation);
        if let Some(last) = line.last_mut() {
            last.upto = at.seq;
        }
        line
    }
}

/// The records of either of two lines that the other does not have.
fn apart(a: &[LineSpan], b: &[LineSpan]) -> Vec<LineSpan> {
    let of = |line: &[LineSpan], generation| line.iter().find(|span| span.generation == generation).copied();
    let of_a = a.iter().map(|span| match of(b, span.generation) {
        None => *span,
        Some(other) => LineSpan {
            after: span.upto.min(other.upto),
            upto: span.upto.max(other.upto),
            ..*span
        },
    });
    let of_b = b.iter().filter(|span| of(a, span.generation).is_none());
    let all = of_a.chain(of_b.copied());
    all.filter(|span| span.after < span.upto).collect()
}

impl Journal {
    /// All generations that this host has met, in that order.
    #[must_use]
    pub fn generations(&self) -> Vec<Generation> {
        self.shared.read().generations.values().cloned().collect()
    }

    /// The generation that takes records now.
    #[must_use]
    pub fn current_generation(&self) -> Option<Generation> {
        let shared = self.shared.read();
        let no = shared.open.as_ref()?.generation;
        shared.generations.get(&no).cloned()
    }

    /// A generation by its identity.
    #[must_use]
    pub fn generation_by_id(&self, id: GenId) -> Option<Generation> {
        self.shared.read().generation_by_id(id).cloned()
    }

    /// The line that ends in generation `head`, or in the current one; oldest span first.
    #[must_use]
    pub fn line(&self, head: Option<GenNo>) -> Vec<LineSpan> {
        let shared = self.shared.read();
        head.map_or_else(|| shared.current_line(), |head| shared.line(head))
    }

    /// What lies between two positions, whatever lines they are on: the records up to one of them that are not up to the other.
    #[must_use]
    pub fn between(&self, a: Position, b: Position) -> Vec<LineSpan> {
        let shared = self.shared.read();
        apart(&shared.line_to(a), &shared.line_to(b))
    }

    /// Where the journal ends: last record and chain digest there. `None` before the first generation.
    #[must_use]
    pub fn head(&self) -> Option<(Position, Digest)> {
        let shared = self.shared.read();
        shared.open.as_ref().map(|o| (o.end(), o.end_digest))
    }

    /// Chain digest of a generation at the end of the last frame that ends at or before `seq`, with that frame's last
    /// record. What [`Parent`] of a new generation needs.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when the catalog does not reach there, or a failure.
    pub fn digest_at(&self, generation: GenNo, seq: WriteSeq) -> Result<(WriteSeq, Digest), JournalError> {
        let row = {
            let shared = self.shared.read();
            // The journal's end right behind a gap, or at its very start: no row ends there.
            let open = shared.open.as_ref().filter(|o| o.generation == generation);
            if let Some(start) = open.map(|o| o.header.start).filter(|s| s.first_seq == seq.next()) {
                return Ok((seq, start.prev_digest));
            }
            let g = shared.generations.get(&generation);
            let g = g.ok_or(JournalError::NotHeld {
                generation,
                lfc: LfcId(0),
            })?;
            if seq < g.first_seq {
                return Ok((WriteSeq(g.first_seq.0 - 1), g.root_digest()));
            }
            let mut rows = shared
                .sealed_rows()
                .filter(|r| r.generation == generation && r.first_seq <= seq);
            let open = shared
                .open
                .as_ref()
                .filter(|o| o.generation == generation && !o.is_empty() && o.header.start.first_seq <= seq);
            match open {
                Some(open) => open.row(SealFlags::default()),
                None => {
                    let row = rows.next_back().ok_or(JournalError::NotHeld {
                        generation,
                        lfc: LfcId(0),
                    })?;
                    (**row).clone()
                }
            }
        };
        if seq >= row.last_seq {
            return Ok((row.last_seq, row.end_digest));
        }
        let ended = self.frames_before(&row, |frame| frame.last_seq() <= seq)?;
        let Some(last) = ended.checked_sub(1) else {
            return Ok((WriteSeq(row.first_seq.0 - 1), row.prev_digest));
        };
        let frame = self.frame_at(generation, row.lfc, last)?;
        Ok((frame.last_seq(), frame.digest()))
    }

    /// Opens a generation: what is open is sealed and ingested, the generation and its start are durable, then its first
    /// container takes records. Repeating it for the current generation is harmless.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when the generation is known and not the current one, or a failure.
    pub fn create_generation(&self, new: NewGeneration) -> Result<Generation, JournalError> {
        self.open_generation(new, None)
    }

    /// Recovery: follows a generation that is new here from behind a gap on, in one step. The chain goes on from
    /// `prev_digest`.
    ///
    /// # Errors
    /// As [`Journal::create_generation`].
    pub fn follow_behind_gap(
        &self,
        id: GenId,
        parent: Option<Parent>,
        first_lfc: LfcId,
        first_seq: WriteSeq,
        prev_digest: Digest,
    ) -> Result<Generation, JournalError> {
        let new = NewGeneration {
            id,
            parent,
            first_seq: Some(first_seq),
            first_lfc: Some(first_lfc),
        };
        self.open_generation(new, Some(prev_digest))
    }

    fn open_generation(
        &self,
        new: NewGeneration,
        behind_gap: Option<Digest>,
    ) -> Result<Generation, JournalError> {
        self.guarded(|| {
            let mut writer = self.writer.lock();
            if let Some(known) = self.generation_by_id(new.id) {
                if self.current_generation().is_some_and(|c| c.id == known.id) {
                    return Ok(known);
                }
                return Err(JournalError::Refused(format!(
                    "generation g{} was left before",
                    known.no
                )));
            }
            check_told(
                new.first_lfc.unwrap_or_default(),
                new.first_seq.unwrap_or_default(),
            )?;
            self.close_open(&mut writer, SealFlags::default())?;
            let (seen_seq, seen_lfc) = *self.seen.lock();
            let no = self
                .shared
                .read()
                .generations
                .keys()
                .next_back()
                .map_or(GenNo(1), |n| GenNo(n.0 + 1));
            let generation = Generation {
                no,
                id: new.id,
                parent: new.parent,
                first_seq: new.first_seq.unwrap_or(seen_seq.next()),
                first_lfc: new.first_lfc.unwrap_or(seen_lfc.next()),
            };
            if generation.first_seq.0 == 0 || !generation.first_lfc.is_redo() {
                return Err(JournalError::Refused(
                    "a generation starts at record 0 or an odd container".into(),
                ));
            }
            let start = Start {
                generation: generation.id,
                lfc: generation.first_lfc,
                first_seq: generation.first_seq,
                prev_digest: behind_gap.unwrap_or_else(|| generation.root_digest()),
                after_gap: behind_gap.is_some(),
            };
            let mut batch = Batch::default();
            batch.put(Family::Catalog, keys::generation(no), generation.encode());
            self.start(&mut writer, start, &generation, batch)?;
            Ok(generation)
        })
    }

    /// Recovery: the sender dropped what comes next; the journal goes on at `first_seq` with another container of the same
    /// generation. Points between are a gap.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when that is not ahead of the journal's end, or a failure.
    pub fn skip_to(&self, lfc: LfcId, first_seq: WriteSeq, prev_digest: Digest) -> Result<(), JournalError> {
        self.guarded(|| {
            let mut writer = self.writer.lock();
            check_told(lfc, first_seq)?;
            let generation = self.current_generation().ok_or(JournalError::NoGeneration)?;
            // The sender's container may go on where ours ends.
            let cut = self.cursors().appended;
            self.close_open(
                &mut writer,
                SealFlags {
                    cut: Some(cut),
                    ..SealFlags::default()
                },
            )?;
            let at = {
                let shared = self.shared.read();
                let open = shared.open.as_ref().ok_or(JournalError::NoGeneration)?;
                (open.header.start.lfc, open.header.start.first_seq)
            };
            if !lfc.is_redo() || lfc < at.0 || first_seq < at.1 {
                return Err(JournalError::Refused(format!(
                    "container {lfc} from record {first_seq} is not ahead of container {} and record {}",
                    at.0, at.1
                )));
            }
            let start = Start {
                generation: generation.id,
                lfc,
                first_seq,
                prev_digest,
                after_gap: true,
            };
            self.start(&mut writer, start, &generation, Batch::default())
        })
    }

    /// The last record of the newest sealed container, in the numbers of the current line; 0 before the first.
    #[must_use]
    pub fn sealed_end(&self) -> WriteSeq {
        let shared = self.shared.read();
        let Some(newest) = shared.sealed_rows().next_back() else {
            return WriteSeq(0);
        };
        // A line that this host left may have had higher numbers than the one that it follows now, which begins here.
        let open = shared.open.as_ref().filter(|o| o.generation != newest.generation);
        let begins = open.and_then(|o| shared.generations.get(&o.generation));
        begins.map_or(newest.last_seq, |g| {
            newest.last_seq.min(WriteSeq(g.first_seq.0 - 1))
        })
    }

    /// Leaves the open container empty and no container waiting.
    fn close_open(&self, writer: &mut WriterState, flags: SealFlags) -> Result<(), JournalError> {
        if !self.open_is_empty() {
            self.seal_locked(writer, flags)?;
        }
        self.ingest_inner().map(drop)
    }

    /// Only a line that this host gave up has higher numbers than the one that it follows then, and whoever gives a line up has applied
    /// all of it. A container that still waited would never be applied, or, when it is being applied, move the cursors of
    /// the new line to numbers of the old one.
    fn check_left(&self, first_seq: WriteSeq) -> Result<(), JournalError> {
        let cursors = self.cursors();
        let shared = self.shared.read();
        let newest = shared.sealed_rows().next_back();
        match newest.filter(|row| (row.generation, row.lfc) > cursors.applied_lfc) {
            Some(row) if first_seq <= cursors.appended => Err(JournalError::Refused(format!(
                "record {first_seq} begins a line below container {}, which is not applied yet",
                row.lfc
            ))),
            _ => Ok(()),
        }
    }

    fn start(
        &self,
        writer: &mut WriterState,
        start: Start,
        generation: &Generation,
        mut batch: Batch,
    ) -> Result<(), JournalError> {
        // It has its first record, or another line takes its place.
        let promotion = self.promotion();
        let is_own = promotion.as_ref().is_some_and(|p| p.id == generation.id);
        let moved = |now: Cursors| match is_own {
            true => at_promoted(now, start.first_seq),
            false => at_start(now, start.first_seq, generation.no),
        };
        // Until the cursors have moved no other one moves: the apply thread's, set between a look and this, would fall back, behind
        // what retention has freed by then.
        let mut meta = self.meta.lock();
        if !is_own {
            self.check_left(start.first_seq)?;
        }
        if promotion.is_some() {
            batch.delete(Family::Meta, keys::PROMOTION);
        }
        let spans = is_own.then(|| spans_at_birth(&self.shared.read(), generation));
        if let Some(spans) = &spans {
            batch.put(Family::Meta, keys::CONSISTENT, Consistent::encode_all(spans));
        }
        batch.put(Family::Meta, keys::START, encode_start(generation.no, &start));
        batch.put(Family::Meta, keys::CURSORS, moved(self.cursors()).encode());
        self.commit_locked(&mut meta, batch, true)?;
        let (tail, clock) = {
            let shared = self.shared.read();
            (
                shared.open.as_ref().map_or(0, |o| o.tail),
                shared.open.as_ref().map(|o| o.clock),
            )
        };
        let header = self.write_header(writer, tail, start, SealFlags::default())?;
        {
            let mut shared = self.shared.write();
            let clock = clock.unwrap_or_else(|| shared.clock());
            // Rule L5: the first record is compared with the last of the line that was taken over.
            let clock = promotion
                .filter(|p| p.id == generation.id)
                .map_or(clock, |p| p.clock);
            shared.promotion = None;
            if let Some(spans) = spans {
                shared.consistent = spans;
            }
            shared.generations.insert(generation.no, generation.clone());
            shared.open = Some(Container::new(tail, header, generation.no, clock));
            shared.ring.clear();
            self.line_changes.fetch_add(1, Ordering::AcqRel);
            self.move_cursors(|c| *c = moved(*c));
        }
        drop(meta);
        self.see(WriteSeq(start.first_seq.0 - 1), start.lfc);
        self.raise()
    }
}

/// The consistent spans at the first record of a line that was taken over.
fn spans_at_birth(shared: &Shared, generation: &Generation) -> Vec<Consistent> {
    let mut spans = shared.consistent.clone();
    let first = Position {
        generation: generation.no,
        seq: generation.first_seq,
    };
    end_where_taken_over(shared, &mut spans, Some(first));
    spans
}

/// The cursors where a line that was taken over begins: its volumes stand there, and nothing before it is left to apply. The
/// cursors of the line before may be lower, where this one goes on from an older line of higher numbers.
const fn at_promoted(now: Cursors, first_seq: WriteSeq) -> Cursors {
    let base = WriteSeq(first_seq.0 - 1);
    Cursors {
        appended: base,
        durable: base,
        written_back: base,
        checkpointed: base,
        applied: base,
        ..now
    }
}

/// The cursors at a start: those of a line that goes on stay, those of another line begin just before it.
fn at_start(now: Cursors, first_seq: WriteSeq, generation: GenNo) -> Cursors {
    let base = WriteSeq(first_seq.0 - 1);
    if base >= now.appended {
        return Cursors {
            appended: base,
            durable: base,
            ..now
        };
    }
    Cursors {
        appended: base,
        durable: base,
        written_back: base,
        checkpointed: base,
        received_by_peer: WriteSeq(0),
        applied_by_peer: WriteSeq(0),
        peer_durable: WriteSeq(0),
        applied: base,
        applied_lfc: (generation, LfcId(0)),
        applied_ordinal: now.applied_ordinal,
        published: now.published,
    }
}

pub(crate) fn encode_start(no: GenNo, start: &Start) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(1)
        .u32(no.0)
        .u64(start.generation.0)
        .u64(start.lfc.0)
        .u64(start.first_seq.0);
    w.bytes(&start.prev_digest).u8(u8::from(start.after_gap)).done()
}

pub(crate) fn decode_start(bytes: &[u8]) -> Read<(GenNo, Start)> {
    let mut r = Reader(bytes);
    r.version(1)?;
    let no = GenNo(r.u32()?);
    let start = Start {
        generation: GenId(r.u64()?),
        lfc: LfcId(r.u64()?),
        first_seq: WriteSeq(r.u64()?),
        prev_digest: r.array()?,
        after_gap: r.u8()? == 1,
    };
    r.end()?;
    Ok((no, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(spans: &[(u32, u64, u64)]) -> Vec<LineSpan> {
        let span = |&(generation, after, upto): &(u32, u64, u64)| LineSpan {
            generation: GenNo(generation),
            after: WriteSeq(after),
            upto: WriteSeq(upto),
        };
        spans.iter().map(span).collect()
    }

    #[test]
    fn what_lies_between_two_positions_is_of_one_line_alone() {
        let home = line(&[(1, 0, 50), (3, 60, 90)]);
        for (to, between) in [
            (line(&[(1, 0, 50), (3, 60, 90)]), line(&[])),
            (line(&[(1, 0, 50), (3, 60, 70)]), line(&[(3, 70, 90)])),
            (line(&[(1, 0, 20)]), line(&[(1, 20, 50), (3, 60, 90)])),
            // The line that was left at 50 went on to 65: its numbers are there twice.
            (line(&[(1, 0, 65)]), line(&[(1, 50, 65), (3, 60, 90)])),
            (
                line(&[(1, 0, 40), (2, 40, 80)]),
                line(&[(1, 40, 50), (3, 60, 90), (2, 40, 80)]),
            ),
        ] {
            assert_eq!(apart(&home, &to), between);
        }
    }
}
