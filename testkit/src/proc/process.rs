//! Children that go on while the test does.

use super::{
    POLL,
    run::{code_of, signal_group, signal_one},
};
use rustix::process::Signal;
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A child process whose output goes to a file. Clones are the same process; the last one dropped kills it and what it
/// started (its process group).
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    log: PathBuf,
    /// Where its own lines begin: the log may hold those of an earlier process.
    log_at: u64,
    id: u32,
    child: Mutex<(Child, Option<ExitStatus>)>,
}

impl Inner {
    fn child(&self) -> MutexGuard<'_, (Child, Option<ExitStatus>)> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the process and what it started. What is stuck in the kernel is left behind.
    fn end(&self) {
        signal_group(self.id, Signal::KILL);
        let mut child = self.child();
        let start = Instant::now();
        while child.1.is_none() && start.elapsed() < Duration::from_secs(5) {
            child.1 = child.0.try_wait().unwrap_or(None);
            if child.1.is_none() {
                thread::sleep(POLL);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    /// Starts a command with its output added to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = OpenOptions::new().create(true).append(true).open(log);
        let file = open.unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let log_at = file.metadata().map_or(0, |m| m.len());
        let copy = file.try_clone().expect("a file handle can be copied");
        command
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(file)
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {command:?}: {e}"));
        let (name, log, id) = (name.to_owned(), log.to_owned(), child.id());
        Self {
            inner: Arc::new(Inner {
                name,
                log,
                log_at,
                id,
                child: Mutex::new((child, None)),
            }),
        }
    }

    /// Kills it and what it started, and waits for it; what is stuck in the kernel is left behind.
    pub fn end(&self) {
        self.inner.end();
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.inner.id
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.inner.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.inner.log_at))?;
            file.read_to_end(&mut bytes)
        });
        read.map_or_else(
            |e| e.to_string(),
            |_| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    fn told(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!(
            "{} (process {}) wrote last:\n{}",
            self.inner.name,
            self.inner.id,
            last.join("\n")
        )
    }

    /// Its exit code if it has ended (128 + signal, as in a shell).
    #[must_use]
    pub fn ended(&self) -> Option<i32> {
        let mut child = self.inner.child();
        if child.1.is_none() {
            child.1 = child.0.try_wait().unwrap_or(None);
        }
        child.1.map(code_of)
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            // Asked before the look at the answer: the last words of a process that has ended count.
            let ended = self.ended();
            if let Some(answer) = ask() {
                return answer;
            }
            if let Some(code) = ended {
                panic!("ended with {code} before {what}; {}", self.told());
            }
            assert!(
                start.elapsed() < limit,
                "waited {limit:?} in vain for {what}; {}",
                self.told()
            );
            thread::sleep(POLL);
        }
    }

    /// Waits for a line that holds `text`, and answers that line.
    ///
    /// # Panics
    /// When the process ends without, or `limit` passes.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> String {
        self.wait_for(&format!("a line with '{text}'"), limit, || {
            let log = self.log();
            // Only whole lines: the rest may still be on its way.
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            whole.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Waits until a unix socket takes connections. The probe is a connection of its own, dropped at once.
    ///
    /// # Panics
    /// When the process ends before, or `limit` passes.
    #[track_caller]
    pub fn wait_for_socket(&self, socket: &Path, limit: Duration) {
        let what = format!("socket {}", socket.display());
        self.wait_for(&what, limit, || UnixStream::connect(socket).ok().map(drop));
    }

    /// Waits until it has ended by itself; its exit code.
    ///
    /// # Panics
    /// When `limit` passes.
    #[track_caller]
    pub fn wait(&self, limit: Duration) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(code) = self.ended() {
                return code;
            }
            assert!(
                start.elapsed() < limit,
                "has not ended within {limit:?}; {}",
                self.told()
            );
            thread::sleep(POLL);
        }
    }

    /// Sends a signal to it alone; nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        // Under the lock and only before it is waited for: its id cannot have gone to another process.
        let child = self.inner.child();
        if child.1.is_none() {
            signal_one(self.inner.id, signal);
        }
    }

    /// `kill -9` of it alone (not of what it started), and waits until it is gone.
    ///
    /// # Panics
    /// When it is not gone in ten seconds.
    #[track_caller]
    pub fn kill9(&self) {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10));
    }

    /// Asks it to end (SIGTERM) and waits; its exit code.
    ///
    /// # Panics
    /// When `limit` passes.
    #[track_caller]
    pub fn stop(&self, limit: Duration) -> i32 {
        self.signal(Signal::TERM);
        self.wait(limit)
    }
}

#[cfg(test)]
mod tests {
    use crate::proc::{
        Scratch,
        shared::{SOON, sh},
        until,
    };
    use std::fs;

    #[test]
    fn processes_are_waited_for_and_killed() {
        let scratch = Scratch::new("proc");
        let (path, process) = (
            scratch.path().to_owned(),
            scratch.start("p", &mut sh("echo one; sleep 60")),
        );
        assert_eq!(process.wait_for_line("on", SOON), "one");
        assert_eq!(process.ended(), None);
        process.kill9();
        assert_eq!(process.ended(), Some(137));
        let again = scratch.start(
            "p",
            &mut sh("trap 'echo bye; exit 4' TERM; echo two; while :; do sleep 0.01; done"),
        );
        again.wait_for_line("two", SOON);
        assert!(
            !again.log().contains("one"),
            "the log of the process before is not its own"
        );
        assert_eq!(again.stop(SOON), 4);
        let ended = scratch.start("q", &mut sh("echo last words; exit 5"));
        assert_eq!(ended.wait_for_line("words", SOON), "last words");
        let message = std::panic::catch_unwind(|| ended.wait_for_line("never", SOON)).unwrap_err();
        assert!(message.downcast_ref::<String>().unwrap().contains("ended with 5"));
        // What a killed process started goes with the folder.
        let parent = scratch.start("r", &mut sh("sleep 60 & echo $! ; wait"));
        let child: i32 = parent.wait_for_line("", SOON).parse().unwrap();
        parent.kill9();
        drop((process, again, ended, parent, scratch));
        assert!(!path.exists());
        until("the end of the grandchild", SOON, || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
    }
}
