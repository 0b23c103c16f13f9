//! From an export to a mounted file system and back: every way to make a device by the same tests, every step that can fail or
//! be cut short, and every kind of file system.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod filesystems;
mod methods;

use common::{Pair, Setup};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::RwLock,
};
use testkit::proc::leftovers;

/// Held for writing where programs of btrfs run, and for reading where daemons are killed: these programs look at the file behind
/// every loop device that is mounted, anybody's, and give up where one does not answer any more.
static LOOKED_AT: RwLock<()> = RwLock::new(());

fn mounting() -> Setup {
    Setup {
        attach: "fuse",
        ..Setup::default()
    }
}

/// Where a node keeps what it knows of its devices.
fn attach_folder(pair: &Pair, node: &str) -> PathBuf {
    pair.scratch.join(format!("state/{node}/attach"))
}

/// Nothing of any device is left on a node: no mount, no loop device, no process, no file, no name.
#[track_caller]
fn nothing_left(pair: &Pair, node: &str) {
    let folder = attach_folder(pair, node);
    assert_eq!(leftovers(&folder), Vec::<String>::new());
    let files = fs::read_dir(&folder).map_or(0, Iterator::count);
    assert_eq!(files, 0, "{} is not empty", folder.display());
    let names = fs::read_dir(pair.scratch.join(format!("dev/{node}"))).map_or(0, Iterator::count);
    assert_eq!(names, 0, "names are left");
}

/// What is mounted on a folder, on top.
fn mounted_at(at: &Path) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = table.lines().rev();
    let line = lines.find(|l| l.split(' ').nth(1) == at.to_str())?;
    Some(line.split(' ').next()?.into())
}
