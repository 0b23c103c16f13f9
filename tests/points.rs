//! Every point of the past is what it was: views, snapshots and restored replicas against the oracle.
//!
//! Positions are known without asking the program for them: writes that are sent one at a time take the next position each;
//! writes that are sent together never overlap, so that after all of them the state is known, and in between it is that of
//! before with exactly as many of them, each whole, as positions have passed.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Clients, LONG, PROD, Pair, REC, Setup, number};
use model::{BLOCK_SIZE, BlockNo, ByteRange, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::Command,
    time::{Duration, Instant},
};
use testkit::{
    Oracle,
    block::{self, Header},
    nbd::{Client, Request},
    proc::run,
    with_seeds,
};

/// Writes that were in flight together.
struct Batch {
    /// The position before them.
    before: u64,
    /// What they wrote.
    writes: Vec<(VolumeIndex, ByteRange)>,
}

/// A workload with its history.
struct World<'a> {
    pair: &'a Pair,
    volumes: Vec<(&'static str, u64)>,
    /// Where most writes go: the whole of small volumes.
    hot: Vec<ByteRange>,
    oracle: Oracle,
    /// The first position of the window.
    start: u64,
    seq: u64,
    batches: Vec<Batch>,
    bytes: u64,
    heads: Vec<Vec<Client>>,
}

