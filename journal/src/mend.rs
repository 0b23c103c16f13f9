//! Mending a damaged tail with frames of the peer (`rules.md` T5, T10, invariant 9).
//!
//! # Overview
//!
//! A frame is the same bytes on every host, and a tail holds frames one behind the other, so a frame that rotted has its
//! exact place: the same frame from the peer, written there, makes the tail what it was. That is all that happens here.
//! [`missing`] names the first position behind which the containers without a row do not go on, [`mend`] writes frames there
//! for as long as they continue the chain. Neither opens the journal, and neither decides that it is whole: that stays with
//! [`crate::Journal::open`], which judges the mended tails as strictly as any others.
//!
//! # Invariants
//!
//! - Only bytes that do not continue the chain are overwritten. A whole local frame that continues it stays, so what only
//!   this host has (records behind the damage that the peer has not received) is kept.
//! - A frame is written only if it continues generation, container, record and digest of what is before it.
//! - A whole local frame that was durable is never overwritten: where the peer's frames lead to something else than it, they
//!   are another history, and none of them is written.
//! - No envelope written here claims more than the superblock does.
//!
//! # Crash consistency
//!
//! A cut leaves damage where damage was: the next attempt finds the same position or a later one. A container whose header is
//! lost counts again only when its header is written, after its frames are synced; its counter is above all others.
//!
//! # What it does not do
//!
//! Of the store it mends only frames ([`Journal::mend_container`]): lost metadata and a lost superblock are not the peer's to know. It asks nobody: the caller fetches.

use crate::{
    error::JournalError,
    frame::{Digest, Frame},
    ingest::damaged,
    journal::{Journal, tail_name},
    keys,
    load::Tables,
    parts::Parts,
    recovery::scan_tails,
    superblock::{Bounds, Found, Superblock},
    tail::{self, ENVELOPE_BYTES, HEADER_BYTES, Scan, SealFlags, Start, TailHeader, read_entry},
};
use bytes::Bytes;
use model::{
    GenId, GenNo, LfcId, RecordBody, WriteSeq,
    ports::{Family, Medium},
};
use std::sync::Arc;

/// Where a damaged journal ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Generation of the records.
    pub generation: GenId,
    /// The last whole record before the damage.
    pub after: WriteSeq,
    /// Chain digest at its end.
    pub digest: Digest,
    /// The last record that is known to have been here. Some before it may be whole.
    pub upto: WriteSeq,
}

/// The first damaged place.
struct Place {
    tail: usize,
    /// Where the missing entry goes.
    at: u64,
    /// What it must continue.
    next: Start,
    upto: WriteSeq,
    /// The header that the tail needs before its entries count.
    header: Option<TailHeader>,
    /// Whether the last record before it is an event mark.
    ends_with_mark: bool,
    /// Whether another tail says where this container ended.
    is_followed: bool,
    /// Where whole frames of the container stand behind the place that were durable.
    durable_at: Vec<u64>,
    counter: u64,
    bounds: Bounds,
    number: GenNo,
}

/// What a damaged journal lacks, if frames of the peer can mend it.
///
/// # Errors
/// When a part fails or the catalog cannot be read.
pub fn missing(parts: &Parts) -> Result<Option<Missing>, JournalError> {
    Ok(place(parts)?.map(|p| Missing {
        generation: p.next.generation,
        after: WriteSeq(p.next.first_seq.0 - 1),
        digest: p.next.prev_digest,
        upto: p.upto,
    }))
}

