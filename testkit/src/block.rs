//! Self-describing blocks: 4 KiB that say what they are, so that a large history needs no copy of its bytes.
//!
//! | bytes | content (little-endian) |
//! | --- | --- |
//! | 0..8 | `BKSTBLOK` |
//! | 8..16 | volume |
//! | 16..24 | block number |
//! | 24..32 | version: the writer's own count, rising |
//! | 32..40 | time of the write, nanoseconds since 1970 |
//! | 40..48 | seed of the workload |
//! | 48..56 | sum of bytes 0..48 |
//! | 56..4096 | filler that follows from bytes 8..48, incompressible |
//!
//! As the filler follows from the header, [`check`] knows every byte: a block torn between two versions, a block in the
//! wrong place and a flipped bit are told apart. A block of zeroes was never written.

use model::{BLOCK_SIZE, BlockNo, Timestamp, VolumeIndex};

const MAGIC: &[u8; 8] = b"BKSTBLOK";
const SIZE: usize = BLOCK_SIZE as usize;
const SUM_AT: usize = 48;
const FILLER_AT: usize = 56;

/// What a block says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The volume it was written to.
    pub volume: VolumeIndex,
    /// The block of it.
    pub block: BlockNo,
    /// The writer's count of writes.
    pub version: u64,
    /// When it was written.
    pub time: Timestamp,
    /// The workload.
    pub seed: u64,
}

/// Why some bytes are no block as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Not 4096 bytes.
    #[error("{0} bytes are not a block of 4096")]
    Length(usize),
    /// Neither zero nor begun by the magic.
    #[error("neither zeroes nor a self-describing block")]
    Foreign,
    /// The header's sum is wrong.
    #[error("the header is damaged")]
    Header,
    /// The filler is not the header's.
    #[error("{header:?} is torn or damaged at byte {at}")]
    Torn {
        /// What the header says.
        header: Header,
        /// The first wrong byte.
        at: usize,
    },
    /// A good block of another place.
    #[error("{0:?} is in the wrong place")]
    Misplaced(Header),
}

/// A good mixer of 64 bits (splitmix64's).
pub(crate) const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// The block that the header describes.
#[must_use]
pub fn make(header: &Header) -> [u8; SIZE] {
    let mut out = [0; SIZE];
    out[..8].copy_from_slice(MAGIC);
    let fields = [
        u64::from(header.volume.0),
        header.block.0,
        header.version,
        header.time.0,
        header.seed,
    ];
    for (to, field) in out[8..].chunks_exact_mut(8).zip(fields) {
        to.copy_from_slice(&field.to_le_bytes());
    }
    let sum = fields.iter().fold(0, |sum, field| mix(sum ^ field));
    out[SUM_AT..FILLER_AT].copy_from_slice(&sum.to_le_bytes());
    let mut n = sum;
    for word in out[FILLER_AT..].chunks_exact_mut(8) {
        n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
        word.copy_from_slice(&mix(n).to_le_bytes());
    }
    out
}

/// What a block says it is; `None` for zeroes.
///
/// # Errors
/// When it is no block as [`make`] makes them.
pub fn check(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    if bytes.len() != SIZE {
        return Err(Fault::Length(bytes.len()));
    }
    if bytes.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    if &bytes[..8] != MAGIC {
        return Err(Fault::Foreign);
    }
    let field = |i: usize| {
        let at = 8 + 8 * i;
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
    };
    let header = Header {
        volume: VolumeIndex(u16::try_from(field(0)).map_err(|_| Fault::Header)?),
        block: BlockNo(field(1)),
        version: field(2),
        time: Timestamp(field(3)),
        seed: field(4),
    };
    let whole = make(&header);
    if bytes[..FILLER_AT] != whole[..FILLER_AT] {
        return Err(Fault::Header);
    }
    match bytes.iter().zip(&whole).position(|(a, b)| a != b) {
        Some(at) => Err(Fault::Torn { header, at }),
        None => Ok(Some(header)),
    }
}

/// As [`check`], and the block must be of this place.
///
/// # Errors
/// When it is no block as [`make`] makes them, or one of another place.
pub fn check_at(volume: VolumeIndex, block: BlockNo, bytes: &[u8]) -> Result<Option<Header>, Fault> {
    match check(bytes)? {
        Some(header) if (header.volume, header.block) != (volume, block) => Err(Fault::Misplaced(header)),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        volume: VolumeIndex(3),
        block: BlockNo(77),
        version: 5,
        time: Timestamp(6),
        seed: 7,
    };

    #[test]
    fn says_what_it_is() {
        let bytes = make(&HEADER);
        assert_eq!(check(&bytes), Ok(Some(HEADER)));
        assert_eq!(check_at(HEADER.volume, HEADER.block, &bytes), Ok(Some(HEADER)));
        assert_eq!(
            check_at(HEADER.volume, BlockNo(78), &bytes),
            Err(Fault::Misplaced(HEADER))
        );
        assert_eq!(check(&[0; SIZE]), Ok(None));
        assert_eq!(check(&bytes[1..]), Err(Fault::Length(4095)));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = make(&HEADER);
        for at in 0..SIZE {
            let mut bad = bytes;
            bad[at] ^= 1 << (at % 8);
            let fault = check(&bad).unwrap_err();
            match at {
                0..8 => assert_eq!(fault, Fault::Foreign),
                8..FILLER_AT => assert_eq!(fault, Fault::Header),
                _ => assert_eq!(fault, Fault::Torn { header: HEADER, at }),
            }
        }
    }

    #[test]
    fn versions_torn_together_are_seen() {
        let (old, new) = (make(&HEADER), make(&Header { version: 6, ..HEADER }));
        for sectors in 1..8 {
            let mut torn = old;
            torn[..sectors * 512].copy_from_slice(&new[..sectors * 512]);
            assert!(matches!(check(&torn), Err(Fault::Torn { at, .. }) if at == sectors * 512));
        }
    }
}
