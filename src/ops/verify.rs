//! `verify`: begins a pass on production and looks on ([`crate::verify`]). The pass is not the job: it is kept durably, and goes
//! on when the daemon is started again.

use super::{Answer, Op, next, refused};
use crate::{
    context::{Context, Running},
    verify::{Cause, Ended, Live, Unread},
};
use control::{
    Code, Failure, Progress, Reply,
    event::Unit,
    reply::{DifferingRange, UnreadableRange, VerifyReply},
    status::{Verified, Verifying},
};
use model::{Role, Timestamp};
use std::{sync::Arc, time::Duration};

/// The bell rings at every step; a clock moves without one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `backstay verify`.
pub fn verify(op: &mut Op<'_>, id: u32, repair: bool, sample: Option<u64>) -> Answer {
    let context = op.context(id)?;
    let command = command(id, repair, sample);
    if context.role() == Role::Recovery {
        let text = "a verify starts on production, whose data is the truth";
        return Err(refused(text).with_hint_command(command, context.peer_name()));
    }
    let running = context.running();
    if !matches!(running.as_deref(), Some(Running::Production(_))) {
        return Err(super::not_running(op, &context));
    }
    if let Some(why) = context.verify_hindrance() {
        return Err(
            Failure::new(Code::NotNow, format!("nothing can be compared: {why}"))
                .with_hint_command(format!("backstay status -C {id}"), op.node.name()),
        );
    }
    if op.options.dry_run {
        return super::planned(None, plan(&context, repair, sample));
    }
    let begun = context
        .verify
        .begin(&context, &op.options.operator, repair, sample);
    let number = begun.map_err(|other| {
        let text = format!("another verify is under way, begun by {}", other.by);
        Failure::new(Code::NotNow, text).with_hint_command(format!("backstay status -C {id}"), op.node.name())
    })?;
    let mut ear = context.verify.ear();
    op.may_stop(true);
    let ended = loop {
        if let Some(ended) = context.verify.ended(number) {
            break ended;
        }
        // Nobody works on it any more.
        if let Some(error) = context.journal.poisoned() {
            return Err(Failure::from_error(Code::PartWay, &error));
        }
        if op.stopped_by().is_some() {
            context.verify.cancel(number);
        }
        let live = context.verify.live(&context);
        if live.pass.as_ref().is_none_or(|pass| pass.number != number)
            && context.verify.ended(number).is_none()
        {
            return Err(refused(
                "the verify was given up: the roles have changed since it was begun",
            ));
        }
        if context.running().is_none() {
            return Err(Failure::new(
                Code::NotNow,
                "the context was stopped: the verify goes on when it is started",
            )
            .with_hint_command(format!("rtstart -C {id}"), op.node.name()));
        }
        if let Some(pass) = &live.pass {
            op.progress(Progress {
                what: match &live.waits {
                    Some(why) => format!("verify waits: {why}"),
                    None => "verify".into(),
                },
                done: pass.compared,
                total: Some(live.total),
                unit: Unit::Bytes,
                rate: live.rate,
                eta_s: eta(&live),
                job: None,
            });
        }
        ear.wait(LOOK_EVERY);
    };
    let live = context.verify.live(&context);
    if let Some(why) = &ended.failure {
        return Err(Failure::new(Code::NotNow, why.clone()).with_hint_command(command, op.node.name()));
    }
    if ended.cancelled {
        let by = op.stopped_by().unwrap_or_else(|| "another verify".into());
        return Err(refused(format!(
            "cancelled by {by} after {} MiB were compared",
            ended.compared >> 20
        )));
    }
    let reply = reply(&context, repair, &ended, &live);
    let then = (reply.differing_bytes > 0 && !repair)
        .then(|| next(format!("backstay verify -C {id} --repair"), op.node.name()))
        .flatten();
    Ok((Reply::Verify(reply), then))
}

fn command(id: u32, repair: bool, sample: Option<u64>) -> String {
    let mut command = format!("backstay verify -C {id}");
    if repair {
        command.push_str(" --repair");
    }
    if let Some(n) = sample {
        command.push_str(&format!(" --sample {n}"));
    }
    command
}

fn plan(context: &Arc<Context>, repair: bool, sample: Option<u64>) -> Vec<String> {
    let names: Vec<_> = context.config.volumes.iter().map(|v| v.name.as_str()).collect();
    let what = match sample {
        Some(n) => format!("{n} regions of 1M, chosen at random,"),
        None => "all".to_owned(),
    };
    let mut steps = vec![format!(
        "compare {what} of {} with {}, at most {} a second",
        names.join(", "),
        context.peer_name(),
        context.config.verify_rate
    )];
    if repair {
        steps.push("make what differs stale, durably, so that it is copied again".into());
        steps.push("compare that once more".into());
    }
    steps
}

fn reply(context: &Context, repair: bool, ended: &Ended, live: &Live) -> VerifyReply {
    let names: Vec<_> = context.config.volumes.iter().map(|v| v.name.as_str()).collect();
    let named = |all: &[crate::verify::Differs]| -> Vec<DifferingRange> {
        all.iter().map(|d| d.named(&names)).collect()
    };
    let unreadable = |unread: &Unread| {
        let DifferingRange { volume, first, end } = unread.place.named(&names);
        let error = unread.why.clone();
        UnreadableRange {
            volume,
            first,
            end,
            error,
        }
    };
    VerifyReply {
        context: context.id().0,
        peer: context.peer_name().to_owned(),
        compared_bytes: ended.compared,
        total_bytes: context
            .config
            .indexed()
            .map(|(index, _)| context.volume_size(index))
            .sum(),
        sample: ended.sample,
        repair,
        repaired_bytes: ended.repaired.iter().map(crate::verify::Differs::len).sum(),
        differing_bytes: live.differing_bytes(),
        differing: named(&live.known),
        unreadable: live.unread.iter().map(unreadable).collect(),
        unlisted_bytes: live.unlisted,
        repaired: named(&ended.repaired),
        seconds: ended.at.saturating_sub(ended.since) as f64 / 1e9,
    }
}

fn eta(live: &Live) -> Option<u64> {
    let left = live.total.saturating_sub(live.pass.as_ref()?.compared);
    Some((left as f64 / live.rate?).ceil() as u64)
}

/// The last one, for `status`.
pub(super) fn verified(live: &Live) -> Option<Verified> {
    let last = live.last.as_ref()?;
    Some(Verified {
        at: Timestamp(last.at).into(),
        lfc: last.lfc,
        mismatches: last.found,
        compared_bytes: last.compared,
        differing_bytes: live.differing_bytes(),
    })
}

/// The one that is under way, for `status`.
pub(super) fn verifying(live: &Live) -> Option<Verifying> {
    let pass = live.pass.as_ref()?;
    Some(Verifying {
        by: match pass.cause {
            Cause::Operator => pass.by.clone(),
            Cause::Schedule => "schedule".into(),
            Cause::CatchUp => "catch-up".into(),
        },
        since: Timestamp(pass.since()).into(),
        done_bytes: pass.compared,
        total_bytes: live.total,
        rate: live.rate,
        eta_s: eta(live),
        waits: live.waits.clone(),
    })
}

/// What is known to differ, with the way out.
pub(super) fn warning(context: &Context, live: &Live) -> Option<String> {
    let bytes = live.differing_bytes();
    (bytes > 0).then(|| {
        format!(
            "verify found {bytes} bytes that differ on {}: backstay verify -C {} --repair",
            context.peer_name(),
            context.id()
        )
    })
}
