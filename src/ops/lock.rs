//! What a command holds while it works: one state-changing command a context, over both hosts when they can talk.
//!
//! Snapshots, what only looks, and dry runs hold nothing. Mounts of snapshots, and their releases, hold the levels that they
//! are of, on this host alone; what ends the replica's work holds those too.

use super::Op;
use crate::{
    context::{CommandGuard, Context, Scope},
    node::Node,
    roles::lock::{Asked, Borrowed, borrow},
};
use control::{Code, Command, Failure, Holder, Moment, request::Which};
use model::{Level, Role, Timestamp};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How often one who waits looks whether he was cancelled, and asks the other host again.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a command holds; given back when dropped, on the other host first.
pub(super) struct Held {
    context: Option<Arc<Context>>,
    borrowed: Option<Borrowed>,
    _guard: CommandGuard,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(context), Some(_)) = (&self.context, &self.borrowed) {
            context.set_token(None);
        }
        drop(self.borrowed.take());
    }
}

/// What of a context a command works on, as its role is now.
fn scopes(command: &Command, role: Role) -> Vec<Scope> {
    let level = |level: Option<u32>| level.map_or(Scope::Levels, |n| Scope::Level(Level(n)));
    match command {
        command if !command.changes_state() => vec![],
        // A new snapshot changes nothing that another command works on.
        Command::Snapshot { .. } => vec![],
        // It may take days, and changes nothing but by copies, as a resync does.
        Command::Verify { .. } => vec![],
        Command::Mount { level: of, .. } if role == Role::Recovery => vec![level(*of)],
        Command::Unmount { replica_side, .. } if *replica_side || role == Role::Recovery => {
            vec![Scope::Levels]
        }
        Command::Release { which, .. } => match which {
            Which::Level(n) => vec![level(Some(*n))],
            Which::AllUnnamed | Which::All => vec![Scope::Levels],
        },
        Command::Stop { .. }
        | Command::Failover { .. }
        | Command::Resync { .. }
        | Command::Failback { .. } => vec![Scope::Context, Scope::Levels],
        _ => vec![Scope::Context],
    }
}

/// Takes what the command works on, and checks `--expect-term`: before it waits, and when it need not wait any more.
pub(super) fn take(
    op: &mut Op<'_>,
    command: &Command,
    context: Option<&Arc<Context>>,
) -> Result<Option<Held>, Failure> {
    let Some(context) = context else {
        return protecting(op, command);
    };
    expect_term(op, context)?;
    if op.options.dry_run {
        return Ok(None);
    }
    let taking = Taking {
        context,
        holder: holder(op),
        until: Instant::now() + Duration::from_secs(op.options.wait_lock_s.unwrap_or(0)),
    };
    op.may_stop(true);
    op.waits_for_lock(true);
    let held = loop {
        let scopes = scopes(command, context.role());
        if scopes.is_empty() {
            break Ok(None);
        }
        match taking.all(op, &scopes) {
            Err(failure) => break Err(failure),
            // The role may have changed while it waited.
            Ok(held) if scopes == self::scopes(command, context.role()) => break Ok(Some(held)),
            Ok(_) => {}
        }
    };
    op.waits_for_lock(false);
    op.may_stop(false);
    let held = held?;
    expect_term(op, context)?;
    Ok(held)
}

/// A context that is being made has no lock yet: one at a time on this node.
fn protecting(op: &Op<'_>, command: &Command) -> Result<Option<Held>, Failure> {
    if !matches!(command, Command::Protect(_)) || op.options.dry_run {
        return Ok(None);
    }
    let wait = Duration::from_secs(op.options.wait_lock_s.unwrap_or(0));
    let guard = op.node.protecting().lock(&[Scope::Context], &holder(op), wait);
    let guard = guard.map_err(|other| busy(op.node, "makes a context here", &other))?;
    Ok(Some(Held {
        context: None,
        borrowed: None,
        _guard: guard,
    }))
}

fn holder(op: &Op<'_>) -> Holder {
    Holder {
        host: op.node.name(),
        operator: op.options.operator.clone(),
        command: op.options.command_line.clone(),
        since: Moment::from(Timestamp::now()),
        job: op.job(),
    }
}

fn expect_term(op: &Op<'_>, context: &Context) -> Result<(), Failure> {
    let term = context.term().0;
    match op.options.expect_term {
        Some(expected) if expected != term => Err(Failure::new(
            Code::Refused,
            format!("the term is {term}, not {expected}: nothing was done"),
        )),
        _ => Ok(()),
    }
}

