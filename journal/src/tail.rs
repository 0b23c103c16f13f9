//! Tail files: where the open container lives (`docs/formats/journal.md`, "Tail").
//!
//! # Overview
//!
//! A tail is a preallocated file that is overwritten in place: a header block that says which container it holds, then
//! entries, each an *envelope* that only this host knows and a canonical frame. Two tails alternate: while the sealed
//! container in one waits to be ingested, the other takes new frames.
//!
//! # Invariants
//!
//! - Nothing ends the entries but the first bytes that do not continue them: an entry counts only if its envelope and
//!   frame check, and the frame continues generation, container, sequence and chain of what is before it (`rules.md` T4).
//! - Every envelope carries the `durable` known when it was written, so that a later frame can prove an earlier one was
//!   durable (T5).
//!
//! # What it does not do
//!
//! It decides nothing: [`scan`] reports what is there, `recovery` judges.

use crate::{
    codec::{Malformed, Read, Reader, Writer, index, len32, other_magic},
    error::JournalError,
    frame::{Digest, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame},
};
use bytes::Bytes;
use model::{GenId, LfcId, WriteSeq, checks, ports::Medium};
use std::sync::Arc;

/// Bytes of the header block.
pub(crate) const HEADER_BYTES: u64 = 4096;
/// Bytes of an envelope.
pub(crate) const ENVELOPE_BYTES: usize = 32;
const HEADER_MAGIC: [u8; 8] = *b"BSTAIL\x00\x01";
const ENTRY_MAGIC: [u8; 4] = *b"BSE\x01";

/// Length of a tail file for containers of `lfc_size` bytes: room for one frame more than fits, so that a container may
/// end behind the frame that fills it.
#[must_use]
pub const fn tail_bytes(lfc_size: u64) -> u64 {
    HEADER_BYTES + lfc_size + (FRAME_BYTES_MAX + ENVELOPE_BYTES) as u64
}

/// How a container ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealFlags {
    /// Its last record is an event mark.
    pub mark: bool,
    /// The line goes on from this record of it, not from its end (`rules.md` L3).
    pub cut: Option<WriteSeq>,
}

/// Where a container starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) generation: GenId,
    pub(crate) lfc: LfcId,
    pub(crate) first_seq: WriteSeq,
    pub(crate) prev_digest: Digest,
    /// Records before `first_seq` were dropped by the sender and never came here.
    pub(crate) after_gap: bool,
}

/// The header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TailHeader {
    /// Of two tails with the same container the higher one holds it.
    pub(crate) counter: u64,
    pub(crate) start: Start,
    /// How the container before this one was sealed.
    pub(crate) prev_flags: SealFlags,
}

impl TailHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        let flags = u32::from(self.prev_flags.mark)
            | u32::from(self.prev_flags.cut.is_some()) << 1
            | u32::from(self.start.after_gap) << 2;
        w.bytes(&HEADER_MAGIC).u64(self.counter);
        w.u64(self.start.generation.0)
            .u64(self.start.lfc.0)
            .u64(self.start.first_seq.0);
        w.bytes(&self.start.prev_digest)
            .u32(flags)
            .u64(self.prev_flags.cut.unwrap_or_default().0);
        w.0.resize(index(HEADER_BYTES) - 4, 0);
        let crc = crc32c::crc32c(&w.0);
        w.u32(crc).done()
    }

    fn decode(block: &[u8]) -> Read<Self> {
        let mut r = Reader(block);
        if r.array::<8>()? != HEADER_MAGIC {
            let checks = block
                .split_last_chunk::<4>()
                .is_some_and(|(body, crc)| crc32c::crc32c(body).to_le_bytes() == *crc);
            return Err(match checks {
                true => other_magic(block, &HEADER_MAGIC, "no tail header"),
                false => Malformed::What("no tail header"),
            });
        }
        let counter = r.u64()?;
        let (generation, lfc, first_seq) = (GenId(r.u64()?), LfcId(r.u64()?), WriteSeq(r.u64()?));
        let prev_digest = r.array()?;
        let flags = r.u32()?;
        let cut = WriteSeq(r.u64()?);
        let (body, crc) = block.split_at(block.len() - 4);
        if !checks(&crc32c::crc32c(body).to_le_bytes()[..], crc)
            || flags > 7
            || !lfc.is_redo()
            || first_seq.0 == 0
        {
            return Err(Malformed::What("the tail header does not check"));
        }
        Ok(Self {
            counter,
            start: Start {
                generation,
                lfc,
                first_seq,
                prev_digest,
                after_gap: flags & 4 != 0,
            },
            prev_flags: SealFlags {
                mark: flags & 1 != 0,
                cut: (flags & 2 != 0).then_some(cut),
            },
        })
    }
}

