//! `rtstart`, `rtstop`.

use super::{Answer, Op, next, part_way, refused};
use crate::context::{Context, Running};
use control::{
    Code, Failure, Progress, Reply, Step, Unit,
    reply::{StartReply, StopReply},
};
use model::Role;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

fn agent(role: Role) -> &'static str {
    match role {
        Role::Production => "scrt_lca",
        Role::Recovery => "scrt_aba",
    }
}

/// `rtstart`.
pub fn start(op: &mut Op<'_>, id: u32) -> Answer {
    let context = op.context(id)?;
    let devices = context
        .config
        .volumes
        .iter()
        .filter(|_| context.role() == Role::Production)
        .map(|v| {
            op.node
                .attacher()
                .name_of(&format!("c{}/{}", context.id(), v.name))
                .display()
                .to_string()
        })
        .collect();
    let already = context.is_running();
    if !already {
        super::role::may_start(op, &context)?;
    }
    if op.options.dry_run {
        let steps = if already {
            vec![]
        } else {
            vec![format!("start {}", agent(context.role()))]
        };
        return super::planned(None, steps);
    }
    if !already {
        op.step(Step::Starting {
            agent: agent(context.role()).into(),
        });
        set_stopped(&context, None)?;
        if let Err(e) = context.start() {
            return Err(Failure::from_error(Code::PartWay, &e));
        }
    }
    let mounts: Vec<String> = context
        .config
        .volumes
        .iter()
        .filter_map(|v| Some(v.mount.as_ref()?.display().to_string()))
        .collect();
    let production = context.role() == Role::Production;
    let reply = StartReply {
        context: context.id().0,
        already,
        devices,
        not_mounted: if production { mounts } else { Vec::new() },
    };
    let next = if production {
        next(format!("rtmnt -C {id}"), op.node.name())
    } else {
        next(format!("backstay status -C {id}"), op.node.name())
    };
    Ok((Reply::Start(reply), next))
}

/// How long connections that are being closed may take.
const CLOSING: Duration = Duration::from_secs(1);

