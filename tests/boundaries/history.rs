//! What a volume went through: its records as the journal of the recovery host has them, and where the flushes lie among them.

use crate::recorder::{Log, Mutation, Tick};
use bytes::{Bytes, BytesMut};
use journal::{Journal, Options, Parts};
use model::{BLOCK_SIZE, ByteRange, Payload, VolumeIndex, WriteSeq};
use rand::{Rng, rngs::StdRng};
use std::{collections::BTreeMap, path::Path};

/// One change of a volume as it was asked for; a long one is several records.
pub struct Change {
    /// What it changes.
    pub range: ByteRange,
    /// What that becomes.
    pub payload: Payload,
    /// Its last record.
    pub seq: WriteSeq,
    /// As the relay saw it.
    pub asked: Mutation,
}

/// A record of a volume.
pub struct Written {
    seq: WriteSeq,
    range: ByteRange,
    payload: Payload,
}

/// The records behind `from` of every volume, out of the journal of a node that is stopped.
pub fn records(journal: &Path, lfc_size: u64, from: WriteSeq) -> BTreeMap<VolumeIndex, Vec<Written>> {
    let parts = Parts::open_shadow(journal, lfc_size).unwrap();
    let options = Options {
        lfc_size,
        lfc_max_age_ns: None,
        ..Options::default()
    };
    let (journal, _) = Journal::open(parts, options).unwrap();
    let mut all: BTreeMap<VolumeIndex, Vec<Written>> = BTreeMap::new();
    let (mut at, end) = (from, journal.cursors().durable);
    while at < end {
        let frames = journal.frames_after(at, 8 << 20).unwrap();
        for record in frames.iter().flat_map(|f| f.records()).filter(|r| r.seq > at) {
            if let (Some(range), Some(payload)) = (record.changed(), record.payload()) {
                all.entry(record.volume).or_default().push(Written {
                    seq: record.seq,
                    range,
                    payload,
                });
            }
        }
        at = frames.last().expect("the journal reaches its end").last_seq();
    }
    all
}

/// The records that each request became: the same bytes in the same order, nothing left out and nothing more.
pub fn matched(name: &str, log: &Log, records: Vec<Written>) -> Vec<Change> {
    let mut records = records.into_iter();
    let one = |(n, asked): (usize, &Mutation)| {
        let (mut at, mut seq, mut parts) = (asked.range.start, WriteSeq(0), Vec::new());
        while at < asked.range.end {
            let record = records
                .next()
                .unwrap_or_else(|| panic!("{name}: no record of request {n}"));
            assert!(
                record.range.start == at && record.range.end <= asked.range.end,
                "{name}: request {n} is of {:?}, record {} of {:?}",
                asked.range,
                record.seq,
                record.range
            );
            (at, seq) = (record.range.end, record.seq);
            parts.push(record.payload);
        }
        let payload = joined(parts);
        let digest = match &payload {
            Payload::Data(data) => Some(blake3::hash(data)),
            Payload::Zero => None,
        };
        assert_eq!(digest, asked.digest, "{name}: bytes of request {n}, record {seq}");
        Change {
            range: asked.range,
            payload,
            seq,
            asked: *asked,
        }
    };
    let changes = log.mutations.iter().enumerate().map(one).collect();
    assert!(records.next().is_none(), "{name}: records that nobody asked for");
    changes
}

fn joined(mut parts: Vec<Payload>) -> Payload {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut all = BytesMut::new();
    for part in &parts {
        match part {
            Payload::Data(data) => all.extend_from_slice(data),
            Payload::Zero => return Payload::Zero,
        }
    }
    Payload::Data(Bytes::from(all))
}

/// What of the changes there is after a crash: all of the first, and of those behind them these, whole or in part.
#[derive(Clone)]
pub struct Survivors {
    /// So many first changes are there, whole.
    pub whole: usize,
    /// These are there as well: a change, and which of its blocks (none said: all).
    pub more: Vec<(usize, Option<Vec<bool>>)>,
}

