//! The thread of one client: negotiates, then works in rounds until the client leaves.
//!
//! A *round* is everything that the socket held at once. Its mutations are submitted together, then its reads are run,
//! then all answers are sent together; reads that take long are shared with [others](crate::readers). A round ends when
//! the socket has likely no more, when it is long enough, or before the thread must wait: for the rest of a payload, or for
//! bytes in flight. So a client that sends one request at a time has rounds of one and waits for nobody, and one that sends
//! many has large group commits.

use crate::{
    Limits, Mutation, Op, Reply,
    chunk::{Form, Style},
    handshake::{Handshake, Progress, TlsMode, World, greeting},
    inbox::Inbox,
    outbox::{MUTATION_BYTES, Outbox},
    readers::Readers,
    reads::{self, Gathered, Inline},
    request::{Header, Refusal, Request, StatusAsked, judge, judge_status},
    server::{Reception, Security, Shared},
    session::Session,
    transport::{Transport, Wait, send_all},
};
use bytes::Bytes;
use std::{
    io, mem,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

/// A round takes no more than about so many bytes of payload,
const ROUND_BYTES: usize = 4 << 20;
/// and so many requests.
const ROUND_REQUESTS: usize = 4096;

/// Serves a client until it leaves. `chosen` is told the name of its export, before the client knows that it has it.
pub(crate) fn run(
    transport: Arc<dyn Transport>,
    shared: &Shared,
    reception: Reception,
    chosen: impl Fn(&str),
) -> io::Result<()> {
    let Some(Negotiated {
        session,
        inbox,
        transport,
    }) = negotiate(transport, shared, reception, chosen)?
    else {
        return Ok(());
    };
    let limits = &shared.limits;
    let outbox = Outbox::new(transport.clone(), limits.in_flight_bytes_max);
    let session = Arc::new(session);
    let round = Round {
        readers: Readers::new(session.clone(), outbox.clone(), shared.readers.clone()),
        session,
        outbox,
        batch: Vec::new(),
        payload: 0,
        inline: Vec::new(),
        out: Gathered::default(),
    };
    Connection {
        transport: &*transport,
        shared,
        inbox,
        round,
    }
    .serve()
}

/// What a negotiation has led to.
struct Negotiated {
    session: Session,
    inbox: Inbox,
    /// In TLS, if the client asked for it.
    transport: Arc<dyn Transport>,
}

/// The negotiation, within its time; `None` when the client only asked.
fn negotiate(
    mut transport: Arc<dyn Transport>,
    shared: &Shared,
    reception: Reception,
    chosen: impl Fn(&str),
) -> io::Result<Option<Negotiated>> {
    let deadline = Instant::now() + shared.limits.negotiation_timeout;
    let in_time = |transport: &dyn Transport| match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => transport.set_timeout(Some(left)),
        _ => Err(io::ErrorKind::TimedOut.into()),
    };
    let (mode, tls) = match reception.security {
        Security::Plain => (TlsMode::None, None),
        Security::Offered(tls) => (TlsMode::Offered, Some(tls)),
        Security::Required(tls) => (TlsMode::Required, Some(tls)),
    };
    let mut machine = Handshake::new(mode, reception.default);
    let mut inbox = Inbox::new();
    let mut out = greeting();
    let ended = loop {
        let world = World {
            exports: &*shared.exports,
            options_max: shared.limits.options_max,
            stopping: shared.stopping.load(Ordering::Relaxed),
        };
        let mut input = inbox.unread();
        let progress = machine.advance(&mut input, &world, &mut out);
        let used = inbox.len() - input.0.len();
        inbox.take(used);
        if let Progress::Chosen(session) = &progress {
            chosen(&session.name);
        }
        if !out.is_empty() {
            in_time(&*transport)?;
            send_all(&*transport, &out, &[])?;
            out.clear();
        }
        match progress {
            Progress::Again => {}
            Progress::More => {
                in_time(&*transport)?;
                if inbox.receive(&*transport, Wait::Block)? == 0 {
                    break "the client leaves";
                }
            }
            Progress::StartTls => {
                // It has to wait for the answer. What came before that is of somebody else, or must not count as secret.
                if inbox.len() > 0 {
                    break "something was said between the question for TLS and its answer";
                }
                let tls = tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                transport = transport.secure(tls)?;
            }
            Progress::Chosen(session) => {
                transport.set_timeout(None)?;
                return Ok(Some(Negotiated {
                    session,
                    inbox,
                    transport,
                }));
            }
            Progress::Close(why) => break why,
        }
    };
    tracing::debug!(why = ended, "negotiation ends");
    transport.close();
    Ok(None)
}

