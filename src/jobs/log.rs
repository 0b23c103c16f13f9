//! The log: who did what, when, with which answers and which result.
//!
//! # The file
//!
//! `state_dir/operators.log`, lines of JSON (docs/formats/operators-log.md): a line when a command begins, durable before it does
//! anything, and one when it has ended. A beginning without an end is a command that the daemon's end interrupted. When the
//! file would be longer than 1 MiB the oldest half goes; a line that a crash left unfinished goes at the next start.
//!
//! # What it does not do
//!
//! It stops nobody: a log that cannot be written (a full disk) is said in the daemon's own log, and the command goes on,
//! because an operator in trouble needs the command more than its record.

use crate::node::Node;
use bytes::Bytes;
use control::{
    Code, Moment,
    jobs::{AnswerGiven, LogEntry},
};
use model::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Request kind: the newest entries of a context.
pub const ENTRIES: u16 = 27;
/// Most bytes of the file.
const BYTES_MAX: u64 = 1 << 20;
/// Most bytes of each text in it.
const TEXT_MAX: usize = 1000;
/// Most bytes of entries in an answer to the peer.
const ANSWER_MAX: usize = 512 << 10;
/// Newest version of the file that this build reads, and the one it writes.
const FORMAT: u32 = 1;

const UNDER_WAY: &str = "under way";
const INTERRUPTED: &str = "interrupted: the daemon ended";

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It is of a newer build.
    #[error("{}: version {found} of the log was found, this build reads up to {FORMAT}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first one.
    Format(u32),
    /// A job begins.
    Begun {
        job: u64,
        context: Option<u32>,
        operator: String,
        command: String,
        at: u64,
    },
    /// A job has ended.
    Ended {
        job: u64,
        at: u64,
        code: Code,
        result: String,
        answers: Vec<AnswerGiven>,
    },
    /// What was done at the request of the peer, or by itself.
    Noted {
        context: Option<u32>,
        operator: String,
        command: String,
        begun: u64,
        ended: u64,
        code: Code,
        result: String,
    },
}

/// The log of a node.
pub struct OperatorLog {
    host: String,
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: Option<File>,
    bytes: u64,
    entries: VecDeque<LogEntry>,
    next: u64,
}

impl OperatorLog {
    /// Opens the log of a file, made where there is none.
    pub(super) fn open(host: &str, path: &Path) -> Result<Self, LogError> {
        let failed = |source| LogError::Io {
            path: path.to_owned(),
            source,
        };
        let text = match std::fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(failed)?,
        };
        // What a crash left unfinished was never relied on.
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let (entries, next) = entries_of(host, path, &text[..whole])?;
        let log = Self {
            host: host.to_owned(),
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                file: None,
                bytes: whole as u64,
                entries,
                next,
            }),
        };
        if whole == 0 || whole < text.len() {
            log.inner.lock().rewrite(path).map_err(failed)?;
        }
        Ok(log)
    }

    /// The number of the next job.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.inner.lock().next
    }

    /// A job begins; its number.
    pub(super) fn begun(&self, context: Option<u32>, operator: &str, command: &str, at: Timestamp) -> u64 {
        let mut inner = self.inner.lock();
        let job = inner.next;
        inner.next += 1;
        let entry = LogEntry {
            host: self.host.clone(),
            job: Some(job),
            context,
            operator: short(operator),
            command: short(command),
            begun: Moment::from(at),
            result: UNDER_WAY.into(),
            ..LogEntry::default()
        };
        inner.add(&self.path, entry);
        job
    }

    /// A job has ended.
    pub fn ended(&self, job: u64, code: Code, result: &str, answers: Vec<AnswerGiven>) {
        let mut inner = self.inner.lock();
        let at = Timestamp::now();
        let answers: Vec<_> = answers.into_iter().map(shortened).collect();
        let line = Line::Ended {
            job,
            at: at.0,
            code,
            result: short(result),
            answers: answers.clone(),
        };
        if let Some(entry) = inner.entries.iter_mut().rfind(|e| e.job == Some(job)) {
            entry.ended = Some(Moment::from(at));
            entry.code = Some(code);
            entry.result = short(result);
            entry.answers = answers;
        }
        inner.write(&self.path, &line);
    }

    /// Something that this host did at the request of its peer, or by itself.
    pub fn note(
        &self,
        context: Option<u32>,
        operator: &str,
        command: &str,
        begun: Timestamp,
        done: &Result<(), String>,
    ) {
        let (code, result) = match done {
            Ok(()) => (Code::Done, "done"),
            Err(why) => (Code::Refused, why.as_str()),
        };
        let entry = LogEntry {
            host: self.host.clone(),
            job: None,
            context,
            operator: short(operator),
            command: short(command),
            begun: Moment::from(begun),
            ended: Some(Moment::from(Timestamp::now())),
            code: Some(code),
            result: short(result),
            answers: Vec::new(),
        };
        self.inner.lock().add(&self.path, entry);
    }

    /// The newest entries, at most so many, oldest first, and whether there are more.
    #[must_use]
    pub fn newest(&self, context: Option<u32>, limit: usize) -> (Vec<LogEntry>, bool) {
        let inner = self.inner.lock();
        let of = |e: &&LogEntry| context.is_none() || e.context == context;
        let mut chosen: Vec<LogEntry> = inner
            .entries
            .iter()
            .rev()
            .filter(of)
            .take(limit.saturating_add(1))
            .cloned()
            .collect();
        let more = chosen.len() > limit;
        chosen.truncate(limit);
        chosen.reverse();
        (chosen, more)
    }
}

