//! The three streams of a run, and who is at their ends.

use std::io::{self, BufRead, IsTerminal as _, Write};

/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

pub(crate) struct Console {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    input: Box<dyn BufRead>,
    /// Whether a person reads stdout.
    pub out_is_terminal: bool,
    /// Whether a person reads stderr.
    pub err_is_terminal: bool,
    /// Whether Ctrl-C may end the whole process.
    pub is_process: bool,
    failed: Option<io::Error>,
}

impl Console {
    pub(crate) fn of_process() -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Box::new(io::BufReader::new(io::stdin())),
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal(),
            is_process: true,
            failed: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn of(out: Box<dyn Write>, err: Box<dyn Write>, input: Box<dyn BufRead>) -> Self {
        Self {
            out,
            err,
            input,
            out_is_terminal: false,
            err_is_terminal: false,
            is_process: false,
            failed: None,
        }
    }

    /// Columns of the terminal where results go, if they go to one.
    pub(crate) fn columns(&self) -> Option<usize> {
        if !self.out_is_terminal {
            return None;
        }
        // One that does not know its width has the usual one.
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        Some(size.map_or(0, |s| usize::from(s.ws_col)))
            .filter(|columns| *columns > 0)
            .or(Some(COLUMNS))
    }

    /// A result, as it is.
    pub(crate) fn out(&mut self, text: &str) {
        // Flushed at once: the two streams may end in one terminal or file, where their order counts.
        let done = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
        if let Err(e) = done {
            self.failed.get_or_insert(e);
        }
    }

    /// A line about the run. Where nobody can be told, nothing can be done about it.
    pub(crate) fn say(&mut self, line: &str) {
        let _ = writeln!(self.err, "{line}");
    }

    /// A question; anything but one line with `y` or `yes` is a no.
    pub(crate) fn ask(&mut self, question: &str) -> bool {
        let _ = write!(self.err, "{question} [y|n] ");
        let _ = self.err.flush();
        let mut line = String::new();
        // Bounded: nobody types a long yes.
        let read = io::Read::take(&mut self.input, 4096).read_line(&mut line);
        if !self.err_is_terminal || !matches!(read, Ok(n) if n > 0) {
            let _ = writeln!(self.err, "{}", line.trim_end());
        }
        read.is_ok() && ["y", "yes"].iter().any(|y| line.trim().eq_ignore_ascii_case(y))
    }

    /// Why results could not be written, if so. A reader that has seen enough (`| head`) is no failure.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        self.failed
            .take()
            .filter(|e| e.kind() != io::ErrorKind::BrokenPipe)
    }
}