struct Connection<'a> {
    transport: &'a dyn Transport,
    shared: &'a Shared,
    inbox: Inbox,
    round: Round,
}

/// Why the transmission phase is over without an error of the socket.
#[derive(Debug)]
enum End {
    /// The client said goodbye, or just left.
    Left,
    /// The client breaks the protocol in a way that cannot be answered.
    Broken(&'static str),
}

impl Connection<'_> {
    fn serve(mut self) -> io::Result<()> {
        let ended = self.requests();
        // What was received whole is carried out, also for a client that is gone.
        let finished = self.round.finish();
        self.round.readers.finish();
        let Limits { drain_timeout, .. } = self.shared.limits;
        if !self.round.outbox.drain(drain_timeout) {
            tracing::warn!(
                export = self.round.session.name,
                "a connection ends with mutations unanswered"
            );
        }
        self.round.outbox.close();
        match ended? {
            End::Left => finished,
            End::Broken(why) => {
                tracing::info!(export = self.round.session.name, why, "connection cut");
                Ok(())
            }
        }
    }

    fn requests(&mut self) -> io::Result<End> {
        let style = self.round.session.terms.style;
        loop {
            let mut input = self.inbox.unread();
            match Header::parse(style, &mut input) {
                Ok(Some(header)) => {
                    let used = self.inbox.len() - input.0.len();
                    self.inbox.take(used);
                    if let Some(end) = self.request(&header)? {
                        return Ok(end);
                    }
                }
                Ok(None) if self.receive()? => {}
                Ok(None) => return Ok(End::Left),
                Err(_) => return Ok(End::Broken("the client sends something else than a request")),
            }
        }
    }

