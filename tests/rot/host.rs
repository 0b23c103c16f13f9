//! What a stopped host left, kept in memory, and one look at all that its journal says.

use crate::common::Pair;
use journal::{Journal, Options, Parts, check::Findings};
use model::{Point, Target, Timestamp, VolumeIndex, WriteSeq, ports::History, target::TargetKind};
use rand::{Rng, rngs::StdRng};
use snapshot::{View, Volumes};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use testkit::{Oracle, SimMedium, SimPower};

/// Bytes of a container.
pub const LFC_BYTES: u64 = 2 << 20;

/// The unit in which files are written, and in which the used part of a file is looked for.
const SECTOR: usize = 512;

/// What became of a flipped bit.
#[derive(Debug)]
pub enum Verdict {
    /// The journal did not open, and said why.
    FoundOnOpen(String),
    /// Something could not be read, and said why.
    FoundOnRead(String),
    /// Everything reads as before.
    Harmless,
}

/// One bit of one file.
#[derive(Clone, Debug)]
pub struct Flip {
    /// The file, by its place in [`Host::files`].
    pub file: usize,
    /// The byte.
    pub at: usize,
    /// The bit of that byte.
    pub bit: u8,
}

/// A stopped host.
pub struct Host {
    /// Every file of its journal's folder, by its path in it.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Its volumes.
    pub volumes: Volumes,
    /// The same, to be flipped.
    pub media: Vec<SimMedium>,
    /// Points of the past that are looked at.
    points: Vec<WriteSeq>,
    indexed: bool,
    /// What its journal says when nothing is flipped.
    said: String,
}

fn read_files(root: &Path, below: &Path, out: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            read_files(root, &path, out);
        } else {
            out.push((path.clone(), fs::read(root.join(path)).unwrap()));
        }
    }
}

/// Every file of a folder, by its path in it.
fn tree(dir: &Path) -> Vec<(PathBuf, blake3::Hash)> {
    let mut files = Vec::new();
    read_files(dir, Path::new(""), &mut files);
    files.sort();
    files
        .into_iter()
        .map(|(path, bytes)| (path, blake3::hash(&bytes)))
        .collect()
}

fn used(sector: &[u8]) -> bool {
    sector.iter().any(|b| *b != 0)
}

/// A failure while everything is read; a view that shows other bytes is no failure but the end.
type Read<T = ()> = Result<T, String>;

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

impl Host {
    /// Takes over what a stopped node left. `points`: what its views are looked at, none on production.
    pub fn of(
        pair: &Pair,
        node: &str,
        volumes: &[(&str, u64)],
        points: Vec<WriteSeq>,
        oracle: &Oracle,
    ) -> Self {
        let state = pair.scratch.join(format!("state/{node}/c1"));
        let mut files = Vec::new();
        read_files(&state.join("journal"), Path::new(""), &mut files);
        files.sort();
        let power = SimPower::new();
        let mut all = Volumes::new();
        let mut media = Vec::new();
        for (index, (name, size)) in (0..).map(VolumeIndex).zip(volumes) {
            use model::ports::Medium;
            let medium = power.medium(&format!("{node} {name}"), *size);
            medium
                .write_at(0, &fs::read(state.join("volumes").join(name)).unwrap())
                .unwrap();
            medium.sync().unwrap();
            media.push(power.medium(&format!("{node} {name}"), *size));
            all.insert(index, (*name).to_owned(), Arc::new(medium), *size)
                .unwrap();
        }
        let mut host = Self {
            files,
            volumes: all,
            media,
            indexed: !points.is_empty(),
            points,
            said: String::new(),
        };
        let dir = host.lay(None);
        let journal = Arc::new(host.open(dir.path()).unwrap());
        host.said = host.portrait(&journal).unwrap();
        host.look(&journal, oracle).unwrap();
        host
    }

