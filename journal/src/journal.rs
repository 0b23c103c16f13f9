//! The journal of one context on one host: appending, syncing, sealing.
//!
//! # Locks
//!
//! Always taken in this order: `writer` (who appends, seals, starts lines), `ingesting` (who moves a sealed container into
//! the store), `meta` (who commits metadata), `shared` (what readers see), `cursors`. `shared` and `cursors` are never held
//! across I/O. `undoing` (who commits undo) is taken before `meta`, and never with `ingesting`: neither waits for the other.

use crate::{
    cache::FrameCache,
    container::{Container, Events, Ring, Sealed, touches_max, touches_of},
    cursors::Cursors,
    error::{JournalError, Position},
    frame::{FRAME_BODY_BYTES_MAX, FRAME_EXTRA_BYTES, Frame, Place},
    map::StateMaps,
    meta::Meta,
    overflow::GaveWay,
    parts::{IndexFloors, Parts},
    record::Draft,
    rotten::Rotten,
    row_table::RowTable,
    rows::{Consistent, Floors, Generation, LfcRow, OrdinalRow, Promotion},
    sizes::{Extents, SizeChange},
    tail::{ENVELOPE_BYTES, FrameLoc, SealFlags, Start, TailHeader, fill_envelope},
    withheld::Withheld,
};
use bytes::Bytes;
use model::{
    BLOCK_SIZE, EventMark, GenId, GenNo, LfcId, Ordinal, Record, RecordBody, Timestamp, WriteSeq,
    ports::{Medium, Store},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes at which a container is sealed.
    pub lfc_size: u64,
    /// Nanoseconds after its first record at which a container is sealed; `None`: never by age.
    pub lfc_max_age_ns: Option<u64>,
    /// Whether sealed containers enter the block index of the store from the start, so that reads of the past are cheap
    /// ([`Journal::set_indexed`] changes it).
    pub indexed: bool,
    /// Bytes of newest frames that stay in memory.
    pub recent_bytes: u64,
    /// Opens a damaged journal up to the damage. Nothing can be appended before a new generation is created.
    pub accept_damage: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lfc_size: 64 << 20,
            lfc_max_age_ns: Some(60 * Timestamp::SECOND_NS),
            indexed: true,
            recent_bytes: 32 << 20,
            accept_damage: false,
        }
    }
}

/// What readers see; everything in it is also in the tails and the store.
pub(crate) struct Shared {
    pub(crate) open: Option<Container>,
    pub(crate) sealed: Option<Arc<Sealed>>,
    pub(crate) rows: RowTable,
    pub(crate) ring: Ring,
    pub(crate) generations: BTreeMap<GenNo, Generation>,
    pub(crate) marks: BTreeMap<Position, EventMark>,
    pub(crate) steps: BTreeMap<Position, (Timestamp, Timestamp)>,
    pub(crate) sizes: BTreeMap<Position, SizeChange>,
    pub(crate) extents: Extents,
    pub(crate) ordinals: BTreeMap<Ordinal, OrdinalRow>,
    pub(crate) floors: Floors,
    pub(crate) consistent: Vec<Consistent>,
    pub(crate) rotten: Rotten,
    /// A line that was taken over and has no record of this host yet.
    pub(crate) promotion: Option<Promotion>,
    /// Blocks of the volumes that nobody may read.
    pub(crate) withheld: Withheld,
}

impl Shared {
    pub(crate) fn generation_by_id(&self, id: GenId) -> Option<&Generation> {
        self.generations.values().find(|g| g.id == id)
    }

    /// The clock at the end of the newest sealed container: its last time, or where a clock step at its end went.
    pub(crate) fn clock(&self) -> Timestamp {
        let Some(row) = self.sealed_rows().next_back() else {
            return Timestamp::default();
        };
        let end = Position {
            generation: row.generation,
            seq: row.last_seq,
        };
        self.steps.get(&end).map_or(row.last_time, |(_, to)| *to)
    }

