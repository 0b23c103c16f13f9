//! `status`, and the first line of everything.

use super::{Answer, Op, next};
use crate::{
    agent::lca::stopped_on,
    attach::{AttachError, AttachedDevice},
    config::{Mode, OnLinkLoss},
    context::{Context, Running},
    node::Node,
};
use control::{
    Code, Failure, HeadLine, PeerLine, PeerState, Reply,
    event::HeadContext,
    reply::NodeInfoReply,
    status::{ContextStatus, Cursors, ResyncStatus, Rpo, SnapshotStatus, StatusReply, Stopped, VolumeStatus},
};
use journal::{LfcRow, tap::PeerStep};
use model::{BLOCK_SIZE, ContextState, Role, Timestamp, WriteSeq};
use std::sync::Arc;

/// Who answers.
pub fn head(node: &Node, context: Option<&Context>) -> HeadLine {
    HeadLine {
        host: node.name(),
        context: context.map(head_context),
    }
}

fn head_context(context: &Context) -> HeadContext {
    let peer = context.peer();
    let row = context.row();
    HeadContext {
        id: context.id().0,
        failover_id: Some(context.failover_id()),
        role: context.role(),
        state: row.state,
        term: row.term.0,
        peer: Some(PeerLine {
            name: context.peer_name().to_owned(),
            state: match (peer.connected, &peer.refused) {
                (true, _) => PeerState::Connected,
                (false, Some(why)) if *why == stopped_on(context.peer_name()) => PeerState::Stopped,
                (false, Some(_)) => PeerState::Refused,
                (false, None) => PeerState::Unreachable,
            },
            since: peer.since.map(Into::into),
        }),
    }
}

/// Whether the replica here can be used.
pub fn consistent(context: &Context) -> bool {
    context.is_consistent()
}

/// The figures of these contexts as of now.
pub fn of(node: &Arc<Node>, contexts: &[Arc<Context>]) -> StatusReply {
    let attached = node.attacher().all();
    StatusReply {
        host: node.name(),
        taken: Timestamp::now().into(),
        old: false,
        contexts: contexts.iter().map(|c| one(node, c, &attached)).collect(),
    }
}

/// A context that could not be opened has no figures; what is shown says so and is not healthy.
fn tell_broken(node: &Node, reply: &mut StatusReply) -> Result<(), Failure> {
    let broken: Vec<String> = node
        .broken()
        .into_iter()
        .map(|(name, why)| format!("context {name} could not be opened: {why}"))
        .chain(node.damaged().iter().map(|d| d.sentence()))
        .collect();
    match (reply.contexts.first_mut(), broken.as_slice()) {
        (_, []) => Ok(()),
        (Some(shown), _) => {
            shown.healthy = false;
            shown.warnings.extend(broken);
            Ok(())
        }
        (None, [_]) if node.damaged().len() == 1 => Err(node.damaged()[0].failure(Code::Unhealthy)),
        (None, [first, others @ ..]) => {
            let mut failure = Failure::new(Code::Unhealthy, first.clone());
            failure.caused_by = others.to_vec();
            Err(failure.with_hint("mend its file or its journal and start the daemon again"))
        }
    }
}

/// `backstay status`.
pub fn status(op: &mut Op<'_>, only: Option<u32>) -> Answer {
    if let Some(damaged) = only.and_then(|id| op.node.damaged_context(id)) {
        return Err(damaged.failure(Code::Unhealthy));
    }
    if let Some(id) = only.filter(|id| op.node.context(*id).is_none())
        && let Some(failure) = super::not_opened(op.node, id, Code::Unhealthy)
    {
        return Err(failure);
    }
    let contexts = match only {
        Some(id) => vec![op.context(id)?],
        None => op.node.contexts(),
    };
    let mut reply = of(op.node, &contexts);
    if only.is_none() {
        tell_broken(op.node, &mut reply)?;
    }
    let step = match (contexts.as_slice(), reply.contexts.as_slice()) {
        ([context], [status]) => next_step(op.node, context, status),
        _ => None,
    };
    Ok((Reply::Status(reply), step))
}

