//! What a change of role does to a journal: a line is taken over, or given up for another host's (`rules.md` L1 to L5).
//!
//! # Overview
//!
//! A host that becomes production *takes over* the line at a position ([`Journal::promote`]): the newest record, or the point
//! of a failover restore. Nothing is written for that but metadata; the first record after it opens a generation of its own
//! ([`Promotion`]), so a role that goes over and back without a write leaves no trace in history. Until then the line ends at
//! that position, whatever this journal holds behind it.
//!
//! A host that becomes recovery *gives up* its line ([`Journal::give_up`]): its end becomes a boundary that its undo leads
//! back to, and from there on it is a replica like any other. What its line held past the common position stays readable, as
//! a line of its own, until retention frees it.
//!
//! # Invariants
//!
//! - Role, term and the line that they stand for are one commit: none is ever seen without the others.
//! - What this host holds past the position that it takes over at is never applied, and never sent.
//! - Where a host gives its line up, its volumes hold all of it (L4).
//!
//! # What it does not do
//!
//! It decides no role. Which regions differ from the peer's is asked here ([`Journal::touched_past`]) and made durable by the
//! state map before any of this.

use crate::{
    container::Container,
    cursors::Cursors,
    error::{JournalError, Position},
    frame::Digest,
    journal::{Journal, Shared},
    keys,
    line::LineSpan,
    record::Draft,
    rows::{Consistent, ContextRow, Floors, Generation, OrdinalRow, Parent, Promotion},
    tail::SealFlags,
};
use model::{
    ByteRange, GenId, GenNo, LfcId, RecordBody, Role, Timestamp, VolumeIndex, WriteSeq,
    ports::{Batch, Family, OrdinalKind},
};
use std::sync::atomic::Ordering;

/// A part of a line as hosts tell each other of it: `after < seq <= upto` of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinePart {
    /// The generation.
    pub id: GenId,
    /// Exclusive lower end.
    pub after: WriteSeq,
    /// Inclusive upper end.
    pub upto: WriteSeq,
    /// Chain digest there, or at the end of the last frame before it; `None`: not known any more.
    pub digest: Option<Digest>,
}

impl Shared {
    /// A generation that continues another one, and was cut off before its first record: it adds nothing to its line yet. The
    /// first one of a context gets its birth from whoever makes the context.
    fn unborn(&self) -> Option<&Generation> {
        let open = self
            .open
            .as_ref()
            .filter(|o| o.is_empty() && self.promotion.is_none())?;
        let start = &open.header.start;
        let opened = self.generations.get(&open.generation)?;
        let begins = opened.first_seq == start.first_seq && opened.first_lfc == start.lfc;
        (!start.after_gap && opened.parent.is_some() && begins).then_some(opened)
    }

    /// Whether a container of the catalog, or the open one, has the record.
    fn covers(&self, at: Position) -> bool {
        let has = |generation: GenNo, first: WriteSeq, last: WriteSeq| {
            generation == at.generation && first <= at.seq && at.seq <= last
        };
        let open = self.open.iter().filter(|o| !o.is_empty());
        let mut open = open.map(|o| (o.generation, o.header.start.first_seq, o.last_seq()));
        let mut rows = self.sealed_rows();
        open.any(|(generation, first, last)| has(generation, first, last))
            || rows.any(|r| has(r.generation, r.first_seq, r.last_seq))
    }

    /// The line that this host is on.
    pub(crate) fn current_line(&self) -> Vec<LineSpan> {
        if self.promotion.is_none() {
            return self.open.as_ref().map_or(Vec::new(), |o| self.line(o.generation));
        }
        // Of a generation that is not known here nothing is.
        shared_end(self).map_or(Vec::new(), |end| self.line_to(end))
    }
}

impl Journal {
    /// The line that was taken over and has no record of this host yet.
    #[must_use]
    pub fn promotion(&self) -> Option<Promotion> {
        self.shared.read().promotion.clone()
    }

