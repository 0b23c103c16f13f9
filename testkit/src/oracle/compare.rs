//! Comparing what can be read with what the oracle knows.

use super::{Oracle, bytes_of, small};
use crate::block;
use model::{BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex, WriteSeq};
use std::{fmt, io};

/// Something with volumes that can be read: a view, a set of files, NBD connections.
///
/// A closure `FnMut(VolumeIndex, u64, &mut [u8]) -> io::Result<()>` is one.
pub trait Read {
    /// Fills `out` from offset `at` of a volume.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, volume: VolumeIndex, at: u64, out: &mut [u8]) -> io::Result<()>;
}

impl<F: FnMut(VolumeIndex, u64, &mut [u8]) -> io::Result<()>> Read for F {
    fn read(&mut self, volume: VolumeIndex, at: u64, out: &mut [u8]) -> io::Result<()> {
        self(volume, at, out)
    }
}

/// The first block that is not what it must be.
#[derive(Debug)]
pub struct Mismatch {
    /// Its volume.
    pub volume: VolumeIndex,
    /// Its number.
    pub block: BlockNo,
    /// The position it was compared at.
    pub at: WriteSeq,
    /// The first wrong byte of the volume.
    pub offset: u64,
    /// The record that made the block what it must be.
    pub expected: Option<WriteSeq>,
    /// The records after which the block was what it is now; empty: it never was.
    pub found: Vec<WriteSeq>,
    /// What the block says of itself, if it describes itself.
    pub says: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            volume,
            block,
            at,
            offset,
            ..
        } = self;
        write!(
            f,
            "volume {volume} block {} differs at byte {offset} as of seq {at}: ",
            block.0
        )?;
        match self.expected {
            Some(seq) => write!(f, "must be what seq {seq} made it")?,
            None => write!(f, "must never have been written")?,
        }
        if self.found.is_empty() {
            write!(f, ", is what it never was")?;
        } else {
            let seqs: Vec<String> = self.found.iter().map(ToString::to_string).collect();
            write!(f, ", is as after seq {}", seqs.join(", "))?;
        }
        write!(f, " ({})", self.says)
    }
}

impl std::error::Error for Mismatch {}

/// Why something stands at no position.
#[derive(Debug)]
pub struct NoPrefix {
    /// The positions that all blocks before this one left open.
    pub open: Vec<(WriteSeq, WriteSeq)>,
    /// The block that fits none of them.
    pub volume: VolumeIndex,
    /// Its number.
    pub block: BlockNo,
    /// The positions at which this block alone would be right.
    pub fits: Vec<(WriteSeq, WriteSeq)>,
    /// What the block says of itself.
    pub says: String,
}

impl fmt::Display for NoPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spans = |spans: &[(WriteSeq, WriteSeq)]| {
            let texts: Vec<String> = spans.iter().map(|(a, b)| format!("{a}..={b}")).collect();
            if texts.is_empty() {
                "none".to_owned()
            } else {
                texts.join(", ")
            }
        };
        write!(
            f,
            "no prefix of the history: all before fits at seq {}; volume {} block {} fits at {} ({})",
            spans(&self.open),
            self.volume,
            self.block.0,
            spans(&self.fits),
            self.says
        )
    }
}

impl std::error::Error for NoPrefix {}

fn says(bytes: &[u8]) -> String {
    match block::check(bytes) {
        Ok(None) => "zeroes".to_owned(),
        Ok(Some(header)) => format!("{header:?}"),
        Err(fault) => fault.to_string(),
    }
}

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

impl Oracle {
    /// The records after which a block was exactly `bytes`; 0 stands for "never written".
    #[must_use]
    pub fn which(&self, volume: VolumeIndex, number: BlockNo, bytes: &[u8]) -> Vec<WriteSeq> {
        let versions = self.volume(volume).blocks.get(&number);
        let zero = bytes.iter().all(|b| *b == 0).then_some(WriteSeq(0));
        let same = versions
            .into_iter()
            .flatten()
            .filter(|(_, content)| bytes_of(volume, number, content) == *bytes)
            .map(|(seq, _)| *seq);
        zero.into_iter().chain(same).collect()
    }

    /// Reads all of all volumes and compares them with position `at`.
    ///
    /// # Errors
    /// With the first block that differs; a failed read is one too.
    pub fn compare(&self, at: WriteSeq, from: &mut impl Read) -> Result<(), Box<Mismatch>> {
        for volume in self.volumes() {
            let size = self.size(volume, at);
            for start in (0..size).step_by(small(CHUNK)) {
                let range = ByteRange {
                    start,
                    end: size.min(start + CHUNK),
                };
                self.compare_range(at, volume, range, from)?;
            }
        }
        Ok(())
    }

