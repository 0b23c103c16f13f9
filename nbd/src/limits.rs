//! What a server grants its clients.

use std::time::Duration;

/// Bounds on what clients can make the server hold or wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time. One more takes the place of the one that has negotiated longest; where all are past that, it
    /// is turned away.
    pub connections_max: usize,
    /// Threads beside those of the connections, of all of them together, for reads that take long.
    pub readers_max: usize,
    /// Time from connect to the end of negotiation.
    pub negotiation_timeout: Duration,
    /// Options of one negotiation.
    pub options_max: u32,
    /// Bytes of unanswered mutations of one connection. Above it the socket is not read.
    pub in_flight_bytes_max: usize,
    /// How long an ending connection waits for the answers that it is owed.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            readers_max: 64,
            negotiation_timeout: Duration::from_secs(30),
            options_max: 256,
            in_flight_bytes_max: 64 << 20,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
