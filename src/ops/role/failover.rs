//! `rtdr failover`: this host becomes production.
//!
//! | step | durable as |
//! | --- | --- |
//! | the other host gives its role up, if it answers | its own FENCED |
//! | in a super transaction, with `-f`: back to the last consistent point (L7) | RESTORING, ROLLED_BACK |
//! | nothing is received any more, and what that leaves is firm | FAILING_OVER, the new term |
//! | what was received is applied, or nothing from a restored point; the set is stale (L2) | undo, cursors, map |
//! | production | role, term and line in one commit |
//! | attach, check, mount | |

use super::{
    Answer, Gate, Op, changed, end_info, gate, here, hinted, hooks, maps, mount, next, part_way, refused,
    reply, row_of, start,
};
use crate::{
    context::Context,
    hooks::HookEvent,
    peer::PeerError,
    roles::{
        Act, Next, Standing,
        change::At,
        peer::{self, PeerStanding},
        rules::{self, Opponent},
    },
};
use control::{
    Code, Failure, MissingInfo, PointInfo, Question, Reply, Step, event::FailoverQuestion, reply::RoleVerb,
};
use journal::Position;
use model::{Role, Term, Timestamp};
use std::{sync::Arc, time::Instant};

/// What the peer is, as far as it can be known.
enum Peer {
    Answers(PeerStanding),
    Away,
}

/// What the operator has said yes to.
enum Ground {
    /// The volumes are consistent, or stand at a restored point.
    Firm,
    /// A resync is under way: the last consistent point is gone back to (L7).
    Resyncing,
    /// The volumes are taken as they are.
    Inconsistent,
}

/// `rtdr failover`.
pub fn failover(op: &mut Op<'_>, id: u32, mounted: bool, inconsistent: bool) -> Answer {
    let started = Instant::now();
    let context = op.context(id)?;
    let gate = match gate(op, &context, Act::Failover, "failover") {
        Err(_) if op.options.force && !inconsistent && goes_back(&context) => Gate::Open,
        gate => gate?,
    };
    if matches!(gate, Gate::Already) {
        return done(op, &context, mounted, None, true, started);
    }
    let standing = context.standing();
    let going_on = standing == Standing::FailingOver;
    let peer = match peer::ask(&context) {
        Ok(peer) => Peer::Answers(peer),
        Err(PeerError::Refused { host, text }) => {
            tracing::warn!("{host}: {text}");
            Peer::Away
        }
        Err(_) => Peer::Away,
    };
    let mut warnings = Vec::new();
    if let Peer::Answers(peer) = &peer {
        check_peer(op, &context, peer, &mut warnings)?;
    }
    let ground = ground(op, &context, inconsistent, &mut warnings)?;
    check_place(op, &context)?;
    if matches!(gate, Gate::Forced) {
        warnings.push(format!(
            "this host is {standing}: its own data is taken, against what {} has",
            context.peer_name()
        ));
    }
    let question = question(&context, &peer, warnings);
    if op.options.dry_run {
        return planned(&context, &peer, &ground, mounted, question.point);
    }
    let missing = question.missing;
    op.resolved(None, question.point.clone());
    if !going_on {
        op.ask(Question::Failover(Box::new(question)))?;
    }
    hooks(op, &context, HookEvent::PreFailover)?;
    take_role(op, &context, &peer, &ground)?;
    let missing = missing.map(Some).or(matches!(peer, Peer::Away).then_some(None));
    let answer = done(op, &context, mounted, missing, false, started)?;
    hooks(op, &context, HookEvent::PostFailover)?;
    Ok(answer)
}

/// Whether the same command was interrupted on its way back to the last consistent point.
fn goes_back(context: &Context) -> bool {
    !context.is_stopped() && here(&context.row(), context).goes_back(context.restore().as_ref())
}