    /// Writes the files into a folder of their own, in memory where the machine has a place for that.
    pub fn lay(&self, flip: Option<&Flip>) -> tempfile::TempDir {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::Builder::new()
            .prefix("backstay-rot-")
            .tempdir_in(root)
            .unwrap();
        for (i, (path, bytes)) in self.files.iter().enumerate() {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create(path).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            for (n, sectors) in bytes.chunks(64 * SECTOR).enumerate() {
                if used(sectors) {
                    file.write_all_at(sectors, (n * 64 * SECTOR) as u64).unwrap();
                }
            }
            if let Some(flip) = flip.filter(|f| f.file == i) {
                file.write_all_at(&[bytes[flip.at] ^ (1 << flip.bit)], flip.at as u64)
                    .unwrap();
            }
        }
        dir
    }

    /// A random bit of a file; mostly where something stands.
    pub fn random_bit(&self, file: usize, rng: &mut StdRng) -> Flip {
        let bytes = &self.files[file].1;
        let mut at = rng.random_range(0..bytes.len());
        for _ in 0..200 {
            let start = at / SECTOR * SECTOR;
            if used(&bytes[start..bytes.len().min(start + SECTOR)]) || rng.random_range(0..100) == 0 {
                break;
            }
            at = rng.random_range(0..bytes.len());
        }
        let bit = rng.random_range(0..8);
        Flip { file, at, bit }
    }

    /// Opens the journal in a folder.
    pub fn open(&self, dir: &Path) -> Read<Journal> {
        let options = Options {
            lfc_size: LFC_BYTES,
            lfc_max_age_ns: None,
            indexed: self.indexed,
            ..Options::default()
        };
        let parts = Parts::open_dir(dir, LFC_BYTES).map_err(text)?;
        Ok(Journal::open(parts, options).map_err(text)?.0)
    }

