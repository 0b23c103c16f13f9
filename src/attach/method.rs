//! The ways to make a block device of an export, each behind one trait.

mod fuse;
mod kernel;

pub use fuse::Fuse;
pub use kernel::Kernel;

use super::{
    AttachError,
    keeper::{self, Line},
    mounts,
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// A way to make block devices. What belongs to one device is found by its [`Place`] alone, whatever was written down or not
/// when somebody died.
pub trait Method: std::fmt::Debug + Send + Sync {
    /// Makes a device.
    ///
    /// # Errors
    /// When a step fails; nothing is left then.
    fn attach(&self, place: &Place, line: &Line<'_>) -> Result<PathBuf, AttachError>;

    /// The device, if it is whole: it serves, or waits for the daemon.
    fn device(&self, place: &Place) -> Option<PathBuf>;

    /// Undoes [`Method::attach`] in order.
    ///
    /// # Errors
    /// When somebody uses the device, or a step fails; the same call then goes on.
    fn detach(&self, place: &Place) -> Result<(), AttachError>;

    /// The block devices that are there of it, in any state.
    fn remains(&self, place: &Place) -> Vec<PathBuf>;

    /// Ends its service: who uses the device gets errors from now on, and waits for nothing.
    fn cut(&self, place: &Place) {
        keeper::kill(place);
    }

    /// Cuts it, and undoes whatever is there of it.
    fn destroy(&self, place: &Place);
}

/// Where what belongs to one device lies: everything begins with the same path, its *stem*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// The place with this stem.
    #[must_use]
    pub fn new(stem: PathBuf) -> Self {
        Self(stem)
    }

    /// The stem.
    #[must_use]
    pub fn stem(&self) -> &Path {
        &self.0
    }

    /// One of its files.
    #[must_use]
    pub fn file(&self, extension: &str) -> PathBuf {
        let mut path = OsString::from(&self.0);
        path.push(".");
        path.push(extension);
        path.into()
    }

    /// Removes what a keeper leaves.
    fn clear(&self) {
        for extension in ["lock", "sock"] {
            let _ = std::fs::remove_file(self.file(extension));
        }
    }
}

/// Refuses while somebody uses a device.
fn unused(device: &Path) -> Result<(), AttachError> {
    let holders = mounts::users_of_device(device);
    if holders.is_empty() {
        return Ok(());
    }
    Err(AttachError::Busy {
        path: device.to_owned(),
        holders,
    })
}
