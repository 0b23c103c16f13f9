//! `pins`: what keeps points reachable, what it costs, and letting go of what may.

use super::{Answer, Op, next, refused, snapshot::point_info};
use crate::context::{Context, Running};
use control::{
    Code, Failure, Reply,
    reply::{PinInfo, PinsReply},
};
use journal::{PinKind, PinRow, PinUse};
use std::sync::Arc;

fn failed(error: impl std::error::Error + 'static) -> Failure {
    Failure::from_error(Code::Refused, &error)
}

/// All pins of a context, oldest point first, and whoever reads a point by name.
fn all(op: &Op<'_>, context: &Arc<Context>) -> Result<Vec<PinInfo>, Failure> {
    let readers = match context.running().as_deref() {
        Some(Running::Recovery(r)) => r.views.readers(),
        _ => Vec::new(),
    };
    let points = readers.iter().map(|r| r.point.clone()).collect();
    let wanted = context.wanted();
    let uses = context.journal.pin_uses(&wanted, points).map_err(failed)?;
    let mut pins: Vec<PinInfo> = uses.iter().map(|u| info(op, context, u)).collect();
    pins.extend(readers.into_iter().map(|reader| PinInfo {
        context: context.id().0,
        holder: format!("NBD reader of {}", reader.target),
        owner: op.node.name(),
        broken: !context.journal.is_kept(&reader.point),
        point: point_info(context, &reader.point, Some(&reader.target)),
        created: reader.since.into(),
        ..PinInfo::default()
    }));
    pins.sort_by_key(|p| (p.point.generation, p.point.seq, p.id));
    Ok(pins)
}

fn info(op: &Op<'_>, context: &Context, pin: &PinUse) -> PinInfo {
    let row = &pin.row;
    PinInfo {
        id: row.id,
        context: context.id().0,
        holder: holder(row),
        owner: if row.owner.is_empty() {
            op.node.name()
        } else {
            row.owner.clone()
        },
        point: point_info(context, &row.point, Some(&row.target)),
        created: row.created.into(),
        expires: row.expires.map(Into::into),
        holds_bytes: pin.holds_bytes,
        broken: !pin.is_kept,
    }
}

/// What a pin is called.
pub fn holder(pin: &PinRow) -> String {
    match &pin.kind {
        PinKind::Snapshot {
            level,
            name: Some(name),
        } => format!("snapshot {level} '{name}'"),
        PinKind::Snapshot { level, name: None } => format!("snapshot {level}"),
        PinKind::Reader => "reader".into(),
        PinKind::Restore => "failover restore".into(),
        PinKind::Released => "released snapshot".into(),
        PinKind::Mark { name } => format!("mark '{name}'"),
    }
}

/// `backstay pins`.
pub fn list(op: &mut Op<'_>, only: Option<u32>) -> Answer {
    let contexts = match only {
        Some(id) => vec![op.context(id)?],
        None => op.node.contexts(),
    };
    let mut pins = Vec::new();
    for context in contexts {
        pins.extend(all(op, &context)?);
    }
    Ok((Reply::Pins(PinsReply { pins }), None))
}

/// `backstay pins --release`: only what nobody stands on.
pub fn release(op: &mut Op<'_>, id: u32, pin: u64) -> Answer {
    let context = op.context(id)?;
    let Some(row) = context.journal.pin(pin).map_err(failed)? else {
        return Err(refused(format!("context {id} has no pin {pin}"))
            .with_hint_command(format!("backstay pins -C {id}"), op.node.name()));
    };
    let is_expired = row
        .expires
        .is_some_and(|at| at <= context.wanted().believe(context.journal.newest_time()));
    let hint = match &row.kind {
        PinKind::Snapshot { level, .. } => Some(format!("scrt_ra -C {id} -W --level {level}")),
        PinKind::Restore => Some(format!("scrt_ra -C {id} --undo")),
        PinKind::Mark { .. } if !is_expired => Some(format!("backstay pins -C {id}")),
        _ => None,
    };
    if let Some(hint) = hint {
        let text = format!("pin {pin} belongs to {} and goes with it", holder(&row));
        return Err(refused(text).with_hint_command(hint, op.node.name()));
    }
    let found = all(op, &context)?.into_iter().find(|p| p.id == pin);
    let released = found.ok_or_else(|| refused(format!("context {id} has no pin {pin}")))?;
    if op.options.dry_run {
        let step = format!("release pin {pin}, which holds {} bytes", released.holds_bytes);
        return super::planned(Some(released.point), vec![step]);
    }
    context.journal.delete_pin(pin, None).map_err(failed)?;
    // What it held goes with the next pass of retention.
    context.bells.sealed.ring();
    Ok((
        Reply::PinReleased(released),
        next(format!("backstay pins -C {id}"), op.node.name()),
    ))
}
