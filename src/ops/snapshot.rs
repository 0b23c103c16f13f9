//! `scrt_ra -X`, a target alone, `-W`.

use super::{Answer, Op, next, refused};
use crate::{
    attach::device::nbd_uri,
    context::{Context, ContextError, Recovery, Running, Snapshot, SnapshotError},
    roles::{Next, Standing},
};
use control::{
    Code, Failure, NearPoint, PointInfo, Reply, Side,
    reply::{ReleaseReply, ReleasedSnapshot, SnapshotReply, SnapshotVolume},
    request::Which,
};
use journal::{Reached, ResolveError};
use model::{ContextState, Level, Point, Target};
use std::sync::Arc;

/// The running recovery of a context, or why there is none.
pub fn recovery(op: &Op<'_>, context: &Arc<Context>, command: &str) -> Result<Arc<Running>, Failure> {
    match context.standing() {
        Standing::Fenced => return Err(super::not_running(op, context)),
        Standing::FailedOver => {
            let text = format!(
                "context {} is production here since a failover; until {} is ready for resync there is no recovery host",
                context.id(),
                context.peer_name()
            );
            let (resync, _) = Next::ResyncThere.command(context.id());
            return Err(refused(text).with_hint_command(resync, context.peer_name()));
        }
        Standing::Producing => {
            let text = format!(
                "context {} is production here; snapshots live on the recovery host",
                context.id()
            );
            return Err(refused(text).with_hint_command(command, context.peer_name()));
        }
        _ => {}
    }
    context.running().ok_or_else(|| super::not_running(op, context))
}

/// The recovery side of what runs.
pub fn side(running: &Running) -> Result<&Recovery, Failure> {
    match running {
        Running::Recovery(r) => Ok(r),
        Running::Production(_) => Err(Failure::new(
            Code::Bug,
            "production runs where recovery was checked",
        )),
    }
}

/// A point as commands show it.
pub fn point_info(context: &Context, point: &Point, target: Option<&str>) -> PointInfo {
    let mut info = PointInfo::new(point.generation.0, point.seq, point.lfc, point.time);
    info.target = target.map(str::to_owned);
    let marks = context.journal.marks();
    info.mark = marks
        .iter()
        .find(|m| m.generation == point.generation && m.seq == point.seq)
        .map(|m| m.name.clone());
    // What the resolver says of the target itself, such as a mark taken instead of the whole second.
    if let Some(Ok(parsed)) = target.map(str::parse::<Target>)
        && let Ok(resolved) = context.journal.resolve(&parsed, model::Timestamp::now())
        && resolved.point.seq == point.seq
    {
        info.note = resolved.note.map(|n| n.to_string());
    }
    info
}

/// A snapshot's point as commands show it.
pub fn info(context: &Context, snapshot: &Snapshot) -> PointInfo {
    point_info(context, snapshot.point(), Some(&snapshot.target))
}

/// A target's text as a target.
pub fn parse(text: &str) -> Result<Target, Failure> {
    text.parse()
        .map_err(|e: model::target::TargetError| Failure::new(Code::Usage, e.to_string()))
}

/// What a target that is not reachable is answered with: the nearest points and the window.
pub fn outside(context: &Context, error: &ResolveError) -> Failure {
    let mut failure = not_reached(error);
    failure.window = super::windows::current(context).ok().flatten();
    failure.with_hint_command(format!("scrt_ra -C {} -pe", context.id()), context.node_name())
}

/// The same as far as the target alone says it: the nearest points.
pub fn not_reached(error: &ResolveError) -> Failure {
    let code = match error {
        ResolveError::Future { .. } => Code::Usage,
        ResolveError::Journal(_) | ResolveError::NoHistory | ResolveError::NotConsistent => Code::Refused,
        _ => Code::OutsideWindow,
    };
    let mut failure = Failure::new(code, error.to_string());
    let near = |side, r: &Reached| NearPoint {
        side,
        target: format!("seq:{}", r.at.seq),
        point: PointInfo::new(r.at.generation.0, r.at.seq, r.lfc, r.time),
    };
    match error {
        ResolveError::Outside(miss)
        | ResolveError::InGap(miss)
        | ResolveError::BeforeFirstConsistent(miss) => {
            failure.nearest = match miss.nearest.as_slice() {
                [one] if *one == miss.window.oldest => vec![near(Side::After, one)],
                [one] => vec![near(Side::Before, one)],
                several => {
                    let sides = [Side::Before, Side::After];
                    several.iter().zip(sides).map(|(r, side)| near(side, r)).collect()
                }
            };
        }
        ResolveError::Ambiguous { readings, .. } => {
            failure.nearest = readings.iter().map(|r| near(Side::Before, r)).collect();
        }
        ResolveError::UnknownMark { known, .. } if !known.is_empty() => {
            failure.hint = Some(format!("the marks are {}", known.join(", ")));
        }
        _ => {}
    }
    failure
}

