//! RocksDB's list of files (`MANIFEST-NNNNNN`), looked at before RocksDB sees it.
//!
//! # Why
//!
//! A record whose length passes the end of the file is taken by RocksDB for one that a crash cut off: it and all records
//! behind it are dropped without a word, and then the files that only those records name are *deleted*. One flipped bit in
//! a length so takes whole containers of redo or undo, and a view whose undo is gone shows the volume instead. The row that
//! promises the undo is not lost with it: it stands in another file.
//!
//! # How a flipped length is told from a cut end
//!
//! The checksum of a record does not cover its length. So all lengths that fit into the file are tried: of a record that was cut
//! off none fits the checksum, and of a whole one its true length does, with the end of the file or another record behind
//! it. All other damage is found by RocksDB itself, but for the one that [`super::log_file`] looks for.

use super::log_file::{BLOCK_BYTES, HEADER_BYTES, next_start, unmask, whole};
use std::{fs, io, path::Path};

/// Looks at the list of files that `dir` names as its current one.
///
/// # Errors
/// The place of the record whose length is wrong, as text, or a failure to read; and when nothing says which list is the
/// current one although there are files of a store: RocksDB would begin a new one and delete them at the next start. All
/// else is left to RocksDB, which complains.
pub(super) fn check(dir: &Path) -> io::Result<Result<(), String>> {
    let read = |name: &str| match fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let Some(current) = read("CURRENT")? else {
        let left = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut of_store = left.filter(|name| name.starts_with("MANIFEST-") || name.ends_with(".sst"));
        return Ok(match of_store.next() {
            Some(name) => Err(format!(
                "CURRENT is gone, and files of a store are here, as {name}"
            )),
            None => Ok(()),
        });
    };
    let name = String::from_utf8_lossy(&current);
    let name = name.trim_end();
    if !name.starts_with("MANIFEST-") || name.contains('/') {
        return Ok(Ok(()));
    }
    let Some(bytes) = read(name)? else {
        return Ok(Ok(()));
    };
    Ok(match wrong_length(&bytes) {
        Some(at) => Err(format!(
            "{name}: the length of the record at byte {at} is damaged; it and all behind it would be lost"
        )),
        None => Ok(()),
    })
}

/// Where the record stands whose length passes the end of the file although it is whole.
fn wrong_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(end) = whole(bytes, at) {
        at = next_start(end);
    }
    let header = bytes.get(at..at + HEADER_BYTES)?;
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let block_end = bytes.len().min(at / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES);
    if at + HEADER_BYTES + len <= block_end {
        // Its checksum is wrong: RocksDB says so.
        return None;
    }
    let expected = unmask(header);
    let mut crc = crc32c::crc32c(&header[6..]);
    let mut end = at + HEADER_BYTES;
    loop {
        let next = next_start(end);
        if crc == expected && (next >= bytes.len() || whole(bytes, next).is_some()) {
            return Some(at);
        }
        if end == block_end {
            return None;
        }
        crc = crc32c::crc32c_append(crc, &bytes[end..=end]);
        end += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_file::tests::{record, records};
    use super::*;
    use crate::RocksStore;
    use bytes::Bytes;
    use model::ports::{Family, Store};
    use std::sync::Arc;

    /// A store with some ingested files, and its list of files.
    fn made() -> (tempfile::TempDir, String, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(dir.path(), Arc::default()).unwrap();
        for n in 0..6u8 {
            let mut pairs = (0..4u8).map(|k| (vec![n, k], Bytes::from(vec![k; 40])));
            store.ingest(Family::Undo, &mut pairs).unwrap();
        }
        drop(store);
        let name = fs::read_to_string(dir.path().join("CURRENT"))
            .unwrap()
            .trim_end()
            .to_owned();
        let bytes = fs::read(dir.path().join(&name)).unwrap();
        (dir, name, bytes)
    }

    #[test]
    fn a_flipped_bit_of_any_length_is_found_here_or_by_rocksdb() {
        let (dir, name, bytes) = made();
        let (mut here, mut there) = (0, 0);
        for at in records(&bytes) {
            for bit in 0..16 {
                let mut flipped = bytes.clone();
                flipped[at + 4 + bit / 8] ^= 1 << (bit % 8);
                fs::write(dir.path().join(&name), &flipped).unwrap();
                if let Err(why) = check(dir.path()).unwrap() {
                    assert!(
                        why.contains(&name) && why.contains(&format!("byte {at} ")),
                        "{why}"
                    );
                    here += 1;
                } else {
                    assert!(
                        RocksStore::open(dir.path(), Arc::default()).is_err(),
                        "record at {at}, bit {bit}"
                    );
                    there += 1;
                }
            }
        }
        assert!(here > 0 && there > 0, "{here} {there}");
    }

    #[test]
    fn a_cut_end_is_no_damage() {
        let (dir, name, bytes) = made();
        for len in 0..bytes.len() {
            fs::write(dir.path().join(&name), &bytes[..len]).unwrap();
            assert_eq!(
                check(dir.path()).unwrap(),
                Ok(()),
                "{len} of {} bytes",
                bytes.len()
            );
        }
    }

    #[test]
    fn records_span_blocks() {
        // The last bytes of a block that hold no header are passed over.
        let mut bytes = record(1, BLOCK_BYTES - 2 * HEADER_BYTES + 3);
        bytes.resize(BLOCK_BYTES, 0);
        bytes.extend(record(1, 100));
        bytes.extend(record(1, 50));
        assert_eq!(records(&bytes), [0, BLOCK_BYTES, BLOCK_BYTES + 107]);
        assert_eq!(wrong_length(&bytes), None);
        for at in [BLOCK_BYTES, BLOCK_BYTES + 107] {
            let mut flipped = bytes.clone();
            flipped[at + 5] ^= 0x10;
            assert_eq!(wrong_length(&flipped), Some(at));
        }
    }
}