impl Inner {
    fn add(&mut self, path: &Path, entry: LogEntry) {
        let lines = lines_of(&entry);
        self.entries.push_back(entry);
        for line in &lines {
            self.write(path, line);
        }
    }

    fn write(&mut self, path: &Path, line: &Line) {
        let text = text_of(line);
        let grown = self.bytes + text.len() as u64;
        let done = if grown > BYTES_MAX {
            self.shrink();
            self.rewrite(path)
        } else {
            self.append(path, &text)
        };
        if let Err(e) = done {
            self.file = None;
            tracing::error!("{}: what an operator does is not kept: {e}", path.display());
        }
    }

    fn append(&mut self, path: &Path, text: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().append(true).open(path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(text)?;
            file.sync_data()?;
            self.bytes += text.len() as u64;
        }
        Ok(())
    }

    /// Lets the oldest entries go until what is left is half of what may be; what is under way stays.
    fn shrink(&mut self) {
        let size = |e: &LogEntry| lines_of(e).iter().map(|l| text_of(l).len() as u64).sum::<u64>();
        let mut bytes: u64 = self.entries.iter().map(size).sum();
        self.entries.retain(|entry| {
            let goes = bytes > BYTES_MAX / 2 && entry.result != UNDER_WAY;
            if goes {
                bytes -= size(entry);
            }
            !goes
        });
    }

    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let mut text = text_of(&Line::Format(FORMAT));
        for entry in &self.entries {
            for line in lines_of(entry) {
                text.extend(text_of(&line));
            }
        }
        self.file = None;
        media::replace_file(path, &text, 0o600)?;
        self.bytes = text.len() as u64;
        Ok(())
    }
}

fn text_of(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("plain values");
    text.push(b'\n');
    text
}

/// The lines that say the same as an entry.
fn lines_of(entry: &LogEntry) -> Vec<Line> {
    let at = |moment: Moment| moment.0;
    let Some(job) = entry.job else {
        return vec![Line::Noted {
            context: entry.context,
            operator: entry.operator.clone(),
            command: entry.command.clone(),
            begun: at(entry.begun),
            ended: entry.ended.map_or(0, at),
            code: entry.code.unwrap_or(Code::Bug),
            result: entry.result.clone(),
        }];
    };
    let begun = Line::Begun {
        job,
        context: entry.context,
        operator: entry.operator.clone(),
        command: entry.command.clone(),
        at: at(entry.begun),
    };
    let ended = entry.ended.zip(entry.code).map(|(ended, code)| Line::Ended {
        job,
        at: at(ended),
        code,
        result: entry.result.clone(),
        answers: entry.answers.clone(),
    });
    std::iter::once(begun).chain(ended).collect()
}

