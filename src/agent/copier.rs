//! The copier: sends what the state map calls stale, region by region, while the application writes (rules C1-C5).
//!
//! # Overview
//!
//! One thread a link. It takes the next stale range from the map, reads it and computes its digest with no lock held, has the tap
//! give it a place in the write order, and puts it on the [`Table`], where the LCA finds it when the frame with its stub is sent.
//! An acknowledged copy at `s` makes its range clean unless it became stale at or after `s` (C4). What was not acknowledged when
//! the link broke stays stale.
//!
//! A hole of a volume is one copy, however long (up to 64 MiB): nothing of it is read, sent or written.
//!
//! A range may be *offered* by its digest first (`offers.rs`). What the peer lacks of it is *owed*: it is copied at a new position
//! before the copier looks for more, the parts that the peer seems to hold as offers of their own, the others with their bytes.
//! Nothing is offered while the peer has much to apply before it: it would be answered late, and what it lacks then would come as
//! late once more; behind an application that outruns it that may go on without end.
//!
//! # Invariants
//!
//! - [`Table::stubs`] is held from before a stub is journaled until its copy is on the table, and not for the time of the read: the
//!   LCA takes copies off the table meanwhile.
//! - All is complete only when a look from the beginning of the map found nothing, and nothing was on its way or owed.

use super::offers::{How, Next, Offers, owed};
use journal::{
    Journal, JournalError,
    tap::{COPY_BYTES, CopyRead, CopyTaken, RACES_MAX, Tap, ZERO_COPY_BYTES},
};
use model::{ByteRange, Payload, VolumeIndex, WriteSeq};
use parking_lot::{Condvar, Mutex};
use snapshot::piece_digest;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Bytes of copies on their way at once: enough that the peer's disk, the link and ours are all busy, less than the peer lets
/// wait.
const IN_FLIGHT_BYTES: u64 = 48 << 20;
/// Copies on their way at once; zero regions and offers have no bytes.
const IN_FLIGHT: usize = 256;

/// What the peer understands, and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It speaks version 1: no offers, and no copy is longer than [`COPY_BYTES`].
    Old,
    /// It has nothing yet: next to nothing of what is offered would be there.
    Empty,
    /// It has held bytes.
    Holds,
}

/// Containers to apply of which a peer is far behind.
const FAR_BEHIND: usize = 8;

/// A copy whose stub is about to be sent.
#[derive(Debug)]
pub enum Ready {
    /// With its bytes.
    Copy(wire::Copy),
    /// Without.
    Offer(wire::Offer),
}

impl Ready {
    const fn bytes(&self) -> u64 {
        match self {
            Self::Copy(wire::Copy {
                payload: Payload::Data(data),
                ..
            }) => data.len() as u64,
            _ => 0,
        }
    }

    const fn sent(&self) -> Sent {
        let (volume, range, is_offer) = match self {
            Self::Copy(copy) => (copy.volume, copy.range, false),
            Self::Offer(offer) => (offer.volume, offer.range, true),
        };
        Sent {
            volume,
            range,
            bytes: self.bytes(),
            is_offer,
        }
    }
}

#[derive(Clone, Copy)]
struct Sent {
    volume: VolumeIndex,
    range: ByteRange,
    bytes: u64,
    is_offer: bool,
}

/// Copies between their stub and their acknowledgement.
#[derive(Default)]
pub struct Table {
    state: Mutex<State>,
    /// Held by the copier from before a stub is journaled until its copy is on the table: whoever meets a stub in the journal
    /// and takes this lock finds the copy, or knows that it is lost.
    stubs: Mutex<()>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<WriteSeq, Ready>,
    sent: BTreeMap<WriteSeq, Sent>,
    /// Parts of offers that come again.
    owed: VecDeque<(VolumeIndex, ByteRange, How)>,
    offers: Offers,
    /// Up to where the stream leaves records out: the peer applies none of them.
    left_out: WriteSeq,
    bytes: u64,
    ended: bool,
    complete: bool,
    /// A copier is at work.
    at_work: bool,
    /// More became stale after it may have taken its last look.
    again: bool,
    failure: Option<String>,
}

impl State {
    fn on_their_way(&self) -> usize {
        self.waiting.len() + self.sent.len()
    }
}

impl Table {
    /// Takes the copy whose stub is `seq`; `None`: it is lost, its region comes again.
    pub fn take(&self, seq: WriteSeq) -> Option<Ready> {
        let _stubs = self.stubs.lock();
        let mut state = self.state.lock();
        let ready = state.waiting.remove(&seq)?;
        state.sent.insert(seq, ready.sent());
        Some(ready)
    }

