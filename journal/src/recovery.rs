//! Opening a journal after anything.
//!
//! # Decision table
//!
//! | found | done |
//! | --- | --- |
//! | no superblock slot, empty store | a new journal |
//! | no superblock slot, but metadata | damage: superblock |
//! | fewer metadata batches than the superblock relies on | damage: the store lost synced metadata (T7) |
//! | tail of a container that has its row | free, whatever it holds (T4) |
//! | one tail that continues the catalog | the open container |
//! | two tails, one continuing the other | the older one is sealed: ingested now, its row repeated (T3); the newer one is open |
//! | two tails of the same container | the header with the higher counter (T6); the other one is free |
//! | tail without a header, with frames that were durable and have no row | damage: header |
//! | tails that do not continue the catalog | damage: discontinuous |
//! | bad entry, and behind it a frame that claims a `durable` past it | damage: hole (T5) |
//! | bad entry, nothing that proves it was durable | a torn end: cut off |
//! | end below the superblock, below `checkpointed`, below what the peer acknowledged | damage: end below (T5) |
//! | frames past the superblock's bound | rewritten into the other tail, synced, then its header (T6) |
//! | undo without its ordinal's row | removed: nothing was overwritten for it (W4) |
//! | floors | freeing is repeated (T9) |
//!
//! # Crash consistency
//!
//! Recovery itself may be cut anywhere, and a killed process may have left bytes that are read but not durable. So the
//! header that is believed is made durable before the other tail is touched; ingesting repeats; and a rewritten tail
//! counts only from its header on, which is written when its frames are synced and whose counter is above the other's.

use crate::{
    cache::FrameCache,
    container::{Container, Ring, Sealed},
    cursors::Cursors,
    error::{Damage, JournalError, Position},
    frame::Frame,
    journal::{Journal, Opened, Options, Shared, WriterState, tail_name},
    keys,
    load::Tables,
    map::StateMaps,
    meta::Meta,
    parts::Parts,
    rows::Floors,
    superblock::{Bounds, Found, Superblock},
    tail::{self, ENVELOPE_BYTES, FrameLoc, HEADER_BYTES, Scan, SealFlags, Start, TailHeader},
};
use model::{
    BlockNo, GenNo, LfcId, Ordinal, Timestamp, VolumeIndex, WriteSeq,
    ports::{Batch, Family, Medium},
};
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64},
};

/// Index entries that one batch removes.
const UNDO_REMOVED_AT_ONCE: usize = 4096;

type Frames = Vec<(FrameLoc, Arc<Frame>)>;

/// A tail that holds a container without a row.
struct Candidate {
    tail: usize,
    header: TailHeader,
    generation: GenNo,
    frames: Frames,
    cut_bytes: u64,
}

impl Candidate {
    fn end(&self) -> (WriteSeq, crate::Digest) {
        let start = &self.header.start;
        self.frames.last().map_or(
            (WriteSeq(start.first_seq.0 - 1), start.prev_digest),
            |(loc, f)| (loc.last_seq(), f.digest()),
        )
    }

    fn container(self) -> (Container, Frames) {
        let clock = Timestamp::default();
        (
            Container::new(self.tail, self.header, self.generation, clock),
            self.frames,
        )
    }
}

/// Damage that was found, and whether the caller goes on in spite of it.
struct Verdict {
    accept: bool,
    all: Vec<Damage>,
}

impl Verdict {
    fn damage(&mut self, damage: Damage) -> Result<(), JournalError> {
        if !self.accept {
            return Err(damage.into());
        }
        tracing::warn!(%damage, "going on in spite of damage");
        self.all.push(damage);
        Ok(())
    }
}

pub(crate) fn open(parts: Parts, options: Options) -> Result<(Journal, Opened), JournalError> {
    open_collecting(parts, options).map(|(journal, opened, _)| (journal, opened))
}