/// What a file says, and the number that comes next.
fn entries_of(host: &str, path: &Path, text: &[u8]) -> Result<(VecDeque<LogEntry>, u64), LogError> {
    let mut entries: VecDeque<LogEntry> = VecDeque::new();
    let mut next = 1;
    for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let base = |context, operator, command, begun| LogEntry {
            host: host.to_owned(),
            context,
            operator,
            command,
            begun: Moment(begun),
            ..LogEntry::default()
        };
        match serde_json::from_slice(line) {
            Ok(Line::Format(1..=FORMAT)) => {}
            Ok(Line::Format(found)) => {
                return Err(LogError::Newer {
                    path: path.to_owned(),
                    found,
                });
            }
            Ok(Line::Begun {
                job,
                context,
                operator,
                command,
                at,
            }) => {
                next = next.max(job.saturating_add(1));
                entries.push_back(LogEntry {
                    job: Some(job),
                    // Unless its end follows.
                    result: INTERRUPTED.into(),
                    ..base(context, operator, command, at)
                });
            }
            Ok(Line::Ended {
                job,
                at,
                code,
                result,
                answers,
            }) => {
                if let Some(entry) = entries.iter_mut().rfind(|e| e.job == Some(job)) {
                    entry.ended = Some(Moment(at));
                    entry.code = Some(code);
                    entry.result = result;
                    entry.answers = answers;
                }
            }
            Ok(Line::Noted {
                context,
                operator,
                command,
                begun,
                ended,
                code,
                result,
            }) => entries.push_back(LogEntry {
                ended: Some(Moment(ended)),
                code: Some(code),
                result,
                ..base(context, operator, command, begun)
            }),
            Err(e) => tracing::warn!("{}: a line that is not understood: {e}", path.display()),
        }
    }
    Ok((entries, next))
}

fn short(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = if end < text.len() { "…" } else { "" };
    format!("{}{cut}", &text[..end])
}

