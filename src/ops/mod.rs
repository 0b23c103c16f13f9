//! What the daemon does for each command: one file a group of commands.
//!
//! An operation gets an [`Op`]: the node, the request's options and whoever listens ([`Audience`]), who may be shown steps and
//! asked questions. It answers an [`Answer`]; the frame around it (head line, `Next:`) is made here.

#![expect(
    clippy::result_large_err,
    reason = "a failure ends a command: it is made once and never passed in a loop"
)]

mod grow;
mod jobs;
pub(crate) mod lifecycle;
mod lock;
mod map;
mod mark;
mod mount;
pub(crate) mod nbd;
mod pair;
mod pins;
mod protect;
mod restore;
pub(crate) mod role;
pub(crate) mod snapshot;
pub(crate) mod status;
mod verify;
mod wait;
mod windows;

use crate::{
    context::{Context, Production, Running},
    jobs::{Job, Seat, watch},
    node::Node,
    roles::{Next, Standing},
};
use control::{
    Code, Command, Event, Failure, JobVerb, NextStep, Outcome, PointInfo, Progress, Question, Reply, Request,
    Step, reply::PlanReply, request::Options, server::Session,
};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

/// What came of an operation, and what to type next.
pub type Answer = Result<(Reply, Option<NextStep>), Failure>;

/// One running operation.
pub struct Op<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// `-q -f -n …`.
    pub options: &'a Options,
    audience: Audience<'a>,
}

/// Who listens to a command.
pub enum Audience<'a> {
    /// A client, of a command that ends with it.
    Client {
        /// Its connection.
        session: &'a mut Session,
        /// Whether it went away.
        gone: bool,
    },
    /// A job, and whoever watches it: the command goes on without them.
    Job(Arc<Job>),
}

impl Audience<'_> {
    fn send(&mut self, event: Event) {
        match self {
            Self::Client { session, gone } => *gone |= session.send(&event).is_err(),
            Self::Job(job) => job.tell(event),
        }
    }
}

impl Op<'_> {
    fn send(&mut self, event: Event) {
        self.audience.send(event);
    }

    /// Whether the client is still there, as far as the last event told.
    pub fn is_watched(&self) -> bool {
        match &self.audience {
            Audience::Client { gone, .. } => !gone,
            Audience::Job(job) => job.is_watched(),
        }
    }

    /// The number of the job.
    pub fn job(&self) -> Option<u64> {
        match &self.audience {
            Audience::Client { .. } => None,
            Audience::Job(job) => Some(job.id()),
        }
    }

    fn waits_for_lock(&self, waits: bool) {
        if let Audience::Job(job) = &self.audience {
            job.waits_for_lock(waits);
        }
    }

    /// From here on the command may be cancelled, or not any more; [`Op::stopped_by`] is looked at meanwhile.
    pub fn may_stop(&self, may: bool) {
        if let Audience::Job(job) = &self.audience {
            job.may_stop(may);
        }
    }

    /// Who has cancelled the command.
    pub fn stopped_by(&self) -> Option<String> {
        match &self.audience {
            Audience::Client { .. } => None,
            Audience::Job(job) => job.stopped_by(),
        }
    }

    /// Shows a step.
    pub fn step(&mut self, step: Step) {
        self.send(Event::Step(step));
    }

    /// Shows a line of output.
    pub fn line(&mut self, text: impl Into<String>) {
        self.send(Event::Line { text: text.into() });
    }

    /// Shows how far a long step is.
    pub fn progress(&mut self, progress: Progress) {
        let job = self.job();
        self.send(Event::Progress(Progress { job, ..progress }));
    }

    /// Echoes the exact point, before anything is done.
    pub fn resolved(&mut self, level: Option<u32>, point: PointInfo) {
        self.send(Event::Resolved { level, point });
    }

    /// Asks; anything but yes is a refusal that changed nothing.
    pub fn ask(&mut self, question: Question) -> Result<(), Failure> {
        let yes = match &mut self.audience {
            Audience::Client { session, .. } => session.ask(question),
            Audience::Job(job) => job.ask(question),
        };
        if yes {
            return Ok(());
        }
        Err(match self.stopped_by() {
            Some(by) => refused(format!("cancelled by {by} at its question")),
            None => refused("not confirmed"),
        })
    }

    /// As [`Op::ask`]; a dry run changes nothing and asks nothing.
    pub fn ask_unless_dry(&mut self, question: Question) -> Result<(), Failure> {
        if self.options.dry_run {
            Ok(())
        } else {
            self.ask(question)
        }
    }

    /// The context with this id, primary or failover.
    pub fn context(&self, id: u32) -> Result<Arc<Context>, Failure> {
        self.node.context(id).ok_or_else(|| {
            if let Some(damaged) = self.node.damaged_context(id) {
                return damaged.failure(Code::NotNow);
            }
            if let Some(failure) = not_opened(self.node, id, Code::NotNow) {
                return failure;
            }
            let known = self.node.context_ids();
            let known = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!(
                    "it has {}",
                    known
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                )
            };
            Failure::new(
                Code::Refused,
                format!("context {id} is not on this node; {known}"),
            )
            .with_hint_command("backstay status", self.node.name())
        })
    }
}

