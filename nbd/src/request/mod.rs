//! Requests of the transmission phase: parsed, then judged against what was negotiated. Pure.
//!
//! A header has 28 bytes, or 32 with extended headers: then lengths have 64 bits, and a flag says that the length is that
//! of a payload. A write has a payload always, though the protocol wants the flag there too: qemu up to 10.0 forgets it.

use crate::{
    Errno,
    chunk::{Form, Style},
    proto::{Take, cmd, flag, magic},
    session::Terms,
};

/// Bytes of a compact header.
const COMPACT_BYTES: usize = 28;
/// Bytes of an extended header.
const EXTENDED_BYTES: usize = 32;
/// The longest refused payload that is read and thrown away, with compact headers; a client that announces more is cut off.
/// With extended headers the longest is the largest payload, as the protocol wants it.
const DRAINED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the list of contexts in the payload of a block status request: the length of the range, then an id each.
const STATUS_LEN_BYTES: usize = 8;
const STATUS_ID_BYTES: usize = 4;

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) style: Style,
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The stream holds something else than a request: there is no way to find the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotARequest;

impl Header {
    /// Takes the header at the front of the input, if it is complete.
    pub(crate) fn parse(style: Style, input: &mut Take<'_>) -> Result<Option<Self>, NotARequest> {
        let extended = style == Style::Extended;
        let (bytes, magic) = if extended {
            (EXTENDED_BYTES, magic::EXTENDED_REQUEST)
        } else {
            (COMPACT_BYTES, magic::REQUEST)
        };
        let Some(bytes) = input.bytes(bytes) else {
            return Ok(None);
        };
        let mut t = Take(bytes);
        if t.u32() != Some(magic) {
            return Err(NotARequest);
        }
        let header = (|| {
            Some(Self {
                style,
                flags: t.u16()?,
                command: t.u16()?,
                cookie: t.u64()?,
                offset: t.u64()?,
                len: if extended { t.u64()? } else { t.u32()?.into() },
            })
        })();
        Ok(header)
    }

    fn has_payload(&self) -> bool {
        let announced = self.style == Style::Extended && self.flags & flag::PAYLOAD_LEN != 0;
        announced || self.command == cmd::WRITE
    }

    /// Bytes that follow the header.
    pub(crate) fn payload_len(&self) -> u64 {
        if self.has_payload() { self.len } else { 0 }
    }

    /// The payload is so long that the client is cut off instead of read.
    pub(crate) fn is_absurd(&self, terms: &Terms) -> bool {
        let most = match self.style {
            Style::Simple | Style::Structured => DRAINED_BYTES_MAX,
            Style::Extended => terms.info.block.max.into(),
        };
        self.payload_len() > most
    }

    /// How it is answered.
    pub(crate) fn form(&self) -> Form {
        Form {
            style: self.style,
            cookie: self.cookie,
            offset: self.offset,
        }
    }
}

/// A request that will be carried out. Lengths are not zero, ranges lie inside the export, and those of reads and writes
/// are at most the largest payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read {
        offset: u64,
        len: u64,
        unfragmented: bool,
    },
    /// Its payload follows the header.
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        fua: bool,
        may_trim: bool,
    },
    Trim {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Flush,
    Cache {
        offset: u64,
        len: u64,
    },
    BlockStatus(StatusAsked),
    /// Length and contexts follow the header in so many bytes, which [`judge_status`] is for.
    BlockStatusIn {
        payload: usize,
    },
    /// There is nothing to do for it but to say so.
    Nothing {
        is_read: bool,
    },
    Disconnect,
}

/// A block status request: in which range, one descriptor or more, in which contexts; in all when none is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusAsked {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) one: bool,
    pub(crate) only: Vec<u32>,
}

/// A request that is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) text: String,
}

fn refuse<T>(errno: Errno, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        errno,
        text: text.into(),
    })
}

/// What to do about a request.
pub(crate) fn judge(h: &Header, terms: &Terms) -> Result<Request, Refusal> {
    let known = known(h.command, terms)?;
    if h.command == cmd::DISC {
        return Ok(Request::Disconnect);
    }
    if h.flags & !(known.flags | terms.common_flags()) != 0 {
        return refuse(
            Errno::Inval,
            format!("{}: flags {:#x} were not negotiated", known.verb, h.flags),
        );
    }
    if h.command == cmd::FLUSH {
        return if h.offset == 0 && h.len == 0 {
            Ok(Request::Flush)
        } else {
            refuse(Errno::Inval, "flush: offset and length must be zero")
        };
    }
    if h.command == cmd::BLOCK_STATUS && h.payload_len() > 0 {
        return status_payload(h.len, terms).map(|payload| Request::BlockStatusIn { payload });
    }
    let changes = matches!(h.command, cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM);
    if changes && terms.info.read_only {
        return refuse(Errno::Perm, format!("{}: the export is read-only", known.verb));
    }
    let (offset, len, fua) = (h.offset, h.len, h.flags & flag::FUA != 0);
    in_range(offset, len, terms, &known)?;
    Ok(match h.command {
        cmd::BLOCK_STATUS => Request::BlockStatus(status_asked(h, len, Vec::new())?),
        _ if len == 0 => Request::Nothing {
            is_read: h.command == cmd::READ,
        },
        cmd::READ => Request::Read {
            offset,
            len,
            unfragmented: h.flags & flag::DF != 0,
        },
        cmd::WRITE => Request::Write { offset, len, fua },
        cmd::WRITE_ZEROES => Request::Zero {
            offset,
            len,
            fua,
            may_trim: h.flags & flag::NO_HOLE == 0,
        },
        cmd::TRIM => Request::Trim { offset, len, fua },
        cmd::CACHE => Request::Cache { offset, len },
        _ => Request::Nothing { is_read: false },
    })
}

