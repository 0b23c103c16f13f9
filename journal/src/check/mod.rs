//! Reading a stopped node's journal from end to end, for what does not check (`backstay fsck-journal`).
//!
//! # Overview
//!
//! [`check`] opens the journal over a shadow, as a start would, and writes nothing. What a start would refuse is a finding. Then
//! everything is read that anybody may ever ask for: each row; each frame of each container that is held, against its row, its
//! chain and its index; each before-image, against its ordinal's row and its index; the index entries that nothing stands
//! behind. One finding hides no other, as far as that is possible: where the journal does not open, its rows and what they
//! promise are looked at all the same.
//!
//! # What is no damage
//!
//! What a crash may leave and a start takes away: a torn end behind the last frame that was durable, one slot of the superblock,
//! undo of a container whose row was never committed, half-built files. The first two are notes.
//!
//! # What it does not do
//!
//! It looks at no volume: those have no checksums, and a flipped bit of one is found by nobody but a comparison of both hosts.
//! It mends nothing.

mod finding;
mod redo;
mod rows;
mod undo;

pub use finding::{Finding, FindingKind, Findings, Place};

use crate::{
    error::JournalError,
    journal::{Journal, Opened, Options},
    load::Tables,
    parts::Parts,
    recovery,
    shadow::{media_of, store_of},
    superblock::{self, Slot},
};
use model::ports::{Medium, Store};
use std::{path::Path, sync::Arc};

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Superblock, tails, rows.
    Opening,
    /// Frames and their index.
    Redo,
    /// Before-images and their index.
    Undo,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of catalog, metadata and maps.
    pub rows: u64,
    /// Generations.
    pub generations: u64,
    /// Containers whose frames are held, the open one included.
    pub containers: u64,
    /// Frames.
    pub frames: u64,
    /// Records.
    pub records: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// Before-images.
    pub undo_blocks: u64,
    /// Entries of both indexes.
    pub index_entries: u64,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Checked {
    /// What does not check, and notes.
    pub findings: Findings,
    /// How much was read.
    pub counts: Counts,
    /// The journal as a start would have it; `None` where none would.
    pub journal: Option<Arc<Journal>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("cursors", &self.cursors())
            .finish_non_exhaustive()
    }
}

/// Told while long work goes on: what is read, how much of how much.
pub type Progress<'a> = &'a mut dyn FnMut(Stage, u64, u64);

/// Reads the journal in `dir`.
///
/// # Errors
/// When its folder cannot be read at all; everything else is a finding.
pub fn check(dir: &Path, options: &Options, progress: Progress<'_>) -> Result<Checked, JournalError> {
    std::fs::read_dir(dir).map_err(|e| JournalError::io(dir.display().to_string(), e))?;
    progress(Stage::Opening, 0, 1);
    let mut checked = Checked::default();
    let found = &mut checked.findings;
    let (superblock, tails) = match media_of(dir, options.lfc_size) {
        Ok(media) => media,
        Err(e @ JournalError::Damaged(_)) => {
            found.add_error(&e);
            return Ok(checked);
        }
        Err(e) => return Err(e),
    };
    let store = match store_of(dir) {
        Ok(store) => store,
        Err(e) => {
            found.add_error(&e);
            return Ok(checked);
        }
    };
    check_parts(
        Parts::new(store, superblock, tails),
        options,
        &mut checked,
        progress,
    )?;
    Ok(checked)
}

/// A slot that does not check while the other one does.
fn look_at_slots(superblock: &dyn Medium, found: &mut Findings) -> Result<(), JournalError> {
    let slots = superblock::slots(superblock)?;
    for (n, slot) in slots.iter().enumerate() {
        if *slot == Slot::Bad && slots.contains(&Slot::Whole) {
            let place = Place {
                byte: Some(n as u64 * superblock::SLOT_BYTES),
                ..Place::file("super")
            };
            found.add(
                FindingKind::SpareSlot,
                place,
                "one slot does not check, the other one does",
            );
        }
    }
    Ok(())
}

/// Everything but whether the parts can be opened. What is written by opening them goes into the parts: the caller gives a shadow.
pub(crate) fn check_parts(
    parts: Parts,
    options: &Options,
    checked: &mut Checked,
    progress: Progress<'_>,
) -> Result<(), JournalError> {
    look_at_slots(&*parts.superblock, &mut checked.findings)?;
    let store = Arc::clone(&parts.store);
    rows::check(&*store, checked);
    let options = Options {
        accept_damage: true,
        ..options.clone()
    };
    let tables = match sound(&store).and_then(|()| recovery::open_collecting(parts, options)) {
        Ok((journal, opened, damages)) => {
            damages.iter().for_each(|d| checked.findings.add_damage(d));
            if let Opened::Recovered { cut_bytes: 1.., .. } = opened {
                torn_end(&journal, &mut checked.findings);
            }
            let journal = checked.journal.insert(Arc::new(journal));
            journal.count_open(&mut checked.counts);
            Tables::load(&*store)
        }
        Err(e) => {
            checked.findings.add_error(&e);
            Ok(rows::readable(&*store))
        }
    };
    match tables {
        Ok(tables) => {
            redo::check(&*store, &tables, checked, progress);
            undo::check(&*store, &tables, checked, progress);
        }
        Err(e) => checked.findings.add_error(&e),
    }
    Ok(())
}

/// Refuses cursors on which opening would rather end the program than go on.
fn sound(store: &Arc<dyn Store>) -> Result<(), JournalError> {
    let c = Tables::load(&**store)?.cursors;
    if c.applied_by_peer > c.received_by_peer {
        return Err(crate::Damage::Row {
            family: "meta",
            key: "02".into(),
            what: format!(
                "the peer has applied {} and received {}",
                c.applied_by_peer, c.received_by_peer
            ),
        }
        .into());
    }
    Ok(())
}

fn torn_end(journal: &Journal, found: &mut Findings) {
    if let Some((file, byte, record)) = journal.open_end() {
        let place = Place {
            byte: Some(byte),
            record: Some(record.next()),
            ..Place::file(file)
        };
        found.add(
            FindingKind::TornEnd,
            place,
            "a frame that was being written when the node ended: a start cuts it off",
        );
    }
}

impl Journal {
    /// Where the open container ends: file, byte, last record.
    fn open_end(&self) -> Option<(String, u64, model::WriteSeq)> {
        let shared = self.shared.read();
        let open = shared.open.as_ref()?;
        Some((format!("tail.{}", open.tail), open.end_at, open.last_seq()))
    }

    fn count_open(&self, counts: &mut Counts) {
        let shared = self.shared.read();
        counts.generations = shared.generations.len() as u64;
        if let Some(open) = shared.open.as_ref().filter(|o| !o.is_empty()) {
            counts.containers += 1;
            counts.frames += open.frames.len() as u64;
            counts.bytes += open.entry_bytes();
            counts.records += open.last_seq().0 + 1 - open.header.start.first_seq.0;
        }
    }
}
