//! What a check found, and where.

use crate::{
    error::{Damage, JournalError},
    keys,
};
use model::{
    BlockNo, GenNo, LfcId, Ordinal, VolumeIndex, WriteSeq,
    ports::{Family, StoreError},
};
use std::fmt;

/// Most findings that are listed of one kind; the rest are counted.
const LISTED_MAX: usize = 200;

/// What kind of thing does not check: what it means and what to do depend on it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A note: bytes of a frame that was being written when the node ended; a start cuts them off.
    TornEnd,
    /// A note: one slot of the superblock does not check; the other one is used.
    SpareSlot,
    /// A file of the journal is gone.
    Gone,
    /// Something is of a version that this build does not read.
    Version,
    /// Frames in a tail, or its header.
    Tail,
    /// The superblock.
    Superblock,
    /// The store does not open, or cannot read one of its files.
    Store,
    /// Rows: the catalog, cursors, role, pins.
    Metadata,
    /// A container or generation does not continue what is before it.
    Chain,
    /// Frames of a sealed container.
    Redo,
    /// The block index of redo.
    RedoIndex,
    /// Before-images.
    Undo,
    /// Their index.
    UndoIndex,
    /// A state map.
    Map,
}

impl FindingKind {
    /// Whether it is damage, and not what a start mends by itself.
    #[must_use]
    pub const fn is_damage(self) -> bool {
        !matches!(self, Self::TornEnd | Self::SpareSlot)
    }
}

/// Where something stands, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// A file of the journal's folder.
    pub file: Option<String>,
    /// A family of the store.
    pub family: Option<&'static str>,
    /// A row's key in hexadecimal.
    pub key: Option<String>,
    /// A container.
    pub container: Option<(GenNo, LfcId)>,
    /// A frame of it.
    pub frame: Option<u32>,
    /// A record.
    pub record: Option<WriteSeq>,
    /// An apply ordinal.
    pub ordinal: Option<Ordinal>,
    /// A block of a volume.
    pub block: Option<(VolumeIndex, BlockNo)>,
    /// A byte of the file.
    pub byte: Option<u64>,
}

impl Place {
    /// A file.
    pub(crate) fn file(name: impl Into<String>) -> Self {
        Self {
            file: Some(name.into()),
            ..Self::default()
        }
    }

    /// A family of the store.
    pub(crate) fn family(family: Family) -> Self {
        Self {
            file: Some("db".into()),
            family: Some(keys::family_name(family)),
            ..Self::default()
        }
    }

    /// A container of redo.
    pub(crate) fn container(generation: GenNo, lfc: LfcId) -> Self {
        Self {
            container: Some((generation, lfc)),
            ..Self::family(Family::Redo)
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.file.clone());
        parts.extend(self.family.map(str::to_owned));
        parts.extend(self.key.as_ref().map(|key| format!("key {key}")));
        parts.extend(self.container.map(|(g, lfc)| format!("container g{g}:{lfc}")));
        parts.extend(self.frame.map(|n| format!("frame {n}")));
        parts.extend(self.record.map(|seq| format!("record {seq}")));
        parts.extend(self.ordinal.map(|n| format!("ordinal {n}")));
        parts.extend(self.block.map(|(v, b)| format!("volume {v} block {}", b.0)));
        parts.extend(self.byte.map(|at| format!("byte {at}")));
        f.write_str(&parts.join(", "))
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub what: String,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// One after the other.
    pub all: Vec<Finding>,
    /// How many more there are of kinds of which there are very many.
    pub more: u64,
}

impl Findings {
    pub(crate) fn add(&mut self, kind: FindingKind, place: Place, what: impl Into<String>) {
        let finding = Finding {
            kind,
            place,
            what: what.into(),
        };
        if self.all.contains(&finding) {
            return;
        }
        if self.all.iter().filter(|f| f.kind == kind).count() < LISTED_MAX {
            self.all.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// What a family's reads failed with.
    pub(crate) fn add_store(&mut self, family: Family, place: Place, error: &StoreError) {
        let kind = match family {
            Family::Redo => FindingKind::Redo,
            Family::RedoIndex => FindingKind::RedoIndex,
            Family::Undo => FindingKind::Undo,
            Family::UndoIndex => FindingKind::UndoIndex,
            Family::Map => FindingKind::Map,
            Family::Catalog | Family::Meta => FindingKind::Metadata,
        };
        self.add(kind, place, error.to_string());
    }

    /// What opening failed with, or would have failed with.
    pub(crate) fn add_error(&mut self, error: &JournalError) {
        match error {
            JournalError::Damaged(damage) => self.add_damage(damage),
            JournalError::Version { what, .. } => {
                self.add(FindingKind::Version, Place::file(what.clone()), error.to_string());
            }
            JournalError::Io { what, .. } => {
                self.add(FindingKind::Gone, Place::file(what.clone()), error.to_string());
            }
            e => self.add(FindingKind::Store, Place::file("db"), e.to_string()),
        }
    }

    pub(crate) fn add_damage(&mut self, damage: &Damage) {
        let tail = |n: &usize, at: Option<u64>| Place {
            byte: at,
            ..Place::file(format!("tail.{n}"))
        };
        let (kind, place) = match damage {
            Damage::Superblock => (FindingKind::Superblock, Place::file("super")),
            Damage::Gone(path) => (FindingKind::Gone, Place::file(path.clone())),
            Damage::Metadata { .. } => (FindingKind::Metadata, Place::family(Family::Meta)),
            Damage::EndBelow { end, .. } => (
                FindingKind::Tail,
                Place {
                    record: Some(end.seq.next()),
                    ..Place::file("tail.0 or tail.1")
                },
            ),
            Damage::Hole {
                tail: n, at, after, ..
            } => (
                FindingKind::Tail,
                Place {
                    record: Some(after.next()),
                    ..tail(n, Some(*at))
                },
            ),
            Damage::Header { tail: n, .. } => (FindingKind::Tail, tail(n, Some(0))),
            Damage::Discontinuous { tail: n, .. } => (FindingKind::Chain, tail(n, Some(0))),
            Damage::Container { generation, lfc, .. } => {
                (FindingKind::Redo, Place::container(*generation, *lfc))
            }
            Damage::Row { family, key, .. } => (
                FindingKind::Metadata,
                Place {
                    file: Some("db".into()),
                    family: Some(family),
                    key: Some(key.clone()),
                    ..Place::default()
                },
            ),
            Damage::Undo {
                ordinal,
                volume,
                block,
                ..
            } => (
                FindingKind::Undo,
                Place {
                    ordinal: Some(Ordinal(*ordinal)),
                    block: Some((VolumeIndex(*volume), BlockNo(*block))),
                    ..Place::family(Family::Undo)
                },
            ),
        };
        self.add(kind, place, damage.to_string());
    }

    /// Whether anything is damaged; notes do not count.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.all.iter().any(|f| f.kind.is_damage())
    }
}
