//! The daemon's API: what a command asks and what the daemon answers.
//!
//! # One request, one connection
//!
//! The daemon listens on a unix stream socket (mode 0600: whoever may open it may do everything). A client connects,
//! sends one [`Request`] as one line of JSON, and reads [`Event`]s, one line of JSON each, until [`Event::Done`].
//!
//! ```text
//! client                                         daemon
//!   Request {version, command, options}   ──▶
//!                                         ◀──   Head        at most once, first, so that the operator sees who answers
//!                                         ◀──   Begun       the number of the job, if it is one
//!                                         ◀──   Resolved    the exact point, before anything is done to it
//!                                         ◀──   Step, Line, Progress        as the work goes on, in order
//!                                         ◀──   Ask
//!   Answer {yes}                          ──▶
//!                                         ◀──   Done(Outcome)               exactly once, last
//! ```
//!
//! # Rules
//!
//! - The daemon asks each question whatever the options say; a client that was told `-q` answers yes by itself, so that
//!   what would be done is shown in both cases. A connection that ends instead of an answer is a no.
//! - A client that goes away without a question pending only detaches: the work goes on, and [`JobVerb::Attach`] hears it
//!   from the beginning. Whoever attaches is shown the questions ([`Event::Asked`]); only the client that sent the request
//!   answers them.
//! - [`VERSION`] is one number for the whole vocabulary. A request of another version is refused with both numbers and
//!   is not looked into any further; nothing is guessed from half-known fields.
//! - A line has at most [`codec::LINE_BYTES_MAX`] bytes, on both sides.
//! - Times are [`Moment`]s, sizes are bytes. Zones, units and columns are the client's business.
//!
//! # What this is not
//!
//! No network protocol (that is `wire`), no storage format, no policy: every check is made by the daemon.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod client;
pub mod code;
pub mod codec;
pub mod event;
pub mod jobs;
pub mod offline;
pub mod point;
pub mod reply;
pub mod request;
pub mod server;
pub mod status;

pub use code::Code;
pub use event::{
    Answer, Event, FailoverQuestion, Failure, FixedQuestion, HeadContext, HeadLine, NextStep, Outcome,
    PeerLine, PeerState, Progress, Question, RestoreQuestion, Step, Unit,
};
pub use jobs::{Holder, JobState, JobVerb};
pub use point::{Gap, MissingInfo, Moment, NearPoint, PointInfo, Side, WindowInfo};
pub use reply::Reply;
pub use request::{Command, MapVerb, Options, Request, WaitFor};

/// Version of everything in this crate that crosses the socket.
pub const VERSION: u32 = 1;
