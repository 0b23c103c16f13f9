//! Extended headers: what they take precedence over, lengths of 64 bits, payloads that are announced.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{
    Fixture,
    raw::{
        ACK, BLOCK_STATUS_EXT, CACHE, EXTENDED_HEADERS, FLUSH, PAYLOAD, READ, REQ_ONE, Raw, STATUS,
        STRUCTURED_REPLY, Style, TRIM, WRITE, ZEROES, be32, be64,
    },
};
use nbd::{Errno, Limits};
use std::io::Write;

const SIZE: u64 = 16 << 20;
const INVAL: u32 = Errno::Inval as u32;
const NOSPC: u32 = Errno::NoSpc as u32;

const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
const STATUS_PAYLOAD: u16 = 1 << 12;

fn fixture() -> Fixture {
    Fixture::with(Limits::default(), SIZE)
}

#[test]
fn they_take_precedence_over_structured_replies_in_any_order() {
    let f = fixture();
    let mut first = Raw::hello(&f);
    assert_eq!(first.option(STRUCTURED_REPLY, b""), ACK);
    first.negotiate(Style::Extended);
    first.go("vol");
    assert!(first.is_alive());
    let mut second = Raw::hello(&f);
    assert_eq!(second.option(EXTENDED_HEADERS, b"x"), ERR_INVALID);
    second.negotiate(Style::Extended);
    assert_eq!(second.option(STRUCTURED_REPLY, b""), ERR_EXT_HEADER_REQD);
    assert_eq!(second.option(EXTENDED_HEADERS, b""), ACK);
    second.go("vol");
    assert!(second.is_alive());
}

#[test]
fn the_old_way_in_is_closed() {
    let f = fixture();
    let mut raw = Raw::hello(&f);
    raw.negotiate(Style::Extended);
    raw.stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vol").unwrap();
    assert!(raw.is_cut());
}

#[test]
fn contexts_of_64_bits_and_payloads_are_offered_only_with_them() {
    let f = fixture();
    let names = |answers: &[(u32, Vec<u8>)]| -> Vec<String> {
        let (last, contexts) = answers.split_last().unwrap();
        assert_eq!(last.0, ACK);
        contexts
            .iter()
            .map(|c| String::from_utf8(c.1[4..].to_vec()).unwrap())
            .collect()
    };
    let wanted = ["x-test:wide", "x-test:data"];
    let mut compact = Raw::hello(&f);
    compact.negotiate(Style::Structured);
    assert_eq!(names(&compact.contexts("vol", &wanted)), ["x-test:data"]);
    assert_eq!(compact.go("vol") & STATUS_PAYLOAD, 0);
    let mut extended = Raw::hello(&f);
    extended.negotiate(Style::Extended);
    assert_eq!(names(&extended.contexts("vol", &wanted)), wanted);
    assert_eq!(extended.go("vol") & STATUS_PAYLOAD, STATUS_PAYLOAD);
    let chunks = extended.ask(STATUS, 0, 0, SIZE).chunks();
    assert_eq!(
        (be32(&chunks[0].1), be64(&chunks[0].1[16..])),
        (1, 0x1234_5678_9abc_def0)
    );
    let mut none = Raw::hello(&f);
    none.negotiate(Style::Extended);
    assert_eq!(
        none.contexts("vol", &["x-test:bad"]).pop().unwrap().0,
        ERR_INVALID
    );
    assert_eq!(none.go("vol") & STATUS_PAYLOAD, 0);
    assert_eq!(none.ask(STATUS, 0, 0, 512).errno(), INVAL);
}

#[test]
fn lengths_have_64_bits() {
    let f = fixture();
    let mut raw = Raw::open(&f, "vol", Style::Extended);
    for command in [TRIM, ZEROES, CACHE, STATUS] {
        let past = if command == ZEROES { NOSPC } else { INVAL };
        for (offset, len) in [(0, 1 << 33), (0, u64::MAX), (u64::MAX, u64::MAX), (1, SIZE)] {
            assert_eq!(
                raw.ask(command, 0, offset, len).errno(),
                past,
                "{command} {offset}+{len}"
            );
        }
        assert_eq!(raw.ask(command, 0, 0, SIZE).errno(), 0, "{command}");
    }
    assert_eq!(raw.ask(READ, 0, 0, 1 << 40).errno(), INVAL);
    assert!(raw.is_alive());
}

