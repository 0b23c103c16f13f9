//! A client whose server may go away for a while: what stands between a block device and a daemon that is restarted.
//!
//! # Overview
//!
//! A [`Relay`] is a server of one export for its own clients, and a client of the real server. It hands requests and answers
//! through. When the connection to the server breaks it connects again and sends once more what was not answered; its client
//! sees a pause. Only when the server stays away for longer than its *patience*, or refuses the export, are requests answered
//! with `EIO`; it goes on asking, and serves again when the server does.
//!
//! Simple replies only, and nothing but the export's own requests: the clients are `nbdfuse` and the kernel, which need no more.
//!
//! # Invariants
//!
//! * A request is answered once. It is forgotten when its answer is complete here, and only then handed on.
//! * What was not answered is sent again, and on a connection once. A write that was carried out and not answered is carried
//!   out twice, with the same bytes: nobody else may write there before it is answered.
//! * A connection is over when the server has closed its end, which is behind all that it carries out there: what is sent again
//!   is never overtaken by what was sent before.
//! * An error that the server answers is final and handed on: only a broken connection is.
//! * Another export under the same name (its size or its flags differ) is refused. What else it might be is for the server to
//!   tell apart by the name.
//! * Whoever ends a session can do so at once: no lock that it needs is held over a read or a write.
//!
//! # What it does not do
//!
//! It cannot know what the server lost. Where an answered write may be gone after a restart, patience must be zero: then the
//! first break is the end, and everything is answered with `EIO`.

mod greet;

use crate::{
    Errno,
    proto::{Put, Take, cmd, magic},
};
use greet::Told;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Bytes of a request before its payload, and of an answer before its data.
const REQUEST_BYTES: usize = 28;
const ANSWER_BYTES: usize = 16;
/// Bytes of unanswered requests of one client; above it its socket is not read.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// The longest payload in either direction.
const PAYLOAD_BYTES_MAX: u32 = crate::BlockSizes::PAYLOAD_MAX;
/// Pause between attempts to connect again, while somebody waits for it and when requests fail anyway.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// Which export, where, and how long it may be away.
#[derive(Clone, Debug)]
pub struct Relayed {
    /// The server's unix socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
    /// How long requests wait for a server that is away. Zero: they never do, and a connection that broke is not made again.
    pub patience: Duration,
    /// The user that the server must be, if the socket may be another's by now.
    pub server: Option<u32>,
}

/// Why there is nothing to relay to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The server cannot be reached, or does not keep to the protocol.
    #[error("{}: {source}", socket.display())]
    Away {
        /// The server's socket.
        socket: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The server does not give the export away.
    #[error("{0}")]
    Refused(String),
}

/// What happens between a relay and its server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEvent {
    /// The connection broke; requests wait.
    Lost,
    /// It is made again, after so long.
    Back(Duration),
    /// Requests fail from now on: the server has been away for too long, or refuses, as it says.
    Failing(String),
}

/// Hands one export on to clients of its own.
pub struct Relay {
    relayed: Relayed,
    told: Told,
    tell: Box<dyn Fn(RelayEvent) + Send + Sync>,
}

impl Relay {
    /// A relay to an export that is served now. `tell` learns what happens to the connections later.
    ///
    /// # Errors
    /// When the export is not served.
    pub fn open(
        relayed: Relayed,
        tell: impl Fn(RelayEvent) + Send + Sync + 'static,
    ) -> Result<Self, RelayError> {
        let (_, told) = dial(&relayed)?;
        Ok(Self {
            relayed,
            told,
            tell: Box::new(tell),
        })
    }

    /// Serves one client until it leaves.
    ///
    /// # Errors
    /// When its socket fails, or it breaks the protocol.
    pub fn serve(&self, client: UnixStream) -> io::Result<()> {
        if !greet::answer(&client, &self.told)? {
            return Ok(());
        }
        let session = Session {
            relay: self,
            client: &client,
            answering: Mutex::default(),
            sending: Mutex::default(),
            up: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        thread::scope(|scope| {
            let connecting = thread::Builder::new()
                .name("relay-server".into())
                .spawn_scoped(scope, || session.keep_connected())?;
            let ended = session.take_requests();
            session.end();
            // It panics only by a defect, which it has reported.
            let _ = connecting.join();
            ended
        })
    }

    fn dial(&self) -> Result<UnixStream, RelayError> {
        let (stream, told) = dial(&self.relayed)?;
        if told != self.told {
            return Err(RelayError::Refused(format!(
                "{} is another export than before",
                self.relayed.export
            )));
        }
        Ok(stream)
    }
}

fn dial(relayed: &Relayed) -> Result<(UnixStream, Told), RelayError> {
    let away = |source| RelayError::Away {
        socket: relayed.socket.clone(),
        source,
    };
    let stream = UnixStream::connect(&relayed.socket).map_err(away)?;
    if let Some(user) = relayed.server {
        let listens = rustix::net::sockopt::socket_peercred(&stream).map_err(|e| away(e.into()))?;
        if listens.uid.as_raw() != user {
            let text = format!("user {} listens there, not {user}", listens.uid.as_raw());
            return Err(away(io::Error::new(io::ErrorKind::PermissionDenied, text)));
        }
    }
    let told = greet::ask(&stream, &relayed.export)
        .map_err(away)?
        .map_err(RelayError::Refused)?;
    Ok((stream, told))
}

/// What a relay looks at in a request.
struct Header {
    command: u16,
    cookie: u64,
    len: u32,
}

impl Header {
    fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut t = Take(bytes);
        let (magic, _flags, command) = (t.u32()?, t.u16()?, t.u16()?);
        let (cookie, _offset, len) = (t.u64()?, t.u64()?, t.u32()?);
        (magic == magic::REQUEST).then_some(Self { command, cookie, len })
    }
}