/// As [`open`]; answers all damage that was accepted.
pub(crate) fn open_collecting(
    parts: Parts,
    options: Options,
) -> Result<(Journal, Opened, Vec<Damage>), JournalError> {
    let (mut superblock, found) = Superblock::open(Arc::clone(&parts.superblock))?;
    let bounds = superblock.bounds();
    let mut verdict = Verdict {
        accept: options.accept_damage,
        all: Vec::new(),
    };
    let tables = Tables::load(&*parts.store)?;
    let is_new = tables.meta_seq == 0 && matches!(found, Found::Nothing);
    if !is_new && matches!(found, Found::Nothing) {
        verdict.damage(Damage::Superblock)?;
    }
    if is_new {
        // Before the first metadata: a cut between that and the first raise must not look like a lost superblock.
        superblock.raise(bounds)?;
    }
    if tables.meta_seq < bounds.meta_seq {
        verdict.damage(Damage::Metadata {
            found: tables.meta_seq,
            bound: bounds.meta_seq,
        })?;
    }

    let (mut scans, counter) = scan_tails(&parts)?;
    let next = tables.next_start();
    let found = choose(&mut scans, &tables, next.as_ref(), &mut verdict)?;
    let head = head(&found, next.as_ref());
    check_strays(&scans, &tables, head, &mut verdict)?;
    check_bounds(&tables.cursors, &bounds, head, &mut verdict)?;

    let journal = build(parts, options, superblock, tables, counter);
    let cut_bytes = found.open.as_ref().map_or(0, |c| c.cut_bytes);
    let mut unknown = 0;
    if let Some(sealed) = found.sealed {
        journal.take_sealed(sealed, found.open.as_ref().map(|o| o.header.prev_flags));
        journal.ingest_inner()?;
    }
    let damaged = !verdict.all.is_empty();
    match (found.open, next) {
        (Some(open), _) => unknown = journal.take_open(open, &bounds, damaged)?,
        (None, Some((generation, start))) if !damaged => journal.begin(generation, start)?,
        _ => {}
    }
    journal.place_cursors(head, &bounds, damaged);
    if damaged {
        // What is whole of the damaged container stays readable; nothing is appended to it.
        journal.set_aside()?;
    }
    journal.free_below(Floors::default(), journal.floors())?;
    journal.remove_uncommitted_undo()?;
    if !is_new && !damaged {
        journal.raise()?;
    }
    let opened = match verdict.all.first() {
        Some(damage) => Opened::Damaged(damage.clone()),
        None if is_new => Opened::Fresh,
        None if unknown == 0 && cut_bytes == 0 => Opened::Clean,
        None => Opened::Recovered {
            frames: unknown,
            cut_bytes,
        },
    };
    Ok((journal, opened, verdict.all))
}

/// The containers without a row.
#[derive(Default)]
struct Choice {
    sealed: Option<Candidate>,
    open: Option<Candidate>,
}

/// What stands in the tails, and the counter of the newest header.
pub(crate) fn scan_tails(parts: &Parts) -> Result<(Vec<Scan>, u64), JournalError> {
    let mut scans = Vec::new();
    for (i, medium) in parts.tails.iter().enumerate() {
        scans.push(tail::scan(&**medium, &tail_name(i))?);
    }
    let headers = scans.iter().filter_map(|s| s.header);
    let counter = headers.map(|h| h.counter).max().unwrap_or(0);
    Ok((scans, counter))
}

/// Finds the containers without a row and checks that they continue the catalog and each other.
fn choose(
    scans: &mut [Scan],
    tables: &Tables,
    next: Option<&(GenNo, Start)>,
    verdict: &mut Verdict,
) -> Result<Choice, JournalError> {
    let mut candidates = Vec::new();
    for (tail, scan) in scans.iter_mut().enumerate() {
        let Some(header) = scan.header else { continue };
        let Some(generation) = tables.generation_no(header.start.generation) else {
            let damage = discontinuous(
                tail,
                "generation",
                "a known one",
                format!("{:?}", header.start.generation),
            );
            verdict.damage(damage)?;
            continue;
        };
        // Behind the newest row everything is free; so is an empty container that a new start replaced, be it one of the
        // same id behind a gap.
        let key = (generation, header.start.lfc);
        let start = (generation, header.start.lfc, header.start.first_seq);
        let replaced =
            scan.frames.is_empty() && next.is_some_and(|(no, s)| start < (*no, s.lfc, s.first_seq));
        if tables
            .rows
            .last()
            .is_some_and(|last| key <= (last.generation, last.lfc))
            || replaced
        {
            continue;
        }
        let frames = std::mem::take(&mut scan.frames);
        candidates.push(Candidate {
            tail,
            header,
            generation,
            frames,
            cut_bytes: scan.cut_bytes,
        });
    }
    candidates.sort_by_key(|c| (c.generation, c.header.start.lfc, c.header.counter));
    let mut found = Choice::default();
    let Some(newest) = candidates.pop() else {
        return Ok(found);
    };
    let older = candidates
        .pop()
        .filter(|c| c.header.start.lfc != newest.header.start.lfc);
    let mut expected = next.map(|(_, start)| *start);
    let all = older.into_iter().chain([newest]).collect::<Vec<_>>();
    let count = all.len();
    for (i, candidate) in all.into_iter().enumerate() {
        if let Some(damage) = continues(&candidate, expected.as_ref()) {
            verdict.damage(damage)?;
            return Ok(found);
        }
        let (seq, prev_digest) = candidate.end();
        let start = &candidate.header.start;
        expected = Some(Start {
            lfc: start.lfc.next(),
            first_seq: seq.next(),
            prev_digest,
            ..*start
        });
        if i + 1 < count {
            found.sealed = Some(candidate);
        } else {
            found.open = Some(candidate);
        }
    }
    Ok(found)
}

