//! RocksDB as a [`Store`]: the only file that names it.
//!
//! # Overview
//!
//! Each family is a column family. Frames and undo enter as SST files that are built beside the database, synced and moved
//! in; they are never compacted and leave as whole files ([`Store::drop_range`]). The indexes are levelled, and their
//! compaction drops entries below the floors. The rest are small rows in synced batches.
//!
//! # Crash consistency
//!
//! Batches are synced through the write-ahead log. RocksDB may end that log silently at a damaged record; the caller's
//! counter in every batch finds that out (`rules.md` T7). It may do the same with its list of files: `manifest` looks
//! at that before RocksDB does, and `log_file` looks for what RocksDB would read for ever. Half-built files are removed on open.

mod log_file;
mod manifest;

use crate::{keys::family_name, parts::IndexFloors};
use bytes::Bytes;
use model::{
    GenNo, Ordinal, WriteSeq,
    ports::{Batch, Change, Family, Store, StoreError},
};
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode,
    DBWithThreadMode, Direction, ErrorKind, IngestExternalFileOptions, IteratorMode, MultiThreaded, Options,
    ReadOptions, SliceTransform, SstFileWriter, WriteBatch, WriteOptions, compaction_filter::Decision,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

type Db = DBWithThreadMode<MultiThreaded>;

/// Bytes of the block cache of one context.
const CACHE_BYTES: usize = 16 << 20;
/// Bytes of a memtable; batches are small.
const MEMTABLE_BYTES: usize = 2 << 20;

/// Entries that are stepped over on the way to the next range before it is sought.
const STEPS_BEFORE_SEEK: usize = 8;

/// Leading bytes of a key of an index: volume and block. Each file of it has a Bloom filter of them, for most blocks that
/// are looked up are in few containers, and a lookup asks many files.
const BLOCK_PREFIX: usize = 10;

/// Bits of such a filter for each block: one lookup in a hundred looks into a file for nothing.
const BLOOM_BITS: f64 = 10.0;

/// A RocksDB database.
pub struct RocksStore {
    db: Db,
    /// Where files are built; `None` where nothing may be.
    ingest_dir: Option<PathBuf>,
    next_file: AtomicU64,
}

/// With the family: some of RocksDB's messages name no file.
fn library_in(family: Family, op: &'static str) -> impl Fn(rocksdb::Error) -> StoreError {
    move |e| StoreError::Library {
        op,
        text: format!("{}: {e}", family_name(family)),
    }
}

/// As [`library_in`] for reads, where bad bytes are told from a failure of everything; some of RocksDB's messages name no file.
fn reading(family: Family, op: &'static str) -> impl Fn(rocksdb::Error) -> StoreError {
    move |e| {
        let text = format!("{}: {e}", family_name(family));
        match e.kind() {
            ErrorKind::Corruption => StoreError::Corrupt { op, text },
            _ => StoreError::Library { op, text },
        }
    }
}

/// A failure of the file system, with the path: the system's own messages name none.
fn io_error(op: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |e| StoreError::Io {
        op,
        source: io::Error::new(e.kind(), format!("{}: {e}", path.display())),
    }
}

fn be<T, const N: usize>(key: &[u8], at: usize, of: impl Fn([u8; N]) -> T) -> Option<T> {
    key.get(at..at + N)?.try_into().ok().map(of)
}

/// Room that a file leaves to the batches, bytes: they are small, and a store that cannot commit one is of no use.
const ROOM_BYTES: u64 = 8 << 20;

/// Bytes of a file after which the room is looked at again: batches are committed while it is built.
const LOOK_BYTES: usize = 1 << 20;

/// What the C library says of a full disk, and RocksDB in its messages.
const NO_ROOM: &str = "No space left on device";

/// The key of that length right before another one, if there is one.
fn before(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    let at = key.iter().rposition(|byte| *byte > 0)?;
    key[at] -= 1;
    key[at + 1..].fill(0xff);
    Some(key)
}

/// The failure to build a file for want of room.
fn full(path: &Path) -> StoreError {
    StoreError::Io {
        op: "build a file",
        source: io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{}: {NO_ROOM}", path.display()),
        ),
    }
}

/// Compresses by a level of zstd that leaves literals as they are: whoever applies waits for it, and often it is all noise.
fn quick(o: &mut Options) {
    o.set_compression_type(DBCompressionType::Zstd);
    o.set_compression_options(-14, -1, 0, 0);
}

