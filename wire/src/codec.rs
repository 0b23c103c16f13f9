//! Messages to bytes and back (`docs/formats/wire.md`).
//!
//! Every message is a header of 10 bytes and a body. What comes from the peer is distrusted in this order: the kind must be
//! known and allowed on this connection, the length within what that kind can need, the checksum right, every field within
//! its bounds, and nothing may be left over. Only then is there a [`Message`]. A length is a bound, never a promise: memory
//! grows with the bytes that arrive.
//!
//! TLS already authenticates every byte. The CRC-32C guards the ends: memory and code between the journal and the socket.

use crate::{
    message::{
        Ack, Copy, Frame, Hello, Jump, JumpCause, Kind, Message, NodeCard, Position, Refuse, RefuseCode,
        Request, Response, Seal, Version, Welcome,
    },
    take::Take,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, VolumeIndex, WriteSeq};

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

const FLAG_ZSTD: u8 = 1;
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
    /// # Errors
    /// When zstd fails, which for a body in memory means that memory is short.
    pub fn compress(&self, level: i32) -> std::io::Result<Option<Self>> {
        let Ok(raw_len) = u32::try_from(self.body_len()) else {
            return Ok(None);
        };
        let mut out = Vec::with_capacity(self.body_len() / 2 + 16);
        out.put_u32_le(raw_len);
        let mut zstd = zstd::stream::write::Encoder::new(out, level)?;
        zstd.set_pledged_src_size(Some(u64::from(raw_len)))?;
        for part in self.body() {
            std::io::Write::write_all(&mut zstd, part)?;
        }
        let out = zstd.finish()?;
        Ok((out.len() < self.body_len()).then(|| Self {
            kind: self.kind,
            flags: FLAG_ZSTD,
            fields: out.into(),
            payload: Bytes::new(),
        }))
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
    let mut b = BytesMut::new();
    let mut payload = Bytes::new();
    match message {
        Message::Hello(h) => {
            b.put_u16_le(h.oldest);
            b.put_u16_le(h.newest);
            b.put_u32_le(h.context.0);
            put_text(&mut b, "node", &h.node, NAME_BYTES_MAX)?;
            b.put_u8(role_number(h.role));
            b.put_u64_le(h.term.0);
            put_position(&mut b, &h.durable);
            b.put_slice(&h.config);
            b.put_u64_le(h.instance);
        }
        Message::Welcome(w) => {
            b.put_u16_le(w.version as u16);
            put_text(&mut b, "node", &w.node, NAME_BYTES_MAX)?;
            b.put_u8(role_number(w.role));
            b.put_u64_le(w.term.0);
            put_position(&mut b, &w.received);
            b.put_u64_le(w.open_lfc.0);
            b.put_u64_le(w.applied.0);
            b.put_u8(u8::from(w.copying));
            b.put_slice(&w.config);
            b.put_u64_le(w.instance);
        }
        Message::Refuse(r) => {
            b.put_u16_le(r.code as u16);
            b.put_u64_le(r.term.0);
            put_text(&mut b, "text", cut(&r.text), TEXT_BYTES_MAX)?;
        }
        Message::Bye { text } => put_text(&mut b, "text", cut(text), TEXT_BYTES_MAX)?,
        Message::Ping { nonce } | Message::Pong { nonce } => b.put_u64_le(*nonce),
        Message::Pair { secret, card } => {
            b.put_slice(secret);
            put_card(&mut b, card)?;
        }
        Message::Paired { card } => put_card(&mut b, card)?,
        Message::Frame(f) => {
            b.put_u64_le(f.generation.0);
            for n in [f.lfc.0, f.after.0, f.first.0, f.last.0, f.durable.0] {
                b.put_u64_le(n);
            }
            b.put_slice(&f.digest);
            payload = f.bytes.clone();
        }
        Message::Seal(s) => {
            b.put_u64_le(s.lfc.0);
            b.put_u64_le(s.last.0);
            b.put_slice(&s.digest);
            b.put_u8(s.flags);
        }
        Message::Jump(j) => {
            put_position(&mut b, &j.to);
            b.put_u8(j.cause as u8);
        }
        Message::Copy(c) => {
            b.put_u64_le(c.seq.0);
            b.put_u16_le(c.volume.0);
            b.put_u64_le(c.range.start);
            b.put_u64_le(c.range.len());
            match &c.payload {
                Payload::Zero => b.put_u8(0),
                Payload::Data(d) if d.len() as u64 == c.range.len() => {
                    b.put_u8(1);
                    payload = d.clone();
                }
                Payload::Data(d) => {
                    return Err(CodecError::Value {
                        what: "copy payload",
                        value: d.len() as u64,
                    });
                }
            }
        }
        Message::CopiesComplete { seq } | Message::Durable { seq } => b.put_u64_le(seq.0),
        Message::Ack(a) => {
            b.put_u64_le(a.received_durable.0);
            b.put_u64_le(a.applied.0);
        }
        Message::CopyAck { seqs } => {
            if seqs.len() > COPY_ACKS_MAX {
                return Err(CodecError::Value {
                    what: "copy count",
                    value: seqs.len() as u64,
                });
            }
            b.put_u32_le(seqs.len() as u32);
            seqs.iter().for_each(|s| b.put_u64_le(s.0));
        }
        Message::Request(Request {
            id,
            kind: number,
            body,
        })
        | Message::Response(Response {
            id,
            code: number,
            body,
        }) => {
            b.put_u64_le(*id);
            b.put_u16_le(*number);
            payload = body.clone();
            if body.len() > REQUEST_BYTES_MAX {
                return Err(CodecError::Length {
                    kind,
                    len: body.len() as u64,
                    max: REQUEST_BYTES_MAX,
                });
            }
        }
    }
    let max = kind.body_bytes_max();
    if payload.len() > PAYLOAD_BYTES_MAX || b.len() + payload.len() > max {
        return Err(CodecError::Length {
            kind,
            len: (b.len() + payload.len()) as u64,
            max,
        });
    }
    Ok(Encoded {
        kind,
        flags: 0,
        fields: b.freeze(),
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
        if got != stated {
            return Err(CodecError::Checksum { kind, stated, got });
        }
        let body = if flags & FLAG_ZSTD == 0 {
            body
        } else {
            decompress(kind, body)?
        };
        decode_body(kind, body).map(Some)
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
    let raw = zstd::bulk::decompress(&t.rest(), len).map_err(|_| fault.clone())?;
    if raw.len() == len {
        Ok(raw.into())
    } else {
        Err(fault)
    }
}

fn decode_body(kind: Kind, body: Bytes) -> Result<Message, CodecError> {
    let mut t = Take::new(body);
    let message = match kind {
        Kind::Hello => take_hello(&mut t)?,
        Kind::Welcome => take_welcome(&mut t)?,
        Kind::Refuse => {
            let n = t.u16("code")?;
            let code = RefuseCode::from_number(n).ok_or(CodecError::Value {
                what: "code",
                value: n.into(),
            })?;
            Message::Refuse(Refuse {
                code,
                term: Term(t.u64("term")?),
                text: t.text("text", TEXT_BYTES_MAX)?,
            })
        }
        Kind::Bye => Message::Bye {
            text: t.text("text", TEXT_BYTES_MAX)?,
        },
        Kind::Ping => Message::Ping {
            nonce: t.u64("nonce")?,
        },
        Kind::Pong => Message::Pong {
            nonce: t.u64("nonce")?,
        },
        Kind::Pair => Message::Pair {
            secret: t.secret()?,
            card: take_card(&mut t)?,
        },
        Kind::Paired => Message::Paired {
            card: take_card(&mut t)?,
        },
        Kind::Frame => take_frame(&mut t)?,
        Kind::Seal => Message::Seal(Seal {
            lfc: take_redo(&mut t)?,
            last: WriteSeq(t.u64("last")?),
            digest: t.digest("digest")?,
            flags: t.u8("flags")?,
        }),
        Kind::Jump => {
            let to = take_position(&mut t)?;
            let n = t.u8("cause")?;
            let cause = JumpCause::from_number(n).ok_or(CodecError::Value {
                what: "cause",
                value: n.into(),
            })?;
            Message::Jump(Jump { to, cause })
        }
        Kind::Copy => take_copy(&mut t)?,
        Kind::CopiesComplete => Message::CopiesComplete {
            seq: WriteSeq(t.u64("seq")?),
        },
        Kind::Durable => Message::Durable {
            seq: WriteSeq(t.u64("seq")?),
        },
        Kind::Ack => Message::Ack(Ack {
            received_durable: WriteSeq(t.u64("received")?),
            applied: WriteSeq(t.u64("applied")?),
        }),
        Kind::CopyAck => {
            let n = t.u32("copy count")?;
            if n as usize > COPY_ACKS_MAX {
                return Err(CodecError::Value {
                    what: "copy count",
                    value: n.into(),
                });
            }
            let seqs = (0..n)
                .map(|_| t.u64("copy").map(WriteSeq))
                .collect::<Result<Vec<_>, _>>()?;
            Message::CopyAck { seqs }
        }
        Kind::Request => {
            let (id, kind) = (t.u64("id")?, t.u16("kind")?);
            Message::Request(Request {
                id,
                kind,
                body: take_small(&mut t, Kind::Request)?,
            })
        }
        Kind::Response => {
            let (id, code) = (t.u64("id")?, t.u16("code")?);
            Message::Response(Response {
                id,
                code,
                body: take_small(&mut t, Kind::Response)?,
            })
        }
    };
    t.end()?;
    Ok(message)
}

fn take_hello(t: &mut Take) -> Result<Message, CodecError> {
    let (oldest, newest) = (t.u16("oldest")?, t.u16("newest")?);
    // Only these two fields are the same in every version; nothing else of a foreign greeting may be looked at.
    if Version::common(oldest, newest).is_none() {
        return Err(CodecError::Version { oldest, newest });
    }
    let hello = Hello {
        oldest,
        newest,
        context: ContextId(t.u32("context")?),
        node: t.text("node", NAME_BYTES_MAX)?,
        role: take_role(t)?,
        term: Term(t.u64("term")?),
        durable: take_position(t)?,
        config: t.digest("config")?,
        instance: t.u64("instance")?,
    };
    if newest > Version::NEWEST as u16 {
        // A newer peer may add fields behind ours; it drops them once it knows our version.
        t.rest();
    }
    Ok(Message::Hello(hello))
}

fn take_welcome(t: &mut Take) -> Result<Message, CodecError> {
    let n = t.u16("version")?;
    Ok(Message::Welcome(Welcome {
        version: Version::from_number(n).ok_or(CodecError::Version { oldest: n, newest: n })?,
        node: t.text("node", NAME_BYTES_MAX)?,
        role: take_role(t)?,
        term: Term(t.u64("term")?),
        received: take_position(t)?,
        open_lfc: LfcId(t.u64("open lfc")?),
        applied: WriteSeq(t.u64("applied")?),
        copying: match t.u8("copying")? {
            0 => false,
            1 => true,
            n => {
                return Err(CodecError::Value {
                    what: "copying",
                    value: n.into(),
                });
            }
        },
        config: t.digest("config")?,
        instance: t.u64("instance")?,
    }))
}

fn take_frame(t: &mut Take) -> Result<Message, CodecError> {
    let f = Frame {
        generation: GenId(t.u64("generation")?),
        lfc: take_redo(t)?,
        after: WriteSeq(t.u64("after")?),
        first: WriteSeq(t.u64("first")?),
        last: WriteSeq(t.u64("last")?),
        durable: WriteSeq(t.u64("durable")?),
        digest: t.digest("digest")?,
        bytes: t.rest(),
    };
    if f.first <= f.after {
        return Err(CodecError::Value {
            what: "first",
            value: f.first.0,
        });
    }
    if f.last < f.first || f.last.0 == u64::MAX {
        return Err(CodecError::Value {
            what: "last",
            value: f.last.0,
        });
    }
    if f.bytes.is_empty() || f.bytes.len() > PAYLOAD_BYTES_MAX {
        return Err(CodecError::Value {
            what: "frame bytes",
            value: f.bytes.len() as u64,
        });
    }
    Ok(Message::Frame(f))
}

fn take_copy(t: &mut Take) -> Result<Message, CodecError> {
    let (seq, volume) = (WriteSeq(t.u64("seq")?), VolumeIndex(t.u16("volume")?));
    let (start, len) = (t.u64("start")?, t.u64("length")?);
    let end = start.checked_add(len).filter(|_| len > 0);
    let end = end.ok_or(CodecError::Value {
        what: "length",
        value: len,
    })?;
    let payload = match t.u8("payload kind")? {
        0 => Payload::Zero,
        1 => {
            let data = t.rest();
            if data.len() as u64 != len || data.len() > PAYLOAD_BYTES_MAX {
                return Err(CodecError::Value {
                    what: "copy payload",
                    value: data.len() as u64,
                });
            }
            Payload::Data(data)
        }
        n => {
            return Err(CodecError::Value {
                what: "payload kind",
                value: n.into(),
            });
        }
    };
    Ok(Message::Copy(Copy {
        seq,
        volume,
        range: ByteRange { start, end },
        payload,
    }))
}

fn take_small(t: &mut Take, kind: Kind) -> Result<Bytes, CodecError> {
    let body = t.rest();
    if body.len() > REQUEST_BYTES_MAX {
        return Err(CodecError::Length {
            kind,
            len: body.len() as u64,
            max: REQUEST_BYTES_MAX,
        });
    }
    Ok(body)
}

fn take_redo(t: &mut Take) -> Result<LfcId, CodecError> {
    let id = LfcId(t.u64("lfc")?);
    if id.is_redo() && id >= LfcId::FIRST {
        Ok(id)
    } else {
        Err(CodecError::Value {
            what: "lfc",
            value: id.0,
        })
    }
}

fn put_position(b: &mut BytesMut, p: &Position) {
    b.put_u64_le(p.generation.0);
    b.put_u64_le(p.seq.0);
    b.put_slice(&p.digest);
}

fn take_position(t: &mut Take) -> Result<Position, CodecError> {
    let p = Position {
        generation: GenId(t.u64("generation")?),
        seq: WriteSeq(t.u64("seq")?),
        digest: t.digest("digest")?,
    };
    if p.seq.0 == u64::MAX {
        Err(CodecError::Value {
            what: "seq",
            value: p.seq.0,
        })
    } else {
        Ok(p)
    }
}

const fn role_number(role: Role) -> u8 {
    match role {
        Role::Production => 1,
        Role::Recovery => 2,
    }
}

fn take_role(t: &mut Take) -> Result<Role, CodecError> {
    match t.u8("role")? {
        1 => Ok(Role::Production),
        2 => Ok(Role::Recovery),
        n => Err(CodecError::Value {
            what: "role",
            value: n.into(),
        }),
    }
}

fn put_text(b: &mut BytesMut, what: &'static str, text: &str, most: usize) -> Result<(), CodecError> {
    let len = u16::try_from(text.len()).ok().filter(|_| text.len() <= most);
    b.put_u16_le(len.ok_or(CodecError::Value {
        what,
        value: text.len() as u64,
    })?);
    b.put_slice(text.as_bytes());
    Ok(())
}

/// The first [`TEXT_BYTES_MAX`] bytes, in whole characters: a long reason must not make a refusal fail.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn put_card(b: &mut BytesMut, card: &NodeCard) -> Result<(), CodecError> {
    put_text(b, "name", &card.name, NAME_BYTES_MAX)?;
    let n = u8::try_from(card.endpoints.len())
        .ok()
        .filter(|n| usize::from(*n) <= ENDPOINTS_MAX);
    b.put_u8(n.ok_or(CodecError::Value {
        what: "endpoint count",
        value: card.endpoints.len() as u64,
    })?);
    card.endpoints
        .iter()
        .try_for_each(|e| put_text(b, "endpoint", e, ENDPOINT_BYTES_MAX))
}

fn take_card(t: &mut Take) -> Result<NodeCard, CodecError> {
    let name = t.text("name", NAME_BYTES_MAX)?;
    let n = t.u8("endpoint count")?;
    if usize::from(n) > ENDPOINTS_MAX {
        return Err(CodecError::Value {
            what: "endpoint count",
            value: n.into(),
        });
    }
    let endpoints = (0..n)
        .map(|_| t.text("endpoint", ENDPOINT_BYTES_MAX))
        .collect::<Result<_, _>>()?;
    Ok(NodeCard { name, endpoints })
}