/// Connections that stay open: a client that has just ended, as after an unmount, is not held against anybody.
pub fn connections(op: &Op<'_>, matches: impl Fn(&str) -> bool) -> usize {
    let deadline = Instant::now() + CLOSING;
    loop {
        let open = op.node.readers(&matches);
        if open == 0 || Instant::now() >= deadline {
            return open;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes "stopped by an operator", or its end, durable.
fn set_stopped(context: &Context, by: Option<&str>) -> Result<(), Failure> {
    let changed = context.change_row(|row| crate::roles::row::put_stop(row, by));
    changed.map_err(|e| part_way(&e))
}

/// `rtstop`.
pub fn stop(op: &mut Op<'_>, id: u32, unmount: bool, drain_first: bool) -> Answer {
    let context = op.context(id)?;
    let production = context.role() == Role::Production;
    let already = context.is_stopped();
    if op.options.dry_run {
        let mut steps = Vec::new();
        if already {
            return super::planned(None, steps);
        }
        if unmount {
            if !op.options.force {
                super::mount::busy(op, &context, !production)?;
            }
            steps.push("unmount and detach".into());
        } else {
            closed(op, &context)?;
        }
        if drain_first && production {
            reachable(&context)?;
            steps.push("drain to the recovery host".into());
        }
        steps.push(format!("stop {}, close the volumes", agent(context.role())));
        return super::planned(None, steps);
    }
    if !already {
        if unmount {
            super::mount::unmount_all(op, &context, !production, op.options.force)?;
        }
        closed(op, &context)?;
        if drain_first && production {
            op.step(Step::SyncAny);
            drain(op, &context)?;
        }
        op.step(Step::Stopping {
            agent: agent(context.role()).into(),
        });
        set_stopped(&context, Some(&op.options.operator))?;
        context.halt();
        if let Some(error) = context.journal.poisoned() {
            return Err(Failure::from_error(Code::PartWay, &error));
        }
    }
    let config = op.node.config();
    let backings = context
        .config
        .volumes
        .iter()
        .map(|v| {
            v.backing_on(&config.name, &config.state_dir, context.config.id)
                .display()
                .to_string()
        })
        .collect();
    let reply = StopReply {
        context: context.id().0,
        already,
        drained: drain_first && production && !already,
        backings,
    };
    Ok((
        Reply::Stop(reply),
        next(format!("rtstart -C {id}"), op.node.name()),
    ))
}

/// Refuses while anything of the context is open.
fn closed(op: &Op<'_>, context: &Context) -> Result<(), Failure> {
    let id = context.id();
    let prefix = format!("c{id}/");
    let attached: Vec<String> = super::mount::attached(op)?
        .into_iter()
        .filter(|a| a.export.starts_with(&prefix))
        .map(|a| format!("{} attached as {}", a.export, a.name.display()))
        .collect();
    let connections = connections(op, |name| name.starts_with(&prefix));
    let holders = match (attached.is_empty(), connections) {
        (true, 0) => return Ok(()),
        (true, open) => vec![format!("{open} NBD connections to volumes of context {id}")],
        (false, _) => attached,
    };
    Err(refused(format!("volumes of context {id} are open"))
        .with_holders(holders)
        .with_hint_command(format!("rtumnt -C {id}"), op.node.name()))
}

/// Not now, when the peer cannot be drained to.
pub(super) fn reachable(context: &Context) -> Result<(), Failure> {
    if context.running().is_none() || context.peer().connected {
        return Ok(());
    }
    let cursors = context.journal.cursors();
    let (target, _) = context.journal.line_cursors();
    let text = format!(
        "{} is not reachable: {} records are not there yet",
        context.peer_name(),
        target.0.saturating_sub(cursors.received_by_peer.0)
    );
    Err(Failure::new(Code::NotNow, text).with_hint("run the same command again when it is, or leave out -S (and -F): what is missing stays in the journal"))
}

/// Waits until the peer has received all, it is away, or the time is over.
pub(crate) fn wait_for_peer(context: &Context, at_most: Duration) {
    let deadline = Instant::now() + at_most;
    let (_, end) = context.journal.line_cursors();
    let mut ear = context.bells.acknowledged.ear();
    while context.peer().connected
        && context.journal.cursors().received_by_peer < end
        && let Some(left) = deadline.checked_duration_since(Instant::now())
    {
        ear.wait(left.min(Duration::from_secs(1)));
    }
}

/// Seals the open container and waits until the peer has applied everything; it may be cancelled meanwhile.
pub fn drain(op: &mut Op<'_>, context: &Arc<Context>) -> Result<(), Failure> {
    op.may_stop(true);
    let drained = drain_all(op, context);
    op.may_stop(false);
    drained
}

fn drain_all(op: &mut Op<'_>, context: &Arc<Context>) -> Result<(), Failure> {
    let Some(running) = context.running() else {
        return Ok(());
    };
    let Running::Production(production) = &*running else {
        return Ok(());
    };
    op.step(Step::SyncWaiting);
    production.tap.seal_now().map_err(|e| part_way(&e))?;
    context.bells.sealed.ring();
    context.bells.durable.ring();
    let (target, _) = context.journal.line_cursors();
    let first = context.journal.cursors().received_by_peer.0;
    let mut ear = context.bells.acknowledged.ear();
    loop {
        let cursors = context.journal.cursors();
        let peer = context.peer();
        let copied = context.peer_has_copies();
        if copied && cursors.applied_by_peer >= target {
            break;
        }
        if !peer.connected {
            reachable(context)?;
        }
        // A rolled-back replica applies nothing, but it has everything.
        if copied && peer.rolled_back && cursors.received_by_peer >= target {
            break;
        }
        if let Some(by) = op.stopped_by() {
            return Err(
                Failure::new(Code::PartWay, format!("the drain was cancelled by {by}")).with_hint(
                    "nothing is lost: what is missing there stays in the journal, and goes on flowing",
                ),
            );
        }
        op.progress(Progress {
            what: "drain".into(),
            done: cursors.received_by_peer.0.saturating_sub(first),
            total: Some(target.0.saturating_sub(first)),
            unit: Unit::Writes,
            ..Progress::default()
        });
        ear.wait(Duration::from_millis(500));
    }
    op.step(Step::SyncDone);
    Ok(())
}
