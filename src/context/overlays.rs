//! The folder of a vdev's overlay, and when what is in it is made.
//!
//! # Overview
//!
//! Most snapshots are only read. A snapshot is taken with an empty folder for its overlay, which costs two syncs; the overlay's two
//! media (`docs/formats/overlay.md`) are made when its vdev is opened for the first time.
//!
//! # Crash consistency
//!
//! The folder alone says how far that came, so nobody takes an overlay that is gone for one that was never needed:
//!
//! | in the folder | what it is |
//! | --- | --- |
//! | nothing, or `log.partial` with or without `data` | no vdev was opened: it is made, from the beginning |
//! | `data` and `log` | an overlay |
//! | one of them alone, or no folder | lost: somebody may have written to it |
//!
//! `log.partial` is there before `data`, and gets its name when both are durable; nobody is served before that.
//!
//! # What it does not do
//!
//! It does not know whose overlay it is: its `id` ties it to the snapshot.

use super::ContextError;
use media::{Create, FileMedium};
use model::{BLOCK_SIZE, ports::Medium};
use snapshot::Overlay;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A folder for one overlay.
pub struct OverlayFolder {
    folder: PathBuf,
    /// A folder above it that is durably there.
    root: PathBuf,
    /// Its limit; one that is there stays as long as it was made.
    bytes: u64,
    id: u64,
}

impl OverlayFolder {
    /// Names it; nothing is made yet.
    pub const fn new(root: PathBuf, folder: PathBuf, bytes: u64, id: u64) -> Self {
        let bytes = bytes / BLOCK_SIZE * BLOCK_SIZE;
        Self {
            folder,
            root,
            bytes,
            id,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the folder durably, with nothing in it; whatever was there is void.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(&self) -> Result<(), ContextError> {
        let _ = fs::remove_dir_all(&self.folder);
        media::make_folders(&self.root, &self.folder).map_err(failed(&self.folder))
    }

    /// The overlay that is there; `None`: none was needed yet.
    ///
    /// # Errors
    /// When it is lost or damaged, or cannot be read.
    pub fn open(&self) -> Result<Option<Overlay>, ContextError> {
        self.open_over(|path| Ok(Arc::new(FileMedium::open(path, Create::Never)?)))
    }

    /// [`OverlayFolder::open`] over media of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn open_over(
        &self,
        medium: impl Fn(&Path) -> io::Result<Arc<dyn Medium>>,
    ) -> Result<Option<Overlay>, ContextError> {
        if self.is_unmade().map_err(failed(&self.folder))? {
            return Ok(None);
        }
        let open = |name: &str| {
            let path = self.at(name);
            medium(&path).map_err(failed(&path))
        };
        Ok(Some(Overlay::open(open("data")?, open("log")?, self.id)?))
    }

    /// Makes the overlay in the folder that was begun.
    ///
    /// # Errors
    /// When storage fails; the next call begins anew.
    pub fn make(&self) -> Result<Overlay, ContextError> {
        let (partial, log, data) = (self.at("log.partial"), self.at("log"), self.at("data"));
        for left in [&data, &partial] {
            let _ = fs::remove_file(left);
        }
        let sparse = |path: &Path, bytes| {
            let medium = FileMedium::open(path, Create::Sparse(bytes)).map_err(failed(path))?;
            Ok::<_, ContextError>(Arc::new(medium))
        };
        let index = sparse(&partial, Overlay::log_len(self.bytes))?;
        let slots = sparse(&data, self.bytes)?;
        let overlay = Overlay::create(slots, index, self.id)?;
        fs::rename(&partial, &log)
            .and_then(|()| media::sync_parent(&log))
            .map_err(failed(&log))?;
        Ok(overlay)
    }

    fn is_unmade(&self) -> io::Result<bool> {
        let has = |name: &str| self.at(name).try_exists();
        let is_empty = || Ok::<_, io::Error>(fs::read_dir(&self.folder)?.next().is_none());
        Ok(!has("log")? && (has("log.partial")? || is_empty()?))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ContextError {
    let what = path.display().to_string();
    move |source| ContextError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::{SimPower, proc::root_for, sim::Tear, with_seeds};

    const BYTES: u64 = 64 << 10;

    fn at(root: &Path) -> OverlayFolder {
        OverlayFolder::new(root.to_owned(), root.join("overlay/sn10"), BYTES, 7)
    }

    /// What is in the folder says what it is; nothing that may have been written to is taken for new.
    #[test]
    fn an_overlay_that_is_gone_is_not_one_that_was_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = at(dir.path());
        assert!(overlay.open().is_err(), "no folder");
        overlay.begin().unwrap();
        assert!(overlay.open().unwrap().is_none());
        for left in ["log.partial", "data"] {
            fs::write(overlay.at(left), "cut").unwrap();
            assert!(overlay.open().unwrap().is_none(), "{left}");
        }
        drop(overlay.make().unwrap());
        assert!(overlay.open().unwrap().is_some());
        for gone in ["data", "log"] {
            overlay.begin().unwrap();
            drop(overlay.make().unwrap());
            fs::remove_file(overlay.at(gone)).unwrap();
            assert!(overlay.open().is_err(), "{gone} is gone");
        }
    }

    /// The power goes away at every sync of the making, on the worst file system that POSIX allows: what was made is there, and what
    /// was not is neither lost nor damaged.
    #[test]
    fn an_overlay_is_made_whole_or_made_again() {
        const NAME: &str = "context: overlay folder";
        if !root_for(NAME) {
            return;
        }
        let mut cuts = 0;
        with_seeds(NAME, 6, |rng| {
            for n in 1.. {
                let power = SimPower::new();
                power.set_tear([Tear::Sector, Tear::Byte, Tear::Bit][n as usize % 3]);
                let files = power.files("files");
                at(&files.folder()).begin().unwrap();
                power.freeze_at(n);
                let done = at(&files.folder()).make().is_ok();
                power.cut(rng);
                let found = at(&files.folder());
                let there = found.open().unwrap();
                assert!(there.is_some() || !done, "{n}");
                there.map_or_else(|| found.make(), Ok).unwrap();
                if done {
                    break;
                }
                cuts += 1;
            }
        });
        println!("{cuts} cuts");
    }
}
