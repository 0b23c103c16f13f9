//! A read-write device over a view.

use crate::{
    error::{Result, SnapshotError},
    overlay::Overlay,
    view::{Extent, View, push},
};
use model::{BLOCK_SIZE, ByteRange, VolumeIndex};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A view that takes writes; they stay in its private overlay, and nobody else sees them.
pub struct Vdev {
    view: Arc<View>,
    overlay: Overlay,
    /// The last change found no room.
    is_full: AtomicBool,
}

impl Vdev {
    /// Puts an overlay over a view. After a restart, over a view of the very same point.
    #[must_use]
    pub const fn new(view: Arc<View>, overlay: Overlay) -> Self {
        Self {
            view,
            overlay,
            is_full: AtomicBool::new(false),
        }
    }

    /// Whether changes find no room: the last one did not, or every block is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let usage = self.overlay.usage();
        self.is_full.load(Ordering::Relaxed) || usage.blocks_used == usage.blocks
    }

    fn noted(&self, done: Result<()>) -> Result<()> {
        let is_full = done.as_ref().is_err_and(SnapshotError::is_full);
        self.is_full.store(is_full, Ordering::Relaxed);
        done
    }

    /// What is below.
    #[must_use]
    pub const fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The writes.
    #[must_use]
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// A volume's size as of the point.
    ///
    /// # Errors
    /// As [`View::size`].
    pub fn size(&self, volume: VolumeIndex) -> Result<u64> {
        self.view.size(volume)
    }

    /// Fills `buf` with the volume's bytes from `at`.
    ///
    /// # Errors
    /// As [`View::read`], and when the overlay fails.
    pub fn read(&self, volume: VolumeIndex, at: u64, buf: &mut [u8]) -> Result<()> {
        self.read_each(volume, &mut [(at, buf)])
    }

    /// As [`Vdev::read`], each buffer from the offset beside it; what lies in the view below is looked up together.
    ///
    /// # Errors
    /// As [`Vdev::read`]; what the buffers hold is then not to be used.
    pub fn read_each(&self, volume: VolumeIndex, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        let mut below = Vec::new();
        for (at, buf) in reads {
            self.view.check(volume, *at, buf.len() as u64)?;
            below.extend(self.overlay.read(volume, *at, buf)?);
        }
        self.view.read_each(volume, &mut below)
    }

    /// Writes `bytes` at `at`; durable after the next [`Vdev::flush`].
    ///
    /// # Errors
    /// As [`Vdev::read`]; [`crate::SnapshotError::is_full`] when the overlay has no room (then nothing is written).
    pub fn write(&self, volume: VolumeIndex, at: u64, bytes: &[u8]) -> Result<()> {
        let size = self.view.check(volume, at, bytes.len() as u64)?;
        self.noted(self.overlay.write(volume, at, bytes, &self.below(size)))
    }

    /// Makes a range zero; whole blocks need no room.
    ///
    /// # Errors
    /// As [`Vdev::write`].
    pub fn zero(&self, volume: VolumeIndex, at: u64, len: u64) -> Result<()> {
        let size = self.view.check(volume, at, len)?;
        let mut range = ByteRange::at(at, len);
        if range.is_empty() {
            return Ok(());
        }
        if range.end == size {
            // What lies past the end reads as zero in any case: a last partial block counts as a whole one.
            range.end = size.next_multiple_of(BLOCK_SIZE);
        }
        self.noted(self.overlay.zero(volume, range, &self.below(size)))
    }

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// As [`Overlay::flush`].
    pub fn flush(&self) -> Result<()> {
        self.overlay.flush()
    }

    /// Which parts of a range were written here, and which show the view below, in order.
    #[must_use]
    pub fn written(&self, volume: VolumeIndex, range: ByteRange) -> Vec<(ByteRange, bool)> {
        let held = self.overlay.held(volume, range).into_iter();
        held.map(|(part, held)| (part, held.is_some())).collect()
    }

    /// What is known to be zero, as [`View::extents`].
    ///
    /// # Errors
    /// As [`View::extents`].
    pub fn extents(&self, volume: VolumeIndex, range: ByteRange) -> Result<Vec<Extent>> {
        let below = self.view.extents(volume, range)?;
        let end = below.last().map_or(range.start, |e| e.range.end);
        let range = ByteRange {
            start: range.start,
            end,
        };
        let mut extents = Vec::new();
        for (part, held) in self.overlay.held(volume, range) {
            match held {
                Some(zero) => push(&mut extents, Extent { range: part, zero }),
                None => {
                    for extent in &below {
                        if let Some(range) = extent.range.intersect(part) {
                            let zero = extent.zero;
                            push(&mut extents, Extent { range, zero });
                        }
                    }
                }
            }
        }
        Ok(extents)
    }

    /// Reads whole blocks of the view, zero past its size.
    fn below(&self, size: u64) -> impl Fn(VolumeIndex, u64, &mut [u8]) -> Result<()> {
        move |volume, at, buf| {
            let there = size.saturating_sub(at).min(buf.len() as u64);
            let (inside, past) = buf.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX));
            past.fill(0);
            if inside.is_empty() {
                return Ok(());
            }
            self.view.read(volume, at, inside)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Views and vdevs are shared by the threads that serve them.
    #[test]
    fn is_shared_between_threads() {
        const fn shared<T: Send + Sync>() {}
        shared::<View>();
        shared::<Vdev>();
    }
}
