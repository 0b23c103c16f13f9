//! The tokio rim: messages over one TLS connection.
//!
//! # Overview
//! [`Connection::split`] makes a reader and a writer. The reader is a future of its owner ([`Incoming::next`], safe to drop
//! and call again). The writer is a task fed by a queue that is bounded in bytes ([`Outgoing::send`] waits for room); it
//! compresses, writes, and pings.
//!
//! # Keeping alive
//! Each side pings every 5 s of its own accord, and each believes the other gone when nothing at all arrived for 20 s. A
//! reader that is slow for its own reasons is not fooled: what already lies in the socket is read before the clock is asked.
//!
//! # Invariants
//! - Messages leave in the order of `send`; none is taken twice or left out while the connection lives.
//! - The queue holds at most `queue_bytes_max`, one oversized message alone excepted.
//! - A connection ends as a whole: a failed read stops the writer, a failed write closes the queue; who drops the reader ends
//!   the writer after `peer_timeout` at the latest, so that no task outlives a dead link for long.
//!
//! # What it does not do
//! It gives no promise that a sent message arrived; the machines of [`crate::sender`] and [`crate::receiver`] count on
//! acknowledgements alone.

use crate::{
    codec::{self, CodecError, Decoder, Encoded, HEADER_BYTES},
    compress::{self, Adaptive},
    fingerprint::Fingerprint,
    message::{Message, RefuseCode},
};
use bytes::{Bytes, BytesMut};
use model::Term;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsStream;

/// Small messages are gathered up to this before they are written.
const GATHER_BYTES: usize = 64 << 10;
const READ_BYTES_MIN: usize = 64 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnError {
    /// The link failed; also how a peer's refusal of our key shows.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The peer sent what is no message.
    #[error("peer: {0}")]
    Codec(#[from] CodecError),
    /// Nothing was heard for too long.
    #[error("nothing heard from the peer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The peer ended within a message.
    #[error("the connection ended within a message")]
    Truncated,
    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,
}

/// How a connection behaves.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// Bytes that wait to be written.
    pub queue_bytes_max: usize,
    /// Time between pings.
    pub ping_every: Duration,
    /// Silence after which the peer counts as gone.
    pub peer_timeout: Duration,
    /// Whether bodies may be compressed.
    pub compress: bool,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            queue_bytes_max: 8 << 20,
            ping_every: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(20),
            compress: true,
        }
    }
}

/// What a link has carried.
#[derive(Debug, Default)]
pub struct LinkStats {
    sent: AtomicU64,
    received: AtomicU64,
    saved: AtomicU64,
    rtt_ns: AtomicU64,
}

impl LinkStats {
    /// Bytes of messages written.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of messages read.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes that compression kept off the link.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }

    /// Smoothed round trip, once a ping was answered.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt_ns.load(Ordering::Relaxed) {
            0 => None,
            ns => Some(Duration::from_nanos(ns)),
        }
    }

    fn measured(&self, rtt: u64) {
        let old = self.rtt_ns.load(Ordering::Relaxed);
        let new = if old == 0 { rtt } else { old / 8 * 7 + rtt / 8 };
        self.rtt_ns.store(new.max(1), Ordering::Relaxed);
    }
}

/// Makes a TCP socket fit for us; to be called before TLS.
///
/// # Errors
/// When the socket refuses.
pub fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)
}

