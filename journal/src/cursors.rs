//! How far everything is, and the inequalities between (invariant 7).

use crate::{
    codec::{Read, Reader, Writer},
    error::Position,
};
use model::{GenNo, LfcId, Ordinal, WriteSeq};

/// How far a context is on this host. Sequence numbers are those of the current line.
///
/// On a recovery host `appended` is what was received and `durable` what was received and synced; there, and on every
/// other host that builds undo, write-back is apply (`rules.md` W2), so `applied`, `written_back` and `checkpointed` move
/// together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursors {
    /// Last record in the journal.
    pub appended: WriteSeq,
    /// Last record that survives a power cut.
    pub durable: WriteSeq,
    /// Last record that the volumes hold.
    pub written_back: WriteSeq,
    /// Last record that the volumes hold durably; replay starts after it.
    pub checkpointed: WriteSeq,
    /// What the peer says it has durably received.
    pub received_by_peer: WriteSeq,
    /// What the peer says it has applied.
    pub applied_by_peer: WriteSeq,
    /// The `durable` that production last told this recovery host; nothing past it is applied.
    pub peer_durable: WriteSeq,
    /// Last record of the last wholly applied container.
    pub applied: WriteSeq,
    /// That container.
    pub applied_lfc: (GenNo, LfcId),
    /// Its ordinal.
    pub applied_ordinal: Ordinal,
    /// Newest ordinal whose undo is durable; ahead of `applied_ordinal` while that container is being applied.
    pub published: Ordinal,
}

impl Cursors {
    /// Whether the volumes hold all up to `at`, of whatever line they are on now.
    #[must_use]
    pub fn has_applied(&self, at: Position) -> bool {
        let (generation, lfc) = self.applied_lfc;
        // Before the first container there is one line only.
        if lfc.0 == 0 && generation.0 == 0 {
            return at.seq <= self.applied;
        }
        let seq = self.applied;
        at <= Position { generation, seq }
    }

    /// The one place where invariant 7 is asserted; called whenever a cursor has changed.
    ///
    /// # Panics
    /// When a cursor claims what is not durable: going on would lose data.
    pub(crate) fn check(&self) {
        let le = |a: (&str, u64), b: (&str, u64)| {
            assert!(
                a.1 <= b.1,
                "invariant 7: {} {} > {} {}: {self:?}",
                a.0,
                a.1,
                b.0,
                b.1
            );
        };
        le(("durable", self.durable.0), ("appended", self.appended.0));
        le(("written_back", self.written_back.0), ("durable", self.durable.0));
        le(
            ("checkpointed", self.checkpointed.0),
            ("written_back", self.written_back.0),
        );
        le(("applied", self.applied.0), ("durable", self.durable.0));
        le(
            ("applied_ordinal", self.applied_ordinal.0),
            ("published", self.published.0),
        );
        le(
            ("applied_by_peer", self.applied_by_peer.0),
            ("received_by_peer", self.received_by_peer.0),
        );
        le(
            ("received_by_peer", self.received_by_peer.0),
            ("appended", self.appended.0),
        );
    }

    /// The durable part: what cannot be read from the tails and the catalog.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(1)
            .u64(self.checkpointed.0)
            .u64(self.received_by_peer.0)
            .u64(self.applied_by_peer.0);
        w.u64(self.peer_durable.0)
            .u64(self.applied.0)
            .u32(self.applied_lfc.0.0)
            .u64(self.applied_lfc.1.0);
        w.u64(self.applied_ordinal.0).done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = Reader(bytes);
        r.version(1)?;
        let mut c = Self {
            checkpointed: WriteSeq(r.u64()?),
            received_by_peer: WriteSeq(r.u64()?),
            applied_by_peer: WriteSeq(r.u64()?),
            peer_durable: WriteSeq(r.u64()?),
            applied: WriteSeq(r.u64()?),
            applied_lfc: (GenNo(r.u32()?), LfcId(r.u64()?)),
            applied_ordinal: Ordinal(r.u64()?),
            ..Self::default()
        };
        r.end()?;
        c.written_back = c.checkpointed;
        Ok(c)
    }
}
