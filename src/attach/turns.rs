//! Who works on what: one at a time.

use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Turns at things that have names.
#[derive(Debug, Default)]
pub struct Turns {
    taken: Mutex<BTreeSet<String>>,
    given_back: Condvar,
}

/// One's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    name: String,
}

impl Turns {
    /// Waits for the turn at `name`; `None` when it does not come in time.
    pub fn take(&self, name: &str, patience: Duration) -> Option<Turn<'_>> {
        let until = Instant::now() + patience;
        let mut taken = self.taken.lock();
        while !taken.insert(name.to_owned()) {
            if self.given_back.wait_until(&mut taken, until).timed_out() {
                return None;
            }
        }
        Some(Turn {
            turns: self,
            name: name.to_owned(),
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken.lock().remove(&self.name);
        self.turns.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    #[test]
    fn one_at_a_time_and_others_meanwhile() {
        let turns = Turns::default();
        let at = [AtomicU32::new(0), AtomicU32::new(0)];
        thread::scope(|scope| {
            for n in 0..8 {
                let (turns, at) = (&turns, &at[n % 2]);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let name = if n % 2 == 0 { "a" } else { "b" };
                        let _turn = turns.take(name, Duration::from_secs(60)).unwrap();
                        assert_eq!(at.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        at.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let a = turns.take("a", Duration::ZERO);
        assert!(a.is_some() && turns.take("b", Duration::ZERO).is_some());
        assert!(turns.take("a", Duration::from_millis(1)).is_none());
        drop(a);
        assert!(turns.take("a", Duration::ZERO).is_some());
    }
}
