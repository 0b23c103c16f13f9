//! Ports: the traits across which layers meet, each with an in-memory twin in `testkit`.

use crate::{BlockNo, ByteRange, Ordinal, Payload, RedoSpan, VolumeIndex, WriteSeq};
use bytes::Bytes;
use std::io;

/// What a system says of bytes that a device cannot give: `EIO`.
pub const UNREADABLE: i32 = 5;

/// Whether storage said that it cannot give the bytes, and not that something else is wrong with the request. The system's
/// word may be the source of a larger error.
#[must_use]
pub fn is_unreadable(error: &io::Error) -> bool {
    let below = || {
        error
            .get_ref()?
            .source()?
            .downcast_ref::<io::Error>()?
            .raw_os_error()
    };
    error.raw_os_error().or_else(below) == Some(UNREADABLE)
}

/// A file or block device of fixed length: a volume, a tail file, a superblock, an overlay.
///
/// All calls may come from many threads at once. A write is visible to reads when it returns and durable when a
/// [`Medium::sync`] that started after it returned has returned `Ok`. After a failed sync nothing is known to be durable.
pub trait Medium: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether the medium has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from offset `at`.
    ///
    /// # Errors
    /// When the device fails or the range passes the end.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Fills each buffer from the offset beside it. The device is asked for all of them before any is waited for, where it can be.
    ///
    /// # Errors
    /// When any of them fails as [`Medium::read_at`] does; what the buffers hold is then not to be used.
    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        reads.iter_mut().try_for_each(|(at, buf)| self.read_at(*at, buf))
    }

    /// Writes all of `data` at offset `at`.
    ///
    /// # Errors
    /// When the device fails or the range passes the end.
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range zero, deallocating it where that is cheap.
    ///
    /// # Errors
    /// As [`Medium::write_at`].
    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()>;

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// When the device fails; the caller must then treat the medium as poisoned.
    fn sync(&self) -> io::Result<()>;

    /// Withholds the blocks of ranges that could not be read: their bytes are not known from now on, also where the medium
    /// gives some again. Reads of such a block fail with [`UNREADABLE`] until all of it was written in one write; what is
    /// written to a part of it is left out. Durable when it returns; the end of it is durable with the next sync.
    ///
    /// # Errors
    /// When this medium withholds nothing, or what fails is more than some blocks of it.
    fn withhold(&self, _ranges: &[ByteRange]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the medium at least `len` bytes long; durable when it returns. What a file gains is zero, what a device has there is as it
    /// is. One that is as long already stays as it is; what a device has become by itself is seen.
    ///
    /// # Errors
    /// When it cannot be made longer; a device grows only by itself.
    fn extend(&self, len: u64) -> io::Result<()> {
        match len <= self.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// A hint: what is durable of these bytes will not be read soon, and need not stay in memory.
    fn forget(&self, _at: u64, _len: u64) {}

    /// The next range at or after `at` that may hold data; `None` when all from `at` on is known to read as zero.
    ///
    /// # Errors
    /// When the device fails.
    fn next_data(&self, at: u64) -> io::Result<Option<ByteRange>> {
        let len = self.len();
        Ok((at < len).then_some(ByteRange { start: at, end: len }))
    }
}

/// The column families of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Frames of sealed LFCs.
    Redo,
    /// Which records touch a block.
    RedoIndex,
    /// Before-images in apply order.
    Undo,
    /// Which ordinals hold a before-image of a block.
    UndoIndex,
    /// LFC rows, ordinal rows, generations, marks.
    Catalog,
    /// Cursors, role, term, pins, restore state.
    Meta,
    /// State-map cells.
    Map,
}

impl Family {
    /// All families, in a fixed order.
    pub const ALL: [Self; 7] = [
        Self::Redo,
        Self::RedoIndex,
        Self::Undo,
        Self::UndoIndex,
        Self::Catalog,
        Self::Meta,
        Self::Map,
    ];
}

