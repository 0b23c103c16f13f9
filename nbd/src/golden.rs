//! Transcripts of the protocol in `testdata/nbd`, byte for byte: `C` is what the client sends, `S` what the server says.
//! `BACKSTAY_BLESS=1` writes them anew.

use crate::{
    Errno, Export, ExportEntry, ExportInfo, Exports, Extent, MetaContext, Mutation, OpenError, Status,
    chunk::{Form, Style},
    handshake::{Handshake, Progress, TlsMode, World, greeting},
    proto::{Put, Take, hello, info, magic, opt},
    session::Session,
};
use std::{fmt::Write, fs, ops::Range, path::Path, sync::Arc};

pub(crate) struct Fake;

impl Exports for Fake {
    fn list(&self) -> Vec<ExportEntry> {
        vec![
            ExportEntry {
                name: "c1/vol".into(),
                description: "live".into(),
            },
            ExportEntry {
                name: "n".repeat(5000),
                description: "never shown: its name is too long".into(),
            },
            ExportEntry {
                name: "c1/vol@mark:eod".into(),
                description: String::new(),
            },
        ]
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        match name {
            "c1/vol" | "" => Ok(Arc::new(FakeExport { past: false })),
            "c1/vol@mark:eod" => Ok(Arc::new(FakeExport { past: true })),
            "c1/held" => Err(OpenError::Refused("c1 is not production here".into())),
            _ => Err(OpenError::Unknown(format!("no volume {name}"))),
        }
    }

    fn may_be_plain(&self, name: &str) -> bool {
        name.starts_with("c1/vol@")
    }
}

/// The past has contexts of its own.
pub(crate) struct FakeExport {
    pub(crate) past: bool,
}

/// All of one status.
struct FakeContext(u64);

impl MetaContext for FakeContext {
    fn status(&self, range: Range<u64>, _: usize) -> Result<Vec<Status>, Errno> {
        Ok(vec![Status {
            len: range.end - range.start,
            bits: self.0,
        }])
    }

    fn is_wide(&self) -> bool {
        self.0 > u32::MAX.into()
    }
}

impl Export for FakeExport {
    fn info(&self) -> ExportInfo {
        let of = |info: ExportInfo, name: &str, text: &str| ExportInfo {
            name: Some(name.into()),
            description: text.into(),
            ..info
        };
        if self.past {
            of(
                ExportInfo::read_only(1 << 20),
                "c1/vol@mark:eod",
                "c1/vol as it was",
            )
        } else {
            of(ExportInfo::writable(1 << 20), "c1/vol", "c1/vol, live")
        }
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.fill(7);
        Ok(())
    }

    fn submit(&self, _: Vec<Mutation>) {}

    fn extents(&self, range: Range<u64>, _: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent {
            len: range.end - range.start,
            hole: false,
            zero: false,
        }])
    }

    fn contexts(&self) -> Vec<String> {
        let bitmap = "qemu:dirty-bitmap:since-mark:noon".to_owned();
        if self.past { vec![bitmap] } else { Vec::new() }
    }

    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        let context = |bits| Ok(Some(Arc::new(FakeContext(bits)) as Arc<dyn MetaContext>));
        match name.strip_prefix("qemu:dirty-bitmap:since-") {
            Some("typo") if self.past => Err("no point 'typo'".into()),
            Some(_) if self.past => context(1),
            None if self.past && name == "x-backstay:seq" => context(1 << 40),
            _ => Ok(None),
        }
    }
}

/// A conversation under way.
pub(crate) struct Talk {
    machine: Handshake,
    text: String,
    pub(crate) last: Vec<u8>,
    pub(crate) session: Option<Session>,
    pub(crate) closed: Option<&'static str>,
    /// How often TLS was begun.
    pub(crate) tls: u32,
}

impl Talk {
    pub(crate) fn new() -> Self {
        Self::with(TlsMode::None)
    }

    pub(crate) fn with(tls: TlsMode) -> Self {
        let mut talk = Self {
            machine: Handshake::new(tls, None),
            text: String::new(),
            last: Vec::new(),
            session: None,
            closed: None,
            tls: 0,
        };
        talk.line('S', &greeting());
        talk
    }

    fn line(&mut self, side: char, bytes: &[u8]) {
        for row in bytes.chunks(32) {
            let hex: Vec<String> = row.chunks(4).map(hex).collect();
            writeln!(self.text, "{side} {}", hex.join(" ")).unwrap();
        }
    }

    pub(crate) fn note(&mut self, note: &str) {
        writeln!(self.text, "# {note}").unwrap();
    }

