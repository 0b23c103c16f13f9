//! The negotiation of a connection: bytes in, bytes out, no socket and no clock.
//!
//! Asking about a name, selecting contexts of it and then choosing it, as clients do, opens it once: the machine keeps the
//! export that it opened last, and the one for which contexts were selected, and nothing else. What was selected for one
//! name does not hold for another. Nothing that a client announces is
//! allocated: payloads are parsed where they lie in the receive buffer, and one too long for it is skipped as it comes.

use crate::{
    DefaultExport, Export, Exports,
    answer::Answer,
    chunk::Style,
    context::{self, Contexts},
    option::{self, Refused},
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
    /// Send what was put out; what comes next must be TLS, and inside it the talk begins anew.
    StartTls,
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

/// What is said to TLS. Once it is spoken, nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// There is none.
    None,
    /// The client may; for some exports it must.
    Offered,
    /// The client must, before anything else.
    Required,
    /// It is spoken.
    Spoken,
}

/// One negotiation.
pub(crate) struct Handshake {
    state: State,
    tls: TlsMode,
    fixed: bool,
    no_zeroes: bool,
    style: Style,
    options: u32,
    /// What the empty name means here; else the server's exports decide.
    default: Option<DefaultExport>,
    opened: Option<(String, Arc<dyn Export>)>,
    selected: Option<Selection>,
}

