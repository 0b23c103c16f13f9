//! Reading frames and rows back: from memory, else from the tails, else from the store.

use crate::{
    codec::len32,
    container::joined,
    error::{Damage, JournalError},
    frame::{Frame, FrameHeader},
    ingest::damaged,
    journal::{Journal, Shared, tail_name},
    keys,
    line::LineSpan,
    rows::{LfcRow, checked, decode_touched},
    tail::{FrameLoc, read_frame},
};
use bytes::Bytes;
use model::{
    ByteRange, EventMark, GenNo, LfcId, VolumeIndex, WriteSeq,
    ports::{Family, StoreError},
};
use std::{collections::BTreeSet, ops::RangeBounds, sync::Arc};

/// Where a container's frames stand.
pub(crate) enum Place {
    /// In a tail.
    Tail(usize, FrameLoc),
    /// In the store.
    Store,
}

impl Shared {
    pub(crate) fn is_held(&self, row: &LfcRow) -> bool {
        !row.dropped && (row.generation, row.lfc) > self.floors.redo
    }

    /// All sealed containers, oldest first, the one that waits to be ingested included.
    pub(crate) fn sealed_rows(&self) -> impl DoubleEndedIterator<Item = &Arc<LfcRow>> {
        self.rows.values().chain(self.sealed.as_ref().map(|s| &s.row))
    }

    fn place(&self, generation: GenNo, lfc: LfcId, frame: u32) -> Option<Place> {
        let in_memory = self.open.iter().chain(self.sealed.as_ref().map(|s| &s.container));
        for c in in_memory {
            if (c.generation, c.header.start.lfc) == (generation, lfc) {
                return c.frames.get(frame as usize).map(|loc| Place::Tail(c.tail, *loc));
            }
        }
        let row = self.rows.get(&(generation, lfc))?;
        (self.is_held(row) && frame < row.frames).then_some(Place::Store)
    }
}

impl Journal {
    /// Rows of sealed containers in a range of (generation, container), oldest first.
    #[must_use]
    pub fn lfc_rows(&self, range: impl RangeBounds<(GenNo, LfcId)>) -> Vec<Arc<LfcRow>> {
        let shared = self.shared.read();
        let waiting = shared.sealed.as_ref().map(|s| &s.row);
        let waiting = waiting.filter(|r| range.contains(&(r.generation, r.lfc)));
        shared
            .rows
            .range((range.start_bound(), range.end_bound()))
            .chain(waiting)
            .cloned()
            .collect()
    }

    /// How many sealed containers have records behind `seq`; counted up to `most`.
    #[must_use]
    pub fn sealed_after(&self, seq: WriteSeq, most: usize) -> usize {
        let shared = self.shared.read();
        let after = shared.sealed_rows().rev().take_while(|row| row.last_seq > seq);
        after.take(most).count()
    }

    /// The row of a sealed container.
    #[must_use]
    pub fn lfc_row(&self, generation: GenNo, lfc: LfcId) -> Option<Arc<LfcRow>> {
        let shared = self.shared.read();
        let sealed = shared.sealed.as_ref().map(|s| &s.row);
        let row = shared
            .rows
            .get(&(generation, lfc))
            .or(sealed.filter(|r| (r.generation, r.lfc) == (generation, lfc)));
        row.cloned()
    }

    /// Whether the frames of a sealed container are held.
    #[must_use]
    pub fn is_held(&self, row: &LfcRow) -> bool {
        self.shared.read().is_held(row)
    }

    /// Event marks of all generations, in order.
    #[must_use]
    pub fn marks(&self) -> Vec<EventMark> {
        self.shared.read().marks.values().cloned().collect()
    }

    /// The ranges that a container changed, whole blocks; kept longer than its frames.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when the catalog does not know it, or a failure.
    pub fn touched(
        &self,
        generation: GenNo,
        lfc: LfcId,
    ) -> Result<Vec<(VolumeIndex, ByteRange)>, JournalError> {
        {
            let shared = self.shared.read();
            let in_memory = shared
                .open
                .iter()
                .chain(shared.sealed.as_ref().map(|s| &s.container));
            for c in in_memory {
                if (c.generation, c.header.start.lfc) == (generation, lfc) {
                    return Ok(c.touched());
                }
            }
        }
        let key = keys::touched(generation, lfc);
        let value = self
            .store
            .get(Family::Catalog, &key)?
            .ok_or(JournalError::NotHeld { generation, lfc })?;
        checked("catalog", &key, decode_touched(&value))
    }

