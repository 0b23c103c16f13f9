//! Ctrl-C: what the daemon has begun goes on, and the operator is told how to come back to it.

use crate::show;
use control::{Code, Failure, NextStep, Outcome};
use std::{
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

/// What a Ctrl-C finds. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The command, for `--json`.
    command: String,
    json: bool,
    host: String,
    terminal: bool,
    job: Option<u64>,
    asking: bool,
}

impl Interrupt {
    /// Listens from now on; a Ctrl-C ends the program with 130.
    pub(crate) fn listen(command: &str, host: &str, json: bool, terminal: bool) -> Self {
        let interrupt = Self(Arc::new(Mutex::new(State {
            command: command.to_owned(),
            json,
            host: host.to_owned(),
            terminal,
            ..State::default()
        })));
        let state = interrupt.clone();
        let wait = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            // Without it Ctrl-C ends the program as it ends any other.
            if runtime.is_ok_and(|r| r.block_on(tokio::signal::ctrl_c()).is_ok()) {
                state.leave();
            }
        };
        let _ = std::thread::Builder::new().name("interrupt".into()).spawn(wait);
        interrupt
    }

    /// The command is a job.
    pub(crate) fn begun(&self, job: u64) {
        self.lock().job = Some(job);
    }

    /// A question waits for its answer, or not any more.
    pub(crate) fn asking(&self, asking: bool) {
        self.lock().asking = asking;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        let state = self.lock();
        let (text, next) = state.words();
        if state.terminal {
            // Over the bar, or behind the question.
            let _ = std::io::stderr().write_all(if state.asking { b"\n" } else { b"\r\x1b[K" });
        }
        let _ = writeln!(std::io::stderr(), "{text}");
        if state.json {
            let mut failure = Failure::new(Code::Detached, text);
            failure.hint_command = next.as_ref().map(|n| n.command.clone());
            failure.hint_host = next.as_ref().map(|n| n.host.clone());
            let outcome = Outcome {
                next,
                ..Outcome::failed(failure)
            };
            let line = show::json(&state.command, &outcome, None);
            let _ = std::io::stdout().write_all(line.as_bytes());
            let _ = std::io::stdout().flush();
        } else if let Some(next) = next {
            let _ = writeln!(std::io::stderr(), "{}", show::next(&next));
        }
        std::process::exit(Code::Detached.number().into());
    }
}

impl State {
    /// What is said, and what is to be typed next.
    fn words(&self) -> (String, Option<NextStep>) {
        let next = |command: String| {
            Some(NextStep {
                command,
                host: self.host.clone(),
            })
        };
        match self.job {
            Some(job) if self.asking => (
                format!("Not answered: job {job} takes that for a no."),
                next(format!("backstay jobs show {job}")),
            ),
            Some(job) => (
                format!("Detached: job {job} goes on on {}.", self.host),
                next(format!("backstay jobs attach {job}")),
            ),
            None => (
                format!("Interrupted before {} answered: it may have begun.", self.host),
                next("backstay jobs".into()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_name_the_job_and_the_way_back() {
        let mut state = State {
            host: "rec1".into(),
            ..State::default()
        };
        let said = |state: &State| {
            let (text, next) = state.words();
            format!("{text} {}", next.unwrap().command)
        };
        assert_eq!(
            said(&state),
            "Interrupted before rec1 answered: it may have begun. backstay jobs"
        );
        state.job = Some(7);
        assert_eq!(
            said(&state),
            "Detached: job 7 goes on on rec1. backstay jobs attach 7"
        );
        state.asking = true;
        assert_eq!(
            said(&state),
            "Not answered: job 7 takes that for a no. backstay jobs show 7"
        );
    }
}
