//! A volume's storage that keeps to itself what could not be read.
//!
//! A block of a replica that could not be read when it was to be overwritten is *withheld*: its before-image is unknown, so the
//! disk's word for it must never be taken again, also when the failure was one that goes away. Every reader of the volume comes
//! through here (views, copies, offers, a verify, the clients of a production that was a replica before), so there is one place
//! that refuses.
//!
//! # Invariants
//!
//! - A read of any part of a withheld block fails with `EIO`; never other bytes.
//! - What is written to a part of a withheld block is left out. All of the block in one write ends it: at once for readers, who
//!   see what was written, durably with the next sync.
//! - The list is durable (`Journal::set_withheld`) before [`Medium::withhold`] returns, and a block leaves it only behind a sync
//!   that began after it was written whole.
//!
//! # Which failures are taken for rot
//!
//! One block that fails is rot; a disk that is gone is not, and taking it for that would make a history of nothing but unknown
//! before-images out of a cable that was pulled. So blocks are withheld only while the storage still syncs, and gives at least
//! one of some other blocks that are spread over it, past the page cache; and only so many at once. Otherwise the failed read stands, and
//! the context is poisoned as before.
//!
//! # What it does not do
//!
//! It withholds nothing by itself: a read that fails is the failure of that read. A write or sync that fails is passed on.

use journal::Journal;
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, VolumeIndex,
    ports::{Medium, UNREADABLE, is_unreadable},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Most blocks of a volume that are withheld at a time: 64 MiB. More is no rot any more.
const BLOCKS_MAX: usize = 16_384;
/// Places at which a storage is tried.
const TRIALS: u64 = 16;

/// The storage below, without what is withheld of it.
pub struct Withholding {
    below: Arc<dyn Medium>,
    volume: VolumeIndex,
    name: String,
    journal: Arc<Journal>,
    /// Whether there is anything in `state`: most volumes have nothing, and their reads no lock.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Nobody reads these.
    withheld: BTreeSet<BlockNo>,
    /// These were written whole, and no sync covers that yet: they are still on the durable list.
    written: BTreeSet<BlockNo>,
}

impl State {
    /// What is on the durable list.
    fn listed(&self) -> BTreeSet<BlockNo> {
        self.withheld.union(&self.written).copied().collect()
    }
}

/// Why a block is not read.
#[derive(Debug, thiserror::Error)]
#[error("block {} is withheld, because it could not be read before: {system}", block.0)]
struct Refused {
    block: BlockNo,
    #[source]
    system: io::Error,
}

impl Withholding {
    /// Storage of a volume, of which this journal's list withholds some blocks.
    #[must_use]
    pub fn new(below: Arc<dyn Medium>, volume: VolumeIndex, name: &str, journal: &Arc<Journal>) -> Self {
        let withheld = journal.withheld(volume);
        Self {
            below,
            volume,
            name: name.to_owned(),
            journal: Arc::clone(journal),
            any: AtomicBool::new(!withheld.is_empty()),
            state: Mutex::new(State {
                withheld,
                written: BTreeSet::new(),
            }),
        }
    }

    fn has_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The bytes of a block that there are.
    fn range_of(&self, block: BlockNo) -> ByteRange {
        ByteRange {
            start: block.start(),
            end: (block.start() + BLOCK_SIZE).min(self.len()),
        }
    }

    /// The first block of a range that is withheld.
    fn first_withheld(&self, range: ByteRange) -> Option<BlockNo> {
        let state = self.state.lock();
        let mut behind = state.withheld.range(BlockNo::of(range.start)..);
        behind.next().copied().filter(|block| block.start() < range.end)
    }

    /// Refuses what holds a withheld block. Before the storage is read: what is withheld behind this look could still be read when
    /// it was looked at.
    fn check_read(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        let range = ByteRange::at(at, buf.len() as u64);
        let withheld = self.has_any().then(|| self.first_withheld(range)).flatten();
        withheld.map_or(Ok(()), |block| {
            let system = io::Error::from_raw_os_error(UNREADABLE);
            Err(io::Error::new(system.kind(), Refused { block, system }))
        })
    }

    /// Writes a range but for the parts of withheld blocks of which it has only a part.
    fn write(&self, range: ByteRange, mut write: impl FnMut(ByteRange) -> io::Result<()>) -> io::Result<()> {
        if !self.has_any() || range.is_empty() {
            return write(range);
        }
        let (mut whole, mut left_out) = (Vec::<BlockNo>::new(), Vec::new());
        for block in self.state.lock().withheld.range(BlockNo::of(range.start)..) {
            let of_block = self.range_of(*block);
            match of_block.intersect(range) {
                None => break,
                Some(part) if part == of_block => whole.push(*block),
                Some(part) => left_out.push(part),
            }
        }
        let mut at = range.start;
        for part in left_out {
            if at < part.start {
                write(ByteRange {
                    start: at,
                    end: part.start,
                })?;
            }
            at = part.end;
        }
        let rest = ByteRange {
            start: at,
            end: range.end,
        };
        if !rest.is_empty() {
            let short = whole.last().map(|block| self.range_of(*block));
            match (write(rest), short.filter(|last| last.len() < BLOCK_SIZE)) {
                // A short last block is whole for us, and a part for a file system, which reads the rest of it to write it back. It
                // is made a hole first: nobody is served it before it is written and synced.
                (Err(e), Some(last)) if is_unreadable(&e) => {
                    self.below.write_zeroes(last.start, last.len())?;
                    write(rest)?;
                }
                (done, _) => done?,
            }
        }
        let mut state = self.state.lock();
        for block in whole {
            if state.withheld.remove(&block) {
                state.written.insert(block);
            }
        }
        Ok(())
    }

