//! Rows of the metadata: role and term, pins, the restore under way, floors, consistent spans.

use super::{Parent, begin, open, option, point, position, put_option, put_point, put_position};
use crate::{
    codec::{Malformed, Read, Reader},
    error::Position,
};
use model::{
    BlockNo, ContextState, GenId, GenNo, Level, LfcId, Ordinal, Point, Role, Term, Timestamp, VolumeIndex,
    WriteSeq,
};
use std::collections::BTreeMap;

/// What this host durably believes itself to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRow {
    /// Its role.
    pub role: Role,
    /// Its state.
    pub state: ContextState,
    /// The highest term it has seen.
    pub term: Term,
    /// Since when.
    pub since: Timestamp,
    /// What else the daemon must find again (who stopped it, the boot's identity).
    pub notes: BTreeMap<String, String>,
}

impl ContextRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u8(match self.role {
            Role::Production => 0,
            Role::Recovery => 1,
        });
        w.u8(match self.state {
            ContextState::Stopped => 0,
            ContextState::Enabled => 1,
            ContextState::Restoring => 2,
            ContextState::RolledBack => 3,
            ContextState::FailingOver => 4,
            ContextState::FailedOver => 5,
            ContextState::Fenced => 6,
            ContextState::ResyncReady => 7,
        });
        w.u64(self.term.0)
            .u64(self.since.0)
            .u32(crate::codec::len32(self.notes.len()));
        for (k, v) in &self.notes {
            w.text(k).text(v);
        }
        w.done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let role = match r.u8()? {
            0 => Role::Production,
            1 => Role::Recovery,
            _ => return Err(Malformed::What("its role is not known")),
        };
        let state = match r.u8()? {
            0 => ContextState::Stopped,
            1 => ContextState::Enabled,
            2 => ContextState::Restoring,
            3 => ContextState::RolledBack,
            4 => ContextState::FailingOver,
            5 => ContextState::FailedOver,
            6 => ContextState::Fenced,
            7 => ContextState::ResyncReady,
            _ => return Err(Malformed::What("its state is not known")),
        };
        let (term, since) = (Term(r.u64()?), Timestamp(r.u64()?));
        let n = r.u32()?;
        let notes = (0..n).map(|_| Ok((r.text()?, r.text()?))).collect::<Read<_>>()?;
        r.end()?;
        Ok(Self {
            role,
            state,
            term,
            since,
            notes,
        })
    }
}

/// Whose pin it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinKind {
    /// A snapshot of the operator.
    Snapshot {
        /// Its level.
        level: Level,
        /// Its name, if it has one.
        name: Option<String>,
    },
    /// A reader of the past: an export, a validation run.
    Reader,
    /// A failover restore (`rules.md` R-2), or the place of a released snapshot.
    Restore,
    /// Left by a released snapshot (K2).
    Released,
    /// An event mark that was set with a time to keep it.
    Mark {
        /// Its name.
        name: String,
    },
}

/// What keeps a point reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    /// Number of the pin.
    pub id: u64,
    /// Whose it is.
    pub kind: PinKind,
    /// The point it keeps.
    pub point: Point,
    /// The target it was asked for as.
    pub target: String,
    /// Who asked for it: `user@host`. Empty in rows of before there were owners.
    pub owner: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it may go by itself.
    pub expires: Option<Timestamp>,
}

impl PinRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        let (kind, level, name) = match &self.kind {
            PinKind::Snapshot { level, name: None } => (0, level.0, ""),
            PinKind::Snapshot {
                level,
                name: Some(name),
            } => (1, level.0, name.as_str()),
            PinKind::Reader => (2, 0, ""),
            PinKind::Restore => (3, 0, ""),
            PinKind::Released => (4, 0, ""),
            PinKind::Mark { name } => (5, 0, name.as_str()),
        };
        w.u8(kind)
            .u32(level)
            .text(name)
            .text(&self.target)
            .u64(self.created.0);
        put_option(&mut w, self.expires.map(|t| t.0));
        put_point(&mut w, &self.point);
        w.text(&self.owner);
        w.done()
    }

    pub(crate) fn decode(id: u64, bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let (kind, level, name) = (r.u8()?, Level(r.u32()?), r.text()?);
        let kind = match kind {
            0 => PinKind::Snapshot { level, name: None },
            1 => PinKind::Snapshot {
                level,
                name: Some(name),
            },
            2 => PinKind::Reader,
            3 => PinKind::Restore,
            4 => PinKind::Released,
            5 => PinKind::Mark { name },
            _ => return Err(Malformed::What("its kind is not known")),
        };
        let (target, created) = (r.text()?, Timestamp(r.u64()?));
        let expires = option(&mut r)?.map(Timestamp);
        let point = point(&mut r)?;
        let owner = if r.0.is_empty() { String::new() } else { r.text()? };
        r.end()?;
        Ok(Self {
            id,
            kind,
            point,
            target,
            owner,
            created,
            expires,
        })
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestorePhase {
    /// Blocks are being changed.
    Running,
    /// The volumes stand at the target.
    Done,
}

/// The failover restore under way or in force (`rules.md` R-2); durable before the first block changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRow {
    /// Where the volumes go.
    pub target: Point,
    /// What was asked for.
    pub text: String,
    /// The ordinal before its first container.
    pub from: Ordinal,
    /// The next block to look at.
    pub cursor: (VolumeIndex, BlockNo),
    /// How far it is.
    pub phase: RestorePhase,
    /// While it is taken back (`--undo`): the ordinal before the first container of that.
    pub undo_from: Option<Ordinal>,
    /// Only this volume.
    pub only: Option<VolumeIndex>,
}

