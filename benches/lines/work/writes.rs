//! Lines 1, 2, 3 and 5: writes, at full speed and one at a time.

use super::Line;
use crate::{
    bench::{Bench, each, timed},
    fio::{Amount, Job, Ran},
    machine,
    nodes::Plan,
    outcome::{Aim::AtLeast, Aim::AtMost, Aim::Told, Outcome},
    peers::Peer,
    plain::CaptureOff,
    processors::Processors,
    stats::Samples,
};
use rand::Rng;
use std::{fs::OpenOptions, os::unix::fs::FileExt, time::Instant};

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            number: 1,
            work: "4 KiB random write, depth 16, capture",
            does: "fio writes every block of the volume once, in random order, and flushes. Production alone, its peer \
                   away, against the same server without a journal and three others over a plain file.",
            run: capture,
            bound: "",
        },
        Line {
            number: 2,
            work: "the same, full path",
            does: "As line 1, with a live recovery node on the same machine that receives over TLS, journals, and applies \
                   with undo.",
            run: full_path,
            bound: "",
        },
        Line {
            number: 3,
            work: "4 KiB random write, depth 1, capture: latency",
            does: "One write at a time, for a while; what fio calls completion latency.",
            run: latency,
            bound: "The processors. A write takes a quarter of the time that it takes with capture off, so four times as many are answered, and behind \
                them the journal's sync, write-back and seal want processors too: 1.6 to 1.7 of two are busy. By a trace of the scheduler over two seconds the connection's \
                thread waits 18 µs for a processor on average and up to 5 ms, and fio 17 µs and up to 3.5 ms: the hundredth write is one of those.",
        },
        Line {
            number: 5,
            work: "1 MiB sequential write, depth 4",
            does: "fio writes the volume once from its start, and flushes. `device`: as many bytes by pwrite(2) over the \
                   file that the peers serve, and fdatasync.",
            run: sequential,
            bound: "The device. Alone, production writes each byte three times: into the tail, into the store when the container is sealed, for nobody else has it, and to \
                the volume. The recovery node adds its own tail and store, the undo and the replica: six to seven times in all. What the disk is given meanwhile stands beside what \
                it takes from one who writes nothing else.",
        },
    ]
}

fn over(bench: &Bench) -> Job {
    let volume = bench.scale.volume;
    Job::new("randwrite", 4096, 16, volume, Amount::Bytes(volume))
}

/// One run against a peer that lives only for it.
fn against(bench: &Bench, peer: Peer, job: &Job) -> Ran {
    let serving = peer.start(bench, &bench.image(bench.scale.volume));
    job.run(&bench.scratch, &serving.uri)
}

fn iops(runs: &[Ran]) -> Samples {
    each(runs, |r| r.iops)
}

fn capture(bench: &Bench) -> Outcome {
    let ours = Plan::new("capture", bench.scale.volume).capture();
    let peers = [Peer::Datalog, Peer::NbdServer, Peer::QemuNbd];
    let runs = bench.rounds(bench.scale.rounds, 5, |who, round| {
        let job = over(bench).seeded(round);
        match who {
            0 => {
                let ran = job.run(&bench.scratch, &ours.uri());
                ours.rest();
                ran
            }
            1 => {
                let off = CaptureOff::start(bench, &bench.image(bench.scale.volume));
                job.run(&bench.scratch, &off.uri)
            }
            n => against(bench, peers[n - 2], &job),
        }
    });
    let mut out = Outcome::default();
    out.ran(&over(bench));
    let [datalog, plain, qemu] = peers.map(Peer::name);
    let names = ["capture", "capture off", datalog, plain, qemu];
    let aims = [0.85, 2.0, 1.3, 1.8];
    for (n, (name, aim)) in names[1..].iter().zip(aims).enumerate() {
        out.ratio("", name, AtLeast(aim), iops(&runs[0]).over(&iops(&runs[n + 1])));
    }
    for (name, runs) in names.iter().zip(&runs) {
        out.series(name, "IOPS", iops(runs));
    }
    out
}

fn full_path(bench: &Bench) -> Outcome {
    let ours = Plan::new("full", bench.scale.volume).full();
    let peers = [Peer::Datalog, Peer::QemuNbd];
    let mut busy = Processors::default();
    let runs = bench.rounds(bench.scale.rounds, 3, |who, round| {
        let job = over(bench).seeded(round);
        if who > 0 {
            return against(bench, peers[who - 1], &job);
        }
        let ran = busy.during(&ours, || job.run(&bench.scratch, &ours.uri()));
        ours.rest();
        ran
    });
    let mut out = Outcome::default();
    out.ran(&over(bench));
    out.ratio("", "datalog", AtLeast(1.2), iops(&runs[0]).over(&iops(&runs[1])));
    out.ratio("", "qemu-nbd", AtLeast(1.1), iops(&runs[0]).over(&iops(&runs[2])));
    for (name, runs) in ["full path"].into_iter().chain(peers.map(Peer::name)).zip(&runs) {
        out.series(name, "IOPS", iops(runs));
    }
    busy.tell("full path", &mut out);
    out
}

