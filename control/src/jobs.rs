//! Jobs, who holds a context, and the log of what operators did.
//!
//! A **job** is a command that changes something and that the daemon has begun: it has a number and goes on without its
//! client. The **log** has a line for each of them, on the host where it ran.

use crate::{Code, Moment, Progress};
use serde::{Deserialize, Serialize};

/// What is to be done with one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobVerb {
    /// Tells about it.
    Show,
    /// All its events from the beginning, and those to come; the answer is the job's own.
    Attach,
    /// Stops it where that can be done safely.
    Cancel,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for another command to end (`--wait-lock`).
    WaitingForLock,
    /// It works.
    #[default]
    Running,
    /// It waits for the answer of whoever typed it.
    Asking,
    /// It was cancelled and comes to its end.
    Cancelling,
    /// It has ended.
    Ended,
}

/// One job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its number, on its host.
    pub id: u64,
    /// The node that runs it.
    pub host: String,
    /// The context that it works on, primary id.
    pub context: Option<u32>,
    /// The command line as typed.
    pub command: String,
    /// Who typed it.
    pub operator: String,
    /// When it began.
    pub since: Moment,
    /// Where it is.
    pub state: JobState,
    /// How far its present step is.
    pub progress: Option<Progress>,
    /// The question that it waits with.
    pub question: Option<String>,
    /// Why it cannot be cancelled now; `None`: it can.
    pub keeps_on: Option<String>,
    /// When it ended.
    pub ended: Option<Moment>,
    /// What it ended with.
    pub code: Option<Code>,
    /// What was wrong, if something was.
    pub error: Option<String>,
}

/// `backstay jobs`: those under way, then those that ended last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobsReply {
    /// In the order of their numbers.
    pub jobs: Vec<JobInfo>,
}

/// Whose command works on a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node that runs the command.
    pub host: String,
    /// Who typed it; the node's own name for what it does by itself.
    pub operator: String,
    /// The command line.
    pub command: String,
    /// Since when it holds the context.
    pub since: Moment,
    /// Its job on `host`, if it is one.
    pub job: Option<u64>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (operator, command, host) = (&self.operator, &self.command, &self.host);
        let since = self.since.timestamp();
        write!(f, "{operator} has '{command}' running on {host} since {since}")?;
        self.job.map_or(Ok(()), |job| write!(f, " (job {job})"))
    }
}

/// A question and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerGiven {
    /// What was asked, in a few words.
    pub question: String,
    /// What was answered.
    pub yes: bool,
    /// Whether `-q` answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
}

/// One line of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The node on which it happened.
    pub host: String,
    /// Its job there; `None` for what a host did at the request of its peer, or by itself.
    pub job: Option<u64>,
    /// The context, primary id.
    pub context: Option<u32>,
    /// Who.
    pub operator: String,
    /// What was typed.
    pub command: String,
    /// When it began.
    pub begun: Moment,
    /// When it ended; `None`: it is under way, or ended with the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Moment>,
    /// What it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// In words: `done`, what was wrong, `under way`, `interrupted: the daemon ended`.
    pub result: String,
    /// Answers to its questions, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerGiven>,
}

/// A host whose part of an answer is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheard {
    /// The host.
    pub host: String,
    /// Why.
    pub why: String,
}

/// `backstay log`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogReply {
    /// Only this context, primary id.
    pub context: Option<u32>,
    /// Of both hosts, oldest first.
    pub entries: Vec<LogEntry>,
    /// Whether older entries were left out because of `limit`.
    pub omitted: bool,
    /// Hosts that could not be asked.
    pub unheard: Vec<Unheard>,
}
