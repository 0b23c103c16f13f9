//! Records: the ordered events of a context.

use crate::{ByteRange, Timestamp, VolumeIndex, WriteSeq};
use bytes::Bytes;

/// Bytes of a range: data, or the promise that all are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The bytes themselves.
    Data(Bytes),
    /// All bytes of the range are zero.
    Zero,
}

impl Payload {
    /// Bytes as a payload; nothing but zeroes becomes a flag (`rules.md` W5).
    #[must_use]
    pub fn of(bytes: Bytes) -> Self {
        if is_zero(&bytes) {
            Self::Zero
        } else {
            Self::Data(bytes)
        }
    }

    /// Copies `out.len()` bytes, from `skip` bytes into the payload, to `out`.
    ///
    /// # Panics
    /// When the payload is shorter than `skip + out.len()`.
    pub fn copy_to(&self, skip: u64, out: &mut [u8]) {
        match self {
            Self::Zero => out.fill(0),
            Self::Data(d) => {
                let from = usize::try_from(skip).expect("a payload fits in memory");
                out.copy_from_slice(&d[from..from + out.len()]);
            }
        }
    }
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // In two steps, because the first lets the compiler use wide loads.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|c| c.iter().fold(0, |a, b| a | b) == 0) && rest.iter().all(|b| *b == 0)
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// Bytes written at an offset; byte-exact, 1 byte to [`Record::WRITE_BYTES_MAX`].
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// A range became zero (`rules.md` W5; a discard is journaled as this, or not at all); up to [`Record::ZERO_BYTES_MAX`].
    Zero {
        /// The range.
        range: ByteRange,
        /// Whether the client asked for a discard (the range may be deallocated).
        discard: bool,
    },
    /// An event mark; the last record of its LFC.
    Mark {
        /// Name, checked with [`crate::EventMark::name_fault`].
        name: String,
        /// Free text.
        description: String,
        /// Nanoseconds for which its point stays pinned, window or not.
        keep_ns: Option<u64>,
    },
    /// The stub of a copy (`rules.md` C2): these bytes, exactly as of this record, go to the peer beside the journal.
    Copy {
        /// The region.
        range: ByteRange,
        /// blake3 of the region's bytes.
        digest: [u8; 32],
    },
    /// The volume's size from this record on (`rules.md` K3).
    Size {
        /// New size in bytes.
        size: u64,
    },
    /// The clock stepped back by more than a second (`rules.md` L5); later times count from `to`.
    ClockStep {
        /// The clock before the step.
        from: Timestamp,
        /// The clock after it.
        to: Timestamp,
    },
    /// The birth of a generation (its first record): what it continues.
    Birth {
        /// The generation it follows, if any.
        parent: Option<(crate::GenId, WriteSeq)>,
        /// Chain digest at the parent position; zeroes without a parent.
        parent_digest: [u8; 32],
    },
}

/// One ordered event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the write order.
    pub seq: WriteSeq,
    /// When it was ordered.
    pub time: Timestamp,
    /// The volume it concerns; 0 for events of the whole context.
    pub volume: VolumeIndex,
    /// What happened.
    pub body: RecordBody,
}

impl Record {
    /// Most bytes of one write record; longer requests are split.
    pub const WRITE_BYTES_MAX: u64 = 1 << 20;
    /// Most bytes of one zero record (`rules.md` W5).
    pub const ZERO_BYTES_MAX: u64 = 16 << 20;

    /// The bytes of its volume that this record changes.
    #[must_use]
    pub fn changed(&self) -> Option<ByteRange> {
        match &self.body {
            RecordBody::Write { offset, data } => Some(ByteRange::at(*offset, data.len() as u64)),
            RecordBody::Zero { range, .. } => Some(*range),
            _ => None,
        }
    }

    /// What [`Record::changed`] becomes.
    #[must_use]
    pub fn payload(&self) -> Option<Payload> {
        match &self.body {
            RecordBody::Write { data, .. } => Some(Payload::Data(data.clone())),
            RecordBody::Zero { .. } => Some(Payload::Zero),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for len in 0..200 {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
