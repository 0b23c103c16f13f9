//! Commands that go on without the terminal that typed them.
//!
//! # Overview
//!
//! Every command that may change something is a [`Job`]: a thread of its own does the work and leaves its events in the job,
//! and whoever wants to hear them, the client that sent the request first of all, reads them from there ([`watch`]). A client
//! that goes away ends nothing. [`log::OperatorLog`] keeps who did what, and gives the jobs their numbers, so that a number
//! never means two jobs, whatever became of the daemon in between.
//!
//! # Decisions
//!
//! - A question is put to the client that sent the request, and to no other: whoever attaches sees it and cannot answer, for
//!   what an operator has not typed is not his to confirm. When that client is gone the answer is no.
//! - A job is stopped only where its command says that it can be ([`Job::may_stop`]); anywhere else `jobs cancel` is refused
//!   with the reason, and the job goes on.
//! - A job does not outlive its daemon. The log then says that it was interrupted; the same command goes on.

#![expect(
    clippy::result_large_err,
    reason = "a failure ends a command: it is made once and never passed in a loop"
)]

mod job;
pub mod log;

pub use job::{Job, Seat, watch};

use control::{Code, Failure, Request};
use log::OperatorLog;
use model::Timestamp;
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};

/// Most jobs at once.
const RUNNING_MAX: usize = 64;
/// Jobs that have ended and can still be looked at.
const ENDED_KEPT: usize = 32;

/// All jobs of a node.
pub struct Jobs {
    host: String,
    log: OperatorLog,
    all: Mutex<Vec<Arc<Job>>>,
}

impl Jobs {
    /// With the log of a state directory.
    ///
    /// # Errors
    /// When the log is of another version or cannot be read.
    pub fn open(host: &str, state_dir: &Path) -> Result<Self, log::LogError> {
        Ok(Self {
            host: host.to_owned(),
            log: OperatorLog::open(host, &state_dir.join("operators.log"))?,
            all: Mutex::default(),
        })
    }

    /// What operators did.
    #[must_use]
    pub fn log(&self) -> &OperatorLog {
        &self.log
    }

    /// Begins a job; its line is in the log.
    ///
    /// # Errors
    /// When too many are under way.
    pub fn begin(&self, request: &Request, context: Option<u32>) -> Result<Arc<Job>, Failure> {
        let mut all = self.all.lock();
        if all.iter().filter(|job| !job.has_ended()).count() >= RUNNING_MAX {
            return Err(
                Failure::new(Code::NotNow, format!("{RUNNING_MAX} commands are under way here"))
                    .with_hint_command("backstay jobs", &*self.host),
            );
        }
        let options = &request.options;
        let since = Timestamp::now();
        let id = self
            .log
            .begun(context, &options.operator, &options.command_line, since);
        let job = Arc::new(Job::new(&self.host, id, context, options, since));
        all.push(Arc::clone(&job));
        let mut ended = all.iter().filter(|job| job.has_ended()).count();
        all.retain(|job| {
            let goes = ended > ENDED_KEPT && job.has_ended();
            ended -= usize::from(goes);
            !goes
        });
        Ok(job)
    }

    /// All, by number.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Job>> {
        self.all.lock().clone()
    }

    /// The job with this number.
    ///
    /// # Errors
    /// When there is none, or it is not kept any more.
    pub fn find(&self, id: u64) -> Result<Arc<Job>, Failure> {
        let found = self.all.lock().iter().find(|job| job.id() == id).cloned();
        found.ok_or_else(|| {
            let text = if id > 0 && id < self.log.next() {
                format!("job {id} has ended, and only the log knows it")
            } else {
                format!("there is no job {id} on {}", self.host)
            };
            let command = if id > 0 && id < self.log.next() {
                "backstay log"
            } else {
                "backstay jobs"
            };
            Failure::new(Code::Refused, text).with_hint_command(command, &*self.host)
        })
    }
}
