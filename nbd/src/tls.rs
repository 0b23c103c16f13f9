//! TLS: whose certificates are believed, and a connection that carries its bytes in TLS.
//!
//! A client must show a certificate that the authority in `client_ca` has signed: who has none has no connection. TLS is 1.3,
//! or 1.2 for clients that have nothing newer (the protocol demands it). No session is resumed, so that every client
//! is verified.
//!
//! # Invariants
//!
//! * Not a byte is handed up before the client is verified: rustls gives none before its handshake is over.
//! * Neither the socket is waited for nor a deadline passed under the lock of the session: who writes waits for who reads at
//!   most as long as deciphering one buffer takes.
//! * What was enciphered leaves in that order, because it stays in the session until the socket has taken it.

use crate::transport::{Socket, Transport, Wait};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use std::{
    fmt, fs,
    io::{self, BufRead, IoSlice, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes in TLS that are received at a time.
const RECEIVE_BYTES: usize = 128 << 10;
/// Bytes that may be enciphered and not sent.
const SEND_BYTES: usize = 256 << 10;

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read the key.
    #[error("{path} has mode {mode:04o}, so others may read the key: chmod 600 {path}")]
    Mode {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{path} is not usable: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not fit, or are of a kind that is not known.
    #[error("the certificate in {path} cannot be used")]
    Setup {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Where certificates are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its key, readable by nobody else.
    pub key: PathBuf,
    /// Certificates of the authorities whose clients are let in.
    pub client_ca: PathBuf,
}

/// The server's side of TLS.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads certificates and key.
    ///
    /// # Errors
    /// When a file cannot be read or used, or the key is open to others.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let unusable = |path: &Path, why: String| TlsError::Content {
            path: path.to_owned(),
            why,
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.client_ca)? {
            roots
                .add(certificate)
                .map_err(|e| unusable(&files.client_ca, e.to_string()))?;
        }
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|e| unusable(&files.client_ca, e.to_string()))?;
        let setup = |source| TlsError::Setup {
            path: files.certificate.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(setup)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(setup)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self(Arc::new(config)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: String| TlsError::Content {
        path: path.to_owned(),
        why,
    };
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found.map_err(|e| content(e.to_string()))? {
        none if none.is_empty() => Err(content("it holds no certificate".into())),
        found => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(path)?;
    let meta = fs::metadata(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| TlsError::Content {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

/// A connection in TLS, from the first byte of its handshake on.
pub(crate) struct TlsStream {
    socket: Arc<Socket>,
    session: Mutex<ServerConnection>,
    /// Bytes in TLS that were received and not deciphered. Whoever reads holds it.
    received: Mutex<Received>,
    deadline: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    taken: usize,
}

impl Received {
    fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }
}

impl TlsStream {
    /// Whoever reads first runs the handshake.
    pub(crate) fn begin(socket: Arc<Socket>, tls: &Tls) -> io::Result<Self> {
        let mut session = ServerConnection::new(tls.0.clone()).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(SEND_BYTES));
        Ok(Self {
            socket,
            session: Mutex::new(session),
            received: Mutex::default(),
            deadline: Mutex::default(),
        })
    }

    /// Moves plaintext that is there into `buf`; `None` when there is none.
    fn plaintext(&self, buf: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let mut session = self.session.lock();
        let mut reader = session.reader();
        let n = match reader.fill_buf() {
            Ok(chunk) => {
                let n = chunk.len().min(buf.capacity() - buf.len());
                buf.extend_from_slice(&chunk[..n]);
                n
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // The client has closed its socket without a word in TLS: it has left all the same.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(e) => return Err(e),
        };
        reader.consume(n);
        Ok(Some(n))
    }

    /// Deciphers some of what was received.
    fn decipher(&self, received: &mut Received) -> io::Result<()> {
        let mut session = self.session.lock();
        let mut rest = &received.bytes[received.taken..];
        received.taken += session.read_tls(&mut rest)?;
        let in_handshake = session.is_handshaking();
        let processed = session.process_new_packets();
        drop(session);
        match processed {
            // Later on answers of TLS itself leave with the next that is sent: a reader does not wait for its client.
            Ok(_) if in_handshake => self.flush(Wait::Block),
            Ok(_) => Ok(()),
            Err(e) => {
                // Why is told to the client if that is possible at once.
                let _ = self.flush(Wait::Never);
                Err(io::Error::new(io::ErrorKind::InvalidData, e))
            }
        }
    }

    fn time_left(&self) -> io::Result<Option<Duration>> {
        match *self.deadline.lock() {
            None => Ok(None),
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => Ok(Some(left)),
                _ => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }

    /// Waits until the socket takes more.
    fn wait_writable(&self) -> io::Result<()> {
        let left = self.time_left()?.map(Timespec::try_from).transpose();
        let left = left.map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&*self.socket, PollFlags::OUT)];
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Transport for TlsStream {
    fn recv(&self, buf: &mut Vec<u8>, wait: Wait) -> io::Result<usize> {
        let mut received = self.received.lock();
        let before = buf.len();
        loop {
            match self.plaintext(buf)? {
                Some(0) => return Ok(buf.len() - before),
                Some(_) if buf.len() == buf.capacity() => return Ok(buf.len() - before),
                Some(_) => continue,
                None => {}
            }
            if received.is_empty() {
                if buf.len() > before {
                    return Ok(buf.len() - before);
                }
                received.taken = 0;
                received.bytes.clear();
                received.bytes.reserve_exact(RECEIVE_BYTES);
                if let Some(left) = self.time_left()? {
                    self.socket.set_timeout(Some(left))?;
                }
                if self.socket.recv(&mut received.bytes, wait)? == 0 {
                    return Ok(0);
                }
            }
            self.decipher(&mut received)?;
        }
    }

    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize> {
        self.flush(wait)?;
        let n = self.session.lock().writer().write_vectored(bufs)?;
        match self.flush(wait) {
            // It is kept for the next send or flush.
            Err(e) if wait == Wait::Never && e.kind() == io::ErrorKind::WouldBlock => Ok(n),
            done => done.map(|()| n),
        }
    }

    fn flush(&self, wait: Wait) -> io::Result<()> {
        loop {
            let mut session = self.session.lock();
            if !session.wants_write() {
                return Ok(());
            }
            match session.write_tls(&mut AtOnce(&self.socket)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && wait == Wait::Block => {
                    drop(session);
                    self.wait_writable()?;
                }
                done => drop(done?),
            }
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        *self.deadline.lock() = timeout.map(|t| Instant::now() + t);
        self.socket.set_timeout(timeout)
    }

    fn close_read(&self) {
        self.socket.close_read();
    }

    fn close(&self) {
        self.session.lock().send_close_notify();
        // A client that does not read does not need to know.
        let _ = self.flush(Wait::Never);
        self.socket.close();
    }
}

/// Writes what the socket takes at once.
struct AtOnce<'a>(&'a Socket);

impl Write for AtOnce<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(buf)], Wait::Never)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs, Wait::Never)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
