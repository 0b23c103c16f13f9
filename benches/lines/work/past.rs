//! Lines 11 to 13: snapshots, and how fast the past is read and written.

use super::Line;
use crate::{
    bench::{Bench, each, timed, write_noise},
    common::{LONG, REC, number},
    fio::{Amount, Job},
    nodes::{Nodes, Plan, done},
    outcome::{Aim::AtLeast, Aim::AtMost, Outcome},
    peers::Peer,
    stats::Samples,
    writer::{Places, history},
};
use model::BLOCK_SIZE;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
};
use testkit::proc::{need_tool, run};

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            number: 11,
            work: "snapshot: from the command to the first byte read",
            does: "`scrt_ra --seq` at a random record of the window on the recovery node, then an NBD client that opens the \
                   snapshot and reads 4 KiB. Against `btrfs subvolume snapshot -r`, then open and read, on a loop file system \
                   with a file of the volume's size of which a tenth was overwritten; it holds no history. Nine \
                   times, and each snapshot is released again.",
            run: snapshots,
            bound: "",
        },
        Line {
            number: 12,
            work: "4 KiB random read, depth 16, from a point in the past, 30 % of blocks changed since",
            does: "fio on the export `c1/data@seq:N` of the recovery node; the history overwrites three of each ten blocks, at random.",
            run: reads,
            bound: "",
        },
        Line {
            number: 13,
            work: "4 KiB random write, depth 16, into a vdev",
            does: "fio writes every block of a snapshot's vdev once and flushes; each round takes a new snapshot. nbdkit's cow \
                   filter keeps what is written in a temporary file.",
            run: vdev,
            bound: "",
        },
    ]
}

/// Two nodes with a history.
pub struct Past {
    nodes: Nodes,
    places: Places,
    /// The bytes that it is to have, one after the other.
    sizes: [u64; 3],
    /// Bytes that it had, and the newest record then.
    stages: BTreeMap<u64, u64>,
    /// What must be known of it.
    remarks: Vec<String>,
}

impl Past {
    /// Without history yet. Its sizes are those that the disk has room for: redo and undo on the recovery node, and some more.
    fn new(bench: &Bench) -> Self {
        let volume = bench.scale.volume;
        let free = media::free_bytes(bench.scratch.path()).expect("the disk says what is free");
        let most = (free / 3).saturating_sub(2 * volume);
        let wanted = bench.scale.history;
        let sizes = wanted.map(|n| n.min(most));
        let mib = |bytes: [u64; 3]| bytes.map(|n| (n >> 20).to_string()).join(" / ");
        let mut remarks = vec![format!(
            "history: {} MiB, on a volume of {} MiB",
            mib(sizes),
            volume >> 20
        )];
        if sizes != wanted {
            remarks.push(format!(
                "instead of {} MiB: the disk had {} MiB free",
                mib(wanted),
                free >> 20
            ));
        }
        // Redo and undo of all of it are kept.
        let limit = 4 * sizes[2] + (4 << 30);
        let keys = format!("rollback_window = \"24h\"\njournal_limit = \"{limit}\"\n");
        let nodes = Plan {
            keys: &keys,
            ..Plan::new("past", volume)
        }
        .full();
        let stages = BTreeMap::from([(0, nodes.head())]);
        Self {
            nodes,
            places: Places {
                blocks: volume / BLOCK_SIZE,
                tenths: 3,
            },
            sizes,
            stages,
            remarks,
        }
    }

    /// Bytes between the point that is near and the end.
    fn near(&self) -> u64 {
        self.sizes[1].min(self.sizes[2] - self.sizes[0])
    }

    /// Where it began.
    fn first(&self) -> u64 {
        self.stages[&0]
    }

