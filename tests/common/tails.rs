//! The tails of a node that is down: where their frames stand, and bits that rot there.

use super::Pair;
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const MAGIC: &[u8] = b"BSE\x01";

/// The folder of a node's journal.
pub fn journal(pair: &Pair, node: &str) -> PathBuf {
    pair.scratch.join(format!("state/{node}/c1/journal"))
}

/// The tail with the newest container, and where its whole frames stand.
pub fn open_tail(pair: &Pair, node: &str) -> (PathBuf, Vec<u64>) {
    let tails = [0, 1].map(|n| journal(pair, node).join(format!("tail.{n}")));
    let newest = tails.into_iter().max_by_key(|path| {
        let head = &fs::read(path).unwrap()[..4096];
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        // Container, then counter: a tail that was written anew keeps its container.
        (number(24), number(8))
    });
    let path = newest.unwrap();
    let all = fs::read(&path).unwrap();
    let mut entries = Vec::new();
    let mut at = 4096;
    while all[at..].starts_with(MAGIC) {
        entries.push(at as u64);
        at += 32 + u32::from_le_bytes(all[at + 4..at + 8].try_into().unwrap()) as usize;
    }
    (path, entries)
}

/// Flips a bit of a file at rest; once more, and it is as before.
pub fn rot(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    file.sync_all().unwrap();
}
