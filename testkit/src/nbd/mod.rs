//! A small NBD client for oracle workloads against real nodes.
//!
//! [`Client`] speaks the protocol: fixed newstyle over a unix socket, `NBD_OPT_GO`, structured or simple replies, any
//! number of requests in flight. It checks what it receives: a reply to nothing, a chunk outside of its read, a byte sent
//! twice or never is an error, because a server under test is not to be trusted.
//!
//! [`Session`] keeps a [`Ledger`] over many connections: which writes were answered, which a flush covered, and which are
//! unknown because the connection broke. After a crash the ledger says which versions of a block may be there.

mod client;
mod handshake;
mod ledger;
mod reply;
mod session;
mod wire;

pub use client::{Client, Completion, Error, Request};
pub use ledger::{Broken, Entry, Kind, Ledger, Promise, State};
pub use session::{Session, Step};

#[cfg(test)]
mod tests;
