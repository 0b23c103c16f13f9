//! A Network Block Device server: the protocol, and nothing of what is behind it.
//!
//! The crate knows no journal and no snapshot. Whoever serves something implements two traits: [`Exports`] turns the
//! name a client asks for into an [`Export`], and an [`Export`] reads, takes batches of [`Mutation`]s and tells which
//! parts of it are zero. [`Server`] does the rest.
//!
//! # Overview
//!
//! One thread a connection, blocking, no executor: a request crosses no thread on its way in. The connection thread
//! takes everything its socket holds, parses all complete requests in it, hands the mutations among them to
//! [`Export::submit`] in **one call** (the batch becomes a group commit), runs the reads, the short ones in one call as well
//! and with a few more threads where they take long, and sends all answers that this produced with one system call. An answer to a mutation may also come later and from any thread (a flush is
//! usually answered by whoever syncs); such a thread never blocks on a slow client.
//!
//! | module | what it holds | does I/O |
//! | --- | --- | --- |
//! | `proto` | numbers of the protocol, big-endian reading and writing | no |
//! | `option` | the payloads of negotiation options | no |
//! | `answer` | the answers to them, as bytes | no |
//! | `handshake` | the negotiation machine: bytes in, bytes out | no |
//! | `context` | metadata contexts and block status | no |
//! | `request` | transmission requests: parsed, then judged | no |
//! | `chunk` | every reply, simple, structured and extended, as bytes | no |
//! | `reply` | the promise of an answer, which travels with a mutation | – |
//! | `inbox` | what was received and not yet taken | yes |
//! | `outbox` | who may write to the socket, back-pressure, bytes in flight | yes |
//! | `reads` | reads and block status run against an export | yes |
//! | `readers` | more threads for a connection whose reads take long | yes |
//! | `session` | what a negotiation agreed on | no |
//! | `tls` | certificates, and a connection in TLS | yes |
//! | `transport` | what a connection needs of a socket or of TLS over it | yes |
//! | `connection` | the thread of one client | yes |
//! | `relay` | a client that outlives its server, and serves what it gets | yes |
//! | `listen` | listening sockets | yes |
//! | `server` | the register of connections, stop | yes |
//!
//! # Invariants
//!
//! * Every mutation is answered exactly once; a [`Reply`] dropped unanswered answers [`Errno::Io`].
//! * A connection thread never waits for its socket while it holds mutations that it did not submit or answers that it
//!   did not send.
//! * Nothing that a client names (a length, a count) is allocated before it is checked against a limit.
//! * The `Arc<dyn Export>` of a connection is dropped when the connection ends, after everything it had submitted was
//!   answered: that is how a view learns that nobody reads it any more.
//!
//! # What it does not do
//!
//! It does not order requests that overlap and are in flight at the same time: the protocol leaves that to the client.
//! It retries nothing; a [`Relay`] in front of it does. What is advertised and refused is in `docs/formats/nbd.md`.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod answer;
mod chunk;
mod connection;
mod context;
mod errno;
mod export;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden;
mod handshake;
mod inbox;
mod limits;
mod listen;
mod option;
mod outbox;
mod proto;
mod readers;
mod reads;
mod relay;
mod reply;
mod request;
mod server;
mod session;
mod tls;
mod transport;

pub use errno::Errno;
pub use export::{
    BlockSizes, DefaultExport, Export, ExportEntry, ExportInfo, Exports, Extent, MetaContext, Mutation, Op,
    OpenError, Status,
};
pub use limits::Limits;
pub use listen::ListenError;
pub use relay::{Relay, RelayError, RelayEvent, Relayed};
pub use reply::Reply;
pub use server::{Security, Server};
pub use tls::{Tls, TlsError, TlsFiles};