    /// The ranges that the records of a container past `after` and up to `upto` changed, in whole blocks; where its records are
    /// not held any more those of all of them, which the catalog knows for longer.
    ///
    /// # Errors
    /// As [`Journal::touched`].
    pub(crate) fn touched_in(
        &self,
        generation: GenNo,
        lfc: LfcId,
        after: WriteSeq,
        upto: WriteSeq,
    ) -> Result<Vec<(VolumeIndex, ByteRange)>, JournalError> {
        {
            let shared = self.shared.read();
            let sealed = shared.sealed.as_ref().map(|s| &s.container);
            let mut in_memory = shared.open.iter().chain(sealed);
            let found = in_memory.find(|c| (c.generation, c.header.start.lfc) == (generation, lfc));
            if let Some(container) = found {
                return Ok(container.touched_in(after, upto));
            }
        }
        let row = self
            .lfc_row(generation, lfc)
            .ok_or(JournalError::NotHeld { generation, lfc })?;
        let frames = match self.stored_frames(&row, after.next(), u64::MAX) {
            Ok(frames) => frames,
            Err(JournalError::NotHeld { .. } | JournalError::Damaged { .. }) => {
                return self.touched(generation, lfc);
            }
            Err(e) => return Err(e),
        };
        let records = frames.iter().flat_map(|frame| frame.records());
        let wanted = records.filter(|record| after < record.seq && record.seq <= upto);
        let blocks: BTreeSet<_> = wanted
            .filter_map(|record| Some((record.volume, record.changed()?)))
            .flat_map(|(volume, range)| range.blocks().map(move |block| (volume, block)))
            .collect();
        Ok(joined(blocks))
    }

    /// One frame of a container, checked.
    pub(crate) fn frame_at(
        &self,
        generation: GenNo,
        lfc: LfcId,
        frame: u32,
    ) -> Result<Arc<Frame>, JournalError> {
        let key = (generation, lfc, frame);
        if let Some(found) = self.cache.get(key) {
            return Ok(found);
        }
        // A tail can be taken for another container between the look-up and the read; then the place has changed.
        for _ in 0..4 {
            let place = {
                let shared = self.shared.read();
                let place = shared
                    .place(generation, lfc, frame)
                    .ok_or(JournalError::NotHeld { generation, lfc })?;
                if let Place::Tail(_, loc) = place
                    && let Some(found) = shared.ring.get(loc.first_seq)
                    && found.lfc() == lfc
                    && shared
                        .generations
                        .get(&generation)
                        .is_some_and(|g| g.id == found.generation())
                {
                    return Ok(Arc::clone(found));
                }
                place
            };
            let bytes = match &place {
                Place::Tail(tail, loc) => read_frame(&*self.tails[*tail], loc, &tail_name(*tail))?,
                Place::Store => {
                    let found = self
                        .store
                        .get(Family::Redo, &keys::redo(generation, lfc, frame))
                        .map_err(|e| corrupt(e, |what| container_damage(generation, lfc, what)))?;
                    let held = self.shared.read().place(generation, lfc, frame).is_some();
                    found.ok_or_else(|| match held {
                        true => container_damage(generation, lfc, format!("frame {frame} is missing")),
                        false => JournalError::NotHeld { generation, lfc },
                    })?
                }
            };
            match Frame::parse(bytes) {
                Ok(found) if found.lfc() == lfc => {
                    let found = Arc::new(found);
                    self.cache.put(key, &found);
                    return Ok(found);
                }
                _ if self.has_moved(&place, generation, lfc, frame) => {}
                Ok(_) => {
                    return Err(container_damage(
                        generation,
                        lfc,
                        format!("frame {frame} is another container's"),
                    ));
                }
                Err(e) => return Err(container_damage(generation, lfc, format!("frame {frame}: {e}"))),
            }
        }
        Err(JournalError::Internal("a frame's place never stood still"))
    }