fn busy(node: &Node, what: &str, holder: &Holder) -> Failure {
    let command = match holder.job {
        Some(job) => format!("backstay jobs show {job}"),
        None => "backstay jobs".to_owned(),
    };
    let host = if holder.host.is_empty() {
        node.name()
    } else {
        holder.host.clone()
    };
    Failure::new(Code::NotNow, format!("another command {what}: {holder}"))
        .with_hint("--wait-lock SECONDS waits for it")
        .with_hint_command(command, host)
}

/// An attempt to take both locks.
struct Taking<'a> {
    context: &'a Arc<Context>,
    holder: Holder,
    until: Instant,
}

impl Taking<'_> {
    fn all(&self, op: &Op<'_>, scopes: &[Scope]) -> Result<Held, Failure> {
        let both = scopes.contains(&Scope::Context);
        let first_here = self.context.node_name() < self.context.peer_name();
        let (guard, borrowed) = if !both || first_here {
            let guard = self.here(op, scopes)?;
            (guard, if both { self.there(op)? } else { None })
        } else {
            // Nobody is asked in vain.
            drop(self.here(op, scopes)?);
            let borrowed = self.there(op)?;
            (self.here(op, scopes)?, borrowed)
        };
        if let Some(borrowed) = &borrowed {
            self.context.set_token(Some(borrowed.token));
        }
        Ok(Held {
            context: Some(Arc::clone(self.context)),
            borrowed,
            _guard: guard,
        })
    }

    /// The lock of this host.
    fn here(&self, op: &Op<'_>, scopes: &[Scope]) -> Result<CommandGuard, Failure> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            match self
                .context
                .lock_commands(scopes, &self.holder, left.min(LOOK_EVERY))
            {
                Ok(guard) => return Ok(guard),
                Err(other) => self.go_on(op, &other)?,
            }
        }
    }

    /// The lock of the other host; `None` when it cannot be asked.
    fn there(&self, op: &Op<'_>) -> Result<Option<Borrowed>, Failure> {
        loop {
            match borrow(self.context, &self.holder) {
                Asked::Held(borrowed) => return Ok(Some(borrowed)),
                Asked::Away(e) => {
                    tracing::debug!(context = self.context.id().0, "locked on this host alone: {e}");
                    return Ok(None);
                }
                Asked::Busy(other) => {
                    self.go_on(op, &other)?;
                    let left = self.until.saturating_duration_since(Instant::now());
                    std::thread::sleep(left.min(LOOK_EVERY));
                }
            }
        }
    }

    /// Whether to try again.
    fn go_on(&self, op: &Op<'_>, other: &Holder) -> Result<(), Failure> {
        if let Some(by) = op.stopped_by() {
            return Err(Failure::new(
                Code::Refused,
                format!("cancelled by {by}: nothing was done"),
            ));
        }
        if Instant::now() < self.until {
            return Ok(());
        }
        let what = format!("works on context {}", self.context.id());
        Err(busy(op.node, &what, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(level: Option<u32>) -> Command {
        Command::Mount {
            context: 1,
            level,
            at_dir: None,
            read_only: false,
            full_check: false,
            new_uuid: false,
        }
    }

    #[test]
    fn each_command_holds_what_it_works_on() {
        use Role::{Production, Recovery};
        let snapshot = Command::Snapshot {
            context: 1,
            target: "latest".into(),
            name: None,
        };
        let stop = Command::Stop {
            context: 1,
            unmount: false,
            drain: false,
        };
        let release = |which| Command::Release { context: 1, which };
        let ten = Scope::Level(Level(10));
        for (command, role, held) in [
            (Command::Status { context: Some(1) }, Production, vec![]),
            (snapshot, Recovery, vec![]),
            (mount(Some(10)), Recovery, vec![ten]),
            (mount(None), Recovery, vec![Scope::Levels]),
            (mount(None), Production, vec![Scope::Context]),
            (release(Which::Level(10)), Recovery, vec![ten]),
            (release(Which::All), Recovery, vec![Scope::Levels]),
            (stop, Recovery, vec![Scope::Context, Scope::Levels]),
            (
                Command::UndoRestore { context: 1 },
                Recovery,
                vec![Scope::Context],
            ),
        ] {
            assert_eq!(scopes(&command, role), held, "{command:?}");
        }
    }
}
