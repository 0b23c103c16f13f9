//! Mount points, reached by descriptors.
//!
//! A path that was looked at may lead elsewhere when it is used: between the two, somebody may have put a link on the way, or have
//! mounted a volume over a part of it whose bytes are his. So a mount point is opened once, part by part, and what is mounted goes onto
//! the folder that was opened. Where one who is not root says what is mounted ([`Ground`]), every folder on the way is root's alone, and
//! nothing is mounted between the ground and the mount point or below it: never is one volume reached through another.
//!
//! What was mounted is undone by the path that the kernel tells of it, followed without links.

use super::{AttachError, mounts};
use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags, chmodat, fstat, mkdirat, open, openat, statx, unlinkat},
    io::Errno,
    mount::{MoveMountFlags, move_mount},
};
use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

/// The folders below which one who is not root may mount.
pub type Ground = [PathBuf];

/// A folder on which something is to be mounted.
#[derive(Debug)]
pub struct MountPoint {
    folder: OwnedFd,
    /// Where it is, without links.
    path: PathBuf,
    /// The folder of the ground that it is below, if it must be below one.
    ground: Option<PathBuf>,
    made: Made,
}

/// Folders that were made for a mount, the deepest first; their paths have no links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made(pub Vec<PathBuf>);

impl Made {
    /// Removes them, as far as they are empty.
    pub fn undo(self) {
        self.0.iter().all(|folder| {
            let removed =
                parent_of(folder).and_then(|(parent, name)| Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?));
            removed.is_ok()
        });
    }
}

impl MountPoint {
    /// Opens the folder `at`; those that are missing are made, such that everybody may pass.
    ///
    /// # Errors
    /// When one cannot be made or opened; [`AttachError::Refused`] where it is not below `ground`, or not root's alone.
    pub fn reach(at: &Path, ground: Option<&Ground>) -> Result<Self, AttachError> {
        let failed = |e: Errno| AttachError::io(at.display())(e.into());
        let (folder, count, ground) = match ground {
            Some(ground) => below(at, ground)?,
            None => {
                let made = passable(at)?.len();
                (open(at, FOLDER, Mode::empty()).map_err(failed)?, made, None)
            }
        };
        let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let path = fs::read_link(path).map_err(AttachError::io(at.display()))?;
        let made = path.ancestors().take(count).map(Path::to_owned).collect();
        Ok(Self {
            folder,
            path,
            ground,
            made: Made(made),
        })
    }

    /// Where it is, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which folders were made for it.
    #[must_use]
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// Gives it up, and what was made for it.
    pub fn undo(self) {
        self.made.undo();
    }

