//! Who may write to a client's socket, and how much a client may have under way.
//!
//! # Overview
//!
//! Answers come from two sides. The *owner*, the thread of the connection, posts answers while it works through a round
//! of requests and sends them together at its end. *Others* (a thread that syncs, the leader of a group commit) post
//! answers whenever they like and [kick](Outbox::kick) the outbox; they must never wait for a client.
//!
//! At most one thread writes at a time: it holds the role `writing`, and takes along whatever is posted meanwhile. An
//! other that finds the socket full hands the role to a thread made for it, which may block; that happens only with a
//! client that does not read its answers, so there is no such thread in ordinary life.
//!
//! # Invariants
//!
//! * Bytes of one answer are contiguous on the wire: only the holder of the role sends, and what it leaves unsent goes
//!   back to the front.
//! * Whoever gives up the role has found nothing pending, under the lock: no answer is left behind.
//! * The cost of a mutation is admitted before it is submitted and given back when its answer is in the socket, or when
//!   the socket is broken. So bytes in flight are bounded, and zero means that the client is owed nothing.
//! * An answer posted by the owner leaves at the latest when the owner flushes, which it does before it waits.

use crate::{
    Errno,
    chunk::{self, Style},
    transport::{Transport, Wait, send_all},
};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    io::{self, IoSlice},
    mem,
    sync::Arc,
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// What a mutation costs besides its payload: bounds the number of those that have none.
pub(crate) const MUTATION_BYTES: usize = 1024;

/// The outgoing side of a connection.
pub(crate) struct Outbox {
    transport: Arc<dyn Transport>,
    style: Style,
    owner: ThreadId,
    in_flight_max: usize,
    state: Mutex<State>,
    /// The role became free, or bytes in flight fell.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Answers that are not sent.
    pending: Vec<u8>,
    /// What they will give back once they are.
    pending_cost: usize,
    in_flight: usize,
    writing: bool,
    broken: bool,
}

impl Outbox {
    /// An outbox owned by the calling thread.
    pub(crate) fn new(transport: Arc<dyn Transport>, style: Style, in_flight_max: usize) -> Arc<Self> {
        Arc::new(Self {
            transport,
            style,
            owner: thread::current().id(),
            in_flight_max,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Admits a mutation if that keeps within the limit; alone, any is admitted.
    pub(crate) fn try_admit(&self, cost: usize) -> bool {
        self.admit_locked(&mut self.state.lock(), cost)
    }

    /// Admits a mutation, waiting for answers to leave.
    pub(crate) fn admit(&self, cost: usize) {
        let mut state = self.state.lock();
        while !self.admit_locked(&mut state, cost) {
            self.changed.wait(&mut state);
        }
    }

    fn admit_locked(&self, state: &mut State, cost: usize) -> bool {
        let fits = state.in_flight == 0 || state.in_flight + cost <= self.in_flight_max;
        if fits {
            state.in_flight += cost;
        }
        fits
    }

    /// Gives back what was admitted for a mutation that never came.
    pub(crate) fn withdraw(&self, cost: usize) {
        self.give_back(&mut self.state.lock(), cost);
    }

    /// Puts the answer to a mutation down; it leaves with the next flush or kick.
    pub(crate) fn post(&self, cookie: u64, cost: usize, result: Result<(), Errno>) {
        let mut state = self.state.lock();
        if state.broken {
            self.give_back(&mut state, cost);
            return;
        }
        match result {
            Ok(()) => chunk::success(&mut state.pending, cookie),
            Err(e) => chunk::failure(&mut state.pending, self.style, cookie, e, &e.to_string()),
        }
        state.pending_cost += cost;
    }

    /// Sends what is pending without ever waiting. Nothing for the owner: it flushes when its round ends.
    pub(crate) fn kick(self: &Arc<Self>) {
        if thread::current().id() == self.owner {
            return;
        }
        let mut state = self.state.lock();
        if state.writing || state.broken {
            return;
        }
        state.writing = true;
        while !state.pending.is_empty() {
            let mut batch = mem::take(&mut state.pending);
            let cost = mem::take(&mut state.pending_cost);
            let sent = MutexGuard::unlocked(&mut state, || {
                self.transport.send(&[IoSlice::new(&batch)], Wait::Never)
            });
            let sent = match sent {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.give_back(&mut state, cost);
                    return self.fail(&mut state);
                }
            };
            if sent == batch.len() {
                self.give_back(&mut state, cost);
                continue;
            }
            batch.drain(..sent);
            batch.append(&mut state.pending);
            state.pending = batch;
            state.pending_cost += cost;
            return self.hand_over(&mut state);
        }
        self.rest(&mut state);
    }

    /// The socket is full: lets a thread that may wait hold the role until all is sent.
    fn hand_over(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) {
        let outbox = self.clone();
        let helper = thread::Builder::new()
            .name("nbd-slow-client".into())
            .spawn(move || {
                // A failure is recorded, and seen by the owner.
                let _ = outbox.write(&mut outbox.state.lock(), &[]);
            });
        if helper.is_err() {
            self.fail(state);
        }
    }

    /// The owner sends everything pending, then `data`.
    pub(crate) fn send(&self, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        while state.writing {
            self.changed.wait(&mut state);
        }
        if state.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.pending.is_empty() && data.is_empty() {
            return Ok(());
        }
        state.writing = true;
        self.write(&mut state, data)
    }

    /// Writes until nothing is pending, then gives up the role.
    fn write(&self, state: &mut MutexGuard<'_, State>, mut data: &[u8]) -> io::Result<()> {
        while !(state.pending.is_empty() && data.is_empty()) {
            let batch = mem::take(&mut state.pending);
            let cost = mem::take(&mut state.pending_cost);
            let sent = MutexGuard::unlocked(state, || send_all(&*self.transport, &batch, data));
            data = &[];
            self.give_back(state, cost);
            if let Err(e) = sent {
                self.fail(state);
                return Err(e);
            }
        }
        self.rest(state);
        Ok(())
    }

    fn give_back(&self, state: &mut State, cost: usize) {
        state.in_flight = state
            .in_flight
            .checked_sub(cost)
            .expect("no more is given back than was admitted");
        self.changed.notify_all();
    }

    fn rest(&self, state: &mut State) {
        state.writing = false;
        self.changed.notify_all();
    }

    /// Nothing more can be sent. Wakes the owner, whether it receives or waits here.
    fn fail(&self, state: &mut State) {
        state.broken = true;
        state.pending.clear();
        let cost = mem::take(&mut state.pending_cost);
        self.give_back(state, cost);
        self.rest(state);
        self.transport.close();
    }

    /// Waits until the client is owed nothing; false when that takes longer than the limit.
    pub(crate) fn drain(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.in_flight > 0 || state.writing {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.in_flight == 0 && !state.writing;
            }
        }
        true
    }

    /// Ends the connection; later answers go nowhere.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.broken = true;
        if !state.writing {
            state.pending.clear();
            let cost = mem::take(&mut state.pending_cost);
            self.give_back(&mut state, cost);
        }
        drop(state);
        self.transport.close();
    }
}
