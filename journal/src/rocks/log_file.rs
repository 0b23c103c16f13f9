//! Files that RocksDB appends to, its list of files and its write-ahead logs, as a walk over their records.
//!
//! # Format
//!
//! Blocks of 32 KiB. A record is a masked CRC-32C of type and bytes (4), a length (2), a type (1), and the bytes; fewer than 7
//! bytes at the end of a block are not used. No record spans blocks. Types 5 to 8, 11 and 131 are those of a log that is written
//! again from its start; this store has none.
//!
//! # Why it is looked at before RocksDB sees it
//!
//! RocksDB's reader (11.8.1, `log_reader.cc`) answers a record of such a type behind one of another type with "bad record"
//! without stepping over it, and meets it again, for ever. One flipped bit makes one of them of the usual types 1 to 4: the
//! start would hang and say nothing.

use std::{ffi::OsStr, fs, io, path::Path};

pub(super) const BLOCK_BYTES: usize = 32 << 10;
pub(super) const HEADER_BYTES: usize = 7;

/// Looks at the list of files and the write-ahead logs in `dir`.
///
/// # Errors
/// The place of a record that RocksDB would read for ever, as text; or a failure to read.
pub(super) fn check(dir: &Path) -> io::Result<Result<(), String>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if !name.starts_with("MANIFEST-") && path.extension() != Some(OsStr::new("log")) {
            continue;
        }
        if let Some(at) = endless(&fs::read(&path)?) {
            return Ok(Err(format!(
                "{name}: the type of the record at byte {at} is damaged"
            )));
        }
    }
    Ok(Ok(()))
}

/// Where the record behind a whole one stands, if a whole one with a right checksum stands at `at`.
pub(super) fn whole(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at + HEADER_BYTES)?;
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let end = at + HEADER_BYTES + len;
    let body = bytes.get(at + HEADER_BYTES - 1..end)?;
    (crc32c::crc32c(body) == unmask(header) && header[6] != 0).then_some(end)
}

/// The checksum that a header holds.
pub(super) fn unmask(header: &[u8]) -> u32 {
    let masked = u32::from_le_bytes([header[0], header[1], header[2], header[3]]).wrapping_sub(0xa282_ead8);
    masked.rotate_left(15)
}

/// Where the next record can start.
pub(super) fn next_start(at: usize) -> usize {
    let left = BLOCK_BYTES - at % BLOCK_BYTES;
    if left < HEADER_BYTES { at + left } else { at }
}

/// Where a record stands that RocksDB would not step over. Behind damage it goes on with the next block, and so does this.
fn endless(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).step_by(BLOCK_BYTES).find_map(|block| {
        let mut at = block;
        while at / BLOCK_BYTES == block / BLOCK_BYTES {
            // A whole one of such a type is found too: only damage, or another program, put it there.
            let of_reused_log = matches!(bytes.get(at + HEADER_BYTES - 1), Some(5..=8 | 11 | 131));
            if of_reused_log {
                return Some(at);
            }
            at = next_start(whole(bytes, at)?);
        }
        None
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::RocksStore;
    use bytes::Bytes;
    use model::ports::{Batch, Family, Store};
    use std::sync::Arc;

    /// Where the records of a whole file start.
    pub(in super::super) fn records(bytes: &[u8]) -> Vec<usize> {
        let (mut at, mut out) = (0, Vec::new());
        while let Some(end) = whole(bytes, at) {
            out.push(at);
            at = next_start(end);
        }
        assert_eq!(at, bytes.len(), "every record is understood");
        out
    }

    /// A record of `len` bytes.
    pub(in super::super) fn record(record_type: u8, len: usize) -> Vec<u8> {
        let body: Vec<u8> = std::iter::once(record_type)
            .chain((0..len).map(|i| (i % 251) as u8))
            .collect();
        let masked = crc32c::crc32c(&body).rotate_right(15).wrapping_add(0xa282_ead8);
        let mut out = masked.to_le_bytes().to_vec();
        out.extend(u16::try_from(len).unwrap().to_le_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn a_flipped_bit_of_any_type_is_found_here_or_ends_the_reading() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(dir.path(), Arc::default()).unwrap();
        for n in 0..4u8 {
            let mut pairs = (0..4u8).map(|k| (vec![n, k], Bytes::from(vec![k; 40])));
            store.ingest(Family::Undo, &mut pairs).unwrap();
            let mut batch = Batch::default();
            // More than a block of the log.
            batch.put(Family::Meta, [n], vec![n; 40_000]);
            store.commit(batch).unwrap();
        }
        drop(store);
        let (mut lists, mut logs, mut here) = (0, 0, 0);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_log = path.extension() == Some(OsStr::new("log"));
            if !is_log && !name.starts_with("MANIFEST-") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for at in records(&bytes) {
                *(if is_log { &mut logs } else { &mut lists }) += 1;
                for bit in 0..8 {
                    let mut flipped = bytes.clone();
                    flipped[at + 6] ^= 1 << bit;
                    // In a folder of its own: RocksDB mends, and deletes.
                    let other = tempfile::tempdir().unwrap();
                    for file in fs::read_dir(dir.path()).unwrap() {
                        let file = file.unwrap();
                        if file.file_type().unwrap().is_file() {
                            fs::copy(file.path(), other.path().join(file.file_name())).unwrap();
                        }
                    }
                    fs::write(other.path().join(name), &flipped).unwrap();
                    match check(other.path()).unwrap() {
                        Err(why) => {
                            assert!(
                                why.contains(name) && why.ends_with(&format!("byte {at} is damaged")),
                                "{why}"
                            );
                            here += 1;
                        }
                        // It returns: with an error, or with fewer rows, which the caller's counter finds out.
                        Ok(()) => drop(RocksStore::open(other.path(), Arc::default())),
                    }
                }
            }
        }
        // One bit makes 5 of 1, 6 of 2, 7 of 3, and 5 and 6 of 4.
        assert!(
            lists > 10 && logs > 6 && here >= lists + logs,
            "{lists} {logs} {here}"
        );
    }

    #[test]
    fn behind_damage_the_next_block_is_looked_at() {
        let mut bytes = record(1, BLOCK_BYTES - 2 * HEADER_BYTES - 20);
        bytes.extend(record(1, 20));
        bytes.extend(record(1, 7));
        assert_eq!(endless(&bytes), None);
        bytes[3] ^= 1;
        assert_eq!(endless(&bytes), None, "RocksDB finds this one");
        bytes[BLOCK_BYTES + 6] ^= 4;
        assert_eq!(endless(&bytes), Some(BLOCK_BYTES));
        bytes[BLOCK_BYTES + 6] = 0;
        assert_eq!(endless(&bytes), None);
    }
}
