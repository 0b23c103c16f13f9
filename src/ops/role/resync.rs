//! `rtdr resync`: on the host whose data gives way first, then on the acting production.
//!
//! On the first: its volumes get all of its own line (L4), its part of the set is stale, and it becomes a replica that waits.
//! On the second: shipping begins; the link takes the other part of the set before anything flows.

use super::{
    super::map,
    Answer, Gate, Op, ask_peer, changed, gate, held, hinted, hooks,
    losing::{Losing, bytes, is_whole},
    maps, next, part_way, refused, reply, row_of, start,
};
use crate::{
    agent::meeting,
    context::Context,
    hooks::HookEvent,
    roles::{Act, Next, Standing, peer::PeerStanding},
    volume_identity::Verdict,
};
use control::{
    Failure, Question, Reply, Step,
    event::FixedQuestion,
    reply::{ResyncSet, RoleVerb},
};
use model::{ByteRange, Term};
use std::{sync::Arc, time::Instant};

/// `rtdr resync`.
pub fn resync(op: &mut Op<'_>, id: u32, both: bool) -> Answer {
    let context = op.context(id)?;
    let gate = match context.standing() {
        // Its line was refused: the table knows nothing of that.
        Standing::Replica if context.peer().diverged && !context.is_stopped() => Gate::Open,
        _ if is_one_line(&context) && !op.options.force => return Err(nothing_to_resync(op, &context)),
        _ => match gate(op, &context, Act::Resync, "resync") {
            // Half way back, the other host may have given way to this one by a resync of its own: this is its second half.
            Err(_) if is_waited_for(&context) && context.is_stopped() => {
                return Err(super::refuse(op, &context, "resync", Next::Start));
            }
            Err(_) if is_waited_for(&context) => Gate::Already,
            gate => gate?,
        },
    };
    match context.standing() {
        Standing::Producing | Standing::FailedOver if both => Err(refused(
            "--both is typed on the host whose data gives way: its questions are asked there",
        )
        .with_hint_command(format!("rtdr -C {id} resync --both"), context.peer_name())),
        Standing::Producing | Standing::FailedOver => activate(op, &context, matches!(gate, Gate::Already)),
        _ => make_ready(op, &context, matches!(gate, Gate::Already), Words::Rtdr { both }),
    }
}

/// Whether both hosts are in their own roles, and connected: the replica follows production.
fn is_one_line(context: &Context) -> bool {
    let is_own = match context.standing() {
        Standing::Producing => context.is_home(),
        Standing::Replica => !context.is_home(),
        _ => false,
    };
    is_own && !context.is_stopped() && context.peer().connected
}

/// The work of a resync that is over, or that was never needed. What leads on where the hosts have parted would do harm here.
fn nothing_to_resync(op: &Op<'_>, context: &Context) -> Failure {
    let (id, standing, peer) = (context.id(), context.standing(), context.peer_name());
    let text = format!(
        "resync: context {id} is {standing} here and connected with {peer}: there is nothing to resync"
    );
    let failure = refused(text).with_hint_command(format!("backstay status -C {id}"), op.node.name());
    match standing {
        Standing::Replica => failure.with_hint("-f copies everything again, after a question"),
        _ => failure,
    }
}

/// `map unify` on the host whose data gives way: both halves of a resync, behind one question that says what is lost.
pub fn unify(op: &mut Op<'_>, context: &Arc<Context>) -> Answer {
    let gate = match context.standing() {
        Standing::Replica if context.peer().diverged && !context.is_stopped() => Gate::Open,
        _ => gate(op, context, Act::Resync, "map unify")?,
    };
    match context.standing() {
        Standing::Producing | Standing::FailedOver => {
            let peer = ask_peer(op, context)?;
            let host = context.peer_name();
            let (text, step) = if peer.standing().serves() {
                (format!("{host} and this host both are production"), Next::Stop)
            } else {
                let text = format!("{host} is {}: what is there cannot win", peer.standing());
                (text, Next::FailoverThere)
            };
            Err(hinted(refused(text), op, context, step))
        }
        Standing::Replica if matches!(gate, Gate::Already) => {
            let reply = reply(context, RoleVerb::Resync, true, Instant::now());
            Ok((
                Reply::Role(reply),
                next(format!("backstay status -C {}", context.id()), op.node.name()),
            ))
        }
        _ => make_ready(op, context, matches!(gate, Gate::Already), Words::Unify),
    }
}

/// How a host is told to give way, and asks back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// The procedures' own questions; `both`: the second half follows by itself.
    Rtdr { both: bool },
    /// What would be lost; the maps are saved first, and the second half follows by itself.
    Unify,
}

/// What `map unify` asks.
const UNIFY: &str = "Do you wish to continue?";

/// Whether the other host is ready for resync, and this one ships.
fn is_waited_for(context: &Context) -> bool {
    let ready = |peer: PeerStanding| peer.standing() == Standing::ResyncReady;
    context.standing() == Standing::Producing && crate::roles::peer::ask(context).is_ok_and(ready)
}

