//! What a node left on its disk, looked at without its daemon: invariant 2 in its exact words.
//!
//! A copy of the context's folder is opened by the journal itself; the volumes are read as they are. So what is compared is
//! what the cut left, before any daemon has repaired anything.

use journal::{Journal, Options, Parts};
use model::{
    BLOCK_SIZE, BlockNo, Ordinal, Payload, Record, VolumeIndex, WriteSeq,
    ports::{History, OrdinalKind},
};
use std::{fs, io, ops::Bound, path::Path};
use testkit::Oracle;

/// Bytes of a container.
pub const LFC_BYTES: u64 = 2 << 20;

/// The context's journal and volumes as they lie on the disk.
pub struct Stopped {
    journal: Journal,
    volumes: Vec<Vec<u8>>,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

fn overlay<'a>(volumes: &mut [Vec<u8>], records: impl IntoIterator<Item = &'a Record>) {
    for record in records {
        let (Some(range), Some(payload)) = (record.changed(), record.payload()) else {
            continue;
        };
        payload.copy_to(
            0,
            &mut volumes[usize::from(record.volume.0)][small(range.start)..small(range.end)],
        );
    }
}

/// Something to compare with the oracle.
pub fn reader(volumes: &[Vec<u8>]) -> impl FnMut(VolumeIndex, u64, &mut [u8]) -> io::Result<()> + '_ {
    |volume, at, out| {
        out.copy_from_slice(&volumes[usize::from(volume.0)][small(at)..small(at) + out.len()]);
        Ok(())
    }
}

/// The position that the replica held when it had been overwritten up to `ordinal`; a restore counts as completed.
fn state_after(journal: &Journal, ordinal: Ordinal) -> WriteSeq {
    let rows = journal.ordinal_rows((Bound::Included(ordinal), Bound::Included(ordinal)));
    match &rows.first().expect("no undo is freed here").kind {
        OrdinalKind::Apply { last_seq, .. } => *last_seq,
        OrdinalKind::Local { base, redo, .. } => redo
            .last()
            .map_or_else(|| state_after(journal, *base), |span| span.upto),
        OrdinalKind::Copies => panic!("the journal never gave way here"),
    }
}

impl Stopped {
    /// Looks at `state/NODE/c1` through a copy in `scratch`.
    pub fn open(state: &Path, scratch: &Path, volumes: &[(&str, u64)], indexed: bool) -> Self {
        let context = state.join("c1");
        let _ = fs::remove_dir_all(scratch);
        copy(&context.join("journal"), scratch);
        let options = Options {
            lfc_size: LFC_BYTES,
            lfc_max_age_ns: None,
            indexed,
            ..Options::default()
        };
        let (journal, _) = Journal::open(Parts::open_dir(scratch, LFC_BYTES).unwrap(), options)
            .unwrap_or_else(|e| panic!("{}: {e}", context.display()));
        let volumes = volumes
            .iter()
            .map(|(name, size)| {
                let bytes = fs::read(context.join("volumes").join(name)).unwrap();
                assert_eq!(bytes.len() as u64, *size, "length of {name}");
                bytes
            })
            .collect();
        Self { journal, volumes }
    }

    /// Production: "volume + replay from `checkpointed` = the journal's head". Answers the head and what the volumes hold
    /// then.
    pub fn replayed(self) -> (WriteSeq, Vec<Vec<u8>>) {
        let Self { journal, mut volumes } = self;
        let cursors = journal.cursors();
        let mut from = cursors.checkpointed;
        while from < cursors.appended {
            let frames = journal.frames_after(from, 4 << 20).unwrap();
            overlay(&mut volumes, frames.iter().flat_map(|f| f.records()));
            from = frames.last().expect("the journal reaches its head").last_seq();
        }
        (cursors.appended, volumes)
    }

    /// Recovery: whether its first sync had not ended.
    pub fn is_in_first_sync(&self) -> bool {
        self.journal.consistent().is_empty()
    }

    /// Recovery: "replica + replay of the LFC being applied = its end, replica + its undo = its start"; while a restore is
    /// under way: replica + undo of the restore = what was applied. Answers what was being done.
    pub fn check_replica(self, oracle: &Oracle, why: &str) -> &'static str {
        let Self { journal, volumes } = self;
        let published = journal.published();
        let Some(consistent) = journal.consistent().last().map(|c| c.from.seq) else {
            return "first sync";
        };
        let rows = journal.ordinal_rows((Bound::Included(published), Bound::Included(published)));
        let Some(row) = rows.first() else {
            return "nothing applied";
        };
        let (after, start, what) = match &row.kind {
            OrdinalKind::Apply { last_seq, .. } if *last_seq <= consistent => return "first sync",
            OrdinalKind::Apply {
                generation,
                lfc,
                last_seq,
            } => {
                let lfc_row = journal
                    .lfc_row(*generation, *lfc)
                    .expect("undo belongs to a container");
                let frames = journal.frames_of(*generation, *lfc).unwrap();
                let mut end = volumes.clone();
                overlay(&mut end, frames.iter().flat_map(|f| f.records()));
                oracle
                    .compare(*last_seq, &mut reader(&end))
                    .unwrap_or_else(|e| panic!("{why}: replica + redo of container {lfc}: {e}"));
                let what = if journal.cursors().applied_ordinal == published {
                    "at rest"
                } else {
                    "applying"
                };
                (Ordinal(published.0 - 1), WriteSeq(lfc_row.first_seq.0 - 1), what)
            }
            OrdinalKind::Local { restore_from, .. } => {
                (*restore_from, state_after(&journal, *restore_from), "restoring")
            }
            OrdinalKind::Copies => panic!("the journal never gave way here"),
        };
        let mut begin = volumes;
        for (index, bytes) in (0..).map(VolumeIndex).zip(&mut begin) {
            let blocks = bytes.len() as u64 / BLOCK_SIZE;
            let undo = journal
                .first_undo(index, BlockNo(0), blocks, after, published)
                .unwrap();
            for (block, before) in bytes.chunks_mut(small(BLOCK_SIZE)).zip(undo) {
                match before {
                    Some(Payload::Data(data)) => block.copy_from_slice(&data),
                    Some(Payload::Zero) => block.fill(0),
                    None => {}
                }
            }
        }
        oracle
            .compare(start, &mut reader(&begin))
            .unwrap_or_else(|e| panic!("{why}: replica + undo since ordinal {after} ({what}): {e}"));
        what
    }
}
