//! A whole file system on the power supply, mounted through FUSE: for what opens files by itself, as RocksDB does.
//!
//! It has every file's bytes and every folder's names live and durable apart, and is the worst file system that POSIX allows:
//!
//! | durable | after |
//! | --- | --- |
//! | bytes and length of a file | `fsync` or `fdatasync` of it |
//! | names in a folder: made, linked, renamed, removed | `fsync` of the folder |
//!
//! Nothing else makes anything durable: no closing, no `sync_file_range`, no time that passes, and no sync of something else. A
//! power cut draws for each file and each folder by itself what is left of the rest ([`content`], [`names`]); a file may be there
//! without its name, and a name without its bytes. [`Order`] says whether what is left of one file, or of one folder, has gaps.
//!
//! It does not show: disks that are full (there is always room), owners, times and permissions that are lost, renaming from one
//! folder to another (refused), and locks and extended attributes of its own (the kernel keeps locks; the others are refused).

mod content;
mod names;
mod serve;
#[cfg(test)]
mod tests;
mod tree;

use super::{power::SimPower, tear::Tear};
use fuser::{BackgroundSession, MountOption};
use parking_lot::Mutex;
use rand::RngCore;
use rustix::mount::{UnmountFlags, unmount};
use serve::Server;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;
use tree::Tree;
pub(super) use tree::TreeImage;

/// In which order what no sync has made durable reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// In any: what POSIX allows. A file may be as long as it was to be without the bytes that were added, and a folder may have
    /// a later name without an earlier one.
    #[default]
    Any,
    /// As ext4 (`data=ordered`), xfs and btrfs keep it, and programs came to rely on: a file never ends behind bytes that are not
    /// there, and names of one folder change in their order. Bytes that are overwritten, other files and other folders still have
    /// nothing to do with each other, which is worse than these are.
    Kept,
}

/// What the file system is, whoever has mounted it.
pub(super) struct Cabinet {
    tree: Arc<Mutex<Tree>>,
    order: Mutex<Order>,
    mounted: Mutex<Option<Mounted>>,
}

impl std::fmt::Debug for Cabinet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cabinet").field(&self.mounted.lock()).finish()
    }
}

impl Cabinet {
    pub(super) fn new() -> Self {
        Self {
            tree: Arc::new(Mutex::new(Tree::new())),
            order: Mutex::default(),
            mounted: Mutex::default(),
        }
    }

    pub(super) fn restart(&self, power_lost: bool, tear: Tear, rng: &mut dyn RngCore) {
        match power_lost {
            true => self.tree.lock().cut(tear, *self.order.lock(), rng),
            false => self.tree.lock().close_all(),
        }
    }

    /// What is durable.
    pub(super) fn image(&self) -> TreeImage {
        self.tree.lock().durable()
    }

    pub(super) fn put_back(&self, image: TreeImage) {
        self.tree.lock().become_image(image);
    }
}

/// Where it is mounted, in which life of the process.
#[derive(Debug)]
struct Mounted {
    epoch: u64,
    folder: TempDir,
    _session: BackgroundSession,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever still has files open keeps them, and only errors come of it.
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}

/// A file system; made by [`SimPower::files`]. Mounting needs root.
#[derive(Clone, Debug)]
pub struct SimFiles {
    power: SimPower,
    cabinet: Arc<Cabinet>,
}

impl SimFiles {
    pub(super) fn new(power: SimPower, cabinet: Arc<Cabinet>) -> Self {
        Self { power, cabinet }
    }

    /// Where it is mounted, as for the process that runs now: another place in each of its lives. It stays mounted until the next
    /// life asks, or nobody has the power supply any more.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let epoch = self.power.epoch();
        let mut mounted = self.cabinet.mounted.lock();
        if mounted.as_ref().is_none_or(|m| m.epoch != epoch) {
            *mounted = Some(self.mount(epoch));
        }
        let folder = mounted.as_ref().map(|m| m.folder.path());
        folder.map(Path::to_owned).expect("mounted above")
    }

    /// What later cuts leave of the order of things; [`Order::Any`] unless told.
    pub fn set_order(&self, order: Order) {
        *self.cabinet.order.lock() = order;
    }

    /// Makes everything durable that was written so far, without counting it.
    pub fn sync(&self) {
        self.cabinet.tree.lock().sync_all();
    }

    fn mount(&self, epoch: u64) -> Mounted {
        let folder = tempfile::Builder::new().prefix("backstay-files-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        let server = Server::new(self.power.weak(epoch), Arc::clone(&self.cabinet.tree));
        let options = [MountOption::FSName("backstay-files".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount2(server, &folder, &options);
        Mounted {
            epoch,
            _session: session.expect("a file system can be mounted through /dev/fuse"),
            folder,
        }
    }
}
