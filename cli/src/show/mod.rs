//! What is written: pure functions from answers to text.

mod about;
mod jobs;
mod json;
mod map;
mod offline;
mod point;
mod ra;
mod role;
mod run;
mod status;
mod table;
mod verify;

pub(crate) use about::{bar_style, failure, next, progress, question, step};
pub(crate) use jobs::asked;
pub(crate) use json::{json, json_lines, json_with_old};
pub use offline::dump_line;
pub(crate) use point::{head, resolved};

use crate::{verbs::Shape, zone::Zone};
use control::{Moment, Reply};

/// For whom, where and when it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// Zone of dates.
    pub zone: Zone,
    /// The present.
    pub now: Moment,
    /// `-v`.
    pub verbose: bool,
    /// Kind of answer.
    pub shape: Shape,
    /// Columns of the terminal at whose edge lines may be cut; `None`: a program reads.
    pub columns: Option<usize>,
}

impl View {
    pub(crate) const fn plain(zone: Zone, now: Moment) -> Self {
        Self {
            zone,
            now,
            verbose: false,
            shape: Shape::Plain,
            columns: None,
        }
    }
}

/// A result, for people.
pub(crate) fn reply(reply: &Reply, view: &View) -> String {
    match reply {
        Reply::Status(r) if view.shape == Shape::Monitor => status::monitor(r),
        Reply::Status(r) => status::screen(r, view),
        Reply::Snapshot(r) => ra::snapshot(r, view),
        Reply::Restore(r) => ra::restore(r, view),
        Reply::Release(r) => ra::release(r, view),
        Reply::Windows(r) => ra::windows(r, view),
        Reply::Marks(r) => ra::marks(&r.marks, view),
        Reply::Mark(r) => run::mark(r, view),
        Reply::Mount(r) => run::mount(r),
        Reply::Unmount(r) => run::unmount(r),
        Reply::Start(r) => run::start(r),
        Reply::Stop(r) => run::stop(r),
        Reply::Role(r) => role::changed(r, view),
        Reply::Dirty(r) => map::dirty(r),
        Reply::Grow(r) => run::grow(r),
        Reply::Map(r) => map::maps(r),
        Reply::Protect(r) => run::protect(r),
        Reply::Pins(r) => run::pins(r, view),
        Reply::PinReleased(p) => run::pin_released(p),
        Reply::Wait(r) => run::wait(r),
        Reply::Jobs(r) => jobs::jobs(r, view),
        Reply::Job(r) => jobs::job(r, view),
        Reply::Cancelled(r) => jobs::cancelled(r),
        Reply::Log(r) => jobs::log(r, view),
        Reply::NodeInfo(r) => run::node(r, view),
        Reply::PairOpen(r) => run::pair_open(r, view),
        Reply::PairJoin(r) => run::pair_join(r),
        Reply::Probe(r) => run::probe(r),
        Reply::Verify(r) => verify::verify(r),
        Reply::Plan(r) => run::plan(r, view),
        Reply::Check(r) => offline::check(r),
        Reply::Dump(r) => offline::dump(r),
        Reply::Salvage(r) => offline::salvage(r),
        Reply::LogWrites(r) => offline::log_writes(r),
        // A kind that this release does not know: better its JSON than nothing.
        other => format!("{}\n", serde_json::to_string(other).unwrap_or_default()),
    }
}
