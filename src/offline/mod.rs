//! Tools for a stopped node: what is in its state directory, without a daemon and without the peer.
//!
//! # Overview
//!
//! `fsck-journal`, `dump` and `salvage` run in the command's own process. They take the node's lock, shared: a daemon that runs
//! keeps them out, and they keep one from starting. The journal is opened over a shadow ([`journal::ShadowStore`]), volumes and
//! overlays to be read alone, so that recovery runs as in a start and not a byte below the state directory changes.
//!
//! # What it does not do
//!
//! It mends nothing and moves no role. A copy of a state directory has no lock that would keep a daemon of the copy out where
//! the file `lock` was not copied.

mod check;
mod dump;
mod log_writes;
mod salvage;
mod stopped;

pub use stopped::Stopped;

use cli::{Offline, OfflineTool};
use control::{
    Code, Event, Failure, Outcome, PointInfo, Progress, Reply, client::Listener, event::Unit,
    reply::PlanReply,
};

type Done<T = Reply> = Result<T, Box<Failure>>;

/// Does what a command line asks.
pub fn run(order: &Offline, listener: &mut dyn Listener) -> Outcome {
    match done(order, listener) {
        Ok(reply) => Outcome::ok(reply),
        Err(failure) => Outcome::failed(*failure),
    }
}

fn done(order: &Offline, listener: &mut dyn Listener) -> Done {
    let node = Stopped::open(&order.place, order.context)?;
    match &order.tool {
        OfflineTool::Check => check::check(&node, listener),
        OfflineTool::Dump { what, hex } => dump::dump(&node, what, *hex, order.collect, listener),
        OfflineTool::LogWrites {
            file,
            volume,
            from,
            to,
            force,
        } => {
            let range = (from.as_ref(), to);
            let out = (file.as_path(), *force);
            log_writes::export(&node, volume.as_deref(), range, out, order.dry_run, listener)
        }
        OfflineTool::Salvage {
            at,
            volume,
            out,
            best_effort,
            force,
        } => {
            let salvage = salvage::Order {
                at,
                volume: volume.as_deref(),
                out,
                best_effort: *best_effort,
                force: *force,
                dry_run: order.dry_run,
            };
            salvage::salvage(&node, &salvage, listener)
        }
    }
}

fn refused(text: impl Into<String>) -> Box<Failure> {
    Box::new(Failure::new(Code::Refused, text))
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Box<Failure> {
    move |e| refused(format!("{what}: {e}"))
}

/// What `-n` answers.
fn plan(point: PointInfo, steps: Vec<String>) -> Reply {
    Reply::Plan(PlanReply {
        point: Some(point),
        steps,
        ..PlanReply::default()
    })
}

/// Says how far a long step is.
fn progress(listener: &mut dyn Listener, what: impl Into<String>, done: u64, total: u64, unit: Unit) {
    listener.event(Event::Progress(Progress {
        what: what.into(),
        done,
        total: Some(total),
        unit,
        rate: None,
        eta_s: None,
        job: None,
    }));
}
