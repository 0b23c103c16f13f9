//! Tests of the journal as a whole, on the simulated media and store.

mod basic;
mod below;
mod changed;
mod check;
mod crash;
mod damage;
mod golden;
mod map_text;
mod maps;
mod mend;
mod overflow;
mod past;
mod rocks;
mod room;
mod sizes;
mod tails;
mod told;
pub(crate) mod undo;
mod versions;

use crate::{Draft, Journal, JournalError, NewGeneration, Opened, Options, Parts, tail};
use bytes::Bytes;
use model::{GenId, RecordBody, Timestamp, VolumeIndex, WriteSeq};
use std::{path::PathBuf, sync::Arc};
use testkit::{SimMedium, SimPower};

/// Bytes of a container in these tests.
pub(crate) const LFC: u64 = 64 << 10;
/// Bytes of a tail: room for a frame more than a container.
pub(crate) const TAIL: u64 = tail::HEADER_BYTES + LFC + (32 << 10);

/// The name of the file system of [`Lab::below`].
const FILES: &str = "journal";

/// One simulated host.
pub(crate) struct Lab {
    pub(crate) power: SimPower,
    pub(crate) options: Options,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let options = Options {
            lfc_size: LFC,
            lfc_max_age_ns: None,
            recent_bytes: 8 << 10,
            ..Options::default()
        };
        Self {
            power: SimPower::new(),
            options,
        }
    }

    pub(crate) fn tail(&self, n: usize) -> SimMedium {
        self.power.medium(&format!("tail.{n}"), TAIL)
    }

    pub(crate) fn store(&self) -> testkit::SimStore {
        self.power.store("db")
    }

    pub(crate) fn superblock(&self) -> SimMedium {
        self.power.medium("super", crate::SUPERBLOCK_BYTES)
    }

    /// As [`Lab::new`], with the real store and real files on a file system that loses what was not synced.
    pub(crate) fn below() -> Self {
        let lab = Self::new();
        let _ = lab.power.files(FILES);
        lab
    }

    /// Where its journal is, if that is in real files.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let power = &self.power;
        power.has_files(FILES).then(|| power.files(FILES).folder())
    }

    pub(crate) fn parts(&self) -> Parts {
        Parts::new(
            Arc::new(self.power.store("db")),
            Arc::new(self.superblock()),
            [Arc::new(self.tail(0)), Arc::new(self.tail(1))],
        )
    }

    pub(crate) fn open(&self) -> Result<(Journal, Opened), JournalError> {
        let parts = match self.folder() {
            Some(folder) => Parts::open_dir(&folder, LFC)?,
            None => self.parts(),
        };
        Journal::open(parts, self.options.clone())
    }

    /// A new journal with generation 1.
    pub(crate) fn fresh(&self) -> Journal {
        let (journal, opened) = self.open().unwrap();
        assert_eq!(opened, Opened::Fresh);
        journal
            .create_generation(NewGeneration::own(GenId(0xA1), None))
            .unwrap();
        journal
    }
}

pub(crate) fn write(volume: u16, offset: u64, data: impl Into<Vec<u8>>) -> Draft {
    let data = Bytes::from(data.into());
    Draft {
        volume: VolumeIndex(volume),
        body: RecordBody::Write { offset, data },
    }
}

pub(crate) fn mark(name: &str) -> Draft {
    let body = RecordBody::Mark {
        name: name.into(),
        description: "a mark".into(),
        keep_ns: None,
    };
    Draft {
        volume: VolumeIndex(0),
        body,
    }
}

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp(seconds * Timestamp::SECOND_NS)
}

/// Appends one write a frame; answers the last record.
pub(crate) fn fill(journal: &Journal, frames: u64, bytes: usize) -> WriteSeq {
    let mut last = WriteSeq(0);
    for i in 0..frames {
        let now = Timestamp(journal.cursors().appended.0 * 1_000_000_000);
        last = journal
            .append(vec![write(0, i * 4096, vec![i as u8; bytes])], now)
            .unwrap()
            .last_seq();
    }
    last
}
