//! The lock of a context in the hands of its peer.
//!
//! A command takes the lock of both hosts. The one on the other host is a lease: it lives as long as the connection over
//! which it was asked for ([`crate::roles::lock`]), so a host that dies, or cannot be reached any more, holds nothing for
//! long. What the holder asks this host to do meanwhile is done under the lease, one thing at a time.

use super::{CommandGuard, Context, Scope};
use control::{Holder, Moment};
use model::Timestamp;
use parking_lot::Mutex;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// The lock of this host, held for a command of the peer.
pub struct Lease {
    _guard: CommandGuard,
    /// Names it in what the peer asks for under it.
    pub token: u64,
    holder: Holder,
    /// One thing at a time.
    work: Mutex<()>,
}

/// Both halves: what the peer holds here, and what this host holds there.
#[derive(Default)]
pub(super) struct Leases {
    given: Mutex<Weak<Lease>>,
    taken: Mutex<Option<u64>>,
}

/// What the peer does here may wait so long for a command of this host.
const PATIENCE: Duration = Duration::from_secs(5);

impl Context {
    /// Lends the lock to a command of the peer.
    ///
    /// # Errors
    /// With who holds it.
    pub(crate) fn lend(&self, holder: &Holder) -> Result<Arc<Lease>, Holder> {
        let guard = self.lock_commands(&[Scope::Context], holder, Duration::ZERO)?;
        let lease = Arc::new(Lease {
            _guard: guard,
            token: rand::random(),
            holder: holder.clone(),
            work: Mutex::default(),
        });
        *self.leases.given.lock() = Arc::downgrade(&lease);
        Ok(lease)
    }

    /// The token under which this host holds the peer's lock, for what it asks for there.
    pub(crate) fn token(&self) -> Option<u64> {
        *self.leases.taken.lock()
    }

    /// This host holds the peer's lock, or does not any more.
    pub(crate) fn set_token(&self, token: Option<u64>) {
        *self.leases.taken.lock() = token;
    }

    /// Does something that the peer asked for: under the lease that its command holds, if it does, else under this host's
    /// own lock.
    ///
    /// # Errors
    /// With who holds it.
    pub(crate) fn for_peer<T>(
        &self,
        token: Option<u64>,
        what: &str,
        work: impl FnOnce(&Holder) -> T,
    ) -> Result<T, Holder> {
        let lease = self.leases.given.lock().upgrade();
        if let Some(lease) = lease.filter(|lease| Some(lease.token) == token) {
            let _one = lease.work.lock();
            return Ok(work(&lease.holder));
        }
        let holder = Holder {
            host: self.node_name().to_owned(),
            operator: self.peer_name().to_owned(),
            command: what.to_owned(),
            since: Moment::from(Timestamp::now()),
            job: None,
        };
        let _guard = self.lock_commands(&[Scope::Context], &holder, PATIENCE)?;
        Ok(work(&holder))
    }

    /// As [`Context::for_peer`], for what follows by itself from a command of the peer, whichever it is.
    ///
    /// # Errors
    /// With who holds it.
    pub(crate) fn by_itself<T>(&self, what: &str, work: impl FnOnce(&Holder) -> T) -> Result<T, Holder> {
        let token = self.leases.given.lock().upgrade().map(|lease| lease.token);
        self.for_peer(token, what, work)
    }
}
