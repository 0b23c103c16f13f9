//! A journal's folder as something to look at: what is written stays in memory, and not a byte of the folder changes.
//!
//! # Overview
//!
//! Opening a journal is work: recovery ingests a sealed container, rewrites what may not be durable, writes headers and bounds.
//! Tools for a stopped node must see what a start would see and must change nothing, or they would spoil the evidence. So they
//! open the same journal over a *shadow*: media and a store that read through to the files and keep every change in memory.
//! There is one recovery, not one for daemons and another for tools.
//!
//! # What is never written
//!
//! - `super`, `tail.0`, `tail.1` are opened for reading alone, with a shared lock: a daemon that starts meanwhile is refused,
//!   and several tools may look at once.
//! - RocksDB is opened read-only ([`crate::RocksStore::open_read_only`]): it replays its write-ahead logs into memory, and
//!   neither flushes nor deletes nor compacts; no `LOG`, no `LOCK`, no half-built file of it is touched. Our own looks at its
//!   files stand before it, as they do before a daemon's.
//! - Nothing that is missing is made, and nothing half made is cleared away.
//!
//! # What it costs
//!
//! Memory for what recovery would have written: at most the two containers in the tails, their index, and the write-ahead
//! logs (16 MiB).
//!
//! # What it does not do
//!
//! It does not keep a daemon from starting where there are no files yet: whoever opens a node's folder takes the node's lock.

use crate::{
    error::JournalError,
    parts::{Parts, is_used, nothing_is_gone},
    rocks::RocksStore,
    superblock::SUPERBLOCK_BYTES,
    tail::tail_bytes,
};
use bytes::Bytes;
use media::FileMedium;
use model::ports::{Batch, Change, Family, Medium, Store, StoreError};
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io,
    path::Path,
    sync::Arc,
};

/// The unit in which a medium's changes are kept.
const PAGE_BYTES: usize = 4096;

/// A medium over another one that is only read; past the end of that one all is zero.
pub struct ShadowMedium {
    below: Option<Arc<dyn Medium>>,
    len: u64,
    pages: RwLock<BTreeMap<u64, Vec<u8>>>,
}

impl ShadowMedium {
    /// A medium of at least `len` bytes over what is `below`, if there is anything.
    #[must_use]
    pub fn new(below: Option<Arc<dyn Medium>>, len: u64) -> Self {
        let there = below.as_ref().map_or(0, |m| m.len());
        Self {
            below,
            len: len.max(there),
            pages: RwLock::default(),
        }
    }

    fn read_below(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.below.as_ref().map_or(0, |m| m.len().saturating_sub(at));
        let there = there.min(buf.len() as u64) as usize;
        let (inside, past) = buf.split_at_mut(there);
        past.fill(0);
        match &self.below {
            Some(below) if !inside.is_empty() => below.read_at(at, inside),
            _ => Ok(()),
        }
    }

    fn check(&self, at: u64, len: usize) -> io::Result<()> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{len} bytes at {at} pass the end at {}", self.len),
            )),
        }
    }
}

/// The parts of `at .. at + len` page by page: page, offset in it, offset in the range, bytes.
fn pages(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = at + done as u64;
        let (page, inside) = (here / PAGE_BYTES as u64, (here % PAGE_BYTES as u64) as usize);
        let n = (PAGE_BYTES - inside).min(len - done);
        let part = (page, inside, done, n);
        done += n;
        (n > 0).then_some(part)
    })
}