    /// The client says something; the answers are kept in `last`.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.line('C', bytes);
        self.feed(bytes);
        let said = self.last.clone();
        self.line('S', &said);
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let world = World {
            exports: &Fake,
            options_max: 64,
            stopping: false,
        };
        let (mut input, mut out) = (Take(bytes), Vec::new());
        let mut tls_from_here = false;
        loop {
            match self.machine.advance(&mut input, &world, &mut out) {
                Progress::Again => {}
                Progress::More => break,
                Progress::StartTls => {
                    tls_from_here = true;
                    break;
                }
                Progress::Chosen(session) => {
                    self.session = Some(session);
                    break;
                }
                Progress::Close(why) => {
                    self.closed = Some(why);
                    break;
                }
            }
        }
        self.last = out;
        if tls_from_here {
            self.tls += 1;
        }
    }

    pub(crate) fn hello(&mut self, flags: u16) {
        self.say(&u32::from(flags).to_be_bytes());
    }

    pub(crate) fn option(&mut self, option: u32, payload: &[u8]) {
        let mut p = Vec::new();
        p.put_u64(magic::OPTION);
        p.put_u32(option);
        p.put_u32(u32::try_from(payload.len()).unwrap());
        p.put(payload);
        self.say(&p);
    }

    pub(crate) fn go(&mut self, option: u32, name: &str, kinds: &[u16]) {
        let mut p = Vec::new();
        p.put_str(name);
        p.put_u16(u16::try_from(kinds.len()).unwrap());
        kinds.iter().for_each(|k| p.put_u16(*k));
        self.option(option, &p);
    }

    pub(crate) fn contexts(&mut self, option: u32, name: &str, queries: &[&str]) {
        let mut p = Vec::new();
        p.put_str(name);
        p.put_u32(u32::try_from(queries.len()).unwrap());
        queries.iter().for_each(|q| p.put_str(q));
        self.option(option, &p);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testdata/nbd")
        .join(name);
    if std::env::var("BACKSTAY_BLESS").is_ok_and(|v| v == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(
        text,
        expected,
        "{} differs; BACKSTAY_BLESS=1 writes it anew",
        path.display()
    );
}

#[test]
fn the_handshake_of_a_modern_client_is_pinned() {
    let mut t = Talk::new();
    t.note("fixed newstyle, no zeroes");
    t.hello(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    t.note("an option from the future: unsupported, and the talk goes on");
    t.option(12, b"");
    t.note("starttls: there is none here");
    t.option(5, b"");
    t.note("contexts before structured replies: invalid");
    t.contexts(opt::SET_META_CONTEXT, "c1/vol", &["base:allocation"]);
    t.note("structured replies");
    t.option(opt::STRUCTURED_REPLY, b"");
    t.note("list");
    t.option(opt::LIST, b"");
    t.note("list contexts by wildcard");
    t.contexts(opt::LIST_META_CONTEXT, "c1/vol", &["base:"]);
    t.note("set contexts: the wildcard selects nothing, the name does");
    t.contexts(opt::SET_META_CONTEXT, "c1/vol", &["base:", "x-other:thing"]);
    t.contexts(
        opt::SET_META_CONTEXT,
        "c1/vol",
        &["qemu:dirty-bitmap:b", "base:allocation"],
    );
    t.note("info on a name that does not exist, and on one that is held");
    t.go(opt::INFO, "c1/none", &[]);
    t.go(opt::INFO, "c1/held", &[]);
    t.note("go, asking for all information");
    t.go(
        opt::GO,
        "c1/vol",
        &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE],
    );
    let terms = t.session.as_ref().unwrap().terms.clone();
    assert!(terms.contexts.count() == 1 && terms.style == Style::Structured);
    check("handshake-go.txt", &t.text);
}

#[test]
fn the_handshake_of_a_client_with_extended_headers_is_pinned() {
    let mut t = Talk::new();
    t.hello(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    t.note("structured replies, then extended headers, which take precedence: structured replies can no longer be had");
    t.option(opt::STRUCTURED_REPLY, b"");
    t.option(opt::EXTENDED_HEADERS, b"x");
    t.option(opt::EXTENDED_HEADERS, b"");
    t.option(opt::STRUCTURED_REPLY, b"");
    t.note("all contexts there are");
    t.contexts(opt::LIST_META_CONTEXT, "c1/vol@mark:eod", &[]);
    t.note("info without contexts: no block status payload");
    t.go(opt::INFO, "c1/vol@mark:eod", &[]);
    t.note("three contexts, one of them of 64 bits, get ids in the order of the queries");
    t.contexts(
        opt::SET_META_CONTEXT,
        "c1/vol@mark:eod",
        &[
            "qemu:dirty-bitmap:since-mark:noon",
            "base:allocation",
            "x-backstay:seq",
        ],
    );
    t.note("go: block status may carry a payload");
    t.go(opt::GO, "c1/vol@mark:eod", &[]);
    let terms = t.session.as_ref().unwrap().terms.clone();
    assert!(terms.contexts.count() == 3 && terms.style == Style::Extended);
    check("handshake-extended.txt", &t.text);
}

#[test]
fn the_handshake_of_an_old_client_is_pinned() {
    let mut t = Talk::new();
    t.note("fixed newstyle without no-zeroes, then export name: 124 zeroes follow the flags");
    t.hello(hello::FIXED_NEWSTYLE);
    t.option(opt::EXPORT_NAME, b"c1/vol@mark:eod");
    assert_eq!(t.session.as_ref().unwrap().terms.style, Style::Simple);
    check("handshake-export-name.txt", &t.text);
}

#[test]
fn the_handshake_of_a_server_that_requires_tls_is_pinned() {
    let mut t = Talk::with(TlsMode::Required);
    t.hello(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    t.note("nothing is told before TLS: list, go, and what nobody knows");
    t.option(opt::LIST, b"");
    t.go(opt::GO, "c1/vol", &[]);
    t.option(99, b"");
    t.note("starttls with something in it: invalid; without: ack, and everything below is in TLS");
    t.option(opt::STARTTLS, b"x");
    t.option(opt::STARTTLS, b"");
    assert_eq!(t.tls, 1);
    t.note("starttls again: invalid");
    t.option(opt::STARTTLS, b"");
    t.option(opt::LIST, b"");
    t.go(opt::GO, "c1/vol", &[]);
    assert!(t.session.is_some() && t.tls == 1);
    check("handshake-tls-required.txt", &t.text);
}

#[test]
fn the_handshake_of_a_server_that_offers_tls_is_pinned() {
    let mut t = Talk::with(TlsMode::Offered);
    t.hello(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    t.note("in the clear only what may be plain is listed and told of; what does not exist needs TLS too");
    t.option(opt::LIST, b"");
    t.go(opt::INFO, "c1/vol", &[]);
    t.go(opt::INFO, "c1/none", &[]);
    t.go(opt::INFO, "c1/vol@mark:eod", &[]);
    t.note("extended headers and a context are negotiated, in the clear");
    t.option(opt::EXTENDED_HEADERS, b"");
    t.contexts(opt::SET_META_CONTEXT, "c1/vol", &["base:allocation"]);
    t.contexts(opt::SET_META_CONTEXT, "c1/vol@mark:eod", &["base:allocation"]);
    t.note("starttls: all of it is forgotten, and everything below is in TLS");
    t.option(opt::STARTTLS, b"");
    assert_eq!(t.tls, 1);
    t.contexts(opt::SET_META_CONTEXT, "c1/vol@mark:eod", &["base:allocation"]);
    t.go(opt::GO, "c1/vol@mark:eod", &[]);
    let terms = t.session.as_ref().unwrap().terms.clone();
    assert!(terms.contexts.count() == 0 && terms.style == Style::Simple);
    check("handshake-tls-offered.txt", &t.text);
}

#[test]
fn replies_are_pinned() {
    let mut t = Talk::new();
    t.text.clear();
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let form = Form {
            style,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1112_1314_1516_1718,
        };
        let mut one = |note: &str, f: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            f(&mut out);
            t.note(&format!("{note}, {style:?}"));
            t.line('S', &out);
        };
        one("success", &|o| form.success(o));
        one("error", &|o| form.failure(o, Errno::Perm, "read-only"));
        if style == Style::Simple {
            continue;
        }
        one("none", &|o| form.none(o));
        one("offset data, 4 bytes at 4096, more follows", &|o| {
            form.data_head(o, false, 4096, 4);
            o.put(b"data");
        });
        one("offset hole, 8192 bytes at 4100, the last", &|o| {
            form.hole(o, true, 4100, 8192)
        });
        one("error at offset 512", &|o| {
            form.failure_at(o, Errno::Io, "bad", 512)
        });
        one(
            "block status of two contexts: 4096 data, 8192 hole and zero; 12288 dirty",
            &|o| {
                form.block_status(o, false, 1, &[(4096, 0), (8192, 3)]);
                form.block_status(o, true, 2, &[(12288, 1)]);
            },
        );
    }
    check("replies.txt", &t.text);
}
