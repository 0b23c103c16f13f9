//! Listening sockets, unix and TCP: made here, or made by somebody else and handed over.
//!
//! A socket that was handed over (socket activation) belongs to whoever made it and outlives us: it is never shut down, and
//! who connects when we are gone waits for the next who listens. So accepting is woken by an event of its own.

use crate::transport::{Socket, Transport};
use rustix::{
    event::{self, EventfdFlags, PollFd, PollFlags},
    fs::{self, Mode},
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileTypeExt, net::UnixListener, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The unix socket cannot be made.
    #[error("cannot listen on {path}")]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody listens there, or it is not a socket.
    #[error("cannot listen on {path}: {what}")]
    Taken {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {addr}")]
    Tcp {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A socket that was handed over cannot be used.
    #[error("a socket that was handed over cannot be used")]
    Adopted(#[source] io::Error),
    /// No thread could be started.
    #[error("no thread to accept connections with")]
    Thread(#[source] io::Error),
    /// The server was stopped.
    #[error("the server is stopped")]
    Stopped,
}

/// A socket that clients connect to.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Listening,
    /// The file of a unix socket that is ours.
    path: Option<PathBuf>,
    /// Written once, when nobody shall accept any more.
    closed: OwnedFd,
}

#[derive(Debug)]
enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(l) => l.as_fd(),
            Self::Tcp(l) => l.as_fd(),
        }
    }
}

impl Listener {
    fn new(socket: Listening, path: Option<PathBuf>) -> io::Result<Self> {
        // Whoever polled a socket may find that another has accepted meanwhile.
        match &socket {
            Listening::Unix(l) => l.set_nonblocking(true)?,
            Listening::Tcp(l) => l.set_nonblocking(true)?,
        }
        Ok(Self {
            socket,
            path,
            closed: event::eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// The next client; `None` when the listener was closed.
    pub(crate) fn accept(&self) -> io::Result<Option<Arc<dyn Transport>>> {
        loop {
            let mut fds = [
                PollFd::new(&self.closed, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            match event::poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                done => done?,
            };
            if !fds[0].revents().is_empty() {
                return Ok(None);
            }
            let accepted = match &self.socket {
                Listening::Unix(l) => l.accept().map(|(s, _)| Socket::unix(s.into())),
                Listening::Tcp(l) => l.accept().and_then(|(s, _)| Socket::tcp(s.into())),
            };
            match accepted {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return Ok(Some(Arc::new(accepted?))),
            }
        }
    }

    /// Wakes whoever accepts, for good.
    pub(crate) fn close(&self) {
        if let Some(path) = &self.path {
            let _ = fs::unlink(path);
        }
        // It cannot fail: nothing else is ever written there.
        let _ = rustix::io::write(&self.closed, &1u64.to_ne_bytes());
    }
}

/// Clients that may wait to be accepted; the kernel takes no more than `net.core.somaxconn`. Many do not wait at a full one but
/// give up (libnbd: "server backlog overflowed").
const BACKLOG: i32 = 4096;

pub(crate) fn tcp(addr: SocketAddr) -> Result<(Listener, SocketAddr), ListenError> {
    let failed = |source| ListenError::Tcp { addr, source };
    let listener = TcpListener::bind(addr).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let listener = Listener::new(Listening::Tcp(listener), None).map_err(failed)?;
    Ok((listener, bound))
}

/// A socket that was handed over.
pub(crate) fn adopted_unix(listener: UnixListener) -> Result<Listener, ListenError> {
    Listener::new(Listening::Unix(listener), None).map_err(ListenError::Adopted)
}

/// A socket that was handed over.
pub(crate) fn adopted_tcp(listener: TcpListener) -> Result<Listener, ListenError> {
    Listener::new(Listening::Tcp(listener), None).map_err(ListenError::Adopted)
}

pub(crate) fn unix(path: &Path, mode: u32) -> Result<Listener, ListenError> {
    remove_stale(path)?;
    let make = || {
        let socket = net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Before it listens, nobody can connect: there is no moment at which the mode is not yet right.
        fs::chmod(path, Mode::from_raw_mode(mode))?;
        net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    let failed = |source| ListenError::Unix {
        path: path.into(),
        source,
    };
    let socket = make().map_err(|e: rustix::io::Errno| failed(e.into()))?;
    Listener::new(Listening::Unix(socket.into()), Some(path.into())).map_err(failed)
}

/// Removes the socket of a server that is gone.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let taken = |what| {
        Err(ListenError::Taken {
            path: path.into(),
            what,
        })
    };
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if !meta.file_type().is_socket() => taken("it is not a socket"),
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|source| ListenError::Unix {
                    path: path.into(),
                    source,
                })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => taken("another server listens there"),
        },
    }
}
