//! How much room a journal has: what is configured for its role, else what its disk has.

use super::{Context, ContextError};
use model::Role;
use std::path::Path;

/// Without a limit so much of the disk stays free, or a twentieth of it where that is less.
const RESERVE_BYTES: u64 = 1 << 30;

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
        let fs = rustix::fs::statvfs(&self.folder).map_err(|e| ContextError::Io {
            what: self.folder.display().to_string(),
            source: e.into(),
        })?;
        Ok(Disk {
            free: fs.f_bavail.saturating_mul(fs.f_frsize),
            reserve: (fs.f_blocks.saturating_mul(fs.f_frsize) / 20).min(RESERVE_BYTES),
        })
    }
}
