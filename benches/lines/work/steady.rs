//! Lines 10, 18, 22 and 23: the full path for long, and beside other work.

use super::Line;
use crate::{
    bench::{Bench, each, write_noise},
    common::{LONG, PROD, REC, number},
    fio::{Amount, Job},
    machine,
    nodes::{Nodes, Plan, done},
    outcome::{Aim::AtLeast, Aim::AtMost, Aim::Told, Curve, Outcome},
    processors::Processors,
    stats::Samples,
};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use testkit::proc::{Scratch, need_tool};

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            number: 10,
            work: "the full path for long",
            does: "4 KiB random writes at depth 16 over and over. `first`: the first tenth of the time. Memory: both daemons in the \
                   last tenth over the second. Stall: the longest wait of any write. Behind: what the replica had not applied, at most, in \
                   containers of 64 MiB, asked every second.",
            run: long,
            bound: "The processors, by a profile of the first minutes at 26,000 writes a second: both are busy all the time. fio and production take 1.1 of them (NBD and \
                journal 0.22, write-back 0.30, sync and seal 0.14, link 0.09), the recovery node 0.8 (receive and link 0.2, apply 0.38, the store's work on its indexes 0.21). \
                So 1.6 containers a second come and 0.65 are applied. Nothing waits for the replica, and the journal's limit bounds what it owes.",
        },
        Line {
            number: 18,
            work: "bytes written to disk for each byte written",
            does: "Each node on a loop file system of its own; sectors written there (`/sys/block/loop*/stat`), file system and all, over bytes that fio \
                   wrote at random in 4 KiB, as fast as it goes, and once more at half that rate. The journal's limit is half of what is written, so that retention works. \
                   Counted until all is at rest and synced.",
            run: amplification,
            bound: "With its peer, production keeps a container until the replica has *applied* it (rule T8), and decides when the next one is half full. At full speed the replica is a container \
                or two behind, so each is written a third time, into the store; at half the speed it never is. More than two tails would put the decision off.",
        },
        Line {
            number: 22,
            work: "line 2 while verify, retention and a first sync of another context run",
            does: "`backstay verify` over and over, a new context whose volume of noise is copied, and a journal at its limit, so that each container \
                   frees another; against the same nodes without the first two.",
            run: busy,
            bound: "",
        },
        Line {
            number: 23,
            work: "line 2 on an acting production that holds earlier points",
            does: "Line 2, then failover and resync, then line 2 the other way round: the acting production builds undo, for it holds the points of the \
                   time when it was the replica.",
            run: acting,
            bound: "",
        },
    ]
}

/// Containers by default.
const LFC: f64 = 64.0 * 1024.0 * 1024.0;

const MIB: f64 = 1048576.0;

fn long(bench: &Bench) -> Outcome {
    let (volume, seconds) = (bench.scale.volume, bench.scale.long_seconds);
    let nodes = Plan::new("long", volume).full();
    let job = Job::new("randwrite", 4096, 16, volume, Amount::Seconds(seconds));
    bench.quiet();
    let output = bench.scratch.join("long.json");
    let log = bench.scratch.join("long");
    let mut fio = job.command(&nodes.uri(), &output);
    fio.arg(format!("--write_iops_log={}", log.display()))
        .arg("--log_avg_msec=1000");
    let running = bench.scratch.start("long", &mut fio);
    let began = Instant::now();
    let (mut memory, mut behind) = ([Vec::new(), Vec::new()], Vec::new());
    let mut busy = Processors::default();
    busy.during(&nodes, || {
        while running.ended().is_none() {
            let at = began.elapsed().as_secs_f64();
            let [here, there] = [PROD, REC].map(|node| nodes.pair.status(node));
            for (memory, bytes) in memory.iter_mut().zip(nodes.memory()) {
                memory.push((at, bytes as f64 / MIB));
            }
            let backlog = number(&here["backlog_bytes"]) + number(&there["backlog_bytes"]);
            behind.push((at, backlog as f64 / LFC));
            thread::sleep(Duration::from_millis(if seconds > 60 { 1000 } else { 200 }));
        }
    });
    assert_eq!(running.wait(LONG), 0, "{}", running.log());
    let ran = job.read(&output);
    let tenth = seconds as f64 / 10.0;
    let points = iops_log(&bench.scratch.join("long_iops.1.log"));
    let mean = |points: &[(f64, f64)]| points.iter().map(|p| p.1).sum::<f64>() / points.len().max(1) as f64;
    let begin: Vec<_> = points.iter().copied().filter(|p| p.0 <= tenth.max(2.0)).collect();
    let both: Vec<_> = memory[0]
        .iter()
        .zip(&memory[1])
        .map(|(a, b)| (a.0, a.1 + b.1))
        .collect();
    let in_tenth = |n: f64| {
        let of_tenth = |m: &&(f64, f64)| (tenth * (n - 1.0)..=tenth * n + 1.0).contains(&m.0);
        mean(&both.iter().filter(of_tenth).copied().collect::<Vec<_>>())
    };
    let most = |points: &[(f64, f64)]| points.iter().map(|p| p.1).fold(0.0, f64::max);
    let one = |figure: f64| Samples(vec![figure]);
    let mut out = Outcome::default();
    out.ran(&job);
    out.ratio(
        "all of it",
        "its first tenth",
        AtLeast(0.9),
        one(mean(&points) / mean(&begin)),
    );
    out.figure(
        "the longest stall",
        "–",
        AtMost(100.0),
        " ms",
        one(ran.longest_us / 1e3),
    );
    out.ratio(
        "memory in its last tenth",
        "in its second",
        AtMost(1.1),
        one(in_tenth(10.0) / in_tenth(2.0)),
    );
    out.figure(
        "the replica behind",
        "–",
        AtMost(2.0),
        " LFCs",
        one(most(&behind)),
    );
    out.series("mean", "IOPS", one(mean(&points)));
    out.series("memory of both daemons, at most", "MiB", one(most(&both)));
    busy.tell("full path", &mut out);
    let [production, recovery] = memory;
    let curves = [
        ("4 KiB random writes", "IOPS", points),
        ("memory of production", "MiB", production),
        ("memory of the recovery node", "MiB", recovery),
        ("containers that the replica has not applied", "LFCs", behind),
    ];
    for (what, unit, points) in curves {
        out.curves.push(Curve {
            title: format!("Full path for {seconds} s: {what}"),
            unit,
            points,
        });
    }
    out
}

