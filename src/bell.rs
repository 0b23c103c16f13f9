//! A bell that threads sleep on: no polling, no lost wake-up.

use parking_lot::{Condvar, Mutex};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Counts its rings; a sleeper that missed some wakes at once. Clones are the same bell. Async tasks listen too.
#[derive(Clone, Default)]
pub struct Bell(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rings: Mutex<u64>,
    condvar: Condvar,
    notify: tokio::sync::Notify,
}

/// One sleeper's count of the rings it has heard.
pub struct Ear {
    bell: Bell,
    heard: u64,
}

impl Bell {
    /// Wakes every sleeper.
    pub fn ring(&self) {
        *self.0.rings.lock() += 1;
        self.0.condvar.notify_all();
        self.0.notify.notify_waiters();
    }

    /// A sleeper that has heard nothing yet: its first wait returns at once.
    #[must_use]
    pub fn ear(&self) -> Ear {
        Ear {
            bell: self.clone(),
            heard: u64::MAX,
        }
    }
}

impl Ear {
    /// Sleeps until the bell has rung since the last wait, at most so long; answers whether it rang.
    pub fn wait(&mut self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let mut rings = self.bell.0.rings.lock();
        while *rings == self.heard {
            if self.bell.0.condvar.wait_until(&mut rings, deadline).timed_out() {
                break;
            }
        }
        let rang = *rings != self.heard;
        self.heard = *rings;
        rang
    }

    /// As [`Ear::wait`], for tasks and without a limit.
    pub async fn listen(&mut self) {
        loop {
            let notified = self.bell.0.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let rings = self.bell.0.rings.lock();
                if *rings != self.heard {
                    self.heard = *rings;
                    return;
                }
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_the_wait_is_heard() {
        let bell = Bell::default();
        let mut ear = bell.ear();
        assert!(ear.wait(Duration::ZERO), "the first wait returns at once");
        assert!(!ear.wait(Duration::ZERO));
        bell.ring();
        bell.ring();
        assert!(ear.wait(Duration::from_secs(60)));
        assert!(!ear.wait(Duration::ZERO));
    }
}
