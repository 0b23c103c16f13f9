//! The transmission phase, over a connection in memory. Whatever comes in:
//!
//! * every request that arrived whole is answered exactly once, in the style of the connection, and nothing else is said;
//! * what a reply carries fits what was asked: ranges are covered once, errors are those of the protocol, a read on its own
//!   returns what is there;
//! * afterwards the volume holds what the answered changes say, in their order, and nothing of what was refused or cut off.
//!
//! The framing of requests and replies is written anew here, so that one mistake is not made twice.

use super::{
    bend, cuts, edge,
    export::{Only, Shape, Volume},
};
use crate::{
    Errno, Limits, connection,
    proto::{Put, Take, cmd, flag},
    server::{Reception, Security, Shared},
    transport::{Transport, Wait},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    ops::Range,
    sync::Arc,
    time::Duration,
};
use testkit::with_seeds;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Simple,
    Structured,
    Extended,
}

/// A request as it stands in a stream, by its own parser.
#[derive(Clone, Debug)]
struct Sent {
    flags: u16,
    command: u16,
    offset: u64,
    len: u64,
    payload: Range<usize>,
}

fn header_len(style: Style) -> usize {
    if style == Style::Extended { 32 } else { 28 }
}

/// The length of a number at a place of the stream.
fn number(stream: &[u8], at: usize, width: usize) -> u64 {
    stream[at..at + width]
        .iter()
        .fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Gives every request a cookie of its own, which is its place in the result: those that are to be answered.
fn frame(stream: &mut [u8], style: Style) -> Vec<Sent> {
    let (head, mut at, mut out) = (header_len(style), 0, Vec::new());
    let magic = if style == Style::Extended {
        0x21e4_1c71
    } else {
        0x2560_9513
    };
    while stream.len() >= at + head && number(stream, at, 4) == magic {
        let (flags, command) = (number(stream, at + 4, 2) as u16, number(stream, at + 6, 2) as u16);
        let offset = number(stream, at + 16, 8);
        let len = number(stream, at + 24, head - 24);
        stream[at + 8..at + 16].copy_from_slice(&(out.len() as u64).to_be_bytes());
        if command == cmd::DISC {
            break;
        }
        let has_payload =
            command == cmd::WRITE || (style == Style::Extended && flags & flag::PAYLOAD_LEN != 0);
        let payload = if has_payload { len } else { 0 };
        let most = if style == Style::Extended {
            32 << 20
        } else {
            64 << 20
        };
        at += head;
        if payload > most || stream.len() - at < payload as usize {
            break;
        }
        let end = at + payload as usize;
        out.push(Sent {
            flags,
            command,
            offset,
            len,
            payload: at..end,
        });
        at = end;
    }
    out
}

fn request(rng: &mut StdRng, style: Style, shape: &Shape, out: &mut Vec<u8>) {
    let command = match rng.random_range(0..40) {
        0 => edge(rng) as u16,
        1 => cmd::DISC,
        n => [
            cmd::READ,
            cmd::READ,
            cmd::WRITE,
            cmd::WRITE,
            cmd::FLUSH,
            cmd::TRIM,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
            cmd::BLOCK_STATUS,
        ][n % 9],
    };
    let flags = match rng.random_range(0..10) {
        0 => rng.random(),
        1..4 => *[flag::FUA, flag::DF, flag::REQ_ONE, flag::NO_HOLE, flag::FAST_ZERO]
            .choose(rng)
            .unwrap(),
        _ => 0,
    };
    let block = u64::from(shape.min_block);
    let (mut offset, mut len) = match command {
        cmd::FLUSH => (0, 0),
        _ => {
            let at = rng.random_range(0..shape.size);
            let len = rng.random_range(0..=(shape.size - at).min(100_000));
            (at - at % block, len - len % block)
        }
    };
    match rng.random_range(0..20) {
        0 => offset = edge(rng),
        1 => len = edge(rng),
        2 => (offset, len) = (shape.size.saturating_sub(512), 1024),
        _ => {}
    }
    let mut payload = Vec::new();
    let mut flags = flags;
    if command == cmd::WRITE {
        len %= 200_000;
        payload.resize(len as usize, rng.random());
    } else if command == cmd::BLOCK_STATUS && style == Style::Extended && rng.random_bool(0.4) {
        flags |= flag::PAYLOAD_LEN;
        payload.put_u64(len);
        (0..rng.random_range(0..4)).for_each(|_| payload.put_u32(rng.random_range(0..4)));
        len = payload.len() as u64;
    }
    if style == Style::Extended {
        let announced = if command == cmd::WRITE && rng.random_bool(0.5) {
            flag::PAYLOAD_LEN
        } else {
            0
        };
        out.put_u32(0x21e4_1c71);
        out.put_u16(flags | announced);
    } else {
        out.put_u32(0x2560_9513);
        out.put_u16(flags);
    }
    out.put_u16(command);
    out.put_u64(0);
    out.put_u64(offset);
    if style == Style::Extended {
        out.put_u64(len);
    } else {
        out.put_u32(len as u32);
    }
    out.put(&payload);
}

/// Options that lead to a session of this style, with the contexts of the volume.
fn greeting(style: Style, contexts: bool) -> Vec<u8> {
    let mut p = Vec::new();
    let option = |p: &mut Vec<u8>, option: u32, payload: &[u8]| {
        p.put(b"IHAVEOPT");
        p.put_u32(option);
        p.put_u32(payload.len() as u32);
        p.put(payload);
    };
    p.put_u32(3);
    match style {
        Style::Simple => {}
        Style::Structured => option(&mut p, 8, b""),
        Style::Extended => option(&mut p, 11, b""),
    }
    if contexts {
        let mut query = Vec::new();
        query.put_str("v");
        query.put_u32(2);
        query.put_str("base:allocation");
        query.put_str("x-test:zero");
        option(&mut p, 10, &query);
    }
    option(&mut p, 7, b"\0\0\0\x01v\0\0");
    p
}

/// A client in memory: what it sends comes in pieces, what it is sent is kept.
struct Line {
    rng: Mutex<StdRng>,
    /// What is still to come, and in pieces of what lengths, the next one last.
    incoming: Mutex<(VecDeque<u8>, Vec<usize>)>,
    outgoing: Mutex<Vec<u8>>,
}

impl Transport for Line {
    fn recv(&self, buf: &mut Vec<u8>, wait: Wait) -> io::Result<usize> {
        let (bytes, pieces) = &mut *self.incoming.lock();
        assert!(buf.capacity() > buf.len());
        if wait == Wait::Never && self.rng.lock().random_bool(0.5) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(piece) = pieces.pop() else {
            return Ok(0);
        };
        let n = piece.min(buf.capacity() - buf.len());
        buf.extend(bytes.drain(..n));
        if n < piece {
            pieces.push(piece - n);
        }
        Ok(n)
    }

    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize> {
        assert!(wait == Wait::Block, "nobody but the owner answers here");
        let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let n = self.rng.lock().random_range(1..=all.len());
        self.outgoing.lock().extend_from_slice(&all[..n]);
        Ok(n)
    }

    fn set_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn close_read(&self) {}

    fn close(&self) {}
}

/// What was answered to a request.
#[derive(Debug, Default)]
struct Reply {
    errno: u32,
    /// Data and holes of a read, by their offsets.
    pieces: Vec<(u64, Piece)>,
    /// Descriptors of a block status by context.
    runs: Vec<(u32, Vec<(u64, u64)>)>,
    done: bool,
}

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    Hole(u64),
}