/// One change of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(Family, Vec<u8>, Vec<u8>),
    /// Removes a key.
    Delete(Family, Vec<u8>),
}

/// Changes that become visible and durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<Change>);

impl Batch {
    /// Adds a put.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push(Change::Put(family, key.into(), value.into()));
    }

    /// Adds a delete.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.0.push(Change::Delete(family, key.into()));
    }
}

/// Why a [`Store`] failed. Any of these poisons the context.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The device or the library below failed.
    #[error("store: {op}: {source}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// The failure.
        source: io::Error,
    },
    /// Bytes at rest do not check; never served.
    #[error("store: {op}: {text}")]
    Corrupt {
        /// What was being read.
        op: &'static str,
        /// The library's words.
        text: String,
    },
    /// The library below failed with a text of its own.
    #[error("store: {op}: {text}")]
    Library {
        /// What was being done.
        op: &'static str,
        /// Its words.
        text: String,
    },
}

impl StoreError {
    /// Whether there was no room for what was to be stored, which changed nothing: it may be tried again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Keys and values in order, a few families, durable when a call returns. RocksDB in production.
pub trait Store: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// When the store fails.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Visits `from <= key < to` in order until `visit` answers `false`.
    ///
    /// # Errors
    /// When the store fails.
    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError>;

    /// The values of many keys, which come in rising order.
    ///
    /// # Errors
    /// When the store fails.
    fn get_each(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        keys.iter().map(|key| self.get(family, key)).collect()
    }

    /// For each range `from <= key < to`, its first key and value. The ranges must be given in rising order; one
    /// iterator serves all.
    ///
    /// # Errors
    /// When the store fails.
    #[expect(clippy::type_complexity, reason = "pairs of keys, pairs of key and value")]
    fn first_of_each(
        &self,
        family: Family,
        ranges: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Vec<Option<(Vec<u8>, Bytes)>>, StoreError>;

    /// The last key and value with `from <= key < to`.
    ///
    /// # Errors
    /// When the store fails.
    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError>;

    /// Adds many pairs at once, sorted by key without repeats; durable when it returns. Repeating the same call is harmless.
    ///
    /// # Errors
    /// When the store fails.
    fn ingest(
        &self,
        family: Family,
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<(), StoreError>;

    /// Applies a batch atomically; durable when it returns.
    ///
    /// # Errors
    /// When the store fails.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Frees `from <= key < to`. The caller has made a floor above it durable first; reads of the range afterwards may or
    /// may not find keys, so nobody may read there.
    ///
    /// # Errors
    /// When the store fails.
    fn drop_range(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError>;
}

/// A redo record's effect on some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedoPiece {
    /// The record.
    pub seq: WriteSeq,
    /// The bytes it changes, clipped to what was asked for.
    pub range: ByteRange,
    /// What they become; data has exactly `range.len()` bytes.
    pub payload: Payload,
}

/// Why history could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The store below failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tail or volume below failed.
    #[error("{what}: {source}")]
    Io {
        /// Which file, at which offset.
        what: String,
        /// The failure.
        source: io::Error,
    },
    /// Stored bytes do not check; never served.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The history asked for is not kept any more.
    #[error("no longer kept: {0}")]
    Gone(String),
    /// Whoever gave the before-images could not give all of them.
    #[error("the before-images ended before the last of them")]
    Ended,
    /// The context was poisoned by an earlier failure.
    #[error("poisoned by an earlier failure: {0}")]
    Poisoned(String),
}

/// What an undo container belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrdinalKind {
    /// The application of a redo container; its end is a boundary of the line.
    Apply {
        /// Generation of the container.
        generation: crate::GenNo,
        /// The container.
        lfc: crate::LfcId,
        /// Its last record.
        last_seq: WriteSeq,
    },
    /// Part of a local pair (a restore): no position of its own.
    Local {
        /// The ordinal before the restore's first container: names the restore.
        restore_from: Ordinal,
        /// The ordinal whose state the restore brings back (before redo is laid over).
        base: Ordinal,
        /// Redo laid over `base`.
        redo: Vec<RedoSpan>,
    },
    /// Regions that production sent again (a resync): no position of its own, because the volumes are not consistent
    /// before the last of them.
    Copies,
}