impl<'a> World<'a> {
    fn new(pair: &'a Pair, volumes: &[(&'static str, u64)], hot: Vec<ByteRange>) -> Self {
        let sizes: Vec<u64> = volumes.iter().map(|(_, size)| *size).collect();
        let start = pair.received().0;
        let mut world = Self {
            pair,
            volumes: volumes.to_vec(),
            hot,
            oracle: Oracle::new(&sizes),
            start,
            seq: start,
            batches: Vec::new(),
            bytes: 0,
            heads: Vec::new(),
        };
        world.connect();
        world
    }

    /// Two connections to each volume of production.
    fn connect(&mut self) {
        let open = |(volume, _): &(&str, u64)| {
            let one = || self.pair.open(PROD, &format!("c1/{volume}"));
            vec![one(), one()]
        };
        self.heads = self.volumes.iter().map(open).collect();
    }

    fn volume(&self, rng: &mut StdRng) -> VolumeIndex {
        VolumeIndex(u16::try_from(rng.random_range(0..self.volumes.len())).unwrap())
    }

    /// Whole blocks somewhere, most of them in the hot range.
    fn blocks(&self, rng: &mut StdRng, volume: VolumeIndex, most: u64) -> ByteRange {
        let size = self.volumes[usize::from(volume.0)].1;
        let hot = self.hot[usize::from(volume.0)];
        let range = if rng.random_range(0..100) < 97 {
            hot
        } else {
            ByteRange { start: 0, end: size }
        };
        let (first, end) = (range.start / BLOCK_SIZE, range.end / BLOCK_SIZE);
        let count = rng.random_range(1..=most.min(end - first));
        let at = rng.random_range(first..=end - count);
        ByteRange::at(at * BLOCK_SIZE, count * BLOCK_SIZE)
    }

    fn describe(&mut self, seq: u64, volume: VolumeIndex, range: ByteRange) -> Vec<u8> {
        let header = |block| Header {
            volume,
            block,
            version: seq,
            time: Timestamp(seq),
            seed: 7,
        };
        let bytes = range.blocks().flat_map(|n| block::make(&header(n))).collect();
        let first = header(BlockNo::of(range.start));
        self.oracle
            .describe(WriteSeq(seq), Timestamp(seq), &first, range.len() / BLOCK_SIZE);
        self.bytes += range.len();
        bytes
    }

    /// One operation by itself, odd ones among them.
    fn one(&mut self, rng: &mut StdRng) {
        let volume = self.volume(rng);
        let size = self.volumes[usize::from(volume.0)].1;
        let connection = rng.random_range(0..2);
        let (at, time) = (WriteSeq(self.seq + 1), Timestamp(self.seq + 1));
        let odd = |rng: &mut StdRng, most: u64| {
            let start = rng.random_range(0..size);
            // The odd end of the volume comes often.
            let len = rng.random_range(1..=most).min(size - start);
            if rng.random_range(0..4) == 0 {
                ByteRange {
                    start: size - len,
                    end: size,
                }
            } else {
                ByteRange::at(start, len)
            }
        };
        let request = match rng.random_range(0..100) {
            0..60 => {
                let range = self.blocks(rng, volume, 12);
                let fua = rng.random_range(0..10) == 0;
                let data = self.describe(at.0, volume, range);
                Request::Write {
                    offset: range.start,
                    data,
                    fua,
                }
            }
            60..63 => {
                let range = self.blocks(rng, volume, 256);
                let data = self.describe(at.0, volume, range);
                Request::Write {
                    offset: range.start,
                    data,
                    fua: false,
                }
            }
            63..83 => {
                let range = odd(rng, 9000);
                let mut data = vec![0; usize::try_from(range.len()).unwrap()];
                rng.fill(&mut data[..]);
                self.oracle.write(at, time, volume, range.start, &data);
                Request::Write {
                    offset: range.start,
                    data,
                    fua: false,
                }
            }
            83..90 => {
                let range = odd(rng, 100_000);
                self.oracle.zero(at, time, volume, range);
                let (fua, no_hole) = (false, rng.random());
                Request::Zero { range, fua, no_hole }
            }
            90..95 => {
                // Whole blocks: of a trim's odd ends a server may keep what it likes.
                let range = self.blocks(rng, volume, 40);
                self.oracle.zero(at, time, volume, range);
                Request::Trim { range, fua: false }
            }
            _ => Request::Flush,
        };
        self.heads[usize::from(volume.0)][connection]
            .call(&request)
            .unwrap();
        if request != Request::Flush {
            self.seq += 1;
        }
    }

    /// Writes in flight together, on all connections.
    fn batch(&mut self, rng: &mut StdRng, count: usize, most: u64) {
        let mut batch = Batch {
            before: self.seq,
            writes: Vec::new(),
        };
        for _ in 0..count {
            let volume = self.volume(rng);
            let range = self.blocks(rng, volume, most);
            let meets = |(v, r): &(VolumeIndex, ByteRange)| *v == volume && r.intersect(range).is_some();
            if batch.writes.iter().any(meets) {
                continue;
            }
            self.seq += 1;
            let data = self.describe(self.seq, volume, range);
            let write = Request::Write {
                offset: range.start,
                data,
                fua: false,
            };
            let connection = rng.random_range(0..2);
            self.heads[usize::from(volume.0)][connection]
                .submit(&write)
                .unwrap();
            batch.writes.push((volume, range));
        }
        for client in self.heads.iter_mut().flatten() {
            while let Some(done) = client.complete().unwrap() {
                done.result.unwrap();
            }
        }
        self.batches.push(batch);
    }

    fn mark(&mut self, name: &str) {
        let mark = self.pair.json(PROD, &["rtmark", "-C", "1", "--name", name]);
        self.seq += 1;
        assert_eq!(number(&mark["reply"]["mark"]["seq"]), self.seq, "{mark}");
        self.oracle.mark(WriteSeq(self.seq), Timestamp(self.seq), name);
    }

    /// Asserts that the program has counted as we have, and waits until the recovery node has it all.
    fn settle(&self) {
        assert_eq!(self.pair.received(), WriteSeq(self.seq));
    }

    /// The batch that was in flight at a position, if it is neither before nor behind all of it.
    fn in_flight(&self, seq: u64) -> Option<&Batch> {
        self.batches
            .iter()
            .find(|b| b.before < seq && seq < b.before + b.writes.len() as u64)
    }

    /// Compares `read` of ranges with the oracle as of a position.
    fn check(&self, seq: u64, ranges: &[(VolumeIndex, ByteRange)], read: &mut impl testkit::oracle::Read) {
        let Some(batch) = self.in_flight(seq) else {
            for (volume, range) in ranges {
                for part in chunks(*range) {
                    let compared = self.oracle.compare_range(WriteSeq(seq), *volume, part, read);
                    compared.unwrap_or_else(|e| panic!("as of {seq}: {e}"));
                }
            }
            return;
        };
        let after = batch.before + batch.writes.len() as u64;
        // Which of the batch's writes are there: none of them half, and as many as positions have passed.
        let is = |at: u64, volume, range: ByteRange, read: &mut _| {
            chunks(range).all(|part| {
                let found = self.oracle.compare_range(WriteSeq(at), volume, part, read);
                found.is_ok()
            })
        };
        let mut there = 0;
        for (volume, range) in &batch.writes {
            let new = is(after, *volume, *range, read);
            let old = is(batch.before, *volume, *range, read);
            assert!(
                new != old,
                "as of {seq}: {volume:?} {range:?} is neither old nor new"
            );
            there += u64::from(new);
        }
        assert_eq!(there, seq - batch.before, "writes of the batch as of {seq}");
        for (volume, range) in ranges {
            for part in chunks(*range) {
                let meets = |r: ByteRange| {
                    batch
                        .writes
                        .iter()
                        .any(|(v, w)| v == volume && w.intersect(r).is_some())
                };
                if !meets(part) {
                    let compared = self
                        .oracle
                        .compare_range(WriteSeq(batch.before), *volume, part, read);
                    compared.unwrap_or_else(|e| panic!("as of {seq}: {e}"));
                    continue;
                }
                let mut bytes = vec![0; usize::try_from(part.len()).unwrap()];
                read.read(*volume, part.start, &mut bytes).unwrap();
                let mut read = |_, at: u64, out: &mut [u8]| {
                    let at = usize::try_from(at - part.start).unwrap();
                    out.copy_from_slice(&bytes[at..at + out.len()]);
                    Ok(())
                };
                for number in part.blocks() {
                    let block = ByteRange::at(number.start(), BLOCK_SIZE).intersect(part).unwrap();
                    if !meets(block) {
                        let compared =
                            self.oracle
                                .compare_range(WriteSeq(batch.before), *volume, block, &mut read);
                        compared.unwrap_or_else(|e| panic!("as of {seq}: {e}"));
                    }
                }
            }
        }
    }

    /// Everything of all volumes.
    fn all(&self) -> Vec<(VolumeIndex, ByteRange)> {
        let whole = |(v, (_, size)): (VolumeIndex, &(&str, u64))| (v, ByteRange { start: 0, end: *size });
        self.oracle.volumes().zip(&self.volumes).map(whole).collect()
    }

    /// Opens all volumes at a target, by export name alone.
    fn open(&self, target: &str) -> Clients {
        Clients::open(self.pair, REC, &self.volumes, |v| format!("c1/{v}@{target}"))
    }

    /// Reads all volumes whole.
    fn read(&self, mut clients: Clients) -> Images {
        let read = |((_, size), client): (&(&str, u64), &mut Client)| {
            let parts = chunks(ByteRange { start: 0, end: *size });
            parts
                .flat_map(|p| client.read(p.start, p.len()).unwrap())
                .collect()
        };
        Images(self.volumes.iter().zip(&mut clients.0).map(read).collect())
    }

    fn check_target(&self, target: &str, seq: u64) {
        let mut images = self.read(self.open(target));
        self.check(seq, &self.all(), &mut images);
    }

    /// Checks the files themselves.
    fn check_files(&self, node: &str, seq: u64) {
        let open = |(volume, _): &(&str, u64)| File::open(self.pair.backing(node, volume)).unwrap();
        let files: Vec<File> = self.volumes.iter().map(open).collect();
        let mut read = |volume: VolumeIndex, at: u64, out: &mut [u8]| {
            files[usize::from(volume.0)].read_exact_at(out, at)
        };
        self.check(seq, &self.all(), &mut read);
    }

    /// Runs of blocks that were ever written outside of the hot range.
    fn outside(&self, volume: VolumeIndex) -> Vec<ByteRange> {
        let hot = self.hot[usize::from(volume.0)];
        let mut runs: Vec<ByteRange> = Vec::new();
        for number in self.oracle.held(volume) {
            let block = ByteRange::at(number.start(), BLOCK_SIZE);
            match runs.last_mut() {
                _ if block.intersect(hot).is_some() => {}
                Some(run) if run.end == block.start => run.end = block.end,
                _ => runs.push(block),
            }
        }
        runs
    }

    /// Where a target resolves to: position and time in nanoseconds.
    fn resolve(&self, target: &str) -> (u64, u64) {
        let plan = self.pair.json(REC, &["scrt_ra", "-C", "1", "--at", target, "-n"]);
        let point = &plan["reply"]["plan"]["point"];
        assert!(point.is_object(), "{target}: {plan}");
        (number(&point["seq"]), number(&point["time"]["epoch_ns"]))
    }

    /// The end of every sealed container, from the list of the command and the count of records in each.
    fn lfc_ends(&self) -> Vec<(u64, u64)> {
        let list = self.pair.json(REC, &["scrt_ra", "-C", "1", "-v"]);
        let rows = list["reply"]["windows"]["lfcs"].as_array().unwrap().clone();
        let ids = rows.iter().map(|row| number(&row["id"]));
        // Those that end before the replica was consistent are listed and refused.
        let consistent = number(
            &self.pair.json(REC, &["scrt_ra", "-C", "1", "-p"])["reply"]["windows"]["windows"][0]["oldest"]["lfc"],
        );
        let ids = ids.filter(|id| *id >= consistent);
        let ends = ids.map(|id| (id, self.resolve(&format!("lfc:{id}")).0));
        ends.filter(|(_, seq)| *seq > self.start).collect()
    }
}

