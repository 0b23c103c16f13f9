//! Records as bytes inside a frame (`docs/formats/journal.md`, "Record").
//!
//! A record's sequence number is not stored: it is the frame's first number plus the record's place in the frame.

use crate::codec::{Malformed, Read, Reader, Writer, index, len32};
use bytes::Bytes;
use model::{ByteRange, EventMark, GenId, Record, RecordBody, Timestamp, VolumeIndex, WriteSeq, checks};

/// Bytes before a record's body.
pub(crate) const RECORD_HEADER_BYTES: usize = 20;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const MARK: u8 = 3;
const COPY: u8 = 4;
const SIZE: u8 = 5;
const CLOCK_STEP: u8 = 6;
const BIRTH: u8 = 7;

/// Set on a zero record that the client asked for as a discard.
const FLAG_DISCARD: u8 = 1;
/// Set on a birth record that has a parent.
const FLAG_PARENT: u8 = 1;
/// A mark that says how long it is to be kept.
const FLAG_KEEP: u8 = 1;

/// A record before it has a place and a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The volume it concerns; 0 for events of the whole context.
    pub volume: VolumeIndex,
    /// What happens.
    pub body: RecordBody,
}

impl Draft {
    /// Bytes that the record takes in a frame.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a record is never empty")]
    pub fn len(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + body_len(&self.body)
    }

    /// Most bytes of undo that overwriting a volume with it makes (`rules.md` W5).
    pub(crate) fn undo_bytes_max(&self) -> u64 {
        let range = match &self.body {
            RecordBody::Write { offset, data } => ByteRange::at(*offset, data.len() as u64),
            RecordBody::Zero { range, .. } => *range,
            _ => return 0,
        };
        range.block_aligned().len()
    }
}

fn body_len(body: &RecordBody) -> u64 {
    match body {
        RecordBody::Write { data, .. } => 8 + data.len() as u64,
        RecordBody::Zero { .. } | RecordBody::ClockStep { .. } => 16,
        RecordBody::Mark {
            name,
            description,
            keep_ns,
        } => {
            let keep = if keep_ns.is_some() { 8 } else { 0 };
            8 + name.len() as u64 + description.len() as u64 + keep
        }
        RecordBody::Copy { .. } | RecordBody::Birth { .. } => 48,
        RecordBody::Size { .. } => 8,
    }
}

/// Appends one record to `out`.
pub(crate) fn encode(out: &mut Vec<u8>, volume: VolumeIndex, time: Timestamp, body: &RecordBody) {
    let start = out.len();
    let (kind, flags) = match body {
        RecordBody::Write { .. } => (WRITE, 0),
        RecordBody::Zero { discard, .. } => (ZERO, if *discard { FLAG_DISCARD } else { 0 }),
        RecordBody::Mark { keep_ns, .. } => (MARK, if keep_ns.is_some() { FLAG_KEEP } else { 0 }),
        RecordBody::Copy { .. } => (COPY, 0),
        RecordBody::Size { .. } => (SIZE, 0),
        RecordBody::ClockStep { .. } => (CLOCK_STEP, 0),
        RecordBody::Birth { parent, .. } => (BIRTH, if parent.is_some() { FLAG_PARENT } else { 0 }),
    };
    let len = RECORD_HEADER_BYTES + index(body_len(body));
    let mut w = Writer(std::mem::take(out));
    w.u32(0)
        .u32(len32(len))
        .u8(kind)
        .u8(flags)
        .u16(volume.0)
        .u64(time.0);
    match body {
        RecordBody::Write { offset, data } => w.u64(*offset).bytes(data),
        RecordBody::Zero { range, .. } => w.u64(range.start).u64(range.len()),
        RecordBody::Mark {
            name,
            description,
            keep_ns,
        } => {
            w.text(name).text(description);
            match keep_ns {
                Some(ns) => w.u64(*ns),
                None => &mut w,
            }
        }
        RecordBody::Copy { range, digest } => w.u64(range.start).u64(range.len()).bytes(digest),
        RecordBody::Size { size } => w.u64(*size),
        RecordBody::ClockStep { from, to } => w.u64(from.0).u64(to.0),
        RecordBody::Birth {
            parent,
            parent_digest,
        } => {
            let (id, seq) = parent.unwrap_or_default();
            w.u64(id.0).u64(seq.0).bytes(parent_digest)
        }
    };
    *out = w.done();
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the record at the front of `body[*at..]`; data are slices of `body`.
pub(crate) fn decode(body: &Bytes, at: &mut usize, seq: WriteSeq) -> Read<Record> {
    let rest = body
        .get(*at..)
        .ok_or(Malformed::What("a record starts past the end"))?;
    let mut r = Reader(rest);
    let crc = r.u32()?;
    let len = r.u32()? as usize;
    if len < RECORD_HEADER_BYTES || len > rest.len() {
        return Err(Malformed::What("a record's length is wrong"));
    }
    if !checks(&crc32c::crc32c(&rest[4..len]), &crc) {
        return Err(Malformed::What("a record's checksum is wrong"));
    }
    let mut r = Reader(&rest[8..len]);
    let kind = r.u8()?;
    let flags = r.u8()?;
    let volume = VolumeIndex(r.u16()?);
    let time = Timestamp(r.u64()?);
    let range = |r: &mut Reader<'_>, max: u64| {
        let (start, len) = (r.u64()?, r.u64()?);
        if len == 0 || len > max || start.checked_add(len).is_none() {
            return Err(Malformed::What("a record's range is wrong"));
        }
        Ok(ByteRange::at(start, len))
    };
    if flags > 1 || (flags == 1 && ![ZERO, BIRTH, MARK].contains(&kind)) {
        return Err(Malformed::What("a record has unknown flags"));
    }
    let record_body = match kind {
        WRITE => {
            let offset = r.u64()?;
            let n = r.0.len();
            if n == 0 || n as u64 > Record::WRITE_BYTES_MAX || offset.checked_add(n as u64).is_none() {
                return Err(Malformed::What("a record's range is wrong"));
            }
            r.take(n)?;
            RecordBody::Write {
                offset,
                data: body.slice(*at + len - n..*at + len),
            }
        }
        ZERO => RecordBody::Zero {
            range: range(&mut r, Record::ZERO_BYTES_MAX)?,
            discard: flags & FLAG_DISCARD != 0,
        },
        MARK => {
            let (name, description) = (r.text()?, r.text()?);
            if EventMark::name_fault(&name).is_some() || description.len() > EventMark::DESCRIPTION_BYTES_MAX
            {
                return Err(Malformed::What("a mark's name or description is not allowed"));
            }
            let keep_ns = (flags & FLAG_KEEP != 0).then(|| r.u64()).transpose()?;
            RecordBody::Mark {
                name,
                description,
                keep_ns,
            }
        }
        COPY => RecordBody::Copy {
            range: range(&mut r, u64::MAX)?,
            digest: r.array()?,
        },
        SIZE => RecordBody::Size { size: r.u64()? },
        CLOCK_STEP => RecordBody::ClockStep {
            from: Timestamp(r.u64()?),
            to: Timestamp(r.u64()?),
        },
        BIRTH => {
            let parent = (GenId(r.u64()?), WriteSeq(r.u64()?));
            RecordBody::Birth {
                parent: (flags & FLAG_PARENT != 0).then_some(parent),
                parent_digest: r.array()?,
            }
        }
        _ => return Err(Malformed::What("a record has an unknown kind")),
    };
    r.end()?;
    *at += len;
    Ok(Record {
        seq,
        time,
        volume,
        body: record_body,
    })
}
