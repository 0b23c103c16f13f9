//! The two hosts, each one power supply with real parts on it.

use backstay::{
    applying::{Applier, CopyQueue, acting::replay_by},
    context::{extent_of, make_ready},
    restoring::Owner,
    roles::row::put_restore,
};
use bytes::Bytes;
use journal::{
    Cell, ContextRow, Draft, Journal, JournalError, MapShape, NewGeneration, Options, Parts, RestoreRow,
    SUPERBLOCK_BYTES,
    tap::{Tap, TapLimits},
};
use model::{
    BLOCK_SIZE, ContextState, GenId, Role, Term, Timestamp, VolumeIndex, WriteSeq,
    ports::{History, Medium},
};
use snapshot::{ChangeSet, Volumes, write_back};
use std::{collections::BTreeMap, io, sync::Arc};
use testkit::{SimPower, sim::Order};

/// Whatever went wrong; a host whose power is off has an excuse.
pub type Fallible<T = ()> = anyhow::Result<T>;

/// Bytes of a container: small, so that a short history has many.
pub const LFC: u64 = 48 << 10;
const REGION: u64 = 16 << 10;

/// Bytes by which a volume may grow.
const ROOM: u64 = 12 * BLOCK_SIZE;

/// The file system of a host whose journal stands on the real store and real files.
const FILES: &str = "journal";

/// From its first boot on, the journal of this host stands on the real store and real files. The file system keeps the order of
/// things as Linux's do, which RocksDB needs; without, the journal alone is tried (`journal/src/tests/below.rs`).
pub fn below(power: &SimPower) {
    power.files(FILES).set_order(Order::Kept);
}

/// Opens the journal of a host: on media and a store of the seam, or, where the host has a file system, in that.
pub fn open_journal(power: &SimPower, indexed: bool) -> Fallible<Arc<Journal>> {
    let tail = |n: u8| -> Arc<dyn Medium> { Arc::new(power.medium(&format!("tail.{n}"), super::TAIL)) };
    let parts = match power.has_files(FILES) {
        true => Parts::open_dir(&power.files(FILES).folder(), LFC)?,
        false => Parts::new(
            Arc::new(power.store("db")),
            Arc::new(power.medium("super", SUPERBLOCK_BYTES)),
            [tail(0), tail(1)],
        ),
    };
    let options = Options {
        lfc_size: LFC,
        lfc_max_age_ns: None,
        indexed,
        recent_bytes: 32 << 10,
        accept_damage: false,
    };
    Ok(Arc::new(Journal::open(parts, options)?.0))
}

pub fn indexes(sizes: &[u64]) -> impl Iterator<Item = (VolumeIndex, u64)> {
    (0..).map(VolumeIndex).zip(sizes.iter().copied())
}

/// Bytes of the storage below a volume of this size: one of whole blocks has room to grow, with garbage in it ([`fill`]).
pub const fn storage(size: u64) -> u64 {
    if size.is_multiple_of(BLOCK_SIZE) {
        size + ROOM
    } else {
        size
    }
}

/// A volume grows on this host, as far as it is this host's part: its storage is made ready.
pub fn grows(journal: &Journal, volumes: &Volumes, index: VolumeIndex, bytes: u64) -> Fallible {
    let volume = volumes.get(index)?;
    let ready = extent_of(journal, index, volume.size());
    if bytes > ready {
        make_ready(journal, index, &**volume.medium(), ready, bytes, &|_| Ok(()))?;
    }
    Ok(())
}

pub fn volumes(power: &SimPower, sizes: &[u64]) -> Volumes {
    let mut volumes = Volumes::new();
    for (index, size) in indexes(sizes) {
        let name = format!("v{}", index.0);
        volumes
            .insert(
                index,
                name.clone(),
                Arc::new(power.medium(&name, storage(size))),
                size,
            )
            .unwrap();
    }
    volumes
}

pub fn context_row(role: Role) -> ContextRow {
    ContextRow {
        role,
        state: ContextState::Enabled,
        term: Term(1),
        since: Timestamp(1),
        notes: BTreeMap::new(),
    }
}

/// What a production has before its first write: maps that know nothing of the peer, and a line.
pub fn first_line(journal: &Journal, sizes: &[u64], region_size: u64) -> Fallible {
    for (index, size) in indexes(sizes) {
        let shape = MapShape {
            size,
            region_size,
            default: Cell::Stale(WriteSeq(0)),
        };
        journal.set_map(index, shape)?;
    }
    if journal.current_generation().is_none() {
        journal.create_generation(NewGeneration::own(GenId(7), None))?;
    }
    if let Some(generation) = journal.current_generation().filter(|_| journal.open_is_empty()) {
        let body = generation.birth();
        let volume = VolumeIndex(0);
        journal.append(vec![Draft { volume, body }], Timestamp::now())?;
    }
    Ok(())
}

/// The production host while it runs.
pub struct Production {
    pub journal: Arc<Journal>,
    pub tap: Tap,
    pub volumes: Volumes,
}

