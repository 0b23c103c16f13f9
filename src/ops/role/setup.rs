//! `rtdr setup`, and `rtdr failback --stay`: what the pair of hosts is configured to be.
//!
//! The other host is told first; the same command goes on after anything, and does nothing where it is so already.

use super::{Answer, Op, next, part_way, refused, reply};
use crate::{
    context::Context,
    roles::{Next, Standing, peer},
};
use control::{Code, Failure, Reply, reply::RoleVerb};
use model::Role;
use std::{sync::Arc, time::Instant};

/// `rtdr setup`.
pub fn set_up(op: &mut Op<'_>, id: u32, failover_id: u32, host: Option<&str>) -> Answer {
    let started = Instant::now();
    let context = op.context(id)?;
    let known = [context.node_name(), context.peer_name()];
    if let Some(host) = host.filter(|host| !known.contains(host)) {
        return Err(Failure::new(
            Code::Usage,
            format!("-s {host}: context {id} is kept by {} and {}", known[0], known[1]),
        ));
    }
    if let Some(other) = op
        .node
        .context(failover_id)
        .filter(|other| other.id() != context.id())
    {
        return Err(refused(format!(
            "id {failover_id} belongs to context {} of this node already",
            other.id()
        ))
        .with_hint_command("backstay status", op.node.name()));
    }
    if failover_id == context.id().0 {
        return Err(refused(format!(
            "{failover_id} is the primary id: the failover id must be another"
        ))
        .with_hint_command(format!("backstay status -C {id}"), op.node.name()));
    }
    let production = context.home().to_owned();
    let already = context.failover_id() == failover_id;
    if op.options.dry_run {
        let steps = vec![format!(
            "make {failover_id} the failover id on {} and {}",
            known[1], known[0]
        )];
        return super::super::planned(None, if already { vec![] } else { steps });
    }
    let changed = pair(op, &context, &production, failover_id)?;
    let mut reply = reply(&context, RoleVerb::SetUp, already && !changed, started);
    reply.host = if context.is_home() {
        context.peer_name()
    } else {
        context.node_name()
    }
    .to_owned();
    Ok((
        Reply::Role(reply),
        next(format!("backstay status -C {id}"), op.node.name()),
    ))
}

/// `rtdr failback --stay`: the present roles are the configured ones from now on.
pub fn stay(op: &mut Op<'_>, context: &Arc<Context>) -> Answer {
    let started = Instant::now();
    let id = context.id();
    let standing = context.standing();
    if !matches!(standing, Standing::Producing | Standing::Replica) {
        let text = format!("failback --stay: context {id} is {standing} here; its roles are not settled");
        return Err(super::hinted(refused(text), op, context, Next::Resync));
    }
    let here = context.node_name();
    let production = if context.role() == Role::Production {
        here
    } else {
        context.peer_name()
    }
    .to_owned();
    let already = context.home() == production;
    if !already {
        let peer = super::ask_peer(op, context)?;
        let fits = matches!(
            (standing, peer.standing()),
            (Standing::Producing, Standing::Replica) | (Standing::Replica, Standing::Producing)
        );
        let left = context.stale_bytes() + peer.stale_bytes;
        if !fits || left > 0 {
            let text = format!(
                "{} is {}, {left} bytes are to be copied: the roles are not settled",
                context.peer_name(),
                peer.standing()
            );
            return Err(refused(text)
                .with_hint_command(format!("backstay wait -C {id} --until resynced"), production));
        }
    }
    if op.options.dry_run {
        let steps = vec![format!(
            "make {production} the configured production on both hosts"
        )];
        return super::super::planned(None, if already { vec![] } else { steps });
    }
    let changed = pair(op, context, &production, context.failover_id())?;
    let reply = reply(context, RoleVerb::Failback, already && !changed, started);
    Ok((
        Reply::Role(reply),
        next(format!("backstay status -C {id}"), op.node.name()),
    ))
}

/// Makes this the pair on both hosts; answers whether this one changed.
fn pair(op: &Op<'_>, context: &Context, production: &str, failover_id: u32) -> Result<bool, Failure> {
    peer::ask_to_pair(context, production, failover_id).map_err(|e| super::peer_failure(op, context, &e))?;
    context
        .set_pair(production, failover_id)
        .map_err(|e| part_way(&e))
}
