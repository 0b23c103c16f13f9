//! One command line, from its words to its exit code.

use crate::{
    AttachHelperArgs, Hooks, InitArgs,
    args::Common,
    console::Console,
    env::Env,
    error::CliError,
    help,
    interrupt::Interrupt,
    links, names,
    names::Name,
    node::{self, Node},
    relay::Relay,
    show::{self, View},
    talk::Talk,
    verbs::{
        Given, Shape, Verb, jobs, map, mark, mount, offline, other, protect, ra, role, run as start_stop,
    },
    zone::Zone,
};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};
use control::{
    Code, Command, Failure, JobVerb, Options, Outcome, Request,
    client::{self, ClientError},
    status::StatusReply,
};
use std::{ffi::OsString, path::Path, thread, time::Duration};

/// The whole line of a command: what it alone takes, then what all take.
#[derive(Parser, Debug)]
#[command(disable_help_subcommand = true, color = clap::ColorChoice::Never)]
struct Line<V: Args> {
    #[command(flatten)]
    verb: V,
    #[command(flatten)]
    common: Common,
}

/// What does not change during a run.
struct Run<'a> {
    name: &'static Name,
    /// As the operator called it: `scrt_ra`, `backstay status`.
    called: String,
    /// All words, for the log.
    typed: String,
    env: &'a Env,
    hooks: &'a dyn Hooks,
}

/// Runs one command line, program name first.
pub(crate) fn run(args: Vec<OsString>, hooks: &dyn Hooks, env: &Env, console: &mut Console) -> Code {
    let mut words: Vec<String> = args
        .into_iter()
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    if words.is_empty() {
        words.push("backstay".to_owned());
    }
    let typed = words.join(" ");
    let program = words.remove(0);
    let program = program.rsplit('/').next().unwrap_or("backstay").to_owned();
    // Words that cannot be parsed may still ask for an answer in JSON.
    let json = words.iter().any(|w| w == "--json");
    let found = if let Some(name) = names::by_link(&program) {
        Ok((name, program))
    } else {
        match words.first().map(String::as_str) {
            None => {
                console.say(help::all().trim_end());
                return Code::Usage;
            }
            Some("-h" | "--help" | "help") => {
                console.out(&help::all());
                return finish(Code::Done, console);
            }
            Some("-V" | "--version") => {
                console.out(&format!("backstay {}\n", env!("CARGO_PKG_VERSION")));
                return finish(Code::Done, console);
            }
            Some(word) => names::find(word).map_or_else(
                || {
                    Err(CliError::UnknownCommand {
                        typed: word.to_owned(),
                    })
                },
                |name| Ok((name, format!("backstay {word}"))),
            ),
        }
        .inspect(|_| {
            words.remove(0);
        })
    };
    let (name, called) = match found {
        Ok(found) => found,
        Err(e) => return fail(e.into_failure(), "backstay", json, env, console),
    };
    let run = Run {
        name,
        called,
        typed,
        env,
        hooks,
    };
    let code = run
        .dispatch(&words, console)
        .unwrap_or_else(|e| fail(e.into_failure(), run.name.display(), json, env, console));
    finish(code, console)
}

/// A result that could not be written was not given.
fn finish(code: Code, console: &mut Console) -> Code {
    match console.failure() {
        None => code,
        Some(e) => {
            console.say(&format!("Error: the result could not be written: {e}"));
            Code::PartWay
        }
    }
}

/// Reports a failure that is not the daemon's.
fn fail(failure: Failure, command: &str, json: bool, env: &Env, console: &mut Console) -> Code {
    let code = failure.code;
    let outcome = Outcome::failed(failure);
    if json {
        console.out(&show::json(command, &outcome, None));
    } else if let Err(failure) = &outcome.result {
        for line in show::failure(failure, &View::plain(env.zone, env.now())).lines() {
            console.say(line);
        }
    }
    code
}

impl Name {
    /// What it is called in messages: the link's name where there is one.
    pub(crate) const fn display(&self) -> &'static str {
        match self.link {
            Some(link) => link,
            None => self.short,
        }
    }
}

