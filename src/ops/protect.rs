//! `protect`: a new context, from its configuration on both hosts to mounted volumes and a running first sync.

use super::{Answer, Op, next, refused};
use crate::{
    config::{ContextConfig, Filesystem, Mode, Size, VolumeConfig},
    context::{Context, Running},
    peer::{CONFIGURE, PeerError},
};
use bytes::Bytes;
use control::{
    Code, Failure, Progress, Reply, Unit,
    reply::{PlanReply, ProtectReply, ProtectedVolume},
    request::{Protect, VolumeSource, VolumeSpec},
};
use model::ports::Medium;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long `protect` stays to show the first sync; it goes on by itself.
const SYNC_SHOWN: Duration = Duration::from_secs(60);

/// `backstay protect`.
pub fn protect(op: &mut Op<'_>, wanted: &Protect) -> Answer {
    let node = Arc::clone(op.node);
    let name = node.name();
    let recovery = match &wanted.recovery {
        Some(recovery) => recovery.clone(),
        None => match node.config().hosts.as_slice() {
            [one] => one.name.clone(),
            [] => {
                return Err(refused("this node knows no other host to keep the replica")
                    .with_hint_command("backstay init", "the recovery host"));
            }
            _ => {
                return Err(Failure::new(
                    Code::Usage,
                    "this node knows several hosts: name one with --recovery",
                ));
            }
        },
    };
    if node.config().host(&recovery).is_none() {
        return Err(refused(format!("{recovery} is not among the hosts of this node")));
    }
    let mode = wanted.mode.as_deref().map(str::parse::<Mode>).transpose();
    let mode = mode.map_err(|why| Failure::new(Code::Usage, why))?;
    let id = wanted.context;
    let failover_id = wanted.failover_id.unwrap_or(id.saturating_add(1000));
    for taken in [id, failover_id] {
        if let Some(damaged) = node.damaged_context(taken) {
            return Err(damaged.failure(Code::NotNow));
        }
        if let Some(there) = node.context(taken) {
            return Err(refused(format!(
                "id {taken} belongs to context {} of this node already",
                there.id()
            ))
            .with_hint_command(format!("backstay status -C {id}"), &name));
        }
    }
    let volumes = wanted
        .volumes
        .iter()
        .map(|v| volume_config(v, &name, &recovery))
        .collect::<Result<Vec<VolumeConfig>, Failure>>()?;
    let mut config = ContextConfig::new(id, failover_id, name.clone(), recovery.clone(), volumes);
    config.mode = mode.unwrap_or_default();
    let path = node.config().contexts_dir().join(format!("{id}.toml"));
    ContextConfig::from_text(&path, &config.to_text()).map_err(|e| Failure::from_error(Code::Usage, &e))?;
    if op.options.dry_run {
        return Ok((planned(&config, &path), None));
    }
    let folder = node.config().state_dir.join(format!("c{id}"));
    if folder.exists() {
        return Err(refused(format!(
            "{} is there from an earlier context {id}: move it away or take another id",
            folder.display()
        )));
    }
    config
        .save(&path)
        .map_err(|e| Failure::from_error(Code::Refused, &e))?;
    let undo = |failure: Failure| {
        // A context that was never ready leaves nothing behind but an adopted backing, which was never written.
        node.remove_context(id);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&folder);
        failure
    };
    let context = node
        .add_context(config.clone())
        .map_err(|e| undo(Failure::from_error(Code::Refused, &e)))?;
    let answer = node
        .peers()
        .request(&node, &recovery, CONFIGURE, Bytes::from(config.to_text()))
        .map_err(|e| undo(peer_failure(&e)))?;
    // The peer answers where each volume's replica is, a line each.
    let replicas: Vec<String> = String::from_utf8_lossy(&answer)
        .lines()
        .map(str::to_owned)
        .collect();
    let replica = |i: usize| replicas.get(i).cloned().unwrap_or_default();
    for (i, volume) in config.volumes.iter().enumerate() {
        let backing = volume.backing_on(&name, &node.config().state_dir, id);
        op.line(format!(
            "{name}:{} -> {recovery}:{}  ({})",
            backing.display(),
            replica(i),
            volume.size
        ));
    }
    // From here on the context is there: what fails is gone on with by the command that the hint names.
    let part_way = |mut failure: Failure| {
        failure.code = Code::PartWay;
        failure
            .with_hint("the context is protected and its first sync runs; mount it when this is mended")
            .with_hint_command(format!("rtmnt -C {id}"), &name)
    };
    let mut made = Vec::new();
    for (i, (volume, spec)) in config.volumes.iter().zip(&wanted.volumes).enumerate() {
        made.push(ready(op, &context, volume, spec, replica(i)).map_err(part_way)?);
    }
    if wanted.mount && config.volumes.iter().any(|v| v.mount.is_some()) {
        let how = super::mount::How {
            read_only: false,
            full_check: false,
            new_uuid: false,
            at_dir: None,
        };
        super::mount::mount(op, id, None, &how).map_err(part_way)?;
        for volume in &mut made {
            volume.mounted = volume.mount.is_some();
        }
    }
    let initial_sync = show_sync(op, &context);
    let reply = ProtectReply {
        context: id,
        failover_id,
        production: name.clone(),
        recovery,
        volumes: made,
        initial_sync,
        files: vec![path.display().to_string()],
    };
    Ok((
        Reply::Protect(reply),
        next(format!("rtmark -C {id} --name NAME"), &name),
    ))
}

