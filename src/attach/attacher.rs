//! The daemon's hand: what it asks of devices and mounts, done in this process or by a [`helper`].

use super::{
    Answer, Ask, AttachError, AttachedDevice, Devices, MountAsk, Told,
    helper::{self, HelperError},
};
use crate::config::{AttachConfig, AttachMethod, Filesystem};
use rustix::process::geteuid;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Makes block devices of this node's exports, and mounts what is on them.
#[derive(Debug)]
pub struct Attacher {
    enabled: bool,
    dev_root: PathBuf,
    hand: Hand,
}

#[derive(Debug)]
enum Hand {
    Here(Devices),
    Helper {
        socket: PathBuf,
        /// Whether what an earlier daemon left is looked after: before that nothing is changed.
        settled: AtomicBool,
    },
}

/// Nobody listens.
fn unheard(_: Told) {}

impl Attacher {
    /// An attacher for the exports behind `nbd_socket`, with its records under `state_dir`.
    #[must_use]
    pub fn new(config: &AttachConfig, state_dir: &Path, nbd_socket: PathBuf) -> Self {
        let hand = match &config.helper {
            Some(socket) => Hand::Helper {
                socket: socket.clone(),
                settled: AtomicBool::new(false),
            },
            None => Hand::Here(Devices::new(config, &state_dir.join("attach"), nbd_socket)),
        };
        Self {
            enabled: config.method != AttachMethod::None,
            dev_root: config.dev_root.clone(),
            hand,
        }
    }

    /// The name that a device gets, `/dev/backstay/c1/testlv`.
    #[must_use]
    pub fn name_of(&self, device: &str) -> PathBuf {
        self.dev_root.join(device)
    }

