//! A writer that knows the position of everything it writes.
//!
//! One thread writes over one connection to each volume. Requests that are in flight together go over one connection and do
//! not overlap; the server gives positions in the order in which a connection brings requests, so every write's position is
//! known before it is answered, and the oracle is right at every record, across all volumes.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use crate::common::{PROD, Pair};
use model::{BLOCK_SIZE, BlockNo, ByteRange, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};
use testkit::{
    Oracle,
    block::{self, Header},
    nbd::{Client, Error, Request},
    workload::noise,
};

/// What the writer is told meanwhile.
#[derive(Default)]
pub struct Orders(AtomicU8);

/// To set a mark; everything else but [`END`] means to go on.
const MARK: u8 = 1;
const MARKED: u8 = 2;
const END: u8 = 3;

impl Orders {
    /// Ends the writer.
    pub fn end(&self) {
        self.0.store(END, Ordering::Release);
    }

    /// Asks for an event mark, which ends its container, and waits until it is set; `false`: the writer ended before.
    pub fn mark(&self, ended: impl Fn() -> bool) -> bool {
        self.0.store(MARK, Ordering::Release);
        while self.0.load(Ordering::Acquire) != MARKED {
            if ended() {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}

/// The writer and its history.
pub struct Load {
    volumes: Vec<(&'static str, u64)>,
    clients: Vec<Client>,
    /// What every byte was at every position.
    pub oracle: Oracle,
    /// Positions of marks.
    pub marks: Vec<(String, WriteSeq)>,
    sent: u64,
    acknowledged: u64,
    flushed: u64,
    /// Writes that were answered, never flushed, and gone after a cut: they show that the cuts bite.
    pub lost: u64,
    /// The node that it writes to.
    pub node: &'static str,
    /// Rest after each step.
    pub rest: Duration,
}

impl Load {
    /// A writer for a pair at rest whose volumes are zero.
    pub fn new(pair: &Pair, volumes: &[(&'static str, u64)]) -> Self {
        Self::at(pair, volumes, pair.received())
    }

    /// As [`Load::new`], for a production that stands at `head` and whose peer may be away.
    pub fn at(pair: &Pair, volumes: &[(&'static str, u64)], head: WriteSeq) -> Self {
        let head = head.0;
        let sizes: Vec<u64> = volumes.iter().map(|(_, size)| *size).collect();
        let mut oracle = Oracle::new(&sizes);
        oracle.mark(WriteSeq(head), Timestamp::now(), "start");
        let mut load = Self {
            volumes: volumes.to_vec(),
            clients: Vec::new(),
            oracle,
            marks: Vec::new(),
            sent: head,
            acknowledged: head,
            flushed: head,
            lost: 0,
            node: PROD,
            rest: Duration::ZERO,
        };
        load.connect(pair);
        load
    }

    /// Connects again.
    pub fn connect(&mut self, pair: &Pair) {
        let open = |(volume, _): &(&str, u64)| pair.open(self.node, &format!("c1/{volume}"));
        self.clients = self.volumes.iter().map(open).collect();
    }

    /// Breaks the connections.
    pub fn disconnect(&mut self) {
        self.clients.clear();
    }

    /// The newest position that was sent.
    pub fn head(&self) -> WriteSeq {
        WriteSeq(self.sent)
    }

    /// The newest position that was answered.
    pub fn answered(&self) -> WriteSeq {
        WriteSeq(self.acknowledged)
    }

    /// Writes until told to end, or until production fails.
    pub fn run(&mut self, pair: &Pair, seed: u64, orders: &Orders) -> Result<(), Error> {
        let mut rng = StdRng::seed_from_u64(seed);
        loop {
            match orders.0.load(Ordering::Acquire) {
                END => return Ok(()),
                MARK => self.mark(pair, orders)?,
                _ if rng.random_range(0..12) == 0 => self.flush()?,
                _ => self.batch(&mut rng)?,
            }
            std::thread::sleep(self.rest);
        }
    }

    /// Some batches and a flush.
    pub fn burst(&mut self, rng: &mut StdRng, batches: usize) {
        for _ in 0..batches {
            self.batch(rng).unwrap();
        }
        self.flush().unwrap();
    }

    /// Sets a mark while nobody else writes.
    pub fn set_mark(&mut self, pair: &Pair) -> String {
        self.mark(pair, &Orders::default()).unwrap();
        self.marks.last().unwrap().0.clone()
    }

    /// Goes on with the node that is production now. Its line may begin with records of its own: a mark tells the number.
    pub fn follow(&mut self, pair: &Pair, node: &'static str) {
        self.node = node;
        self.connect(pair);
        let name = format!("follow{}", self.sent);
        let marked = pair.json(node, &["rtmark", "-C", "1", "--name", &name]);
        let seq = marked["reply"]["mark"]["seq"]
            .as_u64()
            .unwrap_or_else(|| panic!("{marked}"));
        assert!(seq > self.sent, "{} was sent, {marked}", self.sent);
        self.oracle.mark(WriteSeq(seq), Timestamp::now(), &name);
        self.marks.push((name, WriteSeq(seq)));
        (self.sent, self.acknowledged, self.flushed) = (seq, seq, seq);
    }

    /// What the volumes are called, and how large they were at a record.
    pub fn volumes_at(&self, seq: WriteSeq) -> Vec<(&'static str, u64)> {
        let sized = |(at, (name, _)): (usize, &(&'static str, u64))| {
            let volume = VolumeIndex(u16::try_from(at).unwrap());
            (*name, self.oracle.size(volume, seq))
        };
        self.volumes.iter().enumerate().map(sized).collect()
    }

    /// A volume has another size from here on; nobody wrote since the newest record that was sent. Goes on with the production.
    pub fn resized(&mut self, pair: &Pair, index: usize, bytes: u64) {
        let before = self.sent;
        self.follow(pair, self.node);
        // Which of the records since is that of the size counts for nobody: none of them is looked at.
        let (volume, now) = (VolumeIndex(u16::try_from(index).unwrap()), WriteSeq(self.sent));
        assert!(self.sent > before + 1, "a size has a record of its own");
        self.oracle.resize(now, Timestamp::now(), volume, bytes);
        self.volumes = self.volumes_at(now);
    }

    /// Another host has taken over at a record: goes on with its history from there. The one that is left here is that of the
    /// node before, whose clients stay connected.
    pub fn fork(&mut self, at: WriteSeq, node: &'static str) -> Self {
        let mut oracle = self.oracle.clone();
        oracle.truncate(at);
        let on = Self {
            volumes: self.volumes_at(at),
            clients: Vec::new(),
            oracle,
            marks: self.marks.iter().filter(|(_, seq)| *seq <= at).cloned().collect(),
            sent: at.0,
            acknowledged: at.0,
            flushed: at.0,
            node,
            ..*self
        };
        std::mem::replace(self, on)
    }

    /// Whether nobody is served any more who was connected: neither writes nor reads.
    pub fn is_refused(&mut self) -> bool {
        let size = BLOCK_SIZE;
        self.clients
            .iter_mut()
            .all(|client| client.read(0, size).is_err() && client.write(0, &[0; 512], true).is_err())
    }

    fn mark(&mut self, pair: &Pair, orders: &Orders) -> Result<(), Error> {
        self.sent += 1;
        let (seq, name) = (WriteSeq(self.sent), format!("m{}", self.sent));
        self.oracle.mark(seq, Timestamp::now(), &name);
        let set = pair.cli(self.node, &["rtmark", "-C", "1", "--name", &name]);
        if set.code != 0 {
            return Err(Error::Protocol(set.stderr));
        }
        // Durable when it is answered (`Tap::mark`).
        (self.acknowledged, self.flushed) = (self.sent, self.sent);
        self.marks.push((name, seq));
        // An order to end that came meanwhile stands.
        let _ = orders
            .0
            .compare_exchange(MARK, MARKED, Ordering::AcqRel, Ordering::Acquire);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let upto = self.acknowledged;
        for client in &mut self.clients {
            client.flush()?;
        }
        self.flushed = upto;
        Ok(())
    }

    /// Up to eight writes in flight on one volume.
    fn batch(&mut self, rng: &mut StdRng) -> Result<(), Error> {
        let index = rng.random_range(0..self.volumes.len());
        let volume = VolumeIndex(u16::try_from(index).unwrap());
        let blocks = self.volumes[index].1 / BLOCK_SIZE;
        let count = rng.random_range(1..=8u64);
        // Each write has a stretch of the volume for itself.
        let stretch = blocks / count;
        let mut durable = self.flushed;
        for i in 0..count {
            self.sent += 1;
            let (seq, time) = (WriteSeq(self.sent), Timestamp::now());
            let most = if rng.random_range(0..10) == 0 { 32 } else { 4 };
            let len = rng.random_range(1..=most.min(stretch));
            let first = BlockNo(i * stretch + rng.random_range(0..=stretch - len));
            let range = ByteRange::at(first.start(), len * BLOCK_SIZE);
            let fua = rng.random_range(0..16) == 0;
            let request = match rng.random_range(0..10) {
                0 => {
                    self.oracle.zero(seq, time, volume, range);
                    Request::Zero {
                        range,
                        fua,
                        no_hole: false,
                    }
                }
                1 => {
                    // Anything but whole blocks.
                    let offset = range.start + rng.random_range(1..512);
                    let data = noise(rng.random_range(1..range.len() - 512), rng);
                    self.oracle.write(seq, time, volume, offset, &data);
                    Request::Write {
                        offset,
                        data: data.to_vec(),
                        fua,
                    }
                }
                _ => {
                    let header = |block| Header {
                        volume,
                        block,
                        version: seq.0,
                        time,
                        seed: 1,
                    };
                    self.oracle.describe(seq, time, &header(first), len);
                    let data = range.blocks().flat_map(|n| block::make(&header(n))).collect();
                    Request::Write {
                        offset: range.start,
                        data,
                        fua,
                    }
                }
            };
            if fua {
                durable = seq.0;
            }
            self.clients[index].submit(&request)?;
        }
        let mut failed = None;
        while let Some(done) = self.clients[index].complete()? {
            failed = failed.or(done.result.err());
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.acknowledged = self.sent;
        self.flushed = self.flushed.max(durable);
        Ok(())
    }

    /// Production was killed, and its disks were not: as [`Load::settle`], and all that was answered is there.
    pub fn settle_killed(&mut self, head: WriteSeq, why: &str) {
        let answered = self.acknowledged;
        assert!(
            head.0 >= answered,
            "{why}: {answered} was answered, the journal ends at {head}"
        );
        self.settle(head, why);
    }

    /// Production says that its journal ends at `head` now. That must be a prefix of what was sent with all that was flushed;
    /// what is behind it never was.
    pub fn settle(&mut self, head: WriteSeq, why: &str) {
        let (flushed, sent) = (self.flushed, self.sent);
        assert!(
            (flushed..=sent).contains(&head.0),
            "{why}: {flushed} was flushed, {sent} was sent, the journal ends at {head}"
        );
        self.lost += self.acknowledged.saturating_sub(head.0);
        self.oracle.truncate(head);
        self.volumes = self.volumes_at(head);
        self.marks.retain(|(_, seq)| *seq <= head);
        // What was found again was made durable again before it was served (rule T6).
        (self.sent, self.acknowledged, self.flushed) = (head.0, head.0, head.0);
    }
}