/// Volumes in memory.
struct Images(Vec<Vec<u8>>);

impl testkit::oracle::Read for Images {
    fn read(&mut self, volume: VolumeIndex, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        let at = usize::try_from(at).unwrap();
        out.copy_from_slice(&self.0[usize::from(volume.0)][at..at + out.len()]);
        Ok(())
    }
}

fn chunks(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    const CHUNK: u64 = 1 << 20;
    (range.start..range.end)
        .step_by(CHUNK as usize)
        .map(move |start| ByteRange {
            start,
            end: range.end.min(start + CHUNK),
        })
}

/// Three volumes, none a whole number of blocks.
const SMALL: [(&str, u64); 3] = [
    ("data", (4 << 20) + 1536),
    ("log", (1 << 20) + 4097),
    ("tiny", 300_001),
];

fn whole(volumes: &[(&str, u64)]) -> Vec<ByteRange> {
    volumes
        .iter()
        .map(|(_, size)| ByteRange { start: 0, end: *size })
        .collect()
}

#[test]
fn any_point_of_the_past_is_what_it_was() {
    let pair = Pair::new("points", &Setup::volumes(&SMALL));
    with_seeds("points", 1, |rng| {
        let mut world = World::new(&pair, &SMALL, whole(&SMALL));
        let mut kept: Vec<(u64, Clients)> = Vec::new();
        for round in 0..8 {
            for _ in 0..150 {
                world.one(rng);
            }
            for _ in 0..6 {
                world.batch(rng, 24, 16);
            }
            world.mark(&format!("m{round}"));
            world.settle();
            // A snapshot that stays open while writing goes on.
            if round % 3 == 0 {
                let seq = rng.random_range(world.start..=world.seq);
                let target = format!("seq:{seq}");
                let made = pair.json(REC, &["scrt_ra", "-C", "1", "--at", &target]);
                let level = number(&made["reply"]["snapshot"]["level"]);
                kept.push((
                    seq,
                    Clients::open(&pair, REC, &SMALL, |v| format!("c1/rsn{level}/{v}")),
                ));
            }
            for (seq, clients) in &mut kept {
                world.check(*seq, &world.all(), clients);
            }
        }
        points(rng, &world, 240);
        let seq = rng.random_range(world.start..world.seq);
        restore_and_undo(rng, world, &mut kept, seq);
    });
}

