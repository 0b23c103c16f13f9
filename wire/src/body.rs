//! The bodies of the messages, field by field, as in `docs/formats/wire.md`.

use crate::{
    codec::{
        COPY_ACKS_MAX, CodecError, ENDPOINT_BYTES_MAX, ENDPOINTS_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX,
        PIECES_MAX, REQUEST_BYTES_MAX, TEXT_BYTES_MAX,
    },
    message::{
        Ack, Copy, Frame, Hello, Jump, JumpCause, Kind, Lacks, Message, NodeCard, Offer, Position, Refuse,
        RefuseCode, Request, Response, Seal, Version, Welcome,
    },
    take::Take,
};
use bytes::{BufMut, Bytes, BytesMut};
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, VolumeIndex, WriteSeq};

/// The fields of a message, and the opaque bytes behind them.
pub(crate) fn put(message: &Message) -> Result<(BytesMut, Bytes), CodecError> {
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
            b.put_u8(u8::from(w.gives_way));
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
            b.put_u64_le(j.lfc.0);
            b.put_u8(j.cause as u8);
            b.put_u8(u8::from(j.parent.is_some()));
            if let Some(parent) = &j.parent {
                put_position(&mut b, parent);
            }
        }
        Message::Copy(c) => {
            b.put_u64_le(c.seq.0);
            b.put_u16_le(c.volume.0);
            put_range(&mut b, c.range);
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
        Message::Offer(o) => {
            check_pieces(o)?;
            b.put_u64_le(o.seq.0);
            b.put_u16_le(o.volume.0);
            put_range(&mut b, o.range);
            b.put_u32_le(o.piece);
            o.pieces.iter().for_each(|p| b.put_u64_le(*p));
        }
        Message::Lacks(l) => {
            check_ranges(&l.ranges)?;
            b.put_u64_le(l.seq.0);
            b.put_u16_le(l.ranges.len() as u16);
            l.ranges.iter().for_each(|r| put_range(&mut b, *r));
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
    Ok((b, payload))
}

/// The message with this body.
pub(crate) fn take(kind: Kind, body: Bytes) -> Result<Message, CodecError> {
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
            let lfc = take_redo(&mut t)?;
            let n = t.u8("cause")?;
            let cause = JumpCause::from_number(n).ok_or(CodecError::Value {
                what: "cause",
                value: n.into(),
            })?;
            let parent = take_flag(&mut t, "has parent")?.then(|| take_position(&mut t));
            let parent = parent.transpose()?;
            Message::Jump(Jump {
                to,
                lfc,
                cause,
                parent,
            })
        }
        Kind::Copy => take_copy(&mut t)?,
        Kind::Offer => take_offer(&mut t)?,
        Kind::Lacks => {
            let (seq, n) = (WriteSeq(t.u64("seq")?), t.u16("range count")?);
            let ranges = (0..n)
                .map(|_| take_range(&mut t))
                .collect::<Result<Vec<_>, _>>()?;
            check_ranges(&ranges)?;
            Message::Lacks(Lacks { seq, ranges })
        }
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
        copying: take_flag(t, "copying")?,
        gives_way: take_flag(t, "gives way")?,
        config: t.digest("config")?,
        instance: t.u64("instance")?,
    }))
}

fn take_flag(t: &mut Take, what: &'static str) -> Result<bool, CodecError> {
    match t.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        n => Err(CodecError::Value {
            what,
            value: n.into(),
        }),
    }
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
    let range = take_range(t)?;
    let len = range.len();
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
        range,
        payload,
    }))
}

fn take_offer(t: &mut Take) -> Result<Message, CodecError> {
    let (seq, volume) = (WriteSeq(t.u64("seq")?), VolumeIndex(t.u16("volume")?));
    let (range, piece) = (take_range(t)?, t.u32("piece")?);
    let mut offer = Offer {
        seq,
        volume,
        range,
        piece,
        pieces: Vec::new(),
    };
    let n = pieces_of(&offer)?;
    offer.pieces = (0..n).map(|_| t.u64("digest")).collect::<Result<Vec<_>, _>>()?;
    Ok(Message::Offer(offer))
}

/// How many pieces an offer has.
fn pieces_of(offer: &Offer) -> Result<usize, CodecError> {
    let pieces = match offer.piece {
        0 => 0,
        piece => offer.range.len().div_ceil(piece.into()),
    };
    usize::try_from(pieces)
        .ok()
        .filter(|n| *n <= PIECES_MAX)
        .ok_or(CodecError::Value {
            what: "piece",
            value: offer.piece.into(),
        })
}

fn check_pieces(offer: &Offer) -> Result<(), CodecError> {
    if pieces_of(offer)? == offer.pieces.len() {
        return Ok(());
    }
    Err(CodecError::Value {
        what: "piece count",
        value: offer.pieces.len() as u64,
    })
}

/// Some ranges, that rise and do not touch.
fn check_ranges(ranges: &[ByteRange]) -> Result<(), CodecError> {
    let fault = |what, value| Err(CodecError::Value { what, value });
    if ranges.is_empty() || ranges.len() > PIECES_MAX {
        return fault("range count", ranges.len() as u64);
    }
    match ranges.windows(2).find(|pair| pair[0].end >= pair[1].start) {
        Some(pair) => fault("start", pair[1].start),
        None => Ok(()),
    }
}

fn put_range(b: &mut BytesMut, range: ByteRange) {
    b.put_u64_le(range.start);
    b.put_u64_le(range.len());
}

fn take_range(t: &mut Take) -> Result<ByteRange, CodecError> {
    let (start, len) = (t.u64("start")?, t.u64("length")?);
    let end = start.checked_add(len).filter(|_| len > 0);
    let end = end.ok_or(CodecError::Value {
        what: "length",
        value: len,
    })?;
    Ok(ByteRange { start, end })
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