fn check_peer(
    op: &Op<'_>,
    context: &Context,
    peer: &PeerStanding,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let name = context.peer_name();
    let row = context.row();
    let side = here(&row, context);
    let opponent = side.opponent(peer);
    if opponent == Opponent::Higher {
        let text = format!(
            "{name} is production at term {}, this host knows {}",
            peer.term,
            context.term()
        );
        return Err(hinted(refused(text), op, context, side.instead_of_failover(peer)));
    }
    if opponent == Opponent::Runs {
        let text = format!("{name} answers and runs");
        if !op.options.force {
            return Err(hinted(refused(text), op, context, Next::StopThere));
        }
        warnings.push(format!(
            "{text}: it is stopped first; what uses its volumes gets errors"
        ));
    }
    Ok(())
}

fn ground(
    op: &Op<'_>,
    context: &Context,
    inconsistent: bool,
    warnings: &mut Vec<String>,
) -> Result<Ground, Failure> {
    let ground = here(&context.row(), context).ground(context.restore().as_ref());
    if ground == rules::Ground::Split {
        return Err(hinted(
            refused("one volume is restored and the others are not: they are at no common point"),
            op,
            context,
            Next::Undo,
        ));
    }
    if ground == rules::Ground::Firm {
        return Ok(Ground::Firm);
    }
    if inconsistent {
        warnings
            .push("the volumes are not consistent: file systems and databases on them may not open".into());
        return Ok(Ground::Inconsistent);
    }
    let id = context.id();
    if ground == rules::Ground::Never {
        return Err(
            refused("the replica has no consistent point: its first sync is not complete, or the point before a resync had to go for room")
                .with_hint("--inconsistent takes it as it is")
                .with_hint_command(format!("backstay status -C {id}"), op.node.name()),
        );
    }
    let text = "a super transaction is active: copies are arriving, and the replica is consistent only up to an earlier point";
    if !op.options.force {
        return Err(refused(text)
            .with_hint("-f goes back to that point first; --inconsistent takes the volumes as they are")
            .with_hint_command(
                format!("backstay wait -C {id} --until consistent"),
                op.node.name(),
            ));
    }
    warnings.push(format!("{text}: it is gone back to first"));
    Ok(Ground::Resyncing)
}

fn question(context: &Context, peer: &Peer, warnings: Vec<String>) -> FailoverQuestion {
    let point = match context.restore() {
        Some(row) => super::super::snapshot::point_info(context, &row.target, Some(&row.text)),
        None => end_info(context),
    };
    let seen = context.peer();
    let missing = match peer {
        Peer::Answers(standing) if context.restore().is_none() => Some(MissingInfo {
            writes: standing.end.saturating_sub(point.seq),
            bytes: 0,
        }),
        _ => None,
    };
    let age = Timestamp::now().0.checked_sub(point.time.0);
    FailoverQuestion {
        age_s: age.map(|ns| ns as f64 / 1e9),
        missing,
        peer: context.peer_name().to_owned(),
        peer_heard: seen.last_ack.or(seen.since).map(Into::into),
        point,
        warnings,
    }
}

fn planned(context: &Context, peer: &Peer, ground: &Ground, mounted: bool, point: PointInfo) -> Answer {
    let mut steps = Vec::new();
    if let Peer::Answers(standing) = peer {
        let stop = if standing.serves() { "stop it, then " } else { "" };
        steps.push(format!(
            "{stop}have {} give its role up, durably",
            context.peer_name()
        ));
    }
    if matches!(ground, Ground::Resyncing) {
        steps.push("go back to the last consistent point".into());
    }
    steps.push(format!("receive nothing any more; term {}", context.term().0 + 1));
    steps.push(match context.restore() {
        Some(_) => "keep the restored point; mark every later record's blocks stale".into(),
        None => "apply everything that was received".into(),
    });
    steps.push("become production: every write is captured from the first one on".into());
    if mounted {
        steps.push("attach, check and mount the volumes".into());
    }
    super::super::planned(Some(point), steps)
}

/// Whether a line can begin at the restored point, if there is one: behind FAILING_OVER there would be no way back.
fn check_place(op: &Op<'_>, context: &Context) -> Result<(), Failure> {
    let Some(At::Restored(point)) = here(&context.row(), context).place(context.restore().as_ref()) else {
        return Ok(());
    };
    let place = Position {
        generation: point.generation,
        seq: point.seq,
    };
    let Err(e) = context.journal.parent_at(place) else {
        return Ok(());
    };
    let text = format!(
        "no line can begin at the restored point, record {}: what proves which history it continues cannot be had: {e}",
        point.seq
    );
    let refusal = refused(text);
    if context.standing() == Standing::FailingOver {
        return Err(refusal);
    }
    let undo = format!("scrt_ra -C {} --undo", context.id());
    Err(refusal
        .with_hint("take the restore back, and restore to the end of a container or to a newer point")
        .with_hint_command(undo, op.node.name()))
}

