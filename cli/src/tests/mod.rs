//! Whole command lines, against fixed replies and a daemon that plays a part.

mod conformance;
mod daemon;
mod golden;
mod letters;
mod local;
mod replies;
mod roles;
mod usage;

use crate::{
    AttachHelperArgs, Hooks, InitArgs, InitReport, Offline, console::Console, env::Env, run::run, zone::Zone,
};
use control::{
    Code, Event, Failure, Moment, Outcome, Reply, client::Listener, offline::DumpReply, status::StatusReply,
};
use std::{
    cell::RefCell,
    ffi::OsString,
    io::{self, Write},
    path::Path,
    rc::Rc,
};

/// 2026-11-20 02:11:52 UTC, a quarter past three in Berlin.
pub(super) const NOW: Moment = Moment(1_795_140_712_000_000_000);

pub(super) fn berlin() -> Zone {
    Zone::named("Europe/Berlin").unwrap()
}

/// A program around the command line that notes what it was asked.
#[derive(Default)]
pub(super) struct Around {
    pub served: RefCell<Vec<String>>,
    pub helper: RefCell<Option<AttachHelperArgs>>,
    pub init: RefCell<Option<InitArgs>>,
    pub offline: RefCell<Option<Offline>>,
    pub old: Option<StatusReply>,
}

impl Hooks for Around {
    fn serve(&self, config: &Path) -> Result<(), Box<Failure>> {
        self.served.borrow_mut().push(config.display().to_string());
        Ok(())
    }

    fn attach_helper(&self, args: &AttachHelperArgs) -> Result<(), Box<Failure>> {
        *self.helper.borrow_mut() = Some(args.clone());
        Ok(())
    }

    fn init(&self, args: &InitArgs) -> Result<InitReport, Box<Failure>> {
        *self.init.borrow_mut() = Some(args.clone());
        Ok(InitReport {
            lines: vec!["rec1:7400#4T9K".into()],
            next: None,
        })
    }

    fn offline(&self, order: &Offline, listener: &mut dyn Listener) -> Outcome {
        *self.offline.borrow_mut() = Some(order.clone());
        listener.event(Event::Line {
            text: "a line".into(),
        });
        Outcome::ok(Reply::Dump(DumpReply::default()))
    }

    fn status_from_disk(&self, _: &Path) -> Result<Option<StatusReply>, String> {
        Ok(self.old.clone())
    }
}

#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

/// What a run left behind.
#[derive(Debug)]
pub(super) struct Ran {
    pub code: Code,
    pub out: String,
    pub err: String,
}

/// Runs a command line with this input; `dir` is where nodes' files are.
pub(super) fn command(dir: &Path, around: &Around, words: &[&str], input: &str) -> Ran {
    let env = Env {
        config_dir: dir.to_owned(),
        config_file: None,
        zone: berlin(),
        operator: "me@here".into(),
        now: Some(NOW),
    };
    let (out, err) = (Sink::default(), Sink::default());
    let input = Box::new(io::Cursor::new(input.to_owned().into_bytes()));
    let mut console = Console::of(Box::new(out.clone()), Box::new(err.clone()), input);
    let args = words.iter().map(OsString::from).collect();
    let code = run(args, around, &env, &mut console);
    Ran {
        code,
        out: out.text(),
        err: err.text(),
    }
}

/// A command line as it is typed, without blanks inside of words.
pub(super) fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}
