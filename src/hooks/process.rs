//! One program, run to its end or to its timeout.
//!
//! Two threads wait, one for lines and one for the end of the program; whoever runs it hears both through one channel and
//! looks at the clock. The program's process id stays taken until its group was ended: it is reaped last.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::{
    ffi::OsString,
    io::{self, PipeReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// Where a hook's programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Lines that are passed on; those beyond are read, counted and left out.
pub(super) const LINES_MAX: usize = 500;
/// Bytes of a line that are passed on.
pub(super) const LINE_BYTES_MAX: usize = 1000;
/// How long what a program has printed may still come after its end, when something it started holds its output open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a group may take to end after each signal.
const ENDING: Duration = Duration::from_secs(1);

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Ended {
        /// Its exit code; 128 and the signal's number when a signal ended it.
        exit: i32,
        /// How long it took.
        took: Duration,
    },
    /// It was ended, with its group.
    TimedOut,
}

enum Heard {
    Line(String),
    /// There will be no further line.
    Silent,
    /// The program has ended and is not reaped yet.
    Ended,
}

/// Runs a program with these variables and without any shell; `line` hears what it prints, a line at a time.
pub(super) fn run(
    program: &Path,
    variables: &[(&'static str, OsString)],
    timeout: Duration,
    line: &mut dyn FnMut(String),
) -> io::Result<End> {
    let began = Instant::now();
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .envs(variables.iter().map(|(k, v)| (k, v)))
        .current_dir("/")
        .stdin(Stdio::null())
        // One pipe for both: lines keep their order.
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let mut child = command.spawn()?;
    // The command holds the pipe's writing end.
    drop(command);
    let pid = Pid::from_child(&child);
    let (sender, heard) = sync_channel(64);
    let lines = sender.clone();
    start_thread("hook-lines", move || read_lines(reader, &lines));
    start_thread("hook-end", move || {
        let option = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), option).is_err_and(|e| e == rustix::io::Errno::INTR) {}
        let _ = sender.send(Heard::Ended);
    });
    let mut listener = Listener::new(heard, line);
    if listener.until_ended(began + timeout) {
        let took = began.elapsed();
        listener.until_silent(Instant::now() + LAST_WORDS);
        listener.finish();
        let exit = code(child.wait()?);
        return Ok(End::Ended { exit, took });
    }
    end_group(pid, &mut listener, &mut child);
    listener.finish();
    Ok(End::TimedOut)
}

/// Ends all processes of the group, first politely.
fn end_group(pid: Pid, listener: &mut Listener<'_>, child: &mut Child) {
    let _ = kill_process_group(pid, Signal::TERM);
    let _ = listener.until_ended(Instant::now() + ENDING);
    // Also when the first process has ended: others of the group may not have.
    let _ = kill_process_group(pid, Signal::KILL);
    if listener.until_ended(Instant::now() + ENDING) {
        let _ = child.wait();
    } else {
        tracing::warn!(pid = child.id(), "a hook does not even end when it is killed");
    }
}

fn code(status: ExitStatus) -> i32 {
    let by_signal = || 128 + status.signal().unwrap_or(0);
    status.code().unwrap_or_else(by_signal)
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .expect("a thread can be started");
}

/// Hands on what is heard, within bounds.
struct Listener<'a> {
    heard: Receiver<Heard>,
    line: &'a mut dyn FnMut(String),
    lines: usize,
    ended: bool,
    silent: bool,
}

impl<'a> Listener<'a> {
    fn new(heard: Receiver<Heard>, line: &'a mut dyn FnMut(String)) -> Self {
        Self {
            heard,
            line,
            lines: 0,
            ended: false,
            silent: false,
        }
    }

    /// Listens until the program has ended; `false` when the deadline comes first.
    fn until_ended(&mut self, deadline: Instant) -> bool {
        while !self.ended && self.hear(deadline) {}
        self.ended
    }

    /// Listens until no line can come any more, or until the deadline.
    fn until_silent(&mut self, deadline: Instant) {
        while !self.silent && self.hear(deadline) {}
    }

    /// Hears one thing; `false` at the deadline, however much there still is to hear.
    fn hear(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        match self.heard.recv_timeout(left) {
            Ok(Heard::Line(text)) => {
                if self.lines < LINES_MAX {
                    (self.line)(text);
                }
                self.lines += 1;
            }
            Ok(Heard::Silent) => self.silent = true,
            Ok(Heard::Ended) => self.ended = true,
            Err(_) => return false,
        }
        true
    }

    fn finish(&mut self) {
        if let Some(more) = self.lines.checked_sub(LINES_MAX).filter(|n| *n > 0) {
            (self.line)(format!("({more} more lines were left out)"));
        }
    }
}

/// Passes lines on until nobody holds the pipe's other end. Goes on reading when nobody listens any more: what the program
/// left running must not be struck by a closed pipe.
fn read_lines(mut reader: PipeReader, lines: &SyncSender<Heard>) {
    let mut chunk = [0_u8; 4096];
    let mut line = Line::default();
    loop {
        let n = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in &chunk[..n] {
            if *byte == b'\n' {
                let _ = lines.send(Heard::Line(line.take()));
            } else {
                line.push(*byte);
            }
        }
    }
    if line.bytes > 0 {
        let _ = lines.send(Heard::Line(line.take()));
    }
    let _ = lines.send(Heard::Silent);
}

/// A line that is being read; its end is cut off where it is too long.
#[derive(Default)]
struct Line {
    kept: Vec<u8>,
    bytes: usize,
}

impl Line {
    fn push(&mut self, byte: u8) {
        if self.kept.len() < LINE_BYTES_MAX {
            self.kept.push(byte);
        }
        self.bytes += 1;
    }

    /// The line as text that does nothing to a terminal.
    fn take(&mut self) -> String {
        let line = std::mem::take(self);
        let text = String::from_utf8_lossy(&line.kept);
        let mut text = text.trim_end_matches('\r').replace(char::is_control, " ");
        if line.bytes > line.kept.len() {
            text.push_str(" ...");
        }
        text
    }
}
