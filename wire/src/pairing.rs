//! Pairing: two nodes that have never met come to know each other's keys by one string that a person carries.
//!
//! ```text
//! rec1:7400#4T9K-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX
//! ```
//! Behind the `#` are 27 bytes in base32: the first 16 of the listener's fingerprint, 10 of a random secret, 1 that tells a
//! mistyped string from a wrong one. The joining node believes exactly the server whose key begins so, and the server
//! believes whoever knows the secret. A man in the middle has neither; who only sees the exchange learns nothing, for the
//! secret travels inside TLS to the one server that made it.
//!
//! The secret is good for [`PairingDesk::LIFE`], for one node, and for [`PairingDesk::ATTEMPTS`] wrong answers; then the desk
//! closes and strangers no longer finish a handshake. A desk is not durable: a restart closes it.
//!
//! Nothing is believed before the owner has stored it: [`PairingDesk::receive`] answers a [`Joining`], the owner makes the
//! peer's card durable, then [`Joining::accept`] tells the peer. A crash between leaves this node knowing a peer that does
//! not know it; pairing once more mends that.

use crate::{
    base32::{self, Base32Error},
    codec::{self, Decoder},
    conn::{ConnError, read_message, write_message},
    dial::{EndpointError, check_endpoint},
    fingerprint::Fingerprint,
    message::{Message, NodeCard, RefuseCode},
    tls::{Accepted, Expect, Pins, Purpose, Tls, TlsError},
};
use bytes::BytesMut;
use model::{Term, Timestamp};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsStream;

const PREFIX: usize = Fingerprint::PREFIX_BYTES;
const SECRET: usize = 10;
/// One exchange takes a round trip; who needs longer only holds the desk.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a pairing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PairingError {
    /// The string has no `#`.
    #[error("'{0}' is not a pairing string (host:port#XXXX-XXXX-...)")]
    Form(String),
    /// The part before the `#` is no endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The part behind the `#` is damaged.
    #[error("the pairing string is mistyped: {0}")]
    Characters(#[from] Base32Error),
    /// The part behind the `#` does not fit itself.
    #[error("the pairing string is mistyped: its last characters do not fit the others")]
    Mistyped,
    /// The system has no randomness.
    #[error("no randomness for a secret: {0}")]
    Random(String),
    /// The connection failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The exchange failed.
    #[error(transparent)]
    Connection(#[from] ConnError),
    /// The other node took too long.
    #[error("the other node did not answer within {} s", EXCHANGE_TIMEOUT.as_secs())]
    Timeout,
    /// The other node refused.
    #[error("the other node refused: {0}")]
    Refused(String),
    /// No pairing is open, or it is too old.
    #[error("no pairing is open; a new string is needed")]
    Closed,
    /// The secret is wrong.
    #[error("wrong pairing secret, {left} attempts left")]
    Secret {
        /// Attempts before the desk closes.
        left: u32,
    },
    /// A message that has no place in a pairing.
    #[error("unexpected message in a pairing")]
    Unexpected,
    /// A node tried to pair with itself.
    #[error("this node cannot pair with itself")]
    Itself,
}

/// What the string holds.
#[derive(Clone, PartialEq, Eq)]
pub struct PairingCode {
    endpoint: String,
    prefix: [u8; PREFIX],
    secret: [u8; SECRET],
}

impl PairingCode {
    /// Where the other node listens, `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The server that the string speaks of.
    #[must_use]
    pub const fn expect(&self) -> Expect {
        Expect::Prefix(self.prefix)
    }
}

fn check_byte(bytes: &[u8]) -> u8 {
    blake3::hash(bytes).as_bytes()[0]
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [self.prefix.as_slice(), &self.secret].concat();
        bytes.push(check_byte(&bytes));
        write!(f, "{}#{}", self.endpoint, base32::encode(&bytes))
    }
}

/// Without the secret: it must not end up in a log.
impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairingCode")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl FromStr for PairingCode {
    type Err = PairingError;

    fn from_str(text: &str) -> Result<Self, PairingError> {
        let (endpoint, code) = text
            .trim()
            .split_once('#')
            .ok_or_else(|| PairingError::Form(text.to_owned()))?;
        check_endpoint(endpoint)?;
        let bytes = base32::decode::<{ PREFIX + SECRET + 1 }>(code)?;
        let (held, check) = bytes.split_at(PREFIX + SECRET);
        if check != [check_byte(held)] {
            return Err(PairingError::Mistyped);
        }
        Ok(Self {
            endpoint: endpoint.to_owned(),
            prefix: std::array::from_fn(|i| bytes[i]),
            secret: std::array::from_fn(|i| bytes[PREFIX + i]),
        })
    }
}

struct Open {
    secret: [u8; SECRET],
    until: Timestamp,
    attempts_left: u32,
}

/// Where the listening node keeps its one open pairing.
pub struct PairingDesk {
    pins: Arc<Pins>,
    open: Mutex<Option<Open>>,
}

