//! One connection to an NBD server.

use super::wire::{self, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE};
use model::ByteRange;
use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Why a request, or the whole connection, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection is gone.
    #[error("nbd connection: {0}")]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error("nbd protocol: {0}")]
    Protocol(String),
    /// The server refused the export (reply type and its words).
    #[error("nbd option refused with {reply:#x}: {text}")]
    Refused {
        /// `NBD_REP_ERR_*`.
        reply: u32,
        /// What the server said.
        text: String,
    },
    /// The server answered a request with an error.
    #[error("nbd request failed with errno {errno} {text}")]
    Server {
        /// The error number.
        errno: u32,
        /// What the server said, if it did.
        text: String,
    },
}

impl Error {
    /// The error number, when the server answered one: the connection goes on.
    #[must_use]
    pub fn errno(&self) -> Option<u32> {
        match self {
            Self::Server { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

pub(super) fn protocol<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::Protocol(text.into()))
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads bytes.
    Read(ByteRange),
    /// Writes bytes.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// Durable when answered.
        fua: bool,
    },
    /// Makes all answered writes durable.
    Flush,
    /// Writes zeroes.
    Zero {
        /// Which bytes.
        range: ByteRange,
        /// Durable when answered.
        fua: bool,
        /// The range must stay allocated.
        no_hole: bool,
    },
    /// Gives a range up.
    Trim {
        /// Which bytes.
        range: ByteRange,
        /// Durable when answered.
        fua: bool,
    },
}

/// The answer to a request.
#[derive(Debug)]
pub struct Completion {
    /// What [`Client::submit`] answered.
    pub cookie: u64,
    /// When the last byte of the answer was here.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// The bytes of a read (else none), or the server's refusal.
    pub result: Result<Vec<u8>, Error>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) sent: Instant,
    /// For reads: what was asked for, the bytes so far, and the parts that are there.
    pub(super) read: Option<(ByteRange, Vec<u8>, Vec<ByteRange>)>,
    pub(super) error: Option<Error>,
}

/// A connection.
///
/// Everything blocks, at most as long as [`Client::set_patience`] says. Requests go out when submitted: with many large
/// reads in flight and many large writes behind them a server that answers in order could wait for us while we wait for it.
#[derive(Debug)]
pub struct Client {
    pub(super) stream: BufReader<UnixStream>,
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) block_sizes: Option<(u32, u32, u32)>,
    pub(super) structured: bool,
    next_cookie: u64,
    pub(super) pending: HashMap<u64, Pending>,
    done: VecDeque<Completion>,
}

impl Client {
    /// Connects to an export, asking for structured replies.
    ///
    /// # Errors
    /// When there is no server, or it refuses the export.
    pub fn connect(socket: &Path, export: &str) -> Result<Self, Error> {
        Self::connect_as(socket, export, true)
    }

