//! One state-changing command a context at a time; beside it the mounts of its snapshots, one a level.
//!
//! A command holds all that it works on, or nothing: there is no order of scopes in which two could wait for each other.

use control::Holder;
use model::Level;
use parking_lot::{Condvar, Mutex};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What of a context a command works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Role, line, protected volumes, maps: everything but snapshots.
    Context,
    /// The devices of one snapshot.
    Level(Level),
    /// Those of all snapshots.
    Levels,
}

impl Scope {
    const fn excludes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Context, Self::Context) => true,
            (Self::Context, _) | (_, Self::Context) => false,
            (Self::Level(a), Self::Level(b)) => a.0 == b.0,
            (Self::Levels, _) | (_, Self::Levels) => true,
        }
    }
}

/// Who works on what now. Clones are the same lock.
#[derive(Clone, Default)]
pub struct CommandLock(Arc<Inner>);

#[derive(Default)]
struct Inner {
    held: Mutex<Held>,
    free: Condvar,
}

#[derive(Default)]
struct Held {
    next: u64,
    all: Vec<(u64, Scope, Holder)>,
}

/// Holds its scopes until dropped.
pub struct CommandGuard {
    lock: CommandLock,
    ticket: u64,
}

impl CommandLock {
    /// Takes all of these scopes at once, waiting at most so long.
    ///
    /// # Errors
    /// With who holds one of them.
    pub fn lock(&self, scopes: &[Scope], holder: &Holder, wait: Duration) -> Result<CommandGuard, Holder> {
        let deadline = Instant::now() + wait;
        let mut held = self.0.held.lock();
        loop {
            let other = |(_, scope, _): &&(u64, Scope, Holder)| scopes.iter().any(|s| s.excludes(*scope));
            let Some((_, _, other)) = held.all.iter().find(other) else {
                break;
            };
            if Instant::now() >= deadline {
                return Err(other.clone());
            }
            self.0.free.wait_until(&mut held, deadline);
        }
        held.next += 1;
        let ticket = held.next;
        held.all
            .extend(scopes.iter().map(|scope| (ticket, *scope, holder.clone())));
        Ok(CommandGuard {
            lock: self.clone(),
            ticket,
        })
    }
}

impl Drop for CommandGuard {
    fn drop(&mut self) {
        self.lock
            .0
            .held
            .lock()
            .all
            .retain(|(ticket, ..)| *ticket != self.ticket);
        self.lock.0.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Moment;

    fn holder(command: &str) -> Holder {
        Holder {
            host: "a".into(),
            operator: "root@a".into(),
            command: command.into(),
            since: Moment(0),
            job: Some(7),
        }
    }

    #[test]
    fn the_second_is_told_who_holds_it() {
        let lock = CommandLock::default();
        let take = |command: &str| lock.lock(&[Scope::Context], &holder(command), Duration::ZERO);
        let held = take("rtmark").ok().unwrap();
        let other = take("rtstop").err().unwrap();
        assert_eq!(other, holder("rtmark"));
        assert_eq!(
            other.to_string(),
            "root@a has 'rtmark' running on a since 1970-01-01T00:00:00Z (job 7)"
        );
        drop(held);
        assert!(take("rtstop").is_ok());
    }

    #[test]
    fn levels_exclude_themselves_and_all_levels_and_nothing_else() {
        use Scope::{Context, Level as One, Levels};
        let (ten, eleven) = (One(Level(10)), One(Level(11)));
        for (held, wanted, free) in [
            (&[ten] as &[Scope], &[eleven] as &[Scope], true),
            (&[ten], &[ten], false),
            (&[ten], &[Levels], false),
            (&[Levels], &[ten], false),
            (&[Context], &[ten], true),
            (&[Context], &[Levels], true),
            (&[Context, Levels], &[ten], false),
            (&[ten], &[Context, Levels], false),
        ] {
            let lock = CommandLock::default();
            let _held = lock.lock(held, &holder("first"), Duration::ZERO).ok().unwrap();
            let got = lock.lock(wanted, &holder("second"), Duration::ZERO);
            assert_eq!(got.is_ok(), free, "{held:?} {wanted:?}");
        }
    }

    #[test]
    fn a_refused_command_holds_none_of_its_scopes() {
        let lock = CommandLock::default();
        let level = [Scope::Level(Level(10))];
        let held = lock.lock(&level, &holder("first"), Duration::ZERO).ok();
        let both = [Scope::Context, Scope::Levels];
        assert!(lock.lock(&both, &holder("second"), Duration::ZERO).is_err());
        assert!(
            lock.lock(&[Scope::Context], &holder("third"), Duration::ZERO)
                .is_ok()
        );
        drop(held);
    }

    #[test]
    fn one_who_waits_gets_it_when_it_is_free() {
        let lock = CommandLock::default();
        let held = lock
            .lock(&[Scope::Context], &holder("first"), Duration::ZERO)
            .ok();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                lock.lock(&[Scope::Context], &holder("second"), Duration::from_secs(60))
                    .is_ok()
            });
            drop(held);
            assert!(waits.join().unwrap());
        });
    }
}
