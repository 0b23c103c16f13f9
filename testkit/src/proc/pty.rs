//! Commands on a terminal of their own, as an operator types them.

use super::{
    Finished, POLL,
    run::{behind, code_of, signal_group},
};
use rustix::{
    fs::{Mode, OFlags},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A command whose three streams are a terminal, its controlling one. Dropped, it is killed with what it started.
#[derive(Debug)]
pub struct Pty {
    command: String,
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// Where [`Pty::wait_for`] goes on reading.
    read_at: usize,
}

impl Pty {
    /// Starts a command on a new terminal of 80 columns and 24 lines.
    ///
    /// # Panics
    /// When there are no terminals, or the command cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(command: &Command) -> Self {
        Self::sized(command, 80)
    }

    /// As [`Pty::start`], on a terminal of so many columns.
    ///
    /// # Panics
    /// As [`Pty::start`].
    #[track_caller]
    #[must_use]
    pub fn sized(command: &Command, columns: u16) -> Self {
        let (keyboard, terminal) = open(columns).unwrap_or_else(|e| panic!("a terminal: {e}"));
        let stream = || terminal.try_clone().expect("a file handle can be copied");
        // A controlling terminal is taken by a session's leader; `setsid` becomes one and goes on as the command.
        let mut prefix = Command::new("setsid");
        prefix.arg("--ctty");
        let child = behind(prefix, command)
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (
            keyboard.try_clone().expect("a file handle can be copied"),
            Arc::clone(&screen),
        );
        // Ends when nobody has the terminal open any more: reading is then an error.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                to.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&bytes[..n]);
            }
        });
        Self {
            command: format!("{command:?}"),
            child,
            keyboard,
            screen,
            read_at: 0,
        }
    }

    /// All that the terminal has shown, what was typed included.
    #[must_use]
    pub fn shown(&self) -> String {
        self.after(0)
    }

    fn after(&self, at: usize) -> String {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&screen[at..]).replace('\r', "")
    }

    /// The end of `text` on the screen behind what was read before, if it has come.
    fn find(&self, text: &str) -> Option<usize> {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut windows = screen[self.read_at..].windows(text.len());
        windows
            .position(|w| w == text.as_bytes())
            .map(|at| self.read_at + at + text.len())
    }

    /// Waits until `text` is shown, behind what an earlier call waited for.
    ///
    /// # Panics
    /// When the command ends without, or `limit` passes.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let start = Instant::now();
        loop {
            let ended = self.ended();
            if let Some(end) = self.find(text) {
                self.read_at = end;
                return;
            }
            assert!(
                ended.is_none() && start.elapsed() < limit,
                "'{text}' is not shown by {} (ended: {ended:?}):\n{}",
                self.command,
                self.after(self.read_at)
            );
            thread::sleep(POLL);
        }
    }

    /// Types a line.
    ///
    /// # Panics
    /// When the terminal takes nothing.
    pub fn type_line(&mut self, line: &str) {
        let typed = writeln!(self.keyboard, "{line}");
        typed.unwrap_or_else(|e| panic!("'{line}' could not be typed: {e}"));
    }

    /// Presses Ctrl-C.
    ///
    /// # Panics
    /// When the terminal takes nothing.
    pub fn interrupt(&mut self) {
        let pressed = self.keyboard.write_all(b"\x03");
        pressed.unwrap_or_else(|e| panic!("Ctrl-C could not be pressed: {e}"));
    }

    /// Types `answer` whenever `question` is shown, until the command ends; what it left (all in `stdout`), and how often it
    /// asked.
    ///
    /// # Panics
    /// When it has not ended within `limit`: then it and what it started is killed.
    #[track_caller]
    pub fn converse(mut self, question: &str, answer: &str, limit: Duration) -> (Finished, usize) {
        let (start, mut asked) = (Instant::now(), 0);
        let code = loop {
            let ended = self.ended();
            if let Some(end) = self.find(question) {
                self.read_at = end;
                if ended.is_none() {
                    asked += 1;
                    self.type_line(answer);
                }
                continue;
            }
            if let Some(code) = ended {
                break code;
            }
            assert!(
                start.elapsed() < limit,
                "{} has not ended within {limit:?}\n{}",
                self.command,
                self.shown()
            );
            thread::sleep(POLL);
        };
        let finished = Finished {
            command: self.command.clone(),
            code,
            stdout: self.shown(),
            stderr: String::new(),
        };
        (finished, asked)
    }

    /// Its exit code if it has ended, with all that it wrote on the screen.
    fn ended(&mut self) -> Option<i32> {
        let code = self.child.try_wait().ok().flatten().map(code_of)?;
        // What it wrote last may still be on its way through the terminal.
        let mut len = usize::MAX;
        loop {
            let now = self.screen.lock().unwrap_or_else(PoisonError::into_inner).len();
            if now == len {
                return Some(code);
            }
            len = now;
            thread::sleep(POLL * 4);
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // The leader of its session is the leader of its group too, unless it has not come so far.
        signal_group(self.child.id(), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The two ends of a new terminal.
fn open(columns: u16) -> std::io::Result<(File, File)> {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&keyboard)?;
    unlockpt(&keyboard)?;
    let name = ptsname(&keyboard, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size)?;
    Ok((keyboard.into(), terminal.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::shared::{SOON, sh};

    #[test]
    fn what_is_typed_is_read_from_the_controlling_terminal() {
        let mut pty = Pty::start(&sh(
            "test -t 0 && test -t 1 && test -t 2 && stty size; printf 'sure? '; read a </dev/tty; echo \"got $a\"; exit 3",
        ));
        pty.wait_for("24 80", SOON);
        pty.wait_for("sure? ", SOON);
        pty.type_line("yes");
        pty.wait_for("got yes", SOON);
        let (finished, asked) = pty.converse("sure? ", "no", SOON);
        assert_eq!((finished.code, asked), (3, 0));
        assert_eq!(finished.stdout, "24 80\nsure? yes\ngot yes\n");
    }

    #[test]
    fn every_question_is_answered() {
        let pty = Pty::start(&sh(
            "for n in 1 2 3; do printf \"$n? [y|n] \"; read a; test \"$a\" = y || exit 1; done; echo done",
        ));
        let (finished, asked) = pty.converse("[y|n] ", "y", SOON);
        assert_eq!(asked, 3);
        assert!(finished.ok().ends_with("done\n"));
    }

    #[test]
    fn a_command_that_asks_something_else_is_killed() {
        let pty = Pty::start(&sh("echo begun; read a; sleep 60"));
        let why = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pty.converse("[y|n] ", "y", Duration::from_millis(300))
        }));
        let why = why.unwrap_err();
        assert!(why.downcast_ref::<String>().unwrap().contains("begun"));
    }
}
