//! Moving a sealed container from its tail into the store, and freeing what is below the floors.
//!
//! # Crash consistency (`rules.md` T3, T4, T8, T9)
//!
//! Frames, then index, then the catalog row, which is the commit: without the row everything is repeated from the tail.
//! The tail is free for the next container only when the row is durable. Floors are durable before anything below them is
//! freed, and freeing is repeated after every open.

use crate::{
    codec::{Writer, len32},
    container::Sealed,
    error::{Damage, JournalError, Position},
    frame::Frame,
    journal::{Journal, Shared, tail_name},
    keys,
    rows::{Floors, LfcRow, encode_mark, encode_step, encode_touched},
    tail::read_frame,
};
use bytes::Bytes;
use model::{
    GenNo, LfcId, Ordinal, WriteSeq,
    ports::{Batch, Family, OrdinalKind, StoreError},
};
use std::{collections::BTreeSet, ops::Bound, sync::Arc};

impl Shared {
    /// Ordinals below a floor whose rows nothing names any more. Their states cannot be reached, but a restore that was taken
    /// back leads to the position of the ordinal that it went back to, so that one's row outlives its undo.
    fn unnamed_ordinals(&self, floor: Ordinal) -> BTreeSet<Ordinal> {
        let mut named = BTreeSet::new();
        for (ordinal, row) in self.ordinals.iter().rev() {
            let is_kept = *ordinal >= floor || named.contains(ordinal);
            if let OrdinalKind::Local { base, redo, .. } = &row.kind
                && is_kept
                && redo.is_empty()
            {
                named.insert(*base);
            }
        }
        let below = self.ordinals.range(..floor).map(|(ordinal, _)| *ordinal);
        below.filter(|ordinal| !named.contains(ordinal)).collect()
    }
}

impl Journal {
    /// Moves the sealed container that waits in its tail, if one does, into the store. For a background thread.
    ///
    /// # Errors
    /// When the tail or the store fails.
    pub fn ingest_sealed(&self) -> Result<Option<Arc<LfcRow>>, JournalError> {
        self.guarded(|| self.ingest_inner())
    }

    /// Whether a sealed container waits in its tail.
    #[must_use]
    pub fn has_sealed(&self) -> bool {
        self.shared.read().sealed.is_some()
    }

    /// The last record of the sealed container that waits in its tail.
    #[must_use]
    pub fn waiting_end(&self) -> Option<WriteSeq> {
        self.shared.read().sealed.as_ref().map(|s| s.row.last_seq)
    }

