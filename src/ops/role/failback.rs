//! `rtdr failback`: the configured production takes its role back, then the configured recovery follows it again.
//!
//! The order is the peers' own: the configured production takes over only when the other has given its role up, durably, with
//! everything drained and applied; so typed on the recovery first it waits, and goes on by itself.

use super::{
    Answer, Gate, Op, ask_peer, changed, end_info, gate, here, hinted, hooks, maps, mount, next, part_way,
    refused, reply, row_of, start,
};
use crate::{
    config::HistoryOnProduction,
    context::Context,
    hooks::HookEvent,
    roles::{
        Act, Next, Standing,
        change::At,
        peer::{self, PeerStanding},
        row::HANDED_BACK,
        rules::TakeBack,
    },
};
use control::{Failure, Reply, Step, reply::RoleVerb};
use model::{Term, Timestamp};
use std::{sync::Arc, time::Instant};

/// `rtdr failback`.
pub fn failback(op: &mut Op<'_>, id: u32, mounted: bool, stay: bool) -> Answer {
    let context = op.context(id)?;
    if stay {
        return super::setup::stay(op, &context);
    }
    let already = matches!(gate(op, &context, Act::Failback, "failback")?, Gate::Already);
    if context.is_home() {
        take_back(op, &context, mounted, already)
    } else {
        give_back(op, &context, already)
    }
}

/// The configured production.
fn take_back(op: &mut Op<'_>, context: &Arc<Context>, mounted: bool, already: bool) -> Answer {
    let started = Instant::now();
    let id = context.id();
    if context.standing() == Standing::FailedOver {
        return stay_home(op, context, mounted);
    }
    if !already {
        let peer = ask_peer(op, context)?;
        check_peer(op, context, &peer)?;
        if op.options.dry_run {
            return super::super::planned(
                Some(end_info(context)),
                vec![
                    format!("have {} give its role up, durably", context.peer_name()),
                    "become production".into(),
                    "attach, check and mount the volumes".into(),
                ],
            );
        }
        let row = context.row();
        let term = here(&row, context).next_term(Some(&peer));
        hooks(op, context, HookEvent::PreFailback)?;
        let gave = peer::ask_to_give_up(context, term, false)
            .map_err(|e| super::give_up_failure(op, context, &e, "failback"))?;
        check_drained(op, context, &gave)?;
        context
            .set_standing(Standing::FailingOver, term, None)
            .map_err(|e| part_way(&e))?;
        context.halt();
        let row = row_of(context, Standing::Producing, term);
        let maps = maps(context);
        changed(context, |host| host.take_over(&At::Newest, &maps, &row))?;
        context.took_over(row);
        if context.config.history_on_production == HistoryOnProduction::Drop {
            op.line(format!(
                "Earlier points are looked at on {} from now on.",
                context.peer_name()
            ));
            context.journal.drop_history().map_err(|e| part_way(&e))?;
        }
        op.step(Step::DriversLoaded {
            production: true,
            context: id.0,
        });
        op.step(Step::Starting {
            agent: "scrt_lca".into(),
        });
        start(context)?;
    }
    let volumes = if already && !context.is_running() {
        Vec::new()
    } else {
        mount(op, context, mounted)?
    };
    op.step(Step::PrimaryEnabled { context: id.0 });
    let mut reply = reply(context, RoleVerb::Failback, already, started);
    reply.point = Some(end_info(context));
    reply.volumes = volumes;
    if !already {
        hooks(op, context, HookEvent::PostFailback)?;
    }
    let step = next(format!("rtdr -C {id} failback"), context.peer_name());
    Ok((Reply::Role(reply), step))
}

