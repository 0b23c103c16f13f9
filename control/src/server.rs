//! The daemon's end of a connection, for blocking threads.

use crate::{Answer, Event, Outcome, Question, Request, codec, codec::CodecError};
use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

/// What a client has to say what it wants. Nothing that comes behind its request is held to it: questions are answered by people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest request, its line end included.
    pub line_bytes_max: usize,
    /// How long the whole of it may take, from the first look to its line end.
    pub time: Duration,
}

impl Patience {
    /// Reads the line of a request; what is behind it stays in the buffer.
    fn read_line(self, from: &mut BufReader<UnixStream>) -> Result<Option<Vec<u8>>, CodecError> {
        let until = Instant::now() + self.time;
        let mut line = Vec::new();
        loop {
            // Each byte that drips in begins a new wait of the kernel's: what is left gets less.
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CodecError::TooSlow(self.time));
            }
            from.get_ref().set_read_timeout(Some(left))?;
            let came = match from.fill_buf() {
                Ok([]) if line.is_empty() => return Ok(None),
                Ok([]) => return Err(CodecError::CutOff(line.len())),
                Ok(came) => came,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Out of time: said at the top.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e.into()),
            };
            let end = came.iter().position(|byte| *byte == b'\n');
            let take = end.unwrap_or(came.len());
            if line.len() + take >= self.line_bytes_max {
                return Err(CodecError::TooLong(self.line_bytes_max));
            }
            line.extend_from_slice(&came[..take]);
            from.consume(take + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }
}

/// Listens at `path` with a mode, in place of a socket that nobody answers at any more.
///
/// The socket gets its mode under another name and is then renamed, so that it is never open to others and a client
/// never finds half of it.
///
/// # Errors
/// `AddrInUse` when a daemon answers there; else as the file system says.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another daemon answers at {}", path.display()),
        ));
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    match fs::remove_file(fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(fresh)?;
    fs::set_permissions(fresh, fs::Permissions::from_mode(mode))?;
    fs::rename(fresh, path)?;
    Ok(listener)
}

/// One connection, after its request was read.
#[derive(Debug)]
pub struct Session<S: Read + Write = UnixStream> {
    stream: BufReader<S>,
}

impl Session<UnixStream> {
    /// As [`Session::accept`], of a client that has only so much patience of ours. Afterwards reads wait for ever.
    ///
    /// # Errors
    /// As [`Session::accept`], and when the request is too long or does not come in time.
    pub fn accept_within(
        stream: UnixStream,
        patience: Patience,
    ) -> Result<Option<(Self, Request)>, (Self, CodecError)> {
        let mut stream = BufReader::new(stream);
        let line = patience.read_line(&mut stream);
        let line = line.and_then(|line| {
            stream.get_ref().set_read_timeout(None)?;
            Ok(line)
        });
        Self::accepted(stream, line)
    }
}

impl<S: Read + Write> Session<S> {
    /// Reads the request; `None` when the client went away without one.
    ///
    /// A request that cannot be understood comes back as an error together with the session, so that the daemon can
    /// answer it ([`Session::done`]) before it closes.
    ///
    /// # Errors
    /// When the line is not a request of this version.
    pub fn accept(stream: S) -> Result<Option<(Self, Request)>, (Self, CodecError)> {
        let mut stream = BufReader::new(stream);
        let line = codec::read_line(&mut stream);
        Self::accepted(stream, line)
    }

    fn accepted(
        stream: BufReader<S>,
        line: Result<Option<Vec<u8>>, CodecError>,
    ) -> Result<Option<(Self, Request)>, (Self, CodecError)> {
        let request = match line {
            Ok(None) => return Ok(None),
            Ok(Some(line)) => codec::decode_request(&line),
            Err(e) => Err(e),
        };
        let session = Self { stream };
        match request {
            Ok(request) => Ok(Some((session, request))),
            Err(e) => Err((session, e)),
        }
    }

    /// Sends an event.
    ///
    /// # Errors
    /// When the client went away: it has detached, the work may go on.
    pub fn send(&mut self, event: &Event) -> Result<(), CodecError> {
        let line = codec::encode(event)?;
        self.stream.get_mut().write_all(&line)?;
        Ok(())
    }