fn next_step(node: &Node, context: &Context, status: &ContextStatus) -> Option<control::NextStep> {
    let id = context.id();
    let here = node.name();
    let head = status.head.context.as_ref()?;
    let is_peer_stopped = head
        .peer
        .as_ref()
        .is_some_and(|peer| peer.state == PeerState::Stopped);
    match head.state {
        ContextState::Stopped => next(format!("rtstart -C {id}"), &here),
        ContextState::Restoring | ContextState::RolledBack => next(format!("scrt_ra -C {id} --undo"), &here),
        ContextState::FailingOver => next(format!("rtdr -C {id} failover"), &here),
        ContextState::FailedOver => next(format!("rtdr -C {id} resync"), context.peer_name()),
        ContextState::Fenced if !context.is_home() => next(format!("rtdr -C {id} failback"), &here),
        ContextState::Fenced => next(format!("rtdr -C {id} resync"), &here),
        ContextState::ResyncReady => next(format!("rtdr -C {id} resync"), context.peer_name()),
        ContextState::Enabled if context.journal.poisoned().is_some() => None,
        ContextState::Enabled if context.held_back().is_some() => next(format!("rtstart -C {id}"), &here),
        ContextState::Enabled => match context.role() {
            Role::Recovery if context.is_home() && status.consistent => {
                next(format!("rtstop -FSC {id}"), context.peer_name())
            }
            Role::Recovery if status.consistent => next(format!("scrt_ra -C {id} -X"), &here),
            Role::Recovery => next(format!("backstay wait -C {id} --until consistent"), &here),
            Role::Production if is_peer_stopped => next(format!("rtstart -C {id}"), context.peer_name()),
            Role::Production => next(format!("rtmark -C {id} --name NAME"), &here),
        },
    }
}