/// A request that is not answered.
struct Unanswered {
    cookie: u64,
    /// The request as it came, with its payload.
    bytes: Arc<[u8]>,
    /// Bytes of data that a successful answer brings.
    brings: usize,
    /// The connection it was last sent on.
    sent_on: u64,
}

#[derive(Default)]
struct State {
    /// Numbers of requests, in the order in which they came.
    last: u64,
    unanswered: BTreeMap<u64, Unanswered>,
    cookies: HashMap<u64, u64>,
    bytes: usize,
    /// Requests are answered with an error.
    failing: bool,
    /// The client is gone.
    ended: bool,
}

impl State {
    fn take(&mut self, number: u64) -> Option<Unanswered> {
        let request = self.unanswered.remove(&number)?;
        self.cookies.remove(&request.cookie);
        self.bytes -= request.bytes.len();
        Some(request)
    }
}

/// The connection to the server that is up now.
#[derive(Clone)]
struct Up {
    number: u64,
    stream: Arc<UnixStream>,
}

/// One client.
struct Session<'a> {
    relay: &'a Relay,
    client: &'a UnixStream,
    /// Held while an answer is written, so that its bytes stay together.
    answering: Mutex<()>,
    /// So for requests.
    sending: Mutex<()>,
    up: Mutex<Option<Up>>,
    state: Mutex<State>,
    /// A request was answered, or the client left.
    changed: Condvar,
}