/// A connection to a pinned peer.
#[derive(Debug)]
pub struct Connection<S> {
    stream: TlsStream<S>,
    peer: Fingerprint,
    options: ConnectionOptions,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection<S> {
    /// A connection over an authenticated stream.
    #[must_use]
    pub const fn new(stream: TlsStream<S>, peer: Fingerprint, options: ConnectionOptions) -> Self {
        Self {
            stream,
            peer,
            options,
        }
    }

    /// The peer's key.
    #[must_use]
    pub const fn peer(&self) -> Fingerprint {
        self.peer
    }

    /// Starts the writer; must be called within a tokio runtime.
    #[must_use]
    pub fn split(self) -> (Incoming<S>, Outgoing) {
        let (read, write) = tokio::io::split(self.stream);
        let (queue, items) = mpsc::unbounded_channel();
        let queue_bytes_max = self
            .options
            .queue_bytes_max
            .clamp(64, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let room = Arc::new(Semaphore::new(queue_bytes_max));
        let stats = Arc::new(LinkStats::default());
        let (alive, gone) = oneshot::channel::<()>();
        let started = Instant::now();
        let writer = Writer {
            half: write,
            gathered: BytesMut::new(),
            adaptive: Adaptive::default(),
            options: self.options.clone(),
            started,
            stats: Arc::clone(&stats),
        };
        let peer_timeout = self.options.peer_timeout;
        let task = tokio::spawn({
            let room = Arc::clone(&room);
            async move {
                let orphaned = async {
                    // Resolves when the reader is dropped; nothing is ever sent.
                    let _ = gone.await;
                    tokio::time::sleep(peer_timeout).await;
                };
                tokio::select! {
                    ended = writer.run(items) => if let Err(e) = ended {
                        tracing::debug!(error = %e, "writing to a peer ended");
                    },
                    () = orphaned => {}
                }
                room.close();
            }
        });
        let outgoing = Outgoing {
            queue,
            room: Arc::clone(&room),
            queue_bytes_max,
            peer_timeout,
            stats: Arc::clone(&stats),
        };
        let incoming = Incoming {
            half: read,
            buf: BytesMut::new(),
            heard: started,
            started,
            peer: self.peer,
            peer_timeout,
            replies: outgoing.queue.downgrade(),
            room,
            writer: task.abort_handle(),
            _alive: alive,
            stats,
        };
        (incoming, outgoing)
    }
}

/// The reader of a connection.
#[derive(Debug)]
pub struct Incoming<S> {
    half: ReadHalf<TlsStream<S>>,
    buf: BytesMut,
    heard: Instant,
    started: Instant,
    peer: Fingerprint,
    peer_timeout: Duration,
    replies: mpsc::WeakUnboundedSender<Item>,
    room: Arc<Semaphore>,
    writer: AbortHandle,
    _alive: oneshot::Sender<()>,
    stats: Arc<LinkStats>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Incoming<S> {
    /// The peer's key.
    #[must_use]
    pub const fn peer(&self) -> Fingerprint {
        self.peer
    }

    /// What the link has carried.
    #[must_use]
    pub const fn stats(&self) -> &Arc<LinkStats> {
        &self.stats
    }

    /// The next message that is not a ping or its answer; `None` when the peer ended the connection in order.
    ///
    /// Safe to drop and call again. Large compressed bodies are decompressed here, at about 1 GB/s.
    ///
    /// # Errors
    /// When the connection is over for another reason.
    pub async fn next(&mut self) -> Result<Option<Message>, ConnError> {
        loop {
            let before = self.buf.len();
            let decoded = Decoder::peer()
                .decode(&mut self.buf)
                .inspect_err(|e| self.complain(e))?;
            self.stats
                .received
                .fetch_add((before - self.buf.len()) as u64, Ordering::Relaxed);
            match decoded {
                Some(Message::Ping { nonce }) => self.reply(Message::Pong { nonce }),
                Some(Message::Pong { nonce }) => {
                    let now = nanos(self.started.elapsed());
                    // A peer may answer what was never asked; that must not spoil more than the figure.
                    self.stats.measured(now.saturating_sub(nonce));
                }
                Some(message) => return Ok(Some(message)),
                None => {
                    let read = read_more(&mut self.half, &mut self.buf);
                    let got = match timeout_at(self.heard + self.peer_timeout, read).await {
                        Err(_) => Err(ConnError::Silent(self.peer_timeout)),
                        Ok(got) => got,
                    };
                    if !got.inspect_err(|_| self.writer.abort())? {
                        return Ok(None);
                    }
                    self.heard = Instant::now();
                }
            }
        }
    }

    fn complain(&self, e: &CodecError) {
        let code = match e {
            CodecError::Version { .. } => RefuseCode::Version,
            _ => RefuseCode::Protocol,
        };
        self.reply(Message::refuse(code, Term(0), e.to_string()));
    }

    /// Queues a small answer if there is room; a peer that asks faster than it reads gets none.
    fn reply(&self, message: Message) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(64) else {
            return;
        };
        if let Some(queue) = self.replies.upgrade() {
            // A closed queue means that the connection is ending.
            let _ = queue.send(Item::Message(message, permit));
        }
    }
}

#[derive(Debug)]
enum Item {
    Message(Message, OwnedSemaphorePermit),
    Close(String, oneshot::Sender<()>),
}

/// The queue of a connection's writer. When all clones are dropped, what is queued is written and the connection ended.
#[derive(Debug, Clone)]
pub struct Outgoing {
    queue: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
    queue_bytes_max: usize,
    peer_timeout: Duration,
    stats: Arc<LinkStats>,
}

impl Outgoing {
    /// Queues a message, waiting for room.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn send(&self, message: Message) -> Result<(), ConnError> {
        let weight = u32::try_from(message.weight().min(self.queue_bytes_max)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.room)
            .acquire_many_owned(weight)
            .await
            .map_err(|_| ConnError::Closed)?;
        self.queue
            .send(Item::Message(message, permit))
            .map_err(|_| ConnError::Closed)
    }

    /// Bytes that may be queued without waiting.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room.available_permits()
    }

    /// What the link has carried.
    #[must_use]
    pub const fn stats(&self) -> &Arc<LinkStats> {
        &self.stats
    }

