//! `rtmnt`, `rtumnt`.

use super::{Answer, Op, next, part_way, refused};
use crate::{
    attach::{AttachError, AttachedDevice, MountAsk, Told, device::depth, mount as fs},
    config::{Filesystem, VolumeConfig},
    context::Context,
};
use control::{
    Code, Failure, Question, Reply, Step,
    reply::{MountInfo, MountReply, UnmountReply},
};
use model::Role;
use std::path::{Path, PathBuf};

/// How to mount.
pub struct How {
    /// The snap device instead of the vdev.
    pub read_only: bool,
    /// A full check.
    pub full_check: bool,
    /// A btrfs with a twin gets an id of its own.
    pub new_uuid: bool,
    /// Another folder than `mount_root`.
    pub at_dir: Option<String>,
}

/// One volume to attach and perhaps mount.
struct Item {
    volume: String,
    /// Export and device name, the same text.
    device: String,
    filesystem: Option<Filesystem>,
    at: Option<PathBuf>,
    /// The volume's file or device on this host.
    backing: PathBuf,
}

fn items(op: &Op<'_>, context: &Context, root: &Path, device: impl Fn(&VolumeConfig) -> String) -> Vec<Item> {
    let node = op.node.config();
    let mut items: Vec<Item> = context
        .config
        .volumes
        .iter()
        .map(|v| Item {
            volume: v.name.clone(),
            device: device(v),
            filesystem: v.filesystem,
            at: v.mount.as_ref().map(|m| fs::under(root, m)),
            backing: v.backing_on(&node.name, &node.state_dir, context.config.id),
        })
        .collect();
    // A file system mounted inside another needs its parent first.
    items.sort_by_key(|i| i.at.as_ref().map_or(0, |a| a.components().count()));
    items
}

/// `rtmnt`.
pub fn mount(op: &mut Op<'_>, id: u32, level: Option<u32>, how: &How) -> Answer {
    let context = op.context(id)?;
    let root = how
        .at_dir
        .as_ref()
        .map_or_else(|| op.node.config().mount_root.clone(), PathBuf::from);
    let (level, point, items) = match context.role() {
        Role::Production => {
            if level.is_some() || how.read_only {
                return Err(Failure::new(
                    Code::Usage,
                    "--level and --read-only are for snapshots, on the recovery host",
                ));
            }
            if how.new_uuid {
                return Err(Failure::new(
                    Code::Usage,
                    "--new-uuid is for vdevs, on the recovery host: a protected volume keeps its UUID",
                ));
            }
            if !context.is_running() {
                return Err(super::not_running(op, &context));
            }
            (
                None,
                None,
                items(op, &context, &root, |v| format!("c{}/{}", context.id(), v.name)),
            )
        }
        Role::Recovery => {
            let snapshot = super::snapshot::choose(op, &context, level)?;
            let point = super::snapshot::info(&context, &snapshot);
            op.resolved(Some(snapshot.level.0), point.clone());
            if let Some(why) = snapshot.made_vdev().err().filter(|_| !how.read_only) {
                let level = snapshot.level;
                return Err(
                    refused(format!("the overlay of snapshot {level} cannot be used: {why}"))
                        .with_hint("--read-only mounts it as it was taken; else release it and take it again")
                        .with_hint_command(format!("scrt_ra -C {id} -W --level {level}"), op.node.name()),
                );
            }
            let kind = if how.read_only { "rsn" } else { "sn" };
            let items = items(op, &context, &root, |v| {
                format!("c{}/{kind}{}/{}", context.id(), snapshot.level, v.name)
            });
            (Some(snapshot.level.0), Some(point), items)
        }
    };
    if how.new_uuid && items.iter().all(|i| i.filesystem != Some(Filesystem::Btrfs)) {
        return Err(Failure::new(
            Code::Usage,
            format!("--new-uuid is for btrfs, and no volume of context {id} has one"),
        ));
    }
    if op.options.dry_run {
        let steps = items.iter().map(|i| match &i.at {
            Some(at) => format!("attach {}, check it, mount it at {}", i.device, at.display()),
            None => format!("attach {}", i.device),
        });
        return super::planned(point, steps.collect());
    }
    op.step(Step::DeterminingMounts);
    let volumes = mount_all(op, &items, how)?;
    let next = match context.role() {
        Role::Production => next(format!("rtmark -C {id} --name NAME"), op.node.name()),
        Role::Recovery => next(format!("rtumnt -C {id}"), op.node.name()),
    };
    Ok((
        Reply::Mount(MountReply {
            context: id,
            level,
            point,
            volumes,
        }),
        next,
    ))
}

