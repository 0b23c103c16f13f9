//! Requests of the transmission phase: parsed, then judged against what was negotiated. Pure.

use crate::{
    Errno,
    proto::{Take, cmd, flag, magic},
    session::Terms,
};

/// Bytes of a request before its payload.
pub(crate) const HEADER_BYTES: usize = 28;
/// The longest refused payload that is read and thrown away; a client that announces more is cut off.
pub(crate) const DRAINED_BYTES_MAX: u32 = 64 << 20;

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// The stream holds something else than a request: there is no way to find the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotARequest;

impl Header {
    /// The header at the front of the input, if it is complete.
    pub(crate) fn parse(input: &mut Take<'_>) -> Result<Option<Self>, NotARequest> {
        let Some(bytes) = input.bytes(HEADER_BYTES) else {
            return Ok(None);
        };
        let mut t = Take(bytes);
        if t.u32() != Some(magic::REQUEST) {
            return Err(NotARequest);
        }
        let header = (|| {
            Some(Self {
                flags: t.u16()?,
                command: t.u16()?,
                cookie: t.u64()?,
                offset: t.u64()?,
                len: t.u32()?,
            })
        })();
        Ok(header)
    }

    /// Bytes that follow the header.
    pub(crate) fn payload_len(&self) -> u32 {
        if self.command == cmd::WRITE { self.len } else { 0 }
    }
}

/// A request that will be carried out. Lengths are not zero, ranges lie inside the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read {
        offset: u64,
        len: u32,
        unfragmented: bool,
    },
    /// Its payload follows the header.
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u32,
        fua: bool,
        may_trim: bool,
    },
    Trim {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    BlockStatus {
        offset: u64,
        len: u32,
        one: bool,
    },
    /// There is nothing to do for it but to say so.
    Nothing {
        is_read: bool,
    },
    Disconnect,
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
    let changes = matches!(h.command, cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM);
    if changes && terms.info.read_only {
        return refuse(Errno::Perm, format!("{}: the export is read-only", known.verb));
    }
    in_range(h, terms, &known)?;
    let (offset, len, fua) = (h.offset, h.len, h.flags & flag::FUA != 0);
    Ok(match h.command {
        cmd::BLOCK_STATUS if len == 0 => return refuse(Errno::Inval, "block status: the length is zero"),
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
        cmd::BLOCK_STATUS => Request::BlockStatus {
            offset,
            len,
            one: h.flags & flag::REQ_ONE != 0,
        },
        _ => Request::Nothing { is_read: false },
    })
}

/// A command that the session allows.
struct Known {
    verb: &'static str,
    /// Flags besides the common ones.
    flags: u16,
    /// What a range past the end is answered with.
    past_end: Errno,
    /// The length is that of a payload.
    payload: bool,
}

fn known(command: u16, terms: &Terms) -> Result<Known, Refusal> {
    let info = &terms.info;
    let plain = |verb, past_end| Known {
        verb,
        flags: 0,
        past_end,
        payload: false,
    };
    // A read-only export allows no change; that is said with the proper error, not as an unknown command.
    let offered = |on: bool| on || info.read_only;
    match command {
        cmd::READ => {
            let flags = if terms.style == crate::chunk::Style::Simple {
                0
            } else {
                flag::DF
            };
            Ok(Known {
                flags,
                payload: true,
                ..plain("read", Errno::Inval)
            })
        }
        cmd::WRITE => Ok(Known {
            payload: true,
            ..plain("write", Errno::NoSpc)
        }),
        cmd::DISC => Ok(plain("disconnect", Errno::Inval)),
        cmd::FLUSH if info.flush => Ok(plain("flush", Errno::Inval)),
        cmd::TRIM if offered(info.trim) => Ok(plain("trim", Errno::Inval)),
        cmd::CACHE => Ok(plain("cache", Errno::Inval)),
        cmd::WRITE_ZEROES if offered(info.zeroes) => {
            let fast = if info.fast_zero { flag::FAST_ZERO } else { 0 };
            Ok(Known {
                flags: flag::NO_HOLE | fast,
                ..plain("write zeroes", Errno::NoSpc)
            })
        }
        cmd::BLOCK_STATUS if terms.allocation => Ok(Known {
            flags: flag::REQ_ONE,
            ..plain("block status", Errno::Inval)
        }),
        cmd::BLOCK_STATUS => refuse(Errno::Inval, "block status: no metadata context was selected"),
        other => refuse(Errno::Inval, format!("command {other} is not offered")),
    }
}

fn in_range(h: &Header, terms: &Terms, known: &Known) -> Result<(), Refusal> {
    let info = &terms.info;
    let verb = known.verb;
    if known.payload && h.len > info.block.max {
        return refuse(
            Errno::Inval,
            format!("{verb}: {} bytes are more than {}", h.len, info.block.max),
        );
    }
    let end = h.offset.checked_add(u64::from(h.len));
    if end.is_none_or(|end| end > info.size) {
        return refuse(
            known.past_end,
            format!(
                "{verb}: {} bytes at {} pass the end at {}",
                h.len, h.offset, info.size
            ),
        );
    }
    let min = info.block.min;
    if !(h.offset.is_multiple_of(min.into()) && h.len.is_multiple_of(min)) {
        return refuse(
            Errno::Inval,
            format!(
                "{verb}: {} bytes at {} are not in blocks of {min}",
                h.len, h.offset
            ),
        );
    }
    Ok(())
}
