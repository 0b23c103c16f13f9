//! Who has connected at the peer port and has not shown who it is: never more than a fixed number at once.
//!
//! A stranger costs a socket, a task and the buffers of a handshake, until it is known, ends, or its time is over
//! (`wire::tls`). When one more comes than there may be, the oldest of the address that has most is turned out. So who floods the
//! port crowds out himself, and a peer at another address is let in at the first try; one at the same address must be
//! faster with its handshake than the flood is with filling the number.
//!
//! What it does not do: bound the rate of handshakes, and so the CPU that a flood takes; that is for a packet filter.

use parking_lot::Mutex;
use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};
use tokio::sync::oneshot;

/// Strangers at once.
pub(crate) const STRANGERS_MAX: usize = 64;

/// All of a node's strangers.
#[derive(Clone, Default)]
pub(crate) struct Strangers(Arc<Mutex<Register>>);

#[derive(Default)]
struct Register {
    last_id: u64,
    /// Oldest first.
    all: Vec<Entry>,
}

struct Entry {
    id: u64,
    source: IpAddr,
    /// Dropped to turn it out.
    _stay: oneshot::Sender<()>,
}

impl Register {
    /// The oldest of the source that has most.
    fn least_welcome(&self) -> Option<usize> {
        let count = |source: IpAddr| self.all.iter().filter(|e| e.source == source).count();
        // The first of equals is the oldest.
        let most = self.all.iter().map(|e| count(e.source)).max()?;
        self.all.iter().position(|e| count(e.source) == most)
    }
}

/// One stranger; it is none any more when this is dropped.
pub(crate) struct Stranger {
    all: Strangers,
    id: u64,
    stay: oneshot::Receiver<()>,
}

impl Strangers {
    /// Lets one in, and turns one out if there are too many.
    pub(crate) fn admit(&self, from: IpAddr) -> Stranger {
        let (sender, stay) = oneshot::channel();
        let mut register = self.0.lock();
        while register.all.len() >= STRANGERS_MAX
            && let Some(at) = register.least_welcome()
        {
            register.all.remove(at);
        }
        register.last_id += 1;
        let id = register.last_id;
        register.all.push(Entry {
            id,
            source: source(from),
            _stay: sender,
        });
        Stranger {
            all: self.clone(),
            id,
            stay,
        }
    }
}

impl Stranger {
    /// Waits until it is turned out.
    pub(crate) async fn turned_out(&mut self) {
        let _ = (&mut self.stay).await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.all.0.lock().all.retain(|e| e.id != self.id);
    }
}

/// What one host can have many of: of IPv6 a network of 64 bits.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_in(stranger: &mut Stranger) -> bool {
        stranger.stay.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn a_flood_crowds_out_itself() {
        let all = Strangers::default();
        let mut peer = all.admit("10.0.0.1".parse().unwrap());
        let mut flood: Vec<Stranger> = (0..1000)
            .map(|_| all.admit("10.9.9.9".parse().unwrap()))
            .collect();
        assert!(is_in(&mut peer));
        let stay = flood
            .iter_mut()
            .filter_map(|s| is_in(s).then_some(s.id))
            .collect::<Vec<_>>();
        // The newest, and no more than there may be.
        assert_eq!(stay.len(), STRANGERS_MAX - 1);
        assert_eq!(stay.last(), Some(&1001));
        assert!(is_in(&mut all.admit("10.0.0.2".parse().unwrap())));
        drop(flood);
        assert_eq!(all.0.lock().all.len(), 1);
    }

    #[test]
    fn among_equals_the_oldest_goes() {
        let all = Strangers::default();
        let mut each: Vec<Stranger> = (0..=STRANGERS_MAX)
            .map(|n| all.admit(format!("10.0.0.{n}").parse().unwrap()))
            .collect();
        assert!(!is_in(&mut each[0]));
        assert!(each[1..].iter_mut().all(is_in));
    }

    #[test]
    fn a_network_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
