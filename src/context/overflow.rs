//! The journal's limit on production (R10, K2): the application never waits for a peer.
//!
//! While the peer is away, or too slow, redo grows. At the limit the oldest containers give way ([`journal::GaveWay`]); what
//! the peer lacks of them is stale and copied at the next contact. From the first such container until the last copy is
//! acknowledged the context is in a *super transaction*: its replica stays at its last consistent point. That is noted
//! durably, with since when and how much, and shown by `status`.

use super::{Context, ContextError};
use crate::roles::row::SUPER_TRANSACTION;
use journal::JournalError;
use model::Timestamp;

/// What gave way since the replica was last consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperTransaction {
    /// When the first container gave way.
    pub since: Timestamp,
    /// How many did.
    pub containers: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl SuperTransaction {
    fn parse(note: &str) -> Option<Self> {
        let mut parts = note.split(' ').map(str::parse::<u64>);
        let mut next = || parts.next()?.ok();
        Some(Self {
            since: Timestamp(next()?),
            containers: next()?,
            bytes: next()?,
        })
    }

    fn text(self) -> String {
        format!("{} {} {}", self.since.0, self.containers, self.bytes)
    }
}

impl Context {
    /// Whether regions may differ whatever the peer has received: an operator has declared it, or a map was lost.
    #[must_use]
    pub fn forced_resync(&self) -> bool {
        self.journal.is_suspect()
    }

    /// The super transaction that this production is in, if it is.
    #[must_use]
    pub fn super_transaction(&self) -> Option<SuperTransaction> {
        SuperTransaction::parse(self.row().notes.get(SUPER_TRANSACTION)?)
    }

    /// Bytes of redo that production may keep: as configured, or all but a reserve of the file system where that is less.
    ///
    /// # Errors
    /// When the file system does not say how full it is.
    pub fn redo_limit(&self) -> Result<u64, ContextError> {
        let disk = self.disk()?;
        if let Some((_, limit)) = self.configured_limit().filter(|_| disk.free >= disk.reserve) {
            return Ok(limit);
        }
        Ok((self.journal.redo_bytes() + disk.free).saturating_sub(disk.reserve))
    }

    /// The replica has everything again.
    ///
    /// # Errors
    /// When it could not be noted.
    pub fn overflow_ended(&self) -> Result<(), JournalError> {
        // A container may have given way since the caller looked.
        if self.super_transaction().is_none() || self.is_stale() {
            return Ok(());
        }
        tracing::info!(context = self.id().0, "the peer has everything again");
        self.change_row(|row| drop(row.notes.remove(SUPER_TRANSACTION)))
    }

    /// Lets the oldest containers give way until the journal is within its limit. `checkpoint` makes the volumes hold more
    /// durably: what they do not hold stays, limit or not.
    pub(super) fn relieve(
        &self,
        mut checkpoint: impl FnMut() -> Result<(), ContextError>,
    ) -> Result<(), ContextError> {
        let limit = self.redo_limit()?;
        while self.journal.redo_bytes() > limit {
            let before = self.journal.cursors().checkpointed;
            let Some(gave) = self.journal.give_way()? else {
                checkpoint()?;
                if self.journal.cursors().checkpointed == before {
                    return Ok(());
                }
                continue;
            };
            if gave.stale {
                self.note_overflow(gave.row.bytes)?;
            }
        }
        Ok(())
    }

    /// Notes what gave way in the middle of a write, because the disk is full.
    pub(super) fn note_given_way(&self) -> Result<(), JournalError> {
        for gave in self.journal.take_gave_way() {
            if gave.stale {
                self.note_overflow(gave.row.bytes)?;
            }
        }
        Ok(())
    }

    fn note_overflow(&self, bytes: u64) -> Result<(), JournalError> {
        let before = self.super_transaction();
        if before.is_none() {
            tracing::warn!(
                context = self.id().0,
                "the journal is at its limit: what {} lacks gives way to the state map",
                self.peer_name()
            );
        }
        let before = before.unwrap_or(SuperTransaction {
            since: Timestamp::now(),
            containers: 0,
            bytes: 0,
        });
        let now = SuperTransaction {
            containers: before.containers + 1,
            bytes: before.bytes + bytes,
            ..before
        };
        self.change_row(|row| drop(row.notes.insert(SUPER_TRANSACTION.to_owned(), now.text())))
    }
}