    fn has_moved(&self, place: &Place, generation: GenNo, lfc: LfcId, frame: u32) -> bool {
        let now = self.shared.read().place(generation, lfc, frame);
        matches!((place, now), (Place::Tail(..), None | Some(Place::Store)))
    }

    /// All frames of a sealed container, verified against its row: count, chain and end digest.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`], [`JournalError::Damaged`] when they do not match, or a failure.
    pub fn frames_of(&self, generation: GenNo, lfc: LfcId) -> Result<Vec<Arc<Frame>>, JournalError> {
        self.guarded(|| {
            let row = self
                .lfc_row(generation, lfc)
                .ok_or(JournalError::NotHeld { generation, lfc })?;
            if !self.is_held(&row) {
                return Err(JournalError::NotHeld { generation, lfc });
            }
            let in_store = self.shared.read().rows.contains(&(generation, lfc));
            let frames = if in_store {
                self.stored_frames(&row, row.first_seq, u64::MAX)?
            } else {
                (0..row.frames)
                    .map(|i| self.frame_at(generation, lfc, i))
                    .collect::<Result<_, _>>()?
            };
            let mut digest = row.prev_digest;
            for f in &frames {
                if f.header().prev_digest != digest {
                    return Err(damaged(
                        &row,
                        format!("the chain breaks at record {}", f.first_seq()),
                    ));
                }
                digest = f.digest();
            }
            if digest != row.end_digest || frames.len() != row.frames as usize {
                return Err(damaged(
                    &row,
                    format!("{} frames are there, its row has {}", frames.len(), row.frames),
                ));
            }
            Ok(frames)
        })
    }

