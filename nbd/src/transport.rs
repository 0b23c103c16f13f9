//! What carries the bytes of a connection: a socket, or TLS over one.

use crate::tls::{Tls, TlsStream};
use rustix::{
    buffer::spare_capacity,
    io::Errno as Os,
    net::{self, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt},
};
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// Whether a call may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until at least one byte has moved, or the time of [`Transport::set_timeout`] is over.
    Block,
    /// Not at all: [`io::ErrorKind::WouldBlock`] instead.
    Never,
}

/// A stream of bytes in both directions, used by one reader and (one at a time) by several writers.
pub(crate) trait Transport: Send + Sync {
    /// Appends what has arrived to the spare capacity of `buf`, which must not be empty. 0 is the end of the stream.
    fn recv(&self, buf: &mut Vec<u8>, wait: Wait) -> io::Result<usize>;

    /// Takes a part of these slices. What it took may still be held back when it must not wait: see [`Transport::flush`].
    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize>;

    /// Sends what was taken and held back.
    fn flush(&self, wait: Wait) -> io::Result<()> {
        let _ = wait;
        Ok(())
    }

    /// Bounds every blocking call from now on, or all of them together.
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// The same connection in TLS, from the next byte on in both directions; only a bare socket can become that.
    fn secure(self: Arc<Self>, _tls: &Tls) -> io::Result<Arc<dyn Transport>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends the stream of requests: what has arrived can still be read.
    fn close_read(&self);

    /// Ends both directions and wakes whoever blocks in either.
    fn close(&self);
}

/// Sends two slices as if they were one, blocking.
pub(crate) fn send_all(to: &dyn Transport, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !(first.is_empty() && second.is_empty()) {
        let n = to.send(&[IoSlice::new(first), IoSlice::new(second)], Wait::Block)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_first = n.min(first.len());
        first = &first[of_first..];
        second = &second[n - of_first..];
    }
    Ok(())
}

/// A connected stream socket, unix or TCP.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn unix(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Without delay of small replies, and with keep-alive: a host that is gone must not hold its export for ever.
    pub(crate) fn tcp(fd: OwnedFd) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        sockopt::set_socket_keepalive(&fd, true)?;
        Ok(Self(fd))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Socket {
    fn recv(&self, buf: &mut Vec<u8>, wait: Wait) -> io::Result<usize> {
        let flags = match wait {
            Wait::Block => RecvFlags::empty(),
            Wait::Never => RecvFlags::DONTWAIT,
        };
        loop {
            match net::recv(&self.0, spare_capacity(buf), flags) {
                Err(Os::INTR) => {}
                other => return Ok(other?.0),
            }
        }
    }

    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize> {
        let flags = match wait {
            Wait::Block => SendFlags::NOSIGNAL,
            Wait::Never => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        };
        loop {
            match net::sendmsg(&self.0, bufs, &mut SendAncillaryBuffer::default(), flags) {
                Err(Os::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, timeout)?;
        Ok(sockopt::set_socket_timeout(
            &self.0,
            sockopt::Timeout::Send,
            timeout,
        )?)
    }

    fn secure(self: Arc<Self>, tls: &Tls) -> io::Result<Arc<dyn Transport>> {
        Ok(Arc::new(TlsStream::begin(self, tls)?))
    }

    fn close_read(&self) {
        // It fails only when the peer is gone already.
        let _ = net::shutdown(&self.0, Shutdown::Read);
    }

    fn close(&self) {
        let _ = net::shutdown(&self.0, Shutdown::Both);
    }
}