    /// Whether the open container is half full: soon the tail is needed in which a sealed one waits.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        let shared = self.shared.read();
        let half = self.options.lfc_size / 2;
        shared.open.as_ref().is_some_and(|open| open.entry_bytes() > half)
    }

    pub(crate) fn ingest_inner(&self) -> Result<Option<Arc<LfcRow>>, JournalError> {
        let _ingesting = self.ingesting.lock();
        let Some(sealed) = self.shared.read().sealed.clone() else {
            return Ok(None);
        };
        self.ingest_frames(&sealed)?;
        let indexed = self.indexed.load(std::sync::atomic::Ordering::Acquire);
        if indexed {
            self.ingest_index(&sealed)?;
        }
        let row = LfcRow {
            indexed,
            ..(*sealed.row).clone()
        };
        self.commit_row(&sealed, row, None).map(Some)
    }

    /// Production (`rules.md` T8): the sealed container that waits is checkpointed, applied by the peer and wanted by
    /// nobody, so its frames are dropped instead of stored; its row stays. Frees all redo before it, too.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when it is not checkpointed or not applied by the peer, or a failure.
    pub fn drop_sealed(&self) -> Result<Option<Arc<LfcRow>>, JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            let Some(sealed) = self.shared.read().sealed.clone() else {
                return Ok(None);
            };
            let c = self.cursors();
            if sealed.row.last_seq > c.checkpointed || sealed.row.last_seq > c.applied_by_peer {
                return Err(JournalError::Refused(format!(
                    "container {} ends at {}, checkpointed is {}, the peer has applied {}",
                    sealed.row.lfc, sealed.row.last_seq, c.checkpointed, c.applied_by_peer
                )));
            }
            self.keep_peer()?;
            self.drop_waiting(&sealed).map(Some)
        })
    }

    /// Production (`rules.md` T8): frees redo up to `upto`, as far as the volumes hold it durably and the peer has applied it; a peer
    /// that goes back to an older state of itself meanwhile is heard. `false`: the newest of it waits in its tail still.
    ///
    /// # Errors
    /// When the floor could not be made durable, or freeing failed.
    pub fn drop_applied(&self, upto: WriteSeq) -> Result<bool, JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            let cursors = self.cursors();
            let upto = upto.min(cursors.applied_by_peer).min(cursors.checkpointed);
            let (last, waits) = {
                let shared = self.shared.read();
                let behind = (Bound::Excluded(shared.floors.redo), Bound::Unbounded);
                let stored = shared.rows.range(behind).take_while(|row| row.last_seq <= upto);
                let waits = shared.sealed.as_ref().is_some_and(|s| s.row.last_seq <= upto);
                (stored.last().cloned(), waits)
            };
            if let Some(last) = last {
                self.keep_peer()?;
                self.move_floors(self.redo_floor(&last))?;
            }
            Ok(!waits)
        })
    }

    /// Commits the row of the container that waits, without its frames. The caller holds `ingesting`.
    pub(crate) fn drop_waiting(&self, sealed: &Sealed) -> Result<Arc<LfcRow>, JournalError> {
        let row = LfcRow {
            dropped: true,
            ..(*sealed.row).clone()
        };
        let floors = self.redo_floor(&row);
        self.commit_row(sealed, row, Some(floors))
    }

    fn ingest_frames(&self, sealed: &Sealed) -> Result<(), JournalError> {
        let c = &sealed.container;
        let mut fault = None;
        let mut digest = c.header.start.prev_digest;
        let mut frames = c.frames.iter().enumerate().map_while(|(i, loc)| {
            let read = read_frame(&*self.tails[c.tail], loc, &tail_name(c.tail)).and_then(|bytes| {
                let frame = Frame::parse(bytes.clone())
                    .map_err(|e| damaged(&sealed.row, format!("frame {i} in tail {}: {e}", c.tail)))?;
                if frame.header().prev_digest != digest {
                    return Err(damaged(
                        &sealed.row,
                        format!("frame {i} in tail {} breaks the chain", c.tail),
                    ));
                }
                digest = frame.digest();
                Ok(bytes)
            });
            match read {
                Ok(bytes) => Some((keys::redo(c.generation, c.header.start.lfc, len32(i)), bytes)),
                Err(e) => {
                    fault = Some(e);
                    None
                }
            }
        });
        let (from, to) = (
            keys::redo(c.generation, c.header.start.lfc, 0),
            keys::redo(c.generation, c.header.start.lfc.next(), 0),
        );
        self.ingest_whole(Family::Redo, (&from, &to), &mut frames)?;
        fault.map_or(Ok(()), Err)
    }

    /// Ingests all there is of a range of keys that no row speaks of yet. What an attempt before left of it goes first, as after a
    /// crash, or where its index found no room: a file that overlaps another one would hold its room for good.
    pub(crate) fn ingest_whole(
        &self,
        family: Family,
        (from, to): (&[u8], &[u8]),
        pairs: &mut dyn Iterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<(), StoreError> {
        let mut is_there = false;
        self.store.scan(family, from, to, &mut |_, _| {
            is_there = true;
            false
        })?;
        if is_there {
            self.store.drop_range(family, from, to)?;
        }
        self.store.ingest(family, pairs)
    }

    fn ingest_index(&self, sealed: &Sealed) -> Result<(), JournalError> {
        let c = &sealed.container;
        let mut pairs = c.index.iter().flat_map(|((volume, block), hits)| {
            hits.iter().map(|hit| {
                let key = keys::redo_index(*volume, *block, c.generation, hit.seq);
                let mut value = Writer(Vec::with_capacity(16));
                value.u64(c.header.start.lfc.0).u32(hit.frame).u32(hit.record);
                (key, Bytes::from(value.done()))
            })
        });
        self.store.ingest(Family::RedoIndex, &mut pairs)?;
        Ok(())
    }

    fn commit_row(
        &self,
        sealed: &Sealed,
        row: LfcRow,
        floors: Option<Floors>,
    ) -> Result<Arc<LfcRow>, JournalError> {
        let (generation, lfc) = (row.generation, row.lfc);
        let mut batch = Batch::default();
        batch.put(Family::Catalog, keys::lfc(generation, lfc), row.encode());
        batch.put(
            Family::Catalog,
            keys::touched(generation, lfc),
            encode_touched(&sealed.container.touched()),
        );
        for m in &sealed.container.events.marks {
            batch.put(
                Family::Catalog,
                keys::event(keys::MARK, generation, m.seq),
                encode_mark(m),
            );
        }
        for (seq, from, to) in &sealed.container.events.steps {
            batch.put(
                Family::Catalog,
                keys::event(keys::CLOCK_STEP, generation, *seq),
                encode_step(*from, *to),
            );
        }
        for (seq, change) in self.sizes_of(&sealed.container) {
            let key = keys::event(keys::SIZE, generation, seq);
            batch.put(Family::Catalog, key, change.encode());
        }
        if let Some(floors) = floors {
            batch.put(Family::Meta, keys::FLOORS, floors.encode());
        }
        self.commit(batch, true)?;
        let row = Arc::new(row);
        let mut shared = self.shared.write();
        shared.rows.insert(Arc::clone(&row));
        shared.sealed = None;
        let before = shared.floors;
        if let Some(floors) = floors {
            shared.floors = floors;
        }
        drop(shared);
        if let Some(floors) = floors {
            self.free_below(before, floors)?;
        }
        Ok(row)
    }

    pub(crate) fn redo_floor(&self, row: &LfcRow) -> Floors {
        let floors = self.shared.read().floors;
        let redo_seq = Position {
            generation: row.generation,
            seq: row.last_seq,
        };
        if floors.redo >= (row.generation, row.lfc) {
            return floors;
        }
        Floors {
            redo: (row.generation, row.lfc),
            redo_seq,
            ..floors
        }
    }

    /// What is freed.
    #[must_use]
    pub fn floors(&self) -> Floors {
        self.shared.read().floors
    }

    /// Frees the frames of all containers up to `lfc`; their rows stay. The caller has checked that nobody needs them.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`] when the container is not in the store, [`JournalError::Refused`] when it is not
    /// checkpointed, or a failure.
    pub fn drop_redo_through(&self, generation: GenNo, lfc: LfcId) -> Result<(), JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            let row = self.shared.read().rows.get(&(generation, lfc)).cloned();
            let row = row.ok_or(JournalError::NotHeld { generation, lfc })?;
            let checkpointed = self.cursors().checkpointed;
            let on_current = self.current_generation().is_some_and(|g| g.no == generation);
            if on_current && row.last_seq > checkpointed {
                return Err(JournalError::Refused(format!(
                    "container {lfc} ends at {}, the volumes hold {checkpointed}",
                    row.last_seq
                )));
            }
            self.move_floors(self.redo_floor(&row))
        })
    }

    /// Frees undo up to `ordinal`: the state after that ordinal becomes the oldest that views stand on.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when the ordinal is not applied yet, or a failure.
    pub fn drop_undo_through(&self, ordinal: Ordinal) -> Result<(), JournalError> {
        self.guarded(|| {
            let _ingesting = self.ingesting.lock();
            if ordinal > self.cursors().applied_ordinal {
                return Err(JournalError::Refused(format!(
                    "ordinal {ordinal} is not applied yet"
                )));
            }
            let floors = self.floors();
            self.move_floors(Floors {
                undo: floors.undo.max(ordinal),
                ..floors
            })
        })
    }

    /// Makes floors durable and frees what they passed. The caller holds `ingesting`.
    pub(crate) fn move_floors(&self, floors: Floors) -> Result<(), JournalError> {
        let before = self.floors();
        if floors == before {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.put(Family::Meta, keys::FLOORS, floors.encode());
        let gone = self.shared.read().unnamed_ordinals(floors.undo);
        for ordinal in &gone {
            batch.delete(Family::Catalog, keys::ordinal(*ordinal));
        }
        self.commit(batch, true)?;
        let mut shared = self.shared.write();
        shared.floors = floors;
        shared.ordinals.retain(|ordinal, _| !gone.contains(ordinal));
        drop(shared);
        self.free_below(before, floors)
    }

    /// Frees what the floors passed. Repeated from zero after every open.
    pub(crate) fn free_below(&self, before: Floors, floors: Floors) -> Result<(), JournalError> {
        self.index_floors.set(floors.redo_seq, floors.undo);
        if floors.redo > before.redo {
            let from = keys::redo(before.redo.0, LfcId(before.redo.1.0 + 1), 0);
            let to = keys::redo(floors.redo.0, LfcId(floors.redo.1.0 + 1), 0);
            self.store.drop_range(Family::Redo, &from, &to)?;
        }
        if floors.undo > before.undo {
            let key = |o: Ordinal| keys::undo(o.next(), model::VolumeIndex(0), model::BlockNo(0));
            self.store
                .drop_range(Family::Undo, &key(before.undo), &key(floors.undo))?;
        }
        Ok(())
    }

    /// Removes the rows (and marks and clock steps, not sizes) of containers up to `lfc`, whose frames must be freed already.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when frames of them are still held, or a failure.
    pub fn forget_rows_through(&self, generation: GenNo, lfc: LfcId) -> Result<(), JournalError> {
        self.guarded(|| {
            let mut batch = Batch::default();
            let (mut rows, mut events) = (Vec::new(), Vec::new());
            {
                let shared = self.shared.read();
                if shared.floors.redo < (generation, lfc) {
                    return Err(JournalError::Refused(format!(
                        "frames of container {lfc} are still held"
                    )));
                }
                for row in shared.rows.range(..=(generation, lfc)) {
                    let key = (row.generation, row.lfc);
                    batch.delete(Family::Catalog, keys::lfc(key.0, key.1));
                    batch.delete(Family::Catalog, keys::touched(key.0, key.1));
                    rows.push(key);
                    let of_row = |p: &Position| {
                        p.generation == key.0 && (row.first_seq..=row.last_seq).contains(&p.seq)
                    };
                    for p in shared.marks.keys().filter(|p| of_row(p)) {
                        batch.delete(Family::Catalog, keys::event(keys::MARK, p.generation, p.seq));
                        events.push(*p);
                    }
                    for p in shared.steps.keys().filter(|p| of_row(p)) {
                        batch.delete(
                            Family::Catalog,
                            keys::event(keys::CLOCK_STEP, p.generation, p.seq),
                        );
                        events.push(*p);
                    }
                }
                // The newest row says where the next container starts.
                let newest = shared.rows.last().map(|r| (r.generation, r.lfc));
                if newest.is_some() && rows.last().copied() == newest {
                    return Err(JournalError::Refused("the newest row is never forgotten".into()));
                }
            }
            self.commit(batch, false)?;
            let mut shared = self.shared.write();
            rows.iter().for_each(|key| shared.rows.remove(key));
            for p in &events {
                shared.marks.remove(p);
                shared.steps.remove(p);
            }
            Ok(())
        })
    }
}

pub(crate) fn damaged(row: &LfcRow, what: String) -> JournalError {
    Damage::Container {
        generation: row.generation,
        lfc: row.lfc,
        what,
    }
    .into()
}
