//! Containers: their rows against each other, their frames against their rows, and the index against both.

use super::{Checked, Counts, FindingKind, Findings, Place, Progress, Stage};
use crate::{
    codec::{Reader, len32},
    error::Position,
    frame::{Digest, Frame},
    keys,
    load::Tables,
    rows::{LfcRow, decode_touched},
    sizes::SizeChange,
};
use bytes::Bytes;
use model::{
    ByteRange, GenNo, LfcId, RecordBody, VolumeIndex, WriteSeq,
    ports::{Family, Store},
};
use std::collections::BTreeMap;

/// Entries of the index that a container should have.
type Expected = BTreeMap<(GenNo, LfcId), u64>;

pub(super) fn check(store: &dyn Store, tables: &Tables, into: &mut Checked, progress: Progress<'_>) {
    chains(tables, &mut into.findings);
    let is_held =
        |row: &&std::sync::Arc<LfcRow>| !row.dropped && (row.generation, row.lfc) > tables.floors.redo;
    let total = tables.rows.values().filter(is_held).map(|r| r.bytes).sum::<u64>();
    let mut expected = Expected::new();
    let mut done = 0;
    for row in tables.rows.values().filter(is_held) {
        progress(Stage::Redo, done, total);
        let mut container = Container {
            store,
            tables,
            row,
            found: &mut into.findings,
            counts: &mut into.counts,
            next: 0,
            seq: row.first_seq,
            digest: row.prev_digest,
            writes: 0,
            bytes: 0,
            entries: 0,
            missing: None,
            touched: Vec::new(),
        };
        container.check();
        if row.indexed {
            expected.insert((row.generation, row.lfc), container.entries);
        }
        done += row.bytes;
    }
    progress(Stage::Redo, total, total);
    index(store, tables, &expected, into);
}

/// Each container continues the one before it, and each generation its parent.
fn chains(tables: &Tables, found: &mut Findings) {
    let mut before: Option<&LfcRow> = None;
    for row in tables.rows.values() {
        let place = || Place {
            container: Some((row.generation, row.lfc)),
            record: Some(row.first_seq),
            ..Place::family(Family::Catalog)
        };
        let Some(generation) = tables.generations.get(&row.generation) else {
            found.add(FindingKind::Chain, place(), "its generation is not known");
            continue;
        };
        let previous = before.replace(row).filter(|b| b.generation == row.generation);
        if row.last_seq < row.first_seq {
            found.add(FindingKind::Metadata, place(), "it ends before it begins");
        }
        if row.after_gap {
            continue;
        }
        match previous {
            Some(b) if b.last_seq.next() != row.first_seq => {
                let what = format!("container {} before it ends at record {}", b.lfc, b.last_seq);
                found.add(FindingKind::Chain, place(), what);
            }
            Some(b) if b.end_digest != row.prev_digest => {
                let what = format!("its digest does not continue that of container {}", b.lfc);
                found.add(FindingKind::Chain, place(), what);
            }
            None if row.first_seq == generation.first_seq && row.prev_digest != generation.root_digest() => {
                found.add(
                    FindingKind::Chain,
                    place(),
                    "its digest is not the root of its generation",
                );
            }
            _ => {}
        }
    }
    for generation in tables.generations.values() {
        let Some(parent) = generation.parent else { continue };
        let of_parent = tables.generations.values().find(|g| g.id == parent.id);
        let ends_there = of_parent.and_then(|g| {
            let mut rows = tables.rows.values();
            rows.find(|r| r.generation == g.no && r.last_seq == parent.seq)
        });
        if ends_there.is_some_and(|row| row.end_digest != parent.digest) {
            let place = Place {
                record: Some(parent.seq),
                key: Some(format!("{:02x}{:08x}", keys::GENERATION, generation.no.0)),
                ..Place::family(Family::Catalog)
            };
            let what = format!(
                "generation g{} does not continue the digest of its parent",
                generation.no
            );
            found.add(FindingKind::Chain, place, what);
        }
    }
}

/// A container under examination.
struct Container<'a> {
    store: &'a dyn Store,
    tables: &'a Tables,
    row: &'a LfcRow,
    found: &'a mut Findings,
    counts: &'a mut Counts,
    /// The frame that comes next.
    next: u32,
    seq: WriteSeq,
    digest: Digest,
    writes: u64,
    bytes: u64,
    /// Index entries that it should have.
    entries: u64,
    /// The first of them that is wrong, and how many are.
    missing: Option<(Place, String, u64)>,
    touched: Vec<(VolumeIndex, ByteRange)>,
}

