//! Copies that were received and are not on the replica yet (rule C3).
//!
//! The receiver puts a copy here behind the frame with its stub. The apply thread, the one that overwrites the replica, takes
//! it when every container before that frame's is applied, those before a gap in the stream among them, and before it applies
//! that one. While the replica is rolled back nothing is taken, and so nothing acknowledged.
//!
//! Nothing here survives: what was not acknowledged is sent again. A new connection forgets what an older one brought, even
//! what is being written at that moment, because its acknowledgements could not be understood there.

use model::WriteSeq;
use parking_lot::Mutex;
use snapshot::RegionCopy;
use std::collections::VecDeque;

/// Most bytes that wait; production keeps fewer on their way, so a peer that passes it is at fault.
const WAITING_BYTES: u64 = 64 << 20;
/// Most copies that wait.
const WAITING: usize = 4096;
/// Most bytes that are written at once.
const BATCH_BYTES: u64 = 8 << 20;

/// The queue.
#[derive(Default)]
pub struct CopyQueue(Mutex<State>);

#[derive(Default)]
struct State {
    connection: u64,
    waiting: VecDeque<Waiting>,
    bytes: u64,
    written: Vec<WriteSeq>,
}

struct Waiting {
    copy: RegionCopy,
    /// What must be applied before.
    behind: WriteSeq,
}

/// Copies that may be written now.
pub struct CopyBatch {
    connection: u64,
    /// In the order of the stream.
    pub copies: Vec<RegionCopy>,
}

impl CopyQueue {
    /// A connection begins.
    pub fn begin(&self) {
        let mut state = self.0.lock();
        state.connection += 1;
        state.waiting.clear();
        state.written.clear();
        state.bytes = 0;
    }

    /// Takes a copy that may be written when all up to `behind`, the end of the container before its own, is applied;
    /// `false`: there is no room for it.
    #[must_use]
    pub fn push(&self, copy: RegionCopy, behind: WriteSeq) -> bool {
        let mut state = self.0.lock();
        if state.bytes + copy.len() > WAITING_BYTES || state.waiting.len() >= WAITING {
            return false;
        }
        state.bytes += copy.len();
        state.waiting.push_back(Waiting { copy, behind });
        true
    }

    /// The next copies that may be written when all up to `applied` is applied.
    #[must_use]
    pub fn take(&self, applied: WriteSeq) -> Option<CopyBatch> {
        let mut state = self.0.lock();
        let (mut copies, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(next) = state.waiting.pop_front_if(|w| w.behind <= applied)
        {
            bytes += next.copy.len();
            copies.push(next.copy);
        }
        state.bytes -= bytes;
        let connection = state.connection;
        (!copies.is_empty()).then_some(CopyBatch { connection, copies })
    }

    /// A batch is on the replica, synced.
    pub fn written(&self, batch: &CopyBatch) {
        let mut state = self.0.lock();
        if state.connection == batch.connection {
            state.written.extend(batch.copies.iter().map(|c| c.seq));
        }
    }

    /// What is to be acknowledged.
    #[must_use]
    pub fn take_written(&self) -> Vec<WriteSeq> {
        std::mem::take(&mut self.0.lock().written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ByteRange, Payload, VolumeIndex};

    fn copy(seq: u64) -> RegionCopy {
        RegionCopy {
            seq: WriteSeq(seq),
            volume: VolumeIndex(0),
            range: ByteRange::at(seq * 4096, 4096),
            payload: Payload::Data(vec![1; 4096].into()),
        }
    }

    fn push(queue: &CopyQueue, seq: u64, behind: u64) -> bool {
        queue.push(copy(seq), WriteSeq(behind))
    }

    fn take(queue: &CopyQueue, applied: u64) -> Vec<u64> {
        let batch = queue.take(WriteSeq(applied));
        batch.map_or(Vec::new(), |b| b.copies.iter().map(|c| c.seq.0).collect())
    }

    #[test]
    fn c3_a_copy_waits_for_the_containers_before_its_own() {
        let queue = CopyQueue::default();
        assert!(push(&queue, 5, 0) && push(&queue, 20, 7));
        assert_eq!(take(&queue, 0), [5]);
        assert!(take(&queue, 6).is_empty(), "record 7 is not applied");
        assert_eq!(take(&queue, 7), [20]);
    }

    #[test]
    fn c3_what_an_older_connection_brought_is_never_acknowledged_on_a_newer_one() {
        let queue = CopyQueue::default();
        assert!(push(&queue, 5, 0) && push(&queue, 6, 0));
        let batch = queue.take(WriteSeq(0)).unwrap();
        assert!(push(&queue, 7, 0));
        queue.begin();
        queue.written(&batch);
        assert!(queue.take_written().is_empty());
        assert!(take(&queue, 9).is_empty(), "7 is forgotten");
        assert!(push(&queue, 8, 0));
        let batch = queue.take(WriteSeq(9)).unwrap();
        queue.written(&batch);
        assert_eq!(queue.take_written(), [WriteSeq(8)]);
        assert!(queue.take_written().is_empty(), "told once");
    }

    #[test]
    fn a_queue_is_bounded() {
        let queue = CopyQueue::default();
        let pushed = (0..WAITING as u64 + 10).filter(|n| push(&queue, *n, 0)).count();
        assert_eq!(pushed, WAITING);
    }
}