    /// Takes a frame that stands in a tail into the open container and the ring.
    pub(crate) fn absorb(&mut self, loc: FrameLoc, frame: &Arc<Frame>, recent_bytes: u64) {
        if let Some(open) = &mut self.open {
            let before = open.events.lens();
            open.absorb(loc, frame);
            let (generation, new) = (open.generation, open.events.since(before));
            self.ring.push(Arc::clone(frame), recent_bytes);
            self.note(generation, &new);
        }
    }

    /// Takes in what happened in a generation that the catalog lists by itself.
    pub(crate) fn note(&mut self, generation: GenNo, events: &Events) {
        let at = |seq| Position { generation, seq };
        for m in &events.marks {
            self.marks.insert(at(m.seq), m.clone());
        }
        for (seq, from, to) in &events.steps {
            self.steps.insert(at(*seq), (*from, *to));
        }
        for (seq, change) in &events.sizes {
            self.note_size(at(*seq), *change);
        }
    }
}

/// State of whoever appends.
pub(crate) struct WriterState {
    /// Counter of the newest tail header.
    pub(crate) counter: u64,
}

/// The journal of one context on one host.
pub struct Journal {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tails: [Arc<dyn Medium>; 2],
    pub(crate) index_floors: Arc<IndexFloors>,
    pub(crate) options: Options,
    pub(crate) writer: Mutex<WriterState>,
    pub(crate) ingesting: Mutex<()>,
    pub(crate) undoing: Mutex<()>,
    pub(crate) meta: Mutex<Meta>,
    pub(crate) shared: RwLock<Shared>,
    pub(crate) cursors: Mutex<Cursors>,
    /// Counts changes of line: a sync that began on another line moves no cursor.
    pub(crate) line_changes: AtomicU64,
    pub(crate) published: AtomicU64,
    pub(crate) cache: FrameCache,
    pub(crate) maps: StateMaps,
    /// Whether sealed containers enter the block index.
    pub(crate) indexed: AtomicBool,
    /// Whether containers may give way to the state map where there is no room for them.
    pub(crate) gives_way: AtomicBool,
    /// What gave way and was not told yet ([`Journal::take_gave_way`]).
    pub(crate) gave_way: Mutex<Vec<GaveWay>>,
    pub(crate) poison: OnceLock<String>,
    /// Highest record and container ever seen, of any line: new lines start above.
    pub(crate) seen: Mutex<(WriteSeq, LfcId)>,
}

impl Journal {
    /// Opens the journal of a context, or creates one where nothing is.
    ///
    /// # Errors
    /// When a part fails, or when what is found is less than what was durable ([`JournalError::Damaged`]).
    pub fn open(parts: Parts, options: Options) -> Result<(Self, Opened), JournalError> {
        crate::recovery::open(parts, options)
    }

    /// From now on sealed containers enter the block index, or do not.
    pub fn set_indexed(&self, indexed: bool) {
        self.indexed.store(indexed, Ordering::Release);
    }

    /// The failure that poisoned the journal, if one has.
    #[must_use]
    pub fn poisoned(&self) -> Option<JournalError> {
        self.poison.get().map(|text| JournalError::Poisoned(text.clone()))
    }

    /// Poisons the journal from outside: a volume of the context failed.
    pub fn set_poisoned(&self, why: &str) {
        let _ = self.poison.set(why.to_owned());
    }

    /// Runs a step; the first failure of a medium or the store poisons every later step.
    pub(crate) fn guarded<T>(
        &self,
        step: impl FnOnce() -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        if let Some(error) = self.poisoned() {
            return Err(error);
        }
        let result = step();
        if let Err(e) = &result {
            self.note_damage(e);
            if e.poisons() {
                tracing::error!(error = %e, "the journal is poisoned");
                let _ = self.poison.set(e.to_string());
            }
        }
        result
    }

