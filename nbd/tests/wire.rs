//! A client of bare bytes: what well-behaved clients never send.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{
    Fixture,
    raw::{
        BLOCK_STATUS, BLOCK_STATUS_EXT, CACHE, DATA, DF, DISC, ERROR, ERROR_OFFSET, FLUSH, FUA, HOLE, NONE,
        READ, REQ_ONE, Raw, STATUS, Said, Style, TRIM, WRITE, ZEROES, be32, be64,
    },
};
use nbd::{Errno, Limits};
use std::{io::Write, net::Shutdown, sync::atomic::Ordering, time::Duration};

const SIZE: u64 = 80 << 20;
const PAYLOAD_MAX: u64 = 32 << 20;

fn fixture() -> Fixture {
    Fixture::with(Limits::default(), SIZE)
}

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];
const CHUNKS: [Style; 2] = [Style::Structured, Style::Extended];

const INVAL: u32 = Errno::Inval as u32;
const NOSPC: u32 = Errno::NoSpc as u32;
const PERM: u32 = Errno::Perm as u32;
const IO: u32 = Errno::Io as u32;

#[test]
fn wrong_requests_are_answered_and_the_connection_lives() {
    let f = fixture();
    for style in STYLES {
        let mut raw = Raw::open(&f, "vol", style);
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
            (0x7fff, 0, 0, u32::MAX.into(), INVAL),
            (READ, 0, 0, PAYLOAD_MAX + 1, INVAL),
            (WRITE, 0, 0, PAYLOAD_MAX + 1, INVAL),
        ] {
            // With extended headers such a client is cut.
            if (command, len, style) == (WRITE, PAYLOAD_MAX + 1, Style::Extended) {
                continue;
            }
            assert_eq!(
                raw.ask(command, flags, offset, len).errno(),
                errno,
                "{style:?}: {command} {flags} {offset}+{len}"
            );
            assert!(raw.is_alive(), "after {command} {flags} {offset}+{len}");
        }
    }
    assert!(!f.vol.bytes().contains(&0xee), "no refused write was carried out");
}

/// To cache is to read for nobody, data only, and no more than a payload may have.
#[test]
fn what_shall_be_cached_is_read() {
    let f = fixture();
    f.vol.fill(0..1 << 20, 1);
    f.vol.fill(40 << 20..41 << 20, 1);
    *f.vol.bad_from.lock().unwrap() = 60 << 20;
    f.vol.fill(61 << 20..62 << 20, 1);
    for style in STYLES {
        let mut raw = Raw::open(&f, "vol", style);
        let before = f.vol.read_bytes.load(Ordering::SeqCst);
        assert_eq!(raw.ask(CACHE, 0, 0, 60 << 20).errno(), 0);
        let read = f.vol.read_bytes.load(Ordering::SeqCst) - before;
        assert_eq!(read, 1 << 20, "{style:?}");
        assert_eq!(raw.ask(CACHE, 0, 61 << 20, 4096).errno(), IO);
        assert!(raw.is_alive());
    }
}

#[test]
fn nothing_is_written_to_a_read_only_export() {
    let f = fixture();
    for style in CHUNKS {
        let mut raw = Raw::open(&f, "ro", style);
        for command in [WRITE, ZEROES, TRIM] {
            let said = raw.ask(command, 0, 0, 4096);
            assert_eq!(said.errno(), PERM);
            assert!(String::from_utf8_lossy(&said.chunks()[0].1).ends_with("the export is read-only"));
        }
        assert!(raw.is_alive());
    }
    assert!(f.ro.log.lock().unwrap().is_empty());
}

#[test]
fn a_length_of_zero_succeeds() {
    let f = fixture();
    let none = || Said::Chunks(vec![(NONE, vec![])]);
    for style in CHUNKS {
        let mut raw = Raw::open(&f, "vol", style);
        assert_eq!(raw.ask(READ, 0, 0, 0), none());
        for command in [WRITE, TRIM, ZEROES, CACHE] {
            let success = if style == Style::Extended {
                none()
            } else {
                Said::Simple(0)
            };
            assert_eq!(raw.ask(command, 0, 0, 0), success);
        }
        assert!(raw.is_alive());
    }
    assert!(f.vol.log.lock().unwrap().is_empty());
}

