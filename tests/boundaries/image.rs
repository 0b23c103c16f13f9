//! A volume at one point of its history, brought forward change by change.

use crate::history::{Change, History, Survivors, blocks_of};
use model::{BLOCK_SIZE, ByteRange, Payload};
use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};
use std::{fs::File, os::unix::fs::FileExt};

const BLOCK: usize = BLOCK_SIZE as usize;

/// How much of a file is compared at once.
const CHUNK: usize = 64 << 10;

/// The bytes of a volume after so many changes.
pub struct Image {
    bytes: Vec<u8>,
    /// Blocks that may hold something.
    used: Vec<bool>,
    count: usize,
}

fn at(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

impl Image {
    /// A volume before anything was written to it.
    pub fn new(size: u64) -> Self {
        Self {
            bytes: vec![0; at(size)],
            used: vec![false; at(size.div_ceil(BLOCK_SIZE))],
            count: 0,
        }
    }

    /// Goes on to where so many changes are there. There is no way back.
    pub fn advance(&mut self, history: &History, count: usize) {
        assert!(count >= self.count, "there is no way back");
        for change in &history.changes[self.count..count] {
            let range = change.range;
            change
                .payload
                .copy_to(0, &mut self.bytes[at(range.start)..at(range.end)]);
            let whole = range.start.div_ceil(BLOCK_SIZE)..range.end / BLOCK_SIZE;
            for block in blocks_of(range) {
                self.used[at(block)] = !(matches!(change.payload, Payload::Zero) && whole.contains(&block));
            }
        }
        self.count = count;
    }

    /// The bytes of a range.
    pub fn bytes(&self, range: ByteRange) -> &[u8] {
        &self.bytes[at(range.start)..at(range.end)]
    }

    /// Makes a file of the same length hold what survived. The image must stand where the survivors are whole.
    ///
    /// Most of it is there already, from the state before: only what differs is written.
    pub fn write(&self, history: &History, survivors: &Survivors, file: &File) {
        assert_eq!(survivors.whole, self.count, "the image stands elsewhere");
        let mut found = vec![0; CHUNK];
        for (chunk, expected) in self.bytes.chunks(CHUNK).enumerate() {
            let start = (chunk * CHUNK) as u64;
            let found = &mut found[..expected.len()];
            let blocks = &self.used[chunk * CHUNK / BLOCK..][..expected.len().div_ceil(BLOCK)];
            if !blocks.contains(&true) {
                make_hole(file, start, expected.len() as u64);
                continue;
            }
            file.read_exact_at(found, start).unwrap();
            let both = expected.chunks(BLOCK).zip(found.chunks(BLOCK));
            for (n, (expected, _)) in both.enumerate().filter(|(_, (a, b))| a != b) {
                file.write_all_at(expected, start + (n * BLOCK) as u64).unwrap();
            }
        }
        for (n, blocks) in &survivors.more {
            write_change(&history.changes[*n], blocks.as_deref(), file);
        }
    }
}

/// Takes away whatever there is in a range of a file.
fn make_hole(file: &File, start: u64, len: u64) {
    match rustix::fs::seek(file, SeekFrom::Data(start)) {
        Ok(data) if data < start + len => {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, how, start, len).unwrap();
        }
        Ok(_) | Err(Errno::NXIO) => {}
        Err(e) => panic!("{e}"),
    }
}

/// Writes a change, or those of its blocks.
fn write_change(change: &Change, blocks: Option<&[bool]>, file: &File) {
    let first = blocks_of(change.range).start;
    for block in blocks_of(change.range) {
        if blocks.is_some_and(|kept| !kept[at(block - first)]) {
            continue;
        }
        let start = change.range.start.max(block * BLOCK_SIZE);
        let end = change.range.end.min((block + 1) * BLOCK_SIZE);
        let mut bytes = [0; BLOCK];
        let bytes = &mut bytes[..at(end - start)];
        match &change.payload {
            Payload::Zero => {}
            payload @ Payload::Data(_) => payload.copy_to(start - change.range.start, bytes),
        }
        file.write_all_at(bytes, start).unwrap();
    }
}
