//! What operators do to whole maps, and what other hosts bring: dirty, clean, load, take over (R15, R18, R26, `rules.md` C4).
//!
//! # Invariants
//!
//! - What makes regions stale is durable when it returns, all volumes of one call in one batch, and makes them *suspect* at
//!   this host's position of that moment: copies taken before do not clear them.
//! - What may make stale regions clean ([`Journal::load_maps`], [`Journal::clean_maps`]) needs the maps as they were
//!   ([`SavedMaps`]), which the owner has written to a file before. A map that has changed since is not touched: what became
//!   stale meanwhile is in no operator's picture.
//!
//! # What it does not do
//!
//! It asks nobody and looks at no peer: who may call what, and when, is decided by the commands.

use super::{
    Cell, VolumeMap,
    text::{MapText, render},
};
use crate::{error::JournalError, journal::Journal};
use model::{ByteRange, ContextId, VolumeIndex, WriteSeq, ports::Batch};
use std::collections::BTreeMap;

/// The maps of all volumes as they were at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedMaps(BTreeMap<VolumeIndex, VolumeMap>);

impl SavedMaps {
    /// The map of one volume in the words of the text format.
    #[must_use]
    pub fn map(&self, context: ContextId, volume: VolumeIndex, name: &str) -> Option<MapText> {
        let map = self.0.get(&volume)?;
        let mut stale = Vec::new();
        let mut at = 0;
        while let Some((first, end)) = map.next_stale(at, map.cells()) {
            stale.push(first..end);
            at = end;
        }
        Some(MapText {
            context,
            volume,
            name: name.to_owned(),
            size: map.size,
            region_size: map.region_size,
            stale,
        })
    }

    /// The maps of these volumes as text.
    #[must_use]
    pub fn text<'a>(
        &self,
        context: ContextId,
        volumes: impl IntoIterator<Item = (VolumeIndex, &'a str)>,
    ) -> String {
        let maps = volumes
            .into_iter()
            .filter_map(|(v, name)| self.map(context, v, name));
        render(&maps.collect::<Vec<_>>())
    }
}

impl Journal {
    /// All maps as they are now.
    #[must_use]
    pub fn save_maps(&self) -> SavedMaps {
        SavedMaps(self.maps.all.lock().clone())
    }

    /// Nothing of these volumes can be trusted: every region is suspect. Answers the position as of which.
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure; then none of them has changed.
    pub fn stale_all(&self, volumes: &[VolumeIndex]) -> Result<WriteSeq, JournalError> {
        self.change_whole(volumes, |map, at| map.set_all(Cell::Suspect(at)), |_, _| Ok(()))
    }

    /// As [`Journal::stale_all`], for every volume that has a map.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn all_stale(&self) -> Result<WriteSeq, JournalError> {
        self.stale_all(&self.mapped_volumes())
    }

    /// Regions that another host calls stale, or changed on another line, are suspect here, at this host's position of this
    /// moment: it is the one that will send copies, and only copies taken from now on carry what replaces them (`rules.md`
    /// C4). Nothing becomes clean. Answers that position.
    ///
    /// # Errors
    /// [`JournalError::UnknownVolume`], or a failure; then nothing has changed.
    pub fn take_over(&self, ranges: &[(VolumeIndex, ByteRange)]) -> Result<WriteSeq, JournalError> {
        let doubt = |map: &mut VolumeMap, range: ByteRange, at: WriteSeq| {
            map.change(range.start / map.region_size, map.end_of(range), |cell| {
                cell.doubted(at)
            })
        };
        self.change_cells(
            true,
            ranges.iter().map(|(volume, range)| (*volume, *range, doubt)),
        )
    }

    /// Recovery, when production has said that nothing differs any more: what this host's own map still holds, of the time
    /// when it was production, is no longer so. A crash may leave it stale: then it is copied once more than it had to be.
    ///
    /// # Errors
    /// When the store fails.
    pub fn nothing_differs(&self) -> Result<(), JournalError> {
        let mut volumes = self.mapped_volumes().into_iter();
        volumes.try_for_each(|volume| match self.next_stale(volume, 0, 1) {
            Some(_) => self.reset_map(volume, Cell::Clean),
            None => Ok(()),
        })
    }

    /// Replaces maps by those of a text, `saved` being the maps as they were. Stale cells are suspect as of now. Answers the
    /// position as of which.
    ///
    /// # Errors
    /// [`JournalError::Refused`] when a map has another shape, [`JournalError::MapChanged`] when it has changed since it was
    /// saved, or a failure; then nothing has changed.
    pub fn load_maps(&self, saved: &SavedMaps, new: &[MapText]) -> Result<WriteSeq, JournalError> {
        let volumes: Vec<VolumeIndex> = new.iter().map(|text| text.volume).collect();
        for text in new {
            let map = saved.0.get(&text.volume);
            let map = map.ok_or(JournalError::UnknownVolume(text.volume))?;
            if (map.size, map.region_size) != (text.size, text.region_size) {
                return Err(JournalError::Refused(format!(
                    "the map of volume {} has {} bytes in regions of {}, the text has {} in regions of {}",
                    text.volume, map.size, map.region_size, text.size, text.region_size
                )));
            }
        }
        let mut new = new.iter();
        self.replace(saved, &volumes, |map, at| {
            let stale = new.next().map_or(&[][..], |text| &text.stale);
            let mut changed = map.set_all(Cell::Clean);
            for cells in stale {
                let end = cells.end.min(map.cells());
                changed.extend(map.change(cells.start, end, |cell| cell.doubted(at)));
            }
            changed
        })
    }

    /// Every region of these volumes is clean, `saved` being the maps as they were.
    ///
    /// # Errors
    /// [`JournalError::MapChanged`] when one has changed since it was saved, or a failure; then nothing has changed.
    pub fn clean_maps(&self, saved: &SavedMaps, volumes: &[VolumeIndex]) -> Result<WriteSeq, JournalError> {
        self.replace(saved, volumes, |map, _| map.set_all(Cell::Clean))
    }

    fn replace(
        &self,
        saved: &SavedMaps,
        volumes: &[VolumeIndex],
        change: impl FnMut(&mut VolumeMap, WriteSeq) -> Vec<u64>,
    ) -> Result<WriteSeq, JournalError> {
        self.change_whole(volumes, change, |volume, map| {
            let as_saved = saved.0.get(&volume) == Some(map);
            as_saved.then_some(()).ok_or(JournalError::MapChanged(volume))
        })
    }

    /// Changes maps in one batch, after all of them were looked at. `change` is called for each volume in turn.
    fn change_whole(
        &self,
        volumes: &[VolumeIndex],
        mut change: impl FnMut(&mut VolumeMap, WriteSeq) -> Vec<u64>,
        check: impl Fn(VolumeIndex, &VolumeMap) -> Result<(), JournalError>,
    ) -> Result<WriteSeq, JournalError> {
        self.guarded(|| {
            // As in `change_cells`.
            let mut maps = self.maps.all.lock();
            for volume in volumes {
                let map = maps.get(volume).ok_or(JournalError::UnknownVolume(*volume))?;
                check(*volume, map)?;
            }
            let at = self.cursors().appended;
            let mut batch = Batch::default();
            for volume in volumes {
                let map = maps.get_mut(volume).ok_or(JournalError::UnknownVolume(*volume))?;
                let chunks = change(map, at);
                map.put_row(&mut batch, *volume);
                chunks
                    .into_iter()
                    .for_each(|c| map.put_chunk(&mut batch, *volume, c));
            }
            self.commit_maps(batch, true)?;
            Ok(at)
        })
    }
}
