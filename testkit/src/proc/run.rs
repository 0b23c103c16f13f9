//! Commands that run to their end.

use super::POLL;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a command that ran to its end left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; 128 + the signal's number when a signal ended it, as in a shell.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Finished {
    /// Its output.
    ///
    /// # Panics
    /// When its code is not 0, with all that it wrote.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.code == 0,
            "{} answered {}\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

pub(super) fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(-1)
}

/// `command` as the last words of `prefix`, with its folder and environment: `setsid`, `nsenter`, `strace` and their kind.
#[must_use]
pub fn behind(mut prefix: Command, command: &Command) -> Command {
    prefix.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        prefix.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => prefix.env(name, value),
            None => prefix.env_remove(name),
        };
    }
    prefix
}

/// Runs a command to its end, without input.
///
/// # Panics
/// When it cannot be started, or has not ended within `limit`: then it and what it started is killed.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    try_run(command, limit).unwrap_or_else(|why| panic!("{why}"))
}

pub(super) fn try_run(command: &mut Command, limit: Duration) -> Result<Finished, String> {
    let shown = format!("{command:?}");
    // Files and not pipes: what the command leaves behind may hold them open for long.
    let temporary = || tempfile::tempfile().map_err(|e| format!("temporary file: {e}"));
    let mut files = [temporary()?, temporary()?];
    let copy = |f: &File| {
        f.try_clone()
            .map(Stdio::from)
            .map_err(|e| format!("temporary file: {e}"))
    };
    command
        .stdin(Stdio::null())
        .stdout(copy(&files[0])?)
        .stderr(copy(&files[1])?)
        .process_group(0);
    let mut child = command.spawn().map_err(|e| format!("{shown}: {e}"))?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if start.elapsed() < limit => thread::sleep(POLL),
            Ok(None) => break None,
            Err(e) => return Err(format!("{shown}: {e}")),
        }
    };
    let [stdout, stderr] = files.each_mut().map(|file| {
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut bytes));
        read.map_or_else(
            |e| e.to_string(),
            |_| String::from_utf8_lossy(&bytes).into_owned(),
        )
    });
    match status {
        Some(status) => Ok(Finished {
            command: shown,
            code: code_of(status),
            stdout,
            stderr,
        }),
        None => {
            signal_group(child.id(), Signal::KILL);
            // Not waited for: a process stuck in the kernel would hang the test as well.
            let _ = child.try_wait();
            Err(format!(
                "{shown} has not ended within {limit:?}\n{stdout}{stderr}"
            ))
        }
    }
}

pub(super) fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// Signals one process. It may be gone already.
pub(super) fn signal_one(id: u32, signal: Signal) {
    if let Some(pid) = pid(id) {
        let _ = kill_process(pid, signal);
    }
}

pub(super) fn signal_group(id: u32, signal: Signal) {
    if let Some(pid) = pid(id) {
        // It may be gone already.
        let _ = kill_process_group(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::shared::{SOON, sh};

    #[test]
    fn runs_to_the_end() {
        let done = run(&mut sh("echo out; echo err >&2; exit 3"), SOON);
        assert_eq!(
            (done.code, done.stdout.as_str(), done.stderr.as_str()),
            (3, "out\n", "err\n")
        );
        assert_eq!(run(&mut sh("kill -9 $$"), SOON).code, 137);
        assert_eq!(run(&mut sh("echo x"), SOON).ok(), "x\n");
        // What goes on in the background does not hold the answer up.
        let start = Instant::now();
        let left = run(&mut sh("sleep 60 & echo $!"), SOON).ok();
        assert!(start.elapsed() < SOON);
        kill_process(Pid::from_raw(left.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_command_keeps_its_surroundings_behind_another() {
        let mut inner = sh("pwd; echo $A$B$1");
        inner.current_dir("/").env("A", "a").env_remove("B");
        let mut prefix = Command::new("env");
        prefix.arg("-u").arg("C").env("B", "b");
        assert_eq!(run(&mut behind(prefix, &inner), SOON).ok(), "/\na\n");
    }

    #[test]
    fn a_deadline_kills() {
        let why = try_run(&mut sh("echo begun; sleep 60"), Duration::from_millis(200)).unwrap_err();
        assert!(why.contains("begun") && why.contains("has not ended"), "{why}");
    }
}
