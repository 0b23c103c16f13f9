//! Crashes, and what the model adopts of what it finds behind them: what was in doubt, and nothing else.

use super::Run;
use crate::{engine::Engine, model::Phase, ops::Kind};
use journal::RestorePhase;
use model::{BLOCK_SIZE, LfcId, WriteSeq};
use rand::{Rng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};

impl Run {
    /// The power went away, or the process was killed; it starts again, and what was promised is there.
    pub(super) fn crash(&mut self, during: Kind, rng: &mut StdRng) {
        self.counts.crashes += 1;
        self.engine = None;
        loop {
            let killed = during == Kind::Restart || rng.random_range(0..4) == 0;
            self.was_cut |= !killed;
            match killed {
                true => self.power.kill(rng),
                false => self.power.cut(rng),
            }
            if rng.random_range(0..8) == 0 {
                self.power.freeze_at(rng.random_range(1..12));
            }
            match Engine::boot(&self.power, &self.model.sizes) {
                Ok(engine) => {
                    self.engine = Some(engine);
                    break;
                }
                Err(e) => assert!(self.power.is_off(), "it does not start: {e:#}"),
            }
        }
        self.power.never_freeze();
        self.adopt_journal(during);
        self.adopt_restore(during);
        self.adopt_snapshots(during);
        self.was_cut = false;
        // Before anything that was interrupted goes on, every moment is what it was.
        for _ in 0..3 {
            self.look(rng).unwrap();
        }
        self.window().unwrap();
    }

    fn adopt_journal(&mut self, during: Kind) {
        let c = self.e().journal.cursors();
        let m = &mut self.model;
        let promised = if self.was_cut { m.durable } else { self.answered };
        assert!(
            c.appended >= promised,
            "{} is there, {promised} was promised",
            c.appended
        );
        assert!(c.appended <= m.oracle.head(), "records that nobody wrote");
        assert_eq!(c.durable, c.appended, "what was read again is durable");
        m.oracle.truncate(c.appended);
        m.durable = c.appended;
        self.answered = c.appended;
        let rows: BTreeMap<LfcId, WriteSeq> = {
            let rows = self.engine.as_ref().expect("it is up").journal.lfc_rows(..);
            rows.iter().map(|row| (row.lfc, row.last_seq)).collect()
        };
        for (lfc, end) in m.oracle.lfcs() {
            let there = rows.get(lfc).copied();
            assert!(
                there == Some(*end) || *end < m.wanted,
                "container {lfc} to {end}: {there:?}"
            );
        }
        for (lfc, end) in rows {
            m.oracle.seal(lfc, end);
        }
        if c.applied != m.applied {
            assert_eq!((during, Some(c.applied)), (Kind::Apply, m.next_end()));
            m.apply(c.applied);
            self.counts.applied += 1;
        }
    }

    fn adopt_restore(&mut self, during: Kind) {
        let row = self.e().journal.restore().unwrap();
        let found = row.map(|row| match (row.phase, row.undo_from) {
            (RestorePhase::Done, _) => Phase::Done,
            (RestorePhase::Running, None) => Phase::Running,
            (RestorePhase::Running, Some(_)) => Phase::Undoing,
        });
        let in_doubt = matches!(during, Kind::Restore | Kind::Undo);
        let was = self.model.phase();
        match (was, found) {
            (was, found) if was == found => {}
            (was, found) if !in_doubt => panic!("the restore was {was:?} and is {found:?}"),
            (Some(Phase::Running), None) => self.model.restore = None,
            (Some(Phase::Running), Some(Phase::Done)) => self.model.restored(),
            (Some(Phase::Undoing), None) => self.model.undone(),
            // The turn was not durable.
            (Some(Phase::Undoing), Some(phase)) => {
                self.model.restore.as_mut().expect("it is undoing").phase = phase;
            }
            (was, found) => panic!("the restore was {was:?} and is {found:?}"),
        }
    }

    fn adopt_snapshots(&mut self, during: Kind) {
        let engine = self.engine.as_ref().expect("it is up");
        let kept: BTreeSet<u64> = engine.snapshots.keys().copied().collect();
        let known: BTreeSet<u64> = self.model.snapshots.keys().copied().collect();
        let doubtful: Vec<u64> = known.symmetric_difference(&kept).copied().collect();
        let in_doubt = matches!(during, Kind::Snapshot | Kind::Release);
        assert!(
            doubtful.is_empty() || (in_doubt && doubtful.len() == 1 && kept.is_subset(&known)),
            "pins {doubtful:?} came or went"
        );
        doubtful
            .iter()
            .for_each(|id| drop(self.model.snapshots.remove(id)));
        for (id, snapshot) in &mut self.model.snapshots {
            let vdev = &engine.snapshots[id];
            // What was not flushed is there or not, as on any disk; only a flush says that it stays so.
            for key in snapshot.unflushed.clone() {
                let mut block = [0; BLOCK_SIZE as usize];
                let size = self.model.sizes[usize::from(key.0.0)];
                let len = (size - key.1.start()).min(BLOCK_SIZE);
                let block_part = &mut block[..usize::try_from(len).unwrap()];
                vdev.read(key.0, key.1.start(), block_part).unwrap();
                snapshot.written.insert(key, block);
            }
        }
    }
}