/// A failure of the snapshot registry.
pub fn failure(context: &Context, error: &SnapshotError) -> Failure {
    match error {
        SnapshotError::Target(e) => outside(context, e),
        SnapshotError::NotConsistent => refused(error.to_string())
            .with_hint("it becomes consistent when the first sync ends")
            .with_hint_command(
                format!("backstay wait -C {} --until consistent", context.id()),
                context.node_name(),
            ),
        SnapshotError::NameTaken { .. } => refused(error.to_string()),
        SnapshotError::Context(e) => context_failure(e),
    }
}

/// A failure of the context.
pub fn context_failure(error: &ContextError) -> Failure {
    Failure::from_error(Code::Refused, error)
}

/// `scrt_ra -X`, or a target alone.
pub fn snapshot(op: &mut Op<'_>, id: u32, target: &str, name: Option<&str>) -> Answer {
    let context = op.context(id)?;
    let to = if target == "latest" {
        "-X".to_owned()
    } else {
        format!("--at {target}")
    };
    let named = name.map(|name| format!(" --name {name}")).unwrap_or_default();
    let running = recovery(op, &context, &format!("scrt_ra -C {id} {to}{named}"))?;
    let views = &side(&running)?.views;
    let parsed = parse(target)?;
    let point = views.resolve(&parsed).map_err(|e| failure(&context, &e))?;
    op.resolved(None, point_info(&context, &point, Some(target)));
    if let Some(name) = name
        && model::EventMark::name_fault(name).is_some()
    {
        return Err(Failure::new(
            Code::Usage,
            format!("'{name}' cannot name a snapshot"),
        ));
    }
    if op.options.dry_run {
        let step = format!("pin record {} and make a snapshot there", point.seq);
        return super::planned(Some(point_info(&context, &point, Some(target))), vec![step]);
    }
    let (snapshot, already) = views
        .create(&parsed, name, &op.options.operator)
        .map_err(|e| failure(&context, &e))?;
    let reply = SnapshotReply {
        context: context.id().0,
        level: snapshot.level.0,
        name: snapshot.name.clone(),
        point: info(&context, &snapshot),
        already,
        volumes: volumes(op, &context, &snapshot),
    };
    let level = if name.is_some() {
        format!(" --level {}", snapshot.level)
    } else {
        String::new()
    };
    Ok((
        Reply::Snapshot(reply),
        next(format!("rtmnt -C {id}{level}"), op.node.name()),
    ))
}

fn volumes(op: &Op<'_>, context: &Context, snapshot: &Snapshot) -> Vec<SnapshotVolume> {
    let attacher = op.node.attacher();
    let attached = attacher.all().unwrap_or_default();
    let socket = op.node.config().nbd_socket();
    let minor = |device: &str| {
        attached
            .iter()
            .find(|a| a.export == device)
            .and_then(|a| device_number(&a.device))
            .unwrap_or_else(|| "-.-".to_owned())
    };
    let rows = context.config.volumes.iter().map(|v| {
        let snap = format!("c{}/rsn{}/{}", context.id(), snapshot.level, v.name);
        let vdev = format!("c{}/sn{}/{}", context.id(), snapshot.level, v.name);
        SnapshotVolume {
            name: v.name.clone(),
            snap_device: attacher.name_of(&snap).display().to_string(),
            snap_minor: minor(&snap),
            vdev_device: attacher.name_of(&vdev).display().to_string(),
            vdev_minor: minor(&vdev),
            rj: true,
            wj: true,
            snap_uri: nbd_uri(&socket, &snap),
            vdev_uri: nbd_uri(&socket, &vdev),
        }
    });
    rows.collect()
}

