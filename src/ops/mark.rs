//! `rtmark`.

use super::{Answer, Op, next, refused};
use control::{Code, Failure, Reply, reply::MarkInfo};
use model::{EventMark, RecordBody, Role, Timestamp};

/// How a mark is set.
#[derive(Clone, Copy)]
pub struct How {
    /// Whether the mounted protected file systems are synced first.
    pub sync: bool,
    /// Seconds for which its point is pinned.
    pub keep_s: Option<u64>,
}

/// Sets an event mark: syncs the mounted protected file systems first, so that what the application wrote is in it.
pub fn mark(op: &mut Op<'_>, id: u32, name: &str, description: &str, how: How) -> Answer {
    let context = op.context(id)?;
    if context.role() != Role::Production {
        return Err(refused(format!(
            "context {id} is a replica here; marks are set where the application writes"
        ))
        .with_hint_command(format!("rtmark -C {id} --name {name}"), context.peer_name()));
    }
    let Some(running) = context.running() else {
        return Err(super::not_running(op, &context));
    };
    let production = super::production(&running)?;
    if let Some(why) = EventMark::name_fault(name) {
        return Err(Failure::new(
            Code::Usage,
            format!("'{name}' cannot name a mark: {why}"),
        ));
    }
    if description.len() > EventMark::DESCRIPTION_BYTES_MAX {
        return Err(Failure::new(
            Code::Usage,
            format!(
                "the description has {} bytes, {} are the most",
                description.len(),
                EventMark::DESCRIPTION_BYTES_MAX
            ),
        ));
    }
    let prefix = format!("c{}/", context.id());
    let mut mounted = match how.sync {
        true => super::mount::attached(op)?,
        false => Vec::new(),
    };
    mounted.retain(|a| {
        let rest = a.export.strip_prefix(&prefix);
        a.mounted.is_some() && rest.is_some_and(|rest| !rest.contains('/'))
    });
    let keep_ns = how.keep_s.map(|s| s.saturating_mul(Timestamp::SECOND_NS));
    if op.options.dry_run {
        let mut steps: Vec<String> = mounted
            .iter()
            .filter_map(|a| Some(format!("sync {}", a.mounted.as_ref()?.display())))
            .collect();
        steps.push(format!("set the mark '{name}' and seal the container"));
        return super::planned(None, steps);
    }
    for device in &mounted {
        let synced = op.node.attacher().sync(&device.export);
        synced.map_err(|e| Failure::from_error(Code::Refused, &e))?;
    }
    let (record, row) = production
        .tap
        .mark_kept(name.to_owned(), description.to_owned(), keep_ns)
        .map_err(|e| Failure::from_error(Code::Refused, &e))?;
    context.bells.durable.ring();
    context.bells.sealed.ring();
    debug_assert!(matches!(record.body, RecordBody::Mark { .. }));
    let info = MarkInfo {
        name: name.to_owned(),
        description: description.to_owned(),
        generation: row.generation.0,
        lfc: row.lfc.0,
        seq: record.seq.0,
        time: record.time.into(),
    };
    Ok((
        Reply::Mark(info),
        next(format!("scrt_ra -C {id} --mark {name}"), context.peer_name()),
    ))
}