/// What a block holds before it is overwritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeforeImage {
    /// The volume,
    pub volume: VolumeIndex,
    /// and the block.
    pub block: BlockNo,
    /// All of it (4 KiB, zero-padded at a volume's end). `None`: it could not be read, so it is not known, and states that
    /// need it cannot be shown.
    pub image: Option<Payload>,
}

/// Before-images are not given any more, because of a failure of whoever gives them, who knows which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

/// What the snapshot engine reads and writes of a host's history; the journal implements it.
pub trait History: Send + Sync {
    /// The newest ordinal whose undo is durable and visible. Read with acquire ordering.
    fn published(&self) -> Ordinal;

    /// For each of these blocks, which come in (volume, block) order without repeats, its before-image in the first container
    /// with `after < ordinal <= upto`; `None` where no such container holds the block.
    ///
    /// # Errors
    /// When history cannot be read.
    fn first_undo_of(
        &self,
        blocks: &[(VolumeIndex, BlockNo)],
        after: Ordinal,
        upto: Ordinal,
    ) -> Result<Vec<Option<Payload>>, HistoryError>;

    /// As [`History::first_undo_of`], for the blocks `first .. first + count`.
    ///
    /// # Errors
    /// When history cannot be read.
    fn first_undo(
        &self,
        volume: VolumeIndex,
        first: BlockNo,
        count: u64,
        after: Ordinal,
        upto: Ordinal,
    ) -> Result<Vec<Option<Payload>>, HistoryError> {
        let blocks: Vec<_> = (first.0..first.0 + count)
            .map(|block| (volume, BlockNo(block)))
            .collect();
        self.first_undo_of(&blocks, after, upto)
    }

    /// Every effect of the records in `spans` on `range`, in the order of the line.
    ///
    /// # Errors
    /// When history cannot be read.
    fn redo(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
        spans: &[RedoSpan],
    ) -> Result<Vec<RedoPiece>, HistoryError>;

    /// Makes the before-images of one overwrite durable as an undo container (images, index, then its row: `rules.md` T3) and
    /// publishes its ordinal, which is the published one + 1. They come sorted by (volume, block), without repeats, and are taken
    /// one by one, so that a container is never in memory as a whole. Answers their blocks. What is durable already is not
    /// replaced (W4): then no image is taken, and no block is answered.
    ///
    /// # Errors
    /// When it could not be made durable; then nothing may be overwritten. [`HistoryError::Ended`] when the images did.
    fn commit_undo(
        &self,
        ordinal: Ordinal,
        kind: &OrdinalKind,
        images: &mut dyn Iterator<Item = Result<BeforeImage, Ended>>,
    ) -> Result<Vec<(VolumeIndex, BlockNo)>, HistoryError>;

    /// Every distinct block with undo in `after < ordinal <= upto`, sorted by (volume, block); at most `limit` of them,
    /// beginning at `from` (inclusive).
    ///
    /// # Errors
    /// When history cannot be read.
    fn undone_blocks(
        &self,
        after: Ordinal,
        upto: Ordinal,
        from: (VolumeIndex, BlockNo),
        limit: usize,
    ) -> Result<Vec<(VolumeIndex, BlockNo)>, HistoryError>;

    /// Every distinct block that records in `spans` touch, sorted by (volume, block); at most `limit` of them, beginning
    /// at `from` (inclusive).
    ///
    /// # Errors
    /// When history cannot be read.
    fn redone_blocks(
        &self,
        spans: &[RedoSpan],
        from: (VolumeIndex, BlockNo),
        limit: usize,
    ) -> Result<Vec<(VolumeIndex, BlockNo)>, HistoryError>;
}
