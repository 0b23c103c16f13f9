//! Block devices made of exports: their names, and what is written down of them.

use super::{
    AttachError, Fuse, Keepers, Kernel, Line, Method, Place,
    mount::{Stage, unmount, unmount_lazily},
    mounts,
    point::{Made, passable},
    turns::{Turn, Turns},
};
use crate::config::{AttachConfig, AttachMethod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

/// Most devices of one who is not trusted with the host.
const DEVICES_MAX: usize = 256;
/// How long somebody may wait for whoever works on a device.
const TURN_WITHIN: Duration = Duration::from_secs(30);

/// Makes block devices of a node's exports, in this very process.
#[derive(Debug)]
pub struct Devices {
    method: AttachMethod,
    dev_root: PathBuf,
    records: PathBuf,
    keepers: Keepers,
    patience: Duration,
    pub(super) wary_of: Option<Asker>,
    /// Whoever works on a device has its turn: a number that was looked at is nobody else's until the work is done.
    turns: Turns,
    /// Held while what an earlier daemon left is undone.
    settling: Mutex<()>,
    /// Held while a device is made: two of them must not choose the same number.
    choosing: Mutex<()>,
    /// Held while a record is read and written again, and while names are made and removed.
    noting: Mutex<()>,
    /// Held while something that was mounted gets its place.
    pub(super) placing: Mutex<()>,
}

/// Who asks, if that is not this process's own user: then nothing that is attached or mounted gives anybody privileges.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The user.
    pub user: u32,
    /// Folders below which is mounted for him.
    pub ground: Vec<PathBuf>,
    /// Users whose processes are ended for him.
    pub may_end: Vec<u32>,
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
    /// Where it is mounted, or was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<PathBuf>,
    /// When it was made, in nanoseconds since 1970: another device of the same export has another one.
    #[serde(default)]
    born: u64,
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
    /// The device, if there was one, and whether it is still of this place: its number alone may be somebody else's by now. What is
    /// mounted of a device keeps its number, whatever became of its keeper; nothing is mounted of one that is somebody else's.
    fn attached(self, place: &Place) -> Option<(AttachedDevice, bool)> {
        let device = self.device?;
        let mounted = mounts::of(&device);
        let is_where_it_was = self.at.is_some_and(|at| mounted.contains(&at));
        let is_ours = is_where_it_was || self.how.method().remains(place).contains(&device);
        let stage = place.file("stage");
        let mut mounted = mounted.into_iter().filter(|at| is_ours && *at != stage);
        let attached = AttachedDevice {
            mounted: mounted.next(),
            export: self.export,
            name: self.name,
            device,
        };
        Some((attached, is_ours))
    }
}

impl Devices {
    /// Devices of the exports behind `nbd_socket`, with their records in `folder`.
    #[must_use]
    pub fn new(config: &AttachConfig, folder: &Path, nbd_socket: PathBuf) -> Self {
        // The kernel tells of files and mounts by paths without links.
        let parent = folder.parent().and_then(|parent| fs::canonicalize(parent).ok());
        let records = parent
            .zip(folder.file_name())
            .map(|(parent, name)| parent.join(name));
        Self {
            method: config.method,
            dev_root: config.dev_root.clone(),
            records: records.unwrap_or_else(|| folder.to_owned()),
            keepers: Keepers::new(nbd_socket),
            patience: config.patience.0,
            wary_of: None,
            turns: Turns::default(),
            settling: Mutex::default(),
            choosing: Mutex::default(),
            noting: Mutex::default(),
            placing: Mutex::default(),
        }
    }

    fn place(&self, export: &str) -> Place {
        Place::new(self.records.join(place_name(export)))
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

    /// What is attached of `export` now, and is ours.
    #[must_use]
    pub fn find(&self, export: &str) -> Option<AttachedDevice> {
        let place = self.place(export);
        let record = Self::read(&place).filter(|record| record.export == export);
        let (attached, is_ours) = record?.attached(&place)?;
        is_ours.then_some(attached)
    }

    /// The same for somebody else, who has no privileges.
    #[must_use]
    pub fn wary_of(mut self, asker: Asker) -> Self {
        self.keepers.server = Some(asker.user);
        self.wary_of = Some(asker);
        self
    }

    /// Waits until nobody else works on the device of an export.
    ///
    /// # Errors
    /// [`AttachError::Busy`] when somebody does for long: a check of a large file system takes its time.
    pub(super) fn turn(&self, export: &str) -> Result<Turn<'_>, AttachError> {
        let turn = self.turns.take(&place_name(export), TURN_WITHIN);
        turn.ok_or_else(|| AttachError::Busy {
            path: self.dev_root.join(export),
            holders: vec!["another command that checks, mounts or unmounts it".to_owned()],
        })
    }