#[test]
fn the_longest_payload_is_taken_and_a_longer_one_cuts_in_the_end() {
    for (style, absurd) in [(Style::Structured, 64 << 20), (Style::Extended, PAYLOAD_MAX)] {
        let f = fixture();
        let mut raw = Raw::open(&f, "vol", style);
        assert_eq!(raw.ask(WRITE, 0, 3, PAYLOAD_MAX).errno(), 0);
        let bytes = f.vol.bytes();
        let end = 3 + PAYLOAD_MAX as usize;
        assert!(bytes[3..end].iter().all(|b| *b == 0xee) && bytes[2] == 0 && bytes[end] == 0);
        raw.send(WRITE, 0, 0, absurd + 1);
        assert!(raw.is_cut());
    }
}

#[test]
fn a_read_is_made_of_data_and_holes() {
    let f = fixture();
    f.vol.fill(8192..12288, 7);
    f.vol.fill(1 << 20..4 << 20, 9);
    for style in CHUNKS {
        let mut raw = Raw::open(&f, "vol", style);
        let mut got = vec![0xcc; 8 << 20];
        let mut holes = 0;
        for (kind, payload) in raw.ask(READ, 0, 4096, 8 << 20).chunks() {
            let at = usize::try_from(be64(&payload)).unwrap() - 4096;
            match kind {
                DATA => got[at..at + payload.len() - 8].copy_from_slice(&payload[8..]),
                HOLE => {
                    holes += 1;
                    got[at..at + be32(&payload[8..]) as usize].fill(0);
                }
                other => panic!("chunk {other}"),
            }
        }
        assert!(got == f.vol.bytes()[4096..4096 + (8 << 20)]);
        assert_eq!(holes, 3);
        let whole = raw.ask(READ, DF, 0, 4 << 20).chunks();
        assert!(whole.len() == 1 && whole[0].1[8..] == f.vol.bytes()[..4 << 20]);
    }
}

#[test]
fn a_read_that_fails_tells_where() {
    let f = fixture();
    f.vol.fill(0..8 << 20, 1);
    *f.vol.bad_from.lock().unwrap() = 3 << 20;
    for style in CHUNKS {
        let mut raw = Raw::open(&f, "vol", style);
        let chunks = raw.ask(READ, 0, 0, 8 << 20).chunks();
        let (kind, payload) = chunks.last().unwrap();
        assert_eq!((*kind, be32(payload), chunks.len()), (ERROR_OFFSET, IO, 4));
        assert_eq!(be64(&payload[payload.len() - 8..]), 3 << 20);
        for flags in [0, DF] {
            let chunks = raw.ask(READ, flags, 4 << 20, 512).chunks();
            assert_eq!((chunks.len(), chunks[0].0), (1, ERROR));
        }
        assert!(raw.is_alive());
    }
    let mut simple = Raw::simple(&f, "vol");
    assert_eq!(simple.ask(READ, 0, 4 << 20, 512), Said::Simple(IO));
    assert!(simple.is_alive());
}

#[test]
fn block_status_answers_in_every_context_and_obeys_req_one() {
    let f = fixture();
    f.vol.fill(4096..8192, 1);
    for style in CHUNKS {
        let mut raw = Raw::open(&f, "vol", style);
        // Per context: (length, status) of each descriptor.
        let mut status = |flags, offset, len| -> Vec<Vec<(u64, u64)>> {
            let chunks = raw.ask(STATUS, flags, offset, len).chunks();
            let one = |(i, (kind, p)): (usize, &(u16, Vec<u8>))| {
                assert_eq!(be32(p) as usize, i + 1, "ids count from 1");
                if style == Style::Extended {
                    assert_eq!(
                        (*kind, be32(&p[4..]) as usize),
                        (BLOCK_STATUS_EXT, (p.len() - 8) / 16)
                    );
                    p[8..].chunks(16).map(|d| (be64(d), be64(&d[8..]))).collect()
                } else {
                    assert_eq!(*kind, BLOCK_STATUS);
                    p[4..]
                        .chunks(8)
                        .map(|d| (be32(d).into(), be32(&d[4..]).into()))
                        .collect()
                }
            };
            chunks.iter().enumerate().map(one).collect()
        };
        assert_eq!(
            status(0, 0, 12288),
            [
                [(4096, 3), (4096, 0), (4096, 3)],
                [(4096, 0), (4096, 1), (4096, 0)]
            ]
        );
        assert_eq!(status(REQ_ONE, 100, 12288), [[(3996, 3)], [(3996, 0)]]);
        assert_eq!(status(REQ_ONE, 100, 10), [[(10, 3)], [(10, 0)]]);
        assert_eq!(raw.ask(STATUS, 0, SIZE, 1).errno(), INVAL);
        assert_eq!(raw.ask(STATUS, 0, 0, 0).errno(), INVAL);
    }
    assert_eq!(Raw::simple(&f, "vol").ask(STATUS, 0, 0, 512).errno(), INVAL);
}