impl RestoreRow {
    /// A restore that has changed nothing yet.
    #[must_use]
    pub const fn begun(target: Point, text: String, only: Option<VolumeIndex>, from: Ordinal) -> Self {
        Self {
            target,
            text,
            from,
            cursor: (VolumeIndex(0), BlockNo(0)),
            phase: RestorePhase::Running,
            undo_from: None,
            only,
        }
    }

    /// The same restore, to be taken back from ordinal `from` on.
    #[must_use]
    pub fn turned_round(self, from: Ordinal) -> Self {
        Self {
            undo_from: Some(from),
            cursor: (VolumeIndex(0), BlockNo(0)),
            phase: RestorePhase::Running,
            ..self
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u8(u8::from(self.phase == RestorePhase::Done));
        put_option(&mut w, self.undo_from.map(|o| o.0));
        put_option(&mut w, self.only.map(|v| u64::from(v.0)));
        w.u64(self.from.0)
            .u16(self.cursor.0.0)
            .u64(self.cursor.1.0)
            .text(&self.text);
        put_point(&mut w, &self.target);
        w.done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let phase = if r.u8()? == 1 {
            RestorePhase::Done
        } else {
            RestorePhase::Running
        };
        let undo_from = option(&mut r)?.map(Ordinal);
        let only = option(&mut r)?
            .map(|v| u16::try_from(v).map(VolumeIndex))
            .transpose()
            .map_err(|_| Malformed::What("its volume is not one"))?;
        let from = Ordinal(r.u64()?);
        let cursor = (VolumeIndex(r.u16()?), BlockNo(r.u64()?));
        let text = r.text()?;
        let target = point(&mut r)?;
        r.end()?;
        Ok(Self {
            target,
            text,
            from,
            cursor,
            phase,
            undo_from,
            only,
        })
    }
}

/// A line that this host took over and to which it has added no record yet (`rules.md` L1, L3): its next record opens a
/// generation of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The generation that the first record will open.
    pub id: GenId,
    /// Where the line ends until then; `None`: at its very beginning.
    pub parent: Option<Parent>,
    /// The clock there: what the first record's time is compared with (L5).
    pub clock: Timestamp,
}

impl Promotion {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u64(self.id.0).u64(self.clock.0);
        w.u8(u8::from(self.parent.is_some()));
        if let Some(parent) = &self.parent {
            w.u64(parent.id.0).u64(parent.seq.0).bytes(&parent.digest);
        }
        w.done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let (id, clock) = (GenId(r.u64()?), Timestamp(r.u64()?));
        let parent = match r.u8()? {
            0 => None,
            _ => Some(Parent {
                id: GenId(r.u64()?),
                seq: WriteSeq(r.u64()?),
                digest: r.array()?,
            }),
        };
        r.end()?;
        Ok(Self { id, parent, clock })
    }
}

/// What is freed: nobody reads at or below these (`rules.md` T9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floors {
    /// Frames up to the end of this container are freed; generations before its own entirely.
    pub redo: (GenNo, LfcId),
    /// Last record of that container.
    pub redo_seq: Position,
    /// Undo up to this ordinal is freed.
    pub undo: Ordinal,
}

impl Floors {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = begin();
        w.u32(self.redo.0.0).u64(self.redo.1.0);
        put_position(&mut w, self.redo_seq);
        w.u64(self.undo.0).done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Read<Self> {
        let mut r = open(bytes)?;
        let redo = (GenNo(r.u32()?), LfcId(r.u64()?));
        let redo_seq = position(&mut r)?;
        let undo = Ordinal(r.u64()?);
        r.end()?;
        Ok(Self { redo, redo_seq, undo })
    }
}

/// A span of positions in which this host's volumes are consistent (`rules.md` C5): both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consistent {
    /// First consistent position.
    pub from: Position,
    /// Last one; `None` while it goes on.
    pub until: Option<Position>,
}

impl Consistent {
    pub(crate) fn encode_all(spans: &[Self]) -> Vec<u8> {
        let mut w = begin();
        w.u32(crate::codec::len32(spans.len()));
        for s in spans {
            put_position(&mut w, s.from);
            w.u8(u8::from(s.until.is_some()));
            put_position(&mut w, s.until.unwrap_or_default());
        }
        w.done()
    }

    pub(crate) fn decode_all(bytes: &[u8]) -> Read<Vec<Self>> {
        let mut r = open(bytes)?;
        let n = r.u32()?;
        let read = |r: &mut Reader<'_>| {
            let from = position(r)?;
            let ends = r.u8()? == 1;
            let until = position(r)?;
            Ok(Self {
                from,
                until: ends.then_some(until),
            })
        };
        let spans = (0..n).map(|_| read(&mut r)).collect::<Read<_>>()?;
        r.end()?;
        Ok(spans)
    }
}