/// How an index is kept. A container touches blocks all over, so each merge into a level writes all of that level anew: merges
/// are of many files, and the first level is small. Commits are not held up by the number of files: what comes is files, not
/// writes, and a late merge only makes lookups slower.
fn index(o: &mut Options, table: &mut BlockBasedOptions) {
    quick(o);
    o.set_level_zero_file_num_compaction_trigger(12);
    o.set_level_zero_slowdown_writes_trigger(256);
    o.set_level_zero_stop_writes_trigger(512);
    o.set_max_bytes_for_level_base(64 << 20);
    o.set_prefix_extractor(SliceTransform::create_fixed_prefix(BLOCK_PREFIX));
    table.set_bloom_filter(BLOOM_BITS, false);
    table.set_whole_key_filtering(false);
}

/// Options of a family. Files that are ingested must be built with the same ones.
fn options(family: Family, cache: &Cache, floors: &Arc<IndexFloors>) -> Options {
    let mut o = Options::default();
    o.set_write_buffer_size(MEMTABLE_BYTES);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(5);
    match family {
        // Frames are opaque and often compressed already; one value is larger than any block.
        Family::Redo => {
            o.set_compression_type(DBCompressionType::None);
            o.set_disable_auto_compactions(true);
        }
        Family::Undo => {
            quick(&mut o);
            o.set_disable_auto_compactions(true);
            table.set_block_size(16 << 10);
        }
        Family::RedoIndex => {
            index(&mut o, &mut table);
            let floors = Arc::clone(floors);
            o.set_compaction_filter("redo floor", move |_, key, _| {
                let floor = floors.redo();
                let at = be(key, 10, u32::from_be_bytes).zip(be(key, 14, u64::from_be_bytes));
                let below = at.is_some_and(|(g, s)| (GenNo(g), WriteSeq(s)) <= (floor.generation, floor.seq));
                if below { Decision::Remove } else { Decision::Keep }
            });
        }
        Family::UndoIndex => {
            index(&mut o, &mut table);
            let floors = Arc::clone(floors);
            o.set_compaction_filter("undo floor", move |_, key, _| {
                let below = be(key, 10, u64::from_be_bytes).is_some_and(|n| Ordinal(n) <= floors.undo());
                if below { Decision::Remove } else { Decision::Keep }
            });
        }
        Family::Catalog | Family::Meta | Family::Map => {}
    }
    o.set_block_based_table_factory(&table);
    o
}

/// To read whatever comes in order; within one block of an index its filters are asked, and nothing else is shown.
fn read_options(is_of_one_block: bool) -> ReadOptions {
    let mut read = ReadOptions::default();
    match is_of_one_block {
        true => read.set_prefix_same_as_start(true),
        false => read.set_total_order_seek(true),
    }
    read
}

/// Whether a range of an index lies within one block.
fn is_of_one_block(family: Family, from: &[u8], to: &[u8]) -> bool {
    let is_index = matches!(family, Family::RedoIndex | Family::UndoIndex);
    let block = from.get(..BLOCK_PREFIX);
    is_index && block.is_some() && block == to.get(..BLOCK_PREFIX)
}

/// Whether ranges lie within one block each, and on the whole too far from one another for steps.
fn are_scattered(family: Family, ranges: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let block = |(from, _): &(Vec<u8>, Vec<u8>)| be(from, 2, u64::from_be_bytes).unwrap_or(0);
    let is_far = match ranges {
        [first, .., last] => {
            let apart = block(last).saturating_sub(block(first)) / ranges.len() as u64;
            apart >= STEPS_BEFORE_SEEK as u64
        }
        _ => true,
    };
    is_far && ranges.iter().all(|(from, to)| is_of_one_block(family, from, to))
}

/// Looks at what RocksDB would take for a cut end, or read for ever, before it sees it; answers how its own failures to open are
/// told.
fn looked_through(dir: &Path) -> Result<impl Fn(String) -> StoreError + '_, StoreError> {
    let failed = move |text: String| StoreError::Library {
        op: "open",
        text: format!("{}: {text}", dir.display()),
    };
    manifest::check(dir)
        .map_err(io_error("check the list of files", dir))?
        .map_err(failed)?;
    log_file::check(dir)
        .map_err(io_error("check the logs", dir))?
        .map_err(failed)?;
    Ok(failed)
}