/// `43.2` of a block device.
fn device_number(path: &std::path::Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).ok()?.rdev();
    Some(format!(
        "{}.{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    ))
}

/// The snapshot that a command without a level means: the one unnamed operator snapshot.
pub fn choose(op: &Op<'_>, context: &Arc<Context>, level: Option<u32>) -> Result<Arc<Snapshot>, Failure> {
    let id = context.id();
    let running = recovery(op, context, &format!("rtmnt -C {id}"))?;
    let all = side(&running)?.views.all();
    let list = |snapshots: &[&Arc<Snapshot>]| {
        snapshots
            .iter()
            .map(|s| format!("{} ({})", s.level, s.target))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(level) = level {
        return all.iter().find(|s| s.level.0 == level).cloned().ok_or_else(|| {
            refused(format!(
                "context {id} has no snapshot at level {level}; it has {}",
                list(&all.iter().collect::<Vec<_>>())
            ))
        });
    }
    let unnamed: Vec<&Arc<Snapshot>> = all.iter().filter(|s| s.name.is_none()).collect();
    match unnamed.as_slice() {
        [one] => Ok(Arc::clone(one)),
        [] => Err(refused(format!("context {id} has no unnamed snapshot"))
            .with_hint_command(format!("scrt_ra -C {id} -X"), op.node.name())),
        several => Err(refused(format!(
            "context {id} has several snapshots: levels {}",
            list(several)
        ))
        .with_hint("name one with --level N")),
    }
}

/// `scrt_ra -W`: all of them or none.
pub fn release(op: &mut Op<'_>, id: u32, which: Which) -> Answer {
    let context = op.context(id)?;
    let running = recovery(op, &context, &format!("scrt_ra -C {id} -W"))?;
    let views = &side(&running)?.views;
    let chosen: Vec<Arc<Snapshot>> = views
        .all()
        .into_iter()
        .filter(|s| match which {
            Which::AllUnnamed => s.name.is_none(),
            Which::Level(level) => s.level.0 == level,
            Which::All => true,
        })
        .collect();
    if let (Which::Level(level), []) = (which, chosen.as_slice()) {
        return Err(refused(format!("context {id} has no snapshot at level {level}")));
    }
    let holders = chosen.iter().map(|s| holders(op, &context, s.level));
    let holders = holders.collect::<Result<Vec<_>, _>>()?.concat();
    if !holders.is_empty() {
        return Err(refused("snapshots are in use")
            .with_holders(holders)
            .with_hint_command(format!("rtumnt -C {id}"), op.node.name()));
    }
    let until = context.release_until();
    let released = chosen
        .iter()
        .map(|s| ReleasedSnapshot {
            level: s.level.0,
            name: s.name.clone(),
            point: info(&context, s),
            devices: volumes(op, &context, s)
                .into_iter()
                .flat_map(|v| [v.snap_device, v.vdev_device])
                .collect(),
            pinned_until: Some(until.into()).filter(|_| !context.is_broken(s)),
        })
        .collect();
    if op.options.dry_run {
        let steps = chosen
            .iter()
            .map(|s| format!("release snapshot {}", s.level))
            .collect();
        return super::planned(None, steps);
    }
    let levels: Vec<Level> = chosen.iter().map(|s| s.level).collect();
    views
        .release(&levels, &op.options.operator, until)
        .map_err(|e| context_failure(&e))?;
    context.bells.sealed.ring();
    let next = if context.state() == ContextState::RolledBack {
        None
    } else {
        next(format!("scrt_ra -C {id} -pe"), op.node.name())
    };
    Ok((
        Reply::Release(ReleaseReply {
            context: context.id().0,
            released,
        }),
        next,
    ))
}

/// Who has a snapshot open.
fn holders(op: &Op<'_>, context: &Context, level: Level) -> Result<Vec<String>, Failure> {
    let prefixes = [
        format!("c{}/sn{level}/", context.id()),
        format!("c{}/rsn{level}/", context.id()),
    ];
    let ours = |name: &str| prefixes.iter().any(|p| name.starts_with(p.as_str()));
    let mut holders: Vec<String> = super::mount::attached(op)?
        .into_iter()
        .filter(|a| ours(&a.export))
        .map(|a| match a.mounted {
            Some(at) => format!("{} mounted at {}", a.export, at.display()),
            None => format!("{} attached as {}", a.export, a.name.display()),
        })
        .collect();
    if holders.is_empty() {
        let connections = super::lifecycle::connections(op, ours);
        if connections > 0 {
            holders.push(format!("{connections} NBD connections to snapshot {level}"));
        }
    }
    Ok(holders)
}
