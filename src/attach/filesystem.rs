//! What is done to a file system as a whole: made, recognized, checked, told from its twins.

use super::{
    AttachError, AttachedDevice, MountAsk, btrfs,
    command::{must, run},
    mount::{Options, Stage},
};
use crate::config::Filesystem;
use std::path::Path;

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
        Filesystem::Btrfs => must("mkfs.btrfs", &["-q", "-f", &path])?,
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

/// The options of a mount. Read-only is without replaying the file system's journal.
pub(super) const fn mount_options(filesystem: Filesystem, read_only: bool) -> &'static str {
    match (filesystem, read_only) {
        (Filesystem::Ext4 | Filesystem::Btrfs, false) => "rw",
        (Filesystem::Ext4, true) => "ro,noload",
        // Views of one xfs have one UUID, and the kernel mounts a UUID once.
        (Filesystem::Xfs, false) => "rw,nouuid",
        (Filesystem::Xfs, true) => "ro,norecovery,nouuid",
        (Filesystem::Btrfs, true) => "ro,rescue=nologreplay",
    }
}

/// Runs the file system's own checker; `line` gets its words.
///
/// ext4's replays the journal and mends what is safe. Of xfs and btrfs the kernel replays the log at the mount, and the checkers
/// do not: they run only for a full check, after a mount and an unmount, and mend nothing.
///
/// # Errors
/// When it finds what it does not mend by itself.
pub fn check(
    how: &MountAsk,
    attached: &AttachedDevice,
    stage: &Stage,
    options: Options,
    line: &mut dyn FnMut(String),
) -> Result<(), AttachError> {
    let full = how.full_check;
    // The name is what an operator knows; where others have names in the same folder it may lead elsewhere.
    let name = if options.is_wary {
        &attached.device
    } else {
        &attached.name
    };
    match how.filesystem {
        Filesystem::Ext4 => check_ext4(name, full, line),
        Filesystem::Xfs if full => {
            stage.replay(how.filesystem, &attached.device, options)?;
            check_only("xfs_repair", &["-n"], name, line)
        }
        Filesystem::Btrfs if full => {
            stage.replay(how.filesystem, &attached.device, options)?;
            check_only("btrfs", &["check", "--readonly"], name, line)
        }
        Filesystem::Xfs | Filesystem::Btrfs => Ok(()),
    }
}

fn check_only(
    checker: &'static str,
    words: &[&str],
    device: &Path,
    line: &mut dyn FnMut(String),
) -> Result<(), AttachError> {
    let path = device.display().to_string();
    let words = [words, &[&path]].concat();
    line(format!("{checker} {}", words.join(" ")));
    let done = run(checker, &words)?;
    if done.code == 0 {
        return Ok(());
    }
    done.output.lines().for_each(|l| line(l.to_owned()));
    Err(AttachError::Unclean {
        device: path,
        checker: checker.to_owned(),
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
        checker: "e2fsck".to_owned(),
        code: done.code,
    })
}

/// Makes sure that no other block device of this host shows a file system with the same id, where the kernel tells file systems
/// apart by it: of btrfs alone. `new_uuid` gives this one an id of its own if one does.
///
/// # Errors
/// [`AttachError::Twin`] without `new_uuid`; and when a step fails.
pub fn alone(
    how: &MountAsk,
    device: &Path,
    backing: Option<u64>,
    stage: &Stage,
    options: Options,
    line: &mut dyn FnMut(String),
) -> Result<(), AttachError> {
    if how.filesystem != Filesystem::Btrfs {
        return Ok(());
    }
    let Some(twin) = btrfs::twin_of(device, backing)? else {
        return Ok(());
    };
    if !how.new_uuid {
        return Err(AttachError::Twin {
            device: device.to_owned(),
            twin,
        });
    }
    btrfs::renew(device, stage, options, line)
}