/// Writes frames that continue the first damaged place, and answers how many frames continue the chain there now that did
/// not before: 0 when these frames are of no use, and no header could be mended either.
///
/// # Errors
/// When a part fails or the catalog cannot be read.
pub fn mend(parts: &Parts, frames: &[Bytes]) -> Result<u64, JournalError> {
    let Some(mut place) = place(parts)? else {
        return Ok(0);
    };
    let mut fetched = frames
        .iter()
        .filter_map(|bytes| Frame::parse(bytes.clone()).ok())
        .peekable();
    // The container may be whole, and the next one, whose tail is lost, begin here.
    let begins = fetched.peek().is_some_and(|f| {
        let (h, n) = (f.header(), &place.next);
        h.lfc == n.lfc.next()
            && (h.generation, h.first_seq, h.prev_digest) == (n.generation, n.first_seq, n.prev_digest)
    });
    if begins && place.header.is_none() && !place.is_followed {
        place.next.lfc = place.next.lfc.next();
        place.next.after_gap = false;
        place.tail = 1 - place.tail;
        place.at = HEADER_BYTES;
        place.durable_at.clear();
        place.header = Some(TailHeader {
            counter: place.counter + 1,
            start: place.next,
            prev_flags: SealFlags {
                mark: place.ends_with_mark,
                cut: None,
            },
        });
    }
    let medium: &dyn Medium = &*parts.tails[place.tail];
    let io = |e| JournalError::io(tail_name(place.tail), e);
    let all = tail::read_all(medium, &tail_name(place.tail))?;
    let known = (place.bounds.durable.generation == place.number).then_some(place.bounds.durable.seq);
    let durable = known
        .unwrap_or_default()
        .max(WriteSeq(place.next.first_seq.0 - 1));
    let stands_within = |from: u64, to: u64| place.durable_at.iter().any(|at| (from..to).contains(at));
    let (mut at, mut next, mut count) = (place.at, place.next, 0);
    let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        let frame = match read_entry(&all, crate::codec::index(at), &next) {
            Ok(local) => local,
            Err(_) => {
                let Some(frame) = fetched.find(|f| f.first_seq() >= next.first_seq) else {
                    break;
                };
                let h = frame.header();
                let continues = (h.generation, h.lfc, h.first_seq, h.prev_digest)
                    == (next.generation, next.lfc, next.first_seq, next.prev_digest);
                let end = at + (ENVELOPE_BYTES + frame.len()) as u64;
                if !continues || end > medium.len() {
                    break;
                }
                if stands_within(at, end) {
                    return Ok(0);
                }
                let mut entry = vec![0; ENVELOPE_BYTES];
                entry.extend_from_slice(frame.bytes());
                tail::fill_envelope(&mut entry, durable.min(WriteSeq(next.first_seq.0 - 1)));
                writes.push((at, entry));
                frame
            }
        };
        at += (ENVELOPE_BYTES + frame.len()) as u64;
        next.first_seq = frame.last_seq().next();
        next.prev_digest = frame.digest();
        count += 1;
    }
    if count == 0 || (!writes.is_empty() && stands_within(at, at + 1)) {
        return Ok(0);
    }
    for (at, entry) in &writes {
        medium.write_at(*at, entry).map_err(io)?;
    }
    medium.sync().map_err(io)?;
    if let Some(header) = place.header {
        medium.write_at(0, &header.encode()).map_err(io)?;
        medium.sync().map_err(io)?;
    }
    Ok(count)
}

/// Follows the containers without a row from where the catalog ends, up to the first place where they do not go on.
fn place(parts: &Parts) -> Result<Option<Place>, JournalError> {
    let (superblock, found) = Superblock::open(Arc::clone(&parts.superblock))?;
    let bounds = superblock.bounds();
    let tables = Tables::load(&*parts.store)?;
    if matches!(found, Found::Nothing) || tables.meta_seq < bounds.meta_seq {
        return Ok(None);
    }
    let Some((number, mut next)) = tables.next_start() else {
        return Ok(None);
    };
    let (scans, counter) = scan_tails(parts)?;
    let mut before: Option<usize> = None;
    // The catalog, a sealed container and the open one: more cannot follow each other.
    for _ in 0..=parts.tails.len() {
        let holds = |s: &Scan| s.header.filter(|h| h.start == next).map(|h| h.counter);
        let mark = before.is_some_and(|t| ends_with_mark(&scans[t]));
        let holder = (0..scans.len())
            .filter(|t| holds(&scans[*t]).is_some())
            .max_by_key(|t| holds(&scans[*t]));
        let proven = |tail: usize, seq: WriteSeq| {
            let strays = scans[tail].strays.iter();
            strays
                .filter(|s| (s.generation, s.lfc) == (next.generation, next.lfc) && s.last_seq > seq)
                .map(|s| s.durable)
                .max()
        };
        let found = |tail, at, next, upto, ends_with_mark| Place {
            tail,
            at,
            next,
            upto,
            header: None,
            ends_with_mark,
            is_followed: false,
            durable_at: durable_strays(&scans[tail], &next, &bounds, number),
            counter,
            bounds,
            number,
        };
        let base = WriteSeq(next.first_seq.0 - 1);
        // An older copy of the container does not stand in for the newer one whose header is rotten (T6).
        let copy_end = holder
            .and_then(|t| scans[t].frames.last())
            .map_or(base, |(loc, _)| loc.last_seq());
        let newer =
            (0..scans.len()).find(|t| scans[*t].header.is_none() && proven(*t, copy_end) > Some(copy_end));
        let Some(tail) = holder.filter(|_| newer.is_none()) else {
            // Its header does not check: it was where its frames still stand, else where nothing else is.
            let others = |t: &usize| scans[*t].header.is_some_and(|h| h.start.lfc > next.lfc);
            let tail = newer
                .or_else(|| (0..scans.len()).find(|t| proven(*t, base).is_some()))
                .or_else(|| before.map(|t| 1 - t))
                .or_else(|| (0..scans.len()).find(|t| !others(t)))
                .unwrap_or(0);
            let upto = bound(&tables, &bounds, number).max(proven(tail, base).unwrap_or_default());
            let header = TailHeader {
                counter: counter + 1,
                start: next,
                prev_flags: SealFlags { mark, cut: None },
            };
            return Ok((upto > base).then(|| Place {
                header: Some(header),
                ..found(tail, HEADER_BYTES, next, upto, mark)
            }));
        };
        let scan = &scans[tail];
        let end = scan.frames.last();
        let continued = Start {
            first_seq: end.map_or(next.first_seq, |(loc, _)| loc.last_seq().next()),
            prev_digest: end.map_or(next.prev_digest, |(_, f)| f.digest()),
            ..next
        };
        let after = WriteSeq(continued.first_seq.0 - 1);
        let mark = ends_with_mark(scan);
        let follows = scans[1 - tail]
            .header
            .map(|h| h.start)
            .filter(|s| (s.generation, s.lfc) == (next.generation, next.lfc.next()));
        match follows {
            Some(start)
                if (start.first_seq, start.prev_digest) == (continued.first_seq, continued.prev_digest) =>
            {
                before = Some(tail);
                next = start;
            }
            Some(start) => {
                let upto = WriteSeq(start.first_seq.0 - 1);
                return Ok((upto > after).then(|| Place {
                    is_followed: true,
                    ..found(tail, scan.end_at, continued, upto, mark)
                }));
            }
            None => {
                let upto = bound(&tables, &bounds, number).max(proven(tail, after).unwrap_or_default());
                return Ok((upto > after).then(|| found(tail, scan.end_at, continued, upto, mark)));
            }
        }
    }
    Ok(None)
}