impl Session<'_> {
    /// Takes what the client asks for, until it leaves.
    fn take_requests(&self) -> io::Result<()> {
        let mut input = BufReader::with_capacity(128 << 10, self.client);
        loop {
            let mut head = [0; REQUEST_BYTES];
            match input.read_exact(&mut head) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            let header = Header::parse(&head)
                .ok_or_else(|| broken("the client sends something else than a request"))?;
            if header.command == cmd::DISC {
                return Ok(());
            }
            let payload = if header.command == cmd::WRITE {
                header.len
            } else {
                0
            };
            if payload > PAYLOAD_BYTES_MAX {
                return Err(broken("the client announces a payload of absurd length"));
            }
            let mut bytes = Vec::with_capacity(REQUEST_BYTES + payload as usize);
            bytes.extend_from_slice(&head);
            bytes.resize(REQUEST_BYTES + payload as usize, 0);
            input.read_exact(&mut bytes[REQUEST_BYTES..])?;
            let is_read = header.command == cmd::READ;
            if is_read && header.len > PAYLOAD_BYTES_MAX {
                self.refuse(header.cookie, Errno::Inval)?;
                continue;
            }
            let request = Unanswered {
                cookie: header.cookie,
                bytes: bytes.into(),
                brings: if is_read { header.len as usize } else { 0 },
                sent_on: 0,
            };
            match self.note(request)? {
                Some(number) => self.send(number),
                None => self.refuse(header.cookie, Errno::Io)?,
            }
        }
    }

    /// Notes a request, when there is room; its number, or `None` when it is to fail.
    fn note(&self, request: Unanswered) -> io::Result<Option<u64>> {
        let mut state = self.state.lock();
        let len = request.bytes.len();
        while !state.ended && !state.unanswered.is_empty() && state.bytes + len > IN_FLIGHT_BYTES_MAX {
            self.changed.wait(&mut state);
        }
        if state.failing {
            return Ok(None);
        }
        state.last += 1;
        let number = state.last;
        if state.cookies.insert(request.cookie, number).is_some() {
            return Err(broken("the client uses one cookie for two requests"));
        }
        state.bytes += len;
        state.unanswered.insert(number, request);
        Ok(Some(number))
    }

    /// Sends a request on the connection that is up, unless it was; without one it waits for the next.
    fn send(&self, number: u64) {
        let _sending = self.sending.lock();
        let Some(up) = self.up.lock().clone() else {
            return;
        };
        let bytes = {
            let mut state = self.state.lock();
            let fresh = state.unanswered.get_mut(&number);
            let Some(request) = fresh.filter(|r| r.sent_on != up.number) else {
                return;
            };
            request.sent_on = up.number;
            Arc::clone(&request.bytes)
        };
        if (&*up.stream).write_all(&bytes).is_err() {
            // It is over when the server has closed its end of it.
            let _ = up.stream.shutdown(Shutdown::Write);
        }
    }

    fn answer(&self, bytes: &[u8]) -> io::Result<()> {
        let _answering = self.answering.lock();
        let mut client = self.client;
        client.write_all(bytes)
    }

    fn refuse(&self, cookie: u64, errno: Errno) -> io::Result<()> {
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        answer.put_u32(magic::SIMPLE_REPLY);
        answer.put_u32(errno.code());
        answer.put_u64(cookie);
        self.answer(&answer)
    }

    /// The client is gone, or is to go.
    fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
        let _ = self.client.shutdown(Shutdown::Both);
        if let Some(up) = &*self.up.lock() {
            let _ = up.stream.shutdown(Shutdown::Both);
        }
    }

    fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Connects to the server, again and again, as long as the client is there.
    fn keep_connected(&self) {
        let patience = self.relay.relayed.patience;
        let mut number = 0;
        let mut away = Instant::now();
        while !self.has_ended() {
            let pause = match self.relay.dial() {
                Ok(stream) => {
                    if number > 0 {
                        (self.relay.tell)(RelayEvent::Back(away.elapsed()));
                    }
                    number += 1;
                    self.state.lock().failing = false;
                    if let Err(e) = self.use_connection(number, stream) {
                        (self.relay.tell)(RelayEvent::Failing(e.to_string()));
                        return self.end();
                    }
                    away = Instant::now();
                    if self.has_ended() {
                        return;
                    }
                    if patience.is_zero() {
                        return self.fail("the server is gone");
                    }
                    (self.relay.tell)(RelayEvent::Lost);
                    Duration::ZERO
                }
                Err(RelayError::Refused(why)) => {
                    self.fail(&why);
                    LATER
                }
                // It may be another run of the server by now.
                Err(e) if patience.is_zero() => return self.fail(&e.to_string()),
                Err(e) if away.elapsed() >= patience => {
                    self.fail(&e.to_string());
                    LATER
                }
                Err(_) => SOON,
            };
            self.pause(pause);
        }
    }

    /// Waits, unless the client leaves.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.ended && !self.changed.wait_until(&mut state, until).timed_out() {}
    }

    /// Answers all that waits with an error, and what comes from now on.
    fn fail(&self, why: &str) {
        let waiting = {
            let mut state = self.state.lock();
            if !std::mem::replace(&mut state.failing, true) {
                (self.relay.tell)(RelayEvent::Failing(why.to_owned()));
            }
            let numbers: Vec<u64> = state.unanswered.keys().copied().collect();
            numbers
                .into_iter()
                .filter_map(|n| state.take(n))
                .collect::<Vec<_>>()
        };
        self.changed.notify_all();
        for request in waiting {
            if self.refuse(request.cookie, Errno::Io).is_err() {
                return self.end();
            }
        }
    }

    /// Sends what waits, and hands answers on until the connection breaks.
    fn use_connection(&self, number: u64, stream: UnixStream) -> io::Result<()> {
        let stream = Arc::new(stream);
        let answers = &*stream;
        thread::scope(|scope| {
            let reading = thread::Builder::new()
                .name("relay-answers".into())
                .spawn_scoped(scope, || {
                    // Why it broke is of no use: what was not answered is sent again.
                    let _ = self.hand_on(number, answers);
                    let _ = answers.shutdown(Shutdown::Both);
                })?;
            *self.up.lock() = Some(Up {
                number,
                stream: Arc::clone(&stream),
            });
            if self.has_ended() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            let waiting: Vec<u64> = self.state.lock().unanswered.keys().copied().collect();
            waiting.into_iter().for_each(|n| self.send(n));
            let _ = reading.join();
            *self.up.lock() = None;
            Ok(())
        })
    }

    /// Hands the answers of a connection on.
    fn hand_on(&self, connection: u64, answers: &UnixStream) -> io::Result<()> {
        let mut input = BufReader::with_capacity(128 << 10, answers);
        let mut answer = Vec::new();
        loop {
            answer.clear();
            answer.resize(ANSWER_BYTES, 0);
            input.read_exact(&mut answer)?;
            let mut head = Take(&answer);
            if head.u32() != Some(magic::SIMPLE_REPLY) {
                return Err(broken("the server sends something else than an answer"));
            }
            let (Some(error), Some(cookie)) = (head.u32(), head.u64()) else {
                return Err(broken("an answer without its end"));
            };
            let known = {
                let state = self.state.lock();
                let number = state.cookies.get(&cookie).copied();
                number.and_then(|n| state.unanswered.get(&n).map(|r| (n, r.sent_on, r.brings)))
            };
            let Some((number, _, brings)) = known.filter(|(_, on, _)| *on == connection) else {
                return Err(broken("the server answers what it was not asked"));
            };
            if error == 0 && brings > 0 {
                answer.resize(ANSWER_BYTES + brings, 0);
                input.read_exact(&mut answer[ANSWER_BYTES..])?;
            }
            self.state.lock().take(number);
            self.changed.notify_all();
            if let Err(e) = self.answer(&answer) {
                self.end();
                return Err(e);
            }
        }
    }
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
