//! `rtmnt`, `rtumnt`.

use super::{Answer, Op, next, part_way, refused};
use crate::{
    attach::{AttachError, AttachedDevice, device::depth, filesystem, mount as fs, mounts},
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

/// What was being done when it failed.
struct Failed {
    step: &'static str,
    error: AttachError,
    /// Something could not be undone.
    left: bool,
}

/// Names the step of an error.
fn at(step: &'static str) -> impl Fn(AttachError) -> Failed {
    move |error| Failed {
        step,
        error,
        left: false,
    }
}

/// Attaches, checks and mounts all items; what was done is undone when one fails.
fn mount_all(op: &mut Op<'_>, items: &[Item], how: &How) -> Result<Vec<MountInfo>, Failure> {
    let mut done: Vec<(MountInfo, fs::MountPoint)> = Vec::new();
    for item in items {
        let failed = match mount_one(op, item, how) {
            Ok(info) => {
                done.push(info);
                continue;
            }
            Err(failed) => failed,
        };
        let mut failure = Failure::from_error(Code::Refused, &failed.error);
        failure.error = format!("{}: {}: {}", item.volume, failed.step, failure.error);
        if failed.left {
            failure.code = Code::PartWay;
        }
        for ((info, point), item) in done.into_iter().zip(items).rev() {
            if info.already {
                continue;
            }
            match unmount_one(op, &item.device) {
                Ok(_) => point.undo(),
                Err(e) => {
                    failure.code = Code::PartWay;
                    op.line(format!("not undone: {}: {e}", info.device));
                }
            }
        }
        return Err(match failed.error {
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
    Ok(done.into_iter().map(|(info, _)| info).collect())
}

fn mount_one(op: &mut Op<'_>, item: &Item, how: &How) -> Result<(MountInfo, fs::MountPoint), Failed> {
    let attacher = op.node.attacher();
    let mut info = MountInfo {
        volume: item.volume.clone(),
        device: attacher.name_of(&item.device).display().to_string(),
        filesystem: item.filesystem.map(|f| f.name().to_owned()),
        path: item.at.as_ref().map(|a| a.display().to_string()),
        already: false,
    };
    let found = attacher.find(&item.device);
    let attached = op
        .node
        .attach(&item.device, how.read_only)
        .map_err(at("attach"))?;
    // One that was found broken is made anew.
    let fresh = found.is_none_or(|f| f.device != attached.device || f.mounted != attached.mounted);
    let (Some(filesystem), Some(point)) = (item.filesystem, &item.at) else {
        info.already = !fresh;
        return Ok((info, fs::MountPoint::default()));
    };
    let is_there = mounts::of(&attached.device).iter().any(|there| there == point);
    if is_there && mounts::at(point).as_ref() == Some(&attached.device) {
        info.already = true;
        return Ok((info, fs::MountPoint::default()));
    }
    let mut made = fs::MountPoint::default();
    let work = mount_device(op, item, filesystem, point, &attached, how, &mut made);
    match work {
        Ok(()) => Ok((info, made)),
        Err(mut failed) => {
            // The check of some file systems mounts too. What was mounted before stays.
            let unmounted = match &attached.mounted {
                Some(_) => Ok(()),
                None => fs::unmount(point, &attached.device),
            };
            let undone = unmounted.and_then(|()| {
                made.undo();
                if fresh {
                    op.node.attacher().detach(&attached)
                } else {
                    Ok(())
                }
            });
            if let Err(e) = undone {
                failed.left = true;
                op.line(format!("not undone: {}: {e}", info.device));
            }
            Err(failed)
        }
    }
}

/// Checks and mounts what is attached. Only vdevs and the acting production are ever checked: a check writes.
fn mount_device(
    op: &mut Op<'_>,
    item: &Item,
    filesystem: Filesystem,
    point: &Path,
    attached: &AttachedDevice,
    how: &How,
    made: &mut fs::MountPoint,
) -> Result<(), Failed> {
    let device = &attached.device;
    if let Some(path) = attached.mounted.clone() {
        let over = mounts::at(&path).filter(|top| path == point && top != device);
        return Err(at("mount")(match over {
            Some(top) => AttachError::ForeignMount {
                path,
                device: top.display().to_string(),
            },
            None => AttachError::MountedElsewhere {
                device: attached.name.clone(),
                path,
            },
        }));
    }
    // A check that its daemon did not outlive may still run.
    let holders = mounts::users_of_device(device);
    if !holders.is_empty() {
        let path = device.clone();
        return Err(at("attach")(AttachError::Busy { path, holders }));
    }
    *made = fs::MountPoint::make(point).map_err(at("mount"))?;
    let mut lines = Vec::new();
    let told = filesystem::alone(filesystem, device, point, &item.backing, how.new_uuid, &mut |l| {
        lines.push(l)
    });
    lines.drain(..).for_each(|l| op.line(l));
    told.map_err(at("UUID"))?;
    if !how.read_only {
        let checked = filesystem::check(filesystem, attached, point, how.full_check, &mut |l| {
            lines.push(l)
        });
        let mut lines = lines.into_iter();
        if let Some(command) = lines.next() {
            op.step(Step::Checking { command });
        }
        lines.for_each(|l| op.line(l));
        checked.map_err(at("check"))?;
    }
    op.step(Step::Mounting {
        path: point.display().to_string(),
    });
    fs::mount(filesystem, device, point, how.read_only).map_err(at("mount"))
}

/// Unmounts and detaches one device; not attached: nothing to do. Answers where it was mounted.
fn unmount_one(op: &mut Op<'_>, device: &str) -> Result<Option<PathBuf>, AttachError> {
    let Some(attached) = op.node.attacher().find(device) else {
        return Ok(None);
    };
    for path in mounts::of(&attached.device) {
        op.step(Step::Unmounting {
            device: attached.name.display().to_string(),
            path: path.display().to_string(),
        });
        fs::unmount(&path, &attached.device)?;
    }
    op.node.attacher().detach(&attached)?;
    Ok(attached.mounted)
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
        let unmounted = attached_of(op, &context, snapshots)
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

fn attached_of(op: &Op<'_>, context: &Context, snapshots: bool) -> Vec<AttachedDevice> {
    let prefix = format!("c{}/", context.id());
    let mut all: Vec<_> = op
        .node
        .attacher()
        .all()
        .into_iter()
        .filter(|a| {
            a.export
                .strip_prefix(&prefix)
                .is_some_and(|rest| rest.contains('/') == snapshots)
        })
        .collect();
    all.sort_by_key(|a| std::cmp::Reverse(depth(a)));
    all
}

/// Refuses while somebody uses a file system of this side.
pub(super) fn busy(op: &Op<'_>, context: &Context, snapshots: bool) -> Result<(), Failure> {
    let attached = attached_of(op, context, snapshots);
    let ours: Vec<PathBuf> = attached.iter().flat_map(|a| mounts::of(&a.device)).collect();
    let mut busy: Vec<String> = ours.iter().flat_map(|at| mounts::users_of(at, &ours)).collect();
    let bare = attached.iter().filter(|a| a.mounted.is_none());
    busy.extend(bare.flat_map(|a| mounts::users_of_device(&a.device)));
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
    let attached = attached_of(op, context, snapshots);
    if attached.is_empty() {
        op.step(Step::NoMounted);
        return Ok(Vec::new());
    }
    op.step(Step::DeterminingUnmounts);
    // All or none: who is busy is known before anything is unmounted.
    if let Err(failure) = busy(op, context, snapshots) {
        if !force {
            return Err(failure);
        }
        let busy = failure.holders;
        op.ask(Question::Text {
            lines: busy.clone(),
            question: "These processes will be ended. Do you wish to continue?".into(),
        })?;
        end(&busy);
    }
    let mut done = Vec::new();
    for device in attached {
        let name = device.name.display().to_string();
        let at = unmount_one(op, &device.export).map_err(|e| {
            // It may have been unmounted and not detached.
            let is_same = op.node.attacher().find(&device.export).as_ref() == Some(&device);
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

/// Ends the holders of a file system: asked first, then for good. What is in the middle of a write or a sync ends when that
/// does, and on a device that has just lost its export every page is an error of its own.
fn end(holders: &[String]) {
    use rustix::process::{Pid, Signal, kill_process};
    let pids: Vec<Pid> = holders
        .iter()
        .filter_map(|h| Pid::from_raw(h.split(' ').next()?.parse().ok()?))
        .collect();
    for (signal, patience) in [(Signal::TERM, 40), (Signal::KILL, 600)] {
        for pid in &pids {
            let _ = kill_process(*pid, signal);
        }
        for _ in 0..patience {
            if !pids
                .iter()
                .any(|p| Path::new(&format!("/proc/{}", p.as_raw_nonzero())).exists())
            {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