impl RocksStore {
    /// Opens or creates the database in `dir`.
    ///
    /// # Errors
    /// When the folder or the database cannot be opened.
    pub fn open(dir: &Path, floors: Arc<IndexFloors>) -> Result<Self, StoreError> {
        let ingest_dir = dir.join("ingest");
        std::fs::create_dir_all(&ingest_dir).map_err(io_error("create the folder", &ingest_dir))?;
        for left in std::fs::read_dir(&ingest_dir).map_err(io_error("list half-built files", &ingest_dir))? {
            let left = left.map_err(io_error("list half-built files", &ingest_dir))?;
            std::fs::remove_file(left.path()).map_err(io_error("remove a half-built file", &ingest_dir))?;
        }
        let failed = looked_through(dir)?;
        let mut o = Options::default();
        o.create_if_missing(true);
        o.create_missing_column_families(true);
        o.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        o.set_max_background_jobs(2);
        o.set_max_open_files(512);
        o.set_keep_log_file_num(2);
        o.set_max_total_wal_size(16 << 20);
        o.set_stats_dump_period_sec(0);
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        let families =
            Family::ALL.map(|f| ColumnFamilyDescriptor::new(family_name(f), options(f, &cache, &floors)));
        let db = Db::open_cf_descriptors(&o, dir, families).map_err(|e| failed(e.into_string()))?;
        Ok(Self {
            db,
            ingest_dir: Some(ingest_dir),
            next_file: AtomicU64::new(0),
        })
    }

    /// Opens the database in `dir` to be read alone; not a byte of the folder changes. Its write-ahead logs are replayed into
    /// memory. RocksDB's read-only mode takes no lock and writes no `LOG`, and neither flushes what it replayed nor deletes
    /// files that nothing names; the folder of half-built files is left alone. The caller sees to it that no daemon has it.
    ///
    /// # Errors
    /// As [`RocksStore::open`].
    pub fn open_read_only(dir: &Path) -> Result<Self, StoreError> {
        let failed = looked_through(dir)?;
        let mut o = Options::default();
        o.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        o.set_max_open_files(512);
        o.set_stats_dump_period_sec(0);
        let (cache, floors) = (Cache::new_lru_cache(CACHE_BYTES), Arc::default());
        let families =
            Family::ALL.map(|f| ColumnFamilyDescriptor::new(family_name(f), options(f, &cache, &floors)));
        let db = Db::open_cf_descriptors_read_only(&o, dir, families, false)
            .map_err(|e| failed(e.into_string()))?;
        Ok(Self {
            db,
            ingest_dir: None,
            next_file: AtomicU64::new(0),
        })
    }

    /// Drops index entries below the floors now, instead of at leisure: for tools, and for whoever wants the room at once.
    ///
    /// # Errors
    /// When a family is missing.
    pub fn compact_indexes(&self) -> Result<(), StoreError> {
        for family in [Family::RedoIndex, Family::UndoIndex] {
            let all = None::<&[u8]>;
            self.db.compact_range_cf(&self.family(family)?, all, all);
        }
        Ok(())
    }

    fn family(&self, family: Family) -> Result<Arc<BoundColumnFamily<'_>>, StoreError> {
        let missing = || StoreError::Library {
            op: "find a family",
            text: format!("{} is missing", family_name(family)),
        };
        self.db.cf_handle(family_name(family)).ok_or_else(missing)
    }

    fn build(
        &self,
        family: Family,
        path: &Path,
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
        has_room: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let failed = library_in(family, "build a file");
        let o = options(family, &Cache::new_lru_cache(0), &Arc::default());
        let mut writer = SstFileWriter::create(&o);
        let (mut any, mut unlooked) = (false, 0);
        for (key, value) in pairs {
            if !any {
                writer.open(path).map_err(&failed)?;
                any = true;
            }
            unlooked += value.len();
            if unlooked >= LOOK_BYTES {
                has_room()?;
                unlooked = 0;
            }
            writer.put(&key, &value).map_err(&failed)?;
        }
        if any {
            writer.finish().map_err(&failed)?;
        }
        Ok(any)
    }
}