/// Shows what is told of devices and mounts.
fn show(op: &mut Op<'_>, told: Told) {
    match told {
        Told::Line(text) => op.line(text),
        Told::Checking(command) => op.step(Step::Checking { command }),
        Told::Mounting(at) => op.step(Step::Mounting {
            path: at.display().to_string(),
        }),
        Told::Unmounting { device, at } => op.step(Step::Unmounting {
            device: device.display().to_string(),
            path: at.display().to_string(),
        }),
    }
}

/// What failed, with its step; and whether something could not be undone.
fn taken_apart(error: AttachError) -> (Option<String>, AttachError, bool) {
    match error {
        AttachError::At { step, error, left } => (Some(step), *error, left),
        other => {
            let left = other.is_unknown();
            (None, other, left)
        }
    }
}

/// Attaches, checks and mounts all items; what was done is undone when one fails.
fn mount_all(op: &mut Op<'_>, items: &[Item], how: &How) -> Result<Vec<MountInfo>, Failure> {
    let mut done: Vec<MountInfo> = Vec::new();
    for item in items {
        let failed = match mount_one(op, item, how) {
            Ok(info) => {
                done.push(info);
                continue;
            }
            Err(failed) => failed,
        };
        let (step, error, left) = taken_apart(failed);
        let mut failure = Failure::from_error(Code::Refused, &error);
        let step = step.map_or_else(String::new, |step| format!("{step}: "));
        failure.error = format!("{}: {step}{}", item.volume, failure.error);
        if left {
            failure.code = Code::PartWay;
        }
        for (info, item) in done.into_iter().zip(items).rev() {
            if info.already {
                continue;
            }
            if let Err(e) = unmount_one(op, &item.device, true) {
                failure.code = Code::PartWay;
                op.line(format!("not undone: {}: {e}", info.device));
            }
        }
        return Err(match error {
            AttachError::Busy { holders, .. } => failure.with_holders(holders),
            AttachError::Twin { .. } if how.read_only => {
                failure.with_hint("unmount that one first, or mount the vdevs with --new-uuid")
            }
            AttachError::Twin { .. } => {
                failure.with_hint("rtmnt --new-uuid gives this one a UUID of its own")
            }
            _ => failure,
        });
    }
    Ok(done)
}

fn mount_one(op: &mut Op<'_>, item: &Item, how: &How) -> Result<MountInfo, AttachError> {
    let node = op.node;
    let attacher = node.attacher();
    let mut info = MountInfo {
        volume: item.volume.clone(),
        device: attacher.name_of(&item.device).display().to_string(),
        filesystem: item.filesystem.map(|f| f.name().to_owned()),
        path: item.at.as_ref().map(|a| a.display().to_string()),
        already: false,
    };
    let at_attach = |error: AttachError| AttachError::At {
        step: "attach".to_owned(),
        left: error.is_unknown(),
        error: Box::new(error),
    };
    let found = attacher.find(&item.device).map_err(at_attach)?;
    let attached = node.attach(&item.device, how.read_only).map_err(at_attach)?;
    // One that was found broken is made anew.
    let fresh = found.is_none_or(|f| f.device != attached.device || f.mounted != attached.mounted);
    let (Some(filesystem), Some(point)) = (item.filesystem, &item.at) else {
        info.already = !fresh;
        return Ok(info);
    };
    let ask = MountAsk {
        filesystem,
        at: point.clone(),
        read_only: how.read_only,
        full_check: how.full_check,
        new_uuid: how.new_uuid,
        backing: item.backing.clone(),
    };
    let mounted = attacher.mount(&item.device, ask, &mut |told| show(op, told));
    mounted
        .map(|already| MountInfo {
            already,
            ..info.clone()
        })
        .map_err(|error| {
            let (step, error, mut left) = taken_apart(error);
            if fresh
                && !left
                && let Err(e) = attacher.detach(&item.device)
            {
                left = true;
                op.line(format!("not undone: {}: {e}", info.device));
            }
            AttachError::At {
                step: step.unwrap_or_else(|| "mount".to_owned()),
                error: Box::new(error),
                left,
            }
        })
}

/// Unmounts and detaches one device; not attached: nothing to do. Answers where it was mounted.
fn unmount_one(op: &mut Op<'_>, device: &str, undo: bool) -> Result<Option<PathBuf>, AttachError> {
    let node = op.node;
    node.attacher().unmount(device, undo, &mut |told| show(op, told))
}

