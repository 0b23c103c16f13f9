//! What all lines share: sizes, the folder, the volumes, rounds.

use crate::{stats::Samples, work::Past};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};
use testkit::proc::Scratch;

/// How much is done. Ratios are what is compared; sizes say how far they can be trusted.
#[derive(Clone, Debug)]
pub struct Scale {
    pub name: &'static str,
    /// No line begins behind so many minutes.
    pub minutes: f64,
    /// Rounds of most lines.
    pub rounds: usize,
    /// Rounds of lines that take long to set up.
    pub few_rounds: usize,
    /// Bytes of the volume that is written once over in a round (the 1 GiB).
    pub volume: u64,
    /// Seconds of a run that goes by time.
    pub seconds: u64,
    /// Seconds of the long run (the ten minutes).
    pub long_seconds: u64,
    /// Bytes of history: the 20 MiB, 2 GiB and 20 GiB.
    pub history: [u64; 3],
    /// Bytes of a first sync (the 4 GiB).
    pub sync: u64,
    /// Bytes of history that a failover restore takes back, and those of distinct blocks in it.
    pub restore: [u64; 2],
    /// Retained records for the memory figure (the 10 M).
    pub records: u64,
    /// Scale of pgbench.
    pub pgbench: u32,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Scale {
    pub fn full() -> Self {
        Self {
            name: "full",
            minutes: 55.0,
            rounds: 5,
            few_rounds: 3,
            volume: GIB,
            seconds: 5,
            long_seconds: 600,
            history: [20 * MIB, 2 * GIB, 20 * GIB],
            sync: 4 * GIB,
            restore: [2 * GIB, 256 * MIB],
            records: 10_000_000,
            pgbench: 10,
        }
    }

    pub fn quick() -> Self {
        Self {
            name: "quick",
            minutes: 7.0,
            rounds: 3,
            few_rounds: 1,
            volume: 128 * MIB,
            seconds: 2,
            long_seconds: 20,
            history: [8 * MIB, 64 * MIB, 256 * MIB],
            sync: 256 * MIB,
            restore: [128 * MIB, 16 * MIB],
            records: 200_000,
            pgbench: 2,
        }
    }

    /// The smallest that goes through all the code: to work on a line.
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            minutes: 60.0,
            rounds: 2,
            few_rounds: 1,
            volume: 32 * MIB,
            seconds: 1,
            long_seconds: 8,
            history: [2 * MIB, 8 * MIB, 32 * MIB],
            sync: 64 * MIB,
            restore: [32 * MIB, 4 * MIB],
            records: 20_000,
            pgbench: 1,
        }
    }
}

/// The run.
pub struct Bench {
    pub scale: Scale,
    /// Everything is below it, peers' images and our nodes alike: the same file system.
    pub scratch: Scratch,
    images: RefCell<BTreeMap<u64, PathBuf>>,
    /// Two nodes with a long history, which line 11 leaves to line 12.
    pub past: RefCell<Option<Past>>,
}

impl Bench {
    pub fn new(scale: Scale) -> Self {
        Self {
            scale,
            scratch: Scratch::new("bench"),
            images: RefCell::default(),
            past: RefCell::default(),
        }
    }

    /// The image of so many bytes that the peers serve, one after the other. Its blocks were written before, as a volume's in
    /// use are: no run pays for allocating them.
    pub fn image(&self, len: u64) -> PathBuf {
        let mut images = self.images.borrow_mut();
        images
            .entry(len)
            .or_insert_with(|| {
                let path = self.scratch.join(format!("image-{len}"));
                write_noise(&path, len, len);
                path
            })
            .clone()
    }

    /// All that anybody has written is on the disk, so that nobody pays for another's writes.
    pub fn quiet(&self) {
        let folder = File::open(self.scratch.path()).expect("the folder is there");
        rustix::fs::syncfs(&folder).expect("the file system can be synced");
    }

    /// Lets everyone run once a round, right behind each other; who begins changes. Answers figures by contestant, then
    /// round.
    pub fn rounds<T>(
        &self,
        rounds: usize,
        contestants: usize,
        mut run: impl FnMut(usize, usize) -> T,
    ) -> Vec<Vec<T>> {
        let mut all: Vec<Vec<T>> = (0..contestants).map(|_| Vec::new()).collect();
        for round in 0..rounds {
            for turn in 0..contestants {
                let who = (turn + round) % contestants;
                self.quiet();
                all[who].push(run(who, round));
            }
        }
        all
    }
}

/// A figure of each run, by round.
pub fn each<T>(runs: &[T], figure: impl Fn(&T) -> f64) -> Samples {
    runs.iter().map(figure).collect()
}

/// Seconds that something takes, and its answer.
pub fn timed<T>(act: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let answer = act();
    (start.elapsed().as_secs_f64(), answer)
}

/// A file of so many bytes that cannot be compressed, on the disk.
pub fn write_noise(path: &Path, len: u64, seed: u64) {
    let write = || -> std::io::Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut file = File::create(path)?;
        let mut piece = vec![0; 1 << 20];
        let mut left = len;
        while left > 0 {
            rng.fill(&mut piece[..]);
            let n = left.min(1 << 20);
            file.write_all(&piece[..usize::try_from(n).expect("at most 1 MiB")])?;
            left -= n;
        }
        file.sync_all()
    };
    write().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