    /// Flips a bit, has it checked, and looks at everything.
    ///
    /// An error is what must never be: a panic, other bytes than were written, or something that is gone without a word.
    pub fn examine(
        &self,
        flip: &Flip,
        oracle: &Oracle,
    ) -> (Result<Findings, String>, Result<Verdict, String>) {
        let dir = self.lay(Some(flip));
        // First: whoever opens the journal mends what can be mended.
        let checked = self.check(dir.path());
        let looked = catch_unwind(AssertUnwindSafe(|| self.examine_in(dir.path(), oracle)));
        let verdict = looked.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            Err(format!("a panic: {}", said.unwrap_or_default()))
        });
        (checked, verdict)
    }

    /// Has a folder checked as `backstay fsck-journal` does.
    ///
    /// An error is what must never be: a panic, or a file that is another one afterwards.
    pub fn check(&self, dir: &Path) -> Result<Findings, String> {
        let before = tree(dir);
        let options = Options {
            lfc_size: LFC_BYTES,
            indexed: self.indexed,
            ..Options::default()
        };
        let checked = catch_unwind(AssertUnwindSafe(|| {
            journal::check::check(dir, &options, &mut |_, _, _| {}).map(|checked| checked.findings)
        }));
        if tree(dir) != before {
            return Err("the folder was changed by the check".into());
        }
        match checked {
            Ok(found) => found.map_err(|e| format!("it cannot be checked: {e}")),
            Err(panic) => {
                let said = panic.downcast_ref::<String>().cloned();
                Err(format!("the check panicked: {}", said.unwrap_or_default()))
            }
        }
    }

    fn examine_in(&self, dir: &Path, oracle: &Oracle) -> Result<Verdict, String> {
        let journal = match self.open(dir) {
            Ok(journal) => Arc::new(journal),
            Err(why) => return Ok(Verdict::FoundOnOpen(why)),
        };
        let said = self.portrait(&journal);
        if let Ok(said) = &said {
            let mut lines = said.lines().zip(self.said.lines());
            if let Some((now, before)) = lines.find(|(now, before)| now != before) {
                return Err(format!("the journal says\n{now}\nand said before\n{before}"));
            }
            assert_eq!(said.len(), self.said.len());
        }
        let looked = self.look(&journal, oracle)?;
        Ok(match (said, looked) {
            (Err(why), _) | (_, Some(why)) => Verdict::FoundOnRead(why),
            _ => Verdict::Harmless,
        })
    }

    /// All that the journal says without its views: rows, cursors, marks, pins, maps, and every frame.
    fn portrait(&self, journal: &Journal) -> Read<String> {
        let mut out = String::new();
        let mut line = |what: &dyn std::fmt::Debug| writeln!(out, "{what:?}").expect("a string takes all");
        line(&journal.cursors());
        line(&journal.floors());
        line(&journal.head());
        line(&journal.open_row());
        line(&journal.marks());
        line(&journal.consistent());
        line(&journal.context().map_err(text)?);
        line(&journal.restore().map_err(text)?);
        line(&journal.pins().map_err(text)?);
        line(&journal.ordinal_rows(..));
        journal.generations().iter().for_each(|g| line(g));
        if let Some((_, why)) = journal.lost_maps().first() {
            return Err(format!("lost: {why}"));
        }
        for (index, _) in self.volumes.iter() {
            line(&(journal.map_shape(index), journal.map_runs(index)));
        }
        for row in journal.lfc_rows(..) {
            line(&row);
            line(&journal.touched(row.generation, row.lfc).map_err(text)?);
            if journal.is_held(&row) {
                for frame in journal.frames_of(row.generation, row.lfc).map_err(text)? {
                    line(&blake3::hash(frame.bytes()));
                }
            }
        }
        // The open container, and the way by which frames are sent and replayed.
        let floor = journal.floors().redo_seq.seq;
        let mut from = floor;
        while from < journal.cursors().appended {
            let frames = journal.frames_after(from, 1 << 20).map_err(text)?;
            frames.iter().for_each(|f| line(&blake3::hash(f.bytes())));
            from = frames
                .last()
                .ok_or("the journal does not reach its head")?
                .last_seq();
        }
        Ok(out)
    }

    /// Where the views are looked at.
    pub fn points(&self, journal: &Journal) -> Read<Vec<Point>> {
        let resolve = |seq: &WriteSeq| {
            let target = Target::from(TargetKind::Seq(*seq));
            let resolved = journal.resolve(&target, Timestamp(u64::MAX));
            resolved.map(|r| r.point).map_err(text)
        };
        self.points.iter().map(resolve).collect()
    }

    /// The view at a point.
    pub fn view(&self, journal: &Arc<Journal>, point: Point) -> Read<View> {
        let history: Arc<dyn History> = Arc::clone(journal) as Arc<dyn History>;
        View::new(point, self.volumes.sizes(), self.volumes.clone(), history).map_err(text)
    }

    /// Reads every block of every view: the first failure to read, or, as an error, the first block that is not what it was.
    fn look(&self, journal: &Arc<Journal>, oracle: &Oracle) -> Result<Option<String>, String> {
        let points = match self.points(journal) {
            Ok(points) => points,
            Err(why) => return Ok(Some(why)),
        };
        let failed = Mutex::new(None);
        for point in points {
            let seq = point.seq;
            let view = match self.view(journal, point) {
                Ok(view) => view,
                Err(why) => return Ok(Some(why)),
            };
            let mut read = |volume, at, out: &mut [u8]| {
                view.read(volume, at, out).map_err(|e| {
                    failed.lock().unwrap().get_or_insert_with(|| e.to_string());
                    io::Error::other(e)
                })
            };
            // Block by block: one that cannot be read hides no other.
            for (volume, size) in self.volumes.sizes() {
                for at in (0..size).step_by(16 << 10) {
                    let range = model::ByteRange::at(at, (size - at).min(16 << 10));
                    let before = failed.lock().unwrap().is_some();
                    let same = oracle.compare_range(seq, volume, range, &mut read);
                    let failed_now = failed.lock().unwrap().is_some();
                    if let Err(e) = same
                        && !e.says.contains("cannot be read")
                    {
                        return Err(format!(
                            "the view at {seq}: {e} (failed before: {before}, {failed_now})"
                        ));
                    }
                }
            }
        }
        Ok(failed.into_inner().unwrap())
    }
}
