//! Line 4: writes with many flushes.

use super::Line;
use crate::{
    bench::{Bench, each},
    fio::{Amount, Job},
    nodes::Plan,
    outcome::{Aim::AtLeast, Outcome},
    peers::Peer,
    processors::Processors,
};

pub fn lines() -> Vec<Line> {
    vec![Line {
        number: 4,
        work: "4 KiB random write, depth 16, a flush after every 32, truly durable",
        does: "For a while. All of them answer a flush behind an fdatasync: of the journal, or of the file.",
        run: flushes,
        bound: "The processors: 1.7 of two are busy, 0.8 by production and 0.6 by the recovery node, while fio waits for one flush after the other; nbdkit and fio have both for \
            themselves.",
    }]
}

fn flushes(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let capture = Plan::new("flush-capture", volume).capture();
    let full = Plan::new("flush-full", volume).full();
    let mut job = Job::new(
        "randwrite",
        4096,
        16,
        volume,
        Amount::Seconds(bench.scale.seconds),
    );
    job.flush_every = Some(32);
    let mut busy = Processors::default();
    let runs = bench.rounds(bench.scale.rounds, 3, |who, round| {
        let job = job.seeded(round);
        if who == 2 {
            let serving = Peer::Nbdkit.start(bench, &bench.image(volume));
            return job.run(&bench.scratch, &serving.uri);
        }
        let ran = match who {
            0 => job.run(&bench.scratch, &capture.uri()),
            _ => busy.during(&full, || job.run(&bench.scratch, &full.uri())),
        };
        [&capture, &full][who].rest();
        ran
    });
    let iops = |who: usize| each(&runs[who], |r| r.iops);
    let mut out = Outcome::default();
    out.ran(&job);
    out.ratio("capture", "nbdkit file", AtLeast(1.2), iops(0).over(&iops(2)));
    out.ratio("full path", "nbdkit file", AtLeast(0.9), iops(1).over(&iops(2)));
    for (name, who) in ["capture", "full path", "nbdkit file"].iter().zip(0..) {
        out.series(name, "IOPS", iops(who));
    }
    busy.tell("full path", &mut out);
    out
}
