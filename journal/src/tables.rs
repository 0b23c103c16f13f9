//! Typed access to the metadata rows: context, pins, restore, consistency.

use crate::{
    error::{JournalError, Position},
    journal::Journal,
    keys::{self, Parts},
    rows::{Consistent, ContextRow, OrdinalRow, PinRow, RestoreRow, bad_key, checked},
};
use model::{
    Ordinal, Target, Timestamp,
    ports::{Batch, Family},
    target::TargetKind,
};
use std::ops::RangeBounds;

impl Journal {
    /// What this host durably believes itself to be.
    ///
    /// # Errors
    /// When the store fails or the row cannot be read.
    pub fn context(&self) -> Result<Option<ContextRow>, JournalError> {
        let value = self.store.get(Family::Meta, keys::CONTEXT)?;
        value
            .map(|v| checked("meta", keys::CONTEXT, ContextRow::decode(&v)))
            .transpose()
    }

    /// Makes role, term and state durable, before they act (`rules.md` T7).
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn put_context(&self, row: &ContextRow) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, keys::CONTEXT, row.encode());
        self.meta_commit(batch, true)
    }

    /// All pins by number.
    ///
    /// # Errors
    /// When the store fails or a row cannot be read.
    pub fn pins(&self) -> Result<Vec<PinRow>, JournalError> {
        let mut pins = Vec::new();
        let mut fault = None;
        self.store
            .scan(Family::Meta, &[keys::PIN], &[keys::PIN + 1], &mut |key, value| {
                let mut p = Parts(key);
                let id = p.u8().and_then(|_| p.u64());
                let row = id
                    .ok_or_else(|| bad_key("meta", key))
                    .and_then(|id| checked("meta", key, PinRow::decode(id, value)));
                match row {
                    Ok(row) => pins.push(row),
                    Err(e) => fault = Some(e),
                }
                fault.is_none()
            })?;
        fault.map_or(Ok(pins), Err)
    }

    /// One pin.
    ///
    /// # Errors
    /// When the store fails or the row cannot be read.
    pub fn pin(&self, id: u64) -> Result<Option<PinRow>, JournalError> {
        let key = keys::pin(id);
        self.store
            .get(Family::Meta, &key)?
            .map(|v| checked("meta", &key, PinRow::decode(id, &v)))
            .transpose()
    }

    /// Makes a pin durable, before its name is printed (`rules.md` V3).
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn put_pin(&self, row: &PinRow) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, keys::pin(row.id), row.encode());
        self.meta_commit(batch, true)
    }

    /// Removes a pin, and in the same batch puts another one in its place if `instead` is given (K2).
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn delete_pin(&self, id: u64, instead: Option<&PinRow>) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        batch.delete(Family::Meta, keys::pin(id));
        if let Some(row) = instead {
            batch.put(Family::Meta, keys::pin(row.id), row.encode());
        }
        self.meta_commit(batch, instead.is_some())
    }

    /// The failover restore under way or in force.
    ///
    /// # Errors
    /// When the store fails or the row cannot be read.
    pub fn restore(&self) -> Result<Option<RestoreRow>, JournalError> {
        let value = self.store.get(Family::Meta, keys::RESTORE)?;
        value
            .map(|v| checked("meta", keys::RESTORE, RestoreRow::decode(&v)))
            .transpose()
    }

    /// Makes a restore's plan or progress durable, with the context's row in the same batch if it is given.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn put_restore(
        &self,
        row: Option<&RestoreRow>,
        context: Option<&ContextRow>,
    ) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        match row {
            Some(row) => batch.put(Family::Meta, keys::RESTORE, row.encode()),
            None => batch.delete(Family::Meta, keys::RESTORE),
        }
        if let Some(context) = context {
            batch.put(Family::Meta, keys::CONTEXT, context.encode());
        }
        self.meta_commit(batch, true)
    }

    /// Rows of undo containers in a range of ordinals.
    #[must_use]
    pub fn ordinal_rows(&self, range: impl RangeBounds<Ordinal>) -> Vec<OrdinalRow> {
        self.shared
            .read()
            .ordinals
            .range(range)
            .map(|(_, row)| row.clone())
            .collect()
    }

    /// The spans of positions in which this host's volumes are consistent.
    #[must_use]
    pub fn consistent(&self) -> Vec<Consistent> {
        self.shared.read().consistent.clone()
    }

    /// The first position of the span in which the volumes are consistent and go on to be, once there is one.
    #[must_use]
    pub fn consistent_from(&self) -> Option<Position> {
        let shared = self.shared.read();
        shared
            .consistent
            .last()
            .filter(|c| c.until.is_none())
            .map(|c| c.from)
    }

    /// The last consistent point, where a resync goes on since then: `None` if none does, or if the point cannot be gone back to
    /// any more, because undo of the copies that came since had to go.
    #[must_use]
    pub fn last_consistent(&self) -> Option<Position> {
        let until = self.consistent().last()?.until?;
        let target = Target {
            generation: Some(until.generation),
            kind: TargetKind::Seq(until.seq),
        };
        self.resolve(&target, Timestamp(u64::MAX))
            .is_ok()
            .then_some(until)
    }

    /// Whether the volumes are consistent now.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let cursors = self.cursors();
        self.consistent_from()
            .is_some_and(|from| cursors.has_applied(from))
    }

    /// The volumes are consistent from `from` on (C5): for a first sync the position of its last copy, for a new
    /// production the start of its line.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn set_consistent_from(&self, from: Position) -> Result<(), JournalError> {
        self.change_consistent(|spans| {
            if spans.last().is_none_or(|s| s.until.is_some()) {
                spans.push(Consistent { from, until: None });
            }
        })
    }

    /// Positions past `until` are not consistent until [`Journal::set_consistent_from`] is called again (C5, K3).
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn set_consistent_until(&self, until: Position) -> Result<(), JournalError> {
        self.change_consistent(|spans| {
            if let Some(last) = spans.last_mut().filter(|s| s.until.is_none()) {
                last.until = Some(until.max(last.from));
            }
        })
    }

    /// Forgets the spans that end before `floor`: nothing of them can be reached any more.
    pub(crate) fn forget_spans_below(&self, floor: Position) -> Result<(), JournalError> {
        let is_below = |s: &Consistent| s.until.is_some_and(|until| until < floor);
        if !self.consistent().iter().any(is_below) {
            return Ok(());
        }
        self.change_consistent(|spans| spans.retain(|s| !is_below(s)))
    }

    /// Forgets the last span if it has ended and nothing leads back to its end: undo of copies went, and no container did.
    pub(crate) fn forget_lost_span(&self) -> Result<(), JournalError> {
        let last = self.consistent().last().and_then(|span| span.until);
        let Some(until) = last.filter(|until| self.cursors().has_applied(*until)) else {
            return Ok(());
        };
        if until > self.floors().redo_seq || self.last_consistent().is_some() {
            return Ok(());
        }
        self.change_consistent(|spans| spans.retain(|span| span.until != Some(until)))
    }

    fn change_consistent(&self, change: impl FnOnce(&mut Vec<Consistent>)) -> Result<(), JournalError> {
        self.guarded(|| {
            // From the look to the change under one lock: the receiver ends a span while retention forgets another.
            let mut meta = self.meta.lock();
            let mut spans = self.consistent();
            change(&mut spans);
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::CONSISTENT, Consistent::encode_all(&spans));
            self.commit_locked(&mut meta, batch, true)?;
            self.shared.write().consistent = spans;
            Ok(())
        })
    }
}
