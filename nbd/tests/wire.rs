//! A client of bare bytes: what well-behaved clients never send.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::Fixture;
use nbd::{Errno, Limits};
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;

const ERROR: u16 = 0x8001;
const ERROR_OFFSET: u16 = 0x8002;

const SIZE: u64 = 80 << 20;
const PAYLOAD_MAX: u32 = 32 << 20;

/// A client that sends what it likes.
struct Raw(UnixStream);

/// A reply: the chunks of a structured one as (type, payload).
#[derive(Debug, PartialEq)]
enum Said {
    Simple(u32),
    Chunks(Vec<(u16, Vec<u8>)>),
}

impl Said {
    /// The error number of a reply, 0 for none.
    fn errno(&self) -> u32 {
        match self {
            Self::Simple(e) => *e,
            Self::Chunks(chunks) => chunks.iter().find(|c| c.0 >> 15 == 1).map_or(0, |c| be32(&c.1)),
        }
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

impl Raw {
    fn hello(f: &Fixture) -> Self {
        let mut raw = Self(UnixStream::connect(f.socket()).unwrap());
        raw.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(raw.take(18)[..16], *b"NBDMAGICIHAVEOPT");
        raw.0.write_all(&[0, 0, 0, 3]).unwrap();
        raw
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        self.0.read_exact(&mut b).unwrap();
        b
    }

    /// Sends an option and returns the kind of its last answer.
    fn option(&mut self, option: u32, payload: &[u8]) -> u32 {
        let mut p = b"IHAVEOPT".to_vec();
        p.extend(option.to_be_bytes());
        p.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        p.extend(payload);
        self.0.write_all(&p).unwrap();
        loop {
            let head = self.take(20);
            let kind = be32(&head[12..]);
            self.take(be32(&head[16..]) as usize);
            if kind == 1 || kind >> 31 == 1 {
                return kind;
            }
        }
    }

    /// Chooses `name` after structured replies and contexts.
    fn structured(f: &Fixture, name: &str) -> Self {
        let mut raw = Self::hello(f);
        assert_eq!(raw.option(8, b""), 1);
        let mut p = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        p.extend(name.as_bytes());
        let mut contexts = p.clone();
        contexts.extend([0, 0, 0, 1, 0, 0, 0, 15]);
        contexts.extend(b"base:allocation");
        assert_eq!(raw.option(10, &contexts), 1);
        p.extend([0, 0]);
        assert_eq!(raw.option(7, &p), 1);
        raw
    }

    /// Chooses `name` and nothing else.
    fn simple(f: &Fixture, name: &str) -> Self {
        let mut raw = Self::hello(f);
        let mut p = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        p.extend(name.as_bytes());
        p.extend([0, 0]);
        assert_eq!(raw.option(7, &p), 1);
        raw
    }

    fn header(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
        let mut p = 0x2560_9513_u32.to_be_bytes().to_vec();
        p.extend(flags.to_be_bytes());
        p.extend(command.to_be_bytes());
        p.extend(cookie.to_be_bytes());
        p.extend(offset.to_be_bytes());
        p.extend(len.to_be_bytes());
        p
    }

    fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32) {
        self.0
            .write_all(&Self::header(command, flags, offset ^ 0xc00c_1e00, offset, len))
            .unwrap();
    }

    fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Said {
        self.send(command, flags, offset, len);
        if command == WRITE {
            self.0.write_all(&vec![0xee; len as usize]).unwrap();
        }
        let (cookie, said) = self.hear(command == READ);
        assert_eq!(cookie, offset ^ 0xc00c_1e00);
        said
    }

    /// One reply; `data` tells whether data follow a simple success, here always 512 bytes.
    fn hear(&mut self, data: bool) -> (u64, Said) {
        let mut chunks = Vec::new();
        loop {
            match be32(&self.take(4)) {
                0x6744_6698 => {
                    let rest = self.take(12);
                    let error = be32(&rest);
                    if data && error == 0 {
                        self.take(512);
                    }
                    return (be64(&rest[4..]), Said::Simple(error));
                }
                0x668e_33ef => {
                    let rest = self.take(16);
                    let (flags, kind) = (rest[1], u16::from_be_bytes([rest[2], rest[3]]));
                    let payload = self.take(be32(&rest[12..]) as usize);
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
    fn is_cut(&mut self) -> bool {
        match self.0.read(&mut [0; 1]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == ErrorKind::ConnectionReset,
        }
    }

    fn is_alive(&mut self) -> bool {
        self.ask(READ, 0, 0, 512).errno() == 0
    }
}

fn fixture() -> Fixture {
    Fixture::with(Limits::default(), SIZE)
}

const INVAL: u32 = Errno::Inval as u32;
const NOSPC: u32 = Errno::NoSpc as u32;
const PERM: u32 = Errno::Perm as u32;
const IO: u32 = Errno::Io as u32;

#[test]
fn wrong_requests_are_answered_and_the_connection_lives() {
    let f = fixture();
    for mut raw in [Raw::structured(&f, "vol"), Raw::simple(&f, "vol")] {
        for (command, flags, offset, len, errno) in [
            (WRITE, 0, SIZE - 511, 512, NOSPC),
            (WRITE, 0, SIZE, 1, NOSPC),
            (WRITE, FUA, u64::MAX, 512, NOSPC),
            (ZEROES, 0, SIZE, 512, NOSPC),
            (READ, 0, SIZE - 511, 512, INVAL),
            (READ, 0, u64::MAX - 10, 512, INVAL),
            (TRIM, 0, SIZE, 512, INVAL),
            (CACHE, 0, SIZE, 512, INVAL),
            (CACHE, 0, 0, 512, 0),
            (FLUSH, 0, 1, 0, INVAL),
            (FLUSH, FUA, 0, 0, 0),
            (TRIM, FUA, 0, 512, 0),
            (WRITE, 1 << 9, 0, 512, INVAL),
            (8, 0, 0, 512, INVAL),
            (0x7fff, 0, 0, u32::MAX, INVAL),
            (READ, 0, 0, PAYLOAD_MAX + 1, INVAL),
            (WRITE, 0, 0, PAYLOAD_MAX + 1, INVAL),
        ] {
            assert_eq!(
                raw.ask(command, flags, offset, len).errno(),
                errno,
                "{command} {flags} {offset}+{len}"
            );
            assert!(raw.is_alive(), "after {command} {flags} {offset}+{len}");
        }
    }
    assert!(!f.vol.bytes().contains(&0xee), "no refused write was carried out");
}

#[test]
fn nothing_is_written_to_a_read_only_export() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "ro");
    for command in [WRITE, ZEROES, TRIM] {
        let said = raw.ask(command, 0, 0, 4096);
        assert_eq!(said.errno(), PERM);
        let Said::Chunks(chunks) = said else {
            panic!("an error is told with text")
        };
        assert!(String::from_utf8_lossy(&chunks[0].1).ends_with("the export is read-only"));
    }
    assert!(raw.is_alive());
    assert!(f.ro.log.lock().unwrap().is_empty());
}

#[test]
fn a_length_of_zero_succeeds() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    assert_eq!(raw.ask(READ, 0, 0, 0), Said::Chunks(vec![(0, vec![])]));
    for command in [WRITE, TRIM, ZEROES, CACHE] {
        assert_eq!(raw.ask(command, 0, 0, 0), Said::Simple(0));
    }
    assert!(raw.is_alive());
    assert!(f.vol.log.lock().unwrap().is_empty());
}

#[test]
fn the_longest_payload_is_taken_and_a_longer_one_cuts_in_the_end() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    assert_eq!(raw.ask(WRITE, 0, 3, PAYLOAD_MAX).errno(), 0);
    let bytes = f.vol.bytes();
    let end = 3 + PAYLOAD_MAX as usize;
    assert!(bytes[3..end].iter().all(|b| *b == 0xee) && bytes[2] == 0 && bytes[end] == 0);
    raw.send(WRITE, 0, 0, u32::MAX);
    assert!(raw.is_cut());
}

#[test]
fn a_read_is_made_of_data_and_holes() {
    let f = fixture();
    f.vol.fill(8192..12288, 7);
    f.vol.fill(1 << 20..4 << 20, 9);
    let mut raw = Raw::structured(&f, "vol");
    let Said::Chunks(chunks) = raw.ask(READ, 0, 4096, 8 << 20) else {
        panic!("structured")
    };
    let mut got = vec![0xcc; 8 << 20];
    let mut holes = 0;
    for (kind, payload) in chunks {
        let at = usize::try_from(be64(&payload)).unwrap() - 4096;
        match kind {
            1 => got[at..at + payload.len() - 8].copy_from_slice(&payload[8..]),
            2 => {
                holes += 1;
                got[at..at + be32(&payload[8..]) as usize].fill(0);
            }
            other => panic!("chunk {other}"),
        }
    }
    assert!(got == f.vol.bytes()[4096..4096 + (8 << 20)]);
    assert_eq!(holes, 3);
    let Said::Chunks(whole) = raw.ask(READ, DF, 0, 4 << 20) else {
        panic!("structured")
    };
    assert!(whole.len() == 1 && whole[0].1[8..] == f.vol.bytes()[..4 << 20]);
}

#[test]
fn a_read_that_fails_tells_where() {
    let f = fixture();
    f.vol.fill(0..8 << 20, 1);
    *f.vol.bad_from.lock().unwrap() = 3 << 20;
    let mut raw = Raw::structured(&f, "vol");
    let Said::Chunks(chunks) = raw.ask(READ, 0, 0, 8 << 20) else {
        panic!("structured")
    };
    let (kind, payload) = chunks.last().unwrap();
    assert_eq!((*kind, be32(payload), chunks.len()), (ERROR_OFFSET, IO, 4));
    assert_eq!(be64(&payload[payload.len() - 8..]), 3 << 20);
    for flags in [0, DF] {
        let Said::Chunks(chunks) = raw.ask(READ, flags, 4 << 20, 512) else {
            panic!("structured")
        };
        assert_eq!((chunks.len(), chunks[0].0), (1, ERROR));
    }
    assert!(raw.is_alive());
    let mut simple = Raw::simple(&f, "vol");
    assert_eq!(simple.ask(READ, 0, 4 << 20, 512), Said::Simple(IO));
    assert!(simple.is_alive());
}

#[test]
fn block_status_needs_a_context_and_obeys_req_one() {
    let f = fixture();
    f.vol.fill(4096..8192, 1);
    let mut raw = Raw::structured(&f, "vol");
    let descriptors = |said: Said| -> Vec<(u32, u32)> {
        let Said::Chunks(chunks) = said else {
            panic!("structured")
        };
        assert_eq!((chunks.len(), chunks[0].0, be32(&chunks[0].1)), (1, 5, 1));
        chunks[0].1[4..]
            .chunks(8)
            .map(|d| (be32(d), be32(&d[4..])))
            .collect()
    };
    assert_eq!(
        descriptors(raw.ask(STATUS, 0, 0, 12288)),
        [(4096, 3), (4096, 0), (4096, 3)]
    );
    assert_eq!(descriptors(raw.ask(STATUS, REQ_ONE, 100, 12288)), [(3996, 3)]);
    assert_eq!(descriptors(raw.ask(STATUS, REQ_ONE, 100, 10)), [(10, 3)]);
    assert_eq!(raw.ask(STATUS, 0, SIZE, 1).errno(), INVAL);
    assert_eq!(raw.ask(STATUS, 0, 0, 0).errno(), INVAL);
    assert_eq!(Raw::simple(&f, "vol").ask(STATUS, 0, 0, 512).errno(), INVAL);
}

#[test]
fn half_a_request_is_no_request() {
    let f = fixture();
    for sent in [10, 28, 28 + 100] {
        let mut raw = Raw::structured(&f, "vol");
        let mut p = Raw::header(WRITE, 0, 1, 0, 4096);
        p.extend([0xee; 4096]);
        raw.0.write_all(&p[..sent]).unwrap();
        raw.0.shutdown(Shutdown::Write).unwrap();
        assert!(raw.is_cut());
    }
    assert!(f.vol.log.lock().unwrap().is_empty());
}

#[test]
fn something_else_than_a_request_cuts() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    raw.0.write_all(&[0x55; 28]).unwrap();
    assert!(raw.is_cut());
}