impl fmt::Debug for PairingDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairingDesk").finish_non_exhaustive()
    }
}

impl PairingDesk {
    /// How long a string is good.
    pub const LIFE: Duration = Duration::from_secs(600);
    /// Wrong answers before the desk closes.
    pub const ATTEMPTS: u32 = 5;

    /// A closed desk. While it is open, `pins` lets strangers finish their handshake.
    #[must_use]
    pub const fn new(pins: Arc<Pins>) -> Self {
        Self {
            pins,
            open: Mutex::new(None),
        }
    }

    /// Opens a pairing, in place of one that is open, and answers its string.
    ///
    /// # Errors
    /// When `endpoint` is no `host:port`, or the system has no randomness.
    pub fn open(
        &self,
        now: Timestamp,
        own: &Fingerprint,
        endpoint: &str,
    ) -> Result<PairingCode, PairingError> {
        check_endpoint(endpoint)?;
        let mut secret = [0; SECRET];
        rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut secret)
            .map_err(|e| PairingError::Random(e.to_string()))?;
        let life = u64::try_from(Self::LIFE.as_nanos()).unwrap_or(u64::MAX);
        let until = Timestamp(now.0.saturating_add(life));
        *self.lock() = Some(Open {
            secret,
            until,
            attempts_left: Self::ATTEMPTS,
        });
        self.pins.admit_guests_until(until);
        Ok(PairingCode {
            endpoint: endpoint.to_owned(),
            prefix: own.prefix(),
            secret,
        })
    }

    /// Closes the pairing that is open, if any.
    pub fn close(&self) {
        *self.lock() = None;
        self.pins.admit_guests_until(Timestamp(0));
    }

    /// Whether a pairing is open.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.lock().as_ref().is_some_and(|o| now < o.until)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares a secret; the right one uses the pairing up.
    ///
    /// # Errors
    /// When it is wrong, or nothing is open.
    pub fn redeem(&self, now: Timestamp, secret: &[u8; SECRET]) -> Result<(), PairingError> {
        let mut slot = self.lock();
        let result = match slot.as_mut() {
            Some(open) if now < open.until => {
                // Hashes of blake3 compare in constant time.
                if blake3::hash(secret) == blake3::hash(&open.secret) {
                    Ok(())
                } else {
                    open.attempts_left -= 1;
                    Err(PairingError::Secret {
                        left: open.attempts_left,
                    })
                }
            }
            _ => Err(PairingError::Closed),
        };
        if !matches!(result, Err(PairingError::Secret { left: 1.. })) {
            *slot = None;
            self.pins.admit_guests_until(Timestamp(0));
        }
        result
    }

    /// Hears a node that connected for a pairing. On success it has shown the secret, and waits.
    ///
    /// # Errors
    /// When the connection is not for a pairing, the secret is wrong (the peer is told), or the exchange fails.
    pub async fn receive<S>(&self, now: Timestamp, accepted: Accepted<S>) -> Result<Joining<S>, PairingError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Accepted {
            mut stream,
            peer,
            purpose: Purpose::Pairing,
        } = accepted
        else {
            return Err(PairingError::Unexpected);
        };
        let Message::Pair { secret, card } = exchange(read_one(&mut stream)).await? else {
            return Err(PairingError::Unexpected);
        };
        if let Err(e) = check_card(&card).and_then(|()| self.redeem(now, &secret)) {
            refuse(stream, &e.to_string()).await;
            return Err(e);
        }
        Ok(Joining { stream, peer, card })
    }
}

/// A node that has shown the secret and waits to be accepted.
#[derive(Debug)]
pub struct Joining<S> {
    stream: TlsStream<S>,
    peer: Fingerprint,
    card: NodeCard,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Joining<S> {
    /// Its key.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.peer
    }

    /// Its name and endpoints.
    #[must_use]
    pub const fn card(&self) -> &NodeCard {
        &self.card
    }

    /// Tells it that it is known now, and by whom. The caller has stored it and added it to the pins.
    ///
    /// # Errors
    /// When the answer cannot be sent; the node then has to pair again.
    pub async fn accept(mut self, own: NodeCard) -> Result<(), PairingError> {
        exchange(async {
            write_message(&mut self.stream, &Message::Paired { card: own }).await?;
            linger(&mut self.stream).await;
            Ok(())
        })
        .await
    }

    /// Tells it why not.
    pub async fn refuse(self, why: &str) {
        refuse(self.stream, why).await;
    }
}

/// Joins the node that made the string; answers its key, name and endpoints, for the caller to store and to pin.
///
/// # Errors
/// When the connection fails, the server is not the one of the string, or it refuses.
pub async fn join<S>(
    tls: &Tls,
    code: &PairingCode,
    stream: S,
    own: NodeCard,
) -> Result<(Fingerprint, NodeCard), PairingError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if code.prefix == tls.identity().fingerprint().prefix() {
        return Err(PairingError::Itself);
    }
    check_card(&own)?;
    let (mut stream, peer) = tls.connect(stream, code.expect()).await?;
    let answer = exchange(async {
        write_message(
            &mut stream,
            &Message::Pair {
                secret: code.secret,
                card: own,
            },
        )
        .await?;
        read_one(&mut stream).await
    });
    match answer.await? {
        Message::Paired { card } => {
            check_card(&card)?;
            Ok((peer, card))
        }
        Message::Refuse(r) => Err(PairingError::Refused(r.text)),
        _ => Err(PairingError::Unexpected),
    }
}