impl Medium for ShadowMedium {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(at, buf.len())?;
        self.read_below(at, buf)?;
        let changed = self.pages.read();
        if changed.is_empty() {
            return Ok(());
        }
        for (page, inside, done, n) in pages(at, buf.len()) {
            if let Some(bytes) = changed.get(&page) {
                buf[done..done + n].copy_from_slice(&bytes[inside..inside + n]);
            }
        }
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check(at, data.len())?;
        let mut changed = self.pages.write();
        for (page, inside, done, n) in pages(at, data.len()) {
            if let Entry::Vacant(entry) = changed.entry(page) {
                let mut bytes = vec![0; PAGE_BYTES];
                let start = page * PAGE_BYTES as u64;
                let there = (self.len - start).min(PAGE_BYTES as u64) as usize;
                self.read_below(start, &mut bytes[..there])?;
                entry.insert(bytes);
            }
            if let Some(bytes) = changed.get_mut(&page) {
                bytes[inside..inside + n].copy_from_slice(&data[done..done + n]);
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0; PAGE_BYTES];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PAGE_BYTES as u64);
            self.write_at(at + done, &zeroes[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What has changed of one family: a value, or that the key is gone.
type Changed = BTreeMap<Vec<u8>, Option<Bytes>>;

/// A store over another one that is only read.
pub struct ShadowStore {
    below: Option<Arc<dyn Store>>,
    above: RwLock<Above>,
}

#[derive(Default)]
struct Above {
    families: BTreeMap<Family, Changed>,
    /// Ranges of what is below that are freed.
    dropped: Vec<(Family, Vec<u8>, Vec<u8>)>,
}

impl Above {
    fn is_dropped(&self, family: Family, key: &[u8]) -> bool {
        let within = |(f, from, to): &(Family, Vec<u8>, Vec<u8>)| {
            *f == family && from.as_slice() <= key && key < to.as_slice()
        };
        self.dropped.iter().any(within)
    }

    fn changed(&self, family: Family, from: &[u8], to: &[u8]) -> Vec<(Vec<u8>, Option<Bytes>)> {
        if from >= to {
            return Vec::new();
        }
        let Some(changed) = self.families.get(&family) else {
            return Vec::new();
        };
        let range = changed.range(from.to_vec()..to.to_vec());
        range.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl ShadowStore {
    /// A store over what is `below`, if there is anything.
    #[must_use]
    pub fn new(below: Option<Arc<dyn Store>>) -> Self {
        Self {
            below,
            above: RwLock::default(),
        }
    }
}

impl Store for ShadowStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let above = self.above.read();
        if let Some(value) = above.families.get(&family).and_then(|c| c.get(key)) {
            return Ok(value.clone());
        }
        match &self.below {
            Some(below) if !above.is_dropped(family, key) => below.get(family, key),
            _ => Ok(None),
        }
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let above = self.above.read();
        let mut changed = above.changed(family, from, to).into_iter().peekable();
        let mut goes_on = true;
        if let Some(below) = &self.below {
            below.scan(family, from, to, &mut |key, value| {
                while let Some((k, v)) = changed.next_if(|(k, _)| k.as_slice() < key) {
                    goes_on = v.is_none_or(|v| visit(&k, &v));
                    if !goes_on {
                        return false;
                    }
                }
                if changed.peek().is_some_and(|(k, _)| k == key) {
                    let (_, v) = changed.next().unwrap_or_default();
                    goes_on = v.is_none_or(|v| visit(key, &v));
                } else if !above.is_dropped(family, key) {
                    goes_on = visit(key, value);
                }
                goes_on
            })?;
        }
        for (key, value) in changed {
            if !goes_on {
                break;
            }
            goes_on = value.is_none_or(|v| visit(&key, &v));
        }
        Ok(())
    }

    fn first_of_each(
        &self,
        family: Family,
        ranges: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Vec<Option<(Vec<u8>, Bytes)>>, StoreError> {
        let is_changed = {
            let above = self.above.read();
            above.families.contains_key(&family) || above.dropped.iter().any(|(f, ..)| *f == family)
        };
        if let (false, Some(below)) = (is_changed, &self.below) {
            return below.first_of_each(family, ranges);
        }
        let first = |(from, to): &(Vec<u8>, Vec<u8>)| {
            let mut found = None;
            self.scan(family, from, to, &mut |key, value| {
                found = Some((key.to_vec(), Bytes::copy_from_slice(value)));
                false
            })?;
            Ok(found)
        };
        ranges.iter().map(first).collect()
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        let mut end = to.to_vec();
        loop {
            let (changed, below) = {
                let above = self.above.read();
                let changed = above.changed(family, from, &end).pop();
                let below = self.below.as_ref().map(|b| b.last(family, from, &end));
                (changed, below.transpose()?.flatten())
            };
            let (key, value) = match (changed, below) {
                (None, None) => return Ok(None),
                (Some((key, value)), Some((k, _))) if key >= k => (key, value),
                (Some((key, value)), None) => (key, value),
                (_, Some((key, value))) => {
                    let gone = self.above.read().is_dropped(family, &key);
                    (key, (!gone).then_some(value))
                }
            };
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
            // The last one is gone: the one before it.
            end = key;
        }
    }

    fn ingest(
        &self,
        family: Family,
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<(), StoreError> {
        let mut above = self.above.write();
        let changed = above.families.entry(family).or_default();
        changed.extend(pairs.map(|(key, value)| (key, Some(value))));
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut above = self.above.write();
        for change in batch.0 {
            let (family, key, value) = match change {
                Change::Put(family, key, value) => (family, key, Some(Bytes::from(value))),
                Change::Delete(family, key) => (family, key, None),
            };
            above.families.entry(family).or_default().insert(key, value);
        }
        Ok(())
    }

    fn drop_range(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        let mut above = self.above.write();
        if let Some(changed) = above.families.get_mut(&family) {
            changed.retain(|key, _| key.as_slice() < from || key.as_slice() >= to);
        }
        above.dropped.push((family, from.to_vec(), to.to_vec()));
        Ok(())
    }
}

impl Parts {
    /// The files of a context's journal directory, to be looked at: whatever is done with the parts, the files stay as they are.
    ///
    /// # Errors
    /// As [`Parts::open_dir`]; and when a daemon has them.
    pub fn open_shadow(dir: &Path, lfc_size: u64) -> Result<Self, JournalError> {
        let (superblock, tails) = media_of(dir, lfc_size)?;
        Ok(Self::new(store_of(dir)?, superblock, tails))
    }
}

type Media = (Arc<dyn Medium>, [Arc<dyn Medium>; 2]);

/// Superblock and tails of a journal's folder, as shadows.
pub(crate) fn media_of(dir: &Path, lfc_size: u64) -> Result<Media, JournalError> {
    nothing_is_gone(dir).map_err(|e| JournalError::io(dir.display().to_string(), e))??;
    let medium = |name: &str, len: u64| shadow_of(&dir.join(name), len);
    let superblock = medium("super", SUPERBLOCK_BYTES)?;
    let tails = [
        medium("tail.0", tail_bytes(lfc_size))?,
        medium("tail.1", tail_bytes(lfc_size))?,
    ];
    Ok((superblock, tails))
}

/// The store of a journal's folder, as a shadow.
pub(crate) fn store_of(dir: &Path) -> Result<Arc<dyn Store>, JournalError> {
    let below = match is_half_made(dir).map_err(|e| JournalError::io(dir.display().to_string(), e))? {
        true => None,
        false => Some(Arc::new(RocksStore::open_read_only(&dir.join("db"))?) as Arc<dyn Store>),
    };
    Ok(Arc::new(ShadowStore::new(below)))
}

fn shadow_of(path: &Path, len: u64) -> Result<Arc<dyn Medium>, JournalError> {
    let below = match FileMedium::open_read_only(path) {
        Ok(medium) => Some(Arc::new(medium) as Arc<dyn Medium>),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(JournalError::io(path.display().to_string(), e)),
    };
    Ok(Arc::new(ShadowMedium::new(below, len)))
}

/// Whether a first start was cut off before there was a store: nothing was ever begun.
fn is_half_made(dir: &Path) -> io::Result<bool> {
    let begun = match File::open(dir.join("super")) {
        Ok(mut file) => is_used(&mut file)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    let store = dir.join("db");
    if begun || store.join("CURRENT").exists() {
        return Ok(false);
    }
    let mut entries = match std::fs::read_dir(&store) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    Ok(!entries.any(|entry| entry.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "sst"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use testkit::{SimPower, with_seeds};

    #[test]
    fn a_medium_reads_as_if_it_were_written_and_what_is_below_stays() {
        with_seeds("shadow media", 50, |rng| {
            let power = SimPower::new();
            let below = power.medium("m", 20_000);
            let mut model: Vec<u8> = (0..20_000).map(|_| rng.random()).collect();
            below.write_at(0, &model).unwrap();
            let before = model.clone();
            let shadow = ShadowMedium::new(Some(Arc::new(below.clone())), 30_000);
            model.resize(30_000, 0);
            for _ in 0..40 {
                let at = rng.random_range(0..29_999);
                let len = rng.random_range(1..=(30_000 - at).min(9000));
                if rng.random_bool(0.3) {
                    shadow.write_zeroes(at as u64, len as u64).unwrap();
                    model[at..at + len].fill(0);
                } else {
                    let data: Vec<u8> = (0..len).map(|_| rng.random()).collect();
                    shadow.write_at(at as u64, &data).unwrap();
                    model[at..at + len].copy_from_slice(&data);
                }
                let at = rng.random_range(0..29_999);
                let len = rng.random_range(1..=(30_000 - at).min(9000));
                let mut found = vec![0; len];
                shadow.read_at(at as u64, &mut found).unwrap();
                assert!(found == model[at..at + len]);
            }
            assert!(shadow.write_at(29_999, &[0; 2]).is_err());
            let mut found = vec![0; 20_000];
            below.read_at(0, &mut found).unwrap();
            assert!(found == before);
        });
    }

    /// A shadow and a store that was really changed say the same.
    #[test]
    fn a_store_reads_as_if_it_were_changed_and_what_is_below_stays() {
        let pairs = |store: &dyn Store| {
            let mut all = Vec::new();
            store
                .scan(Family::Undo, &[], &[0xff; 3], &mut |k, v| {
                    all.push((k.to_vec(), v.to_vec()));
                    true
                })
                .unwrap();
            all
        };
        with_seeds("shadow stores", 100, |rng| {
            let power = SimPower::new();
            let (below, real) = (Arc::new(power.store("a")), power.store("b"));
            let mut batch = Batch::default();
            for _ in 0..rng.random_range(0..30) {
                batch.put(
                    Family::Undo,
                    vec![rng.random_range(0..60u8)],
                    vec![rng.random::<u8>()],
                );
            }
            below.commit(batch.clone()).unwrap();
            real.commit(batch).unwrap();
            let before = pairs(&*below);
            let shadow = ShadowStore::new(Some(Arc::clone(&below) as Arc<dyn Store>));
            for _ in 0..12 {
                let (from, to) = (rng.random_range(0..60u8), rng.random_range(0..62u8));
                match rng.random_range(0..3) {
                    0 => {
                        let mut batch = Batch::default();
                        batch.put(Family::Undo, vec![from], vec![to]);
                        batch.delete(Family::Undo, vec![to]);
                        shadow.commit(batch.clone()).unwrap();
                        real.commit(batch).unwrap();
                    }
                    1 => {
                        let some = [(vec![from], Bytes::from_static(b"in"))];
                        shadow
                            .ingest(Family::Undo, &mut some.clone().into_iter())
                            .unwrap();
                        real.ingest(Family::Undo, &mut some.into_iter()).unwrap();
                    }
                    _ if from < to => {
                        shadow.drop_range(Family::Undo, &[from], &[to]).unwrap();
                        real.drop_range(Family::Undo, &[from], &[to]).unwrap();
                    }
                    _ => {}
                }
                assert_eq!(pairs(&shadow), pairs(&real));
                let (low, high) = (vec![from.min(to)], vec![from.max(to)]);
                assert_eq!(
                    shadow.last(Family::Undo, &low, &high).unwrap(),
                    real.last(Family::Undo, &low, &high).unwrap()
                );
                assert_eq!(
                    shadow.get(Family::Undo, &low).unwrap(),
                    real.get(Family::Undo, &low).unwrap()
                );
                let ranges = [(low.clone(), high.clone()), (high, vec![0xff])];
                assert_eq!(
                    shadow.first_of_each(Family::Undo, &ranges).unwrap(),
                    real.first_of_each(Family::Undo, &ranges).unwrap()
                );
            }
            assert_eq!(pairs(&*below), before);
        });
    }
}
