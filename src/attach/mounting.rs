//! What is done to a device by the name of its export: checked, mounted, unmounted, taken from who uses it.

use super::{
    AttachError, AttachedDevice, Devices, MountAsk, Told, filesystem,
    mount::{self, MountPoint},
    mounts,
};
use crate::config::Filesystem;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Names the step of an error.
fn at(step: &'static str) -> impl Fn(AttachError) -> AttachError {
    move |error| AttachError::At {
        step: step.to_owned(),
        error: Box::new(error),
        left: false,
    }
}

/// Whether a process is there and more than a line in its parent's books.
fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !(state.is_empty() || state.starts_with('Z'))
}

impl Devices {
    /// Checks what is on a device and mounts it; whether it was mounted there already.
    ///
    /// # Errors
    /// [`AttachError::At`] with the step; what was done is undone then, unless the error says otherwise.
    pub fn mount(
        &self,
        export: &str,
        how: &MountAsk,
        told: &mut dyn FnMut(Told),
    ) -> Result<bool, AttachError> {
        let attached = self.need(export).map_err(at("mount"))?;
        let (device, point) = (&attached.device, &how.at);
        let is_there = mounts::of(device).iter().any(|there| there == point);
        if is_there && mounts::at(point).as_ref() == Some(device) {
            return Ok(true);
        }
        let mut made = MountPoint::default();
        let Err(mut error) = self.check_and_mount(&attached, how, &mut made, told) else {
            return Ok(false);
        };
        // The check of some file systems mounts too. What was mounted before stays.
        let unmounted = match &attached.mounted {
            Some(_) => Ok(()),
            None => mount::unmount(point, device),
        };
        match unmounted {
            Ok(()) => made.undo(),
            Err(e) => {
                if let AttachError::At { left, .. } = &mut error {
                    *left = true;
                }
                told(Told::Line(format!(
                    "not undone: {}: {e}",
                    attached.name.display()
                )));
            }
        }
        Err(error)
    }

    /// Only vdevs and the acting production are ever checked: a check writes.
    fn check_and_mount(
        &self,
        attached: &AttachedDevice,
        how: &MountAsk,
        made: &mut MountPoint,
        told: &mut dyn FnMut(Told),
    ) -> Result<(), AttachError> {
        let (device, point) = (&attached.device, &how.at);
        if let Some(path) = attached.mounted.clone() {
            let over = mounts::at(&path).filter(|top| path == *point && top != device);
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
        *made = MountPoint::make(point).map_err(at("mount"))?;
        self.note_made(&attached.export, made.folders())
            .map_err(at("mount"))?;
        let options = |read_only| mount::Options {
            read_only,
            is_wary: self.wary_of.is_some(),
        };
        // Only a backing of the one who asks is not its own volume's twin.
        let is_theirs = |path: &Path, user| fs::metadata(path).is_ok_and(|m| m.uid() == user);
        let is_known = self.wary_of.is_none_or(|user| is_theirs(&how.backing, user));
        let backing = is_known.then_some(&*how.backing);
        let mut line = |l: String| told(Told::Line(l));
        filesystem::alone(how, device, backing, options(false), &mut line).map_err(at("UUID"))?;
        if !how.read_only {
            let mut is_first = true;
            let mut line = |l: String| match std::mem::take(&mut is_first) {
                true => told(Told::Checking(l)),
                false => told(Told::Line(l)),
            };
            filesystem::check(how, attached, options(false), &mut line).map_err(at("check"))?;
        }
        told(Told::Mounting(point.clone()));
        mount::mount(how.filesystem, device, point, options(how.read_only)).map_err(at("mount"))
    }

    /// Unmounts and detaches a device; not attached: nothing to do. Answers where it was mounted. With `undo` the folders go
    /// that were made for the mount.
    ///
    /// # Errors
    /// When somebody uses it, or a step fails; the same call then goes on.
    pub fn unmount(
        &self,
        export: &str,
        undo: bool,
        told: &mut dyn FnMut(Told),
    ) -> Result<Option<PathBuf>, AttachError> {
        let Some(attached) = self.find(export) else {
            return Ok(None);
        };
        for path in mounts::of(&attached.device) {
            told(Told::Unmounting {
                device: attached.name.clone(),
                at: path.clone(),
            });
            mount::unmount(&path, &attached.device)?;
        }
        let made = self.made_for(export);
        self.detach(export)?;
        if undo {
            MountPoint::of(made).undo();
        }
        Ok(attached.mounted)
    }

    /// Who uses the devices of these exports, or what is mounted of them.
    #[must_use]
    pub fn users(&self, exports: &[String]) -> Vec<String> {
        let attached: Vec<_> = exports.iter().filter_map(|export| self.find(export)).collect();
        let ours: Vec<PathBuf> = attached.iter().flat_map(|a| mounts::of(&a.device)).collect();
        let mut users: Vec<String> = ours.iter().flat_map(|at| mounts::users_of(at, &ours)).collect();
        let bare = attached.iter().filter(|a| a.mounted.is_none());
        users.extend(bare.flat_map(|a| mounts::users_of_device(&a.device)));
        users
    }

    /// The processes among them.
    fn processes(&self, exports: &[String]) -> Vec<(Pid, String)> {
        let attached = exports.iter().filter_map(|export| self.find(export));
        let of = |a: AttachedDevice| {
            let at = mounts::of(&a.device);
            let mut all: Vec<_> = at.iter().flat_map(|at| mounts::processes_in(at)).collect();
            all.extend(mounts::processes_on(&a.device));
            all
        };
        attached.flat_map(of).collect()
    }

    /// Ends `users`, as far as they still use the devices of these exports: asked first, then for good. What is in the middle of a
    /// write or a sync ends when that does, and on a device that has just lost its export every page is an error of its own.
    pub fn end(&self, exports: &[String], users: &[String]) {
        let wanted = self
            .processes(exports)
            .into_iter()
            .filter(|(_, name)| users.contains(name));
        // A number may be another's by the time of the signal; whom a descriptor was opened of is told once more.
        let held: Vec<_> = wanted
            .filter_map(|(pid, name)| Some((pid, name, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
            .collect();
        let now = self.processes(exports);
        let held: Vec<_> = held
            .into_iter()
            .filter(|(pid, name, _)| now.iter().any(|(p, n)| (p, n) == (pid, name)))
            .collect();
        for (signal, patience) in [(Signal::TERM, 40), (Signal::KILL, 600)] {
            for (_, _, process) in &held {
                let _ = pidfd_send_signal(process, signal);
            }
            for _ in 0..patience {
                if !held.iter().any(|(pid, _, _)| lives(*pid)) {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// The kind of file system on a device, if one is known.
    ///
    /// # Errors
    /// When it is not attached, or the program cannot be started.
    pub fn probe(&self, export: &str) -> Result<Option<String>, AttachError> {
        filesystem::probe(&self.need(export)?.device)
    }

    /// Makes a new file system on a device.
    ///
    /// # Errors
    /// When it is not attached, or the program fails.
    pub fn make(&self, export: &str, filesystem: Filesystem) -> Result<(), AttachError> {
        filesystem::make(filesystem, &self.need(export)?.device)
    }

    /// Syncs what is mounted of a device.
    ///
    /// # Errors
    /// When it is not mounted, or the sync fails.
    pub fn sync(&self, export: &str) -> Result<(), AttachError> {
        match self.need(export)?.mounted {
            Some(at) => mount::sync(&at),
            None => Ok(()),
        }
    }
}
