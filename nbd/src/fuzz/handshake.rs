//! The negotiation. Whatever comes in:
//!
//! * every option is answered by whole answers that name it, the last of which, and no other, is final;
//! * how the bytes arrive makes no difference;
//! * the machine never wants more while it holds as much as a connection can;
//! * where TLS is required nothing is opened before it, where it is offered nothing but what may be plain;
//! * a session is what the last words said, and nothing said before TLS is part of it.

use super::{bend, cuts, edge};
use crate::{
    Export, ExportEntry, Exports, OpenError,
    chunk::Style,
    golden::Fake,
    handshake::{Handshake, Progress, TlsMode, World},
    option::PAYLOAD_BYTES_MAX,
    proto::{Put, Take, hello, magic, opt, rep},
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::sync::{Arc, Mutex};
use testkit::with_seeds;

/// The exports of the golden talks; writes down what is opened.
#[derive(Default)]
struct Watched(Mutex<Vec<String>>);

impl Exports for Watched {
    fn list(&self) -> Vec<ExportEntry> {
        Fake.list()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        self.0.lock().unwrap().push(name.to_owned());
        Fake.open(name)
    }

    fn may_be_plain(&self, name: &str) -> bool {
        Fake.may_be_plain(name)
    }
}

const NAMES: [&str; 6] = [
    "",
    "c1/vol",
    "c1/vol@mark:eod",
    "c1/held",
    "c1/none",
    "ö\u{1f600}",
];
const QUERIES: [&str; 8] = [
    "base:allocation",
    "base:",
    "qemu:",
    "qemu:dirty-bitmap:since-noon",
    "qemu:dirty-bitmap:since-typo",
    "x-backstay:seq",
    "other:thing",
    "",
];

fn option(rng: &mut StdRng, out: &mut Vec<u8>) {
    let kind = match rng.random_range(0..12) {
        0 => edge(rng) as u32,
        n => n,
    };
    let mut p = Vec::new();
    match kind {
        opt::EXPORT_NAME => p.put(NAMES.choose(rng).unwrap().as_bytes()),
        opt::INFO | opt::GO => {
            p.put_str(NAMES.choose(rng).unwrap());
            let kinds = rng.random_range(0..5);
            p.put_u16(kinds);
            (0..kinds).for_each(|_| p.put_u16(rng.random_range(0..6)));
        }
        opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => {
            p.put_str(NAMES.choose(rng).unwrap());
            let most = if rng.random_bool(0.05) { 40 } else { 4 };
            let queries = rng.random_range(0..most);
            p.put_u32(queries);
            (0..queries).for_each(|_| p.put_str(QUERIES.choose(rng).unwrap()));
        }
        _ => {}
    }
    match rng.random_range(0..30) {
        0..5 => bend(rng, &mut p),
        5 => p.resize(
            rng.random_range(0..3) * PAYLOAD_BYTES_MAX + rng.random_range(0..9),
            b'x',
        ),
        _ => {}
    }
    out.put_u64(magic::OPTION);
    out.put_u32(kind);
    let len = p.len() as u32;
    out.put_u32(if rng.random_bool(0.02) {
        edge(rng) as u32
    } else {
        len
    });
    out.put(&p);
}

fn conversation(rng: &mut StdRng) -> Vec<u8> {
    let mut p = Vec::new();
    let flags = u32::from(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    p.put_u32(if rng.random_bool(0.9) {
        flags
    } else {
        rng.random_range(0..6)
    });
    for _ in 0..rng.random_range(1..12) {
        option(rng, &mut p);
    }
    if rng.random_bool(0.3) {
        bend(rng, &mut p);
    }
    p
}

/// How a negotiation went.
#[derive(Debug, PartialEq)]
struct Went {
    said: Vec<u8>,
    end: End,
    /// Bytes that were not taken.
    left: usize,
    opened: Vec<String>,
    /// Where TLS began: in what was sent, and in what was said.
    tls_at: Option<(usize, usize)>,
    style_and_contexts: Option<(Style, usize)>,
}

#[derive(Debug, PartialEq)]
enum End {
    WantsMore,
    Chosen(String),
    Closed(&'static str),
}

fn play(tls: TlsMode, stream: &[u8], cuts: &[usize]) -> Went {
    let watched = Watched::default();
    let world = World {
        exports: &watched,
        options_max: 1000,
        stopping: false,
    };
    let mut machine = Handshake::new(tls, None);
    let mut spoken = matches!(tls, TlsMode::None | TlsMode::Spoken);
    let mut tls_at = None;
    let (mut unread, mut said, mut session) = (Vec::new(), Vec::new(), None);
    let mut after = 0;
    let end = 'all: {
        for n in cuts {
            unread.extend_from_slice(&stream[after..after + n]);
            after += n;
            loop {
                let (mut input, before) = (Take(&unread), said.len());
                let progress = machine.advance(&mut input, &world, &mut said);
                let used = unread.len() - input.0.len();
                unread.drain(..used);
                if !spoken {
                    for name in watched.0.lock().unwrap().iter() {
                        assert!(
                            tls == TlsMode::Offered && Fake.may_be_plain(name),
                            "{name:?} is opened before TLS"
                        );
                    }
                }
                match progress {
                    Progress::Again => assert!(used > 0),
                    Progress::More => {
                        assert!(unread.len() < PAYLOAD_BYTES_MAX + 1024 && said.len() == before);
                        break;
                    }
                    Progress::StartTls => {
                        assert!(!spoken, "TLS in TLS");
                        spoken = true;
                        tls_at = Some((after - unread.len(), said.len()));
                        // In TLS whoever opened something before is nobody.
                        watched.0.lock().unwrap().clear();
                    }
                    Progress::Chosen(chosen) => {
                        let name = chosen.name.clone();
                        session = Some(chosen);
                        break 'all End::Chosen(name);
                    }
                    Progress::Close(why) => break 'all End::Closed(why),
                }
            }
        }
        End::WantsMore
    };
    let opened = watched.0.lock().unwrap().clone();
    if let End::Chosen(_) = end {
        assert!(!opened.is_empty(), "what is chosen was opened as things are now");
    }
    Went {
        said,
        end,
        left: stream.len() - after + unread.len(),
        opened,
        tls_at,
        style_and_contexts: session.map(|s| (s.terms.style, s.terms.contexts.count())),
    }
}

/// Whether what was said are whole answers; the last thing said may be what EXPORT_NAME leads to.
fn check_answers(went: &Went) {
    let mut rest = Take(&went.said);
    let mut under_way = None;
    while rest.0.len() >= 20 && rest.0.starts_with(&magic::OPTION_REPLY.to_be_bytes()) {
        rest.u64();
        let (option, kind) = (rest.u32().unwrap(), rest.u32().unwrap());
        let payload = rest.counted().expect("an answer is whole");
        assert!(payload.len() <= PAYLOAD_BYTES_MAX);
        assert!(
            under_way.is_none_or(|o| o == option),
            "answers to one option stay together"
        );
        let is_last = kind == rep::ACK || kind >> 31 == 1;
        under_way = (!is_last).then_some(option);
        let fits = match kind {
            rep::SERVER => option == opt::LIST,
            rep::INFO => matches!(option, opt::INFO | opt::GO),
            rep::META_CONTEXT => matches!(option, opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT),
            rep::ACK => payload.is_empty(),
            _ => std::str::from_utf8(payload).is_ok(),
        };
        assert!(fits, "kind {kind:#x} for option {option}");
    }
    assert_eq!(under_way, None, "an option has no final answer");
    match rest.0.len() {
        0 => {}
        10 | 134 => assert!(matches!(went.end, End::Chosen(_))),
        n => panic!("{n} bytes are no answer"),
    }
}

#[test]
fn random_negotiations_are_answered_whole() {
    let (mut chosen, mut secure) = (0, 0);
    let tried = with_seeds("nbd negotiation", 10_000, |rng| {
        let stream = conversation(rng);
        let tls = *[TlsMode::None, TlsMode::Offered, TlsMode::Required]
            .choose(rng)
            .unwrap();
        let went = play(tls, &stream, &[stream.len()]);
        check_answers(&went);
        let pieces = cuts(rng, stream.len());
        let in_pieces = play(tls, &stream, &pieces);
        // What comes after the end was never received.
        assert_eq!(in_pieces.end, went.end);
        assert!(in_pieces == went, "{pieces:?}: {in_pieces:?} is not {went:?}");
        if let End::Chosen(_) = went.end {
            chosen += 1;
        }
        if let Some((sent, said)) = went.tls_at {
            secure += 1;
            // As if nothing but the flags had been said before.
            let anew = [&stream[..4], &stream[sent..]].concat();
            let anew = play(TlsMode::Spoken, &anew, &[anew.len()]);
            assert!(anew.said == went.said[said..] && anew.end == went.end && anew.opened == went.opened);
            assert_eq!(anew.style_and_contexts, went.style_and_contexts);
        }
    });
    assert!(
        tried < 1000 || (chosen > tried / 20 && secure > 0),
        "only {chosen} of {tried} led anywhere"
    );
}
