//! Applying sealed containers, and going on after a crash.

use crate::{
    change::ChangeSet,
    error::{Result, SnapshotError},
    overwrite::{Overwritten, UndoPlan, overwrite, overwrite_again},
    volumes::Volumes,
};
use model::{
    GenNo, LfcId, Ordinal, WriteSeq,
    ports::{History, OrdinalKind},
};

/// A sealed redo container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lfc {
    /// Its generation.
    pub generation: GenNo,
    /// Its id.
    pub lfc: LfcId,
    /// Its last record.
    pub last_seq: WriteSeq,
}

impl Lfc {
    /// What its undo container says of itself.
    const fn kind(self) -> OrdinalKind {
        OrdinalKind::Apply {
            generation: self.generation,
            lfc: self.lfc,
            last_seq: self.last_seq,
        }
    }
}

/// What to do next, given how far overwriting and undo have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The undo of this ordinal is durable but its overwrite may not be: write again, build no undo (`rules.md` W4).
    Repeat(Ordinal),
    /// The next overwrite has this ordinal.
    Fresh(Ordinal),
}

impl Step {
    /// Decides from the durable applied cursor and history.
    ///
    /// While ordinals are repeated no point may stand on one above `applied`; points at or below it stay true, because
    /// every block that is written again has its undo.
    ///
    /// # Errors
    /// When the cursor is past the newest durable undo: then one of them is damaged.
    pub fn after(applied: Ordinal, history: &dyn History) -> Result<Self> {
        let published = history.published();
        match applied.cmp(&published) {
            std::cmp::Ordering::Less => Ok(Self::Repeat(applied.next())),
            std::cmp::Ordering::Equal => Ok(Self::Fresh(applied.next())),
            std::cmp::Ordering::Greater => Err(SnapshotError::AppliedPastUndo { applied, published }),
        }
    }

    /// The ordinal it is about.
    #[must_use]
    pub const fn ordinal(self) -> Ordinal {
        match self {
            Self::Repeat(ordinal) | Self::Fresh(ordinal) => ordinal,
        }
    }
}

/// What applying a container did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The ordinal it has: the applied cursor may now be moved here.
    pub ordinal: Ordinal,
    /// Whether it was the repetition of an interrupted one.
    pub repeated: bool,
    /// What was written and kept.
    pub overwritten: Overwritten,
}

/// Applies one sealed container on a host that builds undo (`rules.md` W2): all its records, in one overwrite.
///
/// `applied` is the durable cursor. When the container after it was interrupted, `lfc` must be that same one; it is
/// repeated from its durable undo.
///
/// # Errors
/// As [`overwrite()`] and [`Step::after`].
pub fn apply(
    volumes: &Volumes,
    history: &dyn History,
    lfc: Lfc,
    applied: Ordinal,
    changes: &ChangeSet,
    progress: &mut dyn FnMut(u64),
) -> Result<Applied> {
    let step = Step::after(applied, history)?;
    let overwritten = match step {
        Step::Repeat(ordinal) => overwrite_again(volumes, changes, history, ordinal, progress)?,
        Step::Fresh(ordinal) => {
            let kind = lfc.kind();
            let undo = UndoPlan {
                history,
                ordinal,
                kind,
                images: None,
            };
            overwrite(volumes, changes, Some(undo), progress)?
        }
    };
    Ok(Applied {
        ordinal: step.ordinal(),
        repeated: matches!(step, Step::Repeat(_)),
        overwritten,
    })
}

/// Applies one sealed container of a first sync: it gets its ordinal, so that positions and ordinals stay matched, but keeps
/// no undo, because no earlier point can be asked for (`rules.md` C2). Repeating it is harmless. Answers its ordinal.
///
/// # Errors
/// As [`apply`].
pub fn apply_first_sync(
    volumes: &Volumes,
    history: &dyn History,
    lfc: Lfc,
    applied: Ordinal,
    changes: &ChangeSet,
) -> Result<Ordinal> {
    let step = Step::after(applied, history)?;
    if let Step::Fresh(ordinal) = step {
        history.commit_undo(ordinal, &lfc.kind(), &mut std::iter::empty())?;
    }
    overwrite(volumes, changes, None, &mut |_| {})?;
    Ok(step.ordinal())
}
