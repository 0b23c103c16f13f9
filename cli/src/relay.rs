//! `nbd --stdio`: bytes between a client of NBD and the daemon, which serves it.
//!
//! The client is at stdin and stdout, or connects to a socket that was handed over (socket activation, as libnbd's tools
//! start a server that is written in brackets). Each client has a connection to the daemon of its own, which begins as that
//! of a command. Nothing here understands NBD: the daemon knows the export that the client gets by default.
//!
//! A relay ends when either side has ended. What the client has sent before that reaches the daemon, and the other way round.

use crate::error::CliError;
use control::{
    Failure, Question, Request,
    client::{self, Listener, Upgraded},
};
use listenfd::ListenFd;
use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    thread,
};

/// Bytes moved at a time in each direction.
const STEP_BYTES: usize = 256 << 10;

/// How to get a connection for a client.
pub(crate) struct Relay {
    pub socket: PathBuf,
    pub request: Request,
}

/// Nothing is shown while a connection is asked for.
struct Silent;

impl Listener for Silent {
    fn event(&mut self, _: control::Event) {}

    fn ask(&mut self, _: &Question) -> bool {
        false
    }
}

/// The two ends of a client.
struct Client {
    input: OwnedFd,
    output: OwnedFd,
}

impl Relay {
    /// Serves the client at stdin and stdout, or those of the socket that was handed over. `tell` is told why one of these
    /// was not served.
    pub(crate) fn run(&self, mut tell: impl FnMut(Failure)) -> Result<(), CliError> {
        let mut passed = ListenFd::from_env();
        match passed.len() {
            0 => self.stdio(),
            1 => self.sockets(&mut passed, &mut tell),
            n => Err(CliError::usage(format!(
                "{n} sockets were handed over ($LISTEN_FDS), one is enough"
            ))),
        }
    }

    fn stdio(&self) -> Result<(), CliError> {
        let Some(daemon) = self.connect()? else {
            return Ok(());
        };
        let file = |stream: io::Result<OwnedFd>, name: &str| {
            stream.map_err(|source| CliError::File {
                path: name.into(),
                source,
            })
        };
        let client = Client {
            input: file(io::stdin().as_fd().try_clone_to_owned(), "stdin")?,
            output: file(io::stdout().as_fd().try_clone_to_owned(), "stdout")?,
        };
        relay(client, daemon);
        Ok(())
    }

    fn sockets(&self, passed: &mut ListenFd, tell: &mut dyn FnMut(Failure)) -> Result<(), CliError> {
        // An export that cannot be had is said now, not to each client.
        let mut check = self.request.clone();
        check.options.dry_run = true;
        let outcome = client::call(&self.socket, &check, &mut Silent)?;
        outcome.result.map_err(Box::new)?;
        if self.request.options.dry_run {
            return Ok(());
        }
        let cannot = |source| CliError::File {
            path: "the socket of $LISTEN_FDS".into(),
            source,
        };
        let accept = acceptor(passed).map_err(cannot)?;
        loop {
            let client = accept().map_err(cannot)?;
            match self.connect() {
                Ok(Some(daemon)) => drop(thread::spawn(move || relay(client, daemon))),
                Ok(None) => {}
                Err(e) => tell(e.into_failure()),
            }
        }
    }

    /// A connection on which the daemon begins to speak NBD; `None` in a dry run.
    fn connect(&self) -> Result<Option<Upgraded>, CliError> {
        let (outcome, upgraded) = client::upgrade(&self.socket, &self.request, &mut Silent)?;
        outcome.result.map_err(Box::new)?;
        Ok((!self.request.options.dry_run).then_some(upgraded))
    }
}

/// Takes the socket that was handed over, unix or TCP.
fn acceptor(passed: &mut ListenFd) -> io::Result<Box<dyn Fn() -> io::Result<Client>>> {
    let client = |socket: OwnedFd| {
        Ok(Client {
            input: socket.try_clone()?,
            output: socket,
        })
    };
    if let Ok(Some(unix)) = passed.take_unix_listener(0) {
        unix.set_nonblocking(false)?;
        return Ok(Box::new(move || client(unix.accept()?.0.into())));
    }
    let tcp = passed.take_tcp_listener(0)?.ok_or(io::ErrorKind::NotFound)?;
    tcp.set_nonblocking(false)?;
    Ok(Box::new(move || {
        let (stream, _) = tcp.accept()?;
        stream.set_nodelay(true)?;
        client(stream.into())
    }))
}

/// Moves bytes in both directions until either side has ended.
fn relay(client: Client, daemon: Upgraded) {
    let Upgraded { stream, received } = daemon;
    let (input, output) = (File::from(client.input), File::from(client.output));
    let Ok(up) = stream.try_clone() else { return };
    thread::spawn(move || {
        copy(&input, &up);
        // The daemon carries out what it has, answers, and ends the connection.
        let _ = up.shutdown(Shutdown::Write);
    });
    if (&output).write_all(&received).is_ok() {
        copy(&stream, &output);
    }
    let _ = stream.shutdown(Shutdown::Both);
    // A socket, of any kind, ends for the client now, whoever else holds it; a pipe ends with the process.
    if let Ok(socket) = output.as_fd().try_clone_to_owned() {
        let _ = UnixStream::from(socket).shutdown(Shutdown::Both);
    }
}

/// Copies until the end of either; whichever fails is at its end.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buf = vec![0; STEP_BYTES];
    loop {
        match from.read(&mut buf) {
            Ok(0) => return,
            Ok(n) if to.write_all(&buf[..n]).is_ok() => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
