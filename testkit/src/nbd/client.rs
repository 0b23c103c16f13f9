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

fn protocol<T>(text: impl Into<String>) -> Result<T, Error> {
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
struct Pending {
    sent: Instant,
    /// For reads: what was asked for, the bytes so far, and the parts that are there.
    read: Option<(ByteRange, Vec<u8>, Vec<ByteRange>)>,
    error: Option<Error>,
}

/// A connection.
///
/// Everything blocks, at most as long as [`Client::set_patience`] says. Requests go out when submitted: with many large
/// reads in flight and many large writes behind them a server that answers in order could wait for us while we wait for it.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    size: u64,
    flags: u16,
    block_sizes: Option<(u32, u32, u32)>,
    structured: bool,
    next_cookie: u64,
    pending: HashMap<u64, Pending>,
    done: VecDeque<Completion>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes were taken"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
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

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    fn greet(&mut self) -> Result<(), Error> {
        let hello: [u8; 18] = self.take()?;
        let flags = u16_at(&hello, 16);
        if u64_at(&hello, 0) != wire::NBDMAGIC || u64_at(&hello, 8) != wire::IHAVEOPT {
            return protocol("the greeting is not newstyle");
        }
        if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
            return protocol("the server is not fixed newstyle");
        }
        let answer = u32::from(flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES));
        self.send(&answer.to_be_bytes())
    }

    /// Sends an option and collects its replies up to the acknowledgement.
    #[expect(clippy::type_complexity, reason = "replies, or the refusal")]
    fn option(&mut self, option: u32, data: &[u8]) -> Result<Result<Vec<(u32, Vec<u8>)>, Error>, Error> {
        let mut out = wire::IHAVEOPT.to_be_bytes().to_vec();
        out.extend(option.to_be_bytes());
        out.extend(
            u32::try_from(data.len())
                .expect("options are short")
                .to_be_bytes(),
        );
        out.extend(data);
        self.send(&out)?;
        let mut replies = Vec::new();
        loop {
            let head: [u8; 20] = self.take()?;
            let (kind, len) = (u32_at(&head, 12), u32_at(&head, 16));
            if u64_at(&head, 0) != wire::OPTION_REPLY
                || u32_at(&head, 8) != option
                || len > wire::OPTION_BYTES_MAX
            {
                return protocol(format!("no proper reply to option {option}"));
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            if kind & wire::REP_ERROR != 0 {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Ok(Err(Error::Refused { reply: kind, text }));
            }
            if kind == wire::REP_ACK {
                return Ok(Ok(replies));
            }
            replies.push((kind, data));
        }
    }

    fn go(&mut self, export: &str) -> Result<(), Error> {
        let mut data = u32::try_from(export.len())
            .expect("names are short")
            .to_be_bytes()
            .to_vec();
        data.extend(export.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
        let mut told = false;
        for (kind, info) in self.option(wire::OPT_GO, &data)?? {
            if kind != wire::REP_INFO || info.len() < 2 {
                return protocol(format!("reply {kind} to NBD_OPT_GO"));
            }
            match (u16_at(&info, 0), info.len()) {
                (wire::INFO_EXPORT, 12) => {
                    (self.size, self.flags, told) = (u64_at(&info, 2), u16_at(&info, 10), true);
                }
                (wire::INFO_BLOCK_SIZE, 14) => {
                    self.block_sizes = Some((u32_at(&info, 2), u32_at(&info, 6), u32_at(&info, 10)));
                }
                (wire::INFO_EXPORT | wire::INFO_BLOCK_SIZE, len) => {
                    return protocol(format!("{len} bytes of information"));
                }
                _ => {}
            }
        }
        if told {
            Ok(())
        } else {
            protocol("the export's size was not told")
        }
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

    fn receive(&mut self) -> Result<Completion, Error> {
        loop {
            let magic = u32::from_be_bytes(self.take()?);
            let cookie = match magic {
                wire::SIMPLE_REPLY => {
                    let head: [u8; 12] = self.take()?;
                    let (errno, cookie) = (u32_at(&head, 0), u64_at(&head, 4));
                    let pending = pending(&mut self.pending, cookie)?;
                    match &mut pending.read {
                        Some(_) if self.structured => return protocol("a simple reply to a read"),
                        Some((range, bytes, there)) if errno == 0 => {
                            self.stream.read_exact(bytes)?;
                            there.push(*range);
                        }
                        _ => {}
                    }
                    if errno != 0 {
                        pending.error = Some(Error::Server {
                            errno,
                            text: String::new(),
                        });
                    }
                    cookie
                }
                wire::STRUCTURED_REPLY if self.structured => match self.chunk()? {
                    Some(cookie) => cookie,
                    None => continue,
                },
                other => return protocol(format!("a reply begins with {other:#010x}")),
            };
            let Pending { sent, read, error } = self.pending.remove(&cookie).expect("looked up above");
            let at = Instant::now();
            let result = match (error, read) {
                (Some(error), _) => Err(error),
                (None, None) => Ok(Vec::new()),
                (None, Some((range, bytes, there))) => {
                    let have: u64 = there.iter().map(|r| r.len()).sum();
                    if have != range.len() {
                        return protocol(format!("{have} bytes of {range:?} were answered"));
                    }
                    Ok(bytes)
                }
            };
            return Ok(Completion {
                cookie,
                at,
                took: at - sent,
                result,
            });
        }
    }

    /// Reads one chunk of a structured reply; its cookie when it is the last one.
    fn chunk(&mut self) -> Result<Option<u64>, Error> {
        let head: [u8; 16] = self.take()?;
        let (flags, kind, cookie, len) = (
            u16_at(&head, 0),
            u16_at(&head, 2),
            u64_at(&head, 4),
            u32_at(&head, 12),
        );
        let pending = pending(&mut self.pending, cookie)?;
        match kind {
            wire::CHUNK_NONE if len == 0 && flags & wire::CHUNK_DONE != 0 => {}
            wire::CHUNK_DATA | wire::CHUNK_HOLE => {
                let Some((range, bytes, there)) = &mut pending.read else {
                    return protocol("data in answer to no read");
                };
                let least = if kind == wire::CHUNK_DATA { 9 } else { 12 };
                if len < least || (kind == wire::CHUNK_HOLE && len != least) {
                    return protocol(format!("a chunk of type {kind} with {len} bytes"));
                }
                let mut at = [0; 8];
                self.stream.read_exact(&mut at)?;
                let count = if kind == wire::CHUNK_DATA {
                    len - 8
                } else {
                    let mut count = [0; 4];
                    self.stream.read_exact(&mut count)?;
                    u32::from_be_bytes(count)
                };
                let start = u64::from_be_bytes(at);
                let part = ByteRange {
                    start,
                    end: start.saturating_add(u64::from(count)),
                };
                if part.start < range.start || part.end > range.end || part.is_empty() {
                    return protocol(format!("a chunk {part:?} outside of its read {range:?}"));
                }
                if there.iter().any(|other| other.intersect(part).is_some()) {
                    return protocol(format!("{part:?} was answered twice"));
                }
                there.push(part);
                if kind == wire::CHUNK_DATA {
                    let from = usize::try_from(part.start - range.start).expect("inside of the buffer");
                    self.stream.read_exact(&mut bytes[from..from + count as usize])?;
                }
            }
            kind if kind & wire::CHUNK_ERROR_BIT != 0 && (6..=wire::OPTION_BYTES_MAX).contains(&len) => {
                let mut data = vec![0; len as usize];
                self.stream.read_exact(&mut data)?;
                let words = data[6..].get(..usize::from(u16_at(&data, 4)));
                let Some(words) = words else {
                    return protocol("an error longer than its chunk");
                };
                let text = String::from_utf8_lossy(words).into_owned();
                pending.error.get_or_insert(Error::Server {
                    errno: u32_at(&data, 0),
                    text,
                });
            }
            _ => {
                return protocol(format!(
                    "a chunk of type {kind:#x} with {len} bytes and flags {flags}"
                ));
            }
        }
        Ok((flags & wire::CHUNK_DONE != 0).then_some(cookie))
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

fn pending(all: &mut HashMap<u64, Pending>, cookie: u64) -> Result<&mut Pending, Error> {
    all.get_mut(&cookie)
        .ok_or_else(|| Error::Protocol(format!("an answer to nothing, cookie {cookie}")))
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