fn one(
    node: &Arc<Node>,
    context: &Arc<Context>,
    attached: &Result<Vec<AttachedDevice>, AttachError>,
) -> ContextStatus {
    let journal = &context.journal;
    let cursors = journal.cursors();
    let row = context.row();
    let peer = context.peer();
    let now = Timestamp::now();
    let production = context.role() == Role::Production;
    let consistent_here = consistent(context);
    let stale = if production { context.stale_bytes() } else { 0 };
    let mut warnings = Vec::new();
    if let Some(error) = journal.poisoned() {
        warnings.push(error.to_string());
    }
    if let Some(why) = &peer.refused {
        warnings.push(why.clone());
    }
    let rotten = journal.rotten_containers().into_iter();
    warnings.extend(rotten.map(|(g, lfc, what)| format!("redo of container g{g}:{lfc} is damaged: {what}")));
    warnings.extend(context.backing_warnings());
    warnings.extend(withheld_warning(context));
    warnings.extend(kept_warnings(context));
    let (appended, _) = journal.line_cursors();
    let unacked = appended.0 - cursors.received_by_peer.0.min(appended.0);
    let backlog = bytes_between(context, cursors.received_by_peer, appended);
    let oldest = rows(context)
        .into_iter()
        .find(|r| r.last_seq > cursors.received_by_peer)
        .map(|r| {
            // Within a container times are not kept by record; a container that is partly there counts from its end.
            if r.first_seq > cursors.received_by_peer {
                r.first_time
            } else {
                r.last_time
            }
        });
    let rpo = if production {
        Rpo {
            writes: Some(unacked),
            bytes: Some(backlog),
            seconds: Some(match oldest {
                Some(t) if unacked > 0 => now.0.saturating_sub(t.0) as f64 / 1e9,
                _ => 0.0,
            }),
        }
    } else {
        Rpo::default()
    };
    let resync = match peer.copies {
        Some((_, left, _)) if !production && !consistent_here => Some(copies(node, context, left)),
        _ => (stale > 0).then(|| copies(node, context, stale)),
    };
    if let Some(ahead) = context.clock_ahead().filter(|_| !production) {
        warnings.push(format!(
            "production's newest write claims to be {} s ahead of this host's clock: ages are counted from this clock; set one of them right",
            ahead.as_secs()
        ));
    }
    if let Some((by, within)) = context.clock_set().filter(|_| !production) {
        warnings.push(format!(
            "this host's clock was set forward by {} s: that makes no point older until {} h have passed; set it back if it is wrong",
            by.as_secs(),
            within.as_secs().div_ceil(3600)
        ));
    }
    let overflow = context.super_transaction();
    if let Some(s) = overflow {
        warnings.push(format!(
            "super transaction: {} containers ({} MiB) that {} lacks gave way to the state map; their regions are copied when it is there",
            s.containers,
            s.bytes >> 20,
            context.peer_name()
        ));
    }
    let attached = attached.as_deref().unwrap_or_else(|e| {
        warnings.push(format!("what is attached and mounted is not known: {e}"));
        &[]
    });
    let volumes = volumes(node, context, attached);
    let suspect: u64 = volumes.iter().map(|v| v.suspect_bytes).sum();
    if suspect > 0 {
        warnings.push(format!(
            "{} MiB may differ on {} whatever it has received (a full sync was asked for, or a state map was lost): they are copied",
            suspect.div_ceil(1 << 20),
            context.peer_name()
        ));
    }
    let verify = if production {
        context.verify.live(context)
    } else {
        crate::verify::Live::default()
    };
    warnings.extend(super::verify::warning(context, &verify));
    let (verdict, node_status) = verdict(context, row.state, unacked, stale, consistent_here);
    let healthy =
        node_status == 30 && peer.connected && warnings.is_empty() && row.state == ContextState::Enabled;
    let running = context.running();
    ContextStatus {
        head: HeadLine {
            host: node.name(),
            context: Some(head_context(context)),
        },
        healthy,
        verdict,
        node_status,
        warnings,
        mode: context.config.mode.to_string(),
        mode_now: mode_now(context),
        last_ack: peer.last_ack.map(Into::into),
        rpo,
        backlog_bytes: if production {
            backlog
        } else {
            bytes_between(context, cursors.applied, cursors.durable)
        },
        stale_bytes: stale,
        super_transaction: overflow.map(|s| control::status::SuperTransaction {
            since: s.since.into(),
            containers: s.containers,
            bytes: s.bytes,
        }),
        resync,
        acting: production && !context.is_home(),
        fenced_by: None,
        fenced_reason: None,
        consistent: if production {
            context.peer_is_consistent()
        } else {
            consistent_here
        },
        window: super::windows::current(context).ok().flatten(),
        window_wanted: window_wanted(context),
        restored: context
            .restore()
            .map(|r| super::snapshot::point_info(context, &r.target, Some(&r.text))),
        cursors: Cursors {
            appended: cursors.appended.0,
            durable: cursors.durable.0,
            written_back: cursors.written_back.0,
            checkpointed: cursors.checkpointed.0,
            sent: cursors.received_by_peer.0,
            acknowledged: cursors.received_by_peer.0,
            received: if production { 0 } else { cursors.durable.0 },
            applied: if production {
                cursors.applied_by_peer.0
            } else {
                cursors.applied.0
            },
            // The open container while it is empty: the one after the newest sealed.
            lfc: rows(context).last().map_or(0, |r| {
                if journal.open_is_empty() {
                    r.lfc.next().0
                } else {
                    r.lfc.0
                }
            }),
        },
        volumes,
        snapshots: match running.as_deref() {
            Some(Running::Recovery(r)) => r
                .views
                .all()
                .iter()
                .map(|s| snapshot_status(context, s, attached))
                .collect(),
            _ => Vec::new(),
        },
        journal_bytes: if production {
            rows(context)
                .iter()
                .filter(|r| journal.is_held(r))
                .map(|r| r.bytes)
                .sum()
        } else {
            journal.held_bytes().unwrap_or_default()
        },
        journal_limit_bytes: if production {
            context.redo_limit().ok()
        } else {
            context.configured_limit().map(|(_, limit)| limit)
        },
        pins: journal.pins().map_or(0, |pins| pins.len() as u64),
        proven_good: None,
        verified: super::verify::verified(&verify),
        verifying: super::verify::verifying(&verify),
        stopped: (row.state == ContextState::Stopped).then(|| Stopped {
            by: row.notes.get("stopped_by").cloned().unwrap_or_default(),
            at: row.since.into(),
        }),
    }
}

