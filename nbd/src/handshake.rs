//! The negotiation of a connection: bytes in, bytes out, no socket and no clock.
//!
//! The machine opens at most one export at a time: asking about contexts of a name and then choosing it, as clients do,
//! opens it once. What was selected for one name is dropped when another is chosen. Nothing that a client announces is
//! allocated: payloads are parsed where they lie in the receive buffer, and one too long for it is skipped as it comes.

use crate::{
    Export, Exports, OpenError,
    chunk::Style,
    context,
    option::{self, BadOption},
    proto::{Put, STRING_BYTES_MAX, Take, bounded, hello, info, magic, opt, rep},
    session::{Session, Terms},
};
use std::sync::Arc;

/// What the caller has to do next.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Send what was put out, receive more, call again.
    More,
    /// Send what was put out, call again: the input may hold more.
    Again,
    /// Send what was put out; the rest of the input are requests.
    Chosen(Session),
    /// Send what was put out, then close: the client is done, or breaks the protocol.
    Close(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Flags,
    Option,
    /// So many bytes of an option are still to be thrown away before it is refused.
    Skip(u32, usize),
}

/// What the machine needs to know of the world.
pub(crate) struct World<'a> {
    pub(crate) exports: &'a dyn Exports,
    pub(crate) options_max: u32,
    pub(crate) stopping: bool,
}

/// One negotiation.
pub(crate) struct Handshake {
    state: State,
    no_zeroes: bool,
    style: Style,
    options: u32,
    opened: Option<(String, Arc<dyn Export>)>,
    /// The export for which `base:allocation` was selected.
    allocation_of: Option<String>,
}

/// What the server says first.
pub(crate) fn greeting() -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.put_u64(magic::GREETING);
    out.put_u64(magic::OPTION);
    out.put_u16(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    out
}

