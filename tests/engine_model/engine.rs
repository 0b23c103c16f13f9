//! The engine: one host's journal, volumes and snapshots on simulated media, put together as the daemon does.

use super::hosts::{Fallible, Keeper, Recovery};
use backstay::restoring::{Owner, Replica, RestoreError, Work};
use journal::{Draft, JournalError, NewGeneration, PinKind, PinRow, Position, RestoreRow, SealFlags};
use model::{
    BLOCK_SIZE, ByteRange, ContextState, GenId, GenNo, Level, Ordinal, Point, Target, Timestamp, VolumeIndex,
    WriteSeq, ports::History,
};
use snapshot::{Overlay, Progress, Restored, Vdev, View};
use std::{
    collections::BTreeMap,
    io,
    ops::{ControlFlow, Deref},
    sync::Arc,
};
use testkit::{SimMedium, SimPower};

/// Blocks that an overlay has room for.
pub const OVERLAY_BLOCKS: u64 = 48;

/// A host that is up.
pub struct Engine {
    host: Recovery,
    power: SimPower,
    /// By pin.
    pub snapshots: BTreeMap<u64, Vdev>,
}

impl Deref for Engine {
    type Target = Recovery;
    fn deref(&self) -> &Recovery {
        &self.host
    }
}

/// The time of a record: far enough apart to be told from each other, and never a whole second.
pub fn time_of(seq: WriteSeq) -> Timestamp {
    Timestamp(1_700_000_000 * Timestamp::SECOND_NS + seq.0 * 7_000_000 + 1_000)
}

/// After everything.
pub const NOW: Timestamp = Timestamp(4_000_000_000 * Timestamp::SECOND_NS);

impl Engine {
    /// The first start, or another one.
    pub fn boot(power: &SimPower, sizes: &[u64]) -> Fallible<Self> {
        let mut engine = Self::boot_without_snapshots(power, sizes)?;
        for pin in engine.journal.pins()? {
            let (data, log) = engine.overlay(pin.id);
            let overlay = Overlay::open(data, log, pin.id)?;
            let view = engine.view(pin.point)?;
            engine
                .snapshots
                .insert(pin.id, Vdev::new(Arc::new(view), overlay));
        }
        Ok(engine)
    }

    /// The same; whoever keeps snapshots finds them.
    pub fn boot_without_snapshots(power: &SimPower, sizes: &[u64]) -> Fallible<Self> {
        let host = Recovery::boot(power, sizes)?;
        if host.journal.current_generation().is_none() {
            host.journal
                .create_generation(NewGeneration::own(GenId(7), None))?;
        }
        if host.journal.consistent().is_empty() {
            host.journal.set_consistent_from(Position {
                generation: GenNo(1),
                seq: WriteSeq(0),
            })?;
        }
        Ok(Self {
            host,
            power: power.clone(),
            snapshots: BTreeMap::new(),
        })
    }

    pub fn history(&self) -> &dyn History {
        &*self.host.journal
    }

    /// Appends one frame.
    pub fn append(&self, drafts: Vec<Draft>) -> Fallible {
        let now = time_of(self.journal.cursors().appended.next());
        let bytes = drafts.iter().map(Draft::len).sum();
        if self.journal.wants_seal(bytes, now) {
            self.journal.seal(SealFlags::default())?;
        }
        self.journal.append(drafts, now)?;
        Ok(())
    }

