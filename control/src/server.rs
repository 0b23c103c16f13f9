//! The daemon's end of a connection, for blocking threads.

use crate::{Answer, Event, Outcome, Question, Request, codec, codec::CodecError};
use std::{
    fs,
    io::{self, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

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
        let request = match codec::read_line(&mut stream) {
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
