//! A stopped node's state directory, opened to be read alone.

use super::{Done, failed, refused};
use crate::{
    config::{ContextConfig, NodeConfig},
    format,
    withheld::Withholding,
};
use cli::StatePlace;
use control::{Code, Failure, PointInfo};
use journal::{Damage, Journal, JournalError, Opened, Options, Parts};
use media::FileMedium;
use model::{Point, VolumeIndex};
use rustix::fs::FlockOperation;
use snapshot::Volumes;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One context of a stopped node.
pub struct Stopped {
    /// The state directory.
    pub state: PathBuf,
    /// Primary id.
    pub id: u32,
    /// The context's file; `None` where it is gone or cannot be read, with the reason.
    config: Result<ContextConfig, String>,
    /// The node's name, where its file says it.
    name: Option<String>,
    /// Kept for as long as the directory is read.
    _lock: Option<File>,
}

impl Stopped {
    /// Takes the lock of a node's state directory and finds the context.
    ///
    /// # Errors
    /// When a daemon runs on it (75), its format is not known, or there is no such context.
    pub fn open(place: &StatePlace, id: u32) -> Done<Self> {
        let (state, name) = match place {
            StatePlace::Config(file) => {
                let config = NodeConfig::load(file).map_err(|e| Failure::from_error(Code::Refused, &e))?;
                (config.state_dir, Some(config.name))
            }
            StatePlace::Folder(state) => (state.clone(), kept_name(state)),
        };
        std::fs::read_dir(&state).map_err(failed(state.display()))?;
        let lock = lock(&state)?;
        let (id, config) = find(&state, id)?;
        Ok(Self {
            state,
            id,
            config,
            name,
            _lock: lock,
        })
    }

    /// The folder of the context.
    pub fn folder(&self) -> PathBuf {
        self.state.join(format!("c{}", self.id))
    }

    /// The folder of its journal.
    pub fn journal_dir(&self) -> PathBuf {
        self.folder().join("journal")
    }

    /// How its journal is kept, as far as its file says so.
    pub fn options(&self) -> Options {
        let size = self.config.as_ref().map(|c| c.lfc_size.0);
        let defaults = Options::default();
        Options {
            lfc_size: size.unwrap_or(defaults.lfc_size),
            lfc_max_age_ns: None,
            ..defaults
        }
    }

    /// Its file.
    pub fn config(&self) -> Done<&ContextConfig> {
        self.config.as_ref().map_err(|why| {
            let hint = "put the context's file back; the other host has the same one";
            Box::new(Failure::new(Code::Refused, why.clone()).with_hint(hint))
        })
    }

    /// Checks the format of the folders, as a start does.
    pub fn check_formats(&self) -> Done<()> {
        for folder in [self.state.clone(), self.folder()] {
            format::check(&folder).map_err(|e| Failure::from_error(Code::Refused, &e))?;
        }
        Ok(())
    }

    /// Its journal as a start would have it; with `best_effort` also where a start would refuse, and why it would.
    pub fn journal(&self, best_effort: bool) -> Done<(Arc<Journal>, Option<Damage>)> {
        self.check_formats()?;
        let dir = self.journal_dir();
        if !dir.join("super").exists() && !dir.join("db").exists() {
            return Err(refused(format!("{}: there is no journal", dir.display())));
        }
        let options = self.options();
        let parts = Parts::open_shadow(&dir, options.lfc_size).map_err(|e| self.unreadable(&e))?;
        let options = Options {
            accept_damage: best_effort,
            ..options
        };
        let (journal, opened) = Journal::open(parts, options).map_err(|e| self.unreadable(&e))?;
        let damage = match opened {
            Opened::Damaged(damage) => Some(damage),
            _ => None,
        };
        Ok((Arc::new(journal), damage))
    }

    fn unreadable(&self, error: &JournalError) -> Box<Failure> {
        let failure = Failure::new(
            Code::Refused,
            format!("{}: {error}", self.journal_dir().display()),
        );
        Box::new(failure.with_hint(format!(
            "{} names all that is damaged; --best-effort goes on where that is possible",
            self.command("fsck-journal")
        )))
    }