    /// Receives more; false at the end of the stream. Ends the round unless more is at hand.
    fn receive(&mut self) -> io::Result<bool> {
        if self.inbox.likely_more() && !self.round.is_long() {
            match self.inbox.receive(self.transport, Wait::Never) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                received => return Ok(received? > 0),
            }
        }
        self.round.finish()?;
        Ok(self.inbox.receive(self.transport, Wait::Block)? > 0)
    }

    fn request(&mut self, h: &Header) -> io::Result<Option<End>> {
        let form = h.form();
        match judge(h, &self.round.session.terms) {
            Ok(Request::Write { offset, len, fua }) => return self.write(form, offset, len as usize, fua),
            Ok(Request::Zero {
                offset,
                len,
                fua,
                may_trim,
            }) => self.mutate(
                form,
                Op::Zero {
                    offset,
                    len,
                    may_trim,
                },
                fua,
            )?,
            Ok(Request::Trim { offset, len, fua }) => self.mutate(form, Op::Trim { offset, len }, fua)?,
            Ok(Request::Flush) => self.mutate(form, Op::Flush, false)?,
            Ok(Request::Read {
                offset,
                len,
                unfragmented,
            }) => {
                let range = offset..offset + len;
                self.round
                    .inline
                    .push((form, Inline::Read { range, unfragmented }));
            }
            Ok(Request::Cache { offset, len }) => {
                let range = offset..offset + len;
                self.round.inline.push((form, Inline::Cache { range }));
            }
            Ok(Request::BlockStatus(asked)) => self.block_status(form, asked),
            Ok(Request::BlockStatusIn { payload }) => return self.block_status_in(h, payload),
            Ok(Request::Nothing { is_read }) => match form.style {
                Style::Structured if is_read => form.none(self.round.out.bytes()),
                _ => form.success(self.round.out.bytes()),
            },
            Ok(Request::Disconnect) => return Ok(Some(End::Left)),
            Err(refusal) => return self.refuse(h, &refusal),
        }
        Ok(None)
    }

    /// Answers with an error, after throwing the payload away.
    fn refuse(&mut self, h: &Header, refusal: &Refusal) -> io::Result<Option<End>> {
        if h.is_absurd(&self.round.session.terms) {
            return Ok(Some(End::Broken(
                "the client announces a payload of absurd length",
            )));
        }
        let mut left = h.payload_len() as usize;
        loop {
            let n = left.min(self.inbox.len());
            self.inbox.take(n);
            left -= n;
            if left == 0 {
                break;
            }
            if !self.receive()? {
                return Ok(Some(End::Left));
            }
        }
        self.say_no(h, refusal);
        Ok(None)
    }

    fn say_no(&mut self, h: &Header, refusal: &Refusal) {
        h.form()
            .failure(self.round.out.bytes(), refusal.errno, &refusal.text);
    }

    fn write(&mut self, form: Form, offset: u64, len: usize, fua: bool) -> io::Result<Option<End>> {
        let cost = MUTATION_BYTES + len;
        self.round.admit(cost)?;
        match self.payload(len) {
            Ok(Some(data)) => {
                self.round.payload += len;
                self.round.push(form, cost, Op::Write { offset, data }, fua);
                Ok(None)
            }
            // Half a write is no write.
            Ok(None) => {
                self.round.outbox.withdraw(cost);
                Ok(Some(End::Left))
            }
            Err(e) => {
                self.round.outbox.withdraw(cost);
                Err(e)
            }
        }
    }

    fn mutate(&mut self, form: Form, op: Op, fua: bool) -> io::Result<()> {
        self.round.admit(MUTATION_BYTES)?;
        self.round.push(form, MUTATION_BYTES, op, fua);
        Ok(())
    }

    fn block_status(&mut self, form: Form, asked: StatusAsked) {
        self.round.inline.push((form, Inline::BlockStatus(asked)));
    }

    /// A block status request whose payload names the contexts.
    fn block_status_in(&mut self, h: &Header, payload: usize) -> io::Result<Option<End>> {
        let Some(payload) = self.payload(payload)? else {
            return Ok(Some(End::Left));
        };
        match judge_status(h, &payload, &self.round.session.terms) {
            Ok(asked) => self.block_status(h.form(), asked),
            Err(refusal) => self.say_no(h, &refusal),
        }
        Ok(None)
    }

    /// A payload, in an allocation of its own: whoever keeps it pins nothing else. What has not yet arrived of it is
    /// received in place. `None` when the stream ends before it does.
    fn payload(&mut self, len: usize) -> io::Result<Option<Bytes>> {
        if self.inbox.len() >= len {
            return Ok(Some(Bytes::copy_from_slice(self.inbox.take(len))));
        }
        let mut data = Vec::with_capacity(len);
        data.extend_from_slice(self.inbox.take(self.inbox.len()));
        while data.len() < len {
            let received = match self.transport.recv(&mut data, Wait::Never) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.round.finish()?;
                    self.transport.recv(&mut data, Wait::Block)
                }
                received => received,
            };
            if received? == 0 {
                return Ok(None);
            }
        }
        // An allocator may give more room than it was asked for.
        self.inbox.put_back(&data[len..]);
        data.truncate(len);
        Ok(Some(data.into()))
    }
}

/// What one round has gathered.
struct Round {
    session: Arc<Session>,
    outbox: Arc<Outbox>,
    readers: Readers,
    batch: Vec<Mutation>,
    payload: usize,
    inline: Vec<(Form, Inline)>,
    out: Gathered,
}

impl Round {
    fn is_long(&self) -> bool {
        self.payload >= ROUND_BYTES || self.batch.len() + self.inline.len() >= ROUND_REQUESTS
    }

    /// Waits until the mutation fits in what may be in flight; before that, lets go of what this round holds of it.
    fn admit(&mut self, cost: usize) -> io::Result<()> {
        if !self.outbox.try_admit(cost) {
            self.finish()?;
            self.outbox.admit(cost);
        }
        Ok(())
    }

    fn push(&mut self, form: Form, cost: usize, op: Op, fua: bool) {
        let reply = Reply::to_client(self.outbox.clone(), form, cost);
        self.batch.push(Mutation { op, fua, reply });
    }

    /// Submits the mutations, runs the reads, sends every answer there is.
    fn finish(&mut self) -> io::Result<()> {
        if !self.batch.is_empty() {
            self.payload = 0;
            self.session.export.submit(mem::take(&mut self.batch));
        }
        let inline = mem::take(&mut self.inline);
        reads::run_all(
            inline,
            &self.session,
            &mut self.out,
            &self.outbox,
            &mut self.readers,
        )?;
        self.out.flush(&self.outbox)
    }
}