    /// Writes on until there are so many bytes of it.
    fn grow(&mut self, bytes: u64) {
        let (last, _) = self.stages.last_key_value().expect("it began");
        let (last, more) = (*last, bytes.saturating_sub(*last));
        if more == 0 {
            return;
        }
        history(&mut self.nodes.client(), self.places, more, 1 + last);
        self.nodes.rest();
        self.stages.insert(last + more, self.nodes.head());
    }
}

const SNAPSHOTS: usize = 9;

/// A btrfs on a loop device, with a file of the volume's size in a subvolume.
struct Btrfs(PathBuf);

impl Btrfs {
    fn new(bench: &Bench) -> Self {
        let volume = bench.scale.volume;
        let image = bench.scratch.image("btrfs", 3 * volume + (512 << 20));
        let at = bench.scratch.folder("btrfs.mnt");
        run(Command::new(need_tool("mkfs.btrfs")).arg("-q").arg(&image), LONG).ok();
        run(
            Command::new("mount").args(["-o", "loop"]).args([&image, &at]),
            LONG,
        )
        .ok();
        let btrfs = Self(at);
        btrfs.run(&["subvolume", "create", "data"]);
        let path = btrfs.0.join("data/file");
        write_noise(&path, volume, 3);
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("it was written");
        let mut rng = StdRng::seed_from_u64(4);
        for _ in 0..volume / BLOCK_SIZE / 10 {
            let at = rng.random_range(0..volume / BLOCK_SIZE) * BLOCK_SIZE;
            file.write_all_at(&[5; 4096], at).expect("it can be written");
        }
        file.sync_all().expect("it can be synced");
        btrfs
    }

    fn run(&self, args: &[&str]) {
        done(Command::new(need_tool("btrfs")).args(args).current_dir(&self.0));
    }

    /// Milliseconds to the first byte.
    fn snapshot(&self, rng: &mut StdRng, volume: u64) -> f64 {
        let (seconds, ()) = timed(|| {
            self.run(&["subvolume", "snapshot", "-r", "data", "snap"]);
            let file = File::open(self.0.join("snap/file")).expect("the snapshot has it");
            let at = rng.random_range(0..volume / BLOCK_SIZE) * BLOCK_SIZE;
            file.read_exact_at(&mut [0; 4096], at).expect("it can be read");
        });
        self.run(&["subvolume", "delete", "snap"]);
        self.run(&["filesystem", "sync", "."]);
        seconds * 1e3
    }
}

fn snapshots(bench: &Bench) -> Outcome {
    let mut out = Outcome::default();
    let btrfs = Btrfs::new(bench);
    let mut past = Past::new(bench);
    let sizes = past.sizes;
    out.remarks.clone_from(&past.remarks);
    let mut rng = StdRng::seed_from_u64(11);
    let volume = bench.scale.volume;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for bytes in sizes {
        // Line 12 reads the point that is there then.
        past.grow(bytes.min(sizes[2] - past.near()));
        past.grow(bytes);
        bench.quiet();
        let (mut here, mut there) = (Samples::default(), Samples::default());
        for _ in 0..SNAPSHOTS {
            let seq = rng.random_range(past.first()..=past.nodes.head());
            here.0.push(snapshot(&past.nodes, seq, &mut rng, volume));
            past.nodes.release_all();
            there.0.push(btrfs.snapshot(&mut rng, volume));
        }
        out.ratio(
            &format!("after {} MiB of history", bytes >> 20),
            "btrfs subvolume snapshot",
            AtMost(2.0),
            here.over(&there),
        );
        (ours, theirs) = ([ours, vec![here]].concat(), [theirs, vec![there]].concat());
    }
    let growth = ours[2].over(&ours[0]);
    out.ratio("the longest history", "the shortest", AtMost(1.2), growth);
    for ((bytes, here), there) in sizes.iter().zip(ours).zip(theirs) {
        out.series(&format!("ours after {} MiB", bytes >> 20), "ms", here);
        out.series(&format!("btrfs beside it ({} MiB)", bytes >> 20), "ms", there);
    }
    *bench.past.borrow_mut() = Some(past);
    out
}