/// Takes one reply, or one chunk of one.
fn hear(said: &mut Take<'_>, style: Style, sent: &[Sent], replies: &mut HashMap<u64, Reply>) {
    let magic = said.u32().unwrap();
    let open = |cookie: u64| {
        assert!((cookie as usize) < sent.len(), "a reply to nothing: {cookie}");
        cookie
    };
    if magic == 0x6744_6698 {
        let (errno, cookie) = (said.u32().unwrap(), open(said.u64().unwrap()));
        let asked = &sent[cookie as usize];
        let mut reply = Reply {
            errno,
            done: true,
            ..Reply::default()
        };
        if asked.command == cmd::READ && errno == 0 {
            assert_eq!(style, Style::Simple, "a read is answered in chunks");
            reply.pieces.push((
                asked.offset,
                Piece::Data(said.bytes(asked.len as usize).unwrap().to_vec()),
            ));
        }
        assert!(style != Style::Extended);
        assert!(style == Style::Simple || errno == 0, "an error is a chunk");
        assert!(
            replies.insert(cookie, reply).is_none(),
            "{cookie} is answered twice"
        );
        return;
    }
    let extended = style == Style::Extended;
    assert_eq!(magic, if extended { 0x6e8a_278c } else { 0x668e_33ef });
    assert!(style != Style::Simple);
    let (flags, kind, cookie) = (
        said.u16().unwrap(),
        said.u16().unwrap(),
        open(said.u64().unwrap()),
    );
    let asked = &sent[cookie as usize];
    let len = if extended {
        assert_eq!(said.u64(), Some(asked.offset));
        said.u64().unwrap()
    } else {
        said.u32().unwrap().into()
    };
    let mut p = Take(said.bytes(len as usize).unwrap());
    let reply = replies.entry(cookie).or_default();
    assert!(!reply.done, "{cookie} is answered twice");
    assert!(flags <= 1);
    reply.done = flags == 1;
    match kind {
        0 => assert!(reply.done && p.is_empty()),
        1 => {
            let offset = p.u64().unwrap();
            reply.pieces.push((offset, Piece::Data(p.0.to_vec())));
            p = Take(b"");
        }
        2 => {
            let offset = p.u64().unwrap();
            reply.pieces.push((offset, Piece::Hole(p.u32().unwrap().into())));
        }
        5 | 6 => {
            assert_eq!(kind == 6, extended);
            let context = p.u32().unwrap();
            let count = if extended { p.u32() } else { None };
            let mut runs = Vec::new();
            while !p.is_empty() {
                runs.push(if extended {
                    (p.u64().unwrap(), p.u64().unwrap())
                } else {
                    (p.u32().unwrap().into(), p.u32().unwrap().into())
                });
            }
            assert!(count.is_none_or(|n| n as usize == runs.len()));
            reply.runs.push((context, runs));
        }
        0x8001 | 0x8002 => {
            reply.errno = p.u32().unwrap();
            assert!(reply.errno != 0 && reply.done);
            let text = p.u16().unwrap();
            assert!(std::str::from_utf8(p.bytes(text.into()).unwrap()).is_ok());
            if kind == 0x8002 {
                let at = p.u64().unwrap();
                assert!((asked.offset..asked.offset + asked.len).contains(&at));
            }
        }
        other => panic!("a chunk of kind {other}"),
    }
    assert!(
        p.is_empty(),
        "a chunk of kind {kind} is longer than what it holds"
    );
    let fits = match kind {
        1 | 2 => asked.command == cmd::READ,
        5 | 6 => asked.command == cmd::BLOCK_STATUS,
        _ => true,
    };
    assert!(fits, "kind {kind} for command {}", asked.command);
}

