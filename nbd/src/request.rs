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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockSizes, ExportInfo, chunk::Style, proto::Put};
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 20;

    fn terms(info: ExportInfo) -> Terms {
        Terms {
            info,
            style: Style::Structured,
            allocation: true,
        }
    }

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> Header {
        Header {
            flags,
            command,
            cookie: 1,
            offset,
            len,
        }
    }

    /// What a request is answered with: an error, or `Ok`.
    fn errno(t: &Terms, command: u16, flags: u16, offset: u64, len: u32) -> Result<(), Errno> {
        judge(&header(command, flags, offset, len), t)
            .map(drop)
            .map_err(|r| r.errno)
    }

    #[test]
    fn past_the_end_is_no_space_for_writes_and_invalid_for_the_rest() {
        let t = terms(ExportInfo::writable(SIZE));
        for (command, expected) in [
            (cmd::WRITE, Errno::NoSpc),
            (cmd::WRITE_ZEROES, Errno::NoSpc),
            (cmd::READ, Errno::Inval),
            (cmd::TRIM, Errno::Inval),
            (cmd::CACHE, Errno::Inval),
            (cmd::BLOCK_STATUS, Errno::Inval),
        ] {
            assert_eq!(errno(&t, command, 0, SIZE - 1, 1), Ok(()));
            for (offset, len) in [(SIZE - 1, 2), (SIZE, 1), (u64::MAX, 1), (u64::MAX - 4, 4)] {
                assert_eq!(
                    errno(&t, command, 0, offset, len),
                    Err(expected),
                    "{command} {offset} {len}"
                );
            }
        }
    }

    #[test]
    fn a_read_only_export_permits_no_change() {
        let t = terms(ExportInfo::read_only(SIZE));
        for command in [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM] {
            assert_eq!(errno(&t, command, 0, 0, 512), Err(Errno::Perm));
            assert_eq!(errno(&t, command, 0, SIZE, 512), Err(Errno::Perm));
        }
        for command in [cmd::READ, cmd::CACHE, cmd::BLOCK_STATUS] {
            assert_eq!(errno(&t, command, 0, 0, 512), Ok(()));
        }
        assert_eq!(judge(&header(cmd::FLUSH, 0, 0, 0), &t), Ok(Request::Flush));
    }

    #[test]
    fn flags_are_taken_only_where_they_mean_something() {
        let full = terms(ExportInfo::writable(SIZE));
        let allowed = |command| match command {
            cmd::READ => flag::DF,
            cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            cmd::BLOCK_STATUS => flag::REQ_ONE,
            _ => 0,
        };
        for command in [
            cmd::READ,
            cmd::WRITE,
            cmd::TRIM,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
            cmd::BLOCK_STATUS,
        ] {
            for bit in 0..16 {
                let ok = (allowed(command) | flag::FUA) & 1 << bit != 0;
                let expected = if ok { Ok(()) } else { Err(Errno::Inval) };
                assert_eq!(
                    errno(&full, command, 1 << bit, 0, 512),
                    expected,
                    "{command} bit {bit}"
                );
            }
        }
        assert_eq!(errno(&full, cmd::FLUSH, flag::FUA, 0, 0), Ok(()));
        let mut bare = ExportInfo::writable(SIZE);
        (bare.fua, bare.fast_zero) = (false, false);
        let bare = Terms {
            style: Style::Simple,
            ..terms(bare)
        };
        assert_eq!(errno(&bare, cmd::WRITE, flag::FUA, 0, 512), Err(Errno::Inval));
        assert_eq!(errno(&bare, cmd::READ, flag::DF, 0, 512), Err(Errno::Inval));
        assert_eq!(
            errno(&bare, cmd::WRITE_ZEROES, flag::FAST_ZERO, 0, 512),
            Err(Errno::Inval)
        );
    }

    #[test]
    fn what_is_not_offered_is_invalid() {
        let mut info = ExportInfo::writable(SIZE);
        (info.flush, info.trim, info.zeroes) = (false, false, false);
        let t = Terms {
            allocation: false,
            ..terms(info)
        };
        for command in [
            cmd::FLUSH,
            cmd::TRIM,
            cmd::WRITE_ZEROES,
            cmd::BLOCK_STATUS,
            8,
            0xffff,
        ] {
            assert_eq!(errno(&t, command, 0, 0, 0), Err(Errno::Inval), "{command}");
        }
        assert_eq!(
            errno(&terms(ExportInfo::writable(SIZE)), cmd::FLUSH, 0, 0, 1),
            Err(Errno::Inval)
        );
    }

    #[test]
    fn a_length_of_zero_is_nothing_to_do() {
        let t = terms(ExportInfo::writable(SIZE));
        for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
            let nothing = Ok(Request::Nothing {
                is_read: command == cmd::READ,
            });
            assert_eq!(judge(&header(command, 0, SIZE, 0), &t), nothing);
        }
        assert_eq!(errno(&t, cmd::BLOCK_STATUS, 0, 0, 0), Err(Errno::Inval));
    }

    #[test]
    fn payloads_are_bounded_and_effects_are_not() {
        let t = terms(ExportInfo::writable(1 << 40));
        let over = BlockSizes::PAYLOAD_MAX + 1;
        assert_eq!(errno(&t, cmd::READ, 0, 0, over - 1), Ok(()));
        assert_eq!(errno(&t, cmd::READ, 0, 0, over), Err(Errno::Inval));
        assert_eq!(errno(&t, cmd::WRITE, 0, 0, over), Err(Errno::Inval));
        assert_eq!(errno(&t, cmd::WRITE_ZEROES, 0, 0, u32::MAX), Ok(()));
        assert_eq!(errno(&t, cmd::TRIM, 0, 0, u32::MAX), Ok(()));
    }

    #[test]
    fn requests_keep_to_the_blocks_of_the_export() {
        let mut info = ExportInfo::writable(SIZE);
        info.block.min = 512;
        let t = terms(info);
        assert_eq!(errno(&t, cmd::WRITE, 0, 512, 1024), Ok(()));
        assert_eq!(errno(&t, cmd::WRITE, 0, 1, 512), Err(Errno::Inval));
        assert_eq!(errno(&t, cmd::READ, 0, 0, 511), Err(Errno::Inval));
    }

    proptest! {
        #[test]
        fn random_bytes_are_no_request_or_one_that_is_judged(bytes in prop::collection::vec(any::<u8>(), 0..80), honest: bool) {
            let mut p = Vec::new();
            if honest { p.put_u32(magic::REQUEST) }
            p.put(&bytes);
            let mut input = Take(&p);
            match Header::parse(&mut input) {
                Ok(Some(h)) => { let _ = judge(&h, &terms(ExportInfo::writable(SIZE))); }
                Ok(None) => prop_assert!(p.len() < HEADER_BYTES),
                Err(_) => prop_assert!(!honest),
            }
        }

        #[test]
        fn what_is_carried_out_lies_inside(command in 0u16..9, offset in 0u64..2 * SIZE, len in 0u32..1 << 21) {
            let t = terms(ExportInfo::writable(SIZE));
            if let Ok(request) = judge(&header(command, 0, offset, len), &t) {
                let inside = match request {
                    Request::Nothing { .. } | Request::Flush | Request::Disconnect => true,
                    _ => len > 0 && offset + u64::from(len) <= SIZE,
                };
                prop_assert!(inside);
            }
        }
    }
}
