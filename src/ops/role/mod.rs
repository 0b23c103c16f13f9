//! `rtdr`: setup, failover, resync, failback.
//!
//! Each command asks the table ([`crate::roles::table`]) first, then the peer, then the operator; then it does its steps, each
//! durable before the next one, so that the same command goes on after anything.

mod failback;
mod failover;
mod losing;
mod resync;
mod setup;

pub use failback::failback;
pub(crate) use failback::follow_again;
pub use failover::failover;
pub(crate) use resync::ship;
pub use resync::{resync, unify};
pub use setup::set_up;

use super::{Answer, Op, next, part_way, refused};
use crate::{
    context::Context,
    hooks::{Facts, HookEvent},
    peer::PeerError,
    roles::{
        Act, Next, Standing, Verdict,
        change::{ChangeError, Host},
        decide,
        peer::PeerStanding,
        rules::{Here, is_outdone},
    },
};
use control::{
    Code, Failure, PointInfo, Reply,
    reply::{RoleReply, RoleVerb},
};
use journal::{Cell, ContextRow, MapShape};
use model::{Role, Term, VolumeIndex};
use std::{sync::Arc, time::Instant};

/// What the table says of an act here.
enum Gate {
    /// It may be done.
    Open,
    /// It may be done because the operator insists.
    Forced,
    /// It is so.
    Already,
}

/// What the hosts would find out at their next contact, found out before the table is asked: a stopped context dials nobody, and
/// an operator is quicker than a link that has just come back.
fn meet(context: &Arc<Context>) {
    if context.role() != Role::Production || context.standing() == Standing::Fenced {
        return;
    }
    if let Ok(peer) = crate::roles::peer::ask(context)
        && is_outdone(context.term(), &peer)
    {
        let why = format!("{} is production at term {}", context.peer_name(), peer.term);
        context.fence(Term(peer.term), &why);
    }
}

/// Asks the table; what it refuses is refused with the command that leads on.
fn gate(op: &Op<'_>, context: &Arc<Context>, act: Act, verb: &str) -> Result<Gate, Failure> {
    meet(context);
    let standing = context.standing();
    match decide(standing, context.is_stopped(), context.is_home(), act) {
        Verdict::Go => Ok(Gate::Open),
        Verdict::Already => Ok(Gate::Already),
        Verdict::Force(_) if op.options.force => Ok(Gate::Forced),
        Verdict::Force(step) => {
            Err(refuse(op, context, verb, step).with_hint("-f overrides this, after a question"))
        }
        Verdict::Refuse(step) => Err(refuse(op, context, verb, step)),
    }
}

fn refuse(op: &Op<'_>, context: &Context, verb: &str, step: Next) -> Failure {
    let stopped = if context.is_stopped() { ", stopped" } else { "" };
    let text = format!(
        "{verb}: context {} is {}{stopped} here",
        context.id(),
        context.standing()
    );
    hinted(refused(text), op, context, step)
}

/// A failure with the command that leads on, on the right host.
fn hinted(failure: Failure, op: &Op<'_>, context: &Context, step: Next) -> Failure {
    let (command, there) = step.command(context.id());
    let host = if there {
        context.peer_name().to_owned()
    } else {
        op.node.name()
    };
    failure.with_hint_command(command, host)
}

/// Whether `rtstart` may start the context: not a fenced one, and not one that must hear its peer first.
pub(super) fn may_start(op: &Op<'_>, context: &Arc<Context>) -> Result<(), Failure> {
    gate(op, context, Act::Start, "start")?;
    let waits = context
        .held_back()
        .filter(|_| context.standing().serves() && !op.options.force);
    let Some(why) = waits else { return Ok(()) };
    if context.hear_peer() {
        return gate(op, context, Act::Start, "start").map(drop);
    }
    Err(refused(why)
        .with_hint("-f serves all the same: only if the other host surely does not")
        .with_hint_command(
            format!("backstay status -C {}", context.id()),
            context.peer_name(),
        ))
}

/// Runs the hooks of an event; a required one that fails refuses the command, which has changed nothing yet.
fn hooks(op: &mut Op<'_>, context: &Context, event: HookEvent) -> Result<(), Failure> {
    let node = Arc::clone(op.node);
    let facts = Facts::of(context);
    let ran = node.hooks().run(event, &facts, &mut |line| op.line(line));
    ran.map(drop).map_err(|e| {
        Failure::from_error(Code::Refused, &e)
            .with_hint("nothing was changed; mend the hook, or take it out of `required`")
    })
}

/// The peer's standing; not to be had: 75.
fn ask_peer(op: &Op<'_>, context: &Context) -> Result<PeerStanding, Failure> {
    crate::roles::peer::ask(context).map_err(|e| peer_failure(op, context, &e))
}

pub(super) fn peer_failure(op: &Op<'_>, context: &Context, error: &PeerError) -> Failure {
    let code = if matches!(error, PeerError::Refused { .. }) {
        Code::Refused
    } else {
        Code::NotNow
    };
    Failure::from_error(code, error)
        .with_hint("nothing was changed; run the same command again when it answers")
        .with_hint_command(format!("backstay status -C {}", context.id()), op.node.name())
}

