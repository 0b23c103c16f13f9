//! What a connection has received and not yet taken.

use crate::{
    proto::Take,
    transport::{Transport, Wait},
};
use std::io;

/// Room for what one receive may bring. Holds the longest option, and dozens of small writes.
const RECEIVE_BYTES: usize = 128 << 10;
const _: () = assert!(crate::option::PAYLOAD_BYTES_MAX + 1024 < RECEIVE_BYTES);

/// A buffer of fixed size that is filled at its end and taken from at its front.
#[derive(Debug)]
pub(crate) struct Inbox {
    buf: Vec<u8>,
    taken: usize,
    /// The last receive filled all the room: there is likely more.
    was_full: bool,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            buf: Vec::with_capacity(RECEIVE_BYTES),
            taken: 0,
            was_full: false,
        }
    }

    pub(crate) fn unread(&self) -> Take<'_> {
        Take(&self.buf[self.taken..])
    }

    pub(crate) fn len(&self) -> usize {
        self.buf.len() - self.taken
    }

    /// Whether the socket likely holds more than was received.
    pub(crate) fn likely_more(&self) -> bool {
        self.was_full
    }

    /// Takes `n` bytes, which must be there.
    pub(crate) fn take(&mut self, n: usize) -> &[u8] {
        let at = self.taken;
        self.taken += n;
        &self.buf[at..self.taken]
    }

    /// Receives behind what is unread, which must leave room: it is less than one item.
    pub(crate) fn receive(&mut self, from: &dyn Transport, wait: Wait) -> io::Result<usize> {
        self.buf.drain(..self.taken);
        self.taken = 0;
        let room = self.buf.capacity() - self.buf.len();
        let n = from.recv(&mut self.buf, wait)?;
        // Nearly: TLS has a few bytes of its own in what a socket gives at a time.
        self.was_full = n >= room - room / 8;
        Ok(n)
    }

    /// Puts back what was received past the end of a payload. The inbox must be empty.
    pub(crate) fn put_back(&mut self, surplus: &[u8]) {
        self.buf.clear();
        self.taken = 0;
        self.buf.extend_from_slice(surplus);
    }
}
