//! From an NBD export to a mounted file system, and back.
//!
//! # Overview
//!
//! [`Attacher::attach`] makes a block device of an export and a name for it under `dev_root`; [`mount`] checks and mounts
//! the file system on it. What is attached is written to `<state_dir>/attach/*.json` before it is used, so that after a
//! crash of the daemon [`Attacher::clean_leftovers`] finds and undoes it: the export behind it died with the daemon.
//!
//! # What it does not do
//!
//! It does not keep a mounted file system alive over a restart of the daemon, and only ext4 and xfs are checked and mounted. The
//! kernel's nbd was never run on the machines that Backstay is developed on; there `nbdfuse` with a loop device serves.

mod command;
pub mod device;
pub mod mount;

pub use command::CommandError;
pub use device::{AttachedDevice, Attacher};

/// Why a device or a file system could not be attached, mounted or undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be used.
    #[error("{what}: {source}")]
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
    #[error("{path}: {device} is mounted there already")]
    ForeignMount {
        /// The mount point.
        path: std::path::PathBuf,
        /// What is mounted.
        device: String,
    },
    /// The file system's checker found what it does not mend by itself.
    #[error("{device}: {checker} ended with {code}: the file system needs a look by hand")]
    Unclean {
        /// The device.
        device: String,
        /// The checker.
        checker: &'static str,
        /// Its exit code.
        code: i32,
    },
    /// Processes have files open there.
    #[error("{path} is busy")]
    Busy {
        /// The mount point.
        path: std::path::PathBuf,
        /// Who holds it, `pid command`.
        holders: Vec<String>,
    },
}

impl AttachError {
    /// An I/O failure with what it happened to.
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |source| Self::Io { what, source }
    }
}
