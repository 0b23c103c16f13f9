//! What the daemon does for each command: one file a group of commands.
//!
//! An operation gets an [`Op`]: the node, the request's options and the operator at the other end of the socket, who may be
//! shown steps and asked questions. It answers an [`Answer`]; the frame around it (head line, `Next:`) is made here.

#![expect(
    clippy::result_large_err,
    reason = "a failure ends a command: it is made once and never passed in a loop"
)]

pub(crate) mod lifecycle;
mod map;
mod mark;
mod mount;
mod pair;
mod pins;
mod protect;
mod restore;
pub(crate) mod role;
mod snapshot;
pub(crate) mod status;
mod wait;
mod windows;

use crate::{
    context::Context,
    node::Node,
    roles::{Next, Standing},
};
use control::{
    Code, Command, Event, Failure, NextStep, Outcome, PointInfo, Progress, Question, Reply, Request, Step,
    reply::PlanReply, request::Options, server::Session,
};
use std::sync::Arc;

/// What came of an operation, and what to type next.
pub type Answer = Result<(Reply, Option<NextStep>), Failure>;

/// One running operation.
pub struct Op<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// `-q -f -n …`.
    pub options: &'a Options,
    session: &'a mut Session,
    detached: bool,
}

impl Op<'_> {
    fn send(&mut self, event: Event) {
        // A client that went away has detached; the work goes on.
        self.detached |= self.session.send(&event).is_err();
    }

    /// Whether the client is still there, as far as the last event told.
    pub fn is_watched(&self) -> bool {
        !self.detached
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
        self.send(Event::Progress(progress));
    }

    /// Echoes the exact point, before anything is done.
    pub fn resolved(&mut self, level: Option<u32>, point: PointInfo) {
        self.send(Event::Resolved { level, point });
    }

    /// Asks; anything but yes is a refusal that changed nothing.
    pub fn ask(&mut self, question: Question) -> Result<(), Failure> {
        if self.session.ask(question) {
            Ok(())
        } else {
            Err(Failure::new(Code::Refused, "not confirmed"))
        }
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

/// Runs a request to its end.
pub fn run(node: &Arc<Node>, request: &Request, session: &mut Session) -> Outcome {
    let command = &request.command;
    let context = command.context().and_then(|id| node.context(id));
    let head = || status::head(node, context.as_deref());
    if !matches!(
        command,
        Command::Status { .. } | Command::Pins { .. } | Command::NodeInfo
    ) {
        let _ = session.send(&Event::Head(head()));
    }
    let answer = locked(node, request, context.as_deref()).and_then(|_lock| {
        let mut op = Op {
            node,
            options: &request.options,
            session,
            detached: false,
        };
        dispatch(&mut op, command)
    });
    if command.changes_state() && !request.options.dry_run {
        let result = answer
            .as_ref()
            .map_or_else(|f| format!("{}: {}", f.code, f.error), |_| "done".into());
        tracing::info!(
            operator = request.options.operator,
            command = request.options.command_line,
            result
        );
        node.keep_status();
    }
    match answer {
        Ok((reply, next)) => Outcome {
            head: Some(head()),
            result: Ok(reply),
            next,
        },
        Err(failure) => {
            let next = failure.hint_command.clone().map(|command| NextStep {
                command,
                host: failure
                    .hint_host
                    .clone()
                    .unwrap_or_else(|| node.name().to_owned()),
            });
            Outcome {
                head: Some(head()),
                result: Err(failure),
                next,
            }
        }
    }
}

/// Takes the context's command lock for commands that change state, and checks `--expect-term`.
fn locked<'a>(
    node: &Node,
    request: &Request,
    context: Option<&'a Context>,
) -> Result<Option<crate::context::CommandGuard<'a>>, Failure> {
    let Some(context) = context else { return Ok(None) };
    if let Some(expected) = request.options.expect_term {
        let term = context.term().0;
        if term != expected {
            return Err(Failure::new(
                Code::Refused,
                format!("the term is {term}, not {expected}: nothing was done"),
            ));
        }
    }
    // A new snapshot waits for nobody: it changes nothing that another command works on.
    let snapshot = matches!(request.command, Command::Snapshot { .. });
    if !request.command.changes_state() || snapshot || request.options.dry_run {
        return Ok(None);
    }
    let wait = std::time::Duration::from_secs(request.options.wait_lock_s.unwrap_or(0));
    let who = format!("{}: {}", request.options.operator, request.options.command_line);
    context.lock_commands(who, wait).map(Some).map_err(|holder| {
        Failure::new(
            Code::NotNow,
            format!("another command works on context {}: {holder}", context.id()),
        )
        .with_hint("--wait-lock SECONDS waits for it")
        .with_hint_command(format!("backstay status -C {}", context.id()), node.name())
    })
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
        } => {
            let how = mount::How {
                read_only: *read_only,
                full_check: *full_check,
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
        Command::Wait {
            context,
            until,
            timeout_s,
        } => wait::wait(op, *context, until, *timeout_s),
        Command::Probe { context } => wait::probe(op, *context),
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
