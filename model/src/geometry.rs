//! Blocks and byte ranges of a volume.

/// Bytes of one undo block. Undo, the indexes and the oracle count in blocks of this size; records are byte-exact.
pub const BLOCK_SIZE: u64 = 4096;

/// Number of a [`BLOCK_SIZE`] block in a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNo(pub u64);

impl BlockNo {
    /// The block that holds byte `at`.
    #[must_use]
    pub const fn of(at: u64) -> Self {
        Self(at / BLOCK_SIZE)
    }

    /// Offset of the block's first byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.0 * BLOCK_SIZE
    }
}

/// Half-open range of bytes of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// First byte after the range.
    pub end: u64,
}

impl ByteRange {
    /// The range of `len` bytes at `start`.
    #[must_use]
    pub const fn at(start: u64, len: u64) -> Self {
        Self {
            start,
            end: start + len,
        }
    }

    /// Bytes in the range.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// The part that both ranges hold, if any.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let r = Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        };
        (!r.is_empty()).then_some(r)
    }

    /// Every block that the range touches, first to last.
    pub fn blocks(self) -> impl Iterator<Item = BlockNo> {
        let last = if self.is_empty() {
            self.start / BLOCK_SIZE
        } else {
            self.end.div_ceil(BLOCK_SIZE)
        };
        (self.start / BLOCK_SIZE..last).map(BlockNo)
    }

    /// The range widened to whole blocks (it may pass the volume's end).
    #[must_use]
    pub fn block_aligned(self) -> Self {
        Self {
            start: self.start / BLOCK_SIZE * BLOCK_SIZE,
            end: self.end.div_ceil(BLOCK_SIZE) * BLOCK_SIZE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_ranges() {
        let blocks = |a, l| ByteRange::at(a, l).blocks().map(|b| b.0).collect::<Vec<_>>();
        assert_eq!(blocks(0, 1), [0]);
        assert_eq!(blocks(4095, 2), [0, 1]);
        assert_eq!(blocks(4096, 4096), [1]);
        assert_eq!(blocks(4096, 0), [0u64; 0]);
        assert_eq!(
            ByteRange::at(1, 4096).block_aligned(),
            ByteRange { start: 0, end: 8192 }
        );
        assert_eq!(ByteRange::at(0, 4).intersect(ByteRange::at(4, 4)), None);
    }
}