    /// Where this host's line ends durably: generation, record, and chain digest there (or at the last frame's end before
    /// it). `None` before the first record.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn line_end(&self) -> Result<Option<(GenId, WriteSeq, Digest)>, JournalError> {
        let taken_over = {
            let shared = self.shared.read();
            let unborn = shared.unborn().map(|g| g.parent);
            shared.promotion.as_ref().map(|p| p.parent).or(unborn)
        };
        if let Some(parent) = taken_over {
            return Ok(parent.map(|p| (p.id, p.seq, p.digest)));
        }
        let durable = self.cursors().durable;
        let Some(generation) = self.current_generation().filter(|_| durable.0 > 0) else {
            return Ok(None);
        };
        let (seq, digest) = self.digest_at(generation.no, durable)?;
        Ok(Some((generation.id, seq, digest)))
    }

    /// Last record of the line, appended and durable: what may be sent.
    #[must_use]
    pub fn line_cursors(&self) -> (WriteSeq, WriteSeq) {
        // Held to the end: the birth of the line that was taken over moves the cursors, from those of the line before.
        let shared = self.shared.read();
        match &shared.promotion {
            Some(promotion) => {
                let end = promotion.parent.map_or(WriteSeq(0), |p| p.seq);
                (end, end)
            }
            None => {
                let cursors = self.cursors();
                (cursors.appended, cursors.durable)
            }
        }
    }

    /// The last record of the line, appended, and its generation; `None` before the first.
    #[must_use]
    pub fn line_head(&self) -> Option<(GenId, WriteSeq)> {
        let shared = self.shared.read();
        let unborn = shared.unborn().map(|g| g.parent);
        if let Some(parent) = shared.promotion.as_ref().map(|p| p.parent).or(unborn) {
            return parent.map(|p| (p.id, p.seq));
        }
        drop(shared);
        let appended = self.cursors().appended;
        let generation = self.current_generation().filter(|_| appended.0 > 0)?;
        Some((generation.id, appended))
    }

    /// The line as hosts tell each other of it, durable records only; oldest part first.
    #[must_use]
    pub fn line_parts(&self) -> Vec<LinePart> {
        let (mut parts, last) = self.undigested();
        if let (Some(part), Some(generation)) = (parts.last_mut(), last)
            && part.digest.is_none()
        {
            part.digest = self
                .digest_at(generation, part.upto)
                .ok()
                .map(|(_, digest)| digest);
        }
        parts
    }

    /// The parts of the line, with the digests that what goes on from them says, and the generation of the last one.
    fn undigested(&self) -> (Vec<LinePart>, Option<GenNo>) {
        let shared = self.shared.read();
        let durable = match &shared.promotion {
            Some(_) => WriteSeq(u64::MAX),
            None => self.cursors().durable,
        };
        let mut spans = shared.current_line();
        let generation = |span: &LineSpan| shared.generations.get(&span.generation);
        // Whatever goes on from a part says what the digest is there.
        let mut parents: Vec<Option<Parent>> = spans
            .iter()
            .map(|span| generation(span).and_then(|g| g.parent))
            .collect();
        parents.push(shared.promotion.as_ref().and_then(|p| p.parent));
        if shared.unborn().is_some() {
            spans.pop();
        }
        let last = spans.len().saturating_sub(1);
        let part = |(i, span): (usize, &LineSpan)| {
            let id = generation(span)?.id;
            let upto = if i == last {
                span.upto.min(durable)
            } else {
                span.upto
            };
            let goes_on = parents.get(i + 1).copied().flatten();
            let digest = goes_on.filter(|p| (p.id, p.seq) == (id, upto)).map(|p| p.digest);
            Some(LinePart {
                id,
                after: span.after,
                upto,
                digest,
            })
        };
        let parts = spans.iter().enumerate().filter_map(part).collect();
        (parts, spans.last().map(|span| span.generation))
    }

    /// The newest position that lies on this host's line and on the one that has the parts `theirs`; `None` when they have
    /// nothing in common that is known (rule L1).
    ///
    /// A generation has one writer, which never takes a number twice, so parts of one generation are the same records; but a
    /// machine that was put back to an older state of itself has taken numbers twice and cannot know it. Whoever holds the
    /// record at which the other's part ends sees that by its digest. Since when they differ nobody knows, and the host with the
    /// shorter part has not even seen that they do: an older position in common would not help.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn common(&self, theirs: &[LinePart]) -> Result<Option<Position>, JournalError> {
        let (ours, _) = self.undigested();
        let both = ours.iter().rev().find_map(|our| {
            let their = theirs.iter().find(|t| t.id == our.id)?;
            let upto = our.upto.min(their.upto);
            let told = their.digest.filter(|_| their.upto == upto);
            (upto > our.after.max(their.after)).then_some((our.id, upto, told))
        });
        let Some((id, upto, told)) = both else {
            return Ok(None);
        };
        let at = self.position_of(id, upto);
        match (at, told) {
            (Some(at), Some(digest)) if !self.agrees(at, digest)? => Ok(None),
            _ => Ok(at),
        }
    }

    /// Whether this host's chain is not known to be another at a record.
    fn agrees(&self, at: Position, digest: Digest) -> Result<bool, JournalError> {
        match self.digest_at(at.generation, at.seq) {
            Ok((_, ours)) if ours == digest => Ok(true),
            // In a gap nobody knows.
            Ok(_) => Ok(!self.shared.read().covers(at)),
            Err(JournalError::NotHeld { .. }) => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Generations with records that today's line left behind: each is the end of a line of its own.
    #[must_use]
    pub fn left_lines(&self) -> Vec<GenNo> {
        let shared = self.shared.read();
        let line = shared.current_line();
        let left = |generation: GenNo| {
            let on_line = line.iter().find(|span| span.generation == generation);
            let end = shared.sealed_rows().rev().find(|r| r.generation == generation);
            let parts = shared.generations.values().filter_map(|g| g.parent);
            let goes_on = || {
                let id = shared.generations.get(&generation).map(|g| g.id);
                parts.into_iter().any(|p| Some(p.id) == id)
            };
            end.is_some_and(|row| match on_line {
                Some(span) => row.last_seq > span.upto,
                None => !goes_on(),
            })
        };
        shared.generations.keys().copied().filter(|g| left(*g)).collect()
    }

    /// A position in this host's own numbering of generations.
    #[must_use]
    pub fn position_of(&self, id: GenId, seq: WriteSeq) -> Option<Position> {
        let generation = self.generation_by_id(id)?.no;
        Some(Position { generation, seq })
    }

    /// The ranges changed by every record past `position` that this host holds or held, of any line, in the order in which
    /// it met them. `None`: the catalog does not reach back so far, so it is not known.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn touched_past(
        &self,
        position: Position,
    ) -> Result<Option<Vec<(VolumeIndex, ByteRange)>>, JournalError> {
        self.touched_between(position, None)
    }

    /// The same, but for the containers that begin behind `upto` in its generation.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn touched_between(
        &self,
        position: Position,
        upto: Option<Position>,
    ) -> Result<Option<Vec<(VolumeIndex, ByteRange)>>, JournalError> {
        let containers = {
            let shared = self.shared.read();
            let is_past = |generation: GenNo, last: WriteSeq| {
                Position {
                    generation,
                    seq: last,
                } > position
            };
            let mut containers: Vec<(GenNo, LfcId, bool)> = Vec::new();
            let mut first: Option<(GenNo, WriteSeq)> = None;
            let rows = shared
                .sealed_rows()
                .map(|r| (r.generation, r.lfc, r.first_seq, r.last_seq));
            let open = shared.open.iter().filter(|o| !o.is_empty());
            let open = open.map(|o| {
                let start = &o.header.start;
                (o.generation, start.lfc, start.first_seq, o.last_seq())
            });
            for (generation, lfc, first_seq, last_seq) in rows.chain(open) {
                first.get_or_insert((generation, first_seq));
                let is_behind =
                    upto.is_some_and(|upto| generation == upto.generation && first_seq > upto.seq);
                if is_past(generation, last_seq) && !is_behind {
                    // Of the container that holds the position, only what is past it.
                    let holds = generation == position.generation && first_seq <= position.seq;
                    containers.push((generation, lfc, holds));
                }
            }
            // Rows are forgotten from the oldest on: what is known must begin at the position, or where its line left it.
            let begins = first.is_none_or(|(generation, first_seq)| {
                let at = Position {
                    generation,
                    seq: WriteSeq(first_seq.0 - 1),
                };
                let is_birth = shared.generations.get(&generation).is_some_and(|g| {
                    g.first_seq == first_seq
                        && g.parent.as_ref().is_none_or(|p| {
                            shared.generation_by_id(p.id).is_some_and(|parent| {
                                Position {
                                    generation: parent.no,
                                    seq: p.seq,
                                } <= position
                            })
                        })
                });
                at <= position || is_birth
            });
            if !begins {
                return Ok(None);
            }
            containers
        };
        let mut ranges = Vec::new();
        for (generation, lfc, holds_position) in containers {
            let touched = if holds_position {
                self.touched_in(generation, lfc, position.seq, WriteSeq(u64::MAX))
            } else {
                self.touched(generation, lfc)
            };
            match touched {
                Ok(more) => ranges.extend(more),
                // Forgotten meanwhile.
                Err(JournalError::NotHeld { .. }) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(ranges))
    }

    /// Seals what is open, cut at its end, and takes it into the store (rule L3): the line gets no further record under this
    /// container's id.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn close_line(&self) -> Result<(), JournalError> {
        self.guarded(|| {
            self.sync()?;
            let mut writer = self.writer.lock();
            if !self.open_is_empty() {
                let cut = SealFlags {
                    cut: Some(self.cursors().appended),
                    ..SealFlags::default()
                };
                self.seal_locked(&mut writer, cut)?;
            }
            self.ingest_inner().map(drop)
        })
    }

    /// Takes the line over at `at`, where the volumes stand; `row` is what this host is from then on. One commit, durable
    /// when it returns; an earlier restore is over with it. What is held past `at` is never applied any more.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when the line was not closed, [`JournalError::NotHeld`] when `at` is not in the catalog, or
    /// a failure.
    pub fn promote(
        &self,
        id: GenId,
        at: Position,
        clock: Timestamp,
        row: &ContextRow,
    ) -> Result<(), JournalError> {
        self.guarded(|| {
            let _writer = self.writer.lock();
            self.check_closed()?;
            let parent = self.parent_at(at)?;
            let promotion = Promotion { id, parent, clock };
            let is_restored = self.restore()?.is_some();
            let mut meta = self.meta.lock();
            let mut cursors = self.cursors();
            let spans = where_taken_over(&self.shared.read(), at, &cursors, is_restored);
            if let Some(newest) = self.shared.read().sealed_rows().next_back() {
                cursors.applied_lfc = cursors.applied_lfc.max((newest.generation, newest.lfc));
            }
            cursors.applied = cursors.appended;
            cursors.written_back = cursors.appended;
            cursors.checkpointed = cursors.appended;
            cursors.received_by_peer = WriteSeq(0);
            cursors.applied_by_peer = WriteSeq(0);
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::PROMOTION, promotion.encode());
            batch.put(Family::Meta, keys::CURSORS, cursors.encode());
            batch.put(Family::Meta, keys::CONSISTENT, Consistent::encode_all(&spans));
            batch.put(Family::Meta, keys::CONTEXT, row.encode());
            batch.delete(Family::Meta, keys::RESTORE);
            self.commit_locked(&mut meta, batch, true)?;
            let mut shared = self.shared.write();
            shared.promotion = Some(promotion);
            shared.consistent = spans;
            // It may hold what is past `at`.
            shared.ring.clear();
            self.line_changes.fetch_add(1, Ordering::AcqRel);
            self.move_cursors(|c| *c = cursors);
            Ok(())
        })
    }

    /// What a line that begins behind `at` says of where it begins; `None` where there is no line.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when nothing knows the digest there any more, so that nobody can take the line over there, or a
    /// failure.
    pub fn parent_at(&self, at: Position) -> Result<Option<Parent>, JournalError> {
        let (id, no, known) = {
            let shared = self.shared.read();
            let Some(generation) = shared.generations.get(&at.generation) else {
                return Ok(None);
            };
            // What was taken over there before knows the digest, when the catalog has forgotten it. So does a generation that
            // continues it.
            let parents = shared.generations.values().filter_map(|g| g.parent);
            let mut known = parents.chain(taken_over(&shared));
            let known = known.find(|p| (p.id, p.seq) == (generation.id, at.seq));
            (generation.id, generation.no, known)
        };
        let digest = match known {
            Some(parent) => parent.digest,
            None => self.digest_at(no, at.seq)?.1,
        };
        let seq = at.seq;
        Ok(Some(Parent { id, seq, digest }))
    }

    /// Gives the line up: from now on this host follows another one's. Its end becomes a point that undo leads back to, if
    /// there is none yet. One commit with `row`, durable when it returns; repeating it is harmless.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when the line was not closed, or the volumes do not hold all of it (L4); or a failure.
    pub fn give_up(&self, row: &ContextRow) -> Result<(), JournalError> {
        self.guarded(|| {
            let _writer = self.writer.lock();
            self.check_closed()?;
            let was_production = self.context()?.is_some_and(|row| row.role == Role::Production);
            let mut meta = self.meta.lock();
            let mut cursors = self.cursors();
            // Behind a gap there may be no record yet.
            let end = self.sealed_end();
            if cursors.checkpointed < end {
                return Err(JournalError::Refused(format!(
                    "the volumes hold {} of {end} records",
                    cursors.checkpointed
                )));
            }
            let mut batch = Batch::default();
            let (newest, floors, applies) = {
                let shared = self.shared.read();
                let newest = shared.sealed_rows().next_back().cloned();
                let builds_undo = cursors.published > shared.floors.undo;
                (newest, shared.floors, builds_undo || !was_production)
            };
            let newest = newest.map(|row| (row.generation, row.lfc, row.last_seq));
            let mut added = None;
            let mut spans = spans_when_given_up(&self.shared.read());
            // A replica in the middle of a resync is at no point, and is none now.
            // So is one that was taken over like that and not added to.
            let is_open = spans.last().is_some_and(|s| s.until.is_none());
            let taken = shared_end(&self.shared.read());
            let stands = is_open || (was_production && self.promotion().is_none() && taken.is_none());
            if let Some((generation, lfc, last_seq)) = newest {
                // Past it is the start of a line that is followed from behind a gap, before its first container.
                let is_applied = applies && cursors.applied_lfc >= (generation, lfc);
                // A line that was taken over at a point and not added to ends there, which is where the replica that this host was
                // stands already, whatever of its past is gone: nothing that it holds behind that point is on its volumes.
                let is_boundary = is_applied || taken.is_some();
                if applies && !is_boundary {
                    return Err(JournalError::Refused(format!(
                        "container {lfc} is not applied: {} is",
                        cursors.applied_lfc.1
                    )));
                }
                let end = taken.unwrap_or(Position {
                    generation,
                    seq: last_seq,
                });
                if !is_boundary {
                    let ordinal = cursors.published.next();
                    let kind = OrdinalKind::Apply {
                        generation,
                        lfc,
                        last_seq,
                    };
                    let row = OrdinalRow {
                        ordinal,
                        kind,
                        blocks: 0,
                        bytes: 0,
                    };
                    batch.put(Family::Catalog, keys::ordinal(ordinal), row.encode());
                    // Nothing before it can be stood on: this host built no undo.
                    let floors = Floors {
                        undo: ordinal,
                        ..floors
                    };
                    batch.put(Family::Meta, keys::FLOORS, floors.encode());
                    cursors.applied_ordinal = ordinal;
                    cursors.published = ordinal;
                    added = Some((ordinal, row, floors));
                    spans.clear();
                }
                cursors.applied_lfc = cursors.applied_lfc.max((generation, lfc));
                if stands && spans.last().is_none_or(|s| s.until.is_some()) {
                    spans.push(Consistent {
                        from: end,
                        until: None,
                    });
                }
            }
            cursors.applied = cursors.appended;
            cursors.written_back = cursors.appended;
            cursors.checkpointed = cursors.appended;
            cursors.received_by_peer = WriteSeq(0);
            cursors.applied_by_peer = WriteSeq(0);
            cursors.peer_durable = WriteSeq(0);
            batch.put(Family::Meta, keys::CURSORS, cursors.encode());
            batch.put(Family::Meta, keys::CONSISTENT, Consistent::encode_all(&spans));
            batch.put(Family::Meta, keys::CONTEXT, row.encode());
            // A line that was taken over at its end and not added to is what it was: it may go on as that.
            let is_over = self.promotion().is_some() && self.may_go_on();
            if is_over {
                batch.delete(Family::Meta, keys::PROMOTION);
            }
            self.commit_locked(&mut meta, batch, true)?;
            let mut shared = self.shared.write();
            if is_over {
                shared.promotion = None;
            }
            if let Some((ordinal, row, floors)) = added {
                shared.ordinals.insert(ordinal, row);
                shared.floors = floors;
            }
            shared.consistent = spans;
            self.published.store(cursors.published.0, Ordering::Release);
            self.move_cursors(|c| *c = cursors);
            Ok(())
        })
    }

    /// Whether the next record of the line that this host is on has its place here, be it another host's. A line that was taken over
    /// and not added to may go on as what it was only at its very end, and while no generation was opened for it.
    #[must_use]
    pub fn may_go_on(&self) -> bool {
        let shared = self.shared.read();
        match &shared.promotion {
            Some(_) => shared_end(&shared) == shared.open.as_ref().map(Container::end),
            None => shared.unborn().is_none(),
        }
    }

    /// Frees every earlier point and the redo that leads to it (rule L8): from now on this host builds no undo. The caller has
    /// seen that the peer has applied all of it.
    ///
    /// # Errors
    /// When the floor could not be made durable, or freeing failed.
    pub fn drop_history(&self) -> Result<(), JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            let newest = self.shared.read().rows.last().cloned();
            let mut floors = newest.map_or_else(|| self.floors(), |row| self.redo_floor(&row));
            floors.undo = floors.undo.max(self.cursors().applied_ordinal);
            self.move_floors(floors)
        })
    }

    /// Nothing is open and nothing waits to be ingested.
    fn check_closed(&self) -> Result<(), JournalError> {
        if self.open_is_empty() && !self.has_sealed() {
            return Ok(());
        }
        Err(JournalError::Refused("the line is not closed".into()))
    }

    /// The clock at the journal's end: what the next record's time is compared with (L5).
    #[must_use]
    pub fn newest_clock(&self) -> Timestamp {
        let shared = self.shared.read();
        shared.open.as_ref().map_or_else(|| shared.clock(), |o| o.clock)
    }

    /// Whether the next record must be the birth of a generation.
    #[must_use]
    pub fn awaits_birth(&self) -> bool {
        let shared = self.shared.read();
        shared.promotion.is_some() || shared.unborn().is_some()
    }

    /// Opens the generation that a promotion has announced, and answers its first record.
    ///
    /// # Errors
    /// [`JournalError::NoGeneration`] when there is none, or a failure.
    pub(crate) fn begin_generation(&self) -> Result<Draft, JournalError> {
        let generation = match self.promotion() {
            Some(p) => self.create_generation(crate::NewGeneration::own(p.id, p.parent))?,
            None => self.current_generation().ok_or(JournalError::NoGeneration)?,
        };
        Ok(Draft {
            volume: VolumeIndex(0),
            body: generation.birth(),
        })
    }
}