/// The answer of a context that is configured here and could not be opened.
fn not_opened(node: &Node, id: u32, code: Code) -> Option<Failure> {
    let name = id.to_string();
    let (_, why) = node.broken().into_iter().find(|(n, _)| *n == name)?;
    Some(
        Failure::new(code, format!("context {id} could not be opened: {why}"))
            .with_hint("mend what it names (docs/DAMAGE.md) and start the daemon again")
            .with_hint_command("backstay status", node.name()),
    )
}

/// Answers a request: a command that may change something becomes a job, which the client watches.
pub fn answer(node: &Arc<Node>, request: &Request, session: &mut Session) -> Option<Outcome> {
    let timeout = request.options.timeout_s.map(Duration::from_secs);
    if let Command::Job {
        job,
        verb: JobVerb::Attach,
    } = request.command
    {
        return match node.jobs().find(job) {
            Ok(job) => watch(session, &job, Seat::Guest, timeout),
            Err(failure) => Some(ended(node, None, Err(failure))),
        };
    }
    if !request.command.changes_state() || request.options.dry_run {
        let gone = false;
        return Some(run(node, request, Audience::Client { session, gone }));
    }
    let context = request.command.context();
    let id = context.map(|id| node.context(id).map_or(id, |c| c.id().0));
    let job = match node.jobs().begin(request, id) {
        Ok(job) => job,
        Err(failure) => return Some(ended(node, None, Err(failure))),
    };
    let (of, request) = ((Arc::clone(node), Arc::clone(&job)), request.clone());
    let work = move || {
        let (node, job) = of;
        let audience = Audience::Job(Arc::clone(&job));
        let worked = std::panic::catch_unwind(AssertUnwindSafe(|| run(&node, &request, audience)));
        let outcome = worked.unwrap_or_else(|_| {
            let text = "the command ended with a defect of the program; see the daemon's log";
            ended(&node, None, Err(Failure::new(Code::Bug, text)))
        });
        let result = outcome.result.as_ref().map_or_else(|f| &*f.error, |_| "done");
        node.jobs()
            .log()
            .ended(job.id(), outcome.code(), result, job.answers());
        job.end(outcome);
    };
    if let Err(e) = std::thread::Builder::new().name("job".into()).spawn(work) {
        let failure = Failure::new(Code::NotNow, format!("the command could not be begun: {e}"));
        job.end(ended(node, None, Err(failure)));
    }
    watch(session, &job, Seat::Owner, timeout)
}

/// The frame of an answer: who answers, and what comes next.
fn ended(node: &Arc<Node>, context: Option<&Context>, answer: Answer) -> Outcome {
    let head = Some(status::head(node, context));
    match answer {
        Ok((reply, next)) => Outcome {
            head,
            result: Ok(reply),
            next,
        },
        Err(failure) => {
            let next = failure.hint_command.clone().map(|command| NextStep {
                command,
                host: failure.hint_host.clone().unwrap_or_else(|| node.name()),
            });
            Outcome {
                head,
                result: Err(failure),
                next,
            }
        }
    }
}

/// Runs a request to its end.
fn run(node: &Arc<Node>, request: &Request, mut audience: Audience<'_>) -> Outcome {
    let command = &request.command;
    let context = command.context().and_then(|id| node.context(id));
    if !matches!(
        command,
        Command::Status { .. } | Command::Pins { .. } | Command::NodeInfo
    ) {
        audience.send(Event::Head(status::head(node, context.as_deref())));
    }
    let mut op = Op {
        node,
        options: &request.options,
        audience,
    };
    if let Some(job) = op.job() {
        op.send(Event::Begun { job });
    }
    let mut answer = match lock::take(&mut op, command, context.as_ref()) {
        Ok(_held) => dispatch(&mut op, command),
        Err(failure) => Err(failure),
    };
    if let (Ok((reply, _)), true) = (&answer, request.options.wait)
        && let Err(failure) = wait::to_the_end(&mut op, command, reply)
    {
        answer = Err(failure);
    }
    if command.changes_state() && !request.options.dry_run {
        let result = answer
            .as_ref()
            .map_or_else(|f| format!("{}: {}", f.code, f.error), |_| "done".into());
        tracing::info!(
            operator = request.options.operator,
            command = request.options.command_line,
            result
        );
        node.status_changed().ring();
    }
    let context = context.or_else(|| command.context().and_then(|id| node.context(id)));
    ended(node, context.as_deref(), answer)
}

