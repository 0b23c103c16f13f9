//! One state-changing command a context at a time.

use model::Timestamp;
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Who works on the context now.
#[derive(Default)]
pub struct CommandLock {
    holder: Mutex<Option<String>>,
    free: Condvar,
}

/// Holds the lock until dropped.
pub struct CommandGuard<'a>(&'a CommandLock);

impl CommandLock {
    /// Takes the lock, waiting at most so long.
    ///
    /// # Errors
    /// With who holds it and since when.
    pub fn lock(&self, who: String, wait: Duration) -> Result<CommandGuard<'_>, String> {
        let deadline = Instant::now() + wait;
        let mut holder = self.holder.lock();
        while let Some(held) = &*holder {
            if Instant::now() >= deadline {
                return Err(held.clone());
            }
            self.free.wait_until(&mut holder, deadline);
        }
        *holder = Some(format!("{who}, since {}", Timestamp::now()));
        Ok(CommandGuard(self))
    }
}

impl Drop for CommandGuard<'_> {
    fn drop(&mut self) {
        *self.0.holder.lock() = None;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let lock = CommandLock::default();
        let held = lock.lock("root@a: rtmnt".into(), Duration::ZERO).unwrap();
        assert!(
            lock.lock("b".into(), Duration::ZERO)
                .err()
                .unwrap()
                .contains("root@a: rtmnt, since ")
        );
        drop(held);
        assert!(lock.lock("b".into(), Duration::ZERO).is_ok());
    }
}