/// Compares random points of every kind.
fn points(rng: &mut StdRng, world: &World<'_>, count: usize) {
    let ends = world.lfc_ends();
    assert!(ends.len() > 5, "{ends:?}");
    let marks: Vec<(String, WriteSeq)> = world
        .oracle
        .marks()
        .iter()
        .map(|(n, s)| (n.clone(), *s))
        .collect();
    let (mut inside, mut kinds) = (0, [0; 4]);
    for _ in 0..count {
        let kind = rng.random_range(0..10);
        let (target, seq) = match kind {
            0 => {
                let (id, seq) = *ends.choose(rng).unwrap();
                (format!("lfc:{id}"), seq)
            }
            1 => {
                let (name, seq) = marks.choose(rng).unwrap();
                (format!("mark:{name}"), seq.0)
            }
            2 => {
                // An instant between two records, or that of a record itself.
                let some = rng.random_range(world.start + 1..world.seq);
                let instant = world.resolve(&format!("seq:{some}")).1 + rng.random_range(0..2_000_000);
                let target = format!("epoch:{}.{:09}", instant / 1_000_000_000, instant % 1_000_000_000);
                let (seq, time) = world.resolve(&target);
                assert!(seq >= some && time <= instant, "{target}: {seq} of {time}");
                if seq < world.seq {
                    let next = world.resolve(&format!("seq:{}", seq + 1)).1;
                    assert!(next > instant, "{target}: {seq}, but the next one is of {next}");
                }
                (target, seq)
            }
            _ => {
                let seq = rng.random_range(world.start..=world.seq);
                (format!("seq:{seq}"), seq)
            }
        };
        kinds[usize::try_from(kind.min(3)).unwrap()] += 1;
        inside += usize::from(world.in_flight(seq).is_some());
        world.check_target(&target, seq);
    }
    println!(
        "{count} points of {} records exact: {} container ends, {} marks, {} instants, {} positions; {inside} within writes in flight",
        world.seq - world.start,
        kinds[0],
        kinds[1],
        kinds[2],
        kinds[3]
    );
}

