//! Replies of the transmission phase as bytes. Pure: nothing here sends.
//!
//! A reply has one of three styles. *Simple*: 16 bytes, then the data of a read. *Structured*: errors and everything about
//! reads and block status are chunks with heads of 20 bytes; the success of any other command stays a simple reply, which
//! the protocol allows and which is a third shorter. *Extended*: everything is a chunk, with a head of 32 bytes.

use crate::{
    Errno,
    proto::{Put, bounded, chunk, magic},
};

/// The style of a connection; of two that a client asks for the greater one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

/// How the replies to one request look: the style, and what they repeat of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) style: Style,
    pub(crate) cookie: u64,
    /// Of the request; only extended replies repeat it.
    pub(crate) offset: u64,
}

impl Form {
    /// The success of a command that returns nothing, and what the data of a simple read follow.
    pub(crate) fn success(self, out: &mut Vec<u8>) {
        match self.style {
            Style::Simple | Style::Structured => self.simple(out, 0),
            Style::Extended => self.none(out),
        }
    }

    /// The failure of a whole command.
    pub(crate) fn failure(self, out: &mut Vec<u8>, errno: Errno, text: &str) {
        if self.style == Style::Simple {
            return self.simple(out, errno.code());
        }
        let text = bounded(text);
        self.head(out, true, chunk::ERROR, 6 + text.len());
        error_body(out, errno, text);
    }

    /// The failure of a read at one place, after parts of it were sent.
    pub(crate) fn failure_at(self, out: &mut Vec<u8>, errno: Errno, text: &str, offset: u64) {
        let text = bounded(text);
        self.head(out, true, chunk::ERROR_OFFSET, 14 + text.len());
        error_body(out, errno, text);
        out.put_u64(offset);
    }

    /// The end of a reply in chunks that has nothing more to tell.
    pub(crate) fn none(self, out: &mut Vec<u8>) {
        self.head(out, true, chunk::NONE, 0);
    }

    /// The head of a chunk of data; `len` bytes must follow it.
    pub(crate) fn data_head(self, out: &mut Vec<u8>, last: bool, offset: u64, len: usize) {
        self.head(out, last, chunk::OFFSET_DATA, 8 + len);
        out.put_u64(offset);
    }

    /// A run of zeroes.
    pub(crate) fn hole(self, out: &mut Vec<u8>, last: bool, offset: u64, len: u32) {
        self.head(out, last, chunk::OFFSET_HOLE, 12);
        out.put_u64(offset);
        out.put_u32(len);
    }

    /// The status of consecutive extents in one context: (length, bits), made for the style.
    pub(crate) fn block_status(self, out: &mut Vec<u8>, last: bool, context: u32, extents: &[(u64, u64)]) {
        if self.style == Style::Extended {
            self.head(out, last, chunk::BLOCK_STATUS_EXT, 8 + 16 * extents.len());
            out.put_u32(context);
            out.put_u32(u32::try_from(extents.len()).expect("descriptors are bounded"));
            for &(len, bits) in extents {
                out.put_u64(len);
                out.put_u64(bits);
            }
        } else {
            self.head(out, last, chunk::BLOCK_STATUS, 4 + 8 * extents.len());
            out.put_u32(context);
            for &(len, bits) in extents {
                out.put_u32(u32::try_from(len).expect("longer ones are cut for this style"));
                out.put_u32(u32::try_from(bits).expect("wide contexts need extended headers"));
            }
        }
    }

    fn simple(self, out: &mut Vec<u8>, error: u32) {
        out.put_u32(magic::SIMPLE_REPLY);
        out.put_u32(error);
        out.put_u64(self.cookie);
    }

    fn head(self, out: &mut Vec<u8>, last: bool, kind: u16, len: usize) {
        let len = u32::try_from(len).expect("a chunk is at most a payload and its head");
        let extended = self.style == Style::Extended;
        out.put_u32(if extended {
            magic::EXTENDED_REPLY
        } else {
            magic::STRUCTURED_REPLY
        });
        out.put_u16(if last { chunk::DONE } else { 0 });
        out.put_u16(kind);
        out.put_u64(self.cookie);
        if extended {
            out.put_u64(self.offset);
            out.put_u64(len.into());
        } else {
            out.put_u32(len);
        }
    }
}

fn error_body(out: &mut Vec<u8>, errno: Errno, text: &str) {
    out.put_u32(errno.code());
    out.put_u16(u16::try_from(text.len()).expect("texts are bounded"));
    out.put(text.as_bytes());
}
