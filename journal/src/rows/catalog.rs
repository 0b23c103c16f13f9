//! Rows of the catalog: generations, containers, ordinals, marks.

use super::{begin, open, option, put_option, put_spans, spans};
use crate::{
    codec::{Malformed, Read, Reader, len32},
    frame::Digest,
    tail::SealFlags,
};
use model::{
    ByteRange, EventMark, GenId, GenNo, LfcId, Ordinal, Timestamp, VolumeIndex, WriteSeq, ports::OrdinalKind,
};

/// What a generation continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The generation before it.
    pub id: GenId,
    /// Last record of that generation that is on this line.
    pub seq: WriteSeq,
    /// Chain digest of that generation there, or at the last frame's end before it.
    pub digest: Digest,
}

/// A generation as this host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Number in this host's keys.
    pub no: GenNo,
    /// Its identity everywhere.
    pub id: GenId,
    /// What it continues; `None` for the first one of a context.
    pub parent: Option<Parent>,
    /// Its first record.
    pub first_seq: WriteSeq,
    /// Its first container.
    pub first_lfc: LfcId,
}

impl Generation {
    /// Digest before the generation's first frame: binds the chain to the generation and to what it continues.
    #[must_use]
    pub fn root_digest(&self) -> Digest {
        let mut h = blake3::Hasher::new();
        h.update(b"backstay generation 1");
        h.update(&self.id.0.to_le_bytes());
        if let Some(p) = &self.parent {
            h.update(&p.id.0.to_le_bytes());
            h.update(&p.seq.0.to_le_bytes());
            h.update(&p.digest);
        }
        h.finalize().into()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        let parent = self.parent.unwrap_or(Parent {
            id: GenId(0),
            seq: WriteSeq(0),
            digest: [0; 32],
        });
        w.u64(self.id.0).u64(self.first_seq.0).u64(self.first_lfc.0);
        w.u8(u8::from(self.parent.is_some()))
            .u64(parent.id.0)
            .u64(parent.seq.0)
            .bytes(&parent.digest);
        w.done()
    }

    pub(crate) fn decode(no: GenNo, bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let (id, first_seq, first_lfc) = (GenId(r.u64()?), WriteSeq(r.u64()?), LfcId(r.u64()?));
        let has_parent = r.u8()? == 1;
        let parent = Parent {
            id: GenId(r.u64()?),
            seq: WriteSeq(r.u64()?),
            digest: r.array()?,
        };
        r.end()?;
        Ok(Self {
            no,
            id,
            parent: has_parent.then_some(parent),
            first_seq,
            first_lfc,
        })
    }
}

/// What the catalog keeps of a sealed container, long after its frames are gone (`rules.md` T9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LfcRow {
    /// Its generation.
    pub generation: GenNo,
    /// The container.
    pub lfc: LfcId,
    /// Its first record.
    pub first_seq: WriteSeq,
    /// Its last record.
    pub last_seq: WriteSeq,
    /// Time of its first record.
    pub first_time: Timestamp,
    /// Time of its last record.
    pub last_time: Timestamp,
    /// How many frames.
    pub frames: u32,
    /// How many records.
    pub records: u64,
    /// How many of them change volumes.
    pub writes: u64,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Chain digest before its first frame.
    pub prev_digest: Digest,
    /// Chain digest at its end.
    pub end_digest: Digest,
    /// How it ended.
    pub sealed: SealFlags,
    /// Its frames were never stored here, or the sender dropped records before it (see `after_gap`).
    pub dropped: bool,
    /// The block index of the store holds its records.
    pub indexed: bool,
    /// Records between the container before and this one never came here.
    pub after_gap: bool,
}

impl LfcRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u64(self.first_seq.0)
            .u64(self.last_seq.0)
            .u64(self.first_time.0)
            .u64(self.last_time.0);
        w.u32(self.frames)
            .u64(self.records)
            .u64(self.writes)
            .u64(self.bytes);
        w.bytes(&self.prev_digest).bytes(&self.end_digest);
        let flags = u8::from(self.sealed.mark)
            | u8::from(self.dropped) << 1
            | u8::from(self.indexed) << 2
            | u8::from(self.after_gap) << 3;
        w.u8(flags);
        put_option(&mut w, self.sealed.cut.map(|s| s.0));
        w.done()
    }

    pub(crate) fn decode(generation: GenNo, lfc: LfcId, bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let mut row = Self {
            generation,
            lfc,
            first_seq: WriteSeq(r.u64()?),
            last_seq: WriteSeq(r.u64()?),
            first_time: Timestamp(r.u64()?),
            last_time: Timestamp(r.u64()?),
            frames: r.u32()?,
            records: r.u64()?,
            writes: r.u64()?,
            bytes: r.u64()?,
            prev_digest: r.array()?,
            end_digest: r.array()?,
            sealed: SealFlags::default(),
            dropped: false,
            indexed: false,
            after_gap: false,
        };
        let flags = r.u8()?;
        row.sealed = SealFlags {
            mark: flags & 1 != 0,
            cut: option(&mut r)?.map(WriteSeq),
        };
        row.dropped = flags & 2 != 0;
        row.indexed = flags & 4 != 0;
        row.after_gap = flags & 8 != 0;
        r.end()?;
        if flags > 15 {
            Err(Malformed::What("it has unknown flags"))
        } else {
            Ok(row)
        }
    }
}