/// The contexts that were selected, and for what.
struct Selection {
    name: String,
    export: Arc<dyn Export>,
    contexts: Contexts,
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
    pub(crate) fn new(tls: TlsMode, default: Option<DefaultExport>) -> Self {
        Self {
            state: State::Flags,
            tls,
            fixed: false,
            no_zeroes: false,
            style: Style::Simple,
            options: 0,
            default,
            opened: None,
            selected: None,
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
                let refused = match self.tls {
                    TlsMode::Required => needs_tls(),
                    _ => Refused::new(rep::ERR_TOO_BIG, "the option is too long"),
                };
                Answer { out, option }.refuse(&refused);
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
        self.fixed = flags & u32::from(hello::FIXED_NEWSTYLE) != 0;
        if self.tls == TlsMode::Required && !self.fixed {
            return Progress::Close("the client cannot be told that it needs TLS");
        }
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
            opt::STARTTLS => match self.start_tls(payload) {
                Ok(()) => {
                    answer.ack();
                    Progress::StartTls
                }
                Err(refused) => {
                    answer.refuse(&refused);
                    Progress::Again
                }
            },
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
                Err(refused) => {
                    answer.refuse(&refused);
                    Progress::Again
                }
            },
            _ => {
                match self.ask(option, payload, world, &mut answer) {
                    Ok(()) => answer.ack(),
                    Err(refused) => answer.refuse(&refused),
                }
                Progress::Again
            }
        }
    }

    /// Forgets all that was said in the clear, where somebody else may have said it; what is said from now on is the client's.
    fn start_tls(&mut self, payload: &[u8]) -> Result<(), Refused> {
        option::empty(payload)?;
        match self.tls {
            TlsMode::None => Err(Refused::new(rep::ERR_POLICY, "there is no TLS here")),
            TlsMode::Spoken => Err(Refused::new(rep::ERR_INVALID, "TLS is spoken already")),
            TlsMode::Offered if !self.fixed => Err(Refused::new(
                rep::ERR_POLICY,
                "TLS needs the fixed newstyle handshake",
            )),
            TlsMode::Offered | TlsMode::Required => {
                self.tls = TlsMode::Spoken;
                self.style = Style::Simple;
                self.opened = None;
                self.selected = None;
                Ok(())
            }
        }
    }

    /// An option that changes nothing but what the machine knows, and never ends the talk.
    fn ask(
        &mut self,
        option: u32,
        payload: &[u8],
        world: &World<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Refused> {
        if self.tls == TlsMode::Required {
            return Err(needs_tls());
        }
        match option {
            opt::LIST => {
                option::empty(payload)?;
                for e in world.exports.list() {
                    if e.name.len() <= STRING_BYTES_MAX && self.may_show(&e.name, world) {
                        answer.server(&e.name, &e.description);
                    }
                }
                Ok(())
            }
            opt::INFO => self.describe(payload, world, answer).map(drop),
            opt::STRUCTURED_REPLY => {
                option::empty(payload)?;
                if self.style == Style::Extended {
                    return Err(Refused::new(
                        rep::ERR_EXT_HEADER_REQD,
                        "extended headers are negotiated, which take precedence",
                    ));
                }
                self.style = Style::Structured;
                Ok(())
            }
            opt::EXTENDED_HEADERS => {
                option::empty(payload)?;
                self.style = Style::Extended;
                Ok(())
            }
            opt::LIST_META_CONTEXT => self.list_contexts(payload, world, answer),
            opt::SET_META_CONTEXT => self.set_contexts(payload, world, answer),
            _ => Err(Refused::new(
                rep::ERR_UNSUP,
                "the server does not know this option",
            )),
        }
    }

    fn export_name(&mut self, payload: &[u8], world: &World<'_>, out: &mut Vec<u8>) -> Progress {
        if self.tls == TlsMode::Required {
            return Progress::Close("the client asks for an export without TLS");
        }
        if self.style == Style::Extended {
            return Progress::Close("the client asks for an export in the old way, with extended headers");
        }
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
        if self.tls == TlsMode::Required {
            return Err(needs_tls());
        }
        let query = option::info_query(payload)?;
        if !self.may_show(query.name, world) {
            return Err(needs_tls());
        }
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
        self.needs_chunks()?;
        let export = self.open(query.name, world)?;
        for name in context::list(&*export, &query.queries, self.style)? {
            answer.context(0, &name);
        }
        Ok(())
    }

    fn set_contexts(
        &mut self,
        payload: &[u8],
        world: &World<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Refused> {
        let selection = self.select(payload, world);
        // A new selection replaces the old one even when it fails.
        self.selected = None;
        let selection = selection?;
        for (id, name) in selection.contexts.named() {
            answer.context(id, name);
        }
        self.selected = Some(selection);
        Ok(())
    }

    fn select(&mut self, payload: &[u8], world: &World<'_>) -> Result<Selection, Refused> {
        let query = option::context_query(payload)?;
        self.needs_chunks()?;
        let export = self.open(query.name, world)?;
        Ok(Selection {
            name: query.name.to_owned(),
            contexts: Contexts::select(&*export, &query.queries, self.style)?,
            export,
        })
    }

    fn needs_chunks(&self) -> Result<(), Refused> {
        match self.style {
            Style::Structured | Style::Extended => Ok(()),
            Style::Simple => Err(Refused::new(
                rep::ERR_INVALID,
                "structured replies must be negotiated before contexts",
            )),
        }
    }

    fn open(&mut self, name: &str, world: &World<'_>) -> Result<Arc<dyn Export>, Refused> {
        if world.stopping {
            return Err(Refused::new(rep::ERR_SHUTDOWN, "the server is shutting down"));
        }
        if !self.may_show(name, world) {
            return Err(Refused::new(rep::ERR_POLICY, "this export needs TLS"));
        }
        if let Some(default) = self.default.as_ref().filter(|_| name.is_empty()) {
            return Ok(default.export.clone());
        }
        let opened = self.opened.as_ref().map(|(of, export)| (of, export));
        let selected = self.selected.as_ref().map(|s| (&s.name, &s.export));
        if let Some((_, export)) = opened.into_iter().chain(selected).find(|(of, _)| *of == name) {
            return Ok(export.clone());
        }
        self.opened = None;
        let export = world.exports.open(name)?;
        self.opened = Some((name.to_owned(), export.clone()));
        Ok(export)
    }

    /// Whether this name may be told of, and opened, as things are. A name that is none is not told from one that needs TLS.
    fn may_show(&self, name: &str, world: &World<'_>) -> bool {
        match self.tls {
            TlsMode::None | TlsMode::Spoken => true,
            TlsMode::Offered => world.exports.may_be_plain(name),
            TlsMode::Required => false,
        }
    }

    fn session(&self, name: &str, export: Arc<dyn Export>) -> Session {
        let mut told = export.info();
        told.block = told.block.legal();
        let selected = self.selected.as_ref().filter(|s| s.name == name);
        let default = self.default.as_ref().filter(|_| name.is_empty());
        let asked = default.map_or(name, |d| &d.name);
        Session {
            name: told.name.clone().unwrap_or_else(|| asked.to_owned()),
            terms: Terms {
                info: told,
                style: self.style,
                contexts: selected.map(|s| s.contexts.clone()).unwrap_or_default(),
            },
            export,
        }
    }
}

fn needs_tls() -> Refused {
    Refused::new(rep::ERR_TLS_REQD, "TLS is needed first")
}

#[cfg(test)]
mod tests;
