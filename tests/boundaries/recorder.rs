//! A relay between an NBD client and the node that notes what was asked, in which order, and what was answered.
//!
//! The journal does not keep which client flushed when, and it need not: a flush changes nothing. So where the flushes lie among
//! the writes is seen here, on the one connection of the volume, in front of the node. The node gives records in the order in which
//! a connection brings requests; [`matched`](crate::history::matched) checks that it did.
//!
//! Every event has a *tick*, its place among all events of this relay. A request has its tick before the node has it, and an answer
//! has its tick before the client has it. So a write whose answer comes before a flush was answered before that flush was asked for,
//! and whatever a program does after its `fsync` has a later tick than the answers that it waited for.

use model::ByteRange;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
};

/// Numbers of the NBD protocol.
mod nbd {
    pub const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";
    pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    pub const OPT_GO: u32 = 7;
    /// Structured replies and extended headers: refused, so that every answer is 16 bytes and what was read.
    pub const OPTS_REFUSED: [u32; 2] = [8, 11];
    pub const REP_ACK: u32 = 1;
    pub const REP_ERROR: u32 = 1 << 31;
    pub const REP_UNSUPPORTED: u32 = REP_ERROR | 1;
    pub const SIMPLE_REPLY: u32 = 0x6744_6698;
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const FUA: u16 = 1;
}

/// The place of an event among all events of a relay.
pub type Tick = u64;

/// A write, zeroing or discard.
#[derive(Clone, Copy)]
pub struct Mutation {
    /// What it changes.
    pub range: ByteRange,
    /// Digest of the bytes; none: the range becomes zero.
    pub digest: Option<blake3::Hash>,
    /// It is durable when it is answered.
    pub fua: bool,
    /// When it was asked for.
    pub sent: Tick,
    /// When it was answered.
    pub answered: Option<Tick>,
}

/// A flush.
#[derive(Clone, Copy)]
pub struct Flush {
    /// When it was asked for.
    pub sent: Tick,
    /// When it was answered.
    pub answered: Option<Tick>,
    /// So many mutations were asked for before it.
    pub upto: usize,
}

/// All that went over a relay.
#[derive(Clone, Default)]
pub struct Log {
    /// In the order in which they were asked for.
    pub mutations: Vec<Mutation>,
    /// In the order in which they were asked for.
    pub flushes: Vec<Flush>,
    ticks: Tick,
    /// The first error that was answered.
    pub failed: Option<String>,
    /// What is durable, as far as answers have told.
    held: Held,
    /// Flushes answered with something new behind the one before.
    points: usize,
    last_point: usize,
}

/// What an answer has made durable.
#[derive(Clone, Copy, Default)]
pub struct Held {
    /// All that is durable is among so many first mutations.
    pub count: usize,
    /// The tick of the answer.
    pub tick: Tick,
}

/// A moment of a relay.
#[derive(Clone, Copy)]
pub struct Moment {
    /// Mutations that were asked for.
    pub count: usize,
    /// Its tick.
    pub tick: Tick,
}

enum Pending {
    Mutation(usize),
    Flush(usize),
    Read(usize),
}

impl Log {
    fn tick(&mut self) -> Tick {
        self.ticks += 1;
        self.ticks
    }

    fn mutation(&mut self, range: ByteRange, digest: Option<blake3::Hash>, fua: bool) -> Pending {
        let sent = self.tick();
        self.mutations.push(Mutation {
            range,
            digest,
            fua,
            sent,
            answered: None,
        });
        Pending::Mutation(self.mutations.len() - 1)
    }

    fn flush(&mut self) -> Pending {
        let sent = self.tick();
        self.flushes.push(Flush {
            sent,
            answered: None,
            upto: self.mutations.len(),
        });
        Pending::Flush(self.flushes.len() - 1)
    }

    fn answered(&mut self, pending: &Pending) {
        let tick = self.tick();
        let durable = match *pending {
            Pending::Read(_) => None,
            Pending::Mutation(n) => {
                let mutation = &mut self.mutations[n];
                mutation.answered = Some(tick);
                mutation.fua.then_some(n + 1)
            }
            Pending::Flush(n) => {
                let flush = &mut self.flushes[n];
                flush.answered = Some(tick);
                Some(flush.upto)
            }
        };
        if let Some(count) = durable {
            self.held = Held {
                count: self.held.count.max(count),
                tick,
            };
            if count > self.last_point {
                self.points += 1;
                self.last_point = count;
            }
        }
    }
}

/// A relay for one volume; it ends with its client.
pub struct Recorder(Arc<Mutex<Log>>);

impl Recorder {
    /// Waits at `socket` for one client of the node behind `node`.
    pub fn new(socket: &Path, node: &Path) -> Self {
        let log: Arc<Mutex<Log>> = Arc::default();
        let listener = UnixListener::bind(socket).unwrap();
        let (told, node) = (Arc::clone(&log), node.to_owned());
        thread::spawn(move || {
            let served = listener
                .accept()
                .and_then(|(client, _)| serve(client, UnixStream::connect(node)?, &told));
            if let Err(e) = served {
                told.lock().failed.get_or_insert(format!("the relay ended: {e}"));
            }
        });
        Self(log)
    }

    /// What is durable by now.
    pub fn held(&self) -> Held {
        self.0.lock().held
    }

