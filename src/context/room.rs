//! How much room a journal has: what is configured for its role, else what its disk has; and what waits for more.

use super::{Context, ContextError, Running};
use model::Role;
use std::path::Path;

/// Without a limit so much of the disk stays free, or a twentieth of it where that is less.
const RESERVE_BYTES: u64 = 1 << 30;

/// So much stays free at least, beside two containers: the store takes no more containers when a little less is free, so that
/// it can still commit (`journal/src/rocks.rs`), and whoever makes room must begin before.
const RESERVE_BYTES_MIN: u64 = 16 << 20;

/// The disk that a journal is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that shall stay free.
    pub reserve: u64,
}

impl Context {
    /// The limit of this host's journal as its role has it, and its name in the configuration.
    #[must_use]
    pub fn configured_limit(&self) -> Option<(&'static str, u64)> {
        let both = self.config.journal_limit.map(|limit| ("journal_limit", limit.0));
        let own = self.config.recovery_journal_limit;
        match self.role() {
            Role::Production => both,
            Role::Recovery => own.map(|limit| ("recovery_journal_limit", limit.0)).or(both),
        }
    }

    /// The folder of all that this host keeps of it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes that the journal may grow by: what its limit leaves and the disk has beside its reserve.
    ///
    /// # Errors
    /// When the file system or the journal does not say.
    pub fn room(&self) -> Result<u64, ContextError> {
        let disk = self.disk()?;
        let free = disk.free.saturating_sub(disk.reserve);
        Ok(match self.configured_limit() {
            Some((_, limit)) => free.min(limit.saturating_sub(self.journal.held_bytes()?)),
            None => free,
        })
    }

    /// The disk that the journal is on.
    ///
    /// # Errors
    /// When its file system does not say how full it is.
    pub fn disk(&self) -> Result<Disk, ContextError> {
        let fs = rustix::fs::statvfs(self.folder.join("journal")).map_err(|e| ContextError::Io {
            what: self.folder.display().to_string(),
            source: e.into(),
        })?;
        let least = RESERVE_BYTES_MIN + 2 * self.config.lfc_size.0;
        let part = (fs.f_blocks.saturating_mul(fs.f_frsize) / 20).min(RESERVE_BYTES);
        Ok(Disk {
            free: fs.f_bavail.saturating_mul(fs.f_frsize),
            // Who says how much may be taken needs no share kept for others.
            reserve: match self.configured_limit() {
                Some(_) => least,
                None => part.max(least),
            },
        })
    }

    /// The disk that the journal is on, if less than its reserve is free: then that binds, whatever the limit.
    #[must_use]
    pub fn short_disk(&self) -> Option<Disk> {
        self.disk().ok().filter(|disk| disk.free < disk.reserve)
    }

    /// Something waits for room on a disk, or goes on again.
    pub(crate) fn set_no_room(&self, why: Option<String>) {
        let before = std::mem::replace(&mut *self.no_room.lock(), why.clone());
        match (&before, &why) {
            (None, Some(why)) => tracing::error!(context = self.id().0, "it waits for room: {why}"),
            (Some(_), None) => tracing::info!(context = self.id().0, "there is room again: it goes on"),
            _ => return,
        }
        // The receiver tells the peer.
        self.bells.applied.ring();
    }

    /// What waits for room on a disk, if something does.
    #[must_use]
    pub fn no_room(&self) -> Option<String> {
        let tap = || match self.running().as_deref() {
            Some(Running::Production(p)) => p.tap.no_room(),
            _ => None,
        };
        self.no_room.lock().clone().or_else(tap)
    }

    /// Whether more may be received.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.retention.has_room() && self.no_room.lock().is_none()
    }
}
