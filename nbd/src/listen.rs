//! Listening sockets, unix and TCP. Inherited sockets (socket activation) will be a third kind.

use crate::transport::{Socket, Transport};
use rustix::{
    fs::{self, Mode},
    net::{self, AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::FileTypeExt, net::UnixListener, net::UnixStream},
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
    /// No thread could be started.
    #[error("no thread to accept connections with")]
    Thread(#[source] io::Error),
    /// The server was stopped.
    #[error("the server is stopped")]
    Stopped,
}

/// A socket that clients connect to.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) fn accept(&self) -> io::Result<Arc<dyn Transport>> {
        Ok(match self {
            Self::Unix(l, _) => Arc::new(Socket::unix(l.accept()?.0.into())),
            Self::Tcp(l) => Arc::new(Socket::tcp(l.accept()?.0.into())?),
        })
    }

    /// Wakes whoever accepts, for good.
    pub(crate) fn close(&self) {
        let _ = match self {
            Self::Unix(l, path) => {
                let _ = fs::unlink(path);
                net::shutdown(l, Shutdown::Both)
            }
            Self::Tcp(l) => net::shutdown(l, Shutdown::Both),
        };
    }
}

pub(crate) fn tcp(addr: SocketAddr) -> Result<(Listener, SocketAddr), ListenError> {
    let failed = |source| ListenError::Tcp { addr, source };
    let listener = TcpListener::bind(addr).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((Listener::Tcp(listener), bound))
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
        net::listen(&socket, 128)?;
        Ok(socket)
    };
    let socket = make().map_err(|e: rustix::io::Errno| ListenError::Unix {
        path: path.into(),
        source: e.into(),
    })?;
    Ok(Listener::Unix(socket.into(), path.into()))
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