/// The consistent spans where a line is taken over at `at`, before its cursors say that nothing is left to apply.
///
/// - Where the copies of a span were here and its first position was never applied, it is none: what is held behind that lacks the
///   copies, which are in no redo, and is never applied now.
/// - A restored point is consistent, and so is what goes on from it. Volumes that are taken as they are, amid a resync, are not.
fn where_taken_over(shared: &Shared, at: Position, cursors: &Cursors, is_restored: bool) -> Vec<Consistent> {
    let line = shared.line_to(at);
    let is_on_line = |p: Position| {
        let has = |span: &LineSpan| span.generation == p.generation && p.seq <= span.upto;
        line.iter().any(has)
    };
    let mut spans = shared.consistent.clone();
    if shared_end(shared) != Some(at) {
        // It is not the place of a line that this host took over before and leaves now.
        end_where_taken_over(shared, &mut spans, None);
    }
    let goes_on = spans.last().is_some_and(|s| s.until.is_none());
    spans.retain(|span| cursors.has_applied(span.from));
    let end = shared.open.as_ref().map(Container::end);
    let begins_anew = match spans.last_mut() {
        Some(open) if open.until.is_none() && open.from != at && (is_restored || !is_on_line(open.from)) => {
            // What is held behind the point, or beside the line, is left behind, and stays what it is.
            open.until = end;
            true
        }
        Some(open) if open.until.is_none() => false,
        _ => goes_on || is_restored,
    };
    spans.extend(begins_anew.then_some(Consistent {
        from: at,
        until: None,
    }));
    spans
}

