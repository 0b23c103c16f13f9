//! Copies that were received and are not on the replica yet (rule C3).
//!
//! # Overview
//!
//! The receiver puts a copy here behind the frame with its stub. The apply thread, the one that overwrites the replica, takes
//! it when every container before that frame's is applied, those before a gap in the stream among them, and before it applies
//! that one. While the replica is rolled back nothing is taken, and so nothing acknowledged.
//!
//! Nothing here survives: what was not acknowledged is sent again. A new connection forgets what an older one brought, even
//! what is being written at that moment, because its acknowledgements could not be understood there.
//!
//! # Offers
//!
//! After a gap production does not know which of the stale regions really differ. To a replica that held bytes before it sends
//! the stub and, instead of the bytes, an *offer*: the digests of the region's pieces. The stub's own digest vouches for all of
//! it (C2). The offer waits here like the copy that it stands for, and where that would have been written the region is read
//! and compared:
//!
//! - Equal: the replica holds exactly the bytes that a copy would have written, at the place at which it would have written
//!   them; what holds for the copy from there on holds for these bytes. Once the volumes are synced it is acknowledged.
//! - Not equal: production is told what lacks. The copy is over, as one that was lost with its connection: the region stays stale
//!   and comes at a new position, the pieces that look equal as an offer, the others as bytes. That the container with the
//!   stub is applied meanwhile does no harm: nothing is shown before nothing is stale.
//!
//! A hint that is wrong therefore costs time and never bytes: a piece counts as equal only when an offer of it alone, whose
//! stub has its whole digest, is found equal in its place. Copies of a batch are written before its offers are looked at; that
//! a later copy has overwritten what was offered makes it unequal, or is equal all the same.

use model::{ByteRange, WriteSeq};
use parking_lot::Mutex;
use snapshot::{RegionCopy, RegionOffer};
use std::collections::{BTreeSet, VecDeque};

/// Most bytes that wait; production keeps fewer on their way, so a peer that passes it is at fault.
const WAITING_BYTES: u64 = 64 << 20;
/// Most copies that wait.
const WAITING: usize = 4096;
/// Most bytes that are written at once, each batch with a sync of the volumes.
const BATCH_BYTES: u64 = 32 << 20;
/// Most bytes of regions in a batch, so that their before-images fit into memory, and offers wait for no long row of others.
const BATCH_REGIONS: u64 = 256 << 20;

/// The queue.
#[derive(Default)]
pub struct CopyQueue(Mutex<State>);

#[derive(Default)]
struct State {
    connection: u64,
    waiting: VecDeque<Waiting>,
    bytes: u64,
    written: Vec<WriteSeq>,
    lacking: Vec<(WriteSeq, Vec<ByteRange>)>,
}

/// What arrived.
#[derive(Debug)]
pub enum Arrived {
    /// A region's bytes.
    Copy(RegionCopy),
    /// Their digest.
    Offer(RegionOffer),
}

impl Arrived {
    /// Bytes that it carries.
    fn len(&self) -> u64 {
        match self {
            Self::Copy(copy) => copy.len(),
            Self::Offer(offer) => offer.pieces.len() as u64 * 8,
        }
    }

    fn region(&self) -> u64 {
        match self {
            Self::Copy(copy) => copy.range.len(),
            Self::Offer(offer) => offer.range.len(),
        }
    }
}

struct Waiting {
    arrived: Arrived,
    /// What must be applied before.
    behind: WriteSeq,
}

/// Copies that may be written now.
pub struct CopyBatch {
    connection: u64,
    /// In the order of the stream.
    pub copies: Vec<RegionCopy>,
    /// As well; to be looked at when the copies are written.
    pub offers: Vec<RegionOffer>,
}

impl CopyQueue {
    /// A connection begins.
    pub fn begin(&self) {
        let mut state = self.0.lock();
        state.connection += 1;
        state.waiting.clear();
        state.written.clear();
        state.lacking.clear();
        state.bytes = 0;
    }

