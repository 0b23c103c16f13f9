//! Mounting and unmounting.

use super::{
    AttachError,
    command::{must, run},
    filesystem, mounts,
};
use crate::config::Filesystem;
use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// How something is mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Without writing, also to the file system's own journal.
    pub read_only: bool,
    /// Nothing in it gives anybody privileges: no set-user-id programs, no devices.
    pub is_wary: bool,
}

/// Mounts `device` at the folder `at`.
///
/// # Errors
/// When something is mounted there already, the device is mounted elsewhere, or the mount fails.
pub fn mount(filesystem: Filesystem, device: &Path, at: &Path, options: Options) -> Result<(), AttachError> {
    if let Some(there) = mounts::at(at) {
        return Err(AttachError::ForeignMount {
            path: at.to_owned(),
            device: there.display().to_string(),
        });
    }
    if let Some(elsewhere) = mounts::of(device).into_iter().next() {
        return Err(AttachError::MountedElsewhere {
            device: device.to_owned(),
            path: elsewhere,
        });
    }
    let mut words = filesystem::mount_options(filesystem, options.read_only).to_owned();
    if options.is_wary {
        words.push_str(",nosuid,nodev");
        if filesystem == Filesystem::Ext4 {
            // Its superblock may say that the host is to panic.
            words.push_str(",errors=remount-ro");
        }
    }
    must(
        "mount",
        &[
            "-t",
            filesystem.name(),
            "-o",
            &words,
            &device.display().to_string(),
            &at.display().to_string(),
        ],
    )?;
    Ok(())
}

/// Makes a folder and those above it that are missing, such that everybody may pass, whatever the umask; which, the deepest
/// first.
///
/// # Errors
/// When one cannot be made.
pub fn passable(at: &Path) -> Result<Vec<PathBuf>, AttachError> {
    let missing = at.ancestors().take_while(|folder| !folder.exists());
    let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    for folder in missing.iter().rev() {
        let made =
            fs::create_dir(folder).and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)));
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(AttachError::io(folder.display())(e));
            }
            _ => {}
        }
    }
    Ok(missing)
}

/// A mount point, and which folders were made for it, the deepest first.
#[derive(Debug, Default)]
pub struct MountPoint(Vec<PathBuf>);

impl MountPoint {
    /// Makes a folder and those above it that are missing.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make(at: &Path) -> Result<Self, AttachError> {
        passable(at).map(Self)
    }

    /// These folders.
    #[must_use]
    pub fn of(made: Vec<PathBuf>) -> Self {
        Self(made)
    }

    /// Which folders were made.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        self.0.clone()
    }

    /// Removes what was made, as far as it is empty.
    pub fn undo(self) {
        self.0.iter().all(|folder| fs::remove_dir(folder).is_ok());
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
    let path = at.display().to_string();
    let done = run("umount", &[&path])?;
    if done.code == 0 {
        return Ok(());
    }
    let holders = mounts::users_of(at, &[]);
    if holders.is_empty() {
        must("umount", &[&path])?;
        return Ok(());
    }
    Err(AttachError::Busy {
        path: at.to_owned(),
        holders,
    })
}

/// Takes a mount out of the tree of folders, in use or not.
pub(super) fn unmount_lazily(at: &Path) {
    let path = at.display().to_string();
    let gone = run("umount", &[&path]).is_ok_and(|done| done.code == 0);
    if !gone && let Err(e) = must("umount", &["--lazy", &path]) {
        tracing::warn!("{e}");
    }
}

/// Where a volume with mount point `mount` goes under `root`.
#[must_use]
pub fn under(root: &Path, mount: &Path) -> PathBuf {
    root.join(mount.strip_prefix("/").unwrap_or(mount))
}

/// Syncs the file system mounted at `at`, so that what was written to it before is in its device.
///
/// # Errors
/// When the folder cannot be opened or the sync fails.
pub fn sync(at: &Path) -> Result<(), AttachError> {
    let folder = fs::File::open(at).map_err(AttachError::io(at.display()))?;
    rustix::fs::syncfs(&folder).map_err(|e| AttachError::io(at.display())(e.into()))
}