/// How far the copies are, with the rate since they began.
fn copies(node: &Node, context: &Context, stale: u64) -> ResyncStatus {
    let total = context.all_bytes();
    let rate = copy_rate(context, stale);
    ResyncStatus {
        bytes_left: stale.min(total),
        bytes_total: total,
        rate,
        eta_s: rate.map(|rate| (stale as f64 / rate).ceil() as u64),
        direction: match context.role() {
            Role::Production => format!("{} -> {}", node.name(), context.peer_name()),
            Role::Recovery => format!("{} -> {}", context.peer_name(), node.name()),
        },
    }
}

/// Bytes a second of the copies that are under way, once any were copied.
pub fn copy_rate(context: &Context, stale: u64) -> Option<f64> {
    let (since, then) = context.peer().copying_since?;
    let rate = then.saturating_sub(stale) as f64 / since.elapsed().as_secs_f64().max(0.001);
    (rate > 0.0).then_some(rate)
}

fn window_wanted(context: &Context) -> control::status::WindowWanted {
    let wanted = context.config.rollback_window;
    control::status::WindowWanted {
        seconds: wanted.age.map(|age| age.0.as_secs()),
        bytes: wanted.bytes.map(|b| b.0),
    }
}

/// How production answers now, where that is not what its mode says.
fn mode_now(context: &Context) -> Option<String> {
    let running = context.running()?;
    let Running::Production(production) = &*running else {
        return None;
    };
    let peer = context.peer_name();
    let (step, above) = production.tap.peer_step();
    if context.config.mode == Mode::Async {
        return (step == PeerStep::InStep && above).then(|| "mwc above the high-water mark".to_owned());
    }
    let why = match step {
        PeerStep::InStep => return None,
        PeerStep::Alone => return Some("async since the failover".to_owned()),
        PeerStep::Away => format!("{peer} is away"),
        PeerStep::Behind => format!("{peer} catches up"),
    };
    Some(match context.config.on_link_loss {
        OnLinkLoss::Continue => format!("async, {why}"),
        OnLinkLoss::Block => format!("blocked, {why}"),
        OnLinkLoss::Fail => format!("failing, {why}"),
    })
}

/// Blocks that nobody is served, with the way out.
fn withheld_warning(context: &Context) -> Option<String> {
    let bytes = context.journal.withheld_blocks() as u64 * BLOCK_SIZE;
    let what = format!(
        "{bytes} bytes of this host's volumes could not be read, and are served to nobody until they are written whole"
    );
    let id = context.id();
    let way_out = match context.role() {
        Role::Recovery => format!(": backstay verify -C {id} --repair on {}", context.peer_name()),
        Role::Production => String::new(),
    };
    (bytes > 0).then(|| what + &way_out)
}