/// (seconds, IOPS) of each second.
fn iops_log(path: &Path) -> Vec<(f64, f64)> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let point = |line: &str| {
        let mut fields = line.split(", ");
        let milliseconds: f64 = fields.next()?.parse().ok()?;
        Some((milliseconds / 1e3, fields.next()?.parse().ok()?))
    };
    text.lines().filter_map(point).collect()
}

/// Makes a file system on a loop device and mounts it; it goes with the scratch that it lies in.
fn mount_disk(image: &Path, at: &Path, len: u64) {
    let file = fs::File::create(image).expect("an image can be made");
    file.set_len(len).expect("it can be long");
    done(
        Command::new(need_tool("mkfs.ext4"))
            .args(["-q", "-F", "-E", "lazy_itable_init=0"])
            .arg(image),
    );
    fs::create_dir_all(at).expect("a folder can be made");
    done(Command::new("mount").args(["-o", "loop"]).args([image, at]));
}

/// Bytes written to the disk below a folder so far, all that its file system holds included.
fn written_synced(at: &Path) -> u64 {
    let folder = fs::File::open(at).expect("it is mounted");
    rustix::fs::syncfs(&folder).expect("it can be synced");
    machine::written(at)
}

fn amplification(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let lfc = (volume / 16).clamp(2 << 20, 64 << 20);
    let keys = format!(
        "lfc_size = \"{lfc}\"\njournal_limit = \"{0}\"\nrollback_window = \"{0}\"\n",
        volume / 2
    );
    let run = |both: bool| {
        let scratch = Scratch::new("bench-disks");
        let disks = [PROD, REC].map(|node| {
            let image = bench.scratch.join(format!("disk-{node}"));
            let at = scratch.join(format!("state/{node}"));
            mount_disk(&image, &at, 4 * volume + (1 << 30));
            at
        });
        let image = scratch.join(format!("state/{PROD}/volume"));
        write_noise(&image, volume, 7);
        let mut nodes = Plan {
            keys: &keys,
            image: Some(&image),
            ..Plan::new("disks", volume)
        }
        .stopped_in(scratch);
        if both {
            nodes.start_recovery();
        }
        nodes.pair.start(PROD);
        if both {
            nodes.wait_consistent();
        }
        let mut job = Job::new("randwrite", 4096, 16, volume, Amount::Bytes(volume));
        // Until retention works.
        let iops = job.run(&bench.scratch, &nodes.uri()).iops;
        nodes.rest();
        [None, Some(iops as u64 / 2)].map(|rate| {
            job.rate = rate;
            let before = disks.each_ref().map(|at| written_synced(at));
            job.seeded(1).run(&bench.scratch, &nodes.uri());
            nodes.rest();
            let after = disks.each_ref().map(|at| written_synced(at));
            [0, 1].map(|n| (after[n] - before[n]) as f64 / volume as f64)
        })
    };
    let (mut alone, mut production, mut recovery) = <(Samples, Samples, Samples)>::default();
    // Once: bytes do not depend on who else is busy.
    alone.0.push(run(false)[0][0]);
    let [[here, there], [at_half, _]] = run(true);
    production.0.push(here);
    recovery.0.push(there);
    let mut out = Outcome::default();
    out.ratio(
        "production, its peer away",
        "bytes of the application",
        AtMost(3.1),
        alone,
    );
    out.ratio(
        "production, with its peer",
        "bytes of the application",
        AtMost(2.2),
        production,
    );
    out.ratio(
        "production, with its peer, at half the rate",
        "bytes of the application",
        Told,
        Samples(vec![at_half]),
    );
    out.ratio("recovery", "bytes of the application", AtMost(4.2), recovery);
    out
}