    /// Asks and waits. A client that goes away, or answers something else, has said no.
    pub fn ask(&mut self, question: Question) -> bool {
        self.send(&Event::Ask { question }).is_ok()
            && matches!(
                codec::read_line(&mut self.stream).map(|line| line.map(|l| codec::decode(&l))),
                Ok(Some(Ok(Answer { yes: true })))
            )
    }

    /// Sends the end.
    ///
    /// # Errors
    /// When the client went away.
    pub fn done(mut self, outcome: Outcome) -> Result<(), CodecError> {
        self.send(&Event::Done(Box::new(outcome)))
    }

    /// Sends the end, and gives the connection to another protocol; `None` when the client has sent more than its request,
    /// which then is lost.
    ///
    /// # Errors
    /// When the client went away.
    pub fn upgrade(mut self, outcome: Outcome) -> Result<Option<S>, CodecError> {
        self.send(&Event::Done(Box::new(outcome)))?;
        let is_clean = self.stream.buffer().is_empty();
        Ok(is_clean.then(|| self.stream.into_inner()))
    }

    /// The stream below, for timeouts and the like.
    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Code, Command, Failure, HeadLine, Options, Reply, Step,
        client::{self, ClientError, Listener},
        reply::PinsReply,
    };
    use std::thread;

    /// A directory of its own for a socket; unix socket paths are short, so not under the target directory.
    fn socket(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("backstay-control-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir.join("control.sock")
    }

    struct Ear {
        seen: Vec<Event>,
        yes: bool,
    }

    impl Listener for Ear {
        fn event(&mut self, event: Event) {
            self.seen.push(event);
        }

        fn ask(&mut self, _: &Question) -> bool {
            self.yes
        }
    }

    fn question() -> Question {
        Question::Text {
            lines: vec![],
            question: "Go on?".into(),
        }
    }

    #[test]
    fn a_conversation_runs_to_its_one_outcome() {
        let path = socket("whole");
        let listener = bind(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let daemon = thread::spawn(move || {
            // The first connection is the probe of the second `bind`.
            assert!(Session::accept(listener.accept().unwrap().0).unwrap().is_none());
            for _ in 0..2 {
                let (mut s, request) = Session::accept(listener.accept().unwrap().0).unwrap().unwrap();
                assert_eq!(
                    request.command,
                    Command::Start {
                        context: 1,
                        dirty: false
                    }
                );
                s.send(&Event::Head(HeadLine {
                    host: "rec".into(),
                    context: None,
                }))
                .unwrap();
                s.send(&Event::Step(Step::NoMounted)).unwrap();
                let outcome = if s.ask(question()) {
                    Outcome::ok(Reply::Pins(PinsReply::default()))
                } else {
                    Outcome::failed(Failure::new(Code::Refused, "not confirmed"))
                };
                s.done(outcome.with_next("rtmnt -C 1", "rec")).unwrap();
            }
        });
        let request = Request::new(
            Command::Start {
                context: 1,
                dirty: false,
            },
            Options::default(),
        );
        for yes in [true, false] {
            let mut ear = Ear { seen: vec![], yes };
            let outcome = client::call(&path, &request, &mut ear).unwrap();
            assert_eq!(outcome.code(), if yes { Code::Done } else { Code::Refused });
            assert_eq!(outcome.next.unwrap().command, "rtmnt -C 1");
            assert_eq!(ear.seen.len(), 2);
        }
        daemon.join().unwrap();
        // A dead daemon's socket is told from a living one, and replaced.
        let mut ear = Ear {
            seen: vec![],
            yes: true,
        };
        assert!(matches!(
            client::call(&path, &request, &mut ear),
            Err(ClientError::Unreachable { .. })
        ));
        drop(bind(&path, 0o600).unwrap());
    }

    #[test]
    fn a_connection_goes_on_in_another_protocol() {
        let path = socket("upgrade");
        let listener = bind(&path, 0o600).unwrap();
        let daemon = thread::spawn(move || {
            // The first connection is that of a client that cannot wait.
            for clean in [false, true] {
                let (session, _) = Session::accept(listener.accept().unwrap().0).unwrap().unwrap();
                let stream = session.upgrade(Outcome::ok(Reply::Nbd)).unwrap();
                assert_eq!(stream.is_some(), clean);
                let Some(mut stream) = stream else { continue };
                stream.write_all(b"NBDMAGIC").unwrap();
                let mut said = [0; 4];
                stream.read_exact(&mut said).unwrap();
                assert_eq!(&said, b"flag");
            }
        });
        let export = "c1/data".to_owned();
        let request = Request::new(Command::Nbd { export }, Options::default());
        let mut hasty = UnixStream::connect(&path).unwrap();
        let line = [codec::encode(&request).unwrap(), b"flag".to_vec()].concat();
        hasty.write_all(&line).unwrap();
        let mut ear = Ear {
            seen: vec![],
            yes: true,
        };
        let (outcome, mut after) = client::upgrade(&path, &request, &mut ear).unwrap();
        assert_eq!(outcome.result, Ok(Reply::Nbd));
        let mut heard = after.received.clone();
        heard.resize(8, 0);
        after
            .stream
            .read_exact(&mut heard[after.received.len()..])
            .unwrap();
        assert_eq!(heard, b"NBDMAGIC");
        after.stream.write_all(b"flag").unwrap();
        daemon.join().unwrap();
    }

    #[test]
    fn a_client_that_goes_away_has_said_no() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = theirs;
        let request = Request::new(Command::NodeInfo, Options::default());
        client.write_all(&codec::encode(&request).unwrap()).unwrap();
        let (mut session, _) = Session::accept(ours).unwrap().unwrap();
        drop(client);
        assert!(!session.ask(question()));
    }

    #[test]
    fn a_request_has_its_time_and_its_length_and_what_follows_has_not() {
        let request = codec::encode(&Request::new(Command::NodeInfo, Options::default())).unwrap();
        let patience = Patience {
            line_bytes_max: request.len(),
            time: Duration::from_millis(200),
        };
        // A byte now and then, for ever: no single wait is long.
        let (ours, mut drip) = UnixStream::pair().unwrap();
        let dripping = thread::spawn(move || {
            while drip.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let long = Patience {
            line_bytes_max: 1 << 20,
            ..patience
        };
        let (session, error) = Session::accept_within(ours, long).unwrap_err();
        assert!(matches!(error, CodecError::TooSlow(_)), "{error}");
        drop(session);
        dripping.join().unwrap();
        // One byte more than it may have, which never ends.
        let (ours, mut client) = UnixStream::pair().unwrap();
        client.write_all(&vec![b'x'; request.len()]).unwrap();
        let error = Session::accept_within(ours, patience).unwrap_err().1;
        assert!(
            matches!(error, CodecError::TooLong(n) if n == request.len()),
            "{error}"
        );
        let (ours, mut client) = UnixStream::pair().unwrap();
        client.write_all(b"{").unwrap();
        drop(client);
        let error = Session::accept_within(ours, patience).unwrap_err().1;
        assert!(matches!(error, CodecError::CutOff(1)), "{error}");
        // In pieces, and within its time; then a person thinks for longer.
        let (ours, mut client) = UnixStream::pair().unwrap();
        let answering = thread::spawn(move || {
            for piece in request.chunks(7) {
                client.write_all(piece).unwrap();
            }
            thread::sleep(Duration::from_millis(600));
            client
                .write_all(&codec::encode(&Answer { yes: true }).unwrap())
                .unwrap();
            client
        });
        let patience = Patience {
            time: Duration::from_secs(60),
            ..patience
        };
        let (mut session, got) = Session::accept_within(ours, patience).unwrap().unwrap();
        assert_eq!(got.command, Command::NodeInfo);
        assert_eq!(session.stream().read_timeout().unwrap(), None);
        assert!(session.ask(question()));
        answering.join().unwrap();
    }

    #[test]
    fn a_bad_request_can_still_be_answered() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        client.write_all(b"{\"version\":2}\n").unwrap();
        let (session, error) = Session::accept(ours).unwrap_err();
        session
            .done(Outcome::failed(Failure::from_error(Code::Usage, &error)))
            .unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.contains("version 2"), "{text}");
    }
}