const ERRORS: [Errno; 5] = [
    Errno::Perm,
    Errno::Io,
    Errno::Inval,
    Errno::NoSpc,
    Errno::Overflow,
];

/// Whether a reply fits its request. `now` are the bytes, when nothing else can have changed them meanwhile.
fn check(asked: &Sent, reply: &Reply, payload: &[u8], shape: &Shape, now: Option<&[u8]>) {
    assert!(reply.done, "{asked:?} is not answered to the end");
    assert!(
        reply.errno == 0 || ERRORS.iter().any(|e| e.code() == reply.errno),
        "{asked:?}: {}",
        reply.errno
    );
    let inside = asked
        .offset
        .checked_add(asked.len)
        .is_some_and(|end| end <= shape.size);
    if reply.errno == 0 && !matches!(asked.command, cmd::FLUSH | cmd::BLOCK_STATUS) {
        assert!(inside, "{asked:?} succeeds");
    }
    if reply.errno == 0 && matches!(asked.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES) {
        assert!(!shape.read_only, "{asked:?} succeeds");
    }
    if asked.command == cmd::READ {
        let mut at = asked.offset;
        for (offset, piece) in &reply.pieces {
            assert_eq!(*offset, at, "{asked:?}: pieces follow each other");
            let len = match piece {
                Piece::Data(data) => data.len() as u64,
                Piece::Hole(len) => *len,
            };
            assert!(len > 0 || asked.len == 0);
            if let Some(now) = now {
                let there = &now[at as usize..(at + len) as usize];
                match piece {
                    Piece::Data(data) => assert!(data == there),
                    Piece::Hole(_) => assert!(there.iter().all(|b| *b == 0)),
                }
            }
            at += len;
        }
        assert!(at <= asked.offset.saturating_add(asked.len));
        assert!(
            reply.errno != 0 || at == asked.offset + asked.len,
            "{asked:?} is not whole"
        );
        let whole = asked.flags & flag::DF != 0;
        assert!(!whole || reply.pieces.len() <= 1, "{asked:?} is in pieces");
    }
    if asked.command == cmd::BLOCK_STATUS && reply.errno == 0 {
        let len = if payload.is_empty() {
            asked.len
        } else {
            number(payload, 0, 8)
        };
        assert!(!reply.runs.is_empty() && len > 0 && asked.offset + len <= shape.size);
        for (context, runs) in &reply.runs {
            assert!((1..=2).contains(context) && !runs.is_empty());
            let total: u64 = runs.iter().map(|r| r.0).sum();
            assert!(runs.iter().all(|r| r.0 > 0) && asked.offset + total <= shape.size);
            if asked.flags & flag::REQ_ONE != 0 {
                assert!(runs.len() == 1 && total <= len);
            }
        }
        let mut ids: Vec<u32> = reply.runs.iter().map(|r| r.0).collect();
        ids.dedup();
        assert_eq!(ids.len(), reply.runs.len());
    }
}

