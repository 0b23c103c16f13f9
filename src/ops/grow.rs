//! `grow`: a volume gets larger, on both hosts, while it is written (R33).
//!
//! The peer's storage first, then this host's: longer, zero, durable ([`Context::extend`]). Then the size takes its place in the write
//! order ([`journal::tap::Tap::resize`]), and not before: no client writes past what both hosts have agreed to hold. Interrupted
//! anywhere, the same command goes on.

use super::{
    Answer, Op,
    map::{amount, volume_of},
    next, not_running, planned, production, refused,
    role::peer_failure,
};
use crate::{
    context::{Context, MAKING_READY, size_fault, zero_rest},
    peer::PeerError,
    roles::peer::ask_to_extend,
};
use control::{Code, Failure, Progress, Question, Reply, reply::GrowReply};
use model::{BLOCK_SIZE, ByteRange, Role, VolumeIndex, ports::Medium};
use std::{os::unix::fs::FileTypeExt as _, sync::Arc, time::Duration};

/// How often a peer that makes room is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Makes a volume `bytes` large; without that as large as what it stands on here.
pub fn grow(op: &mut Op<'_>, id: u32, volume: &str, bytes: Option<u64>) -> Answer {
    let context = op.context(id)?;
    let id = context.id();
    if context.role() != Role::Production {
        let text = format!("context {id} is a replica here; a volume grows where the application writes");
        return Err(refused(text)
            .with_hint_command(format!("backstay grow -C {id} -L {volume}"), context.peer_name()));
    }
    let index = volume_of(&context, volume)?;
    let Some(running) = context.running() else {
        return Err(not_running(op, &context));
    };
    let production = production(&running)?;
    let medium = production.volumes.get(index).map_err(|e| failed(&e))?.medium();
    let now = context.volume_size(index);
    let wanted = wanted(op, &context, index, bytes, &**medium)?;
    if let Some(why) = size_fault(now, wanted) {
        return Err(refused(format!("volume {volume}: {why}")));
    }
    let peer = context.peer_name().to_owned();
    let mut reply = GrowReply {
        context: id.0,
        volume: volume.to_owned(),
        bytes_before: now,
        bytes: wanted,
        seq: None,
    };
    let ready = context.extent(index);
    let holds = context.holds_behind(index, wanted);
    if wanted > ready && (holds || wanted / 4 > now) {
        op.ask_unless_dry(question(&context, index, holds, wanted))?;
    }
    if wanted > now && op.options.dry_run {
        return planned(
            None,
            vec![
                format!("make the storage of {volume} on {peer} ready for {wanted} bytes"),
                "make it ready here: what is new is zero".to_owned(),
                format!("volume {volume} has {wanted} bytes from the next record on"),
            ],
        );
    }
    if wanted > now {
        // What this host cannot hold the other one is not made ready for: extents never go back. A longer file alone hurts nobody.
        medium.extend(wanted).map_err(|e| failed(&e))?;
        make_room(op, &context, index, wanted)?;
        op.line(format!("{peer}: ready for {wanted} bytes"));
        context.extend(index, wanted).map_err(|e| failed(&e))?;
        op.line(format!("{}: ready for {wanted} bytes", context.node_name()));
        let rest = ByteRange {
            start: now,
            end: ready.clamp(now, wanted),
        };
        let grown =
            zero_rest(&production.tap, index, rest).and_then(|()| production.tap.resize(index, wanted));
        let seq = grown.map_err(|e| failed(&e))?;
        context.bells.durable.ring();
        reply.seq = Some(seq.0);
    }
    let step = match op.node.attacher().find(&format!("c{id}/{volume}")) {
        // NBD tells a client the size once, when it connects.
        Ok(Some(_)) | Err(_) => format!("rtumnt -C {id} && rtmnt -C {id}"),
        Ok(None) => format!("backstay status -C {id}"),
    };
    Ok((Reply::Grow(reply), next(step, op.node.name())))
}

/// The size that is asked for, checked against what the volume stands on here: the peer is not asked in vain.
fn wanted(
    op: &Op<'_>,
    context: &Arc<Context>,
    index: VolumeIndex,
    bytes: Option<u64>,
    medium: &dyn Medium,
) -> Result<u64, Failure> {
    // A device may have become longer since it was opened.
    medium.extend(0).map_err(|e| failed(&e))?;
    let Some(bytes) = bytes else {
        return Ok((medium.len() / BLOCK_SIZE * BLOCK_SIZE).max(context.volume_size(index)));
    };
    let volume = &context.config.volumes[usize::from(index.0)];
    let path = volume.backing_on(context.node_name(), &op.node.config().state_dir, context.id().0);
    let is_device = std::fs::metadata(&path).is_ok_and(|m| m.file_type().is_block_device());
    if is_device && medium.len() < bytes {
        let text = format!(
            "volume {}: {} has {} bytes, {bytes} are needed",
            volume.name,
            path.display(),
            medium.len()
        );
        return Err(refused(text).with_hint("make the device larger first, on both hosts"));
    }
    Ok(bytes)
}

/// What cannot be taken back.
fn question(context: &Context, index: VolumeIndex, holds: bool, wanted: u64) -> Question {
    let volume = &context.config.volumes[usize::from(index.0)].name;
    let now = context.volume_size(index);
    let mut lines = vec![format!(
        "Volume {volume} grows from {} to {} on both hosts, and cannot be made smaller again.",
        amount(now),
        amount(wanted)
    )];
    if holds {
        lines.push(format!(
            "What it stands on holds bytes behind the first {}: they are zeroed here, as they are on {}.",
            amount(context.extent(index)),
            context.peer_name()
        ));
    }
    Question::Text {
        lines,
        question: "Do you wish to continue?".into(),
    }
}

/// The peer makes its storage ready. Where zeroes must be written that takes long: it is asked until they are.
fn make_room(op: &mut Op<'_>, context: &Context, index: VolumeIndex, wanted: u64) -> Result<(), Failure> {
    let mut extents = context.extents();
    extents[usize::from(index.0)] = wanted;
    let mut silent = 0;
    op.may_stop(true);
    let made = loop {
        let waits = match ask_to_extend(context, extents.clone()) {
            Ok(_) => break Ok(()),
            // Its thread zeroes still; the next answer says how far it is.
            Err(PeerError::Silent(_)) if silent < 2 => {
                silent += 1;
                MAKING_READY.to_owned()
            }
            Err(PeerError::Refused { text, .. }) if text.contains(MAKING_READY) => {
                silent = 0;
                text
            }
            Err(e) => break Err(peer_failure(op, context, &e)),
        };
        if let Some(by) = op.stopped_by() {
            break Err(refused(format!(
                "cancelled by {by}: the volume is as large as it was"
            )));
        }
        op.progress(Progress {
            what: waits,
            ..Progress::default()
        });
        std::thread::sleep(LOOK_EVERY);
    };
    op.may_stop(false);
    made
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::from_error(Code::Refused, error)
}