impl Container<'_> {
    fn place(&self) -> Place {
        Place {
            frame: Some(self.next),
            record: Some(self.seq),
            ..Place::container(self.row.generation, self.row.lfc)
        }
    }

    fn bad(&mut self, what: impl Into<String>) {
        let place = self.place();
        self.found.add(FindingKind::Redo, place, what);
    }

    fn check(&mut self) {
        let (generation, lfc) = (self.row.generation, self.row.lfc);
        self.read_touched();
        let (from, to) = (
            keys::redo(generation, lfc, 0),
            keys::redo(generation, LfcId(lfc.0 + 1), 0),
        );
        let store = self.store;
        let mut whole = true;
        let scanned = store.scan(Family::Redo, &from, &to, &mut |key, value| {
            whole = self.stored(key, value);
            whole
        });
        match scanned {
            Err(e) => {
                let place = self.place();
                self.found.add_store(Family::Redo, place, &e);
            }
            Ok(()) if whole => self.end(),
            Ok(()) => {}
        }
        if let Some((place, what, count)) = self.missing.take() {
            let more = if count > 1 {
                format!(" (and {} more of the container)", count - 1)
            } else {
                String::new()
            };
            self.found
                .add(FindingKind::RedoIndex, place, format!("{what}{more}"));
        }
        self.counts.containers += 1;
        self.counts.index_entries += self.entries;
    }

    fn read_touched(&mut self) {
        let key = keys::touched(self.row.generation, self.row.lfc);
        // A row that does not check was found already.
        let value = self.store.get(Family::Catalog, &key).ok().flatten();
        match value.map(|v| decode_touched(&v)) {
            Some(Ok(ranges)) => self.touched = ranges,
            Some(Err(_)) => {}
            None => {
                let place = Place {
                    container: Some((self.row.generation, self.row.lfc)),
                    ..Place::family(Family::Catalog)
                };
                self.found.add(
                    FindingKind::Metadata,
                    place,
                    "its row of what it touched is missing",
                );
            }
        }
    }

    /// A frame as it is stored; `false`: what is behind it cannot be told from it any more.
    fn stored(&mut self, key: &[u8], value: &[u8]) -> bool {
        let number = key
            .get(12..16)
            .and_then(|n| n.try_into().ok())
            .map(u32::from_be_bytes);
        if number != Some(self.next) {
            self.bad(format!("frame {} is missing", self.next));
            return false;
        }
        match Frame::parse(Bytes::copy_from_slice(value)) {
            Ok(frame) => self.frame(&frame),
            Err(e) => {
                self.bad(e.to_string());
                false
            }
        }
    }

    fn frame(&mut self, frame: &Frame) -> bool {
        let header = frame.header();
        let id = self.tables.generations.get(&self.row.generation).map(|g| g.id);
        let wrong = if Some(header.generation) != id {
            Some("it is of another generation")
        } else if header.lfc != self.row.lfc {
            Some("it is another container's")
        } else if header.first_seq != self.seq {
            Some("its first record is another")
        } else if header.prev_digest != self.digest {
            Some("the chain breaks")
        } else {
            None
        };
        if let Some(what) = wrong {
            self.bad(what);
            return false;
        }
        for (n, record) in frame.records().iter().enumerate() {
            self.record(record, len32(n));
        }
        self.counts.frames += 1;
        self.counts.records += frame.records().len() as u64;
        self.counts.bytes += frame.len() as u64;
        self.bytes += frame.len() as u64;
        self.digest = frame.digest();
        self.seq = frame.last_seq().next();
        self.next += 1;
        true
    }

    fn record(&mut self, record: &model::Record, n: u32) {
        let at = Position {
            generation: self.row.generation,
            seq: record.seq,
        };
        let catalog = || Place {
            container: Some((self.row.generation, self.row.lfc)),
            record: Some(record.seq),
            ..Place::family(Family::Catalog)
        };
        match &record.body {
            RecordBody::Mark { name, .. } if self.tables.marks.get(&at).is_none_or(|m| m.name != *name) => {
                self.found.add(
                    FindingKind::Metadata,
                    catalog(),
                    format!("mark '{name}' has no row"),
                );
            }
            RecordBody::ClockStep { from, to } if self.tables.steps.get(&at) != Some(&(*from, *to)) => {
                self.found
                    .add(FindingKind::Metadata, catalog(), "a clock step has no row");
            }
            RecordBody::Size { size } => {
                let (volume, size) = (record.volume, *size);
                // What was said before on the line has no row again.
                let is_said = |said: &SizeChange| *said == SizeChange { volume, size };
                if !self.tables.sizes.range(..=at).any(|(_, said)| is_said(said)) {
                    self.found
                        .add(FindingKind::Metadata, catalog(), "a size has no row");
                }
            }
            _ => {}
        }
        let Some(range) = record.changed() else { return };
        self.writes += 1;
        let aligned = range.block_aligned();
        let is_covered = self
            .touched
            .iter()
            .any(|(v, r)| *v == record.volume && r.start <= aligned.start && aligned.end <= r.end);
        if !is_covered {
            self.found.add(
                FindingKind::Metadata,
                catalog(),
                "it changes what its container's row does not name as touched",
            );
        }
        if !self.row.indexed {
            return;
        }
        for block in range.blocks() {
            self.entries += 1;
            let key = keys::redo_index(record.volume, block, self.row.generation, record.seq);
            let what = match self.store.get(Family::RedoIndex, &key) {
                Ok(Some(value)) => {
                    let mut r = Reader(&value);
                    let said = (|| Ok::<_, crate::codec::Malformed>((LfcId(r.u64()?), r.u32()?, r.u32()?)))();
                    if said == Ok((self.row.lfc, self.next, n)) {
                        continue;
                    }
                    "the index leads elsewhere".to_owned()
                }
                Ok(None) => "the index does not name it".to_owned(),
                Err(e) => e.to_string(),
            };
            let place = Place {
                family: Some(keys::family_name(Family::RedoIndex)),
                block: Some((record.volume, block)),
                record: Some(record.seq),
                ..self.place()
            };
            match &mut self.missing {
                Some((_, _, count)) => *count += 1,
                None => self.missing = Some((place, what, 1)),
            }
        }
    }

    /// All frames are there: the sums of the row.
    fn end(&mut self) {
        let row = self.row;
        let sums = [
            ("frames", u64::from(row.frames), u64::from(self.next)),
            ("records", row.records, self.seq.0 - row.first_seq.0),
            ("writes", row.writes, self.writes),
            ("bytes", row.bytes, self.bytes),
        ];
        for (what, said, there) in sums {
            if said != there {
                self.bad(format!("{there} {what} are there, its row has {said}"));
            }
        }
        if self.next == row.frames && self.digest != row.end_digest {
            self.bad("its last digest is not that of its row");
        }
    }
}