    /// As [`Oracle::compare`], but only blocks that any record touched: for volumes too large to read whole.
    ///
    /// # Errors
    /// With the first block that differs.
    pub fn compare_held(&self, at: WriteSeq, from: &mut impl Read) -> Result<(), Box<Mismatch>> {
        for volume in self.volumes() {
            let whole = ByteRange {
                start: 0,
                end: self.size(volume, at),
            };
            for number in self.held(volume) {
                if let Some(range) = ByteRange::at(number.start(), BLOCK_SIZE).intersect(whole) {
                    self.compare_range(at, volume, range, from)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a range and compares it with position `at`.
    ///
    /// # Errors
    /// With the first block that differs.
    pub fn compare_range(
        &self,
        at: WriteSeq,
        volume: VolumeIndex,
        range: ByteRange,
        from: &mut impl Read,
    ) -> Result<(), Box<Mismatch>> {
        let mut found = vec![0xA5; small(range.len())];
        if let Err(error) = from.read(volume, range.start, &mut found) {
            return Err(Box::new(Mismatch {
                volume,
                block: BlockNo::of(range.start),
                at,
                offset: range.start,
                expected: None,
                found: Vec::new(),
                says: format!("{} bytes cannot be read: {error}", range.len()),
            }));
        }
        let expected = self.bytes(volume, range, at);
        let Some(i) = found.iter().zip(&expected).position(|(a, b)| a != b) else {
            return Ok(());
        };
        let offset = range.start + i as u64;
        let number = BlockNo::of(offset);
        let mut whole = self.block(volume, number, at).to_vec();
        let part = ByteRange::at(number.start(), BLOCK_SIZE)
            .intersect(range)
            .expect("the block meets the range");
        whole[small(part.start - number.start())..small(part.end - number.start())]
            .copy_from_slice(&found[small(part.start - range.start)..small(part.end - range.start)]);
        Err(Box::new(Mismatch {
            volume,
            block: number,
            at,
            offset,
            expected: self.volume(volume).at(number, at).map(|(seq, _)| *seq),
            found: self.which(volume, number, &whole),
            says: says(&whole),
        }))
    }

    /// The positions, as rising inclusive spans, at which all volumes read exactly so. After a crash these must meet what
    /// had been promised: `prefixes(..)?.last()` reaches the last flushed write.
    ///
    /// Volumes are taken at their size of the head. Only blocks that any record touched are read.
    ///
    /// # Errors
    /// When there is none: what is read is no prefix of the history.
    pub fn prefixes(&self, from: &mut impl Read) -> Result<Vec<(WriteSeq, WriteSeq)>, Box<NoPrefix>> {
        let head = self.head();
        let mut open = vec![(WriteSeq(0), head)];
        for volume in self.volumes() {
            let size = self.size(volume, head);
            for (number, versions) in &self.volume(volume).blocks {
                let mut bytes = [0; BLOCK_SIZE as usize];
                let len = small(size.saturating_sub(number.start()).min(BLOCK_SIZE));
                let read = from.read(volume, number.start(), &mut bytes[..len]);
                let mut fits: Vec<(WriteSeq, WriteSeq)> = Vec::new();
                let starts = std::iter::once(WriteSeq(0)).chain(versions.iter().map(|(seq, _)| *seq));
                let ends = versions.iter().map(|(seq, _)| WriteSeq(seq.0 - 1)).chain([head]);
                for (i, span) in starts.zip(ends).enumerate() {
                    let same = match i.checked_sub(1).and_then(|i| versions.get(i)) {
                        None => bytes == [0; BLOCK_SIZE as usize],
                        Some((_, content)) => bytes == bytes_of(volume, *number, content),
                    };
                    match fits.last_mut() {
                        _ if !same => {}
                        Some((_, end)) if end.0 + 1 == span.0.0 => *end = span.1,
                        _ => fits.push(span),
                    }
                }
                if read.is_err() {
                    fits.clear();
                }
                let both = intersect(&open, &fits);
                if both.is_empty() {
                    let says = read.map_or_else(|error| error.to_string(), |()| says(&bytes));
                    return Err(Box::new(NoPrefix {
                        open,
                        volume,
                        block: *number,
                        fits,
                        says,
                    }));
                }
                open = both;
            }
        }
        Ok(open)
    }
}

/// What two lists of rising inclusive spans have in common.
fn intersect(a: &[(WriteSeq, WriteSeq)], b: &[(WriteSeq, WriteSeq)]) -> Vec<(WriteSeq, WriteSeq)> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (start, end) = (x.0.max(y.0), x.1.min(y.1));
        if start <= end {
            out.push((start, end));
        }
        if x.1 < y.1 { i += 1 } else { j += 1 }
    }
    out
}
