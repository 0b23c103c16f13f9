//! Block devices made of exports: their names, and what is written down of them.

use super::{
    AttachError, Fuse, Keepers, Kernel, Line, Method, Place,
    mount::{passable, unmount, unmount_lazily},
    mounts,
};
use crate::config::{AttachConfig, AttachMethod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Most devices of one who is not trusted with the host.
const DEVICES_MAX: usize = 256;

/// Makes block devices of a node's exports, in this very process.
#[derive(Debug)]
pub struct Devices {
    method: AttachMethod,
    dev_root: PathBuf,
    records: PathBuf,
    keepers: Keepers,
    patience: Duration,
    /// The user that asks, if that is not this process's own: then nothing that is attached or mounted gives anybody privileges.
    pub(super) wary_of: Option<u32>,
    /// Held while a device is made or undone: two of them must not choose the same number.
    changing: Mutex<()>,
}

/// A device that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedDevice {
    /// The export behind it.
    pub export: String,
    /// Its name under `dev_root`.
    pub name: PathBuf,
    /// The block device.
    pub device: PathBuf,
    /// Where its file system is mounted, if it is.
    pub mounted: Option<PathBuf>,
}

/// What is on disk of a device, from before it is made until it is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    export: String,
    /// What the export was when the device was made, if it survives a restart of the daemon ([`Devices::settle`]).
    identity: Option<String>,
    name: PathBuf,
    how: How,
    /// Once it is made.
    device: Option<PathBuf>,
    /// Folders that were made for its mount, the deepest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    made: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Nbd,
    Fuse,
}

impl How {
    fn method(self) -> Box<dyn Method> {
        match self {
            Self::Nbd => Box::new(Kernel::default()),
            Self::Fuse => Box::new(Fuse),
        }
    }
}

impl Record {
    /// The device, if it is still of this place: its number alone may be somebody else's by now.
    fn attached(self, place: &Place) -> Option<AttachedDevice> {
        let device = self.device?;
        if !self.how.method().remains(place).contains(&device) {
            return None;
        }
        Some(AttachedDevice {
            mounted: mounts::of(&device).into_iter().next(),
            export: self.export,
            name: self.name,
            device,
        })
    }
}

impl Devices {
    /// Devices of the exports behind `nbd_socket`, with their records in the folder `records`.
    #[must_use]
    pub fn new(config: &AttachConfig, records: &Path, nbd_socket: PathBuf) -> Self {
        Self {
            method: config.method,
            dev_root: config.dev_root.clone(),
            records: records.to_owned(),
            keepers: Keepers::new(nbd_socket),
            patience: config.patience.0,
            wary_of: None,
            changing: Mutex::default(),
        }
    }

    fn place(&self, device: &str) -> Place {
        Place::new(self.records.join(device.replace('/', ".")))
    }

    fn read(place: &Place) -> Option<Record> {
        serde_json::from_slice(&fs::read(place.file("json")).ok()?).ok()
    }

    fn write(&self, place: &Place, record: &Record) -> Result<(), AttachError> {
        fs::create_dir_all(&self.records).map_err(AttachError::io(self.records.display()))?;
        let path = place.file("json");
        let text = serde_json::to_vec_pretty(record).expect("a record is plain JSON");
        media::replace_file(&path, &text, 0o600).map_err(AttachError::io(path.display()))
    }

    /// What is attached under `device` now.
    #[must_use]
    pub fn find(&self, device: &str) -> Option<AttachedDevice> {
        let place = self.place(device);
        Self::read(&place)?.attached(&place)
    }

    /// The same for somebody else, who is this user and has no privileges.
    #[must_use]
    pub fn wary_of(mut self, user: u32) -> Self {
        self.wary_of = Some(user);
        self.keepers.server = Some(user);
        self
    }

    /// What is attached under `device`.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`].
    pub(super) fn need(&self, device: &str) -> Result<AttachedDevice, AttachError> {
        self.find(device)
            .ok_or_else(|| AttachError::NotAttached(device.to_owned()))
    }

    /// Exports that are attached with an identity, and which.
    #[must_use]
    pub fn identities(&self) -> Vec<(String, String)> {
        let records = self.places().into_iter().filter_map(|p| Self::read(&p));
        records.filter_map(|r| Some((r.export, r.identity?))).collect()
    }