/// `rtumnt`.
pub fn unmount(op: &mut Op<'_>, id: u32, drain: bool, replica_side: bool, force: bool) -> Answer {
    let context = op.context(id)?;
    let snapshots = replica_side || context.role() == Role::Recovery;
    if drain && snapshots {
        return Err(Failure::new(
            Code::Usage,
            "-F drains the production side; snapshots have nothing to drain",
        ));
    }
    if op.options.dry_run {
        if !force {
            busy(op, &context, snapshots)?;
        }
        let unmounted = attached_of(op, &context, snapshots)?
            .into_iter()
            .map(|a| match a.mounted {
                Some(at) => format!("unmount {}, detach {}", at.display(), a.name.display()),
                None => format!("detach {}", a.name.display()),
            });
        let mut steps: Vec<String> = unmounted.collect();
        if drain {
            super::lifecycle::reachable(&context)?;
            steps.push("drain to the recovery host".into());
        }
        return super::planned(None, steps);
    }
    let volumes = unmount_all(op, &context, snapshots, force)?;
    if drain {
        op.step(Step::SyncCurrent);
        super::lifecycle::drain(op, &context)?;
    }
    let next = if snapshots {
        next(format!("scrt_ra -C {id} -W"), op.node.name())
    } else {
        next(format!("rtstop -FSC {id}"), op.node.name())
    };
    Ok((
        Reply::Unmount(UnmountReply {
            context: id,
            volumes,
            drained: drain,
        }),
        next,
    ))
}

fn attached_of(op: &Op<'_>, context: &Context, snapshots: bool) -> Result<Vec<AttachedDevice>, Failure> {
    let prefix = format!("c{}/", context.id());
    let mut all = attached(op)?;
    all.retain(|a| {
        a.export
            .strip_prefix(&prefix)
            .is_some_and(|rest| rest.contains('/') == snapshots)
    });
    all.sort_by_key(|a| std::cmp::Reverse(depth(a)));
    Ok(all)
}

/// Everything that is attached on this node. Who cannot know changes nothing.
pub(super) fn attached(op: &Op<'_>) -> Result<Vec<AttachedDevice>, Failure> {
    let all = op.node.attacher().all();
    all.map_err(|e| Failure::from_error(Code::Refused, &e))
}

fn exports(attached: &[AttachedDevice]) -> Vec<String> {
    attached.iter().map(|a| a.export.clone()).collect()
}

/// Refuses while somebody uses a file system of this side.
pub(super) fn busy(op: &Op<'_>, context: &Context, snapshots: bool) -> Result<(), Failure> {
    let attached = attached_of(op, context, snapshots)?;
    let users = op.node.attacher().users(exports(&attached));
    let busy = users.map_err(|e| Failure::from_error(Code::Refused, &e))?;
    if busy.is_empty() {
        return Ok(());
    }
    Err(refused("file systems are in use")
        .with_holders(busy)
        .with_hint("end these processes, or let rtumnt -f end them"))
}

/// Unmounts and detaches everything of one side of a context.
pub fn unmount_all(
    op: &mut Op<'_>,
    context: &Context,
    snapshots: bool,
    force: bool,
) -> Result<Vec<MountInfo>, Failure> {
    let attached = attached_of(op, context, snapshots)?;
    if attached.is_empty() {
        op.step(Step::NoMounted);
        return Ok(Vec::new());
    }
    op.step(Step::DeterminingUnmounts);
    // All or none: who is busy is known before anything is unmounted.
    if let Err(failure) = busy(op, context, snapshots) {
        if !force || failure.holders.is_empty() {
            return Err(failure);
        }
        let busy = failure.holders;
        op.ask(Question::Text {
            lines: busy.clone(),
            question: "These processes will be ended. Do you wish to continue?".into(),
        })?;
        let ended = op.node.attacher().end(exports(&attached), busy);
        ended.map_err(|e| match e.is_unknown() {
            true => part_way(&e),
            false => Failure::from_error(Code::Refused, &e),
        })?;
    }
    let mut done = Vec::new();
    for device in attached {
        let name = device.name.display().to_string();
        let at = unmount_one(op, &device.export, false).map_err(|e| {
            // It may have been unmounted and not detached.
            let now = op.node.attacher().find(&device.export);
            let is_same = now.is_ok_and(|now| now.as_ref() == Some(&device));
            let failure = match done.is_empty() && is_same {
                true => refused(e.to_string()),
                false => part_way(&e),
            };
            match e {
                AttachError::Busy { holders, .. } => failure.with_holders(holders),
                _ => failure,
            }
        })?;
        done.push(MountInfo {
            volume: device.export.rsplit('/').next().unwrap_or_default().to_owned(),
            device: name,
            filesystem: None,
            path: at.map(|a| a.display().to_string()),
            already: false,
        });
    }
    Ok(done)
}