impl Production {
    /// Boots it: the first start, or recovery and replay.
    pub fn boot(power: &SimPower, sizes: &[u64]) -> Fallible<Self> {
        let journal = open_journal(power, false)?;
        if journal.context()?.is_none() {
            first_line(&journal, sizes, REGION)?;
            journal.put_context(&context_row(Role::Production))?;
        }
        let volumes = volumes(power, sizes);
        replay_by(&journal, &volumes, 64 << 10)?;
        let media = volumes.iter().map(|(i, v)| (i, Arc::clone(v.medium())));
        let limits = TapLimits {
            frame_bytes_max: 64 << 10,
            ..TapLimits::default()
        };
        let tap = Tap::new(Arc::clone(&journal), media.collect::<Vec<_>>(), limits);
        Ok(Self {
            journal,
            tap,
            volumes,
        })
    }

    /// Overwrites the volumes from durable frames.
    pub fn write_back(&self, bytes: u64) -> Fallible {
        let frames = self.tap.take_durable(bytes);
        let mut changes = ChangeSet::new();
        let records = frames.iter().flat_map(|f| f.records().iter());
        records.for_each(|r| changes.add(r));
        write_back(&self.volumes, &changes)?;
        Ok(self.tap.written_back(&frames)?)
    }

    /// Syncs the volumes and moves `checkpointed`.
    pub fn checkpoint(&self) -> Fallible {
        let upto = self.journal.cursors().written_back;
        for (_, v) in self.volumes.iter() {
            v.medium().sync()?;
        }
        Ok(self.journal.set_checkpointed(upto)?)
    }

    /// The journal is at its limit: the oldest containers give way.
    pub fn give_way(&self, containers: usize) -> Fallible {
        while self.journal.ingest_sealed()?.is_some() {}
        for _ in 0..containers {
            self.journal.give_way()?;
        }
        Ok(())
    }

    /// Frees what the peer has applied.
    pub fn drop_applied(&self) -> Fallible {
        let journal = &self.journal;
        while journal.ingest_sealed()?.is_some() {}
        let c = journal.cursors();
        journal.drop_applied(c.applied_by_peer.min(c.checkpointed))?;
        Ok(())
    }
}

/// The recovery host while it runs.
pub struct Recovery {
    pub journal: Arc<Journal>,
    pub volumes: Volumes,
    pub copies: CopyQueue,
}

impl Recovery {
    pub fn boot(power: &SimPower, sizes: &[u64]) -> Fallible<Self> {
        let journal = open_journal(power, true)?;
        if journal.context()?.is_none() {
            journal.put_context(&context_row(Role::Recovery))?;
        }
        let volumes = volumes(power, sizes);
        let copies = CopyQueue::default();
        Ok(Self {
            journal,
            volumes,
            copies,
        })
    }

    pub fn state(&self) -> Fallible<ContextState> {
        Ok(self.journal.context()?.expect("made at boot").state)
    }

    /// The consistent stretches that can be shown, oldest first; the last may go on.
    pub fn spans(&self) -> Vec<(WriteSeq, WriteSeq)> {
        let c = self.journal.cursors();
        let shown = |span: &journal::Consistent| span.from.seq <= c.applied;
        let spans = self.journal.consistent().into_iter().filter(shown);
        spans
            .map(|s| (s.from.seq, s.until.map_or(c.durable, |until| until.seq)))
            .collect()
    }

    /// Since when the replica is consistent, as production has said.
    pub fn consistent_from(&self) -> Option<WriteSeq> {
        let last = self.journal.consistent().pop();
        last.filter(|s| s.until.is_none()).map(|s| s.from.seq)
    }

    /// No overwrite is under way.
    pub fn is_settled(&self) -> bool {
        self.journal.cursors().applied_ordinal == self.journal.published()
    }

    /// The volumes are at `cursors().applied`, and may be compared raw.
    pub fn stands(&self) -> bool {
        let applied = self.journal.cursors().applied;
        self.is_settled() && self.consistent_from().is_some_and(|f| f <= applied)
    }

    /// Ingests what is sealed and applies the next container, if one may be applied.
    pub fn apply_next(&self) -> Fallible<bool> {
        let journal = &self.journal;
        while journal.ingest_sealed()?.is_some() {}
        let applier = Applier {
            journal,
            volumes: &self.volumes,
            copies: &self.copies,
            state: self.state()?,
        };
        Ok(applier.step(&mut || {})?)
    }
}

/// The owner of a context while a restore runs: rows go to the journal, and it has as much room as is said.
pub struct Keeper<'a> {
    pub journal: &'a Journal,
    pub room: u64,
}

impl Owner for Keeper<'_> {
    fn room(&self) -> io::Result<u64> {
        Ok(self.room)
    }

    fn set_restore(&self, row: Option<&RestoreRow>, state: ContextState) -> Result<(), JournalError> {
        let mut context = self.journal.context()?.expect("made at boot");
        put_restore(&mut context, state);
        self.journal.put_restore(row, Some(&context))
    }

    fn keep_restore(&self, row: &RestoreRow) -> Result<(), JournalError> {
        self.journal.put_restore(Some(row), None)
    }
}

/// Writes what volumes hold before they are protected.
pub fn fill(power: &SimPower, sizes: &[u64], data: impl Fn(VolumeIndex) -> Option<(u64, Bytes)>) {
    for (index, size) in indexes(sizes) {
        let medium = power.medium(&format!("v{}", index.0), storage(size));
        let room = usize::try_from(storage(size) - size).unwrap();
        medium.write_at(size, &vec![0xa5; room]).unwrap();
        if let Some((at, bytes)) = data(index) {
            medium.write_at(at, &bytes).unwrap();
        }
        medium.sync().unwrap();
    }
}
