//! Backstay: a journaled point-in-time replica appliance for Linux block volumes.
//!
//! This crate is the composition root: the daemon ([`node`]), its contexts ([`context`]), the agents on the link
//! ([`agent`]), the exports ([`exports`]) and what it does for each command ([`ops`]). The journal, the snapshot engine,
//! NBD, the peer protocol and the command line are crates of their own that do not know each other.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod access;
pub mod activation;
pub mod agent;
pub mod applying;
pub mod attach;
pub mod bell;
pub mod boot;
pub mod clock;
pub mod config;
pub mod context;
pub mod daemon;
pub mod damage;
pub mod exports;
pub mod format;
pub mod hooks;
pub mod init;
pub mod jobs;
pub mod maps;
pub mod node;
pub mod offline;
pub mod ops;
pub mod peer;
pub mod restoring;
pub mod roles;
mod strangers;
pub mod verify;
pub mod volume_identity;
pub mod withheld;

use cli::{AttachHelperArgs, Hooks, InitArgs, InitReport, Offline};
use control::{Code, Failure, Outcome, client::Listener, status::StatusReply};
use std::path::Path;

/// What the command line needs of the daemon's code.
pub struct Program;

impl Hooks for Program {
    fn serve(&self, config: &Path) -> Result<(), Box<Failure>> {
        daemon::serve(config).map_err(|e| Box::new(chain(Code::Refused, &e)))
    }

    fn attach_helper(&self, args: &AttachHelperArgs) -> Result<(), Box<Failure>> {
        daemon::log();
        let setup = attach::helper::Setup::of(args).map_err(|e| Box::new(chain(Code::Usage, &e)))?;
        attach::helper::serve(&setup).map_err(|e| Box::new(chain(Code::Refused, &e)))
    }

    fn init(&self, args: &InitArgs) -> Result<InitReport, Box<Failure>> {
        init::init(args)
    }

    fn offline(&self, order: &Offline, listener: &mut dyn Listener) -> Outcome {
        offline::run(order, listener)
    }

    fn status_from_disk(&self, config: &Path) -> Result<Option<StatusReply>, String> {
        let Ok(config) = config::NodeConfig::load(config) else {
            return Ok(None);
        };
        format::status_from(&node::status_file(&config.state_dir)).map_err(|e| e.to_string())
    }
}

/// An error with its causes, as commands show it.
fn chain(code: Code, error: &anyhow::Error) -> Failure {
    let mut failure = Failure::new(code, error.to_string());
    failure.caused_by = error.chain().skip(1).map(ToString::to_string).collect();
    failure
}
