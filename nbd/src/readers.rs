//! More threads that read for one connection, where its reads take long.
//!
//! # Overview
//!
//! A connection runs the short reads of a round itself. Where they are of the past, each is a few lookups, and where the disk
//! must be asked it is waited for: one thread then leaves processors and disks idle. So a round that would take long is shared
//! with up to [`READERS_MAX`] threads, made when they are first needed. What is long is told by what reads took before; a round
//! that would be short is never handed over, for waking a thread costs as much as some reads from memory.
//!
//! # Invariants
//!
//! * A read is run once, by whoever has it, and its runner sends its reply; the connection goes on with the next round
//!   meanwhile. A client that wants one request behind another waits for the first one's reply (the protocol promises no
//!   order), so nothing else orders them.
//! * A reader that works takes nothing more: each has at most one part of a round, and what nobody takes the connection
//!   runs itself, with a part of its own.
//! * Readers are gone before their connection is: nobody reads an export that is counted as left. One that had nothing to do
//!   for [`IDLE`] leaves before.
//! * All connections together have no more of them than [`Limits::readers_max`](crate::Limits::readers_max).
//! * A panic of an export in a reader ends its connection, but behind all that was received: the client, or a relay in front of
//!   it, asks again elsewhere what was not answered, and no older write may be carried out behind that.

use crate::{
    outbox::Outbox,
    reads::{self, Gathered, Short},
    session::Session,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Most of them for a connection.
const READERS_MAX: usize = 3;
/// What must be left to be done for each thread that takes part in a round; to wake one takes some 5 µs to 50 µs.
const WORTH_A_THREAD: Duration = Duration::from_micros(80);
/// How long one waits for work.
const IDLE: Duration = Duration::from_secs(10);

/// The readers that a server may still make.
#[derive(Debug)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) fn new(readers: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(readers)))
    }

    fn take(self: &Arc<Self>) -> Option<Permit> {
        let less = |left: usize| left.checked_sub(1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok().then(|| Permit(Arc::clone(self)))
    }
}

/// One reader of the budget.
struct Permit(Arc<Budget>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The threads, and what a read takes.
pub(crate) struct Readers {
    session: Arc<Session>,
    outbox: Arc<Outbox>,
    budget: Arc<Budget>,
    threads: Vec<Reader>,
    /// The system gave no thread: none is asked for again.
    is_refused: bool,
    /// What one read took lately.
    each: Duration,
}

struct Reader {
    parts: SyncSender<Vec<Short>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn end(self) {
        drop(self.parts);
        // Its panic ends the connection.
        let _ = self.thread.join();
    }
}

impl Readers {
    /// None yet.
    pub(crate) const fn new(session: Arc<Session>, outbox: Arc<Outbox>, budget: Arc<Budget>) -> Self {
        Self {
            session,
            outbox,
            budget,
            threads: Vec::new(),
            is_refused: false,
            each: Duration::ZERO,
        }
    }

    /// Notes what the connection's own reads took.
    pub(crate) fn took(&mut self, reads: usize, time: Duration) {
        let each = time / u32::try_from(reads).unwrap_or(u32::MAX).max(1);
        self.each = (self.each.saturating_mul(3).saturating_add(each)) / 4;
    }

    /// Hands parts of a long round over; answers what is left for the connection itself, at least as much as each of them has.
    pub(crate) fn share(&mut self, mut reads: Vec<Short>) -> Vec<Short> {
        let parts = parts(reads.len(), self.each);
        let len = reads.len() / parts;
        for n in 0..parts - 1 {
            let part = reads.split_off(reads.len() - len);
            if let Err(part) = self.give(n, part) {
                reads.extend(part);
            }
        }
        reads
    }

    /// Gives a part to the n-th reader; back when it does not wait for one, as one that is just being made.
    fn give(&mut self, n: usize, part: Vec<Short>) -> Result<(), Vec<Short>> {
        let Some(reader) = self.threads.get(n) else {
            self.start();
            return Err(part);
        };
        reader.parts.try_send(part).map_err(|e| match e {
            TrySendError::Full(part) => part,
            TrySendError::Disconnected(part) => {
                // It had nothing to do for long.
                self.threads.remove(n).end();
                part
            }
        })
    }

    fn start(&mut self) {
        if self.is_refused {
            return;
        }
        let Some(permit) = self.budget.take() else {
            return;
        };
        let (parts, waiting) = sync_channel(0);
        let (session, outbox) = (Arc::clone(&self.session), Arc::clone(&self.outbox));
        let of = thread::current();
        let name = format!("{}-r{}", of.name().unwrap_or("nbd"), self.threads.len());
        let spawned = thread::Builder::new().name(name).spawn(move || {
            let _permit = permit;
            work(&waiting, &session, &outbox);
        });
        match spawned {
            Ok(thread) => self.threads.push(Reader { parts, thread }),
            Err(e) => {
                tracing::warn!(error = %e, "no thread for slow reads: their connection runs them itself");
                self.is_refused = true;
            }
        }
    }

    /// Ends them, when they have done what they took.
    pub(crate) fn finish(&mut self) {
        self.threads.drain(..).for_each(Reader::end);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Of a connection that panicked, whose socket is left: none of them waits for its client.
        if thread::panicking() {
            self.outbox.close();
        }
        self.finish();
    }
}

/// How many threads a round of so many reads is worth.
fn parts(reads: usize, each: Duration) -> usize {
    let whole = each.saturating_mul(u32::try_from(reads).unwrap_or(u32::MAX));
    let parts = whole.as_nanos() / WORTH_A_THREAD.as_nanos();
    let most = reads.clamp(1, 1 + READERS_MAX);
    usize::try_from(parts).unwrap_or(most).clamp(1, most)
}

fn work(parts: &Receiver<Vec<Short>>, session: &Session, outbox: &Outbox) {
    let _guard = EndsConnection(outbox);
    let mut out = Gathered::default();
    while let Ok(part) = parts.recv_timeout(IDLE) {
        let sent = reads::run_short(part, session, &mut out, outbox).and_then(|_| out.flush(outbox));
        if sent.is_err() {
            // The connection sees the same.
            return;
        }
    }
}

/// Ends the connection if its thread panics.
struct EndsConnection<'a>(&'a Outbox);

impl Drop for EndsConnection<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close_read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_passed_and_comes_back() {
        let budget = Budget::new(2);
        let first = budget.take().unwrap();
        let second = budget.take();
        assert!(second.is_some() && budget.take().is_none());
        drop(first);
        assert!(budget.take().is_some());
    }

    #[test]
    fn only_long_rounds_are_shared() {
        let micros = Duration::from_micros;
        // (reads, what each takes, threads)
        let table = [
            (0, micros(0), 1),
            (16, micros(0), 1),
            (16, micros(4), 1),
            (16, micros(10), 2),
            (16, micros(12), 2),
            (16, micros(1000), 4),
            (2, micros(1000), 2),
            (1, micros(1_000_000), 1),
            (4096, Duration::MAX, 4),
        ];
        for (reads, each, threads) in table {
            assert_eq!(parts(reads, each), threads, "{reads} reads of {each:?}");
        }
    }
}