fn shape(rng: &mut StdRng) -> Shape {
    let min_block = *[1, 1, 512, 4096].choose(rng).unwrap();
    let blocks = rng.random_range(1..300_000 / u64::from(min_block));
    let size = blocks * u64::from(min_block);
    Shape {
        size,
        min_block,
        read_only: rng.random_bool(0.1),
        cheap_extents: rng.random_bool(0.7),
        bad_from: if rng.random_bool(0.3) {
            rng.random_range(0..=size)
        } else {
            size
        },
    }
}

fn play(rng: &mut StdRng) -> usize {
    let shape = shape(rng);
    let style = *[Style::Simple, Style::Structured, Style::Extended]
        .choose(rng)
        .unwrap();
    let mut before = vec![0; shape.size as usize];
    for block in before.chunks_mut(10_000) {
        if rng.random_bool(0.5) {
            rng.fill(block);
        }
    }
    let mut stream = Vec::new();
    for _ in 0..rng.random_range(1..30) {
        request(rng, style, &shape, &mut stream);
    }
    if rng.random_bool(0.3) {
        bend(rng, &mut stream);
    }
    let sent = frame(&mut stream, style);
    let mut incoming = greeting(style, style != Style::Simple && rng.random_bool(0.8));
    incoming.extend_from_slice(&stream);
    let pieces = cuts(rng, incoming.len());
    let line = Arc::new(Line {
        rng: Mutex::new(StdRng::from_rng(rng)),
        incoming: Mutex::new((incoming.into(), pieces)),
        outgoing: Mutex::default(),
    });
    let volume = Volume::new(shape.clone(), before.clone());
    let limits = Limits {
        in_flight_bytes_max: *[1, 100_000, 64 << 20].choose(rng).unwrap(),
        ..Limits::default()
    };
    let shared = Shared::new(Arc::new(Only(volume.clone())), limits);
    let reception = Reception {
        default: None,
        security: Security::Plain,
    };
    connection::run(line.clone(), &shared, reception, |_| {}).unwrap();

    let outgoing = line.outgoing.lock();
    let mut said = Take(&outgoing);
    said.bytes(18).unwrap();
    while said.0.starts_with(&0x0003_e889_0455_65a9_u64.to_be_bytes()) {
        said.bytes(16).unwrap();
        said.counted().unwrap();
    }
    let mut replies = HashMap::new();
    while !said.is_empty() {
        hear(&mut said, style, &sent, &mut replies);
    }
    let mut model = before;
    let alone = sent.len() == 1;
    for (i, asked) in sent.iter().enumerate() {
        let reply = replies
            .get(&(i as u64))
            .unwrap_or_else(|| panic!("{asked:?} is not answered"));
        let payload = &stream[asked.payload.clone()];
        check(asked, reply, payload, &shape, alone.then_some(&model));
        if reply.errno == 0 && asked.len > 0 {
            let span = asked.offset as usize..(asked.offset + asked.len) as usize;
            match asked.command {
                cmd::WRITE => model[span].copy_from_slice(payload),
                cmd::TRIM | cmd::WRITE_ZEROES => model[span].fill(0),
                _ => {}
            }
        }
    }
    assert!(
        *volume.bytes.lock().unwrap() == model,
        "the volume is not what the answers say"
    );
    sent.len()
}

#[test]
fn random_requests_are_answered_once_and_truly() {
    let mut answered = 0;
    let tried = with_seeds("nbd transmission", 1000, |rng| answered += play(rng) as u64);
    assert!(
        tried < 1000 || answered > 5 * tried,
        "only {answered} requests in {tried} talks"
    );
}
