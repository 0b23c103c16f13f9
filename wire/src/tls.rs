//! TLS between nodes: 1.3 only, both sides by pinned keys.
//!
//! # What is believed
//! A peer is its key. There is no authority, no host name and no expiry: the certificate is only the shape in which TLS
//! carries a key. The handshake signature is verified as always, so that a peer must *hold* the key; only the question "is
//! this key one of ours" is answered here, by [`Pins`].
//!
//! # Two purposes
//! The connecting side says by ALPN what it wants: `backstay` (a peer) or `backstay-pair` (a pairing, [`crate::pairing`]).
//! While a pairing is open the verifier lets an unknown key finish its handshake, and [`Tls::accept`] then drops it unless
//! it asked for a pairing; such a connection carries nothing else ([`crate::Decoder::pairing`]).
//!
//! # Invariants
//! - A connection for [`Purpose::Peer`] exists only to a key that was pinned when its handshake ended.
//! - No session is ever resumed: a resumed one would skip the verifier, and a key whose pin was removed would come back.
//!
//! # What it does not do
//! Removing a pin does not cut connections that exist; their owner does.

use crate::{
    fingerprint::Fingerprint,
    identity::{Identity, fingerprint_of},
};
use model::Timestamp;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{Resumption, danger::HandshakeSignatureValid},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// The name in every certificate; TLS wants one, nobody checks it.
pub(crate) const SERVER_NAME: &str = "backstay";
const ALPN_PEER: &[u8] = b"backstay";
const ALPN_PAIRING: &[u8] = b"backstay-pair";
/// A stranger who connects and says nothing is dropped after this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The key could not be used.
    #[error("setting up TLS: {0}")]
    Setup(#[source] Error),
    /// The handshake failed: no TLS 1.3, a key that is not pinned here or there, or a broken link.
    #[error("handshake: {0}")]
    Handshake(#[source] io::Error),
    /// The peer took too long.
    #[error("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// A key that is not known asks for more than a pairing.
    #[error("the key {0} is not pinned here")]
    NotPinned(Fingerprint),
    /// TLS, but not our protocol inside.
    #[error("the peer does not speak the backstay protocol")]
    Protocol,
}

/// The keys that this node believes, shared by everything that connects; changed by pairing and by configuration.
#[derive(Debug, Default)]
pub struct Pins {
    set: RwLock<BTreeSet<Fingerprint>>,
    /// Until when unknown keys may try to pair, in nanoseconds; 0 when never.
    guests_until: AtomicU64,
}

impl Pins {
    /// Believes these keys.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = Fingerprint>) -> Arc<Self> {
        Arc::new(Self {
            set: RwLock::new(keys.into_iter().collect()),
            guests_until: AtomicU64::new(0),
        })
    }

    /// Believes one more key.
    pub fn add(&self, key: Fingerprint) {
        self.set
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key);
    }

    /// Believes a key no longer.
    pub fn remove(&self, key: &Fingerprint) {
        self.set
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    /// Whether a key is believed.
    #[must_use]
    pub fn contains(&self, key: &Fingerprint) -> bool {
        self.set
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(key)
    }

    pub(crate) fn admit_guests_until(&self, until: Timestamp) {
        self.guests_until.store(until.0, Ordering::Release);
    }

    fn admits_guests(&self, now: Timestamp) -> bool {
        now.0 < self.guests_until.load(Ordering::Acquire)
    }
}

/// Which server a connection must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Exactly this key.
    Key(Fingerprint),
    /// A key whose fingerprint begins so; only for a pairing.
    Prefix([u8; Fingerprint::PREFIX_BYTES]),
}

