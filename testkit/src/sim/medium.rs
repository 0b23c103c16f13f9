//! The in-memory twin of a file or block device.

use super::{
    fault::{Faults, Gate, Held, Op},
    layers::Layers,
    pages::{Pages, small},
    power::{Counted, SimPower},
    tear::Tear,
};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange,
    ports::{Medium, UNREADABLE},
};
use parking_lot::Mutex;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::{collections::BTreeSet, io, sync::Arc};

/// What the medium is, whoever has it open.
#[derive(Debug)]
pub(super) struct Disk {
    name: String,
    len: u64,
    bytes: Mutex<Layers>,
    faults: Faults,
    /// Syncs until one loses the writes before it, and the seed that says which.
    losing: Mutex<Option<(u64, u64)>>,
    gate: Arc<Gate>,
    /// Blocks of 4 KiB that cannot be read, nor written in part.
    spoiled: Mutex<BTreeSet<BlockNo>>,
}

impl Disk {
    pub(super) fn new(name: &str, len: u64) -> Self {
        Self {
            name: name.to_owned(),
            len,
            bytes: Mutex::default(),
            faults: Faults::default(),
            losing: Mutex::default(),
            gate: Arc::default(),
            spoiled: Mutex::default(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether a block of the range cannot be read.
    fn is_spoiled(&self, range: ByteRange) -> bool {
        let spoiled = self.spoiled.lock();
        !spoiled.is_empty() && range.blocks().any(|block| spoiled.contains(&block))
    }

    /// A write makes the blocks good that it covers; a part of one cannot be written.
    fn mend(&self, range: ByteRange) -> io::Result<()> {
        let mut spoiled = self.spoiled.lock();
        if spoiled.is_empty() {
            return Ok(());
        }
        for block in range.blocks() {
            let end = (block.start() + BLOCK_SIZE).min(self.len);
            let is_whole = range.start <= block.start() && range.end >= end;
            if is_whole {
                spoiled.remove(&block);
            } else if spoiled.contains(&block) {
                return Err(io::Error::from_raw_os_error(UNREADABLE));
            }
        }
        Ok(())
    }

    pub(super) fn cut(&self, tear: Tear, rng: &mut dyn RngCore) {
        let mut bytes = self.bytes.lock();
        let image = bytes.after_cut(tear, rng);
        bytes.become_image(image);
    }

    /// What is durable.
    pub(super) fn image(&self) -> Pages {
        self.bytes.lock().durable.clone()
    }

    pub(super) fn put_back(&self, image: Pages) {
        self.bytes.lock().become_image(image);
    }
}

/// In-memory twin of a file or block device of fixed length; made by [`SimPower::medium`].
///
/// Clones share one open handle. It is sparse inside: only written pages take memory.
#[derive(Clone, Debug)]
pub struct SimMedium {
    power: SimPower,
    disk: Arc<Disk>,
    epoch: u64,
}

impl SimMedium {
    pub(super) fn new(power: SimPower, disk: Arc<Disk>, epoch: u64) -> Self {
        Self { power, disk, epoch }
    }

    /// Opens the same medium again, as the process that runs now.
    #[must_use]
    pub fn reopen(&self) -> Self {
        self.power.medium(&self.disk.name, self.disk.len)
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.disk.name
    }

    /// The `n`-th (1-based) operation of this kind from now on fails with EIO, once. A sync that fails so leaves the
    /// unsynced writes as they were: a later one can still make them durable. See [`SimMedium::lose_at_sync`].
    pub fn fail(&self, op: Op, n: u64) {
        self.disk.faults.arm(op, n);
    }

    /// Takes back every armed fault.
    pub fn heal(&self) {
        self.disk.faults.disarm();
        *self.disk.losing.lock() = None;
    }

    /// The `n`-th (1-based) sync from now on fails, and with it the device gives up the writes before it: reads go on
    /// showing them, later syncs succeed, but a power cut finds only those that reached the device by chance.
    pub fn lose_at_sync(&self, n: u64, rng: &mut dyn RngCore) {
        self.disk.faults.arm(Op::Sync, n);
        *self.disk.losing.lock() = Some((n, rng.random()));
    }

    /// Bad sectors: a block fails every read of any part of it, and every write of less than all of it, until it is written whole.
    pub fn spoil(&self, block: BlockNo) {
        self.disk.spoiled.lock().insert(block);
    }

    /// The failures go as they came: every block gives again what it held.
    pub fn unspoil(&self) {
        self.disk.spoiled.lock().clear();
    }

    /// The blocks that cannot be read.
    #[must_use]
    pub fn spoiled(&self) -> BTreeSet<BlockNo> {
        self.disk.spoiled.lock().clone()
    }

    /// Holds operations of this kind, after `pass` more of them were let through, until the answer is dropped. A held
    /// write has its first half already visible; a held sync has begun, and covers no write that comes after it; a held read
    /// has its bytes already, and sees nothing that is written meanwhile.
    pub fn hold(&self, op: Op, pass: u64) -> Held {
        self.disk.gate.hold(op, pass)
    }

    /// Flips one bit of the byte at `at`, in what is durable and in what reads see: damage at rest.
    ///
    /// # Panics
    /// When `at` is past the end.
    pub fn flip_bit(&self, at: u64, bit: u8) {
        assert!(at < self.disk.len, "byte {at} of {} bytes", self.disk.len);
        let mut bytes = self.disk.bytes.lock();
        let Layers { live, durable, .. } = &mut *bytes;
        for pages in [live, durable] {
            let mut byte = [0];
            pages.read(at, &mut byte);
            pages.write(at, &[byte[0] ^ (1 << (bit % 8))]);
        }
    }

    /// Flips one random bit in `range` and says at which byte.
    ///
    /// # Panics
    /// When the range is empty or passes the end.
    pub fn flip_random_bit(&self, range: ByteRange, rng: &mut dyn RngCore) -> u64 {
        let at = rng.random_range(range.start..range.end);
        self.flip_bit(at, rng.random());
        at
    }

    /// The bytes that a power cut now would leave for certain.
    #[must_use]
    pub fn durable(&self, range: ByteRange) -> Vec<u8> {
        let mut out = vec![0; small(range.len())];
        self.disk.bytes.lock().durable.read(range.start, &mut out);
        out
    }

    /// The bytes that reads see, whatever the state of the power.
    #[must_use]
    pub fn live(&self, range: ByteRange) -> Vec<u8> {
        let mut out = vec![0; small(range.len())];
        self.disk.bytes.lock().live.read(range.start, &mut out);
        out
    }

    /// Writes that no sync has made durable.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.disk.bytes.lock().unsynced().len()
    }

    fn range(&self, at: u64, len: u64) -> io::Result<ByteRange> {
        match at.checked_add(len) {
            Some(end) if end <= self.disk.len => Ok(ByteRange { start: at, end }),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{}: {len} bytes at {at} pass the end at {}",
                    self.disk.name, self.disk.len
                ),
            )),
        }
    }

    fn write(&self, range: ByteRange, data: Option<&[u8]>) -> io::Result<()> {
        let half = ByteRange::at(range.start, range.len() / 2);
        {
            let _alive = self.power.writable(self.epoch)?;
            self.disk.faults.strike(Op::Write)?;
            self.disk.mend(range)?;
        }
        // Split in two only where someone looks into the middle, so that a cut sees the write as one.
        if self.disk.gate.is_held(Op::Write) {
            {
                let _alive = self.power.writable(self.epoch)?;
                self.disk
                    .bytes
                    .lock()
                    .write(half, data.map(|d| &d[..small(half.len())]));
            }
            self.disk.gate.pass(Op::Write);
            let _alive = self.power.writable(self.epoch)?;
            let rest = ByteRange {
                start: half.end,
                end: range.end,
            };
            self.disk
                .bytes
                .lock()
                .write(rest, data.map(|d| &d[small(half.len())..]));
            return Ok(());
        }
        let _alive = self.power.writable(self.epoch)?;
        self.disk.bytes.lock().write(range, data);
        Ok(())
    }

    /// Counts a sync; the seed of the loss when this is the one that loses the writes before it.
    fn loses(&self) -> Option<u64> {
        let mut losing = self.disk.losing.lock();
        let (left, seed) = losing.as_mut()?;
        *left -= 1;
        let seed = (*left == 0).then_some(*seed)?;
        *losing = None;
        Some(seed)
    }
}