/// The whole index once more, for entries that nothing stands behind.
fn index(store: &dyn Store, tables: &Tables, expected: &Expected, into: &mut Checked) {
    let found = &mut into.findings;
    let mut there = Expected::new();
    let scanned = store.scan(Family::RedoIndex, &[], &[0xff; 24], &mut |key, value| {
        let mut r = Reader(value);
        let parsed = keys::index_parts(key).and_then(|(_, _, mut rest)| {
            let at = Position {
                generation: GenNo(rest.u32()?),
                seq: WriteSeq(rest.u64()?),
            };
            Some((at, LfcId(r.u64().ok()?)))
        });
        match parsed {
            // Compaction drops what is below the floor at leisure.
            Some((at, _)) if at <= tables.floors.redo_seq => {}
            Some((at, lfc)) => *there.entry((at.generation, lfc)).or_default() += 1,
            None => {
                let place = Place {
                    key: Some(key.iter().map(|b| format!("{b:02x}")).collect()),
                    ..Place::family(Family::RedoIndex)
                };
                found.add(FindingKind::RedoIndex, place, "an entry does not have its form");
            }
        }
        true
    });
    if let Err(e) = scanned {
        found.add_store(Family::RedoIndex, Place::family(Family::RedoIndex), &e);
        return;
    }
    if found.is_damaged() {
        // What could not be read has no right count.
        return;
    }
    for ((generation, lfc), count) in expected {
        let entries = there.get(&(*generation, *lfc)).copied().unwrap_or_default();
        if entries > *count {
            let place = Place {
                family: Some(keys::family_name(Family::RedoIndex)),
                ..Place::container(*generation, *lfc)
            };
            let what = format!("{entries} entries name it, its records have {count}");
            found.add(FindingKind::RedoIndex, place, what);
        }
    }
}
