//! A history in memory, on the same power supply as the volumes: committing undo is a step at which power can go away.

use model::{
    BLOCK_SIZE, BlockNo, ByteRange, GenNo, Ordinal, Payload, Record, RedoSpan, VolumeIndex, WriteSeq,
    ports::{BeforeImage, Ended, History, HistoryError, Medium, OrdinalKind, RedoPiece},
};
use parking_lot::{Mutex, RwLock};
use rand::{Rng, RngCore};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};
use testkit::{SimMedium, SimPower};

type Key = (VolumeIndex, BlockNo);

struct Undo {
    kind: OrdinalKind,
    blocks: BTreeMap<Key, Payload>,
}

pub struct MemHistory {
    undo: RwLock<BTreeMap<Ordinal, Undo>>,
    redo: RwLock<BTreeMap<(GenNo, WriteSeq), Record>>,
    published: AtomicU64,
    /// Its sync is the moment at which undo becomes durable.
    disk: Mutex<SimMedium>,
    /// Under way when power went: durable or not by chance.
    torn: Mutex<Option<(Ordinal, Undo)>>,
    /// Holding its syncs pauses between publishing and the first overwrite.
    pub gate: SimMedium,
}

impl MemHistory {
    pub fn new(power: &SimPower) -> Self {
        Self {
            undo: RwLock::default(),
            redo: RwLock::default(),
            published: AtomicU64::new(0),
            disk: Mutex::new(power.medium("history", 1)),
            torn: Mutex::default(),
            gate: SimPower::new().medium("gate", 1),
        }
    }

    pub fn add(&self, generation: GenNo, record: &Record) {
        self.redo.write().insert((generation, record.seq), record.clone());
    }

    /// After a crash.
    pub fn restart(&self, rng: &mut dyn RngCore) {
        let mut disk = self.disk.lock();
        *disk = disk.reopen();
        if let Some((ordinal, undo)) = self.torn.lock().take()
            && rng.random()
        {
            self.publish(ordinal, undo);
        }
    }

    pub fn containers(&self) -> usize {
        self.undo.read().len()
    }

    pub fn kind(&self, ordinal: Ordinal) -> OrdinalKind {
        self.undo.read()[&ordinal].kind.clone()
    }

    pub fn blocks(&self, ordinal: Ordinal) -> usize {
        self.undo.read()[&ordinal].blocks.len()
    }

    fn publish(&self, ordinal: Ordinal, undo: Undo) {
        let old = self.undo.write().insert(ordinal, undo);
        assert!(old.is_none(), "undo of {ordinal} rebuilt");
        self.published.store(ordinal.0, Ordering::Release);
    }

    fn records(&self, spans: &[RedoSpan]) -> Vec<Record> {
        let redo = self.redo.read();
        spans
            .iter()
            .flat_map(|s| {
                redo.range((s.generation, s.after.next())..=(s.generation, s.upto))
                    .map(|(_, r)| r.clone())
            })
            .collect()
    }
}

fn page(all: BTreeSet<Key>, from: Key, limit: usize) -> Vec<Key> {
    all.range(from..).take(limit).copied().collect()
}

impl History for MemHistory {
    fn published(&self) -> Ordinal {
        Ordinal(self.published.load(Ordering::Acquire))
    }

    fn first_undo_of(
        &self,
        blocks: &[Key],
        after: Ordinal,
        upto: Ordinal,
    ) -> Result<Vec<Option<Payload>>, HistoryError> {
        assert!(upto <= self.published(), "looked past what is published");
        assert!(blocks.is_sorted_by(|a, b| a < b), "blocks are not in order");
        let undo = self.undo.read();
        let find = |block| {
            undo.range(after.next()..=upto)
                .find_map(|(_, undo)| undo.blocks.get(block).cloned())
        };
        Ok(blocks.iter().map(find).collect())
    }

    fn redo(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
        spans: &[RedoSpan],
    ) -> Result<Vec<RedoPiece>, HistoryError> {
        let mut pieces = Vec::new();
        for record in self.records(spans).iter().filter(|r| r.volume == volume) {
            let Some(changed) = record.changed() else { continue };
            let Some(part) = changed.intersect(range) else {
                continue;
            };
            let payload = match record.payload().unwrap() {
                Payload::Zero => Payload::Zero,
                Payload::Data(d) => {
                    let at = (part.start - changed.start) as usize;
                    Payload::Data(d.slice(at..at + part.len() as usize))
                }
            };
            pieces.push(RedoPiece {
                seq: record.seq,
                range: part,
                payload,
            });
        }
        Ok(pieces)
    }

    fn commit_undo(
        &self,
        ordinal: Ordinal,
        kind: &OrdinalKind,
        images: &mut dyn Iterator<Item = Result<BeforeImage, Ended>>,
    ) -> Result<Vec<Key>, HistoryError> {
        assert_eq!(ordinal, self.published().next());
        let mut blocks = BTreeMap::new();
        for image in images {
            let BeforeImage { volume, block, image } = image.map_err(|Ended| HistoryError::Ended)?;
            let image = image.expect("no block of these disks is unreadable");
            assert!(!matches!(&image, Payload::Data(d) if d.len() as u64 != BLOCK_SIZE));
            let last = blocks.last_key_value().map(|(last, _)| *last);
            assert!(last < Some((volume, block)), "{volume} {block:?} behind {last:?}");
            blocks.insert((volume, block), image);
        }
        let keys = blocks.keys().copied().collect();
        let undo = Undo {
            kind: kind.clone(),
            blocks,
        };
        let disk = self.disk.lock();
        if let Err(source) = disk.write_at(0, &[1]).and_then(|()| disk.sync()) {
            *self.torn.lock() = Some((ordinal, undo));
            let what = "history".into();
            return Err(HistoryError::Io { what, source });
        }
        self.publish(ordinal, undo);
        self.gate.sync().unwrap();
        Ok(keys)
    }

    fn undone_blocks(
        &self,
        after: Ordinal,
        upto: Ordinal,
        from: Key,
        limit: usize,
    ) -> Result<Vec<Key>, HistoryError> {
        if after >= upto {
            return Ok(Vec::new());
        }
        let undo = self.undo.read();
        let all = undo
            .range(after.next()..=upto)
            .flat_map(|(_, undo)| undo.blocks.keys().copied())
            .collect();
        Ok(page(all, from, limit))
    }

    fn redone_blocks(&self, spans: &[RedoSpan], from: Key, limit: usize) -> Result<Vec<Key>, HistoryError> {
        let all = self
            .records(spans)
            .iter()
            .filter_map(|r| Some((r.volume, r.changed()?)))
            .flat_map(|(v, range)| range.blocks().map(move |b| (v, b)))
            .collect();
        Ok(page(all, from, limit))
    }
}
