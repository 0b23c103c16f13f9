//! The peer protocol: what a production node and a recovery node say to each other, and how they know each other.
//!
//! From the outside in:
//!
//! - [`identity`], [`tls`], [`pairing`]: every node has one key; two nodes know each other by the [`Fingerprint`] of it.
//!   TLS 1.3 always, both sides authenticated, no authority, no names. A one-time string introduces two nodes.
//! - [`message`], [`codec`]: the messages and their bytes (`docs/formats/wire.md`).
//! - [`sender`], [`receiver`]: the two ends of a context's stream as machines without I/O or clock: a message goes in,
//!   actions come out. The daemon and the simulator run the same code.
//! - [`conn`], [`dial`], [`call`]: the rim that moves messages over TCP, the only part that knows tokio.
//!
//! Frames are opaque here: canonical bytes that `journal` makes and checks, with the few numbers beside them that
//! ordering needs.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod base32;
mod body;
pub mod call;
pub mod codec;
mod compress;
pub mod conn;
pub mod dial;
pub mod fingerprint;
pub mod identity;
pub mod message;
pub mod pairing;
pub mod receiver;
pub mod sender;
mod take;
pub mod tls;

pub use call::{CallError, NodeClient, serve_requests};
pub use codec::{CodecError, Decoder, Encoded};
pub use conn::{ConnError, Connection, ConnectionOptions, Incoming, LinkStats, Outgoing};
pub use dial::{Backoff, Dialer};
pub use fingerprint::Fingerprint;
pub use identity::{Identity, IdentityError};
pub use message::{
    Ack, Copy, Digest, Frame, Hello, Jump, JumpCause, Kind, Lacks, Message, NodeCard, Offer, Position,
    Refuse, RefuseCode, Request, Response, Seal, Version, Welcome,
};
pub use pairing::{Joining, PairingCode, PairingDesk, PairingError};
pub use receiver::{Receiver, ReceiverAction, ReceiverLocal};
pub use sender::{LostCopy, Resume, SendBound, Sender, SenderAction, SenderCursors, SenderOptions, Want};
pub use tls::{Accepted, Expect, Pins, Purpose, Tls, TlsError};

/// Why a peer's message cannot be right where it stands; the connection ends, the next one starts afresh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message that this state does not know.
    #[error("the peer sent {kind:?} while {state}")]
    Unexpected {
        /// What came.
        kind: Kind,
        /// What this end was doing.
        state: &'static str,
    },
    /// A frame, seal, copy or jump that does not continue the stream.
    #[error("{what} {got} does not continue the stream at {expected}")]
    Order {
        /// Which number.
        what: &'static str,
        /// What came.
        got: u64,
        /// What would have continued.
        expected: u64,
    },
    /// The chain digest of a seal is not that of the frames before it.
    #[error("the seal of container {lfc} at {seq} has another digest than its frames")]
    SealDigest {
        /// The container.
        lfc: u64,
        /// Its last record.
        seq: u64,
    },
    /// An acknowledgement of what was never sent, or one that takes back an earlier one.
    #[error("the peer acknowledges {what} {got}, which is outside {least} to {most}")]
    AckRange {
        /// Which cursor.
        what: &'static str,
        /// What came.
        got: u64,
        /// Least possible.
        least: u64,
        /// Most possible.
        most: u64,
    },
    /// The peer's answer does not fit the greeting.
    #[error("the peer's welcome does not fit: {why}")]
    Welcome {
        /// What is wrong with it.
        why: &'static str,
    },
}