impl Survivors {
    /// All of so many.
    pub const fn prefix(count: usize) -> Self {
        Self {
            whole: count,
            more: Vec::new(),
        }
    }
}

/// A volume's whole history.
pub struct History {
    /// In order.
    pub changes: Vec<Change>,
    /// Counts of changes at which a flush (or a change with FUA) was answered, rising.
    pub points: Vec<usize>,
    log: Log,
    from: Tick,
}

impl History {
    /// The history that a relay saw, as the journal has it; points count from a tick on.
    pub fn new(name: &str, log: Log, records: Vec<Written>, from: Tick) -> Self {
        let changes = matched(name, &log, records);
        let flushes = log
            .flushes
            .iter()
            .filter(|f| f.answered.is_some_and(|a| a > from));
        let durable = (1..)
            .zip(&log.mutations)
            .filter(|(_, m)| m.fua && m.answered.is_some_and(|a| a > from));
        let mut points: Vec<usize> = flushes.map(|f| f.upto).chain(durable.map(|(n, _)| n)).collect();
        points.sort_unstable();
        points.dedup();
        Self {
            changes,
            points,
            log,
            from,
        }
    }

    /// So many flushes were answered.
    pub fn flushes(&self) -> usize {
        self.log.flushes.iter().filter(|f| f.answered.is_some()).count()
    }

    /// The newest record at a point.
    pub fn seq(&self, count: usize) -> WriteSeq {
        self.changes[count - 1].seq
    }

    /// So many changes are there at a record.
    pub fn count_at(&self, seq: WriteSeq) -> usize {
        self.changes.partition_point(|c| c.seq <= seq)
    }

    /// The blocks that a run of changes touches, rising.
    pub fn blocks(&self, run: std::ops::Range<usize>) -> Vec<u64> {
        let touched = self.changes[run].iter().flat_map(|c| blocks_of(c.range));
        let mut blocks: Vec<u64> = touched.collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// What a disk with a volatile cache may hold when the power goes at a random moment: all that a flush or FUA has made durable,
    /// and of the rest that was asked for by then any blocks, but not all; none when all was durable then.
    ///
    /// Of two writes of one block the older may be there alone, as if the newer were lost. The newer alone is the newer.
    pub fn crash(&self, rng: &mut StdRng) -> Option<Crash> {
        let asked = &self.log.mutations;
        let last = asked.last().expect("a history has changes");
        let tick = rng.random_range(self.from..last.answered.expect("all was answered"));
        let flushes = self.log.flushes.iter();
        let answered = flushes.filter(|f| f.answered.is_some_and(|a| a <= tick));
        let flushed = answered.map(|f| f.sent).max()?;
        let is_durable = |m: &Mutation| m.answered.is_some_and(|a| a < flushed || (m.fua && a <= tick));
        let sent = asked.partition_point(|m| m.sent <= tick);
        let whole = asked[..sent].iter().take_while(|m| is_durable(m)).count();
        let likely = [0.05, 0.3, 0.5, 0.7, 0.95][rng.random_range(0..5)];
        let torn = rng.random_bool(0.5);
        let (mut more, mut lost) = (Vec::new(), 0);
        for (n, mutation) in (whole..sent).zip(&asked[whole..sent]) {
            if is_durable(mutation) {
                more.push((n, None));
                continue;
            }
            let all = rng.random_bool(likely);
            let one = |_| if torn { rng.random_bool(likely) } else { all };
            let kept: Vec<bool> = blocks_of(mutation.range).map(one).collect();
            lost += kept.iter().filter(|kept| !**kept).count();
            more.push((n, Some(kept)));
        }
        let left = Survivors { whole, more };
        (lost > 0).then_some(Crash { tick, left, lost })
    }
}

/// A crash at a moment.
pub struct Crash {
    /// The moment.
    pub tick: Tick,
    /// What there is then.
    pub left: Survivors,
    /// Blocks that are not.
    pub lost: usize,
}

/// The blocks that a range touches.
pub fn blocks_of(range: ByteRange) -> std::ops::Range<u64> {
    range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE)
}
