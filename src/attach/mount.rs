//! Mounting and unmounting.
//!
//! What is mounted comes onto a [`Stage`] first, where nobody else comes by; there it may take as long as it takes, fail, or be undone. Then
//! it is put into its place by one call, onto a folder that was opened ([`super::point`]).

use super::{
    AttachError,
    command::must,
    filesystem, mounts,
    point::{mount_of, parent_of, walk},
};
use crate::config::Filesystem;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{OpenTreeFlags, UnmountFlags, open_tree},
};
use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How something is mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Without writing, also to the file system's own journal.
    pub read_only: bool,
    /// Nothing in it gives anybody privileges: no set-user-id programs, no devices.
    pub is_wary: bool,
}

/// A folder of our own in which something is mounted before it has its place: nobody else comes into it.
#[derive(Clone, Debug)]
pub struct Stage(PathBuf);

impl Stage {
    /// The stage at this path; it is made when it is needed.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Mounts `device` nowhere yet ([`super::point::MountPoint::take`]); dropped, it is unmounted.
    ///
    /// # Errors
    /// When the kernel does not mount it.
    pub fn open(
        &self,
        filesystem: Filesystem,
        device: &Path,
        options: Options,
    ) -> Result<OwnedFd, AttachError> {
        self.mount(filesystem, device, options)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mounted = open_tree(CWD, &self.0, flags);
        // Whoever looks at all that is mounted may be in it: the copy does not wait for him.
        unmount_lazily(&self.0);
        let _ = fs::remove_dir(&self.0);
        mounted.map_err(|e| AttachError::io(self.0.display())(e.into()))
    }

    /// Lets the kernel replay a file system's log.
    ///
    /// # Errors
    /// When the kernel does not mount it, or does not let go of it again.
    pub fn replay(&self, filesystem: Filesystem, device: &Path, options: Options) -> Result<(), AttachError> {
        self.mount(filesystem, device, options)?;
        self.unmount()
    }

    fn mount(&self, filesystem: Filesystem, device: &Path, options: Options) -> Result<(), AttachError> {
        let mut words = filesystem::mount_options(filesystem, options.read_only).to_owned();
        if options.is_wary {
            words.push_str(",nosuid,nodev");
            if filesystem == Filesystem::Ext4 {
                // Its superblock may say that the host is to panic.
                words.push_str(",errors=remount-ro");
            }
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(AttachError::io(self.0.display()))?;
        let [device, stage] = [device, &self.0].map(|path| path.display().to_string());
        let mounted = must("mount", &["-t", filesystem.name(), "-o", &words, &device, &stage]);
        if mounted.is_err() {
            let _ = fs::remove_dir(&self.0);
        }
        Ok(mounted.map(drop)?)
    }

    /// Undoes what is mounted there still, because somebody died in the middle.
    ///
    /// # Errors
    /// When it does not go.
    pub fn clear(&self) -> Result<(), AttachError> {
        match mounts::is_at(&self.0) {
            true => self.unmount(),
            false => Ok(()),
        }
    }

    fn unmount(&self) -> Result<(), AttachError> {
        let failed = |e: Errno| AttachError::io(format!("umount {}", self.0.display()))(e.into());
        let until = Instant::now() + mounts::A_LOOK;
        loop {
            match undo(&self.0, UnmountFlags::empty()) {
                // Somebody looks at all that is mounted.
                Err(Errno::BUSY) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
                done => break done.map_err(failed)?,
            }
        }
        fs::remove_dir(&self.0).map_err(AttachError::io(self.0.display()))
    }

    /// After a failure: takes away what is mounted there, in use or not.
    pub fn give_up(&self) {
        if mounts::is_at(&self.0) {
            unmount_lazily(&self.0);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Unmounts `device` from `at`; it is not mounted there: nothing to do.
///
/// # Errors
/// [`AttachError::Busy`] with the holders when it is in use, [`AttachError::ForeignMount`] when something else is mounted over it.
pub fn unmount(at: &Path, device: &Path) -> Result<(), AttachError> {
    if !mounts::of(device).iter().any(|there| there == at) {
        return Ok(());
    }
    if let Some(top) = mounts::at(at).filter(|top| top != device) {
        return Err(AttachError::ForeignMount {
            path: at.to_owned(),
            device: top.display().to_string(),
        });
    }
    let failed = |e: Errno| AttachError::io(format!("umount {}", at.display()))(e.into());
    match undo(at, UnmountFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::BUSY) => {}
        Err(e) => return Err(failed(e)),
    }
    let holders = mounts::users_of(at, &[]);
    if holders.is_empty() {
        return undo(at, UnmountFlags::empty()).map_err(failed);
    }
    Err(AttachError::Busy {
        path: at.to_owned(),
        holders,
    })
}

/// Undoes the newest mount at a path of the mount table, which has no links.
fn undo(at: &Path, how: UnmountFlags) -> Result<(), Errno> {
    let (parent, name) = parent_of(at).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::INVAL))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
    rustix::mount::unmount(path, how | UnmountFlags::NOFOLLOW)
}

/// Takes a mount out of the tree of folders, in use or not.
pub(super) fn unmount_lazily(at: &Path) {
    let gone = undo(at, UnmountFlags::empty()).or_else(|_| undo(at, UnmountFlags::DETACH));
    if let Err(e) = gone {
        tracing::warn!("umount --lazy {}: {e}", at.display());
    }
}

/// Where a volume with mount point `mount` goes under `root`.
#[must_use]
pub fn under(root: &Path, mount: &Path) -> PathBuf {
    root.join(mount.strip_prefix("/").unwrap_or(mount))
}

/// Syncs the file system of `device` mounted at `at`, so that what was written to it before is in its device.
///
/// # Errors
/// When something else is mounted over it, the folder cannot be opened or the sync fails.
pub fn sync(at: &Path, device: &Path) -> Result<(), AttachError> {
    let failed = |e: Errno| AttachError::io(at.display())(e.into());
    let folder = walk(at).map_err(failed)?;
    let id = mount_of(&folder).map_err(failed)?;
    let there = mounts::table().into_iter().find(|m| m.id == id);
    if let Some(other) = there.filter(|m| m.source != device) {
        return Err(AttachError::ForeignMount {
            path: at.to_owned(),
            device: other.source.display().to_string(),
        });
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(&folder, ".", flags, Mode::empty()).map_err(failed)?;
    rustix::fs::syncfs(&folder).map_err(failed)
}