/// A failover restore stands where a view of the same point stands; an undo brings all back, and applying goes on.
fn restore_and_undo(rng: &mut StdRng, mut world: World<'_>, kept: &mut [(u64, Clients)], seq: u64) {
    let pair = world.pair;
    world.heads.clear();
    pair.drain();
    world.check_files(PROD, world.seq);
    world.check_files(REC, world.seq);
    let target = format!("seq:{seq}");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-F", "--at", &target, "-q"])
        .ok();
    assert_eq!(pair.status(REC)["head"]["context"]["state"], "ROLLED_BACK");
    world.check_files(REC, seq);
    world.check_target("restored", seq);
    // Production's line stays, in full, and so does every open snapshot.
    world.check_target("latest", world.seq);
    for _ in 0..10 {
        let seq = rng.random_range(world.start..=world.seq);
        world.check_target(&format!("seq:{seq}"), seq);
    }
    for (seq, clients) in kept.iter_mut() {
        world.check(*seq, &world.all(), clients);
    }
    // Production comes back: its writes are received, and not applied.
    pair.cli(PROD, &["rtstart", "-C", "1"]).ok();
    world.connect();
    for _ in 0..50 {
        world.one(rng);
    }
    world.settle();
    world.check_target("restored", seq);
    world.check_target("latest", world.seq);
    pair.cli(REC, &["scrt_ra", "-C", "1", "--undo", "-q"]).ok();
    for _ in 0..50 {
        world.one(rng);
    }
    world.batch(rng, 24, 16);
    world.settle();
    for (seq, clients) in kept.iter_mut() {
        world.check(*seq, &world.all(), clients);
    }
    for _ in 0..20 {
        let seq = rng.random_range(world.start..=world.seq);
        world.check_target(&format!("seq:{seq}"), seq);
    }
    world.heads.clear();
    pair.drain();
    world.check_files(PROD, world.seq);
    world.check_files(REC, world.seq);
}