/// What the catalog keeps of an undo container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrdinalRow {
    /// Its place in this host's order of overwrites.
    pub ordinal: Ordinal,
    /// What it belongs to.
    pub kind: OrdinalKind,
    /// How many blocks it holds.
    pub blocks: u64,
    /// Bytes of those that are not zero.
    pub bytes: u64,
}

impl OrdinalRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u64(self.blocks).u64(self.bytes);
        match &self.kind {
            OrdinalKind::Apply {
                generation,
                lfc,
                last_seq,
            } => {
                w.u8(0).u32(generation.0).u64(lfc.0).u64(last_seq.0);
            }
            OrdinalKind::Local {
                restore_from,
                base,
                redo,
            } => {
                w.u8(1).u64(restore_from.0).u64(base.0);
                put_spans(&mut w, redo);
            }
            OrdinalKind::Copies => {
                w.u8(2);
            }
        }
        w.done()
    }

    pub(crate) fn decode(ordinal: Ordinal, bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let (blocks, data) = (r.u64()?, r.u64()?);
        let kind = match r.u8()? {
            0 => OrdinalKind::Apply {
                generation: GenNo(r.u32()?),
                lfc: LfcId(r.u64()?),
                last_seq: WriteSeq(r.u64()?),
            },
            1 => OrdinalKind::Local {
                restore_from: Ordinal(r.u64()?),
                base: Ordinal(r.u64()?),
                redo: spans(&mut r)?,
            },
            2 => OrdinalKind::Copies,
            _ => return Err(Malformed::What("an ordinal's kind is not known")),
        };
        r.end()?;
        Ok(Self {
            ordinal,
            kind,
            blocks,
            bytes: data,
        })
    }
}

pub(crate) fn encode_mark(m: &EventMark) -> Vec<u8> {
    let mut w = begin();
    w.u64(m.lfc.0).u64(m.time.0).text(&m.name).text(&m.description);
    // A row without it is one byte for byte of before there was such a time.
    if let Some(ns) = m.keep_ns {
        w.u64(ns);
    }
    w.done()
}

pub(crate) fn decode_mark(generation: GenNo, seq: WriteSeq, bytes: &[u8]) -> Read<EventMark> {
    let mut r = open(bytes)?;
    let (lfc, time) = (LfcId(r.u64()?), Timestamp(r.u64()?));
    let (name, description) = (r.text()?, r.text()?);
    let keep_ns = (!r.0.is_empty()).then(|| r.u64()).transpose()?;
    r.end()?;
    Ok(EventMark {
        name,
        description,
        generation,
        seq,
        lfc,
        time,
        keep_ns,
    })
}

pub(crate) fn encode_step(from: Timestamp, to: Timestamp) -> Vec<u8> {
    begin().u64(from.0).u64(to.0).done()
}

pub(crate) fn decode_step(bytes: &[u8]) -> Read<(Timestamp, Timestamp)> {
    let mut r = open(bytes)?;
    let step = (Timestamp(r.u64()?), Timestamp(r.u64()?));
    r.end()?;
    Ok(step)
}

/// The ranges that a container changed: sorted, disjoint.
pub(crate) fn encode_touched(ranges: &[(VolumeIndex, ByteRange)]) -> Vec<u8> {
    let mut w = begin();
    w.u32(len32(ranges.len()));
    for (v, r) in ranges {
        w.u16(v.0).u64(r.start).u64(r.end);
    }
    w.done()
}

pub(crate) fn decode_touched(bytes: &[u8]) -> Read<Vec<(VolumeIndex, ByteRange)>> {
    let mut r = open(bytes)?;
    let n = r.u32()?;
    let read = |r: &mut Reader<'_>| {
        Ok((
            VolumeIndex(r.u16()?),
            ByteRange {
                start: r.u64()?,
                end: r.u64()?,
            },
        ))
    };
    let ranges = (0..n).map(|_| read(&mut r)).collect::<Read<Vec<_>>>()?;
    r.end()?;
    Ok(ranges)
}