/// The configured production has taken over by itself, and is to be what it is configured to be: it ships, and the other host
/// follows when it is told to.
fn stay_home(op: &mut Op<'_>, context: &Arc<Context>, mounted: bool) -> Answer {
    let started = Instant::now();
    let id = context.id();
    if op.options.dry_run {
        return super::super::planned(
            Some(end_info(context)),
            vec![format!("ship to {}", context.peer_name())],
        );
    }
    op.step(Step::Starting {
        agent: "scrt_lca".into(),
    });
    super::ship(context).map_err(|e| part_way(&e))?;
    let volumes = mount(op, context, mounted)?;
    op.step(Step::PrimaryEnabled { context: id.0 });
    let mut reply = reply(context, RoleVerb::Failback, false, started);
    reply.point = Some(end_info(context));
    reply.volumes = volumes;
    let step = next(format!("rtdr -C {id} resync"), context.peer_name());
    Ok((Reply::Role(reply), step))
}

/// Everything must be here, and the other host must have ended.
fn check_peer(op: &Op<'_>, context: &Context, peer: &PeerStanding) -> Result<(), Failure> {
    let name = context.peer_name();
    match here(&context.row(), context).take_back(peer) {
        TakeBack::Ready => Ok(()),
        TakeBack::NotShipping => {
            let text = format!("{name} has not begun the resync");
            Err(hinted(refused(text), op, context, Next::ResyncThere))
        }
        TakeBack::Copying => {
            let left = peer.stale_bytes;
            Err(refused(format!(
                "the resync is not complete: {left} bytes are to be copied"
            ))
            .with_hint_command(
                format!("backstay wait -C {} --until resynced", context.id()),
                name,
            ))
        }
        TakeBack::Runs => {
            let text = format!("{name} still runs as production");
            Err(hinted(refused(text), op, context, Next::StopThere))
        }
        TakeBack::NoProduction => {
            let text = format!("{name} is {}", peer.standing());
            Err(hinted(refused(text), op, context, Next::Failover))
        }
        TakeBack::Behind => check_drained(op, context, peer),
    }
}

fn check_drained(op: &Op<'_>, context: &Context, peer: &PeerStanding) -> Result<(), Failure> {
    let name = context.peer_name();
    let cursors = context.journal.cursors();
    let row = context.row();
    let side = here(&row, context);
    if side.has_all_of(peer) {
        return Ok(());
    }
    let failure = refused(format!(
        "not everything of {name} is here: it ends at record {}, {} is applied here, {} bytes are to be copied",
        peer.end, cursors.applied, peer.stale_bytes
    ));
    if let Some(next) = side.instead_of_waiting(peer) {
        return Err(hinted(failure, op, context, next));
    }
    Err(failure
        .with_hint(format!(
            "start it again there (rtstart -C {}), wait for the resync, and stop it with -FS",
            context.id()
        ))
        .with_hint_command(format!("rtstart -C {}", context.id()), name))
}

/// The configured recovery.
fn give_back(op: &mut Op<'_>, context: &Arc<Context>, already: bool) -> Answer {
    let started = Instant::now();
    let id = context.id();
    if already {
        return following(op, context, true, started);
    }
    let peer = ask_peer(op, context)?;
    if op.options.dry_run {
        let steps = match context.standing() {
            Standing::Fenced if peer.standing().serves() => vec![format!("follow {}", context.peer_name())],
            _ => vec![
                "give the role up, durably".to_owned(),
                format!("wait for {} to take it", context.peer_name()),
            ],
        };
        return super::super::planned(None, steps);
    }
    if context.standing() == Standing::Fenced && peer.standing().serves() {
        op.step(Step::DriversLoaded {
            production: false,
            context: id.0,
        });
        op.step(Step::Starting {
            agent: "scrt_aba".into(),
        });
        hooks(op, context, HookEvent::PreFailback)?;
        follow(context, &peer).map_err(|failure| {
            if failure.code == control::Code::Refused {
                hinted(failure, op, context, Next::Resync)
            } else {
                failure
            }
        })?;
        hooks(op, context, HookEvent::PostFailback)?;
        return following(op, context, false, started);
    }
    if context.standing() != Standing::Fenced {
        check_other_side(op, context, &peer)?;
    }
    let why = format!("it gave its role back: {} is to take it", context.peer_name());
    let mark = |row: &mut journal::ContextRow| {
        crate::roles::row::put_standing(row, Standing::Fenced, row.term, Some(&why));
        row.notes.insert(HANDED_BACK.into(), op.options.operator.clone());
    };
    context.change_row(mark).map_err(|e| part_way(&e))?;
    op.step(Step::WaitingFor {
        host: context.peer_name().to_owned(),
        command: format!("rtdr -C {id} failback"),
    });
    let mut reply = reply(context, RoleVerb::Failback, false, started);
    reply.waiting_for = Some(context.peer_name().to_owned());
    reply.host = context.peer_name().to_owned();
    let step = next(format!("rtdr -C {id} failback"), context.peer_name());
    Ok((Reply::Role(reply), step))
}