/// What retention had to give up, or cannot: most urgent first, each with the way out.
fn kept_warnings(context: &Context) -> Vec<String> {
    let id = context.id();
    let mut warnings: Vec<String> = Vec::new();
    let waits = context.no_room();
    warnings.extend(waits.map(|why| format!("no room, it goes on by itself when there is: {why}")));
    if context.role() == Role::Production {
        let full = context.peer().no_room;
        warnings.extend(full.map(|why| format!("{} receives nothing: {why}", context.peer_name())));
        return warnings;
    }
    let full = context.retention.no_room(context);
    warnings.extend(full.map(|why| format!("receiving stopped: {why}")));
    if let Some(Running::Recovery(r)) = context.running().as_deref() {
        warnings.extend(r.damage().map(|why| format!("nothing is applied: {why}")));
        for snapshot in r.views.all() {
            let level = snapshot.level;
            let out = format!("scrt_ra -C {id} -W --level {level}");
            match snapshot.made_vdev() {
                _ if context.is_broken(&snapshot) => warnings.push(format!(
                    "snapshot {level} is broken, its point was given up for room: {out}"
                )),
                Err(why) => warnings.push(format!(
                    "snapshot {level} is broken, its overlay cannot be used: {why}: {out}, and take it again"
                )),
                Ok(Some(vdev)) if vdev.is_full() => warnings.push(format!(
                    "the overlay of vdev {level} is full, writes to it fail and reads go on: {out}, and take a new \
                     snapshot with a larger overlay_limit"
                )),
                Ok(_) => {}
            }
        }
    }
    for pin in context.journal.pins().unwrap_or_default() {
        if matches!(pin.kind, journal::PinKind::Mark { .. }) && !context.journal.is_kept(&pin.point) {
            warnings.push(format!(
                "{} cannot be used: its point was given up for room",
                super::pins::holder(&pin)
            ));
        }
    }
    warnings.extend(context.shortfall().map(|short| short.to_string()));
    warnings
}

/// The one sentence, and the node status of the AIX product: 30 works, 60 loaded and its agent stopped, 100 not there.
fn verdict(
    context: &Context,
    state: ContextState,
    unacked: u64,
    stale: u64,
    consistent: bool,
) -> (String, u8) {
    let peer = context.peer();
    let name = context.peer_name();
    if let Some(error) = context.journal.poisoned() {
        return (
            format!("stopped acknowledging: {error}; restart the daemon when that is mended"),
            60,
        );
    }
    if let Some(why) = context.held_back().filter(|_| state != ContextState::Stopped) {
        return (format!("not started: {why}"), 60);
    }
    match (state, context.role()) {
        (ContextState::Stopped, _) => ("stopped".into(), 100),
        (ContextState::FailingOver, _) => ("a failover is under way: nothing is received or served".into(), 60),
        (ContextState::FailedOver, _) => (
            format!("production since a failover: changes are kept for {name} until its resync"),
            30,
        ),
        (ContextState::Fenced, _) => (
            format!(
                "fenced, serves nothing: {}",
                context.fenced_why().unwrap_or_else(|| "it gave its role up".into())
            ),
            60,
        ),
        (ContextState::ResyncReady, _) => (format!("ready for resync: waits for {name}"), 30),
        (ContextState::Restoring, _) => ("a restore is under way: nothing is applied".into(), 30),
        (ContextState::RolledBack, _) => (
            "the replica stands at a restored point: it receives and applies nothing".into(),
            30,
        ),
        (ContextState::Enabled, Role::Production) => match (peer.connected, stale, unacked) {
            (false, 1.., _) if context.super_transaction().is_some() => (
                format!("{name} is not connected, and the journal is at its limit: what it lacks is noted and copied later"),
                60,
            ),
            (false, _, n) => (format!("{name} is not connected: {n} records wait for it"), 60),
            (true, 1.., _) if context.super_transaction().is_some() => (
                "resync: the replica stands at its last consistent point".into(),
                30,
            ),
            (true, 1.., _) => ("first sync: the replica is not consistent yet".into(), 30),
            (true, 0, 0) => (format!("every write is at {name}"), 30),
            (true, 0, n) => (format!("{n} records are on their way to {name}"), 30),
        },
        (ContextState::Enabled, Role::Recovery) => match (consistent, peer.connected) {
            (false, _) if context.was_consistent() => (
                "resync: points up to the last consistent one can be used, later ones when all copies are here"
                    .into(),
                30,
            ),
            (false, _) => (
                "the replica is not consistent: the first sync is not complete".into(),
                30,
            ),
            (true, false) => (
                format!("{name} is not connected: the replica stands at its last record"),
                60,
            ),
            (true, true) => ("the replica follows production".into(), 30),
        },
    }
}