    /// How many of a container's first frames are before a place; frames end at rising records.
    ///
    /// # Errors
    /// When one that is looked at cannot be read.
    pub(crate) fn frames_before(
        &self,
        row: &LfcRow,
        is_before: impl Fn(&Frame) -> bool,
    ) -> Result<u32, JournalError> {
        let (mut low, mut high) = (0, row.frames);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(&*self.frame_at(row.generation, row.lfc, middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Frames of a container in the store from the one that holds `from` on.
    fn stored_frames(
        &self,
        row: &LfcRow,
        from: WriteSeq,
        bytes_max: u64,
    ) -> Result<Vec<Arc<Frame>>, JournalError> {
        // A peer that catches up asks for every frame of a container one after the other, and must not read all before it each
        // time. A frame that cannot be read is told of by who reads past it.
        let passed = if row.first_seq < from {
            self.frames_before(row, |frame| frame.last_seq() < from)
                .unwrap_or(0)
        } else {
            0
        };
        let first = keys::redo(row.generation, row.lfc, passed);
        let last = keys::redo(row.generation, LfcId(row.lfc.0 + 1), 0);
        let mut frames = Vec::new();
        let mut bytes = 0;
        let mut fault = None;
        let scanned = self.store.scan(Family::Redo, &first, &last, &mut |_, value| {
            match FrameHeader::parse(value) {
                Ok(h) if h.last_seq() < from => return true,
                _ => {}
            }
            match Frame::parse(Bytes::copy_from_slice(value)) {
                Ok(frame) => {
                    bytes += frame.len() as u64;
                    frames.push(Arc::new(frame));
                    bytes < bytes_max
                }
                Err(e) => {
                    fault = Some(damaged(row, format!("frame {}: {e}", frames.len())));
                    false
                }
            }
        });
        scanned.map_err(|e| corrupt(e, |what| damaged(row, what)))?;
        match fault {
            // They were freed since the row was looked up.
            _ if !self.is_held(row) => Err(JournalError::NotHeld {
                generation: row.generation,
                lfc: row.lfc,
            }),
            Some(e) => Err(e),
            None if frames.is_empty() => Err(damaged(row, "its frames are missing".into())),
            None => Ok(frames),
        }
    }

    /// The frames of the current line with records past `seq`, oldest first, about `bytes_max` bytes of them (at least one,
    /// if there is one). Durable or not: compare with [`crate::Cursors::durable`]. The first may begin at or before `seq`;
    /// where a generation was left, its last frame may hold records past that ([`Journal::line`] tells). `seq` is a number of the
    /// line; the cursors are not while one that was taken over has no record ([`Journal::promotion`]).
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when they are freed, or a failure.
    pub fn frames_after(&self, seq: WriteSeq, bytes_max: u64) -> Result<Vec<Arc<Frame>>, JournalError> {
        self.guarded(|| {
            let containers = {
                let shared = self.shared.read();
                let line = shared.current_line();
                let (Some(open), Some(newest)) = (&shared.open, line.last()) else {
                    return Ok(Vec::new());
                };
                let is_open = open.generation == newest.generation;
                if seq >= newest.upto || (is_open && seq >= open.last_seq()) {
                    return Ok(Vec::new());
                }
                let recent = shared.ring.after(seq).filter(|_| is_open && seq >= newest.after);
                if let Some(recent) = recent {
                    let mut bytes = 0;
                    let fits = recent.take_while(|f| {
                        let first = bytes == 0;
                        bytes += f.len() as u64;
                        f.first_seq() <= newest.upto && (first || bytes <= bytes_max)
                    });
                    return Ok(fits.cloned().collect());
                }
                containers_after(&shared, &line, seq)?
            };
            let mut frames: Vec<Arc<Frame>> = Vec::new();
            let mut bytes = 0;
            for ToRead { row, in_tail, upto } in containers {
                if bytes >= bytes_max && bytes > 0 {
                    break;
                }
                let mut more = match in_tail {
                    None => self.stored_frames(&row, seq.next(), bytes_max - bytes)?,
                    Some(first) => {
                        let mut more = Vec::new();
                        let mut taken = bytes;
                        for i in first..row.frames {
                            let frame = self.frame_at(row.generation, row.lfc, i)?;
                            taken += frame.len() as u64;
                            more.push(frame);
                            if taken >= bytes_max {
                                break;
                            }
                        }
                        more
                    }
                };
                more.retain(|frame| frame.first_seq() <= upto);
                bytes += more.iter().map(|f| f.len() as u64).sum::<u64>();
                frames.extend(more);
            }
            Ok(frames)
        })
    }
}

/// A container of a line, of which some frames are to be read.
struct ToRead {
    row: Arc<LfcRow>,
    /// The first of them, if it stands in a tail.
    in_tail: Option<u32>,
    /// The line leaves its generation behind this record.
    upto: WriteSeq,
}

/// The containers of a line with records past `seq`.
///
/// Each part of a line is a world of its own: a generation that was left goes on with numbers that the next one takes again, so that
/// of its containers only those count that begin on the line and end behind `seq`, and none where the line left it before `seq`.
fn containers_after(shared: &Shared, line: &[LineSpan], seq: WriteSeq) -> Result<Vec<ToRead>, JournalError> {
    let mut out = Vec::new();
    for span in line.iter().filter(|span| seq < span.upto) {
        let (after, upto) = (seq.max(span.after), span.upto);
        for row in shared.rows.overlapping(span.generation, after, upto) {
            if !shared.is_held(row) {
                return Err(JournalError::NotHeld {
                    generation: row.generation,
                    lfc: row.lfc,
                });
            }
            out.push(ToRead {
                row: Arc::clone(row),
                in_tail: None,
                upto,
            });
        }
        for c in shared.sealed.iter().map(|s| &s.container).chain(&shared.open) {
            let is_wanted = !c.is_empty() && c.last_seq() > after && c.header.start.first_seq <= upto;
            if c.generation == span.generation && is_wanted {
                out.push(ToRead {
                    row: Arc::new(c.row(crate::SealFlags::default())),
                    in_tail: Some(len32(c.frames.partition_point(|f| f.last_seq() <= after))),
                    upto,
                });
            }
        }
    }
    Ok(out)
}

/// Bad bytes in the store are damage of what was read; other failures stay what they are.
pub(crate) fn corrupt(e: StoreError, damage: impl FnOnce(String) -> JournalError) -> JournalError {
    match e {
        StoreError::Corrupt { text, .. } => damage(text),
        e => e.into(),
    }
}

pub(crate) fn container_damage(generation: GenNo, lfc: LfcId, what: String) -> JournalError {
    Damage::Container {
        generation,
        lfc,
        what,
    }
    .into()
}