    /// Writes what is queued, says goodbye and ends the connection; returns when that is done, the link is dead, or the peer
    /// has not taken it within `peer_timeout`.
    pub async fn shutdown(&self, text: impl Into<String>) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Item::Close(text.into(), done)).is_ok() {
            // An error means that the writer ended first; either way it is over.
            let _ = tokio::time::timeout(self.peer_timeout, wait).await;
        }
    }
}

struct Writer<S> {
    half: WriteHalf<TlsStream<S>>,
    gathered: BytesMut,
    adaptive: Adaptive,
    options: ConnectionOptions,
    started: Instant,
    stats: Arc<LinkStats>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Writer<S> {
    async fn run(mut self, mut items: mpsc::UnboundedReceiver<Item>) -> Result<(), ConnError> {
        let mut ping_at = self.started + self.options.ping_every;
        loop {
            if Instant::now() >= ping_at {
                ping_at = Instant::now() + self.options.ping_every;
                self.write(&Message::Ping {
                    nonce: nanos(self.started.elapsed()),
                })
                .await?;
            }
            if items.is_empty() {
                self.flush().await?;
            }
            match timeout_at(ping_at, items.recv()).await {
                Err(_) => {}
                Ok(Some(Item::Message(message, permit))) => {
                    self.write(&message).await?;
                    drop(permit);
                }
                Ok(Some(Item::Close(text, done))) => {
                    self.write(&Message::Bye { text }).await?;
                    self.end().await?;
                    // Nobody may be waiting any more.
                    let _ = done.send(());
                    return Ok(());
                }
                Ok(None) => return self.end().await,
            }
        }
    }

    async fn write(&mut self, message: &Message) -> Result<(), ConnError> {
        let encoded = self.compressed(codec::encode(message)?).await;
        let (head, payload) = encoded.into_parts();
        self.stats
            .sent
            .fetch_add((head.len() + payload.len()) as u64, Ordering::Relaxed);
        for part in [head, payload] {
            if part.len() >= GATHER_BYTES {
                self.write_gathered().await?;
                self.half.write_all(&part).await?;
            } else {
                self.gathered.extend_from_slice(&part);
            }
        }
        if self.gathered.len() >= GATHER_BYTES {
            self.write_gathered().await?;
        }
        Ok(())
    }

    /// Off this task: zstd takes milliseconds for a large body, and other connections live on this thread.
    async fn compressed(&mut self, encoded: Encoded) -> Encoded {
        if !self.options.compress || !encoded.compressible() || !self.adaptive.wants(encoded.body()) {
            return encoded;
        }
        let plain = encoded.clone();
        let packed = tokio::task::spawn_blocking(move || encoded.compress(compress::LEVEL)).await;
        match packed {
            Ok(Some(packed)) => {
                let saved = plain.body_len() - packed.body_len();
                self.adaptive.gained(saved * 5 > plain.body_len());
                self.stats.saved.fetch_add(saved as u64, Ordering::Relaxed);
                packed
            }
            _ => {
                self.adaptive.gained(false);
                plain
            }
        }
    }

    async fn write_gathered(&mut self) -> Result<(), ConnError> {
        let gathered: Bytes = self.gathered.split().freeze();
        Ok(self.half.write_all(&gathered).await?)
    }

    async fn flush(&mut self) -> Result<(), ConnError> {
        self.write_gathered().await?;
        Ok(self.half.flush().await?)
    }

    async fn end(&mut self) -> Result<(), ConnError> {
        self.flush().await?;
        Ok(self.half.shutdown().await?)
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads some bytes; `false` at an orderly end between messages.
async fn read_more<R: AsyncRead + Unpin>(half: &mut R, buf: &mut BytesMut) -> Result<bool, ConnError> {
    // Memory follows what arrived, not what a header claims.
    buf.reserve(READ_BYTES_MIN.max(buf.len().min(codec::BODY_BYTES_MAX + HEADER_BYTES)));
    match half.read_buf(buf).await? {
        0 if buf.is_empty() => Ok(false),
        0 => Err(ConnError::Truncated),
        _ => Ok(true),
    }
}

/// Reads one message without keep-alive, for exchanges that are bounded in time as a whole.
pub(crate) async fn read_message<R: AsyncRead + Unpin>(
    half: &mut R,
    buf: &mut BytesMut,
    decoder: Decoder,
) -> Result<Option<Message>, ConnError> {
    loop {
        if let Some(message) = decoder.decode(buf)? {
            return Ok(Some(message));
        }
        if !read_more(half, buf).await? {
            return Ok(None);
        }
    }
}

/// Writes one message and flushes it.
pub(crate) async fn write_message<W: AsyncWrite + Unpin>(
    half: &mut W,
    message: &Message,
) -> Result<(), ConnError> {
    let (head, payload) = codec::encode(message)?.into_parts();
    half.write_all(&head).await?;
    half.write_all(&payload).await?;
    Ok(half.flush().await?)
}
