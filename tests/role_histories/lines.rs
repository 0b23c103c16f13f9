//! What every line of history holds, fed with what was submitted and not with what the journal says.

use super::hosts::Fallible;
use journal::{Journal, Promotion};
use model::{GenId, Record, RecordBody, Timestamp, VolumeIndex, WriteSeq};
use snapshot::Volumes;
use std::collections::BTreeMap;
use testkit::Oracle;

/// One oracle a generation, each with all that its line holds before it.
pub struct Lines {
    before: Oracle,
    all: BTreeMap<GenId, Oracle>,
}

impl Lines {
    /// Lines that begin with what the first production's volumes hold.
    pub fn new(before: Oracle) -> Self {
        Self {
            before,
            all: BTreeMap::new(),
        }
    }

    /// Learns of the generations that a host has opened; who opens one is asked before it ships.
    pub fn meet(&mut self, journal: &Journal) {
        for generation in journal.generations() {
            if self.all.contains_key(&generation.id) {
                continue;
            }
            let oracle = match generation.parent {
                None => self.before.clone(),
                Some(parent) => {
                    let mut oracle = self.all[&parent.id].clone();
                    oracle.truncate(parent.seq);
                    oracle
                }
            };
            self.all.insert(generation.id, oracle);
        }
    }

    /// A line was taken over; `false`: that is known.
    pub fn begin(&mut self, promotion: &Promotion) -> bool {
        if self.all.contains_key(&promotion.id) {
            return false;
        }
        let mut oracle = match &promotion.parent {
            None => self.before.clone(),
            Some(parent) => self.all[&parent.id].clone(),
        };
        oracle.truncate(promotion.parent.as_ref().map_or(WriteSeq(0), |p| p.seq));
        self.all.insert(promotion.id, oracle);
        true
    }

    /// A line begins with what some volumes hold, whatever that is.
    pub fn take(&mut self, id: GenId, at: WriteSeq, journal: &Journal, volumes: &Volumes) -> Fallible {
        let mut oracle = self.before.clone();
        oracle.truncate(WriteSeq(0));
        for (volume, v) in volumes.iter() {
            let size = journal.size_now(volume).unwrap_or(v.size());
            let mut bytes = vec![0; usize::try_from(size)?];
            volumes.read(volume, 0, &mut bytes)?;
            oracle.resize(at, Timestamp(at.0), volume, size);
            oracle.write(at, Timestamp(at.0), volume, 0, &bytes);
        }
        self.all.insert(id, oracle);
        Ok(())
    }

    /// The line that ends in this generation; 0 before the first.
    pub fn of(&self, id: GenId) -> &Oracle {
        self.all.get(&id).unwrap_or(&self.before)
    }

    pub fn of_mut(&mut self, id: GenId) -> &mut Oracle {
        self.all.get_mut(&id).expect("a generation that was met")
    }

    /// Positions that hold no change: births, stubs, steps of the clock.
    pub fn fill(&mut self, id: GenId, upto: WriteSeq) {
        let Some(oracle) = self.all.get_mut(&id) else {
            return;
        };
        let first = oracle.head().0 + 1;
        for seq in first..=upto.0 {
            let seq = WriteSeq(seq);
            oracle.record(&Record {
                seq,
                time: Timestamp(seq.0),
                volume: VolumeIndex(0),
                body: RecordBody::Birth {
                    parent: None,
                    parent_digest: [0; 32],
                },
            });
        }
    }

    /// What a crash took from the end of a line: nobody else may have it.
    pub fn cut(&mut self, id: GenId, end: WriteSeq) {
        if let Some(oracle) = self.all.get_mut(&id) {
            oracle.truncate(end);
        }
    }
}

/// Compares what can be read with a line.
///
/// # Panics
/// When it is anything else.
pub fn same(
    what: &str,
    oracle: &Oracle,
    at: WriteSeq,
    mut read: impl FnMut(VolumeIndex, u64, &mut [u8]) -> std::io::Result<()>,
) {
    if let Err(e) = oracle.compare(at, &mut read) {
        panic!("{what} at {at}: {e}");
    }
}