/// What to do about a [`Request::BlockStatusIn`] when its payload is there.
pub(crate) fn judge_status(h: &Header, payload: &[u8], terms: &Terms) -> Result<StatusAsked, Refusal> {
    let known = known(h.command, terms)?;
    let mut input = Take(payload);
    let Some(len) = input.u64() else {
        return refuse(Errno::Inval, "block status: the payload has no length");
    };
    let ids: Vec<u32> = std::iter::from_fn(|| input.u32()).collect();
    for (i, id) in ids.iter().enumerate() {
        if !terms.contexts.has(*id) || ids[..i].contains(id) {
            return refuse(
                Errno::Inval,
                format!("block status: context {id} was not selected, or is named twice"),
            );
        }
    }
    in_range(h.offset, len, terms, &known)?;
    status_asked(h, len, ids)
}

fn status_asked(h: &Header, len: u64, only: Vec<u32>) -> Result<StatusAsked, Refusal> {
    if len == 0 {
        return refuse(Errno::Inval, "block status: the length is zero");
    }
    Ok(StatusAsked {
        offset: h.offset,
        len,
        one: h.flags & flag::REQ_ONE != 0,
        only,
    })
}

/// The length of a list of contexts: at least one, at most all.
fn status_payload(len: u64, terms: &Terms) -> Result<usize, Refusal> {
    let most = STATUS_LEN_BYTES + STATUS_ID_BYTES * terms.contexts.count();
    match usize::try_from(len) {
        Ok(n) if n > STATUS_LEN_BYTES && n <= most && n.is_multiple_of(STATUS_ID_BYTES) => Ok(n),
        _ => refuse(
            Errno::Inval,
            format!("block status: a payload of {len} bytes is no list of selected contexts"),
        ),
    }
}

/// A command that the session allows.
struct Known {
    verb: &'static str,
    /// Flags besides the common ones.
    flags: u16,
    /// What a range past the end is answered with.
    past_end: Errno,
    /// The bytes of the range travel.
    moves: bool,
}

fn known(command: u16, terms: &Terms) -> Result<Known, Refusal> {
    let info = &terms.info;
    let plain = |verb, past_end| Known {
        verb,
        flags: 0,
        past_end,
        moves: false,
    };
    // A read-only export allows no change; that is said with the proper error, not as an unknown command.
    let offered = |on: bool| on || info.read_only;
    let with = |on: bool, flag: u16| if on { flag } else { 0 };
    let extended = terms.style == Style::Extended;
    match command {
        cmd::READ => Ok(Known {
            flags: with(terms.style != Style::Simple, flag::DF),
            moves: true,
            ..plain("read", Errno::Inval)
        }),
        cmd::WRITE => Ok(Known {
            flags: with(extended, flag::PAYLOAD_LEN),
            moves: true,
            ..plain("write", Errno::NoSpc)
        }),
        cmd::DISC => Ok(plain("disconnect", Errno::Inval)),
        cmd::FLUSH if info.flush => Ok(plain("flush", Errno::Inval)),
        cmd::TRIM if offered(info.trim) => Ok(plain("trim", Errno::Inval)),
        cmd::CACHE => Ok(plain("cache", Errno::Inval)),
        cmd::WRITE_ZEROES if offered(info.zeroes) => Ok(Known {
            flags: flag::NO_HOLE | with(info.fast_zero, flag::FAST_ZERO),
            ..plain("write zeroes", Errno::NoSpc)
        }),
        cmd::BLOCK_STATUS if terms.contexts.count() > 0 => Ok(Known {
            flags: flag::REQ_ONE | with(terms.status_payload(), flag::PAYLOAD_LEN),
            ..plain("block status", Errno::Inval)
        }),
        cmd::BLOCK_STATUS => refuse(Errno::Inval, "block status: no metadata context was selected"),
        other => refuse(Errno::Inval, format!("command {other} is not offered")),
    }
}

fn in_range(offset: u64, len: u64, terms: &Terms, known: &Known) -> Result<(), Refusal> {
    let (info, verb) = (&terms.info, known.verb);
    if known.moves && len > info.block.max.into() {
        return refuse(
            Errno::Inval,
            format!("{verb}: {len} bytes are more than {}", info.block.max),
        );
    }
    if offset.checked_add(len).is_none_or(|end| end > info.size) {
        return refuse(
            known.past_end,
            format!("{verb}: {len} bytes at {offset} pass the end at {}", info.size),
        );
    }
    let min = u64::from(info.block.min);
    if !(offset.is_multiple_of(min) && len.is_multiple_of(min)) {
        return refuse(
            Errno::Inval,
            format!("{verb}: {len} bytes at {offset} are not in blocks of {min}"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