    /// Whether devices can be made at all.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    fn ask(&self, ask: Ask, told: &mut dyn FnMut(Told)) -> Result<Answer, AttachError> {
        match &self.hand {
            Hand::Here(devices) => devices.perform(ask, told),
            Hand::Helper { .. } if !self.enabled => self.ask_nobody(&ask),
            Hand::Helper { socket, settled } => {
                let is_change = !matches!(
                    ask,
                    Ask::All | Ask::Identities | Ask::Disown { .. } | Ask::Settle { .. }
                );
                if is_change && !settled.load(Ordering::Acquire) {
                    return Err(HelperError::Unsettled(geteuid().as_raw()).at(socket));
                }
                helper::ask(socket, &ask, told)
            }
        }
    }

    /// Where nothing is ever attached.
    fn ask_nobody(&self, ask: &Ask) -> Result<Answer, AttachError> {
        match ask {
            Ask::All => Ok(Answer::Devices(Vec::new())),
            Ask::Identities => Ok(Answer::Identities(Vec::new())),
            Ask::Users { .. } => Ok(Answer::Users(Vec::new())),
            Ask::Settle { .. } | Ask::Disown { .. } | Ask::Leave { .. } => Ok(Answer::Done),
            _ => Err(AttachError::Disabled),
        }
    }

    /// As [`Attacher::ask`], of something whose answer is only that it is done.
    fn done(&self, ask: Ask) -> Result<(), AttachError> {
        match self.ask(ask, &mut unheard)? {
            Answer::Done => Ok(()),
            other => Err(self.nonsense(&other)),
        }
    }

    fn nonsense(&self, answer: &Answer) -> AttachError {
        let socket = match &self.hand {
            Hand::Here(_) => PathBuf::new(),
            Hand::Helper { socket, .. } => socket.clone(),
        };
        HelperError::Nonsense(format!("{answer:?}")).at(&socket)
    }

    /// Everything that is attached.
    ///
    /// # Errors
    /// When the helper cannot be asked: then nobody knows.
    pub fn all(&self) -> Result<Vec<AttachedDevice>, AttachError> {
        match self.ask(Ask::All, &mut unheard)? {
            Answer::Devices(devices) => Ok(devices),
            other => Err(self.nonsense(&other)),
        }
    }

    /// What is attached under `device` now.
    ///
    /// # Errors
    /// As [`Attacher::all`].
    pub fn find(&self, device: &str) -> Result<Option<AttachedDevice>, AttachError> {
        Ok(self.all()?.into_iter().find(|a| a.export == device))
    }

    /// Makes a device of `export` under the same name; already so: answers it. With an `identity` it waits for a daemon that is
    /// away, and a later one serves it again as long as the export has the same ([`Attacher::settle`]).
    ///
    /// # Errors
    /// When a step fails; the steps before it are undone.
    pub fn attach(
        &self,
        export: &str,
        identity: Option<String>,
        read_only: bool,
    ) -> Result<AttachedDevice, AttachError> {
        let ask = Ask::Attach {
            export: export.to_owned(),
            identity,
            read_only,
        };
        match self.ask(ask, &mut unheard)? {
            Answer::Device(device) => Ok(device),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Undoes [`Attacher::attach`].
    ///
    /// # Errors
    /// When somebody uses it, or a step fails; the record then stays, so the same call goes on.
    pub fn detach(&self, export: &str) -> Result<(), AttachError> {
        self.done(Ask::Detach {
            export: export.to_owned(),
        })
    }

    /// What becomes of what an earlier daemon left: a whole device whose export `serves` under the same identity stays, mounted
    /// as it is, and its requests are answered again once exports are served. All else is undone: what it stood on is gone, or
    /// is not what it was.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn settle(&self, serves: impl Fn(&str, &str) -> bool) -> Result<(), AttachError> {
        let mut stay = self.identities()?;
        stay.retain(|(export, identity)| serves(export, identity));
        self.done(Ask::Settle { stay })?;
        if let Hand::Helper { settled, .. } = &self.hand {
            settled.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether somebody else does what is asked, who may be away.
    #[must_use]
    pub fn has_helper(&self) -> bool {
        matches!(self.hand, Hand::Helper { .. })
    }

    /// Takes their identity from devices of which `holds` does not confirm it: they end with this daemon.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn disown(&self, holds: impl Fn(&str, &str) -> bool) -> Result<(), AttachError> {
        let mut lost = self.identities()?;
        lost.retain(|(export, identity)| !holds(export, identity));
        if lost.is_empty() {
            return Ok(());
        }
        let exports = lost.into_iter().map(|(export, _)| export).collect();
        self.done(Ask::Disown { exports })
    }

    fn identities(&self) -> Result<Vec<(String, String)>, AttachError> {
        match self.ask(Ask::Identities, &mut unheard)? {
            Answer::Identities(identities) => Ok(identities),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Unmounts and detaches, at the daemon's end, as far as nobody uses it; with `for_a_while`, only what would not survive.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn leave(&self, for_a_while: bool) -> Result<(), AttachError> {
        self.done(Ask::Leave { for_a_while })
    }

    /// Who uses the devices of these exports, or what is mounted of them: processes as `pid command`, and others.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn users(&self, exports: Vec<String>) -> Result<Vec<String>, AttachError> {
        match self.ask(Ask::Users { exports }, &mut unheard)? {
            Answer::Users(users) => Ok(users),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Ends `users`, as far as they still use the devices of these exports.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn end(&self, exports: Vec<String>, users: Vec<String>) -> Result<(), AttachError> {
        self.done(Ask::End { exports, users })
    }

    /// The kind of file system on a device, if one is known.
    ///
    /// # Errors
    /// When it is not attached, or the program cannot be started.
    pub fn probe(&self, export: &str) -> Result<Option<String>, AttachError> {
        let export = export.to_owned();
        match self.ask(Ask::Probe { export }, &mut unheard)? {
            Answer::Kind(kind) => Ok(kind),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Makes a new file system on a device.
    ///
    /// # Errors
    /// When it is not attached, or the program fails.
    pub fn make(&self, export: &str, filesystem: Filesystem) -> Result<(), AttachError> {
        let export = export.to_owned();
        self.done(Ask::Make { export, filesystem })
    }

    /// Checks what is on a device and mounts it; whether it was mounted there already.
    ///
    /// # Errors
    /// [`AttachError::At`] with the step; what was done is undone then, unless the error says otherwise.
    pub fn mount(
        &self,
        export: &str,
        how: MountAsk,
        told: &mut dyn FnMut(Told),
    ) -> Result<bool, AttachError> {
        let export = export.to_owned();
        match self.ask(Ask::Mount { export, how }, told)? {
            Answer::Mounted { already } => Ok(already),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Unmounts and detaches a device; not attached: nothing to do. Answers where it was mounted. With `undo` the folders go
    /// that were made for the mount.
    ///
    /// # Errors
    /// When somebody uses it, or a step fails; the same call then goes on.
    pub fn unmount(
        &self,
        export: &str,
        undo: bool,
        told: &mut dyn FnMut(Told),
    ) -> Result<Option<PathBuf>, AttachError> {
        let export = export.to_owned();
        match self.ask(Ask::Unmount { export, undo }, told)? {
            Answer::Unmounted { at } => Ok(at),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Syncs the file system mounted of a device, so that what was written to it before is in the device.
    ///
    /// # Errors
    /// When the sync fails.
    pub fn sync(&self, export: &str) -> Result<(), AttachError> {
        self.done(Ask::Sync {
            export: export.to_owned(),
        })
    }
}
