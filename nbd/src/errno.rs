//! The error numbers of the protocol.

use std::io;

/// What a request failed with, as far as the protocol can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only, or may not be written now.
    #[error("operation not permitted")]
    Perm = 1,
    /// The storage behind the export failed.
    #[error("input/output error")]
    Io = 5,
    /// No memory left for the request.
    #[error("out of memory")]
    NoMem = 12,
    /// The request makes no sense, or was not negotiated.
    #[error("invalid request")]
    Inval = 22,
    /// No space left, or a write past the end of the export.
    #[error("no space left")]
    NoSpc = 28,
    /// An unfragmented read was asked for that is too large for one.
    #[error("value too large")]
    Overflow = 75,
    /// A fast zeroing was asked for that would not be fast.
    #[error("not supported")]
    NotSup = 95,
    /// The server is about to stop.
    #[error("server is shutting down")]
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Perm,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpc
            }
            io::ErrorKind::OutOfMemory => Self::NoMem,
            io::ErrorKind::InvalidInput => Self::Inval,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_keep_their_meaning() {
        let of = |kind: io::ErrorKind| Errno::from(&io::Error::from(kind));
        assert_eq!(of(io::ErrorKind::StorageFull), Errno::NoSpc);
        assert_eq!(of(io::ErrorKind::PermissionDenied), Errno::Perm);
        assert_eq!(of(io::ErrorKind::BrokenPipe), Errno::Io);
        assert_eq!(Errno::Shutdown.code(), 108);
    }
}
