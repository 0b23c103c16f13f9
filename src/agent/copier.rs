//! The copier: sends what the state map calls stale, region by region, while the application writes (rules C1-C5).
//!
//! One thread a link. It takes the next stale range from the map, has the tap give it a place in the write order, and puts
//! it on the [`Table`], where the LCA finds it when the frame with its stub is sent. An acknowledged copy at `s` makes its
//! range clean unless it became stale at or after `s` (C4). What was not acknowledged when the link broke stays stale.

use journal::{
    Journal, JournalError,
    tap::{CopyTaken, Tap},
};
use model::{ByteRange, Payload, VolumeIndex, WriteSeq};
use parking_lot::{Condvar, Mutex};
use std::{collections::BTreeMap, sync::Arc};

/// Most bytes of one copy.
const COPY_BYTES: u64 = 1 << 20;
/// Bytes of copies on their way at once.
const IN_FLIGHT_BYTES: u64 = 16 << 20;
/// Copies on their way at once; zero regions have no bytes.
const IN_FLIGHT: usize = 256;

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
    waiting: BTreeMap<WriteSeq, (VolumeIndex, CopyTaken)>,
    sent: BTreeMap<WriteSeq, (VolumeIndex, ByteRange, u64)>,
    bytes: u64,
    ended: bool,
    complete: bool,
    /// A copier is at work.
    at_work: bool,
    /// More became stale after it may have taken its last look.
    again: bool,
    failure: Option<String>,
}

fn bytes_of(copy: &CopyTaken) -> u64 {
    match &copy.payload {
        Payload::Data(data) => data.len() as u64,
        Payload::Zero => 0,
    }
}

impl Table {
    /// Takes the copy whose stub is `seq`; `None`: it is lost, its region comes again.
    pub fn take(&self, seq: WriteSeq) -> Option<(VolumeIndex, CopyTaken)> {
        let _stubs = self.stubs.lock();
        let mut state = self.state.lock();
        let (volume, copy) = state.waiting.remove(&seq)?;
        state.sent.insert(seq, (volume, copy.range, bytes_of(&copy)));
        Some((volume, copy))
    }

    /// The peer has these durably on its volumes: their ranges are clean.
    pub fn acknowledged(&self, tap: &Tap, seqs: &[WriteSeq]) -> Result<(), JournalError> {
        let known: Vec<_> = {
            let state = self.state.lock();
            let known = |seq: &WriteSeq| state.sent.get(seq).map(|sent| (*seq, *sent));
            seqs.iter().filter_map(known).collect()
        };
        let clean: Vec<_> = known.iter().map(|(seq, sent)| (sent.0, sent.1, *seq)).collect();
        tap.journal().clear_if_older(&clean)?;
        let mut state = self.state.lock();
        for (seq, (_, _, bytes)) in known {
            state.sent.remove(&seq);
            state.bytes -= bytes;
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The stream leaves out everything up to `seq`: copies whose stubs it will not send any more are lost.
    pub fn left_out(&self, seq: WriteSeq) {
        let _stubs = self.stubs.lock();
        let mut state = self.state.lock();
        let later = state.waiting.split_off(&seq.next());
        let lost = std::mem::replace(&mut state.waiting, later);
        state.bytes -= lost.values().map(|(_, copy)| bytes_of(copy)).sum::<u64>();
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

    fn on_their_way(state: &State) -> usize {
        state.waiting.len() + state.sent.len()
    }

    /// Waits for room; `false` when the link is gone.
    fn wait_for_room(&self) -> bool {
        let mut state = self.state.lock();
        while !state.ended && (state.bytes >= IN_FLIGHT_BYTES || Self::on_their_way(&state) >= IN_FLIGHT) {
            self.changed.wait(&mut state);
        }
        !state.ended
    }

    /// Waits until nothing is on its way; `false` when the link is gone.
    fn wait_for_all(&self) -> bool {
        let mut state = self.state.lock();
        while !state.ended && Self::on_their_way(&state) > 0 {
            self.changed.wait(&mut state);
        }
        !state.ended
    }
}

/// Copies until nothing is stale, then calls `complete`.
pub fn run(
    table: &Arc<Table>,
    tap: &Arc<Tap>,
    volumes: &[VolumeIndex],
    appended: &dyn Fn(),
    complete: &dyn Fn(),
) -> Result<(), JournalError> {
    let next = |volume, from| next_stale(tap.journal(), volumes, volume, from);
    loop {
        table.looks();
        let mut at = (VolumeIndex(0), 0);
        let mut any = false;
        while let Some((volume, range)) = next(at.0, at.1) {
            if !table.wait_for_room() {
                return Ok(());
            }
            any = true;
            // The last copy ends its container, so that the first consistent point is a boundary.
            let last = next(volume, range.end).is_none();
            {
                let _stubs = table.stubs.lock();
                let copy = tap.copy(volume, range, last)?;
                let mut state = table.state.lock();
                state.bytes += bytes_of(&copy);
                state.waiting.insert(copy.seq, (volume, copy));
            }
            appended();
            at = (volume, range.end);
        }
        if !table.wait_for_all() {
            return Ok(());
        }
        if !any && table.finish() {
            complete();
            return Ok(());
        }
    }
}

/// The next stale range at or after an offset, of this volume or a later one; at most [`COPY_BYTES`].
fn next_stale(
    journal: &Journal,
    volumes: &[VolumeIndex],
    volume: VolumeIndex,
    from: u64,
) -> Option<(VolumeIndex, ByteRange)> {
    volumes.iter().filter(|v| **v >= volume).find_map(|v| {
        let range = journal.next_stale(*v, if *v == volume { from } else { 0 }, COPY_BYTES)?;
        Some((*v, range))
    })
}