impl Medium for SimMedium {
    fn len(&self) -> u64 {
        self.disk.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let alive = self.power.alive(self.epoch)?;
        let range = self.range(at, buf.len() as u64)?;
        self.disk.faults.strike(Op::Read)?;
        if self.disk.is_spoiled(range) {
            return Err(io::Error::from_raw_os_error(UNREADABLE));
        }
        self.disk.bytes.lock().live.read(at, buf);
        drop(alive);
        self.disk.gate.pass(Op::Read);
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write(self.range(at, data.len() as u64)?, Some(data))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.write(self.range(at, len)?, None)
    }

    fn sync(&self) -> io::Result<()> {
        // Only writes that returned before this call are covered: the end is read first, as `fdatasync` would.
        let end = {
            let _alive = self.power.writable(self.epoch)?;
            self.disk.bytes.lock().end()
        };
        self.disk.gate.pass(Op::Sync);
        let _alive = self.power.writable(self.epoch)?;
        let mut bytes = self.disk.bytes.lock();
        if self.power.count_sync() != Counted::Completes {
            return Err(SimPower::off_error());
        }
        let struck = self.disk.faults.strike(Op::Sync);
        if let Some(seed) = self.loses() {
            bytes.give_up(end, Tear::Sector, &mut StdRng::seed_from_u64(seed));
        }
        struck?;
        bytes.settle(end);
        Ok(())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<ByteRange>> {
        let _alive = self.power.alive(self.epoch)?;
        let run = self.disk.bytes.lock().live.next_data(at);
        Ok(run.and_then(|run| {
            run.intersect(ByteRange {
                start: 0,
                end: self.disk.len,
            })
        }))
    }
}