    /// Puts what is mounted nowhere yet onto it. The caller lets nobody else do so meanwhile.
    ///
    /// # Errors
    /// [`AttachError::ForeignMount`] when something is mounted there, or where it must not be.
    pub fn take(&self, mounted: &OwnedFd) -> Result<(), AttachError> {
        if let Some((path, device)) = self.in_the_way() {
            return Err(AttachError::ForeignMount {
                path,
                device: device.display().to_string(),
            });
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(mounted, "", &self.folder, "", flags)
            .map_err(|e| AttachError::io(self.path.display())(e.into()))
    }

    fn in_the_way(&self) -> Option<(PathBuf, PathBuf)> {
        let is_between = |m: &Path| {
            let ground = self.ground.as_deref();
            ground.is_some_and(|ground| {
                m.starts_with(&self.path)
                    || (m != ground && m.starts_with(ground) && self.path.starts_with(m))
            })
        };
        let mut table = mounts::table().into_iter().rev();
        let found = table.find(|m| m.at == self.path || is_between(&m.at));
        found.map(|m| (m.at, m.source))
    }
}

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder's folder, which is no link. Part by part, and not by `openat2`: `RestrictSUIDSGID=` of systemd takes that away.
fn step(folder: &OwnedFd, part: &OsStr) -> Result<OwnedFd, Errno> {
    openat(folder, part, FOLDER | OFlags::NOFOLLOW, Mode::empty())
}

/// The folder at an absolute path, reached without links.
pub(super) fn walk(path: &Path) -> Result<OwnedFd, Errno> {
    let mut folder = open("/", FOLDER, Mode::empty())?;
    for part in path.components() {
        match part {
            Component::RootDir => {}
            Component::Normal(part) => folder = step(&folder, part)?,
            _ => return Err(Errno::INVAL),
        }
    }
    match path.is_absolute() {
        true => Ok(folder),
        false => Err(Errno::INVAL),
    }
}

/// The number of the mount that a folder is on (Linux 5.8).
pub(super) fn mount_of(folder: &OwnedFd) -> Result<u64, Errno> {
    let found = statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    match found.stx_mask & StatxFlags::MNT_ID.bits() {
        0 => Err(Errno::NOSYS),
        _ => Ok(found.stx_mnt_id),
    }
}

/// The folder in which the last part of an absolute path is, reached without links; and that part.
///
/// # Errors
/// When there is a link on the way, or no folder, or no such part.
pub(super) fn parent_of(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let parts = path.is_absolute().then(|| path.parent().zip(path.file_name()));
    let (parent, name) = parts.flatten().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((walk(parent)?, name))
}

/// Opens a folder below one of the `ground`; how many were made for it, the deepest, and below which.
fn below(at: &Path, ground: &Ground) -> Result<(OwnedFd, usize, Option<PathBuf>), AttachError> {
    let refused = |why: String| AttachError::Refused(format!("mount point {}: {why}", at.display()));
    let is_plain = at
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !(at.is_absolute() && is_plain) {
        return Err(refused("it is not an absolute path without '..'".into()));
    }
    let Some(root) = ground.iter().find(|root| at != **root && at.starts_with(root)) else {
        let roots: Vec<_> = ground.iter().map(|r| r.display().to_string()).collect();
        return Err(refused(format!(
            "it is not below --mount-root {}",
            roots.join(", ")
        )));
    };
    let within = at.strip_prefix(root).expect("it begins with it");
    let (mut path, mut made) = (root.clone(), Vec::new());
    let reached = (|| {
        let failed = |path: &Path, e: Errno| match e {
            Errno::LOOP | Errno::NOTDIR => format!("{} is a link, or no folder", path.display()),
            e => format!("{}: {e}", path.display()),
        };
        let mut folder = walk(root).map_err(|e| failed(root, e))?;
        roots_alone(&folder, root, false)?;
        let mount = mount_of(&folder).map_err(|e| failed(root, e))?;
        for part in within {
            path.push(part);
            if part_of(&mut folder, part).map_err(|e| failed(&path, e))? {
                made.insert(0, path.clone());
            }
            if mount_of(&folder).map_err(|e| failed(&path, e))? != mount {
                return Err(format!("something is mounted at {}", path.display()));
            }
            roots_alone(&folder, &path, false)?;
        }
        Ok(folder)
    })();
    match reached {
        Ok(folder) => Ok((folder, made.len(), Some(root.clone()))),
        Err(why) => {
            Made(made).undo();
            Err(refused(why))
        }
    }
}

/// Goes into a folder's folder, which is made if there is none: then in a folder in which nobody but root puts anything. Whether it was
/// made.
fn part_of(folder: &mut OwnedFd, part: &OsStr) -> Result<bool, Errno> {
    let (next, is_new) = match step(folder, part) {
        Err(Errno::NOENT) => match mkdirat(&*folder, part, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                // Whatever the umask.
                chmodat(&*folder, part, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                (step(folder, part)?, true)
            }
            // Another mount's parent, made in the same moment.
            Err(Errno::EXIST) => (step(folder, part)?, false),
            Err(e) => return Err(e),
        },
        next => (next?, false),
    };
    *folder = next;
    Ok(is_new)
}

/// Whether nobody but root can put anything in a folder; in one that is `above` what is there and root's, in the place of that.
pub(super) fn roots_alone(folder: &OwnedFd, path: &Path, above: bool) -> Result<(), String> {
    let m = fstat(folder).map_err(|e| format!("{}: {e}", path.display()))?;
    let is_sticky = above && m.st_mode & 0o1000 != 0;
    let is_shared = m.st_mode & 0o022 != 0 && !is_sticky;
    if m.st_uid != 0 || is_shared {
        return Err(format!(
            "{} is not root's alone (user {}, mode {:o})",
            path.display(),
            m.st_uid,
            m.st_mode & 0o7777
        ));
    }
    Ok(())
}

/// The same of a folder that is there, and of all above it.
///
/// # Errors
/// When it is not so, with the reason.
pub(super) fn roots_to(folder: &Path) -> Result<(), String> {
    for above in folder.ancestors() {
        let failed = |e: Errno| match e {
            Errno::LOOP | Errno::NOTDIR => {
                format!("{}: there is a link on the way, or no folder", above.display())
            }
            e => format!("{}: {e}", above.display()),
        };
        let opened = walk(above).map_err(failed)?;
        roots_alone(&opened, above, above != folder)
            .map_err(|why| format!("{why}: another user could put something in its place"))?;
    }
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
    let mut made = Vec::new();
    for folder in missing.into_iter().rev() {
        let mode = Permissions::from_mode(0o755);
        match fs::create_dir(&folder).and_then(|()| fs::set_permissions(&folder, mode)) {
            Ok(()) => made.insert(0, folder),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(AttachError::io(folder.display())(e)),
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    #[test]
    fn mount_points_are_below_a_root_and_reached_by_no_link() {
        if !rustix::process::geteuid().is_root() {
            eprintln!(
                "SKIPPED: mount_points_are_below_a_root_and_reached_by_no_link needs root, whose the folders must be"
            );
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("root");
        fs::create_dir_all(root.join("there")).unwrap();
        symlink("/etc", root.join("link")).unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        for (name, mode, owner) in [("open", 0o777, 0), ("theirs", 0o755, 7), ("sticky", 0o1777, 0)] {
            fs::create_dir(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
            chown(root.join(name), Some(owner), None).unwrap();
        }
        fs::write(root.join("file"), "").unwrap();
        let ground = [root.clone()];
        for at in ["there", "there/and/not/there", "new"] {
            let point = MountPoint::reach(&root.join(at), Some(&ground)).unwrap();
            assert_eq!(point.path(), root.join(at));
            assert_eq!(fs::metadata(root.join(at)).unwrap().mode() & 0o777, 0o755);
            point.undo();
        }
        // What was there before is there still, and nothing else.
        assert!(
            root.join("there").exists() && !root.join("there/and").exists() && !root.join("new").exists()
        );
        for at in [
            root.clone(),
            root.join("../x"),
            root.join("link"),
            root.join("link/passwd"),
            root.join("dangling"),
            root.join("dangling/x"),
            root.join("open/x"),
            root.join("theirs/x"),
            root.join("theirs"),
            root.join("sticky/new"),
            root.join("file"),
            root.join("file/x"),
            PathBuf::from("there"),
            PathBuf::from("/etc"),
            PathBuf::from(format!("{}2/x", root.display())),
        ] {
            let refused = MountPoint::reach(&at, Some(&ground));
            assert!(
                matches!(refused, Err(AttachError::Refused(_))),
                "{}",
                at.display()
            );
        }
        assert!(!root.join("sticky/new").exists());
    }

    /// A mount that is nowhere yet.
    fn mounted() -> OwnedFd {
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
    }

    /// Whatever is mounted below it ends with a test that fails, too.
    struct Unmounts(PathBuf);

    impl Drop for Unmounts {
        fn drop(&mut self) {
            let table = mounts::table();
            for m in table.iter().rev().filter(|m| m.at.starts_with(&self.0)) {
                let _ = rustix::mount::unmount(&m.at, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }

    /// A volume is held up in its check, and its parent is mounted over meanwhile by one in which a link leads elsewhere.
    #[test]
    fn what_is_mounted_over_the_way_leads_nowhere_else() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: what_is_mounted_over_the_way_leads_nowhere_else needs root: it mounts");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("root");
        let elsewhere = scratch.path().canonicalize().unwrap().join("elsewhere");
        fs::create_dir(&root).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        let _unmounts = Unmounts(root.clone());
        let ground = [root.clone()];
        let reach = |at: &str| MountPoint::reach(&root.join(at), Some(&ground));
        let is_foreign = |taken| matches!(taken, Err(AttachError::ForeignMount { .. }));

        let checked = reach("a/b").unwrap();
        let parent = reach("a").unwrap();
        parent.take(&mounted()).unwrap();
        symlink(&elsewhere, root.join("a/b")).unwrap();
        assert!(is_foreign(checked.take(&mounted())));
        assert!(mounts::at(&elsewhere).is_none());
        // Nor by way of what is mounted.
        let through = reach("a/b").unwrap_err();
        assert!(through.to_string().contains("something is mounted"), "{through}");
        assert!(reach("a/new").is_err() && !root.join("a/new").exists());
        rustix::mount::unmount(root.join("a"), rustix::mount::UnmountFlags::empty()).unwrap();
        checked.take(&mounted()).unwrap();
        assert!(mounts::at(&root.join("a/b")).is_some());
        // Nor over the way to what is mounted.
        assert!(is_foreign(parent.take(&mounted())));
        assert!(is_foreign(checked.take(&mounted())));
        let beside = reach("a/c").unwrap();
        beside.take(&mounted()).unwrap();
        // Folders are removed in what they were made in.
        symlink(&elsewhere, root.join("link")).unwrap();
        fs::create_dir(elsewhere.join("empty")).unwrap();
        Made(vec![root.join("link/empty")]).undo();
        assert!(elsewhere.join("empty").exists());
    }
}