fn latency(bench: &Bench) -> Outcome {
    let ours = Plan::new("latency", bench.scale.volume).capture();
    let volume = bench.scale.volume;
    let job = Job::new("randwrite", 4096, 1, volume, Amount::Seconds(bench.scale.seconds));
    let mut busy = Processors::default();
    let runs = bench.rounds(bench.scale.rounds, 2, |who, round| {
        let job = job.seeded(round);
        if who == 1 {
            let off = CaptureOff::start(bench, &bench.image(volume));
            return job.run(&bench.scratch, &off.uri);
        }
        let ran = busy.during(&ours, || job.run(&bench.scratch, &ours.uri()));
        ours.rest();
        ran
    });
    let mut out = Outcome::default();
    out.ran(&job);
    for (part, figure) in [
        ("p50", (|r: &Ran| r.p50_us) as fn(&Ran) -> f64),
        ("p99", |r| r.p99_us),
    ] {
        let [on, off] = [0, 1].map(|who| each(&runs[who], figure));
        out.ratio(part, "capture off", AtMost(1.15), on.over(&off));
        out.series(&format!("{part}, capture"), "µs", on);
        out.series(&format!("{part}, capture off"), "µs", off);
    }
    busy.tell("capture", &mut out);
    out
}

fn sequential(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let capture = Plan::new("seq-capture", volume).capture();
    let full = Plan::new("seq-full", volume).full();
    let job = Job::new("write", 1 << 20, 4, volume, Amount::Bytes(volume));
    let (mut alone, mut busy) = (Processors::default(), Processors::default());
    let mut disk = [Samples::default(), Samples::default()];
    let written = |samples: &mut Samples, run: &mut dyn FnMut() -> Ran| {
        let (before, began) = (machine::written(bench.scratch.path()), Instant::now());
        let ran = run();
        let bytes = machine::written(bench.scratch.path()) - before;
        samples
            .0
            .push(bytes as f64 / 1048576.0 / began.elapsed().as_secs_f64());
        ran
    };
    let runs = bench.rounds(bench.scale.rounds, 4, |who, round| {
        let job = job.seeded(round);
        match who {
            0 => {
                let mut run = || alone.during(&capture, || job.run(&bench.scratch, &capture.uri()));
                let ran = written(&mut disk[0], &mut run);
                capture.rest();
                ran.mib_per_s
            }
            1 => {
                let mut run = || busy.during(&full, || job.run(&bench.scratch, &full.uri()));
                let ran = written(&mut disk[1], &mut run);
                full.rest();
                ran.mib_per_s
            }
            2 => against(bench, Peer::Datalog, &job).mib_per_s,
            _ => device(bench, volume),
        }
    });
    let rate = |who: usize| each(&runs[who], |r| *r);
    let mut out = Outcome::default();
    out.ran(&job);
    out.ratio("capture", "datalog", AtLeast(2.5), rate(0).over(&rate(2)));
    out.ratio("full path", "datalog", AtLeast(1.2), rate(1).over(&rate(2)));
    out.ratio("capture", "device", Told, rate(0).over(&rate(3)));
    out.ratio("full path", "device", Told, rate(1).over(&rate(3)));
    for (name, who) in ["capture", "full path", "datalog", "device"].iter().zip(0..) {
        out.series(name, "MiB/s", rate(who));
    }
    for (name, disk) in ["capture", "full path"].iter().zip(disk) {
        out.series(&format!("{name}: written to the disk meanwhile"), "MiB/s", disk);
    }
    alone.tell("capture", &mut out);
    busy.tell("full path", &mut out);
    out
}

/// MiB a second of plain writes over the peers' image, synced at the end.
fn device(bench: &Bench, len: u64) -> f64 {
    let file = OpenOptions::new()
        .write(true)
        .open(bench.image(len))
        .expect("it was made");
    let mut piece = vec![0; 1 << 20];
    rand::rng().fill(&mut piece[..]);
    let (seconds, ()) = timed(|| {
        for at in (0..len).step_by(1 << 20) {
            file.write_all_at(&piece, at).expect("it can be written");
        }
        file.sync_data().expect("it can be synced");
    });
    (len >> 20) as f64 / seconds
}
