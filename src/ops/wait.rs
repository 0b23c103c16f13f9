//! `wait`, `probe`.

use super::{Answer, Op, refused};
use crate::context::{Context, Running};
use control::{
    Code, Command, Failure, Progress, Reply, WaitFor,
    reply::{GrowReply, ProbeReply, WaitReply},
};
use model::{ContextState, Role};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What is waited for moves by several bells; a look four times a second costs nothing beside a person's patience.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// `backstay wait`.
pub fn wait(op: &mut Op<'_>, id: u32, until: &WaitFor) -> Answer {
    let context = op.context(id)?;
    let started = Instant::now();
    let deadline = op.options.timeout_s.map(|s| started + Duration::from_secs(s));
    while !holds(&context, until)? {
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(Failure::new(
                Code::NotNow,
                format!("not {until} after {} s", started.elapsed().as_secs()),
            ));
        }
        op.progress(Progress {
            what: until.to_string(),
            ..Progress::default()
        });
        if !op.is_watched() {
            return Err(Failure::new(
                Code::Detached,
                format!("nobody waits for {until} any more"),
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let reply = WaitReply {
        context: context.id().0,
        until: until.clone(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok((Reply::Wait(reply), None))
}

/// `--wait`: what the command has set going comes to its end. By now it holds nothing any more. When nobody looks on, or
/// somebody cancels it, only the wait ends: the command itself is done.
pub(super) fn to_the_end(op: &mut Op<'_>, command: &Command, reply: &Reply) -> Result<(), Failure> {
    let Some(context) = command.context().and_then(|id| op.node.context(id)) else {
        return Ok(());
    };
    let until = match (command, reply) {
        (_, Reply::Plan(_)) => return Ok(()),
        (Command::Protect(_), _) => WaitFor::Consistent,
        (Command::Resync { .. } | Command::Dirty { .. } | Command::Start { dirty: true, .. }, _) => {
            WaitFor::Resynced
        }
        (Command::Start { .. } | Command::Failback { .. }, _) => WaitFor::Enabled,
        (Command::Grow { .. }, Reply::Grow(GrowReply { seq: Some(seq), .. })) => WaitFor::Applied(*seq),
        (Command::Mark { .. }, Reply::Mark(mark)) => WaitFor::Applied(mark.seq),
        _ => return Ok(()),
    };
    op.may_stop(true);
    while op.stopped_by().is_none() && op.is_watched() && !holds(&context, &until)? {
        op.progress(Progress {
            what: until.to_string(),
            ..Progress::default()
        });
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn holds(context: &Arc<Context>, until: &WaitFor) -> Result<bool, Failure> {
    let cursors = context.journal.cursors();
    Ok(match until {
        WaitFor::Enabled => context.is_running() && context.state() == ContextState::Enabled,
        // Before the two have met nothing is stale, and everything may be to be copied.
        WaitFor::Consistent | WaitFor::Resynced => match context.role() {
            Role::Recovery => super::status::consistent(context),
            Role::Production => context.peer_is_consistent(),
        },
        WaitFor::Drained => match context.role() {
            Role::Production => {
                context.peer_is_consistent() && cursors.received_by_peer >= context.journal.line_cursors().0
            }
            Role::Recovery => return Err(refused("'drained' is asked of the production host")),
        },
        WaitFor::Applied(seq) => match context.role() {
            Role::Production => cursors.applied_by_peer.0 >= *seq,
            Role::Recovery => cursors.applied.0 >= *seq,
        },
        WaitFor::Mark(name) => {
            let marks = context.journal.marks();
            marks
                .iter()
                .any(|m| m.name == *name && (context.role() == Role::Production || m.seq <= cursors.durable))
        }
    })
}

/// `backstay probe`: a container is sealed, waited for at the peer and timed.
pub fn probe(op: &mut Op<'_>, id: u32) -> Answer {
    let context = op.context(id)?;
    let running = context
        .running()
        .ok_or_else(|| super::not_running(op, &context))?;
    let Running::Production(production) = &*running else {
        return Err(refused("a probe starts on production")
            .with_hint_command(format!("backstay probe -C {id}"), context.peer_name()));
    };
    if !context.peer().connected {
        return Err(Failure::new(
            Code::NotNow,
            format!("{} is not connected", context.peer_name()),
        ));
    }
    if op.options.dry_run {
        let steps = vec![
            "set a mark and seal the container".into(),
            format!("wait for it at {}, and print the times", context.peer_name()),
        ];
        return super::planned(None, steps);
    }
    let started = Instant::now();
    let name = format!("probe-{}", model::Timestamp::now().0);
    let failed = |e: journal::JournalError| Failure::from_error(Code::Refused, &e);
    let (record, _) = production.tap.mark(name, "probe".into()).map_err(failed)?;
    let local = started.elapsed();
    context.bells.durable.ring();
    context.bells.sealed.ring();
    let mut ear = context.bells.acknowledged.ear();
    let until = |reached: &dyn Fn() -> bool, ear: &mut crate::bell::Ear| {
        while !reached() {
            if started.elapsed() > Duration::from_secs(30) || !context.peer().connected {
                return Err(Failure::new(
                    Code::NotNow,
                    format!("{} did not acknowledge the probe", context.peer_name()),
                ));
            }
            ear.wait(Duration::from_secs(1));
        }
        Ok(started.elapsed())
    };
    let received = until(
        &|| context.journal.cursors().received_by_peer >= record.seq,
        &mut ear,
    )?;
    let applied = if context.peer().rolled_back {
        None
    } else {
        Some(until(
            &|| context.journal.cursors().applied_by_peer >= record.seq,
            &mut ear,
        )?)
    };
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let reply = ProbeReply {
        context: context.id().0,
        seq: record.seq.0,
        local_us: micros(local),
        received_us: micros(received),
        applied_us: applied.map(micros),
    };
    Ok((Reply::Probe(reply), None))
}