#[test]
fn half_a_request_is_no_request() {
    let f = fixture();
    for sent in [10, 28, 28 + 100] {
        let mut raw = Raw::structured(&f, "vol");
        let mut p = raw.header(WRITE, 0, 1, 0, 4096);
        p.extend([0xee; 4096]);
        raw.stream.write_all(&p[..sent]).unwrap();
        raw.stream.shutdown(Shutdown::Write).unwrap();
        assert!(raw.is_cut());
    }
    assert!(f.vol.log.lock().unwrap().is_empty());
}

#[test]
fn something_else_than_a_request_cuts() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    raw.stream.write_all(&[0x55; 28]).unwrap();
    assert!(raw.is_cut());
}

#[test]
fn what_was_sent_before_goodbye_is_carried_out() {
    let f = fixture();
    let mut raw = Raw::structured(&f, "vol");
    let mut p = raw.header(WRITE, 0, 1, 0, 512);
    p.extend([0xee; 512]);
    p.extend(raw.header(FLUSH, 0, 2, 0, 0));
    p.extend(raw.header(DISC, 0, 3, 0, 0));
    raw.stream.write_all(&p).unwrap();
    let heard = [raw.hear(false, None), raw.hear(false, None)];
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
        p.extend(raw.header(WRITE, 0, cookie, cookie * 4096, 512));
        p.extend([u8::try_from(cookie + 1).unwrap(); 512]);
    }
    p.extend(raw.header(READ, 0, 99, 11 * 4096, 512));
    raw.stream.write_all(&p).unwrap();
    let mut cookies: Vec<u64> = (0..13).map(|_| raw.hear(false, None).0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..12).chain([99]).collect::<Vec<_>>());
    assert_eq!(*f.vol.batches.lock().unwrap(), [12]);
}

#[test]
fn a_client_that_has_too_much_under_way_is_not_read() {
    const WRITE_BYTES: u64 = 64 << 10;
    let limits = Limits {
        in_flight_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let f = Fixture::with(limits, SIZE);
    f.vol.shut_gate();
    let mut raw = Raw::structured(&f, "vol");
    let mut p = Vec::new();
    for cookie in 0..64 {
        p.extend(raw.header(WRITE, 0, cookie, cookie * WRITE_BYTES, WRITE_BYTES));
        p.extend([1; WRITE_BYTES as usize]);
    }
    let mut writer = raw.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&p).unwrap());
    // Fifteen of them and their overhead fit.
    f.vol.wait_held(15);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(f.vol.held(), 15);
    f.vol.open_gate();
    for _ in 0..64 {
        assert_eq!(raw.hear(false, None).1, Said::Simple(0));
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
        p.extend(slow.header(FLUSH, 0, cookie, 0, 0));
    }
    let mut writer = slow.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&p).unwrap());
    f.vol.wait_held(20_000);
    // Answers more than a socket takes, in this thread, which must not block.
    f.vol.open_gate();
    let mut other = Raw::structured(&f, "vol");
    assert_eq!(other.ask(WRITE, FUA, 0, 4096).errno(), 0);
    let mut cookies: Vec<u64> = (0..40_000).map(|_| slow.hear(false, None).0).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..40_000));
    sender.join().unwrap();
}
