//! What became of each write that a client sent, over all its connections.

use crate::{
    block::{self, Fault},
    oracle::{Oracle, Read},
};
use model::{BLOCK_SIZE, BlockNo, ByteRange, Timestamp, VolumeIndex, WriteSeq};
use std::{collections::BTreeMap, time::Instant};

/// What the client knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No answer came: it may have happened or not.
    Unknown,
    /// The server answered an error.
    Refused(u32),
    /// Answered: it survives a crash of the server.
    Acknowledged,
    /// Covered by a flush, or written with FUA: it survives power loss.
    Flushed,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Self-describing blocks: the entry's version, with this time and seed.
    Blocks {
        /// Time in the header.
        time: Timestamp,
        /// Seed in the header.
        seed: u64,
    },
    /// Other bytes, which the caller remembers.
    Data,
    /// Zeroes.
    Zero,
    /// Given up: may read as before or as zeroes.
    Trim,
}

/// One write.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its volume.
    pub volume: VolumeIndex,
    /// Its bytes.
    pub range: ByteRange,
    /// What they became.
    pub kind: Kind,
    /// The client's count of writes, from 1, in the order in which they were sent.
    pub version: u64,
    /// When it was sent.
    pub sent: Instant,
    /// When its answer came.
    pub answered: Option<Instant>,
    /// What became of it.
    pub state: State,
}

/// What must have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every answered write: after a crash of the server.
    Acknowledged,
    /// Every flushed write: after power loss.
    Flushed,
}

impl State {
    /// Whether the promise covers it.
    #[must_use]
    pub fn is_covered_by(self, promise: Promise) -> bool {
        match self {
            Self::Flushed => true,
            Self::Acknowledged => promise == Promise::Acknowledged,
            Self::Unknown | Self::Refused(_) => false,
        }
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// A write that must be there is not.
    #[error("volume {volume} block {block}: version {promised} was promised, version {found} is there")]
    Lost {
        /// The volume.
        volume: VolumeIndex,
        /// The block.
        block: u64,
        /// The newest promised version.
        promised: u64,
        /// What is there; 0 for zeroes.
        found: u64,
    },
    /// A block holds what was never written there.
    #[error("volume {volume} block {block}: version {found} was never written there")]
    Invented {
        /// The volume.
        volume: VolumeIndex,
        /// The block.
        block: u64,
        /// What is there; 0 for zeroes.
        found: u64,
    },
    /// A block is torn, damaged or in the wrong place.
    #[error("volume {volume} block {block}: {fault}")]
    Damaged {
        /// The volume.
        volume: VolumeIndex,
        /// The block.
        block: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// A block cannot be read.
    #[error("volume {volume} block {block} cannot be read: {error}")]
    Unreadable {
        /// The volume.
        volume: VolumeIndex,
        /// The block.
        block: u64,
        /// Why.
        error: String,
    },
}

/// Every write of a client, in the order in which they were sent. Writes in flight together never overlap.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
    /// Indexes of entries that are acknowledged and not flushed.
    unflushed: Vec<usize>,
}

impl Ledger {
    /// Every write, in the order in which they were sent.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many writes are in this state (any refusal counts as one).
    #[must_use]
    pub fn count(&self, state: State) -> usize {
        let same = |e: &&Entry| std::mem::discriminant(&e.state) == std::mem::discriminant(&state);
        self.entries.iter().filter(same).count()
    }

    /// The version that the next write gets.
    #[must_use]
    pub fn next_version(&self) -> u64 {
        self.entries.len() as u64 + 1
    }

    pub(super) fn sent(&mut self, volume: VolumeIndex, range: ByteRange, kind: Kind) -> usize {
        let version = self.next_version();
        let (sent, state) = (Instant::now(), State::Unknown);
        self.entries.push(Entry {
            volume,
            range,
            kind,
            version,
            sent,
            answered: None,
            state,
        });
        self.entries.len() - 1
    }

