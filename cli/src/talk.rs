//! What the operator sees and says while the daemon works, and how it ends.

use crate::{
    console::Console,
    interrupt::Interrupt,
    names::Name,
    show::{self, View},
    verbs::Shape,
};
use control::{
    Code, Event, Failure, Outcome, PointInfo, Question, Reply, client::Listener, status::StatusReply,
};
use std::time::{Duration, Instant};

/// Least time between two lines of progress where no bar can be drawn.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);

/// The operator's end of a conversation with the daemon.
pub(crate) struct Talk<'a> {
    console: &'a mut Console,
    view: View,
    json: bool,
    quiet: bool,
    /// Whether the head line is still to be printed.
    head: bool,
    declined: bool,
    point: Option<PointInfo>,
    bar: Option<indicatif::ProgressBar>,
    last_line: Option<Instant>,
    interrupt: Interrupt,
}

impl Listener for Talk<'_> {
    fn event(&mut self, event: Event) {
        if let Event::Progress(progress) = &event {
            self.progress(progress);
            return;
        }
        self.clear_bar();
        match event {
            Event::Head(head) => self.head(Some(&head)),
            Event::Begun { job } => self.interrupt.begun(job),
            Event::Resolved { level, point } => {
                let line = show::resolved(level, &point, &self.view);
                self.console.say(&line);
                self.point = Some(point);
            }
            Event::Step(step) => self.live(&show::step(&step)),
            Event::Line { text } => self.live(&text),
            Event::Asked { operator, question } => {
                let (lines, asked) = show::question(&question, &self.view);
                for line in lines {
                    self.console.say(&line);
                }
                self.console.say(&show::asked(&operator, &asked));
            }
            _ => {}
        }
    }

    fn ask(&mut self, question: &Question) -> bool {
        self.clear_bar();
        let (lines, asked) = show::question(question, &self.view);
        for line in lines {
            self.console.say(&line);
        }
        if self.quiet {
            self.console.say(&format!("{asked} [y|n] y (-q)"));
            return true;
        }
        self.interrupt.asking(true);
        let yes = self.console.ask(&asked);
        self.interrupt.asking(false);
        self.declined |= !yes;
        yes
    }
}

impl<'a> Talk<'a> {
    /// A conversation.
    pub(crate) fn new(
        console: &'a mut Console,
        view: View,
        json: bool,
        quiet: bool,
        interrupt: Interrupt,
    ) -> Self {
        Self {
            console,
            view,
            json,
            quiet,
            head: true,
            declined: false,
            point: None,
            bar: None,
            last_line: None,
            interrupt,
        }
    }

    /// Whether to print the head line.
    pub(crate) fn with_head(mut self, head: bool) -> Self {
        self.head = head;
        self
    }

    fn head(&mut self, head: Option<&control::HeadLine>) {
        if let Some(head) = head.filter(|_| self.head) {
            self.head = false;
            self.console.say(&show::head(head, &self.view));
        }
    }

    /// A line of the work itself: a result, unless the result is to be one object.
    fn live(&mut self, line: &str) {
        if self.json {
            self.console.say(line);
        } else {
            self.console.out(&format!("{line}\n"));
        }
    }

    fn progress(&mut self, progress: &control::Progress) {
        if self.console.err_is_terminal {
            let bar = self
                .bar
                .get_or_insert_with(|| indicatif::ProgressBar::new(0).with_style(show::bar_style()));
            bar.set_length(progress.total.unwrap_or(progress.done).max(1));
            bar.set_position(progress.done);
            bar.set_message(show::progress(progress));
            return;
        }
        let complete = progress.total.is_some_and(|t| progress.done >= t);
        if complete || self.last_line.is_none_or(|t| t.elapsed() >= PROGRESS_EVERY) {
            self.last_line = Some(Instant::now());
            self.console.say(&show::progress(progress));
        }
    }

    /// Takes the bar off the screen, before anything else is written there.
    pub(crate) fn clear_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Writes what came of it.
    pub(crate) fn end(mut self, name: &Name, outcome: Outcome, is_status: bool) -> Code {
        let code = outcome.code();
        self.head(outcome.head.as_ref());
        if self.json {
            self.console
                .out(&show::json(name.display(), &outcome, self.point.as_ref()));
            return code;
        }
        match &outcome.result {
            Ok(reply) => self.console.out(&show::reply(reply, &self.view)),
            Err(failure) if self.declined && failure.code == Code::Refused => {
                self.console.say("Nothing changed.");
            }
            Err(failure) => self.say_lines(&show::failure(failure, &self.view)),
        }
        if let Some(next) = outcome
            .next
            .as_ref()
            .filter(|_| self.view.shape != Shape::Monitor)
        {
            let line = show::next(next);
            if is_status && outcome.result.is_ok() {
                self.console.out(&format!("{line}\n"));
            } else {
                self.console.say(&line);
            }
        }
        code
    }

    /// Writes that nothing came, with what is known from before.
    pub(crate) fn unreachable(mut self, name: &Name, failure: Failure, old: Option<StatusReply>) -> Code {
        let code = failure.code;
        if self.json {
            let outcome = Outcome::failed(failure);
            let text = match old {
                None => show::json(name.display(), &outcome, None),
                Some(old) => show::json_with_old(name.display(), &outcome, &Reply::Status(old)),
            };
            self.console.out(&text);
            return code;
        }
        if let Some(old) = old {
            self.console.out(&show::reply(&Reply::Status(old), &self.view));
        }
        self.say_lines(&show::failure(&failure, &self.view));
        code
    }

    fn say_lines(&mut self, text: &str) {
        for line in text.lines() {
            self.console.say(line);
        }
    }
}
