//! Reading the whole catalog and metadata on open.

use crate::{
    cursors::Cursors,
    error::{JournalError, Position},
    keys::{self, Parts},
    line::decode_start,
    map::lost::Loaded,
    row_table::RowTable,
    rows::{
        Consistent, Floors, Generation, LfcRow, OrdinalRow, Promotion, bad_key, checked, decode_mark,
        decode_step,
    },
    sizes::{Extents, SizeChange},
    tail::Start,
    withheld::Withheld,
};
use model::{
    EventMark, GenId, GenNo, LfcId, Ordinal, Timestamp, WriteSeq,
    ports::{Family, Store},
};
use std::{collections::BTreeMap, sync::Arc};

/// Everything that the store holds besides frames and undo.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) meta_seq: u64,
    pub(crate) generations: BTreeMap<GenNo, Generation>,
    pub(crate) rows: RowTable,
    pub(crate) ordinals: BTreeMap<Ordinal, OrdinalRow>,
    pub(crate) marks: BTreeMap<Position, EventMark>,
    pub(crate) steps: BTreeMap<Position, (Timestamp, Timestamp)>,
    pub(crate) sizes: BTreeMap<Position, SizeChange>,
    pub(crate) extents: Extents,
    pub(crate) cursors: Cursors,
    pub(crate) floors: Floors,
    pub(crate) start: Option<(GenNo, Start)>,
    pub(crate) consistent: Vec<Consistent>,
    pub(crate) maps: Loaded,
    pub(crate) promotion: Option<Promotion>,
    pub(crate) withheld: Withheld,
}

impl Tables {
    pub(crate) fn load(store: &dyn Store) -> Result<Self, JournalError> {
        let mut t = Self::default();
        if let Some(value) = store.get(Family::Meta, keys::META_SEQ)? {
            let mut r = crate::codec::Reader(&value);
            t.meta_seq = checked("meta", keys::META_SEQ, r.u64())?;
        }
        if let Some(value) = store.get(Family::Meta, keys::CURSORS)? {
            t.cursors = checked("meta", keys::CURSORS, Cursors::decode(&value))?;
        }
        if let Some(value) = store.get(Family::Meta, keys::FLOORS)? {
            t.floors = checked("meta", keys::FLOORS, Floors::decode(&value))?;
        }
        if let Some(value) = store.get(Family::Meta, keys::START)? {
            t.start = Some(checked("meta", keys::START, decode_start(&value))?);
        }
        if let Some(value) = store.get(Family::Meta, keys::CONSISTENT)? {
            t.consistent = checked("meta", keys::CONSISTENT, Consistent::decode_all(&value))?;
        }
        if let Some(value) = store.get(Family::Meta, keys::PROMOTION)? {
            t.promotion = Some(checked("meta", keys::PROMOTION, Promotion::decode(&value))?);
        }
        if let Some(value) = store.get(Family::Meta, keys::WITHHELD)? {
            t.withheld = checked("meta", keys::WITHHELD, Withheld::decode(&value))?;
        }
        if let Some(value) = store.get(Family::Meta, keys::EXTENTS)? {
            t.extents = checked("meta", keys::EXTENTS, Extents::decode(&value))?;
        }
        t.maps = Loaded::read(store)?;
        let mut fault = None;
        store.scan(Family::Catalog, &[], &[0xff], &mut |key, value| {
            // The touched ranges are read when they are asked for.
            match t.row(key, value) {
                Ok(()) => true,
                Err(e) => {
                    fault = Some(e);
                    false
                }
            }
        })?;
        fault.map_or(Ok(t), Err)
    }

    /// Takes in a row of the catalog.
    pub(crate) fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), JournalError> {
        let bad = || bad_key("catalog", key);
        let mut p = Parts(key);
        let kind = p.u8().ok_or_else(bad)?;
        match kind {
            keys::GENERATION => {
                let no = GenNo(p.u32().ok_or_else(bad)?);
                self.generations
                    .insert(no, checked("catalog", key, Generation::decode(no, value))?);
            }
            keys::LFC => {
                let id = (GenNo(p.u32().ok_or_else(bad)?), LfcId(p.u64().ok_or_else(bad)?));
                let row = checked("catalog", key, LfcRow::decode(id.0, id.1, value))?;
                self.rows.insert(Arc::new(row));
            }
            keys::ORDINAL => {
                let ordinal = Ordinal(p.u64().ok_or_else(bad)?);
                self.ordinals.insert(
                    ordinal,
                    checked("catalog", key, OrdinalRow::decode(ordinal, value))?,
                );
            }
            keys::MARK | keys::CLOCK_STEP | keys::SIZE => {
                let generation = GenNo(p.u32().ok_or_else(bad)?);
                let seq = WriteSeq(p.u64().ok_or_else(bad)?);
                let at = Position { generation, seq };
                match kind {
                    keys::MARK => {
                        let mark = decode_mark(generation, seq, value);
                        self.marks.insert(at, checked("catalog", key, mark)?);
                    }
                    keys::CLOCK_STEP => {
                        self.steps
                            .insert(at, checked("catalog", key, decode_step(value))?);
                    }
                    _ => {
                        let change = SizeChange::decode(value);
                        self.sizes.insert(at, checked("catalog", key, change)?);
                    }
                }
            }
            keys::TOUCHED => {}
            _ => return Err(bad()),
        }
        Ok(())
    }

    pub(crate) fn generation_no(&self, id: GenId) -> Option<GenNo> {
        self.generations.values().find(|g| g.id == id).map(|g| g.no)
    }

    /// Where the container after the newest row starts, unless a later start was committed.
    pub(crate) fn next_start(&self) -> Option<(GenNo, Start)> {
        let (no, start) = self.start?;
        let Some(row) = self
            .rows
            .last()
            .filter(|r| (r.generation, r.lfc) >= (no, start.lfc))
        else {
            return Some((no, start));
        };
        let generation = self.generations.get(&row.generation)?.id;
        let start = Start {
            generation,
            lfc: row.lfc.next(),
            first_seq: row.last_seq.next(),
            prev_digest: row.end_digest,
            after_gap: false,
        };
        Some((row.generation, start))
    }
}
