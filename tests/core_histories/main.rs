//! The core histories: both hosts with their real parts (journal, tap, snapshot engine, stream machines) on the fault
//! seam, driven step by step, crashed at every sync, and compared with the oracle.
//!
//! | what | where |
//! | --- | --- |
//! | the parts of a host, as the daemon puts them together | [`hosts`] |
//! | the stream | [`link`] |
//! | steps, promises, comparisons | [`world`] |
//! | which histories | [`histories`] |
//! | one level down: real files and the real store | [`below`] |
//! | a production that builds undo | [`acting`] |
//! | write-back, discards, bytes | [`writes`] |
//! | the tap under races and failures | [`tap`] |
//! | readers while a container is applied | [`readers`] |
//!
//! `BACKSTAY_SEED=0x…` plays one seed again, `BACKSTAY_SEEDS=20` tries twenty times as many.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod acting;
mod below;
mod histories;
mod hosts;
mod link;
mod peers;
mod readers;
mod resync;
mod tap;
mod world;
mod writes;

/// Bytes of a tail, as a journal in files has them.
const TAIL: u64 = journal::tail_bytes(hosts::LFC);