fn continues(candidate: &Candidate, expected: Option<&Start>) -> Option<Damage> {
    let (tail, got) = (candidate.tail, &candidate.header.start);
    let Some(expected) = expected else {
        return Some(discontinuous(tail, "container", "none", got.lfc.to_string()));
    };
    if got.lfc != expected.lfc {
        return Some(discontinuous(
            tail,
            "container",
            &expected.lfc.to_string(),
            got.lfc.to_string(),
        ));
    }
    if got.first_seq != expected.first_seq {
        let (expected, got) = (expected.first_seq.to_string(), got.first_seq.to_string());
        return Some(discontinuous(tail, "first record", &expected, got));
    }
    if got.prev_digest != expected.prev_digest {
        return Some(discontinuous(
            tail,
            "chain",
            "the digest before it",
            "another".into(),
        ));
    }
    None
}

fn discontinuous(tail: usize, what: &'static str, expected: &str, got: String) -> Damage {
    Damage::Discontinuous {
        tail,
        what,
        expected: expected.to_owned(),
        got,
    }
}

/// Where the journal ends.
fn head(found: &Choice, next: Option<&(GenNo, Start)>) -> Position {
    let of_start = |(generation, start): &(GenNo, Start)| Position {
        generation: *generation,
        seq: WriteSeq(start.first_seq.0 - 1),
    };
    match found.open.as_ref().or(found.sealed.as_ref()) {
        Some(c) => Position {
            generation: c.generation,
            seq: c.end().0,
        },
        None => next.map(of_start).unwrap_or_default(),
    }
}

/// Rule T5: whole frames past the end that prove that something before them was durable.
fn check_strays(
    scans: &[Scan],
    tables: &Tables,
    head: Position,
    verdict: &mut Verdict,
) -> Result<(), JournalError> {
    for (tail, scan) in scans.iter().enumerate() {
        for stray in &scan.strays {
            let Some(generation) = tables.generation_no(stray.generation) else {
                continue;
            };
            if generation != head.generation || stray.last_seq <= head.seq || stray.durable <= head.seq {
                continue;
            }
            if tables.rows.contains(&(generation, stray.lfc)) {
                continue;
            }
            verdict.damage(if scan.header.is_some() {
                Damage::Hole {
                    tail,
                    at: scan.end_at,
                    after: head.seq,
                    fault: scan.fault.clone(),
                    later_at: stray.at,
                    durable: stray.durable,
                }
            } else {
                Damage::Header { tail, at: stray.at }
            })?;
        }
    }
    Ok(())
}

/// Rule T5: the end must reach what somebody relied on.
fn check_bounds(
    cursors: &Cursors,
    bounds: &Bounds,
    head: Position,
    verdict: &mut Verdict,
) -> Result<(), JournalError> {
    let of_line = |seq| Position { seq, ..head };
    for (bound, why) in [
        (bounds.durable, "was durable"),
        (bounds.checkpointed, "was on the volumes"),
        (of_line(cursors.checkpointed), "was on the volumes"),
        (of_line(cursors.applied), "was applied"),
        (of_line(cursors.received_by_peer), "was acknowledged by the peer"),
    ] {
        if bound > head {
            verdict.damage(Damage::EndBelow {
                end: head,
                bound,
                why,
            })?;
        }
    }
    Ok(())
}