    /// Now.
    pub fn now(&self) -> Moment {
        let log = self.0.lock();
        Moment {
            count: log.mutations.len(),
            tick: log.ticks,
        }
    }

    /// How many answers have made something more durable.
    pub fn points(&self) -> usize {
        self.0.lock().points
    }

    /// All that went over it.
    pub fn log(&self) -> Log {
        self.0.lock().clone()
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(number(bytes, at))
}

fn bad(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

/// One direction of a connection: what was read can be passed on.
struct From(BufReader<UnixStream>);

impl From {
    fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn pass(&mut self, len: usize, to: &mut impl Write) -> io::Result<Vec<u8>> {
        let bytes = self.take(len)?;
        to.write_all(&bytes)?;
        Ok(bytes)
    }
}

fn serve(client: UnixStream, node: UnixStream, log: &Arc<Mutex<Log>>) -> io::Result<()> {
    let (mut to_client, mut to_node) = (client.try_clone()?, node.try_clone()?);
    let (mut client, mut node) = (From(BufReader::new(client)), From(BufReader::new(node)));
    negotiate(&mut client, &mut to_client, &mut node, &mut to_node)?;
    let pending: Arc<Mutex<HashMap<u64, Pending>>> = Arc::default();
    let (waiting, told) = (Arc::clone(&pending), Arc::clone(log));
    let answers = thread::spawn(move || pass_answers(&mut node, &mut to_client, &waiting, &told));
    pass_requests(&mut client, &mut to_node, &pending, log)?;
    let _ = to_node.shutdown(Shutdown::Both);
    let _ = answers.join().expect("the thread of the answers");
    Ok(())
}

/// Up to an open export.
fn negotiate(
    client: &mut From,
    to_client: &mut UnixStream,
    node: &mut From,
    to_node: &mut UnixStream,
) -> io::Result<()> {
    node.pass(18, to_client)?;
    client.pass(4, to_node)?;
    loop {
        let head = client.take(16)?;
        let option = u32_at(&head, 8);
        let data = client.take(u32_at(&head, 12) as usize)?;
        if head[..8] != *nbd::IHAVEOPT {
            return Err(bad("no option"));
        }
        if nbd::OPTS_REFUSED.contains(&option) {
            let mut reply = nbd::OPTION_REPLY.to_be_bytes().to_vec();
            reply.extend(option.to_be_bytes());
            reply.extend(nbd::REP_UNSUPPORTED.to_be_bytes());
            reply.extend(0u32.to_be_bytes());
            to_client.write_all(&reply)?;
            continue;
        }
        to_node.write_all(&head)?;
        to_node.write_all(&data)?;
        loop {
            let reply = node.pass(20, to_client)?;
            let kind = u32_at(&reply, 12);
            node.pass(u32_at(&reply, 16) as usize, to_client)?;
            if kind == nbd::REP_ACK && option == nbd::OPT_GO {
                return Ok(());
            }
            if kind == nbd::REP_ACK || kind & nbd::REP_ERROR != 0 {
                break;
            }
        }
    }
}

fn pass_requests(
    client: &mut From,
    node: &mut UnixStream,
    pending: &Mutex<HashMap<u64, Pending>>,
    log: &Mutex<Log>,
) -> io::Result<()> {
    // A client may just close.
    while !client.0.fill_buf()?.is_empty() {
        let mut request = client.take(28)?;
        let (flags, command, cookie) = (u16_at(&request, 4), u16_at(&request, 6), u64_at(&request, 8));
        let len = u32_at(&request, 24);
        let range = ByteRange::at(u64_at(&request, 16), u64::from(len));
        if command == nbd::WRITE {
            request.extend(client.take(len as usize)?);
        }
        let fua = flags & nbd::FUA != 0;
        let what = match command {
            nbd::READ => Pending::Read(len as usize),
            nbd::WRITE => {
                let digest = blake3::hash(&request[28..]);
                log.lock().mutation(range, Some(digest), fua)
            }
            nbd::TRIM | nbd::WRITE_ZEROES => log.lock().mutation(range, None, fua),
            nbd::FLUSH => log.lock().flush(),
            nbd::DISCONNECT => return node.write_all(&request),
            other => return Err(bad(&format!("command {other}"))),
        };
        pending.lock().insert(cookie, what);
        node.write_all(&request)?;
    }
    Ok(())
}

fn pass_answers(
    node: &mut From,
    client: &mut UnixStream,
    pending: &Mutex<HashMap<u64, Pending>>,
    log: &Mutex<Log>,
) -> io::Result<()> {
    loop {
        let mut reply = node.take(16)?;
        if u32_at(&reply, 0) != nbd::SIMPLE_REPLY {
            return Err(bad("no simple reply"));
        }
        let (errno, cookie) = (u32_at(&reply, 4), u64_at(&reply, 8));
        let Some(what) = pending.lock().remove(&cookie) else {
            return Err(bad("an answer to nothing"));
        };
        if errno == 0 {
            if let Pending::Read(len) = what {
                reply.extend(node.take(len)?);
            }
            log.lock().answered(&what);
        } else {
            log.lock().failed.get_or_insert(format!("errno {errno}"));
        }
        client.write_all(&reply)?;
    }
}
