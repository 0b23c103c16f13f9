//! Bytes as a medium.

use model::ports::Medium;
use std::{
    io,
    sync::{Mutex, PoisonError},
};

/// A medium in memory, whole in every sense: nothing is ever lost.
#[derive(Debug)]
pub struct InMemory(Mutex<Vec<u8>>);

impl InMemory {
    /// With these bytes, and zeroes up to a length.
    #[must_use]
    pub fn new(bytes: &[u8], len: usize) -> Self {
        let mut bytes = bytes[..bytes.len().min(len)].to_vec();
        bytes.resize(len, 0);
        Self(Mutex::new(bytes))
    }

    fn within<T>(&self, at: u64, len: usize, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = usize::try_from(at)
            .ok()
            .and_then(|at| Some(at..at.checked_add(len)?))
            .and_then(|range| bytes.get_mut(range));
        range.map(act).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Medium for InMemory {
    fn len(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.within(at, buf.len(), |bytes| buf.copy_from_slice(bytes))
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.within(at, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.within(at, len, |bytes| bytes.fill(0))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