/// The host that gives way.
fn make_ready(op: &mut Op<'_>, context: &Arc<Context>, already: bool, words: Words) -> Answer {
    let started = Instant::now();
    let both = matches!(words, Words::Unify | Words::Rtdr { both: true });
    let id = context.id();
    let mut reply = reply(context, RoleVerb::Resync, already, started);
    // Whether the other host ships already, as half way through a failback: then nothing is to be typed there.
    let mut shipped = false;
    if !already {
        let peer = ask_peer(op, context)?;
        shipped = peer.standing() == Standing::Producing;
        if !peer.standing().serves() {
            let text = format!(
                "{} is {}: nothing to follow",
                context.peer_name(),
                peer.standing()
            );
            let step = match context.standing() {
                Standing::FailingOver => Next::Failover,
                _ => Next::FailoverThere,
            };
            return Err(hinted(refused(text), op, context, step));
        }
        let holders = held(op, context)?;
        if !holders.is_empty() {
            return Err(refused("volumes of the context are mounted or open here")
                .with_holders(holders)
                .with_hint_command(format!("rtumnt -C {id}"), op.node.name()));
        }
        let losing = Losing::of(context, &peer)?;
        if op.options.dry_run {
            let (first, questions) = match words {
                Words::Rtdr { .. } => (
                    None,
                    ["scsetup: Do you wish to continue?", "Do you wish to do this?"].as_slice(),
                ),
                Words::Unify => (Some("save the state maps".into()), [UNIFY].as_slice()),
            };
            return Ok((losing.planned(context, first, questions), None));
        }
        match words {
            Words::Rtdr { .. } => {
                op.ask(Question::Fixed(FixedQuestion::FailoverProcessing))?;
                op.ask(Question::Fixed(FixedQuestion::LcaReset))?;
            }
            Words::Unify => {
                let lines = vec![losing.sentence(context)];
                let question = UNIFY.to_owned();
                op.ask(Question::Text { lines, question })?;
                let saved = map::keep(context, &context.journal.save_maps(), "unify")?;
                op.line(format!("The maps as they were: {}", saved.display()));
            }
        }
        reply.dropped_lfcs = losing.dropped;
        reply.set = Some(losing.set);
        hooks(op, context, HookEvent::PreResync)?;
        let term = Term(peer.term).max(context.term());
        let row = row_of(context, Standing::ResyncReady, term);
        let theirs = peer.line();
        context.halt();
        let lost = context.changed_backings();
        declare(op, context, &lost)?;
        changed(context, |host| host.give_way(&theirs, true, &maps(context), &row))?;
        context.took_over(row);
        reply.host = context.peer_name().to_owned();
    } else if op.options.dry_run {
        return super::super::planned(None, vec![]);
    }
    start(context)?;
    op.step(Step::ReadyForResync {
        failover_id: context.failover_id(),
    });
    if both && context.standing() == Standing::ResyncReady {
        crate::roles::peer::ask_to_activate(context).map_err(|e| {
            part_way(&e).with_hint("this host has given way: run the same command again to go on")
        })?;
        op.step(Step::ResyncActivated);
    }
    reply.term = context.term().0;
    reply.seconds = started.elapsed().as_secs_f64();
    let next = if both || shipped || context.standing() == Standing::Replica {
        next(format!("backstay status -C {id}"), op.node.name())
    } else {
        next(format!("rtdr -C {id} resync"), context.peer_name())
    };
    Ok((Reply::Role(reply), next))
}

/// Volumes that are not what they were: everything of them is copied, whatever the maps say (R15).
fn declare(op: &mut Op<'_>, context: &Context, lost: &[(String, Verdict)]) -> Result<(), Failure> {
    let lost = lost.iter().filter(|(_, verdict)| *verdict != Verdict::Unknown);
    for (name, _) in lost {
        let Some((index, _)) = context.config.volume(name) else {
            continue;
        };
        op.line(format!(
            "volume {name} is not what was opened before: all of it is copied"
        ));
        let all = [(index, ByteRange::at(0, context.extent(index)))];
        let journal = &context.journal;
        if !journal.mapped_volumes().contains(&index) {
            // Without a map everything is copied at any rate.
            context.declare_lost(name).map_err(|e| part_way(&e))?;
            continue;
        }
        let marked = journal.mark_stale(&all, journal.cursors().appended);
        marked
            .and_then(|()| context.declare_lost(name))
            .map_err(|e| part_way(&e))?;
    }
    Ok(())
}

/// The acting production.
fn activate(op: &mut Op<'_>, context: &Arc<Context>, already: bool) -> Answer {
    let started = Instant::now();
    let id = context.id();
    let mut set = None;
    if !already {
        let peer = ask_peer(op, context)?;
        // A replica that nobody fenced may stand on our line still: the link finds out.
        if !matches!(
            peer.standing(),
            Standing::ResyncReady | Standing::Replica | Standing::RolledBack
        ) {
            let text = format!(
                "{} is {}: it is not ready for resync",
                context.peer_name(),
                peer.standing()
            );
            return Err(hinted(refused(text), op, context, Next::ResyncThere));
        }
        let own = meeting::own_part(&context.journal, &peer.line()).map_err(|e| part_way(&e))?;
        set = Some(ResyncSet {
            own_bytes: own.as_deref().map_or(0, bytes),
            // Its part is in its map, since it gave way.
            peer_bytes: peer.stale_bytes,
            stale_bytes: context.stale_bytes(),
            whole: own.is_none() || is_whole(context, &peer),
        });
        if op.options.dry_run {
            let steps = vec![
                format!("take over what {} knows to differ", context.peer_name()),
                format!(
                    "copy what differs to {}, while the application runs",
                    context.peer_name()
                ),
            ];
            return super::super::planned(None, steps);
        }
        hooks(op, context, HookEvent::PreResync)?;
        ship(context).map_err(|e| part_way(&e))?;
        hooks(op, context, HookEvent::PostResync)?;
    }
    op.step(Step::ResyncActivated);
    let mut reply = reply(context, RoleVerb::Resync, already, started);
    reply.set = set;
    let next = next(format!("backstay wait -C {id} --until resynced"), op.node.name());
    Ok((Reply::Role(reply), next))
}

/// From now on the acting production ships.
pub(crate) fn ship(context: &Arc<Context>) -> Result<(), journal::JournalError> {
    // It may have been fenced since the caller looked.
    if context.change_standing(Standing::FailedOver, Standing::Producing)? {
        context.relink();
    }
    Ok(())
}
