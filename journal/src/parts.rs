//! What a journal is made of: a store, a superblock and two tails.

use crate::{
    error::{Damage, JournalError, Position},
    rocks::RocksStore,
    superblock::SUPERBLOCK_BYTES,
    tail::{HEADER_BYTES, tail_bytes},
};
use media::{Create, FileMedium};
use model::{
    Ordinal,
    ports::{Medium, Store},
};
use parking_lot::RwLock;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
};

/// Floors below which index entries mean nothing: the journal moves them, the store's compaction drops what is below.
#[derive(Debug, Default)]
pub struct IndexFloors(RwLock<(Position, Ordinal)>);

impl IndexFloors {
    pub(crate) fn set(&self, redo: Position, undo: Ordinal) {
        *self.0.write() = (redo, undo);
    }

    pub(crate) fn redo(&self) -> Position {
        self.0.read().0
    }

    pub(crate) fn undo(&self) -> Ordinal {
        self.0.read().1
    }
}

/// The media and the store of one context's journal.
#[derive(Clone)]
pub struct Parts {
    /// Keys and values.
    pub store: Arc<dyn Store>,
    /// Two slots of bounds; at least [`SUPERBLOCK_BYTES`].
    pub superblock: Arc<dyn Medium>,
    /// The two tails; at least [`tail_bytes`] each for full containers to fit.
    pub tails: [Arc<dyn Medium>; 2],
    /// Shared with the store, if it compacts its indexes.
    pub index_floors: Arc<IndexFloors>,
}

impl Parts {
    /// Parts from ports; the store's indexes are not compacted by floors.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, superblock: Arc<dyn Medium>, tails: [Arc<dyn Medium>; 2]) -> Self {
        Self {
            store,
            superblock,
            tails,
            index_floors: Arc::default(),
        }
    }

    /// The files of a context's journal directory (`super`, `tail.0`, `tail.1`, `db/`), created where they are missing.
    ///
    /// # Errors
    /// When a file cannot be opened or the store cannot be opened.
    pub fn open_dir(dir: &Path, lfc_size: u64) -> Result<Self, JournalError> {
        let at = |e| JournalError::io(dir.display().to_string(), e);
        std::fs::create_dir_all(dir).map_err(at)?;
        nothing_is_gone(dir).map_err(at)??;
        let medium = |name: &str, len: u64| -> Result<Arc<dyn Medium>, JournalError> {
            let path = dir.join(name);
            extend(&path, len).map_err(|e| JournalError::io(path.display().to_string(), e))?;
            let medium = FileMedium::open(&path, Create::Preallocated(len));
            Ok(Arc::new(medium.map_err(|e| JournalError::io(name, e))?))
        };
        let superblock = medium("super", SUPERBLOCK_BYTES)?;
        let tails = [
            medium("tail.0", tail_bytes(lfc_size))?,
            medium("tail.1", tail_bytes(lfc_size))?,
        ];
        let index_floors = Arc::<IndexFloors>::default();
        clear_half_made(dir).map_err(at)?;
        let store = RocksStore::open(&dir.join("db"), Arc::clone(&index_floors))?;
        // A name that a power cut took back would look like a file that is gone.
        File::open(dir).and_then(|d| d.sync_all()).map_err(at)?;
        Ok(Self {
            store: Arc::new(store),
            superblock,
            tails,
            index_floors,
        })
    }
}

/// The files of a journal, in the order in which they are made.
const FILES: [&str; 4] = ["super", "tail.0", "tail.1", "db"];

/// A file that is missing while a later one is there was made once: making it anew would lose what it held without a word.
pub(crate) fn nothing_is_gone(dir: &Path) -> io::Result<Result<(), JournalError>> {
    let mut gone = None;
    for name in FILES {
        let path = dir.join(name);
        match (path.try_exists()?, gone.take()) {
            (true, Some(lost)) => return Ok(Err(Damage::Gone(lost).into())),
            (true, None) => {}
            (false, lost) => gone = lost.or(Some(path.display().to_string())),
        }
    }
    // The store comes last; without it nothing was ever begun, unless the superblock says so.
    let begun = match File::open(dir.join(FILES[0])) {
        Ok(mut file) => is_used(&mut file)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    Ok(match gone.filter(|_| begun) {
        Some(lost) => Err(Damage::Gone(lost).into()),
        None => Ok(()),
    })
}

/// Removes a store that a first start was cut off from making: nothing was ever begun (the superblock is raised before the first
/// metadata), no container is in it, and RocksDB had not come so far as to name its list of files.
fn clear_half_made(dir: &Path) -> io::Result<()> {
    let store = dir.join(FILES[3]);
    if is_used(&mut File::open(dir.join(FILES[0]))?)? || !store.is_dir() || store.join("CURRENT").exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(&store)? {
        if entry?.path().extension().is_some_and(|e| e == "sst") {
            return Ok(());
        }
    }
    tracing::info!("{}: a first start was cut off here: made anew", store.display());
    std::fs::remove_dir_all(&store)
}

/// Makes a tail that is in use longer (the container size was raised) without touching what it holds. A file without a
/// header was never used and is left to be preallocated from its start.
fn extend(path: &Path, wanted: u64) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let len = file.metadata()?.len();
    if len >= wanted || !is_used(&mut file)? {
        return Ok(());
    }
    file.seek(SeekFrom::End(0))?;
    io::copy(&mut io::repeat(0).take(wanted - len), &mut file)?;
    file.flush()?;
    file.sync_all()
}

pub(crate) fn is_used(file: &mut File) -> io::Result<bool> {
    let mut head = Vec::new();
    Read::by_ref(file).take(HEADER_BYTES).read_to_end(&mut head)?;
    Ok(head.iter().any(|b| *b != 0))
}
