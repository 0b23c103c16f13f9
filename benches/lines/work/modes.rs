//! Line 20: answers that wait for the other host.

use super::Line;
use crate::{
    bench::{Bench, each},
    nodes::Plan,
    outcome::{Aim::AtLeast, Outcome},
    writer::durable_writes,
};
use model::BLOCK_SIZE;
use std::time::Duration;

pub fn lines() -> Vec<Line> {
    vec![Line {
        number: 20,
        work: "`mwc` and `sync` mode on loopback, 4 KiB FUA writes, depth 16",
        does: "For a while, at random places, over one connection, with the recovery node live. Against `async` with FUA.",
        run: modes,
        bound: "",
    }]
}

fn modes(bench: &Bench) -> Outcome {
    const MODES: [&str; 3] = ["async", "mwc", "sync"];
    let (volume, lasts) = (bench.scale.volume, Duration::from_secs(bench.scale.seconds));
    let nodes = MODES.map(|mode| {
        let keys = format!("mode = \"{mode}\"\nrollback_window = \"24h\"\njournal_limit = \"6G\"\n");
        Plan {
            keys: &keys,
            ..Plan::new(mode, volume)
        }
        .full()
    });
    let runs = bench.rounds(bench.scale.rounds, MODES.len(), |who, round| {
        let mut client = nodes[who].client();
        let iops = durable_writes(&mut client, volume / BLOCK_SIZE, 16, lasts, 1 + round as u64);
        nodes[who].rest();
        iops
    });
    let iops = |who: usize| each(&runs[who], |iops| *iops);
    let mut out = Outcome::default();
    out.ratio("mwc", "async", AtLeast(0.6), iops(1).over(&iops(0)));
    out.ratio("sync", "async", AtLeast(0.4), iops(2).over(&iops(0)));
    for (name, who) in MODES.iter().zip(0..) {
        out.series(name, "IOPS", iops(who));
    }
    out
}
