//! Before-images against their ordinals' rows and their index.

use super::{Checked, FindingKind, Place, Progress, Stage};
use crate::{keys, load::Tables, undo::decode_undo};
use bytes::Bytes;
use model::{
    BLOCK_SIZE, BlockNo, Ordinal, Payload, VolumeIndex,
    ports::{Family, Store},
};
use std::collections::BTreeMap;

pub(super) fn check(store: &dyn Store, tables: &Tables, into: &mut Checked, progress: Progress<'_>) {
    let floor = tables.floors.undo;
    let held = || tables.ordinals.values().filter(|row| row.ordinal > floor);
    let total = held().map(|row| row.blocks).sum::<u64>();
    let (mut done, mut next) = (0, floor.next());
    let mut blocks_of = BTreeMap::new();
    for row in held() {
        progress(Stage::Undo, done, total);
        if row.ordinal != next {
            let place = Place {
                ordinal: Some(next),
                ..Place::family(Family::Catalog)
            };
            let what = format!("its row is missing, and ordinal {} is there", row.ordinal);
            into.findings.add(FindingKind::Metadata, place, what);
        }
        next = row.ordinal.next();
        blocks_of.insert(row.ordinal, row.blocks);
        ordinal(store, row.ordinal, (row.blocks, row.bytes), into);
        done += row.blocks;
    }
    progress(Stage::Undo, total, total);
    index(store, floor, &blocks_of, into);
}

/// The before-images of one ordinal.
fn ordinal(store: &dyn Store, ordinal: Ordinal, said: (u64, u64), into: &mut Checked) {
    let key = |ordinal| keys::undo(ordinal, VolumeIndex(0), BlockNo(0));
    let (mut blocks, mut bytes) = (0, 0);
    let of_ordinal = |block| Place {
        ordinal: Some(ordinal),
        block,
        ..Place::family(Family::Undo)
    };
    let found = &mut into.findings;
    // The last block that was read: what cannot be read is behind it.
    let mut last = None;
    let mut in_index = None::<(Place, String, u64)>;
    let scanned = store.scan(
        Family::Undo,
        &key(ordinal),
        &key(ordinal.next()),
        &mut |key, value| {
            let mut parts = keys::Parts(key.get(8..).unwrap_or_default());
            let block = parts.u16().map(VolumeIndex).zip(parts.u64().map(BlockNo));
            let Some((volume, number)) = block else {
                found.add(
                    FindingKind::Undo,
                    of_ordinal(last),
                    "a key does not have its form",
                );
                return true;
            };
            last = block;
            blocks += 1;
            let flag = match decode_undo(&Bytes::copy_from_slice(value)) {
                Ok(Payload::Zero) => 0u8,
                Ok(Payload::Data(_)) => {
                    bytes += BLOCK_SIZE;
                    1
                }
                Err(e) => {
                    found.add(FindingKind::Undo, of_ordinal(block), e.to_string());
                    return true;
                }
            };
            let what = match store.get(Family::UndoIndex, &keys::undo_index(volume, number, ordinal)) {
                Ok(Some(value)) if value.as_ref() == [flag] => return true,
                Ok(Some(_)) => "the index says another kind of it".to_owned(),
                Ok(None) => "the index does not name it".to_owned(),
                Err(e) => e.to_string(),
            };
            let place = Place {
                family: Some(keys::family_name(Family::UndoIndex)),
                ..of_ordinal(block)
            };
            match &mut in_index {
                Some((_, _, count)) => *count += 1,
                None => in_index = Some((place, what, 1)),
            }
            true
        },
    );
    if let Some((place, what, count)) = in_index {
        let more = if count > 1 {
            format!(" (and {} more of the ordinal)", count - 1)
        } else {
            String::new()
        };
        found.add(FindingKind::UndoIndex, place, format!("{what}{more}"));
    }
    into.counts.undo_blocks += blocks;
    match scanned {
        Err(e) => into.findings.add_store(Family::Undo, of_ordinal(last), &e),
        Ok(()) if (blocks, bytes) != said => {
            let what = format!(
                "{blocks} blocks with {bytes} bytes are there, its row has {} with {}",
                said.0, said.1
            );
            into.findings.add(FindingKind::Undo, of_ordinal(None), what);
        }
        Ok(()) => {}
    }
}

/// The whole index once more, for entries that nothing stands behind.
fn index(store: &dyn Store, floor: Ordinal, blocks_of: &BTreeMap<Ordinal, u64>, into: &mut Checked) {
    let mut there = BTreeMap::<Ordinal, u64>::new();
    let found = &mut into.findings;
    let scanned = store.scan(Family::UndoIndex, &[], &[0xff; 24], &mut |key, _| {
        match keys::index_parts(key)
            .and_then(|(_, _, mut rest)| rest.u64())
            .map(Ordinal)
        {
            // Compaction drops what is below the floor at leisure.
            Some(ordinal) if ordinal <= floor => {}
            Some(ordinal) => *there.entry(ordinal).or_default() += 1,
            None => {
                let place = Place {
                    key: Some(key.iter().map(|b| format!("{b:02x}")).collect()),
                    ..Place::family(Family::UndoIndex)
                };
                found.add(FindingKind::UndoIndex, place, "an entry does not have its form");
            }
        }
        true
    });
    if let Err(e) = scanned {
        found.add_store(Family::UndoIndex, Place::family(Family::UndoIndex), &e);
        return;
    }
    into.counts.index_entries += there.values().sum::<u64>();
    for (ordinal, blocks) in blocks_of {
        let entries = there.get(ordinal).copied().unwrap_or_default();
        if entries > *blocks {
            let place = Place {
                ordinal: Some(*ordinal),
                ..Place::family(Family::UndoIndex)
            };
            let what = format!("{entries} entries name it, its row has {blocks} blocks");
            into.findings.add(FindingKind::UndoIndex, place, what);
        }
    }
}
