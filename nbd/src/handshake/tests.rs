use super::*;
use crate::golden::{Fake, Talk};
use proptest::prelude::*;

fn talk() -> Talk {
    let mut t = Talk::new();
    t.hello(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    t
}

/// The kinds of all answers of the last exchange.
fn kinds(t: &Talk) -> Vec<u32> {
    let mut said = Take(&t.last);
    let mut kinds = Vec::new();
    while !said.is_empty() {
        assert_eq!(said.u64(), Some(magic::OPTION_REPLY));
        said.u32().unwrap();
        kinds.push(said.u32().unwrap());
        said.counted().unwrap();
    }
    kinds
}

#[test]
fn contexts_belong_to_the_name_they_were_set_for() {
    let mut t = talk();
    t.option(opt::STRUCTURED_REPLY, b"");
    t.contexts(opt::SET_META_CONTEXT, "c1/vol", &["base:allocation"]);
    assert_eq!(kinds(&t), [rep::META_CONTEXT, rep::ACK]);
    t.go(opt::GO, "c1/vol@mark:eod", &[]);
    assert_eq!(t.session.unwrap().terms.contexts.count(), 0);
}

#[test]
fn a_failed_selection_drops_the_one_before() {
    let mut t = talk();
    t.option(opt::STRUCTURED_REPLY, b"");
    t.contexts(opt::SET_META_CONTEXT, "c1/vol", &["base:allocation"]);
    t.contexts(opt::SET_META_CONTEXT, "nowhere", &["base:allocation"]);
    assert_eq!(kinds(&t), [rep::ERR_UNKNOWN]);
    t.go(opt::GO, "c1/vol", &[]);
    assert_eq!(t.session.unwrap().terms.contexts.count(), 0);
}

#[test]
fn errors_of_an_option_leave_the_talk_alive() {
    let mut t = talk();
    for (option, payload, kind) in [
        (opt::LIST, &b"x"[..], rep::ERR_INVALID),
        (opt::STRUCTURED_REPLY, b"x", rep::ERR_INVALID),
        (opt::GO, b"", rep::ERR_INVALID),
        (opt::INFO, b"\0\0\0\x09short", rep::ERR_INVALID),
        (opt::SET_META_CONTEXT, b"", rep::ERR_INVALID),
        (99, b"anything", rep::ERR_UNSUP),
    ] {
        t.option(option, payload);
        assert_eq!(kinds(&t), [kind], "option {option}");
    }
    t.go(opt::INFO, "c1/held", &[]);
    assert_eq!(kinds(&t), [rep::ERR_POLICY]);
    t.go(opt::INFO, &"n".repeat(4097), &[]);
    assert_eq!(kinds(&t), [rep::ERR_TOO_BIG]);
    t.go(opt::GO, "", &[]);
    assert_eq!(kinds(&t), [rep::INFO, rep::INFO, rep::ACK]);
    assert_eq!(t.session.unwrap().name, "c1/vol");
}

#[test]
fn an_option_too_long_is_skipped_and_one_of_absurd_length_ends_the_talk() {
    let mut t = talk();
    t.option(opt::GO, &vec![0; option::SKIPPED_BYTES_MAX]);
    assert_eq!(kinds(&t), [rep::ERR_TOO_BIG]);
    t.option(opt::LIST, b"");
    assert_eq!(kinds(&t), [rep::SERVER, rep::SERVER, rep::ACK]);
    t.option(opt::GO, &vec![0; option::SKIPPED_BYTES_MAX + 1]);
    assert!(t.closed.is_some());
}

#[test]
fn what_cannot_be_answered_ends_the_talk() {
    let closes = |bytes: &[u8]| {
        let mut t = Talk::new();
        t.feed(bytes);
        t.closed.is_some()
    };
    assert!(closes(&[0, 0, 0, 4]), "unknown handshake flag");
    assert!(closes(&[0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]), "no option");
    let mut t = talk();
    t.option(opt::EXPORT_NAME, b"nowhere");
    assert!(t.closed.is_some());
    let mut t = talk();
    t.option(opt::ABORT, b"");
    assert!(kinds(&t) == [rep::ACK] && t.closed.is_some());
    let mut t = talk();
    while t.closed.is_none() {
        t.option(99, b"");
    }
}

#[test]
fn a_stopping_server_opens_nothing() {
    let world = World {
        exports: &Fake,
        options_max: 9,
        stopping: true,
    };
    let mut machine = Handshake::new(TlsMode::None, None);
    let mut out = Vec::new();
    let mut p = 1u32.to_be_bytes().to_vec();
    p.put_u64(magic::OPTION);
    p.put_u32(opt::GO);
    p.put_u32(6);
    p.put(&[0; 6]);
    let mut input = Take(&p);
    assert!(matches!(
        machine.advance(&mut input, &world, &mut out),
        Progress::Again
    ));
    assert!(matches!(
        machine.advance(&mut input, &world, &mut out),
        Progress::Again
    ));
    assert_eq!(out[12..16], rep::ERR_SHUTDOWN.to_be_bytes());
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let world = World {
        exports: &Fake,
        options_max: 9,
        stopping: false,
    };
    let mut machine = Handshake::new(TlsMode::None, None);
    let mut stream = 3u32.to_be_bytes().to_vec();
    for (option, payload) in [
        (opt::STRUCTURED_REPLY, &b""[..]),
        (opt::GO, b"\0\0\0\x06c1/vol\0\0"),
    ] {
        stream.put_u64(magic::OPTION);
        stream.put_u32(option);
        stream.put_u32(u32::try_from(payload.len()).unwrap());
        stream.put(payload);
    }
    let (mut have, mut out) = (Vec::new(), Vec::new());
    for (i, byte) in stream.iter().enumerate() {
        have.push(*byte);
        let mut input = Take(&have);
        let chosen = loop {
            match machine.advance(&mut input, &world, &mut out) {
                Progress::Again => {}
                Progress::More => break false,
                Progress::Chosen(_) => break true,
                other => panic!("{other:?}"),
            }
        };
        let used = have.len() - input.0.len();
        have.drain(..used);
        assert_eq!(chosen, i + 1 == stream.len());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_never_make_much(
        items in prop::collection::vec((0u32..13, prop::collection::vec(any::<u8>(), 0..40), any::<u8>()), 0..20),
    ) {
        let mut t = talk();
        for (option, payload, noise) in items {
            let mut p = Vec::new();
            p.put_u64(magic::OPTION);
            p.put_u32(option);
            // Sometimes the length lies.
            let lie = if noise < 16 { u32::from(noise) * 77 } else { 0 };
            p.put_u32(u32::try_from(payload.len()).unwrap() + lie);
            p.put(&payload);
            t.feed(&p);
            prop_assert!(t.last.len() < 64 << 10);
            if t.closed.is_some() || t.session.is_some() { break }
        }
    }
}