    /// How far everything is.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        *self.cursors.lock()
    }

    /// Changes cursors and asserts invariant 7.
    pub(crate) fn move_cursors(&self, change: impl FnOnce(&mut Cursors)) -> Cursors {
        let mut cursors = self.cursors.lock();
        change(&mut cursors);
        cursors.check();
        *cursors
    }

    /// Whether the open container has no record.
    #[must_use]
    pub fn open_is_empty(&self) -> bool {
        self.shared.read().open.as_ref().is_none_or(Container::is_empty)
    }

    /// The open container; `None` before the first generation.
    pub(crate) fn open_lfc(&self) -> Option<LfcId> {
        self.shared.read().open.as_ref().map(|o| o.header.start.lfc)
    }

    /// The open container as the row it would have now; `None` while it is empty.
    #[must_use]
    pub fn open_row(&self) -> Option<LfcRow> {
        let shared = self.shared.read();
        shared
            .open
            .as_ref()
            .filter(|o| !o.is_empty())
            .map(|o| o.row(SealFlags::default()))
    }

    /// Whether the open container should be sealed before `more` bytes of records are appended: it is full, old, its worst-case
    /// undo has passed four times the container size, or its records touch the same blocks again and again (`rules.md` W5).
    #[must_use]
    pub fn wants_seal(&self, more: u64, now: Timestamp) -> bool {
        let shared = self.shared.read();
        let Some(open) = shared.open.as_ref().filter(|o| !o.is_empty()) else {
            return false;
        };
        let extra = (ENVELOPE_BYTES + FRAME_EXTRA_BYTES) as u64;
        let more = if more == 0 { 0 } else { more + extra };
        open.entry_bytes() + more > self.options.lfc_size
            || open.worst_undo_bytes() > 4 * self.options.lfc_size
            || open.touches() > touches_max(self.options.lfc_size)
            || self
                .options
                .lfc_max_age_ns
                // Behind a step back of the clock it may never get old: then it counts from the other side (L5).
                .is_some_and(|max| now.0.abs_diff(open.first_time().0) >= max)
    }

    /// The journal's clock, when `now` is more than a second before it: a step back that must be journaled before anything
    /// else is (`rules.md` L5; smaller ones are slewed, because times never fall).
    #[must_use]
    pub fn clock_ahead_of(&self, now: Timestamp) -> Option<Timestamp> {
        let clock = self.shared.read().open.as_ref()?.clock;
        (clock.0 > now.0.saturating_add(Timestamp::SECOND_NS)).then_some(clock)
    }

    /// Production: gives records their place and time and writes them to the tail as one frame. The frame survives the
    /// process; it is durable after the next [`Journal::sync`].
    ///
    /// Times never fall: a record takes the last one's time when `now` is before it.
    ///
    /// # Errors
    /// [`JournalError::NeedsSeal`] when the open container has no room, [`JournalError::NoGeneration`], or a failure.
    pub fn append(&self, drafts: Vec<Draft>, now: Timestamp) -> Result<Arc<Frame>, JournalError> {
        self.guarded(|| {
            let _writer = self.writer.lock();
            let body: u64 = drafts.iter().map(Draft::len).sum();
            if drafts.is_empty() || body > FRAME_BODY_BYTES_MAX as u64 {
                return Err(JournalError::TooLarge {
                    bytes: body,
                    max: FRAME_BODY_BYTES_MAX as u64,
                });
            }
            let (place, mut clock) = {
                let shared = self.shared.read();
                let open = shared.open.as_ref().ok_or(JournalError::NoGeneration)?;
                let place = Place {
                    generation: open.header.start.generation,
                    lfc: open.header.start.lfc,
                    first_seq: open.last_seq().next(),
                    prev_digest: open.end_digest,
                };
                (place, open.clock)
            };
            let timed: Vec<(Draft, Timestamp)> = drafts
                .into_iter()
                .map(|draft| {
                    clock = clock.max(now);
                    let time = clock;
                    if let RecordBody::ClockStep { to, .. } = &draft.body {
                        clock = *to;
                    }
                    (draft, time)
                })
                .collect();
            self.put(Frame::encode(&place, &timed, ENVELOPE_BYTES))
        })
    }

    /// Recovery: checks a received frame and writes it to the tail. It must be the next one.
    ///
    /// # Errors
    /// [`JournalError::Already`] when it is here; when it does not check or is not what comes next; or a failure.
    pub fn append_received(&self, bytes: Bytes) -> Result<Arc<Frame>, JournalError> {
        self.append_received_if(bytes, |_| Ok(()))
    }

    /// As [`Journal::append_received`], if `check` finds nothing wrong with the frame's records: what is in the journal must be
    /// applied before anything behind it, so what never could be must not enter it.
    ///
    /// # Errors
    /// As [`Journal::append_received`], and what `check` says; nothing has changed then.
    pub fn append_received_if(
        &self,
        bytes: Bytes,
        check: impl FnOnce(&Frame) -> Result<(), JournalError>,
    ) -> Result<Arc<Frame>, JournalError> {
        self.guarded(|| {
            let _writer = self.writer.lock();
            let frame = Frame::parse(bytes)?;
            check(&frame)?;
            let got = frame.header();
            {
                let shared = self.shared.read();
                let open = shared.open.as_ref().ok_or(JournalError::NoGeneration)?;
                let start = &open.header.start;
                let out_of_order = |what, expected: String, got: String| {
                    Err(JournalError::OutOfOrder { what, expected, got })
                };
                if got.generation != start.generation {
                    if shared.generation_by_id(got.generation).is_none() {
                        return Err(JournalError::UnknownGeneration(got.generation));
                    }
                    return out_of_order(
                        "generation",
                        format!("{:?}", start.generation),
                        format!("{:?}", got.generation),
                    );
                }
                let appended = open.last_seq();
                if got.last_seq() <= appended {
                    return Err(JournalError::Already {
                        last: got.last_seq(),
                        appended,
                    });
                }
                if got.first_seq != appended.next() {
                    return out_of_order("record", appended.next().to_string(), got.first_seq.to_string());
                }
                if got.lfc != start.lfc {
                    return out_of_order("container", start.lfc.to_string(), got.lfc.to_string());
                }
                if got.prev_digest != open.end_digest {
                    return Err(JournalError::Chain {
                        at: Position {
                            generation: open.generation,
                            seq: appended,
                        },
                    });
                }
                self.check_bounds(open, &frame)?;
            }
            let mut entry = Vec::with_capacity(ENVELOPE_BYTES + frame.len());
            entry.resize(ENVELOPE_BYTES, 0);
            entry.extend_from_slice(frame.bytes());
            self.put(entry)
        })
    }

    /// Whether a container stays within what an honest production puts into one with this frame (`rules.md` W5): its undo is
    /// built in memory, and so is its index. Such a production looks before each frame, and its frames are bounded too
    /// ([`crate::tap`]). A container that was begun with a larger size than today's fits the tails, which never get smaller.
    fn check_bounds(&self, open: &Container, frame: &Frame) -> Result<(), JournalError> {
        let size = self
            .tails
            .iter()
            .map(|t| t.len())
            .fold(self.options.lfc_size, u64::max);
        let frame_max = (size + Record::ZERO_BYTES_MAX) / BLOCK_SIZE + 2;
        let more = touches_of(frame);
        let blocks = open.worst_undo_bytes() / BLOCK_SIZE + more;
        let touches = open.touches() + more;
        if blocks <= 4 * size / BLOCK_SIZE + frame_max && touches <= touches_max(size) + frame_max {
            return Ok(());
        }
        Err(JournalError::Refused(format!(
            "container {} with record {} would touch {blocks} blocks, {touches} times: more than any production makes of one",
            open.header.start.lfc,
            frame.last_seq()
        )))
    }

    /// Writes an entry behind the open container's end. The caller holds `writer` and has checked that it continues.
    fn put(&self, mut entry: Vec<u8>) -> Result<Arc<Frame>, JournalError> {
        let (tail, lfc, at, empty) = {
            let shared = self.shared.read();
            let open = shared.open.as_ref().ok_or(JournalError::NoGeneration)?;
            (open.tail, open.header.start.lfc, open.end_at, open.is_empty())
        };
        let bytes = entry.len() as u64;
        let room = self.tails[tail].len().saturating_sub(at);
        if bytes > room {
            return Err(if empty {
                JournalError::TooLarge { bytes, max: room }
            } else {
                JournalError::NeedsSeal { lfc, bytes }
            });
        }
        fill_envelope(&mut entry, self.cursors().durable);
        let entry = Bytes::from(entry);
        // Read back before it is written: what could not be read again must not enter the journal.
        let frame = Arc::new(Frame::parse_own(entry.slice(ENVELOPE_BYTES..))?);
        self.tails[tail]
            .write_at(at, &entry)
            .map_err(|e| JournalError::io(tail_name(tail), e))?;
        let loc = FrameLoc {
            at: at + ENVELOPE_BYTES as u64,
            len: crate::codec::len32(frame.len()),
            first_seq: frame.first_seq(),
            records: frame.header().records,
        };
        self.shared.write().absorb(loc, &frame, self.options.recent_bytes);
        self.see(frame.last_seq(), frame.lfc());
        self.move_cursors(|c| c.appended = frame.last_seq());
        Ok(frame)
    }

    /// Makes everything appended before this call durable and answers how far (`rules.md` T1: the end is read before the
    /// sync begins, so that a frame appended meanwhile is not taken for durable).
    ///
    /// # Errors
    /// When the sync fails; the journal is then poisoned.
    pub fn sync(&self) -> Result<WriteSeq, JournalError> {
        self.guarded(|| {
            let line = self.line_changes.load(Ordering::Acquire);
            let (target, tail) = {
                let shared = self.shared.read();
                match &shared.open {
                    Some(open) => (open.last_seq(), open.tail),
                    None => return Ok(self.cursors().durable),
                }
            };
            if target > self.cursors().durable {
                self.tails[tail]
                    .sync()
                    .map_err(|e| JournalError::io(tail_name(tail), e))?;
            }
            let cursors = self.move_cursors(|c| {
                // Rule T2: what is before the open tail was synced by the seal.
                if self.line_changes.load(Ordering::Acquire) == line {
                    // An appender makes its frame visible before it moves `appended`: the frame was in the tail before
                    // this sync began, so both cursors may pass it.
                    c.appended = c.appended.max(target);
                    c.durable = c.durable.max(target);
                }
            });
            Ok(cursors.durable)
        })
    }

    /// Seals the open container: its tail is synced, the other tail takes the next one, the bounds are raised. If the
    /// other tail still waits to be ingested, that is done first.
    ///
    /// # Errors
    /// [`JournalError::Empty`] when there is nothing to seal, or a failure.
    pub fn seal(&self, flags: SealFlags) -> Result<Arc<LfcRow>, JournalError> {
        self.guarded(|| {
            let mut writer = self.writer.lock();
            self.seal_locked(&mut writer, flags)
        })
    }

    /// Recovery: seals the open container where production sealed it. Repeating it is harmless.
    ///
    /// # Errors
    /// When the open container is another, ends elsewhere or has another digest; or a failure.
    pub fn seal_received(
        &self,
        lfc: LfcId,
        last_seq: WriteSeq,
        digest: &crate::Digest,
        flags: SealFlags,
    ) -> Result<Arc<LfcRow>, JournalError> {
        self.guarded(|| {
            let mut writer = self.writer.lock();
            let generation = {
                let shared = self.shared.read();
                shared.open.as_ref().ok_or(JournalError::NoGeneration)?.generation
            };
            if let Some(row) = self.lfc_row(generation, lfc)
                && (row.last_seq, row.end_digest) == (last_seq, *digest)
            {
                return Ok(row);
            }
            {
                let shared = self.shared.read();
                let open = shared.open.as_ref().ok_or(JournalError::NoGeneration)?;
                let out_of_order = |what, expected: String, got: String| {
                    Err(JournalError::OutOfOrder { what, expected, got })
                };
                if open.header.start.lfc != lfc {
                    return out_of_order("container", open.header.start.lfc.to_string(), lfc.to_string());
                }
                if open.last_seq() != last_seq {
                    return out_of_order("end", open.last_seq().to_string(), last_seq.to_string());
                }
                if open.end_digest != *digest {
                    return Err(JournalError::Chain { at: open.end() });
                }
            }
            self.seal_locked(&mut writer, flags)
        })
    }

    pub(crate) fn seal_locked(
        &self,
        writer: &mut WriterState,
        flags: SealFlags,
    ) -> Result<Arc<LfcRow>, JournalError> {
        if self.open_is_empty() {
            return Err(JournalError::Empty);
        }
        self.empty_other_tail()?;
        let (tail, end, next, generation, clock) = {
            let shared = self.shared.read();
            let open = shared.open.as_ref().ok_or(JournalError::NoGeneration)?;
            let start = Start {
                generation: open.header.start.generation,
                lfc: open.header.start.lfc.next(),
                first_seq: open.last_seq().next(),
                prev_digest: open.end_digest,
                after_gap: false,
            };
            (open.tail, open.last_seq(), start, open.generation, open.clock)
        };
        self.tails[tail]
            .sync()
            .map_err(|e| JournalError::io(tail_name(tail), e))?;
        self.move_cursors(|c| c.durable = end);
        // The next container's header proves that this one was sealed, and how: it is durable before anyone is told.
        let header = self.write_header(writer, 1 - tail, next, flags)?;
        let row = {
            let mut shared = self.shared.write();
            let fresh = Container::new(1 - tail, header, generation, clock);
            let container = shared
                .open
                .replace(fresh)
                .ok_or(JournalError::Internal("the open container is gone"))?;
            let row = Arc::new(container.row(flags));
            shared.sealed = Some(Arc::new(Sealed {
                container,
                row: Arc::clone(&row),
            }));
            row
        };
        self.see(row.last_seq, next.lfc);
        self.raise()?;
        Ok(row)
    }

    /// Makes a tail hold a new, empty container.
    pub(crate) fn write_header(
        &self,
        writer: &mut WriterState,
        tail: usize,
        start: Start,
        prev_flags: SealFlags,
    ) -> Result<TailHeader, JournalError> {
        let io = |e| JournalError::io(tail_name(tail), e);
        let header = TailHeader {
            counter: writer.counter + 1,
            start,
            prev_flags,
        };
        self.tails[tail].write_at(0, &header.encode()).map_err(io)?;
        self.tails[tail].sync().map_err(io)?;
        writer.counter = header.counter;
        Ok(header)
    }

    pub(crate) fn see(&self, seq: WriteSeq, lfc: LfcId) {
        let mut seen = self.seen.lock();
        seen.0 = seen.0.max(seq);
        seen.1 = seen.1.max(lfc);
    }
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Opened {
    /// Nothing: a new journal, without a generation.
    Fresh,
    /// Everything that is there was known to be durable.
    Clean,
    /// The journal was not closed: what was re-read has been made durable again.
    Recovered {
        /// Frames that were not known to be durable.
        frames: u64,
        /// Bytes of a torn frame that was cut off.
        cut_bytes: u64,
    },
    /// Damage was accepted ([`Options::accept_damage`]): the journal ends before it, and takes no record before a new
    /// generation is created.
    Damaged(crate::Damage),
}

pub(crate) fn tail_name(tail: usize) -> String {
    format!("tail {tail}")
}
