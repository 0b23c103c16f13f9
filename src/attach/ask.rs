//! What is asked of whoever makes devices and mounts file systems, and how it answers: the whole of it, in words that can be
//! sent to a [`super::helper`].
//!
//! Everything is said of *exports*. Nobody who asks names a device, a process or a program, so that whoever asks without being root
//! reaches with it what this node serves, and nothing else of the host.

use super::{AttachError, AttachedDevice, Devices};
use crate::config::Filesystem;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// What is attached.
    All,
    /// Which exports are attached with an identity, and which.
    Identities,
    /// To make a device of an export; already so: that one.
    Attach {
        /// The export.
        export: String,
        /// What it is, if a later daemon may serve the device again.
        identity: Option<String>,
        /// Whether the device is read-only.
        read_only: bool,
    },
    /// To undo that.
    Detach {
        /// The export.
        export: String,
    },
    /// At the daemon's start: to undo all but the whole devices of these exports with these identities.
    Settle {
        /// Exports with their identities.
        stay: Vec<(String, String)>,
    },
    /// To take their identity from the devices of these exports.
    Disown {
        /// The exports.
        exports: Vec<String>,
    },
    /// At the daemon's end: to unmount and detach what nobody uses.
    Leave {
        /// Only what would not survive the daemon.
        for_a_while: bool,
    },
    /// Who uses the devices of these exports, or what is mounted of them.
    Users {
        /// The exports.
        exports: Vec<String>,
    },
    /// To end these processes, as far as they use the devices of these exports.
    End {
        /// The exports.
        exports: Vec<String>,
        /// Some of their users, as [`Ask::Users`] names them.
        users: Vec<String>,
    },
    /// What kind of file system is on a device.
    Probe {
        /// The export.
        export: String,
    },
    /// To make a file system on a device.
    Make {
        /// The export.
        export: String,
        /// Its kind.
        filesystem: Filesystem,
    },
    /// To check a device's file system and to mount it.
    Mount {
        /// The export.
        export: String,
        /// How.
        how: MountAsk,
    },
    /// To unmount and to detach a device.
    Unmount {
        /// The export.
        export: String,
        /// Whether folders that were made for the mount go too.
        undo: bool,
    },
    /// To sync what is mounted of a device.
    Sync {
        /// The export.
        export: String,
    },
}

/// How a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountAsk {
    /// Its kind.
    pub filesystem: Filesystem,
    /// Where.
    pub at: PathBuf,
    /// Without a check, which would write.
    pub read_only: bool,
    /// A full check.
    pub full_check: bool,
    /// A btrfs with a twin gets an id of its own.
    pub new_uuid: bool,
    /// The volume's own file or device, which is not its twin.
    pub backing: PathBuf,
}

/// What was found or made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// What is attached.
    Devices(Vec<AttachedDevice>),
    /// A device.
    Device(AttachedDevice),
    /// Exports with their identities.
    Identities(Vec<(String, String)>),
    /// Processes and other users.
    Users(Vec<String>),
    /// The kind of a file system, if one is known.
    Kind(Option<String>),
    /// It is mounted.
    Mounted {
        /// It was before.
        already: bool,
    },
    /// It is detached.
    Unmounted {
        /// Where it was mounted.
        at: Option<PathBuf>,
    },
}

/// What is told on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// A line of a program, or what could not be undone.
    Line(String),
    /// A check begins, with this command.
    Checking(String),
    /// A mount begins.
    Mounting(PathBuf),
    /// An unmount begins.
    Unmounting {
        /// The name of the device.
        device: PathBuf,
        /// Where it is mounted.
        at: PathBuf,
    },
}

impl Devices {
    /// Does what is asked; `told` hears what goes on.
    ///
    /// # Errors
    /// Those of the work.
    pub fn perform(&self, ask: Ask, told: &mut dyn FnMut(Told)) -> Result<Answer, AttachError> {
        Ok(match ask {
            Ask::All => Answer::Devices(self.all()),
            Ask::Identities => Answer::Identities(self.identities()),
            Ask::Attach {
                export,
                identity,
                read_only,
            } => Answer::Device(self.attach(&export, identity, read_only)?),
            Ask::Detach { export } => {
                self.detach(&export)?;
                Answer::Done
            }
            Ask::Settle { stay } => {
                self.settle(&stay)?;
                Answer::Done
            }
            Ask::Disown { exports } => {
                self.disown(&exports);
                Answer::Done
            }
            Ask::Leave { for_a_while } => {
                self.leave(for_a_while);
                Answer::Done
            }
            Ask::Users { exports } => Answer::Users(self.users(&exports)),
            Ask::End { exports, users } => {
                self.end(&exports, &users);
                Answer::Done
            }
            Ask::Probe { export } => Answer::Kind(self.probe(&export)?),
            Ask::Make { export, filesystem } => {
                self.make(&export, filesystem)?;
                Answer::Done
            }
            Ask::Mount { export, how } => Answer::Mounted {
                already: self.mount(&export, &how, told)?,
            },
            Ask::Unmount { export, undo } => Answer::Unmounted {
                at: self.unmount(&export, undo, told)?,
            },
            Ask::Sync { export } => {
                self.sync(&export)?;
                Answer::Done
            }
        })
    }
}
