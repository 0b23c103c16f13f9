//! Bounded reading of a message body, little-endian: every read says what was missing, none can panic.

use crate::codec::CodecError;
use bytes::{Buf, Bytes};

/// A message body of which the front is taken off, piece by piece.
pub(crate) struct Take(Bytes);

impl Take {
    pub(crate) const fn new(body: Bytes) -> Self {
        Self(body)
    }

    /// The next `len` bytes, sharing the body's memory.
    pub(crate) fn bytes(&mut self, what: &'static str, len: usize) -> Result<Bytes, CodecError> {
        if self.0.len() < len {
            return Err(CodecError::Truncated {
                what,
                missing: len - self.0.len(),
            });
        }
        Ok(self.0.split_to(len))
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut out = [0; N];
        self.bytes(what, N)?.copy_to_slice(&mut out);
        Ok(out)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn digest(&mut self, what: &'static str) -> Result<[u8; 32], CodecError> {
        self.array(what)
    }

    pub(crate) fn secret(&mut self) -> Result<[u8; 10], CodecError> {
        self.array("secret")
    }

    /// A u16 length and so many bytes of UTF-8, at most `most`.
    pub(crate) fn text(&mut self, what: &'static str, most: usize) -> Result<String, CodecError> {
        let len = usize::from(self.u16(what)?);
        if len > most {
            return Err(CodecError::Value {
                what,
                value: len as u64,
            });
        }
        let bytes = self.bytes(what, len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| CodecError::Utf8 { what })
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.0.split_to(self.0.len())
    }

    /// That nothing is left.
    pub(crate) fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing { extra: self.0.len() })
        }
    }
}
