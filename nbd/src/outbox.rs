//! Who may write to a client's socket, and how much a client may have under way.
//!
//! # Overview
//!
//! Answers come from two sides. The *owner*, the thread of the connection, posts answers while it works through a round
//! of requests and sends them together at its end; its [readers](crate::readers) send what they have read. *Others* (a thread
//! that syncs, the leader of a group commit) post answers whenever they like and [kick](Outbox::kick) the outbox; they must
//! never wait for a client.
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
//!   the socket is broken. So bytes in flight are bounded, and zero means that the client is owed nothing but what readers have
//!   taken.
//! * An answer posted by the owner leaves at the latest when the owner flushes, which it does before it waits.

use crate::{
    Errno,
    chunk::Form,
    transport::{Transport, Wait, send_all},
};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    io::{self, IoSlice},
    mem,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// What a mutation costs besides its payload: bounds the number of those that have none.
pub(crate) const MUTATION_BYTES: usize = 1024;

/// The outgoing side of a connection.
pub(crate) struct Outbox {
    transport: Arc<dyn Transport>,
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
    pub(crate) fn new(transport: Arc<dyn Transport>, in_flight_max: usize) -> Arc<Self> {
        Arc::new(Self {
            transport,
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
    pub(crate) fn post(&self, form: Form, cost: usize, result: Result<(), Errno>) {
        let mut state = self.state.lock();
        if state.broken {
            self.give_back(&mut state, cost);
            return;
        }
        match result {
            Ok(()) => form.success(&mut state.pending),
            Err(e) => form.failure(&mut state.pending, e, &e.to_string()),
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
            let sent = MutexGuard::unlocked(&mut state, || self.send_at_once(&batch));
            let Ok((taken, all_sent)) = sent else {
                self.give_back(&mut state, cost);
                return self.fail(&mut state);
            };
            if all_sent {
                self.give_back(&mut state, cost);
                continue;
            }
            batch.drain(..taken);
            batch.append(&mut state.pending);
            state.pending = batch;
            state.pending_cost += cost;
            return self.hand_over(&mut state);
        }
        self.rest(&mut state);
    }

    /// How much the transport took without waiting, and whether all of it is in the socket.
    fn send_at_once(&self, batch: &[u8]) -> io::Result<(usize, bool)> {
        let at_once = |done: io::Result<usize>| match done {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            done => done.map(Some),
        };
        let taken = at_once(self.transport.send(&[IoSlice::new(batch)], Wait::Never))?.unwrap_or(0);
        let flushed = at_once(self.transport.flush(Wait::Never).map(|()| 0))?.is_some();
        Ok((taken, taken == batch.len() && flushed))
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

    /// The owner or one of its readers sends everything pending, then `data`.
    pub(crate) fn send(&self, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        while state.writing && !state.broken {
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

    /// Writes until nothing is pending or held back, then gives up the role.
    fn write(&self, state: &mut MutexGuard<'_, State>, mut data: &[u8]) -> io::Result<()> {
        loop {
            let batch = mem::take(&mut state.pending);
            let cost = mem::take(&mut state.pending_cost);
            let send = || {
                send_all(&*self.transport, &batch, data)?;
                self.transport.flush(Wait::Block)
            };
            let sent = MutexGuard::unlocked(state, || panic::catch_unwind(AssertUnwindSafe(send)));
            data = &[];
            self.give_back(state, cost);
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    self.fail(state);
                    return Err(e);
                }
                // Others wait for the role.
                Err(panic) => {
                    self.fail(state);
                    panic::resume_unwind(panic);
                }
            }
            if state.pending.is_empty() {
                self.rest(state);
                return Ok(());
            }
        }
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

    /// Nothing more is received; what was is carried out and answered, and then the connection ends.
    pub(crate) fn close_read(&self) {
        self.transport.close_read();
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
        self.changed.notify_all();
        drop(state);
        self.transport.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reply, chunk::Style};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A client that can stop to read.
    #[derive(Default)]
    struct Client {
        got: Mutex<Vec<u8>>,
        sends: AtomicUsize,
        full: AtomicBool,
        closed: AtomicBool,
    }

    impl Transport for Client {
        fn recv(&self, _: &mut Vec<u8>, _: Wait) -> io::Result<usize> {
            Ok(0)
        }

        fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize> {
            while self.full.load(Ordering::SeqCst) {
                if self.closed.load(Ordering::SeqCst) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if wait == Wait::Never {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                thread::yield_now();
            }
            self.sends.fetch_add(1, Ordering::SeqCst);
            let mut got = self.got.lock();
            // Partial sends are ordinary; without waiting they mean that the socket is full.
            let limit = if wait == Wait::Never { usize::MAX } else { 50 };
            let mut n = 0;
            for b in bufs {
                let part = b.len().min(limit - n);
                got.extend_from_slice(&b[..part]);
                n += part;
            }
            Ok(n)
        }

        fn set_timeout(&self, _: Option<Duration>) -> io::Result<()> {
            Ok(())
        }

        fn close_read(&self) {}

        fn close(&self) {
            self.closed.store(true, Ordering::SeqCst);
        }
    }

    const COST: usize = 100;
    const LONG: Duration = Duration::from_secs(60);

    fn outbox(in_flight_max: usize) -> (Arc<Client>, Arc<Outbox>) {
        let client = Arc::new(Client::default());
        let outbox = Outbox::new(client.clone(), in_flight_max);
        (client, outbox)
    }

    fn form(cookie: u64) -> Form {
        Form {
            style: Style::Simple,
            cookie,
            offset: 0,
        }
    }

    fn reply(outbox: &Arc<Outbox>, cookie: u64) -> Reply {
        outbox.admit(COST);
        Reply::to_client(outbox.clone(), form(cookie), COST)
    }

    /// Cookies in the order in which they arrived.
    fn cookies(client: &Client) -> Vec<u64> {
        let got = client.got.lock();
        got.chunks(16)
            .map(|c| u64::from_be_bytes(c[8..].try_into().unwrap()))
            .collect()
    }

    #[test]
    fn answers_of_the_owner_wait_for_its_flush_and_those_of_others_do_not() {
        let (client, outbox) = outbox(1 << 20);
        for cookie in 0..3 {
            reply(&outbox, cookie).done(Ok(()));
        }
        assert!(cookies(&client).is_empty());
        let other = reply(&outbox, 3);
        thread::scope(|s| s.spawn(|| other.done(Ok(()))).join().unwrap());
        assert_eq!(cookies(&client), [0, 1, 2, 3]);
        reply(&outbox, 4).done(Ok(()));
        outbox.send(b"0123456789abcdef").unwrap();
        assert_eq!(client.got.lock().len(), 6 * 16);
        assert!(outbox.drain(LONG));
    }

    #[test]
    fn answers_given_together_leave_together() {
        let (client, outbox) = outbox(1 << 20);
        let replies: Vec<_> = (0..3).map(|c| (reply(&outbox, c), Ok(()))).collect();
        thread::scope(|s| s.spawn(|| Reply::finish_all(replies)).join().unwrap());
        assert_eq!(cookies(&client), [0, 1, 2]);
        assert_eq!(client.sends.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn nobody_but_the_owner_waits_for_a_client_that_does_not_read() {
        let (client, outbox) = outbox(1 << 20);
        client.full.store(true, Ordering::SeqCst);
        let replies: Vec<_> = (0..100).map(|c| reply(&outbox, c)).collect();
        thread::scope(|s| {
            s.spawn(|| replies.into_iter().for_each(|r| r.done(Ok(()))))
                .join()
                .unwrap()
        });
        assert!(!outbox.drain(Duration::from_millis(1)));
        client.full.store(false, Ordering::SeqCst);
        assert!(outbox.drain(LONG));
        assert_eq!(cookies(&client), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_closed_client_is_owed_nothing_once_all_is_answered() {
        let (client, outbox) = outbox(1 << 20);
        client.full.store(true, Ordering::SeqCst);
        let (sent, late) = (reply(&outbox, 0), reply(&outbox, 1));
        thread::scope(|s| s.spawn(|| sent.done(Ok(()))).join().unwrap());
        outbox.close();
        assert!(outbox.send(b"x").is_err());
        assert!(!outbox.drain(Duration::from_millis(1)));
        late.done(Ok(()));
        assert!(outbox.drain(LONG));
    }

    #[test]
    fn bytes_in_flight_are_bounded_but_one_mutation_always_fits() {
        let (_, outbox) = outbox(250);
        assert!(outbox.try_admit(1000) && !outbox.try_admit(1));
        outbox.withdraw(1000);
        let first = reply(&outbox, 0);
        assert!(outbox.try_admit(150) && !outbox.try_admit(1));
        thread::scope(|s| {
            s.spawn(|| first.done(Ok(())));
            outbox.admit(100);
        });
    }

    #[test]
    fn answers_from_many_threads_all_arrive_whole() {
        let (client, outbox) = outbox(1 << 20);
        thread::scope(|s| {
            for t in 0..4 {
                let outbox = &outbox;
                s.spawn(move || (0..500).for_each(|i| reply(outbox, t * 500 + i).done(Ok(()))));
            }
            for _ in 0..200 {
                let mut of_owner = Vec::new();
                form(u64::MAX).success(&mut of_owner);
                outbox.send(&of_owner).unwrap();
            }
        });
        assert!(outbox.drain(LONG));
        let mut got = cookies(&client);
        got.retain(|c| *c != u64::MAX);
        got.sort_unstable();
        assert_eq!(got, (0..2000).collect::<Vec<_>>());
    }
}