impl Handshake {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Flags,
            no_zeroes: false,
            style: Style::Simple,
            options: 0,
            opened: None,
            allocation_of: None,
        }
    }

    /// Takes at most one item from the input.
    pub(crate) fn advance(&mut self, input: &mut Take<'_>, world: &World<'_>, out: &mut Vec<u8>) -> Progress {
        match self.state {
            State::Flags => self.flags(input),
            State::Skip(option, left) => {
                let n = left.min(input.0.len());
                input.0 = &input.0[n..];
                self.state = State::Skip(option, left - n);
                if n < left {
                    return Progress::More;
                }
                self.state = State::Option;
                Answer { out, option }.error(rep::ERR_TOO_BIG, "the option is too long");
                Progress::Again
            }
            State::Option => self.option(input, world, out),
        }
    }

    fn flags(&mut self, input: &mut Take<'_>) -> Progress {
        let Some(flags) = input.u32() else {
            return Progress::More;
        };
        if flags & !u32::from(hello::FIXED_NEWSTYLE | hello::NO_ZEROES) != 0 {
            return Progress::Close("the client asks for unknown handshake flags");
        }
        self.no_zeroes = flags & u32::from(hello::NO_ZEROES) != 0;
        self.state = State::Option;
        Progress::Again
    }

    fn option(&mut self, input: &mut Take<'_>, world: &World<'_>, out: &mut Vec<u8>) -> Progress {
        let mut ahead = *input;
        let Some(word) = ahead.u64() else {
            return Progress::More;
        };
        if word != magic::OPTION {
            return Progress::Close("the client sends something else than an option");
        }
        let (Some(option), Some(len)) = (ahead.u32(), ahead.u32()) else {
            return Progress::More;
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > option::PAYLOAD_BYTES_MAX {
            if len > option::SKIPPED_BYTES_MAX || option == opt::EXPORT_NAME {
                return Progress::Close("the client announces an option of absurd length");
            }
            *input = ahead;
            self.state = State::Skip(option, len);
            return Progress::Again;
        }
        let Some(payload) = ahead.bytes(len) else {
            return Progress::More;
        };
        *input = ahead;
        self.options += 1;
        if self.options > world.options_max {
            return Progress::Close("the client negotiates without end");
        }
        let mut answer = Answer { out, option };
        match option {
            opt::EXPORT_NAME => self.export_name(payload, world, answer.out),
            opt::ABORT => {
                answer.ack();
                Progress::Close("the client aborts")
            }
            opt::GO => match self.describe(payload, world, &mut answer) {
                Ok(session) => {
                    answer.ack();
                    Progress::Chosen(session)
                }
                Err(bad) => answer.refuse(&bad),
            },
            opt::INFO => {
                let done = self.describe(payload, world, &mut answer).map(drop);
                answer.end(done)
            }
            opt::LIST => answer.end_simple(
                option::empty(payload).map(|()| world.exports.list()),
                |a, list| {
                    list.iter()
                        .filter(|e| e.name.len() <= STRING_BYTES_MAX)
                        .for_each(|e| {
                            a.server(&e.name, &e.description);
                        });
                },
            ),
            opt::STRUCTURED_REPLY => {
                answer.end_simple(option::empty(payload), |_, ()| self.style = Style::Structured)
            }
            opt::LIST_META_CONTEXT => {
                let done = self.list_contexts(payload, world, &mut answer);
                answer.end(done)
            }
            opt::SET_META_CONTEXT => {
                let done = self.set_contexts(payload, world, &mut answer);
                answer.end(done)
            }
            _ => {
                answer.error(rep::ERR_UNSUP, "the server does not know this option");
                Progress::Again
            }
        }
    }

    /// The old way to choose an export: no way to answer but with the export or with the end.
    fn export_name(&mut self, payload: &[u8], world: &World<'_>, out: &mut Vec<u8>) -> Progress {
        let Ok(name) = option::export_name(payload) else {
            return Progress::Close("the client asks for an export by something that is no name");
        };
        let Ok(export) = self.open(name, world) else {
            return Progress::Close("the client asks for an export that it cannot have");
        };
        let session = self.session(name, export);
        out.put_u64(session.terms.info.size);
        out.put_u16(session.terms.export_flags());
        if !self.no_zeroes {
            out.put(&[0; 124]);
        }
        Progress::Chosen(session)
    }

    /// INFO and GO: everything about an export, and the session it would make.
    fn describe(
        &mut self,
        payload: &[u8],
        world: &World<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<Session, Refused> {
        let query = option::info_query(payload)?;
        let export = self.open(query.name, world)?;
        let session = self.session(query.name, export);
        let told = &session.terms.info;
        answer.info(info::EXPORT, |p| {
            p.put_u64(told.size);
            p.put_u16(session.terms.export_flags());
        });
        if query.kinds.contains(&info::NAME) {
            answer.info(info::NAME, |p| p.put(bounded(&session.name).as_bytes()));
        }
        if query.kinds.contains(&info::DESCRIPTION) && !told.description.is_empty() {
            answer.info(info::DESCRIPTION, |p| {
                p.put(bounded(&told.description).as_bytes())
            });
        }
        // Also to those who do not ask: whoever knows it obeys it.
        answer.info(info::BLOCK_SIZE, |p| {
            p.put_u32(told.block.min);
            p.put_u32(told.block.preferred);
            p.put_u32(told.block.max);
        });
        Ok(session)
    }

    fn list_contexts(
        &mut self,
        payload: &[u8],
        world: &World<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Refused> {
        let query = option::context_query(payload)?;
        self.needs_structured()?;
        self.open(query.name, world)?;
        if context::listed(&query.queries) {
            answer.context(0, context::BASE_ALLOCATION);
        }
        Ok(())
    }

    fn set_contexts(
        &mut self,
        payload: &[u8],
        world: &World<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Refused> {
        // A new selection replaces the old one even when it fails.
        self.allocation_of = None;
        let query = option::context_query(payload)?;
        self.needs_structured()?;
        self.open(query.name, world)?;
        if context::selected(&query.queries) {
            answer.context(context::BASE_ALLOCATION_ID, context::BASE_ALLOCATION);
            self.allocation_of = Some(query.name.to_owned());
        }
        Ok(())
    }

    fn needs_structured(&self) -> Result<(), Refused> {
        match self.style {
            Style::Structured => Ok(()),
            Style::Simple => Err(BadOption(
                rep::ERR_INVALID,
                "structured replies must be negotiated before contexts",
            )
            .into()),
        }
    }

    fn open(&mut self, name: &str, world: &World<'_>) -> Result<Arc<dyn Export>, Refused> {
        if world.stopping {
            return Err(BadOption(rep::ERR_SHUTDOWN, "the server is shutting down").into());
        }
        if let Some((of, export)) = &self.opened
            && of == name
        {
            return Ok(export.clone());
        }
        self.opened = None;
        let export = world.exports.open(name)?;
        self.opened = Some((name.to_owned(), export.clone()));
        Ok(export)
    }

    fn session(&self, name: &str, export: Arc<dyn Export>) -> Session {
        let mut told = export.info();
        told.block = told.block.legal();
        Session {
            name: told.name.clone().unwrap_or_else(|| name.to_owned()),
            terms: Terms {
                info: told,
                style: self.style,
                allocation: self.allocation_of.as_deref() == Some(name),
            },
            export,
        }
    }
}

/// Why an option failed, as it is told to the client.
struct Refused {
    kind: u32,
    text: String,
}

impl From<BadOption> for Refused {
    fn from(BadOption(kind, text): BadOption) -> Self {
        Self {
            kind,
            text: text.to_owned(),
        }
    }
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        let kind = match error {
            OpenError::Refused(_) => rep::ERR_POLICY,
            // The protocol has no word for an export that exists and fails; the text tells.
            OpenError::Unknown(_) | OpenError::Failed(_) => rep::ERR_UNKNOWN,
        };
        Self {
            kind,
            text: error.to_string(),
        }
    }
}

/// Answers to one option.
struct Answer<'a> {
    out: &'a mut Vec<u8>,
    option: u32,
}

impl Answer<'_> {
    fn part(&mut self, kind: u32, payload: &[u8]) {
        self.out.put_u64(magic::OPTION_REPLY);
        self.out.put_u32(self.option);
        self.out.put_u32(kind);
        self.out
            .put_u32(u32::try_from(payload.len()).expect("answers are made of bounded strings"));
        self.out.put(payload);
    }

    fn ack(&mut self) {
        self.part(rep::ACK, &[]);
    }

    fn error(&mut self, kind: u32, text: &str) {
        self.part(kind, bounded(text).as_bytes());
    }

    fn refuse(&mut self, refused: &Refused) -> Progress {
        self.error(refused.kind, &refused.text);
        Progress::Again
    }

    fn end(&mut self, done: Result<(), Refused>) -> Progress {
        match done {
            Ok(()) => self.ack(),
            Err(refused) => self.error(refused.kind, &refused.text),
        }
        Progress::Again
    }

    fn end_simple<T>(&mut self, parsed: Result<T, BadOption>, then: impl FnOnce(&mut Self, T)) -> Progress {
        let done = parsed.map(|t| then(self, t)).map_err(Refused::from);
        self.end(done)
    }

    fn server(&mut self, name: &str, description: &str) {
        let mut p = Vec::new();
        p.put_str(name);
        p.put(bounded(description).as_bytes());
        self.part(rep::SERVER, &p);
    }

    fn info(&mut self, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let mut p = Vec::new();
        p.put_u16(kind);
        body(&mut p);
        self.part(rep::INFO, &p);
    }

    fn context(&mut self, id: u32, name: &str) {
        let mut p = Vec::new();
        p.put_u32(id);
        p.put(name.as_bytes());
        self.part(rep::META_CONTEXT, &p);
    }
}

#[cfg(test)]
mod tests {
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
        assert!(!t.session.unwrap().terms.allocation);
    }

    #[test]
    fn a_failed_selection_drops_the_one_before() {
        let mut t = talk();
        t.option(opt::STRUCTURED_REPLY, b"");
        t.contexts(opt::SET_META_CONTEXT, "c1/vol", &["base:allocation"]);
        t.contexts(opt::SET_META_CONTEXT, "nowhere", &["base:allocation"]);
        assert_eq!(kinds(&t), [rep::ERR_UNKNOWN]);
        t.go(opt::GO, "c1/vol", &[]);
        assert!(!t.session.unwrap().terms.allocation);
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
        let mut machine = Handshake::new();
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
        let mut machine = Handshake::new();
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
                    Progress::Close(why) => panic!("{why}"),
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
}
