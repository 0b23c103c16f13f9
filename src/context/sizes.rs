//! How large the volumes of a context are, and how their storage is made longer (`rules.md` K3).
//!
//! A volume has the size of its configuration until a record of its line says another ([`journal::SizeChange`]); every point has
//! the one that belongs to it. Its *extent* is how far its storage is ready on this host, at least any size that it has on a line
//! that is held here. What lies between the two is zero at every consistent point; where it grows once more over storage that was ready
//! already, because a restore had brought a smaller size back, that is seen to ([`zero_rest`]).
//!
//! [`make_ready`] is the one place that makes storage longer: longer, then zero, then synced, then known. It is done for the
//! operator's `grow`, here and on the peer, and before a stream begins from a host that knows larger volumes than the receiver.

use super::{Context, ContextError, Running};
use crate::peer::ANSWER_TIMEOUT;
use journal::{
    Journal, JournalError, Position,
    tap::{Request, Tap, VolumeChange},
};
use model::{BLOCK_SIZE, ByteRange, Point, VolumeIndex, ports::Medium};
use parking_lot::Mutex;
use snapshot::{Volume, Volumes};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Storage is zeroed in pieces of this: a context that stops waits for no more.
const ZERO_PIECE_BYTES: u64 = 64 << 20;

/// What is said while storage is zeroed, which may take long.
pub const MAKING_READY: &str = "storage is being made ready";

/// The volumes' sizes as of a point.
#[must_use]
pub fn sizes_at(journal: &Journal, volumes: &Volumes, point: &Point) -> BTreeMap<VolumeIndex, u64> {
    let at = Position {
        generation: point.generation,
        seq: point.seq,
    };
    let said = journal.sizes_at(at);
    let size = |(index, first)| (index, said.get(&index).copied().unwrap_or(first));
    volumes.sizes().into_iter().map(size).collect()
}

/// How far the storage is ready of a volume that had `first` bytes at first.
#[must_use]
pub fn extent_of(journal: &Journal, index: VolumeIndex, first: u64) -> u64 {
    first.max(journal.extent(index).unwrap_or(0))
}

/// Makes the storage of a volume, which is ready for `ready` bytes, ready for so many: longer if it is a file, zero behind what was
/// ready, durably. Nobody else does so meanwhile. `go_on` is told how far it is, and may end it.
///
/// # Errors
/// When it cannot be made longer or zeroed, the journal fails, or it is ended; then nobody relies on it.
pub fn make_ready(
    journal: &Journal,
    index: VolumeIndex,
    medium: &dyn Medium,
    ready: u64,
    bytes: u64,
    go_on: &dyn Fn(u64) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    let failed = |e| JournalError::io("volume", e);
    medium.extend(bytes).map_err(failed)?;
    let mut at = ready;
    while at < bytes {
        go_on(at)?;
        let len = (bytes - at).min(ZERO_PIECE_BYTES);
        medium.write_zeroes(at, len).map_err(failed)?;
        at += len;
    }
    medium.sync().map_err(failed)?;
    journal.extend(index, bytes)
}

/// Zeroes what the storage of a volume holds between its size and the one that it is to have, as records of the line. It was made ready
/// for a line that was left since, and holds nothing there; but a replica that was taken as it was, amid copies, may.
///
/// # Errors
/// When the journal fails.
pub fn zero_rest(tap: &Tap, index: VolumeIndex, range: ByteRange) -> Result<(), JournalError> {
    if range.is_empty() {
        return Ok(());
    }
    let held = tap
        .extents(index, range)?
        .into_iter()
        .filter(|(_, is_zero)| !is_zero);
    let mut bytes = Vec::new();
    for range in held.flat_map(|(range, _)| pieces(range)) {
        // A device knows no holes: what is zero takes no record.
        bytes.resize(usize::try_from(range.len()).unwrap_or(usize::MAX), 0);
        tap.read(index, range.start, &mut bytes)?;
        if model::is_zero(&bytes) {
            continue;
        }
        let (tell, told) = std::sync::mpsc::channel();
        let change = VolumeChange::Zero {
            volume: index,
            range,
            discard: true,
        };
        tap.submit(vec![Request {
            change: Some(change),
            durable: false,
            done: Box::new(move |answer| drop(tell.send(answer))),
        }]);
        let failed = |why: Arc<JournalError>| JournalError::Refused(why.to_string());
        told.recv().map_or(Ok(()), |answer| answer.map_err(failed))?;
    }
    Ok(())
}

/// A range in pieces of at most a megabyte.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let starts = (range.start..range.end).step_by(1 << 20);
    starts.map(move |start| ByteRange {
        start,
        end: range.end.min(start + (1 << 20)),
    })
}

/// Why a volume cannot get a size; `None`: it can. What lies behind its end must be storage that nothing else writes.
#[must_use]
pub fn size_fault(now: u64, wanted: u64) -> Option<String> {
    if !now.is_multiple_of(BLOCK_SIZE) || !wanted.is_multiple_of(BLOCK_SIZE) {
        return Some(format!(
            "it has {now} bytes and would have {wanted}: only whole blocks of {BLOCK_SIZE} bytes grow"
        ));
    }
    (wanted < now).then(|| format!("it has {now} bytes already, and volumes only grow"))
}

