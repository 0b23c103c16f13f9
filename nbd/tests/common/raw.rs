//! A client of bare bytes.

use super::Fixture;
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const PAYLOAD: u16 = 32;

pub const GO: u32 = 7;
pub const STRUCTURED_REPLY: u32 = 8;
pub const SET_META_CONTEXT: u32 = 10;
pub const EXTENDED_HEADERS: u32 = 11;

pub const ACK: u32 = 1;

/// Chunks.
pub const NONE: u16 = 0;
pub const DATA: u16 = 1;
pub const HOLE: u16 = 2;
pub const BLOCK_STATUS: u16 = 5;
pub const BLOCK_STATUS_EXT: u16 = 6;
pub const ERROR: u16 = 0x8001;
pub const ERROR_OFFSET: u16 = 0x8002;

/// What the replies of a connection look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Simple,
    Structured,
    Extended,
}

/// A client that sends what it likes.
pub struct Raw {
    pub stream: UnixStream,
    style: Style,
}

/// A reply: the chunks of a structured or extended one as (type, payload).
#[derive(Debug, PartialEq)]
pub enum Said {
    Simple(u32),
    Chunks(Vec<(u16, Vec<u8>)>),
}

impl Said {
    /// The error number of a reply, 0 for none.
    pub fn errno(&self) -> u32 {
        match self {
            Self::Simple(e) => *e,
            Self::Chunks(chunks) => chunks.iter().find(|c| c.0 >> 15 == 1).map_or(0, |c| be32(&c.1)),
        }
    }

    #[track_caller]
    pub fn chunks(self) -> Vec<(u16, Vec<u8>)> {
        match self {
            Self::Chunks(chunks) => chunks,
            Self::Simple(e) => panic!("a simple reply, {e}"),
        }
    }
}

pub fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

pub fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

/// A string with its length before it.
pub fn counted(s: &str) -> Vec<u8> {
    let mut p = u32::try_from(s.len()).unwrap().to_be_bytes().to_vec();
    p.extend(s.as_bytes());
    p
}

impl Raw {
    /// A connection whose handshake has just begun.
    pub fn hello(f: &Fixture) -> Self {
        Self::greet(UnixStream::connect(f.socket()).unwrap())
    }

    pub fn greet(stream: UnixStream) -> Self {
        let mut raw = Self {
            stream,
            style: Style::Simple,
        };
        raw.stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        assert_eq!(raw.take(18)[..16], *b"NBDMAGICIHAVEOPT");
        raw.stream.write_all(&[0, 0, 0, 3]).unwrap();
        raw
    }

    /// Chooses `name` with all that the style allows: `base:allocation`, and a context of the export's own.
    pub fn open(f: &Fixture, name: &str, style: Style) -> Self {
        let mut raw = Self::hello(f);
        raw.negotiate(style);
        if style != Style::Simple {
            raw.contexts(name, &["base:allocation", "x-test:data"]);
        }
        raw.go(name);
        raw
    }

    pub fn structured(f: &Fixture, name: &str) -> Self {
        Self::open(f, name, Style::Structured)
    }

    pub fn simple(f: &Fixture, name: &str) -> Self {
        Self::open(f, name, Style::Simple)
    }

    pub fn negotiate(&mut self, style: Style) {
        let option = match style {
            Style::Simple => return,
            Style::Structured => STRUCTURED_REPLY,
            Style::Extended => EXTENDED_HEADERS,
        };
        assert_eq!(self.option(option, b""), ACK);
        self.style = style;
    }

    /// Selects contexts and returns all answers, the acknowledgement too.
    pub fn contexts(&mut self, name: &str, queries: &[&str]) -> Vec<(u32, Vec<u8>)> {
        let mut p = counted(name);
        p.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
        queries.iter().for_each(|q| p.extend(counted(q)));
        self.option_answers(SET_META_CONTEXT, &p)
    }

    /// Chooses `name` and returns the flags of the export.
    pub fn go(&mut self, name: &str) -> u16 {
        let mut p = counted(name);
        p.extend([0, 0]);
        let answers = self.option_answers(GO, &p);
        assert_eq!(answers.last().unwrap().0, ACK, "{answers:?}");
        u16::from_be_bytes(answers[0].1[10..12].try_into().unwrap())
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        self.stream.read_exact(&mut b).unwrap();
        b
    }