/// Sealed containers and the open one, oldest first.
fn rows(context: &Context) -> Vec<Arc<LfcRow>> {
    let mut rows = context.journal.lfc_rows(..);
    rows.extend(context.journal.open_row().map(Arc::new));
    rows
}

/// Bytes of the records behind `after`, up to `upto`; a container that is partly in counts by its share of records.
fn bytes_between(context: &Context, after: WriteSeq, upto: WriteSeq) -> u64 {
    let share = |r: &LfcRow| {
        let all = r.last_seq.0 + 1 - r.first_seq.0;
        let inside = (r.last_seq.min(upto).0 + 1).saturating_sub(r.first_seq.0.max(after.0 + 1));
        u64::try_from(u128::from(r.bytes) * u128::from(inside.min(all)) / u128::from(all.max(1)))
            .unwrap_or(u64::MAX)
    };
    rows(context).iter().map(|r| share(r)).sum()
}

fn volumes(node: &Node, context: &Context, attached: &[AttachedDevice]) -> Vec<VolumeStatus> {
    let production = context.role() == Role::Production;
    let rows = context.config.indexed().map(|(index, v)| {
        let export = format!("c{}/{}", context.id(), v.name);
        let attached = attached.iter().find(|a| production && a.export == export);
        VolumeStatus {
            name: v.name.clone(),
            bytes: context.volume_size(index),
            device: attached.map(|a| a.name.display().to_string()),
            filesystem: v.filesystem.map(|f| f.name().to_owned()),
            mount: v.mount.as_ref().map(|m| m.display().to_string()),
            mounted: attached.is_some_and(|a| a.mounted.is_some()),
            open: node.readers(|name| name == export) > 0,
            suspect_bytes: match production {
                true => crate::maps::suspect_bytes(&context.journal, index),
                false => 0,
            },
        }
    });
    rows.collect()
}

fn snapshot_status(
    context: &Context,
    snapshot: &crate::context::Snapshot,
    attached: &[AttachedDevice],
) -> SnapshotStatus {
    let prefixes = [
        format!("c{}/sn{}/", context.id(), snapshot.level),
        format!("c{}/rsn{}/", context.id(), snapshot.level),
    ];
    let vdev = snapshot.made_vdev();
    SnapshotStatus {
        level: snapshot.level.0,
        name: snapshot.name.clone(),
        point: super::snapshot::info(context, snapshot),
        broken: context.is_broken(snapshot) || vdev.is_err(),
        overlay_bytes: vdev
            .ok()
            .flatten()
            .map_or(0, |v| v.overlay().usage().blocks_used * model::BLOCK_SIZE),
        overlay_limit_bytes: Some(context.config.overlay_limit.0),
        mounts: attached
            .iter()
            .filter(|a| prefixes.iter().any(|p| a.export.starts_with(p.as_str())))
            .filter_map(|a| Some(a.mounted.as_ref()?.display().to_string()))
            .collect(),
    }
}

/// What node this is.
pub fn node_info(op: &mut Op<'_>) -> Answer {
    let config = op.node.config();
    let reply = NodeInfoReply {
        name: config.name.clone(),
        program: format!("backstay {}", env!("CARGO_PKG_VERSION")),
        pid: std::process::id(),
        since: op.node.since().into(),
        state_dir: config.state_dir.display().to_string(),
        identity: op.node.peers().fingerprint().to_string(),
        peer_listen: config.listen.peer.clone(),
        nbd_listen: Some(config.nbd_socket().display().to_string()),
        peers: config.hosts.iter().map(|h| h.name.clone()).collect(),
        contexts: op.node.context_ids(),
    };
    Ok((Reply::NodeInfo(reply), None))
}