    /// Connects to an export, with or without asking for structured replies.
    ///
    /// # Errors
    /// When there is no server, or it refuses the export.
    pub fn connect_as(socket: &Path, export: &str, structured: bool) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        let mut client = Self {
            stream: BufReader::with_capacity(256 << 10, stream),
            size: 0,
            flags: 0,
            block_sizes: None,
            structured: false,
            next_cookie: 1,
            pending: HashMap::new(),
            done: VecDeque::new(),
        };
        client.greet()?;
        if structured {
            client.structured = client.option(wire::OPT_STRUCTURED_REPLY, &[])?.is_ok();
        }
        client.go(export)?;
        Ok(client)
    }

    /// How long an answer may take before the connection counts as broken; a minute unless told.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        self.stream.get_ref().set_write_timeout(Some(limit))
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export.
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Least, preferred and greatest block size, if the server told.
    #[must_use]
    pub fn block_sizes(&self) -> Option<(u32, u32, u32)> {
        self.block_sizes
    }

    /// Whether structured replies were agreed on.
    #[must_use]
    pub fn is_structured(&self) -> bool {
        self.structured
    }

    /// Requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Sends a request; its answer comes from [`Client::complete`] under the cookie that this answers.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn submit(&mut self, request: &Request) -> Result<u64, Error> {
        let fua = |fua: bool| if fua { CMD_FLAG_FUA } else { 0 };
        let (command, flags, range) = match request {
            Request::Read(range) => (wire::CMD_READ, 0, *range),
            Request::Write { offset, data, fua: f } => (
                wire::CMD_WRITE,
                fua(*f),
                ByteRange::at(*offset, data.len() as u64),
            ),
            Request::Flush => (wire::CMD_FLUSH, 0, ByteRange::at(0, 0)),
            Request::Zero {
                range,
                fua: f,
                no_hole,
            } => {
                let hole = if *no_hole { CMD_FLAG_NO_HOLE } else { 0 };
                (wire::CMD_WRITE_ZEROES, fua(*f) | hole, *range)
            }
            Request::Trim { range, fua: f } => (wire::CMD_TRIM, fua(*f), *range),
        };
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let head = head(command, flags, cookie, range)?;
        let read = matches!(request, Request::Read(_))
            .then(|| usize::try_from(range.len()).map(|len| (range, vec![0; len], Vec::new())));
        let read = read
            .transpose()
            .map_err(|_| Error::Protocol("a read larger than memory".to_owned()))?;
        self.pending.insert(
            cookie,
            Pending {
                sent: Instant::now(),
                read,
                error: None,
            },
        );
        self.send(&head)?;
        if let Request::Write { data, .. } = request {
            self.send(data)?;
        }
        Ok(cookie)
    }

    /// The next answer, in whatever order the server gives them; `None` when nothing is in flight.
    ///
    /// # Errors
    /// When the connection is gone or the server broke the protocol: what is in flight is then unknown.
    pub fn complete(&mut self) -> Result<Option<Completion>, Error> {
        if let Some(done) = self.done.pop_front() {
            return Ok(Some(done));
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        self.receive().map(Some)
    }

    /// Sends a request and waits for its answer; others that come meanwhile are kept for [`Client::complete`].
    ///
    /// # Errors
    /// As [`Client::complete`], and when the server refuses the request.
    pub fn call(&mut self, request: &Request) -> Result<Vec<u8>, Error> {
        let cookie = self.submit(request)?;
        loop {
            let done = self.receive()?;
            if done.cookie == cookie {
                return done.result;
            }
            self.done.push_back(done);
        }
    }

    /// Reads a range.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        self.call(&Request::Read(ByteRange::at(offset, len)))
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), Error> {
        self.call(&Request::Write {
            offset,
            data: data.to_vec(),
            fua,
        })
        .map(drop)
    }

    /// Makes all answered writes durable.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.call(&Request::Flush).map(drop)
    }

    /// Writes zeroes; the server may make a hole.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn write_zeroes(&mut self, range: ByteRange) -> Result<(), Error> {
        self.call(&Request::Zero {
            range,
            fua: false,
            no_hole: false,
        })
        .map(drop)
    }

    /// Gives a range up.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn trim(&mut self, range: ByteRange) -> Result<(), Error> {
        self.call(&Request::Trim { range, fua: false }).map(drop)
    }

    /// Says goodbye. Dropping the client instead just breaks the connection, as a crash would.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub fn disconnect(mut self) -> Result<(), Error> {
        let head = head(wire::CMD_DISC, 0, self.next_cookie, ByteRange::at(0, 0))?;
        self.send(&head)
    }
}

fn head(command: u16, flags: u16, cookie: u64, range: ByteRange) -> Result<Vec<u8>, Error> {
    let len = u32::try_from(range.len())
        .map_err(|_| Error::Protocol(format!("{} bytes do not fit into a request", range.len())))?;
    let mut head = wire::REQUEST.to_be_bytes().to_vec();
    head.extend(flags.to_be_bytes());
    head.extend(command.to_be_bytes());
    head.extend(cookie.to_be_bytes());
    head.extend(range.start.to_be_bytes());
    head.extend(len.to_be_bytes());
    Ok(head)
}
