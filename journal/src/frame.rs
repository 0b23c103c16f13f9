//! Frames: one group commit as canonical bytes, the same in journal, wire and archive (`docs/formats/journal.md`, "Frame").
//!
//! A frame names its generation, its container, its first record and the digest of all frames before it in its
//! generation; it ends with the digest that includes itself. So a frame found anywhere proves by itself whether it
//! continues what is there. What only one host knows (such as its `durable`) is not in it.

use crate::{
    codec::{Malformed, Reader, Writer, len32, other_magic},
    record::{self, Draft},
};
use bytes::Bytes;
use model::{GenId, LfcId, Record, RecordBody, Timestamp, WriteSeq, checks};

/// Chain digest: blake3 over the frame before its end, which holds the digest before it.
pub type Digest = [u8; 32];

/// Most bytes of records in one frame.
pub const FRAME_BODY_BYTES_MAX: usize = 4 << 20;
/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 80;
/// Bytes of a frame besides its body.
pub const FRAME_EXTRA_BYTES: usize = FRAME_HEADER_BYTES + 32;
/// Most bytes of a frame.
pub const FRAME_BYTES_MAX: usize = FRAME_BODY_BYTES_MAX + FRAME_EXTRA_BYTES;

/// "BSF" and the version.
const MAGIC: [u8; 4] = *b"BSF\x01";

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It begins with another magic.
    #[error("it does not begin as a frame does")]
    Magic,
    /// The version is another.
    #[error("its version is {found}, this build reads up to {known}")]
    Version {
        /// Its version.
        found: u8,
        /// The newest that is read.
        known: u8,
    },
    /// The header fails its checksum.
    #[error("the header's checksum is wrong")]
    Header,
    /// A length is outside its limits or the bytes end early.
    #[error("a length is wrong")]
    Length,
    /// The body fails its checksum.
    #[error("the body's checksum is wrong")]
    Body,
    /// The digest at the end does not match.
    #[error("the digest is wrong")]
    Digest,
    /// A record inside is malformed.
    #[error("record {at}: {what}")]
    Record {
        /// Its place in the frame.
        at: u32,
        /// What is wrong.
        what: &'static str,
    },
}

impl From<Malformed> for FrameError {
    fn from(fault: Malformed) -> Self {
        match fault {
            Malformed::Version { found, known } => Self::Version { found, known },
            Malformed::What(_) => Self::Length,
        }
    }
}

/// The fields of a frame's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Generation of all its records.
    pub generation: GenId,
    /// Container that holds it.
    pub lfc: LfcId,
    /// Its first record.
    pub first_seq: WriteSeq,
    /// How many records it has, at least one.
    pub records: u32,
    /// Bytes of the body.
    pub body_len: u32,
    body_crc: u32,
    /// Chain digest before it.
    pub prev_digest: Digest,
}

impl FrameHeader {
    /// Reads a header; what follows it is not looked at.
    ///
    /// # Errors
    /// When the bytes are no frame header.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut r = Reader(bytes);
        if r.array::<4>()? != MAGIC {
            let header = bytes
                .get(..FRAME_HEADER_BYTES)
                .and_then(|h| h.split_last_chunk::<4>());
            let checks = header.is_some_and(|(h, crc)| crc32c::crc32c(h).to_le_bytes() == *crc);
            return Err(match other_magic(bytes, &MAGIC, "no frame") {
                Malformed::Version { found, known } if checks => FrameError::Version { found, known },
                _ => FrameError::Magic,
            });
        }
        let records = r.u32()?;
        let generation = GenId(r.u64()?);
        let lfc = LfcId(r.u64()?);
        let first_seq = WriteSeq(r.u64()?);
        let body_len = r.u32()?;
        let body_crc = r.u32()?;
        let prev_digest = r.array()?;
        let reserved = r.u32()?;
        if !checks(&crc32c::crc32c(&bytes[..FRAME_HEADER_BYTES - 4]), &r.u32()?) {
            return Err(FrameError::Header);
        }
        let sound = reserved == 0
            && body_len as usize <= FRAME_BODY_BYTES_MAX
            && records > 0
            && u64::from(records) * record::RECORD_HEADER_BYTES as u64 <= u64::from(body_len)
            && lfc.is_redo()
            && first_seq.0 > 0
            && first_seq.0.checked_add(u64::from(records)).is_some();
        if !sound {
            return Err(FrameError::Length);
        }
        Ok(Self {
            generation,
            lfc,
            first_seq,
            records,
            body_len,
            body_crc,
            prev_digest,
        })
    }

    /// The frame's last record.
    #[must_use]
    pub fn last_seq(&self) -> WriteSeq {
        WriteSeq(self.first_seq.0 + u64::from(self.records) - 1)
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.body_len as usize + FRAME_EXTRA_BYTES
    }
}

/// A checked frame with its records, whose data are slices of the frame's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    header: FrameHeader,
    records: Vec<Record>,
}

