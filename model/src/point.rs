//! Exact points: what a restore target resolves to.

use crate::{GenNo, LfcId, Ordinal, Timestamp, WriteSeq};

/// Redo records of one generation, `after < seq <= upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RedoSpan {
    /// The generation.
    pub generation: GenNo,
    /// Exclusive lower end.
    pub after: WriteSeq,
    /// Inclusive upper end.
    pub upto: WriteSeq,
}

/// An exact moment of this host's volumes, ready to be read (`rules.md` V1).
///
/// `base` is the ordinal whose application made the boundary `b` that the view stands on; the first undo after it, or
/// else the volume, holds a block as it was at `b`. `redo` is laid over that, byte-exact and in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Generation of the last record in the view.
    pub generation: GenNo,
    /// Last record in the view.
    pub seq: WriteSeq,
    /// Container that holds (or ends with) that record.
    pub lfc: LfcId,
    /// Time of that record.
    pub time: Timestamp,
    /// The boundary's ordinal.
    pub base: Ordinal,
    /// Records laid over the base, in the order of the line; empty at a boundary.
    pub redo: Vec<RedoSpan>,
}
