//! History for the snapshot engine: undo by apply ordinal, redo by block (`rules.md` V, W).
//!
//! Containers that are not in the store are served from their in-memory index, those in the store from the block index;
//! those that were stored without an index are read frame by frame. Every value's checksum is checked before it is served.
//! Index entries below a floor are skipped: compaction drops them at leisure.

use crate::{
    codec::Reader,
    container::Hit,
    error::{Damage, JournalError, Position},
    journal::{Journal, Shared},
    keys,
    rows::{LfcRow, bad_key, checked},
    undo::{ZERO, decode_undo},
};
use model::{
    BlockNo, ByteRange, GenNo, LfcId, Ordinal, Payload, Record, RedoSpan, VolumeIndex, WriteSeq,
    ports::{BeforeImage, Ended, Family, History, HistoryError, OrdinalKind, RedoPiece, StoreError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

type Block = (VolumeIndex, BlockNo);
/// Container, frame and record of a hit.
type At = (LfcId, u32, u32);

/// Records that an index names, and containers to read frame by frame.
type Hits = (BTreeMap<WriteSeq, At>, Vec<Arc<LfcRow>>);

/// How the records of one container of a span are found.
enum Lookup {
    /// In the store's index.
    Indexed,
    /// By reading its frames.
    Scan(Arc<LfcRow>),
    /// In memory: done under the same lock.
    Memory,
}

impl Shared {
    /// The containers that hold a span, or why they do not hold all of it.
    fn lookups(&self, span: &RedoSpan) -> Result<Vec<Lookup>, JournalError> {
        let mut out = Vec::new();
        let mut next = span.after.next();
        let not_held = |lfc| JournalError::NotHeld {
            generation: span.generation,
            lfc,
        };
        for row in self.rows.overlapping(span.generation, span.after, span.upto) {
            if row.first_seq > next || !self.is_held(row) {
                return Err(not_held(row.lfc));
            }
            next = row.last_seq.next();
            out.push(if row.indexed {
                Lookup::Indexed
            } else {
                Lookup::Scan(Arc::clone(row))
            });
        }
        for c in self.sealed.iter().map(|s| &s.container).chain(&self.open) {
            let first = c.header.start.first_seq;
            let overlaps = c.last_seq() > span.after && first <= span.upto;
            if c.generation == span.generation && overlaps && !c.is_empty() {
                if first > next {
                    return Err(not_held(c.header.start.lfc));
                }
                next = c.last_seq().next();
                out.push(Lookup::Memory);
            }
        }
        if span.upto > span.after && next <= span.upto {
            let lfc = self.open.as_ref().map(|o| o.header.start.lfc).unwrap_or_default();
            return Err(not_held(lfc));
        }
        Ok(out)
    }

    fn memory_hits(
        &self,
        span: &RedoSpan,
        from: Block,
        to: Block,
    ) -> impl Iterator<Item = (Block, LfcId, Hit)> {
        let span = *span;
        self.sealed
            .iter()
            .map(|s| &s.container)
            .chain(&self.open)
            .filter(move |c| c.generation == span.generation)
            .flat_map(move |c| {
                c.index.range(from..to).flat_map(move |(block, hits)| {
                    hits.iter()
                        .filter(move |h| in_span(h.seq, &span))
                        .map(move |h| (*block, c.header.start.lfc, *h))
                })
            })
    }
}

fn in_span(seq: WriteSeq, span: &RedoSpan) -> bool {
    seq > span.after && seq <= span.upto
}

/// The record narrowed to `range`, if it changes bytes of it.
fn piece(record: &Record, volume: VolumeIndex, range: ByteRange) -> Option<RedoPiece> {
    let changed = record.changed().filter(|_| record.volume == volume)?;
    let part = changed.intersect(range)?;
    let payload = match record.payload()? {
        Payload::Zero => Payload::Zero,
        Payload::Data(data) => {
            let at = |n: u64| crate::codec::index(n - changed.start);
            Payload::Data(data.slice(at(part.start)..at(part.end)))
        }
    };
    Some(RedoPiece {
        seq: record.seq,
        range: part,
        payload,
    })
}

impl Journal {
    /// Every record of a span that touches a block of `range`, in order.
    fn hits(&self, volume: VolumeIndex, range: ByteRange, span: &RedoSpan) -> Result<Hits, JournalError> {
        let aligned = range.block_aligned();
        let (first, end) = (BlockNo::of(aligned.start), BlockNo::of(aligned.end));
        let mut hits = BTreeMap::new();
        // Look-ups before the store's index: a container that is ingested between the two is then found twice, never not.
        let lookups = {
            let shared = self.shared.read();
            let lookups = shared.lookups(span)?;
            if lookups.iter().any(|l| matches!(l, Lookup::Memory)) {
                for (_, lfc, h) in shared.memory_hits(span, (volume, first), (volume, end)) {
                    hits.insert(h.seq, (lfc, h.frame, h.record));
                }
            }
            lookups
        };
        if lookups.iter().any(|l| matches!(l, Lookup::Indexed)) {
            for block in (first.0..end.0).map(BlockNo) {
                let key = |seq| keys::redo_index(volume, block, span.generation, seq);
                self.scan_index(
                    &key(span.after.next()),
                    &key(WriteSeq(span.upto.0.saturating_add(1))),
                    |_, seq, at| {
                        hits.insert(seq, at);
                        true
                    },
                )?;
            }
        }
        let scans = lookups.into_iter().filter_map(|l| {
            if let Lookup::Scan(row) = l {
                Some(row)
            } else {
                None
            }
        });
        Ok((hits, scans.collect()))
    }

    /// Visits entries of the redo index.
    fn scan_index(
        &self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut((Block, GenNo), WriteSeq, At) -> bool,
    ) -> Result<(), JournalError> {
        let mut fault = None;
        self.store.scan(Family::RedoIndex, from, to, &mut |key, value| {
            let parsed = keys::index_parts(key).and_then(|(volume, block, mut rest)| {
                Some(((volume, block), GenNo(rest.u32()?), WriteSeq(rest.u64()?)))
            });
            let Some((block, generation, seq)) = parsed else {
                fault = Some(bad_key("redo index", key));
                return false;
            };
            let mut r = Reader(value);
            let at = (|| Ok((LfcId(r.u64()?), r.u32()?, r.u32()?)))();
            match checked("redo index", key, at) {
                Ok(at) => visit((block, generation), seq, at),
                Err(e) => {
                    fault = Some(e);
                    false
                }
            }
        })?;
        fault.map_or(Ok(()), Err)
    }

    fn redo_inner(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
        spans: &[RedoSpan],
    ) -> Result<Vec<RedoPiece>, JournalError> {
        let mut out = Vec::new();
        for span in spans {
            if range.is_empty() || span.upto <= span.after {
                continue;
            }
            let (hits, scans) = self.hits(volume, range, span)?;
            let mut pieces = BTreeMap::new();
            for (seq, (lfc, frame, record)) in hits {
                let frame = self.frame_at(span.generation, lfc, frame);
                let frame = frame.or_else(|e| self.shared.read().lookups(span).and(Err(e)))?;
                let record = frame.records().get(record as usize).filter(|r| r.seq == seq);
                let record = record.ok_or_else(|| {
                    crate::read::container_damage(
                        span.generation,
                        lfc,
                        format!("record {seq} is not where its index says"),
                    )
                })?;
                if let Some(piece) = piece(record, volume, range) {
                    pieces.insert(seq, piece);
                }
            }
            for row in scans {
                for frame in self.frames_of(row.generation, row.lfc)? {
                    for record in frame.records().iter().filter(|r| in_span(r.seq, span)) {
                        if let Some(piece) = piece(record, volume, range) {
                            pieces.insert(record.seq, piece);
                        }
                    }
                }
            }
            out.extend(pieces.into_values());
            // The floor may have passed the span meanwhile, and its index entries may be gone.
            self.shared.read().lookups(span)?;
        }
        Ok(out)
    }

    fn redone_inner(
        &self,
        spans: &[RedoSpan],
        from: Block,
        limit: usize,
    ) -> Result<Vec<Block>, JournalError> {
        let mut blocks = BTreeSet::new();
        let keep = |blocks: &mut BTreeSet<Block>, block: Block| {
            if block >= from {
                blocks.insert(block);
                if blocks.len() > limit {
                    blocks.pop_last();
                }
            }
        };
        for span in spans.iter().filter(|s| s.upto > s.after) {
            let lookups = {
                let shared = self.shared.read();
                let lookups = shared.lookups(span)?;
                let end = (VolumeIndex(u16::MAX), BlockNo(u64::MAX));
                for (block, _, _) in shared.memory_hits(span, from, end) {
                    keep(&mut blocks, block);
                }
                lookups
            };
            if lookups.iter().any(|l| matches!(l, Lookup::Indexed)) {
                let first = keys::redo_index(from.0, from.1, GenNo(0), WriteSeq(0));
                let mut found = BTreeSet::new();
                self.scan_index(&first, &[0xff; 23], |(block, generation), seq, _| {
                    if generation == span.generation && in_span(seq, span) {
                        found.insert(block);
                    }
                    // In order of blocks: what comes after `limit` others cannot be among the first `limit`.
                    found.len() <= limit
                })?;
                found.into_iter().for_each(|b| keep(&mut blocks, b));
            }
            for lookup in &lookups {
                let Lookup::Scan(row) = lookup else { continue };
                for frame in self.frames_of(row.generation, row.lfc)? {
                    for record in frame.records().iter().filter(|r| in_span(r.seq, span)) {
                        for block in record.changed().into_iter().flat_map(ByteRange::blocks) {
                            keep(&mut blocks, (record.volume, block));
                        }
                    }
                }
            }
        }
        Ok(blocks.into_iter().collect())
    }

    fn first_undo_inner(
        &self,
        blocks: &[Block],
        after: Ordinal,
        upto: Ordinal,
    ) -> Result<Vec<Option<Payload>>, JournalError> {
        self.check_undo_held(after)?;
        let upto = upto.min(self.published());
        let mut out = vec![None; blocks.len()];
        if upto <= after {
            return Ok(out);
        }
        let key = |(volume, block), ordinal| keys::undo_index(volume, block, ordinal);
        let ranges: Vec<_> = blocks
            .iter()
            .map(|b| (key(*b, after.next()), key(*b, upto.next())))
            .collect();
        let found = self.store.first_of_each(Family::UndoIndex, &ranges)?;
        let mut wanted = Vec::new();
        for (i, (key, flag)) in found
            .iter()
            .enumerate()
            .filter_map(|(i, e)| Some((i, e.as_ref()?)))
        {
            let ordinal = keys::index_parts(key).and_then(|(_, _, mut rest)| rest.u64());
            let ordinal = Ordinal(ordinal.ok_or_else(|| bad_key("undo index", key))?);
            if flag[..] == [ZERO] {
                out[i] = Some(Payload::Zero);
            } else {
                wanted.push((ordinal, blocks[i], i));
            }
        }
        // In the order in which they stand in the store: neighbours there are read at once.
        wanted.sort_unstable();
        let values = self.undo_values(&wanted);
        // What is missing because the floor has passed it meanwhile is freed, not damaged.
        let values = values.or_else(|e| self.check_undo_held(after).and(Err(e)))?;
        for ((_, _, i), value) in wanted.iter().zip(values) {
            out[*i] = Some(value);
        }
        // The floor may have passed `after` meanwhile, and freed what was read.
        self.check_undo_held(after)?;
        Ok(out)
    }

    fn check_undo_held(&self, after: Ordinal) -> Result<(), JournalError> {
        let floor = self.floors().undo;
        if after < floor {
            return Err(JournalError::Refused(format!(
                "undo up to ordinal {floor} is freed, {after} was asked for"
            )));
        }
        Ok(())
    }

    /// Before-images by ordinal and block, in that order.
    fn undo_values(&self, wanted: &[(Ordinal, Block, usize)]) -> Result<Vec<Payload>, JournalError> {
        let damage = |(ordinal, (volume, block), _): &(Ordinal, Block, usize), what: String| {
            JournalError::Damaged(Damage::Undo {
                ordinal: ordinal.0,
                volume: volume.0,
                block: block.0,
                what,
            })
        };
        let unreadable = |place, e| {
            crate::read::corrupt(e, |_| {
                damage(place, "its part of the store does not check".into())
            })
        };
        let keys: Vec<_> = wanted
            .iter()
            .map(|(ordinal, (volume, block), _)| keys::undo(*ordinal, *volume, *block))
            .collect();
        let values = match self.store.get_each(Family::Undo, &keys) {
            Ok(values) => values,
            // One of them: which one is told by asking for each.
            Err(StoreError::Corrupt { .. }) => {
                let each = wanted.iter().zip(&keys);
                each.map(|(place, key)| {
                    let value = self.store.get(Family::Undo, key);
                    value.map_err(|e| unreadable(place, e))
                })
                .collect::<Result<_, _>>()?
            }
            Err(e) => return Err(e.into()),
        };
        let each = wanted.iter().zip(values);
        each.map(|(place, value)| {
            let value = value.ok_or_else(|| damage(place, "it is missing".into()))?;
            decode_undo(&value).map_err(|fault| damage(place, fault.to_string()))
        })
        .collect()
    }

    fn undone_inner(
        &self,
        after: Ordinal,
        upto: Ordinal,
        from: Block,
        limit: usize,
    ) -> Result<Vec<Block>, JournalError> {
        self.check_undo_held(after)?;
        let upto = upto.min(self.published());
        let mut out: Vec<Block> = Vec::new();
        let mut fault = None;
        let first = keys::undo_index(from.0, from.1, Ordinal(0));
        self.store
            .scan(Family::UndoIndex, &first, &[0xff; 19], &mut |key, _| {
                let parsed =
                    keys::index_parts(key).and_then(|(v, b, mut rest)| Some(((v, b), Ordinal(rest.u64()?))));
                let Some((block, ordinal)) = parsed else {
                    fault = Some(bad_key("undo index", key));
                    return false;
                };
                if ordinal > after && ordinal <= upto && out.last() != Some(&block) {
                    if out.len() == limit {
                        return false;
                    }
                    out.push(block);
                }
                true
            })?;
        fault.map_or(Ok(out), Err)
    }

    /// A record by its place, for tools and for times of points.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when its frame is not here, or a failure.
    pub fn record_at(&self, at: Position) -> Result<Record, JournalError> {
        let (lfc, frames) = {
            let shared = self.shared.read();
            let not_held = JournalError::NotHeld {
                generation: at.generation,
                lfc: LfcId(0),
            };
            let in_memory = shared
                .open
                .iter()
                .chain(shared.sealed.as_ref().map(|s| &s.container));
            let mut found = None;
            for c in in_memory.filter(|c| c.generation == at.generation) {
                if let Some(i) = c.frame_of(at.seq) {
                    found = Some((c.header.start.lfc, i..i + 1));
                }
            }
            match found {
                Some(found) => found,
                None => {
                    let row = shared.rows.holding(at.generation, at.seq).ok_or(not_held)?;
                    (row.lfc, 0..row.frames)
                }
            }
        };
        // Binary search over the frames of the container.
        let (mut low, mut high) = (frames.start, frames.end);
        while low < high {
            let middle = low + (high - low) / 2;
            let frame = self.frame_at(at.generation, lfc, middle)?;
            if frame.last_seq() < at.seq {
                low = middle + 1;
            } else if frame.first_seq() > at.seq {
                high = middle;
            } else {
                let i = crate::codec::index(at.seq.0 - frame.first_seq().0);
                return frame
                    .records()
                    .get(i)
                    .cloned()
                    .ok_or(JournalError::Internal("a record is missing"));
            }
        }
        Err(crate::read::container_damage(
            at.generation,
            lfc,
            format!("record {} is missing", at.seq),
        ))
    }
}

fn gone(e: JournalError) -> HistoryError {
    match e {
        JournalError::Refused(text) => HistoryError::Gone(text),
        e => e.into(),
    }
}

impl History for Journal {
    fn published(&self) -> Ordinal {
        Ordinal(self.published.load(Ordering::Acquire))
    }

    fn first_undo_of(
        &self,
        blocks: &[Block],
        after: Ordinal,
        upto: Ordinal,
    ) -> Result<Vec<Option<Payload>>, HistoryError> {
        self.guarded(|| self.first_undo_inner(blocks, after, upto))
            .map_err(gone)
    }

    fn redo(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
        spans: &[RedoSpan],
    ) -> Result<Vec<RedoPiece>, HistoryError> {
        self.guarded(|| self.redo_inner(volume, range, spans))
            .map_err(gone)
    }

    fn commit_undo(
        &self,
        ordinal: Ordinal,
        kind: &OrdinalKind,
        images: &mut dyn Iterator<Item = Result<BeforeImage, Ended>>,
    ) -> Result<Vec<Block>, HistoryError> {
        self.guarded(|| self.commit_undo_inner(ordinal, kind, images))
            .map_err(|e| match e {
                JournalError::Refused(text) => HistoryError::Damaged(text),
                e => e.into(),
            })
    }

    fn undone_blocks(
        &self,
        after: Ordinal,
        upto: Ordinal,
        from: (VolumeIndex, BlockNo),
        limit: usize,
    ) -> Result<Vec<(VolumeIndex, BlockNo)>, HistoryError> {
        self.guarded(|| self.undone_inner(after, upto, from, limit))
            .map_err(gone)
    }

    fn redone_blocks(
        &self,
        spans: &[RedoSpan],
        from: (VolumeIndex, BlockNo),
        limit: usize,
    ) -> Result<Vec<(VolumeIndex, BlockNo)>, HistoryError> {
        self.guarded(|| self.redone_inner(spans, from, limit))
            .map_err(gone)
    }
}
