//! Faults that are armed to strike the n-th operation of a kind, and holds that stop an operation in its middle.

use parking_lot::{Condvar, Mutex};
use std::{io, sync::Arc};

/// Kinds of operation that faults and holds can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads; of a store: `get`, `scan`, `first_of_each`, `last`.
    Read,
    /// Writes and zeroes; of a store: `drop_range`.
    Write,
    /// Syncs; of a store: `commit` and `ingest`.
    Sync,
}

/// Faults armed on one medium or store.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Mutex<Vec<(Op, u64)>>,
}

impl Faults {
    /// The `n`-th (1-based) operation of kind `op` from now on fails, once.
    pub(super) fn arm(&self, op: Op, n: u64) {
        assert!(n > 0, "operations are counted from 1");
        self.armed.lock().push((op, n));
    }

    pub(super) fn disarm(&self) {
        self.armed.lock().clear();
    }

    /// Counts one operation.
    pub(super) fn strike(&self, op: Op) -> io::Result<()> {
        let mut armed = self.armed.lock();
        let mut hit = false;
        armed.retain_mut(|(kind, left)| {
            if *kind != op {
                return true;
            }
            *left -= 1;
            hit |= *left == 0;
            *left > 0
        });
        if hit {
            Err(io::Error::from_raw_os_error(5))
        } else {
            Ok(())
        }
    }
}

#[derive(Debug, Default)]
struct Doors {
    /// Open holds: (kind, operations still let through, id).
    shut: Vec<(Op, u64, u64)>,
    waiting: usize,
    next_id: u64,
}

/// Where operations of a medium wait while they are held.
#[derive(Debug, Default)]
pub(super) struct Gate {
    doors: Mutex<Doors>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn hold(self: &Arc<Self>, op: Op, pass: u64) -> Held {
        let mut doors = self.doors.lock();
        doors.next_id += 1;
        let id = doors.next_id;
        doors.shut.push((op, pass, id));
        Held {
            gate: Arc::clone(self),
            id,
        }
    }

    /// Whether the next operation of this kind may have to wait.
    pub(super) fn is_held(&self, op: Op) -> bool {
        self.doors.lock().shut.iter().any(|(kind, ..)| *kind == op)
    }

    /// Waits while an operation of this kind is held.
    pub(super) fn pass(&self, op: Op) {
        let mut doors = self.doors.lock();
        let Some(door) = doors.shut.iter_mut().find(|(kind, ..)| *kind == op) else {
            return;
        };
        if door.1 > 0 {
            door.1 -= 1;
            return;
        }
        let id = door.2;
        doors.waiting += 1;
        self.changed.notify_all();
        while doors.shut.iter().any(|(.., other)| *other == id) {
            self.changed.wait(&mut doors);
        }
        doors.waiting -= 1;
        self.changed.notify_all();
    }
}

/// Operations are held until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the operations go on"]
pub struct Held {
    gate: Arc<Gate>,
    id: u64,
}

impl Held {
    /// Waits until `n` operations stand at the gate; `false` when that took longer than ten seconds.
    #[must_use]
    pub fn wait_for(&self, n: usize) -> bool {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut doors = self.gate.doors.lock();
        while doors.waiting < n {
            if self.gate.changed.wait_until(&mut doors, until).timed_out() {
                return doors.waiting >= n;
            }
        }
        true
    }

    /// Operations that stand at the gate now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.gate.doors.lock().waiting
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.doors.lock().shut.retain(|(.., id)| *id != self.id);
        self.gate.changed.notify_all();
    }
}