    /// Whether the storage as a whole is alive, so that what it cannot give is rot. It was just synced: what is forgotten is
    /// read from the disk.
    fn is_alive(&self, rotten: &BTreeSet<BlockNo>) -> io::Result<bool> {
        let mut tried = BTreeSet::new();
        for n in 0..TRIALS {
            let at = self.len() / TRIALS * n;
            let Some(data) = self.below.next_data(at)? else {
                break;
            };
            let mut blocks = data.block_aligned().blocks();
            let fits = |b: &BlockNo| b.start() >= at && !rotten.contains(b) && !self.range_of(*b).is_empty();
            let Some(block) = blocks.find(fits) else {
                continue;
            };
            if !tried.insert(block) {
                continue;
            }
            let range = self.range_of(block);
            self.below.forget(range.start, range.len());
            let mut buf = vec![0; usize::try_from(range.len()).unwrap_or(0)];
            if self.below.read_at(range.start, &mut buf).is_ok() {
                return Ok(true);
            }
        }
        // There is nothing else on it.
        Ok(tried.is_empty())
    }

    fn keep(&self, listed: &BTreeSet<BlockNo>) -> io::Result<()> {
        self.journal
            .set_withheld(self.volume, listed)
            .map_err(io::Error::other)
    }
}

impl Medium for Withholding {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_read(at, buf)?;
        self.below.read_at(at, buf)
    }

    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        let check =
            |reads: &[(u64, &mut [u8])]| reads.iter().try_for_each(|(at, buf)| self.check_read(*at, buf));
        check(reads)?;
        self.below.read_each(reads)?;
        // All of them took their time.
        check(reads)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let index = |byte: u64| usize::try_from(byte - at).unwrap_or(usize::MAX);
        self.write(ByteRange::at(at, data.len() as u64), |part| {
            self.below
                .write_at(part.start, &data[index(part.start)..index(part.end)])
        })
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.write(ByteRange::at(at, len), |part| {
            self.below.write_zeroes(part.start, part.len())
        })
    }

    fn extend(&self, len: u64) -> io::Result<()> {
        self.below.extend(len)
    }

    fn sync(&self) -> io::Result<()> {
        if !self.has_any() {
            return self.below.sync();
        }
        let covered = self.state.lock().written.clone();
        self.below.sync()?;
        if covered.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.written.retain(|block| !covered.contains(block));
        self.keep(&state.listed())?;
        let is_empty = state.withheld.is_empty() && state.written.is_empty();
        self.any.store(!is_empty, Ordering::Release);
        Ok(())
    }

    fn withhold(&self, ranges: &[ByteRange]) -> io::Result<()> {
        let more: BTreeSet<_> = ranges.iter().flat_map(|range| range.blocks()).collect();
        self.below.sync()?;
        if !self.is_alive(&more)? {
            return Err(io::Error::other("the storage gives nothing any more"));
        }
        let mut state = self.state.lock();
        let mut listed = state.listed();
        listed.extend(&more);
        if listed.len() > BLOCKS_MAX {
            return Err(io::Error::other(format!(
                "{} blocks cannot be read, that is no rot",
                listed.len()
            )));
        }
        self.keep(&listed)?;
        for block in &more {
            state.written.remove(block);
        }
        tracing::error!(
            volume = self.name,
            first = more.first().map(|block| block.start()),
            blocks = more.len(),
            "blocks cannot be read: they are withheld until they are written whole"
        );
        state.withheld.extend(more);
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    fn forget(&self, at: u64, len: u64) {
        self.below.forget(at, len);
    }

    fn next_data(&self, at: u64) -> io::Result<Option<ByteRange>> {
        let data = self.below.next_data(at)?;
        if !self.has_any() {
            return Ok(data);
        }
        // Whatever the storage says of it, it is not known to be zero.
        let range = ByteRange {
            start: at,
            end: data.map_or(self.len(), |data| data.start),
        };
        let withheld = self.first_withheld(range).map(|block| self.range_of(block));
        Ok(match withheld {
            Some(block) => Some(ByteRange {
                start: block.start.max(at),
                end: block.end,
            }),
            None => data,
        })
    }
}