    /// Sends an option and returns the kind of its last answer.
    pub fn option(&mut self, option: u32, payload: &[u8]) -> u32 {
        self.option_answers(option, payload).pop().unwrap().0
    }

    /// Sends an option and returns all its answers: kinds and payloads.
    pub fn option_answers(&mut self, option: u32, payload: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut p = b"IHAVEOPT".to_vec();
        p.extend(option.to_be_bytes());
        p.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        p.extend(payload);
        self.stream.write_all(&p).unwrap();
        let mut answers = Vec::new();
        loop {
            let head = self.take(20);
            let kind = be32(&head[12..]);
            let payload = self.take(be32(&head[16..]) as usize);
            answers.push((kind, payload));
            if kind == ACK || kind >> 31 == 1 {
                return answers;
            }
        }
    }

    /// A request in the style of the connection. Writes have the flag that extended headers want.
    pub fn header(&self, command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let (magic, payload) = match command {
            WRITE if extended => (0x21e4_1c71_u32, PAYLOAD),
            _ if extended => (0x21e4_1c71, 0),
            _ => (0x2560_9513, 0),
        };
        let mut p = magic.to_be_bytes().to_vec();
        p.extend((flags | payload).to_be_bytes());
        p.extend(command.to_be_bytes());
        p.extend(cookie.to_be_bytes());
        p.extend(offset.to_be_bytes());
        if extended {
            p.extend(len.to_be_bytes());
        } else {
            p.extend(u32::try_from(len).unwrap().to_be_bytes());
        }
        p
    }

    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u64) {
        let header = self.header(command, flags, offset ^ 0xc00c_1e00, offset, len);
        self.stream.write_all(&header).unwrap();
    }

    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u64) -> Said {
        let payload = if command == WRITE || flags & PAYLOAD != 0 {
            len
        } else {
            0
        };
        self.ask_with(
            command,
            flags,
            offset,
            len,
            &vec![0xee; usize::try_from(payload).unwrap()],
        )
    }

    pub fn ask_with(&mut self, command: u16, flags: u16, offset: u64, len: u64, payload: &[u8]) -> Said {
        self.send(command, flags, offset, len);
        self.stream.write_all(payload).unwrap();
        let (cookie, said) = self.hear(command == READ, Some(offset));
        assert_eq!(cookie, offset ^ 0xc00c_1e00);
        said
    }

    /// One reply; `data` tells whether data follow a simple success, here always 512 bytes. Extended replies must repeat
    /// the offset, if it is known.
    pub fn hear(&mut self, data: bool, offset: Option<u64>) -> (u64, Said) {
        let mut chunks = Vec::new();
        loop {
            match be32(&self.take(4)) {
                0x6744_6698 => {
                    assert_ne!(
                        self.style,
                        Style::Extended,
                        "a simple reply with extended headers"
                    );
                    let rest = self.take(12);
                    let error = be32(&rest);
                    if data && error == 0 {
                        self.take(512);
                    }
                    return (be64(&rest[4..]), Said::Simple(error));
                }
                magic @ (0x668e_33ef | 0x6e8a_278c) => {
                    let extended = magic == 0x6e8a_278c;
                    assert_eq!(extended, self.style == Style::Extended);
                    let rest = self.take(if extended { 28 } else { 16 });
                    let (flags, kind) = (rest[1], u16::from_be_bytes([rest[2], rest[3]]));
                    let len = if extended {
                        assert!(offset.is_none_or(|o| o == be64(&rest[12..])));
                        be64(&rest[20..])
                    } else {
                        be32(&rest[12..]).into()
                    };
                    let payload = self.take(usize::try_from(len).unwrap());
                    chunks.push((kind, payload));
                    if flags & 1 == 1 {
                        return (be64(&rest[4..]), Said::Chunks(chunks));
                    }
                }
                other => panic!("{other:#x} is no reply"),
            }
        }
    }

    /// The server has closed.
    pub fn is_cut(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == ErrorKind::ConnectionReset,
        }
    }

    pub fn is_alive(&mut self) -> bool {
        self.ask(READ, 0, 0, 512).errno() == 0
    }
}