/// How long the command for a snapshot takes, from the prompt to the prompt, and how long it takes to do nothing (`-n`): the
/// middle of several.
fn snapshot_time(rng: &mut StdRng, world: &World<'_>) -> [Duration; 2] {
    // What is still to be applied and written to the disk is not what is measured.
    world.pair.waits(PROD, &format!("applied={}", world.seq));
    run(&mut Command::new("sync"), LONG).ok();
    let mut took: [Vec<Duration>; 2] = Default::default();
    for _ in 0..11 {
        let target = format!("seq:{}", rng.random_range(world.start..=world.seq));
        let command = ["scrt_ra", "-C", "1", "--at", &target, "-n"];
        for (took, args) in took.iter_mut().zip([&command[..5], &command]) {
            let from = Instant::now();
            world.pair.cli(REC, args).ok();
            took.push(from.elapsed());
        }
        world.pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
    }
    took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    })
}

/// Size of the big test in MiB of writes; 2048 is what the project promises to have shown.
const BIG: &str = "BACKSTAY_BIG_MIB";

#[test]
fn points_of_a_large_history() {
    let mib: u64 = std::env::var(BIG).map_or(128, |v| v.parse().unwrap());
    let volumes = [("data", 1 << 30), ("log", 1 << 30), ("index", 1 << 30)];
    let pair = Pair::new(
        "large",
        &Setup {
            context: "lfc_max_age = \"5s\"\nlfc_size = \"16M\"\n",
            ..Setup::volumes(&volumes)
        },
    );
    with_seeds("large", 1, |rng| {
        let hot = |_| {
            let start = rng.random_range(0..900) << 20;
            ByteRange::at(start, 48 << 20)
        };
        let hot = volumes.iter().map(hot).collect();
        let mut world = World::new(&pair, &volumes, hot);
        let from = Instant::now();
        let fill = |rng: &mut StdRng, world: &mut World<'_>, upto: u64| {
            while world.bytes < upto << 20 {
                world.batch(rng, 32, 64);
                if rng.random_range(0..40) == 0 {
                    world.mark(&format!("m{}", world.seq));
                }
            }
            world.settle();
        };
        fill(rng, &mut world, 20);
        let early = snapshot_time(rng, &world);
        fill(rng, &mut world, mib);
        println!(
            "{mib} MiB in {} records written and received in {:?}",
            world.seq - world.start,
            from.elapsed()
        );
        let late = snapshot_time(rng, &world);
        println!("a snapshot and an empty command: {early:?} after 20 MiB, {late:?} after {mib} MiB");
        assert!(
            late[0] < early[0] * 3 + Duration::from_millis(50),
            "a snapshot's time grows: {early:?}, {late:?}"
        );
        let count = if mib >= 2048 { 200 } else { 12 };
        let from = Instant::now();
        for n in 0..count {
            let seq = rng.random_range(world.start..=world.seq);
            let mut clients = world.open(&format!("seq:{seq}"));
            // All that was ever written to, and for some points all that never was as well.
            let mut ranges: Vec<_> = world.oracle.volumes().zip(world.hot.iter().copied()).collect();
            if n % 50 == 0 {
                ranges = world.all();
            } else {
                for volume in world.oracle.volumes() {
                    ranges.extend(world.outside(volume).into_iter().map(|r| (volume, r)));
                }
            }
            world.check(seq, &ranges, &mut clients);
        }
        println!("{count} points exact in {:?}", from.elapsed());
    });
}
