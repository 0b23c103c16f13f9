//! Line 21: what a node costs that does nothing.

use super::Line;
use crate::{
    bench::{Bench, timed},
    common::{PROD, Pair, REC, Setup},
    nodes::{Plan, resident},
    outcome::{Aim::AtMost, Aim::Told, Outcome},
    processors,
    stats::Samples,
    writer::{Places, history, write_all},
};
use model::BLOCK_SIZE;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

pub fn lines() -> Vec<Line> {
    vec![Line {
        number: 21,
        work: "start, memory, idle",
        does: "Start: the recovery node holds eight containers that it may not apply (it is rolled back), is killed, and started until it answers at its sockets. \
                   Memory: resident, of the larger daemon, with 200 volumes of 1 TiB, one hole each; and with many retained records of 512 bytes and 16 \
                   snapshots that are open and were read. Idle: both daemons together with 16 volumes, over ten seconds; a wake-up is a \
                   voluntary context switch of any thread.",
        run: cost,
        bound: "",
    }]
}

fn cost(bench: &Bench) -> Outcome {
    let mut out = Outcome::default();
    start(bench, &mut out);
    many_volumes(&mut out);
    many_records(bench, &mut out);
    idle(&mut out);
    out
}

fn start(bench: &Bench, out: &mut Outcome) {
    let lfc = (bench.scale.volume / 16).clamp(2 << 20, 64 << 20);
    let keys = format!("lfc_size = \"{lfc}\"\nrollback_window = \"24h\"\njournal_limit = \"6G\"\n");
    let volume = bench.scale.volume;
    let nodes = Plan {
        keys: &keys,
        ..Plan::new("start", volume)
    }
    .full();
    let places = Places {
        blocks: volume / BLOCK_SIZE,
        tenths: 10,
    };
    history(&mut nodes.client(), places, lfc, 1);
    nodes.rest();
    let target = format!("seq:{}", nodes.head() - 1);
    nodes
        .pair
        .cli(REC, &["scrt_ra", "-qfC", "1", "-F", "--at", &target])
        .ok();
    history(&mut nodes.client(), places, 8 * lfc, 2);
    nodes.pair.received();
    let mut times = Samples::default();
    for _ in 0..bench.scale.rounds {
        nodes.pair.kill9(REC);
        bench.quiet();
        times.0.push(timed(|| nodes.pair.start(REC)).0);
        nodes.pair.waits(PROD, "drained");
    }
    out.figure(
        &format!("start after a crash, 8 LFCs of {} MiB unapplied", lfc >> 20),
        "–",
        AtMost(5.0),
        " s",
        times,
    );
}

const MIB: f64 = 1048576.0;

/// Two nodes with so many volumes of nothing.
fn hollow(name: &str, count: usize, len: u64) -> Pair {
    let names = (0..count).map(|n| (&*Box::leak(format!("v{n}").into_boxed_str()), len));
    let setup = Setup {
        volumes: names.collect(),
        ..Setup::default()
    };
    let pair = Pair::stopped(&format!("bench-{name}"), &setup);
    pair.start(PROD);
    // Both are one hole.
    pair.cli(PROD, &["map", "clean", "-qC", "1"]).ok();
    pair.start(REC);
    pair.consistent();
    pair
}

fn larger(pair: &Pair) -> f64 {
    let [a, b] = [PROD, REC].map(|node| resident(pair.id(node)) as f64 / MIB);
    a.max(b)
}

fn many_volumes(out: &mut Outcome) {
    let pair = hollow("volumes", 200, 1 << 40);
    let samples = Samples(vec![larger(&pair)]);
    out.figure(
        "memory with 200 volumes of 1 TiB",
        "–",
        AtMost(300.0),
        " MiB",
        samples,
    );
}

fn many_records(bench: &Bench, out: &mut Outcome) {
    let (volume, records) = (bench.scale.volume, bench.scale.records);
    let keys = format!(
        "rollback_window = \"24h\"\njournal_limit = \"{}\"\n",
        records * 8192 + (6 << 30)
    );
    let nodes = Plan {
        keys: &keys,
        ..Plan::new("records", volume)
    }
    .full();
    let first = nodes.head();
    let mut rng = StdRng::seed_from_u64(21);
    let writes = (0..records).map(|n| (rng.random_range(0..volume / 512) * 512, vec![n as u8; 512]));
    write_all(&mut nodes.client(), writes, |_, _| {});
    nodes.rest();
    let mut open = Vec::new();
    for n in 0..16 {
        let seq = first + 1 + records * n / 16;
        let mut client = nodes.pair.open(REC, &format!("c1/data@seq:{seq}"));
        for _ in 0..64 {
            let at = rng.random_range(0..volume / BLOCK_SIZE) * BLOCK_SIZE;
            client.read(at, BLOCK_SIZE).expect("a point can be read");
        }
        open.push(client);
    }
    // The aim is about ten million.
    let aim = match records < 10_000_000 {
        true => Told,
        false => AtMost(512.0),
    };
    let name = format!("memory with {records} records and 16 snapshots");
    out.figure(&name, "–", aim, " MiB", Samples(vec![larger(&nodes.pair)]));
}

/// What a process did since it began to be watched.
struct Watched {
    pid: u32,
    /// Seconds of processors before.
    before: f64,
    /// Voluntary context switches of each thread: before, and when it was last seen.
    switches: BTreeMap<String, [f64; 2]>,
}

impl Watched {
    fn new(pid: u32) -> Self {
        let mut watched = Self {
            pid,
            before: processors::of_process(pid),
            switches: BTreeMap::new(),
        };
        watched.look();
        // What they did before does not count; threads that come later count from nothing.
        watched.switches.values_mut().for_each(|s| s[0] = s[1]);
        watched
    }

    fn look(&mut self) {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the daemon runs");
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            let Some(count) = line.and_then(|n| n.trim().parse().ok()) else {
                continue;
            };
            let name = task.file_name().to_string_lossy().into_owned();
            self.switches.entry(name).or_default()[1] = count;
        }
    }

    fn wake_ups(&self) -> f64 {
        self.switches.values().map(|[before, last]| last - before).sum()
    }

    fn seconds(&self) -> f64 {
        processors::of_process(self.pid) - self.before
    }
}

fn idle(out: &mut Outcome) {
    let pair = hollow("idle", 16, 1 << 30);
    // What a start does is over.
    thread::sleep(Duration::from_secs(5));
    let mut watched = [PROD, REC].map(|node| Watched::new(pair.id(node)));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(250));
        watched.iter_mut().for_each(Watched::look);
    }
    let seconds = began.elapsed().as_secs_f64();
    let wake_ups = watched.iter().map(Watched::wake_ups).sum::<f64>() / seconds;
    let used = watched.iter().map(Watched::seconds).sum::<f64>() / seconds;
    let name = "idle: wake-ups a second of both daemons, 16 volumes";
    out.figure(name, "–", AtMost(10.0), "", Samples(vec![wake_ups]));
    out.series(
        "idle: processor use of both",
        "seconds a second",
        Samples(vec![used]),
    );
}