fn peer_failure(error: &PeerError) -> Failure {
    let code = match error {
        PeerError::Refused { .. } | PeerError::UnknownHost(_) | PeerError::Identity { .. } => Code::Refused,
        _ => Code::NotNow,
    };
    Failure::from_error(code, error)
}

fn planned(config: &ContextConfig, path: &Path) -> Reply {
    let mut steps = vec![
        format!("write {}", path.display()),
        format!("make the journal of context {}", config.id),
        format!(
            "send the configuration to {}, which makes the replica",
            config.recovery_node()
        ),
    ];
    steps.extend(config.volumes.iter().filter_map(|v| {
        Some(format!(
            "make or adopt the file system of {}, mount it at {}",
            v.name,
            v.mount.as_ref()?.display()
        ))
    }));
    steps.push("copy everything to the recovery host".into());
    Reply::Plan(PlanReply {
        steps,
        ..PlanReply::default()
    })
}

fn volume_config(spec: &VolumeSpec, production: &str, recovery: &str) -> Result<VolumeConfig, Failure> {
    let mut backing = BTreeMap::new();
    let size = match &spec.source {
        VolumeSource::Create { bytes } => *bytes,
        VolumeSource::Adopt { path } => {
            let medium = media::FileMedium::open(Path::new(path), media::Create::Never)
                .map_err(|e| refused(format!("volume {}: {e}", spec.name)))?;
            backing.insert(production.to_owned(), PathBuf::from(path));
            medium.len()
        }
    };
    if let Some(path) = &spec.recovery_path {
        backing.insert(recovery.to_owned(), PathBuf::from(path));
    }
    let filesystem = match spec.filesystem.as_deref() {
        None if spec.mount.is_some() => Some(Filesystem::Ext4),
        None => None,
        Some(name) => Some(Filesystem::named(name).ok_or_else(|| {
            let text = format!("file system '{name}' is not part of this version: ext4, xfs, btrfs");
            Failure::new(Code::Usage, text)
        })?),
    };
    Ok(VolumeConfig {
        name: spec.name.clone(),
        size: Size(size),
        filesystem,
        mount: spec.mount.as_ref().map(PathBuf::from),
        backing,
    })
}

/// Makes the volume's file system, or adopts the one that is there.
fn ready(
    op: &mut Op<'_>,
    context: &Arc<Context>,
    volume: &VolumeConfig,
    spec: &VolumeSpec,
    recovery_backing: String,
) -> Result<ProtectedVolume, Failure> {
    let device = format!("c{}/{}", context.id(), volume.name);
    let created = matches!(spec.source, VolumeSource::Create { .. });
    let config = op.node.config();
    if let Some(filesystem) = volume.filesystem {
        let failed = |e: crate::attach::AttachError| Failure::from_error(Code::PartWay, &e);
        let attacher = op.node.attacher();
        let attached = op.node.attach(&device, false).map_err(failed)?;
        let made = match attacher.probe(&device).map_err(failed)?.as_deref() {
            Some(name) if name == filesystem.name() => Ok(()),
            None if created => {
                op.line(format!("mkfs.{} {}", filesystem.name(), attached.name.display()));
                attacher.make(&device, filesystem).map_err(failed)
            }
            other => Err(refused(format!(
                "volume {} holds {}, not {}: nothing was written to it",
                volume.name,
                other.unwrap_or("no file system"),
                filesystem.name()
            ))),
        };
        // `rtmnt` attaches it again together with its check and mount, as one step.
        attacher.detach(&device).map_err(failed)?;
        made?;
    }
    Ok(ProtectedVolume {
        name: volume.name.clone(),
        bytes: volume.size.0,
        device: op.node.attacher().name_of(&device).display().to_string(),
        backing: volume
            .backing_on(&config.name, &config.state_dir, context.id().0)
            .display()
            .to_string(),
        recovery_backing,
        created,
        filesystem: volume.filesystem.map(|f| f.name().to_owned()),
        mount: volume.mount.as_ref().map(|m| {
            crate::attach::mount::under(&config.mount_root, m)
                .display()
                .to_string()
        }),
        mounted: false,
    })
}

/// Shows the first sync until it is complete and applied, or for [`SYNC_SHOWN`].
fn show_sync(op: &mut Op<'_>, context: &Arc<Context>) -> Option<Progress> {
    let total = context.all_bytes();
    let started = Instant::now();
    op.may_stop(true);
    loop {
        let stale = context.stale_bytes();
        let progress = Progress {
            what: "first sync".into(),
            done: total - stale.min(total),
            total: Some(total),
            unit: Unit::Bytes,
            rate: Some((total - stale.min(total)) as f64 / started.elapsed().as_secs_f64().max(0.001)),
            ..Progress::default()
        };
        let peer = context.peer();
        let applied = context.journal.cursors().applied_by_peer;
        let complete =
            peer.connected && !peer.copying && stale == 0 && peer.synced_at.is_some_and(|at| applied >= at);
        op.progress(progress.clone());
        if complete || started.elapsed() > SYNC_SHOWN || op.stopped_by().is_some() || !op.is_watched() {
            return Some(progress);
        }
        if let Some(running) = context.running()
            && let Running::Production(production) = &*running
            && production.tap.pinned_bytes() == 0
        {
            context.bells.durable.ring();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
