//! A small file system of its own for one node, whose power can be cut: a real one, or one that loses all that it may.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use crate::common::LONG;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};
use testkit::{
    SimPower,
    proc::{Scratch, need_tool, run, until},
    sim::{Order, Tear},
};

/// Bytes of the image, sparse.
const IMAGE_BYTES: u64 = 2 << 30;

/// What takes the room of a full disk.
const FILLER: &str = "filler";

/// The kind that loses what was not synced in every way that Linux's file systems may, and tears it at any byte.
pub const WORST: &str = "worst";

/// The name of its file system on its power supply.
const FILES: &str = "state";

/// A file system at a node's state directory.
pub struct Disk {
    kind: &'static str,
    below: Below,
    at: PathBuf,
}

/// What it stands on.
enum Below {
    /// A loop device.
    Image(PathBuf),
    /// A power supply, and what draws the next cut.
    Power(SimPower, Box<Mutex<StdRng>>),
}

impl Disk {
    /// Makes one of `kind` (`xfs`, `ext4`, `btrfs`, [`WORST`]) and mounts it at `state/NODE`.
    pub fn new(scratch: &Scratch, node: &str, kind: &'static str) -> Self {
        Self::at(scratch, &format!("state/{node}"), kind, IMAGE_BYTES)
    }

    /// Makes one of so many bytes and mounts it at a folder.
    pub fn at(scratch: &Scratch, folder: &str, kind: &'static str, bytes: u64) -> Self {
        if kind == WORST {
            return Self::worst(scratch, folder);
        }
        let image = scratch.image(&format!("{}.{kind}", folder.replace('/', "-")), bytes);
        let make: &[&str] = match kind {
            "xfs" => &["-q", "-f"],
            // Each block once: a bit that flips cannot be made good from another place.
            "btrfs" => &["-q", "-f", "-d", "single"],
            _ => &["-q", "-F"],
        };
        run(
            Command::new(need_tool(&format!("mkfs.{kind}")))
                .args(make)
                .arg(&image),
            LONG,
        )
        .ok();
        let disk = Self {
            kind,
            below: Below::Image(image),
            at: scratch.folder(folder),
        };
        disk.mount();
        // A folder of ours has nothing but what is ours.
        let _ = fs::remove_dir(disk.at.join("lost+found"));
        disk
    }

    fn worst(scratch: &Scratch, folder: &str) -> Self {
        let at = scratch.folder(folder);
        fs::remove_dir(&at).unwrap();
        let rng = StdRng::seed_from_u64(folder.len() as u64);
        let power = SimPower::new();
        power.set_tear(Tear::Bit);
        power.files(FILES).set_order(Order::Kept);
        let disk = Self {
            kind: WORST,
            below: Below::Power(power, Box::new(Mutex::new(rng))),
            at,
        };
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

    /// Somebody else takes all the room that is left, to the last block.
    pub fn fill(&self) {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(self.at.join(FILLER))
            .unwrap();
        let disk = rustix::fs::statvfs(&self.at).unwrap();
        let most = (disk.f_bavail * disk.f_frsize).saturating_sub(1 << 20);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
        for size in [64 << 10, 4096] {
            let bytes = vec![0x5a; size];
            while file.write_all(&bytes).is_ok() {}
        }
        let _ = file.sync_all();
    }

    /// There is room again.
    pub fn free(&self) {
        fs::remove_file(self.at.join(FILLER)).unwrap();
    }

    /// Everything written so far is durable.
    pub fn sync(&self) {
        if let Below::Power(power, _) = &self.below {
            return power.files(FILES).sync();
        }
        run(Command::new("sync").arg("-f").arg(&self.at), LONG).ok();
    }

    /// The power goes: from now on every access fails, and neither the log nor any dirty page reaches the image.
    pub fn cut(&self) {
        if let Below::Power(power, _) = &self.below {
            return power.freeze_now();
        }
        let mut xfs_io = Command::new(need_tool("xfs_io"));
        run(xfs_io.args(["-x", "-c", "shutdown"]).arg(&self.at), LONG).ok();
    }

    /// The power comes back: unmounted, mounted again, the log replayed. Nobody may have a file open here.
    pub fn back(&self) {
        if let Below::Power(power, rng) = &self.below {
            power.cut(&mut *rng.lock().unwrap());
            return self.mount();
        }
        // A process that was killed holds its files a moment longer.
        until("the file system to be unmounted", LONG, || {
            (run(Command::new("umount").arg(&self.at), LONG).code == 0).then_some(())
        });
        self.mount();
    }

    fn mount(&self) {
        let image = match &self.below {
            Below::Image(image) => image,
            Below::Power(power, _) => {
                // Each life of the machine has a mount of its own.
                let _ = fs::remove_file(&self.at);
                return symlink(power.files(FILES).folder(), &self.at).unwrap();
            }
        };
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind, "-o", "loop"]);
        run(mount.arg(image).arg(&self.at), LONG).ok();
    }
}