#[test]
fn what_was_sent_before_goodbye_is_carried_out() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    let mut p = Raw::header(WRITE, 0, 1, 0, 512);
    p.extend([0xee; 512]);
    p.extend(Raw::header(FLUSH, 0, 2, 0, 0));
    p.extend(Raw::header(DISC, 0, 3, 0, 0));
    raw.0.write_all(&p).unwrap();
    let heard = [raw.hear(false), raw.hear(false)];
    assert!(
        heard.contains(&(1, Said::Simple(0))) && heard.contains(&(2, Said::Simple(0))),
        "{heard:?}"
    );
    assert!(raw.is_cut());
    assert!(f.vol.bytes()[..512] == [0xee; 512]);
}

#[test]
fn requests_sent_together_are_submitted_together() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    let mut p = Vec::new();
    for cookie in 0..12 {
        p.extend(Raw::header(WRITE, 0, cookie, cookie * 4096, 512));
        p.extend([u8::try_from(cookie + 1).unwrap(); 512]);
    }
    p.extend(Raw::header(READ, 0, 99, 11 * 4096, 512));
    raw.0.write_all(&p).unwrap();
    let mut cookies: Vec<u64> = (0..13).map(|_| raw.hear(false).0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..12).chain([99]).collect::<Vec<_>>());
    assert_eq!(*f.vol.batches.lock().unwrap(), [12]);
}

