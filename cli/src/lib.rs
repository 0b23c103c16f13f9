//! Every operator command: the same names, letters and strings as the AIX product where it has them.
//!
//! # Overview
//!
//! One binary, many names ([`names`]). A command line becomes a [`control::Command`] (`verbs`), is sent to the daemon of
//! the chosen node over its unix socket ([`node`]), and what comes back is written for people or as one JSON object
//! (`show`). The command line decides nothing about volumes, roles or points: it only refuses what makes no sense as
//! typed (64), turns dates into instants ([`date`]) and instants into dates ([`zone`]).
//!
//! # Where things are written
//!
//! - **stdout**: results only: tables, the steps that procedures show, `status`. With `--json` exactly one line.
//! - **stderr**: all about the run: the head line first, the resolved point, questions, progress, `Error:`,
//!   `Caused by:`, `Hint:`, and `Next:` last. `status` is the exception: its head line and `Next:` are results.
//! - Nothing is wrapped, and nothing depends on the locale.
//!
//! # Invariants
//!
//! - Only [`Code::Done`](control::Code::Done) is zero, and a command whose result could not be written is not done.
//! - A question is answered by one line of stdin, terminal or not; the end of input is a no.
//! - Ctrl-C ends the program and not the work: 130, and the number of the job on stderr.
//! - Nothing is sent before the whole command line has been understood.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod args;
mod console;
pub mod date;
mod env;
mod error;
mod help;
mod interrupt;
mod links;
pub mod names;
pub mod node;
mod relay;
mod run;
mod show;
mod size;
mod talk;
#[cfg(test)]
mod tests;
mod verbs;
pub mod zone;

pub use args::{AttachHelperArgs, InitArgs};
pub use node::config_dir;
pub use show::dump_line;
pub use verbs::offline::{Offline, OfflineTool, StatePlace};

use control::{Failure, NextStep, Outcome, client::Listener, status::StatusReply};
use std::{ffi::OsString, path::Path, process::ExitCode};

/// What the command line needs from the program around it, so that it needs no edge to the daemon's code.
pub trait Hooks {
    /// `serve --config FILE`: runs the daemon in the foreground until it is told to stop.
    ///
    /// # Errors
    /// When it cannot start, or ended otherwise than asked.
    fn serve(&self, config: &Path) -> Result<(), Box<Failure>>;

    /// `attach-helper`: makes devices and mounts for a daemon without privileges, until it is told to stop.
    ///
    /// # Errors
    /// When it cannot start.
    fn attach_helper(&self, args: &AttachHelperArgs) -> Result<(), Box<Failure>>;

    /// `init`: writes the node's configuration, and opens or joins a pairing.
    ///
    /// # Errors
    /// When it was refused or failed.
    fn init(&self, args: &InitArgs) -> Result<InitReport, Box<Failure>>;

    /// `fsck-journal`, `dump`, `salvage`: reads the state of a stopped node and changes nothing of it. Progress and lines go to the
    /// listener as they come.
    fn offline(&self, order: &Offline, listener: &mut dyn Listener) -> Outcome;

    /// What the disk says of a node whose daemon is dead; marked as old by the caller. An error when it is not of this version.
    fn status_from_disk(&self, config: &Path) -> Result<Option<StatusReply>, String> {
        let _ = config;
        Ok(None)
    }
}

/// What `init` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitReport {
    /// Results, one line each: files written, the pairing string.
    pub lines: Vec<String>,
    /// What to type next.
    pub next: Option<NextStep>,
}

/// Runs one command line, program name first, and answers what the process exits with.
#[must_use]
pub fn run(args: Vec<OsString>, hooks: &dyn Hooks) -> ExitCode {
    let mut console = console::Console::of_process();
    let code = run::run(args, hooks, &env::Env::of_process(), &mut console);
    ExitCode::from(code.number())
}