/// Milliseconds from the command to the first byte.
fn snapshot(nodes: &Nodes, seq: u64, rng: &mut StdRng, volume: u64) -> f64 {
    let offset = rng.random_range(0..volume / BLOCK_SIZE) * BLOCK_SIZE;
    let (seconds, ()) = timed(|| {
        let level = level_at(nodes, &format!("seq:{seq}"));
        let mut client = nodes.pair.open(REC, &format!("c1/rsn{level}/data"));
        client.read(offset, BLOCK_SIZE).expect("the snapshot can be read");
    });
    seconds * 1e3
}

fn level_at(nodes: &Nodes, target: &str) -> u64 {
    let made = nodes.on_recovery(&["scrt_ra", "-C", "1", "--at", target, "--json"]);
    let last = made.lines().last().unwrap_or_default();
    let made: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{made}: {e}"));
    number(&made["reply"]["snapshot"]["level"])
}

fn reads(bench: &Bench) -> Outcome {
    let mut out = Outcome::default();
    let left = bench.past.borrow_mut().take();
    let past = left.unwrap_or_else(|| {
        let mut past = Past::new(bench);
        let far = past.sizes[2];
        past.grow(far - past.near());
        past.grow(far);
        past
    });
    out.remarks.clone_from(&past.remarks);
    let (near, far) = (past.near(), past.sizes[2]);
    let mark = past.stages[&(far - near)];
    let points = [mark, past.first()].map(|seq| past.nodes.pair.uri(REC, &format!("c1/data@seq:{seq}")));
    let volume = bench.scale.volume;
    let job = Job::new("randread", 4096, 16, volume, Amount::Seconds(bench.scale.seconds));
    let runs = bench.rounds(bench.scale.rounds, 3, |who, round| {
        let job = job.seeded(round);
        match points.get(who) {
            Some(uri) => job.run(&bench.scratch, uri).iops,
            None => {
                let serving = Peer::Nbdkit.start(bench, &bench.image(volume));
                job.run(&bench.scratch, &serving.uri).iops
            }
        }
    });
    let iops = |who: usize| each(&runs[who], |r| *r);
    out.ran(&job);
    let names = [near, far].map(|n| format!("{} MiB back", n >> 20));
    out.ratio(&names[0], "nbdkit file", AtLeast(0.7), iops(0).over(&iops(2)));
    out.ratio(&names[1], "nbdkit file", AtLeast(0.7), iops(1).over(&iops(2)));
    out.ratio(&names[1], &names[0], AtLeast(0.85), iops(1).over(&iops(0)));
    for (name, who) in [names[0].as_str(), &names[1], "nbdkit file"].iter().zip(0..) {
        out.series(name, "IOPS", iops(who));
    }
    out
}

fn vdev(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let mut past = Past::new(bench);
    past.grow(past.sizes[0]);
    let job = Job::new("randwrite", 4096, 16, volume, Amount::Bytes(volume));
    let runs = bench.rounds(bench.scale.rounds, 2, |who, round| {
        let job = job.seeded(round);
        if who == 1 {
            let serving = Peer::NbdkitCow.start(bench, &bench.image(volume));
            return job.run(&bench.scratch, &serving.uri).iops;
        }
        let level = level_at(&past.nodes, &format!("seq:{}", past.first()));
        let ran = job.run(
            &bench.scratch,
            &past.nodes.pair.uri(REC, &format!("c1/sn{level}/data")),
        );
        past.nodes.release_all();
        ran.iops
    });
    let iops = |who: usize| each(&runs[who], |r| *r);
    let mut out = Outcome::default();
    out.ran(&job);
    out.ratio("", "nbdkit cow", AtLeast(1.0), iops(0).over(&iops(1)));
    out.series("vdev", "IOPS", iops(0));
    out.series("nbdkit cow", "IOPS", iops(1));
    out
}
