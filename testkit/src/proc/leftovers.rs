//! What may be left behind by somebody who was killed: mounts, loop devices and processes of a folder.

use super::run::{signal_one, try_run};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Time enough for one command.
const LIMIT: Duration = Duration::from_secs(60);

/// What belongs to a folder and is not gone: mount points below it, loop devices on files below it, and processes with it in
/// their command line, each as a line for people.
#[must_use]
pub fn leftovers(folder: &Path) -> Vec<String> {
    let mounts = super::scratch::mounts_below(folder).into_iter();
    let mut left: Vec<String> = mounts.map(|at| format!("mount at {}", at.display())).collect();
    let loops = loops_below(folder).into_iter();
    left.extend(loops.map(|(device, file)| format!("/dev/{device} on {}", file.display())));
    let processes = processes_naming(folder).into_iter();
    left.extend(processes.map(|(pid, line)| format!("process {pid}: {line}")));
    left
}

/// Ends the processes that name a folder in their command line: a folder of a test is named by what the test started, and by
/// what that started.
pub(super) fn end_processes(folder: &Path) {
    for (pid, _) in processes_naming(folder) {
        signal_one(pid, Signal::KILL);
    }
}

/// Processes other than this one whose command line names a folder or something below it.
fn processes_naming(folder: &Path) -> Vec<(u32, String)> {
    let wanted = folder.as_os_str().as_bytes();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = all.filter_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read(process.path().join("cmdline")).ok()?;
        let is_named = line.split(|b| *b == 0).any(|word| {
            let rest = word.strip_prefix(wanted);
            rest.is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
        });
        let words = String::from_utf8_lossy(&line).replace('\0', " ");
        (is_named && pid != std::process::id()).then_some((pid, words))
    });
    named.collect()
}

/// A loop device and the file behind it.
pub(super) type Loop = (String, PathBuf);

fn backing_of(device: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")).ok()?;
    Some(text.trim_end().trim_end_matches(" (deleted)").into())
}

pub(super) fn loops_below(folder: &Path) -> Vec<Loop> {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let backing = backing_of(&name)?;
        backing.starts_with(folder).then_some((name, backing))
    });
    devices.collect()
}

/// Asks a loop device to let go of its file, when nobody has it open any more.
pub(super) fn let_go((device, _): &Loop) {
    let mut detach = Command::new("losetup");
    let _ = try_run(detach.arg("--detach").arg(format!("/dev/{device}")), LIMIT);
}

/// Whether a loop device no longer stands on that file.
pub(super) fn is_free((device, file): &Loop) -> bool {
    // The file of a mount that is gone has lost the path to its mount point.
    let lost = Path::new("/").join(file.file_name().unwrap_or_default());
    backing_of(device).is_none_or(|now| now != *file && now != lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{Scratch, shared::SOON, until};

    #[test]
    fn processes_go_with_the_folder_that_they_name() {
        let scratch = Scratch::new("named");
        // Not through the folder: as one that somebody left.
        let mut child = Command::new("tail")
            .arg("-f")
            .arg("/dev/null")
            .arg(scratch.join("x"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("the process to be seen", SOON, || {
            (!leftovers(scratch.path()).is_empty()).then_some(())
        });
        let line = leftovers(scratch.path()).remove(0);
        assert!(
            line.starts_with(&format!("process {}: tail", child.id())),
            "{line}"
        );
        assert!(leftovers(&scratch.path().with_extension("y")).is_empty());
        drop(scratch);
        assert!(!child.wait().unwrap().success());
    }
}