/// Where a frame stands in a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameLoc {
    /// Offset of the frame (behind its envelope).
    pub(crate) at: u64,
    pub(crate) len: u32,
    pub(crate) first_seq: WriteSeq,
    pub(crate) records: u32,
}

impl FrameLoc {
    pub(crate) fn last_seq(&self) -> WriteSeq {
        WriteSeq(self.first_seq.0 + u64::from(self.records) - 1)
    }
}

/// Fills the envelope at the front of `entry`, whose frame is behind it.
pub(crate) fn fill_envelope(entry: &mut [u8], durable: WriteSeq) {
    let mut w = Writer(Vec::with_capacity(ENVELOPE_BYTES));
    w.bytes(&ENTRY_MAGIC)
        .u32(len32(entry.len() - ENVELOPE_BYTES))
        .u64(durable.0)
        .u64(0)
        .u32(0);
    let crc = crc32c::crc32c(&w.0);
    w.u32(crc);
    entry[..ENVELOPE_BYTES].copy_from_slice(&w.0);
}

/// The frame's length and the claimed `durable` of an envelope.
pub(crate) fn read_envelope(bytes: &[u8]) -> Read<(usize, WriteSeq)> {
    let mut r = Reader(
        bytes
            .get(..ENVELOPE_BYTES)
            .ok_or(Malformed::What("no room for an envelope"))?,
    );
    if r.array::<4>()? != ENTRY_MAGIC {
        return Err(Malformed::What("no envelope"));
    }
    let len = r.u32()? as usize;
    let durable = WriteSeq(r.u64()?);
    let crc = crc32c::crc32c(&bytes[..ENVELOPE_BYTES - 4]).to_le_bytes();
    if !checks(&crc[..], &bytes[ENVELOPE_BYTES - 4..ENVELOPE_BYTES]) {
        return Err(Malformed::What("the envelope's checksum is wrong"));
    }
    if !(FRAME_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&len) {
        return Err(Malformed::What("the envelope's length is wrong"));
    }
    Ok((len, durable))
}

/// A whole frame found behind the end of the entries, or in a tail without a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    pub(crate) at: u64,
    pub(crate) generation: GenId,
    pub(crate) lfc: LfcId,
    pub(crate) last_seq: WriteSeq,
    /// The `durable` it claims.
    pub(crate) durable: WriteSeq,
}

/// What stands in a tail.
pub(crate) struct Scan {
    /// The header, if it checks.
    pub(crate) header: Option<TailHeader>,
    /// The frames that continue each other from the header on.
    pub(crate) frames: Vec<(FrameLoc, Arc<Frame>)>,
    /// Where the entries end.
    pub(crate) end_at: u64,
    /// Why they end there.
    pub(crate) fault: String,
    /// Bytes of an entry of this container that is not whole.
    pub(crate) cut_bytes: u64,
    /// Whole frames behind `end_at`.
    pub(crate) strays: Vec<Stray>,
}

/// All bytes of a tail.
pub(crate) fn read_all(medium: &dyn Medium, name: &str) -> Result<Bytes, JournalError> {
    let mut all = vec![0; index(medium.len())];
    medium
        .read_at(0, &mut all)
        .map_err(|e| JournalError::io(name, e))?;
    Ok(Bytes::from(all))
}

/// Reads a whole tail.
pub(crate) fn scan(medium: &dyn Medium, name: &str) -> Result<Scan, JournalError> {
    let all = read_all(medium, name)?;
    let head = all.get(..index(HEADER_BYTES)).unwrap_or_default();
    let header = match TailHeader::decode(head) {
        Ok(header) => Some(header),
        // A newer build wrote it; whatever is behind it is not ours to judge.
        Err(Malformed::Version { found, known }) => {
            return Err(JournalError::Version {
                what: name.to_owned(),
                found,
                known,
            });
        }
        Err(Malformed::What(_)) => None,
    };
    let mut scan = Scan {
        header,
        frames: Vec::new(),
        end_at: HEADER_BYTES,
        fault: String::new(),
        cut_bytes: 0,
        strays: Vec::new(),
    };
    if let Some(header) = scan.header {
        let mut next = header.start;
        let mut at = index(HEADER_BYTES);
        loop {
            match read_entry(&all, at, &next) {
                Ok(frame) => {
                    let frame_at = at + ENVELOPE_BYTES;
                    at = frame_at + frame.len();
                    next.first_seq = frame.last_seq().next();
                    next.prev_digest = frame.digest();
                    let loc = FrameLoc {
                        at: frame_at as u64,
                        len: len32(frame.len()),
                        first_seq: frame.first_seq(),
                        records: frame.header().records,
                    };
                    // A slice of the whole file would pin the whole file.
                    let own = Frame::parse_own(Bytes::copy_from_slice(frame.bytes()))?;
                    scan.frames.push((loc, Arc::new(own)));
                }
                Err((fault, torn_bytes)) => {
                    scan.fault = fault;
                    scan.cut_bytes = torn_bytes;
                    break;
                }
            }
        }
        scan.end_at = at as u64;
    }
    scan.strays = strays(&all, index(scan.end_at));
    Ok(scan)
}