impl Store for RocksStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self
            .db
            .get_pinned_cf(&self.family(family)?, key)
            .map_err(reading(family, "get"))?;
        Ok(value.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn get_each(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        if let [key] = keys {
            return Ok(vec![self.get(family, key)?]);
        }
        let values = self.db.batched_multi_get_cf(&self.family(family)?, keys, true);
        let copied = |value: Option<rocksdb::DBPinnableSlice<'_>>| value.map(|v| Bytes::copy_from_slice(&v));
        let each = values.into_iter().map(|value| value.map(copied));
        each.map(|value| value.map_err(reading(family, "get"))).collect()
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let mut read = read_options(is_of_one_block(family, from, to));
        read.set_iterate_upper_bound(to);
        let mut at = self.db.raw_iterator_cf_opt(&self.family(family)?, read);
        at.seek(from);
        while let Some((key, value)) = at.item() {
            if !visit(key, value) {
                return Ok(());
            }
            at.next();
        }
        at.status().map_err(reading(family, "scan"))
    }

    fn first_of_each(
        &self,
        family: Family,
        ranges: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Vec<Option<(Vec<u8>, Bytes)>>, StoreError> {
        let Some((_, end)) = ranges.last() else {
            return Ok(Vec::new());
        };
        let is_scattered = are_scattered(family, ranges);
        let mut read = read_options(is_scattered);
        read.set_iterate_upper_bound(end.as_slice());
        let mut at = self.db.raw_iterator_cf_opt(&self.family(family)?, read);
        let mut out = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            // The next range is near as a rule, and a step costs a small part of a seek.
            let is_before = |key: Option<&[u8]>| key.is_some_and(|key| key < from.as_slice());
            let must_seek = out.is_empty() || is_scattered;
            let mut steps = if must_seek { 0 } else { STEPS_BEFORE_SEEK };
            while steps > 0 && is_before(at.key()) {
                at.next();
                steps -= 1;
            }
            if must_seek || is_before(at.key()) {
                at.seek(from);
            }
            at.status().map_err(reading(family, "seek"))?;
            let found = at.item().filter(|(key, _)| *key < to.as_slice());
            out.push(found.map(|(key, value)| (key.to_vec(), Bytes::copy_from_slice(value))));
        }
        Ok(out)
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        let mut read = read_options(false);
        read.set_iterate_lower_bound(from);
        read.set_iterate_upper_bound(to);
        let mode = IteratorMode::From(to, Direction::Reverse);
        match self.db.iterator_cf_opt(&self.family(family)?, read, mode).next() {
            None => Ok(None),
            Some(Ok((key, value))) => Ok(Some((key.into_vec(), Bytes::from(value.into_vec())))),
            Some(Err(e)) => Err(reading(family, "find the last")(e)),
        }
    }

    fn ingest(
        &self,
        family: Family,
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<(), StoreError> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let ingest_dir = self.ingest_dir.as_ref().ok_or_else(|| StoreError::Library {
            op: "ingest",
            text: "the store is open to be read alone".into(),
        })?;
        let path = ingest_dir.join(format!("{}-{number}.sst", family_name(family)));
        let has_room = || {
            let free = media::free_bytes(ingest_dir).map_err(io_error("look for room", ingest_dir))?;
            if free < ROOM_BYTES {
                Err(full(&path))
            } else {
                Ok(())
            }
        };
        has_room()?;
        match self.build(family, &path, pairs, &has_room) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => {
                // What there is of it would take the room that others need. The database has not seen it.
                let _ = std::fs::remove_file(&path);
                return Err(match &e {
                    StoreError::Library { text, .. } if text.contains(NO_ROOM) => full(&path),
                    _ => e,
                });
            }
        }
        // The writer does not sync by itself, and the move keeps the file as it is.
        let sync = || std::fs::File::open(&path)?.sync_all();
        sync().map_err(io_error("sync a file", &path))?;
        let mut o = IngestExternalFileOptions::default();
        o.set_move_files(true);
        let moved = self
            .db
            .ingest_external_file_cf_opts(&self.family(family)?, &o, vec![&path]);
        moved.map_err(|e| StoreError::Library {
            op: "ingest",
            text: format!("{}: {}: {e}", path.display(), family_name(family)),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut b = WriteBatch::default();
        for change in &batch.0 {
            match change {
                Change::Put(family, key, value) => b.put_cf(&self.family(*family)?, key, value),
                Change::Delete(family, key) => b.delete_cf(&self.family(*family)?, key),
            }
        }
        let mut o = WriteOptions::default();
        o.set_sync(true);
        self.db.write_opt(b, &o).map_err(|e| StoreError::Library {
            op: "commit",
            text: format!("{}: {e}", self.db.path().display()),
        })
    }

    fn drop_range(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        let cf = self.family(family)?;
        // RocksDB takes `to` with it, and a file may hold that one key alone.
        if let Some(last) = before(to).filter(|last| from <= last.as_slice()) {
            self.db
                .delete_file_in_range_cf(&cf, from, &last)
                .map_err(library_in(family, "drop files"))?;
        }
        // Files end where containers end, so this is rarely needed; a range tombstone would stay for good.
        let mut left = false;
        self.scan(family, from, to, &mut |_, _| {
            left = true;
            false
        })?;
        if left {
            let mut o = WriteOptions::default();
            o.set_sync(true);
            self.db
                .delete_range_cf_opt(&cf, from, to, &o)
                .map_err(library_in(family, "drop a range"))?;
        }
        Ok(())
    }
}