    /// A command line for this context.
    pub fn command(&self, command: &str) -> String {
        format!(
            "backstay {command} -C {} --state {}",
            self.id,
            self.state.display()
        )
    }

    /// These of its volumes, each to be read alone: one that is gone keeps no other from being rebuilt.
    pub fn volumes(&self, journal: &Arc<Journal>, wanted: &[VolumeIndex]) -> Done<Volumes> {
        let config = self.config()?;
        let mut volumes = Volumes::new();
        for (index, volume) in config.indexed().filter(|(index, _)| wanted.contains(index)) {
            let path = self.backing(index)?;
            let medium = FileMedium::open_read_only(&path).map_err(|e| {
                let hint = "a volume is rebuilt from what this host has of it and its journal: put its file or device back";
                let text = format!("volume {}: {e}", volume.name);
                Box::new(Failure::new(Code::Refused, text).with_hint(hint))
            })?;
            let medium = Withholding::new(Arc::new(medium), index, &volume.name, journal);
            volumes
                .insert(index, volume.name.clone(), Arc::new(medium), volume.size.0)
                .map_err(|e| Failure::from_error(Code::Refused, &e))?;
        }
        Ok(volumes)
    }

    fn backing(&self, index: VolumeIndex) -> Done<PathBuf> {
        let config = self.config()?;
        let (_, volume) = config
            .indexed()
            .find(|(i, _)| *i == index)
            .ok_or_else(|| refused("there is no such volume"))?;
        if volume.backing.is_empty() {
            // Wherever the node is called so, the place is the same.
            return Ok(volume.backing_on("", &self.state, self.id));
        }
        let name = self.name.as_ref().ok_or_else(|| {
            let text = format!(
                "which node is this? volume {} has a place of its own on {}",
                volume.name,
                volume.backing.keys().cloned().collect::<Vec<_>>().join(", ")
            );
            Box::new(
                Failure::new(Code::Usage, text).with_hint("--config FILE or --node NAME instead of --state"),
            )
        })?;
        Ok(volume.backing_on(name, &self.state, self.id))
    }

    /// A point as commands show it.
    pub fn point_info(&self, journal: &Journal, point: &Point, target: Option<String>) -> PointInfo {
        let mut info = PointInfo::new(point.generation.0, point.seq, point.lfc, point.time);
        info.target = target;
        let marks = journal.marks();
        let here = marks
            .iter()
            .find(|m| m.generation == point.generation && m.seq == point.seq);
        info.mark = here.map(|m| m.name.clone());
        info
    }
}

/// The name that the node itself wrote down.
fn kept_name(state: &Path) -> Option<String> {
    let status = format::status_from(&crate::node::status_file(state))
        .ok()
        .flatten()?;
    Some(status.host)
}

/// The lock of a state directory; a copy may be without one.
fn lock(state: &Path) -> Done<Option<File>> {
    let path = state.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(path.display())(e)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = std::fs::read_to_string(state.join("pid")).unwrap_or_default();
            let text = format!("a daemon runs on {} (pid {})", state.display(), pid.trim());
            let hint = "these tools read a stopped node: stop its daemon first, or copy the folder while it is stopped";
            let mut failure = Failure::new(Code::NotNow, text).with_hint(hint);
            failure.holders = vec![format!("backstay serve (pid {})", pid.trim())];
            Err(Box::new(failure))
        }
        Err(e) => Err(failed(path.display())(e.into())),
    }
}

/// A context by either id: its primary id, and its file as far as that can be read.
fn find(state: &Path, id: u32) -> Done<(u32, Result<ContextConfig, String>)> {
    let folder = state.join("contexts");
    let path = folder.join(format!("{id}.toml"));
    if path.exists() {
        return Ok((id, ContextConfig::load(&path).map_err(|e| e.to_string())));
    }
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let files = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"));
    let mut configs = files.filter_map(|path| ContextConfig::load(&path).ok());
    if let Some(config) = configs.find(|config| config.failover_id == id) {
        return Ok((config.id, Ok(config)));
    }
    if state.join(format!("c{id}")).is_dir() {
        return Ok((id, Err(format!("{} is gone", path.display()))));
    }
    let text = format!("{} has no context {id}", state.display());
    Err(Box::new(Failure::new(Code::Refused, text)))
}
