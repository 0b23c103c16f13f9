//! Checking, mounting and unmounting file systems.

use super::{
    AttachError,
    command::{must, run},
};
use crate::config::Filesystem;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How a file system is to be mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountOptions {
    /// Read-only, without replaying its journal; it is not checked then, because checking writes.
    pub read_only: bool,
    /// Check all of it, even if it is marked clean.
    pub full_check: bool,
}

/// Makes a new file system.
///
/// # Errors
/// When the program fails.
pub fn make(filesystem: Filesystem, device: &Path) -> Result<(), AttachError> {
    let path = device.display().to_string();
    match filesystem {
        Filesystem::Ext4 => must(
            "mkfs.ext4",
            &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", &path],
        )?,
        Filesystem::Xfs => must("mkfs.xfs", &["-q", "-f", &path])?,
    };
    Ok(())
}

/// The kind of file system on a device, if `blkid` knows one.
///
/// # Errors
/// When the program cannot be started.
pub fn probe(device: &Path) -> Result<Option<String>, AttachError> {
    let done = run(
        "blkid",
        &[
            "--probe",
            "--output",
            "value",
            "--match-tag",
            "TYPE",
            &device.display().to_string(),
        ],
    )?;
    Ok(Some(done.output.trim().to_owned()).filter(|t| done.code == 0 && !t.is_empty()))
}

/// Runs the file system's own checker; `line` gets its words.
///
/// ext4's replays the journal and mends what is safe. Of xfs, the kernel replays the log at the mount, and its checker does
/// not: it runs only for a full check, after a mount at `at` and an unmount, and mends nothing.
///
/// # Errors
/// When it finds what it does not mend by itself.
pub fn check(
    filesystem: Filesystem,
    device: &Path,
    at: &Path,
    full: bool,
    line: &mut dyn FnMut(String),
) -> Result<(), AttachError> {
    match filesystem {
        Filesystem::Ext4 => check_ext4(device, full, line),
        Filesystem::Xfs if full => check_xfs(device, at, line),
        Filesystem::Xfs => Ok(()),
    }
}

fn check_xfs(device: &Path, at: &Path, line: &mut dyn FnMut(String)) -> Result<(), AttachError> {
    mount(Filesystem::Xfs, device, at, MountOptions::default())?;
    unmount(at)?;
    let path = device.display().to_string();
    line(format!("xfs_repair -n {path}"));
    let done = run("xfs_repair", &["-n", &path])?;
    if done.code == 0 {
        return Ok(());
    }
    done.output.lines().for_each(|l| line(l.to_owned()));
    Err(AttachError::Unclean {
        device: path,
        checker: "xfs_repair",
        code: done.code,
    })
}

fn check_ext4(device: &Path, full: bool, line: &mut dyn FnMut(String)) -> Result<(), AttachError> {
    let path = device.display().to_string();
    let mut args = vec!["-p"];
    if full {
        args.push("-f");
    }
    args.push(&path);
    line(format!("e2fsck {}", args.join(" ")));
    let done = run("e2fsck", &args)?;
    done.output.lines().for_each(|l| line(l.to_owned()));
    // 0 clean, 1 mended; from 2 on somebody has to act.
    if (0..=1).contains(&done.code) {
        return Ok(());
    }
    Err(AttachError::Unclean {
        device: path,
        checker: "e2fsck",
        code: done.code,
    })
}

/// Mounts `device` at `at`, making the folder if it is missing.
///
/// # Errors
/// When something is mounted there already, or the mount fails.
pub fn mount(
    filesystem: Filesystem,
    device: &Path,
    at: &Path,
    options: MountOptions,
) -> Result<(), AttachError> {
    if let Some(there) = mounted_at(at) {
        return Err(AttachError::ForeignMount {
            path: at.to_owned(),
            device: there,
        });
    }
    fs::create_dir_all(at).map_err(AttachError::io(at.display()))?;
    // Views of one xfs have one UUID, and the kernel mounts a UUID once.
    let flags = match (filesystem, options.read_only) {
        (Filesystem::Ext4, false) => "rw",
        (Filesystem::Ext4, true) => "ro,noload",
        (Filesystem::Xfs, false) => "rw,nouuid",
        (Filesystem::Xfs, true) => "ro,norecovery,nouuid",
    };
    must(
        "mount",
        &[
            "-t",
            filesystem.name(),
            "-o",
            flags,
            &device.display().to_string(),
            &at.display().to_string(),
        ],
    )?;
    Ok(())
}

/// Unmounts `at`.
///
/// # Errors
/// [`AttachError::Busy`] with the holders when files are open there.
pub fn unmount(at: &Path) -> Result<(), AttachError> {
    let path = at.display().to_string();
    let done = run("umount", &[&path])?;
    if done.code == 0 || mounted_at(at).is_none() {
        return Ok(());
    }
    let holders = holders(at);
    if holders.is_empty() {
        must("umount", &[&path])?;
        return Ok(());
    }
    Err(AttachError::Busy {
        path: at.to_owned(),
        holders,
    })
}

/// What is mounted exactly at `at`.
#[must_use]
pub fn mounted_at(at: &Path) -> Option<String> {
    let at = fs::canonicalize(at).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|l| l.split_once(' '))
        .find_map(|(device, rest)| {
            let point = rest
                .split(' ')
                .next()?
                .replace("\\040", " ")
                .replace("\\011", "\t");
            (Path::new(&point) == at).then(|| device.to_owned())
        })
}

/// Processes with a file, folder or root below `at`, as `pid command`.
#[must_use]
pub fn holders(at: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let folder = process.path();
        let mut links = vec![folder.join("cwd"), folder.join("root")];
        if let Ok(files) = fs::read_dir(folder.join("fd")) {
            links.extend(files.flatten().map(|f| f.path()));
        }
        if links
            .iter()
            .filter_map(|l| fs::read_link(l).ok())
            .any(|target| target.starts_with(at))
        {
            let command = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            found.push(format!("{pid} {}", command.trim()));
        }
    }
    found
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