/// Where a frame goes: the fields of its header that do not come from its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) generation: GenId,
    pub(crate) lfc: LfcId,
    pub(crate) first_seq: WriteSeq,
    pub(crate) prev_digest: Digest,
}

impl Frame {
    /// Encodes records after `envelope` zero bytes, which the caller may fill; answers all bytes.
    pub(crate) fn encode(place: &Place, drafts: &[(Draft, Timestamp)], envelope: usize) -> Vec<u8> {
        let body: usize = drafts.iter().map(|(d, _)| crate::codec::index(d.len())).sum();
        let mut out = Vec::with_capacity(envelope + body + FRAME_EXTRA_BYTES);
        out.resize(envelope + FRAME_HEADER_BYTES, 0);
        for (draft, time) in drafts {
            record::encode(&mut out, draft.volume, *time, &draft.body);
        }
        let body_crc = crc32c::crc32c(&out[envelope + FRAME_HEADER_BYTES..]);
        let mut w = Writer(Vec::with_capacity(FRAME_HEADER_BYTES));
        w.bytes(&MAGIC)
            .u32(len32(drafts.len()))
            .u64(place.generation.0)
            .u64(place.lfc.0)
            .u64(place.first_seq.0);
        w.u32(len32(body)).u32(body_crc).bytes(&place.prev_digest).u32(0);
        let crc = crc32c::crc32c(&w.0);
        w.u32(crc);
        out[envelope..envelope + FRAME_HEADER_BYTES].copy_from_slice(&w.0);
        let digest = blake3::hash(&out[envelope..]);
        out.extend_from_slice(digest.as_bytes());
        out
    }

    /// A frame of its own, for tests and tools.
    #[must_use]
    pub fn build(
        generation: GenId,
        lfc: LfcId,
        first_seq: WriteSeq,
        prev_digest: Digest,
        drafts: &[(Draft, Timestamp)],
    ) -> Bytes {
        Bytes::from(Self::encode(
            &Place {
                generation,
                lfc,
                first_seq,
                prev_digest,
            },
            drafts,
            0,
        ))
    }

    /// Reads and checks a frame; `bytes` must be exactly one.
    ///
    /// # Errors
    /// When anything in it does not check.
    pub fn parse(bytes: Bytes) -> Result<Self, FrameError> {
        let header = FrameHeader::parse(&bytes)?;
        if bytes.len() != header.frame_len() {
            return Err(FrameError::Length);
        }
        let end = bytes.len() - 32;
        let body = bytes.slice(FRAME_HEADER_BYTES..end);
        if !checks(&crc32c::crc32c(&body), &header.body_crc) {
            return Err(FrameError::Body);
        }
        if !checks(&blake3::hash(&bytes[..end]).as_bytes()[..], &bytes[end..]) {
            return Err(FrameError::Digest);
        }
        Self::with_records(bytes, header, &body)
    }

    /// As [`Frame::parse`] for bytes that this process has just encoded: the checksums are not computed again.
    pub(crate) fn parse_own(bytes: Bytes) -> Result<Self, FrameError> {
        let header = FrameHeader::parse(&bytes)?;
        let body = bytes.slice(FRAME_HEADER_BYTES..bytes.len() - 32);
        Self::with_records(bytes, header, &body)
    }

    fn with_records(bytes: Bytes, header: FrameHeader, body: &Bytes) -> Result<Self, FrameError> {
        let mut records = Vec::with_capacity(header.records as usize);
        let mut at = 0;
        for i in 0..header.records {
            let seq = WriteSeq(header.first_seq.0 + u64::from(i));
            let record = record::decode(body, &mut at, seq).map_err(|fault| match fault {
                Malformed::What(what) => FrameError::Record { at: i, what },
                fault @ Malformed::Version { .. } => fault.into(),
            })?;
            records.push(record);
        }
        if at != body.len() {
            return Err(FrameError::Length);
        }
        Ok(Self {
            bytes,
            header,
            records,
        })
    }

    /// The canonical bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of canonical bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// Generation of its records.
    #[must_use]
    pub fn generation(&self) -> GenId {
        self.header.generation
    }

    /// Its container.
    #[must_use]
    pub fn lfc(&self) -> LfcId {
        self.header.lfc
    }

    /// Its records in order; never empty.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Its first record's place.
    #[must_use]
    pub fn first_seq(&self) -> WriteSeq {
        self.header.first_seq
    }

    /// Its last record's place.
    #[must_use]
    pub fn last_seq(&self) -> WriteSeq {
        self.header.last_seq()
    }

    /// Time of its last record.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        self.records.last().map(|r| r.time).unwrap_or_default()
    }

    /// Chain digest with this frame in it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.bytes[self.bytes.len() - 32..]);
        digest
    }

    /// The clock after this frame: where a clock step went, else its last record's time.
    #[must_use]
    pub(crate) fn clock(&self) -> Timestamp {
        match self.records.last() {
            Some(Record {
                body: RecordBody::ClockStep { to, .. },
                ..
            }) => *to,
            Some(r) => r.time,
            None => Timestamp::default(),
        }
    }
}