/// The other side must hold everything before this one gives its role up.
fn check_other_side(op: &Op<'_>, context: &Context, peer: &PeerStanding) -> Result<(), Failure> {
    let stale = context.stale_bytes();
    let end = context.journal.line_cursors().1.0;
    if here(&context.row(), context).is_all_at(peer) {
        return Ok(());
    }
    let text = format!(
        "{} does not have everything: it is {} at record {} of {end}, {stale} bytes are to be copied",
        context.peer_name(),
        peer.standing(),
        peer.applied
    );
    Err(refused(text)
        .with_hint(format!(
            "start the context (rtstart -C {0}), wait (backstay wait -C {0} --until resynced), and stop it with -FS",
            context.id()
        ))
        .with_hint_command(format!("rtstart -C {}", context.id()), op.node.name()))
}

fn following(op: &mut Op<'_>, context: &Arc<Context>, already: bool, started: Instant) -> Answer {
    let id = context.id();
    op.step(Step::PrimaryEnabled { context: id.0 });
    let mut reply = reply(context, RoleVerb::Failback, already, started);
    reply.point = Some(end_info(context));
    Ok((
        Reply::Role(reply),
        next(format!("backstay status -C {id}"), context.peer_name()),
    ))
}

/// Becomes the replica of a production that lacks nothing of this host's line.
fn follow(context: &Arc<Context>, peer: &PeerStanding) -> Result<(), Failure> {
    let term = Term(peer.term).max(context.term());
    let row = row_of(context, Standing::Replica, term);
    context.halt();
    changed(context, |host| {
        host.give_way(&peer.line(), false, &maps(context), &row)
    })?;
    context.took_over(row);
    start(context)
}

/// A production has greeted a host that is fenced: one that gave its role back goes on by itself.
pub(crate) fn follow_again(context: &Arc<Context>) {
    if !context.row().notes.contains_key(HANDED_BACK) {
        return;
    }
    let context = Arc::clone(context);
    let work = move || {
        let log = |holder: &control::Holder| {
            if context.standing() != Standing::Fenced {
                return;
            }
            let begun = Timestamp::now();
            let followed = peer::ask(&context).map_err(|e| e.to_string()).and_then(|peer| {
                if peer.standing().serves() {
                    follow(&context, &peer).map_err(|e| e.error)
                } else {
                    Ok(())
                }
            });
            if let Err(e) = &followed {
                tracing::error!(context = context.id().0, "failback: {e}");
            }
            let what = format!("{}: {} follows again", holder.command, context.node_name());
            let node = context.node();
            let log = node.jobs().log();
            log.note(Some(context.id().0), &holder.operator, &what, begun, &followed);
        };
        // Under the lock of the peer's command, which may still be at its mounts.
        if let Err(holder) = context.by_itself("failback, by itself", log) {
            tracing::warn!(context = context.id().0, "failback waits: {holder}");
        }
    };
    std::thread::spawn(work);
}
