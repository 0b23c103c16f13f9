//! History that was found damaged at rest (`rules.md` T10).
//!
//! A container of redo, or undo of a block, that does not check when it is read is noted here. What needs it is then a gap of
//! the window, with its reason, instead of a point that is offered and cannot be read; the boundaries around it stay. Reads
//! never depend on these notes: bytes that do not check are refused each time.
//!
//! The notes live as long as the process. They are made by whoever reads first: a view, the applier, a check.

use crate::{
    error::{Damage, JournalError},
    journal::Journal,
    keys,
};
use model::{BlockNo, GenNo, LfcId, Ordinal, VolumeIndex, ports::Family};
use std::collections::BTreeMap;

/// What was found.
#[derive(Default)]
pub(crate) struct Rotten {
    redo: BTreeMap<(GenNo, LfcId), String>,
    undo: Vec<RottenUndo>,
}

/// A before-image that does not check.
#[derive(Clone, Copy)]
struct RottenUndo {
    /// The oldest state that needs it: the block's undo before it answers for older ones.
    from: Ordinal,
    /// Its own container; the states before it need it.
    ordinal: Ordinal,
}

impl Rotten {
    pub(crate) fn redo(&self, generation: GenNo, lfc: LfcId) -> bool {
        self.redo.contains_key(&(generation, lfc))
    }

    /// The undo that the state after `ordinal` needs and that is damaged.
    pub(crate) fn undo(&self, ordinal: Ordinal) -> Option<Ordinal> {
        let found = self
            .undo
            .iter()
            .find(|u| u.from <= ordinal && ordinal < u.ordinal);
        found.map(|u| u.ordinal)
    }

    pub(crate) fn mended(&mut self, generation: GenNo, lfc: LfcId) {
        self.redo.remove(&(generation, lfc));
    }
}

impl Journal {
    /// Notes damage at rest that a step met.
    pub(crate) fn note_damage(&self, error: &JournalError) {
        let JournalError::Damaged(damage) = error else {
            return;
        };
        match damage {
            Damage::Container {
                generation,
                lfc,
                what,
            } => {
                let mut shared = self.shared.write();
                // Only what is in the store: a container in a tail is the writer's to judge.
                if shared.rows.contains(&(*generation, *lfc)) {
                    let noted = shared.rotten.redo.insert((*generation, *lfc), what.clone());
                    if noted.is_none() {
                        tracing::error!("{damage}: points that need it cannot be reached any more");
                    }
                }
            }
            Damage::Undo {
                ordinal,
                volume,
                block,
                ..
            } => {
                let (ordinal, volume, block) = (Ordinal(*ordinal), VolumeIndex(*volume), BlockNo(*block));
                let from = self.undo_before(volume, block, ordinal);
                let mut shared = self.shared.write();
                if shared
                    .rotten
                    .undo
                    .iter()
                    .any(|u| u.ordinal == ordinal && u.from <= from)
                {
                    return;
                }
                shared.rotten.undo.push(RottenUndo { from, ordinal });
                drop(shared);
                tracing::error!("{damage}: points that need it cannot be reached any more");
            }
            _ => {}
        }
    }

    /// The newest older undo of a block; 0 when there is none, or none can be found.
    fn undo_before(&self, volume: VolumeIndex, block: BlockNo, ordinal: Ordinal) -> Ordinal {
        let key = |ordinal| keys::undo_index(volume, block, ordinal);
        let found = self
            .store
            .last(Family::UndoIndex, &key(Ordinal(0)), &key(ordinal));
        let parts = found.ok().flatten();
        let before = parts.and_then(|(key, _)| keys::index_parts(&key)?.2.u64());
        before.map_or(Ordinal(0), Ordinal)
    }

    /// Sealed containers whose frames were found damaged, and how.
    #[must_use]
    pub fn rotten_containers(&self) -> Vec<(GenNo, LfcId, String)> {
        let shared = self.shared.read();
        let notes = shared.rotten.redo.iter();
        notes
            .map(|((generation, lfc), what)| (*generation, *lfc, what.clone()))
            .collect()
    }
}