    /// Takes a copy that may be written when all up to `behind`, the end of the container before its own, is applied;
    /// `false`: there is no room for it.
    #[must_use]
    pub fn push(&self, arrived: Arrived, behind: WriteSeq) -> bool {
        let mut state = self.0.lock();
        if state.bytes + arrived.len() > WAITING_BYTES || state.waiting.len() >= WAITING {
            return false;
        }
        state.bytes += arrived.len();
        state.waiting.push_back(Waiting { arrived, behind });
        true
    }

    /// The next copies that may be written when all up to `applied` is applied.
    #[must_use]
    pub fn take(&self, applied: WriteSeq) -> Option<CopyBatch> {
        let mut state = self.0.lock();
        let (mut copies, mut offers, mut bytes, mut regions) = (Vec::new(), Vec::new(), 0, 0);
        while bytes < BATCH_BYTES
            && regions < BATCH_REGIONS
            && let Some(next) = state.waiting.pop_front_if(|w| w.behind <= applied)
        {
            bytes += next.arrived.len();
            regions += next.arrived.region();
            match next.arrived {
                Arrived::Copy(copy) => copies.push(copy),
                Arrived::Offer(offer) => offers.push(offer),
            }
        }
        state.bytes -= bytes;
        let connection = state.connection;
        (!copies.is_empty() || !offers.is_empty()).then_some(CopyBatch {
            connection,
            copies,
            offers,
        })
    }

    /// A batch is on the replica, synced, but for what lacks of its offers.
    pub fn written(&self, batch: &CopyBatch, lacking: Vec<(WriteSeq, Vec<ByteRange>)>) {
        let mut state = self.0.lock();
        if state.connection != batch.connection {
            return;
        }
        let lack: BTreeSet<_> = lacking.iter().map(|(seq, _)| *seq).collect();
        let offers = batch
            .offers
            .iter()
            .map(|o| o.seq)
            .filter(|seq| !lack.contains(seq));
        state
            .written
            .extend(batch.copies.iter().map(|c| c.seq).chain(offers));
        state.lacking.extend(lacking);
    }

    /// What is to be acknowledged.
    #[must_use]
    pub fn take_written(&self) -> Vec<WriteSeq> {
        std::mem::take(&mut self.0.lock().written)
    }

    /// What is to be said to lack, of each offer of which anything does.
    #[must_use]
    pub fn take_lacking(&self) -> Vec<(WriteSeq, Vec<ByteRange>)> {
        std::mem::take(&mut self.0.lock().lacking)
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
        queue.push(Arrived::Copy(copy(seq)), WriteSeq(behind))
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
        queue.written(&batch, vec![(WriteSeq(6), vec![ByteRange::at(0, 1)])]);
        assert!(queue.take_written().is_empty() && queue.take_lacking().is_empty());
        assert!(take(&queue, 9).is_empty(), "7 is forgotten");
        assert!(push(&queue, 8, 0));
        let batch = queue.take(WriteSeq(9)).unwrap();
        queue.written(&batch, Vec::new());
        assert_eq!(queue.take_written(), [WriteSeq(8)]);
        assert!(queue.take_written().is_empty(), "told once");
    }

    #[test]
    fn c4_an_offer_of_which_anything_lacks_is_not_acknowledged() {
        let queue = CopyQueue::default();
        for seq in [5, 6] {
            let offer = RegionOffer {
                seq: WriteSeq(seq),
                volume: VolumeIndex(0),
                range: ByteRange::at(0, 4096),
                digest: [0; 32],
                piece: 0,
                pieces: Vec::new(),
            };
            assert!(queue.push(Arrived::Offer(offer), WriteSeq(seq - 5)));
        }
        assert_eq!(
            queue.take(WriteSeq(0)).unwrap().offers.len(),
            1,
            "6 must wait for 1"
        );
        let batch = queue.take(WriteSeq(1)).unwrap();
        let lacking = vec![(WriteSeq(6), vec![ByteRange::at(0, 1)])];
        queue.written(&batch, lacking.clone());
        assert!(queue.take_written().is_empty());
        assert_eq!(queue.take_lacking(), lacking);
    }

    #[test]
    fn a_queue_is_bounded() {
        let queue = CopyQueue::default();
        let pushed = (0..WAITING as u64 + 10).filter(|n| push(&queue, *n, 0)).count();
        assert_eq!(pushed, WAITING);
    }
}