#[test]
fn more_than_4_gib_are_zeroed_and_told_in_one_request() {
    let f = fixture();
    let mut raw = Raw::open(&f, "huge", Style::Extended);
    for (command, said) in [
        (
            ZEROES,
            "Zero { offset: 4096, len: 2199023255552, may_trim: true }",
        ),
        (TRIM, "Trim { offset: 4096, len: 2199023255552 }"),
    ] {
        assert_eq!(raw.ask(command, 0, 4096, 2 << 40).errno(), 0);
        assert_eq!(f.huge.log.lock().unwrap().last().unwrap(), said);
    }
    let chunks = raw.ask(STATUS, 0, 4096, 1 << 40).chunks();
    let (kind, p) = &chunks[0];
    assert_eq!(
        (*kind, be64(&p[8..]), be64(&p[16..])),
        (BLOCK_STATUS_EXT, (3 << 40) - 4096, 3)
    );
    // The same in 32 bits: a part, from which the client goes on.
    let mut compact = Raw::open(&f, "huge", Style::Structured);
    let chunks = compact.ask(STATUS, 0, 4096, 1 << 30).chunks();
    let len = be32(&chunks[0].1[4..]);
    assert!(len > 1 << 30 && len.is_multiple_of(1 << 16), "{len}");
}

#[test]
fn a_payload_that_nobody_wants_is_drained() {
    let f = fixture();
    let mut raw = Raw::open(&f, "vol", Style::Extended);
    for command in [READ, TRIM, ZEROES, CACHE, FLUSH, 99] {
        for len in [1, 512, 3 << 20] {
            assert_eq!(
                raw.ask(command, PAYLOAD, 0, len).errno(),
                INVAL,
                "{command} {len}"
            );
            assert!(raw.is_alive());
        }
    }
    assert_eq!(raw.ask(STATUS, PAYLOAD, 0, 1 << 20).errno(), INVAL);
    assert!(raw.is_alive());
    assert!(f.vol.log.lock().unwrap().is_empty());
    raw.send(TRIM, PAYLOAD, 0, (32 << 20) + 1);
    assert!(raw.is_cut());
}

#[test]
fn the_payload_of_a_write_is_taken_also_from_those_who_do_not_announce_it() {
    let f = fixture();
    let mut raw = Raw::open(&f, "vol", Style::Extended);
    let mut p = raw.header(WRITE, 0, 1, 0, 32);
    p[4..6].fill(0);
    // It looks like a request, and is none.
    p.extend(raw.header(TRIM, 0, 2, 0, SIZE));
    raw.stream.write_all(&p).unwrap();
    assert_eq!(raw.hear(false, Some(0)).1.errno(), 0);
    assert!(raw.is_alive());
    assert_eq!(*f.vol.log.lock().unwrap(), [("write 0+32".to_owned(), false)]);
    assert!(f.vol.bytes()[..32] == p[32..]);
}

#[test]
fn compact_requests_are_none_with_extended_headers_and_the_other_way_round() {
    let f = fixture();
    let (mut compact, mut extended) = (
        Raw::open(&f, "vol", Style::Structured),
        Raw::open(&f, "vol", Style::Extended),
    );
    let (short, long) = (
        compact.header(READ, 0, 1, 0, 512),
        extended.header(READ, 0, 1, 0, 512),
    );
    compact.stream.write_all(&long).unwrap();
    extended.stream.write_all(&[short, vec![0; 4]].concat()).unwrap();
    assert!(compact.is_cut() && extended.is_cut());
}

#[test]
fn block_status_may_be_asked_in_some_contexts() {
    let f = fixture();
    f.vol.fill(4096..8192, 1);
    let mut raw = Raw::open(&f, "vol", Style::Extended);
    let mut ask = |flags: u16, offset: u64, len: u64, ids: &[u32]| {
        let mut p = len.to_be_bytes().to_vec();
        ids.iter().for_each(|id| p.extend(id.to_be_bytes()));
        raw.ask_with(STATUS, PAYLOAD | flags, offset, p.len() as u64, &p)
    };
    let ids = |said: common::raw::Said| -> Vec<u32> { said.chunks().iter().map(|c| be32(&c.1)).collect() };
    assert_eq!(ids(ask(0, 0, SIZE, &[2])), [2]);
    assert_eq!(ids(ask(0, 0, SIZE, &[1])), [1]);
    assert_eq!(ids(ask(0, 0, SIZE, &[2, 1])), [1, 2]);
    let one = ask(REQ_ONE, 4096, SIZE - 4096, &[2]).chunks();
    assert_eq!(
        (one.len(), be32(&one[0].1[4..]), be64(&one[0].1[8..])),
        (1, 1, 4096)
    );
    for (len, named) in [
        (512, &[][..]),
        (512, &[0]),
        (512, &[3]),
        (512, &[1, 1]),
        (512, &[1, 2, 2]),
        (0, &[1]),
        (SIZE + 1, &[1]),
    ] {
        assert_eq!(ask(0, 0, len, named).errno(), INVAL, "{len} {named:?}");
    }
    assert!(raw.is_alive());
}
