//! What is done to a device by the name of its export: checked, mounted, unmounted, taken from who uses it.

use super::{
    AttachError, AttachedDevice, Devices, MountAsk, Told, filesystem, mount, mounts, point::MountPoint,
};
use crate::config::Filesystem;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

/// Names the step of an error.
fn at(step: &'static str) -> impl Fn(AttachError) -> AttachError {
    move |error| AttachError::At {
        step: step.to_owned(),
        error: Box::new(error),
        left: false,
    }
}

/// Waits until all of these have ended, but not for longer; a zombie has.
fn wait_for(processes: &[OwnedFd], patience: Duration) -> bool {
    let until = Instant::now() + patience;
    processes.iter().all(|process| {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
                Ok(ended) => return ended > 0,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    })
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
        let _turn = self.turn(export).map_err(at("mount"))?;
        self.stage(export).clear().map_err(at("mount"))?;
        let (attached, _held) = self.hold(export).map_err(at("mount"))?;
        let (device, point) = (&attached.device, &how.at);
        let is_there = mounts::of(device).iter().any(|there| there == point);
        if is_there && mounts::at(point).as_ref() == Some(device) {
            return Ok(true);
        }
        self.check_and_mount(&attached, how, told).map(|()| false)
    }

    /// Only vdevs and the acting production are ever checked: a check writes.
    fn check_and_mount(
        &self,
        attached: &AttachedDevice,
        how: &MountAsk,
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
        if self.wary_of.is_some() && how.filesystem == Filesystem::Btrfs {
            let text =
                "btrfs names the devices that it is on in its own bytes, also others of this host".to_owned();
            return Err(at("mount")(AttachError::Refused(text)));
        }
        let ground = self.wary_of.as_ref().map(|asker| &*asker.ground);
        let point = MountPoint::reach(point, ground).map_err(at("mount"))?;
        let noted = self.note_mount(&attached.export, point.path(), point.made());
        let done = noted
            .map_err(at("mount"))
            .and_then(|()| self.check_and_place(attached, how, &point, told));
        if done.is_err() {
            self.stage(&attached.export).give_up();
            point.undo();
        }
        done
    }

    fn check_and_place(
        &self,
        attached: &AttachedDevice,
        how: &MountAsk,
        point: &MountPoint,
        told: &mut dyn FnMut(Told),
    ) -> Result<(), AttachError> {
        let device = &attached.device;
        let asker = self.wary_of.as_ref();
        let options = |read_only| mount::Options {
            read_only,
            is_wary: asker.is_some(),
        };
        let stage = self.stage(&attached.export);
        // Only a backing of the one who asks is not its own volume's twin.
        let backing = fs::metadata(&how.backing).ok();
        let backing = backing.filter(|m| asker.is_none_or(|asker| m.uid() == asker.user));
        let backing = backing
            .filter(|m| m.file_type().is_block_device())
            .map(|m| m.rdev());
        let mut line = |l: String| told(Told::Line(l));
        filesystem::alone(how, device, backing, &stage, options(false), &mut line).map_err(at("UUID"))?;
        if !how.read_only {
            let mut is_first = true;
            let mut line = |l: String| match std::mem::take(&mut is_first) {
                true => told(Told::Checking(l)),
                false => told(Told::Line(l)),
            };
            filesystem::check(how, attached, &stage, options(false), &mut line).map_err(at("check"))?;
        }
        told(Told::Mounting(how.at.clone()));
        let mounted = stage
            .open(how.filesystem, device, options(how.read_only))
            .map_err(at("mount"))?;
        let _placing = self.placing.lock();
        point.take(&mounted).map_err(at("mount"))
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
        let _turn = self.turn(export)?;
        let Some(attached) = self.find(export) else {
            // What is left of one that is gone.
            return self.detach_in_turn(export).map(|()| None);
        };
        for path in mounts::of(&attached.device) {
            told(Told::Unmounting {
                device: attached.name.clone(),
                at: path.clone(),
            });
            mount::unmount(&path, &attached.device)?;
        }
        let made = self.made_for(export);
        self.detach_in_turn(export)?;
        if undo {
            made.undo();
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
            all.extend(mounts::processes_elsewhere(&a.device));
            all
        };
        attached.flat_map(of).collect()
    }

    /// Ends `users`, as far as they still use the devices of these exports: asked first, then for good. What is in the middle of a
    /// write or a sync ends when that does, and on a device that has just lost its export every page is an error of its own.
    pub fn end(&self, exports: &[String], users: &[String]) {
        // By their numbers: a process may give itself another name at any time.
        let number = |user: &String| user.split(' ').next().and_then(|n| n.parse().ok());
        let wanted: Vec<Pid> = users
            .iter()
            .filter_map(number)
            .filter_map(Pid::from_raw)
            .collect();
        let now = self.processes(exports).into_iter();
        let held = now.filter(|(pid, _)| wanted.contains(pid) && self.may_end(*pid));
        // A number may be another's by the time of the signal; whom a descriptor was opened of is looked at once more.
        let held = held.filter_map(|(pid, _)| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)));
        let mut held: Vec<_> = held.collect();
        let now = self.processes(exports);
        held.retain(|(pid, _)| now.iter().any(|(p, _)| p == pid) && self.may_end(*pid));
        let held: Vec<_> = held.into_iter().map(|(_, process)| process).collect();
        for (signal, patience) in [(Signal::TERM, 2), (Signal::KILL, 30)] {
            for process in &held {
                let _ = pidfd_send_signal(process, signal);
            }
            if wait_for(&held, Duration::from_secs(patience)) {
                return;
            }
        }
    }

    /// Whether a process is of those that may be ended for the one who asks. Whoever can hand a file to a service makes it a user of
    /// what is mounted.
    fn may_end(&self, pid: Pid) -> bool {
        let Some(asker) = &self.wary_of else { return true };
        let process = format!("/proc/{}", pid.as_raw_nonzero());
        !pid.is_init() && fs::metadata(process).is_ok_and(|m| asker.may_end.contains(&m.uid()))
    }

    /// The kind of file system on a device, if one is known.
    ///
    /// # Errors
    /// When it is not attached, or the program cannot be started.
    pub fn probe(&self, export: &str) -> Result<Option<String>, AttachError> {
        let _turn = self.turn(export)?;
        let (attached, _held) = self.hold(export)?;
        filesystem::probe(&attached.device)
    }

    /// Makes a new file system on a device.
    ///
    /// # Errors
    /// When it is not attached, or the program fails.
    pub fn make(&self, export: &str, filesystem: Filesystem) -> Result<(), AttachError> {
        let _turn = self.turn(export)?;
        let (attached, _held) = self.hold(export)?;
        filesystem::make(filesystem, &attached.device)
    }

    /// Syncs what is mounted of a device.
    ///
    /// # Errors
    /// When it is not mounted, or the sync fails.
    pub fn sync(&self, export: &str) -> Result<(), AttachError> {
        let _turn = self.turn(export)?;
        let attached = self.need(export)?;
        match attached.mounted {
            Some(at) => mount::sync(&at, &attached.device),
            None => Ok(()),
        }
    }
}
