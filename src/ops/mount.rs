//! `rtmnt`, `rtumnt`.

use super::{Answer, Op, next, part_way, refused};
use crate::{
    attach::{AttachError, mount as fs},
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
}

fn items(context: &Context, root: &Path, device: impl Fn(&VolumeConfig) -> String) -> Vec<Item> {
    let mut items: Vec<Item> = context
        .config
        .volumes
        .iter()
        .map(|v| Item {
            volume: v.name.clone(),
            device: device(v),
            filesystem: v.filesystem,
            at: v.mount.as_ref().map(|m| fs::under(root, m)),
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
            if !context.is_running() {
                return Err(super::not_running(op, &context));
            }
            (
                None,
                None,
                items(&context, &root, |v| format!("c{}/{}", context.id(), v.name)),
            )
        }
        Role::Recovery => {
            let snapshot = super::snapshot::choose(op, &context, level)?;
            let point = super::snapshot::info(&context, &snapshot);
            op.resolved(Some(snapshot.level.0), point.clone());
            if let Some(why) = snapshot.vdev.as_ref().err().filter(|_| !how.read_only) {
                let level = snapshot.level;
                return Err(
                    refused(format!("the overlay of snapshot {level} cannot be used: {why}"))
                        .with_hint("--read-only mounts it as it was taken; else release it and take it again")
                        .with_hint_command(format!("scrt_ra -C {id} -W --level {level}"), op.node.name()),
                );
            }
            let kind = if how.read_only { "rsn" } else { "sn" };
            let items = items(&context, &root, |v| {
                format!("c{}/{kind}{}/{}", context.id(), snapshot.level, v.name)
            });
            (Some(snapshot.level.0), Some(point), items)
        }
    };
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

/// Attaches, checks and mounts all items; what was done is undone when one fails.
fn mount_all(op: &mut Op<'_>, items: &[Item], how: &How) -> Result<Vec<MountInfo>, Failure> {
    let mut done = Vec::new();
    for item in items {
        match mount_one(op, item, how) {
            Ok(info) => done.push(info),
            Err(e) => {
                for (info, item) in done.iter().zip(items).rev().filter(|(info, _)| !info.already) {
                    if let Err(e) = unmount_one(op, &item.device) {
                        op.line(format!("not undone: {}: {e}", info.device));
                    }
                }
                let mut failure = Failure::from_error(Code::Refused, &e);
                if let AttachError::Busy { holders, .. } = &e {
                    failure = failure.with_holders(holders.clone());
                }
                failure.error = format!("{}: {}", item.volume, failure.error);
                return Err(failure);
            }
        }
    }
    Ok(done)
}

fn mount_one(op: &mut Op<'_>, item: &Item, how: &How) -> Result<MountInfo, AttachError> {
    let attacher = op.node.attacher();
    let mut info = MountInfo {
        volume: item.volume.clone(),
        device: attacher.name_of(&item.device).display().to_string(),
        filesystem: item.filesystem.map(|f| f.name().to_owned()),
        path: item.at.as_ref().map(|a| a.display().to_string()),
        already: false,
    };
    let found = attacher.find(&item.device);
    info.already = found
        .as_ref()
        .is_some_and(|a| item.at.is_none() || a.mounted.is_some());
    if info.already {
        return Ok(info);
    }
    let fresh = found.is_none();
    let mut attached = attacher.attach(&item.device, &item.device, how.read_only)?;
    let (Some(filesystem), Some(at)) = (item.filesystem, &item.at) else {
        return Ok(info);
    };
    let mut work = || {
        // Only vdevs and the acting production are ever checked: a check writes.
        if !how.read_only {
            let mut lines = Vec::new();
            let checked = fs::check(filesystem, &attached.name, at, how.full_check, &mut |l| {
                lines.push(l)
            });
            let mut lines = lines.into_iter();
            if let Some(command) = lines.next() {
                op.step(Step::Checking { command });
            }
            lines.for_each(|l| op.line(l));
            checked?;
        }
        op.step(Step::Mounting {
            path: at.display().to_string(),
        });
        let options = fs::MountOptions {
            read_only: how.read_only,
            full_check: how.full_check,
        };
        fs::mount(filesystem, &attached.device, at, options)?;
        op.node.attacher().set_mounted(&mut attached, Some(at.clone()))
    };
    match work() {
        Ok(()) => Ok(info),
        Err(e) => {
            if fresh {
                let _ = op.node.attacher().detach(&attached);
            }
            Err(e)
        }
    }
}

/// Unmounts and detaches one device; not attached: nothing to do. Answers where it was mounted.
fn unmount_one(op: &mut Op<'_>, device: &str) -> Result<Option<PathBuf>, AttachError> {
    let attacher = op.node.attacher();
    let Some(mut attached) = attacher.find(device) else {
        return Ok(None);
    };
    let at = attached.mounted.clone();
    if let Some(at) = &at {
        op.step(Step::Unmounting {
            device: attached.name.display().to_string(),
            path: at.display().to_string(),
        });
        fs::unmount(at)?;
        op.node.attacher().set_mounted(&mut attached, None)?;
    }
    op.node.attacher().detach(&attached)?;
    Ok(at)
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
        let steps = attached_of(op, &context, snapshots)
            .into_iter()
            .map(|a| match a.mounted {
                Some(at) => format!("unmount {}, detach {}", at.display(), a.name.display()),
                None => format!("detach {}", a.name.display()),
            })
            .collect();
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

fn attached_of(op: &Op<'_>, context: &Context, snapshots: bool) -> Vec<crate::attach::AttachedDevice> {
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
    all.sort_by_key(|a| std::cmp::Reverse(a.mounted.as_ref().map_or(0, |m| m.components().count())));
    all
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
    let busy: Vec<String> = attached
        .iter()
        .filter_map(|a| a.mounted.as_ref())
        .flat_map(|at| fs::holders(at))
        .collect();
    if !busy.is_empty() {
        if !force {
            return Err(refused("file systems are in use")
                .with_holders(busy)
                .with_hint("end these processes, or let rtumnt -f end them"));
        }
        op.ask(Question::Text {
            lines: busy.clone(),
            question: "These processes will be ended. Do you wish to continue?".into(),
        })?;
        end(&busy);
    }
    let mut done = Vec::new();
    for device in attached {
        let name = device.name.display().to_string();
        let at = unmount_one(op, &device.export).map_err(|e| match &e {
            AttachError::Busy { holders, .. } if done.is_empty() => {
                refused(e.to_string()).with_holders(holders.clone())
            }
            _ => part_way(&e),
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
