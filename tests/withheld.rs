//! Blocks that cannot be read, with the real journal and engine on simulated media, and cuts at any sync: whatever the disk answers
//! and whenever the power goes, no point ever shows bytes that were not there, and what was written whole is there.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use backstay::withheld::Withholding;
use journal::{Journal, NewGeneration, Options, Parts, SUPERBLOCK_BYTES, tail_bytes};
use model::{
    BLOCK_SIZE, BlockNo, ByteRange, GenId, GenNo, LfcId, Ordinal, Payload, Point, Timestamp, VolumeIndex,
    WriteSeq,
    ports::{History, Medium as _, OrdinalKind},
};
use rand::{Rng, RngCore, rngs::StdRng};
use snapshot::{
    ChangeSet, RegionCopy, RegionOffer, UndoPlan, View, Volumes, lacking, overwrite, overwrite_again,
    write_copies,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use testkit::{SimMedium, SimPower, with_seeds, workload::noise};

const V: VolumeIndex = VolumeIndex(0);
/// The last block is a short one.
const SIZE: u64 = 23 * BLOCK_SIZE + 1000;
const BLOCKS: u64 = 24;
const LFC: u64 = 64 << 10;

/// One host that is up.
struct Host {
    journal: Arc<Journal>,
    volumes: Volumes,
    disk: SimMedium,
}

impl Host {
    fn boot(power: &SimPower) -> Self {
        Self::with_volume(power, SIZE)
    }

    fn with_volume(power: &SimPower, size: u64) -> Self {
        let medium = |name: &str, len| Arc::new(power.medium(name, len));
        let parts = Parts::new(
            Arc::new(power.store("db")),
            medium("super", SUPERBLOCK_BYTES),
            [
                medium("tail.0", tail_bytes(LFC)),
                medium("tail.1", tail_bytes(LFC)),
            ],
        );
        let options = Options {
            lfc_size: LFC,
            ..Options::default()
        };
        let (journal, _) = Journal::open(parts, options).unwrap();
        if journal.current_generation().is_none() {
            journal
                .create_generation(NewGeneration::own(GenId(7), None))
                .unwrap();
        }
        let journal = Arc::new(journal);
        let disk = power.medium("volume", size);
        let withholding = Withholding::new(Arc::new(disk.clone()), V, "data", &journal);
        let mut volumes = Volumes::new();
        volumes.insert(V, "data", Arc::new(withholding), size).unwrap();
        Self {
            journal,
            volumes,
            disk,
        }
    }

    fn overwrite(&self, changes: &ChangeSet, again: bool) -> Result<Ordinal, String> {
        let history: &dyn History = &*self.journal;
        let ordinal = if again {
            let ordinal = history.published();
            overwrite_again(&self.volumes, changes, history, ordinal, &mut |_| {})
                .map_err(|e| e.to_string())?;
            ordinal
        } else {
            let ordinal = history.published().next();
            let undo = UndoPlan {
                history,
                ordinal,
                kind: OrdinalKind::Copies,
                images: None,
            };
            overwrite(&self.volumes, changes, Some(undo), &mut |_| {}).map_err(|e| e.to_string())?;
            ordinal
        };
        self.journal
            .set_applied_local(ordinal)
            .map_err(|e| e.to_string())?;
        Ok(ordinal)
    }

    /// A block as of an ordinal.
    fn read(&self, base: Ordinal, block: u64) -> Option<Vec<u8>> {
        let point = Point {
            generation: GenNo(1),
            seq: WriteSeq(0),
            lfc: LfcId(0),
            time: Timestamp(0),
            base,
            redo: Vec::new(),
        };
        let history = Arc::clone(&self.journal) as Arc<dyn History>;
        let view = View::new(point, self.volumes.sizes(), self.volumes.clone(), history).unwrap();
        let start = block * BLOCK_SIZE;
        let len = self.disk.len().saturating_sub(start).min(BLOCK_SIZE);
        let mut buf = vec![0; len as usize];
        view.read(V, start, &mut buf).ok().map(|()| buf)
    }
}

fn range_of(block: u64) -> ByteRange {
    ByteRange {
        start: block * BLOCK_SIZE,
        end: ((block + 1) * BLOCK_SIZE).min(SIZE),
    }
}

fn part(bytes: &[u8], block: u64) -> &[u8] {
    let range = range_of(block);
    &bytes[range.start as usize..range.end as usize]
}

/// Some writes, of blocks, of parts of them and of bytes across their edges, and zeroes.
fn writes(rng: &mut StdRng) -> Vec<(ByteRange, Payload)> {
    let one = |rng: &mut StdRng| {
        let block = rng.random_range(0..BLOCKS);
        let range = match rng.random_range(0..3) {
            0 => range_of(block),
            1 => ByteRange {
                start: block * BLOCK_SIZE,
                end: (block * BLOCK_SIZE + rng.random_range(1..4) * BLOCK_SIZE).min(SIZE),
            },
            _ => {
                let start = rng.random_range(0..SIZE - 1);
                ByteRange {
                    start,
                    end: (start + rng.random_range(1..6000)).min(SIZE),
                }
            }
        };
        let payload = match rng.random_bool(0.2) {
            true => Payload::Zero,
            false => Payload::Data(noise(range.len(), rng)),
        };
        (range, payload)
    };
    (0..rng.random_range(1..6)).map(|_| one(rng)).collect()
}

/// What should be there, had no disk ever failed, and what may be asked for.
struct Book {
    states: BTreeMap<Ordinal, Vec<u8>>,
    /// Blocks that could not be read when a part of them was written, and were not written whole since.
    unknown: BTreeSet<u64>,
    /// Blocks whose bytes some point needs and nobody knows any more.
    lost: BTreeSet<u64>,
}

impl Book {
    /// No point shows other bytes; what nobody lost is there.
    fn check(&self, host: &Host, why: &str) {
        let newest = host.journal.published();
        let spoiled = host.disk.spoiled();
        for (base, bytes) in &self.states {
            for block in 0..BLOCKS {
                match host.read(*base, block) {
                    Some(read) => {
                        assert!(read == part(bytes, block), "{why}: block {block} at {base}");
                        let withheld = *base == newest && self.unknown.contains(&block);
                        assert!(!withheld, "{why}: block {block} is known again");
                    }
                    None => {
                        let fails = spoiled.contains(&BlockNo(block)) || self.unknown.contains(&block);
                        let excused = fails || (*base < newest && self.lost.contains(&block));
                        assert!(excused, "{why}: block {block} at {base} cannot be read");
                    }
                }
            }
        }
    }
}

fn history(rng: &mut StdRng) -> [usize; 4] {
    let power = SimPower::new();
    let mut host = Host::boot(&power);
    // A disk on which nearly nothing stands is soon one that gives nothing.
    let mut now = noise(SIZE, rng).to_vec();
    let mut first = ChangeSet::new();
    let bytes = Payload::Data(now.clone().into());
    first.put(V, ByteRange::at(0, SIZE), WriteSeq(0), bytes);
    host.overwrite(&first, false).unwrap();
    let mut book = Book {
        states: [(Ordinal(0), vec![0; SIZE as usize]), (Ordinal(1), now.clone())].into(),
        unknown: BTreeSet::new(),
        lost: BTreeSet::new(),
    };
    let [mut cuts, mut repeated, mut gave_up, mut mended] = [0; 4];
    for step in 0..14 {
        let why = format!("step {step}");
        if rng.random_bool(0.25) {
            host.disk.unspoil();
        }
        for _ in 0..rng.random_range(0..3) {
            host.disk.spoil(BlockNo(rng.random_range(0..BLOCKS)));
        }
        book.check(&host, &format!("{why}, before"));
        let writes = writes(rng);
        let mut changes = ChangeSet::new();
        for (range, payload) in &writes {
            changes.put(V, *range, WriteSeq(0), payload.clone());
        }
        let mut after = now.clone();
        let mut covered = BTreeMap::<u64, u64>::new();
        for run in changes.runs() {
            let (start, end) = (run.range.start as usize, run.range.end as usize);
            run.payload.copy_to(0, &mut after[start..end]);
            for block in run.range.blocks() {
                let part = run.range.intersect(range_of(block.0)).unwrap();
                *covered.entry(block.0).or_default() += part.len();
            }
        }
        let fails: BTreeSet<u64> = host.disk.spoiled().into_iter().map(|b| b.0).collect();
        let runs: Vec<_> = changes.runs().collect();
        for block in covered.keys() {
            if !fails.contains(block) && !book.unknown.contains(block) {
                continue;
            }
            gave_up += 1;
            book.lost.insert(*block);
            // Two writes that meet in a block do not make it whole: each is one for the disk.
            let whole = range_of(*block);
            if runs.iter().any(|r| r.range.intersect(whole) == Some(whole)) {
                mended += 1;
                book.unknown.remove(block);
            } else {
                book.unknown.insert(*block);
            }
        }
        if rng.random_bool(0.5) {
            power.freeze_at(rng.random_range(1..9));
        }
        let mut done = host.overwrite(&changes, false);
        power.never_freeze();
        if done.is_err() {
            assert!(power.is_off(), "{why}: {done:?}");
            cuts += 1;
            power.cut(rng as &mut dyn RngCore);
            // What failed when it was to be overwritten may be read now.
            if rng.random_bool(0.5) {
                host.disk.unspoil();
            }
            host = Host::boot(&power);
            let again = host.journal.published() > host.journal.cursors().applied_ordinal;
            let is_done = book.states.keys().next_back() < Some(&host.journal.cursors().applied_ordinal);
            repeated += usize::from(again);
            if !is_done {
                done = host.overwrite(&changes, again);
                // Nothing was given up yet, and it is read now: it is not given up at all.
                if !again {
                    for block in covered.keys() {
                        if host.journal.withheld(V).contains(&BlockNo(*block)) {
                            book.unknown.insert(*block);
                        } else {
                            book.unknown.remove(block);
                        }
                    }
                }
            } else {
                done = Ok(host.journal.published());
            }
        }
        let ordinal = done.unwrap_or_else(|e| panic!("{why}: {e}"));
        now = after;
        book.states.insert(ordinal, now.clone());
        book.check(&host, &why);
    }
    // Everything is written whole, by whatever means, and all is well.
    let mut changes = ChangeSet::new();
    let all = noise(SIZE, rng);
    changes.put(V, ByteRange::at(0, SIZE), WriteSeq(0), Payload::Data(all.clone()));
    let ordinal = host.overwrite(&changes, false).unwrap();
    book.unknown.clear();
    book.lost.extend(0..BLOCKS);
    book.states.insert(ordinal, all.to_vec());
    book.check(&host, "in the end");
    assert!(host.journal.withheld(V).is_empty());
    let host = Host::boot(&power);
    assert!(host.journal.withheld(V).is_empty());
    book.check(&host, "after a start");
    [cuts, repeated, gave_up, mended]
}

/// Random histories of spoiled blocks and cuts.
#[test]
fn w7_what_could_not_be_read_is_never_shown_again() {
    let mut all = [0; 4];
    with_seeds("withheld", 300, |rng| {
        for (sum, n) in all.iter_mut().zip(history(rng)) {
            *sum += n;
        }
    });
    let [cuts, repeated, gave_up, mended] = all;
    println!(
        "{cuts} cuts, {repeated} overwrites repeated, {gave_up} blocks given up, {mended} written whole"
    );
    assert!(all.iter().all(|n| *n > 0));
}

/// A storage that gives nothing any more is not taken for one of which some blocks rotted, and neither is one that does not sync.
#[test]
fn w7_a_disk_that_is_gone_is_no_rot() {
    let power = SimPower::new();
    let host = Host::boot(&power);
    let mut changes = ChangeSet::new();
    let bytes = vec![7; SIZE as usize];
    changes.put(
        V,
        ByteRange::at(0, SIZE),
        WriteSeq(0),
        Payload::Data(bytes.into()),
    );
    host.overwrite(&changes, false).unwrap();
    let mut few = ChangeSet::new();
    few.put(V, range_of(3), WriteSeq(0), Payload::Zero);
    let refused = |why: &str| {
        let published = host.journal.published();
        let e = host.overwrite(&few, false).unwrap_err();
        assert!(e.contains("volume data: read at 12288"), "{why}: {e}");
        assert_eq!(host.journal.published(), published, "{why}");
        assert!(host.journal.withheld(V).is_empty(), "{why}");
    };
    (0..BLOCKS).for_each(|block| host.disk.spoil(BlockNo(block)));
    refused("nothing can be read");
    host.disk.unspoil();
    host.disk.spoil(BlockNo(3));
    host.disk.fail(testkit::sim::Op::Sync, 1);
    refused("it does not sync");
    host.overwrite(&few, false).unwrap();
    assert!(host.journal.withheld(V).is_empty(), "it was written whole");
    assert_eq!(host.read(Ordinal(1), 3), None, "what was there is not known");
    assert_eq!(host.read(Ordinal(2), 3), Some(vec![0; BLOCK_SIZE as usize]));
}

/// Before-images are read in batches. What cannot be read is judged as a whole all the same: a leg of a disk that is gone is no rot,
/// however few of its blocks are in one batch, and a stretch is rot though there is nothing else on the disk.
#[test]
fn w7_what_cannot_be_read_is_judged_as_a_whole() {
    const MANY: u64 = 20_000;
    let whole = |blocks: std::ops::Range<u64>| {
        let mut changes = ChangeSet::new();
        let range = ByteRange {
            start: blocks.start * BLOCK_SIZE,
            end: blocks.end * BLOCK_SIZE,
        };
        changes.put(V, range, WriteSeq(0), Payload::Zero);
        changes
    };
    let (power, bytes) = (SimPower::new(), vec![7; (MANY * BLOCK_SIZE) as usize]);
    let host = Host::with_volume(&power, MANY * BLOCK_SIZE);
    host.disk.write_at(0, &bytes).unwrap();
    (2_000..19_000).for_each(|block| host.disk.spoil(BlockNo(block)));
    let e = host.overwrite(&whole(0..MANY), false).unwrap_err();
    assert!(e.contains("volume data: read at 8192000"), "{e}");
    assert!(host.journal.withheld(V).is_empty());
    assert_eq!(host.journal.published(), Ordinal(0));
    host.disk.unspoil();
    assert_eq!(host.read(Ordinal(0), 2_000), Some(vec![7; BLOCK_SIZE as usize]));

    let power = SimPower::new();
    let host = Host::with_volume(&power, MANY * BLOCK_SIZE);
    let bytes = vec![7; (3_000 * BLOCK_SIZE) as usize];
    host.disk.write_at(1_000 * BLOCK_SIZE, &bytes).unwrap();
    (1_000..4_000).for_each(|block| host.disk.spoil(BlockNo(block)));
    host.overwrite(&whole(0..MANY), false).unwrap();
    for block in [999, 1_000, 3_999, 4_000] {
        let known = host.read(Ordinal(0), block);
        assert_eq!(known.is_none(), (1_000..4_000).contains(&block), "block {block}");
        assert_eq!(host.read(Ordinal(1), block), Some(vec![0; BLOCK_SIZE as usize]));
    }
    assert!(host.journal.withheld(V).is_empty(), "all was written whole");
}

/// A part that is written to a withheld block is left out, around it nothing is; a hole is none where something is withheld.
#[test]
fn w7_a_part_of_a_withheld_block_is_left_out() {
    let power = SimPower::new();
    let host = Host::boot(&power);
    let medium = Arc::clone(host.volumes.get(V).unwrap().medium());
    medium.write_at(0, &vec![1; SIZE as usize]).unwrap();
    medium.withhold(&[range_of(4), range_of(BLOCKS - 1)]).unwrap();
    medium.write_at(4 * BLOCK_SIZE - 10, &[2; 20]).unwrap();
    medium.write_at(5 * BLOCK_SIZE - 10, &[3; 20]).unwrap();
    medium.write_at(SIZE - 10, &[4; 10]).unwrap();
    let disk = |at, len| host.disk.live(ByteRange::at(at, len));
    assert_eq!(disk(4 * BLOCK_SIZE - 10, 20), [[2; 10], [1; 10]].concat());
    assert_eq!(disk(5 * BLOCK_SIZE - 10, 20), [[1; 10], [3; 10]].concat());
    assert_eq!(disk(SIZE - 10, 10), [1; 10]);
    for block in 0..BLOCKS {
        let mut byte = [0];
        let read = medium.read_at(range_of(block).end - 1, &mut byte);
        assert_eq!(read.is_err(), [4, BLOCKS - 1].contains(&block), "block {block}");
    }
    assert!(medium.read_at(0, &mut vec![0; SIZE as usize]).is_err());
    let (mut fine, mut withheld) = ([0], [0]);
    let mut both = [
        (range_of(7).start, &mut fine[..]),
        (range_of(4).start, &mut withheld[..]),
    ];
    assert!(model::ports::is_unreadable(
        &medium.read_each(&mut both).unwrap_err()
    ));
    host.disk.write_zeroes(4 * BLOCK_SIZE, BLOCK_SIZE).unwrap();
    assert_eq!(
        medium.next_data(4 * BLOCK_SIZE).unwrap().unwrap().start,
        4 * BLOCK_SIZE
    );
    // Written whole it is there at once; durably only behind a sync.
    medium.write_zeroes(3 * BLOCK_SIZE, 2 * BLOCK_SIZE).unwrap();
    medium.read_at(4 * BLOCK_SIZE, &mut [0; 4096]).unwrap();
    assert_eq!(host.journal.withheld(V).len(), 2);
    medium.sync().unwrap();
    assert_eq!(host.journal.withheld(V), [BlockNo(BLOCKS - 1)].into());
    medium.write_at(range_of(BLOCKS - 1).start, &[5; 1000]).unwrap();
    medium.sync().unwrap();
    assert!(host.journal.withheld(V).is_empty());
    medium.read_at(0, &mut vec![0; SIZE as usize]).unwrap();
}

/// A copy writes what cannot be read, and an offer of it is not equal, also where nothing but zeroes is to be there.
#[test]
fn w7_a_copy_rewrites_what_cannot_be_read() {
    let power = SimPower::new();
    let host = Host::boot(&power);
    let medium = Arc::clone(host.volumes.get(V).unwrap().medium());
    medium.write_at(BLOCK_SIZE, &[1; 8192]).unwrap();
    medium.write_at(0, &[0; 4096]).unwrap();
    medium.sync().unwrap();
    host.disk.spoil(BlockNo(0));
    let digest = |bytes: &[u8]| blake3::hash(bytes).into();
    let bytes = [vec![0; 4096], vec![1; 8192]].concat();
    let range = ByteRange::at(0, bytes.len() as u64);
    let hint = |n: usize| snapshot::piece_digest(&digest(&bytes[n * 4096..(n + 1) * 4096]));
    let offer = |piece| RegionOffer {
        seq: WriteSeq(1),
        volume: V,
        range,
        digest: digest(&bytes),
        piece,
        pieces: if piece == 0 {
            vec![]
        } else {
            (0..3).map(hint).collect()
        },
    };
    assert_eq!(lacking(&host.volumes, &offer(0), &digest).unwrap(), [range]);
    let lacks = lacking(&host.volumes, &offer(BLOCK_SIZE), &digest).unwrap();
    assert_eq!(lacks, [ByteRange::at(0, BLOCK_SIZE)]);
    let copy = RegionCopy {
        seq: WriteSeq(2),
        volume: V,
        range,
        payload: Payload::Data(bytes.clone().into()),
    };
    let ordinal = write_copies(&host.volumes, &[copy], Some(&*host.journal)).unwrap();
    host.journal.set_applied_local(ordinal.unwrap()).unwrap();
    assert!(host.disk.spoiled().is_empty() && host.journal.withheld(V).is_empty());
    assert!(
        lacking(&host.volumes, &offer(BLOCK_SIZE), &digest)
            .unwrap()
            .is_empty()
    );
    assert_eq!(host.read(Ordinal(0), 0), None, "nobody knows what was there");
    assert_eq!(host.read(Ordinal(0), 1), Some(vec![1; 4096]));
    assert_eq!(host.read(Ordinal(1), 0), Some(vec![0; 4096]));
}
