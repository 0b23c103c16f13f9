//! Metadata contexts for the tools that know QEMU's names: what an incremental backup must read, and in which layer a block
//! lies (N17).
//!
//! | context | of | status |
//! | --- | --- | --- |
//! | `qemu:dirty-bitmap:since-TARGET` | a point, read-only | bit 0: a record behind TARGET, up to the point, changed it |
//! | `qemu:allocation-depth` | all exports | 0: it is in no layer, and zero; else the layer, the topmost is 1 |
//!
//! What changed is looked up once, when a client selects the context: it keeps that answer for as long as it is connected.

use model::ByteRange;
use nbd::{Errno, MetaContext, Status};
use std::ops::Range;

/// Name of the layers' context.
pub(super) const DEPTH: &str = "qemu:allocation-depth";
/// Names of what changed begin so; a target follows.
pub(super) const SINCE: &str = "qemu:dirty-bitmap:since-";
/// Marks that a list of contexts has at most, the newest. Others can be named all the same.
pub(super) const MARKS_LISTED: usize = 100;

/// What changed between two points.
pub(super) struct Dirty {
    /// Sorted, not touching.
    ranges: Vec<ByteRange>,
    size: u64,
}

impl Dirty {
    /// Ranges of a volume of this size.
    pub(super) const fn new(ranges: Vec<ByteRange>, size: u64) -> Self {
        Self { ranges, size }
    }
}

impl MetaContext for Dirty {
    fn status(&self, range: Range<u64>, max: usize) -> Result<Vec<Status>, Errno> {
        let end = range.end.min(self.size);
        let mut at = range.start;
        let mut out = Vec::new();
        let first = self.ranges.partition_point(|dirty| dirty.end <= at);
        for dirty in &self.ranges[first..] {
            if at >= end {
                break;
            }
            if dirty.start > at {
                let clean = dirty.start.min(end);
                out.push(status(at..clean, 0));
                at = clean;
            }
            if at < end {
                let until = dirty.end.min(end);
                out.push(status(at..until, 1));
                at = until;
            }
        }
        if at < end {
            out.push(status(at..end, 0));
        }
        out.truncate(max);
        Ok(out)
    }
}

fn status(range: Range<u64>, bits: u64) -> Status {
    Status {
        len: range.end - range.start,
        bits,
    }
}

/// In which layer each run of bytes lies, as the closure says it: runs from the range's start on, which may end before it does.
pub(super) struct Depth<F>(pub(super) F);

impl<F: Fn(ByteRange) -> Result<Vec<(ByteRange, u32)>, Errno> + Send + Sync> MetaContext for Depth<F> {
    fn status(&self, range: Range<u64>, max: usize) -> Result<Vec<Status>, Errno> {
        let range = ByteRange {
            start: range.start,
            end: range.end,
        };
        let depths = (self.0)(range)?;
        let depths = depths.into_iter().take(max);
        Ok(depths
            .map(|(range, depth)| Status {
                len: range.len(),
                bits: depth.into(),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_dirty_or_not() {
        let dirty = Dirty::new(
            vec![ByteRange::at(4096, 4096), ByteRange::at(16_384, 8192)],
            20_000,
        );
        let all = |range, max| -> Vec<(u64, u64)> {
            let found = dirty.status(range, max).unwrap();
            found.into_iter().map(|s| (s.len, s.bits)).collect()
        };
        assert_eq!(all(0..20_000, 9), [(4096, 0), (4096, 1), (8192, 0), (3616, 1)]);
        assert_eq!(all(5000..17_000, 9), [(3192, 1), (8192, 0), (616, 1)]);
        assert_eq!(all(0..20_000, 2), [(4096, 0), (4096, 1)]);
        assert_eq!(all(8192..9000, 9), [(808, 0)]);
        assert_eq!(Dirty::new(vec![], 10).status(0..10, 1).unwrap()[0].len, 10);
    }
}