/// A span that goes on from just where a line was taken over goes on along that line alone, not along what was left behind the same
/// place, if anything was. So it ends there, and another one begins with the line's first record (`next`), if it gets one.
pub(crate) fn end_where_taken_over(shared: &Shared, spans: &mut Vec<Consistent>, next: Option<Position>) {
    let Some(taken) = shared_end(shared) else { return };
    let newest = shared.sealed_rows().next_back();
    let leaves_nothing =
        newest.is_none_or(|row| (row.generation, row.last_seq) <= (taken.generation, taken.seq));
    let open = |span: &&mut Consistent| span.until.is_none() && span.from == taken;
    if let Some(last) = spans.last_mut().filter(open).filter(|_| !leaves_nothing) {
        last.until = Some(taken);
        spans.extend(next.map(|from| Consistent { from, until: None }));
    }
}

/// The consistent spans of a host that gives its line up: a generation that was opened for it and got no record has none, and what
/// [`end_where_taken_over`] ended for it goes on.
fn spans_when_given_up(shared: &Shared) -> Vec<Consistent> {
    let mut spans = shared.consistent.clone();
    let opened = shared.unborn().map(|g| g.no);
    if spans
        .pop_if(|span| Some(span.from.generation) == opened)
        .is_some()
        && let Some(last) = spans.last_mut()
    {
        last.until = None;
    }
    spans
}

/// What a line continues that was taken over and has no record of this host yet, whether its generation was opened or not.
fn taken_over(shared: &Shared) -> Option<Parent> {
    match &shared.promotion {
        Some(promotion) => promotion.parent,
        None => shared.unborn()?.parent,
    }
}

/// Where a line ends that was taken over and has no record of this host yet.
fn shared_end(shared: &Shared) -> Option<Position> {
    let parent = taken_over(shared)?;
    let generation = shared.generation_by_id(parent.id)?.no;
    let seq = parent.seq;
    Some(Position { generation, seq })
}

/// What a birth record says its generation continues; `None` for other records.
#[must_use]
pub fn parent_of(body: &RecordBody) -> Option<Option<Parent>> {
    match body {
        RecordBody::Birth {
            parent,
            parent_digest,
        } => Some(parent.map(|(id, seq)| Parent {
            id,
            seq,
            digest: *parent_digest,
        })),
        _ => None,
    }
}
