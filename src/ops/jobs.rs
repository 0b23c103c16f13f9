//! `jobs`, `log`.

use super::{Answer, Op, next, refused};
use crate::jobs::log;
use control::{
    Code, Failure, JobVerb, Reply,
    jobs::{JobsReply, LogReply, Unheard},
};

/// Entries of `log` when nothing else is asked for.
const ENTRIES: u32 = 100;
/// Most entries that can be asked for.
const ENTRIES_MAX: u32 = 5000;

/// `backstay jobs`.
pub fn list(op: &Op<'_>, context: Option<u32>) -> Answer {
    let context = match context {
        Some(id) => Some(op.context(id)?.id().0),
        None => None,
    };
    let jobs = op.node.jobs().all();
    let of = |job: &&std::sync::Arc<crate::jobs::Job>| context.is_none() || job.context() == context;
    let jobs = jobs.iter().filter(of).map(|job| job.info()).collect();
    Ok((Reply::Jobs(JobsReply { jobs }), None))
}

/// `backstay jobs show|cancel N`. To attach is the business of the connection, not of a command.
pub fn one(op: &Op<'_>, number: u64, verb: JobVerb) -> Answer {
    let job = op.node.jobs().find(number)?;
    let attach = || next(format!("backstay jobs attach {number}"), op.node.name());
    if verb != JobVerb::Cancel {
        return Ok((Reply::Job(Box::new(job.info())), attach()));
    }
    let goes_on = |why: String| {
        let command = format!("backstay jobs attach {number}");
        refused(format!("job {number} cannot be cancelled: {why}")).with_hint_command(command, op.node.name())
    };
    if op.options.dry_run {
        return match job.keeps_on() {
            Some(why) => Err(goes_on(why)),
            None => super::planned(None, vec![format!("stop job {number} ({})", job.info().command)]),
        };
    }
    let begun = model::Timestamp::now();
    let done = job.cancel(&op.options.operator);
    op.node.jobs().log().note(
        job.context(),
        &op.options.operator,
        &op.options.command_line,
        begun,
        &done,
    );
    done.map_err(goes_on)?;
    Ok((Reply::Cancelled(Box::new(job.info())), None))
}

/// `backstay log`.
pub fn log(op: &Op<'_>, id: Option<u32>, limit: Option<u32>) -> Answer {
    let limit = limit.unwrap_or(ENTRIES);
    if limit > ENTRIES_MAX {
        return Err(Failure::new(
            Code::Usage,
            format!("--limit: at most {ENTRIES_MAX} entries"),
        ));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let node = op.node;
    // A context that cannot be opened has a log all the same.
    let known = id.map(|id| match (node.context(id), node.damaged_context(id)) {
        (Some(context), _) => Ok((context.id().0, context.peer_name().to_owned())),
        (None, Some(damaged)) => Ok((damaged.config().id, damaged.peer().to_owned())),
        (None, None) => op.context(id).map(|c| (c.id().0, c.peer_name().to_owned())),
    });
    let known = known.transpose()?;
    let context = known.as_ref().map(|(id, _)| *id);
    let (mut entries, mut omitted) = node.jobs().log().newest(context, limit);
    let mut unheard = Vec::new();
    if let Some((id, peer)) = known {
        match log::of_peer(node, &peer, id, limit) {
            Ok((theirs, more)) => {
                entries.extend(theirs);
                omitted |= more;
            }
            Err(why) => unheard.push(Unheard { host: peer, why }),
        }
    }
    entries.sort_by_key(|e| e.begun);
    if entries.len() > limit {
        entries.drain(..entries.len() - limit);
        omitted = true;
    }
    let reply = LogReply {
        context,
        entries,
        omitted,
        unheard,
    };
    Ok((Reply::Log(reply), None))
}