fn over(bench: &Bench) -> Job {
    let volume = bench.scale.volume;
    Job::new("randwrite", 4096, 16, volume, Amount::Bytes(volume))
}

fn busy(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let lfc = (volume / 16).clamp(2 << 20, 64 << 20);
    let keys = format!(
        "lfc_size = \"{lfc}\"\njournal_limit = \"{0}\"\nrollback_window = \"{0}\"\nverify_rate = \"1G\"\n",
        volume / 2
    );
    let nodes = Plan {
        keys: &keys,
        ..Plan::new("busy", volume)
    }
    .full();
    // The journal comes to its limit.
    over(bench).run(&bench.scratch, &nodes.uri());
    nodes.rest();
    let verified = AtomicU64::new(0);
    let runs = bench.rounds(bench.scale.few_rounds.max(2), 2, |who, round| {
        let job = over(bench).seeded(round);
        if who == 0 {
            let ran = job.run(&bench.scratch, &nodes.uri());
            nodes.rest();
            return ran.iops;
        }
        let over = AtomicBool::new(false);
        let iops = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    nodes.pair.cli(PROD, &["verify", "-C", "1"]).ok();
                    verified.fetch_add(1, Ordering::Relaxed);
                }
            });
            begin_sync(bench, &nodes, round);
            let iops = job.run(&bench.scratch, &nodes.uri()).iops;
            over.store(true, Ordering::Release);
            iops
        });
        let id = other_context(round);
        done(&mut nodes.pair.command(
            PROD,
            &["wait", "-C", &id, "--until", "consistent", "--timeout", "600"],
        ));
        nodes.rest();
        iops
    });
    let iops = |who: usize| each(&runs[who], |r| *r);
    let mut out = Outcome::default();
    out.ran(&over(bench));
    out.ratio("", "line 2 without them", AtLeast(0.8), iops(1).over(&iops(0)));
    out.series("quiet", "IOPS", iops(0));
    out.series("busy", "IOPS", iops(1));
    out.remark(format!(
        "{} verifies came to their end meanwhile",
        verified.into_inner()
    ));
    out
}

fn other_context(round: usize) -> String {
    (11 + round).to_string()
}

/// Protects a volume of noise in a context of its own; its first sync goes on.
fn begin_sync(bench: &Bench, nodes: &Nodes, round: usize) {
    let (id, path) = (other_context(round), bench.scratch.join(format!("other{round}")));
    write_noise(&path, bench.scale.volume, 100 + round as u64);
    let volume = format!("other={}", path.display());
    // It says how the first sync goes, for as long as that takes or a minute.
    let mut protect = nodes
        .pair
        .command(PROD, &["protect", "-C", &id, &volume, "--no-mount"]);
    let _going_on = bench.scratch.start(&format!("protect{round}"), &mut protect);
    testkit::proc::until("the other context", LONG, || {
        let status = nodes.pair.json(PROD, &["status", "-C", &id]);
        status["reply"]["status"]["contexts"][0]["resync"]
            .is_object()
            .then_some(())
    });
}

fn acting(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let (mut before, mut after) = (Samples::default(), Samples::default());
    let mut busy = Processors::default();
    let rounds = bench.scale.few_rounds.max(2);
    let mut nodes = Plan::new("acting", volume).full();
    for round in 0..rounds {
        bench.quiet();
        before
            .0
            .push(over(bench).seeded(round).run(&bench.scratch, &nodes.uri()).iops);
        nodes.rest();
    }
    nodes.pair.drain();
    nodes.pair.cli(REC, &["rtdr", "-qC", "1", "failover"]).ok();
    nodes.pair.cli(PROD, &["rtdr", "-qC", "1", "resync"]).ok();
    nodes.pair.cli(REC, &["rtdr", "-qC", "1", "resync"]).ok();
    nodes.acting = REC;
    nodes.wait_consistent();
    nodes.rest();
    for round in 0..rounds {
        bench.quiet();
        let job = over(bench).seeded(round);
        let ran = busy.during(&nodes, || job.run(&bench.scratch, &nodes.uri()));
        after.0.push(ran.iops);
        nodes.rest();
    }
    let mut out = Outcome::default();
    out.ran(&over(bench));
    out.ratio("", "line 2", AtLeast(0.6), after.over(&before));
    out.series("as production", "IOPS", before);
    out.series("as acting production", "IOPS", after);
    busy.tell("as acting production", &mut out);
    out.remark(
        "not measured: the same once its earlier points have aged out (aim: 0.97 of line 2). How an acting production writes back is \
         chosen when it starts, and it goes on building undo for its own records",
    );
    out
}