#[test]
fn a_client_that_has_too_much_under_way_is_not_read() {
    const WRITE_BYTES: u32 = 64 << 10;
    let limits = Limits {
        in_flight_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let f = Fixture::with(limits, SIZE);
    f.vol.shut_gate();
    let mut raw = Raw::structured(&f, "vol");
    let mut writer = raw.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for cookie in 0..64 {
            writer
                .write_all(&Raw::header(
                    WRITE,
                    0,
                    cookie,
                    cookie * u64::from(WRITE_BYTES),
                    WRITE_BYTES,
                ))
                .unwrap();
            writer.write_all(&vec![1; WRITE_BYTES as usize]).unwrap();
        }
    });
    // Fifteen of them and their overhead fit.
    f.vol.wait_held(15);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(f.vol.held(), 15);
    f.vol.open_gate();
    for _ in 0..64 {
        assert_eq!(raw.hear(false).1, Said::Simple(0));
    }
    sender.join().unwrap();
}

#[test]
fn a_client_that_reads_no_answers_holds_up_nobody() {
    let f = fixture();
    f.vol.shut_gate();
    let mut slow = Raw::structured(&f, "vol");
    let mut p = Vec::new();
    for cookie in 0..40_000 {
        p.extend(Raw::header(FLUSH, 0, cookie, 0, 0));
    }
    let mut writer = slow.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&p).unwrap());
    f.vol.wait_held(20_000);
    // Answers more than a socket takes, in this thread, which must not block.
    f.vol.open_gate();
    let mut other = Raw::structured(&f, "vol");
    assert_eq!(other.ask(WRITE, FUA, 0, 4096).errno(), 0);
    let mut cookies: Vec<u64> = (0..40_000).map(|_| slow.hear(false).0).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..40_000));
    sender.join().unwrap();
}
