//! What histories have shown, counted.

use std::fmt;

/// How often.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub operations: u64,
    pub records: u64,
    pub applied: u64,
    pub looks: u64,
    pub views: u64,
    pub snapshots: u64,
    pub restores: u64,
    pub stopped: u64,
    pub undone: u64,
    pub pruned: u64,
    pub gone: u64,
    pub crashes: u64,
}

impl Counts {
    /// Whether every part was tried often enough to say anything.
    pub fn is_rich(&self) -> bool {
        let often = [
            self.crashes,
            self.restores,
            self.undone,
            self.stopped,
            self.pruned,
            self.gone,
        ];
        self.operations >= 1_000_000 && self.looks >= 100_000 && often.iter().all(|n| *n >= 300)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, o: Self) {
        self.operations += o.operations;
        self.records += o.records;
        self.applied += o.applied;
        self.looks += o.looks;
        self.views += o.views;
        self.snapshots += o.snapshots;
        self.restores += o.restores;
        self.stopped += o.stopped;
        self.undone += o.undone;
        self.pruned += o.pruned;
        self.gone += o.gone;
        self.crashes += o.crashes;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations: {} records, {} containers applied, {} reads of moments, {} whole moments, {} snapshots, \
             {} restores, {} of them stopped, {} undone, {} prunes, {} moments refused because pruned, {} crashes",
            self.operations,
            self.records,
            self.applied,
            self.looks,
            self.views,
            self.snapshots,
            self.restores,
            self.stopped,
            self.undone,
            self.pruned,
            self.gone,
            self.crashes
        )
    }
}
