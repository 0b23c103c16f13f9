//! Replies of the transmission phase as bytes. Pure: nothing here sends.
//!
//! With structured replies negotiated, errors and everything about reads and block status are chunks; the success of
//! any other command stays a simple reply, which the protocol allows and which is a third shorter.

use crate::{
    Errno,
    proto::{Put, bounded, chunk, magic},
};

/// Bytes of a simple reply.
pub(crate) const SIMPLE_BYTES: usize = 16;

/// Which form replies have on a connection. Extended headers will be a third form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
}

/// A simple reply; the data of a read follow it.
pub(crate) fn simple(cookie: u64, error: u32) -> [u8; SIMPLE_BYTES] {
    let mut b = [0; SIMPLE_BYTES];
    b[..4].copy_from_slice(&magic::SIMPLE_REPLY.to_be_bytes());
    b[4..8].copy_from_slice(&error.to_be_bytes());
    b[8..].copy_from_slice(&cookie.to_be_bytes());
    b
}

/// The success of a command that returns nothing.
pub(crate) fn success(out: &mut Vec<u8>, cookie: u64) {
    out.put(&simple(cookie, 0));
}

/// The failure of a whole command.
pub(crate) fn failure(out: &mut Vec<u8>, style: Style, cookie: u64, errno: Errno, text: &str) {
    match style {
        Style::Simple => out.put(&simple(cookie, errno.code())),
        Style::Structured => {
            let text = bounded(text);
            head(out, chunk::DONE, chunk::ERROR, cookie, 6 + text.len());
            error_body(out, errno, text);
        }
    }
}

/// The failure of a read at one place, after parts of it were sent.
pub(crate) fn failure_at(out: &mut Vec<u8>, cookie: u64, errno: Errno, text: &str, offset: u64) {
    let text = bounded(text);
    head(out, chunk::DONE, chunk::ERROR_OFFSET, cookie, 14 + text.len());
    error_body(out, errno, text);
    out.put_u64(offset);
}

/// The end of a structured reply that has nothing more to tell.
pub(crate) fn none(out: &mut Vec<u8>, cookie: u64) {
    head(out, chunk::DONE, chunk::NONE, cookie, 0);
}

/// The head of a chunk of data; `len` bytes must follow it.
pub(crate) fn data_head(out: &mut Vec<u8>, cookie: u64, last: bool, offset: u64, len: usize) {
    head(out, done(last), chunk::OFFSET_DATA, cookie, 8 + len);
    out.put_u64(offset);
}

/// A run of zeroes.
pub(crate) fn hole(out: &mut Vec<u8>, cookie: u64, last: bool, offset: u64, len: u32) {
    head(out, done(last), chunk::OFFSET_HOLE, cookie, 12);
    out.put_u64(offset);
    out.put_u32(len);
}

/// The status of consecutive extents: (length, bits).
pub(crate) fn block_status(out: &mut Vec<u8>, cookie: u64, context: u32, extents: &[(u32, u32)]) {
    head(
        out,
        chunk::DONE,
        chunk::BLOCK_STATUS,
        cookie,
        4 + 8 * extents.len(),
    );
    out.put_u32(context);
    for &(len, bits) in extents {
        out.put_u32(len);
        out.put_u32(bits);
    }
}

fn done(last: bool) -> u16 {
    if last { chunk::DONE } else { 0 }
}

fn head(out: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, len: usize) {
    out.put_u32(magic::STRUCTURED_REPLY);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(u32::try_from(len).expect("a chunk is at most a payload and its head"));
}

fn error_body(out: &mut Vec<u8>, errno: Errno, text: &str) {
    out.put_u32(errno.code());
    out.put_u16(u16::try_from(text.len()).expect("texts are bounded"));
    out.put(text.as_bytes());
}
