//! From an NBD export to a mounted file system, and back.
//!
//! # Overview
//!
//! The daemon asks an [`Attacher`] for what it wants, always of an export; each wish is one [`Ask`]. [`Devices`] does it, in the daemon
//! itself or, where that has no privileges, in its [`helper`].
//!
//! [`Devices::attach`] makes a block device of an export and a name for it under `dev_root`; [`filesystem`] checks what is on
//! it, [`mount`] mounts it. Two ways to make a device are behind one trait, [`Method`]: the kernel's own NBD client, and
//! `nbdfuse` with a loop device. In both, the device's connection ends at a process of its own, the [`keeper`], not at the
//! daemon.
//!
//! # Restarts of the daemon
//!
//! A device of an export that loses nothing when the daemon is killed (a protected volume, a snapshot without writes) is made
//! with an *identity*: what the export is now, by the instance and term of its context or the pin of its snapshot. Its keeper
//! waits for a daemon that is away, and opens the export by a name that holds the identity; the daemon serves that name only
//! while the export still has it ([`crate::exports`]). So a file system stays mounted over a restart, and one that was mounted
//! before the volume changed hands never sees what is there now. A volume that failed has no identity any more: what it answered
//! may be missing next time, and whoever was answered must see an error. A vdev's private writes are durable when they were flushed,
//! and not before: a device of one has no identity, and ends with the daemon.
//!
//! # Crash consistency
//!
//! A record in `<state_dir>/attach` is written before anything of a device is made and removed when all is undone. What it
//! stands for is found by names that only this device has, in the mount table, among the loop devices and by the lock of its
//! keeper; never by a number that was written down. [`Devices::settle`] decides at the daemon's start what stays.
//!
//! # What it does not do
//!
//! A device does not follow a change of its export's size.

mod ask;
mod attacher;
mod btrfs;
mod command;
pub mod device;
mod epochs;
pub mod filesystem;
pub mod helper;
pub mod keeper;
mod method;
pub mod mount;
mod mounting;
pub mod mounts;
pub mod point;
mod turns;

pub use ask::{Answer, Ask, MountAsk, Told};
pub use attacher::Attacher;
pub use command::CommandError;
pub use device::{Asker, AttachedDevice, Devices};
pub use epochs::Epochs;
pub use helper::HelperError;
pub use keeper::{Keepers, Line};
pub use method::{Fuse, Kernel, Method, Place};

use serde::{Deserialize, Serialize};

/// Why a device or a file system could not be attached, mounted or undone.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttachError {
    /// A program failed.
    #[error(transparent)]
    #[serde(skip)]
    Command(#[from] CommandError),
    /// A file could not be used.
    #[error("{what}: {source}")]
    #[serde(skip)]
    Io {
        /// The file and what was done with it.
        what: String,
        /// The failure.
        source: std::io::Error,
    },
    /// The node's configuration says `attach.method = "none"`.
    #[error("attach.method is 'none' on this node: volumes are served as NBD exports only")]
    Disabled,
    /// Something else is mounted there.
    #[error("{path}: {device} is mounted there")]
    ForeignMount {
        /// The mount point.
        path: std::path::PathBuf,
        /// What is mounted.
        device: String,
    },
    /// It is mounted, but not there.
    #[error("{device} is mounted at {path}")]
    MountedElsewhere {
        /// The device.
        device: std::path::PathBuf,
        /// Where.
        path: std::path::PathBuf,
    },
    /// Another device shows a file system with the same id, and the kernel would take them for one.
    #[error("{device}: the file system on {twin} has the same id")]
    Twin {
        /// The device.
        device: std::path::PathBuf,
        /// The other one.
        twin: std::path::PathBuf,
    },
    /// The file system's checker found what it does not mend by itself.
    #[error("{device}: {checker} ended with {code}: the file system needs a look by hand")]
    Unclean {
        /// The device.
        device: String,
        /// The checker.
        checker: String,
        /// Its exit code.
        code: i32,
    },
    /// No device is made of it.
    #[error("{0} is not attached")]
    NotAttached(String),
    /// A step of a mount failed.
    #[error("{step}: {error}")]
    At {
        /// The step.
        step: String,
        /// What failed.
        error: Box<AttachError>,
        /// Something could not be undone.
        left: bool,
    },
    /// The helper cannot be asked.
    #[error("the attach helper at {socket}: {source}")]
    #[serde(skip)]
    Helper {
        /// Its socket.
        socket: std::path::PathBuf,
        /// The failure.
        source: HelperError,
    },
    /// The helper does not do that for anybody.
    #[error("the attach helper refuses: {0}")]
    Refused(String),
    /// What the helper says of a failure there.
    #[error("{0}")]
    Told(String),
    /// Somebody uses it.
    #[error("{path} is busy")]
    Busy {
        /// The mount point or device.
        path: std::path::PathBuf,
        /// Who holds it, processes as `pid command`.
        holders: Vec<String>,
    },
}

impl AttachError {
    /// An I/O failure with what it happened to.
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |source| Self::Io { what, source }
    }

    /// Whether nobody knows what was done.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Helper {
                source: HelperError::Broken(_) | HelperError::Nonsense(_),
                ..
            }
        )
    }

    /// The same in a form that can be sent to another process.
    pub(crate) fn portable(self) -> Self {
        match self {
            Self::Command(_) | Self::Io { .. } | Self::Helper { .. } => {
                // A program may have had much to say.
                Self::Told(self.to_string().chars().take(16 << 10).collect())
            }
            Self::At { step, error, left } => Self::At {
                step,
                error: Box::new(error.portable()),
                left,
            },
            other => other,
        }
    }
}
