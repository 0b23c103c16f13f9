//! Reaching a peer: its endpoints in order, and how long to wait before trying again.

use crate::{
    conn,
    fingerprint::Fingerprint,
    tls::{Expect, Tls, TlsError},
};
use rand::Rng as _;
use std::{io, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an endpoint (host:port): {why}")]
pub struct EndpointError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Splits `host:port`; the host may be a name, an IPv4 address, or an IPv6 address in brackets.
///
/// # Errors
/// When it is neither.
pub fn check_endpoint(text: &str) -> Result<(&str, u16), EndpointError> {
    let err = |why| EndpointError {
        text: text.to_owned(),
        why,
    };
    if text.len() > crate::codec::ENDPOINT_BYTES_MAX {
        return Err(err("it is longer than 255 bytes"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| err("the port is missing"))?;
    let bare = match host.strip_prefix('[') {
        Some(h) => h.strip_suffix(']').ok_or_else(|| err("a bracket is missing"))?,
        None if host.contains(':') => return Err(err("an IPv6 address needs brackets")),
        None => host,
    };
    if bare.is_empty()
        || bare
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || "[]#/@".contains(c))
    {
        return Err(err("that is no host"));
    }
    match port.parse::<u16>() {
        Ok(number) if number > 0 && !port.starts_with('+') => Ok((bare, number)),
        _ => Err(err("the port is not a number from 1 to 65535")),
    }
}

/// Why one endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The peer has no endpoint.
    #[error("the peer has no endpoint")]
    NoEndpoint,
    /// No connection.
    #[error("{endpoint}: {source}")]
    Connect {
        /// Where.
        endpoint: String,
        /// The failure.
        source: io::Error,
    },
    /// No answer.
    #[error("{endpoint}: no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// Where.
        endpoint: String,
    },
    /// A connection, but not the peer.
    #[error("{endpoint}: {source}")]
    Tls {
        /// Where.
        endpoint: String,
        /// The failure.
        source: TlsError,
    },
}

/// A connection that was made.
#[derive(Debug)]
pub struct Dialed {
    /// Its bytes.
    pub stream: TlsStream<TcpStream>,
    /// The peer's key.
    pub peer: Fingerprint,
    /// The endpoint that answered.
    pub endpoint: String,
}

/// Waiting times that double from 100 ms to 5 s, each shortened at random by up to a half so that peers do not march in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: Self::LEAST }
    }
}

impl Backoff {
    /// The first wait.
    pub const LEAST: Duration = Duration::from_millis(100);
    /// The longest.
    pub const MOST: Duration = Duration::from_secs(5);

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(Self::MOST);
        wait
    }

    /// Begins again with the shortest wait.
    pub const fn reset(&mut self) {
        self.next = Self::LEAST;
    }
}

/// Connects to one peer, over and over.
#[derive(Debug, Clone)]
pub struct Dialer {
    endpoints: Vec<String>,
    /// The endpoint that goes last in the next round.
    avoided: Option<String>,
    backoff: Backoff,
}

impl Dialer {
    /// A dialer for a peer with these endpoints, best first.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            avoided: None,
            backoff: Backoff::default(),
        }
    }

    /// The endpoints as they are tried now: in order, with the avoided one behind the others.
    fn round(&self) -> impl Iterator<Item = &String> {
        let is_avoided = |endpoint: &&String| self.avoided.as_ref() == Some(endpoint);
        let others = self.endpoints.iter().filter(move |e| !is_avoided(e));
        others.chain(self.endpoints.iter().filter(is_avoided))
    }

    /// To be called when a connection was made over this endpoint and then carried nothing, or not what the peer said. A path that
    /// passes handshakes and swallows the rest would else be the first to be tried for ever. The next round that reaches the peer
    /// ends it: the order is that of the configuration again.
    pub fn avoid(&mut self, endpoint: String) {
        self.avoided = Some(endpoint);
    }

    /// Tries every endpoint once, in order.
    ///
    /// # Errors
    /// The failure of the last endpoint; those before are in the log.
    pub async fn once(&self, tls: &Tls, expect: Expect) -> Result<Dialed, DialError> {
        let mut last = DialError::NoEndpoint;
        for endpoint in self.round() {
            match one(endpoint, tls, expect).await {
                Ok(dialed) => return Ok(dialed),
                Err(e) => {
                    tracing::debug!(error = %e, "endpoint not reached");
                    last = e;
                }
            }
        }
        Err(last)
    }

    /// Tries until an endpoint answers; each failed round goes to `failed`. Dropping the future ends it.
    pub async fn until_reached(
        &mut self,
        tls: &Tls,
        expect: Expect,
        mut failed: impl FnMut(&DialError),
    ) -> Dialed {
        loop {
            match self.once(tls, expect).await {
                Ok(dialed) => {
                    self.avoided = None;
                    return dialed;
                }
                Err(e) => failed(&e),
            }
            self.pause().await;
        }
    }

    /// Waits before the next round; also for use after a connection that was refused once it stood.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.wait()).await;
    }

    /// To be called when the peer has welcomed us: the next rounds begin with short waits.
    pub const fn welcomed(&mut self) {
        self.backoff.reset();
    }
}

async fn one(endpoint: &str, tls: &Tls, expect: Expect) -> Result<Dialed, DialError> {
    let connect = |source| DialError::Connect {
        endpoint: endpoint.to_owned(),
        source,
    };
    let invalid = |e| connect(io::Error::new(io::ErrorKind::InvalidInput, e));
    let target = check_endpoint(endpoint).map_err(invalid)?;
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await;
    let tcp = tcp
        .map_err(|_| DialError::Timeout {
            endpoint: endpoint.to_owned(),
        })?
        .map_err(connect)?;
    conn::prepare(&tcp).map_err(connect)?;
    let (stream, peer) = tls.connect(tcp, expect).await.map_err(|source| DialError::Tls {
        endpoint: endpoint.to_owned(),
        source,
    })?;
    Ok(Dialed {
        stream,
        peer,
        endpoint: endpoint.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(check_endpoint("rec1:7400"), Ok(("rec1", 7400)));
        assert_eq!(check_endpoint("[::1]:1"), Ok(("::1", 1)));
        for text in [
            "",
            "rec1",
            "rec1:",
            "rec1:0",
            "rec1:65536",
            "rec1:+7",
            ":7400",
            "::1:7400",
            "[::1:7400",
            "a b:1",
            "a#:1",
        ] {
            assert!(check_endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_endpoint_that_carried_nothing_is_tried_last() {
        let mut dialer = Dialer::new(["a:1", "b:1", "c:1"].map(String::from).to_vec());
        assert!(dialer.round().eq(["a:1", "b:1", "c:1"]));
        dialer.avoid("a:1".to_owned());
        assert!(dialer.round().eq(["b:1", "c:1", "a:1"]));
        dialer.avoid("b:1".to_owned());
        assert!(dialer.round().eq(["a:1", "c:1", "b:1"]));
    }

    #[test]
    fn waits_double_up_to_five_seconds() {
        let mut b = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| b.wait()).collect();
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] <= Duration::from_millis(100));
        assert!(waits[9] >= Duration::from_millis(2500) && waits[9] <= Duration::from_secs(5));
        b.reset();
        assert!(b.wait() <= Duration::from_millis(100));
    }
}