fn check_card(card: &NodeCard) -> Result<(), PairingError> {
    if card.name.is_empty() || card.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(PairingError::Refused(
            "a node needs a name without white space".to_owned(),
        ));
    }
    card.endpoints
        .iter()
        .try_for_each(|e| check_endpoint(e).map(drop))
        .map_err(PairingError::from)
}

async fn exchange<T>(step: impl Future<Output = Result<T, ConnError>>) -> Result<T, PairingError> {
    Ok(timeout(EXCHANGE_TIMEOUT, step)
        .await
        .map_err(|_| PairingError::Timeout)??)
}

async fn read_one<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut TlsStream<S>,
) -> Result<Message, ConnError> {
    // Small on purpose: nothing a stranger may say is longer.
    let mut buf = BytesMut::with_capacity(codec::HEADER_BYTES + 1024);
    read_message(stream, &mut buf, Decoder::pairing())
        .await?
        .ok_or(ConnError::Closed)
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: TlsStream<S>, why: &str) {
    let message = Message::refuse(RefuseCode::Pairing, Term(0), why);
    // The peer is told as a courtesy; that it could not be told changes nothing here.
    let told = exchange(async {
        write_message(&mut stream, &message).await?;
        linger(&mut stream).await;
        Ok(())
    });
    if let Err(e) = told.await {
        tracing::debug!(error = %e, "a refused pairing could not be told so");
    }
}

/// Ends our half and waits for the peer's end, so that what was sent is not lost to a reset.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut TlsStream<S>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    if stream.shutdown().await.is_ok() {
        // Whatever it still says is of no interest.
        let _ = stream.read(&mut [0; 64]).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> (PairingDesk, PairingCode, Fingerprint) {
        let own = Fingerprint::of_key(b"own");
        let desk = PairingDesk::new(Pins::new([]));
        let code = desk.open(Timestamp(0), &own, "rec1:7400").unwrap();
        (desk, code, own)
    }

    #[test]
    fn the_string_round_trips_and_tells_typing_errors() {
        let (_, code, own) = desk();
        let text = code.to_string();
        assert_eq!(text.len(), "rec1:7400#".len() + 54, "{text}");
        let read: PairingCode = text.to_lowercase().parse().unwrap();
        assert_eq!(read, code);
        assert_eq!(read.expect(), Expect::Prefix(own.prefix()));
        assert!(
            !format!("{code:?}").contains(&text[40..44]),
            "the secret is not shown"
        );
        let mut wrong = text.clone().into_bytes();
        wrong[15] = if wrong[15] == b'2' { b'3' } else { b'2' };
        let wrong = String::from_utf8(wrong).unwrap().parse::<PairingCode>();
        assert!(matches!(wrong, Err(PairingError::Mistyped)), "{wrong:?}");
        for text in ["", "rec1:7400", "rec1#4T9K", "rec1:7400#4T9K", "rec1:0#4T9K"] {
            assert!(text.parse::<PairingCode>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_secret_is_good_once() {
        let (desk, code, _) = desk();
        desk.redeem(Timestamp(1), &code.secret).unwrap();
        assert!(matches!(
            desk.redeem(Timestamp(2), &code.secret),
            Err(PairingError::Closed)
        ));
    }

    #[test]
    fn the_secret_is_good_for_ten_minutes() {
        let (desk, code, _) = desk();
        let end = Timestamp(600 * Timestamp::SECOND_NS);
        assert!(desk.is_open(Timestamp(end.0 - 1)));
        assert!(matches!(
            desk.redeem(end, &code.secret),
            Err(PairingError::Closed)
        ));
        assert!(!desk.is_open(Timestamp(1)));
    }

    #[test]
    fn five_wrong_answers_close_the_desk() {
        let (desk, code, _) = desk();
        for left in (0..5).rev() {
            let e = desk.redeem(Timestamp(1), &[7; 10]).unwrap_err();
            assert!(matches!(e, PairingError::Secret { left: l } if l == left), "{e}");
        }
        assert!(matches!(
            desk.redeem(Timestamp(1), &code.secret),
            Err(PairingError::Closed)
        ));
    }

    #[test]
    fn a_new_string_replaces_the_old_one() {
        let (desk, old, own) = desk();
        let new = desk.open(Timestamp(1), &own, "rec1:7400").unwrap();
        assert!(desk.redeem(Timestamp(2), &old.secret).is_err());
        desk.redeem(Timestamp(2), &new.secret).unwrap();
    }
}