    /// Writes down which folders were made for a device's mount.
    pub(super) fn note_made(&self, device: &str, made: Vec<PathBuf>) -> Result<(), AttachError> {
        let _changing = self.changing.lock();
        let place = self.place(device);
        match Self::read(&place) {
            Some(record) if record.made != made => self.write(&place, &Record { made, ..record }),
            _ => Ok(()),
        }
    }

    /// Which folders were made for a device's mount, the deepest first.
    pub(super) fn made_for(&self, device: &str) -> Vec<PathBuf> {
        Self::read(&self.place(device)).map_or_else(Vec::new, |record| record.made)
    }

    /// Everything that is attached.
    #[must_use]
    pub fn all(&self) -> Vec<AttachedDevice> {
        let places = self.places().into_iter();
        let mut all: Vec<_> = places.filter_map(|p| Self::read(&p)?.attached(&p)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// All places that have a record, readable or not.
    fn places(&self) -> Vec<Place> {
        let records = fs::read_dir(&self.records).into_iter().flatten().flatten();
        let paths = records.map(|e| e.path());
        let paths = paths.filter(|p| p.extension().is_some_and(|e| e == "json"));
        paths.map(|p| Place::new(p.with_extension(""))).collect()
    }

    fn how(&self) -> Result<How, AttachError> {
        match self.method {
            AttachMethod::None => Err(AttachError::Disabled),
            AttachMethod::Nbd => Ok(How::Nbd),
            AttachMethod::Auto if Kernel::is_there() => Ok(How::Nbd),
            AttachMethod::Auto | AttachMethod::Fuse => Ok(How::Fuse),
        }
    }

    /// Makes a device of `export` under the same name; already so: answers it. With an `identity` it waits for a daemon that is
    /// away, and a later one serves it again as long as the export has the same ([`Devices::settle`]).
    ///
    /// # Errors
    /// When a step fails; the steps before it are undone.
    pub fn attach(
        &self,
        export: &str,
        identity: Option<String>,
        read_only: bool,
    ) -> Result<AttachedDevice, AttachError> {
        let _changing = self.changing.lock();
        let place = self.place(export);
        if let Some(record) = Self::read(&place) {
            let whole = record.how.method().device(&place);
            if whole.is_some() && whole == record.device {
                return Ok(record.attached(&place).expect("it has a device"));
            }
            // Its keeper died, or a daemon in the middle of it.
            self.destroy(&place);
        }
        if self.wary_of.is_some() && self.places().len() >= DEVICES_MAX {
            return Err(AttachError::Refused(format!(
                "{DEVICES_MAX} devices are attached"
            )));
        }
        let how = self.how()?;
        let identity = identity.filter(|_| !self.patience.is_zero());
        let mut record = Record {
            export: export.to_owned(),
            identity,
            name: self.dev_root.join(export),
            how,
            device: None,
            made: Vec::new(),
        };
        self.write(&place, &record)?;
        let identity = record.identity.as_deref();
        let line = Line {
            keepers: &self.keepers,
            export: identity.map_or_else(|| export.to_owned(), |i| format!("{export}#{i}")),
            patience: if identity.is_some() {
                self.patience
            } else {
                Duration::ZERO
            },
            read_only,
        };
        let made = how.method().attach(&place, &line).and_then(|device| {
            record.device = Some(device.clone());
            self.write(&place, &record)?;
            link(&device, &record.name)
        });
        if let Err(e) = made {
            self.destroy(&place);
            return Err(e);
        }
        record
            .attached(&place)
            .ok_or_else(|| AttachError::NotAttached(export.to_owned()))
    }

    /// Undoes [`Devices::attach`].
    ///
    /// # Errors
    /// When somebody uses it, or a step fails; the record then stays, so the same call goes on.
    pub fn detach(&self, export: &str) -> Result<(), AttachError> {
        let _changing = self.changing.lock();
        let place = self.place(export);
        let Some(record) = Self::read(&place) else {
            return Ok(());
        };
        record.how.method().detach(&place)?;
        self.forget(&place, Some(&record))
    }

    /// Undoes whatever there is at a place, however far it came.
    fn destroy(&self, place: &Place) {
        let record = Self::read(place);
        // One that another version wrote is told by what lies beside it.
        let how = record.as_ref().map(|r| r.how);
        let how = how.unwrap_or(if place.file("nbd").exists() {
            How::Nbd
        } else {
            How::Fuse
        });
        let method = how.method();
        let mounted: Vec<_> = method.remains(place).iter().flat_map(|d| mounts::of(d)).collect();
        method.cut(place);
        for at in mounted {
            unmount_lazily(&at);
        }
        method.destroy(place);
        if let Err(e) = self.forget(place, record.as_ref()) {
            tracing::warn!("{e}");
        }
    }

    /// Removes name and record of what is undone.
    fn forget(&self, place: &Place, record: Option<&Record>) -> Result<(), AttachError> {
        if let Some(record) = record {
            let _ = fs::remove_file(&record.name);
            let mut parent = record.name.parent();
            while let Some(folder) = parent.filter(|p| *p != self.dev_root && fs::remove_dir(p).is_ok()) {
                parent = folder.parent();
            }
        }
        let path = place.file("json");
        fs::remove_file(&path).map_err(AttachError::io(path.display()))
    }

    /// Undoes what an earlier daemon left, but for whole devices of exports that `stay` under the same identity.
    pub fn settle(&self, stay: &[(String, String)]) {
        let _changing = self.changing.lock();
        let stays = |place: &Place, record: &Record| {
            let identity = record.identity.as_ref()?;
            let whole = record.how.method().device(place)?;
            let is_same = stay.iter().any(|(e, i)| *e == record.export && i == identity);
            (record.device.as_ref() == Some(&whole) && is_same).then_some(())
        };
        let mut leftovers = Vec::new();
        for place in self.places() {
            match Self::read(&place) {
                Some(record) if stays(&place, &record).is_some() => {
                    tracing::info!(device = %record.name.display(), "still attached");
                }
                record => leftovers.push((record.and_then(|r| r.attached(&place)), place)),
            }
        }
        leftovers.sort_by_key(|(attached, _)| std::cmp::Reverse(attached.as_ref().map(depth)));
        for (_, place) in leftovers {
            tracing::warn!(device = %place.stem().display(), "left over from an earlier run, undone");
            self.destroy(&place);
        }
    }

    /// Takes their identity from the devices of these exports: they end with the daemon.
    pub fn disown(&self, exports: &[String]) {
        let _changing = self.changing.lock();
        for place in self.places() {
            let Some(mut record) = Self::read(&place).filter(|r| exports.contains(&r.export)) else {
                continue;
            };
            if record.identity.take().is_none() {
                continue;
            }
            tracing::warn!(device = %record.name.display(), "ends with this daemon");
            if let Err(e) = self.write(&place, &record) {
                // What cannot be said durably is done at once.
                tracing::error!("{e}");
                record.how.method().cut(&place);
            }
        }
    }

    /// Unmounts and detaches, at the daemon's end, as far as nobody uses it; with `for_a_while`, only what would not survive.
    pub fn leave(&self, for_a_while: bool) {
        let records = self
            .places()
            .into_iter()
            .filter_map(|p| Some((Self::read(&p)?, p)));
        let goes = records.filter(|(r, _)| !(for_a_while && r.identity.is_some()));
        let mut goes: Vec<_> = goes.filter_map(|(r, p)| r.attached(&p)).collect();
        goes.sort_by_key(|a| std::cmp::Reverse(depth(a)));
        for attached in goes {
            let at = attached.mounted.as_ref();
            let unmounted = at.map_or(Ok(()), |at| unmount(at, &attached.device));
            if let Err(e) = unmounted.and_then(|()| self.detach(&attached.export)) {
                tracing::warn!(device = %attached.name.display(), "left attached: {e}");
            }
        }
    }
}

/// How deep in the tree of folders it is mounted: what is mounted in something else goes first.
#[must_use]
pub fn depth(attached: &AttachedDevice) -> usize {
    attached.mounted.as_ref().map_or(0, |m| m.components().count())
}

fn link(device: &Path, name: &Path) -> Result<(), AttachError> {
    if let Some(parent) = name.parent() {
        passable(parent)?;
    }
    if name.is_symlink() {
        fs::remove_file(name).map_err(AttachError::io(name.display()))?;
    }
    std::os::unix::fs::symlink(device, name).map_err(AttachError::io(name.display()))
}

/// The URI by which any NBD client reaches an export.
#[must_use]
pub fn nbd_uri(socket: &Path, export: &str) -> String {
    let escape = |text: &str, plain: &str| {
        text.bytes().fold(String::new(), |mut out, b| {
            if b.is_ascii_alphanumeric() || plain.as_bytes().contains(&b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
            out
        })
    };
    format!(
        "nbd+unix:///{}?socket={}",
        escape(export, "-_.~/:@"),
        escape(&socket.display().to_string(), "-_.~/")
    )
}
