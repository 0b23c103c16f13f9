//! Messages to bytes and back (`docs/formats/wire.md`).
//!
//! Every message is a header of 10 bytes and a body. What comes from the peer is distrusted in this order: the kind must be
//! known and allowed on this connection, the length within what that kind can need, the checksum right, every field within
//! its bounds, and nothing may be left over. Only then is there a [`Message`]. A length is a bound, never a promise: memory
//! grows with the bytes that arrive.
//!
//! TLS already authenticates every byte. The CRC-32C guards the ends: memory and code between the journal and the socket.

use crate::{
    body,
    message::{Kind, Message},
    take::Take,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::checks;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 10;
/// Longest body of any message.
pub const BODY_BYTES_MAX: usize = 40 << 20;
/// Longest frame or copy payload.
pub const PAYLOAD_BYTES_MAX: usize = BODY_BYTES_MAX - 4096;
/// Longest body of a request or response.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Longest node name.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest endpoint.
pub const ENDPOINT_BYTES_MAX: usize = 255;
/// Most endpoints of a node.
pub const ENDPOINTS_MAX: usize = 16;
/// Longest text of a refusal or farewell; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most copies in one acknowledgement.
pub const COPY_ACKS_MAX: usize = 4096;

/// Most pieces of an offer, and so most ranges that may lack of it.
pub const PIECES_MAX: usize = 1024;

const FLAG_ZSTD: u8 = 1;
/// Bytes before a compressed body that say how long it was.
const RAW_LEN_BYTES: usize = 4;
/// Room for fixed fields beside a kind's variable part.
const FIXED_BYTES_MAX: usize = 1024;

/// Why bytes are not a message. The connection cannot go on after any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A kind that no version knows.
    #[error("message kind {0} is not known")]
    Kind(u8),
    /// A kind that this connection may not carry.
    #[error("message kind {0:?} is not allowed on this connection")]
    Forbidden(Kind),
    /// Flags that are not known, or compression where there is none.
    #[error("message kind {kind:?} with flags {flags:#04x}")]
    Flags {
        /// The kind.
        kind: Kind,
        /// The flags.
        flags: u8,
    },
    /// A body longer than its kind can need.
    #[error("{kind:?} of {len} bytes, at most {max} are possible")]
    Length {
        /// The kind.
        kind: Kind,
        /// The length claimed.
        len: u64,
        /// The most.
        max: usize,
    },
    /// The checksum does not fit.
    #[error("{kind:?} has checksum {got:#010x} instead of {stated:#010x}")]
    Checksum {
        /// The kind.
        kind: Kind,
        /// As sent.
        stated: u32,
        /// As computed.
        got: u32,
    },
    /// The body ends within a field.
    #[error("{missing} bytes missing in field {what}")]
    Truncated {
        /// The field.
        what: &'static str,
        /// How many more it needed.
        missing: usize,
    },
    /// Bytes after the last field.
    #[error("{extra} bytes after the last field")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A field with an impossible value.
    #[error("field {what} cannot be {value}")]
    Value {
        /// The field.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// A text that is not UTF-8.
    #[error("field {what} is not UTF-8")]
    Utf8 {
        /// The field.
        what: &'static str,
    },
    /// A compressed body that does not decompress to its stated length.
    #[error("compressed {kind:?} does not decompress to its {len} bytes")]
    Zstd {
        /// The kind.
        kind: Kind,
        /// The stated length.
        len: usize,
    },
    /// The peer speaks none of our versions.
    #[error("the peer speaks versions {oldest} to {newest} only")]
    Version {
        /// Its oldest.
        oldest: u16,
        /// Its newest.
        newest: u16,
    },
}

impl Kind {
    /// Longest body of this kind, uncompressed.
    #[must_use]
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::Frame | Self::Copy => BODY_BYTES_MAX,
            Self::Request | Self::Response => REQUEST_BYTES_MAX + FIXED_BYTES_MAX,
            Self::CopyAck => COPY_ACKS_MAX * 8 + 4,
            Self::Offer => FIXED_BYTES_MAX + PIECES_MAX * 8,
            Self::Lacks => FIXED_BYTES_MAX + PIECES_MAX * 16,
            Self::Pair | Self::Paired => FIXED_BYTES_MAX + ENDPOINTS_MAX * (ENDPOINT_BYTES_MAX + 2),
            Self::Refuse | Self::Bye => FIXED_BYTES_MAX + TEXT_BYTES_MAX,
            _ => FIXED_BYTES_MAX,
        }
    }

    /// Whether a body of this kind may be compressed.
    #[must_use]
    pub const fn compressible(self) -> bool {
        matches!(self, Self::Frame | Self::Copy | Self::Request | Self::Response)
    }
}

/// A message as bytes, in two parts so that a frame's bytes are not copied to be sent.
#[derive(Debug, Clone)]
pub struct Encoded {
    kind: Kind,
    flags: u8,
    fields: Bytes,
    payload: Bytes,
}