impl Expect {
    fn matches(&self, key: &Fingerprint) -> bool {
        match self {
            Self::Key(k) => k == key,
            Self::Prefix(p) => *p == key.prefix(),
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Two nodes that know each other.
    Peer,
    /// A pairing.
    Pairing,
}

/// A connection that came in.
#[derive(Debug)]
pub struct Accepted<S> {
    /// Its bytes.
    pub stream: TlsStream<S>,
    /// The key of the other side.
    pub peer: Fingerprint,
    /// What it is for.
    pub purpose: Purpose,
}

/// This node's side of TLS.
#[derive(Clone)]
pub struct Tls {
    identity: Arc<Identity>,
    pins: Arc<Pins>,
    provider: Arc<CryptoProvider>,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Speaks as `identity`, believes `pins`.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn new(identity: Arc<Identity>, pins: Arc<Pins>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(PinnedClients {
            pins: Arc::clone(&pins),
            provider: Arc::clone(&provider),
        });
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain(), identity.key())
            .map_err(TlsError::Setup)?;
        config.alpn_protocols = vec![ALPN_PEER.to_vec(), ALPN_PAIRING.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self {
            identity,
            pins,
            provider,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whom we believe.
    #[must_use]
    pub const fn pins(&self) -> &Arc<Pins> {
        &self.pins
    }

    /// Greets the server at the other end of `stream`, which must be the expected one.
    ///
    /// That this succeeds does not yet mean that the server believes *us*: in TLS 1.3 its refusal arrives with the first read.
    ///
    /// # Errors
    /// When it is another server, or no TLS 1.3 of ours.
    pub async fn connect<S>(&self, stream: S, expect: Expect) -> Result<(TlsStream<S>, Fingerprint), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let verifier = Arc::new(ExpectedServer {
            expect,
            provider: Arc::clone(&self.provider),
        });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.identity.chain(), self.identity.key())
            .map_err(TlsError::Setup)?;
        let alpn = match expect {
            Expect::Key(_) => ALPN_PEER,
            Expect::Prefix(_) => ALPN_PAIRING,
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        let name = ServerName::try_from(SERVER_NAME).expect("a constant that is a DNS name");
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = within(handshake).await?;
        let connection = stream.get_ref().1;
        let peer = peer_key(connection.peer_certificates())?;
        if connection.alpn_protocol() != Some(alpn) || !expect.matches(&peer) {
            return Err(TlsError::Protocol);
        }
        Ok((TlsStream::Client(stream), peer))
    }

    /// Answers a client that connected.
    ///
    /// # Errors
    /// When its key is not pinned and it does not come for an open pairing, or it speaks no TLS 1.3 of ours.
    pub async fn accept<S>(&self, stream: S) -> Result<Accepted<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = within(self.acceptor.accept(stream)).await?;
        let connection = stream.get_ref().1;
        let peer = peer_key(connection.peer_certificates())?;
        let purpose = match connection.alpn_protocol() {
            Some(ALPN_PEER) if self.pins.contains(&peer) => Purpose::Peer,
            Some(ALPN_PEER) => return Err(TlsError::NotPinned(peer)),
            Some(ALPN_PAIRING) => Purpose::Pairing,
            _ => return Err(TlsError::Protocol),
        };
        Ok(Accepted {
            stream: TlsStream::Server(stream),
            peer,
            purpose,
        })
    }
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<T, TlsError> {
    let done = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    done.map_err(|_| TlsError::Timeout)?.map_err(TlsError::Handshake)
}

fn peer_key(certificates: Option<&[CertificateDer<'_>]>) -> Result<Fingerprint, TlsError> {
    let certificate = certificates.and_then(<[_]>::first).ok_or(TlsError::Protocol)?;
    fingerprint_of(certificate).map_err(|_| TlsError::Protocol)
}

fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// Accepts clients whose key is pinned, and any client while a pairing is open.
#[derive(Debug)]
struct PinnedClients {
    pins: Arc<Pins>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for PinnedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = fingerprint_of(end_entity)?;
        if self.pins.contains(&key) || self.pins.admits_guests(Timestamp::now()) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(refused())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Accepts the one server that the connection is meant for.
#[derive(Debug)]
struct ExpectedServer {
    expect: Expect,
    provider: Arc<CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        if self.expect.matches(&fingerprint_of(end_entity)?) {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        } else {
            Err(refused())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