fn build(parts: Parts, options: Options, superblock: Superblock, t: Tables, counter: u64) -> Journal {
    let published = t
        .ordinals
        .keys()
        .next_back()
        .copied()
        .unwrap_or_default()
        .max(t.floors.undo);
    let mut cursors = t.cursors;
    cursors.published = published;
    let bounds = superblock.bounds();
    let seen_seq = t.rows.values().map(|r| r.last_seq);
    let seen_seq = seen_seq.chain(t.generations.values().map(|g| WriteSeq(g.first_seq.0 - 1)));
    let seen_seq = seen_seq.chain([bounds.durable.seq, cursors.received_by_peer, cursors.checkpointed]);
    let seen_lfc = t
        .rows
        .values()
        .map(|r| r.lfc)
        .chain(t.generations.values().map(|g| g.first_lfc));
    let seen = (
        seen_seq.max().unwrap_or_default(),
        seen_lfc.max().unwrap_or_default(),
    );
    Journal {
        meta: Mutex::new(Meta {
            seq: t.meta_seq.max(bounds.meta_seq),
            superblock,
        }),
        maps: StateMaps::new(t.maps),
        indexed: AtomicBool::new(options.indexed),
        store: parts.store,
        tails: parts.tails,
        index_floors: parts.index_floors,
        options,
        writer: Mutex::new(WriterState { counter }),
        ingesting: Mutex::new(()),
        undoing: Mutex::new(()),
        shared: RwLock::new(Shared {
            open: None,
            sealed: None,
            rows: t.rows,
            ring: Ring::default(),
            generations: t.generations,
            marks: t.marks,
            steps: t.steps,
            sizes: t.sizes,
            extents: t.extents,
            ordinals: t.ordinals,
            floors: t.floors,
            consistent: t.consistent,
            rotten: crate::rotten::Rotten::default(),
            promotion: t.promotion,
            withheld: t.withheld,
        }),
        cursors: Mutex::new(cursors),
        line_changes: AtomicU64::new(0),
        published: AtomicU64::new(published.0),
        cache: FrameCache::default(),
        gives_way: std::sync::atomic::AtomicBool::new(false),
        gave_way: Mutex::default(),
        poison: OnceLock::new(),
        seen: Mutex::new(seen),
    }
}

impl Journal {
    /// Takes over a container that was sealed and waits to be ingested.
    fn take_sealed(&self, candidate: Candidate, flags: Option<SealFlags>) {
        let (mut container, frames) = candidate.container();
        for (loc, frame) in &frames {
            container.absorb(*loc, frame);
        }
        self.see(container.last_seq(), container.header.start.lfc);
        let row = Arc::new(container.row(flags.unwrap_or_default()));
        let mut shared = self.shared.write();
        shared.note(container.generation, &container.events);
        for (_, frame) in &frames {
            shared.ring.push(Arc::clone(frame), self.options.recent_bytes);
        }
        shared.sealed = Some(Arc::new(Sealed { container, row }));
    }

    /// Takes over the open container; what is not known to be durable is rewritten into the other tail first. Answers how
    /// many frames that were.
    fn take_open(
        &self,
        mut candidate: Candidate,
        bounds: &Bounds,
        damaged: bool,
    ) -> Result<u64, JournalError> {
        let known = |loc: &FrameLoc| {
            Position {
                generation: candidate.generation,
                seq: loc.last_seq(),
            } <= bounds.durable
        };
        let unknown = candidate.frames.iter().filter(|(loc, _)| !known(loc)).count() as u64;
        // The header that was read may be in memory only (killed, or after a failed sync), and the other tail, which is
        // overwritten next, may be all that a power cut would leave: so this one is made durable first.
        let tail = candidate.tail;
        let io = |e| JournalError::io(tail_name(tail), e);
        self.tails[tail]
            .write_at(0, &candidate.header.encode())
            .map_err(io)?;
        self.tails[tail].sync().map_err(io)?;
        if unknown > 0 || damaged {
            self.rewrite(&mut candidate, bounds)?;
        }
        let (mut container, frames) = candidate.container();
        self.see(container.last_seq(), container.header.start.lfc);
        let mut shared = self.shared.write();
        container.clock = shared.clock();
        shared.open = Some(container);
        for (loc, frame) in &frames {
            shared.absorb(*loc, frame, self.options.recent_bytes);
        }
        if let Some((loc, _)) = frames.last() {
            let seq = loc.last_seq();
            drop(shared);
            self.see(seq, LfcId(0));
        }
        Ok(unknown)
    }

