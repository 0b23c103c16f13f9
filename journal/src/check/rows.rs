//! The rows of catalog, metadata and maps, one by one: one that does not check hides no other.

use super::{Checked, FindingKind, Findings, Place};
use crate::{
    cursors::Cursors,
    error::JournalError,
    keys::{self, Parts},
    line::decode_start,
    load::Tables,
    map::lost::Loaded,
    rows::{Consistent, ContextRow, Floors, PinRow, Promotion, RestoreRow, bad_key, checked, decode_touched},
    sizes::Extents,
    withheld::Withheld,
};
use model::ports::{Family, Store};

/// Behind every key of a family of rows.
const END: [u8; 24] = [0xff; 24];

/// Reads every row.
pub(super) fn check(store: &dyn Store, into: &mut Checked) {
    let (found, counts) = (&mut into.findings, &mut into.counts);
    let mut tables = Tables::default();
    let mut touched = 0;
    scan(store, Family::Catalog, found, |key, value| {
        counts.rows += 1;
        if key.first() == Some(&keys::TOUCHED) {
            touched += 1;
            return checked("catalog", key, decode_touched(value)).map(drop);
        }
        tables.row(key, value)
    });
    scan(store, Family::Meta, found, |key, value| {
        counts.rows += 1;
        meta(key, value)
    });
    counts.generations = tables.generations.len() as u64;
    if touched != tables.rows.values().count() as u64 && !found.is_damaged() {
        let what = format!(
            "{} containers have rows, {touched} have rows of what they touched",
            tables.rows.values().count()
        );
        found.add(FindingKind::Metadata, Place::family(Family::Catalog), what);
    }
    match Loaded::read(store) {
        Ok(loaded) => {
            for (volume, why) in loaded.lost() {
                let place = Place {
                    key: volume.map(|v| format!("{:04x}", v.0)),
                    ..Place::family(Family::Map)
                };
                found.add(FindingKind::Map, place, why);
            }
            counts.rows += loaded.rows();
        }
        Err(JournalError::Store(e)) => found.add_store(Family::Map, Place::family(Family::Map), &e),
        Err(e) => found.add_error(&e),
    }
    pins(store, &tables, found);
}

/// What can be read of the tables, where not all can.
pub(super) fn readable(store: &dyn Store) -> Tables {
    let mut tables = Tables::default();
    let mut ignored = Findings::default();
    scan(store, Family::Catalog, &mut ignored, |key, value| {
        let _ = tables.row(key, value);
        Ok(())
    });
    let get = |key| store.get(Family::Meta, key).ok().flatten();
    if let Some(floors) = get(keys::FLOORS).and_then(|v| Floors::decode(&v).ok()) {
        tables.floors = floors;
    }
    tables
}

fn scan(
    store: &dyn Store,
    family: Family,
    found: &mut Findings,
    mut row: impl FnMut(&[u8], &[u8]) -> Result<(), JournalError>,
) {
    let scanned = store.scan(family, &[], &END, &mut |key, value| {
        if let Err(e) = row(key, value) {
            found.add_error(&e);
        }
        true
    });
    if let Err(e) = scanned {
        found.add_store(family, Place::family(family), &e);
    }
}

fn meta(key: &[u8], value: &[u8]) -> Result<(), JournalError> {
    let read = |decoded| checked("meta", key, decoded);
    match key {
        keys::META_SEQ => read(crate::codec::Reader(value).u64().map(drop)),
        keys::CURSORS => read(Cursors::decode(value).map(drop)),
        keys::CONTEXT => read(ContextRow::decode(value).map(drop)),
        keys::RESTORE => read(RestoreRow::decode(value).map(drop)),
        keys::FLOORS => read(Floors::decode(value).map(drop)),
        keys::START => read(decode_start(value).map(drop)),
        keys::CONSISTENT => read(Consistent::decode_all(value).map(drop)),
        keys::PROMOTION => read(Promotion::decode(value).map(drop)),
        keys::WITHHELD => read(Withheld::decode(value).map(drop)),
        keys::EXTENTS => read(Extents::decode(value).map(drop)),
        [keys::PIN, ..] if key.len() == 9 => read(PinRow::decode(0, value).map(drop)),
        _ => Err(bad_key("meta", key)),
    }
}

/// What pins keep must be of a history that is known here.
fn pins(store: &dyn Store, tables: &Tables, found: &mut Findings) {
    let published = tables.ordinals.keys().next_back().copied().unwrap_or_default();
    let floors = store.get(Family::Meta, keys::FLOORS).ok().flatten();
    let floor = floors
        .and_then(|v| Floors::decode(&v).ok())
        .unwrap_or_default()
        .undo;
    let mut bad = Vec::new();
    // What cannot be read was found already.
    let _ = store.scan(Family::Meta, &[keys::PIN], &[keys::PIN + 1], &mut |key, value| {
        let id = Parts(&key[1..]).u64().unwrap_or_default();
        if let Ok(pin) = PinRow::decode(id, value) {
            let generation = pin.point.generation;
            if !tables.generations.contains_key(&generation) {
                bad.push((
                    id,
                    format!("pin {id} keeps a point of generation g{generation}, which is not known"),
                ));
            } else if pin.point.base > published.max(floor) {
                bad.push((
                    id,
                    format!(
                        "pin {id} stands on ordinal {}, the last one is {published}",
                        pin.point.base
                    ),
                ));
            }
        }
        true
    });
    for (id, what) in bad {
        let place = Place {
            key: Some(format!("{:02x}{id:016x}", keys::PIN)),
            ..Place::family(Family::Meta)
        };
        found.add(FindingKind::Metadata, place, what);
    }
}