    /// A device that stays what it is while this is held: its number is nobody else's as long as somebody has it open.
    pub(super) fn hold(&self, export: &str) -> Result<(AttachedDevice, File), AttachError> {
        let attached = self.need(export)?;
        let open = File::open(&attached.device).map_err(AttachError::io(attached.device.display()))?;
        let again = self.need(export)?;
        match again.device == attached.device {
            true => Ok((again, open)),
            false => Err(AttachError::NotAttached(export.to_owned())),
        }
    }

    /// Where the device of an export is mounted before it has its place.
    pub(super) fn stage(&self, export: &str) -> Stage {
        Stage::new(self.place(export).file("stage"))
    }

    /// Changes a device's record, if it has one.
    fn note(&self, place: &Place, change: impl FnOnce(&mut Record)) -> Result<(), AttachError> {
        let _noting = self.noting.lock();
        let Some(before) = Self::read(place) else {
            return Ok(());
        };
        let mut record = before.clone();
        change(&mut record);
        if record == before {
            return Ok(());
        }
        self.write(place, &record)
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

    /// Writes down where a device is to be mounted, and which folders were made for that.
    pub(super) fn note_mount(&self, export: &str, at: &Path, made: &Made) -> Result<(), AttachError> {
        self.note(&self.place(export), |record| {
            record.at = Some(at.to_owned());
            record.made.clone_from(&made.0);
        })
    }

    /// Which folders were made for a device's mount.
    pub(super) fn made_for(&self, export: &str) -> Made {
        Made(Self::read(&self.place(export)).map_or_else(Vec::new, |record| record.made))
    }

    /// Everything that is attached, whole or not.
    #[must_use]
    pub fn all(&self) -> Vec<AttachedDevice> {
        let places = self.places().into_iter();
        let attached = places.filter_map(|p| Self::read(&p)?.attached(&p));
        let mut all: Vec<_> = attached.map(|(attached, _)| attached).collect();
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
        let _turn = self.turn(export)?;
        let place = self.place(export);
        if let Some(record) = Self::read(&place) {
            if record.export != export {
                let text = format!(
                    "{export} and {}, which is attached, have records of one name",
                    record.export
                );
                return Err(AttachError::Told(text));
            }
            let whole = record.how.method().device(&place);
            let is_whole = whole.is_some() && whole == record.device;
            if is_whole && let Some((attached, _)) = record.attached(&place) {
                return Ok(attached);
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
        let record = Record {
            export: export.to_owned(),
            identity,
            name: self.dev_root.join(export),
            how,
            device: None,
            made: Vec::new(),
            at: None,
            born: model::Timestamp::now().0,
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
        let choosing = self.choosing.lock();
        let made = how.method().attach(&place, &line);
        drop(choosing);
        let made = made.and_then(|device| {
            self.note(&place, |record| record.device = Some(device.clone()))?;
            let noting = self.noting.lock();
            link(&device, &record.name)?;
            drop(noting);
            self.need(export)
        });
        if made.is_err() {
            self.destroy(&place);
        }
        made
    }

    /// Undoes [`Devices::attach`].
    ///
    /// # Errors
    /// When somebody uses it, or a step fails; the record then stays, so the same call goes on.
    pub fn detach(&self, export: &str) -> Result<(), AttachError> {
        let _turn = self.turn(export)?;
        self.detach_in_turn(export)
    }

    pub(super) fn detach_in_turn(&self, export: &str) -> Result<(), AttachError> {
        let place = self.place(export);
        let Some(record) = Self::read(&place).filter(|record| record.export == export) else {
            return Ok(());
        };
        record.how.method().detach(&place)?;
        self.forget(&place, Some(&record))
    }

    /// Where the devices of a place are mounted that are ours.
    fn mounted(place: &Place, record: Option<&Record>) -> BTreeSet<PathBuf> {
        let method = Self::method_of(place, record);
        let known = record.and_then(|record| record.clone().attached(place));
        let known = known
            .filter(|(_, is_ours)| *is_ours)
            .map(|(known, _)| known.device);
        let devices: BTreeSet<_> = method.remains(place).into_iter().chain(known).collect();
        devices.iter().flat_map(|device| mounts::of(device)).collect()
    }

    /// How a device was made; of a record that another version wrote that is told by what lies beside it.
    fn method_of(place: &Place, record: Option<&Record>) -> Box<dyn Method> {
        let how = record.map(|record| record.how);
        let how = how.unwrap_or(if place.file("nbd").exists() {
            How::Nbd
        } else {
            How::Fuse
        });
        how.method()
    }

    /// Undoes whatever there is at a place, however far it came; the caller has its turn.
    fn destroy(&self, place: &Place) {
        let mounted = Self::mounted(place, Self::read(place).as_ref());
        self.destroy_with(place, mounted);
    }

    fn destroy_with(&self, place: &Place, mounted: BTreeSet<PathBuf>) {
        let record = Self::read(place);
        let method = Self::method_of(place, record.as_ref());
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
        let _noting = self.noting.lock();
        if let Some(record) = record {
            let _ = fs::remove_file(&record.name);
            let mut parent = record.name.parent();
            while let Some(folder) = parent.filter(|p| *p != self.dev_root && fs::remove_dir(p).is_ok()) {
                parent = folder.parent();
            }
        }
        let _ = fs::remove_dir(place.file("stage"));
        let path = place.file("json");
        fs::remove_file(&path).map_err(AttachError::io(path.display()))
    }

    /// Undoes what an earlier daemon left, but for whole devices of exports that `stay` under the same identity.
    ///
    /// # Errors
    /// [`AttachError::Busy`] when somebody works on one of them for long; the same call goes on.
    pub fn settle(&self, stay: &[(String, String)]) -> Result<(), AttachError> {
        let _settling = self.settling.lock();
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
                record => leftovers.push((record, place)),
            }
        }
        let depth_of = |(record, place): &(Option<Record>, Place)| {
            let attached = record.clone().and_then(|record| record.attached(place));
            attached.map(|(attached, _)| depth(&attached))
        };
        leftovers.sort_by_cached_key(|leftover| std::cmp::Reverse(depth_of(leftover)));
        for (judged, place) in leftovers {
            let born = |record: Option<&Record>| record.map(|record| record.born);
            let is_another = || born(Self::read(&place).as_ref()) != born(judged.as_ref());
            if is_another() {
                continue;
            }
            tracing::warn!(device = %place.stem().display(), "left over from an earlier run, undone");
            let mounted = Self::mounted(&place, judged.as_ref());
            // Who still works on it waits for what is not answered any more: he gets an error, and then it is our turn.
            Self::method_of(&place, judged.as_ref()).cut(&place);
            let name = place.stem().file_name().unwrap_or_default();
            let _turn = self.turn(&name.to_string_lossy())?;
            if !is_another() {
                self.destroy_with(&place, mounted);
            }
        }
        Ok(())
    }

    /// Takes their identity from the devices of these exports: they end with the daemon.
    pub fn disown(&self, exports: &[String]) {
        for place in self.places() {
            let Some(record) = Self::read(&place).filter(|r| exports.contains(&r.export)) else {
                continue;
            };
            if record.identity.is_none() {
                continue;
            }
            tracing::warn!(device = %record.name.display(), "ends with this daemon");
            if let Err(e) = self.note(&place, |record| record.identity = None) {
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
        let goes = goes.filter_map(|(r, p)| r.attached(&p));
        let mut goes: Vec<_> = goes.map(|(attached, _)| attached).collect();
        goes.sort_by_key(|a| std::cmp::Reverse(depth(a)));
        for attached in goes {
            let gone = self.turn(&attached.export).and_then(|_turn| {
                // It may have been mounted meanwhile.
                let now = self.find(&attached.export);
                let at = now
                    .as_ref()
                    .and_then(|now| Some((now.mounted.as_ref()?, &now.device)));
                at.map_or(Ok(()), |(at, device)| unmount(at, device))?;
                self.detach_in_turn(&attached.export)
            });
            if let Err(e) = gone {
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

/// What a device's records are called.
fn place_name(export: &str) -> String {
    export.replace('/', ".")
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
