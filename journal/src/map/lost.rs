//! State maps that are not there or cannot be read (R15).
//!
//! # Overview
//!
//! A map says what a copy has to bring over. Where it is gone, nobody knows: the volume *needs a full sync*, and nothing less
//! may be believed of it. So a row that does not check costs its volume the map and not the context the start: the journal
//! opens, tells which maps were lost and why ([`Journal::lost_maps`]), and the owner of a production, before anything else,
//! asks for each volume's map ([`Journal::require_map`]): one that is lost or was never there is made anew, wholly suspect.
//!
//! # Crash consistency
//!
//! The new map and the end of what was left of the old one are one batch: a cut leaves a lost map, or a suspect one. A store
//! that cannot read its files at all is still written to; until it is mended, each open finds the maps lost again.
//!
//! # What it does not do
//!
//! A row of a version that this build does not know is not lost: the journal does not open. Whether a map that is missing is
//! missed is the owner's to know: a recovery host has none before it is production for the first time.

use super::{CHUNK_CELLS, Cell, MapShape, VolumeMap, decode_runs};
use crate::{
    error::JournalError,
    journal::Journal,
    keys::{self, Parts},
    rows::{bad_key, checked},
};
use model::{
    VolumeIndex,
    ports::{Batch, Family, Store, StoreError},
};
use std::collections::BTreeMap;

/// Behind every key of the family.
const END: [u8; 11] = [0xff; 11];

/// The maps as the store has them.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(super) maps: BTreeMap<VolumeIndex, VolumeMap>,
    pub(super) lost: Lost,
}

/// What could not be read, and why.
#[derive(Default)]
pub(crate) struct Lost {
    volumes: BTreeMap<VolumeIndex, String>,
    /// The store cannot read its files: any map may have been there.
    all: Option<String>,
}

impl Loaded {
    /// Reads all maps.
    ///
    /// # Errors
    /// When the store fails, a row is of an unknown version, or a key is none.
    pub(crate) fn read(store: &dyn Store) -> Result<Self, JournalError> {
        let mut loaded = Self::default();
        let mut fault = None;
        let scanned = store.scan(Family::Map, &[], &END, &mut |key, value| {
            fault = loaded.row(key, value).err();
            fault.is_none()
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        match scanned {
            Err(e @ StoreError::Corrupt { .. }) => {
                loaded.maps.clear();
                loaded.lost.all = Some(e.to_string());
            }
            scanned => scanned?,
        }
        for volume in loaded.lost.volumes.keys() {
            loaded.maps.remove(volume);
        }
        Ok(loaded)
    }

    /// What could not be read: of a volume, or of any.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (Option<VolumeIndex>, String)> {
        let volumes = self.lost.volumes.iter().map(|(v, why)| (Some(*v), why.clone()));
        volumes.chain(self.lost.all.iter().map(|why| (None, why.clone())))
    }

    /// How many rows were read.
    pub(crate) fn rows(&self) -> u64 {
        self.maps.values().map(|map| 1 + map.chunks.len() as u64).sum()
    }

    /// A volume's shape comes before its chunks.
    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), JournalError> {
        let mut parts = Parts(key);
        let volume = parts.u16().map(VolumeIndex);
        let kept = match (volume, parts.u64()) {
            (Some(volume), None) if key.len() == 2 => checked("map", key, VolumeMap::decode_row(value))
                .map(|map| drop(self.maps.insert(volume, map))),
            (Some(volume), Some(chunk)) if key.len() == 10 => {
                checked("map", key, decode_runs(value)).map(|runs| match self.maps.get_mut(&volume) {
                    Some(map) => drop(map.chunks.insert(chunk, runs)),
                    None => self.lose(volume, "the row with its shape is missing".into()),
                })
            }
            _ => return Err(bad_key("map", key)),
        };
        match (kept, volume) {
            (Err(JournalError::Damaged(damage)), Some(volume)) => {
                self.lose(volume, damage.to_string());
                Ok(())
            }
            (kept, _) => kept,
        }
    }

    /// The first reason stands.
    fn lose(&mut self, volume: VolumeIndex, why: String) {
        self.lost.volumes.entry(volume).or_insert(why);
    }
}

impl Journal {
    /// Volumes whose map could not be read when the journal was opened, with the reason; without a volume: any may be lost.
    #[must_use]
    pub fn lost_maps(&self) -> Vec<(Option<VolumeIndex>, String)> {
        let lost = self.maps.lost.lock();
        let volumes = lost.volumes.iter().map(|(v, why)| (Some(*v), why.clone()));
        volumes
            .chain(lost.all.iter().map(|why| (None, why.clone())))
            .collect()
    }

    /// Why a volume's map is not there though it may have been.
    pub(super) fn lost_map(&self, volume: VolumeIndex) -> Option<String> {
        let is_here = self.maps.all.lock().contains_key(&volume);
        let lost = self.maps.lost.lock();
        let all = lost.all.as_ref().filter(|_| !is_here);
        lost.volumes.get(&volume).or(all).cloned()
    }

    /// Production, at every start: sees that a volume has a map. One that is not there is made, wholly suspect and durable
    /// when this returns: the volume needs a full sync. Answers why it had to be made.
    ///
    /// # Errors
    /// [`JournalError::Refused`] for a region size of zero, or a failure.
    pub fn require_map(
        &self,
        volume: VolumeIndex,
        size: u64,
        region_size: u64,
    ) -> Result<Option<String>, JournalError> {
        let lost = self.lost_map(volume);
        if lost.is_none() && self.map_shape(volume).is_some() {
            return Ok(None);
        }
        if region_size == 0 {
            return Err(JournalError::Refused("a region of a map has no bytes".into()));
        }
        self.guarded(|| {
            let mut maps = self.maps.all.lock();
            let map = VolumeMap::new(MapShape {
                size,
                region_size,
                default: Cell::Suspect(self.cursors().appended),
            });
            let mut batch = Batch::default();
            for key in self.left_over(volume, &map)? {
                batch.delete(Family::Map, key);
            }
            map.put_row(&mut batch, volume);
            maps.insert(volume, map);
            self.commit_maps(batch, true)
        })?;
        self.maps.lost.lock().volumes.remove(&volume);
        Ok(Some(lost.unwrap_or_else(|| "it has none".into())))
    }

    /// Keys of chunks that may be left of a volume's lost map.
    fn left_over(&self, volume: VolumeIndex, map: &VolumeMap) -> Result<Vec<Vec<u8>>, JournalError> {
        let mut found = Vec::new();
        let (first, end) = (keys::map_chunk(volume, 0), keys::map_chunk(volume, u64::MAX));
        let scanned = self.store.scan(Family::Map, &first, &end, &mut |key, _| {
            found.push(key.to_vec());
            true
        });
        match scanned {
            Err(StoreError::Corrupt { .. }) => {
                let chunks = 0..map.cells().div_ceil(CHUNK_CELLS);
                Ok(chunks.map(|chunk| keys::map_chunk(volume, chunk)).collect())
            }
            scanned => {
                scanned?;
                Ok(found)
            }
        }
    }
}