    /// Seals what is open, if anything is.
    pub fn seal(&self) -> Fallible {
        match self.journal.seal(SealFlags::default()) {
            Ok(_) | Err(JournalError::Empty) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    pub fn view(&self, point: Point) -> Fallible<View> {
        let history = Arc::clone(&self.journal) as Arc<dyn History>;
        Ok(View::new(
            point,
            self.volumes.sizes(),
            self.volumes.clone(),
            history,
        )?)
    }

    fn overlay(&self, id: u64) -> (Arc<SimMedium>, Arc<SimMedium>) {
        let bytes = OVERLAY_BLOCKS * BLOCK_SIZE;
        let medium = |what, len| Arc::new(self.power.medium(&format!("overlay{id}.{what}"), len));
        (medium("data", bytes), medium("log", Overlay::log_len(bytes)))
    }

    /// Resolves and pins, and only then has the snapshot.
    pub fn snapshot(&mut self, id: u64, target: &Target) -> Fallible {
        let point = self.journal.resolve(target, NOW)?.point;
        let (data, log) = self.overlay(id);
        let overlay = Overlay::create(data, log, id)?;
        let pin = PinRow {
            id,
            kind: PinKind::Snapshot {
                level: Level(u32::try_from(id)?),
                name: None,
            },
            point: point.clone(),
            target: target.to_string(),
            owner: "op@rec".into(),
            created: Timestamp(id),
            expires: None,
        };
        self.journal.put_pin(&pin)?;
        let view = self.view(point)?;
        self.snapshots.insert(id, Vdev::new(Arc::new(view), overlay));
        Ok(())
    }

    pub fn release(&mut self, id: u64) -> Fallible {
        self.journal.delete_pin(id, None)?;
        self.snapshots.remove(&id);
        Ok(())
    }

    /// Does a restore's work; stops after `batches` of blocks.
    pub fn restore(
        &self,
        work: Work,
        container_blocks: usize,
        batches: usize,
    ) -> Result<Restored, RestoreError> {
        let replica = Replica {
            journal: &self.journal,
            volumes: &self.volumes,
            container_blocks,
        };
        let keeper = Keeper {
            journal: &self.journal,
            room: u64::MAX,
        };
        replica.run(work, &mut Impatient { keeper, batches })
    }

    /// Frees what no point from `wanted` on, no pin and no restore needs.
    pub fn prune(&self, wanted: &Point) -> Fallible {
        let journal = &self.journal;
        let cursors = journal.cursors();
        let row = journal.restore()?;
        let mut points: Vec<Point> = journal.pins()?.into_iter().map(|p| p.point).collect();
        points.push(wanted.clone());
        let mut undo = Vec::new();
        if let Some(row) = row {
            undo.extend([row.from, row.undo_from.unwrap_or(row.from)]);
            points.push(row.target);
        }
        undo.extend(points.iter().map(|p| p.base));
        let undo = undo.into_iter().min().unwrap_or_default();
        journal.drop_undo_through(undo.min(cursors.applied_ordinal).max(Ordinal(0)))?;
        let after = points.iter().flat_map(|p| &p.redo).map(|span| span.after);
        let redo = after.chain([wanted.seq, cursors.applied]).min();
        let redo = redo.expect("two are given").min(cursors.checkpointed);
        while journal.ingest_sealed()?.is_some() {}
        let rows = journal.lfc_rows(..);
        let below = rows.iter().rposition(|row| row.last_seq <= redo);
        if let Some(below) = below {
            journal.drop_redo_through(rows[below].generation, rows[below].lfc)?;
        }
        // Rows outlive their frames; in the end they go too.
        if let Some(old) = below.and_then(|n| n.checked_sub(20)) {
            journal.forget_rows_through(rows[old].generation, rows[old].lfc)?;
        }
        Ok(())
    }

    /// Bytes of the replica itself.
    pub fn replica(&self, volume: VolumeIndex, range: ByteRange) -> Fallible<Vec<u8>> {
        let mut out = vec![0xEE; usize::try_from(range.len())?];
        self.volumes.read(volume, range.start, &mut out)?;
        Ok(out)
    }
}

/// Keeps a restore's rows, and loses patience.
struct Impatient<'a> {
    keeper: Keeper<'a>,
    batches: usize,
}

impl Owner for Impatient<'_> {
    fn room(&self) -> io::Result<u64> {
        self.keeper.room()
    }

    fn set_restore(&self, row: Option<&RestoreRow>, state: ContextState) -> Result<(), JournalError> {
        self.keeper.set_restore(row, state)
    }

    fn keep_restore(&self, row: &RestoreRow) -> Result<(), JournalError> {
        self.keeper.keep_restore(row)
    }

    fn progress(&mut self, _: &RestoreRow, _: &Progress) -> ControlFlow<()> {
        match self.batches.checked_sub(1) {
            Some(left) => {
                self.batches = left;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }
}
