//! A small file system of its own for one node, whose power can be cut.

use crate::common::LONG;
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use testkit::proc::{Scratch, need_tool, run, until};

/// Bytes of the image, sparse.
const IMAGE_BYTES: u64 = 2 << 30;

/// A file system on a loop device, mounted at a node's state directory.
pub struct Disk {
    kind: &'static str,
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes one of `kind` (`xfs`, `ext4`) and mounts it at `state/NODE`.
    pub fn new(scratch: &Scratch, node: &str, kind: &'static str) -> Self {
        let image = scratch.image(&format!("{node}.{kind}"), IMAGE_BYTES);
        let make: &[&str] = match kind {
            "xfs" => &["-q", "-f"],
            _ => &["-q", "-F"],
        };
        run(
            Command::new(need_tool(&format!("mkfs.{kind}")))
                .args(make)
                .arg(&image),
            LONG,
        )
        .ok();
        let at = scratch.folder(&format!("state/{node}"));
        let disk = Self { kind, image, at };
        disk.mount();
        disk
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Everything written so far is durable.
    pub fn sync(&self) {
        run(Command::new("sync").arg("-f").arg(&self.at), LONG).ok();
    }

    /// The power goes: from now on every access fails, and neither the log nor any dirty page reaches the image.
    pub fn cut(&self) {
        let mut xfs_io = Command::new(need_tool("xfs_io"));
        run(xfs_io.args(["-x", "-c", "shutdown"]).arg(&self.at), LONG).ok();
    }

    /// The power comes back: unmounted, mounted again, the log replayed. Nobody may have a file open here.
    pub fn back(&self) {
        // A process that was killed holds its files a moment longer.
        until("the file system to be unmounted", LONG, || {
            (run(Command::new("umount").arg(&self.at), LONG).code == 0).then_some(())
        });
        self.mount();
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind, "-o", "loop"]);
        run(mount.arg(&self.image).arg(&self.at), LONG).ok();
    }
}