    pub(super) fn answered(&mut self, entry: usize, at: Instant, refused: Option<u32>, fua: bool) {
        let it = &mut self.entries[entry];
        it.answered = Some(at);
        it.state = match refused {
            Some(errno) => State::Refused(errno),
            None if fua => State::Flushed,
            None => State::Acknowledged,
        };
        if it.state == State::Acknowledged {
            self.unflushed.push(entry);
        }
    }

    /// What a flush that is sent now covers.
    pub(super) fn covered(&self) -> Vec<usize> {
        self.unflushed.clone()
    }

    pub(super) fn flushed(&mut self, covered: &[usize]) {
        for entry in covered {
            self.entries[*entry].state = State::Flushed;
        }
        let entries = &self.entries;
        self.unflushed
            .retain(|entry| entries[*entry].state == State::Acknowledged);
    }

    /// Power was lost: what was answered and not flushed may be gone, and no later flush covers it.
    pub(super) fn power_lost(&mut self) {
        for entry in self.unflushed.drain(..) {
            self.entries[entry].state = State::Unknown;
        }
    }

    /// Feeds every write of self-describing blocks and zeroes that was not refused to an oracle, its version as position.
    /// With one write in flight at a time this is the server's order.
    pub fn tell(&self, oracle: &mut Oracle) {
        for entry in self
            .entries
            .iter()
            .filter(|e| !matches!(e.state, State::Refused(_)))
        {
            let seq = WriteSeq(entry.version);
            match entry.kind {
                Kind::Blocks { time, seed } => {
                    let block = BlockNo::of(entry.range.start);
                    let header = block::Header {
                        volume: entry.volume,
                        block,
                        version: entry.version,
                        time,
                        seed,
                    };
                    oracle.describe(seq, time, &header, entry.range.len() / BLOCK_SIZE);
                }
                Kind::Zero => {
                    let time = oracle.time_of(oracle.head()).unwrap_or_default();
                    oracle.zero(seq, time, entry.volume, entry.range);
                }
                Kind::Data | Kind::Trim => {}
            }
        }
    }

    /// Checks every block that was written, each by itself: it must hold the newest promised version or a later one, whole
    /// and in its place. Other bytes than self-describing blocks and whole blocks of zeroes are left out, and so are
    /// blocks that hold any of them.
    ///
    /// # Errors
    /// With the first promise that was not kept.
    pub fn check(&self, promise: Promise, from: &mut impl Read) -> Result<(), Broken> {
        let mut blocks: BTreeMap<(VolumeIndex, BlockNo), Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            for number in entry.range.blocks() {
                blocks.entry((entry.volume, number)).or_default().push(entry);
            }
        }
        for ((volume, number), entries) in blocks {
            if entries.iter().any(|e| !e.is_whole()) {
                continue;
            }
            let block = number.0;
            let mut bytes = [0; BLOCK_SIZE as usize];
            from.read(volume, number.start(), &mut bytes)
                .map_err(|e| Broken::Unreadable {
                    volume,
                    block,
                    error: e.to_string(),
                })?;
            let found = block::check_at(volume, number, &bytes)
                .map_err(|fault| Broken::Damaged { volume, block, fault })?
                .map_or(0, |header| header.version);
            let promised = entries.iter().rposition(|e| e.state.is_covered_by(promise));
            // What may be there: the promised version and all later ones; without a promise anything, also nothing.
            let open = &entries[promised.unwrap_or(0)..];
            let is = |e: &&Entry| {
                if e.kind == Kind::Zero {
                    found == 0
                } else {
                    found == e.version
                }
            };
            if open.iter().any(is) || (promised.is_none() && found == 0) {
                continue;
            }
            return Err(if found == 0 || entries.iter().any(is) {
                let promised = promised.map_or(0, |i| entries[i].version);
                Broken::Lost {
                    volume,
                    block,
                    promised,
                    found,
                }
            } else {
                Broken::Invented { volume, block, found }
            });
        }
        Ok(())
    }
}

impl Entry {
    /// Whether it covers whole blocks with something that can be recognised.
    fn is_whole(&self) -> bool {
        matches!(self.kind, Kind::Blocks { .. } | Kind::Zero)
            && self.range.start.is_multiple_of(BLOCK_SIZE)
            && self.range.end.is_multiple_of(BLOCK_SIZE)
    }
}