impl Run<'_> {
    fn dispatch(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        if !self.name.built {
            return Err(CliError::NotBuilt(self.name.display().to_owned()));
        }
        match self.name.short {
            "ra" => self.ask::<ra::Ra>(words, console),
            "mnt" => self.ask::<mount::Mnt>(words, console),
            "umnt" => self.ask::<mount::Umnt>(words, console),
            "start" => self.ask::<start_stop::Start>(words, console),
            "stop" => self.ask::<start_stop::Stop>(words, console),
            "mark" => self.ask::<mark::Mark>(words, console),
            "protect" => self.ask::<protect::Protect>(words, console),
            "dr" => self.ask::<role::Role>(words, console),
            "config" => self.ask::<map::Config>(words, console),
            "grow" => self.ask::<other::Grow>(words, console),
            "map" => self.ask::<map::Map>(words, console),
            "status" => self.ask::<other::Status>(words, console),
            "pins" => self.ask::<other::Pins>(words, console),
            "wait" => self.ask::<other::Wait>(words, console),
            "jobs" => self.ask::<jobs::Jobs>(words, console),
            "log" => self.ask::<jobs::Log>(words, console),
            "probe" => self.ask::<other::Probe>(words, console),
            "verify" => self.ask::<other::Verify>(words, console),
            "links" => self.links(words, console),
            "init" => self.init(words, console),
            "serve" => self.serve(words, console),
            "attach-helper" => self.attach_helper(words, console),
            "fsck-journal" => self.offline::<offline::Check>(words, console),
            "dump" => self.offline::<offline::Dump>(words, console),
            "salvage" => self.offline::<offline::Salvage>(words, console),
            "nbd" => self.nbd(words, console),
            other => Err(CliError::NotBuilt(other.to_owned())),
        }
    }

    /// The words as letters; `None` when help was asked for, and given.
    fn parse<V: Args>(&self, words: &[String], console: &mut Console) -> Result<Option<Line<V>>, CliError> {
        let mut command = Line::<V>::command()
            .name(self.called.clone())
            .bin_name(self.called.clone())
            .about(self.name.about);
        let all = std::iter::once(&self.called).chain(words);
        let line = match command.try_get_matches_from_mut(all) {
            Ok(matches) => Line::<V>::from_arg_matches(&matches),
            Err(e) => Err(e),
        };
        match line {
            Ok(line) if line.common.man => {
                console.out(&help::man(self.name, &mut command));
                Ok(None)
            }
            Ok(line) => Ok(Some(line)),
            Err(e) if !e.use_stderr() => {
                console.out(&e.to_string());
                Ok(None)
            }
            Err(e) => Err(CliError::Failed(Box::new(help::usage_failure(&e, &self.called)))),
        }
    }

    /// A command that the daemon does.
    fn ask<V: Verb>(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        let Some(Line { verb, common }) = self.parse::<V>(words, console)? else {
            return Ok(Code::Done);
        };
        let zone = match verb.zone() {
            None => self.env.zone,
            Some(name) => Zone::named(name).ok_or_else(|| {
                CliError::usage(format!(
                    "--tz: there is no zone '{name}' (Europe/Berlin, UTC, ...)"
                ))
            })?,
        };
        let command = verb.command(&Given {
            common: &common,
            zone,
            now: self.env.now(),
        })?;
        let node = node::read(&node::config_file(&common, self.env)?)?;
        let options = Options {
            quiet: common.quiet,
            force: verb.force(),
            dry_run: common.dry_run,
            verbose: common.verbose,
            wait_lock_s: common.wait_lock,
            expect_term: common.expect_term,
            timeout_s: common.timeout,
            wait: common.wait,
            operator: self.env.operator.clone(),
            command_line: self.typed.clone(),
        };
        let request = Request::new(command, options);
        let view = View {
            verbose: common.verbose,
            shape: verb.shape(),
            columns: console.columns(),
            ..View::plain(zone, self.env.now())
        };
        let Shape::Watch(seconds) = view.shape else {
            return self.once(&node, &request, view, common.json, console);
        };
        loop {
            if console.out_is_terminal {
                console.out("\x1b[H\x1b[2J");
            }
            let view = View {
                now: self.env.now(),
                ..view
            };
            let code = self.once(&node, &request, view, false, console)?;
            // Only a reader that went away, or a command line that never helps, ends it.
            if console.failure().is_some() || code == Code::Usage {
                return Ok(code);
            }
            thread::sleep(Duration::from_secs(seconds));
        }
    }

    fn once(
        &self,
        node: &Node,
        request: &Request,
        view: View,
        json: bool,
        console: &mut Console,
    ) -> Result<Code, CliError> {
        let is_status = matches!(request.command, Command::Status { .. });
        let attaches = matches!(
            request.command,
            Command::Job {
                verb: JobVerb::Attach,
                ..
            }
        );
        // What goes on without us is detached from; all else ends with Ctrl-C as any program does.
        let goes_on = attaches || request.command.changes_state() && !request.options.dry_run;
        let interrupt = if goes_on && console.is_process {
            Interrupt::listen(self.name.display(), &node.name, json, console.err_is_terminal)
        } else {
            Interrupt::default()
        };
        let mut talk = Talk::new(console, view, json, request.options.quiet, interrupt).with_head(!is_status);
        let outcome = match client::call(&node.socket, request, &mut talk) {
            Ok(outcome) => outcome,
            Err(e) => {
                talk.clear_bar();
                let lost = matches!(e, ClientError::Lost { .. });
                let mut failure = CliError::Client(e).into_failure();
                if lost && !request.command.changes_state() {
                    failure.code = Code::Unreachable;
                }
                if failure.code == Code::Unreachable {
                    let start = format!("backstay serve --config {}", node.config.display());
                    failure = failure.with_hint_command(start, &*node.name);
                }
                let mut old = None;
                if is_status {
                    match self.hooks.status_from_disk(&node.config) {
                        Ok(found) => old = found.map(|status| StatusReply { old: true, ..status }),
                        Err(text) => failure.caused_by.push(text),
                    }
                }
                return Ok(talk.unreachable(self.name, failure, old));
            }
        };
        talk.clear_bar();
        Ok(talk.end(self.name, outcome, is_status))
    }

    fn links(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        let Some(Line { verb, common }) = self.parse::<other::Links>(words, console)? else {
            return Ok(Code::Done);
        };
        let program = std::env::current_exe().map_err(|source| CliError::File {
            path: "/proc/self/exe".into(),
            source,
        })?;
        let lines = links::make(&verb.dir, &program, common.dry_run)?;
        self.local_lines(&lines, None, common.json, console);
        Ok(Code::Done)
    }

    fn init(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        let Some(Line { verb, common }) = self.parse::<InitArgs>(words, console)? else {
            return Ok(Code::Done);
        };
        let chosen = common.config.is_some() || common.node.is_some();
        let config = chosen.then(|| node::config_file(&common, self.env)).transpose()?;
        let report = self.hooks.init(&InitArgs {
            config_dir: self.env.config_dir.clone(),
            config,
            quiet: common.quiet,
            dry_run: common.dry_run,
            ..verb
        })?;
        self.local_lines(&report.lines, report.next.as_ref(), common.json, console);
        Ok(Code::Done)
    }

    fn serve(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        let Some(Line { common, .. }) = self.parse::<other::Serve>(words, console)? else {
            return Ok(Code::Done);
        };
        let config = node::config_file(&common, self.env)?;
        // A file that commands could not use would make a daemon that nobody reaches.
        node::read(&config)?;
        self.hooks.serve(Path::new(&config))?;
        Ok(Code::Done)
    }

    fn attach_helper(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        let Some(Line { verb, .. }) = self.parse::<AttachHelperArgs>(words, console)? else {
            return Ok(Code::Done);
        };
        self.hooks.attach_helper(&verb)?;
        Ok(Code::Done)
    }

    /// A tool for a stopped node.
    fn offline<V: offline::OfflineVerb>(
        &self,
        words: &[String],
        console: &mut Console,
    ) -> Result<Code, CliError> {
        let Some(Line { verb, common }) = self.parse::<V>(words, console)? else {
            return Ok(Code::Done);
        };
        let order = offline::order(&verb, &common, self.env)?;
        let view = View {
            verbose: common.verbose,
            ..View::plain(self.env.zone, self.env.now())
        };
        let mut talk = Talk::new(console, view, common.json, common.quiet, Interrupt::default());
        let outcome = self.hooks.offline(&order, &mut talk);
        talk.clear_bar();
        Ok(talk.end(self.name, outcome, false))
    }

    fn nbd(&self, words: &[String], console: &mut Console) -> Result<Code, CliError> {
        let Some(Line { verb, common }) = self.parse::<other::Nbd>(words, console)? else {
            return Ok(Code::Done);
        };
        let export = verb.export(&common)?;
        let node = node::read(&node::config_file(&common, self.env)?)?;
        let options = Options {
            dry_run: common.dry_run,
            operator: self.env.operator.clone(),
            command_line: self.typed.clone(),
            ..Options::default()
        };
        let relay = Relay {
            socket: node.socket,
            request: Request::new(Command::Nbd { export }, options),
        };
        relay.run(|failure| {
            for line in show::failure(&failure, &View::plain(self.env.zone, self.env.now())).lines() {
                console.say(line);
            }
        })?;
        Ok(Code::Done)
    }

    fn local_lines(
        &self,
        lines: &[String],
        next: Option<&control::NextStep>,
        json: bool,
        console: &mut Console,
    ) {
        if json {
            console.out(&show::json_lines(self.name.display(), lines, next));
            return;
        }
        for line in lines {
            console.out(&format!("{line}\n"));
        }
        if let Some(next) = next {
            console.say(&show::next(next));
        }
    }
}