fn shortened(answer: AnswerGiven) -> AnswerGiven {
    AnswerGiven {
        question: short(&answer.question),
        ..answer
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    context: u32,
    limit: usize,
}

/// The entries of the peer, and whether it has more.
///
/// # Errors
/// When it cannot be asked, or does not know the question.
pub fn of_peer(node: &Node, peer: &str, context: u32, limit: usize) -> Result<(Vec<LogEntry>, bool), String> {
    let question = serde_json::to_vec(&Question { context, limit }).expect("plain values");
    let answer = node.peers().request(node, peer, ENTRIES, question.into());
    let answer = answer.map_err(|e| e.to_string())?;
    serde_json::from_slice(&answer).map_err(|e| format!("an answer of another form: {e}"))
}

/// Answers [`ENTRIES`], to the context's peer alone.
pub(crate) fn answer(node: &Arc<Node>, asker: &str, body: &[u8]) -> Result<Bytes, String> {
    let question: Question =
        serde_json::from_slice(body).map_err(|e| format!("the question has another form: {e}"))?;
    let id = question.context;
    node.context(id)
        .filter(|c| c.id().0 == id && c.peer_name() == asker)
        .ok_or_else(|| format!("context {id} is not one of {asker} here"))?;
    let (mut entries, mut more) = node.jobs().log().newest(Some(id), question.limit);
    loop {
        let body = serde_json::to_vec(&(&entries, more)).map_err(|e| e.to_string())?;
        if body.len() <= ANSWER_MAX || entries.is_empty() {
            return Ok(body.into());
        }
        entries.drain(..entries.len().div_ceil(2));
        more = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::proc::Scratch;

    fn open(folder: &Scratch) -> OperatorLog {
        OperatorLog::open("a", &folder.join("operators.log")).unwrap()
    }

    fn yes() -> Vec<AnswerGiven> {
        vec![AnswerGiven {
            question: "Go on?".into(),
            yes: true,
            quiet: false,
        }]
    }

    #[test]
    fn what_is_read_is_what_was_done() {
        let folder = Scratch::new("operators-log");
        let log = open(&folder);
        let first = log.begun(Some(1), "me@a", "rtstop -C 1", Timestamp(5));
        log.note(
            Some(2),
            "you@b",
            "rtdr -C 2 failover: a gives its role up",
            Timestamp(6),
            &Err("no".into()),
        );
        let second = log.begun(None, "me@a", "protect -C 3", Timestamp(7));
        log.ended(first, Code::Done, "done", yes());
        assert_eq!((first, second), (1, 2));
        let (all, more) = log.newest(None, 10);
        assert_eq!((all.len(), more), (3, false));
        assert_eq!(all[2].result, UNDER_WAY);
        // A daemon that ends meanwhile leaves it without an end; all else is as it was.
        let again = open(&folder);
        let (mut read, _) = again.newest(None, 10);
        assert_eq!(read[2].result, INTERRUPTED);
        read[2].result = UNDER_WAY.into();
        assert_eq!(read, all);
        assert_eq!(again.begun(None, "me@a", "x", Timestamp(8)), 3, "no number twice");
        assert_eq!(again.newest(Some(1), 10).0.len(), 1);
        let (newest, more) = again.newest(None, 2);
        assert_eq!(
            (newest[0].command.as_str(), newest[1].command.as_str(), more),
            ("protect -C 3", "x", true)
        );
    }

    #[test]
    fn it_is_bounded_and_what_is_under_way_stays() {
        let folder = Scratch::new("operators-log-bounded");
        let log = open(&folder);
        let first = log.begun(Some(1), "me@a", "the first", Timestamp(1));
        let long = "x".repeat(3 * TEXT_MAX);
        for n in 0..1500 {
            log.note(Some(1), "me@a", &format!("{n} {long}"), Timestamp(n), &Ok(()));
        }
        let size = std::fs::metadata(folder.join("operators.log")).unwrap().len();
        assert!(size <= BYTES_MAX, "{size}");
        log.ended(first, Code::Done, "done", vec![]);
        let (all, _) = open(&folder).newest(None, usize::MAX);
        assert_eq!(
            (all[0].command.as_str(), all[0].code),
            ("the first", Some(Code::Done))
        );
        assert!(all.len() > 100 && all.len() < 1500);
        assert!(all.last().unwrap().command.starts_with("1499 x"));
    }

    #[test]
    fn an_unfinished_line_goes_and_a_foreign_one_is_passed_over() {
        let folder = Scratch::new("operators-log-torn");
        let path = folder.join("operators.log");
        open(&folder).begun(Some(1), "me@a", "one", Timestamp(1));
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"dance\":{}}\n{\"begun\":{\"jo");
        std::fs::write(&path, text).unwrap();
        let log = open(&folder);
        log.begun(Some(1), "me@a", "two", Timestamp(2));
        let (all, _) = open(&folder).newest(None, 9);
        let commands: Vec<_> = all.iter().map(|e| e.command.as_str()).collect();
        assert_eq!(commands, ["one", "two"]);
    }

    #[test]
    fn golden_log() {
        let entry = LogEntry {
            host: "a".into(),
            job: Some(7),
            context: Some(1),
            operator: "me@a".into(),
            command: "rtdr -C 1 failover".into(),
            begun: Moment(1_795_140_712_000_000_000),
            ended: Some(Moment(1_795_140_713_000_000_000)),
            code: Some(Code::Done),
            result: "done".into(),
            answers: yes(),
        };
        let interrupted = LogEntry {
            job: Some(8),
            context: None,
            ended: None,
            code: None,
            result: INTERRUPTED.into(),
            answers: vec![],
            ..entry.clone()
        };
        let note = LogEntry {
            job: None,
            answers: vec![],
            ..entry.clone()
        };
        let all = [entry, interrupted, note];
        let mut text = text_of(&Line::Format(FORMAT));
        text.extend(all.iter().flat_map(lines_of).flat_map(|line| text_of(&line)));
        testkit::golden::check_text("log/operators.log", &String::from_utf8(text).unwrap());
        let text = std::fs::read(testkit::golden::path("log/operators.log")).unwrap();
        let (read, next) = entries_of("a", Path::new("log"), &text).unwrap();
        assert_eq!((read, next), (VecDeque::from(all), 9));
    }

    #[test]
    fn only_a_known_version_is_read() {
        let folder = Scratch::new("operators-log-version");
        std::fs::write(folder.join("operators.log"), "{\"format\":9}\n").unwrap();
        let refused = OperatorLog::open("a", &folder.join("operators.log"))
            .err()
            .unwrap();
        assert!(
            refused.to_string().contains("version 9 of the log was found"),
            "{refused}"
        );
    }
}