/// As [`peer_failure`], after the peer was asked to give its role up: it may have, and its answer may be lost.
fn give_up_failure(op: &Op<'_>, context: &Context, error: &PeerError, verb: &str) -> Failure {
    if matches!(error, PeerError::Refused { .. }) {
        return peer_failure(op, context, error);
    }
    Failure::from_error(Code::NotNow, error)
        .with_hint(format!(
            "{} may have given its role up: nobody is production until the same command has gone through",
            context.peer_name()
        ))
        .with_hint_command(format!("rtdr -C {} {verb}", context.id()), op.node.name())
}

/// This host, for the rules that a change of role asks.
fn here<'a>(row: &'a ContextRow, context: &'a Context) -> Here<'a> {
    Here {
        row,
        journal: &context.journal,
    }
}

/// State maps of a host that becomes production for the first time: equal to the peer but for what is marked.
fn maps(context: &Context) -> Vec<(VolumeIndex, MapShape)> {
    let shape = |index| MapShape {
        size: context.extent(index),
        region_size: context.config.region_size.0,
        default: Cell::Clean,
    };
    let volumes = context.config.indexed();
    volumes.map(|(index, _)| (index, shape(index))).collect()
}

/// The row that makes a host this.
fn row_of(context: &Context, standing: Standing, term: Term) -> ContextRow {
    let mut row = context.row();
    crate::roles::row::put_stop(&mut row, None);
    crate::roles::row::put_standing(&mut row, standing, term, None);
    row
}

/// Runs a change of role on the context's journal and volumes, which nobody else uses meanwhile.
fn changed<T>(
    context: &Context,
    change: impl FnOnce(&Host<'_>) -> Result<T, ChangeError>,
) -> Result<T, Failure> {
    let volumes = context.open_volumes().map_err(|e| part_way(&e))?;
    let host = Host {
        journal: &context.journal,
        volumes: &volumes,
    };
    change(&host).map_err(|e| match e {
        ChangeError::WouldLose => Failure::from_error(Code::Refused, &e),
        e => part_way(&e).with_hint("run the same command again to go on"),
    })
}

/// The newest record of this host's line.
fn end_info(context: &Context) -> PointInfo {
    let (end, _) = context.journal.line_cursors();
    let rows = context.journal.lfc_rows(..);
    let open = context.journal.open_row();
    let row = rows
        .iter()
        .map(|r| &**r)
        .chain(open.as_ref())
        .rfind(|r| r.first_seq <= end);
    row.map_or_else(PointInfo::default, |r| {
        PointInfo::new(r.generation.0, end.min(r.last_seq), r.lfc, r.last_time)
    })
}

fn reply(context: &Context, verb: RoleVerb, already: bool, started: Instant) -> RoleReply {
    let production = if context.role() == Role::Production {
        context.node_name()
    } else {
        context.peer_name()
    };
    RoleReply {
        context: context.id().0,
        failover_id: context.failover_id(),
        verb,
        host: production.to_owned(),
        already,
        term: context.term().0,
        missing_known: true,
        seconds: started.elapsed().as_secs_f64(),
        ..RoleReply::default()
    }
}

/// Starts what a host is now.
fn start(context: &Arc<Context>) -> Result<(), Failure> {
    context.start().map_err(|e| part_way(&e))
}

/// Attaches, checks and mounts the protected volumes, as `rtmnt` does.
fn mount(
    op: &mut Op<'_>,
    context: &Context,
    wanted: bool,
) -> Result<Vec<control::reply::MountInfo>, Failure> {
    if !wanted || context.config.volumes.iter().all(|v| v.mount.is_none()) {
        return Ok(Vec::new());
    }
    let how = super::mount::How {
        read_only: false,
        full_check: false,
        new_uuid: false,
        at_dir: None,
    };
    match super::mount::mount(op, context.id().0, None, &how) {
        Ok((Reply::Mount(mounted), _)) => Ok(mounted.volumes),
        Ok(_) => Ok(Vec::new()),
        Err(mut failure) => {
            // The role has changed; only the mount is missing.
            failure.code = Code::PartWay;
            Err(failure
                .with_hint("this host is production; only its file systems are not mounted")
                .with_hint_command(format!("rtmnt -C {}", context.id()), op.node.name()))
        }
    }
}

/// Devices of the context that are still attached here: nobody may hold a volume while its host changes.
fn held(op: &Op<'_>, context: &Context) -> Result<Vec<String>, Failure> {
    let prefix = format!("c{}/", context.id());
    let protected = |export: &str| {
        export
            .strip_prefix(&prefix)
            .is_some_and(|rest| !rest.contains('/'))
    };
    let attached = super::mount::attached(op)?
        .into_iter()
        .filter(|a| protected(&a.export));
    let attached: Vec<String> = attached
        .map(|a| match a.mounted {
            Some(at) => format!("{} mounted at {}", a.name.display(), at.display()),
            None => format!("{} attached as {}", a.export, a.name.display()),
        })
        .collect();
    Ok(match super::lifecycle::connections(op, protected) {
        open if open > 0 && attached.is_empty() => {
            vec![format!(
                "{open} NBD connections to volumes of context {}",
                context.id()
            )]
        }
        _ => attached,
    })
}