fn ends_with_mark(scan: &Scan) -> bool {
    scan.frames
        .last()
        .and_then(|(_, f)| f.records().last())
        .is_some_and(|r| matches!(r.body, RecordBody::Mark { .. }))
}

/// Where the whole frames of a container stand, behind its end, that a later one or the superblock knew to be durable.
fn durable_strays(scan: &Scan, next: &Start, bounds: &Bounds, number: GenNo) -> Vec<u64> {
    let of_container = || {
        let strays = scan.strays.iter();
        strays.filter(|s| (s.generation, s.lfc) == (next.generation, next.lfc))
    };
    let known = (bounds.durable.generation == number).then_some(bounds.durable.seq);
    let durable = of_container()
        .map(|s| s.durable)
        .chain(known)
        .max()
        .unwrap_or_default();
    let kept = of_container().filter(|s| s.last_seq >= next.first_seq && s.last_seq <= durable);
    kept.map(|s| s.at).collect()
}

/// The last record of a generation that somebody relied on.
fn bound(tables: &Tables, bounds: &Bounds, number: GenNo) -> WriteSeq {
    let c = &tables.cursors;
    [bounds.durable, bounds.checkpointed]
        .into_iter()
        .filter(|p| p.generation == number)
        .map(|p| p.seq)
        .chain([c.checkpointed, c.applied, c.received_by_peer])
        .max()
        .unwrap_or_default()
}

impl Journal {
    /// Puts the frames of a sealed container that is damaged in the store there again. They must be all of them, and be what
    /// its row says. A cut leaves the container without frames: damaged, as before.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when it is not in the store, [`JournalError::Damaged`] when these frames are not those of its
    /// row, or a failure.
    pub fn mend_container(
        &self,
        generation: GenNo,
        lfc: LfcId,
        frames: &[Bytes],
    ) -> Result<(), JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            let row = {
                let shared = self.shared.read();
                shared
                    .rows
                    .get(&(generation, lfc))
                    .filter(|r| shared.is_held(r))
                    .cloned()
            };
            let row = row.ok_or(JournalError::NotHeld { generation, lfc })?;
            let mut digest = row.prev_digest;
            for bytes in frames {
                let frame = Frame::parse(bytes.clone())?;
                if frame.header().prev_digest != digest || frame.lfc() != lfc {
                    return Err(damaged(&row, "the frames offered are not its own".into()));
                }
                digest = frame.digest();
            }
            if digest != row.end_digest || frames.len() != row.frames as usize {
                return Err(damaged(&row, "the frames offered are not all of it".into()));
            }
            // The rotten file goes first: whoever reads across the container would meet its bad block otherwise.
            let (first, end) = (
                keys::redo(generation, lfc, 0),
                keys::redo(generation, LfcId(lfc.0 + 1), 0),
            );
            self.store.drop_range(Family::Redo, &first, &end)?;
            let mut pairs = (0..)
                .zip(frames)
                .map(|(i, bytes)| (keys::redo(generation, lfc, i), bytes.clone()));
            self.store.ingest(Family::Redo, &mut pairs)?;
            self.shared.write().rotten.mended(generation, lfc);
            Ok(())
        })
    }
}