impl Encoded {
    /// Bytes of the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.fields.len() + self.payload.len()
    }

    /// The parts of the body.
    #[must_use]
    pub fn body(&self) -> [&[u8]; 2] {
        [&self.fields, &self.payload]
    }

    /// Whether the body may still be compressed.
    #[must_use]
    pub const fn compressible(&self) -> bool {
        self.kind.compressible() && self.flags == 0
    }

    /// The same message with its body compressed, when that makes it shorter.
    ///
    /// `None` also when zstd fails, which for a body in memory means that memory is short.
    #[must_use]
    pub fn compress(&self, level: i32) -> Option<Self> {
        let raw_len = u32::try_from(self.body_len()).ok()?;
        let raw = self.body().concat();
        let mut out = vec![0; RAW_LEN_BYTES + zstd_safe::compress_bound(raw.len())];
        out[..RAW_LEN_BYTES].copy_from_slice(&raw_len.to_le_bytes());
        let packed = zstd_safe::compress(&mut out[RAW_LEN_BYTES..], &raw, level).ok()?;
        out.truncate(RAW_LEN_BYTES + packed);
        (out.len() < raw.len()).then(|| Self {
            kind: self.kind,
            flags: FLAG_ZSTD,
            fields: out.into(),
            payload: Bytes::new(),
        })
    }

    /// Header and fields, then the payload: what goes on the wire, in this order.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Bytes) {
        let mut crc = crc32c::crc32c(&[self.kind as u8, self.flags]);
        for part in self.body() {
            crc = crc32c::crc32c_append(crc, part);
        }
        let mut head = BytesMut::with_capacity(HEADER_BYTES + self.fields.len());
        head.put_u32_le(u32::try_from(self.body_len()).expect("bodies are at most BODY_BYTES_MAX"));
        head.put_u8(self.kind as u8);
        head.put_u8(self.flags);
        head.put_u32_le(crc);
        head.put_slice(&self.fields);
        (head.freeze(), self.payload)
    }
}

/// Encodes a message.
///
/// # Errors
/// When a part of it is longer than the format can hold; nothing that [`Decoder`] answers ever is.
pub fn encode(message: &Message) -> Result<Encoded, CodecError> {
    let kind = message.kind();
    let (fields, payload) = body::put(message)?;
    let max = kind.body_bytes_max();
    if payload.len() > PAYLOAD_BYTES_MAX || fields.len() + payload.len() > max {
        return Err(CodecError::Length {
            kind,
            len: (fields.len() + payload.len()) as u64,
            max,
        });
    }
    Ok(Encoded {
        kind,
        flags: 0,
        fields: fields.freeze(),
        payload,
    })
}

/// Takes messages off a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    allowed: fn(Kind) -> bool,
}

impl Decoder {
    /// For a pinned peer: everything but a pairing.
    #[must_use]
    pub fn peer() -> Self {
        Self {
            allowed: |k| !matches!(k, Kind::Pair | Kind::Paired),
        }
    }

    /// For a node that is not known yet: a pairing and nothing else.
    #[must_use]
    pub fn pairing() -> Self {
        Self {
            allowed: |k| matches!(k, Kind::Pair | Kind::Paired | Kind::Refuse),
        }
    }

    /// The next message, taken off the front of `buf`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are not a message; as soon as that is known, without waiting for the rest.
    pub fn decode(&self, buf: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        let Some((header, _)) = buf.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let mut header = &header[..];
        let len = header.get_u32_le();
        let number = header.get_u8();
        let flags = header.get_u8();
        let stated = header.get_u32_le();
        let kind = Kind::from_number(number).ok_or(CodecError::Kind(number))?;
        if !(self.allowed)(kind) {
            return Err(CodecError::Forbidden(kind));
        }
        if flags & !FLAG_ZSTD != 0 || (flags != 0 && !kind.compressible()) {
            return Err(CodecError::Flags { kind, flags });
        }
        let (body_len, max) = (len as usize, kind.body_bytes_max());
        if body_len > max {
            return Err(CodecError::Length {
                kind,
                len: u64::from(len),
                max,
            });
        }
        if buf.len() < HEADER_BYTES + body_len {
            return Ok(None);
        }
        buf.advance(HEADER_BYTES);
        let body = buf.split_to(body_len).freeze();
        let got = crc32c::crc32c_append(crc32c::crc32c(&[number, flags]), &body);
        if !checks(&got, &stated) {
            return Err(CodecError::Checksum { kind, stated, got });
        }
        let body = if flags & FLAG_ZSTD == 0 {
            body
        } else {
            decompress(kind, body)?
        };
        body::take(kind, body).map(Some)
    }
}

fn decompress(kind: Kind, body: Bytes) -> Result<Bytes, CodecError> {
    let mut t = Take::new(body);
    let raw_len = t.u32("raw length")?;
    let (len, max) = (raw_len as usize, kind.body_bytes_max());
    if len > max {
        return Err(CodecError::Length {
            kind,
            len: u64::from(raw_len),
            max,
        });
    }
    let fault = CodecError::Zstd { kind, len };
    // `len` is bounded above; a body that would be longer is an error of zstd, not a larger buffer.
    let mut raw = vec![0; len];
    match zstd_safe::decompress(&mut raw[..], &t.rest()) {
        Ok(got) if got == len => Ok(raw.into()),
        _ => Err(fault),
    }
}
