//! `nbdfuse` makes a file of the export, and a loop device stands on the file.

use super::{Method, Place, unused};
use crate::attach::{
    AttachError,
    command::{must, run},
    keeper::{self, Line},
    mounts,
};
use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// How long the kernel may take to let go of what nobody uses.
const SOON: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// `nbdfuse` with a loop device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fuse;

/// Where `nbdfuse` is mounted.
fn folder(place: &Place) -> PathBuf {
    place.file("fuse")
}

/// The file that it shows.
fn disk(place: &Place) -> PathBuf {
    folder(place).join("disk")
}

/// Loop devices on our file. A number that was written down may be somebody else's by now.
fn loops(place: &Place) -> Vec<PathBuf> {
    let disk = disk(place);
    let ours = mounts::loops().into_iter().filter(|(_, file)| *file == disk);
    ours.map(|(device, _)| device).collect()
}

fn wait_until(done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + SOON;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

impl Method for Fuse {
    fn attach(&self, place: &Place, line: &Line<'_>) -> Result<PathBuf, AttachError> {
        let made = make(place, line);
        if made.is_err() {
            self.destroy(place);
        }
        made
    }

    fn device(&self, place: &Place) -> Option<PathBuf> {
        keeper::of(place)?;
        match &loops(place)[..] {
            [device] if mounts::is_at(&folder(place)) => Some(device.clone()),
            _ => None,
        }
    }

    fn detach(&self, place: &Place) -> Result<(), AttachError> {
        for device in loops(place) {
            unused(&device)?;
            must("losetup", &["--detach", &device.display().to_string()])?;
            // Somebody may have come in between: the kernel then waits for him to go.
            if !wait_until(|| !loops(place).contains(&device)) {
                return Err(AttachError::Busy {
                    path: device.clone(),
                    holders: mounts::users_of_device(&device),
                });
            }
        }
        let folder = folder(place);
        let path = folder.display().to_string();
        // A loop device lets go of its file a moment after it is detached.
        let gone = || !mounts::is_at(&folder) || run("umount", &[&path]).is_ok_and(|done| done.code == 0);
        if !wait_until(gone) {
            must("umount", &[&path])?;
        }
        keeper::wait_gone(place);
        place.clear();
        match fs::remove_dir(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(AttachError::io(path)(e)),
            _ => Ok(()),
        }
    }

    fn remains(&self, place: &Place) -> Vec<PathBuf> {
        loops(place)
    }

    fn destroy(&self, place: &Place) {
        self.cut(place);
        let folder = folder(place);
        let path = folder.display().to_string();
        let detach = || {
            for device in loops(place) {
                let _ = run("losetup", &["--detach", &device.display().to_string()]);
            }
        };
        // A program that its daemon did not outlive may still make one.
        let gone = || {
            detach();
            !mounts::is_at(&folder) || run("umount", &[&path]).is_ok_and(|done| done.code == 0)
        };
        if !wait_until(gone) {
            let _ = run("umount", &["--lazy", &path]);
        }
        place.clear();
        let _ = fs::remove_dir(&folder);
    }
}

fn make(place: &Place, line: &Line<'_>) -> Result<PathBuf, AttachError> {
    let (folder, disk) = (folder(place), disk(place));
    fs::create_dir_all(&folder).map_err(AttachError::io(folder.display()))?;
    let mut nbdfuse = vec!["nbdfuse".into()];
    if line.read_only {
        nbdfuse.push("-r".into());
    }
    nbdfuse.extend([disk.clone().into(), "--unix".into(), keeper::socket(place).into()]);
    line.start(place, &nbdfuse, || disk.exists())?;
    let text = disk.display().to_string();
    let mut losetup = vec!["--find", "--show"];
    if line.read_only {
        losetup.push("--read-only");
    }
    losetup.push(&text);
    Ok(must("losetup", &losetup)?.trim().into())
}
