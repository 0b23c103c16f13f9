//! Lines 6 and 7: reads of the protected volume.

use super::Line;
use crate::{
    bench::{Bench, each},
    fio::{Amount, Job, Ran},
    nodes::{Nodes, Plan},
    outcome::{Aim::AtLeast, Aim::AtMost, Aim::Told, Outcome},
    peers::Peer,
};
use std::{thread, time::Duration};

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            number: 6,
            work: "4 KiB random read, depth 16",
            does: "For a while, from what the page cache holds. `while writes pend`: a second connection writes 2000 blocks a \
                   second at random meanwhile, on both servers.",
            run: random,
            bound: "",
        },
        Line {
            number: 7,
            work: "one 4 KiB read at a time behind saturating writes, p99",
            does: "Reads at depth 1 on one connection while another writes 4 KiB blocks at depth 16 as fast as it can, against \
                   the same reads alone. Production without its peer; the same ratio of qemu-nbd for comparison.",
            run: behind_writes,
            bound: "",
        },
    ]
}

/// Seconds by which the load beside a run begins before it and ends behind it.
const MARGIN: u64 = 1;

/// Runs a job beside another, which is there from before it begins until after it has ended.
fn beside(bench: &Bench, uri: &str, job: &Job, other: &Job) -> Ran {
    let output = bench.scratch.join("beside.json");
    let load = bench.scratch.start("beside", &mut other.command(uri, &output));
    thread::sleep(Duration::from_secs(MARGIN));
    let ran = job.run(&bench.scratch, uri);
    assert_eq!(
        load.ended(),
        None,
        "the load ended before the run: {}",
        load.log()
    );
    assert_eq!(load.wait(Duration::from_secs(300)), 0, "{}", load.log());
    ran
}

/// Reads from production (0 and 2) and from qemu-nbd (1 and 3), for those that are `loaded` beside writes.
fn four(
    bench: &Bench,
    ours: &Nodes,
    (reads, writes): (&Job, &Job),
    loaded: impl Fn(usize) -> bool,
) -> Vec<Vec<Ran>> {
    bench.rounds(bench.scale.rounds, 4, |who, round| {
        let job = reads.seeded(round);
        let run = |uri: &str| match loaded(who) {
            true => beside(bench, uri, &job, &writes.seeded(round)),
            false => job.run(&bench.scratch, uri),
        };
        if who % 2 == 0 {
            let ran = run(&ours.uri());
            ours.rest();
            ran
        } else {
            let image = bench.image(bench.scale.volume);
            run(&Peer::QemuNbd.start(bench, &image).uri)
        }
    })
}

fn random(bench: &Bench) -> Outcome {
    let (volume, seconds) = (bench.scale.volume, bench.scale.seconds);
    let ours = Plan::new("reads", volume).capture();
    let reads = Job::new("randread", 4096, 16, volume, Amount::Seconds(seconds));
    let mut writes = Job::new(
        "randwrite",
        4096,
        4,
        volume,
        Amount::Seconds(seconds + 3 * MARGIN),
    );
    writes.rate = Some(2000);
    let runs = four(bench, &ours, (&reads, &writes), |who| who >= 2);
    let iops = |who: usize| each(&runs[who], |r| r.iops);
    let mut out = Outcome::default();
    out.ran(&reads);
    out.ran(&writes);
    out.ratio("quiet", "qemu-nbd", AtLeast(1.5), iops(0).over(&iops(1)));
    out.ratio(
        "while writes pend",
        "qemu-nbd",
        AtLeast(1.0),
        iops(2).over(&iops(3)),
    );
    let names = [
        "quiet",
        "quiet, qemu-nbd",
        "while writes pend",
        "while writes pend, qemu-nbd",
    ];
    for (name, who) in names.iter().zip(0..) {
        out.series(name, "IOPS", iops(who));
    }
    out
}

fn behind_writes(bench: &Bench) -> Outcome {
    let (volume, seconds) = (bench.scale.volume, bench.scale.seconds);
    let ours = Plan::new("behind", volume).capture();
    let reads = Job::new("randread", 4096, 1, volume, Amount::Seconds(seconds));
    let writes = Job::new(
        "randwrite",
        4096,
        16,
        volume,
        Amount::Seconds(seconds + 3 * MARGIN),
    );
    let runs = four(bench, &ours, (&reads, &writes), |who| who < 2);
    let p99 = |who: usize| each(&runs[who], |r| r.p99_us);
    let mut out = Outcome::default();
    out.ran(&reads);
    out.ran(&writes);
    out.ratio("", "unloaded p99", AtMost(5.0), p99(0).over(&p99(2)));
    out.ratio("qemu-nbd itself", "unloaded p99", Told, p99(1).over(&p99(3)));
    let names = [
        "p99 behind writes",
        "p99 behind writes, qemu-nbd",
        "p99 unloaded",
        "p99 unloaded, qemu-nbd",
    ];
    for (name, who) in names.iter().zip(0..) {
        out.series(name, "µs", p99(who));
    }
    out
}