/// From now on only a failover goes on, or a resync leads back.
fn announce(context: &Arc<Context>, term: Term) -> Result<(), Failure> {
    if context.role() == Role::Recovery {
        let announced = context.set_standing(Standing::FailingOver, term, None);
        return announced.map_err(|e| part_way(&e));
    }
    let row = row_of(context, Standing::FailingOver, term);
    changed(context, |host| host.announce(&row))?;
    context.took_over(row);
    Ok(())
}

/// All steps up to the role.
fn take_role(op: &mut Op<'_>, context: &Arc<Context>, peer: &Peer, ground: &Ground) -> Result<(), Failure> {
    let answer = match peer {
        Peer::Answers(p) => Some(p),
        Peer::Away => None,
    };
    // Before anybody gives a role up: a restore may have no room, and a line may not begin where it leads.
    if matches!(ground, Ground::Resyncing) {
        super::super::restore::to_last_consistent(op, context)?;
        check_place(op, context)?;
    }
    let term = here(&context.row(), context).next_term(answer);
    if let Peer::Answers(standing) = peer
        && standing.standing().serves()
    {
        op.line(format!("{} gives its role up", context.peer_name()));
        peer::ask_to_give_up(context, term, op.options.force)
            .map_err(|e| super::give_up_failure(op, context, &e, "failover"))?;
    }
    // Nothing is received from here on; what came while the other host gave its role up may have been the beginning of a resync.
    context.halt();
    let found = here(&context.row(), context).ground(context.restore().as_ref());
    if found != rules::Ground::Firm && !matches!(ground, Ground::Inconsistent) {
        start(context)?;
        return Err(refused(
            "a resync has begun meanwhile: the replica is consistent only up to an earlier point",
        )
        .with_hint(
            "the other host has given its role up; the same command goes on, and asks about that point",
        )
        .with_hint_command(format!("rtdr -C {} failover", context.id()), op.node.name()));
    }
    let shapes = maps(context);
    if matches!(ground, Ground::Inconsistent) {
        // Before the step that is gone on with: nobody knows which regions differ.
        let set = |(volume, shape): &(_, _)| context.journal.set_map(*volume, *shape);
        let marked = shapes.iter().try_for_each(set);
        let marked = marked.and_then(|()| context.journal.all_stale());
        marked.map_err(|e| part_way(&e))?;
    }
    announce(context, term)?;
    let at = here(&context.row(), context).place(context.restore().as_ref());
    let at = at.ok_or_else(|| Failure::new(Code::Bug, "a restore is not complete"))?;
    op.line(match at {
        At::Newest => "Applying everything that was received...",
        At::Restored(_) => "Keeping the restored point...",
    });
    let row = row_of(context, Standing::FailedOver, term);
    changed(context, |host| host.take_over(&at, &shapes, &row))?;
    context.took_over(row);
    start(context)
}

fn done(
    op: &mut Op<'_>,
    context: &Arc<Context>,
    mounted: bool,
    missing: Option<Option<MissingInfo>>,
    already: bool,
    started: Instant,
) -> Answer {
    let volumes = if already && !context.is_running() {
        Vec::new()
    } else {
        mount(op, context, mounted)?
    };
    let (id, failover_id) = (context.id(), context.failover_id());
    op.step(Step::FailoverDone {
        failover_id,
        host: op.node.name(),
    });
    let mut reply = reply(context, RoleVerb::Failover, already, started);
    reply.point = Some(end_info(context));
    reply.volumes = volumes;
    reply.missing_known = !matches!(missing, Some(None));
    reply.missing = missing.flatten();
    let next = next(format!("rtdr -C {id} resync"), context.peer_name());
    Ok((Reply::Role(reply), next))
}