/// The entry at `at` if it continues the chain at `next`; else why not, and how many bytes of a torn entry are there.
pub(crate) fn read_entry(all: &Bytes, at: usize, next: &Start) -> Result<Frame, (String, u64)> {
    let rest = all.get(at..).unwrap_or_default();
    let (len, _) = read_envelope(rest).map_err(|fault| {
        let looks_begun = rest.first_chunk::<4>() == Some(&ENTRY_MAGIC);
        (
            fault.to_string(),
            if looks_begun { ENVELOPE_BYTES as u64 } else { 0 },
        )
    })?;
    let torn = |what: String| (what, (ENVELOPE_BYTES + len) as u64);
    let end = at + ENVELOPE_BYTES + len;
    if end > all.len() {
        return Err(torn("the frame passes the end of the file".into()));
    }
    let frame = Frame::parse(all.slice(at + ENVELOPE_BYTES..end)).map_err(|e| torn(e.to_string()))?;
    let h = frame.header();
    let continues = h.generation == next.generation
        && h.lfc == next.lfc
        && h.first_seq == next.first_seq
        && h.prev_digest == next.prev_digest;
    // A whole frame of an earlier use of this file is an end like blank bytes are.
    if continues {
        Ok(frame)
    } else {
        Err(("the frame there belongs elsewhere".into(), 0))
    }
}

/// Every whole frame from `from` on, at any byte.
fn strays(all: &Bytes, from: usize) -> Vec<Stray> {
    let mut found = Vec::new();
    let mut at = from;
    while let Some(next) = next_envelope(all, at) {
        at = next;
        let end = |len| at + ENVELOPE_BYTES + len;
        let entry = read_envelope(&all[at..])
            .ok()
            .filter(|(len, _)| end(*len) <= all.len());
        let frame = entry.and_then(|(len, durable)| {
            let frame = Frame::parse(all.slice(at + ENVELOPE_BYTES..end(len))).ok()?;
            Some((frame, durable, end(len)))
        });
        let Some((frame, durable, after)) = frame else {
            at += 1;
            continue;
        };
        found.push(Stray {
            at: at as u64,
            generation: frame.generation(),
            lfc: frame.lfc(),
            last_seq: frame.last_seq(),
            durable,
        });
        at = after;
    }
    found
}

/// Where the next bytes stand that look like an envelope. Most of a tail is often zero, so that is passed over in strides.
fn next_envelope(all: &[u8], from: usize) -> Option<usize> {
    const STRIDE: usize = 4096;
    const ZEROES: [u8; STRIDE] = [0; STRIDE];
    let mut at = from;
    loop {
        let rest = all.get(at..)?;
        if rest.first_chunk::<STRIDE>() == Some(&ZEROES) {
            at += STRIDE;
            continue;
        }
        let stride = &rest[..rest.len().min(STRIDE + ENTRY_MAGIC.len() - 1)];
        if let Some(found) = stride
            .windows(ENTRY_MAGIC.len())
            .position(|w| w == ENTRY_MAGIC.as_slice())
        {
            return Some(at + found);
        }
        if rest.len() <= STRIDE {
            return None;
        }
        at += STRIDE;
    }
}

/// Reads one frame that is known to be there.
pub(crate) fn read_frame(medium: &dyn Medium, loc: &FrameLoc, name: &str) -> Result<Bytes, JournalError> {
    let mut buf = vec![0; loc.len as usize];
    medium
        .read_at(loc.at, &mut buf)
        .map_err(|e| JournalError::io(name, e))?;
    Ok(Bytes::from(buf))
}