fn dispatch(op: &mut Op<'_>, command: &Command) -> Answer {
    match command {
        Command::Status { context } => status::status(op, *context),
        Command::Pins { context } => pins::list(op, *context),
        Command::ReleasePin { context, pin } => pins::release(op, *context, *pin),
        Command::NodeInfo => status::node_info(op),
        Command::Snapshot {
            context,
            target,
            name,
        } => snapshot::snapshot(op, *context, target, name.as_deref()),
        Command::Release { context, which } => snapshot::release(op, *context, *which),
        Command::FailoverRestore { context, to, volume } => {
            restore::failover_restore(op, *context, to, volume.as_deref())
        }
        Command::UndoRestore { context } => restore::undo(op, *context),
        Command::Windows {
            context,
            windows,
            marks,
            lfcs,
            from,
            to,
            limit,
        } => {
            let wanted = windows::Wanted {
                windows: *windows,
                marks: *marks,
                lfcs: *lfcs,
                limit: *limit,
            };
            windows::windows(op, *context, wanted, from.as_deref(), to.as_deref())
        }
        Command::Mark {
            context,
            name,
            description,
            sync,
            keep_s,
        } => {
            let how = mark::How {
                sync: *sync,
                keep_s: *keep_s,
            };
            mark::mark(op, *context, name, description, how)
        }
        Command::Marks { context } => windows::marks(op, *context),
        Command::Mount {
            context,
            level,
            at_dir,
            read_only,
            full_check,
            new_uuid,
        } => {
            let how = mount::How {
                read_only: *read_only,
                full_check: *full_check,
                new_uuid: *new_uuid,
                at_dir: at_dir.clone(),
            };
            mount::mount(op, *context, *level, &how)
        }
        Command::Unmount {
            context,
            drain,
            replica_side,
            force,
        } => mount::unmount(op, *context, *drain, *replica_side, *force),
        Command::Start {
            context,
            dirty: false,
        } => lifecycle::start(op, *context),
        Command::Start { context, dirty: true } => map::start_dirty(op, *context),
        Command::Dirty {
            context,
            volumes,
            full,
        } => map::dirty(op, *context, volumes, *full),
        Command::Grow {
            context,
            volume,
            bytes,
        } => grow::grow(op, *context, volume, *bytes),
        Command::Map { context, verb } => map::map(op, *context, verb),
        Command::Stop {
            context,
            unmount,
            drain,
        } => lifecycle::stop(op, *context, *unmount, *drain),
        Command::Failover {
            context,
            mount,
            inconsistent,
        } => role::failover(op, *context, *mount, *inconsistent),
        Command::SetUpFailover {
            context,
            failover_id,
            host,
        } => role::set_up(op, *context, *failover_id, host.as_deref()),
        Command::Resync { context, both } => role::resync(op, *context, *both),
        Command::Failback { context, mount, stay } => role::failback(op, *context, *mount, *stay),
        Command::Protect(protect) => protect::protect(op, protect),
        Command::Wait { context, until } => wait::wait(op, *context, until),
        Command::Jobs { context } => jobs::list(op, *context),
        Command::Job { job, verb } => jobs::one(op, *job, *verb),
        Command::Log { context, limit } => jobs::log(op, *context, *limit),
        Command::Probe { context } => wait::probe(op, *context),
        Command::Verify {
            context,
            repair,
            sample,
        } => verify::verify(op, *context, *repair, *sample),
        Command::PairOpen => pair::open(op),
        Command::PairJoin { string } => pair::join(op, string),
        _ => Err(Failure::new(
            Code::Usage,
            "this daemon does not know that command",
        )),
    }
}

/// A next step on this node.
pub(crate) fn next(command: impl Into<String>, host: impl AsRef<str>) -> Option<NextStep> {
    Some(NextStep {
        command: command.into(),
        host: host.as_ref().to_owned(),
    })
}

/// The answer of a dry run.
pub(crate) fn planned(point: Option<PointInfo>, steps: Vec<String>) -> Answer {
    let plan = PlanReply {
        point,
        steps,
        ..PlanReply::default()
    };
    Ok((Reply::Plan(plan), None))
}

/// What runs on a production.
pub(crate) fn production(running: &Running) -> Result<&Production, Failure> {
    match running {
        Running::Production(production) => Ok(production),
        Running::Recovery(_) => Err(Failure::new(
            Code::Bug,
            "recovery runs where production was checked",
        )),
    }
}

/// A refusal: nothing changed.
pub(crate) fn refused(text: impl Into<String>) -> Failure {
    Failure::new(Code::Refused, text)
}

/// Why a context that does not run does not, and what leads on.
pub(crate) fn not_running(op: &Op<'_>, context: &Context) -> Failure {
    let id = context.id();
    let (text, step) = match context.standing() {
        Standing::Fenced => {
            let why = context
                .fenced_why()
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            let step = if context.is_home() {
                Next::Resync
            } else {
                Next::Failback
            };
            (format!("context {id} is fenced here{why}"), step)
        }
        Standing::FailingOver => (
            format!("context {id} is in the middle of a failover here"),
            Next::Failover,
        ),
        _ => {
            let stopped = || format!("context {id} is stopped");
            (context.held_back().unwrap_or_else(stopped), Next::Start)
        }
    };
    refused(text).with_hint_command(step.command(id).0, op.node.name())
}

/// A failure part-way: the same command goes on.
pub(crate) fn part_way(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::from_error(Code::PartWay, error)
}