    /// Rule T6: frames into the other tail, sync, then the header, sync: only then does the other tail count.
    fn rewrite(&self, candidate: &mut Candidate, bounds: &Bounds) -> Result<(), JournalError> {
        let to = 1 - candidate.tail;
        let medium: &dyn Medium = &*self.tails[to];
        let io = |e| JournalError::io(tail_name(to), e);
        let mut at = HEADER_BYTES;
        // Only what was durable before: until the header is there, these entries may be all that a cut leaves.
        let before = WriteSeq(candidate.header.start.first_seq.0 - 1);
        let known = bounds.durable.generation == candidate.generation;
        let durable = if known {
            bounds.durable.seq.max(before)
        } else {
            before
        };
        for (loc, frame) in &mut candidate.frames {
            let mut entry = vec![0; ENVELOPE_BYTES];
            entry.extend_from_slice(frame.bytes());
            tail::fill_envelope(&mut entry, durable);
            medium.write_at(at, &entry).map_err(io)?;
            loc.at = at + ENVELOPE_BYTES as u64;
            at += entry.len() as u64;
        }
        medium.sync().map_err(io)?;
        let mut writer = self.writer.lock();
        candidate.header = self.write_header(
            &mut writer,
            to,
            candidate.header.start,
            candidate.header.prev_flags,
        )?;
        candidate.tail = to;
        Ok(())
    }

    /// Begins an empty container where the catalog says.
    fn begin(&self, generation: GenNo, start: Start) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        let header = self.write_header(&mut writer, 0, start, SealFlags::default())?;
        self.see(WriteSeq(start.first_seq.0 - 1), start.lfc);
        let mut shared = self.shared.write();
        let clock = shared.clock();
        shared.open = Some(Container::new(0, header, generation, clock));
        Ok(())
    }

    /// The cursors that the tails decide.
    fn place_cursors(&self, head: Position, bounds: &Bounds, damaged: bool) {
        let mut c = self.cursors.lock();
        let mut end = head.seq;
        if damaged {
            c.applied_ordinal = c.applied_ordinal.min(c.published);
            end = [
                end,
                c.checkpointed,
                c.applied,
                c.received_by_peer,
                bounds.durable.seq,
            ]
            .into_iter()
            .max()
            .unwrap_or(end);
        }
        c.applied_ordinal = c.applied_ordinal.max(self.floors().undo).max(Ordinal(0));
        c.appended = end;
        c.durable = end;
        c.check();
    }

    /// Removes undo whose row a crash kept from being committed, so that the next container with that ordinal stands alone.
    /// Undo comes before its index, so it names every entry; it goes last, so that a cut repeats all of this.
    fn remove_uncommitted_undo(&self) -> Result<(), JournalError> {
        let ordinal = self.cursors().published.next();
        let key = |ordinal| keys::undo(ordinal, VolumeIndex(0), BlockNo(0));
        let (first, end) = (key(ordinal), key(ordinal.next()));
        let mut entries = Vec::new();
        self.store.scan(Family::Undo, &first, &end, &mut |key, _| {
            let mut parts = keys::Parts(&key[8..]);
            if let (Some(volume), Some(block)) = (parts.u16(), parts.u64()) {
                entries.push(keys::undo_index(VolumeIndex(volume), BlockNo(block), ordinal));
            }
            true
        })?;
        for some in entries.chunks(UNDO_REMOVED_AT_ONCE) {
            let mut batch = Batch::default();
            some.iter()
                .for_each(|key| batch.delete(Family::UndoIndex, key.clone()));
            self.commit(batch, false)?;
        }
        if !entries.is_empty() {
            self.store.drop_range(Family::Undo, &first, &end)?;
        }
        Ok(())
    }

    /// Seals and ingests what is whole of a damaged container.
    fn set_aside(&self) -> Result<(), JournalError> {
        let open = self.shared.write().open.take();
        let Some(container) = open.filter(|o| !o.is_empty()) else {
            return Ok(());
        };
        let cut = SealFlags {
            mark: false,
            cut: Some(container.last_seq()),
        };
        let row = Arc::new(container.row(cut));
        self.shared.write().sealed = Some(Arc::new(Sealed { container, row }));
        self.ingest_inner().map(drop)
    }
}