/// A context's storage that is being made longer.
#[derive(Default)]
pub(super) struct Extending {
    /// Held meanwhile.
    busy: Mutex<()>,
    /// How far it is, in bytes.
    at: AtomicU64,
    /// What failed when nobody waited for the answer any more: volume, bytes and why.
    failed: Mutex<Option<(VolumeIndex, u64, String)>>,
}

impl Running {
    /// The volumes that it works on.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        match self {
            Self::Production(p) => &p.volumes,
            Self::Recovery(r) => &r.volumes,
        }
    }
}

impl Context {
    /// A volume's size at the end of this host's line, in bytes.
    #[must_use]
    pub fn volume_size(&self, index: VolumeIndex) -> u64 {
        let first = || self.first_size(index);
        self.journal.size_now(index).unwrap_or_else(first)
    }

    /// How far a volume's storage is ready on this host, in bytes.
    #[must_use]
    pub fn extent(&self, index: VolumeIndex) -> u64 {
        extent_of(&self.journal, index, self.first_size(index))
    }

    /// The extents of all volumes together: what a full copy brings over.
    #[must_use]
    pub fn all_bytes(&self) -> u64 {
        self.extents().into_iter().sum()
    }

    /// The extents of all volumes, by index.
    #[must_use]
    pub fn extents(&self) -> Vec<u64> {
        self.config
            .indexed()
            .map(|(index, _)| self.extent(index))
            .collect()
    }

    /// Whether any volume's storage was ever made longer here.
    #[must_use]
    pub fn has_grown(&self) -> bool {
        self.config
            .indexed()
            .any(|(index, _)| self.journal.extent(index).is_some())
    }

    /// Whether what a volume stands on holds bytes between what is ready and an end, as far as it can tell: a device holds some anywhere.
    #[must_use]
    pub fn holds_behind(&self, index: VolumeIndex, end: u64) -> bool {
        let ready = self.extent(index);
        let Some(running) = self.running().filter(|_| ready < end) else {
            return false;
        };
        let data = |volume: &Volume| volume.medium().next_data(ready);
        let found = running.volumes().get(index).map(data);
        found.is_ok_and(|data| data.map_or(true, |data| data.is_some_and(|data| data.start < end)))
    }

    fn first_size(&self, index: VolumeIndex) -> u64 {
        let volume = self.config.volumes.get(usize::from(index.0));
        volume.map_or(0, |v| v.size.0)
    }

    /// Makes a volume's storage ready for so many bytes, as [`make_ready`] does. What is ready already stays as it is.
    ///
    /// # Errors
    /// When the context does not run, the volume cannot have that size, or its storage cannot be made longer or zeroed.
    pub fn extend(&self, index: VolumeIndex, bytes: u64) -> Result<(), ContextError> {
        // Two at once would both zero, and one of them what was written since.
        let Some(_extending) = self.extending.busy.try_lock() else {
            let at = self.extending.at.load(Ordering::Relaxed) >> 20;
            let text = format!("{MAKING_READY} on {} ({at} MiB are)", self.node_name);
            return Err(JournalError::Refused(text).into());
        };
        let ready = self.extent(index);
        if bytes <= ready {
            return Ok(());
        }
        let failed = self.extending.failed.lock().take();
        if let Some((.., why)) = failed.filter(|failed| (failed.0, failed.1) == (index, bytes)) {
            return Err(JournalError::Refused(why).into());
        }
        let refused = |why: String| {
            let volume = &self.config.volumes[usize::from(index.0)].name;
            JournalError::Refused(format!("volume {volume}: {why}"))
        };
        if let Some(why) = size_fault(ready, bytes) {
            return Err(refused(why).into());
        }
        let Some(running) = self.running() else {
            let why = format!("context {} does not run on {}", self.id(), self.node_name);
            return Err(refused(why).into());
        };
        let medium = running.volumes().get(index)?.medium();
        // Whoever stops or takes over must not wait until all of it is zero.
        let go_on = |at| {
            self.extending.at.store(at, Ordering::Relaxed);
            match self.running().is_some_and(|now| Arc::ptr_eq(&now, &running)) {
                true => Ok(()),
                false => Err(refused("its context was stopped".into())),
            }
        };
        let volume = &self.config.volumes[usize::from(index.0)].name;
        let began = Instant::now();
        let done = self.noted_again(volume, || {
            make_ready(&self.journal, index, &**medium, ready, bytes, &go_on)
        });
        if let Err(e) = &done {
            tracing::warn!(
                context = self.id().0,
                volume,
                bytes,
                "its storage is not ready: {e}"
            );
            // Who asked for it does not listen any more.
            if began.elapsed() + Duration::from_secs(5) > ANSWER_TIMEOUT {
                *self.extending.failed.lock() = Some((index, bytes, e.to_string()));
            }
        }
        Ok(done?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k3_volumes_grow_by_whole_blocks() {
        assert_eq!(size_fault(8192, 12_288), None);
        assert_eq!(size_fault(8192, 8192), None);
        for (now, wanted) in [(8192, 4096), (10_000, 12_288), (8192, 10_000)] {
            assert!(size_fault(now, wanted).is_some(), "{now} {wanted}");
        }
    }
}
