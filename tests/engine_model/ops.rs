//! Operations: what there is to do, how often it comes, and the seed that says how exactly.

use rand::{Rng, RngCore};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A frame of one to three writes, of one byte to a few blocks.
    Write,
    Zero,
    Discard,
    /// One sync of the journal.
    Flush,
    Mark,
    Seal,
    Ingest,
    Bound,
    Apply,
    /// Some bytes of some moment, named in any way.
    Look,
    /// A whole moment.
    View,
    /// The replica itself.
    Replica,
    /// What the window promises.
    Window,
    Snapshot,
    Release,
    VdevWrite,
    VdevRead,
    VdevFlush,
    /// Begins a restore, or goes on with one.
    Restore,
    /// Takes one back.
    Undo,
    /// Frees what nobody wants any more.
    Prune,
    /// The process is closed and started again.
    Restart,
    /// The power goes away at a sync soon.
    Cut,
}

/// Each kind with how often it comes, of a thousand.
const KINDS: [(Kind, u32); 23] = [
    (Kind::Write, 440),
    (Kind::Zero, 35),
    (Kind::Discard, 25),
    (Kind::Flush, 100),
    (Kind::Mark, 8),
    (Kind::Seal, 15),
    (Kind::Ingest, 15),
    (Kind::Bound, 5),
    (Kind::Apply, 80),
    (Kind::Look, 150),
    (Kind::View, 2),
    (Kind::Replica, 20),
    (Kind::Window, 2),
    (Kind::Snapshot, 5),
    (Kind::Release, 4),
    (Kind::VdevWrite, 40),
    (Kind::VdevRead, 35),
    (Kind::VdevFlush, 8),
    (Kind::Restore, 3),
    (Kind::Undo, 12),
    (Kind::Prune, 8),
    (Kind::Restart, 1),
    (Kind::Cut, 2),
];

/// One operation. Its seed decides all about it, together with where both sides stand when it is done: so it stays an
/// operation when others before it are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub kind: Kind,
    pub seed: u64,
}

fn draw(rng: &mut dyn RngCore) -> Kind {
    let mut n = rng.random_range(0..KINDS.iter().map(|k| k.1).sum());
    for (kind, weight) in KINDS {
        if n < weight {
            return kind;
        }
        n -= weight;
    }
    unreachable!("the weights are summed")
}

/// A history: every operation, before any is done.
pub fn history(count: usize, rng: &mut dyn RngCore) -> Vec<Op> {
    (0..count)
        .map(|_| Op {
            kind: draw(rng),
            seed: rng.random(),
        })
        .collect()
}