    /// The peer has these durably on its volumes: their ranges are clean.
    pub fn acknowledged(&self, tap: &Tap, seqs: &[WriteSeq]) -> Result<(), JournalError> {
        let known: Vec<_> = {
            let state = self.state.lock();
            let known = |seq: &WriteSeq| state.sent.get(seq).map(|sent| (*seq, *sent));
            seqs.iter().filter_map(known).collect()
        };
        let clean: Vec<_> = known.iter().map(|(seq, s)| (s.volume, s.range, *seq)).collect();
        tap.journal().clear_if_older(&clean)?;
        let mut state = self.state.lock();
        for (seq, sent) in known {
            state.sent.remove(&seq);
            state.bytes -= sent.bytes;
            if sent.is_offer {
                state.offers.answered(true);
            }
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The peer lacks these ranges, which rise, of what was offered at `seq`: all of it comes again.
    pub fn lacks(&self, seq: WriteSeq, ranges: &[ByteRange]) {
        let mut state = self.state.lock();
        let Some(offered) = state.sent.remove(&seq) else {
            return;
        };
        state.bytes -= offered.bytes;
        let lacking: u64 = ranges.iter().map(|range| range.len()).sum();
        state.offers.answered(lacking < offered.range.len());
        let owed = owed(offered.range, ranges).into_iter();
        state
            .owed
            .extend(owed.map(|(range, how)| (offered.volume, range, how)));
        drop(state);
        self.changed.notify_all();
    }

    /// The stream leaves out everything up to `seq`: copies whose stubs it will not send any more are lost.
    pub fn left_out(&self, seq: WriteSeq) {
        let _stubs = self.stubs.lock();
        let mut state = self.state.lock();
        let later = state.waiting.split_off(&seq.next());
        let lost = std::mem::replace(&mut state.waiting, later);
        for ready in lost.into_values() {
            state.bytes -= ready.bytes();
            if let Ready::Offer(_) = ready {
                state.offers.lost();
            }
        }
        state.left_out = state.left_out.max(seq);
        state.complete = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Something is stale: a copier that is at work looks again; else the caller starts one (`true`).
    pub fn wants_copier(&self) -> bool {
        let mut state = self.state.lock();
        state.again = true;
        !std::mem::replace(&mut state.at_work, true)
    }

    /// The copier ended with a failure.
    pub fn failed(&self, why: String) {
        let mut state = self.state.lock();
        state.at_work = false;
        state.failure = Some(why);
    }

    /// Why the copier ended, if it failed.
    pub fn failure(&self) -> Option<String> {
        self.state.lock().failure.clone()
    }

    /// The copier found nothing: it ends, and all is complete, unless it is to look again (`false`).
    fn finish(&self) -> bool {
        let mut state = self.state.lock();
        state.at_work = std::mem::take(&mut state.again);
        state.complete = !state.at_work;
        state.complete
    }

    fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// What is known of the peer when a copier begins.
    fn peer_is(&self, peer: Peer) {
        let mut state = self.state.lock();
        state.offers = match peer {
            Peer::Holds => Offers::default(),
            Peer::Old | Peer::Empty => Offers::hopeless(),
        };
    }

    /// Whether the peer has more than [`FAR_BEHIND`] containers to apply before what is sent now.
    fn is_far_behind(&self, journal: &Journal) -> bool {
        let left_out = self.state.lock().left_out;
        let applied = journal.cursors().applied_by_peer.max(left_out);
        journal.sealed_after(applied, FAR_BEHIND + 1) > FAR_BEHIND
    }

    /// How the next range is copied; `None`: something else comes first, or the link is gone.
    fn how(&self, journal: &Journal, peer: Peer) -> Option<How> {
        if peer == Peer::Old || self.is_far_behind(journal) {
            return Some(How::Bytes);
        }
        let mut state = self.state.lock();
        loop {
            if state.ended || !state.owed.is_empty() {
                return None;
            }
            match state.offers.next() {
                Next::Offer => return Some(How::Offer),
                Next::Send => return Some(How::Bytes),
                Next::Wait => self.changed.wait(&mut state),
            }
        }
    }

    /// The copier looks from here on.
    fn looks(&self) {
        self.state.lock().again = false;
    }

    /// The link is gone.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether all is clean and nothing is on its way; says so once.
    pub fn take_complete(&self) -> bool {
        std::mem::take(&mut self.state.lock().complete)
    }

    /// Waits for room; `false` when the link is gone.
    fn wait_for_room(&self) -> bool {
        let mut state = self.state.lock();
        while !state.ended && (state.bytes >= IN_FLIGHT_BYTES || state.on_their_way() >= IN_FLIGHT) {
            self.changed.wait(&mut state);
        }
        !state.ended
    }

    /// Waits until nothing is on its way, or something is owed; `false` when the link is gone.
    fn wait_for_all(&self) -> bool {
        let mut state = self.state.lock();
        while !state.ended && state.owed.is_empty() && state.on_their_way() > 0 {
            self.changed.wait(&mut state);
        }
        !state.ended
    }

    fn owed(&self) -> Option<(VolumeIndex, ByteRange, How)> {
        self.state.lock().owed.pop_front()
    }

    fn owes(&self) -> bool {
        !self.state.lock().owed.is_empty()
    }

    /// Puts what was read on the table, in its place; `None`: it was written meanwhile.
    fn place(&self, tap: &Tap, read: Read, seal: bool) -> Result<Option<ByteRange>, JournalError> {
        let _stubs = self.stubs.lock();
        let placed = tap.place_copy(read.copy, seal)?;
        Ok(placed.map(|copy| self.put(read.volume, copy, read.pieces)))
    }

    fn put(&self, volume: VolumeIndex, copy: CopyTaken, pieces: Option<Pieces>) -> ByteRange {
        let range = copy.range;
        let mut state = self.state.lock();
        let ready = match pieces {
            Some(Pieces { piece, digests }) => {
                state.offers.made();
                Ready::Offer(wire::Offer {
                    seq: copy.seq,
                    volume,
                    range,
                    piece,
                    pieces: digests,
                })
            }
            None => Ready::Copy(wire::Copy {
                seq: copy.seq,
                volume,
                range,
                payload: copy.payload,
            }),
        };
        state.bytes += ready.bytes();
        state.waiting.insert(copy.seq, ready);
        range
    }

    /// Copies a range, or its beginning if that is no hole any more; answers what it copied.
    fn copy(
        &self,
        tap: &Tap,
        (volume, range, how): (VolumeIndex, ByteRange, How),
        seal: bool,
    ) -> Result<ByteRange, JournalError> {
        for _ in 0..RACES_MAX {
            let copy = tap.read_copy(volume, range)?;
            let pieces = pieces_of(tap.journal(), volume, &copy, how);
            let read = Read { volume, copy, pieces };
            if let Some(range) = self.place(tap, read, seal)? {
                return Ok(range);
            }
        }
        let _stubs = self.stubs.lock();
        let copy = tap.copy_held(volume, range, seal)?;
        Ok(self.put(volume, copy, None))
    }
}

/// A range that was read and has no place yet.
struct Read {
    volume: VolumeIndex,
    copy: CopyRead,
    /// It is to be offered.
    pieces: Option<Pieces>,
}

struct Pieces {
    /// Bytes of each; 0: there are none.
    piece: u32,
    digests: Vec<u64>,
}

/// What is said of the pieces of a range that is to be offered; zeroes are never: they are sent for less.
fn pieces_of(journal: &Journal, volume: VolumeIndex, read: &CopyRead, how: How) -> Option<Pieces> {
    let Payload::Data(data) = read.payload() else {
        return None;
    };
    let region = journal.map_shape(volume).map_or(0, |shape| shape.region_size);
    let piece = u32::try_from(region)
        .ok()
        .filter(|piece| u64::from(*piece) < read.range().len());
    match (how, piece) {
        (How::Bytes, _) => None,
        (How::Offer, Some(piece @ 1..)) => Some(Pieces {
            piece,
            digests: data
                .chunks(piece as usize)
                .map(|bytes| piece_digest(blake3::hash(bytes).as_bytes()))
                .collect(),
        }),
        _ => Some(Pieces {
            piece: 0,
            digests: Vec::new(),
        }),
    }
}

/// Copies until nothing is stale, then calls `complete`.
pub fn run(
    table: &Arc<Table>,
    tap: &Arc<Tap>,
    volumes: &[VolumeIndex],
    peer: Peer,
    appended: &dyn Fn(),
    complete: &dyn Fn(),
) -> Result<(), JournalError> {
    let most = if peer == Peer::Old {
        COPY_BYTES
    } else {
        ZERO_COPY_BYTES
    };
    let next = |volume, from| next_stale(tap.journal(), volumes, volume, from, most);
    table.peer_is(peer);
    loop {
        table.looks();
        let mut at = (VolumeIndex(0), 0);
        let mut any = false;
        while table.wait_for_room() {
            if let Some((volume, range, mut how)) = table.owed() {
                any = true;
                if table.is_far_behind(tap.journal()) {
                    how = How::Bytes;
                }
                table.copy(tap, (volume, range, how), false)?;
                appended();
                continue;
            }
            let Some((volume, stale)) = next(at.0, at.1) else {
                if table.wait_for_all() && table.owes() {
                    continue;
                }
                break;
            };
            any = true;
            let range = tap.copy_stretch(volume, stale)?;
            let Some(how) = table.how(tap.journal(), peer) else {
                continue;
            };
            // The last copy ends its container, so that the first consistent point is a boundary.
            let last = how == How::Bytes && next(volume, range.end).is_none() && !table.owes();
            let copied = table.copy(tap, (volume, range, how), last)?;
            appended();
            at = (volume, copied.end);
        }
        if table.has_ended() {
            return Ok(());
        }
        if !any && table.finish() {
            complete();
            return Ok(());
        }
    }
}

/// The next stale range at or after an offset, of this volume or a later one; at most `most` bytes of it.
fn next_stale(
    journal: &Journal,
    volumes: &[VolumeIndex],
    volume: VolumeIndex,
    from: u64,
    most: u64,
) -> Option<(VolumeIndex, ByteRange)> {
    volumes.iter().filter(|v| **v >= volume).find_map(|v| {
        let range = journal.next_stale(*v, if *v == volume { from } else { 0 }, most)?;
        Some((*v, range))
    })
}
